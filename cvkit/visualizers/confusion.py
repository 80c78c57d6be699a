"""Which classes are taken for which."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cvkit.errors import plural
from cvkit.registry import VISUALIZERS
from cvkit.run import Predictions
from cvkit.visualizers.drawing import COLOURS, Picture, shorten, styled

_LABEL = 22  # characters of a class's name that labels have room for


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Return int64 (C, C): how many images of a class (row) were predicted as one (column)."""
    number = len(predictions.classes)
    return np.bincount(predictions.true * number + predictions.predicted,
                       minlength=number**2).reshape(number, number)


def confused_pairs(predictions: Predictions, count: int) -> list[tuple[str, str, int, float]]:
    """Return the most frequent mistakes: true class, predicted class, images, part of the class."""
    matrix = confusion_matrix(predictions)
    of_class = matrix.sum(1)
    mistakes = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    names = predictions.classes
    return [(names[row], names[column], int(mistakes[row, column]),
             mistakes[row, column] / of_class[row])
            for row, column in zip(*np.unravel_index(order, matrix.shape))
            if mistakes[row, column]]


@VISUALIZERS.register()
@styled
def confusion(predictions: Predictions, pairs: int = 10) -> Picture:
    """The confusion matrix with counts and rates, accuracy by class, the most confused pairs.

    Args:
        pairs: how many of them to list.
    """
    if pairs < 1:
        raise ValueError(f"pairs is 1 or more, not {pairs}")
    matrix = confusion_matrix(predictions)
    number = len(matrix)
    cell = 0.52 if number <= 12 else 0.34 if number <= 30 else max(0.02, 6 / number)
    is_labelled = number <= 60  # with more, a histogram takes the place of bars with names
    longest = min(max(map(len, predictions.classes)), _LABEL) if is_labelled else 3
    # Letters of 8 points are about 0.075 inches wide; labels on top are slanted by 45°.
    side, left, top = cell * number, 0.5 + 0.075 * longest, 0.95 + 0.055 * longest
    listed = confused_pairs(predictions, pairs)
    x, bar_left = left + side + 0.6, 0.3 + 0.075 * longest
    bars = min(side, max(0.19 * number, 1.2)) if is_labelled else 2.5
    below = 1.0 + bars + (0.5 if is_labelled else 0.75)
    figure = Picture(x + bar_left + 3.4, max(top + side + 0.15, below + 0.25 + 0.17 * len(listed)))
    figure.headline("Confusion matrix",
                    f"{predictions.correct:,} of "
                    f"{plural(len(predictions.true), 'test image')} right "
                    f"({100 * predictions.accuracy:.2f} %), {predictions.place}")
    _draw_matrix(figure.panel(left, top, side, side), matrix, predictions.classes)
    _draw_accuracy(figure.panel(x + bar_left, 1.0, 3.0, bars), matrix, predictions.classes)
    lines = [f"{shorten(true, 20)} → {shorten(predicted, 20)}: {images} ({100 * part:.1f} %)"
             for true, predicted, images, part in listed] or ["none: every image is right"]
    width, height = figure.get_size_inches()
    figure.text(x / width, 1 - below / height,
                "Most confused: true → predicted (part of the true class)", fontsize=9)
    for row, line in enumerate(lines):
        figure.text(x / width, 1 - (below + 0.22 + 0.17 * row) / height, line, fontsize=8)
    figure.table = "\n".join([predictions.table(), "", "most confused, true → predicted:",
                              *(f"  {line}" for line in lines)])
    return figure


def _draw_matrix(axes: Axes, matrix: np.ndarray, classes: list[str]) -> None:
    rates = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(rates, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    number = len(matrix)
    if number <= 30:
        names = [shorten(name, _LABEL) for name in classes]
        axes.set_xticks(range(number), names, rotation=45, ha="left", rotation_mode="anchor")
        axes.set_yticks(range(number), names)
        for row, column in np.ndindex(matrix.shape):
            count, rate = matrix[row, column], rates[row, column]
            if count or row == column:  # a class that is never right is no gap
                share = f"\n{100 * rate:.1f} %" if number <= 12 else ""
                axes.text(column, row, f"{count}{share}", ha="center", va="center",
                          fontsize=6.5, color="white" if rate > 0.5 else "black",
                          linespacing=1.1)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xlabel("predicted" if number <= 30 else f"predicted, class number of {number}")
    axes.xaxis.set_label_position("top")
    axes.set_ylabel("true")


def _draw_accuracy(axes: Axes, matrix: np.ndarray, classes: list[str]) -> None:
    of_class = matrix.sum(1)
    accuracy = 100 * np.diag(matrix) / np.maximum(of_class, 1)
    axes.set_title("Accuracy by class (%)", loc="left")
    if len(classes) <= 60:
        bars = axes.barh(range(len(classes)), accuracy, color=COLOURS[0])
        axes.bar_label(bars, [f"{value:.1f}" if count else "no images"
                              for value, count in zip(accuracy, of_class)], fontsize=7, padding=2)
        axes.set_yticks(range(len(classes)), [shorten(name, _LABEL) for name in classes])
        axes.invert_yaxis()
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 20))
        axes.grid(axis="y", visible=False)
    else:
        axes.hist(accuracy, bins=np.arange(0, 101, 5), color=COLOURS[0])
        axes.set_xlabel("accuracy (%)")
        axes.set_ylabel("classes")
