"""Sweeps: trials are the runs that they would be alone, whoever is stopped, killed or diverges."""

import errno
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, paint
from helpers import at_step, equal, without_times

from cvkit.config import load_config
from cvkit.config.load import load_sweep
from cvkit.data.build import build_data
from cvkit.errors import RunError, UserError
from cvkit.registry import METRICS
from cvkit.runs.folder import BusyError, Run, locked
from cvkit.session import train
from cvkit.sweep.launch import run_sweep
from cvkit.sweep.study import Sweep
from cvkit.sweep.trials import (
    Progress,
    best_of,
    fail,
    original,
    reason_of,
    state_of,
    try_again,
)
from cvkit.system.files import writing
from cvkit.training.signals import Interrupted
from cvkit.training.trainer import Trainer

optuna = pytest.importorskip("optuna")

GRID = """\
SWEEP:
  BASE: tiny.yaml
  SPACE:
    OPTIMIZER.lr: [0.01, 0.05, 0.2]
    OPTIMIZER.momentum: [0.0, 0.9]
  SAMPLER: {NAME: GridSampler}
DATA: {LIMIT: 60}
"""
POINTS = [(lr, momentum) for lr in (0.01, 0.05, 0.2) for momentum in (0.0, 0.9)]


@pytest.fixture
def grid(quick, tmp_path):
    """The path of a sweep of six trials."""
    (tmp_path / "grid.yaml").write_text(GRID)
    return "grid.yaml"


def trials_of(path, *words):
    sweep = Sweep(load_sweep(path, words))
    return Progress.of(sweep.find_study(), sweep.trials).trials


def values_of(path, *words):
    return {(trial.params["OPTIMIZER.lr"], trial.params["OPTIMIZER.momentum"]): trial.value
            for trial in trials_of(path, *words).values()}


def test_a_grid_is_what_one_would_do_by_hand_to_the_last_digit(grid):
    study = run_sweep(load_sweep(grid))
    by_hand = {}
    for number, (lr, momentum) in enumerate(POINTS):
        run = train(load_config("tiny.yaml", {"DATA.LIMIT": 60, "OPTIMIZER.lr": lr,
                                              "OPTIMIZER.momentum": momentum}))
        by_hand[lr, momentum] = run.predictions.accuracy
        trial = Run(f"runs/grid/trial_{number:04d}")
        assert equal(trial.checkpoint("last").model, run.checkpoint("last").model)
        assert without_times(trial.metrics) == without_times(run.metrics)
        assert trial.config.name == "grid"
    assert values_of(grid) == by_hand
    assert study.best_value == max(by_hand.values())
    assert [tuple(trial.params.values()) for trial in trials_of(grid).values()] == POINTS


def test_what_is_finished_is_only_shown_again_and_more_trials_go_on(grid, capsys):
    run_sweep(load_sweep(grid, ["SWEEP.TRIALS", "2"]))
    first = values_of(grid)
    times = {path: path.stat().st_mtime_ns for path in (Sweep(load_sweep(grid)).folder).glob("trial_*/config.yaml")}
    assert len(times) == 2
    run_sweep(load_sweep(grid, ["SWEEP.TRIALS", "2"]))
    run_sweep(load_sweep(grid, ["SWEEP.TRIALS", "3"]))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(values_of(grid)) == 3 and first.items() <= values_of(grid).items()
    assert "sweep      grid: 3 of 3 trials finished: 3 complete" in capsys.readouterr().out


