"""Memory that is freed is kept for the next step, and given back when the training is over."""

import os
import subprocess
import sys

import pytest

GLIBC = "import ctypes; ctypes.CDLL(None).gnu_get_libc_version"


def said(code, **environment):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment})
    assert not done.returncode, done.stderr
    return done.stdout.split()


is_glibc = sys.platform.startswith("linux") and not subprocess.run(
    [sys.executable, "-c", GLIBC], capture_output=True).returncode

FAULTS = """
import resource
import torch
from cvkit.system.device import choose_device
from cvkit.system.memory import give_back_memory, keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.zeros(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

torch.zeros(10_000_000)
print(faults())
choose_device("cpu")
for _ in range(30):  # what is freed may be a few bytes short of what is next asked for
    torch.zeros(10_000_000)
print(faults(), keep_freed_memory())
kept = resident()
give_back_memory()
print(kept - resident())
"""


@pytest.mark.skipif(not is_glibc, reason="the C library is not glibc")
def test_large_tensors_are_cleared_by_the_system_once():
    before, after, is_kept, given_back = said(FAULTS)
    assert int(before) > 40_000 and int(after) < 1000 and is_kept == "True"
    assert int(given_back) > 30e6  # of 40 MB


@pytest.mark.skipif(not is_glibc, reason="the C library is not glibc")
@pytest.mark.parametrize("name, value", [("MALLOC_MMAP_THRESHOLD_", "1000000"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=128")])
def test_what_the_user_has_set_stays(name, value):
    _, after, is_kept, given_back = said(FAULTS, **{name: value})
    assert is_kept == "False" and int(after) > 1000 and abs(int(given_back)) < 10e6


def test_nothing_is_done_where_there_is_nothing_to_set(monkeypatch):
    from cvkit.system import memory

    monkeypatch.setattr(sys, "platform", "darwin")
    memory.keep_freed_memory.cache_clear()
    assert memory.keep_freed_memory() is False
    memory.give_back_memory()
    memory.keep_freed_memory.cache_clear()
