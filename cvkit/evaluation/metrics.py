"""Metrics. Counts are summed over images on the device and divided once, at the end.

A metric has `update(logits, labels)`, called for each batch, and `compute()`, which returns
values by name. Higher ones are better, unless its attribute `lower_is_better` is True, or holds the
names of those values that are better when lower.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cvkit.errors import ConfigError, where_in
from cvkit.registry import METRICS
from cvkit.registry.signatures import declare
from cvkit.system import distributed

if TYPE_CHECKING:
    from torchmetrics import Metric


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
    return re.fullmatch(r"(accuracy(/.*)?|balanced_accuracy|top\d+)", name, re.DOTALL) is not None


class Mean:
    """The mean of a value over images, from its means over batches.

    These are only kept, on their device, until someone looks: a look waits for a GPU's work.
    """

    def __init__(self) -> None:
        # `_before` has the means from before a resumption, `_means` those since, of which
        # `first_non_finite` has looked at `_seen`; counts and weights are of all batches.
        self._before: list[float] = []
        self._means: list[Tensor] = []
        self._seen = 0
        self._counts: list[int] = []
        self._weights: list[Tensor | float] = []

    def update(self, batch_mean: Tensor, images: int, weight: Tensor | None = None) -> None:
        """Add a batch: its sum divided by its images, and what these weigh, 1 each by default."""
        self._means.append(batch_mean.detach().reshape(()))
        self._counts.append(images)
        self._weights.append(images if weight is None else weight.detach())

    def compute(self) -> float:
        """Return the sum over all images divided by their weights; 0 without any."""
        weight = sum(self._weights_of_batches())
        # Of several processes, one may have had no image yet.
        if not weight:
            return 0.0
        return float(self._values() @ torch.tensor(self._counts).double()) / weight

    def _values(self) -> Tensor:
        new = torch.stack(self._means).cpu().double() if self._means else torch.zeros(0)
        return torch.cat([torch.tensor(self._before, dtype=torch.float64), new.double()])

    def _weights_of_batches(self) -> list[float]:
        # One look at the device for all batches but those from before a resumption.
        on_device = [weight for weight in self._weights if isinstance(weight, Tensor)]
        if on_device:
            self._weights[-len(on_device):] = torch.stack(on_device).cpu().double().tolist()
        return [float(weight) for weight in self._weights]

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
                "weights": self._weights_of_batches()}

    def load_state_dict(self, state: dict[str, list]) -> None:
        self._before, self._counts = list(state["means"]), list(state["counts"])
        # Older versions wrote no weights.
        self._weights = list(state.get("weights", self._counts))

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
        is_finite = torch.stack(new).isfinite().tolist() if new else []
        return None if all(is_finite) else self._seen - len(new) + is_finite.index(False)


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
        sums = distributed.all_reduce_sum(torch.tensor([int(self.correct), self.count]))
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
        self.k = k
        self.correct: Tensor | int = 0
        self.count = 0

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
        values = (torch.as_tensor(self.correct) / self.count).tolist()
        return {f"accuracy/{name}": value
                for name, value in zip(self.classes, values, strict=True)}


@METRICS.register()
class BalancedAccuracy(PerClassAccuracy):
    """The mean of the accuracies within the classes that have images; `balanced_accuracy`, 0 to 1.

    As scikit-learn's balanced_accuracy_score (Brodersen et al., 2010): each class counts alike.
    """

    lower_is_better = False

    def compute(self) -> dict[str, float]:
        values = torch.tensor(list(super().compute().values()), dtype=torch.float64)
        return {"balanced_accuracy": float(values.nanmean())}


# The first of torchmetrics' go by the highest logits. The others are given probabilities, as they
# would take the logits of a batch that all happen to lie between 0 and 1 for such.
_OF_LOGITS = ("CohenKappa", "F1Score", "FBetaScore", "HammingDistance", "JaccardIndex",
              "MatthewsCorrCoef", "NegativePredictiveValue", "Precision", "Recall", "Specificity")
_OF_PROBABILITIES = ("AUROC", "AveragePrecision", "CalibrationError", "EER", "HingeLoss", "LogAUC")
# These rank the images of a class against all others.
_OF_RANKS = ("AUROC", "AveragePrecision", "EER", "LogAUC")


def _torchmetrics() -> dict[str, Callable]:
    """Return a class for each of torchmetrics' metrics that this version has, by its short name."""
    import torchmetrics.classification

    found = {name: getattr(torchmetrics.classification, f"Multiclass{name}", None)
             for name in (*_OF_LOGITS, *_OF_PROBABILITIES)}
    return {name: _adapt(name, kind) for name, kind in found.items() if kind}


