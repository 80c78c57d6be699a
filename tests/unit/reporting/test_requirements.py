"""REQUIRE: what an assignment demands, told before training where it can be, else at its end."""

import pytest
from conftest import TINY
from helpers import train_until
from torch import nn

from cvkit.config import load_config
from cvkit.errors import ConfigError
from cvkit.models import build_model
from cvkit.reporting.requirements import FACTS, check_requirements, enforce, norm_counts, summary
from cvkit.runs.experiment import Experiment
from cvkit.runs.folder import open_run
from cvkit.session import build_trainer, train

MET = """
REQUIRE:
  MODEL: {NAME: resnet18, norm: batch}
  DATA:
    BATCH_SIZE: 32
    TRAIN_TRANSFORMS: [{NAME: CutOut, size: 8, p: 1.0}, {NAME: RandomCrop, padding: 4}]
  OPTIMIZER: {NAME: SGD, momentum: 0.9}
  SCHEDULER: {NAME: ReduceLROnPlateau}
  VISUALIZERS: [{NAME: misclassified, count: 10}]
  TRAIN: {EPOCHS: 2}
  only_norm: batch
  without: [Bottleneck]
  parameters: 44622
  cam_map: 5
  scheduler_stepped: true
  test_accuracy: 0.05
SCHEDULER: {NAME: ReduceLROnPlateau}
VISUALIZERS: [{NAME: misclassified}, {NAME: cam_matrix, layers: [layer1, layer2]}]
"""
ALL = {"DATA.LIMIT": 0}


@pytest.fixture
def config(tmp_path):
    (tmp_path / "demanding.yaml").write_text(TINY + MET)

    def load(**overrides):
        return load_config("demanding.yaml", {key.replace("__", "."): value
                                              for key, value in overrides.items()})
    return load


def verdicts(demands):
    return {demand.text: demand.is_met for demand in demands}


def test_every_demand_is_known_before_training_or_at_its_end(config):
    known = verdicts(check_requirements(config()))
    assert list(known) == [
        "MODEL resnet18(norm=batch)", "DATA.BATCH_SIZE 32", "DATA.TRAIN_TRANSFORMS CutOut(size=8, p=1.0)",
        "DATA.TRAIN_TRANSFORMS RandomCrop(padding=4)", "OPTIMIZER SGD(momentum=0.9)",
        "SCHEDULER ReduceLROnPlateau", "VISUALIZERS misclassified(count=10)", "TRAIN.EPOCHS 2",
        "only batch norm", "no Bottleneck in the model", "44,622 parameters",
        "CAM on maps of at least 5 pixels a side", "scheduler stepped",
        "test accuracy of at least 5.00%"]
    assert list(known.values()) == [True] * 8 + [None] * 6  # defaults of constructors count
    built = check_requirements(config(), Experiment(config()))
    assert list(verdicts(built).values()) == [True] * 12 + [None] * 2
    assert built[11].found == "layer1 32×32, layer2 16×16"
    run = train(config(TRAIN__EPOCHS=2))
    finished = check_requirements(run.config, run)
    assert all(verdicts(finished).values())
    assert finished[12].found == "2 times, once per epoch, with the test loss"
    assert finished[13].found == f"{100 * run.predictions.accuracy:.2f} %"
    log = (run.folder / "train.log").read_text()
    assert [str(demand) for demand in built if demand.is_met] == [
        line.removeprefix("required   ") for line in log.splitlines() if ": met" in line][:12]
    assert f"required   {finished[12]}\nrequired   {finished[13]}\nrequired   all 14 requirements are met" in log


