"""Checkpoints: tensors and plain values, enough to predict and, for `last.pt`, to go on."""

from __future__ import annotations

import math
import os
import pickle
import re
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvkit.config import Config, check_components, read_config
from cvkit.errors import CheckpointError
from cvkit.models import build_model

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
    format: int = FORMAT

    def save(self, path: Path, keep: Path | None = None) -> None:
        """Write the file whole or not at all, also where the machine is switched off meanwhile.

        Args:
            path: where to; what was there is replaced once the new file is whole.
            keep: where to move what was there, instead.

        Raises:
            CheckpointError: it cannot be written; what was there before is still there.
        """
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                # dataclasses.asdict would copy every tensor.
                torch.save({name: getattr(self, name) for name in self.__dataclass_fields__}, file)
                file.flush()
                os.fsync(file.fileno())  # or the new name could outlive a crash, empty
            if keep is not None and path.is_file():
                os.replace(path, keep)
            os.replace(part, path)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            # Torch may speak of what came of it only.
            reason = error if isinstance(error, OSError) else error.__context__ or error
            raise CheckpointError(f"cannot write {path}: {reason}",
                                  hint="Is the disk full? The checkpoint before it is unharmed."
                                  ) from error

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint onto the CPU. No code in it is run.

        Raises:
            CheckpointError: absent, damaged, or not written by cvkit.
        """
        if not path.is_file():
            raise CheckpointError(f"no checkpoint {path}")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError,
                zipfile.BadZipFile) as error:
            reason = str(error).strip().split("\n")[0]
            raise CheckpointError(f"{path} is damaged or no checkpoint: {reason}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise CheckpointError(f"{path} was not written by this version of cvkit")
        return cls(**content)

    @property
    def batches(self) -> int:
        """Batches that the weights have seen of the epoch after `epoch`."""
        within = (self.training or {}).get("within")
        return within["batches"] if within else 0

    @property
    def place(self) -> str:
        """When in the training it was saved, in words."""
        return in_words(self.epoch, self.batches)

    def read_config(self, source: str = "checkpoint") -> Config:
        """Return the config the weights were trained with."""
        return read_config(self.config, source)

    def build_model(self) -> nn.Module:
        """Return the model with its weights, in evaluation mode. Needs no data.

        Raises:
            CheckpointError: the weights do not fit the model that the config builds.
        """
        config = self.read_config()
        check_components(config)
        node = config.MODEL.clone()
        node.defrost()
        node.pop("weights", None)  # pretrained ones would be fetched only to be overwritten
        model = build_model(node, len(self.classes), tuple(self.image_shape))
        load_weights(model, self.model, "the checkpoint")
        return model.eval()


def in_words(epoch: int, batches: int) -> str:
    """Return a place in a training: finished epochs, and batches of the next one."""
    return f"in epoch {epoch + 1}, after batch {batches}" if batches else f"after epoch {epoch}"


class Pace:
    """When to save inside an epoch.

    Args:
        every: TRAIN.CHECKPOINT_EVERY: "epoch" never does, "500 steps" counts optimizer steps of
            the whole training, "10 minutes" the time since the last saving.
    """

    def __init__(self, every: str):
        number, unit = re.fullmatch(r"(\d*) ?([a-z]).*", every).groups()
        self._steps = int(number) if unit == "s" else 0
        self._seconds = 60 * int(number) if unit == "m" else math.inf
        self.restart()

    def restart(self) -> None:
        """Count minutes from now."""
        self._saved = time.monotonic()  # a clock that nobody sets

    def is_due(self, steps: int) -> bool:
        """Whether to save after that many steps of the optimizer."""
        if self._steps:
            return steps % self._steps == 0
        return time.monotonic() - self._saved >= self._seconds


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """Load weights, all of them.

    Raises:
        CheckpointError: names or shapes differ; the first few are listed.
    """
    own = model.state_dict()
    differences = [f"{name} is missing" for name in own if name not in weights]
    differences += [f"{name} is not in the model" for name in weights if name not in own]
    differences += [f"{name} is {tuple(weights[name].shape)}, the model's {tuple(own[name].shape)}"
                    for name in own if name in weights and weights[name].shape != own[name].shape]
    if differences:
        rest = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise CheckpointError(f"{source} does not fit the model: "
                              f"{'; '.join(differences[:4])}{rest}")
    model.load_state_dict(weights)
