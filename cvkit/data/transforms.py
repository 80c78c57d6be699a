"""Image transforms: cvkit's own, every one of albumentations by its class name, and the pipeline.

Pixels are uint8, 0–255, from the data set to the end of the pipeline; `Normalize` is applied
after it, to whole batches on the device that trains. Fill values are therefore in 0–255.
"""

from __future__ import annotations

import functools
import inspect
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
from cvkit.errors import ConfigError
from cvkit.registry import TRANSFORMS
from cvkit.system.text import plural

# One image at a time is too little to share; worker processes do that.
cv2.setNumThreads(0)
Fill = float | list[float] | str


@TRANSFORMS.register()
def RandomCrop(size: int | tuple[int, int], padding: int = 0, fill: Fill = 0, data_mean=None):
    """Pad all four sides, then cut out a window at a random place.

    Args:
        size: of the window, in pixels; one number or [height, width].
        padding: pixels added to each side first.
        fill: of the padding, 0–255, one number or one per channel; "mean" for the data's; "reflect"
            mirrors the image at its sides, without its outermost pixels twice.
    """
    (height, width), pixel = _pair(size), _fill(fill, data_mean, may_reflect=True)
    border = ({"border_mode": cv2.BORDER_REFLECT_101} if pixel == "reflect" else {"fill": pixel})
    pad = [A.Pad(padding=padding, **border, p=1.0)] if padding else []
    crop = A.RandomCrop(height=height, width=width, p=1.0)
    return _with_batched(A.Sequential([*pad, crop], p=1.0),
                         batched.RandomCrop((height, width), padding, pixel))


@TRANSFORMS.register()
def Translate(limit: int, fill: Fill = "reflect", data_mean=None):
    """Move the image by a random number of pixels each way; its size stays.

    Args:
        limit: largest number of pixels, up, down, left and right.
        fill: of what comes free, as of RandomCrop.
    """
    if limit < 0:
        raise ValueError(f"limit is 0 or more, not {limit}")
    pixel = _fill(fill, data_mean, may_reflect=True)
    return _with_batched(_Translate((-limit, limit), (-limit, limit), pixel),
                         batched.RandomCrop(None, limit, pixel))


@TRANSFORMS.register()
def Shift(down: int = 0, right: int = 0, fill: Fill = "reflect", data_mean=None):
    """Move the image by so many pixels, always the same: a view for TTA.

    Args:
        down, right: in pixels; negative for up and left.
        fill: of what comes free, as of RandomCrop.
    """
    pixel = _fill(fill, data_mean, may_reflect=True)
    return _with_batched(_Translate((down, down), (right, right), pixel),
                         batched.Shift(down, right, pixel))


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
    (height, width), pixel = _pair(size), _fill(fill, data_mean)
    window = _Window if inside else _CentredWindow
    return _with_batched(
        window(num_holes_range=(1, 1), hole_height_range=(height, height),
               hole_width_range=(width, width), fill=pixel, p=p),
        batched.CutOut((height, width), pixel, p, inside))


@TRANSFORMS.register()
def HorizontalFlip(p: float = 0.5):
    """Mirror left and right with probability `p`."""
    return _with_batched(A.HorizontalFlip(p=p), batched.HorizontalFlip(p))


@TRANSFORMS.register()
def AlternatingFlip():
    """Mirror left and right in every other epoch (Jordan, 2024, arXiv 2404.00498).

    SEED says which half of the images begins with it. So two epochs show both sides of each image,
    where HorizontalFlip shows half of them the same twice.
    """
    return _with_batched(_AlternatingFlip(p=1.0), batched.AlternatingFlip())


