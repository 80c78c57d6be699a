"""What one checkpoint file describes: a model, and the way of any picture into it."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cvkit.config import read_config
from cvkit.data import ImageData, ImageSet
from cvkit.data.build import evaluation_batch_size
from cvkit.data.images import ImageReader
from cvkit.data.normaliser import Normaliser
from cvkit.data.pipeline import Pipeline, build_pipeline
from cvkit.data.transforms import height_by_width
from cvkit.data.views import Views, build_views
from cvkit.errors import CheckpointError, ConfigError, DataError, UserError
from cvkit.registry import NAME, TRANSFORMS
from cvkit.registry.user_code import import_user_code
from cvkit.runs.checkpoint import Checkpoint
from cvkit.runs.experiment import Experiment
from cvkit.runs.finding import find_runs
from cvkit.runs.folder import Run, is_among, open_run
from cvkit.system.files import user_path
from cvkit.system.log import LOG, SCREEN
from cvkit.system.text import and_more

# How a trained model is used; not what it is.
MAY_PREDICT = ("DEVICE", "IMPORTS", "TTA", "DATA.TEST_TRANSFORMS", "DATA.EVAL_BATCH_SIZE",
               "TRAIN.PRECISION", "TRAIN.CHANNELS_LAST")
# A list that begins with one of these takes pictures of any size.
_RESIZING = ("Resize", "SmallestMaxSize", "LongestMaxSize")


def takes_any_size(transforms: Sequence[Any]) -> bool:
    """Tell whether TEST_TRANSFORMS take a picture as large as it is, and no resize comes first."""
    return bool(transforms) and transforms[0][NAME].split(".")[-1] in _RESIZING


class Trained(Experiment):
    """A trained model and what a picture goes through before it; needs no data set.

    Args:
        checkpoint: of which it is made.
        source: the file, or the folder of the run, for messages.
        overrides: as `load_config` takes them, of `MAY_PREDICT`.
        run: that it is of, whose IMPORTS are imported; None for a lone file.
    """

    def __init__(self, checkpoint: Checkpoint, source: str,
                 overrides: Sequence[str] | Mapping[str, Any] = (), run: Run | None = None):
        super().__init__(read_config(checkpoint.config, source, overrides=overrides))
        self.checkpoint, self.source, self.classes = checkpoint, source, checkpoint.classes
        keys = list(overrides if isinstance(overrides, Mapping) else overrides[::2])
        for key in keys:
            if not is_among(key, MAY_PREDICT):
                raise ConfigError(f"{key} cannot be changed in a model that was trained",
                                  hint=f"What can be: {', '.join(MAY_PREDICT)}.")
        # Whoever sent a lone file does not say what is run.
        is_asked = "IMPORTS" in keys or run is not None
        self._imports = list(self.config.IMPORTS) if is_asked else []
        self.trained_in = run
        self._own, self._has_told = threading.local(), False
        # Pictures of another size are resized to it first.
        self._size_first: tuple[int, ...] | None = None

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the images of the training were, see `ImageData.facts`."""
        if self.checkpoint.images is not None:
            return self.checkpoint.images
        # An older version did not note them.
        node, (channels, *size) = self.config.DATA.DATASET, self.checkpoint.image_shape
        given = node.get("channels", channels)
        mean, std = (values if len(values) == given else [float(np.mean(values))] * given
                     for values in (self.checkpoint.mean, self.checkpoint.std))
        # Nor what size a crop was made of.
        transforms = self.checkpoint.read_config().DATA.TEST_TRANSFORMS
        is_kept = all(item[NAME].split(".")[-1] == "Normalize" for item in transforms)
        return {"channels": given, "image_size": size if is_kept else None, "mean": mean,
                "std": std, "background": node.get("background", 255)}

    @cached_property
    def reader(self) -> ImageReader:
        """Reads files as the data set of the training did."""
        return ImageReader(self.facts["channels"], self.facts["background"])

    @cached_property
    def _stand_in(self) -> ImageData:
        """A data set of one black image, for what is built for a data set."""
        image = np.zeros((1, 8, 8, self.facts["channels"]), dtype=np.uint8)
        blank = ImageSet.of(image, [0])
        return ImageData(tuple(self.classes), blank, blank, self.facts["channels"], None,
                         self.facts["mean"], self.facts["std"])

    @cached_property
    def pipeline(self) -> Pipeline:
        """TEST_TRANSFORMS, after a Resize to the training's images if those had one size."""
        node, size = self.config.DATA, self.facts["image_size"]
        with self._own_parts():
            # They were tried in the training, on images of which nothing else is known here.
            pipeline, _ = build_pipeline(node.TEST_TRANSFORMS, self._stand_in, tried_on=[])
        if size and not takes_any_size(node.TEST_TRANSFORMS):
            self._size_first = tuple(size)
            resize = TRANSFORMS.build({NAME: "Resize", "height": size[0], "width": size[1]})
            pipeline = Pipeline([resize, *pipeline.transforms])
        return pipeline

    @cached_property
    def normaliser(self) -> Normaliser:
        """Turns pixels into what the model receives."""
        normaliser = Normaliser(self.checkpoint.mean, self.checkpoint.std, self.device)
        _ = self.model
        normaliser.layout = self.layout or normaliser.layout
        return normaliser

    @cached_property
    def views(self) -> Views:
        """Those of TTA."""
        channels, height, width = self.checkpoint.image_shape
        with self._own_parts():
            return build_views(self.config.TTA, self._stand_in, (height, width, channels),
                               self.config.SEED)

    @cached_property
    def model(self) -> nn.Module:
        """The trained network on the device, in evaluation mode."""
        with self._own_parts():
            return self._placed(self.checkpoint.build_model(()), self.checkpoint.image_shape)

    @contextmanager
    def _own_parts(self) -> Iterator[None]:
        """Import the user's code; if a part is missing, say which code it was trained with."""
        import_user_code(self._imports, where=self.config.where("IMPORTS"))
        try:
            yield
        except ConfigError as error:
            named = self.checkpoint.read_config().IMPORTS
            if named and not self._imports:
                error.hint = "\n  ".join(filter(None, [
                    f"{self.source} was trained with code of its author's: IMPORTS "
                    f"\"[{', '.join(named)}]\" imports it, if you trust it.", error.hint]))
            raise

    @property
    def batch_size(self) -> int:
        """How many images are evaluated at once."""
        return evaluation_batch_size(self.config, not self.pipeline.unbatched, self.device)

    def prepared(self, image: np.ndarray) -> np.ndarray:
        """Return a picture, uint8 (H, W, C), as the fixed transforms leave it; in any thread.

        Raises:
            DataError: a transform cannot take it.
        """
        # Transforms are not made for use by several threads.
        if not hasattr(self._own, "pipeline"):
            self._own.pipeline = copy.deepcopy(self.pipeline)
        if self._size_first not in (None, image.shape[:2]) and not self._has_told:
            self._has_told = True
            LOG.info(f"note       pictures are resized to {height_by_width(self._size_first)} "
                     "pixels (height×width), the size of the training's images", extra=SCREEN)
        return _transformed(self._own.pipeline.prepare, image)

    def augmented(self, images: Sequence[np.ndarray], number: int) -> np.ndarray:
        """Return prepared images after the rest of the transforms, uint8 (N, H, W, C).

        Args:
            number: of the batch, on which what is random depends, as in an evaluation.

        Raises:
            DataError: a transform cannot take one, or they have not the size that the model takes.
        """
        self.pipeline.seed(self.config.SEED, 0, number)
        made = [_transformed(self.pipeline.augment, image) for image in images]
        channels, height, width = self.checkpoint.image_shape
        other = next((image.shape for image in made if image.shape != (height, width, channels)),
                     None)
        if other is not None:
            raise DataError(
                f"the model takes images of {channels}×{height}×{width}, and TEST_TRANSFORMS make "
                f"some of {other[2]}×{other[0]}×{other[1]}",
                hint=f"DATA.TEST_TRANSFORMS \"[{{NAME: Resize, height: {height}, "
                     f"width: {width}}}]\" makes them so.")
        return np.stack(made)