METRICS.add_library("torchmetrics.classification", _torchmetrics, left_out={
    "Accuracy": "is the Recall that it has with the same arguments",
    "ConfusionMatrix": "returns a table, which the visualizer confusion draws",
    "ExactMatch": "is of several labels an image",
    "StatScores": "returns counts",
    **dict.fromkeys(("PrecisionRecallCurve", "ROC"), "returns curves"),
    **dict.fromkeys(("PrecisionAtFixedRecall", "RecallAtFixedPrecision",
                     "SensitivityAtSpecificity", "SpecificityAtSensitivity"),
                    "returns thresholds as well")})


def _adapt(name: str, kind: type[Metric]) -> type:
    """Return a metric of cvkit that counts with one of torchmetrics' for several classes."""
    # An image has one label, and cvkit sees to the rest of what is missing here.
    parameters = [value for key, value in inspect.signature(kind).parameters.items()
                  if key not in ("num_classes", "multidim_average", "validate_args", "kwargs")]
    classes = inspect.Parameter("classes", inspect.Parameter.KEYWORD_ONLY, annotation=list[str])
    adapted = type(name, (_OfRanks if name in _OF_RANKS else _OfTorchmetrics,), {
        "kind": kind, "__doc__": kind.__doc__, "__module__": kind.__module__,
        # Torchmetrics says nothing of some: of a rate of errors as of Specificity.
        "lower_is_better": kind.higher_is_better is False or name == "EER"})
    called = inspect.Parameter("name", inspect.Parameter.KEYWORD_ONLY, annotation=str, default=None)
    declare(adapted, [classes, *parameters, called])
    return adapted


