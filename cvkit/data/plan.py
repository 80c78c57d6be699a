"""The order of an epoch's images, and how they make batches."""

from __future__ import annotations

from typing import Any

import numpy as np

from cvkit.errors import DataError

# A sampler of one's own is tried for so many epochs.
_TRIED = 5


class EpochPlan:
    """Which images make which batch of an epoch, and which batches make an optimizer step.

    Images and their order are drawn from (seed, epoch) alone. They are those of all processes
    together, each of which takes its part of every batch.

    Args:
        count: images of the split.
        batch_size: images of a batch; the last one is short.
        shuffle: a new order each epoch.
        seed: of the order.
        rank: this process's number.
        size: number of all processes.
        accumulate: batches of an optimizer step; the last one may have fewer.
        sampler: draws the images of an epoch, see `cvkit.data.samplers`; None: every one once.

    Attributes:
        count: images of an epoch.
        batch_sizes: images of each batch of an epoch, in all processes together.

    Raises:
        DataError: the sampler draws what is no image of the split.
    """

    def __init__(self, count: int, batch_size: int, shuffle: bool, seed: int,
                 rank: int = 0, size: int = 1, accumulate: int = 1, sampler: Any = None):
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.size, self.accumulate = rank, size, accumulate
        self.total, self.sampler = count, sampler
        self._drawn = count
        if sampler is not None:
            self._drawn = len(self._sampled(0))
        # Batch normalisation cannot train on one image: such a rest is left to later epochs.
        leaves_rest = shuffle and self._drawn > batch_size and self._drawn % batch_size == 1
        self.count = self._drawn - leaves_rest
        self.batch_sizes = [min(batch_size, self.count - start)
                            for start in range(0, self.count, batch_size)]

    def positions(self, epoch: int) -> np.ndarray:
        """Return the positions of an epoch's images in the split, in order."""
        if not self.shuffle:
            return np.arange(self.count)
        if self.sampler is not None:
            drawn = self._sampled(epoch)
            if len(drawn) != self._drawn:
                raise DataError(f"{self._name} draws {len(drawn):,} images for epoch {epoch + 1}, "
                                f"and {self._drawn:,} for the first",
                                hint="Schedules count on as many in each.")
            return drawn[:self.count]
        return np.random.default_rng([self.seed, epoch]).permutation(self.total)[:self.count]

    @property
    def _name(self) -> str:
        return f"sampler {type(self.sampler).__name__}"

    def _sampled(self, epoch: int) -> np.ndarray:
        """Return the positions that the sampler draws for an epoch, once they are found right."""
        random = np.random.default_rng([self.seed, epoch])
        drawn = np.asarray(self.sampler.positions(epoch, random))
        if drawn.ndim != 1 or drawn.dtype.kind not in "iu" or not len(drawn):
            raise DataError(f"{self._name} draws {drawn.dtype} of shape {drawn.shape}",
                            hint="positions(epoch, random) returns whole numbers (N,).")
        low, high = int(drawn.min()), int(drawn.max())
        if low < 0 or high >= self.total:
            raise DataError(f"{self._name} draws position {low if low < 0 else high}, and the "
                            f"{self.total:,} images have those from 0 to {self.total - 1}")
        return drawn.astype(np.int64)

    def try_sampler(self) -> None:
        """Draw some epochs, and the first one again.

        Raises:
            DataError: the sampler draws another number in one of them, or other images then.
        """
        epochs = [self.positions(epoch) for epoch in range(_TRIED)]
        if not np.array_equal(self.positions(0), epochs[0]):
            raise DataError(f"{self._name} draws other images when it is asked again for an epoch: "
                            "no training could be resumed",
                            hint="Draw by `random` alone, which is given, and count nothing.")

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
