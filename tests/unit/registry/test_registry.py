import importlib
import inspect
import pickle
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from cvkit.config import Config, load_config
from cvkit.errors import ConfigError, DataError, UserError
from cvkit.registry import (
    DATASETS,
    LAYERS,
    LOSSES,
    METRICS,
    MODELS,
    OPTIMIZERS,
    PRUNERS,
    REGISTRIES,
    SAMPLERS,
    SCHEDULERS,
    SEARCHERS,
    TRANSFORMS,
    VISUALIZERS,
    WRITERS,
    Registry,
)
from cvkit.registry.listing import describe, overview
from cvkit.registry.signatures import accepts, describe_type, parameters_of
from cvkit.registry.user_code import edited_since, import_user_code, user_code

OWN = {  # a name that disappears, or one that no test knows of, shows here
    DATASETS: ["CIFAR10", "CIFAR100", "CSVDataset", "Digits", "FashionMNIST", "ImageFolder", "MNIST"],
    TRANSFORMS: ["AlternatingFlip", "CutMix", "CutOut", "HorizontalFlip", "MixUp", "Normalize", "RandAugment",
                 "RandomCrop", "Rotate", "Shift", "Translate", "TrivialAugmentWide"],
    SAMPLERS: ["balanced", "repeat_factor"],
    MODELS: ["Sequential", "airbench", "resnet18", "resnet34", "resnet9", "vit"],
    LAYERS: ["Sequential", "WhiteningConv2d"],
    LOSSES: ["FocalLoss"],
    OPTIMIZERS: ["Muon"] if hasattr(torch.optim, "Muon") else [],
    SCHEDULERS: ["CyclicLR", "OneCycleLR", "PolynomialLR", "Triangular"],
    METRICS: ["Accuracy", "BalancedAccuracy", "PerClassAccuracy", "TopKAccuracy"],
    WRITERS: ["jsonl", "mlflow", "tensorboard", "wandb"],
    VISUALIZERS: ["architecture", "augmentations", "calibration", "cam", "cam_average", "cam_faithfulness",
                  "cam_matrix", "confusion", "curve_band", "curves", "dataset", "disagreements", "duplicates",
                  "embedding", "feature_maps", "filters", "label_errors", "lr_finder", "misclassified",
                  "per_class", "pr", "robustness", "roc", "samples", "summary", "top_losses", "wrong_in_all"],
    SEARCHERS: ["GridSampler"],
    PRUNERS: [],
}
LIBRARIES = {  # how many names each library lends at least, and one of them
    TRANSFORMS: (80, "CoarseDropout"), MODELS: (75, "mobilenet_v3_small"), LAYERS: (80, "Conv2d"),
    LOSSES: (12, "CrossEntropyLoss"), OPTIMIZERS: (12, "AdamW"), SCHEDULERS: (10, "StepLR"),
    METRICS: (13, "F1Score"), DATASETS: (20, "SVHN"), SEARCHERS: (6, "TPESampler"),
    PRUNERS: (8, "MedianPruner")}


@pytest.fixture
def registry():
    """A registry of its own, filled by a module that registers nothing."""
    yield Registry("toy", "cvkit.errors", offers=("num_classes",))
    del REGISTRIES["toy"]


def test_all_registries_are_listed():
    assert list(REGISTRIES.values()) == [DATASETS, TRANSFORMS, SAMPLERS, MODELS, LAYERS, LOSSES,
                                         OPTIMIZERS, SCHEDULERS, METRICS, WRITERS, VISUALIZERS,
                                         SEARCHERS, PRUNERS]


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.kind)
def test_own_names(kind):
    assert kind.own == OWN[kind]
    assert all(name in kind and inspect.getdoc(kind.get(name)) for name in kind.own)


@pytest.mark.parametrize("kind", LIBRARIES, ids=lambda kind: kind.kind)
def test_library_names(kind):
    count, example = LIBRARIES[kind]
    module, names = kind.library
    assert len(names) >= count
    assert example in names and example in kind and example in list(kind)
    assert len(kind) == len(kind.own) + len(names)
    assert kind.find(f"{module}.{example}") is not None


