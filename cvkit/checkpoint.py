"""Checkpoints: tensors and plain values, enough to predict and, for `last.pt`, to go on."""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvkit.config import Config, check_components, read_config
from cvkit.errors import CheckpointError
from cvkit.files import plain
from cvkit.models import build_model

FORMAT = 1
_EXTRA = "_extra_state"  # how torch ends the name of what get_extra_state returns


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
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                torch.save(self.content(), file)
                file.flush()
                os.fsync(file.fileno())  # or the new name could outlive a crash, empty
            if keep is not None and path.is_file():
                os.replace(path, keep)
            os.replace(part, path)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            if "DataLoader worker" in str(error):  # which torch may say at any moment
                raise
            # Torch may speak of what came of it only.
            reason = error if isinstance(error, OSError) else error.__context__ or error
            raise CheckpointError(f"cannot write {path}: {reason}",
                                  hint="Is the disk full? The checkpoint before it is unharmed."
                                  ) from error

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
        known = {field.name: field.default is MISSING for field in fields(cls)}
        if (not isinstance(content, dict) or type(content.get("format")) is not int
                or content["format"] != FORMAT or not set(content) <= set(known)
                or any(needed and name not in content for name, needed in known.items())):
            raise CheckpointError(f"{path} was not written by this version of cvkit")
        for name, value in content.items():
            if name in _EXPECTED and not _EXPECTED[name][1](value):
                raise CheckpointError(f"{path} was not written by this version of cvkit: {name} "
                                      f"is not {_EXPECTED[name][0]}")
        channels = content["image_shape"][0]
        if not len(content["mean"]) == len(content["std"]) == channels:
            raise CheckpointError(f"{path} was not written by this version of cvkit: mean and std "
                                  f"do not have a value for each of its {channels} channels")
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
        if imports is not None:
            config = config.clone()
            config.defrost()
            config.IMPORTS = list(imports)
        check_components(config)
        try:
            model = build_model(config.MODEL, len(self.classes), tuple(self.image_shape),
                                takes_weights=False)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "alloc" not in str(error):
                raise
            raise CheckpointError("the model that the checkpoint describes does not fit into "
                                  f"memory: {str(error).strip()[:200]}") from error
        load_weights(model, self.model, "the checkpoint")
        if self.transform_input:
            model.transform_input = True
        return model.eval()


def moment_of(epoch: int, batches: int) -> str:
    """Return a place in a training: finished epochs, and batches of the next one."""
    return f"in epoch {epoch + 1}, after batch {batches}" if batches else f"after epoch {epoch}"


# -- checking what is read ---------------------------------------------------------------


