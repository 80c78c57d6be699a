"""Image transforms: cvkit's own, every one of albumentations by its class name, and the pipeline.

Pixels are uint8, 0–255, from the data set to the end of the pipeline; `Normalize` is applied
after it, to whole batches on the device that trains. Fill values are therefore in 0–255.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.augmentations.geometric.functional import resize
from PIL import Image

from cvkit.data import batched
from cvkit.data.images import ImageData
from cvkit.data.mixing import BatchTransform
from cvkit.errors import ConfigError, DataError, UserError, plural
from cvkit.registry import NAME, TRANSFORMS, where_in

cv2.setNumThreads(0)  # one image at a time is too little to share; worker processes do that

Fill = float | list[float] | str


@TRANSFORMS.register()
def RandomCrop(size: int | tuple[int, int], padding: int = 0, fill: Fill = 0, data_mean=None):
    """Pad all four sides, then cut out a window at a random place.

    Args:
        size: of the window, in pixels; one number or [height, width].
        padding: pixels added to each side first.
        fill: of the padding, 0–255, one number or one per channel; "mean" for the data's.
    """
    (height, width), fill = _pair(size), _fill(fill, data_mean)
    pad = [A.Pad(padding=padding, fill=fill, p=1.0)] if padding else []
    crop = A.RandomCrop(height=height, width=width, p=1.0)
    return _with_batched(A.Sequential([*pad, crop], p=1.0),
                         batched.RandomCrop((height, width), padding, fill))


@TRANSFORMS.register()
def CutOut(size: int | tuple[int, int], fill: Fill = "mean", p: float = 1.0, inside: bool = True,
           data_mean=None):
    """Cover one window at a random place (DeVries & Taylor, 2017).

    Args:
        size: of the window, in pixels; one number or [height, width]. The image has to be as
            large.
        fill: 0–255, one number or one per channel; "mean" for the data's, which is 0 after
            normalisation.
        p: probability.
        inside: keep the window within the image; false centres it on any pixel, as the paper
            does, and cuts off what lies outside, so that less is covered.
    """
    (height, width), fill = _pair(size), _fill(fill, data_mean)
    window = _Window if inside else _CentredWindow
    return _with_batched(
        window(num_holes_range=(1, 1), hole_height_range=(height, height),
               hole_width_range=(width, width), fill=fill, p=p),
        batched.CutOut((height, width), fill, p, inside))


@TRANSFORMS.register()
def HorizontalFlip(p: float = 0.5):
    """Mirror left and right with probability `p`."""
    return _with_batched(A.HorizontalFlip(p=p), batched.HorizontalFlip(p))


@TRANSFORMS.register()
def Rotate(limit: float, fill: Fill = 0, p: float = 1.0, data_mean=None):
    """Rotate about the centre by a random angle, bilinear.

    Args:
        limit: largest angle in degrees, either way.
        fill: of the corners that come free, 0–255, one number or one per channel; "mean" for
            the data's.
        p: probability.
    """
    limit, fill = abs(limit), _fill(fill, data_mean)
    return _with_batched(A.Rotate(limit=(-limit, limit), fill=fill, p=p),
                         batched.Rotate(limit, fill, p))


@TRANSFORMS.register()
def RandAugment(num_ops: int = 2, magnitude: int = 9, fill: Fill = 0, data_mean=None):
    """Apply random operations, all equally strong (Cubuk et al., 2019), as torchvision does.

    A core makes about 5,000 images of 32×32 pixels a second, a tenth of what RandomCrop and
    HorizontalFlip make.

    Args:
        num_ops: operations per image, each drawn from 14 of geometry and colour.
        magnitude: their strength, 0–30.
        fill: of the corners and sides that come free, 0–255, one number or one per channel;
            "mean" for the data's.
    """
    from torchvision.transforms import v2

    if num_ops < 0:  # which torchvision before 0.22 takes for 0
        raise ValueError(f"num_ops is 0 or more, not {num_ops}")
    if not 0 <= magnitude <= 30:  # the bins that torchvision has; -1 would be the last
        raise ValueError(f"magnitude is 0–30, not {magnitude}")
    fill = _fill(fill, data_mean)
    return _Augment(v2.RandAugment(num_ops=num_ops, magnitude=magnitude, fill=fill))


@TRANSFORMS.register()
def TrivialAugmentWide(fill: Fill = 0, data_mean=None):
    """Apply one random operation of random strength (Müller & Hutter, 2021), as torchvision does.

    Shifts reach 32 pixels whatever the size: of a small image little or nothing may be left.

    Args:
        fill: of the corners and sides that come free, 0–255, one number or one per channel;
            "mean" for the data's.
    """
    from torchvision.transforms import v2

    return _Augment(v2.TrivialAugmentWide(fill=_fill(fill, data_mean)))


@TRANSFORMS.register()
@dataclass(frozen=True)
class Normalize:
    """Subtract the mean and divide by the standard deviation. Always last, and always there.

    Args:
        mean, std: per channel, pixels scaled to 0–1; the data set's own by default. Training
            and test images get the same.
    """

    mean: list[float] | None = None
    std: list[float] | None = None
    data_mean: Any = None
    data_std: Any = None

    def constants(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation, one number per channel."""
        mean = tuple(self.data_mean if self.mean is None else self.mean)
        std = tuple(self.data_std if self.std is None else self.std)
        if len(mean) != channels or len(std) != channels:
            raise ValueError(f"mean and std need one number per channel, {channels}")
        if not all(value > 0 for value in std):
            raise ValueError(f"std must be above 0, not {std}; are all images of one colour?")
        if max(mean) > 1:
            raise ValueError(f"mean is for pixels scaled to 0–1, not {mean}; divide by 255")
        return mean, std


