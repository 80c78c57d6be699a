import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from cvkit.config import load_config
from cvkit.errors import ConfigError, RunError
from cvkit.registry import VISUALIZERS
from cvkit.reporting.report import write_report
from cvkit.runs.compare import Runs
from cvkit.runs.experiment import Experiment
from cvkit.runs.folder import Run
from cvkit.visualizers.draw import (
    choose_nodes,
    draw_all,
    file_name,
    open_subject,
    save_all,
    visuals_folder,
)

NEEDS_MORE = {"curve_band", "disagreements", "lr_finder", "wrong_in_all"}  # than any finished run has


@pytest.mark.parametrize("name", [name for name in VISUALIZERS.own if name not in NEEDS_MORE])
def test_every_visualizer_draws_a_run_by_its_defaults(painted, monkeypatch, name):
    figure = painted.visualize(name)
    monkeypatch.setattr(painted, "draw", lambda node: figure if node == {"NAME": name} else None)
    (path,) = save_all(painted, [{"NAME": name}])
    assert path == painted.folder / "visuals" / f"{name}.png"
    with Image.open(path) as image:
        expected = 150 * figure.get_size_inches()
        assert abs(image.width - expected[0]) <= 1 and abs(image.height - expected[1]) <= 1
        assert len(image.convert("L").getcolors(256)) > 10
    assert figure.caption
    # Per cent is written as it is in the captions, on axes as well.
    assert not [text for text in figure.findobj(Text) if re.search(r"\d%", text.get_text())]


def test_the_count_of_visualizers_does_not_shrink():
    assert len(VISUALIZERS.own) >= 27


