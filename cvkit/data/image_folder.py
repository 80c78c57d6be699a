"""Your own images, a folder for each class."""

from __future__ import annotations

import os
from pathlib import Path

from cvkit.data.assembly import (
    all_is_test,
    assemble,
    check_choice,
    check_fraction,
    not_there,
    set_aside,
)
from cvkit.data.class_folders import ClassFolders, folders_in, leads_to, refuse_other_classes
from cvkit.data.images import ImageData, ImageFiles, ImageSet
from cvkit.data.split_folders import (
    SPLIT_WORDS,
    no_splits_among,
    split_folders,
    way_without_labels,
)
from cvkit.errors import DataError
from cvkit.registry import DATASETS
from cvkit.system.text import and_more


@DATASETS.register()
def ImageFolder(root: str, test_fraction: float = 0.2, channels: int = 3,
                mean: list[float] | None = None, std: list[float] | None = None,
                skip_unreadable: bool = False, background: int | list[int] = 255, seed: int = 0,
                train: str | None = None, val: str | None = None, test: str | None = None,
                unsplit: bool = False, splits: dict[str, str] | None = None) -> ImageData:
    """Your own images, a folder for each class.

    `root` holds `train/` and `test/` or `val/`, each with one folder per class; or only the
    class folders, and a part of every class is set aside as test. With all three, `val/` is
    monitored during training and `test/` kept for the end. The usual spellings are known
    (`Training`, `valid`, `validation`). Other files are ignored and counted, links are followed.

    Args:
        root: the folder.
        test_fraction: part of every class for test, where `root` has no splits.
        channels: 3 reads all images as RGB, 1 as grey.
        mean, std: per channel, pixels in 0–1; computed from the training images by default,
            once, and cached.
        skip_unreadable: leave out files that cannot be read, now or later, and say which.
        background: what transparent pixels are laid on, 0–255, one number or one per channel;
            white by default. A line says how many images have such pixels.
        seed: of the split; DATA.SPLIT_SEED by default.
        train, val, test: folders of the splits in `root`, where they have other names.
        unsplit: the folders in `root` are classes, even if they are called as splits are.
        splits: train, val and test as one mapping, {train: training_set, test: test_set}.

    Raises:
        DataError: no such folder, no images, classes that differ between splits, or files
            that are not images.
    """
    check_choice("channels", channels, (1, 3))
    if not all_is_test():
        check_fraction("test_fraction", test_fraction)
    folder = _existing_folder(root)
    given = {split: name for split, name in (("train", train), ("val", val), ("test", test))
             if name is not None}
    if splits:
        if given or not set(splits) <= set(SPLIT_WORDS) or not all(
                isinstance(name, str) for name in splits.values()):
            raise ValueError(f"splits is {{train: FOLDER, val: FOLDER, test: FOLDER}}, not "
                             f"{dict(splits)}" + " beside train, val or test" * bool(given))
        given = dict(splits)
    if unsplit and given:
        raise ValueError("unsplit says that root has no splits; leave out train, val and test")
    names = {} if unsplit else split_folders(folder, given, needs_train=not all_is_test())
    notes: list[str] = []
    listings: dict[str, ClassFolders] = {}
    if names:
        for split, name in names.items():
            # The first is train, except for an evaluation, and no training goes on without it.
            way = way_without_labels(folder, names, split) if listings else None
            listings[split] = ClassFolders(folder / name, way)
        refuse_other_classes(*listings.values())
        if "test" not in names:
            notes.append(f"{names['val']}/ is the test set, as there is no other")
        beside = [f"{name}/" for name in folders_in(folder)
                  if not any(leads_to(folder / name, folder / split) for split in names.values())]
        if beside:
            notes.append(f"ignored beside {', '.join(f'{name}/' for name in names.values())}: "
                         f"{and_more(beside, 8)}")
    else:
        listings["whole"] = ClassFolders(folder)
        if not unsplit:
            notes += no_splits_among(listings["whole"])
    classes = tuple(next(iter(listings.values())).classes)
    images = {name: _image_set(listing, channels, skip_unreadable, background)
              for name, listing in listings.items()}
    if not names:
        images = set_aside(images["whole"], test_fraction, seed,
                           [f"in {folder / name}" for name in classes])
    elif "test" not in images:
        images["test"] = images.pop("val")
    notes += filter(None, (listing.note for listing in listings.values()))
    return assemble(classes, images, mean, std, notes)


def _existing_folder(root: str) -> Path:
    folder = Path(root)
    if os.path.isfile(root):
        raise DataError(f"{root} is a file, not a folder",
                        hint="Unpack it, and name the folder that this makes.")
    if not folder.is_dir():
        beside = [*folder.parent.glob("*/")] if folder.parent.is_dir() else []
        raise not_there("folder", root, beside)
    return folder


def _image_set(listing: ClassFolders, channels: int, skip_unreadable: bool,
               background: int | list[int]) -> ImageSet:
    labels = [number for number, paths in enumerate(listing.classes.values()) for _ in paths]
    paths = [path for paths in listing.classes.values() for path in paths]
    return ImageSet.of(ImageFiles(paths, channels, skip_unreadable, background), labels)
