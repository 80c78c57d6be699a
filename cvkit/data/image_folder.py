"""The data sets. Each function returns an `ImageData`."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from cvkit.data.datasets import check_choice, check_fraction
from cvkit.data.images import IMAGE_ENDINGS, ImageData, ImageFiles, ImageSet
from cvkit.data.scan import scan_files
from cvkit.data.splits import stratified_split
from cvkit.errors import DataError
from cvkit.registry import DATASETS
from cvkit.system.text import suggest, visible

_SPLIT_WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation"),
                "test": ("test", "testing")}
_WORDS_BESIDE = {"set", "data", "dataset", "split", "folder", "image", "images", "img", "imgs",
                 "picture", "pictures", "photo", "photos"}  # training_set, images-test


# Of file managers, archives and notebooks; folders that begin with a dot or with __ are as well.
_SYSTEM_NAMES = ("@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
                 "ehthumbs.db", "desktop.ini")
_LAYOUT = f"Images lie in one folder per class and end in {' '.join(IMAGE_ENDINGS)}."
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
    given = {"train": train, "val": val, "test": test}
    if unsplit and any(given.values()):
        raise ValueError("unsplit says that root has no splits; leave out train, val and test")
    names = {} if unsplit else _split_folders(folder, given)
    notes = []
    if names:
        _refuse_deeper_classes(folder, names)
        listings = {split: _Listing(folder / name, _way_without_labels(folder, names, split))
                    for split, name in names.items()}
        first = next(iter(listings.values()))  # train, but for an evaluation
        classes = tuple(first.classes)
        for listing in listings.values():
            _refuse_other_classes(listing, first)
        splits = {split: _image_set(listing.classes, channels, skip_unreadable, background)
                  for split, listing in listings.items()}
        if "test" not in splits:
            splits["test"] = splits.pop("val")
            notes.append(f"{names['val']}/ is the test set, as there is no other")
        beside = [name for name in _folders_in(folder)
                  if not any(_leads_to(folder / name, folder / split) for split in names.values())]
        if beside:
            notes.append(f"ignored beside {', '.join(f'{name}/' for name in names.values())}: "
                         f"{_first([f'{name}/' for name in beside])}")
    else:
        listings = {"": _Listing(folder)}
        classes = tuple(listings[""].classes)
        if not unsplit:
            _refuse_splits_as_classes(listings[""])
            notes += [f"{name}/ is taken for a class: it holds images, not class folders"
                      for name in classes if any(name.lower() in words
                                                 for words in _SPLIT_WORDS.values())]
        whole = _image_set(listings[""].classes, channels, skip_unreadable, background)
        few = [name for name in classes if len(listings[""].classes[name]) < 2]
        if _all_is_test.get():
            splits = {"test": whole}
        elif few:
            raise DataError(f"one image only in {folder / few[0]}",
                            hint="To be split into train and test, a class needs two at least.")
        else:
            rest, held_out = stratified_split(whole.labels, test_fraction, seed)
            splits = {"train": whole.take(rest), "test": whole.take(held_out)}
    facts = {name: scan_files(split.images.take(split.index), f"Reading {name} images")
             for name, split in splits.items()}
    left_out = {path for fact in facts.values() for path in fact["unreadable"]}
    if left_out:
        readable = {name: split.take(np.flatnonzero(
            ~np.isin(split.images.paths[split.index], list(left_out))))
            for name, split in splits.items()}
        for name, split in splits.items():
            _refuse_lost_classes(name, split, readable[name], classes)
        splits = readable
    notes += filter(None, (listing.note for listing in listings.values()))
    transparent = sum(fact["transparent"] for fact in facts.values())
    if transparent:
        notes.append(f"{transparent:,} image{'s' * (transparent > 1)} with transparent pixels, "
                     f"laid on background {str(background).strip('[()]')}")
    sizes = {size for fact in facts.values() for size in fact["sizes"]}
    size = tuple(int(side) for side in sizes.pop().split("x")) if len(sizes) == 1 else None
    first = "train" if "train" in splits else "test"
    return ImageData(classes, splits[first], splits["test"], channels, size,
                     tuple(mean or facts[first]["mean"]), tuple(std or facts[first]["std"]),
                     splits.get("val"), tuple(sorted(left_out)),
                     tuple(visible(note) for note in notes))


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


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def _folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without those of the system."""
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir()
                      and not _is_hidden(path.name) and not path.name.startswith("__"))
    except OSError as error:
        raise _unreadable_folder(folder, error) from None