def _with_batched(transform: A.BasicTransform | A.BaseCompose,
                  form: batched.Batched) -> A.BasicTransform | A.BaseCompose:
    """Return a transform of single images that knows its form for whole batches."""
    transform.batched = form
    return transform


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size is 1 pixel or more, not {size}")
    return int(height), int(width)


def _fill(fill: Fill, data_mean: Sequence[float] | None) -> tuple[float, ...] | float:
    """Return a fill in pixel values; 0–1 floats, which would come out black, are refused."""
    if fill == "mean":
        if data_mean is None:
            raise ValueError('fill "mean" needs data_mean, the mean per channel in 0–1')
        fill = [round(255 * value) for value in data_mean]
    values = fill if isinstance(fill, (list, tuple)) else [fill]
    if any(isinstance(value, str) or not 0 <= value <= 255 for value in values):
        raise ValueError(f'fill is "mean" or within 0–255, not {fill!r}')
    if any(0 < value < 1 for value in values):
        raise ValueError(f"fill is in pixel values, 0–255, and {fill!r} would be nearly black; "
                         'write "mean" for the mean of the data')
    # One number is for all channels; as a tuple OpenCV would take it for the first.
    return tuple(map(float, values)) if len(values) > 1 else float(values[0])


class _Window(A.CoarseDropout):
    """Holes that lie within the image; albumentations cuts off what does not."""

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict[str, Any]:
        window = self.hole_height_range[1], self.hole_width_range[1]
        if any(side < hole for side, hole in zip(params["shape"], window)):
            raise ValueError(f"its window of {_words(window)} pixels is larger")
        return super().get_params_dependent_on_data(params, data)


class _CentredWindow(_Window):
    """A hole centred on any pixel of the image."""

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict[str, Any]:
        drawn = super().get_params_dependent_on_data(params, data)
        shape = np.array(params["shape"][:2])
        window = np.array([self.hole_height_range[1], self.hole_width_range[1]])
        start = self.random_generator.integers(0, shape) - window // 2
        corners = [start, start + window]  # each row, column; albumentations has them turned
        return drawn | {"holes": np.clip(corners, 0, shape)[:, ::-1].reshape(1, 4)}


# -- albumentations ----------------------------------------------------------------------


def _albumentations() -> dict[str, Callable]:
    found = {name: entry for name, entry in vars(A).items()
             if inspect.isclass(entry) and issubclass(entry, (A.BasicTransform, A.BaseCompose))
             and entry not in (A.BasicTransform, A.BaseCompose, A.Compose, A.DualTransform,
                               A.ImageOnlyTransform, A.Transform3D)}
    return found | {name: _antialiased(found[name]) for name in (
        "LongestMaxSize", "RandomResizedCrop", "RandomScale", "RandomSizedCrop", "Resize",
        "SmallestMaxSize")}


