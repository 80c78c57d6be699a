"""The training loop: epochs of steps, each evaluated, saved and reported."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cvkit.data.loaders import BatchLoader
from cvkit.errors import DataError, DivergenceError, RunError
from cvkit.evaluation.metrics import build_metrics
from cvkit.evaluation.monitor import Monitor
from cvkit.evaluation.predict import predict
from cvkit.runs.checkpoint import Checkpoint, moment_of
from cvkit.runs.experiment import Experiment, note_trained
from cvkit.runs.folder import Run
from cvkit.runs.predictions import Predictions
from cvkit.system import distributed
from cvkit.system.log import ProgressBar
from cvkit.system.saving import load_weights
from cvkit.system.seeds import seed_epoch
from cvkit.training.failures import divergence, explaining
from cvkit.training.losses import weight_of
from cvkit.training.resume import CheckpointInterval, checkpoint_of, is_finished
from cvkit.training.signals import Interrupted, StopSignals
from cvkit.training.state import TrainingState
from cvkit.training.step import train_step

# At most so many learning rates of an epoch are noted.
_RATES_PER_EPOCH = 100


class Trainer:
    """Trains a state to the last epoch of its config, from wherever it is.

    Args:
        state: what is trained; what it has reached is all in it.
        parts: the data, and the loaders that make batches of them.
        monitor: which value is followed.
        run: where checkpoints and metrics are kept; None in all processes but the first.
        reporters: are told how it goes, see `cvkit.reporting.reporter`; only with a run.
    """

    def __init__(self, state: TrainingState, parts: Experiment, monitor: Monitor,
                 run: Run | None = None, reporters: Sequence[Any] = ()):
        self.state, self.config, self.parts = state, parts.config, parts
        self.data, self.loaders, self.monitor = parts.data, parts.loaders, monitor
        self.run, self.reporters = run, reporters
        self._best: Checkpoint | None = None
        self._has_begun = False
        self.signals = StopSignals()
        self.interval = CheckpointInterval(self.config.TRAIN.CHECKPOINT_EVERY)
        # Weights can be saved between the steps of the optimizer, not within one.
        self.is_between_steps, self.saved = True, ""

    def train(self) -> Predictions:
        """Train to the end; return the predictions of the test images, which the run keeps.

        Raises:
            UserError: the loss is no longer finite, a file cannot be read, memory runs out, …
            Interrupted: a signal asked to stop; all is saved.
        """
        if self._has_begun or is_finished(self.config, self.state.epoch, self.state.best):
            raise RunError("this trainer has nothing left to train", hint="Build another one.")
        self._has_begun, has_ended = True, False
        try:
            self._report("begin")
            # Once the signals are let go, SIGTERM ends the process again.
            with explaining(self.state, self.loaders), self.signals:
                while not is_finished(self.config, self.state.epoch, self.state.best):
                    train_values = self.train_epoch()
                    predictions, values = self.evaluate()
                    self.finish_epoch(predictions, train_values, values)
                predictions = self.final_predictions(predictions)
            distributed.stop()
            if self.run is not None:
                self.run.keep_predictions(predictions)
            has_ended = True
            self._report("end", self.run)
            return predictions
        except BaseException as error:
            # Of an image file that is gone; each of several processes would have to know.
            if isinstance(error, DataError) and self.is_between_steps and distributed.size() == 1:
                self._save_if_changed()
            if not has_ended:
                self._report("stopped", error)
            raise
        finally:
            note_trained(self.state.model)
            self.loaders.close()

    def train_epoch(self) -> dict[str, float]:
        """Train on the images of an epoch; return loss and accuracy as means over those images.

        In an epoch that was resumed, on those that it had not come to.
        """
        state, loader, progress = self.state, self.loaders.train, self.state.progress
        seed_epoch(self.config.SEED, state.epoch + 1, self.config.DETERMINISTIC)
        progress.begin(state.schedule.rate)
        begun = progress.batches
        loader.set_epoch(state.epoch, begun)
        state.train_mode()
        every = math.ceil(loader.plan.steps / _RATES_PER_EPOCH)
        header = f"{self.place}  lr {state.schedule.rate:.4g}"
        with ProgressBar("Train", len(loader), begun, place=self.place, header=header) as bar:
            for batch in loader:
                if batch.ends_step and state.schedule.steps % every == 0:
                    progress.rates.append((state.schedule.steps, state.schedule.rate))
                self.is_between_steps = False
                loss, logits = train_step(state, batch)
                counted = slice(batch.count)
                progress.loss.update(loss, batch.count,
                                     weight_of(state.loss, batch.targets[counted]))
                progress.accuracy.update(logits[counted], batch.labels[counted])
                # Twice a second, as each look waits for a GPU's work.
                is_due = bar.step()
                if is_due or state.device.type == "cpu":
                    bad = progress.loss.first_non_finite()
                    if bad is not None:
                        raise self.divergence("loss is", begun + bad + 1)
                if is_due:
                    bar.update(progress.loss.compute(), progress.accuracy.compute()["accuracy"])
                if batch.ends_step:
                    progress.batches, self.is_between_steps = batch.number + 1, True
                    self.save_or_stop()
        progress.stop_clock()
        # The loss says nothing of the weights that the very last step made.
        if not state.is_finite():
            raise self.divergence("weights are", progress.batches)
        return {"loss": progress.loss.everywhere().compute(),
                **progress.accuracy.everywhere().compute()}

    def evaluate(self) -> tuple[Predictions, dict[str, float]]:
        """Return what the evaluated model says of the monitored split, and its values by name.

        Without TTA, which would take as long as part of the training, epoch by epoch.
        """
        state = self.state
        averages = [] if state.ema is None else [state.ema.model]
        distributed.broadcast_buffers(state.model, *averages, state.loss)
        with self._saved_if_stopped():
            return self._predict(self.loaders.monitored, state.epoch + 1, self.place,
                                 self.stop_if_asked, has_views=False)

    def _predict(self, loader: BatchLoader, epoch: int, place: str = "",
                 check: Callable[[], None] | None = None,
                 has_views: bool = True) -> tuple[Predictions, dict[str, float]]:
        state, classes = self.state, self.data.classes
        with explaining(state, self.loaders, is_evaluating=True):
            return predict(state.evaluated_model, loader, state.loss,
                           build_metrics(self.config.METRICS, classes), classes, state.precision,
                           epoch, ProgressBar("Test", len(loader), place=place), check, has_views)

    def finish_epoch(self, predictions: Predictions, train_values: dict[str, float],
                     values: dict[str, float]) -> None:
        """Count the epoch, keep it, and report it."""
        state, split, progress = self.state, self.data.monitored, self.state.progress
        epoch = state.epoch + 1
        is_best = self.monitor.is_better(values, state.best, epoch)
        best = {"epoch": epoch, **values} if is_best else state.best
        if is_finished(self.config, epoch, best) and not math.isfinite(values["loss"]):
            raise self.divergence(f"{split} loss is", progress.batches)
        state.schedule.after_epoch(values["loss"], values["accuracy"])
        state.epoch, state.best = epoch, best
        state.values, state.predictions = values, predictions
        progress.finish()
        record = {"epoch": epoch, "lr": progress.rate, "seconds": round(progress.seconds, 3),
                  "images_per_second": round(
                      self.loaders.train.plan.count / progress.seconds, 1),
                  **{f"train/{name}": value for name, value in train_values.items()},
                  **{f"{split}/{name}": value for name, value in values.items()},
                  "lower_is_better": self.monitor.lower, "rates": progress.rates,
                  **_multipliers(state)}
        state.left_out |= self.loaders.left_out()
        if self.run is not None:
            self.run.add_metrics(record)
        self.save()
        # After last.pt, from which it can be made again.
        if is_best and self.run is not None:
            self.run.save(checkpoint_of(state, self.parts), "best")
        elif is_best and split == "val" and distributed.is_main():
            self._best = copy.deepcopy(checkpoint_of(state, self.parts))
        self._report("epoch", record)

    def final_predictions(self, last: Predictions) -> Predictions:
        """Return those of the model whose results count: the last epoch's, or the best's.

        Args:
            last: of the monitored split, after the last epoch.
        """
        state, has_views = self.state, len(self.loaders.test.views) > 1
        if self.data.monitored == "test":
            return self._predict(self.loaders.test, state.epoch)[0] if has_views else last
        checkpoint = distributed.broadcast_from_main(
            lambda: self.run.checkpoint("best") if self.run else self._best)
        load_weights(state.evaluated_model, checkpoint.model, "best.pt")
        if checkpoint.loss is not None:
            load_weights(state.loss, checkpoint.loss, "best.pt", "loss")
        predictions, _ = self._predict(self.loaders.test, checkpoint.epoch)
        state.left_out |= self.loaders.left_out()
        return predictions

    # -- saving and stopping -----------------------------------------------------------

    def save(self) -> None:
        """Save all that the rest of the training depends on, at the end or inside of an epoch."""
        state, progress = self.state, self.state.progress
        saved = state.state_dict()
        if progress.batches:
            if progress.loss.first_non_finite() is not None:
                raise self.divergence("loss is", progress.batches)
            if not state.is_finite():
                raise self.divergence("weights are", progress.batches)
        if self.run is not None:
            self.run.save(checkpoint_of(state, self.parts, saved))
        self.saved = moment_of(state.epoch, progress.batches)
        self.interval.restart()

    def save_or_stop(self) -> None:
        """Save inside an epoch, if it is time to; stop, if that was asked for."""
        if distributed.any_rank(self.interval.is_due(self.state.schedule.steps)):
            self.save()
        with self._saved_if_stopped():
            self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Stop, if a signal asked for it, in whichever process."""
        if distributed.any_rank(bool(self.signals.received)):
            raise Interrupted(self.signals.received or signal.SIGTERM)

    @contextlib.contextmanager
    def _saved_if_stopped(self) -> Iterator[None]:
        try:
            yield
        except Interrupted:
            self._save_if_changed()
            raise

    def _save_if_changed(self) -> None:
        if self.saved != moment_of(self.state.epoch, self.state.progress.batches):
            self.save()

    def divergence(self, what: str, batch: int) -> DivergenceError:
        """Return the error that says what is no longer finite, after which batch."""
        return divergence(self.state, what, batch, len(self.loaders.train), self.saved)

    # -- reporting ---------------------------------------------------------------------

    @property
    def place(self) -> str:
        """Which epoch of how many is under way."""
        return f"Epoch {self.state.epoch + 1}/{self.config.TRAIN.EPOCHS}"

    def _report(self, call: str, *arguments: Any) -> None:
        """Call every reporter; an error of one keeps no other from it."""
        errors = []
        for reporter in self.reporters:
            try:
                getattr(reporter, call)(self.state, *arguments)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


def _multipliers(state: TrainingState) -> dict[str, dict[str, float]]:
    """Return what the rate of each group of parameters is multiplied by, where they differ.

    That is 0 while all of it is frozen.
    """
    groups = state.optimizer.param_groups
    return {"lr_mult": {
        group["name"]: group["lr_mult"] * any(each.requires_grad for each in group["params"])
        for group in groups}} if "lr_mult" in groups[0] else {}
