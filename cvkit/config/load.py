"""Reading config files with their `_BASE_` files, and the configs that runs keep."""

from __future__ import annotations

import codecs
import contextlib
import copy
import io
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvkit.config import shipped
from cvkit.config.check import conform
from cvkit.config.fine_tune import expand_fine_tune
from cvkit.config.merge import absolute_imports, merge, override
from cvkit.config.parse import MOST_TEXT, parse_value
from cvkit.config.schema import BASE, RENAMED, SCHEMA, SWEEP, SWEEP_SCHEMA
from cvkit.config.tree import Config
from cvkit.errors import ConfigError, located
from cvkit.system.command import command
from cvkit.system.text import nearest, suggest

# The first line of a run's own config says so.
RESOLVED = "resolved: everything set here is what the run used."
# What the config of a group of runs is called in its folder.
GROUP_CONFIG = "group.yaml"


def load_config(path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """Read a YAML config with its `_BASE_`s, apply overrides, fill in defaults, freeze.

    Args:
        path: the config file, or the name of one that comes with cvkit.
        overrides: `["TRAIN.EPOCHS", "3", …]` as on the command line, or a mapping of
            dotted keys to Python values.

    Raises:
        ConfigError: the file cannot be read or something in it is wrong.
    """
    path = shipped.find(path)
    config = _read_file(path)
    # A run's own config.yaml, used again, keeps the name of the config that it resolved.
    folder, name = path.resolve().parent, path.resolve().stem
    if path.name == "config.yaml" and (folder / "checkpoints").is_dir():
        name = name_of_resolved(_text_of(path, ())) or folder.parent.name
    elif path.name == GROUP_CONFIG:
        name = name_of_resolved(_text_of(path, ())) or name
    return _finished(config, overrides, shipped.shown(path), name)


def read_config(text: str, source: str, name: str = "run",
                overrides: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """Return a config from text that `dump` wrote, with overrides, frozen.

    Args:
        text: of the whole config.
        source: where it is kept, for messages.
        name: of the config.
        overrides: as of `load_config`.

    Raises:
        ConfigError: something in it is wrong.
    """
    return _finished(_parsed(text, source, is_resolved=True), overrides, source, name)


def name_of_resolved(text: str) -> str | None:
    """Return the name of the config that a run's own one says it was resolved from.

    The first line says so; the folder does only until it is moved. It becomes a part of paths, so
    a name that leads elsewhere is none.
    """
    named = re.match(r"# (?!\.+,)([^/\\\n]+), resolved: ", text)
    return named.group(1) if named else None


@dataclass(frozen=True)
class SweepConfig:
    """A config with a SWEEP node, which says what of it is searched for.

    Attributes:
        node: of SWEEP, with its defaults, frozen.
        name: of the file.
    """

    node: Config
    name: str
    _rest: Config
    _source: str

    def config(self, values: Mapping[str, Any]) -> Config:
        """Return the config without SWEEP, and with other values of keys, frozen.

        Raises:
            ConfigError: something in it is wrong.
        """
        places = {key: self.node.SPACE.origin(key) for key in self.node.SPACE} | {
            "TRAIN.MONITOR": self.node.origin("MONITOR")}
        config = override(copy.deepcopy(self._rest), values, places)
        return _finished(config, {}, self._source, self.name)


def load_sweep(path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> SweepConfig:
    """Read a YAML config that has a SWEEP node; arguments and errors as of `load_config`.

    What SWEEP.BASE names comes before the `_BASE_` of the file.
    """
    path = shipped.find(path)
    source, config = shipped.shown(path), override(_read_file(path), overrides)
    if SWEEP not in config:
        raise ConfigError(f"{path} has no {SWEEP}", hint=f"To train it: {command('train')} {path}")
    where = config.where(SWEEP)
    node = conform(config.pop(SWEEP), SWEEP_SCHEMA, SWEEP, source)
    if not node.SPACE:
        raise ConfigError("there is nothing to search for", where=where,
                          hint="SPACE: {OPTIMIZER.lr: {NAME: float, low: 1e-3, high: 1, log: "
                               "true}}")
    set_here = overrides if isinstance(overrides, Mapping) else list(overrides)[::2]
    if both := next((key for key in set_here if key in node.SPACE), None):
        raise ConfigError(f"{both} is searched for, and set as well", where=node.SPACE.where(both),
                          hint="Leave it out, or take it out of SPACE.")
    node.freeze()
    return SweepConfig(node, path.resolve().stem, config, source)


def _finished(config: Config, overrides: Iterable[str] | Mapping[str, Any], source: str,
              name: str) -> Config:
    config = conform(override(config, overrides), SCHEMA, "", source)
    config.__dict__["name"] = name
    expand_fine_tune(config)
    config.freeze()
    return config


def _read_file(path: Path, chain: tuple[Path, ...] = ()) -> Config:
    """Return a file merged over its `_BASE_` files; `chain` led to it by theirs."""
    text = _text_of(path, chain)
    if path.resolve() in [link.resolve() for link in chain]:
        raise ConfigError(f"{BASE} goes in a circle: {' -> '.join(map(str, (*chain, path)))}")
    is_resolved = RESOLVED in text.split("\n", 1)[0]
    config, merged = _parsed(text, shipped.shown(path), is_resolved), Config()
    sweep = config.get(SWEEP)
    for node, key in ((sweep if isinstance(sweep, Config) else Config(), BASE.strip("_")),
                      (config, BASE)):
        with located(node, key):
            bases = node.get(key, [])
            bases = [bases] if isinstance(bases, str) else bases
            if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
                raise ConfigError(f"{key} is a path or a list of paths")
            for base in bases:
                base_path = shipped.find(base, path.parent)
                merged = merge(merged, _read_file(base_path, (*chain, path)))
        node.pop(key, None)
    if "IMPORTS" in config:
        imports = absolute_imports(config["IMPORTS"], path.parent)
        config.put("IMPORTS", imports, config.origin("IMPORTS"))
    return merge(merged, config)


def _text_of(path: Path, chain: tuple[Path, ...]) -> str:
    try:
        with path.open("rb") as file:
            # As `>` of Windows' PowerShell writes it.
            is_wide = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            with io.TextIOWrapper(file, encoding="utf-16" if is_wide else "utf-8") as text:
                # No more is read, as a file may be without end: /dev/zero.
                return text.read(MOST_TEXT + 1)
    except FileNotFoundError:
        raise ConfigError(f"no config file {path}", hint=_meant_by(path, chain)) from None
    except UnicodeError:
        raise ConfigError(f"{path} is not a text file in UTF-8") from None
    # A path with a NUL in it is a ValueError.
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read {str(path)!r}: {reason}") from None


def _meant_by(path: Path, chain: tuple[Path, ...]) -> str | None:
    """Return what may be meant by a config file that is not there."""
    def written(file: Path) -> str:
        """Return a file as it is written where it is named."""
        # On Windows there is no way from one drive to another.
        with contextlib.suppress(ValueError):
            return os.path.relpath(file, chain[-1].parent) if chain else str(file)
        return str(file)

    files = {*path.parent.glob("*.yaml"), *Path("configs").glob("**/*.yaml")} - {*chain}
    name, found = written(path), sorted(map(written, files))
    if not nearest(name, found):
        own = shipped.addresses() if chain else shipped.names()
        as_own = shipped.SCHEME + name if chain else path.stem
        if nearest(as_own, own) or not found:
            return suggest(as_own, own)
    return suggest(name, found) or None


def _parsed(text: str, source: str, is_resolved: bool) -> Config:
    """Return the node of a whole config, which is resolved if a run wrote it."""
    config = parse_value(text, source=source)
    config = Config() if config is None else config
    if not isinstance(config, Config):
        raise ConfigError("a config is a mapping, KEY: value", where=f"{source}:1")
    if is_resolved:
        _bring_up_to_date(config)
    return config


def _bring_up_to_date(config: Config) -> None:
    """Give a run's config, which an older version may have written, the keys that there are now."""
    data = config.get("DATA")
    # SEED seeded the splits as well before there was SPLIT_SEED.
    if isinstance(data, Config) and "SPLIT_SEED" not in data and "SEED" in config:
        data.put("SPLIT_SEED", config["SEED"], config.origin("SEED"))
    for root in (config, config.get("REQUIRE")):
        for old, new in RENAMED.items():
            section, key = old.split(".")
            node = root.get(section) if isinstance(root, Config) else None
            if isinstance(node, Config) and key in node:
                node.put(new.split(".")[1], node[key], node.origin(key))
                del node[key]
