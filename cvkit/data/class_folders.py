"""The images of a folder of class folders, by class; and what is no such folder."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cvkit.data.images import IMAGE_ENDINGS, portable
from cvkit.data.tables import TABLE_ENDINGS
from cvkit.errors import DataError
from cvkit.system.text import and_more, escape_controls, plural

# File managers and archives leave these behind. Names that begin with a dot, and folders that begin
# with __, are passed over as well.
_SYSTEM_NAMES = ("@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
                 "ehthumbs.db", "desktop.ini")
_LAYOUT = f"Images lie in one folder per class and end in {' '.join(IMAGE_ENDINGS)}."


class ClassFolders:
    """The class folders of a folder, and the images in them.

    Args:
        folder: to list.
        way: how to go on without it, of a split that training can do without.

    Attributes:
        classes: image paths by class, both in alphabetical order, on every system in the same.
        others: how many files are ignored, by kind.

    Raises:
        DataError: no classes, a class without images, or names that cannot be.
    """

    def __init__(self, folder: Path, way: str | None = None):
        self.folder, self.way = folder, way
        self.others: Counter[str] = Counter()
        # For each real path, the class that the folder is in and the path it was found by.
        self._seen: dict[str, tuple[str, str]] = {}
        names = folders_in(folder)
        odd = [name for name in names if escape_controls(name) != name]
        if odd:
            raise DataError(f"{folder / odd[0]} has control characters in its name",
                            hint="Rename it: a class is called as its folder, and that on one "
                                 "line.")
        loose = self._images_in(str(folder), None)
        if not names:
            what = f"{plural(len(loose), 'image')} and no" if loose else "no"
            raise DataError(f"{folder} has {what} class folders",
                            hint=way or (way_for_flat(folder) if loose else _LAYOUT))
        self.others["in no class folder"] += len(loose)
        self.classes: dict[str, list[str]] = {}
        for name in names:
            before = self.others.copy()
            self.classes[name] = sorted(self._images_in(str(folder / name), name), key=portable)
            if not self.classes[name]:
                kinds = _kinds(self.others - before)
                raise DataError(f"{folder / name} holds no images"
                                f"{f', but other files ({kinds})' if kinds else ''}", hint=_LAYOUT)
        refuse_alike(f"{folder} has two classes", names)
        # Whether a split that is not needed has too few is told by comparing it with train.
        if len(names) < 2 and not way:
            inner = folder / names[0]
            hint = (f"Is root one folder too high? Then point it at {inner}"
                    if len(folders_in(inner)) > 1 else way_for_flat(inner))
            raise DataError(f"{folder} has a single class, {names[0]}",
                            hint=f"Classification needs two. {hint}")

    @property
    def note(self) -> str | None:
        """What was ignored, in a line, or None."""
        total = sum(self.others.values())
        return (f"{plural(total, 'other file')} ignored in {self.folder.name or '.'}/ "
                f"({_kinds(self.others)})") if total else None

    def _images_in(self, folder: str, name: str | None) -> list[str]:
        """Return the image files in a folder and, of a class, in those below; count the others."""
        if name is not None:
            real = os.path.realpath(folder)
            if os.path.islink(folder) and leads_to(real, os.path.dirname(folder)):
                raise DataError(f"{folder} is a link to {real}, in which it lies: a loop",
                                hint="Remove the link.")
            owner, path = self._seen.setdefault(real, (name, folder))
            if owner != name:
                raise DataError(f"{folder} and {path} are the same folder: its images would be of "
                                "two classes", hint="Remove the link that leads there.")
            if path != folder:
                # A folder that is linked twice is taken once.
                return []
        paths = []
        for entry in _entries(folder):
            kind = _kind(entry)
            if kind == "image":
                paths.append(entry.path)
            elif kind == "folder":
                paths += self._images_in(entry.path, name) if name is not None else []
            elif kind == "hidden folder":
                self.others[f"in {entry.name}"] += sum(
                    _is_image(file) for _, _, files in os.walk(entry.path) for file in files)
            elif kind == "hidden":
                # Of many small files of the system, images alone are worth telling.
                self.others[kind] += _is_image(entry.name)
            else:
                self.others[kind] += 1
        return paths


def _kinds(others: Counter) -> str:
    return and_more([f"{kind} {count:,}" for kind, count in (+others).most_common()], 6)


def refuse_other_classes(first: ClassFolders, *others: ClassFolders) -> None:
    """Refuse splits whose classes are not those of the first, which is train, if there is one."""
    for listing in others:
        differ = sorted(set(listing.classes) ^ set(first.classes))
        if not differ:
            continue
        what = f"{listing.folder} and {first.folder} have different classes:"
        refuse_alike(what, differ)
        hint = "Every split needs a folder, with images, for every class."
        if len(listing.classes) == 1 and not set(listing.classes) & set(first.classes):
            # This is how test/unknown looks, whose images have no labels.
            hint = listing.way or hint
        elif len({name.lower() for name in differ}) < len(differ):
            hint = f"Some differ in upper and lower case alone. {hint}"
        raise DataError(f"{what} {and_more(differ, 8)}", hint=hint)


def refuse_alike(what: str, names: Sequence[str]) -> None:
    """Refuse two names that look the same, as their accents are written in two ways."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise DataError(f"{what} {other}", hint=(
                f"{other} and {name} look the same and are not: {other!a} and {name!a}. Accents "
                "can be written in two ways (NFC and NFD). Rename one as the other is called."))


def _entries(folder: str | Path) -> list[os.DirEntry]:
    """Return what lies in a folder, links last: what they lead to may have its own name there."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}") from None


def _kind(entry: os.DirEntry) -> str:
    """Return what lies there: "folder", "image", or what is passed over."""
    name = entry.name
    is_hidden = is_passed_over(name)
    try:
        if entry.is_dir():
            return "hidden folder" if is_passed_over(name, is_folder=True) else "folder"
        is_file = entry.is_file()
    except OSError:
        # A link that leads to itself is neither.
        is_file = False
    if is_hidden:
        return "hidden"
    if not is_file:
        return "broken link" if entry.is_symlink() else "no file"
    return "image" if _is_image(name) else os.path.splitext(name)[1].lower()[:12] or "no ending"


def is_passed_over(name: str, is_folder: bool = False) -> bool:
    """Tell whether what is called so was left behind by a system, not put there as an image."""
    return (name.startswith(".") or name.lower() in _SYSTEM_NAMES
            or (is_folder and name.startswith("__")))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_ENDINGS


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without those of the system."""
    return sorted(entry.name for entry in _entries(folder) if _kind(entry) == "folder")


def leads_to(outer: str | Path, path: str | Path) -> bool:
    """Tell whether a path is that of a folder or of one in it, however both are written."""
    outer = os.path.join(os.path.realpath(outer), "")
    path = Path(os.path.abspath(path))
    return any(os.path.join(os.path.realpath(each), "").startswith(outer)
               for each in (path, *path.parents))


def way_for_flat(folder: Path) -> str:
    """Return what to do with images that lie in no class folders."""
    tables = [path for place in (folder, folder.parent) for path in sorted(place.glob("*"))
              if path.suffix.lower() in TABLE_ENDINGS and path.is_file()]
    node = f"{{NAME: CSVDataset, path: {tables[0] if tables else 'labels.csv'}"
    if not tables or tables[0].parent != folder:
        node += f", root: {folder}"
    return ("Images lie in one folder per class; is root one folder too low? If "
            f"{tables[0].name if tables else 'a table'} has the labels: {node}}}. Of other labels "
            "see docs/add_a_dataset.md")
