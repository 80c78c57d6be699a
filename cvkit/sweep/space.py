"""SWEEP.SPACE: which keys of a config are tried, and with which values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cvkit.config import Config, check_components
from cvkit.config.dialect import flow
from cvkit.config.load import SweepConfig
from cvkit.config.tree import in_words
from cvkit.errors import ConfigError, RunError, raise_together
from cvkit.registry import NAME
from cvkit.registry.signatures import plain
from cvkit.runs.folder import is_among
from cvkit.system.text import suggest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_KINDS: dict[str, type] = {"float": float, "int": int}
_ARGUMENTS = ("low", "high", "log", "step")
# With other values of these, trials could not be compared.
_MEASURE = ("SEED", "SWEEP", "TRAIN.MONITOR", "METRICS", "OUTPUT_DIR", "IMPORTS", "DATA.DATASET",
            "DATA.LIMIT", "DATA.VAL_FRACTION", "DATA.SPLIT_SEED", "DATA.FOLDS", "DATA.FOLD",
            "DATA.FOLD_REPEAT", "DATA.TEST_TRANSFORMS", "TTA")
# So many combinations of values are checked before the first trial; of more, these and each value.
_MOST_CHECKED = 64
# A dimension of a grid has at most so many values.
_MOST_VALUES = 10_000


@dataclass(frozen=True)
class Dimension:
    """The values of one key: those that are listed, or numbers of a range.

    Attributes:
        key: dotted.
        values: that are listed; of a range with a step all of it; else None.
        ends: of a range: the lowest and the highest.
        is_log: whether numbers are proposed evenly by their logarithm.
        step: between them; None for any.
    """

    key: str
    values: tuple[Any, ...] | None
    ends: tuple[Any, Any] | None = None
    is_log: bool = False
    step: float | None = None

    @property
    def corners(self) -> tuple[Any, ...]:
        """The values that are checked: all that are listed, or both ends."""
        return self.values if self.ends is None and self.values else self.ends or ()

    @property
    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.ends is None:
            return CategoricalDistribution([_stored(value) for value in self.values or ()])
        low, high = self.ends
        if isinstance(low, int):
            return IntDistribution(low, high, log=self.is_log, step=int(self.step or 1))
        return FloatDistribution(low, high, log=self.is_log, step=self.step)

    def decoded(self, stored: Any) -> Any:
        """Return the value that Optuna keeps as `stored`."""
        if self.ends is not None:
            return stored
        for value in self.values or ():
            if _stored(value) == stored:
                return value
        raise RunError(f"a trial has {self.key} {stored}, which SPACE does not list")


def _stored(value: Any) -> Any:
    """Return what Optuna keeps of a listed value: scalars as they are, nodes and lists in YAML."""
    return flow(value) if isinstance(value, (Mapping, list, tuple)) else value


class Space:
    """SPACE of a sweep, checked.

    Args:
        sweep: the config that has it.

    Attributes:
        dimensions: in the order of the file.

    Raises:
        ConfigError: unknown keys, values that the config cannot have, ranges with nothing in them;
            all that is wrong, in one message. Nothing was trained.
    """

    def __init__(self, sweep: SweepConfig):
        self._node, self._sweep = sweep.node.SPACE, sweep
        self.dimensions: list[Dimension] = []
        problems: list[ConfigError] = []
        monitor = sweep.node.MONITOR or sweep.config({}).TRAIN.MONITOR
        measure = (*_MEASURE, "LOSS") if monitor == "loss" else _MEASURE
        for key, value in self._node.items():
            if is_among(key, measure):
                problems.append(ConfigError(
                    f"{key} changes what trials are measured by, or where they are",
                    self._node.where(key), "Set it beside SWEEP, for all of them."))
                continue
            try:
                self.dimensions.append(_dimension(key, value, self._node.where(key)))
            except ConfigError as error:
                problems.append(error)
        raise_together(problems)
        self._check_values()

    def _check_values(self) -> None:
        corners = {each.key: each.corners for each in self.dimensions}
        every = (dict(zip(corners, values)) for values in itertools.product(*corners.values()))
        few = list(itertools.islice(every, _MOST_CHECKED + 1))
        refused = next(filter(None, map(self._problem, few)), None)
        if refused is None and len(few) <= _MOST_CHECKED:
            return
        # What is wrong by itself is told as that.
        alone: dict[tuple[str, str], ConfigError] = {}
        for key, values in corners.items():
            for error in filter(None, (self._problem({key: value}) for value in values)):
                # What is wrong with the key is wrong with each value.
                alone.setdefault((key, error.problem.partition(": ")[2]), error)
        raise_together(list(alone.values()))
        if refused is not None:
            raise refused

    def _problem(self, values: Mapping[str, Any]) -> ConfigError | None:
        try:
            check_components(self._sweep.config(values))
        except ConfigError as error:
            key = next(iter(values)) if len(values) == 1 else None
            # The problem's own place is the key's, in a config that nobody sees.
            words = ", ".join(f"{key} {short(value)}" for key, value in values.items())
            return ConfigError(f"{words}: {error.problem}", self._node.where(key), error.hint)
        return None

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """All of it for Optuna, by key."""
        return {each.key: each.distribution for each in self.dimensions}

    def decoded(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what Optuna keeps of a trial as values of the config, by key."""
        return {each.key: each.decoded(params[each.key]) for each in self.dimensions
                if each.key in params}

    def grid_size(self) -> int:
        """Return how many combinations there are.

        Raises:
            ConfigError: a key has a range without a step.
        """
        for each in self.dimensions:
            if each.values is None:
                raise ConfigError("a grid needs values, or a range with a step",
                                  self._node.where(each.key), f"{each.key}: [1, 2, 3]")
        return math.prod(len(each.values or ()) for each in self.dimensions)

    def grid_point(self, number: int) -> dict[str, Any]:
        """Return a combination, as Optuna keeps it, by its number: the last key changes first."""
        point = {}
        for each in reversed(self.dimensions):
            values = each.values or ()
            number, place = divmod(number, len(values))
            point[each.key] = _stored(values[place])
        return point

    def text(self) -> dict[str, str]:
        """Return each key's values in YAML, by which one space is told from another."""
        return {key: flow(value) for key, value in self._node.items()}


