import hashlib
import ntpath
import pickle
import re
import struct
import urllib.error
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from helpers import fill
from PIL import Image

from cvkit.config import load_config
from cvkit.data import ImageData, ImageSet, build_data, build_loaders
from cvkit.data.class_folders import ClassFolders
from cvkit.errors import ConfigError, DataError, UserError
from cvkit.registry import DATASETS
from cvkit.session import train

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
                   "truck")
SIZES = {"CIFAR10": (32, 32, 3), "CIFAR100": (32, 32, 3), "MNIST": (28, 28, 1),
         "FashionMNIST": (28, 28, 1)}


# -- the official files ------------------------------------------------------------------------


def write_cifar(root, monkeypatch, name):
    """Write files as CIFAR's are, small, and tell torchvision their checksums."""
    kind = getattr(torchvision.datasets, name)
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    number = 10 if name == "CIFAR10" else 100
    label_key = "labels" if name == "CIFAR10" else "fine_labels"
    pixels = {}

    def write(file, content):
        data = pickle.dumps(content)
        (folder / file).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    for key in ("train_list", "test_list"):
        listed = []
        for file, _ in getattr(kind, key):
            data = random.integers(0, 256, (number, 3072), dtype=np.uint8)
            pixels.setdefault(key, []).append(data)
            listed.append([file, write(file, {"data": data, label_key: list(range(number))})])
        monkeypatch.setattr(kind, key, listed)
    names = CIFAR10_CLASSES if name == "CIFAR10" else [f"class {n}" for n in range(100)]
    meta = dict(kind.meta)
    meta["md5"] = write(meta["filename"], {meta["key"]: list(names)})
    monkeypatch.setattr(kind, "meta", meta)
    return {key: np.concatenate(parts).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            for key, parts in pixels.items()}


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_the_official_cifar_files_are_read_as_they_are(tmp_path, monkeypatch, name):
    pixels = write_cifar(tmp_path / "data", monkeypatch, name)
    data = DATASETS.build({"NAME": name})  # ./data by default
    assert len(data.classes) == (10 if name == "CIFAR10" else 100)
    if name == "CIFAR10":
        assert data.classes == CIFAR10_CLASSES
        assert (data.mean, data.std) == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert np.array_equal(data.train.images, pixels["train_list"])
    assert np.array_equal(data.test.images, pixels["test_list"])
    assert data.test.labels.tolist() == list(range(len(data.classes)))
    assert data.image_size == (32, 32) and data.channels == 3 and data.val is None


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_the_official_mnist_files_are_read_as_they_are(tmp_path, name):
    raw = tmp_path / "data" / name / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 2051, *pixels.shape) + pixels.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 2049, 20) + labels.tobytes())
    data = DATASETS.build({"NAME": name, "download": False})
    assert np.array_equal(data.train.images[..., 0], pixels)
    assert data.train.images.shape == (20, 28, 28, 1) and data.channels == 1
    assert data.test.labels.tolist() == labels.tolist()
    assert data.classes[0] == ("zero" if name == "MNIST" else "T-shirt/top")


@pytest.mark.parametrize("name", SIZES)
def test_without_network_and_data_the_message_says_all(tmp_path, monkeypatch, name):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(DataError) as caught:
        DATASETS.build({"NAME": name, "root": "some/data"})
    text = str(caught.value)
    assert f"{name} is not in some/data/ and cannot be downloaded" in text
    assert "gz" in text and "train.py resnet18_digits" in text
    assert not (tmp_path / "some" / "data").exists()  # nothing half-made stays


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_a_truncated_archive_is_refused(tmp_path, monkeypatch, name):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"cifar-{name[5:]}-python.tar.gz").write_bytes(b"\x1f\x8b\x08half of it")
    for download in (True, False):
        with pytest.raises(DataError, match="is missing or damaged in data/"):
            DATASETS.build({"NAME": name, "download": download})


# -- digits --------------------------------------------------------------------------------------


def test_digits_are_scaled_split_and_described():
    from sklearn.datasets import load_digits

    data = DATASETS.build("Digits")
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert data.classes == tuple("0123456789") and data.image_size == (32, 32)
    assert min(np.bincount(data.test.labels)) >= 34  # every class is in the test split
    assert data.train.image(0).shape == (32, 32, 3) and data.train.images.dtype == np.uint8
    assert np.array_equal(data.train.images[..., 0], data.train.images[..., 2])
    assert not set(data.train.index) & set(data.test.index)
    assert data.train.images.max() == 255 and data.train.images.min() == 0
    original = load_digits()
    assert np.array_equal(original.target[data.test.index], data.test.labels)
    eight = DATASETS.build({"NAME": "Digits", "size": 8, "channels": 1})  # not scaled at all
    assert np.array_equal(eight.train.images[..., 0], np.rint(original.images * 255 / 16))
    pixels = data.train.images[data.train.index].astype(float) / 255
    assert np.allclose(data.mean, pixels.mean((0, 1, 2))) and np.allclose(
        data.std, pixels.std((0, 1, 2)))


def test_the_digits_split_does_not_move():
    data = DATASETS.build("Digits")
    assert data.test.index[:8].tolist() == DATASETS.build("Digits").test.index[:8].tolist()
    assert hashlib.md5(data.test.index.astype("<i8").tobytes()).hexdigest() == (
        "e214591ae39d2e01c89684781962ba2f")


