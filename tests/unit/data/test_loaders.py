import multiprocessing
import random
import signal
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import paint
from PIL import Image

from cvkit.config import check_components, load_config
from cvkit.data import build_data, build_loaders, sources
from cvkit.data.build import _Builder
from cvkit.errors import ConfigError, DataError, RunError
from cvkit.registry import TRANSFORMS
from cvkit.runs.experiment import Experiment

CPU = torch.device("cpu")
BACKENDS = pytest.mark.parametrize("backend", ["batched", "albumentations"])


def loaders(path, *overrides):
    config = load_config(path, list(overrides))
    return build_loaders(config, build_data(config), CPU)


def epoch_of(loader, epoch=0):
    """Return an epoch's images, labels, places and targets."""
    loader.set_epoch(epoch)
    return tuple(torch.cat(parts) for parts in zip(*(batch[:4] for batch in loader), strict=True))


@pytest.mark.parametrize("device, waits", [("cpu", True), ("mps", True), ("cuda", False)])
def test_a_batch_is_copied_before_its_memory_is_used_again(tiny, device, waits):
    """On CUDA it lies in pinned memory, which torch keeps until the copy has ended."""
    loader, asked = loaders(tiny).test, []

    class Part:
        def __init__(self, values):
            self.values = values

        def to(self, device, non_blocking):
            asked.append((device.type, non_blocking))
            return self.values

    loader.device = torch.device(device)
    loader._on_device([Part(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)), Part(torch.zeros(2)), Part(torch.zeros(2))])
    assert asked == [(device, not waits)] * 3


@BACKENDS
def test_batches_are_normalised_images_labels_and_places(tiny, backend):
    loader = loaders(tiny, "DATA.TRAIN_TRANSFORMS", "[]", "DATA.PIPELINE", backend).train
    images, labels, index, _ = epoch_of(loader)
    assert images.shape == (150, 3, 32, 32) and images.dtype == torch.float32
    batch = next(iter(loader))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    split = loader.images
    assert sorted(index.tolist()) == split.index.tolist()
    for image, label, place in zip(images[:20], labels[:20], index[:20], strict=True):
        expected = split.images[place].astype(np.float64) / 255
        expected = (expected - loader.mean) / loader.std
        assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() < 1e-5
        position = split.index.tolist().index(int(place))
        assert split.labels[position] == label


def test_normalised_training_images_have_mean_0_and_deviation_1(tiny):
    images, _, _, _ = epoch_of(loaders(tiny, "DATA.TRAIN_TRANSFORMS", "[]", "DATA.LIMIT", "0").train)
    assert images.mean((0, 2, 3)).abs().max() < 1e-4
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-3


@BACKENDS
def test_an_epoch_has_every_image_once_in_a_new_order(tiny, backend):
    loader = loaders(tiny, "DATA.PIPELINE", backend).train
    orders = [epoch_of(loader, epoch)[2].tolist() for epoch in (0, 1, 0)]
    assert sorted(orders[0]) == sorted(orders[1]) == loader.images.index.tolist()
    assert orders[0] == orders[2] != orders[1]
    assert loader.batch_sizes == [32, 32, 32, 32, 22] and len(loader) == 5


def test_what_the_model_receives_is_turned_back_into_pixels_exactly(tiny):
    loader = loaders(tiny, "DATA.LIMIT", "0").train
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(2, 1, 1, 3)
    pixels[1] = 255 - pixels[1]
    pixels[..., 1] //= 2
    assert np.array_equal(loader.denormalise(loader.normalise(pixels)), pixels.numpy())


def test_images_can_be_taken_by_position(tiny):
    loader = loaders(tiny).test
    batch = loader.take([7, 3, 3])
    split = loader.images
    assert batch.labels.tolist() == split.labels[[7, 3, 3]].tolist()
    assert batch.index.tolist() == split.index[[7, 3, 3]].tolist()
    shown = loader.denormalise(batch.images)
    assert all(np.array_equal(shown[n], split.image(place)) for n, place in enumerate((7, 3, 3)))


