"""Files from strangers: none of them runs anything, and nothing is written outside its folder."""

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import cvkit
from cvkit.config import load_config, read_config
from cvkit.config.parse import parse_value
from cvkit.data import ImageFiles
from cvkit.errors import CheckpointError, ConfigError, DataError, RunError, UserError
from cvkit.evaluation.run_evaluation import evaluate
from cvkit.registry import DATASETS, VISUALIZERS
from cvkit.registry.user_code import import_user_code
from cvkit.reporting.report import write_report
from cvkit.reporting.report_format import Code, Link, Section, Table, Text, render_markdown
from cvkit.runs.checkpoint import Checkpoint
from cvkit.runs.folder import Run
from cvkit.runs.predictions import Predictions
from cvkit.runs.range_test import RangeTest
from cvkit.runs.untrusted import read_verified, verify_archive
from cvkit.session import train
from cvkit.system.environment import git_facts
from cvkit.system.text import escape_controls
from cvkit.visualizers import draw

# What would leave a file "canary" in the current folder, if it were obeyed or followed.
NAMES = ["$(touch canary)", "; touch canary #", "\"><script>x</script>", "-rf", "--help", "$\\frac{",
         "$a", "%s{0}", "javascript:x", "' onerror='x", "名前", "[a](b)", "n" * 200, "..a"]
ODD_NAMES = ["a\nb", "a\tb", "\x1b[31mred\x1b[0m\x07", "\u2028"]


class Touch:
    """Pickled, it is an instruction to make the canary."""

    def __reduce__(self):
        return os.system, ("touch canary",)


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path):
    yield
    assert not [path for path in tmp_path.rglob("canary*")]