def test_ctrl_c_ends_a_trial_cleanly_and_the_same_command_goes_on(grid, capsys, tmp_path):
    run_sweep(load_sweep(grid, ["OUTPUT_DIR", "whole"]))
    whole = values_of(grid, "OUTPUT_DIR", "whole")
    with pytest.MonkeyPatch.context() as patched:
        # In the second epoch of the third trial, of two batches each.
        at_step(patched, 11, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            run_sweep(load_sweep(grid))
    out = capsys.readouterr().out
    assert out.endswith("The same command goes on.\n") and "2 complete, 1 waiting" in out
    assert Run("runs/grid/trial_0002").checkpoint("last").epoch == 1
    steps = []
    with pytest.MonkeyPatch.context() as patched:
        at_step(patched, 1, lambda: None)
        real = Trainer.train_epoch
        patched.setattr(Trainer, "train_epoch", lambda trainer: steps.append(trainer.state.epoch) or real(trainer))
        run_sweep(load_sweep(grid))
    # The third begins where it was stopped, the other three at their beginning.
    assert steps == [1, 0, 1, 0, 1, 0, 1]
    assert values_of(grid) == whole
    numbers = sorted(path.name for path in (tmp_path / "runs" / "grid").glob("trial_*"))
    assert len(numbers) == 6
    for number, trial in trials_of(grid).items():
        ours = Run(f"runs/grid/trial_{number:04d}")
        theirs = next(run for run in map(Run, (tmp_path / "whole" / "grid").glob("trial_*"))
                      if run.config.OPTIMIZER == ours.config.OPTIMIZER)
        assert equal(ours.checkpoint("last").model, theirs.checkpoint("last").model)
        assert state_of(trial) == "complete"


def test_a_trial_whose_worker_is_gone_is_tried_again_and_no_other(tiny, tmp_path):
    """The lock that a worker holds tells that it lives."""
    (tmp_path / "grid.yaml").write_text(GRID)
    sweep = Sweep(load_sweep("grid.yaml"))
    study = sweep.begin(False, build_data(sweep.base))
    gone, held, fresh = (study.ask(sweep.space.distributions) for _ in range(3))
    with sweep.working() as dead:
        gone.set_user_attr("worker", dead)
    victim = shutil.copy(__file__, tmp_path / "victim.txt")
    shutil.copy(__file__, sweep.folder / ".workers" / dead)  # it left its file, unlocked
    stranger = study.ask(sweep.space.distributions)
    stranger.set_user_attr("worker", str(victim))  # no name of a worker: nothing is removed
    with sweep.working() as alive:
        held.set_user_attr("worker", alive)
        for _ in range(2):
            # A process is not kept out by a lock of its own.
            subprocess.run([sys.executable, "-c", (
                "from cvkit.config.load import load_sweep; from cvkit.sweep.study import Sweep; "
                "from cvkit.sweep.trials import try_again; sweep = Sweep(load_sweep('grid.yaml')); "
                "study = sweep.find_study(); sweep.fail_dead(study, 'me'); try_again(study)")],
                check=True, cwd=tmp_path)
    trials = study.get_trials()
    assert [trial.state.name for trial in trials] == ["FAIL", "RUNNING", "RUNNING", "FAIL", "WAITING", "WAITING"]
    assert trials[4].params == gone.params and original(trials[4]) == 0 and "worker" not in trials[4].user_attrs
    assert Path(victim).is_file()
    assert Progress.of(study, 6).in_words() == "0 of 6 trials finished: 2 running, 2 waiting"
    # One that was asked for long ago and has no worker yet is lost as well.
    sweep.fail_dead(study, alive)
    now = time.monotonic()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cvkit.sweep.study.time.monotonic", lambda: now + 1000)
        patched.setattr(Sweep, "_is_dead", lambda sweep, worker: False)
        sweep.fail_dead(study, alive)
    assert study.get_trials()[fresh.number].state.name == "FAIL"


def test_a_worker_on_a_drive_without_locks_lives_as_long_as_its_process(grid, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def refused(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "lockf", refused)
    sweep = Sweep(load_sweep(grid))
    study = sweep.begin(False, build_data(sweep.base))
    host = re.sub(r"[^\w.]", "_", platform.node())
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    # A container that is started again may have another host, and processes of the same numbers.
    names = [f"{host}-{other.pid}-{0:08x}", f"{host}-{other.pid}-{1:08x}", f"elsewhere-1-{2:08x}",
             f"{host}-{os.getpid()}-{3:08x}"]
    with sweep.working() as name:
        for worker in (*names, name):
            (sweep.folder / ".workers" / worker).touch()
            study.ask(sweep.space.distributions).set_user_attr("worker", worker)
        sweep.fail_dead(study, name)
        states = [trial.state.name for trial in study.get_trials()]
        assert states == ["RUNNING", "RUNNING", "FAIL", "FAIL", "RUNNING"]
        other.communicate()
        sweep.fail_dead(study, name)
    assert [trial.state.name for trial in study.get_trials()] == ["FAIL"] * 4 + ["RUNNING"]
    assert "cannot be locked" not in capsys.readouterr().out


def test_a_sweep_needs_no_links_and_is_looked_at_while_another_worker_writes(grid, monkeypatch, tool):
    def refused(*args, **options):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", refused)
    run_sweep(load_sweep(grid, ["SWEEP.TRIALS", "1"]))
    sweep = Sweep(load_sweep(grid))
    sweep.find_study()
    lock = sweep.storage._backend._lock
    lock.acquire()
    try:
        assert Path("runs/grid/journal.log.lock").is_file()
        code, out, _ = tool("sweep.py", grid, "--status")
        assert code == 0 and "1 of 6 trials finished" in out
    finally:
        lock.release()


def test_two_that_try_the_same_trial_again_make_one_of_it(grid):
    sweep = Sweep(load_sweep(grid))
    study = sweep.begin(False, build_data(sweep.base))
    study.ask(sweep.space.distributions)
    fail(study, study.get_trials()[0])
    again = optuna.trial.create_trial(
        state=optuna.trial.TrialState.WAITING, params=study.get_trials()[0].params,
        distributions=study.get_trials()[0].distributions, user_attrs={"tries": [0], "deaths": 1})
    study.add_trial(again), study.add_trial(again)
    run_sweep(load_sweep(grid))
    assert sorted(values_of(grid)) == sorted(POINTS) and len(trials_of(grid)) == 6
    assert [trial.state.name for trial in study.get_trials()[:3]] == ["FAIL", "COMPLETE", "FAIL"]


def test_a_trial_that_its_workers_die_of_is_given_up(grid):
    sweep = Sweep(load_sweep(grid))
    study = sweep.begin(False, build_data(sweep.base))
    study.ask(sweep.space.distributions)
    for tries in range(5):
        last = study.get_trials()[-1]
        if last.state.name == "WAITING":
            study.ask(sweep.space.distributions)
        fail(study, study.get_trials()[-1])
        try_again(study)
        assert len(study.get_trials()) == min(tries + 2, 4)
    progress = Progress.of(study, 6)
    assert [state_of(trial) for trial in progress.trials.values()] == ["failed"]
    assert reason_of(progress.trials[0]) == "its worker died, 4 times"


def test_a_worker_that_is_taken_for_dead_gives_its_trial_up_and_goes_on(grid, capsys, monkeypatch):
    """As one that slept, or could not reach the database, for long."""
    epoch, done = Trainer.train_epoch, []

    def sleepy(trainer):
        if not done:
            done.append(True)
            sweep = Sweep(load_sweep(grid))
            study = sweep.find_study()
            fail(study, study.get_trials()[0])
        return epoch(trainer)

    monkeypatch.setattr(Trainer, "train_epoch", sleepy)
    run_sweep(load_sweep(grid))
    assert "trial 0    was taken by another worker" in capsys.readouterr().out
    assert sorted(values_of(grid)) == sorted(POINTS)
    assert all(state_of(trial) == "complete" for trial in trials_of(grid).values())


def test_a_folder_in_which_another_process_trains_is_waited_for(grid, monkeypatch):
    """The one that was taken for dead may still be at it."""
    monkeypatch.setattr("cvkit.sweep.worker._WAIT", 0.01)
    refused = []

    def lock(folder):
        if len(refused) < 3:
            refused.append(folder)
            raise BusyError("it is being trained by process 1")
        return locked(folder)

    monkeypatch.setattr("cvkit.session.locked", lock)
    run_sweep(load_sweep(grid, ["SWEEP.TRIALS", "1"]))
    assert len(set(refused)) == 1 and [state_of(trial) for trial in trials_of(grid).values()] == ["complete"]


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("place", range(7))
def test_a_storage_that_is_lost_for_a_moment_costs_no_trial(grid, monkeypatch, place, is_done):
    """At each call of the second trial in turn, once before and once after it is done."""
    monkeypatch.setattr("cvkit.sweep.engine.PAUSE", 0.0)
    storage, calls = optuna.storages.JournalStorage, []

    def failing(name):
        real = getattr(storage, name)

        def call(self, *arguments, **named):
            calls.append(name)
            if len(calls) == 8 + place:
                if is_done:
                    real(self, *arguments, **named)
                raise optuna.exceptions.StorageInternalError("the server is away")
            return real(self, *arguments, **named)
        return call

    sweep = Sweep(load_sweep(grid, ["SWEEP.TRIALS", "3"]))
    sweep.begin(False, build_data(sweep.base))
    monkeypatch.setattr("cvkit.sweep.study._UNNAMED", -1000)
    for name in ("create_new_trial", "set_trial_param", "set_trial_state_values", "set_trial_user_attr",
                 "set_trial_intermediate_value"):
        monkeypatch.setattr(storage, name, failing(name))
    run_sweep(load_sweep(grid, ["SWEEP.TRIALS", "3"]))
    assert [state_of(trial) for trial in trials_of(grid, "SWEEP.TRIALS", "3").values()] == ["complete"] * 3
    assert len(set(values_of(grid, "SWEEP.TRIALS", "3"))) == 3 and len(calls) >= 21


def test_a_trial_that_diverges_is_marked_and_the_rest_goes_on(grid, monkeypatch, capsys):
    epoch = Trainer.train_epoch

    def diverging(trainer):
        if trainer.config.OPTIMIZER.lr == 0.05:
            raise trainer.divergence("loss is", 1)
        return epoch(trainer)

    monkeypatch.setattr(Trainer, "train_epoch", diverging)
    run_sweep(load_sweep(grid))
    states = [state_of(trial) for trial in trials_of(grid).values()]
    assert states == ["complete", "complete", "diverged", "diverged", "complete", "complete"]
    out = capsys.readouterr().out
    assert re.search(r"trial 2 +diverged: the loss is no longer finite in epoch 1.*lr 0.05, momentum 0", out)
    assert "4 complete, 2 diverged" in out


def test_where_no_trial_is_complete_the_exit_code_is_1(grid, tool, monkeypatch):
    monkeypatch.setattr(Trainer, "train_epoch", lambda trainer: (_ for _ in ()).throw(
        trainer.divergence("loss is", 1)))
    code, _, err = tool("sweep.py", grid, "SWEEP.TRIALS", "2")
    assert code == 1
    assert "no trial of grid is complete: 2 of 2 trials finished: 2 diverged" in err


def test_a_trial_that_cannot_be_trained_is_told_and_not_fatal(grid, monkeypatch, capsys):
    epoch = Trainer.train_epoch

    def failing(trainer):
        if trainer.config.OPTIMIZER.lr == 0.05:
            raise RunError("no memory is left", hint="Buy some.")
        return epoch(trainer)

    monkeypatch.setattr(Trainer, "train_epoch", failing)
    run_sweep(load_sweep(grid))
    states = [state_of(trial) for trial in trials_of(grid).values()]
    assert states.count("failed") == 2 and states.count("complete") == 4
    assert "failed: no memory is left Buy some." in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["a file", "a checkpoint"])
def test_a_full_disk_ends_the_sweep_and_costs_no_trial(grid, monkeypatch, kind):
    epoch, save, failed = Trainer.train_epoch, torch.save, []

    def fail_once():
        if len(failed) < 1 and sum(value is not None for value in values_of(grid).values()) == 3:
            failed.append(True)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def failing(trainer):
        with writing("last.pt"):
            fail_once()
        return epoch(trainer)

    def failing_to_save(content, file):
        try:
            if "last.pt" in str(getattr(file, "name", "")):  # not what is tried in memory
                fail_once()
        except OSError:
            raise RuntimeError("unexpected pos 128 vs 22") from None  # as torch's writer has it
        save(content, file)

    if kind == "a file":
        monkeypatch.setattr(Trainer, "train_epoch", failing)
    else:
        monkeypatch.setattr("torch.save", failing_to_save)
    with pytest.raises(UserError, match="cannot write .*last.pt: .*No space left"):
        run_sweep(load_sweep(grid))
    run_sweep(load_sweep(grid))
    assert sorted(values_of(grid)) == sorted(POINTS)
    assert {state_of(trial) for trial in trials_of(grid).values()} == {"complete"}


def test_a_bug_is_not_taken_for_a_bad_trial(grid, monkeypatch):
    monkeypatch.setattr(Trainer, "evaluate", lambda trainer: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_sweep(load_sweep(grid))


def test_pruned_trials_stop_at_the_end_of_an_epoch(quick, tmp_path):
    (tmp_path / "prune.yaml").write_text("""\
SWEEP:
  BASE: tiny.yaml
  SPACE: {OPTIMIZER.lr: {NAME: float, low: 0.001, high: 0.3, log: true}}
  PRUNER: {NAME: ThresholdPruner, lower: 0.5, n_warmup_steps: 2}
  TRIALS: 2
TRAIN: {EPOCHS: 4}
DATA: {LIMIT: 60}
""")
    with pytest.raises(RunError, match="2 pruned"):
        run_sweep(load_sweep("prune.yaml"))
    for number, trial in trials_of("prune.yaml").items():
        run = Run(f"runs/prune/trial_{number:04d}")
        assert [epoch["epoch"] for epoch in run.metrics] == [1, 2] and trial.last_step == 2
        assert trial.intermediate_values == {
            epoch["epoch"]: epoch["test/accuracy"] for epoch in run.metrics}
        assert run.checkpoint("last").epoch == 2 and not (run.folder / "predictions.npz").exists()


@pytest.mark.parametrize("ends", ["{EPOCHS: 2}", "{EPOCHS: 9, EARLY_STOP: 1, MONITOR: constant}"],
                         ids=["all epochs", "early stop"])
def test_a_trial_is_not_pruned_when_it_is_trained_to_its_end(quick, tmp_path, ends):
    METRICS.register("constant")(Constant)
    (tmp_path / "prune.yaml").write_text(f"""\
SWEEP:
  BASE: tiny.yaml
  SPACE: {{OPTIMIZER.lr: [0.05]}}
  PRUNER: {{NAME: ThresholdPruner, lower: 1.5, n_warmup_steps: 2}}
  TRIALS: 1
TRAIN: {ends}
METRICS: [{{NAME: constant}}]
DATA: {{LIMIT: 60}}
""")
    run_sweep(load_sweep("prune.yaml"))
    trial, = trials_of("prune.yaml").values()
    run = Run("runs/prune/trial_0000")
    assert state_of(trial) == "complete" and trial.last_step == 2 and len(run.metrics) == 2
    assert run.predictions.accuracy == run.metrics[-1]["test/accuracy"]


class Constant:
    lower_is_better = False

    def update(self, logits, labels):
        pass

    def compute(self):
        return {"constant": 0.5}


def test_the_value_is_that_of_the_best_epoch_on_validation_images_and_a_loss_is_minimised(quick, tmp_path):
    (tmp_path / "loss.yaml").write_text("""\
SWEEP:
  BASE: tiny.yaml
  SPACE: {OPTIMIZER.lr: [0.01, 0.3, 3.0]}
  SAMPLER: {NAME: GridSampler}
  MONITOR: loss
TRAIN: {EPOCHS: 3}
DATA: {VAL_FRACTION: 0.3}
""")
    study = run_sweep(load_sweep("loss.yaml"))
    trials = trials_of("loss.yaml")
    for number, trial in trials.items():
        run = Run(f"runs/loss/trial_{number:04d}")
        assert trial.value == min(epoch["val/loss"] for epoch in run.metrics)
        assert run.config.TRAIN.MONITOR == "loss"
    best = best_of(study, Progress.of(study, 3))
    assert best.value == min(trial.value for trial in trials.values())


def test_with_seeds_the_mean_counts_and_a_trial_is_a_group(grid):
    from cvkit.runs.group import open_group

    run_sweep(load_sweep(grid, ["SWEEP.SEEDS", "2", "SWEEP.TRIALS", "2"]))
    for number, trial in trials_of(grid, "SWEEP.SEEDS", "2").items():
        group = open_group(f"runs/grid/trial_{number:04d}")
        assert [run.config.SEED for run in group.runs] == [0, 1]
        assert trial.value == np.mean(group.values["accuracy"])


def test_the_line_on_test_images_is_said_only_where_they_choose(grid, capsys):
    run_sweep(load_sweep(grid, ["SWEEP.TRIALS", "1"]))
    assert "the test images choose the best trial" in capsys.readouterr().out
    assert "The test images chose it" in Path("runs/grid/README.md").read_text("utf-8")
    keys = ["SWEEP.TRIALS", "1", "DATA.VAL_FRACTION", "0.3", "OUTPUT_DIR", "other"]
    run_sweep(load_sweep(grid, keys))
    assert "the test images choose" not in capsys.readouterr().out
    assert "test images chose" not in Path("other/grid/README.md").read_text("utf-8")


# -- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize("change, message", [
    (("[0.01, 0.05, 0.2]", "[0.01, 0.05]"), "the sweep grid was begun with another space: OPTIMIZER.lr: "
     "[0.01, 0.05, 0.2] then, [0.01, 0.05] now"),
    (("LIMIT: 60", "LIMIT: 70"), "was begun with another config: DATA.LIMIT: 60 then, 70 now")])
