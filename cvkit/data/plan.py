"""The order of an epoch's images, and how they make batches."""

from __future__ import annotations

import numpy as np


class EpochPlan:
    """Which images make which batch of an epoch, and which batches make an optimizer step.

    The order is drawn from (seed, epoch) alone. It is that of all processes together, each of which
    takes its part of every batch.

    Args:
        count: images of the split.
        batch_size: images of a batch; the last one is short.
        shuffle: a new order each epoch.
        seed: of the order.
        rank: this process's number.
        size: number of all processes.
        accumulate: batches of an optimizer step; the last one may have fewer.

    Attributes:
        batch_sizes: images of each batch of an epoch, in all processes together.
    """

    def __init__(self, count: int, batch_size: int, shuffle: bool, seed: int,
                 rank: int = 0, size: int = 1, accumulate: int = 1):
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.size, self.accumulate = rank, size, accumulate
        # Batch normalisation cannot train on one image: such a rest is left to later epochs.
        leaves_rest = shuffle and count > batch_size and count % batch_size == 1
        self.total, self.count = count, count - leaves_rest
        self.batch_sizes = [min(batch_size, self.count - start)
                            for start in range(0, self.count, batch_size)]

    def positions(self, epoch: int) -> np.ndarray:
        """Return the positions of an epoch's images in the split, in order."""
        if not self.shuffle:
            return np.arange(self.count)
        return np.random.default_rng([self.seed, epoch]).permutation(self.total)[:self.count]

    def part_size(self, number: int) -> int:
        """Return how many images of a batch are this process's; 0 of a very short one."""
        size = self.batch_sizes[number]
        return size * (self.rank + 1) // self.size - size * self.rank // self.size

    def part(self, number: int) -> slice:
        """Return the places in the epoch of this process's part of a batch.

        One image at least, so that each process has something to compute; see `part_size`.
        """
        start, size = number * self.batch_size, self.batch_sizes[number]
        start += min(size * self.rank // self.size, size - 1)
        return slice(start, start + max(self.part_size(number), 1))

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-len(self.batch_sizes) // self.accumulate)

    def ends_step(self, number: int) -> bool:
        """Tell whether a batch is the last one of its optimizer step."""
        return (number + 1) % self.accumulate == 0 or number + 1 == len(self.batch_sizes)

    def step_size(self, number: int) -> int:
        """Return how many images the optimizer step of a batch has, in all processes together."""
        start = number - number % self.accumulate
        return sum(self.batch_sizes[start:start + self.accumulate])
