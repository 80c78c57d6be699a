
"""What people register themselves: it trains, resumes and is evaluated exactly, or is refused."""

import functools
import json
import math
import os
import random
import signal
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Annealed, LambdaInside, NeedsClosure, at_step, equal, without_times
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from cvkit.config import load_config
from cvkit.data import ImageData, ImageSet
from cvkit.errors import CheckpointError, ConfigError, DivergenceError, RunError, UserError
from cvkit.evaluation.run_evaluation import evaluate
from cvkit.registry import (
    DATASETS,
    LOSSES,
    METRICS,
    MODELS,
    OPTIMIZERS,
    SCHEDULERS,
    WRITERS,
)
from cvkit.registry import user_code as user_code_module
from cvkit.registry.user_code import import_user_code, user_code
from cvkit.runs.experiment import Experiment
from cvkit.runs.folder import Run, open_run
from cvkit.session import build_trainer, check, train
from cvkit.training.losses import build_loss

# -- schedulers ------------------------------------------------------------------------


def numpy_cosine(optimizer, epochs):
    return lr_scheduler.LambdaLR(optimizer, lambda e: 0.5 * (1 + np.cos(np.pi * e / epochs)))


class MyCycle(lr_scheduler.OneCycleLR):
    def __init__(self, optimizer, max_lr, total_steps):
        super().__init__(optimizer, max_lr, total_steps=total_steps)


class Stateless:
    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.param_groups[0]["lr"] *= 0.5


class Forgets(lr_scheduler.LRScheduler):
    """Counts in an attribute, and saves nothing."""

    def __init__(self, optimizer):
        self.count = 0
        super().__init__(optimizer)

    def get_lr(self):
        self.count += 1
        return [rate / self.count for rate in self.base_lrs]

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class NumpyTable(lr_scheduler.LRScheduler):
    unit = "batch"

    def __init__(self, optimizer, total_steps):
        self.table = np.linspace(1, 0, total_steps + 1)
        super().__init__(optimizer)

    def get_lr(self):
        return [rate * float(self.table[self.last_epoch]) for rate in self.base_lrs]


class WithoutUnit(lr_scheduler.LRScheduler):
    """Meant for batches."""

    def __init__(self, optimizer, total_steps):
        self.total = total_steps
        super().__init__(optimizer)

    def get_lr(self):
        return [rate * (1 - self.last_epoch / self.total) for rate in self.base_lrs]


def linear_over_batches(optimizer, total_steps):
    schedule = lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total_steps)
    schedule.unit = "batch"
    return schedule


class EpochsOverBatches(WithoutUnit):
    unit = "batch"

    def __init__(self, optimizer, epochs):
        super().__init__(optimizer, epochs)


class BelowZero(lr_scheduler.LRScheduler):
    def get_lr(self):
        return [rate * (1 - 2 * self.last_epoch) for rate in self.base_lrs]


def drawn_rates(optimizer):
    own = random.Random(0)
    return lr_scheduler.LambdaLR(optimizer, lambda epoch: own.random())


class BelowZeroInBatches(WithoutUnit):
    unit = "batch"

    def get_lr(self):
        return [rate * (1 - 2 * self.last_epoch / self.total) for rate in self.base_lrs]


class ForgetsToInitialise(lr_scheduler.LRScheduler):
    def __init__(self, optimizer):
        self.count = 0


# -- losses ----------------------------------------------------------------------------


