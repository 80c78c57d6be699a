"""YAML as cvkit reads and writes it: the core schema of YAML 1.2."""

from __future__ import annotations

import functools
import re
from typing import Any

import yaml

# In YAML 1.2's core schema 1e-3 is a number; yes, 1:30 and 2024-01-01 are strings.
_RESOLVERS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
             r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}


class Loader(yaml.SafeLoader):
    """Reads plain data: nothing but the scalars above, mappings and lists."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads back to the same."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern in _RESOLVERS.items():
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}",
                                     re.compile(rf"^(?:{_pattern})$"), None)
Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
Dumper.add_representer(str, lambda dumper, value: dumper.represent_scalar(
    "tag:yaml.org,2002:str", value,
    style='"' if re.search("[\x85\u2028\u2029\ufeff]", value) else None))
Dumper.add_representer(float, lambda dumper, value: dumper.represent_scalar(
    "tag:yaml.org,2002:float", {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(
        repr(value), repr(value))))
Dumper.add_multi_representer(dict, Dumper.represent_dict)


def flow(value: Any) -> str:
    """Return a value, nodes and lists included, as YAML on one line."""
    # A config is written several times in a training, and most of it are keys and names.
    return _flow_string(value) if type(value) is str else _flow(value)


def _flow(value: Any) -> str:
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, sort_keys=False,
                     width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


_flow_string = functools.lru_cache(maxsize=4096)(_flow)
