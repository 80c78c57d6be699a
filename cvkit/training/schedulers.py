"""The learning rate: all of `torch.optim.lr_scheduler`, each stepped in its own unit."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch.optim import lr_scheduler

from cvkit.config import Config
from cvkit.config.tree import with_settings
from cvkit.errors import ConfigError, located, where_in
from cvkit.registry import NAME, SCHEDULERS
from cvkit.system.command import command
from cvkit.system.text import plural

SCHEDULERS.add_library("torch.optim.lr_scheduler", lambda: {
    name: entry for name, entry in vars(lr_scheduler).items()
    if inspect.isclass(entry) and issubclass(entry, lr_scheduler.LRScheduler)
    and not name.startswith("_")},
    left_out={"LRScheduler": "is what schedulers are derived from",
              "LambdaLR": "takes a function, which a config cannot hold",
              "MultiplicativeLR": "takes a function, which a config cannot hold"})
# What "find" stands for is known once a constructor is called.
Rate = float | Literal["find"]


@SCHEDULERS.register()
def OneCycleLR(optimizer, max_lr: Rate, **arguments) -> lr_scheduler.OneCycleLR:
    """Raise the rate to `max_lr` and anneal it (Smith & Topin, 2017), a step per batch; torch's.

    Its length is the training's.

    Args:
        max_lr: the peak; the optimizer's lr by default. "find" looks for it before training, see
            `cvkit.training.lr_finder`.
        pct_start: part of the training up to the peak, 0.3 by default.
        final_div_factor: the last rate is the first one divided by this; 1 ends where it began.
        cycle_momentum: move the momentum the other way; by default if the optimizer has one, but
            for Muon.
    """
    return lr_scheduler.OneCycleLR(optimizer, _peak(max_lr), **_cycling(optimizer, arguments))


@SCHEDULERS.register()
def CyclicLR(optimizer, base_lr: float, max_lr: Rate,
             **arguments) -> lr_scheduler.CyclicLR:
    """Move the rate between `base_lr` and `max_lr` (Smith, 2015), a step per batch; torch's.

    Args:
        max_lr: "find" looks for it before training, see `cvkit.training.lr_finder`.
        cycle_momentum: as of OneCycleLR.
    """
    return lr_scheduler.CyclicLR(optimizer, base_lr, _peak(max_lr),
                                 **_cycling(optimizer, arguments))


@SCHEDULERS.register()
def PolynomialLR(optimizer, total_iters: int | None = None,
                 power: float = 1.0) -> lr_scheduler.PolynomialLR:
    """Lower the rate to 0, by default in a line, a step per epoch; torch's.

    Args:
        total_iters: epochs until it is 0; the training's by default.
        power: of the part of them that is left, which the rate is multiplied by.
    """
    # What it is by default is put into the node before.
    return lr_scheduler.PolynomialLR(optimizer, 1 if total_iters is None else total_iters, power)


@SCHEDULERS.register()
def Triangular(optimizer, total_steps: int, start: float = 0.2, peak: float = 0.23,
               end: float = 0.07) -> lr_scheduler.LambdaLR:
    """Raise the rate in a line to the optimizer's lr, then lower it in one, a step per batch.

    As of airbench (Jordan, 2024). Momentum stays as it is.

    Args:
        start: part of the lr at the first step.
        peak: part of the training up to the full lr; 0 begins with it.
        end: part of the lr after the last step.
    """
    if not 0 <= peak <= 1:
        raise ValueError(f"peak lies between 0 and 1, not {peak}")
    for name, value in (("start", start), ("end", end)):
        if value < 0:
            raise ValueError(f"{name} is 0 or more, not {value}")
    rise = math.floor(peak * total_steps)

    def part(step: int) -> float:
        if step < rise:
            return start + (1 - start) * step / rise
        return 1 + (end - 1) * min((step - rise) / max(total_steps - rise, 1), 1.0)

    scheduler = lr_scheduler.LambdaLR(optimizer, part)
    vars(scheduler)["unit"] = "batch"
    return scheduler


def _peak(max_lr: Rate) -> float:
    if max_lr == "find":
        raise ConfigError("max_lr find is looked for in SCHEDULER itself, not within another one",
                          hint=f"Set a number; {command('find-lr')} CONFIG suggests one.")
    return float(max_lr)


def _cycling(optimizer: torch.optim.Optimizer, arguments: dict[str, Any]) -> dict[str, Any]:
    """Leave a momentum that is 0 as it is, unless the config asks for cycles; torch would not.

    Of an optimizer with betas and a momentum, as Muon, torch moves the betas alone.
    """
    momentum, betas = (optimizer.defaults.get(key) for key in ("momentum", "betas"))
    has_one = bool(momentum) != bool(betas and betas[0])
    return {"cycle_momentum": has_one, **arguments}


def is_to_find(node: Any) -> bool:
    """Tell whether the rate of a SCHEDULER is to be looked for."""
    return node is not None and node.get("max_lr") == "find"


def with_rate(config: Config, rate: float) -> Config:
    """Return the config with a rate in place of `max_lr: find`."""
    return with_settings(config, {"SCHEDULER.max_lr": rate})


_UNITS = {lr_scheduler.OneCycleLR: "batch", lr_scheduler.CyclicLR: "batch",
          lr_scheduler.ReduceLROnPlateau: "metric"}
# Steps, which take some hundredths of a second.
_MOST_TRIED = 5_000
# What schedulers call the number of epochs that they last for.
_IN_EPOCHS = ("epochs", "T_max", "total_iters")
_COMPOSED = (lr_scheduler.SequentialLR, lr_scheduler.ChainedScheduler)


def unit_of(scheduler: Any) -> str:
    """Return when a scheduler is stepped.

    Returns:
        "batch", after each optimizer step; "epoch", after each epoch; or "metric", after each epoch
        with the monitored loss or accuracy. Your own class says so in its attribute `unit`.

    Raises:
        ConfigError: it is composed of schedulers with several units, or has none of these.
    """
    units = {unit_of(part) for part in parts_of(scheduler)}
    if len(units) > 1:
        raise ConfigError(f"a {type(scheduler).__name__} of schedulers that are stepped in several "
                          f"units, {' and '.join(sorted(units))}",
                          hint="It steps all of them together. To warm up: TRAIN.WARMUP_EPOCHS.")
    known = (unit for kind, unit in _UNITS.items() if isinstance(scheduler, kind))
    unit = getattr(scheduler, "unit", None) or next(iter(units), None) or next(known, "epoch")
    if unit not in ("batch", "epoch", "metric"):
        raise ConfigError(f"{type(scheduler).__name__} has unit {unit!r}; batch, epoch and metric "
                          "are possible")
    return unit


def parts_of(scheduler: Any) -> list[Any]:
    """Return the schedulers that one is composed of; none for most."""
    return list(scheduler._schedulers) if isinstance(scheduler, _COMPOSED) else []


def depends_on_length(node: Any) -> bool:
    """Whether a SCHEDULER depends on the number of epochs, which then cannot change.

    Of a SequentialLR only the last one does: the others end at a milestone.
    """
    if node is None:
        return False
    inner = _within(node)
    if inner and "milestones" in node:
        inner = inner[-1:]
    return any(_asks_for(node, fact) for fact in ("total_steps", *_IN_EPOCHS)) or (
        any(map(depends_on_length, inner)))


def _asks_for(node: Any, fact: str) -> bool:
    """Whether a scheduler takes a length that is that of the training unless the config says it."""
    if fact != "total_iters":
        return SCHEDULERS.asks_for(node, fact)
    # That of LinearLR and ConstantLR is of a warm-up.
    is_one = SCHEDULERS.get(node[NAME]) in (PolynomialLR, lr_scheduler.PolynomialLR)
    return is_one and node.get(fact) is None


def _for_stretches(node: Any, unit: str, begin: int, end: int, steps_per_epoch: int) -> Any:
    """Return a node, those within a SequentialLR with the length of their own stretch.

    Args:
        begin, end: of its own stretch, in `unit`.
    """
    inner = _within(node)
    ends = [*node.get("milestones", [end] * (len(inner) - 1)), end]
    begins = [begin, *ends[:-1]] if "milestones" in node else [begin] * len(inner)
    parts = []
    for part, first, last in zip(inner, begins, ends):
        length = max(1, last - first)
        own = part.get("total_steps") if isinstance(part, Mapping) else None
        if unit == "batch" and isinstance(own, int) and own < length:
            raise ConfigError(f"{part[NAME]} ends after {plural(own, 'step')}, its stretch takes "
                              f"{length:,}", where=where_in(part, "total_steps"),
                              hint="Leave its length out: it is taken from the milestones.")
        facts = {"total_steps": length} if unit == "batch" else {
            "total_steps": length * steps_per_epoch, **dict.fromkeys(_IN_EPOCHS, length)}
        facts = {fact: value for fact, value in facts.items() if _asks_for(part, fact)}
        parts.append(_with(_for_stretches(part, unit, 0, length, steps_per_epoch), facts))
    return _with(node, {"schedulers": parts}) if parts else node


def _within(node: Any) -> list[Any]:
    """Return the nodes that a composed scheduler's node has within."""
    inner = node.get("schedulers") if isinstance(node, Mapping) else None
    return list(inner) if isinstance(inner, (list, tuple)) else []


