"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle
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
    refuse_below_one,
    shorten,
    styled,
    text_width,
    told_names,
    whole_numbers,
    wrap,
)

# More classes than these are numbered on the axes.
_NAMED = 30
# So many numbered classes a picture has room to name.
_LEGEND = 400
# There is room for the counts of so many classes, and to name so many groups of them.
_COUNTED, _GROUPS = 120, 8
# Groups are of classes of which more than this is mistaken for each other, one way and the other.
_MISTAKEN = 0.05
# A name has so many inches beside the matrix.
_LABEL = 1.65


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
def confusion(predictions: Predictions, pairs: int = 10,
              order: Literal["auto", "data", "similar"] = "auto",
              cells: Literal["auto", "counts", "none"] = "auto") -> Picture:
    """The confusion matrix with counts and rates, accuracy by class, the most confused pairs.

    More than 30 classes are numbered on the axes, those side by side that are taken for each other;
    a legend has their names and accuracies.

    Args:
        pairs: how many of them to list.
        order: of the classes: the data set's, or by which are taken for each other; "auto" is the
            data set's for up to 30 classes.
        cells: whether counts stand in the cells; "auto" has them for up to 30 classes, "counts" for
            up to 120.
    """
    refuse_below_one(pairs=pairs)
    matrix = confusion_matrix(predictions)
    number, names = len(matrix), drawn_names(predictions.classes)
    is_named = number <= _NAMED
    if cells == "counts" and number > _COUNTED:
        raise ValueError(f"there is no room for the counts of {number} classes, of {_COUNTED} at "
                         "most")
    places, groups = np.arange(number), list[tuple[list[int], int]]()
    if order == "similar" or (order == "auto" and not is_named):
        places, groups = similar_order(matrix)
    whole = [escape_controls(predictions.classes[place]) for place in places]
    drawn = dict(zip(predictions.classes, names))
    matrix, names = matrix[np.ix_(places, places)], [names[place] for place in places]
    labels = [shorten(name, _LABEL, 8) for name in names] if is_named else []
    has_counts = cells == "counts" or (cells == "auto" and is_named)
    cell = 0.52 if number <= 12 else 0.34 if is_named else (
        0.2 if has_counts else max(0.01, 6 / number))
    side, widest = cell * number, max([text_width(label, 8) for label in labels], default=0.25)
    # Labels on top are slanted by 45°, and reach so far to the right and up.
    reach = 0.73 * widest
    left, top, x = 0.5 + widest, 0.95 + reach, 0.5 + widest + side + max(0.6, reach + 0.2)
    bar_left, bars = 0.3 + widest, min(side, max(0.19 * number, 1.2)) if is_named else 2.5
    listed = confused_pairs(predictions, pairs)
    below = 1.0 + bars + (0.5 if is_named else 0.75)
    width = x + bar_left + 3.4
    room = width - x - 0.2
    together = [line for group, mistakes in groups[:_GROUPS] for line in wrap(
        f"{', '.join(shorten(names[place], room / 2, 8) for place in group)}: "
        f"{plural(mistakes, 'mistake')}", room, 8)]
    height = max(top + side + 0.65, below + 0.3 + 0.17 * len(listed)
                 + (0.35 + 0.15 * len(together) if together else 0))
    columns = int((width - 0.2) / 1.85)
    has_legend = _NAMED < number <= _LEGEND
    figure = Picture(width, height + has_legend * (0.5 + 0.125 * -(-number // columns)))
    note, numbered = told_names(predictions.classes)
    most = "No image is taken for another class."
    if listed:
        true, predicted, images, part = listed[0]
        all_wrong = len(predictions.true) - predictions.correct
        most = (f"{drawn[true]} is taken for {drawn[predicted]} most often: {100 * part:.1f} % of "
                f"its images, {100 * images / all_wrong:.1f} % of all mistakes.")
    figure.headline("Confusion matrix", "\n".join(wrap(
        f"{predictions.correct:,} of {plural(len(predictions.true), 'test image')} "
        f"right ({100 * predictions.accuracy:.2f} %), {predictions.place}. {most}{note}",
        width - 0.2)))
    square, beside = figure.panel(left, top, side, side), figure.panel(x + bar_left, 1, 3, bars)
    below_it = figure.panel(left, top + side + 0.12, min(side, 2.4), 0.09)
    _draw_matrix(square, below_it, matrix, labels, has_counts)
    for group, _ in groups:
        corner = group[0] - 0.5
        square.add_patch(Rectangle((corner, corner), len(group), len(group), fill=False,
                                   edgecolor=COLOURS[1], linewidth=min(0.8, 20 * cell)))
    _draw_accuracy(beside, matrix, labels)
    if has_legend:
        _draw_legend(figure, height + 0.25, columns, names, _accuracies(matrix))
    room = (width - x - 1.4) / 2
    by_name = dict(zip(predictions.classes, (
        shorten(name, room, 8) for name in drawn_names(predictions.classes))))
    pairs_drawn, pairs_whole = ([
        f"{words[true]} → {words[predicted]}: {images} ({100 * part:.1f} %)"
        for true, predicted, images, part in listed] or ["none: every image is right"]
        for words in (by_name, {name: name for name in by_name}))
    figure.words(x, below, "Most confused: true → predicted (part of the true class)", 9)
    for row, line in enumerate(pairs_drawn):
        figure.words(x, below + 0.22 + 0.17 * row, line, 8)
    if together:
        figure.words(x, below + 0.4 + 0.17 * len(pairs_drawn),
                     "Classes that are taken for each other (framed)", 9)
    for row, line in enumerate(together):
        figure.words(x, below + 0.62 + 0.17 * len(pairs_drawn) + 0.15 * row, line, 8)
    by_number = in_columns(enumerate(whole), ">5")
    figure.table = "\n".join([
        predictions.table(), "", "most confused, true → predicted:",
        *(f"  {line}" for line in pairs_whole),
        *(["", "classes by number in the picture:", *by_number] if not is_named else [])])
    figure.table += numbered
    figure.csv = as_csv(("true \\ predicted", *whole), [(name, *map(int, row))
                                                        for name, row in zip(whole, matrix)])
    return figure


def similar_order(matrix: np.ndarray) -> tuple[np.ndarray, list[tuple[list[int], int]]]:
    """Return an order of the classes that puts those side by side which are taken for each other.

    Hierarchical clustering of the mutual rates of mistakes by average linkage, and the order of
    leaves that keeps neighbours closest (Bar-Joseph et al., 2001), by SciPy.

    Args:
        matrix: counts (C, C).

    Returns:
        The classes in that order, and groups of 2 to 12 of them, as places in it, each with its
        mistakes among each other: most first.
    """
    from scipy.cluster.hierarchy import fcluster, leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    if len(matrix) < 3:
        return np.arange(len(matrix)), []
    mistakes = matrix * (1 - np.eye(len(matrix)))
    rates = mistakes / np.maximum(matrix.sum(1, keepdims=True), 1)
    alike = rates + rates.T
    distances = squareform(alike.max() - alike, checks=False)
    tree = optimal_leaf_ordering(linkage(distances, "average"), distances)
    order = leaves_list(tree)
    # Of two classes of a group, so large a part is mistaken for each other on average.
    least = max(_MISTAKEN, 3 * alike.mean())
    groups: list[tuple[list[int], int]] = []
    if alike.max() <= least:
        return order, groups
    belongs = fcluster(tree, alike.max() - least, "distance")[order]
    for label in dict.fromkeys(belongs.tolist()):
        group = np.flatnonzero(belongs == label)
        among = int(mistakes[np.ix_(order[group], order[group])].sum())
        if 2 <= len(group) <= 12 and among:
            groups.append((group.tolist(), among))
    return order, sorted(groups, key=lambda found: -found[1])


def _accuracies(matrix: np.ndarray) -> np.ndarray:
    """Return the accuracy of each class in percent; NaN for one without images."""
    of_class = matrix.sum(1)
    return np.where(of_class, 100 * np.diag(matrix) / np.maximum(of_class, 1), np.nan)


def _draw_matrix(axes: Axes, scale: Axes, matrix: np.ndarray, labels: list[str],
                 has_counts: bool) -> None:
    """Draw rates as colours, counts in words; without labels rows and columns are numbered.

    Args:
        scale: where it is drawn what the colours mean.
    """
    rates = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    number = len(matrix)
    # Where the numbers are not in the cells, a few per cent are to be seen all the same.
    image = axes.imshow(rates, cmap="Blues", norm=PowerNorm(1 if labels else 0.5, 0, 1),
                        interpolation="nearest")
    bar = scale.figure.colorbar(image, cax=scale, orientation="horizontal",
                                ticks=[0, 0.5, 1] if labels else [0, 0.1, 0.25, 0.5, 1],
                                format=PercentFormatter(1, 0, " %"))
    bar.set_label("part of the true class", fontsize=8)
    bar.outline.set_visible(False)
    axes.spines[:].set_visible(not labels)
    if labels:
        axes.grid(False)
        axes.set_xticks(range(number), labels, rotation=45, ha="left", rotation_mode="anchor")
        axes.set_yticks(range(number), labels)
    else:
        step = next(step for step in (5, 10, 20, 50, 100, number) if number <= 20 * step)
        axes.set_xticks(range(0, number, step))
        axes.set_yticks(range(0, number, step))
        # Lines over the matrix lead from a cell to its numbers.
        axes.set_axisbelow(False)
        axes.grid(color=FAINT, alpha=0.3, linewidth=0.3)
    # A class that is never right is no gap.
    for row, column in np.argwhere((matrix + np.eye(number)) * has_counts).tolist():
        count, rate = matrix[row, column], rates[row, column]
        share = f"\n{100 * rate:.1f} %" if number <= 12 else ""
        axes.text(column, row, f"{count}{share}", ha="center", va="center",
                  fontsize=6.5 if labels else 4.5, linespacing=1.1,
                  color="white" if rate > (0.5 if labels else 0.25) else "black")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xlabel("predicted" if labels else "predicted, number in the picture")
    axes.xaxis.set_label_position("top")
    axes.set_ylabel("true" if labels else "true, number in the picture")


def _draw_accuracy(axes: Axes, matrix: np.ndarray, labels: list[str]) -> None:
    """Draw a bar for each label, or, without labels, how many classes are how accurate."""
    accuracy = _accuracies(matrix)
    axes.set_title("Accuracy by class (%)", loc="left")
    if labels:
        bars = axes.barh(range(len(labels)), np.nan_to_num(accuracy), color=COLOURS[0])
        axes.bar_label(bars, ["no images" if np.isnan(value) else f"{value:.1f}"
                              for value in accuracy], fontsize=7, padding=2)
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 20))
        axes.grid(axis="y", visible=False)
    else:
        axes.hist(accuracy[~np.isnan(accuracy)], bins=range(0, 101, 5), color=COLOURS[0])
        axes.set_xlabel("accuracy (%)")
        axes.set_ylabel("classes")
        axes.yaxis.set_major_locator(whole_numbers())


def _draw_legend(figure: Picture, top: float, columns: int, names: Sequence[str],
                 accuracy: np.ndarray) -> None:
    """Name the numbered classes, each with its accuracy, in columns from top to bottom."""
    figure.words(0.1, top, "Classes by number, each with its accuracy (%)", 9)
    lines, width = -(-len(names) // columns), (figure.get_size_inches()[0] - 0.2) / columns
    for number, (name, value) in enumerate(zip(names, accuracy)):
        column, line = divmod(number, lines)
        x, y = 0.1 + width * column, top + 0.22 + 0.125 * line
        figure.words(x + 0.22, y, str(number), 6.5, ha="right", color=FAINT)
        figure.words(x + 0.27, y, shorten(name, width - 0.75, 6.5), 6.5)
        figure.words(x + width - 0.15, y, "–" if np.isnan(value) else f"{value:.1f}", 6.5,
                     ha="right")
