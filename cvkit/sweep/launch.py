"""Running a sweep: in this process, or in several that share the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cvkit.config.load import SweepConfig
from cvkit.errors import ConfigError, RunError
from cvkit.runs.experiment import Experiment
from cvkit.session import prepare
from cvkit.sweep.page import train_again, write_sweep_page
from cvkit.sweep.space import told
from cvkit.sweep.study import Sweep
from cvkit.sweep.trials import Progress, best_of, original, reason_of, shown
from cvkit.sweep.worker import parts_for, work
from cvkit.system import distributed
from cvkit.system.cores import usable_cores
from cvkit.system.log import LOG, SCREEN
from cvkit.system.text import plural
from cvkit.training.signals import WATCHED, Interrupted

if TYPE_CHECKING:
    from optuna.study import Study


class NothingFoundError(RunError):
    """Not one trial of a sweep is complete."""

    exit_code = 1


def run_sweep(source: SweepConfig, workers: int = 1, words: Sequence[str] = ()) -> Study:
    """Search the space of a sweep until all its trials are finished; one that was begun goes on.

    Args:
        source: from `load_sweep`.
        workers: processes that share the cores, and the GPUs, of this machine.
        words: of the command line that starts another worker; for several.

    Returns:
        Optuna's study. The trials are runs in `OUTPUT_DIR/<name>/`, where `sweep.html` shows them.

    Raises:
        UserError: something in it is wrong, before anything is trained; or no trial is complete.
        KeyboardInterrupt: it was asked to stop; the same call goes on.
    """
    if workers < 1:
        raise ConfigError(f"--workers is 1 or more, not {workers}")
    if distributed.launched() > 1:
        raise ConfigError("a sweep runs without torchrun", hint="--workers 2 uses two GPUs.")
    sweep = Sweep(source)
    study = sweep.find_study()
    if study is None or not Progress.of(study, sweep.trials).is_done or (
            sweep.has_other_paths(study)):
        data, is_lower = _prepared(sweep)
        study = sweep.begin(is_lower, data.data)
        say_progress(sweep, study)
        try:
            if workers == 1:
                work(sweep, study, data)
            else:
                del data
                _work_together(workers, words)
        except KeyboardInterrupt:
            say_progress(sweep, study)
            LOG.info("The same command goes on.", extra=SCREEN)
            raise
    say_progress(sweep, study)
    progress = Progress.of(study, sweep.trials)
    if not progress.is_done:
        raise RunError("the workers ended before the sweep did",
                       hint="What they said is above. The same command goes on.")
    if best_of(study, progress) is None:
        raise NothingFoundError(f"no trial of {sweep.name} is complete: {progress.in_words()}",
                                hint=_first_reason(progress))
    write_sweep_page(sweep, study)
    return study


def work_beside(source: SweepConfig) -> None:
    """Be one of several workers of a sweep that was begun."""
    sweep = Sweep(source)
    study = sweep.find_study()
    assert study is not None
    work(sweep, study, Experiment(sweep.base))


def show_status(source: SweepConfig) -> None:
    """Say how far a sweep is, and write `sweep.html` of what there is."""
    sweep = Sweep(source)
    study = sweep.find_study()
    say_progress(sweep, study)
    if study is not None and best_of(study, Progress.of(study, sweep.trials)) is not None:
        write_sweep_page(sweep, study)


def say_progress(sweep: Sweep, study: Study | None) -> None:
    """Say how far a sweep is, and what is the best so far."""
    progress = Progress.of(study, sweep.trials)
    LOG.info(f"sweep      {sweep.name}: {progress.in_words()}", extra=SCREEN)
    best = best_of(study, progress) if study else None
    if study is not None and best is not None:
        name = sweep.base.TRAIN.MONITOR
        LOG.info(f"best       trial {original(best)}: {sweep.measure(study)} "
                 f"{shown(name, best.value)} with "
                 f"{told(sweep.space.decoded(best.params))}\n"
                 f"           {train_again(sweep, best)}", extra=SCREEN)


def _prepared(sweep: Sweep) -> tuple[Experiment, bool]:
    """Return the images of the sweep, and whether what is searched for is better when lower.

    Of each listed value that may not fit, a training was prepared once by then.
    """
    built, data = Experiment(sweep.base), Experiment(sweep.base)
    prepared = prepare(sweep.base, built)
    data.data, data.built_data = built.data, built.built_data
    for each in sweep.space.dimensions:
        for value in each.values or () if each.ends is None else ():
            if isinstance(value, (int, float)) and not each.key.startswith("MODEL"):
                continue
            config = sweep.config({**sweep.usual, each.key: value})
            prepare(config, parts_for(config, data))
    if data.data.val is None:
        LOG.info("note       the test images choose the best trial, so its results are better than "
                 "on new ones: DATA.VAL_FRACTION 0.1 sets others aside for that", extra=SCREEN)
    return data, sweep.base.TRAIN.MONITOR in prepared.monitor.lower


def _work_together(workers: int, words: Sequence[str]) -> None:
    """Start workers and wait for all of them."""
    import torch

    threads = str(max(1, usable_cores() // workers))
    gpus = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(
        map(str, range(torch.cuda.device_count())))).split(",") if each]
    processes: list[subprocess.Popen] = []
    received: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        received.append(number)
        for process in processes:
            # Windows has no other to send; the trial then goes on from its checkpoint.
            process.send_signal(signal.SIGTERM if sys.platform == "win32" else number)

    before = {number: signal.signal(number, hand_on) for number in WATCHED}
    try:
        for number in range(workers):
            chosen = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
            # A session of its own, as Ctrl-C would reach it twice.
            processes.append(subprocess.Popen(
                [sys.executable, "-m", "cvkit", "sweep", *words, "--worker"],
                env={**os.environ, "OMP_NUM_THREADS": threads, **chosen}, start_new_session=True))
        codes = [process.wait() for process in processes]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise Interrupted(received[0])
    if any(codes):
        lost = sum(code != 0 for code in codes)
        LOG.info(f"note       {plural(lost, 'worker')} of {workers} ended early (exit codes "
                 f"{', '.join(map(str, codes))})", extra=SCREEN)


def _first_reason(progress: Progress) -> str | None:
    return next(map(reason_of, progress.having("diverged", "failed")), None)
