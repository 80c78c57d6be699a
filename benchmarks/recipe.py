"""What cvkit and its peers train, to be compared: one network, images, optimizer and rates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

# Nothing heavier: what a peer's process imports counts.
from benchmarks.bare import MEAN, STD
from cvkit.models.resnet import resnet18
from cvkit.system.device import autocast

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # what each framework takes by itself
PEAK, MOMENTUM, RISE = 0.05, 0.9, 0.3  # of one cycle; the part of the steps in which the rate rises


class Images(Dataset):
    """Normalised float32 (3, 32, 32) and labels, of uint8 (N, 32, 32, 3), one by one."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels
        self.mean, self.std = (255 * torch.tensor(values, device=images.device)
                               for values in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.labels)

    def normalised(self, images: Tensor) -> Tensor:
        """Return (…, 3, 32, 32) of (…, 32, 32, 3), whose layout it keeps."""
        return ((images - self.mean) / self.std).movedim(-1, -3)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        return self.normalised(self.images[place]).contiguous(), self.labels[place]


class Batches(Images):
    """The same, channels_last, and a whole batch at a time, if that is what is asked for."""

    def __getitems__(self, places: list[int]) -> tuple[Tensor, Tensor]:
        return self.normalised(self.images[places]), self.labels[places]


class Pictures(Images):
    """The same as Pillow's images; what makes tensors of them is set by the loader."""

    transform: Callable

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        from PIL import Image

        return (self.transform(Image.fromarray(self.images[place].numpy())),
                int(self.labels[place]))


class WithLoss(nn.Module):
    """A model that computes its loss itself: {"loss": …, "logits": (N, 10)}."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@dataclass
class Recipe:
    """ResNet-18, SGD and one cycle of the rate; of images each class has one, which noise covers.

    Args:
        width: channels of the first stage.
        images: how many.
        precision: fp32, bf16 or fp16; a peer out of the box computes in fp32 all the same.
        is_best: at its best a peer gets that precision, channels_last, a fused optimizer and
            batches cut from a tensor; out of the box none of these.

    Attributes:
        pixels, labels: uint8 (N, 32, 32, 3) and int64 (N,).
        steps: of the optimizer, in all epochs.
        started: when each step began (s), after whatever else was tried with the model.
    """

    width: int
    images: int
    batch_size: int
    epochs: int
    precision: str = "fp32"
    is_best: bool = True

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        of_class = torch.randint(0, 128, (10, 32, 32, 3), generator=random)
        self.labels = torch.arange(self.images) % 10
        self.pixels = (of_class[self.labels] + torch.randint(
            0, 128, (self.images, 32, 32, 3), generator=random)).to(torch.uint8)
        self.steps = self.epochs * math.ceil(self.images / self.batch_size)
        self.rise = round(RISE * self.steps)
        torch.manual_seed(0)
        layout = torch.channels_last if self.is_best else torch.contiguous_format
        self.model: nn.Module = resnet18(width=self.width).to(DEVICE, memory_format=layout)
        self.watch(self.model)

    def watch(self, model: nn.Module) -> None:
        """Note from now on when a model begins to train on a batch."""
        self.started: list[float] = []

        def note(module: nn.Module, _: object) -> None:
            if module.training:
                self.started.append(time.perf_counter())

        model.register_forward_pre_hook(note)

    @property
    def data(self) -> Images:
        """The images, one by one, or at its best in batches and where they are trained on."""
        if self.is_best:
            return Batches(self.pixels.to(DEVICE), self.labels.to(DEVICE))
        return Images(self.pixels, self.labels)

    def loader(self) -> DataLoader:
        """Return shuffled batches."""
        return DataLoader(self.data, self.batch_size, shuffle=True,
                          collate_fn=(lambda batch: batch) if self.is_best else None)

    def autocast(self) -> AbstractContextManager:
        """Return the context to compute in, where a framework does not offer it."""
        return autocast(torch.device(DEVICE), self.precision if self.is_best else "fp32")

    def optimizer(self) -> torch.optim.SGD:
        return torch.optim.SGD(self.model.parameters(), PEAK, MOMENTUM, nesterov=True,
                               fused=self.is_best or None)

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.OneCycleLR:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, self.steps, pct_start=RISE)
