"""Pictures and page of a sweep, of trials that are known."""

import re
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

from cvkit.config.load import load_sweep
from cvkit.sweep.page import write_sweep_page
from cvkit.sweep.plots import pictures
from cvkit.sweep.study import MONITORED, Sweep
from cvkit.sweep.trials import ERROR, STOPPED, TRIES, Progress, best_of

optuna = pytest.importorskip("optuna")
COMPLETE, PRUNED, FAIL = (optuna.trial.TrialState[name] for name in ("COMPLETE", "PRUNED", "FAIL"))


@pytest.fixture
def sweep(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "search.yaml").write_text("""\
_BASE_: tiny.yaml
SWEEP:
  SPACE:
    OPTIMIZER.lr: {NAME: float, low: 1e-3, high: 1, log: true}
    MODEL.norm: [batch, layer]
    TRAIN.EPOCHS: {NAME: int, low: 1, high: 5}
  TRIALS: 15
""")
    return Sweep(load_sweep("search.yaml"))


def study_of(sweep, trials, direction="maximize"):
    """Return a study with trials of (lr, norm, epochs, state, value)."""
    study = optuna.create_study(direction=direction)
    study.set_user_attr(MONITORED, "val")
    for lr, norm, epochs, state, value in trials:
        study.add_trial(optuna.trial.create_trial(
            params={"OPTIMIZER.lr": lr, "MODEL.norm": norm, "TRAIN.EPOCHS": epochs}, state=state,
            distributions={each.key: each.distribution for each in sweep.space.dimensions},
            value=value if state is COMPLETE else None,
            user_attrs={ERROR: "no memory"} if state is FAIL else {},
            intermediate_values={} if state is FAIL else {1: 0.1, 2: value}))
    return study


TRIALS = [(0.001, "batch", 1, COMPLETE, 0.3), (0.1, "layer", 5, COMPLETE, 0.7), (0.01, "batch", 3, PRUNED, 0.2),
          (1.0, "layer", 2, FAIL, None), (0.05, "batch", 4, COMPLETE, 0.5), (0.2, "batch", 4, COMPLETE, 0.9)]
DONE = [row for row in TRIALS if row[3] is COMPLETE]


@pytest.mark.parametrize("direction, best", [("maximize", [30, 70, 70, 90]), ("minimize", [30, 30, 30, 30])])
def test_the_history_has_each_trial_at_its_value_and_the_best_so_far(sweep, direction, best):
    figure = pictures(sweep, study_of(sweep, TRIALS, direction))[0]
    so_far, complete, pruned = figure.axes[0].lines
    assert list(complete.get_xdata()) == [0, 1, 4, 5] and np.allclose(complete.get_ydata(), [30, 70, 50, 90])
    assert np.allclose(so_far.get_ydata(), [*best, best[-1]]) and so_far.get_xdata()[-1] == 5
    assert list(pruned.get_xdata()) == [2] and np.allclose(pruned.get_ydata(), [20])
    assert "6 of 15 trials finished: 4 complete, 1 pruned, 1 failed" in figure.caption


def test_each_key_is_drawn_against_the_result_on_its_own_scale(sweep):
    figure = pictures(sweep, study_of(sweep, TRIALS))[1]
    rate, norm, epochs = figure.axes
    for axes, column in ((rate, 0), (epochs, 2)):
        assert np.allclose(axes.collections[0].get_offsets(), [(row[column], 100 * row[4]) for row in DONE])
    assert rate.get_xscale() == "log" and epochs.get_xscale() == "linear"
    assert [text.get_text() for text in norm.get_xticklabels()] == ["batch", "layer"]
    assert np.allclose(norm.collections[0].get_offsets()[:, 0], [0, 1, 0, 0])
    assert [axes.get_title("left") for axes in figure.axes] == ["OPTIMIZER.lr", "MODEL.norm", "TRAIN.EPOCHS"]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_lines_go_through_the_values_and_the_best_is_the_darkest(sweep, direction):
    figure = pictures(sweep, study_of(sweep, TRIALS, direction))[2]
    lines = figure.axes[0].collections[0]
    drawn = {tuple(np.round(line[:, 1], 6)): shade for line, shade in zip(
        lines.get_segments(), lines.get_array(), strict=True)}
    expected = {(round((np.log10(lr) + 3) / 3, 6), float(norm == "layer"), (epochs - 1) / 4,
                 round((value - 0.3) / 0.6, 6)): value for lr, norm, epochs, _, value in DONE}
    assert drawn.keys() == expected.keys()
    best = (max if direction == "maximize" else min)(expected, key=expected.get)
    assert drawn[best] == max(drawn.values())
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == [
        "OPTIMIZER.lr (log)", "MODEL.norm", "TRAIN.EPOCHS", "val accuracy (%)"]


