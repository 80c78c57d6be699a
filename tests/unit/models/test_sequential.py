"""Models that a config writes layer by layer."""

import pytest
import torch
from conftest import ROOT
from torch import nn

from cvkit.config import check_components, load_config
from cvkit.errors import ConfigError
from cvkit.models import build_model, count_parameters
from cvkit.models.feature_maps import choose_layers
from cvkit.registry import LAYERS
from cvkit.runs.folder import open_run
from cvkit.session import check, train

LAYERS_OF_ALL_KINDS = [
    {"NAME": "Conv2d", "out_channels": 8, "kernel_size": 3, "padding": 1, "name": "conv"},
    {"NAME": "BatchNorm2d"}, {"NAME": "ReLU"}, {"NAME": "MaxPool2d", "kernel_size": 2},
    {"NAME": "Sequential", "name": "stage", "layers": [
        {"NAME": "Conv2d", "out_channels": 12, "kernel_size": 3, "padding": 1, "name": "conv"},
        {"NAME": "GroupNorm", "num_groups": 4}, {"NAME": "LayerNorm"}, {"NAME": "GELU"}]},
    {"NAME": "AdaptiveAvgPool2d", "output_size": 2}, {"NAME": "Flatten"},
    {"NAME": "Linear", "out_features": 16}, {"NAME": "Dropout", "p": 0.5}, {"NAME": "Linear"}]


def node(*layers):
    return {"NAME": "Sequential", "layers": list(layers)}


def test_it_is_the_network_that_torch_makes_of_what_was_left_out():
    torch.manual_seed(0)
    model = build_model(node(*LAYERS_OF_ALL_KINDS), 5, (3, 16, 12))
    torch.manual_seed(0)
    same = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.GroupNorm(4, 12), nn.LayerNorm((12, 8, 6)), nn.GELU()),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 16), nn.Dropout(0.5), nn.Linear(16, 5))
    assert [name for name, _ in model.named_children()] == ["conv", "1", "2", "3", "stage", "5", "6", "7", "8", "9"]
    assert model.training and all(module.training for module in model.modules())
    assert [tuple(value.shape) for value in model.state_dict().values()] == [
        tuple(value.shape) for value in same.state_dict().values()]
    images = torch.randn(4, 3, 16, 12)
    assert torch.equal(model.eval()(images), same.eval()(images))


@pytest.mark.parametrize("last", [
    [{"NAME": "Conv2d", "kernel_size": 1}, {"NAME": "AdaptiveAvgPool2d", "output_size": 1}, {"NAME": "Flatten"}],
    [{"NAME": "Flatten"}, {"NAME": "Sequential", "layers": [{"NAME": "Linear", "out_features": 6}, {"NAME": "Linear"}]}]])
def test_the_last_layer_with_outputs_has_one_for_each_class(last):
    model = build_model(node({"NAME": "Conv2d", "out_channels": 4, "kernel_size": 3}, *last), 7, (1, 8, 8))
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 7)


def test_a_cam_is_drawn_of_its_blocks_by_number_or_name():
    model = build_model(node(*LAYERS_OF_ALL_KINDS), 5, (3, 32, 32))
    assert choose_layers(model, torch.randn(1, 3, 32, 32), "auto") == {"stage": (16, 16)}
    assert choose_layers(model, torch.randn(1, 3, 32, 32), "conv") == {"conv": (32, 32)}


