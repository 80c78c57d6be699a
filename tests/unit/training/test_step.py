"""A step never asks the device for a value: on a GPU each such question waits for all its work."""

from collections import Counter

import pytest
import torch
from conftest import ROOT
from helpers import skip_without_its_optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from cvkit.config import load_config
from cvkit.registry import LOSSES
from cvkit.session import build_trainer
from cvkit.training.failures import push
from cvkit.training.losses import weight_of
from cvkit.training.step import train_step

# The operators that hand a tensor's value to Python, or whose result's shape depends on one.
ASKING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim"}
DIGITS = {"DATA.DATASET": {"NAME": "Digits"}, "DATA.LIMIT": 120, "DATA.BATCH_SIZE": 30, "REQUIRE": None,
          "DATA.EVAL_BATCH_SIZE": 30, "TRAIN.CHANNELS_LAST": True}


class Questions(TorchDispatchMode):
    """Counts them while it is active."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(each, torch.Tensor) and each.dtype is torch.bool
            for each in (args[1] if isinstance(args[1], (list, tuple)) else ()))
        self.found[name] += name in ASKING or by_mask
        return function(*args, **(kwargs or {}))


def test_a_question_is_noticed():
    with Questions() as questions:
        values = torch.ones(3)
        values.sum().item()
        values[values > 0]
    assert +questions.found == {"_local_scalar_dense": 1, "index": 1}


def test_a_loss_is_computed_in_fp32_as_in_an_evaluation(quick):
    """Torch refuses BCELoss within autocast on a GPU."""
    @LOSSES.register()
    class Noting(torch.nn.CrossEntropyLoss):
        def forward(self, logits, labels):
            seen.append((torch.is_autocast_enabled(logits.device.type), logits.dtype))
            return super().forward(logits, labels)

    seen = []
    trainer = build_trainer(load_config(quick, {"LOSS": {"NAME": "Noting"}, "TRAIN.PRECISION": "bf16"}))
    seen.clear()
    trainer.state.train_mode()
    train_step(trainer.state, next(iter(trainer.loaders.train)))
    push(*trainer.state.copied_modules(), trainer.state, (4, 3, 32, 32))
    assert seen == [(False, torch.float32)] * 2


@pytest.mark.parametrize("name, further", [
    ("resnet18_cifar10", {"MODEL": {"NAME": "resnet18", "width": 4}}),
    # Without AdamW, whose count of steps is asked for, but lies on the CPU with any device.
    ("resnet18_cifar10_best", {"MODEL": {"NAME": "resnet18", "width": 4}, "OPTIMIZER.sgd_lr": 0.1}),
    ("resnet18_cifar10", {"MODEL": {"NAME": "vit", "width": 16, "heads": 2}, "DATA.TRAIN_TRANSFORMS": [
        {"NAME": "Rotate", "limit": 9}], "TRAIN.CLIP_GRAD_NORM": 1.0,
        "OPTIMIZER": {"NAME": "AdamW", "lr": 1e-3}}),
    ("airbench94_cifar10", {"MODEL.widths": [8, 12, 12]}), ("airbench95_cifar10", {"MODEL.widths": [8, 12, 12]}),
    ("airbench96_cifar10", {"MODEL.widths": [8, 12, 12]})])
def test_batches_and_steps_ask_for_nothing(name, further):
    config = load_config(ROOT / "configs" / f"{name}.yaml", {**DIGITS, **further})
    skip_without_its_optimizer(config)
    trainer = build_trainer(config)
    state, loader, progress = trainer.state, trainer.loaders.train, trainer.state.progress
    state.train_mode()
    progress.begin(state.schedule.rate)
    assert loader.backend == "batched"
    steps = 0
    with Questions() as questions:
        for batch in loader:
            loss, logits = train_step(state, batch)
            progress.loss.update(loss, batch.count, weight_of(state.loss, batch.targets))
            progress.accuracy.update(logits, batch.labels)
            steps += 1
    assert steps == 4 and not +questions.found
