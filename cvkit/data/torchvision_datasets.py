"""torchvision's classification data sets by name, downloaded and verified by torchvision.

Those that it holds as pixels are arrays; of the others the files are taken, which are decoded when
they are needed.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cvkit.data.assembly import assemble, check_choice, check_fraction, set_aside
from cvkit.data.images import ImageData, ImageFiles, ImageSet
from cvkit.data.scan import measure
from cvkit.errors import DataError
from cvkit.registry import DATASETS
from cvkit.registry.signatures import declare
from cvkit.system.command import command

_Pairs = Iterable[tuple[Any, int]]


def _loaded(part: Any) -> _Pairs:
    # `str` stands for what loads a file, so that its name comes back.
    return (part[number] for number in range(len(part)))


def _caltech(folder: str, name: str) -> Callable[[Any], _Pairs]:
    """Return what finds the files of Caltech's, from a name in the terms of torchvision."""
    def pairs(part: Any) -> _Pairs:
        for label, number in zip(part.y, part.index, strict=True):
            yield os.path.join(part.root, folder, part.categories[label],
                               name.format(label + 1, number)), label

    return pairs


def _choice(name: str, default: Any, *values: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default,
                             annotation=Literal[values])


@dataclass(frozen=True)
class _Source:
    """How to have a data set of torchvision's.

    Args:
        splits: by name, the arguments that choose them; none if there are no official ones.
        by_hand: the files that it is made of.
        folder: in `root`, that these belong in.
        pairs: what yields files and labels of a split; None of those that hold pixels.
        options: further arguments of torchvision's.
        downloads: whether torchvision can do so.
    """

    splits: Mapping[str, Mapping[str, Any]]
    by_hand: str
    folder: str = ""
    pairs: Callable[[Any], _Pairs] | None = None
    options: tuple[inspect.Parameter, ...] = ()
    downloads: bool = True


_NONE: dict[str, dict[str, Any]] = {}
_TRAIN_OR_NOT = {"train": {"train": True}, "test": {"train": False}}
_TWO = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {**_TWO, "val": {"split": "val"}}
_VAL_IS_TEST = {"train": {"split": "train"}, "test": {"split": "val"}}

