"""A user's own files: importing what IMPORTS names, and telling whether it was edited."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvkit.errors import ConfigError
from cvkit.system import distributed
from cvkit.system.files import user_path
from cvkit.system.text import escape_controls


def import_user_code(names: Iterable[str], where: object = None, is_told: bool = True) -> None:
    """Import a config's `IMPORTS`: paths of Python files, or names of modules.

    The one door through which code comes that is not installed with cvkit. What is imported is
    printed, once; a run folder supplies none. Modules are looked for in the current folder as well,
    what a file imports itself beside that file.

    Args:
        names: of files and modules.
        where: they are named, for messages.
        is_told: False prints nothing, in a worker process of one that did.

    Raises:
        ConfigError: there is no such file or module, or it lies in a run folder.
    """
    for name in names:
        try:
            _import_file(name, is_told) if name.endswith(".py") else _import_module(name, is_told)
        except SyntaxError as error:
            raise ConfigError(f"{error.filename}:{error.lineno}: {error.msg}", where) from error
        except ConfigError as error:
            error.where = error.where or where
            raise
    _look_again(is_told)


def _import_file(name: str, is_told: bool) -> None:
    path = user_path(name)
    # This takes what no path can be as well.
    if not os.path.isfile(path):
        raise ConfigError(f"no file {path}",
                          hint="Paths in IMPORTS are relative to the config that lists them, on "
                               "the command line to where you are. A run folder holds no code: to "
                               "open a run, its files have to be where they were, or IMPORTS "
                               "\"[elsewhere/my.py]\" says where they are.")
    _refuse_run_folder(path)
    path = path.resolve()
    if str(path) in map(_file_of, [*sys.modules.values()]):
        return
    # As Python does for a script, but last.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    # Files beside it that import it, and it them, find it under the name that they call it by.
    beside = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
    is_found = beside is not None and beside.origin == str(path)
    own = f"cvkit_user_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = beside if is_found else importlib.util.spec_from_file_location(own, path)
    # Of a path that ends in .py there always is one.
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # By both: in the process that sent a pickle the other name may have been another file's.
    sys.modules.update({spec.name: module, own: module})
    try:
        with _told_and_noted(str(path), is_told):
            spec.loader.exec_module(module)
    except BaseException:
        for each in {spec.name, own}:
            del sys.modules[each]
        raise


def _import_module(name: str, is_told: bool) -> None:
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts) or parts[0] in (
            "__main__", *sys.stdlib_module_names):
        raise ConfigError(f"{name!r} cannot be a module of yours",
                          hint="IMPORTS takes modules, or paths that end in .py; names of Python's "
                               "own modules are taken.")
    if name in sys.modules:
        return
    here = Path.cwd()
    inside = run_folder_of(here)
    if inside is None and "" not in sys.path and str(here) not in sys.path:
        sys.path.append(str(here))
    wholes = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    # a.b is looked for by importing a, so where a lies is seen to first.
    for whole in wholes:
        if whole in sys.modules:
            continue
        try:
            spec = importlib.util.find_spec(whole)
        except ModuleNotFoundError as error:
            if error.name not in wholes:
                raise
            spec = None
        if spec is None:
            hint = ("IMPORTS takes modules, or paths that end in .py." if inside is None else
                    f"None is looked for in {inside}: run folders supply no code.")
            raise ConfigError(f"no module named {name!r}", hint=hint)
        for place in filter(None, (spec.origin, *(spec.submodule_search_locations or ()))):
            _refuse_run_folder(Path(place))
        with _told_and_noted(spec.origin or whole, is_told):
            importlib.import_module(whole)


@dataclass
class _Imported:
    """A file as it was when it was imported.

    Attributes:
        module: its name.
        spec: what it was loaded by, which another import replaces.
        content: a checksum, by which it is noticed that the file was edited.
        told: that of an edit which was told.
    """

    module: str
    spec: object
    content: str
    told: str = ""


_code: dict[str, _Imported] = {}


@contextlib.contextmanager
def _told_and_noted(origin: str, is_told: bool) -> Iterator[None]:
    """Say that a file is imported, and note it and what it imports from its folder."""
    if is_told and distributed.is_main():
        print(f"imported   {escape_controls(origin)}")
    before = set(sys.modules)
    yield
    folder = os.path.join(os.path.dirname(os.path.abspath(origin)), "")
    for name, module in [*sys.modules.items()]:
        if name in before and _file_of(module) != origin:
            continue
        path = os.path.abspath(_file_of(module))
        if path.startswith(folder) and path.endswith(".py") and os.path.isfile(path):
            _code[path] = _Imported(name, module.__spec__, _checksum(path))


def _checksum(path: str) -> str:
    return hashlib.sha1(Path(path).read_bytes()).hexdigest()


def _look_again(is_told: bool) -> None:
    """Say which files were edited since they were imported, unless they were reloaded."""
    for path, file in _code.items():
        content = file.content
        # It may be gone, or out of reach.
        with contextlib.suppress(OSError):
            content = _checksum(path)
        spec = getattr(sys.modules.get(file.module), "__spec__", None)
        if spec is not file.spec:
            file.spec, file.content = spec, content
        elif is_told and content not in (file.content, file.told):
            file.told = content
            if distributed.is_main():
                name = escape_controls(os.path.basename(path))
                print(f"note       {name} was edited since it was imported; it counts as it was "
                      "then, until Python is started anew")


def _file_of(module: Any) -> str:
    """Return the file of a module; nothing is asked of one that loads what it is asked for."""
    return getattr(module, "__dict__", {}).get("__file__") or ""


def user_code() -> dict[str, str]:
    """Return what tells the files that were imported, by path, from edited ones."""
    return {path: file.content for path, file in _code.items()}


def edited_since(code: Mapping[str, str]) -> list[str]:
    """Return the names of imported files whose content is another than `user_code` said."""
    return sorted(os.path.basename(path) for path, file in _code.items()
                  if code.get(path, file.content) != file.content)


# These folders were opened as runs, so they supply no code, whatever they hold.
_opened: set[Path] = set()


def take_no_code_from(folder: Path) -> None:
    """Let no code be imported from a folder from now on."""
    _opened.add(folder.resolve())


def run_folder_of(path: Path) -> Path | None:
    """Return the run folder that a path lies in, as it is written or as its links lead, or None."""
    for start in (Path(os.path.abspath(path)), path.resolve()):
        for folder in (start, *start.parents):
            is_like_one = (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()
            if folder in _opened or is_like_one:
                return folder
    return None


def _refuse_run_folder(path: Path) -> None:
    folder = run_folder_of(path)
    if folder is not None:
        raise ConfigError(f"{path} lies in the run folder {folder}, which supplies no code",
                          hint="Read the file; if you trust it, copy it elsewhere and name that "
                               "copy in IMPORTS.")
