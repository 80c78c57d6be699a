"""The words of a command line: flags, and KEY VALUE pairs that override a config."""

from __future__ import annotations

import argparse
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cvkit.config.check import all_keys
from cvkit.config.merge import at_key, merge
from cvkit.config.parse import parse_value
from cvkit.config.tree import COMMAND_LINE, PYTHON, Config, adopt
from cvkit.errors import ConfigError
from cvkit.registry import NAME
from cvkit.system.files import user_path
from cvkit.system.text import suggest


def override(config: Config, overrides: Iterable[str] | Mapping[str, Any]) -> Config:
    """Return a config with KEY VALUE pairs merged over it; their order does not matter.

    Args:
        overrides: `["TRAIN.EPOCHS", "3", …]` as on the command line, or a mapping of
            dotted keys to Python values.

    Raises:
        ConfigError: a key or value that cannot be read, or a number of no item.
    """
    is_mapping = isinstance(overrides, Mapping)
    origin = PYTHON if is_mapping else COMMAND_LINE
    pairs = list(overrides.items()) if is_mapping else _pairs(list(overrides))
    for key, _ in pairs:
        if not isinstance(key, str) or not all(key.split(".")):
            raise ConfigError(f"{key!r} is not a key such as TRAIN.EPOCHS", where=origin)
        if re.search(r"\[\d+\]", key):
            written = re.sub(r"\[(\d+)\]", r".\1", key)
            raise ConfigError(f"{key!r} is not a key", where=origin,
                              hint=f"Items of a list are addressed by number: {written}")

    def rank(pair: tuple[str, Any]) -> tuple[int, bool, str]:
        # A whole list or node first, then its NAME, which drops what the node had, then what
        # else is set within it.
        return pair[0].count("."), pair[0].split(".")[-1] != NAME, pair[0]

    for key, value in sorted(pairs, key=rank):
        if isinstance(value, str) and not is_mapping:
            value = parse_value(value, key)
        value = adopt(value, origin)
        if key == "IMPORTS":
            value = absolute_imports(value, Path())
        config = merge(config, at_key(config, key.split("."), value, origin))
    return config


def _pairs(words: list[Any]) -> list[tuple[Any, Any]]:
    for word, value in itertools.zip_longest(words[::2], words[1::2], fillvalue=""):
        sign = re.match(r"([\w.]+)([=:])(.*)", word) if isinstance(word, str) else None
        if sign or value == "=":
            key, value = (sign[1], sign[3] or value) if sign else (word, "VALUE")
            raise ConfigError(f"{word!r} is not a key" if sign else "= is not a value",
                              where=COMMAND_LINE,
                              hint=f"Write KEY VALUE with a space: {key} {value}")
    if len(words) % 2:
        run = next((word for word in map(str, words) if os.sep in word and os.path.isdir(word)),
                   None)
        if run:
            raise ConfigError(f"{run} is a folder", where=COMMAND_LINE,
                              hint=f"Is it a run? Name it with --run {run}")
        raise ConfigError(f"{words[-1]} has no value; overrides are pairs, KEY VALUE",
                          where=COMMAND_LINE, hint="A value with spaces goes into quotes: "
                                                   "MODEL '{NAME: resnet18}'")
    return list(zip(words[::2], words[1::2]))


def absolute_imports(imports: Any, folder: Path) -> Any:
    """Return a config's IMPORTS; its files, which are relative to a folder, as absolute ones."""
    if not isinstance(imports, list):
        return imports
    return [os.path.abspath(folder / user_path(item))
            if isinstance(item, str) and item.endswith(".py") else item for item in imports]


def parse_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Return what a command line means to a tool; flags may stand before, after and between.

    Raises:
        ConfigError: a flag that the tool does not have: a misspelt one, or `--epochs`, which other
            tools have and cvkit sets as a key. The message lists the tool's.
    """
    # A value, -1e-3, which argparse would take for a flag.
    words = [f" {word}" if re.match(r"-[\d.]", word) else word for word in words]
    args, unknown = parser.parse_known_intermixed_args(words)
    if not unknown:
        return args
    flag = unknown[0].split("=")[0]
    if not flag.startswith("-"):
        raise ConfigError(f"{flag!r} is one word too many", where=COMMAND_LINE,
                          hint=" ".join(parser.format_usage().split()))
    usage = parser.format_usage()
    raise unknown_flag(flag, re.findall(r"--[\w-]+", usage), "KEY VALUE" in usage)


def unknown_flag(flag: str, own: Iterable[str], takes_keys: bool = True) -> ConfigError:
    """Return the error for a flag that a tool does not have.

    Args:
        flag: that is unknown.
        own: the tool's flags, which are listed.
        takes_keys: whether keys of the config can be set as well, one of which may be meant.
    """
    word = flag.strip("-").replace("-", "_").upper()
    meant = [key for key in all_keys() if takes_keys and key.split(".")[-1] == word]
    hint = (f"Did you mean {meant[0]}? The flags are {', '.join(own)}." if meant
            else suggest(flag, own, listed=30).replace("Allowed:", "The flags are"))
    if takes_keys:
        hint += "\n  Settings are KEY VALUE pairs: TRAIN.EPOCHS 5 OPTIMIZER.lr 0.05"
    return ConfigError(f"no flag {flag}", where=COMMAND_LINE, hint=hint)
