"""A trial of a training: a step, a save, a load and an evaluation, in memory, of copies."""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from cvkit.data import ImageData, build_data
from cvkit.data.loaders import Batch, BatchLoader
from cvkit.errors import CheckpointError, ConfigError, RunError, UserError, where_in
from cvkit.evaluation.metrics import build_metrics
from cvkit.evaluation.predict import predict
from cvkit.models.probing import in_evaluation_mode, state_kept
from cvkit.registry import DATASETS, LOSSES, NAME, SCHEDULERS
from cvkit.reporting.checks import odd_logits, odd_loss
from cvkit.runs.checkpoint import Checkpoint
from cvkit.system import distributed
from cvkit.system.device import autocast
from cvkit.system.log import Log, Progress
from cvkit.system.saving import reread
from cvkit.system.seeds import random_numbers_kept
from cvkit.training.failures import is_out_of_memory

_HINT = ("What training changes has to be in state_dict(): parameters, buffers that are "
         "persistent, or what get_extra_state() returns. Random numbers are torch's, NumPy's and "
         "Python's, not those of a generator of its own.")
_MORE_RATES = 3
_FEW = 8  # images, for what has to be quick
_BUILT_TWICE = 10**9  # bytes of images; more may not fit into memory again


class CopyError(RunError):
    """A model or a loss that cannot be copied, so that nothing can be tried."""


class LossError(ConfigError):
    """A loss of one's own raises an error in its forward()."""


def try_training(trainer: Any, is_whole: bool = True, is_strict: bool = True) -> str:
    """Try all that a training does, on copies: the trainer and random numbers stay as they were.

    Args:
        trainer: a `Trainer`.
        is_whole: try whole batches, not a few images, which are quicker.
        is_strict: refuse a first loss that is not finite; a training says so itself.

    Returns:
        What came of the step, in words.

    Raises:
        UserError: what would end the training, or what its checkpoint could not be resumed from.
        CopyError: model or loss cannot be copied.
    """
    with random_numbers_kept(trainer.device):
        batch = _first_batch(trainer.loaders.train, is_whole)
        evaluated = _FirstBatch(trainer.loaders.monitored, is_whole)
        twin = trainer.twin(is_compiled=is_whole)
        words, is_finite = _step(twin, batch)
        if is_whole and is_strict and not is_finite:
            raise RunError(f"{words} are not finite", hint="Try TRAIN.PRECISION fp32.")
        checkpoint, said = _as_resumed(twin), _said(twin, evaluated.batch, batch)
        trainer.odd = _odd(twin, evaluated.batch)
        rates = _next_rates(twin)
        del twin  # before there is another
        twin = trainer.twin(is_compiled=False)
        try:
            twin.restore(checkpoint)
        except CheckpointError as error:
            raise ConfigError(f"this training could not be resumed: {error.problem}",
                              where=where_in(trainer.config.MODEL, NAME), hint=_HINT) from error
        if _next_rates(twin) != rates:
            node = trainer.config.SCHEDULER
            raise ConfigError(f"scheduler {node[NAME]} could not be resumed: once its state is "
                              "saved and loaded, it gives other rates", where=where_in(node, NAME),
                              hint="What step() goes by has to be in state_dict().")
        again = _said(twin, evaluated.batch, batch)
        for kind, name in (("model", "MODEL"), ("model", "MODEL"), ("loss", "LOSS")):
            try:
                _compare(kind, trainer.config[name], said.pop(0), again.pop(0))
            except ConfigError:
                _refuse_copies_that_differ(trainer, evaluated.batch)
                raise
        _evaluate(twin, evaluated)
    return words


@contextmanager
def refusing_copies_that_fail(trainer: Any) -> Iterator[None]:
    """Tell an error of a model from one of its copies alone.

    Raises:
        CopyError: the trainer's own model and loss take the batch which a copy failed on.
    """
    try:
        yield
    except (RuntimeError, AttributeError, KeyError, TypeError, ValueError, IndexError,
            LossError) as error:
        if is_out_of_memory(error):
            raise
        batch = trainer.loaders.train.first_batch()
        with (torch.no_grad(), random_numbers_kept(trainer.device),
              state_kept(trainer.model, trainer.loss, with_frozen=True),
              autocast(trainer.device, trainer.precision)):
            try:
                trainer.loss(trainer.model.train()(batch.images), batch.targets)
            except Exception:
                raise error from error.__cause__
        raise CopyError(f"a copy of the model fails: {error}") from error


