"""From the images of splits to an `ImageData`: test images set aside, sizes, mean and deviation."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np

from cvkit.data.images import ImageData, ImageFiles, ImageSet
from cvkit.data.scan import measure
from cvkit.data.splits import stratified_split
from cvkit.errors import DataError
from cvkit.system.text import escape_controls, plural

# Of the data sets of one's own images, the argument that says where they are.
PLACES = {"CSVDataset": "path", "ImageFolder": "root"}
_all_is_test: ContextVar[bool] = ContextVar("all_is_test", default=False)


@contextmanager
def images_are_for_testing() -> Iterator[None]:
    """Let a data set of one's own images that is built meanwhile be for an evaluation alone.

    One without splits is tested whole, and one needs no train/. The test images stand in for those
    of the training, of which an evaluation takes no more than their form. No config can ask for
    that, as a training would be tested on its own images.
    """
    token = _all_is_test.set(True)
    try:
        yield
    finally:
        _all_is_test.reset(token)


def all_is_test() -> bool:
    """Tell whether this happens within `images_are_for_testing`."""
    return _all_is_test.get()


def check_choice(name: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {' or '.join(map(str, allowed))}, not {value}")


def check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} lies between 0 and 1, not {value}")


def not_there(kind: str, path: str, beside: Sequence[Path]) -> DataError:
    """Return the message on a path that a config names; what lies `beside` it may be meant."""
    near = difflib.get_close_matches(path, map(str, beside), n=1)
    return DataError(f"no {kind} {path} (looked in {Path.cwd()})",
                     hint=f"Did you mean {near[0]}?" if near else None)


def set_aside(whole: ImageSet, fraction: float, seed: int,
              places: Sequence[object]) -> dict[str, ImageSet]:
    """Return the splits of images that have none: for an evaluation, all is test.

    Args:
        places: of the classes, for messages: "in my_images/cat".

    Raises:
        DataError: a class has a single image.
    """
    if all_is_test():
        return {"test": whole}
    few = np.flatnonzero(np.bincount(whole.labels) < 2)
    if few.size:
        raise DataError(f"one image only {places[few[0]]}",
                        hint="To be split into train and test, a class needs two at least.")
    rest, held_out = stratified_split(whole.labels, fraction, seed, whole.groups)
    return {"train": whole.take(rest), "test": whole.take(held_out)}


def assemble(classes: Sequence[str], splits: Mapping[str, ImageSet], mean: list[float] | None,
             std: list[float] | None, notes: Sequence[str]) -> ImageData:
    """Return the data set of image files, each of which is read once for its size and pixels.

    Args:
        splits: of `ImageFiles`; test among them, and for a training train.
        mean, std: per channel, pixels in 0–1; None for those of the training images.
        notes: lines to be said, besides those on what is found here.

    Raises:
        DataError: files that cannot be read and may not be left out, or all of a class.
    """
    splits, facts = dict(splits), {}
    for name, images in splits.items():
        facts[name] = measure(images, f"Reading {name} images")
        # A split that is refused ends it before the next one is read.
        splits[name] = _readable(name, images, facts[name]["unreadable"], classes)
    first = "train" if "train" in splits else "test"
    files = splits[first].images
    assert isinstance(files, ImageFiles)
    left_out = [path for fact in facts.values() for path in fact["unreadable"]]
    transparent = sum(fact["transparent"] for fact in facts.values())
    if transparent:
        ground = str(files.background).strip("[()]")
        notes = [*notes, f"{plural(transparent, 'image')} with transparent pixels, laid on "
                         f"background {ground}"]
    sizes = {size for fact in facts.values() for size in fact["sizes"]}
    size = None
    if len(sizes) == 1:
        height, width = map(int, sizes.pop().split("x"))
        size = height, width
    return ImageData(tuple(classes), splits[first], splits["test"], files.channels, size,
                     tuple(mean or facts[first]["mean"]), tuple(std or facts[first]["std"]),
                     splits.get("val"), tuple(sorted(left_out)),
                     tuple(escape_controls(note) for note in notes))


def _readable(name: str, split: ImageSet, unreadable: Sequence[str],
              classes: Sequence[str]) -> ImageSet:
    """Return a split without some files; refuse one that has lost a class by that."""
    if not unreadable:
        return split
    paths = np.array([split.name(position) for position in range(len(split))])
    readable = split.take(np.flatnonzero(~np.isin(paths, unreadable)))
    lost = np.setdiff1d(split.labels, readable.labels)
    if lost.size:
        paths = paths[split.labels == lost[0]]
        raise DataError(f"none of the {len(paths):,} {name} images of {classes[lost[0]]} can be "
                        f"read, among them {paths[0]}",
                        hint="Replace or remove them. Without any of that class, take it out of "
                             "all splits.")
    return readable
