"""Test images made worse, to see how far a model bears it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import albumentations as A
import cv2
import numpy as np

Corruption = Literal["noise", "blur", "darker", "brighter", "contrast", "jpeg", "occlusion"]
STRENGTHS = 5
# By strength; of lengths as parts of the image's shorter side, so that they mean the same for
# large images and small ones.
_VALUES: dict[Corruption, Sequence[float]] = {
    "noise": (0.04, 0.08, 0.12, 0.18, 0.26),  # standard deviation, pixels scaled to 0–1
    "blur": (0.02, 0.03, 0.04, 0.055, 0.075),  # standard deviation
    "darker": (0.1, 0.2, 0.3, 0.45, 0.6),  # taken off, pixels scaled to 0–1
    "brighter": (0.1, 0.2, 0.3, 0.45, 0.6),  # added
    "contrast": (0.3, 0.45, 0.6, 0.75, 0.88),  # part of the contrast that is lost
    "jpeg": (50, 30, 20, 12, 6),  # quality
    "occlusion": (0.2, 0.3, 0.4, 0.5, 0.6),  # side of a grey square, part of either side
}


def corrupt(images: Sequence[np.ndarray], corruption: Corruption, strength: int,
            seed: int = 0) -> list[np.ndarray]:
    """Return images made worse by albumentations, the same for the same seed.

    After Hendrycks & Dietterich (Benchmarking neural network robustness to common corruptions,
    2019), with strengths of our own that suit images of any size.

    Args:
        images: uint8 (H, W, C).
        strength: 1 to 5.

    Raises:
        ValueError: another strength.
    """
    if not 1 <= strength <= STRENGTHS:
        raise ValueError(f"strength is 1 to {STRENGTHS}, not {strength}")
    value = _VALUES[corruption][strength - 1]
    by_side = functools.cache(functools.partial(_TRANSFORMS[corruption], value))
    found = []
    for number, image in enumerate(images):
        transform = by_side(min(image.shape[:2]))
        transform.set_random_seed(seed * 1_000_003 + number)
        found.append(transform(image=image)["image"].reshape(image.shape))
    return found


def _brightness(change: float) -> A.BasicTransform:
    return A.RandomBrightnessContrast((change, change), (0, 0), p=1)


def _flatten(part: float, image: np.ndarray, **_: Any) -> np.ndarray:
    """Take a part of the contrast off, about the mean of the image, which stays as bright."""
    # As albumentations does, whose own takes one channel or three.
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[2] == 3 else image
    mean = np.float32(grey.mean())
    return (mean + np.float32(1 - part) * (image - mean)).astype(np.uint8)


# Given the value of a strength and the shorter side in pixels.
_TRANSFORMS: dict[Corruption, Callable[[float, int], A.BasicTransform]] = {
    "noise": lambda value, side: A.GaussNoise((value, value), p=1),
    "blur": lambda value, side: A.GaussianBlur(0, (value * side, value * side), p=1),
    "darker": lambda value, side: _brightness(-value),
    "brighter": lambda value, side: _brightness(value),
    "contrast": lambda value, side: A.Lambda(functools.partial(_flatten, value), p=1),
    "jpeg": lambda value, side: A.ImageCompression("jpeg", (int(value), int(value)), p=1),
    "occlusion": lambda value, side: A.CoarseDropout((1, 1), (value, value), (value, value),
                                                     fill=127, p=1)}
