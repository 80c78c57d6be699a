"""The range test: on a loss whose best rate is known, and on a training that it must not touch."""

import json
import re

import matplotlib
import numpy as np
import pytest
import torch
from helpers import train_until

from cvkit.config import load_config
from cvkit.errors import ConfigError, RunError
from cvkit.registry import OPTIMIZERS
from cvkit.reporting.report import write_report
from cvkit.runs.experiment import Experiment
from cvkit.runs.folder import open_run
from cvkit.runs.range_test import RangeTest
from cvkit.session import build_trainer, find_lr, train
from cvkit.training.lr_finder import find_rate, range_test
from cvkit.training.schedulers import is_to_find

FIND = {"SCHEDULER": {"NAME": "OneCycleLR", "max_lr": "find"}, "OPTIMIZER.lr": 0.05}


@pytest.fixture
def tiny(quick):
    """A config whose loss falls far more than it varies, on whatever processor."""
    text = quick.read_text()
    start, end = text.index("  TRAIN_TRANSFORMS:"), text.index("OPTIMIZER:")
    quick.write_text(text[:start] + text[end:])
    return quick


def parabola(curvature):
    """Gradient descent on curvature/2 × (weight − 1)², which diverges above 2 / curvature."""
    weight = [0.0]

    def step(rate):
        loss = curvature / 2 * (weight[0] - 1) ** 2 + 0.5
        weight[0] -= rate * curvature * (weight[0] - 1)
        return loss

    return step


@pytest.mark.parametrize("curvature", [0.5, 5.0, 50.0])
def test_the_suggestion_lies_below_where_the_loss_begins_to_grow(curvature):
    found = range_test(parabola(curvature), 1e-5, 1000.0, 200)
    best = found.rates[int(np.argmin(found.smoothed))]
    assert found.suggestion == pytest.approx(best / 2, rel=0.01)
    assert 0.05 / curvature < found.suggestion < 2 / curvature
    assert len(found.rates) == len(found.losses) == len(found.smoothed) < 200  # it diverged
    steps = np.diff(np.log(found.rates))
    assert found.rates[0] == pytest.approx(1e-5) and np.allclose(steps, steps[0])
    assert found.smoothed[10] == pytest.approx(np.mean(found.losses[3:18]))  # a 14th of the steps


def test_a_loss_may_lie_below_zero():
    offset, plain = 20.0, range_test(parabola(5.0), 1e-5, 1000.0, 200)
    step = parabola(5.0)
    found = range_test(lambda rate: step(rate) - offset, 1e-5, 1000.0, 200)
    assert found.suggestion == plain.suggestion and len(plain.rates) <= len(found.rates) < 200
    assert min(found.losses) == pytest.approx(min(plain.losses) - offset)


def noise(scale, fall=0.0):
    random = np.random.default_rng(0)
    return lambda rate: 1.4 + scale * random.standard_normal() - fall * (1e-3 < rate < 1e-1)


@pytest.mark.parametrize("step, problem", [
    (lambda rate: 1.0 + rate, "from 1e-05 to 10 the loss falls by 0.000 only"),
    (lambda rate: float("nan"), "the loss is not finite"),
    (noise(0.05), "only, while it varies by 0.0.* from step to step\n.*--steps 300")])
def test_no_suggestion_without_a_loss_that_falls(step, problem):
    with pytest.raises(RunError, match=problem):
        range_test(step, 1e-5, 10.0, 100)


def test_a_fall_that_stands_out_of_the_noise_is_found():
    found = range_test(noise(0.05, fall=0.3), 1e-5, 10.0, 100)
    assert 0.5e-3 <= found.suggestion <= 0.5e-1


@pytest.mark.parametrize("lowest, highest, steps, problem", [
    (0.0, 1.0, 100, "rates rise from above 0"), (1.0, 0.1, 100, "not from 1 to 0.1"),
    (0.1, 1.0, 5, "steps is 20 or more, not 5")])
