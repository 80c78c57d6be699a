"""Holding a config against the schema, and its components against the registries."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from cvkit.config.dialect import flow
from cvkit.config.schema import BASE, SCHEMA, Component, Demands, Key
from cvkit.config.tree import DEFAULT, PYTHON, Config, Origin, adopt, place, plain
from cvkit.errors import ConfigError, raise_together
from cvkit.registry import NAME, REGISTRIES
from cvkit.registry.user_code import import_user_code
from cvkit.system.files import user_path
from cvkit.system.text import correction, suggest


def unknown_key(key: str, path: str, schema: Mapping[str, Any], origin: Origin) -> ConfigError:
    dotted = f"{path}.{key}" if path else key
    elsewhere = [full for full in all_keys(SCHEMA)
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


def all_keys(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, spec in schema.items():
        yield path + key
        if isinstance(spec, dict):
            yield from all_keys(spec, f"{path}{key}.")


def conform_root(config: Config, schema: Mapping[str, Any] = SCHEMA, path: str = "",
                  source: str | None = None) -> Config:
    """Return a closed, typed config with all defaults filled in.

    Args:
        source: the file that lacks what no other file can be named for.

    Raises:
        ConfigError: unknown keys, wrong types, missing components, all in one message.
    """
    problems: list[ConfigError] = []
    place(config, path)
    file = _files(config) or source
    config = _conform(config, schema, path, DEFAULT, problems)
    for problem in problems:  # of a section that is empty or absent
        problem.where = problem.where or file
    raise_together(problems)
    place(config, path)
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
    closed.__dict__.update(_schema=spec, _conform=_conform_item, _path=path)
    for key in value:
        if key not in spec:
            problems.append(unknown_key(key, path, spec, value.origin(key)))
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
        closed.put(key, _conform(item, inner, dotted, place, problems), place)
    return closed


def _conform_item(config: Config, key: str, value: Any) -> Any:
    """Return a value as it is set under a key of a closed config."""
    if key not in config._schema:
        raise unknown_key(key, config.path(), config._schema, PYTHON)
    problems: list[ConfigError] = []
    value = _conform(value, config._schema[key], config.path(key), PYTHON, problems)
    raise_together(problems)
    return value


def _files(config: Config) -> str | None:
    return next((origin.source for origin in reversed(config._origins.values())
                 if origin.line), None)


def _default(spec: Any) -> Any:
    default = Config() if isinstance(spec, dict) else spec.default
    return adopt(default, DEFAULT)


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
        example = flow(value) if isinstance(value, Config) and NAME in value else (
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
