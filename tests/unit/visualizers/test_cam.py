from dataclasses import replace

import cv2
import matplotlib
import numpy as np
import pytest
from test_drawing import shown_pixels
from test_misclassified import ANY_LETTER, check_titles, errors_of, shown

from cvkit.errors import ConfigError
from cvkit.visualizers.cam import (
    cam,
    cam_matrix,
    is_empty,
    overlay,
    scaled_alone,
    scaled_together,
)
from cvkit.visualizers.cam_maps import cam_maps


def test_the_cam_is_drawn_of_the_very_images_in_the_gallery(painted):
    for arguments in ({"count": 6}, {"count": 4, "order": "random", "seed": 3},
                      {"count": 3, "order": "index"}):
        gallery = shown(painted.visualize("misclassified", **arguments))
        tiles = shown(painted.visualize("cam", **arguments))[:3 * arguments["count"]]
        assert len(gallery) == arguments["count"]
        for number, image in enumerate(gallery):
            assert np.array_equal(tiles[3 * number], image)


def test_both_maps_of_an_image_are_on_one_scale_and_are_of_the_classes_named(painted):
    predictions = painted.predictions
    rows = errors_of(predictions)[:4]
    figure = painted.visualize("cam", count=4, order="index", method="LayerCAM")
    axes = [axis for axis in figure.axes if axis.images][:12]
    images = painted.loaders.test.take(rows).images
    targets = [predictions.predicted[rows], predictions.true[rows]]
    maps = cam_maps(painted.model, images, targets, ["layer3"], ["LayerCAM"])["layer3", "LayerCAM"]
    for number, row in enumerate(rows):
        pixels = painted.data.test.images[predictions.index[row]]
        for place, label in enumerate((predictions.predicted[row], predictions.true[row])):
            axis = axes[3 * number + 1 + place]
            assert axis.get_title().startswith(f"for {predictions.classes[label]}\n")
            heat = cv2.resize(maps[place, number], (32, 32))
            highest = max(cv2.resize(values, (32, 32)).max() for values in maps[:, number])
            if not is_empty(maps[place, number]):
                expected = overlay(pixels, heat / highest)
                assert np.allclose(axis.images[0].get_array(), expected, atol=0.02)  # 256 colours
    assert "layer3 (8×8 pixels), the deepest block of 5×5 or more" in figure.caption


def test_the_overlay_is_right_side_up_and_hot_where_the_map_is_high(painted, monkeypatch):
    """A heat map that is inverted, mirrored or turned would show here, down to the pixels drawn."""
    high = np.zeros((8, 8), np.float32)
    high[1, 6] = 1.0  # upper right
    monkeypatch.setattr("cvkit.visualizers.cam.cam_maps", lambda *args: {
        ("layer3", "GradCAM"): np.broadcast_to(high, (2, 2, 8, 8))})
    figure = painted.visualize("cam", count=2)
    axis = next(axis for axis in figure.axes if axis.get_title().startswith("for"))
    drawn = shown_pixels(figure, axis, 32, 32).astype(int)
    warmth = drawn[..., 0] - drawn[..., 2]
    row, column = np.unravel_index(warmth.argmax(), warmth.shape)
    assert 4 <= row <= 8 and 23 <= column <= 29
    assert warmth[5, 26] > 60 > warmth[26, 5]


def test_the_colours_run_from_cold_to_hot():
    grey = np.full((4, 4, 1), 128, np.uint8)
    colours = overlay(grey, np.arange(16, dtype=np.float32).reshape(4, 4) / 15)
    assert colours.shape == (4, 4, 3) and 0 <= colours.min() and colours.max() <= 1
    warmth = colours[..., 0] - colours[..., 2]
    assert warmth[3, 2] > warmth[1, 3] > warmth[0, 1] and warmth[3, 2] > 0.2 > 0 > warmth[0, 1]


