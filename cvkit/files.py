"""Writing files: whole or not at all, and with the file's name in what goes wrong."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cvkit.errors import RunError


def user_path(path: str | Path) -> Path:
    """Return a path, a leading `~` in it as the home folder."""
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # ~ and what no user can be called
        return Path(path)


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Turn what the system says against writing a file into a `RunError` that names it."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}",
                       hint="Is the disk full, or may you not write there?") from error


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a crash leaves the old content or the new.

    Raises:
        RunError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    with writing(path):
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or the new name could outlive a crash, empty
        os.replace(part, path)


def plain(state: Any) -> Any:
    """Return a state with Python's numbers in the place of NumPy's, which no checkpoint holds."""
    if isinstance(state, dict):
        return {plain(key): plain(value) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(map(plain, state))
    is_number = type(state).__module__ == "numpy" and getattr(state, "shape", None) == ()
    return state.item() if is_number and hasattr(state, "item") else state


def reread(state: Any) -> Any:
    """Return what a state comes to once it is saved and loaded, without a file: on the CPU.

    Raises:
        Exception: of pickle or torch, if it holds more than tensors and plain values.
    """
    import torch

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)
