"""The trials of a sweep: which tries belong together, how far they are, and the best of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cvkit.evaluation.metrics import is_part
from cvkit.system.text import plural

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

# What a trial is noted with: which worker trains it, why it failed, that there were enough already.
WORKER, ERROR, DIVERGED, SURPLUS = "worker", "error", "diverged", "surplus"


def original(trial: FrozenTrial) -> int:
    """Return the number of a trial, or of that which it tries again."""
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        number = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if number is None else number


def place_of(study: Study, trial: FrozenTrial) -> int:
    """Return how many trials were begun before one, those that try again not counted."""
    # Some pruners show samplers a part of the trials only.
    trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
    return sum(each.number < original(trial) and original(each) == each.number
               and SURPLUS not in each.user_attrs for each in trials)


@dataclass(frozen=True)
class Progress:
    """The last try of each trial, in their order.

    Attributes:
        trials: by the number of the first try.
        total: how many there are to be.
    """

    trials: dict[int, FrozenTrial]
    total: int

    @classmethod
    def of(cls, study: Study | None, total: int) -> Progress:
        """Return how far a study is."""
        found = {original(trial): trial
                 for trial in (study.get_trials(deepcopy=False) if study else ())
                 if SURPLUS not in trial.user_attrs}
        return cls(dict(sorted(found.items())), total)

    def having(self, *states: str) -> list[FrozenTrial]:
        """Return the trials in one of these states, "complete", "pruned" and so on."""
        return [trial for trial in self.trials.values() if state_of(trial) in states]

    @property
    def is_done(self) -> bool:
        """Whether all are finished."""
        return len(self.having("complete", "pruned", "diverged", "failed")) >= self.total

    @property
    def is_begun(self) -> bool:
        """Whether there is none left to begin."""
        return len(self.trials) >= self.total and not self.having("waiting")

    def in_words(self) -> str:
        """Return "12 of 40 trials: 9 complete, 2 pruned, 1 running"."""
        states = ("complete", "pruned", "diverged", "failed", "running", "waiting")
        counts = {state: len(self.having(state)) for state in states}
        parts = [f"{count} {state}" for state, count in counts.items() if count]
        finished = sum(counts[state] for state in states[:4])
        return (f"{finished} of {plural(self.total, 'trial')} finished"
                + (f": {', '.join(parts)}" if parts else ""))


def state_of(trial: FrozenTrial) -> str:
    """Return what became of a trial: complete, pruned, diverged, failed, running or waiting."""
    if DIVERGED in trial.user_attrs and trial.state.is_finished():
        return "diverged"
    return {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())


def best_of(study: Study, progress: Progress) -> FrozenTrial | None:
    """Return the best of the trials that are complete, or None."""
    complete = progress.having("complete")
    choose = min if study.direction.name == "MINIMIZE" else max
    return choose(complete, key=lambda trial: trial.value or 0.0) if complete else None


def shown(name: str, value: float | None) -> str:
    """Return the value of a metric in words."""
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" if is_part(name) else f"{value:.4f}"


def retry(study: Study, trial: FrozenTrial) -> None:
    """Let a trial that was interrupted be tried again, with the same values."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback()(study, trial)