@pytest.mark.parametrize("name", ["cam", "cam_matrix"])
@pytest.mark.parametrize("colormap", ["turbo", "inferno", "cividis"])
def test_the_heat_has_the_colours_that_are_named(painted, monkeypatch, name, colormap):
    heat = np.zeros((8, 8), np.float32)
    heat[:, 4:] = 1.0
    monkeypatch.setattr("cvkit.visualizers.cam.cam_maps", lambda *args: {
        ("layer3", "GradCAM"): np.broadcast_to(heat, (2, 1, 8, 8))})
    layers = {"layers": ["layer3"], "methods": ["GradCAM"]} if name == "cam_matrix" else {}
    chosen = {} if colormap == "turbo" else {"colormap": colormap}  # the default
    figure = painted.visualize(name, count=1, **layers, **chosen)
    images = [axis.images[0] for axis in figure.axes if axis.images]
    pixels = painted.data.test.images[painted.predictions.index[select_first(painted)]] / 255
    drawn = next(image.axes for image in images
                 if np.ndim(image.get_array()) == 3 and image.get_array().dtype != np.uint8)
    for column, value in ((4, 0.0), (28, 1.0)):
        expected = 0.5 * pixels[16, column] + 0.5 * np.array(matplotlib.colormaps[colormap](value)[:3])
        assert np.abs(shown_pixels(figure, drawn, 32, 32)[16, column] / 255 - expected).max() < 0.02
    scale = next(axis for axis in figure.axes if not axis.images)
    assert scale.collections[-1].get_cmap().name == colormap


def test_a_weak_map_stays_weak_beside_a_strong_one():
    maps = np.zeros((2, 8, 8), np.float32)
    maps[0, 2, 2], maps[1, 5, 5] = 4.0, 1.0
    together = scaled_together(maps, (32, 32))
    assert together.shape == (2, 32, 32) and together[0].max() == 1 == 4 * together[1].max()
    assert scaled_alone(maps[1], (32, 32)).max() == pytest.approx(1, abs=1e-6)
    assert (scaled_together(np.zeros((2, 8, 8)), (32, 32)) == 0).all()


def test_an_empty_map_is_marked_and_not_a_flat_colour(painted, monkeypatch):
    maps = np.zeros((2, 2, 8, 8), np.float32)
    maps[1, 0, 4, 4] = 1.0
    monkeypatch.setattr("cvkit.visualizers.cam.cam_maps", lambda *args: {
        ("layer3", "GradCAM"): maps})
    figure = painted.visualize("cam", count=2)
    marks = [[text.get_text() for text in axis.texts] for axis in figure.axes if axis.images][:6]
    assert marks == [[], ["empty"], [], [], ["empty"], ["empty"]]
    words = "Empty: nothing at that layer speaks for the class."
    assert words in figure.caption
    maps[:] = np.arange(64).reshape(8, 8)
    assert words not in painted.visualize("cam", count=2).caption
    assert is_empty(np.zeros((5, 5))) and is_empty(np.full((5, 5), 0.3))


def test_the_matrix_has_a_row_for_each_layer_and_a_column_for_each_view(painted):
    figure = painted.visualize("cam_matrix", count=2, methods=["GradCAM", "HiResCAM"])
    axes = [axis for axis in figure.axes if axis.images]
    assert len(axes) == 2 * (3 * 4 + 1)  # an image stands once, not in every row
    row = select_first(painted)
    pixels = painted.data.test.images[painted.predictions.index[row]]
    batch = painted.loaders.test.take([row])
    label = painted.predictions.predicted[[row]]
    maps = cam_maps(painted.model, batch.images, [label], ["layer1", "layer2", "layer3"],
                    ["GradCAM", "HiResCAM"])
    image = axes[24]  # after the maps
    assert np.array_equal(image.images[0].get_array(), pixels)
    place = image.get_position()
    assert place.x1 < axes[0].get_position().x0 and place.y1 == pytest.approx(
        axes[0].get_position().y1)  # a column of its own, level with the first row
    for line, layer in enumerate(("layer1", "layer2", "layer3")):
        views = axes[4 * line:4 * line + 4]
        assert any(text.get_text().startswith(f"{layer}\n") for text in views[0].texts)
        for place, method in enumerate(("GradCAM", "HiResCAM")):
            values = maps[layer, method][0, 0]
            heat = scaled_alone(values, (32, 32))
            if not is_empty(values):
                drawn, mask = (views[column].images[0].get_array() for column in (place, 2 + place))
                assert np.allclose(drawn, overlay(pixels, heat), atol=0.02)  # 256 colours
                assert np.allclose(mask, heat, atol=1e-5)
    headings = [text.get_text() for axis in [image, *axes[:4]] for text in axis.texts]
    assert {"image", "GradCAM heat", "HiResCAM heat", "GradCAM mask", "HiResCAM mask"} <= set(
        headings)


