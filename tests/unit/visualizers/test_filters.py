from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_cam_average import facts_of, noise, small_net
from test_drawing import check_no_overlap, png_of, shown_pixels
from torch import nn

from cvkit.errors import ConfigError
from cvkit.models import build_model
from cvkit.visualizers.filters import channels_of, drawn_kernels, feature_maps, filters


def filters_of(model, *shape):
    """Return the picture of a model that is given an image of this shape."""
    batch = SimpleNamespace(images=torch.zeros(1, *shape))
    return filters(model, SimpleNamespace(test=SimpleNamespace(take=lambda places: batch)))


def tiles(figure):
    return [axis for axis in figure.axes if axis.images]


def test_kernels_over_colours_are_drawn_in_their_colours_on_one_scale():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 2))
    weight = torch.zeros(4, 3, 2, 2)
    weight[0, 0, 0, 1], weight[0, 2, 1, 0], weight[1, 1], weight[3, :, 0] = 2.0, -2.0, 1.0, 0.1
    model[1].weight.data = weight
    figure = filters_of(model, 3, 2, 2)
    pixels, axes = png_of(figure), tiles(figure)
    assert len(axes) == 4 and [axis.get_title() for axis in axes] == list("0123")
    drawn = np.stack([shown_pixels(pixels, axis, 2, 2) for axis in axes]) / 255
    expected = 0.5 + weight.permute(0, 2, 3, 1).numpy() / 4
    assert np.abs(drawn - expected).max() < 0.005
    assert "4 kernels of 2×2 pixels over 3 channels of 1." in figure.caption
    assert "grey is 0, black -2 and white 2." in figure.caption
    assert "The largest is kernel 0 (norm 2.83); 2 of 4 are idle" in figure.caption
    assert figure.table.splitlines()[1].split() == ["0", "2.8284", "-2.0000", "2.0000"]
    model[1].weight.requires_grad_(False)  # as of a whitening: its small kernels see the most
    assert "(norm 2.83); the smallest has 0." in filters_of(model, 3, 2, 2).caption


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_kernels_are_grey_and_their_mean(channels):
    kernels = np.random.default_rng(0).normal(size=(6, channels, 3, 5)).astype(np.float32)
    drawn = drawn_kernels(kernels)
    mean = kernels.mean(1)
    assert drawn.shape == (6, 3, 5, 1) and np.allclose(drawn[..., 0], 0.5 + mean / np.abs(mean).max() / 2)
    assert (drawn_kernels(np.zeros((2, channels, 3, 3))) == 0.5).all()
    model = nn.Sequential(nn.Conv2d(channels, 6, (3, 5)))
    model[0].weight.data = torch.from_numpy(kernels)
    assert ("(drawn: their mean)" in filters_of(model, channels, 8, 8).caption) == (channels > 1)


def test_a_model_without_a_first_convolution_is_told_so():
    for model, side in ((nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), 2), (nn.ReLU(), 4),
                        (nn.Sequential(nn.Linear(4, 4), nn.Conv2d(3, 3, 1)), 4)):
        figure = filters_of(model, 3, side, side)
        assert figure.is_message and "does not begin with a convolution" in figure.caption


def test_patches_of_a_transformer_are_filters_too():
    figure = filters_of(build_model({"NAME": "vit"}, 4, (3, 32, 32)), 3, 32, 32)
    assert not figure.is_message and "4×4 pixels over 3 channels" in figure.caption


def test_of_very_many_kernels_the_first_are_drawn(monkeypatch):
    monkeypatch.setattr("cvkit.visualizers.filters._MOST", 32)
    figure = filters_of(nn.Conv2d(3, 300, 3), 3, 8, 8)
    assert len(tiles(figure)) == 32 and "The first 32 are drawn." in figure.caption
    assert len(figure.table.splitlines()) == 301
    check_no_overlap([*figure.texts, *(axis.title for axis in figure.axes)])


