"""How well each class is told, and how far that can be trusted."""

from __future__ import annotations

from typing import Literal

import numpy as np
from matplotlib.ticker import MaxNLocator

from cvkit.evaluation.reliability import wilson
from cvkit.registry import VISUALIZERS
from cvkit.runs.predictions import Predictions
from cvkit.system.text import escape_controls, in_columns, plural
from cvkit.visualizers.drawing import (
    COLOURS,
    FAINT,
    Picture,
    as_csv,
    drawn_names,
    refuse_below_one,
    shorten,
    styled,
    text_width,
    told_names,
    wrap,
)

_SCORES = ("precision", "recall", "F1")
# Of fewer resamples the outer 2.5 % are a matter of chance.
_FEWEST = 100


@VISUALIZERS.register()
@styled
def per_class(predictions: Predictions, sort: Literal["F1", "recall", "precision", "class"] = "F1",
              count: int = 50, resamples: int = 1000, seed: int = 0) -> Picture:
    """Precision, recall and F1 of each class with intervals of 95 %, the worst classes first.

    Scores as scikit-learn has them. Intervals of precision and recall are Wilson's; those of F1 are
    percentiles over resampled test images (Efron, 1979).

    Args:
        sort: what the order goes by; "class" leaves that of the data set.
        count: how many classes are drawn; the table has all.
        resamples: how often the test images are drawn anew.
        seed: of that.
    """
    refuse_below_one(count=count)
    if resamples < _FEWEST:
        raise ValueError(f"resamples is {_FEWEST} or more, not {resamples}")
    scores, support = predictions.scores()
    intervals = score_intervals(predictions, resamples, seed)
    # Of classes without images there is nothing to be worst in.
    order = np.arange(len(scores)) if sort == "class" else np.lexsort(
        (scores[:, _SCORES.index(sort)], support == 0))
    shown, names = order[:count], drawn_names(predictions.classes)
    labels = [shorten(names[label], 1.6, 8) for label in shown]
    widest, row = max(text_width(label, 8) for label in labels), 0.2
    panel, left = 2.1, 0.25 + widest
    width = left + 3 * (panel + 0.15) + 0.75
    note, numbered = told_names(predictions.classes)
    some = "" if len(shown) == len(order) else f" Drawn: the first {len(shown)} of {len(order):,}."
    caption = wrap(f"{_in_words(scores, support, intervals, names)}{some}{note}", width - 0.2)
    top, tall = 0.75 + 0.13 * len(caption), row * len(shown) + 0.1
    figure = Picture(width, top + tall + 0.4)
    figure.headline("Classes, each with what chance may have done", "\n".join(caption))
    places = np.arange(len(shown))
    for number, (title, values) in enumerate(zip(_SCORES, scores.T)):
        axes = figure.panel(left + number * (panel + 0.15), top, panel, tall)
        axes.set_title(f"{title[0].upper()}{title[1:]} (%)", loc="left")
        low, high = 100 * intervals[shown, number].T
        axes.hlines(places, low, high, color=COLOURS[0], linewidth=4, alpha=0.35)
        # No recall is known of a class without images, which scikit-learn calls 0.
        drawn = np.where((support == 0) & (title == "recall"), np.nan, values)
        axes.plot(100 * drawn[shown], places, "o", color=COLOURS[0], markersize=4)
        axes.axvline(float(100 * np.nanmean(drawn)), color=FAINT, linewidth=1, linestyle="--")
        axes.set_yticks(places, labels if not number else [])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        low, high = _ends(100 * intervals[shown])
        axes.set_xlim(low, high)
        # 100 is told where it is near; a tick beside it would run into its label.
        below = 100 - 0.15 * (high - low) if high >= 100 else high
        axes.set_xticks([tick for tick in MaxNLocator(4).tick_values(low, high)
                         if low <= tick <= below] + [100] * int(high >= 100))
        axes.tick_params(axis="y", length=0)
    for place, text in [(-1.1, "images"), *enumerate(f"{support[label]:,}" for label in shown)]:
        axes.annotate(text, (1, place), (0.6 * 72, 0), xycoords=("axes fraction", "data"),
                      textcoords="offset points", ha="right", va="center", fontsize=8,
                      annotation_clip=False)
    header = ("class", *(f"{name} {part}".strip() for name in _SCORES
                         for part in ("", "from", "to")), "images")
    rows = [(escape_controls(predictions.classes[label]),
             *(float(value) for number in range(3)
               for value in (scores[label, number], *intervals[label, number])),
             int(support[label])) for label in order]
    figure.csv = as_csv(header, rows)
    figure.table = "\n".join(in_columns(
        [header, *([name, *(f"{value:.4f}" for value in values), f"{images:,}"]
                   for name, *values, images in rows)], "<", *[">"] * 10)) + numbered
    return figure


