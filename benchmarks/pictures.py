"""Predicting files as scripts do it: torchvision's transforms, a DataLoader of workers, a CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.bare import MEAN, STD
from cvkit.system.device import autocast


class Files(Dataset):
    """Image files, resized and normalised one by one."""

    def __init__(self, files: Sequence[str], size: int):
        self.files = files
        self.transform = v2.Compose([
            v2.Resize((size, size), antialias=True), v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> Tensor:
        with Image.open(self.files[place]) as image:
            return self.transform(image.convert("RGB"))


@torch.inference_mode()
def plain_predictions(model: nn.Module, files: Sequence[str], classes: Sequence[str], size: int,
                      batch_size: int, device: torch.device, precision: str, table: Path) -> None:
    """Write the class and the probability of each file into a CSV."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    loader = DataLoader(Files(files, size), batch_size=batch_size, num_workers=workers,
                        pin_memory=device.type == "cuda")
    names = iter(files)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class", "probability"])
        for images in loader:
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            with autocast(device, precision):
                probabilities, labels = model(images).float().softmax(1).max(1)
            for label, probability in zip(labels.tolist(), probabilities.tolist()):
                writer.writerow([next(names), classes[label], probability])
