import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from cvkit.config import load_config
from cvkit.registry import MODELS, WRITERS
from cvkit.runs.folder import Run, open_run
from cvkit.runs.metrics_file import add_metrics, keep_epochs, read_metrics
from cvkit.session import train

RECORD = {"epoch": 1, "lr": 0.1, "train/loss": 2.5, "test/accuracy": 0.25}


def test_jsonl_has_one_object_per_epoch(tmp_path):
    for epoch in (1, 2, 3):
        add_metrics(tmp_path, {**RECORD, "epoch": epoch})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert json.loads(lines[0]) == RECORD == read_metrics(tmp_path)[0]


def test_a_line_cut_off_by_a_crash_is_left_out_and_later_epochs_are_dropped(tmp_path):
    for epoch in (1, 2, 3):
        add_metrics(tmp_path, {**RECORD, "epoch": epoch})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "lr"')
    assert len(read_metrics(tmp_path)) == 3
    keep_epochs(tmp_path, 2)
    assert [values["epoch"] for values in read_metrics(tmp_path)] == [1, 2]
    add_metrics(tmp_path, {**RECORD, "epoch": 3})
    assert len(read_metrics(tmp_path)) == 3


def test_no_file_is_no_epochs(tmp_path):
    assert read_metrics(tmp_path) == []


# -- TensorBoard ---------------------------------------------------------------------------------


class Events:
    """A folder of runs, read as the page reads it."""

    def __init__(self, folder):
        from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

        self.runs = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
        self.names = sorted(self.runs.Runs())

    def tags(self, run, plugin):
        return set(self.runs.PluginRunToTagToContent(plugin).get(run, {}))

    def values(self, run, tag):
        from tensorboard.util.tensor_util import make_ndarray

        return [(event.step, make_ndarray(event.tensor_proto))
                for event in self.runs.Tensors(run, tag)]

    def scalars(self, run, tag):
        return [(step, float(value)) for step, value in self.values(run, tag)]

    def pictures(self, run, tag):
        """Return (step, width, height, pixels) of each; the page takes the first two as text."""
        return [(step, int(width), int(height), np.asarray(Image.open(io.BytesIO(png))))
                for step, (width, height, png) in self.values(run, tag)]

    def hyperparameters(self, run):
        from tensorboard.plugins.hparams import metadata

        content = self.runs.PluginRunToTagToContent("hparams")[run]
        assert set(content) == {metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG}
        start = metadata.parse_session_start_info_plugin_data(
            content[metadata.SESSION_START_INFO_TAG])
        return {key: getattr(value, value.WhichOneof("kind"))
                for key, value in start.hparams.items()}

    def graph(self, run):
        from tensorboard.compat.proto.graph_pb2 import GraphDef

        return GraphDef.FromString(self.runs.Graph(run).SerializeToString()).node


def name_of(run):
    return f"{run.folder.parent.name}/{run.folder.name}"


def with_tensorboard(**overrides):
    return {"WRITERS": [{"NAME": "tensorboard"}], "TRAIN.EPOCHS": 1, **overrides}


NODES = [{"NAME": "curves"}, {"NAME": "misclassified", "count": 3}, {"NAME": "cam", "count": 2},
         {"NAME": "cam", "count": 1, "method": "LayerCAM", "layer": ["layer1", "layer2"]}]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two runs: one with pictures; one with validation images, other optimizer, no pictures."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "tiny.yaml").write_text(TINY)
    output = {"OUTPUT_DIR": str(folder / "runs")}
    first = train(load_config(folder / "tiny.yaml", {
        **with_tensorboard(VISUALIZERS=NODES), **output, "TRAIN.EPOCHS": 2}))
    second = train(load_config(folder / "tiny.yaml", {
        **with_tensorboard(), **output, "TRAIN.EPOCHS": 3, "DATA.VAL_FRACTION": 0.2,
        "OPTIMIZER": {"NAME": "AdamW", "lr": 0.01, "betas": [0.9, 0.99]}}))
    return Events(folder / "runs"), first, second


def test_runs_are_named_by_config_and_start(written):
    events, *runs = written
    assert events.names == [name_of(run) for run in runs]
    assert all(name.startswith("tiny/20") for name in events.names)


