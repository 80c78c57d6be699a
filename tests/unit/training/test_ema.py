import pytest
import torch
from helpers import equal, train_until
from torch import nn

from cvkit.config import load_config
from cvkit.errors import ConfigError, RunError
from cvkit.session import train
from cvkit.training.ema import EMA


def test_the_average_follows_the_weights_by_its_rule():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    ema = EMA(model, 0.9)
    expected = model[0].weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            model[0].weight.add_(1.0)
        model(torch.randn(4, 3))
        ema.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    assert torch.allclose(ema.model[0].weight, expected, rtol=1e-5)
    assert ema.model[1].num_batches_tracked == 200
    assert not torch.equal(ema.model[1].running_mean, model[1].running_mean)
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


def test_buffers_that_a_module_replaces_are_followed():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.register_buffer("seen", torch.zeros(()))

    model = Counts()
    ema = EMA(model, 0.5)
    for _ in range(30):
        model.seen = model.seen + 0.1
        ema.update()
    assert 2.5 < ema.model.seen < 3.0


def walk(model, ema, steps):
    """Move the weights by one at each step; return them and their average after each."""
    seen = []
    for _ in range(steps):
        with torch.no_grad():
            model.weight.add_(1.0)
        ema.update()
        seen.append((model.weight.item(), ema.model.weight.item()))
    return seen


def scalar():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def test_it_is_updated_every_few_steps_and_counts_its_updates():
    model = scalar()
    averages = [average for _, average in walk(model, EMA(model, 0.9, every=5), 20)]
    first = 0.9 * 5  # d = 1/10, then 2/11, then 3/12
    second = 2 / 11 * first + 9 / 11 * 10
    assert averages[:9] == [0, 0, 0, 0, *[pytest.approx(first)] * 5]
    assert averages[9] == pytest.approx(second)
    assert averages[14] == pytest.approx(3 / 12 * second + 9 / 12 * 15)


def test_lookahead_is_that_of_airbench():
    """Against the loop of its script: every 5 steps, with a decay that rises with the third power."""
    model, total = scalar(), 40
    ema = EMA(model, 0.95**5, every=5, power=3.0, total_steps=total, goes_on=True)
    weight = average = 0.0
    expected = []
    for step in range(1, total + 1):
        weight += 1.0
        if step % 5 == 0:
            decay = 0.95**5 * (step / total)**3
            average = average + (1 - decay) * (weight - average)
            weight = average
        expected.append((weight, average))
    assert walk(model, ema, total) == [pytest.approx(pair, rel=1e-5) for pair in expected]


def test_lookahead_takes_the_statistics_of_norms_along():
    model = nn.BatchNorm1d(3)
    ema = EMA(model, 0.5, goes_on=True)
    for _ in range(12):
        model(torch.randn(8, 3) + 4)
        ema.update()
    assert torch.equal(model.running_mean, ema.model.running_mean)
    assert model.running_mean.mean() > 1 and model.num_batches_tracked == 12


LOOKAHEAD = {"TRAIN.EMA_DECAY": 0.77, "TRAIN.EMA_EVERY": 3, "TRAIN.EMA_POWER": 3.0, "TRAIN.EMA_LOOKAHEAD": True,
             "TRAIN.EPOCHS": 4}


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_run_with_lookahead_ends_the_same_when_it_is_resumed(quick, epoch):
    config = load_config(quick, LOOKAHEAD)
    whole = train(config)
    again = train(config, resume=train_until(config, epoch).folder)
    assert equal(whole.checkpoint("last").model, again.checkpoint("last").model)
    assert equal(whole.checkpoint("last").training["ema"], again.checkpoint("last").training["ema"])
    plain = train(load_config(quick, {**LOOKAHEAD, "TRAIN.EMA_LOOKAHEAD": False}))
    assert not equal(plain.checkpoint("last").model, whole.checkpoint("last").model)


@pytest.mark.parametrize("key, value", [("EMA_EVERY", 5), ("EMA_POWER", 3.0), ("EMA_LOOKAHEAD", True)])
def test_how_to_average_is_refused_where_nothing_is(quick, key, value):
    with pytest.raises(ConfigError, match="nothing is averaged: TRAIN.EMA_DECAY is 0") as caught:
        train(load_config(quick, {f"TRAIN.{key}": value}))
    assert caught.value.where.endswith(key)
    train(load_config(quick, {f"TRAIN.{key}": value, "TRAIN.EMA_DECAY": 0.0}))  # which switches it off


def test_averages_that_would_never_be_made_are_refused(quick):
    with pytest.raises(ConfigError, match="nothing is averaged: the training has 10 steps") as caught:
        train(load_config(quick, {"TRAIN.EMA_DECAY": 0.9, "TRAIN.EMA_EVERY": 11}))
    assert caught.value.where.endswith("EMA_EVERY")
    train(load_config(quick, {"TRAIN.EMA_DECAY": 0.9, "TRAIN.EMA_EVERY": 10}))


def test_a_decay_that_rises_was_planned_for_its_number_of_epochs(quick):
    config = load_config(quick, {**LOOKAHEAD, "SCHEDULER": None})
    run = train_until(config, 1)
    longer = load_config(quick, {**LOOKAHEAD, "SCHEDULER": None, "TRAIN.EPOCHS": 6})
    with pytest.raises(RunError, match="TRAIN.EPOCHS: 4 in the run, 6 now; TRAIN.EMA_POWER was planned for the old"):
        train(longer, resume=run.folder)
    assert len(train(load_config(quick, {"SCHEDULER": None, "TRAIN.EMA_DECAY": 0.7, "TRAIN.EPOCHS": 3}), resume=train_until(
        load_config(quick, {"SCHEDULER": None, "TRAIN.EMA_DECAY": 0.7}), 1).folder).metrics) == 3
