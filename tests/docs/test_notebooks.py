"""The notebooks: imports and calls only, and they run from top to bottom."""

import ast
import base64
import io
import os
import re

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from PIL import Image

from cvkit.runs.finding import find_runs
from cvkit.runs.folder import open_run

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = '''CONFIG = "configs/resnet18_digits.yaml"
CHANGES = {"DATA.LIMIT": 100, "TRAIN.EPOCHS": 2, "MODEL.width": 8, "WRITERS": []}'''


def code_of(cell):
    """Return a cell's Python, with `pass` in place of what is the shell's or IPython's."""
    return re.sub(r"^( *)[!%].*", r"\1pass", cell.source, flags=re.M)


def cells_of(notebook, kind="code"):
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def tagged(notebook, tag):
    cell, = (cell for cell in notebook.cells if tag in cell.metadata.get("tags", []))
    return cell


def test_no_notebook_is_lost():
    assert [path.name for path in NOTEBOOKS] == ["resnet18_cifar10.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_defines_nothing_and_keeps_no_output(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in cells_of(notebook):
        for node in ast.walk(ast.parse(code_of(cell))):
            assert not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef,
                                         ast.Lambda)), cell.source
        assert not cell.outputs and cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_opens_in_colab_and_installs_itself(path):
    notebook = nbformat.read(path, as_version=4)
    url = re.search(r'^Source = "https://github\.com/([\w.-]+/[\w.-]+)"', (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    first = cells_of(notebook, "markdown")[0].source
    assert (f"https://colab.research.google.com/github/{url}/blob/main/notebooks/{path.name}") in first
    setup = tagged(notebook, "setup").source
    assert re.findall(r"^ *([!%].*)", setup, re.M) == [
        f"!git clone -q https://github.com/{url}", f"%cd {url.split('/')[1]}", "%pip install -q -e ."]
    assert cells_of(notebook)[0] == tagged(notebook, "setup")
    assert f'CONFIG = "configs/{path.stem}.yaml"' in tagged(notebook, "parameters").source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_its_setup_ends_in_the_clone_however_often_it_is_run(path, tmp_path, monkeypatch):
    git = tmp_path / "bin" / "git"  # in place of the network: clones what a clone begins with
    git.parent.mkdir()
    git.write_text('#!/bin/sh\necho "$@" >> git.log\n'
                   'mkdir -p cvkit/cvkit && touch cvkit/setup.py cvkit/cvkit/__init__.py\n')
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{git.parent}:{os.environ['PATH']}")
    notebook = nbformat.read(path, as_version=4)
    setup = tagged(notebook, "setup").source.replace("%pip install -q -e .",
                                                     "print(os.getcwd() + '/' + 'setup.py')")
    restart = f"os.chdir({str(tmp_path)!r})"  # where a new kernel begins
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in (setup, setup, restart, setup)]
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for cell in notebook.cells:
        printed = "".join(output.get("text", "") for output in cell.outputs)
        assert cell.source == restart or f"{tmp_path}/cvkit/setup.py" in printed
    assert (tmp_path / "git.log").read_text().count("clone") == 1
    assert not (tmp_path / "cvkit" / "git.log").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_runs_from_top_to_bottom_and_a_second_time_opens_what_it_trained(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    for name in ("configs", "cvkit"):  # in place of the clone; cvkit is installed
        (tmp_path / "cvkit").mkdir(exist_ok=True)
        (tmp_path / "cvkit" / name).symlink_to(ROOT / name)
    tagged(notebook, "setup").source = "%cd cvkit"
    tagged(notebook, "parameters").source = SMALL
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = {cell.source: cell.outputs for cell in cells_of(notebook)}

    def pictures(call):
        cell, = (source for source in outputs if call in source)
        return [Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
                for output in outputs[cell] if "image/png" in output.get("data", {})]

    def text(call):
        cell, = (source for source in outputs if call in source)
        return "".join(output.get("text", "") for output in outputs[cell])

    for name in ("samples", "curves", "misclassified", "cam", "confusion"):
        picture, = pictures(f'visualize("{name}"')  # exactly one, inline
        assert min(picture.size) > 300
    runs = tmp_path / "cvkit" / "runs"
    folder, = find_runs(runs)
    run = open_run(folder)
    assert f"Accuracy: {run.predictions.correct}/100" in text("cvkit.train(")
    assert "Runs are kept in runs/" in text("runs_folder()")
    assert (folder / "report.html").is_file() and len(run.metrics) == 2

    # Up to where it opens the run; the rest draws the same again.
    notebook.cells = notebook.cells[:1 + next(
        number for number, cell in enumerate(notebook.cells) if "cvkit.train(" in cell.source)]
    for cell in cells_of(notebook):
        cell.outputs = []
    client.execute()
    outputs = {cell.source: cell.outputs for cell in cells_of(notebook)}
    assert find_runs(runs) == [folder] and "is finished: 2 epochs" in text("cvkit.train(")
