"""Choosing images: a part of every class held out, folds, a balanced few, some evenly spaced."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from cvkit.errors import ConfigError, DataError
from cvkit.system.text import plural

# Of so many folds at most the first ones are held out that come nearest to a fraction.
_MOST_FOLDS = 50


@contextmanager
def naming(classes: Sequence[str]) -> Iterator[None]:
    """Give what is said meanwhile of classes by their numbers their names."""
    try:
        yield
    except DataError as error:
        error.problem = re.sub(r"class number (\d+)",
                               lambda found: f"class {classes[int(found[1])]}", error.problem)
        raise


def stratified_split(labels: np.ndarray, fraction: float, seed: int,
                     groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted positions of the rest and of `fraction` of every class, at least one of each.

    Args:
        groups: numbers (N,); images of the same one stay together, and the fraction is met as
            nearly as that allows.

    Raises:
        DataError: a class has a single image, or all of its images in a single group.
    """
    if groups is not None:
        most = max(2, min(_MOST_FOLDS, len(np.unique(groups)), int(np.bincount(labels).max())))
        # The fewer, the nearer is each to the shares of the classes.
        folds = min(range(2, most + 1), key=lambda count: (
            round(abs(min(max(round(count * fraction), 1), count - 1) / count - fraction), 2),
            count))
        number = fold_numbers(labels, folds, seed, groups)
        sizes = np.cumsum(np.bincount(number, minlength=folds))[:-1]
        is_held_out = number <= np.abs(sizes - fraction * len(labels)).argmin()
        _refuse_lost(labels, is_held_out, groups)
        return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
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


def fold_numbers(labels: np.ndarray, folds: int, seed: int,
                 groups: np.ndarray | None = None) -> np.ndarray:
    """Return for each image the fold that it is tested in, int64 (N,), from 0.

    They are those of scikit-learn's StratifiedKFold, shuffled by the seed; with groups those of
    StratifiedGroupKFold, of groups in an order that the seed draws.

    Args:
        labels: (N,), of which each fold has the same shares.
        folds: 2 or more.
        groups: numbers (N,); images of the same one are in the same fold.

    Raises:
        DataError: a class has fewer images than there are folds; of groups: all classes have, or
            there are fewer groups.
    """
    # Importing it takes longer than a short training, and few ask for it.
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    counts = np.bincount(labels)
    few = np.flatnonzero((counts > 0) & (counts < folds))
    if groups is None and few.size:
        raise DataError(f"class number {few[0]} has {plural(int(counts[few[0]]), 'image')}, and "
                        f"{folds} folds need as many of each class")
    if groups is not None and len(np.unique(groups)) < folds:
        raise DataError(f"{plural(len(np.unique(groups)), 'group')} of images cannot be in "
                        f"{folds} folds")
    if groups is not None and counts.max() < folds:
        raise DataError(f"no class has as many images as there are folds, {folds}")
    splitter: StratifiedKFold | StratifiedGroupKFold
    if groups is None:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
    else:
        # Before 1.8 its own shuffling loses the shares of the classes.
        splitter, codes = StratifiedGroupKFold(folds), np.unique(groups, return_inverse=True)[1]
        groups = np.random.default_rng([seed, 3]).permutation(codes.max() + 1)[codes]
    number = np.empty(len(labels), dtype=np.int64)
    with warnings.catch_warnings():
        # Of a class with fewer images than folds: groups cannot have it in each.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(labels)), labels, groups)):
            number[held_out] = fold
    return number


def fold_split(labels: np.ndarray, folds: int, fold: int, seed: int,
               groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted positions of the images that are trained on, and of those of one fold.

    Args:
        fold: which of the folds, from 0; the others as of `fold_numbers`.

    Raises:
        DataError: as `fold_numbers`; or no image of a class is left to train on.
    """
    is_held_out = fold_numbers(labels, folds, seed, groups) == fold
    _refuse_lost(labels, is_held_out, groups)
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def _refuse_lost(labels: np.ndarray, is_held_out: np.ndarray, groups: np.ndarray | None) -> None:
    lost = np.setdiff1d(labels, labels[~is_held_out])
    if lost.size:
        raise DataError(f"all images of class number {lost[0]} would be held out, and none trained "
                        "on", hint="They are of too few groups." if groups is not None else None)


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
