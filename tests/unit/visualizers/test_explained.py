import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from cvkit.errors import ConfigError, DataError, RunError
from cvkit.evaluation.predictor import Predictor
from cvkit.runs.checkpoint import Checkpoint
from cvkit.visualizers.cam import overlay, scaled_together
from cvkit.visualizers.cam_maps import cam_maps
from cvkit.visualizers.explained import explained


@pytest.fixture
def image(painted):
    return sorted(Path(painted.config.DATA.DATASET.root, "test", "red").iterdir())[0]


def shown_in(figure):
    """The images of a figure, without the scale of the colours."""
    return [axes.images[0].get_array() for axes in figure.axes if axes.images]


def test_maps_of_classes_share_one_scale(painted, image):
    predictor = Predictor(painted)
    figure = explained(predictor, image, ["red", "blue"], layer="layer2")
    received = predictor.received([image])
    maps = cam_maps(predictor.members[0].model, received, [np.array([2]), np.array([0])], ["layer2"],
                    ["GradCAM"])["layer2", "GradCAM"][:, 0]
    pixels = predictor.members[0].normaliser.denormalise(received)[0]
    first, *others = shown_in(figure)
    assert np.array_equal(first, pixels)
    for values, heat, drawn in zip(maps, scaled_together(maps, (32, 32)), others, strict=True):
        if values.max() > 0:
            assert np.allclose(drawn, overlay(pixels, heat), atol=1e-6)
    titles = [axes.get_title() for axes in figure.axes]
    found = predictor(image)
    assert titles[0].startswith(found.label) and titles[1].startswith("for red") and titles[2].startswith("for blue")
    assert "layer2 (16×16 pixels)" in figure.caption


def test_long_names_of_classes_do_not_overlap(painted, image, tmp_path):
    checkpoint = Checkpoint.load(painted.checkpoints / "last.pt")
    checkpoint.classes = [f"{name} with a name that is longer than its picture is wide" for name in "abc"]
    checkpoint.save(tmp_path / "long.pt")
    figure = explained(Predictor(tmp_path / "long.pt"), image, layer="layer2")
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [axes.title.get_window_extent(renderer) for axes in figure.axes if axes.get_title()]
    assert len(boxes) == 3 and all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_by_default_the_two_most_probable_classes_are_explained(painted, image):
    predictor = Predictor(painted)
    titles = [axes.get_title().split("\n")[0] for axes in explained(predictor, image, layer="layer1").axes]
    assert titles[1:3] == [f"for {name}" for name, _ in predictor(image).top(2)]


def test_what_cannot_be_explained_is_refused(painted, image):
    predictor = Predictor(painted)
    with pytest.raises(ConfigError, match="no class rd\n  Did you mean red"):
        explained(predictor, image, ["rd"])
    with pytest.raises(ConfigError, match="has a map of 4×4 pixels"):
        explained(predictor, image, layer="layer4")
    with pytest.raises(DataError, match="is gone"):
        explained(predictor, "gone.png")
    with pytest.raises(RunError, match="one model"):
        explained(Predictor([painted, painted]), image)
