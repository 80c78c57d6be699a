"""Exported files: what they hold, that they say what the model says, and that others are not kept."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, model_node
from helpers import needs_time
from torch import nn

import cvkit
from cvkit.config import load_config
from cvkit.deployment import export as module
from cvkit.deployment.export import ENDINGS, _before, export, export_model
from cvkit.deployment.graph import InferenceGraph
from cvkit.errors import ConfigError, DataError, UserError
from cvkit.models import build_model
from cvkit.registry import DATASETS, MODELS
from cvkit.runs.checkpoint import Checkpoint
from cvkit.runs.folder import Run
from cvkit.session import train

onnxruntime = pytest.importorskip("onnxruntime", reason='pip install -e ".[dev]"')
onnx = pytest.importorskip("onnx", reason='pip install -e ".[dev]"')

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
FAST = ["Sequential", "resnet18", "resnet9", "vit", "mobilenet_v3_small", "shufflenet_v2_x0_5"]
# Two more families, of those that take seconds. What is left takes an hour, MaxViT minutes of it and
# Swin half a minute: CVKIT_ALL_MODELS=1 runs it. An export itself compares what it wrote with the model.
SMALLEST = ["convnext_tiny", "googlenet"]
ALL = list(MODELS)
TOO_LARGE = {"regnet_y_128gf", "vit_h_14"}  # for one ONNX file
REST = [name for name in ALL if name not in FAST + SMALLEST]


def pictures(side, channels=3, count=40):
    """Smooth images, which differ, uint8 (count, side, side, channels)."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.uniform(0, 255, (count, channels, 5, 5)))
    return nn.functional.interpolate(coarse, (side, side), mode="bilinear").permute(
        0, 2, 3, 1).round().byte().numpy()


def awake(model, images):
    """Return a model with random weights whose probabilities depend on the image.

    With any other statistics of BatchNorm the signal dies out within an EfficientNet, and a wrong
    graph would say the same.
    """
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 64 - 2
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and not weight.any():  # a head that starts at zero
                nn.init.normal_(weight, 0, 0.02)
        for norm in norms:
            norm.momentum = None  # the statistics become the batch's own
        if norms:
            model.train()(batch)
        logits = model.eval()(batch)
        last = [layer for layer in model.modules()
                if getattr(layer, "weight", None) is not None and layer.weight.ndim > 1][-1]
        last.weight.mul_(0.3 / logits.std(0).mean())
        if last.bias is not None:
            last.bias.sub_(model(batch).mean(0))
        assert model(batch).softmax(1).std(0).max() > 0.01
    return model


def built(name):
    """Return a model of the registry and images of the smallest size that it takes."""
    torch.manual_seed(0)
    node = model_node(name)
    if name in ("googlenet", "inception_v3"):
        node["init_weights"] = False  # takes them half a minute
    for side in (32,) if name in MODELS.own else (64, 96, 224):
        try:
            images = pictures(side, count=40 if side < 224 else 20)
            return awake(build_model(node, 10, (3, side, side)), images), images
        except ConfigError as error:
            refused = error
    raise refused


@pytest.fixture
def tiny_model():
    """A model that is exported in a second, and 20 images for it."""
    torch.manual_seed(0)
    images = pictures(16, count=20)
    return awake(nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                               nn.Linear(8 * 49, 5)), images), images


def written(model, images, path, **arguments):
    return export_model(model, path, images, mean=MEAN, std=STD, metadata={"a": "b"}, **arguments)


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def run_pt2(path, images):
    with torch.no_grad():
        return torch.export.load(path).module()(torch.from_numpy(images)).numpy()


RUN = {"onnx": run_onnx, "torch_export": run_pt2}


def test_every_model_is_in_one_of_the_lists():
    assert len(ALL) == len(FAST) + len(SMALLEST) + len(REST) >= 82


@pytest.mark.parametrize("name", [
    *FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SMALLEST),
    *(pytest.param(name, marks=[pytest.mark.slow, needs_time]) for name in REST)])
