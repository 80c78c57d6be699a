import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from test_drawing import check_no_overlap, corners

from cvkit.visualizers.confusion import confused_pairs, confusion, confusion_matrix, similar_order

TRUE, PREDICTED = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 2, 2])


@pytest.fixture
def known(run):
    return replace(run.predictions, index=np.arange(6), true=TRUE, predicted=PREDICTED,
                   probabilities=np.eye(3, dtype=np.float32)[PREDICTED],
                   classes=["cat", "dog", "ox"])


def test_rows_are_true_and_columns_predicted(known):
    assert confusion_matrix(known).tolist() == [[1, 2, 0], [0, 1, 1], [0, 0, 1]]
    assert confused_pairs(known, 5) == [("cat", "dog", 2, 2 / 3), ("dog", "ox", 1, 1 / 2)]
    assert confused_pairs(known, 1) == [("cat", "dog", 2, 2 / 3)]


def test_it_sums_to_the_test_set_and_its_trace_is_the_accuracy_in_the_log(run):
    matrix = confusion_matrix(run.predictions)
    assert matrix.sum() == 150 == len(run.data.test)
    assert matrix.sum(1).tolist() == np.bincount(run.data.test.labels).tolist()
    log = (run.folder / "train.log").read_text()
    assert f"Accuracy: {np.trace(matrix)}/150 ({100 * np.trace(matrix) / 150:.2f}%)" in log


def test_cells_have_counts_and_rates(run, known):
    known.save(run.folder / "predictions.npz")
    figure = run.visualize("confusion")
    matrix, bars = figure.axes[:2]
    cells = {text.get_position(): text.get_text() for text in matrix.texts}
    assert cells == {(0, 0): "1\n33.3 %", (1, 0): "2\n66.7 %", (1, 1): "1\n50.0 %",
                     (2, 1): "1\n50.0 %", (2, 2): "1\n100.0 %"}
    assert np.allclose(matrix.images[0].get_array(), [[1 / 3, 2 / 3, 0], [0, 0.5, 0.5], [0, 0, 1]])
    assert [label.get_text() for label in matrix.get_yticklabels()] == ["cat", "dog", "ox"]
    assert [round(bar.get_width(), 1) for bar in bars.containers[0]] == [33.3, 50.0, 100.0]
    words = [text.get_text() for text in figure.texts]
    assert "cat → dog: 2 (66.7 %)" in words and "dog → ox: 1 (50.0 %)" in words
    assert "3 of 6 test images right (50.00 %)" in figure.caption
    assert figure.table.startswith(known.table())


def test_a_class_without_images_and_a_model_without_mistakes(run, known):
    replace(known, predicted=TRUE, true=TRUE, classes=["cat", "dog", "ox", "emu"],
            probabilities=np.full((len(TRUE), 4), 0.25, np.float32)).save(
                run.folder / "predictions.npz")
    figure = run.visualize("confusion")
    assert "none: every image is right" in [text.get_text() for text in figure.texts]
    assert "no images" in [text.get_text() for text in figure.axes[1].texts]


@pytest.mark.parametrize("classes", [20, 100])
def test_many_classes(run, classes):
    labels = np.arange(300) % classes
    replace(run.predictions, index=np.arange(300), true=labels, predicted=(labels + 1) % classes,
            probabilities=np.eye(classes, dtype=np.float32)[labels],
            classes=[f"class {number}" for number in range(classes)]).save(
                run.folder / "predictions.npz")
    figure = run.visualize("confusion", pairs=3)
    assert max(figure.get_size_inches()) < 20
    texts = [text.get_text() for text in figure.axes[0].texts]  # and a diagonal of zeros
    assert len(texts) == (2 * classes if classes <= 30 else 0)
    assert texts.count("0") == len(texts) // 2


@pytest.mark.parametrize("classes, name", [
    (2, "class {:03}"), (12, "W"), (30, "W"), (30, "{:03} photographed in the garden at night, W"),
    (31, "class {:03}"), (100, "{:03} photographed in the garden at night, W"),
    (200, "class {:03}")])
def test_every_class_is_named_and_no_word_lies_over_another(run, classes, name):
    names = [name.format(number) if "{" in name else f"{'W' * 60}{number}"
             for number in range(classes)]
    labels = np.arange(400) % classes
    predictions = replace(run.predictions, index=np.arange(400), true=labels,
                          predicted=(labels + labels // 3) % classes, classes=names,
                          probabilities=np.eye(classes, dtype=np.float32)[labels])
    figure = confusion(predictions)
    figure.draw_without_rendering()
    matrix, _, scale = figure.axes
    words = [*figure.texts, matrix.xaxis.label, matrix.yaxis.label, scale.xaxis.label,
             *(text for axes in figure.axes for text in [axes.title, axes._left_title])]
    words += [label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
              for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels())
              if min(axis.get_view_interval()) <= place <= max(axis.get_view_interval())]
    check_no_overlap(words)
    whole = figure.bbox
    for text in words:
        points = corners(text)
        assert (points >= -1).all() and (points <= (whole.width + 1, whole.height + 1)).all()
    assert scale.get_xlabel() == "part of the true class"
    assert [label.get_text() for label in scale.get_xticklabels()][-1] == "100 %"
    if classes <= 30:
        drawn = [label.get_text() for label in matrix.get_yticklabels()]
    else:
        numbers = [int(label.get_text()) for label in matrix.get_xticklabels()]
        assert numbers == list(range(0, classes, 5 if classes <= 100 else 10))
        at = {text.get_text(): place for place, text in enumerate(figure.texts)}
        drawn = [figure.texts[at[str(number)] + 1].get_text() for number in range(classes)]
        order, _ = similar_order(confusion_matrix(predictions))
        names = [names[place] for place in order]
        seventh = labels == order[7]
        assert figure.texts[at["7"] + 2].get_text() == (
            f"{100 * (labels[seventh] == predictions.predicted[seventh]).mean():.1f}")
        assert f"\n{classes - 1:>5}  {names[-1]}" in figure.table
    assert len(drawn) == classes
    for short, long in zip(drawn, names, strict=True):
        assert long.startswith(short.split("…")[0]) and long.endswith(short.split("…")[-1])


