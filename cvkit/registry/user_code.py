"""A user's own files: importing what IMPORTS names, and telling whether it was edited."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cvkit.errors import ConfigError
from cvkit.system import distributed
from cvkit.system.files import user_path
from cvkit.system.text import visible


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
        if name.endswith(".py"):
            _import_file(user_path(name), where, is_told)
        else:
            _import_module(name, where, is_told)


_code: dict[str, str] = {}  # files that were imported, and what tells their content from others


def user_code() -> dict[str, str]:
    """Return what tells the files that were imported, by path, from edited ones."""
    return dict(_code)


def edited_since(code: Mapping[str, str]) -> list[str]:
    """Return the names of imported files whose content is another than `user_code` said."""
    return sorted(os.path.basename(path) for path, content in _code.items()
                  if code.get(path, content) != content)


def _file_of(module: Any) -> str:
    """Return the file of a module; nothing is asked of one that loads what it is asked for."""
    return getattr(module, "__dict__", {}).get("__file__") or ""


@contextlib.contextmanager
def _code_noted(origin: str | None) -> Iterator[None]:
    """Note a file that is imported meanwhile, and what it imports from its folder."""
    before = set(sys.modules)
    yield
    if not origin or not os.path.isfile(origin):
        return
    folder = os.path.join(os.path.dirname(os.path.abspath(origin)), "")
    files = {origin, *(_file_of(sys.modules[name]) for name in set(sys.modules) - before)}
    for path in map(os.path.abspath, files):
        if path.startswith(folder) and path.endswith(".py"):
            _code[path] = hashlib.sha1(Path(path).read_bytes()).hexdigest()


def _import_file(path: Path, where: object, is_told: bool) -> None:
    if not os.path.isfile(path):  # which takes what no path can be as well
        raise ConfigError(f"no file {path}", where=where,
                          hint="Paths in IMPORTS are relative to the config that lists them, on "
                               "the command line to where you are. A run folder holds no code: to "
                               "open a run, its files have to be where they were, or IMPORTS "
                               "\"[elsewhere/my.py]\" says where they are.")
    _refuse_run_folder(path, where)
    path = path.resolve()
    module_name = f"cvkit_user_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    is_imported = str(path) in map(_file_of, [*sys.modules.values()])  # by another file, perhaps
    if module_name not in sys.modules and not is_imported:
        spec = importlib.util.spec_from_file_location(module_name, path)
        module = importlib.util.module_from_spec(spec)
        if str(path.parent) not in sys.path:  # as Python does for a script, but last
            sys.path.append(str(path.parent))
        names = [module_name]
        beside = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
        if beside is not None and beside.origin == str(path):  # as what lies beside it calls it
            names.append(path.stem)
        sys.modules.update(dict.fromkeys(names, module))
        _say_imported(str(path), is_told)
        try:
            with _mistakes_of_syntax_told(where), _code_noted(str(path)):
                spec.loader.exec_module(module)
        except BaseException:
            for name in names:
                del sys.modules[name]
            raise


def _import_module(name: str, where: object, is_told: bool) -> None:
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts) or parts[0] in (
            "__main__", *sys.stdlib_module_names):
        raise ConfigError(f"{name!r} cannot be a module of yours", where=where,
                          hint="IMPORTS takes modules, or paths that end in .py; names of Python's "
                               "own modules are taken.")
    if name in sys.modules:
        return
    here = Path.cwd()
    if run_folder_of(here) is None and "" not in sys.path and str(here) not in sys.path:
        sys.path.append(str(here))
    wholes = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    for whole in wholes:  # a.b is looked for by importing a, so where a lies is seen to first
        if whole in sys.modules:
            continue
        try:
            spec = importlib.util.find_spec(whole)
        except ModuleNotFoundError as error:
            if error.name not in wholes:
                raise
            spec = None
        if spec is None:
            inside = run_folder_of(here)
            hint = ("IMPORTS takes modules, or paths that end in .py." if inside is None else
                    f"None is looked for in {inside}: run folders supply no code.")
            raise ConfigError(f"no module named {name!r}", where=where, hint=hint)
        for place in (spec.origin, *(spec.submodule_search_locations or ())):
            if place:
                _refuse_run_folder(Path(place), where)
        _say_imported(spec.origin or whole, is_told)
        with _mistakes_of_syntax_told(where), _code_noted(spec.origin):
            importlib.import_module(whole)


@contextlib.contextmanager
def _mistakes_of_syntax_told(where: object) -> Iterator[None]:
    try:
        yield
    except SyntaxError as error:
        raise ConfigError(f"{error.filename}:{error.lineno}: {error.msg}", where=where) from error


def _say_imported(what: str, is_told: bool) -> None:
    if is_told and distributed.is_main():
        print(f"imported   {visible(what)}")


_opened: set[Path] = set()  # folders that were opened as runs, whatever they hold


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


def _refuse_run_folder(path: Path, where: object) -> None:
    folder = run_folder_of(path)
    if folder is not None:
        raise ConfigError(f"{path} lies in the run folder {folder}, which supplies no code",
                          where=where, hint="Read the file; if you trust it, copy it elsewhere and "
                                            "name that copy in IMPORTS.")
