"""Loss and accuracy of several runs of one config as a mean and a band."""

from __future__ import annotations

import numpy as np

from cvkit.errors import RunError
from cvkit.registry import VISUALIZERS
from cvkit.runs.finding import REPEATED
from cvkit.runs.folder import Run
from cvkit.system.text import plural
from cvkit.visualizers.curves import choose_scale
from cvkit.visualizers.drawing import COLOURS, Picture, styled, whole_numbers, wrap


@VISUALIZERS.register()
@styled
def curve_band(compared: list[Run]) -> Picture:
    """Loss and accuracy over epochs of runs that differ by seed or fold: mean and deviation.

    The line is the mean over the runs, the band reaches one standard deviation to either side, and
    thin lines are the runs.
    """
    _refuse_other_configs(compared)
    histories = [run.metrics for run in compared]
    held_out = compared[0].monitored
    epochs = max(map(len, histories))
    figure = Picture(9, 4.1)
    caption = (f"Mean of {plural(len(compared), 'run')} (line), one standard deviation to either "
               "side (band), each run (thin). " + _at_the_end(compared, held_out))
    if min(map(len, histories)) < epochs:
        caption += " Where some had ended, mean and band are those of the others."
    lines = wrap(caption, 8.8)
    figure.headline(f"Training of {compared[0].config.name}, {len(compared)} times",
                    "\n".join(lines))
    top = 0.75 + 0.13 * len(lines)
    for place, (quantity, scale) in enumerate((("loss", 1), ("accuracy", 100))):
        axes = figure.panel(0.8 + 4.45 * place, top, 3.6, 3.55 - top)
        for name, colour in zip(("train", held_out), COLOURS):
            values = np.full((len(histories), epochs), np.nan)
            for row, history in zip(values, histories):
                row[:len(history)] = [scale * epoch[f"{name}/{quantity}"] for epoch in history]
            # Epochs that a single run came to have no deviation.
            steps = np.flatnonzero((~np.isnan(values)).sum(0) > 1)
            mean = np.nanmean(values[:, steps], axis=0)
            deviation = np.nanstd(values[:, steps], axis=0, ddof=1)
            for row in values:
                axes.plot(np.arange(1, epochs + 1), row, color=colour, linewidth=0.5, alpha=0.5)
            axes.fill_between(steps + 1, mean - deviation, mean + deviation, color=colour,
                              alpha=0.2, linewidth=0)
            axes.plot(steps + 1, mean, color=colour, linewidth=1.8, label=name,
                      marker="." if len(steps) < 3 else None)
        axes.set_title(f"Train and {held_out} {quantity}", loc="left")
        axes.set_xlabel("epoch")
        axes.set_ylabel("accuracy (%)" if quantity == "accuracy" else "loss")
        axes.xaxis.set_major_locator(whole_numbers())
        if quantity == "loss":
            choose_scale([axes])
        axes.legend(loc="best")
    return figure


def _at_the_end(runs: list[Run], held_out: str) -> str:
    values = [100 * run.metrics[-1][f"{held_out}/accuracy"] for run in runs]
    return (f"After the last epoch: {held_out} accuracy {np.mean(values):.2f} ± "
            f"{np.std(values, ddof=1):.2f} %.")


def _refuse_other_configs(runs: list[Run]) -> None:
    first = runs[0].hyperparameters
    for run in runs:
        if not run.metrics:
            raise RunError(f"{run.folder} has no finished epoch, so there are no curves")
        # Each run may look for its rate itself.
        free = REPEATED if not hasattr(run, "range_test") else (*REPEATED, "SCHEDULER.max_lr")
        other = next((key for key, value in {**first, **run.hyperparameters}.items()
                      if key not in free and (first.get(key), run.hyperparameters.get(key))
                      != (value, value)), None)
        if other:
            raise RunError(f"{run.folder} differs from {runs[0].folder} in {other}; a band is of "
                           "runs that differ by seed or fold",
                           hint="Draw them beside each other: --curves")
