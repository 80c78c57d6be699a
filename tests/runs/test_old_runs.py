"""Run folders that version 0.1.0 wrote are opened, drawn, evaluated and resumed by this one."""

import json
import shutil

import numpy as np
import pytest
from conftest import ROOT

from cvkit.config import load_config
from cvkit.evaluation.run_evaluation import evaluate
from cvkit.reporting.report import write_report
from cvkit.runs.finding import find_runs
from cvkit.runs.folder import Run, open_run
from cvkit.session import train

OLD = ROOT / "tests" / "fixtures" / "old"
EXPECTED = json.loads((OLD / "expected.json").read_text())


@pytest.fixture(autouse=True)
def old_runs(tmp_path):
    for name in ("old_finished", "old_interrupted"):
        shutil.copytree(OLD / name, tmp_path / "runs" / name)


def finished() -> Run:
    return open_run(config_name="old_finished")


def test_a_finished_run_is_opened_with_all_that_it_holds(capsys):
    run = finished()
    assert [epoch["epoch"] for epoch in run.metrics] == [1, 2, 3]
    assert run.predictions.accuracy == EXPECTED["finished"]["accuracy"]
    assert run.monitored == "val" and run.config.TRAIN.EPOCHS == 3
    assert {"old_finished", "old_interrupted"} == {path.parent.name for path in find_runs()}
    for name in ("curves", "misclassified", "confusion", "architecture"):
        assert run.visualize(name).caption
    page, readme = write_report(run)
    for text in (page.read_text(), readme.read_text()):
        assert "10.00 % test accuracy" in text and "all 2 requirements are met" in text.lower()
        assert "not drawn" not in text


def test_a_finished_run_is_evaluated_as_it_was():
    before = finished().predictions
    after = evaluate(finished())
    assert np.allclose(after.probabilities, before.probabilities, atol=1e-3)
    assert after.loss == pytest.approx(EXPECTED["finished"]["loss"], rel=1e-3)


def test_a_finished_run_trains_on(capsys):
    run = finished()
    config = load_config(run.folder / "config.yaml", {"REQUIRE": None})
    assert train(config, resume=run.folder).folder == run.folder
    assert "is finished: 3 epochs. To train longer, raise TRAIN.EPOCHS" in capsys.readouterr().out
    longer = load_config(run.folder / "config.yaml", {"TRAIN.EPOCHS": 4, "REQUIRE": None})
    assert [epoch["epoch"] for epoch in train(longer, resume=run.folder).metrics] == [1, 2, 3, 4]


def test_an_interrupted_run_ends_as_if_it_had_not_been():
    """EMA, accumulation, AdamW, warm-up and one cycle, in the middle of an epoch; no last bits."""
    run = open_run(config_name="old_interrupted")
    saved = run.checkpoint("last")
    assert (saved.epoch, saved.batches) == (1, 6)
    run = train(load_config(run.folder / "config.yaml"), resume=run.folder)
    expected = EXPECTED["interrupted"]
    assert len(run.metrics) == len(expected["metrics"]) == 3
    for ours, theirs in zip(run.metrics, expected["metrics"]):
        for key in ("lr", "train/loss", "test/loss"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3), (ours["epoch"], key)
        assert ours["rates"] == [pytest.approx(pair) for pair in theirs["rates"]]
    assert run.predictions.loss == pytest.approx(expected["loss"], rel=1e-3)
