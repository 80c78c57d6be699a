"""torchvision's data sets, from small copies that are laid out as it reads them."""

import bz2
import inspect
import json
import os
import struct
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision.datasets
from PIL import Image

from cvkit.config import load_config
from cvkit.data import ImageFiles, build_data
from cvkit.data import torchvision_datasets as adapter
from cvkit.errors import ConfigError, DataError
from cvkit.registry import DATASETS
from cvkit.session import train

NAMES = sorted(DATASETS.library[1])
NEEDED = {"EMNIST": {"split": "letters"}}
ROOT = Path("data")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No network, and checksums that small copies have as well."""
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    for module in ("flowers102", "places365", "semeion", "stl10", "svhn", "utils"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: os.path.isfile(path))


def node(name, **arguments):
    return {"NAME": name, **NEEDED.get(name, {}), **arguments}


# -- every name --------------------------------------------------------------------------------


def test_every_name_of_torchvision_is_offered_or_left_out_with_a_reason():
    known = {*NAMES, *adapter._LEFT_OUT, *DATASETS.own, "VisionDataset", "wrap_dataset_for_transforms_v2"}
    assert set(torchvision.datasets.__all__) <= known
    for name in adapter._LEFT_OUT:
        with pytest.raises(ConfigError) as caught:
            DATASETS.build({"NAME": name})
        assert f"no dataset named '{name}'\n  That of torchvision.datasets {adapter._LEFT_OUT[name]}. " in str(caught.value)


@pytest.mark.parametrize("name, meant", [("gtsrb", "GTSRB"), ("flowers_102", "Flowers102"), ("cifar-10", "CIFAR10")])
def test_names_that_are_written_otherwise_are_suggested(name, meant):
    with pytest.raises(ConfigError, match=f"Did you mean {meant}?"):
        DATASETS.build({"NAME": name})


@pytest.mark.parametrize("name", [*NAMES, "CIFAR10", "CIFAR100", "MNIST", "FashionMNIST"])
def test_arguments_are_those_that_torchvision_takes_and_nothing_is_made_of_nothing(name, tiny, tool):
    DATASETS.check(node(name, root="there"))
    source, kind = adapter._SOURCES[name], getattr(torchvision.datasets, name)
    taken = inspect.signature(kind).parameters
    for key in {key for choice in source.splits.values() for key in choice} | {each.name for each in source.options}:
        assert key in taken or "kwargs" in taken, key
    assert ("loader" in taken) == (source.pairs is adapter._loaded)
    with pytest.raises(ConfigError, match="has no argument 'rot'"):
        DATASETS.check(node(name, rot="there"))
    words = ", ".join(f"{key}: {value}" for key, value in node(name, root="some/data").items())
    code, _, err = tool("train.py", tiny, "DATA.DATASET", f"{{{words}}}")
    said = "and cannot be downloaded (" if source.downloads else "and torchvision does not download it ("
    assert code == 2 and f"command line DATA.DATASET.root: {name} is not in some/data/ {said}" in err
    assert f"ut {source.by_hand} into {Path('some/data', source.folder)}/\n" in err
    assert "This runs offline: python tools/train.py resnet18_digits" in err
    assert not Path("some/data").exists() and not Path("runs").exists()
    if source.downloads:
        with pytest.raises(DataError, match="and download is false"):
            DATASETS.build(node(name, root="some/data", download=False))


@pytest.mark.parametrize("name, arguments, said", [
    ("EMNIST", {"split": "letter"}, "takes one of byclass, bymerge, balanced, letters, digits, mnist, not 'letter'"),
    ("FGVCAircraft", {"annotation_level": "model"}, "takes one of variant, family, manufacturer, not 'model'"),
    ("DTD", {"partition": 11}, "takes one of 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, not 11"),
    ("Imagenette", {"size": 320}, "takes one of full, 320px, 160px, not 320"),
    ("OxfordIIITPet", {"target_types": "segmentation"}, "has no argument 'target_types'"),
    ("SVHN", {"transform": "flip"}, "has no argument 'transform'"),
    ("SVHN", {"channels": 1}, "has no argument 'channels'"),
    ("SVHN", {"test_fraction": 0.5}, "has no argument 'test_fraction'"),
    ("StanfordCars", {"download": True}, "has no argument 'download'"),
    ("EuroSAT", {"test_fraction": 1.0}, "test_fraction lies between 0 and 1"),
    ("EuroSAT", {"channels": 2}, "channels is 1 or 3")])
def test_arguments_that_are_wrong_are_refused(name, arguments, said):
    with pytest.raises(ConfigError) as caught:
        DATASETS.build(node(name, **arguments))
    assert said in str(caught.value)


def test_emnist_asks_for_its_split():
    with pytest.raises(ConfigError, match="dataset EMNIST needs split"):
        DATASETS.build("EMNIST")


# -- pixels ------------------------------------------------------------------------------------


RANDOM = np.random.default_rng(0)


def pixels(*shape):
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def idx(path, array, kind=8):
    """Write an array as MNIST's files are: big-endian, after its kind and shape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">{1 + array.ndim}i", kind * 256 + array.ndim, *array.shape) + array.tobytes())


