"""The trials of a sweep: which tries belong together, how far they are, and the best of them.

A trial that is interrupted, or whose worker dies, is tried again by another trial of Optuna's, with
the same values. Which those are is told by rules on what the storage holds, so that it makes no
difference at which moment a worker, or the storage, was lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cvkit.runs.spread import Spread
from cvkit.system.text import plural

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

# What a trial is noted with: which worker trains it; why it failed; that there were enough already;
# that it was stopped on request; the numbers of earlier tries, and how many of them died.
WORKER, ERROR, DIVERGED, SURPLUS = "worker", "error", "diverged", "surplus"
STOPPED, TRIES, DEATHS = "stopped", "tries", "deaths"
# A trial whose worker dies is tried again so often: it may be what the worker dies of.
_RETRIES = 3


def original(trial: FrozenTrial) -> int:
    """Return the number of a trial, or of that which it tries again."""
    return int((trial.user_attrs.get(TRIES) or [trial.number])[0])


def counted(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that count: not those beyond TRIALS, and of equal tries the first.

    Several workers may find at once that there is something to begin, or to try again.
    """
    kept, seen = [], set()
    for trial in trials:
        again = tuple(trial.user_attrs.get(TRIES, ()))
        if SURPLUS not in trial.user_attrs and not (again and again in seen):
            kept.append(trial)
        seen.add(again)
    return kept


def place_of(study: Study, trial: FrozenTrial) -> int:
    """Return how many trials were begun before one, those that try again not counted."""
    first = original(trial)
    # Some pruners show samplers a part of the trials only.
    trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
    return sum(each.number < first and TRIES not in each.user_attrs for each in counted(trials))


def is_interrupted(trial: FrozenTrial) -> bool:
    """Tell whether a try ended without a result, and there is to be another one."""
    notes = {ERROR, DIVERGED, SURPLUS} & set(trial.user_attrs)
    return trial.state.name == "FAIL" and not notes and _deaths(trial) <= _RETRIES


def _deaths(trial: FrozenTrial) -> int:
    return trial.user_attrs.get(DEATHS, 0) + (STOPPED not in trial.user_attrs)


def fail(study: Study, trial: FrozenTrial) -> None:
    """End a try without a result, if it has not ended meanwhile."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    with suppress(UpdateFinishedTrialError, ValueError):
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def try_again(study: Study) -> None:
    """Let the trials that were interrupted wait for another try."""
    from optuna.trial import TrialState, create_trial

    for trial in Progress.of(study, 0).trials.values():
        if is_interrupted(trial):
            tries = [*trial.user_attrs.get(TRIES, ()), trial.number]
            study.add_trial(create_trial(
                state=TrialState.WAITING, params=trial.params, distributions=trial.distributions,
                user_attrs={TRIES: tries, DEATHS: _deaths(trial)}))


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
        trials = counted(study.get_trials(deepcopy=False)) if study else []
        return cls(dict(sorted({original(trial): trial for trial in trials}.items())), total)

    def having(self, *states: str) -> list[FrozenTrial]:
        """Return the trials in one of these states, "complete", "pruned" and so on."""
        return [trial for trial in self.trials.values() if state_of(trial) in states]

    @property
    def is_done(self) -> bool:
        """Whether all are finished."""
        return len(self.having("complete", "pruned", "diverged", "failed")) >= self.total

    @property
    def has_more(self) -> bool:
        """Whether there is one to begin, or to try again."""
        return len(self.trials) < self.total or bool(self.having("waiting"))

    def in_words(self) -> str:
        """Return "12 of 40 trials finished: 9 complete, 2 pruned, 1 diverged, 2 running"."""
        states = ("complete", "pruned", "diverged", "failed", "running", "waiting")
        counts = {state: len(self.having(state)) for state in states}
        parts = [f"{count} {state}" for state, count in counts.items() if count]
        finished = sum(counts[state] for state in states[:4])
        return (f"{finished} of {plural(max(self.total, finished), 'trial')} finished"
                + (f": {', '.join(parts)}" if parts else ""))


def state_of(trial: FrozenTrial) -> str:
    """Return what became of a trial: complete, pruned, diverged, failed, running or waiting."""
    if is_interrupted(trial):
        return "waiting"
    if DIVERGED in trial.user_attrs and trial.state.is_finished():
        return "diverged"
    return {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())


def reason_of(trial: FrozenTrial) -> str:
    """Return why a trial diverged or failed."""
    return trial.user_attrs.get(DIVERGED) or trial.user_attrs.get(
        ERROR, f"its worker died, {_RETRIES + 1} times")


def best_of(study: Study, progress: Progress) -> FrozenTrial | None:
    """Return the best of the trials that are complete, or None."""
    complete = progress.having("complete")
    choose = min if study.direction.name == "MINIMIZE" else max
    return choose(complete, key=lambda trial: trial.value or 0.0) if complete else None


def spent_on(study: Study, trial: FrozenTrial) -> float | None:
    """Return the seconds of a trial and of the tries that it goes on with; None of none so far."""
    before = trial.user_attrs.get(TRIES, ())
    tries = [each for each in study.get_trials(deepcopy=False)
             if each.number in (*before, trial.number)]
    # When a worker died is not known, only when that was found, a day later perhaps.
    known = [each.duration.total_seconds() for each in tries if each.duration and (
        each.state.name != "FAIL" or {STOPPED, ERROR, DIVERGED} & set(each.user_attrs))]
    return sum(known) if known else None


def shown(name: str, value: float | None) -> str:
    """Return the value of a metric in words."""
    return "–" if value is None else Spread.of([value]).in_words(name)[0]
