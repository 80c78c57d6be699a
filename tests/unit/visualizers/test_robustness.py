import csv
import io

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from test_drawing import check_no_overlap

from cvkit.config import load_config
from cvkit.data import ImageSet
from cvkit.evaluation.corruptions import corrupt
from cvkit.evaluation.further_images import predict_images
from cvkit.session import train


def test_cells_are_the_accuracies_of_corrupted_test_images(painted):
    figure = painted.visualize("robustness", count=20, corruptions=["blur", "occlusion"])
    places = np.sort(np.random.default_rng(0).permutation(36)[:20])
    images, labels = [painted.data.test.image(place) for place in places], painted.data.test.labels[places]
    rows = {row[0]: list(map(float, row[1:])) for row in list(csv.reader(io.StringIO(figure.csv)))[1:]}
    said = painted.predictions
    clean = (said.predicted[places] == said.true[places]).mean()
    for kind in ("blur", "occlusion"):
        split = [ImageSet.of(np.stack(corrupt(images, kind, strength)), labels) for strength in range(1, 6)]
        # No transform of the tests changes these images.
        expected = [predict_images(painted, images).accuracy for images in split]
        assert rows[kind] == pytest.approx([clean, *expected], abs=1e-5)
    cells = [float(text.get_text()) for text in figure.axes[0].texts]
    assert cells == pytest.approx([100 * value for values in rows.values() for value in values], abs=0.051)
    mean = np.mean([values[1:] for values in rows.values()])
    assert f"{100 * clean:.1f} % of 20 test images are right as they are (95 % interval " in figure.caption
    interval = binomtest(round(20 * clean), 20).proportion_ci(method="wilson")
    assert f"interval {100 * interval.low:.1f} to {100 * interval.high:.1f})" in figure.caption
    assert f"{100 * mean:.1f} % on average over all corruptions" in figure.caption
    means = {kind: 100 * np.mean(values[1:]) for kind, values in rows.items()}
    hardest, easiest = min(means, key=means.get), max(means, key=means.get)
    if means["blur"] != means["occlusion"]:
        assert f"Hardest is {hardest} ({means[hardest]:.1f} %), easiest {easiest} ({means[easiest]:.1f} %)" in (
            figure.caption)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    check_no_overlap([*figure.texts, *axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label])
    examples = [axis.images[0].get_array() for axis in figure.axes[1:]]
    assert len(examples) == 6 and len({image.tobytes() for image in examples}) == 6


def test_images_of_several_sizes_are_corrupted_as_they_are(tiny, tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(8):
            folder = tmp_path / "x" / split / ("cat", "dog")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            size = (40 + number, 60 - number)
            Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    size = [{"NAME": "Resize", "height": 16, "width": 16}]
    run = train(load_config(tiny, {
        "DATA.DATASET": {"NAME": "ImageFolder", "root": str(tmp_path / "x")}, "DATA.LIMIT": 0, "TRAIN.EPOCHS": 1,
        "DATA.TRAIN_TRANSFORMS": size, "DATA.TEST_TRANSFORMS": size}))
    figure = run.visualize("robustness", corruptions=["noise"], count=100)
    assert "of 8 test images" in figure.caption and len(figure.axes[0].texts) == 6


def test_an_unknown_corruption_and_no_images_are_refused(painted):
    from cvkit.errors import ConfigError

    with pytest.raises(ConfigError, match="corruptions"):
        painted.visualize("robustness", corruptions=["rain"])
    with pytest.raises(ConfigError, match="count is 1 or more, not 0"):
        painted.visualize("robustness", count=0)


def test_where_all_corruptions_are_alike_none_is_called_the_hardest(painted, monkeypatch):
    monkeypatch.setattr("cvkit.visualizers.robustness.classify_received", lambda run, images: np.zeros(len(images)))
    caption = painted.visualize("robustness", corruptions=["noise", "blur"]).caption
    assert "Hardest" not in caption and "over all corruptions. The lowest accuracy, 33.3 %, is that of" in caption
