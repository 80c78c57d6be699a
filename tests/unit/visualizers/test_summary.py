import pytest
import torch
from torch import nn

from cvkit.config import load_config
from cvkit.errors import ConfigError
from cvkit.models import build_model
from cvkit.registry import MODELS
from cvkit.reporting.report import write_report
from cvkit.reporting.requirements import check_requirements
from cvkit.runs.experiment import Experiment
from cvkit.session import train
from cvkit.visualizers.summary import layer_table, model_stages

SHAPE = (3, 32, 32)
RESNET18 = [("conv1", "Conv2d", (64, 32, 32), 1_728), ("norm1", "BatchNorm2d", (64, 32, 32), 128),
            ("layer1", "2 × BasicBlock", (64, 32, 32), 147_968),
            ("layer2", "2 × BasicBlock", (128, 16, 16), 525_568),
            ("layer3", "2 × BasicBlock", (256, 8, 8), 2_099_712),
            ("layer4", "2 × BasicBlock", (512, 4, 4), 8_393_728),
            ("pool", "AdaptiveAvgPool2d", (512, 1, 1), 0), ("fc", "Linear", (10,), 5_130)]


def build(name="resnet18", size=32, **arguments):
    return build_model({"NAME": name, **arguments}, 10, (3, size, size))


def test_the_stages_of_the_course_s_network():
    stages = model_stages(build(), SHAPE)
    assert stages == RESNET18 and sum(count for *_, count in stages) == 11_173_962


def test_the_variant_with_an_8_by_8_map_and_a_wider_linear_layer():
    stages = model_stages(build(strides=[1, 2, 2, 1], pool_size=2), SHAPE)
    assert sum(count for *_, count in stages) == 11_189_322
    assert stages[5][2] == (512, 8, 8) and stages[-2:] == [
        ("pool", "AdaptiveAvgPool2d", (512, 2, 2), 0), ("fc", "Linear", (10,), 20_490)]


@pytest.mark.parametrize("name, size", [("vgg11", 64), ("mobilenet_v3_small", 64),
                                        ("densenet121", 64), ("vit_b_16", 32), ("swin_t", 64)])
def test_the_stages_of_any_model_hold_all_its_parameters(name, size):
    model = build(name, size)
    stages = model_stages(model, (3, size, size))
    assert 4 <= len(stages) <= 40
    held = sum(count for *_, count in stages)
    # What belongs to no layer (a class token, position embeddings) is not in the stages.
    assert 0.98 < held / sum(parameter.numel() for parameter in model.parameters()) <= 1
    assert stages[-1][2] == (10,)


def test_multiplications_are_counted_for_every_token_and_of_attention():
    model = build("vit", width=64, depth=2, heads=2, patch=8)
    # Per block: queries, keys, values and output; the two halves of attention; the hidden layer.
    tokens, width = 17, 64
    block = 4 * tokens * width ** 2 + 2 * tokens ** 2 * width + 2 * tokens * width * 4 * width
    count = 16 * (3 * 8 * 8) * width + 2 * block + width * 10
    assert f"Total mult-adds (M): {count / 1e6:.2f}\n" in layer_table(model, SHAPE, 3)
    assert "Total mult-adds (M): 555.42\n" in layer_table(build(), SHAPE, 1)
    # Torch has a faster way for its own layer, which tells of no products.
    own = nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(256, 2, 512, batch_first=True))
    count = 4 * 3 * 256 ** 2 + 2 * 3 ** 2 * 256 + 2 * 3 * 256 * 512
    assert f"Total mult-adds (M): {count / 1e6:.2f}\n" in layer_table(own, (3, 16, 16), 1)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_diagram_tells_of_parameters_outside_of_all_stages(tiny):
    experiment = Experiment(load_config(tiny, {"MODEL": {"NAME": "vit"}}))
    figure = experiment.visualize("architecture")
    assert "2,693,578 parameters, 5 stages and 12,672 parameters outside of them;" in figure.caption
    assert max(text.get_window_extent().x1 for text in figure.texts) < figure.bbox.x1
    *rows, last = figure.table.splitlines()
    counts = [int(row.split()[-1].replace(",", "")) for row in [*rows, last]]
    assert last.split()[:3] == ["outside", "of", "them"] and sum(counts) == 2_693_578


