"""What TensorBoard shows of a run."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from cvkit.errors import UserError
from cvkit.registry import NAME, WRITERS
from cvkit.reporting.reporter import Reporter
from cvkit.runs.folder import Run
from cvkit.runs.metrics_file import read_metrics
from cvkit.training.state import TrainingState

# TensorBoard gets the pictures of these visualizers.
PICTURES = ("misclassified", "cam")


@WRITERS.register("tensorboard")
class TensorBoard(Reporter):
    """What `tensorboard --logdir runs` shows, where a run is called `<config>/<start time>`.

    Scalars after each epoch, over epochs. At the end `Run.hyperparameters`, which the tab HPARAMS
    lists beside the last scalars; the galleries `misclassified` and `cam`, as the config lists
    them under VISUALIZERS; and the model's graph. Of what cannot be drawn or traced a line is
    printed.

    Args:
        folder: the run folder.
        pictures: whether to draw the galleries.
        graph: whether to trace the model.
    """

    def __init__(self, folder: str, pictures: bool = True, graph: bool = True):
        from torch.utils.tensorboard import SummaryWriter

        self._pictures, self._graph = pictures, graph
        # A resumed run is written anew, or what it had written after the epoch that it goes on
        # from, and its earlier end, would be shown as well.
        for path in Path(folder).glob("events.out.tfevents.*"):
            path.unlink()
        # It is Any, as torch says of its file writer that it is None.
        self._writer: Any = SummaryWriter(folder)
        for values in read_metrics(Path(folder)):
            self._add(values["epoch"], values)

    def epoch(self, state: TrainingState, values: dict[str, Any]) -> None:
        self._add(state.epoch, values)

    def _add(self, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if name != "epoch" and isinstance(value, (int, float)) and not isinstance(value, bool):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, state: TrainingState, run: Run) -> None:
        try:
            self._add_end(run)
        finally:
            self._writer.close()

    def _add_end(self, run: Run) -> None:
        predictions = run.predictions
        # Where the test set was watched, each epoch has its values already.
        if run.monitored != "test":
            self._add(predictions.epoch, {"test/loss": predictions.loss,
                                           "test/accuracy": predictions.accuracy})
        self._add_hyperparameters(run.hyperparameters)
        count: Counter[str] = Counter()
        for node in run.config.VISUALIZERS if self._pictures else ():
            if node[NAME] in PICTURES:
                self._add_pictures(run, node, predictions.epoch, count)
        if self._graph:
            self._add_graph(run)

    def stopped(self, state: TrainingState, error: BaseException) -> None:
        self._writer.close()

    def _add_hyperparameters(self, values: dict[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        # Of truth values torch would make numbers.
        words = {key: str(value).lower() if isinstance(value, bool) else value
                 for key, value in values.items()}
        # Left out is the record of which hyperparameters and metrics there are: TensorBoard would
        # take that of one run for all. Without any, it goes by the runs themselves.
        _, start, end = hparams(words, {})
        self._writer.file_writer.add_summary(start)
        self._writer.file_writer.add_summary(end)

    def _add_pictures(self, run: Any, node: Any, step: int, count: Counter[str]) -> None:
        """Draw a node: as `cam`, or `cam_LayerCAM` with an argument; further ones as `cam_2`."""
        words = [node[NAME]]
        for key, value in node.items():
            if key not in (NAME, "count"):
                words += value if isinstance(value, (list, tuple)) else [value]
        tag = "_".join(map(str, words))
        import numpy as np
        from PIL import Image

        from cvkit.visualizers.draw import figures_of

        try:
            figures = figures_of(run, node)
        except UserError as error:
            print(f"TensorBoard has no {tag}: {error.problem}")
            return
        for figure in figures:
            count[tag] += 1
            name = tag if count[tag] == 1 else f"{tag}_{count[tag]}"
            png = io.BytesIO()
            figure.savefig(png, format="png")
            pixels = np.asarray(Image.open(png).convert("RGB"))
            self._writer.add_image(name, pixels, step, dataformats="HWC")

    def _add_graph(self, run: Any) -> None:
        import torch

        image = run.loaders.test.take([0]).images
        # torch prints what it then raises, and warns of what only matters to a deployed trace.
        # Sizes are tensors to a traced model, which its own code may refuse in its own ways.
        try:
            with (torch.no_grad(), warnings.catch_warnings(),
                  contextlib.redirect_stdout(io.StringIO())):
                warnings.simplefilter("ignore")
                self._writer.add_graph(run.model, image)
        except (RuntimeError, TypeError, ValueError, LookupError,
                torch.jit.TracingCheckError) as error:
            reason = str(error).strip().split("\n")[0]
            print(f"TensorBoard has no graph: the model cannot be traced, "
                  f"{type(error).__name__}: {reason[:200]}")
