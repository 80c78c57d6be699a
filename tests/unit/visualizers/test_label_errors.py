import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits
from test_misclassified import shown, titles

from cvkit import repeat
from cvkit.config import load_config
from cvkit.data import ImageData, ImageSet
from cvkit.evaluation.confident_learning import label_candidates
from cvkit.evaluation.further_images import predict_images
from cvkit.registry import DATASETS
from cvkit.session import train
from cvkit.visualizers.drawing import image_names


def test_training_images_are_shown_with_their_label_and_what_the_model_sees(painted):
    said = predict_images(painted, painted.data.train)
    rows, confident = label_candidates(said)
    figure = painted.visualize("label_errors", count=5)
    assert len(rows) > 5 and len(shown(figure)) == 5
    for image, title, row in zip(shown(figure), titles(figure), rows, strict=False):
        assert np.array_equal(image, painted.data.train.image(row))
        assert title.startswith(f"{said.classes[said.true[row]]} → {said.classes[said.predicted[row]]}\n(")
    assert figure.caption.startswith(
        f"{confident} labels probably wrong by confident learning, and {len(rows) - confident} more that the model "
        f"contradicts, of {len(said.true)} training images, judged by the model that was trained on them")
    assert "train with --folds 5" in figure.caption
    lines = list(csv.DictReader(io.StringIO(figure.csv)))
    assert [line["image"] for line in lines] == image_names(painted.data.train, rows)
    assert [line["probably wrong"] for line in lines] == ["yes"] * confident + ["perhaps"] * (len(rows) - confident)
    assert [float(line["probability of label"]) for line in lines] == pytest.approx(
        said.probabilities[rows, said.true[rows]].tolist(), rel=1e-4)


def test_test_images_are_judged_by_the_run_s_predictions(painted):
    figure = painted.visualize("label_errors", split="test", count=3)
    rows, _ = label_candidates(painted.predictions)
    assert all(np.array_equal(image, painted.data.test.image(row))
               for image, row in zip(shown(figure), rows, strict=False))
    assert "test images, judged by the model, which was not trained on them" in figure.caption


def test_where_the_model_agrees_with_all_labels_that_is_said(painted):
    said = painted.predictions
    painted.shown = replace(said, probabilities=np.eye(3, dtype=np.float32)[said.true], predicted=said.true)
    figure = painted.visualize("label_errors", split="test")
    assert figure.is_message and figure.caption.startswith("No label is contradicted among 36 test images")


@pytest.mark.slow
@pytest.mark.parametrize("folds", [0, 3])
def test_of_fifty_planted_wrong_labels_four_fifths_are_among_the_first_hundred(tmp_path, folds):
    @DATASETS.register()
    def swapped(seed):
        digits = load_digits()
        images, labels = (digits.images * 15.9).astype(np.uint8)[..., None], digits.target.copy()
        random = np.random.default_rng(1)
        order = random.permutation(len(labels))
        planted = order[:50]
        labels[planted] = (labels[planted] + random.integers(1, 10, 50)) % 10
        splits = [ImageSet.of(images[part], labels[part]) for part in (order[:1437], order[1437:])]
        return ImageData(tuple("0123456789"), *splits, 1, (8, 8), (0.3,), (0.38,))

    size = {"NAME": "Resize", "height": 16, "width": 16}
    (tmp_path / "x.yaml").write_text(
        "MODEL: {NAME: resnet18, width: 8}\nOPTIMIZER: {NAME: SGD, lr: 0.1, momentum: 0.9, weight_decay: 5e-4}\n"
        "SCHEDULER: {NAME: OneCycleLR}\nLOSS: {NAME: CrossEntropyLoss, label_smoothing: 0.1}\nVISUALIZERS: []\n")
    config = load_config(tmp_path / "x.yaml", {
        "DATA.DATASET": {"NAME": "swapped"}, "DATA.BATCH_SIZE": 64, "TRAIN.EPOCHS": 8,
        "DATA.TRAIN_TRANSFORMS": [size, {"NAME": "ToRGB"}, {"NAME": "RandomCrop", "size": 16, "padding": 2}],
        "DATA.TEST_TRANSFORMS": [size, {"NAME": "ToRGB"}]})
    subject = repeat.train_folds(config, folds) if folds else train(config)
    lines = list(csv.DictReader(io.StringIO(subject.visualize("label_errors").csv)))
    names = {subject.data.train.name(place) for place in range(50)} if not folds else {
        subject.data.test.name(place) for place in range(50)}
    found = [line["image"] in names for line in lines[:100]]
    assert sum(found) >= 40 and sum(found[:20]) >= 19
