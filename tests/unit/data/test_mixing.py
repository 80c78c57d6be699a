"""MixUp and CutMix: what is mixed, how much, and that the targets say exactly that."""

import numpy as np
import pytest
import torch
from helpers import train_until

from cvkit.config import load_config
from cvkit.data import build_data, build_loaders
from cvkit.data.mixing import BatchTransform, mix
from cvkit.errors import ConfigError
from cvkit.registry import TRANSFORMS
from cvkit.session import build_trainer, train
from cvkit.training.step import train_step
from cvkit.visualizers.samples import samples

IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 4


def build(name, **arguments):
    return TRANSFORMS.build({"NAME": name, **arguments}, num_classes=4)


def loaders_of(tiny, *nodes):
    config = load_config(tiny, {"DATA.TRAIN_TRANSFORMS": [{"NAME": "RandomCrop", "size": 32, "padding": 4}, *nodes]})
    return build_loaders(config, build_data(config), torch.device("cpu"))


def test_mixup_blends_each_image_with_another_by_the_shares_of_the_targets():
    for seed in range(20):
        images, targets = mix([build("MixUp", alpha=1.0)], IMAGES, LABELS, (0, 0, seed))
        own = targets[torch.arange(8), LABELS]
        share = float(own[0])
        assert torch.allclose(targets.sum(1), torch.ones(8)) and torch.allclose(own, own[:1])
        assert torch.allclose(images, share * IMAGES + (1 - share) * IMAGES.roll(1, 0), atol=1e-6)
        assert torch.allclose(targets[torch.arange(8), LABELS.roll(1)], 1 - own)


def test_cutmix_takes_a_box_of_another_image_and_its_area_of_its_label():
    areas = set()
    for seed in range(20):
        images, targets = mix([build("CutMix")], IMAGES, LABELS, (0, 0, seed))
        is_other = (images != IMAGES).any(1)
        assert torch.equal(torch.where(is_other[:, None], IMAGES.roll(1, 0), IMAGES), images)
        rows, columns = is_other[0].any(1).nonzero(), is_other[0].any(0).nonzero()
        if len(rows):
            box = (int(rows[-1] - rows[0]) + 1) * (int(columns[-1] - columns[0]) + 1)
            assert int(is_other[0].sum()) == box
        area = float(is_other[0].sum()) / 256
        assert targets[0, LABELS[7]] == pytest.approx(area, abs=1e-6)
        areas.add(area)
    assert len(areas) > 10


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_alpha_may_be_a_whole_number(name):
    images, targets = mix([build(name, alpha=16)], IMAGES, LABELS, (0, 0, 0))
    assert images.shape == IMAGES.shape and torch.allclose(targets.sum(1), torch.ones(8))


def test_parts_of_the_batches_are_as_asked():
    half = [build("MixUp", p=0.3), build("CutMix", p=0.5)]
    kinds = []
    for seed in range(2000):
        images, targets = mix(half, IMAGES, LABELS, (0, 0, seed))
        is_cut = bool(((images == IMAGES) | (images == IMAGES.roll(1, 0))).all())
        kinds.append("none" if targets is LABELS else "cut" if is_cut else "up")
    assert kinds.count("up") / 2000 == pytest.approx(0.3, abs=0.04)
    assert kinds.count("cut") / 2000 == pytest.approx(0.5, abs=0.04)
    assert kinds.count("none") / 2000 == pytest.approx(0.2, abs=0.04)


