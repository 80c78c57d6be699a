"""The test images that cost the model most."""

from __future__ import annotations

import numpy as np

from cvkit.data import ImageData
from cvkit.registry import VISUALIZERS
from cvkit.runs.predictions import Predictions
from cvkit.system.text import plural
from cvkit.visualizers.drawing import (
    Picture,
    as_csv,
    image_names,
    positions_of,
    refuse_below_one,
    styled,
)
from cvkit.visualizers.misclassified import gallery


@VISUALIZERS.register()
@styled
def top_losses(predictions: Predictions, data: ImageData, count: int = 20) -> Picture:
    """Test images with the highest cross-entropy, that is with the least probable true class.

    Those that a person would label otherwise have wrong labels; the others are what the model has
    not learned. The CSV has the loss of every test image.

    Args:
        count: how many.
    """
    refuse_below_one(count=count)
    own = predictions.probabilities[np.arange(len(predictions.true)), predictions.true]
    # Of a probability of 1 it would be -0.
    losses = -np.log(np.maximum(own.astype(np.float64), np.finfo(np.float32).tiny)) + 0.0
    order = np.lexsort((predictions.index, -losses))
    rows = order[:count]
    part = losses[rows].sum() / max(losses.sum(), np.finfo(np.float64).tiny)
    figure = gallery(
        data.test, predictions, rows, "Highest losses",
        f"The {plural(len(rows), 'test image')} with the highest loss: "
        f"{100 * len(rows) / len(losses):.1f} % of the images, {100 * part:.0f} % of the loss. "
        f"Half of all images have a loss of {np.median(losses):.2g} or less. Over each: true → "
        "predicted (loss).",
        [f"{losses[row]:.2f}" for row in rows])
    figure.csv = as_csv(
        ("image", "true", "predicted", "loss", "probability of true"),
        [(name, predictions.classes[predictions.true[row]],
          predictions.classes[predictions.predicted[row]], float(losses[row]), float(own[row]))
         for row, name in zip(order, image_names(
             data.test, positions_of(data.test, predictions, order)))])
    return figure
