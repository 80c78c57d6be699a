"""Results that are kept: what a run came to in a small file, and tables of many in a page."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cvkit.config import SCHEMA, Config, read_config
from cvkit.config.tree import NAME, in_words
from cvkit.data.assembly import PLACES
from cvkit.errors import RunError, UserError
from cvkit.runs.folder import MAY_CHANGE, Run, is_among
from cvkit.runs.metrics_file import epoch_of
from cvkit.system.command import command
from cvkit.system.files import write_whole, writing
from cvkit.system.saving import with_each
from cvkit.system.text import duration, escape_controls

# Runs whose figures stand together may differ in these: the seed, and which copy of the data.
_FREE = (*MAY_CHANGE, "SEED", "DATA.DATASET")
_VERSIONS = ("python", "cvkit", "torch", "torchvision", "albumentations", "numpy")
# No table and no curve needs these of an epoch.
_LEFT_OUT = ("rates", "lower_is_better", "images_per_second")
CURVES = "curves.png"
# A block of a page is filled with tables.
BLOCK = re.compile(r"(<!-- results of (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def content_of(run: Run, note: str = "") -> dict[str, Any]:
    """Return what is kept of a run.

    That is the config, versions and hardware, the metrics of every epoch, and the confusion matrix
    of the test images and their accuracy by class.

    Args:
        note: what else a reader has to know, "on a JPEG copy of CIFAR-10" for example.

    Raises:
        RunError: the run has no finished epoch or no predictions.
    """
    name, seed, found = run.config.name, run.config.SEED, run.predictions
    if not run.metrics:
        raise RunError(f"{run.folder} has no finished epoch, so there is no result to keep")
    confusion = np.zeros((len(found.classes),) * 2, dtype=int)
    np.add.at(confusion, (found.true, found.predicted), 1)
    by_class = {title: row[number] / row.sum() if row.any() else math.nan
                for number, (title, row) in enumerate(zip(found.classes, confusion))}
    log = _labelled(run, "train.log", r"(\w+) {2,}(.+)")
    environment = _labelled(run, "environment.txt", r"([\w-]+): (.+)")
    begun = _labelled(run, "train.log", r"(cvkit) .* (\d{4}-\d\d-\d\d) [\d:]+")
    return {
        "name": name, "seed": seed, "note": note, "date": begun.get("cvkit", ""),
        "data": log.get("data", ""), "device": log.get("device", ""),
        "versions": {part: environment.get(part, "") for part in _VERSIONS},
        "git": environment.get("git", ""), "images": found.images,
        "config": _config_of(run).dump(), "seconds": run.seconds,
        "epochs": [{part: value for part, value in epoch.items() if part not in _LEFT_OUT}
                   for epoch in run.metrics],
        "test": {"epoch": found.epoch, "images": len(found.true), "accuracy": found.accuracy,
                 "loss": found.loss},
        "accuracy by class": by_class, "confusion": confusion.tolist()}


def write(content: dict[str, Any], path: Path) -> tuple[Path, str]:
    """Write what is kept of a run; return the file, and the day of another run that was in it.

    Args:
        path: the file; or a folder, where it is named after the config, and the seed unless 0, with
            a number if that is what another recipe of the config came to, or on other images.

    Raises:
        RunError: it cannot be written.
    """
    replaced = ""
    with writing(path):
        if path.suffix != ".json":
            path = _place_in(path, content)
        path.parent.mkdir(parents=True, exist_ok=True)
    # What cannot be read is no result that would be lost.
    with suppress(RunError):
        before = _read(path)
        if (before["date"], before["seconds"]) != (content["date"], _rounded(content["seconds"])):
            replaced = before["date"]
    write_whole(path, _as_json(content))
    return path, replaced


def _place_in(folder: Path, content: dict[str, Any]) -> Path:
    """Return the file of a result in a folder: that of the same settings and seed, or a new one."""
    for path in sorted(folder.glob("*.json")):
        # Another one that cannot be read is told of when the page is written.
        with suppress(RunError):
            kept = _read(path)
            # Older ones do not say of which images they are.
            images = {each.get("images", "") for each in (kept, content)} - {""}
            if (kept["seed"], _key(kept)) == (content["seed"], _key(content)) and len(images) < 2:
                return path
    seed = f"_seed{content['seed']}" if content["seed"] else ""
    names = (folder / f"{content['name']}{seed}{f'_{number}' if number > 1 else ''}.json"
             for number in itertools.count(1))
    return next(path for path in names if not path.exists())


def _config_of(run: Run) -> Config:
    """Return the config without the paths of the machine that it ran on."""
    config = run.config.clone()
    config.defrost()
    config.OUTPUT_DIR = SCHEMA["OUTPUT_DIR"].default
    node = config.DATA.DATASET
    for key in set(PLACES.values()) & set(node):
        node[key] = node[key] and Path(node[key]).name
    return config


def _labelled(run: Run, name: str, pattern: str) -> dict[str, str]:
    """Return what stands after each label in a file of the run, the first time it does."""
    path = run.folder / name
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.findall(f"^{pattern}$", text, re.MULTILINE)
    return {label: escape_controls(text) for label, text in reversed(found)}


def _as_json(content: Mapping[str, Any]) -> str:
    """Return JSON with a line for each epoch and each row of the matrix; NaN is null."""
    def line(value: Any) -> str:
        return json.dumps(with_each(value, _rounded), ensure_ascii=False, allow_nan=False)

    lines = []
    for key, value in content.items():
        text = line(value)
        if isinstance(value, list):
            text = "[\n  " + ",\n  ".join(map(line, value)) + "\n ]"
        lines.append(f" {line(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    # Figures, not decimal places: a learning rate may be tiny.
    return float(f"{value:.7g}") if math.isfinite(value) else None


@dataclass(frozen=True)
class Result:
    """What the runs of a config came to; they differ in their seed alone.

    Args:
        contents: of their files, by seed.
    """

    contents: list[dict[str, Any]]

    @cached_property
    def config(self) -> Config:
        """The first one's."""
        return read_config(self.contents[0]["config"], self.name, self.name)

    @property
    def name(self) -> str:
        """Of the config."""
        return self.contents[0]["name"]

    @property
    def settings(self) -> dict[str, Any]:
        """All that the runs have in common, by dotted key."""
        return settings_of(self.config)

    @property
    def accuracy(self) -> float:
        """Test accuracy, 0 to 1, the mean of the runs."""
        return statistics.mean(content["test"]["accuracy"] for content in self.contents)

    @property
    def split(self) -> str:
        """What was evaluated after each epoch, "val" or "test"."""
        return "val" if "val/accuracy" in self.contents[0]["epochs"][0] else "test"

    @property
    def curve(self) -> list[float]:
        """Accuracy on `split` after each epoch, the mean of the runs.

        One that ended before the others keeps what it had at its end.
        """
        longest = max(map(len, self._curves))
        return [statistics.mean(curve[min(place, len(curve) - 1)] for curve in self._curves)
                for place in range(longest)]

    @property
    def _curves(self) -> list[list[float]]:
        return [[epoch[f"{self.split}/accuracy"] for epoch in content["epochs"]]
                for content in self.contents]

    @property
    def length(self) -> str:
        """How many epochs were trained, in words."""
        lengths = sorted(set(map(len, self._curves)))
        return " to ".join(str(length) for length in dict.fromkeys((lengths[0], lengths[-1])))

    @property
    def test(self) -> str:
        """Test accuracy in words, with the deviation of several seeds."""
        return self._percent(content["test"]["accuracy"] for content in self.contents)

    @property
    def by_views(self) -> str:
        """Whether the test averaged over views, in words; the epochs' accuracies never are."""
        return " with TTA" if self.settings.get("TTA") else ""

    @property
    def train(self) -> str:
        """Accuracy on the training images, augmented, in the epoch whose model was tested."""
        return self._percent(
            epoch_of(content["epochs"], content["test"]["epoch"])["train/accuracy"]
            for content in self.contents)

    @staticmethod
    def _percent(values: Any) -> str:
        values = [100 * value for value in values]
        if len(values) == 1:
            return f"{values[0]:.2f} %"
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} %"

    @property
    def seeds(self) -> str:
        """In words."""
        seeds = [str(content["seed"]) for content in self.contents]
        return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"

    @property
    def stages(self) -> str:
        """Accuracy after a quarter and half of each run's epochs and at its end, in words."""
        shares = (0.25, 0.5, 1)[-min(len(self.curve), 3):]
        means = [statistics.mean(curve[max(1, round(share * len(curve))) - 1]
                                 for curve in self._curves) for share in shares]
        # Of one epoch there is no half, of two no quarter.
        return ", ".join(["–"] * (3 - len(means)) + [f"{100 * mean:.2f}" for mean in means]) + " %"

    @property
    def time(self) -> str:
        """Time of training, without evaluation, in words."""
        return duration(statistics.mean(content["seconds"] for content in self.contents))

    @property
    def conditions(self) -> str:
        """On what it was measured, in words."""
        days: dict[tuple[str, str, str], set[str]] = {}
        for content in self.contents:
            key = content["device"], content["versions"]["torch"], content["note"]
            days.setdefault(key, set()).add(content["date"])
        return " and ".join(", ".join(filter(None, [
            device, f"torch {torch}", " to ".join(sorted({min(dates), max(dates)})), note]))
            for (device, torch, note), dates in days.items())

    @property
    def sentence(self) -> str:
        """What the header of the config says."""
        return (f"{self.test} test{self.by_views}, {self.train} train ({self.seeds}); "
                f"{self.split} after a quarter, half and all of {self.length} epochs "
                f"{self.stages}; {self.time} on {self.conditions}.")

    def changes(self, config: Config) -> list[str]:
        """Return the keys by which a config trains something else now."""
        then, now = self.settings, settings_of(config)
        # A rate that was looked for is a number in what the run kept.
        return [key for key in {**then, **now}
                if then.get(key) != now.get(key) and now.get(key) != "find"]