# -- image folders -------------------------------------------------------------------------------


def test_a_folder_with_train_and_test(tmp_path):
    fill(tmp_path / "x" / "train", {"cat": 4, "ant": 6})
    fill(tmp_path / "x" / "test", {"cat": 2, "ant": 3})
    (tmp_path / "x" / "train" / "cat" / "notes.txt").write_text("not an image by its name")
    (tmp_path / "x" / "train" / "cat" / ".hidden.png").write_text("left by a file manager")
    (tmp_path / "x" / "train" / "cat" / "dangling.png").symlink_to("gone.png")
    (tmp_path / "x" / "train" / "cat" / "folder.png").mkdir()
    (tmp_path / "x" / "train" / "__MACOSX").mkdir()
    data = DATASETS.build({"NAME": "ImageFolder", "root": "x"})
    assert data.classes == ("ant", "cat") and data.image_size == (8, 8) and data.val is None
    assert np.bincount(data.train.labels).tolist() == [6, 4]
    assert np.bincount(data.test.labels).tolist() == [3, 2]
    pixels = np.stack([data.train.image(n) for n in range(len(data.train))]) / 255
    assert np.allclose(data.mean, pixels.mean((0, 1, 2))) and np.allclose(
        data.std, pixels.std((0, 1, 2)))


def test_val_is_the_test_split_if_alone_and_is_monitored_beside_a_test_split(tmp_path):
    for name in ("train", "val"):
        fill(tmp_path / "x" / name, {"a": 3, "b": 3})
    data = DATASETS.build({"NAME": "ImageFolder", "root": "x"})
    assert data.val is None and len(data.test) == 6 and data.monitored == "test"
    fill(tmp_path / "x" / "test", {"a": 1, "b": 1})
    data = DATASETS.build({"NAME": "ImageFolder", "root": "x"})
    assert len(data.val) == 6 and len(data.test) == 2 and data.monitored == "val"


def test_one_folder_is_split_by_its_seed_class_by_class(tmp_path):
    fill(tmp_path / "x", {"a": 10, "b": 20})
    node = {"NAME": "ImageFolder", "root": "x", "test_fraction": 0.3}
    data, again, other = (DATASETS.build(node, seed=seed) for seed in (1, 1, 2))
    assert np.bincount(data.test.labels).tolist() == [3, 6] and len(data.train) == 21
    assert np.array_equal(data.test.index, again.test.index)
    assert not np.array_equal(data.test.index, other.test.index)
    assert not set(data.train.index) & set(data.test.index)


def test_images_of_a_class_stand_in_the_same_order_on_windows(tmp_path, monkeypatch):
    fill(tmp_path, {"cat/1": 2, "cat/10": 2, "cat/1 b": 1, "dog": 2})
    ours = ClassFolders(tmp_path).classes["cat"]
    assert [path.split("/")[-2] for path in ours] == ["1 b", "1", "1", "10", "10"]
    images_in = ClassFolders._images_in
    monkeypatch.setattr("cvkit.data.images.os", SimpleNamespace(path=ntpath, sep="\\"))
    monkeypatch.setattr(ClassFolders, "_images_in", lambda listing, folder, name: [
        path.replace("/", "\\") for path in images_in(listing, folder, name)])
    assert ClassFolders(tmp_path).classes["cat"] == [path.replace("/", "\\") for path in ours]


def test_transparent_images_are_counted_in_one_line_also_where_workers_read_them(tmp_path, tiny, capfd):
    for split in ("train", "test"):
        fill(tmp_path / "x" / split, {"a": 6, "b": 6})
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2:6, 2:6, 3] = 255
    for place in ("train/a/000.png", "train/b/003.png", "test/b/000.png"):
        Image.fromarray(pixels).save(tmp_path / "x" / place)
    config = load_config(tiny, ["DATA.DATASET", "{NAME: ImageFolder, root: x, background: [200, 0, 9]}", "DATA.LIMIT", "0",
                                "DATA.TRAIN_TRANSFORMS", "[]", "DATA.BATCH_SIZE", "12", "TRAIN.EPOCHS", "1",
                                "DATA.PIPELINE", "albumentations", "DATA.CACHE_GB", "0", "DATA.WORKERS", "2"])
    loaders = build_loaders(config, build_data(config), torch.device("cpu"))
    batch = next(iter(loaders.train))
    loaders.close()
    images = {int(place): image for place, image in zip(batch.index, loaders.train.denormalise(batch.images), strict=True)}
    for place in (0, 9):
        assert images[place][0, 0].tolist() == [200, 0, 9] and images[place][3, 3].tolist() == [0] * 3
    run = train(config)
    line = "data       3 images with transparent pixels, laid on background 200, 0, 9"
    out, err = capfd.readouterr()
    assert [text.splitlines().count(line) for text in (out, (run.folder / "train.log").read_text())] == [1, 1]
    assert "ransparen" not in err and (out + err).count("transparent") == 1


