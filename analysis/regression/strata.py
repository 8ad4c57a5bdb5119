"""The random part of a proposed model: everything that rows have in common beside their settings.

    (1 + x | g)      a number that varies within the levels of a group: each has its own slope
    (1 | g:f)        a factor that varies within the levels of a group, several rows a cell: the
                     whole plots of a split plot, a subject's answer to a condition
    (1 | seed:arm)   the runs of a table that has no column of runs: rows of one seed and arm
    (1 | every row)  of counts: what the items of a row have in common

A test of `f` or of `x` is made against these, not against the residual of the rows: without them
a table of 10 tasks would count as 10 runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.regression.column_roles import NUISANCE, Role
from analysis.regression.measured import WITHIN
from analysis.table.metrics import words_of

REPLICATES = {*NUISANCE, "rep"} - {"id"}
CURVE = 3  # values of a number within a level that show a slope
MOST_SLOPES = 3  # numbers whose slopes vary over one group
MOST_BARS = 6


@dataclass(frozen=True, slots=True)
class Stratum:
    """One random term: what it groups by, the numbers whose slopes vary, and why."""

    columns: tuple[str, ...]
    slopes: tuple[str, ...]  # columns
    reason: str
    replicated: bool  # whether it is of runs, seeds or plots


def replicates(column: str) -> bool:
    """Return whether a column numbers repetitions of a design."""
    return column.lower() in REPLICATES


def strata(frame: pd.DataFrame, roles: Sequence[Role], *, trials: bool) -> list[Stratum]:
    """Return the random terms that a table's groups and repetitions call for.

    Args:
        frame: the table, prepared.
        roles: of the columns that are in the model.
        trials: whether a row counts several items.
    """
    rows = frame.dropna(subset=[r.column for r in roles])
    found = _Found(rows, [])
    fixed = [r for r in roles if r.kind != "group" and not replicates(r.column)]
    numbers = [r for r in fixed if r.kind != "factor"]
    factors = [r.column for r in fixed if r.kind == "factor"]
    for role in roles:
        if role.kind == "group":
            own = tuple(c for c in (role.inside, role.column) if c)
            slopes = list(_sloped(rows, own, [n.column for n in numbers]))
            found.add(own, role.reason, slopes=slopes, always=True)
    for role in roles:
        if replicates(role.column):
            found.runs(role.column, [r.column for r in fixed])
    for role in roles:
        if role.kind == "group" or replicates(role.column):
            own = tuple(c for c in (role.inside, role.column) if c)
            for factor in factors:
                why = f"levels of {role.column} may answer to {factor} in different ways"
                found.add((*own, factor), why)
    if trials:
        found.every_row([r.column for r in roles])
    return found.terms


@dataclass(slots=True)
class _Found:
    """The terms so far; no two of them group the rows alike."""

    rows: pd.DataFrame
    terms: list[Stratum]

    def runs(self, column: str, settings: Sequence[str]) -> None:
        """Add the runs: rows that have all settings and one repetition in common."""
        between = [c for c in settings if not set(words_of(c)) & set(WITHIN)]
        own = self._telling([column], between)
        why = f"rows that have {' and '.join(own)} in common are of one run"
        self.add(own, why)

    def every_row(self, columns: Sequence[str]) -> None:
        """Add what tells all rows apart: counts are more alike within a row than a binomial's."""
        own = self._telling(columns[:1], columns[1:])
        if _cells(self.rows, own) == len(self.rows):
            why = "items of one row are more alike than a binomial allows for"
            self.terms.append(Stratum(tuple(own), (), why, replicated=False))

    def _telling(self, own: Sequence[str], others: Sequence[str]) -> list[str]:
        """Return columns, and of the others each that tells more rows apart."""
        found = list(own)
        for name in others:
            if _cells(self.rows, [*found, name]) > _cells(self.rows, found):
                found.append(name)
        return found

    def add(
        self,
        columns: Sequence[str],
        reason: str,
        *,
        slopes: Sequence[str] = (),
        always: bool = False,
    ) -> None:
        rows, cells = self.rows, _cells(self.rows, columns)
        if not always:
            repeated = 2 * cells <= len(rows)
            known = [_codes(rows, s.columns) for s in self.terms]
            new = cells > max((_cells(rows, [c]) for c in columns), default=0)
            same = any((_codes(rows, columns) == own).all() for own in known)
            if not repeated or not new or same or len(self.terms) >= MOST_BARS:
                return
        room = tuple(slopes[: max(0, min(MOST_SLOPES, (len(rows) - 1) // max(cells, 1) - 1))])
        replicated = any(map(replicates, columns))
        self.terms.append(Stratum(tuple(columns), room, reason, replicated))


def _cells(rows: pd.DataFrame, columns: Sequence[str]) -> int:
    return int(rows.groupby(list(columns), observed=True).ngroups)


def _codes(rows: pd.DataFrame, columns: Sequence[str]) -> "pd.Series[int]":
    """Return for every row the place of the first row of its cell."""
    place = pd.Series(range(len(rows)), index=rows.index)
    return place.groupby([rows[c] for c in columns], observed=True).transform("min")


def _sloped(rows: pd.DataFrame, group: Sequence[str], numbers: Sequence[str]) -> Iterator[str]:
    """Yield the numbers that vary within most levels of a group."""
    for name in numbers:
        counts = rows.groupby(list(group), observed=True)[name].nunique()
        repeated = 2 * _cells(rows, [*group, name]) <= len(rows)
        if (counts >= (2 if repeated else CURVE)).mean() > 0.5:
            yield name
