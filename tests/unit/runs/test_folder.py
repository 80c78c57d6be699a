import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from cvkit.config import load_config
from cvkit.config.tree import in_words
from cvkit.errors import CheckpointError, ConfigError, RunError
from cvkit.runs.compare import run_names
from cvkit.runs.finding import find_runs
from cvkit.runs.folder import MAY_CHANGE, BusyError, Run, is_among, open_run
from cvkit.runs.predictions import Predictions
from cvkit.runs.predictions import test_line as line_of
from cvkit.session import train
from cvkit.system.text import duration

PREDICTIONS = Predictions(
    index=np.array([4, 7, 9, 11]), true=np.array([0, 0, 1, 1]), predicted=np.array([0, 1, 1, 1]),
    probabilities=np.array([[0.9, 0.1, 0], [0.4, 0.6, 0], [0, 1, 0], [0.2, 0.8, 0]], np.float32),
    classes=["cat", "dog", "ox"], epoch=3, loss=0.25)


def make(config, checkpoint=True):
    run = Run.create(config, "python: 3\n")
    if checkpoint:
        (run.folder / "checkpoints" / "last.pt").write_bytes(b"")
    return run


@pytest.fixture
def config(tiny):
    return load_config(tiny)


def test_a_new_run_never_shares_a_folder(config):
    runs = [Run.create(config, "python: 3\n") for _ in range(5)]
    assert len({run.folder for run in runs}) == 5
    for run in runs:
        assert run.folder.parent.parent.name == "runs" and run.folder.parent.name == "tiny"
        assert sorted(os.listdir(run.folder)) == ["checkpoints", "config.yaml", "environment.txt"]


def test_the_config_in_the_folder_is_the_run_s(config):
    run = Run.create(config, "")
    assert run.config == config == load_config(run.folder / "config.yaml")
    assert load_config(run.folder / "config.yaml").name == "tiny"


