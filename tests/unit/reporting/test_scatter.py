import base64
import io
import json
import re

import numpy as np
import pytest
from browser import BROWSER, Browser
from PIL import Image as Pixels

from cvkit.reporting.pages import picture
from cvkit.reporting.report_format import Image, Section, render_html
from cvkit.reporting.scatter import scatter
from cvkit.visualizers.drawing import Picture, Points

HOSTILE = "</script><b onclick=alert(1)>\u2028 & 'cat'"


def points_of(count=7, height=12, width=20, channels=3):
    """Return points in a row from left to right, of images each in one colour."""
    random = np.random.default_rng(0)
    images = np.repeat(random.integers(0, 256, (count, 1, 1, channels), np.uint8), height, 1)
    places = np.stack([np.linspace(0.1, 0.9, count), np.full(count, 0.25)], axis=1)
    return Points(places, images.repeat(width, 2), [f"a/{number}.png" for number in range(count)],
                  np.arange(count) % 2, np.zeros(count, np.int64), [HOSTILE, "dog"])


def png():
    file = io.BytesIO()
    Pixels.new("RGB", (800, 400), "white").save(file, "PNG")
    return file.getvalue()


def block_of(points, whole=1.0):
    return scatter(Image("embedding", png(), 400, 200, "a caption"), points, whole)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_lies_in_the_sheet_where_the_facts_say(channels):
    points = points_of(channels=channels)
    facts = block_of(points).facts
    sheet = np.asarray(Pixels.open(io.BytesIO(base64.b64decode(facts["images"].split(",")[1]))).convert("RGB"))
    assert facts["size"] == [20, 12] and facts["step"] == [24, 16] and facts["columns"] == 3
    for number, image in enumerate(points.images):
        row, column = divmod(number, facts["columns"])
        there = sheet[16 * row:16 * row + 12, 24 * column:24 * column + 20].astype(int)
        assert np.abs(there - image).max() <= 3


def test_places_are_from_the_upper_left_corner_of_what_is_below_the_headline():
    figure = Picture(4, 4)
    figure.headline("title", "one line")
    points = points_of()
    figure.points = points
    (block,) = picture("embedding", figure)
    height = Pixels.open(io.BytesIO(block.png)).height / 150
    assert height == pytest.approx(4 - 0.43, abs=0.01)
    # A quarter of the whole figure from below is one inch.
    assert block.facts["places"][0] == [0.1, pytest.approx(1 - 1 / 3.57, abs=1e-3)]


def test_names_stay_text_and_the_facts_whole():
    page = render_html("t", [Section("Classes", [block_of(points_of())])])
    found = re.findall('<script type="application/json" class="facts">(.*?)</script>', page)
    assert json.loads(found[0])["classes"] == [HOSTILE, "dog"]
    assert "<b onclick" not in page and page.count("<script") == page.count("</script>") == 2


@pytest.fixture
def tab(tmp_path, request):
    width = getattr(request, "param", 1200)
    page = tmp_path / "page.html"
    page.write_text(render_html("t", [Section("Classes", [block_of(points_of())])]), encoding="utf-8")
    with Browser(tmp_path / "profile", width, 800) as tab:
        tab.call("Page.navigate", url=page.resolve().as_uri())
        tab.wait("document.readyState === 'complete' && document.querySelector('.hint')"
                 " && !document.querySelector('.hint').hidden")
        yield tab
        assert not tab.told("Runtime.exceptionThrown")
        assert not [told for told in tab.told("Log.entryAdded") if told["entry"]["level"] == "error"]


def shown(tab):
    """Return the words and the colour in the middle of the card, or None where it is hidden."""
    return tab.value("""(() => {
      const card = document.querySelector(".card"), canvas = card.querySelector("canvas");
      if (card.hidden) return null;
      const {width, height} = canvas;
      return [[...card.querySelectorAll("b, span")].map(item => item.textContent), [width, height],
              [...canvas.getContext("2d").getImageData(width / 2, height / 2, 1, 1).data].slice(0, 3)];
    })()""")