def svhn():
    images, labels = pixels(12, 32, 32, 3), np.arange(12) % 10
    for split in ("train", "test"):
        scipy.io.savemat(ROOT / f"{split}_32x32.mat", {
            "X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None]})
    return images, labels, tuple("0123456789")


def stl10():
    folder, images, labels = ROOT / "stl10_binary", pixels(4, 96, 96, 3), np.array([0, 9, 3, 3])
    folder.mkdir()
    for split in ("train", "test"):
        images.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")
        (labels + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "unlabeled_X.bin").touch()
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (folder / "class_names.txt").write_text("\n".join(names))
    return images, labels, tuple(names)


def usps():
    images, labels = pixels(12, 16, 16, 1), np.arange(12) % 10
    rows = "\n".join(f"{label + 1} " + " ".join(f"{n + 1}:{(value + 0.5) / 255 * 2 - 1:.6f}" for n, value in enumerate(image.ravel()))
                     for image, label in zip(images, labels, strict=True))
    for name in ("usps.bz2", "usps.t.bz2"):
        (ROOT / name).write_bytes(bz2.compress(rows.encode()))
    return images, labels, tuple("0123456789")


def emnist():
    images, labels = pixels(30, 28, 28, 1), np.arange(30) % 26
    for split in ("train", "test"):
        # Rows and columns are exchanged in the file.
        idx(ROOT / f"EMNIST/raw/emnist-letters-{split}-images-idx3-ubyte", images[..., 0].transpose(0, 2, 1))
        idx(ROOT / f"EMNIST/raw/emnist-letters-{split}-labels-idx1-ubyte", (labels + 1).astype(np.uint8))
    return images, labels, tuple("abcdefghijklmnopqrstuvwxyz")


def kmnist():
    images, labels = pixels(20, 28, 28, 1), np.arange(20) % 10
    for split in ("train", "t10k"):
        idx(ROOT / f"KMNIST/raw/{split}-images-idx3-ubyte", images[..., 0])
        idx(ROOT / f"KMNIST/raw/{split}-labels-idx1-ubyte", labels.astype(np.uint8))
    return images, labels, ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


def qmnist():
    images, labels = pixels(20, 28, 28, 1), np.arange(20) % 10
    rows = np.concatenate([labels[:, None], np.full((20, 7), 99)], axis=1)
    for split in ("train", "test"):
        idx(ROOT / f"QMNIST/raw/qmnist-{split}-images-idx3-ubyte", images[..., 0])
        idx(ROOT / f"QMNIST/raw/qmnist-{split}-labels-idx2-int", rows.astype(">i4"), kind=12)
    return images, labels, ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.mark.parametrize("name, make", [
    ("SVHN", svhn), ("STL10", stl10), ("USPS", usps), ("EMNIST", emnist), ("KMNIST", kmnist), ("QMNIST", qmnist)])
def test_pixels_labels_and_classes_are_those_of_the_files(name, make):
    ROOT.mkdir()
    images, labels, classes = make()
    data = DATASETS.build(node(name))
    assert np.array_equal(data.train.images, images) and np.array_equal(data.test.images, images)
    assert data.train.images.dtype == np.uint8 and data.image_size == images.shape[1:3]
    assert data.train.labels.tolist() == data.test.labels.tolist() == labels.tolist()
    assert data.classes == classes and data.val is None and data.notes == ()
    assert np.allclose(data.mean, (images / 255).mean((0, 1, 2))) and np.allclose(data.std, (images / 255).std((0, 1, 2)))
    own = [0.5] * images.shape[3]
    assert DATASETS.build(node(name, mean=own, std=own)).std == tuple(own)


def test_semeion_has_no_splits_and_one_is_made_by_the_seed():
    ROOT.mkdir()
    images, labels = np.arange(40)[:, None, None] // 8 * np.eye(16) > 0, np.arange(40) % 10
    rows = np.concatenate([images.reshape(40, 256), np.eye(10)[labels]], axis=1)
    np.savetxt(ROOT / "semeion.data", rows)
    data, other = (DATASETS.build(node("SEMEION", test_fraction=0.25), seed=seed) for seed in (0, 1))
    assert (len(data.train), len(data.test)) == (30, 10) and data.classes == tuple("0123456789")
    assert not set(data.train.index) & set(data.test.index) and not np.array_equal(data.test.index, other.test.index)
    assert data.notes == ("SEMEION has no official splits: 0.25 of every class is the test set",)
    assert np.array_equal(data.test.image(0)[..., 0], images[data.test.index[0]] * 255)


# -- files -------------------------------------------------------------------------------------


def picture(*path):
    """Write a picture whose brightness follows from its place, and return that."""
    place = ROOT.joinpath(*path)
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), sum(map(ord, str(place))) % 256, np.uint8)).save(place)
    return str(place)


