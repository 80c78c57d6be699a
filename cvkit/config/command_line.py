"""The words of a command line: flags, and KEY VALUE pairs that override a config."""

from __future__ import annotations

import argparse
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cvkit.config.check import all_keys
from cvkit.config.merge import ByNumber, merge
from cvkit.config.parse import parse_value
from cvkit.config.schema import SCHEMA
from cvkit.config.tree import COMMAND_LINE, PYTHON, Config, adopt
from cvkit.errors import ConfigError
from cvkit.registry import NAME
from cvkit.system.files import user_path
from cvkit.system.text import suggest


def read_overrides(overrides: list[Any] | Mapping[str, Any]) -> Config:
    """Return KEY VALUE pairs as one tree: their order does not matter."""
    origin = COMMAND_LINE
    if isinstance(overrides, Mapping):
        origin = PYTHON
        overrides = [item for pair in overrides.items() for item in pair]
    for word, following in itertools.zip_longest(overrides[::2], overrides[1::2], fillvalue=""):
        sign = re.match(r"([A-Z_a-z.0-9]+)([=:])(.*)", word) if isinstance(word, str) else None
        if sign or following == "=":
            key, value = (sign[1], sign[3] or following) if sign else (word, "VALUE")
            raise ConfigError(f"{word!r} is not a key" if sign else "= is not a value",
                              where=origin, hint=f"Write KEY VALUE with a space: {key} {value}")
    if len(overrides) % 2:
        run = next((str(word) for word in overrides
                    if os.sep in str(word) and os.path.isdir(str(word))), None)
        if run:
            raise ConfigError(f"{run} is a folder", where=origin,
                              hint=f"Is it a run? Name it with --run {run}")
        raise ConfigError(f"{overrides[-1]} has no value; overrides are pairs, KEY VALUE",
                          where=origin, hint="A value with spaces goes into quotes: "
                                             "MODEL '{NAME: resnet18}'")
    pairs = list(zip(overrides[::2], overrides[1::2], strict=True))
    for key, _ in pairs:
        if not isinstance(key, str) or not all(key.split(".")):
            raise ConfigError(f"{key!r} is not a key such as TRAIN.EPOCHS", where=origin)
        if re.search(r"\[\d+\]", key):
            written = re.sub(r"\[(\d+)\]", r".\1", key)
            raise ConfigError(f"{key!r} is not a key", where=origin,
                              hint=f"Items of a list are addressed by number: {written}")
    tree = Config()
    # A whole list or node first, then its NAME, which drops what the node had, then what else is
    # set within it, in whichever order they came.
    def rank(pair: tuple[str, Any]) -> tuple[int, bool]:
        return pair[0].count("."), pair[0].split(".")[-1] != NAME

    for key, value in sorted(pairs, key=rank):
        parts = key.split(".")
        is_text = isinstance(value, str) and origin is COMMAND_LINE
        item = adopt(parse_value(value, key) if is_text else value, origin)
        for depth in reversed(range(len(parts))):
            node = ByNumber() if parts[depth].isdecimal() and depth else Config()
            node.__dict__["_path"] = ".".join(parts[:depth])
            node.put(parts[depth], item, origin)
            item = node
        tree = merge(tree, item)
    if isinstance(tree.get("IMPORTS"), list):
        tree.put("IMPORTS", [
            os.path.abspath(user_path(item)) if str(item).endswith(".py") else item
            for item in tree["IMPORTS"]], origin)
    return tree


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
    meant = [key for key in all_keys(SCHEMA) if takes_keys and key.split(".")[-1] == word]
    hint = (f"Did you mean {meant[0]}? The flags are {', '.join(own)}." if meant
            else suggest(flag, own, listed=30).replace("Allowed:", "The flags are"))
    if takes_keys:
        hint += "\n  Settings are KEY VALUE pairs: TRAIN.EPOCHS 5 OPTIMIZER.lr 0.05"
    return ConfigError(f"no flag {flag}", where=COMMAND_LINE, hint=hint)
