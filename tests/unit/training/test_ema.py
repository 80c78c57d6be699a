import torch
from torch import nn

from cvkit.training.ema import EMA


def test_the_average_follows_the_weights_by_its_rule():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    ema = EMA(model, 0.9)
    expected = model[0].weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            model[0].weight.add_(1.0)
        model(torch.randn(4, 3))
        ema.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    assert torch.allclose(ema.model[0].weight, expected, rtol=1e-5)
    assert ema.model[1].num_batches_tracked == 200
    assert not torch.equal(ema.model[1].running_mean, model[1].running_mean)
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


def test_buffers_that_a_module_replaces_are_followed():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.register_buffer("seen", torch.zeros(()))

    model = Counts()
    ema = EMA(model, 0.5)
    for _ in range(30):
        model.seen = model.seen + 0.1
        ema.update()
    assert 2.5 < ema.model.seen < 3.0
