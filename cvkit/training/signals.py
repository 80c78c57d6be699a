"""Stopping on request: Ctrl-C and a job's end let the step finish first.

`training.trainer` then saves and raises `Interrupted`; `cli.run_tool` makes the exit code of it.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from cvkit.system import distributed
from cvkit.system.log import in_notebook

# SIGHUP comes when a terminal closes; Windows has none.
WATCHED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
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

    A second SIGINT or SIGTERM stops at once. SIGHUP that is ignored, as under nohup, stays so.

    Outside the main thread, which alone receives signals, it does nothing.

    Attributes:
        received: the signal's number, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}
        self._shown_on = [place for place in (1, 2) if os.isatty(place)]

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            watched = [number for number in WATCHED if number in (signal.SIGINT, signal.SIGTERM)
                       or signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in watched}
        return self

    def __exit__(self, *_: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _leave_the_terminal(self) -> None:
        """Let what is shown go nowhere: writing to a terminal that has closed is an error."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for place in self._shown_on:
            os.dup2(nowhere, place)
        os.close(nowhere)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if number not in (signal.SIGINT, signal.SIGTERM):
            self._leave_the_terminal()
        # Also where it was ignored before.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        words = "\nStopping after this step, to save it. Again stops at once.\n"
        if in_notebook():
            print(words)
        elif distributed.is_main():
            # The signal may have come in the middle of a print.
            os.write(2, words.encode())
