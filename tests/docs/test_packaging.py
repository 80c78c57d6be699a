"""What an installation holds, and what pyproject.toml says of it."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import cvkit
from cvkit.system.command import SOURCE

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CHANGES = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package as pip builds it, from a copy: nothing is left in the clone."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools 77 builds the package")
    folder = tmp_path_factory.mktemp("source")
    for name in ("cvkit", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    code = "import setuptools.build_meta as build; build.build_sdist('.'); build.build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        yield archive


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}


def test_an_installation_holds_every_file_of_the_package_the_configs_and_no_tests(wheel):
    installed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    configs = {f"cvkit/configs/{name}" for name in files_of(ROOT / "configs")}
    assert installed == configs | {f"cvkit/{name}" for name in files_of(ROOT / "cvkit")}
    assert {"cvkit/py.typed", "cvkit/reporting/templates/report.html.j2",
            "cvkit/configs/resnet18_digits.yaml", "cvkit/configs/_base_/runtime.yaml"} <= installed


def test_the_archive_of_sources_holds_what_a_wheel_is_built_of(wheel):
    archive, = Path(wheel.filename).parent.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    for folder in ("cvkit", "configs"):
        assert {f"{folder}/{name}" for name in files_of(ROOT / folder)} <= names
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Run Python in an empty folder that has the wheel's cvkit and not that of the clone."""
    place, folder = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("empty")
    wheel.extractall(place)

    def run(*words):
        done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(place)})
        return done.returncode, done.stdout, done.stderr
    return run


def test_what_is_installed_knows_its_configs_and_says_what_to_type(installed):
    code, out, err = installed("-m", "cvkit", "train", "--list")
    names = [path.stem for path in sorted((ROOT / "configs").glob("*.yaml"))]
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == names, err
    code, out, err = installed("-m", "cvkit", "train", "resnet18_digits", "--print-config")
    assert code == 0 and "SEED: 0  # cvkit://_base_/runtime.yaml:2" in re.sub(" +#", "  #", out), err
    code, _, err = installed("-m", "cvkit", "evaluate")
    assert (code, err) == (2, "error: no run with a checkpoint in runs/\n  Train one: cvkit train CONFIG\n")
    code, _, err = installed("-c", "import cvkit; cvkit.open_run()")
    assert code == 1 and err.endswith("\n  Train one: cvkit train CONFIG\n")


def test_the_command_is_the_one_of_the_package_and_its_address_that_of_the_project(wheel):
    name = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert wheel.read(name).decode() == "[console_scripts]\ncvkit = cvkit.cli.main:main\n"
    assert f'\nSource = "{SOURCE}"\n' in PROJECT


def test_its_metadata_are_those_of_the_project(wheel):
    name = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    metadata = wheel.read(name).decode()
    assert f"\nVersion: {cvkit.__version__}\n" in metadata
    assert "\nRequires-Dist: torch>=2.8\n" in metadata and "\nLicense-Expression: MIT\n" in metadata
    assert {"demo", "dev", "docs", "export", "mlflow", "sweep", "timm", "wandb"} == set(re.findall(r"^Provides-Extra: (\w+)", metadata, re.M))


def test_every_dependency_has_a_lowest_version_that_is_tested():
    """The CI installs the lowest: `torch>=2.8` and nothing before the first `>=`."""
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", PROJECT, re.M | re.S).group(1)
    for line in listed.splitlines():
        assert re.fullmatch(r'    "[\w-]+>=[\d.]+(,<[\d.]+)?",(  # .+)?', line)


def test_the_newest_version_in_the_changelog_is_this_one():
    newest, said = re.search(r"^## (\S+) - (.+)$", CHANGES, re.M).groups()
    assert newest == re.sub(r"\.dev\d+$", "", cvkit.__version__)
    assert (said == "unreleased") == (".dev" in cvkit.__version__)
