"""What several test files need: stopping a training at a step, and training a part of it."""

import pytest

from cvkit.session import train
from cvkit.training.step import train_step
from cvkit.training.trainer import Trainer


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