class Shared(nn.Module):
    """Two layers with one weight, and one that runs twice."""

    def __init__(self, frozen=0):
        super().__init__()
        self.flatten = nn.Flatten()
        self.a, self.b, self.c = nn.Linear(12, 8, bias=False), nn.Linear(8, 8), nn.Linear(8, 8)
        self.c.weight = self.b.weight
        self.head = nn.Linear(8, 10)
        for weight in list(self.parameters())[:frozen]:
            weight.requires_grad_(False)

    def forward(self, x):
        return self.head(self.c(self.b(self.b(self.a(self.flatten(x))))))


def test_shared_weights_are_counted_once():
    table = layer_table(Shared(), (3, 2, 2), 3)
    assert "Total params: 266 (64 shared, counted once)\nTrainable params: 266\n" in table
    counts = {}
    for name, _, _, count in model_stages(Shared(), (3, 2, 2)):
        counts.setdefault(name, []).append(count)
    assert counts == {"flatten": [0], "a": [96], "b": [72, 0], "c": [8], "head": [90]}


def test_frozen_parameters_are_told_apart_everywhere(tiny, draws_only):
    MODELS.register("frozen")(lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 10).requires_grad_(False), nn.Linear(10, 10)))
    run = train(load_config(tiny, {"MODEL": {"NAME": "frozen"}, "TRAIN.EPOCHS": 1}))
    words = "30,840 parameters (110 trained)"
    assert f"model      frozen, {words}\n" in (run.folder / "train.log").read_text()
    summary = run.visualize("summary")
    assert words in summary.caption and words in run.visualize("architecture").caption
    assert ("Total params: 30,840\nTrainable params: 110\nNon-trainable params: 30,730\n"
            in summary.table)
    draws_only()
    write_report(run)
    assert "Parameters: 30,840 (110 trained)." in (run.folder / "README.md").read_text().replace("\\", "")
    assert check_requirements(load_config(tiny, {"MODEL": {"NAME": "frozen"}, "REQUIRE": {
        "parameters": 30_840}}), run)[0].is_met


def test_the_picture_says_it_all(tiny):
    figure = Experiment(load_config(tiny, {"MODEL.width": 64})).visualize("architecture")
    words = [text.get_text() for text in figure.axes[0].texts]
    for name, kind, shape, count in RESNET18:
        assert {name, kind, "×".join(map(str, shape))} <= set(words)
        assert not count or any(word.startswith(f"{count:,} (") for word in words)
    assert "8,393,728 (75.1 %)" in words and "3×32×32" in words
    assert "11,173,962 parameters" in figure.caption


def test_the_table_is_torchinfo_s_as_picture_and_as_text(tiny):
    experiment = Experiment(load_config(tiny, {"MODEL.width": 64}))
    figure = experiment.visualize("summary")
    assert figure.table == layer_table(experiment.model, SHAPE, 3) == figure.texts[0].get_text()
    assert "Total params: 11,173,962" in figure.table and "Units." not in figure.table
    assert "Conv2d (conv1)" in figure.table and "[1, 512, 4, 4]" in figure.table
    assert figure.caption == "resnet18, 11,173,962 parameters, for images of 3×32×32"
    figure.canvas.draw()
    box = figure.texts[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0


def test_a_long_table_is_cut_in_the_picture_only(tiny):
    experiment = Experiment(load_config(tiny, {"MODEL": {"NAME": "densenet121"}, "DATA.LIMIT": 20}))
    figure = experiment.visualize("summary", depth=6)
    shown = figure.texts[0].get_text()
    assert len(figure.table.splitlines()) > 150 > len(shown.splitlines())
    assert figure.get_figheight() < 20


def test_the_model_comes_out_as_it_went_in():
    model = build(width=4).train()
    model.layer1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    layer_table(model, SHAPE, 3)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_depth_below_1_is_refused(tiny):
    with pytest.raises(ConfigError, match="depth is 1 or more, not 0"):
        Experiment(load_config(tiny)).visualize("summary", depth=0)
