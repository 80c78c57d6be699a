"""What programs that track experiments are told of a run, and a reporter that may fail to."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cvkit.config import Config
from cvkit.errors import UserError
from cvkit.registry import NAME
from cvkit.reporting.reporter import Reporter
from cvkit.runs.folder import Run
from cvkit.runs.metrics_file import read_metrics
from cvkit.system.files import write_whole
from cvkit.system.log import LOG
from cvkit.training.state import TrainingState

# The pictures of these visualizers are kept.
_PICTURES = ("misclassified", "cam")
_FILES = ("config.yaml", "environment.txt", "train.log", "metrics.jsonl", "predictions.npz")


def scalars(values: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of an epoch by name, without which epoch it is."""
    return {name: value for name, value in values.items() if name != "epoch"
            and isinstance(value, (int, float)) and not isinstance(value, bool)}


def parameters(run: Run) -> dict[str, int | float | str]:
    """Return the hyperparameters, truth values as a config has them."""
    return {key: str(value).lower() if isinstance(value, bool) else value
            for key, value in run.hyperparameters.items()}


def last_scalars(run: Run) -> dict[str, float]:
    """Return loss and accuracy of the test, unless each epoch has them."""
    predictions, part = run.predictions, "test_tta" if run.config.TTA else "test"
    return {} if run.monitored == part else {f"{part}/loss": predictions.loss,
                                             f"{part}/accuracy": predictions.accuracy}


def pictures_of(run: Run, title: str) -> Iterator[tuple[str, Any]]:
    """Yield name (`cam_LayerCAM`, `cam_2`) and PIL image of the galleries that the config lists.

    Args:
        title: who gets them; a line says which it has to do without, and why.
    """
    nodes = [node for node in run.config.VISUALIZERS if node[NAME] in _PICTURES]
    if not nodes:
        return
    from PIL import Image

    from cvkit.visualizers.draw import draw_all

    for drawn in draw_all(run, nodes):
        if isinstance(drawn.result, UserError):
            print(f"{title} has no {drawn.name}: {drawn.result.problem}")
            continue
        png = io.BytesIO()
        drawn.result.savefig(png, format="png")
        yield drawn.name, Image.open(png).convert("RGB")


class Tracker(Reporter):
    """A reporter to another program, whose failures cost a line and never the training.

    After the first failure it waits for the end, where it makes up for what it left out. One that
    is derived from it has the five methods that raise NotImplementedError here.

    Args:
        folder: the run folder; the id that the other program gave the run is kept in it.
        config: of the training.
        pictures: whether to draw the galleries.
        checkpoint: whether the weights whose results count are among the files.

    Attributes:
        title, package: what it is called, in words and to import it.
    """

    title, package = "", ""

    def __init__(self, folder: str, config: Config, pictures: bool = True,
                 checkpoint: bool = True):
        self.folder, self.config = Path(folder).resolve(), config
        place = Path(config.OUTPUT_DIR).resolve()
        # Of a group or a sweep that says which.
        self.name = (self.folder.relative_to(place).as_posix()
                     if self.folder.is_relative_to(place) else f"{config.name}/{self.folder.name}")
        self._pictures, self._checkpoint = pictures, checkpoint
        self._is_open = self._has_failed = False

    @property
    def run(self) -> Run:
        """What the folder has so far."""
        return Run(self.folder)

    def start(self, known: str | None, epoch: int) -> tuple[str, int]:
        """Begin a run, or go on with one.

        Args:
            known: the id of the one that the run folder had before.
            epoch: which the training goes on from; what is known of later ones does not count.

        Returns:
            Its id, and the last epoch that it has.
        """
        raise NotImplementedError

    def add(self, epoch: int, values: dict[str, float]) -> None:
        """Keep numbers of an epoch."""
        raise NotImplementedError

    def add_pictures(self, epoch: int, pictures: dict[str, Any]) -> None:
        """Keep pictures, of PIL, of what the model says after an epoch."""
        raise NotImplementedError

    def add_files(self, names: list[str]) -> None:
        """Keep files of the run folder."""
        raise NotImplementedError

    def close(self, error: BaseException | None) -> None:
        """End the run; `error` is what stopped it."""
        raise NotImplementedError

    # -- as a reporter -----------------------------------------------------------------

    def begin(self, state: TrainingState) -> None:
        with self._failing_once():
            self._take_up(state.epoch)

    def epoch(self, state: TrainingState, values: dict[str, Any]) -> None:
        # Each further try may wait for an answer.
        if not self._has_failed:
            with self._failing_once():
                self.add(state.epoch, scalars(values))

    def stopped(self, state: TrainingState, error: BaseException) -> None:
        self._close(error)

    def end(self, state: TrainingState, run: Run) -> None:
        try:
            self._add_end(state, run)
        except KeyboardInterrupt as error:
            self._close(error)
            raise
        self._close(None)

    def _add_end(self, state: TrainingState, run: Run) -> None:
        with self._failing_once():
            if self._has_failed:
                self._take_up(state.epoch)
            epoch, last = run.predictions.epoch, last_scalars(run)
            if last:
                self.add(epoch, last)
            if self._pictures:
                self.add_pictures(epoch, dict(pictures_of(run, self.title)))
            counts = f"checkpoints/{'last' if run.monitored == 'test' else 'best'}.pt"
            names = [*_FILES, *([counts] if self._checkpoint else [])]
            self.add_files([name for name in names if (run.folder / name).is_file()])

    def _take_up(self, epoch: int) -> None:
        """Open the run, and add the epochs that it lacks."""
        path = self.folder / f"{self.package}_id.txt"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        known, last = self.start(text if re.fullmatch(r"[\w-]+", text) else None, epoch)
        self._is_open = True
        write_whole(path, known)
        for values in read_metrics(self.folder):
            if values["epoch"] > last:
                self.add(values["epoch"], scalars(values))

    def _close(self, error: BaseException | None) -> None:
        if self._is_open:
            with self._failing_once():
                self.close(error)

    @contextmanager
    def _failing_once(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._has_failed:
                reason = (str(error).strip().splitlines() or [""])[0][:200]
                LOG.info(f"note       {self.title} failed, and the training goes on without it: "
                         f"{type(error).__name__}: {reason}")
            self._has_failed = True
