import weakref

import pytest
import torch
from torch import nn

from cvkit.errors import RunError
from cvkit.models import build_model
from cvkit.models.features import penultimate_features


@pytest.mark.parametrize("name, size, wide", [
    ("resnet18", 32, 512), ("resnet9", 32, 512), ("vit", 32, 192), ("mobilenet_v3_small", 64, 1024),
    ("densenet121", 64, 1024), ("vgg11", 64, 4096), ("efficientnet_b0", 64, 1280)])
def test_the_last_layer_makes_the_logits_of_them(name, size, wide):
    model = build_model({"NAME": name}, 7, (3, size, size)).eval()
    images = torch.randn(2, 3, size, size)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        # That of a ViT begins at zero.
        nn.init.normal_(last.weight)
        features, logits = penultimate_features(model, images), model(images)
        made = last(features)
    assert features.shape == (2, wide)
    # The logits of resnet9 are an eighth of them.
    assert torch.allclose(made / made.norm(), logits / logits.norm(), atol=1e-4)


def test_maps_before_a_convolution_are_averaged():
    model = build_model({"NAME": "squeezenet1_1"}, 7, (3, 64, 64)).eval()
    with torch.no_grad():
        features = penultimate_features(model, torch.randn(2, 3, 64, 64))
    assert features.shape == (2, 512)


def test_no_more_is_kept_than_the_last_layer_is_given():
    model, given, alive = nn.Sequential(*(nn.Linear(4, 4) for _ in range(9))), [], []

    def note(module, inputs):
        given.append(weakref.ref(inputs[0]))
        alive.append(sum(item() is not None for item in given))

    for layer in model:
        layer.register_forward_pre_hook(note)
    with torch.no_grad():
        penultimate_features(model, torch.zeros(2, 4))
    assert max(alive) <= 3


def test_a_model_without_a_last_layer_is_refused():
    with pytest.raises(RunError, match="not those of a last linear layer or convolution"):
        penultimate_features(nn.Sequential(nn.Flatten(), nn.Identity()), torch.zeros(1, 3, 2, 2))