def test_opaque_images_get_no_line_and_a_wrong_background_is_placed(tmp_path):
    fill(tmp_path / "x", {"a": 4, "b": 4})
    assert DATASETS.build({"NAME": "ImageFolder", "root": "x"}).notes == ()
    for background in (300, [1, 2]):
        with pytest.raises(ConfigError, match="background is 0–255, one number or one for each of 3 channels"):
            DATASETS.build({"NAME": "ImageFolder", "root": "x", "background": background})


@pytest.mark.parametrize("overrides", [
    {}, {"DATA.LIMIT": 10}, {"DATA.VAL_FRACTION": 0.3}, {"DATA.VAL_FRACTION": 0.3, "DATA.LIMIT": 10}],
    ids=["split", "LIMIT", "VAL_FRACTION", "both"])
def test_runs_with_other_seeds_have_the_same_images_and_another_split_seed_has_others(tmp_path, tiny, overrides):
    fill(tmp_path / "x", {"a": 40, "b": 60})

    def places(**keys):
        config = load_config(tiny, {"DATA.DATASET": {"NAME": "ImageFolder", "root": "x"}, "DATA.LIMIT": 0,
                                    **overrides, **{key.replace("_SPLIT", ".SPLIT"): value for key, value in keys.items()}})
        data = build_data(config)
        return [split.index.tolist() for split in (data.train, data.val, data.test) if split]

    assert places(SEED=0) == places(SEED=1) == places(SEED=7, DATA_SPLIT_SEED=0)
    first, second = places(SEED=0), places(SEED=0, DATA_SPLIT_SEED=1)
    assert all(ours != theirs for ours, theirs in zip(first, second, strict=True))


def test_a_data_set_of_one_s_own_is_given_the_seed_of_splits(tiny):
    given = []

    @DATASETS.register()
    def Seeded(seed: int):
        given.append(seed)
        return DATASETS.build({"NAME": "Digits"})

    for keys in ({"SEED": 5}, {"SEED": 5, "DATA.SPLIT_SEED": 2}):
        build_data(load_config(tiny, {"DATA.DATASET": {"NAME": "Seeded"}, **keys}))
    assert given == [0, 2]


def test_what_is_wrong_with_a_data_set_of_one_s_own_is_placed(tiny):

    @DATASETS.register()
    def Graded():
        split = ImageSet.of(np.zeros((4, 8, 8, 3), np.uint8), [0.0, 1.5, 1.0, 0.0])
        return ImageData(("a", "b"), split, split, 3, (8, 8), (0.5,) * 3, (0.2,) * 3)

    with pytest.raises(DataError, match=r"DATA\.DATASET\.NAME: 1 of 4 labels that are no whole numbers, such as 1\.5"):
        build_data(load_config(tiny, ["DATA.DATASET", "{NAME: Graded}"]))


def test_given_statistics_are_kept_and_mixed_sizes_are_known(tmp_path):
    fill(tmp_path / "x" / "train", {"a": 2, "b": 2})
    fill(tmp_path / "x" / "test", {"a": 2, "b": 2}, size=(9, 8))
    node = {"NAME": "ImageFolder", "root": "x", "mean": [0.5] * 3, "std": [0.2] * 3}
    data = DATASETS.build(node)
    assert (data.mean, data.std, data.image_size) == ((0.5,) * 3, (0.2,) * 3, None)


@pytest.mark.parametrize("layout, expected", [
    ({}, "no folder x"),
    ({"train": {"a": 1, "b": 1}}, "has train/ but neither test/ nor val/"),
    ({"train": {"a": 1, "b": 1}, "test": {"a": 1, "c": 1}}, "different classes: b, c"),
    ({"train": {"a": 1, "b": 0}, "test": {"a": 1, "b": 1}}, "b holds no images"),
    ({".": {"a": 3}}, "has a single class, a"),
    ({"Train": {"a": 3}, "Test": {"a": 3}}, "x/Train has a single class, a"),
    ({"val": {"a": 3, "b": 3}, "test": {"a": 3, "b": 3}}, "has val/, test/ but no train/"),
    ({"train": {"a": 3, "b": 3}, "other": {"a": 3, "b": 3}}, "Say which is which: {NAME: ImageFolder, root: x, train: train, test: other}"),
    ({"train": {"a": 1, "b": 1}, "test": {"A": 1, "b": 1}}, "Some differ in upper and lower case alone."),
    ({"x/": {"a": 3, "b": 3}}, "Is root one folder too high? Then point it at x/x"),
    ({"cat": {"train": 3, "test": 3}, "dog": {"train": 3, "test": 3}}, "Splits come first, then classes"),
    ({".": {"a": 3, "b": 1}}, "one image only in x/b"),
    ({"train": {"a": 3, "b": 3}, "test": {"b": 3}}, "x/test and x/train have different classes: a\n"),
    ({"train": {"a": 3, "b": 3}, "val": {"a": 3}, "test": {"a": 3, "b": 3}}, "x/val and x/train have different classes: b\n"),
    ({"cat": {"train": 3, "test": 3}, "dog": {"train": 3}}, "x/cat holds test, train, which are splits"),
    ({"archive/train": {"a": 3, "b": 3}, "archive/test": {"a": 3, "b": 3}, ".": {"other": 3}}, "Then point it at x/archive"),
    ({"train": {"2019": 3, "2020": 3}, ".": {"bus": 3}}, "If it is a class: DATA.DATASET.unsplit true."),
])
def test_folders_that_do_not_fit_are_refused(tmp_path, layout, expected):
    for split, counts in layout.items():
        fill(tmp_path / "x" / split, counts)
    with pytest.raises(DataError) as caught:
        DATASETS.build({"NAME": "ImageFolder", "root": "x"})
    assert expected in str(caught.value)