@BACKENDS
def test_images_are_taken_as_the_evaluation_saw_them(tiny, backend):
    """Even where test images are cropped at random: the crop that was predicted is the one shown."""
    loader = loaders(tiny, "DATA.TEST_TRANSFORMS", "[{NAME: RandomCrop, size: 12}]",
                     "DATA.PIPELINE", backend).test
    images, labels, index, _ = epoch_of(loader)
    positions = [140, 3, 70, 3]
    batch = loader.take(positions)
    assert torch.equal(batch.images, images[positions])
    assert torch.equal(batch.labels, labels[positions]) and torch.equal(batch.index, index[positions])


def test_images_are_taken_as_seen_even_if_some_never_change(tmp_path, tiny):
    """A crop of a blank image is the same wherever it is; others are not."""
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / "x" / split / name).mkdir(parents=True)
            for number in range(8):
                kind = Image.new("RGB", (40, 40)) if number == 0 else Image.radial_gradient("L").resize((40, 40))
                kind.save(tmp_path / "x" / split / name / f"{number}.png")
    loader = loaders(tiny, "DATA.DATASET", "{NAME: ImageFolder, root: x}", "DATA.BATCH_SIZE", "3",
                     "DATA.TEST_TRANSFORMS", "[{NAME: RandomCrop, size: 32}]",
                     "DATA.PIPELINE", "albumentations").test
    images = epoch_of(loader)[0]
    assert torch.equal(loader.take([0, 9, 4]).images, images[[0, 9, 4]])


@BACKENDS
@pytest.mark.parametrize("epoch", [0, 3])
def test_the_first_batch_is_the_one_an_epoch_begins_with(tiny, epoch, backend):
    loader = loaders(tiny, "DATA.PIPELINE", backend).train
    first = loader.first_batch(epoch)
    assert loader.first_batch().images.equal(loader.first_batch(0).images)  # its epoch is kept
    loader.set_epoch(epoch)
    assert all(map(torch.equal, first[:4], next(iter(loader))))


def test_test_images_come_in_their_own_order(tiny):
    loader = loaders(tiny).test
    assert epoch_of(loader)[2].tolist() == loader.images.index.tolist()
    assert loader.batch_sizes == [64, 64, 22]  # twice BATCH_SIZE
    assert loaders(tiny, "DATA.EVAL_BATCH_SIZE", "100").test.batch_sizes == [100, 50]


@BACKENDS
@pytest.mark.parametrize("count, sizes", [(65, [32, 32]), (66, [32, 32, 2]), (64, [32, 32])])
def test_a_last_training_batch_of_one_image_is_left_out(tiny, count, sizes, backend):
    loader = loaders(tiny, "DATA.LIMIT", str(count), "DATA.PIPELINE", backend).train
    assert [len(batch.labels) for batch in loader] == sizes == loader.batch_sizes


def test_workers_change_nothing(tiny, start_method):
    expected = {}
    for workers in ("0", "1", "2"):
        loader = loaders(tiny, "DATA.WORKERS", workers, "DATA.PIPELINE", "albumentations").train
        for epoch in (0, 1):
            images = epoch_of(loader, epoch)[0]
            assert torch.equal(images, expected.setdefault(epoch, images))
        loader.source.close()


OWN = """
import multiprocessing
from collections.abc import Sequence

import numpy as np

from cvkit import DATASETS, TRANSFORMS, ImageData, ImageSet


def in_worker():
    return multiprocessing.parent_process() is not None


@TRANSFORMS.register()
class OwnDarker:
    def __call__(self, image):
        return image // 2


@TRANSFORMS.register()
class OwnFailing:
    def __call__(self, image):
        if in_worker():
            raise RuntimeError("no horizon in this image")
        return image


@TRANSFORMS.register()
class OwnExiting:
    def __call__(self, image):
        if in_worker():
            import os
            os._exit(3)
        return image


@TRANSFORMS.register()
def own_local():
    return lambda image: image // 2


class Squares(Sequence):
    def __len__(self):
        return 40

    def __getitem__(self, place):
        return np.full((32, 32, 3), 5 * place, np.uint8)


@DATASETS.register()
def own_squares():
    split = ImageSet.of(Squares(), [0, 1] * 20)
    return ImageData(("even", "odd"), split, split, 3, (32, 32), (0.5,) * 3, (0.25,) * 3)
"""


