"""How well the probability of each class ranks the test images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import PercentFormatter

from cvkit.registry import VISUALIZERS
from cvkit.runs.predictions import Predictions
from cvkit.system.text import escape_controls, in_columns, plural
from cvkit.visualizers.drawing import (
    COLOURS,
    FAINT,
    Picture,
    as_csv,
    drawn_names,
    message,
    refuse_below_one,
    shorten,
    styled,
    told_names,
    wrap,
)

_STYLES = ("-", "--", ":", "-.")
# Where all curves are averaged.
_GRID = np.linspace(0, 1, 501)


class _Curve(NamedTuple):
    """A class's curve, over `_GRID` too, and its area."""

    label: int
    x: np.ndarray
    y: np.ndarray
    on_grid: np.ndarray
    area: float


@VISUALIZERS.register()
@styled
def roc(predictions: Predictions, count: int = 10) -> Picture:
    """Receiver operating characteristic of each class against the others, and their mean.

    Areas as scikit-learn's roc_auc_score, the mean as its average="macro", multi_class="ovr". It
    does not depend on how frequent a class is; where one is rare, `pr` tells more.

    Args:
        count: how many classes are drawn, those with the smallest areas; the table has all.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    def of(is_class: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, ...]:
        false, right, _ = roc_curve(is_class, score)
        return false, right, np.interp(_GRID, false, right), roc_auc_score(is_class, score)

    return _draw(predictions, count, of, "ROC curves", "false positives, part of other classes",
                 "true positives, part of the class (recall)", "area under the ROC curve",
                 lambda share: (np.array([0, 1]), np.array([0, 1])))


@VISUALIZERS.register()
@styled
def pr(predictions: Predictions, count: int = 10) -> Picture:
    """Precision over recall of each class against the others, and their mean.

    Areas are scikit-learn's average_precision_score, the mean its average="macro".

    Args:
        count: how many classes are drawn, those with the smallest areas; the table has all.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    def of(is_class: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, ...]:
        precision, recall, _ = precision_recall_curve(is_class, score)
        # Steps, as the average precision counts them: nothing is interpolated.
        place = np.searchsorted(recall[::-1], _GRID, side="left").clip(max=len(recall) - 1)
        return recall, precision, precision[::-1][place], average_precision_score(is_class, score)

    return _draw(predictions, count, of, "Precision and recall", "recall", "precision",
                 "average precision", lambda share: (np.array([0, 1]), np.array([share, share])))


def _draw(predictions: Predictions, count: int, of: Callable[..., tuple[Any, ...]],
          headline: str, x: str, y: str, area: str,
          chance: Callable[[float], tuple[np.ndarray, np.ndarray]]) -> Picture:
    """Draw curves of the classes with the smallest areas, and the mean of all.

    Args:
        of: given which images are of a class and their probabilities, returns a curve's x and y,
            its values over `_GRID`, and its area.
        x, y, area: names of both axes and of the area.
        chance: given the mean part of a class, returns the line of a model that guesses.
    """
    refuse_below_one(count=count)
    support = np.bincount(predictions.true, minlength=len(predictions.classes))
    # Of a class that no image has, or all have, there is none.
    known = np.flatnonzero((support > 0) & (support < len(predictions.true)))
    if not len(known):
        return message("All test images are of one class, so there is nothing to rank.")
    found = sorted((_Curve(int(label), *of(predictions.true == label,
                                           predictions.probabilities[:, label]))
                    for label in known), key=lambda curve: (curve.area, curve.label))
    mean, shown, names = float(np.mean([curve.area for curve in found])), found[:count], (
        drawn_names(predictions.classes))
    low, high = found[0], found[-1]
    note, numbered = told_names(predictions.classes)
    some = "" if len(shown) == len(found) else (
        f" Drawn: the {len(shown):,} with the smallest.")
    without = len(support) - len(known)
    lacking = f" {plural(without, 'class')} without test images." if without else ""
    caption = wrap(f"The {area} is {mean:.4f} on average over {plural(len(found), 'class')}, from "
                   f"{low.area:.4f} ({names[low.label]}) to {high.area:.4f} ({names[high.label]})."
                   f"{some}{lacking} Each class against all others.{note}", 7.6)
    top = 0.55 + 0.13 * len(caption)
    figure = Picture(7.8, top + 4.35)
    figure.headline(headline, "\n".join(caption))
    axes = figure.panel(0.75, top, 3.8, 3.8)
    share = float(np.mean(support[known] / len(predictions.true)))
    axes.plot(*chance(share), color=FAINT, linewidth=1, linestyle=(0, (1, 2)), label="guessing")
    for number, curve in enumerate(shown):
        axes.plot(curve.x, curve.y, drawstyle="steps-post" if x == "recall" else "default",
                  color=COLOURS[number % (len(COLOURS) - 1)], linewidth=1.1,
                  linestyle=_STYLES[number // (len(COLOURS) - 1) % len(_STYLES)],
                  label=f"{curve.area:.4f}  {shorten(names[curve.label], 2.0, 8)}")
    axes.plot(_GRID, np.mean([curve.on_grid for curve in found], axis=0), color="black",
              linewidth=2.2, label=f"{mean:.4f}  mean of {plural(len(found), 'class')}")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
    for axis, words in ((axes.xaxis, x), (axes.yaxis, y)):
        axis.set_major_formatter(PercentFormatter(1, 0, " %"))
        axis.set_label_text(words)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), title=area[0].upper() + area[1:],
                title_fontsize=8, alignment="left")
    rows = [(escape_controls(predictions.classes[curve.label]), curve.area,
             int(support[curve.label])) for curve in found]
    figure.csv = as_csv(("class", area, "images"), [*rows, ("mean", mean, len(predictions.true))])
    figure.table = "\n".join(in_columns(
        [("class", area, "images"), *((name, f"{value:.4f}", f"{images:,}")
                                      for name, value, images in rows),
         ("mean", f"{mean:.4f}", f"{len(predictions.true):,}")], "<", ">", ">")) + numbered
    return figure
