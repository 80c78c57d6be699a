"""Evaluating a model on a split, and a run's model on its test images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cvkit.config import check_components
from cvkit.data import build_data, build_loaders
from cvkit.data.loaders import BatchLoader
from cvkit.errors import CheckpointError
from cvkit.hardware import autocast, choose_device, choose_layout, choose_precision
from cvkit.losses import build_loss
from cvkit.metrics import Accuracy, Mean
from cvkit.registry import METRICS
from cvkit.run import Log, Predictions, Progress, Run, open_run


def build_metrics(nodes: Iterable[Any], classes: Sequence[str]) -> list[Any]:
    """Return accuracy and the config's METRICS, at zero."""
    return [Accuracy(), *(METRICS.build(node, classes=list(classes), num_classes=len(classes))
                          for node in nodes if node["NAME"] != "Accuracy")]


@torch.no_grad()
def predict(model: nn.Module, loader: BatchLoader, loss: nn.Module, metrics: Sequence[Any],
            classes: Sequence[str], precision: str, epoch: int,
            progress: Progress) -> tuple[Predictions, dict[str, float]]:
    """Run a model over a split.

    Returns:
        The predictions, and the values of loss and metrics by name; means over images. The
        model is left in the mode it came in.
    """
    was_training = model.training
    model.eval()
    mean_loss = Mean()
    labels, index, probabilities = [], [], []
    for batch in loader:
        with autocast(loader.device, precision):
            logits = model(batch.images)
        logits = logits.float()
        mean_loss.update(loss(logits, batch.labels), len(batch.labels))
        for metric in metrics:
            metric.update(logits, batch.labels)
        labels.append(batch.labels)
        index.append(batch.index)
        probabilities.append(logits.softmax(1))
        if progress.step():
            progress.update(mean_loss.compute(), metrics[0].compute()["accuracy"])
    progress.close()
    model.train(was_training)
    values = {"loss": mean_loss.compute()}
    for metric in metrics:
        values |= metric.compute()
    true, index, probabilities = (torch.cat(parts).cpu().numpy()
                                  for parts in (labels, index, probabilities))
    return Predictions(index, true, np.argmax(probabilities, 1), probabilities, list(classes),
                       epoch, values["loss"]), values


def evaluate(run: Run | str | Path | None = None) -> Predictions:
    """Evaluate a run's model on its test images and rewrite the run's `predictions.npz`.

    Args:
        run: a run, its path, or None for the newest.

    Raises:
        UserError: no run, no checkpoint, no data, or a checkpoint that fits neither.
    """
    run = run if isinstance(run, Run) else open_run(run)
    checkpoint = run.checkpoint()
    config = run.config
    check_components(config)
    device = choose_device(config.DEVICE, config.where("DEVICE"))
    precision = choose_precision(config.TRAIN.PRECISION, device, config.TRAIN.where("PRECISION"))
    data = build_data(config)
    if list(data.classes) != checkpoint.classes:
        raise CheckpointError(f"{run.folder} was trained on the classes "
                              f"{', '.join(checkpoint.classes)}, but the data now has "
                              f"{', '.join(data.classes)}")
    loaders = build_loaders(config, data, device, (checkpoint.mean, checkpoint.std))
    model = checkpoint.build_model()
    layout = choose_layout(config.TRAIN.CHANNELS_LAST, model, device)
    loaders.set_layout(layout)
    model = model.to(device, memory_format=layout)
    loss = build_loss(config.LOSS, len(data.classes)).to(device)
    predictions, _ = predict(model, loaders.test, loss, build_metrics([], data.classes),
                             data.classes, precision, checkpoint.epoch,
                             Progress("Test", len(loaders.test), Log().is_live))
    predictions.save(run.folder / "predictions.npz")
    return predictions
