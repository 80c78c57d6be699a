"""Loss over learning rate, and the rate that is suggested."""

from __future__ import annotations

from matplotlib.ticker import NullFormatter

from cvkit.registry import VISUALIZERS
from cvkit.runs.range_test import RULE, RangeTest
from cvkit.system.text import in_columns, plural
from cvkit.visualizers.drawing import COLOURS, FAINT, Picture, styled


@VISUALIZERS.register()
@styled
def lr_finder(range_test: RangeTest) -> Picture:
    """Loss over learning rate in the range test before training, with the suggested rate."""
    figure = Picture(8.2, 3.8)
    axes = figure.panel(0.65, 0.75, 5.55, 2.5)
    axes.plot(range_test.rates, range_test.losses, ".", color=FAINT, alpha=0.5, markersize=4,
              label="loss of a step")
    axes.plot(range_test.rates, range_test.smoothed, color=COLOURS[0],
              label="averaged with neighbours")
    suggestion = range_test.suggestion
    axes.axvline(suggestion, color=COLOURS[1], linewidth=1.2, label=f"suggested: {suggestion:g}")
    lowest, first = min(range_test.smoothed), range_test.smoothed[0]
    best = range_test.rates[range_test.smoothed.index(lowest)]
    axes.plot([best], [lowest], "o", color=COLOURS[0], markersize=5, label=f"lowest: {best:.3g}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    # A loss that has blown up would press the rest flat.
    room = max(first - lowest, 0.1)
    axes.set_ylim(lowest - 0.3 * room, first + 0.8 * room)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    # The legend stands beside the axes, as the curve may go anywhere.
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.headline("Learning rate range test",
                    f"Suggested is {suggestion:g}: {RULE}.\n"
                    f"{plural(len(range_test.rates), 'step')} at rising rates, on a "
                    "copy of the model.")
    rows = [(f"{rate:.4g}", f"{loss:.4f}", f"{mean:.4f}") for rate, loss, mean in zip(
        range_test.rates, range_test.losses, range_test.smoothed)]
    figure.table = "\n".join(in_columns([("rate", "loss", "average"), *rows], "<10", "<7"))
    return figure
