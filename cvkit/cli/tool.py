"""Running commands: a user's mistake is one message and exit code 2, Ctrl-C is 130."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from cvkit.config.command_line import parse_words
from cvkit.errors import UserError
from cvkit.system import distributed
from cvkit.system.command import as_called_here, command
from cvkit.system.text import escape_controls, show_what_can_be_shown

__all__ = ["module_of", "new_parser", "parse_words", "run_command", "run_tool"]


def new_parser(description: str | None, name: str = "") -> argparse.ArgumentParser:
    """Return a parser whose help shows a docstring as it is written, commands as they are here.

    Args:
        description: the docstring.
        name: of the command; that of the file that runs if none is given.
    """
    parser = argparse.ArgumentParser(_title(name), description=as_called_here(description or ""),
                                     allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    # Python 3.14 colours its usage, which messages quote.
    parser.color = False  # type: ignore[attr-defined]
    return parser


def module_of(name: str) -> Any:
    """Return the module of a command, which has a `parser()` and a `main(words)`."""
    return importlib.import_module(f"cvkit.cli.{name.replace('-', '_')}")


def run_command(name: str, words: Sequence[str] | None = None) -> None:
    """Run a command with the words that follow its name, by default those of this process."""
    words = sys.argv[1:] if words is None else words
    run_tool(lambda: module_of(name).main(list(words)), name == "train", name)


def run_tool(main: Callable[[], int | None], is_shared: bool = False, name: str = "") -> None:
    """Run a command-line tool: a `UserError` becomes its message and exit code 2.

    Args:
        main: the tool.
        is_shared: whether several processes, started by torchrun, can do its work together.
        name: of the command; that of the file that runs if none is given.

    Of several processes the first to fail says why; the others only lost contact with it.
    """
    show_what_can_be_shown()
    try:
        if distributed.launched() > 1 and not is_shared:
            raise UserError(f"{_title(name)} runs in one process",
                            hint=f"torchrun is for {command('train').removeprefix('python ')}.")
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


def _title(name: str) -> str:
    """Return what usages call a command: "train.py" in a clone, else "cvkit train"."""
    return command(name).removeprefix("python tools/") if name else os.path.basename(sys.argv[0])
