import hashlib
import itertools
import json
import ntpath
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from cvkit.config import load_config
from cvkit.data import ImageData, ImageFiles, ImageSet
from cvkit.data.images import UnreadableError
from cvkit.data.scan import _mean_and_std, _sums, measure, scan_files, statistics
from cvkit.data.splits import balanced_subset, stratified_split
from cvkit.errors import ConfigError, DataError
from cvkit.runs.experiment import Experiment
from cvkit.system.files import cache_folder
from cvkit.system.log import screen

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


# Where the corner of an image that is not square lies once it is turned, and which side is which.
UPRIGHT = np.zeros((20, 30), np.uint8)
UPRIGHT[:10, :10], UPRIGHT[:10, 10:20] = 255, 128
AS_STORED = {1: UPRIGHT, 2: UPRIGHT[:, ::-1], 3: UPRIGHT[::-1, ::-1], 4: UPRIGHT[::-1], 5: UPRIGHT.T,
             6: UPRIGHT.T[::-1], 7: UPRIGHT.T[::-1, ::-1], 8: UPRIGHT.T[:, ::-1]}


def exif(orientation, tags=(), kind=3):
    """Return EXIF of an orientation and further (tag, type, count, value), in the order of tags."""
    tags = sorted([(0x0112, kind, 1, orientation), *tags])
    entries = b"".join(tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + count.to_bytes(4, "little")
                       + value.to_bytes(4, "little") for tag, kind, count, value in tags)
    return b"Exif\0\0II*\0\x08\0\0\0" + len(tags).to_bytes(2, "little") + entries + bytes(4)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_are_turned_upright(tmp_path, orientation, ending):
    options = {"quality": 100} if ending == "jpg" else {"lossless": True} if ending == "webp" else {}
    noted = Image.Exif()
    noted[0x0112] = orientation
    path = save(tmp_path / f"x.{ending}", np.ascontiguousarray(AS_STORED[orientation]), exif=noted, **options)
    files = ImageFiles([path])
    assert files[0].shape == (20, 30, 3)
    assert np.abs(files[0][..., 0].astype(int) - UPRIGHT).max() < 30  # a JPEG is not exact
    assert scan_files(files, "Reading")["sizes"] == {"20x30": 1}


@pytest.mark.parametrize("tags", [
    [(0x011A, 7, 4, 72)],  # XResolution as UNDEFINED
    [(0x010F, 5, 1, 0)],  # Make as RATIONAL, of what stands at byte 0
    [(0x010F, 5, 1, 0xFFFFFF)],  # or of what lies beyond the file
    [(0x8769, 4, 1, 0xFFFFFF), (0x9999, 99, 9, 9)]], ids=["XResolution", "Make", "beyond", "unknown"])
def test_odd_exif_tags_beside_the_orientation_do_not_matter(tmp_path, tags):
    path = save(tmp_path / "x.jpg", np.zeros((20, 30, 3), np.uint8), exif=exif(6, tags))
    assert ImageFiles([path])[0].shape == (30, 20, 3)
    assert scan_files(ImageFiles([path]), "Reading")["sizes"] == {"30x20": 1}


@pytest.mark.parametrize("data", [exif(0), exif(9), exif(65535), exif(6, kind=2), b"Exif\0\0no exif at all", b"Exif\0\0"],
                         ids=["0", "9", "65535", "a word", "no EXIF", "empty"])
def test_an_orientation_that_means_nothing_leaves_the_picture_as_it_lies(tmp_path, data):
    path = save(tmp_path / "x.jpg", np.zeros((20, 30, 3), np.uint8), exif=data)
    assert ImageFiles([path])[0].shape == (20, 30, 3)


