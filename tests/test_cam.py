import copy
import inspect
import typing

import cv2
import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from test_drawing import shown_pixels
from test_misclassified import errors_of, shown
from torch import nn

from cvkit.errors import ConfigError
from cvkit.models import build_model
from cvkit.models.resnet import resnet18
from cvkit.visualizers.cam import (
    Method,
    cam_maps,
    choose_layers,
    is_empty,
    map_sizes,
    overlay,
    scaled_alone,
    scaled_together,
)

METHODS = typing.get_args(Method)
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = np.array([1, 2, 0])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return resnet18(num_classes=4, width=4).eval()


# -- the maps --------------------------------------------------------------------------


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


# -- layers ----------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, size, expected", [
    ({}, 32, {"layer3": (8, 8)}),  # layer4 has 4×4, which the course refuses
    ({"strides": [1, 2, 2, 1]}, 32, {"layer4": (8, 8)}), ({}, 64, {"layer4": (8, 8)}),
    ({}, 16, {"layer2": (8, 8)})])
def test_auto_takes_the_deepest_block_of_5_by_5_or_more(arguments, size, expected):
    model = resnet18(width=4, **arguments)
    assert choose_layers(model, torch.randn(1, 3, size, size), "auto") == expected


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


def test_a_model_without_maps_says_so():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with pytest.raises(ConfigError, match="no block of the model has a map of 5×5"):
        choose_layers(flat, IMAGES[:1], "auto")


def test_an_output_that_is_overwritten_in_place_is_not_offered():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    # The output of the convolution, "0", is that of the ReLU by the time it is looked at.
    assert list(map_sizes(model, IMAGES[:1])) == ["1", "2"]


@pytest.mark.parametrize("name, size, layer, shape", [
    ("torchvision.models.resnet18", 64, "layer2", (8, 8)), ("vgg11", 64, "features.14", (8, 8)),
    ("mobilenet_v3_small", 160, "features", (5, 5)),
    ("densenet121", 64, "features.transition2.conv", (8, 8)),
    ("efficientnet_b0", 64, "features.3", (8, 8)), ("convnext_tiny", 64, "features.4.0", (8, 8)),
    ("googlenet", 96, "inception4e", (6, 6)), ("squeezenet1_1", 64, "features.7", (7, 7)),
    ("regnet_y_400mf", 64, "trunk_output.block2", (8, 8)), ("swin_t", 64, "features.3", (8, 8)),
    ("vit_b_16", 96, "encoder.layers.encoder_layer_10", (6, 6))])
def test_torchvision_models_have_a_whole_block_to_look_at(name, size, layer, shape):
    model = build_model({"NAME": name}, 4, (3, size, size)).eval()
    if name == "vit_b_16":
        nn.init.normal_(model.heads.head.weight)  # zero before training: nothing depends on it
    images = torch.randn(2, 3, size, size)
    assert choose_layers(model, images[:1], "auto") == {layer: shape}
    maps = cam_maps(model, images, [LABELS[:2]], [layer], ["GradCAM"])
    assert maps[layer, "GradCAM"].shape == (1, 2, *shape)


@pytest.mark.parametrize("name, layer", [("vit_b_16", "encoder.layers.encoder_layer_10"),
                                         ("swin_t", "features.5")])
def test_transformers_maps_are_those_of_the_library_with_their_reshape(name, layer):
    size = 96
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
    with pytest.raises(ConfigError, match="AblationCAM switches channels"):
        cam_maps(model, images, [LABELS[:2]], [layer], ["AblationCAM"])


def test_a_vit_s_last_block_is_refused_for_its_patches_reach_nothing():
    model = build_model({"NAME": "vit_b_16"}, 4, (3, 96, 96)).eval()
    nn.init.normal_(model.heads.head.weight)
    with pytest.raises(ConfigError, match="has no map that the logits depend on"):
        choose_layers(model, torch.randn(1, 3, 96, 96), "encoder.layers.encoder_layer_11")


# -- the pictures ----------------------------------------------------------------------


def test_the_cam_is_drawn_of_the_very_images_in_the_gallery(painted):
    for arguments in ({"count": 6}, {"count": 4, "order": "random", "seed": 3},
                      {"count": 3, "order": "index"}):
        gallery = shown(painted.visualize("misclassified", **arguments))
        tiles = shown(painted.visualize("cam", **arguments))[:3 * arguments["count"]]
        assert len(gallery) == arguments["count"]
        for number, image in enumerate(gallery):
            assert np.array_equal(tiles[3 * number], image)


def test_both_maps_of_an_image_are_on_one_scale_and_are_of_the_classes_named(painted):
    predictions = painted.predictions
    rows = errors_of(predictions)[:4]
    figure = painted.visualize("cam", count=4, order="index", method="LayerCAM")
    axes = [axis for axis in figure.axes if axis.images][:12]
    images = painted.loaders.test.take(rows).images
    targets = [predictions.predicted[rows], predictions.true[rows]]
    maps = cam_maps(painted.model, images, targets, ["layer3"], ["LayerCAM"])["layer3", "LayerCAM"]
    for number, row in enumerate(rows):
        pixels = painted.data.test.images[predictions.index[row]]
        for place, label in enumerate((predictions.predicted[row], predictions.true[row])):
            axis = axes[3 * number + 1 + place]
            assert axis.get_title().startswith(f"for {predictions.classes[label]}\n")
            heat = cv2.resize(maps[place, number], (32, 32))
            highest = max(cv2.resize(values, (32, 32)).max() for values in maps[:, number])
            if not is_empty(maps[place, number]):
                expected = overlay(pixels, heat / highest)
                assert np.allclose(axis.images[0].get_array(), expected, atol=0.02)  # 256 colours
    assert "layer3 (8×8 pixels), the deepest block of 5×5 or more" in figure.caption


