"""timm's models by name, `timm.convnext_tiny`, where timm is installed.

With `pretrained: true` a model begins with the weights that timm publishes, the first of several;
a tag chooses others, `timm.resnet50.a1_in1k`. The last layer is new unless the data has as many
classes as the weights. What was taken is said in the model's `weights_loaded`.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cvkit.errors import DataError
from cvkit.models.pretrained import TrainedOn, begin_small, misfit
from cvkit.registry.signatures import declare, parameters_of

# Seconds for an answer before the weights are asked for: huggingface_hub tries for a minute.
PATIENCE = 10

# Arguments of `timm.create_model` that a config, which may be a stranger's, is not to have.
_FILES = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}


def is_installed() -> bool:
    """Tell whether there is timm."""
    return importlib.util.find_spec("timm") is not None


def timm_names(meant: str = "") -> list[str]:
    """Return the names of timm's models; of one whose weights are meant, those with their tags.

    None if timm is not installed.
    """
    if not is_installed():
        return []
    import timm

    network, _, tag = meant.partition(".")
    if tag and timm.is_model(network):
        return [f"{network}.{each}" for each in _tags(network)]
    return timm.list_models()


def find_timm(name: str) -> Callable[..., nn.Module] | None:
    """Return a constructor of one of timm's models; None if there is none of that name."""
    if not is_installed():
        return None
    import timm

    network, _, tag = name.partition(".")
    is_known = timm.is_model(network) and (not tag or tag in _tags(network))
    return _adapt(name) if is_known else None


def _tags(network: str) -> list[str]:
    """Return the tags of all weights of a network, the one that is taken by default first."""
    import timm

    found = timm.list_models(f"{network}.*", pretrained=True)
    default = _published(network).tag
    tags = [name.partition(".")[2] for name in found if name.startswith(f"{network}.")]
    return sorted(tags, key=lambda tag: tag != default)


def _published(name: str) -> Any:
    """Return what timm says of the weights of a model, with or without their tag."""
    import timm

    return timm.models.get_pretrained_cfg(name) or timm.models.PretrainedCfg(architecture=name)


@functools.cache
def _adapt(name: str) -> Callable[..., nn.Module]:
    import timm

    entry, published = timm.model_entrypoint(name), _published(name)
    parameters, is_open = _parameters(entry)
    # Where no class says so, a network of one size has to be told it.
    takes_size = "img_size" in parameters or (is_open and published.fixed_input_size)
    for argument in ("pretrained", "num_classes", "in_chans", "img_size", "device", "dtype"):
        parameters.pop(argument, None)

    @functools.wraps(entry)
    def build(pretrained: bool = False, num_classes: int | None = None,
              in_channels: int | None = None, image_size: int | tuple[int, int] | None = None,
              **arguments: Any) -> nn.Module:
        if files := sorted(_FILES.intersection(arguments)):
            raise ValueError(f"{files[0]} is not taken: it names files, which are read unchecked")
        facts: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
        if takes_size:
            facts["img_size"] = image_size
        if pretrained:
            model = _pretrained(name, arguments, facts)
        else:
            model = _create(name, **arguments, **facts)
        _add_reshape(model, _pair(image_size or published.input_size[1:]))
        return model

    def trained_on(node: Mapping[str, Any]) -> TrainedOn | None:
        if not node.get("pretrained") or not published.has_weights:
            return None
        _, height, width = published.input_size
        return TrainedOn(_label(published), tuple(published.mean), tuple(published.std),
                         (height, width))

    keyword = inspect.Parameter.KEYWORD_ONLY
    facts = [inspect.Parameter("pretrained", keyword, annotation=bool, default=False)]
    facts += [inspect.Parameter(fact, keyword, annotation=int, default=None)
              for fact in ("num_classes", "in_channels", "image_size")]
    declare(build, [*facts, *parameters.values()], is_open)
    vars(build).update(trained_on=trained_on, image_size=published.input_size[1:])
    tags = _tags(name.partition(".")[0])
    build.__doc__ = "\n\n".join([
        inspect.getdoc(entry) or f"A model of {entry.__module__}.",
        "Defaults are those of its class; the function above may set others.",
        f"Weights: {', '.join(tags)}." if tags else "Without weights."])
    return build


def _parameters(entry: Callable) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return what a model's function takes, as `parameters_of`, and what its class hands on."""
    parameters, is_open = parameters_of(entry)
    network = inspect.signature(entry).return_annotation
    for base in network.__mro__ if inspect.isclass(network) else ():
        inner, is_handed_on = parameters_of(base)
        parameters = {**{key: value for key, value in inner.items()
                         if value.default is not value.empty}, **parameters}
        if not is_handed_on:
            break
    return parameters, is_open


def _create(name: str, **arguments: Any) -> Any:
    import timm

    try:
        return timm.create_model(name, **arguments)
    except TypeError as error:
        fixed = re.search(r"multiple values for keyword argument '(\w+)'", str(error))
        if fixed is None:
            raise
        raise ValueError(f"{fixed[1]} is fixed by the name; leave it out") from error


def _pair(sides: int | Sequence[int]) -> tuple[int, int]:
    height, width = (sides, sides) if isinstance(sides, int) else sides
    return height, width


# -- maps --------------------------------------------------------------------------------


