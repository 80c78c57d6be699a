"""Where a loader's uint8 batches come from: image by image, or whole batches on the device."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from cvkit.data.cache import ImageCache, nothing_left
from cvkit.data.images import ImageSet
from cvkit.data.pipeline import RESIZE_HINT, Pipeline
from cvkit.data.plan import EpochPlan
from cvkit.errors import DataError, RunError, UserError
from cvkit.registry.user_code import import_user_code
from cvkit.system.seeds import seed_random_numbers
from cvkit.system.text import show_what_can_be_shown

# A batch before it is normalised: images uint8 (N, H, W, C), labels (N,) and index (N,).
Pixels = tuple[Tensor, Tensor, Tensor]


class BatchedSource:
    """Whole batches at once on the device, where all images of the split lie.

    An image's random numbers come from (seed, epoch, its place in the epoch).
    """

    def __init__(self, images: ImageSet, cache: ImageCache, pipeline: Pipeline, plan: EpochPlan,
                 device: torch.device):
        self._images, self._cache, self._pipeline = images, cache, pipeline
        self._plan, self._device = plan, device
        self._resident: tuple[Tensor, ...] | None = None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pixels]:
        """Yield the batches of an epoch, from that number on."""
        if self._resident is None:
            self._resident = (*self._cache.stack(self._device), *(
                torch.from_numpy(values).to(self._device)
                for values in (self._images.labels, self._images.index)))
        pixels, places, labels, index = self._resident
        positions, has_gaps = self._plan.positions(epoch), self._cache.missing.any()
        order = torch.from_numpy(positions).to(self._device)
        drawn = self._draw(epoch, positions, pixels.shape[1:])
        for number in range(start, len(self._plan.batch_sizes)):
            part = self._plan.part(number)
            batch: slice | Tensor = part
            if has_gaps:
                readable = np.flatnonzero(~self._cache.missing[positions[part]])
                if not len(readable):
                    raise nothing_left(f"{self._images.name(positions[part.start])} is one")
                batch = torch.from_numpy(part.start + readable).to(self._device)
            chosen = order[batch]
            images = pixels.index_select(0, places.index_select(0, chosen))
            images = self._pipeline.augment_batch(
                images, [[values[batch] for values in group] for group in drawn])
            yield images, labels.index_select(0, chosen), index.index_select(0, chosen)

    def close(self) -> None:
        """Do nothing: there are no processes to end."""

    def take(self, asked: Sequence[int], epoch: int) -> Pixels:
        """Return the images at these places of an epoch, without what may be left out."""
        places = np.asarray(asked)
        positions = self._plan.positions(epoch)
        chosen = positions[places]
        found = dict(self._cache.readable(chosen))
        places, chosen = places[list(found)], chosen[list(found)]
        pixels = torch.from_numpy(np.stack(list(found.values()))).to(self._device)
        drawn = self._draw(epoch, positions, pixels.shape[1:])
        images = self._pipeline.augment_batch(
            pixels, [[values[places] for values in group] for group in drawn])
        return (images, torch.from_numpy(self._images.labels[chosen]),
                torch.from_numpy(self._images.index[chosen]))

    def _draw(self, epoch: int, positions: np.ndarray,
              shape: Sequence[int]) -> list[list[Tensor]]:
        index = self._images.index[positions]
        drawn = self._pipeline.draw(self._plan.seed, epoch, index, shape)
        return [[values.to(self._device) for values in group] for group in drawn]


# Positions of the images that make a batch, and the seed of their augmentation.
_Request = tuple[np.ndarray, tuple[int, ...]]


class PerImageSource:
    """Batches made image by image, in this process or in workers."""

    def __init__(self, images: ImageSet, cache: ImageCache, pipeline: Pipeline, plan: EpochPlan,
                 workers: int, pin_memory: bool, imports: Sequence[str] = ()):
        self._plan = plan
        self._batches = _Batches(images, cache, pipeline, imports)
        self._requests = _Requests(plan)
        workers = min(workers, len(self._requests))
        self._loader = DataLoader(
            self._batches, sampler=self._requests, batch_size=None, num_workers=workers,
            pin_memory=pin_memory, persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None, worker_init_fn=_leave_signals_to_parent,
            # Without one it would draw from torch's global generator, as models do.
            generator=torch.Generator())

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pixels]:
        """Yield the batches of an epoch, from that number on; those before are not made."""
        # Filled before workers are forked, the memory is shared with them.
        self._batches.cache.fill()
        self._requests.epoch, self._requests.start = epoch, start
        try:
            with _signals_wait():
                batches = iter(self._loader)
            for item in batches:
                if isinstance(item, UserError):
                    raise item
                yield item
        except RuntimeError as error:
            if _is_lack_of_shared_memory(error):
                raise _shared_memory_is_full(error) from error
            if not is_death_of_worker(error):
                raise
            raise death_of_worker(error) from error
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            # A worker died while a batch was on its way, before torch has looked for it.
            workers = getattr(self._loader._iterator, "_workers", [])
            for worker in workers:
                worker.join(1 / len(workers))
            dead = next((worker for worker in workers if not worker.is_alive()), None)
            if dead is None:
                raise
            raise death_of_worker(f"DataLoader worker (pid {dead.pid}) ended with exit code "
                                  f"{dead.exitcode}") from error

    def close(self) -> None:
        """End the worker processes; another epoch would start new ones.

        Left to the garbage collector, each may be waited for in vain for seconds.
        """
        iterator, self._loader._iterator = self._loader._iterator, None
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            if not all(worker.is_alive() for worker in iterator._workers):
                _kill_workers(iterator)
            iterator._shutdown_workers()

    def take(self, asked: Sequence[int], epoch: int) -> Pixels:
        """Return the images at these places of an epoch, without what may be left out.

        They are as in their batches.
        """
        places, size = np.asarray(asked).tolist(), self._plan.batch_size
        order = self._plan.positions(epoch)
        batches: list[Sequence[int]] = [places]
        if self._batches.pipeline.random:
            # Those before them in their batches draw random numbers as well.
            last = {place // size: place for place in sorted(places)}
            batches = [range(number * size, place + 1) for number, place in last.items()]
        made: dict[int, np.ndarray] = {}
        for batch in batches:
            key = (self._plan.seed, epoch, batch[0] // size)
            made |= {batch[number]: image
                     for number, image in self._batches.images(order[list(batch)], key)}
        found = [place for place in places if place in made]
        if not found:
            raise nothing_left(f"place {places[0]} of epoch {epoch} has one")
        return self._batches.stacked(order[found], [made[place] for place in found])


def _kill_workers(iterator: _MultiProcessingDataLoaderIter) -> None:
    """Kill the workers of a loader, one of which has died.

    It may have held the lock of the event that tells them to end, which torch would wait for.
    """
    if iterator._worker_pids_set:
        # Or torch would raise an error for each.
        signal_handling._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
    for worker in iterator._workers:
        worker.kill()
    for worker in iterator._workers:
        worker.join()
    iterator._workers_done_event = multiprocessing.Event()


class _UserCode:
    """The config's IMPORTS: read from a pickle, they are imported there as well."""

    def __init__(self, imports: Sequence[str]):
        self._imports = list(imports)

    def __reduce__(self) -> tuple:
        return import_user_code, (self._imports, None, False)


