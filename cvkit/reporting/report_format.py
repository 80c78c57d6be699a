"""A report's content, and its two forms: one HTML file, and Markdown with an `images/` folder."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class UserMarkdown:
    """The user's own Markdown: left as it is there, shown as plain text in HTML."""

    text: str


@dataclass(frozen=True)
class Link:
    """Text of a table's cell that leads somewhere."""

    text: str
    url: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; cells are text or links."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Link]]


@dataclass(frozen=True)
class Code:
    """Text as it is, in a fixed-width font; with a `title` it is folded away under that."""

    text: str
    language: str = ""
    title: str = ""


@dataclass(frozen=True)
class Image:
    """A PNG picture: its name without ending, its bytes, size in pixels, caption and title.

    The title is shown where a section has several pictures; it need not repeat the section's.
    """

    name: str
    png: bytes
    width: int
    height: int
    caption: str
    title: str = ""


Block = Text | UserMarkdown | Table | Code | Image


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


_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 62rem; padding: 0 1rem 4rem; color: #1b1b1b; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin: 1.5rem 0 .5rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .9rem; margin: 1rem 0; }
a { color: #0067b0; }
.wide { overflow-x: auto; } img { display: block; max-width: 100%; height: auto; }
.own { white-space: pre-wrap; }
figure { margin: 1rem 0; } figcaption { color: #555; font-size: .9rem; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .75rem .25rem 0; text-align: left;
  vertical-align: top; overflow-wrap: normal; }
pre { overflow-x: auto; background: #f6f6f6; padding: .75rem; font-size: .8rem; line-height: 1.4;
  overflow-wrap: normal; }
summary { cursor: pointer; color: #0067b0; margin: .5rem 0; }
@media (max-width: 40rem) { pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  table { font-size: .8rem; } th, td { padding-right: .4rem; } }
"""


def render_html(title: str, sections: Sequence[Section]) -> str:
    """Return one page with its pictures inside. Whatever comes from the run is escaped."""
    links = "\n".join(f'<a href="#{html.escape(part.anchor)}">{html.escape(part.title)}</a>'
                      for part in sections)
    body = "\n".join(
        f'<section id="{html.escape(part.anchor)}">\n<h2>{html.escape(part.title)}</h2>\n'
        + "\n".join(map(_block_html, part.captioned)) + "\n</section>" for part in sections)
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{html.escape(title)}</h1>\n<nav>\n{links}\n</nav>\n{body}\n</body>\n</html>\n")


def _block_html(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, UserMarkdown):
        return f'<p class="own">{html.escape(block.text.strip())}</p>'
    if isinstance(block, Table):
        header = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.header)
        rows = "".join("<tr>" + "".join(f"<td>{_cell_html(cell)}</td>" for cell in row) + "</tr>\n"
                       for row in block.rows)
        return f'<div class="wide"><table>\n<tr>{header}</tr>\n{rows}</table></div>'
    if isinstance(block, Code):
        code = f"<pre>{html.escape(block.text)}</pre>"
        return (f"<details><summary>{html.escape(block.title)}</summary>{code}</details>"
                if block.title else code)
    data = base64.b64encode(block.png).decode()
    title = f"<b>{html.escape(block.title)}.</b> " if block.title else ""
    # A picture is never wider than the page, and sharp enough to be enlarged by two fingers.
    return (f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(block.caption)}" '
            f'width="{block.width}" height="{block.height}">'
            f"<figcaption>{title}{html.escape(block.caption)}</figcaption></figure>")


def _cell_html(cell: str | Link) -> str:
    if isinstance(cell, Link):
        return f'<a href="{html.escape(cell.url)}">{html.escape(cell.text)}</a>'
    return html.escape(cell)


def render_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return GitHub's Markdown; pictures are expected in `images/`."""
    links = " · ".join(f"[{_escape(part.title)}](#{part.anchor})" for part in sections)
    body = "\n\n".join(f"## {_escape(part.title)}\n\n" + "\n\n".join(
        map(_block_markdown, part.captioned)) for part in sections)
    return f"# {_escape(title)}\n\n{links}\n\n{body}\n"


def _block_markdown(block: Block) -> str:
    if isinstance(block, Text):
        return _escape(block.text)
    if isinstance(block, UserMarkdown):
        return block.text.strip()
    if isinstance(block, Table):
        lines = [map(_escape, block.header), ["---"] * len(block.header),
                 *([_cell_markdown(cell) for cell in row] for row in block.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if isinstance(block, Code):
        longest = max(map(len, re.findall("`+", block.text)), default=0)
        fence = "`" * max(3, longest + 1)
        code = f"{fence}{block.language}\n{block.text.rstrip()}\n{fence}"
        title = html.escape(" ".join(block.title.split()))
        return (f"<details><summary>{title}</summary>\n\n{code}\n\n</details>"
                if block.title else code)
    title = f"**{_escape(block.title)}.** " if block.title else ""
    caption = _escape(block.caption)
    return f"![{caption}](images/{block.name}.png)\n\n{title}{caption}"


def _cell_markdown(cell: str | Link) -> str:
    text = _escape(cell.text if isinstance(cell, Link) else cell)
    url = quote(cell.url, safe="/:#?&=%+~@,;") if isinstance(cell, Link) else ""
    return f"[{text}]({url})" if url else text


def _escape(text: str) -> str:
    """Return text as Markdown that shows it, on one line: no HTML, links, lists or formulas."""
    text = " ".join(text.split())
    text = re.sub(r"([\\`*_\[\]<>|#$~&])", r"\\\1", text)
    return re.sub(r"^(\d*)([-+.)=])(?=[ =-]|$)", r"\1\\\2", text)  # no list, no line
