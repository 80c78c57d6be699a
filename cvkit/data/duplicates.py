"""Images that two splits have in common."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from cvkit.data.images import ImageData, ImageFiles, ImageSet

DUPLICATES = "duplicates.txt"  # in a run folder
Key = Callable[[int], Hashable]


# Of image files no more are looked at than take a fraction of a second.
_OTHER_FILES, _TRAIN_FILES, _FILES_READ, _FILES_TOLD = 2_000, 100_000, 5_000, 100


# Published sets in memory have a few duplicates, which nobody can take out; so few of the images
# change no accuracy by more than 0.2 points.
_TOLERATED = 0.002


def duplicates(data: ImageData) -> dict[str, list[str]]:
    """Return by split, if there are some to tell, "test 7 is train 11" for each image in both."""
    found = {}
    for split, images in (("val", data.val), ("test", data.test)):
        try:
            pairs = [] if images is None else shared_images(data.train, images)
        except OSError:  # of a file that has gone: reading it for training says which and why
            pairs = []
        is_files = bool(pairs) and isinstance(images.images, ImageFiles)
        if pairs and (is_files or len(pairs) >= _TOLERATED * len(images)):
            found[split] = [f"{split} {images.name(theirs)} is train {data.train.name(ours)}"
                            for ours, theirs in pairs]
    return found


def shared_images(train: ImageSet, other: ImageSet) -> list[tuple[int, int]]:
    """Return pairs of positions, in `train` and in `other`, of images with the same bytes.

    Pixels in memory are all compared. Of image files a part is, evenly spaced, and not more than
    100 pairs are returned. Images that are neither are not compared.
    """
    if all(isinstance(images.images, ImageFiles) for images in (train, other)):
        train_paths, other_paths = (images.images.paths[images.index] for images in (train, other))
        ours, theirs = _same_key(evenly(range(len(train)), _TRAIN_FILES),
                                 evenly(range(len(other)), _OTHER_FILES),
                                 lambda n: os.path.getsize(train_paths[n]),
                                 lambda n: os.path.getsize(other_paths[n]))
        # Files of one size may be many, of bitmaps all: their middle tells most of them apart.
        return _pairs(evenly(ours, _FILES_READ), theirs, lambda n: _middle(train_paths[n]),
                      lambda n: _middle(other_paths[n]),
                      lambda n, m: filecmp.cmp(train_paths[n], other_paths[m], shallow=False),
                      _FILES_TOLD)
    if not all(isinstance(images.images, np.ndarray) for images in (train, other)) or (
            train.images.shape[1:] != other.images.shape[1:]):
        return []
    row = train.images.shape[1] // 2  # which is compared first, as it is quick
    ours, theirs = _same_key(range(len(train)), range(len(other)),
                             lambda n: train.image(n)[row].tobytes(),
                             lambda n: other.image(n)[row].tobytes())
    return _pairs(ours, theirs, lambda n: hash(train.image(n).tobytes()),
                  lambda n: hash(other.image(n).tobytes()),
                  lambda n, m: np.array_equal(train.image(n), other.image(m)), len(other))


def _same_key(ours: Sequence[int], theirs: Sequence[int], our_key: Key,
              their_key: Key) -> tuple[list[int], list[int]]:
    """Return those on either side whose key the other side has too."""
    our_keys, their_keys = [our_key(n) for n in ours], [their_key(n) for n in theirs]
    both = set(our_keys) & set(their_keys)
    return ([n for n, key in zip(ours, our_keys, strict=True) if key in both],
            [n for n, key in zip(theirs, their_keys, strict=True) if key in both])


def _pairs(ours: Sequence[int], theirs: Sequence[int], our_key: Key, their_key: Key,
           is_same: Callable[[int, int], bool], most: int) -> list[tuple[int, int]]:
    """Return up to `most` pairs of one key that are the same indeed, one for each of theirs."""
    by_key: dict[Hashable, list[int]] = {}
    for n in ours:
        by_key.setdefault(our_key(n), []).append(n)
    pairs = []
    for m in theirs:
        same = next((n for n in by_key.get(their_key(m), ()) if is_same(n, m)), None)
        if same is not None:
            pairs.append((same, m))
            if len(pairs) == most:
                break
    return pairs


def evenly(values: Sequence[int], most: int) -> list[int]:
    places = np.linspace(0, len(values) - 1, min(most, len(values))).astype(int)
    return [values[place] for place in places]


def _middle(path: str) -> tuple[int, bytes]:
    """Return a file's size and 4 KB from its middle, where neither header nor margin is."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(max(size // 2 - 2048, 0))
        return size, file.read(4096)
