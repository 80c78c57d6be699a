"""Holding a config against the schema, and its components against the registries."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Iterator, Mapping
from typing import Any

from cvkit.config.dialect import flow
from cvkit.config.schema import BASE, SCHEMA, Component, Key
from cvkit.config.tree import DEFAULT, PYTHON, Config, adopt, dotted, place, plain
from cvkit.errors import ConfigError, raise_together
from cvkit.registry import NAME, REGISTRIES
from cvkit.registry.user_code import import_user_code
from cvkit.system.files import user_path
from cvkit.system.text import correction, suggest


class Section(Config):
    """A node that has the keys of the schema; others and wrong values are refused at once."""

    def __setitem__(self, key: str, value: Any) -> None:
        self.refuse_frozen()
        schema = functools.reduce(operator.getitem, filter(None, self.path().split(".")), SCHEMA)
        if key not in schema:
            raise _unknown_key(key, self.path(), schema, PYTHON)
        value = adopt(value, PYTHON)
        place(value, self.path(key))
        self.put(key, conform(value, schema[key], self.path(key), PYTHON, PYTHON), PYTHON)

    def __delitem__(self, key: str) -> None:
        raise AttributeError(f"{self.path(key)} belongs to every config; set it, don't delete")


def conform(value: Any, spec: Any, path: str, origin: str, source: str) -> Any:
    """Return a value as the schema has it: of the right type, sections with all their keys.

    Args:
        value: an open node, or what stands under a key.
        spec: what the schema says of it.
        path: its dotted key.
        origin: where it was set.
        source: the file that lacks what is missing.

    Raises:
        ConfigError: unknown keys, wrong types, missing components, all in one message.
    """
    problems = list(_problems(value, spec, path, origin))
    for problem in problems:
        problem.where = problem.where or source
    raise_together(problems)
    return _filled(value, spec)


def _filled(value: Any, spec: Any) -> Any:
    if isinstance(spec, dict):
        section, value = Section(), value or Config()
        for key, inner in spec.items():
            default = None if isinstance(inner, dict) else adopt(inner.default, DEFAULT)
            section.put(key, _filled(value.get(key, default), inner), value.origin(key))
        return section
    if isinstance(spec.default, float):
        return float(value)
    is_home = isinstance(spec, Key) and spec.is_path and value.startswith("~")
    return str(user_path(value)) if is_home else value


def _problems(value: Any, spec: Any, path: str, origin: str) -> Iterator[ConfigError]:
    where = f"{origin} {path}"
    if isinstance(spec, Component):
        yield from _component_problems(value, spec, where)
    elif isinstance(spec, Key) and spec.default is not None:
        yield from _key_problems(value, spec, where)
    elif value is not None and not isinstance(value, Config):
        hint = f"Its keys are {', '.join(spec)}." if isinstance(spec, dict) else f"{spec.doc}."
        yield ConfigError(f"{path} holds keys, not {plain(value)!r}", where=where, hint=hint)
    elif isinstance(spec, dict):
        value = value or Config()
        for key in value:
            if key not in spec:
                yield _unknown_key(key, path, spec, value.origin(key))
        for key, inner in spec.items():
            if key in value or isinstance(inner, dict):
                yield from _problems(value.get(key), inner, dotted(path, key), value.origin(key))
            elif isinstance(inner, Component) and inner.required:
                yield ConfigError(f"{dotted(path, key)} is missing",
                                  hint=f"Add {dotted(path, key)}: {{NAME: …}}, one of "
                                       f"`python tools/registry.py {inner.kind}`.")


def _unknown_key(key: str, path: str, schema: Mapping[str, Any], origin: str) -> ConfigError:
    full = dotted(path, key)
    elsewhere = [other for other in all_keys()
                 if other.split(".")[-1] == key.upper() and other != full]
    name, _, rest = key.partition(":")
    if isinstance(schema.get(key.split(".")[0]), dict):
        nested = key.replace(".", ": {") + ": …" + "}" * key.count(".")
        hint = f"Write {nested}; keys with dots are for the command line."
    elif key.strip("_").upper() == BASE.strip("_"):
        hint = f"{BASE} stands at the top of a file: {BASE}: other.yaml"
    elif name in schema:
        hint = f"Write {name}: {rest}, with a space after the colon."
    elif key in SCHEMA:
        hint = f"{key} stands at the top of a config, not in {path}."
    else:
        hint = f"Did you mean {elsewhere[0]}?" if elsewhere else suggest(key, schema, listed=20)
    return ConfigError(f"unknown key {key}", where=f"{origin} {full}", hint=hint)


def all_keys(schema: Mapping[str, Any] = SCHEMA, path: str = "") -> Iterator[str]:
    """Yield the dotted keys that the schema has."""
    for key, spec in schema.items():
        yield dotted(path, key)
        if isinstance(spec, dict):
            yield from all_keys(spec, dotted(path, key))


_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a string",
             list: "a list of strings"}


def _key_problems(value: Any, spec: Key, where: str) -> Iterator[ConfigError]:
    kind = type(spec.default)
    hint = f"{where.split()[-1]}: {spec.doc}."
    if kind is list:
        is_right = isinstance(value, (list, tuple)) and all(type(item) is str for item in value)
    else:
        is_right = type(value) in ((int, float) if kind is float else (kind,))
    if not is_right:
        is_string = isinstance(value, str)
        shown = f"the string {value!r}" if is_string else flow(value)
        fix = f"Write [{value}]." if kind is list and is_string else correction(value, {kind})
        problem, hint = f"expected {_EXPECTED[kind]}, not {shown}", f"{fix} {hint}".strip()
    elif spec.choices and value not in spec.choices:
        problem, hint = f"{value!r} is not possible", suggest(value, spec.choices)
    elif spec.pattern and not re.fullmatch(spec.pattern, value):
        problem = f"{value!r} is not possible"
    elif kind in (int, float) and not spec.minimum <= value <= spec.maximum:
        upper = f" to {spec.maximum:g}" if spec.maximum < float("inf") else " or more"
        problem = f"{value!r} is out of range; {spec.minimum:g}{upper} is possible"
    else:
        return
    yield ConfigError(problem, where=where, hint=hint)


def _component_problems(value: Any, spec: Component, where: str) -> Iterator[ConfigError]:
    registry, is_optional = REGISTRIES[spec.kind], not spec.required and spec.default is None
    is_node = isinstance(value, Config)
    if not spec.is_list:
        refusal = registry.refusal_of(value, where)
        if not refusal or (is_optional and value is None):
            return
        if is_optional and (fix := correction(value, {type(None)})):
            refusal.hint = fix
        if is_node and NAME not in value and spec.default:
            refusal.hint = f"{NAME}: {spec.default[NAME]} is the default. {refusal.hint}"
        yield refusal
    elif isinstance(value, (list, tuple)):
        refusals = (registry.refusal_of(item, f"{where}.{number}")
                    for number, item in enumerate(value))
        yield from filter(None, refusals)
    else:
        hint = None
        if is_node and NAME not in value:
            hint = f"Its items are addressed by number: {where.split()[-1]}.0"
        elif is_node or isinstance(value, (str, type(None))):
            item = f"{{NAME: {value}}}" if isinstance(value, str) else flow(value) if value else ""
            hint = f"Write [{item}]."
        yield ConfigError(f"expected a list of {spec.kind}s, each {{NAME: …}}", where=where,
                          hint=hint)


def components(config: Config, schema: Mapping[str, Any] = SCHEMA) -> Iterator[tuple[str, Config]]:
    """Yield (kind, node) of every component that a config names."""
    for key, spec in schema.items():
        value = config[key]
        if isinstance(spec, dict):
            yield from components(value, spec)
        elif isinstance(spec, Component) and value is not None:
            yield from ((spec.kind, node) for node in (value if spec.is_list else [value]))


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
