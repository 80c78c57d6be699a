"""Reading config files with their `_BASE_` files, and the configs that runs keep."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cvkit.config.check import conform_root
from cvkit.config.command_line import absolute_imports, override
from cvkit.config.merge import merge
from cvkit.config.parse import MOST_TEXT, parse_value
from cvkit.config.schema import BASE
from cvkit.config.tree import Config
from cvkit.errors import ConfigError
from cvkit.system.files import user_path
from cvkit.system.text import suggest

RESOLVED = "resolved: everything set here is what the run used."  # in line 1 of a run's config


def _read_file(path: Path, chain: tuple[Path, ...] = (), where: object = None) -> Config:
    """Return a file merged over its `_BASE_` files."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_TEXT + 1)  # no more: a _BASE_ may be /dev/zero
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path("configs")
        asked, names = str(path), sorted(map(str, folder.glob("*.yaml")))
        if chain:  # a _BASE_, which is relative to the file that names it
            found = {*folder.glob("*.yaml"), *Path("configs").glob("**/*.yaml")} - set(chain)
            asked, *names = (os.path.relpath(name, chain[-1].parent)
                             for name in (path, *sorted(found)))
        raise ConfigError(f"no config file {path}", where=where,
                          hint=suggest(asked, names) or None) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file in UTF-8", where=where) from None
    except (OSError, ValueError) as error:  # of a path with a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read {str(path)!r}: {reason}", where=where) from None
    if path.resolve() in [link.resolve() for link in chain]:
        circle = " -> ".join(str(link) for link in (*chain, path))
        raise ConfigError(f"{BASE} goes in a circle: {circle}", where=where)
    config = parse_value(text, source=str(path))
    config = Config() if config is None else config
    if not isinstance(config, Config):
        raise ConfigError("a config is a mapping, KEY: value", where=f"{path}:1")
    if RESOLVED in text.split("\n", 1)[0]:
        _complete(config)
    bases = config.get(BASE, [])
    base_where = config.where(BASE)
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{BASE} is a path or a list of paths", where=base_where)
    dict.pop(config, BASE, None)
    if "IMPORTS" in config:
        imports = absolute_imports(config["IMPORTS"], path.parent)
        config.put("IMPORTS", imports, config.origin("IMPORTS"))
    merged = Config()
    for base in bases:
        place = path.parent / user_path(base)
        merged = merge(merged, _read_file(place, (*chain, path), base_where))
    return merge(merged, config)


def _complete(config: Config) -> None:
    """Add to a run's config what an older version did not write: its SEED seeded splits as well."""
    data = config.get("DATA")
    if isinstance(data, Config) and "SPLIT_SEED" not in data and "SEED" in config:
        data.put("SPLIT_SEED", config["SEED"], config.origin("SEED"))


def load_config(path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """Read a YAML config with its `_BASE_`s, apply overrides, fill in defaults, freeze.

    Args:
        path: the config file.
        overrides: `["TRAIN.EPOCHS", "3", …]` as on the command line, or a mapping of
            dotted keys to Python values.

    Raises:
        ConfigError: the file cannot be read or something in it is wrong.
    """
    path = user_path(path)
    config = _read_file(path)
    config = conform_root(override(config, overrides), source=str(path))
    # A run's own config.yaml, used again, keeps the name of the config that it resolved.
    path = path.resolve()
    is_of_a_run = (path.parent / "checkpoints").is_dir()
    config.__dict__["name"] = path.parent.parent.name if is_of_a_run else path.stem
    config.freeze()
    return config


def read_config(text: str, source: str, name: str = "run",
                overrides: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """Return a config from text that `dump` wrote, with overrides, frozen."""
    config = parse_value(text, source=source)
    if not isinstance(config, Config):
        raise ConfigError("not a config", where=source)
    _complete(config)
    config = conform_root(override(config, overrides))
    config.__dict__["name"] = name
    config.freeze()
    return config
