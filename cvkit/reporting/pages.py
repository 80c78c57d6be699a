"""Writing a page: pictures as parts of it, and the HTML and the Markdown of its sections."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tqdm.auto import tqdm

from cvkit.errors import RunError, UserError
from cvkit.reporting.report_format import (
    Block,
    Code,
    Download,
    Image,
    Section,
    Text,
    render_html,
    render_markdown,
)
from cvkit.reporting.scatter import scatter
from cvkit.runs.experiment import Drawable
from cvkit.system.text import escape_controls
from cvkit.visualizers.draw import draw_all
from cvkit.visualizers.drawing import (
    DPI,
    IN_THE_TEXT,
    Picture,
    missing_letters_told_once,
    told_names,
)

# Text beside a picture is long, so it is folded away under these titles.
_TABLES = {"confusion": "Confusion in numbers", "embedding": "Neighbours of each class",
           "summary": "Layers as text"}


def drawn_blocks(subject: Drawable, nodes: Sequence[Any],
                 classes: Sequence[str]) -> dict[str, list[Block]]:
    """Return pictures of what was trained, by the name of their visualizer.

    Of one that cannot be drawn there is the reason.
    """
    pictures: dict[str, list[Block]] = {}
    names = ", ".join(told_names(classes)[1].split("\n")[1:])
    for made in draw_all(subject, nodes):
        blocks = pictures.setdefault(made.visualizer, [])
        if isinstance(made.result, UserError):
            tqdm.write(f"not drawn: {made.visualizer}: {made.result}", file=sys.stderr)
            reason = " ".join(filter(None, [made.result.problem, made.result.hint]))
            blocks.append(Text(f"{made.visualizer} was not drawn: {reason}"))
        else:
            blocks += picture(made.name, made.result, made.visualizer, names)
    return pictures


def picture(name: str, figure: Figure, visualizer: str = "",
            names: str = "") -> list[Block]:
    """Return a figure as a picture of a page, and the numbers in it where those are many.

    One that only says something is its sentence.
    """
    caption = (getattr(figure, "caption", "") or name).replace(IN_THE_TEXT, names)
    if getattr(figure, "is_message", False):
        return [Text(f"{caption.rstrip('.')}.")]
    if isinstance(figure, Picture):
        png, width, height = figure.png()
    else:
        file = io.BytesIO()
        with missing_letters_told_once():
            figure.savefig(file, format="png", dpi=DPI)
        png, (width, height) = file.getvalue(), figure.get_size_inches()
    # A browser measures 96 pixels an inch; the file is sharper than that.
    image = Image(name, png, round(96 * width), round(96 * height), caption,
                  getattr(figure, "title", ""))
    points = getattr(figure, "points", None)
    # Above the picture its headline is cut off.
    whole = figure.get_size_inches()[1] / height
    blocks: list[Block] = [image if points is None else scatter(image, points, whole)]
    table = getattr(figure, "table", "")
    if table and visualizer in _TABLES:
        blocks.append(Code(table, title=_TABLES[visualizer]))
    numbers = getattr(figure, "csv", "")
    if numbers:
        blocks.append(Download(f"{name}.csv", escape_controls(numbers, keep="\n\t") + "\n"))
    return blocks


def write_pages(folder: Path, name: str, title: str, sections: Sequence[Section]) -> list[Path]:
    """Write `<name>.html`, which holds all, and `README.md` with `images/` and `tables/`.

    Says where they are.

    Returns:
        The two files.

    Raises:
        RunError: the folder cannot be written.
    """
    paths = folder / f"{name}.html", folder / "README.md"
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for block in (block for section in sections for block in section.blocks):
            if isinstance(block, Image):
                (folder / "images" / f"{block.name}.png").write_bytes(block.png)
            elif isinstance(block, Download):
                (folder / "tables").mkdir(exist_ok=True)
                (folder / "tables" / block.name).write_text(block.text, encoding="utf-8")
        for path, render in zip(paths, (render_html, render_markdown)):
            path.write_text(escape_controls(render(title, sections), keep="\n\t"), encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write the report into {folder}: {error.strerror}",
                       hint="Choose another folder with --out.") from None
    print(*paths, sep="\n")
    return list(paths)
