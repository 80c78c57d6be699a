import copy
import math
import re

import pytest
import torch
from conftest import model_node
from helpers import equal, needs_time, train_until
from torch import nn

from cvkit.config import load_config
from cvkit.errors import ConfigError
from cvkit.models import build_model
from cvkit.models.torchvision_models import smallest_image
from cvkit.registry import MODELS
from cvkit.session import build_trainer, check, train
from cvkit.training.freezing import Freezing, build_freezing, learning_in_words
from cvkit.training.groups import parameter_groups
from cvkit.training.trainer import Trainer

HEAD = {"TRAIN.FREEZE": ["backbone"]}
# One of each family; the others have the same layers, more of them.
FAMILIES = {"Sequential", "airbench", "resnet18", "resnet9", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5",
            "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5", "regnet_y_400mf"}
TORCHVISION = [f"torchvision.models.{name}" if name in MODELS.own else name
               for name in [*MODELS.library[1], "resnet18", "resnet34"]]
EVERY = [*MODELS.own, *TORCHVISION]


def has_statistics(model):
    return any(isinstance(module, nn.modules.batchnorm._NormBase) for module in model.modules())


@pytest.fixture(scope="module")
def with_batchnorm():
    """The models of the registry that have a BatchNorm, found without drawing their weights."""
    with pytest.MonkeyPatch.context() as patched:
        for name in dir(nn.init):
            if re.fullmatch(r"[a-z]\w+_", name):
                patched.setattr(nn.init, name, lambda tensor, *arguments, **options: tensor)
        return {name for name in EVERY if has_statistics(MODELS.build(
            model_node(name), num_classes=3))}


def test_the_number_of_models_with_statistics(with_batchnorm):
    assert len(with_batchnorm) >= 55


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in FAMILIES else [pytest.mark.slow, needs_time]) for name in EVERY])
def test_frozen_is_frozen_in_every_model_with_statistics(name, with_batchnorm):
    """No parameter and no buffer moves but those of the head, in two steps of training."""
    if name not in with_batchnorm:
        pytest.skip("it has no statistics")
    torch.manual_seed(0)
    side = 32 if name in MODELS.own else max(64, *smallest_image(name))
    model = build_model(model_node(name), 3, (3, side, side))
    config = load_config("resnet18_cifar10", HEAD)
    freezing = build_freezing(config, model, (3, side, side))
    freezing.apply(model, 1)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1, momentum=0.9)
    for _ in range(2):
        freezing.hold(model.train(), 1)
        nn.functional.cross_entropy(model(torch.randn(2, 3, side, side)), torch.tensor([0, 2])).backward()
        optimizer.step()
    after = model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    learning = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved == learning and len(moved) == len({key.rpartition(".")[0] for key in moved}) + sum(
        key.endswith("bias") for key in moved)
    assert {id(parameter) for parameter in optimizer.state} == {
        id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_without_freezing_statistics_move():
    model = build_model({"NAME": "resnet18", "width": 4}, 3, (3, 32, 32))
    Freezing({}).hold(model, 1)
    assert all(module.training for module in model.modules())


def test_a_norm_without_parameters_is_frozen_with_what_is_around_it():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Dropout()),
                          nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    freezing = Freezing({"0.0.weight": math.inf, "0.0.bias": 3})
    freezing.hold(model.train(), 1)
    assert not model[0][1].training and model[1].training and model[0][2].training
    freezing.hold(model.train(), 3)
    assert model[0][1].training


def test_a_norm_that_holds_its_activation_is_frozen_too():
    """As timm's are made; what is in it stays in the mode that it has."""
    class Act(nn.BatchNorm2d):
        def __init__(self):
            super().__init__(4)
            self.drop, self.act = nn.Dropout(), nn.ReLU()

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Act(), nn.Flatten(), nn.Linear(4, 2))
    freezing = Freezing(dict.fromkeys(["0.weight", "0.bias", "1.weight", "1.bias"], math.inf))
    freezing.hold(model.train(), 1)
    assert not model[1].training and model[1].drop.training and model[3].training
    before = model[1].running_mean.clone()
    model(torch.randn(2, 3, 3, 3))
    assert torch.equal(model[1].running_mean, before)


