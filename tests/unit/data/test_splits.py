"""Folds, and parts held out, of single images and of groups of them."""

import numpy as np
import pytest
from conftest import paint
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from cvkit.config import load_config
from cvkit.data import ImageData, ImageSet
from cvkit.data.build import build_data, images_of_folds
from cvkit.data.splits import fold_numbers, fold_split, stratified_split
from cvkit.errors import ConfigError, DataError
from cvkit.registry import DATASETS

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.choice(4, 120, p=[0.4, 0.3, 0.2, 0.1])
GROUPS = RANDOM.choice(30, 120)


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["images", "groups"])
@pytest.mark.parametrize("folds", [2, 5, 7])
def test_folds_are_those_of_scikit_learn_and_each_image_is_in_one(folds, groups):
    splitter, drawn = StratifiedKFold(folds, shuffle=True, random_state=3), None
    if groups is not None:
        splitter, drawn = StratifiedGroupKFold(folds), np.random.default_rng([3, 3]).permutation(30)[groups]
    theirs = list(splitter.split(np.zeros(len(LABELS)), LABELS, drawn))
    tested = []
    for fold, (rest, held_out) in enumerate(theirs):
        ours = fold_split(LABELS, folds, fold, 3, groups)
        assert np.array_equal(ours[0], rest) and np.array_equal(ours[1], held_out)
        tested.append(ours[1])
    assert sorted(np.concatenate(tested)) == list(range(120))
    assert not np.array_equal(fold_numbers(LABELS, folds, 3, groups), fold_numbers(LABELS, folds, 4, groups))


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.33, 0.5, 0.8])
def test_what_is_held_out_keeps_groups_together(fraction):
    rest, held_out = stratified_split(LABELS, fraction, 0, GROUPS)
    assert sorted([*rest, *held_out]) == list(range(120))
    assert not set(GROUPS[rest]) & set(GROUPS[held_out])
    assert abs(len(held_out) / 120 - fraction) < 0.06
    again = stratified_split(LABELS, fraction, 0, GROUPS)
    assert np.array_equal(again[1], held_out)
    for label in range(4):  # as nearly as whole groups can
        assert abs((LABELS[held_out] == label).mean() - (LABELS == label).mean()) < 0.15


@pytest.mark.parametrize("fraction, groups", [(0.02, 100), (0.05, 100), (0.1, 4), (0.07, 6), (0.9, 10)])
def test_small_parts_of_groups_are_small(fraction, groups):
    labels, of = RANDOM.choice(2, 2000), RANDOM.choice(groups, 2000)
    _, held_out = stratified_split(labels, fraction, 0, of)
    assert abs(len(held_out) / 2000 - min(max(fraction, 1 / groups), 1 - 1 / groups)) < 0.05


@pytest.mark.parametrize("labels, groups, message", [
    ([0] * 9 + [1] * 3, None, "class number 1 has 3 images, and 5 folds need as many of each class"),
    ([0, 1] * 6, [0] * 6 + [1] * 6, "2 groups of images cannot be in 5 folds"),
    ([0, 1, 2] * 4, [0, 1, 2, 3, 4, 5] * 2, "no class has as many images as there are folds, 5")])
def test_too_few_for_the_folds_is_told(labels, groups, message):
    with pytest.raises(DataError, match=message):
        fold_numbers(np.array(labels), 5, 0, None if groups is None else np.array(groups))


def test_a_class_of_a_single_group_is_neither_split_nor_lost():
    labels, groups = np.array([0] * 10 + [1] * 10), np.repeat(np.arange(5), 4)
    groups[labels == 1] = 9
    with pytest.raises(DataError, match="all images of class number 1 would be held out"):
        for fold in range(3):
            fold_split(labels, 3, fold, 0, groups)


def folds_of(config, **keys):
    return [build_data(load_config(config, {"DATA.FOLDS": 4, "DATA.FOLD": fold, **keys}))
            for fold in range(4)]


def test_folds_are_of_all_images_where_the_data_set_has_no_test_of_its_own(tiny):
    whole = build_data(load_config(tiny, {"DATA.LIMIT": 0}))
    every = [*whole.train.index, *whole.test.index]
    datas = folds_of(tiny, **{"DATA.LIMIT": 0})
    assert sorted(np.concatenate([data.test.index for data in datas])) == sorted(every)
    for data in datas:
        assert sorted([*data.train.index, *data.test.index]) == sorted(every)
        assert np.array_equal(images_of_folds(data).index, np.sort(every))
        counts = np.bincount(data.test.labels)
        assert counts.max() - counts.min() <= 4


