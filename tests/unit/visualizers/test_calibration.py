import numpy as np
import pytest
from made_up import kinds, said, sharpened
from test_drawing import check_no_overlap

from cvkit.config import load_config
from cvkit.evaluation.further_images import predict_images
from cvkit.evaluation.reliability import fit_temperature, reliability, scaled
from cvkit.session import train
from cvkit.visualizers import calibration as module
from cvkit.visualizers.calibration import calibration


class WithValidation:
    """A run as far as a calibration looks at it."""

    class data:  # noqa: N801
        val = "validation images"


@pytest.mark.parametrize("name", kinds())
def test_the_curve_has_the_accuracy_of_each_bin_at_its_mean_confidence(name):
    predictions = kinds()[name]
    figure = calibration(predictions)
    found = reliability(predictions.probabilities, predictions.true)
    filled = found.counts > 0
    curve = figure.axes[0].lines[1].get_xydata()
    assert np.allclose(curve, np.stack([found.confidence[filled], (found.right / found.counts)[filled]], 1),
                       equal_nan=True)
    heights = np.array([[bar.get_height() for bar in bars] for bars in figure.axes[1].containers])
    assert heights.sum() == len(predictions.true)
    wrong = predictions.true != predictions.predicted
    assert heights[0].sum() == wrong.sum()
    figure.draw_without_rendering()
    check_no_overlap([*figure.texts, *(axes._left_title for axes in figure.axes),
                      *(text for axes in figure.axes for text in axes.get_legend().get_texts()),
                      *(axes.xaxis.label for axes in figure.axes), *(axes.yaxis.label for axes in figure.axes)])
    assert "No temperature was fitted, as these are the predictions of several models." in figure.caption


class WithoutValidation:
    """A run as far as a calibration looks at it."""

    class data:  # noqa: N801
        val = None


def test_a_run_without_validation_images_is_told_how_to_have_some():
    words = calibration(kinds()["ten"], WithoutValidation).caption
    assert "No temperature was fitted, as there are no validation images; DATA.VAL_FRACTION 0.1" in words


def test_a_temperature_that_makes_it_worse_is_not_praised(monkeypatch):
    monkeypatch.setattr(module, "predict_images", lambda *args: sharpened(3.0, seed=1))
    test = sharpened(1.0)
    words = calibration(test, WithValidation).caption
    after = reliability(scaled(test.probabilities, fit_temperature(sharpened(3.0, seed=1))), test.true)
    assert f"raise the error of the test images to {100 * after.expected:.1f} %; leave them as they are" in words


def test_a_model_that_is_nearly_perfect_is_not_called_under_confident():
    sure = np.full((60, 2), 0.002)
    sure[:, 0] = 0.998
    assert calibration(said(sure, [0] * 60)).caption.startswith("The model is about as sure as it is right")


def test_an_over_confident_model_is_told_so_and_gets_a_temperature_above_one(monkeypatch):
    test, val = sharpened(3.0), sharpened(3.0, seed=1)
    monkeypatch.setattr(module, "predict_images", lambda run, images, title: {"validation images": val}[images])
    figure = calibration(test, WithValidation)
    temperature = fit_temperature(val)
    assert temperature > 2.7
    after = reliability(scaled(test.probabilities, temperature), test.true)
    assert figure.caption.startswith("The model is over-confident: ")
    assert (f"Logits divided by {temperature:.2f}, which fits the validation images best, bring the error of the test "
            f"images to {100 * after.expected:.1f} %; no image changes its class.") in figure.caption
    curve = figure.axes[0].lines[2].get_xydata()
    assert np.allclose(curve[:, 1], after.right[after.counts > 0] / after.counts[after.counts > 0])
    assert np.abs(curve[:, 1] - curve[:, 0]).max() < 0.08
    calm = calibration(sharpened(1.0))
    assert calm.caption.startswith("The model is about as sure as it is right")
    assert calibration(sharpened(0.4)).caption.startswith("The model is under-confident")


def test_a_run_s_temperature_is_that_of_its_validation_images(tiny):
    run = train(load_config(tiny, {"DATA.VAL_FRACTION": 0.3, "DATA.LIMIT": 400, "TRAIN.EPOCHS": 6}))
    val = predict_images(run, run.data.val)
    assert (val.true == run.data.val.labels).all()
    assert f"divided by {fit_temperature(val):.2f}, which fits" in run.visualize("calibration").caption


def test_a_temperature_that_does_not_exist_is_not_drawn(monkeypatch):
    monkeypatch.setattr(module, "predict_images", lambda *args: kinds()["all right"])
    figure = calibration(kinds()["ten"], WithValidation)
    assert "No temperature was fitted: the loss of the validation images falls without end" in figure.caption
    assert len(figure.axes[0].lines) == 2


def test_the_diagonal_is_named_below_the_panel_where_no_point_covers_it():
    axes = calibration(sharpened(1.0)).axes[0]
    assert not axes.texts
    assert [text.get_text().split(":")[0] for text in axes.get_legend().get_texts()] == ["as it is", "as sure as right"]
