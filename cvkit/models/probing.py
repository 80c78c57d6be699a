"""Asking a model without leaving a trace, and the memory layout that suits it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cvkit.errors import ConfigError
from cvkit.system.seeds import random_numbers_kept


def choose_layout(channels_last: bool, model: nn.Module,
                  device: torch.device) -> torch.memory_format:
    """Return the memory layout for a model and its images: channels_last where wanted and safe.

    On Apple's GPUs torch's backward passes of norms and pools are wrong in channels_last, or end
    the process, up to 2.14 at least (pytorch issues 175189, 175190). On a CPU, torch 2.15's
    backward pass of a strided 1×1 convolution with fewer than 16 input channels writes out of
    bounds in channels_last for odd batch sizes, and the process dies.
    """
    is_unsafe = device.type == "mps" or (device.type == "cpu" and any(
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and max(module.stride) > 1
        and module.in_channels < 16 for module in model.modules()))
    return torch.channels_last if channels_last and not is_unsafe else torch.contiguous_format


def takes_layout(model: nn.Module, image_shape: Sequence[int], device: torch.device,
                 layout: torch.memory_format) -> bool:
    """Whether a model computes in a layout: `x.view(len(x), -1)` after a convolution does not."""
    images = torch.zeros(2, *image_shape, device=device).to(memory_format=layout)
    with (torch.no_grad(), random_numbers_kept(device), state_kept(model, with_frozen=True),
          in_evaluation_mode(model)):
        for is_training in (False, True):
            try:
                model.train(is_training)(images)
            except (RuntimeError, ValueError) as error:
                if "view size is not compatible" in str(error):
                    return False
                # What fails in training mode alone is for the training to tell, of its own images.
                if not is_training:
                    raise
    return True


def has_wrong_pools(model: nn.Module, image_shape: Sequence[int], device: torch.device) -> bool:
    """Whether torch gets gradients of a model that takes channels_last wrong.

    Before 2.14 it does so on NVIDIA's GPUs of average pools over a padding, as Inception has them
    (pytorch issue 188344).
    """
    return (device.type == "cuda" and torch.__version__ < "2.14"
            and pads_average_pools(model, image_shape, device))


def pads_average_pools(model: nn.Module, image_shape: Sequence[int],
                       device: torch.device) -> bool:
    """Whether a model takes average pools over a padding."""
    found = _PaddedPools()
    with (torch.no_grad(), random_numbers_kept(device), state_kept(model),
          in_evaluation_mode(model), found):
        model(torch.zeros(1, *image_shape, device=device))
    return found.some


class _PaddedPools(TorchDispatchMode):
    some = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        if function is torch.ops.aten.avg_pool2d.default and len(args) > 3:
            self.some |= any(args[3])
        return function(*args, **(kwargs or {}))


@contextmanager
def state_kept(*modules: nn.Module, with_frozen: bool = False) -> Iterator[None]:
    """Give buffers and extra state back what they were: whoever asks a model leaves no trace.

    Args:
        with_frozen: weights without gradients as well, which models move in training themselves.
    """
    kept = []
    for module in modules:
        parameters = {name for name, value in module.named_parameters(remove_duplicate=False)
                      if value.requires_grad or not with_frozen}
        kept.append({name: copy.deepcopy(value) for name, value in module.state_dict().items()
                     if name not in parameters})
    try:
        yield
    finally:
        for module, state in zip(modules, kept):
            module.load_state_dict(state, strict=False)


@contextmanager
def in_evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Let modules evaluate meanwhile, and give them the mode back in which they came."""
    were_training = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, was_training in zip(modules, were_training):
            module.train(was_training)


def refuse_single_images(model: nn.Module, image_shape: tuple[int, int, int],
                         where: object = None) -> None:
    """Refuse to train on a batch of one image where a BatchNorm would see one pixel of it.

    Raises:
        ConfigError: it would; a single value has no deviation to divide by.
    """
    device = next(iter(model.parameters()), torch.zeros(0)).device
    # A copy, since running statistics change.
    twin = copy.deepcopy(model).train()
    try:
        with torch.no_grad(), random_numbers_kept(device):
            twin(torch.zeros(1, *image_shape, device=device))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError("a batch of one image gives batch normalisation a single value per "
                          "channel, and training stops there", where=where,
                          hint="Raise it, or take another norm.") from error


@contextmanager
def same_kernels() -> Iterator[None]:
    """Let a GPU take the same of several kernels each time."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
