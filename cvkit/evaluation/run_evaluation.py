"""Evaluating a model on a split, and a run's model on its test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvkit.data import ImageData, ImageFiles
from cvkit.data.assembly import PLACES, images_are_for_testing
from cvkit.errors import CheckpointError, ConfigError, DataError, RunError, frees_on_error
from cvkit.evaluation.metrics import build_metrics, together, values_of
from cvkit.evaluation.predict import predict
from cvkit.runs.checkpoint import Checkpoint, load_weights
from cvkit.runs.folder import (
    MAY_CHANGE,
    MAY_EVALUATE,
    Run,
    is_among,
    open_run,
    output_dir_of,
)
from cvkit.runs.predictions import Predictions
from cvkit.runs.trained import order_of
from cvkit.system.files import user_path
from cvkit.system.log import ProgressBar
from cvkit.system.text import escape_controls, plural
from cvkit.training.losses import build_loss

# Evaluations, pictures and reports say so alike.
OTHER_IMAGES = ("the data set has other training images than those that the run was trained on: "
                "some of them may be among these test images")
# Of the mean difference between what a model says in one precision and in another.
_MOST_BY_PRECISION = 0.1


@frees_on_error
def evaluate(run: Run | str | Path | Sequence[Run | str | Path] | None = None,
             overrides: Sequence[str] | Mapping[str, Any] = ()) -> Predictions:
    """Evaluate a run's model on its test images and rewrite the run's `predictions.npz`.

    That file is left as it is where other images, transforms, metrics or another precision are
    asked for, or the data set has other training images than it had; a line says so. Another
    `ImageFolder` or `CSVDataset` than the run's needs no train split, and one without splits is
    tested whole.

    Args:
        run: a run, its path, or None for the newest; or a list of several, whose probabilities are
            averaged, class by class of the same name, and nothing is written.
        overrides: as `load_config` takes them: of DATA, METRICS, TTA, and where it runs. Classes
            and normalisation stay those of the checkpoint.

    Raises:
        UserError: no run, no checkpoint, no data, a checkpoint that fits neither, or images of
            other classes.
    """
    if isinstance(run, Sequence) and not isinstance(run, str):
        runs = [_opened(each, overrides) for each in run]
        if not runs:
            raise RunError("no run is named")
        if len(runs) > 1:
            return _together(runs)
        run, overrides = runs[0], ()
    opened = _opened(run, overrides)
    opened.refuse_links()
    path = opened.folder / "predictions.npz"
    kept = _kept(path)
    predictions = _evaluated(opened, kept)
    other = opened.other_best(predictions)
    if other:
        print(other)
    reason = _why_not_kept(opened, predictions, kept)
    has_other_images, edited = opened.changes_since_training()
    if has_other_images:
        print(f"warning    {OTHER_IMAGES}")
        reason = "the run's data set has other images now"
    if edited:
        print(f"warning    {', '.join(edited)} was edited since the run was saved: the results are "
              "of the file as it is now")
        if reason is None and kept and not _are_close(predictions, kept):
            reason = "it holds what the run says without the edit"
    if reason is None and _shows_something_else(opened, predictions, kept):
        reason = "the run says something else of these files, whatever their names, than it holds"
    if reason is None:
        predictions.save(path)
        print(f"Written to {path}")
    else:
        print(f"Not written to {path}: {reason}")
    return predictions


def _opened(run: Run | str | Path | None, overrides: Sequence[str] | Mapping[str, Any]) -> Run:
    if not isinstance(run, Run):
        return open_run(run, output_dir_of(overrides), overrides=overrides,
                        may_change=MAY_EVALUATE)
    if not overrides:
        return run
    if run.changed:
        raise RunError(f"the run was opened with {', '.join(run.changed)} already",
                       hint="Name its folder, and all that is to be set otherwise.")
    return Run(run.folder, overrides, MAY_EVALUATE)


def _evaluated(run: Run, kept: Predictions | None) -> Predictions:
    """Return what a run's model says of its test images.

    Args:
        kept: what it said before, if that is known.
    """
    _build_data(run, kept.images if kept else "")
    classes, loader = run.data.classes, run.loaders.test
    checkpoint = run.checkpoint()
    # Those of the training, whatever images there are now.
    counts = (checkpoint.images or {}).get("class_counts")
    loss = build_loss(run.config.LOSS, len(classes), classes=classes, class_counts=counts)
    if checkpoint.loss is not None:
        load_weights(loss, checkpoint.loss, "the checkpoint", "loss")
    loss.to(run.device)
    _try_one(run, checkpoint)
    predictions, _ = predict(run.model, loader, loss, build_metrics(run.config.METRICS, classes),
                             classes, run.precision, checkpoint.epoch,
                             ProgressBar("Test", len(loader)))
    # Or its workers would wait as long as the run is kept.
    run.loaders.close()
    return replace(predictions, batches=checkpoint.batches)


def _evaluated_and_freed(run: Run) -> Predictions:
    """Return what a run's model says, and let go of its images and its model."""
    predictions = _evaluated(run, _kept(run.folder / "predictions.npz"))
    for part in ("data", "built_data", "loaders", "model", "_trained"):
        vars(run).pop(part, None)
    return predictions


