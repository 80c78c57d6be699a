import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch import nn

from cvkit.errors import ConfigError
from cvkit.models import build_model, count_parameters, refuse_single_images
from cvkit.registry import MODELS, parameters_of

SHAPE = (3, 32, 32)
SMALL_TORCHVISION = ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5",
                     "regnet_y_400mf", "googlenet", "efficientnet_b0", "torchvision.models.resnet18"]
CONVOLUTIONS = {"resnet18": 20, "resnet34": 36, "resnet9": 8}


@pytest.mark.parametrize("name, count", [
    ("resnet18", 11_173_962), ("resnet34", 21_282_122), ("resnet9", 6_573_130), ("vit", 2_693_578)])
def test_parameter_counts_are_those_of_the_reference(name, count):
    assert count_parameters(build_model(name, 10, SHAPE)) == count


def test_the_variant_with_stride_1_and_2x2_pooling_has_its_count():
    node = {"NAME": "resnet18", "strides": [1, 2, 2, 1], "pool_size": 2}
    assert count_parameters(build_model(node, 10, SHAPE)) == 11_189_322


@pytest.mark.parametrize("name", MODELS.own)
@pytest.mark.parametrize("shape, classes", [(SHAPE, 10), ((1, 28, 28), 7), ((3, 64, 48), 3)])
def test_every_own_model_fits_any_data_and_trains(name, shape, classes):
    node = {"NAME": name, "width": 8}
    if name == "vit" and shape[1] != shape[2]:
        with pytest.raises(ConfigError, match="images are square, not 64×48; put {NAME: Resize, height: 48"):
            build_model(node, classes, shape)
        return
    model = build_model(node, classes, shape)
    logits = model(torch.randn(4, *shape))
    assert logits.shape == (4, classes)
    logits.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all()
               for parameter in model.parameters())


@pytest.mark.parametrize("strides, sizes", [((1, 2, 2, 2), [32, 16, 8, 4]),
                                            ((1, 2, 2, 1), [32, 16, 8, 8])])
def test_maps_have_the_sizes_of_the_reference(strides, sizes):
    model = build_model({"NAME": "resnet18", "strides": strides, "width": 8}, 10, SHAPE)
    x = model.norm1(model.conv1(torch.randn(2, *SHAPE)))
    for layer, size in zip((model.layer1, model.layer2, model.layer3, model.layer4), sizes,
                           strict=True):
        x = layer(x)
        assert x.shape[-2:] == (size, size)


def test_all_own_models_but_the_transformer_choose_their_norm():
    assert {name for name in MODELS.own if "norm" in parameters_of(MODELS.get(name))[0]} == set(
        MODELS.own) - {"vit"} == set(CONVOLUTIONS)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("norm, kind, groups", [("layer", nn.GroupNorm, 1), ("group", nn.GroupNorm, 32),
                                                ("batch", nn.BatchNorm2d, None)])
def test_one_norm_is_everywhere_and_no_other_is_left(name, norm, kind, groups):
    model = build_model({"NAME": name, "norm": norm}, 10, SHAPE)
    norms = [module for module in model.modules()
             if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm))]
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert {type(module) for module in norms} == {kind}
    assert len(norms) == len(convolutions) == CONVOLUTIONS[name]
    assert groups is None or {module.num_groups for module in norms} == {groups}


def test_blocks_are_basic():
    model = build_model("resnet34", 10, SHAPE)
    assert [len(layer) for layer in (model.layer1, model.layer2, model.layer3, model.layer4)] == [
        3, 4, 6, 3]
    assert {type(block).__name__ for block in model.layer3} == {"BasicBlock"}


def test_resnet9_is_as_drawn():
    """Against the layers written out one by one."""
    model = build_model({"NAME": "resnet9", "width": 4}, 10, SHAPE)
    images = torch.randn(2, *SHAPE)

    def convolve(block, x, pool=1):
        x = nn.functional.conv2d(x, block.conv.weight, padding=1)
        x = nn.functional.max_pool2d(x, pool)
        return nn.functional.batch_norm(x, None, None, block.norm.weight, block.norm.bias,
                                        training=True).relu()

    def residual(block, x):
        return x + convolve(block.block2, convolve(block.block1, x))

    maps = [convolve(model.prep, images)]
    maps.append(residual(model.layer1[1], convolve(model.layer1[0], maps[-1], 2)))
    maps.append(convolve(model.layer2, maps[-1], 2))
    maps.append(residual(model.layer3[1], convolve(model.layer3[0], maps[-1], 2)))
    assert [tuple(x.shape[1:]) for x in maps] == [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)]
    logits = model.fc(nn.functional.max_pool2d(maps[-1], 4).flatten(1))
    assert torch.allclose(model(images), logits, atol=1e-5)


@pytest.mark.parametrize("arguments, tokens, heads", [
    ({}, 65, 3), ({"patch": 8}, 17, 3), ({"width": 32}, 65, 1), ({"heads": 6}, 65, 6)])
def test_a_vit_has_a_token_per_patch_and_one_for_the_class(arguments, tokens, heads):
    model = build_model({"NAME": "vit", "depth": 2, "dropout": 0.1, **arguments}, 10, SHAPE)
    assert len(model.encoder.layers) == 2
    assert model.encoder.pos_embedding.shape == (1, tokens, arguments.get("width", 192))
    block = model.encoder.layers[0]
    assert block.self_attention.num_heads == heads
    assert block.mlp[0].out_features == 4 * block.mlp[0].in_features
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.1}


