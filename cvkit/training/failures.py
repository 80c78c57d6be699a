"""What stops a training, in words: torch's errors, and numbers that are no longer finite."""

from __future__ import annotations

import math
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cvkit.data import Loaders
from cvkit.data.sources import death_of_worker, is_death_of_worker
from cvkit.errors import DivergenceError, RunError, UserError
from cvkit.system import distributed
from cvkit.system.device import ONEDNN, autocast, describe, is_out_of_memory
from cvkit.system.text import plural
from cvkit.training.state import TrainingState


def divergence(state: TrainingState, what: str, batch: int, batches: int,
               saved: str) -> DivergenceError:
    """Return the error of a training whose loss or weights are no longer finite.

    Args:
        what: "loss is" or "weights are", for example.
        batch, batches: the last one that was trained on, and of how many.
        saved: when the last checkpoint was saved, in words; empty if none was.
    """
    kept = f" The weights saved {saved} are in last.pt." if saved else ""
    return DivergenceError(
        f"the {what} no longer finite in epoch {state.epoch + 1}, batch {batch} of {batches}, at a "
        f"learning rate of about {state.schedule.rate:.3g}.{kept}",
        hint="Lower the learning rate, warm up (TRAIN.WARMUP_EPOCHS 1), clip gradients "
             "(TRAIN.CLIP_GRAD_NORM 1) or compute in full precision (TRAIN.PRECISION fp32).")


@contextmanager
def explaining(state: TrainingState, loaders: Loaders,
               is_evaluating: bool = False) -> Iterator[None]:
    """Raise errors of torch that are known in words; others as they are."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torchrun ends all processes once one has failed; the cause has to be said before.
        if distributed.size() > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        explained = _explained(error, state, loaders, is_evaluating)
        if explained is None:
            raise
        raise explained from error


def _explained(error: Exception, state: TrainingState, loaders: Loaders,
               is_evaluating: bool) -> UserError | None:
    """Return in words what a user can do about an error of torch, if that is known."""
    if distributed.is_loss_of_contact(error):
        return RunError(f"process {distributed.rank()} lost contact with another one, which "
                        "failed, was killed, or whose machine is gone",
                        hint=str(error).strip().split("\n")[0] + "\n  If the model leaves out "
                        "parameters by chance: TRAIN.UNUSED_PARAMETERS true.")
    if "finished reduction in the prior iteration" in str(error):
        return RunError("some parameters of the model got no gradient, others than in the "
                        "first step, and the processes cannot average them",
                        hint="TRAIN.UNUSED_PARAMETERS true allows for that.")
    if "does not have a deterministic implementation" in str(error):
        return RunError(f"DETERMINISTIC true asks for what torch does not have: "
                        f"{str(error).split(', but you set', 1)[0]} on {describe(state.device)}",
                        hint="DETERMINISTIC false; the seed fixes all else.")
    if is_death_of_worker(error):
        return death_of_worker(error)
    if is_out_of_memory(error):
        return _out_of_memory(error, state, loaders, is_evaluating)
    return None


def _out_of_memory(error: Exception, state: TrainingState, loaders: Loaders,
                   is_evaluating: bool) -> RunError | None:
    """Say what does not fit, and by trying, what would; None if it is not a matter of size."""
    device, plan = describe(state.device), loaders.train.plan
    # Its frames hold the tensors of what failed.
    traceback.clear_frames(error.__traceback__)
    if is_evaluating:
        size = loaders.monitored.batch_sizes[0] // distributed.size()
        return RunError(f"out of memory on {device}, evaluating batches of {size}",
                        hint=f"Try DATA.EVAL_BATCH_SIZE {max(1, size // 4)}; it changes no "
                             "result.")
    where = f"out of memory on {device}, training on batches of {plan.batch_size}"
    # A trial would wait for the other processes, which have failed in their own ways.
    is_synchronised = any(isinstance(part, nn.SyncBatchNorm) for part in state.model.modules())
    if distributed.size() > 1 and is_synchronised:
        return RunError(where, hint="Take a smaller DATA.BATCH_SIZE and a larger TRAIN.ACCUMULATE.")
    state.optimizer.zero_grad(set_to_none=True)
    part = plan.batch_size // distributed.size()
    if distributed.size() > 1:
        where += f", {part} on each"
    size = largest_that_fits(
        lambda size: push(*state.copied_modules(), state, (size, *loaders.train_shape)), part)
    if not size and ONEDNN in str(error):
        return None
    if not size:
        return RunError(where, hint="Not even one image fits: take a smaller model or image.")
    size *= distributed.size()
    times = math.ceil(plan.batch_size * plan.accumulate / size)
    return RunError(where, hint=f"{size} fit: DATA.BATCH_SIZE {size} TRAIN.ACCUMULATE {times} "
                                f"makes steps of {plural(size * times, 'image')}.")


def push(model: nn.Module, loss: nn.Module, state: TrainingState, shape: tuple[int, ...]) -> None:
    """Push a batch of zeros forward and backward through copies of a state's model and loss.

    Args:
        shape: (N, C, H, W).
    """
    images = torch.zeros(shape, device=state.device)
    labels = torch.zeros(len(images), dtype=torch.int64, device=state.device)
    model.train()
    with autocast(state.device, state.precision):
        logits = model(images)
    loss(logits.float(), labels).backward()


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