def test_scalars_are_those_of_metrics_jsonl(written):
    events, *runs = written
    for run in runs:
        names = {key for key in run.metrics[0] if key not in ("epoch", "rates", "lower_is_better")}
        assert {"lr", "train/loss", f"{run.monitored}/accuracy"} <= names
        for tag in names:
            expected = [(epoch["epoch"], float(np.float32(epoch[tag]))) for epoch in run.metrics]
            assert events.scalars(name_of(run), tag) == expected, tag


def test_the_test_accuracy_is_a_metric_of_every_run(written):
    events, first, second = written
    assert len(events.scalars(name_of(first), "test/accuracy")) == 2
    predictions = second.predictions
    for tag, value in (("test/accuracy", predictions.accuracy), ("test/loss", predictions.loss)):
        assert events.scalars(name_of(second), tag) == [
            (predictions.epoch, float(np.float32(value)))]


def test_hyperparameters_are_one_record_of_the_run_itself(written):
    events, first, second = written
    values = events.hyperparameters(name_of(first))
    assert values["OPTIMIZER.lr"] == 0.05 and values["OPTIMIZER.momentum"] == 0.9
    assert values["MODEL.NAME"] == "resnet18" and values["DETERMINISTIC"] == "false"
    assert values["DATA.TRAIN_TRANSFORMS"] == (
        "[RandomCrop(size=32, padding=4), CutOut(size=8)]")
    for run in (first, second):
        assert set(events.hyperparameters(name_of(run))) == set(run.hyperparameters)
    assert events.hyperparameters(name_of(second))["OPTIMIZER.betas"] == "[0.9, 0.99]"


def test_pictures_are_those_that_the_run_draws(written):
    events, first, second = written
    assert events.tags(name_of(first), "images") == {"misclassified", "cam", "cam_LayerCAM_layer1_layer2"}
    assert events.tags(name_of(second), "images") == set()
    run = Run(first.folder)  # reads the data again, which the trainer's did not
    for tag, node in zip(("misclassified", "cam", "cam_LayerCAM_layer1_layer2"), NODES[1:]):
        figure, png = run.draw(node), io.BytesIO()
        figure.savefig(png, format="png")
        [(step, *size, pixels)] = events.pictures(name_of(first), tag)
        assert step == 2
        assert size == pytest.approx(figure.get_size_inches() * figure.dpi, abs=1)
        assert np.array_equal(pixels, np.asarray(Image.open(png).convert("RGB")))


def test_the_graph_has_every_layer(written):
    events, *runs = written
    for run in runs:
        scopes = [node.name for node in events.graph(name_of(run))]
        layers = [name for name, module in run.model.named_modules()
                  if isinstance(module, (nn.Conv2d, nn.Linear))]
        assert len(layers) == 21
        for name in layers:
            kind = type(run.model.get_submodule(name)).__name__
            place = "/".join(f"[{part}]" for part in name.split("."))
            assert any("/".join(f"[{part.split('[')[1]}" for part in scope.split("/") if "[" in part)
                       == place and f"/{kind}[" in scope for scope in scopes), name


def test_the_model_is_left_as_it_was(written):
    for run in written[1:]:
        assert not any(module.training for module in run.model.modules())
        for name, value in run.checkpoint().model.items():
            assert torch.equal(run.model.state_dict()[name], value)


def test_pictures_and_graph_can_be_left_out(quick, monkeypatch):
    writer = {"NAME": "tensorboard", "pictures": False, "graph": False}
    monkeypatch.setattr(Run, "draw", lambda *args: pytest.fail("drawn"))
    run = train(load_config(quick, with_tensorboard(VISUALIZERS=NODES, WRITERS=[writer])))
    events = Events("runs")
    assert events.tags(name_of(run), "images") == set()
    assert not events.runs.GetAccumulator(name_of(run)).Tags()["graph"]
    assert events.hyperparameters(name_of(run))["SEED"] == 0


def test_several_figures_of_one_node_are_several_pictures(quick, monkeypatch):
    figures = [Figure(figsize=(2, 1), dpi=50), Figure(figsize=(3, 1), dpi=50)]
    monkeypatch.setattr(Run, "draw", lambda *args: figures)
    run = train(load_config(quick, with_tensorboard(VISUALIZERS=[{"NAME": "cam"}])))
    events = Events("runs")
    sizes = {tag: events.pictures(name_of(run), tag)[0][1:3] for tag in ("cam", "cam_2")}
    assert sizes == {"cam": (100, 50), "cam_2": (150, 50)}