def _transformed(transform: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    try:
        made = transform(image)
    except UserError:
        raise
    except Exception as error:
        # Albumentations, OpenCV and NumPy may raise anything.
        raise DataError(f"TEST_TRANSFORMS fail on an image of "
                        f"{'×'.join(map(str, image.shape))}: {error}") from error
    if made.dtype != np.uint8:
        raise DataError(f"TEST_TRANSFORMS turn images into {made.dtype}",
                        hint="They stay uint8; normalisation follows by itself.")
    return made


def open_trained(source: str | Path | Run | None = None,
                 overrides: Sequence[str] | Mapping[str, Any] = ()) -> Trained:
    """Open a run, or a checkpoint file alone, as what it predicts with.

    A run's is the checkpoint whose results count, see `Run.checkpoint`. What a lone file's config
    imports is imported only if the overrides say so.

    Args:
        source: a run, its path, a checkpoint file, or None for the newest run.
        overrides: as `load_config` takes them, of `MAY_PREDICT`.

    Raises:
        UserError: it is not there, damaged, or of another kind.
    """
    if isinstance(source, (str, Path)) and _is_file(source):
        return Trained(Checkpoint.load(user_path(source)), str(source), overrides)
    # A run's images may be of the same code as its model.
    imports: Mapping[str, Any] | list[str]
    if isinstance(overrides, Mapping):
        imports = {key: value for key, value in overrides.items() if key == "IMPORTS"}
    else:
        imports = [word for pair in zip(overrides[::2], overrides[1::2]) if pair[0] == "IMPORTS"
                   for word in pair]
    run = source if isinstance(source, Run) else open_run(source, overrides=imports)
    return Trained(run.checkpoint(), str(run.folder), overrides, run)


def _is_file(path: str | Path) -> bool:
    """Whether a path is to be read as a checkpoint file; it need not be there."""
    return user_path(path).is_file() or str(path).endswith(".pt")


def is_trained(path: str) -> bool:
    """Tell whether a path is that of a run, of a folder of runs, or of a checkpoint file."""
    folder = user_path(path)
    # "." and "/" have no name.
    return path.endswith(".pt") or os.path.isfile(folder / "config.yaml") or bool(
        folder.name and find_runs(folder.parent, folder.name))


def order_of(classes: Sequence[str], others: Sequence[str], *names: object) -> list[int]:
    """Return where each of the classes is among those of another model.

    Args:
        names: of both, for the message.

    Raises:
        CheckpointError: it has others.
    """
    if sorted(classes) != sorted(others):
        differ = sorted(set(classes) ^ set(others))
        raise CheckpointError(f"{' and '.join(map(str, names))} have different classes: "
                              f"{and_more(differ, 8)}",
                              hint="Only models of the same classes can be averaged.")
    return [list(others).index(name) for name in classes]
