"""SPACE of a sweep: what of it is refused, before anything is trained, and what becomes of it."""

import re

import numpy as np
import pytest
from conftest import TINY

from cvkit.config.load import load_sweep
from cvkit.errors import ConfigError, UserError
from cvkit.registry import PRUNERS, SEARCHERS
from cvkit.sweep.engine import build_tools
from cvkit.sweep.space import Space
from cvkit.sweep.study import Sweep

optuna = pytest.importorskip("optuna")


@pytest.fixture
def sweep(tmp_path):
    """A function that writes a sweep of tiny.yaml and reads it."""
    def write(space, *more):
        (tmp_path / "tiny.yaml").write_text(TINY)
        lines = ["SWEEP:", "  BASE: tiny.yaml", *more, "  SPACE:", *(f"    {line}" for line in space)]
        (tmp_path / "search.yaml").write_text("\n".join(lines) + "\n")
        return load_sweep("search.yaml")
    return write


WRONG = {
    "unknown key": (["OPTIMZER.lr: [1, 2]"],
                    "search.yaml:4 SWEEP.SPACE.OPTIMZER.lr: OPTIMZER.lr 1: unknown key OPTIMZER",
                    "Did you mean OPTIMIZER?"),
    "unknown argument": (["OPTIMIZER.lrr: [1.0]"],
                         "OPTIMIZER.lrr 1: optimizer SGD has no argument 'lrr'", "Did you mean lr?"),
    "unknown component": (["MODEL.NAME: [resnet18, resnet19]"],
                          "search.yaml:4 SWEEP.SPACE.MODEL.NAME: MODEL.NAME resnet19: no model named "
                          "'resnet19'", "Did you mean"),
    "wrong type": (["DATA.BATCH_SIZE: [32, many]"],
                   "DATA.BATCH_SIZE many: expected a whole number, not the string 'many'", ""),
    "out of range": (["DATA.BATCH_SIZE: {NAME: int, low: 0, high: 64}"],
                     "DATA.BATCH_SIZE 0: 0 is out of range; 1 or more is possible", ""),
    "float for int": (["TRAIN.EPOCHS: {NAME: float, low: 1, high: 3}"],
                      "TRAIN.EPOCHS 1: expected a whole number, not 1.0", ""),
    "empty list": (["OPTIMIZER.lr: []"], "search.yaml:4 SWEEP.SPACE.OPTIMIZER.lr: an empty list leaves "
                   "nothing to try", ""),
    "empty range": (["OPTIMIZER.lr: {NAME: float, low: 1, high: 0.1}"], "nothing lies from 1.0 to 0.1",
                    "low comes before high"),
    "log from 0": (["OPTIMIZER.lr: {NAME: float, low: 0, high: 1, log: true}"],
                   "search.yaml:4 SWEEP.SPACE.OPTIMIZER.lr.low: a logarithmic range begins above 0, not "
                   "at 0.0", ""),
    "log with step": (["OPTIMIZER.lr: {NAME: float, low: 1, high: 2, step: 0.1, log: true}"],
                      "a logarithmic range has no step", ""),
    "no step": (["OPTIMIZER.lr: {NAME: float, low: 1, high: 2, step: 0}"], "a step is above 0, not 0", ""),
    "no high": (["OPTIMIZER.lr: {NAME: float, low: 1}"], "the range has no high", ""),
    "no number": (["OPTIMIZER.lr: {NAME: float, low: a, high: 1}"], "low is a number, not a", ""),
    "no whole number": (["TRAIN.EPOCHS: {NAME: int, low: 1.5, high: 3}"], "low is a whole number, not 1.5", ""),
    "infinite": (["OPTIMIZER.lr: {NAME: float, low: 1, high: .inf}"], "high is a number, not inf", ""),
    "misspelt": (["OPTIMIZER.lr: {NAME: float, low: 1, hihg: 2}"], "a range has no 'hihg'",
                 "Did you mean high?"),
    "log of words": (["OPTIMIZER.lr: {NAME: float, low: 1, high: 2, log: 1}"], "log is true or false, not 1",
                     ""),
    "other kind": (["OPTIMIZER.lr: {NAME: flaot, low: 1, high: 2}"],
                   "expected a list of values or a range, not flaot(low=1, high=2)", "Did you mean float?"),
    "one value": (["OPTIMIZER.lr: 0.1"], "expected a list of values or a range, not 0.1",
                  "OPTIMIZER.lr: [1, 2]"),
    "twice": (["OPTIMIZER.lr: [0.1, 0.2, 0.1]"], "0.1 is listed twice", ""),
    "what is measured": (["TRAIN.MONITOR: [accuracy, loss]"], "search.yaml:4 SWEEP.SPACE.TRAIN.MONITOR: "
                         "TRAIN.MONITOR changes what trials are measured by", "Set it beside SWEEP"),
    "which loss": (["LOSS.label_smoothing: [0.0, 0.1]"], "LOSS.label_smoothing changes what trials are measured by", "",
                   "  MONITOR: loss"),
    "which images": (["DATA.VAL_FRACTION: [0.0, 0.1]"], "DATA.VAL_FRACTION changes what trials are measured", ""),
    "another place": (["OUTPUT_DIR: [a, b]"], "OUTPUT_DIR changes what trials are measured by, or where", ""),
    "not together": (["MODEL.NAME: [resnet18, vit]", "MODEL.norm: [batch, group]"],
                     "search.yaml:4 SWEEP.SPACE: MODEL.NAME vit, MODEL.norm batch: model vit has no "
                     "argument 'norm'", "")}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_tried_is_told_with_its_line(sweep, name):
    space, message, hint, *more = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        Space(sweep(space, *more))
    assert message in str(caught.value) and hint in str(caught.value), caught.value


