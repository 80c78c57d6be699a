"""Writing files: whole or not at all, and with the file's name in what goes wrong."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from cvkit.errors import RunError


def user_path(path: str | Path) -> Path:
    """Return a path, a leading `~` in it as the home folder."""
    try:
        return Path(os.path.expanduser(path))
    except ValueError:
        # No user can be called what follows the ~.
        return Path(path)


def cache_folder() -> Path | None:
    """Return where cvkit keeps what it would find out again, or None, where nobody is at home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cvkit")
    except RuntimeError:
        # A container's user may have neither HOME nor an entry among the users.
        return None


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Turn what the system says against writing a file into a `RunError` that names it."""
    try:
        yield
    except BrokenPipeError:
        # The reader of `tool | head` has left; no file is at fault.
        raise
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}",
                       hint="Is the disk full, or may you not write there?") from error


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """Write a file so that a crash, at any moment, leaves the old content or the new.

    Args:
        path: what was there is replaced once all is written.
        keep: where to move what was there, instead.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            # Without it the new name could outlive a crash, and its content not.
            os.fsync(file.fileno())
        if keep is not None and path.is_file():
            _replace(path, keep)
        _replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _replace(old: Path, new: Path) -> None:
    """Rename a file. Windows refuses while another process has one open, a virus scanner say."""
    for _ in range(50 if sys.platform == "win32" else 0):
        try:
            os.replace(old, new)
            return
        except PermissionError:
            time.sleep(0.1)
    os.replace(old, new)


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all, see `replacing`.

    Raises:
        RunError: it cannot be written.
    """
    with writing(path), replacing(path) as file:
        file.write(text.encode())


def lock_file(file: IO, tells: bool = True) -> bool:
    """Lock an open file until it is closed, or the process ends.

    Within one process it does not keep anyone out: a second lock is granted, and closing either
    file ends both.

    Args:
        tells: whether it is said where files cannot be locked.

    Returns:
        Whether it is locked, which files on some drives cannot be.

    Raises:
        BlockingIOError: another process has locked it.
    """
    if sys.platform == "win32":
        import msvcrt

        # A byte far behind the name of the owner, which others have to be able to read.
        file.seek(2**30)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from None
        return True
    import fcntl

    try:
        # Unlike a lock by `flock`, forked workers do not inherit this one.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise BlockingIOError from None
    except OSError as error:
        # Some network drives have no locks, such as Google Drive in Colab.
        if tells:
            print(f"note       {file.name} cannot be locked here ({error.strerror}): take care "
                  "that no second process trains in this folder")
        return False
    return True
