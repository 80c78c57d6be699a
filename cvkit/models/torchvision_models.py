"""torchvision's classification models by name, with the right number of classes.

With `weights: DEFAULT` a pretrained model keeps all its weights but those of the last layer,
whose shape follows the number of classes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cvkit.errors import DataError
from cvkit.registry import parameters_of


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
        if "aux_logits" in takes:
            arguments["aux_logits"] = False  # a second output that no loss here takes
        if "init_weights" in takes:
            arguments.setdefault("init_weights", True)  # unset, torchvision warns and does this
        if num_classes is not None:
            arguments["num_classes"] = num_classes
        model = builder(**arguments)
        add_reshape(model)
        return model if weights is None else _load_but_the_head(model, name, weights)

    build.__signature__ = inspect.Signature(
        [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in parameters.values()])
    return build


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


def _load_but_the_head(model: nn.Module, name: str, weights: str) -> nn.Module:
    import torchvision.models

    choices = torchvision.models.get_model_weights(name)
    if weights not in choices.__members__:
        raise ValueError(f"weights is one of {', '.join(choices.__members__)}, not {weights!r}")
    try:
        pretrained = choices[weights].get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise DataError(f"the weights {weights} of {name} cannot be downloaded ({error})",
                        hint=f"Put {choices[weights].url} into ~/.cache/torch/hub/checkpoints/, or "
                             "leave MODEL.weights out to train from scratch.") from error
    own = model.state_dict()
    model.load_state_dict({key: value for key, value in pretrained.items()
                           if key in own and value.shape == own[key].shape}, strict=False)
    return model