@pytest.mark.parametrize("hidden", [
    ".ipynb_checkpoints", "__MACOSX", "@eaDir", "deeper/.thumbnails", "deeper/.trash/2024"])
def test_hidden_folders_in_a_class_hold_no_images_of_it(tmp_path, hidden):
    fill(tmp_path / "x" / "train", {"cat": 4, "ant": 6})
    fill(tmp_path / "x" / "test", {"cat": 2, "ant": 3})
    fill(tmp_path / "x" / "train" / "cat", {hidden: 4})
    fill(tmp_path / "x" / "train" / "cat", {"deeper/seen": 1})
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
        (tmp_path / "x" / "train" / "cat" / name).write_text("of the system")
    data = DATASETS.build({"NAME": "ImageFolder", "root": "x"})
    assert np.bincount(data.train.labels).tolist() == [6, 5]
    top = next(part for part in hidden.split("/") if part != "deeper")
    assert data.notes == (f"4 other files ignored in train/ (in {top} 4)",)


@pytest.mark.parametrize("train, val, test", [
    ("train", "valid", "test"), ("Train", "Validation", "Test"), ("TRAINING", "Val", "testing"),
    ("training", "VALID", "Testing")])
def test_the_usual_spellings_of_splits_are_understood(tmp_path, train, val, test):
    fill(tmp_path / "x" / train, {"a": 4, "b": 4})
    fill(tmp_path / "x" / val, {"a": 3, "b": 3})
    data = DATASETS.build({"NAME": "ImageFolder", "root": "x"})
    assert data.val is None and (len(data.train), len(data.test)) == (8, 6)
    assert data.notes == (f"{val}/ is the test set, as there is no other",)
    fill(tmp_path / "x" / test, {"a": 1, "b": 1})
    data = DATASETS.build({"NAME": "ImageFolder", "root": "x"})
    assert [len(split) for split in (data.train, data.val, data.test)] == [8, 6, 2]
    assert data.monitored == "val" and data.notes == ()


@pytest.mark.parametrize("split, names", [
    ("train", ["Train", "training"]), ("val", ["val", "valid"]), ("test", ["test", "testing"])])
def test_two_spellings_of_one_split_are_refused_until_one_is_named(tmp_path, split, names):
    for name in {"train", "val", "test"} - {split} | set(names):
        fill(tmp_path / "x" / name, {"a": 1 + (name == names[1]), "b": 2})
    with pytest.raises(DataError) as caught:
        DATASETS.build({"NAME": "ImageFolder", "root": "x"})
    assert f"x has {names[0]}/ and {names[1]}/, which are both called as the {split} split is" in str(caught.value)
    data = DATASETS.build({"NAME": "ImageFolder", "root": "x", split: names[1]})
    assert len(getattr(data, split)) == 4
    assert data.notes[0].endswith(f": {names[0]}/")  # ignored beside the others, which is said


def test_a_class_called_as_a_split_is_one_among_others(tmp_path):
    fill(tmp_path / "x", {"bus": 3, "car": 3, "train": 3})
    data = DATASETS.build({"NAME": "ImageFolder", "root": "x"})
    assert data.classes == ("bus", "car", "train")
    assert data.notes == ("train/ is taken for a class: it holds images, not class folders",)
    fill(tmp_path / "y", {"test_passed": 3, "test_failed": 3})
    assert len(DATASETS.build({"NAME": "ImageFolder", "root": "y"}).classes) == 2


@pytest.mark.parametrize("train, test", [
    ("training_set", "test_set"), ("TrainImages", "TestImages"), ("dogs_train", "dogs_test"),
    ("my_train", "test_2020")])
def test_splits_with_other_names_are_no_classes_and_can_be_named(tmp_path, tool, tiny, train, test):
    fill(tmp_path / "x" / train, {"a": 4, "b": 4}, size=(32, 32))
    fill(tmp_path / "x" / test, {"a": 2, "b": 2}, size=(32, 32))
    node = ["DATA.DATASET", "{NAME: ImageFolder, root: x}", "DATA.LIMIT", "0"]
    code, _, err = tool("train.py", tiny, "--check", *node)
    assert code == 2 and "command line DATA.DATASET.root: the folders" in err
    assert f"{train}" in err and f"{test}" in err and "are splits, it seems, of the classes a, b" in err
    named = re.search(r"Say which is which: (\{.*\})", err).group(1)
    assert named == f"{{NAME: ImageFolder, root: x, train: {train}, test: {test}}}"
    code, out, err = tool("train.py", tiny, "--check", "DATA.DATASET", named, "DATA.LIMIT", "0")
    assert code == 0 and "data       ImageFolder: 8 train, 4 test, 2 classes" in out, err
    code, _, err = tool("train.py", tiny, "--check", *node, "DATA.DATASET.train", f"{train}x",
                        "DATA.DATASET.test", test)
    assert code == 2 and f"DATA.DATASET.train: no folder {train}x in x" in err
    assert f"Did you mean {train}?" in err
    code, _, err = tool("train.py", tiny, "--check", *node, "DATA.DATASET.train", train,
                        "DATA.DATASET.test", f"{train}/")
    assert code == 2 and f"two splits are the folder {train}" in err


