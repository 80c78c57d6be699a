"""The network of airbench, and the convolution that whitens."""

import numpy as np
import pytest
import torch
from conftest import TINY
from helpers import train_until
from torch import nn
from torch.nn import functional as F

from cvkit.config import load_config
from cvkit.errors import ConfigError
from cvkit.models import build_model
from cvkit.models.feature_maps import choose_layers
from cvkit.models.whitening import WhiteningConv2d, whitening_filters
from cvkit.registry import MODELS
from cvkit.runs.checkpoint import Checkpoint
from cvkit.runs.experiment import Experiment
from cvkit.runs.folder import open_run
from cvkit.session import build_trainer, check, train

SHAPE = (3, 32, 32)
LITTLE = {"NAME": "airbench", "widths": [8, 12, 12]}


def images_of(count=200, channels=3, size=16, seed=0):
    """Images whose neighbouring pixels and channels are alike, as in photographs."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, channels, size, size, generator=random)
    return F.avg_pool2d(noise, 3, 1, 1) * 2 + noise.mean(1, keepdim=True)


def covariance(maps):
    rows = maps.permute(1, 0, 2, 3).flatten(1).double()
    return rows @ rows.T / rows.shape[1]


@pytest.mark.parametrize("channels, kernel_size", [(3, 2), (1, 2), (2, 3)])
def test_whitened_patches_have_unit_covariance(channels, kernel_size):
    images = images_of(channels=channels)
    count = channels * kernel_size**2
    layer = WhiteningConv2d(channels, kernel_size, eps=0.0, training_images=lambda asked: iter(images.split(70)))
    with torch.no_grad():
        whitened = covariance(layer(images))
    assert (whitened[:count, :count] - torch.eye(count)).abs().max() < 1e-4
    assert (whitened[:count, count:] + torch.eye(count)).abs().max() < 1e-4  # the same ones, negated
    assert (covariance(F.unfold(images, kernel_size)[..., None]) - torch.eye(count)).abs().max() > 0.2


def test_the_largest_eigenvalue_stands_first_and_eps_holds_noise_down():
    images = images_of()
    patches = covariance(F.unfold(images, 2)[..., None])
    values, vectors = torch.linalg.eigh(patches)
    filters = whitening_filters(iter([images]), 2, eps=0.5).flatten(1).double()
    for filter, value, vector in zip(filters, values.flip(0), vectors.T.flip(0), strict=True):
        expected = vector / (value + 0.5).sqrt()
        assert min((filter - expected).abs().max(), (filter + expected).abs().max()) < 1e-4


@pytest.mark.parametrize("eps", [0.0, 5e-4])
def test_grey_images_have_no_filters_between_colours(eps):
    grey = images_of(channels=1)
    filters = whitening_filters(iter([grey.expand(-1, 3, -1, -1)]), 2, eps or 1e-7)
    assert torch.allclose(filters, filters[:, :1].expand_as(filters), atol=1e-3)  # all colours alike
    assert torch.equal(filters[:4], filters[4:8]) and torch.equal(filters[:4], filters[8:])
    assert F.conv2d(grey.expand(-1, 3, -1, -1), filters).std((0, 2, 3)).min() > 0.5


def test_the_filters_do_not_learn_and_the_bias_does():
    layer = WhiteningConv2d()
    assert layer.out_channels == 24 and not layer.weight.requires_grad
    assert layer.bias.requires_grad and not layer.bias.any()


def test_it_is_the_network_of_the_paper():
    """Written down once more, from the figures of the paper's script."""
    torch.manual_seed(0)
    model = build_model("airbench", 10, SHAPE)
    kinds = [type(module) for module in model.modules() if not list(module.children())]
    assert kinds.count(nn.Conv2d) == 6 and kinds.count(nn.BatchNorm2d) == 6
    shapes = [tuple(module.weight.shape) for module in model.modules() if type(module) is nn.Conv2d]
    assert shapes == [(64, 24, 3, 3), (64, 64, 3, 3), (256, 64, 3, 3), (256, 256, 3, 3),
                      (256, 256, 3, 3), (256, 256, 3, 3)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps, norm.weight.requires_grad) for norm in norms} == {(0.4, 1e-5, False)}
    # The first filters hand their channels on.
    for module in model.modules():
        if type(module) is nn.Conv2d:
            inputs = module.in_channels
            maps = torch.randn(2, inputs, 8, 8)
            assert torch.allclose(module(maps)[:, :inputs], maps, atol=1e-6)
    images = torch.randn(4, *SHAPE)
    model.eval()
    x = F.gelu(model.whiten(images))
    for layer in (model.layer1, model.layer2, model.layer3):
        x = F.gelu(layer.norm1(F.max_pool2d(layer.conv1(x), 2)))
        x = F.gelu(layer.norm2(layer.conv2(x)))
    expected = model.head(F.max_pool2d(x, 3).flatten(1)) / 9
    assert x.shape == (4, 256, 3, 3) and torch.allclose(model(images), expected, atol=1e-6)


