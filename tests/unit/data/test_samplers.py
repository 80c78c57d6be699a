import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import at_step, equal, fill, train_until

from cvkit.config import load_config
from cvkit.data.plan import EpochPlan
from cvkit.errors import ConfigError
from cvkit.registry import SAMPLERS
from cvkit.session import build_trainer, train

COUNTS = {"one": [7], "even": [10, 10, 10], "uneven": [100, 10, 1], "rest": [41, 7, 3, 2],
          "empty": [20, 0, 3], "many": [5000, 400, 30, 2]}


def plan_of(counts, batch_size=16, seed=0, **node):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    sampler = SAMPLERS.build(node, labels=labels, classes=list("abcd")[:len(counts)],
                             num_classes=len(counts))
    return labels, EpochPlan(len(labels), batch_size, True, seed, sampler=sampler)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_balanced_draws_as_many_of_each_class_and_each_image_as_often_up_to_one(counts):
    labels, plan = plan_of(counts, batch_size=len(np.repeat(counts, counts)), NAME="balanced")
    epochs = [plan.positions(epoch) for epoch in range(4)]
    for drawn in epochs:
        of_classes = Counter(labels[drawn].tolist())
        assert len(drawn) == plan.count == sum(counts)
        assert set(of_classes) == {label for label, count in enumerate(counts) if count}
        assert max(of_classes.values()) - min(of_classes.values()) <= 1
        of_images = np.bincount(drawn, minlength=len(labels))
        for label in of_classes:
            assert np.ptp(of_images[labels == label]) <= 1
    assert all(np.array_equal(plan.positions(epoch), drawn) for epoch, drawn in enumerate(epochs))
    if len(counts) > 1:
        assert not np.array_equal(*epochs[:2])


def test_the_images_of_a_frequent_class_change_from_epoch_to_epoch_and_with_the_seed():
    labels, plan = plan_of([100, 10], NAME="balanced")
    other = plan_of([100, 10], NAME="balanced", seed=1)[1]
    frequent = [set(drawn[labels[drawn] == 0]) for drawn in (
        plan.positions(0), plan.positions(1), other.positions(0))]
    assert all(len(images) in (54, 55) for images in frequent)
    assert frequent[0] != frequent[1] and frequent[0] != frequent[2]
    assert set().union(*(plan.positions(epoch) for epoch in range(15))) == set(range(110))


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("threshold", [1e-3, 0.2, 1.0])
def test_repeat_factor_is_that_of_the_paper(counts, threshold):
    labels, plan = plan_of(counts, NAME="repeat_factor", threshold=threshold)
    share = np.array(counts)[labels] / sum(counts)
    factor = np.maximum(1, np.sqrt(threshold / share))  # section 5.2 of the paper, by class
    whole, rest = np.floor(factor), (factor - np.floor(factor)).sum()
    length = int(whole.sum()) + math.floor(rest + 1e-6)
    sums = np.zeros(len(labels))
    for epoch in range(200):
        drawn = plan.sampler.positions(epoch, np.random.default_rng([0, epoch]))
        assert len(drawn) == length
        of_images = np.bincount(drawn, minlength=len(labels))
        assert ((of_images == whole) | (of_images == whole + 1)).all()
        sums += of_images
    assert length - plan.count in (0, 1)
    for label, count in enumerate(counts):
        if count and rest >= 1:
            # The rest of all images, of which the part below one is left out.
            expected = whole + (factor - whole) * math.floor(rest + 1e-6) / rest
            mean = sums[labels == label].mean() / 200
            assert mean == pytest.approx(expected[labels == label][0], abs=0.15 / count ** 0.5)


@pytest.mark.parametrize("threshold", [0, -1, 1.5])
def test_a_threshold_that_is_no_share_is_refused(threshold):
    with pytest.raises(ConfigError, match=f"threshold is a share, above 0 and at most 1, not {threshold}"):
        plan_of([3, 2], NAME="repeat_factor", threshold=threshold)


