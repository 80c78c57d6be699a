"""Which run a config can go on with, and why not; what is saved inside an epoch, and when."""

from __future__ import annotations

import math
import random
import re
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cvkit.config import Config
from cvkit.errors import RunError, UserError
from cvkit.evaluation.metrics import Accuracy, Mean
from cvkit.runs.folder import MAY_CHANGE, Run, find_runs, is_among
from cvkit.system import distributed
from cvkit.system.seeds import random_state, set_numpy_state, set_python_state, set_random_state
from cvkit.training.schedulers import is_planned, is_to_find, with_rate


@dataclass
class EpochState:
    """How far an epoch is, and what was measured in it.

    Attributes:
        batches: that were trained on, by whole optimizer steps.
        rate: the learning rate it began with.
        rates: (optimizer steps before, rate), a hundred of an epoch at most.
        loss, accuracy: so far, of this process.
        seconds: that training took.
    """

    batches: int = 0
    rate: float = 0.0
    rates: list[tuple[int, float]] = field(default_factory=list)
    loss: Mean = field(default_factory=Mean)
    accuracy: Accuracy = field(default_factory=Accuracy)
    seconds: float = 0.0
    random: list[dict[str, torch.Tensor]] | None = None  # of each process, until it is resumed
    _started: float | None = None

    def begin(self, rate: float, device: torch.device) -> EpochState:
        """Return the state that an epoch begins with: this one, if it was resumed, or a new one."""
        state = self if self.random is not None else EpochState(rate=rate)
        if state.random is not None and len(state.random) == distributed.size():
            set_random_state(state.random[distributed.rank()], device)
        state.random, state._started = None, time.monotonic() - state.seconds
        return state

    def end(self) -> None:
        """Stop the clock."""
        self.seconds, self._started = self._elapsed, None

    @property
    def _elapsed(self) -> float:
        return self.seconds if self._started is None else time.monotonic() - self._started

    def state_dict(self, device: torch.device) -> dict[str, Any] | None:
        """Return what `of` goes on with, from all processes; None at the beginning of an epoch."""
        if not self.batches:
            return None
        states = {name: distributed.gather(state[None])
                  for name, state in random_state(device).items()}
        return {"batches": self.batches, "rate": self.rate, "rates": list(self.rates),
                "loss": self.loss.everywhere().state_dict(),
                "accuracy": self.accuracy.everywhere().state_dict(), "seconds": self._elapsed,
                "random": [{name: rows[rank].clone() for name, rows in states.items()}
                           for rank in range(distributed.size())]}

    @classmethod
    def of(cls, saved: dict[str, Any] | None) -> EpochState:
        """Return the state that `state_dict` gave; None is the beginning of an epoch."""
        if saved is None:
            return cls()
        state = cls(saved["batches"], saved["rate"], list(saved["rates"]),
                    seconds=saved["seconds"], random=saved["random"])
        for parts in state.random:
            torch.Generator().set_state(parts["cpu"].clone())  # these refuse what is no state
            if "python" in parts:
                set_python_state(random.Random(), parts["python"])
                set_numpy_state(np.random.RandomState(), parts["numpy"])
        if distributed.is_main():  # which counts for all
            state.loss.load_state_dict(saved["loss"])
            state.accuracy.load_state_dict(saved["accuracy"])
        return state


class Pace:
    """When to save inside an epoch.

    Args:
        every: TRAIN.CHECKPOINT_EVERY: "epoch" never does, "500 steps" counts optimizer steps of
            the whole training, "10 minutes" the time since the last saving.
    """

    def __init__(self, every: str):
        number, unit = re.fullmatch(r"(\d*) ?([a-z]).*", every).groups()
        self._steps = int(number) if unit == "s" else 0
        self._seconds = 60 * int(number) if unit == "m" else math.inf
        self.restart()

    def restart(self) -> None:
        """Count minutes from now."""
        self._saved = time.monotonic()  # a clock that nobody sets

    def is_due(self, steps: int) -> bool:
        """Whether to save after that many steps of the optimizer."""
        if self._steps:
            return steps % self._steps == 0
        return time.monotonic() - self._saved >= self._seconds


def newest_run_of(config: Config) -> Run | None:
    """Return the newest run that can be continued with this config, or None."""
    for folder in reversed(find_runs(config.OUTPUT_DIR, config.name)):
        try:
            run = Run(folder)
        except UserError as error:
            print(f"note       {folder} is left out: {error.problem}")
            continue
        changes = _changes(as_begun(config, run), run)
        if not changes:
            return run
        if list(changes) == ["DATA.SPLIT_SEED"]:  # of an older version, where SEED was that as well
            print(f"note       {folder} is left out: it was split by another seed; to go on with "
                  f"it, add DATA.SPLIT_SEED {run.config.DATA.SPLIT_SEED}")
    return None


def as_begun(config: Config, run: Run) -> Config:
    """Return the config with the learning rate that was found when the run began."""
    scheduler = run.config.SCHEDULER
    if is_to_find(config) and scheduler is not None and "max_lr" in scheduler:
        return with_rate(config, scheduler.max_lr)
    return config


def _changes(config: Config, run: Run) -> dict[str, tuple[Any, Any]]:
    """Return the keys, with both values, by which a config would train something else than a run.

    The number of epochs is none of them where the schedule does not depend on it.
    """
    now, then = config.flat(), run.config.flat()
    free = (*MAY_CHANGE, "TRAIN.EARLY_STOP")
    if not is_planned(config.SCHEDULER):
        free += ("TRAIN.EPOCHS",)
    return {key: (then.get(key, "not set"), now.get(key, "not set")) for key in {**then, **now}
            if now.get(key) != then.get(key) and not is_among(key, free)}


def refuse_changes(config: Config, run: Run) -> None:
    """Refuse to go on with a config that would have trained something else.

    Raises:
        RunError: names every key that differs.
    """
    changed = _changes(config, run)
    if changed:
        lines = [f"{key}: {then} in the run, {now} now" for key, (then, now) in changed.items()]
        if "TRAIN.EPOCHS" in changed:
            lines.append(f"{config.SCHEDULER.NAME} was planned for the old number")
        raise RunError(f"{run.folder} cannot be resumed with another config: {'; '.join(lines)}",
                       hint=f"Resume with the run's own, python tools/train.py "
                            f"{run.folder / 'config.yaml'} --resume {run.folder}, or start a new "
                            "run without --resume.")