def test_a_study_that_was_begun_otherwise_is_refused(grid, tool, tmp_path, change, message):
    run_sweep(load_sweep(grid, ["SWEEP.TRIALS", "1"]))
    (tmp_path / "grid.yaml").write_text(GRID.replace(*change))
    code, _, err = tool("sweep.py", grid)
    assert code == 2 and message in err and "or give the file another name." in err


@pytest.mark.parametrize("is_done", [True, False])
def test_a_study_of_other_images_is_refused_and_of_the_same_ones_elsewhere_goes_on(grid, is_done):
    paint(Path("x"), "train", 12, np.random.default_rng(0))
    paint(Path("x"), "test", 4, np.random.default_rng(1))
    words = ["SWEEP.TRIALS", "1" if is_done else "2", "DATA.LIMIT", "0", "DATA.DATASET.NAME", "ImageFolder"]
    run_sweep(load_sweep(grid, [*words, "SWEEP.TRIALS", "1", "DATA.DATASET.root", "x"]))
    shutil.copytree("x", "same")
    run_sweep(load_sweep(grid, [*words, "DATA.DATASET.root", "same"]))
    next(Path("same/train").rglob("*.png")).unlink()
    with pytest.raises(RunError, match="the sweep grid was begun with other images: .*root"):
        run_sweep(load_sweep(grid, [*words, "SWEEP.TRIALS", "1" if is_done else "3", "DATA.DATASET.root", "same"]))


