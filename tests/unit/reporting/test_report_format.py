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
    Image,
    Link,
    Model,
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
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "nav", "a", "section", "p",
        "div", "table", "tr", "th", "td", "pre", "details", "summary", "figure", "img",
        "figcaption"}
    assert reader.words.count(HOSTILE) == 11  # title twice, navigation, headings, text, fold, table…
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert images[0]["src"] == "data:image/png;base64,iVBORw==" and images[0]["alt"] == HOSTILE
    links = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    assert links[0] == "#training-log" and links[-1] == "https://a.b/?c=1&d='2'"
    ids = [attributes["id"] for tag, attributes in reader.tags if tag == "section"]
    assert [f"#{anchor}" for anchor in ids] == links[:2]
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
    policy = next(attributes["content"] for tag, attributes in reader.tags
                  if attributes.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(b"answer('<' < 1)").digest()).decode()
    assert f"script-src 'sha256-{digest}' 'wasm-unsafe-eval' blob:;" in policy
    assert policy.startswith("default-src 'none'; connect-src 'none'; img-src data:;")
    assert "H4sI" not in render_markdown("t", [Section("Try it", [block])])
    assert "Policy" not in render_html("t", SECTIONS)


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
    assert "http" not in page and "src=" not in page and "<link" not in page


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
