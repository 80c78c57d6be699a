"""The losses: all of `torch.nn` that fit classification, given logits and class numbers.

Each is fed what it is defined on, so that none is silently wrong: `NLLLoss` gets log
probabilities (on raw logits it would turn negative), `MSELoss` probabilities and one-hot
targets, and so on. Your own are called as `loss(logits, targets)`. The `weight` of classes, where
torch takes one, can also be given by name, or be `balanced`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedParameter

from cvkit.errors import ConfigError, located, where_in
from cvkit.registry import LOSSES, NAME
from cvkit.registry.signatures import declare, parameters_of
from cvkit.system.text import and_more, plural, suggest

# What torch's losses take: the form of the model's output, and of the targets.
_FORMS = {
    "CrossEntropyLoss": ("logits", "classes"),
    "MultiMarginLoss": ("logits", "classes"),
    "NLLLoss": ("log probabilities", "classes"),
    "KLDivLoss": ("log probabilities", "one-hot"),
    "BCEWithLogitsLoss": ("logits", "one-hot"),
    "MultiLabelSoftMarginLoss": ("logits", "one-hot"),
    "SoftMarginLoss": ("logits", "signs"),
    "BCELoss": ("probabilities", "one-hot"),
    "MSELoss": ("probabilities", "one-hot"),
    "L1Loss": ("probabilities", "one-hot"),
    "SmoothL1Loss": ("probabilities", "one-hot"),
    "HuberLoss": ("probabilities", "one-hot"),
}
_NO_FORM = "is not a loss of logits and classes"
LOSSES.add_library("torch.nn", lambda: {
    name: _adapt(getattr(nn, name)) if targets == "classes" else getattr(nn, name)
    for name, (_, targets) in _FORMS.items()},
                   left_out={name: _NO_FORM for name in vars(nn)
                             if "Loss" in name and name not in _FORMS})
# What a config may say of the weights of classes.
ClassWeights = list[float] | Literal["balanced"] | dict[str, float] | None


def class_weights(weight: ClassWeights, classes: Sequence[str] | None,
                  class_counts: Sequence[int] | None) -> Tensor | None:
    """Return what a config's `weight` means: numbers of the classes, float32 (C,), or None.

    Args:
        weight: a number for each class; numbers by the names of some, the others having 1; or
            "balanced", n / (C · n_c) for a class with n_c of all n training images, as
            scikit-learn has it.
        classes: their names.
        class_counts: training images of each.

    Raises:
        ConfigError: a name is no class's, a value no number, or a class has no training images.
    """
    if weight is None:
        return None
    if isinstance(weight, Mapping):
        names = list(classes or ())
        for name, value in weight.items():
            where = where_in(weight, name) or "weight"
            if name not in names:
                raise ConfigError(f"no class named {name!r}", where, suggest(name, names, 20))
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"the weight of class {name} is a number, not {value!r}", where)
        weight = [weight.get(name, 1.0) for name in names]
    elif weight == "balanced":
        if class_counts is None:
            raise ConfigError("how many training images each class has is not known", "weight",
                              "Give a number for each class.")
        if empty := [name for name, count in zip(classes or (), class_counts) if not count]:
            raise ConfigError(
                f"{plural(len(empty), 'class')} without training images: {and_more(empty, 5)}; "
                "balanced weights divide by their number", "weight",
                "Add images, or give weights by name: weight: {CLASS: 2.0}.")
        share = sum(class_counts) / len(class_counts)
        weight = [share / count for count in class_counts]
    return torch.tensor(weight, dtype=torch.float32)


def _adapt(kind: type[nn.Module]) -> Callable[..., nn.Module]:
    """Return a loss of torch whose `weight`, if it has one, is as `class_weights` takes it."""
    parameters, _ = parameters_of(kind)
    if "weight" not in parameters:
        return kind

    @functools.wraps(kind, updated=())
    def build(weight: ClassWeights = None, classes: Sequence[str] | None = None,
              class_counts: Sequence[int] | None = None, **arguments: Any) -> nn.Module:
        return kind(weight=class_weights(weight, classes, class_counts), **arguments)

    own, _ = parameters_of(class_weights)
    parameters |= {key: value.replace(default=None) for key, value in own.items()}
    declare(build, parameters.values())
    return build


@LOSSES.register()
class FocalLoss(nn.CrossEntropyLoss):
    """Cross entropy that counts images less the surer they are right (Lin et al., 2017).

    (1 - p)^gamma times the cross entropy, where p is the probability of the image's class; of a
    mixed image the sum over its classes, each times its share.

    Args:
        gamma: 0 is cross entropy; the higher, the less those images count.
        weight: of the classes, as CrossEntropyLoss takes it.
    """

    def __init__(self, gamma: float = 2.0, weight: ClassWeights = None,
                 classes: Sequence[str] | None = None, class_counts: Sequence[int] | None = None):
        if not gamma >= 0:
            raise ValueError(f"gamma is 0 or above, not {gamma:g}")
        super().__init__(class_weights(weight, classes, class_counts))
        self.gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        logs = logits.log_softmax(1)
        if targets.ndim == 1:
            targets = F.one_hot(targets, logits.shape[1])
        # A power may have no gradient at 0.
        wrong = (-torch.expm1(logs)).clamp_min(1e-7)
        each = -targets * wrong ** self.gamma * logs
        losses = (each if self.weight is None else each * self.weight).sum(1)
        return losses if self.reduction == "none" else losses.mean()


class _Function(nn.Module):
    """Any function of logits and targets as a loss."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.function(logits, targets)


