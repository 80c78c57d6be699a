"""The learning rate: all of `torch.optim.lr_scheduler`, each stepped in its own unit."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any, Literal

import torch
from torch.optim import lr_scheduler

from cvkit.config import Config
from cvkit.errors import ConfigError, plural
from cvkit.registry import NAME, SCHEDULERS, where_in

SCHEDULERS.add_library("torch.optim.lr_scheduler", lambda: {
    name: entry for name, entry in vars(lr_scheduler).items()
    if inspect.isclass(entry) and issubclass(entry, lr_scheduler.LRScheduler)
    and not name.startswith("_")},
    left_out={"LRScheduler": "is what schedulers are derived from",
              "LambdaLR": "takes a function, which a config cannot hold",
              "MultiplicativeLR": "takes a function, which a config cannot hold"})

Rate = float | Literal["find"]


@SCHEDULERS.register()
def OneCycleLR(optimizer, max_lr: Rate, **arguments) -> lr_scheduler.OneCycleLR:
    """Raise the rate to `max_lr` and anneal it (Smith & Topin, 2017), a step per batch; torch's.

    Its length is the training's.

    Args:
        max_lr: the peak; the optimizer's lr by default. "find" looks for it before training, see
            `cvkit.lr_finder`.
        pct_start: part of the training up to the peak, 0.3 by default.
        final_div_factor: the last rate is the first one divided by this; 1 ends where it began.
    """
    return lr_scheduler.OneCycleLR(optimizer, max_lr, **arguments)


@SCHEDULERS.register()
def CyclicLR(optimizer, base_lr: float, max_lr: Rate,
             **arguments) -> lr_scheduler.CyclicLR:
    """Move the rate between `base_lr` and `max_lr` (Smith, 2015), a step per batch; torch's.

    Args:
        max_lr: "find" looks for it before training, see `cvkit.lr_finder`.
    """
    return lr_scheduler.CyclicLR(optimizer, base_lr, max_lr, **arguments)


def is_to_find(config: Config) -> bool:
    """Tell whether the scheduler's rate is to be looked for."""
    return config.SCHEDULER is not None and config.SCHEDULER.get("max_lr") == "find"


def with_rate(config: Config, rate: float) -> Config:
    """Return the config with a rate in place of `max_lr: find`."""
    config = config.clone()
    config.defrost()
    config.SCHEDULER.max_lr = rate
    config.freeze()
    return config


# When a scheduler is stepped: "batch" after each optimizer step, "epoch" after each epoch,
# "metric" after each epoch with the monitored loss or accuracy. Your own class says so in
# its attribute `unit`.
UNITS = {"OneCycleLR": "batch", "CyclicLR": "batch", "ReduceLROnPlateau": "metric"}


def unit_of(scheduler: Any) -> str:
    """Return "batch", "epoch" or "metric"."""
    return getattr(scheduler, "unit", UNITS.get(type(scheduler).__name__, "epoch"))