def test_an_output_dir_that_cannot_be_written_is_refused(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Choose another place with OUTPUT_DIR"):
        Run.create(load_config(tiny, {"OUTPUT_DIR": "file/runs"}), "")


def test_the_newest_run_with_a_checkpoint_is_opened(config, tiny):
    runs = [make(config), make(config), make(config, checkpoint=False)]
    assert find_runs() == [run.folder for run in runs[:2]]
    assert open_run().folder == runs[1].folder
    assert open_run(runs[0].folder).folder == runs[0].folder
    assert open_run(runs[2].folder.relative_to("runs")).folder == runs[2].folder
    with pytest.raises(RunError, match="no run of other with a checkpoint in runs/\n  Without --resume a "
                                       "run is begun. The newest runs"):
        open_run(config_name="other")


def begun(config, name, time=None):
    """Make a run folder of a name, which says when it was begun if a time is given."""
    run = make(config)
    (run.folder / "environment.txt").write_text(f"python: 3\nbegun: {time}Z\n" if time else "python: 3\n")
    folder = run.folder.with_name(name)
    run.folder.rename(folder)
    return folder


def test_of_runs_of_one_second_the_tenth_is_the_newest(config):
    start = "2026-10-25_02-30-00"
    made = [begun(config, start + ending) for ending in ("", "_2", "_3", "_9", "_10", "_11")]
    assert find_runs("runs", "tiny") == made


def test_the_newest_run_is_the_one_that_was_begun_last_whatever_the_clock_said(config):
    """Clocks are set back an hour in autumn, and runs are copied from other time zones."""
    before = begun(config, "2026-10-25_02-50-00", "2026-10-25T00:50:00")
    after = begun(config, "2026-10-25_02-10-00", "2026-10-25T01:10:00")
    abroad = begun(config, "2026-10-24_18-20-00", "2026-10-25T01:20:00")
    assert find_runs("runs", "tiny") == [before, after, abroad]
    assert open_run(None, "runs").folder == abroad


def test_a_new_run_says_in_utc_when_it_was_begun(config, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        text = (Run.create(config, "python: 3\n").folder / "environment.txt").read_text()
        said = datetime.strptime(re.search("begun: (.*)Z", text)[1], "%Y-%m-%dT%H:%M:%S")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert abs(said.replace(tzinfo=timezone.utc).timestamp() - time.time()) < 60


def _try_lock(folder, answer):
    try:
        with Run(folder).lock():
            answer.send("free")
    except RunError as error:
        answer.send(str(error))


def test_a_folder_in_which_another_process_trains_is_left_as_it_is(run, processes):
    """As when both found nothing there, and one was quicker."""
    config, before = run.config, {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(BusyError, match="holds a run that was begun already"):
        train(config, folder=run.folder)
    shutil.rmtree(run.folder / "checkpoints")
    with run.lock(), pytest.raises(RunError, match="is being trained by"):
        train(config, folder=run.folder)
    kept = {path: content for path, content in before.items() if path.parent.name != "checkpoints"}
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == kept
    assert run.folder / "metrics.jsonl" in kept


def test_a_run_is_locked_within_a_process_too_and_stays_so_for_others(run, processes):
    def others():
        reading, answer = processes.Pipe(duplex=False)
        process = processes.Process(target=_try_lock, args=(run.folder.resolve(), answer))
        process.start()
        said = reading.recv()
        process.join()
        return said

    with run.lock():
        with (pytest.raises(RunError, match="is being trained by this process already"),
              Run(run.folder.resolve()).lock()):
            pass
        assert "is being trained by process" in others()
    assert others() == "free"
    with run.lock():
        pass


@pytest.mark.parametrize("key, may", [
    ("DATA.DATASET.root", True), ("DATA.DATASET.root_variant", False), ("WRITERS", True),
    ("WRITERS.0.NAME", True), ("DEVICES", False), ("TRAIN.COMPILE", True), ("DATA.DATASET", False)])
def test_what_may_change_is_named_whole(key, may):
    assert is_among(key, MAY_CHANGE) == may


def test_runs_that_are_not_there_are_refused(config, tmp_path):
    with pytest.raises(RunError, match=r"Train one: python tools/train\.py CONFIG"):
        open_run()
    run = make(config)
    with pytest.raises(RunError, match=f"Did you mean {run.folder}"):
        open_run(f"{run.folder}x")
    with pytest.raises(RunError, match="is not a run folder"):
        Run(tmp_path)


def test_the_newest_runs_are_listed_where_one_is_not_there(config):
    runs = [make(config).folder for _ in range(7)]
    shutil.copytree(runs[0], Path("a_copy", runs[0].name))  # is none of the newest
    for folder in runs[3:]:  # another OUTPUT_DIR, which the name of the run leads to
        shutil.copytree(folder, Path("elsewhere", *folder.parts[1:]))
    expected = "The newest runs, the last one first:\n    " + "\n    ".join(map(str, runs[:1:-1]))
    for name in ("gone", "runs/gone", "runs/tiny/2026"):
        with pytest.raises(RunError) as caught:
            open_run(name)
        assert str(caught.value).startswith(f"no run {name}\n  ") and str(caught.value).endswith(expected)
    with pytest.raises(RunError) as caught:
        open_run("elsewhere/tiny/gone")
    assert str(caught.value).count("    elsewhere/tiny/") == 4


def test_a_run_whose_config_was_lost_is_told_where_to_get_it_from(painted):
    lost = painted.folder / "config.yaml"
    config = load_config(lost)
    lost.unlink()
    with pytest.raises(RunError) as caught:
        open_run(painted.folder)
    assert str(caught.value).startswith(f"{painted.folder} has no config.yaml any more\n")
    command = str(caught.value).split(": ", 1)[1].replace("python -c", f"{sys.executable} -c", 1)
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert load_config(lost).dump() == config.dump()


@pytest.mark.parametrize("others, taken", [(["previous", "best"], "previous"), (["best"], "best")])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"half")])
def test_a_lost_last_checkpoint_names_the_command_that_takes_another(painted, others, taken, damage):
    last = painted.checkpoints / "last.pt"
    for name in ("previous", "best"):
        other = painted.checkpoints / f"{name}.pt"
        other.unlink(missing_ok=True)
        if name in others:
            shutil.copy(last, other)
    damage(last)
    with pytest.raises(CheckpointError) as caught:
        painted.checkpoint()
    assert f"{taken}.pt is beside it. To take that one: cp " in str(caught.value)
    subprocess.run(str(caught.value).split("one: ", 1)[1], shell=True, check=True)
    assert painted.checkpoint().epoch == 2


