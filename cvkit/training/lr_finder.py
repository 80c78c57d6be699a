"""The learning rate range test (Smith, 2015, "Cyclical Learning Rates for Training …").

The rate rises exponentially over a short training while the loss is noted: it falls, reaches a
lowest point, and then rises or is no longer finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cvkit.errors import RunError
from cvkit.runs.range_test import RangeTest

_WINDOW = 14  # a loss is averaged over a 14th of the steps
_DIVERGED = 4.0  # times the lowest loss, three times in a row: no use to go on
_NOISE = 2.0  # a fall below twice what losses deviate from their average may be chance


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
        if min(losses[-3:]) > _DIVERGED * min(losses):
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
                       hint="Take more steps, python tools/find_lr.py CONFIG --steps 300, or a "
                            "larger DATA.BATCH_SIZE; or set the rate yourself.")
    return RangeTest(rates, losses, smoothed, float(f"{rates[best] / 2:.3g}"))
