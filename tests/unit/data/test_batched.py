"""The batched transforms against albumentations: the same outcomes, equally likely."""

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from albumentations.augmentations.dropout.functional import cutout
from conftest import TINY

from cvkit.config import load_config
from cvkit.data import ImageData, ImageSet, build_data, build_loaders
from cvkit.data.pipeline import Pipeline, build_pipeline
from cvkit.errors import ConfigError
from cvkit.registry import TRANSFORMS

MEAN = (0.4914, 0.4822, 0.4465)
NODES = {
    "RandomCrop": {"size": [20, 24], "padding": 3, "fill": "mean"},
    "HorizontalFlip": {},
    "CutOut": {"size": [9, 12], "p": 0.8},
    "Rotate": {"limit": 25, "fill": [10, 20, 30], "p": 0.8},
    "Translate": {"limit": 3},
    "Shift": {"down": 2, "right": -1},
}
BY_IMAGE = ["AlternatingFlip"]
# No two pixels are alike, so that an outcome tells where each came from.
IMAGE = np.random.default_rng(0).permutation(32 * 32 * 3).reshape(32, 32, 3) % 251
IMAGE = IMAGE.astype(np.uint8)


def data_of():
    split = ImageSet.of(np.stack([IMAGE] * 4), [0, 1, 0, 1])
    return ImageData(("a", "b"), split, split, 3, (32, 32), MEAN, (0.25,) * 3)


def build(name, **arguments):
    return TRANSFORMS.build({"NAME": name, **NODES[name], **arguments}, data_mean=MEAN)


def batch_of(transform, images, seed=0):
    """Return images (N, H, W, C) after a transform's batched form, and what was drawn."""
    drawn = transform.batched.draw(np.random.default_rng(seed), len(images), images.shape[1:3])
    made = transform.batched.apply(torch.from_numpy(images), *map(torch.from_numpy, drawn))
    return made.numpy(), drawn


def test_these_have_a_batched_form():
    found = []
    for name in TRANSFORMS.own:
        node = {"NAME": name, **NODES.get(name, {})}
        built = TRANSFORMS.build(node, data_mean=MEAN, num_classes=10)
        found += [name] * hasattr(built, "batched")
    assert found == sorted([*NODES, *BY_IMAGE])


# What albumentations makes of an image with the very parameters that were drawn.


def cropped(image, top, left):
    fill = tuple(round(255 * value) for value in MEAN)
    padded = A.Pad(padding=3, fill=fill, p=1.0)(image=image)["image"]
    return A.Crop(x_min=left, y_min=top, x_max=left + 24, y_max=top + 20, p=1.0)(image=padded)["image"]


def flipped(image, is_mirrored):
    return A.HorizontalFlip(p=float(is_mirrored))(image=image)["image"]


def cut(image, top, left):
    hole = np.array([[left, top, left + 12, top + 9]]).clip(0, 32)
    return cutout(image.copy(), hole, np.array([125, 123, 114]), np.random.default_rng())


def turned(image, degrees):
    limit = (float(degrees), float(degrees))
    return A.Rotate(limit=limit, fill=(10, 20, 30), p=1.0)(image=image)["image"]


def moved(image, top, left, by=3):
    padded = cv2.copyMakeBorder(image, by, by, by, by, cv2.BORDER_REFLECT_101)
    return padded[top:top + 32, left:left + 32]


def shifted(image):
    return moved(image, 0, 3, by=2)


@pytest.mark.parametrize("name, arguments, reference", [
    ("Translate", {}, moved), ("Shift", {}, shifted),
    ("RandomCrop", {}, cropped), ("HorizontalFlip", {}, flipped), ("CutOut", {}, cut),
    ("CutOut", {"inside": False}, cut), ("Rotate", {}, turned)])
def test_pixels_equal_those_of_albumentations_for_the_same_parameters(name, arguments, reference):
    images = np.random.default_rng(1).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    made, drawn = batch_of(build(name, **arguments), images)
    values = zip(*drawn) if drawn else [()] * 200
    expected = np.stack([reference(image, *each) for image, each in zip(images, values, strict=True)])
    if name == "Rotate":
        difference = np.abs(made.astype(int) - expected)
        if int(cv2.__version__.split(".")[0]) >= 5:  # rounded differently in some of ten thousand
            assert difference.max() <= 1 and (difference > 0).mean() < 5e-4
        else:  # OpenCV moved places to a grid of 1/32 pixel: half of it twice, times 255 levels
            assert difference.max() <= 255 / 32 and difference.mean() < 1
    else:
        assert np.array_equal(made, expected)


