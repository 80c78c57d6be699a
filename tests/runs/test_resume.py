"""resume="auto": which run is gone on with; and that any run that is, ends alike to the bit.

`CVKIT_RESUME_CASES=320 python -m pytest tests/runs/test_resume.py -k any_run` tries more runs than
the suite does, whose are the first of them.
"""

import contextlib
import dataclasses
import json
import os
import random
import signal
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import before_each_step, train_until, without_times
from torch import nn
from torch.optim import lr_scheduler

from cvkit.config import load_config
from cvkit.errors import CheckpointError, RunError
from cvkit.models.resnet import BasicBlock
from cvkit.registry import LOSSES, METRICS, MODELS, SCHEDULERS
from cvkit.runs.finding import find_runs
from cvkit.runs.folder import Run
from cvkit.session import train
from cvkit.training.resume import newest_run_of
from cvkit.training.trainer import Trainer


@pytest.fixture
def tiny(quick):
    return quick


def interrupted(config):
    return train_until(config, 1)


def test_auto_begins_a_run_goes_on_with_it_and_opens_it(tiny):
    config = load_config(tiny)
    whole = train(config, resume="auto")
    assert len(find_runs()) == 1
    part = interrupted(load_config(tiny, {"SEED": 1}))
    assert train(config, resume="auto").folder == whole.folder  # the newest of the same settings
    longer = load_config(tiny, {"SEED": 1, "WRITERS": [{"NAME": "tensorboard", "pictures": False}]})
    again = train(longer, resume="auto")
    assert again.folder == part.folder and len(again.metrics) == 2 and len(find_runs()) == 2
    straight = train(load_config(tiny, {"SEED": 1}))
    for name, weight in straight.checkpoint().model.items():
        assert torch.equal(weight, again.checkpoint().model[name]), name
    assert train(load_config(tiny, {"OPTIMIZER.lr": 0.01}), resume="auto").folder not in (
        whole.folder, part.folder, straight.folder)


@pytest.mark.parametrize("factor, is_taken", [(1 + 1e-15, True), (1.001, False)])
def test_a_mean_that_was_rounded_differently_is_the_same_and_another_one_is_refused(
        tiny, factor, is_taken):
    run = interrupted(load_config(tiny))
    checkpoint = run.checkpoint("last")
    run.save(dataclasses.replace(checkpoint, mean=[value * factor for value in checkpoint.mean]))
    if is_taken:
        assert len(train(load_config(tiny), resume=run.folder).metrics) == 2
    else:
        with pytest.raises(CheckpointError, match="was trained on other images: their mean was"):
            train(load_config(tiny), resume=run.folder)


def test_auto_takes_up_a_run_whose_rate_was_found(tiny):
    config = load_config(tiny, {"SCHEDULER": {"NAME": "OneCycleLR", "max_lr": "find"}})
    part = interrupted(config)
    again = train(config, resume="auto")
    assert again.folder == part.folder and len(again.metrics) == 2


def test_auto_is_a_word_of_the_command_line_too(tiny, tool):
    for count in (1, 1):
        code, out, err = tool("train.py", tiny, "--resume", "auto")
        assert code == 0 and len(find_runs()) == count, err
    assert "is finished: 2 epochs" in out


def test_auto_knows_a_scheduler_of_one_s_own(tiny, tmp_path):
    (tmp_path / "halving_rate.py").write_text(
        "from torch.optim import lr_scheduler\nfrom cvkit import SCHEDULERS\n\n"
        "@SCHEDULERS.register()\ndef HalvingRate(optimizer):\n"
        "    return lr_scheduler.ExponentialLR(optimizer, 0.5)\n")
    config = load_config(tiny, {"IMPORTS": [str(tmp_path / "halving_rate.py")],
                                "SCHEDULER": {"NAME": "HalvingRate"}})
    first = train(config, resume="auto")
    assert train(config, resume="auto").folder == first.folder
    assert first.metrics[1]["lr"] == first.metrics[0]["lr"] / 2


