import re
import shutil

import numpy as np
import pytest

from cvkit.errors import RunError
from cvkit.runs.compare import Runs
from cvkit.runs.folder import Run


@pytest.fixture
def group(run, tmp_path):
    """Three runs with other seeds and results; the last one stopped after an epoch."""
    runs = [run]
    for seed, factor in ((1, 0.5), (2, 0.8)):
        folder = shutil.copytree(run.folder, tmp_path / "runs" / "tiny" / f"seed_{seed}")
        path = folder / "config.yaml"
        path.write_text(path.read_text().replace("SEED: 0", f"SEED: {seed}", 1))
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        text = re.sub(r'("(?:train|test)/(?:accuracy|loss)": )([\d.]+)',
                      lambda found, factor=factor: f"{found[1]}{factor * float(found[2])}",
                      "\n".join(lines[:3 - seed]))
        (folder / "metrics.jsonl").write_text(text + "\n")
        runs.append(Run(folder))
    return runs


def test_the_line_is_the_mean_and_the_band_the_deviation(group):
    figure = Runs(group).visualize("curve_band")
    loss, accuracy = figure.axes
    for axes, quantity, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        for line, band, split in zip(axes.lines[3::4], axes.collections, ("train", "test"), strict=True):
            values = [[scale * epoch[f"{split}/{quantity}"] for epoch in run.metrics] for run in group]
            first = [row[0] for row in values]
            second = [row[1] for row in values if len(row) > 1]
            mean, deviation = (np.array([way(first), way(second)]) for way in (
                np.mean, lambda row: np.std(row, ddof=1)))
            assert np.allclose(line.get_ydata(), mean)
            edges = band.get_paths()[0].vertices
            for step in (1, 2):
                at = edges[np.isclose(edges[:, 0], step)][:, 1]
                assert at.min() == pytest.approx((mean - deviation)[step - 1])
                assert at.max() == pytest.approx((mean + deviation)[step - 1])
    last = [100 * run.metrics[-1]["test/accuracy"] for run in group]
    assert f"test accuracy {np.mean(last):.2f} ± {np.std(last, ddof=1):.2f} %" in figure.caption


def test_runs_that_differ_otherwise_have_no_band(run, painted):
    with pytest.raises(RunError, match="differs from .* in .*; a band is of runs that differ by seed"):
        Runs([run, painted]).visualize("curve_band")


def test_a_run_without_epochs_has_no_curves(group):
    (group[1].folder / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="has no finished epoch"):
        Runs(group).visualize("curve_band")
