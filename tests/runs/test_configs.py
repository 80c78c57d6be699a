"""Every config in configs/, whatever it is: it loads, says how it is run, and trains on small data."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers import CONFIGS, NAMES, skip_without_its_optimizer
from PIL import Image

from cvkit.config import check_components, components, load_config, read_config
from cvkit.models import build_model, count_parameters
from cvkit.registry import REGISTRIES
from cvkit.reporting.requirements import check_requirements, norm_counts
from cvkit.runs.experiment import Experiment
from cvkit.session import check, train
from cvkit.training.groups import parameter_groups
from cvkit.training.optimizers import build_optimizer
from cvkit.training.schedulers import build_schedule
from cvkit.visualizers.draw import file_name

ASSIGNMENTS = {  # the five hand-ins, and the files that their pictures are drawn into
    "resnet18_cifar10": ["curves_2x2", "samples", "architecture", "misclassified", "cam"],
    "resnet18_cifar10_40e": ["curves", "misclassified", "cam_each",
                             *(f"cam_each_{number}" for number in range(2, 11))],
    "resnet18_cifar10_submission": ["curves_2x2", "misclassified", "cam"],
    "resnet18_ln_cifar10": ["curves", "misclassified", "cam",
                            "cam_matrix_layer1_layer2_layer3_layer4"],
    "resnet18_s1_cifar10": ["dataset", "summary", "curves", "misclassified", "cam"],
}
COUNTS = {"resnet18_cifar10_submission": 20, "resnet18_ln_cifar10": 20}  # of images, else 10
LATER = ["airbench94_cifar10", "airbench95_cifar10", "airbench96_cifar10", "airbench_cifar100", "layers_digits", "mobilenet_v3_cifar10", "resnet18_cifar100", "resnet18_cifar10_best",
         "resnet18_classic_cifar10", "resnet18_digits", "resnet18_mixed_cifar10", "resnet18_tiny_imagenet",
         "resnet50_image_folder", "resnet9_cifar10", "vit_cifar10"]
NORMS = [f"resnet18_{norm}norm_cifar10" for norm in ("batch", "group", "layer")]
SMALLER = {  # what makes a run small besides fewer images; the rest is as the config says
    **{name: {"MODEL.widths": [8, 12, 12], "DATA.BATCH_SIZE": 8} for name in LATER if name.startswith("airbench")},
    "layers_digits": {}, "mobilenet_v3_cifar10": {}, "resnet50_image_folder": {
        "MODEL.weights": None, "DATA.LIMIT": 24, "DATA.TRAIN_TRANSFORMS.0.size": [64, 64],
        "DATA.TEST_TRANSFORMS": [{"NAME": "Resize", "height": 64, "width": 64}]},
    "resnet9_cifar10": {"MODEL.width": 16}, "vit_cifar10": {"TRAIN.WARMUP_EPOCHS": 1},
}


@pytest.fixture(scope="session")
def few_images(cifar_images, tmp_path_factory):
    """Ten CIFAR-10 pictures of each class for training and test: looked through in no time."""
    folder = tmp_path_factory.mktemp("few")
    for source in (path for split in ("train", "test") for path in (cifar_images / split).iterdir()):
        target = folder / source.parent.name / source.name
        target.mkdir(parents=True)
        for path in sorted(source.glob("*.jpg"))[:10]:
            shutil.copy(path, target)
    return folder


@pytest.fixture(scope="session")
def own_folder(cifar_images, tmp_path_factory):
    """A folder of one's own: 120 real pictures, 64×64 pixels, six class folders and no splits."""
    folder = tmp_path_factory.mktemp("own") / "my_images"
    for source in sorted((cifar_images / "train").iterdir())[:6]:
        (folder / source.name).mkdir(parents=True)
        for path in sorted(source.glob("*.jpg"))[:20]:
            Image.open(path).resize((64, 64), Image.BICUBIC).save(folder / source.name / path.name)
    return folder


def narrow(path):
    """Return what makes a model small."""
    return SMALLER.get(path.stem, {"MODEL.width": 16})


