"""The table of many runs, its CSV, and the test of two."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from cvkit.errors import ConfigError, RunError
from cvkit.runs.compare import Runs
from cvkit.runs.folder import Run
from cvkit.runs.predictions import mcnemar
from cvkit.runs.table import Entry, Table, open_table

RIGHT = "test accuracy"


@pytest.fixture
def make(_trained, tmp_path):
    """A function that makes a run folder below runs/: of a config changed, with results of its own."""
    first = Run(_trained[0])
    text, predictions = (first.folder / "config.yaml").read_text(), first.predictions

    def made(place, *changes, right=75, seconds=1.0, **metrics):
        folder, changed = tmp_path / "runs" / place, text
        folder.mkdir(parents=True)
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            assert old in changed
            changed = changed.replace(old, new)
        (folder / "config.yaml").write_text(changed)
        replace(of_correct(predictions, np.arange(150) < right), metrics={"loss": 2.0, "accuracy": 0.5, **{
            name.removeprefix("test_"): value for name, value in metrics.items()}}).save(folder / "predictions.npz")
        (folder / "metrics.jsonl").write_text("".join(
            json.dumps({**epoch, "seconds": seconds}) + "\n" for epoch in first.metrics))
        return folder

    return made


def of_correct(predictions, correct):
    """Predictions that are right on these images."""
    return replace(predictions, predicted=np.where(correct, predictions.true, (predictions.true + 1) % 10))


def cells_of(text):
    """The lines of a table as lists of cells, its name first, without the two of its head."""
    return [re.split(" {2,}", line) for line in text.splitlines()[2:]]


def rows_of(table):
    """The rows of a table's CSV."""
    return list(csv.DictReader(io.StringIO(table.csv())))


def test_a_row_for_each_run_the_best_first_with_what_differs(make):
    make("tiny/1", right=60)
    make("tiny/2", "lr: 0.05", "lr: 0.2", "size: 8", "size: 6", right=90)
    make("tiny/3", "WORKERS: -1", "WORKERS: 2", "WRITERS:", "REQUIRE: {accuracy: 50}\nWRITERS:", "\nREQUIRE: null",
         "", right=75)
    table = open_table(["runs/tiny"])
    assert [table.names[row] for row in table.order] == ["2", "3", "1"]
    assert [column.title for column in table.columns] == [
        "DATA.TRAIN_TRANSFORMS", "OPTIMIZER.lr", "test accuracy", "test loss", "best test accuracy", "train accuracy",
        "epochs", "training time"]
    run = Run("runs/tiny/2")
    last, best = run.metrics[-1], run.best
    crop = "…6)]", "0.2", "60.00 %", f"{run.predictions.loss:.4f}", f"{100 * best['test/accuracy']:.2f} %"
    assert cells_of(table.text())[0] == [
        "2", *crop, f"{100 * last['train/accuracy']:.2f} %", "2", "2.0 s"]
    assert [line[1:4] for line in cells_of(table.text())] == [
        ["…6)]", "0.2", "60.00 %"], ["…8)]", "0.05", "50.00 %"], ["…8)]", "0.05", "40.00 %"]]
    assert table.text().splitlines()[:2] == [line.rstrip() for line in table.text().splitlines()[:2]]
    assert table.text().splitlines()[1].split() == [
        "run", "TRAIN_TRANSFORMS", "lr", "accuracy", "loss", "accuracy", "accuracy", "epochs", "time"]
    assert Runs([Run("runs/tiny/1"), run]).table().splitlines()[2].startswith("2  ")


def test_runs_of_one_config_do_not_differ(make):
    make("tiny/1")
    make("tiny/2", "OUTPUT_DIR: ", "OUTPUT_DIR: /other")
    assert "Their configs do not differ." in open_table(["runs"]).text()


def test_parts_go_by_what_they_are_a_name_of_and_keys_of_the_same_last_word_in_full(make):
    make("a/1")
    make("b/1", "NAME: SGD\n", "NAME: AdamW\n", "  momentum: 0.9\n", "", "NAME: resnet18", "NAME: resnet34",
         "SEED: 0", "SEED: 3", "SPLIT_SEED: 3", "SPLIT_SEED: 0")
    table = open_table(["runs"])
    assert [column.label for column in table.columns[:4]] == ["SEED", "MODEL", "OPTIMIZER", "momentum"]
    # One of them has none.
    assert [line[4] for line in cells_of(table.text())] == ["0.9", "–"]
    assert [row["OPTIMIZER.momentum"] for row in rows_of(table)] == ["0.9", ""]
    assert table.names == ["a/1", "b/1"]