class LearnedTemperature(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.temperature = nn.Parameter(torch.zeros(()))
        self.margin = nn.Parameter(torch.zeros(num_classes))

    def forward(self, logits, labels):
        return F.cross_entropy(logits * self.temperature.exp() + self.margin, labels)


class SmoothedInTraining(nn.Module):
    def forward(self, logits, labels):
        return F.cross_entropy(logits, labels, label_smoothing=0.9 if self.training else 0.0)


class CountedInAnAttribute(nn.Module):
    calls = 0

    def forward(self, logits, labels):
        self.calls += self.training
        return F.cross_entropy(logits, labels, label_smoothing=0.5 * 0.8 ** self.calls)


class HardestTwelve(nn.Module):
    """Needs more images than a few."""

    def forward(self, logits, labels):
        return F.cross_entropy(logits, labels, reduction="none").topk(12).values.mean()[None]


def plain_function():
    return lambda logits, labels: F.cross_entropy(logits, labels)


def partial_function():
    return functools.partial(F.cross_entropy, label_smoothing=0.1)


def per_image():
    return functools.partial(F.cross_entropy, reduction="none")


def a_sum():
    return functools.partial(F.cross_entropy, reduction="sum")


def of_cosines():
    """Takes what its model returns, and nothing else."""
    def loss(cosines, labels):
        assert cosines.abs().max() <= 1.001
        return F.binary_cross_entropy((cosines + 1) / 2, F.one_hot(labels, 10).to(cosines.dtype))
    return loss


class WithHead(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(num_classes, num_classes)

    def forward(self, logits, labels):
        return F.cross_entropy(self.head(logits), labels)


class OfWholeBatches(nn.Module):
    """Has a place for 32 images, no more and no less."""

    def forward(self, logits, labels):
        return (torch.ones(32) * F.cross_entropy(logits, labels, reduction="none")).mean()


def a_tuple():
    return lambda logits, labels: (F.cross_entropy(logits, labels), 0.5)


def itself(logits, targets, gamma=2.0):
    return F.cross_entropy(logits, targets)


class LossWithoutInit(nn.Module):
    def __init__(self):
        self.gamma = 2.0

    def forward(self, logits, labels):
        return F.cross_entropy(logits, labels)


class Swapped(nn.Module):
    def forward(self, labels, logits):
        return F.cross_entropy(logits, labels)


def without_gradient():
    return lambda logits, labels: (logits.argmax(1) != labels).float().mean()


def made_anew():
    return lambda logits, labels: torch.tensor(F.cross_entropy(logits, labels).item(), requires_grad=True)


def a_float():
    return lambda logits, labels: F.cross_entropy(logits, labels).item()


def no_loss():
    return 3


# -- models ----------------------------------------------------------------------------


class LeNet(nn.Module):
    """The net of PyTorch's tutorial, with its `view`."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(in_channels, 6, 5), nn.Conv2d(6, 16, 5)
        self.pool, self.fc = nn.MaxPool2d(2, 2), nn.Linear(16 * 5 * 5, num_classes)

    def forward(self, x):
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        return self.fc(x.view(-1, 16 * 5 * 5))


class LeNetViewedInTraining(LeNet):
    def forward(self, x):
        x = self.pool(torch.relu(self.conv2(self.pool(torch.relu(self.conv1(x))))))
        return self.fc(x.view(-1, 16 * 5 * 5) if self.training else x.flatten(1))


class Flat(nn.Module):
    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        self.fc = nn.Linear(in_channels * image_size**2, num_classes)

    def forward(self, x):
        return self.fc(x.flatten(1))


class Spectral(Flat):
    """Complex parameters."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__(num_classes, in_channels, image_size)
        self.filter = nn.Parameter(0.1 * torch.randn(in_channels, image_size, image_size // 2 + 1,
                                                     dtype=torch.cfloat))

    def forward(self, x):
        return super().forward(torch.fft.irfft2(torch.fft.rfft2(x.float()) * self.filter, s=x.shape[-2:]))


class ExtraState(Flat):
    """More than tensors, in torch's own way; it changes what the model says."""

    calls = 0

    def forward(self, x):
        self.calls += self.training
        return super().forward(x) * (1 + 0.01 * self.calls)

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


class NumpyExtraState(ExtraState):
    def get_extra_state(self):
        return {"calls": np.int64(self.calls)}


class PathInExtraState(ExtraState):
    def get_extra_state(self):
        return {"calls": self.calls, "place": Path()}


class PlainAttribute(ExtraState):
    """The same without a word to the state dict."""

    get_extra_state, set_extra_state = nn.Module.get_extra_state, nn.Module.set_extra_state


class NotPersistent(Flat):
    def __init__(self, num_classes, in_channels, image_size):
        super().__init__(num_classes, in_channels, image_size)
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + x.detach().mean() + 1
        return super().forward(x - self.mean)


class Sparse(Flat):
    def __init__(self, num_classes, in_channels, image_size):
        super().__init__(num_classes, in_channels, image_size)
        self.register_buffer("graph", torch.eye(3).to_sparse())


class PythonRandom(Flat):
    """Draws from Python's and NumPy's random numbers, when it is built and in every step."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__(num_classes, in_channels, image_size)
        mask = np.random.rand(in_channels * image_size**2) > 0.5
        self.register_buffer("mask", torch.from_numpy(mask.astype("float32")))

    def forward(self, x):
        return self.fc(x.flatten(1) * self.mask * (0.9 + 0.2 * random.random() + 0.01 * np.random.randn()))


class SkipsByChance(nn.Module):
    """Stochastic depth by an `if`."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        size = in_channels * image_size**2
        self.first, self.second = nn.Linear(size, 32), nn.Linear(size, 32)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x):
        x = x.flatten(1)
        y = self.first(x)
        if not self.training or torch.rand(()) < 0.5:
            y = y + self.second(x)
        return self.fc(y)


class Infinite(Flat):
    """A mask of -inf, weights without a number, and a buffer that is filled later."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__(num_classes, in_channels, image_size)
        self.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
        self.empty = nn.Parameter(torch.zeros(0, 4))


class CountsEvaluations(Flat):
    """Goes by how often it was called, in evaluation as well."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__(num_classes, in_channels, image_size)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + 0.01 * self.calls)


class Queue(Flat):
    """A large buffer, and a large tensor beside the buffers, that each step of a training changes in place."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__(num_classes, in_channels, image_size)
        self.register_buffer("queue", torch.zeros(20_000))
        self.more = torch.zeros(20_000)

    def forward(self, x):
        if self.training:
            self.queue += x.detach().mean() + 1
            self.more += 1
        return super().forward(x) * (1 + 0.01 * self.queue.mean() + 0.01 * self.more.mean())

    def get_extra_state(self):
        return {"more": self.more}

    def set_extra_state(self, state):
        self.more = state["more"]


class Hidden(Flat):
    """Layers in a list."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__(num_classes, in_channels, image_size)
        self.layers = [nn.Linear(num_classes, num_classes)]

    def forward(self, x):
        return self.layers[0](super().forward(x))


class ListedToo(Flat):
    """A list of layers that torch knows of."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__(num_classes, in_channels, image_size)
        self.layers = [self.fc]


class ModelWithoutInit(nn.Module):
    def __init__(self):
        self.fc = nn.Linear(3, 3)


class Block(nn.Module):
    """Forgets to initialise what it is derived from, within a model that does not."""

    def __init__(self):
        self.fc = nn.Linear(3, 3)


class WithBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()


class Teacher(Flat):
    """Weights without gradients follow others, in the forward pass of a training."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__(num_classes, in_channels, image_size)
        self.slow = nn.Linear(in_channels * image_size**2, num_classes).requires_grad_(False)

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                for slow, fast in zip(self.slow.parameters(), self.fc.parameters()):
                    slow.lerp_(fast, 0.1)
        return super().forward(x) + self.slow(x.flatten(1))


class Draws(Flat):
    """Dropout in evaluation as well."""

    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, True)


class Cosines(Flat):
    def forward(self, x):
        return torch.tanh(super().forward(x))


class PairInTraining(Flat):
    def forward(self, x):
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


class MappingInTraining(Flat):
    def forward(self, x):
        logits = super().forward(x)
        return {"out": logits} if self.training else logits


# -- optimizers and metrics ------------------------------------------------------------


class NumpyRate(torch.optim.SGD):
    def __init__(self, params, lr: float):
        super().__init__(params, np.float64(lr))


class Heavy(torch.optim.SGD):
    """Has state for more weights than are read back number by number."""

    def __init__(self, params, lr: float):
        super().__init__(params, lr, momentum=0.9)


class Rebinds(torch.optim.Optimizer):
    """Changes names, no weights."""

    def __init__(self, params, lr: float):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                weight = weight - group["lr"] * weight.grad


class RateOfItsOwn(torch.optim.Optimizer):
    """Goes by the first rate for ever."""

    def __init__(self, params, lr: float):
        super().__init__(params, {"lr": lr})
        self.rate = lr

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight -= self.rate * weight.grad


class FlatList(RateOfItsOwn):
    def __init__(self, params, lr: float):
        super().__init__([weight for weight in params if weight.requires_grad], lr)


class MeanOf32(RateOfItsOwn):
    """Takes a step by the mean of 32 gradients, which are in its state."""

    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                state["sum"] = state.get("sum", 0) + (0 if weight.grad is None else weight.grad)
                state["count"] = state.get("count", 0) + 1
                if state["count"] % 32 == 0:
                    weight.data -= group["lr"] / 32 * state["sum"]
                    state["sum"] = torch.zeros_like(weight)