@pytest.fixture
def own(tiny):
    """Build the loaders of a config with an own transform."""
    (tiny.parent / "own_parts.py").write_text(OWN)
    made = []

    def build(name, workers, **more):
        config = load_config(tiny, {
            "IMPORTS": [str(tiny.parent / "own_parts.py")], "DATA.WORKERS": workers,
            "DATA.PIPELINE": "albumentations", "DATA.TRAIN_TRANSFORMS": [{"NAME": name}], **more})
        check_components(config)
        made.append(build_loaders(config, build_data(config), CPU))
        return made[-1]

    yield build
    for each in made:
        each.close()


SQUARES = {"DATA.DATASET": {"NAME": "own_squares"}, "DATA.LIMIT": 0, "DATA.CACHE_GB": 0.0}


@pytest.mark.parametrize("more", [{}, SQUARES], ids=["transform", "data set"])
def test_workers_find_what_is_of_one_s_own(own, start_method, more, capfd):
    expected = epoch_of(own("OwnDarker", 0, **more).train)
    capfd.readouterr()
    assert all(map(torch.equal, expected, epoch_of(own("OwnDarker", 2, **more).train)))
    assert "imported" not in capfd.readouterr().out  # which was said once


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["spawn"], indirect=True)
def test_workers_that_begin_from_nothing_find_it_as_well(own, start_method):
    expected = epoch_of(own("OwnDarker", 0, **SQUARES).train)
    assert all(map(torch.equal, expected, epoch_of(own("OwnDarker", 1, **SQUARES).train)))


def test_what_a_worker_raises_is_shown_as_it_is(own, start_method):
    with pytest.raises(RuntimeError, match="no horizon in this image") as caught:
        epoch_of(own("OwnFailing", 1).train)
    assert "own_parts.py" in str(caught.value) and "emory" not in str(caught.value)


def test_a_worker_that_ends_is_told(own, start_method):
    with pytest.raises(DataError, match="a process that makes batches died") as caught:
        epoch_of(own("OwnExiting", 1).train)
    assert "What it said stands above. If it said nothing, memory may" in str(caught.value)


def test_what_cannot_be_sent_to_workers_is_refused_before_training(own, start_method, monkeypatch):
    if start_method == "fork":  # which need not be sent anything
        assert len(epoch_of(own("own_local", 1).train)[1]) == 150
        return
    with pytest.raises(ConfigError) as caught:
        own("own_local", 1)
    assert "Python DATA.WORKERS: a transform or data set of your own cannot be sent to worker processes: " in str(caught.value)
    assert "own_local.<locals>.<lambda>" in str(caught.value) and "DATA.WORKERS 0" in str(caught.value)
    assert len(epoch_of(own("own_local", 0).train)[1]) == 150
    build = _Builder.__init__
    monkeypatch.setattr(_Builder, "__init__", lambda self, *rest: (
        build(self, *rest), setattr(self, "workers", 2))[0])  # as on a GPU, if DATA.WORKERS is -1
    made = own("own_local", -1)
    assert made.input.startswith("image by image in this process (a transform or data set of your own")
    assert len(epoch_of(made.train)[1]) == 150


def test_what_is_defined_in_a_notebook_is_refused_where_workers_cannot_find_it(
        tiny, start_method, monkeypatch):
    notebook = ModuleType("__main__")
    exec("class InNotebook:\n    def __call__(self, image):\n        return image", vars(notebook))
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    TRANSFORMS.register()(notebook.InNotebook)
    settings = "DATA.TRAIN_TRANSFORMS", "[{NAME: InNotebook}]", "DATA.WORKERS", "1"
    if start_method == "fork":
        assert "1 worker process " in loaders(tiny, *settings).input
        return
    with pytest.raises(ConfigError, match="is defined in a notebook or at a prompt"):
        loaders(tiny, *settings)
    notebook.__file__ = "a_script.py"  # which they read
    assert "1 worker process " in loaders(tiny, *settings).input


