import math

import pytest
import torch
from torch.nn import functional as F

from cvkit.errors import ConfigError
from cvkit.evaluation.metrics import Mean, is_lower_better, lower_is_better
from cvkit.registry import METRICS

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(100, 10, generator=GENERATOR)
LABELS = torch.randint(0, 10, (100,), generator=GENERATOR)
SIZES = [32, 32, 32, 4]  # the last batch is short


def values(node, logits=LOGITS, labels=LABELS, classes="abcdefghij"):
    metric = METRICS.build(node, classes=list(classes), num_classes=len(classes))
    for part, target in zip(logits.split(SIZES), labels.split(SIZES), strict=True):
        metric.update(part, target)
    return metric.compute()


@pytest.mark.parametrize("name", METRICS.own)
def test_every_metric_is_the_same_in_one_batch_and_in_uneven_ones(name):
    metric = METRICS.build(name, classes=list("abcdefghij"), num_classes=10)
    metric.update(LOGITS, LABELS)
    assert metric.compute() == values(name)


def test_the_mean_is_over_images_not_over_batches():
    mean, batches = Mean(), []
    for logits, labels in zip(LOGITS.split(SIZES), LABELS.split(SIZES), strict=True):
        loss = F.cross_entropy(logits, labels)
        mean.update(loss, len(labels))
        batches.append(float(loss))
    assert mean.compute() == pytest.approx(float(F.cross_entropy(LOGITS, LABELS)), rel=1e-6)
    assert mean.compute() != pytest.approx(sum(batches) / 4, rel=1e-3)
    assert mean.batches() == batches and Mean().batches() == []


def test_accuracy_and_top_k():
    right = LOGITS.argsort(1, descending=True)
    assert values("Accuracy") == {"accuracy": float((right[:, 0] == LABELS).double().mean())}
    expected = float((right[:, :3] == LABELS[:, None]).any(1).double().mean())
    assert values({"NAME": "TopKAccuracy", "k": 3}) == {"top3": pytest.approx(expected)}
    assert values({"NAME": "TopKAccuracy", "k": 10}) == {"top10": 1.0}


def test_per_class_accuracy_is_within_each_class():
    found = values("PerClassAccuracy")
    for number, name in enumerate("abcdefghij"):
        of_class = LABELS == number
        expected = float((LOGITS[of_class].argmax(1) == number).double().mean())
        assert found[f"accuracy/{name}"] == pytest.approx(expected)
    only_a = values("PerClassAccuracy", labels=torch.zeros(100, dtype=torch.int64))
    assert math.isnan(only_a["accuracy/b"])


@pytest.mark.parametrize("said, expected", [
    (None, []), (False, []), (True, ["a", "print_error"]), ({"a"}, ["a"]), ("a", ["a"]), ([], [])])
def test_a_metric_says_itself_whether_lower_is_better(said, expected):
    metric = type("Own", (), {} if said is None else {"lower_is_better": said})()
    assert lower_is_better(metric, ["a", "print_error"]) == expected


@pytest.mark.parametrize("said", [{"b"}, "b", 1, None])
def test_names_that_a_metric_does_not_compute_are_refused(said):
    with pytest.raises(ConfigError, match="lower_is_better of metric Own is "):
        lower_is_better(type("Own", (), {"lower_is_better": said})(), ["a"])


@pytest.mark.parametrize("name, is_lower", [
    ("loss", True), ("accuracy", False), ("accuracy/print_error", False), ("top5", False),
    ("accuracy/weight_loss", False), ("own_error", True), ("f1", False)])
def test_runs_that_noted_nothing_keep_their_best_but_classes_are_no_losses(name, is_lower):
    assert is_lower_better(name, {"epoch": 1}) == is_lower
    assert not is_lower_better(name, {"lower_is_better": ["other"]})
    assert is_lower_better(name, {"lower_is_better": ["loss", name]})


@pytest.mark.parametrize("k", [0, 11])
def test_an_impossible_k_is_refused(k):
    with pytest.raises(ConfigError, match="k lies between 1 and the number of classes, 10"):
        values({"NAME": "TopKAccuracy", "k": k})


def test_the_number_of_classes_is_the_data_s_alone():
    with pytest.raises(ConfigError, match="TopKAccuracy has no argument 'num_classes'"):
        values({"NAME": "TopKAccuracy", "k": 11, "num_classes": 12})


def test_the_first_batch_that_is_not_finite_is_found_between_looks():
    mean = Mean()
    for value in (1.0, 2.0):
        mean.update(torch.tensor([value]), 4)  # some losses have the shape (1,)
    assert mean.first_non_finite() is None and mean.first_non_finite() is None
    assert mean.compute() == 1.5
    for value in (3.0, math.inf, math.nan):
        mean.update(torch.tensor(value), 4)
    assert mean.first_non_finite() == 3
    assert Mean().compute() == 0 and Mean().first_non_finite() is None
