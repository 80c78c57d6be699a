"""Trainings of one config with several seeds, or folds: each as it would be alone, and together."""

import math
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import paint
from helpers import at_step, equal, without_times
from scipy import stats

from cvkit.config import load_config
from cvkit.data.build import build_data, images_of_folds
from cvkit.errors import ConfigError, RunError, UserError
from cvkit.repeat import train_folds, train_seeds
from cvkit.runs.folder import Run
from cvkit.runs.group import open_group
from cvkit.runs.predictions import Predictions
from cvkit.runs.spread import Spread
from cvkit.session import train
from cvkit.training.signals import Interrupted


@pytest.fixture
def config(quick):
    return load_config(quick, {"DATA.LIMIT": 90})


@pytest.fixture
def three(config):
    return train_seeds(config, 3)


def weights(run):
    return run.checkpoint("last").model


def test_each_seed_is_the_run_that_it_would_be_alone_and_all_are_tested_on_the_same_images(
        three, quick):
    assert [run.folder.name for run in three.runs] == ["seed_0", "seed_1", "seed_2"]
    assert three.folder.name.endswith("_seeds") and three.folder.parent.name == "tiny"
    alone = train(load_config(quick, {"DATA.LIMIT": 90, "SEED": 2}))
    assert equal(weights(three.runs[2]), weights(alone))
    assert not equal(weights(three.runs[1]), weights(alone))
    first, *others = (run.predictions for run in three.runs)
    assert all(first.is_of_same_images(other) for other in others)
    assert {run.data.train.identity for run in three.runs} == {alone.data.train.identity}


def test_mean_deviation_and_interval_are_those_of_numpy_and_scipy(three):
    values = [run.predictions.accuracy for run in three.runs]
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
    assert three.values["accuracy"] == values
    head, row, loss = three.rows()
    assert head == ["", "mean ± deviation", "95 % interval of the mean", "lowest", "highest"]
    assert row == ["accuracy", f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f} %",
                   f"{100 * (np.mean(values) - half):.2f} to {100 * (np.mean(values) + half):.2f} %",
                   f"{100 * min(values):.2f} %", f"{100 * max(values):.2f} %"]
    losses = [run.predictions.loss for run in three.runs]
    assert loss[:2] == ["loss", f"{np.mean(losses):.4f} ± {np.std(losses, ddof=1):.4f}"]
    assert three.title == "tiny, 3 seeds" and [line.split()[0] for line in three.summary().splitlines()[1:]] == [
        "accuracy", "loss"]


def test_an_interval_ends_where_values_can_but_not_before():
    low, high = (stats.t.ppf(0.975, 2) * 0.02 / np.sqrt(3) * sign for sign in (-1, 1))
    values = [-0.02, 0.0, 0.02]
    assert Spread.of(values).in_words("matthews_corr_coef")[1] == f"{low:.4f} to {high:.4f}"
    above = [value + 0.02 for value in values]
    assert Spread.of(above).in_words("loss")[1] == f"0.0000 to {0.02 + high:.4f}"
    # A fold without an image of a class has no accuracy of it.
    assert Spread.of([math.nan, 0.5, 0.6]) == Spread.of([0.5, 0.6])
    assert Spread.of([math.nan, math.nan]).in_words("accuracy/cat") == ("–", "–")
    assert Spread.of(values).in_words("accuracy")[1] == f"0.00 to {100 * high:.2f} %"