def refuse_other_images(trainer: Any) -> None:
    """Refuse images that are others in each process, or, of a data set of one's own, each time.

    Raises:
        ConfigError: they are, in all processes.
    """
    node = trainer.config.DATA.DATASET
    is_own = trainer.has_built_data and DATASETS.is_own(node)
    if distributed.size() == 1 and not is_own:
        return

    def identities(data: ImageData) -> list[str]:
        return [split.identity for split in (data.train, data.val, data.test) if split is not None]

    arrays = {id(split.images): getattr(split.images, "nbytes", 0) for split in (
        trainer.data.train, trainer.data.val, trainer.data.test) if split is not None}
    ours, whose = identities(trainer.data), None
    if is_own and sum(arrays.values()) <= _BUILT_TWICE:
        try:
            whose = None if identities(build_data(trainer.config)) == ours else (
                "has other images, labels or another order each time it is built")
        except Exception as error:  # all processes have to know
            if distributed.size() == 1:
                raise
            whose = f"cannot be built a second time: {error}"
    found = distributed.from_all((ours, whose))
    whose = next((whose for _, whose in found if whose), None)
    if whose is None and any(other != ours for other, _ in found):
        whose = "has other images, labels or another order in each process"
    if whose:
        raise ConfigError(f"data set {node[NAME]} {whose}: no training could be resumed or "
                          "evaluated", where=where_in(node, NAME),
                          hint="Draw by the seed that it is offered, numpy.random.default_rng(seed)"
                               " for example, and sort what sets or folders hold.")


def _next_rates(trainer: Any) -> list[list[float]]:
    """Return the rates after some more steps of a scheduler of one's own."""
    schedule, rates = trainer.schedule, []
    node = trainer.config.SCHEDULER
    if node is None or not SCHEDULERS.is_own(node):
        return rates
    for _ in range(_MORE_RATES):
        try:
            schedule.after_step()
            schedule.after_epoch(1.0, 0.5)
        except (ArithmeticError, LookupError, ValueError):  # it has come to its end
            break
        rates.append([float(group["lr"]) for group in trainer.optimizer.param_groups])
    return rates


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
    _refuse_hidden(trainer)
    trainer.model.train()
    with forms_checked(trainer):
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
    _refuse_sum(trainer, logits, batch.targets)
    trainer.optimizer_step()
    guess = float(trainer.loss(torch.zeros_like(logits).float(), batch.targets).detach())
    return (f"one batch of {len(batch.labels)}: loss {float(loss):.4f} (guessing gives "
            f"{guess:.4f}), gradient norm {norm:.3g}"), True


@torch.no_grad()
def _refuse_sum(trainer: Any, logits: torch.Tensor, targets: torch.Tensor) -> None:
    """Refuse a loss that is twice as high of twice the images."""
    half = len(logits) // 2
    logits, targets = logits[:half].float(), targets[:half]
    with state_kept(trainer.loss), in_evaluation_mode(trainer.loss):
        try:
            once = float(trainer.loss(logits, targets))
            twice = float(trainer.loss(torch.cat([logits, logits]), torch.cat([targets, targets])))
        except Exception:  # it may take whole batches only
            return
    if once and math.isclose(twice, 2 * once, rel_tol=1e-3):
        node = trainer.config.LOSS
        raise ConfigError(f"loss {node[NAME]} is a sum over the images of a batch, not their mean",
                          where=where_in(node, NAME),
                          hint="End it with .mean(), or divide it by len(logits).")


def _refuse_sparse(trainer: Any) -> None:
    """Refuse weights that no checkpoint holds, and no average is taken of."""
    for kind, module, node in (("model", trainer.model, trainer.config.MODEL),
                               ("loss", trainer.loss, trainer.config.LOSS)):
        for name, value in module.state_dict().items():
            if isinstance(value, torch.Tensor) and value.layout is not torch.strided:
                raise ConfigError(f"{kind} {node[NAME]} has {name}, which is sparse",
                                  where=where_in(node, NAME),
                                  hint="Keep it as indices and values, and make it in forward().")


