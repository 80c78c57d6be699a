"""What a network looks for, and what it sees: its first filters, and feature maps of an image."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from cvkit.data import Loaders
from cvkit.models.feature_maps import Recorder, choose_layers, frozen_copy, reshape_of
from cvkit.registry import VISUALIZERS
from cvkit.system.seeds import random_numbers_kept, seed_random_numbers
from cvkit.system.text import in_columns, plural
from cvkit.visualizers.cam import map_page
from cvkit.visualizers.drawing import (
    Picture,
    aspect_of,
    message,
    refuse_below_one,
    sheet,
    shorten,
    show_image,
    styled,
)

# So many kernels are drawn; the table has all.
_MOST = 128
# A kernel whose weights are that much smaller than the largest one's does next to nothing.
_IDLE = 0.1


@VISUALIZERS.register()
@styled
def filters(model: nn.Module, loaders: Loaders) -> Picture:
    """The kernels of the first convolution: in colour where images have three channels.

    All share one scale: grey is 0, and what is as far below it as the largest weight is above, is
    as dark as that is bright. Kernels over other numbers of channels are drawn as their mean.
    """
    name, convolution = _first_convolution(model, loaders.test.take([0]).images)
    if convolution is None:
        return message("The model does not begin with a convolution, so there are no filters to "
                       "draw.")
    kernels = convolution.weight.detach().float().cpu().numpy()
    shown = drawn_kernels(kernels)
    sizes = np.sqrt((kernels ** 2).sum((1, 2, 3)))
    count, channels, height, width = kernels.shape
    # Of a whitening, which does not learn, the small kernels are those that see the most.
    layer = model.get_submodule("" if name == "the model" else name)
    learns = any(weight.requires_grad for weight in layer.parameters() if weight.ndim > 1)
    idle = int((sizes < _IDLE * sizes.max()).sum()) if learns else 0
    compared = (f"{idle} of {count} {'is' if idle == 1 else 'are'} idle, with less than a tenth of "
                "its norm." if idle else
                f"{'none is idle, ' * learns}the smallest has {sizes.min():.3g}.")
    columns = min(16, max(8, int(np.ceil(np.sqrt(count)))), count)
    is_mean = " (drawn: their mean)" if channels not in (1, 3) else ""
    largest = np.abs(_channels_drawn(kernels)).max()
    few = f" The first {_MOST} are drawn." if count > _MOST else ""
    figure, places = sheet(
        min(count, _MOST), columns, "The first filters",
        f"{plural(count, 'kernel')} of {height}×{width} pixels over "
        f"{plural(channels, 'channel')}{is_mean} of {name}. One scale for all: grey is 0, black "
        f"-{largest:.3g} and white {largest:.3g}. The largest is kernel {sizes.argmax()} (norm "
        f"{sizes.max():.3g}); {compared}{few}",
        size=max(0.5, 4.0 / columns), above=0.17, aspect=height / width)
    for number, (axis, kernel) in enumerate(zip(places, shown[:_MOST])):
        show_image(axis, kernel, str(number))
    figure.table = "\n".join(in_columns(
        [("kernel", "norm", "lowest", "highest"),
         *((number, f"{size:.4f}", f"{kernel.min():.4f}", f"{kernel.max():.4f}")
           for number, (size, kernel) in enumerate(zip(sizes, kernels)))], ">", ">", ">", ">"))
    return figure


@torch.no_grad()
def _first_convolution(model: nn.Module, image: torch.Tensor) -> tuple[str, nn.Conv2d | None]:
    """Return the convolution that images go through first; None if it is a linear layer."""
    model, called = frozen_copy(model), []
    # A norm before it has vectors only, as have the tokens that a transformer adds.
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda module, *_, name=name: called.append(
                (name or "the model", module)))
    with random_numbers_kept(image.device):
        model(image)
    first = called[0] if called else ("", None)
    return first if isinstance(first[1], nn.Conv2d) else ("", None)


def _channels_drawn(kernels: np.ndarray) -> np.ndarray:
    """Return kernels (N, C, h, w) with one or three channels: else their mean."""
    return kernels if kernels.shape[1] in (1, 3) else kernels.mean(1, keepdims=True)


def drawn_kernels(kernels: np.ndarray) -> np.ndarray:
    """Return kernels (N, C, h, w) as images (N, h, w, 1 or 3) in 0–1: 0.5 stands for 0."""
    drawn = _channels_drawn(kernels).transpose(0, 2, 3, 1)
    return 0.5 + drawn / (2 * max(np.abs(drawn).max(), np.finfo(np.float32).tiny))


@VISUALIZERS.register()
@styled
def feature_maps(model: nn.Module, loaders: Loaders, layer: str = "auto", image: int = 0,
                 count: int = 32) -> Picture:
    """What the channels of a layer make of one test image, the strongest first.

    Args:
        layer: a module's name, or "auto" for the deepest block whose map has 5×5 pixels or more.
        image: which one, by its place in the test split.
        count: channels, those with the highest mean.

    Raises:
        ConfigError: there is no such layer, or its map is smaller than 5×5.
    """
    refuse_below_one(count=count)
    split = loaders.test.images
    if not 0 <= image < len(split):
        raise ValueError(f"image is 0 to {len(split) - 1}, not {image}")
    images = loaders.test.take([image]).images
    (name, (height, width)), = choose_layers(model, images, layer).items()
    maps = channels_of(model, images, name)
    means = maps.mean((1, 2))
    order = np.argsort(-means, kind="stable")
    chosen = order[:count]
    low, high = min(0.0, float(maps[chosen].min())), float(maps[chosen].max())
    spread = max(high - low, float(np.finfo(np.float32).tiny))
    shown = loaders.test.denormalise(images)[0]
    columns = min(11, len(chosen) + 1)
    silent = int((maps[chosen].max((1, 2)) <= 0).sum())
    alike = (f"{silent} of them {'is' if silent == 1 else 'are'} nowhere above 0." if silent else
             "Each is above 0 somewhere.")

    def draw(figure: Picture, axes: np.ndarray, number: int) -> None:
        first, *others = axes.flat
        show_image(first, shown, "image")
        for axis, channel in zip(others, chosen):
            axis.imshow(maps[channel], cmap="viridis", vmin=low, vmax=low + spread,
                        interpolation="nearest", extent=(0, shown.shape[1], shown.shape[0], 0))
            axis.set_title(shorten(str(channel), 0.8), fontsize=7.5, y=1.0, pad=2.5)

    figure = map_page(
        draw, range(1), "What the channels see",
        f"Test image {image} at {name} ({height}×{width} pixels): the {len(chosen)} of "
        f"{plural(len(maps), 'channel')} with the highest means, from {means[chosen[0]]:.3g} "
        f"(channel {chosen[0]}) to {means[chosen[-1]]:.3g}. {alike}",
        f"activation, {low:.3g} to {high:.3g}; all channels share one scale", "lowest", "viridis",
        rows=-(-(len(chosen) + 1) // columns), columns=columns, size=0.8, above=0.18,
        aspect=aspect_of(shown[None]))
    figure.table = "\n".join(in_columns(
        [("channel", "mean", "lowest", "highest"),
         *((channel, f"{means[channel]:.4f}", f"{maps[channel].min():.4f}",
            f"{maps[channel].max():.4f}") for channel in order)], ">", ">", ">", ">"))
    return figure


@torch.no_grad()
def channels_of(model: nn.Module, images: torch.Tensor, layer: str) -> np.ndarray:
    """Return what a layer's channels are for the first of some images, float32 (C, h, w)."""
    model = frozen_copy(model)
    recorder = Recorder(model, [layer])
    with random_numbers_kept(images.device):
        seed_random_numbers(0)
        model(images[:1].float())
    recorder.remove()
    return reshape_of(model, layer)(recorder.outputs[layer])[0].detach().float().cpu().numpy()
