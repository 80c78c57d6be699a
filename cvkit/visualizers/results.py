"""Accuracy over the epochs, of results that were kept."""

from __future__ import annotations

from collections.abc import Sequence

from cvkit.results import Result
from cvkit.visualizers.drawing import COLOURS, Picture, shorten, styled, whole_numbers


@styled
def accuracy_curves(results: Sequence[Result]) -> Picture:
    """Draw the accuracy that was evaluated after each epoch, a line for each result.

    Args:
        results: the best first, as the legend lists them.
    """
    height = 3.6 + 0.17 * max(0, len(results) - 12)
    figure = Picture(9, height)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - 0.36 / height))
    axes = figure.add_subplot()
    for number, result in enumerate(results):
        axes.plot(range(1, len(result.curve) + 1), [100 * value for value in result.curve],
                  ("-", "--", ":")[number // len(COLOURS) % 3],
                  color=COLOURS[number % len(COLOURS)], linewidth=1.5,
                  marker="." if len(result.curve) < 3 else None,
                  label=f"{shorten(result.name, 2.2, 8)}, {result.test}")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(whole_numbers())
    splits = {result.split for result in results}
    axes.set_ylabel(f"{splits.pop() if len(splits) == 1 else 'held-out'} accuracy (%)")
    figure.legend(loc="outside right upper", title="config, test accuracy at the end",
                  alignment="left")
    figure.headline("Accuracy over the epochs", "")
    return figure
