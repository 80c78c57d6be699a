"""Run folders: `OUTPUT_DIR/<config name>/<start time>/`, made by training, read by the rest."""

from __future__ import annotations

import math
import os
import platform
import shlex
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cvkit.config import Config, read_config
from cvkit.config.load import RESOLVED, name_of_resolved
from cvkit.config.tree import in_words
from cvkit.data import ImageData, Loaders, build_loaders
from cvkit.data.assembly import PLACES
from cvkit.errors import CheckpointError, ConfigError, RunError
from cvkit.evaluation.metrics import is_lower_better
from cvkit.models.probing import choose_layout
from cvkit.registry.user_code import edited_since, take_no_code_from
from cvkit.runs.checkpoint import Checkpoint, counting
from cvkit.runs.experiment import Experiment
from cvkit.runs.finding import UTC, find_run
from cvkit.runs.metrics_file import add_metrics, keep_epochs, read_metrics
from cvkit.runs.predictions import Predictions, write_anew
from cvkit.runs.range_test import RangeTest
from cvkit.system.command import command, quoted
from cvkit.system.files import lock_file, user_path, write_whole, writing
from cvkit.system.text import and_more, escape_controls

# Of a table the further ones as well.
_IMAGES = tuple(f"DATA.DATASET.{key}" for key in (*PLACES.values(), "val", "test"))
# What may be set differently when a run is opened again: where it runs, not what it computed.
MAY_CHANGE = ("OUTPUT_DIR", "DEVICE", "WRITERS", "VISUALIZERS", "REQUIRE", "IMPORTS",
              "DATA.PIPELINE", "DATA.WORKERS", "DATA.CACHE_GB", *_IMAGES, "DATA.DATASET.download",
              "DATA.EVAL_BATCH_SIZE", "TRAIN.COMPILE", "TRAIN.CHECKPOINT_EVERY",
              "TRAIN.UNUSED_PARAMETERS")
# Other paths may lead to other images.
WHERE_IT_RUNS = tuple(key for key in MAY_CHANGE if key not in _IMAGES)