def text(lines, *path):
    place = ROOT.joinpath(*path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("\n".join(lines) + "\n")


# Each makes a copy of two classes and returns, by split, files and the names of their classes.


def gtsrb():
    train = {picture("gtsrb/GTSRB/Training", f"{label:05}", f"{n}.ppm"): str(label) for label in (0, 1) for n in range(3)}
    test = {picture("gtsrb/GTSRB/Final_Test/Images", f"{n:05}.ppm"): str(n % 2) for n in range(4)}
    text(["Filename;Width;ClassId", *(f"{Path(file).name};8;{label}" for file, label in test.items())],
         "gtsrb/GT-final_test.csv")
    return {"train": train, "test": test}


def aircraft():
    names = {"variant": ("707-320", "A300 B4"), "manufacturer": ("Airbus", "Boeing")}
    for level, plural in (("variant", "variants"), ("manufacturer", "manufacturers")):
        text(names[level], "fgvc-aircraft-2013b/data", f"{plural}.txt")
    found = {}
    for number, split in enumerate(("train", "val", "test")):
        files = {picture("fgvc-aircraft-2013b/data/images", f"{number}{n}.jpg"): names["variant"][n % 2] for n in range(4)}
        for level in names:
            text([f"{Path(file).stem} {names[level][names['variant'].index(label)]}" for file, label in files.items()],
                 "fgvc-aircraft-2013b/data", f"images_{level}_{split}.txt")
        found[split] = files
    return found


def food():
    found = {}
    for split in ("train", "test"):
        found[split] = {picture("food-101/images", label, f"{split}{n}.jpg"): label for label in ("waffles", "bibimbap") for n in range(2)}
        text([json.dumps({label: [f"{label}/{split}{n}" for n in range(2)] for label in ("waffles", "bibimbap")})],
             "food-101/meta", f"{split}.json")
    return found


def textures():
    found = {}
    for split in ("train", "val", "test"):
        found[split] = {picture("dtd/dtd/images", label, f"{label}_{split}{n}.jpg"): label for label in ("banded", "zigzagged") for n in range(2)}
        for partition in (1, 2):
            text([str(Path(file).relative_to(ROOT / "dtd/dtd/images")) for file in found[split]],
                 "dtd/dtd/labels", f"{split}{partition}.txt")
    return found


def flowers():
    folder, found, number = ROOT / "flowers-102", {}, 1
    names = torchvision.datasets.Flowers102.classes
    for split in ("train", "val", "test"):
        found[split] = {}
        for _ in range(4):
            found[split][picture("flowers-102/jpg", f"image_{number:05}.jpg")] = names[number % 2 * 101]
            number += 1
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": [n % 2 * 101 + 1 for n in range(1, number)]})
    scipy.io.savemat(folder / "setid.mat", {"trnid": [1, 2, 3, 4], "valid": [5, 6, 7, 8], "tstid": [9, 10, 11, 12]})
    return found


def pets():
    found = {}
    for split, start in (("trainval", 0), ("test", 4)):
        files = {picture("oxford-iiit-pet/images", f"{raw}_{start + n}.jpg"): label
                 for raw, label in (("Abyssinian", "Abyssinian"), ("great_pyrenees", "Great Pyrenees")) for n in range(2)}
        text([f"{Path(file).stem} {1 + (label != 'Abyssinian')} 1 1" for file, label in files.items()],
             "oxford-iiit-pet/annotations", f"{split}.txt")
        found["train" if split == "trainval" else "test"] = files
    return found


def cars():
    folder, found = ROOT / "stanford_cars", {}
    (folder / "devkit").mkdir(parents=True)
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        files = {picture(f"stanford_cars/cars_{split}", f"{n:05}.jpg"): names[n % 2] for n in range(4)}
        scipy.io.savemat(folder / file, {"annotations": np.array(
            [(Path(each).name, names.index(label) + 1) for each, label in files.items()], [("fname", object), ("class", object)])})
        found[split] = files
    scipy.io.savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(names, object)})
    return found


