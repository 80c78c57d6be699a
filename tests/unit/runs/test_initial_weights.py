import argparse
import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cvkit.config import load_config
from cvkit.errors import CheckpointError, RunError, UserError
from cvkit.registry import MODELS
from cvkit.repeat import train_seeds
from cvkit.runs.checkpoint import Checkpoint
from cvkit.runs.finding import find_run
from cvkit.runs.folder import Run
from cvkit.runs.initial_weights import read_initial_weights
from cvkit.session import build_trainer, train

NODE = {"NAME": "resnet18", "width": 4}


def begun(path, **settings):
    """Return the weights that a training begins with."""
    return build_trainer(load_config(path, settings)).state.model.state_dict()


def assert_taken(weights, ours, but=()):
    for name, value in weights.items():
        assert name in but or torch.equal(ours[name], value), name


@pytest.fixture
def weights(run):
    return run.checkpoint().model


@pytest.mark.parametrize("name", ["run", "runs", "config", "file", "below"])
def test_a_run_or_its_file_is_taken_by_any_of_its_names(run, tiny, weights, name, capsys):
    named = {"run": run.folder, "runs": run.folder.parent, "config": tiny, "below": f"tiny/{run.folder.name}",
             "file": run.folder / "checkpoints" / "last.pt"}[name]
    config = load_config(tiny, {"MODEL.INIT_FROM": str(named), "SEED": 5})
    found = read_initial_weights(config)
    assert found.words.endswith("last.pt, after epoch 2" if name == "file" else f"{run.folder.name}, after epoch 2")
    # The same classes: the head as well.
    assert_taken(weights, build_trainer(config).state.model.state_dict())
    train(config)
    assert f"weights    {found.words}\n           loaded     122 of 122 tensors, " in capsys.readouterr().out


def test_the_head_of_other_classes_begins_anew(run, tiny, weights, capsys):
    checkpoint = dataclasses.replace(run.checkpoint(), classes=list("abcdefghij"))
    checkpoint.save(run.folder.parent / "other.pt")
    before = begun(tiny)
    ours = begun(tiny, **{"MODEL.INIT_FROM": str(run.folder.parent / "other.pt")})
    assert_taken(weights, ours, ("fc.weight", "fc.bias"))
    assert torch.equal(ours["fc.weight"], before["fc.weight"])


def test_a_trained_run_needs_the_file_no_more(run, tiny, weights):
    torch.save(weights, "begin.pt")
    config = load_config(tiny, {"MODEL.INIT_FROM": "begin.pt", "TRAIN.EPOCHS": 1})
    later = train(config)
    os.remove("begin.pt")
    assert later.config.MODEL.INIT_FROM == "begin.pt"
    opened = Run(later.folder).model.state_dict()
    alone = Checkpoint.load(later.folder / "checkpoints" / "last.pt").build_model().state_dict()
    for state in (opened, alone):
        assert_taken(later.checkpoint("last").model, state)
    longer = load_config(tiny, {"MODEL.INIT_FROM": "begin.pt", "TRAIN.EPOCHS": 2})
    assert len(train(longer, resume=later.folder).metrics) == 2