class _OfTorchmetrics:
    """What the classes of `_adapt` have in common: `f1_score`, or `f1_score/cat` and so on.

    Args:
        classes: of the data.
        name: in place of `f1_score`, for two of a kind.
        arguments: torchmetrics'.
    """

    kind: type[Metric]

    def __init__(self, classes: list[str], name: str | None = None, **arguments: Any) -> None:
        if not 1 <= arguments.get("top_k", 1) <= len(classes):
            raise ValueError(f"top_k lies between 1 and the number of classes, {len(classes)}, "
                             f"not {arguments['top_k']}")
        self.classes = list(classes)
        kind = type(self).__name__
        self.name = name or re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower()
        self.arguments = arguments
        self.metric = self._of_classes(len(classes))
        average = inspect.signature(self.kind).parameters.get("average")
        # By class, or one for all.
        self.kind_of_values = self.name, arguments.get(
            "average", average.default if average else "") in (None, "none")

    def _of_classes(self, count: int) -> Metric:
        # Each process is given the logits of all, so that none has to ask the others.
        return self.kind(num_classes=count, sync_on_compute=False, **self.arguments)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (N, C), labels (N,)."""
        is_of_logits = type(self).__name__ in _OF_LOGITS
        outputs = logits if is_of_logits else logits.float().softmax(1)
        # Counted on the CPU, the result is the same on each device.
        with self._counting():
            self._count(outputs.cpu(), labels.cpu())

    def _count(self, outputs: Tensor, labels: Tensor) -> None:
        self.metric.update(outputs, labels)

    def _computed(self) -> Tensor:
        return self.metric.compute()

    def compute(self) -> dict[str, float]:
        with self._counting():
            values = self._computed()
        if not values.ndim:
            return {self.name: float(values)}
        return {f"{self.name}/{of_class}": value
                for of_class, value in zip(self.classes, values.tolist(), strict=True)}

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        """Leave torch's deterministic mode, for which there is no need on a CPU.

        In that mode torchmetrics would compare each image with each pair of classes, in memory.

        Raises:
            ConfigError: of arguments that torchmetrics looks at only now.
        """
        is_deterministic = torch.are_deterministic_algorithms_enabled()
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        # Nothing is set without need, as that would import torch's compiler.
        if is_deterministic:
            torch.use_deterministic_algorithms(False)
        try:
            yield
        except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:
            raise ConfigError(f"metric {type(self).__name__} cannot be counted: {error}") from error
        finally:
            if is_deterministic:
                torch.use_deterministic_algorithms(True, warn_only=warns)


class _OfRanks(_OfTorchmetrics):
    """One that is counted of the classes with images alone, NaN of others.

    Torchmetrics takes a class for the worst that there can be where it has no images, or all, and
    averages over it.
    """

    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self._batches: list[tuple[Tensor, Tensor]] = []

    def _count(self, outputs: Tensor, labels: Tensor) -> None:
        self._batches.append((outputs, labels))

    def _computed(self) -> Tensor:
        outputs, labels = map(torch.cat, zip(*self._batches))
        if self.arguments.get("ignore_index") is not None:
            is_counted = labels != self.arguments["ignore_index"]
            outputs, labels = outputs[is_counted], labels[is_counted]
        there = torch.bincount(labels, minlength=len(self.classes))
        known = (there > 0) & (there < len(labels))
        if self.arguments.get("average") == "micro":
            # One ranking, of all classes together.
            known[:] = True
        of_all = torch.full((len(self.classes),), torch.nan)
        if not known.any():
            return of_all if self.kind_of_values[1] else of_all[0]
        # What is to be ignored is left out by now, and the others have other numbers.
        rest = {key: value for key, value in self.arguments.items() if key != "ignore_index"}
        metric = self.kind(num_classes=int(known.sum()), sync_on_compute=False, **rest)
        metric.update(outputs[:, known], (known.cumsum(0) - 1)[labels])
        values = metric.compute()
        if not values.ndim:
            return values
        of_all[known] = values.float()
        return of_all


def build_metrics(nodes: Iterable[Any], classes: Sequence[str]) -> list[Any]:
    """Return accuracy and the config's METRICS, at zero.

    Raises:
        ConfigError: one has no update() or no compute().
    """
    metrics = [Accuracy()]
    for node in nodes:
        if node["NAME"] != "Accuracy":
            metrics.append(METRICS.build(node, classes=list(classes), num_classes=len(classes)))
            METRICS.refuse_without(node, metrics[-1], "update(logits, labels)", "compute()")
            # Known before anything is counted: after an epoch it would be late.
            if isinstance(metrics[-1], _OfTorchmetrics) and metrics[-1].kind_of_values in [
                    other.kind_of_values for other in metrics[:-1]
                    if isinstance(other, _OfTorchmetrics)]:
                name = metrics[-1].name
                raise ConfigError(f"two metrics compute {name!r}", where_in(node, "NAME"),
                                  f"Call one of them otherwise: name: {name}_2")
    return metrics


def values_of(metric: Any) -> dict[str, float]:
    """Return what a metric computes, as plain numbers, which alone can be saved.

    Raises:
        ConfigError: it returns something else.
    """
    values = metric.compute()
    try:
        if not all(isinstance(name, str) for name in values):
            raise TypeError("names are text")
        return {name: float(value) for name, value in values.items()}
    except (AttributeError, TypeError, ValueError, RuntimeError):
        raise ConfigError(f"metric {type(metric).__name__} computes {values!r}",
                          hint="compute() returns numbers by name, such as "
                               "{'recall': 0.5}.") from None


def refuse_what_adds_up(nodes: Iterable[Any], classes: Sequence[str]) -> None:
    """Refuse a metric whose evaluations go on with what the one before has counted.

    Raises:
        ConfigError: what a new one computes depends on another, and so does what they share: the
            class, defaults of its methods, or values in its file.
    """
    right = torch.eye(len(classes))
    for node in nodes:
        kind = METRICS.get(node["NAME"])
        # Metrics of cvkit and torchmetrics are known to count in their objects.
        if not METRICS.is_own(node) or not inspect.isclass(kind):
            continue

        def updated(logits: torch.Tensor, node: Any = node) -> Any:
            metric = build_metrics([node], classes)[1]
            metric.update(logits.clone(), torch.arange(len(classes)))
            return metric

        before = _shared(kind)
        updated(right)
        changed = [name for name, value in _shared(kind).items() if before.get(name) != value]
        if not changed:
            continue
        found = [values_of(updated(logits)) for logits in (right, right.roll(1, 0), right)]
        # They are compared as text, in which NaN is NaN.
        if repr(found[0]) != repr(found[2]):
            raise ConfigError(
                f"metric {node['NAME']} counts in {changed[0]}, so that an evaluation adds to the "
                "one before", where=where_in(node, "NAME"),
                hint="Set what it counts in __init__, as attributes of self: each evaluation makes "
                     "the metric anew.")


def _shared(kind: type) -> dict[str, str]:
    """Return, in words, what all objects of a class have in common and may change."""
    found = {}
    for name, value in ((name, value) for base in kind.__mro__ if base.__module__ != "builtins"
                        for name, value in vars(base).items()):
        if inspect.isfunction(value):
            found[f"a default of {name}()"] = repr((value.__defaults__, value.__kwdefaults__))
            found |= {f"{other} of its file": repr(value.__globals__[other])
                      for other in value.__code__.co_names if other in value.__globals__
                      and not callable(value.__globals__[other])
                      and not inspect.ismodule(value.__globals__[other])}
        elif not callable(value) and not name.startswith("__"):
            found[f"{name} of its class"] = repr(value)
    return found


def together(computed: Iterable[tuple[Any, dict[str, float]]]) -> dict[str, float]:
    """Return what several metrics computed, by name.

    Args:
        computed: each metric and what `values_of` returns of it.

    Raises:
        ConfigError: two of them compute a value of the same name, or one that cvkit computes.
    """
    values: dict[str, float] = {}
    for metric, own in computed:
        for name, value in own.items():
            if name in values or name == "loss":
                whose = "loss and accuracy are cvkit's own" if name in ("loss", "accuracy") else (
                    "another one does so too")
                raise ConfigError(f"metric {type(metric).__name__} computes {name!r}: {whose}",
                                  hint="Give it another name in what compute() returns, or leave "
                                       "one out.")
            values[name] = value
    return values
