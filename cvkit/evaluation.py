"""Evaluating a model on a split, and a run's model on its test images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cvkit import distributed
from cvkit.data.loaders import BatchLoader
from cvkit.errors import ConfigError
from cvkit.hardware import autocast
from cvkit.log import Log, Progress
from cvkit.losses import build_loss
from cvkit.metrics import Accuracy, Mean
from cvkit.registry import METRICS
from cvkit.run import Predictions, Run, open_run


def build_metrics(nodes: Iterable[Any], classes: Sequence[str]) -> list[Any]:
    """Return accuracy and the config's METRICS, at zero."""
    return [Accuracy(), *(METRICS.build(node, classes=list(classes), num_classes=len(classes))
                          for node in nodes if node["NAME"] != "Accuracy")]


def values_of(metric: Any) -> dict[str, float]:
    """Return what a metric computes, as plain numbers, which alone can be saved.

    Raises:
        ConfigError: it returns something else.
    """
    values = metric.compute()
    try:
        return {name: float(value) for name, value in values.items()}
    except (AttributeError, TypeError, ValueError, RuntimeError):
        raise ConfigError(f"metric {type(metric).__name__} computes {values!r}",
                          hint="compute() returns numbers by name, such as "
                               "{'recall': 0.5}.") from None


@torch.no_grad()
def predict(model: nn.Module, loader: BatchLoader, loss: nn.Module, metrics: Sequence[Any],
            classes: Sequence[str], precision: str, epoch: int,
            progress: Progress, check: Callable[[], None] | None = None,
            ) -> tuple[Predictions, dict[str, float]]:
    """Run a model over a split, in all processes that train together.

    Args:
        check: called after each batch; it may raise.

    Returns:
        The predictions, and the values of loss and metrics by name; means over images. The
        model is left in the mode it came in.
    """
    was_training = model.training
    model.eval()
    mean_loss = Mean()
    labels, index, probabilities = [], [], []
    for number, batch in enumerate(loader):
        with autocast(loader.device, precision):
            logits = model(batch.images)
        count = min(loader.part_size(number), len(batch.labels))
        # All parts of the batch, in order: what follows is the same in every process, and the
        # same as in a single one.
        logits, true, places = (distributed.gather(part[:count])
                                for part in (logits.float(), batch.labels, batch.index))
        mean_loss.update(loss(logits, true), len(true))
        for metric in metrics:
            metric.update(logits, true)
        labels.append(true)
        index.append(places)
        probabilities.append(logits.softmax(1))
        if check is not None:
            check()
        if progress.step():
            progress.update(mean_loss.compute(), metrics[0].compute()["accuracy"])
    progress.close()
    model.train(was_training)
    values = {"loss": mean_loss.compute()}
    for metric in metrics:
        values |= values_of(metric)
    true, index, probabilities = (torch.cat(parts).cpu().numpy()
                                  for parts in (labels, index, probabilities))
    return Predictions(index, true, np.argmax(probabilities, 1), probabilities, list(classes),
                       epoch, values["loss"], loader.images.fingerprint), values


def evaluate(run: Run | str | Path | None = None) -> Predictions:
    """Evaluate a run's model on its test images and rewrite the run's `predictions.npz`.

    Args:
        run: a run, its path, or None for the newest.

    Raises:
        UserError: no run, no checkpoint, no data, or a checkpoint that fits neither.
    """
    run = run if isinstance(run, Run) else open_run(run)
    run.refuse_links()
    classes, loader = run.data.classes, run.loaders.test
    loss = build_loss(run.config.LOSS, len(classes)).to(run.device)
    checkpoint = run.checkpoint()
    predictions, _ = predict(run.model, loader, loss, build_metrics([], classes), classes,
                             run.precision, checkpoint.epoch,
                             Progress("Test", len(loader), Log()))
    predictions = replace(predictions, batches=checkpoint.batches)
    predictions.save(run.folder / "predictions.npz")
    return predictions