def check_shown(tab, number):
    points = points_of()
    words, size, colour = shown(tab)
    true = points.classes[points.true[number]]
    assert words == [true, "predicted rightly" if number % 2 == 0 else f"predicted: {HOSTILE}",
                     f"a/{number}.png"]
    assert size == [80, 48]  # four times as large, whole pixels
    assert np.abs(np.array(colour) - points.images[number, 0, 0]).max() <= 3


def place_of(tab, number):
    return tab.value(f"""(() => {{
      const {{left, top, width, height}} = document.querySelector(".plane").getBoundingClientRect();
      return [left + width * (0.1 + 0.8 * {number} / 6), top + height * 0.75]; }})()""")


def mouse(tab, kind, x, y, **more):
    tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)


def key(tab, name):
    tab.call("Input.dispatchKeyEvent", type="keyDown", key=name, code=name)
    tab.call("Input.dispatchKeyEvent", type="keyUp", key=name, code=name)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_pointing_at_a_point_shows_its_image_and_nothing_is_run_that_a_name_says(tab):
    assert shown(tab) is None
    for number in (0, 3, 6):
        x, y = place_of(tab, number)
        mouse(tab, "mouseMoved", x + 4, y - 4)
        check_shown(tab, number)
        inside = tab.value("""(() => {
          const card = document.querySelector(".card").getBoundingClientRect();
          const plane = document.querySelector(".plane").getBoundingClientRect();
          return plane.left <= card.left && card.right <= plane.right; })()""")
        assert inside
    mouse(tab, "mouseMoved", x, y - 60)
    assert shown(tab) is None
    assert tab.value("document.querySelectorAll('.card b, [onclick]').length") == 1


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_arrow_keys_go_from_point_to_point(tab):
    for _ in range(20):
        tab.call("Input.dispatchKeyEvent", type="rawKeyDown", key="Tab", windowsVirtualKeyCode=9)
        if tab.value("document.activeElement.className") == "plane":
            break
    assert tab.value("document.activeElement.matches('.plane:focus-visible')")
    key(tab, "ArrowRight")
    check_shown(tab, 3)  # it begins in the middle
    for name, number in (("ArrowRight", 4), ("ArrowRight", 5), ("ArrowRight", 6), ("ArrowRight", 6),
                         ("ArrowLeft", 5), ("ArrowUp", 5)):
        key(tab, name)
        check_shown(tab, number)
    key(tab, "Escape")
    assert shown(tab) is None


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
@pytest.mark.parametrize("tab", [390], indirect=True)
def test_a_tap_shows_the_image_and_one_elsewhere_hides_it(tab):
    tab.call("Emulation.setTouchEmulationEnabled", enabled=True)

    def tap(x, y):
        tab.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        tab.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    x, y = place_of(tab, 2)
    tap(x, y)
    tab.wait("!document.querySelector('.card').hidden", 5)
    check_shown(tab, 2)
    assert tab.value("document.documentElement.scrollWidth") == 390
    tap(x, y - 80)
    tab.wait("document.querySelector('.card').hidden", 5)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_a_picture_is_enlarged_and_closed_without_a_script(tab):
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    tab.call("Page.reload")
    tab.wait("document.readyState === 'complete'")
    assert tab.value("document.querySelector('.hint').hidden && document.querySelector('.card').hidden")
    width = "document.querySelector('img').getBoundingClientRect().width"
    assert tab.value(width) == 400
    tab.value("location.hash = 'large-embedding'")
    assert tab.value(width) == 800  # each pixel of the file
    assert tab.value("document.querySelector('.close').checkVisibility()")
    tab.value("document.querySelector('.close').click()")
    tab.wait("location.hash === '#picture-embedding'", 5)
    assert tab.value(width) == 400
