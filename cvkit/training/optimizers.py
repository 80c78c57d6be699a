"""The optimizers: all of `torch.optim` that need nothing but gradients."""

from __future__ import annotations

import inspect
import math
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from cvkit.errors import ConfigError, located, where_in
from cvkit.registry import NAME, OPTIMIZERS
from cvkit.registry.signatures import parameters_of, place_of, values_of
from cvkit.registry.signatures import plain as plain_values
from cvkit.system.saving import plain, reread
from cvkit.system.seeds import random_numbers_kept
from cvkit.system.text import suggest
from cvkit.training import muon  # noqa: F401  it registers its optimizer

# Of a trial: some optimizers move slow weights only every 5 or 10 steps, or gather gradients.
_STEPS_BEFORE, _STEPS_AFTER, _MOST_STEPS = 3, 20, 200
OPTIMIZERS.add_library("torch.optim", lambda: {
    name: entry for name, entry in vars(torch.optim).items()
    if inspect.isclass(entry) and issubclass(entry, torch.optim.Optimizer)},
    left_out={"Optimizer": "is what optimizers are derived from",
              "LBFGS": "calls the loss again within a step",
              "SparseAdam": "takes sparse gradients only",
              **({} if hasattr(torch.optim, "Muon") else {"Muon": "is in torch 2.9 and later"})})


def build_optimizer(node: Any, groups: list[dict[str, Any]], is_tried: bool = True,
                    is_scheduled: bool = False) -> torch.optim.Optimizer:
    """Build an optimizer of a model's weights.

    Args:
        node: the config's OPTIMIZER.
        groups: of what is trained, as `torch.optim` takes them; see
            `cvkit.training.groups.parameter_groups`.
        is_tried: whether steps are tried; not for one that is as another.
        is_scheduled: whether its learning rate will be changed.

    Raises:
        ConfigError: it cannot be built, take a step on such parameters, change them by the rate of
            their group, or be resumed.
    """
    # Torch's annotations would allow several.
    if isinstance(node.get("lr"), (list, tuple)):
        raise ConfigError(f"lr of optimizer {node[NAME]} takes one number, not {list(node['lr'])}",
                          where=where_in(node, "lr"),
                          hint="OPTIMIZER.groups has an lr_mult for each group of parameters.")
    with located(node, NAME):
        if groups and is_tried:
            _try_steps(node, groups, is_scheduled)
        is_fused = _can_be_fused(node, [each for group in groups for each in group["params"]])
        optimizer = _build(node, groups, **({"fused": True} if is_fused else {}))
    for group in node.get("groups") or ():
        for key in group:
            if key not in ("match", "lr_mult", *optimizer.defaults):
                raise ConfigError(f"optimizer {node[NAME]} has one {key} for all groups",
                                  where=where_in(group, key) or where_in(node, "groups"),
                                  hint="What differs between groups is in its defaults: "
                                       f"{', '.join(optimizer.defaults)}.")
    return optimizer


# Arguments that are one for all groups, or that the training sets.
_OF_ALL = ("params", "lr", "foreach", "fused", "capturable", "differentiable", "maximize")


def _group_problems(node: Any) -> Iterator[ConfigError]:
    """Yield what is wrong with the `groups` and the `layer_decay` of an OPTIMIZER."""
    decay = node.get("layer_decay")
    if isinstance(decay, (int, float)) and not 0 < decay <= 1:
        yield ConfigError(f"layer_decay lies above 0 and up to 1, not {decay}",
                          where_in(node, "layer_decay"))
    parameters = {key: parameter for key, parameter in parameters_of(
        OPTIMIZERS.get(node[NAME]))[0].items() if key not in _OF_ALL}
    kinds = {"match": values_of(str | list[str]), "lr_mult": values_of(float), **{
        key: values_of(parameter.annotation) for key, parameter in parameters.items()}}
    groups = node.get("groups") or ()
    for number, group in enumerate(groups if isinstance(groups, (list, tuple)) else ()):
        if not isinstance(group, Mapping) or "match" not in group:
            where = where_in(group) if isinstance(group, Mapping) and group else None
            yield ConfigError(f"group {number} of OPTIMIZER.groups has no match",
                              where or where_in(node, "groups"),
                              "It says whose parameters these are: {match: 'layer1*', lr_mult: "
                              "0.1}")
            continue
        for key, value in group.items():
            if key == "lr":
                yield ConfigError("a group has no lr of its own", where_in(group, key),
                                  "lr_mult multiplies the optimizer's, as schedules change it.")
            elif key not in kinds:
                yield ConfigError(f"groups of optimizer {node[NAME]} have no argument {key!r}",
                                  where_in(group, key), suggest(key, kinds))
            elif not kinds[key].fit(value):
                yield ConfigError(f"{key} of a group takes {kinds[key]}, not "
                                  f"{plain_values(value)!r}", where_in(group, key))
            elif key == "lr_mult" and not 0 <= value < math.inf:
                yield ConfigError(f"lr_mult is a number from 0, not {value}", where_in(group, key))


