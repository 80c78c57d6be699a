"""The optimizers: all of `torch.optim` that need nothing but gradients."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from cvkit.errors import ConfigError
from cvkit.registry import NAME, OPTIMIZERS, where_in

OPTIMIZERS.add_library("torch.optim", lambda: {
    name: entry for name, entry in vars(torch.optim).items()
    if inspect.isclass(entry) and issubclass(entry, torch.optim.Optimizer)},
    left_out={"Optimizer": "is what optimizers are derived from",
              "LBFGS": "calls the loss again within a step",
              "SparseAdam": "takes sparse gradients only"})


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
    groups = [{"params": trained}]
    if not decay_norm_and_bias:
        groups = [{"params": [parameter for parameter in trained if parameter.ndim > 1]},
                  {"params": [parameter for parameter in trained if parameter.ndim <= 1],
                   "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    _try_a_step(node, trained)
    if not _can_be_fused(node, trained):
        return OPTIMIZERS.build(node, params=groups)
    optimizer = OPTIMIZERS.build(node, params=groups, fused=True)
    if getattr(optimizer, "defaults", {}).get("momentum"):
        # Torch would begin with uninitialised memory if GradScaler skips the first step.
        for parameter in trained:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _try_a_step(node: Any, trained: list[nn.Parameter]) -> None:
    """Refuse arguments that torch's optimizers look at only when they change weights."""
    if not trained:
        return
    twin = nn.Parameter(torch.zeros_like(min(trained, key=torch.numel)))
    optimizer = OPTIMIZERS.build(node, params=[twin])
    if not type(optimizer).__module__.startswith("torch."):
        return
    twin.grad = torch.zeros_like(twin)
    try:
        optimizer.step()
    except Exception as error:
        raise ConfigError(f"optimizer {node[NAME]} cannot take a step: {error}",
                          where=where_in(node, NAME)) from error


def _can_be_fused(node: Any, trained: list[nn.Parameter]) -> bool:
    """Tell whether torch can update all weights in one kernel, and the config leaves it open."""
    is_open = not {"foreach", "fused", "differentiable", "dampening"} & set(node)
    return is_open and node["NAME"].split(".")[-1] in ("SGD", "Adam", "AdamW") and all(
        parameter.device.type in ("cpu", "cuda") for parameter in trained)
