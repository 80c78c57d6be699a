"""Class activation maps of misclassified images, by the grad-cam library (J. Gildenblat)."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Sequence
from typing import Any, Literal

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from tqdm.auto import tqdm

from cvkit.data.loaders import Loaders
from cvkit.errors import ConfigError, suggest
from cvkit.registry import VISUALIZERS
from cvkit.run import Predictions
from cvkit.visualizers.drawing import (
    RIGHT,
    WRONG,
    Picture,
    arrow,
    grids,
    message,
    percent,
    positions_of,
    shorten,
    show_image,
    styled,
)
from cvkit.visualizers.misclassified import ClassName, Order, describe_errors, select_errors

SMALLEST_MAP = 5  # pixels a side; on fewer a map says nothing about where
COLOUR_MAP = "turbo"

# The methods that are constructed as (model, target_layers, reshape_transform).
Method = Literal["GradCAM", "GradCAMPlusPlus", "GradCAMElementWise", "XGradCAM", "HiResCAM",
                 "LayerCAM", "EigenCAM", "EigenGradCAM", "ScoreCAM", "AblationCAM", "ShapleyCAM",
                 "KPCA_CAM", "FEM", "RandomCAM"]


# -- the pictures ------------------------------------------------------------------------


@VISUALIZERS.register()
@styled
def cam(predictions: Predictions, model: nn.Module, loaders: Loaders, count: int = 10,
        method: Method = "GradCAM", layer: str | list[str] = "auto",
        order: Order = "confidence", true: ClassName = None, predicted: ClassName = None,
        seed: int = 0) -> Picture:
    """Where the model looked: maps for the predicted and the true class of misclassified images.

    Both maps of an image share one scale, so that they can be compared; a map without positive
    evidence is marked as empty. Images are shown as the model receives them.

    Args:
        count, order, true, predicted, seed: which images, as `misclassified`: the same ones.
        method: of the grad-cam library.
        layer: one or several module names; "auto" for the deepest block whose map has 5×5
            pixels or more.

    Raises:
        ConfigError: there is no such layer, or its map is smaller than 5×5.
    """
    rows = select_errors(predictions, count, order, true, predicted, seed)
    errors = describe_errors(predictions, rows, count, order, true, predicted)
    if not len(rows):
        return message(errors)
    batch = loaders.test.take(positions_of(loaders.test.images, predictions, rows))
    sizes = choose_layers(model, batch.images[:1], layer)
    targets = [predictions.predicted[rows], predictions.true[rows]]
    maps = cam_maps(model, batch.images, targets, list(sizes), [method])

    images = loaders.test.denormalise(batch.images)
    places = ", ".join(f"{name} ({height}×{width} pixels)" for name, (height, width)
                       in sizes.items())
    note = f", the deepest block of {SMALLEST_MAP}×{SMALLEST_MAP} or more" * (layer == "auto")
    figure, grid = grids(
        len(rows), 1, 1 + 2 * len(sizes), "Where the model looked",
        f"{method} at {places}{note}. {errors}",
        side_by_side=2 if len(sizes) == 1 and len(rows) > 1 else 1, size=1.2,
        aspect=min(images.shape[1] / images.shape[2], 2),
        above=0.36 if len(sizes) == 1 else 0.48, footer=0.45)
    for number, (row, image) in enumerate(zip(rows, images)):
        group = grid[number][0]
        names = [shorten(predictions.classes[label], 16) for label in
                 (predictions.true[row], predictions.predicted[row])]
        show_image(group[0], image, arrow(*names))
        for place, name in enumerate(sizes):
            pair = maps[name, method][:, number]
            for axis, values, heat, label, colour in zip(
                    group[1 + 2 * place:], pair, scaled_together(pair, image.shape[:2]),
                    (targets[0][number], targets[1][number]), (WRONG, RIGHT)):
                title = (f"for {shorten(predictions.classes[label], 16)}\n"
                         f"({percent(predictions.probabilities[row, label])})")
                if len(sizes) > 1:
                    title = f"{shorten(name, 20)}\n{title}"
                show_map(axis, image, values, heat, title, colour)
    _add_scale(figure, "evidence for the class; both maps of an image share one scale")
    return figure


@VISUALIZERS.register()
@styled
def cam_matrix(predictions: Predictions, model: nn.Module, loaders: Loaders, count: int = 10,
               methods: list[Method] = ("GradCAM", "GradCAMPlusPlus"),
               layers: str | list[str] = "auto",
               target: Literal["predicted", "true"] = "predicted",
               pages: Literal["one", "each"] = "one", order: Order = "confidence",
               true: ClassName = None, predicted: ClassName = None,
               seed: int = 0) -> Picture | list[Picture]:
    """For each misclassified image, layers by methods: the image, heat maps, and bare masks.

    Each map is scaled by itself, from its lowest to its highest value, as the library does: the
    matrix shows where, `cam` also how much.

    Args:
        count, order, true, predicted, seed: which images, as `misclassified`: the same ones.
        methods: of the grad-cam library.
        layers: module names; "auto" for the model's stages with a map of 5×5 or more.
        target: the class that is explained.
        pages: "one" page for all images, or one for "each", as a list.
    """
    rows = select_errors(predictions, count, order, true, predicted, seed)
    errors = describe_errors(predictions, rows, count, order, true, predicted)
    if not len(rows):
        return message(errors)
    batch = loaders.test.take(positions_of(loaders.test.images, predictions, rows))
    sizes = choose_layers(model, batch.images[:1], "stages" if layers == "auto" else layers)
    labels = getattr(predictions, target)[rows]
    maps = cam_maps(model, batch.images, [labels], list(sizes), list(methods))
    images = loaders.test.denormalise(batch.images)

    def matrix(axes: np.ndarray, number: int) -> None:
        image = images[number]
        for axis, text in zip(axes[0], ["image", *(f"{name} heat" for name in methods),
                                        *(f"{name} mask" for name in methods)]):
            axis.text(0.5, 1.03, text.replace("PlusPlus", "++"), ha="center", va="bottom",
                      fontsize=6.5, transform=axis.transAxes)
        for line, (name, (height, width)) in zip(axes, sizes.items()):
            show_image(line[0], image)
            line[0].text(-0.14, 0.5, f"{shorten(name, 18)}\n{height}×{width}", rotation=90,
                         ha="center", va="center", fontsize=7, transform=line[0].transAxes)
            for place, method in enumerate(methods):
                values = maps[name, method][0, number]
                heat = scaled_alone(values, image.shape[:2])
                show_map(line[1 + place], image, values, heat)
                show_mask(line[1 + len(methods) + place], values, heat)
        row = rows[number]
        names = (predictions.classes[predictions.true[row]],
                 predictions.classes[predictions.predicted[row]])
        axes[0, 0].text(0, 1.25, f"{arrow(*names, length=60)} "
                        f"({percent(predictions.probabilities[row].max())}), maps for "
                        f"{predictions.classes[labels[number]]}", fontsize=8, color=WRONG,
                        transform=axes[0, 0].transAxes, va="bottom")

    caption = (f"{' and '.join(methods)} at {', '.join(sizes)}, for the {target} class, each map "
               f"on its own scale. {errors}")

    def page(numbers: range, caption: str) -> Picture:
        figure, grid = grids(
            len(numbers), len(sizes), 1 + 2 * len(methods), "Where the model looked, by layer",
            caption, side_by_side=2 if len(numbers) > 1 else 1, size=0.95, over=0.45, left=0.4,
            aspect=min(images.shape[1] / images.shape[2], 2))
        for axes, number in zip(grid, numbers):
            matrix(axes, number)
        return figure

    if pages == "each":
        return [page(range(number, number + 1), f"Image {number + 1}: {caption}")
                for number in range(len(rows))]
    return page(range(len(rows)), caption)


def scaled_together(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return maps (n, h, w) at a size (height, width) on one scale: 0 to 1, the highest of all."""
    large = np.stack([cv2.resize(np.float32(values), size[::-1]) for values in maps])
    return large / max(large.max(), np.finfo(np.float32).tiny)


