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
from cvkit.visualizers.dataset import dataset
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
    assert figure.caption.startswith("3 pairs of images are equal (1) or nearly so; 2 of the 20 test images are so to "
                                     "one of train; ")
    rows = list(csv.DictReader(io.StringIO(figure.csv)))
    assert [(row["image"], row["other image"]) for row in rows] == [
        ("train 30", "test 9"), ("train 11", "test 4"), ("train 44", "train 50")]
    assert rows[2]["similarity"] == "equal" and 0.9 < float(rows[0]["similarity"]) <= 1
    assert (rows[0]["class"], rows[0]["other class"]) == ("cat", "dog")
    figure.draw_without_rendering()
    check_no_overlap([*figure.texts, *(axes.title for axes in figure.axes)])


def test_fewer_are_shown_than_there_are_and_the_table_has_all(data):
    figure = duplicates(data, count=1)
    assert len(shown(figure)) == 2 and "1 of them are shown" in figure.caption
    assert len(figure.csv.splitlines()) == 4


def test_a_data_set_without_twins_says_so_in_both_pictures(data):
    alone = replace(data, train=ImageSet.of(photos(30, 7), np.arange(30) % 2),
                    test=ImageSet.of(photos(10, 8), np.arange(10) % 2))
    assert duplicates(alone).is_message
    assert duplicates(alone).caption == "No two images are equal, or nearly so."
    config = load_config(ROOT / "configs" / "resnet18_cifar10.yaml")
    assert "No two images are equal, or nearly so." in dataset(alone, config, per_class=2).caption
    assert "3 pairs of images are equal (1) or nearly so" in dataset(data, config, per_class=2).caption
