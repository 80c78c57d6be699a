"""What a data set is to the rest of cvkit: labelled uint8 images, and facts about them."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError, features

from cvkit.errors import DataError

# Pillow knows more formats, but for what looks like PostScript, whatever its name, it runs
# Ghostscript.
# TGA has no mark that tells it from other files, so it is tried last.
_ENDINGS = {"JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",), "BMP": (".bmp",),
            "GIF": (".gif",), "WEBP": (".webp",), "TIFF": (".tif", ".tiff"),
            "PPM": (".ppm", ".pgm", ".pbm", ".pnm"), "AVIF": (".avif",),
            "JPEG2000": (".jp2", ".j2k"), "TGA": (".tga",)}
# Not every Pillow was built with these libraries.
_LIBRARIES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
_FORMATS = tuple(
    name for name in _ENDINGS if name not in _LIBRARIES
    or (_LIBRARIES[name] in {*features.modules, *features.codecs}
        and features.check(_LIBRARIES[name])))
IMAGE_ENDINGS = tuple(ending for name in _FORMATS for ending in _ENDINGS[name])
# The EXIF tag of the orientation, and what each of its values but 1 asks for.
_ORIENTATION = 0x0112
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}
# EXIF's types of whole numbers, as `struct` calls them.
_WHOLE = {1: "B", 3: "H", 4: "L"}
_SKIP_HINT = "DATA.DATASET.skip_unreadable true leaves such files out, and says so."


class UnreadableError(DataError):
    """An image file that is gone, cut off or no image."""


def _unreadable(path: str, error: Exception) -> UnreadableError:
    reason = ("its content is no image" if isinstance(error, UnidentifiedImageError)
              else str(error) or type(error).__name__)
    return UnreadableError(f"{path} cannot be read as an image: {reason}",
                           hint=f"Replace or remove it. {_SKIP_HINT}")


class ImageReader:
    """Turns image files, and Pillow's images, into pixels: uint8 (H, W, C).

    They are turned as their EXIF orientation says, and laid on a ground where they are transparent.

    Args:
        channels: 3 reads everything as RGB, 1 as grey.
        background: that ground, 0–255, one number or one per channel; white by default.

    Raises:
        ValueError: `background` is something else.
    """

    def __init__(self, channels: int = 3, background: int | Sequence[int] = 255):
        self.channels, self.background = channels, background
        values = tuple(background) if np.iterable(background) else (background,)
        if len(values) not in (1, channels) or not all(
                isinstance(value, (int, np.integer)) and 0 <= value <= 255 for value in values):
            raise ValueError(f"background is 0–255, one number or one for each of {channels} "
                             f"channels, not {background}")
        values = tuple(map(int, values))
        self._ground = (values if len(values) == 3 else values[:1] * 3) + (255,)

    def read(self, path: str) -> tuple[np.ndarray, bool]:
        """Return the pixels of a file, and whether some of them are transparent.

        Raises:
            UnreadableError: it is gone, cut off or no image. DataError: of more than 8 bits.
        """
        try:
            with Image.open(path, formats=_FORMATS) as file:
                return self.convert(file, path)
        except DataError:
            raise
        except FileNotFoundError:
            raise UnreadableError(f"{path} is gone since the folder was read",
                                  hint=_SKIP_HINT) from None
        except Exception as error:
            # Pillow's readers of several formats raise whatever they stumble over.
            raise _unreadable(path, error) from error

    def size(self, path: str) -> tuple[int, int]:
        """Return (height, width) of a file as its head says, without decoding it.

        Raises:
            UnreadableError: it is no image.
        """
        try:
            with Image.open(path, formats=_FORMATS) as file:
                return file.height, file.width
        except Exception as error:
            # As in `read`; a size beyond all bounds is an error of Pillow's too.
            raise _unreadable(path, error) from error

    def convert(self, file: Image.Image, name: str) -> tuple[np.ndarray, bool]:
        """Return the same of an image of Pillow's, which messages call by a name."""
        deep = file.mode if file.mode.startswith(("I", "F")) else _deep(file)
        if deep:
            raise DataError(f"{name} has {deep} pixels, more than 8 bits a channel",
                            hint="Convert such images to 8 bits; "
                                 "how to scale them is for you to say.")
        is_tiff = file.format == "TIFF"
        if is_tiff and isinstance(file, ImageFile.ImageFile):
            # With a name it would be mapped into memory, by sides that Pillow has turned.
            file.filename = ""
        # This turns a TIFF, and reads what PNGs have at the end.
        file.load()
        turn = None if is_tiff else _TURNS.get(_orientation(file))
        has_alpha = file.getbands()[-1] in "Aa" or "transparency" in file.info
        image, is_transparent = self._grounded(file.convert("RGBA")) if has_alpha else (file, False)
        image = image.convert("RGB" if self.channels == 3 else "L")
        pixels = np.asarray(image if turn is None else image.transpose(turn))
        return pixels if pixels.ndim == 3 else pixels[:, :, None], is_transparent

    def _grounded(self, image: Image.Image) -> tuple[Image.Image, bool]:
        """Return an RGBA image on the ground, and whether that shows."""
        if np.asarray(image.getchannel("A")).min() == 255:
            return image, False
        return Image.alpha_composite(Image.new("RGBA", image.size, self._ground), image), True


