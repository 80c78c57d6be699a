"""The report of a run: everything a hand-in asks for, as one HTML page and as a README."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cvkit
from cvkit.data.duplicates import DUPLICATES
from cvkit.deployment.page import PageModel, page_model
from cvkit.errors import RunError
from cvkit.models import parameters_in_words
from cvkit.registry import MODELS, NAME
from cvkit.reporting.group_report import write_group_report
from cvkit.reporting.pages import drawn_blocks, write_pages
from cvkit.reporting.report_format import (
    Block,
    Code,
    Link,
    Model,
    Section,
    Table,
    Text,
    UserMarkdown,
)
from cvkit.reporting.requirements import check_requirements, summary
from cvkit.runs.experiment import Drawable
from cvkit.runs.folder import Run
from cvkit.runs.group import Group
from cvkit.runs.spread import Spread
from cvkit.system.command import SOURCE, command
from cvkit.system.environment import git_facts
from cvkit.system.text import and_more, duration, plural
from cvkit.visualizers.draw import not_among, other_images
from cvkit.visualizers.flags import same_images

# Sections with pictures, in the order in which a reader asks: on which classes it is good, what is
# wrong, how far it can be believed, where it looks, how it was trained, of what, and what it is.
# The one that names none has the config's others.
_PICTURES = {
    "Classes": ["per_class", "confusion", "roc", "pr", "embedding"],
    "Misclassified images": ["misclassified", "top_losses", "label_errors"],
    "Confidence and robustness": ["calibration", "robustness"],
    "Where the model looked": ["cam", "cam_matrix", "cam_average", "cam_faithfulness"],
    "Training": ["curves", "lr_finder"],
    "Further pictures": [],
    "Data": ["dataset", "duplicates"],
    "What the model receives": ["samples", "augmentations"],
    "Model": ["architecture", "summary", "filters", "feature_maps"],
}
# These are drawn of every run; the others take long, so a config or a flag names them.
_ALWAYS: tuple[dict[str, Any], ...] = (
    *({NAME: name} for name in (
        "per_class", "confusion", "pr", "embedding", "misclassified", "top_losses",
        "calibration")),
    # Enough for the mean.
    {NAME: "robustness", "count": 200},
    *({NAME: name} for name in (
        "cam", "cam_average", "curves", "lr_finder", "dataset", "duplicates", "samples",
        "architecture", "summary")))
_GIT = {"git": r"[0-9a-f]{4,64}(-dirty)?", "repository": r"[\w/.~][\w/.~:@%+ -]*"}


def write_report(run: Drawable, nodes: Sequence[Any] = (),
                 folder: Path | None = None, with_model: bool = False) -> list[Path]:
    """Write `report.html`, which holds its pictures, and `README.md` with `images/`.

    What you write into `notes.md` in the run folder (Markdown) comes first in both.

    Args:
        run: a finished run, or a group of them.
        nodes: visualizers with arguments, before those of the run's config and the defaults.
        folder: where to; None for the run folder.
        with_model: whether `report.html` holds the model too, and names pictures that are given to
            it. Its runtime is downloaded once.

    Returns:
        The two files.

    Raises:
        UserError: no finished run; data, checkpoint or predictions are absent or damaged; the
            folder cannot be written; the model cannot run in a page. A single picture that cannot
            be drawn is named in the report.
    """
    if isinstance(run, Group):
        return write_group_report(run, nodes, folder)
    if not isinstance(run, Run):
        raise RunError(f"a report is of one finished run; this is {run.label}",
                       hint=run.advice)
    # A link may lead to any file, and what it holds would go into what one hands in.
    run.refuse_links()
    if not run.metrics:
        raise RunError(f"{run.folder} has no finished epoch, so there is nothing to report")
    # If one of them is missing that is told now, before anything is drawn.
    run.predictions, run.model, run.data  # noqa: B018
    folder = folder or run.folder
    model = page_model(run) if with_model else None
    pictures = drawn_blocks(run, _choose(run, nodes), run.predictions.classes)
    sections = _sections(run, pictures, model)
    title = f"{run.config.name}: {100 * run.predictions.accuracy:.2f} % test accuracy"
    return write_pages(folder, "report", title, sections)


def _choose(run: Run, nodes: Sequence[Any]) -> list[Any]:
    """Return what is drawn: of each visualizer what flags say, else the config, else the usual."""
    chosen = list(nodes)
    for more in (run.config.VISUALIZERS, [node for node in _ALWAYS if not run.missing(node)]):
        gallery = next((node for node in chosen if node[NAME] == "misclassified"), None)
        chosen += [same_images(gallery, node) for node in not_among(chosen, more)]
    return chosen


def _sections(run: Run, pictures: dict[str, list[Block]],
              model: PageModel | None) -> list[Section]:
    facts = _facts(run)
    known = {name for names in _PICTURES.values() for name in names}
    further = [name for name in pictures if name not in known]
    drawn = {title: [block for name in names or further for block in pictures.get(name, [])]
             for title, names in _PICTURES.items()}
    drawn["Model"] += _model_code(run)
    content: dict[str, Sequence[Block]] = {
        "Notes": _notes(run), "Try it": [_model(run, model)] if model else [],
        "Results": _results(run), "Requirements": _requirements(run), **drawn,
        "Training log": [Code(_read(run, "train.log"))], "Config": _repeat(run, facts),
        "Environment": [Code(_read(run, "environment.txt"))],
        "Hand-in": [_handed_in(run, facts)]}
    return [Section(title, blocks) for title, blocks in content.items() if blocks]


def _model(run: Run, model: PageModel) -> Model:
    """Return the model as a part of the page, with what is to be known about its answers."""
    checked, classes = model.exported, model.facts["classes"]
    views = len(run.config.TTA) + 1
    by_views = f" by the mean of {views} views of each; here a picture is taken as it is"
    return Model(
        f"Ask the model yourself: {run.config.MODEL[NAME]} of "
        f"{parameters_in_words(run.model)}, trained to tell {plural(len(classes), 'class')} "
        f"apart; {100 * run.predictions.accuracy:.2f} % of the test images are named rightly"
        f"{by_views if views > 1 else ''}.",
        f"It knows these classes alone, and names one whatever the picture shows: "
        f"{and_more(classes, 50)}. Weights are in {model.precision}: over "
        f"{plural(checked.images, 'image')} the largest difference from a probability in fp32 is "
        f"{checked.difference:.2g}. A picture that is resized first, here in "
        "your browser, may be 0.01 off.",
        model.facts, model.files, model.script)


def _requirements(run: Run) -> list[Block]:
    """Return what the config's REQUIRE demands, each with what was found."""
    demands = check_requirements(run.config, run)
    if not demands:
        return []
    sentence = summary(demands)
    return [Text(f"{sentence[0].upper()}{sentence[1:]}."),
            Table(["demand", "verdict", "found"],
                  [[demand.text, demand.state, demand.found or ""] for demand in demands])]


