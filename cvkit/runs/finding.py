"""Which run folder is meant: by its path, the newest of a config, the newest of all."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cvkit.errors import RunError
from cvkit.system.command import command
from cvkit.system.files import user_path
from cvkit.system.text import suggest

UTC = "%Y-%m-%dT%H:%M:%S"
# What the folders of a group's runs are called.
MEMBER = re.compile(r"seed_\d+|(repeat_\d{1,9}_)?fold_\d{1,9}")
# In these they are to differ.
REPEATED = ("SEED", "DATA.FOLD", "DATA.FOLD_REPEAT")


def find_runs(output_dir: str | Path = "runs", config_name: str = "*") -> list[Path]:
    """Return the run folders that hold a checkpoint, oldest first."""
    name = config_name if config_name == "*" else glob.escape(config_name)
    found = {path.parent.parent for path in Path(output_dir).glob(f"{name}/*/checkpoints/*.pt")
             if path.name in ("last.pt", "previous.pt")}
    return sorted(found, key=by_age)


def by_age(folder: Path) -> tuple[Any, ...]:
    """Return what run folders are sorted by, the oldest first."""
    return begun(folder), *_in_order(folder.name), folder


def begun(folder: Path) -> str:
    """Return when a run was begun, in UTC: local time, in its name, may be set back."""
    try:
        text = (folder / "environment.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^begun: (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)Z$", text, re.MULTILINE)
    if found:
        return found[1]
    # It may be of an older version, or named by hand.
    try:
        local = datetime.strptime(folder.name[:19], "%Y-%m-%d_%H-%M-%S")
        return local.astimezone(timezone.utc).strftime(UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(folder.stat().st_mtime, timezone.utc).strftime(UTC)


def _in_order(name: str) -> tuple[str, int]:
    """Split a folder's name so that the tenth run of a second comes after the ninth."""
    number = re.fullmatch(r"(.{19})_(\d{1,9})", name)
    return (number[1], int(number[2])) if number else (name, 1)


def find_groups(output_dir: str | Path = "runs", config_name: str = "*",
                ending: str = "") -> list[Path]:
    """Return the folders of groups of runs, see `runs/group.py`, oldest first.

    Args:
        ending: of their names, "seeds" or "folds".
    """
    name = config_name if config_name == "*" else glob.escape(config_name)
    found = {path.parent.parent.parent
             for path in Path(output_dir).glob(f"{name}/*{ending}/*/checkpoints/last.pt")}
    return sorted(filter(is_group, found), key=lambda path: (begun(members_of(path)[0]), path))


def is_group(folder: str | Path) -> bool:
    """Tell whether a folder holds the runs of a group."""
    return bool(members_of(folder))


def members_of(folder: str | Path) -> list[Path]:
    """Return the folders of a group's runs, in the order of their seeds or folds."""
    try:
        found = [path for path in Path(folder).iterdir()
                 if MEMBER.fullmatch(path.name) and (path / "config.yaml").is_file()]
    except OSError:
        return []
    return sorted(found, key=lambda path: [int(number) for number in re.findall(
        r"\d+", path.name if "repeat" in path.name else f"0_{path.name}")])


def newest_group(output_dir: str | Path = "runs") -> Path | None:
    """Return the newest group of runs, unless a run was begun after all of its runs."""
    groups, runs = find_groups(output_dir), find_runs(output_dir)
    if not groups or (runs and begun(runs[-1]) > max(map(begun, members_of(groups[-1])))):
        return None
    return groups[-1]


def find_run(run: str | Path | None = None, output_dir: str | Path = "runs",
             config_name: str = "*") -> Path:
    """Return the folder of a run; arguments and errors as of `open_run`."""
    output_dir = user_path(output_dir)
    if run is None:
        runs = find_runs(output_dir, config_name)
        if not runs:
            of = "" if config_name == "*" else f" of {config_name}"
            begin = "" if config_name == "*" else "Without --resume a run is begun. "
            raise RunError(f"no run{of} with a checkpoint in {output_dir}/",
                           hint=begin + _newest_in(find_runs(output_dir)))
        return runs[-1]
    path = user_path(run)
    path = path.parent if path.name == "config.yaml" else path
    for folder in (path, output_dir / path):
        # Unlike a method of Path, this takes what no path can be as well.
        if os.path.isfile(folder / "config.yaml"):
            return folder
        if not folder.name or not os.path.isdir(folder):
            continue
        if members := members_of(folder):
            raise RunError(f"{folder} is a group of {len(members)} runs", hint=(
                f"Name one of them: {members[0]}"))
        if next(folder.glob("trial_[0-9]*/config.yaml"), None) is not None:
            raise RunError(f"{folder} is a sweep", hint=(
                f"Name one of its trials, {folder}/trial_0000; sweep.html says which is the best."))
        if of_config := find_runs(folder.parent, folder.name):
            return of_config[-1]
        if kept := next(folder.glob("checkpoints/*.pt"), None):
            code = ("from cvkit.runs.checkpoint import Checkpoint; "
                    f"print(Checkpoint.load({str(kept)!r}).config)")
            raise RunError(f"{folder} has no config.yaml any more", hint=(
                f"Its checkpoints hold it: python -c {shlex.quote(code)} > "
                f"{shlex.quote(str(folder / 'config.yaml'))}"))
    places = [place for place in path.parents[1::-1] if place != Path()]
    there = next(filter(None, map(find_runs, (*places, output_dir))), [])
    near = suggest(run, map(str, there)).partition("Allowed")[0]
    raise RunError(f"no run {run}", hint=f"{near}{_newest_in(there)}")


def _newest_in(runs: Sequence[Path]) -> str:
    """Return what to do instead of opening a run that is not there."""
    if not runs:
        return f"Train one: {command('train')} CONFIG"
    return "The newest runs, the last one first:\n    " + "\n    ".join(map(str, runs[:-6:-1]))


def find_all(place: str | Path, output_dir: str | Path = "runs") -> list[Path]:
    """Return the run folders that a path stands for: it is one, or at most four levels above some.

    Args:
        place: the path, or one below `output_dir`.

    Raises:
        RunError: there is none.
    """
    path = user_path(place)
    path = path.parent if path.name == "config.yaml" else path
    for folder in (path, user_path(output_dir) / path):
        if not os.path.isdir(folder):
            continue
        found: list[Path] = []
        # In OUTPUT_DIR they are <config>/<start time>/, of several seeds or folds seed_0/ in that.
        for level in range(5):
            below = {file.parent for file in folder.glob("*/" * level + "config.yaml")}
            found += sorted(run for run in below if not set(run.parents) & set(found))
        if found:
            return found
    return [find_run(place, output_dir)]
