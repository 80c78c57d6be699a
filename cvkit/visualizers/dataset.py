"""The data before any training: classes, sizes, mean and standard deviation, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from cvkit.config import Config
from cvkit.data import ImageData, ImageSet
from cvkit.data.near_duplicates import Pair, counterparts, near_duplicates
from cvkit.data.scan import measure
from cvkit.registry import VISUALIZERS
from cvkit.system.text import escape_controls, in_columns, plural
from cvkit.visualizers.drawing import (
    COLOURS,
    Picture,
    drawn_names,
    shorten,
    show_image,
    styled,
    text_width,
    told_names,
    whole_numbers,
    wrap,
)

# More classes than these get no label of their own.
_MANY_CLASSES = 30
# Of so many classes examples are shown.
_ROWS = 20


@VISUALIZERS.register()
@styled
def dataset(data: ImageData, config: Config, per_class: int = 12, seed: int = 0) -> Picture:
    """Class counts and image sizes of train and test, mean and deviation of pixels, examples.

    All computed from the images; no training is needed. How many are equal or nearly so is said
    below; `duplicates` shows them.

    Args:
        per_class: examples of each class, 1 to 40, drawn at random from the training images.
        seed: of that draw.
    """
    if not 1 <= per_class <= 40:
        raise ValueError(f"per_class is 1 to 40, not {per_class}")
    counts = {name: np.bincount(split.labels, minlength=len(data.classes))
              for name, split in data.splits.items()}
    facts = {name: measure(split, f"Measure {name} images") for name, split in data.splits.items()}
    shown = range(min(len(data.classes), _ROWS))
    total = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    names, (note, _) = drawn_names(data.classes), told_names(data.classes)
    compared = compared_splits(data)
    caption = wrap(f"{total} images, {plural(len(data.classes), 'class')} of "
                   f"{_range(counts['train'])} each. "
                   f"{twins_in_words(compared, near_duplicates(compared))}{note}", 8.8)
    example_height, charts = 0.62, 5.07 + 0.13 * len(caption)
    figure = Picture(9, 0.4 + charts + 0.45 + example_height * len(shown))
    figure.headline("The data", "\n".join(caption))
    _draw_counts(figure.panel(0.7, charts - 4.45, 8.1, 1.7), names, counts)
    _draw_sizes(figure.panel(1.0, charts - 1.65, 3.5, 1.65), facts)
    statistics = _statistics_table(data, facts, config)
    figure.table = "\n".join([statistics, *_counts_table(data.classes, counts)])
    text = figure.panel(5.0, charts - 1.65, 3.9, 1.65)
    text.axis("off")
    text.set_title("Pixels, scaled to 0–1", loc="left")
    text.text(0, 0.97, statistics, va="top", family="monospace", fontsize=8, linespacing=1.4)
    top = 0.4 + charts + 0.25
    first = f" (the first {_ROWS} of {len(data.classes)})" if len(data.classes) > _ROWS else ""
    figure.words(0.1, top, f"Training images of each class{first}", 9)
    place, random = min(example_height, 7.6 / per_class), np.random.default_rng(seed)
    for row, label in enumerate(shown):
        y = top + 0.1 + row * example_height
        figure.words(1.15, y + example_height / 2, shorten(names[label], 1.05, 8), 8, ha="right",
                     va="center")
        members = random.permutation(np.flatnonzero(data.train.labels == label))[:per_class]
        for column, position in enumerate(members):
            axes = figure.panel(1.25 + column * place, y, place - 0.04, place - 0.04)
            axes.axis("off")
            show_image(axes, data.train.image(position))
    return figure


def compared_splits(data: ImageData) -> dict[str, ImageSet]:
    """Return the splits without those that lie within another, as of folds taken together."""
    return {name: split for name, split in data.splits.items() if not any(
        len(split) < len(other) and split.images is other.images
        and np.isin(split.index, other.index).all() for other in data.splits.values())}


def twins_in_words(splits: Mapping[str, ImageSet], pairs: Sequence[Pair]) -> str:
    """Say how many images of the splits are equal or nearly so, and in which they are."""
    if not pairs:
        return "No two images are equal, or nearly so."
    twins = {name: len(counterparts(pairs, "train", name)) for name in splits if name != "train"}
    across = [f"{count:,} of the {plural(len(splits[name]), f'{name} image')} "
              f"{'has' if count == 1 else 'have'} such a twin in train"
              for name, count in twins.items() if count]
    labels = {name: split.labels for name, split in splits.items()}
    differing = sum(labels[pair.split][pair.position]
                    != labels[pair.other_split][pair.other_position] for pair in pairs)
    equal = sum(pair.is_equal for pair in pairs)
    words = (f"{plural(len(pairs), 'pair')} of images that "
             f"{'is' if len(pairs) == 1 else 'are'} equal ({equal:,}) or nearly so")
    between = sum(pair.split != pair.other_split for pair in pairs)
    if across:
        words += f"; {' and '.join(across)}"
    elif len(splits) > 1:
        words += f"; {between:,} lie in val and test" if between else "; none lies in two splits"
    return words + (f"; {plural(differing, 'pair')} with two labels." if differing else ".")


def _range(counts: np.ndarray) -> str:
    low, high = int(counts.min()), int(counts.max())
    images = plural(high, "training image")
    return images if low == high else f"{low:,} to {images}"


def _draw_counts(axes: Axes, names: list[str], counts: dict[str, np.ndarray]) -> None:
    axes.set_title("Images per class", loc="left")
    for number, (name, values) in enumerate(counts.items()):
        places, width = _beside_each_other(len(values), number, len(counts))
        bars = axes.bar(places, values, width, label=f"{name}, {values.sum():,}",
                        color=COLOURS[number])
        if len(names) <= 12:
            axes.bar_label(bars, fontsize=6.5, fmt="{:,.0f}", padding=1)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.1)
    if len(names) > _MANY_CLASSES:
        axes.set_xlabel(f"class number, of {len(names)}")
        axes.xaxis.set_major_locator(whole_numbers())
    else:
        # Room in inches: slanted names have that left of the first bar, and below.
        place = 7.3 / len(names)
        slanted = max(text_width(name, 8) for name in names) > place - 0.1
        room = min(1.3, 0.7 + place / 2) if slanted else place
        axes.set_xticks(range(len(names)), [shorten(name, room, 8) for name in names],
                        rotation=30 if slanted else 0, ha="right" if slanted else "center",
                        rotation_mode="anchor")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(counts), borderaxespad=0.2)


def _beside_each_other(places: int, number: int, splits: int) -> tuple[np.ndarray, float]:
    """Return where the bars of one of several splits are, and how wide they are."""
    width = 0.8 / splits
    return np.arange(places) + (number - (splits - 1) / 2) * width, width


def _draw_sizes(axes: Axes, facts: dict[str, dict]) -> None:
    axes.set_title("Image sizes, height×width", loc="left")
    sizes = list(dict.fromkeys(size for fact in facts.values() for size in fact["sizes"]))
    if len(sizes) <= 8:
        for number, (name, fact) in enumerate(facts.items()):
            places, width = _beside_each_other(len(sizes), number, len(facts))
            bars = axes.barh(places, [fact["sizes"].get(size, 0) for size in sizes], width,
                             color=COLOURS[number], label=name)
            axes.bar_label(bars, fontsize=7, fmt="{:,.0f}", padding=2)
        axes.set_yticks(range(len(sizes)), [size.replace("x", "×") for size in sizes])
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel("images")
        axes.grid(axis="y", visible=False)
        return
    for number, (name, fact) in enumerate(facts.items()):
        heights, widths = zip(*(map(int, size.split("x")) for size in fact["sizes"]))
        areas = 6 + 120 * np.asarray(list(fact["sizes"].values())) / sum(fact["sizes"].values())
        axes.scatter(widths, heights, areas, color=COLOURS[number], alpha=0.5, linewidth=0,
                     label=name, clip_on=False)
    axes.set_xlabel("width (pixels)")
    axes.set_ylabel("height (pixels)")
    axes.set_title(f"Image sizes, {len(sizes):,} different", loc="left")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", fontsize=7, markerscale=0.7)


def _counts_table(classes: Sequence[str], counts: dict[str, np.ndarray]) -> list[str]:
    """Return lines with the whole name of each class and its images."""
    rows = [(number, *(f"{values[number]:,}" for values in counts.values()), escape_controls(name))
            for number, name in enumerate(classes)]
    return in_columns([("class", *counts, "name"), *rows], ">", *[">6"] * len(counts))


def _statistics_table(data: ImageData, facts: dict[str, dict], config: Config) -> str:
    def row(title: str, values: Sequence[float]) -> list[str]:
        return [title, *(f"{value:.4f}" for value in values)]

    rows = [["", *(("red", "green", "blue") if data.channels == 3 else ("grey",))]]
    for name, fact in facts.items():
        rows += [row(f"{name} mean", fact["mean"]), row(f"{name} deviation", fact["std"])]
    if np.abs(np.subtract([data.mean, data.std], [facts["train"]["mean"],
                                                   facts["train"]["std"]])).max() > 5e-5:
        is_part = config.DATA.LIMIT or config.DATA.VAL_FRACTION or config.DATA.FOLDS
        is_declared = {"mean", "std"} & set(config.DATA.DATASET) or not is_part
        rows += [row("data set's mean", data.mean), row("... deviation", data.std),
                 ["as it declares them" if is_declared else
                  "of all its training images, not only those used"]]
    return "\n".join(in_columns(rows, "<16", *[">6"] * data.channels))
