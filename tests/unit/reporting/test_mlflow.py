"""What MLflow keeps of a run, read back from its own database."""

import math
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import fill, stops_after
from PIL import Image

from cvkit.config import load_config
from cvkit.registry import WRITERS
from cvkit.reporting.tracking import scalars
from cvkit.runs.finding import find_runs
from cvkit.runs.folder import Run
from cvkit.session import train

mlflow = pytest.importorskip("mlflow")

NODES = [{"NAME": "curves"}, {"NAME": "misclassified", "count": 3}, {"NAME": "cam", "count": 2}]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A database without runs, which takes MLflow seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def database(empty, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    Path("runs").mkdir()
    shutil.copy(empty, "runs/mlflow.db")


class Kept:
    """What a database has of its only experiment, whose newest run is `run`."""

    def __init__(self, path="runs/mlflow.db", name="cvkit"):
        self.client = mlflow.MlflowClient(f"sqlite:///{Path(path).resolve()}")
        self.experiment = self.client.get_experiment_by_name(name)
        self.runs = self.client.search_runs([self.experiment.experiment_id])
        self.run = self.runs[0]
        self.artifacts = Path(self.run.info.artifact_uri.removeprefix("file://"))

    def histories(self):
        return {name: [(metric.step, metric.value) for metric in
                       self.client.get_metric_history(self.run.info.run_id, name)]
                for name in self.run.data.metrics}


def histories_of(run):
    """What metrics.jsonl says, by name as (epoch, value)."""
    names = scalars(run.metrics[0])
    return {name: [(epoch["epoch"], epoch[name]) for epoch in run.metrics] for name in names}


def writers(**arguments):
    return {"WRITERS": [{"NAME": "mlflow", **arguments}]}


@pytest.fixture
def stops():
    """Writers that stop a training after its third epoch, of which MLflow was told."""
    stops_after(3)
    return [{"NAME": "mlflow"}, {"NAME": "Stops"}]


def test_all_of_a_run_is_kept(quick):
    config = load_config(quick, {**writers(), "VISUALIZERS": NODES, "DATA.VAL_FRACTION": 0.2,
                                 "OPTIMIZER.lr": 1e-3})
    run, kept = train(config), Kept()
    assert len(kept.runs) == 1 and kept.run.info.status == "FINISHED"
    assert kept.run.info.run_name == f"tiny/{run.folder.name}"
    assert kept.run.info.run_id == (run.folder / "mlflow_id.txt").read_text()
    length = {"TRAIN.EPOCHS": "2", "TRAIN.EARLY_STOP": "0"}
    assert {key: kept.run.data.tags[key] for key in length} == length
    parameters = {key: str(value) for key, value in run.hyperparameters.items() if key not in length}
    assert kept.run.data.params == {**parameters, "DETERMINISTIC": "false", "TRAIN.CHANNELS_LAST": "true",
                                    "TRAIN.DECAY_NORM_AND_BIAS": "true", "TRAIN.SYNC_BATCHNORM": "false",
                                    "TRAIN.EMA_LOOKAHEAD": "false"}
    predictions = run.predictions
    assert kept.histories() == {**histories_of(run), "test/loss": [(predictions.epoch, predictions.loss)],
                                "test/accuracy": [(predictions.epoch, predictions.accuracy)]}
    assert kept.artifacts.parents[1] == Path("runs/mlartifacts").resolve()
    files = {str(path.relative_to(kept.artifacts)) for path in kept.artifacts.rglob("*.*")}
    pictures = {"pictures/misclassified.png", "pictures/cam.png"}
    assert files == {"config.yaml", "environment.txt", "train.log", "metrics.jsonl", "predictions.npz",
                     "checkpoints/best.pt", *pictures}
    for name in files - pictures:
        assert (kept.artifacts / name).read_bytes() == (run.folder / name).read_bytes(), name
    opened = Run(run.folder)
    for node in NODES[1:]:
        opened.draw(node).savefig("drawn.png")
        drawn = np.asarray(Image.open("drawn.png").convert("RGB"))
        assert np.array_equal(np.asarray(Image.open(kept.artifacts / f"pictures/{node['NAME']}.png")), drawn)


def test_a_resumed_run_goes_on_in_the_same_one(quick, stops):
    with pytest.raises(KeyboardInterrupt):
        train(load_config(quick, {"WRITERS": stops, "TRAIN.EPOCHS": 5}))
    before = Kept()
    assert before.run.info.status == "KILLED"
    run = train(load_config(quick, {**writers(), "TRAIN.EPOCHS": 5}), resume=True)
    kept = Kept()
    assert [each.info.run_id for each in kept.runs] == [before.run.info.run_id]
    assert kept.histories() == histories_of(run) and kept.run.info.status == "FINISHED"
    first = before.client.get_metric_history(before.run.info.run_id, "lr")[0]
    assert first.timestamp < before.run.info.end_time  # it was not written again
    run = train(load_config(quick, {**writers(), "TRAIN.EPOCHS": 6}), resume=True)
    longer = Kept()
    assert len(longer.runs) == 1 and longer.run.info.run_id == kept.run.info.run_id
    assert longer.histories() == histories_of(run) and len(longer.histories()["lr"]) == 6
    assert longer.run.data.tags["TRAIN.EPOCHS"] == "6"
    assert (longer.artifacts / "metrics.jsonl").read_text() == (run.folder / "metrics.jsonl").read_text()


def test_what_was_tested_twice_after_the_same_epoch_is_kept_once(quick):
    settings = {**writers(), "DATA.VAL_FRACTION": 0.2, "OPTIMIZER.lr": 1e-9}
    train(load_config(quick, settings))
    run = train(load_config(quick, {**settings, "TRAIN.EPOCHS": 3}), resume=True)
    steps = [step for step, _ in Kept().histories()["test/accuracy"]]
    assert steps.count(run.predictions.epoch) == 1 and max(Counter(steps).values()) == 1


def test_a_run_that_goes_on_from_an_earlier_epoch_has_no_values_of_later_ones(quick, stops):
    with pytest.raises(KeyboardInterrupt):
        train(load_config(quick, {"WRITERS": stops, "TRAIN.EPOCHS": 4}))
    before = Kept()
    assert [step for step, _ in before.histories()["lr"]] == [1, 2, 3]
    [folder] = find_runs("runs")
    os.replace(folder / "checkpoints" / "previous.pt", folder / "checkpoints" / "last.pt")
    run = train(load_config(quick, {**writers(), "TRAIN.EPOCHS": 4}), resume=True)
    kept = Kept()
    # MLflow cannot take a value back: another run has taken its place.
    assert len(kept.runs) == 1 and kept.run.info.run_id != before.run.info.run_id
    assert kept.client.get_run(before.run.info.run_id).info.lifecycle_stage == "deleted"
    assert kept.histories() == histories_of(run) and len(kept.histories()["lr"]) == 4
    assert kept.run.info.run_name == f"tiny/{folder.name}"


def test_a_run_that_mlflow_no_longer_has_begins_anew(quick):
    run = train(load_config(quick, writers()))
    kept = Kept()
    kept.client.delete_run(kept.run.info.run_id)
    run = train(load_config(quick, {**writers(), "TRAIN.EPOCHS": 3}), resume=True)
    again = Kept()
    assert again.run.info.run_id != kept.run.info.run_id and again.histories() == histories_of(run)


def test_a_uri_of_the_config_counts_more_than_one_of_the_environment(quick, empty, monkeypatch):
    for name in ("environment", "config"):
        shutil.copy(empty, f"{name}.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path('environment.db').resolve()}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "digits")
    run = train(load_config(quick, writers()))
    assert Kept("environment.db", "digits").histories() == histories_of(run)
    uri = f"sqlite:///{Path('config.db').resolve()}"
    run = train(load_config(quick, writers(tracking_uri=uri, experiment="others")))
    assert Kept("config.db", "others").histories() == histories_of(run)
    client = mlflow.MlflowClient(f"sqlite:///{Path('runs/mlflow.db').resolve()}")
    assert [each.name for each in client.search_experiments()] == ["Default"]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://a", "sqlite:///tiny.yaml/no.db"])
def test_what_cannot_be_reached_costs_a_line(quick, uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = train(load_config(quick, writers(tracking_uri=uri)))
    lines = (run.folder / "train.log").read_text().splitlines()
    [line] = [line for line in lines if "MLflow" in line]
    assert line.startswith("note       MLflow failed, and the training goes on without it: ")
    assert len(run.metrics) == 2 and run.predictions.epoch == 2 and "Stopped" not in lines


@pytest.fixture
def opened(run):
    """A reporter to a run of MLflow that has nothing but parameters."""
    def build():
        uri = f"sqlite:///{Path('runs/mlflow.db').resolve()}"
        made = WRITERS.build({"NAME": "mlflow", "tracking_uri": uri}, folder=str(run.folder),
                             config=run.config)
        made.start(None, 2)
        return made
    return build


def test_values_of_all_kinds_are_kept(opened):
    made = opened()
    values = {"val/f1/don't": 0.5, "val/f1/Ähre (süß)": 0.25, "val/loss": math.nan, "count": 3}
    made.add(1, values)
    made.add(2, {f"class/{number}": number / 7 for number in range(2500)})
    kept = Kept().histories()
    assert kept["val/f1/don_t"] == [(1, 0.5)] and kept["val/f1/Ähre _süß_"] == [(1, 0.25)]
    assert math.isnan(kept["val/loss"][0][1]) and kept["count"] == [(1, 3.0)]
    assert all(kept[f"class/{number}"] == [(2, number / 7)] for number in (0, 999, 1000, 2499))
    assert len(kept) == 2504


def test_parameters_of_any_number_and_length_are_kept(opened, monkeypatch):
    many = {**{f"key{number}": number for number in range(250)}, "long": "x" * 9000,
            "TRAIN.EPOCHS": 2, "TRAIN.EARLY_STOP": 0}
    monkeypatch.setattr(Run, "hyperparameters", many)
    opened()
    found = Kept().run.data.params
    assert len(found) == 251 and found["key249"] == "249" and found["long"] == "x" * 6000


def test_classes_whose_names_mlflow_does_not_take_may_stand_in_the_config(quick):
    fill(Path("own"), {"a#b": 5, "c": 5}, (32, 32))
    train(load_config(quick, {**writers(), "DATA.DATASET": {"NAME": "ImageFolder", "root": "own"}, "DATA.LIMIT": 0,
                              "LOSS.weight": {"a#b": 2.0}, "TRAIN.EPOCHS": 1}))
    run = Kept().run
    assert run.info.status == "FINISHED" and run.data.params["LOSS.weight.a_b"] == "2.0"
