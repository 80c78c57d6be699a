"""The loop of the usual scripts: fp32, per-image albumentations, `.item()` every step."""

from __future__ import annotations

import albumentations as A
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.bare import MEAN, STD


class ClassicData(Dataset):
    """Images one by one through albumentations."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels
        self.transform = A.Compose([
            A.PadIfNeeded(40, 40), A.RandomCrop(32, 32),
            A.CoarseDropout(num_holes_range=(1, 1), hole_height_range=(16, 16),
                            hole_width_range=(16, 16), fill=(125, 123, 114), p=1.0),
            A.Normalize(MEAN, STD), A.ToTensorV2()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.transform(image=self.images[place])["image"], self.labels[place]


class Classic:
    """A model with its optimizer and a DataLoader of two workers."""

    def __init__(self, model: nn.Module, images: np.ndarray, labels: np.ndarray,
                 device: torch.device, batch_size: int = 128):
        self.model, self.device = model.to(device), device
        self.loader = DataLoader(ClassicData(images, labels), batch_size=batch_size, shuffle=True,
                                 num_workers=2, pin_memory=device.type == "cuda")
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9,
                                         weight_decay=5e-4)

    def epoch(self) -> tuple[float, float]:
        """Train on all images; return loss and accuracy as these scripts print them."""
        total = correct = 0.0
        for images, labels in self.loader:
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            outputs = self.model(images)
            loss = self.criterion(outputs, labels)
            loss.backward()
            self.optimizer.step()
            total += loss.item()
            correct += (outputs.argmax(1) == labels).sum().item()
        return total / len(self.loader), correct / len(self.loader.dataset)
