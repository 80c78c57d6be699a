import math
import re
import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.classification
from conftest import ROOT
from helpers import train_until
from torch.nn import functional as F

from cvkit.config import load_config
from cvkit.errors import ConfigError
from cvkit.evaluation.metrics import (
    Mean,
    build_metrics,
    is_lower_better,
    is_part,
    lower_is_better,
    refuse_what_adds_up,
    together,
    values_of,
)
from cvkit.evaluation.run_evaluation import evaluate
from cvkit.registry import METRICS
from cvkit.reporting.report import write_report
from cvkit.session import build_trainer, train

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(100, 10, generator=GENERATOR)
LABELS = torch.randint(0, 10, (100,), generator=GENERATOR)
SIZES = [32, 32, 32, 4]  # the last batch is short


def values(node, logits=LOGITS, labels=LABELS, classes="abcdefghij"):
    metric = METRICS.build(node, classes=list(classes), num_classes=len(classes))
    for part, target in zip(logits.split(SIZES), labels.split(SIZES), strict=True):
        metric.update(part, target)
    return metric.compute()


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_the_same_in_one_batch_and_in_uneven_ones(name):
    node = {"NAME": name, **({"beta": 2.0} if name == "FBetaScore" else {})}
    metric, = build_metrics([node], "abcdefghij")[1:] or [METRICS.build(node)]
    metric.update(LOGITS, LABELS)
    computed = values_of(metric)
    assert all(map(math.isfinite, computed.values()))
    assert computed == pytest.approx(values(node), rel=1e-6)


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


@pytest.mark.parametrize("classes", [10, 12])
def test_balanced_accuracy_is_scikit_learn_s(classes):
    """With classes that no image has, too."""
    labels = torch.from_numpy(np.random.default_rng(0).choice(10, 100, p=[0.55, *[0.05] * 9]))
    better = LOGITS + 2 * F.one_hot(labels, 10) * (torch.arange(10) > 0)  # of the rare ones
    logits = F.pad(better, (0, classes - 10), value=-9)
    found = values("BalancedAccuracy", logits, labels, "abcdefghijkl"[:classes])
    said = logits.argmax(1)
    expected = sklearn.metrics.balanced_accuracy_score(labels, said)
    assert found == {"balanced_accuracy": pytest.approx(expected, rel=1e-6)}
    assert abs(expected - float((said == labels).double().mean())) > 0.01  # or it would tell nothing


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


# -- of torchmetrics ---------------------------------------------------------------------

ABSENT = LABELS.where(LABELS != 9, 0)  # a class of which there are no images
HERE = F.one_hot(LABELS).mul(2).add(LOGITS)  # which finds more of them


def test_all_of_torchmetrics_is_there_or_it_is_said_why_not():
    kinds = {name.removeprefix("Multiclass") for name in vars(torchmetrics.classification)
             if name.startswith("Multiclass")}
    offered = set(METRICS.library[1])
    for kind in kinds - offered - set(METRICS.own):
        with pytest.raises(ConfigError, match=f"no metric named '{kind}'\n  That of torchmetrics"):
            METRICS.get(kind)
    assert len(offered) == 13 + len({"EER", "LogAUC", "NegativePredictiveValue"} & kinds)


@pytest.mark.parametrize("logits", [LOGITS, HERE], ids=["random", "good"])
@pytest.mark.parametrize("labels", [LABELS, ABSENT], ids=["all", "one absent"])
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "none"])
@pytest.mark.parametrize("name, theirs, arguments", [
    ("f1_score", "f1_score", {}), ("fbeta_score", "fbeta_score", {"beta": 0.5}),
    ("precision", "precision_score", {}), ("recall", "recall_score", {}),
    ("jaccard_index", "jaccard_score", {})])
def test_scores_of_the_highest_logit_are_scikit_learn_s(name, theirs, arguments, average, labels,
                                                        logits):
    node = {"NAME": {"f1_score": "F1Score", "fbeta_score": "FBetaScore", "jaccard_index":
                     "JaccardIndex"}.get(name, name.title()), "average": average, **arguments}
    expected = getattr(sklearn.metrics, theirs)(
        labels, logits.argmax(1), average=None if average == "none" else average, zero_division=0,
        **({"labels": range(10)} if average == "none" else {}), **arguments)
    keys = [f"{name}/{letter}" for letter in "abcdefghij"] if average == "none" else [name]
    assert values(node, logits, labels) == pytest.approx(
        dict(zip(keys, np.atleast_1d(expected))), abs=1e-6)


@pytest.mark.parametrize("logits", [LOGITS, HERE, 40 * HERE, torch.rand(100, 10, generator=GENERATOR)],
                         ids=["random", "good", "sure", "between 0 and 1"])
