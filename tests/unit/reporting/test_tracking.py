"""A reporter to another program: told all that there is, and no failure of it stops a training."""

import subprocess
import sys

import pytest

from cvkit.config import load_config
from cvkit.errors import ConfigError
from cvkit.registry import WRITERS
from cvkit.reporting.tracking import Tracker
from cvkit.runs.finding import find_runs
from cvkit.runs.folder import open_run
from cvkit.session import check, train

CALLS = []
PICTURES = {"VISUALIZERS": [{"NAME": "curves"}, {"NAME": "misclassified", "count": 3}]}


class Noting(Tracker):
    """Notes what it is told; fails in the calls that its config names, the first times of each."""

    title, package = "Noting", "json"

    def __init__(self, folder, config, fails_in: list[str] | None = None, times: int = 1000,
                 pictures: bool = True, checkpoint: bool = True):
        super().__init__(folder, config, pictures, checkpoint)
        self.left = dict.fromkeys(fails_in or [], times)

    def _note(self, call, *facts):
        if self.left.get(call, 0):
            self.left[call] -= 1
            raise OSError(f"no {call}\nat all")
        CALLS.append((call, *facts))

    def start(self, known, epoch):
        self._note("start", known, epoch)
        return known or "id-1", max((call[1] for call in CALLS if call[0] == "add"), default=0)

    def add(self, epoch, values):
        self._note("add", epoch, sorted(values))

    def add_pictures(self, epoch, pictures):
        self._note("add_pictures", epoch, sorted(pictures))

    def add_files(self, names):
        self._note("add_files", names)

    def close(self, error):
        self._note("close", type(error).__name__)


@pytest.fixture(autouse=True)
def noting():
    WRITERS.register()(Noting)
    CALLS.clear()


def writer(**arguments):
    return {"WRITERS": [{"NAME": "Noting", **arguments}]}


VALUES = ["images_per_second", "lr", "seconds", "test/accuracy", "test/loss", "train/accuracy", "train/loss"]
FILES = ["config.yaml", "environment.txt", "train.log", "metrics.jsonl", "predictions.npz"]


def test_it_is_told_of_each_epoch_and_gets_pictures_and_files_at_the_end(quick):
    train(load_config(quick, {**writer(), **PICTURES}))
    assert CALLS == [("start", None, 0), ("add", 1, VALUES), ("add", 2, VALUES),
                     ("add_pictures", 2, ["misclassified"]),
                     ("add_files", [*FILES, "checkpoints/last.pt"]), ("close", "NoneType")]


def test_a_validated_run_also_has_its_test_and_the_best_weights(quick):
    config = load_config(quick, {**writer(pictures=False), **PICTURES, "DATA.VAL_FRACTION": 0.2})
    epoch = train(config).predictions.epoch
    assert CALLS[3:] == [("add", epoch, ["test/accuracy", "test/loss"]),
                         ("add_files", [*FILES, "checkpoints/best.pt"]), ("close", "NoneType")]
    train(load_config(quick, writer(checkpoint=False)))
    assert CALLS[-2] == ("add_files", FILES)


@pytest.mark.parametrize("calls", [["start"], ["add"], ["add_pictures"], ["add_files"], ["close"],
                                   ["start", "add", "add_pictures", "add_files", "close"]], ids=str)
def test_its_failures_cost_one_line_and_no_training(quick, capsys, calls):
    run = train(load_config(quick, {**writer(fails_in=calls), **PICTURES}))
    assert [epoch["epoch"] for epoch in run.metrics] == [1, 2] and run.predictions.epoch == 2
    line = (f"note       Noting failed, and the training goes on without it: OSError: no {calls[0]}")
    for text in (capsys.readouterr().out, (run.folder / "train.log").read_text()):
        assert text.splitlines().count(line) == text.count("Noting") == 1
    assert "Stopped" not in (run.folder / "train.log").read_text()


