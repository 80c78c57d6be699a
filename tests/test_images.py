import numpy as np
import pytest
from PIL import Image

from cvkit.data.images import (
    ImageData,
    ImageFiles,
    ImageSet,
    balanced_subset,
    measure,
    scan_files,
    statistics,
    stratified_split,
)
from cvkit.errors import DataError

LABELS = np.repeat([0, 1, 2], [100, 50, 10])


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return str(path)


def test_files_are_read_as_rgb_or_grey(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    paths = [save(tmp_path / "c.png", colour), save(tmp_path / "g.png", colour[..., 0])]
    rgb, grey = ImageFiles(paths, 3), ImageFiles(paths, 1)
    assert np.array_equal(rgb[0], colour)
    assert np.array_equal(rgb[1], np.repeat(colour[..., :1], 3, axis=2))
    assert grey[0].shape == (5, 7, 1) and np.array_equal(grey[1], colour[..., :1])


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "CMYK", "1"])
def test_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / f"x.{'jpg' if mode == 'CMYK' else 'png'}"
    Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode).save(path)
    assert ImageFiles([str(path)], 3)[0].tolist() == np.full((4, 4, 3), 255).tolist()


def test_the_rotation_a_phone_notes_is_applied(tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it upright
    path = save(tmp_path / "x.png", pixels, exif=exif)
    assert ImageFiles([path])[0][..., 0].tolist() == [[0, 255], [0, 0], [0, 0]]


@pytest.mark.parametrize("content, expected", [
    (b"no image", "its content is no image"), (b"", "its content is no image"), (None, "truncated")])
def test_unreadable_files_are_named(tmp_path, content, expected):
    path = tmp_path / "x.jpg"
    if content is None:
        save(path, np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        content = path.read_bytes()[:800]
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        ImageFiles([str(path)])[0]
    assert str(path) in str(caught.value) and expected in str(caught.value)


@pytest.mark.parametrize("error", [TypeError("'IFDRational' object"), MemoryError(), KeyError(7)])
def test_whatever_a_reader_of_images_stumbles_over_names_the_file(tmp_path, monkeypatch, error):
    def stumble(path, formats):
        raise error

    monkeypatch.setattr(Image, "open", stumble)
    with pytest.raises(DataError, match=rf"x\.tif cannot be read as an image: \S*{type(error).__name__}|IFD|7"):
        ImageFiles([str(tmp_path / "x.tif")])[0]


def test_sixteen_bit_images_are_refused(tmp_path):
    path = save(tmp_path / "x.png", np.full((4, 4), 1000, np.uint16))
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        ImageFiles([path])[0]


def test_taking_keeps_labels_index_and_pixels():
    pixels = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2, 1)
    part = ImageSet.of(pixels, [0, 1, 2, 0, 1, 2]).take(np.array([1, 3, 5])).take(np.array([2, 0]))
    assert part.index.tolist() == [5, 1] and part.labels.tolist() == [2, 1] and len(part) == 2
    assert np.array_equal(part.image(0), pixels[5])
    assert part.images is pixels  # shared


def test_a_stratified_split_takes_its_part_of_every_class_and_depends_on_the_seed():
    rest, held_out = stratified_split(LABELS, 0.3, seed=1)
    assert np.bincount(LABELS[held_out]).tolist() == [30, 15, 3]
    assert sorted([*rest, *held_out]) == list(range(160))
    again = stratified_split(LABELS, 0.3, seed=1)
    assert np.array_equal(again[1], held_out)
    assert not np.array_equal(stratified_split(LABELS, 0.3, seed=2)[1], held_out)


@pytest.mark.parametrize("limit, counts", [
    (3, [1, 1, 1]), (4, [2, 1, 1]), (30, [10, 10, 10]), (60, [25, 25, 10]), (500, [100, 50, 10])])
def test_a_balanced_subset_has_as_many_of_each_class_as_there_are(limit, counts):
    chosen = balanced_subset(LABELS, limit, seed=0)
    assert np.bincount(LABELS[chosen]).tolist() == counts
    assert len(set(chosen)) == len(chosen) and list(chosen) == sorted(chosen)


def test_a_subset_smaller_than_the_classes_is_refused():
    with pytest.raises(DataError, match="less than one image of each of the 3 classes"):
        balanced_subset(LABELS, 2, seed=0)


def test_statistics_are_over_all_pixels():
    images = np.random.default_rng(0).integers(0, 256, (2000, 4, 5, 3), dtype=np.uint8)
    mean, std = statistics(images)
    assert np.allclose(mean, images.mean((0, 1, 2)) / 255, atol=1e-12)
    assert np.allclose(std, images.std((0, 1, 2)) / 255, atol=1e-12)


def test_a_scan_finds_sizes_and_statistics_and_is_cached(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 256, (4, 4 + number % 2, 3), dtype=np.uint8) for number in range(9)]
    files = ImageFiles([save(tmp_path / f"{number}.png", array)
                        for number, array in enumerate(arrays)])
    facts = scan_files(files, "Reading")
    pixels = np.concatenate([array.reshape(-1, 3) for array in arrays]) / 255
    assert np.allclose(facts["mean"], pixels.mean(0)) and np.allclose(facts["std"], pixels.std(0))
    assert facts["sizes"] == {"4x4": 5, "4x5": 4}

    def refuse(self, position):
        raise AssertionError("read again")

    monkeypatch.setattr(ImageFiles, "__getitem__", refuse)
    again = scan_files(files, "Reading")
    assert again["sizes"] == facts["sizes"] and np.allclose(again["mean"], facts["mean"], rtol=0)


