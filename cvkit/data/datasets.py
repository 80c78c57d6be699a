"""The data sets. Each function returns an `ImageData`."""

from __future__ import annotations

import difflib
import os
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from cvkit.data.images import (
    ImageData,
    ImageFiles,
    ImageSet,
    scan_files,
    statistics,
    stratified_split,
)
from cvkit.errors import DataError, visible
from cvkit.registry import DATASETS

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

_SPLIT_WORDS = ("train", "training", "val", "valid", "validation", "test", "testing")


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
                 "has it.\n  This runs offline: python tools/train.py configs/resnet18_digits.yaml"
        ) from error
    arrays = [np.asarray(split.data) for split in splits]
    arrays = [array if array.ndim == 4 else array[..., None] for array in arrays]
    classes = tuple(name.split(" - ")[-1] if name[0].isdigit() else name
                    for name in splits[0].classes)
    train, test = (ImageSet.of(array, split.targets)
                   for array, split in zip(arrays, splits, strict=True))
    return ImageData(classes, train, test, arrays[0].shape[3], arrays[0].shape[1:3], mean, std)


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
    from PIL import Image
    from sklearn.datasets import load_digits

    _check_choice("channels", channels, (1, 3))
    _check_fraction("test_fraction", test_fraction)
    digits = load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(image).resize((size, size), Image.BICUBIC))
                       for image in small])
    images = np.repeat(images[..., None], channels, axis=3)
    whole = ImageSet.of(images, digits.target)
    train, test = stratified_split(whole.labels, test_fraction, seed=0)
    mean, std = statistics(images[train])
    classes = tuple(str(name) for name in digits.target_names)
    return ImageData(classes, whole.take(train), whole.take(test), channels, (size, size),
                     mean, std)


@DATASETS.register()
def ImageFolder(root: str, test_fraction: float = 0.2, channels: int = 3,
                mean: list[float] | None = None, std: list[float] | None = None,
                skip_unreadable: bool = False, background: int | list[int] = 255,
                seed: int = 0) -> ImageData:
    """Your own images, a folder for each class.

    `root` holds `train/` and `test/` or `val/`, each with one folder per class; or only the
    class folders, and a part of every class is set aside as test. With all three, `val/` is
    monitored during training and `test/` kept for the end. Other files are ignored.

    Args:
        root: the folder.
        test_fraction: part of every class for test, where `root` has no splits.
        channels: 3 reads all images as RGB, 1 as grey.
        mean, std: per channel, pixels in 0–1; computed from the training images by default,
            once, and cached.
        skip_unreadable: leave out files that cannot be read, now or later, and say which.
        background: what transparent pixels are laid on, 0–255, one number or one per channel;
            white by default. A line says how many images have such pixels.
        seed: of the split; DATA.SPLIT_SEED by default.

    Raises:
        DataError: no such folder, no images, classes that differ between splits, or files
            that are not images.
    """
    _check_choice("channels", channels, (1, 3))
    _check_fraction("test_fraction", test_fraction)
    folder = Path(root)
    if not folder.is_dir():
        beside = [str(path) for path in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        near = difflib.get_close_matches(root, beside, n=1)
        raise DataError(f"no folder {root} (looked in {Path.cwd()})",
                        hint=f"Did you mean {near[0]}?" if near else None)
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    split_names = [name for name in ("train", "val", "test") if name in names]
    if "train" in names and len(split_names) > 1:
        listings = {name: _list_classes(folder / name) for name in split_names}
        classes = tuple(listings["train"])
        for name, listing in listings.items():
            if tuple(listing) != classes:
                differ = sorted(set(listing) ^ set(classes))
                raise DataError(f"{folder / name} and {folder / 'train'} have different classes: "
                                f"{', '.join(differ[:8])}",
                                hint="Every split needs a folder, with images, for every class.")
        splits = {name: _image_set(listing, channels, skip_unreadable, background)
                  for name, listing in listings.items()}
        splits.setdefault("test", splits.get("val"))
        if "test" not in listings:
            splits["val"] = None
    elif "train" in names:
        raise DataError(f"{root} has train/ but neither test/ nor val/",
                        hint=f"Add one, or point root at {folder / 'train'} to have "
                             "test_fraction of it set aside.")
    else:
        listing = _list_classes(folder)
        classes = tuple(listing)
        whole = _image_set(listing, channels, skip_unreadable, background)
        few = [name for name in classes if len(listing[name]) < 2]
        if few:
            raise DataError(f"one image only in {folder / few[0]}",
                            hint="To be split into train and test, a class needs two at least.")
        train, test = stratified_split(whole.labels, test_fraction, seed)
        splits = {"train": whole.take(train), "test": whole.take(test)}
    facts = {name: scan_files(split.images.take(split.index), f"Reading {name} images")
             for name, split in splits.items() if split is not None}
    left_out = {path for fact in facts.values() for path in fact["unreadable"]}
    if left_out:
        splits = {name: split and split.take(np.flatnonzero(
            ~np.isin(split.images.paths[split.index], list(left_out))))
            for name, split in splits.items()}
    transparent = sum(fact["transparent"] for fact in facts.values())
    notes = (f"{transparent:,} image{'s' * (transparent > 1)} with transparent pixels, laid on "
             f"background {str(background).strip('[()]')}",) if transparent else ()
    sizes = {size for fact in facts.values() for size in fact["sizes"]}
    size = tuple(int(side) for side in sizes.pop().split("x")) if len(sizes) == 1 else None
    return ImageData(classes, splits["train"], splits["test"], channels, size,
                     tuple(mean or facts["train"]["mean"]), tuple(std or facts["train"]["std"]),
                     splits.get("val"), tuple(sorted(left_out)), notes)


def _list_classes(folder: Path) -> dict[str, list[str]]:
    """Return the image paths of every class folder, classes and files in alphabetical order."""
    listing = {}
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        if not child.name.startswith((".", "__")):  # of file managers and archives: __MACOSX
            listing[child.name] = sorted(
                str(path) for path in child.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS
                and not path.name.startswith(".") and path.is_file())
    empty = [name for name, paths in listing.items() if not paths]
    if empty or not listing:
        what = f"{folder / empty[0]} holds no images" if empty else f"{folder} has no class folders"
        raise DataError(what, hint="Images lie in one folder per class and end in "
                                   f"{' '.join(IMAGE_ENDINGS)}.")
    odd = [name for name in listing if visible(name) != name]
    if odd:
        raise DataError(f"{folder / odd[0]} has control characters in its name",
                        hint="Rename it: a class is called as its folder, and that on one line.")
    if all(name.lower() in _SPLIT_WORDS for name in listing):
        raise DataError(f"{folder} has the folders {', '.join(listing)}, which are no classes",
                        hint="Splits are called train and test, or train and val, in lower case.")
    if len(listing) < 2:
        raise DataError(f"{folder} has a single class, {next(iter(listing))}",
                        hint="Classification needs two; is root one folder too high or too low?")
    return listing


def _image_set(listing: dict[str, list[str]], channels: int, skip_unreadable: bool,
               background: int | list[int]) -> ImageSet:
    labels = [number for number, paths in enumerate(listing.values()) for _ in paths]
    paths = [path for paths in listing.values() for path in paths]
    return ImageSet.of(ImageFiles(paths, channels, skip_unreadable, background), labels)


def _check_choice(name: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {' or '.join(map(str, allowed))}, not {value}")


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} lies between 0 and 1, not {value}")
