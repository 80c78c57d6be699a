"""Facts about images: sizes, mean and deviation, of files kept between runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cvkit.data.images import ImageFiles, ImageSet
from cvkit.errors import DataError
from cvkit.system import distributed
from cvkit.system.cores import usable_cores
from cvkit.system.files import cache_folder
from cvkit.system.log import ProgressBar

Result = TypeVar("Result")
# Reading so many is announced.
_MANY_FILES = 100


def in_threads(read: Callable[[int], Result], places: Sequence[int], title: str,
               threads: int, is_silent: bool = False) -> Generator[Result]:
    """Yield `read(place)` of each place in order, computed by several threads ahead of use.

    Decoding an image leaves Python's lock to others. A terminal shows a bar after two seconds,
    elsewhere a line is printed after ten and then seldom.
    """
    progress = ProgressBar(title, len(places), unit="image", delay=2, is_silent=is_silent)
    with ThreadPoolExecutor(threads) as pool, progress:
        ahead: deque[Future[Result]] = deque()
        rest = iter(places)
        try:
            for _ in places:
                # If more were decoded ahead, what waits might not fit in memory.
                ahead.extend(pool.submit(read, place)
                             for place in itertools.islice(rest, 64 - len(ahead)))
                yield ahead.popleft().result()
                if progress.step():
                    progress.update()
        finally:
            for future in ahead:
                future.cancel()


def statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, over all pixels, scaled to 0–1."""
    return _mean_and_std([_sums(images[start:start + 1024])
                          for start in range(0, len(images), 1024)])


def _sums(pixels: np.ndarray) -> np.ndarray:
    """Return int64 (C, 3): how many pixels, their sum and the sum of their squares, exact."""
    # By itself, NumPy 1 takes numbers of 32 bits on Windows.
    powers = np.arange(256, dtype=np.int64)[:, None] ** np.arange(3)
    return np.stack([np.bincount(pixels[..., channel].ravel(), minlength=256) @ powers
                     for channel in range(pixels.shape[-1])])


