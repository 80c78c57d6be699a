import csv
import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.perturbation_confidence import (
    PerturbationConfidenceMetric,
    RemoveMostRelevantFirst,
)
from pytorch_grad_cam.metrics.road import (
    ROADCombined,
    ROADLeastRelevantFirst,
    ROADMostRelevantFirst,
)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from test_cam_average import facts_of, noise, small_net
from test_drawing import check_no_overlap, png_of
from torch import nn

from cvkit.errors import ConfigError
from cvkit.models.feature_maps import frozen_copy
from cvkit.system.seeds import seed_random_numbers
from cvkit.visualizers.cam_faithfulness import cam_faithfulness, verdict
from cvkit.visualizers.cam_maps import cam_maps
from cvkit.visualizers.cam_measures import (
    BASELINE,
    PARTS,
    ROAD_PERCENTILES,
    Faithfulness,
    blurred_outside,
    correlation,
    is_clear,
    relevance,
)

# The library calls NumPy of torch's tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__")


def numbers(figure):
    """Return means by (measure, method, at)."""
    rows = list(csv.reader(io.StringIO(figure.csv)))
    assert rows[0] == ["measure", "method", "at", "mean", "standard_error"]
    return {tuple(row[:3]): float(row[3]) for row in rows[1:]}


def lines_of(figure, number):
    return {line.get_label(): line.get_ydata() for line in figure.axes[number].lines}


@pytest.fixture(scope="module")
def coloured():
    """A net of six classes, and images with a square in one of six colours that it tells apart."""
    pixels, labels = noise((48, 24, 24, 3)), np.arange(48) % 3
    for image, label, place in zip(pixels, labels, np.random.default_rng(0).integers(1, 14, 48)):
        image[place:place + 9, 14 - place:23 - place, label] = 255
    torch.manual_seed(0)
    model, facts = small_net(classes=3), None
    batch = facts_of(model, pixels, labels, "abc")[2].test.take(np.arange(48))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()
    facts = facts_of(model, pixels, labels, ["red", "green", "blue"])
    assert facts[0].accuracy > 0.9
    return facts


def test_curves_and_road_are_those_of_the_library(coloured):
    predictions, model, loaders = coloured
    figure = cam_faithfulness(*coloured, count=5, methods=["LayerCAM"], layer="second", seed=3)
    rows = np.sort(np.random.default_rng(3).permutation(48)[:5])
    images, labels = loaders.test.take(rows).images, predictions.predicted[rows]
    maps = cam_maps(model, images, [labels], ["second"], ["LayerCAM"])["second", "LayerCAM"][0]
    order, model = relevance(maps, (24, 24), 3), frozen_copy(model)
    targets = [ClassifierOutputSoftmaxTarget(label) for label in labels]

    def library(percentile, masks, imputer):
        return PerturbationConfidenceMetric(RemoveMostRelevantFirst(percentile, imputer))(
            images, masks, targets, model, return_diff=False).mean()

    found = numbers(figure)
    for part in PARTS[1:-1]:
        removed = library(100 - part, order, lambda image, mask: image * mask)
        assert found["deletion", "LayerCAM", f"{part}%"] == pytest.approx(removed, abs=1e-4)
        added = library(part, 1 - order, blurred_outside)
        assert found["insertion", "LayerCAM", f"{part}%"] == pytest.approx(added, abs=1e-4)
    # Both begin and end with the whole image, with none of it, and with the blurred one.
    with torch.no_grad():
        whole = model(images).softmax(1)[range(5), labels].mean().item()
        none = model(0 * images).softmax(1)[range(5), labels].mean().item()
    assert found["deletion", "LayerCAM", "0%"] == pytest.approx(whole, abs=1e-4)
    assert found["insertion", "LayerCAM", "100%"] == pytest.approx(whole, abs=1e-4)
    assert found["deletion", "LayerCAM", "100%"] == pytest.approx(none, abs=1e-4)
    seed_random_numbers(3, 0)
    road = ROADCombined(list(ROAD_PERCENTILES))(images, order, targets, model).mean()
    assert found["road", "LayerCAM", ""] == pytest.approx(road, abs=1e-4)
    # That is the definition: half the mean difference of what both orders leave of the class.
    halves = [(ROADLeastRelevantFirst(part)(images, order, targets, model)
               - ROADMostRelevantFirst(part)(images, order, targets, model)).mean() / 2
              for part in ROAD_PERCENTILES]
    assert road == pytest.approx(np.mean(halves), abs=0.02)  # it adds a little noise
    # What is drawn and what the table says is the same.
    for number, curve in enumerate(("deletion", "insertion")):
        drawn = lines_of(figure, number)["LayerCAM"]
        values = [found[curve, "LayerCAM", f"{part}%"] for part in PARTS]
        assert drawn == pytest.approx(100 * np.array(values), abs=1e-3)
        area = np.mean(np.add(values[1:], values[:-1]) / 2)
        assert found[f"{curve}_area", "LayerCAM", ""] == pytest.approx(area)
        assert f"{area:.3f}" in figure.table
    assert [bar.get_width() for bar in figure.axes[2].patches][:1] == pytest.approx([100 * road])


