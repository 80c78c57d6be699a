import math
from itertools import chain

import pytest
import torch
from torch import nn

from cvkit.config import load_config
from cvkit.errors import ConfigError
from cvkit.models import build_model
from cvkit.runs.folder import Run
from cvkit.session import build_trainer, check, train
from cvkit.training.freezing import Freezing
from cvkit.training.groups import parameter_groups, table_of, unused
from cvkit.training.optimizers import build_optimizer
from cvkit.training.schedulers import Schedule, build_schedule

GROUPS = [{"match": "conv", "lr_mult": 0.1}, {"match": "*bias", "weight_decay": 0.0}]
SGD = {"NAME": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


def small():
    return build_model({"NAME": "resnet18", "width": 4}, 10, (3, 32, 32))


@pytest.mark.parametrize("groups, never", [
    ([{"match": "layer1"}, {"match": "layer1.0", "lr_mult": 2}], ["layer1.0"]),
    ([{"match": "head"}, {"match": ["fc.weight", "fc.bias"]}], ["fc.weight fc.bias"]),
    ([{"match": "layer1"}, {"match": "layer1"}, {"match": "layer2"}], ["layer1"]),
    ([{"match": "all"}, {"match": "backbone"}], ["backbone"]), ([{"match": "backbone"}, {"match": "all"}], [])])
@pytest.mark.parametrize("more", [{}, {"layer_decay": 0.5}])
def test_groups_that_never_count_are_found(groups, never, more):
    node = {**SGD, "groups": groups, **more}
    assert unused(node, parameter_groups(node, small(), decay_norm_and_bias=False)) == never


def test_a_group_that_never_counts_is_told(quick, capsys):
    check(load_config(quick, {"FINE_TUNE": {}, "OPTIMIZER": {**SGD, "groups": [{"match": "all", "weight_decay": 0.0}]}}))
    assert ("unused     group backbone: others have what it matches, or it never learns\n"
            in capsys.readouterr().out)


def names_in(groups, model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in groups]


def test_the_first_group_that_matches_has_a_parameter():
    model, node = small(), {**SGD, "groups": [
        {"match": "layer1*", "lr_mult": 0.1}, {"match": ["*bias", "!fc*"], "weight_decay": 0.0},
        {"match": "head", "lr_mult": 10, "momentum": 0.5}]}
    groups = parameter_groups(node, model)
    found = names_in(groups, model)
    assert [len(names) for names in found] == [12, 16, 2, 32]
    assert all(name.startswith("layer1.") for name in found[0]) and found[2] == ["fc.weight", "fc.bias"]
    assert all(name.endswith(".bias") for name in found[1]) and "norm1.bias" in found[1]
    assert [{key: value for key, value in group.items() if key != "params"} for group in groups] == [
        {"name": "layer1*", "lr_mult": 0.1}, {"name": "*bias !fc*", "lr_mult": 1.0, "weight_decay": 0.0},
        {"name": "head", "lr_mult": 10.0, "momentum": 0.5}, {"name": "the rest", "lr_mult": 1.0}]
    optimizer = build_optimizer(node, groups)
    assert [(group["weight_decay"], group["momentum"]) for group in optimizer.param_groups] == [
        (0.01, 0.9), (0.0, 0.9), (0.01, 0.5), (0.01, 0.9)]


def test_layer_decay_lowers_the_rate_stage_by_stage():
    model = small()
    groups = parameter_groups({**SGD, "layer_decay": 0.5}, model)
    assert {group["name"]: group["lr_mult"] for group in groups} == {
        "conv1": 1 / 32, "layer1": 1 / 16, "layer2": 1 / 8, "layer3": 1 / 4, "layer4": 1 / 2, "fc": 1.0}
    assert [*chain(*names_in(groups, model))] == [name for name, _ in model.named_parameters()]
    both = parameter_groups({**SGD, "layer_decay": 0.5, "groups": [{"match": "*norm*", "lr_mult": 2}]}, model)
    assert [(group["name"], group["lr_mult"]) for group in both if "layer4" in group["name"] or "fc" in group["name"]] == [
        ("*norm* in layer4", 1.0), ("the rest in layer4", 0.5), ("the rest in fc", 1.0)]


def test_norms_and_biases_are_spared_in_groups_that_do_not_say_otherwise():
    model = small()
    groups = parameter_groups({**SGD, "groups": [{"match": "layer1"}, {"match": "layer2", "weight_decay": 0.3}]},
                              model, decay_norm_and_bias=False)
    assert [(group["name"], group.get("weight_decay")) for group in groups] == [
        ("layer1", None), ("layer1, norms and biases", 0.0), ("layer2", 0.3), ("the rest", None),
        ("the rest, norms and biases", 0.0)]
    assert all(parameter.ndim == 1 for group in (groups[1], groups[4]) for parameter in group["params"])


def test_a_loss_with_parameters_has_a_group_of_its_own():
    loss = nn.Linear(2, 2)
    plain, named = (parameter_groups(node, small(), loss) for node in (SGD, {**SGD, "layer_decay": 0.9}))
    assert plain[-1] == {"params": list(loss.parameters()), "weight_decay": 0.0}
    assert (named[-1]["name"], named[-1]["lr_mult"]) == ("the loss", 1.0)


def test_what_never_learns_is_in_no_group():
    model = small()
    model.fc.bias.requires_grad_(False)
    freezing = Freezing({"conv1.weight": math.inf, "norm1.bias": 3})
    freezing.apply(model, 1)
    names, = names_in(parameter_groups(SGD, model, freezing=freezing), model)
    assert len(names) == 60 and "norm1.bias" in names and not {"conv1.weight", "fc.bias"} & set(names)


# -- rates ------------------------------------------------------------------------------------


def optimizer_with(*multipliers, momentum=0.9):
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr_mult": multiplier}
                            for multiplier in multipliers], lr=0.1, momentum=momentum)


