"""Metrics. Counts are summed over images on the device and divided once, at the end.

A metric has `update(logits, labels)`, called for each batch, and `compute()`, which returns
values by name. Higher ones are better, unless its attribute `lower_is_better` is True, or holds the
names of those values that are better when lower.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from cvkit import distributed
from cvkit.errors import ConfigError
from cvkit.registry import METRICS


def lower_is_better(metric: Any, values: Iterable[str]) -> list[str]:
    """Return which of the values that a metric computes are better when lower, as it says itself.

    Raises:
        ConfigError: its `lower_is_better` is neither a truth value nor some of their names.
    """
    said = getattr(metric, "lower_is_better", False)
    if isinstance(said, bool):
        return sorted(values) if said else []
    names = set(said) if isinstance(said, (set, frozenset, list, tuple)) else {said}
    if not names <= set(values):
        raise ConfigError(f"lower_is_better of metric {type(metric).__name__} is {said!r}",
                          hint="It is True, False or a set of names that compute() returns: "
                               f"{', '.join(sorted(values))}.")
    return sorted(names)


def is_lower_better(name: str, record: Mapping[str, Any]) -> bool:
    """Tell whether a value is better when lower.

    Args:
        name: of the value, without its split.
        record: of an epoch, as `metrics.jsonl` has it, where training notes which those are.
    """
    if "lower_is_better" in record:
        return name in record["lower_is_better"]
    # Versions that noted nothing went by the ending of names, of cvkit's own metrics as well.
    return not is_part(name) and name.endswith(("loss", "error"))


def is_part(name: str) -> bool:
    """Tell whether a value is a part of one, by what cvkit's own metrics are called."""
    return re.fullmatch(r"(accuracy(/.*)?|top\d+)", name, re.DOTALL) is not None


class Mean:
    """The mean of a value over images, from its means over batches.

    These are only kept, on their device, until someone looks: a look waits for a GPU's work.
    """

    def __init__(self) -> None:
        self._before: list[float] = []  # means from before a resumption
        self._means: list[Tensor] = []
        self._counts: list[int] = []
        self._weights: list[Tensor | float] = []
        self._seen = 0  # batches that `first_non_finite` has looked at

    def update(self, batch_mean: Tensor, images: int, weight: Tensor | None = None) -> None:
        """Add a batch: its sum divided by its images, and what these weigh, 1 each by default."""
        self._means.append(batch_mean.detach().reshape(()))
        self._counts.append(images)
        self._weights.append(images if weight is None else weight.detach())

    def compute(self) -> float:
        """Return the sum over all images divided by their weights; 0 without any."""
        weight = sum(self._weights_of_batches())
        if not weight:  # of several processes, one may have had no image yet
            return 0.0
        return float(self._values() @ torch.tensor(self._counts).double()) / weight

    def _values(self) -> Tensor:
        new = torch.stack(self._means).cpu().double() if self._means else torch.zeros(0)
        return torch.cat([torch.tensor(self._before, dtype=torch.float64), new.double()])

    def _weights_of_batches(self) -> list[float]:
        on_device = [weight for weight in self._weights if isinstance(weight, Tensor)]
        if on_device:  # of all batches but those from before a resumption; one look for them all
            self._weights[-len(on_device):] = torch.stack(on_device).cpu().double().tolist()
        return self._weights

    def everywhere(self) -> Mean:
        """Return that over the images of all processes. All must ask."""
        whole = Mean()
        whole._before = distributed.gather(self._values()).tolist()
        whole._counts = distributed.gather(torch.tensor(self._counts, dtype=torch.int64)).tolist()
        whole._weights = distributed.gather(
            torch.tensor(self._weights_of_batches(), dtype=torch.float64)).tolist()
        return whole

    def state_dict(self) -> dict[str, list]:
        """Return what `load_state_dict` goes on with."""
        return {"means": self._values().tolist(), "counts": list(self._counts),
                "weights": list(self._weights_of_batches())}

    def load_state_dict(self, state: dict[str, list]) -> None:
        self._before, self._counts = list(state["means"]), list(state["counts"])
        self._weights = list(state.get("weights", self._counts))  # older versions wrote none

    def batches(self) -> list[float]:
        """Return the means over batches, in order; over their weights where images have some."""
        sums = self._values() * torch.tensor(self._counts)
        return [total / weight if weight else 0.0
                for total, weight in zip(sums.tolist(), self._weights_of_batches(), strict=True)]

    def first_non_finite(self) -> int | None:
        """Return the number of the first batch whose mean is infinite or NaN, or None.

        Batches count from 0, without those from before a resumption.
        """
        new, self._seen = self._means[self._seen:], len(self._means)
        bad = torch.stack(new).isfinite().logical_not().nonzero() if new else ()
        return self._seen - len(new) + int(bad[0]) if len(bad) else None


@METRICS.register()
class Accuracy:
    """Part of the images whose highest logit is that of their class; `accuracy`, 0 to 1."""

    def __init__(self) -> None:
        self.correct: Tensor | int = 0
        self.count = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (N, C), labels (N,)."""
        self.correct = self.correct + (logits.argmax(1) == labels).sum()
        self.count += len(labels)

    def compute(self) -> dict[str, float]:
        return {"accuracy": int(self.correct) / max(self.count, 1)}

    def everywhere(self) -> Accuracy:
        """Return that over the images of all processes. All must ask."""
        whole = Accuracy()
        sums = distributed.total(torch.tensor([int(self.correct), self.count]))
        whole.correct, whole.count = sums.tolist()
        return whole

    def state_dict(self) -> dict[str, int]:
        """Return what `load_state_dict` goes on with."""
        return {"correct": int(self.correct), "count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.correct, self.count = state["correct"], state["count"]


@METRICS.register()
class TopKAccuracy:
    """Part of the images whose class is among the k highest logits; `top5` for k=5, 0 to 1."""

    def __init__(self, k: int = 5, num_classes: int | None = None) -> None:
        if k < 1 or (num_classes is not None and k > num_classes):
            raise ValueError(f"k lies between 1 and the number of classes, {num_classes}, not {k}")
        self.k, self.correct, self.count = k, 0, 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (N, C), labels (N,)."""
        found = (logits.topk(self.k, dim=1).indices == labels[:, None]).any(1)
        self.correct = self.correct + found.sum()
        self.count += len(labels)

    def compute(self) -> dict[str, float]:
        return {f"top{self.k}": int(self.correct) / max(self.count, 1)}


@METRICS.register()
class PerClassAccuracy:
    """The accuracy within each class; `accuracy/cat` and so on, 0 to 1, NaN without images."""

    def __init__(self, classes: list[str]) -> None:
        self.classes = list(classes)
        self.correct: Tensor | int = 0
        self.count: Tensor | int = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (N, C), labels (N,)."""
        hits = labels[logits.argmax(1) == labels]
        self.correct = self.correct + torch.bincount(hits, minlength=len(self.classes))
        self.count = self.count + torch.bincount(labels, minlength=len(self.classes))

    def compute(self) -> dict[str, float]:
        values = (self.correct / self.count).tolist()
        return {f"accuracy/{name}": value
                for name, value in zip(self.classes, values, strict=True)}
