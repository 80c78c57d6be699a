import base64
import html
import io
import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from browser import BROWSER, Browser, opened
from PIL import Image
from test_report_format import Reader

import cvkit
import cvkit.reporting.report as report_module
from cvkit.config import load_config
from cvkit.errors import RunError
from cvkit.reporting.report import write_report
from cvkit.runs.experiment import Experiment
from cvkit.runs.folder import Run, open_run
from cvkit.visualizers.draw import Drawn
from cvkit.visualizers.drawing import Picture, message

# Of what is drawn of every run, this has no test of learning rates, and no duplicates.
PICTURES = {node["NAME"] for node in report_module._ALWAYS} - {"lr_finder", "duplicates"}


def images_in(page):
    return [base64.b64decode(data) for data in re.findall(r'data:image/png;base64,([^"]+)"', page)]


@pytest.fixture(scope="module")
def _reported(_trained, tmp_path_factory):
    """The painted run with its report, written once."""
    folder = tmp_path_factory.mktemp("reported") / _trained[1].name
    write_report(Run(shutil.copytree(_trained[1], folder)))
    return folder


@pytest.fixture
def report(_reported, painted):
    return shutil.copytree(_reported, painted.folder, dirs_exist_ok=True)


@pytest.fixture
def only_curves(draws_only):
    """For tests of words."""
    draws_only("curves")


def test_the_page_holds_its_pictures_and_the_readme_those_beside_it(report, painted):
    page, readme = (report / "report.html").read_text(), (report / "README.md").read_text()
    files = {path.stem: path.read_bytes() for path in (report / "images").iterdir()}
    assert set(files) == PICTURES
    assert sorted(images_in(page)) == sorted(files.values())
    assert set(re.findall(r"\]\(images/(\w+)\.png\)", readme)) == PICTURES


def test_headings_and_captions_are_not_repeated_in_the_pictures(painted, draws_only):
    """The page has them as text; what is left of a picture is the part below them."""
    draws_only("curves", "misclassified", "cam", "cam_matrix")
    write_report(painted, [{"NAME": "cam_matrix", "count": 2}])
    for name, arguments in (("curves", {}), ("misclassified", {}), ("cam_matrix", {"count": 2})):
        whole = painted.visualize(name, **arguments)
        with Image.open(painted.folder / "images" / f"{name}.png") as image:
            part = np.asarray(image)
        everything = np.asarray(Image.open(io.BytesIO(whole._repr_png_())))
        height = len(part)
        assert len(everything) - 200 < height < len(everything) - 40
        # Half a pixel in the height of either moves letters by one in matplotlib 3.7.
        assert np.any([part[10:-1] == np.roll(everything, moved, axis=0)[-height + 10:-1]
                       for moved in (-1, 0, 1)], axis=0).mean() > 0.999
        assert (part[:10] == 255).all()  # no half letters
    page, readme = ((painted.folder / name).read_text() for name in ("report.html", "README.md"))
    assert page.count(">Where the model looked<") == 3  # in the contents, and as a heading
    assert page.count("<b>Where the model looked, by layer.</b>") == 1
    assert readme.count("Where the model looked, by layer.") == 1
    caption = painted.visualize("misclassified").caption
    assert page.count(f"<figcaption>{caption}</figcaption>") == 1
    assert f"images/misclassified.png)\n\n{caption}\n" in readme


def test_it_answers_the_hand_in(report, painted):
    """Model, utility and main code, log, both galleries, links to the repository and README."""
    page, readme = (report / "report.html").read_text(), (report / "README.md").read_text()
    reader = Reader()
    reader.feed(page)
    words = "".join(reader.words)
    for text in (words, readme):
        for part in ("Model code", "Utilities", "Main code", "Training log",
                     "Misclassified images", "Class activation maps", "Repository", "README"):
            assert part in text
        assert "class BasicBlock(nn.Module):" in text  # the model's source
        for line in (report / "train.log").read_text().splitlines():
            assert line in text
        assert painted.config.dump() in text
        assert (report / "environment.txt").read_text().strip() in text
        assert "python tools/train.py painted.yaml" in text.replace("\\", "")
    accuracy = painted.predictions
    assert f"Test accuracy {100 * accuracy.accuracy:.2f} %: {accuracy.correct} of 36 images" in words
    assert painted.visualize("misclassified").caption in words
    assert painted.visualize("cam").caption in words
    assert re.search(r"tools/train\.py", words)


