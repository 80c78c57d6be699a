"""Predicting pictures that no data set holds, with one trained model or several together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cvkit.data.images import ImageReader, UnreadableError, check_image
from cvkit.data.pictures import find_images
from cvkit.data.scan import in_threads
from cvkit.errors import DataError, RunError
from cvkit.evaluation.predict import logits_of, mean_logits
from cvkit.models.features import penultimate_features
from cvkit.models.probing import in_evaluation_mode, state_kept
from cvkit.runs.folder import Run
from cvkit.runs.trained import Trained, open_trained, order_of
from cvkit.system.cores import usable_cores
from cvkit.system.device import autocast
from cvkit.system.seeds import random_numbers_kept, seed_random_numbers

# A file, an image of Pillow's, or pixels: uint8 (H, W, C), or (H, W) of a grey one.
Picture = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class Prediction:
    """What a model says of one picture.

    Attributes:
        file: its path; empty for what is not a file.
        classes: names.
        probabilities: float32 (C,), in the order of the classes.
    """

    file: str
    classes: Sequence[str]
    probabilities: np.ndarray

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.classes[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """That of `label`."""
        return float(self.probabilities.max())

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the most probable classes with their probabilities, the highest first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.classes[place], float(self.probabilities[place])) for place in order]

    def __repr__(self) -> str:
        file = f"{self.file}: " if self.file else ""
        return f"<Prediction {file}{self.label} {100 * self.probability:.1f}%>"


class Predictor:
    """Names the class of pictures. It needs a checkpoint file alone, and no data set.

        predictor = cvkit.Predictor("best.pt")
        predictor("cat.jpg").label

    Pictures go the way of test images, through TEST_TRANSFORMS; where all images of the training
    had one size, others are resized to it first. In batches as large, on the same device and in the
    same precision, the probabilities are those of `predictions.npz` to the bit.

    Args:
        source: a run, its path, a checkpoint file, or None for the newest run; or a list of them,
            whose probabilities are averaged, class by class of the same name.
        overrides: as `load_config` takes them: DEVICE, TRAIN.PRECISION, DATA.EVAL_BATCH_SIZE, TTA,
            DATA.TEST_TRANSFORMS, IMPORTS.

    Attributes:
        classes: names, in the order of probabilities.
        members: the trained models.

    Raises:
        UserError: no such run or file, a damaged one, or models of different classes.
    """

    def __init__(self, source: str | Path | Run | Sequence[str | Path | Run] | None = None,
                 overrides: Sequence[str] | Mapping[str, Any] = ()):
        if isinstance(source, Sequence) and not isinstance(source, str):
            self.members = [open_trained(each, overrides) for each in source]
        else:
            self.members = [open_trained(source, overrides)]
        if not self.members:
            raise RunError("no run or checkpoint is named")
        self.classes = self.members[0].classes
        self._orders = [order_of(self.classes, member.classes, self.members[0].source,
                                 member.source) for member in self.members]

    def __repr__(self) -> str:
        return f"<Predictor of {', '.join(member.source for member in self.members)}>"

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Prediction | list[Prediction]:
        """Return the prediction of one picture, or a list for several.

        Args:
            pictures: a file, an image of Pillow's, or pixels (H, W, C) uint8; or a folder, a list,
                or pixels (N, H, W, C).

        Raises:
            DataError: one is not there, cannot be read or has another form.
        """
        found = list(self.stream(pictures))
        return found[0] if _is_one(pictures) else found

    def features(self, pictures: Picture | Sequence[Picture]) -> np.ndarray:
        """Return what the model's last layer is given: float32 (D,) of one picture, else (N, D).

        Args:
            pictures: as of a call. They are taken as they are, without TTA.

        Raises:
            RunError: several models, or one whose logits come from no last layer.
            DataError: there is no picture, or as of a call.
        """
        member, parts = self._only_member(), []
        for _, pixels in self._batches(_as_list(pictures), None, True):
            images = member.normaliser.normalise(pixels[0].to(member.device))
            with self._asking(member), autocast(member.device, member.precision):
                parts.append(penultimate_features(member.model, images).cpu().numpy())
        if not parts:
            raise DataError("there are no pictures to describe")
        return parts[0][0] if _is_one(pictures) else np.concatenate(parts)

    def received(self, pictures: Sequence[Picture]) -> Tensor:
        """Return a few pictures as the model receives them, normalised, (N, C, H, W).

        Raises:
            RunError: several models. DataError: one cannot be read.
        """
        member = self._only_member()
        prepared = [self._prepared(picture)[0] for picture in pictures]
        pixels = torch.from_numpy(member.augmented(prepared, 0))
        return member.normaliser.normalise(pixels.to(member.device))

    def _only_member(self) -> Trained:
        if len(self.members) > 1:
            raise RunError("this can be asked of one model, and the predictor has "
                           f"{len(self.members)}")
        return self.members[0]

    def stream(self, pictures: Picture | Sequence[Picture],
               unreadable: list[DataError] | None = None,
               is_silent: bool = True) -> Iterator[Prediction]:
        """Yield the prediction of each picture in order; files are read ahead by threads.

        Memory does not grow with the number of pictures.

        Args:
            pictures: as of a call.
            unreadable: takes the errors of pictures that cannot be read, which are then left out;
                without it the first one is raised.
            is_silent: whether no bar is shown.
        """
        pictures = _as_list(pictures)
        for places, pixels in self._batches(pictures, unreadable, is_silent):
            for place, row in zip(places, self._probabilities(pixels, places).cpu().numpy()):
                picture = pictures[place]
                file = os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else ""
                yield Prediction(file, self.classes, row)

    def _probabilities(self, pixels: Sequence[Tensor], places: Sequence[int]) -> Tensor:
        """Return those of a batch, (N, C), of which each member has its own pixels (N, H, W, C)."""
        outputs = []
        for member, order, own in zip(self.members, self._orders, pixels):
            images = member.normaliser.normalise(own.to(member.device))
            with self._asking(member):
                logits = mean_logits(logits_of(member.model, member.views.of(
                    images, places, member.normaliser), member.device, member.precision))
            # Each is where its config says.
            outputs.append(logits[:, order].to(self.members[0].device))
        return mean_logits(outputs).softmax(1)

    @contextmanager
    def _asking(self, member: Trained) -> Iterator[None]:
        """Let a model say the same whenever it is asked, and leave no trace, as an evaluation."""
        with (torch.no_grad(), state_kept(member.model), random_numbers_kept(member.device),
              in_evaluation_mode(member.model)):
            seed_random_numbers(member.checkpoint.epoch)
            yield

    def _batches(self, pictures: Sequence[Picture], unreadable: list[DataError] | None,
                 is_silent: bool) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Yield batches: places of their pictures, and the pixels for each member."""
        size, number = self.members[0].batch_size, 0
        for member in self.members:
            # Made here, it is made once, and not by each of the threads.
            _ = member.pipeline
        batch: list[tuple[int, list[np.ndarray]]] = []

        def read(place: int) -> list[np.ndarray] | DataError:
            try:
                return self._prepared(pictures[place])
            except DataError as error:
                return error

        def made() -> tuple[list[int], list[Tensor]]:
            return ([place for place, _ in batch],
                    [torch.from_numpy(member.augmented(images, number)) for member, images in zip(
                        self.members, zip(*(images for _, images in batch)))])

        for place, found in enumerate(in_threads(read, range(len(pictures)), "Predicting",
                                                 usable_cores(), is_silent)):
            if not isinstance(found, DataError):
                batch.append((place, found))
            elif unreadable is None:
                raise found
            else:
                unreadable.append(found)
            if len(batch) == size:
                yield made()
                batch, number = [], number + 1
        if batch:
            yield made()

    def _prepared(self, picture: Picture) -> list[np.ndarray]:
        """Return a picture as each member takes it; what two read alike is read once."""
        read: dict[tuple, np.ndarray] = {}
        prepared = []
        for member in self.members:
            key = member.reader.channels, str(member.reader.background)
            if key not in read:
                read[key] = _pixels(picture, member.reader)
            prepared.append(member.prepared(read[key]))
        return prepared