@pytest.mark.parametrize("folders, said", [
    ("seg_train/seg_train/sea seg_train/seg_train/ice seg_test/seg_test/sea seg_test/seg_test/ice seg_pred/seg_pred",
     "root: x, train: seg_train/seg_train, test: seg_test/seg_test}"),
    ("seg_train/sea seg_train/ice seg_test/sea seg_test/ice seg_pred", "root: x, train: seg_train, test: seg_test}"),
    ("train_cats train_dogs test_cats test_dogs", "Splits come first, then classes: test/cats, test/dogs, train/cats, train/dogs."),
    ("cats_train/old cats_test/old dogs_train/old dogs_test/old", "then classes: test/cats, train/cats, test/dogs, train/dogs."),
    ("train test sample", "test, train of x are splits, it seems, and hold images without class folders"),
    ("my_train my_test sample", "my_test, my_train of x are splits, it seems, and hold images without class folders"),
    ("train_val/a train_val/b my_test/a my_test/b", "root: x, train: train_val, test: my_test}"),
    ("my_valid/a my_valid/b my_test/a my_test/b", "root: x, train: NAME, val: my_valid, test: my_test}")])
def test_splits_among_other_folders_are_no_classes_until_they_are_said_to_be(tmp_path, folders, said):
    fill(tmp_path / "x", dict.fromkeys(folders.split(), 3))
    with pytest.raises(DataError) as caught:
        DATASETS.build({"NAME": "ImageFolder", "root": "x"})
    assert said in str(caught.value) and "DATA.DATASET.unsplit true" in str(caught.value)
    data = DATASETS.build({"NAME": "ImageFolder", "root": "x", "unsplit": True})
    assert data.classes == tuple(sorted({folder.split("/")[0] for folder in folders.split()}))
    assert data.notes == ()
    with pytest.raises(ConfigError, match="unsplit says that root has no splits"):
        DATASETS.build({"NAME": "ImageFolder", "root": "x", "unsplit": True, "train": "x"})


def test_the_same_folders_in_all_folders_are_parts_of_classes_or_classes_of_splits(tmp_path):
    fill(tmp_path / "x", dict.fromkeys(["COVID/images", "COVID/masks", "Normal/images", "Normal/masks"], 3))
    node = {"NAME": "ImageFolder", "root": "x"}
    with pytest.raises(DataError) as caught:
        DATASETS.build(node)
    for words in ("COVID, Normal of x each hold the folders images, masks", "root: x, train: NAME, test: NAME}",
                  "DATA.DATASET.unsplit true takes all images in them"):
        assert words in str(caught.value)
    assert DATASETS.build(node | {"unsplit": True}).classes == ("COVID", "Normal")
    assert DATASETS.build(node | {"train": "COVID", "test": "Normal"}).classes == ("images", "masks")


@pytest.mark.parametrize("folder", ["test", "test/unknown", "test/test"])
def test_a_test_folder_without_labels_is_told_the_way(tmp_path, folder):
    fill(tmp_path / "x", {"train/a": 3, "train/b": 3, folder: 3})
    node = {"NAME": "ImageFolder", "root": "x"}
    with pytest.raises(DataError) as caught:
        DATASETS.build(node)
    assert "If test/ has no labels: point root at x/train, of which test_fraction is set aside." in str(caught.value)
    assert len(DATASETS.build(node | {"root": "x/train"}).test) == 2
    fill(tmp_path / "x", {"val/a": 2, "val/b": 2})
    with pytest.raises(DataError, match="If test/ has no labels: DATA.DATASET.test val takes val/ instead"):
        DATASETS.build(node)
    data = DATASETS.build(node | {"test": "val"})
    assert (len(data.train), len(data.test), data.val) == (6, 4, None)
    assert data.notes == ("ignored beside train/, val/: test/",)


def test_a_test_folder_of_another_name_without_labels_is_told_the_way(tmp_path):
    fill(tmp_path / "x", {"my_train/a": 3, "my_train/b": 3, "my_test": 3})
    with pytest.raises(DataError, match="If my_test/ has no labels: point root at x/my_train, of which"):
        DATASETS.build({"NAME": "ImageFolder", "root": "x"})


@pytest.mark.parametrize("train, test", [("train/train", "test/test"), ("train", "test/test"), ("train/data", "test")])
def test_splits_whose_classes_lie_one_folder_deeper_keep_their_test_images(tmp_path, train, test):
    fill(tmp_path / "x" / train, {"a": 4, "b": 4})
    fill(tmp_path / "x" / test, {"a": 2, "b": 2})
    node = {"NAME": "ImageFolder", "root": "x"}
    with pytest.raises(DataError) as caught:
        DATASETS.build(node)
    assert f"{{NAME: ImageFolder, root: x, train: {train}, test: {test}}}" in str(caught.value)
    data = DATASETS.build(node | {"train": train, "test": test})
    assert (len(data.train), len(data.test), data.notes) == (8, 4, ())


