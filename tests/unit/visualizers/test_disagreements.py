import shutil
from dataclasses import replace

import numpy as np
import pytest
from test_misclassified import shown

from cvkit.errors import ConfigError, RunError
from cvkit.runs.compare import Runs
from cvkit.runs.folder import Run


@pytest.fixture
def other(run, tmp_path):
    """A run that knows another half of the test images."""
    predictions = run.predictions
    predicted = predictions.true.copy()
    predicted[::2] = (predicted[::2] + 1) % 10
    probabilities = np.eye(10, dtype=np.float32)[predicted] * np.linspace(0.5, 1, 150)[:, None]
    folder = shutil.copytree(run.folder, tmp_path / "runs" / "other" / run.folder.name)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("# tiny, resolved", "# other, resolved"))
    replace(predictions, predicted=predicted, probabilities=probabilities.astype(np.float32)).save(
        folder / "predictions.npz")
    return Run(folder)


def test_images_that_one_gets_wrong_and_the_other_right(run, other):
    a, b = other.predictions, run.predictions
    rows = np.flatnonzero((a.true != a.predicted) & (b.true == b.predicted))
    rows = rows[np.argsort(-a.probabilities[rows].max(1))]
    figure = Runs([other, run]).visualize("disagreements", count=4)
    images = shown(figure)
    assert len(images) == 4 < len(rows)
    for image, row in zip(images, rows, strict=False):
        assert np.array_equal(image, run.data.test.images[a.index[row]])
    assert figure.caption.startswith(f"4 of {len(rows)} test images that other gets wrong and tiny right")
    wrong_way = int(((a.true == a.predicted) & (b.true != b.predicted)).sum())
    both = int(((a.true != a.predicted) & (b.true != b.predicted)).sum())
    assert f"{wrong_way} the other way round, {both} wrong in both" in figure.caption


def test_runs_of_one_config_are_named_by_what_was_set(run, other):
    path = other.folder / "config.yaml"
    path.write_text(path.read_text().replace("# other, ", "# tiny, ").replace("lr: 0.05", "lr: 0.2"))
    runs = Runs([Run(other.folder), run])
    names = ["tiny (OPTIMIZER.lr 0.2)", "tiny (OPTIMIZER.lr 0.05)"]
    assert f"that {names[0]} gets wrong and {names[1]} right" in runs.visualize(
        "disagreements").caption
    legend = [text.get_text() for text in runs.visualize("curves").legends[0].get_texts()]
    assert legend[:4] == [f"{name}, {split}" for name in names for split in ("train", "test")]


def test_of_three_runs_each_is_compared_with_the_first(run, other):
    figures = Runs([other, run, other]).visualize("disagreements")
    assert len(figures) == 2 and figures[1].caption.startswith("0 test images")


def test_runs_on_other_images_cannot_be_compared(run, painted):
    with pytest.raises(RunError, match="were tested on different images"):
        Runs([run, painted]).visualize("disagreements")


def test_runs_on_other_pixels_with_the_same_labels_cannot_be_compared(run, other):
    path = other.folder / "predictions.npz"
    for images in ("another fingerprint", ""):
        replace(run.predictions, images=images).save(path)
        runs = Runs([run, Run(other.folder)])
        if images:
            with pytest.raises(RunError, match="were tested on different images"):
                runs.visualize("disagreements")
        else:  # of an older version
            assert runs.visualize("disagreements").caption


def test_a_count_below_1_is_refused(run, other):
    with pytest.raises(ConfigError, match="count is 1 or more, not 0"):
        Runs([run, other]).visualize("disagreements", count=0)