def test_a_depth_of_three_adds_what_came_before():
    model = build_model({**LITTLE, "depth": 3}, 10, SHAPE).eval()
    layer, x = model.layer2, torch.randn(2, 8, 14, 14)
    before = F.gelu(layer.norm1(F.max_pool2d(layer.conv1(x), 2)))
    after = layer.norm3(layer.conv3(F.gelu(layer.norm2(layer.conv2(before)))))
    assert torch.allclose(layer(x), F.gelu(before + after), atol=1e-6)


def test_head_and_scale():
    model = build_model({**LITTLE, "head_std": 1.0, "scale": 0.0}, 10, SHAPE)
    assert model.head.weight.std().item() == pytest.approx(1, rel=1e-5) and model.scale == 1 / 12


@pytest.mark.parametrize("arguments, expected", [
    ({"widths": [0, 8, 8]}, "widths are 1 or more"), ({"widths": [8, 8]}, "widths of model airbench takes"), ({"depth": 4}, "depth is 2 or 3, not 4"),
    ({"scale": -1.0}, r": scale is 0 or more, not -1"), ({"head_std": -1.0}, "head_std is 0 or more, not -1"),
    ({"bn_momentum": 7.0}, "bn_momentum lies above 0 and up to 1, not 7"),
    ({"training_images": 3}, "no argument 'training_images'|is not set by a config|is given by cvkit")])
def test_arguments_that_are_none(arguments, expected):
    with pytest.raises(ConfigError, match=expected):
        build_model({"NAME": "airbench", **arguments}, 10, SHAPE)


def test_a_cam_is_drawn_of_the_deepest_layer_that_is_large_enough():
    model = build_model(LITTLE, 5, SHAPE)
    assert choose_layers(model, torch.randn(1, *SHAPE), "auto") == {"layer2": (7, 7)}
    assert choose_layers(model, torch.randn(1, *SHAPE), "stages") == {
        "layer1": (15, 15), "layer2": (7, 7)}


@pytest.fixture
def little(tmp_path):
    (tmp_path / "little.yaml").write_text(TINY)
    return load_config(tmp_path / "little.yaml", {"MODEL": LITTLE})


def test_a_training_begins_with_the_whitening_of_its_images(little):
    parts = Experiment(little)
    data = parts.data.train
    images = parts.loaders.test.normalise(torch.from_numpy(np.stack([data.image(n) for n in range(len(data))])))
    filters = whitening_filters(iter([images]), 2, 5e-4)
    assert torch.allclose(parts.model.whiten.weight, torch.cat([filters, -filters]), atol=1e-3)


def test_the_whitening_is_part_of_the_checkpoint_and_loaded_without_images(little, monkeypatch):
    run = train(little)
    trained = Checkpoint.load(run.checkpoints / "last.pt").model["whiten.weight"]
    assert torch.equal(trained, build_trainer(little).state.model.whiten.weight)
    monkeypatch.setattr(WhiteningConv2d, "__init__", refuse_images(WhiteningConv2d.__init__))
    assert torch.equal(open_run(run.folder).model.whiten.weight, trained)


def refuse_images(init):
    def without(self, *arguments, training_images=None, **further):
        assert training_images is None
        init(self, *arguments, **further)
    return without


def layered(*layers):
    return {"NAME": "Sequential", "layers": [
        *layers, {"NAME": "GELU"}, {"NAME": "AdaptiveMaxPool2d", "output_size": 1}, {"NAME": "Flatten"},
        {"NAME": "Linear"}]}


def test_it_is_a_layer_of_any_model(little, tmp_path):
    config = load_config(tmp_path / "little.yaml", {"MODEL": layered({"NAME": "WhiteningConv2d", "name": "whiten"})})
    assert torch.equal(Experiment(config).model.whiten.weight, Experiment(little).model.whiten.weight)


