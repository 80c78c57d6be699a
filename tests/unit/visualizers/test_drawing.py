import csv
import io
import os
import warnings
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from conftest import paint
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from PIL import Image

from cvkit.config import load_config
from cvkit.data import ImageFiles, ImageSet
from cvkit.errors import RunError
from cvkit.runs.experiment import Experiment
from cvkit.visualizers import drawing
from cvkit.visualizers.draw import save_all
from cvkit.visualizers.drawing import (
    Picture,
    arrow,
    as_csv,
    drawn_names,
    grids,
    image_names,
    message,
    percent,
    positions_of,
    shorten,
    show_image,
    styled,
    text_width,
    told_names,
    wrap,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def png_of(figure):
    """Return the pixels of the finished PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


def shown_pixels(figure, axes, height, width):
    """Return the colour drawn at the middle of each pixel of an image, from the finished PNG.

    Args:
        figure: or, where several of its images are looked at, its `png_of`.
    """
    drawn = figure if isinstance(figure, np.ndarray) else png_of(figure)
    rows, columns = np.mgrid[:height, :width]
    places = axes.transData.transform(np.stack([columns.ravel(), rows.ravel()], 1))
    x, y = places[:, 0].astype(int), drawn.shape[0] - 1 - places[:, 1].astype(int)
    return drawn[y, x].reshape(height, width, 3)


def test_pixels_are_drawn_as_they_are():
    figure, (axes,) = grids(1, 2, 3, "headline", "caption")
    show_image(axes[1, 2], IMAGE)
    assert (shown_pixels(figure, axes[1, 2], 32, 32) == IMAGE).all()


def test_grey_images_keep_their_range():
    figure, (axes,) = grids(1, 1, 1, "", "")
    grey = np.full((8, 8, 1), 100, np.uint8)
    show_image(axes[0, 0], grey)
    assert (shown_pixels(figure, axes[0, 0], 8, 8) == 100).all()  # not stretched to black or white


def test_places_do_not_overlap_and_stay_within_the_figure():
    figure, blocks = grids(5, 3, 4, "headline", "a caption " * 30, side_by_side=2, above=0.3,
                           over=0.4, left=0.4, footer=0.4)
    boxes = [axes.get_position() for block in blocks for axes in block.flat]
    assert len(boxes) == 60 == len(figure.axes)
    for number, box in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1
        assert not any(box.overlaps(other) for other in boxes[number + 1:])
    figure.canvas.draw()
    top = max(box.y1 for box in boxes) * figure.bbox.height
    words = [text.get_window_extent() for text in figure.texts]
    assert all(extent.y0 > top and extent.x1 < figure.bbox.width for extent in words)


def test_a_picture_shows_itself_once_in_a_notebook_and_leaves_nothing_open():
    figure = message("nothing to see")
    assert figure._repr_png_().startswith(b"\x89PNG") and figure.caption == "nothing to see"
    assert pyplot.get_fignums() == []


def test_the_style_is_ours_inside_and_the_user_s_outside():
    @styled
    def draw():
        figure, (axes,) = grids(1, 1, 1, "headline", "caption")
        show_image(axes[0, 0], IMAGE, "title")
        return figure

    plain = draw()._repr_png_()
    theirs = {"axes.facecolor": "black", "text.color": "white", "savefig.facecolor": "black",
              "image.origin": "lower", "axes.grid": False, "font.size": 30}
    with matplotlib.rc_context(theirs):
        assert draw()._repr_png_() == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_letters_that_no_font_has_are_told_once_for_all_pictures(monkeypatch, capsys, recwarn, tiny):
    monkeypatch.setattr(drawing, "_told", set())
    cuneiform = "\U00012000 \U00012001 \U00012002"

    @styled
    def measured():
        figure = message(cuneiform)
        figure.texts[0].get_window_extent()
        warnings.warn("something else", stacklevel=1)
        return figure

    def plain():  # as a visualizer of one's own may return
        figure = matplotlib.figure.Figure()
        figure.text(0, 0, cuneiform)
        return figure

    class Drawable(Experiment):
        def draw(self, node):
            return [measured(), message(cuneiform), plain()]

    save_all(Drawable(load_config(tiny)), [{"NAME": "confusion"}], Path("here"))
    out, err = capsys.readouterr()
    assert len(list(Path("here").glob("*.png"))) == 3 and not err
    assert out.splitlines()[0] == ("note       some letters are drawn as boxes: no installed font has them "
                                   "(Noto Sans CJK has most)")
    assert out.count("boxes") == 1 and [str(item.message) for item in recwarn] == ["something else"]


def test_a_class_named_like_mathematics_is_drawn_as_it_is(tmp_path):
    @styled
    def draw():
        figure, (axes,) = grids(1, 1, 1, "$5", "costs $x_$")
        show_image(axes[0, 0], IMAGE, r"$\frac → a$")
        return figure

    draw().savefig(tmp_path / "a.png")  # matplotlib would refuse it as a formula
    with Image.open(tmp_path / "a.png") as image:
        assert image.width >= 600


@pytest.mark.parametrize("part, words", [(1.0, "100 %"), (0.999, "> 99 %"), (0.994, "99 %"),
                                         (0.5, "50 %"), (0.004, "< 1 %"), (0.0, "0 %")])
def test_percent_never_rounds_to_certainty(part, words):
    assert percent(part) == words


LONG = "long-haired dachshund of the neighbours, photographed in the garden, 13"


@pytest.mark.parametrize("name", ["W" * 60, "i" * 99, LONG, "長毛の犬" * 15])
def test_names_are_cut_to_the_inches_they_have_and_keep_their_ends(name):
    assert arrow("cat", "dog") == "cat → dog"
    for inches in (0.4, 1.0, 2.0):
        short = shorten(name, inches)
        start, end = short.split("…")
        assert name.startswith(start) and name.endswith(end) and len(start) > len(end)
        assert inches - 0.25 < text_width(short) <= inches  # no letter more would fit
        assert all(text_width(line) <= inches for line in arrow(name, name, inches).split("\n"))
    assert shorten(name, 20) == name


def test_captions_are_wrapped_by_their_width():
    lines = wrap(f"of class {'長' * 90} and {'W' * 20} {'i' * 40}", 3.0)
    assert len(lines) > 2 and all(text_width(line) <= 3.0 for line in lines)
    assert wrap("a b", 3.0) == ["a b"] and "…" in lines[1]
    text = "Hardest is contrast (12.0 %), easiest jpeg (95.2 %); the lowest, 9.7 %, is that of brighter."
    for inches in np.arange(0.8, 6, 0.05):
        lines = wrap(text, inches)
        assert " ".join(lines) == text and not any(line.startswith("%") for line in lines)


def test_a_name_that_no_font_can_draw_is_a_number_and_the_txt_has_it():
    names = ["cat", "\U00012000\U00012001", "a\nb"]
    assert drawn_names(names) == ["cat", "class 1", "a\\nb"]
    note, lines = told_names(names)
    assert "numbers here" in note and lines == "\nclass 1: \U00012000\U00012001"
    assert told_names(["cat", "Ñandú", "a\nb"]) == ("", "")


def test_predictions_are_matched_with_the_data_by_place_not_by_order(run):
    predictions = run.predictions
    split = run.data.test.take(np.arange(150)[::-1])  # the same images, the other way round
    positions = positions_of(split, predictions, [0, 5])
    assert split.index[positions].tolist() == predictions.index[[0, 5]].tolist()


def test_predictions_of_other_images_are_refused(run):
    split = run.data.test
    other = ImageSet(split.images, (split.labels + 1) % 10, split.index)
    with pytest.raises(RunError, match=r"other test images.*\n.*tools/evaluate\.py"):
        positions_of(other, run.predictions, [0])
    with pytest.raises(RunError, match="other test images"):
        positions_of(split.take(np.arange(10)), run.predictions, [0])
    changed = split.images.copy()
    changed[split.index[7], 3, 3] ^= 255
    with pytest.raises(RunError, match="other test images"):  # the labels are the same
        positions_of(ImageSet(changed, split.labels, split.index), run.predictions, [0])
    positions_of(split, replace(run.predictions, images=""), [0])  # written before this was noted


def test_every_picture_is_a_figure_of_its_own():
    assert isinstance(Picture(2, 1), matplotlib.figure.Figure) and Picture(2, 1).table == ""


@pytest.mark.parametrize("size, place", [(120, 0.4), (32, 0.15)])
def test_a_thumbnail_of_a_fine_pattern_is_grey(size, place):
    board = np.repeat((np.indices((size, size)).sum(0) % 2 * 255)[..., None], 3, axis=2).astype(np.uint8)
    figure = Picture(4, 4)
    axes = figure.panel(1, 1, place, place)
    axes.axis("off")
    show_image(axes, board)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    side = int(place * 150)
    drawn = np.asarray(Image.open(file).convert("L"))[152:148 + side, 152:148 + side].astype(int)
    assert np.abs(drawn - 127.5).max() < 40  # was 0 or 255


def corners(text):
    """Return the corners of a text as it is drawn, slanted or not, in dots."""
    angle = text.get_rotation()
    is_slanted = angle % 90 != 0
    if is_slanted:
        assert text.get_rotation_mode() == "anchor"
        text.set_rotation(0)
    box = text.get_window_extent()
    text.set_rotation(angle)
    points = np.array([[box.x0, box.y0], [box.x1, box.y0], [box.x1, box.y1], [box.x0, box.y1]])
    if not is_slanted:
        return points
    anchor = text.get_transform().transform(text.get_unitless_position())
    sine, cosine = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    return (points - anchor) @ np.array([[cosine, sine], [-sine, cosine]]) + anchor


def check_no_overlap(texts):
    """Assert that no two of these texts are drawn over each other, whatever their angle is."""
    texts = [text for text in texts if text.get_text()]
    shapes = np.stack([corners(text) for text in texts])
    low, high = shapes.min(1), shapes.max(1)
    near = ((low[:, None] < high) & (high[:, None] > low)).all(2)  # their frames overlap
    for first, second in np.argwhere(np.triu(near, 1)):
        pair = shapes[first], shapes[second]
        sides = np.concatenate([np.roll(shape, -1, 0) - shape for shape in pair])
        along = [shape @ np.stack([-sides[:, 1], sides[:, 0]]) for shape in pair]
        # Two convex shapes are apart if some side of one has them on its two sides.
        apart = (along[0].max(0) <= along[1].min(0)) | (along[1].max(0) <= along[0].min(0))
        assert apart.any(), f"{texts[first].get_text()!r} over {texts[second].get_text()!r}"


# Of all who see fewer colours, those without one kind of cone: Machado, Oliveira and Fernandes, A
# Physiologically-based Model for Simulation of Color Vision Deficiency, 2009, at severity 1.
CONES = {
    "all": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]])}


def seen(colour, cones):
    """Return the CIELAB coordinates of a colour as someone sees it."""
    values = np.array(to_rgb(colour))
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                    [0.0193339, 0.1191920, 0.9503041]]) @ np.clip(CONES[cones] @ linear, 0, 1)
    parts = xyz / (0.95047, 1, 1.08883)
    x, y, z = np.where(parts > 216 / 24389, np.cbrt(parts), (24389 / 27 * parts + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_simulation_is_of_colours():
    assert np.abs(seen("white", "all") - (100, 0, 0)).max() < 0.1
    assert np.abs(seen("red", "all") - (53.24, 80.09, 67.20)).max() < 0.1
    assert np.linalg.norm(seen("red", "deuteranopia") - seen("#807000", "deuteranopia")) < 30


@pytest.mark.parametrize("cones", CONES)
@pytest.mark.parametrize("colours, least", [(drawing.COLOURS, 17.5), ((drawing.RIGHT, drawing.WRONG), 28.5)])
def test_colours_are_told_apart_by_the_colour_blind(cones, colours, least):
    """Of two that lie side by side a difference of 2.3 is just seen."""
    distances = [np.linalg.norm(seen(one, cones) - seen(other, cones)) for one, other in combinations(colours, 2)]
    assert min(distances) >= least


def test_a_table_for_a_spreadsheet_holds_no_formula_and_nothing_for_what_is_not_known():
    text = as_csv(["=a", "b"], [["=cmd|calc!A1", float("nan")], ['x,"y"\n', -0.5], ["z", 7]])
    assert list(csv.reader(io.StringIO(text))) == [
        ["'=a", "b"], ["'=cmd|calc!A1", ""], ['x,"y"\n', "-0.5"], ["z", "7"]]


def test_names_of_images_tell_nothing_of_the_machine(tmp_path, monkeypatch):
    def names(*paths):
        return image_names(ImageSet.of(ImageFiles(list(paths)), [0] * len(paths)), range(len(paths)))

    assert names("/data/set/cat/1.png", "/data/set/dog/2.png") == ["cat/1.png", "dog/2.png"]
    assert names("/data/cat/1.png", "/data/cat/1.png") == ["1.png", "1.png"]
    assert names("/home/me/a/1.png", "/mnt/b/2.png") == ["1.png", "2.png"]
    monkeypatch.chdir(tmp_path)
    assert names("x/1.png", str(tmp_path / "x" / "y" / "2.png")) == ["1.png", "y/2.png"]


def test_files_on_two_drives_are_named_alone_and_without_a_home_as_with_one(tmp_path, monkeypatch):
    paint(tmp_path / "painted", "train", 1, np.random.default_rng(0))
    split = ImageSet.of(ImageFiles(sorted(map(str, tmp_path.rglob("*.png")))), [0, 1, 2])
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: 1 / 0)
    assert image_names(split, [0, 2]) == ["blue/000.png", "red/000.png"]

    def commonpath(paths):
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr(os.path, "commonpath", commonpath)
    assert image_names(split, [0, 2]) == ["000.png", "000.png"]
