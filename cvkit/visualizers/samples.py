"""What the model receives: training images after the whole pipeline."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from cvkit.data import ImageData, Loaders
from cvkit.registry import VISUALIZERS
from cvkit.system.text import in_columns, plural
from cvkit.visualizers.drawing import (
    Picture,
    aspect_of,
    drawn_names,
    percent,
    refuse_below_one,
    sheet,
    shorten,
    show_image,
    styled,
    text_width,
    told_names,
)


@VISUALIZERS.register()
@styled
def samples(loaders: Loaders, data: ImageData, count: int = 20) -> Picture:
    """The first training images of the first epoch, exactly as the model receives them.

    After augmentation and normalisation, which is undone to show them.

    Args:
        count: how many, at most a batch.
    """
    refuse_below_one(count=count)
    batch = loaders.train.first_batch()
    images = loaders.train.denormalise(batch.images[:count])
    columns = _columns(len(images))
    # Over a mixed image there are two lines.
    is_mixed = batch.targets.ndim == 2
    size, names = max(1.15 if is_mixed else 0.9, 4.0 / columns), drawn_names(data.classes)
    note, numbered = told_names(data.classes)
    figure, places = sheet(
        len(images), columns, "What the model receives",
        f"The first {plural(len(images), 'image')} of the first training batch of "
        f"{len(batch.labels)}, after the whole pipeline.{note}", size=size,
        above=0.32 if is_mixed else 0.2, aspect=aspect_of(images))
    for axis, image, target in zip(places, images, batch.targets):
        show_image(axis, image, "\n".join(_words(target, names, size)))
    rows = [(number, ", ".join(_words(target, data.classes, math.inf)))
            for number, target in enumerate(batch.targets[:count], 1)]
    figure.table = "\n".join(in_columns(rows, ">4")) + numbered
    return figure


def _columns(images: int) -> int:
    """Return how many images stand in a row: of many up to 10, of few 5."""
    return min(10, max(5, -(-images // 4)), images)


def _words(target: Tensor, classes: Sequence[str], inches: float) -> list[str]:
    """Return the class of an image, or of a mixed one the classes with their shares."""
    if target.ndim == 0:
        return [shorten(classes[int(target)], inches)]
    shares = sorted(((share, label) for label, share in enumerate(target.tolist()) if share > 0),
                    reverse=True)
    ends = [f" {percent(share)}" if len(shares) > 1 else "" for share, _ in shares]
    return [f"{shorten(classes[label], inches - text_width(end))}{end}"
            for (_, label), end in zip(shares, ends)]


@VISUALIZERS.register()
@styled
def augmentations(loaders: Loaders, data: ImageData, count: int = 19, image: int = 0,
                  seed: int = 0) -> Picture:
    """One training image through the pipeline many times; the original comes first.

    Args:
        count: passes through the pipeline.
        image: which one, by its place in the training split.
        seed: of the random numbers.
    """
    refuse_below_one(count=count)
    split, pipeline = loaders.train.images, loaders.train.pipeline
    if not 0 <= image < len(split):
        raise ValueError(f"image is 0 to {len(split) - 1}, not {image}")
    original = split.image(image)
    images = [original]
    for number in range(count):
        pipeline.seed(seed, number)
        images.append(pipeline(original))
    columns = _columns(len(images))
    name = drawn_names(data.classes)[split.labels[image]]
    note, numbered = told_names(data.classes)
    alone = ", before it is mixed with others" if pipeline.mixing else ""
    figure, places = sheet(
        len(images), columns, "One image, many times through the pipeline",
        f"Training image {image}, {name}: the original, then {count} passes{alone}.{note}",
        size=max(0.9, 4.0 / columns), above=0.2, aspect=aspect_of(images))
    for number, (axis, item) in enumerate(zip(places, images)):
        show_image(axis, item, str(number) if number else "original")
    figure.table = numbered.strip()
    return figure
