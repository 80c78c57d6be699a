"""Images whose labels are probably wrong."""

from __future__ import annotations

from typing import Literal

from cvkit.data import ImageData
from cvkit.evaluation.confident_learning import label_candidates
from cvkit.evaluation.further_images import predict_images
from cvkit.registry import VISUALIZERS
from cvkit.runs.folder import Run
from cvkit.runs.predictions import Predictions
from cvkit.system.text import plural
from cvkit.visualizers.drawing import (
    Picture,
    as_csv,
    image_names,
    message,
    percent,
    positions_of,
    refuse_below_one,
    styled,
)
from cvkit.visualizers.misclassified import gallery

# A model that is wrong more often contradicts more right labels than wrong ones.
_TRUSTED = 0.8


@VISUALIZERS.register()
@styled
def label_errors(predictions: Predictions, data: ImageData, run: Run | None = None,
                 count: int = 20, split: Literal["train", "val", "test"] = "train") -> Picture:
    """Candidates for wrong labels by confident learning, the surest first, and a CSV of them all.

    Those follow whose label the model contradicts without being as sure.

    Of the folds of a cross-validation each image is judged by the model that was not trained on
    it. A single run judges its training images by the model that has learned them, which finds
    fewer; see `cvkit.evaluation.confident_learning`. Most of what a weak model contradicts are its
    own mistakes.

    Args:
        count: how many to show.
        split: whose labels; of folds all images are judged.

    Raises:
        ConfigError: there are no validation images.
    """
    refuse_below_one(count=count)
    if run is None:
        said, images, whose = predictions, data.test, "image"
        how = "each judged by the model of the fold that it was not trained on"
    elif split == "test":
        said, images, whose = predictions, data.test, "test image"
        how = "judged by the model, which was not trained on them"
    elif split == "val":
        if data.val is None:
            raise ValueError("split val: there are no validation images")
        said, images, whose = predict_images(run, data.val, "Validation"), data.val, (
            "validation image")
        how = "judged by the model, which was not trained on them"
    else:
        said, images, whose = predict_images(run, data.train, "Training"), data.train, (
            "training image")
        how = ("judged by the model that was trained on them and has learned some of the wrong "
               "labels (folds find more: train with --folds 5)")
    rows, confident = label_candidates(said)
    of = f"{plural(len(said.true), whose)}, {how}"
    if not len(rows):
        return message(f"No label is contradicted among {of}.")
    shown = rows[:count]
    some = "" if len(shown) == len(rows) else f" Shown: the first {len(shown)}."
    if said.accuracy < _TRUSTED:
        some = (f" It agrees with {100 * said.accuracy:.0f} % of the labels only, so most of these "
                f"are its own mistakes.{some}")
    figure = gallery(
        images, said, shown, "Labels that may be wrong",
        f"{plural(confident, 'label')} probably wrong by confident learning, and "
        f"{len(rows) - confident:,} more that the model contradicts, of {of}.{some} Over each: "
        "label → what the model sees (probability of the label, of the other).",
        [f"{percent(said.probabilities[row, said.true[row]])}, "
         f"{percent(said.probabilities[row].max())}" for row in shown])
    figure.csv = as_csv(
        ("image", "label", "suggested", "probability of label", "of suggested", "probably wrong"),
        [(name, said.classes[said.true[row]], said.classes[said.predicted[row]],
          float(said.probabilities[row, said.true[row]]), float(said.probabilities[row].max()),
          "yes" if place < confident else "perhaps")
         for place, (row, name) in enumerate(zip(rows, image_names(
             images, positions_of(images, said, rows))))])
    return figure