def test_splits_are_named_in_one_mapping_as_well(tmp_path, tiny):
    for split in ("training_set", "test_set", "more"):
        fill(tmp_path / "x" / split, {"cat": 3, "dog": 3})
    node = "{NAME: ImageFolder, root: x, splits: {train: training_set, test: test_set}}"
    data = build_data(load_config(tiny, ["DATA.DATASET", node, "DATA.DATASET.splits.val", "more", "DATA.LIMIT", "0"]))
    same = DATASETS.build({"NAME": "ImageFolder", "root": "x", "train": "training_set", "test": "test_set", "val": "more"})
    assert data.train.name(0) == "x/training_set/cat/000.png" and data.notes == same.notes == ()
    assert [split.fingerprint for split in data.splits.values()] == [split.fingerprint for split in same.splits.values()]


@pytest.mark.parametrize("arguments, said", [
    ("splits: {train: a, tset: b}", "not {'train': 'a', 'tset': 'b'}"), ("splits: {train: 3}", "not {'train': 3}"),
    ("splits: {train: a}, test: b", "not {'train': 'a'} beside train, val or test"),
    ("splits: [a, b]", "splits of dataset ImageFolder takes mapping or null, not ['a', 'b']"),
    ("splits: {train: a, test: c}", "no folder c in x"), ("splits: {train: a, test: b}, unsplit: true", "unsplit says")])
def test_a_mapping_that_is_none_of_splits_is_refused(tmp_path, tiny, arguments, said):
    for split in ("a", "b"):
        fill(tmp_path / "x" / split, {"cat": 3, "dog": 3})
    with pytest.raises(UserError) as caught:
        build_data(load_config(tiny, ["DATA.DATASET", f"{{NAME: ImageFolder, root: x, {arguments}}}"]))
    assert said in str(caught.value) and str(caught.value).startswith("command line DATA.DATASET.")


@pytest.mark.parametrize("train, test", [("{}/x/a", "{}/x/b"), ("./a", "b/"), ("{}/x/a", "b")])
def test_folders_of_splits_are_not_said_to_be_ignored_however_they_are_written(tmp_path, train, test):
    for split in ("a", "b", "c"):
        fill(tmp_path / "x" / split, {"cat": 2, "dog": 2})
    train, test = train.format(tmp_path), test.format(tmp_path)
    (tmp_path / "link").symlink_to("x")
    for root in ("x", "link"):
        data = DATASETS.build({"NAME": "ImageFolder", "root": root, "train": train, "test": test})
        assert data.notes == (f"ignored beside {train}/, {test}/: c/",)
    for other in (f"{tmp_path}/x/a", "c/../a"):
        with pytest.raises(DataError, match="two splits are the folder"):
            DATASETS.build({"NAME": "ImageFolder", "root": "x", "train": "a", "test": other})


def test_classes_whose_images_lie_in_one_folder_more_are_classes(tmp_path):
    """As those of Tiny ImageNet: n01443537/images/."""
    fill(tmp_path / "x", {"ant/images": 3, "bee/images": 3})
    assert DATASETS.build({"NAME": "ImageFolder", "root": "x"}).classes == ("ant", "bee")


@pytest.mark.parametrize("ending, kind", [
    (".jfif", "JPEG"), (".JPE", "JPEG"), (".jp2", "JPEG2000"), (".tga", "TGA"), (".avif", "AVIF"),
    (".pbm", "PPM"), (".pnm", "PPM")])
