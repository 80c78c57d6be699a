import pytest

from cvkit.config import load_config
from cvkit.errors import ConfigError
from cvkit.runs.folder import Run
from cvkit.session import train

GROUPS = ({"match": "backbone", "lr_mult": 0.1},)


@pytest.mark.parametrize("node, freeze, unfreeze, groups", [
    ({}, ("backbone",), {"2": "all"}, GROUPS), ({"epochs_frozen": 3}, ("backbone",), {"4": "all"}, GROUPS),
    ({"epochs_frozen": 0}, (), None, GROUPS), ({"backbone_lr": 1}, ("backbone",), {"2": "all"}, None),
    ({"backbone_lr": 0.01, "epochs_frozen": 1}, ("backbone",), {"2": "all"}, ({"match": "backbone", "lr_mult": 0.01},)),
    ({"norms_frozen": True}, ("backbone",), {"2": ("all", "!norms")}, GROUPS),
    ({"norms_frozen": True, "epochs_frozen": 0}, ("norms",), None, GROUPS)])
def test_it_stands_for_other_keys(tiny, node, freeze, unfreeze, groups):
    config = load_config(tiny, {"FINE_TUNE": node})
    assert config.TRAIN.FREEZE == freeze and config.TRAIN.UNFREEZE == unfreeze and config.FINE_TUNE is None
    assert config.OPTIMIZER.get("groups") == groups


def test_own_groups_come_first_and_each_value_tells_where_it_is_from(tiny):
    tiny.write_text(tiny.read_text() + "FINE_TUNE: {backbone_lr: 0.2}\n")
    config = load_config(tiny, ["OPTIMIZER.groups", "[{match: '*bias', weight_decay: 0}]"])
    assert [group["match"] for group in config.OPTIMIZER.groups] == ["*bias", "backbone"]
    place = f"{tiny}:{len(tiny.read_text().splitlines())} (FINE_TUNE)"
    assert config.TRAIN.origin("FREEZE") == config.OPTIMIZER.groups[1].origin("lr_mult") == place
    assert [line for line in config.dump(origins=True).splitlines()
            if line.startswith("  FREEZE: [backbone]") and line.endswith(f" # {place}")]


def test_the_run_s_own_config_has_the_keys_and_reads_back_to_itself(quick):
    run = train(load_config(quick, {"FINE_TUNE": {}, "TRAIN.EPOCHS": 2}))
    assert "FINE_TUNE: null\n" in (run.folder / "config.yaml").read_text()
    assert load_config(run.folder / "config.yaml") == run.config == Run(run.folder).config
    assert [epoch["lr_mult"] for epoch in run.metrics] == [
        {"backbone": multiplier, "the rest": 1.0} for multiplier in (0.0, 0.1)]


@pytest.mark.parametrize("key, value", [("FREEZE", []), ("UNFREEZE", None)])
def test_nothing_counts_where_it_is_set_later_and_not_where_it_is_printed(tiny, key, value):
    text = tiny.read_text()
    tiny.write_text(text + "FINE_TUNE: {}\n")
    with pytest.raises(ConfigError, match=f"FINE_TUNE sets TRAIN.{key} itself"):
        load_config(tiny, {f"TRAIN.{key}": value})
    tiny.write_text(load_config(tiny, {"FINE_TUNE": None}).dump())  # with FREEZE: []
    assert load_config(tiny, {"FINE_TUNE": {}}).TRAIN.FREEZE == ("backbone",)


@pytest.mark.parametrize("settings, message", [
    ({"FINE_TUNE": {"epoch_frozen": 1}}, "FINE_TUNE has no 'epoch_frozen'\n  Did you mean epochs_frozen?"),
    ({"FINE_TUNE": {"epochs_frozen": 1.5}}, "epochs_frozen is a whole number, 0 or more, not 1.5"),
    ({"FINE_TUNE": {"epochs_frozen": True}}, "epochs_frozen is a whole number, 0 or more, not True"),
    ({"FINE_TUNE": {"backbone_lr": -1}}, "backbone_lr is a number, 0 or more, not -1"),
    ({"FINE_TUNE": {"norms_frozen": 1}}, "norms_frozen is true or false, not 1"),
    ({"FINE_TUNE": True}, "FINE_TUNE holds keys, not True"),
    ({"FINE_TUNE": {}, "TRAIN.FREEZE": ["fc"]}, "FINE_TUNE sets TRAIN.FREEZE itself\n  Leave one of them out, or set FINE_TUNE null."),
    ({"FINE_TUNE": {}, "TRAIN.UNFREEZE": {"3": "all"}}, "FINE_TUNE sets TRAIN.UNFREEZE itself")])
def test_mistakes_are_told(tiny, settings, message):
    with pytest.raises(ConfigError) as caught:
        load_config(tiny, settings)
    assert message in str(caught.value)