def test_each_model_says_the_same_in_onnx(name, tmp_path):
    model, images = built(name)
    if name in TOO_LARGE:
        with pytest.raises(UserError, match=r"the weights are 2\.\d GB, and one ONNX file holds 2 GB"):
            written(model, images, tmp_path / "model.onnx")
        return
    if name == "resnet9" and torch.__version__.startswith("2.8."):
        # That exporter lacks its pooling, which is told, and what to do.
        with pytest.raises(UserError, match=r"cannot write the model: [^\n]*\n  Try --format torch_export"):
            written(model, images, tmp_path / "model.onnx")
        assert os.listdir(tmp_path) == []
        return
    done = written(model, images, tmp_path / "model.onnx")
    assert done.difference <= 1e-4 and done.agreement == 1 and done.images == len(images)
    assert os.listdir(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("format", ENDINGS)
def test_the_batch_is_free(format, precision, tiny_model, tmp_path):
    model, images = tiny_model
    path = tmp_path / f"model{ENDINGS[format]}"
    done = written(model, images, path, format=format, precision=precision)
    graph = InferenceGraph(model, MEAN, STD)
    for count in (1, 2, 17):
        batch = images[:count]
        with torch.no_grad():
            expected = graph(torch.from_numpy(batch)).numpy()
        found = RUN[format](path, batch)
        assert found.shape == (count, 5) and found.dtype == np.float32
        assert np.abs(found - expected).max() <= (1e-5 if precision == "fp32" else 2e-3)
    assert (done.difference == 0) == (format == "torch_export" and precision == "fp32")


@pytest.mark.parametrize("format", ENDINGS)
def test_fp16_halves_the_file(format, tmp_path):
    model, images = built("resnet18")
    sizes = {}
    for precision in ("fp32", "fp16"):
        path = tmp_path / f"{precision}{ENDINGS[format]}"
        done = written(model, images, path, format=format, precision=precision)
        sizes[precision] = path.stat().st_size
        assert done.difference <= {"fp32": 1e-5, "fp16": 3e-3}[precision]
    assert 0.48 < sizes["fp16"] / sizes["fp32"] < 0.53


def test_a_weight_too_large_for_fp16_is_refused(tiny_model, tmp_path):
    model, images = tiny_model
    model[0].weight.data[0, 0, 0, 0] = 1e6
    with pytest.raises(UserError, match=r"differs from the model by up to nan, and 0\.02 .* in fp16"):
        written(model, images, tmp_path / "model.onnx", precision="fp16")
    assert os.listdir(tmp_path) == []


class Other(InferenceGraph):
    def forward(self, images):
        return super().forward(images.flip(3))


class AcrossImages(InferenceGraph):
    def forward(self, images):
        return self.model(self.normalise(images)).softmax(0)


@pytest.mark.parametrize("format", ENDINGS)
@pytest.mark.parametrize("wrong", [Other, AcrossImages])
def test_a_graph_that_says_something_else_is_refused(wrong, format, tiny_model, tmp_path, monkeypatch):
    model, images = tiny_model
    trace = module.trace
    monkeypatch.setattr(module, "trace", lambda graph, shape: trace(wrong(model, MEAN, STD), shape))
    path = tmp_path / f"model{ENDINGS[format]}"
    path.write_text("kept")
    with pytest.raises(UserError, match=r"model\.\w+ is not kept: .* differs from the model by up to 0\.\d+, and 0\.0001"):
        written(model, images, path, format=format, overwrite=True)
    assert os.listdir(tmp_path) == [path.name] and path.read_text() == "kept"


@pytest.mark.parametrize("format", ENDINGS)
def test_a_graph_for_one_size_of_batch_is_refused(format, tiny_model, tmp_path, monkeypatch):
    model, images = tiny_model
    monkeypatch.setattr(module, "trace", lambda graph, shape: torch.export.export(
        graph, (torch.zeros(1, *shape, dtype=torch.uint8),)))
    with pytest.raises(UserError, match="the file cannot be run on a batch of 2: "):
        written(model, images, tmp_path / f"model{ENDINGS[format]}", format=format)
    assert os.listdir(tmp_path) == []


class Branching(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :5] * (2 if images.sum() > 0 else 1)


def test_a_model_that_cannot_be_traced_is_one_message(tmp_path):
    with pytest.raises(UserError) as caught:
        written(Branching(), pictures(16), tmp_path / "model.onnx")
    message = str(caught.value)
    assert message.startswith("torch.export cannot trace the model: ") and len(message) < 500
    assert "data-dependent" in message and os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(tiny_model, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*model\.onnx: No space left on device"):
        written(*tiny_model, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == []


def test_more_than_one_onnx_file_holds_is_refused(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(module._MOST_BYTES, "onnx", 1000)
    with pytest.raises(UserError, match=r"one ONNX file holds 2 GB\n.*--format torch_export"):
        written(*tiny_model, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(package, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'{package} .*\n  pip install onnx onnxruntime onnxscript'):
        written(*tiny_model, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == []


# -- runs and checkpoints ----------------------------------------------------------------------


def test_a_run_is_exported_with_its_metadata_and_says_what_its_predictions_say(run, tool):
    code, out, _ = tool("export.py", run.folder, "--format", "onnx")
    path = run.folder / "model.onnx"
    assert code == 0 and "check      on 40 test images\n" in out
    assert f"Written to {path}, " in out and "100.0% have the same class" in out
    session = onnxruntime.InferenceSession(path)
    assert [(item.name, item.type, item.shape) for item in session.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", 32, 32, 3])]
    assert [(item.name, item.type, item.shape) for item in session.get_outputs()] == [
        ("probabilities", "tensor(float)", ["batch", 10])]
    images = run.loaders.test.source.take(range(30), 0)[0].numpy()
    # Those were computed in the precision of the training.
    assert np.abs(run_onnx(path, images) - run.predictions.probabilities[:30]).max() < 2e-3
    checkpoint, found = run.checkpoint(), session.get_modelmeta().custom_metadata_map
    assert {key: json.loads(found[key]) for key in ("classes", "mean", "std", "input_size")} == {
        "classes": list("0123456789"), "mean": checkpoint.mean, "std": checkpoint.std,
        "input_size": [32, 32, 3]}
    assert found["config"] == checkpoint.config and found["precision"] == "fp32"
    assert found["cvkit_version"] == cvkit.__version__
    assert found["input"] == "images: uint8 (N, 32, 32, 3), RGB, 0-255; normalised in the graph"
    assert found["before"] == ("not in the graph: turned as EXIF says; transparent pixels laid on 255; another "
                               "size than 32x32 resized to it, averaging over areas where it becomes smaller, else "
                               "bilinearly; []")
    assert not [tensor for tensor in onnx.load(path, load_external_data=False).graph.initializer
                if tensor.external_data]
    assert str(cvkit.__file__).encode() not in path.read_bytes()


def test_what_takes_any_size_is_said_to_be_resized_by_nothing_else(tiny):
    own = [{"NAME": "SmallestMaxSize", "max_size": 24}, {"NAME": "CenterCrop", "height": 24, "width": 24}]
    run = train(load_config(tiny, {"DATA.TRAIN_TRANSFORMS": own, "DATA.TEST_TRANSFORMS": own, "TRAIN.EPOCHS": 1}))
    said = "; ".join(_before(run.checkpoint()))
    assert "resized" not in said and said.endswith(
        "laid on 255; [SmallestMaxSize(max_size=24), CenterCrop(height=24, width=24)]")


def test_a_run_of_a_gpu_that_is_not_here_is_checked_on_its_images(run, capsys):
    path = run.folder / "config.yaml"
    path.write_text(re.sub("DEVICE: .*", "DEVICE: cuda:7", path.read_text()))
    export(run.folder, "torch_export", overrides=["DEVICE", "cpu"])
    assert "check      on 40 test images\n" in capsys.readouterr().out


def test_a_file_that_is_there_stays_unless_told(run, tool):
    path = run.folder / "model.pt2"
    path.write_text("mine")
    code, _, err = tool("export.py", run.folder, "--format", "torch_export")
    assert code == 2 and path.read_text() == "mine"
    assert err == f"error: {path} is there already\n  --overwrite replaces it, --out names another file.\n"
    code, *_ = tool("export.py", run.folder, "--format", "torch_export", "--overwrite")
    extra = dict.fromkeys(("classes", "input_size"), "")
    torch.export.load(path, extra_files=extra)
    assert code == 0 and json.loads(extra["classes"]) == list("0123456789")


def test_a_pt2_file_runs_where_cvkit_is_not(run, tmp_path):
    out = export(run, "torch_export", out=tmp_path / "model.pt2").path
    images = run.loaders.test.source.take(range(3), 0)[0]
    np.save(tmp_path / "images.npy", images.numpy())
    code = """import sys, numpy, torch
model = torch.export.load("model.pt2").module()
assert not [name for name in sys.modules if name.startswith("cvkit")]
numpy.save("found.npy", model(torch.from_numpy(numpy.load("images.npy"))).detach().numpy())"""
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
    with torch.no_grad():
        expected = run.model(run.loaders.test.normalise(images)).softmax(1).numpy()
    assert np.abs(np.load(tmp_path / "found.npy") - expected).max() < 1e-6
    assert out == tmp_path / "model.pt2"


def test_an_onnx_file_runs_with_onnxruntime_alone(run, tmp_path):
    export(run, out=tmp_path / "model.onnx")
    images = run.loaders.test.source.take(range(3), 0)[0]
    np.save(tmp_path / "images.npy", images.numpy())
    code = """import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
numpy.save("found.npy", session.run(None, {"images": numpy.load("images.npy")})[0])
assert not {"torch", "cvkit", "onnx"} & set(sys.modules)"""
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
    with torch.no_grad():
        expected = run.model(run.loaders.test.normalise(images)).softmax(1).numpy()
    assert np.abs(np.load(tmp_path / "found.npy") - expected).max() < 1e-5


def test_a_lone_checkpoint_is_checked_on_noise_or_on_given_images(painted, tmp_path, capsys):
    folder = tmp_path / "alone"
    folder.mkdir()
    shutil.copy(painted.folder / "checkpoints" / "last.pt", folder / "best.pt")
    assert export(folder / "best.pt").path == folder / "best.onnx"
    out = capsys.readouterr().out
    assert out == ("note       it is checked on noise only, which says less than images do: a lone "
                   "checkpoint has no images; --images FOLDER gives some\n"
                   "check      on 40 noise images\n")
    given = painted.config.DATA.DATASET.root
    assert export(folder / "best.pt", images=given, overwrite=True).agreement == 1
    assert capsys.readouterr().out == "check      on 40 images\n"
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=f"none of the images in {folder} can be read"):
        export(folder / "best.pt", images=folder, overwrite=True)
    assert "left out   " in capsys.readouterr().out
    (folder / "broken.png").unlink()
    flip = {"TTA": [{"NAME": "HorizontalFlip"}]}
    export(folder / "best.pt", images=given, overwrite=True, overrides=flip)
    assert capsys.readouterr().out.startswith("note       TTA is not in the file: ")
    with pytest.raises(UserError, match=f"{folder} holds no images"):
        export(folder / "best.pt", images=folder, overwrite=True)


def test_a_run_whose_data_is_gone_is_checked_on_noise(painted, capsys):
    run = Run(painted.folder, {"DATA.DATASET.root": "gone"})
    assert export(run).path == run.folder / "model.onnx"
    assert "checked on noise only, which says less than images do: " in capsys.readouterr().out


def test_nothing_is_downloaded_for_the_check(run, capsys):
    @DATASETS.register()
    def Fetched(download: bool = True):
        raise DataError(f"download is {download}")

    path = run.folder / "config.yaml"
    path.write_text(path.read_text().replace("NAME: Digits", "NAME: Fetched"))
    export(run.folder, "torch_export")
    assert "less than images do: download is False; --images" in capsys.readouterr().out


def test_grey_images_that_are_not_square(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 11, 3)).eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 1), dtype=np.uint8)
    path = tmp_path / "model.onnx"
    done = export_model(model, path, images, mean=(0.3,), std=(0.2,), metadata={})
    assert done.difference < 1e-6
    assert onnxruntime.InferenceSession(path).get_inputs()[0].shape == ["batch", 16, 24, 1]


def test_a_lone_checkpoint_runs_no_code(run, tmp_path, quick):
    (tmp_path / "mine.py").write_text("""
from torch import nn
from cvkit import MODELS
open("ran.txt", "a").close()
@MODELS.register()
def mine(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))
""")
    own = train(load_config(quick, {"IMPORTS": [str(tmp_path / "mine.py")], "MODEL.NAME": "mine", "TRAIN.EPOCHS": 1}))
    path = tmp_path / "alone.pt"
    shutil.copy(own.folder / "checkpoints" / "last.pt", path)
    assert export(own).difference < 1e-5
    os.remove("ran.txt")
    done = subprocess.run([sys.executable, ROOT / "tools" / "export.py", path, "--format", "onnx"],
                          capture_output=True, text=True)
    assert done.returncode == 2 and f'IMPORTS "[{tmp_path / "mine.py"}]" imports it, if you trust it' in done.stderr
    assert not os.path.exists("ran.txt") and not path.with_suffix(".onnx").exists()


@pytest.mark.parametrize("arguments, message", [
    (("--format", "onxn"), "error: --format onxn is not known\n  Did you mean onnx? Allowed: onnx, torch_export.\n"),
    (("--format", "onnx", "--precision", "bf16"), "error: --precision bf16 is not known\n  Did you mean fp16? Allowed: fp32, fp16.\n"),
    (("--format", "onnx", "--out", "a.pt2"), "error: a.pt2 is no name for --format onnx\n  It ends in .onnx.\n"),
    (("--format", "onnx", "--out", "b/a.onnx"), "error: cannot write b/a.onnx: there is no folder b\n  Make it first.\n")])
def test_a_wrong_flag_is_one_message(arguments, message, run, tool):
    assert tool("export.py", run.folder, *arguments) == (2, "", message)


def test_a_link_in_the_run_is_not_written_through(run, tmp_path):
    (run.folder / "model.onnx.part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link to"):
        export(run)
    assert Checkpoint.load(run.folder / "checkpoints" / "last.pt").classes == list("0123456789")
    assert not (tmp_path / "elsewhere").exists()
