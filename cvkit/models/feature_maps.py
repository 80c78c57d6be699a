"""The feature maps of a model: how large they are, and of which layers a CAM can be drawn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvkit.errors import ConfigError
from cvkit.models.build import count_parameters
from cvkit.system.text import suggest

# Pixels a side; a map of fewer says nothing about where.
SMALLEST_MAP = 5


class Recorder:
    """Forward hooks that keep the outputs of modules, each ready for a gradient.

    Parameters are frozen, so the graph begins at the first module that is recorded.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]):
        self.outputs: dict[str, Any] = {}
        self.calls: dict[str, int] = {}
        self._versions: dict[str, int] = {}
        self._handles = [model.get_submodule(name).register_forward_hook(self._keep(name))
                         for name in names]

    def _keep(self, name: str) -> Callable:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            if not isinstance(output, Tensor) or output.ndim not in (3, 4):
                return None
            if not output.requires_grad:
                # What follows may work in place, which a copy allows and a leaf does not.
                output = output.detach().requires_grad_().clone()
            self.outputs[name] = output
            self._versions[name] = output._version
            return output
        return hook

    def is_overwritten(self, name: str) -> bool:
        """Whether a later module changed the output in place: it is no longer the layer's."""
        return self.outputs[name]._version != self._versions[name]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose weights take no gradients; the model is left alone."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def reshape_of(model: nn.Module, layer: str) -> Callable[[Tensor], Tensor]:
    """Return what turns a layer's output into maps (N, C, H, W): the model's own, for tokens."""
    own = getattr(model, "reshape_transform", None)
    # A convolution's are maps already; their shape alone may look like (N, H, W, C).
    if own is None or isinstance(model.get_submodule(layer), nn.Conv2d):
        return lambda output: output
    return own


def map_sizes(model: nn.Module, image: Tensor) -> dict[str, tuple[int, int]]:
    """Return the map (height, width) of every module that has a usable one, shallowest first.

    Args:
        model: its `reshape_transform`, if it has one, turns its outputs into (N, C, H, W).
        image: a batch of one, as the model receives it.

    Left out are modules that run more than once or not at all, or on windows of the image, those
    whose output is changed in place by what follows, those that the logits do not depend on
    pixel by pixel (the last block of a transformer with a class token), and those that do not
    depend on the image (an embedding of positions).
    """
    model = frozen_copy(model)
    # A head that starts at zero would hide all before it.
    for weight in model.parameters():
        if weight.ndim > 1 and not weight.any():
            weight.copy_(torch.linspace(-1, 1, weight.numel()).view_as(weight))
    recorder = Recorder(model, _seeing(model, image))
    with torch.enable_grad():
        logits = model(image)
        score = (logits * torch.linspace(1, 2, logits.shape[1], device=logits.device)).sum()
    usable = [name for name, output in recorder.outputs.items()
              if recorder.calls[name] == 1 and not recorder.is_overwritten(name)]
    gradients = torch.autograd.grad(score, [recorder.outputs[name] for name in usable],
                                    allow_unused=True) if usable and score.requires_grad else []
    sizes: dict[str, tuple[int, int]] = {}
    for name, gradient in zip(usable, gradients):
        if gradient is None:
            continue
        gradient = reshape_of(model, name)(gradient)
        if gradient.ndim == 4 and len(gradient) == len(image) and gradient.any():
            height, width = gradient.shape[2:]
            sizes[name] = height, width
    return sizes


def _seeing(model: nn.Module, image: Tensor) -> list[str]:
    """Return the modules of a frozen model whose output depends on the image."""
    found = {}

    def note(name: str) -> Callable:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found[name] = isinstance(output, Tensor) and output.requires_grad
        return hook

    handles = [module.register_forward_hook(note(name))
               for name, module in model.named_modules() if name]
    with torch.enable_grad():
        model(image.detach().clone().requires_grad_())
    for handle in handles:
        handle.remove()
    return [name for name, depends in found.items() if depends]


def choose_layers(model: nn.Module, image: Tensor,
                  layer: str | Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the layers to explain, shallowest first, with the sizes of their maps.

    Args:
        model, image: see `map_sizes`.
        layer: "auto", "stages" (all of the model's), or module names.

    Raises:
        ConfigError: no such layer, or its map is below 5×5; the legal ones are listed.
    """
    sizes = map_sizes(model, image)
    legal = {name: size for name, size in sizes.items() if min(size) >= SMALLEST_MAP}
    steps = _blocks(model)
    blocks = [name for name in legal if name in steps]
    if layer in ("auto", "stages"):
        if not blocks:
            largest = max(sizes.values(), default=None)
            raise ConfigError(
                f"no block of the model has a map of {SMALLEST_MAP}×{SMALLEST_MAP} pixels or more "
                f"for images of {image.shape[2]}×{image.shape[3]}",
                hint="Its layers have no maps at all: there is nothing to draw." if not largest
                else f"The largest has {largest[0]}×{largest[1]}. Larger images, or a model with "
                     "smaller strides, give larger ones.")
        chosen = [blocks[-1]] if layer == "auto" else _stages(model, blocks, sizes)
        return {name: sizes[name] for name in chosen}
    asked = [layer] if isinstance(layer, str) else list(layer)
    modules, outer = dict(model.named_modules()), whole_blocks(model, legal)
    for name in asked:
        if name not in modules or not name:
            raise ConfigError(f"the model has no layer {name!r}",
                              hint=suggest(name, outer, listed=20))
        if name not in legal:
            why = "has no map that the logits depend on"
            if name in sizes:
                why = "has a map of {}×{} pixels; below {}×{} it says nothing about where".format(
                    *sizes[name], SMALLEST_MAP, SMALLEST_MAP)
            possible = (f"Possible are {', '.join(outer)}." if outer
                        else "No layer of this model has one that is large enough.")
            raise ConfigError(f"layer {name} {why}", hint=possible)
    return {name: size for name, size in legal.items() if name in asked}


def whole_blocks(model: nn.Module, legal: Iterable[str]) -> list[str]:
    """Return those of legal layers that one would choose from: whole steps of the network.

    Args:
        legal: names of layers, of maps that are large enough; their order is kept.
    """
    steps = _blocks(model)
    blocks = [name for name in legal if name in steps]
    return [name for name in blocks if any(model.get_submodule(name).children())] or blocks


def _blocks(model: nn.Module) -> set[str]:
    """Return the names of whole steps of the network, not of what they are made of.

    Those are the items of the model, of sequences within it, and of what holds over half of its
    parameters (a backbone, an encoder); pooling does not count.
    """
    total = count_parameters(model)
    pooling = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.Dropout,
               nn.Identity)
    is_transformer = hasattr(model, "reshape_transform")
    found, containers = set(), [("", model)]
    while containers:
        path, container = containers.pop()
        for name, child in container.named_children():
            full = f"{path}.{name}" if path else name
            held = count_parameters(child)
            # A module that reorders tokens has no parameters, and its shape could be misread.
            if not isinstance(child, pooling) and (held or not is_transformer):
                found.add(full)
            if isinstance(child, (nn.Sequential, nn.ModuleList)) or 2 * held > total:
                containers.append((full, child))
    return found


def _stages(model: nn.Module, blocks: list[str], sizes: dict[str, tuple[int, int]]) -> list[str]:
    """Return the model's own stages; where it has none or many, the deepest block of each size."""
    stages = [name for name in blocks if "." not in name and any(
        model.get_submodule(name).children())]
    return stages if 1 < len(stages) <= 6 else sorted(
        {sizes[name]: name for name in blocks}.values(), key=blocks.index)