def test_an_interrupted_group_goes_on_and_ends_as_if_it_had_not_been(config, three, monkeypatch, capsys):
    steps = 90 // 32 + 1
    with pytest.MonkeyPatch.context() as patched:
        # In the second epoch of the second seed.
        at_step(patched, 2 * steps + steps + 2, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            train_seeds(config, 3)
    groups = sorted(three.folder.parent.glob("*_seeds*"))
    stopped = next(folder for folder in groups if folder != three.folder)
    assert [path.name for path in sorted(stopped.iterdir())] == ["group.yaml", "seed_0", "seed_1"]
    said = capsys.readouterr().out
    assert (f"All of them go on with: python tools/train.py {stopped}/group.yaml --seeds 3 "
            f"--resume {stopped}") in said
    before = (stopped / "seed_0" / "checkpoints" / "last.pt").stat().st_mtime_ns
    group = train_seeds(load_config(stopped / "group.yaml"), 3, stopped)
    assert (stopped / "seed_0" / "checkpoints" / "last.pt").stat().st_mtime_ns == before
    for ours, theirs in zip(group.runs, three.runs, strict=True):
        assert equal(weights(ours), weights(theirs))
        assert without_times(ours.metrics) == without_times(theirs.metrics)


def test_resume_takes_the_newest_group_and_more_seeds_are_added_to_it(config, three):
    group = train_seeds(config, 4, resume=True)
    assert group.folder == three.folder and len(group.runs) == 4
    assert group.runs[3].config.SEED == 3
    again = train_seeds(config, 4, resume="auto")
    assert again.folder == group.folder
    with pytest.raises(RunError, match=r"no group gone\n  tiny has .*_seeds\."):
        train_seeds(config, 3, resume="gone")


def test_a_group_does_not_go_on_with_another_kind_or_another_config(config, three, tool, quick):
    own = f"python tools/train.py {three.folder}/group.yaml --seeds N --resume {three.folder}"
    with pytest.raises(RunError, match="is a group of seeds, not of folds"):
        train_folds(config, 3, resume=three.folder)
    other = load_config(quick, {"DATA.LIMIT": 90, "OPTIMIZER.lr": 0.5})
    for resume in (True, three.folder):
        with pytest.raises(RunError) as caught:
            train_seeds(other, 4, resume=resume)
        assert "was begun with another config: OPTIMIZER.lr: 0.05 then, 0.5 now" in str(caught.value)
        assert own in caught.value.hint
    assert len(open_group(three.folder).runs) == 3
    assert train_seeds(other, 2, resume="auto").folder != three.folder
    code, out, _ = tool("train.py", "--seeds", "4", "--resume", three.folder)
    assert code == 0 and "tiny, 4 seeds" in out


def test_a_group_that_goes_on_for_longer_is_of_runs_of_one_length(quick, tool, capsys):
    short, longer = (load_config(quick, {"DATA.LIMIT": 90, "SCHEDULER": None, "TRAIN.EPOCHS": epochs})
                     for epochs in (1, 3))
    group = train_seeds(short, 2)
    with pytest.MonkeyPatch.context() as patched:
        at_step(patched, 5, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            train_seeds(longer, 2, resume=True)
    said = capsys.readouterr().out
    words = f"{group.folder}/group.yaml --seeds 2 --resume {group.folder}"
    assert f"All of them go on with: python tools/train.py {words}" in said
    assert tool("train.py", *words.split())[0] == 0
    assert [len(run.metrics) for run in open_group(group.folder).runs] == [3, 3]
    assert tool("train.py", "--seeds", "3", "--resume", group.folder)[0] == 0
    assert [len(run.metrics) for run in open_group(group.folder).runs] == [3, 3, 3]
    with pytest.raises(RunError, match="was begun with another config: TRAIN.EPOCHS: 3 then, 1 now") as told:
        train_seeds(short, 4, resume=True)
    assert told.value.hint.endswith(f"--seeds N --resume {group.folder} TRAIN.EPOCHS 3")


def test_nothing_is_left_of_a_group_that_cannot_be_begun(config):
    with pytest.raises(UserError, match="400 folds need as many"):
        train_folds(config, 400)
    assert not list(Path("runs/tiny").iterdir())


def test_a_seed_may_have_any_number_of_digits(quick):
    group = train_seeds(load_config(quick, {"DATA.LIMIT": 60, "SEED": 10**21, "TRAIN.EPOCHS": 1}), 2)
    assert [run.config.SEED for run in open_group(group.folder).runs] == [10**21, 10**21 + 1]


def test_runs_of_large_seeds_are_not_lost_with_a_group_that_is_stopped(quick):
    config = load_config(quick, {"DATA.LIMIT": 90, "SEED": 10**10})
    with pytest.MonkeyPatch.context() as patched:
        # In the second seed.
        at_step(patched, 2 * (90 // 32 + 1) + 1, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            train_seeds(config, 2)
    folder, = Path("runs/tiny").glob("*_seeds")
    assert len(Run(folder / f"seed_{10**10}").metrics) == 2
    assert [run.config.SEED for run in train_seeds(config, 2, resume=True).runs] == [10**10, 10**10 + 1]


def test_an_older_group_that_cannot_be_read_does_not_keep_resume_auto_from_another(config, capsys):
    older, group = train_seeds(config, 2), train_seeds(config, 2)
    (older.folder / "seed_0" / "config.yaml").write_text("MODEL: {NAME: [")
    assert train_seeds(config, 2, resume="auto").folder == group.folder
    assert f"{older.folder} is left out" in capsys.readouterr().out


def test_folds_that_were_trained_on_make_their_predictions_stale(folds, tool):
    said = folds.runs[0].predictions
    replace(said, probabilities=said.probabilities[::-1].copy()).save(folds.folder / "fold_0" / "predictions.npz")
    with pytest.raises(RunError, match=r"predictions\.npz is not of these runs\n  Write it anew: python tools/evaluate.py --run"):
        _ = open_group(folds.folder).predictions
    assert tool("evaluate.py", "--run", folds.folder)[0] == 0
    assert len(open_group(folds.folder).predictions.true) == 90


def test_seeds_that_find_their_own_rate_are_one_group(tiny):
    config = load_config(tiny, {"DATA.LIMIT": 0, "MODEL.width": 8, "TRAIN.EPOCHS": 1, "SCHEDULER": {
        "NAME": "OneCycleLR", "max_lr": "find"}})
    group = train_seeds(config, 2)
    rates = {run.folder.name: run.range_test.suggestion for run in group.runs}
    assert {run.folder.name: run.config.SCHEDULER.max_lr for run in group.runs} == rates
    assert load_config(group.folder / "group.yaml").SCHEDULER.max_lr == "find"
    assert "Mean of 2 runs" in group.visualize("curve_band").caption
    again = train_seeds(load_config(group.folder / "group.yaml"), 2, group.folder)
    assert {run.folder.name: run.config.SCHEDULER.max_lr for run in again.runs} == rates


def test_without_a_group_resume_says_so_and_auto_begins_one(config):
    with pytest.raises(RunError, match="no group of tiny in runs/ to go on with"):
        train_seeds(config, 2, resume=True)
    assert len(train_seeds(config, 2, resume="auto").runs) == 2


def test_a_seed_that_diverges_is_left_out_and_told(config, monkeypatch, capsys):
    from cvkit.training.trainer import Trainer

    epoch = Trainer.train_epoch

    def diverging(trainer):
        if trainer.config.SEED == 1:
            raise trainer.divergence("loss is", 1)
        return epoch(trainer)

    monkeypatch.setattr(Trainer, "train_epoch", diverging)
    group = train_seeds(config, 3)
    assert [run.folder.name for run in group.runs] == ["seed_0", "seed_2"]
    assert group.unfinished == ["seed_1"]
    assert "left out   seed_1: diverged" in capsys.readouterr().out
    monkeypatch.setattr(Trainer, "train_epoch", lambda trainer: (_ for _ in ()).throw(
        trainer.divergence("loss is", 1)))
    with pytest.raises(RunError, match="all 2 runs diverged"):
        train_seeds(config, 2)


# -- folds -------------------------------------------------------------------------------


@pytest.fixture
def folds(config):
    return train_folds(config, 3)


def test_each_image_is_predicted_once_by_the_fold_that_did_not_train_on_it(folds, config):
    assert folds.folder.name.endswith("_folds")
    said = Predictions.load(folds.folder / "predictions.npz")
    whole = images_of_folds(build_data(load_config_of(folds, 0)))
    assert np.array_equal(said.index, whole.index) and np.array_equal(said.true, whole.labels)
    assert len(said.true) == len(set(said.index)) == 90
    assert said.models == 1 and said.place == "of the model not trained on each image"
    of_run = {}
    for run in folds.runs:
        one = run.predictions
        assert not set(one.index) & set(run.data.train.index)
        of_run |= dict(zip(one.index, one.probabilities, strict=True))
    assert all(np.array_equal(of_run[index], row)
               for index, row in zip(said.index, said.probabilities, strict=True))
    correct = sum(run.predictions.correct for run in folds.runs)
    assert said.correct == correct and said.metrics["accuracy"] == said.accuracy == correct / 90
    expected = torch.nn.functional.nll_loss(torch.from_numpy(said.probabilities).log(),
                                            torch.from_numpy(said.true))
    assert said.loss == pytest.approx(float(expected), rel=1e-5)


def load_config_of(group, place):
    return load_config(group.runs[place].folder / "config.yaml")


def test_a_fold_is_the_run_of_its_keys(folds, quick):
    alone = train(load_config(quick, {"DATA.LIMIT": 90, "DATA.FOLDS": 3, "DATA.FOLD": 1}))
    assert equal(weights(folds.runs[1]), weights(alone))


def test_pictures_of_all_images_can_be_drawn(folds):
    group = open_group(folds.folder)
    wrong = np.flatnonzero(group.predictions.true != group.predictions.predicted)
    figure = group.visualize("misclassified", count=3, order="index")
    assert figure.caption.startswith(f"3 misclassified test images, in the data set's order ({len(wrong)} of 90")
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    for image, row in zip(shown, wrong, strict=False):
        assert np.array_equal(image, group.data.test.image(row))
    assert f"{group.predictions.correct} of 90" in group.visualize("confusion").caption
    with pytest.raises(RunError, match="cam needs one run or config; this is a group of 3 folds"):
        group.visualize("cam")


def test_repeated_folds_are_other_folds_and_their_mean_counts(config):
    group = train_folds(config, 2, repeats=2)
    names = ["fold_0", "fold_1", "repeat_1_fold_0", "repeat_1_fold_1"]
    assert [run.folder.name for run in group.runs] == names
    tested = [set(run.predictions.index) for run in group.runs]
    assert tested[0] | tested[1] == tested[2] | tested[3] and tested[0] != tested[2]
    said = open_group(group.folder).predictions
    rows = [dict(zip(run.predictions.index, run.predictions.probabilities, strict=True)) for run in group.runs]
    for index, row in zip(said.index, said.probabilities, strict=True):
        both = [found[index] for found in rows if index in found]
        assert len(both) == 2 and np.allclose(row, np.mean(both, axis=0), atol=1e-6)
    assert said.models == 2 and said.place == "of the 2 models together not trained on each image"


def test_folds_go_on_exactly(config, folds, capsys):
    with pytest.MonkeyPatch.context() as patched:
        at_step(patched, 6, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            train_folds(config, 3)
    stopped = next(folder for folder in folds.folder.parent.glob("*_folds*") if folder != folds.folder)
    assert "--folds 3 --repeats 1 --resume" in capsys.readouterr().out
    assert not (stopped / "predictions.npz").exists()
    train_folds(config, 3, resume=stopped)
    ours, theirs = (Predictions.load(folder / "predictions.npz") for folder in (stopped, folds.folder))
    assert np.array_equal(ours.probabilities, theirs.probabilities)


def test_folds_of_another_number_are_no_such_group(folds, config):
    """What is finished of it would be mixed with others of another size."""
    with pytest.raises(RunError, match="was begun with another config: DATA.FOLDS: 3 then, 4 now"):
        train_folds(config, 4, resume=folds.folder)
    assert len(list(folds.folder.glob("*fold_*"))) == 3
    assert train_folds(config, 4, resume="auto").folder != folds.folder


def test_folds_of_another_seed_and_seeds_of_another_fold_are_no_such_group(folds, config, quick):
    with pytest.raises(RunError, match="was begun with another config: SEED: 0 then, 7 now"):
        train_folds(load_config(quick, {"DATA.LIMIT": 90, "SEED": 7}), 3, resume=folds.folder)
    other = load_config(quick, {"DATA.LIMIT": 90, "SEED": 7})
    assert train_folds(other, 3, resume="auto").folder != folds.folder
    seeds = [train_seeds(load_config(quick, {"DATA.LIMIT": 90, "DATA.FOLDS": 3, "DATA.FOLD": fold}), 2, resume="auto").folder
             for fold in (0, 1, 1)]
    assert seeds[0] != seeds[1] == seeds[2]


def test_a_group_whose_images_are_others_now_is_refused_though_it_is_finished(quick, tmp_path):
    paint(tmp_path / "x", "train", 12, np.random.default_rng(0))
    paint(tmp_path / "x", "test", 4, np.random.default_rng(1))
    settings = {"DATA.LIMIT": 0, "DATA.DATASET": {"NAME": "ImageFolder", "root": "x"}}
    group = train_seeds(load_config(quick, settings), 2)
    shutil.copytree("x", "same")
    settings["DATA.DATASET"]["root"] = "same"
    assert train_seeds(load_config(quick, settings), 2, resume="auto").folder == group.folder
    next(Path("same/train").rglob("*.png")).unlink()
    with pytest.raises(UserError, match="was trained on other images"):
        train_seeds(load_config(quick, settings), 2, resume="auto")


def test_nothing_is_left_of_a_group_that_is_stopped_before_its_first_run(config, monkeypatch, capsys):
    def stopped(config, folder):
        (folder / "checkpoints").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("cvkit.repeat.train", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_seeds(config, 2)
    assert not list(Path("runs/tiny").iterdir()) and "go on with" not in capsys.readouterr().out


def test_a_missing_fold_is_told(folds):
    shutil.rmtree(folds.runs[1].folder)
    (folds.folder / "predictions.npz").unlink()
    group = open_group(folds.folder)
    assert len(group.runs) == 2
    with pytest.raises(RunError, match=r"no .*predictions\.npz"):
        _ = group.predictions


def test_predictions_of_other_images_are_no_folds(folds, run):
    from cvkit.evaluation.out_of_fold import out_of_fold

    whole = images_of_folds(folds.runs[0].data)
    with pytest.raises(RunError, match="tested images 0 to 1 times"):
        out_of_fold(folds.runs[:2], whole)
    with pytest.raises(RunError, match="was tested on other images than the folds are of"):
        out_of_fold([*folds.runs, run], whole)


# -- the commands ------------------------------------------------------------------------


def test_the_newest_group_is_drawn_and_reported(tool, quick, run, draws_only):
    code, out, _ = tool("train.py", quick, "DATA.LIMIT", "90", "--seeds", "2")
    assert code == 0 and "tiny, 2 seeds" in out and "mean ± deviation" in out
    group = open_group(next(run.folder.parent.glob("*_seeds")))
    code, out, _ = tool("visualize.py", "--curve-band", "--wrong-in-all", "5")
    assert code == 0 and f"/{group.folder.name}/seed_1\n" in out
    assert {path.name for path in (group.folder / "visuals").glob("*.png")} == {
        "curve_band.png", "wrong_in_all.png"}
    draws_only("curve_band")
    assert tool("visualize.py", "--report", "--run", group.folder)[0] == 0
    page = (group.folder / "README.md").read_text(encoding="utf-8")
    accuracy = [run.predictions.accuracy for run in group.runs]
    assert f"# tiny, 2 seeds: {100 * np.mean(accuracy):.2f} ± {100 * np.std(accuracy, ddof=1):.2f} %" in page
    assert "| seed\\_0 |" in page or "| seed_0 |" in page
    assert (group.folder / "images" / "curve_band.png").is_file()
    # A run that is begun later, by a clock of seconds, is the newest.
    time.sleep(1.1)
    tool("train.py", quick, "DATA.LIMIT", "90")
    newest = max(path for path in run.folder.parent.iterdir() if (path / "config.yaml").is_file())
    assert f"/{newest.name}\n" in tool("visualize.py", "--curves")[1]


@pytest.mark.parametrize("words, message", [
    (["--seeds", "1"], "--seeds is 2 or more, not 1"),
    (["--folds", "1"], "--folds is 2 or more"),
    (["--check", "--folds", "400"], "400 folds need as many of each class"),
    (["DATA.FOLD", "2"], "of how many folds is 2 the tested one?"),
    (["--seeds", "2", "--folds", "2"], "--seeds or --folds, one at a time"),
    (["--repeats", "2"], "--repeats goes with --folds"),
    (["--folds", "400"], "400 folds need as many of each class"),
    (["--seeds", "two"], "invalid int value: 'two'")])
def test_mistakes(tool, quick, words, message):
    code, _, err = tool("train.py", quick, *words)
    assert code == 2 and message in err


def test_a_group_is_no_run(tool, three):
    code, _, err = tool("train.py", "--resume", three.folder)
    assert code == 2 and f"{three.folder} is a group of 3 runs\n  Name one of them: {three.folder}/seed_0" in err
    code, _, err = tool("evaluate.py", "--run", three.folder, "DATA.LIMIT", "50")
    assert code == 2 and f"a group of runs is not evaluated again\n  Name its runs: --run {three.folder}/seed_*" in err
    # As a shell would write it out, beside group.yaml.
    code, out, _ = tool("evaluate.py", "--run", *sorted(map(str, three.folder.glob("seed_*"))), "DEVICE", "cpu")
    assert code == 0 and "of 3 models together" in out
    code, _, err = tool("visualize.py", "--run", three.folder, "--curves", "DEVICE", "cpu")
    assert code == 2 and "DEVICE cannot be set for a group of runs" in err
    code, _, err = tool("visualize.py", "--run", three.folder, "--confusion")
    assert code == 2 and "confusion needs one finished run; this is a group of 3 seeds" in err


def test_evaluate_says_what_a_group_came_to(tool, three, folds):
    code, out, _ = tool("evaluate.py", "--run", three.folder)
    assert code == 0 and out == f"tiny, 3 seeds\n{three.summary()}\n"
    code, out, _ = tool("evaluate.py", "--run", folds.folder)
    assert out.splitlines()[-1].endswith("%) of the model not trained on each image")
    said = open_group(folds.folder).predictions
    assert code == 0 and said.table() in out and f"Accuracy: {said.correct}/90" in out


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(config, three):
    whole = without_times(three.runs[1].metrics)
    for path in (three.runs[1].folder / "checkpoints").iterdir():
        path.unlink()
    (three.runs[1].folder / "predictions.npz").unlink()
    again = train_seeds(config, 3, resume=True)
    assert without_times(again.runs[1].metrics) == whole


def test_a_group_that_was_moved_is_the_same(three, tmp_path):
    moved = shutil.move(three.folder, tmp_path / "elsewhere")
    assert open_group(moved).title == "tiny, 3 seeds"
    config = load_config(f"{moved}/seed_1/config.yaml")
    assert config.name == "tiny" and Run(f"{moved}/seed_1").config.name == "tiny"
    with pytest.raises(ConfigError):
        train_seeds(config, 1)