def test_losses_that_one_high_rate_blew_up_are_drawn_on_a_log_scale(sweep):
    sweep.base.defrost()
    sweep.base.TRAIN.MONITOR = "loss"
    losses = [0.5, 0.8, 5e8, 0.6]
    rows = [(*row[:4], loss) for row, loss in zip(DONE, losses)]
    history, slices, lines = pictures(sweep, study_of(
        sweep, [*rows, (0.5, "batch", 2, PRUNED, 0.25)], "minimize"))[:3]
    for axes in (history.axes[0], *slices.axes):
        assert axes.get_yscale() == "log"
        low, high = axes.get_ylim()
        assert low < 0.5 and high > 5e8
        axes.figure.draw_without_rendering()
        label, ticks = axes.yaxis.label.get_window_extent(), axes.yaxis.get_ticklabels()
        assert label.x0 > 0 and all(label.x1 < tick.get_window_extent().x0 for tick in ticks if tick.get_text())
    assert history.axes[0].get_ylabel() == slices.axes[0].get_ylabel() == "val loss (log scale)"
    heights = [line[-1, 1] for line in lines.axes[0].collections[0].get_segments()]
    expected = np.log(np.array(losses) / 0.5) / np.log(5e8 / 0.5)
    assert sorted(heights) == pytest.approx(sorted(expected))
    assert lines.axes[0].get_xticklabels()[-1].get_text() == "val loss (log scale)"
    # As are those of like size, as ever.
    rows = [(*row[:4], loss) for row, loss in zip(DONE, [0.5, 0.8, 1.5, 0.6])]
    history, slices, lines = pictures(sweep, study_of(sweep, rows, "minimize"))[:3]
    assert {axes.get_yscale() for axes in (history.axes[0], *slices.axes)} == {"linear"}
    assert lines.axes[0].get_xticklabels()[-1].get_text() == "val loss"


def test_what_mattered_is_told_of_ten_trials_or_more(sweep):
    random = np.random.default_rng(0)
    rows = [(float(10 ** -random.uniform(0, 3)), str(random.choice(["batch", "layer"])), int(random.integers(1, 6)),
             COMPLETE, 0.0) for _ in range(40)]
    rows = [(lr, norm, epochs, state, 0.8 if norm == "layer" else 0.4) for lr, norm, epochs, state, _ in rows]
    assert len(pictures(sweep, study_of(sweep, rows[:9]))) == 3
    figure = pictures(sweep, study_of(sweep, rows))[3]
    bars = dict(zip([text.get_text() for text in figure.axes[0].get_yticklabels()],
                    [bar.get_width() for bar in figure.axes[0].patches], strict=True))
    assert max(bars, key=bars.get) == "MODEL.norm" and bars["MODEL.norm"] > 0.9


def test_one_trial_and_one_key_can_be_drawn(tmp_path, sweep):
    assert len(pictures(sweep, study_of(sweep, DONE[:1]))) == 3
    text = (tmp_path / "search.yaml").read_text()
    (tmp_path / "one.yaml").write_text(re.sub(r"    (MODEL|TRAIN).*\n", "", text))
    one = Sweep(load_sweep("one.yaml"))
    study = optuna.create_study(direction="maximize")
    study.add_trial(optuna.trial.create_trial(params={"OPTIMIZER.lr": 0.1}, value=0.5, distributions={
        "OPTIMIZER.lr": one.space.dimensions[0].distribution}))
    assert len(pictures(one, study)) == 2


