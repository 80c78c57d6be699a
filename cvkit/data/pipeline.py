"""Transforms in order, built from a config and tried on images of the data set."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Sequence
from typing import Any

import albumentations as A
import numpy as np
import torch

from cvkit.data.images import ImageData
from cvkit.data.mixing import BatchTransform
from cvkit.data.splits import evenly
from cvkit.data.transforms import Normalize, height_by_width, is_fixed, refuse_fill
from cvkit.errors import ConfigError, DataError, UserError, located
from cvkit.registry import NAME, TRANSFORMS
from cvkit.system.text import plural


class _Function(A.ImageOnlyTransform):
    """Any function of an image as a transform that is always applied."""

    def __init__(self, function: Any):
        super().__init__(p=1.0)
        self.function, self.batched = function, getattr(function, "batched", None)

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        # It gets a copy, as it may work in place, and the data set's images stay as they are.
        image = self.function(img.copy())
        if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
            what = (f"an array of {plural(image.ndim, 'dimension')}"
                    if isinstance(image, np.ndarray) else type(image).__name__)
            raise DataError(f"transform {transform_name(self)} returned {what}, not an image "
                            "(H, W, C)", hint="Is a return missing?")
        return image


class Pipeline:
    """Transforms in order, `pipeline(image)`, with random numbers of its own.

    Those at the beginning that give the same every time (`prepare`) can be applied once and for
    all; the rest (`augment`) is drawn anew in each epoch.

    Args:
        transforms: albumentations transforms.
        mixing: what whole batches go through after that, see `cvkit.data.mixing.mix`.
    """

    def __init__(self, transforms: Sequence[Any], mixing: Sequence[BatchTransform] = ()):
        self.transforms, self.mixing = list(transforms), list(mixing)
        self.fixed = list(itertools.takewhile(is_fixed, self.transforms))
        self.random = self.transforms[len(self.fixed):]
        self._fixed = A.Compose(self.fixed) if self.fixed else None
        self._random = A.Compose(self.random) if self.random else None
        self._by_image = _going_by_epochs(self.random)
        self._key: tuple[int, ...] = (0, 0)

    def seed(self, *key: int) -> None:
        """Make what follows depend on `key` alone: (SEED, epoch, batch)."""
        self._key = key
        if self._random is not None:
            sequence = np.random.SeedSequence(key)
            self._random.set_random_state(np.random.default_rng(sequence),
                                          random.Random(int(sequence.generate_state(1)[0])))

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return the image after the fixed transforms at the beginning; uint8 (H, W, C) both."""
        return _apply(self._fixed, image)

    def augment(self, image: np.ndarray, index: int = 0) -> np.ndarray:
        """Return a prepared image after the rest of the transforms; `index` tells which it is."""
        for part in self._by_image:
            part.drawn = part.batched.of_images(*self._key[:2], np.array([index]))
        return _apply(self._random, image)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the transformed image; uint8 (H, W, C) both."""
        return self.augment(self.prepare(image))

    @property
    def unbatched(self) -> list[str]:
        """The names of transforms that have no batched form, without the fixed ones."""
        return [transform_name(transform) for transform in self.random
                if getattr(transform, "batched", None) is None]

    def draw(self, seed: int, epoch: int, index: np.ndarray, shape: Sequence[int],
             *key: int) -> list[tuple[torch.Tensor, ...]]:
        """Return what is random about an epoch's images, for the batched form of each transform.

        Args:
            seed, epoch: which decide what is drawn, with `key`, if more is drawn for an epoch.
            index: int64 (N,), which image of the data set each one is.
            shape: (H, W, C) of the prepared images.
        """
        random, everything = np.random.default_rng([seed, epoch, 4, *key]), []
        # An image goes through all of it, since what is drawn depends on the size it has by then.
        image = torch.zeros(1, *shape, dtype=torch.uint8)
        for transform in self.random:
            form = transform.batched
            drawn = (form.of_images(seed, epoch, index) if hasattr(form, "of_images") else
                     form.draw(random, len(index), tuple(image.shape[1:3])))
            if not isinstance(drawn, tuple) or any(
                    not isinstance(values, np.ndarray) or len(values) != len(index)
                    for values in drawn):
                raise ConfigError(f"draw of {transform_name(transform)} returns no tuple of arrays "
                                  f"with a value for each of {plural(len(index), 'image')}",
                                  hint="One array makes a tuple as (values,).")
            everything.append(tuple(map(torch.from_numpy, drawn)))
            image = form.apply(image, *(values[:1] for values in everything[-1]))
        return everything

    def augment_batch(self, images: torch.Tensor,
                      drawn: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
        """Return prepared images, uint8 (N, H, W, C), after the batched forms of the rest."""
        for transform, values in zip(self.random, drawn, strict=True):
            images = transform.batched.apply(images, *values)
        return images


def _apply(compose: A.Compose | None, image: np.ndarray) -> np.ndarray:
    if compose is None:
        return image
    image = compose(image=image)["image"]
    return image if image.ndim == 3 else image[:, :, None]


def _with_parts(transforms: Sequence[Any]) -> list[Any]:
    """Return transforms and all that they are made of."""
    parts = list(transforms)
    for part in parts:
        parts.extend(getattr(part, "transforms", []))
    return parts


def transform_name(transform: Any) -> str:
    """Return the name of a transform as a config has it, not that of what wraps it."""
    inner = getattr(transform, "function", getattr(transform, "augment", transform))
    return getattr(inner, "__name__", type(inner).__name__.removeprefix("_"))


def build_pipeline(nodes: Sequence[Any], data: ImageData, is_training: bool = False,
                   where: str = "", size: Sequence[int] = (64, 64),
                   tried_on: list[np.ndarray] | None = None
                   ) -> tuple[Pipeline, Normalize | None]:
    """Build a list of transform nodes, and try each on images of the data set.

    Args:
        nodes: of the config.
        data: whose images they are tried on.
        is_training: whether transforms that mix a batch are possible.
        where: the place of the list, for messages.
        size: (height, width) to advise where images come out in different sizes.
        tried_on: images, instead of those of the data set; none, if the list was tried before.

    Returns:
        The pipeline, and the `Normalize` at the end of the list if there is one.

    Raises:
        ConfigError: a transform cannot be built, cannot take the data set's images, does not
            return uint8, follows Normalize, or mixes images or goes by the epoch where they are not
            for training.
    """
    transforms, mixing, normalize = [], [], None
    extremes = _extreme_images(data) if tried_on is None else tried_on
    for node in nodes:
        built = TRANSFORMS.build(node, data_mean=data.mean, data_std=data.std,
                                 num_classes=len(data.classes))
        with located(node, NAME):
            if isinstance(built, BatchTransform):
                mixing.append(built)
                _check_mixing(node[NAME], mixing, is_training)
            elif normalize is not None:
                converts = isinstance(built, (A.ToTensorV2, A.ToTensor3D, A.ToFloat))
                raise ConfigError(
                    f"{node[NAME]} stands after Normalize, which is always last",
                    hint="Leave it out: batches become tensors by themselves." if converts
                    else "Move it up.")
            elif isinstance(built, Normalize):
                normalize = built
            else:
                if not callable(built):
                    raise ConfigError(f"transform {node[NAME]} is {type(built).__name__}, which "
                                      "cannot be called")
                is_one = isinstance(built, (A.BasicTransform, A.BaseCompose))
                transforms.append(built if is_one else _Function(built))
                if not is_training:
                    _refuse_epochs(transforms[-1])
                extremes = _after(transforms[-1], node, extremes) if extremes else []
    shapes = sorted({image.shape for image in extremes})
    channels = sorted({shape[2] for shape in shapes})
    if len(channels) > 1:
        raise ConfigError("some images come out with {} and some with {} channels; a batch needs "
                          "one number".format(*channels), where=where,
                          hint="Set p: 1.0 of the transform that changes it.")
    if len(shapes) > 1:
        raise ConfigError(
            f"images come out in different sizes, such as {height_by_width(shapes[0])} and "
            f"{height_by_width(shapes[-1])} (height×width); a batch needs one", where=where,
            hint=RESIZE_HINT.format(*size))
    return Pipeline(transforms, mixing), normalize


def _going_by_epochs(transforms: Sequence[Any]) -> list[Any]:
    """Return those of transforms and their parts that draw by the image and the epoch."""
    return [part for part in _with_parts(transforms)
            if hasattr(getattr(part, "batched", None), "of_images")]


def _refuse_epochs(transform: Any) -> None:
    for part in _going_by_epochs([transform]):
        raise ConfigError(f"{transform_name(part)} goes by the epoch: a test has none",
                          hint="Leave it out here. As a view of TTA HorizontalFlip mirrors.")


def _check_mixing(name: str, mixing: Sequence[BatchTransform], is_training: bool) -> None:
    """Refuse the last of the transforms that mix batches where it has no place."""
    if not is_training:
        raise ConfigError(f"{name} mixes images, which is for training only",
                          hint="Leave it out here.")
    parts = sum(transform.p for transform in mixing)
    if parts > 1 + 1e-9:
        raise ConfigError(f"the parts p of all that mix batches add up to {parts:g}, and a batch "
                          "is mixed once",
                          hint=f"Set p of each, to {1 / len(mixing):.2g} for example.")


def _after(transform: Any, node: Any, images: list[np.ndarray]) -> list[np.ndarray]:
    """Return what comes out of a transform, see `_try`; refuse one that does not fit."""
    with located(node, "fill"):
        fill = getattr(getattr(transform, "batched", None), "fill", None)
        refuse_fill(node[NAME], fill, images[0].shape[2])
    try:
        results = _try(transform, images)
    except UserError:
        raise
    except Exception as error:
        # Albumentations, OpenCV and NumPy may raise anything; the user's own code keeps its
        # traceback.
        is_own = type(transform).__module__.startswith(("albumentations", "cvkit."))
        if isinstance(transform, _Function) or not is_own:
            raise
        size = "×".join(map(str, images[0].shape))
        raise ConfigError(f"{node[NAME]} fails on an image of {size}: {error}") from error
    others = {str(image.dtype) for image in results} - {"uint8"}
    if others:
        raise ConfigError(f"{node[NAME]} turns images into {others.pop()}",
                          hint="Leave it out: images stay uint8, and Normalize, which cvkit adds "
                               "at the end, makes them float.")
    return results


RESIZE_HINT = ("Put {{NAME: Resize, height: {0}, width: {1}}} first in DATA.TRAIN_TRANSFORMS and "
               "in DATA.TEST_TRANSFORMS,\n  and let a RandomCrop after it have that size.")


def _try(transform: Any, images: list[np.ndarray]) -> list[np.ndarray]:
    """Apply a transform for certain, whatever its probability, and those within it as well.

    A few images are taken through it several times, since what it draws, and which of several
    within a OneOf, decides whether it fails and how large they come out.

    Returns:
        What comes out, one image of each shape and type.
    """
    found = {}
    if transform.p < 1:
        # It may not be applied, and then images stay as they are.
        found = {(image.shape, str(image.dtype)): image for image in images}
    transform = copy.deepcopy(transform)
    for part in _with_parts([transform]):
        part.p = 1.0
    compose = A.Compose([transform])
    compose.set_random_state(np.random.default_rng(0), random.Random(0))
    for image in images * max(16 // len(images), 1):
        result = _apply(compose, image)
        found.setdefault((result.shape, str(result.dtype)), result)
    return list(found.values())


def _extreme_images(data: ImageData) -> list[np.ndarray]:
    """Return a training image; where sizes are mixed, some of different sizes from all splits."""
    if data.image_size:
        return [data.train.first()]
    by_size: dict[tuple[int, ...], np.ndarray] = {}
    for split in data.splits.values():
        for image in split.readable(evenly(range(len(split)), 64)):
            by_size.setdefault(image.shape, image)
    return list(by_size.values())