def _deep(file: Image.Image) -> str | None:
    """Return the form of colours of 16 bits, of which Pillow would take the upper 8, or None."""
    for _, _, _, form in getattr(file, "tile", ()):
        form = form[0] if isinstance(form, tuple) and form else form
        # BMP's "BGR;16" are three colours in 16 bits.
        if isinstance(form, str) and (found := re.fullmatch(r"(\w+;16)[BLN]", form)):
            return found[1]
    return None


class ImageFiles:
    """Image files, decoded when asked for: `files[i]` is uint8 (H, W, C).

    Args:
        paths: the files.
        channels, background: see `ImageReader`.
        skip_unreadable: whether batches may leave out files that cannot be read.

    Attributes:
        transparent: the places, of those read so far, of images with transparent pixels.

    Raises:
        ValueError: `background` is something else.
    """

    def __init__(self, paths: Sequence[str], channels: int = 3, skip_unreadable: bool = False,
                 background: int | Sequence[int] = 255):
        self.paths, self.channels = np.asarray(paths), channels
        self.skip_unreadable, self.background = skip_unreadable, background
        self.transparent: set[int] = set()
        self._reader = ImageReader(channels, background)

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, places: np.ndarray) -> ImageFiles:
        """Return the files at these places."""
        return ImageFiles(self.paths[places], self.channels, self.skip_unreadable,
                          self.background)

    def __getitem__(self, position: int) -> np.ndarray:
        pixels, is_transparent = self._reader.read(str(self.paths[position]))
        if is_transparent:
            self.transparent.add(int(position))
        return pixels


def _orientation(image: Image.Image) -> object:
    """Return the EXIF orientation, 1 to 8, or whatever stands there; None if nothing can be read.

    Other tags are passed over: cameras write some in ways that Pillow stumbles over.
    """
    data = (image.info.get("exif") or b"").removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    try:
        if order:
            start, = struct.unpack_from(f"{order}L", data, 4)
            count, = struct.unpack_from(f"{order}H", data, start)
            for at in range(start + 2, start + 2 + 12 * count, 12):
                tag, kind = struct.unpack_from(f"{order}HH", data, at)
                if tag == _ORIENTATION and kind in _WHOLE:
                    return struct.unpack_from(order + _WHOLE[kind], data, at + 8)[0]
        # Pillow looks for it in other places as well.
        return image.getexif().get(_ORIENTATION)
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        # What is no EXIF says nothing; the picture is there all the same.
        return None


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one split.

    Attributes:
        images: uint8 array (N, H, W, C), or `ImageFiles`.
        labels: int64 (N,), indices into the classes.
        index: int64 (N,), each image's place in the split as the data set has it.
        groups: int64 (N,), numbers of what images have in common, a patient or a video: those of a
            group stay on one side of a split that cvkit makes. None if there are no groups.
    """

    images: np.ndarray | ImageFiles
    labels: np.ndarray
    index: np.ndarray
    groups: np.ndarray | None = None

    @classmethod
    def of(cls, images: np.ndarray | ImageFiles, labels: Sequence[int] | np.ndarray,
           groups: Sequence[object] | np.ndarray | None = None) -> ImageSet:
        """Return a whole split.

        Raises:
            DataError: images, labels or groups of another form than above. Labels may be floats if
                they are whole numbers.
        """
        if isinstance(images, np.ndarray):
            # BGR turned into RGB by [..., ::-1], for example, is not contiguous.
            images = np.ascontiguousarray(images)
        numbers = _class_numbers(labels)
        if len(images) != len(numbers):
            raise DataError(f"{len(images):,} images and {len(numbers):,} labels",
                            hint="Each image needs one, in the same order.")
        if len(images) and not isinstance(images, ImageFiles):
            check_image(images[0])
        which = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        if which is not None and len(which) != len(images):
            raise DataError(f"{len(images):,} images and {len(which):,} groups",
                            hint="Each image needs one, in the same order.")
        # NumPy 1 has numbers of 32 bits on Windows, if it may choose.
        return cls(images, numbers, np.arange(len(numbers), dtype=np.int64), which)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, position: int) -> np.ndarray:
        """Return one image as the data set has it, uint8 (H, W, C)."""
        return self.images[self.index[position]]

    def first(self) -> np.ndarray:
        """Return the first image, or, where files may be left out, the first that can be read."""
        return next(self.readable(range(len(self))))

    def readable(self, positions: Iterable[int]) -> Iterator[np.ndarray]:
        """Yield the images at these positions, without files that may be left out if unreadable.

        Raises:
            UnreadableError: one may not be left out, or none can be read.
        """
        may_skip = getattr(self.images, "skip_unreadable", False)
        return (image for _, image in readable(self.image, positions, may_skip))

    def name(self, position: int) -> str:
        """Return what an image can be found by: its file, or its number in the data set's split."""
        place = self.index[position]
        return str(self.images.paths[place] if isinstance(self.images, ImageFiles) else place)

    @cached_property
    def fingerprint(self) -> str:
        """What tells these images from others, in whichever order: of pixels, or of file names.

        Names are relative to the folder that holds all of them, so a folder can be moved.
        """
        places = np.sort(self.index)
        if isinstance(self.images, ImageFiles):
            paths = self.images.paths[places].tolist()
            if len(set(map(os.path.isabs, paths))) > 1:
                paths = list(map(os.path.abspath, paths))
            names = "\n".join(f"{name} {_size(path)}"
                              for name, path in zip(_names_in_common(paths), paths, strict=True))
            return hashlib.sha1(names.encode(errors="surrogateescape")).hexdigest()
        is_whole = len(self) == len(self.images)
        pixels = np.ascontiguousarray(self.images if is_whole else self.images[places])
        return hashlib.sha1(pixels.data).hexdigest()

    @cached_property
    def identity(self) -> str:
        """What tells this split from one with other images, labels or another order."""
        content = self.fingerprint.encode() + self.labels.tobytes() + self.index.tobytes()
        return hashlib.sha1(content).hexdigest()

    def take(self, positions: np.ndarray) -> ImageSet:
        """Return the images at these positions; pixels are shared, not copied."""
        return ImageSet(self.images, self.labels[positions], self.index[positions],
                        None if self.groups is None else self.groups[positions])


