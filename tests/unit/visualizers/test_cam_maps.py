import copy
import inspect
import typing

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from cvkit.errors import ConfigError
from cvkit.models import build_model
from cvkit.models.feature_maps import choose_layers
from cvkit.models.resnet import resnet18
from cvkit.visualizers.cam import scaled_alone
from cvkit.visualizers.cam_maps import Method, cam_maps

METHODS = typing.get_args(Method)
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = np.array([1, 2, 0])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return resnet18(num_classes=4, width=4).eval()


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_those_of_the_library(model, method):
    layers = ["layer1", "layer3"]
    np.random.seed(0)  # RandomCAM draws its weights
    maps = cam_maps(model, IMAGES, [LABELS], layers, [method])
    np.random.seed(0)
    for layer in layers:
        twin = copy.deepcopy(model)
        with getattr(pytorch_grad_cam, method)(twin, [twin.get_submodule(layer)]) as engine:
            expected = engine(IMAGES.clone(), [ClassifierOutputTarget(label) for label in LABELS])
        assert expected.shape == (3, 32, 32)
        found = [scaled_alone(values, (32, 32)) for values in maps[layer, method][0]]
        assert np.abs(found - expected).max() < 1e-5, layer
        assert (maps[layer, method] >= 0).all()


def test_every_method_with_the_common_constructor_is_there():
    common = ["self", "model", "target_layers", "reshape_transform"]
    library = {name for name, entry in vars(pytorch_grad_cam).items()
               if inspect.isclass(entry) and issubclass(entry, BaseCAM)
               and list(inspect.signature(entry.__init__).parameters)[:4] == common}
    # FullGrad ignores the layers; SegEigenCAM is for segmentation and newer than what is required.
    assert library - {"BaseCAM", "FullGrad", "SegEigenCAM"} == set(METHODS)


def test_layers_methods_and_targets_share_their_passes_and_change_nothing(model):
    layers, methods = ["layer1", "layer2", "layer3"], ["GradCAM", "GradCAMPlusPlus", "LayerCAM"]
    targets = [LABELS, LABELS[::-1].copy()]
    together = cam_maps(model, IMAGES, targets, layers, methods, batch_size=2)
    assert set(together) == {(layer, method) for layer in layers for method in methods}
    for (layer, method), values in together.items():
        assert values.shape[:2] == (2, 3)
        for number, target in enumerate(targets):
            alone = cam_maps(model, IMAGES, [target], [layer], [method])[layer, method][0]
            assert np.abs(values[number] - alone).max() < 1e-6


def test_one_forward_pass_serves_all(model):
    twin, passes = copy.deepcopy(model), []
    twin.conv1.register_forward_hook(lambda *_: passes.append(1))
    cam_maps(twin, IMAGES, [LABELS, LABELS], ["layer1", "layer2"], ["GradCAM", "XGradCAM"])
    assert len(passes) == 1


@pytest.mark.parametrize("method", ["GradCAM", "AblationCAM", "ScoreCAM", "ShapleyCAM"])
def test_the_model_comes_out_as_it_went_in(method):
    model = resnet18(num_classes=4, width=4).train()
    model.layer2.eval()  # a mixture, as with frozen batch norms
    model.fc.weight.requires_grad_(False)
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    cam_maps(model, IMAGES, [LABELS], ["layer2"], [method])
    choose_layers(model, IMAGES[:1], "auto")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert [name for name, value in model.named_parameters() if not value.requires_grad] == [
        "fc.weight"]
    assert (model.conv1.weight.grad == 1).all() and model.layer1[0].conv1.weight.grad is None


def test_half_precision_and_a_frozen_model_are_no_obstacle(model):
    frozen = copy.deepcopy(model).requires_grad_(False)
    maps = cam_maps(frozen, IMAGES.bfloat16(), [LABELS], ["layer3"], ["GradCAM"])
    assert maps["layer3", "GradCAM"].max() > 0


@pytest.mark.parametrize("name, size, layer", [("vit_b_16", 96, "encoder.layers.encoder_layer_10"),
                                               ("vit", 32, "encoder.layers.encoder_layer_4"),
                                               ("swin_t", 96, "features.5")])
def test_transformers_maps_are_those_of_the_library_with_their_reshape(name, size, layer):
    model = build_model({"NAME": name}, 4, (3, size, size)).eval()
    for parameter in [list(model.parameters())[-2]]:
        nn.init.normal_(parameter)
    images = torch.randn(2, 3, size, size)
    found = cam_maps(model, images, [LABELS[:2]], [layer], ["GradCAM"])[layer, "GradCAM"][0]
    with pytorch_grad_cam.GradCAM(model, [model.get_submodule(layer)],
                                  model.reshape_transform) as engine:
        expected = engine(images, [ClassifierOutputTarget(label) for label in LABELS[:2]])
    found = [scaled_alone(values, (size, size)) for values in found]
    assert np.abs(found - expected).max() < 1e-5
    for method in ("AblationCAM", "ShapleyCAM"):
        with pytest.raises(ConfigError, match=f"{method} is for convolutions"):
            cam_maps(model, images, [LABELS[:2]], [layer], [method])


def test_methods_do_not_disturb_each_other(model):
    """ShapleyCAM needs gradients of gradients, of its own; what comes after it must not get them."""
    methods = [name for name in METHODS if name != "RandomCAM"]
    for order in (methods, methods[::-1]):
        together = cam_maps(model, IMAGES, [LABELS], ["layer3"], order)
        for method in ("GradCAM", "ShapleyCAM", "LayerCAM"):
            alone = cam_maps(model, IMAGES, [LABELS], ["layer3"], [method])["layer3", method]
            assert np.abs(together["layer3", method] - alone).max() < 1e-6


def test_what_rounding_leaves_is_no_evidence():
    """Where evidence cancels exactly, a map of 1e-9 must not be blown up to a full-scale one."""
    class Cancels(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 2, 1))

        def forward(self, x):
            x = self.block(x)
            return torch.stack([x[:, 0].mean((1, 2)), -x[:, 0].mean((1, 2))], 1)

    model = Cancels()
    with torch.no_grad():
        model.block[0].weight[:] = 0
        model.block[0].bias[:] = torch.tensor([1.0, 5.0])
    maps = cam_maps(model, IMAGES, [np.ones(3, int)], ["block"], ["HiResCAM"])
    assert (maps["block", "HiResCAM"] == 0).all()