def test_a_run_that_was_looked_at_shows_its_new_weights_when_it_went_on(tiny):
    run = interrupted(load_config(tiny))
    before = run.model.conv.weight.clone()
    train(load_config(tiny), resume=run)
    assert torch.equal(run.model.conv.weight.cpu(), run.checkpoint().model["conv.weight"])
    assert not torch.equal(run.model.conv.weight, before)


def test_a_run_from_when_seed_made_the_split_too_keeps_its_split(tiny, capsys):
    settings = {"SEED": 3, "DATA.VAL_FRACTION": 0.2, "DATA.LIMIT": 60}
    part = interrupted(load_config(tiny, {**settings, "DATA.SPLIT_SEED": 3}))
    path = part.folder / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("  SPLIT_SEED: 3\n", ""))  # which it did not have then
    opened = Run(part.folder)
    assert "SPLIT_SEED" not in path.read_text() and opened.config.DATA.SPLIT_SEED == 3
    assert load_config(path, {"SEED": 5}).DATA.SPLIT_SEED == 3
    for name in ("train", "val", "test"):
        assert np.array_equal(getattr(opened.data, name).index, getattr(part.data, name).index)
    # Under the config that it began with it would be split by the new key.
    with pytest.raises(RunError, match=r"DATA\.SPLIT_SEED: 3 in the run, 0 now\n.*config\.yaml --resume"):
        train(load_config(tiny, settings), resume=part.folder)
    capsys.readouterr()
    assert newest_run_of(load_config(tiny, settings)) is None
    assert f"note       {part.folder} is left out: it was split by another seed; to go on with it, add " \
           "DATA.SPLIT_SEED 3" in capsys.readouterr().out
    again = train(load_config(path), resume=part.folder)
    assert len(again.metrics) == 2 and "  SPLIT_SEED: 3\n" in path.read_text()


# -- any run, stopped anywhere -------------------------------------------------------------------