@pytest.mark.parametrize("node", [
    {"NAME": "OneCycleLR", "max_lr": 0.3}, {"NAME": "CyclicLR", "base_lr": 0.01, "max_lr": 0.2, "step_size_up": 4},
    {"NAME": "CosineAnnealingLR", "eta_min": 0.01}, {"NAME": "StepLR", "step_size": 2},
    {"NAME": "ReduceLROnPlateau", "patience": 0, "min_lr": 0.02}, {"NAME": "PolynomialLR", "total_iters": 6},
    {"NAME": "SequentialLR", "milestones": [2], "schedulers": [{"NAME": "LinearLR"}, {"NAME": "ExponentialLR", "gamma": 0.5}]},
    None])
def test_groups_keep_their_ratios_and_follow_the_schedule_of_one(node):
    several, one = optimizer_with(0.1, 1.0, 3.0), optimizer_with(1.0)
    for optimizer in (several, one):
        optimizer.schedule = build_schedule(node, optimizer, 6, 5, 1.0)
    rates = []
    for step in range(30):
        rate = one.param_groups[0]["lr"]
        assert [group["lr"] for group in several.param_groups] == [rate * 0.1, rate, rate * 3.0]
        assert several.schedule.rate == one.schedule.rate == rate
        rates.append(rate)
        for optimizer in (several, one):
            optimizer.step()
            optimizer.schedule.after_step()
            if step % 5 == 4:
                optimizer.schedule.after_epoch(1.0, 0.5)
    assert node is None or len(set(rates[5:])) > 1


def test_rates_are_those_of_a_table_by_hand():
    """Warm-up over two steps, then the rate of StepLR: halved after each epoch of three steps."""
    optimizer = optimizer_with(0.1, 1.0)
    schedule = build_schedule({"NAME": "StepLR", "step_size": 1, "gamma": 0.5}, optimizer, 4, 3, 2 / 3)
    table = []
    for step in range(12):
        table.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.after_step()
        if step % 3 == 2:
            schedule.after_epoch(1.0, 0.5)
    expected = [0.1 / 3, 0.2 / 3, 0.1] + [0.05] * 3 + [0.025] * 3 + [0.0125] * 3
    assert [rate for _, rate in table] == pytest.approx(expected)
    assert [rate for rate, _ in table] == pytest.approx([0.1 * rate for rate in expected])


def test_a_schedule_of_an_older_checkpoint_goes_on_with_the_optimizer_s_rates():
    optimizer = optimizer_with(1.0)
    schedule = build_schedule({"NAME": "ExponentialLR", "gamma": 0.5}, optimizer, 6, 5)
    state = schedule.state_dict()
    del state["rates"]
    optimizer.param_groups[0]["lr"] = 0.07
    schedule.load_state_dict(state)
    schedule.after_step()
    schedule.after_epoch(1.0, 0.5)
    assert schedule.rate == optimizer.param_groups[0]["lr"] == pytest.approx(0.035)


def test_a_rate_that_is_set_keeps_the_ratios():
    optimizer = optimizer_with(0.1, 1.0)
    Schedule(optimizer).set_rate(0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.5]


# -- in a training ----------------------------------------------------------------------------


