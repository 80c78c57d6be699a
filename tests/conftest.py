import os
import runpy
import sys
from pathlib import Path

import pytest

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


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Run each test in an empty folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))


@pytest.fixture
def tiny(tmp_path):
    """The path of a config that trains in seconds."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def cifar_images() -> Path:
    """Real CIFAR-10 pictures as an image folder."""
    folder = os.environ.get(IMAGES)
    if not folder:
        pytest.skip(f"{IMAGES} does not name a folder with CIFAR-10 images")
    return Path(folder)


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
