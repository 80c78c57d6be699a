"""What Weights & Biases keeps of a run."""

from __future__ import annotations

import os
import shutil
from typing import Any, Literal

from cvkit.config import Config
from cvkit.registry import WRITERS
from cvkit.reporting.tracking import Tracker


@WRITERS.register("wandb")
class WandB(Tracker):
    """A run of Weights & Biases, called `<config>/<start time>`: see docs/trackers.md.

    Args:
        mode: None for WANDB_MODE or, without that, "offline", which writes files into `wandb/` in
            the run folder alone.
        project: None for WANDB_PROJECT or, without that, "cvkit".
        entity: the user or team whose project it is; None for your own.
        folder, config, pictures, checkpoint: as of `Tracker`.
    """

    title, package = "W&B", "wandb"

    def __init__(self, folder: str, config: Config,
                 mode: Literal["offline", "online", "disabled"] | None = None,
                 project: str | None = None, entity: str | None = None, pictures: bool = True,
                 checkpoint: bool = True):
        super().__init__(folder, config, pictures, checkpoint)
        self._mode = mode or os.environ.get("WANDB_MODE") or "offline"
        self._project = project or os.environ.get("WANDB_PROJECT") or "cvkit"
        self._entity = entity
        self._run: Any = None

    def start(self, known: str | None, epoch: int) -> tuple[str, int]:
        # Read when it is imported. Without it W&B reports its errors.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # It is for language models, and advertised where their packages are imported.
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
        if self._run is not None:
            self._run.finish(exit_code=1)
        if self._mode != "disabled":
            # Written anew, or what they hold of later epochs would be sent as well.
            for old in (self.folder / "wandb").glob("offline-run-*"):
                shutil.rmtree(old)
        self._run = self._begin(known)
        self._last = self._run.summary.get("epoch") or 0
        if self._last > epoch:
            # A server's run: W&B takes no values back.
            self._run.finish()
            self._run, self._last = self._begin(None), 0
        self._run.define_metric("*", step_metric="epoch")
        return self._run.id, self._last

    def _begin(self, known: str | None) -> Any:
        import wandb

        # What is printed is in train.log. Online, W&B says where the run is, or asks for a key.
        settings = wandb.Settings(console="off", silent=self._mode == "offline", symlink=False)
        return wandb.init(
            project=self._project, entity=self._entity, id=known, name=self.name,
            dir=str(self.folder), mode=self._mode, reinit="create_new",
            resume="allow" if self._mode == "online" else None,
            config=self.run.hyperparameters, allow_val_change=True, settings=settings)

    def add(self, epoch: int, values: dict[str, Any]) -> None:
        self._run.log({"epoch": epoch, **values})
        # The test's may be of an earlier epoch.
        self._last = max(self._last, epoch)
        self._run.summary["epoch"] = self._last

    def add_pictures(self, epoch: int, pictures: dict[str, Any]) -> None:
        import wandb

        if pictures:
            self.add(epoch, {name: wandb.Image(image) for name, image in pictures.items()})

    def add_files(self, names: list[str]) -> None:
        import wandb

        files = wandb.Artifact(f"run-{self._run.id}", type="run")
        for name in names:
            # Of what is large there is no copy.
            files.add_file(str(self.folder / name), name, policy="immutable")
        self._run.log_artifact(files)

    def close(self, error: BaseException | None) -> None:
        self._run.finish(exit_code=0 if error is None else 1)
