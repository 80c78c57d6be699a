"""`predictions.npz`: what a model said of each test image."""

from __future__ import annotations

import functools
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cvkit.errors import RunError
from cvkit.runs.checkpoint import moment_of
from cvkit.runs.untrusted import is_text, verify_archive
from cvkit.system.command import command, quoted
from cvkit.system.files import replacing, writing
from cvkit.system.text import cut, escape_controls, in_columns, plural

# Letters of the name of a class in a table.
_LONGEST = 40


@dataclass(frozen=True, repr=False)
class Predictions:
    """What a model said of each test image; the one source of galleries, tables and matrices.

    Attributes:
        index: int64 (N,), place in the test split as the data set has it.
        true, predicted: int64 (N,), class numbers.
        probabilities: float32 (N, C).
        classes: C names.
        epoch: of the checkpoint.
        loss: mean over the images.
        images: their fingerprint, see `ImageSet`; empty where it was not noted.
        batches: of the epoch after that, which the checkpoint had seen; 0 at the end of an epoch.
        metrics: loss, accuracy and those of METRICS, by name.
        models: whose probabilities were averaged.
        out_of_fold: whether other models say something of other images, none of which they were
            trained on.
    """

    index: np.ndarray
    true: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    classes: list[str]
    epoch: int
    loss: float
    images: str = ""
    batches: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    models: int = 1
    out_of_fold: bool = False

    def __repr__(self) -> str:
        images = plural(len(self.true), "image")
        return f"<Predictions of {images}, {100 * self.accuracy:.2f}% right>"

    @property
    def correct(self) -> int:
        return int((self.true == self.predicted).sum())

    @property
    def accuracy(self) -> float:
        """Part of the images that were predicted right, 0 to 1."""
        return self.correct / len(self.true)

    @property
    def place(self) -> str:
        """When in the training its checkpoint was saved, or how many there are, in words."""
        if self.out_of_fold:
            those = "model" if self.models == 1 else f"{self.models} models together"
            return f"of the {those} not trained on each image"
        if self.models > 1:
            return f"of {self.models} models together"
        return moment_of(self.epoch, self.batches)

    def is_of_same_images(self, other: Predictions) -> bool:
        """Tell whether both are of the same images, as far as they note which those are."""
        # Older versions noted no fingerprint.
        are_noted = self.images and other.images
        return (self.classes == other.classes and np.array_equal(self.index, other.index)
                and np.array_equal(self.true, other.true)
                and (not are_noted or self.images == other.images))

    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Return precision, recall and F1 of each class, float64 (C, 3), and its images, (C,).

        As scikit-learn has them, 0 where nothing can be divided by; NaN of a class that no image
        has and none is taken for.
        """
        number = len(self.classes)
        right, told, there = (np.bincount(labels, minlength=number) for labels in (
            self.true[self.true == self.predicted], self.predicted, self.true))
        found = np.stack([right / np.maximum(told, 1), right / np.maximum(there, 1),
                          2 * right / np.maximum(told + there, 1)], axis=1)
        found[told + there == 0] = np.nan
        return found, there

    def table(self) -> str:
        """Return scores of each class and in all as text.

        Those of the classes, and their means, are as in scikit-learn's classification_report; long
        names are cut.
        """
        found, there = self.scores()
        known = ~np.isnan(found[:, 0])
        means = (found[known].mean(0), np.average(found[known], axis=0, weights=there[known]))
        names = [cut(escape_controls(name), _LONGEST) for name in self.classes]
        rows: list[tuple[object, ...]] = [("class", "precision", "recall", "F1", "support")]
        rows += map(_row, names, found, there)
        rows += [("",), *(_row(name, mean, len(self.true)) for name, mean in zip(
            ("macro mean", "weighted mean"), means))]
        lines = in_columns(rows, "<", ">", ">", ">", ">")
        lines += [f"{escape_controls(name)}: {_shown(value)}"
                  for name, value in self.metrics.items() if name not in ("loss", "accuracy")]
        lines.append(test_line(self.loss, self.correct, len(self.true))
                     + f" {self.place}")
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """Write `predictions.npz`, whole or not at all."""
        with writing(path), replacing(path) as file:
            np.savez(file, **{**vars(self), "metrics": json.dumps(self.metrics)})

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read `predictions.npz`.

        Raises:
            RunError: absent, damaged, or not what `save` writes.
        """
        again = write_anew(path)
        if not path.is_file():
            raise RunError(f"no {path}", hint=again)
        try:
            verify_archive(path)
            read = functools.partial(_read_array, path)
            found = cls(read("index"), read("true"), read("predicted"), read("probabilities"),
                        classes=read("classes").tolist(), epoch=int(read("epoch")),
                        loss=float(read("loss")), images=str(read("images")),
                        batches=int(read("batches")), metrics=json.loads(str(read("metrics"))),
                        models=int(read("models")), out_of_fold=bool(read("out_of_fold")))
            found._check()
        # By where it is damaged, zipfile, zlib, NumPy or a look-up fails.
        except Exception as error:
            raise RunError(f"{path} is damaged: {error}", hint=again) from error
        return found

    def _check(self) -> None:
        """Raise ValueError unless all parts fit together."""
        images, number = self.probabilities.shape
        names = self.classes if isinstance(self.classes, list) else []
        if not images or len(names) != number or not all(map(is_text, names)):
            raise ValueError(f"it has {len(names)} names of classes and probabilities of shape "
                             f"{self.probabilities.shape}")
        for name, below in (("index", 2**53), ("true", number), ("predicted", number)):
            values = getattr(self, name)
            if values.shape != (images,) or values.dtype != np.int64:
                raise ValueError(f"{name} is {values.dtype} {values.shape}, not int64 ({images},)")
            if not ((values >= 0) & (values < below)).all():
                raise ValueError(f"{name} has values below 0 or from {below}")
        if not isinstance(self.metrics, dict) or not all(
                is_text(name) and isinstance(value, float) for name, value in self.metrics.items()):
            raise ValueError("metrics are not numbers by name")
        if self.probabilities.dtype != np.float32 or (self.probabilities < 0).any() or (
                self.probabilities > 1.001).any():
            raise ValueError("probabilities are not float32 from 0 to 1")
        for name in ("epoch", "batches"):
            if not 0 <= getattr(self, name) < 2**53:
                raise ValueError(f"{name} is {getattr(self, name)}")


