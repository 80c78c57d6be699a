"""Measure cvkit against plain ways of doing the same, in one process; prints ratios.

    python tools/benchmark.py cam
"""

import argparse
import timeit
from collections.abc import Callable

from cvkit.errors import run_tool


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Return the shortest time of several, after one to warm up."""
    work()
    return min(timeit.repeat(work, number=1, repeat=repeats))


def cam(images: int = 20) -> dict[str, float]:
    """Maps of ResNet-18 (layer4 kept at 8×8), for one class of each image."""
    import numpy as np
    import torch
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from cvkit.models.resnet import resnet18
    from cvkit.visualizers.cam_maps import cam_maps

    model = resnet18(strides=[1, 2, 2, 1]).eval()
    batch, labels = torch.randn(images, 3, 32, 32), np.arange(images) % 10
    layers, methods = ["layer1", "layer2", "layer3", "layer4"], ["GradCAM", "GradCAMPlusPlus"]

    def library() -> None:
        GradCAM(model, [model.layer4])(batch, [ClassifierOutputTarget(item) for item in labels])

    one = seconds(lambda: cam_maps(model, batch, [labels], layers[:1], methods[:1]))
    last = seconds(lambda: cam_maps(model, batch, [labels], layers[-1:], methods[:1]))
    all_maps = seconds(lambda: cam_maps(model, batch, [labels], layers, methods))
    direct = seconds(library)
    return {"library: layer4, GradCAM (s)": direct,
            "cvkit: layer4, GradCAM / library": last / direct,
            "cvkit: layer1, GradCAM / library": one / direct,
            "cvkit: 4 layers, 2 methods / library": all_maps / direct,
            "cvkit: 4 layers, 2 methods / layer1, GradCAM": all_maps / one,
            "cvkit: 4 layers, 2 methods / layer4, GradCAM": all_maps / last}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cam"], help="cam: class activation maps")
    figures = {"cam": cam}[parser.parse_args().what]()
    print("\n".join(f"{name:<46} {value:6.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    run_tool(main)