class _Batches(Dataset):
    """Makes one whole batch per item, so that workers need no seeds of their own.

    A batch's random numbers come from (seed, epoch, batch): the same with any number of
    workers, different between batches and epochs.
    """

    def __init__(self, images: ImageSet, cache: ImageCache, pipeline: Pipeline,
                 imports: Sequence[str]):
        # It stands first, as workers that are not forked read attributes from a pickle in this
        # order, and those that follow may be of the user's classes.
        self._code = _UserCode(imports)
        self.labels, self.index = images.labels, images.index
        self.cache, self.pipeline = cache, pipeline

    def __getitem__(self, request: _Request) -> Pixels | UserError:
        positions, key = request
        if get_worker_info() is not None:
            # A resumed run begins with new processes; user code that draws from the global random
            # numbers has to draw the same in them.
            seed_random_numbers(*key)
        try:
            made = dict(self.images(positions, key))
            batch = self.stacked(positions[list(made)], list(made.values()))
            if get_worker_info() is not None:
                # On its way it would go there anyway, but then in a thread of the queue, which
                # prints an error and goes on without the batch, for which all would wait.
                for part in batch:
                    part.share_memory_()
            return batch
        except RuntimeError as error:
            if not _is_lack_of_shared_memory(error):
                raise
            return _shared_memory_is_full(error)
        except UserError as error:
            # The main process raises it, without a worker's traceback around it.
            return error

    def images(self, positions: np.ndarray,
               key: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the images of a batch and their numbers in it, without what may be left out."""
        self.pipeline.seed(*key)
        for number, image in self.cache.readable(positions):
            yield number, self.pipeline.augment(image, self.index[positions[number]])

    def stacked(self, positions: np.ndarray, images: Sequence[np.ndarray]) -> Pixels:
        """Return the images at these positions as one batch."""
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            raise DataError(f"images come out in different sizes: {sorted(shapes)}",
                            hint=RESIZE_HINT.format(64, 64))
        return (torch.from_numpy(np.stack(images)), torch.from_numpy(self.labels[positions]),
                torch.from_numpy(self.index[positions]))


class _Requests(Sampler):
    """An epoch's requests, in order, from the batch `start` on."""

    def __init__(self, plan: EpochPlan):
        self.plan, self.epoch, self.start = plan, 0, 0

    def __len__(self) -> int:
        return len(self.plan.batch_sizes) - self.start

    def __iter__(self) -> Iterator[_Request]:
        plan, epoch, positions = self.plan, self.epoch, self.plan.positions(self.epoch)
        # Each process draws numbers of its own for its part.
        rank = (plan.rank,) if plan.rank else ()
        for number in range(self.start, len(plan.batch_sizes)):
            yield positions[plan.part(number)], (plan.seed, epoch, number, *rank)


def why_not_in_workers(pipeline: Pipeline, images: ImageSet | None) -> str | None:
    """Return why worker processes cannot be given what makes batches, or None.

    Forked ones have it. Others, on macOS, on Windows and from Python 3.14 on, are sent a pickle.

    Args:
        images: if workers read them; None if they lie in shared memory.

    Raises:
        RunError: this is such a process itself, which runs the user's script again.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RunError("each worker process begins with this script and would train as well",
                       hint="Put what it does under  if __name__ == \"__main__\":  or set "
                            "DATA.WORKERS 0.")
    # Asking without `allow_none` would settle the method, and the user may choose it later.
    method = (multiprocessing.get_start_method(allow_none=True)
              or multiprocessing.get_all_start_methods()[0])
    if method == "fork":
        return None
    try:
        # The callback leaves arrays out, which would take long.
        sent = pickle.dumps((pipeline, images), protocol=5, buffer_callback=lambda array: None)
    except Exception as error:
        # A class's own way of being pickled may raise anything.
        return f"cannot be sent to worker processes: {error}"
    main = sys.modules["__main__"]
    can_be_imported = hasattr(main, "__file__") or getattr(main, "__spec__", None)
    if b"__main__" in sent and not can_be_imported:
        return "is defined in a notebook or at a prompt, where worker processes find nothing"
    return None


def _is_lack_of_shared_memory(error: RuntimeError) -> bool:
    return "shared memory" in str(error) or "No space left on device" in str(error)


def _shared_memory_is_full(error: RuntimeError) -> DataError:
    return DataError(f"no shared memory is left for what workers make: {error}",
                     hint="In a container it is small unless asked for: docker run --shm-size 4g. "
                          "DATA.WORKERS with a smaller number\n  takes less, 0 none.")


def is_death_of_worker(error: BaseException) -> bool:
    """Whether torch says that a worker died; it does so wherever this process is just then.

    An exception that a worker raised itself comes here as "Caught … in DataLoader worker".
    """
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def death_of_worker(reason: object) -> DataError:
    """Return the same in words."""
    return DataError(f"a process that makes batches died: {reason}",
                     hint="What it said stands above. If it said nothing, memory may have run out: "
                          "DATA.WORKERS with a smaller number\n  takes less, 0 makes batches "
                          "without such processes.")


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _leave_signals_to_parent(worker: int) -> None:
    # Ctrl-C, and what ends a job, reach all processes of a group, and the step that is then
    # finished needs its workers.
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        # Signals that waited because of `_signals_wait` are ignored as well.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    show_what_can_be_shown()


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Let no signal reach processes that are started in it before they are prepared for one.

    Those that are not forked import for seconds.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