CROP, MIXUP = {"NAME": "RandomCrop", "size": 8, "padding": 1}, {"NAME": "MixUp", "alpha": 1.0}
OPTIONS = {
    "SCHEDULER": [
        None,
        {"NAME": "OneCycleLR"},
        {"NAME": "OneCycleLR", "max_lr": 0.02, "three_phase": True},
        {"NAME": "CyclicLR", "base_lr": 0.001, "max_lr": 0.02, "step_size_up": 3},
        {"NAME": "CyclicLR", "base_lr": 0.001, "max_lr": 0.02, "step_size_up": 2,
         "mode": "exp_range", "gamma": 0.9},
        {"NAME": "CosineAnnealingLR"},
        {"NAME": "CosineAnnealingWarmRestarts", "T_0": 1, "T_mult": 2},
        {"NAME": "MultiStepLR", "milestones": [1, 2], "gamma": 0.3},
        {"NAME": "StepLR", "step_size": 1},
        {"NAME": "ReduceLROnPlateau", "patience": 0, "threshold": 0.5},
        {"NAME": "ReduceLROnPlateau", "patience": 0, "mode": "max", "cooldown": 1},
        {"NAME": "ExponentialLR", "gamma": 0.7},
        {"NAME": "PolynomialLR", "total_iters": 3, "power": 1.5},
        {"NAME": "LinearLR", "start_factor": 0.1, "total_iters": 2},
        {"NAME": "ConstantLR", "total_iters": 1},
        {"NAME": "SequentialLR", "milestones": [1], "schedulers": [
            {"NAME": "LinearLR", "total_iters": 1}, {"NAME": "CosineAnnealingLR"}]},
        {"NAME": "SequentialLR", "milestones": [1], "schedulers": [
            {"NAME": "ConstantLR"}, {"NAME": "MultiStepLR", "milestones": [1]}]},
        {"NAME": "ChainedScheduler", "schedulers": [
            {"NAME": "ExponentialLR", "gamma": 0.9}, {"NAME": "StepLR", "step_size": 2}]},
        {"NAME": "wave"},
        {"NAME": "wave", "unit": "batch"}],
    "OPTIMIZER": [
        {"NAME": "SGD", "lr": 0.05},
        {"NAME": "SGD", "lr": 0.02, "momentum": 0.9},
        {"NAME": "SGD", "lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        {"NAME": "SGD", "lr": 0.02, "momentum": 0.9, "dampening": 0.3},
        {"NAME": "Adam", "lr": 0.01},
        {"NAME": "Adam", "lr": 0.01, "amsgrad": True, "foreach": True},
        {"NAME": "AdamW", "lr": 0.01, "weight_decay": 0.1},
        {"NAME": "RMSprop", "lr": 0.001},
        {"NAME": "RMSprop", "lr": 0.001, "momentum": 0.5, "centered": True},
        {"NAME": "NAdam", "lr": 0.01},
        {"NAME": "RAdam", "lr": 0.01},
        {"NAME": "Adagrad", "lr": 0.01, "lr_decay": 0.1},
        {"NAME": "Adadelta", "lr": 1.0},
        {"NAME": "Adamax", "lr": 0.01},
        {"NAME": "Adafactor", "lr": 0.01},
        {"NAME": "ASGD", "lr": 0.01, "t0": 3},
        {"NAME": "Rprop", "lr": 0.001},
        *([{"NAME": "Muon", "lr": 0.02}] if hasattr(torch.optim, "Muon") else []),
        {"NAME": "SGD", "lr": 0.02, "momentum": 0.9, "weight_decay": 0.01, "groups": [
            {"match": "*bias", "lr_mult": 0.1, "weight_decay": 0.0}]},
        {"NAME": "AdamW", "lr": 0.01, "layer_decay": 0.5, "groups": [
            {"match": ["all", "!*bias"], "lr_mult": 0.3}]}],
    "LOSS": [
        {"NAME": "CrossEntropyLoss"},
        {"NAME": "CrossEntropyLoss", "label_smoothing": 0.1},
        {"NAME": "CrossEntropyLoss", "weight": [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]},
        {"NAME": "tempered"},
        {"NAME": "annealed"}],
    "MODEL": [{"NAME": "dropped"}, {"NAME": "linear"}, {"NAME": "moody"}],
    "SEED": [0, 1, 2],
    "DATA.TRAIN_TRANSFORMS": [
        [], [CROP], [MIXUP], [CROP, {"NAME": "CutMix"}],
        [{**MIXUP, "p": 0.4}, {"NAME": "CutMix", "p": 0.4}],
        [{"NAME": "CutOut", "size": 3}, {"NAME": "RandomBrightnessContrast"}, MIXUP]],
    "DATA.LIMIT": [40, 50, 60],
    "DATA.BATCH_SIZE": [10, 13, 20],
    "DATA.EVAL_BATCH_SIZE": [0, 16],
    "DATA.VAL_FRACTION": [0.0, 0.25],
    "DATA.PIPELINE": ["auto", "albumentations"],
    "DATA.WORKERS": [0] * 14 + [1],
    "DATA.SAMPLER": [None, None, {"NAME": "balanced"}, {"NAME": "repeat_factor", "threshold": 0.5}],
    "TRAIN.EPOCHS": [2, 3],
    "TRAIN.PRECISION": ["fp32", "fp32", "fp32", "bf16"],
    "TRAIN.CHANNELS_LAST": [True, False],
    "TRAIN.WARMUP_EPOCHS": [0.0, 0.0, 0.5, 1.0],
    "TRAIN.EMA_DECAY": [0.0, 0.9],
    "TRAIN.ACCUMULATE": [1, 2, 3],
    "TRAIN.CLIP_GRAD_NORM": [0.0, 1.0],
    "TRAIN.DECAY_NORM_AND_BIAS": [True, False],
    "TRAIN.FREEZE": [[], [], ["*bias"]],
    "TRAIN.MONITOR": ["accuracy", "loss", "luck"],
    "TRAIN.EARLY_STOP": [0, 0, 1],
    "TRAIN.CHECKPOINT_EVERY": ["epoch", "1 step", "2 steps"],
}
STOPS = [["signal"], ["kill"], ["evaluation"], ["signal", "signal"], ["kill", "signal"],
         ["evaluation", "kill"]]
FAST = 20
ALL = max(FAST, int(os.environ.get("CVKIT_RESUME_CASES", 30)))


def wave(optimizer, unit: str = "epoch"):
    schedule = lr_scheduler.LambdaLR(optimizer, lambda step: np.cos(step / 9))
    schedule.unit = unit
    return schedule


class tempered(nn.Module):  # noqa: N801
    """Learns a temperature."""

    def __init__(self):
        super().__init__()
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, logits, targets):
        return nn.functional.cross_entropy(logits.float() * self.log_temperature.exp(), targets)


