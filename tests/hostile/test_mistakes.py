"""Mistakes a user makes: exit code 2, one message with place and fix, nothing half-written."""

import shutil
import sys
import urllib.error
from dataclasses import replace

import pytest
from conftest import ROOT, TINY
from PIL import Image

from cvkit.config import load_config
from cvkit.session import train

CIFAR = ROOT / "configs" / "resnet18_cifar10.yaml"


def folder(path, count=4, size=(32, 32)):
    for name in ("ants", "bees"):
        (path / name).mkdir(parents=True)
        for number in range(count):
            Image.radial_gradient("L").resize(size).save(path / name / f"{number}.png")


def config(tmp_path, old="", new="", text=TINY):
    assert old in text
    (tmp_path / "tiny.yaml").write_text(text.replace(old, new) if old else text + new)
    return "tiny.yaml"


def image_folder(tmp_path, *more):
    config(tmp_path)
    return ("tiny.yaml", "DATA.DATASET", "{NAME: ImageFolder, root: x}", "DATA.LIMIT", "0", *more)


def finished_run(tmp_path, **overrides):
    return train(load_config(config(tmp_path), {"TRAIN.EPOCHS": 1, **overrides}))


# name: (prepare and return the arguments of train.py, what the message must say)
MISTAKES = {
    "misspelt key": (lambda p: [config(p, "BATCH_SIZE", "BACH_SIZE")],
                     ["tiny.yaml:6 DATA.BACH_SIZE: unknown key BACH_SIZE", "Did you mean BATCH_SIZE?"]),
    "misspelt key on the command line": (lambda p: [config(p), "TRAIN.EPOCS", "3"],
                                         ["command line TRAIN.EPOCS", "Did you mean EPOCHS?"]),
    "key in the wrong place": (lambda p: [config(p, new="LIMIT: 5\n")],
                               ["tiny.yaml:12 LIMIT", "Did you mean DATA.LIMIT?"]),
    "misspelt name": (lambda p: [config(p, "resnet18", "resnet81")],
                      ["tiny.yaml:2 MODEL.NAME: no model named 'resnet81'", "Did you mean resnet18?"]),
    "misspelt argument": (lambda p: [config(p, "padding", "pading")],
                          ["tiny.yaml:8 DATA.TRAIN_TRANSFORMS.0.pading", "Did you mean padding?"]),
    "missing argument": (lambda p: [config(p, "lr: 0.05, ", "")],
                         ["tiny.yaml:10 OPTIMIZER.NAME: optimizer SGD needs lr", "Set OPTIMIZER.lr."]),
    "missing component": (lambda p: [config(p, "MODEL: {NAME: resnet18, width: 4}", "")],
                          ["MODEL is missing", "tools/registry.py model"]),
    "wrong type of a key": (lambda p: [config(p, "EPOCHS: 2", "EPOCHS: two")],
                            ["tiny.yaml:11 TRAIN.EPOCHS: expected a whole number, not the string 'two'"]),
    "wrong type of an argument": (lambda p: [config(p, "lr: 0.05", "lr: small")],
                                  ["tiny.yaml:10 OPTIMIZER.lr", "takes float"]),
    "value that is refused": (lambda p: [config(p, "momentum: 0.9", "momentum: -1")],
                              ["tiny.yaml:10 OPTIMIZER.momentum", "Invalid momentum value"]),
    "duplicate key": (lambda p: [config(p, new="SEED: 1\nSEED: 2\n")],
                      ["tiny.yaml:13 SEED: SEED is set twice; first at tiny.yaml:12"]),
    "tab": (lambda p: [config(p, "  LIMIT", "\tLIMIT")],
            ["tiny.yaml:5", "YAML does not allow tabs"]),
    "missing file": (lambda p: [config(p).replace("tiny", "tinny")],
                     ["no config file tinny.yaml", "Did you mean tiny.yaml?"]),
    "missing base": (lambda p: [config(p, new="_BASE_: base.yaml\n")],
                     ["tiny.yaml:12 _BASE_: no config file base.yaml"]),
    "missing base that is elsewhere": (
        lambda p: [((p / "configs" / "_base_").mkdir(parents=True), (p / "configs" / "_base_" / "runtime.yaml").touch(),
                    config(p, new="_BASE_: runtime.yaml\n"))[-1]],
        ["tiny.yaml:12 _BASE_: no config file runtime.yaml", "Did you mean configs/_base_/runtime.yaml?"]),
    "circle of bases": (lambda p: [config(p, new="_BASE_: tiny.yaml\n")],
                        ["_BASE_ goes in a circle: tiny.yaml -> tiny.yaml"]),
    "key=value": (lambda p: [config(p), "TRAIN.EPOCHS=3"], ["Write KEY VALUE with a space"]),
    "a flag that other tools have": (lambda p: [config(p), "--epochs", "3"],
                                     ["no flag --epochs", "Did you mean TRAIN.EPOCHS?"]),
    "a flag for an argument": (lambda p: [config(p), "--lr", "0.1", "--check"],
                               ["no flag --lr", "OPTIMIZER.lr 0.05"]),
    "a misspelt flag": (lambda p: [config(p), "--chek"], ["no flag --chek", "Did you mean --check?"]),
    "batches of one": (lambda p: [config(p), "DATA.BATCH_SIZE", "1", "DATA.DATASET.size", "8",
                                  "DATA.TRAIN_TRANSFORMS", "[]"],
                       ["command line DATA.BATCH_SIZE: a batch of one image", "Raise it"]),
    "an item of a list that is not set": (lambda p: [config(p), "TTA.0.NAME", "HorizontalFlip"],
                                          ["TTA has 0 items; it is empty", "give the whole list: TTA '[…]'"]),
    "key without value": (lambda p: [config(p), "TRAIN.EPOCHS"], ["TRAIN.EPOCHS has no value"]),
    "classes that do not match": (lambda p: [config(p, "width: 4", "width: 4, num_classes: 5")],
                                  ["tiny.yaml:2 MODEL.num_classes", "is 5, but the data has 10"]),
    "a run without its flag": (lambda p: [config(p), str((p / "runs" / "x").mkdir(parents=True) or "runs/x")],
                               ["runs/x is a folder", "Name it with --run runs/x"]),
    "own code that is no Python": (
        lambda p: (p / "mine.py").write_text("a = 1\ndef f(:\n") and [config(p, new="IMPORTS: [mine.py]\n")],
        ["tiny.yaml:12 IMPORTS", "mine.py:2: invalid syntax"]),
    "a cycle of a momentum that is not there": (
        lambda p: [config(p, new="SCHEDULER: {NAME: OneCycleLR, cycle_momentum: true}\n"),
                   "OPTIMIZER", "{NAME: Adagrad, lr: 0.1}"],
        ["OneCycleLR", "no momentum to cycle: SCHEDULER.cycle_momentum false"]),
    "missing import": (lambda p: [config(p, new="IMPORTS: [gone.py]\n")],
                       ["tiny.yaml:12 IMPORTS: no file", "gone.py"]),
    "absent device": (lambda p: [config(p), "DEVICE", "cuda:9"],
                      ["command line DEVICE: device cuda:9 is not on this machine"]),
    "fp16 on a CPU": (lambda p: [config(p), "DEVICE", "cpu", "TRAIN.PRECISION", "fp16"],
                      ["command line TRAIN.PRECISION: fp16 is for GPUs"]),
    "unwritable run folder": (lambda p: [config(p), "OUTPUT_DIR", "tiny.yaml/runs"],
                              ["cannot write a run folder into tiny.yaml/runs", "OUTPUT_DIR"]),
    "no network and no data": (lambda p: [CIFAR],
                               ["CIFAR10 is not in data/ and cannot be downloaded",
                                "cifar-10-python.tar.gz", "tools/train.py resnet18_digits"]),
    "truncated data file": (lambda p: (p / "data").mkdir() or ((
        p / "data" / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8bhalf") and [CIFAR]),
                            ["CIFAR10 is missing or damaged in data/"]),
    "absent image folder": (image_folder, ["command line DATA.DATASET", "no folder x"]),
    "image that is not an image": (lambda p: (folder(p / "x"), (
        p / "x" / "ants" / "9.jpg").write_text("?"), image_folder(p))[-1],
        ["x/ants/9.jpg cannot be read as an image", "Replace or remove it"]),
    "mixed sizes": (lambda p: (folder(p / "x"), Image.radial_gradient("L").resize((40, 40)).save(
        p / "x" / "bees" / "big.png"), image_folder(p, "DATA.TRAIN_TRANSFORMS", "[]"))[-1],
        ["DATA.TRAIN_TRANSFORMS: images come out in different sizes, such as 32×32 and 40×40",
         "Put {NAME: Resize"]),
    "test images of mixed sizes": (lambda p: (folder(p / "x"), Image.radial_gradient("L").resize((40, 40)).save(
        p / "x" / "bees" / "big.png"), image_folder(
            p, "DATA.TRAIN_TRANSFORMS", "[{NAME: Resize, height: 48, width: 40}]"))[-1],
        ["DATA.TEST_TRANSFORMS: images come out in different sizes",
         "Put {NAME: Resize, height: 48, width: 40} first"]),
    "images too small for the model": (
        lambda p: [config(p), "MODEL", "{NAME: alexnet}"],
        ["model alexnet cannot take images of 3×32×32", "made for 63×63 pixels or more"]),
    "limit below the classes": (lambda p: [config(p), "DATA.LIMIT", "3"],
                                ["command line DATA.LIMIT", "less than one image of each"]),
    "a rate below 0": (lambda p: [config(p), "OPTIMIZER.lr", "-0.1"],
                       ["command line OPTIMIZER.lr: optimizer SGD cannot be built: Invalid learning rate: -0.1"]),
    "unknown monitor": (lambda p: [config(p), "TRAIN.MONITOR", "acuracy"],
                        ["command line TRAIN.MONITOR", "Did you mean accuracy?"]),
    "old argument of albumentations": (
        lambda p: [config(p, "{NAME: CutOut, size: 8}", "{NAME: CoarseDropout, max_holes: 1}")],
        ["tiny.yaml:9 DATA.TRAIN_TRANSFORMS.1.max_holes", "transform CoarseDropout has no argument",
         "Did you mean num_holes_range? It takes [int, int]."]),
    "a transform without NAME": (
        lambda p: [config(p), "DATA.TRAIN_TRANSFORMS", "[{NAME: HorizontalFlip}, {size: 8}]"],
        ["command line DATA.TRAIN_TRANSFORMS.1: this transform has no NAME"]),
    "another optimizer without its rate": (
        lambda p: [config(p), "OPTIMIZER.NAME", "AdamW"],
        ["OPTIMIZER.NAME: optimizer AdamW needs lr",
         "Changing NAME dropped lr 0.05 of tiny.yaml:10. Set OPTIMIZER.lr."]),
    "two rates": (lambda p: [config(p), "OPTIMIZER.lr", "[0.1, 0.01]"],
                  ["command line OPTIMIZER.lr: lr of optimizer SGD takes one number (float), not [0.1"]),
    "one rate as a list": (lambda p: [config(p), "OPTIMIZER.lr", "[0.1]"], ["takes one number (float)"]),
    "a rate with a comma": (lambda p: [config(p), "OPTIMIZER.lr", "0,05"],
                            ["lr of optimizer SGD takes float, not '0,05'", "Write 0.05."]),
    "a mistyped loss": (lambda p: [config(p), "LOSS.NAME", "TripletLoss"],
                        ["no loss named 'TripletLoss'", "Allowed: FocalLoss, BCELoss, BCEWithLogitsLoss, "
                         "CrossEntropyLoss, HuberLoss, KLDivLoss, L1Loss, MSELoss, "
                         "MultiLabelSoftMarginLoss, MultiMarginLoss, NLLLoss, SmoothL1Loss and 1 more."]),
    "a weight of no class": (lambda p: [config(p), "LOSS", "{NAME: FocalLoss, weight: {'11': 2}}"],
                             ["command line LOSS.weight.11: no class named '11'\n  Did you mean 1? Allowed: 0, 1, "]),
    "a sampler without its threshold": (lambda p: [config(p), "DATA.SAMPLER", "{NAME: repeat_factor}"],
                                        ["command line DATA.SAMPLER.NAME: sampler repeat_factor needs threshold"]),
    "a schedule that is a function": (
        lambda p: [config(p), "SCHEDULER", "{NAME: LambdaLR, lr_lambda: 0.9}"],
        ["no scheduler named 'LambdaLR'", "takes a function, which a config cannot hold"]),
    "a word within OneOf": (
        lambda p: [config(p, "{NAME: CutOut, size: 8}", "{NAME: OneOf, transforms: [CutOut]}")],
        ["tiny.yaml:9 DATA.TRAIN_TRANSFORMS.1.transforms.0", "Write {NAME: CutOut}."]),
    "no colon": (lambda p: [config(p, "LIMIT: 150", "LIMIT 150")],
                 ["tiny.yaml:5: not valid YAML", "Write KEY: value, with a colon and a space."]),
    "an open brace": (lambda p: [config(p, "size: 8}", "size: 8")],
                      ["tiny.yaml:9: not valid YAML", "A bracket is not closed"]),
    "an open brace on the command line": (
        lambda p: [config(p), "MODEL", "{NAME: resnet18"],
        ["command line MODEL: not valid YAML", "A value with spaces goes into quotes: MODEL '{"]),
    "a file that is a list": (lambda p: [config(p, text="- MODEL\n")], ["tiny.yaml:1: a config is a mapping"]),
    "no scheduler, in Python's words": (lambda p: [config(p), "SCHEDULER", "None"], ["Write null."]),
    "black CutOut": (lambda p: [config(p, "size: 8", "size: 8, fill: 0.4914")],
                     ["tiny.yaml:9 DATA.TRAIN_TRANSFORMS.1.fill", "fill is in pixel values, 0–255"]),
    "a loss that is none": (lambda p: [config(p, new="LOSS: {NAME: TripletMarginLoss}\n")],
                            ["tiny.yaml:12 LOSS.NAME", "no loss named 'TripletMarginLoss'",
                             "Did you mean MultiMarginLoss? Allowed: MultiMarginLoss, SoftMarginLoss, "]),
    "no run to resume": (lambda p: [config(p), "--resume"],
                         ["no run of tiny with a checkpoint in runs/"]),
    "a run that does not exist": (lambda p: [config(p), "--resume", "runs/tiny/gone"],
                                  ["no run runs/tiny/gone"]),
    "a run of another model": (
        lambda p: [config(p), "TRAIN.EPOCHS", "1", "MODEL.width", "8", "--resume",
                   finished_run(p).folder],
        ["cannot be resumed with another config: MODEL.width: 4 in the run, 8 now"]),
    "a damaged checkpoint": (
        lambda p: ((finished_run(p).folder / "checkpoints" / "last.pt").write_bytes(b"damaged"),
                   ["tiny.yaml", "TRAIN.EPOCHS", "1", "--resume"])[-1],
        ["last.pt is damaged or no checkpoint"]),
}


def test_there_are_at_least_25():
    assert len(MISTAKES) >= 54


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_message(tool, tmp_path, monkeypatch, name):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    prepare, expected = MISTAKES[name]
    arguments = prepare(tmp_path)

    def files():
        return {path: path.read_bytes() if path.is_file() else None
                for path in tmp_path.rglob("*") if ".cache" not in path.parts}

    before = files()
    code, out, err = tool("train.py", *arguments)
    assert code == 2
    assert err.startswith("error: ") and "Traceback" not in err + out
    for text in expected:
        assert text in err
    assert len(err.splitlines()) <= 6
    assert files() == before


def test_several_mistakes_are_told_at_once(tool, tmp_path):
    text = TINY.replace("padding", "pading").replace("resnet18", "resnet81").replace("lr: 0.05, ", "")
    code, _, err = tool("train.py", config(tmp_path, text=text))
    assert code == 2 and "3 problems" in err
    assert all(word in err for word in ("resnet81", "pading", "needs lr"))


@pytest.mark.parametrize("arguments, expected", [
    (["evaluate.py"], "no run with a checkpoint in runs/"),
    (["evaluate.py", "--run", "gone"], "no run gone"),
    (["train.py", "--resume", "runs/tiny/gone"], "no run runs/tiny/gone\n  Train one: python tools/train.py CONFIG"),
    (["train.py", "--resume", "auto"], "CONFIG is missing"),
    (["train.py", "--resume", "auto", "TRAIN.EPOCHS", "3"], "CONFIG is missing"),
    (["find_lr.py", "a.yaml", "--step", "3"],
     "no flag --step\n  Did you mean --steps? The flags are --lowest, --highest, --steps, --out."),
    (["train.py", "a.yaml", "--resum"],
     "no flag --resum\n  Did you mean --resume? The flags are --resume, --seeds, --folds, --repeats, --check, --print-config, --list."),
    (["train.py", "a.yaml", "--fold", "3"], "Did you mean --folds or DATA.FOLD? The flags are"),
    (["train.py", "a.yaml", "--seed=3"], "Did you mean --seeds or SEED? The flags are"),
    (["sweep.py", "a.yaml", "--trials", "3"], "Did you mean SWEEP.TRIALS? The flags are --workers, --status."),
    (["train.py", "a.yaml", "--epochs=3"], "Did you mean TRAIN.EPOCHS? The flags are --resume, --seeds"),
    (["evaluate.py", "--ru", "x"], "no flag --ru\n  Did you mean --run?"),
    (["compare.py", "a", "b", "--srot", "lr"],
     "Did you mean --sort? The flags are --sort, --csv, --curves, --disagreements, --out, --results, --note."),
    (["compare.py", "a", "b", "--count", "3"], "no flag --count\n  Did you mean --disagreements N? The flags are"),
    (["registry.py", "--imports", "x"], "Did you mean --import? The flags are --import."),
    (["benchmark.py", "--jsn"], "Did you mean --json? The flags are --json."),
    (["evaluate.py", "x", "--run"], "expected at least one argument"),
    (["registry.py", "--import", "."], "'.' cannot be a module of yours"),
    (["registry.py", "SGD"], "It is an optimizer: python tools/registry.py optimizer SGD"),
    (["registry.py", "modell"], "Did you mean model?"),
    (["registry.py", "CutOut"], "It is a transform: python tools/registry.py transform CutOut"),
    (["registry.py", "model", "resnet81"], "Did you mean resnet18?"),
    (["registry.py", "--import", "gone.py"], "no file gone.py")])
def test_mistakes_with_the_other_tools(tool, arguments, expected):
    code, _, err = tool(*arguments)
    assert code == 2 and expected in err and "Traceback" not in err


def cut(run):
    path = run.folder / "predictions.npz"
    path.write_bytes(path.read_bytes()[:500])


def other_labels(run):
    predictions = run.predictions
    replace(predictions, true=(predictions.true + 1) % 3).save(run.folder / "predictions.npz")


# name: (what is done to the run, the arguments of visualize.py, what the message must say)
DRAWING = {
    "no run yet": (lambda run: shutil.rmtree(run.folder.parents[1]), ["--cam"],
                   ["no run with a checkpoint in runs/", "Train one: python tools/train.py CONFIG"]),
    "no such run": (None, ["--run", "runs/painted/x", "--cam"], ["no run runs/painted/x", "The newest runs, the last one first:\n    runs/painted/"]),
    "a run folder without a checkpoint": (
        lambda run: [path.unlink() for path in (run.folder / "checkpoints").iterdir()],
        ["--run", "RUN", "--misclassified", "5"], ["no checkpoint", "last.pt"]),
    "a run without predictions": (lambda run: (run.folder / "predictions.npz").unlink(), ["--confusion"],
                                  ["predictions.npz", "python tools/evaluate.py --run"]),
    "damaged predictions": (cut, ["--misclassified", "5"],
                            ["predictions.npz is damaged", "python tools/evaluate.py --run"]),
    "predictions of other images": (other_labels, ["--cam"], ["predictions.npz is of other test images"]),
    "data that has gone": (None, ["--misclassified", "5", "DATA.DATASET.root", "gone"], ["gone"]),
    "a layer below 5×5": (None, ["--cam-layer", "layer4"],
                          ["layer4 has a map of 4×4 pixels", "Possible are", "layer3"]),
    "no such layer": (None, ["--cam-layer", "layr3"], ["no layer 'layr3'", "Did you mean layer3?"]),
    "no such method": (None, ["--cam-method", "GradCam++"], ["Did you mean GradCAM?", "GradCAMPlusPlus"]),
    "none asked for": (None, ["--misclassified", "0"], ["count is 1 or more, not 0"]),
    "fewer than none": (None, ["--cam", "--misclassified", "-5"], ["count is 1 or more, not -5"]),
    "a count in words": (None, ["--misclassified", "ten"], ["takes int, not 'ten'"]),
    "no such class": (None, ["--misclassified-true-class", "rad"], ["no class named 'rad'", "Did you mean red?"]),
    "a misspelt flag": (None, ["--rport"], ["no flag --rport", "Did you mean --report?", "--cam,", "--run,", "--all,"]),
    "no such picture": (None, ["--confusoin"], ["no flag --confusoin", "Did you mean --confusion?"]),
    "no such flag of a picture": (None, ["--cam-layr", "layer3"], ["Did you mean --cam-layer?"]),
    "a run without --run": (None, ["RUN", "--curves"], ["is a run folder", "Name it with --run"]),
    "a picture without dashes": (None, ["cam"], ["cam is a picture", "Write --cam"]),
    "nothing to draw": (None, [], ["painted lists no VISUALIZERS", "--misclassified 10"]),
    "no such format": (None, ["--cam", "--format", "gif"], ["invalid choice: 'gif'"]),
    "hardly any dots": (None, ["--confusion", "--dpi", "1"], ["--dpi is 10 to 1200, not 1"]),
    "far too many dots": (None, ["--confusion", "--dpi", "100000"], ["--dpi is 10 to 1200"]),
    "a report with TTA": (
        None, ["--report", "TTA", "[{NAME: HorizontalFlip}]"], ["--report is of what the run says by the TTA of its config"]),
    "a report as pdf": (None, ["--report", "--format", "pdf"], ["no --all, --format or --dpi"]),
    "a run's seed": (None, ["--confusion", "SEED", "3"], ["SEED cannot be changed in a run"]),
    "a picture of a run from a config": (None, ["tiny.yaml", "--misclassified", "5"],
                                         ["misclassified needs one finished run", "--run RUN"]),
    "a picture of one run from two": (None, ["--run", "RUN", "RUN", "--cam"],
                                      ["cam needs one finished run; this is a set of runs"]),
    "a picture of two runs from one": (None, ["--disagreements"], ["two or more runs", "--run A B"]),
    "a report of a config": (None, ["tiny.yaml", "--report"], ["a report is of one finished run"]),
    "a config whose data is absent": (None, [CIFAR, "--dataset", "DATA.DATASET.root", "gone",
                                             "DATA.DATASET.download", "false"],
                                      ["CIFAR10 is not in gone/", "cifar-10-python.tar.gz"]),
    "an unreadable config": (None, ["gone.yaml", "--dataset"], ["no config file gone.yaml"]),
}


def test_the_count_of_drawing_mistakes_does_not_shrink():
    assert len(DRAWING) >= 30


@pytest.mark.parametrize("name", DRAWING)
def test_mistakes_in_drawing(tool, tmp_path, painted, name):
    damage, arguments, expected = DRAWING[name]
    config(tmp_path)
    if damage:
        damage(painted)

    def files():
        return {path: path.read_bytes() if path.is_file() else None
                for path in tmp_path.rglob("*") if ".cache" not in path.parts}

    before = files()
    words = [str(painted.folder) if word == "RUN" else word for word in arguments]
    code, out, err = tool("visualize.py", *words)
    assert code == 2 and "Traceback" not in err + out
    assert all(text in err for text in expected), err
    assert files() == before


def test_a_bug_in_own_code_keeps_its_traceback(tool, tmp_path, monkeypatch):

    (tmp_path / "mine.py").write_text(
        "from cvkit import MODELS\n\n@MODELS.register()\ndef broken_net(num_classes):\n"
        "    return 1 / 0\n")
    path = config(tmp_path, "MODEL: {NAME: resnet18, width: 4}",
                  "IMPORTS: [mine.py]\nMODEL: {NAME: broken_net}")
    monkeypatch.setattr(sys, "argv", ["train.py", path])
    with pytest.raises(ZeroDivisionError):
        tool("train.py", path)
