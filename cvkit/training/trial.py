"""A trial of a training: a step, a save, a load and an evaluation, in memory, of copies."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from cvkit.config import Config
from cvkit.data import ImageData, build_data
from cvkit.data.loaders import Batch, BatchLoader
from cvkit.errors import CheckpointError, ConfigError, RunError, located
from cvkit.evaluation.metrics import build_metrics
from cvkit.evaluation.predict import predict
from cvkit.models.probing import in_evaluation_mode, same_kernels, state_kept
from cvkit.registry import DATASETS, NAME, SCHEDULERS
from cvkit.runs.checkpoint import Checkpoint
from cvkit.runs.experiment import Experiment
from cvkit.system import distributed
from cvkit.system.device import autocast, is_out_of_memory
from cvkit.system.log import ProgressBar
from cvkit.system.saving import reread
from cvkit.system.seeds import random_numbers_kept, seed_epoch
from cvkit.training.build import optimizer_builder
from cvkit.training.failures import explaining, push
from cvkit.training.forms import (
    LossError,
    forms_checked,
    refuse_modules,
    refuse_sum,
)
from cvkit.training.resume import checkpoint_of, restore
from cvkit.training.state import CopyError, TrainingState
from cvkit.training.step import optimizer_step, train_step

_HINT = ("What training changes has to be in state_dict(): parameters, buffers that are "
         "persistent, or what get_extra_state() returns. Random numbers are torch's, NumPy's and "
         "Python's, not those of a generator of its own.")
_MORE_RATES = 3
# Of whether a model leaves out parameters by chance.
_TRIES = 5
Look = Callable[[TrainingState, Batch], None]
# Images, for what has to be quick.
_FEW = 8
# Bytes of images; more may not fit into memory again.
_BUILT_TWICE = 10**9


def try_training(state: TrainingState, parts: Experiment, is_whole: bool = True,
                 is_strict: bool = True, look: Look | None = None) -> str:
    """Try all that a training does, on copies: state and random numbers stay as they were.

    Args:
        state, parts: of the training.
        is_whole: try whole batches, not a few images, which are quicker.
        is_strict: refuse a first loss that is not finite; a training says so itself.
        look: is shown the copy after its step, and the batch that it is evaluated on.

    Returns:
        What came of the step, in words.

    Raises:
        UserError: what would end the training, or what its checkpoint could not be resumed from.
        CopyError: model or loss cannot be copied.
    """
    config = parts.config
    with random_numbers_kept(state.device):
        batch = _first_batch(parts.loaders.train, is_whole)
        evaluated = _FirstBatch(parts.loaders.monitored, is_whole)
        build = optimizer_builder(parts, state.freezing)
        twin = state.copy(build, may_compile=is_whole)
        refuse_modules(twin, config)
        words, is_finite = _step(twin, config, batch, len(parts.data.classes))
        if is_whole and is_strict and not is_finite:
            raise RunError(f"{words} are not finite", hint="Try TRAIN.PRECISION fp32.")
        checkpoint, said = _as_resumed(twin, parts), _said(twin, config, evaluated.batch, batch)
        if look is not None:
            look(twin, evaluated.batch)
        rates = _next_rates(twin, config.SCHEDULER)
        # Before there is another one.
        del twin
        twin = state.copy(build)
        try:
            restore(twin, checkpoint)
        except CheckpointError as error:
            with located(config.MODEL, NAME):
                raise ConfigError(f"this training could not be resumed: {error.problem}",
                                  hint=_HINT) from error
        if _next_rates(twin, config.SCHEDULER) != rates:
            with located(config.SCHEDULER, NAME):
                raise ConfigError(f"scheduler {config.SCHEDULER[NAME]} could not be resumed: once "
                                  "its state is saved and loaded, it gives other rates",
                                  hint="What step() goes by has to be in state_dict().")
        again = _said(twin, config, evaluated.batch, batch)
        spoke = (("model", config.MODEL), ("model", config.MODEL), ("loss", config.LOSS))
        for (kind, node), before, after in zip(spoke, said, again, strict=True):
            try:
                with located(node, NAME):
                    _compare(f"{kind} {node[NAME]}", before, after)
            except ConfigError:
                _refuse_copies_that_differ(state, state.copy(build), config, evaluated.batch)
                raise
        _evaluate(twin, evaluated, config.METRICS, parts.data.classes)
    return words


def try_quickly(state: TrainingState, parts: Experiment, look: Look | None = None) -> str | None:
    """Try what a training does before anything is written, on as few images as will do.

    Returns:
        Why that was not possible, or None.

    Raises:
        UserError: see `try_training`.
    """
    try:
        try:
            try_training(state, parts, is_whole=False, look=look)
        except CopyError:
            raise
        except Exception:
            # A loss may need more images, or the first ones not be readable.
            with _refusing_copies_that_fail(state, parts):
                try_training(state, parts, is_whole=True, is_strict=False, look=look)
    except CopyError as error:
        return error.problem
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            with explaining(state, parts.loaders):
                raise
        if state.device.type == "cuda":
            torch.cuda.empty_cache()
        return "there is no memory for a second model"
    return None


@contextmanager
def _refusing_copies_that_fail(state: TrainingState, parts: Experiment) -> Iterator[None]:
    """Tell an error of a model from one of its copies alone.

    Raises:
        CopyError: the state's own model and loss take the batch which a copy failed on.
    """
    try:
        yield
    except (RuntimeError, AttributeError, KeyError, TypeError, ValueError, IndexError,
            LossError) as error:
        if is_out_of_memory(error):
            raise
        batch = parts.loaders.train.first_batch()
        with (torch.no_grad(), random_numbers_kept(state.device),
              state_kept(state.model, state.loss, with_frozen=True)):
            try:
                with autocast(state.device, state.precision):
                    logits = state.model.train()(batch.images)
                state.loss(logits.float(), batch.targets)
            except Exception:
                raise error from error.__cause__
        raise CopyError(f"a copy of the model fails: {error}") from error


def refuse_other_images(parts: Experiment) -> None:
    """Refuse images that are others in each process, or, of a data set of one's own, each time.

    Raises:
        ConfigError: they are, in all processes.
    """
    node = parts.config.DATA.DATASET
    is_own = parts.data is parts.built_data and DATASETS.is_own(node)
    if distributed.size() == 1 and not is_own:
        return

    def identities(data: ImageData) -> list[str]:
        return [split.identity for split in data.splits.values()]

    data = parts.data
    arrays = {id(split.images): getattr(split.images, "nbytes", 0)
              for split in data.splits.values()}
    ours, whose = identities(data), None
    if is_own and sum(arrays.values()) <= _BUILT_TWICE:
        try:
            whose = None if identities(build_data(parts.config)) == ours else (
                "has other images, labels or another order each time it is built")
        except Exception as error:
            # All processes have to know.
            if distributed.size() == 1:
                raise
            whose = f"cannot be built a second time: {error}"
    found = distributed.all_gather_objects((ours, whose))
    whose = next((whose for _, whose in found if whose), None)
    if whose is None and any(other != ours for other, _ in found):
        whose = "has other images, labels or another order in each process"
    if whose:
        with located(node, NAME):
            raise ConfigError(f"data set {node[NAME]} {whose}: no training could be resumed or "
                              "evaluated",
                              hint="Draw by the seed that it is offered, for example "
                                   "numpy.random.default_rng(seed), and sort what sets or folders "
                                   "hold.")


def _next_rates(state: TrainingState, node: Any) -> list[list[float]]:
    """Return the rates after some more steps of a scheduler, if it is one's own."""
    schedule = state.schedule
    rates: list[list[float]] = []
    if node is None or not SCHEDULERS.is_own(node):
        return rates
    for _ in range(_MORE_RATES):
        try:
            schedule.after_step()
            schedule.after_epoch(1.0, 0.5)
        except (ArithmeticError, LookupError, ValueError):
            # It has come to its end.
            break
        rates.append([float(group["lr"]) for group in state.optimizer.param_groups])
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


