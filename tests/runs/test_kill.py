"""Runs that are stopped, killed and damaged end like the one that never was, to the bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, paint
from helpers import EVERYTHING, at_step, before_each_step, equal, train_until, without_times

from cvkit.config import load_config
from cvkit.data import ImageFiles
from cvkit.errors import RunError
from cvkit.registry import MODELS
from cvkit.registry.user_code import import_user_code
from cvkit.runs.checkpoint import Checkpoint
from cvkit.runs.finding import find_runs
from cvkit.runs.folder import Run
from cvkit.session import train
from cvkit.training.signals import Interrupted, StopSignals
from cvkit.training.trainer import Trainer

# What a state inside an epoch is made of, all at once: optimizer steps of two batches, averaged
# weights, a schedule by step, random numbers of dropout.
CONFIG = """
IMPORTS: [MODEL_FILE]
MODEL: {NAME: dropped}
DATA:
  DATASET: {NAME: Digits}
  LIMIT: 150
  BATCH_SIZE: 16
  VAL_FRACTION: 0.2
  TRAIN_TRANSFORMS: [{NAME: RandomCrop, size: 32, padding: 4}]
OPTIMIZER: {NAME: AdamW, lr: 0.01}
SCHEDULER: {NAME: OneCycleLR}
TRAIN: {EPOCHS: 4, ACCUMULATE: 2, EMA_DECAY: 0.9, CHECKPOINT_EVERY: 1 step}
"""
MODEL = """
from torch import nn
from cvkit import MODELS