def _with(node: Any, arguments: dict[str, Any]) -> Any:
    """Return a node with more arguments."""
    if not isinstance(node, Config):
        return {**node, **arguments}
    node = node.clone()
    node.defrost()
    node.update(arguments)
    node.freeze()
    return node


class Schedule:
    """A linear warm-up, then a scheduler in its unit; either may be absent.

    All groups of parameters have the same rate for them; what a group takes its steps with is that
    times its `lr_mult`, if it has one, so that ratios stay as they are.

    Args:
        optimizer: whose rate it changes.
        scheduler: one of torch's or alike, or None for a constant rate. Its steps are counted by
            `scheduler_steps`, those of the optimizer by `steps`.
        warmup_steps: optimizer steps over which the rate rises from 0 to what the scheduler
            starts with (Goyal et al., 2017). The scheduler starts after them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: Any = None,
                 warmup_steps: int = 0):
        self.optimizer, self.scheduler, self.warmup_steps = optimizer, scheduler, warmup_steps
        self.unit = unit_of(scheduler) if scheduler is not None else None
        self.steps = self.scheduler_steps = 0
        self._first_rates = [group["lr"] for group in optimizer.param_groups]
        self._set_rates(self._first_rates)
        self._warm_up()

    @property
    def rate(self) -> float:
        """The learning rate as the next step will use it, without any group's `lr_mult`."""
        return float(self._rates[0])

    def set_rate(self, rate: float) -> None:
        """Let the next step use another rate, until this is called once more."""
        self._set_rates([rate] * len(self._rates))

    def _set_rates(self, rates: list[float]) -> None:
        self._rates = list(rates)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * group.get("lr_mult", 1.0)

    def _warm_up(self) -> None:
        if self.steps <= self.warmup_steps > 0:
            part = min((self.steps + 1) / (self.warmup_steps + 1), 1.0)
            self._set_rates([rate * part for rate in self._first_rates])

    def after_step(self) -> None:
        """Call after each optimizer step."""
        is_warm = self.steps >= self.warmup_steps
        self.steps += 1
        if self.steps <= self.warmup_steps:
            self._warm_up()
        elif self.unit == "batch" and is_warm:
            self._step()

    def after_epoch(self, loss: float, accuracy: float) -> None:
        """Call after each epoch with the monitored split's mean loss and accuracy."""
        if self.scheduler is None or self.steps <= self.warmup_steps:
            return
        if self.unit == "epoch":
            self._step()
        elif self.unit == "metric":
            is_max = getattr(self.scheduler, "mode", "min") == "max"
            self._step(accuracy if is_max else loss)

    def _step(self, *metric: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        with warnings.catch_warnings():
            # The first step may be of a run before, or one that a gradient scaler skipped.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.scheduler.step(*metric)
        self._set_rates([group["lr"] for group in self.optimizer.param_groups])
        self.scheduler_steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training goes on with, and how the scheduler was stepped."""
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        return {"steps": self.steps, "scheduler_steps": self.scheduler_steps, "unit": self.unit,
                "first_rates": self._first_rates, "rates": self._rates, "scheduler": scheduler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.steps, self.scheduler_steps = state["steps"], state["scheduler_steps"]
        self._first_rates = state["first_rates"]
        # Older versions had the same for all, in the optimizer.
        self._set_rates(state.get("rates") or [group["lr"]
                                               for group in self.optimizer.param_groups])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


def build_schedule(node: Any, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int,
                   warmup_epochs: float = 0.0) -> Schedule:
    """Build the config's SCHEDULER, or a constant rate for None, with its warm-up.

    The scheduler is offered how long it runs after the warm-up: epochs, steps_per_epoch,
    total_steps (in optimizer steps) and T_max (in epochs; total_iters of PolynomialLR); and the
    optimizer's rate as max_lr, which also stands in for a `max_lr: find` that was not found yet.

    Raises:
        ConfigError: it cannot be built, or the warm-up is as long as the training.
    """
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    if warmup_epochs >= epochs or warmup_steps >= epochs * steps_per_epoch:
        raise ConfigError(f"TRAIN.WARMUP_EPOCHS {warmup_epochs:g} leaves nothing of the "
                          f"{plural(epochs, 'epoch')} of TRAIN.EPOCHS, "
                          f"{plural(epochs * steps_per_epoch, 'step')}",
                          hint="Lower it, or train for more epochs.")
    if node is None:
        return Schedule(optimizer, None, warmup_steps)
    rate = float(optimizer.param_groups[0]["lr"])
    # Until it is found, the optimizer's rate stands in for it.
    if is_to_find(node):
        node = _with(node, {"max_lr": rate})
    remaining = epochs - math.floor(warmup_epochs)
    needed = epochs * steps_per_epoch - warmup_steps
    facts = {"optimizer": optimizer, "epochs": remaining, "steps_per_epoch": steps_per_epoch,
             "T_max": remaining, "total_steps": needed, "max_lr": rate}
    # OneCycleLR would take it before the config's own.
    if "epochs" in node or "steps_per_epoch" in node:
        del facts["total_steps"]
    with located(node, NAME):
        if _asks_for(node, "total_iters"):
            node = _with(node, {"total_iters": remaining})
        return Schedule(optimizer, _build_scheduler(node, facts, needed), warmup_steps)


def _build_scheduler(node: Any, facts: dict[str, Any], needed: int) -> Any:
    """Build a scheduler that lasts for so many steps of the optimizer."""
    unit = _try(node, facts, 1)
    end = needed if unit == "batch" else facts["epochs"]
    node = _for_stretches(node, unit, 0, end, facts["steps_per_epoch"])
    # Torch's are known to work.
    tried = min(needed, _MOST_TRIED) if SCHEDULERS.is_own(node) else 1
    _try(node, facts, tried if unit == "batch" else facts["epochs"])
    try:
        scheduler = SCHEDULERS.build(node, **facts)
    except ConfigError as error:
        if "cycle_momentum" in str(error):
            error.hint = "This optimizer has no momentum to cycle: SCHEDULER.cycle_momentum false"
        raise
    length = getattr(scheduler, "total_steps", None)
    if unit == "batch" and length is not None and length < needed:
        raise ConfigError(f"{node[NAME]} ends after {plural(length, 'step')}, the training takes "
                          f"{needed:,}",
                          hint="Leave its length out: it is taken from TRAIN.EPOCHS.")
    return scheduler


def _refuse_other_unit(node: Any, scheduler: Any, unit: str) -> None:
    """Refuse a scheduler that asks for its length in another unit than it is stepped in."""
    for inner, part in zip(_within(node), parts_of(scheduler)):
        _refuse_other_unit(inner, part, unit)
    if not SCHEDULERS.is_own(node):
        return
    asked = [fact for fact in SCHEDULERS.offers if SCHEDULERS.asks_for(node, fact)]
    of_steps = [fact for fact in asked if fact in ("total_steps", "steps_per_epoch")]
    of_epochs = [fact for fact in asked if fact in ("epochs", "T_max")]
    if unit == "epoch" and of_steps and not _says_unit(scheduler):
        raise ConfigError(f"scheduler {node[NAME]} asks for {of_steps[0]}, and does not say "
                          "whether it is stepped after each batch or each epoch",
                          hint="Give the class, or what the function returns, the attribute "
                               "unit = \"batch\"; or \"epoch\".")
    if unit == "batch" and of_epochs and not of_steps:
        raise ConfigError(f"scheduler {node[NAME]} is stepped after each batch, and asks for "
                          f"{of_epochs[0]}, which counts epochs",
                          hint="total_steps counts batches; steps_per_epoch is offered as well.")


def _says_unit(scheduler: Any) -> bool:
    parts = parts_of(scheduler)
    return hasattr(scheduler, "unit") or (bool(parts) and all(map(_says_unit, parts)))


def _refuse_negative(node: Any, optimizer: torch.optim.Optimizer) -> None:
    rate = min(float(group["lr"]) for group in optimizer.param_groups)
    # Less is rounding.
    if rate < -1e-12:
        raise ConfigError(f"scheduler {node[NAME]} makes the learning rate negative, {rate:.3g}: "
                          "such steps raise the loss")


def _try(node: Any, facts: dict[str, Any], steps: int) -> str:
    """Step a scheduler on another optimizer, for arguments that are looked at only then.

    Args:
        steps: how often.

    Returns:
        Its unit.

    Raises:
        ConfigError: it cannot be built or stepped.
    """
    twin = torch.optim.SGD([torch.zeros(1)], lr=facts["max_lr"], momentum=0.9)
    scheduler = None
    try:
        scheduler = SCHEDULERS.build(node, **{**facts, "optimizer": twin})
        SCHEDULERS.refuse_without(node, scheduler, "state_dict()", "load_state_dict(state)")
        unit = unit_of(scheduler)
        SCHEDULERS.refuse_without(node, scheduler, "step(value)" if unit == "metric" else "step()")
        _refuse_other_unit(node, scheduler, unit)
        twin.step()
        for _ in range(steps):
            _refuse_negative(node, twin)
            scheduler.step(*([1.0] if unit == "metric" else []))
        for part in (scheduler, *parts_of(scheduler)):
            # The last step, and no more.
            if isinstance(part, lr_scheduler.OneCycleLR):
                part.last_epoch = part.total_steps - 1
                part.step()
    except (ArithmeticError, LookupError, ValueError, TypeError, NotImplementedError) as error:
        reason = str(error)
        if any(map(parts_of, parts_of(scheduler))):
            reason = "torch composes no schedulers that are composed themselves"
        raise ConfigError(f"scheduler {node[NAME]} cannot be stepped: {reason}") from error
    return unit