def is_among(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted key is one of these names, or below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


# An evaluation may also be of other images or by other metrics.
MAY_EVALUATE = (*MAY_CHANGE, "DATA", "METRICS", "TTA", "TRAIN.PRECISION")
_RANGE_TEST = "lr_finder.json"
# So many are named, where images of other classes are refused.
_MOST_CLASSES = 20
# Files are written into a run folder, and into these in it.
WRITTEN_FOLDERS = ("checkpoints", "visuals", "images", "tables")
# This process trains in these folders.
_locked: set[str] = set()


class BusyError(RunError):
    """Another process trains in the folder."""


class Run(Experiment):
    """A run folder: an experiment with its results.

    Args:
        folder: its path.
        overrides: as `load_config` takes them, for where it runs now (`DATA.DATASET.root`).
        may_change: the keys, or their beginnings, that those may set.

    Attributes:
        folder: `config.yaml, train.log, metrics.jsonl, environment.txt, predictions.npz,
            checkpoints/, visuals/`.
        config: the resolved config, frozen.
        changed: the keys that are set otherwise than in the folder.
        shown: predictions that are drawn instead of the folder's, as TTA made them otherwise.
        range_test: how the learning rate was found; only where `max_lr: find` asked for it.
    """

    label, advice = "one run", "Name them: --run A B"
    shown: Predictions | None = None

    def __init__(self, folder: str | Path, overrides: Sequence[str] | Mapping[str, Any] = (),
                 may_change: tuple[str, ...] = MAY_CHANGE):
        self.folder = user_path(folder)
        take_no_code_from(self.folder)
        path = self.folder / "config.yaml"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{folder} is not a run folder: {path.name} cannot be read "
                           f"({error})") from None
        name = name_of_resolved(text) or self.folder.resolve().parent.name
        super().__init__(read_config(text, str(path), name=name, overrides=overrides))
        self.changed = list(overrides if isinstance(overrides, Mapping) else overrides[::2])
        fixed = [key for key in self.changed if not is_among(key, may_change)]
        if fixed:
            raise ConfigError(f"{fixed[0]} cannot be changed in a run that was trained",
                              hint=f"What can be: {', '.join(may_change)}.")
        if (self.folder / _RANGE_TEST).is_file():
            self.range_test = RangeTest.load(self.folder / _RANGE_TEST)

    def __repr__(self) -> str:
        return f"<Run {self.folder}>"

    @classmethod
    def create(cls, config: Config, environment: str, folder: Path | None = None) -> Run:
        """Make a new folder; no other run is ever written into.

        Args:
            config: of the run.
            environment: the text of environment.txt.
            folder: that is not there yet, or holds no checkpoint; None for one of OUTPUT_DIR.

        Raises:
            RunError: it cannot be written, or holds one.
        """
        if folder is not None and _has_checkpoint(folder):
            raise BusyError(f"{folder} holds a run that was begun already",
                            hint="Go on with it, or name another folder.")
        parent = Path(config.OUTPUT_DIR) / config.name if folder is None else folder.parent
        try:
            if folder is None:
                folder = new_folder(parent)
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            # One that was killed before its first checkpoint may have had an epoch.
            (folder / "metrics.jsonl").unlink(missing_ok=True)
            begun = datetime.now(timezone.utc).strftime(UTC)
            (folder / "environment.txt").write_text(f"{environment}begun: {begun}Z\n",
                                                    encoding="utf-8")
            _write_config(folder, config)
        except OSError as error:
            raise RunError(f"cannot write a run folder into {parent}: {error.strerror}",
                           hint="Choose another place with OUTPUT_DIR.") from error
        return cls(folder)

    def refuse_links(self) -> None:
        """Make sure that what is written into the folder, or told of it in a report, lies in it.

        Whoever packed a folder may have put links to other files into it, or pipes. Every function
        that writes into a finished run calls this first.

        Raises:
            RunError: names the first such thing where cvkit reads or writes.
        """
        folders = [self.folder, *(self.folder / name for name in WRITTEN_FOLDERS)]
        refuse_links(path for folder in folders if folder.is_dir() for path in folder.iterdir())

    def keep_range_test(self, found: RangeTest) -> None:
        """Note how the learning rate was found."""
        self.range_test = found
        found.save(self.folder / _RANGE_TEST)

    def set_config(self, config: Config) -> None:
        """Note what a resumed run goes on with (more epochs, another device)."""
        self.config = config
        _write_config(self.folder, config)

    @property
    def hyperparameters(self) -> dict[str, bool | int | float | str]:
        """The config by dotted key, without what says where it ran; nodes and lists in words."""
        return {key: value if isinstance(value, (bool, int, float)) else in_words(value)
                for key, value in self.config.flat().items() if not is_among(key, MAY_CHANGE)}

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One mapping per epoch: epoch, lr, train/loss, train/accuracy, test/… or val/…

        Raises:
            RunError: something in `metrics.jsonl` is not what training writes.
        """
        epochs = read_metrics(self.folder)
        split = monitored_in(epochs)
        needed = ["lr", "seconds", "images_per_second", "train/loss", "train/accuracy",
                  f"{split}/loss", f"{split}/accuracy", f"{split}/{self.config.TRAIN.MONITOR}"]
        for epoch in epochs:
            for name in needed:
                if not isinstance(epoch.get(name), (int, float)):
                    raise RunError(f"{self.folder / 'metrics.jsonl'}: epoch {epoch['epoch']} has "
                                   f"no {name}", hint="Remove that line, or the file.")
        return epochs

    @property
    def monitored(self) -> str:
        """The split that was evaluated after each epoch: "val", or "test" without one."""
        return monitored_in(self.metrics)

    @property
    def best(self) -> dict[str, Any]:
        """The epoch of `metrics` that TRAIN.MONITOR calls the best, see `best_of`."""
        return self.best_of(self.metrics)

    def best_of(self, epochs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return which of these epochs TRAIN.MONITOR calls the best, the first of equal ones.

        Raises:
            RunError: no epoch was finished.
        """
        monitor = self.config.TRAIN.MONITOR
        if not epochs:
            raise RunError(f"{self.folder} has no finished epoch")
        choose = min if is_lower_better(monitor, epochs[-1]) else max
        key = f"{monitored_in(epochs)}/{monitor}"
        known = [epoch for epoch in epochs if not math.isnan(epoch[key])]
        return choose(known or epochs, key=lambda epoch: epoch[key])

    def other_best(self, predictions: Predictions) -> str | None:
        """Return in words of which epochs results and best.pt are, if not of the same one."""
        try:
            best = self.checkpoint("best").epoch
        except CheckpointError:
            return None
        if best == predictions.epoch and not predictions.batches:
            return None
        return (f"Results and pictures are of the model {predictions.place} (last.pt); best.pt is "
                f"of epoch {best}, chosen by its {self.monitored} {self.config.TRAIN.MONITOR}")

    @property
    def seconds(self) -> float:
        """Time spent on training, without evaluation."""
        return sum(epoch["seconds"] for epoch in self.metrics)

    @property
    def predictions(self) -> Predictions:
        """What the run's model says of the test images.

        Raises:
            RunError: absent, damaged, or what it said at another time of the training.
        """
        if self.shown is not None:
            return self.shown
        path = self.folder / "predictions.npz"
        found = Predictions.load(path)
        try:
            is_of_model = found.place == self._trained.place
        except CheckpointError:
            # A folder may have been copied without its largest files.
            return found
        if not is_of_model:
            self.forget_model()
        if found.place != self._trained.place:
            raise RunError(f"{path} is of the model {found.place}; the checkpoint was saved "
                           f"{self._trained.place}", hint=write_anew(path))
        return found

    @property
    def run(self) -> Run:
        """Itself, for a visualizer that asks for a run."""
        return self

    @property
    def runs(self) -> list[Run]:
        """Itself, for a visualizer that can lay several runs over each other."""
        return [self]

    @cached_property
    def data(self) -> ImageData:
        """The images, as long as they have the classes that the run was trained on, in its order.

        Raises:
            CheckpointError: they have others.
        """
        data, trained_on = super().data, self._trained.classes
        if list(data.classes) == trained_on:
            return data
        # A table sorts numbers by their size, folders as words; accents are written in two ways.
        now, then = ([unicodedata.normalize("NFC", name) for name in names]
                     for names in (data.classes, trained_on))
        places = {name: place for place, name in enumerate(then)}
        if len(now) == len(then) and set(now) == set(places) and len(places) == len(then):
            numbers = np.array([places[name] for name in now], dtype=np.int64)
            return replace(data.with_splits(**{
                name: replace(split, labels=numbers[split.labels])
                for name, split in data.splits.items()}), classes=tuple(trained_on))
        # Of many classes the first ones do not tell what differs.
        differ = {"not there any more": [name for name in then if name not in now],
                  "new": [name for name in now if name not in places]}
        lines = ["; ".join(f"{what}: {and_more(names, 8)}" for what, names in differ.items()
                           if names)] if max(len(now), len(then)) > _MOST_CLASSES else []
        if not differ["new"] and len(now) < len(then):
            lines.append(f"Of pictures of some classes in folders called as these, "
                         f"{command('predict')} {quoted(self.folder)} FOLDER tells the accuracy.")
        raise CheckpointError(f"{self.folder} was trained on the classes "
                              f"{and_more(trained_on, _MOST_CLASSES)}, but the data now has "
                              f"{and_more(data.classes, _MOST_CLASSES)}",
                              hint="\n  ".join(lines) or None)

    def changes_since_training(self) -> tuple[bool, list[str]]:
        """Return whether its training images are others now, and which imported files were edited.

        What is not known has not changed: of an older version, without its last checkpoint, or of
        images that were chosen by hand.
        """
        try:
            noted = self._trained if self._trained.training else self.checkpoint("last")
        except CheckpointError:
            return False, []
        training = noted.training or {}
        are_chosen = any(is_among(key, ["DATA"]) and not is_among(key, WHERE_IT_RUNS)
                         for key in self.changed)
        images = training.get("images", {}).get("training")
        are_other = not are_chosen and images not in (None, self.data.train.identity)
        return are_other, edited_since(training.get("code", {}))

    @cached_property
    def loaders(self) -> Loaders:
        """Batches of the splits, normalised as the run was trained.

        Raises:
            CheckpointError: they have other channels than those of the training.
        """
        loaders = build_loaders(self.config, self.data, self.device,
                                (self._trained.mean, self._trained.std))
        now, then = loaders.image_shape, tuple(self._trained.image_shape)
        if now[0] != then[0]:
            raise CheckpointError(
                f"{self.folder} was trained on images with {then[0]} channels, these have {now[0]}",
                hint="Add {NAME: ToRGB} or {NAME: ToGray} to both lists of transforms.")
        if now != then:
            print(f"note       the images are {'×'.join(map(str, now))}, those of the training "
                  f"were {'×'.join(map(str, then))}")
        if "model" in vars(self):
            loaders.set_layout(self.layout or choose_layout(
                self.config.TRAIN.CHANNELS_LAST, self.model, self.device))
        return loaders

    @cached_property
    def model(self) -> nn.Module:
        """The trained network on the device, in evaluation mode. Needs no images."""
        return self._placed(self._trained.build_model(self.config.IMPORTS),
                            self._trained.image_shape)

    @property
    def epoch(self) -> int:
        """The epoch of the model whose results count."""
        return self._trained.epoch

    @cached_property
    def _trained(self) -> Checkpoint:
        return self.checkpoint()

    def checkpoint(self, name: str | None = None) -> Checkpoint:
        """Return "last", "previous", "best", or the one whose results count, by default."""
        if name is None:
            return counting(self.checkpoint)
        path = self.checkpoints / f"{name}.pt"
        try:
            return Checkpoint.load(path)
        except CheckpointError as error:
            others = [path.with_name(f"{other}.pt") for other in ("previous", "best")]
            other = next((item for item in others if name == "last" and item.is_file()), None)
            if other is not None:
                error.hint = (f"{other.name} is beside it. To take that one: "
                              f"cp {shlex.quote(str(other))} {shlex.quote(str(path))}")
            raise

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel with which it was trained."""
        checkpoint = self.last_whole_checkpoint()
        return checkpoint.mean, checkpoint.std

    def last_whole_checkpoint(self) -> Checkpoint:
        """Return the last checkpoint; if it is damaged, the one before it, which takes its place.

        A line says so.
        """
        try:
            return self.checkpoint("last")
        except CheckpointError as error:
            try:
                checkpoint = self.checkpoint("previous")
            except CheckpointError:
                # The one that was asked for is what the user knows of.
                raise error from None
            print(f"note       {error.problem}; taking the one before it, previous.pt, saved "
                  f"{checkpoint.place}")
            # Else the next checkpoint that is saved would move the damaged one onto it.
            with writing(self.checkpoints / "last.pt"):
                os.replace(self.checkpoints / "previous.pt", self.checkpoints / "last.pt")
            return checkpoint

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to resume from."""
        return _has_checkpoint(self.folder)

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    def add_metrics(self, values: dict[str, Any]) -> None:
        """Write an epoch into `metrics.jsonl`."""
        add_metrics(self.folder, values)

    def keep_epochs(self, last_epoch: int) -> None:
        """Drop what was written after the epoch that the run is resumed from."""
        keep_epochs(self.folder, last_epoch)

    def keep_predictions(self, predictions: Predictions) -> None:
        """Write `predictions.npz`."""
        predictions.save(self.folder / "predictions.npz")

    def forget_model(self) -> None:
        """Read the model again when it is asked for: it was trained meanwhile."""
        for part in ("model", "_trained"):
            vars(self).pop(part, None)

    def save(self, checkpoint: Checkpoint, name: str = "last") -> None:
        """Write "last", where the one before is kept as `previous.pt`, or "best"."""
        keep = self.checkpoints / "previous.pt" if name == "last" else None
        checkpoint.save(self.checkpoints / f"{name}.pt", keep)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in this folder meanwhile; see `locked`."""
        with locked(self.folder):
            yield


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / "checkpoints" / f"{name}.pt").is_file() for name in ("last", "previous"))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder meanwhile.

    The system gives the lock back when the process ends, however it ends.

    Raises:
        RunError: another process has it, or the folder cannot be written.
    """
    path, held = folder / ".lock", str(folder.resolve())
    if held in _locked:
        raise RunError(f"{folder} is being trained by this process already")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    with file:
        try:
            lock_file(file)
            # Its owner may just have removed it, and another process have made a new one.
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise BlockingIOError
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise BusyError(f"{folder} is being trained by {owner}",
                            hint="Wait for it or stop it. A run of its own needs no "
                                 "--resume.") from None
        _locked.add(held)
        try:
            with writing(path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}\n")
                file.flush()
            yield
        finally:
            _locked.discard(held)
            # Windows removes no open file; it may stay.
            with suppress(PermissionError):
                path.unlink(missing_ok=True)


