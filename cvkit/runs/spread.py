"""How the results of several runs lie: mean, deviation and confidence interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from cvkit.evaluation.metrics import is_part


def known(values: Sequence[float]) -> Sequence[float]:
    """Return the values that are no NaN; all if all are. A fold may have no image of a class."""
    return [value for value in values if not math.isnan(value)] or values


class Spread(NamedTuple):
    """Mean and standard deviation (of a sample, n - 1) of values; of one value that is NaN."""

    mean: float
    deviation: float
    size: int
    lowest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one value or more; of those that are NaN, only if all are."""
        values = known(values)
        can_vary = len(values) > 1 and all(map(math.isfinite, values))
        return cls(statistics.fmean(values), statistics.stdev(values) if can_vary else math.nan,
                   len(values), min(values))

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the 95 % confidence interval of the mean, by Student's t."""
        from scipy.stats import t

        half = float(t.ppf(0.975, self.size - 1)) * self.deviation / math.sqrt(self.size)
        return self.mean - half, self.mean + half

    def in_words(self, name: str) -> tuple[str, str]:
        """Return "87.21 ± 0.32 %" and the interval, "86.81 to 87.61 %", of a metric of a name."""
        scale, digits, unit = (100, 2, " %") if is_part(name) else (1, 4, "")
        if math.isnan(self.mean):
            return "–", "–"
        mean = f"{scale * self.mean:.{digits}f}"
        if self.size < 2:
            return f"{mean}{unit}", "–"
        # What t says of a few values may reach beyond what there can be.
        is_loss = name == "loss" and self.lowest >= 0
        lowest = 0.0 if is_part(name) or is_loss else -math.inf
        highest = 1.0 if is_part(name) else math.inf
        low, high = (f"{scale * min(max(end, lowest), highest):.{digits}f}"
                     for end in self.interval)
        return f"{mean} ± {scale * self.deviation:.{digits}f}{unit}", f"{low} to {high}{unit}"
