"""Train ResNet-18 on CIFAR-10 in plain torch and torchvision, without any part of cvkit.

The recipe is that of configs/resnet18_cifar10.yaml, so the accuracy should be cvkit's as well:

    python benchmarks/reference.py IMAGES --epochs 5 --seed 0
    python tools/train.py configs/resnet18_cifar10.yaml REQUIRE null TRAIN.EPOCHS 5 SEED 0 \\
        DATA.DATASET.NAME ImageFolder DATA.DATASET.root IMAGES

IMAGES holds train/ and test/ with a folder for each class. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder


def build_model() -> nn.Module:
    """Return torchvision's ResNet-18 with the stem for small images, initialised as torch does."""
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def mean_and_std(root: str) -> tuple[list[float], list[float]]:
    """Return each channel's mean and deviation over all training pixels, scaled to 0–1."""
    images = torch.stack([transforms.functional.to_tensor(image)
                          for image, _ in ImageFolder(f"{root}/train")]).double()
    return images.mean((0, 2, 3)).tolist(), images.std((0, 2, 3), unbiased=False).tolist()


def build_loaders(root: str, batch_size: int, workers: int) -> tuple[DataLoader, DataLoader]:
    """Return the loaders of train/, cropped and with a hole of 16×16 pixels, and of test/."""
    plain = [transforms.ToTensor(), transforms.Normalize(*mean_and_std(root))]
    augmented = [transforms.RandomCrop(32, padding=4), *plain,
                 transforms.RandomErasing(p=1, scale=(0.25, 0.25), ratio=(1, 1), value=0)]
    common = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": True}
    train = ImageFolder(f"{root}/train", transforms.Compose(augmented))
    test = ImageFolder(f"{root}/test", transforms.Compose(plain))
    return (DataLoader(train, batch_size, shuffle=True, **common),
            DataLoader(test, 1000, **common))


def test(model: nn.Module, loader: DataLoader, device: str) -> float:
    """Return the accuracy, computed in float32."""
    model.eval()
    with torch.inference_mode():
        correct = sum((model(images.to(device)).argmax(1) == labels.to(device)).sum().item()
                      for images, labels in loader)
    return correct / len(loader.dataset)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Return the recipe, by default that of the config, changed as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--nesterov", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args(words)


def main() -> None:
    """Train, test after each epoch, and print what came out."""
    args = parse()
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model().to(device, memory_format=torch.channels_last)
    train_loader, test_loader = build_loaders(args.images, args.batch_size, args.workers)
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9,
                                nesterov=args.nesterov, weight_decay=args.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.epochs * len(train_loader))
    started, accuracies = time.perf_counter(), []
    for epoch in range(args.epochs):
        model.train()
        for images, labels in train_loader:
            images = images.to(device, memory_format=torch.channels_last)
            with torch.autocast(device, torch.bfloat16, enabled=args.precision == "bf16"):
                loss = nn.functional.cross_entropy(model(images), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        accuracies.append(test(model, test_loader, device))
        print(f"epoch {epoch + 1}: test accuracy {accuracies[-1]:.2%}", flush=True)
    print(json.dumps({**vars(args), "accuracy": accuracies[-1], "accuracies": accuracies,
                      "seconds": round(time.perf_counter() - started, 1), "device": device,
                      "torch": torch.__version__, "torchvision": torchvision.__version__}))


if __name__ == "__main__":
    main()
