"""Reporters are told of a training's beginning, of each epoch and of its end, or that it stopped."""

import pytest

from cvkit import WRITERS, Reporter
from cvkit.config import load_config
from cvkit.errors import ConfigError, DataError
from cvkit.runs.experiment import Experiment
from cvkit.runs.finding import find_runs
from cvkit.runs.folder import Run
from cvkit.session import train

CALLS = []


class Told(Reporter):
    """Notes what it is told; fails where its config says so."""

    def __init__(self, config, folder, name: str = "told", fails_in: str = ""):
        self.name, self.fails_in, self.config = name, fails_in, config
        if fails_in == "init":
            raise ValueError("cannot be made")

    def _note(self, call, *facts):
        CALLS.append((self.name, call, *facts))
        if self.fails_in == call:
            raise DataError(f"{self.name} fails in {call}")

    def begin(self, state):
        self._note("begin", state.epoch)

    def epoch(self, state, values):
        self._note("epoch", state.epoch, values["epoch"], state.predictions.accuracy == values["test/accuracy"])

    def stopped(self, state, error):
        self._note("stopped", type(error).__name__)

    def end(self, state, run):
        self._note("end", run.predictions.epoch)


@pytest.fixture(autouse=True)
def told():
    WRITERS.register()(Told)
    CALLS.clear()


def writers(*nodes):
    return {"WRITERS": [{"NAME": "Told", **node} for node in nodes]}


def test_it_is_told_of_each_epoch_with_the_state_that_is_trained(quick):
    train(load_config(quick, writers({})))
    assert CALLS == [("told", "begin", 0), ("told", "epoch", 1, 1, True), ("told", "epoch", 2, 2, True),
                     ("told", "end", 2)]
    train(load_config(quick, {**writers({}), "TRAIN.EPOCHS": 3}), resume=True)
    assert CALLS[4:] == [("told", "begin", 2), ("told", "epoch", 3, 3, True), ("told", "end", 3)]


@pytest.mark.parametrize("call, kept", [("begin", 0), ("epoch", 1), ("end", 2)])
def test_what_fails_in_one_keeps_none_from_it_and_costs_no_epoch(quick, call, kept):
    config = load_config(quick, writers({"name": "a", "fails_in": call}, {"name": "b"}))
    with pytest.raises(DataError, match=f"a fails in {call}"):
        train(config)
    asked = [entry[:2] for entry in CALLS]
    assert ("b", call) in asked and asked.index(("a", call)) < asked.index(("b", call))
    # The last that each is told is its end, or that the training stopped; never both.
    for name in "ab":
        last = [entry[1] for entry in CALLS if entry[0] == name and entry[1] in ("end", "stopped")]
        assert last == ["end" if call == "end" else "stopped"]
    run, = map(Run, find_runs("runs")) if kept else [None]
    assert not kept or run.checkpoint("last").epoch == kept


def test_one_that_cannot_be_made_lets_the_others_know(quick):
    config = load_config(quick, writers({"name": "a"}, {"name": "b", "fails_in": "init"}))
    with pytest.raises(ConfigError, match="cannot be built: cannot be made"):
        train(config)
    assert CALLS == [("a", "stopped", "ConfigError")]


def test_ctrl_c_within_one_stops_at_once(quick, monkeypatch):
    def stop(self, state, values):
        CALLS.append((self.name, "epoch"))
        raise KeyboardInterrupt

    monkeypatch.setattr(Told, "epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train(load_config(quick, writers({"name": "a"}, {"name": "b"})))
    assert [entry[:2] for entry in CALLS] == [("a", "begin"), ("b", "begin"), ("a", "epoch"),
                                              ("a", "stopped"), ("b", "stopped")]


def test_it_is_given_the_learning_rate_that_was_found(quick, monkeypatch):
    rates = []
    monkeypatch.setattr(Told, "begin", lambda self, state: rates.append(
        (self.config.SCHEDULER.max_lr, state.optimizer.param_groups[0]["max_lr"])))
    config = load_config(quick, {**writers({}), "SCHEDULER": {"NAME": "OneCycleLR", "max_lr": "find"}})
    parts = Experiment(config)
    run = train(config, parts=parts)
    assert rates == [(run.range_test.suggestion,) * 2]
    assert parts.config.SCHEDULER.max_lr == "find"  # those of the next training look again


@pytest.mark.parametrize("attribute", ["step", "epoch"])
def test_a_writer_of_the_form_before_works_whatever_its_attributes_are_called(quick, attribute):
    class Before:
        def __init__(self, folder):
            setattr(self, attribute, 0)

        def write(self, step, values):
            CALLS.append(("write", step))

        def finish(self, run):
            CALLS.append(("finish", run.predictions.epoch))

        def close(self):
            CALLS.append("close")

    WRITERS.register()(Before)
    train(load_config(quick, {"WRITERS": [{"NAME": "Before"}]}))
    assert CALLS == [("write", 1), ("write", 2), ("finish", 2), "close"]


def test_what_is_no_reporter_is_refused_before_anything_is_written(quick):
    WRITERS.register("nothing")(type("Nothing", (), {}))
    with pytest.raises(ConfigError, match=r"writer nothing has no begin\(\)\n  A writer has begin\(state\), epoch"):
        train(load_config(quick, {"WRITERS": [{"NAME": "nothing"}]}))
    assert not find_runs("runs")