TRANSFORMS.add_library("albumentations", _albumentations)


def _antialiased(entry: type) -> Callable:
    """Return the constructor of a transform that averages over areas what it makes smaller.

    By default it takes single pixels out of a large image and leaves out the rest: what is fine in
    the image becomes a pattern. Other ways, and what becomes larger, are as they were.
    """

    @functools.wraps(entry)
    def build(**arguments: Any) -> A.BasicTransform:
        if {"interpolation", "area_for_downscale"} & set(arguments):
            return entry(**arguments)
        return _BY_SIDES.get(entry, entry)(area_for_downscale="image", **arguments)

    build.__doc__ = ("What becomes smaller is averaged over areas, unless an interpolation is "
                     f"given.\n\n{inspect.getdoc(entry)}")
    return build


class _Resize(A.Resize):
    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        return super().apply(_shrunk(img, (self.height, self.width)), **params)


class _CropAndResize:
    def apply(self, img: np.ndarray, crop_coords: Sequence[int], **params: Any) -> np.ndarray:
        left, top, right, bottom = crop_coords
        crop = _shrunk(img[top:bottom, left:right], self.size)
        return super().apply(crop, (0, 0, crop.shape[1], crop.shape[0]), **params)


class _RandomResizedCrop(_CropAndResize, A.RandomResizedCrop):
    pass


class _RandomSizedCrop(_CropAndResize, A.RandomSizedCrop):
    pass


# Those that can make one side smaller and the other larger, where OpenCV averages neither.
_BY_SIDES = {A.Resize: _Resize, A.RandomResizedCrop: _RandomResizedCrop,
             A.RandomSizedCrop: _RandomSizedCrop}