@pytest.mark.parametrize("kind, name", [
    (kind, name) for kind in (DATASETS, TRANSFORMS, SAMPLERS, MODELS, LAYERS, LOSSES, OPTIMIZERS,
                              SCHEDULERS, METRICS, WRITERS, VISUALIZERS, SEARCHERS, PRUNERS)
    for name in kind])
def test_every_entry_can_be_described_and_accepts_its_own_defaults(monkeypatch, kind, name):
    # Python parses a whole module to find the line of a class.
    monkeypatch.setattr("cvkit.registry.listing.place_of", lambda entry: f"{entry.__module__}:1")
    text = describe(kind, name)
    assert text.startswith(f"{kind.kind} {name}\ndefined in {kind.get(name).__module__}:1\n")
    arguments = text.split("arguments:\n")[1].split("\n\n")[0]
    for key, parameter in parameters_of(kind.get(name))[0].items():
        line, = re.findall(rf"^  {key}(?: \(.*\))?: ", arguments, re.M)
        assert not re.search(r"Tensor|Callable|ForwardRef|Union|Literal|Sequence|tuple\[", line)
        plain = isinstance(parameter.default, (bool, int, float, str, list, tuple))
        if plain and parameter.default is not parameter.empty:
            assert accepts(parameter.annotation, parameter.default)


def test_own_names_win_and_the_library_stays_reachable():
    assert MODELS.get("torchvision.models.resnet18").__module__ == "torchvision.models.resnet"
    assert MODELS.get("resnet18").__module__ == "cvkit.models.resnet"


def test_register_by_own_and_by_given_name(registry):
    @registry.register()
    def first():
        return 1

    @registry.register("other")
    class Second:
        pass

    assert list(registry) == ["first", "other"]
    assert registry.build("first") == 1 and isinstance(registry.build({"NAME": "other"}), Second)
    assert repr(registry) == "<Registry of toys: first, other>"
    assert "third" not in registry


def test_duplicates_are_refused_naming_both_places(registry):
    @registry.register("same")
    def one():
        pass

    with pytest.raises(ConfigError) as caught:
        @registry.register("same")
        def two():
            pass

    lines = [inspect.getsourcelines(one)[1], inspect.getsourcelines(one)[1] + 5]
    assert [f"{Path(__file__).name}:{line}" in str(caught.value) for line in lines] == [True, True]


def test_what_is_registered_temporarily_is_gone_afterwards(registry):
    registry.register("kept")(lambda: 1)
    with pytest.raises(ZeroDivisionError), registry.temporarily() as same:
        same.register("gone")(lambda: 2)
        with registry.temporarily():
            registry.register("inner")(lambda: 3)
        assert registry.own == ["gone", "kept"] and registry.build("gone") == 2
        1 / 0  # noqa: B018
    assert registry.own == ["kept"]


def test_a_registry_is_filled_before_it_forgets_and_before_its_library_is_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("cvkit.registry.registry.REGISTRIES", {})
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "parts_of_late_toys.py").write_text(
        "from cvkit.registry.registry import REGISTRIES\n"
        "REGISTRIES['late toy'].register('kept')(lambda: 1)\n"
        "REGISTRIES['late toy'].add_library('a.library', lambda: {'kept': int, 'lent': int})\n")
    registry = Registry("late toy", "parts_of_late_toys")
    assert registry.library == ("a.library", ["lent"])
    sys.modules.pop("parts_of_late_toys")
    registry = Registry("late toy", "parts_of_late_toys")
    with registry.temporarily():
        registry.register("gone")(lambda: 2)
    assert registry.own == ["kept"]


def test_register_without_parentheses_says_so(registry):
    with pytest.raises(TypeError, match="with the parentheses"):
        @registry.register
        def entry():
            pass


def test_facts_reach_only_constructors_that_ask_and_configs_win(registry):
    @registry.register()
    def asks(num_classes, size=1):
        return num_classes, size

    @registry.register()
    def asks_not(size=1):
        return size

    assert registry.build("asks", num_classes=7) == (7, 1)
    assert registry.build({"NAME": "asks", "num_classes": 3, "size": 2}, num_classes=7) == (3, 2)
    assert registry.build("asks_not", num_classes=7) == 1
    assert registry.asks_for("asks", "num_classes") and not registry.asks_for("asks_not",
                                                                              "num_classes")
    with pytest.raises(TypeError, match="not offered sise"):
        registry.build("asks", sise=3)


