"""CSV files: text that a spreadsheet must not take for a formula, and what separates columns.

Spreadsheets run a cell that begins with = + - @, a tab or a carriage return. A name can come from
anybody: of a level, a column, a task. So text that begins so is written behind an apostrophe, as
OWASP advises for CSV injection, and read without it. Text that begins with apostrophes
before such a character gets one more, so that what is read is what was written. Plain numbers stay
as they are, as text too: a spreadsheet reads a number.
"""

import csv
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

MARK = "'"
STARTS = "=+-@\t\r\n＝＋－＠"  # the wide ones are taken for the narrow ones in some locales
_FORMULA = re.compile(f"{MARK}*[{re.escape(STARTS)}]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def guarded(value: object) -> object:
    """Return text as it is written into a cell, anything else as it is."""
    risky = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"{MARK}{value}" if risky else value


def unguarded(value: object) -> object:
    """Return what `guarded` made the text in a cell from."""
    marked = isinstance(value, str) and value.startswith(MARK) and _FORMULA.match(value)
    return value[1:] if marked and isinstance(value, str) else value


def write_csv(table: "pd.DataFrame", file: Path) -> None:
    """Write a table without its index, names of columns and texts guarded."""
    _changed(table, guarded).to_csv(file, index=False)


def read_back(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a table as it was before `write_csv`."""
    return _changed(table, unguarded)


def _changed(table: "pd.DataFrame", change: Callable[[object], object]) -> "pd.DataFrame":
    import pandas as pd  # not where a table of rates alone is written

    found = table.rename(columns={name: change(name) for name in table.columns})
    for place, (_, column) in enumerate(table.items()):
        if not pd.api.types.is_numeric_dtype(column):
            made = [change(value) for value in column]
            if any(new is not old for new, old in zip(made, column, strict=True)):
                kept = object if isinstance(column.dtype, pd.CategoricalDtype) else column.dtype
                found.isetitem(place, pd.Series(made, dtype=kept).array)
    return found


SEPARATORS = (",", ";", "\t", "|")  # a comma, or what other programs write instead


def separator_of(file: Path) -> str:
    """Return the character that cuts the header into several columns, best as many as the rows.

    Raises:
        csv.Error, OSError, UnicodeError: the file cannot be read.
    """
    columns: dict[str, tuple[bool, int]] = {}
    for separator in SEPARATORS:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            first = itertools.islice(csv.reader(stream, delimiter=separator), 20)
            counts = [len(fields) for fields in first if fields]
        if counts and counts[0] > 1:
            columns[separator] = len(set(counts)) == 1, counts[0]
    return max(columns, key=lambda each: columns[each], default=",")
