"""Runs in a table: what differs in their configs and what they came to, and whether two differ."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from cvkit.config.tree import in_words
from cvkit.errors import ConfigError, RunError, UserError
from cvkit.evaluation.metrics import is_lower_better, is_part
from cvkit.runs.finding import MEMBER, REPEATED, find_all
from cvkit.runs.folder import WHERE_IT_RUNS, Run, is_among, monitored_in
from cvkit.runs.metrics_file import epoch_of
from cvkit.runs.predictions import Predictions, mcnemar
from cvkit.runs.spread import Spread
from cvkit.system.text import (
    cut,
    duration,
    escape_controls,
    harmless_cell,
    in_columns,
    plural,
    suggest,
)

# Letters of a value and of a name in a terminal.
_WIDEST, _WIDEST_NAME = 24, 40
_ABSENT = "–"
# What the accuracy on the images that chose the best epoch is called. Test images that chose it
# flatter it, so they have a column of their own.
_CHOSEN = {"test": "best test accuracy", "val": "val accuracy"}


@dataclass(frozen=True)
class Entry:
    """What a row of a table is of: a run, or several that differ in their seed or fold alone.

    Attributes:
        folder: of the run, or the one that holds the runs.
        runs: one or more.
    """

    folder: Path
    runs: Sequence[Run]


class Column:
    """A column of a table.

    Args:
        title: what it is called: a dotted key, or what was measured.
        label: the same in short.
        cells: the values of each row; none where a row has none.
        lower: whether lower is better.
    """

    def __init__(self, title: str, label: str, cells: Sequence[Sequence[Any]], lower: bool = True):
        self.title, self.label, self.cells, self.lower = title, label, cells, lower

    def words(self) -> list[str]:
        """Return each cell as a terminal shows it."""
        words = [", ".join(map(in_words, cell)) for cell in self.cells]
        short = [", ".join(f"{value:.4g}" if isinstance(value, float) else in_words(value)
                           for value in cell) for cell in self.cells]
        if len(set(short)) == len(set(words)):
            words = short
        if max(map(len, words)) > _WIDEST:
            # What differs is often at the end of a long list.
            same = _alike([word for word in words if word])
            words = [f"…{word[same:]}" if word and same > _WIDEST // 2 else word for word in words]
        return [word or _ABSENT for word in words]

    def rank(self, row: int) -> tuple[Any, ...]:
        """Return what rows are sorted by: numbers, then words, then nothing."""
        cell = self.cells[row]
        if len(cell) == 1 and isinstance(cell[0], (int, float)):
            return (0, cell[0])
        return (1, ", ".join(map(in_words, cell))) if cell else (2,)

    def titles(self) -> list[str]:
        """Return the heads of its columns in a CSV."""
        return [self.title]

    def exact(self, row: int) -> list[Any]:
        """Return a row's values in these."""
        cell = self.cells[row]
        return [cell[0] if len(cell) == 1 and isinstance(cell[0], (int, float))
                else ", ".join(map(in_words, cell))]


class Measured(Column):
    """A column of what was measured: cells hold a value of each run."""

    cells: Sequence[Sequence[float]]

    def words(self) -> list[str]:
        return [self._in_words(cell) if cell else _ABSENT for cell in self.cells]

    def _in_words(self, cell: Sequence[float]) -> str:
        mean, deviation, size, _ = Spread.of(cell)
        if math.isnan(mean):
            return _ABSENT
        # Of values some of which are infinite there is no deviation.
        values, unit = [mean] if size < 2 or math.isnan(deviation) else [mean, deviation], ""
        name = _parts(self.title)[1]
        if is_part(name):
            shown, unit = [f"{100 * value:.2f}" for value in values], " %"
        elif self.title == "training time":
            shown = list(map(duration, values))
        else:
            shown = [f"{round(value, 1):g}" if self.title == "epochs" else f"{value:.4f}"
                     for value in values]
        return f"{' ± '.join(shown)}{unit}"

    def rank(self, row: int) -> tuple[Any, ...]:
        mean = Spread.of(self.cells[row]).mean if self.cells[row] else math.nan
        if math.isnan(mean):
            return (2,)
        return (0, mean if self.lower else -mean)

    def _is_of_several(self) -> bool:
        return max(map(len, self.cells)) > 1

    def titles(self) -> list[str]:
        return [self.title, f"{self.title} sd"] if self._is_of_several() else [self.title]

    def exact(self, row: int) -> list[Any]:
        cell, count = self.cells[row], len(self.titles())
        if not cell:
            return [""] * count
        mean, deviation, size, _ = Spread.of(cell)
        # Of one run it is as it is, a whole number perhaps.
        found = [cell[0] if len(cell) < 2 else mean, deviation if size > 1 else ""]
        return ["" if isinstance(value, float) and math.isnan(value) else value
                for value in found[:count]]


