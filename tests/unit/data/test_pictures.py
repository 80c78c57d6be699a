import os
from pathlib import Path

import pytest

from cvkit.data.pictures import find_images
from cvkit.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Images beside and below each other, and what is none."""
    for name in ("b.jpg", "a.PNG", "deep/er/c.webp", "deep/d.jpeg", "deep/notes.txt", ".hidden.png",
                 ".trash/e.png"):
        path = tmp_path / "all" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "all"


def test_images_of_a_folder_and_all_below_are_found_in_order(folder):
    found = [os.path.relpath(path, folder) for path in find_images([folder])]
    assert found == ["a.PNG", "b.jpg", os.path.join("deep", "d.jpeg"), os.path.join("deep", "er", "c.webp")]


def test_what_a_training_passes_over_is_not_found(folder):
    for name in ("@eaDir/b.jpg", "deep/$RECYCLE.BIN/f.png", "__MACOSX/g.png", "deep/__pycache__/h.png", "__i.png"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [os.path.basename(path) for path in find_images([folder])] == ["__i.png", "a.PNG", "b.jpg", "d.jpeg", "c.webp"]
    assert find_images([folder / "__MACOSX"]) == [str(folder / "__MACOSX" / "g.png")]


def test_a_file_that_is_named_is_taken_whatever_it_is_called(folder):
    named = [folder / "deep" / "notes.txt", str(folder / "b.jpg")]
    assert find_images(named) == [str(path) for path in named]


def test_a_loop_of_links_is_walked_once(folder):
    (folder / "deep" / "again").symlink_to(folder)
    assert len(find_images([folder])) == 4


def test_two_links_to_a_folder_are_one(folder):
    for name in ("one", "other"):
        (folder / name).symlink_to("deep")
    assert len(find_images([folder])) == 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no such pipes")
def test_a_pipe_that_is_called_as_an_image_is_none(folder):
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to("gone")
    assert [os.path.basename(path) for path in find_images([folder])][:3] == ["a.PNG", "b.jpg", "link.png"]
    assert len(find_images([folder])) == 5


def test_what_is_not_there_is_told(folder):
    with pytest.raises(DataError, match=r"no file or folder gone.jpg \(looked in "):
        find_images(["gone.jpg"])
    Path("empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no images\n  Those in it and below end in .jpg"):
        find_images(["empty"])
