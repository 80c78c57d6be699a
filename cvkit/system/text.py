"""Words for messages: plurals, suggestions, corrections, and text that is safe to show."""

from __future__ import annotations

import difflib
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Any

# Unicode's categories Cc, Zl, Zp and Cs, and what turns round the direction of what follows. One
# expression: a report's pictures are millions of letters.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str, keep: str = "") -> str:
    """Return text with control characters as `\\x1b`: names of files may hold any.

    A terminal would obey them, a line would end; half a character (of a file name that is not
    UTF-8) could not be written at all.

    Args:
        keep: control characters that are left.
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else
                         found[0].encode("unicode_escape").decode(), text)


# Names of arguments differ by words that qualify the thing which is set, and things were renamed.
_QUALIFIERS = {"min", "max", "lower", "upper", "limit", "range", "rate", "always"}
_RENAMED = {"value": "fill", "val": "fill", "cval": "fill", "var": "std", "height": "size",
            "width": "size", "apply": "p", "prob": "p", "probability": "p", "learning": "lr",
            "wd": "decay"}


def _likeness(name: str, other: str) -> float:
    """Return what part of two names' words is the same: 1 for max_holes and holes_range."""
    words, others = (set(text.split("_")) - _QUALIFIERS for text in (name, other))
    renamed = {_RENAMED.get(word, word) for word in words}
    return max(len(mine & others) / len(mine | others) if mine and others else 0
               for mine in (words, renamed))


def plural(count: int, word: str) -> str:
    """Return "1 epoch", "2 epochs" or "1,563 batches" of "epoch" and "batch"."""
    ending = "" if count == 1 else "es" if re.search("(s|x|sh|tch)$", word) else "s"
    return f"{count:,} {word}{ending}"


def and_more(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """Return the first items in a row, and how many more there are."""
    rest = f" and {len(items) - most:,} more" if len(items) > most else ""
    return separator.join(items[:most]) + rest


def in_columns(rows: Iterable[Sequence[object]], *forms: str) -> list[str]:
    """Return a line for each row, with cells below each other and two spaces between columns.

    Args:
        rows: of cells, as many in each; one of a single cell stands as it is.
        forms: of the columns: "<", as they are by default, or ">" for numbers, and the least width.
    """
    lines = [[str(cell) for cell in row] for row in rows]
    columns = zip(*(line for line in lines if len(line) > 1))
    wide = [(form[0], max(int(form[1:] or 0), *map(_width, column)))
            for form, column in zip(chain(forms, repeat("<")), columns)]
    return ["  ".join(map(_padded, line, wide)).rstrip() if len(line) > 1 else line[0]
            for line in lines]


def _padded(cell: str, form: tuple[str, int]) -> str:
    side, width = form
    blank = " " * (width - _width(cell))
    return f"{blank}{cell}" if side == ">" else f"{cell}{blank}"


def _width(text: str) -> int:
    """Return how many places a terminal gives a text: two to the wide letters of East Asia."""
    return sum(0 if unicodedata.combining(letter) else
               2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def cut(text: str, most: int) -> str:
    """Return a text of so many letters at most, without the middle of a longer one."""
    rest = most // 2
    return text if len(text) <= most else f"{text[:most - rest - 1]}…{text[-rest:]}"


def show_what_can_be_shown() -> None:
    """Let screens, pipes and files that lack a letter show "?" for it, from now on.

    The output of Windows, cron and old terminals is often not UTF-8, and "×" would end a training.
    """
    for stream in (sys.stdout, sys.stderr):
        # A notebook's stream, or a test's, cannot be told so, and takes all letters.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def suggest(name: object, allowed: Iterable[str], listed: int = 12) -> str:
    """Return "Did you mean …?" and the allowed names, the nearest first, at most `listed`."""
    allowed = [str(item) for item in allowed]
    near = nearest(name, allowed)[:listed]
    parts = [f"Did you mean {near[0]}?"] if near else []
    if allowed:
        if len(allowed) > listed:
            allowed = near + [item for item in allowed if item not in near]
        parts.append(f"Allowed: {and_more(allowed, listed)}.")
    return " ".join(parts)


def nearest(name: object, allowed: Iterable[str]) -> list[str]:
    """Return those of the allowed names that may be meant: spelt alike or of the same words."""
    word = str(name).lower()
    by_lower = {item.lower(): item for item in reversed(list(allowed))}
    likeness = {item: _likeness(word, item) for item in by_lower} if len(word) < 100 else {}
    spelt_alike = difflib.get_close_matches(word, by_lower, n=len(by_lower) or 1, cutoff=0.6)
    similar = sorted((item for item in likeness if likeness[item] >= 1 / 3),
                     key=lambda item: -likeness[item])
    same = [item for item in similar if likeness[item] == 1]
    return [by_lower[item] for item in dict.fromkeys([*same, *spelt_alike, *similar])]


def correction(value: object, kinds: Iterable[type]) -> str:
    """Return "Write 0.1." for a value that means one of those kinds but is written otherwise.

    Args:
        value: from a config, such as "10%", "0,1", "None", 2.0.
        kinds: types that it may have.

    Returns:
        The sentence, or nothing if no such value is meant.
    """
    kinds = set(kinds)
    meant = None
    if isinstance(value, str):
        text = value.strip(" '\"").lower()
        number = text.removesuffix("%").strip().replace("_", "")
        thousands = re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+", number) and int in kinds
        number = number.replace(",", "" if thousands else ".")
        if type(None) in kinds and text in ("none", "nil"):
            meant = "null"
        elif bool in kinds and text in ("yes", "on", "true", "no", "off", "false"):
            meant = "true" if text in ("yes", "on", "true") else "false"
        elif kinds & {int, float} and re.fullmatch(
                r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", number):
            percent = text.endswith("%")
            figure = float(number) / 100 if percent else float(number)
            if figure.is_integer() and int in kinds:
                meant = f"{figure:.0f}"
            elif float in kinds:
                meant = f"{figure:g}" if percent else number
        elif list in kinds and re.fullmatch(r"\(.*\)", text):
            meant = f"[{value.strip()[1:-1]}]"
        if meant is not None and meant == text:
            return f"Write {meant} without quotes."
    elif isinstance(value, float) and int in kinds and value.is_integer():
        meant = f"{value:.0f}"
    elif bool in kinds and value in (0, 1):
        meant = "true" if value else "false"
    elif list in kinds and isinstance(value, (int, float)):
        meant = f"[{value}]"
    return f"Write {meant}." if meant is not None else ""


def duration(seconds: float) -> str:
    """Return a time in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def harmless_cell(cell: Any) -> Any:
    """Return a cell of a CSV, text so that no spreadsheet takes it for a formula."""
    if not isinstance(cell, str):
        return cell
    text = escape_controls(cell, keep="\n\t")
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