def test_columns_to_sort_by(make):
    make("tiny/1", "lr: 0.05", "lr: 1e-05", right=60, test_top5=0.5, seconds=30.0)
    make("tiny/2", "lr: 0.05", "lr: 10", right=90, test_top5=0.8, seconds=20.0)
    make("tiny/3", right=75, seconds=10.0)

    def order(name):
        table = open_table(["runs"])
        table.sort(name)
        return [table.names[row] for row in table.order]

    assert order("OPTIMIZER.lr") == order("lr") == ["1", "3", "2"]
    assert order("training time") == order("training_time") == ["3", "2", "1"]
    # A row that has none comes last, equal ones by their accuracy.
    assert order("test top5") == ["2", "1", "3"] and order("epochs") == ["2", "3", "1"]
    with pytest.raises(ConfigError, match="no column 'test acuracy' to sort by\n  Did you mean test accuracy"):
        order("test acuracy")
    with pytest.raises(ConfigError, match="Did you mean OPTIMIZER.lr"):
        order("OPTIMIZER.lrr")


def test_a_metric_is_in_the_table_under_its_name(make):
    make("tiny/1", test_top5=0.5)
    make("tiny/2", **{"test_=f1": 0.25, "test_loss_of_mine": math.inf})
    lines = cells_of(open_table(["runs"]).text())
    assert lines[0][3:6] == ["50.00 %", "–", "–"] and lines[1][3:6] == ["–", "0.2500", "inf"]


def test_accuracies_of_validation_and_of_test_images_do_not_stand_in_one_column(make):
    make("tiny/1")
    folder = make("tiny/2")
    epochs = Run(folder).metrics
    (folder / "metrics.jsonl").write_text("".join(json.dumps({
        key.replace("test/", "val/"): value for key, value in epoch.items()}) + "\n" for epoch in epochs))
    table, best = open_table(["runs"]), Run("runs/tiny/1").best["test/accuracy"]
    assert [(row["best test accuracy"], row["val accuracy"]) for row in rows_of(table)] == [
        (str(best), ""), ("", str(best))]
    head, below = table.text().splitlines()[:2]
    assert head.split() == ["test", "test", "best", "test", "val", "train", "training"]
    assert below.split() == ["run", "accuracy", "loss", "accuracy", "accuracy", "accuracy", "epochs", "time"]
    assert [line[3:5] for line in cells_of(table.text())[:2]] == [
        [f"{100 * best:.2f} %", "–"], ["–", f"{100 * best:.2f} %"]]


def test_a_metric_that_is_no_number_is_a_dash_and_in_the_csv_nothing(make):
    make("tiny/1", **{"test_accuracy/cat": math.nan, "test_auroc": math.nan})
    make("tiny/2", right=50, **{"test_accuracy/cat": 0.5, "test_auroc": 0.5})
    for seed, value in enumerate([0.5, math.inf]):
        make(f"tiny/3_seeds/seed_{seed}", "\nSEED: 0", f"\nSEED: {seed}", right=40, test_auroc=value)
    table = open_table(["runs"])
    first, second, several = cells_of(table.text())[:3]
    assert first[4:6] == ["–", "–"] and second[4:6] == ["50.00 %", "0.5000"] and several[4:6] == ["–", "inf"]
    rows = rows_of(table)
    assert [row["test accuracy/cat"] for row in rows] == ["", "0.5", ""]
    assert [(row["test auroc"], row["test auroc sd"]) for row in rows] == [("", ""), ("0.5", ""), ("inf", "")]


