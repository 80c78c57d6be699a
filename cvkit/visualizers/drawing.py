"""What all pictures share: the figure, its style, and images in rows."""

from __future__ import annotations

import csv
import functools
import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager, style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from torch import Tensor

from cvkit.data import ImageFiles, ImageSet
from cvkit.data.loaders import BatchLoader
from cvkit.errors import RunError
from cvkit.runs.predictions import Predictions
from cvkit.system.command import command
from cvkit.system.files import user_path
from cvkit.system.log import LOG, SCREEN
from cvkit.system.text import escape_controls, harmless_cell

# Letters that matplotlib's own font lacks come from the first of these that is installed.
_MORE_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC",
               "Noto Sans KR", "Source Han Sans", "PingFang SC", "Hiragino Sans",
               "Apple SD Gothic Neo", "Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic",
               "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "IPAexGothic", "NanumGothic",
               "Droid Sans Fallback", "Arial Unicode MS", "Unifont")
_INSTALLED = {font.name for font in font_manager.fontManager.ttflist}

_FONTS = ["DejaVu Sans", *(name for name in _MORE_FONTS if name in _INSTALLED)]

STYLE = {
    "font.family": _FONTS, "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "axes.grid": True, "grid.color": "#e6e6e6",
    "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "figure.facecolor": "white", "savefig.facecolor": "white",
    # A class may be named $5.
    "text.parse_math": False,
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# These are readable on white, and told apart by the colour-blind.
RIGHT, WRONG, FAINT = "#00704f", "#b33c00", "#666666"
DPI = 150


@dataclass(frozen=True)
class Points:
    """Images that are points of a picture, for a page that shows what is pointed at.

    Attributes:
        places: float (N, 2), parts of the figure's width and height from its lower left corner.
        images: uint8 (N, H, W, C), small.
        names: what each can be found by.
        true, predicted: int64 (N,), class numbers.
        classes: names.
    """

    places: np.ndarray
    images: np.ndarray
    names: list[str]
    true: np.ndarray
    predicted: np.ndarray
    classes: list[str]


class Picture(Figure):
    """A matplotlib figure with words. No pyplot state: nothing to close, shown once in a notebook.

    Attributes:
        caption: a sentence or two on what is seen.
        table: the same in numbers, as text; may be empty.
        csv: the same for a spreadsheet, with a line of names; may be empty.
        title: of the headline; may be empty.
        is_message: whether it only says something, and shows nothing.
        points: images that a page shows when they are pointed at, or None.
    """

    def __init__(self, width: float, height: float, caption: str = "", table: str = ""):
        super().__init__(figsize=(width, height), dpi=DPI)
        self.caption, self.table, self.title = caption, table, ""
        self.csv, self.is_message = "", False
        self.points: Points | None = None
        self._head: list[Artist] = []
        self._head_height = 0.0

    def headline(self, title: str, caption: str) -> None:
        """Put a title into the upper left corner, and under it the caption, in as many lines."""
        room = self.get_size_inches()[0] - 0.2
        self._head = [
            self.words(0.1, 0.1, shorten(title, room, 11, "bold"), 11, va="top", fontweight="bold"),
            self.words(0.1, 0.34, caption, 7.5, va="top", color=FAINT, linespacing=1.15)]
        self._head_height = 0.3 + 0.13 * len(caption.splitlines())
        self.title, self.caption = title, " ".join(caption.split("\n"))

    def words(self, left: float, top: float, text: str, points: float, **style: Any) -> Artist:
        """Put text at a place, in inches from the upper left corner, and return it."""
        width, height = self.get_size_inches()
        return self.text(left / width, 1 - top / height, text, fontsize=points, **style)

    def panel(self, left: float, top: float, wide: float, tall: float) -> Axes:
        """Return axes at a place, in inches from the upper left corner."""
        width, height = self.get_size_inches()
        return self.add_axes((left / width, 1 - (top + tall) / height, wide / width,
                              tall / height))

    def savefig(self, *args: Any, **kwargs: Any) -> None:
        """Write the picture, as matplotlib does."""
        with style.context(["default", STYLE]), missing_letters_told_once():
            super().savefig(*args, **kwargs)

    def png(self) -> tuple[bytes, float, float]:
        """Return a PNG without headline and caption, which a page says itself; width and height."""
        width, height = self.get_size_inches()
        height -= self._head_height
        file = io.BytesIO()
        for text in self._head:
            text.set_visible(False)
        self.savefig(file, format="png", bbox_inches=Bbox([[0, 0], [width, height]]))
        for text in self._head:
            text.set_visible(True)
        return file.getvalue(), width, height

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


# What was told once is not told again.
_told: set[str] = set()


@contextmanager
def missing_letters_told_once() -> Iterator[None]:
    """Say in one line, once, what matplotlib warns of for each letter of each picture."""
    others = warnings.showwarning

    def show(message: Warning | str, *rest: Any, **named: Any) -> None:
        if "missing from" not in str(message):
            others(message, *rest, **named)
        elif "letters" not in _told:
            _told.add("letters")
            LOG.info("note       some letters are drawn as boxes: no installed font has them "
                     "(Noto Sans CJK has most)", extra=SCREEN)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=r"Glyph \d+ ")
        warnings.showwarning = show
        yield


