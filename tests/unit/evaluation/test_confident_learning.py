import numpy as np
import pytest
from made_up import kinds, made_up

from cvkit.evaluation.confident_learning import label_candidates

NAMES = [name for name in kinds() if name != "one class for all"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_probably_wrong_is_what_cleanlab_finds_in_its_order(name, seed):
    filters = pytest.importorskip("cleanlab.filter")
    predictions = kinds()[name] if not seed else made_up(5, 400, 1 + seed, seed=seed)
    rows, count = label_candidates(predictions)
    expected = filters.find_label_issues(
        predictions.true, predictions.probabilities.astype(np.float64), filter_by="confident_learning",
        return_indices_ranked_by="normalized_margin", n_jobs=1)
    assert rows[:count].tolist() == expected.tolist()
    contradicted = filters.find_label_issues(
        predictions.true, predictions.probabilities.astype(np.float64), filter_by="predicted_neq_given",
        return_indices_ranked_by="normalized_margin", n_jobs=1)
    assert sorted(rows.tolist()) == sorted(contradicted.tolist())


def test_planted_wrong_labels_come_first():
    clean = made_up(10, 2000, 6)
    random = np.random.default_rng(1)
    planted = random.permutation(2000)[:50]
    clean.true[planted] = (clean.true[planted] + random.integers(1, 10, 50)) % 10
    rows, count = label_candidates(clean)
    assert len(set(planted) & set(rows[:100])) >= 48
    assert len(set(planted) & set(rows[:count])) >= 0.9 * count
