import cv2
import numpy as np
import pytest
from made_up import changed, photos
from PIL import Image

from cvkit.data import ImageData, ImageFiles, ImageSet, duplicates
from cvkit.data.near_duplicates import Pair, near_duplicates


def test_twenty_planted_near_duplicates_are_found_and_no_other_pair():
    train, test = photos(600, 0), photos(200, 1)
    places = np.random.default_rng(2).permutation(600)[:20]
    test[::10] = changed(train[places])
    labels = np.arange(800) % 10
    found = near_duplicates({"train": ImageSet.of(train, labels[:600]), "test": ImageSet.of(test, labels[600:])})
    assert {pair.places for pair in found} == {
        (("train", int(place)), ("test", 10 * number)) for number, place in enumerate(places)}
    assert not any(pair.is_equal for pair in found)
    assert all(0.9 < pair.similarity <= 1 for pair in found)
    similarities = [pair.similarity for pair in found]
    assert similarities == sorted(similarities, reverse=True)


def test_equal_images_are_paired_with_the_first_of_them():
    train = photos(30, 0)
    train[[7, 20]] = train[3]
    found = near_duplicates({"train": ImageSet.of(train, np.zeros(30, int))})
    assert found == [Pair("train", 3, "train", 7, 1.0, True), Pair("train", 3, "train", 20, 1.0, True)]


def test_the_similarity_is_the_correlation_of_thumbnails_and_does_not_depend_on_light():
    train, darker = photos(40, 0), photos(1, 5)
    train[9] = darker[0]
    darker = (darker * 0.7 + 20).astype(np.uint8)
    pair, = near_duplicates({"train": ImageSet.of(train, [0] * 40), "test": ImageSet.of(darker, [0])})
    small = [cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA).ravel() for image in (train[9], darker[0])]
    assert pair.places == (("train", 9), ("test", 0))
    assert pair.similarity == pytest.approx(np.corrcoef(*small)[0, 1], abs=2e-3) and pair.similarity > 0.99


def test_handwritten_digits_that_are_all_alike_are_not_called_duplicates():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)[..., None]
    assert len(near_duplicates({"train": ImageSet.of(images, digits.target)})) <= 2
    images[100] = images[50]
    assert near_duplicates({"train": ImageSet.of(images, digits.target)})[0] == Pair(
        "train", 50, "train", 100, 1.0, True)


def test_pictures_of_one_grey_are_no_twins_unless_they_are_equal():
    images = np.full((300, 8, 8, 1), np.arange(300)[:, None, None, None] % 256, np.uint8)
    assert {pair.is_equal for pair in near_duplicates({"train": ImageSet.of(images, [0] * 300)})} == {True}


def test_files_of_several_sizes_and_grey_ones_are_compared(tmp_path):
    images = photos(12, 0, 64)
    paths = []
    for number, image in enumerate(images):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(image).save(paths[-1])
    Image.fromarray(images[4]).resize((50, 70)).convert("L").save(tmp_path / "small.jpg", quality=90)
    for channels in (1, 3):
        train = ImageSet.of(ImageFiles(paths, channels), [0] * 12)
        test = ImageSet.of(ImageFiles([str(tmp_path / "small.jpg")], channels), [0])
        found = near_duplicates({"train": train, "test": test})
        # A colour picture is not near one without colours.
        assert [pair.places for pair in found] == [(("train", 4), ("test", 0))] * (channels == 1)


@pytest.mark.slow
def test_real_pictures_that_are_found_look_alike(cifar_images):
    from cvkit.data.image_folder import ImageFolder

    data = ImageFolder(str(cifar_images))
    for pair in near_duplicates(data.splits):
        one, other = (data.splits[name].image(place).astype(float) for name, place in pair.places)
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.8


def test_two_birds_before_one_sky_are_no_twins():
    """Coarsely they are alike; what is fine in them is not."""
    down, across = np.mgrid[:32, :32]
    random = np.random.default_rng(0)
    birds = []
    for _ in range(12):
        sky = np.stack([100 + 2 * down, 140 + 2 * down, 180 + 2 * down], 2).astype(float)
        spots = random.uniform(12, 20, (4, 2))
        for row, column in spots:
            sky[np.hypot(down - row, across - column) < 1.5] = 40
        birds.append((sky + random.normal(0, 1, sky.shape)).clip(0, 255).astype(np.uint8))
    images = np.concatenate([np.stack(birds), photos(30, 5)])
    assert near_duplicates({"train": ImageSet.of(images, [0] * 42)}) == []


def test_of_a_film_each_frame_is_told_with_some_others_not_with_all():
    film, others = np.repeat(photos(1, 0), 120, axis=0), photos(1500, 1)
    film = (film.astype(int) + np.random.default_rng(1).integers(-4, 5, film.shape)).clip(0, 255).astype(np.uint8)
    images = np.concatenate([film, others])
    found = near_duplicates({"train": ImageSet.of(images, [0] * len(images))})
    told = [place for pair in found for _, place in pair.places]
    assert set(told) == set(range(120)) and 120 * 10 <= len(found) <= 120 * 20


@pytest.mark.parametrize("channels", [2, 5])
def test_images_may_have_any_number_of_channels(channels):
    # Of 30 pixels no whole number falls on one of the small image.
    images = np.concatenate([photos(30, 0)] * 2, axis=3)[:, :30, :27, :channels]
    images = np.concatenate([images, images[:1]])
    assert near_duplicates({"train": ImageSet.of(images, [0] * 31)}) == [Pair("train", 0, "train", 30, 1.0, True)]


@pytest.mark.parametrize("size", [None, (40, 50)])
def test_few_files_are_not_decoded_where_they_have_many_pixels(tmp_path, monkeypatch, size):
    for n in range(6):
        Image.fromarray(np.full((40, 50, 3), 40 * (n % 3), np.uint8)).save(tmp_path / f"{n}.png", compress_level=n)
    train, test = (ImageSet.of(ImageFiles([str(tmp_path / f"{n}.png") for n in part]), [0, 1, 0])
                   for part in (range(3), range(3, 6)))
    data = ImageData(("a", "b"), train, test, 3, size, (0.5,) * 3, (0.2,) * 3)
    assert [twin.words.split("/")[-1] for twin in duplicates.duplicates(data)["test"]] == ["0.png", "1.png", "2.png"]
    monkeypatch.setattr(duplicates, "_PIXELS_DECODED", 6 * 40 * 50 - 1, raising=False)
    monkeypatch.setattr(ImageFiles, "__getitem__", lambda files, position: pytest.fail("it was decoded"))
    # Their bytes differ.
    assert duplicates.duplicates(data) == {}