def test_all_that_is_wrong_with_a_node_is_told_with_its_place(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("MODEL:\n  NAME: resnet18\n  nrom: layer\n  width: wide\n"
                    "DATA: {DATASET: {NAME: Digits}}\nOPTIMIZER: {NAME: SGD, lr: 1}\n")
    with pytest.raises(ConfigError) as caught:
        MODELS.check(load_config(path).MODEL)
    assert f"{path}:3 MODEL.nrom: model resnet18 has no argument 'nrom'" in str(caught.value)
    assert "Did you mean norm?" in str(caught.value)
    assert f"{path}:4 MODEL.width: width of model resnet18 takes int, not 'wide'" in str(
        caught.value)


@pytest.mark.parametrize("kind, node, expected", [
    (MODELS, {"NAME": "resnet81"}, "Did you mean resnet18?"),
    (MODELS, {"NAME": "mobilenet_v3_smal"}, "Did you mean mobilenet_v3_small?"),
    (MODELS, {"NAME": "mobilenet_v3_small", "num_clases": 3}, "Did you mean num_classes?"),
    (OPTIMIZERS, {"NAME": "AdamW"}, "optimizer AdamW needs lr"),
    (OPTIMIZERS, {"NAME": "SGD", "lr": "fast"}, "lr of optimizer SGD takes float"),
    (OPTIMIZERS, {"NAME": "SGD", "lr": 0.1, "momentun": 0.9}, "Did you mean momentum?"),
    (SCHEDULERS, {"NAME": "StepLR"}, "scheduler StepLR needs step_size"),
    (SCHEDULERS, {"NAME": "OneCycleLR", "max_lr": 1, "anneal_strategy": "sin"},
     "anneal_strategy of scheduler OneCycleLR takes one of cos, linear, not 'sin'"),
    (TRANSFORMS, {"NAME": "CoarseDropout", "max_holes": 1}, "has no argument 'max_holes'\n"
     "  Did you mean num_holes_range? It takes [int, int]."),
    (TRANSFORMS, {"NAME": "OneOf", "transforms": [{"NAME": "HorizontalFlipp"}]},
     "Did you mean HorizontalFlip?"),
    (LOSSES, {"NAME": "CrossEntropyLoss", "label_smoothin": 0.1}, "Did you mean label_smoothing?"),
    (DATASETS, {"NAME": "ImageFolder"}, "dataset ImageFolder needs root"),
    (OPTIMIZERS, {"NAME": "SGD", "lr": 1, "params": 3}, "has no argument 'params'"),
    (OPTIMIZERS, {"NAME": "AdamW", "lr": 1, "betas": [0.9, "b"]}, "betas of optimizer AdamW takes"),
    (OPTIMIZERS, {"NAME": "Adam", "lr": [0.1, 0.01]},
     "lr of optimizer Adam takes one number (float), not [0.1, 0.01]"),
    (SCHEDULERS, {"NAME": "StepLR", "step_size": [3, 5]}, "step_size of scheduler StepLR takes one"),
    (SCHEDULERS, {"NAME": "OneCycleLR", "max_lr": [0.1, 0.2]}, "takes one number (float or find)"),
    (SCHEDULERS, {"NAME": "ReduceLROnPlateau", "min_lr": [0, 1]}, "min_lr of scheduler ReduceLROnP"),
    (SCHEDULERS, {"NAME": "MultiStepLR", "milestones": 3}, "takes list[int], not 3\n  Write [3]."),
    (OPTIMIZERS, {"NAME": "AdamW", "lr": 1, "betas": [0.9]}, "takes [float, float], not [0.9]"),
    (TRANSFORMS, {"NAME": "CutOut", "size": 8, "p": "50%"}, "takes float, not '50%'\n  Write 0.5."),
    (TRANSFORMS, {"NAME": "CoarseDropout", "p": "0.5"}, "not '0.5'\n  Write 0.5 without quotes."),
    (SCHEDULERS, {"NAME": "CyclicLR", "base_lr": 0.1, "max_lr": 1, "step_size_down": "None"},
     "takes int or null, not 'None'\n  Write null."),
    (SCHEDULERS, {"NAME": "OneCycleLR", "max_lr": "Find"}, "Did you mean find?"),
    (MODELS, {"NAME": "mobilenet_v3_small", "norm_layer": "LayerNorm"}, "takes null, not 'LayerNo"),
    (TRANSFORMS, {"NAME": "CutOut", "size": [8, 8, 8]}, "takes int or [int, int], not [8, 8, 8]"),
    (OPTIMIZERS, {"NAME": "SGD", "lr": 1, "wd": 1}, "Did you mean weight_decay?"),
    (OPTIMIZERS, {"NAME": "SGD", "learning_rate": 1}, "Did you mean lr?"),
    (TRANSFORMS, {"NAME": "OneOf", "transforms": ["HorizontalFlip"]}, "Write {NAME: HorizontalFlip}."),
    (TRANSFORMS, {"NAME": "OneOf", "transforms": [{"p": 1}]}, "this transform has no NAME"),
    (TRANSFORMS, {"NAME": "OneOf", "transforms": {"NAME": "HorizontalFlip"}},
     "takes list[{NAME: …}], not {'NAME': 'HorizontalFlip'}"),
    (MODELS, {"nAME": "x"}, "this model has no NAME\n  Write NAME, not nAME."),
    (VISUALIZERS, {"NAME": "cam", "method": "GradCam"}, "Did you mean GradCAM?"),
    (VISUALIZERS, {"NAME": "cam_matrix", "methods": ["GradCAM", "HiresCAM"]},
     "Did you mean HiResCAM?"),
    (VISUALIZERS, {"NAME": "cam_matrix", "methods": "GradCAM"}, "takes list[one of GradCAM, "),
    (SCHEDULERS, {"NAME": "OneCycleLR", "max_lr": 1, "anneal_strategy": ["cos"]},
     "takes one of cos, linear, not ['cos']"),
    (LOSSES, {"NAME": "CrossEntropyLoss", "weight": 3},
     "takes list[float] or balanced or mapping or null, not 3\n  Write [3]."),
    (VISUALIZERS, {"NAME": "cam", "model": 3}, "has no argument 'model'"),
    (VISUALIZERS, {"NAME": "cam_matrix", "target": True}, "takes one of predicted_class, true_class, not True"),
])
def test_check_names_the_mistake(kind, node, expected):
    with pytest.raises(ConfigError) as caught:
        kind.check(node)
    assert expected in str(caught.value)


@pytest.mark.parametrize("kind, node, offered, expected", [
    (OPTIMIZERS, {"NAME": "SGD", "lr": -1}, {"params": [torch.zeros(1, requires_grad=True)]},
     "optimizer SGD cannot be built: Invalid learning rate"),
    (TRANSFORMS, {"NAME": "CoarseDropout", "p": 2.0}, {}, "transform CoarseDropout cannot be built"),
    (MODELS, {"NAME": "resnet18", "norm": "instance"}, {}, "norm is batch, layer or group"),
    (MODELS, {"NAME": "resnet18", "width": -1}, {}, "are 1 or more"),
    (OPTIMIZERS, {"NAME": "AdamW", "lr": 1, "betas": [0.9, 7]}, {"params": [torch.zeros(1)]},
     "optimizer AdamW cannot be built"),
])
def test_a_refused_value_is_the_users_error(kind, node, offered, expected):
    with pytest.raises(ConfigError) as caught:
        kind.build(node, **offered)
    assert expected in str(caught.value)


@pytest.mark.parametrize("kind, node, offered, expected", [
    (SCHEDULERS, {"NAME": "CyclicLR", "base_lr": 0.1, "max_lr": 1, "last_epoch": 7},
     {"optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1)}, "scheduler CyclicLR cannot be built: "),
    (MODELS, {"NAME": "resnet18", "width": 2**40}, {}, "model resnet18 cannot be built: "),
    (DATASETS, {"NAME": "ImageFolder", "root": "x" * 3000}, {}, "dataset ImageFolder cannot be built: "),
    (TRANSFORMS, {"NAME": "GaussNoise", "p": 2, "std_range": [3, 2]}, {},
     "transform GaussNoise cannot be built: p: Input should be less than or equal to 1, not 2; std_")])
def test_what_cvkit_hands_on_to_a_library_is_the_users_error_too(kind, node, offered, expected):
    with pytest.raises(ConfigError) as caught:
        kind.build(node, **offered)
    assert expected in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_values_are_shown_as_they_were_written(tmp_path):
    (tmp_path / "a.yaml").write_text("MODEL: {NAME: resnet18, strides: [1, {a: 2}]}\n"
                                     "DATA: {DATASET: {NAME: Digits}}\nOPTIMIZER: {NAME: SGD, lr: 1}\n")
    with pytest.raises(ConfigError, match=r"takes list\[int\], not \[1, \{'a': 2\}\]"):
        MODELS.check(load_config(tmp_path / "a.yaml").MODEL)


def test_a_bug_in_registered_code_keeps_its_traceback(registry):
    @registry.register()
    def broken():
        return None + 1

    with pytest.raises(TypeError, match="unsupported operand"):
        registry.build("broken")


@pytest.mark.parametrize("error, place", [
    (ConfigError("size is even"), "size"), (ConfigError("it is odd", where="size"), "size"),
    (ConfigError("it is odd", where="other"), "NAME"), (ConfigError("it is odd"), "NAME"),
    (ConfigError("nothing is in a"), "NAME"), (DataError("nothing is in a"), "path"),
    (OSError(2, "not there", "a"), "path"), (ValueError("size is even"), "size"),
    (ConfigError("it is odd", where="a.csv:3"), None)])
def test_an_error_of_a_constructor_is_placed_at_the_argument_that_it_names(registry, error, place):
    @registry.register()
    def own(size=1, path="a", other=2):
        raise error

    with pytest.raises(UserError) as caught:
        registry.build(Config({"NAME": "own", "size": 3, "path": "./a"}))
    assert caught.value.where == (f"Python {place}" if place else "a.csv:3")


def test_a_tilde_is_the_home_folder_in_arguments_that_are_paths(registry, home):
    @registry.register()
    def toy(path, paths, inner=None):
        return path, paths, inner

    node = {"NAME": "toy", "path": "~/a", "paths": ["~/b", "~", "~c", "d~/e", 5],
            "inner": {"NAME": "toy", "path": "~nobody at all/f", "paths": ("~/g",)}}
    assert registry.build(node) == (f"{home}/a", [f"{home}/b", "~", "~c", "d~/e", 5],
                                    ("~nobody at all/f", (f"{home}/g",), None))


def test_own_code_named_by_a_tilde_is_imported(home, capsys):
    (home / "tilde_code.py").write_text("")
    import_user_code(["~/tilde_code.py"])
    assert capsys.readouterr().out == f"imported   {home / 'tilde_code.py'}\n"


def test_nodes_within_arguments_are_built():
    node = {"NAME": "OneOf", "p": 1.0, "transforms": [
        {"NAME": "HorizontalFlip", "p": 1.0}, {"NAME": "VerticalFlip", "p": 1.0}]}
    names = [type(item).__name__ for item in TRANSFORMS.build(node).transforms]
    assert names == ["HorizontalFlip", "VerticalFlip"]


@pytest.mark.parametrize("annotation, value, expected", [
    (float, 1, True), (float, True, False), (float, "1", False), (int, 1.5, False),
    (int, True, False), (bool, 1, False), (str, 1, False), (tuple[int, int], [1, 2], True),
    (int | None, None, True), (int | None, "a", False), (torch.Tensor | None, [1.0], True),
    (float | torch.Tensor, "fast", False), (inspect.Parameter.empty, object(), True),
    (tuple[int, int], [1, 2, 3], False), (tuple[int, ...], [1, 2, 3], True),
    (tuple[int, ...], [1, "b"], False), (Iterable[int], 1, False)])
def test_accepts(annotation, value, expected):
    assert accepts(annotation, value) is expected


@pytest.mark.parametrize("annotation, expected", [
    (float | torch.Tensor, "float or list[float]"), (torch.Tensor | None, "list[float] or null"),
    (tuple[float, float] | float, "[float, float] or float"), (tuple[int, ...], "list[int]"),
    (Iterable[int], "list[int]"), (Callable[[int], int] | None, "null"), (str | Path, "str"),
    (list[Callable[[int], int]] | None, "null"), (float | Literal["find"], "float or find"),
    (Literal["a", None], "one of a, null"), (dict[str, int] | None, "mapping or null"),
    (Callable[[int], int], "what a config cannot write")])
def test_types_are_told_as_a_config_can_write_them(annotation, expected):
    assert describe_type(annotation) == expected


# Arguments that albumentations 1.x had: {transform: {old: new}}
OLD = {
    "CoarseDropout": {"max_holes": "num_holes_range", "min_holes": "num_holes_range",
                      "max_height": "hole_height_range", "min_width": "hole_width_range",
                      "fill_value": "fill", "mask_fill_value": "fill_mask", "always_apply": "p"},
    "GridDropout": {"unit_size_min": "unit_size_range", "holes_number_x": "holes_number_xy",
                    "fill_value": "fill", "mask_fill_value": "fill_mask"},
    "RandomResizedCrop": {"height": "size", "width": "size"},
    "RandomSizedCrop": {"height": "size", "width": "size"},
    "GaussNoise": {"var_limit": "std_range", "mean": "mean_range"},
    "ShiftScaleRotate": {"value": "fill", "mask_value": "fill_mask"},
    "PadIfNeeded": {"value": "fill", "mask_value": "fill_mask"},
    "SafeRotate": {"value": "fill", "always_apply": "p"},
    "Affine": {"cval": "fill", "cval_mask": "fill_mask", "mode": "border_mode"},
    "Perspective": {"pad_val": "fill", "pad_mode": "border_mode"},
    "Downscale": {"scale_min": "scale_range", "scale_max": "scale_range"},
    "ImageCompression": {"quality_lower": "quality_range", "quality_upper": "quality_range"},
    "RandomShadow": {"num_shadows_lower": "num_shadows_limit"},
    "RandomFog": {"fog_coef_lower": "fog_coef_range", "fog_coef_upper": "fog_coef_range"},
    "RandomSnow": {"snow_point_lower": "snow_point_range"},
    "RandomRain": {"slant_upper": "slant_range"}, "Solarize": {"threshold": "threshold_range"},
    "RandomCrop": {"height": "size", "width": "size"}, "Rotate": {"value": "fill"}}


@pytest.mark.parametrize("name", OLD)
def test_old_arguments_of_albumentations_name_the_new_ones(name):
    for old, new in OLD[name].items():
        with pytest.raises(ConfigError, match=f"no argument '{old}'\n  Did you mean {new}\\?"):
            TRANSFORMS.check({"NAME": name, "size": [8, 8], "limit": 3, old: 1} if name in (
                "RandomCrop", "Rotate") else {"NAME": name, old: 1})


@pytest.mark.parametrize("kind, name, reason", [
    (LOSSES, "TripletMarginLoss", "is not a loss of logits and classes"),
    (LOSSES, "torch.nn.CTCLoss", "is not a loss of logits and classes"),
    (OPTIMIZERS, "LBFGS", "calls the loss again within a step"),
    (SCHEDULERS, "LambdaLR", "takes a function, which a config cannot hold"),
    (SCHEDULERS, "MultiplicativeLR", "takes a function")])
def test_what_cannot_be_taken_is_not_listed_and_says_why(kind, name, reason):
    short = name.split(".")[-1]
    with pytest.raises(ConfigError) as caught:
        kind.get(name)
    assert f"That of {kind.library[0]} {reason}" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        kind.get(short[:-1])
    assert short not in caught.value.hint and short not in overview(kind)


def test_imports_register_files_and_modules(tmp_path, monkeypatch):
    (tmp_path / "my_model.py").write_text(
        "from cvkit import MODELS\n\n@MODELS.register()\ndef from_a_file(): return 'file'\n")
    (tmp_path / "my_module.py").write_text(
        "from cvkit import MODELS\n\n@MODELS.register()\ndef from_a_module(): return 'module'\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    import_user_code(["my_model.py", "my_module"])
    import_user_code([str(tmp_path / "my_model.py")])  # again: nothing happens
    assert MODELS.build("from_a_file") == "file" and MODELS.build("from_a_module") == "module"


def test_a_file_imports_what_lies_beside_it(tmp_path, monkeypatch):
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "a_helper_of_mine.py").write_text("WIDTH = 7\n")
    (folder / "my_model.py").write_text(
        "from cvkit import MODELS\nfrom a_helper_of_mine import WIDTH\n\n"
        "@MODELS.register()\ndef with_a_helper():\n    import json\n    return WIDTH, json\n")
    (folder / "json.py").write_text("raise ImportError('the one of Python is meant')\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    import_user_code([str(folder / "my_model.py")])
    assert MODELS.build("with_a_helper")[0] == 7
    assert sys.path[-1] == str(folder)


def test_a_pickle_is_read_where_another_file_of_that_name_was_never_imported(tmp_path, monkeypatch):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "parts_of_mine.py").write_text(f"class Part:\n    made_in = '{name}'\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    import_user_code([str(tmp_path / "first" / "parts_of_mine.py")])
    path = tmp_path / "second" / "parts_of_mine.py"
    import_user_code([str(path)])
    module = next(module for module in list(sys.modules.values()) if getattr(module, "__file__", None) == str(path))
    sent = pickle.dumps(module.Part())
    shutil.rmtree(tmp_path / "first")
    for name in set(sys.modules) - before:  # as in a worker process that begins from nothing
        del sys.modules[name]
    import_user_code([str(path)], is_told=False)
    assert pickle.loads(sent).made_in == "second"


MINE = "from cvkit import MODELS\n\n@MODELS.register()\ndef edited_model():\n    return %d\n"


def test_a_file_that_is_edited_counts_once_it_is_imported_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("cvkit.registry.user_code._code", {})
    path = tmp_path / "edited_parts.py"
    path.write_text(MINE % 1)
    import_user_code([str(path)])
    before = user_code()
    path.write_text("# What moves all lines.\n" + MINE % 22)
    capsys.readouterr()
    for _ in range(2):
        import_user_code([str(path)])
    assert capsys.readouterr().out == (
        "note       edited_parts.py was edited since it was imported; it counts as it was then, until "
        "Python is started anew\n")
    assert MODELS.build("edited_model") == 1 and user_code() == before
    importlib.reload(sys.modules["edited_parts"])
    import_user_code([str(path)])
    assert MODELS.build("edited_model") == 22
    assert user_code() != before and edited_since(before) == ["edited_parts.py"]
    assert capsys.readouterr().out == ""
    path.write_text(MINE % 1 + MINE % 2)
    with pytest.raises(ConfigError, match="two models named 'edited_model'"):
        importlib.reload(sys.modules["edited_parts"])


def test_what_an_imported_file_is_refused_for_is_placed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "twice.py").write_text(
        "from cvkit import MODELS\n\n@MODELS.register('same')\ndef one(): pass\n\n"
        "@MODELS.register('same')\ndef two(): pass\n")
    with pytest.raises(ConfigError, match="^a.yaml:3 IMPORTS: two models named 'same'"):
        import_user_code(["twice.py"], where="a.yaml:3 IMPORTS")
    assert "twice" not in sys.modules


def test_an_argument_of_what_the_library_has_under_that_name_is_told():
    with pytest.raises(ConfigError, match="model resnet18 has no argument 'weights'\n  torchvision.models.resnet18 has it, "
                                          "another resnet18. Of this one: Allowed: "):
        MODELS.build({"NAME": "resnet18", "weights": "DEFAULT"})


def test_a_lambda_needs_a_name(monkeypatch):
    monkeypatch.setattr("cvkit.registry.registry.REGISTRIES", {})
    toy = Registry("nameless toy", "cvkit.errors")
    with pytest.raises(ConfigError, match=r"a nameless toy without a name: .*test_registry.py:\d+"):
        toy.register()(lambda: 1)
    toy.register("one")(lambda: 1)
    assert toy.build("one") == 1


@pytest.mark.parametrize("name, is_told", [("Net", True), ("convnet", True), ("resnet81", False), ("ResNet-18", False)])
def test_the_way_to_one_s_own_is_told_unless_a_name_is_misspelt(name, is_told):
    with pytest.raises(ConfigError) as caught:
        MODELS.get(name)
    assert ("One of your own: register() above it, and its file in IMPORTS" in caught.value.hint) == is_told


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_arguments_of_a_module_without_a_constructor_are_refused(monkeypatch, is_wrapped):
    if is_wrapped:
        own = nn.Module.__init__
        monkeypatch.setattr(nn.Module, "__init__", lambda self, *args, **kwargs: own(self, *args, **kwargs))

    @LOSSES.register()
    class Bare(nn.Module):
        pass

    @LOSSES.register()
    class Passing(nn.Module):
        def __init__(self, **arguments):
            super().__init__(**arguments)

    with pytest.raises(ConfigError, match="loss Bare has no argument 'gama'"):
        LOSSES.build({"NAME": "Bare", "gama": 3})
    with pytest.raises(TypeError, match="unexpected keyword argument 'gama'"):  # where it is, the traceback says
        LOSSES.build({"NAME": "Passing", "gama": 3})
    assert isinstance(LOSSES.build("Bare"), Bare)


def test_the_overview_shows_own_names_with_summaries_and_the_library():
    text = overview(MODELS)
    assert "resnet18    ResNet-18 for small images" in text
    assert "from torchvision.models: alexnet," in text


# -- what holds for all names and arguments ------------------------------------------------

same_each_time = settings(derandomize=True, deadline=None, database=None, max_examples=100,
                          suppress_health_check=[HealthCheck.too_slow])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["NAME", "size", "p", "x"]), inner, max_size=3), max_leaves=6)


