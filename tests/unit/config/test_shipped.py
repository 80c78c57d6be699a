import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY

from cvkit.config import load_config, shipped
from cvkit.errors import ConfigError

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def message(*arguments):
    with pytest.raises(ConfigError) as caught:
        load_config(*arguments)
    return str(caught.value)


def test_one_is_found_by_its_name_from_any_folder():
    assert shipped.names() == NAMES and "resnet18_digits" in NAMES
    config = load_config("resnet18_digits", ["TRAIN.EPOCHS", "3"])
    assert (config.name, config.TRAIN.EPOCHS) == ("resnet18_digits", 3)
    expected = load_config(ROOT / "configs" / "resnet18_digits.yaml", {"TRAIN.EPOCHS": 3})
    assert config == expected
    assert load_config("cvkit://resnet18_digits.yaml").name == "resnet18_digits"


def test_a_file_of_that_name_goes_before_and_a_folder_does_not():
    Path("resnet18_digits").mkdir()
    assert load_config("resnet18_digits").MODEL.width == 16
    Path("resnet18_digits").rmdir()
    Path("resnet18_digits").write_text(TINY)
    assert load_config("resnet18_digits").MODEL.width == 4


@pytest.mark.parametrize("name, meant", [
    ("resnt18_digits", "resnet18_digits"), ("resnet18_digits.yaml", "resnet18_digits"),
    ("configs/vit_cifar10.yaml", "vit_cifar10"), ("resnet9-cifar10", "resnet9_cifar10")])
def test_a_name_that_there_is_not_is_answered_with_the_nearest(name, meant):
    text = message(name)
    assert text.startswith(f"no config file {name}\n  Did you mean {meant}? Allowed: {meant}, ")


def test_without_a_likely_name_those_are_told_that_there_are():
    assert message("zzz").startswith("no config file zzz\n  Allowed: airbench94_cifar10, ")
    Path("tiny.yaml").write_text(TINY)
    assert message("zzz") == "no config file zzz\n  Allowed: tiny.yaml."
    assert "Did you mean tiny.yaml?" in message("tinny.yaml")


def test_a_base_of_cvkit_is_found_from_any_folder():
    Path("mine.yaml").write_text(
        "_BASE_: [cvkit://_base_/cifar10.yaml, cvkit://_base_/sgd_onecycle.yaml]\n"
        "MODEL: {NAME: resnet18}\n")
    config = load_config("mine.yaml")
    assert config.DATA.DATASET.NAME == "CIFAR10" and config.SCHEDULER.NAME == "OneCycleLR"
    Path("mine.yaml").write_text("_BASE_: cvkit://resnet18_cifar10_submission.yaml\nSEED: 5\n")
    config = load_config("mine.yaml")
    assert (config.name, config.SEED, config.VISUALIZERS[1].count) == ("mine", 5, 20)


@pytest.mark.parametrize("base, problem, hint", [
    ("cvkit://_base_/cifar.yaml", "no config cvkit://_base_/cifar.yaml",
     "Did you mean cvkit://_base_/cifar10.yaml?"),
    ("cvkit://resnet18_digits", "no config cvkit://resnet18_digits",
     "Did you mean cvkit://resnet18_digits.yaml?"),
    ("cvkit://../README.md", "no config cvkit://../README.md", "Allowed: cvkit://_base_/airbench.yaml,"),
    ("cvkit://_base_/../resnet18_digits.yaml", "no config cvkit://_base_/../resnet18_digits.yaml",
     "Did you mean cvkit://"),
    ("_base_/cifar10.yaml", "no config file _base_/cifar10.yaml",
     "Did you mean cvkit://_base_/cifar10.yaml?")])
def test_a_wrong_base_is_told_with_its_line_and_what_there_is(base, problem, hint):
    Path("mine.yaml").write_text(f"SEED: 1\n_BASE_: {base}\n")
    text = message("mine.yaml")
    assert text.startswith(f"mine.yaml:2 _BASE_: {problem}\n  ") and hint in text
    if base.startswith("cvkit"):
        assert all(address in text for address in shipped.addresses())


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_means_the_same_anywhere(name):
    Path(f"{name}.yaml").write_text(shipped.copy_of(name), encoding="utf-8")
    assert load_config(f"{name}.yaml") == load_config(name)


def test_a_copy_says_how_it_is_run_here(monkeypatch):
    assert "#   python tools/train.py configs/vit_cifar10.yaml\n" in shipped.copy_of("vit_cifar10")
    monkeypatch.setattr(sys, "argv", ["/venv/bin/cvkit"])
    assert "#   cvkit train vit_cifar10\n" in shipped.copy_of("vit_cifar10")
    with pytest.raises(ConfigError, match=r"no config named 'zzz'\n  Allowed: .*vit_cifar10"):
        shipped.copy_of("zzz")


def test_the_list_has_a_sentence_on_each():
    lines = shipped.listing().splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(line.endswith(".") for line in lines)
    assert "resnet18_cifar10             ResNet-18 on CIFAR-10, 20 epochs of one-cycle SGD." in lines