def _add_reshape(model: Any, image_size: tuple[int, int]) -> None:
    """Give a model `reshape_transform`, which turns a layer's output into (N, C, H, W)."""
    patches = getattr(model, "patch_embed", None) or getattr(model, "stem", None)
    model.reshape_transform = functools.partial(
        _to_maps, image_size=image_size, grid=getattr(patches, "grid_size", None),
        prefix=getattr(model, "num_prefix_tokens", None) or 0,
        is_channels_last=getattr(model, "output_fmt", None) == "NHWC")


def _to_maps(output: Tensor, image_size: tuple[int, int], grid: tuple[int, int] | None, prefix: int,
             is_channels_last: bool) -> Tensor:
    """Turn tokens (N, prefix + h·w, C), or (N, H, W, C), into maps (N, C, H, W).

    What is in neither form, by the proportions of the image, becomes (N, …), which is no map.
    """
    if output.ndim == 3 and grid is not None:
        count = grid[0] * grid[1]
        if output.shape[1] in (count, count + prefix):
            return output[:, -count:].transpose(1, 2).unflatten(2, tuple(grid))
    if output.ndim != 4:
        return output

    def fits(height: int, width: int) -> bool:
        # Strides that do not divide the image round to either side.
        return abs(height * image_size[1] - width * image_size[0]) < max(image_size)

    is_first, is_last = fits(*output.shape[2:]), fits(*output.shape[1:3])
    if is_last and (is_channels_last or not is_first):
        return output.permute(0, 3, 1, 2)
    return output if is_first else output.flatten(1)


# -- weights -----------------------------------------------------------------------------


def _label(published: Any) -> str:
    return published.tag or published.architecture


def _pretrained(name: str, arguments: dict[str, Any], facts: dict[str, Any]) -> nn.Module:
    """Return a model with the weights that timm publishes.

    Args:
        name: with or without their tag.
        arguments: the config's.
        facts: further ones, by timm's names.

    Raises:
        ValueError: there are none, or they do not fit the arguments; the keys are listed.
        DataError: they cannot be downloaded.
    """
    published = _published(name)
    if not published.has_weights:
        raise ValueError("timm has no weights of it; leave pretrained out")
    label, (channels, *size) = _label(published), published.input_size
    cached = _cached(published)
    # A file, where there is one: huggingface_hub would ask for a newer one all the same.
    overlay = {"file": cached, "custom_load": False} if cached else None
    try:
        with _noting_what_is_new() as new:
            model = _create(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments,
                            **facts)
    except OSError as error:
        raise _unreachable(published, error) from error
    except RuntimeError as error:
        raise misfit(error, label, arguments, "pretrained") or error from error
    begin_small(model, new)
    changes = []
    if facts["in_chans"] not in (None, channels):
        changes.append(f"first layer adapted from {channels} to {facts['in_chans']} channels")
    if facts.get("img_size") and _pair(facts["img_size"]) != tuple(size):
        changes.append("adapted from images of {}×{} to {}×{}".format(
            *size, *_pair(facts["img_size"])))
    own = len(model.state_dict())
    model.weights_loaded = (f"{', '.join([label, *changes])}: {own - len(new)} of {own} tensors "
                            f"loaded; new: {', '.join(new) or 'nothing'}")
    return model


@contextmanager
def _noting_what_is_new() -> Iterator[list[str]]:
    """Note which tensors of a model its file lacks; timm keeps that to itself."""
    load, new = nn.Module.load_state_dict, list[str]()

    def noting(self: nn.Module, *arguments: Any, **options: Any) -> Any:
        result = load(self, *arguments, **options)
        new[:] = result.missing_keys
        return result

    # To a type checker it is another function.
    setattr(nn.Module, "load_state_dict", noting)  # noqa: B010
    try:
        yield new
    finally:
        setattr(nn.Module, "load_state_dict", load)  # noqa: B010


def _cached(published: Any) -> str | None:
    """Return the file of weights that were downloaded before, or None.

    Raises:
        DataError: they were not, and there is no answer from where they are.
    """
    if not published.hf_hub_id:
        return None
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import get_session

    repository, _, revision = published.hf_hub_id.partition("@")
    where = {"repo_id": repository, "filename": "model.safetensors", "revision": revision or None}
    found = try_to_load_from_cache(**where)
    if isinstance(found, str):
        return found
    try:
        get_session().head(hf_hub_url(**where), timeout=PATIENCE)
    except Exception as error:
        # Which library it is that raises, and what, depends on the version.
        raise _unreachable(published, error) from error
    return None


def _unreachable(published: Any, error: Exception) -> DataError:
    """Return the message on weights that cannot be downloaded."""
    if published.hf_hub_id:
        from huggingface_hub.constants import HF_HUB_CACHE

        folder = f"models--{published.hf_hub_id.partition('@')[0].replace('/', '--')}"
        way = (f"Where there is a network, `hf download {published.hf_hub_id} model.safetensors`; "
               f"then copy the folder {folder} from its cache into {HF_HUB_CACHE}")
    else:
        way = f"Put {published.url} into {torch.hub.get_dir()}/checkpoints/"
    return DataError(f"the weights {_label(published)} of timm.{published.architecture} cannot be "
                     f"downloaded ({error})",
                     hint=f"{way}. Or leave MODEL.pretrained out to train from scratch.")
