"""What an assignment demands of a run: the config's REQUIRE, and whether it is met.

REQUIRE repeats parts of the config as they must be, and states facts beyond it:

    REQUIRE:
      TRAIN: {EPOCHS: 40}
      DATA: {TRAIN_TRANSFORMS: [{NAME: CutOut, size: 16}]}   # among others
      OPTIMIZER: {NAME: SGD, momentum: 0.9}                  # with any lr
      VISUALIZERS: [{NAME: cam, count: 20}]
      only_norm: layer
      scheduler_stepped: true

What the config alone decides is told before data is read, what the model decides before
training, the rest at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from cvkit.config import SCHEMA, Config
from cvkit.config.schema import Component
from cvkit.config.tree import in_words
from cvkit.errors import ConfigError, UserError, raise_together
from cvkit.models import count_parameters, parameters_in_words
from cvkit.models.feature_maps import choose_layers
from cvkit.registry import NAME, REGISTRIES
from cvkit.registry.signatures import accepts, describe_type, parameters_of, plain
from cvkit.reporting.reporter import Reporter
from cvkit.runs.experiment import Experiment
from cvkit.runs.folder import Run
from cvkit.system.log import LOG
from cvkit.system.text import suggest
from cvkit.training.state import TrainingState


@dataclass(frozen=True)
class Demand:
    """One demand and what was found.

    Attributes:
        text: what is demanded, "TRAIN.EPOCHS 40".
        where: its place in the config.
        found: what is there instead, or in detail; None while it cannot be known.
        is_met: None while it cannot be known.
    """

    text: str
    where: str
    found: str | None = None
    is_met: bool | None = None

    @property
    def state(self) -> str:
        """The verdict in words."""
        if self.is_met is None:
            return "known at the end"
        return "met" if self.is_met else "NOT MET"

    def __str__(self) -> str:
        return f"{self.text}: {self.state}{f', {self.found}' if self.found else ''}"


class Requirements(Reporter):
    """Says what is demanded, and at the end whether it is met.

    Args:
        config, parts: of the training.

    Raises:
        ConfigError: the config, or the model, breaks a demand.
    """

    def __init__(self, config: Config, parts: Experiment):
        self.parts, self.demands = parts, check_requirements(config, parts)
        enforce(self.demands, config)

    def begin(self, state: TrainingState) -> None:
        for demand in self.demands:
            LOG.info(f"required   {demand}")

    def end(self, state: TrainingState, run: Run) -> None:
        found = check_requirements(self.parts.config, run)
        for demand, before in zip(found, self.demands, strict=True):
            if before.is_met is None:
                LOG.info(f"required   {demand}")
        if found:
            LOG.info(f"required   {summary(found)}")


def check_requirements(config: Config, parts: Experiment | None = None) -> list[Demand]:
    """Return every demand of the config's REQUIRE, with what is known so far.

    Args:
        config: its REQUIRE may be None: then there are none.
        parts: with an experiment the model is looked at as well, with a finished run its results.

    Raises:
        ConfigError: a demand is none: an unknown key, name or argument, or a wrong type.
    """
    if not config.REQUIRE:
        return []
    return list(_demands(config.REQUIRE, config, SCHEMA, parts))


def enforce(demands: Sequence[Demand], config: Config) -> None:
    """Refuse a config that breaks a demand; a trial run, with DATA.LIMIT, may.

    Raises:
        ConfigError: names every demand that is not met.
    """
    broken: list[UserError] = [
        ConfigError(f"required: {demand.text}; found: {demand.found}", where=demand.where)
        for demand in demands if demand.is_met is False]
    if broken and not config.DATA.LIMIT:
        broken[-1].hint = ("Change it, or train without the demands: REQUIRE null. A trial run, "
                           "DATA.LIMIT 500, may break them.")
        raise_together(broken)


def summary(demands: Sequence[Demand]) -> str:
    """Return in a sentence how many of the demands are met, and which are not."""
    broken = [demand.text for demand in demands if not demand.is_met]
    if not broken:
        return f"all {len(demands)} requirements are met"
    return f"{len(broken)} of {len(demands)} requirements NOT MET: {'; '.join(broken)}"


def _demands(required: Config, actual: Config, schema: Mapping[str, Any],
             parts: Experiment | None) -> Iterator[Demand]:
    is_root = schema is SCHEMA
    for key, value in required.items():
        spec = schema.get(key)
        path, where = actual.path(key), required.where(key)
        if is_root and key in FACTS:
            yield _fact(key, value, where, actual, parts)
        elif spec is None or key == "REQUIRE":
            allowed = [*(FACTS if is_root else ()), *(name for name in schema if name != "REQUIRE")]
            raise ConfigError(f"nothing named {key} can be required", where=where,
                              hint=suggest(key, allowed, listed=30))
        elif is_root and key == "FINE_TUNE":
            raise ConfigError("FINE_TUNE cannot be required, only what it stands for", where=where,
                              hint="That is TRAIN.FREEZE and UNFREEZE, and OPTIMIZER.groups: "
                                   "--print-config shows them.")
        elif isinstance(spec, dict):
            if not isinstance(value, Config):
                raise ConfigError(f"{path} holds keys, not {value!r}", where=where)
            yield from _demands(value, actual[key], spec, parts)
        elif not isinstance(spec, Component):
            is_met = plain(actual[key]) == plain(value)
            found = f"{in_words(actual[key])} ({actual.origin(key)})"
            yield Demand(f"{path} {in_words(value)}", where, None if is_met else found, is_met)
        elif spec.is_list:
            items = value if isinstance(value, (list, tuple)) else [value]
            for item in items:
                yield _node_demand(item, actual[key], spec.kind, path, where)
        else:
            here = [] if actual[key] is None else [actual[key]]
            yield _node_demand(value, here, spec.kind, path, where)


def _node_demand(demanded: Any, nodes: Sequence[Config], kind: str, path: str,
                 where: str) -> Demand:
    """Compare a node with those of the config; arguments it does not name may be anything."""
    if not isinstance(demanded, Config) or not isinstance(demanded.get(NAME), str):
        raise ConfigError(f"a required {kind} is a node {{NAME: …}}, not {demanded!r}", where=where)
    where = demanded.where(NAME)
    registry = REGISTRIES[kind]
    parameters, is_open = parameters_of(registry.get(demanded.NAME, where))
    for key in demanded:
        if not (key == NAME or key in parameters or key in registry.beside or is_open):
            raise ConfigError(f"{kind} {demanded.NAME} has no argument {key!r}",
                              where=demanded.where(key),
                              hint=suggest(key, [*parameters, *registry.beside]))

    if demanded.get("max_lr") == "find":
        raise ConfigError("max_lr find cannot be required: the rate that is found takes its place",
                          where=demanded.where("max_lr"), hint="Leave it out here.")

    def argument(node: Config, key: str) -> Any:
        default = parameters[key].default if key in parameters else None
        return plain(node.get(key, default))

    text = f"{path} {in_words(demanded)}"
    same_name = [node for node in nodes if node.NAME == demanded.NAME]
    is_met = any(all(argument(node, key) == plain(value) for key, value in demanded.items()
                     if key != NAME) for node in same_name)
    found = ", ".join(map(in_words, same_name or nodes)) or "none"
    return Demand(text, where, None if is_met else found, is_met)


@dataclass(frozen=True)
class Fact:
    """Something that can be required by a name of its own.

    Attributes:
        kind: the type of the demanded value.
        text: what is demanded, with the value for {}.
        look: from (value, experiment or run) to what was found and whether that is met.
        is_of_results: whether only a finished run decides it.
    """

    kind: Any
    text: str
    look: Callable[[Any, Any], tuple[str, bool]]
    is_of_results: bool = False


def _fact(key: str, value: Any, where: str, config: Config, parts: Experiment | None) -> Demand:
    fact = FACTS[key]
    if not accepts(fact.kind, value):
        raise ConfigError(f"{key} takes {describe_type(fact.kind)}, not {value!r}", where=where)
    shown = ", ".join(value) if isinstance(value, (list, tuple)) else value
    text = fact.text.format(shown)
    if key == "scheduler_stepped" and config.SCHEDULER is None:
        return Demand(text, where, "no SCHEDULER", False)
    if parts is None or (fact.is_of_results and not isinstance(parts, Run)):
        return Demand(text, where)
    return Demand(text, where, *fact.look(value, parts))


def norm_counts(model: nn.Module) -> Counter[str]:
    """Return how many normalisations of each kind a model has: batch, layer, group and others."""
    kinds: Counter[str] = Counter()
    for module in model.modules():
        name = type(module).__name__
        if isinstance(module, nn.GroupNorm):
            kinds["layer" if module.num_groups == 1 else "group"] += 1
        elif isinstance(module, nn.LayerNorm):
            kinds["layer"] += 1
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            kinds["batch"] += 1
        elif "Norm" in name and not any(module.children()):
            kinds[name] += 1
    return kinds


def _only_norm(norm: str, parts: Experiment) -> tuple[str, bool]:
    counts = norm_counts(parts.model)
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return found or "no normalisation at all", set(counts) == {norm}


def _without(names: Sequence[str], parts: Experiment) -> tuple[str, bool]:
    present = {type(module).__name__ for module in parts.model.modules()} & set(names)
    return ", ".join(sorted(present)) or "none", not present


def _parameters(count: int, parts: Experiment) -> tuple[str, bool]:
    return parameters_in_words(parts.model, unit=""), count_parameters(parts.model) == count


def _cam_map(pixels: int, parts: Experiment) -> tuple[str, bool]:
    image = parts.loaders.test.take([0]).images
    asked = [node.get("layer", "auto") if node.NAME == "cam" else node.get("layers", "stages")
             for node in parts.config.VISUALIZERS if node.NAME in ("cam", "cam_matrix")]
    sizes: dict[str, tuple[int, int]] = {}
    for layer in asked or ["auto"]:
        try:
            sizes |= choose_layers(parts.model, image, layer)
        except ConfigError as error:
            return error.problem, False
    found = ", ".join(f"{name} {height}×{width}" for name, (height, width) in sizes.items())
    return found, min(map(min, sizes.values())) >= pixels


def _scheduler_stepped(demanded: bool, run: Run) -> tuple[str, bool]:
    training = run.checkpoint("last").training
    if training is None:
        return "last.pt does not say", False
    state = training["schedule"]
    followed = "accuracy" if run.config.SCHEDULER.get("mode") == "max" else "loss"
    how = {"batch": "once per optimizer step", "epoch": "once per epoch",
           "metric": f"once per epoch, with the {run.monitored} {followed}"}
    return (f"{state['scheduler_steps']:,} times, {how[state['unit']]}",
            (state["scheduler_steps"] > 0) == demanded)


def _test_accuracy(least: float, run: Run) -> tuple[str, bool]:
    return f"{100 * run.predictions.accuracy:.2f} %", run.predictions.accuracy >= least


FACTS = {
    "only_norm": Fact(Literal["batch", "layer", "group"], "only {} norm", _only_norm),
    "without": Fact(list[str], "no {} in the model", _without),
    "parameters": Fact(int, "{:,} parameters", _parameters),
    "cam_map": Fact(int, "CAM on maps of at least {} pixels a side", _cam_map),
    "scheduler_stepped": Fact(bool, "scheduler stepped", _scheduler_stepped, is_of_results=True),
    "test_accuracy": Fact(float, "test accuracy of at least {:.2%}", _test_accuracy,
                          is_of_results=True),
}
