"""Training, top to bottom: `train` → `Trainer.train` → `train_epoch` → `train_step`."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cvkit import __version__
from cvkit.checkpoint import Checkpoint, load_weights
from cvkit.config import Config, check_components
from cvkit.data.loaders import Batch
from cvkit.ema import EMA
from cvkit.errors import CheckpointError, ConfigError, RunError, UserError, suggest
from cvkit.evaluation import build_metrics, evaluate, predict
from cvkit.experiment import Experiment
from cvkit.hardware import autocast, compile_model, describe, environment, seed_everything
from cvkit.log import Log, Progress
from cvkit.losses import build_loss
from cvkit.lr_finder import RULE, RangeTest, range_test
from cvkit.metrics import Accuracy, Mean, is_lower_better
from cvkit.models import count_parameters
from cvkit.optimizers import build_optimizer
from cvkit.registry import WRITERS
from cvkit.requirements import check_requirements, enforce, summary
from cvkit.resume import as_begun, is_planned, newest_run_of, refuse_changes
from cvkit.run import Predictions, Run, duration, open_run, test_line
from cvkit.schedulers import Schedule, build_schedule, is_to_find, with_rate
from cvkit.writers import JsonLines

_RATES_PER_EPOCH = 100  # at most so many learning rates of an epoch are noted


def train(config: Config, resume: bool | str | Path = False) -> Run:
    """Train what a config describes and return the finished run.

    Args:
        config: from `load_config`.
        resume: True continues the newest run of this config, a path that run. "auto" continues
            the newest that was begun with the same settings, or begins one if there is none;
            one that is finished is returned as it is.

    Raises:
        UserError: something in the config, the data or the run to resume is wrong, or the loss
            stopped being finite.
    """
    run = None
    if resume == "auto":
        check_components(config)
        run = newest_run_of(config)
    elif resume:
        run = open_run(None if resume is True else resume, config.OUTPUT_DIR,
                       config.name if resume is True else "*")
    return Trainer(config).train(run)


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
        self.data, self.device, self.precision = parts.data, parts.device, parts.precision
        self.loaders, self.model = parts.loaders, parts.model
        self.forward = self.model  # or that, compiled
        if config.TRAIN.COMPILE:
            self.forward = compile_model(self.model, self.device, config.TRAIN.where("COMPILE"))
        self.classes = self.data.classes
        self.loss = build_loss(config.LOSS, len(self.classes),
                               takes_shares=bool(self.loaders.train.pipeline.mixing))
        self.loss.to(self.device)
        self.steps_per_epoch = math.ceil(len(self.loaders.train) / config.TRAIN.ACCUMULATE)
        self._build_optimizer_and_schedule()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.ema = EMA(self.model, config.TRAIN.EMA) if config.TRAIN.EMA > 0 else None
        self.epoch = 0  # finished ones
        self.best: dict[str, float] | None = None  # the metrics of the best epoch
        self.rates: list[tuple[int, float]] = []  # of this epoch: (optimizer steps before, rate)
        self._check_monitor()
        self.requirements = check_requirements(config, parts)
        enforce(self.requirements, config)

    def _build_optimizer_and_schedule(self) -> None:
        config = self.config
        self.optimizer = build_optimizer(config.OPTIMIZER, self.model,
                                         config.TRAIN.DECAY_NORM_AND_BIAS)
        if is_to_find(config):  # until it is found, when training begins
            config = with_rate(config, config.OPTIMIZER.lr)
        self.schedule = build_schedule(config.SCHEDULER, self.optimizer, config.TRAIN.EPOCHS,
                                       self.steps_per_epoch, config.TRAIN.WARMUP_EPOCHS)

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
        twin.forward = twin.model = copy.deepcopy(self.model)
        twin.ema = None
        twin.optimizer = build_optimizer(self.config.OPTIMIZER, twin.model,
                                         self.config.TRAIN.DECAY_NORM_AND_BIAS)
        twin.schedule = Schedule(twin.optimizer)
        twin.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        twin.model.train()
        accumulate = self.config.TRAIN.ACCUMULATE
        bar = tqdm(total=steps, desc="Finding the learning rate", file=sys.stdout, leave=False,
                   disable=not self.log.is_live)

        def batches() -> Iterator[Batch]:
            for epoch in itertools.count():
                self.loaders.train.set_epoch(epoch)
                yield from self.loaders.train

        def step(rate: float) -> float:
            for group in twin.optimizer.param_groups:
                group["lr"] = rate
            losses = [float(twin.train_step(next(source), 1 / accumulate, number == accumulate)[0])
                      for number in range(1, accumulate + 1)]
            bar.update()
            return sum(losses) / accumulate

        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), contextlib.closing(batches()) as source:
            seed_everything(self.config.SEED, deterministic=self.config.DETERMINISTIC)
            try:
                return range_test(step, lowest, highest, steps)
            finally:
                bar.close()

    @property
    def evaluated_model(self) -> nn.Module:
        """The model whose results count: the averaged weights where there are some."""
        return self.model if self.ema is None else self.ema.model

    def _check_monitor(self) -> None:
        classes = torch.arange(len(self.classes))
        values = {"loss": 0.0}
        for metric in build_metrics(self.config.METRICS, self.classes):
            metric.update(torch.zeros(len(classes), len(classes)), classes)
            values |= metric.compute()
        if self.config.TRAIN.MONITOR not in values:
            raise ConfigError(f"no metric named {self.config.TRAIN.MONITOR!r}",
                              where=self.config.TRAIN.where("MONITOR"),
                              hint=suggest(self.config.TRAIN.MONITOR, values))

    # -- the whole ---------------------------------------------------------------------

    def train(self, run: Run | None = None) -> Run:
        """Train to the last epoch, evaluating after each; return the run.

        Args:
            run: one to continue; None makes a new run folder.
        """
        if run is not None:
            self._load(run)
            if self._is_finished():
                self._say_finished(run)
                return run
            run.set_config(self.config)
        self._log_beginning(run)
        found = None
        if is_to_find(self.config):
            self.log.show("finding    max_lr, on a copy of the model")
            found = self.find_lr()
            self.config = with_rate(self.config, found.suggestion)
            self._build_optimizer_and_schedule()
            self.log.both(f"found      max_lr {found.suggestion:g}: {RULE}")
        run = run or Run.create(self.config, environment(self.device))
        if found is not None:
            run.keep_range_test(found)
        run.data = self.data  # or what looks at the results would read it again
        self.log.attach(run.folder)
        self.log.show(f"run        {run.folder}")
        writers = [JsonLines(str(run.folder))]
        writers += [WRITERS.build(node, folder=str(run.folder), config=self.config)
                    for node in self.config.WRITERS if node.NAME != "jsonl"]
        try:
            while not self._is_finished():
                predictions = self._train_and_evaluate(run, writers)
            self._finish(run, predictions)
            for writer in writers:
                writer.finish(run)
        except UserError as error:
            self.log.write(f"Stopped: {error}")
            raise
        except KeyboardInterrupt:
            self.log.both(f"Interrupted after epoch {self.epoch}. Go on: "
                          f"{self._resume_command(run)}" if self.epoch else
                          "Interrupted in the first epoch: there is nothing to resume yet")
            raise
        finally:
            for writer in writers:
                writer.close()
        return run

    def _say_finished(self, run: Run) -> None:
        if self.epoch < self.config.TRAIN.EPOCHS:
            longer = f"raise TRAIN.EARLY_STOP, which ended it at {self.config.TRAIN.EARLY_STOP}"
        elif is_planned(self.config):
            longer = (f"start a new run: {self.config.SCHEDULER.NAME} planned this one for "
                      "its number of epochs")
        else:
            longer = "raise TRAIN.EPOCHS"
        self.log.show(f"{run.folder} is finished: {self.epoch} epochs. To train longer, {longer}.")
        path = run.folder / "predictions.npz"
        if not path.is_file() or run.predictions.epoch != run.checkpoint().epoch:
            evaluate(run)  # it was interrupted at its very end

    def _is_finished(self) -> bool:
        patience = self.config.TRAIN.EARLY_STOP
        waited = self.epoch - self.best["epoch"] if self.best else 0
        return self.epoch >= self.config.TRAIN.EPOCHS or 0 < patience <= waited

    def _train_and_evaluate(self, run: Run, writers: list[Any]) -> Predictions:
        """One epoch: train, evaluate, log, save."""
        epochs, monitored = self.config.TRAIN.EPOCHS, self.data.monitored
        if self.log.is_live:
            self.log.show(f"Epoch {self.epoch + 1}/{epochs}  lr {self.schedule.rate:.4g}")
        rate, started = self.schedule.rate, time.monotonic()
        seed_everything(self.config.SEED, self.epoch + 1, deterministic=self.config.DETERMINISTIC)
        train_values = self.train_epoch()
        seconds = time.monotonic() - started
        predictions, values = predict(
            self.evaluated_model, self.loaders.monitored, self.loss,
            build_metrics(self.config.METRICS, self.classes), self.classes, self.precision,
            self.epoch + 1, Progress("Test", len(self.loaders.monitored), self.log.is_live))
        self.schedule.after_epoch(values["loss"], values["accuracy"])
        self.epoch += 1
        is_best = self._is_better(values)
        record = {"epoch": self.epoch, "lr": rate, "seconds": round(seconds, 3),
                  "images_per_second": round(len(self.data.train) / seconds, 1),
                  **{f"train/{name}": value for name, value in train_values.items()},
                  **{f"{monitored}/{name}": value for name, value in values.items()},
                  "rates": self.rates}
        if is_best:
            self.best = {"epoch": self.epoch, **values}
        for writer in writers:
            writer.write(self.epoch, record)
        if is_best:
            self._checkpoint(values).save(run.folder / "checkpoints" / "best.pt")
        last = self._checkpoint(values, self._training_state())
        last.save(run.folder / "checkpoints" / "last.pt")

        def words(values: dict[str, float]) -> str:
            return f"loss {values['loss']:.4f} acc {100 * values['accuracy']:6.2f}%"

        line = (f"Epoch {self.epoch:{len(str(epochs))}}/{epochs}  train {words(train_values)}  "
                f"{monitored} {words(values)}  lr {rate:<9.4g} {seconds:6.1f} s"
                f"{'  best' if is_best else ''}")
        self.log.write(line)
        self.log.show(line if not self.log.is_live else test_line(
            values["loss"], predictions.correct, len(predictions.true)).replace(
                "Test set", "Test set" if monitored == "test" else "Validation set"))
        return predictions

    def train_epoch(self) -> dict[str, float]:
        """Train on every image once; return loss and accuracy as means over those images."""
        loader, accumulate = self.loaders.train, self.config.TRAIN.ACCUMULATE
        loader.set_epoch(self.epoch)
        self.model.train()
        mean_loss, accuracy = Mean(), Accuracy()
        self.rates, every = [], math.ceil(self.steps_per_epoch / _RATES_PER_EPOCH)
        progress = Progress("Train", len(loader), self.log.is_live)
        sizes = loader.batch_sizes
        for number, batch in enumerate(loader):
            start = number - number % accumulate
            group = sizes[start:start + accumulate]
            is_step = number % accumulate == accumulate - 1 or number == len(sizes) - 1
            if is_step and self.schedule.steps % every == 0:
                self.rates.append((self.schedule.steps, self.schedule.rate))
            loss, logits = self.train_step(batch, len(batch.labels) / sum(group), is_step)
            mean_loss.update(loss, len(batch.labels))
            accuracy.update(logits, batch.labels)
            is_due = progress.step()  # twice a second, for each look waits for a GPU's work
            if is_due or self.device.type == "cpu":
                bad = mean_loss.first_non_finite()
                if bad is not None:
                    progress.close()
                    self._stop_for_non_finite(bad + 1, len(loader))
            if is_due:
                progress.update(mean_loss.compute(), accuracy.compute()["accuracy"])
        progress.close()
        return {"loss": mean_loss.compute(), **accuracy.compute()}

    def train_step(self, batch: Batch, weight: float, is_step: bool) -> tuple[Tensor, Tensor]:
        """Forward and backward; with `is_step`, also change the weights.

        Args:
            batch: on the device.
            weight: the batch's part of the images of this optimizer step; 1 without accumulation.
            is_step: whether this batch completes an optimizer step.

        Returns:
            The loss, a mean over the batch, and the logits (N, C); both detached.
        """
        with autocast(self.device, self.precision):
            logits = self.forward(batch.images)
            loss = self.loss(logits, batch.targets)
        self.scaler.scale(loss * weight).backward()
        if is_step:
            if self.config.TRAIN.CLIP_GRAD_NORM > 0:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), self.config.TRAIN.CLIP_GRAD_NORM)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            self.schedule.after_step()
            if self.ema is not None:
                self.ema.update()
        return loss.detach(), logits.detach()

    def _stop_for_non_finite(self, batch: int, batches: int) -> None:
        saved = f" The weights after epoch {self.epoch} are in last.pt." if self.epoch else ""
        raise RunError(
            f"the loss is no longer finite in epoch {self.epoch + 1}, batch {batch} of {batches}, "
            f"at a learning rate of about {self.schedule.rate:.3g}.{saved}",
            hint="Lower the learning rate, warm up (TRAIN.WARMUP_EPOCHS 1), clip gradients "
                 "(TRAIN.CLIP_GRAD_NORM 1) or compute in full precision (TRAIN.PRECISION fp32).")

    def _is_better(self, values: dict[str, float]) -> bool:
        monitor = self.config.TRAIN.MONITOR
        if self.best is None:
            return True
        if is_lower_better(monitor):
            return values[monitor] < self.best[monitor]
        return values[monitor] > self.best[monitor]

    # -- checkpoints -------------------------------------------------------------------

    def _checkpoint(self, values: dict[str, float],
                    training: dict[str, Any] | None = None) -> Checkpoint:
        return Checkpoint(
            model=self.evaluated_model.state_dict(), config=self.config.dump(),
            classes=list(self.classes), mean=list(self.loaders.mean), std=list(self.loaders.std),
            image_shape=list(self.loaders.image_shape), epoch=self.epoch, metrics=values,
            monitored=self.data.monitored, training=training)

    def _training_state(self) -> dict[str, Any]:
        """Return what, besides the evaluated weights, the next epoch depends on.

        Random numbers are not part of it: each epoch seeds its own from (SEED, epoch).
        """
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict(), "best": self.best,
                "backend": self.loaders.train.backend,
                "ema": None if self.ema is None else {
                    "steps": self.ema.steps, "model": self.model.state_dict()}}

    def _load(self, run: Run) -> None:
        """Take up a run where its last.pt left it."""
        checkpoint = run.checkpoint("last")
        if is_to_find(self.config):
            self.config = as_begun(self.config, run)
            self._build_optimizer_and_schedule()
        refuse_changes(self.config, run)
        if list(self.classes) != checkpoint.classes:
            raise CheckpointError(f"{run.folder} was trained on other classes: "
                                  f"{', '.join(checkpoint.classes)}")
        if (list(self.loaders.mean), list(self.loaders.std)) != (checkpoint.mean, checkpoint.std):
            raise CheckpointError(f"{run.folder} was trained on other images: their mean was "
                                  f"{checkpoint.mean}, now it is {list(self.loaders.mean)}")
        state = checkpoint.training
        backend = state.get("backend", "albumentations")  # which older runs were trained with
        if backend != self.loaders.train.backend:
            raise RunError(f"{run.folder} was trained with DATA.BACKEND {backend}; "
                           f"{self.loaders.train.backend} draws other random numbers",
                           hint=f"Add DATA.BACKEND {backend} to go on as it was.")
        source = str(run.folder / "checkpoints" / "last.pt")
        load_weights(self.evaluated_model, checkpoint.model, source)
        if self.ema is not None:
            self.ema.steps = state["ema"]["steps"]
            load_weights(self.model, state["ema"]["model"], source)
        for saved, group in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups):
            if "fused" in group:  # a matter of the device and of torch, not of what is computed
                saved["fused"] = group["fused"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.best = checkpoint.epoch, state["best"]
        for part in ("model", "_trained"):  # will be others
            vars(run).pop(part, None)
        JsonLines.keep_epochs(run.folder, self.epoch)

    # -- beginning and end ---------------------------------------------------------------

    def _log_beginning(self, run: Run | None) -> None:
        config, data, both = self.config, self.data, self.log.both
        counts = f"{len(data.train):,} train, {len(data.test):,} test"
        if data.val is not None:
            counts = f"{len(data.train):,} train, {len(data.val):,} val, {len(data.test):,} test"
        shape = "×".join(map(str, self.loaders.image_shape))
        both(f"cvkit {__version__}  {config.name}  {time.strftime('%Y-%m-%d %H:%M:%S')}")
        if run is not None:
            both(f"resumed    {run.folder} after epoch {self.epoch}")
        if config.DATA.LIMIT:
            counts += f" (DATA.LIMIT {config.DATA.LIMIT})"
        both(f"data       {config.DATA.DATASET.NAME}: {counts}, {len(data.classes)} classes, "
             f"{shape}")
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
        both(f"model      {config.MODEL.NAME}, {count_parameters(self.model):,} parameters")
        averaged = f", EMA {config.TRAIN.EMA:g} of the weights is tested" if self.ema else ""
        both(f"training   {config.TRAIN.EPOCHS} epochs of {len(self.loaders.train)} batches of "
             f"{config.DATA.BATCH_SIZE}, {config.LOSS.NAME}, {self._words_for_rate()}, "
             f"seed {config.SEED}{averaged}")
        both(f"device     {describe(self.device)}, {self.precision}")
        both(f"input      {self.loaders.input}")
        for demand in self.requirements:
            both(f"required   {demand}")

    def _words_for_rate(self) -> str:
        optimizer, scheduler = self.config.OPTIMIZER, self.config.SCHEDULER
        words = f"{optimizer.NAME} lr {optimizer.lr:g}"
        if scheduler is None:
            return f"{words}, constant"
        if is_to_find(self.config):
            return f"{optimizer.NAME}, {scheduler.NAME} up to a rate to be found"
        if scheduler.get("max_lr", optimizer.lr) != optimizer.lr:
            return f"{optimizer.NAME}, {scheduler.NAME} up to {scheduler.max_lr} (not OPTIMIZER.lr)"
        return f"{words}, {scheduler.NAME}"

    def _finish(self, run: Run, predictions: Predictions) -> None:
        """Write the predictions of the model whose results count, and say where all is."""
        if self.data.monitored == "val":
            checkpoint = run.checkpoint("best")
            load_weights(self.evaluated_model, checkpoint.model, "best.pt")
            predictions, _ = predict(
                self.evaluated_model, self.loaders.test, self.loss, build_metrics([], self.classes),
                self.classes, self.precision, checkpoint.epoch,
                Progress("Test", len(self.loaders.test), self.log.is_live))
        predictions.save(run.folder / "predictions.npz")
        both, epochs = self.log.both, self.epoch
        if epochs < self.config.TRAIN.EPOCHS:
            both(f"Stopped early: no better {self.config.TRAIN.MONITOR} for "
                 f"{self.config.TRAIN.EARLY_STOP} epochs")
        both(test_line(predictions.loss, predictions.correct, len(predictions.true))
             + f" after epoch {predictions.epoch}")
        monitor = self.config.TRAIN.MONITOR
        value = self.best[monitor]
        shown = f"{value:.4f}" if is_lower_better(monitor) else f"{100 * value:.2f}%"
        both(f"Best {self.data.monitored} {monitor}: {shown} in epoch {self.best['epoch']}. "
             f"{epochs} epochs, {duration(run.seconds)} of training")
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

    def _resume_command(self, run: Run) -> str:
        return shlex.join(["python", "tools/train.py", str(run.folder / "config.yaml"), "--resume",
                           str(run.folder)])

    # -- check ---------------------------------------------------------------------------

    def check(self) -> None:
        """Push one batch forward and backward and say how it went. Writes nothing."""
        self._log_beginning(None)
        self.model.train()
        batch = self.loaders.train.first_batch()
        loss, _ = self.train_step(batch, 1.0, is_step=False)
        gradients = [parameter.grad for parameter in self.model.parameters()
                     if parameter.grad is not None]
        norm = float(torch.linalg.vector_norm(torch.stack(
            [torch.linalg.vector_norm(gradient.float()) for gradient in gradients])))
        if not (torch.isfinite(loss) and math.isfinite(norm)):
            raise RunError(f"loss {float(loss)} and gradient norm {norm} of the first batch are "
                           "not finite", hint="Try TRAIN.PRECISION fp32.")
        guess = f"guessing gives ln {len(self.classes)} = {math.log(len(self.classes)):.4f}"
        self.log.show(f"check      one batch of {len(batch.labels)}: loss {float(loss):.4f} "
                      f"({guess}), gradient norm {norm:.3g}. All is well; nothing was written.")
