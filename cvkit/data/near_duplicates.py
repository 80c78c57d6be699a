"""Images that are equal, or nearly so, within and across the splits of a data set."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy.fft import dct

from cvkit.data.images import ImageSet
from cvkit.data.scan import in_threads
from cvkit.system.cores import usable_cores

# Hashes of near-equal images differ in no more of their 64 bits.
_BITS = 12
# Near-equal images are so many times as near to each other as a tenth of the images of their class
# are to each other, and no farther than this. Both were chosen by looking at pairs of CIFAR-10 and
# of handwritten digits, which are all alike.
_TIMES, _FARTHEST = 9.0, 0.1
# What is finer than a few pixels agrees so far as well: two small birds before a blue sky are
# alike but for that.
_FINE = 0.5
# Where both images have so many already, no further pair of them is told.
_MOST = 20
# Fewer pairs do not tell how alike the images of a class are.
_FEW = 200
_SIDE, _THUMBNAIL = 32, 16
_COSINES = dct(np.eye(_SIDE), norm="ortho", axis=0)[:8].astype(np.float32)


class Pair(NamedTuple):
    """Two images: where each is, and how alike they are.

    Attributes:
        split, position: of the first.
        other_split, other_position: of the other.
        similarity: the correlation of their pixels, 16×16, in colour; 1 where all are the same.
        is_equal: whether all pixels are the same.
    """

    split: str
    position: int
    other_split: str
    other_position: int
    similarity: float
    is_equal: bool

    @property
    def places(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Split and position of each of the two."""
        return (self.split, self.position), (self.other_split, self.other_position)


class _Looks(NamedTuple):
    """What is compared of all images: also thumbnails of mean 0 and length 1."""

    digests: list[bytes]
    grey: np.ndarray
    hashes: np.ndarray
    thumbnails: np.ndarray


# The last result, as two pictures of a report ask for it.
_last: dict[tuple[tuple[str, str], ...], list[Pair]] = {}


def near_duplicates(splits: Mapping[str, ImageSet], title: str = "Compare images") -> list[Pair]:
    """Return pairs of equal and of nearly equal images, the most alike first.

    Perceptual hashes (the signs of the 8×8 lowest frequencies of the grey image against their
    median) find candidates, which their pixels confirm or refute, coarse and fine. What is the same
    picture in another crop, mirrored or turned, is not found. Of images that are all equal, each is
    paired with the first of them; of a great many that are near each other, each with some.

    Args:
        splits: by name.
        title: of the progress bar, where image files are read.

    Raises:
        DataError: a file cannot be read.
    """
    # The same files may be read in colour or in grey.
    key = tuple((name, f"{split.identity} {getattr(split.images, 'channels', 0)}")
                for name, split in splits.items())
    if key not in _last:
        _last.clear()
        _last[key] = _near_duplicates(splits, title)
    return list(_last[key])


def counterparts(pairs: Sequence[Pair], ours: str, theirs: str) -> dict[int, tuple[int, bool]]:
    """Return for images of one split, by position, that which is equal or nearly so in another.

    Args:
        pairs: from `near_duplicates`.
        ours, theirs: names of the splits: "train" and "test", of which the first comes first.

    Returns:
        By position in `theirs` that in `ours`, and whether they are equal.
    """
    found: dict[int, tuple[int, bool]] = {}
    for pair in sorted(pairs, key=lambda pair: not pair.is_equal):
        if (pair.split, pair.other_split) == (ours, theirs):
            found.setdefault(pair.other_position, (pair.position, pair.is_equal))
    # What is equal to one that has a counterpart has the same.
    for pair in pairs:
        if pair.is_equal and (pair.split, pair.other_split) == (theirs, theirs) and (
                pair.position in found):
            found.setdefault(pair.other_position, found[pair.position])
    return found


def _near_duplicates(splits: Mapping[str, ImageSet], title: str) -> list[Pair]:
    places = [(name, position) for name, split in splits.items() for position in range(len(split))]
    labels = np.concatenate([split.labels for split in splits.values()])
    looks = _looks(splits, title)
    first: dict[bytes, int] = {}
    pairs: list[Pair] = []
    for number, digest in enumerate(looks.digests):
        same = first.setdefault(digest, number)
        if same != number:
            pairs.append(Pair(*places[same], *places[number], 1.0, True))
    # Nothing tells a picture of one grey from others.
    singles = np.array([number for number in first.values() if looks.thumbnails[number].any()],
                       dtype=np.int64)
    farthest = _farthest(labels[singles], looks.thumbnails[singles], labels.max() + 1)
    near: Counter[int] = Counter()

    @functools.cache
    def fine(number: int) -> np.ndarray:
        return _fine(looks.grey[number])

    for one, other in _alike(looks.hashes, singles):
        similarity = np.einsum("nd,nd->n", looks.thumbnails[one], looks.thumbnails[other],
                               dtype=np.float32).clip(max=1)
        limit = np.minimum(farthest[labels[one]], farthest[labels[other]])
        for n in np.flatnonzero(1 - similarity <= limit):
            ours, theirs = int(one[n]), int(other[n])
            # All frames of a film would be pairs.
            if min(near[ours], near[theirs]) < _MOST and fine(ours) @ fine(theirs) >= _FINE:
                near.update((ours, theirs))
                pairs.append(Pair(*places[ours], *places[theirs], float(similarity[n]), False))
    return sorted(pairs, key=lambda pair: (-pair.similarity, *pair[:4]))


