"""Your own images, named in a table: a CSV file with a row for each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from cvkit.data.assembly import all_is_test, assemble, check_choice, check_fraction, set_aside
from cvkit.data.class_folders import folders_in, refuse_alike
from cvkit.data.images import IMAGE_ENDINGS, ImageData, ImageFiles, ImageSet
from cvkit.data.split_folders import SPLIT_WORDS
from cvkit.data.splits import naming
from cvkit.data.tables import Table, is_image
from cvkit.errors import DataError
from cvkit.registry import DATASETS
from cvkit.system.text import and_more, escape_controls, plural, suggest

# A column of these names is that of the splits if one of its fields is called as one; of others, if
# two splits are named, or all fields name one.
_SURE = ("split", "subset", "partition", "dataset")
# What columns are called, but for spaces, underscores and the like; the likeliest first.
_COLUMNS = {
    "image": ("image", "imagepath", "imagefile", "imagename", "filename", "filepath", "file",
              "path", "imageid", "img", "imgpath", "imgname", "id", "name"),
    "label": ("label", "labels", "class", "classname", "category", "target", "labelname",
              "categoryname", "classid", "labelid"),
    "split": (*_SURE, "set", "usage"),
    "group": ()}
_SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words} | {
    "dev": "val", "publictest": "val", "privatetest": "test"}  # the latter two of FER2013


@DATASETS.register()
def CSVDataset(path: str, root: str | None = None, image: str | int | None = None,
               label: str | int | None = None, split: str | int | None = None,
               group: str | int | None = None, val: str | None = None, test: str | None = None,
               test_fraction: float = 0.2,
               header: bool | Literal["auto"] = "auto", delimiter: str | None = None,
               extension: str = "", channels: int = 3, mean: list[float] | None = None,
               std: list[float] | None = None, skip_unreadable: bool = False,
               background: int | list[int] = 255, seed: int = 0) -> ImageData:
    """Your own images, named in a CSV or TSV file with a row for each.

    The classes are the labels, sorted, numbers by their size. A column says which images are of
    train, val and test, or further files do; else a part of every class is set aside as test. What
    is guessed is said in a line. The text is UTF-8.

    Args:
        path: the file; of the training images, if there is `val` or `test`.
        root: folder that names of images are relative to; that of the file by default.
        image, label: columns, by name or by number from 0; by default those that are called so, or
            alike (filename, class), or hold names of images.
        split: column of the splits; by default one called split, subset, partition, dataset, set or
            usage, with train, val (dev) and test in it; "" for none.
        group: column of what images have in common, a patient or a video: those of a group stay on
            one side wherever images are set aside, and in one of DATA.FOLDS.
        val, test: further files of the same form, for these splits.
        test_fraction: part of every class for test, where nothing says what is of which split.
        header: whether the first row holds the names of the columns; by default unless it names an
            image.
        delimiter: what separates fields; comma, semicolon, tab and bar are told by themselves.
        extension: ending of the files, ".jpg", where the names lack it.
        channels, mean, std, skip_unreadable, background, seed: see `ImageFolder`.

    Raises:
        DataError: no such file, column or image, or a row that says nothing, or not the same as
            another; with the line.
    """
    check_choice("channels", channels, (1, 3))
    if not all_is_test():
        check_fraction("test_fraction", test_fraction)
    files = {name: file for name, file in (("train", path), ("val", val), ("test", test))
             if file is not None}
    has_files = len(files) > 1
    if has_files and split not in (None, ""):
        raise ValueError("split names the column that says what is of val and test; leave it out, "
                         "or the files of these")
    given = {"image": image, "label": label, "split": "" if has_files else split,
             "group": "" if group is None else group}
    if header == "auto" and (isinstance(image, str) or isinstance(label, str)):
        header = True
    notes: list[str] = []
    images: list[_Image] = []
    for name, file in files.items():
        folder = Path(root or Path(file).parent)
        table = Table(file, header, delimiter, lambda field: is_image(field) or (
            bool(extension) and os.path.isfile(_file(folder, field, extension))))  # noqa: B023
        columns = _columns(table, given, notes)
        images += _images(table, columns, folder, extension, name if has_files else "")
    _refuse_missing(images, Path(root or Path(path).parent), skip_unreadable)
    images = _each_once(images, notes)
    classes = _classes(images, path)
    first_of: dict[str, str] = {}
    for name in classes:
        if (other := first_of.setdefault(name.lower(), name)) != name:
            notes.append(f"{other} and {name} are two classes, which differ in capitals alone")
    by_split: dict[str, list[_Image]] = {}
    for each in images:
        by_split.setdefault(each.split, []).append(each)
    numbers = {name: number for number, name in enumerate(classes)}
    splits = {name: ImageSet.of(
        ImageFiles([each.path for each in part], channels, skip_unreadable, background),
        [numbers[each.label] for each in part],
        None if group is None else [each.group for each in part])
        for name, part in by_split.items()}
    if "" in splits:
        first = {each.label: each.place for each in reversed(images)}
        with naming(classes):
            splits = set_aside(splits[""], test_fraction, seed,
                               [f"of {name} ({first[name]})" for name in classes])
    else:
        _refuse_incomplete(by_split, path)
        notes += _told_groups(by_split)
    if "test" not in splits:
        splits["test"] = splits.pop("val")
        notes.append("val is the test set, as there is no other")
    return assemble(classes, splits, mean, std, notes)


class _Image(NamedTuple):
    """What a row says: its place, "labels.csv:3", the file, the label, the split and the group.

    Of the last two "", where there are none.
    """

    place: str
    path: str
    label: str
    split: str
    group: str


# -- columns -----------------------------------------------------------------------------


def _columns(table: Table, given: Mapping[str, str | int | None],
             notes: list[str]) -> dict[str, int]:
    """Return the columns of image and label, and of split if there is one; note what is guessed."""
    found = {kind: table.column(name, kind) for kind, name in given.items()
             if name is not None and name != "" and kind != "group"}
    guessed = []
    for kind in _COLUMNS:
        column = _likely(table, kind, found) if given[kind] is None else None
        if column is not None:
            found[kind] = column
            guessed.append(kind)
    for kind in ("image", "label"):
        if kind not in found:
            found[kind] = _remaining(table, kind, found)
            guessed.append(kind)
    if given["group"] not in (None, ""):
        found["group"] = table.column(given["group"], "group")
    if len(set(found.values())) < len(found):
        *_, kind = (kind for kind in found if [*found.values()].count(found[kind]) > 1)
        raise DataError(f"column {table.called(found[kind])} of {table.path} cannot be the {kind} "
                        "and something else", where=kind)
    if given["split"] is None and "split" not in found:
        notes += _words_for_no_split(table, found)
    if guessed or table.form:
        form = f" ({table.form})" if table.form else ""
        roles = ", ".join(f"{table.called(found[kind])} is the {kind}"
                          for kind in _COLUMNS if kind in found)
        notes.append(f"columns of {table.path.name}{form}: {roles}")
    return found


def _likely(table: Table, kind: str, taken: Mapping[str, int]) -> int | None:
    """Return the column that is called as its kind is, or by whose first field one of files is."""
    first = table.rows[0].fields
    free = [column for column in range(table.width) if column not in taken.values()]
    if kind == "split":
        free = [column for column in free if _names_splits(table, column)]
    files = [column for column in free if kind == "image" and is_image(first[column])]
    called = {_plain(table.called(column)): column
              for column in reversed(files or free)}
    return next((called[word] for word in _COLUMNS[kind] if word in called),
                files[0] if files else None)


def _names_splits(table: Table, column: int) -> bool:
    named = [_SPLIT_OF.get(row.fields[column].lower()) for row in table.rows]
    if _plain(table.called(column)) in _SURE:
        return any(named)
    return all(named) or len({*named} - {None}) > 1


def _words_for_no_split(table: Table, taken: Mapping[str, int]) -> Iterator[str]:
    """Yield of each column that is called as one of the splits is why it is not taken for it."""
    for column, name in enumerate(table.names or ()):
        if _plain(name) in _COLUMNS["split"] and column not in taken.values():
            other = next(row.fields[column] for row in table.rows
                         if row.fields[column].lower() not in _SPLIT_OF)
            reason = f"none is called {escape_controls(other)!r}" if other else "a field is empty"
            yield (f"column {escape_controls(name)} of {table.path.name} is not taken for that of "
                   f"the splits: {reason}")


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _remaining(table: Table, kind: str, taken: Mapping[str, int]) -> int:
    """Return the column that is left, or the first of two that have no names."""
    free = [column for column in range(table.width) if column not in taken.values()]
    if len(free) == 1 or (table.names is None and table.width == 2):
        return free[0]
    names = [table.called(column) for column in range(table.width)]
    other = "" if table.names is None else " If these are no names: DATA.DATASET.header false."
    raise DataError(f"which column of {table.path} is the {kind}? There are {and_more(names, 12)}",
                    where=kind, hint=f"Say it by DATA.DATASET.{kind}.{other}")


# -- rows --------------------------------------------------------------------------------


def _images(table: Table, columns: Mapping[str, int], root: Path, extension: str,
            split: str) -> Iterator[_Image]:
    """Yield what the rows say; without a column of splits, all are of the one that is given."""
    for row in table.rows:
        fields = {kind: row.fields[column] for kind, column in columns.items()}
        for kind, field in fields.items():
            if not field or escape_controls(field) != field:
                what = f"{field!r} has control characters" if field else "it is empty"
                raise DataError(f"no {kind} in column {table.called(columns[kind])}: {what}",
                                where=row.place, hint="Fill it in, or remove the row.")
        if "split" in fields:
            split = _split_called(fields["split"], row.place)
        yield _Image(row.place, _file(root, fields["image"], extension), fields["label"], split,
                     fields.get("group", ""))


def _file(root: Path, name: str, extension: str) -> str:
    """Return the path of an image, whose name may lack its ending, or be written on Windows."""
    ending = f".{extension.lstrip('.')}" if extension else ""
    name = name if name.lower().endswith(ending.lower()) else name + ending
    path = str(root / name)
    if "\\" in name and not os.path.isfile(path):
        return str(root / name.replace("\\", "/"))
    return path


def _split_called(word: str, place: str) -> str:
    if word.lower() not in _SPLIT_OF:
        raise DataError(f"no split is called {word!r}", where=place,
                        hint=f"{suggest(word, _SPLIT_OF)}\n  If this is no column of splits: "
                             "DATA.DATASET.split \"''\".")
    return _SPLIT_OF[word.lower()]


def _each_once(images: Sequence[_Image], notes: list[str]) -> list[_Image]:
    """Return the images, each once, however it is named; refuse what is said of one in two ways."""
    seen: dict[str, _Image] = {}
    again = []
    for image in images:
        first = seen.setdefault(os.path.abspath(image.path), image)
        for kind in ("label", "split", "group"):
            here, there = getattr(image, kind), getattr(first, kind)
            if here != there:
                raise DataError(f"{image.path} has the {kind} {here}, and {there} in {first.place}",
                                where=image.place, hint="Remove one of the two rows.")
        again += [] if first is image else [image.place]
    if again:
        notes.append(f"{plural(len(again), 'row')} left out, whose file and label another row has "
                     f"({again[0]}{' and others' * (len(again) > 1)})")
    return list(seen.values())


def _refuse_missing(images: Sequence[_Image], root: Path, skip_unreadable: bool) -> None:
    """Refuse names of files that are not there, with what may be meant."""
    missing = [image for image in images if not os.path.isfile(image.path)]
    if not missing or (skip_unreadable and len(missing) < len(images)):
        return
    place, path = missing[0].place, missing[0].path
    endings = [ending for ending in ("", *IMAGE_ENDINGS) if os.path.isfile(path + ending)]
    name, folders = path, folders_in(root) if root.is_dir() else []
    # Windows knows no way from one drive to another.
    with suppress(ValueError):
        name = os.path.relpath(path, root)
    inside = root / path.lstrip("/")
    deeper = [root / folder for folder in folders for ending in ("", *IMAGE_ENDINGS)
              if os.path.isfile(root / folder / f"{name}{ending}")]
    hint = (f"{path}{endings[0]} is there: DATA.DATASET.extension {endings[0]}" if endings else
            f"{inside} is there: leave out the / before the name, which makes it a whole path"
            if inside.is_file() else
            f"One of that name is in {deeper[0]}: DATA.DATASET.root {deeper[0]}" if deeper else
            f"Names are relative to {root}, which DATA.DATASET.root sets, or whole paths. "
            "DATA.DATASET.skip_unreadable true leaves out what is not there.")
    more = f", nor {plural(len(missing) - 1, 'other')}" if len(missing) > 1 else ""
    raise DataError(f"no file {path} (looked in {Path.cwd()}){more}", where=place, hint=hint)


def _classes(images: Sequence[_Image], path: str) -> list[str]:
    names = sorted({image.label for image in images})
    if all(re.fullmatch(r"[-+]?\d+(\.\d+)?", name) for name in names):
        names.sort(key=float)
    refuse_alike(f"{path} has two classes", names)
    if len(names) < 2:
        raise DataError(f"{path} has a single class, {names[0]}",
                        hint="Classification needs two. Is DATA.DATASET.label another column?")
    return names


def _told_groups(by_split: Mapping[str, Sequence[_Image]]) -> list[str]:
    """Return a line if the table itself has images of a group in more than one split."""
    splits_of: dict[str, set[str]] = {}
    for image in (image for part in by_split.values() for image in part if image.group):
        splits_of.setdefault(image.group, set()).add(image.split)
    torn = sorted(group for group, splits in splits_of.items() if len(splits) > 1)
    return [f"{plural(len(torn), 'group')} have images in more than one split, as the table says: "
            f"{and_more(torn, 3)}"] if torn else []


def _refuse_incomplete(by_split: Mapping[str, Sequence[_Image]], path: str) -> None:
    """Refuse splits without those that are needed, and classes that cannot be learned."""
    needed = {"test or val": {"test", "val"}}
    if not all_is_test():
        needed["train"] = {"train"}
    for name, choices in needed.items():
        if not choices & set(by_split):
            raise DataError(f"no image of {path} is of {name}", where="split",
                            hint="DATA.DATASET.split \"''\" sets test_fraction of all images "
                                 "aside.")
    learned = {image.label for image in by_split.get("train", ())}
    for image in (image for part in by_split.values() for image in part):
        if image.label not in learned and not all_is_test():
            raise DataError(f"no training image has the label {image.label}", where=image.place,
                            hint="A class is learned from images in train.")
