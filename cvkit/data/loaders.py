"""From a config to batches on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from cvkit.data.images import ImageSet
from cvkit.data.mixing import mix
from cvkit.data.normaliser import Normaliser
from cvkit.data.pipeline import Pipeline
from cvkit.data.plan import EpochPlan
from cvkit.data.sources import BatchedSource, PerImageSource, Pixels
from cvkit.data.views import Views
from cvkit.system import distributed


class Batch(NamedTuple):
    """Images, normalised, with their classes.

    Attributes:
        images: float32 (N, C, H, W).
        labels: int64 (N,); of a mixed image the class with the larger share.
        index: int64 (N,), each image's place in its split.
        targets: what the loss is given: the labels, or of mixed images shares (N, classes).
        number: in its epoch, from 0.
        count: images that means are of, the first of N; the others fill up an empty part.
        weight: what a mean over the batch has to be multiplied with, so that the sum over the
            batches of an optimizer step is the mean over its images, in all processes.
        ends_step: whether the optimizer steps after it.
    """

    images: torch.Tensor
    labels: torch.Tensor
    # It hides a tuple's method, which nobody calls on a batch.
    index: torch.Tensor  # type: ignore[assignment]
    targets: torch.Tensor
    number: int = 0
    # It hides a tuple's method too.
    count: int = 0  # type: ignore[assignment]
    weight: float = 1.0
    ends_step: bool = True


class BatchLoader(Normaliser):
    """Iterates over one epoch's batches, normalised and on the device.

    Args:
        images: the split.
        pipeline: what each image goes through, uint8 to uint8.
        mean, std: per channel, pixels scaled to 0–1.
        source: makes the uint8 batches.
        plan: which images make which batch.
        device: where batches go.
        words: how batches are made.

    Attributes:
        layout: of the images in memory, channels_last unless it is set.
        views: of test images, which an evaluation averages over.
        left_out: files that batches lack, as they could not be read.
    """

    def __init__(self, images: ImageSet, pipeline: Pipeline, mean: tuple[float, ...],
                 std: tuple[float, ...], source: BatchedSource | PerImageSource, plan: EpochPlan,
                 device: torch.device, words: str):
        super().__init__(mean, std, device)
        self.images, self.pipeline, self.words = images, pipeline, words
        self.source, self.plan, self._epoch, self._start = source, plan, 0, 0
        self.views = Views()
        self.left_out: set[str] = set()

    def __len__(self) -> int:
        return len(self.batch_sizes)

    @property
    def backend(self) -> str:
        """How batches are made, as DATA.PIPELINE names it: batched or albumentations."""
        return "batched" if isinstance(self.source, BatchedSource) else "albumentations"

    @property
    def batch_sizes(self) -> list[int]:
        """Images of each batch of an epoch, in all processes together."""
        return self.plan.batch_sizes

    def part_size(self, number: int) -> int:
        """Return how many images of a batch are this process's; the rest fills it up to one."""
        return self.plan.part_size(number)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch whose order and augmentation the next iteration has.

        Args:
            epoch: from 0.
            start: the batch to begin with; those before are not made.
        """
        self._epoch, self._start = epoch, start

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self._epoch, self._start
        for number, item in enumerate(self.source.epoch(epoch, start), start):
            if len(item[1]) < max(self.part_size(number), 1):
                self._note_left_out(item[2], epoch, number)
            batch = self._mixed_part(self._on_device(item), epoch, number)
            count = min(self.part_size(number), len(batch.labels))
            # Averaging gradients divides by the number of processes.
            left_out = self.part_size(number) - count
            weight = count * self.plan.size / (self.plan.step_size(number) - left_out)
            yield batch._replace(number=number, count=count, weight=weight,
                                 ends_step=self.plan.ends_step(number))

    def _note_left_out(self, index: torch.Tensor, epoch: int, number: int) -> None:
        meant = self.plan.positions(epoch)[self.plan.part(number)]
        there = np.isin(self.images.index[meant], index.cpu().numpy())
        self.left_out.update(map(self.images.name, meant[~there]))

    def _mixed_part(self, batch: Batch, epoch: int, number: int) -> Batch:
        """Mix the parts of all processes together, as one would, and return this one's again."""
        if not self.pipeline.mixing or self.plan.size == 1:
            return self._mixed(batch, epoch, number)
        count, rank = min(self.part_size(number), len(batch.labels)), self.plan.rank
        owners, images, labels, index = map(distributed.gather, (
            torch.full((count,), rank, device=self.device), batch.images[:count],
            batch.labels[:count], batch.index[:count]))
        whole = self._mixed(Batch(images, labels, index, labels), epoch, number)
        own = torch.nonzero(owners == rank)[:, 0]
        if not len(own):
            # The batch has fewer images than processes; this one does not count.
            own = torch.zeros(1, dtype=torch.int64, device=self.device)
        images = whole.images[own].contiguous(memory_format=self.layout)
        return Batch(images, whole.labels[own], whole.index[own], whole.targets[own])

    def _mixed(self, batch: Batch, epoch: int, number: int) -> Batch:
        """Return the batch of that number in the epoch as the model receives it in training."""
        if not self.pipeline.mixing:
            return batch
        key = (self.plan.seed, epoch, number)
        images, targets = mix(self.pipeline.mixing, batch.images, batch.labels, key)
        labels = targets.argmax(1) if targets.ndim == 2 else batch.labels
        images = images.contiguous(memory_format=self.layout)
        return batch._replace(images=images, labels=labels, targets=targets)

    def views_of(self, batch: Batch) -> Iterator[torch.Tensor]:
        """Yield what the model is shown of a batch: its images, and the views of TTA."""
        places = np.zeros(0, dtype=np.int64)
        if len(self.views) > 1:
            places = np.searchsorted(self._order, batch.index.cpu().numpy())
        return self.views.of(batch.images, places, self)

    @cached_property
    def _order(self) -> np.ndarray:
        # A predictor counts the same images from 0.
        return np.sort(self.images.index)

    def take(self, positions: Sequence[int]) -> Batch:
        """Return the images at these positions of an unshuffled split, as one batch in that order.

        They are as an evaluation sees them, where a transform draws random numbers as well.
        """
        return self._on_device(self.source.take(positions, 0))

    def first_batch(self, epoch: int = 0, count: int | None = None) -> Batch:
        """Return the batch that an epoch begins with, whole or its first `count` images.

        Epochs count from 0.
        """
        places = range(self.batch_sizes[0])[:count]
        return self._mixed(self._on_device(self.source.take(places, epoch)), epoch, 0)

    def _on_device(self, item: Pixels) -> Batch:
        # On Apple's GPUs such a copy took what the memory of a batch that was gone held by then
        # (pytorch issue 189690).
        pixels, labels, index = (part.to(self.device, non_blocking=self.device.type == "cuda")
                                 for part in item)
        return Batch(self.normalise(pixels), labels, index, labels, count=len(labels))


