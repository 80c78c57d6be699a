"""Evaluating a model on a split, and a run's model on its test images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cvkit import distributed
from cvkit.checkpoint import Checkpoint, load_weights
from cvkit.data.datasets import folders_are_for_testing
from cvkit.data.loaders import BatchLoader
from cvkit.errors import CheckpointError, ConfigError, DataError, RunError, plural, visible
from cvkit.files import user_path
from cvkit.hardware import autocast, random_numbers_kept, seed_random_numbers, state_kept
from cvkit.log import Log, Progress
from cvkit.losses import build_loss, weight_of
from cvkit.metrics import Accuracy, Mean
from cvkit.registry import METRICS, where_in
from cvkit.run import MAY_CHANGE, MAY_EVALUATE, Predictions, Run, is_among, open_run


def build_metrics(nodes: Iterable[Any], classes: Sequence[str]) -> list[Any]:
    """Return accuracy and the config's METRICS, at zero.

    Raises:
        ConfigError: one has no update() or no compute().
    """
    metrics = [Accuracy()]
    for node in nodes:
        if node["NAME"] != "Accuracy":
            metrics.append(METRICS.build(node, classes=list(classes), num_classes=len(classes)))
            METRICS.refuse_without(node, metrics[-1], "update(logits, labels)", "compute()")
    return metrics


def values_of(metric: Any) -> dict[str, float]:
    """Return what a metric computes, as plain numbers, which alone can be saved.

    Raises:
        ConfigError: it returns something else.
    """
    values = metric.compute()
    try:
        if not all(isinstance(name, str) for name in values):
            raise TypeError("names are text")
        return {name: float(value) for name, value in values.items()}
    except (AttributeError, TypeError, ValueError, RuntimeError):
        raise ConfigError(f"metric {type(metric).__name__} computes {values!r}",
                          hint="compute() returns numbers by name, such as "
                               "{'recall': 0.5}.") from None


def refuse_what_adds_up(nodes: Iterable[Any], classes: Sequence[str]) -> None:
    """Refuse a metric whose evaluations go on with what the one before has counted.

    Raises:
        ConfigError: what a new one computes depends on another, and so does what they share: the
            class, defaults of its methods, or values in its file.
    """
    right = torch.eye(len(classes))
    for node in nodes:
        kind = METRICS.get(node["NAME"])
        if node["NAME"] == "Accuracy" or not inspect.isclass(kind):
            continue

        def updated(logits: torch.Tensor, node: Any = node) -> Any:
            metric = build_metrics([node], classes)[1]
            metric.update(logits.clone(), torch.arange(len(classes)))
            return metric

        before = _shared(kind)
        updated(right)
        changed = [name for name, value in _shared(kind).items() if before.get(name) != value]
        if not changed:
            continue
        found = [values_of(updated(logits)) for logits in (right, right.roll(1, 0), right)]
        if repr(found[0]) != repr(found[2]):  # as text, in which NaN is NaN
            raise ConfigError(
                f"metric {node['NAME']} counts in {changed[0]}, so that an evaluation adds to the "
                "one before", where=where_in(node, "NAME"),
                hint="Set what it counts in __init__, as attributes of self: each evaluation makes "
                     "the metric anew.")


def _shared(kind: type) -> dict[str, str]:
    """Return, in words, what all objects of a class have in common and may change."""
    found = {}
    for name, value in ((name, value) for base in kind.__mro__ if base.__module__ != "builtins"
                        for name, value in vars(base).items()):
        if inspect.isfunction(value):
            found[f"a default of {name}()"] = repr((value.__defaults__, value.__kwdefaults__))
            found |= {f"{other} of its file": repr(value.__globals__[other])
                      for other in value.__code__.co_names if other in value.__globals__
                      and not callable(value.__globals__[other])
                      and not inspect.ismodule(value.__globals__[other])}
        elif not callable(value) and not name.startswith("__"):
            found[f"{name} of its class"] = repr(value)
    return found


def together(computed: Iterable[tuple[Any, dict[str, float]]]) -> dict[str, float]:
    """Return what several metrics computed, by name.

    Args:
        computed: each metric and what `values_of` returns of it.

    Raises:
        ConfigError: two of them compute a value of the same name, or one that cvkit computes.
    """
    values: dict[str, float] = {}
    for metric, own in computed:
        for name, value in own.items():
            if name in values or name == "loss":
                whose = "loss and accuracy are cvkit's own" if name in ("loss", "accuracy") else (
                    "another one does so too")
                raise ConfigError(f"metric {type(metric).__name__} computes {name!r}: {whose}",
                                  hint="Give it another name in what compute() returns.")
            values[name] = value
    return values


@contextmanager
def in_evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Give modules the mode back in which they came."""
    were_training = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, was_training in zip(modules, were_training):
            module.train(was_training)