class ClassificationLoss(nn.Module):
    """A loss of `torch.nn`, or FocalLoss, on logits (N, C) and targets.

    Targets are classes (N,), or shares of them (N, C).
    Where its classes weigh differently, it is the sum of the images' weighted losses over N, in
    units of the mean weight of the classes: the same however images are batched, which torch's own
    mean over the weights of a batch is not.

    Attributes:
        weights: of the classes (C,), with the mean 1; None if all are the same.
    """

    def __init__(self, criterion: nn.Module, outputs: str, targets: str,
                 weights: Tensor | None = None):
        super().__init__()
        self.criterion, self.outputs, self.targets = criterion, outputs, targets
        self.weights: Tensor | None
        self.register_buffer("weights", None if weights is None else weights / weights.mean())
        self._unit = 1.0 if weights is None else float(weights.mean())

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.float()
        if self.outputs == "probabilities":
            outputs = logits.softmax(1)
        elif self.outputs == "log probabilities":
            outputs = logits.log_softmax(1)
        else:
            outputs = logits
        if self.targets != "classes" and targets.ndim == 1:
            targets = F.one_hot(targets, logits.shape[1]).to(outputs.dtype)
        loss = self.criterion(outputs, 2 * targets - 1 if self.targets == "signs" else targets)
        return loss if self.weights is None else loss.mean() / self._unit

    def weight_of(self, targets: Tensor) -> Tensor | None:
        """Return what the images of these targets weigh together; None for their number.

        The sum of all batches' values times their images, over the sum of this, is torch's
        weighted mean over all images at once. Of mixed images the shares are weighed.
        """
        if self.weights is None:
            return None
        return self.weights[targets].sum() if targets.ndim == 1 else (targets @ self.weights).sum()


def weight_of(loss: nn.Module, targets: Tensor) -> Tensor | None:
    """Return what images weigh together in the mean of a loss; None for their number."""
    return loss.weight_of(targets) if isinstance(loss, ClassificationLoss) else None


def torch_form(loss: nn.Module) -> tuple[str, str] | None:
    """Return which of torch's losses this is, or is derived from, and the outputs that one takes.

    They are all 0 or above, given those outputs. None is returned for any other loss.
    """
    criterion = loss.criterion if isinstance(loss, ClassificationLoss) else loss
    return next(((name, outputs) for name, (outputs, _) in _FORMS.items()
                 if isinstance(criterion, getattr(nn, name))), None)


def build_loss(node: Any, num_classes: int, takes_shares: bool = False,
               classes: Sequence[str] | None = None,
               class_counts: Sequence[int] | None = None) -> nn.Module:
    """Build a loss whose value is a mean over the images of a batch.

    Args:
        node: the config's LOSS.
        num_classes: of the data.
        takes_shares: whether targets may be shares of the classes, of mixed images.
        classes: their names.
        class_counts: how many images of each the training has; None where that is not known.

    Raises:
        ConfigError: the loss is not one of classification, its weights do not fit the classes,
            or it cannot take shares.
    """
    with located(node, NAME):
        loss = _build_loss(node, num_classes, classes, class_counts)
        if takes_shares:
            _refuse_without_shares(loss, node[NAME], num_classes)
    return loss


