import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, paint

from cvkit.config import load_config
from cvkit.session import build_trainer, train
from cvkit.system.log import FILE, LOG, SCREEN, ProgressBar, run_log, screen
from cvkit.training.lr_finder import find_rate


class Clock:
    """A clock that moves by itself: so many seconds each time it is looked at."""

    def __init__(self, pace=0.0):
        self.now, self.pace = 0.0, pace

    def monotonic(self):
        self.now += self.pace
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("cvkit.system.log.time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr("cvkit.system.log._FIRST_WAIT", 10)
    screen.begin()
    return clock


def test_the_log_file_is_clean_and_has_what_came_before_it(tmp_path, capsys):
    with run_log() as log:
        LOG.info("first")
        log.attach(tmp_path)
        LOG.info("on the screen only", extra=SCREEN)
        LOG.info("in the file only", extra=FILE)
    LOG.info("of nothing")
    assert (tmp_path / "train.log").read_text() == "first\nin the file only\n"
    assert capsys.readouterr().out == "first\non the screen only\nof nothing\n"


def test_the_bar_reads_as_users_know_it(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with ProgressBar("Train", 2) as bar:
        for _ in range(2):
            if bar.step():
                bar.update(1.25, 0.5)
    assert "Train: Loss=1.2500 Accuracy=50.00 2/2 [00:0" in capsys.readouterr().out


def test_a_bar_of_what_is_done_soon_is_not_shown(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with ProgressBar("Reading images", 1, delay=2) as bar:
        assert bar.step()
        bar.update()
    assert capsys.readouterr() == ("", "")


def test_a_bar_that_an_error_ends_is_drawn_no_more(capsys, monkeypatch):
    """A notebook keeps the error, and with it the bar, which tqdm draws again below each line."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(KeyboardInterrupt) as kept, ProgressBar("Train", 2) as bar:
        bar.update(1.25, 0.5)
        raise KeyboardInterrupt
    assert kept.value.__traceback__ is not None
    capsys.readouterr()
    LOG.info("the next training")
    assert capsys.readouterr().out == "the next training\n"


def test_without_a_terminal_there_is_a_line_now_and_then(capsys, clock):
    said = {}
    progress = ProgressBar("Train", 10_000, unit="batch", place="Epoch 2/20")
    for _ in range(2000):  # a batch each second
        clock.now += 1
        if progress.step():
            progress.update(0.5, 0.75)
        said.setdefault(capsys.readouterr().out, int(clock.now))
    said.pop("")
    assert list(said.values()) == [10, 30, 70, 150, 310, 610, 910, 1210, 1510, 1810]
    assert list(said)[:2] == [
        "Epoch 2/20 train 10/10000: loss 0.5000, accuracy 75.00 %, 1 batch/s, 2:46:30 left\n",
        "Epoch 2/20 train 30/10000: loss 0.5000, accuracy 75.00 %, 1 batch/s, 2:46:10 left\n"]


def test_lines_that_come_anyhow_are_signs_of_life_enough(capsys, clock):
    for epoch in range(20):
        progress = ProgressBar("Train", 9)
        for _ in range(9):
            clock.now += 1
            if progress.step():
                progress.update(0.5, 0.75)
        LOG.info(f"Epoch {epoch}")
    assert capsys.readouterr().out.splitlines() == [f"Epoch {epoch}" for epoch in range(20)]


@pytest.mark.parametrize("unit, done, seconds, expected", [
    ("image", 4000, 10, "Reading images 5000/8000: 400 images/s, 00:07 left\n"),
    ("batch", 1, 40, "Reading images 1001/8000: 0.025 batches/s, 77:46:00 left\n")])
def test_a_line_tells_the_speed_without_the_start(capsys, clock, unit, done, seconds, expected):
    progress = ProgressBar("Reading images", 8000, unit=unit)
    clock.now += 90  # a GPU wakes up, images are read
    progress.step(1000)
    LOG.info("")
    capsys.readouterr()
    clock.now += seconds
    assert progress.step(done)
    progress.update()
    assert capsys.readouterr().out == expected


def test_nothing_is_foretold_from_the_first_step(capsys, clock):
    progress = ProgressBar("Train", 391)
    clock.now += 17.6
    progress.step()
    progress.update(2.3)
    assert capsys.readouterr().out == "Train 1/391: loss 2.3000, the first after 18 s\n"


def test_the_speed_of_a_resumed_epoch_counts_its_own_batches(capsys, clock):
    progress = ProgressBar("Train", 300, done=200)
    progress.step()
    clock.now += 20
    assert progress.step(9)
    progress.update(1.0)
    assert capsys.readouterr().out == "Train 210/300: loss 1.0000, 0.45 batches/s, 03:20 left\n"


def test_a_training_without_a_terminal_shows_how_far_it_is_and_the_log_stays_clean(tiny, clock, capsys):
    clock.pace = 1.5
    run = train(load_config(tiny, {"TRAIN.EPOCHS": 1}))
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "batches/s" in line]
    assert lines and all(re.fullmatch(
        r"Epoch 1/1 (train|test) \d/\d: loss \d\.\d{4}, accuracy \d+\.\d\d %, \S+ batches/s, "
        r"\d\d:\d\d left", line) for line in lines), lines
    assert "batches/s" not in (run.folder / "train.log").read_text()


def test_what_else_takes_long_shows_how_far_it_is(tiny, clock, capsys, tmp_path):
    paint(tmp_path / "painted", "train", 12, np.random.default_rng(0))
    paint(tmp_path / "painted", "test", 2, np.random.default_rng(0))
    clock.pace = 1.5
    trainer = build_trainer(load_config(tiny, {
        "DATA.DATASET": {"NAME": "ImageFolder", "root": "painted"}, "DATA.LIMIT": 0,
        "DATA.BATCH_SIZE": 8}))
    assert "Reading train images" in capsys.readouterr().out
    trainer.loaders.train.first_batch()
    for _ in trainer.loaders.train:
        pass
    assert "Preparing images" in capsys.readouterr().out
    find_rate(trainer.state, trainer.parts, 1e-4, 1.0, 20)
    assert re.search(r"^Finding the learning rate \d+/20: loss \d\.\d+, \S+ steps/s, \d\d:\d\d left$",
                     capsys.readouterr().out, re.MULTILINE)


def test_the_logger_silences_lines_and_bars(capsys, clock, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    LOG.setLevel("WARNING")
    try:
        LOG.info("not said")
        with ProgressBar("Train", 9) as bar:
            clock.now = 100
            assert bar.step()
            bar.update(1.0, 1.0)
        assert capsys.readouterr() == ("", "")
    finally:
        LOG.setLevel("INFO")


def test_a_silent_log_shows_no_progress(capsys, clock):
    with ProgressBar("Train", 9, is_silent=True) as bar:
        clock.now = 100
        assert bar.step()
        bar.update(1.0, 1.0)
    assert capsys.readouterr() == ("", "")


def test_a_level_that_was_chosen_before_stays():
    code = ("import logging; logging.getLogger('cvkit').setLevel('WARNING')\n"
            "from cvkit.system.log import LOG; print(logging.getLevelName(LOG.level))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout == "WARNING\n"


def test_names_that_cannot_be_written_are_escaped_on_the_screen_and_in_the_log(tmp_path, capsys):
    """A file's name may hold bytes that are no text, or signs that turn round a line."""
    with run_log() as log:
        log.attach(tmp_path)
        LOG.info("left out   bad\udcff.png, a\u202eb.png, a\x1b[2Jb.png\tand more")
    expected = "left out   bad\\udcff.png, a\\u202eb.png, a\\x1b[2Jb.png\tand more\n"
    assert capsys.readouterr().out == expected
    assert (tmp_path / "train.log").read_text(encoding="utf-8") == expected


def test_a_bar_moves_in_a_notebook_and_not_where_its_packages_are_imported(monkeypatch):
    kernelapp = pytest.importorskip("ipykernel.kernelapp")
    assert not screen.is_live
    monkeypatch.setattr(kernelapp.IPKernelApp, "initialized", lambda: True)
    assert screen.is_live
