"""What a training says: lines on the screen and in `train.log`, and a bar."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tqdm.auto import tqdm

from cvkit.system import distributed
from cvkit.system.files import writing
from cvkit.system.text import plural, show_what_can_be_shown, visible

_FIRST_WAIT, _LONGEST_WAIT = 10.0, 300.0  # seconds without a line, where there is no bar


class Log:
    """Lines that go to the screen and, clean, into `train.log`; of several processes, of one.

    Args:
        is_silent: whether nothing is said of progress.
    """

    def __init__(self, is_silent: bool = False) -> None:
        show_what_can_be_shown()
        self.path: Path | None = None
        self._before: list[str] = []
        self.is_silent = is_silent or not distributed.is_main()
        self._spoke, self._wait = time.monotonic(), _FIRST_WAIT

    @property
    def is_live(self) -> bool:
        """Whether bars that move are shown, as on a terminal; a file or a pipe gets whole lines."""
        return not self.is_silent and (sys.stdout.isatty() or "ipykernel" in sys.modules)

    def is_sign_of_life_due(self) -> bool:
        """Whether nothing was said for long; after each time that it was, longer."""
        if self.is_silent or time.monotonic() - self._spoke < self._wait:
            return False
        self._wait = min(2 * self._wait, _LONGEST_WAIT)
        return True

    def attach(self, folder: Path) -> None:
        """Write what was logged so far, and all that follows, into `train.log` of a run folder."""
        self.path = folder / "train.log"
        lines, self._before = self._before, []
        for line in lines:
            self.write(line)

    def write(self, line: str) -> None:
        """Put a line into the file only."""
        line = visible(line, keep="\n\t")  # names of files may hold what cannot be written
        if self.path is None:
            self._before.append(line)
            return
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def show(self, line: str) -> None:
        """Put a line on the screen only, above any bar."""
        if distributed.is_main():
            tqdm.write(visible(line, keep="\n\t"), file=sys.stdout)
            sys.stdout.flush()
            self._spoke = time.monotonic()

    def both(self, line: str) -> None:
        self.show(line)
        self.write(line)


class Progress:
    """How far something is.

    A terminal or a notebook shows a bar `Train: Loss=… Accuracy=… 391/391 [00:41<00:00, 9.3it/s]`,
    refreshed twice a second. Elsewhere there is a line after 10 seconds without any, and then ever
    more seldom:
    `Epoch 3/20 train 97/391: loss 0.5123, accuracy 82.10 %, 9.3 batches/s, 00:31 left`.

    Args:
        title: "Train", "Test" or what else is done.
        total: batches, or other units.
        log: what is said by it is said to the screen.
        done: units that were counted before.
        unit: what is counted, singular.
        place: what it is a part of, for lines.
        delay: seconds until a bar is shown.
    """

    def __init__(self, title: str, total: int, log: Log, done: int = 0, unit: str = "batch",
                 place: str = "", delay: float = 0):
        self.title, self._log, self._unit, self._place = title, log, unit, place
        self._start, self._delay = time.monotonic(), delay
        self._due = self._start + 0.5
        self._bar = tqdm(total=total, initial=done, desc=title, disable=not log.is_live,
                         file=sys.stdout, leave=title == "Train", mininterval=0, delay=delay,
                         bar_format="{desc} {n_fmt}/{total_fmt} "
                                    "[{elapsed}<{remaining}, {rate_fmt}]")
        self._done, self._total = done, total
        # Speed counts from the end of the first step, which waits for a GPU and all else to start.
        self._first: tuple[int, float] | None = None

    def step(self, count: int = 1) -> bool:
        """Count what was done; return whether it is time for `update`."""
        self._done += count
        now = time.monotonic()
        self._first = self._first or (self._done, now)
        return now >= self._due or self._done == self._total

    def update(self, loss: float | None = None, accuracy: float | None = None) -> None:
        """Show how far it is, and these means so far."""
        now = time.monotonic()
        self._due = now + 0.5
        if self._log.is_live:
            words = "" if loss is None else f": Loss={loss:.4f}"
            words += "" if accuracy is None else f" Accuracy={100 * accuracy:.2f}"
            self._bar.set_description_str(self.title + words, refresh=False)
            self._bar.update(self._done - self._bar.n)
            if now >= self._start + self._delay:
                self._bar.refresh()
        elif self._done < self._total and self._log.is_sign_of_life_due():
            words = "" if loss is None else f"loss {loss:.4f}, "
            words += "" if accuracy is None else f"accuracy {100 * accuracy:.2f} %, "
            title = f"{self._place} {self.title.lower()}" if self._place else self.title
            self._log.show(f"{title} {self._done}/{self._total}: {words}{self._speed(now)}")

    def _speed(self, now: float) -> str:
        first, then = self._first
        if self._done == first:
            return f"the first after {now - self._start:.0f} s"
        rate = (self._done - first) / max(now - then, 1e-9)
        speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.2g}"
        unit = plural(1 if speed == "1" else 2, self._unit).split(" ", 1)[1]
        return f"{speed} {unit}/s, {tqdm.format_interval((self._total - self._done) / rate)} left"

    def close(self) -> None:
        self._bar.close()
