"""A trained model used elsewhere: all ways say the same of the same pictures."""

import csv
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, paint
from PIL import Image

import cvkit
from cvkit.config import load_config
from cvkit.session import train


@pytest.fixture
def left(tmp_path, tiny):
    """A checkpoint and test pictures in a folder, and what the run said of them; all else is gone."""
    random = np.random.default_rng(0)
    paint(tmp_path / "data", "train", 16, random)
    paint(tmp_path / "data", "test", 12, random)
    run = train(load_config(tiny, {"DATA.DATASET": {"NAME": "ImageFolder", "root": "data"}, "DATA.LIMIT": 0,
                                   "TRAIN.PRECISION": "fp32", "OPTIMIZER.lr": 1e-3}))
    predictions = run.predictions
    shutil.copytree(tmp_path / "data" / "test", tmp_path / "left" / "pictures")
    shutil.copy(run.checkpoints / "last.pt", tmp_path / "left" / "best.pt")
    for name in ("data", "runs"):
        shutil.rmtree(tmp_path / name)
    return tmp_path / "left", predictions


@pytest.mark.slow
def test_predict_evaluate_python_and_onnxruntime_say_the_same_without_the_training_s_data(left):
    """Each as a user starts it; the demo's page and the report's are compared in tests of their own."""
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, said = left
    for words in (["predict.py", "best.pt", "pictures", "--csv", "out.csv", "--top", "3"],
                  ["export.py", "best.pt", "--out", "model.onnx", "--images", "pictures"]):
        done = subprocess.run([sys.executable, ROOT / "tools" / words[0], *words[1:]], cwd=folder,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    with open(folder / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [said.classes[number] for number in said.predicted]
    assert np.array_equal(np.float32([row["probability"] for row in rows]), said.probabilities.max(1))
    found = cvkit.Predictor(folder / "best.pt")(folder / "pictures")
    assert np.array_equal(np.stack([item.probabilities for item in found]), said.probabilities)
    pixels = np.stack([np.asarray(Image.open(item.file).convert("RGB")) for item in found])
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    probabilities, = session.run(None, {"images": pixels})
    assert np.abs(probabilities - said.probabilities).max() < 1e-5
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "model.onnx", "out.csv", "pictures"]
