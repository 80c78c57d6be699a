"""A picture with points as a part of a page, which shows the image of each."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from PIL import Image as Pixels

from cvkit.reporting.report_format import Image, Scatter
from cvkit.visualizers.drawing import Points

# JPEG compresses squares of so many pixels; images that share none do not colour each other.
_SQUARE = 8


def scatter(image: Image, points: Points, whole: float = 1.0) -> Scatter:
    """Return a picture whose points a page shows one by one.

    Args:
        image: the picture, the bottom of the figure that the points are of.
        points: of the figure.
        whole: height of the figure by that of the picture.
    """
    across, up = points.places.T
    # A ten-thousandth of a picture is less than a pixel of it.
    places = np.stack([across, 1 - up * whole], axis=1)
    height, width = points.images.shape[1:3]
    columns = math.ceil(math.sqrt(len(points.images)))
    return Scatter(**vars(image), facts={
        "places": np.round(places, 4).tolist(), "names": points.names,
        "true": points.true.tolist(), "predicted": points.predicted.tolist(),
        "classes": points.classes, "size": [width, height],
        "step": [_rounded_up(width), _rounded_up(height)], "columns": columns,
        "images": "data:image/jpeg;base64," + base64.b64encode(
            _together(points.images, columns)).decode()})


def _rounded_up(side: int) -> int:
    return -(-side // _SQUARE) * _SQUARE


def _together(images: np.ndarray, columns: int) -> bytes:
    """Return images (N, H, W, C) in rows as one JPEG, each beginning with a square of its own."""
    count, height, width, channels = images.shape
    tall, wide = _rounded_up(height), _rounded_up(width)
    rows = -(-count // columns)
    # What fills an image up to its squares is like its edge, so that it leaves no trace in it.
    filled = np.pad(images, ((0, rows * columns - count), (0, tall - height), (0, wide - width),
                             (0, 0)), mode="edge")
    sheet = filled.reshape(rows, columns, tall, wide, channels).swapaxes(1, 2).reshape(
        rows * tall, columns * wide, channels)
    file = io.BytesIO()
    Pixels.fromarray(sheet[..., 0] if channels == 1 else sheet).save(
        file, "JPEG", quality=70, subsampling=0, optimize=True)
    return file.getvalue()
