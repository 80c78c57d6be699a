"""A small Vision Transformer for small images (Dosovitskiy et al., 2020), by torchvision."""

from __future__ import annotations

import math

from torch import nn

from cvkit.models.torchvision_models import add_reshape
from cvkit.registry import MODELS


@MODELS.register()
def vit(num_classes: int = 10, in_channels: int = 3, image_size: int | tuple[int, int] = 32,
        patch: int = 4, width: int = 192, depth: int = 6, heads: int | None = None,
        mlp_ratio: float = 4, dropout: float = 0.0) -> nn.Module:
    """Vision Transformer for small images; 2,693,578 parameters for 10 classes at 32×32.

    Images (N, in_channels, image_size, image_size) to logits (N, num_classes), from a class
    token; 32×32 pixels make 8×8 patches. It is a `torchvision.models.VisionTransformer`, whose
    last layer is zero before training. Its `reshape_transform` turns a layer's tokens into maps
    (N, width, 8, 8).

    Args:
        num_classes, in_channels, image_size: of the data; images are square.
        patch: pixels a side; divides the image's.
        width: numbers per token.
        depth: encoder blocks.
        heads: of the attention; divides the width. One per 64 numbers by default.
        mlp_ratio: hidden units of an encoder block's MLP, as a multiple of the width.
        dropout: probability, of embeddings and of the outputs of attention and MLP layers.

    Raises:
        ValueError: the images are not square; patch or heads does not divide.
    """
    from torchvision.models import VisionTransformer

    sides = (image_size,) if isinstance(image_size, int) else tuple(image_size)
    side = min(sides)
    if side != max(sides):
        raise ValueError(f"images are square, not {'×'.join(map(str, sides))}; put {{NAME: Resize, "
                         f"height: {side}, width: {side}}} first in both lists of transforms")
    heads = max(width // 64, 1) if heads is None else heads
    hidden = int(width * mlp_ratio)
    if min(patch, width, depth, heads, hidden) < 1:
        raise ValueError(f"patch {patch}, width {width}, depth {depth}, heads {heads} and the "
                         f"{hidden} hidden units of mlp_ratio {mlp_ratio} are 1 or more")
    if side % patch:
        raise ValueError(f"patch {patch} does not divide the {side} pixels of the image; set "
                         f"MODEL.patch, to {_nearest_divisor(side, patch)} for example")
    if width % heads:
        raise ValueError(f"heads {heads} does not divide width {width}; set MODEL.heads, to "
                         f"{_nearest_divisor(width, heads)} for example")
    model = VisionTransformer(image_size=side, patch_size=patch, num_layers=depth, num_heads=heads,
                              hidden_dim=width, mlp_dim=hidden, dropout=dropout,
                              num_classes=num_classes)
    if in_channels != 3:
        # Torchvision takes 3 for granted; this is its own way to begin such a layer.
        model.conv_proj = nn.Conv2d(in_channels, width, patch, patch)
        nn.init.trunc_normal_(model.conv_proj.weight, std=math.sqrt(1 / (in_channels * patch**2)))
        nn.init.zeros_(model.conv_proj.bias)
    add_reshape(model)
    return model


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [value for value in range(1, number + 1) if number % value == 0]
    return min(divisors, key=lambda value: abs(value - wanted))
