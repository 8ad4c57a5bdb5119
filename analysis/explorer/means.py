"""Marginal means of any choice of factors in one panel of a study, as the explorer shows them.

A mean of a group (a combination of levels of the chosen factors) is the average of the model's
predictions over the conditions of the panel: every combination of the other factors that was run
and that the group can have, each distinct one counted once. What cannot be combined (a rank of full
fine-tuning) is passed over. Where all factors are crossed this is emmeans' mean with equal weights,
`inference.means.means` of every value that the covariates have. On the page of a table from
elsewhere a covariate that is neither chosen nor filtered is at its mean, as it is in the other
means of that page. (Means that least squares adjusts
for blocks, of single runs without a model, are `table.adjusted_means`.)

Letters in names: C columns of the model matrix, B fixed effects.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.engine.formula import matrix_for
from analysis.engine.linalg import Array
from analysis.errors import AnalysisError, listed, nearest
from analysis.explorer.names import Names, codes_by_name, shown_as
from analysis.inference.estimates import Estimate, contrast
from analysis.inference.reference_grid import is_factor
from analysis.regression.model import Regression
from analysis.regression.panels import PanelModel

MOST_BY = 3  # factors that determine a column of the model before all of them are taken


@dataclass(frozen=True)
class Lookup:
    """How a column of the model follows from factors: its value for every name of the panel."""

    variable: str
    by: tuple[int, ...]  # positions among the factors
    values: "pd.Series[Any]"  # (names of the panel,)
    held: float | None = None  # of a covariate whose factor is neither chosen nor filtered


@dataclass(frozen=True)
class PanelNames:
    """The names of one panel's runs, and how its model's columns follow from their levels."""

    model: Regression
    names: Names
    member: npt.NDArray[Any]  # positions of the panel's names
    lookups: tuple[Lookup, ...]
    labels: Mapping[str, str]  # of the panel
    replicated: bool  # whether cells have several runs

    @property
    def held(self) -> dict[str, float]:
        """The covariates of the model that are at one value unless a view says otherwise."""
        return {one.variable: one.held for one in self.lookups if one.held is not None}


def panel_names(names: Names, model: PanelModel) -> PanelNames:
    """Return the names of a panel's runs with the lookups of its model's columns."""
    member, rows, codes = _members(names, model)
    lookups = tuple(
        Lookup(n, _determining(rows[n], codes, names, n), rows[n]) for n in model.fit.design.needed
    )
    return PanelNames(model, names, member, lookups, model.labels, model.replicated)


def table_names(names: Names, reg: Regression) -> PanelNames:
    """Return the names of the rows of a table from elsewhere with the lookups of its model."""
    member, rows, codes = _members(names, reg)
    lookups = []
    for name in reg.fit.design.needed:
        values = rows[name]
        by = _determining(values, codes, names, shown_as(name, rows, own_wp=reg.own_wp))
        if is_factor(reg.fit, values):
            lookups.append(Lookup(name, by, values))
            continue
        values = values.astype(np.float64)
        mean = float(values.mean())
        if len(by) != 1 or not _determines(codes[:, list(by)], pd.factorize(values)[0]):
            by, values = (), pd.Series(mean, values.index)  # no one factor says what it is
        lookups.append(Lookup(name, by, values, mean))
    labels = {"task_group": reg.score}
    return PanelNames(reg, names, member, tuple(lookups), labels, replicated=True)


def _members(
    names: Names, model: Regression
) -> tuple[npt.NDArray[Any], pd.DataFrame, npt.NDArray[Any]]:
    """Return the names of a model's runs, the model's row of each, and its codes (names, F)."""
    used = model.used
    place = pd.Series(used.index, index=used[names.key].astype(str))
    keys = names.runs[names.key].astype(str).to_numpy()[names.run]
    member = np.flatnonzero(np.isin(keys, place.index))
    rows = used.loc[place.reindex(keys[member])].reset_index(drop=True)
    codes = [c.codes[member] for c in names.columns]
    return member, rows, np.column_stack(codes) if codes else member[:, None]


def _determining(
    values: "pd.Series[Any]", codes: npt.NDArray[Any], names: Names, own: str
) -> tuple[int, ...]:
    """Return the fewest factors that determine a column; its namesake before others."""
    target = pd.factorize(values.astype(object))[0]
    if len(np.unique(target)) < 2:
        return ()
    varying = [i for i in range(len(names.columns)) if len(np.unique(codes[:, i])) > 1]
    varying.sort(key=lambda i: names.columns[i].column != own)
    for size in range(1, MOST_BY + 1):
        for by in combinations(varying, size):
            if _determines(codes[:, list(by)], target):
                return by
    return tuple(varying)


def _determines(codes: npt.NDArray[Any], target: npt.NDArray[Any]) -> bool:
    """Return whether equal rows of codes have equal targets."""
    groups = np.unique(codes, axis=0, return_inverse=True)[1].ravel()
    pairs = np.unique(np.column_stack([groups, target]), axis=0)
    return len(pairs) == groups.max() + 1


def marginal_means(
    panel: PanelNames, of: Sequence[str], where: Mapping[str, Sequence[str]] | None = None
) -> tuple[pd.DataFrame, Array]:
    """Return the marginal mean of every group, and all of them as contrasts of the fit.

    Args:
        panel: of `panel_names`.
        of: the chosen factors.
        where: the levels, as text, that a factor is restricted to.

    Returns:
        A row per group that was run: the levels, estimate, se, df, low, high (NaN where the runs
        do not determine it), runs; and the contrasts (groups, B).

    Raises:
        AnalysisError: there is no such factor or level.
    """
    where = where or {}
    _check(panel.names, of, where)
    kept = codes_by_name(panel.names, where)[panel.member]
    texts = _texts(panel)
    levels = texts[kept]
    runs = pd.Series(panel.names.run[panel.member][kept], levels.index)
    others = [n for n in texts if n not in of]
    conditions = levels[others].drop_duplicates()
    groups = levels[list(of)].drop_duplicates() if of else pd.DataFrame(index=range(1))
    chosen = [{str(k): str(v) for k, v in own.items()} for own in groups.to_dict("records")]
    l_GB = _contrasts(panel, texts, (chosen, {*of, *where}), conditions)
    found = []
    for group, l_B in zip(chosen, l_GB, strict=True):
        own = pd.Series(True, runs.index)
        for name, level in group.items():
            own &= levels[name] == level
        effect = contrast(panel.model.fit, l_B, df=panel.model.df)
        found.append(group | _row(effect) | {"runs": int(runs[own].nunique())})
    return pd.DataFrame(found), l_GB


def _row(effect: Estimate) -> dict[str, float]:
    return {n: getattr(effect, n) for n in ("estimate", "se", "df", "low", "high")}


def _check(names: Names, of: Sequence[str], where: Mapping[str, Sequence[str]]) -> None:
    known = [c.column for c in names.columns]
    for name in (*of, *where):
        if name not in known:
            raise AnalysisError(
                f"{name}: not a factor here; there are {listed(known)}.{nearest(name, known)}"
            )
    for name, levels in where.items():
        for level in levels:
            if level not in names[name].levels:
                raise AnalysisError(f"{name}={level}: not one of {listed(names[name].levels)}")


def _texts(panel: PanelNames) -> pd.DataFrame:
    """Return the levels of every name of the panel as text, a column per factor."""
    return pd.DataFrame(
        {
            c.column: np.array(c.levels, dtype=object)[c.codes[panel.member]]
            for c in panel.names.columns
        }
    )


def _contrasts(
    panel: PanelNames,
    texts: pd.DataFrame,
    asked: tuple[Sequence[Mapping[str, str]], set[str]],
    conditions: pd.DataFrame,
) -> Array:
    """Return every group's mean as a contrast; NaN where no condition goes with it."""
    groups, free = asked
    fit, used = panel.model.fit, panel.model.used
    if not panel.lookups:  # the intercept alone
        return np.ones((len(groups), len(fit.fixef)))
    rows = [list(dict.fromkeys(_feasible(panel, texts, (g, free), conditions))) for g in groups]
    size_G = np.array([len(own) for own in rows])
    l_GC = np.full((len(groups), len(fit.design.names)), np.nan)
    if size_G.any():
        every = [row for own in rows for row in own]
        frame = pd.DataFrame(every, columns=[one.variable for one in panel.lookups])
        kinds = {n: np.float64 if n in panel.held else used[n].dtype for n in frame}
        X_RC = matrix_for(fit.design, frame.astype(kinds))
        there = np.flatnonzero(size_G)
        starts = np.concatenate([[0], np.cumsum(size_G[there])[:-1]])
        l_GC[there] = np.add.reduceat(X_RC, starts) / size_G[there, None]
    l_GB = np.full((len(groups), len(fit.fixef)), np.nan)
    l_GB[size_G > 0] = fit.kept(l_GC[size_G > 0])
    return l_GB