UNFREEZING = {"TRAIN.FREEZE": ["backbone"], "TRAIN.UNFREEZE": {"2": ["norm"], "3": "all"}, "TRAIN.EPOCHS": 4}


def test_parts_learn_from_their_epoch_on(quick):
    config, seen = load_config(quick, {**UNFREEZING, "TRAIN.EMA_DECAY": 0.9}), []
    trainer = build_trainer(config)
    start = copy.deepcopy(trainer.state.model.state_dict())
    epoch = Trainer.train_epoch

    def noted(trainer):
        values = epoch(trainer)
        state = trainer.state.model.state_dict()
        seen.append({key.partition(".")[0] for key in state if not torch.equal(state[key], start[key])})
        return values

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "train_epoch", noted)
        trainer.train()
    everything = {"conv", "norm", "fc"}
    assert seen == [{"fc"}, {"norm", "fc"}, everything, everything]


FREEZING = {"TRAIN.FREEZE_FROM": {"2": ["conv"], "4": ["norm"]}, "TRAIN.EPOCHS": 4}


@pytest.mark.parametrize("settings, expected", [
    (FREEZING, [{"conv", "norm", "fc"}, {"norm", "fc"}, {"norm", "fc"}, {"fc"}]),
    ({"TRAIN.FREEZE": ["conv", "norm"], "TRAIN.UNFREEZE": {"2": "all"}, "TRAIN.FREEZE_FROM": {"3": ["all", "!fc"]},
      "TRAIN.EPOCHS": 3}, [{"fc"}, {"conv", "norm", "fc"}, {"fc"}])])
def test_parts_stop_learning_from_their_epoch_on(quick, monkeypatch, settings, expected):
    """Parameters, statistics of norms, and momentum too, which would move them on."""
    trainer, seen = build_trainer(load_config(quick, settings)), []
    epoch = Trainer.train_epoch

    def noted(trainer):
        before = copy.deepcopy(trainer.state.model.state_dict())
        values = epoch(trainer)
        state = trainer.state.model.state_dict()
        seen.append({key.partition(".")[0] for key in state if not torch.equal(state[key], before[key])})
        return values

    monkeypatch.setattr(Trainer, "train_epoch", noted)
    trainer.train()
    assert seen == expected


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_that_is_resumed_where_something_is_frozen_ends_the_same(quick, epoch):
    config = load_config(quick, {**FREEZING, "OPTIMIZER": {"NAME": "SGD", "lr": 0.02, "momentum": 0.9}})
    whole = train(config)
    again = train(config, resume=train_until(config, epoch).folder)
    ours, theirs = whole.checkpoint("last"), again.checkpoint("last")
    assert equal(ours.model, theirs.model) and equal(ours.training["optimizer"], theirs.training["optimizer"])


def test_what_never_learnt_is_not_let_loose_by_an_epoch_in_which_it_is_frozen():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    config = load_config("resnet18_cifar10", {"TRAIN.FREEZE_FROM": {"3": ["0"]}})
    freezing = build_freezing(config, model, (2,))
    assert freezing.since == {"0.bias": 3} and not freezing.apply(model, 1) and freezing.apply(model, 3)
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True]


def test_what_the_model_itself_has_frozen_is_never_let_loose(quick):
    model = build_model({"NAME": "airbench", "widths": [8, 12, 12]}, 10, (3, 32, 32))
    settings = {"TRAIN.FREEZE": ["backbone"], "TRAIN.UNFREEZE": {"2": "all"}, "TRAIN.FREEZE_FROM": {"3": ["layer1"]}}
    freezing = build_freezing(load_config(quick, settings), model, (3, 32, 32))
    own = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert own == {"whiten.weight", *(f"layer{n}.norm{m}.weight" for n in (1, 2, 3) for m in (1, 2))}
    for epoch in (1, 2, 3):
        freezing.apply(model, epoch)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert own <= frozen and (frozen == own) == (epoch == 2)
        freezing.hold(model.train(), epoch)
        # A norm of which the model has frozen a part goes by its statistics where the rest is frozen.
        assert model.layer1.norm1.training is (epoch == 2) and model.layer2.norm1.training is (epoch > 1)
    grouped = {id(each) for group in parameter_groups({}, model, freezing=freezing) for each in group["params"]}
    assert not {id(dict(model.named_parameters())[name]) for name in own} & grouped