OPTIMIZERS.further = _group_problems


def _build(node: Any, groups: list[dict[str, Any]], **offered: Any) -> torch.optim.Optimizer:
    parameter = parameters_of(OPTIMIZERS.get(node[NAME]))[0].get("fused")
    if parameter is not None and parameter.default is parameter.empty:
        offered.setdefault("fused", None)
    try:
        optimizer = OPTIMIZERS.build(node, params=groups, **offered)
    except (AttributeError, TypeError) as error:
        missing = re.match("'dict' object has no attribute '(\\w+)'", str(error))
        is_of_weight = missing and hasattr(torch.Tensor, missing[1])
        if not (is_of_weight or "must be Tensor, not dict" in str(error)):
            raise
        raise ConfigError(f"optimizer {node[NAME]} takes params for a list of weights ({error})",
                          hint="They are groups, [{\"params\": […], …}, …]: torch.optim.Optimizer "
                               f"makes self.param_groups of them; see "
                               f"{place_of(OPTIMIZERS.get(node[NAME]))}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer {node[NAME]} is {type(optimizer).__name__}, which is no "
                          "torch.optim.Optimizer",
                          hint="Derive it from that: it has the groups, and what is saved.")
    if not all("lr" in group for group in optimizer.param_groups):
        raise ConfigError(f"optimizer {node[NAME]} has no lr in its groups, which schedules change",
                          hint="Give it as a default: super().__init__(params, {\"lr\": lr})")
    return optimizer


def trained_in(module: nn.Module | None) -> list[nn.Parameter]:
    """Return the parameters that are trained; none of nothing."""
    parameters = [] if module is None else module.parameters()
    return [parameter for parameter in parameters if parameter.requires_grad]


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give a fused SGD the buffers of what learns, once it is known whether it has a momentum.

    Torch would begin with uninitialised memory if GradScaler skips the first step.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if group["fused"] and group["momentum"]:
            for parameter in filter(lambda each: each.requires_grad, group["params"]):
                optimizer.state[parameter].setdefault("momentum_buffer",
                                                      torch.zeros_like(parameter))


def _try_steps(node: Any, groups: list[dict[str, Any]], is_scheduled: bool) -> None:
    """Refuse what shows only in steps; one's own optimizer that does nothing or cannot be resumed.

    Raises:
        ConfigError: it cannot take a step on parameters of these shapes; it changes none, or not by
            the rate of their group; or it does not go on from its saved state as it would have
            without.
    """
    device = groups[0]["params"][0].device
    with random_numbers_kept(device):
        copies = _copies(groups, lambda parameter: (parameter.shape, parameter.dtype))
        optimizer = _build(node, copies)
        _step(node, optimizer, copies, 0)
        if not type(optimizer).__module__.startswith("torch."):
            few = _copies(groups, lambda parameter: parameter.ndim)
            _try_to_resume(node, _copies(few))
            _try_rates(node, few, is_scheduled)


def _try_rates(node: Any, groups: list[dict[str, Any]], is_scheduled: bool) -> None:
    """Refuse an optimizer that changes no weight, or all of them the same at any rate."""
    def weights_after(steps: int, factor: float) -> list[dict[str, Any]]:
        copies = _copies(groups)
        optimizer = _build(node, [dict(group) for group in copies])
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor
        for number in range(steps):
            _step(node, optimizer, copies, number)
        return copies

    steps, place = _STEPS_BEFORE + _STEPS_AFTER, place_of(OPTIMIZERS.get(node[NAME]))
    trained = weights_after(steps, 1.0)
    if _are_equal(trained, groups):
        steps = _MOST_STEPS
        trained = weights_after(steps, 1.0)
    if node["lr"] and _are_equal(trained, groups):
        raise ConfigError(f"optimizer {node[NAME]} changes no weight in {steps} steps",
                          hint="step() changes them in place: weight.sub_(…), not weight = weight "
                               f"- …; see {place}")
    if is_scheduled and _are_equal(trained, weights_after(steps, 0.5)):
        raise ConfigError(f"optimizer {node[NAME]} takes the same {steps} steps at half the "
                          "learning rate: SCHEDULER and WARMUP_EPOCHS would have no effect",
                          hint="step() reads the rate from self.param_groups, group[\"lr\"]; see "
                               + place)


