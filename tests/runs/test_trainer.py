import contextlib
import json
import math
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import EVERYTHING, before_each_step, equal, train_until, without_times
from torch import nn

from cvkit.config import load_config
from cvkit.data import ImageData, ImageSet
from cvkit.errors import CheckpointError, ConfigError, DataError, RunError
from cvkit.evaluation.predict import predict
from cvkit.evaluation.run_evaluation import evaluate
from cvkit.registry import DATASETS, LOSSES, METRICS, MODELS, WRITERS
from cvkit.reporting.report import write_report
from cvkit.runs.compare import Runs
from cvkit.runs.experiment import Experiment
from cvkit.runs.folder import Run, open_run
from cvkit.session import build_trainer, check, train

VARIANTS = {
    "plain": {},
    "one cycle": {"SCHEDULER": {"NAME": "OneCycleLR", "max_lr": 0.1}},
    "plateau": {"SCHEDULER": {"NAME": "ReduceLROnPlateau", "patience": 0, "factor": 0.5}},
    "step": {"SCHEDULER": {"NAME": "StepLR", "step_size": 1}, "DATA.WORKERS": 2,
             "DATA.PIPELINE": "albumentations"},
    "everything": {**EVERYTHING, "SCHEDULER": {"NAME": "CosineAnnealingLR"}},
    "validation": {"DATA.VAL_FRACTION": 0.2, "TRAIN.EMA_DECAY": 0.5},
    "dropout": {"MODEL": {"NAME": "with_dropout"}, "TRAIN.PRECISION": "fp32",
                "DATA.WORKERS": 1, "DATA.PIPELINE": "albumentations"},
}


@pytest.fixture
def own_models():

    @MODELS.register()
    class with_dropout(nn.Sequential):  # noqa: N801
        def __init__(self, num_classes):
            super().__init__(nn.Flatten(), nn.Linear(3 * 32 * 32, 32), nn.ReLU(), nn.Dropout(0.5),
                             nn.Linear(32, num_classes))


@contextlib.contextmanager
def interrupt_in_epoch(monkeypatch, number):
    """Make training stop as Ctrl-C does, in the middle of an epoch."""
    calls = []

    def act(trainer, batch):
        calls.append(trainer.state.epoch)
        if calls.count(number - 1) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        before_each_step(patched, act)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(quick, monkeypatch, own_models,
                                                                  variant):
    config = load_config(quick, {"TRAIN.EPOCHS": 4, **VARIANTS[variant]})
    whole = train(config)
    with interrupt_in_epoch(monkeypatch, 3):
        train(config)
    broken = open_run()
    assert broken.folder != whole.folder and broken.checkpoint("last").epoch == 2
    resumed = train(config, resume=True)
    assert resumed.folder == broken.folder
    for name in ("last", "best"):
        ours, theirs = whole.checkpoint(name), resumed.checkpoint(name)
        assert equal(vars(ours), vars(theirs)), name
    assert without_times(resumed.metrics) == without_times(whole.metrics)
    assert len(resumed.metrics) == 4
    assert np.array_equal(resumed.predictions.probabilities, whole.predictions.probabilities)


def test_the_gradient_scaler_of_fp16_is_resumed_too(quick, monkeypatch):
    """On a CPU, where fp16 is only refused because it is slow and no use."""
    monkeypatch.setattr("cvkit.runs.experiment.choose_precision", lambda *args: "fp16")
    config = load_config(quick, {"TRAIN.EPOCHS": 3, "TRAIN.CLIP_GRAD_NORM": 1.0})
    whole = train(config)
    with interrupt_in_epoch(monkeypatch, 2):
        train(config)
    resumed = train(config, resume=True)
    assert resumed.checkpoint("last").training["scaler"]["scale"] > 1
    assert equal(vars(whole.checkpoint("last")), vars(resumed.checkpoint("last")))
    assert whole.metrics[-1]["train/loss"] < whole.metrics[0]["train/loss"]


def edit_checkpoint(run, change):
    """Change what a run's last checkpoint says of the training's state."""
    path = run.folder / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    change(content["training"])
    torch.save(content, path)


def test_a_run_of_an_older_version_is_resumed_with_fused_kernels(quick, monkeypatch):
    """Which a gradient scaler counts on; older checkpoints do not know them."""
    monkeypatch.setattr("cvkit.runs.experiment.choose_precision", lambda *args: "fp16")
    run = train(load_config(quick, {"TRAIN.EPOCHS": 1}))
    edit_checkpoint(run, lambda state: state["optimizer"]["param_groups"][0].update(fused=None))
    resumed = train(load_config(quick, {"TRAIN.EPOCHS": 2}), resume=True)
    assert len(resumed.metrics) == 2
    assert resumed.checkpoint("last").training["optimizer"]["param_groups"][0]["fused"] is True


