import copy
import math
import os
import pickle
import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import TINY
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cvkit.config import SCHEMA, Config, check_components, components, load_config, read_config
from cvkit.config.load import RESOLVED
from cvkit.config.merge import merge
from cvkit.config.parse import parse_value
from cvkit.config.schema import Component, Key
from cvkit.errors import ConfigError

HEAD = "MODEL: {NAME: resnet18}\nDATA: {DATASET: {NAME: Digits}}\nOPTIMIZER: {NAME: SGD, lr: 0.1}\n"


@pytest.fixture
def write(tmp_path):
    """Write a config file that says what every config must, and more; return its path."""
    def write(text, name="a.yaml", head=HEAD):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(head + text)
        return path
    return write


def message(*args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        load_config(*args, **kwargs)
    return str(caught.value)


# -- the schema ------------------------------------------------------------------------


def test_every_key_is_documented():
    def specs(schema):
        for spec in schema.values():
            yield from specs(spec) if isinstance(spec, dict) else [spec]

    found = list(specs(SCHEMA))
    assert len(found) >= 27
    assert all(isinstance(spec, (Key, Component)) and spec.doc for spec in found)


def test_defaults_are_filled_in(write):
    cfg = load_config(write(""))
    assert cfg.TRAIN.EPOCHS == 20 and cfg.TRAIN.PRECISION == "auto"
    assert cfg.LOSS == {"NAME": "CrossEntropyLoss"} and cfg.SCHEDULER is None
    assert cfg.DATA.TRAIN_TRANSFORMS == () and cfg.name == "a"


def test_components_are_found_in_the_config(write):
    cfg = load_config(write("METRICS: [{NAME: TopKAccuracy}]\n"))
    assert [(kind, node.NAME) for kind, node in components(cfg)] == [
        ("model", "resnet18"), ("dataset", "Digits"), ("loss", "CrossEntropyLoss"),
        ("optimizer", "SGD"), ("metric", "TopKAccuracy")]


def test_missing_components_are_asked_for_all_at_once(write):
    text = message(write("SEED: 1\n", head=""))
    for key, kind in (("MODEL", "model"), ("DATA.DATASET", "dataset"), ("OPTIMIZER", "optimizer")):
        assert f"{key} is missing" in text and f"tools/registry.py {kind}" in text


# -- what yacs does wrong ------------------------------------------------------------------


@pytest.mark.parametrize("text, value", [
    ("1e-3", 1e-3), ("1E5", 1e5), ("-1.5e+2", -150.0), ("1", 1), ("-3", -3), ("0.1", 0.1),
    ("1.", 1.0), (".5", 0.5), ("true", True), ("False", False), ("null", None), ("~", None),
    ("'123'", "123"), ('"1e-3"', "1e-3"), ("'true'", "true"), ("word", "word"), ("yes", "yes"),
    ("on", "on"), ("1:30", "1:30"), ("2024-01-31", "2024-01-31"), ("010", 10), (".inf", math.inf),
    ("[1e-3, 2, '3']", [1e-3, 2, "3"]), ("{a: 1e-3}", {"a": 1e-3}), ("a b", "a b"),
    ("/data/x", "/data/x"), ("1_000", "1_000")])
def test_a_value_means_the_same_in_a_file_a_list_and_on_the_command_line(write, text, value):
    path = write(f"LOSS: {{NAME: X, a: {text}, b: [{text}]}}\n")
    from_file = load_config(path)
    from_line = load_config(write("LOSS: {NAME: X}\n"), ["LOSS.a", text, "LOSS.b", f"[{text}]"])
    from_python = load_config(write("LOSS: {NAME: X}\n"), {"LOSS.a": value, "LOSS.b": [value]})
    for cfg in (from_file, from_line, from_python):
        found = cfg.to_dict()["LOSS"]
        assert found["a"] == value and type(found["a"]) is type(value)
        assert found["b"] == [value] and type(found["b"][0]) is type(value)


def test_an_int_over_a_float_default_is_a_float(write):
    cfg = load_config(write("TRAIN: {EMA_DECAY: 0}\n"), ["TRAIN.WARMUP_EPOCHS", "2"])
    assert (cfg.TRAIN.EMA_DECAY, cfg.TRAIN.WARMUP_EPOCHS) == (0.0, 2.0)
    assert type(cfg.TRAIN.EMA_DECAY) is type(cfg.TRAIN.WARMUP_EPOCHS) is float


@pytest.mark.parametrize("value", [
    "1e-3", "123", "true", "null", "", " spaced ", "a: b", "# no comment", "it's", '"quoted"',
    "new\nline", "ünïcode ✓", "\x85 \u2028 \ufeff", "-", "[x]", "{y}", "0x10", "1:30", "*alias", "&anchor", "!tag", "%", "@",
    "~", "=", ".5", "yes", "2024-01-31", "\ttab", "trailing:", 1e-3, 1e22, 1e-300, 0.1 + 0.2, math.inf,
    -math.inf, 10**20, -5, 0, 1.0, True, False, None, [1, "1", [2.5, None]], {"a": {"b": ["1e-3"]}},
    [], {}, [{"NAME": "x", "y": [1]}, {"NAME": "z"}], [[], [[]]]])
def test_dump_reads_back_to_the_same(write, value):
    cfg = load_config(write("LOSS: {NAME: X}\n"), {"LOSS.value": value, "OUTPUT_DIR": "1e-3"})
    again = read_config(cfg.dump(), "again")
    assert again == cfg and again.to_dict() == cfg.to_dict()
    assert repr(again.to_dict()) == repr(cfg.to_dict())  # 1 and 1.0 and True are equal, not alike
    assert again.dump() == cfg.dump()
    assert read_config(cfg.dump(origins=True), "again") == cfg  # comments do no harm


def test_arguments_whose_names_need_quotes_read_back(write):
    cfg = load_config(write("LOSS: {NAME: X, 'a: b': 1, '123': 2, 'null': 3}\n"))
    assert read_config(cfg.dump(), "again") == cfg and cfg.LOSS["123"] == 2


def test_scalars_of_numpy_are_plain_numbers_and_other_objects_are_refused(write):
    import numpy as np

    cfg = load_config(write(""), {"OPTIMIZER.lr": np.float64(0.5), "TRAIN.EPOCHS": np.int64(3),
                                  "MODEL.strides": range(1, 4)})
    assert (cfg.OPTIMIZER.lr, cfg.TRAIN.EPOCHS, cfg.MODEL.strides) == (0.5, 3, (1, 2, 3))
    assert type(cfg.OPTIMIZER.lr) is float and read_config(cfg.dump(), "again") == cfg
    assert "a config holds numbers, strings, lists and nodes" in message(
        write(""), {"MODEL.norm": object()})


def test_nodes_put_in_by_hand_belong_to_the_config(write):
    frozen = load_config(write(""))
    cfg = frozen.clone()
    cfg.defrost()
    cfg.MODEL = frozen.MODEL
    cfg.MODEL.width = 8
    cfg.WRITERS.append({"NAME": "tensorboard"})
    cfg.freeze()
    assert cfg.MODEL.width == 8 and cfg.WRITERS[0].NAME == "tensorboard"
    assert "width" not in frozen.MODEL


def test_nan_survives_the_dump(write):
    cfg = load_config(write("LOSS: {NAME: X, a: .nan}\n"))
    assert math.isnan(read_config(cfg.dump(), "again").LOSS.a)


def test_a_duplicate_key_is_refused_with_both_lines(write):
    text = message(write("TRAIN:\n  EPOCHS: 1\n  CLIP_GRAD_NORM: 1\n  EPOCHS: 2\n"))
    assert re.search(r"a\.yaml:7 TRAIN\.EPOCHS: EPOCHS is set twice; first at .*a\.yaml:5",
                     text)


@pytest.mark.parametrize("key, meant", [
    ("TRAIN.EPOCS", "EPOCHS"), ("TRIAN.EPOCHS", "TRAIN"), ("train.EPOCHS", "TRAIN"),
    ("BATCH_SIZE", "DATA.BATCH_SIZE"), ("epochs", "TRAIN.EPOCHS"), ("DATA.LIMITS", "LIMIT")])
def test_an_unknown_key_is_the_same_error_from_file_and_command_line(write, key, meant):
    from_line = message(write(""), [key, "1"])
    tree = 1
    for part in reversed(key.split(".")):
        tree = {part: tree}
    head = HEAD if not key.startswith("DATA.") else HEAD.replace(
        "DATA: {DATASET: {NAME: Digits}}\n", "")
    text = yaml.safe_dump(tree)
    if key.startswith("DATA."):
        text = "DATA: {DATASET: {NAME: Digits}, LIMITS: 1}\n"
    from_file = message(write(text, head=head))
    for found in (from_line, from_file):
        assert f"Did you mean {meant}?" in found
    assert "command line" in from_line and re.search(r"a\.yaml:\d", from_file)


def test_a_mistyped_attribute_is_refused_before_freezing(write):
    cfg = load_config(write("")).clone()
    cfg.defrost()
    with pytest.raises(ConfigError, match="Did you mean EPOCHS"):
        cfg.TRAIN.EPOCH = 3
    with pytest.raises(ConfigError, match="expected a whole number, not the string '3'"):
        cfg.TRAIN.EPOCHS = "3"
    with pytest.raises(AttributeError, match="Did you mean EPOCHS"):
        cfg.TRAIN.EPOCH  # noqa: B018
    cfg.TRAIN.EPOCHS = 3
    cfg.MODEL.width = 8
    cfg.MODEL = {"NAME": "resnet34"}
    assert (cfg.TRAIN.EPOCHS, cfg.MODEL) == (3, {"NAME": "resnet34"})
    assert cfg.TRAIN.where("EPOCHS") == "Python TRAIN.EPOCHS"


CHANGES = [
    lambda cfg: setattr(cfg, "SEED", 1), lambda cfg: cfg.__setitem__("SEED", 1),
    lambda cfg: setattr(cfg.TRAIN, "EPOCHS", 1), lambda cfg: cfg.MODEL.update(width=3),
    lambda cfg: cfg.MODEL.setdefault("width", 3), lambda cfg: cfg.MODEL.pop("NAME"),
    lambda cfg: cfg.MODEL.popitem(), lambda cfg: cfg.MODEL.clear(),
    lambda cfg: cfg.MODEL.__delitem__("NAME"), lambda cfg: delattr(cfg.MODEL, "NAME"),
    lambda cfg: cfg.MODEL.__ior__({"width": 3}),
    lambda cfg: cfg.DATA.TRAIN_TRANSFORMS.append(1),
    lambda cfg: cfg.DATA.TRAIN_TRANSFORMS[0].__setitem__("size", 1),
    lambda cfg: setattr(cfg.DATA.TRAIN_TRANSFORMS[0], "size", 1),
    lambda cfg: cfg.DATA.TRAIN_TRANSFORMS[0].size.append(1),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_frozen_config_cannot_be_changed_in_any_way(write, change):
    path = write("DATA: {DATASET: {NAME: Digits}, "
                 "TRAIN_TRANSFORMS: [{NAME: RandomCrop, size: [32, 32]}]}\n",
                 head=HEAD.replace("DATA: {DATASET: {NAME: Digits}}\n", ""))
    cfg = load_config(path)
    before = cfg.dump()
    with pytest.raises(AttributeError):
        change(cfg)
    assert cfg.dump() == before
    thawed = cfg.clone()
    thawed.defrost()
    change(thawed)  # what is refused is possible in a copy
    assert thawed.dump() != before and cfg.dump() == before


def test_nodes_change_like_dicts_and_keys_of_the_schema_stay(write):
    cfg = load_config(write("MODEL: {NAME: resnet18, width: 8}\n", head=HEAD[24:]))
    assert cfg.MODEL.pop("absent", 3) == 3 and cfg.MODEL.setdefault("width", 9) == 8
    cfg = cfg.clone()
    cfg.defrost()
    assert cfg.MODEL.pop("width") == 8 and "width" not in cfg.MODEL
    with pytest.raises(KeyError):
        cfg.MODEL.pop("width")
    for remove in (lambda: cfg.pop("SEED"), lambda: cfg.TRAIN.clear(), cfg.DATA.popitem):
        with pytest.raises(AttributeError, match="belongs to every config"):
            remove()
    cfg.TRAIN = {"EPOCHS": 3}
    assert (cfg.TRAIN.EPOCHS, cfg.TRAIN.ACCUMULATE) == (3, 1)
    with pytest.raises(ConfigError, match="Python TRAIN.EPOCS: unknown key EPOCS"):
        cfg.TRAIN = {"EPOCS": 3}
    with pytest.raises(ConfigError, match="Python: DATA.DATASET is missing"):
        cfg.DATA = {}


@pytest.mark.parametrize("copy_of", [Config.clone, copy.deepcopy, copy.copy, Config.copy,
                                     lambda cfg: pickle.loads(pickle.dumps(cfg))])
def test_copies_are_equal_independent_and_know_their_origins(write, copy_of):
    cfg = load_config(write("TRAIN: {EPOCHS: 3}\n"))
    twin = copy_of(cfg)
    assert twin == cfg and twin.is_frozen() and twin.name == "a"
    assert twin.TRAIN.where("EPOCHS") == cfg.TRAIN.where("EPOCHS")
    twin.defrost()
    twin.TRAIN.EPOCHS = 4
    assert cfg.TRAIN.EPOCHS == 3 and cfg.is_frozen()


def test_open_nodes_take_new_keys_from_a_list_nested_ones_too(write):
    cfg = load_config(write(""), ["MODEL.deep.er", "1", "MODEL.width", "8"])
    assert cfg.MODEL == {"NAME": "resnet18", "deep": {"er": 1}, "width": 8}


@pytest.mark.parametrize("name", ["merge_from_file", "merge_from_list", "merge_from_other_cfg", "set_new_allowed", "register_renamed_key", "register_deprecated_key"])
def test_methods_of_yacs_that_the_schema_makes_meaningless_are_refused(write, name):
    cfg = load_config(write("")).clone()
    cfg.defrost()
    with pytest.raises(AttributeError, match="load_config"):
        getattr(cfg, name)(["SEED", "1"])


# -- merging -------------------------------------------------------------------------------


def test_a_changed_name_replaces_the_arguments_everywhere(write):
    write("OPTIMIZER: {NAME: SGD, lr: 0.1, momentum: 0.9}\n", "base.yaml", head="")
    head = HEAD.replace("OPTIMIZER: {NAME: SGD, lr: 0.1}\n", "_BASE_: base.yaml\n")
    assert load_config(write("OPTIMIZER: {nesterov: true}\n", head=head)).OPTIMIZER == {
        "NAME": "SGD", "lr": 0.1, "momentum": 0.9, "nesterov": True}
    assert load_config(write("OPTIMIZER: {NAME: SGD, lr: 0.2}\n", head=head)).OPTIMIZER == {
        "NAME": "SGD", "lr": 0.2, "momentum": 0.9}
    assert load_config(write("OPTIMIZER: {NAME: AdamW}\n", head=head)).OPTIMIZER == {"NAME": "AdamW"}
    for order in ([0, 1, 2, 3], [2, 3, 0, 1]):
        pairs = ["OPTIMIZER.NAME", "AdamW", "OPTIMIZER.lr", "1e-3"]
        cfg = load_config(write("", head=head), [pairs[place] for place in order])
        assert cfg.OPTIMIZER == {"NAME": "AdamW", "lr": 1e-3}


def test_an_adamw_is_asked_for_its_lr(write):
    cfg = load_config(write(""), ["OPTIMIZER.NAME", "AdamW"])
    with pytest.raises(ConfigError, match="command line OPTIMIZER.NAME: optimizer AdamW needs lr"):
        check_components(cfg)


@pytest.mark.parametrize("how", ["file", "command line", "whole node", "two changes", "Python"])
def test_a_changed_name_says_which_arguments_it_dropped(write, how):
    base = write("")
    if how in ("file", "two changes"):
        path = write("OPTIMIZER: {NAME: AdamW}\n", "top.yaml", head="_BASE_: a.yaml\n")
        cfg = load_config(path, ["OPTIMIZER.NAME", "NAdam"] if how == "two changes" else [])
    elif how == "Python":
        cfg = load_config(base, {"OPTIMIZER.NAME": "AdamW"})
    else:
        cfg = load_config(base, ["OPTIMIZER", "{NAME: AdamW}"] if how == "whole node"
                          else ["OPTIMIZER.NAME", "AdamW"])
    for copy_of in (cfg, pickle.loads(pickle.dumps(cfg))):
        with pytest.raises(ConfigError) as caught:
            check_components(copy_of)
        assert caught.value.hint == (f"Changing NAME dropped lr 0.1 of {base}:3. "
                                     "Set OPTIMIZER.lr.")
    assert f", dropped lr 0.1 of {base}:3\n" in cfg.dump(origins=True)
    assert "dropped" not in cfg.dump()


def test_any_argument_of_any_node_that_a_changed_name_dropped_is_told(write):
    path = write("SCHEDULER: {NAME: StepLR, step_size: 3, gamma: 0.1}\n"
                 "METRICS: [{NAME: TopKAccuracy, k: 3}]\nDATA:\n  DATASET: {NAME: CIFAR10, root: x}\n"
                 "  TRAIN_TRANSFORMS: [{NAME: RandomCrop, size: 32}]\n",
                 head=HEAD.replace("DATA: {DATASET: {NAME: Digits}}\n", ""))
    cfg = load_config(path, ["DATA.TRAIN_TRANSFORMS.0.NAME", "CutOut", "DATA.DATASET.NAME",
                             "ImageFolder", "SCHEDULER.NAME", "ExponentialLR"])
    with pytest.raises(ConfigError) as caught:
        check_components(cfg)
    for dropped in (f"size 32 of {path}:7", f"root x of {path}:6", f"gamma 0.1 of {path}:3"):
        assert f"Changing NAME dropped {dropped}. Set " in str(caught.value)
    assert "step_size" not in str(caught.value)  # which ExponentialLR does not need
    cfg = load_config(path, ["SCHEDULER", "{NAME: ExponentialLR, gamma: 0.9}"])
    line, = (line for line in cfg.dump(origins=True).splitlines() if "ExponentialLR" in line)
    assert line.endswith(f"# command line, dropped step_size 3 of {path}:3")


@pytest.mark.parametrize("node", ["{size: 8}", "{NAME: CutOut, sise: 8, size: 8}",
                                  "{NAME: OneOf, transforms: [{p: 1}]}"])
def test_a_transform_in_a_list_is_named_by_its_whole_key(write, node):
    text = f"TRAIN: {{EPOCHS: 1}}\n_BASE_: b.yaml\n{HEAD}"
    write(f"DATA:\n  TRAIN_TRANSFORMS:\n    - {node}\n", "b.yaml", head="")
    path = write(text, head="")
    key = "DATA.TRAIN_TRANSFORMS.0" + (".transforms.0" if "OneOf" in node else
                                       ".sise" if "sise" in node else "")
    for source, make in (
            (f"{path.parent / 'b.yaml'}:3", lambda: load_config(path)),
            ("command line", lambda: load_config(path, ["DATA.TRAIN_TRANSFORMS", f"[{node}]"])),
            ("command line", lambda: load_config(path, ["DATA", f"{{TRAIN_TRANSFORMS: [{node}]}}"])),
            ("Python", lambda: assigned(load_config(write("")), [parse_value(node).to_dict()])),
            ("Python", lambda: load_config(
                path, {"DATA.TRAIN_TRANSFORMS": [parse_value(node).to_dict()]}))):
        with pytest.raises(ConfigError) as caught:
            check_components(make())
        assert str(caught.value).startswith(f"{source} {key}: ")


def assigned(cfg, transforms):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATA.TRAIN_TRANSFORMS = transforms
    return cfg


def test_lists_are_replaced_whole_and_addressed_by_number(write):
    write("DATA: {TRAIN_TRANSFORMS: [{NAME: RandomCrop, size: 32, padding: 4}, "
          "{NAME: CutOut, size: 16}]}\n", "base.yaml", head="")
    path = write("_BASE_: base.yaml\n")
    cfg = load_config(path, ["DATA.TRAIN_TRANSFORMS.1.size", "8"])
    assert cfg.DATA.TRAIN_TRANSFORMS == ({"NAME": "RandomCrop", "size": 32, "padding": 4},
                                         {"NAME": "CutOut", "size": 8})
    assert cfg.DATA.TRAIN_TRANSFORMS[1].where("size") == "command line DATA.TRAIN_TRANSFORMS.1.size"
    assert cfg.DATA.TRAIN_TRANSFORMS[1].where("NAME").endswith(
        "base.yaml:1 DATA.TRAIN_TRANSFORMS.1.NAME")
    cfg = load_config(path, ["DATA.TRAIN_TRANSFORMS.0.NAME", "Rotate",
                             "DATA.TRAIN_TRANSFORMS.0.limit", "5"])
    assert cfg.DATA.TRAIN_TRANSFORMS[0] == {"NAME": "Rotate", "limit": 5}
    cfg = load_config(path, ["DATA.TRAIN_TRANSFORMS", "[{NAME: CutOut, size: 4}]"])
    assert cfg.DATA.TRAIN_TRANSFORMS == ({"NAME": "CutOut", "size": 4},)
    pairs = [("DATA.TRAIN_TRANSFORMS", "[{NAME: CutOut, size: 4}]"),
             ("DATA.TRAIN_TRANSFORMS.0.p", "0.9")]
    for order in (pairs, pairs[::-1]):  # the list first, then what is set within it
        cfg = load_config(path, [word for pair in order for word in pair])
        assert cfg.DATA.TRAIN_TRANSFORMS == ({"NAME": "CutOut", "size": 4, "p": 0.9},)
    text = message(path, ["DATA.TRAIN_TRANSFORMS.2.size", "8"])
    assert "DATA.TRAIN_TRANSFORMS has 2 items; they count from 0 to 1" in text


def test_bases_chain_and_later_ones_win(write):
    write("SEED: 1\nTRAIN: {EPOCHS: 1}\n", "root.yaml", head="")
    write("_BASE_: ../root.yaml\nTRAIN: {EPOCHS: 2}\n", "sub/one.yaml", head="")
    write("OUTPUT_DIR: two\nTRAIN: {ACCUMULATE: 2}\n", "two.yaml", head="")
    cfg = load_config(write("_BASE_: [sub/one.yaml, two.yaml]\nDEVICE: cpu\n"))
    assert (cfg.SEED, cfg.TRAIN.EPOCHS, cfg.TRAIN.ACCUMULATE, cfg.OUTPUT_DIR, cfg.DEVICE) == (
        1, 2, 2, "two", "cpu")
    assert "_BASE_" not in cfg


def test_a_circle_of_bases_is_shown(write):
    write("_BASE_: b.yaml\n", "c.yaml", head="")
    write("_BASE_: c.yaml\n", "b.yaml", head="")
    text = message(write("_BASE_: b.yaml\n"))
    assert "goes in a circle" in text
    assert re.search(r"a\.yaml -> \S*b\.yaml -> \S*c\.yaml -> \S*b\.yaml", text)


def test_a_missing_base_is_placed(write):
    assert re.match(r"\S*a\.yaml:4 _BASE_: no config file \S*gone\.yaml", message(
        write("_BASE_: gone.yaml\n")))


# -- provenance ------------------------------------------------------------------------------


def test_every_value_knows_where_it_came_from(write):
    write("SEED: 1\n", "base.yaml", head="")
    path = write("_BASE_: base.yaml\nTRAIN:\n  EPOCHS: 3\n")
    cfg = load_config(path, ["OPTIMIZER.lr", "0.5"])
    lines = cfg.dump(origins=True).splitlines()
    origins = {line.split(":")[0].strip(): line.split("  # ")[-1] for line in lines if " # " in line}
    assert origins["SEED"] == f"{path.parent / 'base.yaml'}:1"
    assert origins["EPOCHS"] == f"{path}:6"
    assert origins["lr"] == "command line" and origins["BATCH_SIZE"] == "default"
    assert all("  # " in line for line in lines if not line.endswith(":"))


def test_imports_are_relative_to_the_config_that_lists_them(write):
    write("IMPORTS: [mine.py, package.module]\n", "sub/base.yaml", head="")
    path = write("_BASE_: sub/base.yaml\n")
    assert load_config(path).IMPORTS == (str(path.parent / "sub" / "mine.py"), "package.module")


def test_a_tilde_is_the_home_folder_in_every_path(write, home, tmp_path):
    write("OUTPUT_DIR: ~/outs\n", "home/base.yaml")
    write("_BASE_: ~/base.yaml\nIMPORTS: [~/mine.py]\n", "home/a.yaml", head="")
    config = load_config("~/a.yaml")
    assert config.name == "a" and config.OUTPUT_DIR == str(home / "outs")
    assert config.IMPORTS == (str(home / "mine.py"),)
    config = load_config("~/a.yaml", ["OUTPUT_DIR", "~/others", "IMPORTS", "[~/yours.py]"])
    assert config.OUTPUT_DIR == str(home / "others") and config.IMPORTS == (str(home / "yours.py"),)
    assert load_config("~/a.yaml", ["IMPORTS.0", "yours.py"]).IMPORTS == (os.path.abspath("yours.py"),)
    config = config.clone()
    config.defrost()
    config.OUTPUT_DIR = Path("~")
    assert config.OUTPUT_DIR == str(home)
    assert read_config(config.dump(), "x").OUTPUT_DIR == str(home)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_config_is_read_as_windows_writes_it(tmp_path, encoding):
    (tmp_path / "a.yaml").write_text(f"# 32×32\r\n{TINY}", encoding=encoding, newline="")
    config = load_config(tmp_path / "a.yaml")
    assert config.MODEL.width == 4 and config.MODEL.where("width").endswith("a.yaml:3 MODEL.width")


def test_a_base_that_is_not_there_is_told_where_no_path_leads_to_the_others(write, tmp_path, monkeypatch):
    """Those of another drive, on Windows."""
    def relpath(path, start):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    path = write("_BASE_: gone.yaml\n", head="")
    (tmp_path / "gome.yaml").write_text(TINY)
    monkeypatch.setattr(os.path, "relpath", relpath)
    with pytest.raises(ConfigError, match=r"no config file .*gone\.yaml\n  Did you mean .*gome\.yaml"):
        load_config(path)


def test_the_name_of_a_resolved_config_is_that_of_its_run(write):
    path = write("", "runs/my_net/2026-01-31_12-00-00/config.yaml")
    assert load_config(path).name == "config"  # a user's own file may be called that
    (path.parent / "checkpoints").mkdir()
    assert load_config(path).name == "my_net"
    # What else lies there is a user's own.
    assert load_config(write("", "runs/my_net/2026-01-31_12-00-00/mine.yaml")).name == "mine"


def test_the_name_of_a_group_s_config_is_in_it_and_else_the_file_s(write):
    path = write("", "runs/my_net/2026-01-31_12-00-00_seeds/group.yaml")
    assert load_config(path).name == "group"  # of group normalisation, for example
    path.write_text(f"# my_net, {RESOLVED}\n{load_config(path).dump()}")
    assert load_config(path).name == "my_net"


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text, expected", [
    ("TRAIN: {EPOCHS: many}\n", "a.yaml:4 TRAIN.EPOCHS: expected a whole number, not the string"),
    ("TRAIN: {EPOCHS: 1.5}\n", "expected a whole number, not 1.5"),
    ("TRAIN: {EPOCHS: 0}\n", "0 is out of range; 1 or more is possible"),
    ("TRAIN: {EMA_DECAY: 1.5}\n", "1.5 is out of range; 0 to 0.99999 is possible"),
    ("TRAIN: {EMA_DECAY: .nan}\n", "out of range"),
    ("TRAIN: {CHANNELS_LAST: 1}\n", "expected true or false, not 1"),
    ("TRAIN: {PRECISION: bf61}\n", "Did you mean bf16?"),
    ("OUTPUT_DIR: 2024\n", "expected a string, not 2024"),
    ("IMPORTS: my.py\n", "expected a list of strings, not the string 'my.py'"),
    ("IMPORTS: my.py\n", "Write [my.py]."),
    ("TRAIN: 3\n", "TRAIN holds keys, not 3"),
    ("LOSS: MSELoss\n", "Write {NAME: MSELoss}"),
    ("LOSS: null\n", "expected a node {NAME: …}, not null"),
    ("LOSS: {Weight: [1]}\n", "this loss has no NAME\n  NAME: CrossEntropyLoss is the default."),
    ("LOSS: {name: MSELoss}\n", "Write NAME, not name."),
    ("LOSS: {type: MSELoss}\n", "Write NAME, not type."),
    ("LOSS: {NAME:MSELoss}\n", "Write NAME: MSELoss, with a space after the colon."),
    ("LOSS: {NAME: 3}\n", "the NAME of a loss is a string, not 3"),
    ("METRICS: [{Accuracy: {}}]\n", "Write {NAME: Accuracy, …}, with its arguments"),
    ("METRICS: {NAME: TopKAccuracy, k: 3}\n", "Write [{NAME: TopKAccuracy, k: 3}]."),
    ("METRICS: Accuracy\n", "Write [{NAME: Accuracy}]."),
    ("METRICS:\n", "Write []."),
    ("SCHEDULER: None\n", "Write null."),
    ("TRAIN: {EPOCHS:3}\n", "Write EPOCHS: 3, with a space after the colon."),
    ("TRAIN.EPOCHS: 3\n", "Write TRAIN: {EPOCHS: …}; keys with dots are for the command line."),
    ("DATA.DATASET.root: x\n", "Write DATA: {DATASET: {root: …}}; keys with dots"),
    ("TRAIN: {TRAIN: {EPOCHS: 3}}\n", "TRAIN stands at the top of a config, not in TRAIN."),
    ("TRAIN: {_BASE_: b.yaml}\n", "_BASE_ stands at the top of a file"),
    ("BASE: b.yaml\n", "a.yaml:4 BASE: unknown key BASE\n  _BASE_ stands at the top of a file"),
    ("TRAIN: {EMA_DECAY: 90%}\n", "Write 0.9."),
    ("TRAIN: {EMA_DECAY: '0,9'}\n", "Write 0.9."),
    ("TRAIN: {EPOCHS: '3'}\n", "Write 3 without quotes."),
    ("TRAIN: {EPOCHS: 3.0}\n", "Write 3."),
    ("SEED: '1,000'\n", "Write 1000."),
    ("TRAIN: {COMPILE: yes}\n", "Write true."),
    ("OUTPUT_DIR runs\nSEED: 3\n", "a.yaml:4: not valid YAML"),
    ("OUTPUT_DIR runs\nSEED: 3\n", "Write KEY: value, with a colon and a space."),
    ("TRAIN: {EPOCHS: 3\nSEED: 1\n", "a.yaml:4: not valid YAML"),
    ("TRAIN: {EPOCHS: 3\nSEED: 1\n", "A bracket is not closed, or a comma is missing."),
    ("OUTPUT_DIR: 'runs\nSEED: 1\n", "a.yaml:4: not valid YAML"),
    ("OUTPUT_DIR: \"C:\\Users\"\n", "single quotes keep it"),
    ("OUTPUT_DIR: @runs\n", "needs quotes"),
    ("TRAIN:\n  EPOCHS: 3\n   SEED: 3\n", "indented like its neighbours"),
    ("TRAIN:\n   EPOCHS: 3\n  SEED: 3\n", "is indented alike"),
    ("TRAIN:\n\u00a0 EPOCHS: 3\n  EMA_DECAY: 0.9\n", "Line 5 has a blank that YAML takes for a letter, U+00A0"),
    ("METRICS: {NAME: Accuracy}\n", "expected a list of metrics"),
    ("METRICS: [Accuracy]\n", "a.yaml:4 METRICS.0: expected a node {NAME: …}"),
    ("TRAIN:\n\tEPOCHS: 3\n", "YAML does not allow tabs"),
    ("TRAIN: {EPOCHS: 3\n", "not valid YAML"),
    ("OUTPUT_DIR: \x07\n", "a.yaml:4: not valid YAML: the character U+0007 is not allowed"),
    ("TRAIN: {EPOCHS: null}\n", "expected a whole number, not null"),
    ("? [a]\n: b\n", "keys are strings"),
    ("1.5: b\n", 'Write "1.5" if the string is meant'), ("1: b\n", "unknown key 1"),
    ("LOSS: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ("LOSS: {NAME: X, a: !new tag}\n", "not valid YAML"),
    ("LOSS: &x {NAME: X, a: *x}\n", "an alias that contains itself"),
    ("LOSS: *gone\n", "undefined alias"),
    ("<<: {SEED: 1}\n", "merge keys are not read"),
    ("_BASE_: 3\n", "_BASE_ is a path or a list of paths"),
    ("TRAIN: {WARMUP_EPOCHS: -1}\n", "-1 is out of range"),
])
def test_bad_files_are_refused_in_one_message(write, text, expected):
    found = message(write(text))
    assert expected in found and "a.yaml" in found


@pytest.mark.parametrize("content", ["", "# only a comment\n"])
def test_an_empty_file_lacks_components(write, content):
    assert "a.yaml: MODEL is missing" in message(write(content, head=""))


def test_a_list_is_no_config(write):
    assert "a.yaml:1: a config is a mapping" in message(write("- a\n", head=""))


def test_files_that_cannot_be_read(write, tmp_path):
    write("")
    assert f"Did you mean {tmp_path / 'a.yaml'}" in message(tmp_path / "aa.yaml")
    assert "cannot read" in message(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in message(tmp_path / "binary.yaml")


@pytest.mark.parametrize("overrides, expected", [
    (["TRAIN.EPOCHS"], "TRAIN.EPOCHS has no value"),
    (["TRAIN.EPOCHS=3"], "Write KEY VALUE with a space: TRAIN.EPOCHS 3"),
    (["TRAIN..EPOCHS", "3"], "is not a key such as TRAIN.EPOCHS"),
    (["TRAIN.EPOCHS.deeper", "3"], "expected a whole number"),
    (["TRAIN.EPOCHS", "[1"], "command line TRAIN.EPOCHS: not valid YAML"),
    (["MODEL.strides", "[1,", "1,", "2]"], "A value with spaces goes into quotes"),
    (["MODEL", "{NAME:", "resnet18}", "3"], "A value with spaces goes into quotes: MODEL '{"),
    (["TRAIN.EPOCHS:", "3"], "Write KEY VALUE with a space: TRAIN.EPOCHS 3"),
    (["TRAIN.EPOCHS", "=", "3"], "Write KEY VALUE with a space"),
    (["DATA.TRAIN_TRANSFORMS[1].p", "3"], "by number: DATA.TRAIN_TRANSFORMS.1.p"),
    (["DATA.TRAIN_TRANSFORMS.CutOut.p", "3"], "Its items are addressed by number"),
    (["_BASE_", "b.yaml"], "_BASE_ stands at the top of a file"),
    (["MODEL.0.x", "3"], "MODEL is not a list"),
    (["MODEL.0.x", "3", "MODEL.1.x", "3"], "MODEL is not a list"),
    (["SCHEDULER", "{NAME: StepLR}", "SCHEDULER.steps.0", "3"], "SCHEDULER.steps is not a list"),
    (["DATA.TRAIN_TRANSFORMS.0.p", "1", "DATA.TRAIN_TRANSFORMS.x", "3"], "expected a list of transforms"),
    (["DATA.TRAIN_TRANSFORMS.².p", "1"], "expected a list of transforms"),
    (["DATA.TRAIN_TRANSFORMS", "[{NAME: CutOut}]", "DATA.TRAIN_TRANSFORMS.0.a.0", "5"],
     "DATA.TRAIN_TRANSFORMS.0.a is not a list"),
    (["MODEL", "resnet34"], "Write {NAME: resnet34}"),
    (["SCHEDULER", "cosine_annealing"], "Write {NAME: CosineAnnealingLR}."),
    (["OPTIMIZER", "zzz"], "docs/add_your_own.md"),
])
def test_bad_overrides(write, overrides, expected):
    found = message(write(""), overrides)
    assert expected in found and "command line" in found


@pytest.mark.parametrize("text", ["base #2", "#2", "base # of mine: new", "3 #2"])
def test_what_looks_like_a_comment_is_a_part_of_text_on_the_command_line(write, text):
    assert load_config(write(""), ["OUTPUT_DIR", f" {text} "]).OUTPUT_DIR == text
    assert load_config(write(""), ["LOSS", "{NAME: X}", "LOSS.a", text]).LOSS.a == text
    assert load_config(write("OUTPUT_DIR: base #2\n", "b.yaml")).OUTPUT_DIR == "base"
    assert parse_value("# of a file\na: 1  # one\n").to_dict() == {"a": 1}


@pytest.mark.parametrize("text, comment", [
    ("{NAME: X, a: 1} # one", "# one"), ("[1, 2] #", "#"), ("'a b' #2", "#2"), ("a: b #2", "#2"), ("- a #2", "#2"),
    ("a: {b: c} #2", "#2"), ("a: #2", "#2")])
def test_a_comment_that_would_be_cut_off_on_the_command_line_is_told(write, text, comment):
    assert message(write(""), ["LOSS", text]) == (
        f"command line LOSS: {comment} would be a comment, and left out\n"
        "  Text that has ' #' in it stands in quotes within quotes: '\"base #2\"'")
    assert "' #' in it into quotes within those" in message(write(""), ["DATA.DATASET", "{root: base #2}"])


@pytest.mark.parametrize("text", ["[x] base", "%off", "*.png", "@eaDir", "{a} b", "'a' b"])
def test_text_that_is_taken_for_something_else_is_told_how_it_is_written(write, text):
    said = message(write(""), ["OUTPUT_DIR", text])
    key, written = shlex.split(re.search("As text it stands in quotes within quotes: (.*)", said)[1])
    assert load_config(write(""), [key, written]).OUTPUT_DIR == text


def test_a_key_that_is_a_list_is_not_told_to_be_quoted(write):
    assert "quotes" not in message(write("? [a]\n: b\n"))


def test_paths_that_cannot_be_are_refused(write, tmp_path):
    (tmp_path / "link.yaml").symlink_to("link.yaml")
    for path, reason in (('"a\\0b"', "null byte"), ("link.yaml", "symbolic links"),
                         ("x" * 3000, "File name too long")):
        found = message(write(f"_BASE_: {path}\n"))
        assert "a.yaml:4 _BASE_: cannot read" in found and reason in found and len(found) < 900


@pytest.mark.parametrize("word", ["", ".", "..", ".x", "a..b", "a b", '"a\\0b"', '"a\\0.py"', "x" * 999 + ".py"])
def test_imports_that_cannot_be_are_refused(write, word):
    for make in (lambda: load_config(write(f"IMPORTS: [{word or repr(word)}]\n")),
                 lambda: load_config(write(""), ["IMPORTS", f"[{word or repr(word)}]"])):
        with pytest.raises(ConfigError, match="IMPORTS: (no file|.* cannot be a module of yours)"):
            check_components(make())


@pytest.mark.parametrize("word", ["epoch", "1 step", "500 steps", "500steps", "10 min", "10 minutes",
                                  "1 minute"])
def test_when_checkpoints_are_saved(write, word):
    assert load_config(write(f"TRAIN: {{CHECKPOINT_EVERY: {word}}}\n")).TRAIN.CHECKPOINT_EVERY == word


@pytest.mark.parametrize("word", ["500", "0 steps", "'500'", "10 parsecs", "1.5 minutes", "steps", "''"])
def test_when_checkpoints_cannot_be_saved(write, word):
    with pytest.raises(ConfigError) as caught:
        load_config(write(f"TRAIN: {{CHECKPOINT_EVERY: {word}}}\n"))
    assert "a.yaml:4 TRAIN.CHECKPOINT_EVERY" in str(caught.value)
    assert "every '500 steps' or '10 minutes'" in str(caught.value)


def test_an_empty_section_lacks_components_of_the_file(write):
    assert re.search(r"a\.yaml: DATA\.DATASET is missing", message(
        write("DATA: {}\n", head=HEAD.replace("DATA: {DATASET: {NAME: Digits}}\n", ""))))


def test_values_are_parsed_by_the_same_rules():
    assert parse_value("1e-3") == 1e-3 and parse_value("") is None


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm(tmp_path):
    (tmp_path / "w.yaml").write_bytes(b"\xef\xbb\xbf" + TINY.replace("\n", "\r\n").encode())
    assert load_config(tmp_path / "w.yaml").TRAIN.EPOCHS == 2


# -- what holds for all values -----------------------------------------------------------

same_each_time = settings(derandomize=True, deadline=None, database=None, max_examples=120,
                          suppress_health_check=[HealthCheck.too_slow])
LOOKALIKES = ["1e-3", "1_000", "0x1F", "0o7", "1:30", "2024-01-31", "null", "~", "yes", "no", "true",
              ".inf", "-.NaN", "inf", "nan", "=", "<<", "-", "?", "---", "...", "1.", "+.5", "1e5", "-0",
              "a: b", "a #b", "&a", "*a", "!a", "%a", "@", "`", "\r", "\r\n", "\x85", "\u2028", "\ufeff",
              "\x00", "\x1b[31m", "\ud7ff", "\ue000", "\ufffe", "\U0010ffff", " a", "a ", "\t", "\\"]
words = st.text() | st.sampled_from(LOOKALIKES)
scalars = (st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | words
           | st.sampled_from([-0.0, 1e300, 5e-324, math.inf, -math.inf, 1e22, 1e16, 0.1 + 0.2]))
keys = (words | st.sampled_from(["NAME", "a", "b.c", "0", "lr"])).filter(lambda key: key != "<<")
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4)
                      | st.dictionaries(keys, inner, max_size=4), max_leaves=12)


