"""Images that two splits have in common, as far as a training looks for them at its beginning."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cvkit.data.images import ImageData, ImageFiles, ImageReader, ImageSet
from cvkit.data.near_duplicates import counterparts, near_duplicates
from cvkit.data.splits import evenly
from cvkit.errors import DataError

# The file in a run folder that names them.
DUPLICATES = "duplicates.txt"

# Of image files no more are looked at than take a fraction of a second.
_OTHER_FILES, _TRAIN_FILES, _FILES_READ, _FILES_TOLD = 2_000, 100_000, 5_000, 100

# Decoding so many, of so many pixels together, takes a core two seconds at most; of more
# `cvkit visualize --duplicates` finds those that are near.
_FILES_DECODED, _PIXELS_DECODED = 1_000, 100_000_000

# Published sets in memory have a few duplicates, which nobody can take out; so few equal ones, or
# nearly equal ones, change an accuracy by no more than 0.2 points, or little.
_TOLERATED, _TOLERATED_NEAR = 0.002, 0.01


class Twin(NamedTuple):
    """A test or validation image that is a training image too.

    Attributes:
        words: "test 7 is train 11" or "test 7 is nearly train 11".
        is_equal: whether all pixels are the same.
    """

    words: str
    is_equal: bool


def duplicates(data: ImageData) -> dict[str, list[Twin]]:
    """Return by split, if there are some to tell, the images that are in train too, or nearly."""
    found = {}
    try:
        are_compared = _are_compared(data)
        pairs = near_duplicates(data.splits) if are_compared else []
    except (OSError, DataError):
        # A file has gone, and reading it for training says which and why.
        return {}
    for split, images in (("val", data.val), ("test", data.test)):
        if images is None:
            continue
        twins = counterparts(pairs, "train", split)
        is_files = isinstance(images.images, ImageFiles)
        if not are_compared and is_files and isinstance(data.train.images, ImageFiles):
            with contextlib.suppress(OSError):
                twins = {theirs: (ours, True) for ours, theirs in shared_files(data.train, images)}
        equal = sum(is_equal for _, is_equal in twins.values())
        if twins and (is_files or equal >= max(1, _TOLERATED * len(images))
                      or len(twins) >= _TOLERATED_NEAR * len(images)):
            found[split] = [
                Twin(f"{split} {images.name(theirs)} is {'' if is_equal else 'nearly '}train "
                     f"{data.train.name(ours)}", is_equal)
                for theirs, (ours, is_equal) in sorted(
                    twins.items(), key=lambda twin: (not twin[1][1], twin[0]))]
    return found


def _are_compared(data: ImageData) -> bool:
    """Whether the images are looked at: pixels in memory, or few files that are not large."""
    kinds, count = {type(split.images) for split in data.splits.values()}, 0
    if all(issubclass(kind, np.ndarray) for kind in kinds):
        return True
    if kinds != {ImageFiles} or sum(map(len, data.splits.values())) > _FILES_DECODED:
        return False
    reader = ImageReader()
    for split in data.splits.values():
        for position in range(len(split)):
            height, width = data.image_size or reader.size(split.name(position))
            count += height * width
            if count > _PIXELS_DECODED:
                return False
    return True


def shared_files(train: ImageSet, other: ImageSet) -> list[tuple[int, int]]:
    """Return pairs of positions, in `train` and in `other`, of files with the same bytes.

    A part of them is compared, evenly spaced, and not more than 100 pairs are returned.
    """
    # Ways to tell files apart, each more certain and slower than the one before, and of how many
    # files of either split. What has no counterpart is left out of the next.
    steps: list[tuple[Callable[[str], int | bytes], int, int]] = [
        (os.path.getsize, _TRAIN_FILES, _OTHER_FILES),
        (_middle, _FILES_READ, _OTHER_FILES), (_whole, _FILES_READ, _FILES_TOLD)]
    our_keys: dict[int, Any] = dict.fromkeys(range(len(train)))
    their_keys: dict[int, Any] = dict.fromkeys(range(len(other)))
    for key, most_ours, most_theirs in steps:
        theirs = evenly([*their_keys], most_theirs)
        asked = {their_keys[n] for n in theirs}
        ours = evenly([n for n in our_keys if our_keys[n] in asked], most_ours)
        our_keys = {n: key(train.name(n)) for n in ours}
        known = set(our_keys.values())
        their_keys = {n: found for n in theirs if (found := key(other.name(n))) in known}
    first = {our_keys[n]: n for n in reversed(our_keys)}
    return [(first[key], n) for n, key in their_keys.items()]


def _middle(path: str) -> bytes:
    """Return 4 KB from the middle of a file, where neither header nor margin is."""
    with open(path, "rb") as file:
        file.seek(max(os.path.getsize(path) // 2 - 2048, 0))
        return file.read(4096)


def _whole(path: str) -> bytes:
    return hashlib.sha1(Path(path).read_bytes()).digest()
