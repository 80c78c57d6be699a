"""Calling a constructor: what it refuses, and whether what it makes is whole."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cvkit.errors import DataError, UserError
from cvkit.registry.signatures import place_of

# Classes of torch have these attributes once they are initialised.
_INITIALISED = {"Module": "_parameters", "Optimizer": "param_groups", "LRScheduler": "optimizer"}


def construct(entry: Callable, arguments: dict[str, Any]) -> Any:
    """Return what a constructor makes of arguments.

    Raises:
        ValueError: its class forgets to initialise the one of torch that it is derived from, or
            does so too late; the message says where. Whatever the constructor itself raises.
    """
    try:
        made = entry(**arguments)
    except Exception as error:
        if "__init__() call" not in str(error):
            raise
        # torch's Module says that it has to come before assignments, from within itself.
        places = [f"{frame.f_code.co_filename}:{line}"
                  for frame, line in traceback.walk_tb(error.__traceback__)
                  if not frame.f_globals.get("__name__", "").startswith("torch.")]
        raise ValueError(f"super().__init__() comes before {places[-1]}") from error
    for base in type(made).__mro__:
        attribute = _INITIALISED.get(base.__name__)
        if base.__module__.startswith("torch.") and attribute and not hasattr(made, attribute):
            raise ValueError(f"super().__init__() of {base.__name__} was not called: "
                             f"{place_of(type(made))}")
    return made


def reason_of(error: Exception) -> str:
    """Return why a constructor refused its arguments."""
    if isinstance(error, UserError):
        return error.problem
    # pydantic, which checks the arguments of albumentations, takes four lines for each value.
    if errors := getattr(error.__cause__, "errors", None):
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}, not {each['input']!r}"
                         for each in errors())
    return str(error).strip() or type(error).__name__


def argument_of(error: Exception, arguments: Mapping[str, Any]) -> str | None:
    """Return the argument that an error names or, if it is about a file, whose value it names.

    If it names none, the only one whose number it names: "Invalid learning rate: -0.1".
    """
    text = f"{reason_of(error)} {getattr(error, 'filename', '')}"
    names = [(key, key) for key in arguments]
    if isinstance(error, (DataError, OSError)):
        names = [(key, str(Path(value))) for key, value in arguments.items()
                 if isinstance(value, str)] + names
    numbers = [(key, str(value)) for key, value in arguments.items()
               if isinstance(value, (int, float)) and not isinstance(value, bool)]
    named = [key for key, name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
    numbered = [key for key, number in numbers
                if re.search(rf"(?<![\w.-]){re.escape(number)}(?![\w-]|\.\d)", text)]
    return named[0] if named else numbered[0] if len(numbered) == 1 else None


def lack_of(part: Any, form: str) -> str | None:
    """Return what keeps a method from being called on an object, or on those of a class, or None.

    Args:
        part: the object, or its class.
        form: the method as it is called, such as "update(logits, labels)".
    """
    method, *arguments = re.findall(r"\w+", form)
    found = getattr(part, method, None)
    if not callable(found):
        code = getattr(getattr(part, "__init__", None), "__code__", None)
        is_set_there = found is None and inspect.isclass(part) and code and method in code.co_names
        return None if is_set_there else f"has no {method}()"
    if inspect.isclass(part) and inspect.isfunction(found) and not isinstance(
            inspect.getattr_static(part, method), staticmethod):
        arguments = ["self", *arguments]
    try:
        inspect.signature(found, follow_wrapped=False).bind(*arguments)
    except TypeError:
        return f"cannot be called as {form}: {place_of(found)}"
    except ValueError:
        # A method in C has no signature: it is taken to be right.
        return None
    return None
