import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cvkit.errors import ConfigError
from cvkit.training.groups import parameter_groups
from cvkit.training.optimizers import build_optimizer

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
OPTIONS = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.05}


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def build(model, **node):
    node = {"NAME": "Muon", **OPTIONS, **node}
    return build_optimizer(node, parameter_groups(node, model, image_shape=(3, 12, 12)), is_tried=False)


def step(model, optimizer, number):
    torch.manual_seed(number)
    images, labels = torch.randn(8, 3, 12, 12), torch.randint(4, (8,))
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def test_matrices_go_to_muon_and_the_rest_to_adamw():
    """Against torch's own two, on flattened copies of the gradients of each step."""
    model = small()
    optimizer = build(model, adamw_lr=0.003)
    twin = copy.deepcopy(model)
    flat = {name: nn.Parameter(value.detach().flatten(1).clone()) for name, value in twin.named_parameters() if value.ndim > 1}
    rest = {name: value for name, value in twin.named_parameters() if value.ndim == 1}
    muon = torch.optim.Muon(flat.values(), **OPTIONS)
    adamw = torch.optim.AdamW(rest.values(), 0.003, (0.9, 0.95), weight_decay=0.05)
    for number in range(5):
        step(model, optimizer, number)
        for name, parameter in model.named_parameters():
            if name in flat:
                flat[name].grad = parameter.grad.flatten(1)
            else:
                rest[name].grad = parameter.grad
        muon.step()
        adamw.step()
        for name, parameter in model.named_parameters():
            expected = flat[name].view_as(parameter) if name in flat else rest[name]
            assert torch.equal(parameter, expected), (number, name)
    assert set(flat) == {"0.weight", "3.weight", "6.weight"}


def test_the_rest_goes_to_sgd_where_it_has_a_rate():
    """Against torch's own two; the head with a rate and a weight decay of its own, as in airbench."""
    model = small()
    optimizer = build(model, weight_decay=0.0, sgd_lr=0.3, sgd_momentum=0.85, groups=[
        {"match": "head", "muon": False, "sgd_lr": 2.0, "weight_decay": 0.01}])
    twin = copy.deepcopy(model)
    flat = {name: nn.Parameter(value.detach().flatten(1).clone()) for name, value in twin.named_parameters() if value.ndim > 2}
    rest = {name: value for name, value in twin.named_parameters() if name not in flat}
    muon = torch.optim.Muon(flat.values(), lr=0.02, momentum=0.9, weight_decay=0.0)
    heads = [value for name, value in rest.items() if name.startswith("6.")]
    others = [value for name, value in rest.items() if not name.startswith("6.")]
    sgd = torch.optim.SGD([{"params": heads, "lr": 2.0, "weight_decay": 0.01}, {"params": others}], 0.3, 0.85,
                          nesterov=True)
    for number in range(5):
        step(model, optimizer, number)
        for name, parameter in model.named_parameters():
            (flat if name in flat else rest)[name].grad = parameter.grad.flatten(1) if name in flat else parameter.grad
        muon.step()
        sgd.step()
        for name, parameter in model.named_parameters():
            expected = flat[name].view_as(parameter) if name in flat else rest[name]
            assert torch.equal(parameter, expected), (number, name)


def test_a_matrix_has_the_norm_of_the_root_of_its_rows_before_the_step():
    model, plain = small(), small()
    with torch.no_grad():
        for parameter in (plain[0].weight, plain[3].weight, plain[6].weight):
            parameter.mul_(len(parameter)**0.5 / parameter.norm())
    optimizers = build(model, normalize=True, weight_decay=0.0), build(plain, weight_decay=0.0)
    model.requires_grad_(True)
    images = torch.randn(4, 3, 12, 12)
    plain(images).sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        ours.grad = theirs.grad.clone()
    for optimizer in optimizers:
        optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert model[0].weight.norm().item() == pytest.approx(8**0.5, rel=0.05)


