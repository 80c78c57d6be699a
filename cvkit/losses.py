"""The losses: all of `torch.nn` that fit classification, given logits and class numbers.

Each is fed what it is defined on, so that none is silently wrong: `NLLLoss` gets log
probabilities (on raw logits it would turn negative), `MSELoss` probabilities and one-hot
targets, and so on. Your own are called as `loss(logits, targets)`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from cvkit.errors import ConfigError
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
        return self.criterion(outputs, 2 * targets - 1 if self.targets == "signs" else targets)


def build_loss(node: Any, num_classes: int) -> nn.Module:
    """Build a loss whose value is a mean over the images of a batch.

    Raises:
        ConfigError: the loss is not one of classification, or its weights do not fit the classes.
    """
    name = node[NAME]
    criterion = LOSSES.build(node, num_classes=num_classes)
    if not type(criterion).__module__.startswith("torch.nn"):
        return criterion
    if type(criterion).__name__ not in _FORMS:
        raise ConfigError(f"{name} is not a loss of logits and classes", where=where_in(node, NAME),
                          hint=f"Those are {', '.join(_FORMS)}.")
    if criterion.reduction not in ("mean", "batchmean"):
        raise ConfigError(f"reduction {criterion.reduction!r} does not give a mean over images",
                          where=where_in(node, "reduction"), hint="Leave it out.")
    if isinstance(criterion, nn.KLDivLoss):
        criterion.reduction = "batchmean"  # torch's "mean" also divides by the classes
    for key in ("weight", "pos_weight"):
        weight = getattr(criterion, key, None)
        if weight is not None and len(weight) != num_classes:
            raise ConfigError(f"{key} has {len(weight)} numbers for {num_classes} classes",
                              where=where_in(node, key))
    return ClassificationLoss(criterion, *_FORMS[type(criterion).__name__])
