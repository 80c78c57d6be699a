"""Which value best.pt and early stopping follow, and which way it is better."""

from __future__ import annotations

import math

import torch

from cvkit.config import Config
from cvkit.errors import ConfigError, RunError, located
from cvkit.evaluation.metrics import (
    build_metrics,
    is_part,
    lower_is_better,
    refuse_what_adds_up,
    together,
    values_of,
)
from cvkit.system.text import suggest


class Monitor:
    """TRAIN.MONITOR of a config, once its METRICS were tried on logits of zero.

    Args:
        config: of the training.
        classes: names.

    Attributes:
        name: of the value.
        lower: names of all values that are better when lower.
        assuming: the metric that computes the monitored value and does not say which way it is
            better, so that the highest is assumed to be; None if there is none.

    Raises:
        ConfigError: no metric computes the value, or a metric cannot be used.
    """

    def __init__(self, config: Config, classes: list[str]):
        self.name = config.TRAIN.MONITOR
        self.lower, self.assuming, computed = ["loss"], None, []
        labels = torch.arange(len(classes))
        with located(config, "METRICS"):
            refuse_what_adds_up(config.METRICS, classes)
            for metric in build_metrics(config.METRICS, classes):
                metric.update(torch.zeros(len(classes), len(classes)), labels.clone())
                values = values_of(metric)
                computed.append((metric, values))
                self.lower += lower_is_better(metric, values)
                if self.name in values and not (
                        is_part(self.name) or hasattr(metric, "lower_is_better")):
                    self.assuming = type(metric).__name__
            known = ["loss", *together(computed)]
        if self.name not in known:
            raise ConfigError(f"no metric named {self.name!r}",
                              where=config.TRAIN.where("MONITOR"), hint=suggest(self.name, known))

    def is_better(self, values: dict[str, float], best: dict[str, float] | None,
                  epoch: int) -> bool:
        """Tell whether an epoch's values are better than the best so far.

        Raises:
            RunError: the value is not among them.
        """
        if self.name not in values:
            raise RunError(f"no metric computed TRAIN.MONITOR {self.name} in epoch {epoch}, but "
                           f"{', '.join(values)}",
                           hint="compute() returns the same names each time.")
        if best is None:
            return True
        value, other = values[self.name], best[self.name]
        # A metric that had nothing to count yet computes NaN.
        if math.isnan(other):
            return not math.isnan(value)
        return value < other if self.name in self.lower else value > other