WRAPPED = {
    "alone": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "model": lambda state: {"model": state, "best": np.float64(0.5), "optimizer": {"state": {}, "param_groups": []}},
    "lightning": lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()},
                                "pytorch-lightning_version": "2.5.0", "hyper_parameters": {"lr": 0.1}},
    "parallel": lambda state: {"net": {f"module.{name}": value for name, value in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "averaged": lambda state: {"model": {name: torch.zeros_like(value) for name, value in state.items()},
                               "model_ema": {"module": state}},
    "swa": lambda state: {"n_averaged": torch.tensor(3), **{f"module.{name}": value for name, value in state.items()}},
}


@pytest.mark.parametrize("form", WRAPPED)
@pytest.mark.parametrize("is_old", [False, True])
def test_files_of_other_programs_are_understood(tiny, weights, form, is_old):
    torch.save(WRAPPED[form](weights), "file.pth", _use_new_zipfile_serialization=not is_old)
    assert_taken(weights, begun(tiny, **{"MODEL.INIT_FROM": "file.pth", "SEED": 3}))
    if form == "averaged":
        found = read_initial_weights(load_config(tiny, {"MODEL.INIT_FROM": "file.pth"}))
        assert found.words == "file.pth, averaged weights (model_ema), module"


def test_safetensors_are_read(tiny, weights):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({name: value.contiguous() for name, value in weights.items()}, "file.safetensors")
    assert_taken(weights, begun(tiny, **{"MODEL.INIT_FROM": "file.safetensors"}))
    with open("cut.safetensors", "wb") as file:
        file.write(Path("file.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cut.safetensors is damaged or no safetensors file"):
        begun(tiny, **{"MODEL.INIT_FROM": "cut.safetensors"})


@pytest.mark.parametrize("content, message", [
    (nn.Linear(2, 2), "file.pt holds torch.nn.modules.linear.Linear, and reading that would run code\n"
                      "  Where it was made, torch.save(model.state_dict(), file) writes the weights alone."),
    ([torch.zeros(2)], "file.pt holds no weights by name: it is list"),
    ({"epoch": 3, "history": [1, 2]}, "file.pt holds no weights by name: it has epoch, history"),
    ({"conv.weight": torch.zeros(2)}, "It seems to be of another model: it has conv.weight."),
])
def test_files_without_fitting_weights_are_refused(tiny, content, message):
    torch.save(content, "file.pt")
    with pytest.raises(CheckpointError) as caught:
        begun(tiny, **{"MODEL.INIT_FROM": "file.pt"})
    assert message in str(caught.value) and str(caught.value.where) == "Python MODEL.INIT_FROM"


def test_a_file_that_is_no_archive_at_all_is_refused(tiny):
    with open("file.pt", "w") as file:
        file.write("not weights")
    with pytest.raises(CheckpointError, match="file.pt is damaged, or no file that torch.save wrote"):
        begun(tiny, **{"MODEL.INIT_FROM": "file.pt"})


@pytest.mark.parametrize("content, what", [
    (b"", "is empty"), (b"\n<!DOCTYPE html><html>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of Git LFS")])
@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
def test_what_was_fetched_in_place_of_a_file_is_told(tiny, name, content, what):
    Path(name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} {what}\n  Download the file itself once more."):
        begun(tiny, **{"MODEL.INIT_FROM": name})


def test_nothing_in_a_file_is_run(tiny, tmp_path):
    class Harmful:
        def __reduce__(self):
            return open, (str(tmp_path / "written"), "w")

    torch.save({"state_dict": {"a": torch.zeros(2)}, "x": Harmful()}, "file.pt")
    with pytest.raises(CheckpointError, match="and reading that would run code"):
        begun(tiny, **{"MODEL.INIT_FROM": "file.pt"})
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("settings, message", [
    ({"MODEL.INIT_FROM": "lost.pt"}, "no file lost.pt"),
    ({"MODEL.INIT_FROM": "runs/nothing"}, "no run runs/nothing"),
    ({"MODEL.INIT_FROM": "runs/tiny/begim.pth"}, "Did you mean runs/tiny/begin.pth?"),
    ({"MODEL.INIT_FROM": "https://a.org/b.pth"}, "https://a.org/b.pth is no file\n  Download it and name the file."),
    ({"MODEL.INIT_FROM": "other.yaml"},
     "no run of other with a checkpoint in runs/\n  Train one first: python tools/train.py other.yaml"),
    ({"MODEL.INIT_FROM": 3}, "INIT_FROM of model resnet18 takes str or null, not 3"),
    ({"MODEL.INIT_NEW": "layer4"}, "INIT_NEW of model resnet18 takes list[str] or null, not 'layer4'\n  Write [layer4]."),
    ({"MODEL.INIT_FORM": "a.pt"}, "model resnet18 has no argument 'INIT_FORM'\n  Did you mean INIT_FROM?"),
    ({"MODEL.INIT_FROM": "runs/tiny/begin.pth", "MODEL.INIT_NEW": ["layr4"]}, "Did you mean layer4?"),
    ({"MODEL": {"NAME": "mobilenet_v3_small", "weights": "DEFAULT", "INIT_FROM": "runs/tiny/begin.pth"}},
     "two things to begin with, INIT_FROM and pretrained weights"),
])
def test_mistakes_are_one_message(run, tiny, weights, settings, message, monkeypatch):
    monkeypatch.setattr("cvkit.models.torchvision_models._pretrained",
                        lambda name, *rest: __import__("torchvision").models.get_model(name, num_classes=10))
    torch.save(weights, run.folder.parent / "begin.pth")
    Path("other.yaml").write_text(tiny.read_text())
    with pytest.raises(UserError) as caught:
        begun(tiny, **settings)
    assert message in str(caught.value)


def test_parts_may_begin_anew(tiny, weights):
    torch.save({name: value for name, value in weights.items() if not name.startswith("layer4.1")}, "part.pt")
    with pytest.raises(CheckpointError, match=r"INIT_NEW \[layer4\] lets them begin anew"):
        begun(tiny, **{"MODEL.INIT_FROM": "part.pt"})
    ours = begun(tiny, **{"MODEL.INIT_FROM": "part.pt", "MODEL.INIT_NEW": ["layer4.1"]})
    assert_taken({name: value for name, value in weights.items() if not name.startswith("layer4.1")}, ours)


def test_a_model_without_a_head_that_can_be_told_takes_its_own_weights(tiny):
    @MODELS.register()
    class NoHead(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.conv, self.scale = nn.Conv2d(3, num_classes, 3), nn.Parameter(torch.ones(num_classes, 2))

        def forward(self, images):
            return (self.conv(images).mean((2, 3))[:, :, None] * self.scale).sum(2).flip(1).repeat(1, 2)[:, :self.scale.shape[0]]

    first = train(load_config(tiny, {"MODEL": {"NAME": "NoHead"}, "TRAIN.EPOCHS": 1}))
    settings = {"MODEL": {"NAME": "NoHead", "INIT_FROM": str(first.folder)}}
    assert_taken(first.checkpoint().model, begun(tiny, **settings))


def test_it_can_be_taken_back(tiny):
    tiny.write_text(tiny.read_text().replace("width: 4}", "width: 4, INIT_FROM: lost.pt}"))
    assert load_config(tiny).MODEL.INIT_FROM == "lost.pt"
    taken_back = begun(tiny, **{"MODEL.INIT_FROM": None})
    assert_taken(begun(tiny, **{"MODEL": {"NAME": "resnet18", "width": 4, "INIT_FROM": None}}), taken_back)


@pytest.mark.parametrize("wrap", [lambda state: {"ema": {"decay": 0.9, "shadow": state}, "model": {}},
                                  lambda state: {"ema": {"decay": 0.9}, "model": state}])
def test_what_leads_to_no_weights_is_passed_over(tiny, weights, wrap):
    torch.save(wrap(weights), "file.pt")
    assert_taken(weights, begun(tiny, **{"MODEL.INIT_FROM": "file.pt"}))


class Counting(nn.Module):
    """A model with state that is no tensor."""

    def __init__(self, num_classes):
        super().__init__()
        self.fc, self.calls = nn.Linear(3, num_classes), 0

    def forward(self, images):
        self.calls += 1
        return self.fc(images.mean((2, 3)))

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


def test_state_that_is_no_tensor_is_the_model_s_own(tiny, capsys):
    MODELS.register()(Counting)
    run = train(load_config(tiny, {"MODEL": {"NAME": "Counting"}}))
    capsys.readouterr()
    trainer = build_trainer(load_config(tiny, {"MODEL": {"NAME": "Counting", "INIT_FROM": str(run.folder)}}))
    weights = run.checkpoint().model
    assert weights["_extra_state"]["calls"] > 9 > trainer.state.model.calls
    assert torch.equal(trainer.state.model.fc.weight, weights["fc.weight"])
    train(load_config(tiny, {"MODEL": {"NAME": "Counting", "INIT_FROM": str(run.folder)}}))
    assert "loaded     2 of 2 tensors, 40 of 40 numbers" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config", "runs", "in OUTPUT_DIR"])
def test_the_newest_run_that_was_meant_is_kept_so_that_a_run_can_be_repeated_and_resumed(quick, tmp_path, name):
    first = train(load_config(quick, {"TRAIN.EPOCHS": 1}))
    named = {"config": quick, "runs": first.folder.parent, "in OUTPUT_DIR": "tiny"}[name]
    (tmp_path / "tuned.yaml").write_text(quick.read_text())
    config = load_config("tuned.yaml", {"MODEL.INIT_FROM": str(named), "SCHEDULER": None, "TRAIN.EPOCHS": 1})
    run = train(config)
    assert run.config.MODEL.INIT_FROM == str(find_run(first.folder))
    train(load_config(quick, {"TRAIN.EPOCHS": 1, "SEED": 7}))
    again = train(load_config(run.folder / "config.yaml"))
    assert_taken(run.checkpoint().model, again.checkpoint().model)
    longer = train(load_config("tuned.yaml", {"MODEL.INIT_FROM": str(named), "SCHEDULER": None, "TRAIN.EPOCHS": 2}),
                   resume=run)
    assert len(longer.metrics) == 2 and longer.config.MODEL.INIT_FROM == run.config.MODEL.INIT_FROM
    assert train(config, resume="auto").folder == again.folder
    other = load_config("tuned.yaml", {"MODEL.INIT_FROM": "runs/other", "SCHEDULER": None, "TRAIN.EPOCHS": 2})
    with pytest.raises(RunError, match="MODEL.INIT_FROM: .* in the run, runs/other now"):
        train(other, resume=run)


def test_seeds_begin_with_the_same_weights_whatever_is_trained_meanwhile(quick, tmp_path):
    first = train(load_config(quick, {"TRAIN.EPOCHS": 1}))
    (tmp_path / "tuned.yaml").write_text(quick.read_text())
    config = load_config("tuned.yaml", {"MODEL.INIT_FROM": "tiny", "TRAIN.EPOCHS": 1})
    train_seeds(config, 2)
    train(load_config(quick, {"TRAIN.EPOCHS": 1, "SEED": 7}))
    group = train_seeds(config, 3, resume=True)
    assert {run.config.MODEL.INIT_FROM for run in group.runs} == {str(first.folder)}
