"""The runs of a study under all their names, by the levels of the study's factors.

A run that is reached by several names (masking=instruction at any prompt loss weight is one run)
stands under each of them, so that a view of any factor finds it; it is counted once. Of a table
from elsewhere every row that was fitted is a run, and the columns of its model are the factors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.errors import AnalysisError
from analysis.regression.model import Regression
from analysis.regression.study import Study
from analysis.table.factors import (
    FULL,
    NO_RANK,
    Factor,
    in_order,
    is_number,
    level_text,
    most_common,
)

Codes = npt.NDArray[np.int64]
# Factors of an alias that may differ from those of the run's first name: all else is the run's.
OF_NAMES = ("masking", "plw", "completion_weight", "normaliser", "scope")
ROW = "(row)"  # how the column begins that has the place of a row of a table
MISSING, EMPTY = "(missing)", "(empty)"  # levels of a table that have no text
MOST_LEVELS = 60  # of a factor that can be chosen, and whose levels can be filtered
MOST_ROWS = 20_000
PAIRS = (("masking", "plw"), ("adapter", "rank"))  # looked up together: half of one says nothing


@dataclass(frozen=True)
class Column:
    """One factor as a page shows it: its levels as text in their order, and a code per name."""

    factor: Factor
    levels: tuple[str, ...]
    codes: Codes  # (names,)

    @property
    def column(self) -> str:
        """The factor's column in the table of results."""
        return self.factor.column


@dataclass(frozen=True)
class Names:
    """The names of a study's runs; `run` is the position of the run of every name."""

    run: Codes
    columns: tuple[Column, ...]
    runs: pd.DataFrame  # a row per run: its key, and the levels of its first name
    key: str = "run"  # the column that names a run, of the rows of models as well

    def __getitem__(self, column: str) -> Column:
        return next(c for c in self.columns if c.column == column)

    @property
    def first(self) -> npt.NDArray[np.bool_]:
        """Which names are the first of their runs."""
        return ~pd.Series(self.run).duplicated().to_numpy()

    def together(self) -> list[tuple[int, int]]:
        """Return the pairs of factors whose levels occur in some combinations alone by design.

        One level determines the other, or the two are one dose or one arm.
        """
        found = []
        for a, first in enumerate(self.columns):
            for b in range(a + 1, len(self.columns)):
                second = self.columns[b]
                pair = {first.column, second.column}
                if any(pair == set(own) for own in PAIRS) or _determined(first, second):
                    found.append((a, b))
        return found


def names_of(study: Study) -> Names:
    """Return the names of the runs of a study."""
    rows = study.rows.drop_duplicates("run").reset_index(drop=True)
    factors = [f for f in study.factors if f.part != "control" and f.column in rows]
    levels = {f.column: _texts(rows, f) for f in factors}
    own = pd.DataFrame({"run": np.arange(len(rows))} | levels)
    every = _with_aliases(own, rows["run"].astype(str), study.raw, [f.column for f in factors])
    columns = tuple(_column(f, every[f.column]) for f in factors)
    return Names(every["run"].to_numpy(), columns, rows)


def with_places(reg: Regression) -> tuple[Regression, str]:
    """Return a regression whose `used` has the places of its rows, and that column's name."""
    used, name = reg.used, ROW
    while name in used:
        name += "_"
    return replace(reg, frame=used.assign(**{name: np.arange(len(used))})), name


def names_of_table(reg: Regression, key: str = ROW) -> Names:
    """Return the names of the rows of a regression, of `with_places`.

    Factors are the columns of the fixed part, the prompt loss weight for its power w_p, and the
    groups of the random part. A number of more than `MOST_LEVELS` values is none.

    Raises:
        AnalysisError: the table is too large for a page, or a factor has too many levels.
    """
    rows = reg.used.reset_index(drop=True)
    if len(rows) > MOST_ROWS:
        raise AnalysisError(f"{len(rows):,} rows are more than the {MOST_ROWS:,} of an explorer")
    fixed = [shown_as(n, rows, own_wp=reg.own_wp) for n in reg.fit.design.needed]
    groups = [n for bar in reg.asked.design.parsed.bars for n in bar.group]  # dropped ones as well
    columns = []
    for name in dict.fromkeys([*fixed, *groups]):
        factor, texts = _of_table(rows[name], replicate=name not in fixed)
        if texts.nunique() > MOST_LEVELS:
            if name in fixed and not is_number(rows[name]):
                raise AnalysisError(f"{name} has {texts.nunique():,} levels, too many for a page")
            continue
        columns.append(_column(factor, texts))
    return Names(np.arange(len(rows)), tuple(columns), rows, key)


