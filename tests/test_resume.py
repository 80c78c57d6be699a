"""resume="auto": which run is gone on with. That it then ends alike to the bit, test_trainer tells."""

import dataclasses

import numpy as np
import pytest
import torch

from cvkit.config import load_config
from cvkit.errors import CheckpointError, RunError
from cvkit.registry import SCHEDULERS
from cvkit.resume import newest_run_of
from cvkit.run import Run, find_runs
from cvkit.trainer import Trainer, train


@pytest.fixture
def tiny(quick):
    return quick


def interrupted(config):
    trainer = Trainer(config)
    trainer._is_finished = lambda: trainer.epoch >= 1
    return trainer.train()


def test_auto_begins_a_run_goes_on_with_it_and_opens_it(tiny):
    config = load_config(tiny)
    whole = train(config, resume="auto")
    assert len(find_runs()) == 1
    part = interrupted(load_config(tiny, {"SEED": 1}))
    assert train(config, resume="auto").folder == whole.folder  # the newest of the same settings
    longer = load_config(tiny, {"SEED": 1, "WRITERS": [{"NAME": "tensorboard", "pictures": False}]})
    again = train(longer, resume="auto")
    assert again.folder == part.folder and len(again.metrics) == 2 and len(find_runs()) == 2
    straight = train(load_config(tiny, {"SEED": 1}))
    for name, weight in straight.checkpoint().model.items():
        assert torch.equal(weight, again.checkpoint().model[name]), name
    assert train(load_config(tiny, {"OPTIMIZER.lr": 0.01}), resume="auto").folder not in (
        whole.folder, part.folder, straight.folder)


@pytest.mark.parametrize("factor, is_taken", [(1 + 1e-15, True), (1.001, False)])
def test_a_mean_that_was_rounded_differently_is_the_same_and_another_one_is_refused(
        tiny, factor, is_taken):
    run = interrupted(load_config(tiny))
    checkpoint = run.checkpoint("last")
    run.save(dataclasses.replace(checkpoint, mean=[value * factor for value in checkpoint.mean]))
    if is_taken:
        assert len(train(load_config(tiny), resume=run.folder).metrics) == 2
    else:
        with pytest.raises(CheckpointError, match="was trained on other images: their mean was"):
            train(load_config(tiny), resume=run.folder)


def test_auto_takes_up_a_run_whose_rate_was_found(tiny):
    config = load_config(tiny, {"SCHEDULER": {"NAME": "OneCycleLR", "max_lr": "find"}})
    part = interrupted(config)
    again = train(config, resume="auto")
    assert again.folder == part.folder and len(again.metrics) == 2


def test_auto_is_a_word_of_the_command_line_too(tiny, tool):
    for count in (1, 1):
        code, out, err = tool("train.py", tiny, "--resume", "auto")
        assert code == 0 and len(find_runs()) == count, err
    assert "is finished: 2 epochs" in out


def test_auto_knows_a_scheduler_of_one_s_own(tiny, tmp_path):
    (tmp_path / "halving_rate.py").write_text(
        "from torch.optim import lr_scheduler\nfrom cvkit import SCHEDULERS\n\n"
        "@SCHEDULERS.register()\ndef HalvingRate(optimizer):\n"
        "    return lr_scheduler.ExponentialLR(optimizer, 0.5)\n")
    config = load_config(tiny, {"IMPORTS": [str(tmp_path / "halving_rate.py")],
                                "SCHEDULER": {"NAME": "HalvingRate"}})
    first = train(config, resume="auto")
    assert train(config, resume="auto").folder == first.folder
    assert first.metrics[1]["lr"] == first.metrics[0]["lr"] / 2
    SCHEDULERS._entries.pop("HalvingRate")


def test_a_run_that_was_looked_at_shows_its_new_weights_when_it_went_on(tiny):
    run = interrupted(load_config(tiny))
    before = run.model.conv.weight.clone()
    Trainer(load_config(tiny)).train(run)
    assert torch.equal(run.model.conv.weight.cpu(), run.checkpoint().model["conv.weight"])
    assert not torch.equal(run.model.conv.weight, before)


def test_a_run_from_when_seed_made_the_split_too_keeps_its_split(tiny, capsys):
    settings = {"SEED": 3, "DATA.VAL_FRACTION": 0.2, "DATA.LIMIT": 60}
    part = interrupted(load_config(tiny, {**settings, "DATA.SPLIT_SEED": 3}))
    path = part.folder / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("  SPLIT_SEED: 3\n", ""))  # which it did not have then
    opened = Run(part.folder)
    assert "SPLIT_SEED" not in path.read_text() and opened.config.DATA.SPLIT_SEED == 3
    assert load_config(path, {"SEED": 5}).DATA.SPLIT_SEED == 3
    for name in ("train", "val", "test"):
        assert np.array_equal(getattr(opened.data, name).index, getattr(part.data, name).index)
    # Under the config that it began with it would be split by the new key.
    with pytest.raises(RunError, match=r"DATA\.SPLIT_SEED: 3 in the run, 0 now\n.*config\.yaml --resume"):
        train(load_config(tiny, settings), resume=part.folder)
    capsys.readouterr()
    assert newest_run_of(load_config(tiny, settings)) is None
    assert f"note       {part.folder} is left out: it was split by another seed; to go on with it, add " \
           "DATA.SPLIT_SEED 3" in capsys.readouterr().out
    again = train(load_config(path), resume=part.folder)
    assert len(again.metrics) == 2 and "  SPLIT_SEED: 3\n" in path.read_text()
