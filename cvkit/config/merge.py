"""The one rule by which base files, files and the command line are laid on each other."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cvkit.config.dialect import flow
from cvkit.config.parse import parse_value
from cvkit.config.schema import KEYS, Component, Key
from cvkit.config.tree import COMMAND_LINE, PYTHON, Config, adopt, dotted
from cvkit.errors import ConfigError
from cvkit.registry import NAME
from cvkit.system.files import user_path
from cvkit.system.text import plural, suggest


def merge(base: Any, over: Any) -> Any:
    """Return `over` laid on `base`, by the one rule for base files, files and command line.

    Nodes merge key by key; a node whose NAME changes is replaced with all its arguments;
    anything else, lists included, is replaced whole.
    """
    if not (isinstance(base, Config) and isinstance(over, Config)):
        return over
    merged = Config(path=base.path())
    merged.__dict__["replaced"] = {**base.replaced, **over.replaced}
    is_replaced = NAME in over and NAME in base and over[NAME] != base[NAME]
    for key, value in base.items():
        if is_replaced and key != NAME:
            merged.replaced[key] = f"{flow(key)} {flow(value)} of {base.origin(key)}"
        else:
            merged.put(key, value, base.origin(key))
    for key, value in over.items():
        merged.put(key, merge(merged.get(key), value), over.origin(key))
    return merged


def override(config: Config, overrides: Iterable[str] | Mapping[str, Any],
             places: Mapping[str, str] | None = None) -> Config:
    """Return a config with KEY VALUE pairs merged over it; their order does not matter.

    Args:
        config: open nodes, of files.
        overrides: as of `load_config`.
        places: where keys of a mapping were set, if not in Python.

    Raises:
        ConfigError: a key or value that cannot be read, or a number of no item.
    """
    if isinstance(overrides, Mapping):
        origin, pairs = PYTHON, list(overrides.items())
    else:
        origin, pairs = COMMAND_LINE, _pairs(list(overrides))
    for key, _ in pairs:
        if not isinstance(key, str) or not all(key.split(".")):
            raise ConfigError(f"{key!r} is not a key such as TRAIN.EPOCHS", where=origin)
    # A whole list or node first, then its NAME, which drops what the node had, then the rest.
    pairs.sort(key=lambda pair: (pair[0].count("."), pair[0].split(".")[-1] != NAME, pair[0]))
    for key, value in pairs:
        is_text = isinstance(value, str) and origin == COMMAND_LINE
        value = parse_value(value, key) if is_text else adopt(
            value, (places or {}).get(key, origin), key)
        if key == "IMPORTS":
            value = absolute_imports(value, Path())
        elif key.startswith("IMPORTS."):
            value, = absolute_imports([value], Path())
        config = _set_at(config, key.split("."), value, (places or {}).get(key, origin))
    return config


def _pairs(words: list[Any]) -> list[tuple[Any, Any]]:
    """Return words of a command line, and values of a list in Python, as pairs."""
    for word, value in itertools.zip_longest(map(str, words[::2]), words[1::2], fillvalue=""):
        problem, hint = f"{word!r} is not a key", None
        if sign := re.match(r"([\w.]+)[=:](.*)", word):
            hint = f"Write KEY VALUE with a space: {sign[1]} {sign[2] or value}"
        elif re.search(r"\[\d+\]", word):
            by_number = re.sub(r"\[(\d+)\]", r".\1", word)
            hint = f"Items of a list are addressed by number: {by_number}"
        elif os.sep in word and os.path.isdir(word):
            problem, hint = f"{word} is a folder", f"Is it a run? Name it with --run {word}"
        if hint:
            raise ConfigError(problem, COMMAND_LINE, hint)
    if len(words) % 2:
        raise ConfigError(f"{words[-1]} has no value; overrides are pairs, KEY VALUE", COMMAND_LINE,
                          "Write KEY VALUE with a space. A value with spaces goes into quotes: "
                          "MODEL '{NAME: resnet18}'")
    return list(zip(words[::2], words[1::2]))


def absolute_imports(imports: Any, folder: Path) -> Any:
    """Return a config's IMPORTS; its files, which are relative to a folder, as absolute ones."""
    if not isinstance(imports, list):
        return imports
    return [os.path.abspath(folder / user_path(item))
            if isinstance(item, str) and item.endswith(".py") else item for item in imports]


def _set_at(base: Any, parts: list[str], value: Any, origin: str, path: str = "") -> Any:
    """Return `base`, which stands at `path`, with a value merged in under the parts of a key."""
    if not parts:
        return merge(base, value)
    first, *rest = parts
    inner = dotted(path, first)
    # Epochs and classes may be keys that are numbers.
    is_node = (isinstance(base, Config) and NAME not in base) or (
        base is None and isinstance(KEYS.get(path), Key) and KEYS[path].default is None)
    if not (path and first.isdecimal()) or is_node:
        node, below = Config(path=path), base.get(first) if isinstance(base, Config) else None
        node.put(first, _set_at(below, rest, value, origin, inner), origin)
        return merge(base, node)
    if base is None and isinstance(KEYS.get(path), Component) and KEYS[path].is_list:
        # Its default is set later.
        base = []
    if not isinstance(base, list):
        raise ConfigError(f"{path} is not a list, its items have no numbers", f"{origin} {inner}",
                          suggest(first, base) if isinstance(base, Config) else None)
    if int(first) >= len(base):
        numbers = f"they count from 0 to {len(base) - 1}" if base else "it is empty"
        raise ConfigError(f"{path} has {plural(len(base), 'item')}; {numbers}",
                          f"{origin} {inner}",
                          f"To add one, give the whole list: {path} '[…]'")
    return [_set_at(item, rest, value, origin, inner) if number == int(first) else item
            for number, item in enumerate(base)]
