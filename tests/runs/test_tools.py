"""The commands, as a user types them."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY

from cvkit.cli import train
from cvkit.registry import REGISTRIES, VISUALIZERS
from cvkit.runs.finding import find_runs
from cvkit.runs.folder import Run, open_run
from cvkit.visualizers.flags import arguments_of

TOOLS = sorted((ROOT / "tools").glob("*.py"))


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.name)
def test_help_is_light_and_shows_an_example(path):
    done = subprocess.run([sys.executable, "-X", "importtime", str(path), "--help"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and f"python tools/{path.name}" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "cvkit.errors" in imported
    assert not {"torch", "numpy", "torchvision", "albumentations", "matplotlib"} & imported


@pytest.mark.parametrize("encoding, times", [("ascii", "?"), ("cp1252", "×")])
def test_output_that_is_not_utf_8_lacks_letters_and_nothing_else(run, tool, monkeypatch, encoding, times):
    """As on Windows, in pipes and under cron."""
    def say(name, *words):
        with monkeypatch.context() as patched:
            file = io.BytesIO()
            for stream in ("stdout", "stderr"):
                patched.setattr(sys, stream, io.TextIOWrapper(file, encoding, write_through=True))
            code = tool(name, *words)[0]
            return code, file.getvalue().decode(encoding)

    config = shutil.copy(run.folder / "config.yaml", "größe.yaml")
    code, said = say("train.py", config, "--check")
    assert code == 0 and f"10 classes, 3{times}32{times}32" in said, said
    code, said = say("visualize.py", "--run", run.folder, "--cam", "1", "--cam-layer", "layer1")
    assert code == 0 and f"layer1 (32{times}32 pixels)" in said, said
    predictions = run.predictions
    replace(predictions, classes=["日本", *predictions.classes[1:]]).save(run.folder / "predictions.npz")
    monkeypatch.setattr("cvkit.evaluation.run_evaluation.evaluate", lambda runs: runs[0].predictions)
    code, said = say("evaluate.py", "--run", run.folder)
    assert code == 0 and re.search(r"^\?\?  ", said, re.MULTILINE), said
    code, said = say("compare.py", run.folder, shutil.copytree(run.folder, "größe"), "--csv", "größe.csv")
    assert code == 0 and "Both are right on the same test images" in said, said
    assert "\ngröße," in Path("größe.csv").read_text(encoding="utf-8")
    code, said = say("find_lr.py", config, "MODEL.norm", "日本")
    assert code == 2 and said.startswith("error: ") and "not '??'" in said
    Path("mine.py").write_text("from cvkit import MODELS\n\n@MODELS.register()\ndef own_net():\n"
                               "    '3×3 日本'\n", encoding="utf-8")
    code, said = say("registry.py", "model", "--import", "mine.py")
    assert code == 0 and f"own_net     3{times}3 ??\n" in said, said


def test_a_training_whose_output_is_ascii_ends_well(tiny):
    done = subprocess.run([sys.executable, str(ROOT / "tools/train.py"), str(tiny), "--check"],
                          capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and b"3?32?32" in done.stdout and not done.stderr, done.stderr


def test_train_then_evaluate(tool, tiny):
    code, out, err = tool("train.py", tiny, "TRAIN.EPOCHS", 1)
    assert code == 0, err
    run = open_run()
    assert f"run        {run.folder}\n" in out
    before = run.predictions
    (run.folder / "predictions.npz").unlink()
    code, out, err = tool("evaluate.py", "--run", run.folder)
    assert code == 0, err
    assert out.splitlines()[0] == f"run {run.folder}"
    assert re.search(r"^3( +\d\.\d{4}){3} +15$", out, re.MULTILINE)
    assert f"Accuracy: {before.correct}/150 ({100 * before.accuracy:.2f}%)" in out
    assert run.predictions.probabilities.tolist() == before.probabilities.tolist()
    assert tool("evaluate.py")[0] == 0


def test_a_tilde_is_the_home_folder_for_every_tool(tool, painted, tiny, home, tmp_path):
    """Where no shell has put it in: in quotes, after `=`, in a notebook or a config."""
    shutil.copytree(tmp_path / "runs", home / "outs")
    shutil.copytree(painted.config.DATA.DATASET.root, home / "images")
    tiny.rename(home / "tiny.yaml")
    run = f"~/outs/painted/{painted.folder.name}"
    places = ["OUTPUT_DIR", "~/outs", "DATA.DATASET.root", "~/images"]
    folder = ["DATA.DATASET", "{NAME: ImageFolder}", "DATA.LIMIT", "0", *places]
    code, _, err = tool("train.py", "~/tiny.yaml", "TRAIN.EPOCHS", "1", *folder)
    assert code == 0, err
    new, = (home / "outs" / "tiny").iterdir()
    for name, arguments in (
            ("train.py", ["--resume", f"~/outs/tiny/{new.name}"]),
            ("evaluate.py", [f"--run={run}"]),
            ("visualize.py", ["--run", run, "--curves", "--out", "~/drawn"]),
            ("compare.py", [run, f"~/outs/tiny/{new.name}", "--csv", "~/compared"])):
        code, _, err = tool(name, *arguments)
        assert code == 0, f"{name} {arguments}\n{err}"
    assert {"drawn", "compared"} <= {path.name for path in home.iterdir()}
    assert not list(tmp_path.glob("~*")) and Run(f"~/outs/tiny/{new.name}").folder == new
    assert open_run(output_dir="~/outs", config_name="tiny").folder == new


def test_visualize_draws_the_cam_of_the_same_ten(tool, painted):
    code, out, err = tool("visualize.py", "--cam", "--misclassified", "10")
    assert code == 0, err
    visuals = painted.folder.relative_to(Path.cwd()) / "visuals"
    lines = out.splitlines()
    assert lines[0] == f"run {painted.folder.relative_to(Path.cwd())}"
    assert lines[1::2] == [f"{visuals}/cam.png", f"{visuals}/misclassified.png"]
    chosen = "10 misclassified test images, the most confident first"
    assert chosen in lines[2] and chosen in lines[4]
    assert lines[2].startswith("    GradCAM at layer3 (8×8 pixels), the deepest block of 5×5 or more")
    assert {path.name for path in visuals.iterdir()} == {
        "cam.png", "cam.txt", "misclassified.png", "misclassified.txt"}


def test_visualize_opens_the_run_that_is_named_and_draws_what_its_config_lists(tool, run, painted):
    listed = "VISUALIZERS", "[{NAME: confusion}, {NAME: misclassified, count: 2}]"
    code, out, err = tool("visualize.py", "--run", run.folder, "--out", "x", "--format", "svg", *listed)
    assert code == 0, err
    assert out.splitlines()[:2] == [f"run {run.folder}", "x/confusion.svg"]
    assert sorted(path.name for path in Path("x").iterdir()) == [
        "confusion.csv", "confusion.svg", "confusion.txt", "misclassified.svg", "misclassified.txt"]
    assert tool("visualize.py", "--run", run.folder)[0] == 2  # it lists none


def test_visualize_draws_a_config_without_training_it(tool, tiny):
    code, out, err = tool("visualize.py", tiny, "--dataset", "--architecture", "DATA.LIMIT", "50")
    assert code == 0, err
    assert "50 train, 50 test images" in out
    assert sorted(path.name for path in Path("runs/tiny/visuals").iterdir()) == [
        "architecture.png", "architecture.txt", "dataset.png", "dataset.txt"]
    assert find_runs() == []


def test_visualize_all_draws_all(tool, painted):
    code, out, err = tool("visualize.py", "--all", "--dpi", "30")
    assert code == 0 and "left out: disagreements, which needs two or more runs" in out, err
    names = {path.stem for path in (painted.folder / "visuals").glob("*.png")}
    assert names == set(VISUALIZERS.own) - {"curve_band", "disagreements", "lr_finder", "wrong_in_all"}
    assert "left out: lr_finder, which needs a run with SCHEDULER.max_lr find" in out


def test_visualize_lists_what_there_is(tool, tmp_path):
    code, out, _ = tool("visualize.py", "--list")
    assert code == 0 and "--cam-method" in out
    (tmp_path / "mine.py").write_text(
        "from cvkit import VISUALIZERS\n\n"
        "@VISUALIZERS.register()\ndef my_picture(predictions, bins: int = 3):\n    'Mine.'\n")
    (tmp_path / "mine.yaml").write_text(f"IMPORTS: [mine.py]\n{TINY}")
    code, out, err = tool("visualize.py", "mine.yaml", "--list")
    assert code == 0 and "--my-picture  (needs one finished run)\n    Mine.\n" in out, err


def test_visualize_help_names_every_picture(tool):
    _, out, _ = tool("visualize.py", "--help")
    for name in VISUALIZERS.own:
        count = " [N]" if "count" in arguments_of(name) else "  "
        assert f"--{name.replace('_', '-')}{count}" in out + "  ", name


def test_a_report_from_the_command_line(tool, painted):
    code, out, err = tool("visualize.py", "--report", "--misclassified", "5")
    assert code == 0, err
    folder = painted.folder.relative_to(Path.cwd())
    assert out.splitlines()[-2:] == [f"{folder}/report.html", f"{folder}/README.md"]
    page = (painted.folder / "report.html").read_text()
    assert page.count("5 misclassified test images, the most confident first") >= 2
    assert "10 misclassified test images" not in page  # the CAM is of the same five


def test_compare_two_runs(tool, run, painted, tmp_path):
    shutil.copytree(painted.folder, tmp_path / "runs" / "again" / "1")
    other = tmp_path / "runs" / "again" / "1"
    code, out, err = tool("compare.py", painted.folder, other, "--curves", "--disagreements", "3")
    assert code == 0 and "Both are right on the same test images" in out, err
    folder = next(tmp_path.glob("runs/compare/painted_*_again_1"))
    assert {path.name for path in folder.iterdir()} == {"curves.png", "disagreements.png"}
    code, out, err = tool("compare.py", run.folder, painted.folder, "--curves", "--disagreements", "--out", "x")
    assert code == 2 and "were tested on different images" in err and Path("x/curves.png").is_file()


def test_runs_compared_with_tta_have_pictures_of_their_own(tool, painted):
    for words in ([], ["TTA", "[{NAME: HorizontalFlip}]"]):
        code, _, err = tool("visualize.py", "--run", painted.folder, painted.folder, "--disagreements",
                            "--out", "x", *words)
        assert code == 0, err
    assert sorted(path.name for path in Path("x").glob("*.png")) == ["disagreements.png", "disagreements_tta.png"]


def test_the_benchmark_measures_the_part_asked_for(tool, monkeypatch):
    from benchmarks import measure

    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(measure.PARTS, "cam", lambda configure: {
        "library (s)": 0.25, "images/s": 123456.0, "width": configure().MODEL.get("width", 64)})
    code, out, err = tool("benchmark.py", "cam", "--json", "MODEL.width", "3")
    figures = json.loads(out)
    assert code == 0 and figures["cam"] == {"library (s)": 0.25, "images/s": 123456, "width": 3}, err
    assert f"torch {torch.__version__}" in figures["machine"]
    code, out, err = tool("benchmark.py", "cam")
    assert re.findall(r"^  (.+?)  +(\S+)$", out, re.MULTILINE) == [
        ("library (s)", "0.250"), ("images/s", "123,456"), ("width", "64.000")], out + err
    for words, expected in ((["cams"], "no part 'cams' of the benchmark\n  Did you mean cam?"),
                            (["cam", "MODEL.wdth", "3"], "Did you mean width?"),
                            (["--jsn"], "no flag --jsn")):
        code, out, err = tool("benchmark.py", *words)
        assert code == 2 and expected in err and not out, err


@pytest.mark.parametrize("words, config, overrides, resume, check", [
    (["a.yaml"], "a.yaml", [], None, False),
    (["a.yaml", "SEED", "1", "--check"], "a.yaml", ["SEED", "1"], None, True),
    (["--check", "a.yaml", "SEED", "1"], "a.yaml", ["SEED", "1"], None, True),
    (["a.yaml", "SEED", "1", "--check", "DEVICE", "cpu"], "a.yaml", ["SEED", "1", "DEVICE", "cpu"],
     None, True),
    (["a.yaml", "--resume"], "a.yaml", [], "", False),
    (["--resume", "a.yaml"], "a.yaml", [], "", False),
    (["a.yaml", "--resume", "--check"], "a.yaml", [], "", True),
    (["a.yaml", "--resume", "TRAIN.EPOCHS", "3"], "a.yaml", ["TRAIN.EPOCHS", "3"], "", False),
    (["a.yaml", "--resume", "SEED", "3"], "a.yaml", ["SEED", "3"], "", False),
    (["a.yaml", "--resume", "runs/a/x"], "a.yaml", [], "runs/a/x", False),
    (["--resume", "runs/a/x"], "runs/a/x/config.yaml", [], "runs/a/x", False),
    (["--resume", "runs/a/x", "a.yaml", "SEED", "3"], "a.yaml", ["SEED", "3"], "runs/a/x", False),
    (["resnet18_digits", "--resume"], "resnet18_digits", [], "", False),
    (["--resume", "resnet18_digits", "SEED", "3"], "resnet18_digits", ["SEED", "3"], "", False),
    (["resnet18_digits", "--resume", "runs/a/x"], "resnet18_digits", [], "runs/a/x", False),
    (["a.yaml", "OPTIMIZER.lr", "-1e-3"], "a.yaml", ["OPTIMIZER.lr", " -1e-3"], None, False),
    (["a.yaml", "OPTIMIZER.lr", "-1"], "a.yaml", ["OPTIMIZER.lr", " -1"], None, False),
])
def test_flags_stand_before_after_and_between(words, config, overrides, resume, check):
    args = train.parse(list(words))
    assert (args.config, args.overrides, args.resume, args.check) == (
        config, overrides, resume, check)


@pytest.mark.parametrize("name, words", [
    ("find_lr.py", [ROOT / "configs" / "resnet18_digits.yaml"]), ("evaluate.py", []),
    ("visualize.py", [])])
def test_a_negative_number_is_a_value_to_every_tool(tool, name, words):
    code, _, err = tool(name, *words, "TRAIN.EPOCHS", "-1e-3")
    assert code == 2 and "no flag" not in err


@pytest.mark.parametrize("words", [[], ["--check"], ["--resume"]])
def test_without_a_config_it_is_asked_for(tool, words):
    code, _, err = tool("train.py", *words)
    assert code == 2 and "CONFIG is missing, a YAML file or a name that --list shows, such as resnet18_digits" in err


def test_resume_from_the_command_line(tool, tiny):
    assert tool("train.py", tiny, "TRAIN.EPOCHS", 1)[0] == 0
    code, out, err = tool("train.py", tiny, "--resume", "TRAIN.EPOCHS", "2")
    assert code == 0 and "resumed" in out, err
    assert [epoch["epoch"] for epoch in open_run().metrics] == [1, 2] and len(find_runs()) == 1
    code, out, _ = tool("train.py", tiny, "--resume", open_run().folder, "TRAIN.EPOCHS", "2")
    assert code == 0 and "is finished" in out


def test_print_config_resolves_and_needs_no_torch(tiny):
    code = ("import runpy, sys; sys.argv = sys.argv[1:]; "
            "runpy.run_path(sys.argv[0], run_name='__main__')")
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code,
                           str(ROOT / "tools/train.py"), str(tiny), "SEED", "7", "--print-config"],
                          capture_output=True, text=True)
    assert done.returncode == 0
    assert re.search(r"^SEED: 7 +# command line$", done.stdout, re.MULTILINE)
    assert f"# {tiny}:2" in done.stdout and " torch\n" not in done.stderr


def test_check_builds_everything_and_writes_nothing(tool, tiny, tmp_path):
    code, out, err = tool("train.py", tiny, "--check")
    assert code == 0 and "All is well" in out, err
    assert not (tmp_path / "runs").exists()


def test_the_registry_is_listed_and_described(tool):
    code, out, _ = tool("registry.py")
    assert code == 0 and all(f"{kind}:" in out.splitlines() for kind in REGISTRIES)
    for kind in ("model", "models", "MODEL"):
        assert "resnet34" in tool("registry.py", kind)[1]
    assert "norm: batch, layer (GroupNorm with one group) or group" in tool(
        "registry.py", "model", "resnet18")[1]
    code, out, _ = tool("registry.py", "transform", "CutOut")
    assert code == 0 and "size (int or [int, int]): required" in out
    assert "fill (float or list[float] or str): default 'mean'" in out
    assert "data_mean: offered by the run" in out and "DeVries & Taylor, 2017" in out
    assert re.search(r"defined in \S+cvkit/data/transforms\.py:\d+", out)


def test_own_code_is_listed_too(tool, tmp_path):

    (tmp_path / "mine.py").write_text(
        "from cvkit import MODELS\n\n@MODELS.register()\ndef my_own_net():\n    'Mine.'\n")
    assert "my_own_net  Mine." in tool("registry.py", "model", "--import", "mine.py")[1]


@pytest.mark.slow
def test_a_killed_run_is_resumed(tiny):
    """A machine that goes away at any time: what is on disk is enough to go on."""
    command = [sys.executable, str(ROOT / "tools" / "train.py"), str(tiny), "TRAIN.EPOCHS", "300"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not find_runs() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    epochs = open_run().checkpoint("last").epoch
    assert 0 < epochs < 300
    done = subprocess.run([*command[:-1], str(epochs + 2), "--resume"], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert [epoch["epoch"] for epoch in open_run().metrics] == list(range(1, epochs + 3))


def test_ctrl_c_ends_without_a_traceback_and_says_how_to_go_on(tiny):
    command = [sys.executable, str(ROOT / "tools" / "train.py"), str(tiny), "TRAIN.EPOCHS", "300"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not find_runs() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert re.search(r"Interrupted (in epoch \d+, after batch \d|after epoch \d+), and saved\. Go on: python tools/train\.py runs/tiny/\S+"
                     r"config\.yaml --resume runs/tiny/\S+", out)


def test_a_run_named_alone_is_resumed_with_keys_after_it(run, tool):
    code, out, err = tool("train.py", "--resume", run.folder, "TRAIN.EPOCHS", "3", "DATA.WORKERS", "0")
    assert code == 0 and len(run.metrics) == 3, err
    assert f"resumed    {run.folder} after epoch 2" in out