def test_runs_of_a_group_are_one_row_of_mean_and_deviation(make):
    rights = [60, 75, 81]
    for seed, right in enumerate(rights):
        make(f"tiny/2026-01-01_00-00-00_seeds/seed_{seed}", "\nSEED: 0", f"\nSEED: {seed}", "FOLD_REPEAT: 0",
             f"FOLD_REPEAT: {seed}", right=right, test_f1=right / 200, seconds=float(right))
    make("tiny/2026-01-02_00-00-00", "lr: 0.05", "lr: 0.2", "\nSEED: 0", "\nSEED: 7", right=100)
    table = open_table(["runs"])
    values = np.array(rights) / 150
    assert [column.title for column in table.columns[:2]] == ["n", "OPTIMIZER.lr"]
    assert [entry.folder.name for entry in table.entries] == ["2026-01-02_00-00-00", "2026-01-01_00-00-00_seeds"]
    lines = cells_of(table.text())
    assert lines[0][:4] == ["2026-01-02_00-00-00", "1", "0.2", "66.67 %"]
    assert lines[1][:4] == ["2026-01-01_00-00-00_seeds", "3", "0.05",
                            f"{100 * values.mean():.2f} ± {100 * values.std(ddof=1):.2f} %"]
    single, group = rows_of(table)
    assert group["n"] == "3" and single[f"{RIGHT} sd"] == ""
    for name, expected in ((RIGHT, values), ("test f1", np.array(rights) / 200),
                           ("training time", 2 * np.array(rights))):
        assert float(group[name]) == pytest.approx(expected.mean(), rel=1e-12)
        assert float(group[f"{name} sd"]) == pytest.approx(expected.std(ddof=1), rel=1e-12)
    assert table.paired_test() is None and "other images" not in table.text()
    # Alone, it is a table; each of its runs may be named as well.
    assert len(open_table(["runs/tiny/2026-01-01_00-00-00_seeds"]).entries) == 1
    members = [f"runs/tiny/2026-01-01_00-00-00_seeds/seed_{seed}" for seed in (0, 2)]
    assert open_table(members).names == ["seed_0", "seed_2"]
    assert {"SEED", "DATA.FOLD_REPEAT"} <= set(rows_of(open_table(members))[0])


def test_seeds_of_a_group_are_a_column_where_other_runs_differ_in_them(make):
    folders = [make(str(seed), "\nSEED: 0", f"\nSEED: {seed}") for seed in range(4)]
    runs = list(map(Run, folders))
    table = Table([Entry(folders[0], runs[:2]), Entry(folders[2], runs[2:3]), Entry(folders[3], runs[3:])])
    assert [row["SEED"] for row in rows_of(table)] == ["0, 1", "2", "3"]


def test_the_csv_reads_back_as_it_is(make):
    make("tiny/1", "width: 4", "width: -1")
    make("=tiny/2", "NAME: resnet18", "NAME: '=1+1, \"x\"'", "size: 8", "size: 6", right=50, test_f1=1 / 3)
    table = open_table(["runs"])
    first, second = rows_of(table)
    assert first["run"] == "runs/tiny/1" and first["MODEL.width"] == "-1"
    assert second["MODEL.NAME"] == "'=1+1, \"x\""
    assert second["DATA.TRAIN_TRANSFORMS"] == "[RandomCrop(size=32, padding=4), CutOut(size=6)]"
    for row, place in ((first, "tiny/1"), (second, "=tiny/2")):
        run = Run(f"runs/{place}")
        found, last = run.predictions, run.metrics[-1]
        assert float(row[RIGHT]) == found.accuracy and float(row["test loss"]) == found.loss
        assert float(row["best test accuracy"]) == run.best["test/accuracy"]
        assert float(row["train accuracy"]) == last["train/accuracy"]
        assert row["epochs"] == "2" and float(row["training time"]) == run.seconds
    assert float(second["test f1"]) == 1 / 3 and first["test f1"] == ""


@pytest.mark.parametrize("text", ["=1+1", "+1", "-x", "@SUM(A1)", "\t=1"])
def test_text_in_the_csv_is_no_formula(make, text):
    make("1")
    make("2", "NAME: SGD", f"NAME: {json.dumps(text)}", right=1, **{f"test_{text}": 0.5})
    rows = rows_of(open_table(["runs"]))
    assert rows[1]["OPTIMIZER.NAME"] == f"'{text}" and rows[1][f"test {text}"] == "0.5"
    shutil.move("runs/2", text)
    assert rows_of(open_table(["runs/1", text]))[1]["run"] == f"'{text}"


