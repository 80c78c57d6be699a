"""What the machine could do at best: the matrix products of a training step, and nothing else."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from cvkit.models.probing import state_kept
from cvkit.runs.experiment import Experiment

if TYPE_CHECKING:
    from benchmarks.measure import Configure, Figures


class Product(NamedTuple):
    """(rows, inner) × (inner, columns), as a step computes it `times` times."""

    rows: int
    inner: int
    columns: int
    times: int = 1

    @property
    def flops(self) -> int:
        """Multiplications and additions, each counted."""
        return 2 * self.rows * self.inner * self.columns * self.times


def products(model: nn.Module, images: Tensor) -> list[Product]:
    """Return the products of a step: of outputs, gradients of weights, and of what came in.

    Those of convolutions are of the patches that each output is made of, in groups if it has some.
    Only convolutions and linear layers are counted.
    """
    found = []

    def note(layer: Any, inputs: Any, output: Tensor) -> None:
        groups = getattr(layer, "groups", 1)
        rows, inner = output.numel() // len(layer.weight), layer.weight[0].numel()
        columns = len(layer.weight) // groups
        found.append(Product(rows, inner, columns, groups))
        if layer.weight.requires_grad:
            found.append(Product(inner, rows, columns, groups))
        if inputs[0].requires_grad:
            found.append(Product(rows, columns, inner, groups))

    handles = [layer.register_forward_hook(note) for layer in model.modules()
               if isinstance(layer, (nn.Conv2d, nn.Linear))]
    with state_kept(model):
        model(images)
    for handle in handles:
        handle.remove()
    return found


def limit(configure: Configure) -> Figures:
    """Training of the main config against its matrix products alone, of the same shapes."""
    from benchmarks.measure import in_turns, noise, speed, trainer_of  # which imports this

    config = configure("TRAIN.EPOCHS", "20")
    parts = Experiment(config)
    device, size = parts.device, config.DATA.BATCH_SIZE
    batches = 4 if device.type == "cpu" else 200
    trainer = trainer_of(config, noise(size * batches))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(parts.precision, torch.float32)
    found = products(trainer.state.model, next(iter(trainer.loaders.train)).images)
    matrices = [(torch.randn(product.rows, product.inner, device=device, dtype=dtype),
                 torch.randn(product.inner, product.columns, device=device, dtype=dtype),
                 product.times) for product in found]

    def multiply() -> None:
        for _ in range(batches):
            for left, right, times in matrices:
                for _ in range(times):
                    left @ right

    taken = in_turns({"cvkit": trainer.train_epoch, "products": multiply}, device)
    rate = {name: size * batches / median(times) for name, times in taken.items()}
    flops = sum(product.flops for product in found) / size
    return {"products of an image (GFLOP)": flops / 1e9,
            "products alone (TFLOP/s)": rate["products"] * flops / 1e12,
            "products alone (images/s)": rate["products"],
            "cvkit trains (images/s)": rate["cvkit"],
            "cvkit / products alone": speed(taken, "cvkit", "products")}
