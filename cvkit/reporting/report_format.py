"""A report's content, and its two forms: one HTML file, and Markdown with an `images/` folder.

What they look like stands in `templates/`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

# Bytes of a file that a page holds; a larger one would make the page slow.
_LARGEST_FILE = 1_000_000


class Block:
    """A part of a section."""

    @property
    def kind(self) -> str:
        """What templates tell it by: the name of its class."""
        return type(self).__name__


@dataclass(frozen=True)
class Text(Block):
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class UserMarkdown(Block):
    """The user's own Markdown: left as it is there, shown as plain text in HTML."""

    text: str


@dataclass(frozen=True)
class Link:
    """Text of a table's cell that leads somewhere."""

    text: str
    url: str

    @property
    def quoted_url(self) -> str:
        """The address without what would end it in Markdown."""
        return quote(self.url, safe="/:#?&=%+~@,;")


@dataclass(frozen=True)
class Table(Block):
    """Rows of cells under a header; cells are text or links."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Link]]


@dataclass(frozen=True)
class Code(Block):
    """Text as it is, in a fixed-width font; with a `title` it is folded away under that."""

    text: str
    language: str = ""
    title: str = ""

    @property
    def fence(self) -> str:
        """The line around it in Markdown: more backticks than stand in a row in the text."""
        return "`" * max(3, 1 + max(map(len, re.findall("`+", self.text)), default=0))


@dataclass(frozen=True)
class Image(Block):
    """A PNG picture: its name without ending, its bytes, size in pixels, caption and title.

    The title is shown where a section has several pictures; it need not repeat the section's.
    """

    name: str
    png: bytes
    width: int
    height: int
    caption: str
    title: str = ""

    @property
    def base64(self) -> str:
        """The bytes as letters, for a page that holds its pictures."""
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Scatter(Image):
    """A picture with points, each of which stands for an image that the HTML page shows.

    Attributes:
        facts: for scatter.js: places, names, true, predicted, classes, and the images in one.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Download(Block):
    """A text file that a reader may keep: in `tables/`, and, if small, in the HTML page itself."""

    name: str
    text: str

    @property
    def url(self) -> str:
        """The address of the file on a page: the file itself, as letters, or where it lies."""
        content = self.text.encode()
        if len(content) > _LARGEST_FILE:
            return f"tables/{self.name}"
        return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class Model(Block):
    """A model that the HTML page runs by itself.

    Attributes:
        what: a sentence or two on what it is.
        exactness: how near its numbers are to the run's.
        facts, files, script: see `cvkit.deployment.page.PageModel`.
    """

    what: str
    exactness: str
    facts: Mapping[str, Any]
    files: Mapping[str, str]
    script: str


@dataclass(frozen=True)
class Section:
    """A titled part of a report."""

    title: str
    blocks: Sequence[Block]

    @property
    def captioned(self) -> list[Block]:
        """The blocks, pictures without titles that the section's title says already."""
        is_one = sum(isinstance(block, Image) for block in self.blocks) == 1
        return [replace(block, title="") if isinstance(block, Image) and (
            is_one or block.title == self.title) else block for block in self.blocks]

    @property
    def anchor(self) -> str:
        """The fragment that leads to it, as GitHub makes it from the title."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")


def _as_markdown(value: object) -> Markup:
    """Return Markdown that shows a text, on one line: no HTML, links, lists or formulas."""
    if isinstance(value, Markup):
        return value
    text = " ".join(str(value).split())
    text = re.sub(r"([\\`*_\[\]<>|#$~&])", r"\\\1", text)
    # What starts a list or underlines a heading does so at the start only.
    return Markup(re.sub(r"^(\d*)([-+.)=])(?=[ =-]|$)", r"\1\\\2", text))


_HTML = Environment(loader=PackageLoader("cvkit.reporting"), autoescape=True, trim_blocks=True,
                    lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
# Autoescape leaves what is Markup already, so that here all is escaped as Markdown instead.
_MARKDOWN = _HTML.overlay(finalize=_as_markdown)


def render_html(title: str, sections: Sequence[Section]) -> str:
    """Return one page with its pictures inside. Whatever comes from the run is escaped.

    Args:
        title: what stands on top, and in the browser's tab.
        sections: in their order on the page.
    """
    blocks = [block for section in sections for block in section.blocks]
    model = next((block for block in blocks if isinstance(block, Model)), None)
    has_points = any(isinstance(block, Scatter) for block in blocks)
    script = (Path(__file__).parent / "templates" / "scatter.js").read_text(encoding="utf-8")
    scripts = [*([model.script] if model else []), *([script] if has_points else [])]
    return _HTML.get_template("report.html.j2").render(
        title=title, sections=sections, policy=_policy(scripts, model is not None),
        script=script if has_points else "")


def _policy(scripts: Sequence[str], has_model: bool) -> str:
    """Return what a page may do: run these scripts alone, and load nothing from anywhere."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
               for script in scripts]
    may_run = [*(f"'sha256-{digest}'" for digest in digests),
               *(["'wasm-unsafe-eval'", "blob:"] if has_model else [])] or ["'none'"]
    return ("default-src 'none'; connect-src 'none'; img-src data:; style-src 'unsafe-inline'; "
            f"script-src {' '.join(may_run)}; base-uri 'none'; "
            "form-action 'none'")


def render_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return GitHub's Markdown. Whatever comes from the run is escaped, save the user's own.

    Args:
        title: what stands on top.
        sections: in their order; their pictures are expected in `images/`, each under its name.
    """
    return _MARKDOWN.get_template("README.md.j2").render(title=title, sections=sections)
