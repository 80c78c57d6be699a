"""Transforms of a whole uint8 batch at once, on the device that holds it, each image its own way.

They are batched forms of entries in `cvkit.data.transforms`: the same outcomes, equally likely,
many times faster. What is random is drawn first (`draw`) and then applied (`apply`), so that an
epoch's random numbers depend on (SEED, epoch) alone, whatever the device.

Batches are uint8 (N, H, W, C), as data sets hold them. Where they can, operations run over rows
of bytes: over the three channels of a pixel they would be several times slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# "reflect" goes on with the image as a mirror would, without its outermost pixels twice.
Fill = tuple[float, ...] | float | str
# A size is (height, width).
Size = tuple[int, int]
# What is drawn are arrays with one item for each image of an epoch.
Drawn = tuple[np.ndarray, ...]


class Batched(Protocol):
    """The batched form of a transform, which the object for single images has as `batched`."""

    def draw(self, random: np.random.Generator, count: int, size: Size) -> Drawn:
        """Return what is random about `count` images of a size."""

    def apply(self, images: Tensor, *drawn: Any) -> Tensor:
        """Return the transformed batch; `drawn` is what was drawn for its images."""


class ByImage(Protocol):
    """A batched form that draws nothing: it goes by the epoch, and by what image it is."""

    def of_images(self, seed: int, epoch: int, index: np.ndarray) -> Drawn:
        """Return what `apply` is given for images of an epoch, from 0; `index` (N,) tells which."""

    def apply(self, images: Tensor, *drawn: Any) -> Tensor:
        """Return the transformed batch, as `Batched.apply`."""


@dataclass(frozen=True)
class RandomCrop:
    """Pad all four sides, then cut out a window at a random place; None has the image's size."""

    size: Size | None
    padding: int
    fill: Fill

    def draw(self, random: np.random.Generator, count: int, size: Size) -> Drawn:
        return tuple(random.integers(0, side + 2 * self.padding - window, count, endpoint=True)
                     for side, window in zip(size, self.size or size, strict=True))

    def apply(self, images: Tensor, top: Tensor, left: Tensor) -> Tensor:
        height, width = self.size or images.shape[1:3]
        images = _padded(images, self.padding, self.fill)
        count, rows, columns, channels = images.shape
        row = _range(count, images)[:, None] * rows + top[:, None] + _range(height, images)
        first = (row * columns + left[:, None]) * channels
        # A row of a window is a run of bytes. `unfold` is a view of all such runs, which overlap;
        # those wanted are copied.
        runs = images.reshape(-1).unfold(0, width * channels, 1)
        return runs.index_select(0, first.flatten()).view(count, height, width, channels)


