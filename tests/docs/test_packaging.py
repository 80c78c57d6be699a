"""What an installation holds, and what pyproject.toml says of it."""

import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

import cvkit

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CHANGES = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package as pip builds it, from a copy: nothing is left in the clone."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools 77 builds the package")
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "cvkit", folder / "cvkit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    code = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        yield archive


def test_an_installation_holds_every_file_of_the_package(wheel):
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cvkit").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == ours
    assert {"cvkit/py.typed", "cvkit/reporting/templates/report.html.j2"} <= shipped


def test_its_metadata_are_those_of_the_project(wheel):
    name = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    metadata = wheel.read(name).decode()
    assert f"\nVersion: {cvkit.__version__}\n" in metadata
    assert "\nRequires-Dist: torch>=2.8\n" in metadata and "\nLicense-Expression: MIT\n" in metadata
    assert {"dev", "docs"} == set(re.findall(r"^Provides-Extra: (\w+)", metadata, re.M))


def test_every_dependency_has_a_lowest_version_that_is_tested():
    """The CI installs the lowest: `torch>=2.8` and nothing before the first `>=`."""
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", PROJECT, re.M | re.S).group(1)
    for line in listed.splitlines():
        assert re.fullmatch(r'    "[\w-]+>=[\d.]+(,<[\d.]+)?",(  # .+)?', line)


def test_the_newest_version_in_the_changelog_is_this_one():
    newest, said = re.search(r"^## (\S+) - (.+)$", CHANGES, re.M).groups()
    assert newest == re.sub(r"\.dev\d+$", "", cvkit.__version__)
    assert (said == "unreleased") == (".dev" in cvkit.__version__)
