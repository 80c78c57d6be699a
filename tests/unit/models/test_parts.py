import pytest
import torch
from torch import nn

from cvkit.errors import ConfigError
from cvkit.models import build_model
from cvkit.models.features import head_of
from cvkit.models.parts import matching, stages_of

SHAPE = (3, 64, 64)
HEADS = {"resnet18": "fc", "resnet9": "fc", "vit": "heads.head", "vgg11": "classifier.6",
         "squeezenet1_1": "classifier.1", "mobilenet_v3_small": "classifier.3", "swin_t": "head",
         "densenet121": "classifier", "vit_b_32": "heads.head", "googlenet": "fc"}


def small(name="resnet18"):
    return build_model({"NAME": name, "width": 4}, 10, (3, 32, 32))


def matched(patterns, model=None):
    model = model or small()
    return matching(model, patterns, lambda: head_of(model, (3, 32, 32)))


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_the_layer_that_makes_the_logits(name):
    model = build_model(name, 7, SHAPE)
    assert head_of(model, SHAPE) == HEADS[name]
    assert model.training and model.get_submodule(HEADS[name]).weight.shape[0] == 7


@pytest.mark.parametrize("name, heads", [
    ("timm.deit_tiny_distilled_patch16_224", ("head", "head_dist")),
    ("timm.levit_128s", ("head.linear", "head_dist.linear")), ("timm.efficientformer_l1", ("head", "head_dist"))])
def test_of_two_heads_none_is_taken_for_the_one(name, heads):
    model = build_model(name, 7, (3, 224, 224))
    with pytest.raises(ConfigError) as caught:
        head_of(model, (3, 224, 224))
    assert str(caught.value) == (
        f"the model makes its logits by two layers, {heads[0]} and {heads[1]}: none of them is the head\n"
        f"  Name them: '!{heads[0]}' and '!{heads[1]}' in place of backbone.")
    assert len(matching(model, [f"!{head}" for head in heads], str)) == len(list(model.parameters())) - 4