def test_maps_that_find_the_object_are_trusted_more_than_chance(coloured):
    figure = cam_faithfulness(*coloured, count=8, methods=["LayerCAM", "GradCAM"], layer="second")
    found = numbers(figure)
    for method in ("LayerCAM", "GradCAM"):
        assert found["road", method, ""] > found["road", BASELINE, ""] + 0.1
        assert found["deletion_area", method, ""] < found["deletion_area", BASELINE, ""]
    assert figure.caption.startswith("8 of 48 test images at random (")
    assert "12×12 pixels" in figure.caption


def test_pixels_are_ordered_by_the_map_and_equal_ones_at_random():
    maps = np.zeros((2, 5, 7), np.float32)
    maps[:, 2, 3] = 1.0
    order = relevance(maps, (50, 70), 0)
    assert order.shape == (2, 50, 70)
    for values in order:
        assert len(np.unique(values)) == 3500 and values.min() == 0 and values.max() == 1
        row, column = np.unravel_index(values.argmax(), values.shape)
        assert abs(row - 24.5) < 2 and abs(column - 34.5) < 2
        # What is 0 in the map is in no order of places.
        far = values[:10]
        assert abs(np.corrcoef(far.ravel(), np.arange(far.size))[0, 1]) < 0.2
        # So as much is removed as was asked for, even of a map that is 0 nearly everywhere.
        assert (values < np.percentile(values, 30)).mean() == pytest.approx(0.3, abs=1e-3)
    assert (relevance(maps, (50, 70), 0) == order).all() and (relevance(maps, (50, 70), 1) != order).any()


@pytest.mark.parametrize("shape", [(3, 20, 30), (1, 28, 28), (3, 5, 5)])
def test_outside_of_the_mask_an_image_is_blurred(shape):
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(shape[1:])
    mask[2:4] = 1
    blurred = blurred_outside(image, mask)
    assert blurred.shape == image.shape and torch.equal(blurred[:, 2:4], image[:, 2:4])
    assert blurred[:, 4:].std() < 0.7 * image[:, 4:].std()
    flat = torch.full(shape, 2.0)
    assert torch.allclose(blurred_outside(flat, mask), flat)


def test_what_does_not_look_at_the_head_keeps_its_map_until_layers_below_are_random(coloured):
    figure = cam_faithfulness(*coloured, count=8, methods=["EigenCAM", "GradCAM"], layer="second")
    kept = {method: lines_of(figure, 3)[f"_child{number}"] for number, method in enumerate(
        ("EigenCAM", "GradCAM", BASELINE))}
    assert [label.get_text() for label in figure.axes[3].get_xticklabels()] == [
        "none", "head", "2", "all 3"]
    assert kept["EigenCAM"][:2] == pytest.approx([1, 1]) and kept["EigenCAM"][2] < 0.999
    assert kept[BASELINE][:2] == pytest.approx([1, 1])  # it draws the same weights each time
    assert kept["GradCAM"][0] == 1 and kept["GradCAM"][1] < 0.99
    found = numbers(figure)
    assert found["rank_correlation", "EigenCAM", "1 random layers"] == pytest.approx(1)


def test_gradcam_of_a_network_with_random_weights_has_little_to_do_with_its_own(coloured):
    last = [numbers(cam_faithfulness(*coloured, count=4, methods=["GradCAM"], layer="second", seed=seed))[
        "rank_correlation", "GradCAM", "3 random layers"] for seed in range(3)]
    assert abs(np.mean(last)) < 0.5


