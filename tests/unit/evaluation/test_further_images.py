import numpy as np
import torch
from torch import nn

from cvkit.evaluation.further_images import classify_received, predict_images
from cvkit.evaluation.run_evaluation import evaluate


def test_test_images_are_said_the_same_of_as_in_the_evaluation(painted):
    said, before = predict_images(painted, painted.data.test), (painted.folder / "predictions.npz").read_bytes()
    own = evaluate(painted)
    assert np.allclose(said.probabilities, own.probabilities, atol=1e-6)
    assert said.place == own.place and said.is_of_same_images(own) and said.classes == own.classes
    assert (painted.folder / "predictions.npz").read_bytes() == before


def test_training_images_are_shown_without_augmentation_in_their_order(painted):
    said = predict_images(painted, painted.data.train)
    assert (said.index == painted.data.train.index).all() and (said.true == painted.data.train.labels).all()
    again = predict_images(painted, painted.data.train)
    assert np.array_equal(said.probabilities, again.probabilities)
    some = predict_images(painted, painted.data.train.take(np.array([5, 2])))
    assert np.allclose(some.probabilities, said.probabilities[[5, 2]], atol=1e-5)


class Drawing(nn.Module):
    """A model that draws its answers, and counts how often it was asked."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, images):
        self.asked += 1
        return torch.rand(len(images), self.classes)


def test_a_model_is_left_as_it_came_and_one_that_draws_says_the_same_again(painted):
    painted.model = Drawing(3).train()
    images = np.stack([painted.data.test.image(place) for place in range(36)])
    found, said = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(classify_received(painted, images, batch_size=10))
        said.append(predict_images(painted, painted.data.test))
        assert torch.equal(torch.get_rng_state(), state)
    assert (found[0] == found[1]).all() and len(set(found[0])) == 3
    assert np.array_equal(said[0].probabilities, said[1].probabilities)
    assert painted.model.asked == 0 and painted.model.training


def test_images_that_are_received_are_classified_as_those_of_the_test(painted):
    images = painted.loaders.test.denormalise(painted.loaders.test.take(range(36)).images)
    assert (classify_received(painted, images, batch_size=7) == painted.predictions.predicted).all()


def test_the_loader_of_a_split_is_used_again_and_stays_open(painted, monkeypatch):
    monkeypatch.setattr("cvkit.evaluation.further_images.build_evaluation_loader", None)
    first, second = (predict_images(painted, painted.data.test) for _ in range(2))
    assert np.array_equal(first.probabilities, second.probabilities)
