"""The model in numbers: a table by layer, and its stages as a diagram."""

from __future__ import annotations

import copy
import re
from collections import Counter
from typing import Any

import torch
import torchinfo
from matplotlib.patches import FancyBboxPatch
from torch import nn
from torch.backends import mha
from torch.nn.attention import SDPBackend, sdpa_kernel

from cvkit.config import Config
from cvkit.data import Loaders
from cvkit.models import count_parameters, parameters_in_words
from cvkit.registry import VISUALIZERS
from cvkit.system.text import in_columns
from cvkit.visualizers.drawing import (
    COLOURS,
    DPI,
    FAINT,
    Picture,
    refuse_below_one,
    shorten,
    styled,
    wrap,
)

# A table of more lines is not readable as a picture.
_LINES = 110


@VISUALIZERS.register()
@styled
def summary(model: nn.Module, loaders: Loaders, config: Config, depth: int = 3) -> Picture:
    """Layer by layer: output shape and parameters, by torchinfo. Also as text, in `.table`.

    Args:
        depth: of nested modules. The picture stops earlier where the table is too long for it.
    """
    refuse_below_one(depth=depth)
    table = layer_table(model, loaders.image_shape, depth)
    shown = table
    while depth > 1 and shown.count("\n") > _LINES:
        depth -= 1
        shown = layer_table(model, loaders.image_shape, depth)
    figure = Picture(1, 1, table=table)
    text = figure.text(0, 0, shown, va="top", family="monospace", fontsize=7, linespacing=1.2)
    # Its size is measured, in dots, as fonts and matplotlib's versions differ.
    box = text.get_window_extent()
    width, height = max(box.width / DPI + 0.2, 5.0), box.height / DPI + 0.2
    figure.set_size_inches(width, height)
    text.set_position((0.1 / width, 1 - 0.1 / height))
    figure.caption = (f"{config.MODEL.NAME}, {parameters_in_words(model)}, for images of "
                      f"{_shape(loaders.image_shape)}")
    return figure


@VISUALIZERS.register()
@styled
def architecture(model: nn.Module, loaders: Loaders, config: Config) -> Picture:
    """The stages of the network, from image to logits: output shapes and parameter counts."""
    stages = model_stages(model, loaders.image_shape)
    total = count_parameters(model)
    rows = [("image", "", loaders.image_shape, 0), *stages]
    # A class token and position embeddings, for example, belong to the model as a whole.
    rest = total - sum(count for *_, count in stages)
    words = (f"{config.MODEL.NAME}: {parameters_in_words(model)}, {len(stages)} stages"
             + (f" and {rest:,} parameters outside of them" if rest else "")
             + "; outputs as the layers return them, the image channels×height×width")
    width, step, box_width, left = 7.4, 0.5, 2.9, 0.2
    caption = wrap(words, width - 0.2)
    top = 0.72 + 0.13 * len(caption)
    height = top + step * len(rows) + 0.1
    figure = Picture(width, height, table="\n".join(in_columns(
        [*((name, kind, _shape(shape), f"{count:,}") for name, kind, shape, count in rows),
         *([("outside of them", "", "", f"{rest:,}")] if rest else [])],
        "<23", "<27", "<13", ">12")))
    figure.headline("Architecture", "\n".join(caption))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    most = max((count for *_, count in rows), default=0) or 1
    for number, (name, kind, shape, count) in enumerate(rows):
        y = top + number * step
        axes.add_patch(FancyBboxPatch(
            (left, y), box_width, step - 0.16, boxstyle="round,pad=0,rounding_size=0.06",
            facecolor="#eef4fa" if count else "#f4f4f4", edgecolor=COLOURS[0] if count else FAINT,
            linewidth=0.8))
        middle = y + (step - 0.16) / 2
        axes.text(left + 0.1, middle, shorten(name, 1.3, 8.5, "bold"), va="center", fontsize=8.5,
                  fontweight="bold")
        axes.text(left + box_width - 0.1, middle, shorten(kind, 1.35, 7), va="center", ha="right",
                  fontsize=7, color=FAINT)
        axes.text(left + box_width + 0.15, middle, _shape(shape), va="center", fontsize=8.5)
        if count:
            axes.barh(middle, 1.6 * count / most, 0.18, left=4.4, color=COLOURS[0])
            axes.text(4.45 + 1.6 * count / most, middle, f"{count:,} ({_percent(count / total)})",
                      va="center", fontsize=7.5)
        if number < len(rows) - 1:
            axes.annotate("", (left + box_width / 2, y + step), (left + box_width / 2, y + step
                                                                 - 0.16),
                          arrowprops={"arrowstyle": "->", "color": FAINT, "linewidth": 0.8})
    axes.text(4.4, top - 0.12, "parameters", fontsize=7.5, color=FAINT)
    axes.text(left + box_width + 0.15, top - 0.12, "output", fontsize=7.5, color=FAINT)
    return figure


