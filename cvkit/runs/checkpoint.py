"""Checkpoints: tensors and plain values, enough to predict and, for `last.pt`, to go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvkit.config import Config, read_config
from cvkit.errors import CheckpointError
from cvkit.models import build_model
from cvkit.registry.user_code import import_user_code
from cvkit.runs.untrusted import EXPECTED, read_verified
from cvkit.system.files import replacing
from cvkit.system.saving import load_weights

FORMAT = 1


@dataclass
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        model: the weights that were evaluated (the averaged ones, with EMA).
        config: the resolved config, as YAML.
        classes: names, in the order of the logits.
        mean, std: what images, scaled to 0–1, are normalised with.
        image_shape: (channels, height, width) the model was trained to take.
        epoch: finished epochs.
        metrics: of that epoch; none before the first is finished.
        monitored: "val", or "test" where no validation data was held out.
        training: optimizer and so on, to resume from; None in `best.pt`. Saved inside an epoch,
            it has "within", what was reached in that epoch.
        loss: parameters and buffers of a loss that has some; else None.
        images: what those of the data set are: "channels", "image_size" (None where sizes are
            mixed), "mean" and "std", the "background" of transparent ones, and the "class_counts"
            of the training. None, or without the counts, of older versions.
        transform_input: whether the model is one of torchvision's that map their input to what
            their weights expect; no weights say so.
    """

    model: dict[str, torch.Tensor]
    config: str
    classes: list[str]
    mean: list[float]
    std: list[float]
    image_shape: list[int]
    epoch: int
    metrics: dict[str, float]
    monitored: str
    training: dict[str, Any] | None = None
    loss: dict[str, torch.Tensor] | None = None
    images: dict[str, Any] | None = None
    transform_input: bool = False
    format: int = FORMAT

    def content(self) -> dict[str, Any]:
        """Return what is saved: the attributes by name."""
        # dataclasses.asdict would copy every tensor.
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def save(self, path: Path, keep: Path | None = None) -> None:
        """Write the file whole or not at all, also where the machine is switched off meanwhile.

        Args:
            path: where to; what was there is replaced once the new file is whole.
            keep: where to move what was there, instead.

        Raises:
            CheckpointError: it cannot be written; what was there before is still there.
        """
        try:
            with replacing(path, keep) as file:
                torch.save(self.content(), file)
        except (OSError, RuntimeError) as error:
            # Torch may say that of a worker at any moment.
            if "DataLoader worker" in str(error):
                raise
            # Torch may speak of what came of it only.
            reason = error if isinstance(error, OSError) else error.__context__ or error
            raise CheckpointError(f"cannot write {path}: {reason}",
                                  hint="Is the disk full? The checkpoint before it is unharmed."
                                  ) from reason

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read a checkpoint onto the CPU. No code in it is run, and all of it is checked.

        Raises:
            CheckpointError: absent, damaged, or not written by cvkit.
        """
        return cls.of(read_verified(Path(path)), path)

    @classmethod
    def of(cls, content: Any, path: object) -> Checkpoint:
        """Return what was read from a path, once all of it is checked.

        Raises:
            CheckpointError: it is not what cvkit writes.
        """
        foreign = f"{path} was not written by this version of cvkit"
        hint = "It takes best.pt or last.pt of a run of its own, no weights of other tools."
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING} | {"format"}
        if not isinstance(content, dict) or not needed <= set(content) <= known:
            raise CheckpointError(foreign, hint=hint)
        if type(content["format"]) is not int or content["format"] != FORMAT:
            raise CheckpointError(foreign)
        for name, (meaning, is_that) in EXPECTED.items():
            if name in content and not is_that(content[name]):
                raise CheckpointError(f"{foreign}: {name} is not {meaning}")
        channels = content["image_shape"][0]
        if not len(content["mean"]) == len(content["std"]) == channels:
            raise CheckpointError(f"{foreign}: mean and std do not have a value for each of its "
                                  f"{channels} channels")
        counts = (content.get("images") or {}).get("class_counts")
        if counts is not None and len(counts) != len(content["classes"]):
            raise CheckpointError(f"{foreign}: class_counts do not have a value for each of its "
                                  f"{len(content['classes'])} classes")
        return cls(**content)

    @property
    def batches(self) -> int:
        """Batches that the weights have seen of the epoch after `epoch`."""
        within = (self.training or {}).get("within")
        return within["batches"] if within else 0

    @property
    def place(self) -> str:
        """When in the training it was saved, in words."""
        return moment_of(self.epoch, self.batches)

    def read_config(self, source: str = "checkpoint") -> Config:
        """Return the config the weights were trained with."""
        return read_config(self.config, source)

    def build_model(self, imports: Sequence[str] | None = None) -> nn.Module:
        """Return the model with its weights, in evaluation mode. Needs no data.

        Args:
            imports: your own files to import; None for the `IMPORTS` of its config.

        Raises:
            CheckpointError: the weights do not fit the model that the config builds.
        """
        config = self.read_config()
        names = config.IMPORTS if imports is None else imports
        import_user_code(list(names), where=config.where("IMPORTS"))
        try:
            channels, height, width = self.image_shape
            model = build_model(config.MODEL, len(self.classes), (channels, height, width),
                                takes_weights=False)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "alloc" not in str(error):
                raise
            raise CheckpointError("the model that the checkpoint describes does not fit into "
                                  f"memory: {str(error).strip()[:200]}") from error
        load_weights(model, self.model, "the checkpoint")
        if self.transform_input:
            # It is a flag, though torch annotates what a module is given as modules and tensors.
            model.transform_input = True  # type: ignore[assignment]
        return model.eval()


def counting(load: Callable[[str], Checkpoint]) -> Checkpoint:
    """Return the checkpoint of a run whose results count, of those that are loaded by name.

    That is best where it was chosen on validation data. Chosen on the test set itself, best would
    flatter the test accuracy, so it is last then.
    """
    last = load("last")
    return last if last.monitored == "test" else load("best")


def moment_of(epoch: int, batches: int) -> str:
    """Return a place in a training: finished epochs, and batches of the next one."""
    return f"in epoch {epoch + 1}, after batch {batches}" if batches else f"after epoch {epoch}"