class Bare(nn.Module):
    """A net whose maps cannot depend on its weights: the layer that is explained has none."""

    def __init__(self):
        super().__init__()
        self.shrink = nn.AvgPool2d(2)
        self.fc = nn.Linear(3 * 144, 3)

    def forward(self, images):
        return self.fc(self.shrink(images).flatten(1))


def test_a_map_that_shows_the_image_and_not_the_model_is_flagged(coloured):
    predictions, _, loaders = coloured
    figure = cam_faithfulness(predictions, Bare(), loaders, count=6, layer="shrink",
                              methods=["EigenCAM"])
    assert numbers(figure)["rank_correlation", "EigenCAM", "1 random layers"] == pytest.approx(1)
    assert ("Flagged, as the maps correlate by more than 0.5 with those of random weights: EigenCAM (1.00)."
            in figure.caption)
    assert figure.table.splitlines()[1].endswith("yes")
    assert "is to be trusted most" not in figure.caption


def test_rank_correlation_is_of_the_order_and_an_empty_map_has_none():
    first = np.random.default_rng(0).random((6, 6))
    assert correlation(first, first ** 3) == pytest.approx(1)
    assert correlation(first, -first) == pytest.approx(-1)
    assert abs(correlation(first, np.random.default_rng(1).random((6, 6)))) < 0.5
    assert correlation(first, np.zeros((6, 6))) == 0 and np.isnan(correlation(np.zeros((6, 6)), first))
    one = measured(0.1, [0.2, np.nan])
    one.kept[0, :5] = np.nan
    assert one.correlations()[0] == pytest.approx(0.2)
    assert np.isnan(one.correlations()[1]) and not one.is_flagged


def test_a_gain_is_clear_if_it_is_large_beside_its_spread():
    assert is_clear(np.array([0.1, 0.2, 0.15, 0.12])) and not is_clear(np.array([0.1, -0.2, 0.3, -0.1]))
    assert not is_clear(np.zeros(5)) and not is_clear(np.array([0.9]))  # one image says nothing


def measured(road, kept):
    """Return what was measured of 10 images whose ROAD is about this."""
    curve = np.full((len(PARTS), 10), 0.5)
    spread = np.linspace(-0.02, 0.02, 10)
    return Faithfulness(curve, curve, road + spread, np.array(kept)[:, None].repeat(10, 1))


def test_the_verdict_follows_from_the_numbers():
    found = {"A": measured(0.30, [0.9, 0.1]), "B": measured(0.05, [0.2, 0.2]),
             "C": measured(0.40, [1.0, 0.8]), BASELINE: measured(0.05, [1.0, 0.0])}
    words = " ".join(verdict(found))
    assert words == (
        "A is to be trusted most: ROAD finds 30.0 points of probability in what it marks, against 5.0 "
        "of RandomCAM, and its maps agree by 0.10 with those of random weights (rank correlation). Not "
        "clearly better than chance by ROAD (5.0 of RandomCAM): B (5.0). Flagged, as the maps correlate "
        "by more than 0.5 with those of random weights: C (0.80).")
    near = {**found, "D": replace(found["A"], road=found["A"].road[::-1] - 0.001)}
    assert "D is not clearly behind." in " ".join(verdict(near))
    assert "A is to be trusted most" in " ".join(verdict(near))
    # Better than a bad draw of chance is not good.
    assert not measured(-0.1, [0.0]).is_above(measured(-0.4, [0.0]).road)
    nothing = {name: found[name] for name in ("B", "C", BASELINE)}
    assert verdict(nothing)[0].startswith("By 10 images no method is to be trusted")


def test_a_method_that_finds_next_to_nothing_is_not_trusted_however_clear_that_is():
    found = {"A": measured(0.0004, [0.0]), BASELINE: measured(-0.0002, [0.0])}
    found = {name: replace(one, road=one.road.mean() + np.linspace(-1e-6, 1e-6, 10)) for name, one in found.items()}
    assert verdict(found)[0].startswith("By 10 images no method is to be trusted")
    assert verdict(found)[1].startswith("Not clearly better than chance by ROAD")