class annealed(nn.Module):  # noqa: N801
    """Smooths the less, the more often it was called."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, logits, targets):
        self.calls += 1
        return nn.functional.cross_entropy(logits.float(), targets,
                                           label_smoothing=0.5 / float(self.calls))


class luck:  # noqa: N801
    """Is another number in each epoch, so that any epoch may be the best."""

    def __init__(self):
        self.total = 0.0

    def update(self, logits, labels):
        self.total += float(logits.double().sum())

    def compute(self):
        return {"luck": 1000 * self.total % 1}


def dropped(num_classes):
    return nn.Sequential(BasicBlock(3, 4, 2, "batch", 1), nn.Flatten(), nn.Dropout(0.5),
                         nn.Linear(4 * 4 * 4, num_classes))


def linear(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))


class moody(nn.Module):  # noqa: N801
    """Draws all random numbers there are, and goes by how often it was called."""

    def __init__(self, num_classes):
        super().__init__()
        self.fc, self.calls = nn.Linear(3 * 8 * 8, num_classes), 0

    def forward(self, images):
        self.calls += 1
        noise = 0.1 * (random.gauss(0, 1) + np.random.normal() + torch.randn(len(images), 1))
        return self.fc(images.flatten(1)) * (1 + 1 / self.calls) + noise

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


@pytest.fixture
def any_config(tmp_path):
    """The path of a config that says what OPTIONS leave open."""
    for registry, entries in ((SCHEDULERS, [wave]), (LOSSES, [tempered, annealed]),
                              (METRICS, [luck]), (MODELS, [dropped, linear, moody])):
        for entry in entries:
            registry.register()(entry)
    path = tmp_path / "any.yaml"
    path.write_text("DATA: {DATASET: {NAME: Digits, size: 8}}\nMETRICS: [{NAME: luck}]\n")
    return path


def drawn(number):
    """Return a case's settings and where it stops: (part of what is left to train, how).

    Each option is dealt from a deck that is shuffled when it is used up, so a few cases have all.
    """
    def dealt(name, options):
        deck, place = divmod(number, len(options))
        return random.Random(f"{name} {deck}").sample(options, len(options))[place]

    settings = {key: dealt(key, options) for key, options in OPTIONS.items()}
    if settings["DATA.WORKERS"]:
        settings["DATA.PIPELINE"] = "albumentations"
    if settings["TRAIN.EMA_DECAY"]:
        settings |= {"TRAIN.EMA_EVERY": 1 + number % 2, "TRAIN.EMA_LOOKAHEAD": number % 3 == 0}
    if settings["TRAIN.FREEZE"]:
        settings["TRAIN.UNFREEZE"] = [None, {"2": "all"}, {"3": ["*bias"]}][number % 3]
    else:
        settings["TRAIN.FREEZE_FROM"] = [None, {"2": ["*bias"]}][number % 2]
    places = random.Random(number)
    return settings, [(places.random(), how) for how in dealt("stops", STOPS)]


@contextlib.contextmanager
def stopping_at(call=0, how=""):
    """Stop at the n-th batch that a run trains on, of which a list is returned.

    By a signal, then or in the evaluation after it; or at once, if there is a checkpoint to go on
    from.
    """
    evaluate, calls = Trainer.evaluate, []

    def step(trainer, batch):
        calls.append(trainer.state.epoch)
        if len(calls) == call and how != "evaluation":
            if how == "kill" and trainer.run.has_checkpoint:
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGTERM)

    def evaluated(trainer):
        if how == "evaluation" and len(calls) >= call:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(trainer)

    with pytest.MonkeyPatch.context() as patched:
        before_each_step(patched, step)
        patched.setattr(Trainer, "evaluate", evaluated)
        yield calls


def content(run):
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    with np.load(run.folder / "predictions.npz") as predictions:
        return {"last": vars(run.checkpoint("last")), "best": vars(run.checkpoint("best")),
                "metrics": without_times(map(json.loads, lines)), "predictions": dict(predictions)}


def differences(ours, theirs, place=""):
    """Yield the places where two values are not the same bits."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        for key in ours:
            yield from differences(ours[key], theirs[key], f"{place}/{key}")
    elif isinstance(ours, (list, tuple)) and type(ours) is type(theirs) and len(ours) == len(theirs):
        for number, pair in enumerate(zip(ours, theirs)):
            yield from differences(*pair, f"{place}/{number}")
    elif isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape) or not torch.equal(
                ours.flatten().view(torch.uint8), theirs.flatten().view(torch.uint8)):
            yield place
    elif isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray):
        if (ours.dtype, ours.shape, ours.tobytes()) != (theirs.dtype, theirs.shape, theirs.tobytes()):
            yield place
    elif repr(ours) != repr(theirs):
        yield f"{place}: {ours!r} and {theirs!r}"


