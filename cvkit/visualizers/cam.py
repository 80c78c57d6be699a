"""Pictures of where a model looked: class activation maps of misclassified images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from torch import nn

from cvkit.data import Loaders
from cvkit.models.feature_maps import SMALLEST_MAP, choose_layers
from cvkit.registry import VISUALIZERS
from cvkit.runs.predictions import Predictions
from cvkit.visualizers.cam_maps import CLASS_FREE, Method, cam_maps
from cvkit.visualizers.drawing import (
    RIGHT,
    WRONG,
    Picture,
    arrow,
    aspect_of,
    drawn_names,
    grids,
    message,
    percent,
    positions_of,
    shorten,
    show_image,
    styled,
    text_width,
    told_names,
)
from cvkit.visualizers.misclassified import (
    ClassName,
    Order,
    choose_errors,
    errors_table,
)

# These of matplotlib's run one way, from what reads as low to what reads as high.
Colormap = Literal["turbo", "inferno", "magma", "plasma", "viridis", "cividis", "hot", "afmhot",
                   "gist_heat", "copper", "bone", "gray", "jet", "rainbow", "coolwarm"]

# An image in `cam` is so many inches wide.
_SIZE = 1.2


@VISUALIZERS.register()
@styled
def cam(predictions: Predictions, model: nn.Module, loaders: Loaders, count: int = 10,
        method: Method = "GradCAM", layer: str | list[str] = "auto",
        pages: Literal["one", "each"] = "one", order: Order = "confidence",
        true_class: ClassName = None, predicted_class: ClassName = None,
        seed: int = 0, colormap: Colormap = "turbo") -> Picture | list[Picture]:
    """Where the model looked: maps for the predicted and the true class of misclassified images.

    Both maps of an image share one scale, so that they can be compared; a map without positive
    evidence is marked as empty. Images are shown as the model receives them.

    Args:
        count, order, true_class, predicted_class, seed: which images; the same as those of
            `misclassified`.
        method: of the grad-cam library.
        layer: one or several module names; "auto" for the deepest block whose map has 5×5
            pixels or more.
        pages: "one" page for all images, or one for "each", as a list.
        colormap: of matplotlib; "inferno" or "cividis" where a rainbow would mislead.

    Raises:
        ConfigError: there is no such layer, or its map is smaller than 5×5.
    """
    rows, errors = choose_errors(predictions, count, order, true_class, predicted_class, seed)
    if not len(rows):
        return message(errors)
    batch = loaders.test.take(positions_of(loaders.test.images, predictions, rows))
    sizes = choose_layers(model, batch.images[:1], layer)
    targets = [predictions.predicted[rows], predictions.true[rows]]
    maps = cam_maps(model, batch.images, targets, list(sizes), [method])
    images = loaders.test.denormalise(batch.images)
    names = drawn_names(predictions.classes)

    def draw(figure: Picture, axes: np.ndarray, number: int) -> None:
        row, image, (first, *others) = rows[number], images[number], axes[0]
        show_image(first, image, arrow(names[predictions.true[row]],
                                       names[predictions.predicted[row]], _SIZE))
        for place, name in enumerate(sizes):
            pair = maps[name, method][:, number]
            for axis, values, heat, target, colour in zip(
                    others[2 * place:], pair, scaled_together(pair, image.shape[:2]), targets,
                    (WRONG, RIGHT)):
                label = target[number]
                what = "of any class" if method in CLASS_FREE else f"for {names[label]}"
                title = (f"{shorten(what, _SIZE)}\n"
                         f"({percent(predictions.probabilities[row, label])})")
                if len(sizes) > 1:
                    title = f"{shorten(name, _SIZE)}\n{title}"
                show_map(axis, values, overlay(image, heat, colormap), grey(image), title, colour)

    is_one = len(sizes) == 1
    places = ", ".join(f"{name} ({height}×{width} pixels)" for name, (height, width)
                       in sizes.items())
    note = f", the deepest block of {SMALLEST_MAP}×{SMALLEST_MAP} or more" * (layer == "auto")
    return _pages(
        pages, draw, lambda chosen: errors_table(loaders.test.images, predictions, rows[chosen]),
        len(rows), "Where the model looked",
        f"{method} at {places}{note}, for the predicted class (orange) and the true one (green)."
        f"{_notes([method], maps)} {errors}.{told_names(predictions.classes)[0]}",
        "evidence for the class; two maps side by side share one scale", "0", colormap,
        rows=1, columns=1 + 2 * len(sizes), side_by_side=2 if is_one else 1, size=_SIZE,
        aspect=aspect_of(images), above=0.36 if is_one else 0.48)


@VISUALIZERS.register()
@styled
def cam_matrix(predictions: Predictions, model: nn.Module, loaders: Loaders, count: int = 10,
               methods: Sequence[Method] = ("GradCAM", "GradCAMPlusPlus"),
               layers: str | list[str] = "auto",
               target: Literal["predicted_class", "true_class"] = "predicted_class",
               pages: Literal["one", "each"] = "one", order: Order = "confidence",
               true_class: ClassName = None, predicted_class: ClassName = None,
               seed: int = 0, colormap: Colormap = "turbo") -> Picture | list[Picture]:
    """For each misclassified image, layers by methods: the image, heat maps, and bare masks.

    Each map is scaled by itself, from its lowest to its highest value, as the library does: the
    matrix shows where, `cam` also how much.

    Args:
        count, order, true_class, predicted_class, seed, pages, colormap: as of `cam`.
        methods: of the grad-cam library.
        layers: module names; "auto" for the model's stages with a map of 5×5 or more.
        target: the class that is explained.
    """
    rows, errors = choose_errors(predictions, count, order, true_class, predicted_class, seed)
    if not len(rows):
        return message(errors)
    batch = loaders.test.take(positions_of(loaders.test.images, predictions, rows))
    sizes = choose_layers(model, batch.images[:1], "stages" if layers == "auto" else layers)
    labels = getattr(predictions, target.removesuffix("_class"))[rows]
    maps = cam_maps(model, batch.images, [labels], list(sizes), list(methods))
    images = loaders.test.denormalise(batch.images)
    classes = drawn_names(predictions.classes)
    # The image stands once, left of the rows and of their names.
    size, names_width, aspect = 0.95, 0.42, aspect_of(images)

    def above(axis: Axes, text: str, points: float, **style: Any) -> None:
        axis.annotate(text, (0, 1), (style.pop("x", 0), points), xycoords="axes fraction",
                      textcoords=("axes fraction", "offset points"), va="bottom", **style)

    def draw(figure: Picture, axes: np.ndarray, number: int) -> None:
        image, row = images[number], rows[number]
        width, height = figure.get_size_inches()
        corner = axes[0, 0].get_position()
        alone = figure.panel(corner.x0 * width - names_width - size, (1 - corner.y1) * height,
                             size, size * aspect)
        alone.axis("off")
        show_image(alone, image)
        for axis, text in zip([alone, *axes[0]], ["image", *(f"{name} heat" for name in methods),
                                                  *(f"{name} mask" for name in methods)]):
            above(axis, shorten(text.replace("PlusPlus", "++"), size, 6.5), 2, x=0.5, ha="center",
                  fontsize=6.5)
        for line, (name, (map_height, map_width)) in zip(axes, sizes.items()):
            line[0].annotate(shorten(name, size * aspect, 7) + f"\n{map_height}×{map_width}",
                             (0, 0.5), (-4, 0), xycoords="axes fraction",
                             textcoords="offset points", rotation=90, ha="right", va="center",
                             fontsize=7, multialignment="center")
            for place, method in enumerate(methods):
                values = maps[name, method][0, number]
                heat = scaled_alone(values, image.shape[:2])
                show_map(line[place], values, overlay(image, heat, colormap), grey(image))
                show_map(line[len(methods) + place], values, heat[..., None],
                         np.full_like(grey(image), 90))
        true, predicted = classes[predictions.true[row]], classes[predictions.predicted[row]]
        sure = f"({percent(predictions.probabilities[row].max())})"
        room = (names_width + (1 + 2 * len(methods)) * size - text_width(f" →  {sure}", 8)) / 2
        above(alone, f"{shorten(true, room, 8)} → {shorten(predicted, room, 8)} {sure}", 14,
              fontsize=8, color=WRONG)

    return _pages(
        pages, draw, lambda chosen: errors_table(loaders.test.images, predictions, rows[chosen]),
        len(rows), "Where the model looked, by layer",
        f"{' and '.join(methods)} at {', '.join(sizes)}, for the {target.replace('_', ' ')}."
        f"{_notes(methods, maps)} {errors}.{told_names(predictions.classes)[0]}",
        "each map by itself: lowest to highest, however weak", "lowest", colormap,
        rows=len(sizes), columns=2 * len(methods), side_by_side=2, size=size, over=0.45,
        left=0.1 + size + names_width, aspect=aspect)


def map_page(draw: Callable[[Picture, np.ndarray, int], None], numbers: range, headline: str,
             caption: str, scale: str, lowest: str, colormap: str, **layout: Any) -> Picture:
    """Return a page with a grid for each image, and a scale of the colours.

    An image is known by its number: `draw` draws it into its grid.
    """
    figure, blocks = grids(len(numbers), headline=headline, caption=caption, footer=0.6, **layout)
    for axes, number in zip(blocks, numbers):
        draw(figure, axes, number)
    height = figure.get_size_inches()[1]
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(cmap=colormap),
                          cax=figure.panel(0.3, height - 0.54, 2.4, 0.1),
                          orientation="horizontal", ticks=[0, 1])
    bar.ax.set_xticklabels([lowest, "highest"], fontsize=7)
    bar.outline.set_visible(False)
    figure.words(0.1, height - 0.12, scale, 7.5, va="center")
    return figure


def _pages(pages: str, draw: Callable[[Picture, np.ndarray, int], None],
           table: Callable[[range], str], count: int, headline: str, caption: str, scale: str,
           lowest: str, colormap: str, **layout: Any) -> Picture | list[Picture]:
    """Return all images on one page, or a list with a page for each; `table` tells of several."""
    def page(numbers: range, caption: str) -> Picture:
        figure = map_page(draw, numbers, headline, caption, scale, lowest, colormap, **layout)
        figure.table = table(numbers)
        return figure

    if pages == "one":
        return page(range(count), caption)
    return [page(range(number, number + 1), f"Image {number + 1}: {caption}")
            for number in range(count)]


def _notes(methods: Sequence[str], maps: Mapping[Any, np.ndarray]) -> str:
    """Say of which methods the maps are the same whatever the class, and what empty maps mean."""
    found = [method for method in methods if method in CLASS_FREE]
    note = f" {' and '.join(found)} does not look at the class." if found else ""
    if any(is_empty(image) for values in maps.values() for item in values for image in item):
        note += " Empty: nothing at that layer speaks for the class."
    return note


def scaled_together(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return maps (n, h, w) at a size (height, width) on one scale: 0 to 1, the highest of all."""
    large = np.stack([cv2.resize(values.astype(np.float32), size[::-1]) for values in maps])
    return large / max(large.max(), np.finfo(np.float32).tiny)


