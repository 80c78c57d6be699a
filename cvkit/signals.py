"""Stopping on request: Ctrl-C and a job's end let the step finish first."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from cvkit import distributed

_WATCHED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Training stopped on request and can be resumed.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = number


class StopSignals:
    """While entered, notes the first SIGINT or SIGTERM instead of dying; a second stops at once.

    Outside the main thread, which alone receives signals, it does nothing.

    Attributes:
        received: the signal's number, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _WATCHED}
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
            os.write(2, words.encode())  # not print: the signal may have come in the middle of one
