"""What cvkit says: lines on the screen and in `train.log`, by the logger "cvkit", and a bar."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from cvkit.system import distributed
from cvkit.system.files import writing
from cvkit.system.text import escape_controls, plural, show_what_can_be_shown

# LOG.info(line) goes to the screen and into the train.log of the run that is trained; with
# extra=SCREEN to the one alone, with extra=FILE to the other.
# logging.getLogger("cvkit").setLevel("WARNING") silences lines and bars.
LOG = logging.getLogger("cvkit")
SCREEN, FILE = {"only": "screen"}, {"only": "file"}

# Where there is no bar, a line is due after so many seconds without one, and then after longer.
_FIRST_WAIT, _LONGEST_WAIT = 10.0, 300.0


def in_notebook() -> bool:
    """Whether this process runs the cells of a notebook."""
    kernel = sys.modules.get("ipykernel.kernelapp")
    return kernel is not None and kernel.IPKernelApp.initialized()


class _Place(logging.Handler):
    """Takes the lines that are not for another place alone; of several processes, the first's."""

    def __init__(self, name: str):
        super().__init__()
        self.addFilter(lambda record: getattr(record, "only", name) == name
                       and distributed.is_main())


class Screen(_Place):
    """Shows lines above any bar."""

    def __init__(self) -> None:
        super().__init__("screen")
        self._is_muted = False
        self.begin()

    def begin(self) -> None:
        """Count the time without a line from now."""
        self._spoke, self._wait = time.monotonic(), _FIRST_WAIT

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Show nothing meanwhile, neither lines nor bars."""
        before, self._is_muted = self._is_muted, True
        try:
            yield
        finally:
            self._is_muted = before

    def emit(self, record: logging.LogRecord) -> None:
        if self._is_muted:
            return
        show_what_can_be_shown()
        tqdm.write(record.getMessage(), file=sys.stdout)
        sys.stdout.flush()
        self._spoke = time.monotonic()

    @property
    def is_live(self) -> bool:
        """Whether bars that move are shown, as on a terminal; a file or a pipe gets whole lines."""
        return self._may_speak and (sys.stdout.isatty() or in_notebook())

    @property
    def _may_speak(self) -> bool:
        return (distributed.is_main() and LOG.isEnabledFor(logging.INFO)
                and not self._is_muted)

    def is_sign_of_life_due(self) -> bool:
        """Whether nothing was said for long; after each time that it was, longer."""
        if not self._may_speak or time.monotonic() - self._spoke < self._wait:
            return False
        self._wait = min(2 * self._wait, _LONGEST_WAIT)
        return True


class RunLog(_Place):
    """Writes lines into `train.log`; those from before there is a run folder, once there is."""

    def __init__(self) -> None:
        super().__init__("file")
        self._path: Path | None = None
        self._before: list[logging.LogRecord] = []

    def attach(self, folder: Path) -> None:
        """Write what was said so far, and all that follows, into a run folder."""
        self._path, before = folder / "train.log", self._before
        for record in before:
            self.emit(record)

    def emit(self, record: logging.LogRecord) -> None:
        if self._path is None:
            self._before.append(record)
        else:
            with writing(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(record.getMessage() + "\n")


def _escaped(record: logging.LogRecord) -> bool:
    """Escape what no handler may get: names of files may hold what cannot be written or shown."""
    record.msg, record.args = escape_controls(record.getMessage(), keep="\n\t"), None
    return True


screen = Screen()
LOG.addFilter(_escaped)
# Unless the user has chosen one before.
if LOG.level == logging.NOTSET:
    LOG.setLevel(logging.INFO)
LOG.propagate = False
LOG.addHandler(screen)


@contextmanager
def run_log() -> Iterator[RunLog]:
    """Keep what is said meanwhile, for `train.log`."""
    handler = RunLog()
    LOG.addHandler(handler)
    try:
        yield handler
    finally:
        LOG.removeHandler(handler)


class ProgressBar:
    """How far something is.

    A terminal or a notebook shows a bar `Train: Loss=… Accuracy=… 391/391 [00:41<00:00, 9.3it/s]`,
    refreshed twice a second. Elsewhere there is a line after 10 seconds without any, and then ever
    more seldom:
    `Epoch 3/20 train 97/391: loss 0.5123, accuracy 82.10 %, 9.3 batches/s, 00:31 left`.

    It ends with a `with` block.

    Args:
        title: "Train", "Test" or what else is done.
        total: batches, or other units.
        done: units that were counted before.
        unit: what is counted, singular.
        place: what it is a part of, for lines.
        delay: seconds until a bar is shown.
        is_silent: whether nothing is shown.
        header: a line above a bar.
    """

    def __init__(self, title: str, total: int, done: int = 0, unit: str = "batch",
                 place: str = "", delay: float = 0, is_silent: bool = False, header: str = ""):
        self.title, self._unit, self._place, self._is_silent = title, unit, place, is_silent
        self._is_live = screen.is_live and not is_silent
        # Outside of a training, the wait for a first line begins now.
        if not place and not is_silent:
            screen.begin()
        if header and self._is_live:
            LOG.info(header, extra=SCREEN)
        self._start, self._delay = time.monotonic(), delay
        self._due = self._start + 0.5
        self._bar = tqdm(total=total, initial=done, desc=title, disable=not self._is_live,
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
        if self._is_live:
            words = "" if loss is None else f": Loss={loss:.4f}"
            words += "" if accuracy is None else f" Accuracy={100 * accuracy:.2f}"
            self._bar.set_description_str(self.title + words, refresh=False)
            self._bar.update(self._done - self._bar.n)
            if now >= self._start + self._delay:
                self._bar.refresh()
        elif (self._done < self._total and not self._is_silent
              and screen.is_sign_of_life_due()):
            words = "" if loss is None else f"loss {loss:.4f}, "
            words += "" if accuracy is None else f"accuracy {100 * accuracy:.2f} %, "
            title = f"{self._place} {self.title.lower()}" if self._place else self.title
            LOG.info(f"{title} {self._done}/{self._total}: {words}{self._speed(now)}", extra=SCREEN)

    def _speed(self, now: float) -> str:
        if self._first is None or self._done == self._first[0]:
            return f"the first after {now - self._start:.0f} s"
        first, then = self._first
        rate = (self._done - first) / max(now - then, 1e-9)
        speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.2g}"
        unit = plural(1 if speed == "1" else 2, self._unit).split(" ", 1)[1]
        return f"{speed} {unit}/s, {tqdm.format_interval((self._total - self._done) / rate)} left"

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        # One left open by an error is drawn again in a notebook, which keeps it with the traceback.
        self._bar.close()
