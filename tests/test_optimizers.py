import pytest
import torch
from torch import nn

from cvkit.errors import ConfigError
from cvkit.models import build_model
from cvkit.optimizers import build_optimizer
from cvkit.registry import OPTIMIZERS


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_of_torch_lowers_a_loss(name):
    torch.manual_seed(0)
    model = nn.Linear(4, 4, bias=False)  # Muon takes matrices only
    x, y = torch.randn(64, 4), torch.randn(64, 4)
    optimizer = build_optimizer({"NAME": name, "lr": 0.01}, model)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_number_of_optimizers():
    assert len(OPTIMIZERS) >= 12


@pytest.mark.parametrize("name", ["LBFGS", "SparseAdam"])
def test_those_that_need_more_than_gradients_are_not_offered(name):
    with pytest.raises(ConfigError, match=f"no optimizer named '{name}'"):
        build_optimizer({"NAME": name, "lr": 1}, nn.Linear(2, 2))


@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
def test_weight_decay_spares_norms_and_biases_where_asked(norm):
    model = build_model({"NAME": "resnet18", "width": 32, "norm": norm}, 10, (3, 32, 32))
    node = {"NAME": "SGD", "lr": 0.1, "weight_decay": 5e-4}
    decay = {id(parameter): group["weight_decay"]
             for group in build_optimizer(node, model, False).param_groups
             for parameter in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            is_weight = isinstance(module, (nn.Conv2d, nn.Linear)) and key == "weight"
            assert decay[id(parameter)] == (5e-4 if is_weight else 0.0)
    groups = build_optimizer(node, model).param_groups
    assert len(groups) == 1 and groups[0]["weight_decay"] == 5e-4


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert len(build_optimizer({"NAME": "SGD", "lr": 1}, model).param_groups[0]["params"]) == 1


@pytest.mark.parametrize("arguments", [
    {"NAME": "SGD", "differentiable": True}, {"NAME": "RAdam", "capturable": True},
    {"NAME": "AdamW", "capturable": True}])
def test_what_cannot_take_a_step_is_refused_before_training(arguments):
    with pytest.raises(ConfigError, match=f"optimizer {arguments['NAME']} cannot take a step: "):
        build_optimizer({"lr": 0.1, **arguments}, nn.Linear(2, 2))
