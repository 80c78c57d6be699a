"""Loss, accuracy and learning rate over a training, of one run or of several."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from cvkit.errors import RunError
from cvkit.registry import VISUALIZERS
from cvkit.runs.compare import run_names
from cvkit.runs.folder import Run
from cvkit.visualizers.drawing import COLOURS, Picture, shorten, styled, whole_numbers


@VISUALIZERS.register()
@styled
def curves(runs: list[Run], layout: Literal["overlaid", "2x2"] = "overlaid") -> Picture:
    """Loss and accuracy of train and test over epochs, the learning rate over steps.

    The epoch that is best by TRAIN.MONITOR is marked. Losses that span more than a factor of
    20 are drawn on a logarithmic scale.

    Args:
        layout: "overlaid" draws train and test into one panel, "2x2" into one each.
    """
    histories = [run.metrics for run in runs]
    for run, history in zip(runs, histories):
        if not history:
            raise RunError(f"{run.folder} has no finished epoch, so there are no curves")
    names = run_names(runs)
    # Two of them stand in a line of the legend.
    labels = [shorten(name, 3.6, 8) for name in names]
    is_2x2 = layout == "2x2"
    height = (7.4 if is_2x2 else 5.4) + 0.17 * max(0, len(runs) - 2)
    figure = Picture(9, height)
    colours: Sequence[Any] = COLOURS
    if len(runs) > len(COLOURS):
        colours = matplotlib.color_sequences["tab20"]
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - 0.36 / height))
    grid = figure.add_gridspec(3 if is_2x2 else 2, 2, height_ratios=[3] * (1 + is_2x2) + [2])
    panels: dict[tuple[str, str], Axes] = {}
    for place, quantity in enumerate(("loss", "accuracy")):
        axes = figure.add_subplot(grid[place, 0] if is_2x2 else grid[0, place])
        panels[quantity, "train"] = axes
        panels[quantity, "held out"] = figure.add_subplot(grid[place, 1]) if is_2x2 else axes
    has_groups = len(runs) == 1 and any(
        len(set(epoch.get("lr_mult", {}).values())) > 1 for epoch in histories[0])
    # Beside the rates of groups there is room for their names.
    places = grid[-1, :].subgridspec(1, 2, width_ratios=[5, 1]) if has_groups else [grid[-1, :]]
    legend_panel = figure.add_subplot(places[1]) if has_groups else None
    rate_panel = figure.add_subplot(places[0])
    for number, (run, history) in enumerate(zip(runs, histories)):
        best, held_out = run.best, run.monitored
        for (quantity, split), axes in panels.items():
            name = held_out if split == "held out" else "train"
            scale = 100 if quantity == "accuracy" else 1
            values = [scale * epoch[f"{name}/{quantity}"] for epoch in history]
            steps = [epoch["epoch"] for epoch in history]
            is_test = split == "held out"
            colour = colours[(number if len(runs) > 1 else int(is_test)) % len(colours)]
            axes.plot(steps, values, "-" if is_test or len(runs) == 1 else "--", color=colour,
                      marker="." if len(steps) < 3 else None, linewidth=1.5,
                      label=name if len(runs) == 1 else f"{labels[number]}, {name}")
            if is_test:
                axes.plot(best["epoch"], scale * best[f"{name}/{quantity}"], "*", color=colour,
                          markersize=10, markeredgecolor="white", label="best")
        rates = [pair for epoch in history for pair in epoch.get("rates", [])]
        if rates and legend_panel is not None:
            _draw_groups(rate_panel, legend_panel, history)
        elif rates:
            rate_panel.plot(*zip(*rates), color=colours[number % len(colours)], linewidth=1.5,
                            marker="." if len(rates) < 3 else None, drawstyle="steps-post")
    held_out = runs[0].monitored if len({run.monitored for run in runs}) == 1 else "held-out"
    for (quantity, split), axes in panels.items():
        what = f"train and {held_out}"
        if is_2x2:
            what = held_out if split == "held out" else "train"
        axes.set_title(f"{what.capitalize()} {quantity}", loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(whole_numbers())
        axes.set_ylabel("accuracy (%)" if quantity == "accuracy" else "loss")
    choose_scale([panels["loss", "train"], panels["loss", "held out"]])
    _share_percentages([panels["accuracy", "train"], panels["accuracy", "held out"]])
    _finish_rates(rate_panel)
    handles = {label: handle for axes in panels.values() for handle, label in zip(
        *axes.get_legend_handles_labels()) if label != "best"}
    star = Line2D([], [], linestyle="", marker="*", markersize=8, color="black")
    figure.legend([*handles.values(), star], [*handles, _best_in_words(runs)],
                  loc="outside lower left", ncols=3 if len(runs) == 1 else 2)
    figure.headline(f"Training of {names[0] if len(runs) == 1 else f'{len(runs)} runs'}", "")
    figure.caption = "; ".join(_describe(run, name) for run, name in zip(runs, names))
    return figure


def _best_in_words(runs: Sequence[Run]) -> str:
    """Return what the stars mark."""
    monitors = {f"{run.monitored} {run.config.TRAIN.MONITOR}" for run in runs}
    by = f" by {monitors.pop()}" if len(monitors) == 1 else ""
    if len(runs) > 1:
        return f"best epoch{by}"
    best, split = runs[0].best, runs[0].monitored
    return (f"best epoch{by}, {best['epoch']}: loss {best[f'{split}/loss']:.4f}, accuracy "
            f"{100 * best[f'{split}/accuracy']:.2f} %")


def _draw_groups(axes: Axes, legend: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw the rate of each group of parameters, those with the same ones as one line."""
    names: dict[tuple[float, ...], list[str]] = {}
    for name in history[-1]["lr_mult"]:
        multipliers = tuple(epoch.get("lr_mult", {}).get(name, 1.0) for epoch in history)
        names.setdefault(multipliers, []).append(name)
    counts = [len(epoch.get("rates", [])) for epoch in history]
    steps, values = map(np.array, zip(*(pair for epoch in history
                                        for pair in epoch.get("rates", []))))
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(names)))
    order = sorted(names, key=lambda multipliers: multipliers[::-1], reverse=True)
    for shade, multipliers in zip(shades, order):
        # Of a stage its own name says enough, without those of what is around it.
        words = shorten(re.sub(r"^(.* in )?([\w.]+\.)?(?=\w+$)", "", names[multipliers][0]), 1.2, 7)
        axes.plot(steps, np.repeat(multipliers, counts) * values, color=shade, linewidth=1.5,
                  marker="." if len(steps) < 3 else None, drawstyle="steps-post",
                  label=f"× {max(multipliers):.3g}: {words}")
    lines, labels = axes.get_legend_handles_labels()
    # Of many, those at the ends and in the middle tell the others.
    shown = sorted({round(place) for place in np.linspace(0, len(lines) - 1, min(len(lines), 6))})
    legend.axis("off")
    legend.legend([lines[place] for place in shown], [labels[place] for place in shown],
                  fontsize=7, loc="center left", borderaxespad=0, frameon=False)


