import csv
import io

import numpy as np
import pytest
from made_up import kinds, made_up, said
from scipy.integrate import trapezoid
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from test_drawing import check_no_overlap

from cvkit.visualizers.roc import pr, roc

AREAS = {"roc": roc_auc_score, "pr": average_precision_score}
DRAW = {"roc": roc, "pr": pr}


@pytest.mark.parametrize("picture", DRAW)
@pytest.mark.parametrize("name", kinds())
def test_areas_are_those_of_scikit_learn_and_stand_in_the_legend(name, picture):
    predictions = kinds()[name]
    figure = DRAW[picture](predictions)
    expected = {predictions.classes[label]: AREAS[picture](predictions.true == label,
                                                           predictions.probabilities[:, label])
                for label in np.unique(predictions.true)}
    rows = list(csv.reader(io.StringIO(figure.csv)))[1:]
    found = {row[0]: float(row[1]) for row in rows}
    assert found.pop("mean") == pytest.approx(np.mean(list(expected.values())), abs=1e-5)
    assert [float(row[1]) for row in rows[:-1]] == sorted(found.values())
    assert sorted(found.values()) == pytest.approx(sorted(expected.values()), abs=1e-5)
    axes, = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[0] == "guessing" and labels[-1].endswith(f"mean of {len(expected)} classes")
    drawn = [float(label.split()[0]) for label in labels[1:-1]]
    assert drawn == pytest.approx(sorted(expected.values())[:10], abs=1e-4)
    for line, area in zip(axes.lines[1:-1], sorted(expected.values()), strict=False):
        x, y = line.get_data()
        order = np.argsort(x, kind="stable")
        under = trapezoid(y[order], x[order]) if picture == "roc" else -np.sum(np.diff(x) * y[:-1])
        assert under == pytest.approx(area, abs=1e-6)
    figure.draw_without_rendering()
    check_no_overlap([*figure.texts, *axes.get_legend().get_texts(), axes.xaxis.label, axes.yaxis.label])


def test_the_mean_of_the_roc_curves_is_scikit_learn_s_macro_average():
    predictions = made_up(6)
    expected = roc_auc_score(predictions.true, predictions.probabilities / predictions.probabilities.sum(
        1, keepdims=True), multi_class="ovr", average="macro")
    assert f"is {expected:.4f} on average over 6 classes" in roc(predictions).caption
    x, y = roc(predictions).axes[0].lines[-1].get_data()
    assert trapezoid(y, x) == pytest.approx(expected, abs=2e-3)


def test_images_of_one_class_alone_cannot_be_ranked():
    figure = roc(said(np.eye(3)[[0, 1, 1]], [1, 1, 1]))
    assert figure.is_message and figure.caption == (
        "All test images are of one class, so there is nothing to rank.")


def test_the_mean_of_the_precision_curves_is_that_of_each_at_its_recall():
    predictions = made_up(4)
    x, y = pr(predictions).axes[0].lines[-1].get_data()
    curves = [precision_recall_curve(predictions.true == label, predictions.probabilities[:, label])
              for label in range(4)]
    for at in (0, 100, 250, 499, 500):
        # Recall falls along them: the last that has so much.
        expected = [precision[recall >= x[at]][-1] for precision, recall, _ in curves]
        assert y[at] == pytest.approx(np.mean(expected))
