"""Images that a table names; the messages name the line of the row."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import fill
from PIL import Image

from cvkit.config import load_config
from cvkit.data import build_data
from cvkit.errors import ConfigError, DataError, UserError
from cvkit.evaluation.run_evaluation import evaluate
from cvkit.registry import DATASETS
from cvkit.session import train


def pictures(folder, names=None):
    """Make images of 8×8 pixels, each of another brightness."""
    for place, name in enumerate(names or [f"{n:03}.png" for n in range(15)]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 10 * place, np.uint8)).save(path, "PNG")


def table(text="", header="file,label\n", path="x/labels.csv", encoding="utf-8", newline="\n"):
    """Write a table; by default of the 15 images, 5 cats before 10 ants."""
    rows = [f"{n:03}.png,{'cat' if n < 5 else 'ant'}" for n in range(15)]
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_bytes((header + (text or "\n".join(rows))).replace("\n", newline).encode(encoding))


def build(seed=0, **arguments):
    return DATASETS.build({"NAME": "CSVDataset", "path": "x/labels.csv", **arguments}, seed=seed)


def labels_by_file(data):
    """Return the label of each file, by its name."""
    return {Path(split.name(n)).name: data.classes[split.labels[n]]
            for split in data.splits.values() for n in range(len(split))}


# -- what is read ------------------------------------------------------------------------------


def test_images_are_found_split_by_class_and_measured():
    pictures(Path("x"))
    table()
    data, again, other = build(test_fraction=0.4), build(test_fraction=0.4), build(1, test_fraction=0.4)
    assert data.classes == ("ant", "cat") and data.image_size == (8, 8) and data.channels == 3
    assert np.bincount(data.train.labels).tolist() == [6, 3] and np.bincount(data.test.labels).tolist() == [4, 2]
    assert labels_by_file(data) == {f"{n:03}.png": "cat" if n < 5 else "ant" for n in range(15)}
    assert np.array_equal(data.test.index, again.test.index) and not np.array_equal(data.test.index, other.test.index)
    pixels = np.stack([data.train.image(n) for n in range(len(data.train))]) / 255
    assert np.allclose(data.mean, pixels.mean((0, 1, 2))) and np.allclose(data.std, pixels.std((0, 1, 2)))
    assert data.notes == ("columns of labels.csv: file is the image, label is the label",)
    assert build(image="file", label="label").notes == ()
    assert build(image=0, label=1, channels=1, mean=[0.5], std=[0.2]).train.image(0).shape == (8, 8, 1)


@pytest.mark.parametrize("delimiter, form", [
    (",", ""), (";", " (separated by semicolons)"), ("\t", " (separated by tabs)"), ("|", " (separated by bars)")])
@pytest.mark.parametrize("encoding, newline", [("utf-8", "\n"), ("utf-8-sig", "\r\n")])
def test_delimiters_are_told_by_themselves(delimiter, form, encoding, newline):
    pictures(Path("x"))
    rows = [(f"{n:03}.png", "große, „Katze“" if n < 5 else "ant") for n in range(15)]
    lines = [delimiter.join(f'"{field}"' for field in row) for row in rows]
    table("\n".join([*lines[:4], "", *lines[4:], delimiter, ""]), f"filename{delimiter}class\n", "x/labels.csv",
          encoding, newline)
    data = build()
    assert data.classes == ("ant", "große, „Katze“") and len(data.train) + len(data.test) == 15
    assert data.notes == (f"columns of labels.csv{form}: filename is the image, class is the label",)


def test_another_delimiter_is_named():
    pictures(Path("x"))
    table("\n".join(f"{n:03}.png {n % 2}" for n in range(15)), "")
    data = build(delimiter=" ")
    assert data.notes == ("columns of labels.csv (separated by ' ', without a header): 0 is the image, 1 is the label",)


@pytest.mark.parametrize("header, arguments, said", [
    ("id,breed", {}, "id is the image, breed is the label"),
    ("breed,Image Name", {}, "Image Name is the image, breed is the label"),
    ("a,b", {}, "a is the image, b is the label"),
    ("", {}, "0 is the image, 1 is the label"),
    ("Target,what", {"label": "Target"}, "what is the image, Target is the label"),
    ("path,label", {"label": 1}, "path is the image, label is the label")])
def test_columns_are_guessed_and_that_is_said(header, arguments, said):
    pictures(Path("x"))
    swapped = header.startswith(("breed", "Target"))
    rows = [(f"{n:03}.png", "cat" if n < 5 else "ant") for n in range(15)]
    table("\n".join(",".join(reversed(row) if swapped else row) for row in rows), header and f"{header}\n")
    data = build(**arguments)
    assert data.classes == ("ant", "cat")
    assert data.notes == (f"columns of labels.csv{'' if header else ' (without a header)'}: {said}",)


def test_ids_get_their_extension_and_images_lie_in_a_root_of_their_own():
    pictures(Path("x/train"), [f"{n:03}.jpg" for n in range(15)])
    table("\n".join(f"{n:03},{'cat' if n < 5 else 'ant'}" for n in range(15)), "id,breed\n")
    for extension in (".jpg", "jpg"):
        assert len(build(root="x/train", extension=extension).test) == 3
    with pytest.raises(DataError) as caught:
        build()
    assert str(caught.value) == (
        f"x/labels.csv:2: no file x/000 (looked in {Path.cwd()}), nor 14 others\n"
        "  One of that name is in x/train: DATA.DATASET.root x/train")
    with pytest.raises(DataError, match=re.escape("x/train/000.jpg is there: DATA.DATASET.extension .jpg")):
        build(root="x/train")
    # Without a header the first row is that of an image, as its file is there.
    table("\n".join(f"{n:03}{'.jpg' * (n % 2)},{'cat' if n < 5 else 'ant'}" for n in range(15)), "")
    data = build(root="x/train", extension="jpg", image=0, label=1)
    assert len(data.train) + len(data.test) == 15 and data.notes == (
        "columns of labels.csv (without a header): 0 is the image, 1 is the label",)


def test_whole_paths_and_paths_that_lead_out_of_the_root_are_taken(tmp_path):
    pictures(Path("y"))
    table("\n".join(f"{tmp_path / 'y' if n % 2 else '../y'}/{n:03}.png,{n % 3}" for n in range(15)))
    assert len(labels_by_file(build())) == 15


def test_names_that_windows_wrote_are_read_and_a_slash_before_a_name_is_told():
    rows = [f"d/{label}/{n}.png,{label}" for label in ("ant", "cat") for n in range(5)]
    pictures(Path("x"), [row.partition(",")[0] for row in rows])
    table("\n".join(rows).replace("/", "\\"))
    data = build()
    names = {split.name(n): data.classes[split.labels[n]] for split in data.splits.values() for n in range(len(split))}
    assert names == {f"x/d/{label}/{n}.png": label for label in ("ant", "cat") for n in range(5)}
    table("\n".join(f"/{row}" for row in rows))
    with pytest.raises(DataError, match=re.escape("x/labels.csv:2: no file /d/ant/0.png (looked in ")) as caught:
        build()
    assert str(caught.value).endswith("x/d/ant/0.png is there: leave out the / before the name, which makes it a whole path")


def test_labels_that_are_numbers_are_sorted_by_their_size():
    pictures(Path("x"))
    table("\n".join(f"{n:03}.png,{(10, 9, -1)[n % 3]}" for n in range(15)))
    assert build().classes == ("-1", "9", "10")
    table("\n".join(f"{n:03}.png,{(10, 9, 'a')[n % 3]}" for n in range(15)))
    assert build().classes == ("10", "9", "a")


def test_labels_that_differ_in_capitals_alone_are_told():
    pictures(Path("x"))
    table("\n".join(f"{n:03}.png,{('cat', 'CAT', 'dog')[n % 3]}" for n in range(15)))
    assert build().notes[1:] == ("CAT and cat are two classes, which differ in capitals alone",)


def test_a_column_of_another_meaning_is_not_taken_for_that_of_the_splits():
    pictures(Path("x"))
    rows = [f"{n:03}.png,{'cat' if n < 5 else 'ant'}" for n in range(15)]
    table("\n".join(f"{row},{'train' if n % 2 else 'extra'}" for n, row in enumerate(rows)), "file,label,set\n")
    assert build().notes == ("column set of labels.csv is not taken for that of the splits: none is called 'extra'",
                             "columns of labels.csv: file is the image, label is the label")
    words = ["Training"] * 9 + ["PublicTest", "PrivateTest"] * 3
    table("\n".join(f"{row},{word}" for row, word in zip(["000.png,cat", *rows[1:4], *rows[10:], rows[4], *rows[5:10]], words)),
          "file,label,Usage\n")
    data = build()
    assert [len(split) for split in (data.train, data.val, data.test)] == [9, 3, 3]


@pytest.mark.parametrize("name", ["subset", "set", "Data_Set", "usage"])
def test_a_column_says_the_splits(name):
    pictures(Path("x"))
    words = ["train"] * 3 + ["Training", "valid"] + ["TRAIN"] * 7 + ["test", "testing", "val"]
    rows = [f"{n:03}.png,{'cat' if n < 5 else 'ant'},{words[n]}" for n in range(15)]
    table("\n".join(rows), f"file,label,{name}\n")
    data = build()
    assert [len(split) for split in (data.train, data.val, data.test)] == [11, 2, 2]
    assert data.monitored == "val" and f"{name} is the split" in data.notes[0]
    assert len(build(split="").test) == 3 and len(build(split=2).test) == 2
    table("\n".join(rows).replace("testing", "val").replace("test", "val"), "file,label,subset\n")
    data = build()
    assert data.val is None and len(data.test) == 4
    assert data.notes[1] == "val is the test set, as there is no other"
    # An unknown word is not to split the images anew at random, whichever row it stands in.
    for number, row in enumerate(rows):
        table("\n".join([*rows[:number], row.rsplit(",", 1)[0] + ",web", *rows[number + 1:]]), "file,label,subset\n")
        with pytest.raises(DataError, match=rf"x/labels.csv:{number + 2}: no split is called 'web'"):
            build()
    assert len(build(split="").test) == 3
    # What is called so and has no such word is none.
    table("\n".join(f"{row.rsplit(',', 1)[0]},{n % 5}" for n, row in enumerate(rows)), "file,label,subset\n")
    assert len(build().test) == 3


def test_further_files_are_the_splits():
    pictures(Path("x"))
    table(path="x/train.csv", text="\n".join(f"{n:03}.png,{n % 2}" for n in range(8)))
    table(path="x/val.csv", text="000.png,0")
    table(path="x/test.csv", text="\n".join(f"{n:03}.png,{n % 2}" for n in range(10, 15)))
    data = build(path="x/train.csv", test="x/test.csv")
    assert (len(data.train), len(data.test), data.val) == (8, 5, None)
    with pytest.raises(DataError) as caught:
        build(path="x/train.csv", val="x/val.csv", test="x/test.csv")
    assert str(caught.value) == ("x/val.csv:2: x/000.png has the split val, and train in x/train.csv:2\n"
                                 "  Remove one of the two rows.")
    table(path="x/val.csv", text="008.png,0")
    assert len(build(path="x/train.csv", val="x/val.csv", test="x/test.csv").val) == 1
    with pytest.raises(ConfigError, match="split names the column that says what is of val and test"):
        build(path="x/train.csv", test="x/test.csv", split="split")


def test_rows_that_are_there_twice_are_taken_once_and_that_is_said():
    pictures(Path("x"))
    table("\n".join(f"{n:03}.png,{n % 2}" for n in range(15)) + "\n./003.png,1\n003.png,1")
    data = build()
    assert len(labels_by_file(data)) == 15 == len(data.train) + len(data.test)
    assert data.notes[1] == "2 rows left out, whose file and label another row has (x/labels.csv:17 and others)"


def test_a_file_that_is_named_in_two_ways_is_one():
    pictures(Path("x"))
    rows = "\n".join(f"{n:03}.png,{'cat' if n < 5 else 'ant'}" for n in range(15))
    whole = Path("x/003.png").absolute()
    table(f"{rows}\n{whole},cat")
    data = build()
    assert len(data.train) + len(data.test) == 15
    assert data.notes[1] == "1 row left out, whose file and label another row has (x/labels.csv:17)"
    table(f"{rows}\n{whole},ant")
    with pytest.raises(DataError) as caught:
        build()
    assert str(caught.value).startswith(f"x/labels.csv:17: {whole} has the label ant, and cat in x/labels.csv:5")


def test_a_file_on_another_drive_is_told_as_others_are(monkeypatch):
    def relpath(path, start):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    pictures(Path("x"))
    table("000.png,cat\n001.png,ant\n/d/002.png,ant\n")
    monkeypatch.setattr("os.path.relpath", relpath)
    with pytest.raises(DataError, match=r"x/labels.csv:4: no file /d/002.png \(looked in"):
        build()


def test_a_class_of_a_single_group_is_named():
    pictures(Path("x"))
    table("\n".join(f"{n:03}.png,{'cat' if n < 5 else 'ant'},{0 if n < 5 else n}" for n in range(15)),
          header="file,label,patient\n")
    with pytest.raises(DataError, match="all images of class cat would be held out"):
        for seed in range(10):
            build(seed, group="patient", test_fraction=0.5)


def test_files_that_are_not_there_or_no_images_are_left_out_if_they_may():
    pictures(Path("x"))
    table()
    (Path("x") / "001.png").unlink()
    (Path("x") / "007.png").write_text("no image")
    with pytest.raises(DataError, match="x/labels.csv:3: no file x/001.png"):
        build()
    data = build(skip_unreadable=True)
    assert data.left_out == ("x/001.png", "x/007.png") and len(labels_by_file(data)) == 13
    pictures(Path("x"), ["001.png"])
    with pytest.raises(DataError, match="x/007.png cannot be read as an image"):
        build()
    with pytest.raises(DataError, match="no file y/000.png .*, nor 14 others"):
        build(skip_unreadable=True, root="y")


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("text, said", [
    ("000.png,cat\n\n001.png,\n", "x/labels.csv:4: no label in column label: it is empty"),
    ("000.png,cat\n,ant\n", "x/labels.csv:3: no image in column file: it is empty"),
    ("000.png,cat\n001.png\n", "x/labels.csv:3: 1 field instead of 2"),
    ("000.png,cat\n001.png,black, cat\n", "x/labels.csv:3: 3 fields instead of 2"),
    ("000.png,cat\n001.png,ant\n000.png,ant\n",
     "x/labels.csv:4: x/000.png has the label ant, and cat in x/labels.csv:2"),
    ("000.png,cat\n001.png,cat\n", "x/labels.csv has a single class, cat"),
    ('000.png,"a cat\n001.png,ant\n', "x/labels.csv:2: this row cannot be read: unexpected end of data"),
    ('000.png,"a\ncat"\n001.png,ant\n', "x/labels.csv:2: no label in column label: 'a\\ncat' has control characters"),
    ("000.png,cat\n001.png,ant\nno.png,ant\n", "x/labels.csv:4: no file x/no.png (looked in {cwd})\n  Names are relative to x"),
    ("000.png,caf\u00e9\n001.png,cafe\u0301\n", "x/labels.csv has two classes caf"),
    ("000.png,cat\n001.png,cat\n002.png,ant\n", "one image only of ant (x/labels.csv:4)"),
    ("\n", "x/labels.csv has one row, which is taken for the names")])
def test_rows_that_are_wrong_are_named_by_their_line(text, said):
    pictures(Path("x"))
    table(text)
    with pytest.raises(DataError) as caught:
        build()
    assert str(caught.value).startswith(said.replace("{cwd}", str(Path.cwd())))


def test_names_may_be_relative_and_whole_in_one_table():
    pictures(Path("x"))
    whole = [f"{Path('x').resolve() if n % 2 else ''}/{n:03}.png".lstrip("/" if n % 2 == 0 else "") for n in range(15)]
    table("\n".join(f"{name},{'cat' if n < 5 else 'ant'}" for n, name in enumerate(whole)))
    mixed = build()
    table()
    assert mixed.train.fingerprint == build().train.fingerprint


@pytest.mark.parametrize("text, said", [
    ("0,a,train\n1,b,tset\n", "x/labels.csv:3: no split is called 'tset'\n  Did you mean test? Allowed: train, "),
    ("0,a,train\n1,b,\n", "x/labels.csv:3: no split in column split: it is empty"),
    ("0,a,train\n1,b,test\n2,a,test\n", "x/labels.csv:3: no training image has the label b"),
    ("0,a,train\n1,b,train\n", "no image of x/labels.csv is of test or val\n  DATA.DATASET.split \"''\" sets test_fraction"),
    ("0,a,test\n1,b,test\n", "no image of x/labels.csv is of train")])
def test_splits_that_are_wrong_are_refused(text, said):
    pictures(Path("x"), ["0.png", "1.png", "2.png"])
    table(text, "id,label,split\n")
    with pytest.raises(DataError) as caught:
        build(extension="png")
    assert said in str(caught.value)


@pytest.mark.parametrize("content, said", [
    (b"file,label\n000.png,caf\xe9\n", "x/labels.csv:2: this is no text in UTF-8 (byte 0xe9)\n  Save the table as CSV in UTF-8"),
    ("file,label\n".encode("utf-16"), "x/labels.csv:1: this is no text in UTF-8"),
    (b"PK\x03\x04\x14\x00\x06\x00", "x/labels.csv:1: this is no text in UTF-8 (byte 0x00)"),
    (b"", "x/labels.csv is empty"), (b"\n\n", "x/labels.csv is empty"),
    (b"000.png\n001.png\n", "x/labels.csv has a single column: 000.png")])
def test_files_that_are_no_tables_are_refused(content, said):
    Path("x").mkdir()
    Path("x/labels.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        build()
    assert said in str(caught.value)


@pytest.mark.parametrize("arguments, said", [
    ({"path": "x/label.csv"}, "no file x/label.csv (looked in {cwd})\n  Did you mean x/labels.csv?"),
    ({"path": "x"}, "x is a folder, not a CSV file\n  Name the file in it: x/labels.csv."),
    ({"image": "fiel"}, "x/labels.csv has no column 'fiel'\n  Did you mean file? Allowed: file, label."),
    ({"label": "Label"}, "x/labels.csv has no column 'Label'\n  Did you mean label?"),
    ({"label": 2}, "x/labels.csv has no column 2\n  They have the numbers 0 to 1."),
    ({"image": "file", "header": False}, "x/labels.csv has no column 'file'\n  Without a header they have numbers"),
    ({"image": 1}, "x/labels.csv:2: no file x/cat (looked in {cwd}), nor 14 others"),
    ({"label": "file", "image": "file"}, "column file of x/labels.csv cannot be the label and something else"),
    ({"header": False, "test_fraction": 0.5}, "x/labels.csv:1: no file x/file"),
    ({"delimiter": ";"}, "x/labels.csv has a single column: file,label"),
    ({"delimiter": "\\t"}, "delimiter is one character, not '\\\\t'"),
    ({"test_fraction": 1.5}, "test_fraction lies between 0 and 1"),
    ({"channels": 4}, "channels is 1 or 3, not 4"),
    ({"header": "yes"}, "header of dataset CSVDataset takes bool or auto, not 'yes'")])
def test_arguments_that_are_wrong_are_refused(arguments, said):
    pictures(Path("x"))
    table()
    with pytest.raises(UserError) as caught:
        build(**arguments)
    assert said.replace("{cwd}", str(Path.cwd())) in str(caught.value)


@pytest.mark.parametrize("header, arguments, said", [
    ("one,two,three", {}, "which column of x/labels.csv is the label? There are one, two, three\n"
                          "  Say it by DATA.DATASET.label. If these are no names: DATA.DATASET.header false."),
    ("file,label,file", {"image": "file"}, "x/labels.csv has two columns 'file'\n  Give its number, from 0."),
    ("", {}, "which column of x/labels.csv is the label? There are 0, 1, 2\n  Say it by DATA.DATASET.label.")])
def test_columns_that_cannot_be_told_are_asked_for(header, arguments, said):
    pictures(Path("x"))
    table("\n".join(f"{n:03}.png,{n % 2},{n % 2}" for n in range(15)), header and f"{header}\n")
    with pytest.raises(DataError) as caught:
        build(**arguments)
    assert said in str(caught.value)


def test_a_mistake_ends_a_training_with_one_message_and_nothing_is_written(tiny, tool):
    pictures(Path("x"))
    table("000.png,cat\n001.png,\n")
    node = "{NAME: CSVDataset, path: x/labels.csv}"
    code, _, err = tool("train.py", tiny, "DATA.DATASET", node, "DATA.LIMIT", "0")
    assert (code, err.strip().split("\n")[0]) == (2, "error: x/labels.csv:3: no label in column label: it is empty")
    code, _, err = tool("train.py", tiny, "DATA.DATASET", node.replace("labels", "lables"), "DATA.LIMIT", "0")
    assert code == 2 and "command line DATA.DATASET.path: no file x/lables.csv" in err
    assert not Path("runs").exists()


# -- trained and tested on -----------------------------------------------------------------------


@pytest.fixture
def of_a_table(quick):
    """A run on images that a table names, and a second table."""
    random = np.random.default_rng(0)
    for n in range(40):
        pixels = random.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        pixels[..., n % 2] += 150
        Path("x").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(f"x/{n:03}.png")
    rows = [f"{n:03}.png,{'red' if n % 2 == 0 else 'green'}" for n in range(40)]
    table("\n".join(rows[:30]))
    table("\n".join(rows[30:]), path="x/other.csv")
    return train(load_config(quick, {"DATA.DATASET": {"NAME": "CSVDataset", "path": "x/labels.csv"},
                                     "DATA.LIMIT": 0, "TRAIN.EPOCHS": 1, "DATA.BATCH_SIZE": 8}))


def test_a_run_is_tested_on_another_table(of_a_table, tool):
    assert len(of_a_table.predictions.true) == 6
    code, out, err = tool("evaluate.py", "--run", of_a_table.folder, "DATA.DATASET.path", "x/other.csv")
    assert code == 0, err
    assert "data       10 images of x/other.csv are tested, none is set aside" in out and "Not written to" in out
    # The table of the run, moved with its images, is tested on what was set aside.
    Path("x").rename("y")
    said = evaluate(of_a_table.folder, {"DATA.DATASET.path": "y/labels.csv"})
    assert np.array_equal(said.index, of_a_table.predictions.index)
    assert len(evaluate(of_a_table.folder, {"DATA.DATASET.path": "y/labels.csv",
                                            "DATA.DATASET.test_fraction": 1.0}).true) == 30


def test_another_table_of_a_run_with_one_for_its_test_is_not_taken_for_that(of_a_table, quick):
    node = {"NAME": "CSVDataset", "path": "x/labels.csv", "test": "x/other.csv"}
    run = train(load_config(quick, {"DATA.DATASET": node, "DATA.LIMIT": 0, "TRAIN.EPOCHS": 1, "DATA.BATCH_SIZE": 8}))
    assert len(run.predictions.true) == 10
    Path("x/more.csv").write_text(Path("x/labels.csv").read_text())
    with pytest.raises(ConfigError) as caught:
        evaluate(run.folder, {"DATA.DATASET.path": "x/more.csv"})
    assert str(caught.value) == (
        "Python DATA.DATASET.path: test is still x/other.csv, which would be tested\n"
        "  Name that as well, DATA.DATASET.test FILE; to test all of path: DATA.DATASET.test null")
    said = evaluate(run.folder, {"DATA.DATASET.path": "x/more.csv", "DATA.DATASET.test": None})
    assert len(said.true) == 30


def test_a_run_goes_on_where_its_tables_were_moved_to_but_not_with_others(of_a_table, quick):
    def config(folder, epochs, test="other"):
        node = {"NAME": "CSVDataset", "path": f"{folder}/labels.csv", "test": f"{folder}/{test}.csv"}
        return load_config(quick, {"DATA.DATASET": node, "DATA.LIMIT": 0, "TRAIN.EPOCHS": epochs, "DATA.BATCH_SIZE": 8})

    expected = train(config("x", 2)).checkpoint("last").model
    run = train(config("x", 1))
    Path("x").rename("y")
    rows = Path("y/other.csv").read_text()
    Path("y/fewer.csv").write_text(rows[:rows.rstrip().rindex("\n")])
    with pytest.raises(UserError, match="other images"):
        train(config("y", 2, test="fewer"), run)
    again = train(config("y", 2), run).checkpoint("last").model
    assert all(map(torch.equal, expected.values(), again.values()))


def test_the_table_that_predictions_are_written_to_is_read(of_a_table, tool):
    code, _, err = tool("predict.py", of_a_table.folder, "x", "--csv", "said.csv")
    assert code == 0, err
    said = Path("said.csv").read_text().split("\n")
    Path("said.csv").write_text("\n".join([said[0], *(f"{line.split(',')[0]},{n % 2},1" for n, line in
                                                      enumerate(said[1:-1]))]))
    data = build(path="said.csv", root=".")
    assert len(data.train) + len(data.test) == 40
    assert data.notes[0] == "columns of said.csv: file is the image, class is the label"


def test_the_pictures_of_cifar_are_read_by_a_table(cifar_images, tiny):
    folder = DATASETS.build({"NAME": "ImageFolder", "root": str(cifar_images)})
    rows = [f"{split.name(n)},{folder.classes[split.labels[n]]},{name}"
            for name, split in folder.splits.items() for n in range(0, len(split), 20)]
    Path("all.csv").write_text("\n".join(["path,class,split", *rows]))
    config = load_config(tiny, {"DATA.DATASET": {"NAME": "CSVDataset", "path": "all.csv"}, "DATA.LIMIT": 0})
    data = build_data(config)
    assert data.classes == folder.classes and data.image_size == (32, 32)
    assert len(data.train) == -(-len(folder.train) // 20)
    assert np.array_equal(data.train.image(1), folder.train.image(20))


# -- groups ------------------------------------------------------------------------------


@pytest.fixture
def patients(tmp_path):
    """A table of 60 pictures of 12 patients."""
    fill(tmp_path, {"cat": 30, "dog": 30})
    rows = [f"{name}/{number:03}.png,{name},p{number // 5 + (6 if name == 'dog' else 0)}"
            for name in ("cat", "dog") for number in range(30)]
    (tmp_path / "patients.csv").write_text("\n".join(["file,label,patient", *rows]) + "\n")
    return tmp_path / "patients.csv"


def test_a_patient_is_on_one_side_of_each_split(patients, tiny):
    keys = {"DATA.DATASET": {"NAME": "CSVDataset", "path": str(patients), "group": "patient"},
            "DATA.LIMIT": 0, "DATA.TRAIN_TRANSFORMS": [], "DATA.VAL_FRACTION": 0.25}
    for more in ({}, {"DATA.FOLDS": 3, "DATA.FOLD": 1}):
        data = build_data(load_config(tiny, {**keys, **more}))
        of = {}
        for name, split in data.splits.items():
            for position in range(len(split)):
                label, file = Path(split.name(position)).parts[-2:]
                of.setdefault((label, int(file[:3]) // 5), set()).add(name)
        assert len(of) == 12 and all(len(splits) == 1 for splits in of.values())
        assert {len(split) % 5 for split in data.splits.values()} == {0}


def test_without_the_column_a_patient_may_be_on_both(patients):
    data = DATASETS.build({"NAME": "CSVDataset", "path": str(patients), "label": "label"}, seed=0)
    assert data.train.groups is None


def test_a_table_that_splits_groups_itself_is_told(patients):
    lines = patients.read_text().splitlines()
    halves = [f"{line},{'split' if not number else 'train' if number % 2 else 'test'}"
              for number, line in enumerate(lines)]
    patients.write_text("\n".join(halves))
    data = DATASETS.build({"NAME": "CSVDataset", "path": str(patients), "group": "patient"}, seed=0)
    assert any(note.startswith("12 groups have images in more than one split, as the table says: p0, p1")
               for note in data.notes)


@pytest.mark.parametrize("change, message", [
    (("patient", "pationt"), r"has no column 'patient'\n  Did you mean pationt"),
    ((",p3", ","), "no group in column patient: it is empty")])
def test_a_group_that_is_not_there_is_told(patients, change, message):
    patients.write_text(patients.read_text().replace(*change))
    with pytest.raises(DataError, match=message):
        DATASETS.build({"NAME": "CSVDataset", "path": str(patients), "group": "patient"}, seed=0)


@pytest.mark.parametrize("column", ["label", "file"])
def test_the_group_is_no_column_of_something_else(patients, column):
    with pytest.raises(DataError, match=f"column {column} of .* cannot be the group and something else"):
        DATASETS.build({"NAME": "CSVDataset", "path": str(patients), "group": column}, seed=0)


@pytest.mark.parametrize("name, words, other", [("set", ["train", "holdout", "other"], "holdout"), ("split", ["0", "1", "2"], "0"),
                                                ("Usage", ["Training", "Public", "Private"], "Public")])
def test_a_column_called_as_that_of_the_splits_that_is_not_taken_for_it_is_told(name, words, other):
    pictures(Path("x"))
    table("\n".join(f"{n:03}.png,{'cat' if n < 5 else 'ant'},{words[n % 3]}" for n in range(15)),
          header=f"file,label,{name}\n")
    assert f"column {name} of labels.csv is not taken for that of the splits: none is called '{other}'" in build().notes


def test_a_column_that_is_the_label_or_the_group_or_has_an_empty_field_is_told_as_what_it_is():
    pictures(Path("x"))
    rows = [f"{n:03}.png,{'cat' if n < 5 else 'ant'},{n if n else ''}" for n in range(15)]
    table("\n".join(rows[1:]), header="file,label,set\n")
    assert not [note for note in build(group="set").notes if "is not taken" in note]
    table("\n".join(row.rpartition(",")[0] for row in rows), header="file,set\n")
    assert build().notes == ("columns of labels.csv: file is the image, set is the label",)
    table("\n".join(rows), header="file,label,set\n")
    assert "column set of labels.csv is not taken for that of the splits: a field is empty" in build().notes


def test_a_misspelt_split_is_refused_whatever_the_column_is_called():
    pictures(Path("x"))
    words = ["train"] * 8 + ["trian"] + ["dev", "test"] * 3
    table("\n".join(f"{n:03}.png,{'cat' if n % 2 else 'ant'},{word}" for n, word in enumerate(words)), header="file,label,set\n")
    with pytest.raises(DataError, match="x/labels.csv:10: no split is called 'trian'\n  Did you mean train?"):
        build()


def test_a_part_may_be_called_dev():
    pictures(Path("x"))
    table("\n".join(f"{n:03}.png,{'cat' if n % 2 else 'ant'},{['train', 'dev', 'test'][n // 2 % 3]}" for n in range(15)),
          header="file,label,set\n")
    data = build()
    assert [len(data.train), len(data.val), len(data.test)] == [6, 5, 4]


def test_a_hint_that_names_a_value_reaches_the_data_set_when_it_is_copied():
    for words in ('DATA.DATASET.split "\'\'"', 'DATA.DATASET.delimiter "\' \'"'):
        key, value = shlex.split(words)
        config = load_config("resnet18_cifar10", ["DATA.DATASET", "{NAME: CSVDataset, path: x}", key, value])
        assert config.DATA.DATASET[key.rpartition(".")[2]] == value.strip("'")
