"""The data sets that are read by name. Each function returns an `ImageData`."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np

from cvkit.data.assembly import check_choice, check_fraction
from cvkit.data.images import ImageData, ImageSet
from cvkit.data.scan import statistics
from cvkit.data.splits import stratified_split
from cvkit.data.torchvision_datasets import torchvision_data
from cvkit.errors import DataError
from cvkit.registry import DATASETS


@DATASETS.register()
def CIFAR10(root: str = "data", download: bool = True) -> ImageData:
    """CIFAR-10: 50,000 + 10,000 colour images of 32×32 pixels in 10 classes (Krizhevsky, 2009).

    Args:
        root: folder that holds, or will hold, `cifar-10-python.tar.gz` or what is in it.
        download: fetch it if it is not there; files are verified by their checksums.

    Raises:
        DataError: it is absent or damaged, and cannot be downloaded.
    """
    return torchvision_data("CIFAR10", root, download, mean=[0.4914, 0.4822, 0.4465],
                            std=[0.2470, 0.2435, 0.2616])


@DATASETS.register()
def CIFAR100(root: str = "data", download: bool = True) -> ImageData:
    """CIFAR-100: 50,000 + 10,000 colour images of 32×32 pixels in 100 classes (Krizhevsky, 2009).

    Arguments and errors as `CIFAR10`.
    """
    return torchvision_data("CIFAR100", root, download, mean=[0.5071, 0.4865, 0.4409],
                            std=[0.2673, 0.2564, 0.2762])


@DATASETS.register()
def MNIST(root: str = "data", download: bool = True) -> ImageData:
    """MNIST: 60,000 + 10,000 grey images of 28×28 pixels, digits (LeCun et al., 1998).

    Arguments and errors as `CIFAR10`.
    """
    return torchvision_data("MNIST", root, download, mean=[0.1307], std=[0.3081])


@DATASETS.register()
def FashionMNIST(root: str = "data", download: bool = True) -> ImageData:
    """Fashion-MNIST: 60,000 + 10,000 grey images of 28×28 pixels, clothes (Xiao et al., 2017).

    Arguments and errors as `CIFAR10`.
    """
    return torchvision_data("FashionMNIST", root, download, mean=[0.2860], std=[0.3530])


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