def _alike(sequences: Sequence[Sequence[Any]]) -> int:
    """Return how many items all of these begin with."""
    return sum(1 for _ in takewhile(lambda items: len(set(items)) == 1, zip(*sequences)))


class Table:
    """What differs in the configs of runs and what they came to, a row for each entry.

    Runs that are not finished, or damaged, are left out.

    Args:
        entries: of the rows; nothing is read of a run but its config, metrics and predictions.

    Attributes:
        entries: those with a run that is not left out.
        columns: keys that differ, then what was measured; before them how many runs an entry has,
            if one has several.
        order: the numbers of the rows, the best test accuracy first.
        left_out: why runs are.
        others: how many entries were not tested on the images of the first.
    """

    def __init__(self, entries: Sequence[Entry]):
        self.entries: list[Entry] = []
        self.left_out: list[UserError] = []
        self.others = 0
        measured: list[list[dict[str, float]]] = []
        lower = {"test loss", "epochs", "training time"}
        first: list[Predictions] = []
        for entry in entries:
            runs, values, tested = [], [], []
            for run in entry.runs:
                try:
                    epochs = run.metrics
                    found = _predictions_of(run, epochs)
                    values.append(_measured(run, epochs, found))
                except UserError as error:
                    self.left_out.append(error)
                    continue
                lower |= {f"test {name}" for name in found.metrics
                          if is_lower_better(name, epochs[-1])}
                runs.append(run)
                tested.append(found)
            if runs:
                self.entries.append(Entry(entry.folder, runs))
                measured.append(values)
                first = first or tested
                # Each fold has images of its own.
                self.others += not all(map(Predictions.is_of_same_images, first, tested))
        if not self.entries:
            raise self.left_out[0]
        titles = dict.fromkeys(title for values in measured for item in values for title in item)
        # The metrics of some configs come between the rest.
        titles = dict.fromkeys([*(title for title in titles if title.startswith("test ")),
                                *(title for title in _CHOSEN.values() if title in titles), *titles])
        columns = [Measured(title, title, [
            [item[title] for item in values] if all(title in item for item in values) else []
            for values in measured], title in lower) for title in titles]
        counts = [[len(entry.runs)] for entry in self.entries]
        self.columns: list[Column] = [
            *([Column("n", "n", counts)] if max(counts) > [1] else []),
            *_differing([entry.runs for entry in self.entries]), *columns]
        self.order = sorted(range(len(self.entries)), key=lambda row: str(self.entries[row].folder))
        self.sort("test accuracy")

    @property
    def names(self) -> list[str]:
        """The folders of the entries, without what they have in common."""
        paths = [Path(os.path.abspath(entry.folder)).parts for entry in self.entries]
        same = _alike([parts[:-1] for parts in paths])
        return ["/".join(parts[same:]) for parts in paths]

    def sort(self, name: str) -> None:
        """Put the rows in the order of a column, the best first, or from low to high.

        Args:
            name: its title or label; of what was measured also with `_` for a blank.

        Raises:
            ConfigError: there is none of that name.
        """
        wanted = _plain(name)
        found = [column for column in self.columns
                 if wanted in (_plain(column.title), _plain(column.label))]
        if not found:
            names = [name for column in self.columns for name in (column.title, column.label)]
            raise ConfigError(f"no column {name!r} to sort by",
                              hint=suggest(name, dict.fromkeys(names), listed=30))
        # TRAIN.EPOCHS may be a column beside the epochs that there were.
        self._sorted_by = min(found, key=lambda column: name not in (column.title, column.label))
        self.order.sort(key=self._sorted_by.rank)

    def text(self, width: int = 160) -> str:
        """Return the table for a terminal, and in sentences what it leaves out.

        Long values are cut. Where there is no room for all keys, those are shown that most configs
        have, the ones with the most values first.

        Args:
            width: letters of a line, 80 or more.
        """
        names = [cut(escape_controls(name), _WIDEST_NAME) for name in self.names]
        cells = {column: [cut(escape_controls(word), _WIDEST) for word in column.words()]
                 for column in self.columns}
        heads = {column: _head(column) for column in self.columns}
        room = max(width, 80) - max(map(len, ["run", *names]))
        shown = []
        for column in self._by_weight():
            needed = 2 + max(map(len, [*heads[column], *cells[column]]))
            if needed <= room:
                room -= needed
                shown.append(column)
        shown.sort(key=self.columns.index)
        head = [["", *(heads[column][0] for column in shown)],
                ["run", *(heads[column][1] for column in shown)]]
        rows = [[names[row], *(cells[column][row] for column in shown)] for row in self.order]
        # Of a long table a screen shows the end.
        again = head[::-1] if len(rows) > 40 else []
        lines = in_columns([*head, *rows, *again], "<", *[">"] * len(shown))
        hidden = [escape_controls(column.title) for column in self.columns if column not in shown]
        if hidden:
            lines.append(f"Not shown, for want of room: {', '.join(hidden)} (--csv FILE has all)")
        if not any(_is_key(column) for column in self.columns):
            lines.append("Their configs do not differ.")
        if self.others:
            lines.append(f"{self.others:,} of {len(self.entries):,} were tested on other images "
                         f"than {names[0]}: those figures cannot be compared.")
        return "\n".join(lines)

    def _by_weight(self) -> list[Column]:
        """Return the columns, those first that may take the room of the others."""
        keys = sorted(filter(_is_key, self.columns), key=lambda column: (
            column.cells.count([]), -len(set(map(str, column.cells)))))
        rest = [column for column in self.columns if not _is_key(column)]
        count = 3 if rest[0].title == "n" else 2
        return list(dict.fromkeys([self._sorted_by, *rest[:count], *keys[:4], *rest[count:],
                                   *keys[4:]]))

    def csv(self) -> str:
        """Return the whole table as CSV, with folders for names and values as they are.

        Accuracies are 0 to 1, times seconds. Text that a spreadsheet would take for a formula
        begins with `'` (see OWASP, "CSV Injection").
        """
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(harmless_cell, ["run", *(title for column in self.columns
                                                 for title in column.titles())]))
        for row in self.order:
            writer.writerow(map(harmless_cell, [str(self.entries[row].folder), *(
                value for column in self.columns for value in column.exact(row))]))
        return file.getvalue()

    def paired_test(self) -> str | None:
        """Return in words whether two runs differ by `mcnemar`; None unless there are just two."""
        is_single = all(entry.folder == entry.runs[0].folder for entry in self.entries)
        if len(self.entries) != 2 or not is_single or self.others:
            return None
        a, b = (self.entries[row].runs[0] for row in self.order)
        only_a, only_b, p = mcnemar(*(_predictions_of(run, run.metrics) for run in (a, b)))
        if only_a + only_b == 0:
            return "Both are right on the same test images: nothing tells them apart there."
        first, second = (escape_controls(self.names[row]) for row in self.order)
        meaning = (
            "Such a difference is unlikely by chance on these test images; it says nothing of "
            "other seeds: train each with several." if p < 0.05 else
            "Chance alone often makes such a difference on so many test images: it does not tell "
            "which is better. Train each with several seeds, or test on more images.")
        shown = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
        return (f"{first} is right on {plural(only_a, 'image')} that {second} gets wrong, "
                f"{second} on {only_b:,} the other way round: {shown} (McNemar, exact). {meaning}")


