"""Configs: the schema, `_BASE_` files, overrides, and where each value came from."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from cvkit.errors import ConfigError, correction, plural, raise_together, suggest
from cvkit.files import user_path
from cvkit.registry import NAME, REGISTRIES, import_user_code

BASE = "_BASE_"
RESOLVED = "resolved: everything set here is what the run used."  # in line 1 of a run's config

_MOST_TEXT = 1_000_000  # characters of a config, counted with what its aliases repeat
_MOST_LEVELS = 40


# -- the schema ------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A run-level key: its default, whose type it keeps, what it means and what is allowed."""

    default: Any
    doc: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str = ""
    is_path: bool = False


@dataclass(frozen=True)
class Component:
    """A node `{NAME: …, arguments}` of one registry, or a list of them."""

    kind: str
    doc: str
    default: Any = None
    required: bool = False
    is_list: bool = False


@dataclass(frozen=True)
class Demands:
    """A mapping that repeats parts of the config as they must be; see `cvkit.requirements`."""

    doc: str
    default: Any = None


SCHEMA: dict[str, Any] = {
    "IMPORTS": Key([], "your own .py files (relative to the config) or modules to register"),
    "SEED": Key(0, "seeds weights, shuffling and augmentation", minimum=0),
    "DETERMINISTIC": Key(False, "only deterministic GPU kernels; slower"),
    "OUTPUT_DIR": Key("runs", "run folders are made in here", is_path=True),
    "DEVICE": Key("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, mps"),
    "MODEL": Component("model", "the network", required=True),
    "DATA": {
        "DATASET": Component("dataset", "the images and their classes", required=True),
        "BATCH_SIZE": Key(128, "images per training batch", minimum=1),
        "EVAL_BATCH_SIZE": Key(0, "images per evaluation batch; 0: 2 BATCH_SIZE, on a GPU 8",
                               minimum=0),
        "LIMIT": Key(0, "at most so many images of each split, class-balanced; 0: all", minimum=0),
        "SPLIT_SEED": Key(0, "seeds what is held out and which images LIMIT takes: runs with other "
                          "SEEDs are tested on the same images", minimum=0),
        "VAL_FRACTION": Key(0.0, "part of train held out and monitored; 0: test is monitored",
                            minimum=0, maximum=0.9),
        "BACKEND": Key("auto", "auto: whole batches at once where every transform can and images "
                       "fit in memory, else image by image",
                       choices=("auto", "albumentations", "batched")),
        "CACHE_GB": Key(2.0, "memory for decoded image files; more are decoded each time",
                        minimum=0),
        "WORKERS": Key(-1, "loader processes for image by image; -1: what suits the machine",
                       minimum=-1),
        "TRAIN_TRANSFORMS": Component("transform", "augmentation, in order", [], is_list=True),
        "TEST_TRANSFORMS": Component("transform", "for test and validation", [], is_list=True),
    },
    "LOSS": Component("loss", "what is minimised", {NAME: "CrossEntropyLoss"}),
    "OPTIMIZER": Component("optimizer", "what updates the weights", required=True),
    "SCHEDULER": Component("scheduler", "what changes the learning rate; null: nothing"),
    "METRICS": Component("metric", "measured besides loss and accuracy", [], is_list=True),
    "WRITERS": Component("writer", "further logs besides metrics.jsonl", [], is_list=True),
    "VISUALIZERS": Component("visualizer", "what tools/visualize.py draws", [], is_list=True),
    "TRAIN": {
        "EPOCHS": Key(20, "passes over the training images", minimum=1),
        "PRECISION": Key("auto", "auto: bf16 where the hardware has it, else fp16 on a GPU",
                         choices=("auto", "fp32", "bf16", "fp16")),
        "COMPILE": Key(False, "torch.compile the model; a minute at the start, needs a compiler"),
        "CHANNELS_LAST": Key(True, "memory layout of images and weights; faster on most hardware"),
        "WARMUP_EPOCHS": Key(0.0, "linear warm-up from 0 before the scheduler starts", minimum=0),
        "CLIP_GRAD_NORM": Key(0.0, "largest norm of all gradients together; 0: any", minimum=0),
        "ACCUMULATE": Key(1, "batches per optimizer step", minimum=1),
        "EMA": Key(0.0, "decay of averaged weights, which are then evaluated; 0: off",
                   minimum=0, maximum=0.99999),
        "DECAY_NORM_AND_BIAS": Key(True, "weight decay on norms and biases as well"),
        "MONITOR": Key("accuracy", "what best.pt and early stopping follow: loss, or a metric"),
        "CHECKPOINT_EVERY": Key("epoch", "when last.pt is saved: epoch, or also inside of epochs, "
                                "every '500 steps' or '10 minutes'",
                                pattern=r"epoch|[1-9]\d* ?steps?|[1-9]\d* ?min(ute)?s?"),
        "SYNC_BATCHNORM": Key(False, "batch norms see the whole batch of all GPUs, where there are "
                              "several processes"),
        "UNUSED_PARAMETERS": Key(False, "with several processes: the model leaves out some of its "
                                 "parameters by chance, as stochastic depth does"),
        "EARLY_STOP": Key(0, "stop after so many epochs without a better MONITOR; 0: never",
                          minimum=0),
    },
    "REQUIRE": Demands("what an assignment demands of the keys above and of the results"),
}