@pytest.mark.parametrize("key, value, expected", [
    ("TRAIN__EPOCHS", 3, "REQUIRE.TRAIN.EPOCHS: required: TRAIN.EPOCHS 2; found: 3 \\(Python\\)"),
    ("DATA__BATCH_SIZE", 16, "DATA.BATCH_SIZE 32; found: 16"),
    ("DATA__TRAIN_TRANSFORMS", [{"NAME": "RandomCrop", "size": 32, "padding": 4}],
     r"REQUIRE.DATA.TRAIN_TRANSFORMS.0.NAME: required: DATA.TRAIN_TRANSFORMS CutOut\(size=8, p=1.0\)"),
    ("OPTIMIZER__momentum", 0.8, r"SGD\(momentum=0.9\); found: SGD\(lr=0.05, momentum=0.8\)"),
    ("OPTIMIZER", {"NAME": "AdamW", "lr": 1e-3}, r"found: AdamW\(lr=0.001\)"),
    ("SCHEDULER", None, "SCHEDULER ReduceLROnPlateau; found: none"),
    ("VISUALIZERS", [{"NAME": "misclassified", "count": 5}], r"count=10\); found: misclassified\(count=5\)"),
    ("MODEL__norm", "layer", r"norm=batch\); found: resnet18\(width=4, norm=layer\)"),
    ("MODEL__width", 8, "44,622 parameters; found: "),
    ("VISUALIZERS", [{"NAME": "misclassified"}, {"NAME": "cam", "layer": "layer4"}],
     "CAM on maps of at least 5 pixels a side; found: layer layer4 has a map of 4×4"),
    ("REQUIRE__only_norm", "layer", "only layer norm; found: 20 batch"),
    ("REQUIRE__without", ["BasicBlock"], "no BasicBlock in the model; found: BasicBlock"),
    ("REQUIRE__cam_map", 20, "found: layer1 32×32, layer2 16×16"),
])
def test_a_config_that_breaks_a_demand_does_not_train(config, tmp_path, key, value, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        build_trainer(config(**ALL_KEYS, **{key: value}))
    assert "REQUIRE null" in str(caught.value)
    assert not (tmp_path / "runs").exists()
    demands = check_requirements(config(**{key: value}))  # a trial run may: it is only told
    enforce(demands, config(**{key: value}))
    build_trainer(config(**{key: value, "REQUIRE": None}))


ALL_KEYS = {"DATA__LIMIT": 0}


def test_what_is_broken_is_named_together(config):
    with pytest.raises(ConfigError) as caught:
        build_trainer(config(**ALL_KEYS, TRAIN__EPOCHS=3, DATA__BATCH_SIZE=16))
    assert str(caught.value).startswith("2 problems\ndemanding.yaml:")
    assert str(caught.value).count("REQUIRE null") == 1


def test_a_trial_run_says_what_it_breaks_and_a_demand_on_the_result_can_fail(config):
    run = train(config(TRAIN__EPOCHS=1, REQUIRE__test_accuracy=0.999))
    log = (run.folder / "train.log").read_text()
    assert "required   TRAIN.EPOCHS 2: NOT MET, 1 (Python)" in log
    assert ("required   2 of 14 requirements NOT MET: TRAIN.EPOCHS 2; "
            "test accuracy of at least 99.90%") in log
    assert check_requirements(open_run().config, open_run())[7].is_met is False  # from the folder


def test_what_any_optimizer_and_model_takes_can_be_required(config):
    needed = {"REQUIRE__OPTIMIZER": {"NAME": "SGD", "layer_decay": 0.5}, "REQUIRE__MODEL": {"NAME": "resnet18", "INIT_FROM": None}}
    with pytest.raises(ConfigError, match=r"required: OPTIMIZER SGD\(momentum=0.9, layer_decay=0.5\); found: SGD"):
        build_trainer(config(**ALL_KEYS, **needed))
    build_trainer(config(**needed, OPTIMIZER__layer_decay=0.5))


def test_a_rate_that_is_to_be_found_is_no_demand(config):
    with pytest.raises(ConfigError, match="REQUIRE.SCHEDULER.max_lr: max_lr find cannot be required"):
        build_trainer(config(REQUIRE__SCHEDULER={"NAME": "OneCycleLR", "max_lr": "find"}))


def test_a_resumed_run_has_stepped_its_scheduler_as_often_as_one_that_was_not(config):
    run = train_until(config(), 1)
    train(config(), resume=True)
    demands = check_requirements(config(), run)
    assert demands[12].found == "2 times, once per epoch, with the test loss"


@pytest.mark.parametrize("content, expected", [
    ("{TRAIN: {EPOCS: 2}}", "REQUIRE.TRAIN.EPOCS: nothing named EPOCS can be required\n.*Did you mean EPOCHS"),
    ("{only_norms: layer}", "nothing named only_norms can be required\n.*Did you mean only_norm"),
    ("{only_norm: laier}", "only_norm takes one of batch, layer, group, not 'laier'"),
    ("{parameters: many}", "parameters takes int, not 'many'"),
    ("{MODEL: {NAME: resnet81}}", "no model named 'resnet81'"),
    ("{MODEL: {norm: layer}}", "a required model is a node"),
    ("{MODEL: {NAME: resnet18, norn: layer}}", "model resnet18 has no argument 'norn'\n.*Did you mean norm"),
    ("{TRAIN: 3}", "TRAIN holds keys, not 3"), ("[1]", "REQUIRE holds keys, not"),
    ("{REQUIRE: {}}", "nothing named REQUIRE can be required"),
    ("{FINE_TUNE: {epochs_frozen: 1}}", "FINE_TUNE cannot be required, only what it stands for\n.*TRAIN.FREEZE"),
    ("{OPTIMIZER: {NAME: SGD, layer_dekay: 0.5}}", "optimizer SGD has no argument 'layer_dekay'\n.*Did you mean layer_decay"),
])
def test_a_demand_that_is_none_is_told_with_its_place(tmp_path, content, expected):
    (tmp_path / "wrong.yaml").write_text(f"{TINY}REQUIRE: {content}\n")
    with pytest.raises(ConfigError, match=r"wrong\.yaml:12 REQUIRE(.|\n)*" + expected.replace("REQUIRE.", "")):
        build_trainer(load_config("wrong.yaml"))


@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
def test_norms_are_counted_by_what_they_are(norm):
    model = build_model({"NAME": "resnet18", "norm": norm}, 10, (3, 32, 32))
    assert norm_counts(model) == {norm: 20}
    model.fc = nn.Sequential(nn.LayerNorm(512), nn.InstanceNorm2d(3), model.fc)
    assert norm_counts(model) == {**({"layer": 21} if norm == "layer" else {norm: 20, "layer": 1}),
                                  "InstanceNorm2d": 1}


def test_the_number_of_facts_does_not_shrink():
    assert set(FACTS) >= {"only_norm", "without", "parameters", "cam_map", "scheduler_stepped", "test_accuracy"}
    assert check_requirements(load_config_without()) == []
    assert summary([]) == "all 0 requirements are met"


def load_config_without():
    from pathlib import Path

    Path("plain.yaml").write_text(TINY)
    return load_config("plain.yaml")
