"""Random numbers: seeding all of them, and keeping their state."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from cvkit.system import distributed


def seed_everything(*key: int, deterministic: bool = False) -> None:
    """Seed all random numbers from (SEED, epoch), so that any epoch can be begun again."""
    seed_random_numbers(*key)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Said again it would change nothing, but import torch's compiler, which takes seconds.
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def seed_epoch(seed: int, epoch: int, deterministic: bool) -> None:
    """Seed what is random in an epoch, from 1, or before the first; each process on its own."""
    rank = (distributed.rank(),) if distributed.rank() else ()
    seed_everything(seed, *((epoch,) if epoch else ()), *rank, deterministic=deterministic)


def seed_random_numbers(*key: int) -> None:
    """Seed torch, NumPy and Python."""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part) % 2**63
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of all random numbers: torch's of CPU and device, Python's and NumPy's."""
    _, words, normal = random.getstate()
    numpys = np.random.get_state(legacy=False)
    keys, position = numpys["state"]["key"], numpys["state"]["pos"]
    state = {"cpu": torch.get_rng_state(),
             "python": _packed([*words], normal is not None, normal or 0.0),
             "numpy": _packed([*keys.tolist(), position], numpys["has_gauss"], numpys["gauss"])}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Go on from a state that `random_state` returned; another device's part is left out."""
    # A view into a larger tensor would crash torch.
    torch.set_rng_state(state["cpu"].clone())
    # The first versions kept torch's only.
    if "python" in state:
        set_python_state(random, state["python"])
        set_numpy_state(np.random, state["numpy"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


@contextmanager
def random_numbers_kept(device: torch.device) -> Iterator[None]:
    """Give all random numbers their state back at the end."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)


def set_python_state(generator: Any, packed: torch.Tensor) -> None:
    """Set Python's `random`, or a `random.Random`, to a part of what `random_state` returned."""
    *words, has_normal, bits = packed.tolist()
    generator.setstate((3, tuple(words), _as_float(bits) if has_normal else None))


def set_numpy_state(generator: Any, packed: torch.Tensor) -> None:
    """Set `np.random`, or a `RandomState`, to a part of what `random_state` returned."""
    *keys, position, has_normal, bits = packed.tolist()
    generator.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_normal,
                         _as_float(bits)))


def _packed(words: list[int], has_normal: bool, normal: float) -> torch.Tensor:
    """Return words of a generator, and the second of a pair of normal numbers, in one tensor."""
    return torch.tensor([*words, int(has_normal), int(np.float64(normal).view(np.int64))])


def _as_float(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))
