import numpy as np
import pytest
import torch
from PIL import Image

from cvkit.config import load_config
from cvkit.data import ImageFiles, ImageSet, build_data, build_loaders
from cvkit.data.cache import ImageCache
from cvkit.data.pipeline import Pipeline
from cvkit.errors import DataError
from cvkit.registry import TRANSFORMS

CPU = torch.device("cpu")
RESIZE = TRANSFORMS.build({"NAME": "Resize", "height": 12, "width": 10})
FLIP = TRANSFORMS.build({"NAME": "HorizontalFlip"})


@pytest.fixture
def files(tmp_path):
    """Twenty pictures in two classes, of one size."""
    return write(tmp_path, lambda number: (24, 20))


def write(tmp_path, size):
    random = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "x" / name).mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(0, 256, (*size(number), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "x" / name / f"{number}.png")
    paths = sorted(map(str, (tmp_path / "x").rglob("*.png")))
    return ImageSet.of(ImageFiles(paths), [0] * 10 + [1] * 10)


@pytest.fixture
def decoded(monkeypatch):
    """Count how often each file is decoded."""
    counts, read = {}, ImageFiles.__getitem__

    def counted(self, position):
        counts[self.paths[position]] = counts.get(self.paths[position], 0) + 1
        return read(self, position)

    monkeypatch.setattr(ImageFiles, "__getitem__", counted)
    return counts


def test_it_holds_what_the_fixed_transforms_make_of_each_image(files):
    for transforms in ([], [RESIZE, FLIP]):
        pipeline = Pipeline(transforms)
        cache = ImageCache(files, pipeline, True, 10**9)
        shape = (12, 10, 3) if transforms else (24, 20, 3)
        assert cache.shape == shape and cache.bytes == 20 * np.prod(shape)
        before = [cache.image(place) for place in range(20)]
        cache.fill()
        pixels, places = cache.stack(CPU)
        assert pixels.shape == (20, *shape) and places.tolist() == list(range(20))
        for place in range(20):
            expected = pipeline.prepare(files.image(place))
            for found in (before[place], cache.image(place), pixels[place].numpy()):
                assert np.array_equal(found, expected)


def test_only_leading_transforms_that_draw_nothing_are_applied_beforehand():
    build = TRANSFORMS.build
    sized = {"height": 8, "width": 8}
    assert len(Pipeline([RESIZE, FLIP]).fixed) == 1 and not Pipeline([FLIP, RESIZE]).fixed
    for node, is_fixed in (({"NAME": "CenterCrop", **sized}, True), ({"NAME": "ToRGB"}, True),
                           ({"NAME": "Resize", **sized, "p": 0.5}, False),
                           ({"NAME": "SmallestMaxSize", "max_size": 8}, True),
                           ({"NAME": "SmallestMaxSize", "max_size": [8, 9]}, False)):
        assert bool(Pipeline([build(node)]).fixed) == is_fixed, node


def test_a_data_set_in_memory_is_not_copied():
    pixels = np.zeros((6, 4, 4, 3), np.uint8)
    part = ImageSet.of(pixels, [0, 1, 2, 0, 1, 2]).take(np.array([5, 1, 3]))
    pixels[:] = np.arange(6)[:, None, None, None]
    cache = ImageCache(part, Pipeline([FLIP]), True, 0)  # what it has already costs nothing
    stack, places = cache.stack(CPU)
    assert stack.data_ptr() == pixels.ctypes.data and cache.fits and not cache.is_copy
    assert stack[places][:, 0, 0, 0].tolist() == [5, 1, 3]
    assert [cache.image(place)[0, 0, 0] for place in range(3)] == [5, 1, 3]


def loader_of(tiny, *overrides):
    config = load_config(tiny, ["DATA.DATASET", "{NAME: ImageFolder, root: x}", *overrides])
    return build_loaders(config, build_data(config), CPU)


def epochs(loader):
    made = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        made += [batch.images for batch in loader]
    return torch.cat(made)


@pytest.mark.parametrize("backend", ["albumentations", "auto"])
def test_files_are_decoded_once_where_they_fit_and_each_time_where_not(tiny, files, decoded, backend):
    transforms = ("DATA.TRAIN_TRANSFORMS", "[{NAME: Resize, height: 16, width: 16}, {NAME: HorizontalFlip}]")
    made = []
    for gigabytes, times in ((".inf", 1), ("0", 3)):
        loaders = loader_of(tiny, *transforms, "DATA.PIPELINE", backend, "DATA.CACHE_GB", gigabytes)
        decoded.clear()
        made.append(epochs(loaders.train))
        assert sorted(decoded.values()) == [times] * len(loaders.train.images)
    if backend == "albumentations":  # auto goes over to it where images do not fit
        assert torch.equal(*made)


def test_workers_share_what_was_decoded(tiny, files, decoded, start_method):
    made = []
    for workers in ("0", "2"):
        loader = loader_of(tiny, "DATA.TRAIN_TRANSFORMS", "[{NAME: HorizontalFlip}]", "DATA.WORKERS",
                           workers, "DATA.PIPELINE", "albumentations", "DATA.BATCH_SIZE", "4").train
        decoded.clear()
        made.append(epochs(loader))
        assert sorted(decoded.values()) == [1] * len(loader.images)  # all of them in this process
        loader.source.close()
    assert torch.equal(*made)


def test_mixed_sizes_are_kept_as_they_are(tmp_path, tiny, decoded):
    split = write(tmp_path, lambda number: (20 + number, 30 - number))
    cache = ImageCache(split, Pipeline([]), False, 10**9)
    exact = sum(split.image(place).nbytes for place in range(20))
    assert cache.shape is None and cache.bytes == pytest.approx(1.2 * exact, rel=0.05)
    cache.fill()
    decoded.clear()
    kept = [cache.image(place) for place in range(20)]
    assert not decoded
    assert all(np.array_equal(kept[place], split.image(place)) for place in range(20))
    crop = "[{NAME: RandomResizedCrop, size: [16, 16]}]"
    made = [epochs(loader_of(tiny, "DATA.TRAIN_TRANSFORMS", crop, "DATA.CACHE_GB", gigabytes,
                             "DATA.TEST_TRANSFORMS", "[{NAME: Resize, height: 16, width: 16}]").train)
            for gigabytes in ("1", "0")]
    assert torch.equal(*made)


def test_an_estimate_that_was_too_low_never_takes_more_than_allowed(tmp_path, decoded):
    split = write(tmp_path, lambda number: (20 + number, 30))
    cache = ImageCache(split, Pipeline([]), False, 10**9)
    cache.bytes //= 2
    cache.fill()
    decoded.clear()
    images = [cache.image(place) for place in range(20)]
    assert 0 < len(decoded) < 15  # the rest comes from its file
    assert all(np.array_equal(images[place], split.image(place)) for place in range(20))


def test_a_file_that_has_changed_its_size_is_named(files):
    cache = ImageCache(files, Pipeline([]), True, 10**9)
    Image.new("RGB", (1, 1)).save(files.name(7))  # which NumPy would spread over the whole image
    with pytest.raises(DataError, match=r"x/a/7.png is \(1, 1\) pixels now, not \(24, 20\)"):
        cache.fill()


def test_splits_share_one_budget(tiny, files, decoded):
    size = 16 * 20 * 24 * 3  # of the training images; the test images are 4
    limit = ("DATA.CACHE_GB", str((size + 100) / 1e9))
    loaders = loader_of(tiny, "DATA.TRAIN_TRANSFORMS", "[]", *limit)
    assert loaders.input.startswith("batched")
    decoded.clear()
    for _ in range(2):
        assert sum(len(batch.labels) for batch in loaders.test) == 4
    assert set(decoded.values()) == {2}


def test_building_loaders_decodes_next_to_nothing(tiny, files, decoded):
    """Or a look at a few images of a large folder would wait for all of them."""
    config = load_config(tiny, ["DATA.DATASET", "{NAME: ImageFolder, root: x}",
                                "DATA.TRAIN_TRANSFORMS", "[{NAME: HorizontalFlip}]"])
    data = build_data(config)
    decoded.clear()
    loaders = build_loaders(config, data, CPU)
    loaders.test.take([0])
    assert len(decoded) <= 3


def test_workers_that_are_not_forked_are_sent_no_copy(monkeypatch):
    pixels = np.zeros((500, 32, 32, 3), np.uint8)
    cache = ImageCache(ImageSet.of(pixels, [0, 1] * 250), Pipeline([FLIP]), True, 0)
    sent = cache.__getstate__()
    assert sent["_images"] is None and sent["_kept"].data_ptr() == pixels.ctypes.data
    assert not any(isinstance(value, np.ndarray) and value.nbytes > 4000 for value in sent.values())


def test_images_of_one_s_own_sequence_are_read_one_after_the_other():
    """It may read from a file, which several threads would move about in."""
    order = []

    class Tape:
        def __getitem__(self, place):
            order.append(place)
            return np.full((8, 8, 3), place, np.uint8)

    cache = ImageCache(ImageSet(Tape(), np.zeros(50, int), np.arange(50)), Pipeline([]), True, 10**6)
    order.clear()
    pixels, _ = cache.stack(CPU)
    assert order == list(range(50)) and pixels[:, 0, 0, 0].tolist() == order


def test_arrays_that_are_read_only_or_reversed_are_taken(recwarn):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    for images in (pixels, pixels[..., ::-1]):
        cache = ImageCache(ImageSet.of(images, [0, 1, 0, 1]), Pipeline([FLIP]), True, 0)
        assert np.array_equal(cache.stack(CPU)[0].numpy(), images)
    assert not recwarn.list
