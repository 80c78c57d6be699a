import pytest
import torch

from cvkit.errors import ConfigError
from cvkit.registry import SCHEDULERS
from cvkit.training.muon import Muon
from cvkit.training.schedulers import Schedule, build_schedule, depends_on_length, unit_of

NODES = {  # the least each needs in a config
    "ChainedScheduler": None, "SequentialLR": None,
    "ConstantLR": {}, "LinearLR": {}, "PolynomialLR": {}, "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [2, 4]}, "ExponentialLR": {"gamma": 0.5},
    "CosineAnnealingLR": {}, "CosineAnnealingWarmRestarts": {"T_0": 2},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1}, "OneCycleLR": {"max_lr": 0.1},
    "ReduceLROnPlateau": {}, "Triangular": {}}
UNITS = {"Triangular": "batch", "OneCycleLR": "batch", "CyclicLR": "batch", "ReduceLROnPlateau": "metric"}


def optimizer(lr=0.1):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.9)


def rates(node, epochs=6, steps=10, warmup=0.0, losses=None, lr=0.1):
    """Return the rate used in every optimizer step of a whole training."""
    sgd = optimizer(lr)
    schedule = build_schedule(node, sgd, epochs, steps, warmup)
    used = []
    for epoch in range(epochs):
        for _ in range(steps):
            used.append(schedule.rate)
            sgd.step()
            schedule.after_step()
        schedule.after_epoch(losses[epoch] if losses else 1.0, accuracy=0.5)
    return used


def test_all_of_torchs_schedulers_are_known():
    assert sorted(SCHEDULERS) == sorted(NODES)


@pytest.mark.parametrize("name", [name for name, node in NODES.items() if node is not None])
def test_every_scheduler_is_stepped_in_its_unit(name):
    node = {"NAME": name, **NODES[name]}
    used = rates(node)
    scheduler = build_schedule(node, optimizer(), 6, 10).scheduler
    unit = UNITS.get(name, "epoch")
    assert unit_of(scheduler) == unit
    if unit == "metric":
        return
    expected, twin = [], build_schedule(node, optimizer(), 6, 10).scheduler
    for step in range(60):
        expected.append(twin.optimizer.param_groups[0]["lr"])
        twin.optimizer.step()
        if unit == "batch" or step % 10 == 9:
            twin.step()
    assert used == expected
    assert len(set(used)) > 1  # it was stepped


def test_one_cycle_gets_its_length_rises_and_anneals():
    used = rates({"NAME": "OneCycleLR", "max_lr": 0.4})
    assert used[0] == pytest.approx(0.4 / 25) and max(used) == pytest.approx(0.4, rel=1e-2)
    assert used.index(max(used)) == pytest.approx(0.3 * 60, abs=1) and used[-1] < 1e-3
    shorter = rates({"NAME": "OneCycleLR", "max_lr": 0.4, "epochs": 12})
    assert shorter[-1] > 0.1  # the config's own length counts


def test_one_cycle_peaks_at_the_optimizer_s_rate_unless_the_config_says_another():
    assert max(rates({"NAME": "OneCycleLR"}, lr=0.3)) == pytest.approx(0.3, rel=1e-2)
    assert max(rates({"NAME": "OneCycleLR", "max_lr": 0.4}, lr=0.3)) == pytest.approx(0.4, rel=1e-2)


