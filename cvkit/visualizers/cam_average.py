"""Where a model looks for each class, on average over its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.axes import Axes
from torch import nn

from cvkit.data import Loaders
from cvkit.models.feature_maps import choose_layers
from cvkit.registry import VISUALIZERS
from cvkit.runs.predictions import Predictions
from cvkit.system.seeds import random_numbers_kept, seed_random_numbers
from cvkit.system.text import escape_controls, in_columns, plural
from cvkit.visualizers.cam import Colormap, grey, map_page, overlay, show_map
from cvkit.visualizers.cam_maps import CLASS_FREE, Method, cam_maps
from cvkit.visualizers.drawing import (
    FAINT,
    RIGHT,
    WRONG,
    Picture,
    as_csv,
    aspect_of,
    drawn_names,
    images_of,
    positions_of,
    refuse_below_one,
    shorten,
    show_image,
    styled,
    told_names,
)
from cvkit.visualizers.misclassified import number_of

# Of so many classes there is a row.
_ROWS = 20
# A class is spoken of if so many of its maps have evidence.
_ENOUGH = 10
# An image is so many inches wide.
_SIZE = 1.0
# So many classes are named in the caption, of those with more than this part of their maps empty.
_TOLD, _EMPTY = 3, 0.2
# The hottest tenth of the pixels tells how concentrated a map is. With no more than this in it,
# the evidence lies almost anywhere.
_HOTTEST, _CONCENTRATED = 0.1, 0.15


@dataclass(frozen=True)
class Average:
    """The mean image of some images of a class, and their mean map.

    Attributes:
        count: images that were averaged.
        empty: how many of them have a map without any evidence, which adds nothing.
        image: uint8 (H, W, C).
        map: (H, W), 0 to 1: 1 where every image has its highest evidence.
    """

    count: int
    empty: int
    image: np.ndarray
    map: np.ndarray

    def outside(self) -> float:
        """Return the part of the evidence outside of the middle half of height and width."""
        height, width = self.map.shape
        middle = self.map[height // 4:height - height // 4, width // 4:width - width // 4]
        return 1 - float(middle.sum() / self.map.sum())

    def hottest(self) -> float:
        """Return the part of the evidence in the hottest tenth of the pixels."""
        values = np.sort(self.map, axis=None)[::-1]
        return float(values[:max(1, round(_HOTTEST * values.size))].sum() / values.sum())

    def place(self) -> str:
        """Return where the map is highest, corners and edges being a quarter wide."""
        place = np.unravel_index(self.map.argmax(), self.map.shape)
        row, column = ((4 * int(at) // side + 1) // 2 for at, side in zip(place, self.map.shape))
        vertical, horizontal = ("upper", "", "lower")[row], ("left", "", "right")[column]
        if vertical and horizontal:
            return f"the {vertical} {horizontal} corner"
        return f"the {vertical or horizontal} edge" if vertical or horizontal else "the centre"


@VISUALIZERS.register()
@styled
def cam_average(predictions: Predictions, model: nn.Module, loaders: Loaders, per_class: int = 50,
                method: Method = "GradCAM", layer: str = "auto",
                classes: list[str | int | float] | None = None, seed: int = 0,
                colormap: Colormap = "turbo") -> Picture:
    """Where the model looks for each class on average, in images it gets right and in wrong ones.

    What the model always looks at, such as a mark in a corner, shows here and hardly in single
    images. The maps are of the predicted class: of the true one in images that are right, and in
    wrong ones of what the model took them for. Each map is first scaled to its own highest value,
    so that all images count alike.

    Args:
        per_class: images of a class that are averaged, right ones and wrong ones, at most so many
            of each, drawn at random.
        method, colormap: as of `cam`.
        layer: a module's name, or "auto" as of `cam`.
        classes: names of up to 20; by default those with the most errors.
        seed: of the draw.

    Raises:
        ConfigError: no such class, or no such layer, or its map is smaller than 5×5.
    """
    refuse_below_one(per_class=per_class)
    labels, chosen = _choose(predictions, classes)
    first = loaders.test.take(positions_of(loaders.test.images, predictions, [0])).images
    (name, (height, width)), = choose_layers(model, first, layer).items()
    random, is_right = np.random.default_rng(seed), predictions.true == predictions.predicted

    def average(rows: np.ndarray) -> Average | None:
        rows = np.sort(random.permutation(rows)[:per_class])
        if not len(rows):
            return None
        rows, images = images_of(loaders.test, predictions, rows)
        # A method, or a model, may draw random numbers.
        with random_numbers_kept(images.device):
            seed_random_numbers(seed)
            maps = cam_maps(model, images, [predictions.predicted[rows]], [name], [method])
        return average_of(loaders.test.denormalise(images), maps[name, method][0])

    found = [(average(np.flatnonzero(is_right & (predictions.true == label))),
              average(np.flatnonzero(~is_right & (predictions.true == label))))
             for label in labels]
    there = [one for pair in found for one in pair if one]
    highest = max([float(one.map.max()) for one in there], default=0.0) or 1.0
    names = drawn_names(predictions.classes)
    right = {names[label]: pair[0] for label, pair in zip(labels, found)}
    note, numbered = told_names(predictions.classes)
    what = "of any class" if method in CLASS_FREE else "for the predicted class"
    caption = (f"{method} at {name} ({height}×{width} pixels) {what}, each map scaled to its own "
               f"highest, then the mean over up to {plural(per_class, 'image')} of each class that "
               f"are right (green) and that are wrong (orange){chosen}. {in_words(right)}{note}")
    aspect = aspect_of([first[0].permute(1, 2, 0).cpu().numpy()])

    def draw(figure: Picture, axes: np.ndarray, number: int) -> None:
        row = axes[0]
        row[0].annotate(shorten(names[labels[number]], 4 * _SIZE + 0.3, 8.5, "bold"), (0, 1),
                        (0, 16), xycoords="axes fraction", textcoords="offset points", va="bottom",
                        fontsize=8.5, fontweight="bold")
        for place, (one, words, colour) in enumerate(zip(found[number], ("right", "wrong"),
                                                         (RIGHT, WRONG))):
            _draw_pair(row[2 * place], row[2 * place + 1], one, words, colour, highest, colormap)

    figure = map_page(
        draw, range(len(labels)), "Where the model looks, class by class", caption,
        f"mean evidence; all maps share one scale, up to {highest:.2f} of 1", "0", colormap,
        rows=1, columns=4, side_by_side=2 if len(labels) > 1 else 1, size=_SIZE, aspect=aspect,
        above=0.2, over=0.32)
    rows = [(escape_controls(predictions.classes[label]), *_cells(pair))
            for label, pair in zip(labels, found)]
    header = ("class", *(f"{of}, {what}" for of in ("right", "wrong") for what in (
        "images", "without evidence", "highest at", "outside the middle", "in the hottest tenth")))
    figure.table = "\n".join(in_columns([header, *rows])) + numbered
    figure.csv = as_csv(header, rows)
    return figure


def _choose(predictions: Predictions,
            classes: Sequence[str | int | float] | None) -> tuple[list[int], str]:
    """Return numbers of the classes to draw, and words for a caption if these are not all."""
    number = len(predictions.classes)
    if classes is None:
        wrong = np.bincount(predictions.true[predictions.true != predictions.predicted],
                            minlength=number)
        worst = np.argsort(-wrong, kind="stable")[:_ROWS]
        return sorted(worst.tolist()), (f"; the {_ROWS} of {number} classes with the most errors"
                                        if number > _ROWS else "")
    names = {str(name): name for name in classes}
    if not 1 <= len(names) <= _ROWS:
        raise ValueError(f"classes are 1 to {_ROWS}, not {len(names)}")
    return ([number_of(name, predictions.classes) for name in names.values()],
            f"; {len(names)} of {number} classes, as asked for" if len(names) < number else "")


def average_of(images: np.ndarray, maps: np.ndarray) -> Average:
    """Return the averages of uint8 images (N, H, W, C) and maps (N, h, w), each scaled by itself.

    A map is scaled from 0, so that weak evidence everywhere stays everywhere.
    """
    size = images.shape[2], images.shape[1]
    highest = maps.max((1, 2))
    large = [cv2.resize(values / top, size) for values, top in zip(maps, highest) if top > 0]
    mean = np.sum(large, axis=0) / len(maps) if large else np.zeros(images.shape[1:3])
    return Average(len(maps), len(maps) - len(large),
                   images.mean(0).round().astype(np.uint8), mean)


def in_words(averages: dict[str, Average | None]) -> str:
    """Say for which classes the evidence is highest off the centre, and which have little of it."""
    there = {name: one for name, one in averages.items() if one}
    found = {name: one for name, one in there.items() if one.map.any()}
    # A few maps lie anywhere.
    enough = {name: one for name, one in found.items() if one.count - one.empty >= _ENOUGH}
    found = enough or found
    off = sorted((name for name in found if found[name].place() != "the centre"
                  and found[name].hottest() > _CONCENTRATED),
                 key=lambda name: -found[name].hottest())
    told = "; ".join(f"for {name} at {found[name].place()}, {100 * found[name].hottest():.0f} % of "
                     "it in the hottest tenth of the pixels" for name in off[:_TOLD])
    more = f"; and for {plural(len(off) - _TOLD, 'class')} more" if len(off) > _TOLD else ""
    words = "In no image that is right is there evidence."
    if off:
        words = (f"In images that are right the evidence is highest off the centre {told}{more} "
                 f"(evenly spread, {100 * _HOTTEST:.0f} % would be).")
    elif found:
        words = ("In images that are right the evidence is concentrated off the centre for none of "
                 f"{plural(len(found), 'class')}.")
    empty = [f"{name} ({one.empty} of {one.count})" for name, one in there.items()
             if one.empty > _EMPTY * one.count]
    if empty:
        words += (f" Maps without any evidence: {', '.join(empty[:_TOLD])}"
                  f"{' and others' if len(empty) > _TOLD else ''}; another method, such as "
                  "LayerCAM, or a layer before this one may show what they lack.")
    return words


def _draw_pair(left: Axes, right: Axes, one: Average | None, words: str, colour: str,
               highest: float, colormap: str) -> None:
    """Draw a mean image and beside it the mean map over it, or that there is none."""
    if one is None:
        left.text(0.5, 0.5, f"none is {words}", ha="center", va="center", fontsize=7.5, color=FAINT,
                  transform=left.transAxes)
        return
    show_image(left, one.image, f"mean of {one.count} {words}", colour)
    show_map(right, one.map, overlay(one.image, one.map / highest, colormap), grey(one.image),
             "their evidence", colour)


def _cells(pair: tuple[Average | None, Average | None]) -> list[str]:
    """Return what a table says of a class's images that are right, and of those that are wrong."""
    cells = []
    for one in pair:
        cells += [str(one.count if one else 0), str(one.empty if one else 0)]
        cells += [one.place(), f"{one.outside():.3f}", f"{one.hottest():.3f}"] \
            if one and one.map.any() else [""] * 3
    return cells
