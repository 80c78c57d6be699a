"""What an exported graph does to images before the model, and to its logits after it."""

import numpy as np
import pytest
import torch
from torch import nn

from cvkit.data.loaders import BatchLoader
from cvkit.deployment.graph import InferenceGraph

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def every_pixel(channels):
    """Each value of a pixel in each channel, uint8 (N, H, W, C)."""
    values = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
    return torch.from_numpy(np.concatenate([values] * channels, 3))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_it_normalises_as_evaluation_does_to_the_bit(channels, layout):
    mean, std = MEAN[:channels], STD[:channels]
    loader = BatchLoader(None, None, mean, std, None, None, torch.device("cpu"), "")
    loader.layout = layout
    images = every_pixel(channels)
    normalised = InferenceGraph(nn.Identity(), mean, std).normalise(images)
    assert normalised.shape == (2, channels, 8, 16) and normalised.dtype == torch.float32
    assert torch.equal(normalised, loader.normalise(images))
    assert normalised.view(2, -1).shape == (2, channels * 128)  # as models with a `view` need it


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_returns_the_softmax_of_the_logits_and_leaves_the_model_alone(precision):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 84, 5))
    model.eval()[0].to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = InferenceGraph(model, MEAN, STD, precision)
    with torch.no_grad():
        probabilities = graph(every_pixel(3))
        expected = model(graph.normalise(every_pixel(3))).softmax(1)
    assert torch.allclose(probabilities, expected, rtol=0, atol=1e-6 if precision == "fp32" else 1e-3)
    assert probabilities.dtype == torch.float32
    assert all(torch.equal(value, before[name]) and value.dtype == before[name].dtype
               for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    stored = {name: value.dtype for name, value in graph.model.state_dict().items()}
    half = torch.float16 if precision == "fp16" else torch.float32
    assert stored["0.weight"] == stored["3.weight"] == half
    assert stored["0.bias"] == stored["1.weight"] == stored["1.running_var"] == torch.float32
