"""Evaluating a model on a split, and a run's model on its test images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cvkit import distributed
from cvkit.checkpoint import Checkpoint
from cvkit.data.loaders import BatchLoader
from cvkit.errors import CheckpointError, ConfigError, RunError
from cvkit.hardware import autocast
from cvkit.log import Log, Progress
from cvkit.losses import build_loss, weight_of
from cvkit.metrics import Accuracy, Mean
from cvkit.registry import METRICS
from cvkit.run import MAY_CHANGE, MAY_EVALUATE, Predictions, Run, open_run


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
        mean_loss.update(loss(logits, true), len(true), weight_of(loss, true))
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
                       epoch, values["loss"], loader.images.fingerprint,
                       metrics=values), values


def evaluate(run: Run | str | Path | None = None,
             overrides: Sequence[str] | Mapping[str, Any] = ()) -> Predictions:
    """Evaluate a run's model on its test images and rewrite the run's `predictions.npz`.

    That file is left as it is where other images, transforms, metrics or another precision are
    asked for; a line says so.

    Args:
        run: a run, its path, or None for the newest.
        overrides: as `load_config` takes them: of DATA, METRICS, and where it runs. Classes and
            normalisation stay those of the checkpoint.

    Raises:
        UserError: no run, no checkpoint, no data, a checkpoint that fits neither, or images of
            other classes.
    """
    if not isinstance(run, Run):
        run = open_run(run, overrides=overrides, may_change=MAY_EVALUATE)
    elif overrides:
        if run.changed:
            raise RunError(f"the run was opened with {', '.join(run.changed)} already",
                           hint="Name its folder, and all that is to be set otherwise.")
        run = Run(run.folder, overrides, MAY_EVALUATE)
    run.refuse_links()
    classes, loader = run.data.classes, run.loaders.test
    loss = build_loss(run.config.LOSS, len(classes)).to(run.device)
    checkpoint = run.checkpoint()
    _try_one(run, checkpoint)
    predictions, _ = predict(run.model, loader, loss, build_metrics(run.config.METRICS, classes),
                             classes, run.precision, checkpoint.epoch,
                             Progress("Test", len(loader), Log()))
    predictions = replace(predictions, batches=checkpoint.batches)
    other = run.other_best(predictions)
    if other:
        print(other)
    path = run.folder / "predictions.npz"
    reason = _why_not_kept(run, predictions, path)
    if reason is None:
        predictions.save(path)
        print(f"Written to {path}")
    else:
        print(f"Not written to {path}: {reason}")
    return predictions


def _try_one(run: Run, checkpoint: Checkpoint) -> None:
    """Refuse images of a size that the model cannot take, where they have another than trained."""
    shape, trained = run.loaders.image_shape, tuple(checkpoint.image_shape)
    if shape == trained:
        return
    try:
        with torch.no_grad():
            run.model(torch.zeros(1, *shape, device=run.device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise CheckpointError(
            f"the model takes images of {'×'.join(map(str, trained))}, not "
            f"{'×'.join(map(str, shape))}", where=run.config.DATA.where("TEST_TRANSFORMS"),
            hint=f"DATA.TEST_TRANSFORMS \"[{{NAME: Resize, height: {trained[1]}, width: "
                 f"{trained[2]}}}]\" makes them so.") from error


def _why_not_kept(run: Run, predictions: Predictions, path: Path) -> str | None:
    """Return why predictions do not take the place of the run's own, or None."""
    other = [key for key in run.changed if not key.startswith(MAY_CHANGE)]
    if other:
        return f"it holds what the run says without {', '.join(other)}"
    if not any(key.startswith("DATA.DATASET") for key in run.changed):
        return None
    try:
        is_same = Predictions.load(path).images in ("", predictions.images)
    except RunError:
        return "whether these are the run's images is not known; config.yaml of the run says where"
    return None if is_same else "it is of other images"
