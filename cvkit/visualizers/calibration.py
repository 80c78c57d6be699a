"""Whether the model is as often right as it is sure."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from cvkit.evaluation.further_images import predict_images
from cvkit.evaluation.reliability import Reliability, fit_temperature, reliability, scaled, wilson
from cvkit.registry import VISUALIZERS
from cvkit.runs.folder import Run
from cvkit.runs.predictions import Predictions
from cvkit.system.text import in_columns, plural
from cvkit.visualizers.drawing import (
    COLOURS,
    FAINT,
    RIGHT,
    WRONG,
    Picture,
    as_csv,
    refuse_below_one,
    styled,
    whole_numbers,
    wrap,
)


@VISUALIZERS.register()
@styled
def calibration(predictions: Predictions, run: Run | None = None, bins: int = 15) -> Picture:
    """How often the model is right when it is so sure, and the temperature that mends it.

    Calibration errors as of Guo et al. (2017). The temperature is fitted on the validation images,
    if the run has some, and judged on the test images; see `cvkit.evaluation.reliability`.

    Args:
        bins: of equal width between 0 and 1.
    """
    refuse_below_one(bins=bins)
    before = reliability(predictions.probabilities, predictions.true, bins)
    temperature, why = _temperature(run)
    after = None if temperature is None else reliability(
        scaled(predictions.probabilities, temperature), predictions.true, bins)
    caption = wrap(_in_words(predictions, before, after, temperature, why), 8.8)
    top = 0.75 + 0.13 * len(caption)
    figure = Picture(9, top + 4.0)
    figure.headline("Confidence and accuracy", "\n".join(caption))
    square = figure.panel(0.75, top, 3.2, 3.2)
    square.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--", label="as sure as right")
    _draw_curve(square, before, COLOURS[0], "o", "as it is")
    if after is not None:
        _draw_curve(square, after, COLOURS[1], "s", f"temperature {temperature:.2f}")
    square.set_title("Right, by confidence", loc="left")
    square.set_xlabel("confidence: probability of the predicted class")
    square.set_ylabel("part that is right, interval of 95 %")
    for axis, limits in ((square.xaxis, square.set_xlim), (square.yaxis, square.set_ylim)):
        limits(-0.02, 1.03)
        axis.set_major_formatter(PercentFormatter(1, 0, " %"))
    # Below the panel, as the curve may go anywhere within.
    diagonal, *curves = square.lines
    square.legend(handles=[*curves, diagonal], loc="upper left", bbox_to_anchor=(-0.03, -0.15),
                  ncols=3, columnspacing=1)
    beside = figure.panel(4.8, top, 4.0, 3.2)
    _draw_counts(beside, before)
    header = ("confidence from", "to", "images", "right", "mean confidence", "accuracy")
    rows = [(float(low), float(high), int(count), int(right), float(mean),
             float(right / count) if count else float("nan"))
            for low, high, count, right, mean in zip(before.edges, before.edges[1:], before.counts,
                                                     before.right, before.confidence)]
    figure.csv = as_csv(header, rows)
    figure.table = "\n".join([*in_columns(
        [header, *((f"{low:.3f}", f"{high:.3f}", f"{count:,}", f"{right:,}", f"{mean:.4f}",
                    f"{part:.4f}") for low, high, count, right, mean, part in rows)],
        *[">"] * 6), "", figure.caption])
    return figure


def _temperature(run: Run | None) -> tuple[float | None, str]:
    """Return the temperature of a run, or None, and why there is none."""
    if run is None:
        return None, "No temperature was fitted, as these are the predictions of several models."
    if run.data.val is None:
        return None, ("No temperature was fitted, as there are no validation images; "
                      "DATA.VAL_FRACTION 0.1 sets some aside before a training.")
    try:
        return fit_temperature(predict_images(run, run.data.val, "Validation")), ""
    except ValueError as error:
        return None, f"No temperature was fitted: {error}."


def _draw_curve(axes: Axes, found: Reliability, colour: str, marker: str, label: str) -> None:
    filled = found.counts > 0
    count, right = found.counts[filled], found.right[filled]
    axes.vlines(found.confidence[filled], *wilson(right, count).T, color=colour, linewidth=3,
                alpha=0.3)
    axes.plot(found.confidence[filled], right / count, color=colour, marker=marker, markersize=4,
              linewidth=1.2, label=f"{label}: error {_percent(found.expected)}")


def _draw_counts(axes: Axes, found: Reliability) -> None:
    width, wrong = found.edges[1], found.counts - found.right
    for counts, below, what, colour, hatch in (
            (wrong, 0, "wrong", WRONG, "////"), (found.right, wrong, "right", RIGHT, "")):
        axes.bar(found.edges[:-1], counts, width, below, align="edge", color=colour, hatch=hatch,
                 edgecolor="white", linewidth=0.5, label=f"{what}, {counts.sum():,}")
    axes.set_title("Test images", loc="left")
    axes.set_xlabel("confidence")
    axes.set_ylabel("images")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_locator(whole_numbers())
    axes.legend(loc="lower right", bbox_to_anchor=(1.02, 1.0), ncols=2, reverse=True,
                borderaxespad=0.1)


def _in_words(predictions: Predictions, before: Reliability, after: Reliability | None,
              temperature: float | None, why: str) -> str:
    confidence = predictions.probabilities.max(1).astype(np.float64)
    sure, right = float(confidence.mean()), predictions.accuracy
    # Twice the deviation of the accuracy, were each image right as often as the model is sure.
    chance = 2 * np.sqrt((confidence * (1 - confidence)).sum()) / len(predictions.true) + 1e-6
    what = ("The model is about as sure as it is right" if abs(sure - right) <= chance else
            f"The model is {'over' if sure > right else 'under'}-confident")
    worst = int(np.nanargmax(np.abs(before.right / np.maximum(before.counts, 1)
                                    - before.confidence)))
    said = (f"{what}: {_percent(sure)} sure on average, {_percent(right)} right. The expected "
            f"calibration error is {_percent(before.expected)}; the maximum, "
            f"{_percent(before.maximum)}, is that of {plural(int(before.counts[worst]), 'image')} "
            f"between {_percent(before.edges[worst])} and {_percent(before.edges[worst + 1])}.")
    if after is None or temperature is None:
        return f"{said} {why}"
    is_better = after.expected < before.expected
    return (f"{said} Logits divided by {temperature:.2f}, which fits the validation images best, "
            f"{'bring' if is_better else 'raise'} the error of the test images to "
            f"{_percent(after.expected)}; "
            + ("no image changes its class." if is_better else
               "leave them as they are, or fit it on more validation images."))


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"
