"""How far an epoch is: what is saved inside of one, besides the weights."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import torch

from cvkit.evaluation.metrics import Accuracy, Mean
from cvkit.system import distributed
from cvkit.system.seeds import (
    random_state,
    set_numpy_state,
    set_python_state,
    set_random_state,
)


class EpochProgress:
    """How far an epoch is, and what was measured in it.

    Args:
        device: whose random numbers are saved.

    Attributes:
        batches: that were trained on, by whole optimizer steps; 0 once the epoch is finished.
        rate: the learning rate it began with.
        rates: (optimizer steps before, rate), a hundred of an epoch at most.
        loss, accuracy: so far, of this process.
        seconds: that training took.
    """

    def __init__(self, device: torch.device):
        self._device = device
        # Of each process.
        self._random: list[dict[str, torch.Tensor]] | None = None
        self._reset()

    def _reset(self) -> None:
        self.batches, self.rate, self.seconds = 0, 0.0, 0.0
        self.rates: list[tuple[int, float]] = []
        self.loss, self.accuracy = Mean(), Accuracy()
        self._started: float | None = None

    def begin(self, rate: float) -> None:
        """Begin an epoch, or go on in the one that was loaded."""
        if self._random is None:
            self._reset()
            self.rate = rate
        elif len(self._random) == distributed.size():
            set_random_state(self._random[distributed.rank()], self._device)
        # Of a finer grain than `monotonic` on Windows, where that takes 16 ms for none.
        self._random, self._started = None, time.perf_counter() - self.seconds

    def stop_clock(self) -> None:
        """Let `seconds` stay as they are."""
        self.seconds, self._started = self._elapsed, None

    def finish(self) -> None:
        """End the epoch; what was measured in it stays until the next one begins."""
        self.batches = 0

    @property
    def _elapsed(self) -> float:
        return self.seconds if self._started is None else time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any] | None:
        """Return what was reached, in all processes; None between epochs."""
        if not self.batches:
            return None
        numbers = self._random
        if numbers is None:
            states = {name: distributed.gather(state[None])
                      for name, state in random_state(self._device).items()}
            numbers = [{name: rows[rank].clone() for name, rows in states.items()}
                       for rank in range(distributed.size())]
        return {"batches": self.batches, "rate": self.rate, "rates": list(self.rates),
                "loss": self.loss.everywhere().state_dict(),
                "accuracy": self.accuracy.everywhere().state_dict(), "seconds": self._elapsed,
                "random": numbers}

    def load_state_dict(self, saved: dict[str, Any] | None) -> None:
        """Go on from what `state_dict` gave."""
        self._reset()
        if saved is None:
            return
        self.batches, self.rate = saved["batches"], saved["rate"]
        self.rates, self.seconds = list(saved["rates"]), saved["seconds"]
        self._random = saved["random"]
        for parts in self._random:
            # These refuse what is no state.
            torch.Generator().set_state(parts["cpu"].clone())
            if "python" in parts:
                set_python_state(random.Random(), parts["python"])
                set_numpy_state(np.random.RandomState(), parts["numpy"])
        # What all processes measured is counted once.
        if distributed.is_main():
            self.loss.load_state_dict(saved["loss"])
            self.accuracy.load_state_dict(saved["accuracy"])
