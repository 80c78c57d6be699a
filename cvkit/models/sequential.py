"""A model that a config writes layer by layer: `MODEL: {NAME: Sequential, layers: […]}`."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvkit.errors import ConfigError, where_in
from cvkit.models.probing import in_evaluation_mode
from cvkit.models.whitening import TrainingImages
from cvkit.registry import LAYERS, MODELS, NAME
from cvkit.registry.signatures import is_node, parameters_of

_KINDS = {"activation", "batchnorm", "channelshuffle", "conv", "dropout", "flatten", "fold",
          "instancenorm", "linear", "normalization", "padding", "pixelshuffle", "pooling",
          "upsampling"}
_NO_LAYERS = ("Bilinear", "Lazy", "MaxUnpool", "MultiheadAttention")
_OUTPUTS = ("out_channels", "out_features", "num_classes")


def _torch_layers() -> dict[str, Any]:
    """Return torch's modules of one input and one output, without the lazy ones."""
    return {name: kind for name, kind in vars(nn).items()
            if getattr(kind, "__module__", "").removeprefix("torch.nn.modules.") in _KINDS
            and not name.startswith(_NO_LAYERS)}


LAYERS.add_library("torch.nn", _torch_layers)


@MODELS.register("Sequential")
def sequential(layers: list, num_classes: int = 10, in_channels: int = 3,
               image_size: int | tuple[int, int] = 32,
               training_images: TrainingImages | None = None) -> nn.Sequential:
    """Layers of torch.nn in order: `layers: [{NAME: Conv2d, out_channels: 8, kernel_size: 3}, …]`.

    What a layer receives is found by a trial with an image and need not be set: `in_channels`,
    `in_features`, `num_features`, `num_channels` and `normalized_shape`; nor the outputs of the
    last linear layer or convolution, one for each class.

    Args:
        layers: nodes, each of a name in `python tools/registry.py layer`. Their modules are called
            by number, or by `name: conv1`; `{NAME: Sequential, layers: […]}` groups some.
        num_classes, in_channels, image_size: of the data.
        training_images: for layers whose weights are computed of what comes in.

    Raises:
        ConfigError: a layer cannot take what comes in, or the last one returns no logits.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    model, output = _chain(layers, torch.zeros(1, in_channels, *sides), num_classes,
                           training_images)
    last: Mapping[str, Any] = next(reversed(list(_with_outputs(layers))), {})
    for key in set(_OUTPUTS) & set(last):
        if last[key] != num_classes:
            raise ConfigError(f"{key} of the last layer is {last[key]}, but the data has "
                              f"{num_classes} classes", where_in(last, key),
                              "Leave it out: it is taken from the data.")
    if output.ndim != 2:
        raise ConfigError(f"the last layer returns {_shape(output)}, not one logit for each class",
                          where=where_in(layers[-1], NAME) if layers else "layers",
                          hint="Add {NAME: Flatten} before the first Linear, or after the last "
                               "pooling.")
    return model


@LAYERS.register("Sequential")
def group(layers: list, example: Tensor, num_classes: int | None = None,
          training_images: TrainingImages | None = None) -> nn.Sequential:
    """Layers in order, as one: `{NAME: Sequential, name: stem, layers: […]}`."""
    return _chain(layers, example, num_classes, training_images)[0]


def _chain(layers: Sequence[Any], example: Tensor, num_classes: int | None,
           training_images: TrainingImages | None) -> tuple[nn.Sequential, Tensor]:
    """Build layers on what the one before returns for an example; return the last output too.

    Args:
        num_classes: the outputs of the last layer that has some; None within a model.
        training_images: what the first layer receives of them.
    """
    last = next(reversed(list(_with_outputs(layers))), None)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for number, node in enumerate(layers):
        is_last = last is not None and any(each is last for each in _with_outputs([node]))
        classes = num_classes if is_last else None
        layer = LAYERS.build(_unnamed(node), **_facts(example, classes),
                             training_images=_after(modules.values(), training_images))
        name = node.get("name", str(number))
        if not isinstance(name, str) or "." in name or hasattr(nn.Module, name):
            raise ConfigError(f"a layer cannot be called {name!r}", where_in(node, "name"),
                              "Names are words without dots, and none of those that modules of "
                              "torch have.")
        if name in modules:
            raise ConfigError(f"layer {list(modules).index(name)} is called {name!r} already",
                              where_in(node, "name"))
        modules[name] = layer
        try:
            with torch.no_grad(), in_evaluation_mode(layer):
                output = layer(example)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            known = [key for key in _facts(example, None) if key in node]
            raise ConfigError(
                f"layer {node[NAME]} cannot take {_shape(example)}: {error}", where_in(node, NAME),
                f"Leave {known[0]} out: it is found by itself." if known else None) from error
        if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != 1:
            what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ConfigError(f"layer {node[NAME]} returns {what} for one image, nothing that a "
                              "next layer could take", where_in(node, NAME))
        example = output
    return nn.Sequential(modules), example


def _after(modules: Iterable[nn.Module],
           training_images: TrainingImages | None) -> TrainingImages | None:
    """Return what yields training images as these modules hand them on."""
    if training_images is None:
        return None
    before = nn.Sequential(*modules)

    def handed_on(count: int) -> Iterator[Tensor]:
        for images in training_images(count):
            # Not around the yield: whoever stops half-way would be left without gradients.
            with torch.no_grad(), in_evaluation_mode(before):
                images = before(images)
            yield images

    return handed_on


def _facts(example: Tensor, num_classes: int | None) -> dict[str, Any]:
    """Return what layers are told of their input, and the last one of its outputs."""
    shape = list(example.shape)
    facts = {"example": example, "in_features": shape[-1], "in_channels": shape[1],
             "num_features": shape[1], "num_channels": shape[1],
             "normalized_shape": shape[1:] if len(shape) != 3 else shape[2:]}
    return facts if num_classes is None else facts | dict.fromkeys(_OUTPUTS, num_classes)


def _shape(output: Tensor) -> str:
    return "×".join(map(str, output.shape[1:]))


def _unnamed(node: Any) -> Any:
    """Return a layer's node without the name that its module has."""
    if not is_node(node) or "name" not in node:
        return node
    node = copy.copy(node)
    getattr(node, "defrost", dict)()
    del node["name"]
    return node


