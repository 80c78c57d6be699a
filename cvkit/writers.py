"""Writers take a run's numbers as they come: `write(step, values)` after each epoch, `close()`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cvkit.registry import WRITERS


@WRITERS.register("jsonl")
class JsonLines:
    """One JSON object per epoch in `metrics.jsonl`. Every run has it; it need not be listed.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str):
        self.path = Path(folder) / "metrics.jsonl"

    def write(self, step: int, values: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def close(self) -> None:
        pass

    @staticmethod
    def keep_epochs(folder: Path, last_epoch: int) -> None:
        """Drop what was written after the epoch a run resumes from."""
        path = folder / "metrics.jsonl"
        kept = [values for values in read_metrics(folder) if values["epoch"] <= last_epoch]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(values) + "\n" for values in kept), encoding="utf-8")
        part.replace(path)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the epochs of a run's `metrics.jsonl`; a line cut off by a crash is left out."""
    path = Path(folder) / "metrics.jsonl"
    epochs = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and "epoch" in values:
            epochs.append(values)
    return epochs


@WRITERS.register("tensorboard")
class TensorBoard:
    """Scalars for `tensorboard --logdir runs`, in the run folder; epochs on the x axis.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder)

    def write(self, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if name != "epoch" and isinstance(value, (int, float)) and not isinstance(value, bool):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
