"""Several processes, as `torchrun` starts them. Where it did not, there is one, and all is simple.

`torchrun --nproc-per-node=2 tools/train.py CONFIG`, or `… -m cvkit train CONFIG`, starts two that
train one model together: each takes its part of every batch, gradients are averaged, and only the
first process writes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


# A machine may be silent for so long; a connection that is closed ends a training at once.
_TIMEOUT = timedelta(minutes=10)
# A download by the first process of a machine may take so long.
_PATIENCE = timedelta(hours=12)
# Processes wait so long for the first one of their machine to say what is wrong.
_SECONDS_TO_SPEAK = 20
# Processes leave notes for each other in the one; members of the other wait with patience.
_store: Any = None
_patient: Any = None


def size() -> int:
    """How many processes train together, between `start` and `stop`; else 1."""
    return _of_torchrun("WORLD_SIZE", 1) if _store is not None else 1


def rank() -> int:
    """The number of this process, from 0, between `start` and `stop`; else 0."""
    return _of_torchrun("RANK", 0) if _store is not None else 0


def launched() -> int:
    """How many processes torchrun has started, on all machines; else 1."""
    return _of_torchrun("WORLD_SIZE", 1)


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return _of_torchrun("LOCAL_RANK", 0)


def local_size() -> int:
    """How many of the processes are on this machine."""
    return _of_torchrun("LOCAL_WORLD_SIZE", 1)


def _of_torchrun(name: str, alone: int) -> int:
    # Clusters set some of these names for other ends; torchrun sets all of them.
    return int(os.environ[name]) if "TORCHELASTIC_RUN_ID" in os.environ else alone


def is_main() -> bool:
    """Whether this is the process that writes."""
    return _of_torchrun("RANK", 0) == 0


def start(device: torch.device) -> None:
    """Connect the processes: NCCL between GPUs, gloo between CPUs."""
    global _store, _patient
    count = launched()
    if count == 1 or _store is not None:
        return
    import torch
    from torch import distributed

    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    store, *_ = next(distributed.rendezvous("env://", timeout=_TIMEOUT))
    # With --max-restarts it can be the same as before, with the addresses of processes now gone.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    _store = distributed.PrefixStore(f"cvkit/{attempt}", store)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                                   store=_store, rank=rank(), world_size=count, timeout=_TIMEOUT)
    _patient = distributed.new_group(backend="gloo", timeout=_PATIENCE)


def stop() -> None:
    """Disconnect, when all is done."""
    global _store, _patient
    if _store is not None:
        from torch import distributed

        distributed.destroy_process_group()
        _store = _patient = None


@contextmanager
def first_on_each_machine() -> Iterator[None]:
    """Let the first process of each machine go ahead: to download, say; the others find it done."""
    if _patient is None:
        yield
        return
    from torch import distributed

    if local_rank() > 0:
        distributed.barrier(group=_patient)
    yield
    if local_rank() == 0:
        distributed.barrier(group=_patient)


def any_rank(flag: bool) -> bool:
    """Whether it holds in any process. All must ask."""
    import torch

    return bool(all_reduce_sum(torch.tensor(int(flag))))


def all_reduce_sum(value: torch.Tensor) -> torch.Tensor:
    """Return the sum over all processes."""
    if _store is not None:
        from torch import distributed

        value = value.clone()
        distributed.all_reduce(value)
    return value


def average(parameters: Sequence[torch.Tensor]) -> None:
    """Give the gradients of these the mean over all processes; none where no process has one."""
    if _store is None or not parameters:
        return
    import torch

    has_grad = [float(parameter.grad is not None) for parameter in parameters]
    has_one = all_reduce_sum(torch.tensor(has_grad, device=parameters[0].device))
    for parameter, count in zip(parameters, has_one.tolist()):
        if count:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = all_reduce_sum(own) / size()


def gather(part: torch.Tensor) -> torch.Tensor:
    """Return the parts (N_0, …), (N_1, …), … of all processes, one behind the other."""
    if _store is None:
        return part
    import torch

    counts = [torch.zeros(1, dtype=torch.int64, device=part.device) for _ in range(size())]
    torch.distributed.all_gather(counts, torch.tensor([len(part)], device=part.device))
    longest = int(max(counts))
    padded = part.new_zeros(longest, *part.shape[1:])
    padded[:len(part)] = part
    parts = [torch.empty_like(padded) for _ in range(size())]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([whole[:int(count)] for whole, count in zip(parts, counts, strict=True)])


def broadcast_from_main(make: Any) -> Any:
    """Return what `make()` returns in the first process, where alone it is called."""
    if _store is None:
        return make()
    import torch

    box = [make() if is_main() else None]
    torch.distributed.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def all_gather_objects(value: Any) -> list[Any]:
    """Return each process's value, by rank."""
    if _store is None:
        return [value]
    from torch import distributed

    values = [None] * size()
    distributed.all_gather_object(values, value, group=_patient)
    return values


def average_gradients(model: nn.Module, device: torch.device, has_unused: bool) -> nn.Module:
    """Return the model so that a backward pass averages its gradients over all processes.

    Args:
        model: on the device.
        device: of this process.
        has_unused: whether some parameters get no gradient.
    """
    if _store is None:
        return model
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model, [device] if device.type == "cuda" else None,
                                   find_unused_parameters=has_unused)


def broadcast_buffers(*models: nn.Module) -> None:
    """Give all processes the first one's buffers: means and variances that each saw its own of."""
    if _store is not None:
        from torch import distributed

        for model in models:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)


def is_first_to_fail() -> bool:
    """Note that this process fails; whether it is the first, whose error is the cause."""
    if _store is None:
        # Nothing was begun, so all fail in the same way, and torchrun ends those that wait here.
        if local_rank() > 0:
            time.sleep(_SECONDS_TO_SPEAK)
        return True
    try:
        return _store.add("failed", 1) == 1
    except RuntimeError:
        # The machine that kept these notes is gone.
        return local_rank() == 0


def is_loss_of_contact(error: BaseException) -> bool:
    """Whether an error of torch says that another process is gone."""
    import torch

    if _store is None or not isinstance(error, RuntimeError):
        return False
    words = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "timed out",
             "pair closure", "NCCL", "recv", "gloo")
    return isinstance(error, torch.distributed.DistError) or any(
        word in str(error) for word in words)
