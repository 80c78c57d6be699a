"""Which folders hold splits, by their names; and which seem to, and would be taken for classes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from cvkit.data.class_folders import ClassFolders, folders_in, leads_to, way_for_flat
from cvkit.errors import DataError
from cvkit.system.text import and_more, suggest

SPLIT_WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation"),
                "test": ("test", "testing")}
_ALL_SPLIT_WORDS = {word for words in SPLIT_WORDS.values() for word in words}
# Words that names of split folders have besides, as in training_set and images-test.
_WORDS_BESIDE = {"set", "data", "dataset", "split", "folder", "image", "images", "img", "imgs",
                 "picture", "pictures", "photo", "photos"}


def split_folders(folder: Path, given: dict[str, str], needs_train: bool) -> dict[str, str]:
    """Return the folder of each split that there is; none if `folder` holds classes at once.

    Args:
        given: names that the user gave, by split.
        needs_train: refuse folders of other splits without one of train.

    Raises:
        DataError: a folder is not there, is that of two splits, one of two for a split, or holds
            one folder in which the classes are.
    """
    names, found = folders_in(folder), {}
    free = [name for name in names if not any(leads_to(folder / name, folder / other)
                                              for other in given.values())]
    for split, words in SPLIT_WORDS.items():
        spelled = [name for name in free if name.lower() in words]
        if split in given:
            if not given[split] or not os.path.isdir(folder / given[split]):
                raise DataError(f"no folder {given[split]} in {folder}", where=split,
                                hint=suggest(given[split], names) or None)
            found[split] = given[split]
        elif len(spelled) > 1:
            raise DataError(f"{folder} has {spelled[0]}/ and {spelled[1]}/, which are both called "
                            f"as the {split} split is",
                            hint=f"Say which it is, DATA.DATASET.{split} {spelled[0]}, or make "
                                 "one folder of them.")
        elif spelled:
            found[split] = spelled[0]
    if len({os.path.realpath(folder / name) for name in found.values()}) < len(found):
        raise DataError(f"two splits are the folder {max(found.values())}: "
                        f"{', '.join(f'{split} {name}' for split, name in found.items())}")
    if not given and not any(folders_in(folder / name) for name in found.values()):
        # A class may be called train, among buses and cars.
        return {}
    others = [name for name in names if name not in found.values()]
    if needs_train and "train" not in found:
        raise DataError(f"{folder} has {', '.join(f'{name}/' for name in found.values())} but no "
                        "train/", hint=_say_which(folder, found, others))
    deeper = {split: _down_to_classes(folder, name) or name for split, name in found.items()}
    if list(found) == ["train"]:
        hint = _say_which(folder, found, others) if others else "Add one."
        raise DataError(f"{folder} has {found['train']}/ but neither test/ nor val/",
                        hint=f"{hint}\n  Or point root at {folder / deeper['train']} to have "
                             "test_fraction of it set aside. If it is a class: "
                             "DATA.DATASET.unsplit true.")
    for split, name in found.items():
        if deeper[split] != name:
            raise DataError(f"{folder / name} has a single class, {folders_in(folder / name)[0]}",
                            hint="Do its classes lie one folder deeper, as archives are unpacked? "
                                 f"{_say_which(folder, deeper)}")
    return found


def _down_to_classes(folder: Path, name: str) -> str | None:
    """Return where a split has its class folders, as train/train; None if it has none."""
    while len(inner := folders_in(folder / name)) == 1:
        name = os.path.join(name, inner[0])
    return name if inner else None


def _splits_in(name: str) -> list[str]:
    """Return the splits that a folder is called after: of training_set, train."""
    return [split for split, words in SPLIT_WORDS.items() if set(words) & set(_words_of(name))]


def _rest_of(name: str) -> tuple[str, ...]:
    """Return what a folder is called besides a split: of dogs_train, dogs."""
    return tuple(word for word in _words_of(name) if word not in _ALL_SPLIT_WORDS | _WORDS_BESIDE)


def _words_of(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    return [word for word in re.split(r"[\W_\d]+", spaced) if word]


def _splits_among(names: Sequence[str]) -> list[str]:
    """Return the names that are of splits, it seems, whatever lies beside."""
    # Two splits are dogs_train beside dogs_test, and train beside my_test, but not test_passed
    # beside test_failed.
    def are_two(name: str, other: str) -> bool:
        splits, others = _splits_in(name), _splits_in(other)
        return bool(splits and others) and splits != others and (
            _rest_of(name) == _rest_of(other) or {"train", "test"} <= {*splits, *others})

    return [name for name in names if any(are_two(name, other) for other in names)]


def no_splits_among(listing: ClassFolders) -> list[str]:
    """Refuse a root whose splits would become the classes, or would be trained on in them.

    Returns:
        A line for each class that is called as a split is.
    """
    folder, names = listing.folder, list(listing.classes)
    splits = _splits_among(names)
    if splits:
        problem, hint = _splits_as_classes(folder, splits)
        raise DataError(
            f"the folders {and_more(splits, 8)} of {folder} are splits, it seems, {problem}",
            hint=f"{hint}\n  If they are classes indeed: DATA.DATASET.unsplit true.")
    inner = [{path[len(str(folder / name)) + 1:].rpartition(os.sep)[0].split(os.sep)[0]
              for path in paths} for name, paths in listing.classes.items()]
    for name, part in zip(names, inner, strict=True):
        splits = _splits_among(sorted(part))
        if splits:
            hint = ("Splits come first, then classes: train/cat, test/cat. If all in it is of one "
                    "class: DATA.DATASET.unsplit true.")
            if _down_to_classes(folder / name, splits[0]):
                hint = f"Is root one folder too high? Then point it at {folder / name}"
            raise DataError(f"{folder / name} holds {and_more(splits, 8)}, which are splits",
                            hint=hint)
    below = sorted(inner[0])
    if len(below) > 1 and "" not in below and all(part == inner[0] for part in inner):
        raise DataError(
            f"the folders {and_more(names, 8)} of {folder} each hold the folders "
            f"{and_more(below, 8)}: classes of several parts, or splits of several classes",
            hint=f"{_say_which(folder, {}, names)}, if they are splits.\n  Of classes, "
                 "DATA.DATASET.unsplit true takes all images in them; those that are not to be "
                 f"learned (masks, say) have to lie outside {folder}.")
    return [f"{name}/ is taken for a class: it holds images, not class folders"
            for name in names if name.lower() in _ALL_SPLIT_WORDS]


def _splits_as_classes(folder: Path, splits: Sequence[str]) -> tuple[str, str]:
    """Return what splits that are not told hold, and how to tell them."""
    flat = {_splits_in(name)[0]: name for name in splits}
    if len(flat) < len(splits):
        meant = dict.fromkeys(f"{_splits_in(name)[0]}/{'_'.join(_rest_of(name)) or 'cat'}"
                              for name in splits)
        return "of several classes", ("Splits come first, then classes: "
                                      f"{and_more(list(meant), 8)}.")
    named = {split: path for split in SPLIT_WORDS
             if split in flat and (path := _down_to_classes(folder, flat[split]))}
    if not named:
        return "and hold images without class folders", way_for_flat(folder)
    what = f"of the classes {and_more(folders_in(folder / next(iter(named.values()))), 8)}"
    if list(named) == ["train"]:
        other = next(split for split in flat if split != "train")
        return what, way_without_labels(folder, {**named, other: flat[other]}, other)
    return what, _say_which(folder, named)


def _say_which(folder: Path, named: dict[str, str], others: Sequence[str] = ()) -> str:
    """Return how a config names the splits: some are known, `others` may be train or test."""
    def likely(split: str) -> str:
        called = [name for name in others if split in _splits_in(name)]
        return called[0] if called else others[0] if len(others) == 1 else "NAME"

    needed = ["train"] if {"val", "test"} & set(named) else ["train", "test"]
    names = {split: named.get(split) or likely(split)
             for split in SPLIT_WORDS if split in named or split in needed}
    words = "".join(f", {split}: {name}" for split, name in names.items())
    return f"Say which is which: {{NAME: ImageFolder, root: {folder}{words}}}"


def way_without_labels(folder: Path, names: dict[str, str], split: str) -> str:
    """Return how to train without a split other than train."""
    other = next((names[other] for other in names if other not in ("train", split)), None)
    instead = (f"DATA.DATASET.{split} {other} takes {other}/ instead" if other else
               f"point root at {folder / names['train']}, of which test_fraction is set aside")
    return f"If {names[split]}/ has no labels: {instead}."