def test_anchors_lead_somewhere(report):
    reader = Reader()
    reader.feed((report / "report.html").read_text())
    anchors = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    for _, attributes in reader.tags:
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in anchors


@pytest.mark.parametrize("has_cvkit", [True, False])
def test_links_go_to_the_commit_on_github(painted, only_curves, monkeypatch, has_cvkit):
    monkeypatch.setattr("cvkit.reporting.report.git_facts", lambda folder: {
        "repository": "https://github.com/me/course" if has_cvkit else "https://github.com/a/b"})
    environment = painted.folder / "environment.txt"
    lines = [line for line in environment.read_text().splitlines()
             if not line.startswith(("git:", "repository:"))]
    environment.write_text("\n".join([*lines, "git: 0123abcd-dirty",
                                      "repository: https://github.com/me/course"]) + "\n")
    write_report(painted)
    page, readme = ((painted.folder / name).read_text() for name in ("report.html", "README.md"))
    for text in (page, readme):
        file = "https://github.com/me/course/blob/0123abcd/cvkit/models/resnet.py"
        assert (file in text) == has_cvkit
        assert "git clone https://github.com/me/course" in text
        assert "git checkout 0123abcd\n" in text


def test_pictures_of_the_config_and_of_flags_are_in_it(painted, draws_only, tmp_path):
    draws_only("curves", "misclassified", "cam_matrix")
    run = Run(painted.folder, {"VISUALIZERS": [{"NAME": "cam_matrix", "count": 1},
                                               {"NAME": "misclassified", "count": 3}]})
    paths = write_report(run, [{"NAME": "misclassified", "count": 4}], tmp_path / "out")
    assert paths == [tmp_path / "out" / "report.html", tmp_path / "out" / "README.md"]
    page = paths[0].read_text()
    assert "4 misclassified test images" in page and "GradCAMPlusPlus at layer1" in page
    names = {path.stem for path in (tmp_path / "out" / "images").iterdir()}
    assert names == {"curves", "misclassified", "cam_matrix"}
    assert "3 misclassified test images" not in page  # what a flag says replaces what the config says
    assert not (painted.folder / "report.html").exists()


def test_a_visualizer_that_is_listed_twice_is_drawn_twice(painted, draws_only):
    draws_only("curves", "misclassified", "cam")
    write_report(Run(painted.folder, {"VISUALIZERS": [
        {"NAME": "misclassified"}, {"NAME": "misclassified", "true_class": "red"},
        {"NAME": "cam"}, {"NAME": "cam", "method": "LayerCAM"}]}))
    names = {path.stem for path in (painted.folder / "images").iterdir()}
    assert names == {"curves", "misclassified", "misclassified_red", "cam", "cam_LayerCAM"}
    assert len(images_in((painted.folder / "report.html").read_text())) == len(names)


def test_own_words_come_first_and_are_kept(painted, only_curves):
    (painted.folder / "notes.md").write_text("# By Ada\n\nWhat I *saw*: <cats> {{ 7 * 7 }}\n")
    for _ in range(2):
        write_report(painted)
        readme, page = ((painted.folder / name).read_text() for name in ("README.md", "report.html"))
        assert "## Notes\n\n# By Ada\n\nWhat I *saw*: <cats> {{ 7 * 7 }}\n\n## Results" in readme
        assert "What I *saw*: &lt;cats&gt; {{ 7 * 7 }}" in page