def _mean_and_std(sums: Sequence[Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return both per channel, from the `_sums` of all parts."""
    # Python's whole numbers have any size: nothing is lost in the difference.
    rows = np.array(sums, dtype=np.int64).sum(0).tolist()
    mean = tuple(total / count / 255 for count, total, _ in rows)
    std = tuple(math.sqrt(count * squares - total**2) / count / 255
                for count, total, squares in rows)
    return mean, std


def measure(images: ImageSet, title: str) -> dict[str, Any]:
    """Return mean, deviation and sizes of a split, from its pixels, as `scan_files` does."""
    if isinstance(images.images, ImageFiles):
        return scan_files(images.images.take(images.index), title)
    is_whole = len(images) == len(images.images)
    pixels = images.images if is_whole else images.images[images.index]
    mean, std = statistics(pixels)
    height, width = pixels.shape[1:3]
    return {"mean": mean, "std": std, "sizes": {f"{height}x{width}": len(images)}}


def scan_files(files: ImageFiles, title: str) -> dict[str, Any]:
    """Decode every file once: mean, std, and how many images there are of each size.

    What a file holds is kept under `~/.cache/cvkit` (or `XDG_CACHE_HOME`) until its name, size or
    time of change is another, whichever split it is in then. A word is printed before many are
    read.

    Returns:
        {"mean": […], "std": […], "sizes": {"32x32": count}, "unreadable": [path, …],
        "transparent": count}, sizes as height x width, of those that can be read.

    Raises:
        DataError: files that cannot be read as images, unless these may be skipped; the first five
            are named.
    """
    kept = _KeptFacts(files)
    facts = [kept.find(path) for path in files.paths.tolist()]
    unknown = [place for place, known in enumerate(facts) if known is None]
    unreadable: dict[int, DataError] = {}

    def read(place: int) -> list | DataError:
        try:
            pixels = files[place]
        except DataError as error:
            return error
        return [*pixels.shape[:2], _sums(pixels).tolist(), place in files.transparent]

    if len(unknown) >= _MANY_FILES and distributed.is_main():
        print(f"reading    {len(unknown):,} image files for their sizes, mean and deviation, once",
              flush=True)
    try:
        for found, place in zip(in_threads(read, unknown, title, usable_cores()), unknown):
            if isinstance(found, DataError):
                unreadable[place] = found
            else:
                facts[place] = found
                kept.add(str(files.paths[place]), found)
    finally:
        # An interruption comes here as well: what was read need not be read again.
        kept.save()
    readable = [found for found in facts if found is not None]
    if unreadable and not (files.skip_unreadable and readable):
        errors = list(unreadable.values())
        rest = f"\nand {len(errors) - 5} more" if len(errors) > 5 else ""
        raise DataError("\n".join(map(str, errors[:5])) + rest)
    mean, std = _mean_and_std([sums for _, _, sums, _ in readable])
    sizes = Counter(f"{height}x{width}" for height, width, *_ in readable)
    return {"mean": mean, "std": std, "sizes": dict(sizes.most_common()),
            "unreadable": [str(files.paths[place]) for place in unreadable],
            "transparent": sum(is_transparent for *_, is_transparent in readable)}


def _are_facts(value: object, channels: int) -> bool:
    """Tell what `scan_files` keeps of a file from what else a damaged cache may hold."""
    match value:
        case [int(height), int(width), [*sums], bool()]:
            return len(sums) == channels and all(
                isinstance(row, list) and len(row) == 3 and {type(each) for each in row} == {int}
                and row[0] == height * width > 0 for row in sums)
    return False


class _KeptFacts:
    """What was found in image files, kept in one file for each folder of them."""

    def __init__(self, files: ImageFiles):
        self._root, self._channels = cache_folder(), files.channels
        self._kind = f"5 {files.channels} {files.background}"
        # For each folder, by the name of a file, its state before it was read, and its facts.
        self._folders: dict[str, dict[str, list]] = {}
        self._changed: set[str] = set()

    def find(self, path: str) -> list | None:
        """Return what was kept of a file, or None if nothing is known of it as it is now."""
        folder, name = os.path.split(path)
        entries = self._entries(folder)
        try:
            stat = os.stat(path)
            state = [stat.st_size, stat.st_mtime_ns]
        except OSError:
            # The file has gone, and reading it will say so.
            state = None
        match entries.get(name):
            case [known, facts] if state and known == state and _are_facts(facts, self._channels):
                return facts
        entries[name] = [state, None]
        return None

    def add(self, path: str, facts: list) -> None:
        """Note the facts of a file that was looked for."""
        folder, name = os.path.split(path)
        self._folders[folder][name][1] = facts
        self._changed.add(folder)

    def save(self) -> None:
        """Write what was added."""
        for folder in self._changed:
            cache = self._cache(folder)
            if cache is None:
                return
            part = cache.with_suffix(f".{os.getpid()}")
            try:
                cache.parent.mkdir(parents=True, exist_ok=True)
                part.write_text(json.dumps(self._folders[folder]), encoding="utf-8")
                part.replace(cache)
            except OSError:
                # A cache that cannot be kept costs time, nothing else.
                pass

    def _cache(self, folder: str) -> Path | None:
        if self._root is None:
            return None
        key = f"{self._kind} {os.path.abspath(folder)}"
        return self._root / f"{hashlib.sha1(os.fsencode(key)).hexdigest()}.json"

    def _entries(self, folder: str) -> dict[str, list]:
        if folder not in self._folders:
            cache = self._cache(folder)
            try:
                text = cache.read_text(encoding="utf-8") if cache else "{}"
                self._folders[folder] = dict(json.loads(text))
            except (OSError, ValueError, TypeError):
                # No such cache is there, or it is damaged.
                self._folders[folder] = {}
        return self._folders[folder]