def styled(function: Callable) -> Callable:
    """Decorate a visualizer: what it draws has cvkit's style, whatever the user's is."""

    @functools.wraps(function)
    def draw(*args: Any, **kwargs: Any) -> Any:
        with style.context(["default", STYLE]), missing_letters_told_once():
            return function(*args, **kwargs)

    return draw


def grids(count: int, rows: int, columns: int, headline: str, caption: str, side_by_side: int = 1,
          size: float = 1.25, aspect: float = 1.0, above: float = 0.06, over: float = 0.0,
          left: float = 0.1, footer: float = 0.0) -> tuple[Picture, list[np.ndarray]]:
    """Return a picture with `count` grids of places for images; all lengths in inches.

    Args:
        rows, columns: of each grid.
        headline, caption: over all of them.
        side_by_side: grids in a line, if there are so many.
        size: width of a place; its height is that times `aspect`.
        above: room over each row, for titles.
        over, left: room over each grid and left of it, for its labels.
        footer: room at the bottom.

    Returns:
        The picture, and for each grid its axes (rows, columns), without ticks.
    """
    gap, edge, side_by_side = 0.1, 0.1, min(side_by_side, count)
    block_width = left + columns * (size + gap) + edge
    block_height = over + rows * (size * aspect + above)
    width = max(side_by_side * block_width, 4.0)
    words = wrap(caption, width - 0.2)
    header = 0.42 + 0.13 * len(words)
    height = header + -(-count // side_by_side) * block_height + footer + edge
    figure = Picture(width, height)
    figure.headline(headline, "\n".join(words))
    blocks = []
    for number in range(count):
        line, place = divmod(number, side_by_side)
        block = np.empty((rows, columns), dtype=object)
        for row, column in np.ndindex(rows, columns):
            axes = block[row, column] = figure.panel(
                place * block_width + left + column * (size + gap),
                header + line * block_height + over + row * (size * aspect + above) + above,
                size, size * aspect)
            axes.axis("off")
            # Titles stand in one line, whatever the images' shapes.
            axes.set_anchor("N")
        blocks.append(block)
    return figure, blocks


def sheet(count: int, columns: int, headline: str, caption: str, size: float, above: float,
          aspect: float) -> tuple[Picture, Iterator[Axes]]:
    """Return a picture with places for `count` images in rows, and these; see `grids`."""
    figure, (axes,) = grids(1, -(-count // columns), columns, headline, caption, size=size,
                            above=above, aspect=aspect)
    return figure, axes.flat


def show_image(axes: Axes, image: np.ndarray, title: str = "", colour: str = "black") -> None:
    """Show uint8 (H, W, C) or floats in 0–1, each pixel as it is where there is room for it."""
    grey = image.shape[-1] == 1
    highest = 255 if image.dtype == np.uint8 else 1
    place = axes.get_window_extent()
    # Where there is none, some pixels would be lost.
    has_room = place.height >= image.shape[0] and place.width >= image.shape[1]
    is_small = has_room and max(image.shape[:2]) <= 128
    axes.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0,
                vmax=highest, interpolation="nearest" if is_small else "antialiased")
    # A given height spares matplotlib laying out ticks, of which there are none, to find one.
    axes.set_title(title, fontsize=7.5, color=colour, y=1.0, pad=2.5, linespacing=1.1)


def aspect_of(images: Iterable[np.ndarray]) -> float:
    """Return height by width of places for images (H, W, C): that of the tallest, at most 2."""
    return min(max(image.shape[0] / image.shape[1] for image in images), 2)


def text_width(text: str, points: float = 7.5, weight: str = "normal") -> float:
    """Return how wide one line of text is drawn, in inches; kerning may make it a little less."""
    return sum(_letter_width(letter, points, weight) for letter in text)


@functools.lru_cache(8192)
def _letter_width(letter: str, points: float, weight: str) -> float:
    font = font_manager.FontProperties(family=_FONTS, size=points, weight=weight)
    with warnings.catch_warnings():
        # Letters that are missing are told when they are drawn.
        warnings.simplefilter("ignore")
        with_it, without = (_RULER.get_text_width_height_descent(text, font, False)[0]
                            for text in (f"|{letter}|", "||"))
    return (with_it - without) / DPI


_RULER = RendererAgg(1, 1, DPI)


def shorten(text: str, inches: float, points: float = 7.5, weight: str = "normal") -> str:
    """Return a text that is no wider; its end, which may tell it apart, is kept."""
    if text_width(text, points, weight) <= inches:
        return text
    # How many letters are kept; a text of more of them is wider.
    low, high = 0, len(text) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(_without_middle(text, middle), points, weight) <= inches:
            low = middle
        else:
            high = middle - 1
    return _without_middle(text, low)


def _without_middle(text: str, letters: int) -> str:
    end = letters // 4
    return f"{text[:letters - end]}…{text[len(text) - end:]}"


def wrap(text: str, inches: float, points: float = 7.5) -> list[str]:
    """Return text in lines that are no wider; a longer word is shortened, and "12.0 %" is one."""
    lines = [""]
    for word in re.findall(r"\S+(?: %\S*)?", text):
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, points) <= inches:
            lines[-1] = longer
        else:
            lines.append(shorten(word, inches, points))
    return [line for line in lines if line]