def shown_as(column: str, rows: pd.DataFrame, *, own_wp: bool) -> str:
    """Return the column that is shown for one of a model."""
    return "plw" if column == "wp" and not own_wp and "plw" in rows else column


def _of_table(values: "pd.Series[Any]", *, replicate: bool) -> tuple[Factor, "pd.Series[str]"]:
    """Return a column of a table as a factor, and its levels as text, a row each.

    Levels stand in the order of a categorical column, else by size and name, missing ones last;
    different levels have different texts.
    """
    known = values.dropna()
    if isinstance(values.dtype, pd.CategoricalDtype):
        there = set(known)
        levels = [level for level in values.cat.categories if level in there]
    else:
        levels = sorted(known.unique(), key=in_order)
    texts: list[str] = []
    for level in levels:
        text = level_text(level) or EMPTY
        if text in texts and isinstance(level, float):
            text = repr(float(level))
        while text in texts:
            text += "'"
        texts.append(text)
    missing = MISSING
    while missing in texts:
        missing += "'"
    text_of = dict(zip(levels, texts, strict=True))
    own = values.astype(object).map(text_of).fillna(missing).astype(str)
    if values.isna().any():
        texts.append(missing)
    factor = Factor(
        column=str(values.name),
        name=str(values.name),
        part="replicate" if replicate else "setting",
        kind="number" if is_number(values) else "categories",
        levels=tuple(texts),
        reference=most_common(own, texts)[0],
    )
    return factor, own


def _texts(rows: pd.DataFrame, factor: Factor) -> "pd.Series[str]":
    """Return the level of every run as text; "" where it has none."""
    texts = rows[factor.column].map(level_text, na_action="ignore").astype("string").fillna("")
    if factor.column == "rank" and "adapter" in rows:
        method = rows["method"] if "method" in rows else rows["adapter"]
        texts = texts.mask(method.astype(str) == FULL, NO_RANK)
    return texts.astype(str)


def _with_aliases(
    own: pd.DataFrame, keys: "pd.Series[str]", raw: pd.DataFrame, names: Sequence[str]
) -> pd.DataFrame:
    """Return the runs under their first names and, behind them, under the others."""
    others = [n for n in OF_NAMES if n in names and n in raw]
    if "alias" not in raw or not others:
        return own
    alias = raw[raw["alias"].fillna(False).astype(bool)]
    alias = alias[["train_key", *others]].drop_duplicates()
    place = pd.Series(own.index, index=keys)
    alias = alias[alias["train_key"].astype(str).isin(place.index)]
    more = own.loc[place[alias["train_key"].astype(str)].to_numpy()].reset_index(drop=True)
    for name in others:
        text = alias[name].map(level_text, na_action="ignore").astype("string").fillna("")
        more[name] = text.astype(str).to_numpy()
    return pd.concat([own, more], ignore_index=True).drop_duplicates(ignore_index=True)


def _column(factor: Factor, texts: "pd.Series[str]") -> Column:
    there = set(texts)
    levels = [level for level in factor.levels if level in there]
    levels += sorted(there - {*levels, ""}) + [""] * ("" in there and "" not in levels)
    code = {level: i for i, level in enumerate(levels)}
    return Column(factor, tuple(levels), np.array([code[t] for t in texts], dtype=np.int64))


def _determined(first: Column, second: Column) -> bool:
    """Return whether each level of one factor has one level of the other."""
    pairs = len(set(zip(first.codes.tolist(), second.codes.tolist(), strict=True)))
    return pairs in (len(set(first.codes.tolist())), len(set(second.codes.tolist())))


def numbers(column: Column, rows: pd.DataFrame) -> list[float] | None:
    """Return the levels of a factor as numbers; None where they are names."""
    if not is_number(rows[column.column]) or "" in column.levels[:-1] or MISSING in column.levels:
        return None
    return [float(level) for level in column.levels if level]


def codes_by_name(names: Names, values: Mapping[str, Sequence[str]]) -> npt.NDArray[np.bool_]:
    """Return which names have, of every factor that is given, one of the levels that are given."""
    kept = np.ones(len(names.run), dtype=bool)
    for column, levels in values.items():
        own = names[column]
        kept &= np.isin(own.codes, [own.levels.index(level) for level in levels])
    return kept