def test_predictions_are_read_back_exactly(tmp_path):
    PREDICTIONS.save(tmp_path / "predictions.npz")
    again = Predictions.load(tmp_path / "predictions.npz")
    for name, value in vars(PREDICTIONS).items():
        assert np.array_equal(getattr(again, name), value)
    assert again.accuracy == 0.75 and os.listdir(tmp_path) == ["predictions.npz"]


def test_the_table_counts_every_class():
    assert PREDICTIONS.table().splitlines() == [
        "class          precision  recall      F1  support",
        "cat               1.0000  0.5000  0.6667        2",
        "dog               0.6667  1.0000  0.8000        2",
        "ox                     –       –       –        0",
        "",
        "macro mean        0.8333  0.7500  0.7333        4",
        "weighted mean     0.8333  0.7500  0.7333        4",
        "Test set: Average loss: 0.2500, Accuracy: 3/4 (75.00%) after epoch 3"]
    assert repr(PREDICTIONS) == "<Predictions of 4 images, 75.00% right>"


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 half a file", "wrong keys"])
def test_damaged_predictions_are_refused(tmp_path, content):
    path = tmp_path / "predictions.npz"
    if content == "wrong keys":
        np.savez(path, other=1)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"python tools/evaluate\.py --run"):
        Predictions.load(path)


def test_a_moved_run_keeps_its_name(run, tmp_path):
    known = run.predictions.images
    moved = Run(run.folder.rename(tmp_path / "some where"))
    assert moved.config.name == "tiny"
    assert moved.predictions.images == known == moved.data.test.fingerprint
    with pytest.raises(RunError, match="--run '.*some where'"):
        (moved.folder / "predictions.npz").unlink()
        moved.predictions  # noqa: B018


def test_a_run_can_be_opened_with_other_places_but_no_other_network(run):
    moved = open_run(run.folder, overrides={"DATA.DATASET.download": False, "DEVICE": "cpu",
                                            "VISUALIZERS": [{"NAME": "curves"}]})
    assert moved.config.DEVICE == "cpu" and moved.config.VISUALIZERS[0].NAME == "curves"
    with pytest.raises(ConfigError, match=r"SEED cannot be changed.*\n.*DATA\.DATASET\.root"):
        open_run(run.folder, overrides=["DEVICE", "cpu", "SEED", "3"])
    with pytest.raises(ConfigError, match="Did you mean DEVICE"):
        open_run(run.folder, overrides=["DEVICES", "cpu"])


@pytest.mark.parametrize("word", ["", " ", "/", "..", "a" * 5000, "a\0b", "*", "[", "runs/**"])
def test_what_no_run_can_be_called_is_no_run(run, word):
    with pytest.raises(RunError, match="no run "):
        open_run(word)


def test_hyperparameters_are_plain_and_say_what_was_computed_not_where(run):
    values = run.hyperparameters
    assert values["MODEL.width"] == 4 and values["OPTIMIZER.lr"] == 0.05
    assert values["DETERMINISTIC"] is False and values["SCHEDULER"] == "null"
    assert values["DATA.TRAIN_TRANSFORMS"] == "[RandomCrop(size=32, padding=4), CutOut(size=8)]"
    assert all(type(value) in (bool, int, float, str) for value in values.values())
    left_out = set(run.config.flat()) - set(values)
    assert left_out - {"TRAIN.UNUSED_PARAMETERS"} == {"OUTPUT_DIR", "DEVICE", "WRITERS", "VISUALIZERS", "REQUIRE", "IMPORTS",
                        "DATA.PIPELINE", "DATA.WORKERS", "DATA.CACHE_GB", "DATA.EVAL_BATCH_SIZE", "TRAIN.COMPILE",
                        "TRAIN.CHECKPOINT_EVERY"}


def test_lines_of_metrics_that_are_no_epochs_are_left_out(run):
    path = run.folder / "metrics.jsonl"
    path.write_text("3\n[]\n{}\n" + path.read_text() + '{"epoch": 3, "cut')
    assert [epoch["epoch"] for epoch in run.metrics] == [1, 2]
    path.write_text("")
    with pytest.raises(RunError, match="has no finished epoch"):
        run.best  # noqa: B018


