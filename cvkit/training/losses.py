"""The losses: all of `torch.nn` that fit classification, given logits and class numbers.

Each is fed what it is defined on, so that none is silently wrong: `NLLLoss` gets log
probabilities (on raw logits it would turn negative), `MSELoss` probabilities and one-hot
targets, and so on. Your own are called as `loss(logits, targets)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedParameter

from cvkit.errors import ConfigError, located
from cvkit.registry import LOSSES, NAME
from cvkit.system.text import plural

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
LOSSES.add_library("torch.nn", lambda: {name: getattr(nn, name) for name in _FORMS},
                   left_out={name: _NO_FORM for name in vars(nn)
                             if "Loss" in name and name not in _FORMS})


class _Function(nn.Module):
    """Any function of logits and targets as a loss."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.function(logits, targets)


class ClassificationLoss(nn.Module):
    """One of torch's losses on logits (N, C) and targets: classes (N,), or shares of them (N, C).

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


def build_loss(node: Any, num_classes: int, takes_shares: bool = False) -> nn.Module:
    """Build a loss whose value is a mean over the images of a batch.

    Args:
        node: the config's LOSS.
        num_classes: of the data.
        takes_shares: whether targets may be shares of the classes, of mixed images.

    Raises:
        ConfigError: the loss is not one of classification, its weights do not fit the classes,
            or it cannot take shares.
    """
    with located(node, NAME):
        loss = _build_loss(node, num_classes)
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


def _build_loss(node: Any, num_classes: int) -> nn.Module:
    criterion = LOSSES.build(node, num_classes=num_classes)
    if not isinstance(criterion, nn.Module):
        if not callable(criterion):
            raise ConfigError(f"loss {node[NAME]} is {type(criterion).__name__}, which cannot be "
                              "called as loss(logits, targets)")
        return _Function(criterion)
    if not type(criterion).__module__.startswith("torch.nn"):
        if any(isinstance(weight, UninitializedParameter) for weight in criterion.parameters()):
            # A LazyLinear gets its weights by that.
            criterion(torch.zeros(2, num_classes), torch.arange(2) % num_classes)
        return criterion
    return _torch_loss(node, criterion, num_classes)


def _torch_loss(node: Any, criterion: Any, num_classes: int) -> ClassificationLoss:
    name = type(criterion).__name__
    if name not in _FORMS:
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
    for key in ("weight", "pos_weight"):
        weight = getattr(criterion, key, None)
        with located(node, key):
            if weight is not None and len(weight) != num_classes:
                raise ConfigError(f"{key} has {plural(len(weight), 'number')} for "
                                  f"{plural(num_classes, 'class')}")
    weights = _class_weights(criterion, num_classes) if _FORMS[name][1] == "classes" else None
    if weights is not None:
        with located(node, "weight"):
            if weights.min() < 0 or not weights.any():
                problem = "a weight is below 0" if weights.min() < 0 else "no class has a weight"
                raise ConfigError(f"{problem} in {name}")
        criterion.reduction = "none"
    loss = ClassificationLoss(criterion, *_FORMS[name], weights)
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
