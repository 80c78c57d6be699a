"""Samplers: which images an epoch has, where it is not every one once.

A sampler is built of the training labels and has `positions(epoch, random)`, which returns those of
an epoch's images in the split, in the order in which they are trained on: as many in each epoch,
and drawn by the generator that it is given alone.
"""

from __future__ import annotations

import numpy as np

from cvkit.registry import SAMPLERS


@SAMPLERS.register("balanced")
class Balanced:
    """As many images of each class, and as many in all as there are.

    Those of rare classes are repeated, each as often as the others of its class or once more; those
    of frequent ones are drawn anew in each epoch. What cannot be shared equally goes to classes at
    random.
    """

    def __init__(self, labels: np.ndarray):
        self.members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self.share, self.rest = divmod(len(labels), len(self.members))

    def positions(self, epoch: int, random: np.random.Generator) -> np.ndarray:
        """Return the positions of an epoch's images (N,), of as many as the split has."""
        has_more = random.permutation(len(self.members)) < self.rest
        drawn = []
        for members, more in zip(self.members, has_more):
            times, some = divmod(self.share + int(more), len(members))
            drawn += [np.tile(members, times), random.permutation(members)[:some]]
        return random.permutation(np.concatenate(drawn))


@SAMPLERS.register("repeat_factor")
class RepeatFactor:
    """Images of rare classes several times (Gupta et al., 2019): max(1, sqrt(threshold / share)).

    That often on average: its whole part always, of the rest as many as they add up to, rounded
    down, by systematic sampling, so that all epochs have the same number of images.

    Args:
        threshold: classes with a smaller share of the images than this, 0 to 1, are repeated.
    """

    def __init__(self, labels: np.ndarray, threshold: float):
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold is a share, above 0 and at most 1, not {threshold:g}")
        shares = np.bincount(labels)[labels] / len(labels)
        factors = np.maximum(1, np.sqrt(threshold / shares))
        whole = np.floor(factors)
        self.copies = np.repeat(np.arange(len(labels)), whole.astype(int))
        self.rests = factors - whole
        # Sums in other orders differ in their last bits.
        self.more = int(self.rests.sum() + 1e-6)

    def positions(self, epoch: int, random: np.random.Generator) -> np.ndarray:
        """Return the positions of an epoch's images (N,)."""
        order = random.permutation(len(self.rests))
        ends = np.cumsum(self.rests[order])
        marks = (np.arange(self.more) + random.random()) * (ends[-1] / max(self.more, 1))
        drawn = order[np.searchsorted(ends[:-1], marks, side="right")]
        return random.permutation(np.concatenate([self.copies, drawn]))
