import csv
import io
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from PIL import Image
from sklearn.decomposition import PCA
from torch import nn

from cvkit.errors import ConfigError, RunError
from cvkit.models.features import penultimate_features
from cvkit.visualizers import embedding
from cvkit.visualizers.drawing import COLOURS


def table_of(figure):
    return list(csv.reader(io.StringIO(figure.csv)))


def plane_of(figure):
    return np.array([row[1:3] for row in table_of(figure)[1:]], dtype=float)


def features_of(run):
    with torch.no_grad():
        return penultimate_features(run.model.eval(), run.loaders.test.take(range(36)).images).numpy()


def made_of(painted, monkeypatch, classes, count=600, spread=1.0, names=None):
    """Return the picture of features around a centre for each class, one in ten taken for the next."""
    random = np.random.default_rng(0)
    true = np.arange(count) % classes
    features = 4 * random.normal(size=(classes, 16))[true] + spread * random.normal(size=(count, 16))
    predicted = np.where(np.arange(count) % 10, true, (true + 1) % classes)
    said = replace(painted.predictions, true=true, predicted=predicted, index=np.arange(count),
                   probabilities=np.zeros((count, classes), np.float32),
                   classes=names or [f"class number {number}" for number in range(classes)])
    monkeypatch.setattr(embedding, "_features", lambda said, model, loaders, rows, seed: (
        rows, features[rows], np.zeros((len(rows), 8, 8, 3), np.uint8)))
    monkeypatch.setattr(embedding, "positions_of", lambda images, said, rows: list(map(int, rows)))
    monkeypatch.setattr(embedding, "image_names", lambda images, places: list(map(str, places)))
    return embedding.embedding(said, painted.model, painted.loaders, "PCA"), said


def test_pca_is_that_of_scikit_learn_with_its_variance(painted):
    figure, components = painted.visualize("embedding", method="PCA"), PCA(2)
    expected = components.fit_transform(features_of(painted))
    assert np.abs(plane_of(figure) - expected).max() < 1e-3
    held = 100 * components.explained_variance_ratio_.sum()
    assert f"The plane holds {held:.1f} % of the features' variance." in figure.caption


def test_the_same_seed_draws_the_same_picture(painted):
    first, again, other = (painted.visualize("embedding", count=30, seed=seed) for seed in (3, 3, 4))
    assert first.csv == again.csv and first.png() == again.png() and first.caption == again.caption
    assert first.csv != other.csv
    assert "how far apart groups lie, and how large they are, means little" in first.caption


def test_the_table_names_each_image_and_what_it_is_taken_for(painted):
    said = painted.predictions
    head, *rows = table_of(painted.visualize("embedding"))
    assert head == ["image", "x", "y", "true", "predicted"]
    assert [(row[3], row[4]) for row in rows] == [
        (said.classes[true], said.classes[predicted])
        for true, predicted in zip(said.true, said.predicted, strict=True)]
    for name, *_, true, _ in rows:
        assert name == f"{true}/{name.split('/')[1]}" and not name.startswith("/")


def test_the_numbers_in_words_are_those_of_all_features(painted):
    features, true = features_of(painted), painted.predictions.true
    away = ((features[:, None] - features[None]) ** 2).sum(2)
    np.fill_diagonal(away, np.inf)
    near = true[np.argsort(away, axis=1)[:, :10]]
    caption = painted.visualize("embedding").caption
    wrong = int((true != painted.predictions.predicted).sum())
    assert f"{wrong} are misclassified and have a ring." in caption
    assert (f"Of the 10 nearest neighbours of an image, by all features, "
            f"{100 * (near == true[:, None]).mean():.1f} % are of its class (by chance 31.4 %)") in caption
    shares = np.array([[(near[true == of] == other).mean() for other in range(3)] for of in range(3)])
    mixed = (shares + shares.T) / 2
    pair = max(((0, 1), (0, 2), (1, 2)), key=lambda pair: mixed[pair])
    first, second = (painted.predictions.classes[label] for label in pair)
    assert f"{first} and {second} mix most: {100 * mixed[pair]:.1f} % of the one's" in caption


def test_of_few_images_no_more_neighbours_are_asked_for_than_a_class_has(painted, monkeypatch):
    few, _ = made_of(painted, monkeypatch, 4, count=20, spread=0.1)
    assert "Of the 4 nearest neighbours of an image, by all features, 100.0 % are" in few.caption
    assert "2 are misclassified and have a ring." in few.caption and "mix most" not in few.caption
    single, _ = made_of(painted, monkeypatch, 10, count=10)
    assert "One is misclassified and has a ring. Of the nearest neighbours of an image" in single.caption


def test_classes_are_drawn_in_proportion():
    true = np.repeat([0, 1, 2], [600, 300, 100])
    for count in (10, 100, 995):
        rows = embedding._drawn(true, count, seed=1)
        assert len(set(rows.tolist())) == count
        assert np.abs(np.bincount(true[rows]) - count * np.array([0.6, 0.3, 0.1])).max() <= 1
    assert embedding._drawn(true, 5000, 0).tolist() == list(range(1000))
    assert (embedding._drawn(true, 10, 0) != embedding._drawn(true, 10, 1)).any()


