"""Reporters: what happens besides training, after each epoch and at its end."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

from cvkit.config import Config
from cvkit.errors import ConfigError, where_in
from cvkit.registry import NAME, WRITERS
from cvkit.runs.folder import Run
from cvkit.training.state import TrainingState


class Reporter:
    """Is told how a training goes; of several processes, in the first.

    A reporter of your own is derived from this class, registered with `@WRITERS.register()` in a
    file that IMPORTS lists, and named under WRITERS; docs/add_your_own.md has examples. It is built
    with the facts that its constructor asks for: `folder`, of the run, and `config`. Each method
    here does nothing.
    """

    def begin(self, state: TrainingState) -> None:
        """Called once, before the first epoch of this session is trained."""

    def epoch(self, state: TrainingState, values: dict[str, Any]) -> None:
        """Called after each epoch, when it is saved.

        Args:
            state: `state.model` is what was trained, `state.evaluated_model` what was evaluated,
                `state.epoch` the number of finished epochs.
            values: as a line of metrics.jsonl: epoch, lr, train/loss, train/accuracy, test/… or
                val/… and so on.
        """

    def stopped(self, state: TrainingState, error: BaseException) -> None:
        """Called last, in the place of `end`, if the training stops before its end.

        Args:
            error: what stopped it, Interrupted if a signal asked for that.
        """

    def end(self, state: TrainingState, run: Run) -> None:
        """Called last, when the training has ended and its predictions are saved."""


class _Writer(Reporter):
    """A reporter of the form that versions before 0.2 had: write, finish and close."""

    def __init__(self, writer: Any):
        self._writer = writer

    def epoch(self, state: TrainingState, values: dict[str, Any]) -> None:
        self._writer.write(state.epoch, values)

    def stopped(self, state: TrainingState, error: BaseException) -> None:
        self._writer.close()

    def end(self, state: TrainingState, run: Run) -> None:
        try:
            self._writer.finish(run)
        finally:
            self._writer.close()


_CALLS = ("begin(state)", "epoch(state, values)", "stopped(state, error)", "end(state, run)")
_CALLS_BEFORE = ("write(step, values)", "finish(run)", "close()")


def refuse_other_reporters(config: Config) -> None:
    """Refuse classes that cannot be called as reporters are; functions are known once they ran.

    Raises:
        ConfigError: names the first call that one lacks, or the package.
    """
    for node in config.WRITERS:
        entry = WRITERS.get(node[NAME])
        package = getattr(entry, "package", "")
        if package and not _is_installed(package):
            raise ConfigError(f"writer {node[NAME]} needs {package}, which is not installed",
                              where_in(node, NAME), f"pip install {package}")
        if inspect.isclass(entry):
            WRITERS.refuse_without(node, entry, *_calls_of(entry))


def add_reporters(reporters: list[Reporter], config: Config, folder: Path,
                  state: TrainingState) -> None:
    """Add the reporters that a config names under WRITERS.

    Args:
        reporters: cvkit's own; all are told that the training stopped if one cannot be added.
        config, state: of the training.
        folder: of the run.

    Raises:
        ConfigError: one cannot be built, or called.
    """
    try:
        for node in config.WRITERS:
            made = WRITERS.build(node, folder=str(folder), config=config)
            calls = _calls_of(made)
            WRITERS.refuse_without(node, made, *calls)
            reporters.append(_Writer(made) if calls is _CALLS_BEFORE else made)
    except BaseException as error:
        for reporter in reporters:
            reporter.stopped(state, error)
        raise


def _is_installed(package: str) -> bool:
    # A folder of that name, such as W&B leaves where it is started, has no file of its own.
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _calls_of(reporter: Any) -> tuple[str, ...]:
    is_older = hasattr(reporter, "write") and not callable(getattr(reporter, "epoch", None))
    return _CALLS_BEFORE if is_older else _CALLS
