"""The references of the benchmark do what they say, or its ratios would mean nothing."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from benchmarks import peers, reference
from benchmarks.bare import MEAN, STD, Bare
from benchmarks.classic import Classic, ClassicData
from benchmarks.limit import products
from benchmarks.measure import PARTS, in_turns, measure, peak_memory, speed
from benchmarks.recipe import PEAK, RISE, Recipe
from cvkit.config import load_config
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


def test_the_training_in_plain_torch_has_the_recipe_of_the_main_config():
    config, plain = load_config(ROOT / "configs" / "resnet18_cifar10.yaml"), reference.parse(["images"])
    assert (plain.epochs, plain.batch_size) == (config.TRAIN.EPOCHS, config.DATA.BATCH_SIZE)
    assert config.SCHEDULER == {"NAME": "OneCycleLR"}
    assert config.OPTIMIZER == {"NAME": "SGD", "lr": plain.lr, "momentum": 0.9, "nesterov": plain.nesterov,
                                "weight_decay": plain.weight_decay}


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
    loop = (Bare(model, images, LABELS, CPU, "fp32") if name == "bare"
            else Classic(model, images, LABELS, CPU, 32))
    for _ in range(5):
        loop.epoch(32) if name == "bare" else loop.epoch()
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
    assert list(PARTS) == ["step", "limit", "freezing", "growth", "memory", "start", "cam", "predict", "sweep", "pictures",
                           "peers"]


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


# -- peers -------------------------------------------------------------------------------


def accuracy(recipe):
    recipe.model.eval()
    data = recipe.data
    with torch.inference_mode():
        logits = recipe.model(data.normalised(data.images).to(next(recipe.model.parameters()).device))
    return (logits.argmax(1).cpu() == recipe.labels).float().mean()


@pytest.mark.parametrize("is_best", [False, True])
def test_the_recipe_of_the_peers_is_the_same_images_and_weights_out_of_the_box_and_at_its_best(is_best):
    one, other = Recipe(16, 40, 16, 2), Recipe(16, 40, 16, 2, "bf16", is_best)
    assert one.steps == 6 and torch.equal(one.pixels, other.pixels) and torch.equal(one.labels, other.labels)
    assert all(torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values()))
    images, labels = map(torch.cat, zip(*other.loader()))
    assert images.shape == (40, 3, 32, 32) and images.dtype == torch.float32
    assert sorted(labels.tolist()) == sorted(other.labels.tolist())
    expected = (one.pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert torch.allclose(images.cpu().sum(0), expected.sum(0), atol=1e-3)  # each once, in some order
    batch, _ = next(iter(other.loader()))
    assert batch.is_contiguous(memory_format=torch.channels_last if is_best else torch.contiguous_format)
    assert other.model.conv1.weight.is_contiguous(
        memory_format=torch.channels_last if is_best else torch.contiguous_format)
    assert other.optimizer().defaults["fused"] is (True if is_best else None)


def check_trains(name, is_best, monkeypatch):
    """It takes the recipe's steps, each on a batch, changes the recipe's weights, and learns."""
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *given, **named: (
        rates.append(self.param_groups[0]["lr"]), step(self, *given, **named))[1])
    recipe = Recipe(16, 160, 32, 8, "bf16", is_best)
    start, sizes = {key: value.clone() for key, value in recipe.model.state_dict().items()}, []
    recipe.model.register_forward_pre_hook(lambda model, given: sizes.append(len(given[0])))
    began = peers.train(name, recipe)
    assert len(began) == recipe.steps == 40 and began == sorted(began)
    if name != "cvkit":  # which copies the weights into a model of its own
        assert sizes[-40:] == [32] * 40
    assert all(not torch.equal(start[key], value.cpu()) for key, value in recipe.model.state_dict().items())
    assert int(recipe.model.norm1.num_batches_tracked) == 40
    assert accuracy(recipe) > 0.9
    if name != "keras":  # whose optimizer is its own
        trained = rates[-40:]  # cvkit tries steps before
        place = int(np.argmax(trained))
        assert len(rates) >= 40 and trained[place] == pytest.approx(PEAK, rel=0.02)
        assert abs(place - RISE * 40) <= 1 and trained[0] < PEAK / 10 and trained[-1] < PEAK / 10


def test_cvkit_trains_the_recipe(monkeypatch):
    check_trains("cvkit", True, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("is_best", [False, True])
@pytest.mark.parametrize("name", peers.PEERS)
def test_each_peer_that_is_installed_trains_the_recipe(name, is_best, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    pytest.importorskip({"mmpretrain": "mmpretrain.models"}.get(name, name))
    check_trains(name, is_best, monkeypatch)


def test_a_peer_that_is_not_there_or_fails_is_left_out_with_the_reason(monkeypatch, capsys):
    def broken(recipe, folder):
        raise RuntimeError("made for another torch\nand more")

    for name in peers.PEERS:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.setitem(peers.PEERS, "keras", broken)
    monkeypatch.setattr(peers, "PEERS", {name: peers.PEERS[name] for name in ("lightning", "mmpretrain", "keras")})
    monkeypatch.chdir(ROOT)
    assert measure(["peers"])[1] == {"peers": {}}
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("peers: without lightning: ModuleNotFoundError: ")
    assert told[2] == "peers: without keras: RuntimeError: made for another torch"


def test_no_peers_are_measured_on_another_device_than_theirs(monkeypatch, capsys):
    monkeypatch.setattr(peers, "DEVICE", "cuda")
    monkeypatch.chdir(ROOT)
    assert measure(["peers"], ["DEVICE", "cpu"])[1] == {"peers": {}}
    assert capsys.readouterr().err == "peers: none, as they would train on cuda\n"


@pytest.mark.slow
def test_a_small_training_in_a_process_of_its_own_is_timed_from_its_start(monkeypatch):
    monkeypatch.chdir(ROOT)
    started, figures = peers.in_process("cvkit", Recipe(16, 64, 32, 1))
    assert len(started) == 2 and started[1] > started[0]
    assert list(figures)[:2] == ["first step (s)", "small training (s)"]
    assert 0.5 < figures["first step (s)"] < figures["small training (s)"]
    assert figures.get("peak memory (MB)", 200) > 184


def test_what_a_peer_s_process_imports_before_it_is_light():
    code = "import json, sys, benchmarks.peers; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    roots = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert not roots & {*peers.PEERS, "albumentations", "sklearn", "tensorboard", "matplotlib", "torchvision"}


def test_the_peers_are_no_dependencies_of_the_package():
    listed = (ROOT / "benchmarks" / "requirements-peers.txt").read_text(encoding="utf-8")
    names = re.findall(r"^([\w-]+)>=[\d.]+", listed, re.MULTILINE)
    assert set(names) >= set(peers.PEERS) and len(names) == 8
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    required = re.findall(r'^    "([\w-]+)', re.search(r"^dependencies = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)[1], re.MULTILINE)
    assert "torch" in required and not set(required) & set(names)
