"""What a model and a loss have to be, for training to make something of them; refused by name."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cvkit.config import Config
from cvkit.errors import ConfigError, UserError, located
from cvkit.models.probing import in_evaluation_mode, state_kept
from cvkit.registry import LOSSES, NAME
from cvkit.system.device import is_out_of_memory
from cvkit.training.state import TrainingState


class LossError(ConfigError):
    """A loss of one's own raises an error in its forward()."""


@contextmanager
def forms_checked(model: nn.Module, loss: nn.Module, config: Config,
                  num_classes: int) -> Iterator[None]:
    """Refuse a model that returns no logits in training, or a loss that is none, when called.

    Raises:
        ConfigError: within it. LossError: one's own loss raises an error.
    """
    def see_logits(_: nn.Module, inputs: tuple[Tensor, ...], logits: Any) -> None:
        with located(config.MODEL, NAME):
            _refuse_logits(config.MODEL[NAME], logits, (len(inputs[0]), num_classes))

    def see_loss(_: nn.Module, inputs: tuple[Tensor, ...], value: Any) -> None:
        with located(config.LOSS, NAME):
            _refuse_value(config.LOSS[NAME], value)
        with located(config.MODEL, NAME):
            if not inputs[0].requires_grad:
                raise ConfigError("the logits of the model have no gradient: nothing can be "
                                  "trained", hint="no_grad(), detach() and NumPy leave none.")
        with located(config.LOSS, NAME):
            if not value.requires_grad:
                raise ConfigError(f"loss {config.LOSS[NAME]} has no gradient: what it returns does "
                                  "not depend on the logits as torch computes them",
                                  hint="argmax, item(), detach() and NumPy have none.")

    hooks = model.register_forward_hook(see_logits), loss.register_forward_hook(see_loss)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        forward = getattr(getattr(type(loss), "forward", None), "__code__", None)
        place = next((f"{frame.f_code.co_filename}:{line}"
                      for frame, line in traceback.walk_tb(error.__traceback__)
                      if frame.f_code is forward), None)
        if not LOSSES.is_own(config.LOSS) or place is None or is_out_of_memory(error):
            raise
        with located(config.LOSS, NAME):
            raise LossError(f"loss {config.LOSS[NAME]} fails, {type(error).__name__}: {error}",
                            hint=f"It is called as loss(logits, targets). See {place}") from error
    finally:
        for hook in hooks:
            hook.remove()


def _refuse_logits(name: str, logits: Any, expected: tuple[int, int]) -> None:
    if not isinstance(logits, Tensor) or logits.shape != expected:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ConfigError(f"model {name} returns {shape} in training; expected logits of shape "
                          f"{expected}", hint="As in evaluation, where it returns them.")


def _refuse_value(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        is_tensor = isinstance(value, Tensor)
        shape = f"{value.dtype} {tuple(value.shape)}" if is_tensor else f"a {type(value).__name__}"
        raise ConfigError(f"loss {name} returns {shape}, not one number: the mean over the images "
                          "of a batch",
                          hint="End it with .mean()." if is_tensor and value.numel() > 1 else
                          "Training needs that alone, as a tensor with its gradient.")


def refuse_modules(state: TrainingState, config: Config) -> None:
    """Refuse a model or a loss with weights that are not saved, or not trained.

    Raises:
        ConfigError: names them.
    """
    for name, module, node in ((f"model {config.MODEL[NAME]}", state.model, config.MODEL),
                               (f"loss {config.LOSS[NAME]}", state.loss, config.LOSS)):
        with located(node, NAME):
            _refuse_sparse(name, module)
            _refuse_hidden(name, module)


def _refuse_sparse(name: str, module: nn.Module) -> None:
    """Refuse weights that no checkpoint holds, and no average is taken of."""
    for key, value in module.state_dict().items():
        if isinstance(value, Tensor) and value.layout is not torch.strided:
            raise ConfigError(f"{name} has {key}, which is sparse",
                              hint="Keep it as indices and values, and make it in forward().")


def _refuse_hidden(name: str, whole: nn.Module) -> None:
    """Refuse layers that torch does not know of, which are neither trained nor saved."""
    usual = vars(nn.Module())
    known = {id(item) for item in (*whole.modules(), *whole.parameters())}
    for module in whole.modules():
        for key, value in vars(module).items():
            items = value.values() if isinstance(value, dict) else value
            if key not in usual and isinstance(value, (dict, list, tuple)) and any(
                    isinstance(item, (nn.Module, nn.Parameter)) and id(item) not in known
                    for item in items):
                raise ConfigError(f"{name} keeps layers or parameters in a "
                                  f"{type(value).__name__}, {key} of {type(module).__name__}, "
                                  "which torch neither trains nor saves",
                                  hint="nn.ModuleList, ModuleDict and ParameterList hold them.")


@torch.no_grad()
def refuse_sum(loss: nn.Module, name: str, logits: Tensor, targets: Tensor) -> None:
    """Refuse a loss that is twice as high of twice the images.

    Args:
        name: of the loss.
        logits, targets: of a batch.
    """
    half = len(logits) // 2
    logits, targets = logits[:half].float(), targets[:half]
    with state_kept(loss), in_evaluation_mode(loss):
        try:
            once = float(loss(logits, targets))
            twice = float(loss(torch.cat([logits, logits]), torch.cat([targets, targets])))
        except Exception:
            # It may take whole batches only.
            return
    if once and math.isclose(twice, 2 * once, rel_tol=1e-3):
        raise ConfigError(f"loss {name} is a sum over the images of a batch, not their mean",
                          hint="End it with .mean(), or divide it by len(logits).")
