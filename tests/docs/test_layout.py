"""The structure that the design promises, read from the code itself."""

import ast
import graphlib
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT

import cvkit

FLOORS = [  # a part imports from lower floors only; within a floor only what is listed below
    {"errors", "system", "registry", "config"},
    {"data", "models", "training.losses", "training.muon", "training.optimizers", "training.schedulers",
     "training.ema", "training.signals", "evaluation.metrics"},
    {"runs", "evaluation"},
    {"training", "reporting", "visualizers", "deployment"},
    {"session"},
    {"repeat"},
    {"sweep"},
    {"cli", "__main__"},
]
WITHIN = {("system", "errors"), ("registry", "errors"), ("registry", "system"),
          ("config", "errors"), ("config", "system"), ("config", "registry"),
          ("evaluation", "runs"), ("training.optimizers", "training.muon"), ("reporting", "visualizers"), ("reporting", "training"),
          ("deployment", "visualizers"), ("reporting", "deployment"), ("__main__", "cli")}
MODULES = sorted((ROOT / "cvkit").rglob("*.py"))


def name_of(path):
    """Return "cvkit.data.images" for cvkit/data/images.py, and "cvkit.data" for its __init__."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = set(map(name_of, MODULES))
ARCHITECTURE = runpy.run_path(str(ROOT / "docs" / "architecture.py"))


def part_of(module):
    """Return the entry of FLOORS that a module belongs to: "data" for cvkit.data.images."""
    inner = module.removeprefix("cvkit").removeprefix(".")
    known = set().union(*FLOORS)
    return inner if inner in known else inner.split(".")[0]


def imports_of(path):
    """Yield the modules of cvkit that a file imports, wherever in it."""
    return (name if name in NAMES else name.rpartition(".")[0]
            for name in ARCHITECTURE["imported"](path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path):
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    here = part_of(name_of(path))
    for module in imports_of(path):
        there = part_of(module)
        if here and there and here != there:
            assert floor[there] < floor[here] or (here, there) in WITHIN, f"{path} imports {module}"


def test_no_modules_import_each_other_in_a_circle():
    """Packages apart, which only hand names on."""
    packages = {name_of(path) for path in MODULES if path.name == "__init__.py"}
    graph = {name_of(path): set(imports_of(path)) - packages for path in MODULES}
    list(graphlib.TopologicalSorter(
        {name: used for name, used in graph.items() if name not in packages}).static_order())


def test_every_module_is_covered():
    assert len(MODULES) >= 75
    assert {part_of(name) for name in NAMES} <= set().union(*FLOORS) | {""}


def _text_without_encoding(path):
    """Yield the lines of a file that open text in whatever encoding the machine has."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        mode = given.get("mode") or ([*node.args[name in ("open", "gzip.open"):], None])[0]
        is_file = name.endswith((".read_text", ".write_text", ".fdopen", "TextIOWrapper")) or (
            name.split(".")[-1] == "open"
            and name not in ("Image.open", "archive.open", "os.open", "tarfile.open")
            and not (isinstance(mode, ast.Constant) and "b" in str(mode.value)))
        if (is_file or {"text", "universal_newlines"} & set(given)) and "encoding" not in given:
            yield node.lineno


@pytest.mark.parametrize("path", [*MODULES, *(ROOT / "tools").glob("*.py"), ROOT / "setup.py"],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_utf_8_on_every_machine(path):
    assert list(_text_without_encoding(path)) == []


def test_text_without_an_encoding_is_noticed(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("""
path.read_text(); path.open("a"); open("b"); os.fdopen(3, mode="w"); subprocess.run([], text=True)
path.read_text(encoding="utf-8"); path.open("rb"); open("x", mode="wb"); Image.open("y")
""")
    assert list(_text_without_encoding(path)) == [2] * 5


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.name)
def test_tools_are_thin(path):
    assert len(path.read_text().splitlines()) <= (60 if path.stem == "benchmark" else 6)


def test_each_part_is_tested_in_a_file_of_its_name():
    """That of cvkit/data/images.py is tests/unit/data/test_images.py; one for a folder is inside."""
    unit = ROOT / "tests" / "unit"
    for path in unit.rglob("*.py"):
        folder, name = path.parent.relative_to(unit), path.stem.removeprefix("test_")
        assert ROOT / "cvkit" / folder / f"{name}.py" in MODULES or name == folder.name, path


def test_tests_lie_in_folders_that_say_what_they_test_under_names_that_differ():
    tests = ROOT / "tests"
    names = [path.name for path in tests.rglob("test_*.py")]
    assert len(names) == len(set(names)) > 60
    folders = {path.relative_to(tests).parts[0] for path in tests.rglob("test_*.py")}
    assert folders == {"unit", "runs", "hostile", "docs"}


def test_import_cvkit_is_light():
    code = ("import sys, cvkit; from cvkit import MODELS, load_config; "
            "print(sorted({name.split('.')[0] for name in sys.modules}))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("torch", "torchvision", "albumentations", "pytorch_grad_cam", "matplotlib",
                  "numpy", "cv2", "sklearn", "tensorboard"):
        assert f"'{heavy}'" not in done.stdout


PUBLIC = {
    "Config", "load_config", "Registry", "DATASETS", "TRANSFORMS", "MODELS", "LOSSES", "OPTIMIZERS",
    "SCHEDULERS", "METRICS", "WRITERS", "VISUALIZERS", "UserError", "DataError", "ImageData",
    "ImageFiles", "ImageSet", "build_data", "build_model", "Experiment", "Run", "Runs", "open_run",
    "evaluate", "runs_folder", "Trainer", "train", "write_report", "__version__"}


def test_what_is_public_stays_public():
    assert set(cvkit.__all__) >= PUBLIC


@pytest.mark.parametrize("name", cvkit.__all__)
def test_public_names_exist_and_are_documented(name):
    value = getattr(cvkit, name)
    assert isinstance(value, str) or value.__doc__


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cvkit.nothing  # noqa: B018


def test_albumentations_does_not_phone_home():
    import os

    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"
