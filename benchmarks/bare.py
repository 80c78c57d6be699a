"""The shortest loop that trains as the main config does: crop, CutOut, SGD with one cycle."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Bare:
    """A model with its optimizer and data on a device.

    Args:
        model: on the device already.
        images: uint8 (N, 32, 32, 3).
        labels: int64 (N,).
        precision: fp32, bf16 or fp16.
    """

    def __init__(self, model: nn.Module, images: np.ndarray, labels: np.ndarray,
                 device: torch.device, precision: str):
        self.model, self.device, self.is_half = model, device, precision != "fp32"
        self.dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.images = torch.from_numpy(images).to(device)
        self.labels = torch.from_numpy(labels).to(device)
        self.mean, self.std = (255 * torch.tensor(values, device=device) for values in (MEAN, STD))
        self.pixel = torch.arange(32, device=device)
        self.optimizer = torch.optim.SGD(model.parameters(), 0.03, 0.9, weight_decay=5e-4,
                                         fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.03, 1_000_000)

    def epoch(self, batch_size: int = 128, steps: int | None = None) -> None:
        """Train on all images, or for some steps."""
        order = torch.randperm(len(self.images), device=self.device)
        for chosen in order.split(batch_size)[:steps]:
            with torch.autocast(self.device.type, self.dtype, enabled=self.is_half):
                logits = self.model(self.augmented(self.images[chosen]))
                loss = nn.functional.cross_entropy(logits, self.labels[chosen])
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            self.schedule.step()

    def augmented(self, images: Tensor) -> Tensor:
        """Return normalised float32 (N, 3, 32, 32), channels_last, of uint8 (N, 32, 32, 3)."""
        pixel, count = self.pixel, len(images)
        top, left = torch.randint(0, 9, (2, count, 1), device=self.device)
        hole_top, hole_left = torch.randint(0, 17, (2, count, 1), device=self.device)
        padded = nn.functional.pad(images, (0, 0, 4, 4, 4, 4))
        images = padded[torch.arange(count, device=self.device)[:, None, None],
                        (top + pixel)[:, :, None], (left + pixel)[:, None, :]]
        is_row = (pixel >= hole_top) & (pixel < hole_top + 16)
        is_column = (pixel >= hole_left) & (pixel < hole_left + 16)
        hole = (is_row[:, :, None] & is_column[:, None, :])[..., None]
        return torch.where(hole, 0.0, (images - self.mean) / self.std).permute(0, 3, 1, 2)