def settings_of(config: Config) -> dict[str, Any]:
    """Return what decides on a result besides seed and data, by dotted key."""
    return {key: value for key, value in config.flat().items() if not is_among(key, _FREE)}


def read_results(folder: Path) -> list[Result]:
    """Return what is kept in a folder, the best first.

    Raises:
        RunError: a file is not what `write` writes.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        content = _read(path)
        found.setdefault(recipe_of(content), []).append(content)
    results = [Result(sorted(contents, key=lambda content: content["seed"]))
               for contents in found.values()]
    return sorted(results, key=lambda result: (-result.accuracy, result.name))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _ = Result([content]).name + Result([content]).sentence + _key(content)
        return content
    except (OSError, ValueError, LookupError, TypeError, AttributeError, UserError) as error:
        raise RunError(f"{path} is no file of results: {type(error).__name__} {error}",
                       hint=f"Write it anew, {command('compare')} RUN --results {path}; or remove "
                            "it, or name a folder of which results alone are in.") from error


def recipe_of(content: dict[str, Any]) -> tuple[str, str]:
    """Return what results have in common that are of the same recipe on the same images."""
    return _key(content), content.get("images", "")


def _key(content: dict[str, Any]) -> str:
    result = Result([content])
    return json.dumps([result.name, content["data"], result.settings], default=str)


def page_of(folder: Path) -> Path:
    """Return the page that a folder's results stand in: beside it, or beside the folder above."""
    if folder.name in ("", ".."):
        # The folder that one is in, or the one above, is called by its own name.
        folder = Path(os.path.abspath(folder))
    near = folder.with_name(f"{folder.name}.md")
    above = folder.parent.parent / f"{folder.parent.name}.md"
    return above if above.is_file() and not near.is_file() else near


