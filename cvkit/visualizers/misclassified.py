"""The gallery of misclassified test images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from cvkit.data import ImageData, ImageSet
from cvkit.errors import ConfigError
from cvkit.registry import VISUALIZERS
from cvkit.runs.predictions import Predictions
from cvkit.system.text import escape_controls, in_columns, plural, suggest
from cvkit.visualizers.drawing import (
    WRONG,
    Picture,
    arrow,
    aspect_of,
    drawn_names,
    message,
    percent,
    positions_of,
    refuse_below_one,
    sheet,
    show_image,
    styled,
    told_names,
)

Order = Literal["confidence", "index", "random"]
# Without quotes YAML takes a class 1.0 for a number.
ClassName = str | int | float | None


@VISUALIZERS.register()
@styled
def misclassified(predictions: Predictions, data: ImageData, count: int = 10,
                  order: Order = "confidence", true_class: ClassName = None,
                  predicted_class: ClassName = None, seed: int = 0) -> Picture:
    """Test images that the model got wrong, as the data set has them.

    Args:
        count: how many.
        order: "confidence" (the most confident mistakes first), "index" (the data set's order)
            or "random", which depends on `seed`.
        true_class, predicted_class: only images of this class; only those taken for that one.
    """
    rows, caption = choose_errors(predictions, count, order, true_class, predicted_class, seed)
    if not len(rows):
        return message(caption)
    return gallery(data.test, predictions, rows, "Misclassified test images",
                   f"{caption}. Over each: true → predicted (how sure the model was).")


def gallery(split: ImageSet, predictions: Predictions, rows: np.ndarray, headline: str,
            caption: str, notes: Sequence[str] = ()) -> Picture:
    """Draw these rows of the predictions: true → predicted, and how sure the model was.

    Its table says which image of the data set each is: the file, or the number in the split.

    Args:
        split: whose images the predictions are of.
        notes: what to say of each image instead of how sure the model was.
    """
    images = [split.image(position) for position in positions_of(split, predictions, rows)]
    notes = notes or [_sureness(predictions, row) for row in rows]
    columns = min(5, len(rows))
    size = max(1.25, 4.0 / columns)
    names = drawn_names(predictions.classes)
    titles = [f"{arrow(names[predictions.true[row]], names[predictions.predicted[row]], size)}\n"
              f"({note})" for row, note in zip(rows, notes)]
    is_wrong = predictions.true[rows] != predictions.predicted[rows]
    lines = max(title.count("\n") + 1 for title in titles)
    aspects = {image.shape[0] / image.shape[1] for image in images}
    figure, places = sheet(
        len(rows), columns, headline, f"{caption}{told_names(predictions.classes)[0]}", size=size,
        above=0.1 + 0.125 * lines, aspect=aspect_of(images) if len(aspects) == 1 else 1)
    for axis, image, title, wrong in zip(places, images, titles, is_wrong):
        show_image(axis, image, title, WRONG if wrong else "black")
    figure.table = errors_table(split, predictions, rows, notes)
    return figure


def errors_table(split: ImageSet, predictions: Predictions, rows: np.ndarray,
                 notes: Sequence[str] = ()) -> str:
    """Return as text, with whole names, which image each of these rows of the predictions is."""
    names = [escape_controls(name) for name in predictions.classes]
    notes = notes or [_sureness(predictions, row) for row in rows]
    lines = [(f"({note})", f"{names[predictions.true[row]]} → "
              f"{names[predictions.predicted[row]]}  {escape_controls(split.name(position))}")
             for row, position, note in zip(rows, positions_of(split, predictions, rows), notes)]
    return "\n".join(in_columns(lines, ">8")) + told_names(predictions.classes)[1]


def _sureness(predictions: Predictions, row: int) -> str:
    return percent(predictions.probabilities[row].max())


def choose_errors(predictions: Predictions, count: int, order: Order, true_class: ClassName,
                  predicted_class: ClassName, seed: int) -> tuple[np.ndarray, str]:
    """Return what `select_errors` does, and in words what that is, of how many.

    The words say so if there are fewer than asked for, or none.
    """
    rows = select_errors(predictions, count, order, true_class, predicted_class, seed)
    total, wrong = len(predictions.true), len(predictions.true) - predictions.correct
    of = "" if true_class is None else f" of class {true_class}"
    of += "" if predicted_class is None else f" taken for {predicted_class}"
    if not len(rows):
        return rows, (f"No test image{of} was misclassified; "
                      f"{predictions.correct:,} of {total:,} are right")
    first = {"confidence": "the most confident first", "index": "in the data set's order",
             "random": "drawn at random"}[order]
    images = f"{plural(len(rows), 'misclassified test image')}{of}, {first}"
    in_all = f"({wrong:,} of {total:,} are wrong in all)"
    if len(rows) < count:
        return rows, f"All {images}; {count} were asked for {in_all}"
    return rows, f"{images} {in_all}"


def number_of(name: str | float, classes: Sequence[str]) -> int:
    """Return the number of a class by its name, which may look like a number.

    Raises:
        ConfigError: there is none of that name.
    """
    if str(name) in classes:
        return list(classes).index(str(name))
    # 1.50 and 1.5 are one number, but not one name.
    alike = [each for each in classes if not isinstance(name, str) and _is_number(each, name)]
    hint = f'Put it in quotes, as it is written: "{alike[0]}".' if alike else suggest(name, classes)
    raise ConfigError(f"no class named {str(name)!r}", hint=hint)


def _is_number(text: str, number: float) -> bool:
    try:
        return float(text) == number
    except ValueError:
        return False


def select_errors(predictions: Predictions, count: int, order: Order, true_class: ClassName,
                  predicted_class: ClassName, seed: int) -> np.ndarray:
    """Return the rows of the predictions to show: the same for the same arguments, everywhere.

    Raises:
        ConfigError: no such class; ValueError: a count below 1.
    """
    refuse_below_one(count=count)
    is_wanted = predictions.true != predictions.predicted
    for name, labels in ((true_class, predictions.true),
                         (predicted_class, predictions.predicted)):
        if name is not None:
            is_wanted &= labels == number_of(name, predictions.classes)
    rows = np.flatnonzero(is_wanted)
    if order == "index":
        rows = rows[np.argsort(predictions.index[rows], kind="stable")]
    elif order == "random":
        rows = np.random.default_rng(seed).permutation(rows)
    else:
        confidence = predictions.probabilities[rows].max(1)
        rows = rows[np.lexsort((predictions.index[rows], -confidence))]
    return rows[:count]