def test_images_of_other_kinds_are_read(tmp_path, ending, kind):
    for split in ("train", "test"):
        fill(tmp_path / "x" / split, {"a": 2, "b": 2})
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    path = tmp_path / "x" / "train" / "a" / f"new{ending}"
    try:
        Image.fromarray(pixels).save(path, kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {kind}")
    data = DATASETS.build({"NAME": "ImageFolder", "root": "x"})
    assert len(data.train) == 5 and data.notes == ()
    place = [data.train.name(number)[-len(ending):] for number in range(5)].index(ending)
    assert np.abs(data.train.image(place).astype(int) - pixels).max() < 60


def test_what_is_left_out_of_a_folder_is_said_in_a_line(tmp_path, tool, tiny):
    for split in ("train", "test"):
        fill(tmp_path / "x" / split, {"a": 4, "b": 4}, size=(32, 32))
    a, train = tmp_path / "x" / "train" / "a", tmp_path / "x" / "train"
    for number in range(15):
        (a / f"{number}.heic").write_text("of a phone")
    (a / "picture").write_text("")
    (a / "gone.jpg").symlink_to("nowhere.jpg")
    (a / "._000.png").write_text("of a file manager")
    (a / "000.png").rename(train / "lost.png")
    (tmp_path / "x" / "unlabelled").mkdir()
    code, out, err = tool("train.py", tiny, "--check", "DATA.DATASET",
                          "{NAME: ImageFolder, root: x}", "DATA.LIMIT", "0")
    assert code == 0, err
    assert [line for line in out.splitlines() if line.startswith("data ")][1:] == [
        "data       ignored beside train/, test/: unlabelled/",
        "data       19 other files ignored in train/ (.heic 15, in no class folder 1, hidden 1, "
        "no ending 1, broken link 1)"]


def test_a_class_with_other_files_alone_says_which(tmp_path):
    fill(tmp_path / "x", {"a": 3, "b": 0})
    (tmp_path / "x" / "b" / "1.heic").write_text("of a phone")
    with pytest.raises(DataError, match=r"x/b holds no images, but other files \(.heic 1\)"):
        DATASETS.build({"NAME": "ImageFolder", "root": "x"})


@pytest.mark.parametrize("folder", ["x/train/a", "x/test/a"])
def test_a_class_of_which_no_image_can_be_read_is_refused(tmp_path, folder):
    for root in ("x/train", "x/test"):
        fill(tmp_path / root, {"a": 5, "b": 5})
    node = {"NAME": "ImageFolder", "root": "x", "skip_unreadable": True}
    for number in range(4):
        (tmp_path / folder / f"{number:03}.png").write_text("no image")
    data = DATASETS.build(node)
    assert len(data.left_out) == 4
    (tmp_path / folder / "004.png").write_text("no image")
    with pytest.raises(DataError, match=f"none of the 5 t[a-z]* images of a can be read, among them {folder}/000"):
        DATASETS.build(node)


@pytest.mark.parametrize("split, count", [("train", 8), ("test", 2)])
def test_a_part_that_loses_a_class_is_refused_where_class_folders_are_split(tmp_path, split, count):
    fill(tmp_path / "x", {"a": 10, "b": 10})
    node = {"NAME": "ImageFolder", "root": "x", "skip_unreadable": True}
    images = getattr(DATASETS.build(node), split)
    for place in np.flatnonzero(images.labels == 0):
        (tmp_path / images.name(place)).write_text("no image")
    with pytest.raises(DataError, match=f"none of the {count} {split} images of a can be read, among them x/a/"):
        DATASETS.build(node)


def test_linked_folders_are_followed_each_once(tmp_path):
    fill(tmp_path / "stored", {"a": 3, "more": 2})
    fill(tmp_path / "x", {"b": 4, "b/inner": 1})
    (tmp_path / "x" / "a").symlink_to(tmp_path / "stored" / "a")
    for name in ("first", "second"):
        (tmp_path / "x" / "b" / name).symlink_to(tmp_path / "stored" / "more")
    (tmp_path / "x" / "b" / "again").symlink_to("inner")
    data = DATASETS.build({"NAME": "ImageFolder", "root": "x"})
    labels = np.concatenate([data.train.labels, data.test.labels])
    assert np.bincount(labels).tolist() == [3, 4 + 1 + 2]


@pytest.mark.parametrize("link, target, expected", [
    ("x/a/loop", "..", "x/a/loop is a link to .*/x, in which it lies: a loop"),
    ("x/a/loop", "../../x/a", "x/a/loop is a link to .*/x/a, in which it lies: a loop"),
    ("x/a/root", "/", "x/a/root is a link to /, in which it lies: a loop"),
    ("x/c", "b", "x/c and x/b are the same folder: its images would be of two classes"),
    ("x/a/other", "../b", "x/b and x/a/other are the same folder")])
def test_links_that_go_in_a_circle_or_to_another_class_are_refused(tmp_path, link, target, expected):
    fill(tmp_path / "x", {"a": 3, "b": 3})
    (tmp_path / link).symlink_to(target)
    with pytest.raises(DataError, match=expected):
        DATASETS.build({"NAME": "ImageFolder", "root": "x"})


@pytest.mark.parametrize("layout, table, root", [
    ({".": {".": 5}}, "labels.csv", ""), ({".": {"images": 5}}, "labels.tsv", ", root: x/images"),
    ({".": {"train": 5, "test": 5}}, "train.csv", ""),
    ({"train": {".": 5}, "test": {"a": 2, "b": 2}}, "train.csv", ", root: x/train")])
def test_images_with_a_table_of_labels_are_told_the_way(tmp_path, layout, table, root):
    for split, counts in layout.items():
        fill(tmp_path / "x" / split, counts)
    (tmp_path / "x" / table).write_text("file,label\n")
    with pytest.raises(DataError) as caught:
        DATASETS.build({"NAME": "ImageFolder", "root": "x"})
    assert f"If {table} has the labels: {{NAME: CSVDataset, path: x/{table}{root}}}. Of other" in str(caught.value)
    assert "docs/add_a_dataset.md" in str(caught.value)


@pytest.mark.parametrize("split", ["test", "train"])
def test_names_that_look_the_same_are_said_to(tmp_path, split):
    """On a file system that tells them apart."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    fill(tmp_path / "x" / "train", {composed: 2, "tea": 2})
    fill(tmp_path / "x" / "test", {decomposed: 2, "tea": 2})
    if split == "train":
        fill(tmp_path / "x" / "train", {decomposed: 2})
        expected = "x/train has two classes caf"
    else:
        expected = "x/test and x/train have different classes: "
    if len(list((tmp_path / "x" / "train").iterdir())) != 2 + (split == "train"):
        pytest.skip("they are one name here")
    with pytest.raises(DataError) as caught:
        DATASETS.build({"NAME": "ImageFolder", "root": "x"})
    assert expected in str(caught.value) and "look the same and are not" in str(caught.value)
    assert "'caf\\xe9'" in str(caught.value) and "'cafe\\u0301'" in str(caught.value)


@pytest.mark.parametrize("node, key", [
    ("{NAME: ImageFolder, root: nowhere}", "root"),
    ("{NAME: ImageFolder, root: ./nowhere/}", "root"),
    ("{NAME: ImageFolder, root: tiny.yaml}", "root"),
    ("{NAME: ImageFolder, root: ., train: nowhere}", "train"),
    ("{NAME: MNIST, root: nowhere, download: false}", "root"),
    ("{NAME: Mine, root: ., table: nowhere.csv}", "table"),
    ("{NAME: Mine, root: nowhere, table: tiny.yaml}", "root")])
def test_a_path_that_is_not_there_names_its_key(tiny, node, key):

    @DATASETS.register()
    def Mine(root: str, table: str):
        if root == "nowhere":
            raise DataError(f"{root}/ holds no images")
        open(table).close()

    with pytest.raises(UserError) as caught:
        build_data(load_config(tiny, ["DATA.DATASET", node]))
    assert str(caught.value).startswith(f"command line DATA.DATASET.{key}: "), str(caught.value)


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match="has no class folders"):
        DATASETS.build({"NAME": "ImageFolder", "root": "x"})


def test_files_that_are_no_images_are_named_up_to_five(tmp_path):
    for split in ("train", "test"):
        fill(tmp_path / "x" / split, {"a": 10, "b": 10})
    for number in range(7):
        (tmp_path / "x" / "train" / "a" / f"{number:03}.png").write_text("no image")
    with pytest.raises(DataError) as caught:
        DATASETS.build({"NAME": "ImageFolder", "root": "x"})
    assert str(caught.value).count("cannot be read as an image") == 5
    assert "x/train/a/000.png" in str(caught.value) and str(caught.value).endswith("and 2 more")


@pytest.mark.parametrize("node, expected", [
    ({"NAME": "ImageFolder", "root": "x", "test_fraction": 1.5}, "test_fraction lies between"),
    ({"NAME": "ImageFolder", "root": "x", "channels": 4}, "channels is 1 or 3"),
    ({"NAME": "Digits", "channels": 2}, "channels is 1 or 3")])
def test_impossible_arguments(node, expected):
    with pytest.raises(ConfigError, match=expected):
        DATASETS.build(node)


def test_cifar_pictures_have_the_known_classes_and_statistics(cifar_images):
    data = DATASETS.build({"NAME": "ImageFolder", "root": str(cifar_images)})
    assert data.classes == CIFAR10_CLASSES and data.image_size == (32, 32)
    assert np.allclose(data.mean, (0.4914, 0.4822, 0.4465), atol=0.004)
    assert np.allclose(data.std, (0.2470, 0.2435, 0.2616), atol=0.004)


# -- from a config -------------------------------------------------------------------------------


def test_val_fraction_is_held_out_of_train_and_limit_balances_every_split(tiny):
    data = build_data(load_config(tiny, {"DATA.VAL_FRACTION": 0.1, "DATA.LIMIT": 0}))
    assert (len(data.train), len(data.val), len(data.test)) == (1295, 143, 359)
    assert not set(data.train.index) & set(data.val.index) and data.monitored == "val"
    data = build_data(load_config(tiny, {"DATA.VAL_FRACTION": 0.1, "DATA.LIMIT": 100}))
    for split in (data.train, data.val, data.test):
        assert np.bincount(split.labels).tolist() == [10] * 10


def test_val_fraction_beside_a_val_split_is_refused(tmp_path, tiny):
    for name in ("train", "val", "test"):
        fill(tmp_path / "x" / name, {"a": 3, "b": 3})
    config = load_config(tiny, ["DATA.DATASET", "{NAME: ImageFolder, root: x}", "DATA.VAL_FRACTION",
                                "0.5", "DATA.LIMIT", "0"])
    with pytest.raises(ConfigError, match="DATA.VAL_FRACTION: this data set has a val split"):
        build_data(config)


def test_a_mean_of_pixel_values_is_told_also_where_a_fill_meets_it_first(tmp_path, tiny):
    fill(tmp_path / "x", {"a": 3, "b": 3})
    config = load_config(tiny, ["DATA.DATASET", "{NAME: ImageFolder, root: x, mean: [125, 122, 113], std: [63, 62, 66]}",
                                "DATA.TRAIN_TRANSFORMS", "[{NAME: CutOut, size: 4}]"])
    with pytest.raises(ConfigError, match=r'fill "mean" is that of the data, for pixels scaled to 0–1, not '
                                          r"\[125.0, 122.0, 113.0\]; divide DATA.DATASET.mean by 255"):
        build_loaders(config, build_data(config), torch.device("cpu"))


def test_a_fraction_of_a_single_image_is_placed(tmp_path, tiny):
    for name in ("train", "test"):
        fill(tmp_path / "x" / name, {"a": 3, "b": 1})
    config = load_config(tiny, ["DATA.DATASET", "{NAME: ImageFolder, root: x}", "DATA.VAL_FRACTION", "0.5"])
    with pytest.raises(DataError, match="command line DATA.VAL_FRACTION: class b has one image"):
        build_data(config)


def test_a_limit_below_the_classes_is_placed(tiny):
    with pytest.raises(ConfigError, match="command line DATA.LIMIT: DATA.LIMIT 5 is less than one"):
        build_data(load_config(tiny, ["DATA.LIMIT", "5"]))