def test_the_model_and_the_random_numbers_are_left_as_they_were(coloured):
    _, model, _ = coloured
    model.train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    np.random.seed(5)
    first = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    figures = [cam_faithfulness(*coloured, count=2, layer="second", methods=["GradCAM"]) for _ in range(2)]
    assert (torch.rand(1), np.random.rand()) == first
    assert model.training and all(value.requires_grad for value in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert figures[0].csv == figures[1].csv
    model.eval()


def test_batch_norms_that_are_random_are_measured_and_one_image_is_enough(painted):
    figure = painted.visualize("cam_faithfulness", count=1, methods=["GradCAM", "FEM"])
    found = numbers(figure)
    last = [value for (measure, method, _), value in found.items()
            if (measure, method) == ("rank_correlation", "FEM")]
    assert len(last) == 5 and all(-1 <= value <= 1 for value in last)
    assert figure.caption.startswith("1 of 36 test images at random (")
    assert "By 1 image no method is to be trusted" in figure.caption


@pytest.mark.parametrize("shape", [(28, 28, 1), (60, 40, 3)])
def test_grey_images_and_such_as_are_no_squares(shape):
    facts = facts_of(small_net(shape[-1]), noise((6, *shape)), np.arange(6) % 2, ["a", "b"])
    figure = cam_faithfulness(*facts, count=4, layer="second", methods=["GradCAM"])
    assert all(np.isfinite(value) or "rank" in key[0] for key, value in numbers(figure).items())


def test_a_model_that_says_the_same_of_every_image_is_to_be_trusted_by_no_map():
    model = small_net()
    nn.init.zeros_(model.fc.weight)
    facts = facts_of(model, noise((6, 24, 24, 3)), np.arange(6) % 2, ["a", "b"])
    figure = cam_faithfulness(*facts, count=6, layer="second", methods=["GradCAM", "EigenCAM"])
    assert "By 6 images no method is to be trusted" in figure.caption
    assert "GradCAM (0.0) and EigenCAM (0.0)" in figure.caption
    assert "Empty, with their pixels in a random order, are maps of GradCAM (6 of 6)." in figure.caption
    assert figure.table.splitlines()[1].split()[-2] == "–"  # its maps were empty from the start


def test_labels_lie_beside_each_other_with_every_method_there_is(painted):
    methods = ["GradCAM", "GradCAMPlusPlus", "GradCAMElementWise", "XGradCAM", "HiResCAM", "LayerCAM",
               "EigenCAM", "EigenGradCAM", "KPCA_CAM", "FEM", "RandomCAM"]
    figure = painted.visualize("cam_faithfulness", count=1, methods=methods)
    png_of(figure)  # this lays the legend out
    legend, = figure.legends
    check_no_overlap([*figure.texts, *legend.get_texts(), *(text for axes in figure.axes for text in (
        axes.get_xticklabels() + axes.get_yticklabels() + [axes._left_title, axes.xaxis.label, axes.yaxis.label]))])
    assert legend.get_window_extent().x1 < figure.bbox.width
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == len(methods)  # told apart without their colours' help


@pytest.mark.parametrize("scale", [1, 0.1, 0.01])
def test_labels_lie_beside_each_other_where_road_finds_little(scale):
    seed_random_numbers(0)
    model = small_net()
    with torch.no_grad():
        model.fc.weight *= scale
    figure = cam_faithfulness(*facts_of(model, noise((6, 24, 24, 3)), np.arange(6) % 2, ["a", "b"]), count=6,
                              layer="second")
    png_of(figure)
    axes, = (axes for axes in figure.axes if axes.get_title("left").startswith("ROAD"))
    low, high = axes.get_xlim()
    ticks = [text for place, text in zip(axes.get_xticks(), axes.get_xticklabels()) if low <= place <= high]
    assert len(ticks) >= 3
    check_no_overlap(ticks)


def test_what_cannot_be_is_refused(painted):
    with pytest.raises(ConfigError, match="count is 1 or more"):
        painted.visualize("cam_faithfulness", count=0)
    with pytest.raises(ConfigError, match="Did you mean GradCAM"):
        painted.visualize("cam_faithfulness", methods=["GradCam"])
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))
    loaders, predictions = painted.loaders, painted.predictions
    with pytest.raises(ConfigError, match="there is nothing to draw"):
        cam_faithfulness(predictions, flat, SimpleNamespace(test=loaders.test))
