"""Whether class activation maps show what the model uses: curves, ROAD, and a sanity check."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import nn

from cvkit.data import Loaders
from cvkit.models.feature_maps import choose_layers
from cvkit.registry import VISUALIZERS
from cvkit.runs.predictions import Predictions
from cvkit.system.text import in_columns, plural
from cvkit.visualizers.cam_maps import Method
from cvkit.visualizers.cam_measures import (
    BASELINE,
    DRAWS,
    KEPT,
    PARTS,
    ROAD_PERCENTILES,
    Faithfulness,
    is_clear,
    measure_all,
)
from cvkit.visualizers.drawing import (
    COLOURS,
    FAINT,
    Picture,
    as_csv,
    images_of,
    refuse_below_one,
    styled,
    wrap,
)


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
    rows, images = images_of(loaders.test, predictions, rows)
    (name, (height, width)), = choose_layers(model, images[:1], layer).items()
    found, steps = measure_all(model, images, predictions.predicted[rows], name,
                                list(dict.fromkeys([*map(str, methods), BASELINE])), seed)
    right = int((predictions.predicted[rows] == predictions.true[rows]).sum())
    caption = (f"{len(rows)} of {plural(total, 'test image')} at random ({right} right, "
               f"{len(rows) - right} wrong), each with the map of its predicted class at {name} "
               f"({height}×{width} pixels). {' '.join(verdict(found))}")
    figure = _draw(found, steps, caption)
    figure.table = _table(found, steps)
    figure.csv = as_csv(("measure", "method", "at", "mean", "standard_error"), _rows(found, steps))
    return figure


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
             f"Flagged, as the maps correlate by more than {KEPT} with those of random weights:"),
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
    # Where ROAD finds little, labels are long: −0.0075.
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
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
    axes.axhspan(KEPT, 1.06, color=COLOURS[4], alpha=0.12, linewidth=0)
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
        f"clearly above chance: the images' gains over {BASELINE}, the mean of {DRAWS} draws, by "
        "a one-sided t-test at 5 %, and ROAD above half a point",
        "kept: mean rank correlation of maps before and after so many layers, from the head, were "
        "made random",
        f"flagged: above {KEPT} when all are random"])


def _rows(found: Mapping[str, Faithfulness], steps: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    """Yield all means for a spreadsheet."""
    for method, one in found.items():
        for curve in ("deletion", "insertion"):
            for part, values in zip(PARTS, getattr(one, curve)):
                yield curve, method, f"{part}%", float(values.mean()), _error(values)
            yield f"{curve}_area", method, "", one.area(curve), ""
        yield "road", method, "", float(one.road.mean()), _error(one.road)
        for layers, value in zip(steps, one.correlations()):
            yield "rank_correlation", method, f"{layers} random layers", float(value), ""
