"""The training of a `Recipe` by cvkit and by its peers, each through its own entry point.

A process of its own trains one of them: `python -m benchmarks.peers lightning '{"width": 16, …}'`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

# Nothing heavier: what a peer's process imports counts. Each imports itself when it trains.
from benchmarks.bare import MEAN, STD
from benchmarks.recipe import DEVICE, MOMENTUM, PEAK, RISE, Pictures, Recipe, WithLoss

if TYPE_CHECKING:
    from benchmarks.measure import Configure, Figures


def cvkit(recipe: Recipe, folder: str) -> None:
    """`cvkit.train`, which also tries a step before, and evaluates and saves after each epoch."""
    from cvkit.config import load_config
    from cvkit.data import ImageData, ImageSet
    from cvkit.runs.experiment import Experiment
    from cvkit.session import train

    parts = Experiment(load_config("cvkit://resnet18_cifar10.yaml", {
        "REQUIRE": None, "OUTPUT_DIR": folder, "DEVICE": DEVICE, "DATA.TRAIN_TRANSFORMS": [],
        "MODEL.width": recipe.width, "DATA.BATCH_SIZE": recipe.batch_size, "OPTIMIZER.lr": PEAK,
        "OPTIMIZER.momentum": MOMENTUM, "OPTIMIZER.weight_decay": 0.0,
        "TRAIN.EPOCHS": recipe.epochs, "TRAIN.PRECISION": recipe.precision}))
    images, labels = recipe.pixels.numpy(), recipe.labels.numpy()
    parts.data = ImageData(tuple("abcdefghij"), ImageSet.of(images, labels),
                           ImageSet.of(~images[:10], labels[:10]), 3, (32, 32), MEAN, STD)
    parts.model.load_state_dict(recipe.model.state_dict())
    recipe.model = parts.model
    recipe.watch(recipe.model)
    train(parts.config, parts=parts)


def lightning(recipe: Recipe, folder: str) -> None:
    """PyTorch Lightning's `Trainer.fit`; at its best without logger and checkpoints."""
    from lightning import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = WithLoss(recipe.model)

        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            return self.model(*batch)["loss"]

        def configure_optimizers(self) -> dict:
            optimizer = recipe.optimizer()
            return {"optimizer": optimizer, "lr_scheduler": {
                "scheduler": recipe.schedule(optimizer), "interval": "step"}}

    precision = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[recipe.precision]
    best = {"precision": precision, "logger": False, "enable_checkpointing": False}
    Trainer(max_epochs=recipe.epochs, default_root_dir=folder,
            **best if recipe.is_best else {}).fit(Module(), recipe.loader())


def transformers(recipe: Recipe, folder: str) -> None:
    """Hugging Face's `Trainer`, which makes a DataLoader itself; gradients are not clipped."""
    from torch.utils.data import default_collate
    from transformers import Trainer, TrainingArguments

    def collated(batch: list | tuple) -> dict[str, Tensor]:
        return dict(zip(("images", "labels"), batch if recipe.is_best else default_collate(batch)))

    best = {"save_strategy": "no", "dataloader_pin_memory": False,
            **({} if recipe.precision == "fp32" else {recipe.precision: True})}
    optimizer = recipe.optimizer()
    Trainer(WithLoss(recipe.model), TrainingArguments(
        folder, num_train_epochs=recipe.epochs, per_device_train_batch_size=recipe.batch_size,
        max_grad_norm=0.0, report_to="none", use_cpu=DEVICE == "cpu",
        **best if recipe.is_best else {}),
        collated, recipe.data, optimizers=(optimizer, recipe.schedule(optimizer))).train()


def timm(recipe: Recipe, folder: str) -> None:
    """timm's loader, optimizer, schedule and scaler in a loop like that of its training script.

    The script is in timm's repository only; of its `train_one_epoch` this is what happens in one
    process without accumulation, clipping and averaged weights.
    """
    from timm.data import create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import AverageMeter, NativeScaler

    loader = recipe.loader() if recipe.is_best else create_loader(
        Pictures(recipe.pixels, recipe.labels), (3, 32, 32), recipe.batch_size, is_training=True,
        no_aug=True, mean=MEAN, std=STD, device=torch.device(DEVICE))
    optimizer = create_optimizer_v2(recipe.model, "sgd", PEAK, 0.0, MOMENTUM,
                                    fused=recipe.is_best or None)
    schedule = CosineLRScheduler(optimizer, recipe.steps - recipe.rise, warmup_t=recipe.rise,
                                 warmup_lr_init=PEAK / 25, warmup_prefix=True, t_in_epochs=False)
    scaler = NativeScaler(DEVICE) if recipe.is_best and recipe.precision == "fp16" else None
    losses, updates = AverageMeter(), 0
    for _ in range(recipe.epochs):
        recipe.model.train()
        for images, labels in loader:
            with recipe.autocast():
                loss = nn.functional.cross_entropy(recipe.model(images), labels)
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler(loss, optimizer)
            losses.update(loss.item(), len(images))
            optimizer.zero_grad()
            updates += 1
            schedule.step_update(updates, metric=losses.avg)