def test_a_last_batch_of_one_image_is_left_to_later_epochs_here_too():
    _, plan = plan_of([15, 2], NAME="balanced", batch_size=4)
    assert plan.count == len(plan.positions(0)) == 16 and plan.batch_sizes == [4] * 4


# -- in a training -------------------------------------------------------------------------------


@pytest.fixture
def uneven(quick):
    """A config of images in classes of very different size, in two splits."""
    fill(Path("x/train"), {"a": 60, "b": 9, "c": 4}, (32, 32))
    fill(Path("x/test"), {"a": 6, "b": 5, "c": 4}, (32, 32))
    quick.write_text(quick.read_text().replace("{NAME: Digits}", "{NAME: ImageFolder, root: x}")
                     .replace("LIMIT: 150", "LIMIT: 0"))
    return quick


SAMPLED = [{"NAME": "balanced"}, {"NAME": "repeat_factor", "threshold": 0.5}]


@pytest.mark.parametrize("pipeline", ["batched", "albumentations"])
@pytest.mark.parametrize("node", SAMPLED, ids=lambda node: node["NAME"])
def test_both_pipelines_train_on_the_images_that_are_drawn(uneven, pipeline, node):
    trainer = build_trainer(load_config(uneven, {"DATA.SAMPLER": node, "DATA.PIPELINE": pipeline}))
    loader, images = trainer.loaders.train, trainer.data.train
    for epoch in range(2):
        loader.set_epoch(epoch)
        batches = list(loader)
        drawn = loader.plan.positions(epoch)
        assert torch.cat([batch.index for batch in batches]).tolist() == images.index[drawn].tolist()
        assert torch.cat([batch.labels for batch in batches]).tolist() == images.labels[drawn].tolist()
        twice, = np.flatnonzero(drawn == drawn[np.argmax(np.bincount(drawn)[drawn])])[None, :2]
        whole = torch.cat([batch.images for batch in batches])
        assert not torch.equal(*whole[twice])  # each time it is augmented anew
        first = loader.first_batch(epoch)
        assert torch.equal(first.images, batches[0].images)
    assert len(trainer.loaders.test.plan.positions(0)) == len(trainer.data.test) == 15


def test_it_is_said_once_and_counted_by_what_was_trained_on(uneven, capsys):
    run = train(load_config(uneven, {"DATA.SAMPLER": SAMPLED[0]}))
    assert capsys.readouterr().out.count(
        "sampler    balanced: 73 images an epoch, each of 3 classes 24 or 25 times\n") == 1
    run = train(load_config(uneven, {"DATA.SAMPLER": SAMPLED[1], "SCHEDULER.NAME": "OneCycleLR"}))
    out = capsys.readouterr().out
    factors = np.maximum(1, np.sqrt(0.5 * 73 / np.array([60, 9, 4])))  # 1, 2.01, 3.02
    assert 60 + 9 * 2 + 4 * 3 == 90 and math.floor((factors % 1) @ [60, 9, 4]) == 0
    assert "sampler    repeat_factor: 90 images an epoch, in the first from 12 (c) to 60 (a) of a class" in out
    assert "2 epochs of 3 batches of 32" in out and run.metrics[-1]["rates"][-1][0] == 5
    for record in run.metrics:
        assert record["images_per_second"] == pytest.approx(90 / record["seconds"], rel=0.1)


@pytest.mark.parametrize("pipeline", ["batched", "albumentations"])
@pytest.mark.parametrize("node", SAMPLED, ids=lambda node: node["NAME"])
def test_inside_an_epoch_it_is_resumed_to_the_bit(uneven, monkeypatch, pipeline, node):
    config = load_config(uneven, {"DATA.SAMPLER": node, "DATA.PIPELINE": pipeline,
                                  "TRAIN.CHECKPOINT_EVERY": "1 step", "TRAIN.EPOCHS": 3})
    whole = train(config)

    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        at_step(patched, 5, stop)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    resumed = train(config, resume=True)
    assert resumed.folder != whole.folder
    assert equal(resumed.checkpoint("last").model, whole.checkpoint("last").model)
    assert resumed.metrics[-1]["train/loss"] == whole.metrics[-1]["train/loss"]


