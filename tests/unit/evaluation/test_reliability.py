import numpy as np
import pytest
import torch
from made_up import kinds, made_up, sharpened
from torchmetrics.functional.classification import multiclass_calibration_error

from cvkit.evaluation.reliability import fit_temperature, reliability, scaled


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("name", kinds())
def test_errors_are_those_of_torchmetrics(name, bins):
    predictions = kinds()[name]
    found = reliability(predictions.probabilities, predictions.true, bins)
    given = torch.from_numpy(predictions.probabilities), torch.from_numpy(predictions.true)
    for norm, value in (("l1", found.expected), ("max", found.maximum)):
        expected = multiclass_calibration_error(*given, given[0].shape[1], bins, norm)
        assert value == pytest.approx(float(expected), abs=2e-6)
    assert found.counts.sum() == len(predictions.true) and found.right.sum() == predictions.correct


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_made_the_model_too_sure(factor):
    temperature = fit_temperature(sharpened(factor))
    assert temperature == pytest.approx(factor, rel=0.08)
    other = sharpened(factor, seed=1)
    after = reliability(scaled(other.probabilities, temperature), other.true).expected
    assert after < 0.025
    if factor == 3:
        assert reliability(other.probabilities, other.true).expected > 0.2


def test_the_temperature_is_the_minimum_of_the_loss_by_torch():
    predictions = sharpened(2.0, images=500)
    logits, true = torch.from_numpy(predictions.probabilities).double().log(), torch.from_numpy(predictions.true)
    log = torch.zeros((), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(logits / log.exp(), true)
        value.backward()
        return value

    optimizer.step(loss)
    assert fit_temperature(predictions) == pytest.approx(float(log.exp()), rel=1e-3)


def test_scaling_leaves_the_order_of_the_classes_and_sums_of_one():
    probabilities = made_up().probabilities
    for temperature in (0.3, 1.0, 4.0):
        found = scaled(probabilities, temperature)
        assert np.allclose(found.sum(1), 1) and (found.argmax(1) == probabilities.argmax(1)).all()
    assert np.allclose(scaled(probabilities, 1.0), probabilities, atol=1e-6)
    expected = torch.from_numpy(probabilities).double().log().div(4).softmax(1).numpy()
    assert np.allclose(scaled(probabilities, 4.0), expected)


@pytest.mark.parametrize("name, why", [("all right", "all are right"), ("one class for all", "the model guesses")])
def test_a_loss_that_falls_without_end_has_no_temperature(name, why):
    with pytest.raises(ValueError, match=f"validation images falls without end: {why}"):
        fit_temperature(kinds()[name])