def keras(recipe: Recipe, folder: str) -> None:
    """Keras's `model.fit` on torch, of a `TorchModuleWrapper`; its optimizer has no fused form."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    class Autocast(nn.Module):
        # Keras's policies convert what a wrapped module is given, but not its weights.
        def __init__(self) -> None:
            super().__init__()
            self.model = recipe.model

        def forward(self, images: Tensor) -> Tensor:
            with recipe.autocast():
                return self.model(images).float()

    model = keras.Sequential([keras.Input((3, 32, 32)),
                              keras.layers.TorchModuleWrapper(Autocast())])
    rates = keras.optimizers.schedules.CosineDecay(
        PEAK / 25, recipe.steps - recipe.rise, warmup_target=PEAK, warmup_steps=recipe.rise)
    model.compile(keras.optimizers.SGD(rates, MOMENTUM, nesterov=True),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if recipe.is_best:
        model.fit(recipe.loader(), epochs=recipe.epochs)
    else:  # arrays, as Keras's users have them
        images = recipe.data.normalised(recipe.pixels).contiguous().numpy()
        model.fit(images, recipe.labels.numpy(), recipe.batch_size, recipe.epochs)


def mmpretrain(recipe: Recipe, folder: str) -> None:
    """MMEngine's `Runner`, of a classifier derived from mmpretrain's."""
    from mmengine.optim import OptimWrapper
    from mmengine.runner import Runner
    from mmpretrain.models import BaseClassifier

    class Classifier(BaseClassifier):
        def __init__(self) -> None:
            super().__init__()
            self.model = WithLoss(recipe.model)

        def extract_feat(self, inputs: Tensor) -> Tensor:
            return self.model.model(inputs)

        def forward(self, images: Tensor, labels: Tensor, mode: str) -> dict[str, Tensor]:
            with recipe.autocast():  # AmpOptimWrapper refuses CPUs
                return {"loss": self.model(images, labels)["loss"]}

    # Under a name of its own: MMEngine takes up again what another of that name has opened.
    Runner(Classifier(), folder, recipe.loader(), optim_wrapper=OptimWrapper(recipe.optimizer()),
           train_cfg={"by_epoch": True, "max_epochs": recipe.epochs}, param_scheduler={
               "type": "OneCycleLR", "eta_max": PEAK, "total_steps": recipe.steps,
               "pct_start": RISE, "by_epoch": False}, default_scope="mmpretrain",
           experiment_name=os.path.basename(folder)).train()


_ROUNDS = 3
PEERS = {each.__name__: each for each in (lightning, transformers, timm, keras, mmpretrain)}


# -- measuring ---------------------------------------------------------------------------


def train(name: str, recipe: Recipe) -> list[float]:
    """Train by cvkit or a peer, without a word; return when each step began (s)."""
    with (tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()),
          contextlib.redirect_stderr(io.StringIO())):
        {"cvkit": cvkit, **PEERS}[name](recipe, folder)
    return recipe.started[-recipe.steps:]


def why_not(name: str) -> str:
    """Return in a line why a peer does not train here; "" if it does."""
    try:
        for is_best in (False, True):
            train(name, Recipe(width=16, images=4, batch_size=2, epochs=1, is_best=is_best))
    # Not installed, or not made for this torch: each fails in a way of its own.
    except Exception as error:
        return f"{type(error).__name__}: {error}".split("\n")[0]
    return ""


def in_process(name: str, recipe: Recipe) -> tuple[list[float], Figures]:
    """Train in a process of its own; return when each step began (s), and what the process took.

    So none profits from what another has set, such as how memory is allocated.
    """
    from benchmarks.measure import peak_of

    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "benchmarks.peers", name,
                              json.dumps(asdict(recipe))], stdout=subprocess.PIPE)
    peak, ended = peak_of(child), time.perf_counter()
    started = json.loads(child.communicate()[0].splitlines()[-1])
    # When the second step begins the first is done. Memory is known on Linux only.
    return started, {"first step (s)": started[1] - began, "small training (s)": ended - began,
                     **({"peak memory (MB)": peak} if peak else {})}


def peers(configure: Configure) -> Figures:
    """cvkit's training against that of each peer that trains here; stderr tells which do not."""
    from benchmarks.measure import speed
    from cvkit.runs.experiment import Experiment

    config = configure()
    parts = Experiment(config)
    if parts.device.type != DEVICE:
        print(f"peers: none, as they would train on {DEVICE}", file=sys.stderr)
        return {}
    ways = {"cvkit": ("cvkit", True)}
    for name in PEERS:
        reason = why_not(name)
        print(f"peers: {f'without {name}: {reason}' if reason else f'{name} {version(name)}'}",
              file=sys.stderr)
        if not reason:
            ways |= {f"{name}, out of the box": (name, False), f"{name}, best": (name, True)}
    if len(ways) == 1:
        return {}
    size, steps = config.DATA.BATCH_SIZE, 6 if DEVICE == "cpu" else 390
    recipe = Recipe(config.MODEL.get("width", 64), steps * size, size, 1, parts.precision)
    taken = {way: [] for way in ways}
    for _ in range(_ROUNDS):
        for way, (name, is_best) in ways.items():
            started, _ = in_process(name, replace(recipe, is_best=is_best))
            # From the second step to the last: the first one warms up.
            taken[way].append(started[-1] - started[1])
    figures = {f"{way} (images/s)": (steps - 2) * size / median(taken[way]) for way in ways}
    figures |= {f"cvkit / {way}": speed(taken, "cvkit", way) for way in ways if way != "cvkit"}
    small = replace(recipe, width=16, images=10 * size, epochs=2)
    for way, (name, is_best) in ways.items():
        figures |= {f"{way}: {what}": value for what, value in in_process(
            name, replace(small, is_best=is_best))[1].items()}
    return figures


if __name__ == "__main__":
    print(json.dumps(train(sys.argv[1], Recipe(**json.loads(sys.argv[2])))))