def test_a_vit_turns_its_tokens_into_the_map_of_their_patches():
    model = build_model({"NAME": "vit", "width": 8}, 10, SHAPE)
    tokens = torch.randn(2, 65, 8)
    maps = model.reshape_transform(tokens)
    assert maps.shape == (2, 8, 8, 8)
    assert torch.equal(maps[:, :, 3, 5], tokens[:, 1 + 3 * 8 + 5])


def test_the_patches_of_grey_images_start_out_as_torchvision_s_do():
    torch.manual_seed(0)
    for channels in (1, 3):
        patches = build_model("vit", 10, (channels, 32, 32)).conv_proj
        assert patches.weight.shape == (192, channels, 4, 4)
        assert patches.weight.std().item() == pytest.approx((16 * channels) ** -0.5, rel=0.05)
        assert not patches.bias.any()


def test_torchvision_is_imported_only_for_a_model_that_needs_it():
    code = ("import sys, cvkit.models, cvkit.data.transforms; from cvkit.registry import MODELS; "
            "MODELS.build('resnet9'); print('torchvision' in sys.modules); "
            "MODELS.build('vit'); print('torchvision' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=ROOT)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("name", SMALL_TORCHVISION)
def test_torchvision_models_get_the_right_number_of_classes(name):
    model = build_model(name, 7, (3, 64, 64)).eval()
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_a_vision_transformer_gets_the_image_size():
    model = build_model("vit_b_32", 5, (3, 64, 64))
    assert model.image_size == 64 and model.heads.head.out_features == 5


@pytest.mark.parametrize("name, shape, expected", [
    ("alexnet", SHAPE, "made for 63×63 pixels or more. Add {NAME: Resize, height: 63, width: 63}"),
    ("vgg11", (3, 16, 16), "made for 32×32 pixels or more"),
    ("mobilenet_v3_small", (1, 32, 32), "It takes 3 channels. Add {NAME: ToRGB}"),
    ("vit_b_32", (3, 40, 40), "model vit_b_32 cannot"),
])
def test_images_that_do_not_fit_are_refused(name, shape, expected):
    with pytest.raises(ConfigError) as caught:
        build_model(name, 10, shape)
    assert expected in str(caught.value)


@pytest.mark.parametrize("node, expected", [
    ({"NAME": "resnet18", "num_classes": 5}, "num_classes is 5, but the data has 10 classes"),
    ({"NAME": "resnet18", "in_channels": 1}, "in_channels is 1, but the data has 3 channels"),
    ({"NAME": "resnet18", "norm": "group", "groups": 5}, "groups 5 does not divide"),
    ({"NAME": "resnet18", "strides": [1, 2]}, "strides has one number per stage"),
    ({"NAME": "resnet9", "width": 0}, "width is 1 or more, not 0"),
    ({"NAME": "vit", "patch": 5}, "patch 5 does not divide the 32 pixels of the image; set MODEL.patch, to 4"),
    ({"NAME": "vit", "heads": 5}, "heads 5 does not divide width 192; set MODEL.heads, to 4"),
    ({"NAME": "vit", "depth": 0}, "depth 0, heads 3 and the 768 hidden units of mlp_ratio 4 are 1 or more"),
    ({"NAME": "vit", "image_size": 64}, "model vit cannot take images of 3×32×32: Wrong image height"),
])
def test_arguments_that_contradict_the_data_or_themselves(node, expected):
    with pytest.raises(ConfigError, match=expected):
        build_model(node, 10, SHAPE)


def test_an_own_model_with_another_output_is_refused(monkeypatch):
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))

    @MODELS.register()
    class NoClasses(nn.Module):
        def forward(self, x):
            return x

    MODELS.register("nothing")(lambda num_classes: None)
    with pytest.raises(ConfigError, match="nothing returned NoneType, not a torch.nn.Module"):
        build_model("nothing", 10, SHAPE)
    with pytest.raises(ConfigError, match=r"returns \(1, 3, 32, 32\) for one image; expected logits"):
        build_model("NoClasses", 10, SHAPE)


def test_pretrained_weights_are_kept_but_for_the_head(monkeypatch):
    import torchvision.models

    full = torchvision.models.mobilenet_v3_small()
    monkeypatch.setattr(torchvision.models.MobileNet_V3_Small_Weights, "get_state_dict",
                        lambda self, **options: full.state_dict())
    model = build_model({"NAME": "mobilenet_v3_small", "weights": "DEFAULT"}, 7, (3, 64, 64))
    assert torch.equal(model.features[0][0].weight, full.features[0][0].weight)
    assert torch.equal(model.classifier[0].weight, full.classifier[0].weight)
    assert model.classifier[3].out_features == 7
    with pytest.raises(ConfigError, match="weights is one of IMAGENET1K_V1, DEFAULT, not 'V9'"):
        build_model({"NAME": "mobilenet_v3_small", "weights": "V9"}, 7, (3, 64, 64))


@pytest.mark.parametrize("norm, size, is_refused", [
    ("batch", 8, True), ("batch", 16, False), ("layer", 8, False)])
def test_a_single_image_of_one_pixel_cannot_be_batch_normalised(norm, size, is_refused):
    model = build_model({"NAME": "resnet18", "width": 4, "norm": norm}, 3, (3, size, size))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    if is_refused:
        with pytest.raises(ConfigError, match="b.yaml:3 DATA.BATCH_SIZE: a batch of one image"):
            refuse_single_images(model, (3, size, size), "b.yaml:3 DATA.BATCH_SIZE")
    else:
        refuse_single_images(model, (3, size, size))
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