def with_stops(config, stops, epochs):
    """Train so many epochs, each of so many batches, with stops."""
    folder, total = False, sum(epochs)
    for part, how in stops:
        left = total
        if folder:
            saved = Run(folder).checkpoint("last")
            left -= sum(epochs[:saved.epoch]) + saved.batches
        if left:
            with stopping_at(1 + int(part * left), how), pytest.raises(KeyboardInterrupt):
                train(config, resume=folder)
            folder = find_runs(config.OUTPUT_DIR)[-1]
    return train(config, resume=folder)


@pytest.mark.parametrize("first, count", [
    *((first, 5) for first in range(0, FAST, 5)),
    *(pytest.param(first, min(30, ALL - first), marks=pytest.mark.slow) for first in range(FAST, ALL, 30))])
def test_any_run_that_was_stopped_ends_like_the_one_that_was_not(any_config, first, count):
    for number in range(first, first + count):
        settings, stops = drawn(number)
        try:
            config = load_config(any_config, {**settings, "OUTPUT_DIR": f"runs-{number}"})
            with stopping_at() as calls:
                whole = train(config)
            resumed = with_stops(config, stops, [*Counter(calls).values()])
            found = [*differences(content(whole), content(resumed))]
            assert not found, "\n".join(found)
        except (Exception, pytest.fail.Exception) as error:
            raise AssertionError(f"case {number}, stopped {stops}: {settings}\n{error}") from error


@pytest.mark.parametrize("count", [FAST, pytest.param(ALL, id="all")])
def test_these_runs_have_every_option(count):
    cases = [drawn(number) for number in range(count)]
    for key, options in OPTIONS.items():
        assert all(any(case[key] == option for case, _ in cases) for option in options), key
    assert all(any([how for _, how in stops] == kinds for _, stops in cases) for kinds in STOPS)


@pytest.mark.parametrize("settings, advice", [
    ({"SCHEDULER": None}, "raise TRAIN.EPOCHS."),
    ({"SCHEDULER": {"NAME": "CosineAnnealingLR"}}, "start a new run: CosineAnnealingLR planned this one for its "),
    ({"SCHEDULER": None, "TRAIN.EMA_DECAY": 0.9, "TRAIN.EMA_POWER": 2.0},
     "start a new run: TRAIN.EMA_POWER planned this one for its ")], ids=["constant", "cosine", "averages"])
def test_what_would_train_a_finished_run_longer_is_what_is_allowed(tiny, capsys, settings, advice):
    config = load_config(tiny, {**settings, "TRAIN.EPOCHS": 1})
    run = train(config)
    train(config, resume=run)
    assert f"is finished: 1 epoch. To train longer, {advice}" in capsys.readouterr().out
    longer = load_config(tiny, {**settings, "TRAIN.EPOCHS": 2})
    if "new run" in advice:
        with pytest.raises(RunError, match="was planned for the old number"):
            train(longer, resume=run)
    else:
        assert len(train(longer, resume=run).metrics) == 2
