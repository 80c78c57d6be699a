"""The learning rate range test (Smith, 2015, "Cyclical Learning Rates for Training …").

The rate rises exponentially over a short training while the loss is noted: it falls, reaches a
lowest point, and then rises or is no longer finite.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Generator

import torch

from cvkit.data.loaders import Batch
from cvkit.errors import RunError
from cvkit.runs.experiment import Experiment
from cvkit.runs.range_test import RangeTest
from cvkit.system import distributed
from cvkit.system.command import command
from cvkit.system.log import ProgressBar
from cvkit.system.seeds import random_numbers_kept, seed_epoch
from cvkit.training.build import optimizer_builder
from cvkit.training.failures import explaining
from cvkit.training.state import TrainingState
from cvkit.training.step import train_step

# A loss is averaged over a 14th of the steps.
_WINDOW = 14
# Times the lowest loss, three times in a row: no use to go on.
_DIVERGED = 4.0
# A fall below twice what losses deviate from their average may be chance.
_NOISE = 2.0


def find_rate(state: TrainingState, parts: Experiment, lowest: float = 1e-5,
              highest: float = 10.0, steps: int = 100) -> RangeTest:
    """Run a range test on a copy of a state; random numbers are left as they were.

    Args:
        state, parts: of the training.
        lowest, highest: the first and the last rate, with equal factors between.
        steps: of the optimizer.

    Raises:
        RunError: the loss does not fall at any of the rates.
        ValueError: see `range_test`.
    """
    config, loader = parts.config, parts.loaders.train
    accumulate = loader.plan.accumulate

    # Tried as one whose rate will be changed, which the state's own may not have been.
    build = optimizer_builder(parts, state.freezing, is_tried=True, has_schedule=False)
    twin = state.copy(build, has_averages=False)
    twin.train_mode()
    bar = ProgressBar("Finding the learning rate", steps, unit="step")

    def batches() -> Generator[Batch]:
        for epoch in itertools.count():
            loader.set_epoch(epoch)
            yield from loader

    def step(rate: float) -> float:
        twin.schedule.set_rate(rate)
        losses = []
        for number in range(accumulate):
            # Steps of so many batches each, over the ends of epochs as well.
            batch = next(source)._replace(weight=1 / accumulate,
                                          ends_step=number + 1 == accumulate)
            losses.append(train_step(twin, batch)[0])
        mean = distributed.all_reduce_sum(torch.stack(losses).mean())
        loss = float(mean) / distributed.size()
        if bar.step():
            bar.update(loss)
        return loss

    with (random_numbers_kept(state.device), contextlib.closing(batches()) as source,
          explaining(state, parts.loaders), bar):
        seed_epoch(config.SEED, 0, config.DETERMINISTIC)
        return range_test(step, lowest, highest, steps)


def range_test(step: Callable[[float], float], lowest: float, highest: float,
               steps: int) -> RangeTest:
    """Run a range test.

    Args:
        step: trains once at the given rate and returns the loss before that.
        lowest, highest: the first and the last rate.
        steps: how many; fewer are made if the loss diverges.

    Raises:
        ValueError: the rates do not rise, or steps is below 20.
        RunError: the loss did not fall more than it varies, so there is nothing to suggest.
    """
    if not 0 < lowest < highest:
        raise ValueError(f"rates rise from above 0, not from {lowest:g} to {highest:g}")
    if steps < 20:
        raise ValueError(f"steps is 20 or more, not {steps}")
    rates: list[float] = []
    losses: list[float] = []
    for number in range(steps):
        rate = lowest * (highest / lowest) ** (number / (steps - 1))
        loss = step(rate)
        if not math.isfinite(loss):
            break
        rates.append(rate)
        losses.append(loss)
        # A loss of one's own may lie below 0.
        if min(losses[-3:]) > min(losses) + (_DIVERGED - 1) * abs(min(losses)):
            break
    reach = max(1, steps // _WINDOW // 2)
    windows = [losses[max(0, place - reach):place + reach + 1] for place in range(len(losses))]
    smoothed = [sum(window) / len(window) for window in windows]
    best = smoothed.index(min(smoothed)) if smoothed else 0
    deviations = [(loss - mean) ** 2 for loss, mean in zip(losses[:best], smoothed)]
    noise = math.sqrt(sum(deviations) / max(best, 1))
    if best < reach or smoothed[0] - smoothed[best] <= _NOISE * noise:
        fall = "is not finite"
        if smoothed:
            fall = (f"falls by {max(smoothed[0] - smoothed[best], 0):.3f} only, while it varies by "
                    f"{noise:.3f} from step to step")
        raise RunError(f"no learning rate can be suggested: from {lowest:g} to {highest:g} the "
                       f"loss {fall}",
                       hint=f"Take more steps, {command('find-lr')} CONFIG --steps 300, or a "
                            "larger DATA.BATCH_SIZE; or set the rate yourself.")
    return RangeTest(rates, losses, smoothed, float(f"{rates[best] / 2:.3g}"))