def _with_outputs(layers: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the layers whose number of outputs can be set, those of groups too."""
    # What is no list or no layer is refused elsewhere.
    for node in layers if isinstance(layers, (list, tuple)) else ():
        entry = None if LAYERS.refusal_of(node, None) else LAYERS.find(node[NAME])
        if entry is group:
            yield from _with_outputs(node.get("layers", ()))
        elif entry is not None and not set(_OUTPUTS).isdisjoint(parameters_of(entry)[0]):
            yield node


def _problems(node: Mapping[str, Any], key: str) -> Iterator[ConfigError]:
    """Yield what is wrong with the layers of a group, see `Registry.problems`."""
    for number, item in enumerate(node[key]):
        place = where_in(node, key)
        if refusal := LAYERS.refusal_of(item, place and f"{place}.{number}"):
            yield refusal
        else:
            yield from LAYERS.problems(_unnamed(item))


def _problems_of_model(node: Mapping[str, Any], key: str) -> Iterator[ConfigError]:
    """Yield what is wrong with the layers of a model, and those without outputs but the last."""
    yield from _problems(node, key)
    for item in list(_with_outputs(node[key]))[:-1]:
        parameters, _ = parameters_of(LAYERS.get(item[NAME]))
        for output in _OUTPUTS:
            if output not in item and output in parameters and (
                    parameters[output].default is parameters[output].empty):
                yield ConfigError(f"layer {item[NAME]} needs {output}", where_in(item, NAME),
                                  f"Set {output}: only the last layer's is known.")


vars(sequential)["nodes"] = {"layers": _problems_of_model}
vars(group)["nodes"] = {"layers": _problems}
