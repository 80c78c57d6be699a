"""What the model makes of test images: each a point, near those that it finds alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import nn

from cvkit.data import Loaders
from cvkit.errors import ConfigError, RunError
from cvkit.models.features import penultimate_features
from cvkit.models.probing import in_evaluation_mode, state_kept
from cvkit.registry import VISUALIZERS
from cvkit.runs.predictions import Predictions
from cvkit.system.seeds import random_numbers_kept, seed_random_numbers
from cvkit.system.text import escape_controls, in_columns, plural
from cvkit.visualizers.drawing import (
    COLOURS,
    DPI,
    FAINT,
    WRONG,
    Picture,
    Points,
    as_csv,
    drawn_names,
    image_names,
    images_of,
    message,
    positions_of,
    refuse_below_one,
    shorten,
    styled,
    text_width,
    told_names,
    wrap,
)

Method = Literal["TSNE", "PCA", "UMAP"]
_TITLES = {"TSNE": "t-SNE", "PCA": "PCA", "UMAP": "UMAP"}
_NEIGHBOURS = 10
# With fewer images there are no neighbourhoods to speak of.
_FEWEST = 5
# The longest side of what a page shows of an image, in pixels.
_THUMBNAIL = 48
# Of more classes than these some alone are coloured and named: colours and shapes tell so many.
_NAMED, _OF_MANY = 20, 14
# Colour alone does not tell ten classes, least of all the colour-blind.
_SHAPES = ("o", "^", "s")
_WIDTH, _EDGE = 6.4, 0.1
_LABEL_POINTS, _LABEL_HEIGHT, _MARK = 8.5, 0.16, 0.14


@VISUALIZERS.register()
@styled
def embedding(predictions: Predictions, model: nn.Module, loaders: Loaders,
              method: Method = "TSNE", count: int = 2000, seed: int = 0) -> Picture:
    """Test images as points, near each other where the last layer is given much the same.

    Colours and shapes are those of the true class; what is misclassified has a ring.

    Args:
        method: how features become two numbers. TSNE, after PCA to 50, keeps neighbours; PCA keeps
            what varies most; UMAP needs `pip install umap-learn`.
        count: images at most, drawn of all classes in proportion.
        seed: of that draw, and of the method.
    """
    refuse_below_one(count=count)
    rows, features, images = _features(
        predictions, model, loaders, _drawn(predictions.true, count, seed), seed)
    if len(rows) < _FEWEST or features.shape[1] < 2:
        return message(f"No embedding of {plural(len(rows), 'test image')} with "
                       f"{plural(features.shape[1], 'feature')} each: it takes "
                       f"{_FEWEST} images and 2 features.")
    if not np.ptp(features, axis=0).astype(np.float32).var():
        return message("No embedding: the last layer is given the same for all images, as of a "
                       "model that has died.")
    plane, meaning = _plane(features, method, seed)
    true, predicted = predictions.true[rows], predictions.predicted[rows]
    # Of few images of a class no more than all others could be neighbours of its own.
    near = int(np.clip(len(rows) // len(np.unique(true)) - 1, 1, _NEIGHBOURS))
    shares = _neighbours(features, true, len(predictions.classes), near)
    of = "" if len(rows) == len(predictions.true) else f" of {len(predictions.true):,}"
    wrong = int((true != predicted).sum())
    ringed = {0: "None is misclassified", 1: "One is misclassified and has a ring"}.get(
        wrong, f"{wrong:,} are misclassified and have a ring")
    named = _named(shares)
    note, numbered = told_names(predictions.classes)
    some = "" if len(named) == len(np.unique(true)) else (
        f" Coloured are the {len(named)} classes that mix most, of {len(predictions.classes)}.")
    caption = (f"{len(rows):,}{of} test images by the {plural(features.shape[1], 'feature')} that "
               f"the last layer is given, in two by {_TITLES[method]}. {ringed}.{some} "
               f"{_in_words(shares, true, predictions.classes, near)} {meaning}{note}")
    lines = wrap(caption, _WIDTH)
    header = 0.42 + 0.13 * len(lines)
    wide, high = np.ptp(plane, axis=0)
    tall = _WIDTH * float(np.clip(high / max(wide, 1e-12), 0.6, 1))
    figure = Picture(_WIDTH + 2 * _EDGE, header + tall + 0.3)
    figure.headline("What the model finds alike", "\n".join(lines))
    axes = figure.panel(_EDGE, header, _WIDTH, tall)
    _draw_points(axes, plane, true, true != predicted, named)
    _draw_labels(axes, plane, true, named, drawn_names(predictions.classes))
    axes.set_xlabel("first component across, second component up" if method == "PCA" else
                    f"{_TITLES[method]}, without a unit")
    split = loaders.test.images
    names = image_names(split, positions_of(split, predictions, rows))
    figure.table = "\n".join(_table(shares, predictions.classes)) + numbered
    figure.csv = as_csv(
        ("image", "x", "y", "true", "predicted"),
        [(name, float(x), float(y), predictions.classes[label], predictions.classes[said])
         for name, (x, y), label, said in zip(names, plane, true, predicted)])
    places = figure.transFigure.inverted().transform(axes.transData.transform(plane))
    shown = [f"test image {name}" if name.isdigit() else name for name in names]
    figure.points = Points(places, images, shown, true, predicted, list(predictions.classes))
    return figure


def _drawn(true: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return `count` rows at most, sorted: as many of each class as are its part of all."""
    order = np.random.default_rng(seed).permutation(len(true))
    rank = np.empty(len(true))
    for label in np.unique(true):
        members = order[true[order] == label]
        # Evenly spread, so that the first of all classes are of each in proportion.
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(rank[order], kind="stable")][:count])