def score_intervals(predictions: Predictions, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Return the ends of intervals of 95 %, float64 (C, 3, 2): of precision, recall and F1.

    NaN where there is nothing to divide by. Of an F1 that no resampling changes, 0 or 1, it is what
    Wilson's says of the part of the images of a class, or taken for it, that are both.
    """
    number = len(predictions.classes)
    right, told, there = (np.bincount(labels, minlength=number) for labels in (
        predictions.true[predictions.true == predictions.predicted], predictions.predicted,
        predictions.true))
    found = np.full((number, 3, 2), np.nan)
    found[:, 0], found[:, 1] = wilson(right, told), wilson(right, there)
    random = np.random.default_rng(seed)
    for label in range(number):
        if told[label] + there[label]:
            # Of a class it matters only which of four kinds a drawn image is of.
            kinds = np.array([right[label], told[label] - right[label],
                              there[label] - right[label], 0])
            kinds[3] = len(predictions.true) - kinds.sum()
            hit, false, missed, _ = random.multinomial(
                len(predictions.true), kinds / kinds.sum(), size=resamples).T
            drawn = 2 * hit / np.maximum(2 * hit + false + missed, 1)
            if np.ptp(drawn):
                found[label, 2] = np.percentile(drawn, (2.5, 97.5))
            else:
                part, = wilson(kinds[:1], kinds[:3].sum(keepdims=True))
                found[label, 2] = 2 * part / (1 + part)
    return found


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Return where an axis of percentages begins and ends, with some room, for all panels."""
    if np.isnan(values).all():
        return 0.0, 100.0
    low, high = np.nanmin(values), np.nanmax(values)
    margin = max(0.08 * (high - low), 1.0)
    return low - margin, min(high + margin, 103)


def _in_words(scores: np.ndarray, support: np.ndarray, intervals: np.ndarray,
              names: list[str]) -> str:
    """Say which classes are worst, and how many differ from the mean by more than chance."""
    mean, there = np.nanmean(scores[:, 2]), support > 0
    worst = [label for label in np.argsort(scores[:, 2], kind="stable")
             if there[label] and scores[label, 2] < 1][:2]
    listed = " and ".join(
        f"{names[label]} ({100 * scores[label, 2]:.1f} %, {100 * intervals[label, 2, 0]:.1f} to "
        f"{100 * intervals[label, 2, 1]:.1f})"
        for label in worst)
    below, above = (int((is_so & there).sum()) for is_so in (
        intervals[:, 2, 1] < mean, intervals[:, 2, 0] > mean))
    said = (f"The lowest F1: {listed}. The whole interval of F1 lies below the mean, "
            f"{100 * mean:.1f} % (dashed), for {below} of {plural(len(scores), 'class')}, and "
            f"above it for {above}." if worst else "Every class has an F1 of 100 %.")
    without = int((~there).sum())
    said += f" Without test images: {without}." if without else ""
    return (f"{said} Bars are intervals of 95 % over "
            f"{plural(int(support.sum()), 'test image')}.")
