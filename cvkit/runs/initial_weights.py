"""MODEL.INIT_FROM: the weights of a run, a checkpoint or another tool's file, to begin with."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvkit.config import Config, load_config
from cvkit.config.tree import with_settings
from cvkit.errors import CheckpointError, ConfigError, DataError, RunError, UserError, located
from cvkit.models.features import head_of
from cvkit.models.pretrained import TrainedOn, has_pretrained
from cvkit.models.weights import fit_weights, load_fit
from cvkit.runs.checkpoint import Checkpoint, counting
from cvkit.runs.finding import find_run, find_runs
from cvkit.runs.untrusted import read_weights
from cvkit.system.command import command
from cvkit.system.files import user_path
from cvkit.system.text import nearest

# Under these names training programs keep weights; averages of them are what they evaluate.
_AVERAGES = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict",
             "model_ema_state_dict", "shadow", "teacher")
_WEIGHTS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights",
            "params")
_ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl")


@dataclass
class InitialWeights:
    """Weights, and what is known of what they were trained on.

    Attributes:
        words: where they are from.
        weights: by name.
        classes: that they tell apart; None of another tool's file.
        trained_on: their images; None where that is not known.
        transform_input: see `Checkpoint`.
        run: that they are of, if one was named.
    """

    words: str
    weights: dict[str, torch.Tensor]
    classes: list[str] | None = None
    trained_on: TrainedOn | None = None
    transform_input: bool = False
    run: Path | None = None


def read_initial_weights(config: Config) -> InitialWeights:
    """Read what MODEL.INIT_FROM names. No code in it is run.

    It is a run folder, a folder of runs (the newest counts), a config (its newest run), or a file:
    a checkpoint of cvkit's, what `torch.save` wrote of a state_dict alone or within a dict, or
    safetensors. Averaged weights (EMA) are preferred where a file has both.

    Raises:
        UserError: it is not there, damaged, or holds no weights.
    """
    named = config.MODEL.INIT_FROM
    path = user_path(named)
    with located(config.MODEL, "INIT_FROM"):
        if "://" in named:
            raise CheckpointError(f"{named} is no file", hint="Download it and name the file.")
        if _is_config(path):
            other = load_config(path)
            if not find_runs(other.OUTPUT_DIR, other.name):
                raise RunError(f"no run of {other.name} with a checkpoint in {other.OUTPUT_DIR}/",
                               hint=f"Train one first: {command('train')} {named}")
            return _of_run(find_run(None, other.OUTPUT_DIR, other.name))
        if not _is_file(path):
            return _of_run(find_run(named, config.OUTPUT_DIR))
        return _of_file(path)


def _is_config(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml") and path.name != "config.yaml"


def _is_file(path: Path) -> bool:
    return path.is_file() or path.suffix in (*_ENDINGS, ".safetensors")


def with_named_run(config: Config, run: str | Path | None) -> Config:
    """Return the config with a run in place of a MODEL.INIT_FROM that means the newest of some.

    Args:
        run: that was the newest; one that cannot have been meant is not taken.
    """
    path = user_path(config.MODEL.get("INIT_FROM") or "")
    if not run or path in (Path(), Path(run)):
        return config
    folders = []
    # A config that is gone cannot say so any more.
    with contextlib.suppress(UserError):
        if _is_config(path):
            other = load_config(path)
            folders = [Path(other.OUTPUT_DIR, other.name)]
        elif path.name != "config.yaml" and not _is_file(path):
            folders = [path, user_path(config.OUTPUT_DIR) / path]
    if Path(run).resolve().parent not in [folder.resolve() for folder in folders]:
        return config
    return with_settings(config, {"MODEL.INIT_FROM": str(run)})


def _of_run(folder: Path) -> InitialWeights:
    weights = _of_checkpoint(counting(lambda name: Checkpoint.load(
        folder / "checkpoints" / f"{name}.pt")), folder)
    return replace(weights, run=folder)


def _of_checkpoint(checkpoint: Checkpoint, place: object) -> InitialWeights:
    words, (_, height, width) = f"{place}, {checkpoint.place}", checkpoint.image_shape
    # Not the checkpoint itself, which may hold an optimizer as well.
    return InitialWeights(words, checkpoint.model, checkpoint.classes, TrainedOn(
        words, tuple(checkpoint.mean), tuple(checkpoint.std), (height, width)),
        checkpoint.transform_input)


def _of_file(path: Path) -> InitialWeights:
    if not path.is_file():
        near = nearest(path.name, [other.name for other in path.parent.glob("*")
                                   if other.suffix in (*_ENDINGS, ".safetensors")])
        raise CheckpointError(f"no file {path}",
                              hint=f"Did you mean {path.parent / near[0]}?" if near else None)
    _refuse_stand_ins(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_weights(path)
    if isinstance(content, dict) and {"model", "config", "classes", "format"} <= set(content):
        return _of_checkpoint(Checkpoint.of(content, path), path)
    found = _weights_in(content)
    if found is None:
        kinds = (f"it has {', '.join(map(str, list(content)[:6]))}"
                 if isinstance(content, Mapping) else f"it is {type(content).__name__}")
        raise CheckpointError(f"{path} holds no weights by name: {kinds}",
                              hint="torch.save(model.state_dict(), file) writes such ones.")
    words, weights = found
    return InitialWeights(", ".join([str(path), *words]), weights)


def _refuse_stand_ins(path: Path) -> None:
    """Refuse what was fetched in place of a file of weights."""
    try:
        with path.open("rb") as file:
            start = file.read(200)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    is_pointer = start.startswith(b"version https://git-lfs")
    what = ("is empty" if not start else "is a pointer of Git LFS" if is_pointer else
            "is a web page" if start.lstrip().lower().startswith((b"<!doctype", b"<html")) else
            None)
    if what:
        raise CheckpointError(f"{path} {what}", hint="Download the file itself once more.")


def _weights_in(content: Any) -> tuple[list[str], dict[str, torch.Tensor]] | None:
    """Return the weights in what a file holds, and the keys that lead to them, or None."""
    if _is_weights(content):
        return [], {str(name): value for name, value in content.items()
                    if isinstance(value, torch.Tensor)}
    for key in (*_AVERAGES, *_WEIGHTS) if isinstance(content, Mapping) else ():
        inner = _weights_in(content.get(key))
        if inner is not None:
            word = f"averaged weights ({key})" if key in _AVERAGES else key
            return [word, *inner[0]], inner[1]
    return None


def _is_weights(value: Any) -> bool:
    """Whether this is a state_dict: most of it are tensors."""
    if not isinstance(value, Mapping):
        return False
    tensors = sum(isinstance(item, torch.Tensor) for item in value.values())
    return 2 * tensors > len(value)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise DataError("safetensors is not installed, which reads such files",
                        hint="pip install safetensors") from None
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error


def initialise(model: nn.Module, config: Config, classes: Sequence[str], image_shape: Any,
               found: InitialWeights) -> None:
    """Load into a model what fits of MODEL.INIT_FROM; its `weights_loaded` says what.

    Args:
        model: of the config.
        config: its MODEL is used; INIT_NEW names what may begin anew besides the head.
        classes: of the data. The head of other classes is not taken over.
        image_shape: (channels, height, width) of what the model takes.
        found: what `read_initial_weights` returned.

    Raises:
        UserError: it cannot be read, or does not fit.
    """
    node = config.MODEL
    if has_pretrained(node):
        raise ConfigError("two things to begin with, INIT_FROM and pretrained weights",
                          where=node.where("INIT_FROM"), hint="Leave one of them out.")
    if found.classes not in (None, list(classes)):
        head = head_of(model, image_shape)
        fit = fit_weights(model, found.weights, head)
    else:
        fit, head = fit_weights(model, found.weights), ""
        if fit.new:
            # Without a head that can be told, INIT_NEW says what may be new.
            with contextlib.suppress(ConfigError):
                head = head_of(model, image_shape)
    with located(node, "INIT_NEW" if "INIT_NEW" in node else "INIT_FROM"):
        load_fit(model, fit, head, node.get("INIT_NEW") or (), found.words)
    if found.transform_input:
        model.transform_input = True  # type: ignore[assignment]
    # The attribute that all models with others' weights have.
    model.weights_loaded = "\n".join(  # type: ignore[assignment]
        [found.words, *fit.lines(model)])
