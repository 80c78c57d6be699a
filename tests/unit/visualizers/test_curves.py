import json
import shutil

import numpy as np
import pytest

from cvkit.errors import RunError
from cvkit.runs.compare import Runs
from cvkit.runs.folder import Run


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title(loc="left") == title)


def rewrite(run, change):
    records = [{**record, **change(record)} for record in run.metrics]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(item) + "\n" for item in records))


def test_the_lines_are_the_numbers_in_the_log(run):
    figure = run.visualize("curves")
    metrics = run.metrics
    for title, quantity, scale in (("Train and test loss", "loss", 1),
                                   ("Train and test accuracy", "accuracy", 100)):
        drawn = lines(panel(figure, title))
        for split in ("train", "test"):
            assert drawn[split].get_xdata().tolist() == [1, 2]
            assert np.allclose(drawn[split].get_ydata(),
                               [scale * epoch[f"{split}/{quantity}"] for epoch in metrics])
    rate = panel(figure, "Learning rate").lines[0]
    assert rate.get_xdata().tolist() == list(range(10))  # optimizer steps, not epochs
    assert rate.get_ydata().tolist() == [0.05] * 10
    assert "after epoch 2" in figure.caption and f"{100 * metrics[-1]['test/accuracy']:.2f} %" in (
        figure.caption)


@pytest.mark.parametrize("layout", ["overlaid", "2x2"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 20])
def test_only_whole_epochs_and_steps_have_ticks(run, epochs, layout):
    records = [{**run.metrics[0], "epoch": number, "rates": [[number - 1, 0.1]]}
               for number in range(1, epochs + 1)]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(item) + "\n" for item in records))
    figure = run.visualize("curves", layout=layout)
    figure.draw_without_rendering()
    for axes in figure.axes:
        is_rate = axes.get_xlabel() == "optimizer step"
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        if epochs <= 3:
            assert ticks == [number - is_rate for number in range(1, epochs + 1)]
        assert ticks and all(tick == round(tick) for tick in ticks)
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert not any("." in label for label in labels)


def test_panels_of_one_measure_have_one_scale(run, painted):
    rewrite(run, lambda record: {"train/accuracy": 0.99, "test/accuracy": 0.12})
    for figure in (run.visualize("curves", layout="2x2"),
                   Runs([run, painted]).visualize("curves", layout="2x2")):
        limits = panel(figure, "Train accuracy").get_ylim()
        assert limits == panel(figure, "Test accuracy").get_ylim()
        assert limits[0] < 12 and 99 < limits[1] <= 102
        assert panel(figure, "Train loss").get_ylim() == panel(figure, "Test loss").get_ylim()


def test_a_perfect_accuracy_has_no_tick_beyond_100_percent(run):
    rewrite(run, lambda record: {"train/accuracy": 1.0, "test/accuracy": record["epoch"] - 1})
    axes = panel(run.visualize("curves"), "Train and test accuracy")
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert min(ticks) == 0 and max(ticks) == 100 and low < 0 and high > 100


def test_the_best_epoch_is_marked(run):
    rewrite(run, lambda record: {"test/accuracy": {1: 0.8, 2: 0.6}[record["epoch"]]})
    figure = run.visualize("curves")
    star = lines(panel(figure, "Train and test accuracy"))["best"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (1, 80)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["train", "test", "best epoch by test accuracy, 1: loss "
                     f"{run.metrics[0]['test/loss']:.4f}, accuracy 80.00 %"]


def test_2x2_has_a_panel_for_each(run):
    figure = run.visualize("curves", layout="2x2")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Train loss", "Test loss", "Train accuracy", "Test accuracy", "Learning rate"]
    assert panel(figure, "Train loss").get_ylim() == panel(figure, "Test loss").get_ylim()
    test = panel(figure, "Test accuracy").lines[0].get_ydata()
    assert np.allclose(test, [100 * epoch["test/accuracy"] for epoch in run.metrics])


def test_a_loss_that_explodes_does_not_flatten_the_rest(run):
    rewrite(run, lambda record: {"test/loss": 900.0 if record["epoch"] == 1 else 1.0})
    axes = panel(run.visualize("curves"), "Train and test loss")
    assert axes.get_yscale() == "log" and axes.get_ylabel() == "loss (log scale)"


def test_several_runs_are_overlaid_and_named(run, painted):
    figure = Runs([run, painted]).visualize("curves")
    drawn = lines(panel(figure, "Train and test loss"))
    assert {"tiny, train", "tiny, test", "painted, train", "painted, test"} <= set(drawn)
    assert np.allclose(drawn["painted, test"].get_ydata(),
                       [epoch["test/loss"] for epoch in painted.metrics])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["tiny, train", "tiny, test", "painted, train", "painted, test",
                      "best epoch by test accuracy"]
    assert panel(figure, "Learning rate").get_yscale() == "log"  # 0.05 beside 0.0001


def test_a_validation_split_is_called_so(run):
    records = [{name.replace("test/", "val/"): value for name, value in epoch.items()}
               for epoch in run.metrics]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(item) + "\n" for item in records))
    figure = run.visualize("curves")
    assert "val" in lines(panel(figure, "Train and val loss")) and ", val " in figure.caption


def test_a_run_without_a_finished_epoch_has_no_curves(run, tmp_path):
    (run.folder / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="no finished epoch"):
        run.visualize("curves")
    shutil.rmtree(run.folder)
    with pytest.raises(RunError):
        Run(run.folder)