def _finish_rates(axes: Axes) -> None:
    """Label the learning rates; on a logarithmic scale where those of several runs need one."""
    axes.set_title("Learning rate", loc="left")
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(whole_numbers())
    axes.set_ylabel("learning rate")
    axes.set_ylim(bottom=min(0, _range_of([axes])[0]))
    peaks = [values.max() for values in _drawn_in([axes])]
    if peaks and 0 < 10 * min(peaks) < max(peaks):
        axes.set_yscale("log")
        axes.set_ylim(min(peaks) / 1000, 2 * max(peaks))
        axes.set_ylabel("learning rate (log scale)")
        axes.yaxis.set_major_formatter("{x:g}")


def _describe(run: Run, name: str) -> str:
    last, split, best = run.metrics[-1], run.monitored, run.best
    return (f"{name}: train {100 * last['train/accuracy']:.2f} %, {split} "
            f"{100 * last[f'{split}/accuracy']:.2f} % after epoch {last['epoch']}; best by "
            f"{split} {run.config.TRAIN.MONITOR} in epoch {best['epoch']}, "
            f"accuracy {100 * best[f'{split}/accuracy']:.2f} %")


def _range_of(panels: Sequence[Axes]) -> tuple[float, float]:
    """Return the lowest and the highest value that is drawn in any of the panels."""
    values = np.concatenate([np.zeros(0), *_drawn_in(panels)])
    values = values[np.isfinite(values)]
    return (values.min(), values.max()) if len(values) else (0, 1)


def _drawn_in(panels: Sequence[Axes]) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata(), float) for axes in panels for line in axes.lines]


def _share_percentages(panels: Sequence[Axes]) -> None:
    """Give accuracies one scale, of no tick below 0 or above 100 %."""
    low, high = _range_of(panels)
    margin = 0.05 * (high - low) or 1
    for axes in panels:
        axes.set_ylim(max(low - margin, -2), min(high + margin, 102))


def choose_scale(panels: Sequence[Axes]) -> None:
    """Give losses one scale, a logarithmic one where a linear one would flatten them."""
    low, high = _range_of(panels)
    is_log = needs_log(low, high)
    margin = 0.05 * (high - low) or 0.1
    for axes in panels:
        if is_log:
            set_log_scale(axes)
            axes.set_ylabel("loss (log scale)")
        axes.set_ylim(*((low / 1.2, high * 1.2) if is_log else (low - margin, high + margin)))


def needs_log(low: float, high: float) -> bool:
    """Tell whether a linear scale would flatten losses between these."""
    return low > 0 and high > 20 * low


def _short(value: float, place: float) -> str:
    """Return the label of a tick, 1e5 of what would reach into the axis' own."""
    return f"{value:g}" if value < 1e5 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def set_log_scale(axes: Axes) -> None:
    """Give what is drawn a logarithmic axis of values, with plain numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e4 * low else (1,)))
    axes.yaxis.set_major_formatter(_short)
    axes.yaxis.set_minor_formatter(NullFormatter())