_SOURCES = {
    "CIFAR10": _Source(_TRAIN_OR_NOT, "cifar-10-python.tar.gz from "
                                      "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "CIFAR100": _Source(_TRAIN_OR_NOT, "cifar-100-python.tar.gz from "
                                       "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "CLEVRClassification": _Source(_VAL_IS_TEST, "CLEVR_v1.0.zip", "clevr", _loaded),
    "Caltech101": _Source(_NONE, "caltech-101.zip", "caltech101",
                          _caltech("101_ObjectCategories", "image_{1:04d}.jpg")),
    "Caltech256": _Source(_NONE, "256_ObjectCategories.tar", "caltech256",
                          _caltech("256_ObjectCategories", "{0:03d}_{1:04d}.jpg")),
    "Country211": _Source({**_TWO, "val": {"split": "valid"}}, "country211.tgz", "", _loaded),
    "DTD": _Source(_THREE, "dtd-r1.0.1.tar.gz", "dtd", _loaded,
                   (_choice("partition", 1, *range(1, 11)),)),
    "EMNIST": _Source(_TRAIN_OR_NOT, "gzip.zip of EMNIST", "EMNIST/raw", options=(
        _choice("split", inspect.Parameter.empty, "byclass", "bymerge", "balanced", "letters",
                "digits", "mnist"),)),
    "EuroSAT": _Source(_NONE, "EuroSAT.zip", "eurosat", _loaded),
    "FGVCAircraft": _Source(_THREE, "fgvc-aircraft-2013b.tar.gz", "", _loaded, (
        _choice("annotation_level", "variant", "variant", "family", "manufacturer"),)),
    "FashionMNIST": _Source(_TRAIN_OR_NOT, "the four *-ubyte.gz files of Fashion-MNIST",
                            "FashionMNIST/raw"),
    "Flowers102": _Source(_THREE, "102flowers.tgz, imagelabels.mat and setid.mat", "flowers-102",
                          _loaded),
    "Food101": _Source(_TWO, "food-101.tar.gz", "", _loaded),
    "GTSRB": _Source(_TWO, "GTSRB-Training_fixed.zip, GTSRB_Final_Test_Images.zip and "
                           "GTSRB_Final_Test_GT.zip", "gtsrb", lambda part: part._samples),
    "Imagenette": _Source(_VAL_IS_TEST, "imagenette2.tgz (of size 320px imagenette2-320.tgz)", "",
                          _loaded, (_choice("size", "full", "full", "320px", "160px"),)),
    "KMNIST": _Source(_TRAIN_OR_NOT, "the four *-ubyte.gz files of KMNIST", "KMNIST/raw"),
    "MNIST": _Source(_TRAIN_OR_NOT, "the four *-ubyte.gz files of MNIST", "MNIST/raw"),
    "OxfordIIITPet": _Source({"train": {"split": "trainval"}, "test": {"split": "test"}},
                             "images.tar.gz and annotations.tar.gz", "oxford-iiit-pet",
                             lambda part: zip(part._images, part._labels, strict=True)),
    "Places365": _Source(
        {"train": {"split": "train-standard"}, "test": {"split": "val"}},
        "filelist_places365-standard.tar and the archives of train and val", "", _loaded,
        (inspect.Parameter("small", inspect.Parameter.KEYWORD_ONLY, default=False,
                           annotation=bool),)),
    "QMNIST": _Source(_TRAIN_OR_NOT, "the four qmnist-*.gz files", "QMNIST/raw"),
    "RenderedSST2": _Source(_THREE, "rendered-sst2.tgz", "", _loaded),
    "SEMEION": _Source(_NONE, "semeion.data"),
    "STL10": _Source(_TWO, "stl10_binary.tar.gz"),
    "SUN397": _Source(_NONE, "SUN397.tar.gz", "", _loaded),
    "SVHN": _Source(_TWO, "train_32x32.mat and test_32x32.mat"),
    "StanfordCars": _Source(_TWO, "cars_train/, cars_test/, devkit/ and "
                                  "cars_test_annos_withlabels.mat", "stanford_cars", _loaded,
                            downloads=False),
    "USPS": _Source(_TRAIN_OR_NOT, "usps.bz2 and usps.t.bz2"),
}
_LEFT_OUT = {name: reason for reason, names in {
    "has attributes, not classes": "CelebA",
    "has boxes, not classes": "CocoDetection Kitti VOCDetection WIDERFace",
    "has captions, not classes": "CocoCaptions Flickr8k Flickr30k SBU",
    "has masks, not classes": "Cityscapes SBDataset VOCSegmentation",
    "has optical flow, not classes": "FlyingChairs FlyingThings3D HD1K KittiFlow Sintel",
    "has other classes in its test than in its training images": "LFWPeople Omniglot",
    "has pairs of images, not classes": (
        "CREStereo CarlaStereo ETH3DStereo FallingThingsStereo InStereo2k Kitti2012Stereo "
        "Kitti2015Stereo LFWPairs Middlebury2014Stereo PhotoTour SceneFlowStereo SintelStereo"),
    "has videos, not images": "HMDB51 Kinetics MovingMNIST UCF101",
    "is a table of pixels from Kaggle, without the names of its classes": "FER2013",
    "is made of noise": "FakeData",
    "is kept in HDF5 files, which would fill 8 GB of memory": "PCAM",
    "is kept in databases (LMDB)": "LSUN LSUNClass",
    "is unpacked into folders of classes, which ImageFolder reads": (
        "DatasetFolder INaturalist ImageNet"),
}.items() for name in names.split()}


def read_torchvision() -> dict[str, Callable[..., ImageData]]:
    """Return a constructor for each of torchvision's classification data sets."""
    import torchvision.datasets

    return {name: _adapt(name) for name in _SOURCES if hasattr(torchvision.datasets, name)}


def torchvision_data(name: str, root: str = "data", download: bool = True,
                     test_fraction: float = 0.2, seed: int = 0, channels: int = 3,
                     mean: list[float] | None = None, std: list[float] | None = None,
                     skip_unreadable: bool = False, background: int | list[int] = 255,
                     **options: Any) -> ImageData:
    """Return a data set of torchvision's.

    Args:
        name: of its class.
        root: folder that holds, or will hold, its files.
        download: fetch them if they are not there.
        test_fraction: part of every class for test, where there are no official splits.
        seed: of that split.
        channels, skip_unreadable, background: of those that consist of files, see `ImageFolder`.
        mean, std: per channel, pixels in 0–1; computed from the training images by default.
        options: further arguments of the class.

    Raises:
        DataError: it is absent or damaged, and cannot be downloaded.
    """
    check_choice("channels", channels, (1, 3))
    check_fraction("test_fraction", test_fraction)
    source, notes = _SOURCES[name], []
    parts = _parts(name, root, download, options)
    read = {split: _content(part, source.pairs) for split, part in parts.items()}
    if name == "EMNIST":
        # Its files have rows and columns exchanged, as those of NIST, and torchvision leaves it so.
        read = {split: (pixels.transpose(0, 2, 1, 3), labels)
                for split, (pixels, labels) in read.items()}
    names = _class_names(parts["train"])
    # EMNIST's letters are numbered from 1 and CLEVR's objects from 3, these without names.
    used = np.array([number for number, each in enumerate(names) if each != "N/A"]) if names else (
        np.unique(np.concatenate([labels for _, labels in read.values()])))
    classes = [names[number] if names else str(number) for number in used]
    splits = {split: ImageSet.of(
        images if isinstance(images, np.ndarray) else
        ImageFiles(images, channels, skip_unreadable, background),
        np.searchsorted(used, labels)) for split, (images, labels) in read.items()}
    if not source.splits:
        splits = set_aside(splits["train"], test_fraction, seed,
                           [f"of {each} in {name}" for each in classes])
        notes.append(f"{name} has no official splits: {test_fraction:g} of every class is the "
                     "test set")
    elif source.splits["test"].get("split") == "val":
        notes.append(f"the val split of {name} is the test set, as no other has labels")
    train = splits["train"]
    if isinstance(train.images, ImageFiles):
        return assemble(classes, splits, mean, std, notes)
    facts = measure(train, f"Reading {name}") if mean is None or std is None else {}
    height, width, channels = train.images.shape[1:]
    return ImageData(tuple(classes), train, splits["test"], channels, (height, width),
                     tuple(mean or facts["mean"]), tuple(std or facts["std"]), splits.get("val"),
                     notes=tuple(notes))


def _adapt(name: str) -> Callable[..., ImageData]:
    import torchvision.datasets

    source, kind = _SOURCES[name], getattr(torchvision.datasets, name)
    known = inspect.signature(torchvision_data).parameters
    keys = ["root", *["download"] * source.downloads,
            *["test_fraction", "seed"] * (not source.splits), "mean", "std",
            *["channels", "skip_unreadable", "background"] * (source.pairs is not None)]

    @functools.wraps(kind, updated=())
    def build(**arguments: Any) -> ImageData:
        return torchvision_data(name, **arguments)

    summary = (inspect.getdoc(kind) or name).partition("\n")[0]
    summary = re.sub(r"`(.*?) *<(.*?)>`_", r"\1 (\2)", summary).strip()
    build.__doc__ = (f"{summary}\n\nDownloaded, verified and read by torchvision. Arguments as "
                     "those of CIFAR10 and ImageFolder; others have\ntorchvision's meaning.")
    declare(build, (*(known[key] for key in keys), *source.options), returned=ImageData)
    return build


def _parts(name: str, root: str, download: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return torchvision's object for each split; the whole as train, if there are none."""
    import torchvision.datasets

    source, kind = _SOURCES[name], getattr(torchvision.datasets, name)
    shared = dict(options)
    if source.downloads:
        shared["download"] = download
    if "loader" in inspect.signature(kind).parameters:
        shared["loader"] = str
    existed = os.path.exists(root)
    try:
        return {split: kind(root, **shared, **arguments)
                for split, arguments in (source.splits or {"train": {}}).items()}
    except ImportError:
        raise
    except Exception as error:
        # What reads damaged files raises whatever it stumbles over.
        if not existed:
            _remove_empty_folders(Path(root))
        found = [path.name for path in Path(root).glob("*")] if existed else []
        state = "is missing or damaged in" if found else "is not in"
        tried = ("and torchvision does not download it" if not source.downloads else
                 "and cannot be downloaded" if download else "and download is false")
        by_itself = ("With a network it downloads by itself (DATA.DATASET.download true). Without "
                     "one, put " if source.downloads else "Put ")
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"{name} {state} {root}/ {tried} ({reason})",
            hint=f"{by_itself}{source.by_hand} into {os.path.join(root, source.folder, '')}\n  or "
                 "point DATA.DATASET.root at a folder that has it.\n  This runs offline: "
                 f"{command('train')} resnet18_digits") from error


def _content(part: Any, pairs: Callable[[Any], _Pairs] | None) -> tuple[Any, np.ndarray]:
    """Return a split's pixels (N, H, W, C), or its files, and its labels."""
    if pairs is not None:
        # Folders are listed in another order elsewhere.
        found = sorted((str(path), int(label)) for path, label in pairs(part))
        return [path for path, _ in found], np.array([label for _, label in found])
    pixels = np.asarray(part.data)
    # Of grey images torchvision leaves out the axis of the one channel, SVHN and STL10 have theirs
    # first.
    pixels = (pixels[..., None] if pixels.ndim == 3 else
              pixels.transpose(0, 2, 3, 1) if pixels.shape[1] == 3 else pixels)
    labels = np.asarray(part.targets if hasattr(part, "targets") else part.labels)
    # QMNIST has more in a row than the class.
    return pixels, labels if labels.ndim == 1 else labels[:, 0]


def _class_names(part: Any) -> list[str]:
    """Return the names that torchvision knows; none if it knows none."""
    names = getattr(part, "classes", None) or getattr(part, "categories", [])
    # Imagenette has several names for each, MNIST "7 - seven".
    first = [name if isinstance(name, str) else name[0] for name in names]
    return [name.split(" - ")[-1] if name[0].isdigit() else name for name in first]


def _remove_empty_folders(root: Path) -> None:
    for folder in sorted([root, *root.rglob("*")], reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


DATASETS.add_library("torchvision.datasets", read_torchvision, _LEFT_OUT)