def test_another_place_to_compute_is_no_other_config(grid):
    run_sweep(load_sweep(grid, ["SWEEP.TRIALS", "1"]))
    run_sweep(load_sweep(grid, ["SWEEP.TRIALS", "2", "DATA.WORKERS", "0", "DEVICE", "cpu"]))


def test_a_value_that_cannot_be_built_is_told_before_the_first_trial(grid, tmp_path, tool):
    (tmp_path / "norms.yaml").write_text(TINY + "SWEEP: {SPACE: {MODEL.norm: [batch, group]}}\n")
    code, _, err = tool("sweep.py", "norms.yaml")
    assert code == 2 and "MODEL.norm: model resnet18 cannot be built: norm group: groups 32 does not divide 4" in err
    assert not list(tmp_path.glob("runs/norms/trial_*"))
    code, _, err = tool("sweep.py", grid, "SWEEP.MONITOR", "acuracy")
    assert code == 2 and "no metric named 'acuracy'" in err and "Did you mean accuracy?" in err


def test_a_sampler_and_a_pruner_of_ones_own(tiny, tmp_path):
    (tmp_path / "mine.py").write_text("""
import optuna
from cvkit import PRUNERS, SEARCHERS

@SEARCHERS.register()
def always(space, seed, place: int = 0):
    return optuna.samplers.PartialFixedSampler(
        {each.key: each.values[place] for each in space.dimensions}, optuna.samplers.RandomSampler(seed))

@PRUNERS.register()
class second(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return trial.number == 1
""")
    (tmp_path / "own.yaml").write_text("""
_BASE_: tiny.yaml
IMPORTS: [mine.py]
SWEEP: {SAMPLER: {NAME: always, place: 1}, PRUNER: {NAME: second}, TRIALS: 3, SPACE: {OPTIMIZER.lr: [0.1, 0.02, 0.3]}}
DATA: {LIMIT: 60}
""")
    run_sweep(load_sweep("own.yaml"))
    trials = trials_of("own.yaml").values()
    assert [trial.params["OPTIMIZER.lr"] for trial in trials] == [0.02] * 3
    assert [state_of(trial) for trial in trials] == ["complete", "pruned", "complete"]


