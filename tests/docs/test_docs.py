"""The pages in docs/: their files are written, their commands run, their output is what they say."""

import csv
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, paint
from PIL import Image

import cvkit.registry as registries
from benchmarks import measure
from cvkit.config import SCHEMA, components, load_config
from cvkit.registry import LOSSES, METRICS, OPTIMIZERS, REGISTRIES, WRITERS
from cvkit.reporting.requirements import FACTS
from cvkit.runs.metrics_file import add_metrics, keep_epochs, read_metrics
from cvkit.session import train
from cvkit.training.schedulers import build_schedule

DOCS = ROOT / "docs"
EXPLANATION = DOCS / "architecture.md"  # of the code; the other pages are tasks
PAGES = sorted(path for path in DOCS.glob("*.md") if path.name != "README.md" and path != EXPLANATION)
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
# Appended to what trains, unless the page sets them: fewer images and epochs.
SMALL = {"DATA.LIMIT": "60", "TRAIN.EPOCHS": "2", "DATA.BATCH_SIZE": "16"}


@pytest.fixture
def clone(tmp_path, monkeypatch, no_runtime):
    """A folder as a user has it: a clone and own images."""
    (tmp_path / "configs").mkdir()
    for path in (ROOT / "configs").iterdir():
        (tmp_path / "configs" / path.name).symlink_to(path)
    random = np.random.default_rng(0)
    paint(tmp_path / "my_images", "train", 12, random)
    paint(tmp_path / "my_images", "test", 8, random)
    for name in ("ants", "bees"):
        (tmp_path / "mixed_images" / name).mkdir(parents=True)
        for size in range(32, 40):
            Image.radial_gradient("L").resize((size, 32)).save(tmp_path / "mixed_images" / name / f"{size}.png")
    (tmp_path / "labelled_images").mkdir()
    rows = [(f"{label}_{number}.png", label) for number, label in enumerate(["dark"] * 10 + ["light"] * 10)]
    for number, (name, _) in enumerate(rows):
        Image.new("RGB", (32, 32), (9 * number, number, 90 - number)).save(tmp_path / "labelled_images" / name)
    (tmp_path / "labelled_images" / "labels.csv").write_text("".join(
        f"{name},{label}\n" for name, label in [("file", "label"), *rows]))
    for part in measure.PARTS:  # which take minutes, and are tested by themselves
        monkeypatch.setitem(measure.PARTS, part, lambda configure: {"cvkit / bare": 1.0})
    return tmp_path


def smaller(words, is_mistake=False):
    """Return the words of a command that trains, with fewer images, epochs and weights."""
    if words[0] not in ("tools/train.py", "tools/find_lr.py", "tools/sweep.py"):
        return words
    if words[0] == "tools/sweep.py":
        return [*words, *(word for item in {**SMALL, "MODEL.width": "8", "SWEEP.TRIALS": "2"}.items() for word in item)]
    config = next((word for word in words if word.endswith(".yaml")), "")
    added = dict(SMALL)
    if config and not is_mistake and load_config(config).MODEL.NAME.startswith("resnet"):
        added["MODEL.width"] = "8"
    if "find" in words or words[0] == "tools/find_lr.py":  # which needs a loss that falls
        added = {"TRAIN.EPOCHS": "2", "DATA.LIMIT": "400", "DATA.BATCH_SIZE": "32", "MODEL.width": "8"}
    if "cifar" in config and "DATA.DATASET" not in words:
        added["DATA.DATASET"] = "{NAME: ImageFolder, root: my_images}"
    return [*words, *(word for key, value in added.items() if key not in words for word in (key, value))]


def run_folders(command, clone):
    """Put the names of run folders in the place of <first> and <second>."""
    def name(match):
        runs = sorted(path.name for path in (clone / match.group(1)).iterdir() if (path / "checkpoints").is_dir())
        return f"{match.group(1)}/{runs[match.group(2) == 'second']}"

    return re.sub(r"(runs/\w+)/<(first|second)>", name, command)


def test_every_task_has_its_page_and_the_index_names_all():
    assert [path.stem for path in PAGES] == [
        "add_a_dataset", "add_a_model", "add_a_transform", "add_a_visualizer",
        "add_your_own", "find_the_problem", "fine_tune", "first_run", "many_runs", "own_images", "performance", "reliability", "results", "resume_on_colab", "several_gpus", "speed", "trackers", "troubleshooting", "use_your_model", "write_a_config"]
    index = (DOCS / "README.md").read_text()
    assert set(re.findall(r"\((\w+\.md)\)", index)) == {path.name for path in [*PAGES, EXPLANATION]}