def _step(state: TrainingState, config: Config, batch: Batch,
          num_classes: int) -> tuple[str, bool]:
    """Train on one batch; return in words what came of it, and whether it is finite."""
    state.train_mode()
    batch = batch._replace(ends_step=False)
    with forms_checked(state.model, state.loss, config, num_classes):
        loss, logits = train_step(state, batch)
    norm = _gradient_norm(state, config.LOSS)
    # The first scale of fp16 is often too large; training skips such steps and halves it.
    while torch.isfinite(loss) and not math.isfinite(norm) and state.scaler.get_scale() > 1:
        state.scaler.update(state.scaler.get_scale() / 16)
        state.optimizer.zero_grad(set_to_none=True)
        loss, _ = train_step(state, batch)
        norm = _gradient_norm(state, config.LOSS)
    if not (torch.isfinite(loss) and math.isfinite(norm)):
        state.optimizer.zero_grad(set_to_none=True)
        return f"loss {float(loss)} and gradient norm {norm} of the first batch", False
    with located(config.LOSS, NAME):
        refuse_sum(state.loss, config.LOSS[NAME], logits, batch.targets)
    optimizer_step(state)
    guess = float(state.loss(torch.zeros_like(logits).float(), batch.targets).detach())
    return (f"one batch of {len(batch.labels)}: loss {float(loss):.4f} (guessing gives "
            f"{guess:.4f}), gradient norm {norm:.3g}"), True


