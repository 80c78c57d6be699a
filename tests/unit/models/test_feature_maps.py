"""Which layers a CAM can be drawn of, and how large their maps are."""

import numpy as np
import pytest
import torch
from torch import nn

from cvkit.errors import ConfigError
from cvkit.models import build_model
from cvkit.models.feature_maps import choose_layers, map_sizes
from cvkit.models.resnet import resnet18
from cvkit.visualizers.cam_maps import cam_maps

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return resnet18(num_classes=4, width=4).eval()


@pytest.mark.parametrize("arguments, size, expected", [
    ({}, 32, {"layer3": (8, 8)}),  # layer4 has 4×4, which the course refuses
    ({"strides": [1, 2, 2, 1]}, 32, {"layer4": (8, 8)}), ({}, 64, {"layer4": (8, 8)}),
    ({}, 16, {"layer2": (8, 8)})])
def test_auto_takes_the_deepest_block_of_5_by_5_or_more(arguments, size, expected):
    model = resnet18(width=4, **arguments)
    assert choose_layers(model, torch.randn(1, 3, size, size), "auto") == expected


def test_resnet9_offers_its_stages():
    model = build_model({"NAME": "resnet9", "width": 4}, 4, (3, 32, 32))
    assert choose_layers(model, IMAGES[:1], "auto") == {"layer2": (8, 8)}
    assert choose_layers(model, IMAGES[:1], "stages") == {
        "prep": (32, 32), "layer1": (16, 16), "layer2": (8, 8)}
    with pytest.raises(ConfigError, match="layer3 has a map of 4×4"):
        choose_layers(model, IMAGES[:1], "layer3")


def test_stages_are_all_that_are_legal_shallowest_first(model):
    assert choose_layers(model, IMAGES[:1], "stages") == {
        "layer1": (32, 32), "layer2": (16, 16), "layer3": (8, 8)}


@pytest.mark.parametrize("layer, expected", [
    ("layer4", "layer layer4 has a map of 4×4 pixels; below 5×5 it says nothing about where"),
    (["layer2", "layer4"], "layer4 has a map of 4×4"), ("fc", "layer fc has no map"),
    ("layer9", "the model has no layer 'layer9'"), ("", "the model has no layer ''")])
def test_layers_that_cannot_be_are_refused_and_the_legal_ones_listed(model, layer, expected):
    with pytest.raises(ConfigError) as caught:
        choose_layers(model, IMAGES[:1], layer)
    problem, hint = str(caught.value).split("\n")
    assert expected in problem
    assert "layer1," in hint and "layer3" in hint and "layer4" not in hint
    assert ("Did you mean layer" in hint) == (layer == "layer9")


def test_explicit_layers_are_found_within_blocks_too(model):
    assert choose_layers(model, IMAGES[:1], ["layer3.0.conv1", "layer1"]) == {
        "layer1": (32, 32), "layer3.0.conv1": (8, 8)}


class Twice(nn.Module):
    """Each of its layers runs twice, so that none has one map of the image."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images):
        return self.body(images) + self.body(images.flip(3))


def test_a_model_without_maps_says_so():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with pytest.raises(ConfigError, match="no block of the model has a map of 5×5.*\n.*no maps at"):
        choose_layers(flat, IMAGES[:1], "auto")
    with pytest.raises(ConfigError, match="no maps at"):
        choose_layers(Twice(), IMAGES[:1], "auto")
    with pytest.raises(ConfigError, match="The largest has 4×4"):
        choose_layers(resnet18(width=4), torch.randn(1, 3, 4, 4), "auto")


def test_an_output_that_is_overwritten_in_place_is_not_offered():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    # The output of the convolution, "0", is that of the ReLU by the time it is looked at.
    assert list(map_sizes(model, IMAGES[:1])) == ["1", "2"]


def test_what_does_not_depend_on_the_image_is_not_offered():
    class Places(nn.Module):
        """As an embedding of positions is."""
        def __init__(self):
            super().__init__()
            self.weight = nn.Conv2d(1, 3, 1)

        def forward(self, image):
            return self.weight(image.new_ones(1, 1, *image.shape[2:]))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.places, self.conv, self.fc = Places(), nn.Conv2d(3, 4, 1), nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.conv(x + self.places(x)).mean((2, 3)))

    assert list(map_sizes(Model(), IMAGES[:1])) == ["conv"]


@pytest.mark.parametrize("name, size, layer, shape", [
    ("torchvision.models.resnet18", 64, "layer2", (8, 8)), ("vgg11", 64, "features.14", (8, 8)),
    ("mobilenet_v3_small", 160, "features", (5, 5)),
    ("densenet121", 64, "features.transition2.conv", (8, 8)),
    ("efficientnet_b0", 64, "features.3", (8, 8)), ("convnext_tiny", 64, "features.4.0", (8, 8)),
    ("googlenet", 96, "inception4e", (6, 6)), ("squeezenet1_1", 64, "features.7", (7, 7)),
    ("regnet_y_400mf", 64, "trunk_output.block2", (8, 8)), ("swin_t", 64, "features.3", (8, 8)),
    ("vit_b_16", 96, "encoder.layers.encoder_layer_10", (6, 6)),
    ("vit", 32, "encoder.layers.encoder_layer_4", (8, 8))])
def test_torchvision_models_and_vit_have_a_whole_block_to_look_at(name, size, layer, shape):
    model = build_model({"NAME": name}, 4, (3, size, size)).eval()
    images = torch.randn(2, 3, size, size)
    assert choose_layers(model, images[:1], "auto") == {layer: shape}
    maps = cam_maps(model, images, [np.array([1, 2])], [layer], ["GradCAM"])
    assert maps[layer, "GradCAM"].shape == (1, 2, *shape)


def test_a_swin_s_convolution_has_its_channels_first_whatever_the_width():
    model = build_model("swin_t", 4, (3, 32, 384)).eval()  # maps of 8×96 pixels, of 96 channels
    sizes = map_sizes(model, torch.randn(1, 3, 32, 384))
    assert sizes["features.0.0"] == sizes["features.1"] == (8, 96)


def test_a_vit_s_last_block_is_refused_for_its_patches_reach_nothing():
    model = build_model({"NAME": "vit_b_16"}, 4, (3, 96, 96)).eval()
    assert not model.heads.head.weight.any()  # zero before training, which hides no layer here
    with pytest.raises(ConfigError, match="has no map that the logits depend on"):
        choose_layers(model, torch.randn(1, 3, 96, 96), "encoder.layers.encoder_layer_11")