# -- YAML, read safely and with places ---------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """Where a value was set: a file and line, the command line, Python, or the default."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


DEFAULT, COMMAND_LINE, PYTHON = Origin("default"), Origin("command line"), Origin("Python")

_RESOLVERS = [  # YAML 1.2's core schema: 1e-3 is a number; yes, 1:30 and 2024-01-01 are words
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("tag:yaml.org,2002:float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
                                r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
     list("-+.0123456789")),
]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(
    re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", node.value.lower())))
_Dumper.add_representer(str, lambda dumper, value: dumper.represent_scalar(
    "tag:yaml.org,2002:str", value,
    style='"' if re.search("[\x85\u2028\u2029\ufeff]", value) else None))
_Dumper.add_representer(float, lambda dumper, value: dumper.represent_scalar(
    "tag:yaml.org,2002:float", {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(
        repr(value), repr(value))))


def parse_value(text: str, path: str = "") -> Any:
    """Read one value as YAML, as it would be read in a config file.

    Args:
        path: the dotted key that it is for.
    """
    return _parse(text, COMMAND_LINE.source, path)


# What is said in words of YAML's grammar, and what was probably meant. True: it begins earlier.
_YAML_HINTS = [
    (r"'\\t'", False, "YAML does not allow tabs: indent with spaces."),
    (r"could not find expected ':'", True, "Write KEY: value, with a colon and a space."),
    (r"flow (mapping|sequence)", True, "A bracket is not closed, or a comma is missing."),
    (r"quoted scalar expected escape", False,
     "Within double quotes \\ begins an escape; single quotes keep it."),
    (r"quoted scalar found unexpected end", True, "A quote is not closed."),
    (r"block (collection|mapping)", False, "What belongs together is indented alike; an item of a "
     "list begins with '- ', a key ends with ': '."),
    (r"mapping values are not allowed", False,
     "Is the line indented like its neighbours? A value with ': ' in it needs quotes."),
    (r"cannot start any token|alias|anchor|tag", False, "A value that begins with one of "
     "* & ! % @ ` needs quotes."),
]


def _parse(text: str, source: str, path: str = "") -> Any:
    """Return YAML text as plain values, its mappings as open `Config` nodes with places."""
    loader = None
    on_command_line = f"{source} {path}".strip() if source == COMMAND_LINE.source else None
    try:
        loader = _Loader(text)
        loader.room = _MOST_TEXT
        if len(text) > loader.room:
            raise ConfigError(_TOO_LARGE, where=source)
        node = loader.get_single_node()
        return None if node is None else _convert(loader, node, source, path)
    except yaml.MarkedYAMLError as error:
        problem = " ".join(filter(None, [error.context, error.problem]))
        begins_earlier, hint = next(((earlier, hint) for pattern, earlier, hint in _YAML_HINTS
                                     if re.search(pattern, problem)), (False, None))
        mark = error.context_mark if begins_earlier else None
        mark = mark or error.problem_mark or error.context_mark
        where = on_command_line or (Origin(source, mark.line + 1) if mark else source)
        if blank := re.search(r"[^\S \t\r\n\x85\u2028\u2029]", text):  # pasted from a page
            hint = (f"Line {text.count(chr(10), 0, blank.start()) + 1} has a blank that YAML takes "
                    f"for a letter, U+{ord(blank[0]):04X}: type it again.")
        if on_command_line and re.search("flow|quoted", problem):
            hint = f"{hint} A value with spaces goes into quotes: {path or 'KEY'} '{{NAME: …}}'"
        raise ConfigError(f"not valid YAML: {problem}", where=where, hint=hint) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"not valid YAML: the character U+{error.character:04X} is not allowed",
                          where=on_command_line or Origin(source, line),
                          hint="Is it a text file? Within quotes write \\x07 or \\u2028.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}",
                          where=on_command_line or source) from None
    except RecursionError:
        raise ConfigError(_TOO_DEEP, where=on_command_line or source) from None
    finally:
        if loader is not None:
            loader.dispose()


_TOO_LARGE = (f"a config has at most {_MOST_TEXT:,} characters, those counted again that its "
              "aliases (*) repeat")
_TOO_DEEP = "not valid YAML: nested too deeply, or an alias that contains itself"


def _convert(loader: _Loader, node: yaml.Node, source: str, path: str, level: int = 0) -> Any:
    def origin(of: yaml.Node) -> Origin:
        on_file = source != COMMAND_LINE.source
        return Origin(source, of.start_mark.line + 1) if on_file else COMMAND_LINE

    def scalar(of: yaml.Node) -> Any:
        resolved = loader.resolve(yaml.ScalarNode, of.value, (True, False))
        if of.tag not in (resolved, "tag:yaml.org,2002:str"):
            raise ConfigError(f"not valid YAML: the tag {of.tag} means nothing here",
                              where=f"{origin(of)} {path}".strip())
        value = loader.construct_object(of)
        if isinstance(value, int) and abs(value) > 1e300:
            raise ConfigError(f"{of.value[:20]}… has too many digits",
                              where=f"{origin(of)} {path}".strip())
        return value

    # An alias stands for the same node: ten of ten of ten … would be more than memory holds.
    loader.room -= 4 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
    if loader.room < 0 or level > _MOST_LEVELS:
        raise ConfigError(_TOO_LARGE if loader.room < 0 else _TOO_DEEP,
                          where=f"{origin(node)} {path[:60]}".strip())
    kind = {yaml.MappingNode: "map", yaml.SequenceNode: "seq"}.get(type(node))
    if kind and node.tag != f"tag:yaml.org,2002:{kind}":
        raise ConfigError(f"not valid YAML: the tag {node.tag} means nothing here",
                          where=f"{origin(node)} {path}")
    if isinstance(node, yaml.MappingNode):
        config = Config()
        config._set_path(path)
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError("keys are words, not lists or mappings",
                                  where=f"{origin(key_node)} {path}".strip())
            loader.room -= len(key_node.value)
            key = scalar(key_node)
            dotted = f"{path}.{key}" if path else str(key)
            if not isinstance(key, str):
                raise ConfigError(f"keys are words, not {key!r}",
                                  where=f"{origin(key_node)} {dotted}",
                                  hint=f'A word that looks like a value needs quotes: '
                                       f'"{key_node.value}". A list is written [1, 2].')
            if key == "<<":
                raise ConfigError("merge keys are not read", where=f"{origin(key_node)} {dotted}",
                                  hint=f"Put what is shared into a file and name it in {BASE}.")
            if key in config:
                raise ConfigError(f"{key} stands twice; it was first set in line "
                                  f"{config.origin(key).line}",
                                  where=f"{origin(key_node)} {dotted}", hint="Remove one of them.")
            config._put(key, _convert(loader, value_node, source, dotted, level + 1),
                        origin(key_node))
        return config
    if isinstance(node, yaml.SequenceNode):
        return [_convert(loader, item, source, f"{path}.{number}", level + 1)
                for number, item in enumerate(node.value)]
    return scalar(node)


# -- the config class --------------------------------------------------------------------


class Config(CfgNode):
    """A yacs node that knows its schema and the origin of every value.

    `cfg.TRAIN.EPOCHS` reads; `clone()`, then `defrost()`, then assignment changes: unknown
    keys and wrong types are refused at once. `freeze()` guards every way to change it,
    lists included (they become tuples). `dump()` is YAML that reads back to an equal config.
    """

    def __init__(self, values: Mapping[str, Any] | None = None):
        dict.__init__(self)
        self.__dict__.update({CfgNode.IMMUTABLE: False, "_origins": {}, "_path": "",
                              "_schema": None, "_closed": False, "_name": "run",
                              "_replaced": {}})
        for key, value in (values or {}).items():
            self._put(key, _adopt(value, PYTHON), PYTHON)

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
        value = _adopt(value, PYTHON)
        if self._closed:
            problems: list[ConfigError] = []
            if key not in self._schema:
                raise _unknown_key(key, self._path, self._schema, PYTHON)
            self._place(key, value)
            value = _conform(value, self._schema[key], self.path(key), PYTHON, problems)
            raise_together(problems)
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
        if self._closed:
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

    def merge_from_file(self, path: str | Path) -> None:
        """Merge a YAML file with its `_BASE_`s; see the one merge rule in `merge`."""
        self._merge(_read_file(user_path(path)))

    def merge_from_list(self, pairs: Iterable[Any]) -> None:
        """Merge `["TRAIN.EPOCHS", "3", …]` as the command line does."""
        self._merge(_read_overrides(list(pairs)))

    def merge_from_other_cfg(self, other: Mapping[str, Any]) -> None:
        """Merge another config or mapping."""
        self._merge(_adopt(other, PYTHON))

    def _merge(self, over: Config) -> None:
        self._refuse_frozen()
        merged = merge(self, over)
        if self._closed:
            merged = _conform_root(merged, self._schema, self._path)
        dict.clear(self)
        dict.update(self, merged)
        self.__dict__["_origins"] = merged._origins

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


def _adopt(value: Any, origin: Origin) -> Any:
    """Return a value with its mappings as open nodes of that origin; Configs stay as they are."""
    if isinstance(value, Config):
        return _thawed(value.clone())
    if isinstance(value, Mapping):
        config = Config()
        for key, item in value.items():
            config._put(str(key), _adopt(item, origin), origin)
        return config
    if isinstance(value, (list, tuple, range)):
        return [_adopt(item, origin) for item in value]
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
        return _frozen(_adopt(value, PYTHON))
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


def _flow(value: Any) -> str:
    if value is None or isinstance(value, (bool, int)):  # most values: without an emitter for each
        return json.dumps(value)
    if isinstance(value, str) and _PLAIN_WORD.fullmatch(value):
        return value
    text = yaml.dump(plain(value), Dumper=_Dumper, default_flow_style=True, sort_keys=False,
                     width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _key(key: str, indent: str) -> str:
    """Return a key as it is written, up to the colon."""
    text = _flow(key)
    return text if len(text) < 1000 else f"? {text}\n{indent}"  # YAML reads no longer ones


def _dump_lines(config: Config, indent: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        origin, key = str(config.origin(key)), _key(key, indent)
        if isinstance(value, Config) and value and NAME not in value:
            yield f"{indent}{key}:", ""
            yield from _dump_lines(value, indent + "  ")
        elif isinstance(value, Config) and value:
            yield f"{indent}{key}:", ""
            yield from ((f"{indent}  {_key(name, f'{indent}  ')}: {_flow(item)}",
                         value._whence(name)) for name, item in value.items())
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Config) for item in value):
            yield f"{indent}{key}:", ""
            for item in value:
                places = [item._whence(name) for name in item] if isinstance(
                    item, Config) else [origin]
                yield f"{indent}  - {_flow(item)}", ", ".join(dict.fromkeys(places))
        else:
            yield f"{indent}{key}: {_flow(value)}", origin


# -- merging -----------------------------------------------------------------------------


class _ByNumber(Config):
    """Items of a list, addressed by number: `DATA.TRAIN_TRANSFORMS.1.size 8`."""


def _refuse_numbers(value: Any) -> None:
    """Refuse numbers of items where there is no list to take them from."""
    if isinstance(value, _ByNumber):
        raise _no_list(value)
    for item in value.values() if isinstance(value, Config) else ():
        _refuse_numbers(item)


def _no_list(over: _ByNumber, base: Any = None) -> ConfigError:
    first = next(iter(over))
    return ConfigError(f"{over.path()} is not a list, its items have no numbers",
                       where=f"{over.origin(first)} {over.path(first)}",
                       hint=suggest(first, base) if isinstance(base, Config) else None)


def merge(base: Any, over: Any) -> Any:
    """Return `over` laid on `base`, by the one rule for base files, files and command line.

    Nodes merge key by key; a node whose NAME changes is replaced with all its arguments;
    anything else, lists included, is replaced whole.
    """
    if isinstance(over, _ByNumber) and not isinstance(base, (_ByNumber, type(None))):
        return _merge_items(base, over)
    if not (isinstance(base, Config) and isinstance(over, Config)):
        return over
    is_replaced = NAME in over and NAME in base and over[NAME] != base[NAME]
    merged = type(base)()
    replaced = {**base.replaced, **over.replaced}
    if is_replaced:
        replaced |= {key: f"{_flow(key)} {_flow(value)} of {base.origin(key)}"
                     for key, value in base.items() if key != NAME}
    merged.__dict__.update(base.__dict__, _origins={}, _replaced=replaced)
    if not is_replaced:
        for key, value in base.items():
            merged._put(key, value, base.origin(key))
    if is_replaced:
        merged._put(NAME, over[NAME], over.origin(NAME))  # first, as one writes it
    for key, value in over.items():
        if not is_replaced or isinstance(value, _ByNumber):
            value = merge(base.get(key), value)
        merged._put(key, value, over.origin(key))
    return merged


def _merge_items(base: Any, over: _ByNumber) -> list[Any]:
    if not isinstance(base, (list, tuple)):
        raise _no_list(over, base)
    items = list(base)
    for number, value in over.items():
        if not number.isdecimal() or int(number) >= len(items):
            numbers = f"they count from 0 to {len(items) - 1}" if items else "it is empty"
            raise ConfigError(f"{over.path()} has {plural(len(items), 'item')}; {numbers}",
                              where=f"{over.origin(number)} {over.path(number)}",
                              hint=f"To add one, give the whole list: {over.path()} '[…]'")
        items[int(number)] = merge(items[int(number)], value)
    return items


# -- reading files and overrides -----------------------------------------------------------


def _read_file(path: Path, chain: tuple[Path, ...] = (), where: object = None) -> Config:
    """Return a file merged over its `_BASE_` files."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MOST_TEXT + 1)  # no more: a _BASE_ may be /dev/zero
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
    config = _parse(text, str(path))
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
    if isinstance(config.get("IMPORTS"), list):
        dict.__setitem__(config, "IMPORTS", [
            os.path.abspath(path.parent / user_path(item))
            if isinstance(item, str) and item.endswith(".py") else item
            for item in config["IMPORTS"]])
    merged = Config()
    for base in bases:
        place = path.parent / user_path(base)
        merged = merge(merged, _read_file(place, (*chain, path), base_where))
    return merge(merged, config)


def _complete(config: Config) -> None:
    """Add to a run's config what an older version did not write: its SEED seeded splits as well."""
    data = config.get("DATA")
    if isinstance(data, Config) and "SPLIT_SEED" not in data and "SEED" in config:
        data._put("SPLIT_SEED", config["SEED"], config.origin("SEED"))


def _read_overrides(overrides: list[Any] | Mapping[str, Any]) -> Config:
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
        item = _adopt(parse_value(value, key) if is_text else value, origin)
        for depth in reversed(range(len(parts))):
            node = _ByNumber() if parts[depth].isdecimal() and depth else Config()
            node.__dict__["_path"] = ".".join(parts[:depth])
            node._put(parts[depth], item, origin)
            item = node
        tree = merge(tree, item)
    if isinstance(tree.get("IMPORTS"), list):
        tree._put("IMPORTS", [
            os.path.abspath(user_path(item)) if str(item).endswith(".py") else item
            for item in tree["IMPORTS"]], origin)
    return tree


# -- conforming to the schema ----------------------------------------------------------------


def _unknown_key(key: str, path: str, schema: Mapping[str, Any], origin: Origin) -> ConfigError:
    dotted = f"{path}.{key}" if path else key
    elsewhere = [full for full in _all_keys(SCHEMA)
                 if full.split(".")[-1] == key.upper() and full != dotted]
    name = key.split(":")[0]
    first, _, rest = key.partition(".")
    if rest and isinstance(schema.get(first), dict):
        nested = "{".join(f"{part}: " for part in key.split("."))
        hint = f"Write {nested}…{'}' * key.count('.')}; keys with dots are for the command line."
    elif key.strip("_").upper() == BASE.strip("_"):
        hint = f"{BASE} stands at the top of a file: {BASE}: other.yaml"
    elif name != key and name in schema:
        hint = f"Write {name}: {key[len(name) + 1:]}, with a space after the colon."
    elif key.upper() in schema:
        hint = f"Did you mean {key.upper()}? Keys of a run are in upper case."
    elif key in SCHEMA:
        hint = f"{key} stands at the top of a config, not in {path}."
    else:
        hint = (f"Did you mean {elsewhere[0]}?" if elsewhere else suggest(key, schema, listed=20))
    return ConfigError(f"unknown key {key}", where=f"{origin} {dotted}", hint=hint)


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
    meant = [key for key in _all_keys(SCHEMA) if takes_keys and key.split(".")[-1] == word]
    hint = (f"Did you mean {meant[0]}? The flags are {', '.join(own)}." if meant
            else suggest(flag, own, listed=30).replace("Allowed:", "The flags are"))
    if takes_keys:
        hint += "\n  Settings are KEY VALUE pairs: TRAIN.EPOCHS 5 OPTIMIZER.lr 0.05"
    return ConfigError(f"no flag {flag}", where=COMMAND_LINE, hint=hint)


def _all_keys(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, spec in schema.items():
        yield path + key
        if isinstance(spec, dict):
            yield from _all_keys(spec, f"{path}{key}.")


def _conform_root(config: Config, schema: Mapping[str, Any] = SCHEMA, path: str = "",
                  source: str | None = None) -> Config:
    """Return a closed, typed config with all defaults filled in.

    Args:
        source: the file that lacks what no other file can be named for.

    Raises:
        ConfigError: unknown keys, wrong types, missing components, all in one message.
    """
    problems: list[ConfigError] = []
    _refuse_numbers(config)
    config._set_path(path)
    file = _files(config) or source
    config = _conform(config, schema, path, DEFAULT, problems)
    for problem in problems:  # of a section that is empty or absent
        problem.where = problem.where or file
    raise_together(problems)
    config._set_path(path)
    return config


def _conform(value: Any, spec: Any, path: str, origin: Origin,
             problems: list[ConfigError]) -> Any:
    where = f"{origin} {path}"
    if isinstance(spec, Component):
        return _conform_component(value, spec, where, problems)
    if isinstance(spec, Key):
        return _conform_key(value, spec, where, problems)
    if isinstance(spec, Demands):
        if not isinstance(value, (Config, type(None))):
            problems.append(ConfigError(f"{path} holds keys, not {plain(value)!r}", where=where,
                                        hint=f"{spec.doc[0].upper()}{spec.doc[1:]}."))
        return value
    if not isinstance(value, Config):
        if value is not None:
            problems.append(ConfigError(f"{path} holds keys, not {plain(value)!r}", where=where,
                                        hint=f"Its keys are {', '.join(spec)}."))
        value = Config()
    closed = Config()
    closed.__dict__.update(_schema=spec, _closed=True, _path=path)
    for key in value:
        if key not in spec:
            problems.append(_unknown_key(key, path, spec, value.origin(key)))
    for key, inner in spec.items():
        dotted = f"{path}.{key}" if path else key
        is_set = key in value
        item = value[key] if is_set else _default(inner)
        place = value.origin(key) if is_set else DEFAULT
        if isinstance(inner, Component) and inner.required and not is_set:
            problems.append(ConfigError(f"{dotted} is missing", where=_files(value),
                                        hint=f"Add {dotted}: {{NAME: …}}, one of "
                                             f"`python tools/registry.py {inner.kind}`."))
            continue
        closed._put(key, _conform(item, inner, dotted, place, problems), place)
    return closed


def _files(config: Config) -> str | None:
    return next((origin.source for origin in reversed(config._origins.values())
                 if origin.line), None)


def _default(spec: Any) -> Any:
    default = Config() if isinstance(spec, dict) else spec.default
    return _adopt(default, DEFAULT)


def _conform_key(value: Any, spec: Key, where: str, problems: list[ConfigError]) -> Any:
    kind = type(spec.default)
    if spec.is_path and isinstance(value, str) and value.startswith("~"):
        value = str(user_path(value))
    if kind is float and type(value) is int:
        value = float(value)
    if kind is list:
        is_right = isinstance(value, (list, tuple)) and all(type(item) is str for item in value)
        expected = "a list of words"
    else:
        is_right = type(value) is kind
        expected = {bool: "true or false", int: "a whole number", float: "a number",
                    str: "a word"}[kind]
    doc = _sentence(spec)
    if not is_right:
        shown = (f"the word {value!r}" if isinstance(value, str)
                 else json.dumps(plain(value), ensure_ascii=False))
        fix = (f"Write [{value}]." if kind is list and isinstance(value, str)
               else correction(value, {kind}))
        problems.append(ConfigError(f"expected {expected}, not {shown}", where=where,
                                    hint=f"{fix} {doc}".strip()))
    elif spec.choices and value not in spec.choices:
        problems.append(ConfigError(f"{value!r} is not possible", where=where,
                                    hint=suggest(value, spec.choices)))
    elif spec.pattern and not re.fullmatch(spec.pattern, value):
        problems.append(ConfigError(f"{value!r} is not possible", where=where, hint=doc))
    elif (spec.minimum is not None and not value >= spec.minimum) or (
            spec.maximum is not None and not value <= spec.maximum):
        upper = f" to {spec.maximum:g}" if spec.maximum is not None else " or more"
        problems.append(ConfigError(f"{value!r} is out of range; {spec.minimum:g}{upper} is "
                                    "possible", where=where, hint=doc))
    return value


def _sentence(spec: Key) -> str:
    """Return what a key means as a sentence; values that it begins with stay as they are."""
    begins_with_value = isinstance(spec.default, str) and spec.doc.startswith(spec.default)
    return f"{spec.doc if begins_with_value else spec.doc[0].upper() + spec.doc[1:]}."


def _conform_component(value: Any, spec: Component, where: str,
                       problems: list[ConfigError]) -> Any:
    registry = REGISTRIES[spec.kind]
    if spec.is_list and not isinstance(value, (list, tuple)):
        example = _flow(value) if isinstance(value, Config) and NAME in value else (
            f"{{NAME: {value}}}" if isinstance(value, str) else "")
        hint = f"Write [{example}]." if value is None or example else None
        if isinstance(value, Config) and not example:
            hint = f"Its items are addressed by number: {where.split()[-1]}.0"
        problems.append(ConfigError(f"expected a list of {spec.kind}s, each {{NAME: …}}",
                                    where=where, hint=hint))
    elif spec.is_list:
        refusals = [registry.refusal_of(item, f"{where}.{number}")
                    for number, item in enumerate(value)]
        problems.extend(filter(None, refusals))
    elif spec.required or spec.default is not None or value is not None:
        refusal = registry.refusal_of(value, where)
        is_none = refusal and not spec.required and spec.default is None
        if is_none and (fix := correction(value, {type(None)})):
            refusal.hint = fix
        if refusal and isinstance(value, Config) and NAME not in value and spec.default:
            refusal.hint = f"{NAME}: {spec.default[NAME]} is the default. {refusal.hint}"
        problems.extend([refusal] if refusal else [])
    return value


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
    if not isinstance(overrides, Mapping):
        overrides = list(overrides)
    config = _conform_root(merge(config, _read_overrides(overrides)), source=str(path))
    # A run's own config.yaml, used again, keeps the name of the config that it resolved.
    path = path.resolve()
    is_of_a_run = (path.parent / "checkpoints").is_dir()
    config.__dict__["_name"] = path.parent.parent.name if is_of_a_run else path.stem
    config.freeze()
    return config


def read_config(text: str, source: str, name: str = "run",
                overrides: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """Return a config from text that `dump` wrote, with overrides, frozen."""
    config = _parse(text, source)
    if not isinstance(config, Config):
        raise ConfigError("not a config", where=source)
    _complete(config)
    if not isinstance(overrides, Mapping):
        overrides = list(overrides)
    config = _conform_root(merge(config, _read_overrides(overrides)))
    config.__dict__["_name"] = name
    config.freeze()
    return config


def components(config: Config, schema: Mapping[str, Any] = SCHEMA) -> Iterator[tuple[str, Config]]:
    """Yield (kind, node) of every component that a config names."""
    for key, spec in schema.items():
        value = config[key]
        if isinstance(spec, dict):
            yield from components(value, spec)
        elif isinstance(spec, Component) and value is not None:
            for node in value if spec.is_list else [value]:
                yield spec.kind, node


def check_components(config: Config) -> None:
    """Import the config's `IMPORTS`, then check each component's name and arguments.

    Nothing is built and no data is read.

    Raises:
        ConfigError: everything that is wrong, in one message.
    """
    import_user_code(list(config.IMPORTS), where=config.where("IMPORTS"))
    problems: list[ConfigError] = []
    for kind, node in components(config):
        try:
            REGISTRIES[kind].check(node)
        except ConfigError as error:
            problems.append(error)
    raise_together(problems)
