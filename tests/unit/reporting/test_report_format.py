import base64
import hashlib
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError

from cvkit.reporting.report_format import (
    Block,
    Code,
    Download,
    Image,
    Link,
    Model,
    Scatter,
    Section,
    Table,
    Text,
    UserMarkdown,
    render_html,
    render_markdown,
)

HOSTILE = "<script>alert('x')</script> & \"a|b\" `c` $d$ *e* [f](g) {{ 7 * 7 }} {% endfor %} {# h #}"
SECTIONS = [
    Section("Training log", [Text(HOSTILE), Code(HOSTILE + "\n```\nfenced", "yaml"),
                             Code("folded", title=HOSTILE), UserMarkdown(HOSTILE)]),
    Section(HOSTILE, [Table([HOSTILE, "b"], [[HOSTILE, Link(HOSTILE, "https://a.b/?c=1&d='2'")]]),
                      Image("cat", b"\x89PNG", 800, 400, HOSTILE)])]


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.words = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


def test_html_escapes_all_that_comes_from_a_run():
    page = render_html(HOSTILE, SECTIONS)
    assert "<script" not in page
    reader = Reader()
    reader.feed(page)
    assert {tag for tag, _ in reader.tags} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "nav", "main", "a", "section",
        "p", "div", "table", "tr", "th", "td", "pre", "details", "summary", "figure", "img",
        "figcaption"}
    assert reader.words.count(HOSTILE) == 12  # title and contents twice, headings, text, fold, table…
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert images[0]["src"] == "data:image/png;base64,iVBORw==" and images[0]["alt"] == HOSTILE
    links = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    assert links[:2] == ["#main", "#training-log"] and "https://a.b/?c=1&d='2'" in links
    ids = [attributes["id"] for tag, attributes in reader.tags if tag == "section"]
    assert [f"#{anchor}" for anchor in ids] == links[1:3] == links[3:5]  # beside the page, and above
    assert any(attributes.get("name") == "viewport" for _, attributes in reader.tags)


def test_a_model_brings_one_script_and_names_stay_text():
    facts = {"classes": [HOSTILE, "</script><!--", "cat"]}
    block = Model(HOSTILE, HOSTILE, facts, {"onnx": "H4sI+/="}, "answer('<' < 1)")
    page = render_html("t", [Section("Try it", [block])])
    reader = Reader()
    reader.feed(page)
    scripts = re.findall("<script(.*?)>(.*?)</script>", page)
    assert [kind for kind, _ in scripts] == [
        ' type="application/json" id="model-facts"',
        ' type="application/gzip;base64" id="model-onnx"', ""]
    assert json.loads(scripts[0][1]) == facts
    assert [content for _, content in scripts[1:]] == ["H4sI+/=", "answer('<' < 1)"]
    assert reader.words.count(HOSTILE) == 1  # of the paragraphs; the other has more in it
    policy = policy_of(page)
    assert f"script-src '{digest_of(scripts[2][1])}' 'wasm-unsafe-eval' blob:;" in policy
    assert policy.startswith("default-src 'none'; connect-src 'none'; img-src data:;")
    assert "H4sI" not in render_markdown("t", [Section("Try it", [block])])


def test_a_page_runs_its_own_scripts_alone():
    model = Model("a", "b", {"classes": []}, {}, "answer()")
    points = Scatter("cat", b"", 8, 4, "of cats", facts={"names": ["</script><script>alert(1)"]})
    page = render_html("t", [Section("Try it", [model]), Section("Classes", [points, points])])
    scripts = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    assert scripts[0] == "answer()" and "use strict" in scripts[1] and len(scripts) == 2
    first, second = map(digest_of, scripts)
    assert f"script-src '{first}' '{second}' 'wasm-unsafe-eval' blob:;" in policy_of(page)
    assert f"script-src '{second}'; base-uri" in policy_of(render_html("t", [Section("a", [points])]))
    assert "script-src 'none';" in policy_of(render_html("t", SECTIONS))
    assert "alert(1)" not in "".join(scripts) and page.count("<script") == 5
    assert "![of cats](images/cat.png)" in render_markdown("t", [Section("a", [points])])