def arrow(true: str, predicted: str, inches: float = 1.2) -> str:
    """Return "true → predicted", on two lines where one would be too long."""
    line = f"{true} → {predicted}"
    if text_width(line) <= inches:
        return line
    return f"{shorten(true, inches - text_width(' →'))} →\n{shorten(predicted, inches)}"


@functools.cache
def _letters() -> frozenset[int]:
    """Return the code points that can be drawn."""
    fonts = (font_manager.get_font(font_manager.findfont(name)) for name in _FONTS)
    return frozenset().union(*(font.get_charmap() for font in fonts))


def drawn_names(classes: Sequence[str]) -> list[str]:
    """Return the classes' names for a picture: "class 3" for one whose letters no font has."""
    return [name if name.strip() and _letters().issuperset(map(ord, name)) else f"class {number}"
            for number, name in enumerate(map(escape_controls, classes))]


IN_THE_TEXT = "they are numbers here, and names in the .txt"


def told_names(classes: Sequence[str]) -> tuple[str, str]:
    """Return for the classes that a picture numbers a sentence in its caption and their names.

    Both are empty where all names are drawn.
    """
    names = map(escape_controls, classes)
    lines = [f"{drawn}: {name}" for drawn, name in zip(drawn_names(classes), names)
             if drawn != name]
    return ((f" No installed font has the letters of some names: {IN_THE_TEXT}.",
             "\n".join(["", *lines])) if lines else ("", ""))


def whole_numbers() -> MaxNLocator:
    """Return what puts ticks at whole numbers only: there is no epoch 0.95, and no half class."""
    return MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])


def refuse_below_one(**numbers: int) -> None:
    """Raise a ValueError that names an argument below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is 1 or more, not {number}")


def message(text: str) -> Picture:
    """Return a picture that only says something."""
    figure = Picture(5.0, 1.2, caption=text)
    figure.is_message = True
    figure.text(0.5, 0.5, "\n".join(wrap(text, 4.8, 9)), ha="center", va="center")
    return figure


def as_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows for a spreadsheet: numbers with six digits, nothing where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([
        ("" if math.isnan(cell) else f"{cell:.6g}") if isinstance(cell, float)
        else harmless_cell(cell) for cell in row] for row in [header, *rows])
    return text.getvalue().rstrip("\n")


def images_of(loader: BatchLoader, predictions: Predictions,
              rows: np.ndarray) -> tuple[np.ndarray, Tensor]:
    """Return those rows of the predictions whose images can be read, and these, (N, C, H, W).

    Raises:
        RunError: the predictions are of other images.
    """
    batch = loader.take(positions_of(loader.images, predictions, rows.tolist()))
    place = {int(index): row for index, row in zip(predictions.index[rows], rows)}
    return np.array([place[index] for index in batch.index.tolist()], dtype=np.int64), batch.images


def image_names(split: ImageSet, positions: Iterable[int]) -> list[str]:
    """Return what images can be found by: their files below the split's folder, or their numbers.

    In a file that is handed on, the whole path would tell of the machine.
    """
    names = list(map(split.name, positions))
    if isinstance(split.images, ImageFiles):
        folders = {os.path.dirname(path) for path in map(os.path.abspath, split.images.paths)}
        names, home = [os.path.abspath(name) for name in names], user_path("~")
        try:
            top = Path(os.path.commonpath(folders))
        except ValueError:
            # On Windows there is no path from one drive to another.
            top = home
        # Of several places nothing but the names themselves tells little.
        names = ([os.path.basename(name) for name in names]
                 if top in (Path(top.anchor), *home.parents, home)
                 else [os.path.relpath(name, top) for name in names])
    return list(map(escape_controls, names))


def percent(part: float) -> str:
    """Return a part of one as a percentage; never 0 or 100 where it is more or less."""
    if 0 < part < 0.005:
        return "< 1 %"
    return "> 99 %" if 0.995 <= part < 1 else f"{100 * part:.0f} %"


def positions_of(split: ImageSet, predictions: Predictions, rows: Iterable[int]) -> list[int]:
    """Return where in the test split the images of these rows of the predictions are.

    Raises:
        RunError: the predictions are of other images.
    """
    place = {int(index): position for position, index in enumerate(split.index)}
    found = [place.get(int(index), -1) for index in predictions.index]
    labels = [-1 if position < 0 else int(split.labels[position]) for position in found]
    is_same = predictions.images in ("", split.fingerprint)
    if labels != predictions.true.tolist() or not is_same:
        raise RunError("predictions.npz is of other test images than the data now has",
                       hint="Put back what was there. If other images are meant to be tested, "
                            f"write it anew: {command('evaluate')} --run RUN")
    return [found[row] for row in rows]