def test_a_loss_is_not_varied_either_where_the_config_says_that_it_is_monitored(sweep):
    sweep(["LOSS.label_smoothing: [0.0, 0.1]"])
    Space(load_sweep("search.yaml"))
    with pytest.raises(ConfigError, match="LOSS.label_smoothing changes what trials are measured by"):
        Space(load_sweep("search.yaml", {"TRAIN.MONITOR": "loss"}))


def test_a_key_that_there_is_not_is_told_once_for_all_its_values(sweep):
    with pytest.raises(ConfigError) as caught:
        Space(sweep(["OPTIMIZER.learning_rate: {NAME: float, low: 1e-3, high: 1, log: true}"]))
    assert str(caught.value).count("has no argument 'learning_rate'") == 1


def test_all_that_is_wrong_is_told_at_once(sweep):
    with pytest.raises(ConfigError) as caught:
        Space(sweep(["OPTIMIZER.lr: []", "TRAIN.EPOCHS: {NAME: int, low: 3, high: 1}"]))
    assert str(caught.value).startswith("2 problems")
    with pytest.raises(ConfigError) as caught:
        Space(sweep(["DATA.BATCH_SIZE: [0, 32]", "TRAIN.EPOCHS: [0, 1]"]))
    assert str(caught.value).startswith("2 problems")


def test_values_are_decoded_as_the_config_has_them(sweep):
    space = Space(sweep([
        "MODEL: [{NAME: resnet18, width: 4}, {NAME: resnet9}]", "TRAIN.FREEZE: [[], [head]]",
        "TRAIN.COMPILE: [true, false]", "DATA.BATCH_SIZE: {NAME: int, low: 8, high: 64, log: true}",
        "OPTIMIZER.lr: {NAME: float, low: 1e-3, high: 1, log: true}",
        "OPTIMIZER.momentum: {NAME: float, low: 0.5, high: 0.9, step: 0.1}"]))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    seen = {key: [] for key in space.text()}
    for _ in range(60):
        values = space.decoded(study.ask(space.distributions).params)
        config = load_sweep("search.yaml").config(values)
        assert config.OPTIMIZER.lr == values["OPTIMIZER.lr"] and config.DATA.BATCH_SIZE == values["DATA.BATCH_SIZE"]
        assert config.MODEL.NAME == values["MODEL"]["NAME"] and list(config.TRAIN.FREEZE) == list(values["TRAIN.FREEZE"])
        for key, value in values.items():
            seen[key].append(value)
    assert {value["NAME"] for value in seen["MODEL"]} == {"resnet18", "resnet9"}
    assert {tuple(value) for value in seen["TRAIN.FREEZE"]} == {(), ("head",)}
    assert set(seen["TRAIN.COMPILE"]) == {True, False}
    assert all(8 <= value <= 64 and isinstance(value, int) for value in seen["DATA.BATCH_SIZE"])
    assert 0.2 < np.median(np.log10(seen["OPTIMIZER.lr"])) / -3 < 0.8
    assert {round(value, 9) for value in seen["OPTIMIZER.momentum"]} == {0.5, 0.6, 0.7, 0.8, 0.9}


