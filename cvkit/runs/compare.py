"""Several runs side by side."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from cvkit.config.tree import in_words
from cvkit.data import ImageData
from cvkit.models import parameters_in_words
from cvkit.runs.experiment import Drawable
from cvkit.runs.folder import Run
from cvkit.system.text import duration, escape_controls, in_columns


class Runs(Drawable):
    """Several runs, to be compared.

    Args:
        runs: two or more.
    """

    label, advice = "a set of runs", "Draw it for one run at a time."

    def __init__(self, runs: Sequence[Run]):
        self.runs = self.compared = list(runs)
        self.config = self.runs[0].config

    @property
    def names(self) -> list[str]:
        """Names that tell the runs apart, see `run_names`."""
        return run_names(self.runs)

    def table(self) -> str:
        """Return as text what differs in the configs, and the results, a column for each run."""
        results = list(map(_results_of, self.runs))
        rows = [["", *self.names], ["-- config, where it differs"], *self._differences(),
                ["-- results"], *([title, *(column[title] for column in results)]
                                  for title in results[0])]
        lines = rows[:1]
        # A long value goes on in the next line.
        for row in rows[1:]:
            parts = [textwrap.wrap(escape_controls(cell), 44) or [""] for cell in row]
            lines += [list(line) for line in zip_longest(*parts, fillvalue="")]
        return "\n".join(in_columns(lines))

    def _differences(self) -> list[list[str]]:
        flat = [run.config.flat() for run in self.runs]
        keys = dict.fromkeys(key for values in flat for key in values)
        rows = [[key, *(in_words(values[key]) if key in values else "–" for values in flat)]
                for key in keys
                if key.split(".")[0] not in ("VISUALIZERS", "WRITERS", "REQUIRE", "OUTPUT_DIR")
                and len({in_words(values.get(key)) for values in flat}) > 1]
        return rows or [["nothing", *[""] * len(self.runs)]]

    @property
    def data(self) -> ImageData:
        """The images of the first run."""
        return self.runs[0].data


def _results_of(run: Run) -> dict[str, str]:
    """Return what a run came to, in words by title."""
    predictions, best, last = run.predictions, run.best, run.metrics[-1]
    speeds = [epoch["images_per_second"] for epoch in run.metrics]
    tested, trained = f"({predictions.place})", f"(epoch {last['epoch']})"
    return {
        "test accuracy": f"{100 * predictions.accuracy:.2f} % {tested}",
        "test loss": f"{predictions.loss:.4f} {tested}",
        "accuracy of best.pt": f"{100 * best[f'{run.monitored}/accuracy']:.2f} % "
                               f"({run.monitored}, epoch {best['epoch']})",
        "train accuracy": f"{100 * last['train/accuracy']:.2f} % {trained}",
        "train loss": f"{last['train/loss']:.4f} {trained}",
        "epochs": str(len(speeds)),
        "training time": duration(run.seconds),
        "images per second": f"{statistics.mean(speeds):,.0f}",
        "parameters": parameters_in_words(run.checkpoint().build_model(), unit="")}


# A run's name has at most so many characters of settings.
_SHORT = 40


def run_names(runs: Sequence[Run]) -> list[str]:
    """Return names that tell runs apart: "resnet18 (MODEL.norm layer)".

    The names of their configs; of runs with the same config also what was set differently, as far
    as that is short; their start times where all that is the same.
    """
    names = [run.config.name for run in runs]
    for name in {name for name in names if names.count(name) > 1}:
        same = [place for place, run in enumerate(runs) if run.config.name == name]
        settings = _short_settings([runs[place].hyperparameters for place in same])
        times = [runs[place].folder.resolve().name for place in same]
        for place, setting, time in zip(same, settings, times):
            parts = [setting, "" if settings.count(setting) == 1 else time]
            names[place] = f"{name} ({', '.join(filter(None, parts))})"
    return names if len(set(names)) == len(runs) else [str(run.folder) for run in runs]


def _short_settings(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each of several configs in words what differs; "…" stands for what is long."""
    words, is_all = [""] * len(settings), True
    for key in dict.fromkeys(key for values in settings for key in values):
        values = [in_words(values.get(key, "default")) for values in settings]
        longer = [f"{word}{', ' if word else ''}{key} {value}"
                  for word, value in zip(words, values)]
        if len(set(values)) > 1:
            is_short = max(map(len, longer)) <= _SHORT
            words, is_all = longer if is_short else words, is_all and is_short
    return words if is_all else [", ".join(filter(None, [word, "…"])) for word in words]