def scaled_alone(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a map (h, w) at a size (height, width), from its lowest, 0, to its highest, 1.

    Exactly as the grad-cam library scales its maps.
    """
    from pytorch_grad_cam.utils.image import scale_cam_image

    return scale_cam_image(scale_cam_image(values[None], size[::-1]))[0]


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return half image, half colour, as floats (H, W, 3) in 0–1; hot where the map is high.

    Args:
        image: uint8 (H, W, C).
        heat: (H, W), 0 to 1.
    """
    colours = matplotlib.colormaps[COLOUR_MAP](heat)[..., :3]
    pixels = image.astype(np.float64) / 255
    return 0.5 * colours + 0.5 * (pixels if pixels.shape[2] == 3 else pixels.repeat(3, 2))


def is_empty(values: np.ndarray) -> bool:
    """Tell whether a map says nothing: no positive evidence, or the same everywhere."""
    return not values.max() - values.min() > 1e-12


def show_map(axis: Axes, image: np.ndarray, values: np.ndarray, heat: np.ndarray,
             title: str = "", colour: str = "black") -> None:
    """Show a scaled map over its image, or, where it is empty, the grey image marked so."""
    if is_empty(values):
        show_image(axis, image.mean(2, keepdims=True).astype(np.uint8), title, colour)
        _mark_empty(axis)
    else:
        show_image(axis, overlay(image, heat), title, colour)


def show_mask(axis: Axes, values: np.ndarray, heat: np.ndarray) -> None:
    """Show a scaled map alone, black (0) to white (1)."""
    if is_empty(values):
        show_image(axis, np.full((*heat.shape, 1), 90, np.uint8))
        _mark_empty(axis)
    else:
        show_image(axis, heat[..., None])


def _mark_empty(axis: Axes) -> None:
    axis.text(0.5, 0.5, "empty", ha="center", va="center", fontsize=8, color="white",
              transform=axis.transAxes, bbox={"facecolor": "black", "alpha": 0.7,
                                              "edgecolor": "none", "pad": 2})


def _add_scale(figure: Picture, label: str) -> None:
    width, height = figure.get_size_inches()
    axis = figure.add_axes((0.15 / width, 0.36 / height, 2.4 / width, 0.1 / height))
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(cmap=COLOUR_MAP), cax=axis,
                          orientation="horizontal", ticks=[0, 1])
    bar.ax.set_xticklabels(["0", "highest"], fontsize=7)
    bar.outline.set_visible(False)
    figure.text(2.8 / width, 0.41 / height, label, fontsize=7.5, va="center")


