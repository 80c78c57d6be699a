"""What a cross-validation says of all images, each by the model that was not trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cvkit.data import ImageSet
from cvkit.data.build import images_of_folds
from cvkit.errors import RunError
from cvkit.evaluation.run_evaluation import with_probabilities
from cvkit.runs.folder import Run
from cvkit.runs.group import Folds
from cvkit.runs.predictions import Predictions, mean_probabilities


def out_of_fold(runs: Sequence[Run], whole: ImageSet) -> Predictions:
    """Return the predictions of the images of all folds; of repeated ones their mean.

    Args:
        runs: of all folds, finished.
        whole: the images that the folds are of.

    Raises:
        RunError: an image was not tested, or some more often than others.
    """
    said = [run.predictions for run in runs]
    for run, each in zip(runs, said):
        rows = np.searchsorted(whole.index, each.index).clip(max=len(whole) - 1)
        if each.classes != said[0].classes or not (
                np.array_equal(whole.index[rows], each.index)
                and np.array_equal(whole.labels[rows], each.true)):
            raise RunError(f"{run.folder} was tested on other images than the folds are of")
    probabilities, times = mean_probabilities(said, whole.index)
    if times.min() == 0 or times.min() != times.max():
        raise RunError(f"the folds tested images {times.min()} to {times.max()} times, not each "
                       "as often", hint="Are all folds finished, and of one cross-validation?")
    first = replace(said[0], index=whole.index, true=whole.labels, images=whole.fingerprint,
                    epoch=max(each.epoch for each in said), batches=0, out_of_fold=True)
    # Each image was tested by as many models as there are repeats, not by those of all folds.
    return with_probabilities(first, probabilities, runs[0].config.METRICS, int(times[0]))


def keep_out_of_fold(group: Folds) -> Predictions:
    """Write a group's `predictions.npz` anew, and return it; raises as `out_of_fold`."""
    said = out_of_fold(group.runs, images_of_folds(group.runs[0].data))
    said.save(group.folder / "predictions.npz")
    vars(group).pop("predictions", None)
    return said