def _results(run: Run) -> list[Block]:
    last, best, split = run.metrics[-1], run.best, run.monitored
    predictions = run.predictions
    other, warning = run.other_best(predictions), other_images(run)

    def of(part: str, epoch: dict[str, Any]) -> dict[str, Any]:
        return {key.removeprefix(f"{part}/"): value for key, value in epoch.items()
                if key.startswith(f"{part}/")}

    def shown(name: str, value: Any) -> str:
        if not isinstance(value, (int, float)):
            return "" if value is None else str(value)
        return Spread.of([value]).in_words(name)[0]

    columns = {f"{part}, epoch {last['epoch']}": of(part, last) for part in ("train", split)}
    names = dict.fromkeys(name for values in columns.values() for name in values)
    if best["epoch"] != last["epoch"]:
        columns |= {f"{part}, best epoch ({best['epoch']})": of(part, best)
                    for part in ("train", split)}
    if split == "val" or run.config.TTA:
        # Older versions kept no metrics of the test.
        columns[f"test, epoch {predictions.epoch}{', TTA' if run.config.TTA else ''}"] = {
            **predictions.metrics, "loss": predictions.loss, "accuracy": predictions.accuracy}
    rows = [[name, *(shown(name, values.get(name)) for values in columns.values())]
            for name in names]
    watched = ("the test set was watched during training, so these are the last epoch's"
               if split == "test" else "those of the epoch that was best on validation images")
    return [
        Text(f"Test accuracy {100 * predictions.accuracy:.2f} %: {predictions.correct:,} of "
             f"{plural(len(predictions.true), 'image')}, loss {predictions.loss:.4f}, "
             f"{predictions.place} ({watched})."),
        Table(["", *columns], rows),
        *([Text(f"{other}.")] if other else []),
        *_twins(run),
        *([Text(f"{warning[0].upper()}{warning[1:]}.")] if warning else []),
        Text(f"Best is the epoch with the best {split} {run.config.TRAIN.MONITOR}. Epochs trained: "
             f"{last['epoch']} of {run.config.TRAIN.EPOCHS}, in {duration(run.seconds)}. "
             f"Parameters: {parameters_in_words(run.model, unit='')}."),
    ]


