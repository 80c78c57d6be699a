"""Which device and precision a run uses, and words for them."""

from __future__ import annotations

import copy
import importlib.metadata
import os
import platform
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import nn

from cvkit import distributed
from cvkit.errors import ConfigError, plural


def choose_device(name: str, where: object = None) -> torch.device:
    """Return the device of that name; "auto" is a GPU where there is one.

    Raises:
        ConfigError: no such device, or this machine does not have it.
    """
    has_mps = torch.backends.mps.is_available()
    if distributed.local_size() > 1 and torch.cuda.is_available() and name in ("auto", "cuda"):
        name = f"cuda:{distributed.local_rank()}"  # each process has a GPU of its own
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"no device {name!r}", where=where,
                          hint="auto, cpu, cuda, cuda:1 or mps are possible.")
    if device.type == "mps" and distributed.local_size() > 1:
        raise ConfigError("several processes cannot share one mps device", where=where,
                          hint="DEVICE cpu, or one process.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name} is not on this machine, which has "
                          f"{plural(torch.cuda.device_count(), 'GPU')} that torch can use",
                          where=where, hint="DEVICE auto takes what there is."
                          if distributed.local_size() == 1 else "Each process takes one: "
                          "torchrun --nproc-per-node with a smaller number.")
    if device.type == "mps" and not has_mps:
        raise ConfigError("device mps is not on this machine", where=where,
                          hint="DEVICE auto takes what there is.")
    return device


def choose_precision(name: str, device: torch.device, where: object = None) -> str:
    """Return fp32, bf16 or fp16; "auto" is the fastest that the hardware computes itself.

    Raises:
        ConfigError: fp16 on a CPU, where gradients would vanish and nothing would be faster.
    """
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("fp16 is for GPUs", where=where, hint="On a CPU: auto, bf16 or fp32.")
    if name != "auto":
        return name
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"
    # torch.cpu's questions about the processor are private and were added one by one.
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if device.type == "cpu" and any(getattr(torch.cpu, question, bool)() for question in questions):
        return "bf16"
    return "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Return the context in which a model computes at a precision."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def choose_layout(channels_last: bool, model: nn.Module,
                  device: torch.device) -> torch.memory_format:
    """Return the memory layout for a model and its images: channels_last where wanted and safe.

    On a CPU, torch 2.15's backward pass of a strided 1×1 convolution with fewer than 16 input
    channels writes out of bounds in channels_last for odd batch sizes, and the process dies.
    """
    is_unsafe = device.type == "cpu" and any(
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and max(module.stride) > 1
        and module.in_channels < 16 for module in model.modules())
    return torch.channels_last if channels_last and not is_unsafe else torch.contiguous_format


def takes_layout(model: nn.Module, image_shape: Sequence[int], device: torch.device,
                 layout: torch.memory_format) -> bool:
    """Whether a model computes in a layout: `x.view(len(x), -1)` after a convolution does not."""
    was_training = model.training
    images = torch.zeros(2, *image_shape, device=device).to(memory_format=layout)
    with torch.no_grad(), random_numbers_kept(device), state_kept(model, with_frozen=True):
        for is_training in (False, True):
            try:
                model.train(is_training)(images)
            except (RuntimeError, ValueError) as error:
                if "view size is not compatible" in str(error):
                    return False
                if not is_training:  # else it is for the training to tell, of its own images
                    raise
            finally:
                model.train(was_training)
    return True


@contextmanager
def state_kept(*modules: nn.Module, with_frozen: bool = False) -> Iterator[None]:
    """Give buffers and extra state back what they were: whoever asks a model leaves no trace.

    Args:
        with_frozen: weights without gradients as well, which models move in training themselves.
    """
    kept = []
    for module in modules:
        parameters = {name for name, value in module.named_parameters(remove_duplicate=False)
                      if value.requires_grad or not with_frozen}
        kept.append({name: copy.deepcopy(value) for name, value in module.state_dict().items()
                     if name not in parameters})
    try:
        yield
    finally:
        for module, state in zip(modules, kept):
            module.load_state_dict(state, strict=False)


def compile_model(model: nn.Module, device: torch.device, where: object = None) -> nn.Module:
    """Return the model compiled by `torch.compile`, which happens when it is first called.

    Raises:
        ConfigError: torch cannot compile on this machine.
    """
    try:
        torch.compile(lambda values: values + 1)(torch.zeros(2, device=device))
    except Exception as error:  # of the compiler, of triton, of what they start
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"torch.compile does not work here: {reason}", where=where,
                          hint="It needs a C++ compiler (g++) and, for a GPU, triton. Without "
                               "them: TRAIN.COMPILE false.") from error
    # With a size of its own for the short last batch: else torch would compile once more, for any
    # size, and a resumed run would not compute the same bits.
    return torch.compile(model, dynamic=False)


def seed_everything(*key: int, deterministic: bool = False) -> None:
    """Seed all random numbers from (SEED, epoch), so that any epoch can be begun again."""
    seed_random_numbers(*key)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)  # which imports torch's compiler
    torch.backends.cudnn.benchmark = not deterministic


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
    _, keys, position, has_normal, other = np.random.get_state()
    state = {"cpu": torch.get_rng_state(),
             "python": _packed([*words], normal is not None, normal or 0.0),
             "numpy": _packed([*keys.tolist(), position], has_normal, other)}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Go on from a state that `random_state` returned; another device's part is left out."""
    torch.set_rng_state(state["cpu"].clone())  # a view into a larger tensor would crash torch
    if "python" in state:  # else it was saved by a version that kept torch's only
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


def describe(device: torch.device) -> str:
    """Return the device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines()
             if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {plural(threads, 'thread')}"


def lock_file(file: IO) -> None:
    """Lock an open file until it is closed, or the process ends.

    Within one process it does not keep anyone out: a second lock is granted, and closing either
    file ends both.

    Raises:
        BlockingIOError: another process has locked it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        import msvcrt

        file.seek(2**30)  # not what the owner writes into it, which others read
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from None
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which forked workers do not inherit
    except (BlockingIOError, PermissionError):
        raise BlockingIOError from None
    except OSError as error:  # a network drive without locks, such as Google Drive in Colab
        print(f"note       {file.name} cannot be locked here ({error.strerror}): take care that "
              "no second process trains in this folder")


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
    lines = [f"command: {shlex.join([Path(sys.executable).name, *sys.argv])}",
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
