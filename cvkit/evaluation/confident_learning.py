"""Labels that are probably wrong, by confident learning."""

from __future__ import annotations

import numpy as np

from cvkit.runs.predictions import Predictions

# cleanlab's, for what is equal but for rounding.
_ROUNDING = 1e-6


def label_candidates(predictions: Predictions) -> tuple[np.ndarray, int]:
    """Return the rows whose label the model contradicts, int64, and how many are probably wrong.

    Those come first. They are found by confident learning (Northcutt, Jiang & Chuang, J. Artif.
    Intell. Res. 70, 2021): the model gives another class at least the probability that images of
    that class have for it on average, and more than the label's; as cleanlab's
    find_label_issues(filter_by="confident_learning"). Both parts are in the order of how far the
    label's probability lies below the highest, cleanlab's "normalized_margin".

    Args:
        predictions: best by models that were not trained on these images.
    """
    labels, probabilities = predictions.true, predictions.probabilities.astype(np.float64)
    counts = np.bincount(labels, minlength=len(predictions.classes))
    own = probabilities[np.arange(len(labels)), labels]
    # Of a class without images no probability is high enough.
    typical = np.where(counts, np.bincount(labels, own, len(counts)) / np.maximum(counts, 1),
                       np.inf)
    is_confident = probabilities >= typical - _ROUNDING
    guess = np.where(is_confident.sum(1) > 1, probabilities.argmax(1), is_confident.argmax(1))
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    margin = own - others.max(1)
    is_wrong = is_confident.any(1) & (guess != labels) & (margin < -_ROUNDING)
    rows = np.flatnonzero(margin < -_ROUNDING)
    return rows[np.lexsort((margin[rows], ~is_wrong[rows]))], int(is_wrong.sum())
