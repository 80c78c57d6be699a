"""Checkpoints of a training, and going on from one: which run fits a config, and why not."""

from __future__ import annotations

import math
import re
import time
from typing import Any

import torch

from cvkit.config import Config
from cvkit.errors import CheckpointError, RunError, UserError
from cvkit.evaluation.metrics import is_lower_better
from cvkit.evaluation.monitor import Monitor
from cvkit.registry.user_code import edited_since, user_code
from cvkit.runs.checkpoint import Checkpoint
from cvkit.runs.experiment import Experiment, note_trained
from cvkit.runs.finding import find_runs
from cvkit.runs.folder import MAY_CHANGE, Run, is_among
from cvkit.runs.initial_weights import with_named_run
from cvkit.system import distributed
from cvkit.system.command import command
from cvkit.system.log import LOG
from cvkit.system.saving import weights_of
from cvkit.system.text import and_more
from cvkit.training.schedulers import depends_on_length, is_to_find, with_rate
from cvkit.training.state import TrainingState

# What a run may be resumed with to train longer.
LENGTH = ("TRAIN.EPOCHS", "TRAIN.EARLY_STOP")


class CheckpointInterval:
    """When to save inside an epoch.

    Args:
        every: TRAIN.CHECKPOINT_EVERY: "epoch" never does, "500 steps" counts optimizer steps of
            the whole training, "10 minutes" the time since the last saving.
    """

    def __init__(self, every: str):
        # The schema lets nothing else through.
        number, unit = re.findall(r"(\d*) ?([a-z]).*", every)[0]
        self._steps = int(number) if unit == "s" else 0
        self._seconds = 60 * int(number) if unit == "m" else math.inf
        self.restart()

    def restart(self) -> None:
        """Count minutes from now."""
        # By a clock that nobody sets.
        self._saved = time.monotonic()

    def is_due(self, steps: int) -> bool:
        """Whether to save after that many steps of the optimizer."""
        if self._steps:
            return steps % self._steps == 0
        return time.monotonic() - self._saved >= self._seconds


def is_finished(config: Config, epoch: int, best: dict[str, float] | None) -> bool:
    """Tell whether a training ends with an epoch: its last one, or that of TRAIN.EARLY_STOP."""
    waited = epoch - best["epoch"] if best else 0
    return epoch >= config.TRAIN.EPOCHS or 0 < config.TRAIN.EARLY_STOP <= waited


# -- a state as a checkpoint, and back ---------------------------------------------------


def checkpoint_of(state: TrainingState, parts: Experiment,
                  saved: dict[str, Any] | None = None) -> Checkpoint:
    """Return the checkpoint of a state.

    Args:
        parts: which it is trained on.
        saved: what `state.state_dict()` returned, to go on from; without it only the evaluated
            weights are in it.
    """
    data, loaders, training = parts.data, parts.loaders, None
    if saved is not None:
        ema = saved.get("ema")
        training = {"optimizer": saved["optimizer"], "schedule": saved["schedule"],
                    "scaler": saved["scaler"], "best": saved["best"],
                    "backend": loaders.train.backend, "within": saved["progress"],
                    "images": identities(parts), "code": user_code(),
                    "ema": ema and {"steps": ema["steps"], "model": saved["model"]}}
    return Checkpoint(
        model=weights_of(state.evaluated_model), config=parts.config.dump(),
        classes=list(data.classes), mean=list(loaders.mean), std=list(loaders.std),
        image_shape=list(loaders.image_shape), epoch=state.epoch, metrics=state.values,
        monitored=data.monitored, training=training, loss=weights_of(state.loss) or None,
        images=data.facts,
        transform_input=getattr(state.model, "transform_input", None) is True)


def restore(state: TrainingState, checkpoint: Checkpoint) -> None:
    """Take up the training where a checkpoint left it.

    Raises:
        CheckpointError: its state does not fit what the config names.
    """
    training = checkpoint.training or {}
    # In the file, "model" is what was evaluated: the averages, where there are some.
    ema = training.get("ema") or {"steps": 0, "model": checkpoint.model}
    state.load_state_dict({
        **training, "model": ema["model"], "loss": checkpoint.loss,
        "ema": {"steps": ema["steps"], "model": checkpoint.model},
        "progress": training.get("within"), "epoch": checkpoint.epoch,
        "values": checkpoint.metrics})
    # It comes with pretrained weights, and no weight tells.
    models: tuple[Any, ...] = (state.model, state.evaluated_model)
    for model in models if checkpoint.transform_input else ():
        model.transform_input = True


def identities(parts: Experiment) -> dict[str, str]:
    """Return what tells the images that are trained on, and those that are monitored, from others.
    """
    return {"training": parts.data.train.identity,
            parts.data.monitored: parts.loaders.monitored.images.identity}


# -- which run ---------------------------------------------------------------------------


def newest_run_of(config: Config) -> Run | None:
    """Return the newest run that can be continued with this config, or None."""
    for folder in reversed(find_runs(config.OUTPUT_DIR, config.name)):
        try:
            run = Run(folder)
        except UserError as error:
            print(f"note       {folder} is left out: {error.problem}")
            continue
        differing = changes(with_findings(config, run), run)
        if not differing:
            return run
        # Of an older version, where SEED was that as well.
        if list(differing) == ["DATA.SPLIT_SEED"]:
            print(f"note       {folder} is left out: it was split by another seed; to go on with "
                  f"it, add DATA.SPLIT_SEED {run.config.DATA.SPLIT_SEED}")
    return None


