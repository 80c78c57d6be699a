"""Holding a config against the schema, and its components against the registries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cvkit.config.dialect import flow
from cvkit.config.schema import BASE, KEYS, RENAMED, SCHEMA, SWEEP, Component, Key
from cvkit.config.tree import DEFAULT, PYTHON, Config, adopt, dotted
from cvkit.errors import ConfigError, raise_together
from cvkit.registry import NAME, REGISTRIES
from cvkit.registry.signatures import is_node, plain
from cvkit.registry.user_code import import_user_code
from cvkit.system.command import command
from cvkit.system.files import user_path
from cvkit.system.text import correction, suggest


class Section(Config):
    """A node that has the keys of the schema; others and wrong values are refused at once."""

    def __setitem__(self, key: str, value: Any) -> None:
        self._refuse_frozen()
        path = self.path(key)
        if path not in KEYS:
            raise _unknown_key(key, self.path(), KEYS.get(self.path(), SCHEMA), PYTHON)
        value = adopt(value, PYTHON, path)
        self.put(key, conform(value, KEYS[path], path, PYTHON), PYTHON)

    def __delitem__(self, key: str) -> None:
        raise AttributeError(f"{self.path(key)} belongs to every config; set it, don't delete")


def conform(value: Any, spec: Any, path: str, source: str) -> Any:
    """Return a value as the schema has it: of the right type, sections with all their keys.

    Args:
        value: an open node, or what stands under a key.
        spec: what the schema says of it.
        path: its dotted key.
        source: where it was set, and what is missing could be.

    Raises:
        ConfigError: unknown keys, wrong types, missing components, all in one message.
    """
    problems = list(filter(None, _problems(value, spec, path, source)))
    for problem in problems:
        problem.where = problem.where or source
    raise_together(problems)
    return _filled(value, spec, path)


def _filled(value: Any, spec: Any, path: str) -> Any:
    """Return a value that has no problems, with defaults."""
    if isinstance(spec, dict):
        section, value = Section(path=path), value or Config()
        for key, inner in spec.items():
            full = dotted(path, key)
            default = adopt(getattr(inner, "default", None), DEFAULT, full)
            section.put(key, _filled(value.get(key, default), inner, full), value.origin(key))
        return section
    if isinstance(spec.default, float):
        return float(value)
    if isinstance(spec, Component) and _has_arguments_alone(value, spec):
        node = Config(path=path)
        for key, item in {**spec.default, **value}.items():
            node.put(key, item, value.origin(key))
        return node
    is_home = isinstance(spec, Key) and spec.is_path and value.startswith("~")
    return str(user_path(value)) if is_home else value


def _problems(value: Any, spec: Any, path: str, origin: str) -> Iterator[ConfigError | None]:
    """Yield what is wrong with a value, and None for what is right."""
    where = f"{origin} {path}"
    if isinstance(spec, Component):
        yield from _component_problems(value, spec, where)
    elif isinstance(spec, Key) and spec.default is not None:
        yield _key_problem(value, spec, where)
    elif value is not None and not isinstance(value, Config):
        hint = f"Its keys are {', '.join(spec)}." if isinstance(spec, dict) else f"{spec.doc}."
        yield ConfigError(f"{path} holds keys, not {plain(value)!r}", where=where, hint=hint)
    elif isinstance(spec, dict):
        value = value or Config()
        for key in value:
            if key not in spec:
                yield _unknown_key(key, path, spec, value.origin(key))
        for key, inner in spec.items():
            full = dotted(path, key)
            if key in value or isinstance(inner, dict):
                yield from _problems(value.get(key), inner, full, value.origin(key))
            elif isinstance(inner, Component) and inner.required:
                yield ConfigError(f"{full} is missing", hint=f"Add {full}: {{NAME: …}}, one of "
                                  f"`{command('registry')} {inner.kind}`.")


def _unknown_key(key: str, path: str, schema: Mapping[str, Any], origin: str) -> ConfigError:
    full, (name, _, rest) = dotted(path, key), key.partition(":")
    elsewhere = [other for other in KEYS if other.split(".")[-1] == key.upper() and other != full]
    if full in RENAMED:
        hint = f"It is called {RENAMED[full]} now."
    elif isinstance(schema.get(key.split(".")[0]), dict):
        nested = key.replace(".", ": {") + ": …" + "}" * key.count(".")
        hint = f"Write {nested}; keys with dots are for the command line."
    elif full == SWEEP:
        hint = f"The file describes a sweep: {command('sweep')} FILE"
    elif key.strip("_").upper() == BASE.strip("_"):
        hint = f"{BASE} stands at the top of a file: {BASE}: other.yaml"
    elif name in schema:
        hint = f"Write {name}: {rest}, with a space after the colon."
    elif key in SCHEMA:
        hint = f"{key} stands at the top of a config, not in {path}."
    else:
        hint = f"Did you mean {elsewhere[0]}?" if elsewhere else suggest(key, schema, listed=20)
    return ConfigError(f"unknown key {key}", where=f"{origin} {full}", hint=hint)


_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a string",
             list: "a list of strings"}


def _key_problem(value: Any, spec: Key, where: str) -> ConfigError | None:
    kind, hint = type(spec.default), f"{where.split()[-1]}: {spec.doc}."
    is_string, is_list = isinstance(value, str), isinstance(value, (list, tuple))
    is_right = (is_list and all(isinstance(item, str) for item in value) if kind is list
                else type(value) in ((int, float) if kind is float else (kind,)))
    if not is_right:
        fix = f"Write [{value}]." if kind is list and is_string else correction(value, {kind})
        shown = f"the string {value!r}" if is_string else flow(value)
        problem, hint = f"expected {_EXPECTED[kind]}, not {shown}", f"{fix} {hint}".strip()
    elif spec.choices and value not in spec.choices:
        problem, hint = f"{value!r} is not possible", suggest(value, spec.choices)
    elif spec.pattern and not re.fullmatch(spec.pattern, value):
        problem = f"{value!r} is not possible"
    elif kind in (int, float) and not spec.minimum <= value <= spec.maximum:
        upper = f" to {spec.maximum:g}" if spec.maximum < float("inf") else " or more"
        problem = f"{value!r} is out of range; {spec.minimum:g}{upper} is possible"
    else:
        return None
    return ConfigError(problem, where=where, hint=hint)


def _component_problems(value: Any, spec: Component, where: str) -> Iterator[ConfigError | None]:
    registry, is_optional = REGISTRIES[spec.kind], not spec.required and spec.default is None
    if value is None and is_optional:
        return
    if spec.is_list and isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield registry.refusal_of(item, f"{where}.{number}")
    elif spec.is_list:
        item = {NAME: value} if isinstance(value, str) else value
        hint = f"Its items are addressed by number: {where.split()[-1]}.0"
        if is_node(item) or value is None:
            hint = f"Write [{flow(item) if value else ''}]."
        yield ConfigError(f"expected a list of {registry.kinds}, each {{NAME: …}}", where, hint)
    elif _has_arguments_alone(value, spec):
        return
    elif refusal := registry.refusal_of(value, where):
        if is_optional:
            refusal.hint = correction(value, {type(None)}) or refusal.hint
        if isinstance(value, Config) and NAME not in value and spec.default:
            refusal.hint = f"{NAME}: {spec.default[NAME]} is the default. {refusal.hint}"
        yield refusal


def _has_arguments_alone(value: Any, spec: Component) -> bool:
    """Tell whether a node has arguments of what is the default, whose NAME it leaves out."""
    return bool(isinstance(value, Config) and value and spec.default and NAME not in value
                and all(re.fullmatch(r"[a-z]\w*", key) for key in value)
                and not {"name", "type", "class"} & set(value))


def components(config: Config) -> Iterator[tuple[str, Config]]:
    """Yield (kind, node) of every component that a config names."""
    for key, value in config.items():
        spec = KEYS[config.path(key)]
        if isinstance(value, Section):
            yield from components(value)
        elif isinstance(spec, Component) and value is not None:
            yield from ((spec.kind, node) for node in (value if spec.is_list else [value]))


def check_components(config: Config) -> None:
    """Import the config's `IMPORTS`, then check each component's name and arguments.

    Nothing is built and no data is read.

    Raises:
        ConfigError: everything that is wrong, in one message.
    """
    import_user_code(list(config.IMPORTS), where=config.where("IMPORTS"))
    raise_together([problem for kind, node in components(config)
                    for problem in REGISTRIES[kind].problems(node)])
