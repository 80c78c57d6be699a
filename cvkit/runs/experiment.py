"""What a config describes, each part built when it is first asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from cvkit.config import Config, check_components
from cvkit.data import ImageData, Loaders, build_data, build_loaders
from cvkit.data.build import build_evaluation_loader
from cvkit.data.splits import evenly
from cvkit.errors import RunError
from cvkit.models import build_model
from cvkit.models.pretrained import TrainedOn, trained_on
from cvkit.models.probing import choose_layout, has_wrong_pools, takes_layout
from cvkit.registry import NAME, VISUALIZERS
from cvkit.runs.initial_weights import InitialWeights, initialise, read_initial_weights
from cvkit.system.command import command
from cvkit.system.device import choose_device, choose_precision
from cvkit.system.seeds import seed_everything

# The facts that visualizers ask for: where each is to be had, in words.
_NEEDS = {"compared": "two or more runs", "range_test": "a run with SCHEDULER.max_lr find",
          "run": "one finished run", "runs": "a finished run",
          "predictions": "one finished run", "model": "one run or config",
          "loaders": "one run or config", "data": "a run or config", "config": "one run or config"}


class Drawable:
    """Something that can be drawn: it has some of the facts that visualizers ask for."""

    config: Config
    # One whose visualizer asks for more is told what this is, and what to do then.
    label = "this"
    advice: str | None = None

    def visualize(self, name: str, **arguments: Any) -> Figure | list[Figure]:
        """Draw one picture; `cvkit visualize --list` says which there are.

        Args:
            name: of a visualizer.
            arguments: its arguments, such as `count=10`.

        Returns:
            A matplotlib figure, which a notebook shows; some visualizers return several.

        Raises:
            UserError: an unknown name or argument, or something it needs is not there.
        """
        return self.draw({NAME: name, **arguments})

    def draw(self, node: Any) -> Figure | list[Figure]:
        """Draw what a node `{NAME: …, arguments}` names, as `visualize`."""
        VISUALIZERS.check(node)
        needed = self.missing(node)
        if needed:
            advice = self.advice
            if needed == _NEEDS["range_test"]:
                advice = f"Without training: {command('find-lr')} CONFIG."
            raise RunError(f"{node[NAME]} needs {needed}; this is {self.label}", hint=advice)
        facts = [fact for fact in VISUALIZERS.offers
                 if VISUALIZERS.asks_for(node, fact) and self._has(fact)]
        return VISUALIZERS.build(node, **{fact: getattr(self, fact) for fact in facts})

    def missing(self, node: Any) -> str | None:
        """Return in words what a visualizer needs and what is not to be had here, or None.

        A fact whose parameter has a default is taken where it is to be had.
        """
        return next((_NEEDS[fact] for fact in VISUALIZERS.offers
                     if VISUALIZERS.asks_for(node, fact, is_needed=True)
                     and not self._has(fact)), None)

    def _has(self, fact: str) -> bool:
        return fact in vars(self) or hasattr(type(self), fact)


# In what state trainings left their models, by numbers that each change of a weight raises.
_left: WeakKeyDictionary[nn.Module, list[int]] = WeakKeyDictionary()


def note_trained(model: nn.Module) -> None:
    """Note that a training leaves a model as it is now, see `Experiment.renew`."""
    _left[model] = _versions(model)


def _versions(model: nn.Module) -> list[int]:
    return [weight._version for weight in model.parameters()]


class Experiment(Drawable):
    """What a config describes: device, data, loaders and model.

    Args:
        config: from `load_config`.
        takes_weights: whether the model begins with the pretrained ones that the config names.

    Each part is built when it is first asked for, and raises `UserError` if something in the
    config or the data is wrong.

    Attributes:
        built_data: the images that the config describes; `data` may be set to others.
        built_model: the network that the config describes; `model` may be set to another.
        layout: of the model and its batches in memory, once the model is built.
        is_viewed: whether the model had to be given the plain layout.
    """

    label = "a config, not a run"
    advice = "Train it, or name a finished run: --run RUN."
    built_data: ImageData | None = None
    built_model: nn.Module | None = None
    is_viewed = False
    layout: torch.memory_format | None = None
    _normalisation: tuple[list[float], list[float]] | None = None

    def __init__(self, config: Config, takes_weights: bool = True):
        self.config, self._takes_weights = config, takes_weights

    def with_config(self, config: Config) -> Experiment:
        """Return these parts, as far as they are built, under another config."""
        other = copy.copy(self)
        other.config = config
        return other

    @property
    def is_trained(self) -> bool:
        """Whether the model that was built is as a training left it."""
        is_built, built = vars(self).get("model") is self.built_model, self.built_model
        return is_built and built is not None and _left.get(built) == _versions(built)

    def renew(self) -> None:
        """Forget a model that is as a training left it, so that another one begins anew.

        One that was set stays, and one that other weights were put into.
        """
        if self.is_trained:
            for part in ("model", "initial_weights"):
                vars(self).pop(part, None)

    def as_resumed(self, normalisation: tuple[list[float], list[float]] | None) -> Experiment:
        """Return these parts for a run that goes on, with the weights of its checkpoint.

        Args:
            normalisation: mean and standard deviation of that checkpoint; None for those of the
                config and the data.
        """
        other = copy.copy(self)
        other._takes_weights, other._normalisation = False, normalisation
        return other

    @cached_property
    def device(self) -> torch.device:
        """Where it computes."""
        return choose_device(self.config.DEVICE, self.config.where("DEVICE"))

    @cached_property
    def precision(self) -> str:
        """fp32, bf16 or fp16."""
        return choose_precision(self.config.TRAIN.PRECISION, self.device,
                                self.config.TRAIN.where("PRECISION"))

    @cached_property
    def data(self) -> ImageData:
        """The images, with DATA.VAL_FRACTION and DATA.LIMIT applied."""
        check_components(self.config)
        self.built_data = build_data(self.config)
        return self.built_data

    @cached_property
    def loaders(self) -> Loaders:
        """Batches of the splits, through the pipelines, on the device."""
        known = self.trained_on
        return build_loaders(self.config, self.data, self.device, self._normalisation,
                             known and (known.mean, known.std))

    @cached_property
    def initial_weights(self) -> InitialWeights | None:
        """What MODEL.INIT_FROM names, if the model begins with it."""
        has_some = self._takes_weights and self.config.MODEL.get("INIT_FROM")
        return read_initial_weights(self.config) if has_some else None

    @property
    def trained_on(self) -> TrainedOn | None:
        """What the weights that the model begins with were trained on, if that is known."""
        if not self._takes_weights:
            return None
        found = self.initial_weights
        return trained_on(self.config.MODEL) if found is None else found.trained_on

    @cached_property
    def model(self) -> nn.Module:
        """The network on the device, with the weights that training begins with."""
        loaders, node = self.loaders, self.config.MODEL
        seed_everything(self.config.SEED, deterministic=self.config.DETERMINISTIC)
        model = build_model(node, len(self.data.classes), loaders.image_shape,
                            self._takes_weights,
                            self.training_images if self._takes_weights else None)
        if self.initial_weights is not None:
            initialise(model, self.config, self.data.classes, loaders.image_shape,
                       self.initial_weights)
            # The model has them now.
            self.initial_weights = replace(self.initial_weights, weights={})
        self.built_model = self._placed(model, loaders.image_shape)
        return self.built_model

    def training_images(self, count: int) -> Iterator[torch.Tensor]:
        """Yield so many training images, or all, in batches (N, C, H, W), from the whole split.

        They are as the model receives those for tests: normalised, without augmentation.
        """
        chosen = evenly(range(len(self.data.train)), count)
        images = self.data.train.take(np.array(chosen))
        loader = build_evaluation_loader(self.config, self.data, images, self.loaders)
        # Each of several processes takes all of them.
        for start in range(0, len(images), loader.plan.batch_size):
            yield loader.take(range(len(images))[start:start + loader.plan.batch_size]).images

    def _placed(self, model: nn.Module, image_shape: Sequence[int]) -> nn.Module:
        """Return the model on the device; it and all batches in the layout that suits it."""
        self.layout = choose_layout(self.config.TRAIN.CHANNELS_LAST, model, self.device)
        model = model.to(self.device).to(memory_format=self.layout)
        self.is_viewed = self.layout is torch.channels_last and not takes_layout(
            model, image_shape, self.device, self.layout)
        if self.is_viewed or (self.layout is torch.channels_last
                              and has_wrong_pools(model, image_shape, self.device)):
            self.layout = torch.contiguous_format
            model = model.to(memory_format=self.layout)
        if "loaders" in vars(self):
            self.loaders.set_layout(self.layout)
        return model