@MODELS.register()
def dropped(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
                         nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, num_classes))
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The config, with one file for all of its runs: a checkpoint says where that is."""
    file = tmp_path_factory.mktemp("model") / "dropped.py"
    file.write_text(MODEL)
    with MODELS.temporarily():
        import_user_code([str(file)])
        yield CONFIG.replace("MODEL_FILE", str(file))


@pytest.fixture
def config(tmp_path, text):
    (tmp_path / "long.yaml").write_text(text)
    return tmp_path / "long.yaml"


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory):
    """A function that trains a run which nothing stops, once for the same settings."""
    runs = {}

    def trained(settings):
        key = json.dumps(settings, sort_keys=True)
        if key not in runs:
            folder = tmp_path_factory.mktemp("undisturbed")
            (folder / "long.yaml").write_text(text)
            with pytest.MonkeyPatch.context() as patched:
                patched.chdir(folder)
                runs[key] = Run(train(load_config("long.yaml", settings)).folder.resolve())
        return runs[key]
    return trained


def same(ours: Run, theirs: Run) -> None:
    """Assert that two runs ended in the same way."""
    for name in ("last", "best"):
        assert equal(vars(ours.checkpoint(name)), vars(theirs.checkpoint(name))), name
    assert without_times(ours.metrics) == without_times(theirs.metrics)
    lines = (theirs.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, len(ours.metrics) + 1))
    for part in ("index", "true", "predicted", "probabilities"):
        assert np.array_equal(getattr(ours.predictions, part), getattr(theirs.predictions, part))
    assert ours.predictions.epoch == theirs.predictions.epoch


# -- SIGINT and SIGTERM ------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def hang_ups_count():
    """Let SIGHUP not be ignored, as it is where the tests run under nohup."""
    before = hasattr(signal, "SIGHUP") and signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, before)


def stop_at(monkeypatch, config, call):
    """Train, and stop while the n-th batch is trained on."""
    with monkeypatch.context() as patched:
        at_step(patched, call, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(config)


VARIANTS = {
    "plain": {},
    "everything": EVERYTHING,
    "plateau": {"SCHEDULER": {"NAME": "ReduceLROnPlateau", "patience": 0}},
    "workers": {"DATA.WORKERS": 2, "DATA.PIPELINE": "albumentations"},
    "albumentations": {"DATA.PIPELINE": "albumentations"},
    "mixed": {"DATA.TRAIN_TRANSFORMS": [{"NAME": "MixUp"}, {"NAME": "HorizontalFlip"}]},
    "steps": {"TRAIN.CHECKPOINT_EVERY": "3 steps"},
    "minutes": {"TRAIN.CHECKPOINT_EVERY": "10 minutes"},
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
def test_a_terminal_that_closes_lets_the_step_be_saved(config):
    """A real one, to which nothing can be written any more."""
    code = (f"import fcntl, runpy, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
            f"sys.argv = ['train.py', {str(config)!r}, 'TRAIN.EPOCHS', '100000']; "
            f"runpy.run_path({str(ROOT / 'tools' / 'train.py')!r}, run_name='__main__')")
    ours, theirs = os.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs,
                          start_new_session=True) as process:
        os.close(theirs)
        shown = b""
        while b"Epoch 2/100000" not in shown:
            shown += os.read(ours, 4096)
        os.close(ours)
        assert process.wait(60) == 128 + signal.SIGHUP
    run, = map(Run, find_runs("runs"))
    saved = run.checkpoint("last")
    assert f"Interrupted {saved.place}, and saved. Go on: " in (run.folder / "train.log").read_text()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
def test_a_hang_up_that_is_ignored_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGHUP)
    assert not signals.received and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("variant, call, number", [
    *((variant, 12, signal.SIGTERM) for variant in VARIANTS),
    *((variant, 3, signal.SIGINT) for variant in ("plain", "everything", "workers")),
    pytest.param("plain", 3, getattr(signal, "SIGHUP", None), marks=pytest.mark.skipif(
        not hasattr(signal, "SIGHUP"), reason="no SIGHUP on Windows"))])
def test_a_stopped_run_goes_on_at_the_next_batch(config, undisturbed, monkeypatch, capsys, variant,
                                                 call, number):
    settings = {"TRAIN.EPOCHS": 3, **VARIANTS[variant]}
    whole, config = undisturbed(settings), load_config(config, settings)
    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        at_step(patched, call, lambda: signal.raise_signal(number))
        with pytest.raises(Interrupted) as caught:
            train(config)
    assert caught.value.signal == number and signal.getsignal(number) is before
    broken = Run(find_runs("runs")[-1])
    saved = broken.checkpoint("last")
    # 150 images make 10 batches, two of which make a step; the one under way is finished.
    assert (saved.epoch, saved.batches) == ((0, 4) if call == 3 else (1, 2))
    out = capsys.readouterr().out
    place = "in epoch 1, after batch 4" if call == 3 else "in epoch 2, after batch 2"
    command = (f"python tools/train.py {broken.folder}/config.yaml --resume {broken.folder}")
    assert f"Interrupted {place}, and saved. Go on: {command}" in out
    assert command in (broken.folder / "train.log").read_text()
    resumed = train(config, resume=True)
    assert f"resumed    {broken.folder} {place}" in capsys.readouterr().out
    assert resumed.folder == broken.folder
    same(whole, resumed)


def test_a_signal_during_the_evaluation_is_heeded_there(config, monkeypatch):
    config = load_config(config, {"TRAIN.EPOCHS": 2, "DATA.EVAL_BATCH_SIZE": 5})
    whole = train(config)
    with monkeypatch.context() as patched:
        evaluate = Trainer.evaluate
        patched.setattr(Trainer, "evaluate", lambda self: (
            signal.raise_signal(signal.SIGTERM), evaluate(self))[1])
        with pytest.raises(Interrupted):
            train(config)
    saved = Run(find_runs("runs")[-1]).checkpoint("last")
    assert (saved.epoch, saved.batches) == (0, 10)
    steps = []
    before_each_step(monkeypatch, lambda trainer, batch: steps.append(trainer.state.epoch))
    same(whole, train(config, resume=True))
    assert set(steps) == {1}  # the first epoch was only evaluated


def test_a_second_signal_stops_at_once(config, monkeypatch, capsys):
    config = load_config(config, {"TRAIN.CHECKPOINT_EVERY": "epoch"})

    def twice(trainer, batch):
        if trainer.state.epoch == 1:
            signal.raise_signal(signal.SIGINT)
            while not trainer.signals.received:  # Python looks at signals between its own steps
                time.sleep(0.001)
            signal.raise_signal(signal.SIGINT)
            time.sleep(1)

    before_each_step(monkeypatch, twice)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(config)
    assert not isinstance(caught.value, Interrupted)
    assert Run(find_runs("runs")[-1]).checkpoint("last").place == "after epoch 1"
    assert "Stopped at once after epoch 1. Go on from the last checkpoint: python" in (
        capsys.readouterr().out)


def test_skipped_batches_are_not_loaded(config, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    paint(tmp_path / "painted", "train", 40, random)
    paint(tmp_path / "painted", "test", 4, random)
    config = load_config(config, {
        "DATA.DATASET": {"NAME": "ImageFolder", "root": "painted"}, "DATA.VAL_FRACTION": 0.0,
        "DATA.LIMIT": 0, "DATA.CACHE_GB": 0.0, "TRAIN.EPOCHS": 1, "TRAIN.ACCUMULATE": 1})
    stop_at(monkeypatch, config, 6)
    read, real, begin = [], ImageFiles.__getitem__, Trainer.train
    monkeypatch.setattr(ImageFiles, "__getitem__", lambda self, place: (
        read.append(str(self.paths[place])), real(self, place))[1])
    monkeypatch.setattr(Trainer, "train", lambda self: (read.clear(), begin(self))[1])  # after the trial
    train(config, resume=find_runs("runs")[-1])
    assert len([path for path in read if "/train/" in path]) == 120 - 6 * 16


# -- SIGKILL -----------------------------------------------------------------------------------

def _train_in(folder: str, config: str, kill_at: int | None) -> None:
    """Train in a process of its own, or go on; `kill_at` is the system call it does not survive."""
    os.chdir(folder)
    torch.set_num_threads(1)
    sink = os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    if kill_at is not None:
        _die_at(kill_at)
    train(load_config(config), resume="auto")


def _die_at(number: int) -> None:
    """Kill this process at the n-th of the calls that saving is made of, before or after it."""
    calls = 0

    def deadly(call):
        def wrapped(*args, **kwargs):
            nonlocal calls
            calls += 2
            if calls - 1 == number:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **kwargs)
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return wrapped

    torch.save, os.replace, os.fsync = deadly(torch.save), deadly(os.replace), deadly(os.fsync)


def start(processes, config, kill_at=None):
    process = processes.Process(target=_train_in, args=(str(config.parent), str(config), kill_at))
    process.start()
    return process


def said() -> str:
    return Path("out.txt").read_text() if Path("out.txt").exists() else "it said nothing"


def go_on(processes, config, whole: Run) -> None:
    """Resume until the end, and compare."""
    process = start(processes, config)
    process.join(120)
    assert process.exitcode == 0, said()
    folders = find_runs("runs")
    assert len(folders) == 1, folders
    same(whole, Run(folders[0]))


@pytest.fixture(scope="module")
def whole(processes, text, tmp_path_factory):
    """The uninterrupted run, and how long it took."""
    config = tmp_path_factory.mktemp("whole") / "long.yaml"
    config.write_text(text)
    started = time.monotonic()
    process = start(processes, config)
    process.join(120)
    assert process.exitcode == 0, (config.parent / "out.txt").read_text()
    (folder,) = find_runs(config.parent / "runs")
    whole = Run(folder)
    whole.took = time.monotonic() - started
    return whole


KILLS = int(os.environ.get("CVKIT_KILLS", 6))


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_like_the_whole_one(processes, config, whole):
    random.seed(KILLS)
    done, interrupted_saving = 0, 0
    while done < KILLS:
        shutil.rmtree("runs", ignore_errors=True)
        for _ in range(min(5, KILLS - done)):  # several times in one run
            process = start(processes, config)
            process.join(random.uniform(0.05, 0.8) * whole.took)
            process.kill()
            process.join()
            if process.exitcode == 0:
                break  # it had just ended
            assert process.exitcode == -signal.SIGKILL, said()
            done += 1
            interrupted_saving += any(Path("runs").rglob("*.part"))
        go_on(processes, config, whole)
    print(f"{done} kills, {interrupted_saving} of them while saving")


SAVING = 2 * (2 + 3 + 3 + 3)  # config.yaml; three checkpoints, before and after each call


# The third checkpoint is saved as the second is.
@pytest.mark.parametrize("kill_at", [
    place if place in (5, 9, 12) else pytest.param(place, marks=pytest.mark.slow)
    for place in range(1, SAVING if KILLS > 6 else SAVING - 6)])
def test_a_run_killed_in_the_middle_of_saving_ends_like_the_whole_one(processes, config, whole,
                                                                      kill_at):
    process = start(processes, config, kill_at)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, said()
    go_on(processes, config, whole)


# -- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone"])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(config, undisturbed, monkeypatch,
                                                                capsys, damage):
    whole, config = undisturbed({"TRAIN.EPOCHS": 3}), load_config(config, {"TRAIN.EPOCHS": 3})
    stop_at(monkeypatch, config, 14)
    broken = Run(find_runs("runs")[-1])
    path = broken.checkpoints / "last.pt"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-1000])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    capsys.readouterr()
    resumed = train(config, resume=True)
    said = "no checkpoint" if damage == "gone" else r"is damaged"
    out = capsys.readouterr().out
    assert said in out and "taking the one before it, previous.pt, saved in epoch 2, after" in out
    same(whole, resumed)


@pytest.mark.parametrize("damage", ["gone", "old", "cut"])
def test_best_is_written_again_if_it_was_lost(config, undisturbed, damage):
    settings = {"TRAIN.MONITOR": "loss", "TRAIN.EPOCHS": 3, "TRAIN.CHECKPOINT_EVERY": "epoch"}
    whole, config = undisturbed(settings), load_config(config, settings)
    # As if it had been killed between the two files of its best epoch.
    run = train_until(config, whole.best["epoch"])
    path = run.checkpoints / "best.pt"
    if damage == "gone":
        path.unlink()
    elif damage == "old":
        old = Checkpoint.load(path)
        old.epoch -= 1
        old.save(path)
    else:
        path.write_bytes(path.read_bytes()[:-100])
    same(whole, train(config, resume=run.folder))


def test_an_interrupted_run_is_evaluated_as_it_is_and_older_predictions_are_not_shown(
        config, monkeypatch, tool):
    config = load_config(config, {"DATA.VAL_FRACTION": 0.0})
    for call, place in ((13, "in epoch 2, after batch 4"), (3, "in epoch 2, after batch 8")):
        with monkeypatch.context() as patched:
            at_step(patched, call, lambda: signal.raise_signal(signal.SIGTERM))
            with pytest.raises(Interrupted):
                train(config, resume="auto")
        run = Run(find_runs("runs")[-1])
        if call == 3:  # there are those of before
            with pytest.raises(RunError) as caught:
                run.visualize("misclassified")
            assert ("predictions.npz is of the model in epoch 2, after batch 4; the checkpoint was "
                    "saved in epoch 2, after batch 8") in str(caught.value)
            assert "tools/evaluate.py --run" in str(caught.value)
        code, out, err = tool("evaluate.py")
        assert code == 0 and place in out, err
        assert Run(run.folder).predictions.place == place


def test_damage_after_damage_still_finds_a_whole_checkpoint(config, undisturbed, monkeypatch):
    """What is damaged never takes the place of what is whole."""
    whole, config = undisturbed({"TRAIN.EPOCHS": 3}), load_config(config, {"TRAIN.EPOCHS": 3})
    stop_at(monkeypatch, config, 14)
    run = Run(find_runs("runs")[-1])
    last = run.checkpoints / "last.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    real = os.replace

    def replace(source, target):
        if str(source).endswith("last.pt.part"):
            raise KeyboardInterrupt
        real(source, target)

    # Resumed from the one before it, and killed between the two renames of the next saving.
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            train(config, resume=True)
    assert not last.exists() and run.checkpoint("previous").place == "in epoch 2, after batch 2"
    same(whole, train(config, resume=True))


def test_auto_passes_over_a_run_that_cannot_be_opened(config, monkeypatch, capsys):
    config = load_config(config, {"TRAIN.EPOCHS": 2})
    stop_at(monkeypatch, config, 3)
    good = Run(find_runs("runs")[-1])
    bad = shutil.copytree(good.folder, good.folder.with_name("2999-01-01_00-00-00"))
    (bad / "config.yaml").write_text("MODEL: [")
    assert train(config, resume="auto").folder == good.folder
    assert f"{bad} is left out: not valid YAML" in capsys.readouterr().out


def test_a_signal_to_the_whole_group_leaves_workers_to_finish_the_step(config):
    """As clusters, timeout and torchrun end jobs."""
    job = subprocess.Popen(
        [sys.executable, str(ROOT / "tools/train.py"), str(config), "DATA.WORKERS", "2",
         "DATA.PIPELINE", "albumentations", "TRAIN.EPOCHS", "400", "SCHEDULER", "null"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while not list(Path("runs").rglob("metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGTERM)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGTERM and "Traceback" not in err, err
    assert "and saved. Go on: python tools/train.py" in out


@pytest.mark.slow
@pytest.mark.parametrize("method, number", [("spawn", signal.SIGTERM), ("forkserver", signal.SIGINT)])
def test_a_signal_while_workers_are_being_started_leaves_them_to_finish_the_step(config, method, number):
    """As on macOS and Windows, where each imports for seconds first."""
    Path("job.py").write_text(f"""
import multiprocessing, runpy, sys
if __name__ == "__main__":
    multiprocessing.set_start_method({method!r})
    sys.argv = [{str(ROOT / "tools/train.py")!r}, {str(config)!r}, "DATA.WORKERS", "1", "DATA.PIPELINE",
                "albumentations", "TRAIN.EPOCHS", "400", "SCHEDULER", "null"]
    runpy.run_path(sys.argv[0], run_name="__main__")
""")
    job = subprocess.Popen([sys.executable, "job.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True, start_new_session=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    for line in job.stdout:
        if line.startswith("run  "):
            break
    time.sleep(0.5)
    os.killpg(job.pid, number)
    out, err = job.communicate(timeout=100)
    assert job.returncode == 128 + number and "Traceback" not in err, err
    assert "Interrupted in epoch 1, after batch 2, and saved. Go on: python tools/train.py" in out