def outcomes(name, count, **arguments):
    """Return `count` outcomes of one image, batched and image by image."""
    transform = build(name, **arguments)
    batched, _ = batch_of(transform, np.stack([IMAGE] * count))
    pipeline = Pipeline([transform])
    pipeline.seed(1)
    return batched, np.stack([pipeline(IMAGE) for _ in range(count)])


# Where a crop's inside, which is never padding, lies in the image.
PLACES = {IMAGE[5 + top:9 + top, 7 + left:11 + left].tobytes(): (top, left)
          for top in range(19) for left in range(15)}
PLACES_WITHIN = {IMAGE[top:top + 4, left:left + 4].tobytes(): (top, left)
                 for top in range(29) for left in range(29)}


def parameters_of(image, name):
    """Return what must have been drawn for an outcome, two numbers."""
    if name == "RandomCrop":  # the window's place
        return PLACES[image[8:12, 10:14].tobytes()]
    if name in ("Translate", "Shift"):
        return PLACES_WITHIN[image[6:10, 6:10].tobytes()]
    if name == "HorizontalFlip":
        return int(np.array_equal(image, IMAGE[:, ::-1])), 0
    if name == "CutOut":  # the hole's place; 32 for none
        changed = (image != IMAGE).any(2)
        rows, columns = changed.any(1), changed.any(0)
        return (int(rows.argmax()), int(columns.argmax())) if changed.any() else (32, 32)
    return round(float(image[..., 0].mean()) * 20), int(np.array_equal(image, IMAGE))


@pytest.mark.parametrize("name, arguments", [*((name, {}) for name in NODES),
                                             ("CutOut", {"inside": False})])
def test_outcomes_and_their_frequencies_equal_those_of_albumentations(name, arguments):
    count = 3000
    found = [np.array([parameters_of(image, name) for image in images])
             for images in outcomes(name, count, **arguments)]
    for axis in (0, 1):
        ours, theirs = found[0][:, axis], found[1][:, axis]
        values = np.union1d(ours, theirs)
        if name != "Rotate":  # its angles are never the same twice
            assert set(ours) == set(theirs)
        gap = np.abs([(ours <= value).mean() - (theirs <= value).mean() for value in values])
        assert gap.max() < 1.63 * np.sqrt(2 / count)  # Kolmogorov–Smirnov at 1 %


def test_every_shift_of_the_padded_image_is_as_likely():
    images, _ = batch_of(build("RandomCrop", size=32, padding=4, fill=0), np.stack([IMAGE] * 8100))
    padded = np.pad(IMAGE, ((4, 4), (4, 4), (0, 0)))
    windows = {padded[y:y + 32, x:x + 32].tobytes(): (y, x) for y in range(9) for x in range(9)}
    counts = np.zeros((9, 9))
    for image in images:
        counts[windows[image.tobytes()]] += 1
    assert ((counts - 100) ** 2 / 100).sum() < 112  # chi-square of 80 degrees of freedom at 1 %


def test_transforms_of_one_list_are_drawn_independently():
    pipeline = Pipeline([build("HorizontalFlip"), build("CutOut", p=0.5)])
    flips, holes = pipeline.draw(0, 0, np.arange(4000), IMAGE.shape)
    table = np.histogram2d(flips[0].numpy(), holes[0].numpy() < 32, bins=2)[0]
    assert (np.abs(table - 1000) < 100).all()


def test_each_transform_is_drawn_for_the_size_that_the_one_before_it_leaves():
    pipeline = Pipeline([build("RandomCrop", size=12, padding=0), build("CutOut", size=4, p=1.0)])
    drawn = pipeline.draw(0, 0, np.arange(2000), IMAGE.shape)
    assert [sorted({*values.tolist()})[-1] for group in drawn for values in group] == [20, 20, 8, 8]
    images = torch.from_numpy(np.stack([IMAGE] * 2000))
    assert pipeline.augment_batch(images, drawn).shape == (2000, 12, 12, 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NODES)
def test_images_that_are_not_square_and_grey_ones(name, channels):
    images = np.random.default_rng(2).integers(0, 256, (50, 40, 30, channels), dtype=np.uint8)
    transform = build(name, **({} if name == "HorizontalFlip" else {"fill": 9}))
    made, _ = batch_of(transform, images)
    assert made.shape == (50, *((20, 24) if name == "RandomCrop" else (40, 30)), channels)
    assert made.dtype == np.uint8 and np.array_equal(images, np.random.default_rng(2).integers(
        0, 256, images.shape, dtype=np.uint8))  # the data set's own are left as they were


def test_images_of_a_batch_differ_and_a_seed_repeats_them():
    for name in set(NODES) - {"Shift"}:
        first, again, other = (batch_of(build(name), np.stack([IMAGE] * 64), seed)[0] for seed in (0, 0, 1))
        assert np.array_equal(first, again) and not np.array_equal(first, other)
        assert len({image.tobytes() for image in first}) > (1 if name == "HorizontalFlip" else 30)