class NoRateInGroups(torch.optim.Optimizer):
    def __init__(self, params, lr: float):
        super().__init__(params, {})


class NoOptimizer:
    def __init__(self, params, lr: float):
        self.params = list(params)


class ZerosLikeGroups(RateOfItsOwn):
    def __init__(self, params, lr: float):
        super().__init__([torch.zeros_like(weight) for weight in params], lr)


class Rated(torch.optim.SGD):
    """No `lr`."""

    def __init__(self, params, rate: float = 0.1):
        super().__init__(params, rate)


class Fused(torch.optim.SGD):
    """An argument that is only offered, and not always."""

    def __init__(self, params, lr: float, fused):
        super().__init__(params, lr, fused=fused)


class FusedByDefault(torch.optim.SGD):
    def __init__(self, params, lr: float, fused: bool = False):
        assert fused is False
        super().__init__(params, lr)


class NeedsAllClasses:
    """As the area under the ROC curve does; and asked twice, it knows nothing any more."""

    def __init__(self):
        self.labels = set()

    def update(self, logits, labels):
        self.labels |= set(labels.tolist())

    def compute(self):
        if len(self.labels) < 10:
            raise ValueError("a class is absent")
        self.labels = set()
        return {"area": 0.5}


class Huge:
    """Whatever number it is, what the training writes can be read again."""

    def update(self, logits, labels):
        pass

    def compute(self):
        return {"huge": 1e120, "below": -2.5, "nothing": math.nan, "infinite": -math.inf,
                "of_numpy": np.float32(0.5)}


class InItsClass:
    labels = []

    def update(self, logits, labels):
        self.labels += labels.tolist()

    def compute(self):
        return {"count": len(self.labels)}


class CountsInItsClass(InItsClass):
    """In place, so that nothing grows."""

    hits = np.zeros(2)

    def update(self, logits, labels):
        self.hits += ((logits.argmax(1) == labels).sum().item(), len(labels))

    def compute(self):
        return {"count": self.hits[1], "part": self.hits[0] / self.hits[1]}


SEEN = []


class CountsInItsFile(InItsClass):
    def update(self, logits, labels):
        SEEN.extend(labels.tolist())

    def compute(self):
        return {"count": len(SEEN)}


class CountsInADefault:
    def __init__(self, seen=[]):  # noqa: B006
        self.seen = seen

    def update(self, logits, labels):
        self.seen += labels.tolist()

    def compute(self):
        return {"count": len(self.seen)}


class Remembers(InItsClass):
    """What does not depend on the images may be kept in a class."""

    tables = {}

    def update(self, logits, labels):
        type(self).tables.setdefault(logits.shape[1], torch.eye(logits.shape[1]))

    def compute(self):
        return {"remembered": 1.0}


class Spoils:
    """Changes the logits in place."""

    def update(self, logits, labels):
        logits.mul_(-1)
        labels.zero_()

    def compute(self):
        return {"spoilt": 0.0}


class CallsItAccuracy:
    def update(self, logits, labels):
        pass

    def compute(self):
        return {"accuracy": 0.123}


class Numbered(CallsItAccuracy):
    def compute(self):
        return {1: 0.5}


class OnlyComputes:
    def compute(self):
        return {"nothing": 0.5}


class CallsItLoss(CallsItAccuracy):
    def compute(self):
        return {"loss": 7.0}


# -- writers ---------------------------------------------------------------------------


class Unclosed:
    def __init__(self, folder):
        self.folder = folder

    def write(self, step, values):
        pass

    def finish(self, run):
        pass


class TakesValuesOnly(Unclosed):
    def write(self, values):
        pass

    def close(self):
        pass


def counted(write):
    @functools.wraps(write)
    def with_count(self, step, values):
        return write(self, "count", step, values)
    return with_count


class TakesValuesStatically(TakesValuesOnly):
    @staticmethod
    def write(step, values):
        pass


class TakesValuesDecorated(TakesValuesOnly):
    @counted
    def write(self, count, step, values):
        pass


class TakesValuesLate(Unclosed):
    def __init__(self, folder):
        self.close = self.opened = lambda: None


OWN = {SCHEDULERS: [NumpyTable, WithoutUnit, linear_over_batches, EpochsOverBatches, BelowZero, BelowZeroInBatches, drawn_rates, ForgetsToInitialise, numpy_cosine, MyCycle, LambdaInside, Stateless, Forgets],
       LOSSES: [LearnedTemperature, Annealed, SmoothedInTraining, CountedInAnAttribute,
                HardestTwelve, plain_function, partial_function,
                per_image, a_sum, WithHead, a_tuple, itself, LossWithoutInit, Swapped, without_gradient, made_anew, a_float, no_loss],
       MODELS: [LeNet, LeNetViewedInTraining, Flat, Spectral, ExtraState, NumpyExtraState,
                PathInExtraState, PlainAttribute,
                NotPersistent, Sparse, Infinite, CountsEvaluations, Hidden, Queue, ListedToo, ModelWithoutInit, WithBlock, Teacher, Draws, Cosines, PythonRandom, SkipsByChance, PairInTraining,
                MappingInTraining],
       OPTIMIZERS: [NumpyRate, Heavy, Rebinds, RateOfItsOwn, FlatList, MeanOf32, NoRateInGroups, NoOptimizer, ZerosLikeGroups, NeedsClosure, Rated, Fused, FusedByDefault],
       METRICS: [Huge, InItsClass, CountsInItsClass, CountsInItsFile, CountsInADefault, Remembers, Spoils, NeedsAllClasses, CallsItAccuracy, CallsItLoss, Numbered, OnlyComputes],
       WRITERS: [Unclosed, TakesValuesOnly, TakesValuesStatically, TakesValuesDecorated, TakesValuesLate]}
KEYS = {SCHEDULERS: "SCHEDULER", LOSSES: "LOSS", MODELS: "MODEL", OPTIMIZERS: "OPTIMIZER",
        METRICS: "METRICS", WRITERS: "WRITERS"}
