"""Whether class activation maps show what the model uses: curves, ROAD, and a sanity check."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from scipy import stats
from scipy.integrate import trapezoid
from torch import Tensor, nn

from cvkit.data import Loaders
from cvkit.models.feature_maps import choose_layers, frozen_copy
from cvkit.registry import VISUALIZERS
from cvkit.runs.predictions import Predictions
from cvkit.system.log import ProgressBar
from cvkit.system.seeds import random_numbers_kept, seed_random_numbers
from cvkit.system.text import in_columns, plural
from cvkit.visualizers.cam import is_empty, scaled_alone
from cvkit.visualizers.cam_maps import Method, cam_maps
from cvkit.visualizers.drawing import (
    COLOURS,
    FAINT,
    Picture,
    positions_of,
    refuse_below_one,
    styled,
    wrap,
)

# What all methods are compared with: the layer's channels, added with random weights. A single
# draw of those may be good or bad by chance, so curves and ROAD are means over several.
BASELINE = "RandomCAM"
_DRAWS = 3
# Per cent of the pixels that are removed, or added back.
PARTS = tuple(range(0, 101, 10))
# Per cent of the pixels that ROAD keeps; filling in the others takes most of the time.
ROAD_PERCENTILES = (20, 40, 60, 80)
# A map that agrees more than this with one of random weights says little of what was learned.
_KEPT = 0.5
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
        """Whether ROAD is clearly above that of chance (N,), and above 0, as of random pixels."""
        return is_clear(self.road - chance) and bool(self.road.mean() > 0)

    @property
    def is_flagged(self) -> bool:
        """Whether the map stays much the same when all weights are random."""
        return bool(self.correlations()[-1] > _KEPT)


@VISUALIZERS.register()
@styled
def cam_faithfulness(predictions: Predictions, model: nn.Module, loaders: Loaders, count: int = 20,
                     methods: Sequence[Method] = ("GradCAM", "GradCAMPlusPlus", "LayerCAM",
                                                  "EigenCAM", "RandomCAM"),
                     layer: str = "auto", seed: int = 0) -> Picture:
    """Whether the maps show what the model uses: deletion, insertion, ROAD and a sanity check.

    Pixels are removed and added in the order of their relevance (V. Petsiuk et al., RISE, 2018) and
    filled in from their neighbours (Y. Rong et al., ROAD, 2022), both by the grad-cam library. A
    map that stays the same when the weights are made random, from the head downwards, shows the
    image and not the model (J. Adebayo et al., Sanity Checks for Saliency Maps, 2018). Filling in
    takes the time: some seconds for an image of 224×224 pixels and a method.

    Args:
        count: test images, drawn at random, right and wrong; each is explained for its predicted
            class.
        methods: of the grad-cam library; RandomCAM, which all are compared with, always joins them.
        layer: a module's name, or "auto" as of `cam`.
        seed: of the draw, of RandomCAM, and of the random weights.

    Raises:
        ConfigError: there is no such layer, or its map is smaller than 5×5.
    """
    refuse_below_one(count=count)
    total = len(predictions.true)
    rows = np.sort(np.random.default_rng(seed).permutation(total)[:count])
    images = loaders.test.take(positions_of(loaders.test.images, predictions, rows)).images
    (name, (height, width)), = choose_layers(model, images[:1], layer).items()
    found, steps = _measure_all(model, images, predictions.predicted[rows], name,
                                list(dict.fromkeys([*map(str, methods), BASELINE])), seed)
    right = int((predictions.predicted[rows] == predictions.true[rows]).sum())
    caption = (f"{len(rows)} of {plural(total, 'test image')} at random ({right} right, "
               f"{len(rows) - right} wrong), each with the map of its predicted class at {name} "
               f"({height}×{width} pixels). {' '.join(verdict(found))}")
    figure = _draw(found, steps, caption)
    figure.table, figure.csv = _table(found, steps), _csv(found, steps)
    return figure


def _measure_all(model: nn.Module, images: Tensor, labels: np.ndarray, layer: str,
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
        for number in range(1, _DRAWS):
            draws[BASELINE].append(_seeded_maps(model, images, labels, layer, [BASELINE],
                                                seed + number)[BASELINE])
        progress = ProgressBar("Perturb", sum(map(len, draws.values())) * len(images), unit="map",
                               delay=2)
        found = {}
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
        progress.close()
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
    with warnings.catch_warnings():
        # It warns of a constant map and returns NaN.
        warnings.simplefilter("ignore")
        return float(np.nan_to_num(stats.spearmanr(first.ravel(), second.ravel()).statistic))


def is_clear(gains: np.ndarray) -> bool:
    """Whether the mean of images' gains is above 0, by Student's t-test at 5 %, one-sided."""
    if len(gains) < 2:
        return False
    reach = stats.t.ppf(0.95, len(gains) - 1) * gains.std(ddof=1) / math.sqrt(len(gains))
    return bool(gains.mean() > reach)


def verdict(found: Mapping[str, Faithfulness]) -> list[str]:
    """Say in sentences which method is to be trusted most, and which are not, and why."""
    baseline = found[BASELINE].road
    others = {name: one for name, one in found.items() if name != BASELINE}
    better = [name for name, one in others.items() if one.is_above(baseline)]
    trusted = sorted((name for name in better if not others[name].is_flagged),
                     key=lambda name: -others[name].road.mean())
    against = f"{_points(baseline)} of {BASELINE}"
    words = []
    if trusted:
        best, one = trusted[0], others[trusted[0]]
        last = one.correlations()[-1]
        words.append(
            f"{best} is to be trusted most: ROAD finds {_points(one.road)} points of "
            f"probability in what it marks, against {against}"
            + ("." if np.isnan(last) else f", and its maps agree by {last:.2f} with those of "
               "random weights (rank correlation)."))
        near = [name for name in trusted[1:] if not is_clear(one.road - others[name].road)]
        if near:
            words.append(f"{_listed(near)} {'is' if len(near) == 1 else 'are'} not clearly behind.")
    else:
        words.append(f"By {plural(len(baseline), 'image')} no method is to be trusted: none is "
                     "both clearly better than chance and a matter of the learned weights.")
    for names, what in (
            ([f"{name} ({_points(one.road)})" for name, one in others.items()
              if name not in better], f"Not clearly better than chance by ROAD ({against}):"),
            ([f"{name} ({one.correlations()[-1]:.2f})" for name, one in others.items()
              if one.is_flagged],
             f"Flagged, as the maps correlate by more than {_KEPT} with those of random weights:"),
            ([f"{name} ({one.empty} of {len(baseline)})" for name, one in others.items()
              if one.empty], "Empty, with their pixels in a random order, are maps of")):
        if names:
            words.append(f"{what} {_listed(names)}.")
    return words


def _points(road: np.ndarray) -> str:
    """Return a mean of probabilities in points; never "-0.0"."""
    return f"{round(100 * float(road.mean()), 1) + 0.0:.1f}"


def _listed(names: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return how the lines of each method look: no two of 14 share colour and marker."""
    styles = {method: {"color": COLOURS[number % len(COLOURS)], "marker": "os^Dv<>PX*dhp8"[number],
                       "linestyle": ("-", "-.")[number // len(COLOURS)]}
              for number, method in enumerate(name for name in methods if name != BASELINE)}
    return {**styles, BASELINE: {"color": FAINT, "marker": "x", "linestyle": "--"}}


def _draw(found: Mapping[str, Faithfulness], steps: Sequence[int], caption: str) -> Picture:
    """Draw the curves, under them ROAD and the sanity check, and one legend for all."""
    width, styles = 9.6, _styles(list(found))
    words = wrap(caption, width - 0.2)
    rows = -(-len(found) // 5)
    top = 0.5 + 0.13 * len(words) + 0.2 * rows + 0.3
    tall, bars = 2.2, max(2.2, 0.24 * len(found))
    figure = Picture(width, top + tall + 0.9 + bars + 0.65)
    figure.headline("Do the maps show what the model uses?", "\n".join(words))
    areas = {curve: figure.panel(left, top, 3.9, tall)
             for curve, left in (("deletion", 0.75), ("insertion", 5.45))}
    for curve, axes in areas.items():
        for method, one in found.items():
            axes.plot(PARTS, 100 * getattr(one, curve).mean(1), label=method, markersize=4,
                      linewidth=1.3, **styles[method])
        _in_percent(axes, curve)
    lower = top + tall + 0.9
    _draw_road(figure.panel(1.6, lower, 3.05, bars), found, styles)
    _draw_check(figure.panel(5.45, lower, 3.9, bars), found, steps, styles)
    height = figure.get_size_inches()[1]
    figure.legend(*areas["deletion"].get_legend_handles_labels(), ncols=5, loc="upper left",
                  bbox_to_anchor=(0.0, 1 - (top - 0.37 - 0.2 * rows) / height), handlelength=3.2,
                  borderaxespad=0.2)
    return figure


def _in_percent(axes: Axes, curve: str) -> None:
    axes.set_title({"deletion": "Deletion: the lower the better",
                    "insertion": "Insertion: the higher the better"}[curve], loc="left")
    axes.set_xlabel({"deletion": "pixels removed, the most relevant first",
                     "insertion": "pixels added to the blurred image, the most relevant first"}[
                         curve])
    axes.set_ylabel("predicted class's probability")
    axes.set_ylim(-3, 103)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(range(0, 101, 20))
        axis.set_major_formatter(PercentFormatter(100, 0, " %"))


def _draw_road(axes: Axes, found: Mapping[str, Faithfulness],
               styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw a bar for each method, with the standard error of its mean, and a line at chance."""
    places = np.arange(len(found))
    axes.barh(places, [100 * one.road.mean() for one in found.values()], 0.6,
              color=[styles[method]["color"] for method in found],
              xerr=[100 * _error(one.road) for one in found.values()],
              error_kw={"linewidth": 0.9, "ecolor": "black", "capsize": 2})
    axes.axvline(100 * found[BASELINE].road.mean(), color=FAINT, linestyle="--", linewidth=1)
    axes.set_yticks(places, list(found))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_title("ROAD: the higher the better", loc="left")
    axes.set_xlabel("points of probability (lines: standard error)")


def _draw_check(axes: Axes, found: Mapping[str, Faithfulness], steps: Sequence[int],
                styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw how alike the maps stay, over the layers whose weights are random."""
    for method, one in found.items():
        axes.plot(range(len(steps) + 1), [1, *one.correlations()], markersize=4, linewidth=1.3,
                  **styles[method])
    axes.axhspan(_KEPT, 1.06, color=COLOURS[4], alpha=0.12, linewidth=0)
    axes.set_ylim(top=1.06)
    axes.set_xticks(range(len(steps) + 1), ["none", "head", *map(str, steps[1:-1]), *(
        [f"all {steps[-1]}"] if len(steps) > 1 else [])])
    axes.set_title("Sanity check: the lower the better (flagged: ends in the band)", loc="left")
    axes.set_xlabel("layers with random weights, from the head downwards")
    axes.set_ylabel("rank correlation of maps")


def _error(values: np.ndarray) -> float:
    """Return the standard error of a mean; 0 of a single value, which has none."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _table(found: Mapping[str, Faithfulness], steps: Sequence[int]) -> str:
    """Return areas, ROAD and correlations of each method as text."""
    baseline = found[BASELINE].road
    rows: list[Sequence[str]] = [(
        "method", "deletion", "insertion", "ROAD", "±", "clearly above chance",
        *(f"kept, {layers} random" for layers in steps), "flagged")]
    for method, one in found.items():
        clear = "yes" if one.is_above(baseline) else "no"
        rows.append((
            method, f"{one.area('deletion'):.3f}", f"{one.area('insertion'):.3f}",
            f"{100 * one.road.mean():.2f}", f"{100 * _error(one.road):.2f}",
            "–" if method == BASELINE else clear,
            *("–" if np.isnan(value) else f"{value:.2f}" for value in one.correlations()),
            "–" if method == BASELINE else "yes" if one.is_flagged else "no"))
    return "\n".join([
        *in_columns(rows, "<", *">" * (len(rows[0]) - 1)), "",
        "deletion, insertion: area under the curve, 0 to 1; deletion is better low, insertion high",
        f"ROAD: points of probability, (least - most relevant removed first) / 2, mean over "
        f"{', '.join(map(str, ROAD_PERCENTILES))} % of the pixels; ± standard error",
        f"clearly above chance: the images' gains over {BASELINE}, the mean of {_DRAWS} draws, by "
        "a one-sided t-test at 5 %, and ROAD above 0",
        "kept: mean rank correlation of maps before and after so many layers, from the head, were "
        "made random",
        f"flagged: above {_KEPT} when all are random"])


def _csv(found: Mapping[str, Faithfulness], steps: Sequence[int]) -> str:
    """Return all means for a spreadsheet, one a line."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["measure", "method", "at", "mean", "standard_error"])
    for method, one in found.items():
        for curve in ("deletion", "insertion"):
            writer.writerows([curve, method, f"{part}%", values.mean(), _error(values)]
                             for part, values in zip(PARTS, getattr(one, curve)))
            writer.writerow([f"{curve}_area", method, "", one.area(curve), ""])
        writer.writerow(["road", method, "", one.road.mean(), _error(one.road)])
        writer.writerows(["rank_correlation", method, f"{layers} random layers", value, ""]
                         for layers, value in zip(steps, one.correlations()))
    return file.getvalue().rstrip("\n")