@torch.no_grad()
def _features(predictions: Predictions, model: nn.Module, loaders: Loaders,
              rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows whose images can be read, their features (N, D), and the images, small.

    Raises:
        RunError: the predictions are of other images, or features are no finite numbers.
    """
    size = max(loaders.test.batch_sizes)
    found: list[np.ndarray] = []
    features: list[np.ndarray] = []
    images: list[np.ndarray] = []
    with (state_kept(model), random_numbers_kept(loaders.test.device),
          in_evaluation_mode(model)):
        seed_random_numbers(seed)
        for start in range(0, len(rows), size):
            there, batch = images_of(loaders.test, predictions, rows[start:start + size])
            found.append(there)
            features.append(penultimate_features(model, batch).cpu().numpy())
            images += map(_small, loaders.test.denormalise(batch))
    whole = np.concatenate(features)
    if not np.isfinite(whole).all():
        raise RunError("the model's features are not finite numbers")
    return np.concatenate(found), whole, np.stack(images)


def _small(image: np.ndarray) -> np.ndarray:
    """Return an image uint8 (H, W, C) no larger than a thumbnail."""
    height, width = image.shape[:2]
    scale = min(1, _THUMBNAIL / max(height, width))
    if scale == 1:
        return image
    size = max(1, round(scale * width)), max(1, round(scale * height))
    grey = image.shape[2] == 1
    shrunk = Image.fromarray(image[..., 0] if grey else image).resize(
        size, Image.Resampling.LANCZOS)
    return np.asarray(shrunk).reshape(size[1], size[0], -1)


def _plane(features: np.ndarray, method: Method, seed: int) -> tuple[np.ndarray, str]:
    """Return features in two dimensions, (N, 2), and in words how far that is to be believed.

    Raises:
        ConfigError: UMAP is not installed.
    """
    from sklearn.decomposition import PCA

    if method == "PCA":
        components = PCA(2, random_state=seed)
        plane = components.fit_transform(features)
        held = 100 * components.explained_variance_ratio_.sum()
        return plane, f"The plane holds {held:.1f} % of the features' variance."
    few = PCA(min(50, *features.shape), random_state=seed).fit_transform(features)
    if method == "UMAP":
        try:
            from umap import UMAP
        except ImportError:
            raise ConfigError("method UMAP needs umap-learn",
                              hint="pip install umap-learn") from None
        neighbours = min(15, len(features) - 1)
        plane = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(few)
    else:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits

        perplexity = min(30.0, (len(features) - 1) / 3)
        # Sums of several threads are rounded in whichever order they end, and t-SNE is chaotic.
        with threadpool_limits(1):
            plane = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(few)
    return plane, ("Neighbours are near each other; how far apart groups lie, and how large they "
                   "are, means little.")


def _neighbours(features: np.ndarray, true: np.ndarray, classes: int, count: int) -> np.ndarray:
    """Return of which classes the `count` nearest of images of a class are, as parts (C, C).

    Those of each image are counted among all features, not in the plane. Rows of classes without
    images are NaN.
    """
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=count).fit(features)
    labels = true[near.kneighbors(return_distance=False)]
    counts = np.bincount((true[:, None] * classes + labels).ravel(), minlength=classes**2)
    counts = counts.reshape(classes, classes)
    there = counts.sum(1, keepdims=True)
    return np.where(there, counts / np.maximum(there, 1), np.nan)


def _named(shares: np.ndarray) -> list[int]:
    """Return the classes to colour and name: all that have images, or of many the most mixed."""
    there = np.flatnonzero(~np.isnan(shares.diagonal())).tolist()
    if len(there) <= _NAMED:
        return there
    first, second, part = _most_mixed(shares)
    told = [first, second] if part else []
    others = sorted(set(there) - set(told), key=lambda label: shares[label, label])
    return sorted([*told, *others][:_OF_MANY])


def _most_mixed(shares: np.ndarray) -> tuple[int, int, float]:
    """Return the two classes that are each other's neighbours most often, and how often."""
    mixed = np.triu(np.nan_to_num(shares + shares.T) / 2, 1)
    first, second = divmod(int(mixed.argmax()), len(mixed))
    return first, second, float(mixed.max())


def _in_words(shares: np.ndarray, true: np.ndarray, classes: Sequence[str], near: int) -> str:
    """Return how well the `near` neighbours of images agree, and which two classes mix most."""
    counts = np.bincount(true, minlength=len(classes))
    agreement = np.nansum(shares.diagonal() * counts) / len(true)
    # Of an image all others are its neighbours equally likely.
    chance = (counts * (counts - 1)).sum() / (len(true) * (len(true) - 1))
    those = f"Of the {near} nearest neighbours" if near > 1 else "Of the nearest neighbours"
    words = (f"{those} of an image, by all features, {100 * agreement:.1f} % are of its class (by "
             f"chance {100 * chance:.1f} %)")
    first, second, part = _most_mixed(shares)
    if not part:
        return f"{words}."
    names = drawn_names(classes)
    return (f"{words}; {names[first]} and {names[second]} mix most: {100 * part:.1f} % of the "
            "one's neighbours are the other's.")


def _draw_points(axes: Axes, plane: np.ndarray, true: np.ndarray, is_wrong: np.ndarray,
                 named: Sequence[int]) -> None:
    """Draw a point for each image, and a ring around what is misclassified."""
    # Few points may be larger.
    area = float(np.clip(30_000 / len(plane), 9, 40))
    others = ~np.isin(true, named)
    axes.scatter(plane[others, 0], plane[others, 1], 0.6 * area, color="#c4c4c4", linewidth=0,
                 zorder=1)
    for place, label in enumerate(named):
        colour, shape = _look(place)
        of_it = plane[true == label]
        axes.scatter(of_it[:, 0], of_it[:, 1], area, color=colour, marker=shape, alpha=0.75,
                     linewidth=0, zorder=2)
    for which, width in ((is_wrong & ~others, 0.7), (is_wrong & others, 0.3)):
        axes.scatter(plane[which, 0], plane[which, 1], 2.6 * area, facecolor="none",
                     edgecolor=WRONG, linewidth=width, zorder=3)
    axes.set_aspect("equal", "datalim")
    axes.margins(0.06)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color="#c4c4c4", linewidth=0.6)
    # An equal aspect changes the limits, which labels are placed by; what is drawn later is not to.
    axes.apply_aspect()
    axes.set_autoscale_on(False)


