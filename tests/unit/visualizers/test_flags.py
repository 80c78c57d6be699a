import pytest

from cvkit.config import load_config
from cvkit.errors import ConfigError
from cvkit.registry import VISUALIZERS
from cvkit.visualizers.flags import arguments_of, listing, read_flags, split_words

OWN = {"--run": None, "--list": 0, "--out": 1}


def nodes(config, line):
    words, flags = split_words(line.split(), OWN)
    assert words == ["--"]
    return read_flags(flags, config)


@pytest.fixture
def config(tiny):
    return load_config(tiny)


@pytest.mark.parametrize("line, words, flags", [
    ("", ["--"], []),
    ("a.yaml SEED 3", ["--", "a.yaml", "SEED", "3"], []),
    ("--cam --misclassified 10", ["--"], [("--cam", []), ("--misclassified", ["10"])]),
    ("--cam a.yaml", ["--", "a.yaml"], [("--cam", [])]),
    ("--cam DATA.DATASET.root x", ["--", "DATA.DATASET.root", "x"], [("--cam", [])]),
    ("--cam-layer layer1 layer2 --run a b --list", ["--run", "a", "b", "--list", "--"],
     [("--cam-layer", ["layer1", "layer2"])]),
    ("--run a b SEED 1", ["--run", "a", "b", "--", "SEED", "1"], []),
    ("--misclassified-true-class CAT --cam=3", ["--"], [("--misclassified-true-class", ["CAT"]),
                                                  ("--cam", ["3"])]),
    ("--out PICTURES --misclassified -3", ["--out", "PICTURES", "--"], [("--misclassified", ["-3"])]),
    ("--list a.yaml", ["--list", "--", "a.yaml"], []),
    ("--run runs/a/1/config.yaml --run b", ["--run", "runs/a/1/config.yaml", "--run", "b", "--"], []),
])
def test_words_find_their_flags(line, words, flags):
    assert split_words(line.split(), OWN) == (words, flags)


@pytest.mark.parametrize("line, expected", [
    ("--curves", [{"NAME": "curves"}]),
    ("--misclassified 4", [{"NAME": "misclassified", "count": 4}]),
    ("--misclassified --misclassified-true-class cat --misclassified-order random",
     [{"NAME": "misclassified", "true_class": "cat", "order": "random"}]),
    ("--cam-method LayerCAM", [{"NAME": "cam", "method": "LayerCAM"}]),
    ("--cam-layer layer1", [{"NAME": "cam", "layer": "layer1"}]),
    ("--cam-layer 4", [{"NAME": "cam", "layer": "4"}]),  # of a Sequential
    ("--misclassified-true-class 007", [{"NAME": "misclassified", "true_class": "007"}]),
    ("--misclassified-true-class null", [{"NAME": "misclassified", "true_class": "null"}]),
    ("--cam-layer layer1 layer2", [{"NAME": "cam", "layer": ["layer1", "layer2"]}]),
    ("--cam-matrix 3 --cam-matrix-methods LayerCAM",
     [{"NAME": "cam_matrix", "count": 3, "methods": ["LayerCAM"]}]),
])
def test_flags_become_nodes(config, line, expected):
    assert nodes(config, line) == expected
    for node in expected:
        VISUALIZERS.check(node)


@pytest.mark.parametrize("line", ["--cam --misclassified 7", "--misclassified 7 --cam",
                                  "--cam --misclassified 7 --misclassified-order random "
                                  "--misclassified-seed 3 --misclassified-true-class 5"])
def test_the_cam_follows_the_gallery(config, line):
    gallery, cam = sorted(nodes(config, line), key=lambda node: node["NAME"] == "cam")
    asked = {key: value for key, value in cam.items() if key != "NAME"}
    assert asked["count"] == 7 and set(asked) == {"count", "order", "true_class", "predicted_class",
                                                   "seed"}
    defaults = {key: value.default for key, value in arguments_of("misclassified").items()}
    assert asked == {**defaults, **{key: gallery[key] for key in gallery if key != "NAME"}}


def test_what_is_said_of_the_cam_itself_counts(config):
    cam = nodes(config, "--misclassified 7 --cam 3 --cam-method LayerCAM")[1]
    assert (cam["count"], cam["order"], cam["method"]) == (3, "confidence", "LayerCAM")


def test_flags_start_from_the_config_s_own_nodes(tiny):
    config = load_config(tiny, {"VISUALIZERS": [
        {"NAME": "cam", "method": "LayerCAM", "count": 20}, {"NAME": "misclassified", "count": 5}]})
    assert nodes(config, "--cam") == [{"NAME": "cam", "method": "LayerCAM", "count": 20}]
    gallery, cam = nodes(config, "--misclassified --cam")
    assert gallery["count"] == cam["count"] == 5 and cam["method"] == "LayerCAM"


@pytest.mark.parametrize("line, problem", [
    ("--missclassified", "no flag --missclassified\n  Did you mean --misclassified?"),
    ("--cam-metod LayerCAM", "no flag --cam-metod\n  Did you mean --cam-method?"),
    ("--cam-run x", "no flag --cam-run"), ("--cam-method", "--cam-method has no value"),
    ("--curves 3", "--curves takes no value, and '3' follows it")])
def test_flags_that_cannot_be_are_refused(config, line, problem):
    with pytest.raises(ConfigError) as caught:
        nodes(config, line)
    assert problem in str(caught.value)


def test_no_two_flags_are_the_same_and_all_are_listed():
    flags = [f"--{name.replace('_', '-')}" for name in VISUALIZERS.own]
    flags += [f"--{name}-{key}".replace("_", "-") for name in VISUALIZERS.own
              for key in arguments_of(name)]
    assert len(flags) == len(set(flags)) >= 40
    words = listing().split()
    assert set(flags) <= set(words)
    assert "--cam [N]  (needs one finished run)" in listing()
    assert "--disagreements [N]  (needs two or more runs)" in listing()
    assert "--dataset\n" in listing()
