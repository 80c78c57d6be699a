"""Stopping on request: Ctrl-C and a job's end let the step finish first."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType

from cvkit import distributed

# SIGHUP comes when a terminal closes; Windows has none.
_WATCHED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
            if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """Training stopped on request and can be resumed.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = number


class StopSignals:
    """While entered, notes the first SIGINT, SIGTERM or SIGHUP instead of dying.

    A second stops at once. SIGHUP that is ignored, as under nohup, stays so.

    Outside the main thread, which alone receives signals, it does nothing.

    Attributes:
        received: the signal's number, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            watched = [number for number in _WATCHED if number in (signal.SIGINT, signal.SIGTERM)
                       or signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in watched}
        return self

    def __exit__(self, *_: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it was ignored
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        words = "\nStopping after this step, to save it. Again stops at once.\n"
        if "ipykernel" in sys.modules:
            print(words)
        elif distributed.is_main():
            with contextlib.suppress(OSError):  # the terminal has gone
                os.write(2, words.encode())  # not print: it may have come in the middle of one