def test_a_run_is_not_resumed_with_another_sampler(uneven):
    run = train_until(load_config(uneven, {"DATA.SAMPLER": SAMPLED[0]}), 1)
    with pytest.raises(Exception, match="DATA.SAMPLER.NAME: balanced in the run"):
        train(load_config(uneven), resume=run.folder)


def test_images_that_cannot_be_read_are_left_out_as_often_as_they_are_drawn(uneven):
    Path("x/train/c/000.png").write_text("no image")
    config = load_config(uneven, {"DATA.SAMPLER": SAMPLED[0], "DATA.CACHE_GB": 0,
                                  "DATA.DATASET.skip_unreadable": True})
    trainer = build_trainer(config)
    Path("x/train/c/001.png").write_text("no image")  # since the folder was read
    counts = Counter(label for batch in trainer.loaders.train for label in batch.labels.tolist())
    assert counts[2] == 16 and sum(counts.values()) == 64  # one of three images, each eight times
    assert {Path(name).name for name in trainer.loaders.train.left_out} == {"001.png"}


# -- of one's own --------------------------------------------------------------------------------


class Own:
    """Draws what a test says."""

    def __init__(self, labels, num_classes, classes):
        assert (num_classes, classes) == (3, ["a", "b", "c"])
        self.count, self.calls = len(labels), 0

    def positions(self, epoch, random):
        self.calls += 1
        return self.draw(epoch, random)

    def draw(self, epoch, random):
        return random.permutation(self.count)[:40]


def own(**methods):
    kind = type("Own", (Own,), {"__module__": "my_sampler", **methods})
    return SAMPLERS.register()(kind)


def test_a_sampler_of_one_s_own_decides_on_the_images_and_their_order(uneven, capsys):
    own()
    run = train(load_config(uneven, {"DATA.SAMPLER": {"NAME": "Own"}, "TRAIN.EPOCHS": 1}))
    assert run.metrics[0]["epoch"] == 1
    assert "sampler    Own: 40 images an epoch, in the first from" in capsys.readouterr().out
    plan = build_trainer(run.config).loaders.train.plan
    expected = np.random.default_rng([0, 3]).permutation(73)[:40]
    assert np.array_equal(plan.positions(3), expected)


@pytest.mark.parametrize("draw, problem", [
    (lambda self, epoch, random: [0, 73], "sampler Own draws position 73, and the 73 images have those from 0 to 72"),
    (lambda self, epoch, random: [-1, 0], "sampler Own draws position -1, and the 73 images have those from 0 to 72"),
    (lambda self, epoch, random: np.arange(9 + epoch), "sampler Own draws 10 images for epoch 2, and 9 for the first"),
    (lambda self, epoch, random: [0.5, 1], "sampler Own draws float64 of shape (2,)"),
    (lambda self, epoch, random: [], "sampler Own draws float64 of shape (0,)"),
    (lambda self, epoch, random: np.zeros((2, 2), int), "sampler Own draws int64 of shape (2, 2)"),
    (lambda self, epoch, random: None, "sampler Own draws object of shape ()"),
    (lambda self, epoch, random: [self.calls, 1], "sampler Own draws other images when it is asked again for an "
                                                  "epoch: no training could be resumed")])
def test_one_that_draws_what_cannot_be_trained_on_is_refused_before(uneven, tool, draw, problem):
    own(draw=draw)
    code, _, err = tool("train.py", uneven, "DATA.SAMPLER", "{NAME: Own}")
    assert code == 2 and f"command line DATA.SAMPLER.NAME: {problem}\n" in err
    assert not Path("runs").exists()


def test_one_without_the_method_is_refused(uneven):
    own(positions=lambda self, epoch: [0])
    with pytest.raises(ConfigError, match=r"sampler Own cannot be called as positions\(epoch, random\)"):
        build_trainer(load_config(uneven, {"DATA.SAMPLER": {"NAME": "Own"}}))
