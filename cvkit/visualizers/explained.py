"""A picture of where a model looked in one image, class by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cvkit.errors import ConfigError
from cvkit.evaluation.predictor import Picture as Given
from cvkit.evaluation.predictor import Predictor
from cvkit.models.feature_maps import choose_layers
from cvkit.system.text import suggest
from cvkit.visualizers.cam import Colormap, grey, map_page, overlay, scaled_together, show_map
from cvkit.visualizers.cam_maps import CLASS_FREE, Method, cam_maps
from cvkit.visualizers.drawing import Picture, aspect_of, drawn_names, percent, show_image, styled

_SIZE = 1.6


@styled
def explained(predictor: Predictor, image: Given, classes: Sequence[str] | None = None,
              layer: str = "auto", method: Method = "GradCAM",
              colormap: Colormap = "turbo") -> Picture:
    """Draw an image and, on one scale for all classes, where the model sees evidence for each.

    Args:
        predictor: of one model.
        image: as a predictor takes it; it is shown as the model receives it.
        classes: names; by default the two most probable ones.
        layer, method, colormap: as of the visualizer `cam`, of one layer.

    Raises:
        ConfigError: no such class, or no such layer, or its map is smaller than 5×5.
        DataError: the image cannot be read.
    """
    prediction = next(predictor.stream([image]))
    classes = [name for name, _ in prediction.top(2)] if classes is None else list(classes)
    for name in classes:
        if name not in predictor.classes:
            raise ConfigError(f"no class {name}", hint=suggest(name, predictor.classes))
    labels = [predictor.classes.index(name) for name in classes]
    received = predictor.received([image])
    model, normaliser = predictor.members[0].model, predictor.members[0].normaliser
    (place, (height, width)), = choose_layers(model, received, layer).items()
    maps = cam_maps(model, received, [np.array([label]) for label in labels], [place],
                    [method])[place, method][:, 0]
    shown = normaliser.denormalise(received)[0]
    names = drawn_names(predictor.classes)

    def draw(figure: Picture, axes: np.ndarray, number: int) -> None:
        first, *others = axes[0]
        show_image(first, shown, f"{names[predictor.classes.index(prediction.label)]}\n"
                                 f"({percent(prediction.probability)})")
        for axis, values, heat, label in zip(others, maps, scaled_together(maps, shown.shape[:2]),
                                             labels):
            what = "of any class" if method in CLASS_FREE else f"for {names[label]}"
            show_map(axis, values, overlay(shown, heat, colormap), grey(shown),
                     f"{what}\n({percent(prediction.probabilities[label])})")

    return map_page(
        draw, range(1), "Where the model looked",
        f"{method} at {place} ({height}×{width} pixels). The image is as the model receives it.",
        "evidence for the class; all maps share one scale", "0", colormap, rows=1,
        columns=1 + len(labels), size=_SIZE, aspect=aspect_of(shown[None]), above=0.42)
