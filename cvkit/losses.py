"""The losses: all of `torch.nn` that fit classification, given logits and class numbers.

Each is fed what it is defined on, so that none is silently wrong: `NLLLoss` gets log
probabilities (on raw logits it would turn negative), `MSELoss` probabilities and one-hot
targets, and so on. Your own are called as `loss(logits, targets)`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvkit.errors import ConfigError, plural
from cvkit.registry import LOSSES, NAME, where_in

LOSSES.add_library("torch.nn", lambda: {
    name: entry for name, entry in vars(nn).items() if name.endswith("Loss")})

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


class ClassificationLoss(nn.Module):
    """One of torch's losses on logits (N, C) and targets: classes (N,), or their weights (N, C)."""

    def __init__(self, criterion: nn.Module, outputs: str, targets: str):
        super().__init__()
        self.criterion, self.outputs, self.targets = criterion, outputs, targets

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
        # torch divides by the weights that a batch happens to hold; the mean weight of the
        # classes instead makes the mean over all images the same however they are batched.
        return loss if loss.ndim == 0 else loss.mean() / self.criterion.weight.mean()


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
    loss = _build_loss(node, num_classes)
    if takes_shares:
        shares = torch.full((2, num_classes), 1 / num_classes)
        try:
            loss(torch.zeros(2, num_classes), shares)
        except Exception as error:  # of torch or of the user's own loss, each in its own way
            raise ConfigError(
                f"loss {node[NAME]} cannot be given shares of classes, which mixed images count "
                f"for ({error})", where=where_in(node, NAME),
                hint="Take CrossEntropyLoss, or leave MixUp and CutMix out.") from error
    return loss


def _build_loss(node: Any, num_classes: int) -> nn.Module:
    criterion = LOSSES.build(node, num_classes=num_classes)
    if not type(criterion).__module__.startswith("torch.nn"):
        return criterion
    name = type(criterion).__name__
    if name not in _FORMS:
        raise ConfigError(f"{name} is not a loss of logits and classes", where=where_in(node, NAME),
                          hint=f"Those are {', '.join(_FORMS)}.")
    if criterion.reduction not in ("mean", "batchmean"):
        raise ConfigError(f"reduction {criterion.reduction!r} does not give a mean over images",
                          where=where_in(node, "reduction"), hint="Leave it out.")
    if getattr(criterion, "log_target", False):
        raise ConfigError("targets are probabilities here, not their logarithms",
                          where=where_in(node, "log_target"), hint="Leave it out.")
    if isinstance(criterion, nn.KLDivLoss):
        criterion.reduction = "batchmean"  # torch's "mean" also divides by the classes
    for key in ("weight", "pos_weight"):
        weight = getattr(criterion, key, None)
        if weight is not None and len(weight) != num_classes:
            raise ConfigError(f"{key} has {plural(len(weight), 'number')} for "
                              f"{plural(num_classes, 'class')}",
                              where=where_in(node, key))
    if getattr(criterion, "weight", None) is not None and _FORMS[name][1] == "classes":
        criterion.reduction = "none"
    loss = ClassificationLoss(criterion, *_FORMS[name])
    try:
        loss(torch.zeros(2, num_classes), torch.arange(2) % num_classes)
    except Exception as error:  # torch looks at most of a loss's arguments only when it is called
        raise ConfigError(f"loss {name} cannot be used: {error}",
                          where=where_in(node, NAME)) from error
    return loss
