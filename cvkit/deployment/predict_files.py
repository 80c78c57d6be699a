"""Predicting many files: a table, lines of JSON, copies by class, and how many are right."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from cvkit.data.class_folders import leads_to
from cvkit.data.pictures import find_images
from cvkit.errors import DataError, RunError
from cvkit.evaluation.predictor import Prediction, Predictor
from cvkit.system.files import writing
from cvkit.system.text import and_more, escape_controls, in_columns, plural

# Bytes of a file's name; with an ending and a number, disks take 255.
_LONGEST = 200


@dataclass
class Outcome:
    """What became of files.

    Attributes:
        notes: why it is not counted how many are right, if some folders are called as classes.
        counts: of files by predicted class.
        unreadable: what is wrong with files that could not be read.
        known, correct: files whose class folder says what they are, and how many are right.
    """

    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    unreadable: list[DataError] = field(default_factory=list)
    known: int = 0
    correct: int = 0

    def __str__(self) -> str:
        rows = [(escape_controls(name), f"{count:,}") for name, count in self.counts.most_common()]
        lines = in_columns([("class", "images"), *rows], "<", ">")
        lines += [f"note       {escape_controls(note)}" for note in self.notes]
        if self.known:
            lines.append(f"Accuracy: {self.correct}/{self.known} "
                         f"({100 * self.correct / self.known:.2f}%), by the class folders")
        if self.unreadable:
            lines.append(f"{plural(len(self.unreadable), 'file')} left out:")
            lines += [f"  {escape_controls(error.problem)}" for error in self.unreadable]
        return "\n".join(lines)


def predict_files(predictor: Predictor, paths: Iterable[str], table: str | Path | None = None,
                  lines: IO[str] | None = None, top: int = 1, copies: str | Path | None = None,
                  pictures: str | Path | None = None, overwrite: bool = False,
                  names: Iterable[str] = ()) -> Outcome:
    """Predict files and folders of them, writing each batch before the next one is read.

    Args:
        predictor: a `Predictor`.
        paths: files, and folders, which are looked through with all below. If all images of a
            folder lie in folders that are called as classes, it is counted how many are right.
        table: a CSV file: file, class, probability; and class_2, probability_2 … up to `top`.
        lines: where to write the same as an object of JSON a line.
        top: how many classes are told of each.
        copies: a folder that gets a copy of each file, in a folder for its predicted class.
        pictures: a folder that gets a PNG of each: where the model looked, for the two most
            probable classes.
        overwrite: whether what is there already may be replaced.
        names: of further files, which need not be there.

    Raises:
        DataError: no such file, or a folder without images.
        RunError: a file cannot be written, or is there already; what was written before is kept.
    """
    if top < 1:
        raise RunError(f"{top} classes cannot be told", hint="--top is 1 or more.")
    top = min(top, len(predictor.classes))
    paths = list(paths)
    files, notes = _listed(paths, predictor.classes)
    files |= {name: _File(os.path.basename(name), None) for name in names}
    if table is not None and os.path.realpath(table) in map(os.path.realpath, files):
        raise RunError(f"{table} is one of the pictures", hint="Name another file.")
    for folder in (copies, pictures):
        if folder is not None:
            _refuse_within(folder, paths, files)
    outcome = Outcome(notes)
    with ExitStack() as stack:
        sinks: list[Any] = []
        if lines is not None:
            sinks.append(_Lines(lines, top))
        if pictures is not None:
            if len(predictor.members) > 1:
                raise RunError("where a model looked can be drawn of one, not of several together",
                               hint="Name one of them, or leave out --cam.")
            sinks.append(_Pictures(_new_folder(Path(pictures), overwrite), predictor))
        if copies is not None:
            folder = _new_folder(Path(copies), overwrite)
            sinks.append(_Copies(folder, predictor.classes if any(folder.iterdir()) else ()))
        if table is not None:
            # It comes last, as it would be there already after what refuses another.
            sinks.append(_Table(_new_file(Path(table), overwrite), top))
            stack.callback(sinks[-1].close)
        if not sinks:
            sinks.append(_Screen(predictor.classes, top))
        is_silent = table is None and copies is None and pictures is None
        for prediction in predictor.stream([*files], outcome.unreadable, is_silent):
            file = files[prediction.file]
            outcome.counts[prediction.label] += 1
            outcome.known += file.label is not None
            outcome.correct += file.label == prediction.label
            for sink in sinks:
                sink.add(prediction, file.name)
    return outcome


class _File(NamedTuple):
    """What is known of a file: a name that tells where it lay, and its class, if folders say so."""

    name: str
    label: str | None


def _listed(paths: Iterable[str], classes: Sequence[str]) -> tuple[dict[str, _File], list[str]]:
    """Return all files with what is known of them, and what is to be said."""
    files: dict[str, _File] = {}
    notes: list[str] = []
    # A Mac writes accents in another way than most.
    known = {unicodedata.normalize("NFC", name): name for name in classes}
    for path in paths:
        found, is_folder = find_images([path]), os.path.isdir(path)
        below = [os.path.relpath(file, path) if is_folder else os.path.basename(file)
                 for file in found]
        # The folder that a file lies in, below the one that is named; empty of that one's own.
        tops = [name.split(os.sep)[0] if os.sep in name else "" for name in below]
        tops = [known.get(unicodedata.normalize("NFC", top), top) for top in tops]
        are_labels = is_folder and set(tops) <= set(classes)
        if is_folder and not are_labels and set(tops) & set(classes):
            others = sorted(set(tops) - set(classes) - {""})
            reason = (f"no class of the model is called {and_more(others, 4)}" if others else
                      "some of its pictures lie in no folder")
            notes.append(f"accuracy in {path} is not counted: {reason}")
        for file, name, top in zip(found, below, tops):
            files[file] = _File(name.replace(os.sep, "_"), top if are_labels else None)
    return files, notes


def _refuse_within(folder: str | Path, paths: Iterable[str], files: Iterable[str]) -> None:
    """Refuse a folder to write into that the pictures lie in, or the other way round.

    The next prediction would find what was written, or an old copy removed be the only one.
    """
    inside = next((path for path in paths if os.path.isdir(path) and leads_to(path, folder)), None)
    if inside is not None:
        raise RunError(f"{folder} lies in {inside}, whose pictures are predicted",
                       hint="Name a folder elsewhere.")
    top = os.path.join(os.path.realpath(folder), "")
    tops = top, os.path.join(os.path.abspath(folder), "")
    inside = next((file for file in files if os.path.realpath(file).startswith(top)
                   or os.path.abspath(file).startswith(tops)), None)
    if inside is not None:
        raise RunError(f"{inside}, which is predicted, lies in {folder}",
                       hint="Name a folder elsewhere.")


def _refuse_existing(path: Path, overwrite: bool) -> None:
    is_there = any(path.iterdir()) if path.is_dir() else path.exists()
    if is_there and not overwrite:
        raise RunError(f"{path} is there already", hint="--overwrite replaces what is in it.")


def _new_folder(path: Path, overwrite: bool) -> Path:
    if path.is_file():
        raise RunError(f"{path} is a file, not a folder")
    _refuse_existing(path, overwrite)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def _new_file(path: Path, overwrite: bool) -> IO[str]:
    if path.is_dir():
        raise RunError(f"{path} is a folder, not a file")
    _refuse_existing(path, overwrite)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Names of files need not be UTF-8.
        return path.open("w", newline="", encoding="utf-8", errors="surrogateescape")


def _figures(prediction: Prediction, top: int) -> Iterator[tuple[str, str]]:
    """Yield class and probability, in as many digits as tell it from others of float32."""
    for name, probability in prediction.top(top):
        yield name, str(np.float32(probability))


class _Table:
    def __init__(self, file: IO[str], top: int):
        self._file, self._top, self._writer = file, top, csv.writer(file)
        columns = [("class", "probability"), *((f"class_{place}", f"probability_{place}")
                                               for place in range(2, top + 1))]
        self._write("file", *sum(columns, ()))

    def add(self, prediction: Prediction, name: str) -> None:
        self._write(prediction.file, *sum(_figures(prediction, self._top), ()))

    def _write(self, *row: str) -> None:
        with writing(self._file.name):
            self._writer.writerow(row)
            # What is done is there, whatever comes.
            self._file.flush()

    def close(self) -> None:
        with writing(self._file.name):
            self._file.close()


class _Lines:
    def __init__(self, file: IO[str], top: int):
        self._file, self._top = file, top

    def add(self, prediction: Prediction, name: str) -> None:
        ranked = [{"class": name, "probability": float(probability)}
                  for name, probability in _figures(prediction, self._top)]
        line = json.dumps({"file": prediction.file, **ranked[0], "top": ranked})
        with writing("the lines of JSON"):
            print(line, file=self._file, flush=True)


class _Screen:
    def __init__(self, classes: Sequence[str], top: int):
        self._width, self._top = max(map(len, map(escape_controls, classes))), top

    def add(self, prediction: Prediction, name: str) -> None:
        ranked = (f"{escape_controls(name):<{self._width}} {100 * probability:5.1f} %"
                  for name, probability in prediction.top(self._top))
        print(*ranked, escape_controls(prediction.file), sep="  ", flush=True)


def _file_name(text: str) -> str:
    """Return a class's name as a folder is called, which leads nowhere else."""
    return re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", text).strip(". ") or "_"


