"""The errors that a user can cause and mend. Anything else keeps its traceback."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterable


class UserError(Exception):
    """One message for the user: where, what is wrong, and how to mend it.

    Args:
        problem: what is wrong, one sentence.
        where: file, line and dotted key it was found at.
        hint: what was meant, what is allowed or what to do next.
    """

    exit_code = 2

    def __init__(self, problem: str, where: object = None, hint: str | None = None):
        super().__init__(problem, where, hint)  # all of them, for pickling
        self.problem, self.where, self.hint = problem, where, hint

    def __str__(self) -> str:
        message = f"{self.where}: {self.problem}" if self.where else self.problem
        message = f"{message}\n  {self.hint}" if self.hint else message
        # A word that fills the screen, a key pasted by mistake, hides what is said about it.
        return re.sub(r"(\S{200})\S{200,}(\S{20})", r"\1…\2", message)


class ConfigError(UserError):
    """A config file, an override, a name or an argument is wrong."""


class DataError(UserError):
    """Data is absent, unreadable or does not fit the rest of the config."""


class CheckpointError(UserError):
    """A checkpoint is absent, damaged or does not fit the model."""


class RunError(UserError):
    """A run folder is absent, damaged or cannot be written; or training cannot go on."""


class DivergenceError(RunError):
    """The loss is no longer finite."""


def visible(text: str, keep: str = "") -> str:
    """Return text with control characters as `\\x1b`: names of files may hold any.

    A terminal would obey them, a line would end; half a character (of a file name that is not
    UTF-8) could not be written at all.

    Args:
        keep: control characters that are left.
    """
    return "".join(
        letter if letter in keep or unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp")
        else letter.encode("unicode_escape").decode() for letter in text)


def plural(count: int, word: str) -> str:
    """Return "1 epoch", "2 epochs" or "1,563 batches" of "epoch" and "batch"."""
    ending = "" if count == 1 else "es" if re.search("(s|x|sh|tch)$", word) else "s"
    return f"{count:,} {word}{ending}"


def show_what_can_be_shown() -> None:
    """Let screens, pipes and files that lack a letter show "?" for it, from now on.

    The output of Windows, cron and old terminals is often not UTF-8, and "×" would end a training.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's, or a test's, takes all letters
            stream.reconfigure(errors="replace")


def suggest(name: object, allowed: Iterable[str], listed: int = 12) -> str:
    """Return "Did you mean …?" and the allowed names, the nearest first, at most `listed`."""
    allowed = [str(item) for item in allowed]
    by_lower = {item.lower(): item for item in reversed(allowed)}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=listed, cutoff=0.6)
    near = [by_lower[item] for item in near]
    parts = [f"Did you mean {near[0]}?"] if near else []
    if allowed:
        nearest_first = near + [item for item in allowed if item not in near]
        shown = allowed if len(allowed) <= listed else nearest_first[:listed]
        rest = len(allowed) - len(shown)
        parts.append(f"Allowed: {', '.join(shown)}{f' and {rest} more' if rest > 0 else ''}.")
    return " ".join(parts)


def raise_together(problems: list[UserError]) -> None:
    """Raise nothing, the one problem, or all of them as one message."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [f"{len(problems)} problems", *(str(problem) for problem in problems)]
        raise type(problems[0])("\n".join(lines))


def run_tool(main: Callable[[], int | None], is_shared: bool = False) -> None:
    """Run a command-line tool: a `UserError` becomes its message and exit code 2.

    Args:
        main: the tool.
        is_shared: whether several processes, started by torchrun, can do its work together.

    Of several processes the first to fail says why; the others only lost contact with it.
    """
    from cvkit import distributed

    show_what_can_be_shown()
    try:
        if distributed.local_size() > 1 and not is_shared:
            raise UserError(f"{os.path.basename(sys.argv[0])} runs in one process",
                            hint="torchrun is for tools/train.py.")
        sys.exit(main())
    except UserError as error:
        if distributed.is_first_to_fail():
            print(visible(f"error: {error}", keep="\n\t"), file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        sys.exit(128 + getattr(error, "signal", signal.SIGINT))
    except BrokenPipeError:  # the reader of `tool | head` has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception:
        if distributed.is_first_to_fail():
            raise
        sys.exit(1)
