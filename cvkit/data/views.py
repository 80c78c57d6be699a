"""Test-time augmentation: the views of an image that a model's probabilities are averaged over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import albumentations as A
import numpy as np
import torch
from torch import Tensor

from cvkit.data.images import ImageData
from cvkit.data.normaliser import Normaliser
from cvkit.data.pipeline import Pipeline, build_pipeline
from cvkit.data.transforms import Normalize, height_by_width
from cvkit.errors import ConfigError, located, where_in
from cvkit.registry import NAME, TRANSFORMS
from cvkit.registry.signatures import parameters_of

_DRAWN_AT_ONCE = 1024


class Views:
    """An image as it is, and once more as each transform of TTA makes it.

    What a transform draws depends on SEED and the image's place among all that are shown alone.

    Args:
        pipelines: of what makes each view, and is always applied.
        seed: of what they draw.
    """

    def __init__(self, pipelines: Sequence[Pipeline] = (), seed: int = 0):
        self.pipelines, self._seed = list(pipelines), seed

    def __len__(self) -> int:
        return 1 + len(self.pipelines)

    def of(self, images: Tensor, places: Sequence[int] | np.ndarray,
           normaliser: Normaliser) -> Iterator[Tensor]:
        """Yield the views of a batch, each like `images`: what the model receives.

        Args:
            images: normalised (N, C, H, W).
            places: (N,), of each among all that are shown, from 0; of no use without views.
            normaliser: that made them.
        """
        yield images
        if not self.pipelines:
            return
        pixels, index = normaliser.pixels_of(images), np.asarray(places)
        for number in range(len(self.pipelines)):
            yield normaliser.normalise(self._view(number, pixels, index))

    def _view(self, number: int, pixels: Tensor, index: np.ndarray) -> Tensor:
        """Return what one pipeline makes of images, uint8 (N, H, W, C)."""
        pipeline, made = self.pipelines[number], []
        if not pipeline.unbatched and not pipeline.fixed:
            drawn = self._drawn(number, pixels.shape[1:], index)
            return pipeline.augment_batch(
                pixels, [[values.to(pixels.device) for values in group] for group in drawn])
        for place, image in zip(index.tolist(), pixels.cpu().numpy()):
            pipeline.seed(self._seed, 0, place, number)
            made.append(pipeline(image))
        return torch.from_numpy(np.stack(made)).to(pixels.device)

    def _drawn(self, number: int, shape: Sequence[int], index: np.ndarray) -> list[list[Tensor]]:
        """Return what is drawn for each image: for many at once, whatever batch they are in."""
        blocks, rows = np.unique(index // _DRAWN_AT_ONCE, return_inverse=True)
        chosen = torch.from_numpy(rows * _DRAWN_AT_ONCE + index % _DRAWN_AT_ONCE)
        drawn = [self.pipelines[number].draw(
            self._seed, 0, np.arange(_DRAWN_AT_ONCE) + block * _DRAWN_AT_ONCE, shape, block, number)
            for block in blocks.tolist()]
        return [[torch.cat(values)[chosen] for values in zip(*groups)] for groups in zip(*drawn)]


def build_views(nodes: Sequence[Any], data: ImageData, shape: Sequence[int], seed: int) -> Views:
    """Build the config's TTA, and try it on an image.

    Args:
        nodes: transforms, a view each.
        data: whose mean and classes they may ask for.
        shape: (height, width, channels) of what the model receives, which a view keeps.
        seed: of what they draw.

    Raises:
        ConfigError: a transform is applied by chance only, mixes or normalises images, or returns
            them in another size.
    """
    pipelines, image = [], np.zeros(shape, dtype=np.uint8)
    for node in nodes:
        if node.get("p", 1) != 1:
            raise ConfigError(f"{node[NAME]} of TTA is applied by chance (p {node['p']})",
                              where=where_in(node, "p"),
                              hint="A view is made of each image: leave p out.")
        parts = [_certain(part) for part in _in_a_row(node)]
        pipeline, normalize = build_pipeline(parts, data, where=where_in(node, NAME) or "TTA",
                                             tried_on=[image])
        with located(node, NAME):
            if isinstance(normalize, Normalize):
                raise ConfigError("Normalize makes no view of an image", hint="Leave it out here.")
            if not (pipeline.transforms or pipeline.mixing):
                raise ConfigError(f"{node[NAME]} of TTA has no transforms")
            for transform in pipeline.transforms:
                _apply_always(transform)
            made = pipeline(image).shape
            if made != tuple(shape):
                raise ConfigError(f"{node[NAME]} of TTA makes images of {height_by_width(made)}; "
                                  f"the model takes {height_by_width(shape)} (height×width)",
                                  hint="A view has the size of what TEST_TRANSFORMS make.")
        pipelines.append(pipeline)
    return Views(pipelines, seed)


def _in_a_row(node: Any) -> Iterator[Any]:
    """Yield the transforms that make a view: those of a Sequential one by one."""
    if TRANSFORMS.get(node[NAME], where_in(node, NAME)) is not A.Sequential:
        yield node
        return
    TRANSFORMS.check(node)
    for part in node["transforms"]:
        yield from _in_a_row(part)


def _certain(node: Any) -> Any:
    """Return a node whose transform is always applied."""
    if "p" in parameters_of(TRANSFORMS.get(node[NAME], where_in(node, NAME)))[0]:
        node = node.clone()
        node.defrost()
        node["p"] = 1.0
    return node


def _apply_always(transform: Any) -> None:
    """Let a transform, and those that it applies in a row, be applied whatever their p."""
    transform.p = 1.0
    # Within a OneOf, p says how often each is taken.
    if isinstance(transform, A.Sequential):
        for part in transform.transforms:
            _apply_always(part)