@same_each_time
@given(values)
@example("\ud7ff\ue000")
@example({"a: b": {"k" * 3000: 1}, "": {}, "NAME": {"0": {"x" * 2000: {"@": 1}}}})
def test_any_value_survives_the_dump(value):
    cfg = read_config(HEAD, "a", overrides={"MODEL.value": value, "REQUIRE": {"x": value}})
    for text in (cfg.dump(), cfg.dump(origins=True)):
        again = read_config(text, "again")
        assert repr(again.to_dict()) == repr(cfg.to_dict())  # by repr, as NaN is not itself
    assert again.dump() == cfg.dump()


@same_each_time
@given(scalars.filter(lambda value: not isinstance(value, str)) | words)
def test_a_dumped_value_is_the_same_on_the_command_line(value):
    text = Config({"a": value}).dump().removeprefix("a: ").rstrip("\n")
    assert repr(parse_value(text)) == repr(value)


leaves = st.integers(0, 9) | st.lists(st.integers(0, 9), max_size=3)
nodes = st.recursive(  # which key holds a node and which a leaf is the same in all of them
    st.dictionaries(st.sampled_from("abc"), leaves, max_size=3),
    lambda inner: st.builds(lambda own, below: {**own, **below},
                            st.dictionaries(st.sampled_from("abc"), leaves, max_size=3),
                            st.dictionaries(st.sampled_from("XYZ"), inner, max_size=3)),
    max_leaves=8)


