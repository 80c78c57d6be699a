"""Groups of runs that differ by their seed, or by the fold that is tested, in one folder.

`OUTPUT_DIR/<config name>/<start time>_seeds/` holds `seed_0/`, `seed_1/` …, each a run folder;
`<start time>_folds/` holds `fold_0/` …, of repeated folds also `repeat_1_fold_0/` …, and the
predictions of all images, each by a model that was not trained on it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from cvkit.data import ImageData
from cvkit.data.build import images_of_folds
from cvkit.errors import RunError
from cvkit.runs.compare import Runs
from cvkit.runs.finding import is_group, members_of
from cvkit.runs.folder import Run
from cvkit.runs.predictions import Predictions, mean_probabilities, write_anew
from cvkit.runs.spread import Spread, known
from cvkit.system.files import user_path
from cvkit.system.text import in_columns, plural


class Group(Runs):
    """The finished runs of a group, which have the same config but for their seed or fold.

    Args:
        folder: of the group.

    Attributes:
        folder: its path.
        unfinished: the names of those of its runs that are not finished.

    Raises:
        RunError: none is finished.
    """

    advice = "Name one of its runs: --run GROUP/seed_0"
    of = "seed"
    has_interval = True

    def __init__(self, folder: str | Path):
        self.folder = user_path(folder)
        members = members_of(self.folder)
        done = [path for path in members if (path / "predictions.npz").is_file()]
        if not done:
            raise RunError(f"no run of {self.folder} is finished")
        super().__init__([Run(path) for path in done])
        self.unfinished = [path.name for path in members if path not in done]
        self.label = f"a group of {self.counted}"

    @property
    def title(self) -> str:
        """The config and what is in the group: "resnet18_digits, 5 seeds"."""
        return f"{self.config.name}, {self.counted}"

    @property
    def counted(self) -> str:
        """How many there are of what: "5 seeds", "3 folds, 2 times"."""
        return plural(len(self.runs), self.of)

    @cached_property
    def values(self) -> dict[str, list[float]]:
        """The result of each run by the name of the metric, accuracy and loss first."""
        found = [{"accuracy": each.accuracy, "loss": each.loss, **each.metrics}
                 for each in (run.predictions for run in self.runs)]
        names = [name for name in found[0] if all(name in each for each in found)]
        return {name: [each[name] for each in found] for name in names}

    def rows(self) -> list[list[str]]:
        """Return in words a head, and for each metric its mean, deviation, interval and ends."""
        rows = [["", "mean ± deviation", "95 % interval of the mean", "lowest", "highest"]]
        for name, values in self.values.items():
            low, high = (Spread.of([pick(known(values))]).in_words(name)[0] for pick in (min, max))
            rows.append([name, *Spread.of(values).in_words(name), low, high])
        return rows if self.has_interval else [[*row[:2], *row[3:]] for row in rows]

    def summary(self) -> str:
        """Return `rows` as text."""
        return "\n".join(in_columns(self.rows(), "<", ">", ">", ">", ">"))


class Folds(Group):
    """The runs of a cross-validation, in which each image is tested by the fold it belongs to."""

    advice = "Name one of its runs: --run GROUP/fold_0"
    of = "fold"
    # Trained on much the same images, folds are no independent sample of which there were one
    # (Bengio & Grandvalet, 2004).
    has_interval = False

    @property
    def counted(self) -> str:
        repeats = len({run.config.DATA.FOLD_REPEAT for run in self.runs})
        words = plural(-(-len(self.runs) // repeats), self.of)
        return words if repeats == 1 else f"{words}, {repeats} times"

    @cached_property
    def predictions(self) -> Predictions:
        """What is said of each image by the model that was not trained on it.

        Of repeated folds the mean of the probabilities.

        Raises:
            RunError: not all folds are finished, or some were trained on since.
        """
        path = self.folder / "predictions.npz"
        said, of_runs = Predictions.load(path), [run.predictions for run in self.runs]
        try:
            means, _ = mean_probabilities(of_runs, said.index)
            is_of_runs = np.allclose(means, said.probabilities, atol=1e-6)
        except ValueError:
            is_of_runs = False
        if not is_of_runs:
            raise RunError(f"{path} is not of these runs", hint=write_anew(path))
        return said

    @cached_property
    def data(self) -> ImageData:
        """The images, all that are in any fold as the test split."""
        data = self.runs[0].data
        return replace(data, test=images_of_folds(data))


def open_group(folder: str | Path) -> Group:
    """Open the folder of a group; raises `RunError` if it is none, or no run is finished."""
    if not is_group(folder):
        raise RunError(f"{folder} is no group of runs")
    is_of_folds = "fold" in members_of(folder)[0].name
    return (Folds if is_of_folds else Group)(folder)
