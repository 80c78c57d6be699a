"""Running a model over a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from cvkit.data.loaders import BatchLoader
from cvkit.evaluation.metrics import Mean, together, values_of
from cvkit.models.probing import in_evaluation_mode, state_kept
from cvkit.runs.predictions import Predictions
from cvkit.system import distributed
from cvkit.system.device import autocast
from cvkit.system.log import ProgressBar
from cvkit.system.seeds import random_numbers_kept, seed_random_numbers
from cvkit.training.losses import weight_of


@torch.no_grad()
def predict(model: nn.Module, loader: BatchLoader, loss: nn.Module, metrics: Sequence[Any],
            classes: Sequence[str], precision: str, epoch: int,
            progress: ProgressBar, check: Callable[[], None] | None = None,
            has_views: bool = True) -> tuple[Predictions, dict[str, float]]:
    """Run a model over a split, in all processes that train together.

    Args:
        check: called after each batch; it may raise.
        has_views: whether probabilities are averaged over the views of TTA, if there are some.

    Returns:
        The predictions, and the values of loss and metrics by name; means over images. Model
        and loss are left as they came: their mode, buffers and extra state.
    """
    mean_loss = Mean()
    seen = []
    with (state_kept(model, loss), random_numbers_kept(loader.device),
          in_evaluation_mode(model, loss), progress):
        # A model that draws says the same whenever it is evaluated.
        seed_random_numbers(epoch)
        for number, batch in enumerate(loader):
            views = loader.views_of(batch) if has_views else [batch.images]
            outputs = logits_of(model, views, loader.device, precision)
            count = min(loader.part_size(number), len(batch.labels))
            # All parts of the batch are gathered in order, so that what follows is the same in
            # every process, and in a single one.
            labels, places, *outputs = (distributed.gather(part[:count])
                                        for part in (batch.labels, batch.index, *outputs))
            logits = mean_logits(outputs)
            mean_loss.update(_loss_of(loss, outputs, logits, labels), len(labels),
                             weight_of(loss, labels))
            # A metric is given copies, whatever it does with them.
            for metric in metrics:
                metric.update(logits.clone(), labels.clone())
            seen.append((places, labels, logits.softmax(1)))
            if check is not None:
                check()
            if progress.step():
                progress.update(mean_loss.compute(), metrics[0].compute()["accuracy"])
    values = {"loss": mean_loss.compute(), **together(
        (metric, values_of(metric)) for metric in metrics)}
    index, true, probabilities = (torch.cat(parts).cpu().numpy() for parts in zip(*seen))
    return Predictions(index, true, np.argmax(probabilities, 1), probabilities, list(classes),
                       epoch, values["loss"], loader.images.fingerprint,
                       metrics=values), values


def logits_of(model: nn.Module, views: Iterable[torch.Tensor], device: torch.device,
              precision: str) -> list[torch.Tensor]:
    """Return a model's logits of each view of the same images, float32 (N, C).

    Args:
        views: normalised.
        device, precision: where and how exactly the model computes.
    """
    with autocast(device, precision):
        return [model(view).float() for view in views]


def mean_logits(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the logarithm of the mean of the probabilities that logits (N, C) stand for.

    Of one alone, these are its logits as they are.
    """
    if len(outputs) == 1:
        return outputs[0]
    return torch.stack(list(outputs)).log_softmax(2).logsumexp(0) - math.log(len(outputs))


def _loss_of(loss: nn.Module, outputs: Sequence[torch.Tensor], logits: torch.Tensor,
             labels: torch.Tensor) -> torch.Tensor:
    """Return the loss of views: of their mean probabilities, if it looks at these alone.

    That of sigmoids, for example, looks at the logits themselves: it is the mean of the views'.
    """
    first = loss(outputs[0], labels)
    if len(outputs) == 1:
        return first
    if torch.allclose(first, loss(outputs[0].log_softmax(1), labels), rtol=1e-4, atol=1e-6):
        return loss(logits, labels)
    return torch.stack([first, *(loss(each, labels) for each in outputs[1:])]).mean()
