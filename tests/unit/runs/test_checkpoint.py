import numpy as np
import pytest
import torch

from cvkit.errors import CheckpointError
from cvkit.runs.checkpoint import Checkpoint, load_weights


def test_it_holds_tensors_and_plain_values_only(run):
    for name in ("last", "best"):
        content = torch.load(run.folder / "checkpoints" / f"{name}.pt", weights_only=True)
        assert content["classes"] == list("0123456789") and content["image_shape"] == [3, 32, 32]
        assert len(content["mean"]) == 3 and content["monitored"] == "test"
        assert content["config"] == run.config.dump()
        assert (content["training"] is None) == (name == "best")
    assert content["model"]["fc.weight"].shape == (10, 32)


def test_a_checkpoint_alone_predicts_what_the_run_predicted(run, tmp_path):
    from cvkit.registry import DATASETS

    moved = tmp_path / "elsewhere.pt"
    (run.folder / "checkpoints" / "last.pt").rename(moved)
    checkpoint = Checkpoint.load(moved)
    model = checkpoint.build_model()
    assert not model.training
    predictions = run.predictions
    images = DATASETS.build("Digits").test.images[predictions.index].astype(np.float32) / 255
    images = (images - np.float32(checkpoint.mean)) / np.float32(checkpoint.std)
    with torch.no_grad():
        probabilities = model(torch.from_numpy(images).permute(0, 3, 1, 2)).softmax(1).numpy()
    # The run computed in the machine's own precision, this in fp32.
    assert np.abs(probabilities - predictions.probabilities).max() < 0.03
    assert checkpoint.epoch == predictions.epoch == 2


def test_a_file_is_written_whole_or_not_at_all(run, monkeypatch):
    checkpoint = run.checkpoint("last")
    before = (run.folder / "checkpoints" / "last.pt").read_bytes()

    def fail(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match="cannot write .*disk full"):
        checkpoint.save(run.folder / "checkpoints" / "last.pt")
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == [
        "best.pt", "last.pt", "previous.pt"]
    assert (run.folder / "checkpoints" / "last.pt").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_damaged_files_are_refused(run, content):
    path = run.folder / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:-500] if content is None else content)
    with pytest.raises(CheckpointError, match="is damaged or no checkpoint"):
        Checkpoint.load(path)


def test_files_of_others_and_with_code_are_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not written by this version of cvkit"):
        Checkpoint.load(tmp_path / "other.pt")
    torch.save({"format": 1, "code": print}, tmp_path / "code.pt")
    with pytest.raises(CheckpointError, match="is damaged or no checkpoint"):
        Checkpoint.load(tmp_path / "code.pt")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        Checkpoint.load(tmp_path / "gone.pt")


def test_weights_that_do_not_fit_are_listed():
    model = torch.nn.Linear(2, 3)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, {"weight": torch.zeros(3, 4), "extra": torch.zeros(1)}, "x.pt")
    assert str(caught.value) == ("x.pt does not fit the model: bias is missing; extra is not in the "
                                 "model; weight is (3, 4), the model's (3, 2)")