def _refuse_without_shares(loss: nn.Module, name: str, num_classes: int) -> None:
    try:
        loss(torch.zeros(2, num_classes), torch.full((2, num_classes), 1 / num_classes))
    except Exception as error:
        # Torch and the user's own loss each have their own errors.
        raise ConfigError(f"loss {name} cannot be given shares of classes, which mixed images "
                          f"count for ({error})",
                          hint="Take CrossEntropyLoss, or leave MixUp and CutMix out.") from error


def _build_loss(node: Any, num_classes: int, classes: Sequence[str] | None,
                class_counts: Sequence[int] | None) -> nn.Module:
    criterion = LOSSES.build(node, num_classes=num_classes, classes=classes,
                             class_counts=class_counts)
    if not isinstance(criterion, nn.Module):
        if not callable(criterion):
            raise ConfigError(f"loss {node[NAME]} is {type(criterion).__name__}, which cannot be "
                              "called as loss(logits, targets)")
        return _Function(criterion)
    is_torch_s = type(criterion).__module__.startswith("torch.nn")
    if not (is_torch_s or type(criterion) is FocalLoss):
        if any(isinstance(weight, UninitializedParameter) for weight in criterion.parameters()):
            # A LazyLinear gets its weights by that.
            criterion(torch.zeros(2, num_classes), torch.arange(2) % num_classes)
        return criterion
    return _torch_loss(node, criterion, num_classes)


def _torch_loss(node: Any, criterion: Any, num_classes: int) -> ClassificationLoss:
    name = type(criterion).__name__
    form = _FORMS.get("CrossEntropyLoss" if isinstance(criterion, FocalLoss) else name)
    if form is None:
        raise ConfigError(f"{name} {_NO_FORM}", hint=f"Those are {', '.join(_FORMS)}.")
    with located(node, "reduction"):
        if criterion.reduction not in ("mean", "batchmean"):
            raise ConfigError(f"reduction {criterion.reduction!r} does not give a mean over images",
                              hint="Leave it out.")
    with located(node, "log_target"):
        if getattr(criterion, "log_target", False):
            raise ConfigError("targets are probabilities here, not their logarithms",
                              hint="Leave it out.")
    if isinstance(criterion, nn.KLDivLoss):
        # Torch's "mean" also divides by the classes.
        criterion.reduction = "batchmean"
    # Torch takes what is below 0 for none.
    smoothing = getattr(criterion, "label_smoothing", 0)
    with located(node, "label_smoothing"):
        if not 0 <= smoothing <= 1:
            raise ConfigError(f"label_smoothing lies between 0 and 1, not {smoothing:g}")
    for key in ("weight", "pos_weight"):
        weight = getattr(criterion, key, None)
        with located(node, key):
            if weight is not None and len(weight) != num_classes:
                raise ConfigError(f"{key} has {plural(len(weight), 'number')} for "
                                  f"{plural(num_classes, 'class')}")
    weights = _class_weights(criterion, num_classes) if form[1] == "classes" else None
    if weights is not None:
        with located(node, "weight"):
            if not (weights.min() >= 0 and 0 < weights.sum() < math.inf):
                problem = ("a weight is below 0" if weights.min() < 0 else
                           "no class has a weight" if not weights.any() else
                           "a weight is no finite number")
                raise ConfigError(f"{problem} in {name}")
        criterion.reduction = "none"
    loss = ClassificationLoss(criterion, *form, weights)
    try:
        loss(torch.zeros(2, num_classes), torch.arange(2) % num_classes)
    except Exception as error:
        # Torch looks at most of a loss's arguments only when it is called.
        raise ConfigError(f"loss {name} cannot be used: {error}") from error
    return loss


def _class_weights(criterion: Any, num_classes: int) -> Tensor | None:
    """Return what the images of each class weigh in torch's mean; None if all are the same."""
    weights, ignored = criterion.weight, getattr(criterion, "ignore_index", -1)
    # Torch's mean is over the other images.
    if 0 <= ignored < num_classes:
        weights = torch.ones(num_classes) if weights is None else weights.clone()
        weights[ignored] = 0
    return weights