def test_their_names_are_known_without_what_only_some_need_to_draw():
    # Every command that takes VISUALIZERS reads them as it starts.
    code = ("import sys; from cvkit import VISUALIZERS; assert VISUALIZERS.own; "
            "print({'jinja2', 'matplotlib.pyplot', 'pytorch_grad_cam', 'scipy.cluster', 'scipy.optimize', "
            "'scipy.stats', 'sklearn', 'umap'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("ending, begins", [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_formats_folder_and_dots(painted, tmp_path, ending, begins):
    (path,) = save_all(painted, [{"NAME": "misclassified"}], tmp_path / "out" / "deep", ending, 60)
    assert path == tmp_path / "out" / "deep" / f"misclassified.{ending}"
    assert path.read_bytes().startswith(begins)
    if ending == "png":
        with Image.open(path) as image:
            width = painted.visualize("misclassified").get_figwidth()
            assert abs(image.width - 60 * width) <= 1


def test_images_that_are_others_since_the_training_are_told_where_they_were_read(painted, tmp_path, capsys,
                                                                                draws_only):
    moved, config = tmp_path / "moved", painted.folder / "config.yaml"
    shutil.copytree(painted.config.DATA.DATASET.root, moved)
    config.write_text(config.read_text().replace(str(painted.config.DATA.DATASET.root), str(moved)))
    warning = ("the data set has other training images than those that the run was trained on: some of them may be "
               "among these test images")

    def drawn(name):
        save_all(Run(painted.folder), [{"NAME": name}])
        return capsys.readouterr().out

    def reported():
        draws_only("curves")
        write_report(Run(painted.folder))
        return f"T{warning[1:]}." in (painted.folder / "README.md").read_text()

    assert "warning" not in drawn("misclassified") and not reported()
    next((moved / "train" / "red").iterdir()).rename(moved / "train" / "blue" / "was_red.png")
    assert drawn("misclassified").splitlines()[-1] == f"warning    {warning}"
    assert "warning" not in drawn("curves")  # for which no image is read
    assert reported()


def test_tables_are_saved_as_text_too(painted):
    save_all(painted, [{"NAME": "confusion"}, {"NAME": "summary"}])
    visuals = painted.folder / "visuals"
    assert painted.predictions.table() in (visuals / "confusion.txt").read_text()
    assert "Total params" in (visuals / "summary.txt").read_text()


def test_several_figures_and_repeated_names_get_numbers(painted):
    nodes = [{"NAME": "cam_matrix", "count": 2, "pages": "each"}, {"NAME": "misclassified"},
             {"NAME": "misclassified", "order": "random"}]
    assert [drawn.name for drawn in draw_all(painted, nodes)] == [
        "cam_matrix_each", "cam_matrix_each_2", "misclassified", "misclassified_random"]
    assert [drawn.visualizer for drawn in draw_all(painted, nodes[1:])] == ["misclassified"] * 2


@pytest.mark.parametrize("node, name", [
    ({"NAME": "cam", "count": 5}, "cam"), ({"NAME": "cam", "method": "GradCAM"}, "cam"),
    ({"NAME": "cam", "method": "LayerCAM", "layer": ["layer1", "layer3.0"]},
     "cam_LayerCAM_layer1_layer3.0"),
    ({"NAME": "misclassified", "true_class": "a/b c", "predicted_class": 3}, "misclassified_a-b-c_3"),
    ({"NAME": "misclassified", "true_class": "cat"}, "misclassified_cat"),
    ({"NAME": "misclassified", "predicted_class": "cat"}, "misclassified_predicted_class_cat"),
    ({"NAME": "augmentations", "image": 3}, "augmentations_3"),
    ({"NAME": "augmentations", "seed": 3}, "augmentations_seed_3")])
def test_another_picture_has_another_name(node, name):
    assert file_name(node) == name


def test_names_that_are_too_long_differ_where_their_ends_do():
    names = {file_name({"NAME": "misclassified", "true_class": "ä" * 90 + end}) for end in ("a", "b", "")}
    assert len(names) == 3 and all(len(name.encode()) <= 100 for name in names)


def test_one_that_cannot_be_drawn_costs_none_of_the_others(painted):
    nodes = [{"NAME": "cam", "layer": "layer4"}, {"NAME": "confusion"},
             {"NAME": "cam_matrix", "layers": ["layer4"]}, {"NAME": "misclassified", "count": 0}]
    with pytest.raises(ConfigError) as caught:
        save_all(painted, nodes)
    assert "2 problems" in str(caught.value) and "layer4 has a map of 4×4" in str(caught.value)
    assert "count is 1 or more" in str(caught.value)
    assert {path.name for path in (painted.folder / "visuals").iterdir()} == {
        "confusion.png", "confusion.txt", "confusion.csv"}


def test_nothing_is_drawn_before_every_node_is_right(painted):
    nodes = [{"NAME": "misclassified"}, {"NAME": "cam", "method": "GradCam"}]
    with pytest.raises(ConfigError, match="Did you mean GradCAM"):
        save_all(painted, nodes)
    assert not (painted.folder / "visuals").exists()


def test_what_the_config_lists_is_drawn(tiny, run, capsys):
    listed = [{"NAME": "misclassified", "count": 3}, {"NAME": "dataset"}]
    config = load_config(tiny, {"VISUALIZERS": listed})
    assert [dict(node) for node in choose_nodes(Experiment(config), [], False)] == [{"NAME": "dataset"}]
    assert capsys.readouterr().out == "left out: misclassified, which needs one finished run\n"
    listed_run = Run(run.folder, {"VISUALIZERS": listed})
    assert [dict(node) for node in choose_nodes(listed_run, [], False)] == listed
    names = [node["NAME"] for node in choose_nodes(listed_run, [], True)]
    assert set(names) == set(VISUALIZERS.own) - NEEDS_MORE and names[:2] == [
        "misclassified", "dataset"]
    cam = {"NAME": "cam", "count": 2}
    assert choose_nodes(listed_run, [cam], False) == [cam]
    both = choose_nodes(listed_run, [cam], True)
    assert both[0] == cam and [node["NAME"] for node in both].count("cam") == 1
    assert len(both) == len(VISUALIZERS.own) - len(NEEDS_MORE)
    with pytest.raises(ConfigError, match="tiny lists no VISUALIZERS\n.*--misclassified 10"):
        choose_nodes(run, [], False)


def test_what_a_command_names_is_opened(run, painted, tiny, capsys):
    assert open_subject([], []).folder.name == max(run.folder.name, painted.folder.name)
    assert open_subject([str(run.folder)], ["DEVICE", "cpu"]).config.DEVICE == "cpu"
    assert open_subject([str(run.folder / "config.yaml")], []).folder == run.folder
    assert open_subject([str(run.folder.parent)], []).folder == run.folder  # the newest of tiny
    assert capsys.readouterr().out.splitlines()[-1] == f"run {run.folder}"
    both = open_subject([str(run.folder), str(painted.folder)], [])
    assert isinstance(both, Runs) and both.names == ["tiny", "painted"]
    config = open_subject([], [str(tiny), "SEED", "7"])
    assert isinstance(config, Experiment) and config.config.SEED == 7
    assert str(visuals_folder(config)) == "runs/tiny/visuals"
    assert str(visuals_folder(both)).endswith(
        f"compare/tiny_{run.folder.name}_painted_{painted.folder.name}")


@pytest.mark.parametrize("runs, words, problem", [
    (["x"], ["tiny.yaml"], "both a run and the config tiny.yaml are named"),
    ([], ["no.yaml"], "no config file no.yaml"), (["x"], [], "no run x"),
    ([], ["MODEL.NAME", "resnet34"], "MODEL.NAME cannot be changed in a run that was trained"),
    ([], ["OUTPUT_DIR", "elsewhere"], "no run with a checkpoint in elsewhere/")])
def test_what_is_not_there_is_refused(run, tiny, runs, words, problem):
    with pytest.raises((RunError, ConfigError)) as caught:
        open_subject(runs, words)
    assert problem in str(caught.value)


def test_all_leaves_out_what_must_be_told_more(run, capsys):

    @VISUALIZERS.register()
    def asks(run, word: str):
        return Figure()

    assert "asks" not in [node["NAME"] for node in choose_nodes(run, [], True)]
    assert "left out: asks, which needs word\n" in capsys.readouterr().out


def test_a_visualizer_that_returns_no_figure_is_told_so(run):

    @VISUALIZERS.register()
    def forgets(run):
        Figure()

    with pytest.raises(RunError, match=r"forgets returned NoneType.*\n.*Is a return missing\?"):
        save_all(run, [{"NAME": "forgets"}])


def test_a_folder_that_cannot_be_written_is_told(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Choose another folder with --out"):
        save_all(run, [{"NAME": "confusion"}], tmp_path / "file" / "x")
