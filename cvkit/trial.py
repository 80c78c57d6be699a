"""A trial of a training: a step, a save, a load and an evaluation, in memory, of copies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from cvkit.checkpoint import Checkpoint
from cvkit.data.loaders import Batch, BatchLoader
from cvkit.errors import CheckpointError, ConfigError, RunError
from cvkit.evaluation import build_metrics, predict
from cvkit.files import reread
from cvkit.hardware import autocast, random_numbers_kept
from cvkit.log import Log, Progress
from cvkit.registry import NAME, where_in


def try_training(trainer: Any, is_strict: bool = True) -> str:
    """Try all that a training does, on copies: the trainer and random numbers stay as they were.

    Args:
        trainer: a `Trainer`.
        is_strict: whether a first loss that is not finite is an error; a training says so itself.

    Returns:
        What came of the step, in words.

    Raises:
        UserError: what would end the training, or what its checkpoint could not be resumed from.
    """
    with random_numbers_kept(trainer.device):
        twin = trainer.twin()
        words, is_finite = _step(twin)
        if is_strict and not is_finite:
            raise RunError(f"{words} are not finite", hint="Try TRAIN.PRECISION fp32.")
        checkpoint, said = _as_resumed(twin), _logits(twin)
        del twin  # before there is another
        twin = trainer.twin()
        twin.restore(checkpoint)
        _compare(said, _logits(twin), trainer.config.MODEL)
        _evaluate(twin)
    return words


def _step(trainer: Any) -> tuple[str, bool]:
    """Train on one batch; return in words what came of it, and whether it is finite."""
    trainer.model.train()
    batch = trainer.loaders.train.first_batch()
    logits = _called(trainer, batch)
    loss, _ = trainer.train_step(batch, 1.0, is_step=False)
    norm = _gradient_norm(trainer)
    # The first scale of fp16 is often too large; training skips such steps and halves it.
    while torch.isfinite(loss) and not math.isfinite(norm) and trainer.scaler.get_scale() > 1:
        trainer.scaler.update(trainer.scaler.get_scale() / 16)
        trainer.optimizer.zero_grad(set_to_none=True)
        loss, _ = trainer.train_step(batch, 1.0, is_step=False)
        norm = _gradient_norm(trainer)
    if not (torch.isfinite(loss) and math.isfinite(norm)):
        trainer.optimizer.zero_grad(set_to_none=True)
        return f"loss {float(loss)} and gradient norm {norm} of the first batch", False
    trainer.optimizer_step()
    guess = float(trainer.loss(torch.zeros_like(logits), batch.targets).detach())
    return (f"one batch of {len(batch.labels)}: loss {float(loss):.4f} (guessing gives "
            f"{guess:.4f}), gradient norm {norm:.3g}"), True


def _called(trainer: Any, batch: Batch) -> torch.Tensor:
    """Return the logits of a model in training, once they and their loss are what is needed.

    Raises:
        ConfigError: the model returns something else, or the loss is no number or has no gradient.
    """
    model, criterion = trainer.config.MODEL, trainer.config.LOSS
    with autocast(trainer.device, trainer.precision):
        logits = trainer.model(batch.images)
        expected = (len(batch.images), len(trainer.classes))
        if not isinstance(logits, torch.Tensor) or logits.shape != expected:
            shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else (
                f"a {type(logits).__name__}")
            raise ConfigError(f"model {model[NAME]} returns {shape} in training; expected logits "
                              f"of shape {expected}", where=where_in(model, NAME),
                              hint="As in evaluation, where it returns them.")
        loss = trainer.loss(logits, batch.targets)
    where = where_in(criterion, NAME)
    if not isinstance(loss, torch.Tensor) or loss.ndim or not loss.is_floating_point():
        shape = f"{loss.dtype} {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else (
            f"a {type(loss).__name__}")
        raise ConfigError(f"loss {criterion[NAME]} returns {shape}, not one number: the mean over "
                          "the images of a batch", where=where, hint="End it with .mean().")
    if not loss.requires_grad:
        raise ConfigError(f"loss {criterion[NAME]} has no gradient: what it returns does not "
                          "depend on the logits as torch computes them", where=where,
                          hint="argmax, item(), detach() and NumPy have none.")
    return logits


def _gradient_norm(trainer: Any) -> float:
    gradients = [torch.linalg.vector_norm(parameter.grad).float()
                 for parameter in trainer.weights if parameter.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack(gradients))) / trainer.scaler.get_scale()


def _as_resumed(trainer: Any) -> Checkpoint:
    """Return the checkpoint of a trainer as a resumed run would read it."""
    trainer.schedule.after_epoch(1.0, 0.5)
    checkpoint, config = trainer.checkpoint(trainer.training_state()), trainer.config
    sources = {"model": config.MODEL, "optimizer": config.OPTIMIZER, "schedule": config.SCHEDULER}
    for name, state in {"model": checkpoint.model, **checkpoint.training}.items():
        try:
            reread(state)
        except Exception as error:  # of pickle or torch, each in its own words
            node = sources.get(name)
            component = f" of {node[NAME]}" if node else ""
            reason = str(error).strip().split("\n")[0]
            raise ConfigError(f"the state of the {name}{component} cannot be saved and read again: "
                              f"{reason}", where=where_in(node, NAME) if node else None,
                              hint="It has to be tensors and plain values.") from error
    try:
        return Checkpoint.of(reread(checkpoint.content()), "the checkpoint")
    except CheckpointError as error:
        raise ConfigError(f"what this training saves could not be read again: {error.problem}",
                          where=where_in(config.MODEL, NAME),
                          hint="Weights and buffers are dense tensors.") from error


@torch.no_grad()
def _logits(trainer: Any) -> torch.Tensor:
    """Return what the model says of a batch when it is evaluated."""
    trainer._seed(0)  # for one that draws
    model = trainer.evaluated_model
    was_training = model.training
    with autocast(trainer.device, trainer.precision):
        logits = model.eval()(trainer.loaders.monitored.first_batch().images)
    model.train(was_training)
    return logits


def _compare(before: torch.Tensor, after: torch.Tensor, node: Any) -> None:
    """Refuse a model that says something else once its checkpoint is loaded."""
    tolerance = 0 if before.device.type == "cpu" else 1e-3  # a GPU may choose other kernels
    if not torch.allclose(before, after, rtol=tolerance, atol=tolerance, equal_nan=True):
        raise ConfigError(
            f"model {node[NAME]} could not be evaluated or resumed: once saved and loaded, its "
            f"logits differ by up to {float((before - after).abs().max()):.3g}",
            where=where_in(node, NAME),
            hint="What training changes has to be in its state_dict(): parameters, buffers that "
                 "are persistent, or what get_extra_state() returns.")


def _evaluate(trainer: Any) -> None:
    """Evaluate as after an epoch, on one batch."""
    loader = _FirstBatch(trainer.loaders.monitored)
    predict(trainer.evaluated_model, loader, trainer.loss,
            build_metrics(trainer.config.METRICS, trainer.classes), trainer.classes,
            trainer.precision, 1, Progress("Test", 1, Log(is_silent=True)))


class _FirstBatch:
    """A loader of the first batch alone."""

    def __init__(self, loader: BatchLoader):
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Batch]:
        yield self._loader.first_batch()