@pytest.mark.parametrize("call", ["start", "add"])
def test_what_it_left_out_is_made_up_for_at_the_end(quick, call):
    train(load_config(quick, {**writer(fails_in=[call], times=1), "TRAIN.EPOCHS": 3}))
    assert [each[:2] for each in CALLS if each[0] == "add"] == [("add", 1), ("add", 2), ("add", 3)]
    assert CALLS[-1] == ("close", "NoneType")


def test_a_resumed_run_goes_on_under_its_id(quick):
    @WRITERS.register()
    class Stops(Noting):
        def epoch(self, state, values):
            if state.epoch == 2:
                raise KeyboardInterrupt

    config = load_config(quick, {"WRITERS": [{"NAME": "Noting"}, {"NAME": "Stops"}], "TRAIN.EPOCHS": 3})
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert CALLS[-1] == ("close", "KeyboardInterrupt")
    [folder] = find_runs("runs")
    assert (folder / "json_id.txt").read_text() == "id-1"
    CALLS.clear()
    train(load_config(quick, {**writer(), "TRAIN.EPOCHS": 3}), resume=True)
    # The first add is of the epochs that were written before, which CALLS has forgotten.
    assert CALLS[0] == ("start", "id-1", 2) and [each[1] for each in CALLS if each[0] == "add"] == [1, 2, 3]
    (folder / "json_id.txt").write_text("' or 1=1")
    CALLS.clear()
    train(load_config(quick, {**writer(), "TRAIN.EPOCHS": 4}), resume=True)
    assert CALLS[0] == ("start", None, 3)


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_package_that_is_not_installed_is_refused_before_anything_is_written(
        quick, name, monkeypatch, tmp_path):
    config = load_config(quick, {"WRITERS": [{"NAME": name}]})
    monkeypatch.setitem(sys.modules, name, None)
    for begin in (train, check):
        with pytest.raises(ConfigError, match=rf"writer {name} needs {name}, which is not installed\n"
                                              rf"  pip install {name}"):
            begin(config)
    # W&B leaves a folder of its name where it is started, which Python takes for a package.
    monkeypatch.delitem(sys.modules, name)
    (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr("importlib.machinery.PathFinder.invalidate_caches", lambda *args: None)
    with pytest.raises(ConfigError, match="is not installed"):
        check(config)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("node, words", [
    ({"NAME": "mlflow", "uri": "a"}, "has no argument 'uri'"),
    ({"NAME": "mlflow", "experiment": 3}, "experiment.*str or null"),
    ({"NAME": "wandb", "mode": "of"}, "mode.*one of offline, online, disabled"),
    ({"NAME": "wandb", "folder": "a"}, "folder")])
def test_wrong_arguments_are_refused(quick, node, words):
    with pytest.raises(ConfigError, match=words):
        check(load_config(quick, {"WRITERS": [node]}))


def test_no_tracker_is_imported_before_it_is_needed(tiny):
    code = ("import sys; from cvkit import WRITERS, load_config; "
            f"load_config({str(tiny)!r}, {{'WRITERS': [{{'NAME': 'mlflow'}}, {{'NAME': 'wandb'}}]}}); "
            "print(WRITERS.own, {'mlflow', 'wandb'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['jsonl', 'mlflow', 'tensorboard', 'wandb'] set()\n"


def test_the_run_that_is_open_is_named_by_config_and_start(quick):
    run = train(load_config(quick, {"TRAIN.EPOCHS": 1}))
    made = WRITERS.build({"NAME": "Noting"}, folder=str(run.folder), config=open_run().config)
    assert made.name == f"tiny/{run.folder.name}"


def test_ctrl_c_while_files_are_sent_ends_the_run_there_too(quick, monkeypatch):
    def interrupted(tracker, names):
        raise KeyboardInterrupt

    monkeypatch.setattr(Noting, "add_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(load_config(quick, writer()))
    assert CALLS[-1] == ("close", "KeyboardInterrupt")