def test_a_wide_table_says_what_it_leaves_out(make):
    make("1")
    make("2", "lr: 0.05", "lr: 0.2", "BATCH_SIZE: 32", "BATCH_SIZE: 64", "momentum: 0.9", "momentum: 0.8",
         "width: 4", "width: 8", "size: 8", "size: 6", "EMA_DECAY: 0.0", "EMA_DECAY: 0.9", "\nSEED: 0", "\nSEED: 1",
         "ACCUMULATE: 1", "ACCUMULATE: 2", "CLIP_GRAD_NORM: 0.0", "CLIP_GRAD_NORM: 1.0", "EARLY_STOP: 0",
         "EARLY_STOP: 5", "WARMUP_EPOCHS: 0.0", "WARMUP_EPOCHS: 1.0")
    table = open_table(["runs"])
    for width in (80, 120, 500):
        lines = table.text(width).splitlines()
        assert max(map(len, lines[:4])) <= width
        hidden = re.findall(r"Not shown, for want of room: (.*) \(--csv FILE has all\)", "\n".join(lines))
        hidden = hidden[0].split(", ") if hidden else []
        shown = lines[1].split()
        assert len(hidden) + len(shown) - 1 == len(table.columns) and (width < 500) == bool(hidden)
        assert "accuracy" in shown and "loss" in shown and "SEED" in shown
    table.sort("training time")
    assert "Not shown" in table.text(80) and "time" in table.text(80).splitlines()[1]


def test_a_long_table_has_its_head_at_the_end_too(make):
    for number in range(41):
        make(f"{number:02}", "\nSEED: 0", f"\nSEED: {number}")
    lines = open_table(["runs"]).text().splitlines()
    assert lines[1] == lines[-2] and lines[0] == lines[-1] and len(lines) == 45


def test_control_characters_stay_in_the_files(make):
    make("1")
    make("\x1b[31m2", "NAME: SGD", 'NAME: "\\e[2J"', **{"test_\x1b[1m": 1.0})
    table = open_table(["runs"])
    assert "\x1b" not in table.text() + table.csv() + table.paired_test()


def test_runs_that_are_damaged_or_not_finished_are_left_out(make):
    for number in range(7):
        make(f"tiny/{number}")
    for name in ("0/config.yaml", "1/metrics.jsonl", "2/predictions.npz"):
        Path("runs/tiny", name).write_text("]")
    Path("runs/tiny/3/predictions.npz").unlink()
    table = open_table(["runs/tiny", "gone"])
    assert table.names == ["4", "5", "6"]
    told = [str(error).split("\n")[0] for error in table.left_out]
    assert told[0].startswith("runs/tiny/0/config.yaml:1") and "no run gone" in told
    assert "runs/tiny/1 has no finished epoch" in told and "no runs/tiny/3/predictions.npz" in told
    assert [line for line in told if line.startswith("runs/tiny/2/predictions.npz is damaged")] and len(told) == 5
    for places, problem in ((["runs/tiny/0"], "config.yaml:1"), (["runs/tiny/1", "runs/tiny/5"], "no finished epoch"),
                            (["runs/tiny/5"], "there is nothing to compare one run with"), (["gone"], "no run gone")):
        with pytest.raises((RunError, ConfigError), match=problem):
            open_table(places)


def test_predictions_of_another_epoch_are_left_out_unless_the_checkpoint_is_of_it(make, _trained):
    for name in "abc":
        make(name)
    path = Path(shutil.copytree(_trained[0], "runs/d"), "predictions.npz")
    stale = replace(Run("runs/a").predictions, epoch=1)
    # Without a checkpoint nothing tells; with one, they are of another time.
    stale.save(Path("runs/a/predictions.npz"))
    stale.save(path)
    table = open_table(["runs"])
    assert table.names == ["a", "b", "c"]
    assert "d/predictions.npz is of the model after epoch 1" in str(table.left_out[0])


def test_folders_stand_for_the_runs_in_them(make):
    for place in ("tiny/1", "tiny/2", "other/1", "other/2026_folds/fold_0", "other/2026_folds/repeat_1_fold_0"):
        make(place)
    assert open_table(["runs/tiny"]).names == open_table(["tiny"]).names == ["1", "2"]
    assert open_table(["runs/tiny/1", "runs/tiny/1/config.yaml", "runs/tiny", "runs/other/1"]).names == [
        "tiny/1", "tiny/2", "other/1"]
    assert open_table(["runs"]).names == ["other/1", "tiny/1", "tiny/2", "other/2026_folds"]
    assert open_table(["."]).names == ["other/1", "tiny/1", "tiny/2", "other/2026_folds"]


