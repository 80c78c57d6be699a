import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cvkit.errors import ConfigError
from cvkit.evaluation.metrics import Mean
from cvkit.registry import LOSSES
from cvkit.training.losses import build_loss, torch_form, weight_of

LOGITS = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)) * 4
LABELS = torch.arange(64) % 10
FITTING = sorted(LOSSES)


def loss_of(name, **arguments):
    return build_loss({"NAME": name, **arguments}, num_classes=10)


@pytest.mark.parametrize("name", sorted(name for name in vars(nn) if name.endswith("Loss")))
def test_every_loss_of_torch_works_on_logits_and_classes_or_is_refused(name):
    if name not in FITTING:
        with pytest.raises(ConfigError, match="is not a loss of logits and classes"):
            loss_of(name)
        return
    loss = loss_of(name)
    logits = LOGITS.clone().requires_grad_()
    value = loss(logits, LABELS)
    assert value.ndim == 0 and value >= 0
    value.backward()
    assert logits.grad.isfinite().all()
    perfect = loss(F.one_hot(LABELS, 10).float() * 40 - 20, LABELS)
    assert perfect < value / 10  # right answers cost less, so none is upside down


def test_the_number_of_losses_that_fit():
    assert len(FITTING) == 12


@pytest.mark.parametrize("name", ["CrossEntropyLos", "CTCLoss", "crossentropy", "nonsense"])
def test_a_mistyped_loss_lists_only_those_that_can_be_taken(name):
    with pytest.raises(ConfigError, match=f"no loss named '{name}'") as caught:
        loss_of(name)
    listed = caught.value.hint.split("Allowed: ")[1].split("\n")[0].rstrip(".").split(", ")
    assert sorted(listed) == FITTING


def test_nll_on_logits_equals_cross_entropy_and_is_never_negative():
    expected = F.cross_entropy(LOGITS, LABELS)
    assert torch.allclose(loss_of("NLLLoss")(LOGITS, LABELS), expected)
    assert torch.allclose(loss_of("CrossEntropyLoss")(LOGITS, LABELS), expected)


def test_values_are_those_of_the_definitions():
    hot = F.one_hot(LABELS, 10).float()
    assert torch.allclose(loss_of("MSELoss")(LOGITS, LABELS), F.mse_loss(LOGITS.softmax(1), hot))
    assert torch.allclose(loss_of("BCEWithLogitsLoss")(LOGITS, LABELS),
                          F.binary_cross_entropy_with_logits(LOGITS, hot))
    assert torch.allclose(loss_of("CrossEntropyLoss", label_smoothing=0.1)(LOGITS, LABELS),
                          F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1))
    assert torch.allclose(loss_of("KLDivLoss")(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS))


def test_mixed_targets_pass_through():
    mixed = 0.3 * F.one_hot(LABELS, 10) + 0.7 * F.one_hot(LABELS.roll(1), 10)
    expected = 0.3 * F.cross_entropy(LOGITS, LABELS) + 0.7 * F.cross_entropy(LOGITS, LABELS.roll(1))
    assert torch.allclose(loss_of("CrossEntropyLoss")(LOGITS, mixed), expected)


def test_half_precision_logits_are_computed_in_full():
    value = loss_of("CrossEntropyLoss")(LOGITS.bfloat16(), LABELS)
    assert value.dtype == torch.float32


def test_class_weights_are_a_list_in_the_config():
    weight = [1.0] * 9 + [3.0]
    loss = loss_of("CrossEntropyLoss", weight=weight)
    each = F.cross_entropy(LOGITS, LABELS, weight=torch.tensor(weight), reduction="none")
    assert torch.allclose(loss(LOGITS, LABELS), each.mean() / 1.2)
    halves = [loss(LOGITS[part], LABELS[part]) for part in (slice(0, 10), slice(10, 64))]
    assert torch.allclose(loss(LOGITS, LABELS), (halves[0] * 10 + halves[1] * 54) / 64)
    ones = loss_of("CrossEntropyLoss", weight=[2.0] * 10)
    assert torch.allclose(ones(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS))
    with pytest.raises(ConfigError, match="weight has 2 numbers for 10 classes"):
        loss_of("CrossEntropyLoss", weight=[1, 2])
    with pytest.raises(ConfigError, match="no class has a weight in CrossEntropyLoss"):
        loss_of("CrossEntropyLoss", weight=[0] * 10)
    for weights in ([1, -1] * 5, [-1, *[1] * 9]):
        with pytest.raises(ConfigError, match="a weight is below 0 in CrossEntropyLoss"):
            loss_of("CrossEntropyLoss", weight=weights)