def _unreadable_folder(folder: object, error: OSError) -> DataError:
    return DataError(f"cannot read the folder {folder}: {error.strerror or error}")


def _first(names: Sequence[str], most: int = 8) -> str:
    """Return names in a line, of many the first ones."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _split_folders(folder: Path, given: dict[str, str | None]) -> dict[str, str]:
    """Return the folder of each split that there is; none if `folder` holds classes at once.

    Args:
        given: names that the user gave, by split.

    Raises:
        DataError: a given folder is not there, a split has two folders, or there is no train, or
            train alone.
    """
    names, found = _folders_in(folder), {}
    for split, words in _SPLIT_WORDS.items():
        spelled = [name for name in names
                   if name.lower() in words and not any(
                       _leads_to(folder / name, folder / other)
                       for other in filter(None, given.values()))]
        if given[split] is not None:
            if not given[split] or not os.path.isdir(folder / given[split]):
                raise DataError(f"no folder {given[split]} in {folder}", where=split,
                                hint=suggest(given[split], names) or None)
            spelled = [given[split]]
        if len(spelled) > 1:
            raise DataError(f"{folder} has {' and '.join(f'{name}/' for name in spelled)}, which "
                            f"are both called as the {split} split is",
                            hint=f"Say which it is, DATA.DATASET.{split} {spelled[0]}, or make one "
                                 "folder of them.")
        if spelled:
            found[split] = spelled[0]
    if len({os.path.realpath(folder / name) for name in found.values()}) < len(found):
        raise DataError(f"two splits are the folder {max(found.values())}: "
                        f"{', '.join(f'{split} {name}' for split, name in found.items())}")
    if not any(given.values()) and not any(_folders_in(folder / name) for name in found.values()):
        return {}  # a class may be called train, among buses and cars
    others = [name for name in names if name not in found.values()]
    if "train" not in found and not _all_is_test.get():
        raise DataError(f"{folder} has {_first([f'{name}/' for name in found.values()])} but no "
                        "train/", hint=_say_which("train", others))
    if list(found) == ["train"]:
        hint = _say_which("test", others) if others else "Add one."
        classes = folder / (_down_to_classes(folder, found["train"]) or found["train"])
        raise DataError(f"{folder} has {found['train']}/ but neither test/ nor val/",
                        hint=f"{hint} Or point root at {classes} to have test_fraction of it set "
                             "aside. If it is a class: DATA.DATASET.unsplit true.")
    return found


def _leads_to(outer: Path, path: Path) -> bool:
    """Tell whether a path is that of a folder or of one in it, however both are written."""
    path = Path(os.path.abspath(path))
    return os.path.realpath(outer) in map(os.path.realpath, (path, *path.parents))


def _down_to_classes(folder: Path, name: str) -> str | None:
    """Return where a split has its class folders, as train/train; None if it has none."""
    while len(inner := _folders_in(folder / name)) == 1:
        name = os.path.join(name, inner[0])
    return name if inner else None


def _refuse_deeper_classes(folder: Path, names: dict[str, str]) -> None:
    """Refuse splits whose class folders lie one folder deeper, as archives are unpacked."""
    deeper = {split: _down_to_classes(folder, name) or name for split, name in names.items()}
    classes = set(_folders_in(folder / next(iter(deeper.values()))))
    named = {split: name if classes & set(_folders_in(folder / name)) else names[split]
             for split, name in deeper.items()}
    if len(classes) > 1 and named != names:
        first = next(folder / name for split, name in names.items() if named[split] != name)
        raise DataError(f"{first} has a single class, {_folders_in(first)[0]}",
                        hint="Do its classes lie one folder deeper? Then say so: "
                             f"{_node(folder, named)}")


def _way_without_labels(folder: Path, names: dict[str, str], split: str) -> str | None:
    """Return how to train without a split, but for that of the training images."""
    if split == next(iter(names)):  # train, but for an evaluation
        return None
    other = next((names[other] for other in names if other not in ("train", split)), None)
    instead = (f"DATA.DATASET.{split} {other} takes {other}/ instead" if other else
               f"point root at {folder / names['train']}, of which test_fraction is set aside")
    return f"If {names[split]}/ has no labels: {instead}."


def _node(folder: Path, names: dict[str, str]) -> str:
    """Return the data set with the names of its splits, as it is written in a config."""
    return "".join([f"{{NAME: ImageFolder, root: {folder}",
                    *(f", {split}: {name}" for split, name in names.items()), "}"])


def _say_which(split: str, names: Sequence[str]) -> str:
    """Return how to tell which folder is a split."""
    likely = [name for name in names if split in _splits_in(name)] or list(names) or ["NAME"]
    return f"Say which folder it is: DATA.DATASET.{split} {likely[0]}."


def _words_of(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    return [word for word in re.split(r"[\W_\d]+", spaced) if word]


def _splits_in(name: str) -> list[str]:
    """Return the splits that a folder is called after: of training_set, train."""
    return [split for split, words in _SPLIT_WORDS.items() if set(words) & set(_words_of(name))]


def _rest_of(name: str) -> tuple[str, ...]:
    """Return what a folder is called besides a split: of dogs_train, dogs."""
    known = {word for words in _SPLIT_WORDS.values() for word in words} | _WORDS_BESIDE
    return tuple(word for word in _words_of(name) if word not in known)


def _splits_among(names: Sequence[str]) -> list[str]:
    """Return the names that are of splits, it seems, whatever lies beside.

    Such are dogs_train beside dogs_test, and train beside my_test; not test_passed beside
    test_failed.
    """
    def are_two(name: str, other: str) -> bool:
        splits, others = _splits_in(name), _splits_in(other)
        return bool(splits and others) and splits != others and (
            _rest_of(name) == _rest_of(other) or {"train", "test"} <= {*splits, *others})

    return [name for name in names if any(are_two(name, other) for other in names)]


_IF_CLASSES = "If they are classes indeed: DATA.DATASET.unsplit true."


def _refuse_splits_as_classes(listing: _Listing) -> None:
    """Refuse a root whose splits would become the classes, or would be trained on in them."""
    folder, names = listing.folder, list(listing.classes)
    splits = _splits_among(names)
    if splits:
        problem, hint = _splits_as_classes(folder, splits)
        raise DataError(problem, hint=f"{hint}\n  {_IF_CLASSES}")
    inner = [{path[len(str(folder / name)) + 1:].rpartition(os.sep)[0].split(os.sep)[0]
              for path in paths} for name, paths in listing.classes.items()]
    for name, part in zip(names, inner, strict=True):
        splits = _splits_among(sorted(part))
        if splits:
            hint = ("Splits come first, then classes: train/cat, test/cat. If all in it is of one "
                    "class: DATA.DATASET.unsplit true.")
            if _down_to_classes(folder / name, splits[0]):
                hint = f"Is root one folder too high? Then point it at {folder / name}"
            raise DataError(f"{folder / name} holds {_first(splits)}, which are splits", hint=hint)
    below = sorted(inner[0])
    if len(below) > 1 and "" not in below and all(part == inner[0] for part in inner):
        train = next((name for name in names if "train" in _splits_in(name)), "NAME")
        test = next((name for name in names if "test" in _splits_in(name)), "NAME")
        raise DataError(
            f"the folders {_first(names)} of {folder} each hold the folders {_first(below)}: "
            "classes of several parts, or splits of several classes",
            hint=f"For splits, say which is which: "
                 f"{_node(folder, {'train': train, 'test': test})}\n  For classes, "
                 "DATA.DATASET.unsplit true takes all images in them; those that are not to be "
                 f"learned (masks, say) have to lie outside {folder}.")


def _splits_as_classes(folder: Path, splits: Sequence[str]) -> tuple[str, str]:
    """Return what is wrong with splits that are not told, and how to tell them."""
    deeper = {name: _down_to_classes(folder, name) for name in splits}
    labelled = [name for name in splits if deeper[name]]
    what = f"the folders {_first(splits)} of {folder} are splits, it seems"
    split_of = {name: _splits_in(name)[0] for name in splits}
    if max(Counter(split_of.values()).values()) > 1:
        meant = [f"{split_of[name]}/{'_'.join(_rest_of(name)) or 'cat'}" for name in splits]
        return f"{what}, of several classes", ("Splits come first, then classes: "
                                               f"{_first(list(dict.fromkeys(meant)))}.")
    if not labelled:
        return f"{what}, and hold images without class folders", _way_for_flat(folder)
    what += f", of the classes {_first(_folders_in(folder / deeper[labelled[0]]))}"
    named = {split: deeper[name] for split in _SPLIT_WORDS for name in labelled
             if split == split_of[name]}
    if len(named) == 1 and "train" in named:
        other = next(name for name in splits if name not in labelled)
        return what, (f"If {other}/ has no labels: point root at {folder / named['train']}, of "
                      "which test_fraction is set aside.")
    return what, ("Say which is which: "
                  f"{_node(folder, named if 'train' in named else {'train': 'NAME', **named})}")


def _refuse_other_classes(listing: _Listing, train: _Listing) -> None:
    """Refuse a split whose classes are not those of the training images."""
    if list(listing.classes) == list(train.classes):
        return
    differ = sorted(set(listing.classes) ^ set(train.classes))
    hint = "Every split needs a folder, with images, for every class."
    if len(listing.classes) == 1 and not set(listing.classes) & set(train.classes):
        hint = listing.way or hint  # as test/unknown
    alike = _alike(differ)
    if alike:
        hint = _words_for_alike(alike)
    elif len({name.lower() for name in differ}) < len(differ):
        hint = f"Some differ in upper and lower case alone. {hint}"
    raise DataError(f"{listing.folder} and {train.folder} have different classes: "
                    f"{_first(differ)}", hint=hint)


def _refuse_lost_classes(name: str, split: ImageSet, readable: ImageSet,
                         classes: Sequence[str]) -> None:
    """Refuse a split with a class of which no image can be read."""
    lost = np.setdiff1d(split.labels, readable.labels)
    if lost.size:
        paths = [split.name(place) for place in np.flatnonzero(split.labels == lost[0])]
        raise DataError(f"none of the {len(paths):,} {name} images of {classes[lost[0]]} can be "
                        f"read, among them {paths[0]}",
                        hint="Replace or remove them. Without any of that class, take it out of "
                             "all splits.")


def _alike(names: Iterable[str]) -> list[str]:
    """Return two names that look the same, as their accents are written in two ways, or none."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            return [other, name]
    return []


