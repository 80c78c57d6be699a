"""Class activation maps, by the grad-cam library (J. Gildenblat)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cvkit.errors import ConfigError
from cvkit.models.feature_maps import Recorder, frozen_copy, reshape_of
from cvkit.system.log import ProgressBar

# These methods are constructed as (model, target_layers, reshape_transform).
Method = Literal["GradCAM", "GradCAMPlusPlus", "GradCAMElementWise", "XGradCAM", "HiResCAM",
                 "LayerCAM", "EigenCAM", "EigenGradCAM", "ScoreCAM", "AblationCAM", "ShapleyCAM",
                 "KPCA_CAM", "FEM", "RandomCAM"]
# Their maps are the same for any class.
CLASS_FREE = {"EigenCAM", "KPCA_CAM", "FEM", "RandomCAM"}
# As the library has them, these fail on sequences of tokens.
_CONVOLUTIONS_ONLY = {"AblationCAM", "ShapleyCAM"}
# These make a forward pass for each channel of each image.
_BY_IMAGE = {"ScoreCAM", "AblationCAM"}


def cam_maps(model: nn.Module, images: Tensor, targets: Sequence[np.ndarray],
             layers: Sequence[str], methods: Sequence[str],
             batch_size: int = 64) -> dict[tuple[str, str], np.ndarray]:
    """Return the class activation maps of images, before they are scaled.

    One forward pass, and one backward pass for each of `targets`, serve all layers and methods
    (a backward pass through frozen weights, from the logits to the first layer only). ScoreCAM
    and AblationCAM need a forward pass for each channel and image besides.

    Args:
        model: left as it is: a frozen copy is used.
        images: (N, C, H, W), as the model receives them, in fp32.
        targets: arrays of N class numbers to explain.
        layers: module names.
        methods: names of the grad-cam library's classes.
        batch_size: images per pass.

    Returns:
        For each (layer, method) float32 (len(targets), N, h, w), 0 or more, at the map's own
        resolution. Scaled per image they are what the library returns.
    """
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = frozen_copy(model)
    own_reshape = getattr(model, "reshape_transform", None)
    for method in sorted(_CONVOLUTIONS_ONLY & set(methods)) if own_reshape else ():
        raise ConfigError(f"{method} is for convolutions, and this model's layers are sequences of "
                          "tokens", hint="Take another method, such as GradCAM.")
    engines = {}
    for method in methods:
        engines[method] = getattr(pytorch_grad_cam, method)(
            model, [model.get_submodule(name) for name in layers], own_reshape)
        # Its hooks are of no use: the passes here serve all methods.
        engines[method].activations_and_grads.release()
    # A pass for one image takes long enough for the bar to move.
    if _BY_IMAGE & set(methods):
        batch_size = 1
    found: dict[tuple[str, str], list[list[np.ndarray]]] = {
        (layer, method): [[] for _ in targets] for layer in layers for method in methods}
    total = len(images) * len(targets) * len(methods) * len(layers)
    with ProgressBar("CAM", total, unit="map", delay=2) as progress:
        for start in range(0, len(images), batch_size):
            part = images[start:start + batch_size].float()
            recorder = Recorder(model, layers)
            with torch.enable_grad():
                logits = model(part)
            recorder.remove()
            outputs = [recorder.outputs[layer] for layer in layers]
            activations = {layer: reshape_of(model, layer)(output).detach().cpu().numpy()
                           for layer, output in zip(layers, outputs)}
            for number, target in enumerate(targets):
                labels = torch.as_tensor(np.asarray(target[start:start + batch_size]),
                                         device=logits.device)
                score = logits.gather(1, labels[:, None]).sum()
                gradients = torch.autograd.grad(score, outputs, retain_graph=True)
                choices = [ClassifierOutputTarget(int(label)) for label in labels]
                for layer, gradient in zip(layers, gradients):
                    arrays = activations[layer], reshape_of(model, layer)(gradient).cpu().numpy()
                    # A map could be as high as this if nothing cancelled.
                    most = np.abs(arrays[0] * arrays[1]).sum(1).max((1, 2))
                    for method, engine in engines.items():
                        given = (arrays if engine.detach else
                                 _second_order(model, part, layer, labels))
                        # Two methods draw bars of their own on stderr, one for each image.
                        with contextlib.redirect_stderr(io.StringIO()):
                            values = engine.get_cam_image(part, model.get_submodule(layer), choices,
                                                          *given, False)
                        values = np.maximum(values, 0).astype(np.float32)
                        # What rounding makes of 0 is no evidence.
                        if engine.uses_gradients:
                            values[values.max((1, 2)) < 1e-6 * most] = 0
                        found[layer, method][number].append(values)
                        if progress.step(len(part)):
                            progress.update()
    return {key: np.stack([np.concatenate(parts) for parts in by_target])
            for key, by_target in found.items()}


def _second_order(model: nn.Module, images: Tensor, layer: str,
                  labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return a layer's output and gradient with graphs, for the second derivative of ShapleyCAM."""
    recorder = Recorder(model, [layer])
    # With these, a gradient that is constant in the layer has a graph all the same.
    model.requires_grad_(True)
    with torch.enable_grad():
        score = model(images).gather(1, labels[:, None]).sum()
        output = recorder.outputs[layer]
        gradient, = torch.autograd.grad(score, [output], create_graph=True)
    recorder.remove()
    model.requires_grad_(False)
    return output, gradient
