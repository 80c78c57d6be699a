"""Pictures of a sweep: its history, each key against the result, all keys at once, what matters."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from cvkit.evaluation.metrics import is_part
from cvkit.registry import NAME
from cvkit.sweep.space import Dimension, short
from cvkit.sweep.study import Sweep
from cvkit.sweep.trials import Progress, original
from cvkit.system.text import plural
from cvkit.visualizers.curves import needs_log, set_log_scale
from cvkit.visualizers.drawing import (
    COLOURS,
    FAINT,
    Picture,
    shorten,
    styled,
    whole_numbers,
    wrap,
)

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

# Fewer complete trials say nothing of what matters.
_ENOUGH = 10
# So many panels stand in a row.
_COLUMNS = 3


def pictures(sweep: Sweep, study: Study) -> list[Picture]:
    """Return the pictures that can be drawn of the trials so far; one at least is complete."""
    progress = Progress.of(study, sweep.trials)
    made = [history(sweep, study, progress), slices(sweep, study, progress)]
    complete = progress.having("complete")
    if len(sweep.space.dimensions) > 1:
        made.append(parallel_coordinates(sweep, study, complete))
    if len(complete) >= _ENOUGH and len({trial.value for trial in complete}) > 1 and len(
            sweep.space.dimensions) > 1:
        # A forest that finds no difference between results says nothing.
        with suppress(RuntimeError):
            made.append(importances(sweep, study, len(complete)))
    return made


def _scale(sweep: Sweep, study: Study, values: Sequence[float]) -> tuple[float, str, bool]:
    """Return what values are multiplied by, the label of their axis, and whether it is log."""
    label = sweep.measure(study)
    if is_part(sweep.base.TRAIN.MONITOR):
        return 100, f"{label} (%)", False
    finite = [value for value in values if math.isfinite(value)]
    # A rate that is far too high gives losses that would press the others flat.
    is_log = study.direction.name == "MINIMIZE" and needs_log(min(finite), max(finite))
    return 1, f"{label} (log scale)" if is_log else label, is_log


def _values(complete: Sequence[FrozenTrial]) -> list[float]:
    return [trial.value for trial in complete if trial.value is not None]


def _titled(width: float, height: float, title: str, caption: str) -> tuple[Picture, float]:
    """Return a picture with headline and caption, and where in inches they end."""
    lines = wrap(caption, width - 0.2)
    top = 0.45 + 0.13 * len(lines)
    figure = Picture(width, height + top)
    figure.headline(title, "\n".join(lines))
    return figure, top


@styled
def history(sweep: Sweep, study: Study, progress: Progress) -> Picture:
    """Draw the value of each trial in their order, and the best up to then."""
    complete = progress.having("complete")
    numbers = [original(trial) for trial in complete]
    cut = [trial for trial in progress.having("pruned") if trial.intermediate_values]
    ends = [trial.intermediate_values[max(trial.intermediate_values)] for trial in cut]
    scale, label, is_log = _scale(sweep, study, [*_values(complete), *ends])
    values = scale * np.array(_values(complete))
    caption = f"{progress.in_words().capitalize()}."
    if cut:
        caption += (" A pruned trial stands at the value of its last epoch. Nothing is drawn of "
                    "those that diverged or failed.")
    figure, top = _titled(9, 3.2, "History", caption)
    axes = figure.panel(0.8, top + 0.1, 8.0, 2.6)
    best = np.minimum if study.direction.name == "MINIMIZE" else np.maximum
    so_far, last = best.accumulate(values), max([*progress.trials, numbers[-1]])
    axes.plot([*numbers, last], [*so_far, so_far[-1]], color=COLOURS[1], drawstyle="steps-post",
              label="best so far")
    axes.plot(numbers, values, "o", color=COLOURS[0], markersize=5, label="complete")
    if cut:
        axes.plot([original(trial) for trial in cut], scale * np.array(ends), "x", color=FAINT,
                  markersize=5, label="pruned")
    if is_log:
        set_log_scale(axes)
    axes.set_xlabel("trial")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(whole_numbers())
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=3)
    return figure


@styled
def slices(sweep: Sweep, study: Study, progress: Progress) -> Picture:
    """Draw the value of complete trials over each key."""
    complete, dimensions = progress.having("complete"), sweep.space.dimensions
    scale, label, is_log = _scale(sweep, study, _values(complete))
    rows = -(-len(dimensions) // _COLUMNS)
    figure, top = _titled(9, 2.9 * rows, "Result by key", (
        f"{plural(len(complete), 'complete trial')}, later ones darker. Other keys differ as well "
        "between the points of a panel."))
    numbers = [original(trial) for trial in complete]
    values = scale * np.array(_values(complete))
    for place, dimension in enumerate(dimensions):
        row, column = divmod(place, _COLUMNS)
        axes = figure.panel(0.8 + 2.95 * column, top + 0.25 + 2.9 * row, 2.15, 2.0)
        positions = _positions(axes, dimension, complete)
        axes.scatter(positions, values, c=numbers, cmap="Blues", s=26, edgecolors=COLOURS[0],
                     linewidths=0.6, vmin=min(numbers) - 0.3 * (max(numbers) - min(numbers) + 1))
        if is_log:
            set_log_scale(axes)
        axes.set_title(shorten(dimension.key, 2.4, 9), loc="left")
        if column == 0:
            axes.set_ylabel(label)
    return figure


def _positions(axes: Axes, dimension: Dimension, trials: Sequence[FrozenTrial]) -> list[Any]:
    """Prepare a horizontal axis for a key; return where on it the trials are."""
    found = [dimension.decoded(trial.params[dimension.key]) for trial in trials]
    if dimension.ends is None:
        listed = list(dimension.values or ())
        axes.set_xticks(range(len(listed)), _names(listed, 2.0 / len(listed)),
                        rotation=0 if len(listed) < 5 else 45)
        axes.set_xlim(-0.5, len(listed) - 0.5)
        return [listed.index(value) for value in found]
    if dimension.is_log:
        axes.set_xscale("log")
        spans = max(found) / min(found)
        axes.xaxis.set_major_locator(MaxNLocator(3) if spans < 10 else LogLocator(
            subs=(1, 2, 5) if spans < 100 else (1,), numticks=5))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif isinstance(dimension.ends[0], int):
        axes.xaxis.set_major_locator(whole_numbers())
    return found


def _names(values: Sequence[Any], inches: float) -> list[str]:
    """Return listed values in words that are no wider; of nodes what they differ in."""
    words = list(map(short, values))
    if all(isinstance(value, Mapping) for value in values):
        keys = [key for key in dict.fromkeys(key for value in values for key in value)
                if len({short(value.get(key)) for value in values}) > 1]
        words = [", ".join(f"{'' if key == NAME else f'{key} '}{short(value[key])}"
                           for key in keys if key in value) for value in values]
    return [shorten(word, max(inches, 0.4), 8) for word in words]


@styled
def parallel_coordinates(sweep: Sweep, study: Study, complete: list[FrozenTrial]) -> Picture:
    """Draw a line for each complete trial through its value of each key, to its result."""
    scale, label, is_log = _scale(sweep, study, _values(complete))
    dimensions = sweep.space.dimensions
    figure, top = _titled(9, 3.6, "All keys", (
        f"A line for each of {plural(len(complete), 'complete trial')}, from key to key to its "
        "result; the darker, the better."))
    axes = figure.panel(0.9, top + 0.35, 7.2, 2.9)
    values = scale * np.array(_values(complete))
    ends = f"{values.min():.4g}", f"{values.max():.4g}"
    values = np.log(values) if is_log else values
    low, high = values.min(), values.max()
    columns = [[_fraction(each, each.decoded(trial.params[each.key])) for trial in complete]
               for each in dimensions]
    columns.append(list((values - low) / (high - low)) if high > low else [0.5] * len(values))
    lines = np.stack([np.broadcast_to(np.arange(len(columns)), (len(complete), len(columns))),
                      np.array(columns).T], axis=2)
    is_lower = study.direction.name == "MINIMIZE"
    # The best are drawn last, over the others.
    order = np.argsort(-values if is_lower else values, kind="stable")
    axes.add_collection(LineCollection(
        list(lines[order]), array=(-values if is_lower else values)[order], cmap="Blues",
        norm=Normalize(*_widened(-high if is_lower else low, -low if is_lower else high)),
        linewidths=1.4))
    for place, dimension in enumerate([*dimensions, None]):
        axes.axvline(place, color="black", linewidth=0.8)
        ticks = (list(zip((0.0, 1.0), ends)) if dimension is None
                 else _ticks(dimension))
        for height, text in ticks:
            axes.text(place + 0.02, height, text, fontsize=8, va="center", ha="left",
                      bbox={"facecolor": "white", "alpha": 0.95, "edgecolor": "none", "pad": 0.5})
    room = 7.2 / len(dimensions)
    names = [f"{shorten(each.key, room, 8)}{' (log)' * each.is_log}" for each in dimensions]
    axes.set_xticks(range(len(columns)), [*names, label])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.set_xlim(0, len(columns) - 1)
    axes.set_ylim(-0.05, 1.05)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.grid(False)
    return figure


def _widened(low: float, high: float) -> tuple[float, float]:
    """Return bounds of colours that leave the palest to nobody."""
    return low - 0.3 * ((high - low) or 1), high


def _fraction(dimension: Dimension, value: Any) -> float:
    """Return where a value lies between the ends of its key, 0 to 1."""
    if dimension.ends is None:
        listed = list(dimension.values or ())
        return listed.index(value) / max(len(listed) - 1, 1) if len(listed) > 1 else 0.5
    low, high = dimension.ends
    if dimension.is_log:
        low, high, value = np.log([low, high, value])
    return float((value - low) / (high - low)) if high > low else 0.5


def _ticks(dimension: Dimension) -> list[tuple[float, str]]:
    values = list((dimension.values if dimension.ends is None else dimension.ends) or ())
    return [(_fraction(dimension, value), name) for value, name in zip(values, _names(values, 1.1))]


@styled
def importances(sweep: Sweep, study: Study, count: int) -> Picture:
    """Draw how much of what results differ by each key explains, by fANOVA (Hutter et al., 2014).

    PED-ANOVA, Optuna's usual, tells the best tenth from the rest, which are one or two trials here.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    names = sorted(found, key=lambda name: found[name])
    figure, top = _titled(9, 0.6 + 0.32 * len(names), "What mattered", (
        f"By fANOVA over {plural(count, 'complete trial')}: what part of the differences between "
        "results each key explains, as a random forest sees it. Of few trials it is a rough guess."
        ))
    axes = figure.panel(2.6, top + 0.1, 6.0, 0.32 * len(names))
    axes.barh(range(len(names)), [found[name] for name in names], color=COLOURS[0], height=0.6)
    for place, name in enumerate(names):
        axes.text(found[name] + 0.01, place, f"{found[name]:.2f}", fontsize=8, va="center")
    axes.set_yticks(range(len(names)), [shorten(name, 2.4, 8) for name in names])
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("importance")
    axes.grid(axis="y", visible=False)
    return figure


