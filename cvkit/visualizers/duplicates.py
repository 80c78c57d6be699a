"""Equal and nearly equal images of a data set, within and across its splits."""

from __future__ import annotations

from collections.abc import Sequence

from cvkit.data import ImageData
from cvkit.data.near_duplicates import Pair, near_duplicates
from cvkit.registry import VISUALIZERS
from cvkit.system.text import escape_controls, in_columns
from cvkit.visualizers.dataset import compared_splits, twins_in_words
from cvkit.visualizers.drawing import (
    WRONG,
    Picture,
    as_csv,
    aspect_of,
    drawn_names,
    grids,
    image_names,
    message,
    refuse_below_one,
    shorten,
    show_image,
    styled,
    told_names,
)

# An image is so many inches wide.
_SIZE = 1.1


@VISUALIZERS.register()
@styled
def duplicates(data: ImageData, count: int = 12) -> Picture:
    """Pairs of equal or nearly equal images with their classes, those with two labels first.

    Then those in two splits, of which one is trained on; the most alike first. They are found by
    perceptual hashes and confirmed by their pixels, see `cvkit.data.near_duplicates`: another crop,
    a mirrored or a turned picture is not found. The table lists all of them.

    Args:
        count: how many pairs.
    """
    refuse_below_one(count=count)
    splits = compared_splits(data)
    pairs = near_duplicates(splits)
    if not pairs:
        return message(twins_in_words(splits, pairs))
    pairs.sort(key=lambda pair: (len({*_labels(data, pair)}) == 1,
                                 pair.split == pair.other_split, -pair.similarity))
    shown, names = pairs[:count], drawn_names(data.classes)
    images = [[data.splits[split].image(position) for split, position in pair.places]
              for pair in shown]
    some = "" if len(shown) == len(pairs) else f" Shown: {len(shown)}."
    figure, blocks = grids(
        len(shown), 1, 2, "Duplicates",
        f"{twins_in_words(splits, pairs)}{some} Over each image: its split and class; over each "
        f"pair how alike they are (1: equal).{told_names(data.classes)[0]}",
        side_by_side=4, size=_SIZE, above=0.34, over=0.2,
        aspect=aspect_of(image for two in images for image in two), left=0.12)
    for pair, two, (axes,) in zip(shown, images, blocks):
        labels = _labels(data, pair)
        for axis, image, (split, _), label in zip(axes, two, pair.places, labels):
            show_image(axis, image, f"{split}\n{shorten(names[label], _SIZE)}",
                       WRONG if labels[0] != labels[1] else "black")
        box = axes[0].get_position(original=True)
        width, height = figure.get_size_inches()
        figure.words(box.x0 * width, (1 - box.y1) * height - 0.37, _alike(pair, 3), 7.5,
                     fontweight="bold", va="center")
    rows = _rows(data, pairs)
    header = ("similarity", "split", "image", "class", "other split", "other image", "other class")
    figure.table = "\n".join(in_columns([header, *rows[:100]]))
    if len(rows) > 100:
        figure.table += f"\nand {len(rows) - 100:,} more, which stand in the .csv"
    figure.csv = as_csv(header, rows)
    return figure


def _labels(data: ImageData, pair: Pair) -> list[int]:
    return [int(data.splits[split].labels[position]) for split, position in pair.places]


def _rows(data: ImageData, pairs: Sequence[Pair]) -> list[tuple[str, ...]]:
    """Return of each pair how alike the images are, and of each image its place and its class."""
    wanted: dict[str, list[int]] = {}
    for split, position in (place for pair in pairs for place in pair.places):
        wanted.setdefault(split, []).append(position)
    names = {(split, position): name for split, places in wanted.items()
             for position, name in zip(places, image_names(data.splits[split], places))}
    return [(_alike(pair, 4), *(
        word for place, label in zip(pair.places, _labels(data, pair))
        for word in (place[0], names[place], escape_controls(data.classes[label]))))
        for pair in pairs]


def _alike(pair: Pair, digits: int) -> str:
    """Return how alike two images are; never 1 where they are not equal."""
    highest = 1 - 10.0**-digits
    return "equal" if pair.is_equal else (
        f"> {highest}" if pair.similarity > highest else f"{pair.similarity:.{digits}f}")
