"""Results that are kept: the files, the page, and what the headers of configs say of them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from helpers import CONFIGS, NAMES
from helpers import fill as fill_folders

from cvkit.config import load_config
from cvkit.errors import RunError
from cvkit.repeat import train_seeds
from cvkit.runs.folder import Run
from cvkit.runs.results import content_of, fill, read_results, settings_of, write
from cvkit.session import train

PAGE = ROOT / "docs" / "results.md"
MEASURED = {result.name: result for folder in ("results", "results/digits")
            for result in read_results(ROOT / "docs" / folder)}


def keep(run, path, note=""):
    """Write what a run came to, and return the file."""
    return write(content_of(run, note), path)[0]


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_a_header_says_what_was_measured_and_what_changed_since(path):
    header = re.match("(#.*\n)+", path.read_text())[0]
    words = " ".join(line.lstrip("# ") for line in header.splitlines())
    result = MEASURED.get(path.stem)
    same = re.search(r"It trains as (\w+) does: (.*?), measured there", words)
    if same:  # which holds whatever is drawn of it
        other, figure = same.groups()
        assert MEASURED[other].sentence.startswith(f"{figure}, ")
        drawn = {"VISUALIZERS": [], "REQUIRE": None}
        assert load_config(path, drawn) == load_config(path.with_stem(other), drawn)
        return
    if result is None:
        assert "not measured" in words
        return
    assert result.sentence in words
    assert "not measured" not in words
    changed = result.changes(load_config(path))
    assert ("Changed since: " + ", ".join(changed) in words) == bool(changed)


def test_so_many_were_measured():
    assert sorted(MEASURED) == ["airbench94_cifar10", "airbench95_cifar10", "layers_digits", "mobilenet_v3_cifar10", "resnet18_cifar10",
                                "resnet18_cifar10_best", "resnet18_digits", "resnet18_s1_cifar10",
                                "resnet9_cifar10"]
    for name, result in MEASURED.items():
        images = "1,438 train, 359 test" if "digits" in name else "50,000 train, 10,000 test"
        assert images in result.contents[0]["data"], name
        assert len(result.curve) == result.config.TRAIN.EPOCHS, name


def test_the_page_is_what_its_files_say():
    assert fill(PAGE) == PAGE.read_text()
    shown = {PAGE.parent / folder for folder in re.findall(r"<!-- results of (\S+) -->", fill(PAGE))}
    assert {path.parent for path in (ROOT / "docs").rglob("*.json")} == shown


def test_a_file_holds_what_the_run_came_to(run):
    content = json.loads(keep(run, Path("kept"), "on digits").read_text())
    found = run.predictions
    assert content["test"]["accuracy"] == pytest.approx(found.accuracy, abs=1e-6)
    matrix = np.array(content["confusion"])
    assert matrix.sum() == len(found.true) and matrix.trace() == found.correct
    assert matrix[3, 5] == ((found.true == 3) & (found.predicted == 5)).sum()
    assert content["accuracy by class"]["7"] == pytest.approx(
        (found.predicted[found.true == 7] == 7).mean(), abs=1e-6)
    for ours, theirs in zip(content["epochs"], run.metrics, strict=True):
        assert ours["test/loss"] == pytest.approx(theirs["test/loss"], abs=1e-6)
        assert ours["train/accuracy"] == pytest.approx(theirs["train/accuracy"], abs=1e-6)
    assert content["seconds"] == pytest.approx(run.seconds, abs=1e-3)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", content["date"])
    assert content["data"] == "Digits: 150 train, 150 test (DATA.LIMIT 150), 10 classes, 3×32×32"
    assert content["versions"]["torch"] and content["device"].endswith(run.precision)


def test_a_file_names_no_folder_of_the_machine(painted):
    text = keep(painted, Path("kept")).read_text()
    assert str(painted.folder.parent.parent.parent) not in text and "/tmp" not in text
    result, = read_results(Path("kept"))
    assert result.changes(painted.config) == []
    assert result.config.DATA.DATASET.root == "painted"


def test_what_is_no_number_is_null(run):
    path = run.folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"train/loss":', '"test/f1": NaN, "train/loss":'))
    content = json.loads(keep(run, Path("kept")).read_text(), parse_constant=pytest.fail)
    assert [epoch["test/f1"] for epoch in content["epochs"]] == [None, None]


def of_another_seed(run, seed, accuracy):
    """Write a file as of another seed, with another accuracy."""
    path = keep(run, Path("kept"))
    content = json.loads(path.read_text())
    content["seed"], content["test"]["accuracy"] = seed, accuracy
    content["config"] = content["config"].replace("\nSEED: 0", f"\nSEED: {seed}")
    path.with_name(f"tiny_seed{seed}.json").write_text(json.dumps(content))


def test_a_tiny_rate_is_kept_as_it_is(run):
    path = run.folder / "metrics.jsonl"
    path.write_text(re.sub(r'"lr": [\d.e-]+', '"lr": 1.234567e-09', path.read_text()))
    content = json.loads(keep(run, Path("kept")).read_text())
    assert [epoch["lr"] for epoch in content["epochs"]] == [1.234567e-09] * 2


def test_runs_of_several_machines_say_so(run):
    of_another_seed(run, 1, 0.5)
    path = Path("kept/tiny.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "device": "another one"}))
    result, = read_results(Path("kept"))
    assert result.conditions.startswith("another one, torch ")
    assert f" and {content['device']}, torch " in result.conditions


def test_runs_of_several_days_say_the_first_and_the_last(run):
    of_another_seed(run, 1, 0.5)
    of_another_seed(run, 2, 0.5)
    for name, day in (("tiny", "2026-02-02"), ("tiny_seed1", "2026-01-31"), ("tiny_seed2", "2026-02-01")):
        path = Path("kept", f"{name}.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "date": day}))
    result, = read_results(Path("kept"))
    assert ", 2026-01-31 to 2026-02-02" in result.conditions and result.conditions.count("torch") == 1


def test_seeds_stand_together_with_their_deviation(run):
    of_another_seed(run, 1, 0.5)
    of_another_seed(run, 2, 0.7)
    Path("kept/tiny.json").unlink()
    result, = read_results(Path("kept"))
    assert result.test == "60.00 ± 14.14 %" and result.seeds == "seeds 1, 2"
    assert result.sentence.startswith("60.00 ± 14.14 % test, ")


def test_seeds_that_stopped_after_other_numbers_of_epochs_end_where_each_does(run):
    for seed, accuracies in ((1, [0.2, 0.4, 0.6, 0.8]), (2, [0.1 * number for number in range(1, 11)])):
        of_another_seed(run, seed, 0.5)
        path = Path(f"kept/tiny_seed{seed}.json")
        content = json.loads(path.read_text())
        content["epochs"] = [{**content["epochs"][0], "test/accuracy": accuracy} for accuracy in accuracies]
        path.write_text(json.dumps(content))
    Path("kept/tiny.json").unlink()
    result, = read_results(Path("kept"))
    assert result.stages == "20.00, 45.00, 90.00 %"  # of 20, 40 and 80, and of 20, 50 and 100
    assert result.curve[-1] == pytest.approx(0.9) and len(result.curve) == 10
    assert "half and all of 4 to 10 epochs 20.00, 45.00, 90.00 %" in result.sentence


def test_a_curve_of_validation_images_says_so(tiny):
    run = train(load_config(tiny, {"DATA.VAL_FRACTION": 0.2, "TRAIN.EPOCHS": 1}))
    keep(run, Path("kept"))
    assert f"| –, –, {100 * run.metrics[0]['val/accuracy']:.2f} % val |" in fill(Path("kept.md"))


def test_train_and_test_accuracy_are_of_one_model(tiny, tool):
    run = train(load_config(tiny, {"DATA.VAL_FRACTION": 0.3, "TRAIN.EPOCHS": 4, "OPTIMIZER.lr": 3.0}))
    best = run.predictions.epoch
    assert best < 4
    keep(run, Path("kept"))
    result, = read_results(Path("kept"))
    expected = f"{100 * run.metrics[best - 1]['train/accuracy']:.2f} %"
    assert result.train == expected
    shutil.copytree(run.folder, run.folder.with_name("second"))
    code, out, _ = tool("compare.py", "runs")
    assert code == 0 and out.count(expected) == 2


def test_what_a_config_trains_otherwise_now_is_named(run, tiny):
    keep(run, Path("kept"))
    result, = read_results(Path("kept"))
    assert result.changes(load_config(tiny)) == []
    same = {"OUTPUT_DIR": "elsewhere", "SEED": 7, "TRAIN.COMPILE": True, "DATA.DATASET.root": "here"}
    assert set(settings_of(load_config(tiny))).isdisjoint(same)
    config = load_config(tiny, ["OPTIMIZER.lr", "0.1", "TRAIN.EMA_DECAY", "0.9"])
    assert result.changes(config) == ["OPTIMIZER.lr", "TRAIN.EMA_DECAY"]


def test_the_tool_writes_files_and_a_page_and_keeps_what_was_written_by_hand(run, painted, tool):
    code, out, _ = tool("compare.py", run.folder, painted.folder, "--results", "kept", "--note", "once")
    assert code == 0 and "written    kept/tiny.json" in out and "written    kept.md" in out
    page = Path("kept.md")
    text = page.read_text()
    best = max((run, painted), key=lambda run: run.predictions.accuracy)
    first = text.splitlines()[6]
    assert first.startswith(f"| `{best.config.name}` | {100 * best.predictions.accuracy:.2f} % | ")
    assert "![Accuracy over the epochs](kept/curves.png)" in text and ", once." in text
    page.write_text(text.replace("# Results", "# Mine\n\nBy hand."))
    assert tool("compare.py", painted.folder, "--results", "kept/more")[0] == 0
    assert page.read_text() == text.replace("# Results", "# Mine\n\nBy hand.")
    page.write_text(page.read_text() + "<!-- results of kept/more -->\n<!-- end -->\n")
    assert tool("compare.py", "--results", "kept")[0] == 0
    assert page.read_text().count("| `painted` |") == 2 and "By hand." in page.read_text()


@pytest.mark.parametrize("place, name", [(".", "tiny.json"), ("..", "tiny.json")])
def test_results_may_lie_in_the_folder_one_is_in(run, tool, tmp_path, monkeypatch, place, name):
    folder = tmp_path / "here" / "below"
    folder.mkdir(parents=True)
    where = run.folder.resolve()
    monkeypatch.chdir(folder)
    code, out, err = tool("compare.py", where, "--results", place)
    assert code == 0, err
    kept = folder.parent if place == ".." else folder
    assert (kept / name).is_file() and f"written    {kept.parent / kept.name}.md" in out
    page = kept.with_name(f"{kept.name}.md").read_text()
    assert f"<!-- results of {kept.name} -->" in page and "| `tiny` |" in page


def test_recipes_of_one_config_stand_in_a_table_of_what_differs(run, tool):
    keep(run, Path("kept/first.json"))
    content = json.loads(Path("kept/first.json").read_text())
    content["config"] = content["config"].replace("lr: 0.05", "lr: 0.2")
    content["test"]["accuracy"] = 0.999
    Path("kept/second.json").write_text(json.dumps(content))
    assert tool("compare.py", "--results", "kept")[0] == 0
    lines = Path("kept.md").read_text().splitlines()
    assert lines[4] == "`tiny`, varied:"
    assert lines[6].startswith("| OPTIMIZER.lr | test | train |")
    assert [line[:16] for line in lines[8:10]] == ["| 0.2 | 99.90 % ", f"| 0.05 | {100 * run.predictions.accuracy:.2f} %"[:16]]


def test_recipes_of_one_name_each_keep_their_file(run, tool):
    second = shutil.copytree(run.folder, run.folder.with_name("second"))
    config = second / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.05", "lr: 0.2"))
    assert tool("compare.py", run.folder, second, "--results", "kept")[0] == 0
    assert sorted(path.name for path in Path("kept").glob("*.json")) == ["tiny.json", "tiny_2.json"]
    page = Path("kept.md").read_text()
    assert "| OPTIMIZER.lr | test |" in page and "| 0.05 | " in page and "| 0.2 | " in page
    # Once more, with another note: each is written over by its own.
    assert tool("compare.py", second, "--results", "kept", "--note", "again")[0] == 0
    assert [json.loads(Path("kept", name).read_text())["note"] for name in ("tiny.json", "tiny_2.json")] == ["", "again"]
    assert len(list(Path("kept").glob("*.json"))) == 2
    # Under whatever name it stands, also beside another seed's.
    Path("kept/tiny_2.json").rename("kept/zebra.json")
    content = json.loads(Path("kept/tiny.json").read_text())
    Path("kept/tiny.json").write_text(json.dumps({**content, "seed": 5}))
    assert tool("compare.py", second, run.folder, "--results", "kept")[0] == 0
    assert [path.name for path in sorted(Path("kept").glob("*.json"))] == ["tiny.json", "tiny_2.json", "zebra.json"]
    assert json.loads(Path("kept/tiny.json").read_text())["seed"] == 5
    Path("kept/tiny_2.json").unlink()
    # A file that is named is written over whatever it holds.
    assert tool("compare.py", second, "--results", "kept/tiny.json")[0] == 0
    Path("kept/tiny.json").write_text("{")
    code, _, err = tool("compare.py", run.folder, "--results", "kept")
    assert code == 2 and "kept/tiny.json is no file of results" in err and "Write it anew, python tools/compare.py RUN --results kept/tiny.json; or remove it" in err


def test_parts_of_other_names_stand_in_one_column_with_their_arguments(run):
    keep(run, Path("kept/first.json"))
    content = json.loads(Path("kept/first.json").read_text())
    config = load_config(run.folder / "config.yaml", [
        "OPTIMIZER", "{NAME: Muon, lr: 0.2, groups: [{match: fc, muon: false}]}"])
    Path("kept/second.json").write_text(json.dumps({**content, "config": config.dump()}))
    text = fill(Path("kept.md"))
    assert "| OPTIMIZER | test | train |" in text and "OPTIMIZER.lr" not in text
    assert "| SGD(lr=0.05, " in text
    assert "| Muon(lr=0.2, groups=[{match: fc, muon: False}]) |" in text


def test_rows_measured_under_other_conditions_have_the_number_of_theirs(run):
    keep(run, Path("kept/first.json"))
    content = json.loads(Path("kept/first.json").read_text())
    assert "conditions" not in fill(Path("kept.md"))
    for name, device, accuracy in (("second", "one GPU", 0.999), ("third", content["device"], 0.001)):
        config = load_config(run.folder / "config.yaml", ["OPTIMIZER.lr", str(accuracy)])
        Path(f"kept/{name}.json").write_text(json.dumps({
            **content, "config": config.dump(), "device": device,
            "test": {**content["test"], "accuracy": accuracy}}))
    lines = fill(Path("kept.md")).splitlines()
    assert lines[6].endswith("| time | conditions |")
    assert [line[-6:] for line in lines[8:11]] == [" | 1 |", " | 2 |", " | 2 |"]
    assert lines[11] == "" and lines[14:] == ["", "<!-- end -->"]
    assert lines[12].startswith(f"1. {content['data']}; seed 0; one GPU, torch ")
    assert lines[13].startswith(f"2. {content['data']}; seed 0; {content['device']}, torch ")


def test_views_stand_beside_the_accuracy_and_in_a_column_only_if_there_were_others(run):
    def add(name, *overrides):
        config = load_config(run.folder / "config.yaml", overrides)
        Path(f"kept/{name}.json").write_text(json.dumps({**content, "config": config.dump()}))
        return fill(Path("kept.md"))

    keep(run, Path("kept/first.json"))
    content = json.loads(Path("kept/first.json").read_text())
    text = add("second", "TTA", "[{NAME: HorizontalFlip}]", "MODEL.width", "8")
    assert "| MODEL.width | test |" in text and text.count(" % with TTA |") == 1
    text = add("third", "TTA", "[{NAME: Shift, down: 1}]")
    assert "| MODEL.width | TTA | test |" in text
    assert "| [Shift(down=1)] |" in text


@pytest.mark.parametrize("damage", [
    lambda content: content.pop("test"), lambda content: content.update(epochs=[]),
    lambda content: content.update(config="MODEL: 3"), lambda content: content.update(name=None)])
def test_a_file_that_is_none_of_results_is_named(run, damage):
    path = keep(run, Path("kept"))
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"kept/tiny\.json is no file of results"):
        read_results(Path("kept"))


def test_mistakes_end_with_a_message(run, painted, tool):
    second = Run(shutil.copytree(run.folder, run.folder.with_name("second")))
    code, _, err = tool("compare.py", run.folder, painted.folder, "--results", "kept.json")
    assert code == 2 and "kept.json is the file of one run" in err
    code, _, err = tool("compare.py", run.folder, "--results", "page.md")
    assert code == 2 and "--results is a folder, which page.md lies beside" in err and not Path("page.md").exists()
    code, _, err = tool("compare.py", "--results", "nowhere")
    assert code == 2 and "no results in nowhere" in err and not Path("nowhere.md").exists()
    for words in (["--csv", "a.csv"], ["--curves"], ["--sort", "epochs"], ["--disagreements", "3"], ["--out", "x"]):
        code, _, err = tool("compare.py", run.folder, second.folder, "--results", "kept", *words)
        assert code == 2 and "--results goes with --note alone" in err and not Path("kept").exists()
    code, _, err = tool("compare.py", run.folder, second.folder, "--note", "once")
    assert code == 2 and "--note goes with --results" in err
    (second.folder / "metrics.jsonl").write_text("")
    code, _, err = tool("compare.py", second.folder, "--results", "kept")
    assert code == 2 and "no finished epoch" in err and not Path("kept").exists()
    Path("taken").write_text("")
    code, _, err = tool("compare.py", run.folder, "--results", "taken")
    assert code == 2 and "cannot write taken: File exists" in err
    (second.folder / "predictions.npz").unlink()
    code, _, err = tool("compare.py", second.folder, "--results", "kept")
    assert code == 2 and "python tools/evaluate.py --run" in err and not Path("kept").exists()


def test_each_config_is_measured_or_named_on_the_page_as_not():
    page = PAGE.read_text()
    assert [path.stem for path in CONFIGS if path.stem not in MEASURED and f"`{path.stem}`" not in page] == []


def test_a_file_that_is_named_is_written_alone_unless_it_has_a_page(run, tool):
    Path("package.json").write_text('{"name": "another"}')
    code, out, _ = tool("compare.py", run.folder, "--results", "one.json")
    assert code == 0 and out == "written    one.json\n"
    assert tool("compare.py", run.folder, "--results", "kept")[0] == 0
    code, out, _ = tool("compare.py", run.folder, "--results", "kept/tiny.json")
    assert code == 0 and out == "written    kept/tiny.json\nwritten    kept.md\n"


def test_runs_on_other_images_are_no_seeds_of_one_recipe_though_their_folders_are_called_alike(tiny, tool):
    for place, names in (("pa", ("cat", "dog")), ("pb", ("frog", "ship"))):
        fill_folders(Path(place, "imgs"), dict.fromkeys(names, 10), (32, 32))
    runs = [train(load_config(tiny, {"DATA.DATASET": {"NAME": "ImageFolder", "root": f"{place}/imgs"}, "DATA.LIMIT": 0,
                                     "SEED": seed, "TRAIN.EPOCHS": 1}))
            for place, seed in (("pa", 0), ("pb", 1), ("pb", 0))]
    assert tool("compare.py", *(run.folder for run in runs), "--results", "kept")[0] == 0
    assert sorted(path.name for path in Path("kept").glob("*.json")) == ["tiny.json", "tiny_2.json", "tiny_seed1.json"]
    found = {result.seeds: result for result in read_results(Path("kept"))}
    assert sorted(found) == ["seed 0", "seeds 0, 1"]
    assert found["seed 0"].accuracy == runs[0].predictions.accuracy
    assert found["seeds 0, 1"].accuracy == pytest.approx(np.mean([run.predictions.accuracy for run in runs[1:]]))


def test_files_of_older_versions_do_not_say_of_which_images_they_are(run):
    path = keep(run, Path("kept"))
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "images"}))
    assert keep(run, Path("kept")) == path and json.loads(path.read_text())["images"] == run.predictions.images
    assert len(list(Path("kept").glob("*.json"))) == 1


def test_a_folder_stands_for_its_runs_and_groups_and_of_each_recipe_and_seed_the_newest_counts(tiny, tool):
    older, unfinished = (train(load_config(tiny, {"TRAIN.EPOCHS": epochs})) for epochs in (2, 1))
    (unfinished.folder / "predictions.npz").unlink()
    (unfinished.folder / "checkpoints" / "last.pt").unlink()
    group = train_seeds(load_config(tiny), 2)
    code, out, err = tool("compare.py", group.folder, "runs/tiny", older.folder, "--results", "kept")
    assert code == 0, err
    assert f"left out   {older.folder}: {group.runs[0].folder} is a newer one of its recipe and seed" in out
    assert f"left out   {unfinished.folder}: " in out
    result, = read_results(Path("kept"))
    assert result.seeds == "seeds 0, 1"
    accuracies = [100 * run.predictions.accuracy for run in group.runs]
    assert result.test == f"{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f} %"
    # A group alone, and what takes the place of another.
    code, out, _ = tool("compare.py", group.folder, "--results", "kept")
    assert code == 0 and "left out" not in out and " over " not in out
    code, out, _ = tool("compare.py", older.folder, "--results", "kept")
    assert f"written    kept/tiny.json, over what was measured on {json.loads(Path('kept/tiny.json').read_text())['date']}" in out


def test_what_a_sweep_drew_is_shown_with_few_figures(run):
    keep(run, Path("kept/first.json"))
    content = json.loads(Path("kept/first.json").read_text())
    content["config"] = content["config"].replace("lr: 0.05", "lr: 0.044303752452182654")
    Path("kept/second.json").write_text(json.dumps(content))
    assert "| 0.044304 |" in fill(Path("kept.md"))
