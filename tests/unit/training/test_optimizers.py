import pytest
import torch
from torch import nn

from cvkit.errors import ConfigError
from cvkit.models import build_model
from cvkit.registry import OPTIMIZERS
from cvkit.training.groups import parameter_groups
from cvkit.training.optimizers import build_optimizer

SGD = torch.optim.SGD


def built(node, model, **arguments):
    return build_optimizer(node, parameter_groups(node, model, **arguments))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_of_torch_lowers_a_loss(name):
    torch.manual_seed(0)
    model = nn.Linear(4, 4, bias=False)  # Muon takes matrices only
    x, y = torch.randn(64, 4), torch.randn(64, 4)
    optimizer = built({"NAME": name, "lr": 0.01}, model)
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
        built({"NAME": name, "lr": 1}, nn.Linear(2, 2))


@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
def test_weight_decay_spares_norms_and_biases_where_asked(norm):
    model = build_model({"NAME": "resnet18", "width": 32, "norm": norm}, 10, (3, 32, 32))
    node = {"NAME": "SGD", "lr": 0.1, "weight_decay": 5e-4}
    decay = {id(parameter): group["weight_decay"]
             for group in built(node, model, decay_norm_and_bias=False).param_groups
             for parameter in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            is_weight = isinstance(module, (nn.Conv2d, nn.Linear)) and key == "weight"
            assert decay[id(parameter)] == (5e-4 if is_weight else 0.0)
    groups = built(node, model).param_groups
    assert len(groups) == 1 and groups[0]["weight_decay"] == 5e-4


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert len(built({"NAME": "SGD", "lr": 1}, model).param_groups[0]["params"]) == 1


@pytest.mark.parametrize("arguments", [
    {"NAME": "SGD", "differentiable": True}, {"NAME": "RAdam", "capturable": True},
    {"NAME": "AdamW", "capturable": True}])
def test_what_cannot_take_a_step_is_refused_before_training(arguments):
    with pytest.raises(ConfigError, match=f"optimizer {arguments['NAME']} cannot take a step: "):
        built({"lr": 0.1, **arguments}, nn.Linear(2, 2))


def test_several_rates_are_told_what_is_taken():
    with pytest.raises(ConfigError, match=r"lr of optimizer SGD takes one number, not \[0.1, 0.01\]"):
        built({"NAME": "SGD", "lr": [0.1, 0.01]}, nn.Linear(2, 2))


@pytest.mark.skipif("torch.optim.Muon" not in OPTIMIZERS, reason="this torch has no Muon")
def test_an_optimizer_of_matrices_is_tried_on_the_model_s_own_parameters():
    node = {"NAME": "torch.optim.Muon", "lr": 0.01}
    built(node, nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(4, 2, bias=False)))
    with pytest.raises(ConfigError, match="optimizer torch.optim.Muon cannot be built: .*2D"):
        built(node, nn.Linear(2, 2))


@pytest.fixture
def own():
    """Register optimizers as people write them."""
    for entry in (NeedsClosure, AsksForClosure, MatricesAndVectors, ForgetsInner, KeepsInner,
                  ForgetsSlow, KeepsSlow, LosesRate, Noise, Lambda, StateOfItsOwn):
        OPTIMIZERS.register()(entry)


class NeedsClosure(SGD):
    def __init__(self, params, lr: float):
        super().__init__(params, lr)

    def step(self, closure):
        closure()


class AsksForClosure(NeedsClosure):
    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("SAM needs a closure")


class MatricesAndVectors(torch.optim.Optimizer):
    """Treats parameters by their shapes, and would fail on a single vector."""

    def __init__(self, params, lr: float):
        super().__init__(params, {"lr": lr})
        assert {parameter.ndim for group in self.param_groups for parameter in group["params"]} == {1, 2}

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter -= group["lr"] * (parameter.grad if parameter.ndim == 1 else
                                            torch.linalg.qr(parameter.grad.T).Q.T)