class Schedule:
    """A linear warm-up, then a scheduler in its unit; either may be absent.

    Args:
        optimizer: whose rate it changes.
        scheduler: one of torch's or alike, or None for a constant rate.
        warmup_steps: optimizer steps over which the rate rises from 0 to what the scheduler
            starts with (Goyal et al., 2017). The scheduler starts after them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: Any = None,
                 warmup_steps: int = 0):
        self.optimizer, self.scheduler, self.warmup_steps = optimizer, scheduler, warmup_steps
        self.unit = unit_of(scheduler) if scheduler is not None else None
        self.steps = 0  # of the optimizer
        self.scheduler_steps = 0
        self._first_rates = [group["lr"] for group in optimizer.param_groups]
        self._warm_up()

    @property
    def rate(self) -> float:
        """The learning rate of the first group, as the next step will use it."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _warm_up(self) -> None:
        if self.steps < self.warmup_steps:
            part = (self.steps + 1) / (self.warmup_steps + 1)
            for group, rate in zip(self.optimizer.param_groups, self._first_rates, strict=True):
                group["lr"] = rate * part
        elif self.steps == self.warmup_steps > 0:
            for group, rate in zip(self.optimizer.param_groups, self._first_rates, strict=True):
                group["lr"] = rate

    def after_step(self) -> None:
        """Call after each optimizer step."""
        is_warm = self.steps >= self.warmup_steps
        self.steps += 1
        if self.steps <= self.warmup_steps:
            self._warm_up()
        elif self.unit == "batch" and is_warm:
            with warnings.catch_warnings():
                # A gradient scaler may skip the first optimizer step; that is no misuse.
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
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
        self.scheduler.step(*metric)
        self.scheduler_steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training goes on with, and how the scheduler was stepped."""
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        return {"steps": self.steps, "scheduler_steps": self.scheduler_steps, "unit": self.unit,
                "first_rates": self._first_rates, "scheduler": scheduler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.steps, self.scheduler_steps = state["steps"], state["scheduler_steps"]
        self._first_rates = state["first_rates"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


def build_schedule(node: Any, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int,
                   warmup_epochs: float = 0.0) -> Schedule:
    """Build the config's SCHEDULER, or a constant rate for None, with its warm-up.

    The scheduler is offered how long it runs after the warm-up: epochs, steps_per_epoch,
    total_steps (in optimizer steps) and T_max (in epochs); and the optimizer's rate as max_lr.

    Raises:
        ConfigError: it cannot be built, or the warm-up is as long as the training.
    """
    if warmup_epochs >= epochs:
        raise ConfigError(f"TRAIN.WARMUP_EPOCHS {warmup_epochs:g} leaves nothing of the "
                          f"{plural(epochs, 'epoch')} of TRAIN.EPOCHS")
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    if node is None:
        return Schedule(optimizer, None, warmup_steps)
    remaining = epochs - math.floor(warmup_epochs)
    needed = epochs * steps_per_epoch - warmup_steps
    facts = {"optimizer": optimizer, "epochs": remaining, "steps_per_epoch": steps_per_epoch,
             "T_max": remaining, "total_steps": needed,
             "max_lr": float(optimizer.param_groups[0]["lr"])}
    if "epochs" in node or "steps_per_epoch" in node:
        del facts["total_steps"]  # OneCycleLR would take it before the config's own
    try:  # some arguments are looked at only in a step; try the first and last on another optimizer
        twin = torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
        trial = SCHEDULERS.build(node, **{**facts, "optimizer": twin})
        twin.step()
        trial.step(*([1.0] if unit_of(trial) == "metric" else []))
        if isinstance(trial, lr_scheduler.OneCycleLR) and trial.total_steps == needed:
            trial.last_epoch = needed - 1
            trial.step()
    except (ArithmeticError, ValueError, TypeError) as error:
        raise ConfigError(f"scheduler {node[NAME]} cannot be stepped: {error}",
                          where=where_in(node, NAME)) from error
    try:
        scheduler = SCHEDULERS.build(node, **facts)
    except ConfigError as error:
        if "cycle_momentum" in str(error):
            error.hint = "This optimizer has no momentum to cycle: SCHEDULER.cycle_momentum false"
        raise
    unit = unit_of(scheduler)
    length = getattr(scheduler, "total_steps", None)
    if unit == "batch" and length is not None and length < needed:
        raise ConfigError(f"{node[NAME]} ends after {plural(length, 'step')}, the training takes "
                          f"{needed:,}",
                          where=where_in(node, NAME),
                          hint="Leave its length out: it is taken from TRAIN.EPOCHS.")
    if unit not in ("batch", "epoch", "metric"):
        raise ConfigError(f"{node[NAME]} has unit {unit!r}; batch, epoch and metric are possible",
                          where=where_in(node, NAME))
    return Schedule(optimizer, scheduler, warmup_steps)