@dataclass(frozen=True)
class Shift:
    """Move each image by as many pixels."""

    down: int
    right: int
    fill: Fill

    def draw(self, random: np.random.Generator, count: int, size: Size) -> Drawn:
        return ()

    def apply(self, images: Tensor) -> Tensor:
        height, width = images.shape[1:3]
        by = max(abs(self.down), abs(self.right))
        top, left = by - self.down, by - self.right
        padded = _padded(images, by, self.fill)
        return padded[:, top:top + height, left:left + width].contiguous()


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left and right."""

    p: float

    def draw(self, random: np.random.Generator, count: int, size: Size) -> Drawn:
        return (random.random(count) < self.p,)

    def apply(self, images: Tensor, is_mirrored: Tensor) -> Tensor:
        return _mirrored(images, is_mirrored)


@dataclass(frozen=True)
class AlternatingFlip:
    """Mirror each image left and right in every other epoch; half of them begin with it."""

    def of_images(self, seed: int, epoch: int, index: np.ndarray) -> Drawn:
        return ((_mixed(seed, index) + np.uint64(epoch)) % np.uint64(2) == 1,)

    def apply(self, images: Tensor, is_mirrored: Tensor) -> Tensor:
        return _mirrored(images, is_mirrored)


@dataclass(frozen=True)
class CutOut:
    """Cover one window at a random place, which is inside the image or centred on any pixel."""

    size: Size
    fill: Fill
    p: float
    inside: bool

    def draw(self, random: np.random.Generator, count: int, size: Size) -> Drawn:
        top, left = (random.integers(0, side - window, count, endpoint=True) if self.inside else
                     random.integers(0, side, count) - window // 2
                     for side, window in zip(size, self.size, strict=True))
        # Where nothing is covered, the window lies below the image.
        return np.where(random.random(count) < self.p, top, size[0]), left

    def apply(self, images: Tensor, top: Tensor, left: Tensor) -> Tensor:
        count, height, width, channels = images.shape
        rows = images.reshape(count, height, width * channels)
        fill = _pixel(self.fill, images).repeat(width)
        is_row = _is_within(_range(height, images), top, self.size[0])
        is_byte = _is_within(_range(width * channels, images), left * channels,
                             self.size[1] * channels)
        # Bytes of the hole are 255, others 0.
        hole = is_row[:, :, None] & is_byte[:, None, :]
        return (rows ^ ((rows ^ fill) & hole)).view(images.shape)


@dataclass(frozen=True)
class Rotate:
    """Rotate about the centre by a random angle, bilinear."""

    limit: float
    fill: Fill
    p: float

    def draw(self, random: np.random.Generator, count: int, size: Size) -> Drawn:
        degrees = random.uniform(-self.limit, self.limit, count).astype(np.float32)
        return (np.where(random.random(count) < self.p, degrees, np.float32(0)),)

    def apply(self, images: Tensor, degrees: Tensor) -> Tensor:
        height, width = images.shape[1:3]
        cosine, sine = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
        zero = torch.zeros_like(cosine)
        # It leads from places in the result to places in the image, -1…1 from edge to edge in both.
        matrix = torch.stack([cosine, -sine * height / width, zero,
                              sine * width / height, cosine, zero], 1).view(-1, 2, 3).float()
        fill = _pixel(self.fill, images).float().view(-1, 1, 1)
        pixels = images.permute(0, 3, 1, 2).float() - fill
        grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
        turned = F.grid_sample(pixels, grid, align_corners=False) + fill
        return turned.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def _mirrored(images: Tensor, which: Tensor) -> Tensor:
    """Return images (N, H, W, C), some of them, bool (N,), with left and right exchanged."""
    count = len(images)
    # Whole images are chosen faster than pixels.
    both = torch.cat([images, images.flip(2)])
    return both.index_select(0, _range(count, images) + count * which)


def _padded(images: Tensor, by: int, fill: Fill) -> Tensor:
    """Return images (N, H, W, C) with so many pixels more on each side."""
    if not by:
        return images
    count, height, width, channels = images.shape
    padded = images.new_empty(count, height + 2 * by, width + 2 * by, channels)
    if fill != "reflect":
        padded[:] = _pixel(fill, images)
    rows = padded[:, by:by + height]
    rows[:, :, by:by + width] = images
    for part, side in ((rows.transpose(1, 2), width), (padded, height)) * (fill == "reflect"):
        for k in range(1, by + 1):
            part[:, by - k] = part[:, by + k]
            part[:, by + side - 1 + k] = part[:, by + side - 1 - k]
    return padded


def _mixed(seed: int, index: np.ndarray) -> np.ndarray:
    """Return a random number, uint64, for each index: SplitMix64 (Steele et al., 2014)."""
    bits = (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits += np.random.SeedSequence(seed).generate_state(1, np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ bits >> np.uint64(shift)) * np.uint64(factor)
    return bits ^ bits >> np.uint64(31)


def _range(count: int, images: Tensor) -> Tensor:
    return torch.arange(count, device=images.device)


def _pixel(fill: Fill, images: Tensor) -> Tensor:
    """Return a fill as one pixel, uint8 (C,)."""
    return _on_device(fill, images.device).expand(images.shape[3])


# Each transfer from Python to a GPU waits for all that the GPU has to do.
@lru_cache
def _on_device(fill: Fill, device: torch.device) -> Tensor:
    return torch.tensor(fill, device=device).round().byte()


def _is_within(places: Tensor, start: Tensor, length: int) -> Tensor:
    """Return uint8 (N, places): 255 for those from `start` on, as many as `length`; else 0."""
    return ((places >= start[:, None]) & (places < start[:, None] + length)).byte().neg()
