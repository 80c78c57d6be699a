import csv
import io
from collections import OrderedDict
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from test_drawing import check_no_overlap
from test_misclassified import ANY_LETTER, check_titles
from torch import nn

from cvkit.data import ImageSet
from cvkit.data.loaders import Batch
from cvkit.data.normaliser import Normaliser
from cvkit.errors import ConfigError
from cvkit.runs.predictions import Predictions
from cvkit.visualizers.cam import is_empty, overlay
from cvkit.visualizers.cam_average import Average, average_of, cam_average, in_words
from cvkit.visualizers.cam_maps import cam_maps


class Given(Normaliser):
    """As much of a test loader as a visualizer asks for, of images that a test made."""

    def __init__(self, pixels, labels):
        channels = pixels.shape[-1]
        super().__init__((0.5,) * channels, (0.25,) * channels, torch.device("cpu"))
        self.images = ImageSet.of(pixels, labels)

    def take(self, positions):
        labels = torch.from_numpy(self.images.labels[positions])
        images = self.normalise(torch.from_numpy(self.images.images[positions]))
        return Batch(images, labels, torch.from_numpy(self.images.index[positions]), labels)


def facts_of(model, pixels, labels, classes):
    """Return predictions, model and loaders, as a visualizer gets them."""
    test = Given(pixels, labels)
    with torch.no_grad():
        probabilities = model.eval()(test.take(np.arange(len(labels))).images).softmax(1).numpy()
    predictions = Predictions(np.arange(len(labels)), test.images.labels, probabilities.argmax(1),
                              probabilities, list(classes), 1, 0.0)
    return predictions, model, SimpleNamespace(test=test)