def _look(place: int) -> tuple[str, str]:
    """Return colour and shape of one of the named classes."""
    return COLOURS[place % len(COLOURS)], _SHAPES[place // len(COLOURS)]


def _draw_labels(axes: Axes, plane: np.ndarray, true: np.ndarray, named: Sequence[int],
                 names: Sequence[str]) -> None:
    """Name classes in the middle of their points, beside that where another name stands there."""
    extent = axes.get_window_extent()
    width, height = extent.width / DPI, extent.height / DPI
    # Of many classes the points of one are no larger than its name, and stand beside it.
    is_beside = len(np.unique(true)) > len(named)
    to_inches = axes.transAxes.inverted()
    halo = [withStroke(linewidth=2.5, foreground="white", alpha=0.9)]
    taken: list[tuple[float, float, float]] = []
    for place, label in enumerate(named):
        middle = np.median(plane[true == label], axis=0)
        x, y = to_inches.transform(axes.transData.transform(middle)) * (width, height)
        name = shorten(names[label], 1.6, _LABEL_POINTS, "bold")
        half = (text_width(name, _LABEL_POINTS, "bold") + _MARK) / 2
        across, up = _free_place(x + is_beside * (half + 0.2), y, half, (width, height), taken)
        taken.append((across, up, half))
        colour, shape = _look(place)
        if np.hypot(across - x, up - y) > _LABEL_HEIGHT:
            end = float(np.clip(x, across - half, across + half))
            axes.plot([x / width, end / width], [y / height, up / height], color=FAINT,
                      linewidth=0.8, path_effects=halo, zorder=4, transform=axes.transAxes)
        axes.scatter((across - half + _MARK / 2) / width, up / height, 42, color=colour,
                     marker=shape, edgecolor="white", linewidth=1, zorder=5,
                     transform=axes.transAxes)
        axes.text((across - half + _MARK) / width, up / height, name, fontsize=_LABEL_POINTS,
                  fontweight="bold", va="center_baseline", path_effects=halo, zorder=6,
                  transform=axes.transAxes)


def _free_place(x: float, y: float, half: float, room: tuple[float, float],
                taken: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Return the nearest middle of a label to a place, in inches, where no other label stands.

    Args:
        half: of the label's width.
        room: width and height that it is to stay within.
        taken: middles and half widths of other labels.
    """
    side, edge = half + 0.03, _LABEL_HEIGHT / 2 + 0.03
    for distance in np.arange(0, sum(room), 0.06):
        for angle in np.arange(0, 2 * np.pi, np.pi / 8):
            across = float(np.clip(x + distance * np.cos(angle), side, room[0] - side))
            up = float(np.clip(y + distance * np.sin(angle), edge, room[1] - edge))
            if all(abs(across - other) > half + wide + 0.04
                   or abs(up - line) > _LABEL_HEIGHT + 0.02 for other, line, wide in taken):
                return across, up
    return x, y


def _table(shares: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return lines: of each class the part of neighbours that share it, and the next class."""
    lines: list[tuple[str, ...]] = [("of the class", "of another", "")]
    for label, row in enumerate(shares):
        if np.isnan(row[label]):
            lines.append(("–", "–", escape_controls(classes[label])))
            continue
        others = np.where(np.arange(len(row)) == label, 0, row)
        next_to = escape_controls(classes[int(others.argmax())]) if others.any() else ""
        lines.append((f"{100 * row[label]:.1f} %", f"{100 * others.max():.1f} %",
                      escape_controls(classes[label]) + (f" (next: {next_to})" if next_to else "")))
    return in_columns(lines, ">", ">")
