"""What torch says when memory runs out."""

from __future__ import annotations

from collections.abc import Callable

import torch

_ONEDNN = "could not create a primitive"  # says oneDNN without memory, and at other times


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, a GPU's or the machine's, does not suffice."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc",
             "could not create a memory", _ONEDNN)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words))


def largest_that_fits(attempt: Callable[[int], None], size: int) -> int:
    """Return the largest of size / 2, size / 4, … for which an attempt finds memory; 0 if none."""
    while size > 1:
        size //= 2
        try:
            attempt(size)
            return size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        torch.cuda.empty_cache()
    return 0
