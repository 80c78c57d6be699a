import csv
import io

import numpy as np
import pytest
import torch
from test_misclassified import shown, titles

from cvkit.visualizers.drawing import image_names


def test_the_images_are_those_with_the_highest_cross_entropy(painted):
    predictions, test = painted.predictions, painted.data.test
    losses = torch.nn.functional.nll_loss(torch.from_numpy(predictions.probabilities).double().log(),
                                          torch.from_numpy(predictions.true), reduction="none").numpy()
    order = np.argsort(-losses, kind="stable")
    figure = painted.visualize("top_losses", count=7)
    for image, title, row in zip(shown(figure), titles(figure), order, strict=False):
        assert np.array_equal(image, test.image(row))
        names = [predictions.classes[label] for label in (predictions.true[row], predictions.predicted[row])]
        assert title == f"{names[0]} → {names[1]}\n({losses[row]:.2f})"
    assert len(shown(figure)) == 7
    part = losses[order[:7]].sum() / losses.sum()
    assert f"{700 / len(losses):.1f} % of the images, {100 * part:.0f} % of the loss." in figure.caption
    rows = list(csv.reader(io.StringIO(figure.csv)))[1:]
    assert len(rows) == len(losses) and [row[0] for row in rows] == image_names(test, order)
    assert [float(row[3]) for row in rows] == pytest.approx(losses[order].tolist(), rel=1e-5)


def test_a_right_image_is_not_drawn_as_a_wrong_one(painted):
    figure = painted.visualize("top_losses", count=len(painted.data.test))
    for axes in (axes for axes in figure.axes if axes.images):
        true, predicted = axes.get_title().split("\n")[0].split(" → ")
        assert (axes.title.get_color() == "black") == (true == predicted)