def clevr():
    found = {}
    for split in ("train", "val", "test"):
        found[split] = {picture("clevr/CLEVR_v1.0/images", split, f"{n}.png"): str(3 + n % 2) for n in range(4)}
        text([json.dumps({"scenes": [{"image_filename": Path(file).name, "objects": [0] * int(label)}
                                     for file, label in found[split].items()]})],
             "clevr/CLEVR_v1.0/scenes", f"CLEVR_{split}_scenes.json")
    return {"train": found["train"], "test": found["val"]}


def places():
    text(["/a/airfield 0", "/z/zen_garden 1"], "categories_places365.txt")
    found = {}
    for split, folder, lines in (("train", "data_256_standard", "train_standard"), ("test", "val_256", "val")):
        found[split] = {picture(folder, name[1:].replace("/", "_") + ".jpg"): name for name in ("/a/airfield", "/z/zen_garden")}
        text([f"/{Path(file).name} {n}" for n, file in enumerate(found[split])], f"places365_{lines}.txt")
    return found


def by_folder(top, names, splits=("",), ending="jpg", called=None):
    """Return what makes a folder for each class, in that of the split."""
    return lambda: {split or "whole": {picture(top.format(split), name, f"{n}.{ending}"): (called or {}).get(name, name)
                                       for name in names for n in range(4)} for split in splits}


def country211():
    found = by_folder("country211/{}", ("AD", "ZW"), ("train", "valid", "test"))()
    return {"train": found["train"], "val": found["valid"], "test": found["test"]}


def sst2():
    found = by_folder("rendered-sst2/{}", ("negative", "positive"), ("train", "valid", "test"), "png")()
    return {"train": found["train"], "val": found["valid"], "test": found["test"]}


def imagenette():
    found = by_folder("imagenette2/{}", ("n01440764", "n03888257"), ("train", "val"), "jpeg",
                      {"n01440764": "tench", "n03888257": "parachute"})()
    return {"train": found["train"], "test": found["val"]}


def sun397():
    text(["/a/abbey", "/z/zoo/outdoor"], "SUN397/ClassName.txt")
    return {"whole": {picture("SUN397", name[0], name, f"sun_{n}.jpg"): name for name in ("abbey", "zoo/outdoor") for n in range(4)}}


def caltech101():
    picture("caltech101/101_ObjectCategories/BACKGROUND_Google/image_0001.jpg")
    return {"whole": {picture("caltech101/101_ObjectCategories", name, f"image_{n:04}.jpg"): name
                      for name in ("accordion", "yin_yang") for n in range(1, 5)}}


def caltech256():
    return {"whole": {picture("caltech256/256_ObjectCategories", name, f"{name[:3]}_{n:04}.jpg"): name
                      for name in ("001.ak47", "002.american-flag") for n in range(1, 5)}}


FILES = {
    "CLEVRClassification": clevr, "Caltech101": caltech101, "Caltech256": caltech256, "Country211": country211,
    "DTD": textures, "EuroSAT": by_folder("eurosat/2750", ("AnnualCrop", "SeaLake")), "FGVCAircraft": aircraft,
    "Flowers102": flowers, "Food101": food, "GTSRB": gtsrb, "Imagenette": imagenette, "OxfordIIITPet": pets,
    "Places365": places, "RenderedSST2": sst2, "SUN397": sun397, "StanfordCars": cars}


def test_every_data_set_is_read_in_a_test():
    assert {*FILES, "SVHN", "STL10", "USPS", "EMNIST", "KMNIST", "QMNIST", "SEMEION"} == set(NAMES)