def _class_numbers(given: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return labels as int64 (N,), if they are such numbers."""
    try:
        labels = np.asarray(given)
    except ValueError:
        # NumPy makes no array of lists of different lengths by itself.
        labels = np.asarray(given, dtype=object)
    if labels.ndim != 1:
        axis = labels.shape[-1] if labels.ndim else 0
        raise DataError(f"labels are {labels.shape}, and each image has one class",
                        hint="Of one-hot rows take labels.argmax(axis=1)." if axis > 1 else
                             "Give one number for each image, labels.ravel() perhaps.")
    if labels.dtype.kind not in "biuf":
        raise DataError(f"labels are words or other objects, such as {labels[0]}",
                        hint="They are numbers into the classes: classes, labels = "
                             "numpy.unique(labels, return_inverse=True)")
    with np.errstate(invalid="ignore"):
        # NumPy warns of NaN, which is found all the same.
        numbers = labels.astype(np.int64)
    for is_wrong, what, hint in (
            (numbers != labels, "that are no whole numbers",
             "They are the numbers of classes; cvkit classifies, it does not predict quantities."),
            (numbers < 0, "below 0", "Classes are numbered from 0. Leave out images that have "
                                     "none; no number stands for that.")):
        if is_wrong.any():
            raise DataError(f"{is_wrong.sum():,} of {len(labels):,} labels {what}, such as "
                            f"{labels[is_wrong][0]}", hint=hint)
    return numbers


def readable(read: Callable[[int], np.ndarray], positions: Iterable[int],
             may_skip: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the images at these positions, each with its number among them.

    Args:
        read: returns one.
        may_skip: whether those that cannot be read are left out.

    Raises:
        UnreadableError: one cannot be read and may not be left out, or none can.
    """
    found, last = 0, None
    for number, position in enumerate(positions):
        try:
            image = read(position)
        except UnreadableError as error:
            if not may_skip:
                raise
            last = error
            continue
        found += 1
        yield number, image
    if last and not found:
        raise last


def check_image(image: np.ndarray) -> None:
    """Refuse what is not uint8 (H, W, C).

    Raises:
        DataError: says how to make it so.
    """
    if not isinstance(image, np.ndarray):
        raise DataError(f"images are {type(image).__name__}, not NumPy arrays",
                        hint="Give one array (N, height, width, channels).")
    if image.dtype != np.uint8:
        is_unit = image.dtype.kind == "f" and image.size and 0 <= image.min() <= image.max() <= 1
        raise DataError(f"images are {image.dtype}, not uint8, 0–255",
                        hint="Of pixels in 0–1: (255 * images).round().astype(numpy.uint8)"
                             if is_unit else "Bring them to 0–255, then .astype(numpy.uint8).")
    if image.ndim != 3:
        raise DataError(f"each image is {image.shape}, not (height, width, channels)",
                        hint="Grey ones need the axis too: images[..., None]"
                             if image.ndim == 2 else None)
    if image.shape[0] in (1, 3) and image.shape[2] not in (1, 3):
        raise DataError(f"each image is {image.shape}, channels first",
                        hint="They stand last: images.transpose(0, 2, 3, 1)")


def _names_in_common(paths: Sequence[str]) -> list[str]:
    """Return paths relative to the folder that holds all of them, as every system writes them."""
    try:
        top = os.path.commonpath(paths) if len(paths) > 1 else os.path.dirname(paths[0])
    except ValueError:
        # Windows has no such folder of files on two drives.
        return [portable(path) for path in paths]
    return [portable(os.path.relpath(path, top)) for path in paths]


def portable(path: str) -> str:
    """Return a path as every system but Windows writes it: what goes by it is the same on all."""
    return path.replace(os.sep, "/")


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else -1


# The fields of an `ImageData` that are rows of something, of what, and how to give them.
_ROWS = {"classes": (str, "their names: [\"cat\", \"dog\"]"),
         "mean": (float, "one number for each channel: (0.5,) or (0.5, 0.5, 0.5)"),
         "std": (float, "one number for each channel: (0.2,) or (0.2, 0.2, 0.2)"),
         "image_size": (int, "(height, width), or None where sizes differ")}


@dataclass(frozen=True)
class ImageData:
    """A data set: its splits and what it declares.

    Attributes:
        classes: names, in the order of the labels.
        train, test: the splits.
        val: images to monitor training on, where the data set or the config has them.
        left_out: files that belong to a split and cannot be read, where that was allowed.
        notes: what was skipped, guessed or changed, a line each, which a training says at its
            beginning.
        channels: 3 or 1.
        image_size: (height, width) in pixels, or None where sizes are mixed.
        mean, std: of the training images, per channel, pixels scaled to 0–1.

    Raises:
        DataError: a split without images, labels beyond the classes, or images of other channels or
            sizes than declared.
    """

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    channels: int
    image_size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    val: ImageSet | None = None
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Checkpoints hold plain values only, and NumPy's scalars are none.
        for name, (kind, form) in _ROWS.items():
            value = getattr(self, name)
            try:
                value = value if value is None else tuple(map(kind, value))
            except (TypeError, ValueError):
                raise DataError(f"{name} of ImageData is {value!r}",
                                hint=f"Give {form}.") from None
            object.__setattr__(self, name, value)
        for name, split in self.splits.items():
            self._check(name, split)

    def _check(self, name: str, split: ImageSet) -> None:
        if not len(split):
            raise DataError(f"the {name} split has no images",
                            hint="Leave it out: without it, test is monitored." if name == "val"
                                 else None)
        count, highest = len(self.classes), int(split.labels.max())
        if highest >= count:
            from_one = highest == count and split.labels.min() >= 1
            raise DataError(f"the {name} labels go up to {highest}, and {count} classes have the "
                            f"numbers 0 to {count - 1}",
                            hint="Subtract 1: they are counted from 1." if from_one else
                                 "Name all classes, or leave out what belongs to none.")
        images = split.images
        channels, size = self.channels, self.image_size
        if isinstance(images, ImageFiles):
            channels = images.channels
        elif isinstance(images, np.ndarray):
            channels, size = images.shape[3], images.shape[1:3]
        if channels != self.channels:
            raise DataError(f"the {name} images have {channels} channels, and the data set says "
                            f"{self.channels}", hint=f"Give ImageData channels={channels}.")
        if self.image_size not in (None, size):
            raise DataError(f"the {name} images are {size}, and the data set says "
                            f"{self.image_size}", hint=f"Give ImageData image_size={size}.")

    @property
    def splits(self) -> dict[str, ImageSet]:
        """The splits that there are, by name."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def monitored(self) -> str:
        """The split that best.pt, early stopping and the plateau schedule follow."""
        return "test" if self.val is None else "val"

    @property
    def class_counts(self) -> list[int]:
        """How many training images each class has."""
        return np.bincount(self.train.labels, minlength=len(self.classes)).tolist()

    @property
    def facts(self) -> dict[str, Any]:
        """What its images are, in plain values, by which others can be brought to the same form."""
        ground = getattr(self.train.images, "background", 255)
        return {"channels": self.channels, "mean": list(self.mean), "std": list(self.std),
                "image_size": self.image_size and list(self.image_size),
                "class_counts": self.class_counts,
                "background": list(map(int, ground)) if np.iterable(ground) else int(ground)}

    def with_splits(self, **splits: ImageSet | None) -> ImageData:
        """Return the same data set with other splits."""
        # The fields by name are what mypy cannot see.
        return replace(self, **splits)  # type: ignore[arg-type]
