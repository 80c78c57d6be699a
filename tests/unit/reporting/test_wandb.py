"""What Weights & Biases keeps of a run, read back from the file that it writes offline."""

import base64
import hashlib
import json
import math
import os
import struct
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import stops_after
from PIL import Image

from cvkit.config import load_config
from cvkit.registry import WRITERS
from cvkit.reporting.tracking import scalars
from cvkit.runs.finding import find_runs
from cvkit.runs.folder import Run
from cvkit.session import train

pytest.importorskip("wandb")

NODES = [{"NAME": "curves"}, {"NAME": "misclassified", "count": 3}, {"NAME": "cam", "count": 2}]
ITS_OWN = {"_step", "_runtime", "_timestamp"}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def records(path):
    """Yield what a .wandb file consists of: blocks of 32 KiB, of parts with a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = Path(path).read_bytes(), 7, b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", data[place:place + 7])
        whole += data[place + 7:place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # all of a record, or its end
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


class Kept:
    """What is in the only offline run of a run folder."""

    def __init__(self, folder):
        [self.folder] = Path(folder, "wandb").glob("offline-run-*")
        [path] = self.folder.glob("*.wandb")
        self.rows, self.config, self.files, found = [], {}, {}, []
        # Another process writes it, which may take a moment longer.
        for _ in range(100):
            found = [(record.WhichOneof("record_type"), record) for record in records(path)]
            if any(kind == "exit" for kind, _ in found):
                break
            time.sleep(0.1)
        for kind, record in found:
            if kind == "history":
                row = {}
                for item in record.history.item:
                    name = "/".join(item.nested_key) or item.key
                    row[name] = json.loads(item.value_json)
                self.rows.append({name: value for name, value in row.items() if name not in ITS_OWN})
            elif kind == "run":
                self.run = record.run
                self.config |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json)
                                for item in record.run.config.update}
            elif kind == "artifact":
                self.files = {item.path: item for item in record.artifact.manifest.contents}
            elif kind == "exit":
                self.code = record.exit.exit_code
        self.config.pop("_wandb", None)


def rows_of(run):
    """What metrics.jsonl says, as W&B shows it."""
    return [{"epoch": values["epoch"], **scalars(values)} for values in run.metrics]


def writers(**arguments):
    return {"WRITERS": [{"NAME": "wandb", **arguments}]}


@pytest.fixture
def stops():
    """Writers that stop a training after its third epoch, of which W&B was told."""
    stops_after(3)
    return [{"NAME": "wandb"}, {"NAME": "Stops"}]


def test_all_of_a_run_is_kept_in_its_folder(quick, capsys):
    config = load_config(quick, {**writers(), "VISUALIZERS": NODES, "DATA.VAL_FRACTION": 0.2,
                                 "OPTIMIZER.lr": 1e-3})
    run = train(config)
    kept, predictions = Kept(run.folder), run.predictions
    assert (kept.run.display_name, kept.run.project) == (f"tiny/{run.folder.name}", "cvkit")
    assert kept.run.run_id == (run.folder / "wandb_id.txt").read_text() and kept.code == 0
    assert kept.config == run.hyperparameters
    *epochs, test, pictures = kept.rows
    assert epochs == rows_of(run)
    assert test == {"epoch": predictions.epoch, "test/loss": predictions.loss,
                    "test/accuracy": predictions.accuracy}
    opened = Run(run.folder)
    assert pictures["epoch"] == predictions.epoch
    for node in NODES[1:]:
        opened.draw(node).savefig("drawn.png")
        drawn = np.asarray(Image.open("drawn.png").convert("RGB"))
        path = kept.folder / "files" / pictures[f"{node['NAME']}/path"]
        assert np.array_equal(np.asarray(Image.open(path).convert("RGB")), drawn)
    assert set(kept.files) == {"config.yaml", "environment.txt", "train.log", "metrics.jsonl",
                               "predictions.npz", "checkpoints/best.pt"}
    for name, item in kept.files.items():
        path = run.folder / name
        # By path and hash: it has no copy.
        assert Path(item.local_path) == path.resolve()
        assert base64.b64decode(item.digest) == hashlib.md5(path.read_bytes()).digest()
    assert {path.name for path in Path().iterdir()} <= {"tiny.yaml", "runs", "drawn.png", ".cache"}
    assert "wandb" not in capsys.readouterr().err


def test_a_resumed_run_is_the_same_and_has_each_epoch_once(quick, stops):
    with pytest.raises(KeyboardInterrupt):
        train(load_config(quick, {"WRITERS": stops, "TRAIN.EPOCHS": 5}))
    [folder] = find_runs("runs")
    before = Kept(folder)
    assert [row["epoch"] for row in before.rows] == [1, 2, 3] and before.code == 1
    os.replace(folder / "checkpoints" / "previous.pt", folder / "checkpoints" / "last.pt")
    run = train(load_config(quick, {**writers(), "TRAIN.EPOCHS": 5}), resume=True)
    kept = Kept(folder)
    assert kept.run.run_id == before.run.run_id and kept.code == 0
    assert kept.rows == rows_of(run) and [row["epoch"] for row in kept.rows] == [1, 2, 3, 4, 5]
    run = train(load_config(quick, {**writers(), "TRAIN.EPOCHS": 6}), resume=True)
    longer = Kept(folder)
    assert longer.run.run_id == kept.run.run_id and longer.rows == rows_of(run)
    assert longer.config["TRAIN.EPOCHS"] == 6


def test_the_mode_of_the_config_counts_more_than_that_of_the_environment(quick, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_PROJECT", "digits")
    run = train(load_config(quick, writers()))
    assert not (run.folder / "wandb").exists()
    run = train(load_config(quick, writers(mode="offline")))
    assert Kept(run.folder).rows == rows_of(run) and Kept(run.folder).run.project == "digits"


@pytest.mark.parametrize("error", [OSError("no space\non the disk"), RuntimeError("")])
def test_what_cannot_begin_costs_a_line(quick, monkeypatch, error):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr("wandb.init", fails)
    run = train(load_config(quick, writers()))
    lines = (run.folder / "train.log").read_text().splitlines()
    [line] = [line for line in lines if "W&B" in line]
    reason = str(error).partition("\n")[0]
    assert line == ("note       W&B failed, and the training goes on without it: "
                    f"{type(error).__name__}: {reason}")
    assert len(run.metrics) == 2 and run.predictions.epoch == 2


def test_what_is_not_finite_is_kept(run):
    made = WRITERS.build("wandb", folder=str(run.folder), config=run.config)
    made.start(None, 2)
    made.add(1, {"val/loss": math.nan, "val/other": math.inf})
    made.close(None)
    [row] = Kept(run.folder).rows
    assert math.isnan(row["val/loss"]) and row["val/other"] in (math.inf, "Infinity")


# -- online, where a server has the run --------------------------------------------------------


class Server:
    """A module `wandb` with the runs of a server: what is logged of each, by its id."""

    Settings = Artifact = staticmethod(lambda *arguments, **options: SimpleNamespace(
        add_file=lambda *arguments, **options: None))

    def __init__(self):
        self.rows, self.summaries, self.asked = {}, {}, []

    def init(self, id, mode, resume, **options):
        self.asked.append((id, mode, resume))
        id = id or f"run{len(self.rows)}"
        rows, summary = self.rows.setdefault(id, []), self.summaries.setdefault(id, {})

        def log(row):
            rows.append(row["epoch"])
            summary.update(row)

        return SimpleNamespace(id=id, summary=summary, log=log, finish=lambda **options: None,
                               define_metric=lambda *arguments, **options: None,
                               log_artifact=lambda files: None)


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setitem(sys.modules, "wandb", server)
    server.__spec__ = SimpleNamespace(origin="wandb")
    return server


def test_online_a_resumed_run_goes_on_where_the_server_is(quick, server):
    settings = {**writers(mode="online"), "DATA.VAL_FRACTION": 0.2, "OPTIMIZER.lr": 1e-9}
    run = train(load_config(quick, {**settings, "TRAIN.EPOCHS": 3}))
    test = run.predictions.epoch
    assert server.rows == {"run0": [1, 2, 3, test]} and server.summaries["run0"]["epoch"] == 3
    del server.rows["run0"][2:]
    server.summaries["run0"]["epoch"] = 2  # the third never came there
    run = train(load_config(quick, {**settings, "TRAIN.EPOCHS": 4}), resume=True)
    assert server.rows == {"run0": [1, 2, 3, 4, run.predictions.epoch]}
    assert server.asked == [(None, "online", "allow"), ("run0", "online", "allow")]
    train(load_config(quick, writers()))
    assert server.asked[2:] == [(None, "offline", None)]  # offline W&B has nothing to go on with


def test_online_a_run_that_goes_on_from_an_earlier_epoch_is_another_one(quick, server):
    run = train(load_config(quick, {**writers(mode="online"), "TRAIN.EPOCHS": 3}))
    checkpoints = run.folder / "checkpoints"
    os.replace(checkpoints / "previous.pt", checkpoints / "last.pt")
    train(load_config(quick, {**writers(mode="online"), "TRAIN.EPOCHS": 4}), resume=True)
    assert server.rows == {"run0": [1, 2, 3], "run1": [1, 2, 3, 4]}
    assert (run.folder / "wandb_id.txt").read_text() == "run1"
