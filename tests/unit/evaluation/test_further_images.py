import numpy as np

from cvkit.evaluation.further_images import predict_images
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