@torch.no_grad()
def predict(model: nn.Module, loader: BatchLoader, loss: nn.Module, metrics: Sequence[Any],
            classes: Sequence[str], precision: str, epoch: int,
            progress: Progress, check: Callable[[], None] | None = None,
            ) -> tuple[Predictions, dict[str, float]]:
    """Run a model over a split, in all processes that train together.

    Args:
        check: called after each batch; it may raise.

    Returns:
        The predictions, and the values of loss and metrics by name; means over images. Model
        and loss are left as they came: their mode, buffers and extra state.
    """
    mean_loss = Mean()
    labels, index, probabilities = [], [], []
    with (state_kept(model, loss), random_numbers_kept(loader.device),
          in_evaluation_mode(model, loss)):
        seed_random_numbers(epoch)  # for a model that draws: the same whenever it is evaluated
        for number, batch in enumerate(loader):
            with autocast(loader.device, precision):
                logits = model(batch.images)
            count = min(loader.part_size(number), len(batch.labels))
            # All parts of the batch, in order: what follows is the same in every process, and
            # the same as in a single one.
            logits, true, places = (distributed.gather(part[:count])
                                    for part in (logits.float(), batch.labels, batch.index))
            mean_loss.update(loss(logits, true), len(true), weight_of(loss, true))
            for metric in metrics:
                metric.update(logits.clone(), true.clone())  # whatever it does with them
            labels.append(true)
            index.append(places)
            probabilities.append(logits.softmax(1))
            if check is not None:
                check()
            if progress.step():
                progress.update(mean_loss.compute(), metrics[0].compute()["accuracy"])
    progress.close()
    values = {"loss": mean_loss.compute(), **together(
        (metric, values_of(metric)) for metric in metrics)}
    true, index, probabilities = (torch.cat(parts).cpu().numpy()
                                  for parts in (labels, index, probabilities))
    return Predictions(index, true, np.argmax(probabilities, 1), probabilities, list(classes),
                       epoch, values["loss"], loader.images.fingerprint,
                       metrics=values), values


def evaluate(run: Run | str | Path | None = None,
             overrides: Sequence[str] | Mapping[str, Any] = ()) -> Predictions:
    """Evaluate a run's model on its test images and rewrite the run's `predictions.npz`.

    That file is left as it is where other images, transforms, metrics or another precision are
    asked for, or the data set has other training images than it had; a line says so. Another
    `ImageFolder` than the run's needs no train/, and one without splits is tested whole.

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
    _build_data(run)
    classes, loader = run.data.classes, run.loaders.test
    checkpoint = run.checkpoint()
    loss = build_loss(run.config.LOSS, len(classes))
    if checkpoint.loss is not None:
        load_weights(loss, checkpoint.loss, "the checkpoint", "loss")
    loss.to(run.device)
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
    has_other_images, edited = run.changes_since_training()
    if has_other_images:
        print("warning    the data set has other training images than those that the run was "
              "trained on: some of them may be among these test images")
        reason = "the run's data set has other images now"
    if edited:
        print(f"warning    {', '.join(edited)} was edited since the run was saved: the results are "
              "of the file as it is now")
        if reason is None and not _are_close(predictions, path):
            reason = "it holds what the run says without the edit"
    if reason is None:
        predictions.save(path)
        print(f"Written to {path}")
    else:
        print(f"Not written to {path}: {reason}")
    return predictions


def _are_close(predictions: Predictions, path: Path) -> bool:
    """Whether those in a file are the same but for rounding, or there are none."""
    try:
        before = Predictions.load(path)
    except RunError:
        return True
    return predictions.probabilities.shape == before.probabilities.shape and np.allclose(
        predictions.probabilities, before.probabilities, atol=0.01)


def _build_data(run: Run) -> None:
    """Build the images, all of another folder as test images, and say what was done with them."""
    words = _take_all_of_another_folder(run)
    for note in (*words, *run.data.notes):
        print(f"data       {note}")
    if run.data.left_out:
        print(f"left out   {plural(len(run.data.left_out), 'image file')} that cannot be read, "
              f"{visible(run.data.left_out[0])} the first of them")


def _take_all_of_another_folder(run: Run) -> list[str]:
    """Build the images of another folder than the run's; return in words which are tested."""
    node, own = run.config.DATA.DATASET, Run(run.folder).config.DATA.DATASET
    if node.NAME != "ImageFolder":
        return []
    fraction = node.get("test_fraction")
    is_chosen = "DATA.DATASET.test_fraction" in run.changed or (
        fraction not in (None, own.get("test_fraction")))
    is_same = own.NAME == node.NAME and (
        user_path(own.root).resolve() == user_path(node.root).resolve())
    takes_all = is_chosen and fraction == 1
    if not takes_all:
        if is_same:
            return []
        # The run's own folder elsewhere has images in it that the run was trained on.
        known = _images_of(run.folder / "predictions.npz")
        try:
            is_split = run.data.train.images is not run.data.test.images
            if is_split or run.data.test.fingerprint == known:
                return []
            takes_all = known and not is_chosen
        except DataError:  # such as no train/, which an evaluation does not need
            takes_all = True
    if takes_all:
        for part in ("data", "loaders"):
            vars(run).pop(part, None)
        with folders_are_for_testing():
            tested = plural(len(run.data.test), "image")
        limit = f" (DATA.LIMIT {run.config.DATA.LIMIT})" if run.config.DATA.LIMIT else ""
        return [f"{tested} of {visible(node.root)} are tested{limit}, none is set aside: leave out "
                "those that the run was trained on"]
    every = sum(len(split) for split in (run.data.train, run.data.val or (), run.data.test))
    return [f"{len(run.data.test):,} of {every:,} images of {visible(node.root)} are tested, as "
            "test_fraction sets them aside; DATA.DATASET.test_fraction 1 tests all"]


def _images_of(path: Path) -> str:
    """Return the fingerprint of the images that predictions are of; empty if not known."""
    try:
        return Predictions.load(path).images
    except RunError:
        return ""


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
    other = [key for key in run.changed if not is_among(key, MAY_CHANGE)]
    if other:
        return f"it holds what the run says without {', '.join(other)}"
    if not any(is_among(key, ["DATA.DATASET"]) for key in run.changed):
        return None
    try:
        is_same = Predictions.load(path).images in ("", predictions.images)
    except RunError:
        return "whether these are the run's images is not known; config.yaml of the run says where"
    return None if is_same else "it is of other images"
