"""What MLflow keeps of a run."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

from cvkit.config import Config
from cvkit.registry import WRITERS
from cvkit.reporting.tracking import Tracker, parameters
from cvkit.training.resume import LENGTH

# As many MLflow takes at once, and as much of a parameter.
_AT_ONCE, _LONGEST = {"metrics": 1000, "params": 100}, 6000


def _name(key: str) -> str:
    """Return a name that MLflow takes: classes, of which some speak, may have other characters."""
    return re.sub(r"[^\w.\- :/]", "_", key)


@WRITERS.register("mlflow")
class MLflow(Tracker):
    """A run of MLflow, called `<config>/<start time>`: see docs/trackers.md.

    Args:
        tracking_uri: of the runs; None for MLFLOW_TRACKING_URI or, without that, `mlflow.db` in
            OUTPUT_DIR, with files in `mlartifacts` beside it.
        experiment: None for MLFLOW_EXPERIMENT_NAME or, without that, "cvkit".
        folder, config, pictures, checkpoint: as of `Tracker`.
    """

    title, package = "MLflow", "mlflow"

    def __init__(self, folder: str, config: Config, tracking_uri: str | None = None,
                 experiment: str | None = None, pictures: bool = True, checkpoint: bool = True):
        super().__init__(folder, config, pictures, checkpoint)
        self._uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "cvkit"

    def start(self, known: str | None, epoch: int) -> tuple[str, int]:
        # Some are read when it is imported. Without, MLflow reports its use, tells of its tables,
        # and takes minutes to give a server up.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        from mlflow import MlflowClient

        place = Path(self.config.OUTPUT_DIR).resolve()
        self._client = client = MlflowClient(
            self._uri or f"sqlite:///{(place / 'mlflow.db').as_posix()}")
        experiment = client.get_experiment_by_name(self._experiment)
        number = experiment.experiment_id if experiment else client.create_experiment(
            self._experiment, None if self._uri else (place / "mlartifacts").as_uri())
        # None of one that was deleted, or is kept elsewhere.
        found = client.search_runs([number], f"attributes.run_id = '{known}'") if known else []
        self._steps = {name: {metric.step for metric in client.get_metric_history(known, name)}
                       for name in (found[0].data.metrics if found else ())}
        if max(set().union(*self._steps.values()), default=0) > epoch:
            # MLflow takes no values back.
            client.delete_run(known)
            found, self._steps = [], {}
        run = found[0] if found else client.create_run(number, run_name=self.name)
        self._id = run.info.run_id
        client.update_run(self._id, status="RUNNING")
        self._add_parameters(known=run.data.params)
        # `add` leaves out what there is.
        return self._id, 0

    def _add_parameters(self, known: dict[str, str]) -> None:
        from mlflow.entities import Param

        values = {_name(key): str(value)[:_LONGEST] for key, value in parameters(self.run).items()}
        for key in LENGTH:
            # Of MLflow's parameters none may change.
            self._client.set_tag(self._id, key, values.pop(key))
        self._log("params", [Param(*item) for item in values.items() if item[0] not in known])

    def _log(self, kind: str, items: list[Any]) -> None:
        for start in range(0, len(items), _AT_ONCE[kind]):
            self._client.log_batch(self._id, **{kind: items[start:start + _AT_ONCE[kind]]})

    def add(self, epoch: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        named = {_name(name): value for name, value in values.items()}
        self._log("metrics", [Metric(name, value, now, epoch) for name, value in named.items()
                              if epoch not in self._steps.get(name, ())])

    def add_pictures(self, epoch: int, pictures: dict[str, Any]) -> None:
        for name, image in pictures.items():
            self._client.log_image(self._id, image, f"pictures/{name}.png")

    def add_files(self, names: list[str]) -> None:
        for name in names:
            self._client.log_artifact(self._id, str(self.folder / name), os.path.dirname(name))

    def close(self, error: BaseException | None) -> None:
        # A sweep ends hopeless trials.
        is_asked = isinstance(error, KeyboardInterrupt) or type(error).__name__ == "TrialPruned"
        status = "KILLED" if is_asked else "FAILED"
        self._client.set_terminated(self._id, "FINISHED" if error is None else status)