def fill(page: Path) -> str:
    """Return a page with its tables as the files of results have them now.

    They stand between `<!-- results of FOLDER -->` and `<!-- end -->`; all else stays as it is. Of
    a page that is not there, the first lines are returned.

    Raises:
        RunError: it cannot be read, or a folder holds no results, or something else.
    """
    def block(found: re.Match) -> str:
        folder = page.parent / found[2]
        results = read_results(folder)
        if not results:
            raise RunError(f"no results in {folder}, which {page} is to show",
                           hint=f"Keep some: {command('compare')} RUN --results {folder}")
        return f"{found[1]}{_tables(results, found[2])}{found[3]}"

    text = f"# Results\n\n<!-- results of {page.stem} -->\n<!-- end -->\n"
    if page.is_file():
        text = page.read_text(encoding="utf-8")
    return BLOCK.sub(block, text)


def _tables(results: Sequence[Result], folder: str) -> str:
    """Return a table of the configs with their curves, and one for each that was varied.

    Under them stands on what they were measured, numbered where not all were on the same.
    """
    alone, names = alone_in(results), [result.name for result in results]
    under = list(dict.fromkeys(map(_measured, results)))
    parts = []
    if alone:
        parts.append(_table(alone, [], under, "config"))
    if len(alone) > 1:
        parts.append(f"![Accuracy over the epochs]({folder}/{CURVES})\n")
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        group = [result for result in results if result.name == name]
        parts += [f"`{name}`, varied:\n", _table(group, _differing(group), under)]
    numbers = [f"{number}. " for number, _ in enumerate(under, 1)] if len(under) > 1 else [""]
    parts.append("".join(f"{number}{line}\n" for number, line in zip(numbers, under)))
    return "\n" + "\n".join(parts) + "\n"