def test_a_grid_has_all_combinations_in_order(sweep):
    space = Space(sweep(["OPTIMIZER.lr: [0.1, 0.2]", "TRAIN.EPOCHS: {NAME: int, low: 1, high: 3}"]))
    points = [space.grid_point(number) for number in range(space.grid_size())]
    assert [(point["OPTIMIZER.lr"], point["TRAIN.EPOCHS"]) for point in points] == [
        (0.1, 1), (0.1, 2), (0.1, 3), (0.2, 1), (0.2, 2), (0.2, 3)]
    large = Space(sweep([f"{key}: {{NAME: int, low: 1, high: 1000}}" for key in (
        "TRAIN.EPOCHS", "DATA.BATCH_SIZE", "TRAIN.ACCUMULATE", "DATA.EVAL_BATCH_SIZE")]))
    assert large.grid_size() == 10**12 and large.grid_point(10**12 - 1)["TRAIN.EPOCHS"] == 1000
    with pytest.raises(ConfigError, match=r"search\.yaml:5 .*a grid needs values, or a range with a step"):
        Sweep(sweep(["OPTIMIZER.lr: {NAME: float, low: 0.1, high: 0.2}"], "  SAMPLER: {NAME: GridSampler}"))


def test_a_value_alone_may_need_the_others(sweep):
    """A width of resnet18 fits only where that is the model, as it is in each trial."""
    Space(sweep(["MODEL.NAME: [resnet34]", "MODEL.width: [4, 8]"]))


@pytest.mark.parametrize("more, message", [
    (["  SAMPLER: {NAME: TPESamplr}"], "no searcher named 'TPESamplr'\n  Did you mean TPESampler?"),
    (["  SAMPLER: {NAME: TPESampler, n_startup: 3}"], "search.yaml:3 SWEEP.SAMPLER.n_startup: searcher TPESampler has no "
     "argument 'n_startup'\n  Did you mean n_startup_trials?"),
    (["  PRUNER: {NAME: MedianPruner, n_startup_trials: many}"], "takes int, not 'many'"),
    (["  PRUNER: {NAME: PatientPruner, patience: 2, wrapped_pruner: {NAME: Median}}"], "no pruner named 'Median'"),
    (["  SAMPLER: {NAME: BruteForceSampler}"], "That of optuna.samplers is GridSampler, which shares its points"),
    (["  TRIALS: 0"], "0 is out of range; 1 or more is possible"),
    (["  TRAILS: 3"], "search.yaml:3 SWEEP.TRAILS: unknown key TRAILS\n  Did you mean TRIALS?"),
    (["  MONITOR: 3"], "expected a string, not 3"), (["  SEEDS: two"], "expected a whole number")])
