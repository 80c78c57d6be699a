"""What the demo page shows: the classes of a picture, and where the model looked."""

from __future__ import annotations

import base64
import html
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.colors import to_hex
from PIL import Image

from cvkit.data.images import ImageFiles, ImageReader, UnreadableError
from cvkit.errors import DataError, RunError, UserError
from cvkit.evaluation.predictor import Prediction, Predictor
from cvkit.models import parameters_in_words
from cvkit.models.feature_maps import SMALLEST_MAP, choose_layers, map_sizes, whole_blocks
from cvkit.registry import DATASETS, NAME
from cvkit.registry.signatures import parameters_of
from cvkit.runs.folder import Run, open_run
from cvkit.runs.trained import Trained
from cvkit.system.text import plural
from cvkit.visualizers.cam import grey, is_empty, overlay, scaled_together
from cvkit.visualizers.cam_maps import CLASS_FREE, Method
from cvkit.visualizers.drawing import positions_of
from cvkit.visualizers.explained import explain
from cvkit.visualizers.misclassified import select_errors

_COLORMAP, _SIDE = "turbo", 256
# Of an uploaded picture; a small file may hold a thousand times as many.
_MOST_PIXELS = 50_000_000
# As CSS, the colours of that.
SCALE = ", ".join(to_hex(matplotlib.colormaps[_COLORMAP](place / 8)) for place in range(9))


