"""Reading files that anyone may have written: nothing in them is run, all of it is checked."""

from __future__ import annotations

import argparse
import io
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvkit.errors import CheckpointError
from cvkit.system.saving import EXTRA_STATE
from cvkit.system.text import nearest


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

    def __setstate__(self, state: Any) -> None:
        """Forget it."""


def _verify_storages(path: Path) -> None:
    """Refuse a file that holds less of a storage than its pickle says.

    torch 2.8 takes for the rest what lies behind it in memory.

    Raises:
        ValueError: in words, what is wrong; or whatever reading a forged pickle may raise.
    """
    with zipfile.ZipFile(path) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        # Torch may take either of two.
        if len({name.lower() for name in sizes}) < len(archive.infolist()):
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
        near = nearest(path.name, [other.name for other in path.parent.glob("*.pt")])
        raise CheckpointError(f"no checkpoint {path}",
                              hint=f"Did you mean {path.parent / near[0]}?" if near else None)
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


# Plain values that training programs keep beside weights; making one runs nothing.
_HARMLESS: list[Any] = [argparse.Namespace, np.dtype, type(np.dtype("f8")), type(np.dtype("f4")),
             type(np.dtype("i8")), type(np.float64(0)).__reduce__(np.float64(0))[0]]


def read_weights(path: Path) -> Any:
    """Return what another tool wrote with `torch.save`. No code in it is run.

    Raises:
        CheckpointError: it is damaged, no such file, or holds more than tensors and plain values.
    """
    try:
        # Files of torch before 1.6 are no archives.
        if zipfile.is_zipfile(path):
            verify_archive(path)
            _verify_storages(path)
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    # What torch raises depends on where a file is wrong.
    except Exception as error:
        held = re.search(r"Unsupported (?:global|class|operand)[^\n]*?([\w]+\.[\w.]+)", str(error))
        if held:
            raise CheckpointError(f"{path} holds {held[1]}, and reading that would run code",
                                  hint="Where it was made, torch.save(model.state_dict(), file) "
                                       "writes the weights alone.") from error
        if isinstance(error, OSError) and error.strerror:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        # What torch says of other files is advice to run what is in them.
        raise CheckpointError(f"{path} is damaged, or no file that torch.save wrote",
                              hint="Download or write it once more.") from error


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
        _is_dense(item) if isinstance(item, torch.Tensor) else name.endswith(EXTRA_STATE))
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


def _is_images(value: Any) -> bool:
    """Whether these are facts about the images of a data set."""
    if value is None:
        return True
    if not isinstance(value, dict) or not _is_channels(value.get("channels")):
        return False
    size, ground = value.get("image_size"), value.get("background")
    grounds = ground if isinstance(ground, list) else [ground]
    # With a Normalize in the config, nothing asks whether a data set has a mean for each channel.
    return ((size is None or (_is_sides(size) and len(size) == 2))
            and all(_is_list(value.get(name), _is_number) for name in ("mean", "std"))
            and _is_list(value.get("class_counts", [0]), _is_count)
            and len(grounds) in (1, value["channels"])
            and all(type(each) is int and 0 <= each < 256 for each in grounds))


def _is_channels(value: Any) -> bool:
    return _is_count(value) and 0 < value < 2**12


def _is_sides(value: Any) -> bool:
    """Whether these are a list of numbers of pixels, no more than Pillow would decode."""
    return _is_list(value, lambda item: _is_count(item) and item > 0) and (
        value[-2] * value[-1] < 2**27 if len(value) > 1 else False)


# Each field of a checkpoint: what it is, in words, and whether a value is that.
EXPECTED = {
    "model": ("tensors by name", _is_weights),
    "config": ("text", is_text),
    "classes": ("a list of names", lambda value: _is_list(value, is_text)),
    "mean": ("a list of numbers", lambda value: _is_list(value, _is_number)),
    "std": ("a list of numbers from 0", lambda value: _is_list(
        value, lambda item: _is_number(item) and item >= 0)),
    "image_shape": ("channels, height and width", lambda value: _is_sides(value)
                    and len(value) == 3 and _is_channels(value[0])),
    "epoch": ("a number from 0", _is_count),
    "metrics": ("values by name", lambda value: isinstance(value, dict)
                and all(map(is_text, value))),
    "monitored": ("val or test", lambda value: is_text(value) and value in ("val", "test")),
    "training": ("what a run is resumed from", _is_training),
    "loss": ("tensors by name, or nothing", lambda value: value is None or _is_weights(value)),
    "images": ("what a data set's images are", _is_images),
    "transform_input": ("true or false", lambda value: type(value) is bool),
}
