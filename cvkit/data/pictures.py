"""Finding image files that were named on the command line or to a predictor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from cvkit.data.class_folders import is_passed_over
from cvkit.data.images import IMAGE_ENDINGS
from cvkit.errors import DataError


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return image files: those that are named, and of folders all in them and below, sorted.

    What is named is taken whatever it is called; in folders, what ends as images do, and nothing
    that `ImageFolder` passes over by its name. No folder is looked into twice.

    Raises:
        DataError: no such file or folder, or a folder without images.
    """
    found: list[str] = []
    for each in paths:
        path = os.fspath(each)
        if os.path.isdir(path):
            inside = list(_below(path))
            if not inside:
                raise DataError(f"{path} holds no images",
                                hint=f"Those in it and below end in {' '.join(IMAGE_ENDINGS)}.")
            found += inside
        elif os.path.exists(path):
            found.append(path)
        else:
            raise DataError(f"no file or folder {path} (looked in {os.getcwd()})")
    return found


def _below(folder: str) -> Iterator[str]:
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if not is_passed_over(name, is_folder=True))
        paths = (os.path.join(place, name) for name in sorted(names)
                 if name.lower().endswith(IMAGE_ENDINGS) and not is_passed_over(name))
        # Reading a pipe would wait for ever. What a link leads to may be gone, which is to be told.
        yield from (path for path in paths if os.path.isfile(path) or not os.path.exists(path))