def test_with_validation_images_the_test_has_a_column_of_its_own(painted, only_curves):
    records = [{name.replace("test/", "val/"): value for name, value in epoch.items()}
               for epoch in painted.metrics]
    records[0]["val/accuracy"], records[1]["val/accuracy"] = 0.9, 0.8
    (painted.folder / "metrics.jsonl").write_text("".join(json.dumps(item) + "\n" for item in records))
    write_report(painted)
    readme = (painted.folder / "README.md").read_text()
    predictions = painted.predictions
    header, row = (next(line for line in readme.splitlines() if line.startswith(start)).split(" | ")
                   for start in ("|  | train", "| accuracy"))
    assert header[1:] == ["train, epoch 2", "val, epoch 2", "train, best epoch (1)",
                          "val, best epoch (1)", f"test, epoch {predictions.epoch} |"]
    assert row[2] == "80.00 %" and row[4] == "90.00 %"
    assert row[5] == f"{100 * predictions.accuracy:.2f} % |"


def test_own_metrics_are_shown_as_what_they_are(painted, only_curves):
    records = [{**epoch, "test/perplexity": 7.5, "test/top5": 0.75, "test/word": "fine", "test/auroc": math.nan,
                "test/accuracy/cat": math.nan}
               for epoch in painted.metrics]
    (painted.folder / "metrics.jsonl").write_text("".join(json.dumps(item) + "\n" for item in records))
    write_report(painted)
    readme = (painted.folder / "README.md").read_text()
    for row in ("| perplexity |  | 7.5000 |", "| top5 |  | 75.00 % |", "| word |  | fine |", "| auroc |  | – |",
                "| accuracy/cat |  | – |"):
        assert row in readme


def test_the_cam_is_of_the_images_in_the_gallery(painted, draws_only):
    draws_only("misclassified", "cam")
    write_report(painted, [{"NAME": "misclassified", "count": 3, "order": "index"}])
    page = html.unescape((painted.folder / "report.html").read_text())
    assert page.count("3 misclassified test images, in the data set's order") >= 4


def test_a_picture_that_cannot_be_drawn_is_named_and_the_rest_is_there(painted, draws_only, capsys):
    draws_only("curves", "cam", "confusion")
    write_report(painted, [{"NAME": "cam", "layer": "layer4"}])
    page = (painted.folder / "report.html").read_text()
    assert "cam was not drawn: layer layer4 has a map of 4×4 pixels" in page
    assert len(images_in(page)) == 2
    assert "not drawn: cam: layer layer4" in capsys.readouterr().err


def page_with(painted, names):
    """Return the report of the run with other names of its classes."""
    data, checkpoint = painted.data, painted.checkpoint("last")
    replace(checkpoint, classes=names).save(painted.folder / "checkpoints" / "last.pt")
    replace(painted.predictions, classes=names).save(painted.folder / "predictions.npz")
    run = Run(painted.folder)
    run.__dict__["data"] = replace(data, classes=tuple(names))
    write_report(run)
    return (painted.folder / "report.html").read_text(encoding="utf-8")


def test_names_that_no_font_can_draw_stand_in_the_captions(painted, draws_only):
    draws_only("misclassified")
    page = page_with(painted, ["\U00012000", "green", "\U00012001"])
    assert "letters of some names: class 0: \U00012000, class 2: \U00012001." in page
    assert "the .txt" not in page


def test_class_names_are_text(painted):
    page = page_with(painted, ["<b>blue</b>", "green & co", "$red$"])
    assert "<b>blue" not in page and "&lt;b&gt;blue&lt;/b&gt;" in page


@pytest.mark.parametrize("damage, problem", [
    ("predictions.npz", "tools/evaluate"), ("checkpoints/last.pt", "no checkpoint"),
    ("metrics.jsonl", "no finished epoch")])
def test_what_is_missing_is_told_and_nothing_is_written(painted, damage, problem):
    (painted.folder / damage).unlink()
    with pytest.raises(cvkit.UserError, match=problem):
        write_report(Run(painted.folder))
    assert not (painted.folder / "report.html").exists()


