import numpy as np
import pytest
import torch
from conftest import TINY

from cvkit.config import load_config
from cvkit.data import build_data, build_loaders
from cvkit.data.pipeline import Pipeline
from cvkit.errors import ConfigError
from cvkit.evaluation.predictor import Predictor
from cvkit.evaluation.run_evaluation import evaluate
from cvkit.reporting.tracking import last_scalars
from cvkit.session import train


@pytest.fixture
def views_of(tmp_path):
    """A function: the views that a TTA makes of the first test batch, as pixels (views, N, H, W, C)."""
    def views_of(nodes, batch=0, **settings):
        (tmp_path / "views.yaml").write_text(TINY)
        config = load_config(tmp_path / "views.yaml", {"TTA": nodes, **settings})
        loader = build_loaders(config, build_data(config), torch.device("cpu")).test
        chosen = list(loader)[batch]
        return np.stack([loader.denormalise(view) for view in loader.views_of(chosen)])
    return views_of


def test_the_first_view_is_the_image_and_the_others_what_is_made_of_it(views_of):
    images, mirrored, upside_down = views_of([{"NAME": "HorizontalFlip"}, {"NAME": "VerticalFlip"}])
    assert np.array_equal(mirrored, images[:, :, ::-1]) and np.array_equal(upside_down, images[:, ::-1])
    assert len(views_of([])) == 1


def test_those_in_a_row_are_all_applied(views_of):
    both = [{"NAME": "Sequential", "transforms": [{"NAME": "HorizontalFlip"}, {"NAME": "VerticalFlip"}]}]
    images, turned = views_of(both)
    assert np.array_equal(turned, images[:, ::-1, ::-1])
    both[0]["transforms"][0]["p"] = 0.5  # within a row it counts for nothing, as it always did
    assert np.array_equal(views_of(both)[1], turned)


@pytest.mark.parametrize("node", [{"NAME": "RandomCrop", "size": 32, "padding": 4},
                                  {"NAME": "Affine", "translate_px": {"x": [-6, 6], "y": [-6, 6]}}])
