"""A worker of a sweep: takes one trial after the other, until all are done."""

from __future__ import annotations

import errno
import gc
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvkit.config import Config
from cvkit.config.tree import with_settings
from cvkit.errors import DivergenceError, UserError
from cvkit.reporting.reporter import Reporter
from cvkit.runs.experiment import Experiment
from cvkit.runs.folder import BusyError, Run
from cvkit.runs.metrics_file import read_metrics
from cvkit.session import train
from cvkit.sweep.engine import LATER, patient
from cvkit.sweep.space import told
from cvkit.sweep.study import Sweep
from cvkit.sweep.trials import (
    DIVERGED,
    ERROR,
    STOPPED,
    SURPLUS,
    TRIES,
    WORKER,
    Progress,
    best_of,
    fail,
    original,
    place_of,
    reason_of,
    shown,
    state_of,
    try_again,
)
from cvkit.system.log import LOG, SCREEN, screen
from cvkit.system.text import duration
from cvkit.training.resume import is_finished
from cvkit.training.state import TrainingState

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial, TrialState

# Seconds between two looks at the trials of others.
_WAIT = 2.0
# A disk that is full, may not be written or fails; the next trial would fail as well.
_OF_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
# To look for what a trial left in memory takes a third of a second, so only after longer ones.
_LONG = 20.0


class _LostError(Exception):
    """Another worker took this one for dead, and its trial."""


def work(sweep: Sweep, study: Study, data: Experiment) -> None:
    """Take trials until all are finished, also those that others leave unfinished.

    Args:
        data: whose images are those of all trials.

    Raises:
        KeyboardInterrupt: it was asked to stop; the trial goes on when the sweep does.
    """
    with sweep.working() as name:
        worker = _Worker(sweep, study, data, name)
        while True:
            _keep_trying(lambda: sweep.fail_dead(study, name))
            _keep_trying(lambda: try_again(study))
            progress = _keep_trying(lambda: Progress.of(study, sweep.trials))
            if progress.is_done:
                return
            if progress.has_more:
                worker.take_one()
            else:
                # A trial of a worker that dies meanwhile will be waiting then.
                time.sleep(_WAIT)