@pytest.mark.parametrize("optimizer", [{"NAME": "SGD", "lr": 0.02, "momentum": 0.9}, {"NAME": "AdamW", "lr": 0.01}])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_that_is_resumed_where_something_is_unfrozen_ends_the_same(quick, optimizer, epoch):
    config = load_config(quick, {**UNFREEZING, "OPTIMIZER": optimizer, "SCHEDULER": {"NAME": "OneCycleLR"}})
    whole = train(config)
    again = train(config, resume=train_until(config, epoch).folder)
    assert len(again.metrics) == 4
    ours, theirs = whole.checkpoint("last"), again.checkpoint("last")
    assert equal(ours.model, theirs.model) and equal(ours.training["optimizer"], theirs.training["optimizer"])


def test_what_is_frozen_has_no_state_and_what_never_learns_no_place_in_the_optimizer(quick):
    config = load_config(quick, {"TRAIN.FREEZE": ["conv", "norm"], "TRAIN.UNFREEZE": {"3": ["norm"]},
                                 "TRAIN.EPOCHS": 2})
    state = train(config).checkpoint("last").training["optimizer"]
    assert [len(group["params"]) for group in state["param_groups"]] == [4]  # norm and fc
    assert set(state["state"]) == {2, 3}


def test_what_learns_is_said(quick, capsys):
    train(load_config(quick, {**UNFREEZING, "TRAIN.EPOCHS": 2}))
    out = capsys.readouterr().out
    assert "model      small, 1,530 parameters (1,290 trained)\n" in out
    assert "learning   1,290 of 1,530 parameters; from epoch 2 on 1,306; from epoch 3 on all " \
           "(there are 2 epochs)\n" in out
    train(load_config(quick, {"TRAIN.FREEZE_FROM": {"2": ["conv"]}}))
    assert "learning   all of 1,530 parameters; from epoch 2 on 1,306\n" in capsys.readouterr().out


def test_words_for_what_never_learns():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert learning_in_words(model, Freezing({"0.weight": math.inf}), 3) == "8 of 12 parameters"
    model[1].bias.requires_grad_(False)  # the model's own, which no key of the config frees
    words = "10 of 12 parameters; from epoch 2 on 6"
    assert learning_in_words(model, Freezing({}, {"0.weight": 2}), 3) == words


