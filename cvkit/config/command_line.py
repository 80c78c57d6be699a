"""Flags of the command-line tools; the KEY VALUE pairs beside them are read by `merge`."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Sequence

from cvkit.config.schema import KEYS, SWEEP, SWEEP_SCHEMA
from cvkit.config.tree import COMMAND_LINE
from cvkit.errors import ConfigError
from cvkit.system.text import suggest


def parse_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Return what a command line means to a tool; flags may stand before, after and between.

    Args:
        parser: of the tool.
        words: of the command line.

    Raises:
        ConfigError: a flag that the tool does not have: a misspelt one, or `--epochs`, which other
            tools have and cvkit sets as a key. The message lists the tool's.
    """
    # Argparse would take a value such as -1e-3 for a flag.
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


def is_key(word: str) -> bool:
    """Whether a word of a command line looks like a key of a config."""
    return re.fullmatch(r"[A-Z_]{2,}(\.[\w.]+)?", word) is not None


def split_pairs(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words before the first key of a config, and KEY VALUE … from there on.

    What there is as a file or folder is no key, even if it is called DATA.
    """
    first = next((place for place, word in enumerate(words)
                  if is_key(word) and not os.path.exists(word)),
                 len(words))
    return list(words[:first]), list(words[first:])


# What flags of earlier versions are called now.
_FORMER = {"--count": "--disagreements N"}


def unknown_flag(flag: str, own: Iterable[str], takes_keys: bool = True) -> ConfigError:
    """Return the error for a flag that a tool does not have.

    Args:
        flag: that is unknown.
        own: the tool's flags, which are listed.
        takes_keys: whether keys of the config can be set as well; one may be meant.
    """
    word = flag.strip("-").replace("-", "_").upper()
    own = list(own)
    keys = [*KEYS, *(f"{SWEEP}.{key}" for key in SWEEP_SCHEMA)] if takes_keys else []
    # The plural of a key, --folds and --seeds, is a flag.
    meant = [other for other in own if other == f"{flag}s"]
    meant += [key for key in keys if key.split(".")[-1] == word]
    meant += [now for old, now in _FORMER.items() if flag == old and now.split()[0] in own]
    hint = (f"Did you mean {' or '.join(meant[:2])}? The flags are {', '.join(own)}." if meant
            else suggest(flag, own, listed=30).replace("Allowed:", "The flags are"))
    if takes_keys:
        hint += "\n  Settings are KEY VALUE pairs: TRAIN.EPOCHS 5 OPTIMIZER.lr 0.05"
    return ConfigError(f"no flag {flag}", where=COMMAND_LINE, hint=hint)