@pytest.fixture(scope="module")
def toys():
    registry = Registry("toys of a module", "cvkit.errors", offers=("num_classes",))

    @registry.register()
    def strict(size: int, fill: float | list[float] = 0, mode: str = "a", num_classes=None):
        if size < 0:
            raise ValueError(f"size is 0 or more, not {size}")
        return size, fill, mode, num_classes

    @registry.register()
    def open_to_all(**arguments):
        return arguments

    yield registry
    del REGISTRIES["toys of a module"]


@same_each_time
@given(st.lists(st.text(min_size=1, max_size=20), unique=True, min_size=1, max_size=8), st.data())
def test_what_is_registered_is_found_and_what_is_misspelt_is_suggested(names, data):
    registry = Registry("toy", "cvkit.errors")
    for number, name in enumerate(names):
        registry.register(name)(lambda number=number: number)
    assert registry.own == sorted(names) and len(registry) == len(names)
    assert [registry.build({"NAME": name}) for name in names] == list(range(len(names)))
    meant = data.draw(st.sampled_from(names))
    place = data.draw(st.integers(0, len(meant)))
    misspelt = meant[:place] + "~" + meant[place:]
    if misspelt not in registry:
        with pytest.raises(ConfigError) as caught:
            registry.get(misspelt)
        assert meant in caught.value.hint and "Allowed: " in caught.value.hint
    del REGISTRIES["toy"]