def scaled_alone(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a map (h, w) at a size (height, width), from its lowest, 0, to its highest, 1.

    Exactly as the grad-cam library scales its maps.
    """
    from pytorch_grad_cam.utils.image import scale_cam_image

    return scale_cam_image(scale_cam_image(values[None], size[::-1]))[0]


def overlay(image: np.ndarray, heat: np.ndarray, colormap: str = "turbo") -> np.ndarray:
    """Return half image, half colour, as floats (H, W, 3) in 0–1; hot where the map is high.

    Args:
        image: uint8 (H, W, C).
        heat: (H, W), 0 to 1.
        colormap: a name of matplotlib's.
    """
    colours = matplotlib.colormaps[colormap](heat)[..., :3]
    pixels = image.astype(np.float64) / 255
    return 0.5 * colours + 0.5 * (pixels if pixels.shape[2] == 3 else pixels.repeat(3, 2))


def is_empty(values: np.ndarray) -> bool:
    """Tell whether a map says nothing: no positive evidence, or the same everywhere."""
    return not values.max() - values.min() > 1e-12


def grey(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, C) without its colours, (H, W, 1)."""
    return image.mean(2, keepdims=True).astype(np.uint8)


def show_map(axis: Axes, values: np.ndarray, drawn: np.ndarray, instead: np.ndarray,
             title: str = "", colour: str = "black") -> None:
    """Show a map as it is drawn, or, where it says nothing, another image that is marked so."""
    show_image(axis, instead if is_empty(values) else drawn, title, colour)
    if is_empty(values):
        axis.text(0.5, 0.5, "empty", ha="center", va="center", fontsize=8, color="white",
                  transform=axis.transAxes, bbox={"facecolor": "black", "alpha": 0.7,
                                                  "edgecolor": "none", "pad": 2})