def _gradient_norm(state: TrainingState, node: Any) -> float:
    """Return the norm of all gradients together; refuse the node of a loss that gives none."""
    gradients = [torch.linalg.vector_norm(parameter.grad).float()
                 for parameter in state.weights if parameter.grad is not None]
    with located(node, NAME):
        if not gradients:
            raise ConfigError(f"no weight gets a gradient from loss {node[NAME]}",
                              hint="item(), detach() and torch.tensor() of its parts leave none.")
    return float(torch.linalg.vector_norm(torch.stack(gradients))) / state.scaler.get_scale()


def _as_resumed(state: TrainingState, parts: Experiment) -> Checkpoint:
    """Return the checkpoint of a state as a resumed run would read it."""
    state.schedule.after_epoch(1.0, 0.5)
    checkpoint = checkpoint_of(state, parts, state.state_dict())
    try:
        content = reread(checkpoint.content())
    except Exception:
        # Pickle and torch do not say of what their errors speak.
        _blame(checkpoint, parts.config)
        raise
    try:
        return Checkpoint.of(content, "the checkpoint")
    except CheckpointError as error:
        with located(parts.config.MODEL, NAME):
            raise ConfigError(f"what this training saves could not be read again: {error.problem}",
                              hint="Weights and buffers are dense tensors.") from error


def _blame(checkpoint: Checkpoint, config: Config) -> None:
    """Refuse by name the part of a checkpoint that cannot be saved and read again."""
    nodes = {"model": config.MODEL, "loss": config.LOSS, "optimizer": config.OPTIMIZER,
             "schedule": config.SCHEDULER}
    parts = {"model": checkpoint.model, "loss": checkpoint.loss, **(checkpoint.training or {})}
    for name, state in parts.items():
        error, key = _why_not_read(state), None
        if error is None:
            continue
        # Down to the value that it is.
        while isinstance(state, dict):
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
        with located(node, NAME):
            raise ConfigError(f"the state of the {name}{component} cannot be saved and read again: "
                              f"{reason}",
                              hint=f"It has to be tensors and plain values.{way}") from error


