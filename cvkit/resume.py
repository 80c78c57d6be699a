"""Which run a config can go on with, and why not."""

from __future__ import annotations

from typing import Any

from cvkit.config import Config
from cvkit.errors import RunError
from cvkit.registry import SCHEDULERS
from cvkit.run import MAY_CHANGE, Run, find_runs
from cvkit.schedulers import is_to_find, with_rate


def newest_run_of(config: Config) -> Run | None:
    """Return the newest run that can be continued with this config, or None."""
    for folder in reversed(find_runs(config.OUTPUT_DIR, config.name)):
        run = Run(folder)
        if not _changes(as_begun(config, run), run):
            return run
    return None


def as_begun(config: Config, run: Run) -> Config:
    """Return the config with the learning rate that was found when the run began."""
    scheduler = run.config.SCHEDULER
    if is_to_find(config) and scheduler is not None and "max_lr" in scheduler:
        return with_rate(config, scheduler.max_lr)
    return config


def _changes(config: Config, run: Run) -> dict[str, tuple[Any, Any]]:
    """Return the keys, with both values, by which a config would train something else than a run.

    The number of epochs is none of them where the schedule does not depend on it.
    """
    now, then = config.flat(), run.config.flat()
    free = (*MAY_CHANGE, "TRAIN.EARLY_STOP", *(() if is_planned(config) else ("TRAIN.EPOCHS",)))
    return {key: (then.get(key, "not set"), now.get(key, "not set")) for key in {**then, **now}
            if now.get(key) != then.get(key) and not key.startswith(free)}


def is_planned(config: Config) -> bool:
    """Whether the schedule depends on the number of epochs, which then cannot change."""
    return config.SCHEDULER is not None and any(
        SCHEDULERS.asks_for(config.SCHEDULER, fact) for fact in ("total_steps", "epochs", "T_max"))


def refuse_changes(config: Config, run: Run) -> None:
    """Refuse to go on with a config that would have trained something else.

    Raises:
        RunError: names every key that differs.
    """
    changed = _changes(config, run)
    if changed:
        lines = [f"{key}: {then} in the run, {now} now" for key, (then, now) in changed.items()]
        if "TRAIN.EPOCHS" in changed:
            lines.append(f"{config.SCHEDULER.NAME} was planned for the old number")
        raise RunError(f"{run.folder} cannot be resumed with another config: {'; '.join(lines)}",
                       hint=f"Resume with the run's own, python tools/train.py "
                            f"{run.folder / 'config.yaml'} --resume {run.folder}, or start a new "
                            "run without --resume.")
