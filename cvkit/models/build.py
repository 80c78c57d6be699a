"""The models, one family per file; torchvision's by name. `build_model` fits one to the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cvkit.errors import ConfigError, located, where_in
from cvkit.models.probing import in_evaluation_mode
from cvkit.models.timm_models import find_timm, timm_names
from cvkit.models.torchvision_models import read_torchvision, smallest_image
from cvkit.models.whitening import TrainingImages
from cvkit.registry import MODELS, NAME
from cvkit.registry.signatures import place_of
from cvkit.system.seeds import random_numbers_kept

MODELS.add_library("torchvision.models", read_torchvision)
MODELS.add_prefixed("timm", find_timm, timm_names)


def build_model(node: Any, num_classes: int, image_shape: tuple[int, int, int],
                takes_weights: bool = True,
                training_images: TrainingImages | None = None) -> nn.Module:
    """Build a model, in training mode, and try it on one image.

    Args:
        node: the config's MODEL.
        num_classes: of the data.
        image_shape: (channels, height, width) that it will be given.
        takes_weights: whether pretrained ones are fetched; not if they will be overwritten.
        training_images: for weights that are computed of them; None if they will be overwritten.

    Raises:
        ConfigError: arguments that contradict the data, or a model that cannot take its images.
    """
    node = {NAME: node} if isinstance(node, str) else node
    for key in ("weights", "pretrained") if not takes_weights else ():
        # A model of one's own may mean anything by it.
        if key in node and (key == "weights" or hasattr(MODELS.find(node[NAME]), "trained_on")):
            node = node.clone()
            node.defrost()
            del node[key]
    channels, height, width = image_shape
    for key, actual, what in (("num_classes", num_classes, "classes"),
                              ("in_channels", channels, "channels")):
        if node.get(key, actual) != actual:
            raise ConfigError(f"{key} is {node[key]}, but the data has {actual} {what}",
                              where=where_in(node, key),
                              hint="Leave it out: it is taken from the data.")
    facts = {"num_classes": num_classes, "in_channels": channels,
             "image_size": height if height == width else (height, width)}
    model = MODELS.build(node, **facts, training_images=training_images)
    if training_images is not None and MODELS.is_own(node):
        _refuse_only_with_images(node, facts)
    with located(node, NAME):
        _try(model, node, num_classes, image_shape)
    return model.train()


def _refuse_only_with_images(node: Mapping[str, Any], facts: dict[str, Any]) -> None:
    """Refuse a model of one's own whose checkpoint could not be read without training images."""
    if not MODELS.asks_for(node, "training_images"):
        return
    try:
        with random_numbers_kept(torch.device("cpu")):
            MODELS.build(node, **facts, training_images=None)
    except Exception as error:
        # The user's own code may raise anything. With images it was built.
        raise ConfigError(f"model {node[NAME]} cannot be built without training_images: "
                          f"{type(error).__name__}: {error}", where_in(node, NAME),
                          "They are None where a checkpoint is read, whose weights replace what is "
                          f"made of them: {place_of(MODELS.get(node[NAME]))}") from error


def _try(model: Any, node: Mapping[str, Any], num_classes: int,
         image_shape: tuple[int, int, int]) -> None:
    """Refuse what is no model, or makes no logits of an image."""
    name, (channels, height, width) = node[NAME], image_shape
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {name} returned {type(model).__name__}, not a torch.nn.Module",
                          hint="Is a return missing?")
    try:
        with torch.no_grad(), in_evaluation_mode(model):
            output = model(torch.zeros(1, *image_shape))
    except (RuntimeError, AssertionError, ValueError) as error:
        # A registered name hides torchvision's.
        smallest = None if name in MODELS.own else smallest_image(name)
        if channels != 3 and smallest:
            hint = "It takes 3 channels. Add {NAME: ToRGB} to both lists of transforms."
        elif smallest and min(height, width) < min(smallest):
            hint = (f"It is made for {smallest[0]}×{smallest[1]} pixels or more. Add "
                    f"{{NAME: Resize, height: {smallest[0]}, width: {smallest[1]}}} to both lists "
                    "of transforms.")
        elif made_for := getattr(MODELS.get(name), "image_size", None):
            hint = ("timm makes it for {0}×{1} pixels. Add {{NAME: Resize, height: {0}, "
                    "width: {1}}} to both lists of transforms.").format(*made_for)
        elif not MODELS.is_own(node):
            hint = None
        else:
            hint = ("It is offered in_channels, image_size and num_classes, as parameters of that "
                    f"name: {place_of(MODELS.get(name))}")
        raise ConfigError(f"model {name} cannot take images of {channels}×{height}×{width}: "
                          f"{error}", hint=hint) from error
    if not isinstance(output, torch.Tensor) or output.shape != (1, num_classes):
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ConfigError(f"model {name} returns {shape} for one image; expected logits of shape "
                          f"(1, {num_classes}), one per class")


def count_parameters(model: nn.Module) -> int:
    """Return how many numbers a model has: shared ones once, frozen ones too."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameters_in_words(model: nn.Module, unit: str = " parameters") -> str:
    """Return the count in words, and where some are frozen, how many are trained."""
    total = count_parameters(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"{total:,}{unit}" + (f" ({trained:,} trained)" if trained < total else "")