def _feasible(
    panel: PanelNames,
    texts: pd.DataFrame,
    asked: tuple[Mapping[str, str], set[str]],
    conditions: pd.DataFrame,
) -> Iterator[tuple[object, ...]]:
    """Yield the model's columns under every condition that the group can have."""
    group, free = asked
    columns = [c.column for c in panel.names.columns]
    tables: list[tuple[list[str], dict[tuple[object, ...], object]]] = []
    for one in panel.lookups:
        by = [columns[i] for i in one.by]
        if one.held is not None and not free & set(by):
            tables.append(([], {(): one.held}))
            continue
        keys = [tuple(row) for row in texts[by].to_numpy()]
        tables.append((by, dict(zip(keys, one.values, strict=True))))
    pairs = [(columns[a], columns[b]) for a, b in panel.names.together()]
    pairs = [(a, b) for a, b in pairs if (a in group) != (b in group)]
    seen = [set(zip(texts[a], texts[b], strict=True)) for a, b in pairs]
    for condition in conditions.to_dict("records") or [{}]:
        name = {str(k): v for k, v in condition.items()} | dict(group)
        if any((name[a], name[b]) not in own for (a, b), own in zip(pairs, seen, strict=True)):
            continue
        keys = [tuple(name[n] for n in by) for by, _ in tables]
        if all(k in own for k, (_, own) in zip(keys, tables, strict=True)):
            yield tuple(own[k] for k, (_, own) in zip(keys, tables, strict=True))