def test_of_a_limit_each_image_is_in_one_fold_and_validation_images_come_from_the_rest(tiny):
    datas = folds_of(tiny, **{"DATA.VAL_FRACTION": 0.2})
    tested = np.concatenate([data.test.index for data in datas])
    assert len(tested) == len(set(tested)) == 150
    for data in datas:
        parts = [set(split.index) for split in data.splits.values()]
        assert len(parts) == 3 and sum(map(len, parts)) == len(set.union(*parts)) == 150


def test_a_test_set_of_its_own_is_left_out(tiny, tmp_path):
    paint(tmp_path / "own", "train", 12, RANDOM)
    paint(tmp_path / "own", "test", 4, RANDOM)
    dataset = {"NAME": "ImageFolder", "root": str(tmp_path / "own")}
    for data in folds_of(tiny, **{"DATA.DATASET": dataset, "DATA.LIMIT": 0}):
        assert [len(data.train), len(data.test)] == [27, 9]
        names = [data.test.name(position) for position in range(9)]
        assert all("/train/" in name.replace("\\", "/") for name in names)
        assert "the data set's own 12 test images are left out" in data.notes[-1]


def test_the_split_seed_makes_other_folds(tiny):
    first, other = (build_data(load_config(tiny, {"DATA.FOLDS": 5, "DATA.SPLIT_SEED": seed, "DATA.LIMIT": 0}))
                    for seed in (0, 1))
    assert not np.array_equal(first.test.index, other.test.index)


def test_groups_of_a_data_set_of_ones_own_stay_together(tiny):
    @DATASETS.register()
    def patients(seed: int = 0):
        images = RANDOM.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)
        whole = ImageSet.of(images, LABELS, [f"patient {number}" for number in GROUPS])
        rest, held_out = stratified_split(whole.labels, 0.2, seed, whole.groups)
        return ImageData(tuple("abcd"), whole.take(rest), whole.take(held_out), 3, (8, 8), (0.5,) * 3,
                         (0.2,) * 3)

    keys = {"DATA.DATASET": {"NAME": "patients"}, "DATA.VAL_FRACTION": 0.2, "DATA.LIMIT": 0,
            "DATA.TRAIN_TRANSFORMS": []}
    for data in folds_of(tiny, **keys):
        groups = [set(split.groups) for split in data.splits.values()]
        assert len(groups) == 3 and sum(map(len, groups)) == len(set.union(*groups)) == len(set(GROUPS))
    with pytest.raises(DataError, match="2 images and 1 groups"):
        ImageSet.of(np.zeros((2, 8, 8, 3), np.uint8), [0, 1], ["a"])


@pytest.mark.parametrize("keys, message", [
    ({"DATA.FOLDS": 3, "DATA.FOLD": 3}, "there is no fold 3: FOLDS 3 have the numbers 0 to 2"),
    ({"DATA.FOLDS": 1}, "one fold leaves nothing to train on"),
    ({"DATA.FOLDS": 40}, "Python DATA.FOLDS: class 0 has 15 images, and 40 folds need"),
    ({"DATA.FOLDS": 2, "DATA.LIMIT": 4}, "DATA.LIMIT 4 is less than one image of each")])
def test_folds_that_cannot_be_are_told(tiny, keys, message):
    with pytest.raises((ConfigError, DataError), match=message):
        build_data(load_config(tiny, keys))


@pytest.mark.parametrize("keys, message", [
    ({"DATA.VAL_FRACTION": 0.2}, "Python DATA.VAL_FRACTION: class bee has one image; a split needs two of each class"),
    ({"DATA.FOLDS": 2}, "Python DATA.FOLDS: class bee has 1 image, and 2 folds need as many of each class")])
def test_a_class_of_too_few_images_is_named(tiny, keys, message):
    @DATASETS.register()
    def few():
        images = ImageSet.of(np.zeros((7, 8, 8, 3), np.uint8), [0, 0, 0, 1, 2, 2, 2])
        other = ImageSet.of(np.ones((3, 8, 8, 3), np.uint8), [0, 1, 2])
        return ImageData(("ant", "bee", "cat"), images, other, 3, (8, 8), (0.5,) * 3, (0.2,) * 3)

    with pytest.raises(DataError) as caught:
        build_data(load_config(tiny, {"DATA.DATASET": {"NAME": "few"}, "DATA.LIMIT": 0, **keys}))
    assert str(caught.value) == message


def test_folds_may_have_any_seed():
    labels = np.arange(60) % 3
    large = [fold_split(labels, 3, 0, seed)[1] for seed in (2**32 + 5, 2**32 + 5, 2**40)]
    assert np.array_equal(large[0], large[1]) and not np.array_equal(large[0], large[2])
