"""Whether probabilities are as high as they are right, and the temperature that makes them so."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cvkit.runs.predictions import Predictions

# What exp and log still tell apart.
_TINY = np.finfo(np.float32).tiny
# A temperature is looked for between these.
_LOWEST, _HIGHEST = 0.05, 20.0


class Reliability(NamedTuple):
    """Test images by how sure the model was.

    Attributes:
        edges: of the bins of confidence, float64 (B + 1,).
        counts: images in each, int64 (B,).
        right: how many of them are right.
        confidence: their mean confidence; NaN without images.
        expected: the expected calibration error (Naeini et al., 2015), the mean over the images of
            the distance between confidence and accuracy of their bin.
        maximum: the largest of these distances.
    """

    edges: np.ndarray
    counts: np.ndarray
    right: np.ndarray
    confidence: np.ndarray
    expected: float
    maximum: float


def reliability(probabilities: np.ndarray, true: np.ndarray, bins: int = 15) -> Reliability:
    """Return how reliable probabilities (N, C) of images of these classes (N,) are.

    Errors as of Guo et al. (2017): bins of equal width, each without its lower end. They are those
    of torchmetrics but where a probability is exactly 1, which that counts in a bin of its own.
    """
    confidence = probabilities.max(1).astype(np.float64)
    is_right = probabilities.argmax(1) == true
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges.astype(np.float32), confidence, side="left") - 1, 0,
                    bins - 1)
    counts, right, sums = (np.bincount(place, weights=weights, minlength=bins)
                           for weights in (None, is_right, confidence))
    filled = np.where(counts, counts, np.nan)
    distances = np.abs(right - sums) / filled
    return Reliability(edges, counts, right.astype(np.int64), sums / filled,
                       float(np.nansum(distances * counts) / counts.sum()),
                       float(np.nanmax(distances)))


def wilson(right: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the ends of the intervals of 95 % of rates, float64 (N, 2); NaN where counts are 0.

    Wilson's (J. Am. Stat. Assoc. 22, 1927), by SciPy.
    """
    from scipy.stats import binomtest

    return np.array([tuple(binomtest(int(some), int(all_of_it)).proportion_ci(method="wilson"))
                     if all_of_it else (np.nan, np.nan)
                     for some, all_of_it in zip(right, counts)])


def fit_temperature(predictions: Predictions) -> float:
    """Return what logits have to be divided by so that the loss of these images is least.

    Above 1 the model is over-confident. "Temperature scaling" of Guo et al. (On calibration of
    modern neural networks, 2017): fit it on images that the model was not trained on.

    Raises:
        ValueError: the loss falls without end: all images are right, or the model guesses.
    """
    from scipy.optimize import minimize_scalar

    endless = "the loss of the validation images falls without end: "
    if predictions.correct == len(predictions.true):
        raise ValueError(f"{endless}all are right")
    found = minimize_scalar(
        lambda log: _loss(scaled(predictions.probabilities, np.exp(log)), predictions.true),
        bounds=(np.log(_LOWEST), np.log(_HIGHEST)), method="bounded", options={"xatol": 1e-4})
    temperature = float(np.exp(found.x))
    if not 1.01 * _LOWEST < temperature < _HIGHEST / 1.01:
        raise ValueError(f"{endless}the model {'guesses' if temperature > 1 else 'hardly errs'}")
    return temperature


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities (N, C) as they are after the logits were divided by a temperature."""
    logits = np.log(np.maximum(probabilities, _TINY).astype(np.float64)) / temperature
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def _loss(probabilities: np.ndarray, true: np.ndarray) -> float:
    return float(-np.log(np.maximum(probabilities[np.arange(len(true)), true], _TINY)).mean())