def test_a_script_that_workers_would_run_again_is_told_so(tiny, monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(RunError, match='each worker process begins with this script.*\n.*if __name__ == "__main__":'):
        loaders(tiny, "DATA.WORKERS", "1", "DATA.PIPELINE", "albumentations")


def test_signals_wait_until_workers_are_prepared_for_them():
    def waiting():  # of this thread, whose mask the processes that it starts have
        return {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, ())

    with sources._signals_wait():
        assert waiting() == {signal.SIGINT, signal.SIGTERM}
    assert waiting() == set()


@BACKENDS
def test_another_epoch_and_another_seed_augment_a_picture_differently(tiny, backend):
    by_place = []
    for epoch, seed in ((0, "0"), (1, "0"), (0, "1")):
        loader = loaders(tiny, "SEED", seed, "DATA.LIMIT", "0", "DATA.PIPELINE", backend).train
        images, _, index, _ = epoch_of(loader, epoch)
        by_place.append(dict(zip(index.tolist(), images, strict=True)))
    common = set(by_place[0]) & set(by_place[1]) & set(by_place[2])
    for other in by_place[1:]:
        same = [torch.equal(by_place[0][place], other[place]) for place in common]
        assert np.mean(same) < 0.02


@BACKENDS
def test_images_within_a_batch_are_augmented_independently(tmp_path, tiny, backend):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / "x" / split / name).mkdir(parents=True)
            for number in range(32):
                Image.fromarray(pixels).save(tmp_path / "x" / split / name / f"{number}.png")
    loader = loaders(tiny, "DATA.DATASET", "{NAME: ImageFolder, root: x}",
                     "DATA.PIPELINE", backend).train
    images = epoch_of(loader)[0]
    assert len({image.numpy().tobytes() for image in images}) > 60


def test_grey_images_have_the_strides_of_the_plain_layout(tiny):
    made = loaders(tiny, "DATA.DATASET.channels", "1")
    made.set_layout(torch.contiguous_format)
    assert next(iter(made.train)).images.stride() == (32 * 32, 32 * 32, 32, 1)


def test_without_channels_last_the_layout_is_plain(tiny):
    made = loaders(tiny)
    made.set_layout(torch.contiguous_format)
    for loader in (made.train, made.test):
        assert next(iter(loader)).images.is_contiguous()


@pytest.mark.parametrize("settings", [
    (), ("DATA.CACHE_GB", "0"), ("DATA.CACHE_GB", "0", "DATA.WORKERS", "2")], ids=" ".join)
def test_a_file_that_breaks_later_is_one_clear_error(tmp_path, tiny, settings):
    for name in "ab":
        (tmp_path / "x" / name).mkdir(parents=True)
        for number in range(20):
            Image.radial_gradient("L").save(tmp_path / "x" / name / f"{number}.png")
    config = load_config(tiny, ["DATA.DATASET", "{NAME: ImageFolder, root: x}", *settings])
    data = build_data(config)
    made = build_loaders(config, data, CPU)
    victim = data.train.images.paths[data.train.index[5]]
    with open(victim, "w") as file:
        file.write("broken")
    with pytest.raises(DataError) as caught:
        epoch_of(made.train)
    assert str(caught.value).startswith(f"{victim.removeprefix('./')} cannot be read as an image")


def test_one_normalize_holds_for_both_and_two_must_agree(tiny):
    own = "{NAME: Normalize, mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}"
    made = loaders(tiny, "DATA.TRAIN_TRANSFORMS", f"[{own}]")
    assert made.train.mean == made.test.mean == (0.5,) * 3 and made.std == (0.2,) * 3
    with pytest.raises(ConfigError, match="normalised differently"):
        loaders(tiny, "DATA.TRAIN_TRANSFORMS", f"[{own}]", "DATA.TEST_TRANSFORMS",
                "[{NAME: Normalize}]")


