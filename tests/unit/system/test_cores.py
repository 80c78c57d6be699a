"""How many cores there are to compute on, by affinity and by the quotas of control groups."""

import os
import subprocess
import sys

import pytest
import torch

from cvkit.system import cores
from cvkit.system.cores import limit_threads, usable_cores
from cvkit.system.device import choose_device


@pytest.fixture
def eight(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


@pytest.fixture
def tree(tmp_path, eight):
    """A function: lay out a root of these files, by path."""
    def tree(**files):
        for path, text in files.items():
            path = tmp_path / path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path
    return tree


V1, V2 = "2:cpuset:/\n4:cpu,cpuacct:/docker/abc\n", "0::/user.slice/job\n"


@pytest.mark.parametrize("group, files, expected", [
    (V2, {}, 8), (V2, {"user.slice/job/cpu.max": "max 100000"}, 8),
    (V2, {"user.slice/job/cpu.max": "200000 100000"}, 2), (V2, {"user.slice/job/cpu.max": "150000 100000"}, 2),
    (V2, {"user.slice/job/cpu.max": "20000 100000"}, 1), (V2, {"user.slice/job/cpu.max": "6400000 100000"}, 8),
    (V2, {"user.slice/cpu.max": "300000 100000", "user.slice/job/cpu.max": "500000 100000"}, 3),
    ("0::/\n", {"cpu.max": "400000 100000"}, 4), (V2, {"cpu.max": "400000 100000"}, 4),
    (V2, {"user.slice/job/cpu.max": "rubbish"}, 8),
    (V1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "200000\n",
          "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n"}, 2),
    (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 3),
    (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 8)])
def test_the_smallest_quota_counts(tree, group, files, expected):
    root = tree(**{"proc/self/cgroup": group}, **{f"sys/fs/cgroup/{path}": text for path, text in files.items()})
    assert usable_cores(root) == expected


def test_where_there_are_no_groups_the_affinity_counts(tmp_path, eight):
    assert usable_cores(tmp_path) == 8


@pytest.fixture
def threads(monkeypatch):
    """Torch's threads, which a test may change."""
    set_to = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    return set_to


@pytest.mark.parametrize("usable, told, expected", [(2, None, [2]), (64, None, []), (2, "8", [])])
def test_torch_takes_no_more_threads_than_cores_unless_it_is_told(monkeypatch, threads, usable, told, expected):
    monkeypatch.setattr(cores, "usable_cores", lambda: usable)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    limit_threads()
    assert threads == expected
    threads.clear()
    choose_device("cpu")
    assert threads == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_process_that_is_bound_to_a_core_has_one():
    first = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{first}}}); from cvkit.system.cores import usable_cores; print(usable_cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