class Twice(nn.Module):
    """The same layer for two views; its forward changes its input and keeps what it made."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(12, 5), nn.Linear(5, 5)

    def forward(self, x):
        x = x.clamp_(-3, 3).flatten(1)
        with torch.no_grad():
            self.kept = self.body(x)
        return (self.fc(self.kept) + self.fc(self.kept.detach() + 1)) / 2


def test_a_layer_that_is_called_twice_is_one_head():
    model = Twice()
    assert head_of(model, (3, 2, 2)) == "fc" and not model.kept.requires_grad


def test_layers_of_the_head_s_size_before_it_are_no_second_head():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    assert head_of(model, (3, 2, 2)) == "5"
    on_tokens = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.Flatten(2), nn.Unflatten(2, (4, 1)), nn.Flatten(2))
    on_tokens.append(nn.Linear(4, 6)).append(nn.AdaptiveAvgPool2d((1, 6))).append(nn.Flatten())
    assert head_of(on_tokens, (3, 4, 4)) == "4"
    inner = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with torch.no_grad():
        assert head_of(nn.Sequential(inner, nn.BatchNorm1d(5), nn.Linear(5, 5)), (3, 2, 2)) == "2"


def test_a_model_whose_logits_are_of_no_last_layer_has_no_head():
    with pytest.raises(ConfigError, match="has no head that could be told from its backbone"):
        head_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                              nn.Linear(8, 4), nn.LayerNorm(4), nn.Unflatten(1, (2, 2)), nn.Flatten(),
                              nn.Linear(4, 6), nn.Unflatten(1, (3, 2)), nn.Flatten(2), nn.AvgPool1d(2),
                              nn.Flatten()), (3, 8, 8))


@pytest.mark.parametrize("patterns, count, includes, excludes", [
    (["all"], 62, "fc.bias", "-"), (["head"], 2, "fc.weight", "layer4.1.norm2.bias"),
    (["backbone"], 60, "conv1.weight", "fc.bias"), (["!fc"], 60, "conv1.weight", "fc.bias"),
    (["layer1"], 12, "layer1.1.norm2.bias", "layer2.0.conv1.weight"),
    (["layer1*"], 12, "layer1.1.norm2.bias", "layer2.0.conv1.weight"),
    (["layer[34]", "!*norm*"], 14, "layer4.1.conv2.weight", "layer4.1.norm2.bias"),
    (["*bias"], 21, "fc.bias", "fc.weight"), (["norm1.weight"], 1, "norm1.weight", "norm1.bias"),
    (["norms"], 40, "layer2.0.norm2.bias", "fc.bias"), (["layer4", "!norms"], 5, "layer4.1.conv2.weight", "layer4.0.norm1.bias"),
    (["layer?.0.conv1"], 4, "layer3.0.conv1.weight", "layer3.1.conv1.weight")])
def test_patterns_match_parameters_and_what_holds_them(patterns, count, includes, excludes):
    found = matched(patterns)
    assert len(found) == count and includes in found and excludes not in found
    order = [name for name, _ in small().named_parameters()]
    assert found == sorted(found, key=order.index)


def test_a_module_that_is_called_as_a_word_is_meant_itself():
    model = nn.Sequential()
    model.add_module("backbone", nn.Linear(2, 2))
    model.add_module("neck", nn.Linear(2, 2))
    model.add_module("head", nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert matching(model, ["backbone"], str) == ["backbone.weight", "backbone.bias"]
    assert len(matching(model, ["head"], str)) == 4


@pytest.mark.parametrize("name, count", [
    ("vit_b_32", 2 * 25), ("convnext_tiny", 2 * 23), ("mobilenet_v3_small", 2 * 34), ("timm.convnext_atto", 2 * 17),
    ("timm.efficientnet_b0", 2 * 49), ("timm.eva02_tiny_patch14_224", 2 * 25)])
def test_norms_are_found_whatever_their_class(name, count):
    model = build_model(name, 4, (3, 224, 224))
    found = matching(model, ["norms"], str)
    kept = {path for path, buffer in model.named_buffers() if buffer.is_floating_point() and path.endswith("running_mean")}
    assert len(found) == count and {path.rpartition(".")[0] for path in kept} <= {path.rpartition(".")[0] for path in found}


def test_norms_are_those_of_a_kind_or_of_a_name():
    class BN(nn.BatchNorm2d):
        pass

    class NormFreeBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

    model = nn.Sequential(BN(2), NormFreeBlock(), nn.Linear(2, 2))
    assert matching(model, ["norms"], str) == ["0.weight", "0.bias"]


def test_a_model_without_norms_says_so():
    with pytest.raises(ConfigError, match="the model has no norms with parameters, which 'norms' stands for"):
        matched(["norms"], build_model("alexnet", 4, (3, 64, 64)))


@pytest.mark.parametrize("pattern, hint", [
    ("layr4", "Did you mean layer4? Its parts are conv1, norm1, layer1, layer2, layer3, layer4, fc, all, "
              "backbone, head, norms."), ("!layer9*", "Its parts are conv1"), ("backbon", "Did you mean backbone?"), ("fc.wieght", "Did you mean fc.weight?")])
def test_a_pattern_that_matches_nothing_is_refused(pattern, hint):
    with pytest.raises(ConfigError, match="no parameter of the model matches") as caught:
        matched(["all", pattern])
    assert hint in caught.value.hint


@pytest.mark.parametrize("name, stages", [
    ("resnet18", ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]),
    ("resnet9", ["prep", "layer1", "layer2", "layer3", "fc"]),
    ("vit", ["conv_proj", *(f"encoder.layers.encoder_layer_{n}" for n in range(6)), "heads"]),
    ("mobilenet_v2", [*(f"features.{n}" for n in range(19)), "classifier"]),
    ("swin_t", [*(f"features.{n}" for n in range(8)), "head"]),
    ("densenet121", ["features.conv0", *(f"features.{part}{n}" for n in range(1, 4) for part in (
        "denseblock", "transition")), "features.denseblock4", "classifier"])])
def test_stages_are_the_model_s_own_parts_in_order(name, stages):
    model = build_model(name, 10, (3, 32, 32))
    found = stages_of(model)
    assert list(found) == stages
    # Each parameter is in one of them.
    assert [part for names in found.values() for part in names] == [
        part for part, _ in model.named_parameters()]


def test_a_model_in_a_wrapper_is_looked_into():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.net = nn.Parameter(torch.ones(3, 1, 1)), small()

    assert list(stages_of(Wrapped())) == [f"net.{name}" for name in stages_of(small())]
    assert list(stages_of(nn.Linear(2, 2))) == [""]
