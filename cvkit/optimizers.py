"""The optimizers: all of `torch.optim` that need nothing but gradients."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from cvkit.registry import OPTIMIZERS

# LBFGS calls the loss again within a step; SparseAdam takes sparse gradients only.
_UNSUITABLE = ("Optimizer", "LBFGS", "SparseAdam")

OPTIMIZERS.add_library("torch.optim", lambda: {
    name: entry for name, entry in vars(torch.optim).items()
    if inspect.isclass(entry) and issubclass(entry, torch.optim.Optimizer)
    and name not in _UNSUITABLE})


def build_optimizer(node: Any, model: nn.Module,
                    decay_norm_and_bias: bool = True) -> torch.optim.Optimizer:
    """Build an optimizer of a model's weights.

    Args:
        node: the config's OPTIMIZER.
        model: what is trained.
        decay_norm_and_bias: False spares parameters of one dimension (norms and biases) the
            node's weight_decay (He et al., 2019, "Bag of Tricks").
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if decay_norm_and_bias:
        return OPTIMIZERS.build(node, params=trained)
    groups = [{"params": [parameter for parameter in trained if parameter.ndim > 1]},
              {"params": [parameter for parameter in trained if parameter.ndim <= 1],
               "weight_decay": 0.0}]
    return OPTIMIZERS.build(node, params=[group for group in groups if group["params"]])
