"""torch's Muon for networks that have more than matrices: convolutions, biases and norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cvkit.registry import OPTIMIZERS


class Muon(torch.optim.Optimizer):
    """torch's Muon (Jordan, 2024) of all matrices, and AdamW or SGD of the rest, as one optimizer.

    The weights of a convolution are a matrix (outputs, inputs × height × width). Biases and norms
    go to the other one, and so do the matrices of groups that say `muon: false`, for which the last
    layer is usually chosen: `groups: [{match: head, muon: false}]`.

    Args:
        lr: of the matrices.
        momentum, nesterov, ns_steps, adjust_lr_fn: see `torch.optim.Muon`.
        weight_decay: of all; decoupled from the gradients but in SGD.
        adamw_lr: of the rest where the matrices have `lr`; schedules change both in proportion.
        betas, eps: of AdamW.
        sgd_lr: takes torch's SGD with Nesterov momentum for the rest instead, at that rate.
        sgd_momentum: of it.
        muon: False gives matrices to the other one as well.
        normalize: bring each matrix to a norm of the root of its rows before it is changed, as
            airbench does (Jordan, 2024), so that `lr` alone says how fast it turns.

    Raises:
        ValueError: a matrix lies in memory in an order of its own; an argument out of range.
    """

    def __init__(self, params: Any, lr: float = 0.02, momentum: float = 0.95,
                 nesterov: bool = True, ns_steps: int = 5, adjust_lr_fn: str | None = None,
                 weight_decay: float = 0.01, adamw_lr: float = 0.001,
                 betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
                 sgd_lr: float | None = None, sgd_momentum: float = 0.9, muon: bool = True,
                 normalize: bool = False):
        if ns_steps < 1:
            raise ValueError(f"ns_steps is 1 or more, not {ns_steps}")
        if sgd_lr is not None and sgd_lr < 0:
            raise ValueError(f"sgd_lr is 0 or more, not {sgd_lr}")
        if not 0 <= sgd_momentum < 1:
            raise ValueError(f"sgd_momentum lies from 0 to below 1, not {sgd_momentum}")
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn, "weight_decay": weight_decay,
            "adamw_lr": adamw_lr, "betas": betas, "eps": eps, "sgd_lr": sgd_lr,
            "sgd_momentum": sgd_momentum, "muon": muon, "normalize": normalize})
        for parameter in (each for group in self.param_groups for each in group["params"]):
            if _is_matrix(parameter) and _matrix(parameter, parameter).data_ptr() != (
                    parameter.data_ptr()):
                raise ValueError(f"a parameter of {tuple(parameter.shape)} lies in memory in an "
                                 "order of its own; contiguous() brings it into the usual one")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Change all parameters by their gradients; what `closure` returns, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learning = [each for each in group["params"] if each.grad is not None]
            matrices = [each for each in learning if group["muon"] and _is_matrix(each)]
            known = {id(each) for each in matrices}
            self._step_muon(group, matrices)
            self._step_rest(group, [each for each in learning if id(each) not in known])
        return loss

    def _step_muon(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        if not params:
            return
        if group["normalize"]:
            for parameter in params:
                parameter.mul_(len(parameter)**0.5 / parameter.norm().clamp(min=group["eps"]))
        flat = [nn.Parameter(_matrix(each, each)) for each in params]
        options = {key: group[key] for key in ("lr", "momentum", "nesterov", "ns_steps",
                                               "adjust_lr_fn", "weight_decay")}
        inner = torch.optim.Muon(flat, **options)
        for parameter, matrix in zip(params, flat):
            # Those that learn have one.
            assert parameter.grad is not None
            matrix.grad = _matrix(parameter.grad, parameter)
            kept = self.state[parameter]
            old = kept.get("momentum_buffer")
            # One that was loaded may lie in memory otherwise.
            if old is None or old.stride() != parameter.stride():
                kept["momentum_buffer"] = torch.zeros_like(parameter)
                if old is not None:
                    kept["momentum_buffer"].copy_(old)
            inner.state[matrix] = {
                "momentum_buffer": _matrix(kept["momentum_buffer"], parameter)}
        inner.step()

    def _step_rest(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        if not params:
            return
        part = group["lr"] / self.defaults["lr"] if self.defaults["lr"] else 0.0
        inner: torch.optim.Optimizer
        if group["sgd_lr"] is None:
            inner = torch.optim.AdamW(params, part * group["adamw_lr"], group["betas"],
                                      group["eps"], group["weight_decay"])
        else:
            inner = torch.optim.SGD(params, part * group["sgd_lr"], group["sgd_momentum"],
                                    weight_decay=group["weight_decay"],
                                    nesterov=group["sgd_momentum"] > 0)
        for parameter in params:
            # The same dict, so that what is noted there is kept here.
            inner.state[parameter] = self.state[parameter]
        inner.step()


# torch has it from version 2.9 on.
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS.register()(Muon)


def _is_matrix(parameter: Tensor) -> bool:
    rows = parameter.shape[0] if parameter.ndim > 1 else 1
    return min(rows, parameter.numel() // rows) > 1


def _matrix(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a tensor as a matrix, in the order in which a parameter lies in memory.

    Muon does the same to a matrix whose columns are in another order.
    """
    if parameter.ndim == 4 and not parameter.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.detach().flatten(1)
