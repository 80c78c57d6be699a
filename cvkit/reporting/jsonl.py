"""`metrics.jsonl`, which every run has, by the name of a writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cvkit.registry import WRITERS
from cvkit.runs.metrics_file import json_line, read_metrics
from cvkit.system.files import write_whole, writing


@WRITERS.register("jsonl")
class JsonLines:
    """One JSON object per epoch in `metrics.jsonl`. Every run has it; it need not be listed.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str):
        self.path = Path(folder) / "metrics.jsonl"

    def write(self, step: int, values: dict[str, Any]) -> None:
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json_line(values))

    def finish(self, run: Any) -> None:
        pass

    def close(self) -> None:
        pass

    @staticmethod
    def keep_epochs(folder: Path, last_epoch: int) -> None:
        """Drop what was written after the epoch a run resumes from."""
        path = folder / "metrics.jsonl"
        kept = [values for values in read_metrics(folder) if values["epoch"] <= last_epoch]
        write_whole(path, "".join(map(json_line, kept)))