def test_a_crop_mirrors_the_sides_where_that_is_its_fill():
    images = np.random.default_rng(3).integers(0, 256, (64, 8, 6, 3), dtype=np.uint8)
    made, (top, left) = batch_of(build("RandomCrop", size=[8, 6], padding=4, fill="reflect"), images)
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    assert all(np.array_equal(image, whole[y:y + 8, x:x + 6])
               for image, whole, y, x in zip(made, padded, top, left, strict=True))
    pipeline = Pipeline([build("RandomCrop", size=[8, 6], padding=4, fill="reflect")])
    windows = {padded[0, y:y + 8, x:x + 6].tobytes() for y in range(9) for x in range(9)}
    assert len({pipeline(images[0]).tobytes() for _ in range(200)} & windows) > 60


@pytest.mark.parametrize("name", ["CutOut", "Rotate"])
def test_what_covers_pixels_cannot_mirror_them(name):
    with pytest.raises(ConfigError, match="fill is \"mean\" or within 0–255, not 'reflect'"):
        build(name, fill="reflect")


@pytest.mark.parametrize("node", [{"NAME": "Translate", "limit": 32}, {"NAME": "Shift", "right": -40}])
def test_no_more_than_the_image_is_mirrored(node):
    with pytest.raises(ConfigError, match="it cannot mirror .* pixels beyond each side"):
        build_pipeline([node], data_of())


# -- by image: nothing is drawn


def mirrored(epoch, index, seed=0):
    """Whether AlternatingFlip mirrors images of an epoch, batched and one by one."""
    pipeline = Pipeline([TRANSFORMS.build("AlternatingFlip")])
    index = np.asarray(index)
    images = torch.from_numpy(np.stack([IMAGE] * len(index)))
    batch = pipeline.augment_batch(images, pipeline.draw(seed, epoch, index, IMAGE.shape)).numpy()
    pipeline.seed(seed, epoch, 7)
    single = np.stack([pipeline.augment(IMAGE, each) for each in index])
    assert np.array_equal(batch, single)
    sides = np.array([np.array_equal(image, IMAGE[:, ::-1]) for image in batch])
    assert all(side or np.array_equal(image, IMAGE) for side, image in zip(sides, batch, strict=True))
    return sides


def test_flips_alternate_for_each_image_and_half_of_them_begin_with_one():
    first, *later = [mirrored(epoch, range(2000)) for epoch in range(4)]
    assert abs(first.mean() - 0.5) < 0.04  # 3.6 standard deviations
    for number, sides in enumerate(later, 1):
        assert np.array_equal(sides, first ^ (number % 2 == 1))
    # Neither neighbours nor every second image are flipped together; other seeds choose others.
    assert all(abs((first[step:] ^ first[:-step]).mean() - 0.5) < 0.05 for step in (1, 2, 3, 4, 8))
    assert abs((first ^ mirrored(0, range(2000), seed=1)).mean() - 0.5) < 0.05


def test_an_image_is_flipped_the_same_wherever_it_stands_in_the_epoch():
    order = np.random.default_rng(0).permutation(2000)
    assert np.array_equal(mirrored(3, order), mirrored(3, range(2000))[order])


def test_flips_within_another_transform_alternate_too():
    nodes = [{"NAME": "Sequential", "p": 1.0, "transforms": [{"NAME": "AlternatingFlip"}]}]
    pipeline, _ = build_pipeline(nodes, data_of(), is_training=True)
    for epoch in range(2):
        pipeline.seed(0, epoch, 0)
        sides = [np.array_equal(pipeline.augment(IMAGE, each), IMAGE[:, ::-1]) for each in range(50)]
        assert sides == mirrored(epoch, range(50)).tolist()


@pytest.mark.parametrize("backend", ["batched", "albumentations"])
def test_a_loader_flips_by_the_image_and_not_by_its_place(tmp_path, backend):
    (tmp_path / "flips.yaml").write_text(TINY)
    config = load_config(tmp_path / "flips.yaml", {
        "DATA.TRAIN_TRANSFORMS": [{"NAME": "AlternatingFlip"}], "DATA.PIPELINE": backend})
    data = build_data(config)
    loader = build_loaders(config, data, torch.device("cpu")).train
    known = {int(place): image for place, image in zip(data.train.index, map(data.train.image, range(len(data.train))))}
    for epoch in range(3):
        loader.set_epoch(epoch)
        index, sides = [], []
        for batch in loader:
            for place, image in zip(batch.index.tolist(), loader.denormalise(batch.images), strict=True):
                index.append(place)
                sides.append(not np.array_equal(image, known[place]))
        assert sides == mirrored(epoch, index, config.SEED).tolist()