def drawing(mode):
    """Return a black square on a transparent ground, half transparent in the middle, in that mode."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2:6, 2:6, 3] = 255
    image = Image.fromarray(pixels)
    if mode in ("RGBA", "LA"):
        return image.convert(mode), {}
    if mode == "P":  # its first colour is transparent, by a byte for each
        image = Image.fromarray(np.uint8(pixels[..., 3] > 0))
        image.putpalette([90, 90, 90, 0, 0, 0])
        return image, {"transparency": bytes([0, 255])}
    key = 90  # the colour key of RGB and L
    image = Image.fromarray(np.where(pixels[..., 3] > 0, 0, key).astype(np.uint8)).convert(mode)
    return image, {"transparency": (key,) * 3 if mode == "RGB" else key}


@pytest.mark.parametrize("background, ground", [(None, [255] * 3), (0, [0] * 3), ([10, 200, 30], [10, 200, 30])])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_images_are_laid_on_the_ground(tmp_path, mode, background, ground):
    image, options = drawing(mode)
    image.save(tmp_path / "x.png", **options)
    files = ImageFiles([str(tmp_path / "x.png")], **({} if background is None else {"background": background}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow has one of its own
        pixels = files.take(np.array([0]))[0]
    assert pixels[0, 0].tolist() == pixels[7, 5].tolist() == ground
    assert (pixels[2:6, 2:6] == 0).all() and (pixels[:2] == ground).all()
    facts = scan_files(files, "Reading")
    assert facts["transparent"] == 1
    assert np.allclose(facts["mean"], np.array(ground) / 255 * 48 / 64)


def test_transparent_images_read_as_grey_are_laid_on_a_grey(tmp_path):
    drawing("RGBA")[0].save(tmp_path / "x.png")
    pixels = ImageFiles([str(tmp_path / "x.png")], channels=1, background=77)[0]
    assert pixels.shape == (8, 8, 1) and pixels[0, 0, 0] == 77 and pixels[3, 3, 0] == 0


def test_half_transparent_pixels_are_mixed_and_gifs_and_webps_are_composed_too(tmp_path):
    half = Image.new("RGBA", (4, 4), (100, 0, 200, 128))
    half.save(tmp_path / "x.png")
    half.save(tmp_path / "x.webp", lossless=True)
    image, _ = drawing("P")
    image.save(tmp_path / "x.gif", transparency=0)
    files = ImageFiles([str(tmp_path / f"x.{ending}") for ending in ("png", "webp", "gif")])
    for number in (0, 1):
        assert np.abs(files[number][0, 0].astype(int) - [177, 127, 227]).max() <= 1
    assert files[2][0, 0].tolist() == [255] * 3 and files[2][3, 3].tolist() == [0] * 3
    assert files.transparent == {0, 1, 2}


def test_an_opaque_image_with_an_alpha_channel_is_not_counted_as_transparent(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = save(tmp_path / "x.png", np.dstack([colour, np.full((5, 7), 255, np.uint8)]))
    assert np.array_equal(ImageFiles([path])[0], colour)
    assert scan_files(ImageFiles([path]), "Reading")["transparent"] == 0


def test_a_transparent_picture_that_lies_on_its_side_is_turned(tmp_path):
    noted = Image.Exif()
    noted[0x0112] = 6
    Image.new("RGBA", (30, 20)).save(tmp_path / "x.png", exif=noted)
    pixels = ImageFiles([str(tmp_path / "x.png")])[0]
    assert pixels.shape == (30, 20, 3) and (pixels == 255).all()


@pytest.mark.parametrize("background, channels", [
    (256, 3), (-1, 3), ([1, 2], 3), ([1, 2, 3], 1), (1.5, 3), ([1, 2, 0.5], 3), (None, 3), ("255", 3), (["1"], 1)])
def test_a_background_is_a_number_or_one_for_each_channel(background, channels):
    with pytest.raises(ValueError, match="background is 0–255, one number or one for each of"):
        ImageFiles(["x.png"], channels, background=background)


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


def deep_png(path, kind, channels):
    """Write a PNG of 16 bits, whose colour type Pillow writes with 8 only."""
    rows = np.full((4, 1 + 4 * channels * 2), 200, np.uint8)
    rows[:, 0] = 0
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows.tobytes())),
              (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks))


@pytest.mark.parametrize("kind, channels, form", [(2, 3, "RGB;16"), (4, 2, "LA;16"), (6, 4, "RGBA;16")])
def test_colours_of_sixteen_bits_are_refused_as_well(tmp_path, kind, channels, form):
    deep_png(tmp_path / "x.png", kind, channels)
    for as_channels in (1, 3):
        with pytest.raises(DataError, match=f"x.png has {form} pixels, more than 8 bits a channel"):
            ImageFiles([str(tmp_path / "x.png")], as_channels)[0]


@pytest.mark.parametrize("compression", [1, 5])
def test_tiffs_of_sixteen_bits_are_refused_and_bitmaps_of_three_colours_in_sixteen_are_not(tmp_path, compression):
    cv2.imwrite(str(tmp_path / "x.tif"), np.full((4, 4, 3), 51400, np.uint16),
                [cv2.IMWRITE_TIFF_COMPRESSION, compression])
    with pytest.raises(DataError, match="x.tif has RGB;16 pixels, more than 8 bits a channel"):
        ImageFiles([str(tmp_path / "x.tif")])[0]
    head = struct.pack("<IiiHHIIiiIIIII", 40, 4, 4, 1, 16, 3, 32, 0, 0, 0, 0, 0xF800, 0x7E0, 0x1F)
    (tmp_path / "x.bmp").write_bytes(
        b"BM" + struct.pack("<IHHI", 46 + len(head), 0, 0, 14 + len(head)) + head + b"\x00\xf8" * 16)
    assert ImageFiles([str(tmp_path / "x.bmp")])[0].tolist() == np.full((4, 4, 3), (255, 0, 0)).tolist()


def on_windows(monkeypatch):
    """Let paths be those of Windows, where images are told apart by them."""
    monkeypatch.setattr("cvkit.data.images.os", SimpleNamespace(path=ntpath, sep="\\"))


def test_a_folder_has_the_same_fingerprint_on_windows(monkeypatch):
    files = [f"{name}/{number}.png" for name in ("1", "10", "cat") for number in range(3)]
    ours = ImageSet.of(ImageFiles([f"/data/{file}" for file in files]), [0] * 9).fingerprint
    assert ours == hashlib.sha1("\n".join(f"{file} -1" for file in files).encode()).hexdigest()
    paths = [f"D:\\data\\{file}".replace("/", "\\") for file in files]
    on_windows(monkeypatch)
    assert ImageSet.of(ImageFiles(paths), [0] * 9).fingerprint == ours


def test_images_on_two_drives_have_a_fingerprint(monkeypatch):
    on_windows(monkeypatch)
    files = ImageFiles(["C:\\a\\0.png", "D:\\b\\1.png"])
    assert ImageSet.of(files, [0, 1]).fingerprint == hashlib.sha1(b"C:/a/0.png -1\nD:/b/1.png -1").hexdigest()


def test_places_and_sums_have_64_bits_where_numpy_would_take_32(monkeypatch):
    """As NumPy 1 does on Windows."""
    def arange(*args, real=np.arange, **arguments):
        return real(*args, **{"dtype": np.int32, **arguments})

    def array(value, real=np.asarray, **arguments):
        made = real(value, **arguments)
        return made.astype(np.int32) if made.dtype == np.int64 and not arguments and abs(made).max() < 2**31 else made

    def total(values, real=np.sum, **arguments):
        values = array(values)
        return real(values, **{"dtype": values.dtype, **arguments})

    monkeypatch.setattr(np, "arange", arange)
    monkeypatch.setattr(np, "sum", total)
    assert ImageSet.of(np.zeros((3, 2, 2, 1), np.uint8), [0, 1, 0]).index.dtype == np.int64
    pixels = np.full((20, 100, 100, 1), 255, np.uint8)
    rows = [_sums(part[None]).tolist() for part in pixels]
    assert _mean_and_std(rows) == ((1.0,), (0.0,))


def test_without_a_home_nothing_is_kept_and_images_are_read_all_the_same(tmp_path, monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", nobody)
    path = save(tmp_path / "x.png", np.full((4, 4, 3), 51, np.uint8))
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):
        assert scan_files(ImageFiles([path]), "x")["mean"] == pytest.approx((0.2, 0.2, 0.2))
    assert cache_folder() is None and sorted(tmp_path.rglob("*")) == before


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
    with pytest.raises(ConfigError, match="less than one image of each of the 3 classes"):
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


@pytest.mark.parametrize("entry", [
    5, None, "text", [], [1], {"a": 1}, lambda state, facts: [state, [1, 2]], lambda state, facts: [state, 7],
    lambda state, facts: [state, [*facts[:2], facts[2][:1], False]],
    lambda state, facts: [state, [*facts[:2], [*facts[2][:2], [1, "2", 3]], False]],
    lambda state, facts: [state, [*facts[:2], [[0, 0, 0]] * 3, False]]])
def test_a_damaged_entry_of_what_was_kept_is_as_if_it_were_not_there(tmp_path, entry):
    files = some_files(tmp_path / "images", 3)
    facts = scan_files(files, "Reading")
    cache, = (tmp_path / ".cache" / "cvkit").iterdir()
    kept = json.loads(cache.read_text())
    kept["1.png"] = entry(*kept["1.png"]) if callable(entry) else entry
    cache.write_text(json.dumps(kept))
    assert scan_files(files, "Reading") == facts
    assert len(json.loads(cache.read_text())["1.png"]) == 2  # and it is mended


def test_a_word_comes_before_many_files_are_read_and_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    """There is no terminal here, which has a bar instead."""
    monkeypatch.setattr("cvkit.data.scan._MANY_FILES", 9)
    monkeypatch.setattr("cvkit.system.log._FIRST_WAIT", 10)
    monkeypatch.setattr("cvkit.system.log.time", SimpleNamespace(monotonic=itertools.count(0, 20).__next__))
    screen.begin()
    files = some_files(tmp_path)
    monkeypatch.setattr(ImageFiles, "__getitem__", lambda self, position, real=ImageFiles.__getitem__: (
        print("decoded"), real(self, position))[1])
    scan_files(files, "Reading train images")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "reading    9 image files for their sizes, mean and deviation, once"
    assert next(line for line in lines[1:] if line != "decoded").startswith("Reading train images 1/9: ")
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


# -- what a data set of one's own gives ------------------------------------------------------------

IMAGES = np.zeros((8, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("labels, expected", [
    ([0.0, 1.5, 2.7, 0, 0, 0, 0, 0], "2 of 8 labels that are no whole numbers, such as 1.5"),
    (np.arange(8) % 4 + 0.9, "8 of 8 labels that are no whole numbers, such as 0.9"),
    ([np.nan] + [0] * 7, "1 of 8 labels that are no whole numbers, such as nan"),
    ([np.inf] + [0] * 7, "1 of 8 labels that are no whole numbers, such as inf"),
    ([0, 1, -100, 0, 1, -1, 0, 1], "2 of 8 labels below 0, such as -100"),
    (np.eye(4)[np.arange(8) % 4], r"labels are \(8, 4\), and each image has one class\n  Of one-hot rows take"),
    (np.zeros((8, 1), int), r"labels are \(8, 1\), and each image has one class\n  .*ravel"),
    ([[0], [1, 2]] * 4, "labels are words or other objects, such as"),
    (["cat", "dog"] * 4, "labels are words or other objects, such as cat"),
    ([None] * 8, "labels are words or other objects, such as None"),
    ([0] * 7, "8 images and 7 labels"), ([0] * 9, "8 images and 9 labels")])
def test_labels_that_are_no_class_numbers_are_refused(labels, expected):
    with pytest.raises(DataError, match=expected):
        ImageSet.of(IMAGES, labels)


@pytest.mark.parametrize("labels", [
    [0.0, 1.0, 2.0, 3.0] * 2, np.arange(8, dtype=np.float32) % 4, np.arange(8, dtype=np.uint8) % 4, list(range(4)) * 2])
def test_labels_that_are_whole_numbers_are_taken_as_they_are(labels):
    taken = ImageSet.of(IMAGES, labels).labels
    assert taken.tolist() == [0, 1, 2, 3] * 2 and taken.dtype == np.int64


@pytest.mark.parametrize("images, expected", [
    (IMAGES / np.float32(255), r"images are float\d\d, not uint8, 0–255\n  Of pixels in 0–1: \(255"),
    (IMAGES.astype(np.float32) + 200, "images are float32, not uint8, 0–255\n  Bring them to 0–255"),
    (IMAGES.astype(np.int64), "images are int64, not uint8"),
    (IMAGES[..., 0], r"each image is \(16, 16\), not \(height, width, channels\)\n  Grey ones need .*None\]"),
    (IMAGES.transpose(0, 3, 1, 2), r"each image is \(3, 16, 16\), channels first"),
    (list(IMAGES[..., 0]), r"each image is \(16, 16\)"),
    (IMAGES.tolist(), "images are list, not NumPy arrays"),
    ([Image.new("RGB", (4, 4))] * 8, "images are Image, not NumPy arrays")],
    ids=["floats", "large floats", "int64", "no channel", "channels first", "list", "lists", "Pillow"])
def test_images_of_another_form_are_refused(images, expected):
    with pytest.raises(DataError, match=expected):
        ImageSet.of(images, [0, 1] * 4)


@pytest.mark.parametrize("declared, expected", [
    ({"mean": 0.5}, "mean of ImageData is 0.5\n  Give one number for each channel"),
    ({"std": ["a"] * 3}, "std of ImageData is .'a', 'a', 'a'.\n  Give one number"),
    ({"image_size": 16}, "image_size of ImageData is 16\n  Give .height, width., or None"),
    ({"image_size": (28, 28)}, r"the train images are \(16, 16\), and the data set says \(28, 28\)\n  Give ImageData "
                               r"image_size=\(16, 16\)"),
    ({"classes": 4}, "classes of ImageData is 4\n  Give their names")])
def test_what_a_data_set_declares_in_another_form_is_told(declared, expected):
    images = np.zeros((8, 16, 16, 3), np.uint8)
    split = ImageSet.of(images, np.arange(8) % 4)
    facts = {"classes": "abcd", "channels": 3, "image_size": (16, 16), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    with pytest.raises(DataError, match=expected):
        ImageData(train=split, test=split, **{**facts, **declared})
    assert ImageData(train=split, test=split, **{**facts, "image_size": None}).image_size is None


@pytest.mark.parametrize("labels, channels, expected", [
    (np.arange(8) % 4 + 1, 3, "the train labels go up to 4, and 4 classes have the numbers 0 to 3\n  Subtract 1"),
    ([2, 3, 4, 4] * 2, 3, "the train labels go up to 4, .*\n  Subtract 1"),
    ([0, 7] * 4, 3, "the train labels go up to 7, .*\n  Name all classes"),
    ([0, 1] * 4, 1, "the train images have 3 channels, and the data set says 1")])
def test_a_data_set_that_contradicts_itself_is_refused(labels, channels, expected):
    split, mean = ImageSet.of(IMAGES, labels), (0.5,) * channels
    with pytest.raises(DataError, match=expected):
        ImageData(tuple("abcd"), split, split, channels, (16, 16), mean, mean)
    files = ImageSet.of(ImageFiles(["x.png"] * 8), labels)
    with pytest.raises(DataError, match=expected):
        ImageData(tuple("abcd"), files, files, channels, None, mean, mean)


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_a_split_without_images_is_refused(name):
    splits = {each: ImageSet.of(IMAGES, [0, 1] * 4) for each in ("train", "val", "test")}
    splits[name] = splits[name].take(np.arange(0))
    with pytest.raises(DataError, match=f"the {name} split has no images"):
        ImageData(classes=("a", "b"), channels=3, image_size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, **splits)


@dataclass(frozen=True)
class Sourced(ImageData):
    source: str = ""


def test_a_data_set_of_one_s_own_kind_keeps_its_kind_with_other_splits():
    split = ImageSet.of(IMAGES, [0, 1] * 4)
    data = Sourced(("a", "b"), split, split, 3, (16, 16), (0.5,) * 3, (0.5,) * 3, source="here")
    other = data.with_splits(val=split)
    assert type(other) is Sourced and other.source == "here" and other.val is split


def test_the_first_image_that_can_be_read_is_looked_at_where_others_may_be_left_out():
    paths = ["gone.png", "no_image.png", "here.png"]
    Path("no_image.png").write_text("text")
    Image.new("RGB", (4, 4), (9, 8, 7)).save("here.png")
    labels = [0, 1, 0]
    assert (ImageSet.of(ImageFiles(paths, skip_unreadable=True), labels).first() == [9, 8, 7]).all()
    with pytest.raises(UnreadableError, match="gone.png"):
        ImageSet.of(ImageFiles(paths), labels).first()
    assert len(list(ImageSet.of(ImageFiles(paths, skip_unreadable=True), labels).readable([0, 2, 1, 2]))) == 2
    with pytest.raises(UnreadableError, match="no_image.png"):
        ImageSet.of(ImageFiles(paths[:2], skip_unreadable=True), labels[:2]).first()


@pytest.mark.parametrize("sizes", [((32, 32),), ((32, 32), (40, 48))], ids=["one size", "mixed"])
def test_a_file_that_goes_bad_after_it_was_looked_at_may_be_the_first(tiny, sizes):
    random = np.random.default_rng(0)
    for number in range(24):
        path = Path("x", "ab"[number % 2], f"{number:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*sizes[number % len(sizes)], 3), dtype=np.uint8)).save(path)
    resize = [{"NAME": "Resize", "height": 32, "width": 32}]
    parts = Experiment(load_config(tiny, {
        "DATA.DATASET": {"NAME": "ImageFolder", "root": "x", "skip_unreadable": True}, "DATA.LIMIT": 0,
        "DATA.TRAIN_TRANSFORMS": resize, "DATA.TEST_TRANSFORMS": resize, "DATA.BATCH_SIZE": 30}))
    for split in (parts.data.train, parts.data.test):
        Path(split.name(0)).write_text("no image")
    assert [len(batch.labels) for batch in parts.loaders.train] == [len(parts.data.train) - 1]
    assert sum(len(batch.labels) for batch in parts.loaders.test) == len(parts.data.test) - 1