def _refuse_hidden(trainer: Any) -> None:
    """Refuse layers that torch does not know of, which are neither trained nor saved."""
    usual = vars(nn.Module())
    for kind, whole, node in (("model", trainer.model, trainer.config.MODEL),
                              ("loss", trainer.loss, trainer.config.LOSS)):
        known = {id(item) for item in (*whole.modules(), *whole.parameters())}
        for module in whole.modules():
            for name, value in vars(module).items():
                items = value.values() if isinstance(value, dict) else value
                if name not in usual and isinstance(value, (dict, list, tuple)) and any(
                        isinstance(item, (nn.Module, nn.Parameter)) and id(item) not in known
                        for item in items):
                    raise ConfigError(f"{kind} {node[NAME]} keeps layers or parameters in a "
                                      f"{type(value).__name__}, {name} of {type(module).__name__}, "
                                      "which torch neither trains nor saves",
                                      where=where_in(node, NAME),
                                      hint="nn.ModuleList, ModuleDict and ParameterList hold them.")


@contextmanager
def forms_checked(trainer: Any) -> Iterator[None]:
    """Refuse a model that returns no logits in training, or a loss that is none, when called.

    Raises:
        ConfigError: within it. LossError: one's own loss raises an error.
    """
    hooks = (trainer.model.register_forward_hook(partial(_refuse_logits, trainer)),
             trainer.loss.register_forward_hook(partial(_refuse_loss, trainer.config.LOSS)))
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        forward = getattr(getattr(type(trainer.loss), "forward", None), "__code__", None)
        place = next((f"{frame.f_code.co_filename}:{line}"
                      for frame, line in traceback.walk_tb(error.__traceback__)
                      if frame.f_code is forward), None)
        node = trainer.config.LOSS
        if not LOSSES.is_own(node) or place is None or is_out_of_memory(error):
            raise
        raise LossError(f"loss {node[NAME]} fails, {type(error).__name__}: {error}",
                        where=where_in(node, NAME),
                        hint=f"It is called as loss(logits, targets). See {place}") from error
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
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        shape = f"{loss.dtype} {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else (
            f"a {type(loss).__name__}")
        hint = ("End it with .mean()." if isinstance(loss, torch.Tensor) and loss.numel() > 1 else
                "Training needs that alone, as a tensor with its gradient.")
        raise ConfigError(f"loss {node[NAME]} returns {shape}, not one number: the mean over "
                          "the images of a batch", where=where, hint=hint)
    if not inputs[0].requires_grad:
        raise ConfigError("the logits of the model have no gradient: nothing can be trained",
                          hint="no_grad(), detach() and NumPy leave none.")
    if not loss.requires_grad:
        raise ConfigError(f"loss {node[NAME]} has no gradient: what it returns does not "
                          "depend on the logits as torch computes them", where=where,
                          hint="argmax, item(), detach() and NumPy have none.")


def _gradient_norm(trainer: Any) -> float:
    gradients = [torch.linalg.vector_norm(parameter.grad).float()
                 for parameter in trainer.weights if parameter.grad is not None]
    if not gradients:
        node = trainer.config.LOSS
        raise ConfigError(f"no weight gets a gradient from loss {node[NAME]}",
                          where=where_in(node, NAME),
                          hint="item(), detach() and torch.tensor() of its parts leave none.")
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
        error, key = _why_not_read(state), None
        if error is None:
            continue
        while isinstance(state, dict):  # down to what it is
            inner = [inner for inner in state if _why_not_read(state[inner])]
            if not inner:
                break
            state, key = state[inner[0]], str(inner[0])
        node = nodes.get(name)
        component = f" of {node[NAME]}" if node else ""
        held = re.search(r"Unsupported global: GLOBAL ([\w.]+)", str(error))
        reason = f"{key or 'it'} holds {held[1]}" if held else (
            f"{key}: " if key else "") + str(error).strip().split("\n")[0]
        way = " .tolist() makes them of an array." if isinstance(state, np.ndarray) else ""
        raise ConfigError(f"the state of the {name}{component} cannot be saved and read again: "
                          f"{reason}", where=where_in(node, NAME) if node else None,
                          hint=f"It has to be tensors and plain values.{way}") from error


