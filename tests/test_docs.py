"""The pages in docs/: their files are written, their commands run, their output is what they say."""

import re
import shlex

import numpy as np
import pytest
from conftest import ROOT, paint
from PIL import Image

from cvkit.benchmark import measure
from cvkit.config import SCHEMA, load_config
from cvkit.registry import DATASETS, REGISTRIES
from cvkit.requirements import FACTS

DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.glob("*.md") if path.name != "README.md")
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
# Appended to what trains, unless the page sets them: fewer images and epochs.
SMALL = {"DATA.LIMIT": "60", "TRAIN.EPOCHS": "2", "DATA.BATCH_SIZE": "16"}


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder as a user has it: a clone, own images, and registries that forget what is added."""
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
    for number in range(20):
        Image.new("RGB", (32, 32), (9 * number, number, 90 - number)).save(tmp_path / "labelled_images" / f"{number}.png")
    (tmp_path / "labelled_images" / "labels.csv").write_text("file,label\n" + "".join(
        f"{number}.png,{'dark' if number < 10 else 'light'}\n" for number in range(20)))
    for registry in REGISTRIES.values():
        assert registry.own is not None  # filled, before what it holds is put aside
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    for part in measure.PARTS:  # which take minutes, and are tested by themselves
        monkeypatch.setitem(measure.PARTS, part, lambda configure: {"cvkit / bare": 1.0})
    return tmp_path


def smaller(words, is_mistake=False):
    """Return the words of a command that trains, with fewer images, epochs and weights."""
    if words[0] not in ("tools/train.py", "tools/find_lr.py"):
        return words
    config = next((word for word in words if word.endswith(".yaml")), "")
    added = dict(SMALL)
    if config and not is_mistake and load_config(config).MODEL.NAME.startswith("resnet"):
        added["MODEL.width"] = "16"
    if "find" in words or words[0] == "tools/find_lr.py":  # which needs a loss that falls
        added = {"TRAIN.EPOCHS": "2", "DATA.LIMIT": "400", "MODEL.width": "8"}
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
        "add_a_dataset", "add_a_model", "add_a_transform", "add_a_visualizer", "first_run",
        "own_images", "performance", "reliability", "results", "resume_on_colab", "several_gpus", "troubleshooting", "write_a_config"]
    index = (DOCS / "README.md").read_text()
    assert set(re.findall(r"\((\w+\.md)\)", index)) == {path.name for path in PAGES}


@pytest.mark.parametrize("path", [*PAGES, DOCS / "README.md"], ids=lambda path: path.stem)
def test_links_lead_somewhere_and_names_exist(path):
    text = path.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (DOCS / link).exists(), link
    for name in re.findall(r"\b(?:tools|notebooks|cvkit)/[\w/]+\.(?:py|ipynb)\b", text):
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


def test_the_page_on_data_sets_reads_one_of_torchvision(clone, monkeypatch):
    """With made-up pixels: the data set itself has to be downloaded."""
    class Made:
        def __init__(self, root, split, download):
            count = {"train": 20, "test": 10}[split]
            self.data = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8)
            self.labels = np.arange(count) % 10

    monkeypatch.setattr("torchvision.datasets.SVHN", Made)
    code = next(content for _, content in BLOCK.findall((DOCS / "add_a_dataset.md").read_text())
                if content.startswith("# svhn_data.py"))
    exec(compile(code, "svhn_data.py", "exec"), {"__name__": "svhn_data"})
    data = DATASETS.build({"NAME": "SVHN"})
    pixels = Made("data", "train", True).data
    assert data.classes == tuple("0123456789") and data.test.labels.tolist() == list(range(10))
    assert np.array_equal(data.train.images, pixels.transpose(0, 2, 3, 1))
    assert np.allclose(data.mean, pixels.mean((0, 2, 3)) / 255)


def test_the_page_on_configs_names_every_fact_that_can_be_required():
    text = (DOCS / "write_a_config.md").read_text()
    assert all(re.search(rf"\b{name}: ", text) for name in FACTS)
