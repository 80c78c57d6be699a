"""The structure that the design promises, read from the code itself."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

import cvkit

FLOORS = [  # a module imports from lower floors only; within a floor only what is listed below
    {"errors", "files", "registry", "config", "distributed"},
    {"data", "models", "losses", "optimizers", "schedulers", "metrics", "writers", "ema",
     "hardware", "log", "signals"},
    {"checkpoint", "experiment", "run", "evaluation", "requirements",
     "lr_finder", "resume", "results", "sanity", "trial"},
    {"trainer", "visualizers"},
    {"benchmark"},
]
WITHIN = {("errors", "distributed"), ("data", "log"), ("data", "hardware"), ("registry", "distributed"), ("files", "errors"), ("registry", "files"), ("config", "files"), ("registry", "errors"), ("config", "errors"), ("config", "registry"),
          ("run", "checkpoint"), ("run", "experiment"), ("evaluation", "run"),
          ("evaluation", "checkpoint"), ("requirements", "experiment"), ("requirements", "run"),
          ("run", "lr_finder"), ("resume", "run"), ("results", "run"), ("optimizers", "hardware"), ("models", "hardware"),
          ("trial", "checkpoint"), ("trial", "evaluation"), ("trial", "sanity")}
MODULES = sorted((ROOT / "cvkit").rglob("*.py"))


def part_of(path_or_module):
    """Return "data" for cvkit/data/images.py and for cvkit.data.images."""
    parts = str(path_or_module).replace("/", ".").removesuffix(".py").split(".")
    after = parts[len(parts) - parts[::-1].index("cvkit"):]
    return after[0] if after else "__init__"


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cvkit."):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("cvkit."))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    here = part_of(path.relative_to(ROOT))
    for module in imports_of(path):
        there = part_of(module)
        if here not in ("__init__", there):
            assert floor[there] < floor[here] or (here, there) in WITHIN, f"{path} imports {module}"


def test_every_module_is_covered():
    assert len(MODULES) >= 23
    known = set().union(*FLOORS) | {"__init__"}
    assert {part_of(path.relative_to(ROOT)) for path in MODULES} <= known


def _text_without_encoding(path):
    """Yield the lines of a file that open text in whatever encoding the machine has."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        mode = given.get("mode") or ([*node.args[name in ("open", "gzip.open"):], None])[0]
        is_file = name.endswith((".read_text", ".write_text", ".fdopen", "TextIOWrapper")) or (
            name.split(".")[-1] == "open" and name not in ("Image.open", "archive.open", "os.open")
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
    assert len(path.read_text().splitlines()) <= 60


def test_every_test_file_mirrors_a_module_or_a_folder():
    stems = {path.stem for path in MODULES} | {path.parent.name for path in MODULES}
    stems |= {"layout", "tools", "configs", "mistakes", "readme", "notebooks", "docs", "kill",
              "faults", "hostile", "fuzz", "own_parts"}
    for path in (ROOT / "tests").glob("test_*.py"):
        assert path.stem.removeprefix("test_") in stems


def test_import_cvkit_is_light():
    code = ("import sys, cvkit; from cvkit import MODELS, load_config; "
            "print(sorted({name.split('.')[0] for name in sys.modules}))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("torch", "torchvision", "albumentations", "pytorch_grad_cam", "matplotlib",
                  "numpy", "cv2", "sklearn", "tensorboard"):
        assert f"'{heavy}'" not in done.stdout


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
