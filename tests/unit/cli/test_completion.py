"""Completion, by the function that bash calls."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cvkit.cli.completion import candidates
from cvkit.cli.main import COMMANDS
from cvkit.config.schema import KEYS
from cvkit.config.shipped import names


@pytest.fixture
def complete(tmp_path):
    """What bash offers for the last of a command line's words."""
    path = tmp_path / "bin" / "cvkit"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -X importtime -m cvkit "$@" 2>>imported\n')
    path.chmod(0o755)

    def run(*words):
        script = (f"eval \"$(cvkit completion bash)\"; complete -p cvkit; COMP_WORDS=({shlex.join(words)}); "
                  f"COMP_CWORD={len(words) - 1}; COMP_LINE={shlex.quote(shlex.join(words))}; _cvkit cvkit; "
                  "printf '%s\\n' \"${COMPREPLY[@]}\"")
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={
            **os.environ, "PATH": f"{path.parent}:{os.environ['PATH']}"})
        first, *offered = done.stdout.splitlines()
        assert first == "complete -o default -F _cvkit cvkit" and not done.stderr
        return list(filter(None, offered))
    return run


def test_bash_completes_commands_flags_configs_and_keys_without_torch(complete):
    assert complete("cvkit", "") == sorted(COMMANDS)
    assert complete("cvkit", "train", "resnet18_d") == ["resnet18_digits"]
    assert complete("cvkit", "train", "resnet18_digits", "TRAIN.EPO") == ["TRAIN.EPOCHS"]
    assert complete("cvkit", "visualize", "--cam") == [
        "--cam", "--cam-average", "--cam-faithfulness", "--cam-matrix", "--cam-method"]
    imported = {line.split("|")[-1].strip() for line in Path("imported").read_text().splitlines()}
    assert "cvkit.cli.main" in imported and not {"torch", "numpy", "matplotlib"} & imported


@pytest.mark.parametrize("words, expected", [
    ([""], sorted(COMMANDS)), (["e"], ["evaluate", "export"]), (["trian", ""], []),
    (["train", "--"], ["--check", "--folds", "--help", "--list", "--print-config", "--repeats", "--resume",
                       "--seeds"]),
    (["train", "--check", "vit"], ["vit_cifar10"]),
    (["train", ""], sorted([*names(), "my.yaml"])), (["train", "m"], ["mobilenet_v3_cifar10", "my.yaml"]),
    (["train", "my.yaml", "SE"], ["SEED"]), (["train", "my.yaml", "m"], []),
    (["train", "resnet18_digits", ""], sorted(KEYS)),
    (["train", "resnet18_digits", "SEED", ""], []), (["train", "vit_cifar10", "SEED", "1", "DEV"], ["DEVICE"]),
    (["evaluate", "DATA.LI"], ["DATA.LIMIT"]), (["evaluate", "res"], []),
    (["visualize", "TRAIN.EPO"], ["TRAIN.EPOCHS"]), (["visualize", "resnet9"], ["resnet9_cifar10"]),
    (["compare", "--n"], ["--note"]), (["config", "vit"], ["vit_cifar10"]), (["registry", "res"], [])])
def test_what_a_word_can_become(words, expected):
    Path("my.yaml").touch()
    assert candidates(words) == expected


def test_zsh_takes_the_function_of_bash(capsys):
    from cvkit.cli.completion import main

    main(["bash"])
    bash = capsys.readouterr().out
    main(["zsh"])
    assert capsys.readouterr().out == f"autoload -U +X bashcompinit && bashcompinit\n{bash}"