@same_each_time
@given(nodes, nodes, nodes)
def test_merging_has_an_identity_and_is_associative_where_no_name_changes(one, two, three):
    one, two, three = map(Config, (one, two, three))
    before = one.to_dict(), two.to_dict()
    assert merge(one, Config()) == merge(Config(), one) == merge(one, one) == one
    assert merge(merge(one, two), three) == merge(one, merge(two, three))
    assert (one.to_dict(), two.to_dict()) == before  # neither is changed


@same_each_time
@given(nodes, nodes, st.booleans())
def test_a_node_is_replaced_exactly_where_its_name_changes_and_lists_always_are(one, two, changes):
    base, over = Config({"NAME": "x", **one}), Config({"NAME": "y" if changes else "x", **two})
    merged = merge(base, over).to_dict()
    assert merged == ({"NAME": "y", **two} if changes else merge(
        Config(one), Config(two)).to_dict() | {"NAME": "x"})
    for key, value in two.items():
        assert isinstance(value, dict) or merged[key] == value
        assert merged[key] == value or not changes


PAIRS = [("MODEL", "{NAME: resnet34, width: 8}"), ("MODEL.NAME", "resnet9"), ("MODEL.width", "4"),
         ("OPTIMIZER.NAME", "AdamW"), ("OPTIMIZER.lr", "1e-3"), ("OPTIMIZER.betas", "[0.8, 0.9]"),
         ("OPTIMIZER.betas.1", "0.99"), ("OPTIMIZER.betas.7", "1"), ("TRAIN", "{EPOCHS: 3}"),
         ("TRAIN.EPOCHS", "4"), ("DATA.TRAIN_TRANSFORMS", "[{NAME: CutOut, size: 4}, {NAME: X}]"),
         ("DATA.TRAIN_TRANSFORMS.0.NAME", "RandomCrop"), ("DATA.TRAIN_TRANSFORMS.0.size", "8"),
         ("DATA.TRAIN_TRANSFORMS.1", "{NAME: Y, a: [1, 2]}"), ("DATA.TRAIN_TRANSFORMS.1.a.0", "5"),
         ("DATA.LIMIT", "7"), ("SCHEDULER", "{NAME: StepLR}"), ("SCHEDULER.step_size", "2"),
         ("SCHEDULER", "null"), ("MODEL.a.b.c", "1"), ("MODEL.a.b", "{d: 2}"), ("MODEL.a", "3")]


