"""Every line that a training says of itself, on the screen and in `train.log`."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from cvkit import __version__
from cvkit.config import Config
from cvkit.data import ImageData
from cvkit.data.plan import EpochPlan
from cvkit.errors import DivergenceError, RunError, UserError
from cvkit.evaluation.metrics import is_part
from cvkit.evaluation.monitor import Monitor
from cvkit.models import parameters_in_words
from cvkit.reporting.reporter import Reporter
from cvkit.runs.checkpoint import moment_of
from cvkit.runs.experiment import Experiment
from cvkit.runs.folder import Run
from cvkit.runs.predictions import test_line
from cvkit.runs.range_test import RULE
from cvkit.system import distributed
from cvkit.system.command import command, quoted
from cvkit.system.device import describe
from cvkit.system.log import FILE, LOG, SCREEN, screen
from cvkit.system.text import and_more, duration, escape_controls, plural
from cvkit.training.freezing import learning_in_words
from cvkit.training.groups import table_of, unused
from cvkit.training.resume import planned_by_length
from cvkit.training.schedulers import is_to_find
from cvkit.training.signals import Interrupted
from cvkit.training.state import TrainingState

# Groups of parameters whose rates are told in a line.
_MOST_GROUPS = 4
# Times as large as what weights were trained on, or as small.
_FAR = 1.5


class Console(Reporter):
    """Says what is trained and on what, a line for each epoch, and how it ended.

    Args:
        parts: data, loaders and model of the training.
        monitor: which value is followed.
        run: where it is kept; None where nothing is.
        is_resumed: whether the run goes on.
    """

    def __init__(self, parts: Experiment, monitor: Monitor, run: Run | None = None,
                 is_resumed: bool = False):
        self.parts, self.monitor, self.run, self.is_resumed = parts, monitor, run, is_resumed
        self._left_out: set[str] = set()

    def begin(self, state: TrainingState) -> None:
        screen.begin()
        config, data, loaders = self.parts.config, self.parts.data, self.parts.loaders
        shape = "×".join(map(str, loaders.image_shape))
        LOG.info(f"cvkit {__version__}  {config.name}  {time.strftime('%Y-%m-%d %H:%M:%S')}")
        if self.run is not None and self.is_resumed:
            LOG.info(f"resumed    {self.run.folder} {_place(state)}")
        counts = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
        if config.DATA.LIMIT:
            counts += f" (DATA.LIMIT {config.DATA.LIMIT})"
        LOG.info(f"data       {config.DATA.DATASET.NAME}: {counts}, "
                 f"{plural(len(data.classes), 'class')}, {shape}")
        for note in data.notes:
            LOG.info(f"data       {note}")
        self._say_left_out(data.left_out)
        if loaders.train_shape != loaders.image_shape:
            sizes = "×".join(map(str, loaders.train_shape))
            LOG.info(f"note       training images are {sizes}, test images {shape}: unless you "
                     "mean that, give the transforms of both the same size")
        if loaders.train.pipeline.mixing:
            LOG.info("note       in the training accuracy a mixed image counts for the class with "
                     "the larger share")
        if data.val is None:
            LOG.info("monitored  the test set (DATA.VAL_FRACTION is 0); results are the last "
                     "epoch's, not the best's")
        else:
            LOG.info("monitored  validation images; results are those of the best epoch on them")
        if self.monitor.assuming:
            LOG.info(f"note       metric {self.monitor.assuming} has no lower_is_better: the "
                     f"highest {self.monitor.name} is taken as the best")
        LOG.info(f"model      {config.MODEL.NAME}, {parameters_in_words(state.model)}")
        if self.parts.is_viewed:
            LOG.info("note       its view() takes images in the plain memory layout only, which "
                     "it gets; flatten(1) or reshape() in its place would be faster")
        weights = getattr(state.model, "weights_loaded", None)
        if not self.is_resumed and isinstance(weights, str):
            for number, line in enumerate(weights.splitlines()):
                LOG.info(f"{'' if number else 'weights':<11}{line}")
        for line in [*self._words_for_images(), *self._words_for_groups(state)]:
            LOG.info(line)
        averaged = f", EMA {config.TRAIN.EMA_DECAY:g} of the weights is tested" if state.ema else ""
        averaged += " and gone on from" * (state.ema is not None and state.ema.goes_on)
        LOG.info(f"training   {plural(config.TRAIN.EPOCHS, 'epoch')} of "
                 f"{plural(len(loaders.train), 'batch')} of {config.DATA.BATCH_SIZE}, "
                 f"{config.LOSS.NAME}, {_words_for_rate(config, state)}, seed {config.SEED}"
                 f"{averaged}")
        if config.DATA.SAMPLER is not None:
            LOG.info(f"sampler    {config.DATA.SAMPLER.NAME}: "
                     f"{_words_for_sampler(loaders.train.plan, data)}")
        # One's own loss may keep them elsewhere.
        weights = getattr(getattr(state.loss, "criterion", state.loss), "weight", None)
        if config.LOSS.get("weight") == "balanced" and isinstance(weights, Tensor) and (
                weights.shape == (len(data.classes),)):
            words = _words_for_weights(weights.tolist(), data.classes)
            LOG.info(f"loss       weight balanced: {words}")
        LOG.info(f"device     {describe(state.device)}, {state.precision}")
        LOG.info(f"input      {loaders.input}")
        if self.run is not None:
            found = getattr(self.run, "range_test", None)
            if found is not None and not self.is_resumed:
                LOG.info(f"found      max_lr {found.suggestion:g}: {RULE}")
            LOG.info(f"run        {self.run.folder}", extra=SCREEN)

    def _words_for_images(self) -> list[str]:
        """Return how the images differ from those that the weights were trained on."""
        known, loaders = self.parts.trained_on, self.parts.loaders
        if known is None:
            return []
        words = []
        if loaders.is_usual:
            mean, std = (" ".join(f"{value:.4g}" for value in values)
                         for values in (loaders.mean, loaders.std))
            words.append(f"images     normalised with mean {mean} and std {std}, as those that the "
                         "weights were trained on")
        own = loaders.image_shape[1:]
        if known.size is not None:
            factor = max(max(a / b, b / a) for a, b in zip(own, known.size))
            height, width = known.size
            if factor >= _FAR:
                words.append(
                    f"note       the weights were trained on {height}×{width} pixels, these images "
                    f"have {own[0]}×{own[1]}: {{NAME: Resize, height: {height}, width: {width}}} "
                    "in both lists of transforms makes them alike")
        return words

    def _words_for_groups(self, state: TrainingState) -> list[str]:
        """Return what learns when, and with which rates; all groups where nothing is trained."""
        words, groups = [], state.optimizer.param_groups
        if state.freezing is not None:
            learning = learning_in_words(state.model, state.freezing,
                                         self.parts.config.TRAIN.EPOCHS)
            words.append(f"learning   {learning}")
        words += [f"unused     group {name}: others have what it matches, or it never learns"
                  for name in unused(self.parts.config.OPTIMIZER, groups)]
        if "lr_mult" in groups[0] and self.run is None:
            words += [f"{'' if number else 'groups':<11}{line}"
                      for number, line in enumerate(table_of(groups))]
        elif "lr_mult" in groups[0]:
            rates = [group["lr_mult"] for group in groups]
            few = ", ".join(f"{group['name']} × {group['lr_mult']:.4g}" for group in groups)
            words.append(f"rates      {few}" if len(groups) <= _MOST_GROUPS else
                         f"rates      {len(groups)} groups, × {min(rates):.3g} to × "
                         f"{max(rates):.3g}; --check lists them")
        return words

    def epoch(self, state: TrainingState, values: dict[str, Any]) -> None:
        split, epochs = self.parts.data.monitored, self.parts.config.TRAIN.EPOCHS

        def words(part: str) -> str:
            return (f"{part} loss {values[f'{part}/loss']:.4f} "
                    f"acc {100 * values[f'{part}/accuracy']:6.2f}%")

        is_best = state.best is not None and state.best["epoch"] == state.epoch
        line = (f"Epoch {state.epoch:{len(str(epochs))}}/{epochs}  {words('train')}  "
                f"{words(split)}  lr {values['lr']:<9.4g} {values['seconds']:6.1f} s"
                f"{'  best' if is_best else ''}")
        LOG.info(line, extra=FILE)
        if screen.is_live and state.predictions is not None:
            of_split = "Test set" if split == "test" else "Validation set"
            line = test_line(values[f"{split}/loss"], state.predictions.correct,
                             len(state.predictions.true)).replace("Test set", of_split)
        LOG.info(line, extra=SCREEN)
        self._say_left_out(state.left_out)

    def stopped(self, state: TrainingState, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            LOG.info(self._words_for_interruption(state, error))
        elif isinstance(error, DivergenceError):
            # Going on would only repeat it.
            LOG.info(f"Stopped: {error}", extra=FILE)
        elif isinstance(error, UserError):
            way = ""
            if self.run is not None and self.run.has_checkpoint:
                way = f"Go on from the last checkpoint: {_resume_command(self.run)}"
                LOG.info(way, extra=SCREEN)
            # Where the disk is full, the error on the screen says so.
            with contextlib.suppress(RunError):
                for line in filter(None, (f"Stopped: {error}", way)):
                    LOG.info(line, extra=FILE)

    def end(self, state: TrainingState, run: Run) -> None:
        self._say_left_out(state.left_out)
        predictions, epochs, name = run.predictions, state.epoch, self.monitor.name
        train = self.parts.config.TRAIN
        if epochs < train.EPOCHS:
            LOG.info(f"Stopped early after epoch {epochs}: no better {name} for "
                     f"{plural(train.EARLY_STOP, 'epoch')}")
        LOG.info(test_line(predictions.loss, predictions.correct, len(predictions.true))
                 + f" after epoch {predictions.epoch}"
                 + ", averaged over the views of TTA" * bool(self.parts.config.TTA))
        # The run may have had a better epoch whose weights were lost.
        if state.best is not None:
            value = state.best[name]
            shown = f"{100 * value:.2f}%" if is_part(name) else f"{value:.4f}"
            shown = "–" if math.isnan(value) else shown
            LOG.info(f"Best {run.monitored} {name}: {shown} in epoch {state.best['epoch']}. "
                     f"{plural(epochs, 'epoch')}, {duration(run.seconds)} of training")
        other = run.other_best(predictions)
        if other:
            LOG.info(other)

    def _say_left_out(self, names: Iterable[str]) -> None:
        """Say which files cannot be read, those that were not told before."""
        new = sorted(set(names) - self._left_out)
        if new:
            LOG.info(f"left out   {plural(len(new), 'image file')} that cannot be read: "
                     f"{and_more(new, 5)}")
        self._left_out.update(new)

    def _words_for_interruption(self, state: TrainingState, error: KeyboardInterrupt) -> str:
        if self.run is None:
            return f"Stopped {_place(state)}"
        if isinstance(error, Interrupted):
            return f"Interrupted {_place(state)}, and saved. Go on: {_resume_command(self.run)}"
        words = f"Stopped at once {_place(state)}"
        if self.run.has_checkpoint:
            return f"{words}. Go on from the last checkpoint: {_resume_command(self.run)}"
        return f"{words}. There is no checkpoint to go on from yet"


def say_where(run: Run) -> None:
    """Say where all of a finished run is, and what to do with it."""
    folder = quoted(run.folder)
    LOG.info(f"All of it is in {run.folder}/: train.log, metrics.jsonl, predictions.npz, "
             "checkpoints/", extra=SCREEN)
    LOG.info(f"Per class: {command('evaluate')} --run {folder}", extra=SCREEN)
    LOG.info(f"Pictures:  {command('visualize')} --run {folder}", extra=SCREEN)


def say_finished(run: Run, config: Config, epoch: int) -> None:
    """Say that a run has nothing left to train, and what would train it longer."""
    if epoch < config.TRAIN.EPOCHS:
        longer = f"raise TRAIN.EARLY_STOP, which ended it at {config.TRAIN.EARLY_STOP}"
    elif planned := planned_by_length(config):
        longer = f"start a new run: {planned} planned this one for its number of epochs"
    else:
        longer = "raise TRAIN.EPOCHS"
    LOG.info(f"{run.folder} is finished: {plural(epoch, 'epoch')}. To train longer, {longer}.",
             extra=SCREEN)


def _resume_command(run: Run) -> str:
    words = quoted(run.folder / "config.yaml", "--resume", run.folder)
    return f"{command('train', distributed.local_size())} {words}"


def _place(state: TrainingState) -> str:
    return moment_of(state.epoch, state.progress.batches)


def _words_for_sampler(plan: EpochPlan, data: ImageData) -> str:
    drawn = np.bincount(data.train.labels[plan.positions(0)], minlength=len(data.classes))
    known = np.flatnonzero(data.class_counts)
    low, high = known[drawn[known].argmin()], known[drawn[known].argmax()]
    least, most = int(drawn[low]), int(drawn[high])
    words = f"{plural(plan.count, 'image')} an epoch, "
    if most - least > 1:
        return (f"{words}in the first from {least:,} ({escape_controls(data.classes[low])}) to "
                f"{most:,} ({escape_controls(data.classes[high])}) of a class")
    times = f"{least:,} or {plural(most, 'time')}" if least < most else plural(most, "time")
    return f"{words}each of {plural(len(known), 'class')} {times}"


def _words_for_weights(weights: Sequence[float], classes: Sequence[str]) -> str:
    low, high = weights.index(min(weights)), weights.index(max(weights))
    if weights[low] == weights[high]:
        return f"{weights[low]:.3g} for each class"
    return (f"{weights[low]:.3g} ({escape_controls(classes[low])}) to {weights[high]:.3g} "
            f"({escape_controls(classes[high])})")


def _words_for_rate(config: Config, state: TrainingState) -> str:
    optimizer, scheduler = config.OPTIMIZER, config.SCHEDULER
    words = f"{optimizer.NAME} lr {optimizer.lr:g}"
    if scheduler is None:
        return f"{words}, constant"
    if is_to_find(scheduler):
        return f"{optimizer.NAME}, {scheduler.NAME} up to a rate to be found"
    group, momentum = state.optimizer.param_groups[0], ""
    if {"base_momentum", "max_momentum"} <= set(group):
        momentum = f", momentum {group['base_momentum']:g} to {group['max_momentum']:g}"
    if scheduler.get("max_lr", optimizer.lr) != optimizer.lr:
        return (f"{optimizer.NAME}, {scheduler.NAME} up to {scheduler.max_lr} (not OPTIMIZER.lr)"
                f"{momentum}")
    return f"{words}, {scheduler.NAME}{momentum}"
