"""Several runs side by side, and names that tell them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cvkit.config.tree import in_words
from cvkit.data import ImageData
from cvkit.runs.experiment import Drawable
from cvkit.runs.folder import Run
from cvkit.runs.table import Entry, Table


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
        """Return as text what differs in the configs, and the results, a row for each run.

        Raises:
            UserError: a run is not finished, or damaged.
        """
        table = Table([Entry(run.folder, [run]) for run in self.runs])
        if table.left_out:
            raise table.left_out[0]
        return table.text()

    @property
    def data(self) -> ImageData:
        """The images of the first run."""
        return self.runs[0].data


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
    told = {key: [in_words(values.get(key, "default")) for values in settings]
            for key in dict.fromkeys(key for values in settings for key in values)}
    # Those first that tell most of them apart.
    for key, values in sorted(told.items(), key=lambda item: -len(set(item[1]))):
        longer = [f"{word}{', ' if word else ''}{key} {value}"
                  for word, value in zip(words, values)]
        if len(set(values)) > 1:
            is_short = max(map(len, longer)) <= _SHORT
            words, is_all = longer if is_short else words, is_all and is_short
    return words if is_all else [", ".join(filter(None, [word, "…"])) for word in words]