def test_the_best_epoch_follows_the_monitor(run):
    epochs = [{**run.metrics[0], "test/loss": 1.0, "test/accuracy": 0.5, "seconds": 2.5},
              {**run.metrics[1], "test/loss": 0.5, "test/accuracy": 0.4, "seconds": 4.0}]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    assert run.best["epoch"] == 1 and run.monitored == "test" and run.seconds == 6.5
    config = run.config.clone()
    config.defrost()
    config.TRAIN.MONITOR = "loss"
    run.config = config
    assert run.best["epoch"] == 2


def test_a_class_called_error_is_best_where_its_accuracy_is_highest(run):
    lower = {"lower_is_better": ["loss"]}
    for noted in (lower, {}):  # and in runs that noted nothing
        epochs = [{**run.metrics[0], "epoch": number, "test/accuracy/print_error": value, **noted}
                  for number, value in enumerate((0.2, 0.9, 0.4), 1)]
        if not noted:
            epochs = [{key: value for key, value in epoch.items() if key not in lower}
                      for epoch in epochs]
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in epochs))
        run.config = run.config.clone()
        run.config.defrost()
        run.config.TRAIN.MONITOR = "accuracy/print_error"
        assert run.best["epoch"] == 2


def test_runs_are_named_by_what_tells_them_apart(run, painted, config):
    other = make(config)
    assert run_names([run, painted]) == ["tiny", "painted"]
    text = (run.folder / "config.yaml").read_text()
    for name, new in (("layer", text.replace("width: 4", "width: 4\n  norm: layer")),
                      ("seed", text.replace("\nSEED: 0", "\nSEED: 1").replace("norm: layer", ""))):
        set_otherwise = run.folder.parent / name
        set_otherwise.mkdir()
        (set_otherwise / "config.yaml").write_text(new)
    assert run_names([run, Run(run.folder.parent / "layer")]) == [
        "tiny (MODEL.norm default)", "tiny (MODEL.norm layer)"]
    assert run_names([Run(run.folder.parent / "seed"), run]) == [
        "tiny (SEED 1)", "tiny (SEED 0)"]
    again = [f"tiny ({run.folder.name})", f"tiny ({other.folder.name})"]
    assert run_names([run, other]) == again
    assert run_names([run, other, painted]) == [*again, "painted"]
    assert run_names([run, other, Run(run.folder.parent / "seed")]) == [
        f"tiny (SEED 0, {run.folder.name})", f"tiny (SEED 0, {other.folder.name})", "tiny (SEED 1)"]


def test_a_run_s_name_begins_with_what_tells_most_runs_apart(run):
    text, runs = (run.folder / "config.yaml").read_text(), []
    for number in range(4):
        folder = run.folder.parent / f"other{number}"
        folder.mkdir()
        (folder / "config.yaml").write_text(text.replace("\nSEED: 0", f"\nSEED: {number // 3}").replace(
            "EPOCHS: 2", f"EPOCHS: {number + 1}"))
        runs.append(Run(folder))
    assert run_names(runs) == [f"tiny (TRAIN.EPOCHS {number + 1}, SEED {number // 3})" for number in range(4)]


def test_settings_that_are_too_long_for_a_run_s_name_are_hinted_at(run):
    text = (run.folder / "config.yaml").read_text()
    longer = text.replace("width: 4", "width: 4\n  norm: layer").replace("\nSEED: 0", "\nSEED: 1").replace(
        "size: 8", "size: 6")
    (run.folder.parent / "other").mkdir()
    (run.folder.parent / "other" / "config.yaml").write_text(longer)
    other = Run(run.folder.parent / "other")
    names = run_names([run, other])
    assert names == ["tiny (SEED 0, MODEL.norm default, …)", "tiny (SEED 1, MODEL.norm layer, …)"]


def test_values_of_a_config_in_words():
    assert in_words([{"NAME": "CutOut", "size": 8}, {"NAME": "Flip"}]) == "[CutOut(size=8), Flip]"
    assert in_words(None) == "null" and in_words(0.5) == "0.5"


@pytest.mark.parametrize("seconds, words", [(7.24, "7.2 s"), (65, "1 min 5 s"), (7260, "2 h 1 min")])
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_the_test_line():
    assert line_of(0.46543, 8581, 10000) == (
        "Test set: Average loss: 0.4654, Accuracy: 8581/10000 (85.81%)")
