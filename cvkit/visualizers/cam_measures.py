"""How far class activation maps show what a model uses: curves, ROAD, and a sanity check."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from cvkit.models.feature_maps import frozen_copy
from cvkit.system.log import ProgressBar
from cvkit.system.seeds import random_numbers_kept, seed_random_numbers
from cvkit.visualizers.cam import is_empty, scaled_alone
from cvkit.visualizers.cam_maps import cam_maps

# What all methods are compared with: the layer's channels, added with random weights. A single
# draw of those may be good or bad by chance, so curves and ROAD are means over several.
BASELINE = "RandomCAM"
DRAWS = 3
# Per cent of the pixels that are removed, or added back.
PARTS = tuple(range(0, 101, 10))
# Per cent of the pixels that ROAD keeps; filling in the others takes most of the time.
ROAD_PERCENTILES = (20, 40, 60, 80)
# A map that agrees more than this with one of random weights says little of what was learned.
KEPT = 0.5
# A method that finds less probability than this in its pixels, as of a model that says the same of
# all images, finds nothing.
_MATTERS = 0.005
# Steps below the head in which the weights become random.
_STEPS = 4
# Images of a forward pass.
_BATCH = 64


@dataclass(frozen=True)
class Faithfulness:
    """What was measured of the maps of one method, of N images.

    Attributes:
        deletion, insertion: (len(PARTS), N), the probability of the predicted class while the most
            relevant pixels are removed from the image, or added to a blurred one.
        road: (N,), ROAD: half of how much more probability goes with the most relevant pixels
            than with the least relevant ones.
        kept: (steps, N), rank correlation of the map and that of a model whose weights are random
            that far down; NaN where the map is empty.
    """

    deletion: np.ndarray
    insertion: np.ndarray
    road: np.ndarray
    kept: np.ndarray

    def area(self, curve: str) -> float:
        """Return the mean area under the "deletion" or "insertion" curve, 0 to 1."""
        from scipy.integrate import trapezoid

        return float(trapezoid(getattr(self, curve).mean(1), np.divide(PARTS, 100)))

    def correlations(self) -> np.ndarray:
        """Return the mean correlation at each step; NaN where every map is empty."""
        are_there = ~np.isnan(self.kept)
        return np.where(are_there.any(1), np.nansum(self.kept, 1) / np.maximum(
            are_there.sum(1), 1), np.nan)

    @property
    def empty(self) -> int:
        """How many of the maps say nothing."""
        return int(np.isnan(self.kept[0]).sum())

    def is_above(self, chance: np.ndarray) -> bool:
        """Whether ROAD is clearly above that of chance (N,), and as of pixels that matter."""
        return is_clear(self.road - chance) and bool(self.road.mean() > _MATTERS)

    @property
    def is_flagged(self) -> bool:
        """Whether the map stays much the same when all weights are random."""
        return bool(self.correlations()[-1] > KEPT)


def measure_all(model: nn.Module, images: Tensor, labels: np.ndarray, layer: str,
                 methods: list[str], seed: int) -> tuple[dict[str, Faithfulness], list[int]]:
    """Return what was measured of each method, and how many layers were random at each step."""
    model, images = frozen_copy(model), images.float()
    size = images.shape[2], images.shape[3]
    with random_numbers_kept(images.device):
        maps = _seeded_maps(model, images, labels, layer, methods, seed)
        kept: dict[str, list[list[float]]] = {method: [] for method in methods}
        steps = []
        for layers, randomised in _cascade(model, images, seed):
            steps.append(layers)
            others = _seeded_maps(randomised, images, labels, layer, methods, seed)
            for method in methods:
                kept[method].append(list(map(correlation, maps[method], others[method])))
        draws = {method: [maps[method]] for method in methods}
        for number in range(1, DRAWS):
            draws[BASELINE].append(_seeded_maps(model, images, labels, layer, [BASELINE],
                                                seed + number)[BASELINE])
        found = {}
        total = sum(map(len, draws.values())) * len(images)
        with ProgressBar("Perturb", total, unit="map", delay=2) as progress:
            for method, several in draws.items():
                parts: list[list[np.ndarray]] = []
                for start in range(0, len(images), _BATCH):
                    here, measured = slice(start, start + _BATCH), []
                    for values in several:
                        order = relevance(values[here], size, seed + start)
                        # ROAD adds noise to what it fills in.
                        seed_random_numbers(seed, start)
                        measured.append(_measure(model, images[here], order, labels[here]))
                        if progress.step(len(order)):
                            progress.update()
                    parts.append([np.mean(quantity, axis=0) for quantity in zip(*measured)])
                deletion, insertion, road = (np.concatenate(part, -1) for part in zip(*parts))
                found[method] = Faithfulness(deletion, insertion, road, np.array(kept[method]))
    return found, steps


def _seeded_maps(model: nn.Module, images: Tensor, labels: np.ndarray, layer: str,
                 methods: list[str], seed: int) -> dict[str, np.ndarray]:
    """Return the maps (N, h, w) of each method; RandomCAM draws the same weights each time."""
    seed_random_numbers(seed)
    maps = cam_maps(model, images, [labels], [layer], methods, _BATCH)
    return {method: maps[layer, method][0] for method in methods}


def relevance(maps: np.ndarray, size: tuple[int, int], seed: int) -> np.ndarray:
    """Return the order of pixels by maps (N, h, w): float32 (N, *size), 0 for the least relevant.

    Pixels of one value are in a random order, the same for every method. The library removes all
    above a percentile: of a map that is 0 in most places it would remove those all at once, and
    ROAD cannot fill in an image that has no pixel left.
    """
    random = np.random.default_rng(seed)
    places = np.linspace(0, 1, math.prod(size), dtype=np.float32)
    found = np.empty((len(maps), *size), np.float32)
    for order, values in zip(found, maps):
        large = scaled_alone(values, size).ravel()
        order.ravel()[np.lexsort((random.random(large.size), large))] = places
    return found


def _measure(model: nn.Module, images: Tensor, order: np.ndarray,
             labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the deletion and the insertion curves (len(PARTS), N), and ROAD (N,).

    All by the grad-cam library, which removes what is above, or below, a percentile of a map.
    """
    from pytorch_grad_cam.metrics.cam_mult_image import multiply_tensor_with_cam
    from pytorch_grad_cam.metrics.perturbation_confidence import (
        PerturbationConfidenceMetric,
        RemoveLeastRelevantFirst,
        RemoveMostRelevantFirst,
    )
    from pytorch_grad_cam.metrics.road import ROADCombined
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    targets = [ClassifierOutputSoftmaxTarget(int(label)) for label in labels]

    def probability(perturbation: Any) -> np.ndarray:
        return PerturbationConfidenceMetric(perturbation)(images, order, targets, model,
                                                          return_diff=False)

    whole = probability(lambda image, _: image)
    # Of normalised pixels 0 is the mean colour.
    deletion = [whole, *(probability(RemoveMostRelevantFirst(
        100 - part, multiply_tensor_with_cam)) for part in PARTS[1:])]
    insertion = [*(probability(RemoveLeastRelevantFirst(part, blurred_outside))
                   for part in PARTS[:-1]), whole]
    road = ROADCombined(list(ROAD_PERCENTILES))(images, order, targets, model)
    return np.array(deletion), np.array(insertion), road


