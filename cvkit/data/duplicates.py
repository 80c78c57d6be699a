"""Images that two splits have in common."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cvkit.data.images import ImageData, ImageFiles, ImageSet
from cvkit.data.splits import evenly

# The file in a run folder that names them.
DUPLICATES = "duplicates.txt"

# Of image files no more are looked at than take a fraction of a second.
_OTHER_FILES, _TRAIN_FILES, _FILES_READ, _FILES_TOLD = 2_000, 100_000, 5_000, 100

# Published sets in memory have a few duplicates, which nobody can take out; so few of the images
# change no accuracy by more than 0.2 points.
_TOLERATED = 0.002


def duplicates(data: ImageData) -> dict[str, list[str]]:
    """Return by split, if there are some to tell, "test 7 is train 11" for each image in both."""
    found = {}
    for split, images in (("val", data.val), ("test", data.test)):
        if images is None:
            continue
        try:
            pairs = shared_images(data.train, images)
        except OSError:
            # A file has gone, and reading it for training says which and why.
            continue
        is_files = isinstance(images.images, ImageFiles)
        if pairs and (is_files or len(pairs) >= _TOLERATED * len(images)):
            found[split] = [f"{split} {images.name(theirs)} is train {data.train.name(ours)}"
                            for ours, theirs in pairs]
    return found


def shared_images(train: ImageSet, other: ImageSet) -> list[tuple[int, int]]:
    """Return pairs of positions, in `train` and in `other`, of images with the same bytes.

    Pixels in memory are all compared. Of image files a part is, evenly spaced, and not more than
    100 pairs are returned. Images that are neither are not compared.
    """
    # Ways to tell images apart, each more certain and slower than the one before, and of how many
    # images of either split. What has no counterpart is left out of the next.
    steps: list[tuple[Callable[[Any], int | bytes], int, int]]
    what: Callable[[ImageSet, int], Any] = ImageSet.image
    images, others = train.images, other.images
    if isinstance(images, ImageFiles) and isinstance(others, ImageFiles):
        what = ImageSet.name
        steps = [(os.path.getsize, _TRAIN_FILES, _OTHER_FILES),
                 (_middle, _FILES_READ, _OTHER_FILES), (_whole, _FILES_READ, _FILES_TOLD)]
    elif (isinstance(images, np.ndarray) and isinstance(others, np.ndarray)
          and images.shape[1:] == others.shape[1:]):
        steps = [(key, len(train), len(other)) for key in (_middle_row, _pixels)]
    else:
        return []
    our_keys: dict[int, Any] = dict.fromkeys(range(len(train)))
    their_keys: dict[int, Any] = dict.fromkeys(range(len(other)))
    for key, most_ours, most_theirs in steps:
        theirs = evenly([*their_keys], most_theirs)
        asked = {their_keys[n] for n in theirs}
        ours = evenly([n for n in our_keys if our_keys[n] in asked], most_ours)
        our_keys = {n: key(what(train, n)) for n in ours}
        known = set(our_keys.values())
        their_keys = {n: found for n in theirs if (found := key(what(other, n))) in known}
    first = {our_keys[n]: n for n in reversed(our_keys)}
    return [(first[key], n) for n, key in their_keys.items()]


def _middle(path: str) -> bytes:
    """Return 4 KB from the middle of a file, where neither header nor margin is."""
    with open(path, "rb") as file:
        file.seek(max(os.path.getsize(path) // 2 - 2048, 0))
        return file.read(4096)


def _whole(path: str) -> bytes:
    return hashlib.sha1(Path(path).read_bytes()).digest()


def _middle_row(image: np.ndarray) -> bytes:
    return image[len(image) // 2].tobytes()


def _pixels(image: np.ndarray) -> bytes:
    return hashlib.sha1(image.tobytes()).digest()