def test_what_is_wrong_with_the_rest_is_told(sweep, more, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Sweep(sweep(["OPTIMIZER.lr: [0.1]"], *more))


def test_a_base_may_stand_in_the_node_or_at_the_top(sweep, tmp_path):
    here = sweep(["OPTIMIZER.lr: [0.1]"])
    text = (tmp_path / "search.yaml").read_text().replace("  BASE: tiny.yaml\n", "")
    (tmp_path / "top.yaml").write_text(f"_BASE_: tiny.yaml\n{text}")
    top = load_sweep("top.yaml")
    assert top.config({}).to_dict() == here.config({}).to_dict() and (top.name, here.name) == ("top", "search")


def test_a_sweep_is_no_config_and_a_config_no_sweep(sweep, tool):
    sweep(["OPTIMIZER.lr: [0.1]"])
    code, _, err = tool("train.py", "search.yaml")
    assert code == 2 and "unknown key SWEEP\n  The file describes a sweep: python tools/sweep.py FILE" in err
    code, _, err = tool("sweep.py", "tiny.yaml")
    assert code == 2 and "tiny.yaml has no SWEEP\n  To train it: python tools/train.py tiny.yaml" in err
    code, _, err = tool("sweep.py", "search.yaml", "SWEEP.SPACE", "null")
    assert code == 2 and "there is nothing to search for" in err


def test_a_key_is_searched_for_or_set_but_not_both(sweep, tool):
    sweep(["OPTIMIZER.lr: [0.1]"])
    code, _, err = tool("sweep.py", "search.yaml", "TRAIN.EPOCHS", "1", "OPTIMIZER.lr", "0.5")
    assert code == 2 and "search.yaml:4 SWEEP.SPACE.OPTIMIZER.lr: OPTIMIZER.lr is searched for, and set as well" in err


def test_each_sampler_and_pruner_proposes_what_the_space_has(sweep):
    """All that Optuna has, so that what is new there is tried here."""
    source = sweep(["OPTIMIZER.lr: [0.1, 0.2]", "OPTIMIZER.momentum: {NAME: float, low: 0, high: 0.9}"])
    space, names = Space(source), set(SEARCHERS)
    assert names >= {"GridSampler", "TPESampler", "RandomSampler", "GPSampler", "CmaEsSampler", "QMCSampler"}
    for name in names - {"GridSampler", "CmaEsSampler"}:  # one needs a package more
        study = optuna.create_study(sampler=SEARCHERS.build({"NAME": name}, space=space, seed=0))
        for _ in range(3):
            trial = study.ask(space.distributions)
            values = space.decoded(trial.params)
            assert values["OPTIMIZER.lr"] in (0.1, 0.2) and 0 <= values["OPTIMIZER.momentum"] <= 0.9
            study.tell(trial, values["OPTIMIZER.momentum"])
    assert set(PRUNERS) >= {"MedianPruner", "HyperbandPruner", "SuccessiveHalvingPruner", "NopPruner"}


@pytest.mark.parametrize("name", ["TPESampler", "RandomSampler"])
def test_workers_propose_other_values_and_the_same_for_the_same_trial(sweep, name):
    """Each worker has a sampler of its own, of the same seed."""
    source = sweep(["OPTIMIZER.lr: {NAME: float, low: 0.1, high: 0.2}"], f"  SAMPLER: {{NAME: {name}}}")
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="s", storage=storage)

    def worker():
        sampler, _ = build_tools(source.node.SAMPLER, None, Space(source), 0)
        return optuna.load_study(study_name="s", storage=storage, sampler=sampler)

    two = [worker(), worker()]
    shared = [two[number % 2].ask(Space(source).distributions).params["OPTIMIZER.lr"] for number in range(6)]
    assert len(set(shared)) == 6
    optuna.create_study(study_name="alone", storage=storage)
    sampler, _ = build_tools(source.node.SAMPLER, None, Space(source), 0)
    alone = optuna.load_study(study_name="alone", storage=storage, sampler=sampler)
    assert [alone.ask(Space(source).distributions).params["OPTIMIZER.lr"] for _ in range(6)] == shared


def test_the_seed_of_the_config_decides_what_is_proposed(sweep):
    source = sweep(["OPTIMIZER.lr: {NAME: float, low: 0.1, high: 0.2}"])
    found = []
    for seed in (0, 0, 1):
        study = optuna.create_study(sampler=SEARCHERS.build({"NAME": "TPESampler"}, space=Space(source), seed=seed))
        found.append(study.ask(Space(source).distributions).params)
    assert found[0] == found[1] != found[2]