@pytest.mark.parametrize("url, message", [
    ("postgresql://nobody@127.0.0.1:1/x", "the database postgresql+psycopg://nobody@127.0.0.1:1/x cannot be "
     "reached: connection failed"),
    ("postgresq://a/b", "STORAGE is no address of a database"), ("nonsense", "STORAGE is no address of a database")])
def test_a_storage_that_is_not_there_is_asked_for_and_told(grid, tool, monkeypatch, url, message):
    monkeypatch.setattr("cvkit.sweep.engine.PATIENCE", 0.3)
    monkeypatch.setattr("cvkit.sweep.engine.PAUSE", 0.1)
    code, out, err = tool("sweep.py", grid, "SWEEP.STORAGE", url)
    assert code == 2 and message in err and "Traceback" not in err
    assert ("waiting    for the database" in out) == ("reached" in message)


def test_trials_of_a_study_that_is_gone_are_not_taken_for_new_ones(grid, tool):
    run_sweep(load_sweep(grid, ["SWEEP.TRIALS", "1"]))
    Path("runs/grid/journal.log").unlink()
    code, _, err = tool("sweep.py", grid)
    assert code == 2 and "runs/grid has trials of another sweep\n  Move them elsewhere" in err


@pytest.mark.parametrize("damage", [b"\x00\xff\n", b'{"op_code": 4, "wor\n{}\n', b"5\n", b"[]\n"])
def test_a_damaged_journal_is_told(grid, tool, damage):
    run_sweep(load_sweep(grid, ["SWEEP.TRIALS", "1"]))
    with open("runs/grid/journal.log", "ab") as file:
        file.write(damage)
    code, _, err = tool("sweep.py", grid)
    assert code == 2 and "runs/grid/journal.log is damaged" in err


