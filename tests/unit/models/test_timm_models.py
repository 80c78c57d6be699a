import copy
import socket
import sys

import pytest
import torch

from cvkit.config import load_config
from cvkit.errors import ConfigError, DataError
from cvkit.models import build_model
from cvkit.models.feature_maps import choose_layers
from cvkit.models.features import head_of
from cvkit.models.pretrained import trained_on
from cvkit.registry import MODELS
from cvkit.registry.signatures import parameters_of
from cvkit.runs.checkpoint import Checkpoint
from cvkit.session import train

timm = pytest.importorskip("timm")
# Of each: the last layer, and the layer that a CAM is drawn of by default.
FAMILIES = {
    "resnet18": (64, "fc", "layer2"), "convnext_atto": (64, "head.fc", "stages.1"),
    "tf_efficientnet_lite0": (64, "classifier", "blocks.2"),
    "mobilenetv3_small_050": (96, "classifier", "blocks.3"),
    "vit_tiny_patch16_224": (96, "head", "blocks.10"), "beit_base_patch16_224": (96, "head", "blocks.11"),
    "deit_tiny_distilled_patch16_224": (96, "head_dist", "blocks.10"),
    "swin_tiny_patch4_window7_224": (96, "head.fc", "layers.2"), "regnetx_002": (96, "head.fc", "s3"),
    "densenet121": (96, "classifier", "features.transition3.conv"), "mixer_s32_224": (224, "head", "norm")}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_fits_the_data_trains_and_has_a_layer_for_a_cam(name):
    side, head, layer = FAMILIES[name]
    torch.manual_seed(0)
    model = build_model({"NAME": f"timm.{name}"}, 7, (3, side, side))
    assert head_of(model, (3, side, side)) == head
    images = torch.randn(2, 3, side, side)
    torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 3])).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
    (chosen, size), = choose_layers(model, images[:1], "auto").items()
    assert chosen == layer and min(size) >= 5
    twin = build_model({"NAME": f"timm.{name}"}, 7, (3, side, side))
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(twin.eval()(images), model.eval()(images))


def test_tokens_become_the_map_of_their_patches():
    model = build_model({"NAME": "timm.vit_tiny_patch16_224"}, 7, (3, 64, 64))
    tokens = torch.randn(2, 1 + 16, 5)
    maps = model.reshape_transform(tokens)
    assert maps.shape == (2, 5, 4, 4) and torch.equal(maps[:, :, 2, 3], tokens[:, 1 + 2 * 4 + 3])
    swin = build_model({"NAME": "timm.swin_tiny_patch4_window7_224"}, 7, (3, 64, 64))
    output = torch.randn(2, 3, 4, 5)
    assert torch.equal(swin.reshape_transform(output), output.permute(0, 3, 1, 2))


def test_channels_and_classes_come_from_the_data_and_arguments_from_the_config():
    model = build_model({"NAME": "timm.resnet18", "drop_rate": 0.3}, 4, (1, 48, 32))
    assert model.conv1.in_channels == 1 and model.fc.out_features == 4 and model.drop_rate == 0.3
    with pytest.raises(ConfigError, match="model timm.resnet18 has no argument 'drop_rat'\n  Did you mean drop_rate?"):
        build_model({"NAME": "timm.resnet18", "drop_rat": 0.3}, 4, (3, 32, 32))
    with pytest.raises(ConfigError, match="num_classes is 5, but the data has 4 classes"):
        build_model({"NAME": "timm.resnet18", "num_classes": 5}, 4, (3, 32, 32))


def test_a_run_trains_is_evaluated_and_opened_again(tiny):
    run = train(load_config(tiny, {"MODEL": {"NAME": "timm.test_resnet"}}))
    model = Checkpoint.load(run.folder / "checkpoints" / "last.pt").build_model()
    assert type(model).__module__.startswith("timm.") and len(run.predictions.true) == 150