def _together(runs: Sequence[Run]) -> Predictions:
    """Return the mean of what several runs' models say of the same test images.

    Its loss is the cross entropy of the mean, whatever each was trained with.

    Raises:
        CheckpointError: they have other classes. DataError: they are tested on other images.
    """
    first, *others = map(_evaluated_and_freed, runs)
    everything = [first.probabilities]
    for run, other in zip(runs[1:], others):
        order = order_of(first.classes, other.classes, runs[0].folder, run.folder)
        true = np.argsort(order)[other.true]
        if not (other.images == first.images and np.array_equal(other.index, first.index)
                and np.array_equal(true, first.true)):
            raise DataError(f"{runs[0].folder} and {run.folder} are tested on different images",
                            hint="DATA.DATASET.root tests all of them on the same folder.")
        everything.append(other.probabilities[:, order])
    return with_probabilities(first, np.stack(everything).mean(0, dtype=np.float32),
                              runs[0].config.METRICS, len(runs))


def with_probabilities(first: Predictions, probabilities: np.ndarray, nodes: Sequence[Any],
                       models: int) -> Predictions:
    """Return predictions with other probabilities, and all that follows from them.

    The loss is their cross entropy.

    Args:
        first: the images and classes.
        probabilities: float32 (N, C).
        nodes: METRICS of the config.
        models: whose probabilities they are.
    """
    logits = torch.from_numpy(probabilities).clamp_min(torch.finfo(torch.float32).tiny).log()
    labels = torch.from_numpy(first.true)
    metrics = build_metrics(nodes, first.classes)
    for metric in metrics:
        metric.update(logits.clone(), labels.clone())
    loss = float(torch.nn.functional.nll_loss(logits, labels))
    values = {"loss": loss, **together((metric, values_of(metric)) for metric in metrics)}
    return replace(first, probabilities=probabilities, predicted=probabilities.argmax(1),
                   loss=loss, metrics=values, models=models)


def _kept(path: Path) -> Predictions | None:
    """Return the run's own predictions; None if there are none, or the file is damaged."""
    try:
        return Predictions.load(path)
    except RunError:
        return None


def _are_close(predictions: Predictions, kept: Predictions) -> bool:
    """Whether two are the same but for rounding."""
    return predictions.probabilities.shape == kept.probabilities.shape and np.allclose(
        predictions.probabilities, kept.probabilities, atol=0.01)


def _build_data(run: Run, tested: str) -> None:
    """Build the images, all of another folder as test images, and say what was done with them."""
    words = _take_all_of_another_folder(run, tested)
    for note in (*words, *run.data.notes):
        print(f"data       {note}")
    if run.data.left_out:
        print(f"left out   {plural(len(run.data.left_out), 'image file')} that cannot be read, "
              f"{escape_controls(run.data.left_out[0])} the first of them")