def _why_not_read(state: Any) -> Exception | None:
    """Return what keeps a state from being saved and read again, or None."""
    try:
        reread(state)
    except Exception as error:  # of pickle or torch
        return error
    return None


@torch.no_grad()
def _said(trainer: Any, evaluated: Batch, trained: Batch) -> list[torch.Tensor]:
    """Return the logits of the evaluated model, those of the trained one, and their loss."""
    found = []
    for model, batch in ((trainer.evaluated_model, evaluated), (trainer.model, trained)):
        trainer._seed(0)  # for one that draws
        model.train(batch is trained)
        with autocast(trainer.device, trainer.precision), _same_kernels():
            found.append(model(batch.images))
    return [*found, trainer.loss(found[-1].float(), trained.targets)]


@torch.no_grad()
def _odd(trainer: Any, batch: Batch) -> dict[str, str]:
    """Return warnings of what the model says of a batch, and of the loss."""
    model, count = trainer.evaluated_model, len(batch.images)

    def said(count: int, seed: int) -> torch.Tensor:
        trainer._seed(seed)
        with autocast(trainer.device, trainer.precision):
            return model(batch.images[:count]).float()

    with state_kept(model, trainer.loss), in_evaluation_mode(model, trainer.loss), _same_kernels():
        logits = said(count, 0)
        found = odd_logits(trainer.config, logits, said(max(count // 2, 1), 0))
        difference = float((logits - said(count, 1)).abs().max())
        if difference > 0.001 * float(logits.abs().max()):
            found.pop("batch", None)  # it draws others for another number of images
            found["draws"] = (f"what model {trainer.config.MODEL[NAME]} says of an image in "
                              "evaluation is drawn: dropout has to know of it, "
                              "F.dropout(x, p, self.training) or nn.Dropout")
        return {**found, **odd_loss(trainer.config, trainer.loss, batch.labels, logits)}


@contextmanager
def _same_kernels() -> Iterator[None]:
    """Let a GPU take the same of several kernels each time."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def _refuse_copies_that_differ(trainer: Any, batch: Batch) -> None:
    """Tell a model that is lost when it is saved from one whose copy is another.

    Raises:
        CopyError: a copy says something else, as where a hook fills what the original holds.
    """
    found = []
    for model in (trainer.model, trainer.twin(is_compiled=False).model):
        trainer._seed(0)
        was_training = model.training
        with (torch.no_grad(), autocast(trainer.device, trainer.precision), _same_kernels(),
              state_kept(model)):
            found.append(model.eval()(batch.images))
        model.train(was_training)
    if not torch.allclose(*found, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise CopyError("a copy of the model says something else than the model itself; does a "
                        "hook or an attribute hold the original?")


def _compare(kind: str, node: Any, before: torch.Tensor, after: torch.Tensor) -> None:
    """Refuse a model or a loss that says something else once its checkpoint is loaded."""
    tolerance = 0 if before.device.type == "cpu" else 1e-2 * float(before.abs().max())
    if not torch.allclose(before, after, rtol=0, atol=tolerance, equal_nan=True):
        raise ConfigError(
            f"{kind} {node[NAME]} could not be evaluated or resumed: once saved and loaded, what "
            f"it returns differs by up to {float((before - after).abs().max()):.3g}",
            where=where_in(node, NAME),
            hint=_HINT)


def _evaluate(trainer: Any, loader: _FirstBatch) -> None:
    """Evaluate as after an epoch, on one batch; it may lack classes that a metric needs."""
    metrics = build_metrics(trainer.config.METRICS, trainer.classes)
    predict(trainer.evaluated_model, loader, trainer.loss,
            [metrics[0], *map(_Unasked, metrics[1:])], trainer.classes,
            trainer.precision, 1, Progress("Test", 1, Log(is_silent=True)))


class _Unasked:
    """A metric that is given batches, and not asked what it computes."""

    def __init__(self, metric: Any):
        self.update = metric.update

    def compute(self) -> dict[str, float]:
        return {}


class _FirstBatch:
    """A loader of the first batch alone, or of its first few images."""

    def __init__(self, loader: BatchLoader, is_whole: bool):
        self._loader, self.batch = loader, _first_batch(loader, is_whole)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Batch]:
        yield self.batch
