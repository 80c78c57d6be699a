"""A split's images in memory, decoded and through the transforms that give the same each time."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvkit.data.images import ImageFiles, ImageSet, UnreadableError, readable
from cvkit.data.pipeline import Pipeline
from cvkit.data.scan import in_threads
from cvkit.data.splits import evenly
from cvkit.errors import DataError
from cvkit.system.cores import usable_cores


class ImageCache:
    """The prepared images of a split, kept in memory where they fit.

    Files are decoded when `fill` is called, until then and where they do not fit when they are
    asked for. Pixels that the data set holds in memory are used where they lie.

    Args:
        images: the split.
        pipeline: its `prepare` is applied to each image, once.
        is_uniform: whether all prepared images have one size.
        limit: bytes that they may take.

    Attributes:
        shape: (H, W, C) of the prepared images; None where sizes are mixed.
        bytes: of memory that all of them take or would take; where sizes are mixed, by an
            estimate with a fifth to spare.
        is_copy: whether that is memory besides the data set's own.
        fits: whether they lie in memory, from the start or after `fill`.
        missing: (N,), those that could not be read, where it is allowed to skip them.
    """

    def __init__(self, images: ImageSet, pipeline: Pipeline, is_uniform: bool, limit: int):
        self._images, self._pipeline = images, pipeline
        self._kept: Tensor | list[np.ndarray] = []
        # The place of each image among those kept.
        self._places = np.arange(len(images))
        self.missing = np.zeros(len(images), dtype=bool)
        self.may_skip = getattr(images.images, "skip_unreadable", False)
        self.is_copy = not isinstance(images.images, np.ndarray) or bool(pipeline.fixed)
        _, first = next(self.readable(range(len(images))))
        self.shape = first.shape if is_uniform else None
        if is_uniform:
            self.bytes = len(images) * first.nbytes
        else:
            sizes = [image.nbytes for _, image in self.readable(evenly(range(len(images)), 16))]
            self.bytes = int(1.2 * len(images) * np.mean(sizes))
        self.fits = not self.is_copy or self.bytes <= limit
        if not self.is_copy:
            with warnings.catch_warnings():
                # Torch warns that the array may be read-only; nothing writes to it.
                warnings.simplefilter("ignore", UserWarning)
                self._kept, self._places = torch.from_numpy(images.images), images.index

    def __len__(self) -> int:
        return len(self._places)

    def __getstate__(self) -> dict[str, Any]:
        # Workers that are not forked are sent this: tensors are shared with them, arrays copied.
        is_whole = len(self._kept) >= len(self)
        return {**vars(self), "_images": None} if is_whole else vars(self)

    def image(self, position: int) -> np.ndarray:
        """Return one prepared image, uint8 (H, W, C).

        Raises:
            UnreadableError: the file cannot be read, or could not when the memory was filled.
        """
        if self.missing[position]:
            raise UnreadableError(f"{self._images.name(position)} could not be read")
        place = self._places[position]
        if place < len(self._kept):
            return np.asarray(self._kept[place])
        return self._pipeline.prepare(self._images.image(position))

    def readable(self, positions: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the prepared images at these positions, each with its number among them.

        Raises:
            DataError: one cannot be read, unless it may be left out, or none of them can.
        """
        try:
            yield from readable(self.image, positions, self.may_skip)
        except UnreadableError as error:
            if not self.may_skip:
                raise
            raise nothing_left(error.problem) from error

    def fill(self) -> None:
        """Decode and prepare all images, if they fit and that was not done yet.

        Raises:
            DataError: a file that cannot be read, or has changed its size.
        """
        if len(self._kept) or not self.fits:
            return
        # Transforms are not made for use by several threads.
        own = threading.local()

        def prepared(position: int) -> np.ndarray:
            if not hasattr(own, "pipeline"):
                own.pipeline = copy.deepcopy(self._pipeline)
            try:
                return own.pipeline.prepare(self._images.image(position))
            except UnreadableError:
                if not self.may_skip:
                    raise
                self.missing[position] = True
                return np.zeros(self.shape or (1, 1, 1), dtype=np.uint8)

        # Nor is, perhaps, what the user's own data set reads from.
        threads = usable_cores() if isinstance(self._images.images, ImageFiles) else 1
        made = in_threads(prepared, range(len(self)), "Preparing images", threads)
        if self.shape:
            stacked = torch.empty(len(self), *self.shape, dtype=torch.uint8)
            for place, pixels in enumerate(made):
                if pixels.shape != self.shape:
                    raise DataError(f"{self._images.name(place)} is {pixels.shape[:2]} pixels now, "
                                    f"not {self.shape[:2]} as when the folder was read")
                stacked.numpy()[place] = pixels
            self._kept = stacked
        else:
            kept, taken = [], 0
            for pixels in made:
                taken += pixels.nbytes
                if taken > self.bytes:
                    # The estimate was too low: the rest is decoded each time.
                    made.close()
                    break
                kept.append(pixels)
            self._kept = kept

    def stack(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return all images, uint8 (M, H, W, C) on the device, and where each is in them (N,).

        For images of one size that fit. What lies in this machine's memory is not copied in it.
        """
        self.fill()
        pixels, places = torch.as_tensor(self._kept), torch.from_numpy(self._places)
        if device.type != "cpu" and len(pixels) != len(self):
            # Not all of the data set's pixels go to the device, only this split's.
            pixels, places = pixels[places], torch.arange(len(self))
        if device.type != "cpu" and self.is_copy:
            # The copy on the device is enough.
            self._kept = []
        return pixels.to(device), places.to(device)


def nothing_left(reason: str) -> DataError:
    """Return the error of a batch whose images are all unreadable."""
    return DataError(f"no image of a whole batch can be read; {reason}",
                     hint="Is the drive that holds them gone?")