REFUSED = {
    "LambdaInside": "state of the schedule of LambdaInside cannot be saved and read again",
    "NumpyTable": r"state of the schedule of NumpyTable cannot be saved.*: table holds numpy.*\.tolist\(\)",
    "WithoutUnit": 'scheduler WithoutUnit asks for total_steps, and does not say.*unit = "batch"',
    "EpochsOverBatches": "EpochsOverBatches is stepped after each batch, and asks for epochs.*total_steps",
    "BelowZero": "scheduler BelowZero makes the learning rate negative, -0.05",
    "BelowZeroInBatches": "scheduler BelowZeroInBatches makes the learning rate negative, -0.025",
    "ForgetsToInitialise": r"super\(\).__init__\(\) of LRScheduler was not called: .*test_own_parts.py:\d+",
    "a_sum": "loss a_sum is a sum over the images of a batch.*len",
    "a_tuple": "loss a_tuple returns a tuple, not one number.*alone, as a tensor",
    "itself": "loss itself needs logits, targets.*register a function that returns it",
    "LossWithoutInit": r"super\(\).__init__\(\) of Module was not called: .*test_own_parts.py:\d+",
    "ModelWithoutInit": r"super\(\).__init__\(\) comes before .*test_own_parts.py:\d+",
    "Swapped": r"loss Swapped fails, \w+: .*called as loss\(logits, targets\). See .*test_own_parts.py:\d+",
    "drawn_rates": "scheduler drawn_rates could not be resumed: .* it gives other rates",
    "CountsInItsFile": "metric CountsInItsFile counts in SEEN of its file",
    "CountsInADefault": r"metric CountsInADefault counts in a default of __init__\(\)",
    "WithBlock": rf"super\(\).__init__\(\) comes before .*test_own_parts.py:{Block.__init__.__code__.co_firstlineno + 1}",
    "NoRateInGroups": 'optimizer NoRateInGroups has no lr in its groups.*{"lr": lr}',
    "NoOptimizer": "optimizer NoOptimizer is NoOptimizer, which is no torch.optim.Optimizer",
    "ZerosLikeGroups": "optimizer ZerosLikeGroups takes params for a list of weights.*They are groups",
    "CountsInItsClass": "metric CountsInItsClass counts in hits of its class",
    "Rebinds": r"optimizer Rebinds changes no weight in 200 steps.*test_own_parts.py:\d+",
    "FlatList": "optimizer FlatList takes params for a list of weights.*They are groups",
    "InItsClass": "metric InItsClass counts in labels of its class.*in __init__, as attributes of self",
    "TakesValuesOnly": r"writer TakesValuesOnly cannot be called as write\(step, values\): .*py:\d+",
    "Stateless": "scheduler Stateless has no state_dict",
    "Forgets": "scheduler Forgets could not be resumed.*gives other rates",
    "Hidden": "model Hidden keeps layers or parameters in a list, layers of Hidden,.*ModuleList",
    "per_image": r"loss per_image returns torch.float32 \(\d+,\), not one number.*\.mean\(\)",
    "without_gradient": "loss without_gradient has no gradient",
    "made_anew": "no weight gets a gradient from loss made_anew",
    "a_float": "loss a_float returns a float, not one number",
    "no_loss": "loss no_loss is int, which cannot be called as loss",
    "PlainAttribute": "model PlainAttribute could not be evaluated or resumed.*get_extra_state",
    "NotPersistent": "model NotPersistent could not be evaluated or resumed.*persistent",
    "Sparse": "model Sparse has graph, which is sparse",
    "PathInExtraState": r"state of the model of PathInExtraState cannot .* again: place holds pathlib\.",
    "CountedInAnAttribute": "loss CountedInAnAttribute could not be evaluated or resumed",
    "PairInTraining": "model PairInTraining returns a tuple in training; expected logits",
    "MappingInTraining": "model MappingInTraining returns a dict in training; expected logits",
    "NeedsClosure": "optimizer NeedsClosure cannot take a step.*closure",
    "Rated": "optimizer Rated has no argument 'lr', which each optimizer needs",
    "Numbered": "metric Numbered computes {1: 0.5}",
    "OnlyComputes": r"metric OnlyComputes has no update\(\)",
    "Unclosed": r"writer Unclosed has no close\(\)",
    "CallsItAccuracy": "metric CallsItAccuracy computes 'accuracy': loss and accuracy are cvkit's own",
    "CallsItLoss": "metric CallsItLoss computes 'loss': loss and accuracy are cvkit's own"}
NAMES = {entry.__name__: registry for registry, entries in OWN.items() for entry in entries}
TRAINED = [name for name in NAMES if name not in REFUSED]


@pytest.fixture(autouse=True)
def registered():
    for registry, entries in OWN.items():
        for entry in entries:
            registry.register()(entry)


@pytest.fixture
def own(tiny):
    """A function that makes the config of a training with a part of one's own."""
    def config_of(name=None, **settings):
        node = {"NAME": name, **({"lr": 0.05} if NAMES.get(name) is OPTIMIZERS and name != "Rated" else {})}
        is_list = NAMES.get(name) in (METRICS, WRITERS)
        part = {} if name is None else {KEYS[NAMES[name]]: [node] if is_list else node}
        return load_config(tiny, {"MODEL": {"NAME": "Flat"}, "DATA.LIMIT": 64, "TRAIN.PRECISION": "fp32",
                                  "TRAIN.CHECKPOINT_EVERY": "1 step", "TRAIN.EMA_DECAY": 0.5,
                                  **part, **settings})
    return config_of


