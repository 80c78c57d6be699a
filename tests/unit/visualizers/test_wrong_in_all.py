import shutil
from dataclasses import replace

import numpy as np
import pytest
from test_misclassified import shown

from cvkit.errors import RunError
from cvkit.runs.compare import Runs
from cvkit.runs.folder import Run


@pytest.fixture
def three(run, tmp_path):
    """Three runs whose mistakes are known: images 0 to 29, 20 to 59 and 10 to 39."""
    runs = []
    for number, (first, last) in enumerate(((0, 30), (20, 60), (10, 40))):
        folder = shutil.copytree(run.folder, tmp_path / "runs" / "other" / f"{number}")
        said = run.predictions
        predicted = said.true.copy()
        predicted[first:last] = (predicted[first:last] + 1 + number) % 10
        probabilities = np.full((len(predicted), 10), 0.02, np.float32)
        probabilities[np.arange(len(predicted)), predicted] = 0.82
        replace(said, predicted=predicted, probabilities=probabilities).save(folder / "predictions.npz")
        runs.append(Run(folder))
    return runs


def test_images_that_all_get_wrong_with_the_wrong_class_that_they_give_most(three):
    figure = Runs(three).visualize("wrong_in_all", count=4)
    images, said = shown(figure), [run.predictions for run in three]
    assert figure.caption.startswith(
        "4 of 10 test images that all 3 runs get wrong; 50 are wrong in some, 90 in none.")
    rows = np.arange(20, 30)
    for image, row in zip(images, rows, strict=False):
        assert np.array_equal(image, three[0].data.test.images[said[0].index[row]])
    titles = [axis.get_title() for axis in figure.axes if axis.images]
    # Each gives another wrong class 82 %, and the others 2 %.
    true = [said[0].classes[said[0].true[row]] for row in rows[:4]]
    assert [title.split(" → ")[0] for title in titles] == true
    assert all(title.endswith("(29 %)") and title.split(" → ")[1][0] != name
               for title, name in zip(titles, true, strict=True))


def test_none_is_said(three):
    figure = Runs([*three[:2], replace_all_right(three[2])]).visualize("wrong_in_all")
    assert figure.caption.startswith("0 test images that all 3 runs get wrong; 60 are wrong in some")


def replace_all_right(run):
    said = run.predictions
    replace(said, predicted=said.true).save(run.folder / "predictions.npz")
    return run


def test_other_images_are_refused(run, painted):
    with pytest.raises(RunError, match="were tested on different images"):
        Runs([run, painted]).visualize("wrong_in_all")
