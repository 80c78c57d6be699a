"""What a run's model says of other images than its test images."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from cvkit.data import ImageSet
from cvkit.data.build import build_evaluation_loader
from cvkit.evaluation.metrics import build_metrics
from cvkit.evaluation.predict import logits_of, mean_logits, predict
from cvkit.models.probing import in_evaluation_mode, state_kept
from cvkit.runs.folder import Run
from cvkit.runs.predictions import Predictions
from cvkit.system.log import ProgressBar
from cvkit.system.seeds import random_numbers_kept, seed_random_numbers


def predict_images(run: Run, images: ImageSet, title: str = "Predict") -> Predictions:
    """Return what a run's model says of images of its classes, as an evaluation sees them.

    The loss is their cross entropy. Nothing is written.

    Args:
        images: training or validation images of `run.data`, or changed test images.
        title: of the progress bar.
    """
    classes, there = run.data.classes, (run.loaders.test, run.loaders.val)
    # Images of a split may have been decoded already.
    loader = next((each for each in there if each is not None and each.images is images), None)
    if loader is None:
        loader = build_evaluation_loader(run.config, run.data, images, run.loaders)
    try:
        return predict(run.model, loader, nn.CrossEntropyLoss(), build_metrics([], classes),
                       classes, run.precision, run.epoch, ProgressBar(title, len(loader)))[0]
    finally:
        if loader not in there:
            loader.source.close()


@torch.no_grad()
def classify_received(run: Run, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """Return the classes that a run's model gives images after the transforms of tests, int64 (N,).

    Args:
        images: uint8 (N, H, W, C), as the model receives them but for the normalisation.
    """
    loader, found = run.loaders.test, []
    with (state_kept(run.model), in_evaluation_mode(run.model),
          random_numbers_kept(loader.device)):
        seed_random_numbers(run.epoch)
        for start in range(0, len(images), batch_size):
            pixels = torch.from_numpy(images[start:start + batch_size]).to(loader.device)
            places = range(start, start + len(pixels))
            views = loader.views.of(loader.normalise(pixels), places, loader)
            logits = mean_logits(logits_of(run.model, views, loader.device, run.precision))
            found.append(logits.argmax(1).cpu().numpy())
    return np.concatenate(found)
