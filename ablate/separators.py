"""What separates the columns of a text table: a comma, or what other programs write instead."""

import csv
import itertools
from pathlib import Path

SEPARATORS = (",", ";", "\t", "|")


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