def test_the_registry_neither_lists_nor_counts_what_has_a_prefix():
    assert "timm.resnet18" in MODELS and not any(name.startswith("timm.") for name in MODELS)
    assert MODELS.find("timm.no_such") is None and MODELS.prefixes == ["timm"]
    assert {"num_classes", "in_channels", "pretrained", "drop_rate"} <= set(parameters_of(MODELS.get("timm.resnet18"))[0])


def test_the_tool_lists_and_describes_them(tool):
    _, out, _ = tool("registry.py", "model")
    assert "  from timm, if it is installed: timm.NAME; python tools/registry.py model timm lists them" in out
    _, out, _ = tool("registry.py", "model", "timm")
    assert out.startswith(f"{len(timm.list_models()):,} models from timm:\n  timm.") and " timm.resnet18," in out
    _, out, _ = tool("registry.py", "model", "timm.convnext_tiny")
    assert "  drop_path_rate (float): default 0.0\n" in out and "  num_classes (int): offered by the run\n" in out
    code, _, err = tool("registry.py", "model", "timm.convnext_tinny")
    assert code == 2 and "no model named 'timm.convnext_tinny'\n  Did you mean timm.convnext_tiny?" in err


def test_without_timm_its_installation_is_told(monkeypatch, tool):
    import cvkit.models.timm_models as module

    module.find_timm.cache_clear()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    code, _, err = tool("registry.py", "model", "timm.resnet18")
    module.find_timm.cache_clear()
    assert code == 2 and 'timm is not installed: pip install "cvkit[timm]"' in err
    code, _, err = tool("registry.py", "model", "timm")
    assert code == 2 and err == 'error: timm is not installed: pip install "cvkit[timm]"\n'


def test_the_images_of_weights_are_known_without_them():
    found = trained_on({"NAME": "timm.convnext_tiny", "pretrained": True})
    assert found == ("convnext_tiny.in12k_ft_in1k", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224))
    assert trained_on({"NAME": "timm.vit_tiny_patch16_224", "pretrained": True}).mean == (0.5, 0.5, 0.5)
    assert trained_on({"NAME": "timm.convnext_tiny"}) is None


def test_weights_that_cannot_be_fetched_are_told_at_once(monkeypatch):
    def no_network(*arguments):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(key, raising=False)
    with pytest.raises(DataError, match=r"the weights resnet18.a1_in1k of timm cannot be downloaded \(") as caught:
        build_model({"NAME": "timm.resnet18", "pretrained": True}, 4, (3, 32, 32))
    assert "`huggingface-cli download timm/resnet18.a1_in1k`" in caught.value.hint
    with pytest.raises(ConfigError, match="pretrained: timm has no weights of"):
        name = next(name for name in timm.list_models("*resnet*") if not timm.is_model_pretrained(name))
        build_model({"NAME": f"timm.{name}", "pretrained": True}, 4, (3, 64, 64))
    # A run that is opened has its own.
    assert build_model({"NAME": "timm.resnet18"}, 4, (3, 32, 32), takes_weights=False) is not None


def test_the_weights_that_were_taken_are_told(monkeypatch):
    state = timm.create_model("test_resnet").state_dict()
    create = timm.create_model

    def fetched(name, pretrained=False, **arguments):
        model = create(name, **arguments)
        if pretrained:
            model.load_state_dict({key: value for key, value in state.items() if "head" not in key and "fc" not in key},
                                  strict=False)
        return model

    monkeypatch.setattr(timm, "create_model", fetched)
    model = build_model({"NAME": "timm.test_resnet", "pretrained": True}, 4, (3, 64, 64))
    assert model.weights_loaded == "test_resnet.r160_in1k of timm; new: fc"
    assert torch.equal(model.conv1[0].weight if isinstance(model.conv1, torch.nn.Sequential) else model.conv1.weight,
                       next(value for key, value in state.items() if key.startswith("conv1")))


def test_timm_is_imported_for_its_own_names_alone(tiny):
    import subprocess
    code = ("import sys; sys.modules['timm'] = None\nfrom cvkit.registry import MODELS\n"
            "print('resnet18' in MODELS, 'alexnet' in MODELS, len(MODELS) > 80)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True True True\n", done.stderr
