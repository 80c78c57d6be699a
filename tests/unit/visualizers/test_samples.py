from dataclasses import replace

import numpy as np
import pytest
from helpers import before_each_step
from test_drawing import shown_pixels
from test_misclassified import check_titles, shown, titles

from cvkit.config import load_config
from cvkit.errors import ConfigError
from cvkit.runs.experiment import Experiment
from cvkit.session import train


def test_samples_are_what_the_model_receives_first(painted, monkeypatch):
    """The inverse of the normalisation, channel by channel: a rotated one would show."""
    seen = []
    before_each_step(monkeypatch, lambda trainer, batch: seen.append(batch) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(painted.config)
    batch = seen[0]
    figure = painted.visualize("samples", count=20)
    checkpoint = painted.checkpoint()
    pixels = batch.images.permute(0, 2, 3, 1).numpy() * checkpoint.std + checkpoint.mean
    pixels = 255 * pixels
    assert len(shown(figure)) == 20
    for image, expected in zip(shown(figure), pixels, strict=False):
        assert image.dtype == np.uint8 and np.abs(image - expected).max() < 0.51
    assert titles(figure) == [painted.data.classes[label] for label in batch.labels[:20]]
    axes = [axis for axis in figure.axes if axis.images]
    assert (shown_pixels(figure, axes[3], 32, 32) == shown(figure)[3]).all()


@pytest.mark.parametrize("transforms", [[], [{"NAME": "MixUp"}]])
def test_long_names_do_not_run_into_each_other(painted, transforms):
    names = ("W" * 60, "n02123045 tabby, tabby cat, photographed in the garden at night", "i" * 99)
    subject = Experiment(load_config(painted.folder / "config.yaml",
                                     {"DATA.TRAIN_TRANSFORMS": transforms}))
    subject.__dict__["data"] = replace(subject.data, classes=names)
    figure = subject.visualize("samples", count=12)
    assert "…" in titles(figure)[0]
    check_titles(figure)
    assert any(name in figure.table for name in names)  # whole


def test_cutout_is_on_every_image_and_has_the_colour_of_the_data_s_mean(painted):
    """Neither black, as with a mean in 0–1 for pixels in 0–255, nor on half of the images."""
    mean = [round(255 * value) for value in painted.data.mean]
    for image in shown(painted.visualize("samples", count=30)):
        assert (image == mean).all(2).sum() >= 8 * 8


def test_augmentations_begin_with_the_original(painted):
    figure = painted.visualize("augmentations", count=9, image=5)
    split = painted.data.train
    images = shown(figure)
    assert len(images) == 10 and titles(figure) == ["original", *map(str, range(1, 10))]
    assert np.array_equal(images[0], split.image(5))
    assert not any(np.array_equal(images[0], image) for image in images[1:])
    assert len({image.tobytes() for image in images}) == 10
    again = shown(painted.visualize("augmentations", count=9, image=5))
    other = shown(painted.visualize("augmentations", count=9, image=5, seed=1))
    assert all(map(np.array_equal, images, again)) and not all(map(np.array_equal, images, other))
    assert painted.data.classes[split.labels[5]] in figure.caption


@pytest.mark.parametrize("name, arguments, problem", [
    ("samples", {"count": 0}, "count is 1 or more"),
    ("augmentations", {"count": -1}, "count is 1 or more"),
    ("augmentations", {"image": 150}, "image is 0 to 149, not 150")])
def test_what_cannot_be_is_refused(tiny, name, arguments, problem):
    with pytest.raises(ConfigError, match=problem):
        Experiment(load_config(tiny)).visualize(name, **arguments)


def test_no_training_is_needed(tiny, tmp_path):
    figure = Experiment(load_config(tiny)).visualize("samples", count=5)
    assert len(shown(figure)) == 5 and not (tmp_path / "runs").exists()
