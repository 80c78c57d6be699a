import sys
from pathlib import PureWindowsPath

import pytest

from cvkit.system.command import as_called_here, command, quoted


@pytest.mark.parametrize("started, train, find_lr", [
    ("/venv/bin/cvkit", "cvkit train", "cvkit find-lr"),
    ("/venv/lib/cvkit/__main__.py", "cvkit train", "cvkit find-lr"),
    ("clone/tools/train.py", "python tools/train.py", "cvkit find-lr"),  # find_lr.py is not there
    ("clone/tools/find_lr.py", "python tools/train.py", "cvkit find-lr"),
    ("/venv/lib/ipykernel_launcher.py", "cvkit train", "cvkit find-lr"),
    ("", "cvkit train", "cvkit find-lr"), ("-c", "cvkit train", "cvkit find-lr")])
def test_it_is_what_the_process_was_started_with(started, train, find_lr, tmp_path, monkeypatch):
    (tmp_path / "clone" / "tools").mkdir(parents=True)
    (tmp_path / "clone" / "tools" / "train.py").touch()
    monkeypatch.setattr(sys, "argv", [started, "a.yaml"])
    assert (command("train"), command("find-lr")) == (train, find_lr)


def test_a_notebook_in_a_clone_is_told_of_its_files_and_an_installed_command_of_itself(
        tmp_path, monkeypatch):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "find_lr.py").touch()
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py"])
    assert command("find-lr") == "python tools/find_lr.py"
    monkeypatch.setattr(sys, "argv", ["/venv/bin/cvkit"])
    assert command("find-lr") == "cvkit find-lr"


def test_torchrun_starts_either(monkeypatch):
    assert command("train", 2) == "torchrun --nproc-per-node=2 tools/train.py"
    monkeypatch.setattr(sys, "argv", ["/venv/lib/cvkit/__main__.py"])
    assert command("train", 2) == "torchrun --nproc-per-node=2 -m cvkit train"


def test_examples_are_those_of_the_clone_or_of_the_command(monkeypatch):
    text = "python tools/find_lr.py configs/resnet18_digits.yaml --steps 9; keep configs/mine.yml"
    assert as_called_here(text) == text
    monkeypatch.setattr(sys, "argv", ["/venv/bin/cvkit"])
    assert as_called_here(text) == "cvkit find-lr resnet18_digits --steps 9; keep configs/mine.yml"


def test_a_path_is_quoted_as_the_shell_there_takes_it(monkeypatch):
    words = ["runs/my net/config.yaml", "--resume", "runs/net"]
    monkeypatch.setattr(sys, "platform", "linux")
    assert quoted(*words) == "'runs/my net/config.yaml' --resume runs/net"
    monkeypatch.setattr(sys, "platform", "win32")
    assert quoted(*words) == '"runs/my net/config.yaml" --resume runs/net'
    assert quoted(PureWindowsPath("runs/net/2026")) == r"runs\net\2026"
