"""What a learning rate range test found, as a run keeps it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cvkit.errors import RunError
from cvkit.system.files import write_whole

RULE = "half the rate at which the averaged loss is lowest"


@dataclass(frozen=True)
class RangeTest:
    """What a range test found.

    Attributes:
        rates: of each step, rising.
        losses: of each step, before its change of the weights.
        smoothed: each averaged with its neighbours, 7 of 100 steps.
        suggestion: a learning rate, by `RULE`.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_whole(path, json.dumps({**asdict(self), "rule": RULE}) + "\n")

    @classmethod
    def load(cls, path: Path) -> RangeTest:
        """Read what `save` wrote.

        Raises:
            RunError: the file is damaged.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = cls(**{name: content[name] for name in cls.__dataclass_fields__})
            lists = (found.rates, found.losses, found.smoothed)
            numbers = [found.suggestion, *(number for part in lists for number in part)]
            if not all(type(number) in (int, float) and abs(number) < 1e100 for number in numbers):
                raise ValueError("it holds something else than lists of numbers")
            if not 0 < len(found.rates) == len(found.losses) == len(found.smoothed):
                raise ValueError("its lists are not of one length")
            if min(found.suggestion, *found.rates) <= 0:
                raise ValueError("a learning rate is not above 0")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(f"{path} is damaged: {error}", hint="Remove it.") from None
        return found