class _Copies:
    """Copies files into folders of their classes; those of the same name get numbers.

    Args:
        folder: that the folders are in.
        before: classes whose folders may hold copies of the same files.
    """

    def __init__(self, folder: Path, before: Sequence[str]):
        self._folder, self._taken = folder, set[str]()
        self._before = list(map(_file_name, before))

    def add(self, prediction: Prediction, name: str) -> None:
        copy = _free(self._folder / _file_name(prediction.label) / name, self._taken)
        with writing(copy):
            # One that an earlier model took for another class would stay beside it.
            for other in {self._folder / label / copy.name for label in self._before}:
                # A disk may take two spellings for one file.
                is_source = other.exists() and other.samefile(prediction.file)
                if not (is_source or str(other).casefold() in self._taken):
                    other.unlink(missing_ok=True)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy2(prediction.file, copy)


def _free(path: Path, taken: set[str]) -> Path:
    """Return a path that none of these has, of a name that disks take, and note it."""
    stem = path.stem
    while len(os.fsencode(stem)) > _LONGEST:
        # The end of a name is the file's own.
        stem = stem[1:]
    free, number = path.with_stem(stem), 1
    # Most disks of a Mac and of Windows take IMG.JPG for img.jpg.
    while str(free).casefold() in taken:
        number += 1
        free = path.with_stem(f"{stem}_{number}")
    taken.add(str(free).casefold())
    return free


class _Pictures:
    """Draws where the model looked, for the two most probable classes on one scale."""

    def __init__(self, folder: Path, predictor: Predictor):
        self._folder, self._predictor, self._taken = folder, predictor, set[str]()

    def add(self, prediction: Prediction, name: str) -> None:
        from cvkit.visualizers.explained import explained

        path = _free((self._folder / name).with_suffix(".png"), self._taken)
        figure = explained(self._predictor, prediction.file,
                           prediction=prediction)
        with writing(path):
            figure.savefig(path, dpi=150)