def new_folder(parent: Path, ending: str = "") -> Path:
    """Make a folder that is called by the time now, and an ending.

    Raises:
        OSError: it cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    start = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in range(1, 1000):
        folder = parent / f"{start}{'' if number == 1 else f'_{number}'}{ending}"
        try:
            folder.mkdir()
            break
        except FileExistsError:
            continue
    return folder


def _write_config(folder: Path, config: Config) -> None:
    again = f"{command('train')} {quoted(folder / 'config.yaml')}"
    header = (f"# {escape_controls(config.name)}, {RESOLVED}\n"
              f"# Repeat it: {escape_controls(again)}\n")
    write_whole(folder / "config.yaml", header + config.dump())


def monitored_in(epochs: Sequence[Mapping[str, Any]]) -> str:
    """Return the split that was evaluated after each of these epochs, see `Run.monitored`."""
    return "val" if any("val/loss" in epoch for epoch in epochs) else "test"


def refuse_links(paths: Iterable[Path]) -> None:
    """Refuse paths that are neither plain files nor folders.

    Raises:
        RunError: names the first of them.
    """
    for path in paths:
        if path.is_symlink():
            raise RunError(f"{path} is a link to {os.readlink(path)}; what lies in a run folder is "
                           "not written or shown through links",
                           hint="Remove it, or put a copy of what it leads to into its place.")
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise RunError(f"{path} is neither a file nor a folder", hint="Remove it.")


def output_dir_of(overrides: Sequence[str] | Mapping[str, Any]) -> str:
    """Return where overrides, as `load_config` takes them, say that runs are; `runs` by default."""
    named = (overrides if isinstance(overrides, Mapping) else
             dict(zip(overrides[::2], overrides[1::2])))
    return str(named.get("OUTPUT_DIR", "runs"))


def open_run(run: str | Path | None = None, output_dir: str | Path = "runs",
             config_name: str = "*", overrides: Sequence[str] | Mapping[str, Any] = (),
             may_change: tuple[str, ...] = MAY_CHANGE) -> Run:
    """Open a run folder.

    Args:
        run: its path, or its path below `output_dir`; of a folder of runs the newest in it;
            None for the newest of all that has a checkpoint.
        output_dir: where runs are.
        config_name: only runs of this config.
        overrides, may_change: see `Run`.

    Raises:
        RunError: there is none.
    """
    return Run(find_run(run, output_dir, config_name), overrides, may_change)
