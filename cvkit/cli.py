"""Command-line tools: a user's mistake is one message and exit code 2, Ctrl-C is 130."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable

from cvkit.config.command_line import parse_words, split_pairs
from cvkit.errors import UserError
from cvkit.system import distributed
from cvkit.system.text import escape_controls, show_what_can_be_shown

__all__ = ["new_parser", "parse_words", "run_tool", "split_pairs"]


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help shows a tool's docstring as it is written."""
    return argparse.ArgumentParser(description=description, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def run_tool(main: Callable[[], int | None], is_shared: bool = False) -> None:
    """Run a command-line tool: a `UserError` becomes its message and exit code 2.

    Args:
        main: the tool.
        is_shared: whether several processes, started by torchrun, can do its work together.

    Of several processes the first to fail says why; the others only lost contact with it.
    """
    show_what_can_be_shown()
    try:
        if distributed.local_size() > 1 and not is_shared:
            raise UserError(f"{os.path.basename(sys.argv[0])} runs in one process",
                            hint="torchrun is for tools/train.py.")
        sys.exit(main())
    except UserError as error:
        if distributed.is_first_to_fail():
            print(escape_controls(f"error: {error}", keep="\n\t"), file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        sys.exit(128 + getattr(error, "signal", signal.SIGINT))
    except BrokenPipeError:
        # The reader of `tool | head` has left, and Python's flush at the end would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception:
        if distributed.is_first_to_fail():
            raise
        sys.exit(1)