@dataclass(frozen=True)
class Loaders:
    """The loaders of a run, and what their batches look like.

    Attributes:
        train, test: loaders; val: one, or None.
        mean, std: what images are normalised with, per channel.
        image_shape: (channels, height, width) of test images after the pipeline.
        train_shape: the same of training images; other sizes are possible, rarely meant.
        input: in words, how training batches are made.
        is_usual: whether images are normalised as those that the model's weights were trained on.
    """

    train: BatchLoader
    test: BatchLoader
    val: BatchLoader | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]
    train_shape: tuple[int, int, int]
    input: str
    is_usual: bool = False

    @property
    def monitored(self) -> BatchLoader:
        """The validation loader where there is one, else the test loader."""
        return self.test if self.val is None else self.val

    def set_layout(self, layout: torch.memory_format) -> None:
        """Choose how all further batches lie in memory."""
        for loader in self._all:
            loader.layout = layout

    def left_out(self) -> set[str]:
        """Return the image files that batches lack, in all processes. All must ask."""
        names = {name for loader in self._all for name in loader.left_out}
        return set().union(*distributed.all_gather_objects(names))

    @property
    def _all(self) -> list[BatchLoader]:
        return [loader for loader in (self.train, self.test, self.val) if loader is not None]

    def close(self) -> None:
        """End worker processes."""
        for loader in self._all:
            loader.source.close()