def test_the_model_is_left_as_it_was(painted):
    painted.model.train()
    before = {name: value.clone() for name, value in painted.model.state_dict().items()}
    painted.visualize("embedding", method="PCA")
    assert painted.model.training
    assert all(torch.equal(value, before[name]) for name, value in painted.model.state_dict().items())


def test_points_stand_where_they_are_drawn_and_are_of_the_images(painted, monkeypatch):
    figure, said = made_of(painted, monkeypatch, 3, count=60)
    pixels = np.asarray(Image.open(io.BytesIO(figure._repr_png_())).convert("RGB")) / 255
    found = 0
    for (x, y), label in zip(figure.points.places, said.true, strict=True):
        colour = pixels[round((1 - y) * len(pixels)), round(x * pixels.shape[1])]
        found += np.abs(colour - (0.25 + 0.75 * np.array(to_rgb(COLOURS[label])))).max() < 0.02
    assert found > 30  # the others lie under another point, or a name
    monkeypatch.undo()
    points = painted.visualize("embedding", method="PCA").points
    assert np.abs(points.images[5].astype(int) - painted.data.test.image(5)).max() <= 1
    assert points.images.shape == (36, 32, 32, 3) and points.names[5].startswith(points.classes[0])


@pytest.mark.parametrize("shape", [(1, 0.3), (1, 0.8), (1, 1.3), (1, 3)])
def test_points_stand_where_they_are_drawn_whatever_the_shape_of_the_plane(painted, monkeypatch, shape):
    plane = np.random.default_rng(0).normal(size=(80, 2)) * shape
    monkeypatch.setattr(embedding, "_plane", lambda features, method, seed: (plane, ""))
    figure, _ = made_of(painted, monkeypatch, 4, count=80)
    figure.draw_without_rendering()
    drawn = figure.transFigure.inverted().transform(figure.axes[0].transData.transform(plane))
    assert np.abs(np.asarray(figure.points.places) - drawn).max() < 1e-3


def test_large_images_become_small_and_keep_their_shape():
    assert embedding._small(np.zeros((100, 200, 3), np.uint8)).shape == (24, 48, 3)
    assert embedding._small(np.zeros((96, 4, 1), np.uint8)).shape == (48, 2, 1)


@pytest.mark.parametrize("classes, named, spread", [(2, 2, 1), (10, 10, 1), (20, 20, 8), (100, 14, 2)])
def test_names_of_classes_do_not_overlap_and_stay_inside(painted, monkeypatch, classes, named, spread):
    figure, _ = made_of(painted, monkeypatch, classes, spread=spread)
    axes, = figure.axes
    boxes = [text.get_window_extent(RendererAgg(1, 1, 150)) for text in axes.texts]
    frame = axes.get_window_extent()
    assert len(boxes) == named
    for number, box in enumerate(boxes):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[:number])
    assert ("Coloured are the 14 classes that mix most, of 100." in figure.caption) == (classes == 100)


def test_colour_and_shape_together_tell_all_named_classes():
    assert len({embedding._look(place) for place in range(embedding._NAMED)}) == embedding._NAMED


def test_names_without_letters_are_numbers_that_the_table_explains(painted, monkeypatch):
    figure, _ = made_of(painted, monkeypatch, 2, names=["\U00012000", "bee"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["class 0", "bee"]
    assert figure.table.endswith("class 0: \U00012000")
    assert table_of(figure)[1][3] == "\U00012000"


def test_umap_names_its_package(painted, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match="method UMAP needs umap-learn\n  pip install umap-learn"):
        painted.visualize("embedding", method="UMAP")


def test_too_few_images_are_a_message(painted):
    figure = painted.visualize("embedding", count=4)
    assert figure.is_message and figure.points is None
    assert figure.caption.startswith("No embedding of 4 test images with ")


def test_features_that_are_no_numbers_are_told(painted):
    for value in painted.model.parameters():
        torch.nn.init.constant_(value, float("nan"))
    with pytest.raises(RunError, match="the model's features are not finite numbers"):
        painted.visualize("embedding")


def test_features_that_are_all_the_same_are_a_message_and_no_crash(painted):
    with torch.no_grad():
        for weight in painted.model.parameters():
            weight.zero_()
    for method in ("TSNE", "PCA"):
        figure = painted.visualize("embedding", method=method)
        assert figure.is_message and "the last layer is given the same for all images" in figure.caption


def test_a_model_that_changes_buffers_and_draws_is_left_alone_and_drawn_the_same_twice(painted):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("asked", torch.zeros(()))
            self.head = nn.Linear(4, 3)

        def forward(self, images):
            self.asked += 1
            return self.head(images.mean((1, 2, 3))[:, None] + torch.rand(len(images), 4))

    painted.model, drawn = Noisy().train(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        drawn.append(painted.visualize("embedding", method="PCA").csv)
        assert torch.equal(torch.get_rng_state(), state)
    assert drawn[0] == drawn[1] and painted.model.asked == 0 and painted.model.training
