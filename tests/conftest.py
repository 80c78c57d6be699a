import contextlib
import math
import multiprocessing
import os
import runpy
import shutil
import sys
import tarfile
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

# What hypothesis knows of unicode and of the code; its default is a folder in the repository.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY",
                      str(Path(tempfile.gettempdir(), "hypothesis")))
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores, one thread each
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cvkit.config import load_config
from cvkit.deployment import page
from cvkit.registry import MODELS, REGISTRIES
from cvkit.runs.folder import Run
from cvkit.session import train
from cvkit.system.log import screen
from cvkit.visualizers.draw import draw_all

# A GPU computes fp32 convolutions in 19 bits by default, which no tolerance here is meant for.
torch.backends.cudnn.allow_tf32 = False

ROOT = Path(__file__).parent.parent
IMAGES = "CVKIT_TEST_IMAGES"  # a folder with train/ and test/ of CIFAR-10 as image files

# Small enough for a test, yet with shuffling, random augmentation and batch normalisation.
TINY = """
MODEL: {NAME: resnet18, width: 4}
DATA:
  DATASET: {NAME: Digits}
  LIMIT: 150
  BATCH_SIZE: 32
  TRAIN_TRANSFORMS:
    - {NAME: RandomCrop, size: 32, padding: 4}
    - {NAME: CutOut, size: 8}
OPTIMIZER: {NAME: SGD, lr: 0.05, momentum: 0.9}
TRAIN: {EPOCHS: 2}
"""

# The only model of the registry that does not say itself what it consists of.
LAYERED = {"NAME": "Sequential", "layers": [
    {"NAME": "Conv2d", "out_channels": 8, "kernel_size": 3}, {"NAME": "BatchNorm2d"}, {"NAME": "ReLU"},
    {"NAME": "AdaptiveAvgPool2d", "output_size": 4}, {"NAME": "Flatten"}, {"NAME": "Linear"}]}


def model_node(name):
    """What a config says of a model of the registry with as few words as possible."""
    return dict(LAYERED) if name == "Sequential" else {"NAME": name}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Run each test in an empty folder, with a cache of its own and no signs of life in between.

    As a process that a file of the clone started: messages name those.
    """
    monkeypatch.setattr(sys, "argv", [str(ROOT / "tools" / "train.py")])
    monkeypatch.setattr("cvkit.system.log._FIRST_WAIT", math.inf)  # they depend on the machine's speed
    screen.begin()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))


@pytest.fixture(autouse=True)
def registries_of_its_own():
    """Let all registries forget what a test registers, or imports from a user's file."""
    with contextlib.ExitStack() as stack:
        for registry in list(REGISTRIES.values()):
            stack.enter_context(registry.temporarily())
        yield


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder of the test's own, which `~` stands for."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    return folder


@pytest.fixture
def tiny(tmp_path):
    """The path of a config that trains in seconds."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def quick(tiny):
    """The same with a model, batch norm and all, that takes a tenth of the time."""
    @MODELS.register()
    def small(num_classes):
        return nn.Sequential(OrderedDict(
            conv=nn.Conv2d(3, 8, 3, 2), norm=nn.BatchNorm2d(8), relu=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(4), flat=nn.Flatten(), fc=nn.Linear(128, num_classes)))

    text = tiny.read_text()
    tiny.write_text(text.replace("{NAME: resnet18, width: 4}", "{NAME: small}"))
    return tiny


@pytest.fixture(scope="session")
def cifar_images() -> Path:
    """Real CIFAR-10 pictures as an image folder."""
    folder = os.environ.get(IMAGES)
    if not folder:
        pytest.skip(f"{IMAGES} does not name a folder with CIFAR-10 images")
    return Path(folder)


def paint(folder, split, count, random):
    """Write images of three classes whose channels differ, so that swapped ones are noticed."""
    for shift, name in enumerate(("red", "green", "blue")):
        (folder / split / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[number % 8:20, 4:28, shift] += 150
            Image.fromarray(pixels).save(folder / split / name / f"{number:03}.png")


@pytest.fixture(scope="session")
def _trained(tmp_path_factory):
    """A digits run, and one on painted images that has learned next to nothing."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("tiny", "painted"):
        (folder / f"{name}.yaml").write_text(TINY)
    random = np.random.default_rng(0)
    paint(folder / "painted", "train", 16, random)
    paint(folder / "painted", "test", 12, random)
    digits = train(load_config(folder / "tiny.yaml", {"OUTPUT_DIR": str(folder / "runs")}))
    painted = train(load_config(folder / "painted.yaml", {
        "OUTPUT_DIR": str(folder / "runs"), "OPTIMIZER.lr": 1e-4, "DATA.LIMIT": 0,
        "DATA.DATASET": {"NAME": "ImageFolder", "root": str(folder / "painted")}}))
    return digits.folder, painted.folder


@pytest.fixture
def run(_trained, tmp_path):
    """A finished run on digits, in the test's own folder: the newest there."""
    return Run(shutil.copytree(_trained[0], tmp_path / "runs" / "tiny" / _trained[0].name))


@pytest.fixture
def painted(_trained, tmp_path):
    """A finished run on images in three colours, a good part of them misclassified."""
    folder = tmp_path / "runs" / "painted" / _trained[1].name
    return Run(shutil.copytree(_trained[1], folder))


@pytest.fixture
def draws_only(monkeypatch):
    """A function that lets a report draw some pictures alone: `draws_only("curves", "cam")`."""
    def only(*names):
        monkeypatch.setattr("cvkit.reporting.pages.draw_all", lambda run, nodes: draw_all(
            run, [node for node in nodes if node["NAME"] in names]))
    return only


@pytest.fixture
def no_runtime(tmp_path, monkeypatch):
    """Let a page with a model have no runtime, for what is not opened in a browser."""
    archive = tmp_path / ".runtime.tgz"
    with tarfile.open(archive, "w:gz") as file:
        for name in page.RUNTIME_FILES.values():
            file.addfile(tarfile.TarInfo(name))
    monkeypatch.setattr(page, "fetch_runtime", lambda: archive)


@pytest.fixture(scope="session")
def processes():
    """A context for real processes which have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cvkit.session", "cvkit.data", "torch._dynamo", "pytest"])
    first = context.Process(target=time.sleep, args=(0,))  # while everything is imported
    first.start()
    first.join()
    return context


@pytest.fixture(params=["fork", "forkserver"])
def start_method(request):
    """How worker processes are started: here by fork, and as Python 3.14, macOS and Windows do."""
    if request.param == "forkserver":
        request.getfixturevalue("processes")
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.fixture
def tool(capsys, monkeypatch):
    """Run a tool in this process: `tool("train.py", "a.yaml")` returns (exit code, out, err)."""
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [str(ROOT / "tools" / name), *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(sys.argv[0], run_name="__main__")
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err
    return run
