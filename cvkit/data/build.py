"""From a config to images, pipelines and loaders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import albumentations as A
import numpy as np
import torch

from cvkit.config import Config
from cvkit.data.assembly import all_is_test
from cvkit.data.cache import ImageCache
from cvkit.data.images import ImageData, ImageSet
from cvkit.data.loaders import BatchLoader, Loaders
from cvkit.data.pipeline import Pipeline, build_pipeline
from cvkit.data.plan import EpochPlan
from cvkit.data.sources import BatchedSource, PerImageSource, why_not_in_workers
from cvkit.data.splits import balanced_subset, fold_split, naming, stratified_split
from cvkit.data.transforms import Normalize
from cvkit.data.views import build_views
from cvkit.errors import ConfigError, located, where_in
from cvkit.registry import DATASETS, NAME, SAMPLERS
from cvkit.system import distributed
from cvkit.system.cores import usable_cores
from cvkit.system.seeds import random_numbers_kept, seed_random_numbers
from cvkit.system.text import plural


def build_data(config: Config) -> ImageData:
    """Build `DATA.DATASET`, take one of its `FOLDS`, hold out `VAL_FRACTION` and apply `LIMIT`.

    Folds and validation images are of a training: within `images_are_for_testing` there are none.
    Random numbers of Python, NumPy and torch that it draws are seeded by DATA.SPLIT_SEED.

    Raises:
        ConfigError, DataError: as the data set says; both a val split and VAL_FRACTION.
    """
    node = config.DATA.DATASET
    with random_numbers_kept(torch.device("cpu")):
        seed_random_numbers(config.DATA.SPLIT_SEED)
        data = DATASETS.build(node, seed=config.DATA.SPLIT_SEED)
    if not isinstance(data, ImageData):
        raise ConfigError(f"data set {node[NAME]} returned {type(data).__name__}, not a "
                          "cvkit.ImageData", where=where_in(node, NAME),
                          hint="Is a return missing?" if data is None else
                               "docs/add_a_dataset.md shows how to make one.")
    fraction, limit = config.DATA.VAL_FRACTION, config.DATA.LIMIT
    if all_is_test():
        fraction = 0
    elif config.DATA.FOLDS:
        data = _with_fold(data, config)
    elif config.DATA.FOLD:
        raise ConfigError(f"of how many folds is {config.DATA.FOLD} the tested one?",
                          where=config.DATA.where("FOLD"), hint="Set DATA.FOLDS, to 5 for example.")
    if fraction > 0:
        if data.val is not None:
            raise ConfigError("this data set has a val split already",
                              where=config.DATA.where("VAL_FRACTION"), hint="Set it to 0.")
        with located(config.DATA, "VAL_FRACTION"), naming(data.classes):
            rest, held_out = stratified_split(data.train.labels, fraction, config.DATA.SPLIT_SEED,
                                              data.train.groups)
        data = data.with_splits(train=data.train.take(rest), val=data.train.take(held_out))
    if limit > 0:
        with located(config.DATA, "LIMIT"):
            data = data.with_splits(**{
                name: split.take(balanced_subset(split.labels, limit, config.DATA.SPLIT_SEED))
                for name, split in data.splits.items()})
    return data


def images_of_folds(data: ImageData) -> ImageSet:
    """Return the images that folds are made of, in the order in which the data set has them.

    All of a data set that has no test images of its own, but some set aside; else those of train.
    """
    parts = [split for split in data.splits.values() if split.images is data.train.images]
    index = np.concatenate([part.index for part in parts])
    order = np.argsort(index, kind="stable")
    labels = np.concatenate([part.labels for part in parts])[order]
    groups = [part.groups for part in parts if part.groups is not None]
    return ImageSet(data.train.images, labels, index[order],
                    np.concatenate(groups)[order] if len(groups) == len(parts) else None)


def _with_fold(data: ImageData, config: Config) -> ImageData:
    """Return the data with one fold as the test images, and the others to train on."""
    node, whole = config.DATA, images_of_folds(data)
    if not node.FOLD < node.FOLDS:
        raise ConfigError(f"there is no fold {node.FOLD}: FOLDS {node.FOLDS} have the numbers 0 to "
                          f"{node.FOLDS - 1}", where=node.where("FOLD"))
    if node.FOLDS < 2:
        raise ConfigError("one fold leaves nothing to train on", where=node.where("FOLDS"),
                          hint="There are two or more, 5 or 10 as a rule.")
    if node.LIMIT > 0:
        # Before, so that each of those that are taken is in one fold.
        with located(node, "LIMIT"):
            whole = whole.take(balanced_subset(whole.labels, node.LIMIT, node.SPLIT_SEED))
    with located(node, "FOLDS"), naming(data.classes):
        rest, held_out = fold_split(whole.labels, node.FOLDS, node.FOLD,
                                    node.SPLIT_SEED + node.FOLD_REPEAT, whole.groups)
    val = data.val if data.val is not None and data.val.images is not whole.images else None
    is_own = data.test.images is not whole.images
    note = (f"fold {node.FOLD} of {node.FOLDS} of {plural(len(whole), 'image')} is tested"
            + (f"; the data set's own {plural(len(data.test), 'test image')} are left out"
               if is_own else ""))
    return replace(data, train=whole.take(rest), test=whole.take(held_out), val=val,
                   notes=(*data.notes, note))


def build_loaders(config: Config, data: ImageData, device: torch.device,
                  normalisation: tuple[list[float], list[float]] | None = None,
                  usual: tuple[Sequence[float], Sequence[float]] | None = None) -> Loaders:
    """Build both pipelines and the loaders of all splits.

    Args:
        config: its DATA is used.
        data: from `build_data`.
        device: where batches go.
        normalisation: mean and standard deviation per channel, instead of the config's and
            the data's; those that a checkpoint was trained with.
        usual: the same, of what the model's weights were trained on; they hold where the config
            has no Normalize and sets no mean or std of the data set. Of images with other
            channels, each has their mean.

    Raises:
        ConfigError: see `build_pipeline`; the two pipelines differ in channels or in Normalize.
    """
    node = config.DATA
    train_pipeline, train_normalize = build_pipeline(
        node.TRAIN_TRANSFORMS, data, is_training=True, where=node.where("TRAIN_TRANSFORMS"))
    train_shape = train_pipeline(data.train.first()).shape
    test_pipeline, test_normalize = build_pipeline(
        node.TEST_TRANSFORMS, data, where=node.where("TEST_TRANSFORMS"), size=train_shape[:2])
    test_shape = test_pipeline(data.train.first()).shape
    if train_shape[2] != test_shape[2]:
        raise ConfigError(f"training images have {plural(train_shape[2], 'channel')}, test images "
                          f"{test_shape[2]}", where=node.where("TEST_TRANSFORMS"))
    normalize = train_normalize or test_normalize
    is_usual = usual is not None and normalize is None and not {"mean", "std"} & set(node.DATASET)
    if is_usual and usual is not None:
        normalize = Normalize(*(
            list(values) if len(values) == train_shape[2] else
            [float(np.mean(values))] * train_shape[2] for values in usual))
    normalize = normalize or Normalize(data_mean=data.mean, data_std=data.std)
    if train_normalize and test_normalize and train_normalize != test_normalize:
        raise ConfigError("training and test images are normalised differently",
                          where=where_in(node.TEST_TRANSFORMS[-1], "NAME"),
                          hint="Leave Normalize out of one list: it then holds for both.")
    nodes = [*node.TRAIN_TRANSFORMS, *node.TEST_TRANSFORMS]
    try:
        if train_shape[2] != data.channels and normalize.mean is None:
            # After ToRGB or ToGray every channel has the mean of the originals.
            normalize = Normalize(mean=[float(np.mean(data.mean))] * train_shape[2],
                                  std=[float(np.mean(data.std))] * train_shape[2])
        mean, std = map(tuple, normalisation or normalize.constants(train_shape[2]))
    except ValueError as error:
        own = next((key for key in ("mean", "std") if key in node.DATASET), "NAME")
        place = next((where_in(item, "NAME") for item in nodes if item.NAME == "Normalize"),
                     where_in(node.DATASET, own))
        raise ConfigError(str(error), where=place) from None
    build = _Builder(config, data, device, mean, std)
    train = build.loader(data.train, train_pipeline, is_training=True)
    test = build.loader(data.test, test_pipeline)
    val = build.loader(data.val, test_pipeline) if data.val else None
    for loader in filter(None, (test, val)):
        loader.views = build_views(config.TTA, data, test_shape, config.SEED)
    return Loaders(train, test, val, mean, std, (test_shape[2], *test_shape[:2]),
                   (train_shape[2], *train_shape[:2]), train.words, is_usual)


def build_evaluation_loader(config: Config, data: ImageData, images: ImageSet,
                            like: Loaders) -> BatchLoader:
    """Return a loader of further images of a data set, in their order, as tests see theirs.

    Args:
        config, data: of which the other loaders were built.
        images: training images for example.
        like: those loaders.
    """
    node, test = config.DATA, like.test
    pipeline, _ = build_pipeline(node.TEST_TRANSFORMS, data, where=node.where("TEST_TRANSFORMS"),
                                 size=like.train_shape[1:])
    loader = _Builder(config, data, test.device, like.mean, like.std).loader(images, pipeline)
    loader.layout, loader.views = test.layout, test.views
    return loader


class _Builder:
    """Builds loaders one after the other, within DATA.CACHE_GB and the GPU's memory."""

    def __init__(self, config: Config, data: ImageData, device: torch.device,
                 mean: tuple[float, ...], std: tuple[float, ...]):
        self.config, self.data, self.device = config, data, device
        self.mean, self.std = mean, std
        self.left = config.DATA.CACHE_GB * 1e9
        # The rest of a GPU is for the model, activations and gradients.
        self.left_on_device = (torch.cuda.get_device_properties(device).total_memory // 4
                               if device.type == "cuda" else math.inf)
        workers = config.DATA.WORKERS
        # A GPU waits for its images and wants several processes; a CPU that trains makes them
        # itself.
        self.workers = workers if workers >= 0 else (
            0 if device.type == "cpu" else
            max(1, min(usable_cores() // distributed.local_size(), 8)))

    def loader(self, images: ImageSet, pipeline: Pipeline,
               is_training: bool = False) -> BatchLoader:
        """Return the loader of a split."""
        is_uniform = self.data.image_size is not None or any(
            isinstance(transform, (A.Resize, A.CenterCrop)) for transform in pipeline.fixed)
        cache = ImageCache(images, pipeline, is_uniform, self.left)
        if cache.is_copy and cache.fits:
            self.left -= cache.bytes
        backend, reason = self.config.DATA.PIPELINE, self._why_not_batched(pipeline, cache)
        is_batched = reason is None and backend != "albumentations"
        plan = self._plan(images, is_training, is_batched)
        if backend == "batched" and reason:
            raise ConfigError(f"batched is not possible: {reason}",
                              where=self.config.DATA.where("PIPELINE"),
                              hint="auto or albumentations makes batches image by image.")
        memory = _megabytes(cache.bytes)
        source: BatchedSource | PerImageSource
        if is_batched:
            self.left_on_device -= cache.bytes
            words = f"batched; {plural(len(images), 'image')}, {memory}, lie on the device"
            source = BatchedSource(images, cache, pipeline, plan, self.device)
        else:
            workers, why_not = self._workers(pipeline, images, cache)
            by = plural(workers, "worker process") if workers else "this process"
            words = f"image by image in {by}"
            reasons = list(filter(None, [reason if backend == "auto" else None, why_not]))
            if reasons:
                words += f" ({'; '.join(reasons)})"
            if cache.is_copy:
                words += f"; prepared once, {memory}" if cache.fits else "; prepared each time"
            source = PerImageSource(images, cache, pipeline, plan, workers,
                                    pin_memory=self.device.type == "cuda",
                                    imports=self.config.IMPORTS)
        return BatchLoader(images, pipeline, self.mean, self.std, source, plan, self.device, words)

    def _plan(self, images: ImageSet, is_training: bool, is_batched: bool) -> EpochPlan:
        config, node = self.config, self.config.DATA.SAMPLER if is_training else None
        with located(node, NAME):
            sampler = None
            if node is not None:
                classes = list(self.data.classes)
                sampler = SAMPLERS.build(node, labels=images.labels, classes=classes,
                                         num_classes=len(classes))
                SAMPLERS.refuse_without(node, sampler, "positions(epoch, random)")
            plan = EpochPlan(len(images), self._batch_size(is_training, is_batched), is_training,
                             config.SEED, distributed.rank(), distributed.size(),
                             config.TRAIN.ACCUMULATE if is_training else 1, sampler)
            # cvkit's own are known to draw as they have to.
            if node is not None and SAMPLERS.is_own(node):
                plan.try_sampler()
        return plan

    def _workers(self, pipeline: Pipeline, images: ImageSet,
                 cache: ImageCache) -> tuple[int, str | None]:
        """Return how many worker processes make batches, and if there can be none, why."""
        if not self.workers:
            return 0, None
        reason = why_not_in_workers(pipeline, None if cache.fits else images)
        if reason is None:
            return self.workers, None
        reason = f"a transform or data set of your own {reason}"
        if self.config.DATA.WORKERS > 0:
            raise ConfigError(reason, where=self.config.DATA.where("WORKERS"),
                              hint="Define it at the top level of a file that IMPORTS names; or "
                                   "DATA.WORKERS 0 makes batches without such processes.")
        return 0, reason

    def _batch_size(self, is_training: bool, is_batched: bool) -> int:
        if is_training:
            return self.config.DATA.BATCH_SIZE
        return evaluation_batch_size(self.config, is_batched, self.device)

    def _why_not_batched(self, pipeline: Pipeline, cache: ImageCache) -> str | None:
        """Return what keeps whole batches from being made at once, or None."""
        if pipeline.unbatched:
            names = ", ".join(dict.fromkeys(pipeline.unbatched))
            return f"no batched form of {names}"
        if cache.shape is None:
            return "images of several sizes; a Resize at the beginning makes one"
        if not cache.fits:
            return (f"{_megabytes(cache.bytes)} of images are more than DATA.CACHE_GB "
                    f"{self.config.DATA.CACHE_GB:g} leaves")
        if self.device.type not in ("cpu", "cuda"):
            return f"not on {self.device.type}"
        if cache.bytes > self.left_on_device:
            return f"{_megabytes(cache.bytes)} of images are too many for the GPU"
        return None


def evaluation_batch_size(config: Config, is_batched: bool, device: torch.device) -> int:
    """Return how many images a model evaluates at once, in all processes together.

    Args:
        is_batched: whether whole batches are made on the device.
    """
    # Without gradients there is room for more images, and a GPU is fast on large batches. In
    # worker processes they would fill the memory.
    larger = 8 if is_batched and device.type == "cuda" else 2
    return (config.DATA.EVAL_BATCH_SIZE * distributed.size()
            or larger * config.DATA.BATCH_SIZE)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.{0 if count >= 1e7 else 1}f} MB"
