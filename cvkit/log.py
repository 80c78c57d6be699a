"""What a training says: lines on the screen and in `train.log`, and a bar."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tqdm.auto import tqdm

from cvkit import distributed
from cvkit.errors import show_what_can_be_shown
from cvkit.files import writing


class Log:
    """Lines that go to the screen and, clean, into `train.log`; of several processes, of one."""

    def __init__(self) -> None:
        show_what_can_be_shown()
        self.path: Path | None = None
        self._before: list[str] = []
        # A terminal or a notebook shows bars that move; a file or a pipe gets whole lines.
        self.is_live = (sys.stdout.isatty() or "ipykernel" in sys.modules) and (
            distributed.is_main())

    def attach(self, folder: Path) -> None:
        """Write what was logged so far, and all that follows, into `train.log` of a run folder."""
        self.path = folder / "train.log"
        lines, self._before = self._before, []
        for line in lines:
            self.write(line)

    def write(self, line: str) -> None:
        """Put a line into the file only."""
        if self.path is None:
            self._before.append(line)
            return
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def show(self, line: str) -> None:
        """Put a line on the screen only, above any bar."""
        if distributed.is_main():
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def both(self, line: str) -> None:
        self.show(line)
        self.write(line)


class Progress:
    """A bar `Train: Loss=… Accuracy=… 391/391 [00:41<00:00, 9.3it/s]`, refreshed twice a second.

    Args:
        title: "Train" or "Test".
        total: batches.
        is_shown: False draws nothing.
        done: batches that were counted before.
    """

    def __init__(self, title: str, total: int, is_shown: bool, done: int = 0):
        self.title = title
        self._due = time.monotonic() + 0.5
        self._bar = tqdm(total=total, initial=done, desc=title, disable=not is_shown,
                         file=sys.stdout, leave=title == "Train", mininterval=0,
                         bar_format="{desc} {n_fmt}/{total_fmt} "
                                    "[{elapsed}<{remaining}, {rate_fmt}]")
        self._done, self._total = done, total

    def step(self) -> bool:
        """Count a batch; return whether it is time for `update`."""
        self._done += 1
        return time.monotonic() >= self._due or self._done == self._total

    def update(self, loss: float, accuracy: float) -> None:
        """Redraw with these means so far."""
        self._due = time.monotonic() + 0.5
        self._bar.set_description_str(
            f"{self.title}: Loss={loss:.4f} Accuracy={100 * accuracy:.2f}", refresh=False)
        self._bar.update(self._done - self._bar.n)
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()