def _is_key(column: Column) -> bool:
    """Whether a column is a key of the configs."""
    return not isinstance(column, Measured) and column.title != "n"


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).lower()


def _head(column: Column) -> tuple[str, str]:
    """Return what stands over a column, in two lines."""
    label = cut(escape_controls(column.label), _WIDEST)
    return _parts(label) if isinstance(column, Measured) else ("", label)


def _parts(title: str) -> tuple[str, str]:
    """Return "best test" and "accuracy" of "best test accuracy", no more than that of one word."""
    found = re.fullmatch(r"((?:best )?\S+) (.+)", title, re.DOTALL)
    return (found[1], found[2]) if found else ("", title)


def _predictions_of(run: Run, epochs: Sequence[dict[str, Any]]) -> Predictions:
    """Return `run.predictions`, without reading the checkpoint if the metrics tell the epoch.

    So what is not noticed is a checkpoint that is damaged, or of other weights of that epoch.
    """
    if run.shown is None and epochs:
        found = Predictions.load(run.folder / "predictions.npz")
        counts = epochs[-1] if monitored_in(epochs) == "test" else run.best_of(epochs)
        if found.epoch == counts["epoch"] and not found.batches:
            return found
    return run.predictions


def _measured(run: Run, epochs: Sequence[dict[str, Any]], found: Predictions) -> dict[str, float]:
    """Return what a run came to, by title."""
    best, split = run.best_of(epochs), monitored_in(epochs)
    return {"test accuracy": found.accuracy, "test loss": found.loss,
            **{f"test {name}": value for name, value in found.metrics.items()
               if name not in ("accuracy", "loss")},
            _CHOSEN[split]: best[f"{split}/accuracy"],
            # Of the model that was tested.
            "train accuracy": epoch_of(epochs, found.epoch)["train/accuracy"],
            "epochs": len(epochs),
            "training time": sum(epoch["seconds"] for epoch in epochs)}