def test_a_report_is_of_a_run(tiny):
    with pytest.raises(RunError, match="this is a config, not a run"):
        write_report(Experiment(load_config(tiny)))


def test_sections_stand_in_the_order_in_which_a_reader_asks(report):
    reader = Reader()
    reader.feed((report / "report.html").read_text())
    sections = [attributes["id"] for tag, attributes in reader.tags if tag == "section"]
    order = ["results", "classes", "misclassified-images", "confidence-and-robustness",
             "where-the-model-looked", "training", "data", "what-the-model-receives", "model",
             "training-log", "config", "environment", "hand-in"]
    assert [name for name in sections if name != order[3]] == [name for name in order if name != order[3]]
    assert sections == [name for name in order if name in sections]
    figures = [attributes["id"].removeprefix("picture-") for tag, attributes in reader.tags if tag == "figure"]
    assert figures == [node["NAME"] for node in report_module._ALWAYS if node["NAME"] in PICTURES]
    assert "No two images are equal, or nearly so." in (report / "report.html").read_text()


def test_a_message_is_text_and_a_table_is_to_be_kept(painted, monkeypatch):
    figure = Picture(4, 3, "How sure")
    figure.csv = "sure,right\n0.5,0.4"
    drawn = {"duplicates": message("No two images are the same"), "calibration": figure,
             "curves": painted.visualize("curves")}
    monkeypatch.setattr("cvkit.reporting.pages.draw_all", lambda run, nodes: [
        Drawn(name, name, made) for name, made in drawn.items()])
    write_report(painted)
    page, readme = ((painted.folder / name).read_text() for name in ("report.html", "README.md"))
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings[1:4] == ["Confidence and robustness", "Training", "Data"]
    assert "<p>No two images are the same.</p>" in page and "\nNo two images are the same.\n" in readme
    assert {path.name for path in (painted.folder / "images").iterdir()} == {"calibration.png", "curves.png"}
    (table,) = (painted.folder / "tables").iterdir()
    assert table.name == "calibration.csv" and table.read_text() == "sure,right\n0.5,0.4\n"
    letters = re.search('download="calibration.csv" href="data:text/csv;charset=utf-8;base64,(.*?)"', page)
    assert base64.b64decode(letters.group(1)) == table.read_bytes()
    assert "(tables/calibration.csv)" in readme


def test_a_large_table_lies_beside_the_page_that_leads_to_it(painted, monkeypatch):
    figure = Picture(4, 3, "Many")
    figure.csv = "a\n" + "\n".join(["0123456789"] * 100_000)
    monkeypatch.setattr("cvkit.reporting.pages.draw_all", lambda run, nodes: [Drawn("pr", "pr", figure)])
    write_report(painted)
    page = (painted.folder / "report.html").read_text()
    assert '<a download="pr.csv" href="tables/pr.csv">' in page and len(page) < 1_000_000
    assert (painted.folder / "tables" / "pr.csv").read_text() == figure.csv + "\n"


def test_a_page_with_all_usual_pictures_is_below_15_mb(report):
    assert 3e5 < (report / "report.html").stat().st_size < 15e6


