"""docs/architecture.md: its picture is drawn from the imports of now, and what it names exists."""

import re

from conftest import ROOT
from test_layout import ARCHITECTURE as SCRIPT
from test_layout import FLOORS

TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_picture_is_drawn_from_the_imports_of_now():
    assert SCRIPT["with_picture"](TEXT) == TEXT, "run: python docs/architecture.py"


def test_its_boxes_are_the_parts_that_the_layout_knows():
    listed = set().union(*FLOORS)
    assert set(SCRIPT["BELOW"]) == {part for part in listed if "." in part}
    boxes = {part for part in listed if "." not in part} | set(SCRIPT["BELOW"].values()) | {"tools"}
    assert SCRIPT["read"]().keys() == boxes


def test_what_is_reached_over_others_has_no_arrow_of_its_own():
    graph = {"roof": {"floor", "ground"}, "floor": {"ground"}, "shed": {"ground"}, "ground": set()}
    assert SCRIPT["reduced"](graph) == {**graph, "roof": {"floor"}}


def test_the_page_has_a_line_for_each_part_and_names_files_that_exist():
    table = TEXT.partition("## The floors")[2].partition("## The spine")[0]
    for part in set().union(*FLOORS):
        assert f"`{part}`" in table or part.startswith("training.")
    files = re.findall(r"`([\w/]+\.py)`", TEXT)
    assert len(files) > 20
    for name in files:
        assert (ROOT / name).is_file() or (ROOT / "cvkit" / name).is_file(), name