class ForgetsInner(torch.optim.Optimizer):
    """The inner optimizer's momentum is in no state_dict."""

    def __init__(self, params, lr: float):
        super().__init__(params, {"lr": lr})
        self.inner = SGD(self.param_groups, lr, momentum=0.9)

    def step(self, closure=None):
        self.inner.param_groups = self.param_groups
        self.inner.step()


class KeepsInner(ForgetsInner):
    def state_dict(self):
        return self.inner.state_dict()

    def load_state_dict(self, state):
        self.inner.load_state_dict(state)
        self.param_groups = self.inner.param_groups


class LosesRate(KeepsInner):
    """After a load the inner optimizer no longer shares the groups whose rate is set."""

    def step(self, closure=None):
        self.inner.step()

    def load_state_dict(self, state):
        self.inner.load_state_dict(state)


class ForgetsSlow(SGD):
    """A Lookahead: every fifth step the slow weights move, and the fast ones go back to them."""

    def __init__(self, params, lr: float):
        super().__init__(params, lr)
        self.calls = 0
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        self.calls += 1
        if self.calls % 5 == 0:
            fast = [p for group in self.param_groups for p in group["params"]]
            torch._foreach_lerp_(self.slow, fast, 0.5)
            torch._foreach_copy_(fast, self.slow)


class KeepsSlow(ForgetsSlow):
    def state_dict(self):
        return {**super().state_dict(), "slow": self.slow, "calls": self.calls}

    def load_state_dict(self, state):
        self.slow, self.calls = state["slow"], state["calls"]
        super().load_state_dict({key: state[key] for key in ("state", "param_groups")})


class Noise(SGD):
    """Draws random numbers of torch, which a resumed run draws again."""

    def __init__(self, params, lr: float):
        super().__init__(params, lr)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter += group["lr"] * torch.randn_like(parameter)


class Lambda(Noise):
    def step(self, closure=None):
        self.state["rule"] = lambda: None


class StateOfItsOwn(Noise):
    def state_dict(self):
        return {"mine": 1}


MODEL = nn.Linear(3, 2)


@pytest.mark.parametrize("name", ["NeedsClosure", "AsksForClosure"])
def test_an_optimizer_that_needs_a_closure_is_refused_before_training(own, name):
    with pytest.raises(ConfigError, match=f"optimizer {name} cannot take a step: ") as caught:
        built({"NAME": name, "lr": 0.1}, MODEL)
    assert "calls step() without a closure" in caught.value.hint
    assert "test_optimizers.py:" in caught.value.hint


@pytest.mark.parametrize("name", ["KeepsInner", "KeepsSlow", "Noise", "MatricesAndVectors"])
def test_own_optimizers_that_can_be_resumed_are_taken(own, name):
    weights, random = MODEL.weight.detach().clone(), torch.get_rng_state()
    optimizer = built({"NAME": name, "lr": 0.1}, MODEL)
    assert type(optimizer).__name__ == name and MODEL.weight.grad is None
    assert torch.equal(MODEL.weight, weights) and torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("name, steps, kept", [
    ("ForgetsInner", 1, "inner"), ("ForgetsSlow", 2, "calls, slow"), ("LosesRate", 1, "inner")])
def test_an_optimizer_that_would_lose_state_at_a_resumption_is_refused(own, name, steps, kept):
    with pytest.raises(ConfigError, match=f"optimizer {name} could not be resumed: {steps} steps "
                                          "after") as caught:
        built({"NAME": name, "lr": 0.1}, MODEL)
    assert f"not in attributes: {kept}." in caught.value.hint


@pytest.mark.parametrize("name, reason", [
    ("Lambda", "pickle"), ("StateOfItsOwn", "state_dict.. has no state and param_groups")])
def test_a_state_that_cannot_be_read_again_is_told_before_training(own, name, reason):
    with pytest.raises(ConfigError, match=f"the state of optimizer {name} cannot be saved and taken "
                                          f"up again: .*{reason}"):
        built({"NAME": name, "lr": 0.1}, MODEL)
