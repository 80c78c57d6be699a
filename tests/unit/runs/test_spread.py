import pytest

from cvkit.runs.spread import Spread


@pytest.mark.parametrize("values", [[-1.53, -1.5, -1.47], [-0.03, 0.0, 0.06]])
def test_the_interval_of_a_loss_below_zero_is_not_cut(values):
    low, high = Spread.of(values).interval
    assert low < 0
    assert Spread.of(values).in_words("loss")[1] == f"{low:.4f} to {high:.4f}"
    above = Spread.of([value + 1.53 for value in values])
    assert above.in_words("loss")[1] == f"{max(above.interval[0], 0):.4f} to {above.interval[1]:.4f}"
