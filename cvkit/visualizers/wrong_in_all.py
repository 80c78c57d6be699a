"""Test images that every one of several runs gets wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cvkit.data import ImageData
from cvkit.registry import VISUALIZERS
from cvkit.runs.folder import Run
from cvkit.runs.predictions import Predictions
from cvkit.system.text import plural
from cvkit.visualizers.disagreements import refuse_other_images
from cvkit.visualizers.drawing import Picture, message, refuse_below_one, styled
from cvkit.visualizers.misclassified import gallery


@VISUALIZERS.register()
@styled
def wrong_in_all(compared: list[Run], data: ImageData, count: int = 20) -> Picture:
    """Test images that all of several runs get wrong: hard ones, and those with wrong labels.

    Those come first whose wrong class has the highest probability, on average over the runs.

    Args:
        count: how many.
    """
    refuse_below_one(count=count)
    refuse_other_images(compared)
    said = [run.predictions for run in compared]
    times = times_wrong(said)
    rows = np.flatnonzero(times == len(said))
    first, means = said[0], np.mean([each.probabilities for each in said], axis=0)
    # All runs are wrong there, if not all in the same way.
    means[np.arange(len(means)), first.true] = 0
    together = replace(first, probabilities=means, predicted=means.argmax(1))
    rows = rows[np.argsort(-means[rows].max(1), kind="stable")]
    shown = "" if len(rows) <= count else f"{count} of "
    some, none = int((times > 0).sum() - len(rows)), int((times == 0).sum())
    caption = (f"{shown}{plural(len(rows), 'test image')} that all {len(said)} runs get wrong; "
               f"{some:,} are wrong in some, {none:,} in none. Over each: true → the wrong class "
               "that they give most (its mean probability).")
    if not len(rows):
        return message(caption)
    return gallery(data.test, together, rows[:count], f"Wrong in all {len(said)} runs", caption)


def times_wrong(said: list[Predictions]) -> np.ndarray:
    """Return how many of several predictions of the same images are wrong for each, int64 (N,)."""
    return np.sum([each.predicted != each.true for each in said], axis=0)