def _words_for_alike(names: list[str]) -> str:
    return (f"{' and '.join(names)} look the same and are not: {' and '.join(map(ascii, names))}. "
            "Accents can be written in two ways (NFC and NFD). Rename one of the folders as the "
            "other is called.")


def _way_for_flat(folder: Path) -> str:
    """Return what to do with images that lie in no class folders."""
    tables = [path.name for place in (folder, folder.parent) for path in sorted(place.glob("*"))
              if path.suffix.lower() in (".csv", ".tsv", ".json") and path.is_file()]
    labels = f"{_first(tables, 3)} has" if tables else "a table or their names have"
    return (f"Images lie in one folder per class; is root one folder too low? If {labels} the "
            "labels, an own data set of 10 lines reads them: docs/add_a_dataset.md")


class _Listing:
    """The class folders of a folder, and the images in them.

    Args:
        folder: to list.
        way: how to go on without it, of a split that training can do without. Whether it has the
            classes of the training images, a single one or none, is told by comparing them.

    Attributes:
        folder: that was listed.
        classes: image paths by class, both in alphabetical order.
        others: how many files are ignored, by kind.

    Raises:
        DataError: no classes, a class without images, or names that cannot be.
    """

    def __init__(self, folder: Path, way: str | None = None):
        self.folder, self.way, self.others = folder, way, Counter()
        self._seen: dict[str, tuple[str, str]] = {}  # real path: the class and the path it had
        names = _folders_in(folder)
        odd = [name for name in names if visible(name) != name]
        if odd:
            raise DataError(f"{folder / odd[0]} has control characters in its name",
                            hint="Rename it: a class is called as its folder, and that on one "
                                 "line.")
        above = (os.path.realpath(folder),)
        loose = self._images_in(str(folder), None, above)
        if not names and loose:
            raise DataError(f"{folder} has {len(loose):,} image{'s' * (len(loose) > 1)} and no "
                            "class folders", hint=way or _way_for_flat(folder))
        self.others["in no class folder"] += len(loose)
        self.classes: dict[str, list[str]] = {}
        for name in names:
            before = self.others.copy()
            self.classes[name] = sorted(self._images_in(str(folder / name), name, above))
            if not self.classes[name]:
                raise self._no_images(folder / name, self.others - before)
        if not names:
            raise DataError(f"{folder} has no class folders", hint=way or _LAYOUT)
        alike = _alike(names)
        if alike:
            raise DataError(f"{folder} has two classes {alike[0]}", hint=_words_for_alike(alike))
        if len(names) < 2 and not way:
            inner = folder / names[0]
            hint = (f"Is root one folder too high? Then point it at {inner}"
                    if len(_folders_in(inner)) > 1 else _way_for_flat(inner))
            raise DataError(f"{folder} has a single class, {names[0]}",
                            hint=f"Classification needs two. {hint}")

    @property
    def note(self) -> str | None:
        """What was ignored, in a line, or None."""
        kinds = [f"{kind} {count:,}" for kind, count in (+self.others).most_common()]
        total = sum(self.others.values())
        return (f"{total:,} other file{'s' * (total > 1)} ignored in {self.folder.name or '.'}/ "
                f"({_first(kinds, 6)})") if total else None

    @staticmethod
    def _no_images(folder: Path, others: Counter) -> DataError:
        kinds = _first([f"{kind} {count:,}" for kind, count in others.most_common()], 6)
        what = f"{folder} holds no images{f', but other files ({kinds})' if kinds else ''}"
        return DataError(what, hint=_LAYOUT)

    def _images_in(self, folder: str, name: str | None, above: tuple[str, ...]) -> list[str]:
        """Return the image files in a folder and, of a class, in those below; count the others.

        Args:
            name: the class; None looks at no folders.
            above: the real paths of the folders that were gone through to get here.
        """
        if name is not None:
            real = os.path.realpath(folder)
            if any(path == real or path.startswith(os.path.join(real, "")) for path in above):
                raise DataError(f"{folder} is a link to {real}, in which it lies: a loop",
                                hint="Remove the link.")
            owner, path = self._seen.setdefault(real, (name, folder))
            if owner != name:
                raise DataError(f"{folder} and {path} are the same folder: its images would be of "
                                "two classes", hint="Remove the link that leads there.")
            if path != folder:
                return []  # linked twice, taken once
            above = (*above, real)
        try:
            with os.scandir(folder) as found:
                # What links lead to comes last: where it lies in the class it has its own name.
                entries = sorted(found, key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            raise _unreadable_folder(folder, error) from None
        paths = []
        for entry in entries:
            ending = os.path.splitext(entry.name)[1].lower()
            is_link = entry.is_symlink()
            if os.path.isdir(entry.path) if is_link else entry.is_dir():
                if _is_hidden(entry.name) or entry.name.startswith("__"):
                    self.others[f"in {entry.name}"] += sum(
                        os.path.splitext(file)[1].lower() in IMAGE_ENDINGS
                        for _, _, files in os.walk(entry.path) for file in files)
                elif name is not None:
                    paths += self._images_in(entry.path, name, above)
            elif _is_hidden(entry.name):  # which a folder may have many of: .DS_Store
                self.others["hidden"] += ending in IMAGE_ENDINGS
            elif not (os.path.isfile(entry.path) if is_link else entry.is_file()):
                self.others["broken link" if is_link else "no file"] += 1
            elif ending in IMAGE_ENDINGS:
                paths.append(entry.path)
            else:
                self.others[ending[:12] or "no ending"] += 1
        return paths


def _image_set(listing: dict[str, list[str]], channels: int, skip_unreadable: bool,
               background: int | list[int]) -> ImageSet:
    labels = [number for number, paths in enumerate(listing.values()) for _ in paths]
    paths = [path for paths in listing.values() for path in paths]
    return ImageSet.of(ImageFiles(paths, channels, skip_unreadable, background), labels)
