"""A worker of a sweep: takes one trial after the other, until all are done."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvkit.config import Config
from cvkit.errors import DivergenceError, UserError
from cvkit.repeat import with_settings
from cvkit.reporting.reporter import Reporter
from cvkit.runs.experiment import Experiment
from cvkit.runs.folder import Run
from cvkit.runs.metrics_file import read_metrics
from cvkit.session import train
from cvkit.sweep.engine import patient
from cvkit.sweep.space import told
from cvkit.sweep.study import Sweep
from cvkit.sweep.trials import (
    DIVERGED,
    ERROR,
    SURPLUS,
    WORKER,
    Progress,
    best_of,
    original,
    place_of,
    retry,
    shown,
    state_of,
)
from cvkit.system.log import LOG, SCREEN, screen
from cvkit.system.text import duration
from cvkit.training.state import TrainingState

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

# Seconds between two looks at the trials of others.
_WAIT = 2.0


# To look for what a trial left in memory takes a third of a second, so only after longer ones.
_LONG = 20.0


class _EnoughError(Exception):
    """There are as many trials as are to be."""


def work(sweep: Sweep, study: Study, data: Experiment) -> None:
    """Take trials until all are finished, also those that others leave unfinished.

    Args:
        data: whose images are those of all trials that set no other ones.

    Raises:
        KeyboardInterrupt: it was asked to stop; the trial goes on when the sweep does.
    """
    import optuna

    with sweep.working() as name:
        worker = _Worker(sweep, study, data, name)
        while True:
            _keep_trying(lambda: sweep.retry_dead(study, name))
            progress = _keep_trying(lambda: Progress.of(study, sweep.trials))
            if progress.is_done:
                return
            if progress.is_begun:
                # A trial of a worker that dies meanwhile will be waiting then.
                time.sleep(_WAIT)
                if sweep.node.STORAGE:
                    _keep_trying(lambda: optuna.storages.fail_stale_trials(study))
                continue
            worker.take_one()


class _Worker:
    def __init__(self, sweep: Sweep, study: Study, data: Experiment, name: str):
        self._sweep, self._study, self._data, self._name = sweep, study, data, name
        self._result: tuple[int, float] | None = None
        self._taken: Trial | None = None

    def take_one(self) -> None:
        """Train the next trial, and say what came out."""
        from optuna.exceptions import StorageInternalError
        from optuna.trial import TrialState

        self._result, self._taken = None, None
        begun = time.monotonic()
        try:
            self._study.optimize(self._train, n_trials=1, catch=(UserError, _EnoughError))
        except KeyboardInterrupt:
            if self._taken is not None:
                retry(self._study, self._frozen(self._taken.number))
            raise
        except StorageInternalError as error:
            # What was trained by then is not lost.
            LOG.info(f"note       {str(error.__cause__ or error).splitlines()[0]}", extra=SCREEN)
            if self._result is not None:
                number, value = self._result
                _keep_trying(lambda: self._study.tell(number, value, skip_if_finished=True))
            elif self._taken is not None:
                number = self._taken.number
                _keep_trying(lambda: self._study.tell(number, state=TrialState.FAIL,
                                                      skip_if_finished=True))
                _keep_trying(lambda: retry(self._study, self._frozen(number)))
        if self._taken is not None:
            if time.monotonic() - begun > _LONG:
                gc.collect()
            number = self._taken.number
            self._tell(_keep_trying(lambda: self._frozen(number)), time.monotonic() - begun)

    def _frozen(self, number: int) -> FrozenTrial:
        return next(trial for trial in self._study.get_trials(deepcopy=False)
                    if trial.number == number)

    def _train(self, trial: Trial) -> float:
        """Train a trial; return the value that is searched for."""
        frozen = self._frozen(trial.number)
        if original(frozen) == trial.number and place_of(
                self._study, frozen) >= self._sweep.trials:
            trial.set_user_attr(SURPLUS, True)
            raise _EnoughError
        self._taken = trial
        trial.set_user_attr(WORKER, self._name)
        values = self._sweep.space.suggest(trial)
        config = self._sweep.config(values)
        folder = self._sweep.folder_of(original(frozen))
        seeds = self._sweep.node.SEEDS
        try:
            found = []
            for number in range(seeds):
                each = config if seeds == 1 else with_settings(
                    config, {"SEED": config.SEED + number})
                place = folder if seeds == 1 else folder / f"seed_{config.SEED + number}"
                # Trials are told from each other by their first seed.
                watchers = [_Watcher(trial, each.TRAIN.MONITOR, place)] if number == 0 else []
                run = Run(place) if (place / "config.yaml").is_file() else None
                is_begun = run is not None and run.has_checkpoint
                with screen.muted():
                    run = train(each, run if is_begun and run else False,
                                parts_for(each, self._data), place, watchers)
                assert run is not None
                found.append(value_of(run))
        except DivergenceError as error:
            import optuna

            trial.set_user_attr(DIVERGED, error.problem)
            # So that samplers know of it as a bad one; they pass over those that failed.
            raise optuna.TrialPruned from None
        except UserError as error:
            trial.set_user_attr(ERROR, " ".join(str(error).split()))
            raise
        self._result = trial.number, statistics.fmean(found)
        return self._result[1]

    def _tell(self, trial: FrozenTrial, seconds: float) -> None:
        name, state = self._sweep.base.TRAIN.MONITOR, state_of(trial)
        values = told(self._sweep.space.decoded(trial.params))
        progress = _keep_trying(lambda: Progress.of(self._study, self._sweep.trials))
        result = {"complete": lambda: f"{name} {shown(name, trial.value)}",
                  "pruned": lambda: f"pruned after epoch {trial.last_step}",
                  "diverged": lambda: f"diverged: {trial.user_attrs[DIVERGED]}",
                  "failed": lambda: f"failed: {trial.user_attrs.get(ERROR, 'see its train.log')}",
                  }.get(state, lambda: state)()
        best = best_of(self._study, progress)
        words = f"; best {shown(name, best.value)} of trial {original(best)}" if best else ""
        LOG.info(f"trial {original(trial):<4} {result}  {values}  {duration(seconds)}{words}",
                 extra=SCREEN)


class _Watcher(Reporter):
    """Tells Optuna the value of each epoch, and stops the training if that is hopeless."""

    def __init__(self, trial: Trial, monitor: str, folder: Path):
        self._trial, self._monitor, self._folder = trial, monitor, folder

    def begin(self, state: TrainingState) -> None:
        # A run that goes on had reached some of it.
        for values in read_metrics(self._folder):
            self._report(values)

    def epoch(self, state: TrainingState, values: dict[str, Any]) -> None:
        import optuna

        self._report(values)
        if _keep_trying(self._trial.should_prune):
            raise optuna.TrialPruned

    def _report(self, values: dict[str, Any]) -> None:
        split = "val" if "val/loss" in values else "test"
        _keep_trying(lambda: self._trial.report(
            values[f"{split}/{self._monitor}"], values["epoch"]))


def parts_for(config: Config, data: Experiment) -> Experiment:
    """Return what a trial trains on, with the images that are there if they are the same."""
    parts = Experiment(config)
    names = ("DATASET", "FOLDS", "FOLD", "FOLD_REPEAT", "LIMIT", "SPLIT_SEED", "VAL_FRACTION")
    if all(config.DATA[name] == data.config.DATA[name] for name in names):
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