def test_a_few_per_cent_are_seen_where_cells_have_no_numbers(run):
    labels = np.arange(400) % 100
    figure = confusion(replace(
        run.predictions, index=np.arange(400), true=labels, predicted=labels,
        classes=[str(number) for number in range(100)],
        probabilities=np.eye(100, dtype=np.float32)[labels]))
    image = figure.axes[0].images[0]
    assert float(image.norm(0.04)) == pytest.approx(0.2) and image.norm(1.0) == 1.0
    assert list(figure.axes[2].get_xticks()) == [0, 0.1, 0.25, 0.5, 1]


def grouped(run, groups, classes, seed=0):
    """Predictions whose mistakes stay within groups of scattered classes."""
    random = np.random.default_rng(seed)
    labels = np.arange(40 * classes) % classes
    belongs = {label: group for group in groups for label in group}
    predicted = np.array([random.choice(belongs.get(label, [label])) for label in labels])
    return replace(run.predictions, index=np.arange(len(labels)), true=labels, predicted=predicted,
                   classes=[f"class {number}" for number in range(classes)],
                   probabilities=np.eye(classes, dtype=np.float32)[predicted])


def test_many_classes_that_are_taken_for_each_other_stand_side_by_side_and_are_framed(run):
    groups = [[3, 17, 31, 44], [0, 20, 39], [8, 45]]
    predictions = grouped(run, groups, 48)
    matrix = confusion_matrix(predictions)
    order, found = similar_order(matrix)
    assert sorted(order) == list(range(48))
    among = sorted((sorted(int(order[place]) for place in group), mistakes) for group, mistakes in found)
    assert among == sorted((group, int(matrix[np.ix_(group, group)].sum() - sum(matrix[n, n] for n in group)))
                           for group in groups)
    figure = confusion(predictions)
    frames = sorted(frame.get_width() for frame in figure.axes[0].patches if not frame.get_fill())
    assert frames == [2, 3, 4]
    texts = [text.get_text() for text in figure.texts]
    first = next(text for text in texts if text.endswith("mistakes") and "class" in text)
    assert set(first.split(": ")[0].split(", ")) == {f"class {number}" for number in groups[0]}
    rows = list(csv.reader(io.StringIO(figure.csv)))
    assert rows[0][1:] == [f"class {place}" for place in order]
    assert [list(map(int, row[1:])) for row in rows[1:]] == matrix[np.ix_(order, order)].tolist()


def test_few_classes_are_in_the_order_of_the_data_unless_asked_for_and_counts_come_on_demand(run):
    predictions = grouped(run, [[0, 5], [2, 9]], 10)
    labels = [label.get_text() for label in confusion(predictions).axes[0].get_yticklabels()]
    assert labels == predictions.classes
    similar = [label.get_text() for label in confusion(predictions, order="similar").axes[0].get_yticklabels()]
    assert {abs(similar.index("class 0") - similar.index("class 5")),
            abs(similar.index("class 2") - similar.index("class 9"))} == {1}
    assert not confusion(predictions, cells="none").axes[0].texts
    many = grouped(run, [[3, 17]], 40)
    assert not confusion(many).axes[0].texts
    cells = confusion(many, cells="counts").axes[0].texts
    assert sum(int(text.get_text()) for text in cells) == len(many.true)
    with pytest.raises(ValueError, match="no room for the counts of 121 classes, of 120 at most"):
        confusion(grouped(run, [], 121), cells="counts")


def test_classes_that_are_hardly_taken_for_each_other_are_not_framed(run):
    labels = np.arange(4000) % 40
    predicted = labels.copy()
    predicted[np.flatnonzero(labels == 3)[:2]] = 7
    found = replace(run.predictions, index=np.arange(4000), true=labels, predicted=predicted,
                    classes=[f"class {number}" for number in range(40)],
                    probabilities=np.eye(40, dtype=np.float32)[predicted])
    assert similar_order(confusion_matrix(found))[1] == [] and not confusion(found).axes[0].patches
    predicted[np.flatnonzero(labels == 3)[:8]] = 7
    assert len(similar_order(confusion_matrix(replace(found, predicted=predicted)))[1]) == 1
