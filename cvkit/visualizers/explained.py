"""A picture of where a model looked in one image, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cvkit.errors import ConfigError
from cvkit.evaluation.predictor import Picture as Given
from cvkit.evaluation.predictor import Prediction, Predictor
from cvkit.models.feature_maps import choose_layers
from cvkit.system.text import suggest
from cvkit.visualizers.cam import Colormap, grey, map_page, overlay, scaled_together, show_map
from cvkit.visualizers.cam_maps import CLASS_FREE, Method, cam_maps
from cvkit.visualizers.drawing import (
    Picture,
    aspect_of,
    drawn_names,
    percent,
    shorten,
    show_image,
    styled,
)

_SIZE = 1.6


@dataclass(frozen=True)
class Explanation:
    """Where a model sees evidence for classes in one image.

    Attributes:
        prediction: of the image.
        shown: the image as the model receives it, uint8 (H, W, C).
        labels: the classes' numbers.
        layer: whose map it is.
        maps: float32 (len(labels), h, w), 0 or more, on one scale.
    """

    prediction: Prediction
    shown: np.ndarray
    labels: list[int]
    layer: str
    maps: np.ndarray


def explain(predictor: Predictor, image: Given, classes: Sequence[str] | None = None,
            layer: str = "auto", method: Method = "GradCAM",
            prediction: Prediction | None = None) -> Explanation:
    """Return where the model sees evidence for classes; arguments and errors as of `explained`."""
    prediction = prediction or next(predictor.stream([image]))
    classes = [name for name, _ in prediction.top(2)] if classes is None else list(classes)
    for name in classes:
        if name not in predictor.classes:
            raise ConfigError(f"no class {name}", hint=suggest(name, predictor.classes))
    labels = [predictor.classes.index(name) for name in classes]
    received = predictor.received([image])
    model, normaliser = predictor.members[0].model, predictor.members[0].normaliser
    place, = choose_layers(model, received, layer)
    maps = cam_maps(model, received, [np.array([label]) for label in labels], [place],
                    [method])[place, method][:, 0]
    return Explanation(prediction, normaliser.denormalise(received)[0], labels, place, maps)


@styled
def explained(predictor: Predictor, image: Given, classes: Sequence[str] | None = None,
              layer: str = "auto", method: Method = "GradCAM",
              colormap: Colormap = "turbo", prediction: Prediction | None = None) -> Picture:
    """Draw an image and, on one scale for all classes, where the model sees evidence for each.

    Args:
        predictor: of one model.
        image: as a predictor takes it; it is shown as the model receives it.
        classes: names; by default the two most probable ones.
        layer, method, colormap: as of the visualizer `cam`, of one layer.
        prediction: of the image, if it is known.

    Raises:
        ConfigError: no such class, or no such layer, or its map is smaller than 5×5.
        DataError: the image cannot be read.
    """
    found = explain(predictor, image, classes, layer, method, prediction)
    prediction, shown, (height, width) = found.prediction, found.shown, found.maps.shape[1:]
    names = drawn_names(predictor.classes)

    def draw(figure: Picture, axes: np.ndarray, number: int) -> None:
        first, *others = axes[0]
        top = names[predictor.classes.index(prediction.label)]
        show_image(first, shown, f"{shorten(top, _SIZE)}\n({percent(prediction.probability)})")
        for axis, values, heat, label in zip(
                others, found.maps, scaled_together(found.maps, shown.shape[:2]), found.labels):
            what = "of any class" if method in CLASS_FREE else f"for {names[label]}"
            show_map(axis, values, overlay(shown, heat, colormap), grey(shown),
                     f"{shorten(what, _SIZE)}\n({percent(prediction.probabilities[label])})")

    return map_page(
        draw, range(1), "Where the model looked",
        f"{method} at {found.layer} ({height}×{width} pixels). The image is as the model receives "
        "it.", "evidence for the class; all maps share one scale", "0", colormap, rows=1,
        columns=1 + len(found.labels), size=_SIZE, aspect=aspect_of(shown[None]), above=0.42)