@same_each_time
@given(st.dictionaries(st.sampled_from(["size", "fill", "mode", "num_classes", "sise", "NAME", ""]),
                       values, max_size=4), st.sampled_from(["strict", "open_to_all", "strit"]))
def test_any_arguments_build_or_are_one_error(toys, arguments, name):
    node = {"NAME": name, **{key: value for key, value in arguments.items() if key != "NAME"}}
    try:
        built = toys.build(node, num_classes=7)
    except ConfigError as error:
        assert str(error).strip()
        return
    if name == "strict":
        assert built == (node["size"], node.get("fill", 0), node.get("mode", "a"),
                         node.get("num_classes", 7)) or "nan" in repr(built)
    else:
        assert {**built, "NAME": name} == node or "nan" in repr(node)


@same_each_time
@given(values)
def test_no_value_is_too_odd_to_be_checked(value):
    for registry, name in ((OPTIMIZERS, "AdamW"), (TRANSFORMS, "OneOf"), (SCHEDULERS, "OneCycleLR"),
                           (LOSSES, "CrossEntropyLoss"), (VISUALIZERS, "cam_matrix")):
        try:
            registry.check({"NAME": name, **dict.fromkeys(parameters_of(registry.get(name))[0], value)})
        except ConfigError as error:
            assert str(error).strip()
