import multiprocessing
import re
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from helpers import fill
from PIL import Image
from torch.nn import functional as F

from cvkit.config import load_config
from cvkit.deployment.predict_files import predict_files
from cvkit.errors import CheckpointError, ConfigError, DataError, RunError
from cvkit.evaluation.predictor import Predictor
from cvkit.evaluation.run_evaluation import evaluate
from cvkit.registry import DATASETS
from cvkit.runs.folder import MAY_EVALUATE, Run, open_run
from cvkit.session import train

FP32 = ["TRAIN.PRECISION", "fp32"]


@pytest.fixture(scope="module")
def _in_full_precision(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    return train(load_config(folder / "tiny.yaml", [*FP32, "OUTPUT_DIR", str(folder / "runs")])).folder


@pytest.fixture
def run(_in_full_precision, tmp_path):
    folder = tmp_path / "runs" / "tiny" / _in_full_precision.name
    return Run(shutil.copytree(_in_full_precision, folder))


def test_predictions_are_the_model_s_on_the_test_images_and_no_others(run):
    predictions = run.predictions
    test = DATASETS.build("Digits").test
    labels = dict(zip(test.index.tolist(), test.labels.tolist(), strict=True))
    assert len(predictions.index) == 150 and set(predictions.index) <= set(test.index)
    assert [labels[place] for place in predictions.index] == predictions.true.tolist()

    checkpoint = run.checkpoint()
    images = test.images[predictions.index].astype(np.float32) / 255
    images = (images - np.float32(checkpoint.mean)) / np.float32(checkpoint.std)
    with torch.no_grad():
        logits = checkpoint.build_model()(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert np.allclose(predictions.probabilities, logits.softmax(1), atol=1e-5)
    assert predictions.predicted.tolist() == logits.argmax(1).tolist()
    loss = F.cross_entropy(logits, torch.from_numpy(predictions.true))
    assert predictions.loss == pytest.approx(float(loss), rel=1e-5)  # over images, 64 + 64 + 22
    assert run.metrics[-1]["test/loss"] == pytest.approx(predictions.loss, rel=1e-6)
    assert run.metrics[-1]["test/accuracy"] == predictions.accuracy
    log = (run.folder / "train.log").read_text()
    assert f"Accuracy: {predictions.correct}/150 ({100 * predictions.accuracy:.2f}%)" in log


def test_evaluating_again_writes_the_same_predictions(run):
    before = run.predictions
    (run.folder / "predictions.npz").unlink()
    again = evaluate(run.folder)
    for name, value in vars(before).items():
        assert np.array_equal(getattr(again, name), value), name
        assert np.array_equal(getattr(run.predictions, name), value)


def test_a_moved_run_is_evaluated_where_it_is(run, tmp_path):
    shutil.move(run.folder, tmp_path / "moved")
    assert evaluate(tmp_path / "moved").accuracy == open_run(tmp_path / "moved").predictions.accuracy
    assert not run.folder.exists()


def test_workers_are_ended_with_the_evaluation(quick):
    run = train(load_config(quick, {"TRAIN.EPOCHS": 1, "DATA.TEST_TRANSFORMS": [{"NAME": "Resize", "height": 8, "width": 8}],
                                    "DATA.CACHE_GB": 0.0, "DATA.WORKERS": 1}))
    loader = run.loaders.test
    evaluate(run)
    assert loader.source._loader.num_workers == 1 and not multiprocessing.active_children()


def test_the_newest_run_is_evaluated_by_default(run):
    before = run.predictions.probabilities
    (run.folder / "predictions.npz").unlink()
    assert np.array_equal(evaluate().probabilities, before)
    assert np.array_equal(run.predictions.probabilities, before)


def test_the_newest_run_is_looked_for_where_output_dir_says(run, painted, tool):
    shutil.copytree("runs/painted", "other/painted")
    before = {path: path.read_bytes() for path in Path("runs").rglob("predictions.npz")}
    code, out, _ = tool("evaluate.py", "OUTPUT_DIR", "other")
    assert code == 0 and f"run other/painted/{painted.folder.name}\n" in out
    assert evaluate(overrides={"OUTPUT_DIR": "other"}).is_of_same_images(painted.predictions)
    assert {path: path.read_bytes() for path in Path("runs").rglob("predictions.npz")} == before


def test_test_images_are_normalised_as_in_training_even_if_the_training_images_changed(tiny):
    for split in ("train", "test"):
        fill(Path("x") / split, {"a": 20, "b": 20}, size=(32, 32))
    before = train(load_config(tiny, [*FP32, "DATA.DATASET", "{NAME: ImageFolder, root: x}",
                                      "DATA.LIMIT", "0"]))
    expected = before.predictions.probabilities
    fill(Path("more"), {"a": 30}, size=(32, 32))
    for path in Path("more/a").iterdir():
        path.rename(Path("x/train/a") / f"more{path.name}")
    assert np.array_equal(evaluate(before).probabilities, expected)


def test_balanced_weights_are_those_of_the_training_whatever_images_are_there_now(tiny, capsys):
    for split, counts in (("x/train", {"a": 30, "b": 6, "c": 12}), ("x/test", {"a": 5, "b": 5, "c": 2}),
                          ("other/train", {"a": 3, "b": 9, "c": 9}), ("other/test", {"a": 5, "b": 5, "c": 2})):
        fill(Path(split), counts, size=(32, 32))
    run = train(load_config(tiny, [*FP32, "DATA.DATASET", "{NAME: ImageFolder, root: x}", "DATA.LIMIT", "0",
                                   "LOSS", "{NAME: CrossEntropyLoss, weight: balanced}", "TRAIN.EPOCHS", "1"]))
    assert "loss       weight balanced: 0.533 (a) to 2.67 (b)" in capsys.readouterr().out
    weights = 48 / 3 / np.array([30, 6, 12])
    said = run.predictions
    own = weights[said.true]
    losses = -np.log(said.probabilities[np.arange(12), said.true].astype(float))
    expected = (own * losses).sum() / own.sum()  # as torch's CrossEntropyLoss has it
    assert said.loss == pytest.approx(expected, rel=1e-5)
    assert run.metrics[-1]["test/loss"] == said.loss
    for size in (1, 5):
        again = evaluate(run, {"DATA.DATASET.root": "other", "DATA.EVAL_BATCH_SIZE": size})
        assert again.loss == pytest.approx(expected, rel=1e-5)
    assert run.checkpoint().images["class_counts"] == [30, 6, 12]


def test_data_that_changed_its_classes_is_refused(run):
    path = run.folder / "config.yaml"
    text = path.read_text().replace("NAME: Digits", "NAME: ImageFolder\n    root: x")
    path.write_text(text)
    fill(Path("x"), {name: 80 for name in "ab"}, size=(32, 32))
    with pytest.raises(CheckpointError, match="was trained on the classes 0, 1, 2"):
        evaluate(run.folder)


def said_of_files(run, overrides):
    """Evaluate, and return by file's name the class that it has, and the probabilities by class."""
    opened = Run(run.folder, overrides, MAY_EVALUATE)
    said = evaluate(opened)
    names = [Path(opened.data.test.images.paths[place]).stem for place in said.index]
    return {name: (said.classes[true], dict(zip(said.classes, row.tolist(), strict=True)))
            for name, true, row in zip(names, said.true, said.probabilities, strict=True)}


def test_classes_in_another_order_are_brought_into_that_of_the_training(quick):
    """A table has numbers by their size, folders have them as words: 10 before 2."""
    random = np.random.default_rng(0)
    for number in range(11):
        for count in range(3):
            Path("own", str(number)).mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"own/{number}/of_{number}_{count}.png")
    files = sorted(map(str, Path("own").rglob("*.png")))
    Path("own.csv").write_text("file,label\n" + "".join(f"{file},{file.split('/')[1]}\n" for file in files))
    of_folders, of_table = {"NAME": "ImageFolder", "root": "own"}, {"NAME": "CSVDataset", "path": "own.csv"}
    for trained_on in (of_folders, of_table):
        run = train(load_config(quick, {"DATA.DATASET": trained_on, "DATA.LIMIT": 0, "TRAIN.EPOCHS": 1,
                                        "TRAIN.PRECISION": "fp32"}))
        one, other = (said_of_files(run, {"DATA.DATASET": {**node, "test_fraction": 1.0}})
                      for node in (of_folders, of_table))
        assert len(one) == 33 and one.keys() == other.keys()
        for name, (true, probabilities) in one.items():
            assert true == other[name][0] == name.split("_")[1]
            assert other[name][1] == pytest.approx(probabilities, abs=1e-5)


def test_accents_may_be_written_in_two_ways(quick, tmp_path):
    for form in ("NFC", "NFD"):
        for name in ("Bär", "Kühe", "Löwe"):
            fill(Path(form), {unicodedata.normalize(form, name): 5}, (32, 32))
    run = train(load_config(quick, {"DATA.DATASET": {"NAME": "ImageFolder", "root": "NFC"}, "DATA.LIMIT": 0,
                                    "TRAIN.EPOCHS": 1}))
    said = evaluate(run.folder, {"DATA.DATASET.root": "NFD"})
    assert said.classes == ["Bär", "Kühe", "Löwe"] and np.bincount(said.true).tolist() == [5, 5, 5]
    outcome = predict_files(Predictor(run.folder), ["NFD"], table="said.csv")
    assert outcome.known == 15 and outcome.correct == said.correct and outcome.notes == []


def test_of_many_classes_those_that_differ_are_named(run):
    checkpoint = run.checkpoint()
    checkpoint.classes = [f"class {number:03}" for number in range(300)]
    run._trained = checkpoint
    data = DATASETS.build("Digits")
    many = replace(data, classes=[*checkpoint.classes[:-1], "another"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cvkit.runs.experiment.build_data", lambda config: many)
        with pytest.raises(CheckpointError) as caught:
            _ = run.data
    assert len(str(caught.value)) < 1000
    assert str(caught.value).endswith("\n  not there any more: class 299; new: another")


def other_images(folder, classes=("blue", "green", "red"), size=(32, 32)):
    for split in ("train", "test"):
        fill(folder / split, dict.fromkeys(classes, 9), size)
    return folder


def test_a_run_is_evaluated_on_other_images_and_by_other_metrics(painted, tool, tmp_path):
    other, path = other_images(tmp_path / "other"), painted.folder / "predictions.npz"
    before = path.read_bytes()
    code, out, err = tool("evaluate.py", "DATA.DATASET.root", other, "--run", painted.folder,
                          "METRICS", "[{NAME: TopKAccuracy, k: 2}, {NAME: PerClassAccuracy}]",
                          "TRAIN.PRECISION", "fp32")
    assert code == 0, err
    assert f"Not written to {path}: it holds what the run says with METRICS" in out
    said = evaluate(painted, {"DATA.DATASET.root": str(other), "TRAIN.PRECISION": "fp32",
                              "METRICS": [{"NAME": "TopKAccuracy", "k": 2}]})
    assert path.read_bytes() == before and len(said.true) == 27

    checkpoint = painted.checkpoint()  # its classes and normalisation, by hand
    test = DATASETS.build({"NAME": "ImageFolder", "root": str(other)}, seed=0).test
    images = np.stack([test.image(number) for number in range(27)]).astype(np.float32) / 255
    images = (images - np.float32(checkpoint.mean)) / np.float32(checkpoint.std)
    with torch.no_grad():
        logits = checkpoint.build_model()(torch.from_numpy(images).permute(0, 3, 1, 2))
    labels = torch.from_numpy(test.labels)
    top2 = float((logits.topk(2).indices == labels[:, None]).any(1).double().mean())
    assert np.allclose(said.probabilities, logits.softmax(1), atol=1e-5)
    assert said.metrics["top2"] == pytest.approx(top2)
    assert f"top2: {top2:.4f}" in out and f"Accuracy: {said.correct}/27" in out


def test_the_run_s_own_images_in_another_place_are_written(painted, tmp_path, capsys):
    place = painted.config.DATA.DATASET.root
    shutil.copytree(place, tmp_path / "moved")
    path = painted.folder / "predictions.npz"
    before = painted.predictions
    for root, words in ((tmp_path / "moved", f"Written to {path}"),
                        (other_images(tmp_path / "other"), f"Not written to {path}: it is of other")):
        evaluate(painted.folder, {"DATA.DATASET.root": str(root)})
        assert words in capsys.readouterr().out
    assert np.array_equal(painted.predictions.index, before.index)
    path.unlink()
    evaluate(painted.folder, {"DATA.DATASET.root": str(tmp_path / "other")})
    assert "whether these are the run's images is not known" in capsys.readouterr().out
    assert not path.exists()


@pytest.fixture
def of_classes(tiny):
    """A run on class folders without splits, as the painted one; of 15 images 3 are tested."""
    fill(Path("own"), dict.fromkeys(("blue", "green", "red"), 5), (32, 32))
    return train(load_config(tiny, [*FP32, "DATA.DATASET", "{NAME: ImageFolder, root: own}", "DATA.LIMIT", "0",
                                    "TRAIN.EPOCHS", "1"]))


def test_another_folder_of_classes_is_tested_whole_and_the_run_s_own_as_it_was(of_classes, tool, tmp_path):
    def said(root, *words):
        code, out, err = tool("evaluate.py", "--run", of_classes.folder, "DATA.DATASET.root", root, *words)
        assert code == 0, err
        return int(re.search(r"Accuracy: \d+/(\d+)", out).group(1)), out

    shutil.copytree("own", "moved")
    for root in ("own", tmp_path / "own", "moved"):
        count, out = said(root)
        assert count == 3 and "Written to" in out and "tested" not in out
    fill(tmp_path / "other", {"blue": 1, "green": 9, "red": 10}, (32, 32))
    count, out = said("other")
    assert count == 20 and "data       20 images of other are tested, none is set aside" in out
    assert "Not written to" in out and "it is of other images" in out
    count, out = said("other", "DATA.LIMIT", "6")
    assert "images of other are tested (DATA.LIMIT 6), none is set aside" in out and count < 20
    fill(tmp_path / "more", dict.fromkeys(("blue", "green", "red"), 10), (32, 32))
    part = "data       9 of 30 images of more are tested, as test_fraction sets them aside; DATA.DATASET.test_fraction 1"
    count, out = said("more", "DATA.DATASET.test_fraction", "0.3")
    assert count == 9 and part in out
    (of_classes.folder / "predictions.npz").unlink()  # these may be the run's own, for all that is known
    count, out = said("more")
    assert count == 6 and part.replace("9 of", "6 of") in out
    assert said("more", "DATA.DATASET.test_fraction", "1")[0] == 30
    with pytest.raises(ConfigError, match="test_fraction lies between 0 and 1"):  # of a training
        DATASETS.build({"NAME": "ImageFolder", "root": "more", "test_fraction": 1.0})


@pytest.fixture
def of_folds(quick):
    """A run on one of three folds of class folders without splits: of 15 images 6 are tested."""
    fill(Path("own"), dict.fromkeys(("blue", "green", "red"), 5), (32, 32))
    return train(load_config(quick, [*FP32, "DATA.DATASET", "{NAME: ImageFolder, root: own}", "DATA.LIMIT", "0",
                                     "TRAIN.EPOCHS", "1", "DATA.FOLDS", "3"]))


def test_another_folder_is_tested_whole_by_the_run_of_a_fold_and_its_own_as_it_was(of_folds, capsys):
    def said(root, *words):
        predictions = evaluate(of_folds.folder, ["DATA.DATASET.root", root, *words])
        return predictions.index.tolist(), capsys.readouterr().out

    own = of_folds.predictions.index.tolist()
    shutil.copytree("own", "moved")
    for root in ("own", "moved"):
        tested, out = said(root)
        assert tested == own and "fold 0 of 3 of 15 images is tested" in out and "Written to" in out
    fill(Path("other"), dict.fromkeys(("blue", "green", "red"), 7), (32, 32))
    tested, out = said("other")
    assert tested == list(range(21)) and "data       21 images of other are tested, none is set aside" in out
    assert "fold" not in out.split("Not written")[0].replace(str(of_folds.folder), "")
    # With splits of its own, its test images, and none of train/.
    tested, out = said(str(other_images(Path("splits").absolute())))
    assert tested == list(range(27)) and "none is set aside" not in out and "left out" not in out
    fill(Path("alone/test"), {"blue": 1, "green": 2, "red": 4}, (32, 32))
    assert said("alone")[0] == list(range(7))
    tested, out = said("other", "DATA.LIMIT", "6")
    assert len(set(tested)) == 6
    (of_folds.folder / "predictions.npz").unlink()  # these may be the run's own, for all that is known
    tested, out = said("other")
    assert len(tested) == 7 and (
        "7 of 21 images of other are tested, as DATA.FOLDS sets them aside; DATA.DATASET.test_fraction 1 tests all" in out)
    assert said("other", "DATA.DATASET.test_fraction", "1")[0] == list(range(21))


def test_runs_of_all_folds_are_averaged_on_another_folder(quick):
    fill(Path("own"), dict.fromkeys(("blue", "green", "red"), 4), (32, 32))
    fill(Path("other"), dict.fromkeys(("blue", "green", "red"), 3), (32, 32))
    runs = [train(load_config(quick, {
        "DATA.DATASET": {"NAME": "ImageFolder", "root": "own"}, "DATA.LIMIT": 0, "TRAIN.EPOCHS": 1, "DATA.FOLDS": 2,
        "DATA.FOLD": fold, "TRAIN.PRECISION": "fp32"})).folder for fold in range(2)]
    words = ["DATA.DATASET.root", "other"]
    together = evaluate(runs, words)
    assert together.index.tolist() == list(range(9)) and together.models == 2
    each = [evaluate(run, words).probabilities for run in runs]
    assert np.allclose(together.probabilities, np.mean(each, 0), atol=1e-6)


def test_validation_images_are_of_a_training_and_none_are_held_out_of_other_images(quick, capsys):
    fill(Path("own"), dict.fromkeys(("blue", "green", "red"), 6), (32, 32))
    run = train(load_config(quick, {"DATA.DATASET": {"NAME": "ImageFolder", "root": "own"}, "DATA.LIMIT": 0,
                                    "TRAIN.EPOCHS": 1, "DATA.VAL_FRACTION": 0.2}))
    own = run.predictions.index.tolist()
    fill(Path("few"), {"blue": 2, "green": 1, "red": 5}, (32, 32))
    fill(Path("two"), {"blue": 2, "green": 2, "red": 5}, (32, 32))
    fill(Path("alone/test"), {"blue": 2, "green": 1, "red": 5}, (32, 32))
    for split in ("train", "val", "test"):
        fill(Path("three", split), {"blue": 2, "green": 1, "red": 1 + len(split)}, (32, 32))
    for root, count in (("few", 8), ("two", 9), ("alone", 8), ("three", 8)):
        said = evaluate(run.folder, ["DATA.DATASET.root", root])
        assert said.index.tolist() == list(range(count)), root
        assert ("none is set aside" in capsys.readouterr().out) == (root != "three")
    shutil.copytree("own", "moved")
    assert evaluate(run.folder, ["DATA.DATASET.root", "moved"]).index.tolist() == own
    for words in ({"DATA.DATASET.test_fraction": 1.5}, {"DATA.DATASET.colour": 1}):
        with pytest.raises(ConfigError, match="test_fraction lies between|has no argument .colour"):
            evaluate(run.folder, {"DATA.DATASET.root": "few", **words})


@pytest.mark.parametrize("split", ["test", "val"])
def test_other_images_need_no_folder_train_and_what_was_skipped_is_said(painted, tmp_path, capsys, split):
    fill(tmp_path / "other" / split, dict.fromkeys(("blue", "green", "red"), 7), (32, 32))
    (tmp_path / "other" / split / "red" / "a.heic").write_text("of a phone")
    (tmp_path / "other" / split / "red" / "000.png").write_text("no image")
    said = evaluate(painted.folder, {"DATA.DATASET.root": str(tmp_path / "other"),
                                     "DATA.DATASET.skip_unreadable": True})
    out = capsys.readouterr().out
    assert len(said.true) == 20
    assert out.count(f"data       1 other file ignored in {split}/ (.heic 1)\n") == 1
    assert "left out   1 image file that cannot be read, " in out
    with pytest.raises(DataError, match=f"has {split}/ but no train/"):  # for a training
        DATASETS.build({"NAME": "ImageFolder", "root": str(tmp_path / "other")})


def test_a_folder_without_the_folders_that_the_config_names_is_tested_whole_if_that_is_said(painted, quick, tmp_path):
    root = painted.config.DATA.DATASET.root
    run = train(load_config(quick, {"DATA.DATASET": {"NAME": "ImageFolder", "root": root, "test": "test", "train": "train"},
                                    "DATA.LIMIT": 0, "TRAIN.EPOCHS": 1}))
    fill(tmp_path / "other", dict.fromkeys(("blue", "green", "red"), 4), (32, 32))
    other = str(tmp_path / "other")
    with pytest.raises(ConfigError) as caught:
        evaluate(run.folder, {"DATA.DATASET.root": other})
    assert str(caught.value) == (
        f"Python DATA.DATASET.root: {other} has none of the folders train, test, which the run's config names\n"
        "  To test all of it: DATA.DATASET.train null DATA.DATASET.test null")
    count = sum(1 for _ in Path(other).rglob("*.png"))
    assert count and len(evaluate(run.folder, {"DATA.DATASET.root": other, "DATA.DATASET.train": None,
                                               "DATA.DATASET.test": None}).true) == count


GREY = "[{NAME: ToGray, num_output_channels: 1, p: 1.0}]"


@pytest.mark.parametrize("classes, words, expected", [
    (("blue", "green"), [], "was trained on the classes blue, green, red, but .* blue, green\n"
     "  Of pictures of some classes in folders called as these, python tools/predict.py .* FOLDER tells the accuracy.$"),
    (("blue", "green", "teal"), [], "but the data now has blue, green, teal"),
    (("blue", "green", "red"), ["DATA.TRAIN_TRANSFORMS", GREY, "DATA.TEST_TRANSFORMS", GREY],
     "was trained on images with 3 channels, these have 1")])
def test_images_that_the_run_cannot_be_evaluated_on_are_told_in_one_message(painted, tool, tmp_path,
                                                                            classes, words, expected):
    other = other_images(tmp_path / "other", classes)
    code, _, err = tool("evaluate.py", "--run", painted.folder, "DATA.DATASET.root", other, *words)
    assert code == 2 and re.search(f"^error: .*{expected}", err, re.MULTILINE)
    assert "Traceback" not in err


def test_images_of_another_size_are_said(painted, tmp_path, capsys):
    other = other_images(tmp_path / "other", size=(48, 48))
    evaluate(painted.folder, {"DATA.DATASET.root": str(other)})
    assert "the images are 3×48×48, those of the training were 3×32×32" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["MODEL.width", "SEED", "TRAIN.EPOCHS"])
def test_what_was_trained_cannot_be_changed_for_an_evaluation(painted, key):
    with pytest.raises(ConfigError, match=f"{key} cannot be changed in a run that was trained"):
        evaluate(painted.folder, {key: 1})


def test_the_model_of_a_run_needs_no_images(painted):
    gone = open_run(painted.folder, overrides={"DATA.DATASET.root": "gone", "DEVICE": "cpu"})
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(gone.model(images), painted.checkpoint().build_model()(images), atol=1e-5)
    with pytest.raises(DataError, match="gone"):
        gone.loaders  # noqa: B018


@pytest.mark.parametrize("first", ["model", "loaders"])
def test_images_lie_in_memory_as_the_model_does_whichever_is_asked_for_first(run, monkeypatch, first):
    monkeypatch.setattr("cvkit.runs.experiment.choose_layout", lambda *_: torch.contiguous_format)
    getattr(run, first), run.model
    assert run.loaders.test.layout is torch.contiguous_format


def test_a_run_without_checkpoint_is_refused(run):
    shutil.rmtree(run.folder / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        evaluate(run.folder)
    with pytest.raises(RunError, match="no run with a checkpoint"):
        evaluate()


def test_other_files_of_the_same_names_and_sizes_are_not_taken_for_the_run_s_own(tiny, tmp_path, capsys):
    fill(Path("own"), dict.fromkeys(("blue", "green", "red"), 5), (32, 32))
    for path in Path("own").rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    run = train(load_config(tiny, [*FP32, "DATA.DATASET", "{NAME: ImageFolder, root: own}", "DATA.LIMIT", "0",
                                   "TRAIN.EPOCHS", "15"]))
    shutil.copytree("own", "other")
    for path in Path("other").rglob("*.bmp"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    before = (run.folder / "predictions.npz").read_bytes()
    evaluate(run.folder, {"DATA.DATASET.root": "other"})
    assert "predictions.npz: the run says something else of these files" in capsys.readouterr().out
    assert (run.folder / "predictions.npz").read_bytes() == before
    # Those that are stale are renewed, wherever the images lie by now.
    shutil.copytree("own", "moved")
    shutil.copy(run.folder / "predictions.npz", "early.npz")
    more = train(load_config(run.folder / "config.yaml", {"TRAIN.EPOCHS": 30}), resume=run.folder)
    assert more.predictions.epoch == 30
    expected = more.predictions.probabilities
    shutil.copy("early.npz", run.folder / "predictions.npz")
    evaluate(run.folder, {"DATA.DATASET.root": "moved"})
    assert "Written to" in capsys.readouterr().out
    assert np.allclose(Run(run.folder).predictions.probabilities, expected, atol=1e-5)
