"""What a run's model says of other images than its test images."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from cvkit.data import ImageSet
from cvkit.data.build import build_evaluation_loader
from cvkit.evaluation.metrics import build_metrics
from cvkit.evaluation.predict import predict
from cvkit.runs.folder import Run
from cvkit.runs.predictions import Predictions
from cvkit.system.log import ProgressBar


def predict_images(run: Run, images: ImageSet, title: str = "Predict") -> Predictions:
    """Return what a run's model says of images of its classes, as an evaluation sees them.

    The loss is their cross entropy. Nothing is written.

    Args:
        images: training or validation images of `run.data`, or changed test images.
        title: of the progress bar.
    """
    classes, checkpoint = run.data.classes, run.checkpoint()
    loader = build_evaluation_loader(run.config, run.data, images, run.loaders)
    try:
        found, _ = predict(run.model, loader, nn.CrossEntropyLoss(), build_metrics([], classes),
                           classes, run.precision, checkpoint.epoch,
                           ProgressBar(title, len(loader)))
    finally:
        loader.source.close()
    return replace(found, batches=checkpoint.batches)