@pytest.mark.parametrize("settings, where, message", [
    ({"TRAIN.FREEZE": ["layer1"]}, "TRAIN.FREEZE", "no parameter of the model matches 'layer1'\n  Its parts are conv, norm, fc"),
    ({"TRAIN.FREEZE": ["cnov"]}, "TRAIN.FREEZE", "Did you mean conv?"),
    ({"TRAIN.FREEZE": ["all"]}, "TRAIN.FREEZE", "nothing is left to learn in epoch 1\n  FREEZE [backbone]"),
    ({"TRAIN.FREEZE": ["conv", "!conv"]}, "TRAIN.FREEZE", "freezes nothing"),
    ({"TRAIN.UNFREEZE": {"2": "all"}}, "TRAIN.UNFREEZE", "there is nothing to unfreeze: TRAIN.FREEZE is empty"),
    ({**HEAD, "TRAIN.UNFREEZE": {"1": "all"}}, "TRAIN.UNFREEZE.1", "'1' is no epoch in which something can change"),
    ({**HEAD, "TRAIN.UNFREEZE": {"two": "all"}}, "TRAIN.UNFREEZE.two", "'two' is no epoch"),
    ({**HEAD, "TRAIN.UNFREEZE": {"2": ["fc"]}}, "TRAIN.UNFREEZE.2", "fc matches nothing that is frozen then\n  TRAIN.UNFREEZE.2 null takes it out."),
    ({**HEAD, "TRAIN.UNFREEZE": {"2": "all", "3": ["conv"]}}, "TRAIN.UNFREEZE.3", "conv matches nothing that is frozen then"),
    ({**HEAD, "TRAIN.UNFREEZE": {"2": 5}}, "TRAIN.UNFREEZE.2", "expected names of parameters, such as"),
    ({**HEAD, "TRAIN.UNFREEZE": {"2": ["norn"]}}, "TRAIN.UNFREEZE.2", "Did you mean norm?"),
    ({"TRAIN.FREEZE_FROM": {"1": ["conv"]}}, "TRAIN.FREEZE_FROM.1", "'1' is no epoch"),
    ({"TRAIN.FREEZE_FROM": {"2": "all"}}, "TRAIN.FREEZE_FROM.2", "nothing is left to learn in epoch 2"),
    ({"TRAIN.FREEZE_FROM": {"2": ["conv"], "3": ["norm", "fc"]}}, "TRAIN.FREEZE_FROM.3", "nothing is left to learn in epoch 3"),
    ({"TRAIN.FREEZE_FROM": {"2": ["conv"], "3": ["conv"]}}, "TRAIN.FREEZE_FROM.3", "conv matches nothing that learns before: it is frozen already\n  TRAIN.FREEZE_FROM.3 null takes"),
    ({**HEAD, "TRAIN.FREEZE_FROM": {"2": ["conv"]}}, "TRAIN.FREEZE_FROM.2", "conv matches nothing that learns before"),
    ({**HEAD, "TRAIN.UNFREEZE": {"3": ["conv"]}, "TRAIN.FREEZE_FROM": {"2": ["fc", "conv"]}},
     "TRAIN.FREEZE_FROM.2", "conv.weight learns from epoch 3 on only"),
    ({"TRAIN.FREEZE_FROM": {"2": ["fcc"]}}, "TRAIN.FREEZE_FROM.2", "Did you mean fc?"),
])
def test_mistakes_are_told_before_training(quick, settings, where, message):
    with pytest.raises(ConfigError) as caught:
        train(load_config(quick, settings))
    assert message in str(caught.value) and str(caught.value.where).endswith(f" {where}")


def test_norms_without_parameters_are_held_where_all_others_are():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    Freezing({"3.weight": math.inf, "3.bias": math.inf}).hold(model.train(), 1)
    assert [module.training for module in model] == [True, False, True, False]
    Freezing({"3.weight": math.inf}).hold(model.train(), 1)
    assert model[1].training


def test_an_epoch_can_be_taken_out(quick):
    config = load_config(quick, {**HEAD, "TRAIN.UNFREEZE": {"2": None, "3": "all"}})
    model = build_model(config.MODEL, 10, (3, 32, 32))
    assert set(build_freezing(config, model, (3, 32, 32)).until.values()) == {3}


def test_epochs_are_numbers_in_a_file_too(quick, tool):
    quick.write_text(quick.read_text().replace(
        "TRAIN: {EPOCHS: 2}", "TRAIN:\n  EPOCHS: 2\n  FREEZE: [backbone, '!norm']\n  UNFREEZE: {2: [conv]}"))
    config = load_config(quick)
    assert config.TRAIN.UNFREEZE["2"] == ("conv",) and config.TRAIN.where("FREEZE").startswith(f"{quick}:13")
    code, _, err = tool("train.py", quick, "TRAIN.UNFREEZE", "{2: [norm]}")
    assert code == 2 and "norm matches nothing that is frozen then" in err
    check(config)


def test_a_model_with_a_buffer_of_its_own_still_drops_out_while_its_norms_are_frozen():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(3, 1, 1))
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    model = Scaled()
    Freezing(dict.fromkeys(["norm.weight", "norm.bias"], math.inf)).hold(model.train(), 1)
    assert model.training and not model.norm.training and model.head.training


def test_what_learns_at_any_time_can_be_asked():
    freezing = Freezing({"late": 3, "never": math.inf, "short": 2}, {"early": 2, "short": 4, "never": 5})
    assert [freezing.learns(name, None) for name in ("late", "never", "early", "short", "always")] == [
        True, False, True, True, True]
    model = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in ("late", "never")})
    freezing = Freezing({"late.weight": 3, "never.weight": math.inf})
    freezing.apply(model, None)
    assert model["late"].weight.requires_grad and not model["never"].weight.requires_grad