def test_a_group_without_a_rate_does_not_move_and_all_is_told(quick, capsys):
    config = load_config(quick, {"OPTIMIZER": {**SGD, "groups": [{"match": "conv", "lr_mult": 0}]},
                                 "SCHEDULER": {"NAME": "OneCycleLR"}})
    start = build_trainer(config).state.model.state_dict()
    run = train(config)
    moved = {key for key, value in run.checkpoint("last").model.items()
             if not torch.equal(value, start[key]) and "running" not in key and "num" not in key}
    assert moved == {"norm.weight", "norm.bias", "fc.weight", "fc.bias"}
    assert "rates      conv × 0, the rest × 1\n" in capsys.readouterr().out
    assert [epoch["lr_mult"] for epoch in Run(run.folder).metrics] == 2 * [{"conv": 0.0, "the rest": 1.0}]


def test_the_check_lists_all_groups(quick, capsys):
    check(load_config(quick, {"OPTIMIZER": {**SGD, "groups": GROUPS}}))
    assert (
        "groups     parameters  lr     weight decay  tensors  numbers\n"
        "           conv        × 0.1          0.01        2      224\n"
        "           *bias       × 1               0        2       18\n"
        "           the rest    × 1            0.01        2    1,288\n") in capsys.readouterr().out


def test_a_table_of_plain_groups():
    assert table_of([{"params": [torch.zeros(3)]}])[1].split() == ["all", "×", "1", "-", "1", "3"]


def test_curves_draw_the_rate_of_each_group(quick):
    run = train(load_config(quick, {"OPTIMIZER": {**SGD, "layer_decay": 0.5}, "SCHEDULER": {"NAME": "OneCycleLR"}}))
    rates = run.visualize("curves").axes[-1]
    drawn = {line.get_label(): line.get_ydata() for line in rates.lines}
    assert list(drawn) == ["× 1: fc", "× 0.5: conv"]
    base = [rate for epoch in run.metrics for _, rate in epoch["rates"]]
    assert list(drawn["× 1: fc"]) == base
    assert list(drawn["× 0.5: conv"]) == [0.5 * rate for rate in base]


def test_curves_draw_no_rate_where_a_group_is_frozen(quick):
    run = train(load_config(quick, {"FINE_TUNE": {}, "TRAIN.EPOCHS": 3, "SCHEDULER": {"NAME": "OneCycleLR"}}))
    drawn = {line.get_label(): list(line.get_ydata()) for line in run.visualize("curves").axes[-1].lines}
    first, *later = [[rate for _, rate in epoch["rates"]] for epoch in run.metrics]
    assert drawn == {"× 1: the rest": [*first, *later[0], *later[1]],
                     "× 0.1: backbone": pytest.approx([0.0] * len(first) + [0.1 * rate for rate in later[0] + later[1]])}


@pytest.mark.parametrize("arguments, where, message", [
    ({"groups": [{"lr_mult": 0.1}]}, "groups.0", "group 0 of OPTIMIZER.groups has no match"),
    ({"groups": {"match": "conv"}}, "groups", "takes list[mapping] or null, not {'match': 'conv'}\n  Write [{…}], a list of one."),
    ({"groups": ["conv"]}, "groups", "groups of optimizer SGD takes list[mapping] or null, not ['conv']"),
    ({"groups": [{"match": "conv", "lr": 0.1}]}, "groups.0.lr", "a group has no lr of its own\n  lr_mult multiplies"),
    ({"groups": [{"match": "conv", "lr_mul": 0.1}]}, "groups.0.lr_mul", "have no argument 'lr_mul'\n  Did you mean lr_mult?"),
    ({"groups": [{"match": "conv", "betas": [0.9, 0.99]}]}, "groups.0.betas", "groups of optimizer SGD have no argument 'betas'"),
    ({"groups": [{"match": "conv", "weight_decay": "none"}]}, "groups.0.weight_decay", "weight_decay of a group takes float, not 'none'"),
    ({"groups": [{"match": "conv", "lr_mult": -1}]}, "groups.0.lr_mult", "lr_mult is a number from 0, not -1"),
    ({"groups": [{"match": 3}]}, "groups.0.match", "match of a group takes str or list[str], not 3"),
    ({"groups": [{"match": "cnov"}]}, "groups.0.match", "no parameter of the model matches 'cnov'\n  Did you mean conv?"),
    ({"layer_decay": 1.5}, "layer_decay", "layer_decay lies above 0 and up to 1, not 1.5"),
    ({"layer_decay": "x"}, "layer_decay", "layer_decay of optimizer SGD takes float or null, not 'x'"),
])
def test_mistakes_are_told_at_their_line(quick, arguments, where, message):
    with pytest.raises(ConfigError) as caught:
        train(load_config(quick, {"OPTIMIZER": {**SGD, **arguments}}))
    assert message in str(caught.value) and f" OPTIMIZER.{where}" in f"{caught.value.where}{caught.value}"
