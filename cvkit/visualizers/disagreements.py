"""What one model gets wrong and another right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cvkit.data import ImageData
from cvkit.errors import RunError
from cvkit.registry import VISUALIZERS
from cvkit.runs.compare import run_names
from cvkit.runs.folder import Run
from cvkit.system.text import plural
from cvkit.visualizers.drawing import Picture, message, refuse_below_one, styled
from cvkit.visualizers.misclassified import gallery


@VISUALIZERS.register()
@styled
def disagreements(compared: list[Run], data: ImageData,
                  count: int = 20) -> Picture | list[Picture]:
    """Test images that the first of several runs gets wrong and another right.

    One gallery for each other run, the most confident mistakes of the first run first.

    Args:
        count: how many.
    """
    refuse_below_one(count=count)
    names, first = run_names(compared), compared[0].predictions
    refuse_other_images(compared)
    pictures = []
    for name, run in zip(names[1:], compared[1:]):
        other = run.predictions
        is_right, other_is_right = (item.true == item.predicted for item in (first, other))
        rows = np.flatnonzero(~is_right & other_is_right)
        rows = rows[np.argsort(-first.probabilities[rows].max(1), kind="stable")]
        shown = "" if len(rows) <= count else f"{count} of "
        caption = (f"{shown}{plural(len(rows), 'test image')} that {names[0]} gets wrong and "
                   f"{name} right, the most confident mistakes first; "
                   f"{int((is_right & ~other_is_right).sum()):,} the other way round, "
                   f"{int((~is_right & ~other_is_right).sum()):,} wrong in both. Over each: true → "
                   "predicted by the first.")
        pictures.append(gallery(data.test, first, rows[:count], "Wrong in one, right in the other",
                                caption) if len(rows) else message(caption))
    return pictures[0] if len(pictures) == 1 else pictures


def refuse_other_images(runs: Sequence[Run]) -> None:
    """Refuse runs that were not tested on the same images.

    Raises:
        RunError: names the first two.
    """
    for run in runs[1:]:
        if not runs[0].predictions.is_of_same_images(run.predictions):
            raise RunError(f"{runs[0].folder} and {run.folder} were tested on different images")
