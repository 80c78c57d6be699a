import inspect
import json

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F

from cvkit.config import load_config
from cvkit.errors import ConfigError
from cvkit.evaluation.metrics import Mean
from cvkit.registry import LOSSES
from cvkit.session import check
from cvkit.training.losses import ClassWeights, build_loss, class_weights, torch_form, weight_of

LOGITS = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)) * 4
LABELS = torch.arange(64) % 10
FITTING = sorted(LOSSES)
NAMES = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COUNTS = [50, 5, 40, 1, 30, 20, 10, 5, 30, 9]
WEIGHTED = ["CrossEntropyLoss", "MultiMarginLoss", "NLLLoss"]
# Their weight is of a column of the targets, not of the images of a class: it balances nothing.
BY_COLUMN = ["BCELoss", "BCEWithLogitsLoss", "MultiLabelSoftMarginLoss"]


def loss_of(name, counts=None, **arguments):
    return build_loss({"NAME": name, **arguments}, num_classes=10, classes=NAMES,
                      class_counts=counts)


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
    assert len(FITTING) == 13


@pytest.mark.parametrize("name", ["CrossEntropyLos", "CTCLoss", "crossentropy", "nonsense"])
def test_a_mistyped_loss_lists_only_those_that_can_be_taken(name):
    with pytest.raises(ConfigError, match=f"no loss named '{name}'") as caught:
        loss_of(name)
    listed = caught.value.hint.split("Allowed: ")[1].split("\n")[0].removesuffix(" and 1 more.")
    assert set(listed.split(", ")) < set(FITTING) and len(listed.split(", ")) == 12


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


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_are_balanced_by_the_training_images_or_given_by_name(name):
    numbers = compute_class_weight("balanced", classes=np.arange(10),
                                   y=np.repeat(np.arange(10), COUNTS))
    for weight, expected in (("balanced", numbers), (
            {"cat": 2.0, "ship": 3}, [1, 1, 1, 2, 1, 1, 1, 1, 3, 1])):
        loss = loss_of(name, COUNTS, weight=weight)
        assert np.allclose(loss.criterion.weight, expected)
        listed = loss_of(name, weight=[float(number) for number in expected])
        assert torch.allclose(loss(LOGITS, LABELS), listed(LOGITS, LABELS))


def test_the_losses_of_torch_with_weights_of_classes_are_all_of_these():
    assert sorted(WEIGHTED + BY_COLUMN) == [name for name in FITTING if name != "FocalLoss" and
                                            "weight" in inspect.signature(getattr(nn, name)).parameters]


@pytest.mark.parametrize("name", BY_COLUMN)
@pytest.mark.parametrize("weight", ["balanced", {"cat": 2.0}])
def test_what_would_balance_nothing_is_refused(name, weight):
    with pytest.raises(ConfigError, match=rf"weight of loss {name} takes list\[float\] or null, not"):
        loss_of(name, COUNTS, weight=weight)


@pytest.mark.parametrize("weight, problem, hint", [
    ({"cta": 2.0}, "no class named 'cta'", "Did you mean cat? Allowed: plane, car, bird, cat, "),
    ({"cat": "2"}, "the weight of class cat is a number, not '2'", None),
    ({"cat": True}, "the weight of class cat is a number, not True", None),
    ({"cat": float("nan")}, "a weight is no finite number in CrossEntropyLoss", None),
    ("balancd", "weight of loss CrossEntropyLoss takes list[float] or balanced or mapping or null, "
     "not 'balancd'", "Did you mean balanced?"),
    ("balanced", "2 classes without training images: car, cat; balanced weights divide by their "
     "number", "Add images, or give weights by name: weight: {CLASS: 2.0}.")])
def test_weights_that_fit_no_class_are_refused_with_their_place(tmp_path, weight, problem, hint):
    path = tmp_path / "a.yaml"
    path.write_text("_BASE_: cvkit://resnet18_digits.yaml\nLOSS:\n  NAME: CrossEntropyLoss\n"
                    f"  weight: {json.dumps(weight).replace('NaN', '.nan')}\n")
    node, counts = load_config(path).LOSS, [9, 0, 9, 0, *[9] * 6]
    with pytest.raises(ConfigError) as caught:
        build_loss(node, 10, classes=NAMES, class_counts=counts)
    assert caught.value.problem == problem and (caught.value.hint or "").startswith(hint or "")
    name = f".{next(iter(weight))}" if isinstance(weight, dict) and "nan" not in str(weight) else ""
    assert caught.value.where == f"{path}:4 LOSS.weight{name}"