@same_each_time
@given(st.lists(st.sampled_from(PAIRS), max_size=7, unique_by=lambda pair: pair[0]).flatmap(
    lambda pairs: st.tuples(st.just(pairs), st.permutations(pairs))))
def test_the_order_of_overrides_does_not_matter(orders):
    found = []
    for pairs in orders:
        try:
            found.append(read_config(HEAD, "a", overrides=[
                word for pair in pairs for word in pair]).to_dict())
        except ConfigError as error:
            found.append(sorted(str(error).splitlines()))
    assert found[0] == found[1]


@pytest.mark.parametrize("old, new, value", [("TRAIN.EMA", "TRAIN.EMA_DECAY", 0.9), ("DATA.BACKEND", "DATA.PIPELINE", "batched")])
def test_a_key_with_a_new_name_is_told_it_and_runs_from_before_have_it(tiny, old, new, value):
    section, key = old.split(".")
    with pytest.raises(ConfigError, match=f"unknown key {key}\n  It is called {new} now"):
        load_config(tiny, [old, str(value)])
    text = load_config(tiny, {new: value, "REQUIRE": {section: {new.split(".")[1]: value}}}).dump()
    before = text.replace(new.split(".")[1], key)
    assert key in before and before.count(f"{key}: ") == 2
    config = read_config(before, "config.yaml")
    assert config.flat()[new] == value and config.dump() == text