def _is_one(pictures: Any) -> bool:
    if isinstance(pictures, (str, os.PathLike)):
        return not os.path.isdir(pictures)
    return isinstance(pictures, Image.Image) or (
        not isinstance(pictures, (list, tuple)) and np.ndim(pictures) != 4)


def _as_list(pictures: Any) -> Sequence[Picture]:
    if isinstance(pictures, (str, os.PathLike)):
        return find_images([pictures])
    if isinstance(pictures, (list, tuple)):
        return pictures
    return [pictures] if _is_one(pictures) else list(pictures)


def _pixels(picture: Picture, reader: ImageReader) -> np.ndarray:
    """Return the pixels of a picture, uint8 (H, W, C), with the channels of the training."""
    is_pixels = not isinstance(picture, (str, os.PathLike, Image.Image))
    if reader.channels not in (1, 3) and not is_pixels:
        raise DataError(f"the model takes images of {reader.channels} channels, which no file has",
                        hint="A Predictor takes pixels in Python: uint8 (H, W, C).")
    try:
        if isinstance(picture, (str, os.PathLike)):
            return reader.read(os.fspath(picture))[0]
        if isinstance(picture, Image.Image):
            return reader.convert(picture, "the image")[0]
    except UnreadableError as error:
        # It speaks of data sets.
        error.hint = None
        raise
    except DataError:
        raise
    except Exception as error:
        # Pillow decodes an image when it is asked for pixels, and raises what it stumbles over.
        reason = str(error) or type(error).__name__
        raise DataError(f"the image cannot be read: {reason}") from error
    pixels = np.asarray(picture)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    check_image(pixels)
    if pixels.shape[2] == reader.channels:
        return pixels
    if pixels.shape[2] not in (1, 3, 4) or reader.channels not in (1, 3):
        raise DataError(f"pixels are {pixels.shape}, with {pixels.shape[2]} channels",
                        hint="Grey ones have 1, colours 3 (RGB), with transparency 4 (RGBA)."
                             if reader.channels in (1, 3) else f"They have {reader.channels}.")
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return reader.convert(image, "the image")[0]