def small_net(channels=3, classes=2):
    return nn.Sequential(OrderedDict(
        first=nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU()),
        second=nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()),
        pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(8, classes)))


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(40, 160, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def marked():
    """A net that has learned which images have a white mark in their lower right corner."""
    pixels, labels = noise((160, 24, 24, 3)), np.arange(160) % 2
    pixels[labels == 1, 18:23, 18:23] = 255
    torch.manual_seed(0)
    model, given = small_net(), Given(pixels, labels)
    batch = given.take(np.arange(128))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()
    facts = facts_of(model, pixels, labels, ["plain", "marked"])
    assert facts[0].accuracy > 0.95
    return facts


def drawn_maps(figure):
    """Return what is drawn as maps, floats (H, W, 3), by the class that stands over them."""
    axes = [axis for axis in figure.axes if axis.images]
    names = [text.get_text() for axis in figure.axes for text in axis.texts
             if text.get_fontweight() == "bold"]
    return axes, names


@pytest.mark.parametrize("method", ["GradCAM", "LayerCAM"])
def test_a_watermark_in_a_corner_is_where_its_class_s_evidence_is(marked, method):
    figure = cam_average(*marked, method=method, layer="second")
    assert "the evidence is highest off the centre for marked at the lower right corner, " in figure.caption
    assert "plain at" not in figure.caption
    row, = (line for line in csv.reader(io.StringIO(figure.csv)) if line[0] == "marked")
    assert row[3] == "the lower right corner" and float(row[4]) > 0.9 and float(row[5]) > 0.5
    # And in the picture itself: red there, blue in the opposite corner.
    axes, names = drawn_maps(figure)
    assert names == ["plain", "marked"]
    titles = [axis.get_title() for axis in axes]
    start = len(axes) - 2 if titles[-2].endswith("right") else len(axes) - 4
    heat = axes[start + 1].images[0].get_array()
    warmth = heat[..., 0] - heat[..., 2]
    y, x = np.unravel_index(warmth.argmax(), warmth.shape)
    assert y >= 16 and x >= 16 and warmth[3, 3] < warmth[20, 20] - 0.2


def test_an_average_has_each_map_on_its_own_scale_and_empty_ones_add_nothing():
    maps = np.zeros((4, 6, 6), np.float32)
    maps[0, 0, 0], maps[1, 5, 5], maps[2, 0, 0] = 100.0, 0.01, 1.0
    images = np.stack([np.full((6, 6, 1), value, np.uint8) for value in (0, 10, 20, 50)])
    one = average_of(images, maps)
    assert (one.count, one.empty) == (4, 1) and (one.image == 20).all()
    assert one.map[0, 0] == pytest.approx(0.5) and one.map[5, 5] == pytest.approx(0.25)
    assert one.map.sum() == pytest.approx(0.75)
    assert one.place() == "the upper left corner" and one.outside() == pytest.approx(1)
    assert one.hottest() == pytest.approx(1)  # two of the four hottest pixels hold all
    assert not average_of(images, np.zeros_like(maps)).map.any()


@pytest.mark.parametrize("row, column, words", [
    (0, 0, "the upper left corner"), (0, 5, "the upper edge"), (5, 11, "the right edge"),
    (8, 0, "the lower left corner"), (4, 5, "the centre"), (4, 0, "the left edge"),
    (4, 2, "the left edge"), (4, 3, "the centre"), (4, 8, "the centre"), (4, 9, "the right edge")])
def test_a_place_is_an_edge_or_a_corner_in_the_outer_quarters(row, column, words):
    values = np.zeros((9, 12))
    values[row, column] = 1
    assert Average(1, 0, np.zeros((9, 12, 1), np.uint8), values).place() == words


def test_even_evidence_is_outside_by_three_quarters_and_a_tenth_is_in_a_tenth():
    even = Average(1, 0, np.zeros((20, 40, 1), np.uint8), np.full((20, 40), 0.3))
    assert even.outside() == pytest.approx(0.75) and even.hottest() == pytest.approx(0.1)
    middle = np.zeros((20, 40))
    middle[8:12, 18:22] = 1
    inner = Average(1, 0, even.image, middle)
    assert inner.outside() == 0
    corner = np.zeros((20, 40))
    corner[:5, 35:] = 1
    marked = Average(30, 0, even.image, corner)
    assert in_words({"a": even, "b": inner, "none": None}) == (
        "In images that are right the evidence is concentrated off the centre for none of 2 classes.")
    assert in_words({"a": even, "c": marked}) == (
        "In images that are right the evidence is highest off the centre for c at the upper right corner, 100 % of it "
        "in the hottest tenth of the pixels (evenly spread, 10 % would be).")
    few = in_words({"few": replace(marked, count=12, empty=3), "many": replace(inner, count=12)})
    assert "for none of 1 class." in few  # a few maps lie anywhere
    assert few.endswith("Maps without any evidence: few (3 of 12); another method, such as LayerCAM, or a layer before "
                        "this one may show what they lack.")
    assert in_words({"a": None}) == "In no image that is right is there evidence."


def test_what_is_drawn_is_the_mean_of_the_scaled_maps_and_of_the_images(painted):
    predictions = painted.predictions
    figure = painted.visualize("cam_average", method="LayerCAM", layer="layer3")
    axes, names = drawn_maps(figure)
    assert names == predictions.classes
    there = []
    for label in range(3):
        for is_right in (True, False):
            rows = np.flatnonzero((predictions.true == label)
                                  & ((predictions.predicted == label) == is_right))
            if len(rows):
                there.append(rows)
    images = [axis for axis in axes if axis.get_title().startswith("mean of")]
    assert [int(axis.get_title().split()[2]) for axis in images] == list(map(len, there))
    means = []
    for axis, rows in zip(images, there):
        pixels = np.stack([painted.data.test.image(row) for row in rows])
        assert np.abs(axis.images[0].get_array().astype(float) - pixels.mean(0)).max() <= 0.5
        maps = cam_maps(painted.model, painted.loaders.test.take(rows).images,
                        [predictions.predicted[rows]], ["layer3"], ["LayerCAM"])["layer3", "LayerCAM"][0]
        means.append(sum(cv2.resize(values / values.max(), (32, 32)) for values in maps) / len(rows))
    highest = max(mean.max() for mean in means)
    heats = [axis for axis in axes if axis.get_title() == "their evidence"]
    for axis, image, mean in zip(heats, images, means, strict=True):
        assert not is_empty(mean)
        expected = overlay(image.images[0].get_array(), mean / highest)
        assert np.abs(axis.images[0].get_array() - expected).max() < 0.02  # 256 colours
    assert f"up to {highest:.2f} of 1" in "".join(text.get_text() for text in figure.texts)


def test_a_class_without_errors_says_so_and_so_does_one_without_hits(marked):
    predictions, model, loaders = marked
    right = replace(predictions, predicted=predictions.true)
    figure = cam_average(right, model, loaders, layer="second", per_class=7)
    words = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert words.count("none is wrong") == 2
    assert [row.split(",")[6] for row in figure.csv.splitlines()[1:]] == ["0", "0"]
    wrong = replace(predictions, predicted=1 - predictions.true)
    figure = cam_average(wrong, model, loaders, layer="second", per_class=7)
    assert "In no image that is right is there evidence." in figure.caption
    assert [row.split(",")[1] for row in figure.csv.splitlines()[1:]] == ["0", "0"]


def test_twenty_classes_are_drawn_those_with_the_most_errors_or_those_named():
    labels = np.arange(50) % 25
    predictions, model, loaders = facts_of(small_net(1, 25), noise((50, 28, 28, 1)), labels,
                                           [f"c{number}" for number in range(25)])
    predicted = labels.copy()
    predicted[5:25] = 0  # classes 5 to 24 have errors
    predictions = replace(predictions, predicted=predicted)
    figure = cam_average(predictions, model, loaders, layer="first")
    assert "the 20 of 25 classes with the most errors" in figure.caption
    assert drawn_maps(figure)[1] == [f"c{number}" for number in range(5, 25)]
    chosen = cam_average(predictions, model, loaders, layer="first", classes=["c3", "c1"])
    assert drawn_maps(chosen)[1] == ["c3", "c1"] and "2 of 25 classes, as asked" in chosen.caption
    renamed = replace(predictions, classes=[f"{number}.0" for number in range(25)])
    by_number = cam_average(renamed, model, loaders, layer="first", classes=[3.0, "1.0"])
    assert drawn_maps(by_number)[1] == ["3.0", "1.0"]
    with pytest.raises(ConfigError, match=r"no class named 'c33'"):
        cam_average(predictions, model, loaders, classes=["c33"])
    with pytest.raises(ValueError, match="classes are 1 to 20, not 21"):
        cam_average(predictions, model, loaders, classes=[f"c{number}" for number in range(21)])


@pytest.mark.filterwarnings("ignore:Glyph")
def test_long_names_of_classes_keep_to_their_block(painted, monkeypatch):
    monkeypatch.setattr("cvkit.visualizers.drawing._letters", lambda: ANY_LETTER)
    names = ["W" * 60, "長毛の犬" * 15, "n02123045 tabby, tabby cat, photographed in the garden"]
    figure = cam_average(replace(painted.predictions, classes=names), painted.model,
                         painted.loaders)
    check_titles(figure)
    check_no_overlap([*figure.texts, *(text for axis in figure.axes for text in axis.texts),
                      *(axis.title for axis in figure.axes)])
    assert all(name in figure.table for name in names)


def test_images_that_are_no_squares(painted):
    facts = facts_of(small_net(), noise((8, 60, 40, 3)), np.arange(8) % 2, ["a", "b"])
    figure = cam_average(*facts, layer="second")
    shapes = {axis.images[0].get_array().shape[:2] for axis in figure.axes if axis.images}
    assert shapes == {(60, 40)}


def test_a_method_that_draws_random_numbers_draws_the_same_again_and_leaves_others_alone(painted):
    drawn = []
    for seed in (1, 2):
        np.random.seed(seed)
        before = np.random.get_state()[1].tolist()
        drawn.append(painted.visualize("cam_average", method="RandomCAM").csv)
        assert np.random.get_state()[1].tolist() == before
    assert drawn[0] == drawn[1] != painted.visualize("cam_average", method="RandomCAM", seed=3).csv