def select_first(run):
    wrong = errors_of(run.predictions)
    return int(wrong[np.argsort(-run.predictions.probabilities[wrong].max(1), kind="stable")[0]])


@pytest.mark.parametrize("methods", [["GradCAM"], ["GradCAM", "GradCAMPlusPlus"]])
def test_headings_of_the_matrix_keep_to_their_block(painted, methods):
    names = ["species_01_of_the_genus_alpha", "species_02_of_the_genus_alpha", "red"]
    figure = cam_matrix(replace(painted.predictions, classes=names), painted.model, painted.loaders,
                        count=2, methods=methods)
    columns = 2 * len(methods)
    axes = [axis for axis in figure.axes if axis.images]
    for image, last in ((axes[-2], axes[columns - 1]), (axes[-1], axes[4 * columns - 1])):
        heading = next(text for text in image.texts if " → " in text.get_text())
        assert heading.get_window_extent().x1 <= last.get_window_extent().x1 + 1


NAMES = ["W" * 60, "長毛の犬" * 15, "n02123045 tabby, tabby cat, photographed in the garden at night"]


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("arguments", [{"count": 1}, {"count": 5}, {
    "count": 2, "layer": ["layer2", "layer3"]}])
def test_long_names_over_maps_do_not_run_into_each_other(painted, monkeypatch, arguments):
    monkeypatch.setattr("cvkit.visualizers.drawing._letters", lambda: ANY_LETTER)
    figure = cam(replace(painted.predictions, classes=NAMES), painted.model, painted.loaders,
                 **arguments)
    check_titles(figure)
    row = painted.predictions.true[select_first(painted)]
    assert NAMES[row] in figure.table.splitlines()[0]  # whole


def test_the_matrix_can_have_a_page_for_each_image(painted):
    pages = painted.visualize("cam_matrix", count=3, pages="each", layers=["layer2", "layer3"])
    assert len(pages) == 3 and all(len(page.axes) == 2 * 4 + 1 + 1 for page in pages)  # the image, a scale


def test_the_maps_too_and_each_page_is_that_image_of_the_one_page(painted):
    whole, pages = painted.visualize("cam", count=3), painted.visualize("cam", count=3, pages="each")
    assert len(pages) == 3
    for number, page in enumerate(pages):
        assert page.caption.startswith(f"Image {number + 1}: GradCAM at layer3")
        for axes, alone in zip(whole.axes[3 * number:3 * number + 3], page.axes[:3], strict=True):
            assert np.array_equal(axes.images[0].get_array(), alone.images[0].get_array())
            assert axes.get_title() == alone.get_title()


@pytest.mark.parametrize("name, arguments, problem", [
    ("cam", {"method": "GradCam"}, "Did you mean GradCAM?"),
    ("cam_matrix", {"methods": ["GradCAM", "LayerCam"]}, "Did you mean LayerCAM?"),
    ("cam", {"colormap": "infreno"}, "Did you mean inferno?"),
    ("cam_matrix", {"colormap": "Inferno"}, "Did you mean inferno?"),
    ("cam", {"layer": "layer4"}, "4×4 pixels"), ("cam", {"count": 0}, "count is 1 or more")])
def test_what_cannot_be_is_refused(painted, name, arguments, problem):
    with pytest.raises(ConfigError) as caught:
        painted.visualize(name, **arguments)
    assert problem in str(caught.value)
