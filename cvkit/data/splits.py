"""Choosing images: a part of every class held out, a balanced few, or some evenly spaced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cvkit.errors import ConfigError, DataError
from cvkit.system.text import plural


def stratified_split(labels: np.ndarray, fraction: float,
                     seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted positions of the rest and of `fraction` of every class, at least one of each.

    Raises:
        DataError: a class has a single image.
    """
    random = np.random.default_rng([seed, 1])
    rest, held_out = [], []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise DataError(f"class number {label} has one image; a split needs two of each class")
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held_out.append(members[:count])
        rest.append(members[count:])
    return np.sort(np.concatenate(rest)), np.sort(np.concatenate(held_out))


def balanced_subset(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Return sorted positions of `limit` images, as equally many of each class as there are.

    Raises:
        ConfigError: `limit` is less than one image of each class.
    """
    if limit >= len(labels):
        return np.arange(len(labels))
    random = np.random.default_rng([seed, 2])
    members = [random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    if limit < len(members):
        raise ConfigError(f"DATA.LIMIT {limit} is less than one image of each of the "
                          f"{plural(len(members), 'class')}")
    # The first image of every class is taken, then the second of every class that has one…
    rounds = np.concatenate([np.arange(len(each)) for each in members])
    return np.sort(np.concatenate(members)[np.argsort(rounds, kind="stable")[:limit]])


def evenly(values: Sequence[int], most: int) -> list[int]:
    """Return all of the values, or `most` of them, the first and the last among them."""
    places = np.linspace(0, len(values) - 1, min(most, len(values))).astype(int)
    return [values[place] for place in places]