def test_wrong_arguments(lowest, highest, steps, problem):
    with pytest.raises(ValueError, match=problem):
        range_test(parabola(1.0), lowest, highest, steps)


def test_a_training_goes_on_as_if_nothing_had_been_looked_for(tiny):
    config = load_config(tiny, {"MODEL": {"NAME": "vit", "width": 64, "depth": 1, "dropout": 0.1},
                                "TRAIN.EMA_DECAY": 0.9, "OPTIMIZER": {"NAME": "AdamW", "lr": 1e-3}})
    weights = {}
    for looks in (False, True):
        trainer = build_trainer(config)
        state = trainer.state
        before = {name: value.clone() for name, value in state.model.state_dict().items()}
        torch.manual_seed(3)
        if looks:
            found = find_rate(state, trainer.parts, highest=1.0, steps=80)
            assert 1e-5 < found.suggestion < 10
        drawn = torch.rand(3)
        for name, value in state.model.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert state.optimizer.state_dict()["state"] == {} and state.schedule.steps == 0
        assert state.optimizer.param_groups[0]["lr"] == 1e-3
        assert all(parameter.grad is None for parameter in state.model.parameters())
        run = train(config, parts=trainer.parts)
        weights[looks] = {**run.checkpoint().model, "drawn": drawn}
    for name, value in weights[True].items():
        assert torch.equal(value, weights[False][name]), name


def test_a_schedule_s_rate_is_found_used_and_recorded(tiny, monkeypatch):
    config = load_config(tiny, FIND)
    expected = find_lr(config)
    run = train(config)
    assert run.range_test == expected == RangeTest.load(run.folder / "lr_finder.json")
    assert "rule" in json.loads((run.folder / "lr_finder.json").read_text())
    assert open_run().config.SCHEDULER.max_lr == expected.suggestion
    rates = [rate for epoch in run.metrics for _, rate in epoch["rates"]]
    assert max(rates) == pytest.approx(expected.suggestion, rel=0.1)
    log = (run.folder / "train.log").read_text()
    assert f"found      max_lr {expected.suggestion:g}: half the rate" in log
    assert f"SGD, OneCycleLR up to {expected.suggestion} (not OPTIMIZER.lr)" in log
    drawn = []
    monkeypatch.setattr("cvkit.reporting.pages.draw_all", lambda run, nodes: drawn.extend(nodes) or [])
    write_report(run)
    assert {"NAME": "lr_finder"} in drawn
    again = train(load_config(run.folder / "config.yaml"))  # repeats it, without looking again
    assert not hasattr(again, "range_test")
    for name, weight in run.checkpoint().model.items():
        assert torch.equal(weight, again.checkpoint().model[name]), name


def test_a_resumed_run_keeps_the_rate_that_it_began_with(tiny):
    whole = train(load_config(tiny, FIND))
    part = train_until(load_config(tiny, FIND), 1)
    train(load_config(tiny, FIND), resume=part.folder)
    assert (part.folder / "train.log").read_text().count("found      max_lr") == 1
    for name, weight in whole.checkpoint().model.items():
        assert torch.equal(weight, part.checkpoint().model[name]), name


def test_looking_takes_accumulation_and_other_schedulers(tiny):
    cyclic = {"NAME": "CyclicLR", "base_lr": 1e-4, "max_lr": "find"}
    trainer = build_trainer(load_config(tiny, {"SCHEDULER": cyclic, "TRAIN.ACCUMULATE": 2}))
    assert is_to_find(trainer.config.SCHEDULER)
    found = find_rate(trainer.state, trainer.parts, highest=1.0, steps=25)
    batches = trainer.loaders.train
    batches.set_epoch(0)
    with torch.no_grad():
        losses = [float(trainer.state.loss(trainer.state.model(batch.images), batch.labels)) for batch in batches]
    assert found.losses[0] == pytest.approx(np.mean(losses[:2]), abs=0.02)  # of an unchanged model
    assert train(load_config(tiny, {"SCHEDULER": cyclic})).range_test.suggestion > 0