def verify_archive(path: Path) -> None:
    """Compare all of a zip file (a checkpoint, an npz) with the checksums in it.

    torch reads past damage without a word, and both torch and NumPy would unpack a small file into
    any amount of memory: what either writes is stored, not compressed, which is demanded here.

    Raises:
        ValueError: in words, what is wrong. OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if (any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
                    or sum(entry.file_size for entry in entries) > path.stat().st_size):
                raise ValueError("it unpacks to more than it holds")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(str(error) or "it is cut off") from error
    if damaged is not None:
        raise ValueError(f"{damaged} in it does not have the checksum it was written with")


class _Storages(pickle._Unpickler):
    """Notes how many bytes each storage should have; all that a pickle names becomes nothing.

    It is the one in Python, for the one in C reserves as much memory as a forged pickle says.
    """

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content))
        self.bytes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        return name if name.endswith("Storage") else _Nothing

    def persistent_load(self, found: Any) -> None:
        _, kind, key, _, count = found
        if type(key) is not str or type(count) is not int:
            raise ValueError("it names a storage in no way that torch does")
        size = getattr(getattr(torch, kind), "_dtype", torch.uint8).itemsize
        self.bytes[key] = max(count * size, self.bytes.get(key, 0))


class _Nothing(dict):
    """Is made of anything, and forgets it."""

    def __init__(self, *_: Any):
        super().__init__()


def _verify_storages(path: Path) -> None:
    """Refuse a file that holds less of a storage than its pickle says.

    torch 2.8 takes for the rest what lies behind it in memory.

    Raises:
        ValueError: in words, what is wrong; or whatever reading a forged pickle may raise.
    """
    with zipfile.ZipFile(path) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        if len({name.lower() for name in sizes}) < len(archive.infolist()):  # torch may take either
            raise ValueError("two parts of it have the same name")
        folder = next(iter(sizes), "").partition("/")[0]
        storages = _Storages(archive.read(f"{folder}/data.pkl"))
    storages.load()
    for key, needed in storages.bytes.items():
        held = sizes[f"{folder}/data/{key}"]
        if held < needed:
            raise ValueError(f"{folder}/data/{key} in it has {held} bytes of {needed}")


def read_verified(path: Path) -> Any:
    """Return what `torch.save` wrote, tensors and plain values, once its checksums agree.

    Raises:
        CheckpointError: absent, damaged, or holds anything else.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}")
    try:
        verify_archive(path)
        _verify_storages(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    # What torch raises depends on where a file is wrong, and a forged one may be wrong anywhere.
    except Exception as error:
        lines = str(error).strip().split("\n")
        reason = lines[0] or type(error).__name__
        raise CheckpointError(f"{path} is damaged or no checkpoint: {reason}",
                              hint="Take another checkpoint of the run, or an earlier copy of it."
                              ) from error


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_list(value: Any, is_item: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(is_item, value))


def is_text(value: Any) -> bool:
    """Whether a value is text that can be written: half a character of two cannot."""
    return isinstance(value, str) and value == value.encode("utf-8", "ignore").decode()


def _is_weights(value: Any) -> bool:
    """Whether these are what a model has: dense tensors, and what its get_extra_state returned."""
    return isinstance(value, Mapping) and all(isinstance(name, str) and (
        _is_dense(item) if isinstance(item, torch.Tensor) else name.endswith(_EXTRA))
        for name, item in value.items())


def _is_dense(tensor: torch.Tensor) -> bool:
    return (tensor.device.type == "cpu" and tensor.layout is torch.strided
            and not tensor.is_quantized)


def _is_training(value: Any) -> bool:
    """Whether these are the parts that a run is resumed from; those know their own content."""
    if value is None:
        return True
    if not isinstance(value, dict) or not all(isinstance(value.get(name), dict) for name in (
            "optimizer", "schedule", "scaler")):
        return False
    optimizer, best, ema = value["optimizer"], value.get("best"), value.get("ema")
    within = value.get("within", {"batches": 0})
    return (isinstance(optimizer.get("state"), dict)
            and _is_list(optimizer.get("param_groups"), lambda group: isinstance(group, dict))
            and isinstance(value.get("backend", ""), str)
            and (within is None or (isinstance(within, dict) and _is_count(within.get("batches"))))
            and (best is None or (isinstance(best, dict) and _is_count(best.get("epoch"))))
            and (ema is None or (isinstance(ema, dict) and _is_count(ema.get("steps"))
                                 and _is_weights(ema.get("model")))))


# Of each field, what it is in words and whether a value is that.
_EXPECTED = {
    "model": ("tensors by name", _is_weights),
    "config": ("text", is_text),
    "classes": ("a list of names", lambda value: _is_list(value, is_text)),
    "mean": ("a list of numbers", lambda value: _is_list(value, _is_number)),
    "std": ("a list of numbers from 0", lambda value: _is_list(
        value, lambda item: _is_number(item) and item >= 0)),
    # No more pixels than Pillow would decode.
    "image_shape": ("channels, height and width", lambda value: _is_list(
        value, lambda item: _is_count(item) and item > 0) and len(value) == 3
        and value[1] * value[2] < 2**27 and value[0] < 2**12),
    "epoch": ("a number from 0", _is_count),
    "metrics": ("values by name", lambda value: isinstance(value, dict)
                and all(map(is_text, value))),
    "monitored": ("val or test", lambda value: is_text(value) and value in ("val", "test")),
    "training": ("what a run is resumed from", _is_training),
    "loss": ("tensors by name, or nothing", lambda value: value is None or _is_weights(value)),
    "transform_input": ("true or false", lambda value: type(value) is bool),
}


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of a model or a loss, extra state as a copy without NumPy's numbers."""
    state = module.state_dict()
    for name in state:
        if name.endswith(_EXTRA):
            state[name] = plain(copy.deepcopy(state[name]))
    return state


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], source: str,
                 what: str = "model") -> None:
    """Load weights, all of them.

    Args:
        source, what: they are from and for, in words.

    Raises:
        CheckpointError: names or shapes differ; the first few are listed.
    """
    own = model.state_dict()
    differences = [f"{name} is missing" for name in own if name not in weights]
    differences += [f"{name} is not in the {what}" for name in weights if name not in own]
    differences += [f"{name} is {tuple(weights[name].shape)}, the {what}'s {tuple(own[name].shape)}"
                    for name in own if name in weights and not name.endswith(_EXTRA)
                    and weights[name].shape != own[name].shape]
    if differences:
        rest = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise CheckpointError(f"{source} does not fit the {what}: "
                              f"{'; '.join(differences[:4])}{rest}")
    model.load_state_dict(weights)
