"""timm's models by name, at small sizes and without a network; weights are those of a stand-in."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.nn import functional as F

from cvkit.config import load_config
from cvkit.errors import ConfigError, DataError
from cvkit.models import build_model
from cvkit.models.feature_maps import choose_layers, map_sizes, reshape_of
from cvkit.models.pretrained import trained_on
from cvkit.registry import MODELS
from cvkit.registry.listing import describe, names_of, overview
from cvkit.runs.folder import open_run
from cvkit.session import check, train
from cvkit.visualizers.cam_maps import cam_maps

timm = pytest.importorskip("timm")
FAMILIES = {  # with a size, the layer of a CAM and the size of its map
    "resnet18": ({}, 64, "layer2", (8, 8)),
    "convnext_atto": ({}, 64, "stages.1", (8, 8)),
    "efficientnet_lite0": ({}, 64, "blocks.2", (8, 8)),
    "mobilenetv3_small_050": ({}, 64, "blocks.1", (8, 8)),
    "regnetx_002": ({}, 64, "s2", (8, 8)),
    "densenet121": ({}, 64, "features.transition2.conv", (8, 8)),
    "vit_tiny_patch16_224": ({"patch_size": 4, "depth": 3}, 32, "blocks.1", (8, 8)),
    "vit_little_patch16_reg1_gap_256": ({"patch_size": 4, "depth": 3}, 32, "blocks", (8, 8)),
    "deit_tiny_distilled_patch16_224": ({"patch_size": 4, "depth": 3}, 32, "blocks.1", (8, 8)),
    "swin_tiny_patch4_window7_224": ({"embed_dim": 24}, 64, "layers.1", (8, 8)),
    "mixer_s16_224": ({}, 96, "norm", (6, 6)),
    "samvit_base_patch16_224": ({"patch_size": 4, "depth": 2, "embed_dim": 48, "num_heads": 2,
                                 "global_attn_indexes": [1]}, 32, "neck", (8, 8)),
}


def build(name, arguments=(), size=64, classes=4, channels=3):
    torch.manual_seed(0)
    return build_model({"NAME": f"timm.{name}", **dict(arguments)}, classes, (channels, size, size))


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_all_families_train_and_have_a_block_to_look_at(name):
    arguments, size, layer, shape = FAMILIES[name]
    model = build(name, arguments, size)
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(model(images), torch.arange(4))
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert choose_layers(model, images[:1], "auto") == {layer: shape}
    model.eval()
    maps = cam_maps(model, images, [np.arange(4)], [layer], ["GradCAM"])[layer, "GradCAM"]
    assert maps.shape == (1, 4, *shape) and maps.std(axis=(2, 3)).max() > 0
    twin = build(name, arguments, size).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(images), model(images))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224",
                                  "swin_tiny_patch4_window7_224", "samvit_base_patch16_224"])
def test_a_map_shows_what_changes_where_it_changes(name):
    arguments, size, layer, _ = FAMILIES[name]
    model = build(name, arguments, size).eval()
    seen = []
    model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.append(output))
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    other = image.clone()
    other[:, :, size // 8:size // 4, size // 2:size * 5 // 8] *= -3
    with torch.no_grad():
        model(image), model(other)
    before, after = map(reshape_of(model, layer), seen)
    assert int((after - before).abs().sum(1).argmax()) == 1 * 8 + 4


def test_an_embedding_of_positions_is_no_map_of_the_image():
    model = build("xcit_nano_12_p8_224", {"depth": 2}, 96)
    assert not any(name.startswith("pos_embed") for name in map_sizes(model, torch.randn(1, 3, 96, 96)))


def test_windows_of_an_image_are_no_map_of_it():
    model = build("swin_tiny_patch4_window7_224", {"embed_dim": 24}, 64)
    assert "layers.0.blocks.0.attn.proj" not in map_sizes(model, torch.randn(1, 3, 64, 64))


def test_classes_channels_and_image_size_are_those_of_the_run():
    model = build("vit_tiny_patch16_224", {"depth": 1}, 64, classes=3, channels=1)
    assert model.patch_embed.proj.in_channels == 1 and model.patch_embed.grid_size == (4, 4)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 3)
    wide = build_model({"NAME": "timm.vit_tiny_patch16_224", "depth": 1}, 3, (3, 32, 64))
    assert wide.patch_embed.grid_size == (2, 4)


def test_a_model_whose_class_is_not_told_takes_them_too():
    """Its function has no annotation, so arguments are left unchecked."""
    assert build("efficientvit_m0", {"drop_rate": 0.5}, 64, classes=3).head.linear.out_features == 3
    with pytest.raises(ConfigError, match=r"model timm.inception_next_tiny cannot be built: .*'dorp_rate'"):
        build("inception_next_tiny", {"dorp_rate": 0.5})


@pytest.mark.parametrize("node, expected", [
    ({"NAME": "timm.convnext_tny"}, "no model named 'timm.convnext_tny'\n  Did you mean timm.convnext_tiny?"),
    ({"NAME": "resnet10t"}, "no model named 'resnet10t'\n  Did you mean timm.resnet10t?"),
    ({"NAME": "timm/resnet50.a1_in1k"}, "no model named 'timm/resnet50.a1_in1k'\n  Did you mean timm.resnet50.a1_in1k?"),
    ({"NAME": "timm.resnet50.a1_in1"}, "no model named 'timm.resnet50.a1_in1'\n  Did you mean timm.resnet50.a1_in1k?"),
    ({"NAME": "timm.resnet18", "drop_rat": 0.1}, "model timm.resnet18 has no argument 'drop_rat'\n  Did you mean drop_rate?"),
    ({"NAME": "timm.deit_tiny_distilled_patch16_224", "depht": 3}, "Did you mean depth?"),
    ({"NAME": "timm.resnet18", "in_chans": 3}, "Did you mean in_channels?"),
    ({"NAME": "timm.resnet18", "drop_rate": "high"}, "drop_rate of model timm.resnet18 takes float, not 'high'"),
    ({"NAME": "timm.mixer_s16_224", "num_blocks": 2}, "timm.mixer_s16_224 cannot be built: num_blocks is fixed by the name"),
    ({"NAME": "timm.resnet18", "pretrained": "a1_in1k"}, "pretrained of model timm.resnet18 takes bool, not 'a1_in1k'"),
    ({"NAME": "timm.efficientvit_m0", "checkpoint_path": "x.pt"}, "cannot be built: checkpoint_path is not taken: it names files"),
    ({"NAME": "timm.dpn48b", "pretrained": True}, "timm has no weights of it; leave pretrained out"),
    ({"NAME": "timm.halonet_h1"}, "timm makes it for 256×256 pixels. Add {NAME: Resize, height: 256, width: 256}"),
])
def test_what_cannot_be_built_is_one_message(node, expected):
    with pytest.raises(ConfigError) as caught:
        build_model(node, 10, (3, 40, 40))
    assert expected in str(caught.value)


def test_the_registry_counts_lists_and_describes_them_without_growing_by_them():
    names = timm.list_models()
    assert not any(name.startswith("timm.") for name in MODELS) and len(MODELS) < 200
    assert ("\n  from timm, if it is installed: timm.NAME; python tools/registry.py model timm lists them") in overview(MODELS)
    listed = names_of(MODELS, "timm")
    assert listed.startswith(f"{len(names):,} models from timm:\n  timm.") and listed.count("timm.") == len(names)
    assert "timm.resnet18" in MODELS and "timm.resnet18.a1_in1k" in MODELS and "timm.resnet" not in MODELS
    text = describe(MODELS, "timm.convnext_tiny")
    assert "timm/models/convnext.py:" in text and "\n  pretrained (bool): default False\n" in text
    assert "\n  in_channels (int): offered by the run\n" in text and "\n  drop_path_rate (float): default 0.0" in text
    assert "in_chans" not in text and "\nWeights: in12k_ft_in1k, " in text


def test_timm_is_imported_for_its_names_alone():
    code = ("import sys; sys.modules['timm'] = None  # so that importing it fails\n"
            "from cvkit.models import build_model; from cvkit.registry import MODELS\n"
            "from cvkit.registry.listing import overview\n"
            "build_model('resnet18', 10, (3, 32, 32)); list(MODELS); 'resnet81' in MODELS; overview(MODELS)\n"
            "print('done'); build_model('timm.resnet18', 10, (3, 32, 32))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "done\n" and "timm" in done.stderr


def test_without_timm_its_installation_is_told(monkeypatch, tool):
    monkeypatch.setattr("cvkit.models.timm_models.is_installed", lambda: False)
    code, _, err = tool("registry.py", "model", "timm.resnet18")
    assert code == 2 and 'timm is not installed: pip install timm' in err
    code, _, err = tool("registry.py", "model", "timm")
    assert code == 2 and err == 'error: timm is not installed: pip install timm\n'


def test_the_images_of_weights_are_known_without_them():
    found = trained_on({"NAME": "timm.convnext_tiny", "pretrained": True})
    assert found == ("in12k_ft_in1k", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224))
    assert trained_on({"NAME": "timm.vit_tiny_patch16_224", "pretrained": True}).mean == (0.5, 0.5, 0.5)
    assert trained_on({"NAME": "timm.convnext_tiny"}) is None


# -- weights -----------------------------------------------------------------------------


@pytest.fixture
def publish(monkeypatch, tmp_path):
    """A function that puts weights where huggingface_hub keeps what it downloaded."""
    import safetensors.torch

    def publish(name, state, tag):
        path = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file(state, path)
        repository = f"timm/{name}.{tag}"
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo_id, filename, **options: (
            str(path) if (repo_id, filename) == (repository, "model.safetensors") else None))
    return publish


def test_weights_are_kept_but_for_the_last_layer_and_the_channels(publish):
    torch.manual_seed(1)
    whole = timm.create_model("resnet18")
    publish("resnet18", whole.state_dict(), "a1_in1k")
    model = build("resnet18", {"pretrained": True}, classes=7)
    assert torch.equal(model.conv1.weight, whole.conv1.weight)
    assert torch.equal(model.layer4[1].conv2.weight, whole.layer4[1].conv2.weight)
    assert model.weights_loaded == "a1_in1k: 120 of 122 tensors loaded; new: fc.weight, fc.bias"
    grey = build("resnet18", {"pretrained": True}, classes=1000, channels=1)
    assert torch.allclose(grey.conv1.weight, whole.conv1.weight.sum(1, keepdim=True))
    assert grey.weights_loaded == ("a1_in1k, first layer adapted from 3 to 1 channels: 122 of 122 tensors "
                                   "loaded; new: nothing")
    assert nn.Module.load_state_dict.__module__ == "torch.nn.modules.module"


def test_a_new_head_begins_no_larger_than_torch_s_own(publish):
    whole = timm.create_model("tf_efficientnet_lite0")
    publish("tf_efficientnet_lite0", whole.state_dict(), "in1k")
    assert build("tf_efficientnet_lite0", {"pretrained": True}, 32).classifier.weight.std() < 1280**-0.5
    assert build("tf_efficientnet_lite0", {}, 32).classifier.weight.std() > 5 * 1280**-0.5


def test_positions_are_adapted_and_what_cannot_be_is_refused(publish):
    whole = timm.create_model("vit_tiny_patch16_224", depth=2)
    publish("vit_tiny_patch16_224", whole.state_dict(), "augreg_in21k_ft_in1k")
    model = build("vit_tiny_patch16_224", {"pretrained": True, "depth": 2}, 64)
    assert model.pos_embed.shape == (1, 17, 192)
    assert model.weights_loaded == ("augreg_in21k_ft_in1k, adapted from images of 224×224 to 64×64: 30 of 32 "
                                    "tensors loaded; new: head.weight, head.bias")
    with pytest.raises(ConfigError) as caught:
        build("vit_tiny_patch16_224", {"pretrained": True, "embed_dim": 96, "depth": 2}, 64)
    assert "keys of the weights augreg_in21k_ft_in1k do not fit: " in str(caught.value)
    assert "leave out embed_dim, depth or pretrained" in str(caught.value)


def test_weights_that_cannot_be_downloaded_are_one_message_at_once(monkeypatch):
    def head(url, timeout):
        assert url == "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: type("", (), {"head": staticmethod(head)}))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda **where: None)
    monkeypatch.setattr("timm.create_model", lambda *arguments, **options: pytest.fail("asked again"))
    with pytest.raises(DataError) as caught:
        build("resnet18", {"pretrained": True})
    assert "the weights a1_in1k of timm.resnet18 cannot be downloaded (no network)" in str(caught.value)
    assert "`hf download timm/resnet18.a1_in1k model.safetensors`" in str(caught.value)
    assert "leave MODEL.pretrained out to train from scratch" in str(caught.value)


def test_a_run_is_opened_without_weights(publish, tiny, monkeypatch, capsys):
    publish("resnet18", timm.create_model("resnet18").state_dict(), "a1_in1k")
    run = train(load_config(tiny, {"MODEL": {"NAME": "timm.resnet18", "pretrained": True}}))
    assert "\nweights    a1_in1k: 120 of 122 tensors loaded; new: fc.weight, fc.bias\n" in capsys.readouterr().out
    monkeypatch.setattr("cvkit.models.timm_models._pretrained", lambda *arguments: pytest.fail("fetched"))
    again = open_run(run.folder)
    weights = run.checkpoint("last").model
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())


def test_a_training_is_checked_with_a_model_of_timm(tiny, capsys):
    check(load_config(tiny, {"MODEL": {"NAME": "timm.test_vit", "patch_size": 8}}))
    assert "\nmodel      timm.test_vit, " in capsys.readouterr().out
