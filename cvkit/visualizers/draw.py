"""Drawing several pictures and saving them."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tqdm.auto import tqdm

from cvkit.config import load_config, shipped
from cvkit.errors import ConfigError, RunError, UserError, raise_together
from cvkit.evaluation.run_evaluation import OTHER_IMAGES, evaluate
from cvkit.registry import NAME, VISUALIZERS
from cvkit.registry.user_code import import_user_code
from cvkit.runs.compare import Runs
from cvkit.runs.experiment import Drawable, Experiment
from cvkit.runs.finding import is_group, members_of, newest_group
from cvkit.runs.folder import MAY_CHANGE, Run, open_run, output_dir_of, refuse_links
from cvkit.runs.group import Group, open_group
from cvkit.system.files import user_path
from cvkit.system.text import escape_controls
from cvkit.visualizers.drawing import missing_letters_told_once
from cvkit.visualizers.flags import arguments_of

# TTA changes what a run says of the test images, and so all that is drawn of that.
_MAY_DRAW = (*MAY_CHANGE, "TTA")
# Bytes of the name of a picture's file, without its ending.
_LONGEST = 100


@dataclass(frozen=True)
class Drawn:
    """What became of a node: its visualizer, a name for the file, and the figure or why none."""

    visualizer: str
    name: str
    result: Figure | UserError


def open_subject(runs: Sequence[str], words: Sequence[str]) -> Drawable:
    """Open what a command names, and say which: runs, a config, or else the newest run.

    Args:
        runs: run folders.
        words: a config, if any, then KEY VALUE pairs.

    Raises:
        UserError: it is not there, or wrong.
    """
    words = list(words)
    if words and os.path.isfile(os.path.join(words[0], "config.yaml")):
        raise ConfigError(f"{words[0]} is a run folder", hint=f"Name it with --run {words[0]}")
    if words and words[0].replace("-", "_") in VISUALIZERS.own:
        raise ConfigError(f"{words[0]} is a picture",
                          hint=f"Write --{words[0].replace('_', '-')}")
    # One of cvkit's own goes by its name; keys begin with capital letters.
    has_config = bool(words) and (shipped.is_config(words[0])
                                  or re.fullmatch(r"[a-z]\w*", words[0]) is not None)
    if has_config and runs:
        raise ConfigError(f"both a run and the config {words[0]} are named",
                          hint="Name one of them.")
    if has_config:
        subject: Drawable = Experiment(load_config(words[0], words[1:]))
    elif len(runs) == 1 and is_group(user_path(runs[0])):
        subject = _opened_group(runs[0], words)
    elif len(runs) > 1:
        subject = Runs([open_run(run, overrides=words, may_change=_MAY_DRAW) for run in runs])
    else:
        folder = output_dir_of(words)
        group = newest_group(folder) if not runs else None
        subject = _opened_group(group, words) if group else open_run(
            runs[0] if runs else None, folder, overrides=words, may_change=_MAY_DRAW)
    import_user_code(list(subject.config.IMPORTS), where=subject.config.where("IMPORTS"))
    for run in getattr(subject, "runs", []):
        print(f"run {run.folder}")
        if "TTA" in run.changed:
            run.shown = evaluate(run)
    return subject


def _opened_group(folder: str | Path, words: Sequence[str]) -> Group:
    if words:
        raise ConfigError(f"{words[0]} cannot be set for a group of runs",
                          hint=f"Name one of them: --run {members_of(folder)[0]}")
    return open_group(folder)


def choose_nodes(subject: Drawable, flagged: Sequence[Any], everything: bool) -> list[Any]:
    """Return what to draw: what flags say, else what the config lists, or all there is.

    Of what flags do not say, that is left out, with a word, which a run or an argument lacks for.

    Args:
        flagged: nodes from flags.
        everything: besides these, what the config lists and all other visualizers.

    Raises:
        ConfigError: no flags, and the config lists nothing.
    """
    if flagged and not everything:
        return list(flagged)
    nodes = [*flagged, *not_among(flagged, subject.config.VISUALIZERS)]
    if everything:
        nodes += not_among(nodes, [{NAME: name} for name in VISUALIZERS.own])
    if not nodes:
        raise ConfigError(
            f"{subject.config.name} lists no VISUALIZERS",
            hint="Say what to draw: --curves --misclassified 10 --cam\n  --list shows what there "
                 "is, --all draws everything.")
    possible = []
    for node in nodes:
        unset = [key for key, parameter in arguments_of(node[NAME]).items()
                 if parameter.default is parameter.empty and key not in node]
        needed = subject.missing(node) or ", ".join(unset)
        if needed:
            print(f"left out: {node[NAME]}, which needs {needed}")
        else:
            possible.append(node)
    return possible


def not_among(nodes: Iterable[Any], more: Iterable[Any]) -> list[Any]:
    """Return those of more nodes whose visualizers the first ones do not name."""
    named = {node[NAME] for node in nodes}
    return [node for node in more if node[NAME] not in named]


def draw_all(subject: Drawable, nodes: Iterable[Any]) -> Iterator[Drawn]:
    """Draw one node after the other; yield each figure, or why there is none.

    Raises:
        ConfigError: a node's name or arguments are wrong; nothing has been drawn then.
    """
    nodes = list(nodes)
    count: Counter[str] = Counter()
    are_of_tta = any(run.shown is not None for run in getattr(subject, "runs", []))
    for node in nodes:
        VISUALIZERS.check(node)
    for node in tqdm(nodes, desc="Drawing", unit="picture", delay=2, disable=None, leave=False):
        name = file_name(node) + "_tta" * are_of_tta
        try:
            figures = figures_of(subject, node)
        except UserError as error:
            yield Drawn(node[NAME], name, error)
            continue
        for figure in figures:
            count[name] += 1
            yield Drawn(node[NAME], name if count[name] == 1 else f"{name}_{count[name]}", figure)


def figures_of(subject: Drawable, node: Any) -> list[Figure]:
    """Return what a visualizer draws as a list.

    Raises:
        UserError: as `Drawable.draw`, or it is no figure.
    """
    drawn: Any = subject.draw(node)
    figures = list(drawn) if isinstance(drawn, (list, tuple)) and drawn else [drawn]
    for figure in figures:
        if not isinstance(figure, Figure):
            raise RunError(f"visualizer {node[NAME]} returned {type(figure).__name__}, not a "
                           "matplotlib figure", hint="Is a return missing?")
    return figures


def file_name(node: Any) -> str:
    """Return what a picture's file is called: its visualizer and how it differs from the usual.

    A CAM by another method or of one class is another picture, not a newer one: `cam_LayerCAM`,
    `misclassified_cat_dog`. How many images there are makes no difference.
    """
    words, left_out = [node[NAME]], []
    for key, parameter in arguments_of(node[NAME]).items():
        value = node.get(key, parameter.default)
        if key == "count":
            continue
        if value == parameter.default:
            left_out.append(parameter.annotation)
            continue
        # Else it would stand for one before it that is like it, as a true and a predicted class.
        words += [key] * (parameter.annotation in left_out)
        words += value if isinstance(value, (list, tuple)) else [value]
    name = re.sub(r"[^\w.-]+", "-", "_".join(map(str, words)))
    # File systems count bytes.
    if len(name.encode()) > _LONGEST:
        ending = hashlib.sha1(name.encode()).hexdigest()[:8]
        name = f"{name.encode()[:_LONGEST - 9].decode(errors='ignore')}_{ending}"
    return name


def save_all(subject: Drawable, nodes: Iterable[Any], folder: Path | None = None,
             ending: str = "png", dpi: int = 150) -> list[Path]:
    """Draw nodes into files of a folder and print what is where; tables also as text.

    Args:
        folder: None for the subject's own, see `visuals_folder`.
        ending: png, svg or pdf.
        dpi: dots per inch of a png.

    Raises:
        UserError: something could not be drawn; what could be has been saved by then.
        RunError: the folder cannot be written.
    """
    if not 10 <= dpi <= 1200:
        raise ConfigError(f"--dpi is 10 to 1200, not {dpi}")
    folder = folder or visuals_folder(subject)
    saved: list[Path] = []
    problems: dict[str, UserError] = {}
    for drawn in draw_all(subject, nodes):
        figure = drawn.result
        if isinstance(figure, UserError):
            problems[str(figure)] = figure
            continue
        path = folder / f"{drawn.name}.{ending}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with missing_letters_told_once():
                figure.savefig(path, dpi=dpi)
            for form, kind in (("table", "txt"), ("csv", "csv")):
                text = getattr(figure, form, "")
                if text:
                    path.with_name(f"{drawn.name}.{kind}").write_text(
                        escape_controls(text, keep="\n\t") + "\n", encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}",
                           hint="Choose another folder with --out.") from None
        caption = escape_controls(getattr(figure, "caption", ""))
        tqdm.write(f"{path}\n    {caption}".rstrip())
        saved.append(path)
    if warning := other_images(subject):
        tqdm.write(f"warning    {warning}")
    raise_together(list(problems.values()))
    return saved


def other_images(subject: Drawable) -> str:
    """Return a warning where runs have other training images now; empty where none were read."""
    are_other = any("data" in vars(run) and run.changes_since_training()[0]
                    for run in getattr(subject, "runs", []))
    return OTHER_IMAGES if are_other else ""


def visuals_folder(subject: Drawable) -> Path:
    """Return where pictures are kept: in the run folder, or beside the runs of a config.

    Raises:
        RunError: links there would lead them elsewhere.
    """
    if isinstance(subject, Run):
        subject.refuse_links()
        return subject.folder / "visuals"
    if isinstance(subject, Group):
        refuse_links([subject.folder, *subject.folder.iterdir()])
        return subject.folder / "visuals"
    if isinstance(subject, Runs):
        folders = [run.folder.resolve() for run in subject.runs]
        first, second, *others = (f"{folder.parent.name}_{folder.name}" for folder in folders)
        rest = f"and_{len(others) + 1}_more" if others else second
        folder = subject.runs[0].folder.parent.parent / "compare" / f"{first}_{rest}"
        refuse_links([folder.parent, folder, *(folder.iterdir() if folder.is_dir() else ())])
        return folder
    return Path(subject.config.OUTPUT_DIR, subject.config.name, "visuals")