def _take_all_of_another_folder(run: Run, tested: str) -> list[str]:
    """Build the images of another folder, or table, than the run's; return in words which.

    Args:
        tested: the fingerprint of the images that the run was tested on; empty if not known.
    """
    node, own = run.config.DATA.DATASET, Run(run.folder).config.DATA.DATASET
    if node.NAME not in PLACES:
        return []
    place = node[PLACES[node.NAME]]
    # Further tables are of the splits; a folder has those in it.
    further = [key for key in ("val", "test") if node.NAME == "CSVDataset" and node.get(key)]
    if further and "DATA.DATASET.path" in run.changed and not any(
            f"DATA.DATASET.{key}" in run.changed for key in further):
        raise ConfigError(f"{further[-1]} is still {node[further[-1]]}, which would be tested",
                          where=node.where("path"),
                          hint=f"Name that as well, DATA.DATASET.{further[-1]} FILE; to test all "
                               "of path: " + " ".join(f"DATA.DATASET.{key} null"
                                                      for key in further))
    folders = {key: node.get(key) for key in ("train", "val", "test", "splits")
               if node.NAME == "ImageFolder" and node.get(key)}
    if "DATA.DATASET.root" in run.changed and not any(
            f"DATA.DATASET.{key}" in run.changed for key in folders):
        names = [name for value in folders.values()
                 for name in (value.values() if isinstance(value, Mapping) else [value])]
        if names and not any((user_path(place) / name).is_dir() for name in names):
            raise ConfigError(f"{place} has none of the folders {', '.join(names)}, which the "
                              "run's config names", where=node.where("root"),
                              hint="To test all of it: " + " ".join(
                                  f"DATA.DATASET.{key} null" for key in folders))
    fraction = node.get("test_fraction")
    is_chosen = "DATA.DATASET.test_fraction" in run.changed or (
        fraction not in (None, own.get("test_fraction")))
    is_same = own.NAME == node.NAME and (
        user_path(own[PLACES[own.NAME]]).resolve() == user_path(place).resolve())
    takes_all, folds = is_chosen and fraction == 1, run.config.DATA.FOLDS
    if not takes_all:
        if is_same:
            return []
        # The run's own folder elsewhere has images in it that the run was trained on.
        try:
            if run.data.test.fingerprint == tested or (_has_test(run.data) and not folds):
                return []
            takes_all = bool(tested) and not is_chosen
        except DataError:
            # There may be no train/, which an evaluation does not need.
            takes_all = True
        except ConfigError:
            # Nor does it hold out validation images of those that have a split of them.
            if is_chosen or not (folds or run.config.DATA.VAL_FRACTION):
                raise
            takes_all = True
    if takes_all:
        for part in ("data", "loaders"):
            vars(run).pop(part, None)
        with images_are_for_testing():
            count = plural(len(run.data.test), "image")
        if _has_test(run.data):
            return []
        limit = f" (DATA.LIMIT {run.config.DATA.LIMIT})" if run.config.DATA.LIMIT else ""
        return [f"{count} of {escape_controls(place)} are tested{limit}, none is set aside: "
                "leave out those that the run was trained on"]
    every = sum(map(len, run.data.splits.values()))
    return [f"{len(run.data.test):,} of {every:,} images of {escape_controls(place)} are "
            f"tested, as {'DATA.FOLDS' if folds else 'test_fraction'} sets them aside; "
            "DATA.DATASET.test_fraction 1 tests all"]


def _has_test(data: ImageData) -> bool:
    """Whether the test images are others than those that there are to train on, without folds."""
    return data.train.images is not data.test.images


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


def _why_not_kept(run: Run, predictions: Predictions, kept: Predictions | None) -> str | None:
    """Return why predictions do not take the place of the run's own, or None."""
    other = [key for key in run.changed if not is_among(key, MAY_CHANGE)]
    if other:
        return f"it holds what the run says with {', '.join(other)} as it was trained"
    if not any(is_among(key, ["DATA.DATASET"]) for key in run.changed):
        return None
    if kept is None:
        return "whether these are the run's images is not known; config.yaml of the run says where"
    return None if kept.images in ("", predictions.images) else "it is of other images"


def _shows_something_else(run: Run, predictions: Predictions, kept: Predictions | None) -> bool:
    """Tell whether files in another place are not the run's, though their names and sizes are.

    All bitmaps of a shape have one size. Half the sum of the differences of probabilities is, at
    most, the part of the images that are taken for another class; another precision changes little.
    """
    if kept is None or kept.place != predictions.place or (
            not isinstance(run.data.test.images, ImageFiles)
            or not any(is_among(key, ["DATA.DATASET"]) for key in run.changed)):
        return False
    differences = np.abs(predictions.probabilities - kept.probabilities).sum(1) / 2
    return float(differences.mean()) > _MOST_BY_PRECISION
