"""A trial of a training: a step, a save, a load and an evaluation, in memory, of copies."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from cvkit.checkpoint import Checkpoint
from cvkit.data.loaders import Batch, BatchLoader
from cvkit.errors import CheckpointError, ConfigError, RunError
from cvkit.evaluation import build_metrics, predict
from cvkit.files import reread
from cvkit.hardware import autocast, random_numbers_kept
from cvkit.log import Log, Progress
from cvkit.registry import NAME, where_in

_FEW = 8  # images, for what has to be quick


def try_training(trainer: Any, is_whole: bool = True) -> str:
    """Try all that a training does, on copies: the trainer and random numbers stay as they were.

    Args:
        trainer: a `Trainer`.
        is_whole: try whole batches, and refuse a first loss that is not finite; a training, which
            meets both soon enough, tries a few images to begin at once.

    Returns:
        What came of the step, in words.

    Raises:
        UserError: what would end the training, or what its checkpoint could not be resumed from.
    """
    with random_numbers_kept(trainer.device):
        batch = _first_batch(trainer.loaders.train, is_whole)
        evaluated = _FirstBatch(trainer.loaders.monitored, is_whole)
        twin = trainer.twin(is_compiled=is_whole)
        words, is_finite = _step(twin, batch)
        if is_whole and not is_finite:
            raise RunError(f"{words} are not finite", hint="Try TRAIN.PRECISION fp32.")
        checkpoint, said = _as_resumed(twin), _said(twin, evaluated.batch, batch)
        del twin  # before there is another
        twin = trainer.twin(is_compiled=False)
        twin.restore(checkpoint)
        again = _said(twin, evaluated.batch, batch)
        for kind, name in (("model", "MODEL"), ("model", "MODEL"), ("loss", "LOSS")):
            _compare(kind, trainer.config[name], said.pop(0), again.pop(0))
        _evaluate(twin, evaluated)
    return words


def _first_batch(loader: BatchLoader, is_whole: bool) -> Batch:
    """Return the first batch, or what is quick: a few of its images.

    A GPU is given them as often as fills the batch, as it looks for kernels for each size.
    """
    if is_whole:
        return loader.first_batch()
    batch = loader.first_batch(count=_FEW)
    if loader.device.type == "cpu":
        return batch
    rows = torch.arange(max(loader.part_size(0), 1), device=loader.device) % len(batch.labels)
    images = batch.images[rows].contiguous(memory_format=loader.layout)
    return Batch(images, batch.labels[rows], batch.index[rows], batch.targets[rows])


def _step(trainer: Any, batch: Batch) -> tuple[str, bool]:
    """Train on one batch; return in words what came of it, and whether it is finite."""
    _refuse_sparse(trainer)
    trainer.model.train()
    with _forms_checked(trainer):
        loss, logits = trainer.train_step(batch, 1.0, False)
    norm = _gradient_norm(trainer)
    # The first scale of fp16 is often too large; training skips such steps and halves it.
    while torch.isfinite(loss) and not math.isfinite(norm) and trainer.scaler.get_scale() > 1:
        trainer.scaler.update(trainer.scaler.get_scale() / 16)
        trainer.optimizer.zero_grad(set_to_none=True)
        loss, _ = trainer.train_step(batch, 1.0, False)
        norm = _gradient_norm(trainer)
    if not (torch.isfinite(loss) and math.isfinite(norm)):
        trainer.optimizer.zero_grad(set_to_none=True)
        return f"loss {float(loss)} and gradient norm {norm} of the first batch", False
    trainer.optimizer_step()
    guess = float(trainer.loss(torch.zeros_like(logits), batch.targets).detach())
    return (f"one batch of {len(batch.labels)}: loss {float(loss):.4f} (guessing gives "
            f"{guess:.4f}), gradient norm {norm:.3g}"), True


def _refuse_sparse(trainer: Any) -> None:
    """Refuse weights that no checkpoint holds, and no average is taken of."""
    for kind, module, node in (("model", trainer.model, trainer.config.MODEL),
                               ("loss", trainer.loss, trainer.config.LOSS)):
        for name, value in module.state_dict().items():
            if isinstance(value, torch.Tensor) and value.layout is not torch.strided:
                raise ConfigError(f"{kind} {node[NAME]} has {name}, which is sparse",
                                  where=where_in(node, NAME),
                                  hint="Keep it as indices and values, and make it in forward().")


@contextmanager
def _forms_checked(trainer: Any) -> Iterator[None]:
    """Refuse a model that returns no logits in training, or a loss that is none, when called.

    Raises:
        ConfigError: within it.
    """
    hooks = (trainer.model.register_forward_hook(partial(_refuse_logits, trainer)),
             trainer.loss.register_forward_hook(partial(_refuse_loss, trainer.config.LOSS)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _refuse_logits(trainer: Any, _: nn.Module, inputs: tuple[torch.Tensor], logits: Any) -> None:
    node, expected = trainer.config.MODEL, (len(inputs[0]), len(trainer.classes))
    if not isinstance(logits, torch.Tensor) or logits.shape != expected:
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else (
            f"a {type(logits).__name__}")
        raise ConfigError(f"model {node[NAME]} returns {shape} in training; expected logits "
                          f"of shape {expected}", where=where_in(node, NAME),
                          hint="As in evaluation, where it returns them.")


def _refuse_loss(node: Any, _: nn.Module, inputs: tuple[torch.Tensor, ...], loss: Any) -> None:
    where = where_in(node, NAME)
    if not isinstance(loss, torch.Tensor) or loss.ndim or not loss.is_floating_point():
        shape = f"{loss.dtype} {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else (
            f"a {type(loss).__name__}")
        raise ConfigError(f"loss {node[NAME]} returns {shape}, not one number: the mean over "
                          "the images of a batch", where=where, hint="End it with .mean().")
    if not loss.requires_grad:
        raise ConfigError(f"loss {node[NAME]} has no gradient: what it returns does not "
                          "depend on the logits as torch computes them", where=where,
                          hint="argmax, item(), detach() and NumPy have none.")


def _gradient_norm(trainer: Any) -> float:
    gradients = [torch.linalg.vector_norm(parameter.grad).float()
                 for parameter in trainer.weights if parameter.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack(gradients))) / trainer.scaler.get_scale()


def _as_resumed(trainer: Any) -> Checkpoint:
    """Return the checkpoint of a trainer as a resumed run would read it."""
    trainer.schedule.after_epoch(1.0, 0.5)
    checkpoint = trainer.checkpoint(trainer.training_state())
    try:
        content = reread(checkpoint.content())
    except Exception:  # of pickle or torch, each in its own words, which do not say of what
        _blame(checkpoint, trainer.config)
        raise
    try:
        return Checkpoint.of(content, "the checkpoint")
    except CheckpointError as error:
        model = trainer.config.MODEL
        raise ConfigError(f"what this training saves could not be read again: {error.problem}",
                          where=where_in(model, NAME),
                          hint="Weights and buffers are dense tensors.") from error


def _blame(checkpoint: Checkpoint, config: Any) -> None:
    """Refuse by name the part of a checkpoint that cannot be saved and read again."""
    nodes = {"model": config.MODEL, "loss": config.LOSS, "optimizer": config.OPTIMIZER,
             "schedule": config.SCHEDULER}
    parts = {"model": checkpoint.model, "loss": checkpoint.loss, **checkpoint.training}
    for name, state in parts.items():
        try:
            reread(state)
        except Exception as error:
            node = nodes.get(name)
            component = f" of {node[NAME]}" if node else ""
            held = re.search(r"Unsupported global: GLOBAL ([\w.]+)", str(error))
            reason = f"it holds {held[1]}" if held else str(error).strip().split("\n")[0]
            raise ConfigError(f"the state of the {name}{component} cannot be saved and read again: "
                              f"{reason}", where=where_in(node, NAME) if node else None,
                              hint="It has to be tensors and plain values.") from error


@torch.no_grad()
def _said(trainer: Any, evaluated: Batch, trained: Batch) -> list[torch.Tensor]:
    """Return the logits of the evaluated model, those of the trained one, and their loss."""
    found = []
    for model, batch in ((trainer.evaluated_model, evaluated), (trainer.model, trained)):
        trainer._seed(0)  # for one that draws
        model.train(batch is trained)
        # Of several kernels a GPU is to take the same each time.
        with (autocast(trainer.device, trainer.precision),
              torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)):
            found.append(model(batch.images))
    return [*found, trainer.loss(found[-1], trained.targets)]


def _compare(kind: str, node: Any, before: torch.Tensor, after: torch.Tensor) -> None:
    """Refuse a model or a loss that says something else once its checkpoint is loaded."""
    tolerance = 0 if before.device.type == "cpu" else 1e-2 * float(before.abs().max())
    if not torch.allclose(before, after, rtol=0, atol=tolerance, equal_nan=True):
        raise ConfigError(
            f"{kind} {node[NAME]} could not be evaluated or resumed: once saved and loaded, what "
            f"it returns differs by up to {float((before - after).abs().max()):.3g}",
            where=where_in(node, NAME),
            hint="What training changes has to be in its state_dict(): parameters, buffers that "
                 "are persistent, or what get_extra_state() returns.")


def _evaluate(trainer: Any, loader: _FirstBatch) -> None:
    """Evaluate as after an epoch, on one batch."""
    predict(trainer.evaluated_model, loader, trainer.loss,
            build_metrics(trainer.config.METRICS, trainer.classes), trainer.classes,
            trainer.precision, 1, Progress("Test", 1, Log(is_silent=True)))


class _FirstBatch:
    """A loader of the first batch alone, or of its first few images."""

    def __init__(self, loader: BatchLoader, is_whole: bool):
        self._loader, self.batch = loader, _first_batch(loader, is_whole)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Batch]:
        yield self.batch
