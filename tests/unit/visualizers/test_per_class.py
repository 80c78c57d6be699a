import csv
import io

import numpy as np
import pytest
from made_up import kinds, made_up, said
from scipy.stats import binomtest
from sklearn.metrics import f1_score, precision_recall_fscore_support
from test_drawing import check_no_overlap

from cvkit.visualizers.per_class import per_class, score_intervals


def rows_of(figure):
    """Return the rows of a picture's CSV by their first cell; numbers as such."""
    header, *rows = csv.reader(io.StringIO(figure.csv))
    return header, {row[0]: [float(cell or "nan") for cell in row[1:]] for row in rows}


@pytest.mark.parametrize("name", kinds())
def test_scores_are_those_of_scikit_learn_and_lie_in_their_intervals(name):
    predictions = kinds()[name]
    classes = range(len(predictions.classes))
    expected = np.stack(precision_recall_fscore_support(
        predictions.true, predictions.predicted, labels=classes, zero_division=0)[:3], axis=1)
    support = np.bincount(predictions.true, minlength=len(classes))
    _, rows = rows_of(per_class(predictions, count=5))
    found = np.array([list(row) for row in rows.values()])
    f1 = found[found[:, 9] > 0, 6]
    assert (np.diff(f1) >= 0).all() and (np.diff((found[:, 9] == 0).astype(int)) >= 0).all() and found[:, 9].sum() == len(predictions.true)
    by_class = per_class(predictions, sort="class")
    values = np.array([[float(cell or "nan") for cell in row[1:]]
                       for row in list(csv.reader(io.StringIO(by_class.csv)))[1:]])
    known = ~np.isnan(values[:, 0])
    assert np.allclose(values[known][:, [0, 3, 6]], expected[known], atol=1e-5)
    assert (values[:, 9] == support).all() and not support[~known].any()
    for place in (0, 3, 6):
        score, low, high = values[:, place:place + 3].T
        there = ~np.isnan(low)
        assert (low[there] <= score[there] + 1e-9).all() and (score[there] <= high[there] + 1e-9).all()


def test_intervals_are_wilson_s():
    true = np.repeat([0, 1], [10, 30])
    predicted = np.where(np.arange(40) < 8, 0, 1)
    intervals = score_intervals(said(np.eye(2)[predicted], true))
    z, p, n = 1.959964, 0.8, 10  # Wilson (1927), the score interval written out
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert intervals[0, 1] == pytest.approx([(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)],
                                            abs=1e-6)


def test_the_interval_of_f1_is_that_of_resampled_images():
    predictions = made_up(4, 500)
    random = np.random.default_rng(5)
    drawn = []
    for _ in range(1500):
        rows = random.integers(0, 500, 500)
        drawn.append(f1_score(predictions.true[rows], predictions.predicted[rows], average=None, labels=range(4)))
    expected = np.percentile(drawn, (2.5, 97.5), axis=0).T
    assert np.allclose(score_intervals(predictions, 4000)[:, 2], expected, atol=0.012)
    assert np.array_equal(score_intervals(predictions, seed=3), score_intervals(predictions, seed=3))


@pytest.mark.parametrize("name", kinds())
def test_nothing_lies_over_anything_and_dots_are_where_their_classes_are(name):
    predictions = kinds()[name]
    figure = per_class(predictions)
    figure.draw_without_rendering()
    panels = figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["Precision (%)", "Recall (%)", "F1 (%)"]
    words = [*figure.texts, *(axes._left_title for axes in panels), *panels[2].texts]
    for axes in panels:
        low, high = axes.get_xlim()
        words += [label for place, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
                  if low <= place <= high]
        assert max(axes.get_xticks()) <= 100
    words += panels[0].get_yticklabels()
    check_no_overlap(words)
    labels = [label.get_text() for label in panels[0].get_yticklabels()]
    scores, support = predictions.scores()
    dots = panels[2].lines[0].get_xydata()
    order = np.lexsort((scores[:, 2], support == 0))[:50]
    assert len(labels) == len(dots) == len(order)
    assert np.allclose(dots[:, 0], 100 * scores[order, 2], equal_nan=True)
    assert [text.get_text() for text in panels[2].texts] == ["images", *(f"{support[n]:,}" for n in order)]
    box = figure.bbox
    for text in words:
        extent = text.get_window_extent()
        assert extent.x0 >= -1 and extent.x1 <= box.width + 1