def _looks(splits: Mapping[str, ImageSet], title: str) -> _Looks:
    """Read all images; of files by several threads."""
    def look(split: ImageSet, position: int) -> tuple[bytes, np.ndarray, np.ndarray]:
        pixels = split.image(position)
        content = repr(pixels.shape).encode() + pixels.tobytes()
        return hashlib.sha1(content).digest(), _grey(pixels), _thumbnail(pixels)

    digests: list[bytes] = []
    grey, hashes, thumbnails = [], [], []
    for split in splits.values():
        read, places = functools.partial(look, split), range(len(split))
        # Pixels in memory need no decoding.
        found = iter(map(read, places)) if isinstance(split.images, np.ndarray) else in_threads(
            read, places, title, usable_cores())
        while part := list(itertools.islice(found, 4096)):
            digests += [digest for digest, *_ in part]
            grey.append(np.stack([each for _, each, _ in part]))
            hashes.append(_hashes(grey[-1]))
            values = np.stack([small for *_, small in part]).astype(np.float32)
            values -= values.mean(1, keepdims=True)
            length = np.linalg.norm(values, axis=1, keepdims=True)
            # Half the digits are enough, and half the memory.
            thumbnails.append((values / np.maximum(length, 1e-6)).astype(np.float16))
    return _Looks(digests, *map(np.concatenate, (grey, hashes, thumbnails)))


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Return an image uint8 (H, W, C) made small, as a vector."""
    # OpenCV averages four channels at most.
    parts = [cv2.resize(np.ascontiguousarray(pixels[..., first:first + 4]),
                        (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
             for first in range(0, pixels.shape[2], 4)]
    return np.dstack(parts).reshape(-1)


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Return an image uint8 (H, W, C) in grey, float16 (32, 32)."""
    # There may be any number of channels.
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.shape[2] == 3 else pixels.mean(2)
    small = cv2.resize(grey.astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    return small.astype(np.float16)


def _fine(grey: np.ndarray) -> np.ndarray:
    """Return what is finer than some two pixels of 32 in a grey image, as a vector of length 1."""
    grey = grey.astype(np.float32)
    values = (grey - cv2.GaussianBlur(grey, (0, 0), 2)).ravel()
    return values / max(float(np.linalg.norm(values)), 1e-6)


def _hashes(grey: np.ndarray) -> np.ndarray:
    """Return uint8 (N, 8), the 64 bits of each grey image (N, 32, 32).

    The "pHash" of Zauner (Implementation and benchmarking of perceptual image hash functions,
    2010).
    """
    low = np.einsum("ah,nhw,bw->nab", _COSINES, grey.astype(np.float32), _COSINES, optimize=True)
    low = low.reshape(len(grey), 64)
    # The first is the mean of the image.
    return np.packbits(low > np.median(low[:, 1:], axis=1, keepdims=True), axis=1)


def _alike(hashes: np.ndarray, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield places of pairs among those chosen whose hashes differ in few bits, each pair once.

    Only those are compared that have one of their eight bytes in common: of pairs that differ in 7
    bits or fewer all have, of those in 12 bits 85 of 100.
    """
    # A product of two rows of signs is 64 less twice the bits that differ.
    signs = np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1
    for place in range(8):
        order = chosen[np.argsort(hashes[chosen, place], kind="stable")]
        values = hashes[order, place]
        for group in np.split(order, np.flatnonzero(values[1:] != values[:-1]) + 1):
            for start in range(0, len(group), 512):
                rows, columns = np.nonzero(
                    signs[group[start:start + 512]] @ signs[group[start:]].T >= 64 - 2 * _BITS)
                is_new = rows < columns
                one, other = group[start + rows[is_new]], group[start + columns[is_new]]
                is_new = ~(hashes[one, :place] == hashes[other, :place]).any(1)
                # As many at once as have room: all images may look alike.
                for part in range(0, int(is_new.sum()), 65536):
                    chunk = slice(part, part + 65536)
                    yield one[is_new][chunk], other[is_new][chunk]


def _farthest(labels: np.ndarray, thumbnails: np.ndarray, classes: int) -> np.ndarray:
    """Return for each class how far near-equal images may be apart, as 1 less their correlation."""
    random = np.random.default_rng(0)

    def distances(members: np.ndarray) -> np.ndarray:
        some = thumbnails[random.permutation(members)[:400]].astype(np.float32)
        return 1 - (some @ some.T)[np.triu_indices(len(some), 1)]

    found = [distances(np.flatnonzero(labels == label)) for label in range(classes)]
    together = np.concatenate(found)
    # Small classes are judged by all of them, and one image a class by all images.
    usual = together if len(together) >= _FEW else distances(np.arange(len(labels)))
    return np.array([
        min(_FARTHEST, float(np.quantile(values if len(values) >= _FEW else usual, 0.1)) / _TIMES)
        if len(usual) else 0.0 for values in found])