def test_a_changed_file_is_scanned_again(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    assert scan_files(ImageFiles([path]), "Reading")["mean"] == (0.0, 0.0, 0.0)
    save(tmp_path / "a.png", np.full((3, 2, 3), 255, np.uint8))
    assert scan_files(ImageFiles([path]), "Reading")["mean"] == (1.0, 1.0, 1.0)


def refuse(self, position):
    raise AssertionError("read again")


def some_files(folder, count=9):
    random = np.random.default_rng(0)
    return ImageFiles([save(folder / f"{number}.png", random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
                       for number in range(count)])


def test_a_scan_is_kept_for_any_part_of_the_files_and_from_any_folder(tmp_path, monkeypatch):
    files = some_files(tmp_path)
    part = files.take(np.array([7, 2]))
    pixels = np.stack([part[0], part[1]]) / 255
    scan_files(files, "Reading")
    monkeypatch.setattr(ImageFiles, "__getitem__", refuse)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    part = ImageFiles(["../7.png", "../2.png"], skip_unreadable=True)
    assert np.allclose(scan_files(part, "Reading")["mean"], pixels.mean((0, 1, 2)))


def test_what_was_scanned_before_a_stop_or_an_unreadable_file_is_not_read_again(tmp_path, monkeypatch):
    files, read, real = some_files(tmp_path), [], ImageFiles.__getitem__
    (tmp_path / "8.png").write_text("no image")

    def stopped(self, position):
        if position == 6:
            raise KeyboardInterrupt
        return real(self, position)

    def counted(self, position):
        read.append(position)
        return real(self, position)

    monkeypatch.setattr(ImageFiles, "__getitem__", stopped)
    with pytest.raises(KeyboardInterrupt):
        scan_files(files, "Reading")
    monkeypatch.setattr(ImageFiles, "__getitem__", counted)
    for expected in ([6, 7, 8], [8]):
        read.clear()
        with pytest.raises(DataError, match="8.png cannot be read as an image"):
            scan_files(files, "Reading")
        assert sorted(read) == expected


def test_a_word_comes_before_many_files_are_read_and_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    """There is no terminal here, which has a bar instead."""
    monkeypatch.setattr("cvkit.data.images._MANY_FILES", 9)
    monkeypatch.setattr("cvkit.data.images._FIRST_LINE", 0)
    files = some_files(tmp_path)
    monkeypatch.setattr(ImageFiles, "__getitem__", lambda self, position, real=ImageFiles.__getitem__: (
        print("decoded"), real(self, position))[1])
    scan_files(files, "Reading train images")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "reading    9 image files for their sizes, mean and deviation, once"
    assert "Reading train images: 4 of 9" in lines
    scan_files(files, "Reading train images")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("value", [1, 77, 254])
def test_images_of_one_colour_have_no_deviation(tmp_path, value):
    images = np.full((3, 7, 5, 3), value, np.uint8)
    files = ImageFiles([save(tmp_path / f"{number}.png", image) for number, image in enumerate(images)])
    for facts in (statistics(images), (scan_files(files, "Reading")["mean"], scan_files(files, "Reading")["std"])):
        assert facts == ((value / 255,) * 3, (0.0,) * 3)


@pytest.mark.parametrize("as_files", [True, False])
def test_a_split_is_measured_by_its_own_images(tmp_path, as_files):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    images = pixels
    if as_files:
        paths = [str(tmp_path / f"{number}.png") for number in range(6)]
        for path, image in zip(paths, pixels, strict=True):
            Image.fromarray(image).save(path)
        images = ImageFiles(paths)
    whole = ImageSet.of(images, np.zeros(6))
    assert whole.fingerprint == whole.take(np.arange(6)[::-1]).fingerprint
    assert whole.fingerprint != whole.take(np.array([4, 1])).fingerprint
    for places in (np.arange(6), np.array([4, 1])):
        facts = measure(ImageSet.of(images, np.zeros(6)).take(places), "Measure")
        part = pixels[places] / 255
        assert np.allclose(facts["mean"], part.mean((0, 1, 2)))
        assert np.allclose(facts["std"], part.std((0, 1, 2)))
        assert facts["sizes"] == {"4x5": len(places)}


def test_what_a_data_set_declares_becomes_plain_values():
    """Checkpoints hold what it declares, and load nothing but plain values."""
    split = ImageSet.of(np.zeros((2, 4, 4, 1), np.uint8), [0, 1])
    data = ImageData([np.str_("a"), "b"], split, split, 1, [np.int64(4), 4], np.array([0.5]), [np.float32(0.25)])
    assert data.classes == ("a", "b") and data.image_size == (4, 4)
    assert data.mean == (0.5,) and data.std == (0.25,)
    for value in (*data.classes, *data.image_size, *data.mean, *data.std):
        assert type(value) in (str, int, float)
