"""The data sets that are read by name. Each function returns an `ImageData`."""

from __future__ import annotations

import functools
import importlib.util
import os
import pickle
import re
import tarfile
import zlib
from pathlib import Path

import numpy as np

from cvkit.data.assembly import check_choice, check_fraction
from cvkit.data.images import ImageData, ImageSet
from cvkit.data.scan import statistics
from cvkit.data.splits import stratified_split
from cvkit.errors import DataError
from cvkit.registry import DATASETS
from cvkit.system.command import command


@DATASETS.register()
def CIFAR10(root: str = "data", download: bool = True) -> ImageData:
    """CIFAR-10: 50,000 + 10,000 colour images of 32×32 pixels in 10 classes (Krizhevsky, 2009).

    Args:
        root: folder that holds, or will hold, `cifar-10-python.tar.gz` or what is in it.
        download: fetch it if it is not there; files are verified by their checksums.

    Raises:
        DataError: it is absent or damaged, and cannot be downloaded.
    """
    return _torchvision("CIFAR10", root, download, (0.4914, 0.4822, 0.4465),
                        (0.2470, 0.2435, 0.2616),
                        "cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html")


@DATASETS.register()
def CIFAR100(root: str = "data", download: bool = True) -> ImageData:
    """CIFAR-100: 50,000 + 10,000 colour images of 32×32 pixels in 100 classes (Krizhevsky, 2009).

    Arguments and errors as `CIFAR10`.
    """
    return _torchvision("CIFAR100", root, download, (0.5071, 0.4865, 0.4409),
                        (0.2673, 0.2564, 0.2762),
                        "cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html")


@DATASETS.register()
def MNIST(root: str = "data", download: bool = True) -> ImageData:
    """MNIST: 60,000 + 10,000 grey images of 28×28 pixels, digits (LeCun et al., 1998).

    Arguments and errors as `CIFAR10`.
    """
    return _torchvision("MNIST", root, download, (0.1307,), (0.3081,),
                        "the four *-ubyte.gz files of MNIST, in MNIST/raw,")


@DATASETS.register()
def FashionMNIST(root: str = "data", download: bool = True) -> ImageData:
    """Fashion-MNIST: 60,000 + 10,000 grey images of 28×28 pixels, clothes (Xiao et al., 2017).

    Arguments and errors as `CIFAR10`.
    """
    return _torchvision("FashionMNIST", root, download, (0.2860,), (0.3530,),
                        "the four *-ubyte.gz files of Fashion-MNIST, in FashionMNIST/raw,")


def _torchvision(name: str, root: str, download: bool, mean: tuple[float, ...],
                 std: tuple[float, ...], by_hand: str) -> ImageData:
    """Return one of torchvision's data sets that fit in memory."""
    import torchvision.datasets

    existed = os.path.exists(root)
    try:
        splits = [getattr(torchvision.datasets, name)(root, train=train, download=download)
                  for train in (True, False)]
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, tarfile.TarError,
            zlib.error) as error:
        if not existed:
            _remove_empty_folders(Path(root))
        found = [path.name for path in Path(root).glob("*")] if existed else []
        state = "is missing or damaged in" if found else "is not in"
        tried = "and cannot be downloaded" if download else "and download is false"
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"{name} {state} {root}/ {tried} ({reason})",
            hint=f"With a network it downloads by itself (DATA.DATASET.download true). Without "
                 f"one, put {by_hand} into {root}/\n  or point DATA.DATASET.root at a folder that "
                 f"has it.\n  This runs offline: {command('train')} resnet18_digits"
        ) from error
    classes = tuple(name.split(" - ")[-1] if name[0].isdigit() else name
                    for name in splits[0].classes)
    height, width = splits[0].data.shape[1:3]
    # Of grey images torchvision leaves out the axis of the one channel.
    train, test = (ImageSet.of(np.asarray(split.data).reshape(-1, height, width, len(mean)),
                               split.targets) for split in splits)
    return ImageData(classes, train, test, len(mean), (height, width), mean, std)


def _way_to_torchvision(name: str) -> str | None:
    """Return how to get a data set that torchvision has and cvkit does not."""
    import torchvision.datasets

    def key(name: str) -> str:
        return re.sub(r"[\W_]", "", name.removeprefix("torchvision.datasets.")).lower()

    known = {key(each): each for each in torchvision.datasets.__all__}
    if key(name) not in known or key(name) in map(key, DATASETS.own):
        return None
    return (f"torchvision.datasets has {known[key(name)]}: an own data set of 10 lines reads it, "
            "see docs/add_a_dataset.md")


DATASETS.way_to = _way_to_torchvision


def _remove_empty_folders(root: Path) -> None:
    for folder in sorted([root, *root.rglob("*")], reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@DATASETS.register()
def Digits(size: int = 32, channels: int = 3, test_fraction: float = 0.2) -> ImageData:
    """scikit-learn's 1,797 hand-written digits (UCI, 1998), scaled up from 8×8 pixels. Offline.

    Args:
        size: height and width to scale to, bicubic.
        channels: 3 repeats the grey channel, 1 keeps it.
        test_fraction: part of every class in the test split, which is always the same.
    """
    check_choice("channels", channels, (1, 3))
    check_fraction("test_fraction", test_fraction)
    grey, labels = _grey_digits(size)
    images = np.repeat(grey[..., None], channels, axis=3)
    whole = ImageSet.of(images, labels)
    train, test = stratified_split(whole.labels, test_fraction, seed=0)
    mean, std = statistics(images[train])
    classes = tuple(map(str, range(10)))
    return ImageData(classes, whole.take(train), whole.take(test), channels, (size, size),
                     mean, std)


@functools.lru_cache(maxsize=4)
def _grey_digits(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 (N, size, size), and their labels."""
    from PIL import Image

    # This is what `load_digits` reads; importing scikit-learn takes longer than a short training.
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DataError("scikit-learn is not installed, which has the digits",
                        hint="pip install scikit-learn")
    folder = Path(package.submodule_search_locations[0], "datasets", "data")
    table = np.loadtxt(folder / "digits.csv.gz", delimiter=",")
    small = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
              for image in small]
    return np.stack(images), table[:, -1].astype(np.int64)
