"""The nodes of a config: they know where each value was set, and freezing closes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from cvkit.config.dialect import flow
from cvkit.errors import ConfigError
from cvkit.registry import NAME
from cvkit.registry.signatures import plain
from cvkit.system.text import suggest

# Values that no line of a file sets ("configs/mine.yaml:3") have one of these origins.
DEFAULT, COMMAND_LINE, PYTHON = "default", "command line", "Python"


def dotted(path: str, key: object) -> str:
    """Return the dotted key of what stands under a key, or a number, of a node or list."""
    return f"{path}.{key}" if path else str(key)


class Config(CfgNode):
    """A yacs node that knows the origin of every value.

    `cfg.TRAIN.EPOCHS` reads; `clone()`, then `defrost()`, then assignment changes. `freeze()`
    guards every way to change it, lists included (they become tuples). `dump()` is YAML that
    reads back to an equal config.

    Args:
        values: mappings among them become nodes.
        origin: where they were set.
        path: the dotted key of the node.

    Attributes:
        name: of the config's file, which its runs are filed under.
        replaced: what changes of NAME took from this node: {"lr": "lr 0.1 of a.yaml:9"}.
    """

    def __init__(self, values: Mapping[str, Any] | None = None, origin: str = PYTHON,
                 path: str = ""):
        dict.__init__(self)
        self.__dict__.update({CfgNode.IMMUTABLE: False, "name": "run", "replaced": {},
                              "_origins": {}, "_path": path})
        for key, value in (values or {}).items():
            self.put(str(key), adopt(value, origin, self.path(key)), origin)

    def origin(self, key: str) -> str:
        """Return where a key's value was set."""
        return self._origins.get(key, DEFAULT)

    def path(self, key: str | None = None) -> str:
        """Return the dotted key of the node or of a key in it, such as `DATA.DATASET.root`."""
        return self._path if key is None else dotted(self._path, key)

    def where(self, key: str | None = None) -> str:
        """Return "file:line DOTTED.KEY" for messages; without a key that of the node."""
        known = key if key is not None and key in self else next(iter(self), "")
        return f"{self.origin(known)} {self.path(key)}".strip()

    def put(self, key: str, value: Any, origin: str) -> None:
        """Set a value as it is, unchecked; `config.KEY = value` is the way for everyone else."""
        dict.__setitem__(self, key, value)
        self._origins[key] = origin

    def _refuse_frozen(self) -> None:
        if self.is_frozen():
            raise AttributeError(f"{self._path or 'the config'} is frozen; change a copy: "
                                 "cfg = cfg.clone(); cfg.defrost()")

    def __setitem__(self, key: str, value: Any) -> None:
        self._refuse_frozen()
        self.put(key, adopt(value, PYTHON, self.path(key)), PYTHON)

    def __delitem__(self, key: str) -> None:
        self._refuse_frozen()
        dict.__delitem__(self, key)

    def __getattr__(self, key: str) -> Any:
        if key in self:
            return self[key]
        hint = "" if key.startswith("_") else f". {suggest(key, self)}"
        raise AttributeError(f"{self.__dict__.get('_path') or 'config'} has no {key}{hint}")

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def __delattr__(self, key: str) -> None:
        del self[key]

    # The methods of dict change it past the guards above; these go through them.
    clear, popitem = MutableMapping.clear, MutableMapping.popitem
    setdefault, update = MutableMapping.setdefault, MutableMapping.update

    def pop(self, key: str, *default: Any) -> Any:
        if key not in self:
            return dict.pop(self, key, *default)
        value = self[key]
        del self[key]
        return value

    def __ior__(self, other: Mapping[str, Any]) -> Config:
        self.update(other)
        return self

    def merge_from_file(self, *_: Any) -> None:
        """Refuse; what yacs would merge here is neither checked nor knows where it came from."""
        raise AttributeError("a config is merged as it is read, load_config(path, overrides), and "
                             "has the keys of its schema")

    merge_from_list = merge_from_other_cfg = merge_from_file
    set_new_allowed = register_renamed_key = register_deprecated_key = merge_from_file

    def _immutable(self, is_immutable: bool) -> None:
        self.__dict__[CfgNode.IMMUTABLE] = is_immutable
        for key, value in self.items():
            dict.__setitem__(self, key, _frozen(value, is_immutable, self.path(key)))

    copy = __copy__ = CfgNode.clone

    def __reduce__(self):
        return type(self), (), (dict(self), dict(self.__dict__))

    def __setstate__(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        dict.update(self, state[0])
        self.__dict__.update(state[1])

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and lists."""
        return plain(self)

    def flat(self) -> dict[str, Any]:
        """Return plain values by dotted key, {"DATA.BATCH_SIZE": 128, …}; lists stay whole."""
        values: dict[str, Any] = {}
        for key, value in self.items():
            values |= ({dotted(key, name): item for name, item in value.flat().items()}
                       if isinstance(value, Config) else {key: plain(value)})
        return values

    def dump(self, origins: bool = False) -> str:
        """Return YAML that reads back to an equal config.

        Args:
            origins: end each line with a comment that says where its value was set.
        """
        lines = list(self._lines())
        width = min(60, max((len(text) for text, origin in lines if origin), default=0))
        return "".join(f"{text:<{width}}  # {origin}\n" if origin and origins else f"{text}\n"
                       for text, origin in lines)

    __str__ = dump

    def _lines(self, indent: str = "") -> Iterator[tuple[str, str]]:
        """Yield (line, where its value was set)."""
        for key, value in self.items():
            name = f"{indent}{flow(key)}"
            # YAML reads no longer keys on one line with their values.
            name = name if len(name) < 1000 else f"{indent}? {flow(key)}\n{indent}"
            if isinstance(value, Config) and value:
                yield f"{name}:", ""
                yield from value._lines(f"{indent}  ")
            elif isinstance(value, (list, tuple)) and any(isinstance(v, Config) for v in value):
                yield f"{name}:", ""
                for item in value:
                    told = map(item._told, item) if isinstance(item, Config) else [self._told(key)]
                    yield f"{indent}  - {flow(item)}", ", ".join(dict.fromkeys(told))
            else:
                yield f"{name}: {flow(value)}", self._told(key)

    def _told(self, key: str) -> str:
        """Return where a key's value was set and, with a changed NAME, what that dropped."""
        dropped = ", ".join(text for name, text in self.replaced.items() if name not in self)
        return f"{self.origin(key)}{f', dropped {dropped}' if key == NAME and dropped else ''}"


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return a frozen copy of a config with other values, by dotted keys whose nodes are there."""
    config = config.clone()
    config.defrost()
    for key, value in settings.items():
        *sections, name = key.split(".")
        node = config
        for section in sections:
            node = node[section]
        node[name] = value
    config.freeze()
    return config


def _frozen(value: Any, is_frozen: bool, path: str) -> Any:
    """Return a value with its nodes frozen and its lists as tuples, or both open again."""
    if isinstance(value, Mapping):
        # A list may have been changed by hand: by mappings that are no nodes, in its order.
        value = value if isinstance(value, Config) else Config(value, PYTHON, path)
        value.__dict__["_path"] = path
        value._immutable(is_frozen)
    elif isinstance(value, (list, tuple)):
        items = (_frozen(item, is_frozen, dotted(path, n)) for n, item in enumerate(value))
        value = tuple(items) if is_frozen else list(items)
    return value


def adopt(value: Any, origin: str, path: str) -> Any:
    """Return a value as an open config holds it, its mappings as new nodes.

    Args:
        value: of Python.
        origin: where it is set.
        path: the dotted key that it is set under.

    Raises:
        ConfigError: it is, or holds, what a config cannot.
    """
    if isinstance(value, Mapping):
        return Config(value, origin, path)
    if isinstance(value, (list, tuple, range)):
        return [adopt(item, origin, dotted(path, number)) for number, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    # A scalar of NumPy or torch has one of Python's.
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, (bool, int, float, str, type(None))):
        raise ConfigError(f"a config holds numbers, strings, lists and nodes, not {value!r}",
                          where=f"{origin} {path}".strip())
    return value


def in_words(value: Any) -> str:
    """Return a value of a config on one line: nodes as `CutOut(size=16)`."""
    if isinstance(value, Mapping) and NAME in value:
        inner = ", ".join(f"{key}={in_words(item)}" for key, item in value.items() if key != NAME)
        return f"{value[NAME]}({inner})" if inner else str(value[NAME])
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {in_words(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(in_words, value))}]"
    return "null" if value is None else str(value)