def test_an_own_loss_is_given_the_classes_and_their_counts():
    @LOSSES.register()
    class BalancedSoftmax(nn.Module):
        def __init__(self, classes, class_counts):
            super().__init__()
            self.register_buffer("shift", torch.tensor(class_counts).log())
            self.classes = classes

        def forward(self, logits, targets):
            return F.cross_entropy(logits + self.shift, targets)

    loss = loss_of("BalancedSoftmax", COUNTS)
    assert loss.classes == NAMES and torch.equal(loss.shift, torch.tensor(COUNTS).log())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weight", [None, {"cat": 3.0}, "balanced"])
def test_the_focal_loss_is_that_of_the_paper(gamma, weight):
    numbers = sum(COUNTS) / 10 / np.array(COUNTS) if weight == "balanced" else np.ones(10)
    numbers[3] = 3.0 if isinstance(weight, dict) else numbers[3]
    loss = loss_of("FocalLoss", COUNTS, gamma=gamma, weight=weight)
    shares = np.random.default_rng(0).dirichlet(np.ones(10), 64)
    p = LOGITS.double().softmax(1).numpy()
    each = -(1 - p) ** gamma * np.log(p) * numbers  # equations 4 and 5, of each class
    for targets, hot in ((LABELS, np.eye(10)[LABELS]), (torch.tensor(shares).float(), shares)):
        mean = Mean()
        for part, of_part in zip(LOGITS.split([40, 24]), targets.split([40, 24]), strict=True):
            mean.update(loss(part, of_part), len(of_part), weight_of(loss, of_part))
        expected = (hot * each).sum() / (hot * numbers).sum()
        assert mean.compute() == pytest.approx(expected, rel=1e-5)


def test_with_gamma_0_the_focal_loss_is_cross_entropy_and_2_is_its_default():
    for weight in (None, [1.0] * 9 + [3.0]):
        ours = loss_of("FocalLoss", gamma=0.0, weight=weight)
        theirs = loss_of("CrossEntropyLoss", weight=weight)
        assert torch.allclose(ours(LOGITS, LABELS), theirs(LOGITS, LABELS), rtol=1e-6)
    assert loss_of("FocalLoss")(LOGITS, LABELS) == loss_of("FocalLoss", gamma=2.0)(LOGITS, LABELS)
    with pytest.raises(ConfigError, match="gamma is 0 or above, not -1"):
        loss_of("FocalLoss", gamma=-1.0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_focal_loss_has_a_gradient_where_an_image_is_surely_right_or_wrong(gamma):
    sure = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    build_loss({"NAME": "FocalLoss", "gamma": gamma}, 2)(sure, torch.tensor([0, 0])).backward()
    assert torch.allclose(sure.grad, torch.tensor([[0.0, 0.0], [-0.5, 0.5]]), atol=1e-5)


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
    ("CrossEntropyLoss", {"label_smoothing": 2}, "label_smoothing lies between 0 and 1, not 2"),
    ("CrossEntropyLoss", {"label_smoothing": -0.1}, "label_smoothing lies between 0 and 1, not -0.1"),
    ("HuberLoss", {"delta": -1}, "cannot be used"),
    ("CrossEntropyLoss", {"weight": ["a"] * 10}, r"takes list\[float\] or balanced or mapping or null"),
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


def test_a_loss_of_one_s_own_may_weigh_classes_by_their_number_and_keep_that_where_it_likes(quick, capsys):
    @LOSSES.register()
    class Inside(nn.Module):
        def __init__(self, weight: ClassWeights = None, classes=None, class_counts=None):
            super().__init__()
            self.loss = nn.CrossEntropyLoss(class_weights(weight, classes, class_counts))

        def forward(self, logits, targets):
            return self.loss(logits, targets)

    @LOSSES.register()
    class Derived(nn.CrossEntropyLoss):
        def __init__(self, weight: ClassWeights = None, classes=None, class_counts=None):
            super().__init__(class_weights(weight, classes, class_counts))

    @LOSSES.register()
    class Prototypes(Inside):
        def __init__(self, weight: ClassWeights = None, classes=None, class_counts=None):
            super().__init__(weight, classes, class_counts)
            self.weight = nn.Parameter(torch.eye(10))

        def forward(self, logits, targets):
            return super().forward(logits @ self.weight, targets)

    for name, is_told in (("Inside", False), ("Derived", True), ("Prototypes", False)):
        check(load_config(quick, {"LOSS": {"NAME": name, "weight": "balanced"}}))
        assert ("loss       weight balanced: " in capsys.readouterr().out) == is_told
