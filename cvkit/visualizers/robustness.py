"""How accurate the model is on test images that are noisy, blurred, dark, compressed or covered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np

from cvkit.evaluation.corruptions import STRENGTHS, Corruption, corrupt
from cvkit.evaluation.further_images import classify_received
from cvkit.evaluation.reliability import wilson
from cvkit.registry import VISUALIZERS
from cvkit.runs.folder import Run
from cvkit.system.log import ProgressBar
from cvkit.system.text import in_columns, plural
from cvkit.visualizers.drawing import (
    Picture,
    as_csv,
    refuse_below_one,
    show_image,
    styled,
    wrap,
)


@VISUALIZERS.register()
@styled
def robustness(run: Run, count: int = 1000,
               corruptions: Sequence[Corruption] = get_args(Corruption),
               seed: int = 0) -> Picture:
    """Accuracy on corrupted test images, by kind and five strengths, with an example of each.

    By albumentations, after the transforms of tests; see `cvkit.evaluation.corruptions` for what
    the strengths are.

    Args:
        count: test images, drawn at random; all if there are fewer.
        corruptions: noise, blur, darker, brighter, contrast, jpeg, occlusion.
        seed: of the draw, and of the corruptions.
    """
    refuse_below_one(count=count)
    test = run.loaders.test
    places = np.sort(np.random.default_rng(seed).permutation(len(test.images))[:count])
    kinds = list(dict.fromkeys(corruptions))
    if not kinds:
        raise ValueError("corruptions names none")
    batches = [test.take(part.tolist()) for part in np.split(places, range(256, len(places), 256))]
    labels = np.concatenate([batch.labels.cpu().numpy() for batch in batches])
    originals = np.concatenate([test.denormalise(batch.images) for batch in batches])
    progress = ProgressBar("Robustness", STRENGTHS * len(kinds), unit="corruption", delay=2)

    def accuracy(images: np.ndarray) -> float:
        return float((classify_received(run, images) == labels).mean())

    def corrupted(kind: Corruption, strength: int) -> float:
        found = accuracy(np.stack(corrupt(list(originals), kind, strength, seed)))
        if progress.step():
            progress.update()
        return found

    with progress:
        clean = accuracy(originals)
        rates = [[corrupted(kind, strength) for strength in range(1, STRENGTHS + 1)]
                 for kind in kinds]
    matrix = 100 * np.array(rates)
    worst = np.unravel_index(matrix.argmin(), matrix.shape)
    least, most = matrix.mean(1).argmax(), matrix.mean(1).argmin()
    (low, high), = 100 * wilson(np.array([round(clean * len(labels))]), np.array([len(labels)]))
    words = (f"{100 * clean:.1f} % of {plural(len(labels), 'test image')} are right as they are "
             f"(95 % interval {low:.1f} to {high:.1f}), {matrix.mean():.1f} % on average over all "
             f"{'corruptions' if len(kinds) > 1 else 'strengths'}. ")
    is_uneven = np.ptp(matrix.mean(1)) > 0
    if is_uneven:
        words += (f"Hardest is {kinds[most]} ({matrix[most].mean():.1f} %), easiest {kinds[least]} "
                  f"({matrix[least].mean():.1f} %); ")
    words += (f"{'the' if is_uneven else 'The'} lowest accuracy, {matrix[worst]:.1f} %, is "
              f"that of {kinds[worst[0]]} at strength {worst[1] + 1}.")
    caption = wrap(words, 7.6)
    top, row, left, cell = 0.85 + 0.13 * len(caption), 0.62, 1.0, 0.62
    figure = Picture(7.8, top + row * len(kinds) + 0.15)
    figure.headline("Accuracy on corrupted images (%)", "\n".join(caption))
    axes = figure.panel(left, top, cell * (STRENGTHS + 1), row * len(kinds))
    whole = np.column_stack([np.full(len(kinds), 100 * clean), matrix])
    axes.imshow(whole, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (line, column), value in np.ndenumerate(whole):
        axes.text(column, line, f"{value:.1f}", ha="center", va="center", fontsize=8,
                  color="white" if value > 55 else "black")
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xticks(range(STRENGTHS + 1), ["clean", *map(str, range(1, STRENGTHS + 1))])
    axes.xaxis.tick_top()
    axes.set_xlabel("strength")
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    # One of which something is to be seen.
    example = max(originals[:20], key=np.std)
    _draw_examples(figure, example, kinds, seed, left + cell * (STRENGTHS + 1) + 0.25, top,
                   row)
    rows = [(kind, float(clean), *map(float, values)) for kind, values in zip(kinds, rates)]
    header = ("corruption", "clean", *(f"strength {n}" for n in range(1, STRENGTHS + 1)))
    figure.csv = as_csv(header, rows)
    figure.table = "\n".join([*in_columns(
        [header, *((kind, *(f"{value:.4f}" for value in values)) for kind, *values in rows)],
        "<", *[">"] * 6), "", words])
    return figure


def _draw_examples(figure: Picture, image: np.ndarray, kinds: Sequence[Corruption], seed: int,
                   left: float, top: float, row: float) -> None:
    """Show one image under each corruption, at strengths 1, 3 and 5."""
    for line, kind in enumerate(kinds):
        for place, strength in enumerate((1, 3, 5)):
            axes = figure.panel(left + place * row, top + line * row + 0.02, row - 0.04, row - 0.04)
            axes.axis("off")
            worse, = corrupt([image], kind, strength, seed)
            show_image(axes, worse, f"strength {strength}" if not line else "")
