"""One batch: forward, loss, scale, clip, step."""

from __future__ import annotations

from contextlib import nullcontext

from torch import Tensor, nn

from cvkit.data.loaders import Batch
from cvkit.system import distributed
from cvkit.system.device import autocast
from cvkit.training.optimizers import trained_in
from cvkit.training.state import TrainingState


def train_step(state: TrainingState, batch: Batch) -> tuple[Tensor, Tensor]:
    """Forward and backward; if the batch ends an optimizer step, also change the weights.

    Args:
        state: what is trained.
        batch: on its device.

    Returns:
        The loss, a mean over the batch, and the logits (N, C); both detached.
    """
    # Gradients are averaged over the processes once, with the last batch of a step.
    no_sync = getattr(state.forward, "no_sync", nullcontext)
    with nullcontext() if batch.ends_step else no_sync():
        with autocast(state.device, state.precision):
            logits = state.forward(batch.images)
        # In fp32, as in an evaluation; torch refuses some losses in less.
        loss = state.loss(logits.float(), batch.targets)
        state.scaler.scale(loss * batch.weight).backward()
    if batch.ends_step:
        optimizer_step(state)
    return loss.detach(), logits.detach()


def optimizer_step(state: TrainingState) -> None:
    """Change the weights by the gradients there are."""
    distributed.average(trained_in(state.loss))
    if state.clip_grad_norm > 0:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.weights, state.clip_grad_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.schedule.after_step()
    if state.ema is not None:
        state.ema.update()
