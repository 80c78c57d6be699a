"""From a config to batches on the device."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cvkit.config import Config
from cvkit.data.images import ImageData, ImageSet, balanced_subset, stratified_split
from cvkit.data.mixing import mix
from cvkit.data.transforms import RESIZE_HINT, Normalize, Pipeline, build_pipeline
from cvkit.errors import ConfigError, DataError, UserError
from cvkit.registry import DATASETS, where_in


def build_data(config: Config) -> ImageData:
    """Build `DATA.DATASET`, hold out `VAL_FRACTION` and apply `LIMIT`.

    Raises:
        ConfigError, DataError: as the data set says; both a val split and VAL_FRACTION.
    """
    data = DATASETS.build(config.DATA.DATASET, seed=config.SEED)
    fraction, limit = config.DATA.VAL_FRACTION, config.DATA.LIMIT
    if fraction > 0:
        if data.val is not None:
            raise ConfigError("this data set has a val split already",
                              where=config.DATA.where("VAL_FRACTION"), hint="Set it to 0.")
        rest, held_out = stratified_split(data.train.labels, fraction, config.SEED)
        data = data.with_splits(train=data.train.take(rest), val=data.train.take(held_out))
    if limit > 0:
        splits = {"train": data.train, "val": data.val, "test": data.test}
        try:
            data = data.with_splits(**{
                name: split.take(balanced_subset(split.labels, limit, config.SEED))
                for name, split in splits.items() if split is not None})
        except DataError as error:
            raise ConfigError(str(error), where=config.DATA.where("LIMIT")) from None
    return data


def usable_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Batch(NamedTuple):
    """Images, normalised, with their classes.

    Attributes:
        images: float32 (N, C, H, W).
        labels: int64 (N,); of a mixed image the class with the larger share.
        index: int64 (N,), each image's place in its split.
        targets: what the loss is given: the labels, or of mixed images shares (N, classes).
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    targets: torch.Tensor


class _Request(NamedTuple):
    """Which images make a batch, and the seed of their augmentation."""

    positions: np.ndarray
    key: tuple[int, ...]


class _Requests(Sampler):
    """An epoch's batches. A permutation depends on (seed, epoch) alone, so it can be resumed."""

    def __init__(self, count: int, batch_size: int, shuffle: bool, seed: int):
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, seed
        self.epoch = 0

    def __len__(self) -> int:
        batches, rest = divmod(self.count, self.batch_size)
        # Batch normalisation cannot train on one image: such a rest is left to later epochs.
        keeps_rest = rest > (1 if self.shuffle and batches else 0)
        return batches + keeps_rest

    def __iter__(self) -> Iterator[_Request]:
        order = np.arange(self.count)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        for number in range(len(self)):
            start = number * self.batch_size
            yield _Request(order[start:start + self.batch_size], (self.seed, self.epoch, number))


class _Batches(Dataset):
    """Makes one whole batch per item, so that workers need no seeds of their own.

    A batch's random numbers come from (seed, epoch, batch): the same with any number of
    workers, different between batches and epochs.
    """

    def __init__(self, images: ImageSet, pipeline: Pipeline):
        self.images, self.pipeline = images, pipeline

    def __getitem__(self, request: _Request) -> tuple[torch.Tensor, ...] | UserError:
        images = self.images
        self.pipeline.seed(*request.key)
        try:
            pixels = [self.pipeline(images.image(position)) for position in request.positions]
        except UserError as error:
            return error  # raised by the main process, without a worker's traceback around it
        shapes = {image.shape for image in pixels}
        if len(shapes) > 1:
            return DataError(f"images come out in different sizes: {sorted(shapes)}",
                             hint=RESIZE_HINT.format(64, 64))
        return (torch.from_numpy(np.stack(pixels)),
                torch.from_numpy(images.labels[request.positions]),
                torch.from_numpy(images.index[request.positions]))