def test_what_is_drawn_depends_on_the_key_alone_and_leaves_torchs_stream_as_it_was():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = mix([build("MixUp", alpha=1.0)], IMAGES, LABELS, (1, 2, 3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again, other = (mix([build("MixUp", alpha=1.0)], IMAGES, LABELS, key) for key in ((1, 2, 3), (1, 2, 4)))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_loaders_mix_training_batches_only_and_epochs_differ(tiny):
    loaders = loaders_of(tiny, {"NAME": "MixUp", "alpha": 1.0})
    plain = loaders_of(tiny)
    epochs = []
    for epoch in (0, 1, 0):
        for loader in (loaders.train, plain.train):
            loader.set_epoch(epoch)
        batches, originals = list(loaders.train), list(plain.train)
        epochs.append([batch.targets for batch in batches])
        for batch, original in zip(batches, originals, strict=True):
            share = batch.targets.max(1).values.min()
            assert batch.targets.shape == (len(original.labels), 10) and 0.4 < share <= 1
            assert torch.equal(batch.index, original.index)
            assert torch.equal(batch.labels, batch.targets.argmax(1))
            mixed = share * original.images + (1 - share) * original.images.roll(1, 0)
            other = (1 - share) * original.images + share * original.images.roll(1, 0)
            assert min((batch.images - mixed).abs().max(), (batch.images - other).abs().max()) < 1e-4
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(*pair) for pair in zip(epochs[0], epochs[2], strict=True))
    assert not torch.equal(epochs[0][0], epochs[1][0])
    assert torch.equal(loaders.train.first_batch().targets, epochs[0][0])
    for batch in loaders.test:
        assert batch.targets is batch.labels


def test_it_trains_on_the_shares_and_resumes_exactly(quick):
    nodes = [{"NAME": "RandomCrop", "size": 32, "padding": 4}, {"NAME": "MixUp", "p": 0.5}, {"NAME": "CutMix", "p": 0.5}]
    config = load_config(quick, {"DATA.TRAIN_TRANSFORMS": nodes, "LOSS": {"NAME": "CrossEntropyLoss", "label_smoothing": 0.1}})
    whole = train(config)
    assert "a mixed image counts for the class with the larger share" in (whole.folder / "train.log").read_text()
    part = train_until(config, 1)
    train(config, resume=part.folder)
    for name, weight in whole.checkpoint().model.items():
        assert torch.equal(weight, part.checkpoint().model[name]), name
    trainer = build_trainer(config)
    batch = trainer.loaders.train.first_batch()
    assert batch.targets.ndim == 2
    loss, logits = train_step(trainer.state, batch._replace(ends_step=False))
    smooth = 0.9 * batch.targets + 0.1 / 10
    expected = -(smooth * logits.float().log_softmax(1)).sum(1).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-3)


def test_the_samples_show_both_classes_with_their_shares(tiny):
    loaders = loaders_of(tiny, {"NAME": "CutMix"})
    data = build_data(load_config(tiny))
    figure = samples(loaders, data, count=6)
    batch = loaders.train.first_batch()
    for axes, target in zip(figure.axes[:6], batch.targets[:6], strict=True):
        lines = axes.get_title().split("\n")
        for line in lines if len(lines) == 2 else []:
            name, share = line.split(" ", 1)
            assert share == f"{100 * float(target[int(name)]):.0f} %"
        assert len(lines) == int((target > 0).sum())


def test_own_batch_transforms_can_be_listed(tiny):

    @TRANSFORMS.register()
    def Invert(num_classes):
        return BatchTransform(lambda images, labels: (-images, torch.nn.functional.one_hot(labels, num_classes).float()))

    mixed, plain = (loaders.train.first_batch() for loaders in (loaders_of(tiny, {"NAME": "Invert"}), loaders_of(tiny)))
    assert torch.equal(mixed.images, -plain.images) and torch.equal(mixed.labels, plain.labels)


@pytest.mark.parametrize("key, value, expected", [
    ("DATA.TEST_TRANSFORMS", [{"NAME": "MixUp"}], "TEST_TRANSFORMS.0.NAME: MixUp mixes images, which is for training only"),
    ("DATA.TRAIN_TRANSFORMS", [{"NAME": "MixUp"}, {"NAME": "CutMix"}], "add up to 2, and a batch is mixed once\n.*Set p of each, to 0.5"),
    ("DATA.TRAIN_TRANSFORMS", [{"NAME": "MixUp", "p": 0.0}], "p is above 0 and at most 1, not 0.0"),
    *[("DATA.TRAIN_TRANSFORMS", [{"NAME": name, "alpha": alpha}],
       f"TRAIN_TRANSFORMS.0.alpha: transform {name} cannot be built: alpha is above 0 and finite, not {alpha}")
      for name in ("MixUp", "CutMix") for alpha in (-1.0, 0, float("inf"))],
])
def test_wrong_mixing(tiny, key, value, expected, monkeypatch):
    # Torch's own check is off in a process that has compiled a model.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)
    config = load_config(tiny, {key: value})
    with pytest.raises(ConfigError, match=expected):
        build_loaders(config, build_data(config), torch.device("cpu"))


def test_a_loss_of_classes_alone_is_refused_before_training(tiny):
    nodes = [{"NAME": "MixUp"}]
    with pytest.raises(ConfigError, match="loss NLLLoss cannot be given shares of classes"):
        build_trainer(load_config(tiny, {"DATA.TRAIN_TRANSFORMS": nodes, "LOSS": {"NAME": "NLLLoss"}}))
    for name in ("MSELoss", "BCEWithLogitsLoss", "KLDivLoss"):
        loss = build_trainer(load_config(tiny, {"DATA.TRAIN_TRANSFORMS": nodes, "LOSS": {"NAME": name}})).state.loss
        assert np.isfinite(float(loss(torch.zeros(2, 10), torch.full((2, 10), 0.1))))
