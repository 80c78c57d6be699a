import re
import subprocess
import sys
from copy import copy

import pytest
import torch
from conftest import ROOT
from torch import nn

from cvkit.config import load_config
from cvkit.errors import ConfigError, DataError
from cvkit.models import build_model, count_parameters
from cvkit.models.probing import refuse_single_images
from cvkit.registry import MODELS
from cvkit.registry.signatures import parameters_of
from cvkit.runs.folder import open_run
from cvkit.session import build_trainer, check, train
from cvkit.training.resume import checkpoint_of

SHAPE = (3, 32, 32)
OWN = [name for name in MODELS.own if name != "Sequential"]  # it has a test file of its own
SMALL_TORCHVISION = ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5",
                     "regnet_y_400mf", "googlenet", "efficientnet_b0", "torchvision.models.resnet18"]
IN_TORCHVISION = sorted({*MODELS.library[1], "resnet18", "resnet34"})  # which cvkit's own hide
OFTEN = {"densenet121", "mnasnet0_5", "vit_b_16", "mobilenet_v2", "inception_v3", "googlenet",
         "swin_t", "resnet18"}  # tested in the fast suite too
OLD_NAMES = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))")
NARROW = {"airbench": {"widths": [8, 12, 12]}}
CONVOLUTIONS = {"resnet18": 20, "resnet34": 36, "resnet9": 8}


@pytest.mark.parametrize("name, count", [
    ("resnet18", 11_173_962), ("resnet34", 21_282_122), ("resnet9", 6_573_130), ("vit", 2_693_578),
    ("airbench", 1_972_792)])
def test_parameter_counts_are_those_of_the_reference(name, count):
    assert count_parameters(build_model(name, 10, SHAPE)) == count


def test_the_variant_with_stride_1_and_2x2_pooling_has_its_count():
    node = {"NAME": "resnet18", "strides": [1, 2, 2, 1], "pool_size": 2}
    assert count_parameters(build_model(node, 10, SHAPE)) == 11_189_322


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("shape, classes", [(SHAPE, 10), ((1, 28, 28), 7), ((3, 64, 48), 3)])
def test_every_own_model_fits_any_data_and_trains(name, shape, classes):
    node = {"NAME": name, **NARROW.get(name, {"width": 8})}
    if name == "vit" and shape[1] != shape[2]:
        with pytest.raises(ConfigError, match="images are square, not 64×48; put {NAME: Resize, height: 48"):
            build_model(node, classes, shape)
        return
    model = build_model(node, classes, shape)
    logits = model(torch.randn(4, *shape))
    assert logits.shape == (4, classes)
    logits.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all()
               for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("strides, sizes", [((1, 2, 2, 2), [32, 16, 8, 4]),
                                            ((1, 2, 2, 1), [32, 16, 8, 8])])
def test_maps_have_the_sizes_of_the_reference(strides, sizes):
    model = build_model({"NAME": "resnet18", "strides": strides, "width": 8}, 10, SHAPE)
    x = model.norm1(model.conv1(torch.randn(2, *SHAPE)))
    for layer, size in zip((model.layer1, model.layer2, model.layer3, model.layer4), sizes,
                           strict=True):
        x = layer(x)
        assert x.shape[-2:] == (size, size)


def test_all_own_models_but_two_choose_their_norm():
    assert {name for name in OWN if "norm" in parameters_of(MODELS.get(name))[0]} == set(
        OWN) - {"vit", "airbench"} == set(CONVOLUTIONS)


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