def test_nothing_is_written_through_links(grid, tool, tmp_path):
    run_sweep(load_sweep(grid, ["SWEEP.TRIALS", "1"]))
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    Path("runs/grid/sweep.html").unlink()
    Path("runs/grid/sweep.html").symlink_to(victim)
    code, _, err = tool("sweep.py", grid)
    assert code == 2 and "runs/grid/sweep.html is a link to" in err and victim.read_text() == "mine"
    Path("runs/grid/sweep.html").unlink()
    # As versions left it that were killed while they wrote.
    Path("runs/grid/journal.log.lock").symlink_to("runs/grid/journal.log")
    code, _, err = tool("sweep.py", grid)
    assert code == 2 and "runs/grid/journal.log.lock is a link to" in err and "Remove it" in err


def test_a_password_is_not_shown(grid, tool, monkeypatch):
    monkeypatch.setattr("cvkit.sweep.engine.PATIENCE", 0.0)
    code, out, err = tool("sweep.py", grid, "SWEEP.STORAGE", "postgresql://me:secret@127.0.0.1:1/x")
    assert code == 2 and "secret" not in out + err and "me:***@" in err


def test_without_optuna_the_way_to_install_it_is_told(grid, tool, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = tool("sweep.py", grid)
    assert code == 2 and "a sweep needs Optuna" in err and "pip install 'optuna>=5.0'" in err


def test_workers_and_status(grid, tool):
    code, _, err = tool("sweep.py", grid, "--workers", "0")
    assert code == 2 and "--workers is 1 or more, not 0" in err
    code, out, _ = tool("sweep.py", grid, "--status")
    assert code == 0 and out == "sweep      grid: 0 of 6 trials finished\n"
    run_sweep(load_sweep(grid, ["SWEEP.TRIALS", "2"]))
    code, out, _ = tool("sweep.py", grid, "--status")
    assert code == 0 and "sweep      grid: 2 of 6 trials finished: 2 complete" in out
    assert re.search(r"best       trial [01]: test accuracy \d+\.\d\d % with lr 0.01, momentum", out)


# -- several processes -------------------------------------------------------------------


def start(*words, folder, **options):
    return subprocess.Popen([sys.executable, "-m", "cvkit", "sweep", *words], cwd=folder, text=True,
                            encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)


@pytest.fixture
def slow_grid(tmp_path):
    """A sweep for processes of their own, whose epochs take a while."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "slowly.py").write_text(
        "import time\nfrom cvkit import Reporter\nfrom cvkit.registry import WRITERS\n\n"
        "@WRITERS.register()\nclass slowly(Reporter):\n"
        "    def epoch(self, state, values):\n        time.sleep(0.4)\n")
    (tmp_path / "grid.yaml").write_text(
        GRID + "IMPORTS: [slowly.py]\nWRITERS: [{NAME: slowly}]\nTRAIN: {EPOCHS: 4}\n")
    return tmp_path


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_neither_ctrl_c_nor_a_killed_process_loses_a_trial_and_the_same_command_goes_on(slow_grid):
    folder = slow_grid / "runs" / "grid"

    def trained():
        return {path.parent.name: path.read_text() for path in folder.glob("trial_*/metrics.jsonl")}

    process = start("grid.yaml", "--workers", "2", folder=slow_grid)
    wait_for(lambda: len(trained()) >= 2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 130, out
    assert out.count("Stopping after this step") == 2 and "The same command goes on." in out
    assert "2 waiting" in out
    stopped = trained()
    alone = start("grid.yaml", folder=slow_grid)
    wait_for(lambda: any(text.count("\n") == 3 for text in trained().values()))
    alone.kill()
    alone.communicate()
    killed = trained()
    assert all(killed[name].startswith(text) for name, text in stopped.items())
    again = start("grid.yaml", "--workers", "2", folder=slow_grid)
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0, out
    assert "6 of 6 trials finished: 6 complete" in out
    # What had been trained of a trial was gone on from; but for a line that was being written.
    for name, text in killed.items():
        assert trained()[name].startswith(text[:text.rfind("\n", 0, -1) + 1])
    assert all(text.count("\n") == 4 for text in trained().values())
    assert sorted(values_of("grid.yaml")) == sorted(POINTS)
    assert len({trial.user_attrs["worker"] for trial in trials_of("grid.yaml").values()}) >= 2
    assert not list((folder / ".workers").iterdir())
    numbers = [original(trial) for trial in trials_of("grid.yaml").values()]
    assert sorted(f"trial_{number:04d}" for number in numbers) == sorted(
        path.name for path in folder.glob("trial_*"))
    shutil.rmtree(folder)
