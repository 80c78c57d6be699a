"""What several test files need: parts of a training, comparing, images and configs to train on."""

import os

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from cvkit.registry import WRITERS
from cvkit.reporting.reporter import Reporter
from cvkit.session import train
from cvkit.training.step import train_step
from cvkit.training.trainer import Trainer

CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml")
                 if path.parent.name != "_base_")
NAMES = [str(path.relative_to(ROOT)) for path in CONFIGS]
# For models that differ from one that is tested in their size.
needs_time = pytest.mark.skipif("CVKIT_ALL_MODELS" not in os.environ, reason="CVKIT_ALL_MODELS is not set")
EVERYTHING = {  # what a resumed run depends on, all at once
    "TRAIN.EMA_DECAY": 0.9, "TRAIN.ACCUMULATE": 2, "TRAIN.CLIP_GRAD_NORM": 1.0,
    "TRAIN.WARMUP_EPOCHS": 0.5, "TRAIN.DECAY_NORM_AND_BIAS": False,
    "OPTIMIZER": {"NAME": "AdamW", "lr": 0.01, "weight_decay": 0.1}}


def skip_without_its_optimizer(config):
    """Skip a test of a config whose optimizer came with a later torch."""
    if config.OPTIMIZER.NAME == "Muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")

# -- a training, and parts of it ---------------------------------------------------------------


def before_each_step(monkeypatch, act):
    """Call `act(trainer, batch)` before each batch that a training trains on; not in its trial."""
    trainers = []
    epoch = Trainer.train_epoch

    def noted(trainer):
        trainers.append(trainer)
        return epoch(trainer)

    def step_after_act(state, batch, real=train_step):
        act(trainers[-1], batch)
        return real(state, batch)

    monkeypatch.setattr(Trainer, "train_epoch", noted)
    monkeypatch.setattr("cvkit.training.trainer.train_step", step_after_act)


def at_step(monkeypatch, number, act):
    """Call `act()` when the n-th batch of a training is about to be trained on."""
    calls = []

    def count(trainer, batch):
        calls.append(batch.number)
        if len(calls) == number:
            act()

    before_each_step(monkeypatch, count)


def train_until(config, epoch, **arguments):
    """Train as if a number of epochs were all, and return the run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cvkit.training.trainer.is_finished", lambda _, now, best: now >= epoch)
        return train(config, **arguments)


def stops_after(epoch):
    """Register a writer, "Stops", that ends a training after an epoch as Ctrl-C does."""
    @WRITERS.register()
    class Stops(Reporter):
        def epoch(self, state, values):
            if state.epoch == epoch:
                raise KeyboardInterrupt


# -- comparing ---------------------------------------------------------------------------------


def equal(a, b):
    """Return whether two states, as `state_dict` returns them, are the same to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a.cpu(), b.cpu())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def without_times(metrics):
    """Return the metrics of all epochs without those that depend on the machine's speed."""
    return [{key: value for key, value in epoch.items()
             if key not in ("seconds", "images_per_second")} for epoch in metrics]


# -- images ------------------------------------------------------------------------------------


def fill(folder, counts, size=(8, 8)):
    """Make class folders with as many images each; every class has a colour of its own."""
    random = np.random.default_rng(0)
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for image in range(count):
            pixels = random.integers(0, 60, (*size, 3), dtype=np.uint8)
            pixels[..., number % 3] += 150
            Image.fromarray(pixels).save(folder / name / f"{image:03}.png")


# -- parts of one's own ------------------------------------------------------------------------


class LambdaInside(lr_scheduler.LRScheduler):
    """A schedule whose state cannot be saved."""

    def __init__(self, optimizer):
        self.factor = lambda epoch: 1 / (1 + epoch)
        super().__init__(optimizer)

    def get_lr(self):
        return [rate * self.factor(self.last_epoch) for rate in self.base_lrs]


class Annealed(nn.Module):
    """A loss whose state changes with each step."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, logits, labels):
        if self.training and torch.is_grad_enabled():
            self.calls += 1
        return F.cross_entropy(logits, labels, label_smoothing=0.5 * 0.8 ** int(self.calls))


class NeedsClosure(torch.optim.SGD):
    """An optimizer that cvkit's step cannot call."""

    def __init__(self, params, lr: float):
        super().__init__(params, lr)

    def step(self, closure):
        closure()