def blurred_outside(image: Tensor, mask: Tensor) -> Tensor:
    """Return an image (C, H, W) that is blurred where a mask (H, W) is 0, for the library.

    The blur, an eighth of the shorter side wide, leaves colours and no shapes.
    """
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    blurred = cv2.GaussianBlur(pixels, (0, 0), min(pixels.shape[:2]) / 8).reshape(pixels.shape)
    return torch.where(mask > 0, image, torch.from_numpy(blurred).permute(2, 0, 1))


def _cascade(model: nn.Module, images: Tensor, seed: int) -> Iterator[tuple[int, nn.Module]]:
    """Yield how many layers have random weights, from the head downwards, and such a model.

    The head comes first, then ever more of the layers before it, until all are random. Batch norms
    among them have the statistics of the images, without which a deep network's signal would
    vanish, and any map with it.
    """
    model = frozen_copy(model)
    layers = [module for module in model.modules()
              if next(module.parameters(recurse=False), None) is not None][::-1]
    done = 0
    for end in np.unique(np.linspace(1, len(layers), _STEPS + 1).round().astype(int)).tolist():
        seed_random_numbers(seed, end)
        for layer in layers[done:end]:
            _randomise(layer)
        done = end
        _measure_norms(model, layers[:end], images[:_BATCH])
        yield end, model


@torch.no_grad()
def _randomise(layer: nn.Module) -> None:
    """Begin a layer's own weights anew, or, where it does not say how, draw them like they are."""
    begin = getattr(layer, "reset_parameters", None)
    if begin:
        begin()
        return
    for weight in layer.parameters(recurse=False):
        weight.normal_(weight.mean().item(), weight.std(correction=0).item())


@torch.no_grad()
def _measure_norms(model: nn.Module, layers: Sequence[nn.Module], images: Tensor) -> None:
    """Give those of the layers that are batch norms the statistics of these images."""
    norms = [layer for layer in layers if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        # The mean over all batches, of which there is one.
        norm.momentum = None
        norm.train()
    # One image alone may have a single value for each channel, which has no deviation.
    model(torch.cat([images, images.flip(-1)]))
    model.eval()


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's rank correlation of two maps (h, w).

    It is NaN where the first map is empty, and 0 where only the second one is.
    """
    if is_empty(first):
        return math.nan
    from scipy.stats import spearmanr

    with warnings.catch_warnings():
        # It warns of a constant map and returns NaN.
        warnings.simplefilter("ignore")
        return float(np.nan_to_num(spearmanr(first.ravel(), second.ravel()).statistic))


def is_clear(gains: np.ndarray) -> bool:
    """Whether the mean of images' gains is above 0, by Student's t-test at 5 %, one-sided."""
    if len(gains) < 2:
        return False
    from scipy.stats import t

    reach = t.ppf(0.95, len(gains) - 1) * gains.std(ddof=1) / math.sqrt(len(gains))
    return bool(gains.mean() > reach)
