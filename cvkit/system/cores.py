"""The processor cores that this process may use, and how many threads compute on them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Of the kernel's control groups, version 1 and 2, by whose quota containers are limited.
_FILES = ("cpu.cfs_quota_us", "cpu.cfs_period_us"), ("cpu.max",)


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use: by its affinity, and by a container's quota.

    Args:
        root: of the file system, which tests replace.
    """
    cores = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
             else os.cpu_count() or 1)
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(root))]))


def limit_threads() -> None:
    """Let torch compute with no more threads than there are cores, unless the user has said.

    Torch goes by the affinity alone: in a container with two of sixty-four cores, its sixty-four
    threads would wait for each other.
    """
    import torch

    cores = usable_cores()
    if torch.get_num_threads() > cores and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores)


def _quotas(root: Path) -> Iterator[float]:
    """Yield the cores that each control group around this process may use at once."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        # Not Linux.
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = root / "sys/fs/cgroup" / controllers
        # Within a container the path may be the host's, and its own group is the root.
        for group in (*PurePosixPath(path.lstrip("/")).parents, PurePosixPath(path.lstrip("/"))):
            for names in _FILES:
                try:
                    words = " ".join((folder / group / name).read_text(encoding="utf-8")
                                     for name in names).split()
                    quota, period = map(float, words)
                except (OSError, ValueError):
                    # It is not there, or "max".
                    continue
                if quota > 0 and period > 0:
                    yield quota / period