def _why_not_read(state: Any) -> Exception | None:
    """Return what keeps a state from being saved and read again, of pickle or torch, or None."""
    try:
        reread(state)
    except Exception as error:
        return error
    return None


@torch.no_grad()
def _said(state: TrainingState, config: Config, evaluated: Batch,
          trained: Batch) -> list[torch.Tensor]:
    """Return the logits of the evaluated model, those of the trained one, and their loss."""
    found = []
    for model, batch in ((state.evaluated_model, evaluated), (state.model, trained)):
        # For one that draws.
        seed_epoch(config.SEED, 0, config.DETERMINISTIC)
        state.train_mode() if batch is trained else model.eval()
        with autocast(state.device, state.precision), same_kernels():
            found.append(model(batch.images))
    return [*found, state.loss(found[-1].float(), trained.targets)]


def _refuse_copies_that_differ(state: TrainingState, twin: TrainingState, config: Config,
                               batch: Batch) -> None:
    """Tell a model that is lost when it is saved from one whose copy is another.

    Raises:
        CopyError: a copy says something else, as where a hook fills what the original holds.
    """
    def said(model: nn.Module) -> torch.Tensor:
        seed_epoch(config.SEED, 0, config.DETERMINISTIC)
        with (torch.no_grad(), autocast(state.device, state.precision), same_kernels(),
              state_kept(model), in_evaluation_mode(model)):
            return model(batch.images)

    if not torch.allclose(said(state.model), said(twin.model), rtol=1e-2, atol=1e-2,
                          equal_nan=True):
        raise CopyError("a copy of the model says something else than the model itself; does a "
                        "hook or an attribute hold the original?")


def _compare(name: str, before: torch.Tensor, after: torch.Tensor) -> None:
    """Refuse a model or a loss that says something else once its checkpoint is loaded."""
    tolerance = 0 if before.device.type == "cpu" else 1e-2 * float(before.abs().max())
    if not torch.allclose(before, after, rtol=0, atol=tolerance, equal_nan=True):
        raise ConfigError(
            f"{name} could not be evaluated or resumed: once saved and loaded, what it returns "
            f"differs by up to {float((before - after).abs().max()):.3g}", hint=_HINT)


def _evaluate(state: TrainingState, loader: Any, nodes: Any, classes: Sequence[str]) -> None:
    """Evaluate as after an epoch, on one batch; it may lack classes that a metric needs."""
    metrics = build_metrics(nodes, classes)
    predict(state.evaluated_model, loader, state.loss,
            [metrics[0], *map(_Unasked, metrics[1:])], classes,
            state.precision, 1, ProgressBar("Test", 1, is_silent=True))


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


def leaves_parameters_out(state: TrainingState, parts: Experiment) -> bool:
    """Tell whether some parameters get no gradient, which processes know before they average.

    All processes must ask.
    """
    if distributed.size() == 1 or parts.config.TRAIN.UNUSED_PARAMETERS:
        return parts.config.TRAIN.UNUSED_PARAMETERS
    loader, num_classes = parts.loaders.train, len(parts.data.classes)

    def leaves_some_out(size: int) -> bool:
        model, loss = state.copied_modules()
        if state.freezing is not None:
            # Those that learn later, too.
            state.freezing.apply(model, None)
        with forms_checked(model, loss, parts.config, num_classes):
            push(model, loss, state, (size, *parts.loaders.train_shape))
        return any(parameter.requires_grad and parameter.grad is None
                   for parameter in model.parameters())

    with random_numbers_kept(state.device):
        try:
            # Each try draws other numbers.
            has_some = any(leaves_some_out(2) for _ in range(_TRIES))
        except CopyError:
            # Then torch says so, if they are left out.
            has_some = False
        except Exception as error:
            # A loss may need more images.
            if isinstance(error, ConfigError) and not isinstance(error, LossError):
                raise
            has_some = any(leaves_some_out(loader.part_size(0)) for _ in range(_TRIES))
    return distributed.any_rank(has_some)
