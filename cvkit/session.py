"""What a user asks for: to train a config, to check it, or to look for a learning rate.

From here on a training reads top to bottom: `session` builds the parts, the run and the reporters;
`training.trainer` is the loop, `training.step` one batch, `training.state` what a batch changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from torch import nn

from cvkit.config import Config, check_components
from cvkit.errors import ConfigError, RunError, frees_on_error, located
from cvkit.evaluation.monitor import Monitor
from cvkit.evaluation.run_evaluation import evaluate
from cvkit.models.pretrained import begins_trained
from cvkit.models.probing import refuse_single_images
from cvkit.reporting.checks import Checks
from cvkit.reporting.console import Console, say_finished, say_where
from cvkit.reporting.reporter import Reporter, add_reporters, refuse_other_reporters
from cvkit.reporting.requirements import Requirements, check_requirements, enforce
from cvkit.runs.experiment import Experiment
from cvkit.runs.folder import Run, locked, open_run
from cvkit.runs.initial_weights import with_named_run
from cvkit.runs.range_test import RangeTest
from cvkit.system import distributed
from cvkit.system.environment import environment
from cvkit.system.log import LOG, SCREEN, run_log
from cvkit.system.memory import give_back_memory
from cvkit.training.build import build_state, optimizer_builder
from cvkit.training.failures import explaining
from cvkit.training.losses import build_loss
from cvkit.training.lr_finder import find_rate
from cvkit.training.resume import is_finished, newest_run_of, take_up, with_findings
from cvkit.training.schedulers import is_to_find, with_rate
from cvkit.training.state import TrainingState
from cvkit.training.trainer import Trainer
from cvkit.training.trial import (
    leaves_parameters_out,
    refuse_other_images,
    try_quickly,
    try_training,
)


@frees_on_error
def train(config: Config, resume: bool | str | Path | Run = False,
          parts: Experiment | None = None, folder: Path | None = None,
          reporters: Sequence[Reporter] = ()) -> Run | None:
    """Train what a config describes and return the finished run.

    Of several processes (`torchrun`) only the first writes, and opens the run that is returned;
    the others return None.

    Args:
        config: from `load_config`.
        resume: True continues the newest run of this config, a run or its path that one. "auto"
            continues the newest that was begun with the same settings, or begins one if there is
            none; one that is finished is returned as it is.
        parts: what the config describes, to train on other data for example; built if not given.
            Given again, their model is built anew, unless it was set or given other weights.
        folder: of a run that is begun; a new one in OUTPUT_DIR if not given.
        reporters: besides those that the config names.

    Raises:
        UserError: something in the config, the data or the run to resume is wrong, or the loss
            stopped being finite.
        Interrupted: SIGINT (Ctrl-C) or SIGTERM asked to stop; the run can be resumed.
    """
    run = _run_to_resume(config, resume)
    with ExitStack() as stack:
        log = stack.enter_context(run_log())
        stack.callback(give_back_memory)
        if run is not None:
            run.refuse_links()
            stack.enter_context(run.lock())
        parts = parts or Experiment(config)
        parts.renew()
        state, parts, monitor, requirements, is_resumed = prepare(config, parts, run)
        if is_resumed and is_finished(config, state.epoch, state.best):
            return _finished(run, state, parts)
        checks = Checks(parts)
        refuse_other_images(parts)
        problem = try_quickly(state, parts, checks.look)
        if problem:
            LOG.info(f"note       saving and loading was not tried before: {problem}")
        found = _find_rate(state, parts)
        if distributed.is_main():
            if run is None:
                # What is the newest run now may not be when this one is repeated.
                begun_with = parts.initial_weights
                parts.config = with_named_run(parts.config, begun_with.run if begun_with else None)
                if folder is not None:
                    # Before anything in it is written over: another may train there by now.
                    stack.enter_context(locked(folder))
                run = Run.create(parts.config, environment(parts.device), folder)
                if folder is None:
                    stack.enter_context(run.lock())
            else:
                run.set_config(parts.config)
            if found is not None:
                run.keep_range_test(found)
            # Or what looks at the results would read it again.
            run.data = parts.data
            log.attach(run.folder)
            checks.run = run
            told = [Console(parts, monitor, run, is_resumed), requirements, checks, *reporters]
            add_reporters(told, parts.config, run.folder, state)
            Trainer(state, parts, monitor, run, told).train()
            say_where(run)
        else:
            Trainer(state, parts, monitor).train()
    return run


@frees_on_error
def check(config: Config, parts: Experiment | None = None) -> None:
    """Try a step, a save, a load and an evaluation, and say how it went. Writes nothing.

    Args:
        config, parts: as of `train`.

    Raises:
        UserError: what would stop a training.
    """
    state, parts, monitor, requirements, _ = prepare(config, _to_try(config, parts))
    checks = Checks(parts)
    if distributed.is_main():
        for reporter in (Console(parts, monitor), requirements, checks):
            reporter.begin(state)
    with explaining(state, parts.loaders):
        refuse_other_images(parts)
        words = try_training(state, parts, look=checks.look)
    checks.say_odd()
    LOG.info(f"check      {words}. All is well; nothing was written.", extra=SCREEN)
    distributed.stop()


@frees_on_error
def find_lr(config: Config, lowest: float = 1e-5, highest: float = 10.0, steps: int = 100,
            parts: Experiment | None = None) -> RangeTest:
    """Look for a learning rate: train a copy of the model for some steps at rising rates.

    Args:
        config, parts: as of `train`.
        lowest, highest: the first and the last rate, with equal factors between.
        steps: of the optimizer.

    Raises:
        RunError: the loss does not fall at any of the rates.
        ValueError: the rates do not rise, or steps is below 20.
    """
    prepared = prepare(config, _to_try(config, parts))
    return find_rate(prepared.state, prepared.parts, lowest, highest, steps)


def build_trainer(config: Config, parts: Experiment | None = None) -> Trainer:
    """Return a trainer at its beginning, which keeps nothing and tells nobody.

    Args:
        config, parts: as of `train`.

    Raises:
        UserError: something in the config or the data is wrong.
    """
    parts = parts or Experiment(config)
    parts.renew()
    prepared = prepare(config, parts)
    return Trainer(prepared.state, prepared.parts, prepared.monitor)


def _to_try(config: Config, parts: Experiment | None) -> Experiment:
    """Return parts as a training would begin with them; a model that was trained stays theirs."""
    if parts is None or not parts.is_trained:
        return parts or Experiment(config)
    parts = parts.with_config(parts.config)
    parts.renew()
    return parts


class Prepared(NamedTuple):
    """What is ready to be trained; `is_resumed` in all processes of one whose run goes on."""

    state: TrainingState
    parts: Experiment
    monitor: Monitor
    requirements: Requirements
    is_resumed: bool


def prepare(config: Config, parts: Experiment, run: Run | None = None) -> Prepared:
    """Build all that a config names, in all processes, and refuse what cannot be trained.

    Args:
        config, parts: as of `train`.
        run: which goes on, in the first process.

    Raises:
        UserError: something in the config, the data or the run is wrong. Nothing has been written.
    """
    check_components(config)
    enforce(check_requirements(config), config)
    distributed.start(parts.device)
    _refuse_processes(config, parts)
    is_resumed = distributed.broadcast_from_main(lambda: run is not None)
    if is_resumed:
        config = distributed.broadcast_from_main(
            lambda: None if run is None else with_findings(config, run))
    if is_resumed:
        # What it was begun with is in its checkpoint; a file may be out of reach by now.
        parts = parts.as_resumed(distributed.broadcast_from_main(
            lambda: None if run is None else run.normalisation)
            if begins_trained(config.MODEL) else None)
    # Which downloads what is not there.
    with distributed.first_on_each_machine():
        data, loaders, model = parts.data, parts.loaders, parts.model
    # Parts that are given may be of another config, which they keep.
    parts = parts.with_config(config)
    loaders.train.plan.accumulate = config.TRAIN.ACCUMULATE
    if any(loaders.train.part_size(number) <= 1 for number in range(len(loaders.train))):
        refuse_single_images(model, loaders.train_shape, config.DATA.where("BATCH_SIZE"))
    if config.TRAIN.SYNC_BATCHNORM and distributed.size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    loss = build_loss(config.LOSS, len(data.classes),
                      bool(loaders.train.pipeline.mixing), data.classes,
                      data.class_counts).to(parts.device)
    state = build_state(parts, model, loss)
    has_unused = leaves_parameters_out(state, parts)
    with located(config.TRAIN, "COMPILE"):
        state.wrap(has_unused, config.TRAIN.COMPILE)
    monitor = Monitor(config, list(data.classes))
    refuse_other_reporters(config)
    requirements = Requirements(config, parts)
    if is_resumed:
        take_up(run, state, parts, monitor)
    return Prepared(state, parts, monitor, requirements, is_resumed)


def _refuse_processes(config: Config, parts: Experiment) -> None:
    processes = distributed.size()
    if processes > config.DATA.BATCH_SIZE:
        raise ConfigError(f"a batch of {config.DATA.BATCH_SIZE} cannot be shared by "
                          f"{processes} processes", where=config.DATA.where("BATCH_SIZE"),
                          hint="DATA.BATCH_SIZE counts the images of all processes together.")
    if processes > 1 and config.TRAIN.SYNC_BATCHNORM and parts.device.type != "cuda":
        raise ConfigError("torch synchronises batch norms between GPUs only",
                          where=config.TRAIN.where("SYNC_BATCHNORM"),
                          hint="On CPUs: MODEL.norm group, or SYNC_BATCHNORM false.")


def _run_to_resume(config: Config, resume: bool | str | Path | Run) -> Run | None:
    """Return the run to go on with, in the first process, which says what is done."""
    if not resume or not distributed.is_main():
        return None
    if isinstance(resume, Run):
        return resume
    if resume == "auto":
        check_components(config)
        return newest_run_of(config)
    return open_run(None if resume is True else resume, config.OUTPUT_DIR,
                    config.name if resume is True else "*")


def _find_rate(state: TrainingState, parts: Experiment) -> RangeTest | None:
    """Put a learning rate in the place of `max_lr: find`, and return how it was found."""
    if not is_to_find(parts.config.SCHEDULER):
        return None
    LOG.info("finding    max_lr, on a copy of the model", extra=SCREEN)
    found = find_rate(state, parts)
    parts.config = with_rate(parts.config, found.suggestion)
    state.set_optimizer(*optimizer_builder(parts, state.freezing)(state.model, state.loss))
    return found


def _finished(run: Run | None, state: TrainingState, parts: Experiment) -> Run | None:
    """Return a run that has nothing left to train, with predictions if it lacked them."""
    distributed.stop()
    if run is not None:
        say_finished(run, parts.config, state.epoch)
        try:
            _ = run.predictions
        except RunError:
            # It was interrupted at its very end.
            evaluate(run)
    return run