# -- layers ------------------------------------------------------------------------------


class _Recorder:
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
                # A copy: what follows may work in place, which a leaf does not allow.
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


def _frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose weights take no gradients; the model is left alone."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def _reshape_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what turns a layer's output into maps (N, C, H, W): the model's own, for tokens."""
    return getattr(model, "reshape_transform", None) or (lambda output: output)


def map_sizes(model: nn.Module, image: Tensor) -> dict[str, tuple[int, int]]:
    """Return the map (height, width) of every module that has a usable one, shallowest first.

    Args:
        model: its `reshape_transform`, if it has one, turns its outputs into (N, C, H, W).
        image: a batch of one, as the model receives it.

    Left out are modules that run more than once or not at all, those whose output is changed in
    place by what follows, and those that the logits do not depend on pixel by pixel (the last
    block of a transformer with a class token).
    """
    model = _frozen_copy(model)
    reshape = _reshape_of(model)
    recorder = _Recorder(model, [name for name, _ in model.named_modules() if name])
    with torch.enable_grad():
        logits = model(image)
        score = (logits * torch.linspace(1, 2, logits.shape[1], device=logits.device)).sum()
    usable = [name for name, output in recorder.outputs.items()
              if recorder.calls[name] == 1 and not recorder.is_overwritten(name)]
    gradients = torch.autograd.grad(score, [recorder.outputs[name] for name in usable],
                                    allow_unused=True) if score.requires_grad else [None]
    sizes = {}
    for name, gradient in zip(usable, gradients):
        if gradient is None:
            continue
        gradient = reshape(gradient)
        if gradient.ndim == 4 and gradient.any():
            sizes[name] = tuple(gradient.shape[2:])
    return sizes


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
    is_legal = {name: min(size) >= SMALLEST_MAP for name, size in sizes.items()}
    steps = _blocks(model)
    blocks = [name for name in sizes if is_legal[name] and name in steps]
    if layer in ("auto", "stages"):
        if not blocks:
            raise ConfigError(
                f"no block of the model has a map of {SMALLEST_MAP}×{SMALLEST_MAP} pixels or more "
                f"for images of {image.shape[2]}×{image.shape[3]}",
                hint="Larger images, or a model with smaller strides, have one.")
        chosen = [blocks[-1]] if layer == "auto" else _stages(model, blocks, sizes)
        return {name: sizes[name] for name in chosen}
    asked = [layer] if isinstance(layer, str) else list(layer)
    modules = dict(model.named_modules())
    outer = [name for name in blocks if any(modules[name].children())] or blocks
    for name in asked:
        if name not in modules or not name:
            raise ConfigError(f"the model has no layer {name!r}",
                              hint=suggest(name, outer, listed=20))
        if not is_legal.get(name):
            height, width = sizes.get(name, (0, 0))
            why = (f"has a map of {height}×{width} pixels; below {SMALLEST_MAP}×{SMALLEST_MAP} it "
                   "says nothing about where" if name in sizes
                   else "has no map that the logits depend on")
            raise ConfigError(f"layer {name} {why}", hint=f"Possible are {', '.join(outer)}.")
    return {name: sizes[name] for name in sizes if name in asked}


