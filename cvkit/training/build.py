"""Building what a config says of training: optimizer, schedule, and the state they change."""

from __future__ import annotations

import functools

import torch
from torch import nn

from cvkit.config.tree import DEFAULT
from cvkit.errors import ConfigError, located
from cvkit.runs.experiment import Experiment
from cvkit.system.text import plural
from cvkit.training.ema import EMA
from cvkit.training.freezing import Freezing, build_freezing
from cvkit.training.groups import parameter_groups
from cvkit.training.optimizers import build_optimizer
from cvkit.training.schedulers import Schedule, build_schedule
from cvkit.training.state import BuildOptimizer, TrainingState


def build_state(parts: Experiment, model: nn.Module, loss: nn.Module) -> TrainingState:
    """Build the state that trains a model as a config says.

    Args:
        parts: whose config it is, and on whose device.
        model, loss: on that device.

    Raises:
        ConfigError: a part cannot be built, or says how to average what is not averaged.
    """
    config = parts.config
    freezing = build_freezing(config, model, parts.loaders.image_shape)
    optimizer, schedule = optimizer_builder(parts, freezing, is_tried=True)(model, loss)
    node, steps = config.TRAIN, config.TRAIN.EPOCHS * parts.loaders.train.plan.steps
    for key in ("EMA_EVERY", "EMA_POWER", "EMA_LOOKAHEAD"):
        # Set to 0, it is meant to switch off the others as well.
        if node.origin(key) != DEFAULT == node.origin("EMA_DECAY"):
            raise ConfigError("nothing is averaged: TRAIN.EMA_DECAY is 0", where=node.where(key),
                              hint="TRAIN.EMA_DECAY 0.99 averages over some hundred steps.")
    if node.EMA_DECAY and steps < node.EMA_EVERY:
        raise ConfigError(f"nothing is averaged: the training has {plural(steps, 'step')}",
                          where=node.where("EMA_EVERY"),
                          hint="To try it on few images, a smaller DATA.BATCH_SIZE makes more "
                               "steps; TRAIN.EMA_EVERY 1 averages after each.")
    average = functools.partial(EMA, decay=node.EMA_DECAY, every=node.EMA_EVERY,
                                power=node.EMA_POWER, total_steps=steps,
                                goes_on=node.EMA_LOOKAHEAD)
    with located(node, "EMA_DECAY"):
        return TrainingState(model, loss, optimizer, schedule, parts.device, parts.precision,
                             average if node.EMA_DECAY > 0 else None, node.CLIP_GRAD_NORM,
                             freezing)


def optimizer_builder(parts: Experiment, freezing: Freezing | None = None, is_tried: bool = False,
                      has_schedule: bool = True) -> BuildOptimizer:
    """Return what builds the config's optimizer and schedule of a model and its loss.

    Args:
        parts: whose config it is.
        freezing: which parameters do not learn at first, or ever.
        is_tried: whether steps of the optimizer are tried; False for another of the same kind.
        has_schedule: False leaves the rate to whoever sets it at each step.
    """
    def build(model: nn.Module, loss: nn.Module) -> tuple[torch.optim.Optimizer, Schedule]:
        config = parts.config
        is_scheduled = config.SCHEDULER is not None or config.TRAIN.WARMUP_EPOCHS > 0
        groups = parameter_groups(config.OPTIMIZER, model, loss, parts.loaders.image_shape,
                                  config.TRAIN.DECAY_NORM_AND_BIAS, freezing)
        optimizer = build_optimizer(config.OPTIMIZER, groups, is_tried,
                                    is_scheduled or not has_schedule)
        if not has_schedule:
            return optimizer, Schedule(optimizer)
        return optimizer, build_schedule(config.SCHEDULER, optimizer, config.TRAIN.EPOCHS,
                                         parts.loaders.train.plan.steps,
                                         config.TRAIN.WARMUP_EPOCHS)

    return build
