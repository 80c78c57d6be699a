"""Your own images, a folder for each class."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from cvkit.data.class_folders import ClassFolders, folders_in, leads_to, refuse_other_classes
from cvkit.data.datasets import check_choice, check_fraction
from cvkit.data.images import ImageData, ImageFiles, ImageSet
from cvkit.data.scan import measure
from cvkit.data.split_folders import no_splits_among, split_folders, way_without_labels
from cvkit.data.splits import stratified_split
from cvkit.errors import DataError
from cvkit.registry import DATASETS
from cvkit.system.text import and_more, escape_controls, plural

_all_is_test: ContextVar[bool] = ContextVar("all_is_test", default=False)


@contextmanager
def folders_are_for_testing() -> Iterator[None]:
    """Let an `ImageFolder` that is built meanwhile hold images for an evaluation alone.

    One without splits is tested whole, and one needs no train/. The test images stand in for those
    of the training, of which an evaluation takes no more than their form. No config can ask for
    that, as a training would be tested on its own images.
    """
    token = _all_is_test.set(True)
    try:
        yield
    finally:
        _all_is_test.reset(token)


@DATASETS.register()
def ImageFolder(root: str, test_fraction: float = 0.2, channels: int = 3,
                mean: list[float] | None = None, std: list[float] | None = None,
                skip_unreadable: bool = False, background: int | list[int] = 255, seed: int = 0,
                train: str | None = None, val: str | None = None, test: str | None = None,
                unsplit: bool = False) -> ImageData:
    """Your own images, a folder for each class.

    `root` holds `train/` and `test/` or `val/`, each with one folder per class; or only the
    class folders, and a part of every class is set aside as test. With all three, `val/` is
    monitored during training and `test/` kept for the end. The usual spellings are known
    (`Training`, `valid`, `validation`). Other files are ignored and counted, links are followed.

    Args:
        root: the folder.
        test_fraction: part of every class for test, where `root` has no splits.
        channels: 3 reads all images as RGB, 1 as grey.
        mean, std: per channel, pixels in 0–1; computed from the training images by default,
            once, and cached.
        skip_unreadable: leave out files that cannot be read, now or later, and say which.
        background: what transparent pixels are laid on, 0–255, one number or one per channel;
            white by default. A line says how many images have such pixels.
        seed: of the split; DATA.SPLIT_SEED by default.
        train, val, test: folders of the splits in `root`, where they have other names.
        unsplit: the folders in `root` are classes, even if they are called as splits are.

    Raises:
        DataError: no such folder, no images, classes that differ between splits, or files
            that are not images.
    """
    check_choice("channels", channels, (1, 3))
    if not _all_is_test.get():
        check_fraction("test_fraction", test_fraction)
    folder = _existing_folder(root)
    given = {split: name for split, name in (("train", train), ("val", val), ("test", test))
             if name is not None}
    if unsplit and given:
        raise ValueError("unsplit says that root has no splits; leave out train, val and test")
    names = {} if unsplit else split_folders(folder, given, needs_train=not _all_is_test.get())
    notes: list[str] = []
    listings: dict[str, ClassFolders] = {}
    if names:
        for split, name in names.items():
            # The first is train, except for an evaluation, and no training goes on without it.
            way = way_without_labels(folder, names, split) if listings else None
            listings[split] = ClassFolders(folder / name, way)
        refuse_other_classes(*listings.values())
        if "test" not in names:
            notes.append(f"{names['val']}/ is the test set, as there is no other")
        beside = [f"{name}/" for name in folders_in(folder)
                  if not any(leads_to(folder / name, folder / split) for split in names.values())]
        if beside:
            notes.append(f"ignored beside {', '.join(f'{name}/' for name in names.values())}: "
                         f"{and_more(beside, 8)}")
    else:
        listings["whole"] = ClassFolders(folder)
        if not unsplit:
            notes += no_splits_among(listings["whole"])
    classes = tuple(next(iter(listings.values())).classes)
    splits = {name: _image_set(listing, channels, skip_unreadable, background)
              for name, listing in listings.items()}
    if not names:
        splits = _set_aside(folder, splits["whole"], classes, test_fraction, seed)
    elif "test" not in splits:
        splits["test"] = splits.pop("val")
    facts = {}
    for name, images in splits.items():
        facts[name] = measure(images, f"Reading {name} images")
        # A split that is refused ends it before the next one is read.
        splits[name] = _readable(name, images, facts[name]["unreadable"], classes)
    left_out = [path for fact in facts.values() for path in fact["unreadable"]]
    notes += filter(None, (listing.note for listing in listings.values()))
    transparent = sum(fact["transparent"] for fact in facts.values())
    if transparent:
        notes.append(f"{plural(transparent, 'image')} with transparent pixels, laid on background "
                     f"{str(background).strip('[()]')}")
    sizes = {size for fact in facts.values() for size in fact["sizes"]}
    size = None
    if len(sizes) == 1:
        height, width = map(int, sizes.pop().split("x"))
        size = height, width
    first = "train" if "train" in splits else "test"
    return ImageData(classes, splits[first], splits["test"], channels, size,
                     tuple(mean or facts[first]["mean"]), tuple(std or facts[first]["std"]),
                     splits.get("val"), tuple(sorted(left_out)),
                     tuple(escape_controls(note) for note in notes))


def _existing_folder(root: str) -> Path:
    folder = Path(root)
    if os.path.isfile(root):
        raise DataError(f"{root} is a file, not a folder",
                        hint="Unpack it, and name the folder that this makes.")
    if not folder.is_dir():
        beside = [str(path) for path in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        near = difflib.get_close_matches(root, beside, n=1)
        raise DataError(f"no folder {root} (looked in {Path.cwd()})",
                        hint=f"Did you mean {near[0]}?" if near else None)
    return folder


def _image_set(listing: ClassFolders, channels: int, skip_unreadable: bool,
               background: int | list[int]) -> ImageSet:
    labels = [number for number, paths in enumerate(listing.classes.values()) for _ in paths]
    paths = [path for paths in listing.classes.values() for path in paths]
    return ImageSet.of(ImageFiles(paths, channels, skip_unreadable, background), labels)


def _set_aside(folder: Path, whole: ImageSet, classes: Sequence[str], fraction: float,
               seed: int) -> dict[str, ImageSet]:
    """Return the splits of a folder that has none: for an evaluation, all is test."""
    if _all_is_test.get():
        return {"test": whole}
    few = np.flatnonzero(np.bincount(whole.labels) < 2)
    if few.size:
        raise DataError(f"one image only in {folder / classes[few[0]]}",
                        hint="To be split into train and test, a class needs two at least.")
    rest, held_out = stratified_split(whole.labels, fraction, seed)
    return {"train": whole.take(rest), "test": whole.take(held_out)}


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
