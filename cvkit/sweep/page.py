"""The page of a sweep: what was found, all trials, pictures, and how to train the best again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cvkit.config.dialect import flow
from cvkit.reporting.pages import picture, write_pages
from cvkit.reporting.report_format import Block, Code, Section, Table, Text
from cvkit.sweep.plots import pictures
from cvkit.sweep.space import short, told
from cvkit.sweep.study import MONITORED, Sweep
from cvkit.sweep.trials import (
    Progress,
    best_of,
    original,
    reason_of,
    shown,
    spent_on,
    state_of,
)
from cvkit.system.command import command, quoted
from cvkit.system.text import duration, escape_controls

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

# A page shows so many trials at most, the best first.
_MOST_SHOWN = 200


def write_sweep_page(sweep: Sweep, study: Study) -> Path:
    """Write `sweep.html`, and `README.md` with `images/`, into the sweep's folder.

    Args:
        sweep, study: of which one trial at least is complete.

    Raises:
        RunError: the folder cannot be written.
    """
    progress = Progress.of(study, sweep.trials)
    best = best_of(study, progress)
    assert best is not None
    name = sweep.base.TRAIN.MONITOR
    drawn: list[Block] = []
    for figure in pictures(sweep, study):
        drawn += picture(figure.title.lower().replace(" ", "_"), figure)
    sections = [Section("Result", _result(sweep, study, progress, best)),
                Section("Pictures", drawn),
                Section("Trials", _trials(sweep, study, progress)),
                Section("Sweep", [Code("\n".join(f"{key}: {flow(value)}" for key, value
                                                 in sweep.node.items()
                                                 if key != "STORAGE"), "yaml")])]
    title = f"{sweep.name}: {sweep.measure(study)} {shown(name, best.value)}"
    return write_pages(sweep.folder, "sweep", title, sections)[0]


def train_again(sweep: Sweep, trial: FrozenTrial) -> str:
    """Return the command that trains what a trial was."""
    return f"{command('train')} {quoted(sweep.config_file_of(original(trial)))}"


def _result(sweep: Sweep, study: Study, progress: Progress,
            best: FrozenTrial) -> list[Block]:
    values = sweep.space.decoded(best.params)
    seconds = sum(spent_on(study, trial) or 0.0 for trial in progress.trials.values())
    of = "" if sweep.node.SEEDS == 1 else f", the mean of {sweep.node.SEEDS} seeds"
    watched = "" if study.user_attrs.get(MONITORED) == "val" else (
        " The test images chose it, so it is better on them than on others.")
    return [Text(f"The best is trial {original(best)}, with {told(values)}: "
                 f"{sweep.measure(study)} "
                 f"{shown(sweep.base.TRAIN.MONITOR, best.value)}{of}. {progress.in_words()}, in "
                 f"{duration(seconds)} of work. The best of many is better by chance as well: "
                 f"train it with several seeds before you believe it.{watched}"),
            Code(f"{train_again(sweep, best)} --seeds 3", "bash")]


def _trials(sweep: Sweep, study: Study, progress: Progress) -> list[Block]:
    name, keys = sweep.base.TRAIN.MONITOR, [each.key for each in sweep.space.dimensions]
    sign = 1 if study.direction.name == "MINIMIZE" else -1

    def order(trial: FrozenTrial) -> tuple[bool, float, int]:
        is_complete = state_of(trial) == "complete"
        return not is_complete, sign * (trial.value or 0.0) if is_complete else 0, trial.number

    rows, trials = [], sorted(progress.trials.values(), key=order)
    for trial in trials[:_MOST_SHOWN]:
        values, state = sweep.space.decoded(trial.params), state_of(trial)
        what = {"complete": shown(name, trial.value), "pruned": f"pruned, epoch {trial.last_step}",
                "diverged": f"diverged: {reason_of(trial)}",
                "failed": f"failed: {reason_of(trial)}"}.get(state, state)
        spent = spent_on(study, trial)
        rows.append([str(original(trial)), escape_controls(what),
                     *(short(values[key]) if key in values else "–" for key in keys),
                     "–" if spent is None else duration(spent)])
    more = [] if len(trials) == len(rows) else [
        Text(f"The best {len(rows)} of {len(trials):,} trials.")]
    return [*more, Table(["trial", sweep.measure(study), *keys, "time"], rows)]