def told(values: Mapping[str, Any]) -> str:
    """Return values of keys in words, "lr 0.0123, norm batch"; whole keys where ends are alike."""
    ends = [key.split(".")[-1] for key in values]
    return ", ".join(f"{end if ends.count(end) == 1 else key} {short(value)}"
                     for end, (key, value) in zip(ends, values.items()))


def short(value: Any) -> str:
    """Return a value in words, numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else in_words(plain(value))


def _dimension(key: str, value: Any, where: str) -> Dimension:
    """Return the dimension that a key of SPACE describes."""
    if isinstance(value, (list, tuple)):
        values = tuple(value)
        if not values:
            raise ConfigError("an empty list leaves nothing to try", where)
        stored = list(map(_stored, values))
        again = next((item for place, item in enumerate(stored) if item in stored[:place]), None)
        if again is not None:
            raise ConfigError(f"{again} is listed twice", where)
        return Dimension(key, values)
    if not isinstance(value, Config) or value.get(NAME) not in _KINDS:
        name = value.get(NAME) if isinstance(value, Config) else value
        raise ConfigError(f"expected a list of values or a range, not {in_words(plain(value))}",
                          where, suggest(name, _KINDS, listed=2) + f" {key}: [1, 2], or {key}: "
                          "{NAME: float, low: 1e-3, high: 1, log: true}")
    kind = _KINDS[value[NAME]]
    for argument in value:
        if argument not in (NAME, *_ARGUMENTS):
            raise ConfigError(f"a range has no {argument!r}", value.where(argument),
                              suggest(argument, _ARGUMENTS, listed=4))
    if missing := [each for each in ("low", "high") if each not in value]:
        raise ConfigError(f"the range has no {' and no '.join(missing)}", where)
    numbers = {each: value[each] for each in ("low", "high", "step") if value.get(each) is not None}
    for argument, number in numbers.items():
        if type(number) not in ((int,) if kind is int else (int, float)) or not math.isfinite(
                number):
            raise ConfigError(f"{argument} is a {'whole ' * (kind is int)}number, not "
                              f"{in_words(plain(number))}", value.where(argument))
    low, high, step = kind(value.low), kind(value.high), numbers.get("step")
    is_log = value.get("log", False)
    if type(is_log) is not bool:
        raise ConfigError(f"log is true or false, not {in_words(is_log)}", value.where("log"))
    if low > high:
        raise ConfigError(f"nothing lies from {low} to {high}", where, "low comes before high.")
    if is_log and low <= 0:
        raise ConfigError(f"a logarithmic range begins above 0, not at {low}", value.where("low"))
    if step is not None and (step <= 0 or is_log):
        raise ConfigError("a logarithmic range has no step" if is_log else
                          f"a step is above 0, not {step}", value.where("step"))
    return Dimension(key, _steps(low, high, step or (1 if kind is int and not is_log else None)),
                     (low, high), is_log, step)


def _steps(low: Any, high: Any, step: Any) -> tuple[Any, ...] | None:
    """Return the numbers of a range with a step, unless they are too many for a grid."""
    if step is None or (high - low) / step > _MOST_VALUES:
        return None
    # Without what the tenths of floats add up to.
    count = math.floor((high - low) / step + 1e-9) + 1
    return tuple(type(low)(round(low + number * step, 12)) for number in range(count))