def test_the_layout_in_memory_makes_no_difference():
    plain, last = small(), small().to(memory_format=torch.channels_last)
    assert not last[3].weight.is_contiguous()
    for number in range(3):
        for model in (plain, last):
            model.optimizer = getattr(model, "optimizer", None) or build(model)
            step(model, model.optimizer, number)
    for ours, theirs in zip(plain.parameters(), last.parameters()):
        assert torch.allclose(ours, theirs, atol=2e-3)
    assert last[3].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_its_state_is_one_and_is_resumed_in_either_layout(layout):
    model = small().to(memory_format=torch.channels_last)
    optimizer = build(model)
    for number in range(3):
        step(model, optimizer, number)
    state = copy.deepcopy(optimizer.state_dict())
    assert {frozenset(each) for each in state["state"].values()} == {
        frozenset({"momentum_buffer"}), frozenset({"step", "exp_avg", "exp_avg_sq"})}
    twin = copy.deepcopy(model).to(memory_format=layout)
    again = build(twin)
    again.load_state_dict(state)
    for number in range(3, 6):
        step(model, optimizer, number)
        step(twin, again, number)
    tolerance = 0 if layout is torch.channels_last else 2e-3
    for ours, theirs in zip(model.parameters(), twin.parameters()):
        assert torch.allclose(ours, theirs, rtol=0, atol=tolerance)


def test_groups_may_leave_it_out():
    model = small()
    optimizer = build(model, groups=[{"match": "head", "muon": False}])
    head, before = model[6].weight.detach().clone(), model[3].weight.detach().clone()
    step(model, optimizer, 0)
    assert set(optimizer.state[model[6].weight]) == {"step", "exp_avg", "exp_avg_sq"}
    moved = (model[6].weight - head).abs().max().item()
    assert moved == pytest.approx(0.001, rel=0.05)  # AdamW's first step: adamw_lr
    assert (model[3].weight - before).abs().max() > 0.003


def test_it_lowers_the_loss_of_a_network_with_convolutions():
    model = small()
    optimizer = build(model)
    losses = [step(model, optimizer, 0) for _ in range(30)]
    assert losses[-1] < 0.75 * losses[0]


def test_a_schedule_changes_both_rates_in_proportion():
    model = small()
    optimizer = build(model, adamw_lr=0.004, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    bias = model[6].bias.clone()
    step(model, optimizer, 0)
    assert (model[6].bias - bias).abs().max().item() == pytest.approx(0.002, rel=1e-3)


@pytest.mark.parametrize("options, expected", [
    ({"ns_steps": 0}, "ns_steps is 1 or more, not 0"), ({"sgd_lr": -1.0}, "sgd_lr is 0 or more, not -1"),
    ({"sgd_lr": 0.1, "sgd_momentum": 1.0}, "sgd_momentum lies from 0 to below 1, not 1")])
def test_arguments_that_are_none(options, expected):
    with pytest.raises(ConfigError, match=expected):
        build(small(), **options)


def test_sgd_without_momentum_is_plain():
    model = small()
    optimizer = build(model, sgd_lr=0.5, sgd_momentum=0.0, weight_decay=0.0)
    before = model[6].bias.detach().clone()
    step(model, optimizer, 0)
    assert torch.allclose(model[6].bias, before - 0.5 * model[6].bias.grad)


def test_a_matrix_in_an_order_of_its_own_is_refused():
    model = small()
    model[3].weight = nn.Parameter(torch.randn(8, 6, 3, 3).transpose(0, 1))
    with pytest.raises(ConfigError, match=r"a parameter of \(6, 8, 3, 3\) lies in memory in an order of its own"):
        build(model)


def test_a_group_has_its_own_rate_of_adamw_and_no_argument_that_is_one_for_all():
    model = small()
    optimizer = build(model, groups=[{"match": "6.bias", "adamw_lr": 0.5}])
    before = model[6].bias.detach().clone()
    step(model, optimizer, 0)
    assert (model[6].bias - before).abs().max().item() == pytest.approx(0.5, rel=0.05)
