"""The errors that a user can cause and mend. Anything else keeps its traceback."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Problems of a config that are shown at once.
_MOST_TOLD = 10


class UserError(Exception):
    """One message for the user: where, what is wrong, and how to mend it.

    Args:
        problem: what is wrong, one sentence.
        where: file, line and dotted key it was found at.
        hint: what was meant, what is allowed or what to do next.
    """

    exit_code = 2

    def __init__(self, problem: str, where: object = None, hint: str | None = None):
        # An error is pickled by what it is made of.
        super().__init__(problem, where, hint)
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


def frees_on_error(work: Callable[P, T]) -> Callable[P, T]:
    """Let go of what a function's frames hold, where it ends by a `UserError` or on request.

    A notebook keeps the traceback of the last error, and with it model and images, on a GPU in its
    memory, while the next training runs. Other errors keep their frames, for a debugger.
    """
    @wraps(work)
    def freeing(*args: P.args, **arguments: P.kwargs) -> T:
        # An error that the caller is dealing with is the caller's.
        handled, seen = sys.exc_info()[1], set[int]()
        try:
            return work(*args, **arguments)
        except (UserError, KeyboardInterrupt) as error:
            link: BaseException | None = error
            while link is not None and link is not handled and id(link) not in seen:
                seen.add(id(link))
                traceback.clear_frames(link.__traceback__)
                link = link.__cause__ if link.__suppress_context__ else link.__context__
            raise
    return freeing


def raise_together(problems: Sequence[UserError]) -> None:
    """Raise nothing, the one problem, or as many as can be read as one message."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        left = len(problems) - _MOST_TOLD
        lines = [f"{len(problems)} problems", *map(str, problems[:_MOST_TOLD]),
                 *([f"… and {left} more"] if left > 0 else [])]
        raise type(problems[0])("\n".join(lines))


def where_in(node: Any, key: str | None = None) -> str | None:
    """Return "file:line DOTTED.KEY" of a config node's key, or None outside a config."""
    where = getattr(node, "where", None)
    return where(key) if callable(where) else None


@contextmanager
def located(node: Any, key: str) -> Iterator[None]:
    """Give a `UserError` that is raised meanwhile, and knows no place, that of a node's key."""
    try:
        yield
    except UserError as error:
        error.where = error.where or where_in(node, key)
        raise