def test_the_caption_names_the_worst_classes_and_those_that_chance_does_not_explain():
    predictions = made_up(names=list("abcdefghij"))
    scores, _ = predictions.scores()
    intervals = score_intervals(predictions)
    worst = np.argsort(scores[:, 2])[:2]
    mean = scores[:, 2].mean()
    caption = per_class(predictions).caption
    assert caption.startswith(f"The lowest F1: {predictions.classes[worst[0]]} ({100 * scores[worst[0], 2]:.1f} %, ")
    below = (intervals[:, 2, 1] < mean).sum()  # all have images
    assert f"{100 * mean:.1f} % (dashed), for {below} of 10 classes" in caption
    assert per_class(kinds()["all right"]).caption.startswith("Every class has an F1 of 100 %.")


def test_a_class_without_images_is_not_called_the_worst_and_a_score_of_0_has_no_interval_by_resampling():
    predictions = kinds()["a class without images"]
    caption = per_class(predictions).caption
    assert "Without test images: 1." in caption and "class 3" not in caption
    missed = said(np.eye(2)[[1] * 3 + [1] * 20], [0] * 3 + [1] * 20)
    intervals = score_intervals(missed)
    # Wilson's of 0 of 3, as F1 is 2j / (1 + j) of the part j of images that are both.
    highest = binomtest(0, 3).proportion_ci(method="wilson").high
    assert intervals[0, 2] == pytest.approx([0, 2 * highest / (1 + highest)]) and intervals[0, 1, 1] > 0.5
    assert per_class(missed).caption.startswith(
        f"The lowest F1: class 0 (0.0 %, 0.0 to {100 * intervals[0, 2, 1]:.1f}) and class 1 (93.0 %, ")
    # Of ten classes with 100 images each, one never and one always right.
    true = np.repeat(np.arange(10), 100)
    predicted = np.where((true == 0) | (np.arange(1000) % 4 == 0), (true + 1) % 9, true)
    predicted[true == 9] = 9
    caption = per_class(said(np.eye(10)[predicted], true)).caption
    assert "for 2 of 10 classes, and above it for " in caption and "class 0 (0.0 %, 0.0 to 5.8) and class" in caption
    alone = per_class(said(np.eye(3)[[1, 2, 1]], [1, 2, 2]), count=1, sort="class")
    assert alone.axes[0].get_xlim() == (0, 100)  # nothing is known of class 0
    with pytest.raises(ValueError, match="resamples is 100 or more, not 1"):
        per_class(predictions, resamples=1)


def test_the_mean_recall_is_that_of_the_classes_with_images():
    predictions = said(np.eye(3)[[0, 0, 1, 2]], [0, 0, 0, 1])  # none of class 2, which one is taken for
    means = [axes.lines[-1].get_xdata()[0] for axes in per_class(predictions).axes[:3]]
    precision, recall, f1 = (100 * values.mean() for values in predictions.scores()[0].T)
    assert means == pytest.approx([precision, 100 * (2 / 3 + 0) / 2, f1]) and means[1] != pytest.approx(recall)


def test_labels_of_ticks_lie_beside_each_other_where_a_class_has_0_and_another_100():
    for part in (0.0, 0.2, 0.4, 0.6, 0.8):
        right = np.arange(20) < 20 * part
        figure = per_class(said(np.eye(2)[np.where(np.r_[right, [True] * 20], np.repeat([0, 1], 20), 1)],
                                np.repeat([0, 1], 20)))
        figure.draw_without_rendering()
        check_no_overlap([label for axes in figure.axes for label in axes.get_xticklabels()])
        assert 100 in figure.axes[1].get_xticks()