def policy_of(page):
    reader = Reader()
    reader.feed(page)
    return next(attributes["content"] for _, attributes in reader.tags
                if attributes.get("http-equiv") == "Content-Security-Policy")


def digest_of(script):
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def test_a_table_to_keep_is_in_the_page_and_beside_the_readme():
    text = 'image,true\n"a, \'b\'.png",</script> & 猫\n'
    sections = [Section("Classes", [Download("embedding.csv", text)])]
    reader = Reader()
    reader.feed(render_html("t", sections))
    link = next(attributes for _, attributes in reader.tags if "download" in attributes)
    kind, _, letters = link["href"].partition(",")
    assert link["download"] == "embedding.csv" and kind == "data:text/csv;charset=utf-8;base64"
    assert base64.b64decode(letters).decode() == text
    assert "[embedding.csv](tables/embedding.csv)" in render_markdown("t", sections)


def test_a_reader_without_a_mouse_or_eyes_finds_everything():
    reader = Reader()
    reader.feed(render_html("t", SECTIONS))
    links = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    ids = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    assert links[0] == "#main" and {"#large-cat", "#picture-cat", "#contents"} <= set(links)
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    assert len(ids) == sum("id" in attributes for _, attributes in reader.tags)
    for tag, attributes in reader.tags:
        assert tag != "img" or attributes["alt"]
        assert tag != "nav" or attributes["aria-label"] == "Contents"
        assert tag != "html" or attributes["lang"] == "en"
    assert ":focus-visible" in "".join(reader.words) and "@media print" in "".join(reader.words)


def test_text_is_readable_by_day_and_by_night():
    page = render_html("t", SECTIONS)
    light, dark = (dict(re.findall(r"--(\w+): (#\w+)", part)) for part in page.split("prefers-color-scheme: dark")[:2])
    assert light.keys() == dark.keys() == {"text", "faint", "page", "line", "code", "link"}
    for colours in (light, dark):
        for text in ("text", "faint", "link"):
            for ground in ("page", "code"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def contrast(*colours):
    """Return the ratio that WCAG 2 defines."""
    def lightness(colour):
        whole = colour[1:] if len(colour) == 7 else "".join(2 * letter for letter in colour[1:])
        parts = [int(whole[place:place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted(map(lightness, colours))
    return (high + 0.05) / (low + 0.05)


def test_a_picture_has_a_title_of_its_own_only_beside_others():
    first, second = (Image(name, b"", 8, 4, f"of {name}", name.title()) for name in ("cats", "dogs"))
    alone = [Section("Pets", [first])]
    both = [Section("Cats", [first, Text("and"), second])]
    assert "<figcaption>of cats</figcaption>" in render_html("a", alone)
    assert "![of cats](images/cats.png)\n\nof cats\n" in render_markdown("a", alone)
    assert "<figcaption>of cats</figcaption>" in render_html("a", both)  # the section says it
    assert "<figcaption><b>Dogs.</b> of dogs</figcaption>" in render_html("a", both)
    assert "![of dogs](images/dogs.png)\n\n**Dogs.** of dogs\n" in render_markdown("a", both)


def test_html_needs_nothing_from_outside():
    page = render_html("a", SECTIONS[:1])
    assert "http:" not in page and "https:" not in page and "src=" not in page and "<link" not in page


def test_markdown_keeps_text_text():
    page = render_markdown(HOSTILE, SECTIONS)
    assert "\\<script\\>" in page and "a\\|b" in page and "\\`c\\` \\$d\\$" in page
    assert "````yaml\n" in page  # a longer fence than the one inside
    assert "(images/cat.png)" in page and "[Training log](#training-log)" in page
    table = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(table) == 3 and all(line.replace("\\|", "").count("|") == 3 for line in table)
    assert "<details><summary>&lt;script&gt;" in page
    assert f"\n\n{HOSTILE}\n\n" in page  # one's own Markdown
    assert page.count("{{ 7 \\* 7 }} {% endfor %} {\\# h \\#}") == 9  # values are no templates


@pytest.mark.parametrize("render", [render_html, render_markdown])
def test_a_block_that_a_template_does_not_know_is_told(render):
    @dataclass(frozen=True)
    class Sound(Block):
        text: str

    with pytest.raises(UndefinedError, match="Sound"):
        render("a", [Section("b", [Sound("c")])])
