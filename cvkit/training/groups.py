"""The groups of parameters that an optimizer treats differently: OPTIMIZER.groups, layer_decay."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from cvkit.errors import located
from cvkit.models.features import head_of
from cvkit.models.parts import matching, stages_of
from cvkit.system.text import in_columns
from cvkit.training.freezing import Freezing
from cvkit.training.optimizers import trained_in

_REST = "the rest"


def parameter_groups(node: Mapping[str, Any], model: nn.Module, loss: nn.Module | None = None,
                     image_shape: Sequence[int] = (3, 32, 32), decay_norm_and_bias: bool = True,
                     freezing: Freezing | None = None) -> list[dict[str, Any]]:
    """Return the groups of `torch.optim`, of all parameters that learn at any time.

    Args:
        node: the config's OPTIMIZER. Of its `groups` the first that matches a parameter has it,
            see `cvkit.models.parts.matching`; `lr_mult` multiplies the learning rate, the rest are
            arguments of the optimizer. `layer_decay` multiplies the rate of each stage but the last
            by that much less than the next one's (Clark et al., 2020, ELECTRA), by
            `cvkit.models.parts.stages_of`.
        model: what is trained.
        loss: its parameters, if it has some, are trained as well, without weight decay.
        image_shape: (channels, height, width) of what the model takes.
        decay_norm_and_bias: False spares parameters of one dimension (norms and biases) the
            node's weight_decay (He et al., 2019, "Bag of Tricks"), in groups that do not set it.
        freezing: what does not learn at first, or ever.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    until = {} if freezing is None else freezing.until
    learning = {name: parameter for name, parameter in model.named_parameters()
                if until.get(name, 0 if parameter.requires_grad else math.inf) < math.inf}
    groups: list[dict[str, Any]] = []
    for name, parts, options in _chosen(node, model, image_shape):
        params = [learning.pop(part) for part in parts if part in learning]
        vectors = [] if decay_norm_and_bias or "weight_decay" in options else [
            parameter for parameter in params if parameter.ndim <= 1]
        few = {id(parameter) for parameter in vectors}
        groups.append({"params": [each for each in params if id(each) not in few], **options})
        groups.append({"params": vectors, **options, "weight_decay": 0.0})
        for group, suffix in zip(groups[-2:], ("", ", norms and biases")):
            group |= {"name": f"{name}{suffix}"} if name else {}
    groups.append({"params": trained_in(loss), "weight_decay": 0.0})
    if "lr_mult" in groups[0]:
        groups[-1] |= {"name": "the loss", "lr_mult": 1.0}
    return [group for group in groups if group["params"]]


def _chosen(node: Mapping[str, Any], model: nn.Module,
            image_shape: Sequence[int]) -> list[tuple[str, list[str], dict[str, Any]]]:
    """Return name, parameters and options of each group; the first that has a parameter counts."""
    names = [name for name, _ in model.named_parameters()]
    decay, nodes = node.get("layer_decay"), node.get("groups") or ()
    if decay is None and not nodes:
        return [("", names, {})]
    head = functools.cache(lambda: head_of(model, image_shape))
    chosen: list[tuple[str, list[str], dict[str, Any]]] = []
    for item in nodes:
        patterns = [item["match"]] if isinstance(item["match"], str) else list(item["match"])
        options = {key: item[key] for key in item if key not in ("match", "lr_mult")}
        with located(item, "match"):
            found = matching(model, patterns, head)
        chosen.append((_called(item), found,
                       {"lr_mult": float(item.get("lr_mult", 1.0)), **options}))
    chosen.append((_REST, names, {"lr_mult": 1.0}))
    if decay is None:
        return chosen
    stages = stages_of(model)
    return [(f"{name} in {stage}" if nodes else stage,
             [part for part in parts if part in set(inner)],
             {**options, "lr_mult": options["lr_mult"] * decay ** (len(stages) - 1 - place)})
            for name, parts, options in chosen
            for place, (stage, inner) in enumerate(stages.items())]


def _called(item: Mapping[str, Any]) -> str:
    return item["match"] if isinstance(item["match"], str) else " ".join(item["match"])


def unused(node: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return those of an optimizer's `groups` that no parameter has, by name.

    Args:
        node: the config's OPTIMIZER.
        groups: that `parameter_groups` returned.
    """
    called = [_called(item) for item in node.get("groups") or ()]
    has = {name for name in called for group in groups
           if f"{group['name']},".startswith((f"{name},", f"{name} in "))}
    return [name for place, name in enumerate(called) if name not in has or name in called[:place]]


def table_of(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each group of an optimizer: its name, rate, weight decay and size."""
    rows = [("parameters", "lr", "weight decay", "tensors", "numbers")]
    rows += [(group.get("name", "all"), f"× {group.get('lr_mult', 1.0):.4g}",
              f"{group['weight_decay']:g}" if "weight_decay" in group else "-",
              f"{len(group['params']):,}",
              f"{sum(parameter.numel() for parameter in group['params']):,}") for group in groups]
    return in_columns(rows, "<", "<", ">", ">", ">")
