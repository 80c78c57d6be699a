"""The page of results that were kept, with a picture of their curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cvkit.errors import RunError, UserError
from cvkit.runs.finding import by_age, find_all
from cvkit.runs.folder import Run
from cvkit.runs.results import (
    BLOCK,
    CURVES,
    Result,
    alone_in,
    content_of,
    fill,
    page_of,
    read_results,
    recipe_of,
    write,
)
from cvkit.system.files import write_whole, writing
from cvkit.system.text import and_more
from cvkit.visualizers.drawing import COLOURS, Picture, shorten, styled, whole_numbers


def keep_all(places: Sequence[str | Path], target: Path, note: str = "") -> list[str]:
    """Write what runs came to and the page of it, and return in lines what was done.

    Of a file that is named there is a page only if there was one.

    Args:
        places: run folders, or folders above some, see `find_all`. Of these, runs that are not
            finished are left out, and of several of one recipe and seed all but the newest.
        target: a folder; or the file of one run, which ends in `.json`.
        note: see `cvkit.runs.results.content_of`.

    Raises:
        RunError: no run, or one has no predictions, or something cannot be written.
    """
    contents, lines = _contents(places, note)
    is_file = target.suffix == ".json"
    if is_file and len(contents) != 1:
        raise RunError(f"{target} is the file of one run, not of {len(contents)}",
                       hint="Name a folder for several.")
    for content in contents:
        path, replaced = write(content, target)
        lines.append(f"written    {path}" + f", over what was measured on {replaced}" * bool(
            replaced))
    page = page_of(target.parent if is_file else target)
    if not is_file or page.is_file():
        write_page(page)
        lines.append(f"written    {page}")
    return lines


def _contents(places: Sequence[str | Path], note: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what is kept of the runs that paths stand for, and in lines which are left out."""
    newest: dict[Any, tuple[Path, dict[str, Any]]] = {}
    lines = []
    found = [find_all(place) for place in places]
    named = [folders[0] for folders in found if len(folders) == 1]
    for folder in sorted({folder for folders in found for folder in folders}, key=by_age):
        try:
            content = content_of(Run(folder), note)
        except UserError as error:
            if folder in named:
                raise
            lines.append(f"left out   {folder}: {error.problem}")
            continue
        key = (*recipe_of(content), content["seed"])
        if key in newest:
            lines.append(f"left out   {newest[key][0]}: {folder} is a newer one of its recipe and "
                         "seed")
        newest[key] = folder, content
    if places and not newest:
        raise RunError(f"no run in {and_more(list(map(str, places)), 3)} is finished",
                       hint="\n  ".join(lines[:3]))
    return [content for _, content in newest.values()], lines


def write_page(page: Path) -> None:
    """Write a page with its tables, and `curves.png` into the folders that it takes them from.

    Raises:
        RunError: as `fill`, or it cannot be written.
    """
    text = fill(page)
    write_whole(page, text)
    for _, folder, _ in BLOCK.findall(text):
        results = alone_in(read_results(page.parent / folder))
        if len(results) > 1:
            path = page.parent / folder / CURVES
            with writing(path):
                accuracy_curves(results).savefig(path)


@styled
def accuracy_curves(results: Sequence[Result]) -> Picture:
    """Draw the accuracy that was evaluated after each epoch, a line for each result.

    Args:
        results: the best first, as the legend lists them.
    """
    height = 3.6 + 0.17 * max(0, len(results) - 12)
    figure = Picture(9, height)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - 0.36 / height))
    axes = figure.add_subplot()
    for number, result in enumerate(results):
        axes.plot(range(1, len(result.curve) + 1), [100 * value for value in result.curve],
                  ("-", "--", ":")[number // len(COLOURS) % 3],
                  color=COLOURS[number % len(COLOURS)], linewidth=1.5,
                  marker="." if len(result.curve) < 3 else None,
                  label=f"{shorten(result.name, 2.2, 8)}, {result.test}{result.by_views}")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(whole_numbers())
    splits = {result.split for result in results}
    axes.set_ylabel(f"{splits.pop() if len(splits) == 1 else 'held-out'} accuracy (%)")
    figure.legend(loc="outside right upper", title="config, test accuracy at the end",
                  alignment="left")
    figure.headline("Accuracy over the epochs", "")
    return figure
