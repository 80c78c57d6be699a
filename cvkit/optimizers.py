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
    facts = {"fused": True} if _can_be_fused(node, trained) else {}
    if decay_norm_and_bias:
        return OPTIMIZERS.build(node, params=trained, **facts)
    groups = [{"params": [parameter for parameter in trained if parameter.ndim > 1]},
              {"params": [parameter for parameter in trained if parameter.ndim <= 1],
               "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return OPTIMIZERS.build(node, params=groups, **facts)


def _can_be_fused(node: Any, trained: list[nn.Parameter]) -> bool:
    """Tell whether torch updates all weights in one kernel, and the config does not choose."""
    chooses = {"foreach", "fused", "differentiable"} & set(node)
    return not chooses and node["NAME"].split(".")[-1] in ("SGD", "Adam", "AdamW") and all(
        parameter.device.type in ("cpu", "cuda") for parameter in trained)