def stopped(monkeypatch, config, steps):
    """Train, and stop as Ctrl-C does after some steps; return nothing, as there is no run yet."""
    with monkeypatch.context() as patched:
        at_step(patched, steps, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(config)


def test_these_parts_are_all_there():
    assert len(TRAINED) >= 38 and len(REFUSED) >= 42 and set(REFUSED) < set(NAMES)


@pytest.mark.parametrize("name", TRAINED)
def test_an_own_part_trains_repeats_resumes_and_is_evaluated_to_the_bit(own, monkeypatch, name):
    whole, again = train(own(name)), train(own(name))
    stopped(monkeypatch, own(name), 3)
    resumed = train(own(name), resume=True)
    for other in (again, resumed):
        ours, theirs = whole.checkpoint(), other.checkpoint()
        for part in ("model", "loss"):
            assert equal(getattr(ours, part), getattr(theirs, part))
        assert equal({**ours.training, "best": 0}, {**theirs.training, "best": 0})
        assert np.array_equal(whole.predictions.probabilities, other.predictions.probabilities)
        assert json.dumps(without_times(whole.metrics)) == json.dumps(without_times(other.metrics))
    found = evaluate(Run(resumed.folder))
    assert found.loss == whole.predictions.loss
    assert np.array_equal(found.probabilities, whole.predictions.probabilities)


@pytest.mark.parametrize("settings", [
    {"MODEL": {"NAME": "Cosines"}, "LOSS": {"NAME": "of_cosines"}},
    {"LOSS": {"NAME": "WithHead"}, "TRAIN.PRECISION": "bf16"},
    {"LOSS": {"NAME": "OfWholeBatches"}, "DATA.BATCH_SIZE": 32, "DATA.EVAL_BATCH_SIZE": 32}], ids=str)
def test_a_loss_is_tried_on_what_training_gives_it_and_nothing_else(own, capsys, settings):
    for part in (of_cosines, OfWholeBatches):
        LOSSES.register()(part)
    for tell in (partial(check, own(**settings)), lambda: train(own(**settings))):
        tell()
        assert "not tried before" not in capsys.readouterr().out


class Down(lr_scheduler.LRScheduler):
    """Falls by as much in each epoch, whatever it begins with."""

    def get_lr(self):
        return [rate - 0.02 * self.last_epoch for rate in self.base_lrs]


def test_rates_are_judged_as_the_training_would_have_them(own):
    SCHEDULERS.register()(Down)
    settings = {"SCHEDULER": {"NAME": "Down"}, "TRAIN.EPOCHS": 8}
    assert len(train(own(**settings, **{"OPTIMIZER.lr": 0.2})).metrics) == 8
    with pytest.raises(ConfigError, match="negative, -0.02"):
        train(own(**settings, **{"OPTIMIZER.lr": 0.1}))


@pytest.mark.parametrize("name", REFUSED)
def test_an_own_part_is_refused_by_name_before_anything_is_written(own, name):
    with pytest.raises(UserError, match=f"(?s){REFUSED[name]}"):
        train(own(name))
    assert not Path("runs").exists()
    with pytest.raises(UserError, match=f"(?s){REFUSED[name]}"):
        check(own(name))


# -- what they are worth ---------------------------------------------------------------


def test_rates_of_numpy_are_plain_numbers_where_they_are_saved(own):
    run = train(own("numpy_cosine", **{"TRAIN.EPOCHS": 3}))
    assert [epoch["lr"] for epoch in run.metrics] == pytest.approx([0.05, 0.0375, 0.0125])
    group, = run.checkpoint().training["optimizer"]["param_groups"]
    assert type(group["lr"]) is float and group["lr"] == pytest.approx(0)


def test_a_loss_learns_as_the_model_does_but_does_not_decay(own):
    """Against a loop by hand."""
    config = own("LearnedTemperature", **{"TRAIN.EMA_DECAY": 0.0, "TRAIN.EPOCHS": 1, "DATA.TRAIN_TRANSFORMS": [],
                                          "OPTIMIZER": {"NAME": "SGD", "lr": 0.05, "momentum": 0, "weight_decay": 0.1}})
    trainer = build_trainer(config)
    model, loss = Flat(10, 3, 32), LearnedTemperature(10)
    model.load_state_dict(trainer.state.model.state_dict())
    batches = list(trainer.loaders.train)
    run = train(config)
    for batch in batches:
        value = loss(model(batch.images), batch.labels)
        value.backward()
        with torch.no_grad():
            for decay, module in ((0.1, model), (0, loss)):
                for parameter in module.parameters():
                    parameter -= 0.05 * (parameter.grad + decay * parameter)
                    parameter.grad = None
    saved = run.checkpoint()
    for name, value in {**model.state_dict(), **loss.state_dict()}.items():
        assert torch.allclose({**saved.model, **saved.loss}[name], value, atol=1e-5), name
    assert abs(float(saved.loss["temperature"])) > 1e-3
    best = run.checkpoint("best")
    assert equal(best.loss, saved.loss)


def test_a_loss_is_evaluated_in_evaluation_mode(own):
    run = train(own("SmoothedInTraining"))
    true = torch.from_numpy(run.predictions.true)
    likelihood = torch.from_numpy(run.predictions.probabilities)[torch.arange(len(true)), true]
    assert run.predictions.loss == pytest.approx(float(-likelihood.log().mean()), abs=1e-5)
    assert run.predictions.loss == run.metrics[-1]["test/loss"]


def test_a_function_is_a_loss(monkeypatch):
    loss = build_loss({"NAME": "partial_function"}, 10)
    logits, labels = torch.randn(4, 10), torch.arange(4)
    assert isinstance(loss, nn.Module)
    assert torch.equal(loss(logits, labels), F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_a_net_that_views_its_features_gets_the_plain_layout_and_is_told_once(own, capsys):
    run = train(own("LeNet"))
    assert capsys.readouterr().out.count("note       its view() takes images in the plain") == 1
    opened = Run(run.folder)
    opened.model.requires_grad_(False)
    batch = opened.loaders.test.take(range(8))
    assert batch.images.is_contiguous()
    probabilities = opened.model(batch.images).softmax(1)
    assert np.allclose(probabilities, run.predictions.probabilities[:8], atol=1e-6)


def test_metrics_are_written_as_json_and_read_as_what_they_were(own):
    run = train(own("Huge"))
    lines = [json.loads(line, parse_constant=pytest.fail)
             for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["test/nothing"] for line in lines] == [None, None]
    last = Run(run.folder).metrics[-1]
    assert last["test/huge"] == 1e120 and last["test/below"] == -2.5 and last["test/of_numpy"] == 0.5
    assert last["test/infinite"] == -math.inf and math.isnan(last["test/nothing"])


def test_a_metric_changes_its_own_logits_only(own):
    spoilt, plain = train(own("Spoils")), train(own())
    assert np.array_equal(spoilt.predictions.probabilities, plain.predictions.probabilities)
    assert np.array_equal(spoilt.predictions.true, plain.predictions.true)
    assert spoilt.metrics[-1]["test/accuracy"] == plain.metrics[-1]["test/accuracy"]


def test_two_metrics_of_one_name_are_refused(own):
    with pytest.raises(ConfigError, match="metric Spoils computes 'spoilt': another one does so too"):
        build_trainer(own(METRICS=[{"NAME": "Spoils"}, {"NAME": "Spoils"}]))


def test_a_monitored_name_that_is_computed_in_the_trial_only_is_told(own):
    class Counts:
        """Names its value by what was counted."""

        count = 0

        def update(self, logits, labels):
            self.count += len(labels)

        def compute(self):
            return {f"n{self.count}": 0.5}

    METRICS.register()(Counts)
    with pytest.raises(RunError, match="no metric computed TRAIN.MONITOR n10 in epoch 1, but .*n64"):
        train(own(METRICS=[{"NAME": "Counts"}], **{"TRAIN.MONITOR": "n10"}))


def test_averaged_weights_have_the_extra_state_of_the_model(own):
    trainer = build_trainer(own("ExtraState", **{"TRAIN.EMA_DECAY": 0.9}))
    trainer.train()
    assert trainer.state.evaluated_model.calls == trainer.state.model.calls == 4


class Fails(Unclosed):
    def write(self, step, values):
        raise OSError("the server is gone")

    def close(self):
        pass


def test_a_writer_that_fails_costs_no_epoch(own):
    WRITERS.register()(Fails)
    with pytest.raises(OSError, match="the server is gone"):
        train(own(WRITERS=[{"NAME": "Fails"}]))
    assert open_run().checkpoint().epoch == len(open_run().metrics) == 1
    assert train(own(), resume=True).metrics[-1]["epoch"] == 2


def test_python_s_and_numpy_s_random_numbers_follow_the_seed(own):
    runs = [train(own("PythonRandom", SEED=seed)) for seed in (1, 1, 2)]
    losses = [run.predictions.loss for run in runs]
    assert losses[0] == losses[1] != losses[2]


class Locked(Flat):
    """Cannot be copied."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__(num_classes, in_channels, image_size)
        self.lock = threading.Lock()


class Hooked(Flat):
    """A hook fills an attribute of the original, which its copies know nothing of."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__(num_classes, in_channels, image_size)
        self.seen = {}
        self.fc.register_forward_hook(lambda module, inputs, output: self.seen.update(a=output.detach()))

    def forward(self, x):
        logits = super().forward(x)
        return logits + self.seen.get("a", 0)


class HookedMean(Hooked):
    def forward(self, x):
        logits = Flat.forward(self, x)
        return logits + self.seen["a"].mean() if self.seen else logits


@pytest.mark.parametrize("model, expected", [
    (Locked, "model or loss cannot be copied: cannot pickle"), (Hooked, "a copy of the model fails: The size of tensor"),
    (HookedMean, "a copy of the model says something else")])
def test_what_cannot_be_copied_is_trained_and_said_not_to_be_tried(own, capsys, model, expected):
    MODELS.register()(model)
    run = train(own(MODEL={"NAME": model.__name__}, **{"TRAIN.EMA_DECAY": 0.0}))
    assert f"note       saving and loading was not tried before: {expected}" in capsys.readouterr().out
    assert evaluate(run).loss == run.predictions.loss


def test_averages_of_a_model_that_cannot_be_copied_are_refused(own):
    MODELS.register()(Locked)
    with pytest.raises(ConfigError, match="TRAIN.EMA_DECAY: the model cannot be copied"):
        train(own(MODEL={"NAME": "Locked"}))


def test_a_run_of_an_older_version_goes_on_with_its_class_weights(own, monkeypatch):
    config = own(LOSS={"NAME": "CrossEntropyLoss", "weight": [1] * 5 + [2] * 5})
    whole = train(config)
    stopped(monkeypatch, config, 2)
    run = open_run()
    checkpoint = run.checkpoint()
    assert checkpoint.loss is not None
    checkpoint.loss = None
    checkpoint.save(run.checkpoints / "last.pt")
    assert equal(train(config, resume=True).checkpoint().model, whole.checkpoint().model)


def test_weights_without_gradients_are_named(own):
    class NoGradient(Flat):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    MODELS.register()(NoGradient)
    with pytest.raises(ConfigError, match="the logits of the model have no gradient"):
        train(own(MODEL={"NAME": "NoGradient"}))


def minus_cross_entropy():
    return lambda logits, labels: -F.cross_entropy(logits, labels)


class Softmax(Flat):
    def __init__(self, num_classes, in_channels, image_size, dim: int = 1):
        super().__init__(num_classes, in_channels, image_size)
        self.dim = dim

    def forward(self, x):
        return super().forward(x).softmax(self.dim)


class Alone(Flat):
    """Normalises by the batch, in evaluation as well."""

    def forward(self, x):
        x = super().forward(x)
        return x - x.mean(0)


@pytest.mark.parametrize("registry, part, arguments, expected", [
    (LOSSES, minus_cross_entropy, {}, "loss minus_cross_entropy is -"),
    (MODELS, Softmax, {}, "model Softmax returns probabilities"),
    (MODELS, Softmax, {"dim": 0}, "what model Softmax says of an image in evaluation depends on the"),
    (MODELS, Alone, {}, "what model Alone says of an image in evaluation depends on the other images"),
    (LOSSES, plain_function, {}, None), (LOSSES, WithHead, {}, None), (MODELS, Flat, {}, None), (MODELS, LeNet, {}, None),
    (MODELS, Draws, {}, "what model Draws says of an image in evaluation is drawn: dropout has to know of it")])
def test_what_trains_and_is_wrong_all_the_same_is_told_once(own, capsys, registry, part, arguments, expected):
    registry.register()(part)
    node = {KEYS[registry]: {"NAME": part.__name__, **arguments}}
    for tell in (partial(check, own(**node)), lambda: train(own(**node))):
        tell()
        warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")
                    and "images are taken for" not in line]
        assert [expected in line for line in warnings] == [True] if expected else warnings == []


def test_statistics_that_a_trial_moves_are_not_taken_for_a_batch_that_matters(own, capsys):
    check(own(MODEL={"NAME": "resnet18", "width": 4}))
    assert "warning" not in capsys.readouterr().out


def test_an_optimizer_may_have_a_rate_of_its_own_where_no_schedule_changes_it(own):
    assert train(own("RateOfItsOwn", SCHEDULER=None)).metrics
    with pytest.raises(ConfigError, match="at half the learning rate"):
        train(own("RateOfItsOwn", SCHEDULER=None, **{"TRAIN.WARMUP_EPOCHS": 1}))


class Finishes(TakesValuesOnly):
    finished = 0

    def write(self, step, values):
        pass

    def finish(self, run):
        Finishes.finished += 1
        raise OSError("the server is gone")


def test_a_writer_that_fails_at_the_end_keeps_the_others_from_nothing(own):
    WRITERS.register()(Finishes)
    with pytest.raises(OSError, match="the server is gone"):
        train(own(WRITERS=[{"NAME": "Finishes"}, {"NAME": "Finishes"}]))
    assert Finishes.finished == 2 and open_run().predictions.epoch == 2


def test_a_metric_that_is_nan_is_said_once(own, capsys):
    class LateF1(CallsItAccuracy):
        lower_is_better = False

        def compute(self):
            return {"f1": math.nan}

    METRICS.register()(LateF1)
    train(own(METRICS=[{"NAME": "LateF1"}], **{"TRAIN.MONITOR": "f1"}))
    assert capsys.readouterr().out.count("warning    test f1 is NaN in epoch 1, which counts as worse") == 1


def test_a_model_that_is_given_to_a_trainer_is_trained(own):
    parts = Experiment(own())
    parts.model = Flat(10, 3, 32)
    assert train(own(), parts=parts).metrics


def test_a_trainer_trains_once(own):
    trainer = build_trainer(own())
    trainer.train()
    with pytest.raises(RunError, match="has nothing left to train"):
        trainer.train()


# -- weights that are no numbers any more ----------------------------------------------


@pytest.fixture
def bursts(monkeypatch):
    """A function that registers an optimizer whose weights become infinite in some step."""
    def register(at):
        class Bursts(torch.optim.SGD):
            def __init__(self, params, lr: float):
                super().__init__(params, lr)

            def step(self, closure=None):
                super().step()
                for group in self.param_groups:
                    for parameter in group["params"]:
                        count = self.state[parameter]["steps"] = self.state[parameter].get("steps", 0) + 1
                        if count == at:
                            parameter.data.fill_(math.inf)

        OPTIMIZERS.register("Bursts")(Bursts)
        return {"NAME": "Bursts", "lr": 0.05}
    return register


@pytest.mark.parametrize("at, last", [(2, None), (4, 1), (3, 1)])
@pytest.mark.parametrize("every", ["epoch", "1 step"])
def test_infinite_weights_end_a_run_and_are_never_saved(own, bursts, at, last, every):
    """Of two steps an epoch: in the last of the first, in the last of all, and in between."""
    config = own(OPTIMIZER=bursts(at), **{"TRAIN.CHECKPOINT_EVERY": every, "TRAIN.EMA_DECAY": 0.0})
    with pytest.raises(DivergenceError, match="no longer finite") as raised:
        train(config)
    saved = list(Path("runs").rglob("last.pt"))
    if every == "epoch" and last is None:
        assert not saved and "last.pt" not in str(raised.value)
        return
    checkpoint = Run(saved[0].parent.parent).checkpoint()
    assert all(value.isfinite().all() for value in checkpoint.model.values())
    assert "are in last.pt" in str(raised.value)


class FineThenNot(Flat):
    """Finite in training; what it says in evaluation is not, once it was trained."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__(num_classes, in_channels, image_size)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps += self.training
        logits = super().forward(x)
        return logits if self.training or self.steps < 4 else logits * math.nan


@pytest.mark.parametrize("settings", [{}, {"TRAIN.EPOCHS": 9, "TRAIN.EARLY_STOP": 1}])
def test_a_last_epoch_without_a_finite_loss_is_no_good_end(own, settings):
    MODELS.register()(FineThenNot)
    with pytest.raises(DivergenceError, match="the test loss is no longer finite in epoch 2"):
        train(own("Flat", MODEL={"NAME": "FineThenNot"}, **{"TRAIN.EMA_DECAY": 0.0, **settings}))
    run = Run(next(Path("runs").rglob("config.yaml")).parent)
    assert run.checkpoint().epoch in (1, 2) and not (run.folder / "predictions.npz").exists()
    with pytest.raises(DivergenceError):
        train(run.config, resume=True)


# -- images that are others when a run goes on -----------------------------------------


def noise(count=64, seed=0, order=0, change=None):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (count, 32, 32, 3)).astype("uint8")
    labels = np.arange(count) % 4
    mean, std = tuple(images.mean((0, 1, 2)) / 255), tuple(images.std((0, 1, 2)) / 255)
    if change == "pixel":
        images[3, 0, 0, 0] ^= 1
    if change == "labels":
        labels[[0, 1]] = labels[[1, 0]]
    places = np.random.default_rng(order).permutation(count) if order else np.arange(count)
    train_set = ImageSet.of(images, labels).take(places)
    return ImageData(tuple("abcd"), train_set, ImageSet.of(images, np.arange(count) % 4), 3, (32, 32), mean, std)


@pytest.mark.parametrize("change, expected", [
    ({"count": 32}, "training and test"), ({"count": 128}, "training and test"),
    ({"change": "pixel"}, "training and test"), ({"change": "labels"}, "training are others"),
    ({"order": 1}, "training are others"), ({}, None)])
def test_a_run_goes_on_with_its_own_images_only(own, monkeypatch, change, expected):
    extra = {}
    DATASETS.register("noise")(lambda: noise(**extra))
    config = own(**{"DATA.DATASET": {"NAME": "noise"}, "DATA.LIMIT": 0})
    stopped(monkeypatch, config, 2)
    extra |= change
    if expected is None:
        assert len(train(config, resume=True).metrics) == 2
        return
    with pytest.raises(CheckpointError, match="other images"):
        train(config, resume=True)


# -- data sets that draw ---------------------------------------------------------------


def drawn(permutation):
    whole = noise()
    return whole.with_splits(train=whole.train.take(permutation[:48]), test=whole.train.take(permutation[48:]))


def drawn_globally():
    order = np.random.permutation(64)
    random.shuffle(order)
    return drawn(order[torch.randperm(64).numpy()])


def drawn_by_the_system():
    return drawn(np.random.default_rng().permutation(64))


def drawn_in_each_process():
    return drawn(np.random.default_rng(Number.value).permutation(64))


class Number:
    value = 0


def test_what_a_data_set_draws_is_the_same_each_time(own, capsys):
    DATASETS.register()(drawn_globally)
    config = own(**{"DATA.DATASET": {"NAME": "drawn_globally"}, "DATA.LIMIT": 0})
    run = train(config)
    found = evaluate(Run(run.folder))
    assert np.array_equal(found.probabilities, run.predictions.probabilities)
    assert "warning" not in capsys.readouterr().out
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert Run(run.folder).data.test.identity == run.data.test.identity
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    seeds = [Experiment(own(**{"DATA.DATASET": {"NAME": "drawn_globally"}, "DATA.LIMIT": 0,
                               "DATA.SPLIT_SEED": seed})).data.test.identity for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_data_set_that_is_another_each_time_is_refused(own):
    DATASETS.register()(drawn_by_the_system)
    config = own(**{"DATA.DATASET": {"NAME": "drawn_by_the_system"}, "DATA.LIMIT": 0})
    for refuse in (partial(check, config), lambda: train(config)):
        with pytest.raises(ConfigError, match="data set drawn_by_the_system has other images.*each time it is built") as caught:
            refuse()
        assert "by the seed" in caught.value.hint
    assert not Path("runs").exists()


def test_images_that_are_given_are_not_built_again(own):
    DATASETS.register()(drawn_by_the_system)
    config = own(**{"DATA.DATASET": {"NAME": "drawn_by_the_system"}, "DATA.LIMIT": 0})
    parts = Experiment(config)
    parts.data = noise()
    assert train(config, parts=parts).metrics


def other_test_images():
    whole = noise()
    return whole.with_splits(test=whole.test.take(np.random.default_rng().permutation(64)[:32]))


def test_other_test_images_are_told_where_others_are_monitored(own):
    DATASETS.register()(other_test_images)
    with pytest.raises(ConfigError, match="data set other_test_images has other images"):
        train(own(**{"DATA.DATASET": {"NAME": "other_test_images"}, "DATA.LIMIT": 0, "DATA.VAL_FRACTION": 0.2}))


def test_images_that_were_looked_at_and_replaced_are_trained_on(own):
    DATASETS.register()(noise)
    config = own(**{"DATA.DATASET": {"NAME": "noise"}, "DATA.LIMIT": 0})
    parts = Experiment(config)
    parts.data = parts.data.with_splits(train=parts.data.train.take(np.arange(32)))
    assert train(config, parts=parts).metrics


def test_an_evaluation_of_a_run_whose_data_set_has_other_training_images_warns_and_keeps_the_old(own, capsys):
    """As when a set of words is iterated: the same in one process, another in the next."""
    DATASETS.register()(drawn_in_each_process)
    run = train(own(**{"DATA.DATASET": {"NAME": "drawn_in_each_process"}, "DATA.LIMIT": 0}))
    before = (run.folder / "predictions.npz").read_bytes()
    capsys.readouterr()
    Number.value = 1
    try:
        evaluate(Run(run.folder))
        said = capsys.readouterr().out
        evaluate(run.folder, {"DATA.EVAL_BATCH_SIZE": 16})
        assert said.splitlines()[:2] == capsys.readouterr().out.splitlines()[:2]
        with pytest.raises(RunError, match="of other test images(?s:.*)Put back what was there"):
            Run(run.folder).visualize("misclassified")
        evaluate(Run(run.folder), {"DATA.DATASET": {"NAME": "noise"}} if "noise" in DATASETS else {"DATA.LIMIT": 40})
        assert "warning" not in capsys.readouterr().out  # as they were chosen
    finally:
        Number.value = 0
    assert "warning    the data set has other training images than those that the run was trained on" in said
    assert "Not written to" in said and (run.folder / "predictions.npz").read_bytes() == before
    evaluate(Run(run.folder))
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("returned, expected", [
    (None, "returned NoneType, not a cvkit.ImageData(?s:.*)Is a return missing"),
    (([], []), "returned tuple, not a cvkit.ImageData(?s:.*)add_a_dataset.md"),
    (torch.utils.data.TensorDataset(torch.zeros(2)), "returned TensorDataset, not a cvkit.ImageData")])
def test_a_data_set_that_returns_something_else_is_told_so(own, returned, expected):
    DATASETS.register("other")(lambda: returned)
    with pytest.raises(ConfigError, match=f"data set other {expected}"):
        train(own(**{"DATA.DATASET": {"NAME": "other"}}))


# -- code that was edited --------------------------------------------------------------


EDITED = """
from torch import nn
from cvkit import MODELS

@MODELS.register("edited")
def edited(num_classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size ** 2, num_classes))
"""


def test_what_a_file_imports_beside_it_is_noted_as_well(own, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("cvkit.registry.user_code._code", {})
    (tmp_path / "a_part_beside.py").write_text("WIDTH = 3\n")
    (tmp_path / "a_part_of_mine.py").write_text("import json\nimport a_part_beside\n")
    import_user_code([str(tmp_path / "a_part_of_mine.py")])
    assert {Path(path).name for path in user_code()} == {"a_part_beside.py", "a_part_of_mine.py"}


def test_files_that_import_each_other_are_imported_once_in_any_order(own, tmp_path, monkeypatch):
    for number, order in enumerate((["first", "second"], ["second", "first"])):
        monkeypatch.setattr("sys.path", [*sys.path])
        names = [f"a_{name}_file_{number}" for name in order]
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / f"a_first_file_{number}.py").write_text(
            f"from cvkit import MODELS\n\n@MODELS.register('first{number}')\ndef one(): return 1\n")
        (folder / f"a_second_file_{number}.py").write_text(
            f"from cvkit import MODELS\nfrom a_first_file_{number} import one\n\n"
            f"@MODELS.register('second{number}')\ndef two(): return one() + 1\n")
        import_user_code([str(folder / f"{name}.py") for name in names])
        assert MODELS.build(f"first{number}") == 1 and MODELS.build(f"second{number}") == 2


def in_another_process(path, monkeypatch):
    """Let an imported file count as one that was edited before it was imported."""
    file = user_code_module._code[str(path)]
    monkeypatch.setattr(file, "content", "what another process imported")
    monkeypatch.setattr(user_code_module, "_checksum", lambda path: file.content)


def test_an_evaluation_says_that_code_was_edited_and_keeps_what_was_predicted(own, monkeypatch, capsys):
    path = Path("another_part.py").resolve()
    path.write_text(EDITED)
    run = train(own(MODEL={"NAME": "edited"}, IMPORTS=[str(path)]))
    evaluated = Run(run.folder)
    evaluate(run)
    assert "was edited since" not in capsys.readouterr().out
    before = (run.folder / "predictions.npz").read_bytes()
    in_another_process(path, monkeypatch)
    evaluate(run)  # the edit changes nothing
    assert "Written to" in capsys.readouterr().out
    evaluated.model[1].bias.data[3] += 5
    evaluate(evaluated)
    said = capsys.readouterr().out
    assert "warning    another_part.py was edited since the run was saved" in said and "Not written" in said
    assert (run.folder / "predictions.npz").read_bytes() == before


def test_a_run_that_goes_on_with_edited_code_says_so(own, monkeypatch, capsys):
    path = Path("edited_part.py").resolve()
    path.write_text(EDITED)
    config = own(MODEL={"NAME": "edited"}, IMPORTS=[str(path)])
    stopped(monkeypatch, config, 2)
    train(config, resume=True)
    assert "was edited" not in capsys.readouterr().out
    stopped(monkeypatch, config, 2)
    in_another_process(path, monkeypatch)
    train(config, resume=True)
    assert capsys.readouterr().out.count("edited_part.py was edited since the run was saved") == 1
    assert "edited_part.py was edited" in (open_run().folder / "train.log").read_text()