def small(path, few_images, own_folder, **more):
    """Return a config on small real data: CIFAR-10 pictures, or 64×64 ones where it has a folder."""
    config = load_config(path)
    skip_without_its_optimizer(config)
    overrides = {"DATA.LIMIT": 60, "DATA.BATCH_SIZE": 16, **more}
    if config.DATA.DATASET.NAME == "ImageFolder":
        overrides["DATA.DATASET.root"] = str(own_folder)
    elif config.DATA.DATASET.NAME != "Digits":
        overrides["DATA.DATASET"] = {"NAME": "ImageFolder", "root": str(few_images)}
    return load_config(path, overrides)


def test_no_config_is_lost():
    assert len(CONFIGS) >= 18
    assert sorted([*ASSIGNMENTS, *LATER, *NORMS]) == sorted(path.stem for path in CONFIGS)


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_its_header_says_how_it_is_run_and_what_comes_of_it(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    command = f"#   python tools/train.py {path.relative_to(ROOT)}"
    assert command in header
    assert any(re.search(r"\d %|not measured", line) for line in header)
    assert all(len(line) <= 104 for line in path.read_text().splitlines())


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_it_resolves_and_all_its_components_are_right(path):
    config = load_config(path)
    skip_without_its_optimizer(config)
    check_components(config)
    assert read_config(config.dump(), "again") == config
    kinds = [kind for kind, _ in components(config)]
    assert {"model", "dataset", "loss", "optimizer"} <= set(kinds) <= set(REGISTRIES)
    assert all(demand.is_met is not False for demand in check_requirements(config))


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_one_batch_goes_through_it_as_it_is(path, few_images, own_folder, capsys):
    """But for the width where an earlier config has the same model."""
    models = [load_config(other).MODEL for other in CONFIGS[:CONFIGS.index(path) + 1]]
    more = {"MODEL.weights": None} if "weights" in models[-1] else {}
    more |= narrow(path) if models[-1] in models[:-1] else {}
    more["DATA.BATCH_SIZE"] = 4
    check(small(path, few_images, own_folder, **more))
    assert "All is well" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", LATER)
def test_later_assignments_train_and_draw_on_real_pictures(name, few_images, own_folder, tool):
    path = ROOT / "configs" / f"{name}.yaml"
    config = small(path, few_images, own_folder, **{**narrow(path), "TRAIN.EPOCHS": 2})
    run = train(config)
    assert [epoch["epoch"] for epoch in run.metrics] == [1, 2]
    assert all(np.isfinite(epoch["train/loss"]) for epoch in run.metrics)
    assert len(run.predictions.true) == len(run.data.test) and len(run.data.train) == min(60, config.DATA.LIMIT)
    first, last = Experiment(config).model.state_dict(), run.checkpoint().model
    assert any(not torch.equal(first[key], last[key]) for key in first if key.endswith("weight"))
    code, _, err = tool("visualize.py", "--misclassified", "3", "--cam")
    assert code == 0, err  # a CAM of every model, transformers and small maps included
    if name == "resnet18_tiny_imagenet":
        assert len(run.data.test) == 36  # 30 % of 120
    if name in ("resnet18_cifar100", "resnet18_tiny_imagenet"):
        assert 0 <= run.metrics[-1]["test/top5"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_an_assignment_trains_says_what_it_demands_and_draws_exactly_its_pictures(
        name, few_images, own_folder, tool):
    path = ROOT / "configs" / f"{name}.yaml"
    config = small(path, few_images, own_folder,
                   **{**narrow(path), "DATA.LIMIT": 100, "TRAIN.EPOCHS": 2})
    run = train(config)
    log = (run.folder / "train.log").read_text()
    demands = check_requirements(config, run)
    broken = {demand.text.split()[0] for demand in demands if not demand.is_met}
    allowed = {"TRAIN.EPOCHS", "DATA.BATCH_SIZE", "11,189,322"}  # which are smaller here
    assert len(demands) >= 10 and broken <= allowed
    assert all(f"required   {demand}" in log for demand in demands)
    code, out, err = tool("visualize.py")
    assert code == 0, err
    drawn = [line.rsplit("/", 1)[1] for line in out.splitlines() if line.endswith(".png")]
    assert drawn == [f"{picture}.png" for picture in ASSIGNMENTS[name]]
    nodes = {node.NAME: node for node in config.VISUALIZERS}
    assert {nodes[shown].get("count", 10) for shown in ("misclassified", "cam", "cam_matrix")
            if shown in nodes} == {COUNTS.get(name, 10)}
    assert [file_name(node) for node in config.VISUALIZERS] == list(dict.fromkeys(
        re.sub(r"_\d+$", "", picture) if "each" in picture else picture
        for picture in ASSIGNMENTS[name]))
    if name == "resnet18_cifar10_submission":
        code, _, err = tool("visualize.py", "--report")
        assert code == 0, err
        page = (run.folder / "report.html").read_text()
        for part in ("Model code", "Utilities", "Main code", "Training log", "Repository", "README",
                     "Misclassified images", "Class activation maps", "Requirements"):
            assert part in page


@pytest.mark.slow
def test_norms_side_by_side_differ_in_the_norm_alone(few_images, own_folder, tool):
    for name in NORMS:
        path, norm = ROOT / "configs" / f"{name}.yaml", name.split("_")[1].removesuffix("norm")
        run = train(small(path, few_images, own_folder, **{"TRAIN.EPOCHS": 1, "MODEL.width": 32}))
        assert norm_counts(run.model) == {norm: 20}
    command, = re.findall(r"#   (python tools/compare\.py .*?)\n_", re.sub(
        r"\\\n#\s+|\n# Time.*", " ", (ROOT / "configs/resnet18_layernorm_cifar10.yaml").read_text()) + "\n_",
        re.DOTALL)
    words = command.split("\n")[0].split()
    code, _, err = tool("compare.py", *words[2:], "--csv", "norms.csv")
    assert code == 0, err
    rows = [line.split(",") for line in Path("norms.csv").read_text().splitlines()]
    assert rows[0][:3] == ["run", "MODEL.norm", "test accuracy"]
    assert sorted(row[1] for row in rows[1:]) == ["batch", "group", "layer"]


# -- what the rows ask for ---------------------------------------------------------------

CROP, CUTOUT = {"NAME": "RandomCrop", "size": 32, "padding": 4}, {"NAME": "CutOut", "size": 16}


def config_of(name):
    return load_config(ROOT / "configs" / f"{name}.yaml")


@pytest.mark.parametrize("name, epochs, batch, optimizer, transforms", [
    ("resnet18_cifar10", 20, 128, "SGD", (CROP, CUTOUT)),
    ("resnet18_cifar10_40e", 40, 256, "SGD", (CROP, CUTOUT)),
    ("resnet18_cifar10_submission", 20, 128, "SGD", (CROP, CUTOUT)),
    ("resnet18_ln_cifar10", 40, 500, "Muon", (CROP, CUTOUT, {"NAME": "Rotate", "limit": 5})),
    ("resnet18_s1_cifar10", 20, 128, "SGD", (CROP, CUTOUT))])
def test_an_assignment_is_what_the_course_asks_for(name, epochs, batch, optimizer, transforms):
    config = config_of(name)
    assert config.MODEL.NAME == "resnet18" and config.DATA.DATASET.NAME == "CIFAR10"
    assert config.DATA.BATCH_SIZE == batch and config.TRAIN.EPOCHS == epochs
    assert config.DATA.TRAIN_TRANSFORMS == transforms
    assert config.DATA.TEST_TRANSFORMS == () and config.DATA.VAL_FRACTION == 0
    assert config.OPTIMIZER.NAME == optimizer and config.OPTIMIZER.momentum == 0.9
    assert config.LOSS.NAME == "CrossEntropyLoss"


def test_the_layer_norm_one_follows_the_test_loss():
    config = config_of("resnet18_ln_cifar10")
    skip_without_its_optimizer(config)
    model = build_model(config.MODEL, 10, (3, 32, 32))
    assert norm_counts(model) == {"layer": 20}
    optimizer = build_optimizer(config.OPTIMIZER, parameter_groups(config.OPTIMIZER, model))
    schedule = build_schedule(config.SCHEDULER, optimizer, 40, 391)
    assert schedule.unit == "metric" and schedule.scheduler.mode == "min"


def test_the_one_with_stride_1_has_its_parameters():
    config = config_of("resnet18_s1_cifar10")
    assert count_parameters(build_model(config.MODEL, 10, (3, 32, 32))) == 11_189_322


def test_the_custom_resnet_peaks_at_the_end_of_epoch_5_of_24_and_ends_where_it_began():
    config = config_of("resnet9_cifar10")
    assert config.DATA.BATCH_SIZE == 512 and config.TRAIN.EPOCHS == 24
    weight = torch.zeros(1, requires_grad=True)
    steps = -(-50_000 // 512)
    schedule = build_schedule({**config.SCHEDULER, "max_lr": 0.4}, torch.optim.SGD(
        [weight], lr=0.1, momentum=0.9), 24, steps)
    rates = []
    for _ in range(24 * steps):
        rates.append(schedule.rate)
        schedule.optimizer.step()
        schedule.after_step()
    assert rates.index(max(rates)) == pytest.approx(5 * steps - 1, abs=1)
    assert max(rates) == pytest.approx(0.4, rel=1e-3) and rates[0] == pytest.approx(0.004)
    assert rates[-1] == pytest.approx(0.004, rel=0.05)  # no annihilation
    assert np.allclose(np.diff(rates, 2)[5 * steps + 5:], 0, atol=1e-9)  # linear


def test_the_tiny_imagenet_one_splits_70_to_30():
    config = config_of("resnet18_tiny_imagenet")
    assert config.DATA.DATASET.test_fraction == 0.3 and config.TRAIN.EPOCHS == 50


# Of the scripts of airbench: for sums over batches, or per 1,024 images and apart from momentum.
MUON = {"batch": 2000, "bias_lr": 0.053, "head_lr": 0.67, "wd": 2e-6}
SGD = {"95": (10.0, 0.0153), "96": (9.0, 0.012)}


def test_the_rates_of_airbench_are_those_of_its_scripts():
    config = load_config(ROOT / "configs/airbench94_cifar10.yaml")
    size, decay = MUON["batch"], MUON["wd"] * MUON["batch"]
    head, biases = config.OPTIMIZER.groups
    assert config.DATA.BATCH_SIZE == size and (head["match"], biases["match"]) == ("head", "*bias")
    assert config.OPTIMIZER.sgd_lr == pytest.approx(MUON["bias_lr"] * size)
    assert head["sgd_lr"] == pytest.approx(MUON["head_lr"] * size)
    for group, rate in ((head, head["sgd_lr"]), (biases, config.OPTIMIZER.sgd_lr)):
        assert group["weight_decay"] == pytest.approx(decay / rate, rel=2e-3)
    for name, (per_1024, decay) in SGD.items():
        config = load_config(ROOT / f"configs/airbench{name}_cifar10.yaml")
        node, momentum = config.OPTIMIZER, config.OPTIMIZER.momentum
        rate = per_1024 / (1 + 1 / (1 - momentum))
        assert config.DATA.BATCH_SIZE == 1024 and momentum == 0.85 and node.nesterov
        assert node.lr == pytest.approx(rate, rel=1e-4)
        assert node.weight_decay == pytest.approx(decay / per_1024, rel=1e-3)
        assert node.groups[0]["weight_decay"] == pytest.approx(decay / per_1024 / 64, rel=2e-3)
        assert node.groups[0]["lr_mult"] == 64
        assert config.TRAIN.EMA_DECAY == pytest.approx(0.95**5, rel=1e-4) and config.TRAIN.EMA_POWER == 3