def _blocks(model: nn.Module) -> set[str]:
    """Return the names of whole steps of the network, not of what they are made of.

    Those are the items of the model, of sequences within it, and of what holds over half of its
    parameters (a backbone, an encoder); pooling does not count.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    pooling = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.Dropout,
               nn.Identity)
    is_transformer = hasattr(model, "reshape_transform")
    found, containers = set(), [("", model)]
    while containers:
        path, container = containers.pop()
        for name, child in container.named_children():
            full = f"{path}.{name}" if path else name
            held = sum(parameter.numel() for parameter in child.parameters())
            # What reorders tokens has no parameters, and a shape that could be misread.
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


# -- maps --------------------------------------------------------------------------------


def cam_maps(model: nn.Module, images: Tensor, targets: Sequence[np.ndarray],
             layers: Sequence[str], methods: Sequence[str],
             batch_size: int = 64) -> dict[tuple[str, str], np.ndarray]:
    """Return the class activation maps of images, before they are scaled.

    One forward pass, and one backward pass for each of `targets`, serve all layers and methods
    (a backward pass through frozen weights, from the logits to the first layer only). ScoreCAM
    and AblationCAM need a forward pass for each channel and image besides.

    Args:
        model: left as it is: a frozen copy is used.
        images: (N, C, H, W), as the model receives them, in fp32.
        targets: arrays of N class numbers to explain.
        layers: module names.
        methods: names of the grad-cam library's classes.
        batch_size: images per pass.

    Returns:
        For each (layer, method) float32 (len(targets), N, h, w), 0 or more, at the map's own
        resolution. Scaled per image they are what the library returns.
    """
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = _frozen_copy(model)
    own_reshape = getattr(model, "reshape_transform", None)
    reshape = _reshape_of(model)
    if own_reshape and "AblationCAM" in methods:
        raise ConfigError("AblationCAM switches channels of convolutions off, and this model's "
                          "layers are sequences of tokens", hint="Take another method.")
    engines = {}
    for method in methods:
        engines[method] = getattr(pytorch_grad_cam, method)(
            model, [model.get_submodule(name) for name in layers], own_reshape)
        engines[method].activations_and_grads.release()  # its hooks; the passes here serve all
    found: dict[tuple[str, str], list[list[np.ndarray]]] = {
        (layer, method): [[] for _ in targets] for layer in layers for method in methods}
    starts = range(0, len(images), batch_size)
    work = tqdm(total=len(images) * len(targets) * len(methods) * len(layers), delay=2,
                desc="CAM", unit="map", disable=None, leave=False)
    for start in starts:
        part = images[start:start + batch_size].float()
        recorder = _Recorder(model, layers)
        with torch.enable_grad():
            logits = model(part)
        recorder.remove()
        outputs = [recorder.outputs[layer] for layer in layers]
        activations = {layer: reshape(output).detach().cpu().numpy()
                       for layer, output in zip(layers, outputs)}
        for number, target in enumerate(targets):
            labels = torch.as_tensor(np.asarray(target[start:start + batch_size]),
                                     device=logits.device)
            score = logits.gather(1, labels[:, None]).sum()
            gradients = torch.autograd.grad(score, outputs, retain_graph=True)
            choices = [ClassifierOutputTarget(int(label)) for label in labels]
            for layer, gradient in zip(layers, gradients):
                arrays = activations[layer], reshape(gradient).cpu().numpy()
                for method, engine in engines.items():
                    # Two methods draw bars of their own on stderr, one for each image.
                    with contextlib.redirect_stderr(io.StringIO()):
                        if not engine.detach:
                            arrays = _second_order(model, part, layer, labels)
                        values = engine.get_cam_image(part, model.get_submodule(layer), choices,
                                                      *arrays, False)
                    found[layer, method][number].append(np.maximum(values, 0).astype(np.float32))
                    work.update(len(part))
    work.close()
    return {key: np.stack([np.concatenate(parts) for parts in by_target])
            for key, by_target in found.items()}


def _second_order(model: nn.Module, images: Tensor, layer: str,
                  labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return a layer's output and gradient with graphs, for the second derivative of ShapleyCAM."""
    recorder = _Recorder(model, [layer])
    model.requires_grad_(True)  # a gradient that is constant in the layer has a graph all the same
    with torch.enable_grad():
        score = model(images).gather(1, labels[:, None]).sum()
        output = recorder.outputs[layer]
        gradient, = torch.autograd.grad(score, [output], create_graph=True)
    recorder.remove()
    model.requires_grad_(False)
    return output, gradient