def test_grey_images_can_become_rgb(tiny):
    grey = "{NAME: Digits, channels: 1}"
    assert loaders(tiny, "DATA.DATASET", grey).image_shape == (1, 32, 32)
    made = loaders(tiny, "DATA.DATASET", grey, "DATA.TRAIN_TRANSFORMS", "[{NAME: ToRGB}]",
                   "DATA.TEST_TRANSFORMS", "[{NAME: ToRGB}]")
    assert made.image_shape == (3, 32, 32) and len(made.mean) == 3
    with pytest.raises(ConfigError, match="training images have 3 channels, test images 1"):
        loaders(tiny, "DATA.DATASET", grey, "DATA.TRAIN_TRANSFORMS", "[{NAME: ToRGB}]")


FLIP, BLUR = "[{NAME: HorizontalFlip}]", "[{NAME: Blur}, {NAME: HorizontalFlip}]"


@pytest.mark.parametrize("overrides, expected", [
    ((), "batched; 150 images, 0.5 MB, lie on the device"),
    (("DATA.TRAIN_TRANSFORMS", BLUR), "image by image in this process (no batched form of Blur)"),
    (("DATA.TRAIN_TRANSFORMS", BLUR, "DATA.WORKERS", "2"),
     "image by image in 2 worker processes (no batched form of Blur)"),
    (("DATA.PIPELINE", "albumentations"), "image by image in this process"),
    (("DATA.TRAIN_TRANSFORMS", "[{NAME: Resize, height: 40, width: 40}]", "DATA.CACHE_GB", "0"),
     "image by image in this process (0.7 MB of images are more than DATA.CACHE_GB 0 leaves); "
     "prepared each time")])
def test_how_batches_are_made_is_chosen_and_said(tiny, overrides, expected):
    assert loaders(tiny, *overrides).input == expected


def test_batched_is_refused_where_it_is_not_possible(tiny):
    with pytest.raises(ConfigError, match="batched is not possible: no batched form of Blur") as caught:
        loaders(tiny, "DATA.PIPELINE", "batched", "DATA.TRAIN_TRANSFORMS", BLUR)
    assert "command line DATA.PIPELINE" in str(caught.value)
    with pytest.raises(ConfigError, match="no batched form of Blur"):  # nor for test images
        loaders(tiny, "DATA.PIPELINE", "batched", "DATA.TEST_TRANSFORMS", BLUR)


def test_a_transform_without_a_batched_form_is_named_as_in_the_config(tiny):

    @TRANSFORMS.register()
    class Own:
        def __call__(self, image):
            return image

    TRANSFORMS.register("Darker")(lambda: Darker)

    def Darker(image):
        return image // 2

    for name in ("RandAugment", "TrivialAugmentWide", "Own", "Darker", "VerticalFlip"):
        made = loaders(tiny, "DATA.TRAIN_TRANSFORMS", f"[{{NAME: {name}}}]")
        assert made.input == f"image by image in this process (no batched form of {name})"


def test_an_own_transform_may_have_a_batched_form(tiny):

    class Paint:
        def draw(self, random, count, size):
            return (random.integers(0, 100, count),)

        def apply(self, images, value):
            return torch.zeros_like(images) + value.byte()[:, None, None, None]

    @TRANSFORMS.register()
    class Painted:
        batched = Paint()

        def __call__(self, image):
            return np.full_like(image, np.random.randint(100))

    made = loaders(tiny, "DATA.TRAIN_TRANSFORMS", "[{NAME: Painted}]")
    shown = made.train.denormalise(next(iter(made.train)).images)
    assert made.input.startswith("batched") and len(np.unique(shown)) > 20
    assert all((image == image[0, 0, 0]).all() for image in shown)


@pytest.mark.parametrize("drawn", [lambda count: np.arange(count), lambda count: (np.arange(count - 1),),
                                   lambda count: (3,), lambda count: [np.arange(count)]])
