"""What cvkit's commands are called here: files of a clone, or `cvkit …` where it is installed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

# Where it is had from.
SOURCE = "https://github.com/cvkit/cvkit"


def command(name: str, processes: int = 1) -> str:
    """Return what runs a command: "python tools/find_lr.py" in a clone, else "cvkit find-lr".

    Args:
        name: of the command, "find-lr".
        processes: so many train together, which torchrun starts.
    """
    started, file = Path(*sys.argv[:1]).absolute(), f"{name.replace('-', '_')}.py"
    # The script that pip writes, or that of `python -m cvkit`.
    is_installed = started.stem == "cvkit" or started.parts[-2:] == ("cvkit", "__main__.py")
    folder = started.parent if started.parent.name == "tools" else Path("tools")
    is_file = not is_installed and (folder / file).is_file()
    if processes > 1:
        words = f"tools/{file}" if is_file else f"-m cvkit {name}"
        return f"torchrun --nproc-per-node={processes} {words}"
    return f"python tools/{file}" if is_file else f"cvkit {name}"


def quoted(*words: object) -> str:
    """Return words as a shell takes them: cmd.exe, unlike others, leaves single quotes as they are.
    """
    texts = list(map(str, words))
    return subprocess.list2cmdline(texts) if sys.platform == "win32" else shlex.join(texts)


def as_called_here(text: str) -> str:
    """Return text that names commands and configs of a clone with what they are called here."""
    if command("train").startswith("python"):
        return text
    text = re.sub(r"\bconfigs/(\w+)\.yaml", r"\1", text)
    return re.sub(r"\bpython tools/(\w+)\.py",
                  lambda found: command(found[1].replace("_", "-")), text)
