"""The columns of a table as it was read: numbers as numbers, names as text, in numpy's types."""

import contextlib
import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_hashable

from ablate.results.spreadsheet import read_back, separator_of
from analysis.errors import AnalysisError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
NEEDED = ("train_key", "task", "metric", "value")  # what makes a table one of ours


def is_results(columns: Iterable[object]) -> bool:
    """Return whether a table with these columns is one of results: ours, with a weight."""
    names = set(map(str, columns))
    return set(NEEDED) <= names and bool(names & {"plw", "effective_plw", "wp"})


def read_text(file: Path, separator: str | None = None) -> pd.DataFrame:
    """Return the table in a text file.

    Without `separator` its columns are cut where the header has several. Numbers may have a decimal
    comma where the columns are not cut at commas.

    The words None, NA, null, ... are missing values in a column of numbers and levels in a column
    of names, where only an empty field is missing. In a results table `null` is the level of a
    setting that is switched off, also among numbers.
    """
    with contextlib.suppress(csv.Error, UnicodeError):
        separator = separator or separator_of(file)
    separator = separator or ","
    with (
        file.open(encoding="utf-8-sig", newline="") as stream,  # pandas would rename the second
        contextlib.suppress(csv.Error),
    ):
        _check_once([name.strip() for name in next(csv.reader(stream, delimiter=separator), [])])
    table = pd.read_csv(file, sep=separator)
    if separator != ",":
        other = pd.read_csv(file, sep=separator, decimal=",")
        counts = [len(t.select_dtypes("number").columns) for t in (table, other)]
        table = other if counts[1] > counts[0] else table
    ours = set(NEEDED) <= {str(name).strip() for name in table.columns}
    holed = [i for i, name in enumerate(table.columns) if _names(table[name], ours)]
    if holed:
        text = pd.read_csv(
            file, sep=separator, usecols=holed, dtype=str, keep_default_na=False, na_values=[""]
        )
        for name in text.columns:
            settled = ours and "." in str(name) and not _names(table[name]) and not _off(text[name])
            if not settled and text[name].notna().any():
                table[name] = text[name]
    return read_back(table)


def _names(column: "pd.Series[Any]", settings: bool = False) -> bool:
    """Return whether a column with missing values holds names; by request, whether it may."""
    if not column.isna().any():
        return False
    if pd.api.types.is_numeric_dtype(column):
        return bool(column.isna().all()) or (settings and "." in str(column.name))
    return not column.dropna().map(lambda value: isinstance(value, bool)).all()


def _off(column: "pd.Series[Any]") -> bool:
    return bool((column == "null").any())


def plain_types(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with numpy's types: what is nullable or of Arrow becomes plain.

    Text and its missing values become those of `str` columns, nullable numbers floats where a
    value is missing, categories of nullable text categories of plain text, lists text. Names of
    columns are one line without blanks at their ends.

    Raises:
        AnalysisError: two columns have one name, or one has a control character in its name.
    """
    names = [re.sub(r"\s*[\r\n\t]\s*", " ", str(name)).strip() for name in table.columns]
    if odd := [name for name in names if _CONTROL.search(name)]:
        raise AnalysisError(f"table: the column {odd[0]!r} has a control character in its name")
    _check_once(names)
    if names != list(table.columns):
        table = table.set_axis(names, axis="columns")
    changed = {n: _plain(table[n]) for n in names if _is_extension(table[n].dtype)}
    nested = [n for n in names if table[n].dtype == object and not table[n].map(is_hashable).all()]
    changed |= {n: table[n].map(_written) for n in nested}
    return table.assign(**changed) if changed else table


def _check_once(names: list[str]) -> None:
    """Refuse two columns with one name; columns without one may be several."""
    if twice := [name for name in names if name and names.count(name) > 1]:
        count = names.count(twice[0])
        raise AnalysisError(f"table: {count} columns are called {twice[0]!r}; rename them")


def _written(value: Any) -> Any:
    """Return a list, an array or a dictionary as text."""
    return value if is_hashable(value) else str(getattr(value, "tolist", lambda: value)())


def _is_extension(dtype: Any) -> bool:
    if isinstance(dtype, pd.CategoricalDtype):
        return _is_extension(dtype.categories.dtype)
    if isinstance(dtype, pd.StringDtype):
        return dtype.na_value is pd.NA
    return isinstance(dtype, pd.ArrowDtype) or hasattr(dtype, "numpy_dtype")


def _plain(column: "pd.Series[Any]") -> "pd.Series[Any]":
    if isinstance(column.dtype, pd.CategoricalDtype):
        names = column.cat.categories
        return column.cat.rename_categories(_plain(names.to_series()).tolist())
    if pd.api.types.is_bool_dtype(column):
        return column.astype(object if column.isna().any() else bool).where(column.notna(), None)
    if pd.api.types.is_integer_dtype(column) and not column.isna().any():
        return column.astype("int64")
    if pd.api.types.is_numeric_dtype(column):
        return column.astype("float64")
    if pd.api.types.is_string_dtype(column):
        return column.astype("str")
    return column.astype(object)
