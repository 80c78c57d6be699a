"""The command `cvkit`, as a user types it where there is no clone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import cvkit
from cvkit.cli.main import COMMANDS, main
from cvkit.runs.folder import open_run


@pytest.fixture
def cvkit_command(capsys, monkeypatch):
    """Run `cvkit` in this process: `cvkit_command("train", "--list")` returns (code, out, err)."""
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["/venv/bin/cvkit", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code or 0, *capsys.readouterr()
    return run


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=str)
def test_help_is_light_and_speaks_of_the_command(words):
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "cvkit", *words, "--help"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and "tools/" not in done.stdout
    assert done.stdout.startswith(" ".join(["usage: cvkit", *words, ""]))
    assert " ".join(["cvkit", *words, ""]) in done.stdout.partition("\n")[2]
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "cvkit.errors" in imported
    assert not {"torch", "numpy", "torchvision", "albumentations", "matplotlib"} & imported


def test_without_a_command_they_are_listed(cvkit_command):
    for words in ([], ["-h"], ["--help"]):
        code, out, _ = cvkit_command(*words)
        assert code == 0 and re.findall(r"^  ([a-z-]+)  ", out, re.MULTILINE) == list(COMMANDS)
        assert "  train       Train what a config describes.\n" in out
    assert cvkit_command("--version") == (0, f"cvkit {cvkit.__version__}\n", "")


@pytest.mark.parametrize("words, expected", [
    (["trian"], "error: no command 'trian'\n  Did you mean train? Allowed: train, "),
    (["find_lr"], "Did you mean find-lr?"), (["--list"], "no command '--list'"),
    (["train"], "usage: cvkit train [-h]"), (["train"], "such as resnet18_digits"),
    (["train", "--list", "vit_cifar10"], "cvkit train: error: --list stands alone\n"),
    (["train", "resnt18_digits"], "Did you mean resnet18_digits?"),
    (["train", "resnet18_digits", "--lst"], "Did you mean --list?"),
    (["find-lr", "resnt18_digits"], "Did you mean resnet18_digits?"),
    (["visualize", "resnt18_digits", "--dataset"], "Did you mean resnet18_digits?"),
    (["visualize", "--run", "x", "resnet18_digits"], "both a run and the config resnet18_digits"),
    (["config", "resnt18_digits"], "cvkit has no config named 'resnt18_digits'\n  Did you mean resnet18_digits?"),
    (["evaluate"], "Train one: cvkit train CONFIG"),
    (["registry", "SGD"], "It is an optimizer: cvkit registry optimizer SGD"),
    (["completion", "fish"], "invalid choice: 'fish'")])
def test_a_mistake_is_one_message_that_names_the_command(cvkit_command, words, expected):
    code, out, err = cvkit_command(*words)
    assert code == 2 and expected in err and "tools/" not in err and not out


def test_several_processes_are_for_training(cvkit_command, monkeypatch):
    """On one machine or on several."""
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "1"),
                        ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    code, _, err = cvkit_command("registry")
    assert code == 2 and "cvkit registry runs in one process\n  torchrun is for cvkit train." in err


def test_from_a_config_of_cvkit_to_pictures(cvkit_command):
    small = ["TRAIN.EPOCHS", 1, "DATA.LIMIT", 100, "MODEL.width", 4]
    code, out, err = cvkit_command("train", "resnet18_digits", *small)
    assert code == 0, err
    run = open_run()
    assert run.folder.parent == Path("runs/resnet18_digits")
    assert out.splitlines()[-2:] == [f"Per class: cvkit evaluate --run {run.folder}",
                                     f"Pictures:  cvkit visualize --run {run.folder}"]
    header = (run.folder / "config.yaml").read_text().splitlines()[1]
    assert header == f"# Repeat it: cvkit train {run.folder}/config.yaml"
    assert cvkit_command("train", "resnet18_digits", "--resume", *small)[1].startswith(
        f"{run.folder} is finished")
    assert cvkit_command("evaluate")[1].splitlines()[0] == f"run {run.folder}"
    assert cvkit_command("visualize", "--misclassified", 5)[1].splitlines()[1] == (
        f"{run.folder}/visuals/misclassified.png")
    code, out, err = cvkit_command("visualize", "--samples", "resnet18_digits", "DATA.LIMIT", 50)
    assert code == 0 and out.startswith("runs/resnet18_digits/visuals/samples.png"), err


def test_a_copy_of_a_config_is_in_utf_8_whatever_the_system_writes():
    """As `>` of Windows does, whose code pages hold a × that is not UTF-8's."""
    done = subprocess.run([sys.executable, "-m", "cvkit", "config", "resnet18_digits"], capture_output=True,
                          env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT)}, check=True)
    assert "×" in done.stdout.decode("utf-8")


def test_a_copy_of_a_config_is_tried_in_an_empty_folder(cvkit_command):
    _, text, _ = cvkit_command("config", "resnet18_digits")
    Path("mine.yaml").write_text(text)
    code, out, err = cvkit_command("train", "mine.yaml", "--check", "MODEL.width", 4)
    assert code == 0 and "All is well" in out and f"cvkit {cvkit.__version__}  mine " in out, err
