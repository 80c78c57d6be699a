"""The report of a group of runs: mean and deviation, each run, and what all of them get wrong."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cvkit.errors import RunError, UserError
from cvkit.registry import NAME
from cvkit.reporting.pages import drawn_blocks, write_pages
from cvkit.reporting.report_format import Block, Code, Section, Table, Text
from cvkit.runs.group import Folds, Group
from cvkit.runs.spread import Spread
from cvkit.system.text import duration, plural
from cvkit.visualizers.draw import not_among

# Sections with pictures; the one that names none has those that are asked for besides.
_PICTURES = {"Classes": ["per_class", "confusion", "roc", "pr"],
             "Misclassified images": ["misclassified", "top_losses", "label_errors"],
             "Wrong under all seeds": ["wrong_in_all"], "Confidence": ["calibration"],
             "Training": ["curve_band"], "Further pictures": [], "Data": ["dataset", "duplicates"]}


def write_group_report(group: Group, nodes: Sequence[Any] = (),
                       folder: Path | None = None) -> list[Path]:
    """Write `report.html` and `README.md` with `images/` of a group of runs.

    Args:
        group: of seeds or folds.
        nodes: visualizers with arguments, before the usual.
        folder: where to; None for the group's.

    Returns:
        The two files.

    Raises:
        UserError: as of `write_report`; or the group has a single run.
    """
    if len(group.runs) < 2:
        raise RunError(f"{group.folder} has one finished run, of which there is nothing to tell "
                       "in common", hint=f"Report that: --run {group.runs[0].folder}")
    for run in group.runs:
        run.refuse_links()
    # Each fold has training images of its own.
    of_folds = ["misclassified", "label_errors", "confusion", "per_class", "calibration"]
    usual = ["curve_band", *(of_folds if isinstance(group, Folds)
                             else ["wrong_in_all", "dataset", "duplicates"])]
    nodes = [*nodes, *not_among(nodes, [{NAME: name} for name in usual])]
    pictures = drawn_blocks(group, nodes, group.runs[0].predictions.classes)
    known = {name for names in _PICTURES.values() for name in names}
    further = [name for name in pictures if name not in known]
    content: dict[str, Sequence[Block]] = {"Results": _results(group), **{
        title: [block for name in names or further for block in pictures.get(name, [])]
        for title, names in _PICTURES.items()}}
    content["Config"] = [Code((group.runs[0].folder / "config.yaml").read_text(encoding="utf-8"),
                              "yaml", f"Config of {group.runs[0].folder.name}")]
    sections = [Section(title, blocks) for title, blocks in content.items() if blocks]
    accuracy = Spread.of(group.values["accuracy"]).in_words("accuracy")[0]
    return write_pages(folder or group.folder, "report",
                       f"{group.title}: {accuracy} test accuracy", sections)


def _results(group: Group) -> list[Block]:
    head, *rows = group.rows()
    names = list(group.values)
    seconds = [run.seconds for run in group.runs]
    each = [[run.folder.name, *(Spread.of([group.values[name][place]]).in_words(name)[0]
                                for name in names), duration(seconds[place])]
            for place, run in enumerate(group.runs)]
    words = [_meaning(group)]
    if group.unfinished:
        words.append(f"Not finished, and left out: {', '.join(group.unfinished)}.")
    words.append(f"Trained in {duration(sum(seconds))}, {duration(statistics.mean(seconds))} "
                 "each.")
    return [Text(" ".join(words)), Table(head, rows),
            Table([f"{group.of}", *names, "training time"], each)]


def _meaning(group: Group) -> str:
    """Return what the numbers are of, in words."""
    if not isinstance(group, Folds):
        return (f"{plural(len(group.runs), 'run')} of one config with other seeds, tested on the "
                "same images. The deviation is that of single runs; the interval is that of their "
                "mean (Student's t).")
    try:
        said = group.predictions
    except UserError as error:
        return ("The folds that are finished, each tested on its own part of the images: "
                f"{error.problem}.")
    is_repeated = len(group.runs) > len({run.config.DATA.FOLD for run in group.runs})
    return (f"{group.counted[0].upper()}{group.counted[1:]}, each fold tested on its own part of "
            f"the images. Together they tested {len(said.true):,} images, each by "
            f"{'models that were' if is_repeated else 'a model that was'} not trained on it"
            f"{' (the mean of their probabilities)' * is_repeated}: {100 * said.accuracy:.2f} % "
            "are right. Folds share most of their training images, so their deviation says little "
            "of other images.")