@TRANSFORMS.register()
def Rotate(limit: float, fill: Fill = 0, p: float = 1.0, data_mean=None):
    """Rotate about the centre by a random angle, bilinear.

    Args:
        limit: largest angle in degrees, either way.
        fill: of the corners that come free, 0–255, one number or one per channel; "mean" for
            the data's.
        p: probability.
    """
    limit, pixel = abs(limit), _fill(fill, data_mean)
    return _with_batched(A.Rotate(limit=(-limit, limit), fill=pixel, p=p),
                         batched.Rotate(limit, pixel, p))


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
    if num_ops < 0:
        raise ValueError(f"num_ops is 0 or more, not {num_ops}")
    if not 0 <= magnitude <= 30:
        # Torchvision has so many bins; -1 would be the last.
        raise ValueError(f"magnitude is 0–30, not {magnitude}")
    from torchvision.transforms import v2

    return _Augment(v2.RandAugment(num_ops=num_ops, magnitude=magnitude,
                                   fill=_fill(fill, data_mean)))


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
                  form: batched.Batched | batched.ByImage) -> A.BasicTransform | A.BaseCompose:
    """Return a transform of single images that knows its form for whole batches."""
    transform.batched = form
    return transform


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size is 1 pixel or more, not {size}")
    return int(height), int(width)


def _fill(fill: Fill, data_mean: Sequence[float] | None,
          may_reflect: bool = False) -> batched.Fill:
    """Return a fill in pixel values; 0–1 floats, which would come out black, are refused."""
    if fill == "reflect" and may_reflect:
        return fill
    if fill == "mean":
        if data_mean is None:
            raise ValueError('fill "mean" needs data_mean, the mean per channel in 0–1')
        if max(data_mean) > 1:
            raise ValueError('fill "mean" is that of the data, for pixels scaled to 0–1, not '
                             f"{list(data_mean)}; divide DATA.DATASET.mean by 255")
        fill = [round(255 * value) for value in data_mean]
    values = fill if isinstance(fill, (list, tuple)) else [fill]
    numbers = [float(value) for value in values
               if not isinstance(value, str) and 0 <= value <= 255]
    if len(numbers) < len(values):
        words = '"mean", "reflect"' if may_reflect else '"mean"'
        raise ValueError(f"fill is {words} or within 0–255, not {fill!r}")
    if any(0 < number < 1 for number in numbers):
        raise ValueError(f"fill is in pixel values, 0–255, and {fill!r} would be nearly black; "
                         'write "mean" for the mean of the data')
    # One number is for all channels; as a tuple OpenCV would take it for the first.
    return tuple(numbers) if len(numbers) > 1 else numbers[0]


def refuse_fill(name: str, fill: object, channels: int) -> None:
    """Refuse a transform's fill that OpenCV would cut off or fill up with black."""
    if isinstance(fill, tuple) and len(fill) != channels:
        raise ConfigError(f"fill of {name} has {len(fill)} numbers, and images have "
                          f"{plural(channels, 'channel')}", hint="One number is for all channels.")


class _Translate(A.ImageOnlyTransform):
    """Moves an image by a number of pixels that lies between two, each way."""

    def __init__(self, down: tuple[int, int], right: tuple[int, int], fill: batched.Fill):
        super().__init__(p=1.0)
        self.down, self.right, self.fill = down, right, fill

    def get_params(self) -> dict[str, Any]:
        return {"down": self.py_random.randint(*self.down),
                "right": self.py_random.randint(*self.right)}

    def apply(self, img: np.ndarray, down: int, right: int, **params: Any) -> np.ndarray:
        height, width = img.shape[:2]
        by = max(map(abs, (*self.down, *self.right)))
        if self.fill == "reflect" and by >= min(height, width):
            raise ValueError(f"it cannot mirror {plural(by, 'pixel')} beyond each side")
        channels = [(0, 0)] * (img.ndim - 2)
        if self.fill == "reflect":
            padded = np.pad(img, [(by, by), (by, by), *channels], mode="reflect")
        else:
            padded = np.full((height + 2 * by, width + 2 * by, *img.shape[2:]), self.fill, np.uint8)
            padded[by:by + height, by:by + width] = img
        top, left = by - down, by - right
        return padded[top:top + height, left:left + width].copy()