@pytest.mark.parametrize("path", [*PAGES, EXPLANATION, DOCS / "README.md"], ids=lambda path: path.stem)
def test_links_lead_somewhere_and_names_exist(path):
    text = path.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (DOCS / link).exists(), link
    for name in re.findall(r"\b(?:tools|notebooks|cvkit|tests)/[\w/]+\.(?:py|ipynb)\b", text):
        assert (ROOT / name).is_file(), name
    for group, key in re.findall(r"\b(DATA|TRAIN)\.([A-Z_]+)\b", text):
        assert key in SCHEMA[group], f"{group}.{key}"


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_files_commands_and_output_are_as_the_page_says(path, clone, tool):
    output, commands, namespace = "", 0, {}
    failing = path.stem == "troubleshooting"  # its commands are mistakes
    for kind, content in BLOCK.findall(path.read_text()):
        first = content.split("\n", 1)[0]
        if kind in ("python", "yaml") and re.match(r"# [\w/]+\.(py|yaml)$", first):
            target = clone / first.removeprefix("# ")
            target.write_text(content)
        elif kind == "python":
            exec(compile(content.replace("config = cvkit.load_config(\"configs/resnet18_digits.yaml\", {",
                                         'config = cvkit.load_config("configs/resnet18_digits.yaml", {"DATA.LIMIT": 60, "TRAIN.EPOCHS": 2, '),
                         str(path), "exec"), namespace)
        elif kind == "bash":
            for command in content.strip().split("\n"):
                words = shlex.split(run_folders(command, clone))
                if words[0] == "cp":
                    shutil.copy(*words[1:])
                    continue
                assert words[0] == "python" and words[1].startswith("tools/"), command
                code, out, err = tool(words[1].removeprefix("tools/"), *smaller(words[1:], failing)[1:])
                output, commands = out + err, commands + 1
                if failing:
                    assert code in (0, 2) and "Traceback" not in output, command
                else:
                    assert code == 0, f"{command}\n{err}"
            if failing:
                assert code == 2, command
        elif kind == "text" and commands and not re.search(
                "python tools|python -m pytest|torchrun|my_images", content):
            for line in content.strip().split("\n"):
                assert line in output, f"{line!r} after\n{output}"
        elif kind == "yaml":
            raise AssertionError(f"a config without a name in {path.name}")
    assert commands >= 2


def test_the_page_on_configs_names_every_fact_that_can_be_required():
    text = (DOCS / "write_a_config.md").read_text()
    assert all(re.search(rf"\b{name}: ", text) for name in FACTS)


YOUR_OWN = (DOCS / "add_your_own.md").read_text()


@pytest.fixture
def own_parts(clone):
    """The parts that the page "Add your own" registers, by kind; the page's files in a clone."""
    before = {kind: set(REGISTRIES[kind].own) for kind in REGISTRIES}
    for _, content in BLOCK.findall(YOUR_OWN):
        named = re.match(r"# ([\w/]+\.(?:py|yaml))\n", content)
        if named:
            (clone / named[1]).write_text(content)
            if named[1].endswith(".py"):
                exec(compile(content, named[1], "exec"), {"__name__": named[1].removesuffix(".py")})
    return {kind: set(REGISTRIES[kind].own) - before[kind] for kind in REGISTRIES}


def test_the_page_on_your_own_parts_has_an_example_for_each_registry_and_its_config_names_it(own_parts, clone):
    assert list(own_parts) == list(REGISTRIES)
    # Parts of a model, and of a sweep.
    assert [kind for kind, names in own_parts.items() if not names] == ["layer", "searcher", "pruner"]
    used = {(kind, node.NAME) for kind, node in components(load_config(clone / "configs/my_parts.yaml"))}
    assert used >= {(kind, name) for kind, names in own_parts.items() for name in names}


@pytest.mark.parametrize("name", [name for name in dir(registries)
                                  if isinstance(getattr(registries, name), registries.Registry)])
def test_the_page_on_your_own_parts_names_all_that_is_offered(name):
    row = re.search(rf"^\| `{name}` \|(.*?)\|", YOUR_OWN, re.MULTILINE)[1]
    assert set(re.findall(r"`(\w+)`", row)) == set(getattr(registries, name).offers)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_the_loss_on_the_page_is_the_poly_loss(own_parts, epsilon):
    random = np.random.default_rng(0)
    logits, labels = 3 * random.normal(size=(20, 5)), random.integers(0, 5, 20)
    shares = random.dirichlet(np.ones(5), 20)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    losses = epsilon * (1 - p) - np.log(p)  # the paper's Poly-1, of each class
    loss = LOSSES.build({"NAME": "PolyLoss", "epsilon": epsilon}, num_classes=5)
    logits = torch.tensor(logits)
    assert float(loss(logits, torch.tensor(labels))) == pytest.approx(losses[range(20), labels].mean(), rel=1e-5)
    assert float(loss(logits, torch.tensor(shares))) == pytest.approx((shares * losses).sum(1).mean(), rel=1e-5)


