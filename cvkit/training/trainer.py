"""Training, top to bottom: `train` → `Trainer.train` → `train_epoch` → `train_step`."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import math
import shlex
import signal
import time
import traceback
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvkit import __version__
from cvkit.config import Config, check_components
from cvkit.data.duplicates import DUPLICATES, duplicates
from cvkit.data.loaders import Batch, BatchLoader
from cvkit.data.sources import death_of_worker, is_death_of_worker
from cvkit.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergenceError,
    RunError,
    UserError,
)
from cvkit.evaluation.metrics import (
    build_metrics,
    is_lower_better,
    is_part,
    lower_is_better,
    refuse_what_adds_up,
    together,
    values_of,
)
from cvkit.evaluation.predict import predict
from cvkit.evaluation.run_evaluation import evaluate
from cvkit.models import parameters_in_words
from cvkit.models.probing import refuse_single_images
from cvkit.registry import WRITERS
from cvkit.registry.user_code import edited_since, user_code
from cvkit.reporting.checks import Warner, after_epoch, before_training, idle_scheduler
from cvkit.reporting.jsonl import JsonLines
from cvkit.reporting.requirements import check_requirements, enforce, summary
from cvkit.runs.checkpoint import Checkpoint, load_weights, moment_of, weights_of
from cvkit.runs.experiment import Experiment
from cvkit.runs.folder import Run, open_run
from cvkit.runs.predictions import Predictions, test_line
from cvkit.runs.range_test import RULE, RangeTest
from cvkit.system import distributed
from cvkit.system.device import autocast, compile_model, describe
from cvkit.system.environment import environment
from cvkit.system.files import write_whole
from cvkit.system.log import Log, Progress
from cvkit.system.saving import plain
from cvkit.system.seeds import random_numbers_kept, seed_everything
from cvkit.system.text import duration, plural, suggest, visible
from cvkit.training.ema import EMA
from cvkit.training.failures import is_out_of_memory, largest_that_fits
from cvkit.training.losses import build_loss, weight_of
from cvkit.training.lr_finder import range_test
from cvkit.training.optimizers import begin_momentum, build_optimizer, trained_in
from cvkit.training.resume import EpochState, Pace, as_begun, newest_run_of, refuse_changes
from cvkit.training.schedulers import Schedule, build_schedule, is_planned, is_to_find, with_rate
from cvkit.training.signals import Interrupted, StopSignals
from cvkit.training.trial import (
    CopyError,
    LossError,
    forms_checked,
    refuse_other_images,
    refusing_copies_that_fail,
    try_training,
)

_OF_WRITERS = ("write(step, values)", "finish(run)", "close()")
_TRIES = 5  # of whether a model leaves out parameters by chance
_RATES_PER_EPOCH = 100  # at most so many learning rates of an epoch are noted


def train(config: Config, resume: bool | str | Path = False) -> Run | None:
    """Train what a config describes and return the finished run.

    Of several processes (`torchrun`) only the first writes, and opens the run that is returned;
    the others return None.

    Args:
        config: from `load_config`.
        resume: True continues the newest run of this config, a path that run. "auto" continues
            the newest that was begun with the same settings, or begins one if there is none;
            one that is finished is returned as it is.

    Raises:
        UserError: something in the config, the data or the run to resume is wrong, or the loss
            stopped being finite.
        Interrupted: SIGINT (Ctrl-C) or SIGTERM asked to stop; the run can be resumed.
    """
    run = None
    if not distributed.is_main():
        resume = False  # the first process says what is done
    if resume == "auto":
        check_components(config)
        run = newest_run_of(config)
    elif resume:
        run = open_run(None if resume is True else resume, config.OUTPUT_DIR,
                       config.name if resume is True else "*")
    # What a run was begun with is in its checkpoint; the file may be out of reach by now.
    return Trainer(config, Experiment(config, takes_weights=run is None)).train(run)


class Trainer:
    """Builds everything that a config names; then `train()`, or `check()`.

    Args:
        config: from `load_config`.
        parts: what it describes, to train on other data for example; built if not given.

    Raises:
        UserError: something in the config or the data is wrong. Nothing has been written yet.
    """

    def __init__(self, config: Config, parts: Experiment | None = None):
        check_components(config)
        enforce(check_requirements(config), config)
        parts = parts or Experiment(config)
        self.config, self.log = config, Log()
        self.device, self.precision = parts.device, parts.precision
        distributed.start(self.device)
        self._check_processes()
        with distributed.first_on_each_machine():  # which downloads what is not there
            self.data, self.loaders, self.model = parts.data, parts.loaders, parts.model
        self.is_viewed, self.has_built_data = parts.is_viewed, self.data is parts.built_data
        if any(self.loaders.train.part_size(number) <= 1
               for number in range(len(self.loaders.train))):
            refuse_single_images(self.model, self.loaders.train_shape,
                                 config.DATA.where("BATCH_SIZE"))
        if config.TRAIN.SYNC_BATCHNORM and distributed.size() > 1:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.classes = self.data.classes
        self.loss = build_loss(config.LOSS, len(self.classes),
                               takes_shares=bool(self.loaders.train.pipeline.mixing))
        self.loss.to(self.device)
        self.forward = self._parallel(self.model)
        self.steps_per_epoch = math.ceil(len(self.loaders.train) / config.TRAIN.ACCUMULATE)
        self._build_optimizer_and_schedule()
        self._build_scaler_and_ema()
        self.epoch = 0  # finished ones
        self.values: dict[str, float] = {}  # the metrics of the last of them
        self.best: dict[str, float] | None = None  # and of the best
        self.now = EpochState()  # of the epoch that is under way
        self.is_between_steps, self.saved = True, ""  # so all can be saved; when it was, in words
        self.run: Run | None = None  # that it writes, in the first process
        self.signals, self.pace = StopSignals(), Pace(config.TRAIN.CHECKPOINT_EVERY)
        self.warn = Warner(self.log.both)
        self.odd: dict[str, str] = {}  # warnings of the trial
        self.left_out: set[str] = set()  # image files that were logged
        self.duplicates: dict[str, list[str]] = {}  # images in two splits, a line each
        self._check_monitor()
        for node in config.WRITERS:
            if inspect.isclass(WRITERS.get(node.NAME)):  # else it is known when it is built
                WRITERS.refuse_without(node, WRITERS.get(node.NAME), *_OF_WRITERS)
        self.requirements = check_requirements(config, parts)
        enforce(self.requirements, config)

    def _check_processes(self) -> None:
        config, processes = self.config, distributed.size()
        if processes > config.DATA.BATCH_SIZE:
            raise ConfigError(f"a batch of {config.DATA.BATCH_SIZE} cannot be shared by "
                              f"{processes} processes", where=config.DATA.where("BATCH_SIZE"),
                              hint="DATA.BATCH_SIZE counts the images of all processes together.")
        if processes > 1 and config.TRAIN.SYNC_BATCHNORM and self.device.type != "cuda":
            raise ConfigError("torch synchronises batch norms between GPUs only",
                              where=config.TRAIN.where("SYNC_BATCHNORM"),
                              hint="On CPUs: MODEL.norm group, or SYNC_BATCHNORM false.")

    def _parallel(self, model: nn.Module, is_compiled: bool = True) -> nn.Module:
        """Return the model as training calls it: compiled, its gradients averaged."""
        if self.config.TRAIN.COMPILE and is_compiled:
            model = compile_model(model, self.device, self.config.TRAIN.where("COMPILE"))
        return distributed.average_gradients(model, self.device, self._has_unused_parameters)

    @cached_property
    def _has_unused_parameters(self) -> bool:
        """Whether some get no gradient, which processes have to know before they average."""
        if distributed.size() == 1 or self.config.TRAIN.UNUSED_PARAMETERS:
            return self.config.TRAIN.UNUSED_PARAMETERS

        def leaves_some_out(size: int) -> bool:  # each draws other numbers
            return any(parameter.requires_grad and parameter.grad is None for _ in range(_TRIES)
                       for parameter in self._try_batch(size).parameters())

        with random_numbers_kept(self.device):
            try:
                has_some = leaves_some_out(2)
            except CopyError:  # then torch says so, if they are left out
                has_some = False
            except Exception as error:  # a loss may need more images
                if isinstance(error, ConfigError) and not isinstance(error, LossError):
                    raise
                has_some = leaves_some_out(self.loaders.train.part_size(0))
        return distributed.anywhere(has_some)

    def _build_optimizer_and_schedule(self, is_tried: bool = True) -> None:
        config = self.config
        self.optimizer = build_optimizer(
            config.OPTIMIZER, self.model, config.TRAIN.DECAY_NORM_AND_BIAS, self.loss, is_tried,
            config.SCHEDULER is not None or config.TRAIN.WARMUP_EPOCHS > 0)
        if is_to_find(config):  # until it is found, when training begins
            config = with_rate(config, config.OPTIMIZER.lr)
        self.schedule = build_schedule(config.SCHEDULER, self.optimizer, config.TRAIN.EPOCHS,
                                       self.steps_per_epoch, config.TRAIN.WARMUP_EPOCHS)
        begin_momentum(self.optimizer)

    def _build_scaler_and_ema(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        decay = self.config.TRAIN.EMA
        try:
            self.ema = EMA(self.model, decay) if decay > 0 else None
        except (TypeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise ConfigError(f"the model cannot be copied, and averages are of a copy: {error}",
                              where=self.config.TRAIN.where("EMA"), hint="TRAIN.EMA 0") from error

    def twin(self, is_compiled: bool = True) -> Trainer:
        """Return a trainer of copies: its steps leave this one as it is.

        Args:
            is_compiled: False leaves TRAIN.COMPILE out, which takes half a minute.
        """
        twin = copy.copy(self)
        twin.model, twin.loss = self._copied()
        twin.forward = twin._parallel(twin.model, is_compiled)
        twin._build_optimizer_and_schedule(is_tried=False)
        twin._build_scaler_and_ema()
        return twin

    def _copied(self) -> tuple[nn.Module, nn.Module]:
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
        if not all(parameter.is_leaf for parameter in model.parameters()):  # of a jit.script
            raise CopyError("a copy of the model cannot be trained")
        return model, loss

    def find_lr(self, lowest: float = 1e-5, highest: float = 10.0, steps: int = 100) -> RangeTest:
        """Look for a learning rate: train a copy of the model for some steps at rising rates.

        Model, optimizer and random numbers are left as they were.

        Args:
            lowest, highest: the first and the last rate, with equal factors between.
            steps: of the optimizer.

        Raises:
            RunError: the loss does not fall at any of the rates.
        """
        twin = copy.copy(self)
        twin.model, twin.loss = self._copied()
        twin._build_scaler_and_ema()
        twin.ema = None
        twin.forward = twin._parallel(twin.model, is_compiled=False)
        twin.optimizer = build_optimizer(self.config.OPTIMIZER, twin.model,
                                         self.config.TRAIN.DECAY_NORM_AND_BIAS, twin.loss,
                                         is_scheduled=True)
        begin_momentum(twin.optimizer)
        twin.schedule = Schedule(twin.optimizer)
        twin.model.train()
        accumulate = self.config.TRAIN.ACCUMULATE
        progress = Progress("Finding the learning rate", steps, self.log, unit="step")

        def batches() -> Iterator[Batch]:
            for epoch in itertools.count():
                self.loaders.train.set_epoch(epoch)
                yield from self.loaders.train

        def step(rate: float) -> float:
            for group in twin.optimizer.param_groups:
                group["lr"] = rate
            losses = torch.stack([
                twin.train_step(next(source), 1 / accumulate, number == accumulate)[0]
                for number in range(1, accumulate + 1)])
            loss = float(distributed.total(losses.mean())) / distributed.size()
            if progress.step():
                progress.update(loss)
            return loss

        with (random_numbers_kept(self.device), contextlib.closing(batches()) as source,
              self.explaining()):
            self._seed(0)
            try:
                return range_test(step, lowest, highest, steps)
            finally:
                progress.close()

    @property
    def evaluated_model(self) -> nn.Module:
        """The model whose results count: the averaged weights where there are some."""
        return self.model if self.ema is None else self.ema.model

    def _check_monitor(self) -> None:
        """Note which values are better when lower, and who assumes so of the monitored one."""
        classes, monitor = torch.arange(len(self.classes)), self.config.TRAIN.MONITOR
        self.lower, self.assuming, known = ["loss"], None, ["loss"]
        metrics = build_metrics(self.config.METRICS, self.classes)
        computed = []
        try:
            refuse_what_adds_up(self.config.METRICS, self.classes)
            for metric in metrics:
                metric.update(torch.zeros(len(classes), len(classes)), classes.clone())
                values = values_of(metric)
                computed.append((metric, values))
                self.lower += lower_is_better(metric, values)
                if monitor in values and not (
                        is_part(monitor) or hasattr(metric, "lower_is_better")):
                    self.assuming = type(metric).__name__
            known += together(computed)
        except ConfigError as error:
            error.where = error.where or self.config.where("METRICS")
            raise
        if monitor not in known:
            raise ConfigError(f"no metric named {monitor!r}",
                              where=self.config.TRAIN.where("MONITOR"),
                              hint=suggest(monitor, known))

    # -- the whole ---------------------------------------------------------------------

    def train(self, run: Run | None = None) -> Run | None:
        """Train to the last epoch, evaluating after each; return the run.

        Args:
            run: one to continue; None makes a new run folder.

        Raises:
            RunError: it has trained already. UserError: something stops it.
        """
        if self.epoch or self.now.batches or self.run is not None:
            raise RunError("this Trainer has trained already", hint="Make another one.")
        is_resumed = distributed.from_main(lambda: run is not None)
        with contextlib.ExitStack() as stack:
            if run is not None:
                run.refuse_links()
                stack.enter_context(run.lock())
            if is_resumed:
                self._load(run)
                if self._is_finished():
                    distributed.stop()
                    if run is not None:
                        self._say_finished(run)
                    return run
            self._try()
            if run is not None:
                run.set_config(self.config)
            self._log_beginning(run)
            found = None
            if is_to_find(self.config):
                self.log.show("finding    max_lr, on a copy of the model")
                found = self.find_lr()
                self.config = with_rate(self.config, found.suggestion)
                self._build_optimizer_and_schedule()
                self.log.both(f"found      max_lr {found.suggestion:g}: {RULE}")
            if distributed.is_main():
                if run is None:
                    run = Run.create(self.config, environment(self.device))
                    stack.enter_context(run.lock())
                if found is not None:
                    run.keep_range_test(found)
                run.data = self.data  # or what looks at the results would read it again
                if self.duplicates:
                    lines = [visible(line) for found in self.duplicates.values() for line in found]
                    write_whole(run.folder / DUPLICATES, "\n".join([*lines, ""]))
                self.log.attach(run.folder)
                self.log.show(f"run        {run.folder}")
            self._train(run)
        return run

    def _try(self) -> None:
        """Refuse what could not be trained, saved and evaluated, before anything is written.

        Raises:
            UserError: see `try_training`.
        """
        refuse_other_images(self)
        try:
            try:
                try_training(self, is_whole=False)
            except CopyError:
                raise
            except Exception:  # a loss may need more images, or the first ones not be readable
                with refusing_copies_that_fail(self):
                    try_training(self, is_whole=True, is_strict=False)
        except CopyError as error:
            self.log.both(f"note       saving and loading was not tried before: {error.problem}")
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                with self.explaining():
                    raise
            self.log.both("note       saving and loading was not tried before: there is no memory "
                          "for a second model")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _train(self, run: Run | None) -> None:
        """Train from where it is to the end; what is written, the first process writes."""
        self.run, writers = run, []
        try:
            if run is not None:
                writers.append(JsonLines(str(run.folder)))
                for node in self.config.WRITERS:
                    if node.NAME != "jsonl":
                        writer = WRITERS.build(node, folder=str(run.folder), config=self.config)
                        WRITERS.refuse_without(node, writer, *_OF_WRITERS)
                        writers.append(writer)
            with self.explaining(), self.signals:  # whose end lets SIGTERM kill again
                while not self._is_finished():
                    predictions = self._train_and_evaluate(writers)
                predictions = self._final_predictions(predictions)
            distributed.stop()
            if run is not None:
                self._finish(run, predictions)
                with contextlib.ExitStack() as stack:  # what fails in one keeps none from it
                    for writer in reversed(writers):
                        stack.callback(writer.finish, run)
        except KeyboardInterrupt as error:
            if run is not None:
                self.log.both(self._words_for_interruption(error))
            raise
        except DataError as error:  # a file that cannot be read, a drive that is gone
            if self.is_between_steps and distributed.size() == 1:
                self._save()
            self._say_stopped(error)
            raise
        except DivergenceError as error:  # which going on would only repeat
            self.log.write(f"Stopped: {error}")
            raise
        except UserError as error:
            self._say_stopped(error)
            raise
        finally:
            self.loaders.close()
            for writer in writers:
                writer.close()

    def _say_finished(self, run: Run) -> None:
        if self.epoch < self.config.TRAIN.EPOCHS:
            longer = f"raise TRAIN.EARLY_STOP, which ended it at {self.config.TRAIN.EARLY_STOP}"
        elif is_planned(self.config.SCHEDULER):
            longer = (f"start a new run: {self.config.SCHEDULER.NAME} planned this one for "
                      "its number of epochs")
        else:
            longer = "raise TRAIN.EPOCHS"
        self.log.show(f"{run.folder} is finished: {plural(self.epoch, 'epoch')}. "
                      f"To train longer, {longer}.")
        try:
            _ = run.predictions
        except RunError:  # it was interrupted at its very end
            evaluate(run)

    def _is_finished(self) -> bool:
        patience = self.config.TRAIN.EARLY_STOP
        waited = self.epoch - self.best["epoch"] if self.best else 0
        return self.epoch >= self.config.TRAIN.EPOCHS or 0 < patience <= waited

    def _train_and_evaluate(self, writers: list[Any]) -> Predictions:
        """One epoch: train, evaluate, log, save."""
        epochs, monitored = self.config.TRAIN.EPOCHS, self.data.monitored
        if self.log.is_live:
            self.log.show(f"Epoch {self.epoch + 1}/{epochs}  lr {self.schedule.rate:.4g}")
        self._seed(self.epoch + 1)
        train_values = self.train_epoch()
        if not self._is_finite():  # after the very last step, of which no loss was computed yet
            self._stop_for_non_finite(self.now.batches, "weights are")
        rate, seconds = self.now.rate, self.now.seconds
        averaged = [] if self.ema is None else [self.ema.model]
        distributed.share_buffers(self.model, *averaged, self.loss)
        with self._saved_if_stopped():
            predictions, values = predict(
                self.evaluated_model, self.loaders.monitored, self.loss,
                build_metrics(self.config.METRICS, self.classes), self.classes, self.precision,
                self.epoch + 1, Progress("Test", len(self.loaders.monitored), self.log,
                                         place=f"Epoch {self.epoch + 1}/{epochs}"),
                self._stop_if_asked)
        if self.config.TRAIN.MONITOR not in values:
            raise RunError(f"no metric computed TRAIN.MONITOR {self.config.TRAIN.MONITOR} in epoch "
                           f"{self.epoch + 1}, but {', '.join(values)}",
                           hint="compute() returns the same names each time.")
        is_best = self._is_better(values)
        best = self.epoch + 1 if is_best else self.best["epoch"]
        is_last = self.epoch + 1 >= epochs or 0 < self.config.TRAIN.EARLY_STOP <= (
            self.epoch + 1 - best)
        if is_last and not math.isfinite(values["loss"]):
            self._stop_for_non_finite(self.now.batches, f"{monitored} loss is")
        self.schedule.after_epoch(values["loss"], values["accuracy"])
        self.epoch += 1
        rates, batch_losses = self.now.rates, self.now.loss.batches()
        self.values, self.now = values, EpochState()
        record = {"epoch": self.epoch, "lr": rate, "seconds": round(seconds, 3),
                  "images_per_second": round(len(self.data.train) / seconds, 1),
                  **{f"train/{name}": value for name, value in train_values.items()},
                  **{f"{monitored}/{name}": value for name, value in values.items()},
                  "lower_is_better": self.lower, "rates": rates}
        if is_best:
            self.best = {"epoch": self.epoch, **values}
        for writer in writers[:1]:
            writer.write(self.epoch, record)
        self._save()
        for writer in writers[1:]:  # which may be anyone's: what fails there costs no epoch
            writer.write(self.epoch, record)

        def words(values: dict[str, float]) -> str:
            return f"loss {values['loss']:.4f} acc {100 * values['accuracy']:6.2f}%"

        line = (f"Epoch {self.epoch:{len(str(epochs))}}/{epochs}  train {words(train_values)}  "
                f"{monitored} {words(values)}  lr {rate:<9.4g} {seconds:6.1f} s"
                f"{'  best' if is_best else ''}")
        self.log.write(line)
        self.log.show(line if not self.log.is_live else test_line(
            values["loss"], predictions.correct, len(predictions.true)).replace(
                "Test set", "Test set" if monitored == "test" else "Validation set"))
        if is_best and self.run is not None:  # after last.pt, from which it can be made again
            self.run.save(self.checkpoint(), "best")
        self._say_left_out(self._left_out_of(self.loaders.train, self.loaders.monitored))
        if self.run is not None:
            self.warn(after_epoch(self.config, self.data, self.loss, self.run.metrics,
                                  batch_losses))
        return predictions

    def train_epoch(self) -> dict[str, float]:
        """Train on every image once; return loss and accuracy as means over those images.

        Of an epoch that was resumed, on those that it had not come to.
        """
        loader, accumulate = self.loaders.train, self.config.TRAIN.ACCUMULATE
        now = self.now = self.now.begin(self.schedule.rate, self.device)
        begun = now.batches
        loader.set_epoch(self.epoch, now.batches)
        self.model.train()
        every = math.ceil(self.steps_per_epoch / _RATES_PER_EPOCH)
        progress = Progress("Train", len(loader), self.log, now.batches,
                            place=f"Epoch {self.epoch + 1}/{self.config.TRAIN.EPOCHS}")
        sizes = loader.batch_sizes
        for number, batch in enumerate(loader, now.batches):
            start = number - number % accumulate
            group = sizes[start:start + accumulate]
            is_step = number % accumulate == accumulate - 1 or number == len(sizes) - 1
            if is_step and self.schedule.steps % every == 0:
                now.rates.append((self.schedule.steps, self.schedule.rate))
            count = min(loader.part_size(number), len(batch.labels))
            self.is_between_steps = False
            # Averaging gradients divides by the number of processes; each has a part of the batch.
            weight = count * distributed.size() / sum(group)
            loss, logits = self.train_step(batch, weight, is_step)
            now.loss.update(loss, count, weight_of(self.loss, batch.targets[:count]))
            now.accuracy.update(logits[:count], batch.labels[:count])
            is_due = progress.step()  # twice a second, for each look waits for a GPU's work
            if is_due or self.device.type == "cpu":
                bad = now.loss.first_non_finite()
                if bad is not None:
                    progress.close()
                    self._stop_for_non_finite(begun + bad + 1)
            if is_due:
                progress.update(now.loss.compute(), now.accuracy.compute()["accuracy"])
            if is_step:
                now.batches, self.is_between_steps = number + 1, True
                self._save_or_stop()
        progress.close()
        now.end()
        return {"loss": now.loss.everywhere().compute(), **now.accuracy.everywhere().compute()}

    def _save_or_stop(self) -> None:
        """Save inside an epoch, if it is time to; stop, if that was asked for."""
        if distributed.anywhere(self.pace.is_due(self.schedule.steps)):
            self._save()
        with self._saved_if_stopped():
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """Stop, if a signal asked for it, in whichever process."""
        if distributed.anywhere(bool(self.signals.received)):
            raise Interrupted(self.signals.received or signal.SIGTERM)

    @contextlib.contextmanager
    def _saved_if_stopped(self) -> Iterator[None]:
        try:
            yield
        except Interrupted:
            if self.saved != moment_of(self.epoch, self.now.batches):  # just now
                self._save()
            raise

    def train_step(self, batch: Batch, weight: float, is_step: bool) -> tuple[Tensor, Tensor]:
        """Forward and backward; with `is_step`, also change the weights.

        Args:
            batch: on the device.
            weight: the batch's part of the images of this optimizer step; 1 without accumulation
                and other processes.
            is_step: whether this batch completes an optimizer step.

        Returns:
            The loss, a mean over the batch, and the logits (N, C); both detached.
        """
        # Gradients are averaged over the processes once, with the last batch of a step.
        skips = not is_step and hasattr(self.forward, "no_sync")
        with self.forward.no_sync() if skips else contextlib.nullcontext():
            with autocast(self.device, self.precision):
                logits = self.forward(batch.images)
                loss = self.loss(logits, batch.targets)
            self.scaler.scale(loss * weight).backward()
        if is_step:
            self.optimizer_step()
        return loss.detach(), logits.detach()

    def optimizer_step(self) -> None:
        """Change the weights by the gradients there are."""
        distributed.average(trained_in(self.loss))
        if self.config.TRAIN.CLIP_GRAD_NORM > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.weights, self.config.TRAIN.CLIP_GRAD_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.after_step()
        if self.ema is not None:
            self.ema.update()

    @property
    def weights(self) -> list[nn.Parameter]:
        """The parameters of the model, and of the loss if it has some."""
        return [*self.model.parameters(), *self.loss.parameters()]

    def _seed(self, epoch: int) -> None:
        """Seed what is random in an epoch; each process has random numbers of its own."""
        rank = (distributed.rank(),) if distributed.rank() else ()
        seed_everything(self.config.SEED, *((epoch,) if epoch else ()), *rank,
                        deterministic=self.config.DETERMINISTIC)

    def _stop_for_non_finite(self, batch: int, what: str = "loss is") -> None:
        saved = f" The weights saved {self.saved} are in last.pt." if self.saved else ""
        raise DivergenceError(
            f"the {what} no longer finite in epoch {self.epoch + 1}, batch {batch} of "
            f"{len(self.loaders.train)}, at a learning rate of about {self.schedule.rate:.3g}."
            f"{saved}",
            hint="Lower the learning rate, warm up (TRAIN.WARMUP_EPOCHS 1), clip gradients "
                 "(TRAIN.CLIP_GRAD_NORM 1) or compute in full precision (TRAIN.PRECISION fp32).")

    def _is_better(self, values: dict[str, float]) -> bool:
        monitor = self.config.TRAIN.MONITOR
        if self.best is None:
            return True
        value, best = values[monitor], self.best[monitor]
        if math.isnan(best):  # of a metric that had nothing to count yet
            return not math.isnan(value)
        return value < best if monitor in self.lower else value > best

    # -- checkpoints -------------------------------------------------------------------

    def checkpoint(self, training: dict[str, Any] | None = None) -> Checkpoint:
        """Return what is saved: as it is now, or with `training_state` to go on from."""
        return Checkpoint(
            model=weights_of(self.evaluated_model), config=self.config.dump(),
            classes=list(self.classes), mean=list(self.loaders.mean), std=list(self.loaders.std),
            image_shape=list(self.loaders.image_shape), epoch=self.epoch, metrics=self.values,
            monitored=self.data.monitored, training=training,
            loss=weights_of(self.loss) or None,
            transform_input=getattr(self.model, "transform_input", None) is True)

    def _save(self) -> None:
        """Save all that the rest of the training depends on, at the end or inside of an epoch."""
        within = self.now.state_dict(self.device)
        if within is not None:
            if self.now.loss.first_non_finite() is not None:
                self._stop_for_non_finite(self.now.batches)
            if not self._is_finite():
                self._stop_for_non_finite(self.now.batches, "weights are")
        if self.run is not None:
            self.run.save(self.checkpoint(self.training_state(within)))
        self.saved = moment_of(self.epoch, self.now.batches)
        self.pace.restart()

    def _is_finite(self) -> bool:
        """Whether all weights and their averages are numbers; buffers may be infinite masks."""
        modules = {id(module): module for module in (self.model, self.evaluated_model, self.loss)}
        weights = [parameter.detach() for module in modules.values()
                   for parameter in module.parameters() if parameter.numel()]
        return not weights or bool(
            torch.stack(torch._foreach_norm(weights, math.inf)).isfinite().all())

    def training_state(self, within: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what, besides the evaluated weights, the rest of the training depends on.

        At the end of an epoch random numbers are no part of it: each seeds its own from
        (SEED, epoch).
        """
        return {"optimizer": plain(self.optimizer.state_dict()),
                "schedule": plain(self.schedule.state_dict()),
                "scaler": self.scaler.state_dict(), "best": self.best,
                "backend": self.loaders.train.backend, "within": within,
                "images": self.identities, "code": user_code(),
                "ema": None if self.ema is None else {
                    "steps": self.ema.steps, "model": weights_of(self.model)}}

    @cached_property
    def identities(self) -> dict[str, str]:
        """What tells the images that are trained on, and those that are monitored, from others."""
        return {name: images.identity for name, images in (
            ("training", self.data.train), (self.data.monitored, self.loaders.monitored.images))}

    def _load(self, run: Run | None) -> None:
        """Take up a run where its last checkpoint left it. The first process reads it for all."""
        was_to_find = is_to_find(self.config)
        checkpoint, self.config = distributed.from_main(lambda: self._read(run))
        if was_to_find:
            self._build_optimizer_and_schedule()
        self.restore(checkpoint)
        self.best = distributed.from_main(lambda: self._with_best_file(run, checkpoint))
        if run is not None:
            for part in ("model", "_trained"):  # will be others
                vars(run).pop(part, None)
            JsonLines.keep_epochs(run.folder, self.epoch)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up the training where a checkpoint left it.

        Raises:
            CheckpointError: its state does not fit what the config names.
        """
        state = checkpoint.training
        try:
            load_weights(self.evaluated_model, checkpoint.model, "the checkpoint")
            if checkpoint.loss is not None:  # of older versions: it stays as it was built
                load_weights(self.loss, checkpoint.loss, "the checkpoint", "loss")
            if checkpoint.transform_input:  # which comes with the pretrained weights
                self.model.transform_input = self.evaluated_model.transform_input = True
            if self.ema is not None:
                self.ema.steps = state["ema"]["steps"]
                load_weights(self.model, state["ema"]["model"], "the checkpoint")
            for saved, group in zip(state["optimizer"]["param_groups"],
                                    self.optimizer.param_groups):
                if "fused" in group:  # a matter of the device and of torch, not of what it computes
                    saved["fused"] = group["fused"]
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            if state["scaler"]:  # else it was saved in a precision that needs none
                self.scaler.load_state_dict(state["scaler"])
            self.now = EpochState.of(state.get("within"))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError("the checkpoint's training state does not fit: "
                                  f"{type(error).__name__}: {error}") from error
        self.epoch, self.values, self.best = checkpoint.epoch, checkpoint.metrics, state["best"]

    def _read(self, run: Run) -> tuple[Checkpoint, Config]:
        """Return a run's last checkpoint, if it fits, and the config to go on with."""
        checkpoint, config = run.last_whole_checkpoint(), as_begun(self.config, run)
        refuse_changes(config, run)
        if list(self.classes) != checkpoint.classes:
            raise CheckpointError(f"{run.folder} was trained on other classes: "
                                  f"{', '.join(checkpoint.classes)}")
        # Not to the last bit, which depends on how and where the mean was computed.
        if not torch.allclose(torch.tensor([self.loaders.mean, self.loaders.std]),
                              torch.tensor([checkpoint.mean, checkpoint.std]), rtol=1e-6, atol=0):
            raise CheckpointError(f"{run.folder} was trained on other images: their mean was "
                                  f"{checkpoint.mean}, now it is {list(self.loaders.mean)}")
        if checkpoint.training is None:
            raise CheckpointError(f"{run.folder}: last.pt holds no training state to go on from")
        known = checkpoint.training.get("images", self.identities)  # older versions kept none
        changed = [name for name in known if known[name] != self.identities.get(name)]
        if changed:
            raise CheckpointError(f"{run.folder} was trained on other images: those for "
                                  f"{' and '.join(changed)} are others now, have other labels or "
                                  "another order",
                                  hint="Put back what was there, or start a new run without "
                                       "--resume.")
        edited = edited_since(checkpoint.training.get("code", {}))
        if edited:
            self.log.both(f"note       {', '.join(edited)} was edited since the run was saved: the "
                          "rest is trained with it as it is now")
        backend = checkpoint.training.get("backend", "albumentations")  # as in older runs
        if backend != self.loaders.train.backend:
            raise RunError(f"{run.folder} was trained with DATA.BACKEND {backend}; "
                           f"{self.loaders.train.backend} draws other random numbers",
                           hint=f"Add DATA.BACKEND {backend} to go on as it was.")
        return checkpoint, config

    def _with_best_file(self, run: Run, checkpoint: Checkpoint) -> dict[str, float] | None:
        """Return the best epoch's metrics, with best.pt written again if it was lost.

        That is possible if the checkpoint is of that epoch; else None, and the best is found anew.
        """
        monitor, records = self.config.TRAIN.MONITOR, run.metrics
        is_turned = records and is_lower_better(monitor, records[-1]) != (monitor in self.lower)
        try:
            if is_turned:
                end = "lowest" if monitor in self.lower else "highest"
                damage = f"the {end} {monitor} is the best now, before it was the other way round"
            elif self.best is None or run.checkpoint("best").epoch >= self.best["epoch"]:
                return self.best
            else:
                damage = "best.pt is of an earlier epoch"
        except CheckpointError as error:
            damage = error.problem
        if not is_turned and self.best["epoch"] == checkpoint.epoch and not checkpoint.batches:
            run.save(self.checkpoint(), "best")
            return self.best
        self.log.both(f"note       {damage}; the best epoch is looked for anew from "
                      f"{self.epoch + 1} on")
        return None

    # -- beginning and end ---------------------------------------------------------------

    def _log_beginning(self, run: Run | None) -> None:
        config, data, both = self.config, self.data, self.log.both
        counts = f"{len(data.train):,} train, {len(data.test):,} test"
        if data.val is not None:
            counts = f"{len(data.train):,} train, {len(data.val):,} val, {len(data.test):,} test"
        shape = "×".join(map(str, self.loaders.image_shape))
        both(f"cvkit {__version__}  {config.name}  {time.strftime('%Y-%m-%d %H:%M:%S')}")
        if run is not None:
            both(f"resumed    {run.folder} {moment_of(self.epoch, self.now.batches)}")
        if config.DATA.LIMIT:
            counts += f" (DATA.LIMIT {config.DATA.LIMIT})"
        both(f"data       {config.DATA.DATASET.NAME}: {counts}, "
             f"{plural(len(data.classes), 'class')}, {shape}")
        for note in data.notes:
            both(f"data       {note}")
        self._say_left_out(data.left_out)
        if self.loaders.train_shape != self.loaders.image_shape:
            sizes = "×".join(map(str, self.loaders.train_shape))
            both(f"note       training images are {sizes}, test images {shape}: unless you mean "
                 "that, give the transforms of both the same size")
        if self.loaders.train.pipeline.mixing:
            both("note       in the training accuracy a mixed image counts for the class with the "
                 "larger share")
        if data.val is None:
            both("monitored  the test set (DATA.VAL_FRACTION is 0); results are the last epoch's, "
                 "not the best's")
        else:
            both("monitored  validation images; results are those of the best epoch on them")
        if self.assuming:
            both(f"note       metric {self.assuming} has no lower_is_better: the highest "
                 f"{config.TRAIN.MONITOR} is taken as the best")
        both(f"model      {config.MODEL.NAME}, {parameters_in_words(self.model)}")
        if self.is_viewed:
            both("note       its view() takes images in the plain memory layout only, which it "
                 "gets; flatten(1) or reshape() in its place would be faster")
        if run is None and isinstance(getattr(self.model, "weights_loaded", None), str):
            both(f"weights    {self.model.weights_loaded}")
        averaged = f", EMA {config.TRAIN.EMA:g} of the weights is tested" if self.ema else ""
        both(f"training   {plural(config.TRAIN.EPOCHS, 'epoch')} of "
             f"{plural(len(self.loaders.train), 'batch')} of {config.DATA.BATCH_SIZE}, "
             f"{config.LOSS.NAME}, {self._words_for_rate()}, seed {config.SEED}{averaged}")
        both(f"device     {describe(self.device)}, {self.precision}")
        both(f"input      {self.loaders.input}")
        for demand in self.requirements:
            both(f"required   {demand}")
        if distributed.is_main():
            self.duplicates = duplicates(data)
            self.warn({**before_training(config, data, self.loaders, self.steps_per_epoch,
                                         self.duplicates), **self.odd})

    def _left_out_of(self, *loaders: BatchLoader) -> set[str]:
        """Return the image files that the loaders' batches lack, in all processes."""
        names = {name for loader in loaders for name in loader.left_out}
        return set().union(*distributed.from_all(names))

    def _say_left_out(self, names: Iterable[str]) -> None:
        """Log files that cannot be read, those that were not logged before."""
        new = sorted(set(names) - self.left_out)
        if new:
            more = f" and {len(new) - 5} more" if len(new) > 5 else ""
            self.log.both(f"left out   {plural(len(new), 'image file')} that cannot be read: "
                          f"{', '.join(new[:5])}{more}")
        self.left_out.update(new)

    def _words_for_rate(self) -> str:
        optimizer, scheduler = self.config.OPTIMIZER, self.config.SCHEDULER
        words = f"{optimizer.NAME} lr {optimizer.lr:g}"
        if scheduler is None:
            return f"{words}, constant"
        if is_to_find(self.config):
            return f"{optimizer.NAME}, {scheduler.NAME} up to a rate to be found"
        if scheduler.get("max_lr", optimizer.lr) != optimizer.lr:
            return (f"{optimizer.NAME}, {scheduler.NAME} up to {scheduler.max_lr} (not "
                    f"OPTIMIZER.lr){self._words_for_momentum()}")
        return f"{words}, {scheduler.NAME}{self._words_for_momentum()}"

    def _words_for_momentum(self) -> str:
        """Say between what the schedule moves the momentum; nothing where it leaves it."""
        group = self.optimizer.param_groups[0]
        if not {"base_momentum", "max_momentum"} <= set(group):
            return ""
        return f", momentum {group['base_momentum']:g} to {group['max_momentum']:g}"

    def _final_predictions(self, predictions: Predictions) -> Predictions:
        """Return those of the model whose results count: the last epoch's, or the best's."""
        if self.data.monitored == "test":
            return predictions
        checkpoint = distributed.from_main(lambda: self.run.checkpoint("best"))
        load_weights(self.evaluated_model, checkpoint.model, "best.pt")
        if checkpoint.loss is not None:
            load_weights(self.loss, checkpoint.loss, "best.pt", "loss")
        predictions = predict(
            self.evaluated_model, self.loaders.test, self.loss,
            build_metrics(self.config.METRICS, self.classes), self.classes, self.precision,
            checkpoint.epoch,
            Progress("Test", len(self.loaders.test), self.log))[0]
        self._say_left_out(self._left_out_of(self.loaders.test))
        return predictions

    def _finish(self, run: Run, predictions: Predictions) -> None:
        """Write the predictions and say how it went and where all is."""
        predictions.save(run.folder / "predictions.npz")
        both, epochs = self.log.both, self.epoch
        if epochs < self.config.TRAIN.EPOCHS:
            both(f"Stopped early after epoch {epochs}: no better {self.config.TRAIN.MONITOR} for "
                 f"{plural(self.config.TRAIN.EARLY_STOP, 'epoch')}")
        both(test_line(predictions.loss, predictions.correct, len(predictions.true))
             + f" after epoch {predictions.epoch}")
        monitor = self.config.TRAIN.MONITOR
        value = self.best[monitor]
        shown = f"{100 * value:.2f}%" if is_part(monitor) else f"{value:.4f}"
        both(f"Best {self.data.monitored} {monitor}: {shown} in epoch {self.best['epoch']}. "
             f"{plural(epochs, 'epoch')}, {duration(run.seconds)} of training")
        other = run.other_best(predictions)
        if other:
            both(other)
        self.warn(idle_scheduler(self.config, self.schedule, run.metrics))
        if self.requirements:
            demands = check_requirements(self.config, run)
            for demand, before in zip(demands, self.requirements, strict=True):
                if before.is_met is None:
                    both(f"required   {demand}")
            both(f"required   {summary(demands)}")
        self.log.show(f"All of it is in {run.folder}/: train.log, metrics.jsonl, predictions.npz, "
                      "checkpoints/")
        folder = shlex.quote(str(run.folder))
        self.log.show(f"Per class: python tools/evaluate.py --run {folder}")
        self.log.show(f"Pictures:  python tools/visualize.py --run {folder}")

    def _words_for_interruption(self, error: KeyboardInterrupt) -> str:
        place = moment_of(self.epoch, self.now.batches)
        if isinstance(error, Interrupted):
            return f"Interrupted {place}, and saved. Go on: {self._resume_command()}"
        words = f"Stopped at once {place}"
        if self.run.has_checkpoint:
            return f"{words}. Go on from the last checkpoint: {self._resume_command()}"
        return f"{words}. There is no checkpoint to go on from yet"

    def _say_stopped(self, error: UserError) -> None:
        lines = [f"Stopped: {error}"]
        if self.run is not None and self.run.has_checkpoint:
            lines.append(f"Go on from the last checkpoint: {self._resume_command()}")
            self.log.show(lines[-1])
        with contextlib.suppress(RunError):  # a full disk, of which the error speaks already
            for line in lines:
                self.log.write(line)

    def _resume_command(self) -> str:
        words = ["tools/train.py", str(self.run.folder / "config.yaml"), "--resume",
                 str(self.run.folder)]
        count = distributed.local_size()
        start = f"torchrun --nproc-per-node={count}" if count > 1 else "python"
        return f"{start} {shlex.join(words)}"

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Raise errors of torch that are known in words; others as they are."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if distributed.size() > 1:  # torchrun ends all; the cause has to be said before
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            explained = self._explained(error)
            if explained is None:
                raise
            raise explained from error

    def _explained(self, error: Exception) -> UserError | None:
        """Return in words what a user can do about an error of torch, if that is known."""
        if distributed.is_loss_of_contact(error):
            return RunError(f"process {distributed.rank()} lost contact with another one, which "
                            "failed, was killed, or whose machine is gone",
                            hint=str(error).strip().split("\n")[0] + "\n  If the model leaves out "
                            "parameters by chance: TRAIN.UNUSED_PARAMETERS true.")
        if "finished reduction in the prior iteration" in str(error):
            return RunError("some parameters of the model got no gradient, others than in the "
                            "first step, and the processes cannot average them",
                            hint="TRAIN.UNUSED_PARAMETERS true allows for that.")
        if is_death_of_worker(error):
            return death_of_worker(error)
        if is_out_of_memory(error):
            return self._out_of_memory(error)
        return None

    def _out_of_memory(self, error: Exception) -> RunError | None:
        """Say what does not fit, and by trying, what would; None if it is not a matter of size."""
        device, node = describe(self.device), self.config.DATA
        traceback.clear_frames(error.__traceback__)  # which hold the tensors of what failed
        if self.now.batches == len(self.loaders.train):  # then it was evaluating
            size = self.loaders.monitored.batch_sizes[0] // distributed.size()
            return RunError(f"out of memory on {device}, evaluating batches of {size}",
                            hint=f"Try DATA.EVAL_BATCH_SIZE {max(1, size // 4)}; it changes no "
                                 "result.")
        if distributed.size() > 1 and self.config.TRAIN.SYNC_BATCHNORM:
            # A trial would wait for the other processes, which have failed in their own ways.
            return RunError(f"out of memory on {device}, training on batches of {node.BATCH_SIZE}",
                            hint="Take a smaller DATA.BATCH_SIZE and a larger TRAIN.ACCUMULATE.")
        self.optimizer.zero_grad(set_to_none=True)
        size = largest_that_fits(self._try_batch, node.BATCH_SIZE // distributed.size())
        where = f"out of memory on {device}, training on batches of {node.BATCH_SIZE}"
        if distributed.size() > 1:
            where += f", {node.BATCH_SIZE // distributed.size()} on each"
        if not size and "primitive" in str(error):
            return None
        if not size:
            return RunError(where, hint="Not even one image fits: take a smaller model or image.")
        size *= distributed.size()
        times = math.ceil(node.BATCH_SIZE * self.config.TRAIN.ACCUMULATE / size)
        return RunError(where, hint=f"{size} fit: DATA.BATCH_SIZE {size} TRAIN.ACCUMULATE {times} "
                                    f"makes steps of {plural(size * times, 'image')}.")

    def _try_batch(self, size: int) -> nn.Module:
        """Push a batch through a copy of the model, forward and backward, and return the copy."""
        images = torch.zeros(size, *self.loaders.train_shape, device=self.device)
        labels = torch.zeros(size, dtype=torch.int64, device=self.device)
        twin = copy.copy(self)
        twin.model, twin.loss = self._copied()
        twin.model.train()
        with autocast(self.device, self.precision), forms_checked(twin):
            loss = twin.loss(twin.model(images), labels)
        loss.backward()
        return twin.model

    # -- check ---------------------------------------------------------------------------

    def check(self) -> None:
        """Try a step, a save, a load and an evaluation, and say how it went. Writes nothing."""
        self._log_beginning(None)
        with self.explaining():
            refuse_other_images(self)
            words = try_training(self)
        self.warn(self.odd)
        self.log.show(f"check      {words}. All is well; nothing was written.")
        distributed.stop()
