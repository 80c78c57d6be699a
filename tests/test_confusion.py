from dataclasses import replace

import numpy as np
import pytest

from cvkit.visualizers.confusion import confused_pairs, confusion_matrix

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
