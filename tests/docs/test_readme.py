"""What the README says holds."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

from cvkit.cli.main import main
from cvkit.config import SCHEMA, check_components, load_config
from cvkit.registry import VISUALIZERS
from cvkit.runs.folder import open_run
from cvkit.system.command import SOURCE

TEXT = (ROOT / "README.md").read_text()
BLOCKS = {kind: re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)
          for kind in ("bash", "yaml", "python", "sh")}


def test_it_has_the_blocks_that_are_tested_here():
    assert {kind: len(blocks) for kind, blocks in BLOCKS.items()} == {
        "bash": 8, "yaml": 2, "python": 3, "sh": 1}
    first, second = BLOCKS["bash"][:2]  # run by the continuous integration, to the letter
    assert first.startswith("pip install -e . && python tools/train.py configs/")
    assert second.startswith('pip install -e ".[dev]" && python -m pytest')


def test_its_commands_without_a_clone_find_what_they_name(capsys, monkeypatch):
    """In an empty folder; the continuous integration runs such with a wheel."""
    first, *commands = BLOCKS["sh"][0].splitlines()
    assert first == f"pip install git+{SOURCE}" and len(commands) == 5
    for command in commands:
        words, _, target = command.partition(" > ")
        words = shlex.split(words)
        if words[:2] == ["cvkit", "visualize"]:
            continue  # needs a run
        more = [] if "--list" in words or target else ["--print-config"]
        monkeypatch.setattr(sys, "argv", [f"/venv/bin/{words[0]}", *words[1:], *more])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        assert not caught.value.code and not err
        if target:
            Path(target).write_text(out)
    assert re.search("norm: layer +# command line$", out, re.MULTILINE) and "width: 16  " in out


def test_files_it_names_exist():
    for name in re.findall(r"(?:configs|tools|cvkit)/[\w/]+\.(?:yaml|py)", TEXT):
        assert (ROOT / name).is_file() or (ROOT / "configs" / name).is_file(), name


def test_keys_it_names_exist():
    for group, key in re.findall(r"\b(DATA|TRAIN)\.([A-Z_]+)\b", TEXT):
        assert key in SCHEMA[group]


def test_its_config_reads(tmp_path):
    (tmp_path / "_base_").symlink_to(ROOT / "configs" / "_base_")
    (tmp_path / "readme.yaml").write_text(BLOCKS["yaml"][1])
    config = load_config(tmp_path / "readme.yaml", ["DATA.TRAIN_TRANSFORMS.2.size", "8"])
    assert config.MODEL.norm == "layer" and config.DATA.BATCH_SIZE == 256
    check_components(config)


def test_its_config_for_own_images_takes_images_of_any_size(tmp_path, tool):
    for number in range(12):
        for name in "ab":
            (tmp_path / "my_images" / name).mkdir(parents=True, exist_ok=True)
            Image.radial_gradient("L").resize((40 + number, 50)).save(
                tmp_path / "my_images" / name / f"{number}.png")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mine.yaml").write_text(BLOCKS["yaml"][0])
    code, out, err = tool("train.py", "mine.yaml", "--check", "MODEL.width", "16")
    assert code == 0 and "3×64×64" in out and "note " not in out, err


def test_the_model_in_five_lines_trains(tmp_path, tool):

    code, command = BLOCKS["python"][0], BLOCKS["bash"][7]
    assert len([line for line in code.splitlines() if line and not line.startswith("#")]) == 5
    (tmp_path / "my_model.py").write_text(code)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    words = shlex.split(command)
    assert words[:2] == ["python", "tools/train.py"]
    exit_code, _, err = tool("train.py", *words[2:], "TRAIN.EPOCHS", "3")
    assert exit_code == 0, err
    assert open_run().predictions.accuracy > 0.7  # a linear model does well on digits


def test_its_python_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    code = BLOCKS["python"][2].replace('{"TRAIN.EPOCHS": 2}',
                                       '{"TRAIN.EPOCHS": 2, "DATA.LIMIT": 100}')
    exec(compile(code, "README.md", "exec"), {})
    trained, tested = map(float, capsys.readouterr().out.splitlines()[-1].split())
    run = open_run()
    assert (trained, tested) == (run.metrics[-1]["train/accuracy"], run.predictions.accuracy)


def test_its_command_names_new_pictures(painted, tool, tmp_path):
    shutil.copytree(Path(painted.config.DATA.DATASET.root) / "test", tmp_path / "my_pictures")
    shutil.copy(painted.checkpoints / "last.pt", "best.pt")
    words = shlex.split(BLOCKS["bash"][6])
    assert words[:2] == ["python", "tools/predict.py"]
    code, out, err = tool("predict.py", *words[2:])
    assert code == 0 and f"Accuracy: {painted.predictions.correct}/36" in out, err
    assert len(Path("out.csv").read_text().splitlines()) == 37


def test_its_picture_of_one_s_own_is_drawn(run, tool, tmp_path):
    (tmp_path / "my_picture.py").write_text(BLOCKS["python"][1])
    code, out, err = tool("visualize.py", "--confidence-bins", "20", "IMPORTS", "[my_picture.py]")
    assert code == 0 and out.splitlines()[-1].endswith("visuals/confidence_20.png"), err


@pytest.mark.parametrize("command", [line for block in BLOCKS["bash"][4:6]
                                     for line in block.splitlines()])
def test_its_pictures_are_drawn(command, painted, tool, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    words = shlex.split(command.replace("-class cat", "-class red").replace("-class dog", "-class blue"))
    assert words[:2] == ["python", "tools/visualize.py"]
    code, out, err = tool("visualize.py", *words[2:])
    assert code == 0 and len(out.splitlines()) >= 3, err


def test_its_table_of_pictures_is_complete():
    for name in VISUALIZERS.own:
        assert f"`--{name.replace('_', '-')}" in TEXT, name


@pytest.mark.parametrize("command", BLOCKS["bash"][2:4])
def test_the_other_commands_resolve(command):
    words = [str(ROOT / "tools" / "train.py") if word == "tools/train.py" else word
             for word in shlex.split(command)[1:]]
    done = subprocess.run([sys.executable, *words, "--print-config"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "NAME: resnet18" in done.stdout
