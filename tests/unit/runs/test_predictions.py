import math
import warnings

import numpy as np
import pytest
from sklearn.metrics import classification_report

from cvkit.runs.predictions import Predictions

warnings.filterwarnings("ignore", message=".*(Precision|Recall) is ill-defined")


def predictions_of(true, predicted, classes):
    true, predicted = np.asarray(true), np.asarray(predicted)
    probabilities = np.eye(len(classes), dtype=np.float32)[predicted]
    return Predictions(np.arange(len(true)), true, predicted, probabilities, list(classes), 3, 0.25)


def drawn(shares, seed=0, count=200):
    random = np.random.default_rng(seed)
    true = random.choice(len(shares), count, p=shares)
    wrong = random.choice(len(shares), count, p=shares)
    return true, np.where(random.random(count) < 0.5, true, wrong)


CASES = {"even": drawn([0.25] * 4), "uneven": drawn([0.85, 0.1, 0.04, 0.01]),
         "neither known nor told": drawn([0.6, 0, 0.4, 0]), "all right": ([0, 1, 2, 3], [0, 1, 2, 3]),
         "one class told": ([0, 1, 2, 3, 3], [1] * 5), "told without images": ([0, 0, 1], [0, 3, 1])}


@pytest.mark.parametrize("true, predicted", CASES.values(), ids=CASES)
def test_scores_and_their_means_are_those_of_scikit_learn_s_report(true, predicted):
    classes = ["ant", "bee", "a cat", "dog"]
    found = predictions_of(true, predicted, classes)
    theirs = classification_report(true, predicted, output_dict=True, zero_division=0)
    scores, images = found.scores()
    for number in range(4):
        if str(number) in theirs:
            expected = theirs[str(number)]
            assert scores[number] == pytest.approx([expected[key] for key in (
                "precision", "recall", "f1-score")])
            assert images[number] == expected["support"]
        else:
            assert np.isnan(scores[number]).all() and images[number] == 0
    lines = found.table().splitlines()
    rows = {line[:13].strip(): line[13:].split() for line in lines[:8]}
    assert rows["class"] == ["precision", "recall", "F1", "support"] and lines[5] == ""
    named = {**{name: str(number) for number, name in enumerate(classes)},
             "macro mean": "macro avg", "weighted mean": "weighted avg"}
    for name, key in named.items():
        expected = [f"{theirs[key][score]:.4f}" for score in ("precision", "recall", "f1-score")
                    ] + [f"{theirs[key]['support']:.0f}"] if key in theirs else [*"–––", "0"]
        assert rows[name] == expected


def test_a_metric_that_is_no_number_is_a_dash_in_the_table():
    found = predictions_of([0, 1], [0, 0], "ab")
    found.metrics.update({"auroc": math.nan, "top5": 0.5})
    assert found.table().splitlines()[-3:-1] == ["auroc: –", "top5: 0.5000"]


def test_long_names_are_cut_in_the_middle_and_wide_letters_take_two_places():
    names = ["a" * 50 + "_left", "a" * 50 + "_right", "猫", "\x1b[31m"]
    lines = predictions_of([0, 1, 2, 3], [0, 1, 2, 3], names).table().splitlines()
    assert [line.split("  ")[0] for line in lines[:5]] == [
        "class" , "a" * 19 + "…" + "a" * 15 + "_left", "a" * 19 + "…" + "a" * 14 + "_right", "猫", "\\x1b[31m"]
    assert lines[1].index("1.0000") == lines[2].index("1.0000") == lines[3].index("1.0000") + 1
    assert max(map(len, lines)) < 80


def test_many_images_are_counted_with_commas():
    assert predictions_of([0] * 1500 + [1], [0] * 1500 + [1], "ab").table().splitlines()[:2] == [
        "class          precision  recall      F1  support", "a                 1.0000  1.0000  1.0000    1,500"]
