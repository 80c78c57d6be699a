"""torchvision's classification models by name, with the right number of classes.

With `weights: DEFAULT` a model begins with torchvision's pretrained weights, all but those of the
last layer, whose shape follows the number of classes (with as many classes as the weights have, of
the last layer too). What was taken is said in its `weights_loaded`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cvkit.errors import DataError
from cvkit.models.pretrained import TrainedOn, begin_small, misfit
from cvkit.registry.signatures import declare, parameters_of


def read_torchvision() -> dict[str, Callable]:
    """Return a constructor for each of torchvision's classification models."""
    import torchvision.models

    return {name: _adapt(name) for name in torchvision.models.list_models(torchvision.models)}


def smallest_image(name: str) -> tuple[int, int] | None:
    """Return the smallest (height, width) torchvision states for a model of its own, or None."""
    import torchvision.models

    name = name.removeprefix("torchvision.models.")
    if name not in torchvision.models.list_models(torchvision.models):
        return None
    return torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"]


def _adapt(name: str) -> Callable[..., nn.Module]:
    import torchvision.models

    builder = torchvision.models.get_model_builder(name)
    parameters, _ = parameters_of(builder)
    for argument in ("progress", "aux_logits"):
        parameters.pop(argument, None)
    network = inspect.signature(builder).return_annotation
    takes = inspect.signature(network).parameters if inspect.isclass(network) else {}
    for fact in ("num_classes", "image_size"):
        if fact in takes:
            parameters[fact] = inspect.Parameter(fact, inspect.Parameter.KEYWORD_ONLY,
                                                 annotation=int, default=None)

    @functools.wraps(builder)
    def build(weights: str | None = None, num_classes: int | None = None,
              **arguments: Any) -> nn.Module:
        facts = {} if num_classes is None else {"num_classes": num_classes}
        if "aux_logits" in takes:
            # No loss here takes a second output.
            facts["aux_logits"] = False
        if "init_weights" in takes:
            # Torchvision warns where it is not set.
            facts["init_weights"] = arguments.pop("init_weights", True)
        if "image_size" in arguments:
            facts["image_size"] = arguments.pop("image_size")
            if isinstance(facts["image_size"], tuple):
                raise ValueError("takes square images, not {}×{}".format(*facts["image_size"]))
        if weights is None:
            model = builder(**arguments, **facts)
        else:
            model = _pretrained(name, weights, arguments, facts)
        add_reshape(model)
        return model

    declare(build, parameters.values())
    vars(build)["trained_on"] = functools.partial(_trained_on, name)
    return build


def _trained_on(name: str, node: Mapping[str, Any]) -> TrainedOn | None:
    import torchvision.models

    choices = torchvision.models.get_model_weights(name).__members__
    if node.get("weights") not in choices:
        return None
    weights = choices[node["weights"]]
    preset = weights.transforms()
    size, = preset.crop_size
    return TrainedOn(weights.name, tuple(preset.mean), tuple(preset.std), (size, size))


def add_reshape(model: nn.Module) -> None:
    """Give a transformer `reshape_transform`, which turns a layer's output into (N, C, H, W)."""
    from torchvision.models import SwinTransformer, VisionTransformer

    if isinstance(model, VisionTransformer):
        side = model.image_size // model.patch_size
        model.reshape_transform = functools.partial(_tokens_to_map, side=side)
    elif isinstance(model, SwinTransformer):
        width = model.features[0][0].out_channels
        model.reshape_transform = functools.partial(_channels_first, width=width)


def _tokens_to_map(output: Tensor, side: int) -> Tensor:
    """Turn a class token and side² patch tokens, (N, 1 + side², C), into (N, C, side, side)."""
    if output.ndim != 3 or output.shape[1] != side**2 + 1:
        return output
    return output[:, 1:].transpose(1, 2).unflatten(2, (side, side))


def _channels_first(output: Tensor, width: int) -> Tensor:
    """Turn (N, H, W, C) into (N, C, H, W) where C is a multiple of the first layer's width."""
    is_last = output.ndim == 4 and output.shape[3] % width == 0
    return output.permute(0, 3, 1, 2) if is_last else output


def _pretrained(name: str, weights: str, arguments: dict[str, Any],
                facts: dict[str, Any]) -> nn.Module:
    """Return a model with torchvision's weights, all that the number of classes leaves alone.

    Args:
        name, weights: of the model, of its weights.
        arguments: the config's.
        facts: further ones, in which it differs from the model that the weights are of.

    Raises:
        ValueError: no such weights, or they do not fit the arguments; the keys are listed.
        DataError: they cannot be downloaded.
    """
    import torchvision.models
    from torchvision.models.vision_transformer import interpolate_embeddings

    # Those without categories lack the last layers.
    choices = {key: item for key, item in torchvision.models.get_model_weights(
        name).__members__.items() if item.meta["categories"]}
    if weights not in choices:
        raise ValueError(f"weights is one of {', '.join(choices)}, not {weights!r}")
    whole = _as_published(name, choices[weights], arguments)
    facts, changes = dict(facts), []
    if getattr(whole, "transform_input", False):
        # Torchvision sets it together with weights.
        facts["transform_input"] = True
        changes.append("transform_input true")
    if "aux_logits" in facts:
        changes.append("without the auxiliary classifiers")
    state = whole.state_dict()
    if isinstance(whole, torchvision.models.VisionTransformer):
        size = facts.setdefault("image_size", whole.image_size)
        if size != whole.image_size:
            state = interpolate_embeddings(size, whole.patch_size, state)
            changes.append("position embedding interpolated from {0}×{0} to {1}×{1}".format(
                whole.image_size // whole.patch_size, size // whole.patch_size))
    model = torchvision.models.get_model(name, **{**arguments, **facts})
    own = model.state_dict()
    new = [key for key in own if key not in state or state[key].shape != own[key].shape]
    for key in [key for key in state if key not in own or key in new]:
        # Another dict would not know the versions of modules, as that of state_dict() does.
        del state[key]
    model.load_state_dict(state, strict=False)
    begin_small(model, new)
    model.weights_loaded = (f"{', '.join([choices[weights].name, *changes])}: {len(state)} of "
                            f"{len(own)} tensors loaded; new: {', '.join(new) or 'nothing'}")
    return model


def _as_published(name: str, weights: Any, arguments: dict[str, Any]) -> nn.Module:
    """Return the model as torchvision builds it with weights, for the classes of those.

    torchvision reads a file in its own way (keys have new names, modules have versions), and takes
    it only if all keys fit.
    """
    import torchvision.models

    try:
        return torchvision.models.get_model(name, weights=weights, progress=False, **arguments)
    except (OSError, RuntimeError) as error:
        reason = str(error)
        if isinstance(error, OSError) or "invalid hash value" in reason:
            raise DataError(f"the weights {weights.name} of {name} cannot be downloaded ({reason})",
                            hint=f"Put {weights.url} into {torch.hub.get_dir()}/checkpoints/, or "
                                 "leave MODEL.weights out to train from scratch.") from error
        raise misfit(error, weights.name, arguments, "weights") or error from error
