import io
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY
from PIL import Image
from test_drawing import check_no_overlap
from test_misclassified import shown

from cvkit.config import load_config
from cvkit.runs.experiment import Experiment


def experiment(path, **overrides):
    return Experiment(load_config(path, overrides))


def panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title(loc="left").startswith(title))


def test_the_bars_count_the_images(painted):
    figure = painted.visualize("dataset")
    axes = panel(figure, "Images per class")
    heights = [[bar.get_height() for bar in container] for container in axes.containers]
    assert heights == [[16, 16, 16], [12, 12, 12]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train, 48", "test, 36"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["blue", "green", "red"]
    assert figure.caption == ("48 train, 36 test images, 3 classes of 16 training images each. "
                              "No two images are equal, or nearly so.")


def test_mean_and_deviation_are_of_the_pixels(painted):
    pixels = np.stack([painted.data.train.image(place) for place in range(48)]) / 255
    lines = {line[:16].strip(): line[16:].split()
             for line in painted.visualize("dataset").table.splitlines()}
    assert lines[""] == ["red", "green", "blue"]
    assert lines["train mean"] == [f"{value:.4f}" for value in pixels.mean((0, 1, 2))]
    assert lines["train deviation"] == [f"{value:.4f}" for value in pixels.std((0, 1, 2))]
    assert "data set's mean" not in lines  # the same


def test_a_subset_is_measured_and_whose_mean_normalize_takes_is_said(tiny):
    subject = experiment(tiny)  # 150 of 1,438 digits, normalised by all of them
    pixels = subject.data.train.images[subject.data.train.index] / 255
    table = subject.visualize("dataset").table
    assert f"train mean      {pixels[..., 0].mean():8.4f}" in table
    assert f"data set's mean {subject.data.mean[0]:8.4f}" in table
    assert "of all its training images, not only those used" in table and "declare" not in table
    # A fold is a part as well, and Normalize may take other constants than the data set's.
    table = experiment(tiny, **{"DATA.LIMIT": 0, "DATA.FOLDS": 5}).visualize("dataset").table
    assert "of all its training images, not only those used" in table and "Normalize" not in table


def test_image_folders_declare_nothing_unless_the_config_does(painted):
    for arguments, words in (({}, "of all its training images"),
                             ({"mean": [0.5] * 3}, "as it declares them")):
        config = load_config(painted.folder / "config.yaml", {"DATA.LIMIT": 24, **{
            f"DATA.DATASET.{key}": value for key, value in arguments.items()}})
        assert words in Experiment(config).visualize("dataset", per_class=1).table
    painted.__dict__["data"] = replace(painted.data, mean=(0.5, 0.5, 0.5))
    assert "as it declares them" in painted.visualize("dataset", per_class=1).table


@pytest.mark.parametrize("count", [3, 12, 30])
def test_names_beneath_the_bars_do_not_run_into_each_other(painted, count):
    data = painted.data
    names = tuple(f"{'W' * 40}{number}" for number in range(count))
    painted.__dict__["data"] = replace(data, classes=names)
    figure = painted.visualize("dataset", per_class=1)
    file = io.BytesIO()
    figure.savefig(file)
    labels = panel(figure, "Images per class").get_xticklabels()
    assert len(labels) == count and all("…" in label.get_text() for label in labels)
    check_no_overlap(labels)
    for label in labels:
        box = label.get_window_extent()
        assert 0 <= box.x0 and box.y0 > panel(figure, "Image sizes").title.get_window_extent().y1
    rows = [text for text in figure.texts if text.get_ha() == "right"]
    assert len(rows) == min(count, 20) and min(row.get_window_extent().x0 for row in rows) >= 0
    assert names[-1] in figure.table  # whole


def test_each_class_has_examples_of_its_own(painted):
    figure = painted.visualize("dataset", per_class=5)
    images, train = shown(figure), painted.data.train
    assert len(images) == 15
    for number, image in enumerate(images):
        same = [place for place in range(48) if np.array_equal(train.image(place), image)]
        assert [train.labels[place] for place in same] == [number // 5]


@pytest.mark.parametrize("sizes, scatter", [([(32, 32), (40, 32)], False),
                                            ([(20 + n, 30) for n in range(12)], True)])
def test_sizes_are_counted(tmp_path, sizes, scatter):
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / "x" / split / name).mkdir(parents=True)
            for number, size in enumerate(sizes):  # (width, height)
                Image.radial_gradient("L").resize(size).save(
                    tmp_path / "x" / split / name / f"{number}.png")
    (tmp_path / "x.yaml").write_text(TINY)
    figure = experiment("x.yaml", **{
        "DATA.LIMIT": 0, "DATA.DATASET": {"NAME": "ImageFolder", "root": "x"}}).visualize("dataset")
    axes = panel(figure, "Image sizes")
    if scatter:
        assert axes.get_title(loc="left") == "Image sizes, 12 different"
        assert sorted(map(tuple, axes.collections[0].get_offsets().tolist())) == sorted(sizes)
    else:
        assert {text.get_text() for text in axes.get_yticklabels()} == {"32×32", "32×40"}
        assert [[bar.get_width() for bar in bars] for bars in axes.containers] == [[2, 2], [2, 2]]


def test_many_classes_are_no_clutter(tmp_path):
    for split in ("train", "test"):
        for number in range(40):
            (tmp_path / "x" / split / f"class number {number:02}").mkdir(parents=True)
            for copy in range(2):
                Image.new("RGB", (8, 8), (number, copy, 0)).save(
                    tmp_path / "x" / split / f"class number {number:02}" / f"{copy}.png")
    (tmp_path / "x.yaml").write_text(TINY)
    figure = experiment("x.yaml", **{
        "DATA.LIMIT": 0, "DATA.DATASET": {"NAME": "ImageFolder", "root": "x"}}).visualize("dataset")
    assert panel(figure, "Images per class").get_xlabel() == "class number, of 40"
    assert len(shown(figure)) == 40  # two of each of the first 20
    assert any("the first 20 of 40" in text.get_text() for text in figure.texts)


def test_cifar_s_mean_and_deviation_are_the_known_ones(cifar_images, tiny):
    """On a tenth of the images; `test_on_all_of_cifar` has them all."""
    check_cifar(tiny, cifar_images, 0.004, 0.004)


@pytest.mark.slow
def test_on_all_of_cifar(tiny):
    folder = os.environ.get("CVKIT_TEST_ALL_IMAGES")
    if not folder:
        pytest.skip("CVKIT_TEST_ALL_IMAGES does not name a folder with all CIFAR-10 images")
    figure = check_cifar(tiny, folder, 0.0002, 0.002)  # JPEG takes some of the deviation away
    said = re.fullmatch(r"50,000 train, 10,000 test images, 10 classes of 5,000 training images each. (\d+) pairs of "
                        r"images that are equal \(\d+\) or nearly so; (\d+) of the 10,000 test images have such a twin "
                        r"in train.*", figure.caption)
    # It is known to have some: 3.3 % of the test images by eye (Barz & Denzler, 2020).
    assert 400 <= int(said[1]) <= 1200 and 100 <= int(said[2]) <= 330


def check_cifar(tiny, folder, of_mean, of_deviation):
    figure = experiment(tiny, **{"DATA.LIMIT": 0, "DATA.DATASET": {
        "NAME": "ImageFolder", "root": str(folder)}}).visualize("dataset")
    lines = {line[:16].strip(): line[16:].split() for line in figure.table.splitlines()}
    for name, expected, tolerance in (
            ("train mean", (0.4914, 0.4822, 0.4465), of_mean),
            ("train deviation", (0.2470, 0.2435, 0.2616), of_deviation)):
        assert np.abs(np.asarray(lines[name], float) - expected).max() < tolerance, lines[name]
    return figure