@pytest.mark.parametrize("layers, expected", [
    ("[{NAME: Conv2D, out_channels: 8, kernel_size: 3}]",
     "wrong.yaml:1 MODEL.layers.0.NAME: no layer named 'Conv2D'\n  Did you mean Conv2d?"),
    ("[{NAME: ReLU}, {NAME: Conv2d, out_channels: 8, kernel: 3}, {NAME: Flatten}, {NAME: Linear}]",
     "wrong.yaml:1 MODEL.layers.1.kernel: layer Conv2d has no argument 'kernel'\n  Did you mean kernel_size?"),
    ("[{NAME: Conv2d, kernel_size: 3}, {NAME: Flatten}, {NAME: Linear}]",
     "wrong.yaml:1 MODEL.layers.0.NAME: layer Conv2d needs out_channels\n  Set out_channels: only the last layer's is known"),
    ("[ReLU]", "wrong.yaml:1 MODEL.layers.0: expected a node {NAME: …}, not \"ReLU\"\n  Write {NAME: ReLU}."),
    ("[{NAME: {NAME: ReLU}}, {NAME: Flatten}, {NAME: Linear}]",
     "wrong.yaml:1 MODEL.layers.0: the NAME of a layer is a string, not {\"NAME\": \"ReLU\"}"),
    ("[{NAME: Sequential, layers: [{NAME: Tanh}, {NAME: Relu}]}]",
     "wrong.yaml:1 MODEL.layers.0.layers.1.NAME: no layer named 'Relu'\n  Did you mean ReLU?"),
    ("[{NAME: Flatten}, {NAME: Linear, in_features: 7}]",
     "wrong.yaml:1 MODEL.layers.1.NAME: layer Linear cannot take 3072: mat1 and mat2 shapes cannot be multiplied"),
    ("[{NAME: MaxPool2d, kernel_size: 64}]", "wrong.yaml:1 MODEL.layers.0.NAME: layer MaxPool2d cannot take 3×32×32: "),
    ("[{NAME: ReLU}, {NAME: Linear}]",
     "wrong.yaml:1 MODEL.layers.1.NAME: the last layer returns 3×32×10, not one logit for each class\n  Add {NAME: Flatten}"),
    ("[{NAME: ReLU, name: a}, {NAME: ReLU, name: a}]", "wrong.yaml:1 MODEL.layers.1.name: layer 0 is called 'a' already"),
    ("[{NAME: ReLU, name: forward}]", "MODEL.layers.0.name: a layer cannot be called 'forward'"),
    ("[{NAME: ReLU, name: 3}]", "MODEL.layers.0.name: a layer cannot be called 3"),
    ("[{NAME: Flatten}, {NAME: Linear, out_features: 4}]", "wrong.yaml:1 MODEL.layers.1.out_features: out_features of the last layer is 4, but the data has 10 classes\n  Leave it out"),
    ("[{NAME: Sequential, layers: 3}, {NAME: Flatten}, {NAME: Linear}]",
     "wrong.yaml:1 MODEL.layers.0.layers: layers of layer Sequential takes list, not 3"),
    ("[{NAME: MaxPool2d, kernel_size: 2, return_indices: true}, {NAME: Flatten}, {NAME: Linear}]",
     "wrong.yaml:1 MODEL.layers.0.NAME: layer MaxPool2d returns tuple for one image"),
    ("[{NAME: Flatten, start_dim: 0}, {NAME: Linear}]", "layer Flatten returns (3072,) for one image"),
    ("[]", "wrong.yaml:1 MODEL.layers: the last layer returns 3×32×32"),
    ("Linear", "wrong.yaml:1 MODEL.layers: layers of model Sequential takes list, not 'Linear'")])
def test_mistakes_name_the_layer(layers, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text(f"MODEL: {{NAME: Sequential, layers: {layers}}}\n"
                                         "DATA: {DATASET: {NAME: Digits}}\nOPTIMIZER: {NAME: SGD, lr: 0.1}\n")
    with pytest.raises(ConfigError) as caught:
        build_model(load_config("wrong.yaml").MODEL, 10, (3, 32, 32))
    assert expected in str(caught.value)


def test_mistakes_are_found_before_any_data_is_read(tiny):
    with pytest.raises(ConfigError, match="2 problems\n(.|\n)*no layer named 'Conv'(.|\n)*has no argument 'q'"):
        check_components(load_config(tiny, {"MODEL": node({"NAME": "Conv"}, {"NAME": "Dropout", "q": 1})}))


def test_a_layer_of_one_s_own_may_ask_for_what_comes_in():
    @LAYERS.register()
    class Scale(nn.Module):
        def __init__(self, in_channels, start: float = 1.0):
            super().__init__()
            self.factor = nn.Parameter(torch.full((in_channels, 1, 1), start))

        def forward(self, x):
            return x * self.factor

    model = build_model(node({"NAME": "Scale", "start": 2.0}, {"NAME": "Flatten"}, {"NAME": "Linear"}), 4, (3, 8, 8))
    assert model[0].factor.tolist() == [[[2.0]]] * 3


def test_a_layer_of_one_s_own_may_be_the_last_and_have_defaults():
    @LAYERS.register()
    def head(in_features, num_classes):
        return nn.Sequential(nn.Dropout(0.1), nn.Linear(in_features, num_classes))

    @LAYERS.register()
    def block(in_channels, out_channels=7):
        return nn.Conv2d(in_channels, out_channels, 3)

    model = build_model(node({"NAME": "block"}, {"NAME": "Flatten"}, {"NAME": "head"}), 4, (3, 8, 8))
    assert model[0].out_channels == 7 and model[2][1].weight.shape == (4, 7 * 36)


def test_it_is_trained_resumed_and_opened(tiny):
    overrides = {"MODEL": node(*LAYERS_OF_ALL_KINDS), "SCHEDULER": None}
    whole = train(load_config(tiny, {**overrides, "TRAIN.EPOCHS": 2})).checkpoint("last").model
    run = train(load_config(tiny, {**overrides, "TRAIN.EPOCHS": 1}))
    again = open_run(train(load_config(tiny, {**overrides, "TRAIN.EPOCHS": 2}), run).folder)
    assert all(torch.equal(value, whole[name]) for name, value in again.model.state_dict().items())


def test_the_example_is_as_small_as_it_says(capsys):
    config = load_config(ROOT / "configs" / "layers_digits.yaml", {"MODEL.layers.0.out_channels": 16})
    check(config)
    assert "\nmodel      Sequential, 24,458 parameters\n" in capsys.readouterr().out
    wider = load_config(ROOT / "configs" / "layers_digits.yaml", {"MODEL.layers.0.out_channels": 32})
    assert count_parameters(build_model(wider.MODEL, 10, (3, 32, 32))) == 29_546