def test_what_is_random_depends_on_seed_and_image_alone(views_of, node):
    nodes = [node]
    first, again, other = (views_of(nodes, SEED=seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert len({image.tobytes() for image in views_of([*nodes, *nodes])[1:, 0]}) == 2
    # In whatever batches they are shown, by one process or several.
    parts = [views_of(nodes, batch, **{"DATA.EVAL_BATCH_SIZE": 48})[1] for batch in range(3)]
    whole = views_of(nodes, **{"DATA.EVAL_BATCH_SIZE": 144})[1]
    assert np.array_equal(np.concatenate(parts), whole) and np.array_equal(whole[:len(first)], first)


def test_images_of_many_blocks_are_drawn_as_those_of_one(views_of, monkeypatch):
    nodes = [{"NAME": "RandomCrop", "size": 32, "padding": 4}]
    monkeypatch.setattr("cvkit.data.views._DRAWN_AT_ONCE", 7)
    whole = views_of(nodes, **{"DATA.EVAL_BATCH_SIZE": 144})[1]
    parts = [views_of(nodes, batch, **{"DATA.EVAL_BATCH_SIZE": 16})[1] for batch in range(9)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert len({image.tobytes() for image in whole}) > 100


def test_a_predictor_draws_the_views_that_the_evaluation_drew(quick):
    """Also of a part of the test images, whose places in the data set are others."""
    run = train(load_config(quick, {"TTA": [{"NAME": "RandomCrop", "size": 32, "padding": 4}], "DATA.EVAL_BATCH_SIZE": 40}))
    split = run.data.test
    assert split.index[-1] > len(split)
    said = Predictor(run.folder)([split.image(place) for place in range(len(split))])
    assert np.allclose([each.probabilities for each in said], run.predictions.probabilities, atol=1e-5)


@pytest.mark.parametrize("node, message", [
    ({"NAME": "HorizontalFlip", "p": 0.5}, r"TTA.0.p: HorizontalFlip of TTA is applied by chance \(p 0.5\)"),
    ({"NAME": "Resize", "height": 8, "width": 16}, r"Resize of TTA makes images of 8×16; the model takes 32×32"),
    ({"NAME": "Sequential", "transforms": [{"NAME": "Resize", "height": 8, "width": 8}]},
     r"TTA.0.NAME: Sequential of TTA makes images of 8×8"),
    ({"NAME": "Sequential", "transforms": []}, "TTA.0.NAME: Sequential of TTA has no transforms"),
    ({"NAME": "AlternatingFlip"}, "TTA.0.NAME: AlternatingFlip goes by the epoch: a test has none"),
    ({"NAME": "MixUp"}, "MixUp mixes images, which is for training only"),
    ({"NAME": "Normalize"}, "Normalize makes no view"),
    ({"NAME": "ToFloat"}, "ToFloat turns images into float32"),
    ({"NAME": "HorizntalFlip"}, "Did you mean HorizontalFlip")])
def test_what_makes_no_view_is_refused(views_of, node, message):
    with pytest.raises(ConfigError, match=message):
        views_of([node])


def test_a_training_with_tta_ends_with_what_evaluate_says(quick):
    """Its epochs are measured without, its predictions are of the averaged probabilities."""
    flip = [{"NAME": "HorizontalFlip"}]
    run = train(load_config(quick, {"TTA": flip}))
    before = run.predictions
    assert np.array_equal(evaluate(run.folder).probabilities, before.probabilities)
    plain = evaluate(run.folder, {"TTA": []})
    assert run.metrics[-1]["test/accuracy"] == plain.accuracy
    assert run.metrics[-1]["test/loss"] == pytest.approx(plain.loss, rel=1e-6)
    assert np.abs(plain.probabilities - before.probabilities).max() > 1e-4
    assert np.array_equal(run.predictions.probabilities, before.probabilities)  # it was not written over
    assert "averaged over the views of TTA" in (run.folder / "train.log").read_text()
    assert last_scalars(run) == {"test_tta/loss": before.loss, "test_tta/accuracy": before.accuracy}


@pytest.mark.parametrize("loss", ["BCEWithLogitsLoss", "MultiLabelSoftMarginLoss", "CrossEntropyLoss"])
def test_a_view_that_changes_nothing_changes_no_loss(quick, loss):
    still = [{"NAME": "Shift", "down": 0, "right": 0}]
    run = train(load_config(quick, {"TTA": still, "LOSS": {"NAME": loss}}))
    assert run.predictions.loss == pytest.approx(run.metrics[-1]["test/loss"], rel=1e-5)


def test_the_loss_of_views_is_that_of_their_mean_probabilities_where_it_looks_at_these_alone(quick):
    run = train(load_config(quick, {"TTA": [{"NAME": "HorizontalFlip"}]}))
    found = run.predictions
    assert found.loss == pytest.approx(-np.log(found.probabilities[np.arange(len(found.true)), found.true]).mean(), rel=1e-5)


def test_views_that_have_a_batched_form_are_those_made_one_by_one(views_of, monkeypatch):
    """Mirrored, moved, and both: the six of airbench, moved by as many pixels as is said."""
    moved = [{"NAME": "Shift", "down": by, "right": by} for by in (1, -1)]
    nodes = [{"NAME": "HorizontalFlip"}, *moved, *(
        {"NAME": "Sequential", "transforms": [{"NAME": "HorizontalFlip"}, each]} for each in moved)]
    views = views_of(nodes)
    assert np.array_equal(views[2][:, 1:, 1:], views[0][:, :-1, :-1])
    assert np.array_equal(views[2][:, 0], views[2][:, 2]) and np.array_equal(views[2][:, :, 0], views[2][:, :, 2])
    assert np.array_equal(views[5][:, :-1, :-1], views[0][:, 1:, ::-1][:, :, 1:])
    monkeypatch.setattr(Pipeline, "unbatched", ["none is"])
    assert np.array_equal(views_of(nodes), views)
