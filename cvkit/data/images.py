"""What a data set is to the rest of cvkit: labelled uint8 images, and facts about them."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cvkit.errors import DataError, plural
from cvkit.log import Log, Progress

Result = TypeVar("Result")

# Not all that Pillow knows: for what looks like PostScript, whatever its name, it runs Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_SKIP_HINT = "DATA.DATASET.skip_unreadable true leaves such files out, and says so."


class UnreadableError(DataError):
    """An image file that is gone, cut off or no image."""


class ImageFiles(Sequence):
    """Image files, decoded when asked for: `files[i]` is uint8 (H, W, C).

    Args:
        paths: the files.
        channels: 3 reads everything as RGB, 1 as grey.
        skip_unreadable: whether batches may leave out files that cannot be read.
    """

    def __init__(self, paths: Sequence[str], channels: int = 3, skip_unreadable: bool = False):
        self.paths, self.channels = np.asarray(paths), channels
        self.skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, places: np.ndarray) -> ImageFiles:
        """Return the files at these places."""
        return ImageFiles(self.paths[places], self.channels, self.skip_unreadable)

    def __getitem__(self, position: int) -> np.ndarray:
        path = str(self.paths[position])
        try:
            with Image.open(path, formats=_FORMATS) as image:
                if image.mode.startswith(("I", "F")):
                    raise DataError(f"{path} has {image.mode} pixels, more than 8 bits a channel",
                                    hint="Convert such images to 8 bits; "
                                         "how to scale them is for you to say.")
                image = ImageOps.exif_transpose(image).convert("RGB" if self.channels == 3 else "L")
                pixels = np.asarray(image)
        except DataError:
            raise
        except FileNotFoundError:
            raise UnreadableError(f"{path} is gone since the folder was read",
                                  hint=_SKIP_HINT) from None
        except Exception as error:  # whatever Pillow's readers of several formats stumble over
            reason = ("its content is no image" if isinstance(error, UnidentifiedImageError)
                      else str(error) or type(error).__name__)
            raise UnreadableError(f"{path} cannot be read as an image: {reason}",
                                  hint=f"Replace or remove it. {_SKIP_HINT}") from error
        return pixels if pixels.ndim == 3 else pixels[:, :, None]


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one split.

    Attributes:
        images: uint8 array (N, H, W, C), or `ImageFiles`.
        labels: int64 (N,), indices into the classes.
        index: int64 (N,), each image's place in the split as the data set has it.
    """

    images: np.ndarray | ImageFiles
    labels: np.ndarray
    index: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray | ImageFiles, labels: Sequence[int]) -> ImageSet:
        """Return a whole split."""
        if isinstance(images, np.ndarray):
            images = np.ascontiguousarray(images)  # of BGR turned into RGB by [..., ::-1], say
        return cls(images, np.asarray(labels, dtype=np.int64), np.arange(len(labels)))

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, position: int) -> np.ndarray:
        """Return one image as the data set has it, uint8 (H, W, C)."""
        return self.images[self.index[position]]

    def name(self, position: int) -> str:
        """Return what an image can be found by: its file, or its number in the data set's split."""
        place = self.index[position]
        is_file = isinstance(self.images, ImageFiles)
        return str(self.images.paths[place] if is_file else place)

    @cached_property
    def fingerprint(self) -> str:
        """What tells these images from others, in whichever order: of pixels, or of file names.

        Names are relative to the folder that holds all of them, so a folder can be moved.
        """
        places = np.sort(self.index)
        if isinstance(self.images, ImageFiles):
            paths = self.images.paths[places].tolist()
            top = os.path.commonpath(paths) if len(paths) > 1 else os.path.dirname(paths[0])
            content = "\n".join(f"{os.path.relpath(path, top)} {_size(path)}"
                                for path in paths).encode(errors="surrogateescape")
        else:
            is_whole = len(self) == len(self.images)
            content = np.ascontiguousarray(self.images if is_whole else self.images[places])
        return hashlib.sha1(content).hexdigest()

    def take(self, positions: np.ndarray) -> ImageSet:
        """Return the images at these positions; pixels are shared, not copied."""
        return ImageSet(self.images, self.labels[positions], self.index[positions])


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else -1


@dataclass(frozen=True)
class ImageData:
    """A data set: its splits and what it declares.

    Attributes:
        classes: names, in the order of the labels.
        train, test: the splits.
        val: images to monitor training on, where the data set or the config has them.
        left_out: files that belong to a split and cannot be read, where that was allowed.
        channels: 3 or 1.
        image_size: (height, width) in pixels, or None where sizes are mixed.
        mean, std: of the training images, per channel, pixels scaled to 0–1.
    """

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    channels: int
    image_size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    val: ImageSet | None = None
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Checkpoints hold plain values only, and NumPy's scalars are none.
        for name, kind in (("classes", str), ("mean", float), ("std", float), ("image_size", int)):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(map(kind, value)))

    @property
    def monitored(self) -> str:
        """The split that best.pt, early stopping and the plateau schedule follow."""
        return "test" if self.val is None else "val"

    def with_splits(self, **splits: ImageSet | None) -> ImageData:
        """Return the same data set with other splits."""
        return replace(self, **splits)


# -- reading images --------------------------------------------------------------------