@pytest.mark.parametrize("change", [
    lambda state: state.pop("backend"),  # as older versions wrote it, which had no other
    lambda state: state.update(backend="albumentations")], ids=["older", "other memory"])
def test_a_run_is_not_resumed_with_other_random_numbers(quick, change):
    run = train(load_config(quick, {"TRAIN.EPOCHS": 1}))
    edit_checkpoint(run, change)
    longer = {"TRAIN.EPOCHS": 2}
    with pytest.raises(RunError) as caught:
        train(load_config(quick, longer), resume=True)
    assert "was trained with DATA.PIPELINE albumentations; batched draws other" in str(caught.value)
    assert "Add DATA.PIPELINE albumentations" in str(caught.value)
    train(load_config(quick, {**longer, "DATA.PIPELINE": "albumentations"}), resume=True)
    assert len(open_run().metrics) == 2


def test_the_same_seed_repeats_a_run_and_another_does_not(quick):
    runs = [train(load_config(quick, {"SEED": seed})) for seed in (3, 3, 4)]
    weights = [run.checkpoint("last").model["fc.weight"] for run in runs]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_trainer_does_what_a_hand_written_loop_does(tiny):
    """Same data, same order, same mathematics in the same order: the same weights, to the bit."""
    config = load_config(tiny, {"TRAIN.PRECISION": "fp32", "DATA.TRAIN_TRANSFORMS": [],
                                "DEVICE": "cpu",
                                "SCHEDULER": {"NAME": "OneCycleLR", "max_lr": 0.1}})
    run = train(config)
    torch.manual_seed(0)
    model = MODELS.build(config.MODEL, num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    data = build_trainer(config).data
    images = torch.stack([torch.from_numpy(data.train.image(n)) for n in range(150)])
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    images = (images * (1 / (255 * std)) - mean / std).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(data.train.labels)
    losses = []
    for epoch in range(2):
        total = 0.0
        for places in torch.from_numpy(np.random.default_rng([0, epoch]).permutation(150)).split(32):
            loss = nn.functional.cross_entropy(model(images[places]), labels[places])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            total += float(loss.detach()) * len(places)
        losses.append(total / 150)
    for name, value in run.checkpoint("last").model.items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert [epoch["train/loss"] for epoch in run.metrics] == pytest.approx(losses, rel=1e-6)


def test_accumulated_batches_step_as_one_large_batch(tiny):
    """With a model without batch statistics, 5 batches of 32 in one step are a batch of 150."""
    common = {"TRAIN.PRECISION": "fp32", "DATA.TRAIN_TRANSFORMS": [], "TRAIN.EPOCHS": 1,
              "MODEL.norm": "layer"}
    large = train(load_config(tiny, {**common, "DATA.BATCH_SIZE": 150}))
    small = train(load_config(tiny, {**common, "DATA.BATCH_SIZE": 32, "TRAIN.ACCUMULATE": 8}))
    for name, value in large.checkpoint("last").model.items():
        assert torch.allclose(value, small.checkpoint("last").model[name], atol=1e-5), name


def test_gradients_are_clipped(tiny):
    trainer = build_trainer(load_config(tiny, {"TRAIN.CLIP_GRAD_NORM": 0.01, "TRAIN.PRECISION": "fp32"}))
    norms = []
    trainer.state.optimizer.register_step_pre_hook(lambda optimizer, *_: norms.append(float(
        torch.linalg.vector_norm(torch.cat([parameter.grad.flatten() for parameter in
                                            trainer.state.model.parameters()])))))
    trainer.train_epoch()
    assert len(norms) == 5 and max(norms) <= 0.0101


def test_averaged_weights_are_what_is_evaluated_and_saved(quick, monkeypatch):
    states = []
    before_each_step(monkeypatch, lambda trainer, batch: states.append(trainer.state))
    run = train(load_config(quick, {"TRAIN.EMA_DECAY": 0.9}))
    checkpoint = run.checkpoint("last")
    averaged, trained = states[0].ema.model.state_dict(), states[0].model.state_dict()
    assert equal(checkpoint.model, dict(averaged))
    assert not equal(checkpoint.model["fc.weight"], trained["fc.weight"])
    assert equal(checkpoint.training["ema"]["model"], dict(trained))


def test_early_stop_ends_the_run_and_every_figure_says_its_epoch(quick, capsys, draws_only):
    overrides = {"TRAIN.EARLY_STOP": 2, "TRAIN.EPOCHS": 30, "OPTIMIZER.lr": 1e-9,
                 "TRAIN.MONITOR": "accuracy"}
    run = train(load_config(quick, overrides))
    accuracies = [epoch["test/accuracy"] for epoch in run.metrics]
    best = accuracies.index(max(accuracies))
    assert len(accuracies) == best + 3 < 30
    assert run.checkpoint("best").epoch == best + 1
    log = (run.folder / "train.log").read_text()
    assert f"Stopped early after epoch {len(run.metrics)}: no better accuracy for 2 epochs" in log
    assert train(load_config(quick, overrides), resume=True).metrics == run.metrics  # and stays so
    of_both = (f"Results and pictures are of the model after epoch {best + 3} (last.pt); best.pt is "
               f"of epoch {best + 1}, chosen by its test accuracy")
    evaluate(run)
    assert of_both in log and of_both in capsys.readouterr().out
    draws_only()
    write_report(run)
    assert f"\n{of_both}.\n" in (run.folder / "README.md").read_text().replace("\\", "")
    cells = re.split(" {2,}", Runs([run, run]).table().splitlines()[2])
    assert cells[1:6] == [f"{100 * run.predictions.accuracy:.2f} %", f"{run.predictions.loss:.4f}",
                          f"{100 * accuracies[best]:.2f} %", f"{100 * run.metrics[-1]['train/accuracy']:.2f} %",
                          str(best + 3)]


@pytest.mark.parametrize("monitor, better", [("loss", min), ("accuracy", max), ("top3", max)])
def test_best_follows_the_monitor(quick, monitor, better):
    run = train(load_config(quick, {
        "TRAIN.MONITOR": monitor, "TRAIN.EPOCHS": 4, "METRICS": [{"NAME": "TopKAccuracy", "k": 3}]}))
    values = [epoch[f"test/{monitor}"] for epoch in run.metrics]
    assert run.checkpoint("best").epoch == values.index(better(values)) + 1


def test_with_validation_data_the_test_set_is_seen_once_with_the_best_weights(quick):
    run = train(load_config(quick, {"DATA.VAL_FRACTION": 0.2, "TRAIN.EPOCHS": 3, "DATA.LIMIT": 0,
                                   "DATA.BATCH_SIZE": 128}))
    assert not any(key.startswith("test/") for epoch in run.metrics for key in epoch)
    assert all("val/accuracy" in epoch for epoch in run.metrics)
    best = max(run.metrics, key=lambda epoch: epoch["val/accuracy"])["epoch"]
    assert run.predictions.epoch == run.checkpoint().epoch == best
    assert set(run.predictions.index) == set(DATASETS.build("Digits").test.index)
    log = (run.folder / "train.log").read_text()
    assert "results are those of the best epoch" in log and "the test set" not in log


def test_without_validation_data_the_log_says_what_is_monitored(quick):
    run = train(load_config(quick))
    assert "the test set (DATA.VAL_FRACTION is 0)" in (run.folder / "train.log").read_text()
    assert run.predictions.epoch == 2 == run.checkpoint().epoch


def test_the_run_folder_has_what_it_should(quick):
    run = train(load_config(quick, {"WRITERS": [{"NAME": "tensorboard"}]}))
    names = {path.name for path in run.folder.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(events) == 1 and names - events == {
        "config.yaml", "train.log", "metrics.jsonl", "environment.txt", "checkpoints",
        "predictions.npz"}
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == {
        "last.pt", "best.pt", "previous.pt"}
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]
    assert set(records[0]) == {"epoch", "lr", "seconds", "images_per_second", "train/loss",
                               "train/accuracy", "test/loss", "test/accuracy", "lower_is_better",
                               "rates"}
    assert [record["rates"] for record in records] == [
        [[step, 0.05] for step in range(5)], [[step, 0.05] for step in range(5, 10)]]
    lines = (run.folder / "train.log").read_text().splitlines()
    epochs = [line for line in lines if line.startswith("Epoch")]
    assert len(epochs) == 2 and all(re.fullmatch(
        r"Epoch \d/2  train loss \d+\.\d{4} acc +\d+\.\d\d%  test loss \d+\.\d{4} acc +\d+\.\d\d%  "
        r"lr \S+ +\d+\.\d s(  best)?", line) for line in epochs)
    assert not any("\x1b" in line or "\r" in line for line in lines)
    assert "command: " in (run.folder / "environment.txt").read_text()


def test_writers_are_told_of_each_epoch_then_of_the_saved_run_then_closed(quick, monkeypatch):
    calls = []

    @WRITERS.register()
    class Notes:
        def __init__(self, folder):
            pass

        def write(self, step, values):
            calls.append(step)

        def finish(self, run):
            calls.append(run.predictions.accuracy)

        def close(self):
            calls.append("closed")

    config = load_config(quick, {"WRITERS": [{"NAME": "Notes"}]})
    run = train(config)
    assert calls == [1, 2, run.predictions.accuracy, "closed"]
    with interrupt_in_epoch(monkeypatch, 2):
        train(config)
    assert calls[4:] == [1, "closed"]


def test_a_trained_run_does_not_read_its_images_again(quick, monkeypatch):
    run = train(load_config(quick))
    again = Run(run.folder)
    theirs = [again.loaders.test.take(range(8)), again.loaders.train.first_batch()]
    monkeypatch.setattr("cvkit.runs.experiment.build_data", lambda config: pytest.fail("read again"))
    ours = [run.loaders.test.take(range(8)), run.loaders.train.first_batch()]
    assert all(equal(list(batch), list(same)) for batch, same in zip(ours, theirs))
    assert run.visualize("misclassified").caption == again.visualize("misclassified").caption


def test_the_log_says_what_tells_runs_apart(quick):
    run = train(load_config(quick, {"TRAIN.EMA_DECAY": 0.9, "SEED": 3, "TRAIN.EPOCHS": 1,
                                   "SCHEDULER": {"NAME": "OneCycleLR", "max_lr": 0.2},
                                   "DATA.TRAIN_TRANSFORMS.0.size": 24}))
    log = (run.folder / "train.log").read_text()
    assert "150 train, 150 test (DATA.LIMIT 150), 10 classes, 3×32×32" in log
    assert ("1 epoch of 5 batches of 32, CrossEntropyLoss, SGD, OneCycleLR up to 0.2 (not "
            "OPTIMIZER.lr), momentum 0.85 to 0.95, seed 3, EMA 0.9 of the weights is tested") in log
    assert "note       training images are 3×24×24, test images 3×32×32" in log


def test_the_time_of_a_resumed_run_is_that_of_all_its_epochs(quick):
    train(load_config(quick))
    run = train(load_config(quick, {"TRAIN.EPOCHS": 3}), resume=True)
    seconds = sum(epoch["seconds"] for epoch in run.metrics)
    assert f"3 epochs, {seconds:.1f} s of training" in (run.folder / "train.log").read_text()


def test_the_screen_says_where_everything_is_and_what_to_run_next(quick, capsys):
    run = train(load_config(quick))
    last = capsys.readouterr().out.splitlines()[-3:]
    assert str(run.folder) in last[0]
    assert last[1:] == [f"Per class: python tools/evaluate.py --run {run.folder}",
                        f"Pictures:  python tools/visualize.py --run {run.folder}"]


def test_a_non_finite_loss_stops_the_run_and_names_its_place(quick):

    @LOSSES.register()
    class Breaks(nn.Module):
        calls = 0

        def forward(self, logits, labels):
            self.calls += self.training
            loss = nn.functional.cross_entropy(logits, labels)
            return loss / 0 if self.calls == 8 else loss  # epoch 2, batch 3

    with pytest.raises(RunError, match="no longer finite in epoch 2, batch 3 of 5") as caught:
        train(load_config(quick, {"LOSS": {"NAME": "Breaks"}}))
    assert "TRAIN.CLIP_GRAD_NORM" in str(caught.value)
    run = open_run()
    assert run.checkpoint("last").epoch == 1 and len(run.metrics) == 1
    assert all(value.isfinite().all() for value in run.checkpoint("last").model.values())
    assert "no longer finite" in (run.folder / "train.log").read_text()


def test_check_tries_a_batch_and_writes_nothing(quick, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    check(load_config(quick))
    assert sorted(tmp_path.rglob("*")) == before
    text = capsys.readouterr().out
    assert "one batch of 32: loss " in text and "guessing gives 2.3026" in text
    assert "All is well; nothing was written." in text


# -- resuming what cannot be resumed ---------------------------------------------------------


def test_a_run_interrupted_at_its_very_end_gets_its_predictions(quick, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    finish = Run.keep_predictions
    monkeypatch.setattr(Run, "keep_predictions", stop)
    with pytest.raises(KeyboardInterrupt):
        train(load_config(quick))
    monkeypatch.setattr(Run, "keep_predictions", finish)
    run = train(load_config(quick), resume=True)
    assert run.predictions.accuracy == run.metrics[-1]["test/accuracy"]
    monkeypatch.setattr(Run, "keep_predictions", stop)
    with pytest.raises(KeyboardInterrupt):
        train(load_config(quick, {"TRAIN.EPOCHS": 3}), resume=True)
    with pytest.raises(RunError, match="is of the model after epoch 2; .* saved after epoch 3"):
        _ = Run(run.folder).predictions  # of an earlier end
    train(load_config(quick, {"TRAIN.EPOCHS": 3}), resume=True)
    assert run.predictions.epoch == 3


def test_a_finished_run_is_left_as_it_is(quick, capsys):
    config = load_config(quick, {"WRITERS": [{"NAME": "tensorboard"}]})
    run = train(config)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    assert train(config, resume=True).folder == run.folder
    assert "is finished: 2 epochs" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_a_finished_run_can_be_trained_longer_where_nothing_was_planned_for_its_length(quick):
    short = train(load_config(quick))
    longer = train(load_config(quick, {"TRAIN.EPOCHS": 4}), resume=True)
    assert longer.folder == short.folder and len(longer.metrics) == 4
    assert open_run(longer.folder).config.TRAIN.EPOCHS == 4  # its own config goes on from here
    whole = train(load_config(quick, {"TRAIN.EPOCHS": 4}))
    assert equal(longer.checkpoint("last").model, whole.checkpoint("last").model)
    one_cycle = {"SCHEDULER": {"NAME": "OneCycleLR", "max_lr": 0.1}}
    train(load_config(quick, one_cycle))
    with pytest.raises(RunError, match="TRAIN.EPOCHS: 2 in the run, 4 now; OneCycleLR was planned"):
        train(load_config(quick, {**one_cycle, "TRAIN.EPOCHS": 4}), resume=True)


@pytest.mark.parametrize("change, expected", [
    ({"MODEL.width": 8}, "MODEL.width: 4 in the run, 8 now"),
    ({"MODEL": {"NAME": "resnet34", "width": 4}}, "MODEL.NAME: resnet18 in the run, resnet34 now"),
    ({"OPTIMIZER.weight_decay": 0.1}, "OPTIMIZER.weight_decay: not set in the run, 0.1 now"),
    ({"SEED": 1}, "SEED: 0 in the run, 1 now")])
def test_a_run_of_another_config_is_not_resumed(run, tiny, change, expected):
    with pytest.raises(RunError) as caught:
        train(load_config(tiny, change), resume=run.folder)
    assert expected in str(caught.value) and "cannot be resumed with another config" in str(
        caught.value)
    train(load_config(tiny, {"DATA.WORKERS": 1, "DEVICE": "cpu"}), resume=run.folder)  # may differ


def test_weights_of_another_model_are_not_resumed(run, tiny):
    other = train(load_config(tiny, {"MODEL.width": 8}))
    (other.folder / "checkpoints" / "last.pt").replace(run.folder / "checkpoints" / "last.pt")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        train(load_config(tiny, {"TRAIN.EPOCHS": 3}), resume=run.folder)


def test_no_run_to_resume(quick):
    with pytest.raises(RunError, match="no run of tiny with a checkpoint"):
        train(load_config(quick), resume=True)
    with pytest.raises(RunError, match="no run runs/gone"):
        train(load_config(quick), resume="runs/gone")


def test_an_unknown_monitor_is_refused_before_training(quick):
    with pytest.raises(ConfigError, match="TRAIN.MONITOR: no metric named 'top5'"):
        build_trainer(load_config(quick, {"TRAIN.MONITOR": "top5"}))


# -- real training ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_main_config_learns_on_real_cifar_pictures(cifar_images):
    from conftest import ROOT

    config = load_config(ROOT / "configs" / "resnet18_cifar10.yaml", [
        "DATA.DATASET.NAME", "ImageFolder", "DATA.DATASET.root", str(cifar_images),
        "TRAIN.EPOCHS", "2", "MODEL.width", "16", "REQUIRE", "null"])
    run = train(config)
    losses = [epoch["train/loss"] for epoch in run.metrics]
    assert losses[-1] < losses[0] - 0.15
    assert run.predictions.accuracy > 0.25  # guessing: 0.10; 0.32 and 0.33 with seeds 0 and 1
    assert len(run.predictions.true) == 1000


def test_the_deterministic_switch_is_thrown_and_taken_back(quick):
    assert not torch.are_deterministic_algorithms_enabled()
    train(load_config(quick, {"DETERMINISTIC": True, "TRAIN.EPOCHS": 1}))
    assert torch.are_deterministic_algorithms_enabled()
    build_trainer(load_config(quick))
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_a_compiled_model_trains_as_the_plain_one_does_and_resumes_exactly(tiny):
    own = {"TRAIN.PRECISION": "fp32", "DATA.LIMIT": 80, "MODEL": {  # 80: the last batch is short
        "NAME": "vit", "patch": 16, "depth": 1, "width": 16, "heads": 2}}

    def weights(resume=False, **settings):
        torch.compiler.reset()  # as in a process of its own
        return train(load_config(tiny, {**own, **settings}), resume).checkpoint("last").model

    plain = weights(**{"TRAIN.EPOCHS": 2})
    compiled = weights(**{"TRAIN.EPOCHS": 2, "TRAIN.COMPILE": True})
    assert compiled.keys() == plain.keys()  # not those of torch's wrapper
    assert all(torch.allclose(compiled[name], plain[name], atol=1e-4) for name in plain)
    weights(**{"TRAIN.EPOCHS": 1, "TRAIN.COMPILE": True})
    assert equal(weights(True, **{"TRAIN.EPOCHS": 2, "TRAIN.COMPILE": True}), compiled)


def test_a_machine_without_a_compiler_is_told_so(quick, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(ConfigError) as caught:
        build_trainer(load_config(quick, ["TRAIN.COMPILE", "true"]))
    assert str(caught.value).startswith(
        "command line TRAIN.COMPILE: torch.compile does not work here: No working C++ compiler found")


def register_metric(computed, **attributes):

    @METRICS.register()
    class Own:
        def update(self, logits, labels):
            pass

        def compute(self):
            return computed() if callable(computed) else computed

    for name, value in attributes.items():
        setattr(Own, name, value)


@pytest.mark.parametrize("attributes, expected", [
    ({"lower_is_better": {"own_error"}}, 3), ({}, 2)])
def test_a_metric_says_whether_best_is_the_lowest_or_the_highest(quick, attributes,
                                                                 expected):
    values = iter([0, 5, 7, 3, 4])  # the first of the check before training
    register_metric(lambda: {"own_error": next(values)}, **attributes)
    run = train(load_config(quick, {"METRICS": [{"NAME": "Own"}], "TRAIN.EPOCHS": 4, "DATA.LIMIT": 60,
                                   "TRAIN.MONITOR": "own_error"}))
    assert run.best["epoch"] == run.checkpoint("best").epoch == expected
    log = (run.folder / "train.log").read_text()
    assert ("metric Own has no lower_is_better: the highest own_error is taken" in log) == (
        not attributes)


@pytest.mark.parametrize("attributes, expected", [
    ({"lower_is_better": {"own_error"}}, 3), ({"lower_is_better": set()}, 2)])
def test_what_could_not_be_counted_at_first_is_not_the_best(quick, attributes, expected):
    values = iter([0, math.nan, 5, 3, math.nan])  # the first of the check before training
    register_metric(lambda: {"own_error": next(values)}, **attributes)
    run = train(load_config(quick, {"METRICS": [{"NAME": "Own"}], "TRAIN.EPOCHS": 4, "DATA.LIMIT": 60,
                                   "TRAIN.MONITOR": "own_error", "TRAIN.EARLY_STOP": 3}))
    assert run.best["epoch"] == run.checkpoint("best").epoch == expected


def test_a_run_that_took_the_wrong_end_for_the_best_looks_for_it_anew(quick):
    config = {"METRICS": [{"NAME": "Own"}], "DATA.LIMIT": 60, "TRAIN.MONITOR": "own_error"}
    values = iter([0, 7, 0, 6])
    for epochs, attributes in ((1, {}), (2, {"lower_is_better": True})):
        register_metric(lambda: {"own_error": next(values)}, **attributes)
        run = train(load_config(quick, {**config, "TRAIN.EPOCHS": epochs}), resume=epochs > 1)
    assert "the lowest own_error is the best now, before it was the other way round" in (
        run.folder / "train.log").read_text()
    assert run.best["epoch"] == run.checkpoint("best").epoch == 2


def test_the_losses_of_train_and_test_are_one_mean_over_the_weights_of_all_images(tiny):
    """On images of which one class has many: two splits alike, that the model sees alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 3), dtype=np.uint8)
    images = ImageSet.of(pixels, np.array([0] * 70 + [1] * 20))
    DATASETS.register("Uneven")(lambda: ImageData(("a", "b"), images, images, 3, (8, 8), (0.5,) * 3,
                                                  (0.3,) * 3))
    MODELS.register("flat")(lambda num_classes: nn.Sequential(nn.Flatten(),
                                                              nn.Linear(192, num_classes)))
    run = train(load_config(tiny, {
        "DATA.DATASET": {"NAME": "Uneven"}, "DATA.TRAIN_TRANSFORMS": [], "DATA.LIMIT": 0,
        "MODEL": {"NAME": "flat"}, "TRAIN.EPOCHS": 1, "OPTIMIZER": {"NAME": "SGD", "lr": 0.0},
        "LOSS": {"NAME": "CrossEntropyLoss", "weight": [1.0, 5.0]}, "TRAIN.PRECISION": "fp32"}))
    said = run.predictions
    expected = float(nn.functional.nll_loss(torch.from_numpy(said.probabilities).log(),
                                            torch.from_numpy(said.true), torch.tensor([1.0, 5.0])))
    assert run.metrics[0]["test/loss"] == pytest.approx(expected, rel=1e-4)
    assert run.metrics[0]["train/loss"] == pytest.approx(expected, rel=1e-4)


def test_a_class_called_error_is_better_when_more_of_it_is_right(quick):
    METRICS.register("Errors")(lambda: METRICS.get("PerClassAccuracy")(
        [f"{number}_error" for number in range(10)]))
    monitor = build_trainer(load_config(quick, {"METRICS": [{"NAME": "Errors"}],
                                         "TRAIN.MONITOR": "accuracy/3_error"})).monitor
    best = {"epoch": 1, "accuracy/3_error": 0.5}
    assert monitor.is_better({"accuracy/3_error": 0.6}, best, 2)
    assert not monitor.is_better({"accuracy/3_error": 0.4}, best, 2)


@pytest.mark.parametrize("value", [np.float64(0.5), np.float32(0.5), torch.tensor(0.5), 1, True])
def test_whatever_number_a_metric_returns_is_saved(quick, value):
    register_metric({"own": value})
    run = train(load_config(quick, {"METRICS": [{"NAME": "Own"}], "TRAIN.EPOCHS": 1}))
    assert run.metrics[0]["test/own"] == run.checkpoint("last").metrics["own"] == float(value)


@pytest.mark.parametrize("value", [[0.5], "0.5 %", {"own": [1, 2]}, None])
def test_a_metric_without_numbers_is_told_before_training(quick, value):
    register_metric(value)
    with pytest.raises(ConfigError, match="metric Own computes"):
        build_trainer(load_config(quick, {"METRICS": [{"NAME": "Own"}]}))


def test_a_run_goes_on_in_a_precision_with_a_gradient_scaler(quick, monkeypatch):
    """Begun where there is bf16, resumed on a GPU that has fp16 only."""
    train(load_config(quick, {"TRAIN.EPOCHS": 1}))
    monkeypatch.setattr("cvkit.runs.experiment.choose_precision", lambda *args: "fp16")
    resumed = train(load_config(quick, {"TRAIN.EPOCHS": 2}), resume=True)
    assert len(resumed.metrics) == 2 and resumed.checkpoint("last").training["scaler"]["scale"] > 1


# -- errors at unusual moments -----------------------------------------------------------------


# The first of equal epochs is the best; running means differ all the same.
VALIDATED = {"DATA.VAL_FRACTION": 0.2, "TRAIN.EPOCHS": 3, "TRAIN.EMA_DECAY": 0.5, "OPTIMIZER.lr": 1e-9}


def test_an_unreadable_test_image_at_the_very_end_leaves_the_last_checkpoint_as_it_was(quick, monkeypatch):
    """The best epoch's weights are loaded by then; they are not the last epoch's."""
    config = load_config(quick, {**VALIDATED, "TRAIN.PRECISION": "fp32"})
    whole = train(config)
    assert not equal(whole.checkpoint("best").model, whole.checkpoint("last").model)
    evaluations = []

    def fail(*args):
        evaluations.append(args)
        if len(evaluations) == 4:  # after those of three epochs
            raise DataError("a file is gone")
        return predict(*args)

    with monkeypatch.context() as patched:
        patched.setattr("cvkit.training.trainer.predict", fail)
        with pytest.raises(DataError, match="a file is gone"):
            train(config)
    broken = open_run()
    assert broken.folder != whole.folder
    assert equal(vars(broken.checkpoint("last")), vars(whole.checkpoint("last")))
    assert np.array_equal(train(config, resume=True).predictions.probabilities, whole.predictions.probabilities)


def test_a_data_error_before_the_first_batch_of_a_resumed_epoch_leaves_its_random_numbers(quick, monkeypatch):
    config = load_config(quick, {"MODEL": {"NAME": "small"}, "TRAIN.CHECKPOINT_EVERY": "1 step"})
    whole = train(config)
    with interrupt_in_epoch(monkeypatch, 2):
        train(config)
    before = open_run().checkpoint("last")
    assert before.batches == 2

    def fail(self, state):
        raise DataError("not now")

    with monkeypatch.context() as patched:
        patched.setattr("cvkit.reporting.console.Console.begin", fail)
        with pytest.raises(DataError, match="not now"):
            train(config, resume=True)
    assert equal(vars(open_run().checkpoint("last")), vars(before))
    assert equal(vars(train(config, resume=True).checkpoint("last")), vars(whole.checkpoint("last")))


def test_parts_that_are_given_again_begin_again(quick, tmp_path):
    """As where a cell of a notebook is run a second time."""
    config = load_config(quick, {"TRAIN.EPOCHS": 1})
    parts = Experiment(config)
    first, second = (train(config, parts=parts).checkpoint("last").model for _ in range(2))
    assert equal(first, second) and equal(first, dict(parts.model.state_dict()))
    check(config, parts)
    assert equal(first, dict(parts.model.state_dict()))  # and still is the one that was trained
    assert equal(train(config, parts=parts).checkpoint("last").model, first)
    train(config, resume=True, parts=parts)  # which is finished
    assert equal(train(config, parts=parts).checkpoint("last").model, first)

    torch.save(first, tmp_path / "weights.pt")
    config = load_config(quick, {"TRAIN.EPOCHS": 1, "MODEL.INIT_FROM": str(tmp_path / "weights.pt")})
    parts = Experiment(config)
    assert equal(dict(parts.model.state_dict()), first)
    third, fourth = (train(config, parts=parts).checkpoint("last").model for _ in range(2))
    assert equal(third, fourth) and not equal(third, first)


def test_weights_that_are_put_into_the_model_are_trained_on(quick):
    config = load_config(quick, {"TRAIN.EPOCHS": 1})
    parts, other = Experiment(config), Experiment(load_config(quick, {"SEED": 7})).model.state_dict()
    trained = []
    for _ in range(2):
        parts.model.load_state_dict(other)
        check(config, parts)
        trained.append(train(config, parts=parts).checkpoint("last").model)
    own = Experiment(config)
    own.model = Experiment(config).model
    own.model.load_state_dict(other)
    assert equal(trained, [train(config, parts=own).checkpoint("last").model] * 2)


def test_a_model_that_is_set_is_trained_itself(quick):
    config = load_config(quick, {"TRAIN.EPOCHS": 1})
    parts = Experiment(config)
    parts.model = model = Experiment(config).model
    run = train(config, parts=parts)
    assert parts.model is model
    assert equal(run.checkpoint("last").model, dict(model.state_dict()))


def test_loaders_that_are_given_accumulate_as_the_config_says(quick):
    config = load_config(quick, {"TRAIN.ACCUMULATE": 5, "TRAIN.EPOCHS": 1})
    run = train(config, parts=Experiment(load_config(quick)))
    assert run.checkpoint("last").training["schedule"]["steps"] == 1


def test_without_a_run_the_best_epoch_s_model_is_tested_as_well(quick):
    config = load_config(quick, VALIDATED)
    ours, theirs = build_trainer(config).train(), train(config).predictions
    assert ours.epoch == theirs.epoch and np.array_equal(ours.probabilities, theirs.probabilities)


def test_the_best_epoch_that_is_told_is_one_whose_weights_are_kept(quick, capsys):
    config = load_config(quick, {"TRAIN.EPOCHS": 4, "SCHEDULER": None})
    run = train_until(config, 2)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    lines[0]["test/accuracy"] = 0.99
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.checkpoints / "best.pt").write_bytes(b"damaged")
    run = train(config, resume=True)
    epoch = run.checkpoint("best").epoch
    assert epoch > 1 and f"in epoch {epoch}. 4 epochs" in capsys.readouterr().out


def test_an_epoch_may_take_less_time_than_a_coarse_clock_tells(quick, monkeypatch):
    """On Windows `time.monotonic` goes by steps of 16 ms before Python 3.13."""
    monkeypatch.setattr("cvkit.training.progress.time",
                        SimpleNamespace(monotonic=lambda: 5.0, perf_counter=time.perf_counter))
    assert all(epoch["seconds"] > 0 for epoch in train(load_config(quick)).metrics)
