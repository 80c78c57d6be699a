"""The references of the benchmark do what they say, or its ratios would mean nothing."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from benchmarks.bare import MEAN, STD, Bare
from benchmarks.classic import Classic, ClassicData
from benchmarks.limit import products
from benchmarks.measure import PARTS, in_turns, measure, peak_memory, speed
from cvkit.models.resnet import resnet18

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (96, 32, 32, 3), dtype=np.uint8)
LABELS = (IMAGES[:, :, :, 0].mean((1, 2)) > 127).astype(np.int64)


def check_augmented(image, result):
    """A result is a normalised 32×32 window of the padded image with one hole of 16×16 at 0."""
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0))) / 255
    hole = (np.abs(result) < 0.01).all(0)
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    assert hole.sum() == 256 and rows[-1] - rows[0] == columns[-1] - columns[0] == 15
    windows = ((padded[y:y + 32, x:x + 32] - MEAN) / STD for y in range(9) for x in range(9))
    assert min(np.abs(window.transpose(2, 0, 1) - result)[:, ~hole].max() for window in windows) < 1e-4


def test_both_augment_as_the_main_config_does():
    bare = Bare(resnet18(width=4), IMAGES, LABELS, CPU, "fp32")
    batch = bare.augmented(bare.images)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    classic = ClassicData(IMAGES, LABELS)
    for number in range(8):
        check_augmented(IMAGES[number], batch[number].numpy())
        check_augmented(IMAGES[number], classic[number][0].numpy())
    assert len({image.numpy().tobytes() for image in bare.augmented(bare.images[:1].repeat(50, 1, 1, 1))}) > 45


@pytest.mark.parametrize("name", ["bare", "classic"])
def test_both_learn(name):
    torch.manual_seed(0)
    images = np.where(LABELS[:, None, None, None], IMAGES // 2 + 128, IMAGES // 2).astype(np.uint8)
    # Not narrower: see cvkit.models.probing.choose_layout, which these loops do without.
    model = resnet18(width=16, num_classes=2)
    reference = (Bare(model, images, LABELS, CPU, "fp32") if name == "bare"
                 else Classic(model, images, LABELS, CPU, 32))
    for _ in range(5):
        reference.epoch(32) if name == "bare" else reference.epoch()
    model.eval()
    logits = model((torch.from_numpy(images).permute(0, 3, 1, 2) / 255
                    - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])
    assert (logits.argmax(1).numpy() == LABELS).mean() > 0.9


def test_works_are_timed_in_turns_after_a_warm_up():
    order = []
    taken = in_turns({name: lambda name=name: order.append(name) for name in "ab"}, rounds=2)
    assert order == list("ababab") and [len(times) for times in taken.values()] == [2, 2]
    assert speed({"a": [1.0, 2.0, 3.0], "b": [2.0, 6.0, 6.0]}, "a", "b") == 2  # twice as fast as b


def test_the_parts_of_the_benchmark():
    assert list(PARTS) == ["step", "limit", "freezing", "growth", "memory", "start", "cam", "predict", "sweep", "pictures"]


def test_the_products_of_a_step_are_those_of_its_layers():
    """Written out for a network whose figures can be told by hand; the first layer needs no gradient below it."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 2, stride=2, groups=2),
                          nn.Flatten(), nn.Linear(6 * 16, 5))
    before = model[1].running_mean.clone()
    found = products(model, torch.randn(10, 3, 8, 8))
    assert found == [(640, 27, 8, 1), (27, 640, 8, 1),
                     (160, 16, 3, 2), (16, 160, 3, 2), (160, 3, 16, 2),
                     (10, 96, 5, 1), (96, 10, 5, 1), (10, 5, 96, 1)]
    assert found[2].flops == 2 * 160 * 16 * 6 and torch.equal(model[1].running_mean, before)
    main = sum(product.flops for product in products(resnet18(), torch.randn(2, 3, 32, 32))) / 2
    assert main == pytest.approx(3 * 2 * 0.5556e9, rel=0.003)  # but for what the first convolution is spared


@pytest.mark.slow
def test_the_cam_part_measures(monkeypatch):
    monkeypatch.chdir(ROOT)
    _, figures = measure(["cam"])
    assert len(figures["cam"]) == 5 and all(value > 0 for value in figures["cam"].values())


@pytest.mark.slow
def test_sixty_thousand_images_take_little_more_memory_than_a_bare_loop(monkeypatch):
    """With four workers as well, which share the images; what processes take besides is the machine's."""
    monkeypatch.chdir(ROOT)
    bare = peak_memory("bare", 60_000)
    settings = ("DATA.PIPELINE", "albumentations", "DATA.WORKERS", "4")
    assert 184 < bare < peak_memory("cvkit", 60_000, *settings) < bare + 320
