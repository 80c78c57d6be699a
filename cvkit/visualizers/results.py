"""The page of results that were kept, with a picture of their curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cvkit.errors import RunError
from cvkit.runs.folder import Run
from cvkit.runs.results import BLOCK, CURVES, Result, alone_in, fill, keep, page_of, read_results
from cvkit.system.files import write_whole, writing
from cvkit.visualizers.drawing import COLOURS, Picture, shorten, styled, whole_numbers


def keep_all(runs: Sequence[Run], place: Path, note: str = "") -> list[Path]:
    """Write what runs came to and the page of it, and return all that was written.

    Args:
        place: a folder; or the file of one run, which ends in `.json`.
        note: see `cvkit.runs.results.keep`.

    Raises:
        RunError: a run has no predictions, or something cannot be written.
    """
    is_file = place.suffix == ".json"
    if is_file and len(runs) != 1:
        raise RunError(f"{place} is the file of one run, not of {len(runs)}",
                       hint="Name a folder for several.")
    files = [keep(run, place, note) for run in runs]
    page = page_of(place.parent if is_file else place)
    write_page(page)
    return [*files, page]


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