def test_what_a_batched_form_draws_is_told_where_it_is_nothing_to_go_by(tiny, drawn):
    class Odd:
        def draw(self, random, count, size):
            return drawn(count)

        def apply(self, images, *values):
            return images

    @TRANSFORMS.register()
    class Oddly:
        batched = Odd()

        def __call__(self, image):
            return image

    made = loaders(tiny, "DATA.TRAIN_TRANSFORMS", "[{NAME: Oddly}]")
    with pytest.raises(ConfigError, match="draw of Oddly returns no tuple of arrays with a value for each of 1"):
        next(iter(made.train))


def test_constants_of_the_data_set_that_do_not_fit_are_placed(tiny, tmp_path):
    paint(tmp_path / "x", "train", 2, np.random.default_rng(0))
    config = load_config(tiny, {"DATA.LIMIT": 0, "DATA.DATASET": {
        "NAME": "ImageFolder", "root": str(tmp_path / "x" / "train"), "std": [0.2, 0, 0.2]},
        "DATA.TRAIN_TRANSFORMS": []})
    with pytest.raises(ConfigError, match="Python DATA.DATASET.std: std must be above 0"):
        build_loaders(config, build_data(config), torch.device("cpu"))


@BACKENDS
@pytest.mark.parametrize("nodes, expected", [
    ("[{NAME: CutOut, size: [8, 33]}]",
     r"TRAIN_TRANSFORMS\.0\.NAME: CutOut fails on an image of 32×32×3: its window of 8×33 pixels is larger"),
    ("[{NAME: HorizontalFlip}, {NAME: CutOut, size: 40, p: 0.1}]",
     r"TRAIN_TRANSFORMS\.1\.NAME: CutOut fails .*40×40 pixels is larger"),
    ("[{NAME: RandomCrop, size: 40, padding: 3}]",
     r"TRAIN_TRANSFORMS\.0\.NAME: RandomCrop fails on an image of 32×32×3: Crop size .*\(40, 40\) vs \(38, 38\)"),
    ("[{NAME: RandomCrop, size: 24}, {NAME: CutOut, size: 28}]",
     r"TRAIN_TRANSFORMS\.1\.NAME: CutOut fails on an image of 24×24×3: .*28×28 pixels")])
def test_a_window_larger_than_the_image_is_refused_however_batches_are_made(tiny, backend, nodes, expected):
    with pytest.raises(ConfigError, match=expected):
        loaders(tiny, "DATA.TRAIN_TRANSFORMS", nodes, "DATA.PIPELINE", backend)


def test_a_window_of_the_whole_image_is_fine(tiny):
    loader = loaders(tiny, "DATA.TRAIN_TRANSFORMS", "[{NAME: CutOut, size: 32, fill: 7}]").train
    assert (loader.denormalise(next(iter(loader)).images) == 7).all()


def shifted(image):
    """Draw from NumPy's and Python's global random numbers, as transforms of one's own do."""
    return np.clip(image.astype(int) + np.random.randint(50) + random.randrange(50), 0, 255).astype(np.uint8)


def test_in_workers_global_random_numbers_depend_on_the_batch_alone(tiny):
    TRANSFORMS.register("shifted")(lambda: shifted)
    config = load_config(tiny, {"DATA.PIPELINE": "albumentations", "DATA.WORKERS": 2,
                                "DATA.TRAIN_TRANSFORMS": [{"NAME": "shifted"}]})
    whole = [batch.images for batch in Experiment(config).loaders.train]
    loaders = Experiment(config).loaders
    loaders.train.set_epoch(0, 2)
    rest = [batch.images for batch in loaders.train]
    loaders.close()
    assert len(rest) == 3 and all(map(torch.equal, whole[2:], rest))


def test_images_that_are_there_twice_are_augmented_each_on_its_own(tiny, monkeypatch):
    config = load_config(tiny, {"DATA.PIPELINE": "albumentations", "DATA.LIMIT": 20})
    experiment = Experiment(config)
    data = experiment.data
    experiment.data = data.with_splits(train=data.train.take(np.repeat(np.arange(20), 2)))
    loader = experiment.loaders.train
    first = next(iter(loader))
    assert torch.equal(loader.first_batch().images, first.images)
    assert torch.equal(loader.first_batch(count=7).images, first.images[:7])
