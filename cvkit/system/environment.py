"""What is needed to repeat a run: versions, hardware, commit."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from cvkit.system.device import describe


def runs_folder(name: str = "cvkit-runs") -> str:
    """Return an OUTPUT_DIR that outlives the machine.

    On Google Colab, whose machines are taken back after some hours, that is the folder `name` of
    your Google Drive, which is mounted (Colab asks for leave first). Elsewhere it is `runs`.
    """
    try:
        from google.colab import drive
    except ModuleNotFoundError:
        print("Runs are kept in runs/")
        return "runs"
    drive.mount("/content/drive")
    print(f"Runs are kept in Google Drive, in {name}/")
    return f"/content/drive/MyDrive/{name}"


def environment(device: torch.device) -> str:
    """Return what is needed to repeat a run: command, versions, hardware, commit."""
    packages = ["torch", "torchvision", "albumentations", "numpy", "opencv-python-headless",
                "yacs", "grad-cam", "scikit-learn"]
    # A run folder is given to others, and trackers get it.
    words = [re.sub(r"(://[^/@:\s]*:)[^@\s]*(?=@)|([?&]password=)[^&\s]*", r"\1\2***", word)
             for word in sys.argv]
    lines = [f"command: {shlex.join([Path(sys.executable).name, *words])}",
             f"python: {platform.python_version()}", f"platform: {platform.platform()}",
             f"device: {describe(device)}", f"cuda that torch is built with: {torch.version.cuda}"]
    for package in ["cvkit", *packages]:
        try:
            lines.append(f"{package}: {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{package}: not installed")
    lines += [f"{word}: {value}" for word, value in git_facts(Path()).items()]
    return "\n".join(lines) + "\n"


def git_facts(folder: Path) -> dict[str, str]:
    """Return "git", the commit, and "repository", where it was cloned from; what there is of them.

    A commit with uncommitted changes ends in "-dirty".
    """
    def ask(command: str) -> str:
        """Return what git answers; nothing where there is no git, no repository or no remote."""
        try:
            done = subprocess.run(["git", "-C", str(folder), *command.split()],
                                  capture_output=True, encoding="utf-8", errors="replace",
                                  timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    facts = {"git": ask("describe --always --abbrev=12 --exclude=*"),
             "repository": public_url(ask("remote get-url origin"))}
    # To look for changes git runs commands that the settings in the folder name, and those of its
    # submodules. Of a repository that was unpacked, not cloned, they are a stranger's.
    running = "--includes --name-only --get-regexp ^(filter[.].*|core[.]fsmonitor)$"
    if facts["git"] and not ask(f"config --local {running}") + ask(f"config --worktree {running}"):
        changes = "diff --name-only --no-ext-diff --no-textconv --ignore-submodules HEAD"
        facts["git"] += "-dirty" * bool(ask(f"--no-optional-locks {changes}"))
    return {word: value for word, value in facts.items() if value}


def public_url(remote: str) -> str:
    """Return a git remote as an address to visit, without user names and tokens."""
    remote = re.sub(r"^(?:ssh://)?git@([^:/]+)[:/]", r"https://\1/", remote)
    return re.sub(r"^(https?://)[^/@]*@", r"\1", remote).removesuffix(".git")