def test_a_picture_that_cannot_be_drawn_costs_a_line(tiny, capsys):
    nodes = [{"NAME": "cam", "layer": "nowhere"}, {"NAME": "misclassified"}]
    run = train(load_config(tiny, with_tensorboard(VISUALIZERS=nodes)))
    [line] = [line for line in capsys.readouterr().out.splitlines() if "TensorBoard" in line]
    assert line == "TensorBoard has no cam_nowhere: the model has no layer 'nowhere'"
    events = Events("runs")
    assert events.tags(name_of(run), "images") == {"misclassified"}
    assert len(events.graph(name_of(run))) > 20
    assert "Stopped" not in (run.folder / "train.log").read_text()


@pytest.mark.parametrize("kind, expected", [
    ("a dict", "RuntimeError: Encountering a dict"), ("sizes", "KeyError: tensor(32)")])
def test_a_model_that_cannot_be_traced_costs_a_line(tiny, capsys, recwarn, kind,
                                                    expected):

    class Odd(nn.Sequential):
        def forward(self, images):
            logits = super().forward(images)
            if kind == "sizes":
                return {32: logits}[images.shape[-1]]
            return {"logits": logits} if torch.jit.is_tracing() else logits

    @MODELS.register()
    def odd(num_classes):
        return Odd(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))

    run = train(load_config(tiny, with_tensorboard(MODEL={"NAME": "odd"})))
    out, err = capsys.readouterr()
    [line] = [line for line in out.splitlines() if "TensorBoard" in line]
    assert f"no graph: the model cannot be traced, {expected}" in line and len(line) < 300
    assert out.splitlines().count(line) == 1 and err == "" and not list(recwarn)  # torch's own words
    assert Events("runs").hyperparameters(name_of(run))["MODEL.NAME"] == "odd"


def test_epochs_after_the_resumed_one_are_gone(tmp_path):
    def write(epochs):
        reporter = WRITERS.build("tensorboard", folder=str(tmp_path))
        for epoch in epochs:
            values = {**RECORD, "epoch": epoch, "train/loss": len(epochs) - epoch}
            add_metrics(tmp_path, values)
            reporter.epoch(SimpleNamespace(epoch=epoch), values)
        reporter.stopped(None, KeyboardInterrupt())

    write(range(1, 5))
    keep_epochs(tmp_path, 2)
    write([])
    assert Events(tmp_path).scalars(".", "train/loss") == [(1, 3.0), (2, 2.0)]
    write([3])
    assert Events(tmp_path).scalars(".", "train/loss") == [(1, 3.0), (2, 2.0), (3, -2.0)]


def test_a_run_trained_longer_has_one_end(quick):
    overrides = with_tensorboard(VISUALIZERS=NODES[1:2], **{"DATA.VAL_FRACTION": 0.2})
    run = train(load_config(quick, overrides))
    train(load_config(quick, {**overrides, "TRAIN.EPOCHS": 3}), resume=True)
    events, name = Events("runs"), name_of(run)
    assert events.names == [name] and len(list(run.folder.glob("events*"))) == 1
    assert events.scalars(name, "train/loss") == [
        (epoch["epoch"], float(np.float32(epoch["train/loss"]))) for epoch in run.metrics]
    assert events.hyperparameters(name)["TRAIN.EPOCHS"] == 3
    predictions = open_run().predictions
    assert [step for step, _ in events.scalars(name, "test/accuracy")] == [predictions.epoch]
    assert [step for step, *_ in events.pictures(name, "misclassified")] == [predictions.epoch]


def test_without_pictures_nothing_that_draws_is_imported(tiny):
    code = ("import sys; from cvkit import load_config, train; "
            f"train(load_config({str(tiny)!r}, {with_tensorboard()!r})); "
            "print(*sorted({'matplotlib', 'pytorch_grad_cam', 'tensorboard'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout.splitlines()[-1] == "tensorboard"
    assert done.stderr == ""
