"""Transforms of whole training batches: they mix images, and the classes these count for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cvkit.registry import TRANSFORMS


@dataclass(frozen=True)
class BatchTransform:
    """A function of a normalised training batch, applied on the device that trains.

    Your own registered function returns one to be listed in DATA.TRAIN_TRANSFORMS.

    Args:
        function: from images float32 (N, C, H, W) and labels int64 (N,) to images of the same
            shape and targets float32 (N, num_classes), what each image counts for. Its random
            numbers are torch's of the CPU, seeded for each batch.
        p: part of the batches that it is applied to.
    """

    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"p is above 0 and at most 1, not {self.p}")


@TRANSFORMS.register()
def MixUp(alpha: float = 0.2, p: float = 1.0, num_classes: int | None = None) -> BatchTransform:
    """Blend each image of a batch with another, and their labels likewise (Zhang et al., 2017).

    Torchvision's. One share is drawn for each batch, from Beta(alpha, alpha).

    Args:
        alpha: small values blend little.
        p: part of the batches; those of MixUp and CutMix in one list add up to 1 at most.
    """
    return _mixing("MixUp", alpha, p, num_classes)


@TRANSFORMS.register()
def CutMix(alpha: float = 1.0, p: float = 1.0, num_classes: int | None = None) -> BatchTransform:
    """Replace a box of each image by that of another; labels by area (Yun et al., 2019).

    Torchvision's. One box is drawn for each batch, its share of the area from Beta(alpha, alpha).

    Args:
        alpha: 1 makes every area equally likely.
        p: part of the batches; those of MixUp and CutMix in one list add up to 1 at most.
    """
    return _mixing("CutMix", alpha, p, num_classes)


def _mixing(name: str, alpha: float, p: float, num_classes: int | None) -> BatchTransform:
    """Return the transform that torchvision knows by this name."""
    from torchvision.transforms import v2

    # Torch checks it as well, but no longer once a model was compiled in this process.
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha is above 0 and finite, not {alpha}")
    return BatchTransform(getattr(v2, name)(alpha=float(alpha), num_classes=num_classes), p)


def mix(transforms: Sequence[BatchTransform], images: Tensor, labels: Tensor,
        key: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Apply one of the transforms, or none, by their parts `p`.

    Args:
        images, labels: of the batch.
        key: (SEED, epoch, batch), which alone decides what is drawn.

    Returns:
        The images, and what they count for: the labels, or shares float32 (N, num_classes).
    """
    random = np.random.default_rng([*key, 3])
    drawn = random.random()
    for transform in transforms:
        if drawn < transform.p:
            with torch.random.fork_rng(devices=[]):
                # Forked, so that dropout's stream of random numbers goes on as it was.
                torch.default_generator.manual_seed(int(random.integers(2**63)))
                return transform.function(images, labels)
        drawn -= transform.p
    return images, labels
