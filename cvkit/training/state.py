"""The training state: all that a training changes, saved and loaded by one loop over its parts."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from cvkit.config import Config
from cvkit.errors import CheckpointError, ConfigError, RunError
from cvkit.runs.predictions import Predictions
from cvkit.system import distributed
from cvkit.system.device import compile_model, is_out_of_memory
from cvkit.system.saving import load_weights, plain, weights_of
from cvkit.training.ema import EMA
from cvkit.training.optimizers import begin_momentum, build_optimizer
from cvkit.training.progress import EpochProgress
from cvkit.training.schedulers import build_schedule, is_to_find, with_rate


class CopyError(RunError):
    """A model or a loss that cannot be copied, so that nothing can be tried."""


class TrainingState:
    """A model with its loss, and everything that changes them.

    Args:
        config: names optimizer and scheduler, and sets precision, averages and clipping.
        model, loss: on the device.
        device: that computes.
        precision: fp32, bf16 or fp16.
        steps_per_epoch: steps of the optimizer.
        is_tried: whether the optimizer is tried first; not one that is as another.

    Attributes:
        forward: the model as training calls it: compiled, and with gradients that are averaged
            over processes, once `wrap` was called.
        optimizer, schedule, scaler: change the weights.
        ema: averages of the weights, or None.
        epoch: how many are finished.
        progress: how far the next one is.
        values: the monitored split's loss and metrics after the last epoch.
        best: the same of the best epoch, with its number as "epoch"; None before the first.
        predictions: of the monitored split after the last epoch; not saved.
        left_out: image files that batches lack, as they could not be read; not saved.

    Raises:
        ConfigError: a part cannot be built.
    """

    def __init__(self, config: Config, model: nn.Module, loss: nn.Module, device: torch.device,
                 precision: str, steps_per_epoch: int, is_tried: bool = True):
        self.config, self.model, self.loss, self.forward = config, model, loss, model
        self.device, self.precision, self.steps_per_epoch = device, precision, steps_per_epoch
        self._has_unused = False
        self.build_optimizer(config, is_tried)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.ema = self._averages()
        self.progress = EpochProgress(device)
        self.epoch = 0
        self.values: dict[str, float] = {}
        self.best: dict[str, float] | None = None
        self.predictions: Predictions | None = None
        self.left_out: set[str] = set()

    def build_optimizer(self, config: Config, is_tried: bool = False) -> None:
        """Build optimizer and schedule anew, of a config whose learning rate may be found now."""
        self.config = config
        self.optimizer = build_optimizer(
            config.OPTIMIZER, self.model, config.TRAIN.DECAY_NORM_AND_BIAS, self.loss, is_tried,
            config.SCHEDULER is not None or config.TRAIN.WARMUP_EPOCHS > 0)
        if is_to_find(config):
            config = with_rate(config, config.OPTIMIZER.lr)
        self.schedule = build_schedule(config.SCHEDULER, self.optimizer, config.TRAIN.EPOCHS,
                                       self.steps_per_epoch, config.TRAIN.WARMUP_EPOCHS)
        begin_momentum(self.optimizer)

    def _averages(self) -> EMA | None:
        decay = self.config.TRAIN.EMA_DECAY
        try:
            return EMA(self.model, decay) if decay > 0 else None
        except (TypeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise ConfigError(f"the model cannot be copied, and averages are of a copy: {error}",
                              where=self.config.TRAIN.where("EMA_DECAY"),
                              hint="TRAIN.EMA_DECAY 0") from error

    def wrap(self, has_unused: bool, is_compiled: bool = True) -> None:
        """Make `forward` compute as TRAIN.COMPILE says, and average gradients over processes.

        Args:
            has_unused: whether some parameters get no gradient.
            is_compiled: False leaves TRAIN.COMPILE out, which takes half a minute.
        """
        self._has_unused, model = has_unused, self.model
        if self.config.TRAIN.COMPILE and is_compiled:
            model = compile_model(model, self.device, self.config.TRAIN.where("COMPILE"))
        self.forward = distributed.average_gradients(model, self.device, has_unused)
        # That gave the model the first process's weights, which averages have to begin with too.
        if distributed.size() > 1:
            self.ema = self._averages()

    # -- copies ------------------------------------------------------------------------

    def copied_modules(self) -> tuple[nn.Module, nn.Module]:
        """Return copies of model and loss.

        Raises:
            CopyError: there are none.
        """
        try:
            model, loss = copy.deepcopy((self.model, self.loss))
        except (TypeError, RuntimeError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            raise CopyError(f"model or loss cannot be copied: {error}") from error
        # Those of a jit.script are no leaves.
        if not all(parameter.is_leaf for parameter in model.parameters()):
            raise CopyError("a copy of the model cannot be trained")
        return model, loss

    def copy(self, is_compiled: bool = False, config: Config | None = None) -> TrainingState:
        """Return a state at its beginning, of copies of model and loss: its steps leave this one.

        Args:
            is_compiled: whether TRAIN.COMPILE counts, see `wrap`.
            config: another one.

        Raises:
            CopyError: there are no copies.
        """
        twin = TrainingState(config or self.config, *self.copied_modules(), self.device,
                             self.precision, self.steps_per_epoch, is_tried=False)
        twin.wrap(self._has_unused, is_compiled)
        return twin

    # -- what is asked of it -----------------------------------------------------------

    @property
    def evaluated_model(self) -> nn.Module:
        """The model whose results count: the averaged weights where there are some."""
        return self.model if self.ema is None else self.ema.model

    @property
    def weights(self) -> list[nn.Parameter]:
        """The parameters of the model, and of the loss if it has some."""
        return [*self.model.parameters(), *self.loss.parameters()]

    def is_finite(self) -> bool:
        """Whether all weights and their averages are numbers; buffers may be infinite masks."""
        weights = [*self.weights, *(self.ema.model.parameters() if self.ema else ())]
        weights = [parameter.detach() for parameter in weights if parameter.numel()]
        return not weights or bool(
            torch.stack(torch._foreach_norm(weights, math.inf)).isfinite().all())

    # -- saving and loading ------------------------------------------------------------

    @property
    def parts(self) -> dict[str, Any]:
        """What is saved and loaded, by name; each has state_dict() and load_state_dict()."""
        parts = {"model": self.model, "loss": self.loss, "ema": self.ema,
                 "optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler,
                 "progress": self.progress}
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on. All processes must ask.

        At the end of an epoch random numbers are no part of it: each seeds its own from
        (SEED, epoch).
        """
        states = {name: weights_of(part) if isinstance(part, nn.Module) else
                  plain(part.state_dict()) for name, part in self.parts.items()}
        return {**states, "epoch": self.epoch, "values": self.values, "best": self.best}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Args:
            states: those of "loss" and "scaler" may be empty: the parts stay as they were built.

        Raises:
            CheckpointError: a state does not fit its part.
        """
        try:
            for saved, group in zip(states["optimizer"]["param_groups"],
                                    self.optimizer.param_groups):
                # A matter of the device and of torch, not of what it computes.
                if "fused" in group:
                    saved["fused"] = group["fused"]
            for name, part in self.parts.items():
                state = states[name]
                if isinstance(part, nn.Module):
                    if state or name == "model":
                        load_weights(part, state, "the checkpoint", name)
                elif state or name != "scaler":
                    part.load_state_dict(state)
            self.epoch, self.values = states["epoch"], states["values"]
            self.best = states["best"]
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError("the checkpoint's training state does not fit: "
                                  f"{type(error).__name__}: {error}") from error