def test_other_scores_are_scikit_learn_s(logits):
    said, likely = logits.argmax(1), logits.softmax(1)
    one_hot = F.one_hot(LABELS)
    for node, expected in [
            ("CohenKappa", sklearn.metrics.cohen_kappa_score(LABELS, said)),
            ({"NAME": "CohenKappa", "weights": "quadratic"},
             sklearn.metrics.cohen_kappa_score(LABELS, said, weights="quadratic")),
            ("MatthewsCorrCoef", sklearn.metrics.matthews_corrcoef(LABELS, said)),
            ({"NAME": "HammingDistance", "average": "micro"},
             sklearn.metrics.hamming_loss(LABELS, said)),
            ("Specificity", np.mean([sklearn.metrics.recall_score(
                LABELS == label, said == label, pos_label=0) for label in range(10)])),
            ("AUROC", sklearn.metrics.roc_auc_score(one_hot, likely, average="macro")),
            ({"NAME": "AUROC", "average": "weighted"},
             sklearn.metrics.roc_auc_score(one_hot, likely, average="weighted")),
            ("AveragePrecision", sklearn.metrics.average_precision_score(one_hot, likely))]:
        value, = values(node, logits).values()
        assert value == pytest.approx(expected, abs=1e-5), node
    if logits.min() >= 0:  # as which torchmetrics would take them, were they not made probabilities
        assert values("AUROC", logits)["auroc"] != pytest.approx(
            sklearn.metrics.roc_auc_score(one_hot, logits), abs=1e-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("arguments", [{}, {"thresholds": 20}], ids=["exact", "in bins"])
@pytest.mark.parametrize("name", ["AUROC", "AveragePrecision", "EER", "LogAUC"])
def test_classes_without_images_are_left_out_of_what_ranks_images(name, arguments):
    if name not in METRICS:
        pytest.skip("this torchmetrics has none")
    node = {"NAME": name, "average": "macro", **arguments}
    theirs = getattr(torchmetrics.classification, f"Multiclass{name}")(9, average="macro", **arguments)
    expected = float(theirs(HERE.softmax(1)[:, :9], ABSENT))
    (key, value), = values(node, HERE, ABSENT).items()
    assert value == pytest.approx(expected)
    by_class = values({**node, "average": None}, HERE, ABSENT)
    assert list(by_class) == [f"{key}/{letter}" for letter in "abcdefghij"]
    assert [math.isnan(value) for value in by_class.values()] == [False] * 9 + [True]
    if name != "EER":  # which is that of the mean curve
        assert value == pytest.approx(np.nanmean(list(by_class.values())))
    for ignored, others, first in ((9, slice(9), 0), (0, slice(1, 10), 1)):
        rest = LABELS != ignored
        expected = float(theirs(HERE[rest].softmax(1)[:, others], LABELS[rest] - first))
        assert values({**node, "ignore_index": ignored}, HERE, LABELS) == pytest.approx({key: expected})
    if name == "EER" and not arguments:
        whole = torchmetrics.classification.MulticlassEER(10, average="micro")
        assert values({**node, "average": "micro"}, HERE, ABSENT) == pytest.approx(
            {key: float(whole(HERE.softmax(1), ABSENT))})
    alone = torch.zeros(100, dtype=torch.int64)
    assert set(values({"NAME": name}, HERE, alone)) == set(values({"NAME": name}))
    assert math.isnan(values(node, HERE, alone)[key])


def test_the_calibration_error_is_the_mean_gap_of_fifteen_bins():
    sure, right = LOGITS.softmax(1).max(1).values, LOGITS.argmax(1) == LABELS
    bins = (sure * 15).ceil()
    expected = sum(abs(float((sure[bins == number] - right[bins == number].float()).sum()))
                   for number in range(1, 16)) / 100
    assert values("CalibrationError") == {"calibration_error": pytest.approx(expected, abs=1e-5)}


def test_torchmetrics_says_of_which_values_lower_ones_are_better():
    lower = {name for name in METRICS.library[1] if METRICS.get(name).lower_is_better}
    assert lower - {"EER"} == {"CalibrationError", "HammingDistance", "HingeLoss"}
    assert ("EER" in METRICS) == ("EER" in lower)
    assert all(METRICS.get(name).lower_is_better in (True, False) for name in METRICS.library[1])


@pytest.mark.parametrize("node, message", [
    ({"NAME": "F1score"}, "no metric named 'F1score'\n  Did you mean F1Score?"),
    ({"NAME": "F1Score", "averge": "macro"},
     "metric F1Score has no argument 'averge'\n  Did you mean average?"),
    ({"NAME": "F1Score", "average": "makro"}, "not 'makro'\n  Did you mean macro?"),
    ({"NAME": "F1Score", "task": "multiclass"}, "metric F1Score has no argument 'task'"),
    ({"NAME": "F1Score", "num_classes": 10}, "metric F1Score has no argument 'num_classes'"),
    ({"NAME": "F1Score", "multidim_average": "samplewise"}, "has no argument 'multidim_average'"),
    ({"NAME": "F1Score", "top_k": 11}, "top_k lies between 1 and the number of classes, 10, not 11"),
    ({"NAME": "F1Score", "ignore_index": 10**30}, "metric F1Score cannot be counted: "),
    ({"NAME": "FBetaScore"}, "metric FBetaScore needs beta"),
    ({"NAME": "AUROC", "average": "micro"}, "takes one of macro, weighted, none or null, not 'micro'"),
    ({"NAME": "CalibrationError", "n_bins": 0}, "metric CalibrationError cannot be built: "),
    ({"NAME": "ConfusionMatrix"}, "returns a table, which the visualizer confusion draws"),
    ({"NAME": "ROC"}, "That of torchmetrics.classification returns curves"),
    ({"NAME": "torchmetrics.classification.Accuracy"}, "is the Recall that it has")])
def test_mistakes_with_torchmetrics_are_told(node, message):
    with pytest.raises(ConfigError) as caught:
        values(node)
    assert message in str(caught.value)


def test_two_of_a_kind_are_refused():
    pair = [METRICS.build({"NAME": "F1Score", "average": average}, classes=["a", "b"])
            for average in ("macro", "micro")]
    for metric in pair:
        metric.update(torch.eye(2), torch.arange(2))
    with pytest.raises(ConfigError, match="metric F1Score computes 'f1_score': another one does so "
                                          "too\n.* or leave one out"):
        together((metric, values_of(metric)) for metric in pair)


def test_two_of_a_kind_are_told_apart_by_their_names():
    nodes = [{"NAME": "F1Score", "average": "macro"}, {"NAME": "F1Score", "average": "weighted", "name": "f1_weighted"}]
    metrics = build_metrics(nodes, ["a", "b"])
    labels, logits = torch.tensor([0, 0, 0, 1]), torch.eye(2)[[0, 0, 1, 1]]
    for metric in metrics:
        metric.update(logits, labels)
    assert together((metric, values_of(metric)) for metric in metrics) == pytest.approx(
        {"accuracy": 0.75, "f1_score": (0.8 + 2 / 3) / 2, "f1_weighted": (3 * 0.8 + 2 / 3) / 4})
    assert len(build_metrics([{"NAME": "F1Score"}, {"NAME": "F1Score", "average": "none"}], ["a", "b"])) == 3
    with pytest.raises(ConfigError, match="two metrics compute 'f1_score'\n  Call one of them otherwise: name: f1_score_2"):
        build_metrics([{"NAME": "F1Score", "average": average} for average in ("macro", "weighted")], ["a", "b"])


@pytest.mark.parametrize("average, key", [
    ("macro", "macro avg"), ("micro", "accuracy"), ("weighted", "weighted avg")])
def test_torchmetrics_accuracy_is_its_recall(average, key):
    theirs = torchmetrics.classification.MulticlassAccuracy(10, average=average)(LOGITS, LABELS)
    assert values({"NAME": "Recall", "average": average}) == {"recall": pytest.approx(float(theirs))}


def test_torchmetrics_counts_plainly_in_deterministic_mode(monkeypatch):
    kind, modes = torchmetrics.classification.MulticlassMatthewsCorrCoef, []
    update = kind.update

    def noted(*args):
        modes.append(torch.are_deterministic_algorithms_enabled())
        update(*args)

    monkeypatch.setattr(kind, "update", noted)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        values("MatthewsCorrCoef")
        assert modes == [False] * 4
        with pytest.raises(ConfigError):
            values({"NAME": "F1Score", "ignore_index": 10**30})
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_torchmetrics_asks_no_other_process():
    assert not METRICS.build("F1Score", classes=["a", "b"]).metric.sync_on_compute


def test_evaluations_are_tried_of_a_user_s_own_metrics_alone(monkeypatch):
    built = []
    monkeypatch.setattr(METRICS.get("F1Score"), "update", lambda *args: built.append(args))
    refuse_what_adds_up([{"NAME": "F1Score"}], ["a", "b"])
    assert not built

    @METRICS.register()
    class Derived(torchmetrics.classification.MulticlassF1Score):
        def compute(self):
            return {"derived": super().compute()}

    refuse_what_adds_up([{"NAME": "Derived"}], ["a", "b"])


def test_torchmetrics_is_imported_for_its_names_only():
    code = ("import runpy, sys, cvkit; from cvkit.evaluation.metrics import build_metrics;"
            "build_metrics([{'NAME': 'TopKAccuracy', 'k': 1}, {'NAME': 'PerClassAccuracy'}], ['a']);"
            f"sys.argv[1:] = ['--help']; sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
            f"try: runpy.run_path({str(ROOT / 'tools' / 'train.py')!r}, run_name='__main__')\n"
            "except SystemExit: pass\n"
            "print('torchmetrics' in sys.modules, cvkit.METRICS.find('F1Score').__name__)\n"
            "print('torchmetrics' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["False F1Score", "True"]


SCORES = [{"NAME": "F1Score"}, {"NAME": "Recall", "average": "none"}, {"NAME": "CalibrationError"}]


def test_a_training_is_monitored_by_torchmetrics_and_resumed(quick):
    settings = {"METRICS": SCORES, "TRAIN.MONITOR": "f1_score", "TRAIN.EPOCHS": 3}
    run = train(load_config(quick, settings))
    scores = [line["test/f1_score"] for line in run.metrics]
    said = run.predictions
    assert scores[-1] == pytest.approx(sklearn.metrics.f1_score(
        said.true, said.predicted, average="macro"), abs=1e-6)
    assert run.best["epoch"] == run.checkpoint("best").epoch == 1 + int(np.argmax(scores))
    assert f"test/recall/{said.classes[0]}" in run.metrics[-1]
    assert run.metrics[-1]["lower_is_better"] == ["loss", "calibration_error"]
    assert "has no lower_is_better" not in (run.folder / "train.log").read_text()
    part = train_until(load_config(quick, settings), 1)
    again = train(load_config(quick, settings), resume=part.folder)
    assert [line["test/f1_score"] for line in again.metrics] == scores
    assert again.best["epoch"] == run.best["epoch"]


ALL = [{"NAME": name, **({"beta": 2.0} if name == "FBetaScore" else {})} for name in METRICS if name != "Accuracy"]


def test_each_metric_is_monitored_kept_and_reported_and_evaluated_to_the_same_value(quick, draws_only):
    draws_only("curves")
    run = train(load_config(quick, {"METRICS": ALL, "DATA.VAL_FRACTION": 0.3, "TRAIN.EPOCHS": 2,
                                    "TRAIN.MONITOR": "balanced_accuracy"}))
    last, said = run.metrics[-1], run.predictions
    names = [name.removeprefix("val/") for name in last if name.startswith("val/")]
    of_each = {re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", node["NAME"]).lower() for node in ALL}
    assert {name.split("/")[0] for name in names} == of_each - {"top_kaccuracy", "per_class_accuracy"} | {
        "loss", "accuracy", "top5"}
    assert all(math.isfinite(last[f"val/{name}"]) for name in names)
    report = write_report(run)[1].read_text()
    for name in names:
        shown = "{:.2f} %" if is_part(name) else "{:.4f}"
        value = said.loss if name == "loss" else said.metrics[name]
        row = re.search(rf"^\| {re.escape(name)} \|(.*)\|$", report.replace("\\", ""), re.M)[1]
        assert [cell.strip() for cell in row.split("|")][-1] == shown.format(
            100 * value if is_part(name) else value), name
        assert shown.format(last[f"val/{name}"] * (100 if is_part(name) else 1)) in row
    again = evaluate(run)
    assert again.metrics == said.metrics and list(again.metrics) == names
    table = again.table().splitlines()
    for name in set(names) - {"loss", "accuracy"}:
        assert f"{name}: {said.metrics[name]:.4f}" in table
    for name in names:
        monitor = build_trainer(load_config(quick, {"METRICS": ALL, "TRAIN.MONITOR": name})).monitor
        assert not monitor.assuming, name


def test_the_lowest_calibration_error_is_the_best(quick):
    monitor = build_trainer(load_config(quick, {"METRICS": SCORES, "TRAIN.MONITOR": "calibration_error"})).monitor
    best = {"epoch": 1, "calibration_error": 0.5}
    assert monitor.is_better({"calibration_error": 0.4}, best, 2)
    assert not monitor.is_better({"calibration_error": 0.6}, best, 2)
    with pytest.raises(ConfigError, match="no metric named 'f1score'\n  Did you mean f1_score?"):
        build_trainer(load_config(quick, {"METRICS": SCORES, "TRAIN.MONITOR": "f1score"}))
