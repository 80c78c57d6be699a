import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cvkit.config import load_config
from cvkit.errors import CheckpointError, RunError
from cvkit.evaluation import evaluate
from cvkit.registry import DATASETS
from cvkit.run import open_run
from cvkit.trainer import train

FP32 = ["TRAIN.PRECISION", "fp32"]


@pytest.fixture
def run(tiny):
    return train(load_config(tiny, FP32))


def test_predictions_are_the_model_s_on_the_test_images_and_no_others(run):
    predictions = run.predictions
    test = DATASETS.build("Digits").test
    labels = dict(zip(test.index.tolist(), test.labels.tolist(), strict=True))
    assert len(predictions.index) == 150 and set(predictions.index) <= set(test.index)
    assert [labels[place] for place in predictions.index] == predictions.true.tolist()

    checkpoint = run.checkpoint()
    images = test.images[predictions.index].astype(np.float32) / 255
    images = (images - np.float32(checkpoint.mean)) / np.float32(checkpoint.std)
    with torch.no_grad():
        logits = checkpoint.build_model()(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert np.allclose(predictions.probabilities, logits.softmax(1), atol=1e-5)
    assert predictions.predicted.tolist() == logits.argmax(1).tolist()
    loss = F.cross_entropy(logits, torch.from_numpy(predictions.true))
    assert predictions.loss == pytest.approx(float(loss), rel=1e-5)  # over images, 64 + 64 + 22
    assert run.metrics[-1]["test/loss"] == pytest.approx(predictions.loss, rel=1e-6)
    assert run.metrics[-1]["test/accuracy"] == predictions.accuracy
    log = (run.folder / "train.log").read_text()
    assert f"Accuracy: {predictions.correct}/150 ({100 * predictions.accuracy:.2f}%)" in log


def test_evaluating_again_writes_the_same_predictions(run):
    before = run.predictions
    (run.folder / "predictions.npz").unlink()
    again = evaluate(run.folder)
    for name, value in vars(before).items():
        assert np.array_equal(getattr(again, name), value), name
        assert np.array_equal(getattr(run.predictions, name), value)


def test_a_moved_run_is_evaluated_where_it_is(run, tmp_path):
    shutil.move(run.folder, tmp_path / "moved")
    assert evaluate(tmp_path / "moved").accuracy == open_run(tmp_path / "moved").predictions.accuracy
    assert not run.folder.exists()


def test_the_newest_run_is_evaluated_by_default(run):
    before = run.predictions.probabilities
    (run.folder / "predictions.npz").unlink()
    assert np.array_equal(evaluate().probabilities, before)
    assert np.array_equal(run.predictions.probabilities, before)


def test_test_images_are_normalised_as_in_training_even_if_the_training_images_changed(tiny):
    from pathlib import Path

    from test_datasets import fill

    for split in ("train", "test"):
        fill(Path("x") / split, {"a": 20, "b": 20}, size=(32, 32))
    before = train(load_config(tiny, [*FP32, "DATA.DATASET", "{NAME: ImageFolder, root: x}",
                                      "DATA.LIMIT", "0"]))
    expected = before.predictions.probabilities
    fill(Path("more"), {"a": 30}, size=(32, 32))
    for path in Path("more/a").iterdir():
        path.rename(Path("x/train/a") / f"more{path.name}")
    assert np.array_equal(evaluate(before).probabilities, expected)


def test_data_that_changed_its_classes_is_refused(run):
    path = run.folder / "config.yaml"
    text = path.read_text().replace("NAME: Digits", "NAME: ImageFolder\n    root: x")
    path.write_text(text)
    from pathlib import Path

    from test_datasets import fill

    fill(Path("x"), {name: 80 for name in "ab"}, size=(32, 32))
    with pytest.raises(CheckpointError, match="was trained on the classes 0, 1, 2"):
        evaluate(run.folder)


def test_a_run_without_checkpoint_is_refused(run):
    shutil.rmtree(run.folder / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        evaluate(run.folder)
    with pytest.raises(RunError, match="no run with a checkpoint"):
        evaluate()
