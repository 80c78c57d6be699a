"""The training state: all that a training changes, saved and loaded by one loop over its parts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cvkit.errors import CheckpointError, ConfigError, RunError
from cvkit.runs.predictions import Predictions
from cvkit.system import distributed
from cvkit.system.device import compile_model, is_out_of_memory
from cvkit.system.saving import load_weights, plain, weights_of
from cvkit.training.ema import EMA
from cvkit.training.freezing import Freezing
from cvkit.training.optimizers import begin_momentum
from cvkit.training.progress import EpochProgress
from cvkit.training.schedulers import Schedule

# Given a model and its loss: what changes their weights.
BuildOptimizer = Callable[[nn.Module, nn.Module], tuple[torch.optim.Optimizer, Schedule]]


class CopyError(RunError):
    """A model or a loss that cannot be copied, so that nothing can be tried."""


class TrainingState:
    """A model with its loss, and everything that changes them.

    Args:
        model, loss: on the device.
        optimizer: of the parameters of both.
        schedule: of its learning rate.
        device: that computes.
        precision: fp32, bf16 or fp16.
        average: makes averages of a model's weights, which are evaluated instead; None for none.
        clip_grad_norm: largest norm of all gradients together; 0 for any.
        freezing: which parameters do not learn at first, or ever; None if all do.

    Attributes:
        forward: the model as training calls it: compiled, and with gradients that are averaged
            over processes, once `wrap` was called.
        scaler: of the loss, in fp16.
        ema: averages of the weights, or None.
        epoch: how many are finished.
        progress: how far the next one is.
        values: the monitored split's loss and metrics after the last epoch.
        best: the same of the best epoch, with its number as "epoch"; None before the first.
        predictions: of the monitored split after the last epoch; not saved.
        left_out: image files that batches lack, as they could not be read; not saved.

    Raises:
        ConfigError: there can be no averages of this model.
    """

    def __init__(self, model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer,
                 schedule: Schedule, device: torch.device, precision: str = "fp32",
                 average: Callable[[nn.Module], EMA] | None = None, clip_grad_norm: float = 0.0,
                 freezing: Freezing | None = None):
        self.model, self.loss, self.forward = model, loss, model
        self.epoch, self.freezing, self._is_wrapped = 0, freezing, False
        if freezing is not None:
            freezing.apply(model, 1)
        self.set_optimizer(optimizer, schedule)
        self.device, self.precision = device, precision
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._average, self.clip_grad_norm = average, clip_grad_norm
        self.ema = self._averages()
        self._has_unused = self._is_compiled = False
        self.progress = EpochProgress(device)
        self.values: dict[str, float] = {}
        self.best: dict[str, float] | None = None
        self.predictions: Predictions | None = None
        self.left_out: set[str] = set()

    def set_optimizer(self, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        """Let the weights be changed by another optimizer from now on."""
        self.optimizer, self.schedule = optimizer, schedule
        begin_momentum(optimizer)

    def _averages(self) -> EMA | None:
        try:
            return None if self._average is None else self._average(self.model)
        except (TypeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise ConfigError(f"the model cannot be copied, and averages are of a copy: {error}",
                              hint="TRAIN.EMA_DECAY 0") from error

    def wrap(self, has_unused: bool, is_compiled: bool) -> None:
        """Compile `forward`, and let it average gradients over processes.

        Args:
            has_unused: whether some parameters get no gradient.
            is_compiled: False leaves it as it is, as compiling takes half a minute.

        Raises:
            ConfigError: torch cannot compile on this machine.
        """
        self._has_unused, self._is_compiled, self._is_wrapped = has_unused, is_compiled, True
        self._wrap()
        # That gave the model the first process's weights, which averages have to begin with too.
        if distributed.size() > 1:
            self.ema = self._averages()

    def _wrap(self) -> None:
        model = compile_model(self.model, self.device) if self._is_compiled else self.model
        self.forward = distributed.average_gradients(model, self.device, self._has_unused)

    def _let_learn(self) -> None:
        """Let the parameters take gradients that learn in the coming epoch."""
        if self.freezing is None or not self.freezing.apply(self.model, self.epoch + 1):
            return
        begin_momentum(self.optimizer)
        # What averages gradients goes by those that there were when it was made.
        if self._is_wrapped:
            self._wrap()

    def train_mode(self) -> None:
        """Put the model into training mode for the coming epoch, all but what is frozen then."""
        self._let_learn()
        self.model.train()
        if self.freezing is not None:
            self.freezing.hold(self.model, self.epoch + 1)

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

    def copy(self, build_optimizer: BuildOptimizer, may_compile: bool = False,
             has_averages: bool = True) -> TrainingState:
        """Return a state at its beginning, of copies of model and loss: its steps leave this one.

        Args:
            build_optimizer: returns optimizer and schedule of the copies.
            may_compile: whether the copy is compiled as well, if this one is.
            has_averages: whether it averages its weights as well, if this one does.

        Raises:
            CopyError: there are no copies.
        """
        model, loss = self.copied_modules()
        twin = TrainingState(model, loss, *build_optimizer(model, loss), self.device,
                             self.precision, self._average if has_averages else None,
                             self.clip_grad_norm, self.freezing)
        twin.wrap(self._has_unused, may_compile and self._is_compiled)
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
            self._let_learn()
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError("the checkpoint's training state does not fit: "
                                  f"{type(error).__name__}: {error}") from error