def usable_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(read: Callable[[int], Result], count: int, title: str,
               threads: int) -> Iterator[Result]:
    """Yield `read(0)`, `read(1)`, … `read(count - 1)`, computed by several threads ahead of use.

    Decoding an image leaves Python's lock to others. A terminal shows a bar after two seconds.
    """
    progress = Progress(title, count, Log(), unit="image", delay=2)
    with ThreadPoolExecutor(threads) as pool:
        ahead, rest = deque(), iter(range(count))
        try:
            for _ in range(count):
                # Not more at once: all that is decoded and waits may not fit in memory.
                ahead.extend(pool.submit(read, position)
                             for position in itertools.islice(rest, 64 - len(ahead)))
                yield ahead.popleft().result()
                if progress.step():
                    progress.update()
        finally:
            progress.close()
            for future in ahead:
                future.cancel()


# -- choosing images -------------------------------------------------------------------


def stratified_split(labels: np.ndarray, fraction: float,
                     seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted positions of the rest and of `fraction` of every class, at least one of each.

    Raises:
        DataError: a class has a single image.
    """
    random = np.random.default_rng([seed, 1])
    rest, held_out = [], []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise DataError(f"class number {label} has one image; a split needs two of each class")
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held_out.append(members[:count])
        rest.append(members[count:])
    return np.sort(np.concatenate(rest)), np.sort(np.concatenate(held_out))


def balanced_subset(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Return sorted positions of `limit` images, as equally many of each class as there are.

    Raises:
        DataError: `limit` is less than one image of each class.
    """
    if limit >= len(labels):
        return np.arange(len(labels))
    random = np.random.default_rng([seed, 2])
    members = [random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    if limit < len(members):
        raise DataError(f"DATA.LIMIT {limit} is less than one image of each of the "
                        f"{plural(len(members), 'class')}")
    # In rounds: the first image of every class, then the second of every class that has one…
    rounds = [members[c][k] for k in range(max(map(len, members)))
              for c in range(len(members)) if k < len(members[c])]
    return np.sort(np.asarray(rounds[:limit]))


# -- facts about images ------------------------------------------------------------------


def statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, over all pixels, scaled to 0–1."""
    sums = _Sums(images.shape[-1])
    for start in range(0, len(images), 1024):
        sums.add(images[start:start + 1024])
    return sums.statistics()


class _Sums:
    def __init__(self, channels: int):
        self.histogram = np.zeros((channels, 256), dtype=np.int64)

    def add(self, pixels: np.ndarray) -> None:
        for channel in range(len(self.histogram)):
            self.histogram[channel] += np.bincount(pixels[..., channel].ravel(), minlength=256)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        values = np.arange(256) / 255
        weights = self.histogram / self.histogram.sum(axis=1, keepdims=True)
        mean = weights @ values
        std = np.sqrt(weights @ values**2 - mean**2)
        return tuple(map(float, mean)), tuple(map(float, std))


def measure(images: ImageSet, title: str) -> dict:
    """Return mean, deviation and sizes of a split, from its pixels, as `scan_files` does."""
    if isinstance(images.images, ImageFiles):
        files = images.images
        return scan_files(files.take(images.index), title)
    is_whole = len(images) == len(images.images)
    pixels = images.images if is_whole else images.images[images.index]
    mean, std = statistics(pixels)
    height, width = pixels.shape[1:3]
    return {"mean": mean, "std": std, "sizes": {f"{height}x{width}": len(images)}}


def scan_files(files: ImageFiles, title: str) -> dict:
    """Decode every file once: mean, std, and how many images there are of each size.

    The result is cached under `~/.cache/cvkit` (or `XDG_CACHE_HOME`), keyed by the files'
    names, sizes and times of change.

    Returns:
        {"mean": […], "std": […], "sizes": {"32x32": count}, "unreadable": [path, …]}, sizes as
        height x width, of those that can be read.

    Raises:
        DataError: files that cannot be read as images, unless these may be skipped; the first five
            are named.
    """
    key = hashlib.sha1(f"2 {files.channels} {files.skip_unreadable}".encode())
    for path in files.paths:
        stat = os.stat(path)
        key.update(os.fsencode(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"))
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cvkit"
    cache = folder / f"{key.hexdigest()}.json"
    if cache.is_file():
        try:
            return json.loads(cache.read_text(encoding="utf-8"))
        except ValueError:
            cache.unlink()  # left half-written by a crash

    sums, sizes, unreadable, left_out = _Sums(files.channels), Counter(), [], []

    def read(position: int) -> np.ndarray | DataError:
        try:
            return files[position]
        except DataError as error:
            return error

    for place, pixels in enumerate(in_threads(read, len(files), title, usable_cores())):
        if isinstance(pixels, DataError):
            unreadable.append(pixels)
            left_out.append(str(files.paths[place]))
        else:
            sums.add(pixels)
            sizes[f"{pixels.shape[0]}x{pixels.shape[1]}"] += 1
    if unreadable and not (files.skip_unreadable and sizes):
        shown = "\n".join(str(error) for error in unreadable[:5])
        rest = f"\nand {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        raise DataError(shown + rest)
    mean, std = sums.statistics()
    result = {"mean": mean, "std": std, "sizes": dict(sizes.most_common()),
              "unreadable": left_out}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(result), encoding="utf-8")
        part.replace(cache)
    except OSError:  # a cache that cannot be kept costs time, nothing else
        pass
    return result