def layer_table(model: nn.Module, image_shape: tuple[int, int, int], depth: int) -> str:
    """Return torchinfo's table of the layers, down to a depth."""
    found = _inspect(model, image_shape, depth)
    weights = list(model.parameters())
    found.total_params = count_parameters(model)
    found.trainable_params = sum(weight.numel() for weight in weights if weight.requires_grad)
    found.total_param_bytes = sum(weight.nbytes for weight in weights)
    found.total_mult_adds = _mult_adds(model, image_shape)
    text = str(found)
    shared = sum(weight.numel() for module in model.modules()
                 for weight in module.parameters(recurse=False)) - found.total_params
    # Each layer's row has them, as torchinfo's totals would.
    if shared:
        text = re.sub(r"(Total params: .*)", rf"\1 ({shared:,} shared, counted once)", text)
    # torchinfo 1.8 prints the name of its enum where it means the value.
    return re.sub(r"Units\.([A-Z])[A-Z]*", r"\1", text)


def _mult_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Return the multiplications, each with an addition, that an image takes.

    torchinfo takes a linear layer's once for an image, however many tokens or places it runs at,
    and leaves attention out.
    """
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.zeros(1, *image_shape, device=next(model.parameters()).device)
    model, is_fast = copy.deepcopy(model).eval(), mha.get_fastpath_enabled()
    # What attention takes is known only where it is made of products of matrices.
    mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as found:
            model(image)
    finally:
        mha.set_fastpath_enabled(is_fast)
    return found.get_total_flops() // 2


def _inspect(model: nn.Module, image_shape: tuple[int, int, int], depth: int) -> Any:
    weights = next(model.parameters())
    image = torch.zeros(1, *image_shape, device=weights.device)
    # A copy is looked at, as torchinfo puts every part of a model into one mode.
    return torchinfo.summary(copy.deepcopy(model), input_data=image, depth=depth, verbose=0,
                             col_names=("output_size", "num_params"), row_settings=("var_names",))


def model_stages(model: nn.Module, image_shape: tuple[int, int, int]) \
        -> list[tuple[str, str, tuple[int, ...], int]]:
    """Return name, type, output shape and parameter count of each stage, in forward order.

    A stage is a direct child of the model. Where that gives fewer than four that have
    parameters, sequences among them are opened. Parts without parameters that leave the shape
    as it is are left out. Shared parameters count for the first stage that has them.
    """
    layers = _inspect(model, image_shape, 100).summary_list
    found: list[tuple[str, Any]] = []
    depth = 0
    while depth < 4 and sum(layer.num_params > 0 for _, layer in found) < 4:
        depth += 1
        opened = _open(layers, depth)
        if opened == found:
            break
        found = opened
    stages, previous = [], tuple(image_shape)
    counted: set[nn.Parameter] = set()
    for name, layer in found:
        shape = tuple(layer.output_size[1:]) if layer.output_size else ()
        if layer.num_params > 0 or shape != previous:
            new = set(layer.module.parameters()) - counted
            stages.append((name, _kind(layer.module), shape, sum(map(torch.numel, new))))
            counted |= new
        previous = shape
    return stages


def _open(layers: list[Any], depth: int) -> list[tuple[str, Any]]:
    """Return the layers at a depth, and above it those that are no mere sequence of others."""
    found = []
    path: list[str] = []
    skip_below = None
    for layer in layers:
        if layer.depth == 0:
            continue
        path = [*path[:layer.depth - 1], layer.var_name]
        if skip_below is not None and layer.depth > skip_below:
            continue
        skip_below = None
        is_sequence = isinstance(layer.module, (nn.Sequential, nn.ModuleList)) or any(
            isinstance(child, (nn.Sequential, nn.ModuleList)) and layer.num_params > 0
            and sum(p.numel() for p in child.parameters()) > 0.9 * layer.num_params
            for child in layer.module.children())
        if layer.depth < depth and is_sequence:
            continue
        skip_below = layer.depth
        found.append((".".join(path), layer))
    return found


def _kind(module: nn.Module) -> str:
    """Return a module's type; a sequence's as "2 × BasicBlock"."""
    if isinstance(module, (nn.Sequential, nn.ModuleList)) and len(module):
        kinds = Counter(type(child).__name__ for child in module)
        if len(kinds) <= 2:
            return ", ".join(f"{count} × {kind}" if count > 1 else kind
                             for kind, count in kinds.items())
    return type(module).__name__


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %" if part >= 0.0005 else "< 0.1 %"
