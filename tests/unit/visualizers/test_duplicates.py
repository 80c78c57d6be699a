import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from made_up import changed, photos
from test_drawing import check_no_overlap
from test_misclassified import shown

from cvkit.config import load_config
from cvkit.data import ImageData, ImageSet
from cvkit.data.near_duplicates import counterparts, near_duplicates
from cvkit.repeat import train_folds
from cvkit.visualizers.dataset import compared_splits, dataset, twins_in_words
from cvkit.visualizers.duplicates import duplicates


@pytest.fixture
def data():
    """A data set of photographs: two near twins in test, one of them with another label, two equal in train."""
    train, test = photos(60, 0), photos(20, 1)
    test[[4, 9]] = changed(train[[11, 30]])
    train[50] = train[44]
    labels, test_labels = np.arange(60) % 2, np.arange(20) % 2
    test_labels[[4, 9]] = labels[11], 1 - labels[30]
    return ImageData(("cat", "dog"), ImageSet.of(train, labels), ImageSet.of(test, test_labels), 3, (32, 32),
                     (0.5,) * 3, (0.2,) * 3)


def test_pairs_with_two_labels_come_first_then_those_in_two_splits(data):
    figure = duplicates(data)
    wanted = [(data.train, 30, data.test, 9), (data.train, 11, data.test, 4), (data.train, 44, data.train, 50)]
    images = shown(figure)
    for number, (split, place, other, other_place) in enumerate(wanted):
        assert np.array_equal(images[2 * number], split.image(place))
        assert np.array_equal(images[2 * number + 1], other.image(other_place))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["train\ncat", "test\ndog", "train\ndog", "test\ndog", "train\ndog", "train\ncat"][:4] + titles[4:]
    assert figure.caption.startswith("3 pairs of images that are equal (1) or nearly so; 2 of the 20 test images have "
                                     "such a twin in train; 1 pair with two labels.")
    rows = list(csv.DictReader(io.StringIO(figure.csv)))
    assert [[row[name] for name in ("split", "image", "other split", "other image")] for row in rows] == [
        ["train", "30", "test", "9"], ["train", "11", "test", "4"], ["train", "44", "train", "50"]]
    assert rows[2]["similarity"] == "equal" and 0.9 < float(rows[0]["similarity"]) <= 1
    assert (rows[0]["class"], rows[0]["other class"]) == ("cat", "dog")
    figure.draw_without_rendering()
    check_no_overlap([*figure.texts, *(axes.title for axes in figure.axes)])


def test_fewer_are_shown_than_there_are_and_the_table_has_all(data):
    figure = duplicates(data, count=1)
    assert len(shown(figure)) == 2 and "Shown: 1." in figure.caption
    assert len(figure.csv.splitlines()) == 4


def test_a_data_set_without_twins_says_so_in_both_pictures(data):
    alone = replace(data, train=ImageSet.of(photos(30, 7), np.arange(30) % 2),
                    test=ImageSet.of(photos(10, 8), np.arange(10) % 2))
    assert duplicates(alone).is_message
    assert duplicates(alone).caption == "No two images are equal, or nearly so."
    config = load_config(ROOT / "configs" / "resnet18_cifar10.yaml")
    assert "No two images are equal, or nearly so." in dataset(alone, config, per_class=2).caption
    assert "3 pairs of images that are equal (1) or nearly so" in dataset(data, config, per_class=2).caption


def test_of_folds_all_images_are_compared_once(tiny):
    group = train_folds(load_config(tiny, {"TRAIN.EPOCHS": 1}), 3)
    assert group.visualize("duplicates").caption == "No two images are equal, or nearly so."
    assert "No two images are equal" in group.visualize("dataset").caption


def test_pairs_between_val_and_test_are_told_and_those_of_equal_ones_are_counted(data):
    val = photos(6, 3)
    test = data.test.images.copy()
    test[0], test[13] = val[2], test[4]
    both = replace(data, val=ImageSet.of(val, [0] * 6), test=ImageSet.of(test, data.test.labels))
    splits = compared_splits(both)
    found = near_duplicates(splits)
    assert "3 of the 20 test images have such a twin in train" in twins_in_words(splits, found)
    assert {place: twin for place, (twin, _) in counterparts(found, "train", "test").items()} == {
        4: 11, 9: 30, 13: 11}
    apart = {"train": ImageSet.of(photos(9, 9), [0] * 9), "val": both.val, "test": both.test.take(np.array([0, 1]))}
    assert "1 lie in val and test" in twins_in_words(apart, near_duplicates(apart))
