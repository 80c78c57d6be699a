"""FINE_TUNE: a short word for the keys with which a pretrained model is usually trained."""

from __future__ import annotations

import math
from typing import Any

from cvkit.config.tree import COMMAND_LINE, PYTHON, Config, adopt
from cvkit.errors import ConfigError
from cvkit.registry.signatures import plain
from cvkit.system.text import suggest

# Each key: its default, its values in words, and whether one is possible.
_KEYS: dict[str, tuple[Any, str, Any]] = {
    "epochs_frozen": (1, "a whole number, 0 or more",
                      lambda value: type(value) is int and value >= 0),
    "backbone_lr": (0.1, "a number, 0 or more",
                    lambda value: type(value) in (int, float) and 0 <= value < math.inf),
    "norms_frozen": (False, "true or false", lambda value: type(value) is bool)}
_LATE = (COMMAND_LINE, PYTHON)


def expand_fine_tune(config: Config) -> None:
    """Set what FINE_TUNE stands for, and take it out, in a config that is not frozen.

    `{epochs_frozen: 1, backbone_lr: 0.1, norms_frozen: false}`: in the first epochs only the last
    layer learns, later all does, or all but the norms, the backbone at that part of the learning
    rate (Howard & Ruder, 2018; fastai's `fine_tune`). These are the defaults.

    Raises:
        ConfigError: another key or value; TRAIN.FREEZE or UNFREEZE is set as well.
    """
    node = config.FINE_TUNE
    if node is None:
        return
    for key, value in node.items():
        if key not in _KEYS:
            raise ConfigError(f"FINE_TUNE has no {key!r}", where=node.where(key),
                              hint=suggest(key, _KEYS))
        _, words, is_possible = _KEYS[key]
        if not is_possible(value):
            raise ConfigError(f"{key} is {words}, not {plain(value)!r}", where=node.where(key))
    train, optimizer = config.TRAIN, config.OPTIMIZER
    origin = f"{config.origin('FINE_TUNE')} (FINE_TUNE)"
    epochs, factor, are_norms_frozen = (
        node.get(key, default) for key, (default, *_) in _KEYS.items())
    for key in ("FREEZE", "UNFREEZE"):
        # What is set later than FINE_TUNE, even to nothing, is meant to count.
        if train[key] or (train.origin(key) in _LATE and config.origin("FINE_TUNE") not in _LATE):
            raise ConfigError(f"FINE_TUNE sets TRAIN.{key} itself", where=train.where(key),
                              hint="Leave one of them out, or set FINE_TUNE null.")
    if epochs:
        train.put("FREEZE", ["backbone"], origin)
        later = ["all", "!norms"] if are_norms_frozen else "all"
        train.put("UNFREEZE", adopt({str(epochs + 1): later}, origin, "TRAIN.UNFREEZE"), origin)
    elif are_norms_frozen:
        train.put("FREEZE", ["norms"], origin)
    groups = optimizer.get("groups") or []
    # What is no list is refused with the rest of the optimizer.
    if factor != 1 and isinstance(groups, (list, tuple)):
        group = {"match": "backbone", "lr_mult": float(factor)}
        optimizer.put("groups", [*groups, adopt(group, origin, f"OPTIMIZER.groups.{len(groups)}")],
                      origin)
    config.put("FINE_TUNE", None, config.origin("FINE_TUNE"))
