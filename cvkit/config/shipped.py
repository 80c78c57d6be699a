"""The configs that come with cvkit: by name, or as `cvkit://_base_/cifar10.yaml` under `_BASE_`."""

from __future__ import annotations

import re
from pathlib import Path

from cvkit.config.schema import BASE
from cvkit.errors import ConfigError
from cvkit.system.command import as_called_here
from cvkit.system.files import user_path
from cvkit.system.text import in_columns, suggest

SCHEME = "cvkit://"
# An installation has them in the package, a clone beside it.
_INSTALLED = Path(__file__).parents[1] / "configs"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "configs"


def names() -> list[str]:
    """Return what they are called, "resnet18_digits" and so on."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def addresses() -> list[str]:
    """Return what a `_BASE_` calls them, and the parts that they share."""
    return sorted(SCHEME + path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))


def is_config(word: str) -> bool:
    """Return whether a word of a command line is a config: a YAML file or one of the names."""
    return word.endswith((".yaml", ".yml")) or word in names()


def find(word: str | Path, folder: Path | None = None) -> Path:
    """Return the file that is meant by a path, an address or, without a folder, a name.

    Args:
        word: as it is written; a file that exists goes before a name.
        folder: that a path in a config is relative to.

    Raises:
        ConfigError: cvkit has nothing at that address.
    """
    if str(word).startswith(SCHEME):
        # With `..` in it nothing is found either.
        if word not in addresses():
            raise ConfigError(f"no config {word}", hint=suggest(word, addresses(), listed=40))
        return FOLDER / str(word).removeprefix(SCHEME)
    path = user_path(word)
    if folder is not None:
        return folder / path
    return FOLDER / f"{path}.yaml" if str(path) in names() and not path.is_file() else path


def shown(path: Path) -> str:
    """Return what messages call a config file: one within the package by its address."""
    if path.is_relative_to(_INSTALLED):
        return SCHEME + path.relative_to(_INSTALLED).as_posix()
    return str(path)


def listing() -> str:
    """Return the names, each with the first line of its file."""
    return "\n".join(in_columns((name, _text(name).split("\n")[0].removeprefix("# "))
                                for name in names()))


def copy_of(name: str) -> str:
    """Return the text of a config to start one's own from, whose `_BASE_` is found from anywhere.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in names():
        raise ConfigError(f"cvkit has no config named {name!r}",
                          hint=suggest(name, names(), listed=40))
    def with_scheme(line: re.Match) -> str:
        return re.sub(r"[\w/]+\.yaml", rf"{SCHEME}\g<0>", line[0])

    return as_called_here(re.sub(rf"^{BASE}:.*", with_scheme, _text(name), flags=re.MULTILINE))


def _text(name: str) -> str:
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