def test_arguments_alone_are_of_the_default(write):
    config = load_config(write("LOSS: {label_smoothing: 0.1}\n"), ["LOSS.weight", "balanced"])
    assert config.LOSS == {"NAME": "CrossEntropyLoss", "label_smoothing": 0.1, "weight": "balanced"}
    assert list(config.LOSS) == ["NAME", "label_smoothing", "weight"]
    assert [config.LOSS.origin(key).rpartition(":")[2] for key in config.LOSS] == ["default", "4", "command line"]
    assert config.LOSS.where("weight") == "command line LOSS.weight"


def test_keys_that_are_numbers_can_be_set_on_the_command_line(write):
    path = write("TRAIN: {FREEZE: [fc], UNFREEZE: {5: [layer4]}}\n")
    assert load_config(path, ["TRAIN.UNFREEZE.5", "all", "TRAIN.UNFREEZE.7", "[fc]"]).TRAIN.UNFREEZE == {
        "5": "all", "7": ("fc",)}
    assert load_config(write("SEED: 0\n", "b.yaml"), ["TRAIN.UNFREEZE.5", "all"]).TRAIN.UNFREEZE == {"5": "all"}
    path = write("LOSS: {weight: {cat: 1.5}}\n", "c.yaml")
    assert load_config(path, ["LOSS.weight.3", "2.0"]).LOSS.weight == {"3": 2.0, "cat": 1.5}


@pytest.mark.parametrize("text, meant", [("[!fc]", "'!fc'"), ("[all, !*norm*]", "'!*norm*'"), ("!fc", "'!fc'")])
def test_what_begins_with_an_exclamation_mark_is_told_to_be_quoted(write, text, meant):
    hint = f"A value that begins with ! needs quotes: {meant}"
    assert hint in message(write("SEED: 0\n"), ["TRAIN.FREEZE", text])
    assert hint in message(write(f"TRAIN: {{FREEZE: {text}}}\n", "b.yaml"))
    assert load_config(write("SEED: 0\n"), ["TRAIN.FREEZE", "['!fc']"]).TRAIN.FREEZE == ("!fc",)
