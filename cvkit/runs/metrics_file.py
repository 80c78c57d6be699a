"""`metrics.jsonl`: one JSON object for each epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cvkit.errors import RunError
from cvkit.system.files import write_whole, writing

# JSON has no numbers for these.
_INFINITE = {"inf": math.inf, "-inf": -math.inf}


def _line(values: dict[str, Any]) -> str:
    """Return a line of JSON: NaN is null, and what is infinite a word."""
    return json.dumps({name: _in_json(value) for name, value in values.items()},
                      allow_nan=False) + "\n"


def _in_json(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def _from_json(value: Any) -> Any:
    return math.nan if value is None else _INFINITE.get(value, value) if (
        isinstance(value, str)) else value


def add_metrics(folder: Path, values: dict[str, Any]) -> None:
    """Write an epoch below the others."""
    path = folder / "metrics.jsonl"
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(_line(values))


def keep_epochs(folder: Path, last_epoch: int) -> None:
    """Drop what was written after the epoch that a run is resumed from."""
    kept = [values for values in read_metrics(folder) if values["epoch"] <= last_epoch]
    write_whole(folder / "metrics.jsonl", "".join(map(_line, kept)))


def epoch_of(epochs: Sequence[dict[str, Any]], number: int) -> dict[str, Any]:
    """Return what was measured in the epoch of a number; of one that is not there, in the last."""
    return next((epoch for epoch in epochs if epoch["epoch"] == number), epochs[-1])


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the epochs of a run's `metrics.jsonl`; a line cut off by a crash is left out.

    Raises:
        RunError: a value is none that training writes.
    """
    path = Path(folder) / "metrics.jsonl"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    epochs = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and "epoch" in values:
            values = {name: _from_json(value) for name, value in values.items()}
            wrong = next((name for name, value in values.items() if not _is_metric(name, value)),
                         None)
            if wrong is not None:
                raise RunError(f"{path}:{number}: {wrong} is {str(values[wrong])[:40]}, which no "
                               "training writes", hint="Remove that line, or the file.")
            epochs.append(values)
    return epochs


def _is_metric(name: str, value: Any) -> bool:
    """Whether a value can be what it is called; one's own metrics may be anything."""
    if name == "epoch":
        return type(value) is int and 0 < value < 2**31
    if name == "rates":
        return isinstance(value, list) and all(
            isinstance(pair, list) and len(pair) == 2
            and _is_plottable(pair[0]) and _is_plottable(pair[1]) for pair in value)
    if name == "lower_is_better":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if name == "lr_mult":
        return isinstance(value, dict) and all(map(_is_plottable, value.values()))
    # No float holds an integer as large as that.
    if isinstance(value, int) and abs(value) >= 2**1023:
        return False
    if name in ("lr", "seconds", "images_per_second"):
        return _is_plottable(value) and (name == "lr" or value >= 0)
    is_drawn = name in {f"{split}/{key}" for split in ("train", "val", "test")
                        for key in ("loss", "accuracy")}
    is_number = type(value) in (int, float)
    return not is_drawn or (is_number and not 1e100 <= abs(value) < math.inf)


def _is_plottable(value: Any) -> bool:
    return type(value) in (int, float) and -1e100 < value < 1e100