class _Worker:
    def __init__(self, sweep: Sweep, study: Study, data: Experiment, name: str):
        self._sweep, self._study, self._data, self._name = sweep, study, data, name

    def take_one(self) -> None:
        """Train the next trial, and say what came out."""
        begun = time.monotonic()
        trial = _keep_trying(lambda: self._study.ask(self._sweep.space.distributions))
        with self._signs_of_life(trial):
            _keep_trying(lambda: trial.set_user_attr(WORKER, self._name))
            frozen = self._frozen(trial)
            if TRIES in frozen.user_attrs:
                others = Progress.of(self._study, 0).trials.get(original(frozen))
                is_surplus = others is None or others.number != trial.number
            else:
                is_surplus = place_of(self._study, frozen) >= self._sweep.trials
            if is_surplus:
                self._note(trial, SURPLUS, True)
                fail(self._study, frozen)
                return
            try:
                state, value = self._outcome(trial, original(frozen))
            except _LostError:
                LOG.info(f"trial {original(frozen):<4} was taken by another worker, as this one "
                         "gave no sign of life", extra=SCREEN)
                return
            self._end(trial, state, value)
        seconds = time.monotonic() - begun
        if seconds > _LONG:
            gc.collect()
        self._tell(self._frozen(trial), seconds)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return _keep_trying(lambda: self._study._storage.get_trial(trial._trial_id))

    @contextmanager
    def _signs_of_life(self, trial: Trial) -> Iterator[None]:
        """Tell a database meanwhile that the trial is alive."""
        beat = getattr(self._sweep.storage, "record_heartbeat", None)
        if beat is None:
            yield
            return
        is_over = threading.Event()

        def go_on() -> None:
            while not is_over.wait(self._sweep.node.HEARTBEAT):
                beat(trial._trial_id)

        # The first one at once: without any, a trial is never taken for dead.
        _keep_trying(lambda: beat(trial._trial_id))
        thread = threading.Thread(target=go_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _note(self, trial: Trial, key: str, value: Any) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            _keep_trying(lambda: trial.set_user_attr(key, value))
        except UpdateFinishedTrialError:
            raise _LostError from None

    def _outcome(self, trial: Trial, number: int) -> tuple[TrialState, float | None]:
        """Train a trial; return how it ended, and the value that is searched for."""
        import optuna
        from optuna.trial import TrialState

        try:
            value = self._train(trial, self._sweep.folder_of(number))
        except optuna.TrialPruned:
            return TrialState.PRUNED, None
        except DivergenceError as error:
            self._note(trial, DIVERGED, error.problem)
            # So that samplers know of it as a bad one; they pass over those that failed.
            return TrialState.PRUNED, None
        except BusyError:
            # What trains there was taken for dead, and is not.
            return TrialState.FAIL, None
        except (UserError, KeyboardInterrupt) as error:
            is_of_machine = getattr(error.__cause__, "errno", None) in _OF_MACHINE
            if isinstance(error, KeyboardInterrupt) or is_of_machine:
                # Not the trial's fault: it is tried again when the sweep goes on.
                with suppress(_LostError):
                    self._note(trial, STOPPED, True)
                self._end(trial, TrialState.FAIL, None)
                raise
            self._note(trial, ERROR, " ".join(str(error).split()))
            return TrialState.FAIL, None
        if not math.isfinite(value):
            self._note(trial, ERROR, f"its {self._sweep.base.TRAIN.MONITOR} is {value}")
            return TrialState.FAIL, None
        return TrialState.COMPLETE, value

    def _end(self, trial: Trial, state: TrialState, value: float | None) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        with suppress(UpdateFinishedTrialError, ValueError):
            _keep_trying(lambda: self._study.tell(trial.number, value, state,
                                                  skip_if_finished=True))

    def _train(self, trial: Trial, folder: Path) -> float:
        """Train a trial; return the value that is searched for."""
        config = self._sweep.config(self._sweep.space.decoded(trial.params))
        seeds = self._sweep.node.SEEDS
        if seeds == 1:
            return value_of(self._run(config, folder, trial))
        values = []
        for seed in range(config.SEED, config.SEED + seeds):
            # Trials are told from each other by their first seed.
            watched = trial if seed == config.SEED else None
            values.append(value_of(self._run(with_settings(config, {"SEED": seed}),
                                             folder / f"seed_{seed}", watched)))
        return statistics.fmean(values)

    def _run(self, config: Config, folder: Path, trial: Trial | None) -> Run:
        """Train one run, to its end if it was begun."""
        watchers = [] if trial is None else [_Watcher(trial, config, folder)]
        end = time.monotonic() + LATER
        while True:
            begun = Run(folder) if (folder / "config.yaml").is_file() else None
            is_begun = begun is not None and begun.has_checkpoint
            try:
                with screen.muted():
                    run = train(config, begun if begun and is_begun else False,
                                parts_for(config, self._data), folder, watchers)
            except BusyError:
                if time.monotonic() > end:
                    raise
                time.sleep(_WAIT)
            else:
                assert run is not None
                return run

    def _tell(self, trial: FrozenTrial, seconds: float) -> None:
        name, state = self._sweep.base.TRAIN.MONITOR, state_of(trial)
        progress = _keep_trying(lambda: Progress.of(self._study, self._sweep.trials))
        result = {"complete": lambda: f"{name} {shown(name, trial.value)}",
                  "pruned": lambda: f"pruned after epoch {trial.last_step}",
                  "diverged": lambda: f"diverged: {reason_of(trial)}",
                  "failed": lambda: f"failed: {reason_of(trial)}"}.get(state, lambda: state)()
        best = best_of(self._study, progress)
        words = f"; best {shown(name, best.value)} of trial {original(best)}" if best else ""
        LOG.info(f"trial {original(trial):<4} {result}  "
                 f"{told(self._sweep.space.decoded(trial.params))}  {duration(seconds)}{words}",
                 extra=SCREEN)


class _Watcher(Reporter):
    """Tells Optuna the value of each epoch, and stops the training if that is hopeless."""

    def __init__(self, trial: Trial, config: Config, folder: Path):
        self._trial, self._config, self._folder = trial, config, folder

    def begin(self, state: TrainingState) -> None:
        # A run that goes on had reached some of it.
        for values in read_metrics(self._folder):
            self._report(values)

    def epoch(self, state: TrainingState, values: dict[str, Any]) -> None:
        import optuna

        self._report(values)
        # After its last epoch there is nothing to save, and its result is known.
        if not is_finished(self._config, state.epoch, state.best) and _keep_trying(
                self._trial.should_prune):
            raise optuna.TrialPruned

    def _report(self, values: dict[str, Any]) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        split = "val" if "val/loss" in values else "test"
        try:
            _keep_trying(lambda: self._trial.report(
                values[f"{split}/{self._config.TRAIN.MONITOR}"], values["epoch"]))
        except UpdateFinishedTrialError:
            raise _LostError from None


def parts_for(config: Config, data: Experiment) -> Experiment:
    """Return what a trial trains on, with the images that are there if they are the same."""
    parts = Experiment(config)
    if config.DATA.DATASET == data.config.DATA.DATASET:
        parts.data, parts.built_data = data.data, data.built_data
    return parts


def value_of(run: Run) -> float:
    """Return what a run reached by TRAIN.MONITOR.

    In its best epoch on validation images; without any in its last one, as its results are.
    """
    epoch = run.best if run.monitored == "val" else run.metrics[-1]
    return float(epoch[f"{run.monitored}/{run.config.TRAIN.MONITOR}"])


def _keep_trying(action: Callable[[], Any]) -> Any:
    """Return what an action returns that asks the storage, through an interruption of that."""
    from optuna.exceptions import StorageInternalError

    return patient(action, StorageInternalError, "the storage of the trials")