@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_resnet9_is_as_drawn(scale):
    """Against the layers written out one by one."""
    model = build_model({"NAME": "resnet9", "width": 4, "scale": scale}, 10, SHAPE)
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
    assert torch.allclose(model(images), scale * logits, atol=1e-5)


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
    code = ("import sys; sys.modules['torchvision'] = None  # so that importing it fails\n"
            "import cvkit.models, cvkit.data.transforms; from cvkit.registry import MODELS; "
            "MODELS.build('resnet9'); print('built'); MODELS.build('vit')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "built\n" and "No module named 'torchvision" in done.stderr, done.stderr


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


def test_a_model_of_one_s_own_is_not_taken_for_torchvision_s_of_that_name():
    @MODELS.register("alexnet")
    def own(num_classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(7, num_classes))

    with pytest.raises(ConfigError) as caught:
        build_model("alexnet", 10, SHAPE)
    assert "made for" not in str(caught.value) and "It is offered in_channels" in str(caught.value)


@pytest.mark.parametrize("node, expected", [
    ({"NAME": "resnet18", "num_classes": 5}, "num_classes is 5, but the data has 10 classes"),
    ({"NAME": "resnet18", "in_channels": 1}, "in_channels is 1, but the data has 3 channels"),
    ({"NAME": "resnet18", "norm": "group", "groups": 5}, "groups 5 does not divide"),
    ({"NAME": "resnet18", "strides": [1, 2]}, "strides has one number per stage"),
    ({"NAME": "resnet9", "width": 0}, "width is 1 or more, not 0"),
    ({"NAME": "resnet9", "scale": 0.0}, "scale is above 0, not 0.0"),
    ({"NAME": "vit", "patch": 5}, "patch 5 does not divide the 32 pixels of the image; set MODEL.patch, to 4"),
    ({"NAME": "vit", "heads": 5}, "heads 5 does not divide width 192; set MODEL.heads, to 4"),
    ({"NAME": "vit", "depth": 0}, "depth 0, heads 3 and the 768 hidden units of mlp_ratio 4 are 1 or more"),
    ({"NAME": "vit", "image_size": 64}, "model vit cannot take images of 3×32×32: Wrong image height"),
])
def test_arguments_that_contradict_the_data_or_themselves(node, expected):
    with pytest.raises(ConfigError, match=expected):
        build_model(node, 10, SHAPE)


def test_an_own_model_with_another_output_is_refused():

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


def file_of(name):
    """Return what torchvision's file of a model could hold: another number in each tensor."""
    import torchvision.models

    arguments = {}
    if name in ("googlenet", "inception_v3"):
        arguments = {"aux_logits": True, "init_weights": False}
    if name.startswith("vit_"):
        arguments["image_size"] = torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"][0]
    state = torchvision.models.get_model(name, **arguments).state_dict()
    for number, (key, value) in enumerate(state.items()):
        state[key] = torch.tensor(number, dtype=value.dtype).expand(value.shape)
    if name.startswith("densenet"):  # saved under other names, before torch noted versions
        return {OLD_NAMES.sub(r"\1.", key): value for key, value in state.items()
                if "num_batches" not in key}
    return state


@pytest.fixture
def publish(monkeypatch):
    """A function that sets what torchvision downloads."""
    def publish(state):
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url",
                            lambda url, **options: copy(state))
    return publish


@pytest.fixture
def weightless(monkeypatch):
    """Models whose weights are neither drawn nor copied take no time and no memory."""
    load = nn.Module.load_state_dict
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda self, state, strict=True: load(
        self, state, strict, assign=True))
    for name in dir(nn.init):
        if re.fullmatch(r"[a-z]\w+_", name):
            for module in (nn.init, nn.modules.activation):
                monkeypatch.setattr(module, name, lambda tensor, *arguments, **options: tensor,
                                    raising=module is nn.init)


def settings(model):
    """Return the plain values of all modules, but for what cvkit means to set otherwise."""
    return {(path, key): value for path, module in model.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, (bool, int, float, str, tuple))
            and key not in ("num_classes", "aux_logits", "weights_loaded")}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in OFTEN else pytest.mark.slow) for name in IN_TORCHVISION])
def test_all_weights_but_the_head_s_are_those_that_torchvision_loads(name, publish, weightless):
    import torchvision.models

    publish(file_of(name))
    theirs = torchvision.models.get_model(name, weights="DEFAULT")
    ours = MODELS.build({"NAME": f"torchvision.models.{name}", "weights": "DEFAULT"}, num_classes=7)
    state, own = theirs.state_dict(), ours.state_dict()
    assert {key for key in state if key not in own} == {key for key in state if "AuxLogits" in key}
    head = [key for key in own if own[key].shape != state[key].shape]
    assert 1 <= len(head) <= 2 and all(own[key].shape[0] == 7 for key in head)
    assert [key for key, value in own.items() if key not in head
            and value[(0,) * value.ndim] != state[key][(0,) * value.ndim]] == []
    assert ours.weights_loaded.endswith(f": {len(own) - len(head)} of {len(own)} tensors loaded; "
                                        f"new: {', '.join(head)}")
    expected, last = settings(theirs), head[0].rpartition(".")[0]
    assert {key: value for key, value in settings(ours).items() if expected[key] != value} == {
        (last, key): 7 for key in ("out_features", "out_channels") if (last, key) in expected}


