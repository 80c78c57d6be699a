"""resume="auto": which run is gone on with. That it then ends alike to the bit, test_trainer tells."""

import torch

from cvkit.config import load_config
from cvkit.registry import SCHEDULERS
from cvkit.run import find_runs
from cvkit.trainer import Trainer, train


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
    before = run.model.conv1.weight.clone()
    Trainer(load_config(tiny)).train(run)
    assert torch.equal(run.model.conv1.weight.cpu(), run.checkpoint().model["conv1.weight"])
    assert not torch.equal(run.model.conv1.weight, before)
