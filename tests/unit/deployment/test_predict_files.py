import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvkit.deployment.predict_files import predict_files
from cvkit.errors import DataError, RunError
from cvkit.evaluation.predictor import Predictor
from cvkit.runs.checkpoint import Checkpoint


@pytest.fixture
def predictor(painted):
    return Predictor(painted)


@pytest.fixture
def pictures(painted):
    return Path(painted.config.DATA.DATASET.root) / "test"


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_holds_what_the_run_predicted(painted, predictor, pictures, capsys):
    expected, classes = painted.predictions, predictor.classes
    outcome = predict_files(predictor, [str(pictures)], table="out.csv", top=3)
    rows = rows_of("out.csv")
    assert list(rows[0]) == ["file", "class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    assert [row["class"] for row in rows] == [classes[number] for number in expected.predicted]
    ranked = np.sort(expected.probabilities, 1)[:, ::-1]
    for place, key in enumerate(("probability", "probability_2", "probability_3")):
        assert np.array_equal(np.float32([row[key] for row in rows]), ranked[:, place])  # to the bit
    assert outcome.known == 36 and outcome.correct == expected.correct
    assert f"Accuracy: {expected.correct}/36 ({100 * expected.accuracy:.2f}%), by the class folders" in str(outcome)
    assert sum(outcome.counts.values()) == 36 and capsys.readouterr().out == ""


def test_lines_of_json_hold_the_same(painted, predictor, pictures):
    lines = io.StringIO()
    predict_files(predictor, [str(pictures)], lines=lines, top=2)
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert np.array_equal(np.float32([item["probability"] for item in found]),
                          painted.predictions.probabilities.max(1))
    assert all(item["top"][0] == {"class": item["class"], "probability": item["probability"]}
               and len(item["top"]) == 2 for item in found)
    assert [item["file"] for item in found] == sorted(map(str, pictures.rglob("*.png")))


def test_the_screen_shows_a_line_for_each(predictor, pictures, capsys):
    predict_files(predictor, [str(pictures / "red" / "000.png")], top=2)
    line = capsys.readouterr().out.splitlines()[0]
    (first, a), (second, b) = predictor(pictures / "red" / "000.png").top(2)
    assert line == f"{first:<5} {100 * a:5.1f} %  {second:<5} {100 * b:5.1f} %  {pictures / 'red' / '000.png'}"


def test_copies_lie_in_folders_of_their_predicted_classes(painted, predictor, pictures):
    predict_files(predictor, [str(pictures)], copies="sorted")
    predicted = [predictor.classes[number] for number in painted.predictions.predicted]
    for file, name in zip(sorted(pictures.rglob("*.png")), predicted, strict=True):
        copy = Path("sorted", name, f"{file.parent.name}_{file.name}")
        assert copy.read_bytes() == file.read_bytes()
    assert sum(len(files) for _, _, files in os.walk("sorted")) == 36


def test_copies_of_files_that_are_called_alike_get_numbers(predictor, pictures):
    named = [str(pictures / name / "000.png") for name in ("red", "green", "blue")]
    predict_files(predictor, named, copies="sorted")
    copies = sorted(path.name for path in Path("sorted").rglob("*.png"))
    assert len(copies) == 3 and set(copies) <= {"000.png", "000_2.png", "000_3.png"}


def test_copies_whose_names_differ_in_case_alone_get_other_names(predictor, pictures):
    """Most disks of a Mac and of Windows would take them for one file."""
    named = []
    for name in ("a/IMG.PNG", "b/img.png"):
        Path(name).parent.mkdir()
        named.append(shutil.copy(next(pictures.rglob("*.png")), name))
    predict_files(predictor, named, copies="sorted")
    assert sorted(path.name for path in Path("sorted").rglob("*.*")) == ["IMG.PNG", "img_2.png"]


def test_copies_from_far_below_have_names_that_disks_take(predictor, pictures):
    deep = Path("in", *("é" * 50 + str(place) for place in range(4)))
    deep.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        shutil.copy(pictures / "red" / "000.png", deep / name)
    predict_files(predictor, ["in"], copies="sorted")
    names = sorted(path.name for path in Path("sorted").rglob("*.png"))
    assert [name[-6:] for name in names] == ["_a.png", "_b.png"]


def test_a_class_whose_name_leads_elsewhere_gets_a_folder_inside(painted, pictures, tmp_path):
    checkpoint = Checkpoint.load(painted.checkpoints / "last.pt")
    checkpoint.classes = ["../../up", "/etc", "a\x1b[31m\nb"]
    checkpoint.save(tmp_path / "hostile.pt")
    outcome = predict_files(Predictor(tmp_path / "hostile.pt"), [str(pictures)], copies="in/sorted", table="o.csv")
    below = {path.name for path in Path("in/sorted").iterdir()}
    assert below <= {"_.._up", "_etc", "a__31m_b", "a_[31m_b"} and len(list(Path("in/sorted").rglob("*.png"))) == 36
    assert sorted(path.name for path in Path("in").iterdir()) == ["sorted"] and "\x1b" not in str(outcome)


def test_pictures_show_where_the_model_looked(predictor, pictures):
    predict_files(predictor, [str(pictures / "red" / "000.png"), str(pictures / "blue" / "000.png")], pictures="cam")
    assert sorted(path.name for path in Path("cam").iterdir()) == ["000.png", "000_2.png"]
    with Image.open("cam/000.png") as picture:
        assert picture.width > 500 and picture.height > 300


def test_several_models_together_have_no_map(painted, pictures):
    with pytest.raises(RunError):
        predict_files(Predictor([painted, painted]), [str(pictures)], table="out.csv", pictures="cam")
    assert not Path("out.csv").exists()
    with pytest.raises(RunError, match="where a model looked can be drawn of one"):
        predict_files(Predictor([painted, painted]), [str(pictures)], pictures="cam")


def test_accuracy_is_counted_where_folders_say_what_images_are(predictor, pictures, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(pictures / "red", flat)
    outcome = predict_files(predictor, [str(flat)], table="a.csv")
    assert outcome.known == 0 and outcome.notes == []
    mixed = shutil.copytree(pictures, tmp_path / "mixed")
    shutil.copytree(pictures / "red", Path(mixed) / "purple")
    outcome = predict_files(predictor, [str(mixed)], table="b.csv")
    assert outcome.known == 0 and "no class of the model is called purple" in str(outcome)
    both = predict_files(predictor, [str(pictures), str(flat / "000.png")], table="c.csv")
    assert both.known == 36 and sum(both.counts.values()) == 37


def test_what_cannot_be_read_is_told_at_the_end_and_the_rest_is_written(predictor, pictures, tmp_path):
    files = shutil.copytree(pictures, tmp_path / "files")
    (files / "red" / "000.png").write_bytes(b"no picture")
    (files / "green" / "005.png").write_bytes(b"")
    outcome = predict_files(predictor, [str(files)], table="out.csv")
    assert len(rows_of("out.csv")) == 34 == sum(outcome.counts.values())
    assert [error.problem.split(" cannot")[0] for error in outcome.unreadable] == [
        str(files / "green" / "005.png"), str(files / "red" / "000.png")]
    assert "2 files left out:\n  " in str(outcome)


def test_what_is_there_is_not_replaced_unless_asked(predictor, pictures):
    Path("out.csv").write_text("mine")
    Path("sorted").mkdir()
    Path("sorted/mine.txt").touch()
    for given in ({"table": "out.csv"}, {"copies": "sorted"}, {"pictures": "sorted"}):
        with pytest.raises(RunError, match=r"is there already\n  --overwrite replaces what is in it"):
            predict_files(predictor, [str(pictures)], **given)
    assert Path("out.csv").read_text() == "mine" and os.listdir("sorted") == ["mine.txt"]
    predict_files(predictor, [str(pictures)], table="out.csv", copies="sorted", overwrite=True)
    assert len(rows_of("out.csv")) == 36 and Path("sorted/mine.txt").exists()
    with pytest.raises(RunError, match="sorted is a folder"):
        predict_files(predictor, [str(pictures)], table="sorted")
    with pytest.raises(RunError, match=r"out.csv is a file, not a folder"):
        predict_files(predictor, [str(pictures)], copies="out.csv")


def test_nothing_is_written_where_nothing_can_be_predicted(predictor):
    with pytest.raises(DataError, match="no file or folder gone"):
        predict_files(predictor, ["gone"], table="out.csv")
    with pytest.raises(RunError, match="--top is 1 or more"):
        predict_files(predictor, ["gone"], top=0)
    assert not Path("out.csv").exists()


def test_where_the_disk_is_full_what_was_written_stays(predictor, pictures, monkeypatch):
    """The third row finds no space."""
    real, rows = csv.writer, []

    def limited(file):
        class Writer:
            def writerow(self, row):
                rows.append(row)
                if len(rows) > 3:
                    raise OSError(28, "No space left on device")
                real(file).writerow(row)
        return Writer()

    monkeypatch.setattr("cvkit.deployment.predict_files.csv.writer", limited)
    with pytest.raises(RunError, match="cannot write out.csv: No space left on device"):
        predict_files(predictor, [str(pictures)], table="out.csv")
    assert [row["file"] for row in rows_of("out.csv")] == sorted(map(str, pictures.rglob("*.png")))[:2]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_one_message(tool, painted, pictures):
    for flags in (("--csv", "/dev/full", "--overwrite"),):
        code, _, err = tool("predict.py", painted.folder, pictures, *flags)
        assert code == 2 and err.startswith("error: cannot write /dev/full: No space left on device")


def test_the_command(tool, painted, pictures, monkeypatch):
    best = painted.checkpoints / "last.pt"
    code, out, _ = tool("predict.py", best, pictures, "--csv", "out.csv", "TTA", "[{NAME: HorizontalFlip}]")
    flipped = Predictor(best, {"TTA": [{"NAME": "HorizontalFlip"}]})(pictures)
    assert code == 0 and "Accuracy: " in out and "written    out.csv" in out
    assert np.array_equal(np.float32([row["probability"] for row in rows_of("out.csv")]),
                          np.float32([item.probability for item in flipped]))
    code, out, err = tool("predict.py", painted.folder, best, pictures / "red", "--json", "--top", 2)
    assert code == 0 and len(out.splitlines()) == 12 and "class" in err
    assert [len(json.loads(line)["top"]) for line in out.splitlines()] == [2] * 12
    names = f"{pictures / 'red' / '000.png'}\nbroken.png\n"
    Path("broken.png").touch()
    monkeypatch.setattr("sys.stdin", io.StringIO(names))
    code, out, _ = tool("predict.py", painted.folder, "-", "--csv", "names.csv")
    assert code == 1 and "1 file left out:\n  broken.png cannot be read as an image" in out
    assert [row["file"] for row in rows_of("names.csv")] == [str(pictures / "red" / "000.png")]


@pytest.mark.parametrize("words, message", [
    (("gone.pt", "a.png"), "no checkpoint gone.pt"),
    (("gone", "a.png"), "gone is no run and no checkpoint"),
    (("a.png", "RUN"), "a.png is no run and no checkpoint\n  A run, or a best.pt, comes first"),
    (("RUN",), "there is nothing to predict\n  Name a run or a best.pt, and then files or folders"),
    (("RUN", "--cam", "a.png"), "there is nothing to predict (--cam took a.png)"),
    (("bset.pt", "a.png"), "no checkpoint bset.pt\n  Did you mean best.pt?"),
    (("RUN", "gone.png"), "no file or folder gone.png"),
    (("RUN", "empty"), "empty holds no images"),
    (("RUN", "a.png", "MODEL.width", "8"), "MODEL.width cannot be changed"),
    (("RUN", "a.png", "TTA", "[{NAME: Flip}]"), "no transform named 'Flip'"),
    (("RUN", "a.png", "--tops", "3"), "no flag --tops"),
    (("RUN", "a.png", "--top", "0"), "--top is 1 or more"),
    (("RUN", "empty", "--copy-to", "empty/sorted"), "empty holds no images"),
    (("RUN", ".", "--copy-to", "sorted"), "sorted lies in ., whose pictures are predicted"),
    (("RUN", "a.png", "--csv", "a.png", "--overwrite"), "a.png is one of the pictures"),
    (("RUN", "RUN", "a.png", "--cam"), "can be drawn of one, not of several together")])
def test_mistakes_are_told(tool, painted, words, message):
    Path("empty").mkdir()
    Image.new("RGB", (32, 32)).save("a.png")
    Path("best.pt").touch()
    code, _, err = tool("predict.py", *(painted.folder if word == "RUN" else word for word in words))
    assert code == 2 and message in err
    assert sorted(path.name for path in Path().iterdir() if path.name not in (".cache", "runs")) == [
        "a.png", "best.pt", "empty"]
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")


def test_a_copy_of_an_earlier_model_for_another_class_is_taken_away(predictor, pictures, monkeypatch):
    predict_files(predictor, [str(pictures)], copies="sorted")
    turned = Predictor(predictor.members[0].trained_in)
    turned.classes = ["green", "red", "blue"]
    predict_files(turned, [str(pictures)], copies="sorted", overwrite=True)
    assert sum(1 for _ in Path("sorted").rglob("*.png")) == 36


@pytest.mark.parametrize("kind", ["copies", "pictures"])
def test_pictures_that_lie_where_the_copies_go_are_left_alone(predictor, pictures, kind):
    shutil.copytree(pictures, "sorted")
    before = {path: path.read_bytes() for path in Path("sorted").rglob("*.png")}
    for named in ("sorted/red", "sorted/red/000.png"):
        with pytest.raises(RunError, match="which is predicted, lies in sorted\n  Name a folder elsewhere"):
            predict_files(predictor, [named], overwrite=True, **{kind: "sorted"})
    with pytest.raises(RunError, match="lies in sorted"):
        predict_files(predictor, [], names=["sorted/red/000.png"], overwrite=True, **{kind: "sorted"})
    assert {path: path.read_bytes() for path in Path("sorted").rglob("*.png")} == before


def test_names_that_are_not_there_are_told_at_the_end(predictor, pictures):
    good = str(pictures / "red" / "000.png")
    outcome = predict_files(predictor, [], table="new/folder/out.csv", names=["gone.png", good], top=9)
    assert [row["file"] for row in rows_of("new/folder/out.csv")] == [good]
    assert [error.problem for error in outcome.unreadable] == ["gone.png is gone since the folder was read"]


def test_a_folder_that_is_called_like_a_key_is_a_folder(tool, painted, pictures):
    shutil.copytree(pictures, "DATA")
    code, _, _ = tool("predict.py", painted.folder, "DATA", "--csv", "out.csv", "DEVICE", "cpu")
    assert code == 0 and len(rows_of("out.csv")) == 36


def test_names_on_standard_input_may_hold_anything_but_the_end_of_a_line(tool, painted, pictures, monkeypatch):
    odd = [b"half\xff.png", "line\u2028.png".encode(), b"feed\x0c.png"]
    for name in odd:
        shutil.copy(pictures / "red" / "000.png", os.fsdecode(name))
    stdin = io.TextIOWrapper(io.BytesIO(b"\n".join([*odd, b"", b""])), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stdin)
    code, out, _ = tool("predict.py", painted.folder, "-", "--json")
    assert code == 0
    assert [json.loads(line)["file"] for line in out.splitlines()] == list(map(os.fsdecode, odd))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    code, _, err = tool("predict.py", painted.folder, "-")
    assert code == 2 and err.startswith("error: standard input names no files\n")


@pytest.mark.parametrize("folder", [".", "./", "red/.."])
def test_the_folder_one_is_in_is_one_of_pictures(tool, painted, pictures, monkeypatch, folder):
    monkeypatch.chdir(pictures)
    code, out, _ = tool("predict.py", painted.folder, folder)
    assert code == 0 and "/36 (" in out