def test_deeper_it_whitens_what_it_receives():
    images = images_of(50)
    torch.manual_seed(0)
    model = build_model(layered(
        {"NAME": "Conv2d", "out_channels": 4, "kernel_size": 3, "name": "first"},
        {"NAME": "Sequential", "name": "group", "layers": [{"NAME": "Tanh"}, {"NAME": "WhiteningConv2d", "eps": 1e-6}]}),
        5, (3, 16, 16), training_images=lambda count: iter(images.split(20)))
    layer = model.group[1]
    with torch.no_grad():
        whitened = covariance(layer(torch.tanh(model.first(images))))[:16, :16]
    assert (whitened - torch.eye(16)).abs().max() < 0.02


@pytest.mark.parametrize("layers, expected", [
    ([{"NAME": "WhiteningConv2d", "kernel_size": 0}], "kernel_size is 1 or more"),
    ([{"NAME": "WhiteningConv2d", "eps": -1.0}], "eps is 0 or more, not -1"),
    ([{"NAME": "WhiteningConv2d", "kernel_size": 40}], "kernel_size 40 is more than what comes in has, 3×32×32"),
    ([{"NAME": "WhiteningConv2d", "in_channels": 1}], "in_channels is 1, and 3 come in"),
    ([{"NAME": "Flatten"}, {"NAME": "WhiteningConv2d", "in_channels": 3}], "kernel_size 2 is more than what comes in has, 3072")])
def test_what_cannot_be_whitened_is_refused(little, tmp_path, layers, expected):
    config = load_config(tmp_path / "little.yaml", {"MODEL": layered(*layers)})
    with pytest.raises(ConfigError, match=expected):
        _ = Experiment(config).model
    assert torch.is_grad_enabled()


def test_a_run_that_goes_on_does_not_compute_it_again(little, monkeypatch):
    run = train_until(little, 1)
    monkeypatch.setattr(WhiteningConv2d, "__init__", refuse_images(WhiteningConv2d.__init__))
    assert len(train(little, resume=run.folder).metrics) == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_grey_images_that_are_stored_in_colour_can_be_learnt(little, tmp_path, precision):
    """Two thirds of the whitened channels would be constant: a norm would divide by nothing."""
    config = load_config(tmp_path / "little.yaml", {
        "MODEL": {**LITTLE, "widths": [16, 32, 32]}, "DATA.LIMIT": 600, "DATA.TRAIN_TRANSFORMS": [],
        "TRAIN.PRECISION": precision, "TRAIN.EPOCHS": 5, "OPTIMIZER.lr": 0.3})
    assert train(config).predictions.accuracy > 0.8


def test_training_images_are_of_all_of_the_split_as_tests_see_them(little):
    parts = Experiment(little)
    few = torch.cat(list(parts.training_images(10)))
    chosen = np.linspace(0, len(parts.data.train) - 1, 10).astype(int)
    images = np.stack([parts.data.train.image(place) for place in chosen])
    assert torch.equal(few, parts.loaders.test.normalise(torch.from_numpy(images)))
    assert len(torch.cat(list(parts.training_images(10_000)))) == len(parts.data.train)


class OnlyWithImages(torch.nn.Module):
    def __init__(self, num_classes, training_images, is_careful=False):
        super().__init__()
        self.fc = torch.nn.Linear(3 * 32 * 32, num_classes)
        if training_images or not is_careful:
            self.fc.bias.data.fill_(float(next(training_images(50)).mean()))

    def forward(self, images):
        return self.fc(images.flatten(1))


def test_a_model_of_one_s_own_has_to_do_without_training_images_as_well(little, tmp_path):
    with MODELS.temporarily():
        MODELS.register()(OnlyWithImages)
        config = load_config(tmp_path / "little.yaml", {"MODEL": {"NAME": "OnlyWithImages"}})
        with pytest.raises(ConfigError, match="OnlyWithImages cannot be built without training_images: TypeError: "
                                              "'NoneType' object is not callable\n  They are None where a checkpoint"):
            check(config)
        run = train(load_config(tmp_path / "little.yaml", {"MODEL": {"NAME": "OnlyWithImages", "is_careful": True}}))
        assert run.predictions.accuracy > 0.1
