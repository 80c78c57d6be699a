"""Which device and precision a run uses, and words for them."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn

from cvkit.errors import ConfigError
from cvkit.system import distributed
from cvkit.system.cores import limit_threads
from cvkit.system.memory import keep_freed_memory
from cvkit.system.text import plural


def choose_device(name: str, where: object = None) -> torch.device:
    """Return the device of that name; "auto" is a GPU where there is one.

    For a CPU, torch's threads are limited (`cvkit.system.cores`), and memory is kept that is freed
    (`cvkit.system.memory`).

    Raises:
        ConfigError: no such device, or this machine does not have it.
    """
    has_mps, is_numbered = torch.backends.mps.is_available(), ":" in name
    # Of several processes each has a GPU of its own.
    if distributed.local_size() > 1 and torch.cuda.is_available() and name in ("auto", "cuda"):
        name = f"cuda:{distributed.local_rank()}"
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
    # What started them may show each one GPU only.
    if device.type == "cuda" and is_numbered and distributed.local_size() > 1 and (
            torch.cuda.device_count() > 1):
        raise ConfigError(f"several processes cannot share {name}", where=where,
                          hint="DEVICE cuda gives each one of its own.")
    if device.type == "mps" and not has_mps:
        raise ConfigError("device mps is not on this machine", where=where,
                          hint="DEVICE auto takes what there is.")
    if device.type == "cpu":
        limit_threads()
        keep_freed_memory()
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


def compile_model(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model compiled by `torch.compile`, which happens when it is first called.

    Raises:
        ConfigError: torch cannot compile on this machine.
    """
    # It keeps eight compiled forms of a class's `forward`, and those of the models before count.
    torch.compiler.reset()
    try:
        torch.compile(lambda values: values + 1)(torch.zeros(2, device=device))
    # The compiler, triton, and what they start, each fail in ways of their own.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"torch.compile does not work here: {reason}",
                          hint="It needs a C++ compiler (g++) and, for a GPU, triton. Without "
                               "them: TRAIN.COMPILE false.") from error
    # The short last batch is compiled with a size of its own: else torch would compile once more,
    # for any size, and a resumed run would not compute the same bits. What torch makes of a module
    # is one, though its annotations only say that it can be called.
    return torch.compile(model, dynamic=False)  # type: ignore[return-value]


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


# Words of oneDNN for a lack of memory; it has them for other failures as well.
ONEDNN = "could not create a primitive"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, a GPU's or the machine's, does not suffice."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc",
             "could not create a memory", ONEDNN)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words))
