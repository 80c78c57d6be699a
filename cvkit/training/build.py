"""Building what a config says of training: optimizer, schedule, and the state they change."""

from __future__ import annotations

import torch
from torch import nn

from cvkit.errors import located
from cvkit.runs.experiment import Experiment
from cvkit.training.optimizers import build_optimizer
from cvkit.training.schedulers import Schedule, build_schedule
from cvkit.training.state import BuildOptimizer, TrainingState


def build_state(parts: Experiment, model: nn.Module, loss: nn.Module) -> TrainingState:
    """Build the state that trains a model as a config says.

    Args:
        parts: whose config it is, and on whose device.
        model, loss: on that device.

    Raises:
        ConfigError: a part cannot be built.
    """
    config = parts.config
    optimizer, schedule = optimizer_builder(parts, is_tried=True)(model, loss)
    with located(config.TRAIN, "EMA_DECAY"):
        return TrainingState(model, loss, optimizer, schedule, parts.device, parts.precision,
                             config.TRAIN.EMA_DECAY, config.TRAIN.CLIP_GRAD_NORM)


def optimizer_builder(parts: Experiment, is_tried: bool = False) -> BuildOptimizer:
    """Return what builds the config's optimizer and schedule of a model and its loss.

    Args:
        parts: whose config it is.
        is_tried: whether steps of the optimizer are tried; False for another of the same kind.
    """
    def build(model: nn.Module, loss: nn.Module) -> tuple[torch.optim.Optimizer, Schedule]:
        config = parts.config
        is_scheduled = config.SCHEDULER is not None or config.TRAIN.WARMUP_EPOCHS > 0
        optimizer = build_optimizer(config.OPTIMIZER, model, config.TRAIN.DECAY_NORM_AND_BIAS,
                                    loss, is_tried, is_scheduled)
        return optimizer, build_schedule(config.SCHEDULER, optimizer, config.TRAIN.EPOCHS,
                                         parts.loaders.train.plan.steps,
                                         config.TRAIN.WARMUP_EPOCHS)

    return build