def _shrunk(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return the image with the sides averaged that are larger than (height, width)."""
    smaller = tuple(min(sides) for sides in zip(image.shape, size))
    return resize(image, smaller, cv2.INTER_AREA)


class _Augment(A.ImageOnlyTransform):
    """An automatic augmentation of torchvision's, with the pipeline's random numbers."""

    def __init__(self, augment: Any):
        super().__init__(p=1.0)
        self.augment = augment

    def get_params(self) -> dict[str, Any]:
        return {"seed": self.py_random.getrandbits(32)}

    def apply(self, img: np.ndarray, seed: int, **params: Any) -> np.ndarray:
        channels, fill = 1 if img.ndim == 2 else img.shape[2], self.augment.fill
        # Checked here, since the operations that do not fill would let it pass.
        if isinstance(fill, tuple) and len(fill) != channels:
            raise ConfigError(f"fill of {type(self.augment).__name__} has {len(fill)} numbers, and "
                              f"images have {plural(channels, 'channel')}")
        # Of PIL, as torchvision takes half as long again for small tensors.
        image = Image.fromarray(img if channels > 1 else img.reshape(img.shape[:2]))
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the GPU as well, which a model's dropout draws from.
            torch.default_generator.manual_seed(seed)
            return np.array(self.augment(image)).reshape(img.shape)


class _Function(A.ImageOnlyTransform):
    """Any function of an image as a transform that is always applied."""

    def __init__(self, function: Any):
        super().__init__(p=1.0)
        self.function, self.batched = function, getattr(function, "batched", None)

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        image = self.function(img.copy())  # what it does in place stays out of the data set
        if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
            what = (f"an array of {plural(image.ndim, 'dimension')}"
                    if isinstance(image, np.ndarray) else type(image).__name__)
            raise DataError(f"transform {_name(self)} returned {what}, not an image (H, W, C)",
                            hint="Is a return missing?")
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
        self.fixed = list(itertools.takewhile(_is_fixed, self.transforms))
        self.random = self.transforms[len(self.fixed):]
        self._fixed = A.Compose(self.fixed) if self.fixed else None
        self._random = A.Compose(self.random) if self.random else None

    def seed(self, *key: int) -> None:
        """Make what follows depend on `key` alone: (SEED, epoch, batch)."""
        if self._random is not None:
            sequence = np.random.SeedSequence(key)
            self._random.set_random_state(np.random.default_rng(sequence),
                                          random.Random(int(sequence.generate_state(1)[0])))

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return the image after the fixed transforms at the beginning; uint8 (H, W, C) both."""
        return _apply(self._fixed, image)

    def augment(self, image: np.ndarray) -> np.ndarray:
        """Return a prepared image after the rest of the transforms."""
        return _apply(self._random, image)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the transformed image; uint8 (H, W, C) both."""
        return self.augment(self.prepare(image))

    @property
    def unbatched(self) -> list[str]:
        """The names of transforms that have no batched form, without the fixed ones."""
        return [_name(transform) for transform in self.random
                if getattr(transform, "batched", None) is None]

    def draw(self, seed: int, epoch: int, count: int,
             shape: Sequence[int]) -> list[tuple[torch.Tensor, ...]]:
        """Return what is random about an epoch's images, for the batched form of each transform.

        Args:
            seed, epoch: which alone decide what is drawn.
            count: images of the epoch.
            shape: (H, W, C) of the prepared images.
        """
        random, everything = np.random.default_rng([seed, epoch, 4]), []
        image = torch.zeros(1, *shape, dtype=torch.uint8)  # goes along, to know its size
        for transform in self.random:
            drawn = transform.batched.draw(random, count, tuple(image.shape[1:3]))
            everything.append(tuple(map(torch.from_numpy, drawn)))
            image = transform.batched.apply(image, *(values[:1] for values in everything[-1]))
        return everything

    def augment_batch(self, images: torch.Tensor,
                      drawn: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
        """Return prepared images, uint8 (N, H, W, C), after the batched forms of the rest."""
        for transform, values in zip(self.random, drawn, strict=True):
            images = transform.batched.apply(images, *values)
        return images


# Those of albumentations that draw nothing, where they are always applied.
_FIXED = (A.CenterCrop, A.LongestMaxSize, A.Resize, A.SmallestMaxSize, A.ToRGB, _Resize)


def _is_fixed(transform: Any) -> bool:
    size = getattr(transform, "max_size", None)  # a list of sizes is drawn from
    return type(transform) in _FIXED and transform.p == 1 and not isinstance(size, (list, tuple))


def _apply(compose: A.Compose | None, image: np.ndarray) -> np.ndarray:
    if compose is None:
        return image
    image = compose(image=image)["image"]
    return image if image.ndim == 3 else image[:, :, None]


def _name(transform: Any) -> str:
    """Return the name of a transform as a config has it, not that of what wraps it."""
    inner = getattr(transform, "function", getattr(transform, "augment", transform))
    return getattr(inner, "__name__", type(inner).__name__.removeprefix("_"))


def build_pipeline(nodes: Sequence[Any], data: ImageData, is_training: bool = False,
                   where: str = "", size: Sequence[int] = (64, 64)
                   ) -> tuple[Pipeline, Normalize | None]:
    """Build a list of transform nodes, and try each on images of the data set.

    Args:
        nodes: of the config.
        data: whose images they are tried on.
        is_training: whether transforms that mix a batch are possible.
        where: the place of the list, for messages.
        size: (height, width) to advise where images come out in different sizes.

    Returns:
        The pipeline, and the `Normalize` at the end of the list if there is one.

    Raises:
        ConfigError: a transform cannot be built, cannot take the data set's images, does not
            return uint8, follows Normalize, or mixes images that are not for training.
    """
    transforms, mixing, normalize = [], [], None
    extremes = _extreme_images(data)
    for node in nodes:
        name = node[NAME]
        built = TRANSFORMS.build(node, data_mean=data.mean, data_std=data.std,
                                 num_classes=len(data.classes))
        if isinstance(built, BatchTransform):
            if not is_training:
                raise ConfigError(f"{name} mixes images, which is for training only",
                                  where=where_in(node, NAME), hint="Leave it out here.")
            mixing.append(built)
            parts = sum(transform.p for transform in mixing)
            if parts > 1 + 1e-9:
                raise ConfigError(
                    f"the parts p of all that mix batches add up to {parts:g}, and a batch is "
                    "mixed once", where=where_in(node, NAME),
                    hint=f"Set p of each, to {1 / len(mixing):.2g} for example.")
            continue
        if normalize is not None:
            converts = isinstance(built, (A.ToTensorV2, A.ToTensor3D, A.ToFloat))
            raise ConfigError(
                f"{name} stands after Normalize, which is always last", where=where_in(node, NAME),
                hint="Leave it out: batches become tensors by themselves." if converts
                else "Move it up.")
        if isinstance(built, Normalize):
            normalize = built
            continue
        if not isinstance(built, (A.BasicTransform, A.BaseCompose)):
            if not callable(built):
                raise ConfigError(f"transform {name} is {type(built).__name__}, which cannot be "
                                  "called", where=where_in(node, NAME))
            built = _Function(built)
        transforms.append(built)
        _check_fill(built, node, extremes[0].shape[2])
        try:
            extremes = _try(built, extremes)
        except UserError as error:
            error.where = error.where or where_in(node, NAME)
            raise
        except Exception as error:  # whatever albumentations, OpenCV or NumPy may raise
            is_own = type(built).__module__.startswith(("albumentations", __name__))
            if isinstance(built, _Function) or not is_own:
                raise  # a bug in the user's own code
            size = "×".join(map(str, extremes[0].shape))
            raise ConfigError(f"{name} fails on an image of {size}: {error}",
                              where=where_in(node, NAME)) from error
        others = {str(image.dtype) for image in extremes} - {"uint8"}
        if others:
            raise ConfigError(f"{name} turns images into {others.pop()}",
                              where=where_in(node, NAME),
                              hint="Leave it out: images stay uint8, and Normalize, "
                                   "which cvkit adds at the end, makes them float.")
    shapes = sorted({image.shape for image in extremes})
    if len(shapes) > 1:
        raise ConfigError(
            f"images come out in different sizes, such as {_words(shapes[0])} and "
            f"{_words(shapes[-1])} (height×width); a batch needs one", where=where,
            hint=RESIZE_HINT.format(*size))
    return Pipeline(transforms, mixing), normalize


def _check_fill(transform: Any, node: Any, channels: int) -> None:
    """Refuse what OpenCV would cut off or fill up with black."""
    fill = getattr(getattr(transform, "batched", None), "fill", None)
    if isinstance(fill, tuple) and len(fill) != channels:
        raise ConfigError(f"fill of {node[NAME]} has {len(fill)} numbers, and images have "
                          f"{plural(channels, 'channel')}", where=where_in(node, "fill"),
                          hint="One number is for all channels.")


RESIZE_HINT = ("Put {{NAME: Resize, height: {0}, width: {1}}} first in DATA.TRAIN_TRANSFORMS and "
               "in DATA.TEST_TRANSFORMS,\n  and let a RandomCrop after it have that size.")


def _words(shape: Sequence[int]) -> str:
    return f"{shape[0]}×{shape[1]}"


def _try(transform: Any, images: list[np.ndarray]) -> list[np.ndarray]:
    """Apply a transform for certain, whatever its probability, and those within it as well.

    A few images are taken through it several times, since what it draws, and which of several
    within a OneOf, decides whether it fails and how large they come out.

    Returns:
        What comes out, one image of each shape and type.
    """
    found = {}
    if transform.p < 1:  # what it is not applied to stays as it is
        found = {(image.shape, str(image.dtype)): image for image in images}
    transform = copy.deepcopy(transform)
    parts = [transform]
    while parts:
        part = parts.pop()
        part.p = 1.0
        parts.extend(getattr(part, "transforms", []))
    compose = A.Compose([transform])
    compose.set_random_state(np.random.default_rng(0), random.Random(0))
    for image in images * max(16 // len(images), 1):
        result = _apply(compose, image)
        found.setdefault((result.shape, str(result.dtype)), result)
    return list(found.values())


def _extreme_images(data: ImageData) -> list[np.ndarray]:
    """Return a training image; where sizes are mixed, some of different sizes from all splits."""
    if data.image_size:
        return [data.train.image(0)]
    by_size = {}
    for split in filter(None, (data.train, data.test, data.val)):
        for position in np.linspace(0, len(split) - 1, min(64, len(split))).astype(int):
            image = split.image(position)
            by_size.setdefault(image.shape, image)
    return list(by_size.values())