def test_the_overlay_is_right_side_up_and_hot_where_the_map_is_high(painted, monkeypatch):
    """A heat map that is inverted, mirrored or turned would show here, down to the pixels drawn."""
    high = np.zeros((8, 8), np.float32)
    high[1, 6] = 1.0  # upper right
    monkeypatch.setattr("cvkit.visualizers.cam.cam_maps", lambda *args: {
        ("layer3", "GradCAM"): np.broadcast_to(high, (2, 2, 8, 8))})
    figure = painted.visualize("cam", count=2)
    axis = next(axis for axis in figure.axes if axis.get_title().startswith("for"))
    drawn = shown_pixels(figure, axis, 32, 32).astype(int)
    warmth = drawn[..., 0] - drawn[..., 2]
    row, column = np.unravel_index(warmth.argmax(), warmth.shape)
    assert 4 <= row <= 8 and 23 <= column <= 29
    assert warmth[5, 26] > 60 > warmth[26, 5]


def test_the_colours_run_from_cold_to_hot():
    grey = np.full((4, 4, 1), 128, np.uint8)
    colours = overlay(grey, np.arange(16, dtype=np.float32).reshape(4, 4) / 15)
    assert colours.shape == (4, 4, 3) and 0 <= colours.min() and colours.max() <= 1
    warmth = colours[..., 0] - colours[..., 2]
    assert warmth[3, 2] > warmth[1, 3] > warmth[0, 1] and warmth[3, 2] > 0.2 > 0 > warmth[0, 1]


def test_a_weak_map_stays_weak_beside_a_strong_one():
    maps = np.zeros((2, 8, 8), np.float32)
    maps[0, 2, 2], maps[1, 5, 5] = 4.0, 1.0
    together = scaled_together(maps, (32, 32))
    assert together.shape == (2, 32, 32) and together[0].max() == 1 == 4 * together[1].max()
    assert scaled_alone(maps[1], (32, 32)).max() == pytest.approx(1, abs=1e-6)
    assert (scaled_together(np.zeros((2, 8, 8)), (32, 32)) == 0).all()


def test_an_empty_map_is_marked_and_not_a_flat_colour(painted, monkeypatch):
    maps = np.zeros((2, 2, 8, 8), np.float32)
    maps[1, 0, 4, 4] = 1.0
    monkeypatch.setattr("cvkit.visualizers.cam.cam_maps", lambda *args: {
        ("layer3", "GradCAM"): maps})
    figure = painted.visualize("cam", count=2)
    marks = [[text.get_text() for text in axis.texts] for axis in figure.axes if axis.images][:6]
    assert marks == [[], ["empty"], [], [], ["empty"], ["empty"]]
    assert is_empty(np.zeros((5, 5))) and is_empty(np.full((5, 5), 0.3))


def test_the_matrix_has_a_row_for_each_layer_and_a_column_for_each_view(painted):
    figure = painted.visualize("cam_matrix", count=2, methods=["GradCAM", "HiResCAM"])
    axes = [axis for axis in figure.axes if axis.images]
    assert len(axes) == 2 * 3 * 5
    row = select_first(painted)
    pixels = painted.data.test.images[painted.predictions.index[row]]
    batch = painted.loaders.test.take([row])
    label = painted.predictions.predicted[[row]]
    maps = cam_maps(painted.model, batch.images, [label], ["layer1", "layer2", "layer3"],
                    ["GradCAM", "HiResCAM"])
    for line, layer in enumerate(("layer1", "layer2", "layer3")):
        image, *views = axes[5 * line:5 * line + 5]
        assert np.array_equal(image.images[0].get_array(), pixels)
        assert any(text.get_text().startswith(f"{layer}\n") for text in image.texts)
        for place, method in enumerate(("GradCAM", "HiResCAM")):
            values = maps[layer, method][0, 0]
            heat = scaled_alone(values, (32, 32))
            if not is_empty(values):
                drawn, mask = (views[column].images[0].get_array() for column in (place, 2 + place))
                assert np.allclose(drawn, overlay(pixels, heat), atol=0.02)  # 256 colours
                assert np.allclose(mask, heat, atol=1e-5)
    headings = [text.get_text() for axis in axes[:5] for text in axis.texts]
    assert {"image", "GradCAM heat", "HiResCAM heat", "GradCAM mask", "HiResCAM mask"} <= set(
        headings)


def select_first(run):
    wrong = errors_of(run.predictions)
    return int(wrong[np.argsort(-run.predictions.probabilities[wrong].max(1), kind="stable")[0]])


def test_the_matrix_can_have_a_page_for_each_image(painted):
    pages = painted.visualize("cam_matrix", count=3, pages="each", layers=["layer2", "layer3"])
    assert len(pages) == 3 and all(len(page.axes) == 10 for page in pages)


@pytest.mark.parametrize("name, arguments, problem", [
    ("cam", {"method": "GradCam"}, "Did you mean GradCAM?"),
    ("cam_matrix", {"methods": ["GradCAM", "LayerCam"]}, "Did you mean LayerCAM?"),
    ("cam", {"layer": "layer4"}, "4×4 pixels"), ("cam", {"count": 0}, "count is 1 or more")])
def test_what_cannot_be_is_refused(painted, name, arguments, problem):
    with pytest.raises(ConfigError) as caught:
        painted.visualize(name, **arguments)
    assert problem in str(caught.value)
