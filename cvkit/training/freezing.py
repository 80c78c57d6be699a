"""Which parameters learn in which epoch, by TRAIN.FREEZE, UNFREEZE and FREEZE_FROM."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

from torch import nn

from cvkit.config import Config
from cvkit.errors import ConfigError, located
from cvkit.models.features import head_of
from cvkit.models.parts import is_norm, matching


class Freezing:
    """Parameters that do not learn, at first or ever; norms among them keep their statistics.

    Args:
        until: for each of them by name the epoch, counted from 1, from which on it learns;
            `math.inf` for never.
        since: the epoch, from which on it does not; only of such as learn before.
    """

    def __init__(self, until: Mapping[str, float], since: Mapping[str, float] | None = None):
        self.until, self.since = dict(until), dict(since or {})

    def learns(self, name: str, epoch: float | None) -> bool:
        """Whether the freezing lets a parameter learn in an epoch; given None, in any."""
        first, end = self.until.get(name, 0), self.since.get(name, math.inf)
        return first < end if epoch is None else first <= epoch < end

    def apply(self, model: nn.Module, epoch: float | None) -> bool:
        """Let parameters take gradients as `learns` says; return whether any did otherwise."""
        has_changed = False
        for name, parameter in model.named_parameters():
            learns = self.learns(name, epoch)
            if name in {*self.until, *self.since} and parameter.requires_grad != learns:
                parameter.requires_grad_(learns)
                has_changed = True
        return has_changed

    def hold(self, model: nn.Module, epoch: float) -> None:
        """Let layers of frozen parameters that keep statistics (BatchNorm) go by them.

        One without parameters is frozen where all parameters of what is around it, or of all
        other norms, are. What is in such a layer (timm's have an activation and a dropout) stays
        in the mode that it has.
        """
        modules = dict(model.named_modules())
        parameters = dict(model.named_parameters(remove_duplicate=False))
        frozen = {id(parameters[name]) for name in {**self.until, **self.since}
                  if not self.learns(name, epoch)}
        of_norms = [id(each) for module in modules.values() if is_norm(module)
                    for each in module.parameters(recurse=False)]
        are_norms_frozen = bool(of_norms) and frozen.issuperset(of_norms)
        for name, module in modules.items():
            if not any(buffer.is_floating_point() for buffer in module.buffers(recurse=False)):
                continue
            is_bare_norm = is_norm(module) and not any(True for _ in module.parameters())
            own = list(module.parameters(recurse=False))
            while name and not own:
                own = list(modules[name].parameters())
                name = name.rpartition(".")[0]
            if (is_bare_norm and are_norms_frozen) or (
                    own and all(id(parameter) in frozen for parameter in own)):
                module.training = False


def build_freezing(config: Config, model: nn.Module, image_shape: Sequence[int]) -> Freezing | None:
    """Return what a config freezes of a model, or None.

    Args:
        config: its TRAIN is used. Patterns are those of `cvkit.models.parts.matching`.
        model: of the config.
        image_shape: (channels, height, width) of what it takes.

    Raises:
        ConfigError: a pattern matches nothing, or nothing that is frozen, or that learns then; an
            epoch that is none; nothing would learn.
    """
    node = config.TRAIN
    if not node.FREEZE and node.UNFREEZE:
        raise ConfigError("there is nothing to unfreeze: TRAIN.FREEZE is empty",
                          where=node.where("UNFREEZE"))
    if not node.FREEZE and not node.FREEZE_FROM:
        return None
    head = functools.cache(lambda: head_of(model, image_shape))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    until: dict[str, float] = {}
    with located(node, "FREEZE"):
        if node.FREEZE:
            until = dict.fromkeys(matching(model, node.FREEZE, head), math.inf)
            if not until:
                raise ConfigError(f"{list(node.FREEZE)} freezes nothing")
        if learning <= set(until):
            raise ConfigError("nothing is left to learn in epoch 1",
                              hint="FREEZE [backbone] leaves the last layer.")
    for epoch, key, patterns in _by_epoch(node.UNFREEZE):
        with located(node.UNFREEZE, key):
            # What the model itself has frozen stays so.
            frozen = [name for name in matching(model, patterns, head)
                      if until.get(name, 0) == math.inf and name in learning]
            if not frozen:
                raise ConfigError(f"{', '.join(patterns)} matches nothing that is frozen then",
                                  hint=f"TRAIN.UNFREEZE.{key} null takes it out.")
            until |= dict.fromkeys(frozen, epoch)
    since: dict[str, float] = {}
    for epoch, key, patterns in _by_epoch(node.FREEZE_FROM):
        takes_out = f"TRAIN.FREEZE_FROM.{key} null takes it out."
        with located(node.FREEZE_FROM, key):
            try:
                found = matching(model, patterns, head)
            except ConfigError as error:
                # It may be of a base that was made for another model.
                error.hint = f"{error.hint} {takes_out}" if error.hint else takes_out
                raise
            late = [name for name in found if epoch <= until.get(name, 0) < math.inf]
            if late:
                raise ConfigError(f"{late[0]} learns from epoch {until[late[0]]} on only")
            chosen = [name for name in found if name in learning and name not in since
                      and until.get(name, 0) < epoch]
            if not chosen:
                raise ConfigError(f"{', '.join(patterns)} matches nothing that learns before: it "
                                  "is frozen already", hint=takes_out)
            since |= dict.fromkeys(chosen, epoch)
            # With them a norm of which the model has frozen a part is frozen whole.
            until |= dict.fromkeys(set(found) - learning, math.inf)
            freezing = Freezing(until, since)
            if not any(freezing.learns(name, epoch) for name in learning):
                raise ConfigError(f"nothing is left to learn in epoch {epoch}")
    return Freezing(until, since)


def _by_epoch(node: Config | None) -> list[tuple[int, str, list[str]]]:
    """Return epochs in order, each with its key and the patterns that it has."""
    if node is None:
        return []
    found = []
    for key in node:
        if not key.isdecimal() or int(key) < 2:
            raise ConfigError(f"{key!r} is no epoch in which something can change",
                              where=node.where(key),
                              hint="Epochs count as in the log, from 1, and the second is the "
                                   "first that can: {2: [layer4]}. TRAIN.FREEZE holds from the "
                                   "start.")
        patterns = [node[key]] if isinstance(node[key], str) else node[key]
        if patterns is None:
            continue
        if not isinstance(patterns, (list, tuple)) or not all(
                isinstance(pattern, str) for pattern in patterns):
            raise ConfigError("expected names of parameters, such as [layer4] or all, not "
                              f"{patterns!r}", where=node.where(key))
        found.append((int(key), key, list(patterns)))
    return sorted(found)


def learning_in_words(model: nn.Module, freezing: Freezing, epochs: int) -> str:
    """Return how many numbers learn: in epoch 1, and from which epoch on how many more do.

    Args:
        epochs: of the training; those after it are told as such.
    """
    parameters = dict(model.named_parameters())
    sizes = {name: parameter.numel() for name, parameter in parameters.items()
             if parameter.requires_grad or name in {**freezing.until, **freezing.since}}
    total = sum(parameter.numel() for parameter in parameters.values())

    def learning(epoch: float) -> str:
        count = sum(size for name, size in sizes.items() if freezing.learns(name, epoch))
        return "all" if count == total else f"{count:,}"

    changes = {*freezing.until.values(), *freezing.since.values()}
    later = sorted(epoch for epoch in changes if epoch < math.inf)
    words = [f"{learning(1)} of {total:,} parameters", *(
        f"from epoch {epoch} on {learning(epoch)}"
        + (f" (there are {epochs} epochs)" if epoch > epochs else "") for epoch in later)]
    return "; ".join(words)
