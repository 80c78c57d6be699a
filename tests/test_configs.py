"""Every config in configs/, whatever it is: it loads, says how it is run, and passes `--check`."""

import re

import pytest
from conftest import ROOT

from cvkit.config import check_components, components, load_config, read_config
from cvkit.registry import REGISTRIES
from cvkit.trainer import Trainer

CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml")
                 if path.parent.name != "_base_")
NAMES = [str(path.relative_to(ROOT)) for path in CONFIGS]
DOWNLOADED = {"CIFAR10"}  # replaced by the image folder here


def test_no_config_is_lost():
    assert len(CONFIGS) >= 2
    assert {"configs/resnet18_cifar10.yaml", "configs/resnet18_digits.yaml"} <= set(NAMES)


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_its_header_says_how_it_is_run_and_what_comes_of_it(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    command = f"#   python tools/train.py {path.relative_to(ROOT)}"
    assert command in header
    assert any(re.search(r"\d ?%|not measured", line) for line in header)


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_it_resolves_and_all_its_components_are_right(path):
    config = load_config(path)
    check_components(config)
    assert read_config(config.dump(), "again") == config
    kinds = [kind for kind, _ in components(config)]
    assert {"model", "dataset", "loss", "optimizer"} <= set(kinds) <= set(REGISTRIES)


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_one_batch_goes_through_it(path, cifar_images, capsys):
    overrides = {"DATA.LIMIT": 200, "DATA.BATCH_SIZE": 16}
    if load_config(path).DATA.DATASET.NAME in DOWNLOADED:
        overrides["DATA.DATASET"] = {"NAME": "ImageFolder", "root": str(cifar_images)}
    Trainer(load_config(path, overrides)).check()
    assert "All is well" in capsys.readouterr().out


def test_the_main_config_is_what_the_course_asks_for():
    config = load_config(ROOT / "configs" / "resnet18_cifar10.yaml")
    assert config.MODEL == {"NAME": "resnet18", "norm": "batch"}
    assert config.DATA.DATASET.NAME == "CIFAR10" and config.DATA.BATCH_SIZE == 128
    assert config.DATA.TRAIN_TRANSFORMS == ({"NAME": "RandomCrop", "size": 32, "padding": 4},
                                            {"NAME": "CutOut", "size": 16})
    assert config.DATA.TEST_TRANSFORMS == () and config.DATA.VAL_FRACTION == 0
    assert config.OPTIMIZER.NAME == "SGD" and config.OPTIMIZER.momentum == 0.9
    assert config.TRAIN.EPOCHS == 20