def _are_equal(groups: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    return all(torch.allclose(ours, theirs, rtol=0, atol=0, equal_nan=True)
               for group, other in zip(groups, others)
               for ours, theirs in zip(group["params"], other["params"]))


def _try_to_resume(node: Any, groups: list[dict[str, Any]]) -> None:
    """Save the state of one optimizer into another, and see that both go on in the same way."""
    first = _build(node, [dict(group) for group in groups])
    for number in range(_STEPS_BEFORE):
        _step(node, first, groups, number)
    copies = _copies(groups)
    second = _build(node, [dict(group) for group in copies])
    try:
        state = reread(plain(first.state_dict()))
        if not {"state", "param_groups"} <= set(state):
            raise ValueError("state_dict() has no state and param_groups, as torch's has")
        second.load_state_dict(state)
    except Exception as error:
        # Of pickle, of torch, or of the user's own code.
        raise ConfigError(f"the state of optimizer {node[NAME]} cannot be saved and taken up "
                          f"again: {type(error).__name__}: {error}",
                          hint=_place_in(type(second), error)) from error
    for number in range(_STEPS_BEFORE, _STEPS_BEFORE + _STEPS_AFTER):
        for optimizer, params in ((first, groups), (second, copies)):
            for group in optimizer.param_groups:
                # As a scheduler does.
                group["lr"] = group["lr"] * 0.9
            _step(node, optimizer, params, number)
        if not _are_equal(groups, copies):
            own = set(vars(first)) - set(vars(torch.optim.SGD([torch.zeros(1)], lr=1)))
            kept = f": {', '.join(sorted(own))}" if own else ""
            raise ConfigError(
                f"optimizer {node[NAME]} could not be resumed: {number + 1 - _STEPS_BEFORE} steps "
                "after its state is saved and loaded, the weights differ from those without",
                hint="What step() goes by has to be in self.state, in param_groups or in a "
                     f"state_dict() of its own, not in attributes{kept}.")


def _copies(groups: list[dict[str, Any]],
            kind: Callable[[nn.Parameter], Any] = id) -> list[dict[str, Any]]:
    """Return copies of the groups that hold the smallest parameter of each kind."""
    found = []
    for group in groups:
        smallest: dict[Any, nn.Parameter] = {}
        for parameter in sorted(group["params"], key=torch.numel):
            smallest.setdefault(kind(parameter), parameter)
        found.append({**group, "params": [nn.Parameter(parameter.detach().clone())
                                          for parameter in smallest.values()]})
    return found


def _step(node: Any, optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]],
          seed: int) -> None:
    """Take a step with gradients, and other random numbers, that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = 0.01 * torch.randn(parameter.shape, dtype=parameter.dtype,
                                                generator=generator).to(parameter.device)
    torch.manual_seed(seed)
    try:
        optimizer.step()
    except Exception as error:
        # Torch and the user's own code each have their own errors.
        hint = _place_in(type(optimizer), error)
        if "closure" in str(error):
            hint = f"Training computes gradients once and calls step() without a closure. {hint}"
        raise ConfigError(f"optimizer {node[NAME]} cannot take a step: {error}",
                          hint=hint) from error


def _place_in(own: type, error: Exception) -> str | None:
    """Return where in a user's file an error came from; None for a class of torch."""
    if own.__module__.startswith("torch."):
        return None
    lines = [frame for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == inspect.getsourcefile(own)]
    return f"See {lines[-1].filename}:{lines[-1].lineno}" if lines else f"See {place_of(own)}"


def _can_be_fused(node: Any, trained: list[nn.Parameter]) -> bool:
    """Tell whether torch can update all weights in one kernel, and the config leaves it open."""
    is_open = not {"foreach", "fused", "differentiable", "dampening"} & set(node)
    return is_open and node["NAME"].split(".")[-1] in ("SGD", "Adam", "AdamW") and all(
        parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point()
        for parameter in trained)