def content_of(folder):
    """Return what lies below a folder: links, folders, and files with their content."""
    return {str(path.relative_to(folder)): os.readlink(path) if path.is_symlink()
            else path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*")) if ".cache" not in path.parts}


def one_message(error):
    assert isinstance(error, UserError) and len(str(error)) < 2000
    return str(error)


# -- checkpoints -----------------------------------------------------------------------


def rewritten(path, change=lambda name, data: data, **options):
    """Write a zip file again, its checksums right, with other content."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in parts.items():
            archive.writestr(name, change(name, data))


def added(path, name, data):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, data)


def test_a_flipped_bit_in_the_weights_is_found(run):
    path = run.folder / "checkpoints" / "last.pt"
    before = verify_archive(path)
    assert before is None and read_verified(path)["epoch"] == 2
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 500] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # torch does not notice
    with pytest.raises(CheckpointError, match=f"damaged.*{largest.filename}.*checksum"):
        Checkpoint.load(path)


CODE = {
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Touch())),
    "an old pickle": lambda path: path.write_bytes(pickle.dumps(Touch(), 2)),
    "of torch": lambda path: torch.save(Touch(), path),
    "of torch, not a zip": lambda path: torch.save(
        {"format": 1, "model": Touch()}, path, _use_new_zipfile_serialization=False),
    "as a field": lambda path: torch.save({"format": 1, "config": Touch()}, path),
    "TorchScript": lambda path: torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(path)),
    "a bomb": lambda path: (torch.save({"a": torch.zeros(1000)}, path), rewritten(
        path, compression=zipfile.ZIP_DEFLATED)),
    "a storage that is shorter than it says": lambda path: (
        torch.save({"a": torch.zeros(1000)}, path), rewritten(
            path, lambda name, data: data[:4] if name.endswith("data/0") else data)),
    "storages that would fit each other": lambda path: (
        torch.save({"a": torch.zeros(1000), "b": torch.zeros(1)}, path), rewritten(
            path, lambda name, data: bytes(4004 - len(data)) if "/data/" in name else data)),
    "a storage under two names that are one to torch": lambda path: (
        torch.save({"a": torch.zeros(1000)}, path), added(path, "x/DATA/0", b"1234")),
    "huge": lambda path: (torch.save({}, path), rewritten(
        path, lambda name, data: b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\0\0\0\0\0\x7f\x85R."
        if name.endswith(".pkl") else data)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CODE)
def test_code_in_a_checkpoint_is_not_run(tmp_path, kind):
    CODE[kind](tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="is damaged or no checkpoint"):
        Checkpoint.load(tmp_path / "x.pt")


def test_a_weight_that_is_not_all_there_is_named(run):
    path = run.folder / "checkpoints" / "last.pt"
    rewritten(path, lambda name, data: data[:-4] if name.endswith("data/0") else data)
    with pytest.raises(CheckpointError, match=r"damaged or no checkpoint: \S*data/0 in it has \d+ "
                                              r"bytes of \d+"):
        Checkpoint.load(path)


WEIGHT = {"a": torch.zeros(2)}
WRONG = [
    ("format", True), ("format", torch.zeros(2)), ("format", 2), ("model", None), ("model", [1]),
    ("model", {"a": 1.0}), ("model", {1: torch.zeros(1)}),
    ("model", {"a": torch.zeros(2, device="meta")}), ("model", {"a": torch.zeros(2).to_sparse()}),
    ("model", {"a": torch.eye(2).to_sparse()}), ("loss", [1]),
    ("loss", {"a": 1}), ("config", None), ("config", b"a"),
    ("classes", []), ("classes", "ab"), ("classes", [1, 2]), ("classes", ["\ud800"]),
    ("mean", None), ("mean", [0.5]), ("mean", ["a"] * 3), ("mean", [float("nan")] * 3),
    ("std", [0.5] * 2), ("std", [-1.0] * 3), ("std", [True] * 3),
    ("image_shape", [3, 32]), ("image_shape", [3, 0, 32]), ("image_shape", [3, 2**40, 2**40]),
    ("image_shape", [3, 32.0, 32]), ("epoch", -1), ("epoch", 1.5), ("epoch", True),
    ("epoch", 2**80), ("metrics", []), ("metrics", {1: 2}), ("monitored", "train"),
    ("monitored", ["val"]), ("training", []), ("training", {}), ("training", {"optimizer": 1}),
    ("training", {"optimizer": {"state": {}, "param_groups": [1]}, "schedule": {}, "scaler": {}}),
    ("training", {"optimizer": {"state": {}, "param_groups": [{}]}, "schedule": {}, "scaler": {},
                  "best": {"epoch": "a"}}),
    ("training", {"optimizer": {"state": {}, "param_groups": [{}]}, "schedule": {}, "scaler": {},
                  "ema": {"steps": 1, "model": {"a": 1}}}),
    *(("images", {"channels": 3, "image_size": [8, 8], "mean": [0.5] * 3, "std": [0.5] * 3,
                  "background": 255, "class_counts": counts})
      for counts in ([], [1] * 9, [-1] * 10, [1.0] * 10, None)),
    ("transform_input", 1), ("more", 1), (3, 1)]


@pytest.mark.parametrize("field, value", WRONG, ids=lambda item: repr(item)[:30])
def test_a_checkpoint_with_other_content_is_refused(run, field, value):
    path = run.folder / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    assert Checkpoint(**content).monitored == "test"
    torch.save({**content, field: value}, path)
    with pytest.raises(CheckpointError, match="was not written by this version of cvkit"):
        Checkpoint.load(path)


def test_a_checkpoint_that_lacks_a_field_is_refused(run):
    path = run.folder / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in content.items() if name != "mean"}, path)
    with pytest.raises(CheckpointError, match="was not written by this version of cvkit"):
        Checkpoint.load(path)


@pytest.mark.parametrize("old, new, error", [
    ("width: 4", "width: 100000000000", UserError),
    ("NAME: resnet18", "NAME: os.system", ConfigError),
    ("IMPORTS: []", "IMPORTS: [gone.py]", ConfigError),
    ("IMPORTS: []", "IMPORTS: !!python/object/apply:os.system ['touch canary']", ConfigError)])
def test_the_config_in_a_checkpoint_builds_models_only(run, old, new, error):
    path = run.folder / "checkpoints" / "last.pt"
    checkpoint = Checkpoint.load(path)
    assert old in checkpoint.config
    replace(checkpoint, config=checkpoint.config.replace(old, new)).save(path)
    with pytest.raises(error) as caught:
        Checkpoint.load(path).build_model()
    one_message(caught.value)


# -- predictions -----------------------------------------------------------------------


def npz(path, **arrays):
    np.savez(path, **arrays)


def huge(path, shape="(1000000000000,)", descr="<f8"):
    """Write an npz whose probabilities claim to be terabytes."""
    good = vars(Predictions.load(path))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": (1,)})
    forged = header.getvalue().replace(b"(1,)", shape.encode())
    length = len(forged) - 10  # the header's, without magic and itself
    forged = forged[:8] + length.to_bytes(2, "little") + forged[10:]
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in good.items():
            file = io.BytesIO()
            np.save(file, value)
            archive.writestr(f"{name}.npy", forged if name == "probabilities" else file.getvalue())


def changed(**arrays):
    return lambda path, good: npz(path, **{**good, **arrays})


NPZ = {
    "object array": lambda path, good: npz(path, **{**good, "classes": np.array([Touch()] * 10)}),
    "pickle": lambda path, good: path.write_bytes(pickle.dumps(Touch())),
    "terabytes": lambda path, good: huge(path),
    "more terabytes": lambda path, good: huge(path, "(5,)", "<U1000000000"),
    "bomb": lambda path, good: np.savez_compressed(path, **good),
    "missing": lambda path, good: npz(path, **{k: v for k, v in good.items() if k != "true"}),
    "label too high": changed(true=np.full(150, 10)), "negative label": changed(predicted=np.full(150, -1)),
    "floats": changed(true=np.zeros(150)), "shorter": changed(index=np.arange(149)),
    "flat": changed(probabilities=np.zeros(1500, np.float32)), "scalar": changed(probabilities=np.float32(0)),
    "too likely": changed(probabilities=np.full((150, 10), 7, np.float32)),
    "doubles": changed(probabilities=np.zeros((150, 10))), "two classes": changed(classes=["a", "b"]),
    "nested classes": changed(classes=[["a"]] * 10), "numbers as classes": changed(classes=np.arange(10)),
    "empty": changed(true=np.zeros(0, int), index=np.zeros(0, int), predicted=np.zeros(0, int),
                     probabilities=np.zeros((0, 10), np.float32)),
    "epochs": changed(epoch=np.arange(3)), "no epoch": changed(epoch=-1), "word": changed(loss="much"),
    "half a character": changed(classes=["\ud800"] * 10),
}


@pytest.mark.parametrize("kind", NPZ)
def test_hostile_predictions_are_refused(run, kind):
    path = run.folder / "predictions.npz"
    good = vars(Predictions.load(path))
    assert good["probabilities"].shape == (150, 10)
    NPZ[kind](path, good)
    with pytest.raises(RunError, match=r"is damaged: (.|\n)*tools/evaluate.py --run") as caught:
        Predictions.load(path)
    one_message(caught.value)


# -- the run folder's texts --------------------------------------------------------------

BOMB = "l0: &l0 lol\n" + "\n".join(
    f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 10)}]" for level in range(1, 12))


@pytest.mark.parametrize("text, expected", [
    (BOMB, "at most 1,000,000 characters"),
    (f"a: &a {'x' * 99_999}\nb: [{', '.join(['*a'] * 100)}]", "at most 1,000,000 characters"),
    ("a: " + "x" * 1_000_000, "at most 1,000,000 characters"),
    ("a: " + "[" * 60 + "]" * 60, "nested too deeply"), ("a: " + "[" * 999, "not valid YAML"),
    ("&a [*a]", "nested too deeply"), ("a: &a {b: *a}", "nested too deeply"),
    ("a: 1" + "0" * 400, "too many digits"), ("a: 1" + "0" * 5000, "not valid YAML"),
    ("? [&a a, *a]\n: b", "keys are strings"),
    *((text, "means nothing here") for text in (
        "a: !!python/object/apply:os.system ['touch canary']",
        "? !!python/object/apply:os.system 'touch canary'\n: 1",
        "!!python/object/new:os.system ['touch canary']",
        "a: !!python/name:os.system", "!!python/name:os.system : 1", "a: !!binary aGk=",
        "%TAG ! tag:yaml.org,2002:python/\n---\na: !object/apply:os.system ['touch canary']",
        "a: !!bool maybe", "a: !!timestamp never", "a: !!set {b}", "a: !!omap [b: 1]",
        "a: !!map b", "a: !!null b"))])
def test_yaml_is_data_and_not_more_than_a_config_needs(tmp_path, text, expected):
    (tmp_path / "a.yaml").write_text(text)
    for read in (lambda: load_config("a.yaml"), lambda: read_config(text, "a.yaml"),
                 lambda: parse_value(text)):
        with pytest.raises(ConfigError, match=expected) as caught:
            read()
        one_message(caught.value)


def test_an_endless_base_is_read_no_further(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: /dev/zero")
    with pytest.raises(ConfigError, match="/dev/zero:1: not valid YAML"):
        load_config("a.yaml")


def test_aliases_of_a_few_values_are_read():
    assert parse_value("{a: &x [1, {b: c}], d: *x}").to_dict() == {"a": [1, {"b": "c"}],
                                                                  "d": [1, {"b": "c"}]}


def line(**values):
    good = {"epoch": 1, "lr": 0.1, "seconds": 1.0, "images_per_second": 9.0, "train/loss": 1.0,
            "train/accuracy": 0.5, "test/loss": 1.0, "test/accuracy": 0.5, "rates": [[0, 0.1]]}
    return json.dumps({name: value for name, value in {**good, **{
        name.replace("_of_", "/"): value for name, value in values.items()}}.items() if value != "-"})


@pytest.mark.parametrize("text", [
    line(epoch="1"), line(epoch=-1), line(epoch=10**30), line(epoch=[1]), line(epoch=True),
    line(lr=None), line(seconds="1"), line(seconds=float("inf")), line(test_of_loss="a"),
    line(test_of_loss=1e308), line(train_of_accuracy=10**400), line(test_of_own=10**400),
    line(rates=3), line(rates=[1]), line(rates=[[0, "a"]]), line(rates=[[0, float("nan")]]),
    line(lower_is_better=3), line(lower_is_better=[1]),
    line(seconds="-"), line(train_of_loss="-"), line(test_of_accuracy="-")])
def test_hostile_metrics_end_in_one_message(run, text):
    (run.folder / "metrics.jsonl").write_text(text + "\n")
    for look in (lambda: run.best, lambda: run.visualize("curves"), lambda: write_report(run)):
        with pytest.raises(RunError, match="metrics.jsonl") as caught:
            look()
        one_message(caught.value)


@pytest.mark.parametrize("text", [
    b"\xff\xfe\0", b"[" * 100_000, b"{" + b'"a":{' * 50_000, b"null\n3\n[]\n", b"9" * 10_000])
def test_lines_that_are_no_epochs_are_left_out(run, text):
    good = (run.folder / "metrics.jsonl").read_bytes()
    (run.folder / "metrics.jsonl").write_bytes(text + b"\n" + good)
    assert len(run.metrics) == 2


@pytest.mark.parametrize("text", [
    "[" * 100_000, "[]", "null", "{}", "\udcff", *(json.dumps({
        "rates": [0.1, 0.2], "losses": [1, 1], "smoothed": [1, 1], "suggestion": 0.1, **wrong})
        for wrong in ({"rates": []}, {"rates": 3}, {"rates": ["a", "b"]}, {"losses": [1]},
                      {"suggestion": "a"}, {"suggestion": -1}, {"rates": [-1, 1]}, {"losses": {}},
                      {"losses": [10**400, 1]}, {"smoothed": [float("nan"), 1]}))])
def test_a_hostile_range_test_ends_in_one_message(tmp_path, text):
    (tmp_path / "lr_finder.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RunError, match="lr_finder.json is damaged") as caught:
        RangeTest.load(tmp_path / "lr_finder.json")
    one_message(caught.value)


@pytest.mark.parametrize("name", ["../../outside", "..", "/tmp/outside", "a/b"])
def test_the_name_in_a_run_s_config_is_no_path(run, name):
    path = run.folder / "config.yaml"
    path.write_text(path.read_text().replace("# tiny, resolved", f"# {name}, resolved"))
    assert Run(run.folder).config.name == "tiny"


def test_a_config_s_name_with_a_line_break_stays_in_its_comment(tmp_path):
    path = tmp_path / "a\nSEED: 5.yaml"
    path.write_text(TINY)
    config = load_config(path, {"OUTPUT_DIR": str(tmp_path / "b\nDEVICE: x")})
    assert Run.create(config, "").config.SEED == 0


# -- names of folders and files ----------------------------------------------------------


def paint_classes(folder, names, count=3):
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for number, name in enumerate(names):
            (folder / split / name).mkdir(parents=True)
            for place in range(count):
                pixels = random.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                pixels[..., number % 3] //= 3
                stem = [*NAMES[:4], *ODD_NAMES[:3]][(number + place) % 7].replace("/", "_")
                file = os.path.join(os.fsencode(folder / split / name),
                                    os.fsencode(f"{stem}{place}") + b"\xff.png" * (place == 2)
                                    + b".png")
                with open(file, "wb") as opened:
                    Image.fromarray(pixels).save(opened, "png")


@pytest.mark.slow
def test_training_and_drawing_stay_in_their_folders(tmp_path, tool, monkeypatch):
    names = [name.replace("/", "∕") for name in NAMES]
    work = tmp_path / "work"
    paint_classes(work / "images", names)
    (work / "tiny.yaml").write_text(TINY.replace("LIMIT: 150", "LIMIT: 0").replace(
        "{NAME: Digits}", "{NAME: ImageFolder, root: images}").replace("EPOCHS: 2", "EPOCHS: 1"))
    monkeypatch.chdir(work)
    before = content_of(tmp_path)
    folder = train(load_config("tiny.yaml")).folder
    assert set(Run(folder).predictions.classes) == {name for name in names if name[0] != "."}
    for arguments in (["evaluate.py"], ["visualize.py", "--all"], ["visualize.py", "--report"],
                      ["visualize.py", "--misclassified-true-class", names[0]],
                      ["visualize.py", "--misclassified-true-class", "n" * 200]):
        code, out, err = tool(*arguments)
        assert code == 0, err
        assert "\x1b" not in out and "\x07" not in out
    after = content_of(tmp_path)
    assert {name: after[name] for name in before} == before
    assert all(Path(name).is_relative_to("work/runs") for name in set(after) - set(before))
    assert "\x1b" not in (folder / "visuals" / "misclassified.txt").read_text()
    check_page((folder / "report.html").read_text())


@pytest.mark.parametrize("name", ODD_NAMES)
def test_class_names_that_no_line_holds_are_refused(tmp_path, name, tool, tiny):
    paint_classes(tmp_path / "images", [name, "b"], 1)
    with pytest.raises(DataError, match="control characters in its name"):
        DATASETS.build({"NAME": "ImageFolder", "root": "images"})
    code, _, err = tool("train.py", tiny, "DATA.DATASET", "{NAME: ImageFolder, root: images}")
    assert code == 2 and "\x1b" not in err and not (tmp_path / "runs").exists()


def test_a_class_name_that_is_not_utf8_is_refused(tmp_path):
    for name in (b"\xff\xfe", b"b"):
        path = os.path.join(os.fsencode(tmp_path), b"images", name)
        os.makedirs(path)
        for number in range(2):
            with open(os.path.join(path, b"%d.png" % number), "wb") as file:
                Image.new("RGB", (32, 32)).save(file, "png")
    with pytest.raises(DataError, match="control characters"):
        DATASETS.build({"NAME": "ImageFolder", "root": "images"})


def test_an_error_does_not_steer_the_terminal():
    assert escape_controls("a\x1b[2J\x07b\r\n", keep="\n") == "a\\x1b[2J\\x07b\\r\n"


def test_postscript_is_not_handed_to_ghostscript(tmp_path):
    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
        b"(%pipe%touch canary) (w) file\n%%EOF\n")
    with pytest.raises(DataError, match="its content is no image"):
        ImageFiles([str(tmp_path / "x.png")])[0]


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "MNIST"])
def test_pickles_that_look_like_a_data_set_are_not_opened(tmp_path, name):
    for folder in ("cifar-10-batches-py", "cifar-100-python", "MNIST/processed"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for file in ("batches.meta", "data_batch_1", "test_batch", "meta", "train", "test",
                     "training.pt", "test.pt"):
            (tmp_path / "data" / folder / file).write_bytes(pickle.dumps(Touch()))
    with pytest.raises(DataError, match="missing or damaged"):
        DATASETS.build({"NAME": name, "root": "data", "download": False})


def test_settings_of_an_unpacked_repository_run_nothing(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", "repository", "-c", "user.name=a", "-c", "user.email=a@b.c",
                        *words], check=True, capture_output=True)

    folder = tmp_path / "repository"
    folder.mkdir()
    git("init")
    (folder / ".gitattributes").write_text("* filter=x")
    (folder / "a").write_text("a")
    git("add", "-A")
    git("commit", "-m", "a")
    clean = git_facts(folder)["git"]
    (folder / "a").write_text("b")
    assert git_facts(folder)["git"] == f"{clean}-dirty"
    git("config", "filter.x.clean", f"touch {tmp_path}/canary; cat")
    assert git_facts(folder)["git"] == clean  # whether there are changes is not asked
    git("config", "--unset", "filter.x.clean")
    git("config", "core.fsmonitor", f"touch {tmp_path}/canary")
    assert git_facts(folder)["git"] == clean


# -- links ---------------------------------------------------------------------------------

LINKS = ["train.log", "metrics.jsonl", "predictions.npz", "predictions.part.npz", "config.yaml",
         "config.yaml.part", "notes.md", "report.html", "README.md", "checkpoints/last.part",
         "checkpoints/last.pt", "visuals/curves.png", "visuals", "images", "tables", "checkpoints"]


@pytest.mark.parametrize("name", LINKS)
def test_nothing_is_written_through_links(run, tmp_path, name):
    outside = tmp_path / "outside"
    path = run.folder / name
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        path.rename(outside)
    elif "." in name:
        outside.write_text("mine")
    else:
        outside.mkdir()
    path.symlink_to(outside)
    before = content_of(tmp_path)
    longer = load_config(tmp_path / "tiny.yaml", {"TRAIN.EPOCHS": 3}) if (
        (tmp_path / "tiny.yaml").write_text(TINY)) else None
    before = content_of(tmp_path)
    for write in (lambda: train(longer, resume=run.folder), lambda: evaluate(run.folder),
                  lambda: draw.save_all(Run(run.folder), [{"NAME": "curves"}]),
                  lambda: write_report(Run(run.folder)),
                  lambda: write_report(Run(run.folder), folder=tmp_path / "out")):
        with pytest.raises(RunError, match=f"{re.escape(str(path))} is a link to") as caught:
            write()
        one_message(caught.value)
    assert content_of(tmp_path) == before


def test_a_pipe_in_a_run_folder_is_not_waited_for(run):
    (run.folder / "train.log").unlink()
    os.mkfifo(run.folder / "train.log")
    with pytest.raises(RunError, match="train.log is neither a file nor a folder"):
        evaluate(run.folder)


def test_a_comparison_is_not_written_through_links(run, tmp_path, tool):
    second = shutil.copytree(run.folder, run.folder.parent / "second")
    (tmp_path / "outside").mkdir()
    (tmp_path / "runs" / "compare").symlink_to(tmp_path / "outside")
    code, _, err = tool("compare.py", run.folder, second, "--curves")
    assert code == 2 and "is a link to" in err and not list((tmp_path / "outside").iterdir())


def test_a_run_folder_may_be_a_link_itself(run, tmp_path):
    (tmp_path / "newest").symlink_to(run.folder)
    draw.save_all(Run(tmp_path / "newest"), [{"NAME": "curves"}])
    assert (run.folder / "visuals" / "curves.png").is_file()


# -- reports -------------------------------------------------------------------------------


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.addresses, self.scripts = set(), set(), []

    def handle_data(self, data):
        if self.lasttag == "script" and self.scripts and self.scripts[-1][1] is None:
            self.scripts[-1][1] = data

    def handle_starttag(self, tag, attributes):
        if tag == "script":
            self.scripts.append([dict(attributes).get("type"), None])
        self.found |= {(tag, name) for name, _ in attributes} | {(tag, "")}
        self.addresses |= {value.split(":")[0] for name, value in attributes
                           if name in ("href", "src") and ":" in value}


TEMPLATE = {
    "html": ["lang"], "head": [], "meta": ["charset", "name", "content", "http-equiv"], "title": [], "style": [],
    "body": [], "h1": [], "h2": [], "nav": ["class", "id", "aria-label"], "main": ["id", "tabindex"],
    "a": ["href", "class", "download", "aria-label"], "section": ["id"], "p": ["class", "hidden"],
    "div": ["class", "id", "hidden", "role"], "table": [], "tr": [], "th": ["scope"], "td": [], "pre": [],
    "details": [], "b": ["class"], "i": ["class", "hidden"], "span": ["class"], "canvas": [], "summary": [],
    "figure": ["id", "class"], "figcaption": [], "img": ["src", "alt", "width", "height", "style"],
    "script": ["type", "class"]}
OWN_SCRIPT = (Path(cvkit.__file__).parent / "reporting" / "templates" / "scatter.js").read_text()


def check_page(page):
    reader = Tags()
    reader.feed(page)
    assert reader.found <= {(tag, name) for tag, names in TEMPLATE.items() for name in ["", *names]}
    assert reader.addresses <= {"data", "https", "http"}
    for kind, text in reader.scripts:
        # Of the run there are facts, which nothing runs.
        assert json.loads(text) if kind == "application/json" else (kind, text) == (None, OWN_SCRIPT)


def check_markdown(text):
    """Assert that no element but a fold arises where Markdown reads HTML: outside code."""
    text = re.sub(r"^(```+)\w*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"(?<=<summary>)[^<>]*(?=</summary>)", "", text)  # HTML, to the next empty line
    text = re.sub(r"\\[!-/:-@\[-`{-~]", "", text)  # escaped
    assert set(re.findall(r"<[^>\n]*>?", text)) <= {"<details>", "<summary>", "</summary>", "</details>"}
    assert all(re.match(r"https?://|#|images/|tables/|README", url) and not set(url) & set(" <>\"'")
               for url in re.findall(r"\]\(([^)]*)\)", text))


EVIL = "\"><script>alert(1)</script><img src=x onerror=alert(1)> [a](javascript:x) `x` | $x$"


def test_the_report_has_no_elements_of_the_run_s(painted, draws_only):
    draws_only("curves", "misclassified", "cam", "confusion", "dataset")
    names = [EVIL, "a\nb\r\n<b>", "\x1b[31m$\\frac"]
    data, checkpoint, folder = painted.data, painted.checkpoint("last"), painted.folder
    replace(checkpoint, classes=names).save(folder / "checkpoints" / "last.pt")
    replace(painted.predictions, classes=names).save(folder / "predictions.npz")
    epochs = [{**epoch, f"test/{EVIL}": EVIL, "test/\ud800": "\ud800"} for epoch in painted.metrics]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    (folder / "environment.txt").write_text(
        f"command: {EVIL}\nrepository: https://a.b/c) {EVIL}\ngit: {EVIL}\n")
    (folder / "notes.md").write_text(EVIL)
    with (folder / "train.log").open("a") as file:
        file.write(f"```\n{EVIL}\n~~~\n</pre>{EVIL}\x1b[2J\n")
    text = (folder / "config.yaml").read_text().replace("# painted,", "# <b onclick=x>,")
    (folder / "config.yaml").write_text(f"{text}# {EVIL}\n")
    run = Run(folder)
    run.__dict__["data"] = replace(data, classes=tuple(names))
    write_report(run, [{"NAME": "misclassified", "true_class": EVIL, "count": 2}, {"NAME": "cam", "count": 1},
                       {"NAME": "confusion"}, {"NAME": "dataset", "per_class": 1}])
    page, readme = ((folder / name).read_text() for name in ("report.html", "README.md"))
    check_page(page)
    before, notes, after = readme.partition(EVIL)  # one's own Markdown, left as it is
    assert notes
    check_markdown(before + after)
    assert "\x1b" not in page + readme and "was not drawn" not in page
    assert "not recorded" in page and "git clone https" not in page


@pytest.mark.parametrize("text", [EVIL, "a\n\n# b", "~~~\n<b>", "a\r| b | c |", "&lt;b&gt;",
                                  "- a", "1. a", "    a", "\\<b>"])
def test_markdown_shows_text_as_text(text):
    page = render_markdown(text, [Section(text, [
        Text(text), Table([text, "b"], [[text, Link(text, f"https://a.b/{text}")]]),
        Code(f"```\n{text}", title=text)])])
    check_markdown(page)
    rows = [row for row in page.split("\n") if row.startswith("|")]
    assert len(rows) == 3 and "\n~~~" not in page.split("```")[0]


@pytest.mark.parametrize("command", ["; touch canary", "$(touch canary)", "--upload-pack=touch"])
def test_the_commands_to_repeat_a_run_are_what_git_gave(painted, draws_only, command):
    (painted.folder / "environment.txt").write_text(f"repository: {command}\ngit: {command}\n")
    draws_only()
    for path in write_report(painted):
        assert not re.search(r"(^|>)git (clone|checkout) ", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", [*NAMES, *ODD_NAMES, "-->", "\0"])
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_figures_are_drawn_whatever_a_class_is_called(name, ending):
    predictions = Predictions(np.arange(4), np.array([0, 1, 0, 1]), np.array([0, 1, 1, 0]),
                              np.full((4, 2), 0.5, np.float32), [name, "b"], 1, 0.5)
    figure = VISUALIZERS.build({"NAME": "confusion"}, predictions=predictions)
    file = io.BytesIO()
    with contextlib.suppress(UserWarning):
        figure.savefig(file, format=ending, dpi=20)
    assert file.tell() > 1000 and b"<script" not in file.getvalue()


# -- the one door to code --------------------------------------------------------------------

MINE = "from pathlib import Path\nPath('canary').touch()\n"


@pytest.fixture
def path_kept(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})


def test_what_is_imported_is_said_once(tmp_path, capsys, path_kept):
    (tmp_path / "package").mkdir()
    for name in ("one.py", "two.py", "package/__init__.py", "package/three.py"):
        (tmp_path / name).write_text("")
    for _ in range(2):
        import_user_code(["one.py", "two", "package.three"])
    assert capsys.readouterr().out.splitlines() == [
        f"imported   {tmp_path / name}" for name in (
            "one.py", "two.py", "package/__init__.py", "package/three.py")]


@pytest.mark.parametrize("place", ["mine.py", "checkpoints/mine.py", "sub/sub/mine.py"])
@pytest.mark.parametrize("way", [
    lambda path, root: str(path), lambda path, root: os.path.relpath(path),
    lambda path, root: f"{root}/linked.py", lambda path, root: f"{root}/folder/{path.name}",
    lambda path, root: f"{root}/runs/../{path.relative_to(root)}"],
    ids=["path", "relative", "link", "linked folder", "dots"])
def test_a_file_in_a_run_folder_is_not_imported(run, tmp_path, place, way):
    path = run.folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MINE)
    (tmp_path / "linked.py").symlink_to(path)
    (tmp_path / "folder").symlink_to(path.parent)
    with pytest.raises(ConfigError, match="lies in the run folder .*, which supplies no code"):
        import_user_code([way(path, tmp_path)])


def test_a_link_in_a_run_folder_is_not_imported(run, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    (run.folder / "mine.py").symlink_to(tmp_path / "mine.py")
    with pytest.raises(ConfigError, match="supplies no code"):
        import_user_code([str(run.folder / "mine.py")])


@pytest.mark.parametrize("has_empty", [True, False])
@pytest.mark.parametrize("name", ["mine_1", "inner_1.mine", "checkpoints.mine"])
def test_a_module_in_a_run_folder_is_not_imported(run, monkeypatch, path_kept, name, has_empty):
    for place in ("mine_1.py", "inner_1/__init__.py", "inner_1/mine.py", "checkpoints/mine.py"):
        (run.folder / place).parent.mkdir(exist_ok=True)
        (run.folder / place).write_text(MINE)
    monkeypatch.chdir(run.folder)
    sys.path[:0] = [""] * has_empty
    with pytest.raises(ConfigError, match=r"suppl(y|ies) no code"):
        import_user_code([name])
    assert str(run.folder) not in sys.path


@pytest.mark.parametrize("name", ["antigravity", "os.path", "__main__", ".mine", "", "a b", "a..b", "-c"])
def test_only_names_of_own_modules_are_imported(tmp_path, name, path_kept):
    sys.modules.pop("antigravity", None)
    with pytest.raises(ConfigError, match="cannot be a module of yours"):
        import_user_code([name])


def test_neither_run_nor_checkpoint_brings_code(run, monkeypatch):
    (run.folder / "mine.py").write_text(MINE)
    for path in (run.folder / "config.yaml", run.folder / "checkpoints" / "last.pt"):
        is_config = path.suffix == ".yaml"
        text = path.read_text() if is_config else Checkpoint.load(path).config
        text = text.replace("IMPORTS: []", f"IMPORTS: ['{run.folder / 'mine.py'}']")
        assert "mine.py" in text
        path.write_text(text) if is_config else replace(Checkpoint.load(path), config=text).save(path)
    opened = Run(run.folder)
    for use in (lambda: opened.data, lambda: opened.model, lambda: evaluate(opened),
                lambda: opened.checkpoint().build_model(), lambda: train(opened.config),
                lambda: train(load_config(run.folder / "config.yaml"), resume=run.folder),
                lambda: draw.open_subject([str(run.folder)], [])):
        with pytest.raises(ConfigError, match="supplies no code"):
            use()
    without = Run(run.folder, {"IMPORTS": []})
    assert evaluate(without).epoch == 2  # its own model needs none


def test_resuming_takes_a_stranger_s_imports_from_nowhere_else(run, tool, tmp_path):
    path = run.folder / "config.yaml"
    path.write_text(path.read_text().replace("IMPORTS: []", "IMPORTS: [mine.py]"))
    (run.folder / "mine.py").write_text(MINE)
    code, _, err = tool("train.py", "--resume", run.folder)
    assert code == 2 and "supplies no code" in err


@pytest.mark.parametrize("name", ["evil.py", "evil"])
def test_a_folder_that_is_opened_as_a_run_supplies_no_code(tmp_path, tool, monkeypatch, name):
    folder = tmp_path / "evil_run"
    folder.mkdir()
    (folder / "evil.py").write_text("import pathlib\npathlib.Path('/" + str(tmp_path).lstrip("/")
                                    + "/canary').touch()\n")
    imports = str(folder / name) if name.endswith(".py") else name
    (folder / "config.yaml").write_text(
        f"IMPORTS: [{imports}]\nMODEL: {{NAME: resnet18}}\nDATA: {{DATASET: {{NAME: Digits}}}}\n"
        "OPTIMIZER: {NAME: SGD, lr: 0.1}\n")
    monkeypatch.chdir(folder)
    for arguments in (["visualize.py", "--run", folder, "--dataset"], ["train.py", "--resume", folder],
                      ["evaluate.py", "--run", folder]):
        code, _, err = tool(*arguments)
        assert code == 2 and "Traceback" not in err
    assert not (tmp_path / "canary").exists()