def mean_probabilities(said: Sequence[Predictions],
                       index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of what several say of images, and how many say something of each.

    Args:
        said: each of some of the images, with the same classes.
        index: int64 (N,), sorted, of all of them.

    Returns:
        float32 (N, C), zeros where nothing is said, and int64 (N,).

    Raises:
        ValueError: something is said of another image.
    """
    sums = np.zeros((len(index), len(said[0].classes)))
    times = np.zeros(len(index), dtype=np.int64)
    for each in said:
        rows = np.searchsorted(index, each.index).clip(max=len(index) - 1)
        if not np.array_equal(index[rows], each.index):
            raise ValueError("predictions are of other images")
        sums[rows] += each.probabilities
        times[rows] += 1
    return (sums / np.maximum(times, 1)[:, None]).astype(np.float32), times


def mcnemar(first: Predictions, other: Predictions) -> tuple[int, int, float]:
    """Test whether two models are right equally often on the same images.

    Were they, an image that one alone is right on would be either's by the toss of a coin: the
    exact form of the test of McNemar (Psychometrika 12, 1947), which Dietterich (Neural Computation
    10, 1998) advises where each model is trained once. It knows nothing of other seeds.

    Returns:
        On how many images the first alone is right, on how many the other, and the two-sided p.

    Raises:
        RunError: they are of different images.
    """
    from scipy.stats import binomtest

    if not first.is_of_same_images(other):
        raise RunError("these predictions are of different images")
    is_right, other_is_right = (item.true == item.predicted for item in (first, other))
    only_first = int((is_right & ~other_is_right).sum())
    only_other = int((~is_right & other_is_right).sum())
    discordant = only_first + only_other
    p = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return only_first, only_other, p


def _row(name: str, scores: np.ndarray, images: int) -> tuple[str, ...]:
    return name, *map(_shown, scores), f"{images:,}"


def _shown(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


# Older versions did not write these.
_ADDED = {"images": "", "batches": 0, "metrics": "{}", "models": 1, "out_of_fold": False}


def _read_array(path: Path, name: str) -> np.ndarray:
    """Return an array of an npz, without pickle, once its header claims no more than there is."""
    with zipfile.ZipFile(path) as archive:
        entry = f"{name}.npy"
        if name in _ADDED and entry not in archive.namelist():
            return np.asarray(_ADDED[name])
        with archive.open(entry) as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if math.prod(shape) * dtype.itemsize > archive.getinfo(entry).file_size:
            raise ValueError(f"{name} claims to be {dtype} {shape}, more than the file holds")
        with archive.open(entry) as file:
            return np.lib.format.read_array(file, allow_pickle=False)


def write_anew(path: Path) -> str:
    return f"Write it anew: {command('evaluate')} --run {quoted(path.parent)}"


def test_line(loss: float, correct: int, count: int) -> str:
    """Return the line that users know from PyTorch's examples."""
    return (f"Test set: Average loss: {loss:.4f}, Accuracy: {correct}/{count} "
            f"({100 * correct / count:.2f}%)")