class Demo:
    """What the page shows, without the page.

    Args:
        sources: runs and checkpoint files, None for the newest run; several are averaged.
        overrides: as a `Predictor` takes them.

    Attributes:
        predictor: of all of them.
        run: the one, unless it is a lone file or several.
        title, facts: its name, and sentences on what it is.
        layers, layer: of which a CAM can be drawn, and the one to begin with.
        why_no_map: where there is none.

    Raises:
        UserError: no such run or file, or a damaged one.
    """

    def __init__(self, sources: Sequence[str | None], overrides: Sequence[str] = ()):
        self.predictor = Predictor([*filter(None, sources)] or None, overrides)
        members = self.predictor.members
        names = list(map(_name_of, members))
        self.title = names[0] if len(names) == 1 else f"{len(names)} models together"
        self.run = members[0].trained_in if len(members) == 1 else None
        self.facts = [f"{name}: " * (len(names) > 1) + f"{_described(member)}."
                      for name, member in zip(names, members)]
        self.layers: list[str] = []
        self.layer = self.why_no_map = ""
        try:
            self.layers, self.layer = self._choice_of_layers()
        except UserError as error:
            self.why_no_map = f"Where the model looked is not drawn: {error}"

    def _choice_of_layers(self) -> tuple[list[str], str]:
        """Return the layers to choose from, and the one to begin with."""
        if len(self.predictor.members) > 1:
            raise RunError("the probabilities are averaged over several models")
        member = self.predictor.members[0]
        channels, *size = member.checkpoint.image_shape
        noise = torch.randint(256, (1, *size, channels), dtype=torch.uint8,
                              generator=torch.Generator().manual_seed(0))
        image = member.normaliser.normalise(noise.to(member.device))
        deepest, = choose_layers(member.model, image, "auto")
        legal = [name for name, size in map_sizes(member.model, image).items()
                 if min(size) >= SMALLEST_MAP]
        return list(dict.fromkeys([*whole_blocks(member.model, legal), deepest])), deepest

    def predict(self, path: str) -> Prediction:
        """Return what the model says of an uploaded file.

        Raises:
            DataError: it cannot be read.
        """
        with _uploaded(path, self.predictor.members[0].reader):
            return next(self.predictor.stream([path]))

    def explain(self, path: str, classes: Sequence[str], layer: str, method: Method) -> str:
        """Return as HTML where the model sees evidence for classes, on one scale.

        Raises:
            DataError: the file cannot be read. ConfigError: the method cannot take the model.
        """
        with _uploaded(path, self.predictor.members[0].reader):
            found = explain(self.predictor, path, classes, layer, method)
        factor = max(1, _SIDE // max(found.shown.shape[:2]))
        shown = found.shown.repeat(factor, 0).repeat(factor, 1)
        figures = []
        for label, values, heat in zip(found.labels, found.maps,
                                       scaled_together(found.maps, shown.shape[:2])):
            picture = (grey(shown).repeat(3, 2) if is_empty(values)
                       else (255 * overlay(shown, heat, _COLORMAP)).astype(np.uint8))
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            name = html.escape(self.predictor.classes[label])
            empty = "<br>nothing here speaks for it" if is_empty(values) else ""
            figures.append(
                f'<figure><img alt="Where the model sees evidence for {name}" src="data:image/png;'
                f'base64,{base64.b64encode(file.getvalue()).decode()}"><figcaption><strong>{name}'
                f"</strong> {_number(found.prediction.probabilities[label])}{empty}</figcaption>"
                "</figure>")
        height, width = found.maps.shape[1:]
        note = f"{method} does not look at the class. " if method in CLASS_FREE else ""
        return (f'<div class="maps">{"".join(figures)}</div><div class="scale">no evidence<i></i>'
                f"most</div><small>{note}Both maps share the scale. The picture is as the model "
                f"receives it, the map of {html.escape(found.layer)} {height}×{width} pixels."
                "</small>")


@contextmanager
def _uploaded(path: str, reader: ImageReader) -> Iterator[None]:
    """Tell of an uploaded file by its name alone: where it lies is of no use to a visitor.

    Raises:
        DataError: it is gone, or so large that decoding it could take all memory.
    """
    try:
        if not os.path.isfile(path):
            raise DataError(f"{path} is not kept any longer: drop it again")
        height, width = reader.size(path)
        if height * width > _MOST_PIXELS:
            raise DataError(f"{path} has {height}×{width} pixels, more than "
                            f"{_MOST_PIXELS / 1e6:.0f} million")
        yield
    except DataError as error:
        error.problem = error.problem.replace(path, os.path.basename(path))
        if isinstance(error, UnreadableError):
            # It speaks of data sets.
            error.hint = None
        raise


def _name_of(member: Trained) -> str:
    run = member.trained_in
    if run is None:
        return os.path.basename(member.source)
    return f"{run.config.name}/{run.folder.name}"


def _described(member: Trained) -> str:
    channels, height, width = member.checkpoint.image_shape
    words = [f"{member.config.MODEL[NAME]} with {parameters_in_words(member.model)}",
             f"{len(member.classes)} classes",
             f"pictures of {height}×{width} pixels, {'grey' if channels == 1 else 'in colour'}"]
    try:
        if member.trained_in is not None:
            found = member.trained_in.predictions
            words.append(f"test accuracy {100 * found.accuracy:.2f} % ({found.correct:,} of "
                         f"{plural(len(found.true), 'image')})")
    except RunError:
        # It was not evaluated.
        return ", ".join(words)
    return ", ".join(words)


def _number(probability: float) -> str:
    return f'<data value="{np.float32(probability)!s}">{100 * probability:.1f} %</data>'


def bars(prediction: Prediction) -> str:
    """Return as HTML the five most probable classes."""
    return '<ol class="bars">' + "".join(
        f"<li><span>{html.escape(name)}</span>{_number(probability)}"
        f'<i><b style="width: {100 * probability:.2f}%"></b></i></li>'
        for name, probability in prediction.top()) + "</ol>"


def write_examples(run: Run, folder: Path, count: int = 12) -> list[tuple[str, str]]:
    """Write test images of a run into a folder, and return each file with its true class.

    The most confident mistakes come first, then some that are right. Nothing is downloaded.

    Raises:
        UserError: the images are not there, or others than those of the predictions.
    """
    entry = DATASETS.find(run.config.DATA.DATASET[NAME])
    if entry is not None and "download" in parameters_of(entry)[0]:
        run = open_run(run.folder, overrides={"DATA.DATASET.download": False,
                                              "IMPORTS": list(run.config.IMPORTS)})
    predictions, split = run.predictions, run.data.test
    right = np.flatnonzero(predictions.true == predictions.predicted)
    rows = [*select_errors(predictions, count - 4, "confidence", None, None, 0)]
    rows += [*np.random.default_rng(0).permutation(right)[:count - len(rows)]]
    found: list[tuple[str, str]] = []
    for row, position in zip(rows, positions_of(split, predictions, rows)):
        true, predicted = (predictions.classes[labels[row]]
                           for labels in (predictions.true, predictions.predicted))
        suffix = Path(split.name(position)).suffix if isinstance(split.images, ImageFiles) else ""
        path = folder / f"{len(found):02}{suffix or '.png'}"
        if suffix:
            shutil.copyfile(split.name(position), path)
        else:
            pixels = split.image(position)
            Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)
        found.append((str(path), true if true == predicted else f"{true} → {predicted}"))
    return found