def with_findings(config: Config, run: Run) -> Config:
    """Return the config with what a run found when it began: a learning rate, a run's weights."""
    scheduler, named = run.config.SCHEDULER, run.config.MODEL.get("INIT_FROM")
    if is_to_find(config.SCHEDULER) and scheduler is not None and "max_lr" in scheduler:
        config = with_rate(config, scheduler.max_lr)
    return with_named_run(config, named)


def changes(config: Config, run: Run) -> dict[str, tuple[Any, Any]]:
    """Return the keys, with both values, by which a config would train something else than a run.

    The number of epochs is none of them where neither schedule nor averages depend on it.
    """
    now, then = config.flat(), run.config.flat()
    free = [*MAY_CHANGE, *LENGTH]
    if planned_by_length(config):
        free.remove("TRAIN.EPOCHS")
    return {key: (then.get(key, "not set"), now.get(key, "not set")) for key in {**then, **now}
            if now.get(key) != then.get(key) and not is_among(key, free)}


def planned_by_length(config: Config) -> str:
    """Return the name of what goes by the number of epochs; empty if nothing does."""
    if depends_on_length(config.SCHEDULER):
        return config.SCHEDULER.NAME
    return "TRAIN.EMA_POWER" if config.TRAIN.EMA_DECAY and config.TRAIN.EMA_POWER else ""


def refuse_changes(config: Config, run: Run) -> None:
    """Refuse to go on with a config that would have trained something else.

    Raises:
        RunError: names every key that differs.
    """
    changed = changes(config, run)
    if changed:
        lines = [f"{key}: {then} in the run, {now} now" for key, (then, now) in changed.items()]
        if "TRAIN.EPOCHS" in changed:
            lines.append(f"{planned_by_length(config)} was planned for the old number")
        raise RunError(f"{run.folder} cannot be resumed with another config: {'; '.join(lines)}",
                       hint=f"Resume with the run's own, {command('train')} "
                            f"{run.folder / 'config.yaml'} --resume {run.folder}, or start a new "
                            "run without --resume.")


# -- going on with it --------------------------------------------------------------------


def take_up(run: Run | None, state: TrainingState, parts: Experiment, monitor: Monitor) -> None:
    """Load a run's last checkpoint into a state. The first process reads it for all.

    Args:
        run: None in the other processes.

    Raises:
        UserError: it does not fit the config or the data, or is damaged.
    """
    checkpoint = distributed.broadcast_from_main(
        lambda: None if run is None else _read(run, parts))
    restore(state, checkpoint)
    note_trained(state.model)
    state.best = distributed.broadcast_from_main(
        lambda: None if run is None else _best_of(run, state, parts, monitor, checkpoint.batches))
    if run is not None:
        run.forget_model()
        run.keep_epochs(state.epoch)


def _read(run: Run, parts: Experiment) -> Checkpoint:
    """Return a run's last checkpoint, if it fits."""
    checkpoint, data, loaders = run.last_whole_checkpoint(), parts.data, parts.loaders
    refuse_changes(parts.config, run)
    if list(data.classes) != checkpoint.classes:
        raise CheckpointError(f"{run.folder} was trained on other classes: "
                              f"{and_more(checkpoint.classes, 20)}")
    # Not to the last bit, which depends on how and where the mean was computed.
    if not torch.allclose(torch.tensor([loaders.mean, loaders.std]),
                          torch.tensor([checkpoint.mean, checkpoint.std]), rtol=1e-6, atol=0):
        raise CheckpointError(f"{run.folder} was trained on other images: their mean was "
                              f"{checkpoint.mean}, now it is {list(loaders.mean)}")
    if checkpoint.training is None:
        raise CheckpointError(f"{run.folder}: last.pt holds no training state to go on from")
    now = identities(parts)
    # Older versions kept none.
    known = checkpoint.training.get("images", now)
    changed = [name for name in known if known[name] != now.get(name)]
    if changed:
        raise CheckpointError(f"{run.folder} was trained on other images: those for "
                              f"{' and '.join(changed)} are others now, have other labels or "
                              "another order",
                              hint="Put back what was there, or start a new run without --resume.")
    edited = edited_since(checkpoint.training.get("code", {}))
    if edited:
        LOG.info(f"note       {', '.join(edited)} was edited since the run was saved: the rest is "
                 "trained with it as it is now")
    # Older runs had no other.
    backend = checkpoint.training.get("backend", "albumentations")
    if backend != loaders.train.backend:
        raise RunError(f"{run.folder} was trained with DATA.PIPELINE {backend}; "
                       f"{loaders.train.backend} draws other random numbers",
                       hint=f"Add DATA.PIPELINE {backend} to go on as it was.")
    return checkpoint


def _best_of(run: Run, state: TrainingState, parts: Experiment, monitor: Monitor,
             batches: int) -> dict[str, float] | None:
    """Return the best epoch's metrics, with best.pt written again if it was lost.

    That is possible if the checkpoint is of that epoch; else None, and the best is found anew.
    """
    best, records, is_lower = state.best, run.metrics, monitor.name in monitor.lower
    if best is None:
        return None
    is_turned = records and is_lower_better(monitor.name, records[-1]) != is_lower
    try:
        if is_turned:
            damage = (f"the {'lowest' if is_lower else 'highest'} {monitor.name} is the best now, "
                      "before it was the other way round")
        elif run.checkpoint("best").epoch >= best["epoch"]:
            return best
        else:
            damage = "best.pt is of an earlier epoch"
    except CheckpointError as error:
        damage = error.problem
    if not is_turned and best["epoch"] == state.epoch and not batches:
        run.save(checkpoint_of(state, parts), "best")
        return best
    LOG.info(f"note       {damage}; the best epoch is looked for anew from {state.epoch + 1} on")
    return None