class BatchLoader:
    """Iterates over one epoch's batches, normalised and on the device.

    Args:
        images: the split.
        pipeline: what each image goes through, uint8 to uint8.
        mean, std: per channel, pixels scaled to 0–1.
        batch_size: images per batch; the last one is short.
        shuffle: a new order each epoch.
        seed: of order and augmentation.
        device: where batches go.
        workers: processes that make them; 0: this one.

    Attributes:
        layout: of the images in memory, channels_last unless it is set.
    """

    def __init__(self, images: ImageSet, pipeline: Pipeline, mean: tuple[float, ...],
                 std: tuple[float, ...], batch_size: int, shuffle: bool, seed: int,
                 device: torch.device, workers: int):
        self.images, self.pipeline, self.device = images, pipeline, device
        self.mean, self.std, self.layout = mean, std, torch.channels_last
        self._requests = _Requests(len(images), batch_size, shuffle, seed)
        self._scale = (1 / (255 * torch.tensor(std, device=device))).view(1, -1, 1, 1)
        self._shift = (torch.tensor(mean, device=device) / torch.tensor(std, device=device)
                       ).view(1, -1, 1, 1)
        self._batches = _Batches(images, pipeline)
        self._loader = DataLoader(
            self._batches, sampler=self._requests, batch_size=None,
            num_workers=min(workers, len(self)), pin_memory=device.type == "cuda",
            persistent_workers=workers > 0, prefetch_factor=4 if workers else None,
            generator=torch.Generator())  # its own: models draw from torch's global one

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def batch_sizes(self) -> list[int]:
        """Images of each batch of an epoch."""
        count, size = self._requests.count, self._requests.batch_size
        return [min(size, count - start) for start in range(0, len(self) * size, size)]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next iteration has."""
        self._requests.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        for number, item in enumerate(self._loader):
            yield self._mixed(self._on_device(item), number)

    def _mixed(self, batch: Batch, number: int) -> Batch:
        """Return the batch of that number in the epoch as the model receives it in training."""
        if not self.pipeline.mixing:
            return batch
        key = (self._requests.seed, self._requests.epoch, number)
        images, targets = mix(self.pipeline.mixing, batch.images, batch.labels, key)
        labels = targets.argmax(1) if targets.ndim == 2 else batch.labels
        return Batch(images.contiguous(memory_format=self.layout), labels, batch.index, targets)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn uint8 (N, H, W, C) into normalised float32 (N, C, H, W)."""
        images = pixels.permute(0, 3, 1, 2).float()  # in memory this is channels_last already
        images = images.mul_(self._scale).sub_(self._shift)
        return images.contiguous(memory_format=self.layout)

    def denormalise(self, images: torch.Tensor) -> np.ndarray:
        """Turn what a model receives back into uint8 (N, H, W, C), exactly."""
        pixels = (images.float() + self._shift) / self._scale
        return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()

    def take(self, positions: Sequence[int]) -> Batch:
        """Return the images at these positions of an unshuffled split, as one batch in that order.

        They are as an evaluation sees them: where a transform draws random numbers, the batches
        that the images belong to are made again.
        """
        positions = np.asarray(positions)
        if not self._is_random(positions[0]):
            return self._on_device(self._batches[_Request(positions, (self._requests.seed, 0, 0))])
        requests, size = list(self._requests), self._requests.batch_size
        made = {number: self._batches[requests[number]] for number in set(positions // size)}
        for item in made.values():
            if isinstance(item, UserError):
                raise item
        parts = [[part[position % size] for part in made[position // size]]
                 for position in positions]
        return self._on_device(tuple(torch.stack(column) for column in zip(*parts, strict=True)))

    def _is_random(self, position: int) -> bool:
        """Tell whether the pipeline changes an image differently from one time to the next."""
        results = []
        for seed in range(8):
            self.pipeline.seed(seed)
            results.append(self.pipeline(self.images.image(position)))
        return not all(np.array_equal(results[0], result) for result in results[1:])

    def first_batch(self, epoch: int = 0) -> Batch:
        """Return the batch that an epoch begins with; epochs count from 0."""
        current, self._requests.epoch = self._requests.epoch, epoch
        batch = self._on_device(self._batches[next(iter(self._requests))])
        batch = self._mixed(batch, 0)
        self._requests.epoch = current
        return batch

    def _on_device(self, item: tuple[torch.Tensor, ...] | UserError) -> Batch:
        if isinstance(item, UserError):
            raise item
        pixels, labels, index = (part.to(self.device, non_blocking=True) for part in item)
        return Batch(self.normalise(pixels), labels, index, labels)


@dataclass(frozen=True)
class Loaders:
    """The loaders of a run, and what their batches look like.

    Attributes:
        train, test: loaders; val: one, or None.
        mean, std: what images are normalised with, per channel.
        image_shape: (channels, height, width) of test images after the pipeline.
        train_shape: the same of training images; other sizes are possible, rarely meant.
    """

    train: BatchLoader
    test: BatchLoader
    val: BatchLoader | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]
    train_shape: tuple[int, int, int]

    @property
    def monitored(self) -> BatchLoader:
        """The validation loader where there is one, else the test loader."""
        return self.test if self.val is None else self.val

    def set_layout(self, layout: torch.memory_format) -> None:
        """Choose how all further batches lie in memory."""
        for loader in filter(None, (self.train, self.test, self.val)):
            loader.layout = layout


def build_loaders(config: Config, data: ImageData, device: torch.device,
                  normalisation: tuple[list[float], list[float]] | None = None) -> Loaders:
    """Build both pipelines and the loaders of all splits.

    Args:
        config: its DATA is used.
        data: from `build_data`.
        device: where batches go.
        normalisation: mean and standard deviation per channel, instead of the config's and
            the data's; those that a checkpoint was trained with.

    Raises:
        ConfigError: see `build_pipeline`; the two pipelines differ in channels or in Normalize.
    """
    node = config.DATA
    train_pipeline, train_normalize = build_pipeline(
        node.TRAIN_TRANSFORMS, data, is_training=True, where=node.where("TRAIN_TRANSFORMS"))
    train_shape = train_pipeline(data.train.image(0)).shape
    test_pipeline, test_normalize = build_pipeline(
        node.TEST_TRANSFORMS, data, where=node.where("TEST_TRANSFORMS"), size=train_shape[:2])
    test_shape = test_pipeline(data.train.image(0)).shape
    if train_shape[2] != test_shape[2]:
        raise ConfigError(f"training images have {train_shape[2]} channels, test images "
                          f"{test_shape[2]}", where=node.where("TEST_TRANSFORMS"))
    normalize = train_normalize or test_normalize or Normalize(data_mean=data.mean,
                                                              data_std=data.std)
    if train_normalize and test_normalize and train_normalize != test_normalize:
        raise ConfigError("training and test images are normalised differently",
                          where=where_in(node.TEST_TRANSFORMS[-1], "NAME"),
                          hint="Leave Normalize out of one list: it then holds for both.")
    nodes = [*node.TRAIN_TRANSFORMS, *node.TEST_TRANSFORMS]
    try:
        if train_shape[2] != data.channels and normalize.mean is None:
            # ToRGB or ToGray in the pipeline: every channel then has the mean of the originals.
            normalize = Normalize(mean=[float(np.mean(data.mean))] * train_shape[2],
                                  std=[float(np.mean(data.std))] * train_shape[2])
        mean, std = normalisation or normalize.constants(train_shape[2])
    except ValueError as error:
        place = next((where_in(item, "NAME") for item in nodes if item.NAME == "Normalize"), None)
        raise ConfigError(str(error), where=place) from None
    evaluation_size = node.EVAL_BATCH_SIZE or 2 * node.BATCH_SIZE
    # A GPU waits for its images and wants several processes; a CPU that trains makes them itself.
    workers = node.WORKERS if node.WORKERS >= 0 else (
        0 if device.type == "cpu" else min(usable_cores(), 8))

    def loader(images: ImageSet, pipeline: Pipeline, size: int, shuffle: bool) -> BatchLoader:
        return BatchLoader(images, pipeline, mean, std, size, shuffle, config.SEED, device,
                           workers)

    return Loaders(
        train=loader(data.train, train_pipeline, node.BATCH_SIZE, True),
        test=loader(data.test, test_pipeline, evaluation_size, False),
        val=loader(data.val, test_pipeline, evaluation_size, False) if data.val else None,
        mean=mean, std=std, image_shape=(test_shape[2], *test_shape[:2]),
        train_shape=(train_shape[2], *train_shape[:2]))
