"""Reading a table of a row for each image: a CSV file, however its fields are separated."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cvkit.data.assembly import not_there
from cvkit.data.images import IMAGE_ENDINGS
from cvkit.errors import DataError
from cvkit.system.text import and_more, plural, suggest

TABLE_ENDINGS = (".csv", ".tsv")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


class Row(NamedTuple):
    """A row that is not blank, and its place, which is the line it begins in: "labels.csv:3"."""

    place: str
    fields: list[str]


class Table:
    """The rows of a CSV file in UTF-8. Blank ones, and blanks around fields, are passed over.

    Args:
        path: the file.
        header: whether the first row holds names; "auto": unless a field of it names an image.
        delimiter: what separates fields; None for comma, semicolon, tab or bar, as it seems.
        names_image: tells whether a field names an image.

    Attributes:
        names: of the columns, or None.
        rows: without that of the names.
        form: what was found out, in words, where it is not the usual.

    Raises:
        DataError: no such file, no text, no rows, or rows of different length; with the line.
        ValueError: such a delimiter cannot be.
    """

    def __init__(self, path: str, header: bool | str = "auto", delimiter: str | None = None,
                 names_image: Callable[[str], bool] | None = None):
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise ValueError(f"delimiter is one character, not {delimiter!r}")
        self.path = _existing_file(path)
        text = _text(self.path)
        self._delimiter = delimiter or _likely_delimiter(text)
        rows = self._read(text)
        if not rows:
            raise DataError(f"{path} is empty",
                            hint="It has a row for each image: its file and its label.")
        self.width = len(rows[0].fields)
        if self.width < 2:
            raise DataError(f"{path} has a single column: {rows[0].fields[0]}",
                            hint="Other than commas, semicolons, tabs and bars, what separates its "
                                 "fields has to be said, a space for example: "
                                 "DATA.DATASET.delimiter \"' '\".")
        is_named = any(map(names_image or is_image, rows[0].fields))
        has_names = not is_named if header == "auto" else header
        self.names = rows[0].fields if has_names else None
        self.rows = rows[1:] if has_names else rows
        if not self.rows:
            raise DataError(f"{path} has one row, which is taken for the names of its columns",
                            hint="If it is that of an image: DATA.DATASET.header false.")
        for row in self.rows:
            if len(row.fields) != self.width:
                raise DataError(f"{plural(len(row.fields), 'field')} instead of {self.width}",
                                where=row.place, hint="What separates fields may stand in one that "
                                                      'is quoted: "cat, black".')
        separated = _DELIMITERS.get(self._delimiter, repr(self._delimiter))
        self.form = ", ".join([f"separated by {separated}"] * (self._delimiter != ",")
                              + ["without a header"] * (not has_names))

    def _read(self, text: str) -> list[Row]:
        # Python takes no blank for a delimiter that is to be passed over as well.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter, strict=True,
                            skipinitialspace=self._delimiter != " ")
        rows, line = [], 1
        try:
            for fields in reader:
                row = Row(f"{self.path}:{line}", [field.strip() for field in fields])
                rows += [row] if any(row.fields) else []
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"this row cannot be read: {error}", where=f"{self.path}:{line}",
                            hint="A field that begins with a quote ends with one, and quotes in it "
                                 'are doubled: "a ""big"" cat".') from None
        return rows

    def called(self, column: int) -> str:
        """Return a column's name, or else its number."""
        return str(column) if self.names is None else self.names[column]

    def column(self, name: str | int, key: str) -> int:
        """Return the number of a column, which the config names, or has, under a key.

        Raises:
            DataError: there is none, or there are several.
        """
        if isinstance(name, int):
            if not 0 <= name < self.width:
                raise DataError(f"{self.path} has no column {name}", where=key,
                                hint=f"They have the numbers 0 to {self.width - 1}.")
            return name
        names = self.names or []
        if names.count(name) != 1:
            count, hint = ("two columns", "Give its number, from 0.") if name in names else (
                "no column", suggest(name, names) or "Without a header they have numbers, from 0.")
            raise DataError(f"{self.path} has {count} {name!r}", where=key, hint=hint)
        return names.index(name)


def is_image(name: str) -> bool:
    """Tell whether a name ends as those of image files do."""
    return name.lower().endswith(IMAGE_ENDINGS)


def _existing_file(path: str) -> Path:
    file = Path(path)
    place = file if file.is_dir() else file.parent
    tables = [each for each in sorted(place.glob("*")) if each.suffix.lower() in TABLE_ENDINGS]
    if file.is_dir():
        raise DataError(f"{path} is a folder, not a CSV file",
                        hint=f"Name the file in it: {and_more(list(map(str, tables)), 5)}."
                             if tables else "Images in a folder for each class are read by "
                             f"{{NAME: ImageFolder, root: {path}}}.")
    if not file.is_file():
        raise not_there("file", path, tables)
    return file


def _text(path: Path) -> str:
    """Return what is in a file of UTF-8, without the mark that it may begin with."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    text, wrong = "", data.find(b"\0")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong >= 0:
        raise DataError(f"this is no text in UTF-8 (byte 0x{data[wrong]:02x})",
                        where=f"{path}:{data.count(10, 0, wrong) + 1}",
                        hint="Save the table as CSV in UTF-8, as editors and spreadsheets offer.")
    return text


def _likely_delimiter(text: str) -> str:
    """Return with what most rows have as many fields as the first one, and that many."""
    def fit(delimiter: str) -> tuple[bool, float, int]:
        # No field of so short a text is too long for the reader.
        rows = filter(None, csv.reader(io.StringIO(text[:100_000], newline=""),
                                       delimiter=delimiter, skipinitialspace=True))
        counts = list(map(len, rows)) or [0]
        return counts[0] > 1, counts.count(counts[0]) / len(counts), counts[0]

    return max(_DELIMITERS, key=fit)