def _differing(rows: Sequence[Sequence[Run]]) -> list[Column]:
    """Return a column for each key that differs, by more than what runs of a row are to differ in.

    Where a run lay and computed is none; where its images lay is, as they may be others.
    """
    flat = [[run.config.flat() for run in runs] for runs in rows]
    keys = dict.fromkeys(key for configs in flat for config in configs for key in config
                         if not is_among(key, WHERE_IT_RUNS))
    columns = {}
    for key in keys:
        # True and 1 are different values here, 1 and 1.0 too.
        cells = [list({in_words(config[key]): config[key] for config in configs
                       if key in config}.values()) for configs in flat]
        told = {tuple(map(in_words, cell)) for cell in cells
                if key not in REPEATED or len(cell) < 2}
        if len(told) > 1:
            columns[key] = cells
    # A part is called by what it is a NAME of.
    last = {key: key.removesuffix(".NAME").rpartition(".")[2] for key in columns}
    return [Column(key, last[key] if list(last.values()).count(last[key]) == 1 else key, cells)
            for key, cells in columns.items()]


def open_table(places: Sequence[str | Path]) -> Table:
    """Return the table of the runs that paths stand for, in the order of these.

    Args:
        places: run folders, or folders above some, see `find_all`; what lies in `seed_0`, `seed_1`
            and so on of one such folder, or in `fold_0` …, is one entry.

    Raises:
        RunError, ConfigError: there are fewer than two runs that are not left out.
    """
    opened: dict[Path, list[Run]] = {}
    left_out: list[UserError] = []
    seen: set[str] = set()
    for place in places:
        try:
            found = find_all(place)
        except UserError as error:
            left_out.append(error)
            continue
        for folder in found:
            if (real := os.path.realpath(folder)) in seen:
                continue
            seen.add(real)
            is_member = len(found) > 1 and MEMBER.fullmatch(folder.name)
            try:
                run = Run(folder)
            except UserError as error:
                left_out.append(error)
            else:
                opened.setdefault(folder.parent if is_member else folder, []).append(run)
    if not opened:
        raise left_out[0]
    table = Table([Entry(folder, runs) for folder, runs in opened.items()])
    table.left_out = left_out + table.left_out
    if sum(len(entry.runs) for entry in table.entries) < 2:
        raise next(iter(table.left_out), RunError(
            "there is nothing to compare one run with",
            hint="Name two or more, or a folder that holds some."))
    return table