def test_the_optimizer_on_the_page_steps_as_lion_does(own_parts):
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=(2, 6)), random.normal(size=(10, 2, 6))
    weights = [torch.nn.Parameter(torch.tensor(values)) for values in start]
    optimizer = OPTIMIZERS.build(
        {"NAME": "Lion", "lr": 0.01, "betas": [0.8, 0.95], "weight_decay": 0.3},
        params=[{"params": weights[:1]}, {"params": weights[1:], "weight_decay": 0.0}])
    expected, averages = start.copy(), np.zeros((2, 6))
    for number, gradient in enumerate(gradients):
        rate = 0.01 * 0.9 ** number
        for weight, decay, mean, g, own in zip(expected, (0.3, 0.0), averages, gradient, weights):
            update = np.sign(0.8 * mean + 0.2 * g)  # algorithm 2 of the paper
            weight -= rate * (update + decay * weight)
            mean[:] = 0.95 * mean + 0.05 * g
            own.grad = torch.tensor(g)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        assert np.allclose([weight.detach() for weight in weights], expected, rtol=0, atol=1e-12)


def test_the_schedule_on_the_page_falls_with_the_root_of_the_steps(own_parts):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    node = {"NAME": "InverseSqrt", "timescale": 2.0}
    schedule = build_schedule(node, optimizer, epochs=6, steps_per_epoch=5, warmup_epochs=2)
    rates = []
    for _ in range(30):
        rates.append(schedule.rate)
        optimizer.step()
        schedule.after_step()
    warm_up = 10  # steps, as many as the timescale: then these are the rates of Vaswani et al.
    assert rates[:warm_up] == pytest.approx([0.3 * (step + 1) / 11 for step in range(warm_up)])
    assert rates[warm_up:] == pytest.approx([0.3 * (warm_up / step) ** 0.5 for step in range(warm_up, 30)])


def test_the_metric_on_the_page_is_the_brier_score(own_parts):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(50, 4)), random.integers(0, 4, 50)
    metric = METRICS.build("BrierScore", num_classes=4, classes=["?"] * 4)
    for part in (slice(0, 1), slice(1, 33), slice(33, 50)):
        metric.update(torch.tensor(logits[part]), torch.tensor(labels[part]))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = ((p - np.eye(4)[labels]) ** 2).sum(1).mean()
    assert float(metric.compute()["brier_score"]) == pytest.approx(expected, rel=1e-6)


def test_the_writer_on_the_page_has_each_epoch_once(own_parts, tmp_path):
    def rows():
        with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    for epochs, kept in (((1, 2, 3), 0), ((3, 4), 2)):  # the third is lost, and trained again
        keep_epochs(tmp_path, kept)
        reporter = WRITERS.build("Csv", folder=str(tmp_path), config=None)
        for epoch in epochs:
            values = {"epoch": epoch, "lr": 0.1, "train/loss": 1 / epoch, "rates": [[0, 0.1]]}
            add_metrics(tmp_path, values)
            reporter.epoch(None, values)
    assert [row["epoch"] for row in rows()] == ["1", "2", "3", "4"]
    assert list(rows()[0]) == ["epoch", "lr", "train/loss"]
    assert [float(row["train/loss"]) for row in rows()] == [
        values["train/loss"] for values in read_metrics(tmp_path)]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_what_contributors_read_names_files_and_tests_that_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    paths = re.findall(r"\]\(([^)#:]+)\)", text)
    paths += re.findall(r"\b(?:cvkit|docs|tests|tools)/[\w/]+\.(?:py|md)\b", text)
    for path in paths:
        assert (ROOT / path).is_file(), path
    for file, test in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text):
        assert f"\ndef {test}(" in (ROOT / file).read_text(), test


def test_the_reporter_on_the_page_keeps_the_first_layer_of_each_epoch(own_parts, clone):
    weights = []
    config = load_config(clone / "configs" / "my_parts.yaml", {
        "DATA.LIMIT": 60, "TRAIN.EPOCHS": 2, "DATA.BATCH_SIZE": 16, "IMPORTS": []})
    with pytest.MonkeyPatch.context() as patched:
        epoch = WRITERS.get("Csv").epoch
        patched.setattr(WRITERS.get("Csv"), "epoch", lambda self, state, values: (
            weights.append(next(state.model.parameters()).detach().cpu().numpy().copy()),
            epoch(self, state, values))[1])
        run = train(config)
    for number, expected in enumerate(weights, 1):
        assert np.array_equal(np.load(run.folder / f"first_layer_{number}.npy"), expected)
    assert len(weights) == 2 and not np.array_equal(*weights)