def test_the_page_lists_the_trials_the_best_first(sweep):
    study = study_of(sweep, TRIALS)
    write_sweep_page(sweep, study)
    page = Path("runs/search/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", page, re.M)
    assert [row[0] for row in rows] == ["5", "1", "4", "0", "2", "3"]
    assert rows[0][1:] == ("90.00 %", "0.2", "batch", "4") and rows[4][1] == "pruned, epoch 2"
    assert rows[5][1] == "failed: no memory"
    assert "The best is trial 5, with lr 0.2, norm batch, EPOCHS 4: val accuracy 90.00 %." in page
    assert "python tools/train.py runs/search/trial\\_0005/config.yaml --seeds 3" in page or (
        "python tools/train.py runs/search/trial_0005/config.yaml --seeds 3" in page)
    assert "The test images chose it" not in page
    html = Path("runs/search/sweep.html").read_text(encoding="utf-8")
    assert html.count("<img ") == 3 and "<title>search: val accuracy 90.00 %</title>" in html


def test_a_trial_that_was_tried_again_counts_once_at_its_first_number(sweep):
    study = study_of(sweep, [*TRIALS[:2], TRIALS[3]])
    study.add_trial(optuna.trial.create_trial(
        params=study.trials[2].params, distributions=study.trials[2].distributions, value=0.95,
        user_attrs={TRIES: [2]}))
    progress = Progress.of(study, 3)
    assert list(progress.trials) == [0, 1, 2] and progress.is_done
    assert best_of(study, progress).value == 0.95
    assert list(pictures(sweep, study)[0].axes[0].lines[1].get_xdata()) == [0, 1, 2]


def test_of_listed_nodes_a_label_has_what_they_differ_in(tmp_path, sweep):
    text = (tmp_path / "search.yaml").read_text().replace(
        "MODEL.norm: [batch, layer]", "MODEL: [{NAME: resnet18, width: 4}, {NAME: resnet18, width: 4, norm: layer}, "
                                      "{NAME: resnet34, width: 4}]")
    (tmp_path / "nodes.yaml").write_text(text)
    nodes = Sweep(load_sweep("nodes.yaml"))
    study = optuna.create_study(direction="maximize")
    for number, each in enumerate(nodes.space.dimensions[1].distribution.choices):
        study.add_trial(optuna.trial.create_trial(
            params={"OPTIMIZER.lr": 0.02 + 0.01 * number, "MODEL": each, "TRAIN.EPOCHS": 2}, value=0.5 + 0.1 * number,
            distributions=nodes.space.distributions))
    rate, model, _ = pictures(nodes, study)[1].axes
    labels = [text.get_text() for text in model.get_xticklabels()]
    assert labels[0] == "resnet18" and labels[2] == "resnet34" and labels[1] != labels[0]
    low, high = rate.get_xlim()
    assert 2 <= sum(low <= tick <= high for tick in rate.get_xticks()) <= 5


def test_the_time_of_a_trial_is_that_of_all_its_tries(sweep):
    study = study_of(sweep, DONE[:1])
    begun = study.trials[0].datetime_start
    found = study.trials[0]
    tries = [(FAIL, 100, {STOPPED: True}), (FAIL, 5000, {TRIES: [1]}), (COMPLETE, 20, {TRIES: [1, 2]})]
    for state, seconds, notes in tries:
        study.add_trial(optuna.trial.FrozenTrial(
            number=0, trial_id=0, state=state, value=0.9 if state is COMPLETE else None, user_attrs=notes,
            datetime_start=begun, datetime_complete=begun + timedelta(seconds=seconds), params=found.params,
            distributions=found.distributions, system_attrs={}, intermediate_values={}))
    write_sweep_page(sweep, study)
    page = Path("runs/search/README.md").read_text(encoding="utf-8")
    # When the second one died is not known, only when that was found.
    assert re.search(r"^\| 1 \| 90.00 % .* \| 2 min 0 s \|$", page, re.M)
    assert "in 2 min 0 s of work" in page
