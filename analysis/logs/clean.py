"""What logs say, made fit for use: text without control characters, scores that are numbers."""

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

# Control characters, line and paragraph separators, marks that turn the direction of writing, and
# halves of surrogate pairs: each may change what a terminal, a page or a file shows.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
MARK = "\N{REPLACEMENT CHARACTER}"
LARGEST = 1e50  # of a score: the fourth power of larger ones is no number of 64 bits


def text(value: str) -> str:
    """Return text with every control character replaced by `MARK`."""
    return CONTROL.sub(MARK, value)


def texts(values: Mapping[str, object]) -> dict[str, str]:
    """Return names and values, as text without control characters."""
    return {text(str(name)): text(str(value)) for name, value in values.items()}


def columns(table: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """Return a table of which the text in some columns has no control characters."""
    for name in names:
        own = table[name].astype(str)
        known = {value: text(value) for value in own.unique()}
        if any(value != clean for value, clean in known.items()):
            table = table.assign(**{name: own.map(known)})
    return table


def numbers(table: pd.DataFrame, name: str) -> tuple[pd.DataFrame, int]:
    """Return a table whose column has NaN for infinite and absurd values, and how many were."""
    value = pd.to_numeric(table[name], errors="coerce").astype(float)
    wrong = np.abs(value) > LARGEST
    count = int(wrong.sum())
    return (table.assign(**{name: value.mask(wrong)}) if count else table), count