@pytest.mark.parametrize("name", FILES)
def test_files_are_taken_with_their_labels_and_decoded_when_they_are_needed(name, monkeypatch):
    found = FILES[name]()
    arguments = {"small": True} if name == "Places365" else {}
    taken = []
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", lambda *_, **__: pytest.fail("a picture was opened"))
        patched.setattr(adapter, "assemble", lambda *arguments: taken.append(arguments))
        DATASETS.build(node(name, **arguments))
    (classes, splits, *_), = taken
    assert all(isinstance(split.images, ImageFiles) for split in splits.values())
    data = DATASETS.build(node(name, **arguments))
    assert data.classes == tuple(classes) and data.image_size == (6, 8) and data.channels == 3
    said = {split: {images.name(n): classes[images.labels[n]] for n in range(len(images))}
            for split, images in data.splits.items()}
    if "whole" in found:
        assert said["train"] | said["test"] == found["whole"] and len(data.test) == 2
        assert data.notes == (f"{name} has no official splits: 0.2 of every class is the test set",)
    else:
        assert said == found and (data.val is None) == ("val" not in found)
        used = name in ("CLEVRClassification", "Imagenette", "Places365")
        assert data.notes == (f"the val split of {name} is the test set, as no other has labels",) * used
    images = np.stack([data.train.image(n) for n in range(len(data.train))])
    first = sum(map(ord, data.train.name(0))) % 256
    assert abs(int(images[0, 0, 0, 0]) - first) <= 3 and np.allclose(data.mean, (images / 255).mean((0, 1, 2)))
    grey = DATASETS.build(node(name, channels=1, mean=[0.5], std=[0.25], **arguments))
    assert grey.train.image(0).shape == (6, 8, 1) and (grey.mean, grey.std) == ((0.5,), (0.25,))


def test_options_of_torchvision_choose_what_is_read():
    aircraft()
    textures()
    text(["banded/banded_test0.jpg", "zigzagged/zigzagged_test0.jpg"], "dtd/dtd/labels/test2.txt")
    assert DATASETS.build(node("FGVCAircraft", annotation_level="manufacturer")).classes == ("Airbus", "Boeing")
    assert [len(DATASETS.build(node("DTD", partition=number)).test) for number in (1, 2)] == [4, 2]


@pytest.mark.parametrize("name", ["Food101", "GTSRB", "DTD"])
def test_files_that_are_gone_or_damaged_are_named_or_left_out(name):
    found = FILES[name]()
    first, second, *_ = sorted(found["train"])
    Path(first).unlink()
    Path(second if name == "Food101" else sorted(found["test"])[0]).write_text("no picture")
    if name == "GTSRB":
        # Its training images are those that are there.
        first = sorted(found["test"])[0]
    with pytest.raises(DataError, match=first):
        DATASETS.build(node(name))
    if name == "DTD":
        assert first in DATASETS.build(node(name, skip_unreadable=True)).left_out


@pytest.mark.parametrize("name, path, content", [
    ("SVHN", "test_32x32.mat", b"half of it"), ("USPS", "usps.t.bz2", b"BZh9half of it"), ("Food101", "food-101/meta/test.json", b"{"),
    ("FGVCAircraft", "fgvc-aircraft-2013b/data/images_variant_test.txt", b"001 Concorde\n"),
    ("GTSRB", "gtsrb/GT-final_test.csv", b"File;Class\n1;2\n"), ("StanfordCars", "stanford_cars/devkit/cars_meta.mat", b"\0"),
    ("DTD", "dtd/dtd/labels/val1.txt", b"banded\n"), ("Flowers102", "flowers-102/setid.mat", b"\0" * 200)])
def test_damaged_files_end_in_the_message_that_says_what_belongs_where(name, path, content):
    ROOT.mkdir()
    {"SVHN": svhn, "USPS": usps, **FILES}[name]()
    (ROOT / path).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} is missing or damaged in data/ and") as caught:
        DATASETS.build(node(name))
    assert f"ut {adapter._SOURCES[name].by_hand} into {ROOT / adapter._SOURCES[name].folder}/" in str(caught.value)


# -- trained on --------------------------------------------------------------------------------


def test_a_training_says_what_was_set_aside_and_watches_the_official_val(quick, capsys):
    by_folder("eurosat/2750", ("AnnualCrop", "SeaLake"))()
    resize = [{"NAME": "Resize", "height": 32, "width": 32}]
    settings = {"DATA.LIMIT": 0, "TRAIN.EPOCHS": 1, "DATA.BATCH_SIZE": 4, "DATA.TRAIN_TRANSFORMS": resize,
                "DATA.TEST_TRANSFORMS": resize}
    run = train(load_config(quick, {"DATA.DATASET": {"NAME": "EuroSAT"}, **settings}))
    assert len(run.predictions.true) == 2
    assert "data       EuroSAT has no official splits: 0.2 of every class is the test set" in capsys.readouterr().out
    textures()
    data = build_data(load_config(quick, {"DATA.DATASET": {"NAME": "DTD"}, **settings}))
    assert data.monitored == "val" and len(data.val) == 4
