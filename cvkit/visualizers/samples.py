"""What the model receives: training images after the whole pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cvkit.data import ImageData
from cvkit.data.loaders import Loaders
from cvkit.errors import plural
from cvkit.registry import VISUALIZERS
from cvkit.visualizers.drawing import Picture, grids, percent, shorten, show_image, styled


@VISUALIZERS.register()
@styled
def samples(loaders: Loaders, data: ImageData, count: int = 20) -> Picture:
    """The first training images of the first epoch, exactly as the model receives them.

    After augmentation and normalisation, which is undone to show them.

    Args:
        count: how many, at most a batch.
    """
    if count < 1:
        raise ValueError(f"count is 1 or more, not {count}")
    batch = loaders.train.first_batch()
    images = loaders.train.denormalise(batch.images[:count])
    columns = min(10, max(5, -(-len(images) // 4)), len(images))
    is_mixed = batch.targets.ndim == 2  # then there are two lines over each image
    figure, (axes,) = grids(
        1, -(-len(images) // columns), columns, "What the model receives",
        f"The first {plural(len(images), 'image')} of the first training batch of "
        f"{len(batch.labels)}, after the whole pipeline",
        size=max(1.15 if is_mixed else 0.9, 4.0 / columns), above=0.32 if is_mixed else 0.2,
        aspect=min(images.shape[1] / images.shape[2], 2))
    for axis, image, target in zip(axes.flat, images, batch.targets):
        show_image(axis, image, _words(target, data.classes))
    return figure


def _words(target: Tensor, classes: Sequence[str]) -> str:
    """Return the class of an image, or of a mixed one the classes with their shares."""
    if target.ndim == 0:
        return shorten(classes[int(target)], 14)
    shares = sorted(((share, label) for label, share in enumerate(target.tolist()) if share > 0),
                    reverse=True)
    if len(shares) == 1:
        return shorten(classes[shares[0][1]], 14)
    return "\n".join(f"{shorten(classes[label], 10)} {percent(share)}" for share, label in shares)


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
    if count < 1:
        raise ValueError(f"count is 1 or more, not {count}")
    split, pipeline = loaders.train.images, loaders.train.pipeline
    if not 0 <= image < len(split):
        raise ValueError(f"image is 0 to {len(split) - 1}, not {image}")
    original = split.image(image)
    images = [original]
    for number in range(count):
        pipeline.seed(seed, number)
        images.append(pipeline(original))
    columns = min(10, max(5, -(-len(images) // 4)), len(images))
    name = data.classes[split.labels[image]]
    alone = ", before it is mixed with others" if pipeline.mixing else ""
    figure, (axes,) = grids(
        1, -(-len(images) // columns), columns, "One image, many times through the pipeline",
        f"Training image {image}, {name}: the original, then {count} passes{alone}",
        size=max(0.9, 4.0 / columns), above=0.2,
        aspect=min(max(item.shape[0] / item.shape[1] for item in images), 2))
    for number, (axis, item) in enumerate(zip(axes.flat, images)):
        show_image(axis, item, str(number) if number else "original")
    return figure