class _AlternatingFlip(A.ImageOnlyTransform):
    """Mirrors the images of which the pipeline says so."""

    drawn: tuple[np.ndarray, ...] = (np.array([True]),)

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        return img[:, ::-1].copy() if self.drawn[0][0] else img


class _Window(A.CoarseDropout):
    """Holes that lie within the image; albumentations cuts off what does not."""

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict[str, Any]:
        window = self.hole_height_range[1], self.hole_width_range[1]
        if any(side < hole for side, hole in zip(params["shape"], window)):
            raise ValueError(f"its window of {height_by_width(window)} pixels is larger")
        return super().get_params_dependent_on_data(params, data)


class _CentredWindow(_Window):
    """A hole centred on any pixel of the image."""

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict[str, Any]:
        drawn = super().get_params_dependent_on_data(params, data)
        shape = np.array(params["shape"][:2])
        window = np.array([self.hole_height_range[1], self.hole_width_range[1]])
        start = self.random_generator.integers(0, shape) - window // 2
        # A corner here is row and column; albumentations wants column and row.
        corners = [start, start + window]
        return drawn | {"holes": np.clip(corners, 0, shape)[:, ::-1].reshape(1, 4)}


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


class _RandomResizedCrop(A.RandomResizedCrop):
    def apply(self, img: np.ndarray, crop_coords: Sequence[int], **params: Any) -> np.ndarray:
        return super().apply(*_shrunk_crop(img, crop_coords, self.size), **params)


class _RandomSizedCrop(A.RandomSizedCrop):
    def apply(self, img: np.ndarray, crop_coords: Sequence[int], **params: Any) -> np.ndarray:
        return super().apply(*_shrunk_crop(img, crop_coords, self.size), **params)


# These can make one side smaller and the other larger, and then OpenCV averages neither.
_BY_SIDES = {A.Resize: _Resize, A.RandomResizedCrop: _RandomResizedCrop,
             A.RandomSizedCrop: _RandomSizedCrop}


def _shrunk(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return the image with the sides averaged that are larger than (height, width)."""
    smaller = tuple(min(sides) for sides in zip(image.shape, size))
    return resize(image, smaller, cv2.INTER_AREA)


def _shrunk_crop(image: np.ndarray, corners: Sequence[int],
                 size: Sequence[int]) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Return a window of the image, averaged likewise, and the corners of the whole of it."""
    left, top, right, bottom = corners
    crop = _shrunk(image[top:bottom, left:right], size)
    return crop, (0, 0, crop.shape[1], crop.shape[0])


class _Augment(A.ImageOnlyTransform):
    """An automatic augmentation of torchvision's, with the pipeline's random numbers."""

    def __init__(self, augment: Any):
        super().__init__(p=1.0)
        self.augment = augment

    def get_params(self) -> dict[str, Any]:
        return {"seed": self.py_random.getrandbits(32)}

    def apply(self, img: np.ndarray, seed: int, **params: Any) -> np.ndarray:
        channels = 1 if img.ndim == 2 else img.shape[2]
        # Operations that do not fill would let a wrong number pass.
        refuse_fill(type(self.augment).__name__, self.augment.fill, channels)
        # Torchvision takes half as long again for small tensors as for PIL's images.
        image = Image.fromarray(img if channels > 1 else img.reshape(img.shape[:2]))
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the GPU as well, which a model's dropout draws from.
            torch.default_generator.manual_seed(seed)
            return np.array(self.augment(image)).reshape(img.shape)


# Transforms of albumentations that draw nothing, if they are always applied.
_FIXED = (A.CenterCrop, A.LongestMaxSize, A.Resize, A.SmallestMaxSize, A.ToRGB, _Resize)


def is_fixed(transform: Any) -> bool:
    # From a list of sizes one is drawn.
    size = getattr(transform, "max_size", None)
    return type(transform) in _FIXED and transform.p == 1 and not isinstance(size, (list, tuple))


def height_by_width(shape: Sequence[int]) -> str:
    return f"{shape[0]}×{shape[1]}"
