"""Configs: the schema, `_BASE_` files, overrides, and where each value came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from cvkit.config.dialect import Dumper
from cvkit.errors import ConfigError
from cvkit.registry import NAME
from cvkit.system.text import suggest


@dataclass(frozen=True)
class Origin:
    """Where a value was set: a file and line, the command line, Python, or the default."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


DEFAULT, COMMAND_LINE, PYTHON = Origin("default"), Origin("command line"), Origin("Python")


class Config(CfgNode):
    """A yacs node that knows its schema and the origin of every value.

    `cfg.TRAIN.EPOCHS` reads; `clone()`, then `defrost()`, then assignment changes: unknown
    keys and wrong types are refused at once. `freeze()` guards every way to change it,
    lists included (they become tuples). `dump()` is YAML that reads back to an equal config.
    """

    def __init__(self, values: Mapping[str, Any] | None = None):
        dict.__init__(self)
        self.__dict__.update({CfgNode.IMMUTABLE: False, "_origins": {}, "_path": "",
                              "_schema": None, "_conform": None, "_name": "run",
                              "_replaced": {}})
        for key, value in (values or {}).items():
            self._put(key, adopt(value, PYTHON), PYTHON)

    @property
    def name(self) -> str:
        """The name of the config's file, which its runs are filed under."""
        return self._name

    # -- places

    def origin(self, key: str) -> Origin:
        """Return where a key's value was set."""
        return self._origins.get(key, DEFAULT)

    def path(self, key: str | None = None) -> str:
        """Return the dotted key, such as `DATA.DATASET.root`."""
        return ".".join(filter(None, [self._path, key]))

    def where(self, key: str | None = None) -> str:
        """Return "file:line DOTTED.KEY" for messages."""
        known = key if key in self else next(iter(self), None)
        return f"{self.origin(known)} {self.path(key)}".strip()

    @property
    def replaced(self) -> dict[str, str]:
        """What changes of NAME took from this node: {"lr": "lr 0.1 of a.yaml:9"}."""
        return self._replaced

    def _whence(self, key: str) -> str:
        """Return where a key's value was set and, with a changed NAME, what that dropped."""
        dropped = [text for name, text in self._replaced.items() if name not in self]
        is_told = key == NAME and dropped
        return f"{self.origin(key)}, dropped {', '.join(dropped)}" if is_told else str(
            self.origin(key))

    def _put(self, key: str, value: Any, origin: Origin) -> None:
        dict.__setitem__(self, key, value)
        self._origins[key] = origin

    def _set_path(self, path: str) -> None:
        self.__dict__["_path"] = path
        for key, value in self.items():
            self._place(key, value)

    def _place(self, key: str, value: Any) -> None:
        for dotted, node in _child_nodes(value, self.path(key)):
            node._set_path(dotted)

    # -- every way to change it

    def _refuse_frozen(self) -> None:
        if self.is_frozen():
            raise AttributeError(f"{self._path or 'the config'} is frozen; change a copy: "
                                 "cfg = cfg.clone(); cfg.defrost()")

    def __setitem__(self, key: str, value: Any) -> None:
        self._refuse_frozen()
        value = adopt(value, PYTHON)
        if self._conform is not None:
            self._place(key, value)
            value = self._conform(self, key, value)
        self._put(key, value, PYTHON)
        self._place(key, value)

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def __getattr__(self, key: str) -> Any:
        if key in self:
            return self[key]
        hint = "" if key.startswith("_") else f". {suggest(key, self)}"
        raise AttributeError(f"{self.__dict__.get('_path') or 'config'} has no {key}{hint}")

    def __delitem__(self, key: str) -> None:
        self._refuse_frozen()
        if self._conform is not None:
            raise AttributeError(f"{self.path(key)} belongs to every config; set it, don't delete")
        dict.__delitem__(self, key)

    def __delattr__(self, key: str) -> None:
        del self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __ior__(self, other: Mapping[str, Any]) -> Config:
        self.update(other)
        return self

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: str, *default: Any) -> Any:
        value = dict.get(self, key, *default) if default else self[key]
        if key in self:
            del self[key]
        return value

    def popitem(self) -> tuple[str, Any]:
        key = next(reversed(self))
        return key, self.pop(key)

    def clear(self) -> None:
        for key in list(self):
            del self[key]

    def merge_from_file(self, *_: Any) -> None:
        """Refuse; what yacs would merge here is neither checked nor knows where it came from."""
        raise AttributeError("a config is merged as it is read: load_config(path, overrides)")

    merge_from_list = merge_from_other_cfg = merge_from_file

    def _immutable(self, is_immutable: bool) -> None:
        self.__dict__[CfgNode.IMMUTABLE] = is_immutable
        for key, value in self.items():
            dict.__setitem__(self, key, _frozen(value) if is_immutable else _thawed(value))
            self._place(key, self[key])  # also what was put into a list by hand

    # -- copies

    def clone(self) -> Config:
        """Return a deep copy, frozen if this one is."""
        copy = Config()
        copy.__dict__.update(self.__dict__, _origins=dict(self._origins))
        for key, value in self.items():
            dict.__setitem__(copy, key, _copied(value))
        return copy

    def copy(self) -> Config:
        return self.clone()

    def __copy__(self) -> Config:
        return self.clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> Config:
        return self.clone()

    def __reduce__(self):
        return _restore, (dict(self), dict(self.__dict__))

    # -- text

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and lists."""
        return {key: plain(value) for key, value in self.items()}

    def flat(self) -> dict[str, Any]:
        """Return plain values by dotted key, {"DATA.BATCH_SIZE": 128, …}; lists stay whole."""
        values = {}
        for key, value in self.items():
            inner = value.flat().items() if isinstance(value, Config) else [("", plain(value))]
            values |= {f"{key}.{name}".rstrip("."): item for name, item in inner}
        return values

    def dump(self, origins: bool = False) -> str:
        """Return YAML that reads back to an equal config.

        Args:
            origins: end each line with a comment that says where its value was set.
        """
        lines = list(_dump_lines(self))
        if not origins:
            return "".join(f"{text}\n" for text, _ in lines)
        width = min(60, max(len(text) for text, origin in lines if origin))
        return "".join(f"{text:<{width}}  # {origin}\n" if origin else f"{text}\n"
                       for text, origin in lines)

    def __str__(self) -> str:
        return self.dump()


def _restore(values: dict[str, Any], state: dict[str, Any]) -> Config:
    config = Config()
    config.__dict__.update(state)
    dict.update(config, values)
    return config


def adopt(value: Any, origin: Origin) -> Any:
    """Return a value with its mappings as open nodes of that origin; Configs stay as they are."""
    if isinstance(value, Config):
        return _thawed(value.clone())
    if isinstance(value, Mapping):
        config = Config()
        for key, item in value.items():
            config._put(str(key), adopt(item, origin), origin)
        return config
    if isinstance(value, (list, tuple, range)):
        return [adopt(item, origin) for item in value]
    if isinstance(value, Path):
        return str(value)
    value = value.item() if hasattr(value, "item") else value  # a scalar of NumPy or torch
    if not isinstance(value, (bool, int, float, str, type(None))):
        raise ConfigError(f"a config holds numbers, words, lists and nodes, not {value!r}",
                          where=origin)
    return value


def _frozen(value: Any) -> Any:
    if isinstance(value, Config):
        value._immutable(True)
    elif isinstance(value, Mapping):  # put into a list by hand
        return _frozen(adopt(value, PYTHON))
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def _thawed(value: Any) -> Any:
    if isinstance(value, Config):
        value._immutable(False)
    return [_thawed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _copied(value: Any) -> Any:
    if isinstance(value, Config):
        return value.clone()
    return type(value)(map(_copied, value)) if isinstance(value, (list, tuple)) else value


def plain(value: Any) -> Any:
    """Return a value with its nodes as dicts and its lists as lists."""
    if isinstance(value, Config):
        return value.to_dict()
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _child_nodes(value: Any, path: str) -> Iterator[tuple[str, Config]]:
    if isinstance(value, Config):
        yield path, value
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _child_nodes(item, f"{path}.{number}")


_PLAIN_WORD = re.compile(r"(?!(?:true|false|null)$)[a-z_][a-z0-9_]*", re.IGNORECASE | re.ASCII)


def flow(value: Any) -> str:
    if value is None or isinstance(value, (bool, int)):  # most values: without an emitter for each
        return json.dumps(value)
    if isinstance(value, str) and _PLAIN_WORD.fullmatch(value):
        return value
    text = yaml.dump(plain(value), Dumper=Dumper, default_flow_style=True, sort_keys=False,
                     width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _key(key: str, indent: str) -> str:
    """Return a key as it is written, up to the colon."""
    text = flow(key)
    return text if len(text) < 1000 else f"? {text}\n{indent}"  # YAML reads no longer ones


def _dump_lines(config: Config, indent: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        origin, key = str(config.origin(key)), _key(key, indent)
        if isinstance(value, Config) and value and NAME not in value:
            yield f"{indent}{key}:", ""
            yield from _dump_lines(value, indent + "  ")
        elif isinstance(value, Config) and value:
            yield f"{indent}{key}:", ""
            yield from ((f"{indent}  {_key(name, f'{indent}  ')}: {flow(item)}",
                         value._whence(name)) for name, item in value.items())
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Config) for item in value):
            yield f"{indent}{key}:", ""
            for item in value:
                places = [item._whence(name) for name in item] if isinstance(
                    item, Config) else [origin]
                yield f"{indent}  - {flow(item)}", ", ".join(dict.fromkeys(places))
        else:
            yield f"{indent}{key}: {flow(value)}", origin


def in_words(value: Any) -> str:
    """Return a value of a config on one line: nodes as `CutOut(size=16)`."""
    if isinstance(value, Mapping) and NAME in value:
        inner = ", ".join(f"{key}={in_words(item)}" for key, item in value.items() if key != NAME)
        return f"{value[NAME]}({inner})" if inner else str(value[NAME])
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(in_words, value))}]"
    return "null" if value is None else str(value)