def test_a_densenet_takes_all_its_120_convolutions_from_the_file(publish):
    file = {key: torch.rand(value.shape) for key, value in file_of("densenet121").items()}
    publish(file)
    model = build_model({"NAME": "densenet121", "weights": "DEFAULT"}, 7, (3, 64, 64))
    equal = [torch.equal(module.weight, file[OLD_NAMES.sub(r"\1.", f"{name}.weight")])
             for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert sum(equal) == len(equal) == 120


@pytest.mark.parametrize("weights, widest", [("DEFAULT", 1280**-0.5), (None, (3 / 7) ** 0.5)])
def test_a_new_head_is_torchvision_s_alone_but_no_larger_than_torch_s_beside_weights(publish, weights, widest):
    publish(file_of("mnasnet0_5"))
    head = build_model({"NAME": "mnasnet0_5", "weights": weights}, 7, (3, 64, 64)).classifier[1]
    assert head.weight.abs().max().item() == pytest.approx(widest, rel=0.01)
    assert abs(head.weight.mean().item()) < widest / 30


@pytest.mark.parametrize("size, sides", [(64, 4), (256, 16), (224, 14)])
def test_the_positions_of_a_vit_are_interpolated_to_other_image_sizes(size, sides, publish, weightless):
    from torchvision.models.vision_transformer import interpolate_embeddings

    file = file_of("vit_b_16")
    position = file["encoder.pos_embedding"] = torch.randn(1, 1 + 14**2, 768)
    publish(file)
    model = MODELS.build({"NAME": "vit_b_16", "weights": "DEFAULT"}, num_classes=7, image_size=size)
    expected = interpolate_embeddings(size, 16, {"encoder.pos_embedding": position})
    assert model.encoder.pos_embedding.shape == (1, 1 + sides**2, 768)
    assert torch.equal(model.encoder.pos_embedding, expected["encoder.pos_embedding"])
    told = f"position embedding interpolated from 14×14 to {sides}×{sides}"
    assert (told in model.weights_loaded) == (sides != 14)
    assert "150 of 152 tensors loaded; new: heads.head.weight, heads.head.bias" in model.weights_loaded


@pytest.mark.parametrize("is_set", [True, False, None])
def test_an_inception_transforms_its_input_as_torchvision_s_does_with_weights(is_set, publish, weightless):
    publish(file_of("googlenet"))
    given = {} if is_set is None else {"transform_input": is_set}
    model = MODELS.build({"NAME": "googlenet", "weights": "DEFAULT", **given}, num_classes=7)
    assert model.transform_input is (is_set is not False)
    assert ("transform_input true" in model.weights_loaded) == model.transform_input
    assert "without the auxiliary classifiers" in model.weights_loaded


def test_a_checkpoint_s_model_transforms_its_input_as_the_trained_one_did(publish, tiny):
    import torchvision.models

    publish(torchvision.models.googlenet(aux_logits=True, init_weights=False).state_dict())
    trainer = build_trainer(load_config(tiny, {"MODEL": {"NAME": "googlenet", "weights": "DEFAULT"}}))
    opened, image = checkpoint_of(trainer.state, trainer.parts).build_model(), torch.rand(1, 3, 32, 32)
    assert opened.transform_input is True
    with torch.no_grad():
        assert torch.allclose(opened(image), trainer.state.model.eval()(image), atol=1e-5)


def test_with_1000_classes_the_head_is_the_file_s_too(publish, weightless):
    publish(file_of("mobilenet_v2"))
    model = MODELS.build({"NAME": "mobilenet_v2", "weights": "IMAGENET1K_V1"}, num_classes=1000)
    assert model.weights_loaded == "IMAGENET1K_V1: 314 of 314 tensors loaded; new: nothing"


@pytest.mark.parametrize("arguments, change, expected", [
    ({"width_mult": 0.5}, {}, r"MODEL.weights: model mobilenet_v2 cannot be built: 256 keys of the "
     r"weights IMAGENET1K_V2 do not fit: features.0.0.weight, .* and 246 more; leave out width_mult"),
    ({}, {"features.0.0.weight": None, "more.weight": torch.zeros(1)},
     "2 keys of the weights IMAGENET1K_V2 do not fit: features.0.0.weight, more.weight$"),
])
def test_weights_of_which_a_key_does_not_fit_are_refused(arguments, change, expected, publish, tiny):
    file = file_of("mobilenet_v2")
    for key, value in change.items():
        file[key] = value
    publish({key: value for key, value in file.items() if value is not None})
    config = load_config(tiny, {"MODEL": {"NAME": "mobilenet_v2", "weights": "DEFAULT", **arguments}})
    with pytest.raises(ConfigError, match=expected):
        build_model(config.MODEL, 7, (3, 64, 64))


@pytest.mark.parametrize("error, expected", [
    (OSError("no network"), r"the weights IMAGENET1K_V2 of mobilenet_v2 cannot be downloaded \(no network"),
    (RuntimeError('invalid hash value (expected "7eb", got "0a")'), "cannot be downloaded .invalid hash"),
])
def test_weights_that_do_not_arrive_are_told_where_to_put(error, expected, monkeypatch):
    def fail(url, **options):
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    monkeypatch.setenv("TORCH_HOME", "/scratch/torch")
    with pytest.raises(DataError, match=f"{expected}(.|\n)*Put https://.*mobilenet_v2-.* into "
                                        "/scratch/torch/hub/checkpoints/"):
        MODELS.build({"NAME": "mobilenet_v2", "weights": "DEFAULT"})


def test_a_model_of_square_images_says_so():
    with pytest.raises(ConfigError, match="vit_b_16 .*takes square images, not 64×96"):
        build_model({"NAME": "vit_b_16"}, 7, (3, 64, 96))


def test_a_run_goes_on_where_its_pretrained_weights_cannot_be_had_again(publish, tiny, monkeypatch):
    import torchvision.models

    publish(torchvision.models.mobilenet_v3_small().state_dict())
    settings = {"MODEL": {"NAME": "mobilenet_v3_small", "weights": "DEFAULT"}, "DATA.LIMIT": 40,
                "DATA.BATCH_SIZE": 20, "SCHEDULER": None}
    train(load_config(tiny, {**settings, "TRAIN.EPOCHS": 1}))

    def fail(self, **options):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", fail)
    assert open_run().model.features  # as drawing and evaluating do
    run = train(load_config(tiny, {**settings, "TRAIN.EPOCHS": 2}), resume=True)
    assert len(run.metrics) == 2


def test_weights_that_lack_the_last_layers_are_not_offered():
    with pytest.raises(ConfigError, match="weights is one of IMAGENET1K_V1, DEFAULT, not 'IMAGENET1K_F"):
        MODELS.build({"NAME": "vgg16", "weights": "IMAGENET1K_FEATURES"})


def test_the_log_says_which_weights_were_loaded_and_what_is_new(publish, tiny, capsys):
    import torchvision.models

    publish(torchvision.models.mobilenet_v3_small().state_dict())
    model = {"NAME": "mobilenet_v3_small", "weights": "DEFAULT"}
    check(load_config(tiny, {"MODEL": model}))
    assert ("\nweights    IMAGENET1K_V1: 242 of 244 tensors loaded; new: classifier.3.weight, "
            "classifier.3.bias\n") in capsys.readouterr().out


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


def test_what_a_model_of_one_s_own_calls_pretrained_is_its_own_matter():
    @MODELS.register()
    def own(num_classes, pretrained: bool):
        assert pretrained is False
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))

    build_model({"NAME": "own", "pretrained": False}, 10, SHAPE, takes_weights=False)