# -- two runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("only_a, only_b", [(6, 16), (0, 0), (1, 0), (0, 10), (12, 31), (5, 5), (70, 71)])
def test_mcnemar_by_hand(run, only_a, only_b):
    a, b = np.ones(150, bool), np.ones(150, bool)
    b[:only_a] = a[only_a:only_a + only_b] = False
    n, k = only_a + only_b, min(only_a, only_b)
    expected = min(1, 2 * sum(math.comb(n, item) for item in range(k + 1)) / 2**n)
    found = mcnemar(*(of_correct(run.predictions, correct) for correct in (a, b)))
    assert found == (only_a, only_b, pytest.approx(expected, rel=1e-12))


def test_mcnemar_of_known_counts(run):
    """6 and 16 discordant pairs: 2 · 110,056 / 2²², as R's `binom.test(6, 22)` has it."""
    a, b = np.ones(150, bool), np.ones(150, bool)
    a[:16] = b[16:22] = False
    assert mcnemar(of_correct(run.predictions, a), of_correct(run.predictions, b)) == (
        6, 16, pytest.approx(2 * 110_056 / 2**22, rel=1e-12))
    with pytest.raises(RunError, match="of different images"):
        mcnemar(run.predictions, replace(run.predictions, images="others"))


def test_what_is_said_of_two_runs(make):
    make("a", right=100)
    make("b", right=75)
    make("c", right=73)
    assert open_table(["runs/b", "runs/a"]).paired_test() == (
        "a is right on 25 images that b gets wrong, b on 0 the other way round: p < 0.001 (McNemar, exact). Such a "
        "difference is unlikely by chance on these test images; it says nothing of other seeds: train each with several.")
    assert open_table(["runs/b", "runs/c"]).paired_test().startswith(
        "b is right on 2 images that c gets wrong, c on 0 the other way round: p = 0.5 (McNemar, exact). Chance alone "
        "often makes such a difference")
    make("d", right=73)
    assert open_table(["runs/c", "runs/d"]).paired_test() == (
        "Both are right on the same test images: nothing tells them apart there.")
    assert open_table(["runs"]).paired_test() is None


def test_runs_on_other_images_are_told(make, painted):
    make("a")
    make("b")
    table = open_table(["runs/a", painted.folder, "runs/b"])
    assert "1 of 3 were tested on other images than a: those figures cannot be compared." in table.text()
    assert open_table(["runs/a", painted.folder]).paired_test() is None


# -- the command ---------------------------------------------------------------------------


def test_the_command_draws_and_writes_only_what_it_is_asked_for(make, tool, tmp_path):
    make("tiny/1")
    make("tiny/2", "lr: 0.05", "lr: 0.2", right=90)
    make("tiny/3")
    (tmp_path / "runs/tiny/3/predictions.npz").unlink()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = tool("compare.py", "runs")
    assert code == 0 and out.startswith("left out: no runs/tiny/3/predictions.npz\n\n"), err
    assert sorted(tmp_path.rglob("*")) == before and "2 is right on 15 images that 1 gets wrong" in out
    code, out, err = tool("compare.py", "runs", "--csv", "a.csv", "--sort", "lr")
    assert code == 0 and out.endswith("written    a.csv\n"), err
    with open("a.csv", encoding="utf-8", newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["runs/tiny/1", "runs/tiny/2"]


@pytest.mark.parametrize("words, problem", [
    (["runs", "--csv", "."], "--csv is a file, not ."), (["runs", "--csv", "gone/a.csv"], "cannot write gone/a.csv"),
    (["runs", "--csv", "runs"], "cannot write runs"), (["runs", "--sort", "lrr"], "Did you mean lr?"),
    (["runs", "--out", "x"], "--out goes with --curves or --disagreements"), ([], "name two runs or more"),
    (["runs", "--disagreements", "0"], "--disagreements is 1 or more, not 0"),
    (["runs", "--disagreements", "x"], "invalid int value"),
    (["runs", "--count", "5"], "no flag --count\n  Did you mean --disagreements N?"), (["nothing"], "no run nothing"),
    (["runs/1"], "there is nothing to compare one run with")])
def test_mistakes(make, tool, words, problem):
    make("1")
    make("2", "lr: 0.05", "lr: 0.2")
    code, _, err = tool("compare.py", *words)
    assert code == 2 and problem in err and "Traceback" not in err


def test_no_matplotlib_is_needed(make, tmp_path):
    make("1")
    make("2")
    done = subprocess.run([sys.executable, "-X", "importtime", str(ROOT / "tools/compare.py"), "runs", "1"],
                          capture_output=True, text=True, encoding="utf-8", cwd=tmp_path, check=True)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "cvkit.runs.table" in imported and "matplotlib" not in imported