def test_a_triangle_rises_and_falls_in_lines():
    """Against the schedule of airbench's script, written as a table: 200 steps."""
    used = rates({"NAME": "Triangular"}, epochs=8, steps=25, lr=2.0)
    table = {0: 0.2, 10: 0.2 + 0.8 * 10 / 46, 46: 1.0, 123: 0.535, 199: 0.07 + 0.93 / 154}
    assert {step: used[step] for step in table} == pytest.approx({step: 2 * part for step, part in table.items()})
    falling = rates({"NAME": "Triangular", "peak": 0.0, "end": 0.0}, epochs=2, steps=4, lr=1.0)
    assert falling == pytest.approx([1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    rising = rates({"NAME": "Triangular", "peak": 1.0, "start": 0.0}, epochs=1, steps=4, lr=1.0)
    assert rising == pytest.approx([0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize("wrong, expected", [
    ({"peak": 1.5}, "peak lies between 0 and 1, not 1.5"), ({"start": -0.1}, "start is 0 or more, not -0.1"),
    ({"peak": 0.3, "start": 0.1, "end": -1.0}, "end is 0 or more, not -1.0")])
def test_a_triangle_that_is_none(wrong, expected):
    with pytest.raises(ConfigError, match=expected):
        build_schedule({"NAME": "Triangular", **wrong}, optimizer(), 2, 4)


def test_step_lr_is_stepped_per_epoch():
    assert rates({"NAME": "StepLR", "step_size": 2, "gamma": 0.1})[::10] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_cosine_gets_its_length_in_epochs():
    used = rates({"NAME": "CosineAnnealingLR"})[::10]
    assert used[0] == 0.1 and used[3] == pytest.approx(0.05) and used[5] < 0.01


def test_a_polynomial_gets_its_length_in_epochs_unless_the_config_says_another():
    assert rates({"NAME": "PolynomialLR"})[::10] == pytest.approx([0.1 * (6 - epoch) / 6 for epoch in range(6)])
    assert rates({"NAME": "PolynomialLR"}, warmup=2.0)[20:] == pytest.approx(rates({"NAME": "PolynomialLR"}, epochs=4))
    assert rates({"NAME": "PolynomialLR", "total_iters": 2})[::10] == pytest.approx([0.1, 0.05, 0, 0, 0, 0])
    whole = {"NAME": "torch.optim.lr_scheduler.PolynomialLR"}
    assert rates(whole) == rates({"NAME": "PolynomialLR"}) and depends_on_length(whole)
    # A warm-up keeps torch's length.
    assert rates({"NAME": "LinearLR"})[50] == 0.1


def test_the_plateau_follows_the_loss_and_in_max_mode_the_accuracy():
    node = {"NAME": "ReduceLROnPlateau", "patience": 0, "factor": 0.1}
    assert rates(node, losses=[3, 2, 1, 1, 1, 0.5])[::10] == pytest.approx(
        [0.1, 0.1, 0.1, 0.1, 0.01, 0.001])
    schedule = build_schedule({**node, "mode": "max"}, optimizer(), 6, 1)
    for accuracy in (0.1, 0.2, 0.2):
        schedule.after_step()
        schedule.after_epoch(loss=1.0, accuracy=accuracy)
    assert schedule.rate == pytest.approx(0.01) and schedule.scheduler.best == 0.2


def test_no_scheduler_is_a_constant_rate():
    assert set(rates(None)) == {0.1}


@pytest.mark.parametrize("node", [None, {"NAME": "CosineAnnealingLR"}, {"NAME": "StepLR",
                                                                       "step_size": 1}])
def test_a_warm_up_rises_linearly_and_the_scheduler_starts_after_it(node):
    used = rates(node, warmup=2.0)
    assert used[:20] == pytest.approx([0.1 * (step + 1) / 21 for step in range(20)])
    assert used[20] == pytest.approx(0.1)
    assert used[20:] == pytest.approx(rates(node, epochs=4))


def test_a_warm_up_before_one_cycle_leaves_it_its_length():
    used = rates({"NAME": "OneCycleLR", "max_lr": 0.4}, warmup=1.0)
    assert used[10:] == pytest.approx(rates({"NAME": "OneCycleLR", "max_lr": 0.4}, epochs=5))


def test_state_goes_on_where_it_was():
    for node, warmup in (({"NAME": "OneCycleLR", "max_lr": 0.4}, 0.5), (None, 3.0),
                         ({"NAME": "ReduceLROnPlateau", "patience": 1}, 0.0)):
        whole = build_schedule(node, optimizer(), 6, 10, warmup)
        half_optimizer = optimizer()
        half = build_schedule(node, half_optimizer, 6, 10, warmup)

        def go(schedule, epochs):
            for _ in range(epochs):
                for _ in range(10):
                    schedule.optimizer.step()
                    schedule.after_step()
                schedule.after_epoch(1.0, 0.5)

        go(whole, 5)
        go(half, 2)
        later_optimizer = optimizer()
        later = build_schedule(node, later_optimizer, 6, 10, warmup)
        later_optimizer.load_state_dict(half_optimizer.state_dict())
        later.load_state_dict(half.state_dict())
        go(later, 3)
        assert later.rate == whole.rate
        assert later.state_dict() == whole.state_dict()


def test_own_schedulers_say_their_unit():
    class PerBatch(torch.optim.lr_scheduler.StepLR):
        unit = "batch"

    assert Schedule(optimizer(), PerBatch(optimizer(), 1)).unit == "batch"


@pytest.mark.parametrize("node, warmup, expected", [
    (None, 6.0, "leaves nothing of the 6 epochs of TRAIN.EPOCHS, 60 steps"),
    (None, 5.96, "TRAIN.WARMUP_EPOCHS 5.96 leaves nothing of the 6 epochs of TRAIN.EPOCHS, 60 steps"),
    ({"NAME": "OneCycleLR"}, 5.96, "leaves nothing of the 6 epochs"),
    ({"NAME": "StepLR"}, 0.0, "scheduler StepLR needs step_size"),
    ({"NAME": "OneCycleLR", "max_lr": 0.1, "pct_start": 2.0}, 0.0, "cannot be built"),
    ({"NAME": "StepLR", "step_size": 0}, 0.0, "cannot be stepped"),
    ({"NAME": "OneCycleLR", "pct_start": 1.0}, 0.0, "cannot be stepped: float division"),
    ({"NAME": "OneCycleLR", "max_lr": 0.1, "total_steps": 10}, 0.0, "ends after 10 steps, the "
                                                                    "training takes 60"),
    ({"NAME": "StepLR", "step_size": 1, "gama": 0.5}, 0.0, "has no argument 'gama'")])
def test_wrong_schedulers(node, warmup, expected):
    with pytest.raises(ConfigError, match=expected):
        build_schedule(node, optimizer(), 6, 10, warmup)


COSINE = {"NAME": "CosineAnnealingLR"}


def composed(name, *schedulers, **arguments):
    return {"NAME": name, "schedulers": list(schedulers), **arguments}


def test_a_cosine_within_a_sequence_has_the_length_of_its_own_stretch():
    node = composed("SequentialLR", {"NAME": "ConstantLR", "factor": 0.5, "total_iters": 9}, COSINE,
                    milestones=[2])
    used = rates(node)[::10]
    assert used[:2] == [0.05, 0.05]
    assert used[2:] == pytest.approx(rates(COSINE, epochs=4)[::10])
    polynomial = {"NAME": "PolynomialLR"}
    used = rates(composed("SequentialLR", {"NAME": "LinearLR"}, polynomial, milestones=[2]))
    assert used[20:] == pytest.approx(rates(polynomial, epochs=4))
    three = composed("SequentialLR", COSINE, COSINE, COSINE, milestones=[1, 3])
    assert rates(three)[::10][1:3] == pytest.approx(rates(COSINE, epochs=2)[::10])
    chained = composed("ChainedScheduler", composed("SequentialLR", COSINE, COSINE, milestones=[2]))
    assert rates(chained) == pytest.approx(rates(composed("SequentialLR", COSINE, COSINE, milestones=[2])))


def test_a_rate_is_not_looked_for_within_another_scheduler():
    cycle = {"NAME": "OneCycleLR", "max_lr": "find"}
    with pytest.raises(ConfigError, match="max_lr find is looked for in SCHEDULER itself, not within"):
        rates(composed("SequentialLR", cycle, cycle, milestones=[20]))


def test_one_cycles_in_a_sequence_go_by_steps_each_with_its_own_length():
    cycle = {"NAME": "OneCycleLR", "max_lr": 0.4}
    used = rates(composed("SequentialLR", cycle, cycle, milestones=[20]))
    assert used[:20] == pytest.approx(rates(cycle, epochs=2))
    assert used[20:] == pytest.approx(rates(cycle, epochs=4))
    chained = composed("ChainedScheduler", cycle)
    assert rates(chained) == pytest.approx(rates(cycle))


@pytest.mark.parametrize("node, expected", [
    (composed("SequentialLR", {"NAME": "OneCycleLR", "max_lr": 0.4, "total_steps": 5},
              {"NAME": "OneCycleLR", "max_lr": 0.4}, milestones=[20]), "ends after 5 steps, its stretch takes 20"),
    ({"NAME": "table", "rates": [1.0, 0.5]}, "scheduler table cannot be stepped: list index out of range")])
def test_schedules_that_end_before_the_training_are_refused(node, expected):
    SCHEDULERS.register("table")(lambda optimizer, rates: torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: rates[epoch]))
    with pytest.raises(ConfigError, match=expected):
        build_schedule(node, optimizer(), 6, 10)


def test_a_composition_that_torch_cannot_step_is_refused():
    node = composed("SequentialLR", COSINE, composed("ChainedScheduler", COSINE), milestones=[2])
    with pytest.raises(ConfigError, match="torch composes no schedulers that are composed"):
        build_schedule(node, optimizer(), 6, 10)


def test_schedulers_of_several_units_are_not_put_together():
    node = composed("SequentialLR", {"NAME": "LinearLR"}, {"NAME": "OneCycleLR", "max_lr": 0.4},
                    milestones=[2])
    with pytest.raises(ConfigError, match="in several units, batch and epoch"):
        build_schedule(node, optimizer(), 6, 10)


def test_what_is_derived_from_a_schedule_goes_by_its_unit():
    class MyCycle(torch.optim.lr_scheduler.OneCycleLR):
        pass

    class MyPlateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
        pass

    assert unit_of(MyCycle(optimizer(), 0.1, total_steps=5)) == "batch"
    assert unit_of(MyPlateau(optimizer())) == "metric"


@pytest.mark.parametrize("node, planned", [
    (None, False), (COSINE, True), ({"NAME": "StepLR", "step_size": 1}, False),
    (composed("ChainedScheduler", {"NAME": "ExponentialLR", "gamma": 0.9}), False),
    (composed("ChainedScheduler", COSINE), True), ({"NAME": "Triangular"}, True),
    ({"NAME": "PolynomialLR"}, True), ({"NAME": "PolynomialLR", "total_iters": 9}, False), ({"NAME": "LinearLR"}, False),
    (composed("SequentialLR", {"NAME": "LinearLR"}, COSINE, milestones=[2]), True),
    (composed("SequentialLR", COSINE, {"NAME": "ExponentialLR", "gamma": 0.9}, milestones=[2]), False),
    (composed("SequentialLR", {"NAME": "LinearLR"}, composed("ChainedScheduler", COSINE),
              milestones=[2]), True)])
def test_whether_the_number_of_epochs_is_planned_is_asked_within_as_well(node, planned):
    assert depends_on_length(node) == planned


@pytest.mark.parametrize("node", [{"NAME": "OneCycleLR", "max_lr": 0.4},
                                  {"NAME": "CyclicLR", "base_lr": 0.01, "max_lr": 0.1}])
def test_momentum_is_cycled_only_where_there_is_one_or_the_config_asks_for_it(node):
    weights = [torch.zeros(1, requires_grad=True)]

    def momenta(optimizer, **arguments):
        schedule = build_schedule({**node, **arguments}, optimizer, 6, 10)
        found = set()
        for _ in range(30):
            group = optimizer.param_groups[0]
            found.add(round(group.get("momentum", group.get("betas", [0])[0]), 4))
            optimizer.step()
            schedule.after_step()
        return found

    assert momenta(torch.optim.SGD(weights, 0.1)) == {0.0}
    assert len(momenta(torch.optim.SGD(weights, 0.1), cycle_momentum=True)) > 9
    assert len(momenta(torch.optim.SGD(weights, 0.1, momentum=0.9))) > 9
    assert len(momenta(torch.optim.AdamW(weights, 0.1))) > 9
    assert momenta(torch.optim.Adagrad(weights, 0.1)) == {0}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_what_muon_gives_adamw_stays_as_the_config_says():
    """Torch would cycle its betas alone, not its momentum."""
    muon = Muon([torch.zeros(2, 2, requires_grad=True)], 0.1, betas=(0.9, 0.95))
    schedule = build_schedule({"NAME": "OneCycleLR", "max_lr": 0.4}, muon, 6, 10)
    for _ in range(30):
        group = muon.param_groups[0]
        assert (group["betas"], group["momentum"]) == ((0.9, 0.95), 0.95)
        schedule.after_step()
