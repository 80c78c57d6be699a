"""What `--check` finds, and that it leaves nothing behind."""

import copy
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Annealed, LambdaInside, NeedsClosure, equal
from torch import nn

from cvkit.config import load_config
from cvkit.errors import RunError, UserError
from cvkit.registry import LOSSES, METRICS, MODELS, OPTIMIZERS, SCHEDULERS
from cvkit.session import build_trainer, check, find_lr
from cvkit.training.trial import try_training


class Flat(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))


class Calls(Flat):
    """Keeps more than tensors and plain values."""

    def get_extra_state(self):
        return Path()

    def set_extra_state(self, state):
        pass


class OnlySmall:
    """Takes the trial of the names, not a real batch."""

    def update(self, logits, labels):
        if len(logits) > 10:
            raise UserError("OnlySmall takes ten images")

    def compute(self):
        return {"small": 0.5}


@pytest.fixture(autouse=True)
def own():
    for registry, entries in ((OPTIMIZERS, [NeedsClosure]), (SCHEDULERS, [LambdaInside]),
                              (MODELS, [Flat, Calls]), (METRICS, [OnlySmall]),
                              (LOSSES, [Annealed])):
        for entry in entries:
            registry.register()(entry)


@pytest.mark.parametrize("change, expected", [
    ({"OPTIMIZER": {"NAME": "NeedsClosure", "lr": 0.1}}, "NeedsClosure cannot take a step: .*closure"),
    ({"SCHEDULER": {"NAME": "LambdaInside"}}, "state of the schedule of LambdaInside cannot be saved"),
    ({"MODEL": {"NAME": "Calls"}}, "state of the model of Calls cannot be saved and read again"),
    ({"METRICS": [{"NAME": "OnlySmall"}]}, "OnlySmall takes ten images")])
def test_check_finds_what_would_end_the_training_or_its_resumption(tiny, capsys, change, expected):
    with pytest.raises(UserError, match=expected):
        check(load_config(tiny, {"MODEL": {"NAME": "Flat"}, **change}))
    assert "All is well" not in capsys.readouterr().out


@pytest.mark.parametrize("change", [
    {"SCHEDULER": {"NAME": "OneCycleLR"}, "TRAIN.EMA_DECAY": 0.9, "TRAIN.CLIP_GRAD_NORM": 1.0},
    {"SCHEDULER": {"NAME": "ReduceLROnPlateau"}, "LOSS": {"NAME": "Annealed"}},
    {"SCHEDULER": {"NAME": "OneCycleLR", "max_lr": "find"}, "DATA.VAL_FRACTION": 0.2}])
def test_check_leaves_nothing_behind(tiny, tmp_path, capsys, change):
    def states():
        return [trainer.state.state_dict(), torch.get_rng_state(), list(random.getstate()),
                np.random.get_state()[1].tolist()]

    before = sorted(tmp_path.rglob("*"))
    trainer = build_trainer(load_config(tiny, {"MODEL": {"NAME": "Flat"}, **change}))
    expected = copy.deepcopy(states())
    assert try_training(trainer.state, trainer.parts).startswith("one batch of 32: loss ")
    assert equal(states(), expected)
    assert all(parameter.grad is None for parameter in trainer.state.weights)
    check(trainer.config)
    assert "All is well; nothing was written." in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("loss, guess", [
    ({"NAME": "CrossEntropyLoss"}, np.log(10)),
    ({"NAME": "CrossEntropyLoss", "weight": [1.0] + [9.0] * 9}, None),
    ({"NAME": "MSELoss"}, (0.9 ** 2 + 9 * 0.1 ** 2) / 10),
    ({"NAME": "BCEWithLogitsLoss"}, np.log(2))])
def test_the_loss_of_guessing_is_that_of_the_loss_in_use(tiny, capsys, loss, guess):
    trainer = build_trainer(load_config(tiny, {"LOSS": loss}))
    batch = trainer.loaders.train.first_batch()
    if guess is None:  # the classes of the batch decide
        guess = np.log(10) * float(trainer.state.loss.weights[batch.labels].mean())
    check(trainer.config)
    assert f"(guessing gives {guess:.4f})" in capsys.readouterr().out


def test_a_gradient_scale_that_is_too_large_at_first_is_no_mistake(tiny, capsys, monkeypatch):
    """As on a T4: training skips such steps and halves the scale."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, init_scale=2.0 ** 127))
    check(load_config(tiny, {"MODEL": {"NAME": "Flat"}, "TRAIN.PRECISION": "fp32"}))
    assert "All is well" in capsys.readouterr().out


def test_what_does_not_fit_into_memory_is_told_by_check_and_by_the_range_test_too(tiny, monkeypatch):
    def step(state, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("cvkit.training.trial.train_step", step)
    monkeypatch.setattr("cvkit.training.lr_finder.train_step", step)
    config = load_config(tiny)
    for work in (partial(check, config), partial(find_lr, config)):
        with pytest.raises(RunError, match="out of memory on .*, training on batches of 32"):
            work()
