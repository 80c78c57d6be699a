"""timm's models by name, `timm.convnext_tiny`, with the right number of classes.

`pretrained: true` begins with timm's weights, all but those of the last layer if the number of
classes is another; `timm.resnet18.a1_in1k` names those of one recipe.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import os
import socket
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor, nn

from cvkit.errors import DataError
from cvkit.models.pretrained import TrainedOn
from cvkit.registry.signatures import parameters_of

# Arguments that the run offers under other names, or that are no plain values.
_RENAMED = {"in_chans": "in_channels", "img_size": "image_size"}
_LEFT_OUT = ("pretrained", "device", "dtype", "block_args")


def is_installed() -> bool:
    """Tell whether there is timm."""
    return importlib.util.find_spec("timm") is not None


def timm_names() -> list[str]:
    """Return the names of timm's models, without the prefix; none if it is not installed."""
    if not is_installed():
        return []
    import timm

    return timm.list_models()


@functools.cache
def find_timm(name: str) -> Callable[..., nn.Module] | None:
    """Return a constructor of one of timm's models; None if there is none of that name."""
    if not is_installed():
        return None
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or (tag and name not in timm.list_models(
            f"{architecture}.*", pretrained=True)):
        return None
    entry = timm.model_entrypoint(architecture)
    known, _ = parameters_of(entry)
    # A class that hands arguments on to the one it is derived from does not name them.
    for base in getattr(_class_of(entry), "__mro__", ()):
        if base.__module__.startswith("timm."):
            known = {**{key: value for key, value in parameters_of(base)[0].items()
                        if value.default is not value.empty}, **known}
    parameters = {_RENAMED.get(key, key): value.replace(name=_RENAMED.get(key, key), default=None
                                                        if key in _RENAMED else value.default)
                  for key, value in known.items() if key not in _LEFT_OUT}
    for key, default in (("num_classes", 1000), ("in_channels", 3), ("pretrained", False)):
        parameters[key] = inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default,
                                            annotation=type(default))

    @functools.wraps(entry)
    def build(pretrained: bool = False, in_channels: int = 3,
              image_size: int | tuple[int, int] | None = None, **arguments: Any) -> nn.Module:
        if image_size is not None:
            arguments["img_size"] = image_size
        make = functools.partial(timm.create_model, name, in_chans=in_channels, **arguments)
        model = _pretrained(name, make) if pretrained else make()
        _add_reshape(model)
        return model

    # Here `inspect.signature` looks first; to a type checker functions have no such attribute.
    vars(build)["__signature__"] = inspect.Signature(
        [value.replace(kind=inspect.Parameter.KEYWORD_ONLY) for value in parameters.values()])
    vars(build)["trained_on"] = functools.partial(_trained_on, name)
    return build


def _class_of(entry: Callable) -> Any:
    """Return the class that an entry point is annotated to return."""
    return typing.get_type_hints(entry).get("return")


def _trained_on(name: str, node: Mapping[str, Any]) -> TrainedOn | None:
    import timm

    found = timm.get_pretrained_cfg(name) if node.get("pretrained") else None
    if found is None:
        return None
    _, height, width = found.input_size
    return TrainedOn(_called(found), tuple(found.mean), tuple(found.std), (height, width))


def _called(found: Any) -> str:
    return f"{found.architecture}.{found.tag}" if found.tag else str(found.architecture)


def _pretrained(name: str, make: Callable[..., nn.Module]) -> nn.Module:
    """Return a model with timm's weights.

    Raises:
        DataError: they cannot be downloaded. ValueError: there are none.
    """
    import timm

    found = timm.get_pretrained_cfg(name)
    if found is None or not (found.hf_hub_id or found.url or found.file):
        raise ValueError(f"pretrained: timm has no weights of {name}")
    try:
        with _offline_if_out_of_reach():
            model = make(pretrained=True)
    except OSError as error:
        reason = str(error).strip().split(". ")[0]
        raise DataError(f"the weights {_called(found)} of timm cannot be downloaded ({reason})",
                        hint=f"On a machine with a network, `huggingface-cli download "
                             f"{found.hf_hub_id}` puts them into its cache, which can be copied; "
                             "or name a file of weights: MODEL.INIT_FROM, and pretrained false."
                        ) from error
    count = getattr(model, "num_classes", None)
    new = f"new: {found.classifier}" if count != found.num_classes else "new: nothing"
    model.weights_loaded = f"{_called(found)} of timm; {new}"  # type: ignore[assignment]
    return model


@contextlib.contextmanager
def _offline_if_out_of_reach() -> Iterator[None]:
    """Let the hub look into its cache alone where there is no network; it would try for minutes."""
    from huggingface_hub import constants

    host, before = urlsplit(constants.ENDPOINT).hostname, constants.HF_HUB_OFFLINE
    try:
        # A proxy finds hosts by itself.
        if not any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
            socket.getaddrinfo(host, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _add_reshape(model: nn.Module) -> None:
    """Give a model of tokens `reshape_transform`, which turns its outputs into (N, C, H, W)."""
    grids = (getattr(module, "grid_size", None) for module in model.modules())
    grid = next((grid for grid in grids if isinstance(grid, tuple)), None)
    if getattr(model, "output_fmt", None) == "NHWC":
        model.reshape_transform = _channels_first  # type: ignore[assignment]
    elif grid is not None:
        extra = getattr(model, "num_prefix_tokens", 0)
        model.reshape_transform = functools.partial(  # type: ignore[assignment]
            _tokens_to_map, grid=grid, extra=extra)


def _channels_first(output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2) if output.ndim == 4 else output


def _tokens_to_map(output: Tensor, grid: tuple[int, int], extra: int) -> Tensor:
    """Turn tokens of the class and of patches, (N, extra + H·W, C), into (N, C, H, W)."""
    if output.ndim != 3 or output.shape[1] != extra + grid[0] * grid[1]:
        return output
    return output[:, extra:].transpose(1, 2).unflatten(2, grid)
