"""What TensorBoard shows of a run."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

from cvkit.registry import WRITERS
from cvkit.reporting.reporter import Reporter
from cvkit.reporting.tracking import last_scalars, parameters, pictures_of, scalars
from cvkit.runs.folder import Run
from cvkit.runs.metrics_file import read_metrics
from cvkit.training.state import TrainingState


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
        for name, value in scalars(values).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, state: TrainingState, run: Run) -> None:
        try:
            self._add_end(run)
        finally:
            self._writer.close()

    def _add_end(self, run: Run) -> None:
        epoch = run.predictions.epoch
        self._add(epoch, last_scalars(run))
        # Of truth values torch would make numbers.
        self._add_hyperparameters(parameters(run))
        if self._pictures:
            import numpy as np

            for name, image in pictures_of(run, "TensorBoard"):
                self._writer.add_image(name, np.asarray(image), epoch, dataformats="HWC")
        if self._graph:
            self._add_graph(run)

    def stopped(self, state: TrainingState, error: BaseException) -> None:
        self._writer.close()

    def _add_hyperparameters(self, values: dict[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        # Left out is the record of which hyperparameters and metrics there are: TensorBoard would
        # take that of one run for all. Without any, it goes by the runs themselves.
        _, start, end = hparams(values, {})
        self._writer.file_writer.add_summary(start)
        self._writer.file_writer.add_summary(end)

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