def _measured(result: Result) -> str:
    return f"{result.contents[0]['data']}; {result.seeds}; {result.conditions}."


def _differing(group: Sequence[Result]) -> list[str]:
    """Return the keys that not all of them set alike; of parts of other names, the whole node."""
    keys = [key for key in dict.fromkeys(key for result in group for key in result.settings)
            if len({_value(result, key) for result in group}) > 1]
    if len({_value(result, "TTA") for result in group if result.by_views}) == 1:
        keys = [key for key in keys if key != "TTA"]  # Stands beside the accuracy.
    nodes = [key.removesuffix(f".{NAME}") for key in keys if key.endswith(f".{NAME}")]
    return list(dict.fromkeys(next((node for node in nodes if is_among(key, [node])), key)
                              for key in keys))


def alone_in(results: Sequence[Result]) -> list[Result]:
    """Return the results whose config has no other one among them."""
    names = [result.name for result in results]
    return [result for result in results if names.count(result.name) == 1]


def _table(results: Sequence[Result], keys: Sequence[str], under: list[str], name: str = "") -> str:
    head = [*filter(None, [name]), *keys, "test", "train", "after ¼, ½, 1", "time",
            *(["conditions"] if len(under) > 1 else [])]
    rows = [[*([f"`{result.name}`"] if name else []), *(_value(result, key) for key in keys),
             result.test + result.by_views, result.train,
             result.stages + " val" * (result.split == "val"), result.time,
             *([str(under.index(_measured(result)) + 1)] if len(under) > 1 else [])]
            for result in results]
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *rows])


def _value(result: Result, key: str) -> str:
    inner = {other.removeprefix(f"{key}."): value for other, value in result.settings.items()
             if other.startswith(f"{key}.")}
    value = inner or result.settings.get(key, "default")
    # What a sweep draws has sixteen figures.
    value = float(f"{value:.5g}") if isinstance(value, float) else value
    return str(value).lower() if isinstance(value, bool) else in_words(value)