def test_channels_are_what_the_layer_makes_of_the_image_the_strongest_first(painted):
    figure = painted.visualize("feature_maps", layer="layer2", image=7, count=5)
    first, *others = tiles(figure)
    assert np.array_equal(first.images[0].get_array(), painted.data.test.image(7))
    model, images = painted.model.eval(), painted.loaders.test.take([7]).images
    kept = []
    handle = model.layer2.register_forward_hook(lambda *given: kept.append(given[2]))
    with torch.no_grad():
        model(images)
    handle.remove()
    maps = kept[0][0].numpy()
    order = np.argsort(-maps.mean((1, 2)), kind="stable")[:5]
    assert [int(axis.get_title()) for axis in others] == order.tolist()
    for axis, channel in zip(others, order, strict=True):
        assert np.abs(axis.images[0].get_array() - maps[channel]).max() < 1e-5
    limits = {axis.images[0].get_clim() for axis in others}
    (low, high), = limits  # one scale for all
    assert low == min(0, maps[order].min()) and high == pytest.approx(maps[order].max())
    assert f"Test image 7 at layer2 (16×16 pixels): the 5 of {len(maps)} channels" in figure.caption
    assert f"(channel {order[0]})" in figure.caption and len(figure.table.splitlines()) == len(maps) + 1
    check_no_overlap([*figure.texts, *(axis.title for axis in figure.axes)])


def test_channels_of_tokens_and_of_grey_images_that_are_no_squares():
    model = build_model({"NAME": "vit"}, 4, (3, 32, 32))
    maps = channels_of(model, torch.randn(2, 3, 32, 32), "encoder.layers.encoder_layer_4")
    assert maps.ndim == 3 and maps.shape[1:] == (8, 8)
    _, model, loaders = facts_of(small_net(1), noise((3, 40, 60, 1)), np.array([0, 1, 0]), ["a", "b"])
    figure = feature_maps(model, loaders, layer="first", count=100)
    assert len(tiles(figure)) == 9
    for axis in tiles(figure)[1:]:  # a map has the shape of the image, and lies like it
        assert axis.images[0].get_extent() == [0, 60, 40, 0]


def test_what_cannot_be_is_refused(painted):
    with pytest.raises(ConfigError, match="image is 0 to 35, not 36"):
        painted.visualize("feature_maps", image=36)
    with pytest.raises(ConfigError, match="count is 1 or more"):
        painted.visualize("feature_maps", count=0)
    with pytest.raises(ConfigError, match="Did you mean layer2"):
        painted.visualize("feature_maps", layer="layr2")


def test_the_first_is_what_images_go_through_first_whatever_is_defined_first():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.stem = nn.Conv2d(8, 16, 3), nn.Conv2d(3, 8, 5)

        def forward(self, images):
            return self.late(self.stem(images)).mean((2, 3))

    assert "8 kernels of 5×5 pixels over 3 channels of stem." in filters_of(Net(), 3, 12, 12).caption


def test_channels_that_see_nothing_are_counted():
    model = nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 6, 3, padding=1), relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1),
                                      flat=nn.Flatten(), head=nn.Linear(6, 2)))
    with torch.no_grad():
        model.stem.weight.zero_()
        model.stem.bias.copy_(torch.tensor([1.0, -1.0, 2.0, -1.0, -3.0, 0.5]))
    _, _, loaders = facts_of(model, noise((4, 9, 9, 3)), np.arange(4) % 2, ["a", "b"])
    caption = feature_maps(model, loaders, layer="relu").caption
    assert "3 of them are nowhere above 0." in caption and "from 2 (channel 2) to 0. " in caption


def test_channels_of_a_model_that_draws_are_the_same_again():
    class Noisy(nn.Module):
        def forward(self, images):
            return images + torch.rand_like(images)

    model, found = nn.Sequential(OrderedDict(noisy=Noisy(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(channels_of(model, torch.zeros(1, 3, 6, 6), "noisy"))
    assert np.array_equal(*found) and found[0].any()