def test_the_picture_shows_every_step_and_the_suggestion(run, tiny):
    parts = Experiment(load_config(tiny))
    parts.range_test = find_lr(parts.config, highest=1.0, steps=40)
    axes = parts.visualize("lr_finder").axes[0]
    losses, averages, suggestion, lowest = axes.lines
    assert losses.get_xdata() == pytest.approx(parts.range_test.rates)
    assert losses.get_ydata() == pytest.approx(parts.range_test.losses)
    assert averages.get_ydata() == pytest.approx(parts.range_test.smoothed)
    assert suggestion.get_xdata()[0] == parts.range_test.suggestion
    assert lowest.get_ydata()[0] == min(parts.range_test.smoothed)
    assert axes.get_xscale() == "log" and isinstance(axes.xaxis.get_major_formatter(),
                                                     matplotlib.ticker.StrMethodFormatter)
    with pytest.raises(RunError, match="lr_finder needs a run with SCHEDULER.max_lr find(.|\n)*find_lr.py"):
        run.visualize("lr_finder")


def test_the_tool_says_and_draws_it(tiny, tool, tmp_path):
    code, out, err = tool("find_lr.py", tiny, "--steps", "30", "--highest", "1", "OPTIMIZER", "{NAME: AdamW, lr: 1e-3}")
    assert code == 0, err
    found = find_lr(load_config(tiny, {"OPTIMIZER": {"NAME": "AdamW", "lr": 1e-3}}),
        highest=1.0, steps=30)
    assert out.splitlines()[0] == "runs/tiny/visuals/lr_finder.png"
    assert f"Suggested is {found.suggestion:g}: half the rate at which" in out
    assert out.splitlines()[-1].startswith(f"Suggested: OPTIMIZER.lr {found.suggestion:g}")
    table = (tmp_path / "runs/tiny/visuals/lr_finder.txt").read_text().splitlines()
    assert len(table) == 1 + len(found.rates) and [path.name for path in (tmp_path / "runs/tiny").iterdir()] == ["visuals"]


def test_the_tool_names_the_key_that_sets_the_highest_rate(tiny, tool):
    cyclic = "{NAME: OneCycleLR, max_lr: 0.1}"
    code, out, err = tool("find_lr.py", tiny, "--steps", "30", "--highest", "1", "SCHEDULER", cyclic)
    assert code == 0, err
    assert re.fullmatch(r"Suggested: SCHEDULER\.max_lr [\d.e-]+", out.splitlines()[-1])


@pytest.mark.parametrize("arguments, expected", [
    (["--steps", "3"], "steps is 20 or more, not 3"), (["--lowest", "0"], "rates rise from above 0"),
    (["--epochs", "3"], "Did you mean TRAIN.EPOCHS?"), (["OPTIMIZER.lrr", "3"], "has no argument 'lrr'")])
def test_what_is_wrong_is_told(tiny, tool, arguments, expected):
    code, _, err = tool("find_lr.py", tiny, *arguments)
    assert code == 2 and err.startswith("error: ") and expected in err


def test_find_is_a_word_of_max_lr_alone(tiny):
    with pytest.raises(ConfigError, match="lr of optimizer SGD takes"):
        build_trainer(load_config(tiny, {"OPTIMIZER.lr": "find"}))
    with pytest.raises(ConfigError, match="max_lr of scheduler OneCycleLR takes"):
        build_trainer(load_config(tiny, {"SCHEDULER": {"NAME": "OneCycleLR", "max_lr": "fnd"}}))


def test_an_optimizer_that_passes_over_the_rate_is_refused(tiny):

    @OPTIMIZERS.register()
    class Deaf(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr)
            self.own = lr

        def step(self, closure=None):
            for group in self.param_groups:
                group["lr"] = self.own
            super().step(closure)

    with pytest.raises(ConfigError, match="Deaf takes the same 23 steps at half the learning rate"):
        find_lr(load_config(tiny, {"OPTIMIZER": {"NAME": "Deaf", "lr": 0.1}}))