def _twins(run: Run) -> list[Block]:
    """Return how many test images were found among those of the training, when it began."""
    lines = [line for line in _read(run, DUPLICATES).splitlines() if line.startswith("test ")]
    return [Text(f"{len(lines):,} of the test images {'is a' if len(lines) == 1 else 'are'} "
                 f"training image{'s' * (len(lines) > 1)} too, or nearly, as {DUPLICATES} lists: "
                 "the accuracy counts what was learned by heart.")] if lines else []


def _model_code(run: Run) -> list[Block]:
    """Return the source of the model: its file, or of a library's model the class."""
    try:
        return [Code(inspect.getsource(_model_source(run)), "python", "Model code")]
    except (OSError, TypeError):
        return [Text("The model's source is not in a file.")]


def _model_source(run: Run) -> Any:
    entry = inspect.unwrap(MODELS.get(run.config.MODEL[NAME]))
    own = run.config.MODEL[NAME] in MODELS.own
    return inspect.getmodule(entry) if own else type(run.model)


def _repeat(run: Run, facts: dict[str, str]) -> list[Block]:
    lines = []
    if facts.get("repository"):
        folder = facts["repository"].rsplit("/", 1)[-1]
        lines += [f"git clone {shlex.quote(facts['repository'])}", f"cd {shlex.quote(folder)}"]
        if facts.get("git"):
            lines.append(f"git checkout {facts['git'].removesuffix('-dirty')}")
    config = f"{run.config.name}.yaml"
    train = command("train")
    is_clone = train.startswith("python") or _has_cvkit(facts)
    lines += [f"pip install {'-e .' if is_clone else f'git+{SOURCE}'}",
              f"{train} {shlex.quote(config)}"]
    own = ("" if not run.config.IMPORTS else " Set IMPORTS to where you keep "
           f"{', '.join(Path(name).name for name in run.config.IMPORTS)}.")
    return [Text(f"To repeat the run, save what follows as {config}.{own} Then:"),
            Code("\n".join(lines), "bash"), Code(_read(run, "config.yaml"), "yaml")]


def _has_cvkit(facts: dict[str, str]) -> bool:
    """Return whether a run was made in a clone of cvkit; it may have a repository of its own."""
    root = Path(cvkit.__file__).resolve().parents[1]
    # An installation may lie in a virtual environment within another repository.
    own = git_facts(root).get("repository") if (root / "pyproject.toml").is_file() else None
    return own is not None and own == facts.get("repository")


def _handed_in(run: Run, facts: dict[str, str]) -> Table:
    """Return where each part of a hand-in is found."""
    repository, commit = facts.get("repository", ""), facts.get("git", "").removesuffix("-dirty")
    root = Path(cvkit.__file__).resolve().parents[1]
    has_cvkit = _has_cvkit(facts)

    def place(path: Path, anchor: str) -> Link:
        inside = path.is_relative_to(root)
        name = path.relative_to(root).as_posix() if inside else path.name
        if inside and has_cvkit and repository.startswith("https://github.com/") and commit:
            return Link(name, f"{repository}/blob/{commit}/{name}")
        return Link(name, anchor)

    source = _model_source(run)
    model_file = Path(getattr(inspect.getmodule(source), "__file__", None) or "model.py").resolve()
    return Table(["part", "where"], [
        ["Model code", place(model_file, "#model")],
        ["Utilities", place(root / "cvkit", "#environment")],
        ["Main code", place(root / "cvkit" / "cli" / "train.py", "#config")],
        ["Config", Link("config", "#config")],
        ["Training log", Link("log", "#training-log")],
        ["Misclassified images", Link("gallery", "#misclassified-images")],
        ["Class activation maps", Link("gallery", "#where-the-model-looked")],
        ["Repository", Link(repository, repository) if re.match("https?://", repository) else
         repository or "not recorded: training was not started in a git clone that has a remote"],
        ["README", Link("README.md", "README.md")],
    ])


def _notes(run: Run) -> list[Block]:
    """Return the user's own words, from `notes.md` in the run folder."""
    name = "notes.md"
    return [UserMarkdown(_read(run, name))] if (run.folder / name).is_file() else []


def _facts(run: Run) -> dict[str, str]:
    """Return the lines of environment.txt by what stands before the colon.

    Those that become commands to repeat are left out if they are not of the form that git gives.
    """
    pairs = (line.partition(": ") for line in _read(run, "environment.txt").splitlines())
    return {key: value for key, _, value in pairs
            if key not in _GIT or re.fullmatch(_GIT[key], value)}


def _read(run: Run, name: str) -> str:
    path = run.folder / name
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else f"no {name}"