UNEVEN = torch.tensor([0] * 40 + [1] * 20 + [9] * 4)  # far from the classes' mean weight


@pytest.mark.parametrize("sizes", [[64], [40, 20, 4], [32, 31, 1]])
@pytest.mark.parametrize("name, arguments", [
    ("CrossEntropyLoss", {}), ("CrossEntropyLoss", {"weight": [1.0] * 9 + [30.0]}),
    ("CrossEntropyLoss", {"weight": [0.0] + [2.0] * 9}), ("NLLLoss", {"weight": [5.0] + [1.0] * 9}),
    ("CrossEntropyLoss", {"weight": [1.0] * 9 + [30.0], "label_smoothing": 0.1}),
    ("CrossEntropyLoss", {"ignore_index": 0}),
    ("CrossEntropyLoss", {"weight": [3.0] * 9 + [30.0], "ignore_index": 1, "label_smoothing": 0.1})])
def test_the_reported_loss_is_torch_s_over_the_whole_set_at_once(name, arguments, sizes):
    torch_arguments = {key: torch.tensor(value) if key == "weight" else value
                       for key, value in arguments.items()}
    logits = LOGITS.log_softmax(1) if name == "NLLLoss" else LOGITS
    expected = getattr(nn, name)(**torch_arguments)(logits, UNEVEN)
    loss, mean = loss_of(name, **arguments), Mean()
    for part, targets in zip(LOGITS.split(sizes), UNEVEN.split(sizes), strict=True):
        mean.update(loss(part, targets), len(targets), weight_of(loss, targets))
    assert mean.compute() == pytest.approx(float(expected), rel=1e-5)
    again = Mean()
    again.load_state_dict(mean.state_dict())
    assert again.compute() == mean.compute()


def test_of_mixed_images_the_shares_are_weighed():
    weight = torch.tensor([1.0] * 9 + [30.0])
    loss, mean = loss_of("CrossEntropyLoss", weight=weight.tolist()), Mean()
    shares = 0.3 * F.one_hot(UNEVEN, 10) + 0.7 * F.one_hot(UNEVEN.roll(7), 10)
    for part, targets in zip(LOGITS.split(40), shares.split(40), strict=True):
        mean.update(loss(part, targets), len(targets), weight_of(loss, targets))
    weighted = -(shares * weight * LOGITS.log_softmax(1)).sum()
    assert mean.compute() == pytest.approx(float(weighted / (shares @ weight).sum()), rel=1e-5)


@pytest.mark.parametrize("name, arguments, expected", [
    ("CrossEntropyLoss", {"label_smoothing": 2}, "cannot be used"),
    ("HuberLoss", {"delta": -1}, "cannot be used"),
    ("CrossEntropyLoss", {"weight": ["a"] * 10}, r"takes list\[float\] or null"),
    ("KLDivLoss", {"log_target": True}, "targets are probabilities here")])
def test_values_that_torch_refuses_only_when_it_computes(name, arguments, expected):
    with pytest.raises(ConfigError, match=expected):
        loss_of(name, **arguments)


def test_reductions_that_are_no_mean_are_refused():
    with pytest.raises(ConfigError, match="reduction 'sum' does not give a mean over images"):
        loss_of("CrossEntropyLoss", reduction="sum")


def test_own_losses_are_called_with_logits_and_targets():

    @LOSSES.register()
    class Mine(nn.Module):
        def forward(self, logits, targets):
            return logits.mean() + targets.float().mean()

    assert loss_of("Mine")(LOGITS, LABELS) == LOGITS.mean() + LABELS.float().mean()


def test_which_loss_of_torch_an_own_one_is_derived_from():
    class Own(nn.NLLLoss):
        pass

    assert torch_form(Own()) == torch_form(loss_of("NLLLoss")) == ("NLLLoss", "log probabilities")
    assert torch_form(loss_of("MSELoss")) == ("MSELoss", "probabilities")
    assert torch_form(nn.Sequential(nn.NLLLoss())) is torch_form(nn.PoissonNLLLoss()) is None
