"""The one rule by which base files, files and the command line are laid on each other."""

from __future__ import annotations

from typing import Any

from cvkit.config.dialect import flow
from cvkit.config.tree import Config
from cvkit.errors import ConfigError
from cvkit.registry import NAME
from cvkit.system.text import plural, suggest


class ByNumber(Config):
    """Items of a list, addressed by number: `DATA.TRAIN_TRANSFORMS.1.size 8`."""


def refuse_numbers(value: Any) -> None:
    """Refuse numbers of items where there is no list to take them from."""
    if isinstance(value, ByNumber):
        raise _no_list(value)
    for item in value.values() if isinstance(value, Config) else ():
        refuse_numbers(item)


def _no_list(over: ByNumber, base: Any = None) -> ConfigError:
    first = next(iter(over))
    return ConfigError(f"{over.path()} is not a list, its items have no numbers",
                       where=f"{over.origin(first)} {over.path(first)}",
                       hint=suggest(first, base) if isinstance(base, Config) else None)


def merge(base: Any, over: Any) -> Any:
    """Return `over` laid on `base`, by the one rule for base files, files and command line.

    Nodes merge key by key; a node whose NAME changes is replaced with all its arguments;
    anything else, lists included, is replaced whole.
    """
    if isinstance(over, ByNumber) and not isinstance(base, (ByNumber, type(None))):
        return _merge_items(base, over)
    if not (isinstance(base, Config) and isinstance(over, Config)):
        return over
    is_replaced = NAME in over and NAME in base and over[NAME] != base[NAME]
    merged = type(base)()
    replaced = {**base.replaced, **over.replaced}
    if is_replaced:
        replaced |= {key: f"{flow(key)} {flow(value)} of {base.origin(key)}"
                     for key, value in base.items() if key != NAME}
    merged.__dict__.update(base.__dict__, _origins={}, replaced=replaced)
    if not is_replaced:
        for key, value in base.items():
            merged.put(key, value, base.origin(key))
    if is_replaced:
        merged.put(NAME, over[NAME], over.origin(NAME))  # first, as one writes it
    for key, value in over.items():
        if not is_replaced or isinstance(value, ByNumber):
            value = merge(base.get(key), value)
        merged.put(key, value, over.origin(key))
    return merged


def _merge_items(base: Any, over: ByNumber) -> list[Any]:
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