LAYOUT = """(() => {
  const wide = [...document.querySelectorAll("body *")].filter(element => {
    const inside = element.closest(".wide, pre, .skip");
    return (!inside || inside === element)
      && element.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5;
  }).map(element => element.tagName);
  const images = [...document.images], seen = name => document.querySelector(name).checkVisibility();
  return {
    width: document.documentElement.clientWidth, page: document.documentElement.scrollWidth, wide,
    scrolled: [...document.querySelectorAll("section *")].filter(
      element => element.scrollWidth > element.clientWidth && element.clientWidth > 0
        && getComputedStyle(element).overflowX === "auto").map(element => element.tagName),
    images: images.length, loaded: images.filter(image => image.naturalWidth > 300).length,
    widths: images.map(image => image.getBoundingClientRect().width),
    contents: [".side", ".top", ".up"].map(seen)}; })()"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
@pytest.mark.parametrize("width", [360, 390, 1280])
def test_in_a_browser_every_picture_loads_and_nothing_overflows(report, tmp_path, width):
    with Browser(tmp_path / "profile", width, 900) as tab:
        tab.call("Page.navigate", url=(report / "report.html").resolve().as_uri())
        tab.wait("document.readyState === 'complete'")
        found = tab.value(LAYOUT)
        assert not [told for told in tab.told("Log.entryAdded") if told["entry"]["level"] == "error"]
        assert {url.split(":")[0] for url in tab.requests} == {"file", "data"}
        # The contents stay at hand beside the page, once it is scrolled.
        tab.value("scrollTo(0, 3000)")
        top = tab.value("document.querySelector('.side a').getBoundingClientRect().top")
        assert width < 1024 or 0 <= top < 100
    assert found["width"] == width == found["page"], found  # the page itself is never scrolled
    assert found["wide"] == []
    assert found["images"] == found["loaded"] == len(PICTURES)
    assert min(found["widths"]) >= 300 and max(found["widths"]) <= width  # fits, unscrolled
    assert found["scrolled"] == [] or width == 1280
    assert found["contents"] == ([True, False, False] if width == 1280 else [False, True, True])


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_pictures_lie_on_white_in_the_dark_and_on_paper_all_is_unfolded(report, tmp_path):
    def colours(tab, scheme, media="screen"):
        tab.call("Emulation.setEmulatedMedia", media=media,
                 features=[{"name": "prefers-color-scheme", "value": scheme}])
        return tab.value("""["body", ".large", "summary"].map(name => {
          const style = getComputedStyle(document.querySelector(name));
          return [style.backgroundColor, style.color]; })""")

    with opened(report / "report.html", tmp_path / "profile") as tab:
        light, dark, paper = colours(tab, "light"), colours(tab, "dark"), colours(tab, "dark", "print")
        assert light[0] == paper[0] == ["rgb(255, 255, 255)", "rgb(27, 27, 27)"]
        assert dark[0] == ["rgb(22, 25, 29)", "rgb(230, 230, 230)"] and dark[1][0] == "rgb(255, 255, 255)"
        assert tab.value("[...document.querySelectorAll('details pre')].every(item => item.checkVisibility("
                         "{contentVisibilityAuto: true}) && item.getBoundingClientRect().height > 9)")
        assert tab.value("[...document.querySelectorAll('nav, .up')].every(item => !item.checkVisibility())")


def test_requirements_follow_the_results_each_with_what_was_found(painted, only_curves, tmp_path):
    write_report(painted)
    assert "## Requirements" not in (painted.folder / "README.md").read_text()
    demanding = open_run(painted.folder, overrides={"REQUIRE": {
        "TRAIN": {"EPOCHS": 2}, "only_norm": "layer", "test_accuracy": 1.0}})
    write_report(demanding, [{"NAME": "curves"}], tmp_path / "out")
    readme = (tmp_path / "out" / "README.md").read_text()
    accuracy = f"{100 * painted.predictions.accuracy:.2f} %"
    assert "2 of 3 requirements NOT MET: only layer norm; test accuracy" in readme
    for row in ("| TRAIN.EPOCHS 2 | met |  |", "| only layer norm | NOT MET | 20 batch |",
                f"| test accuracy of at least 100.00% | NOT MET | {accuracy} |"):
        assert row in readme
    assert readme.index("## Results") < readme.index("## Requirements") < readme.index("## Training")


def test_test_images_that_were_trained_on_are_told_beside_the_accuracy(painted, draws_only):
    draws_only("curves")
    write_report(painted)
    assert "learned by heart" not in (painted.folder / "README.md").read_text()
    (painted.folder / "duplicates.txt").write_text("test a is train b\ntest c is nearly train d\nval e is train f\n")
    write_report(painted)
    assert ("2 of the test images are training images too, or nearly, as duplicates.txt lists: the accuracy counts "
            "what was learned by heart.") in (painted.folder / "README.md").read_text()
