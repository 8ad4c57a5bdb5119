"""Estimated marginal means and slopes of a fitted model; `inference.comparisons` compares them.

Reference: Searle, Speed and Milliken 1980, Am. Stat. 34(4); the names follow R's emmeans. A
reference grid crosses all levels of the factors in the formula with every covariate at its mean
(or at given values). A mean is the average of the grid's predictions over what is not asked for,
every level counting the same, or as often as it occurs (`weights="proportional"`). Being an
average of rows of the fixed-effects matrix, it is a contrast l' beta: its standard error and
degrees of freedom are those of `inference.estimates`. A mean over cells that the table does not
hold is NaN, unless the model determines it all the same; a difference of two such means may be
determined where neither is.

Means are on the scale that the model is linear on, at an offset of zero; `table(type="response")`
carries them back (`inference.scale`).

Letters in names: G rows of the grid, K means, C columns of the matrix, B of them fixed effects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.engine.formula import matrix_for
from analysis.engine.linalg import Array
from analysis.engine.summary import as_text
from analysis.errors import AnalysisError, listed, nearest
from analysis.inference.estimates import DF_RULES, LEVEL, Estimate, contrast
from analysis.inference.reference_grid import ReferenceGrid, Values
from analysis.inference.scale import IDENTITY, Scale, checked, scale_of
from analysis.mixed import MixedFit

WEIGHTS = ("equal", "proportional")
SLOPE_STEP = 1e-3  # of the covariate's range, for a central difference

Names = str | Sequence[str]
Asked = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True, repr=False)
class Means:
    """Marginal means (or slopes), one for every row of `labels`, as contrasts of a fit."""

    fit: MixedFit
    labels: pd.DataFrame  # (K, ...), the levels asked for
    l_KC: Array  # over all columns of the matrix, those that repeat others included
    of: tuple[str, ...]  # what is compared
    within: tuple[str, ...]  # what stays apart in comparisons
    df: str
    level: float
    sloped: bool = False  # whether they are slopes, which have no other scale

    def __repr__(self) -> str:
        return as_text(self.table())

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return str(self.table().to_html(index=False, border=0))

    @property
    def l_KB(self) -> Array:
        """The means as contrasts of `fixef`; NaN where the table does not determine one."""
        return self.fit.kept(self.l_KC)

    @property
    def estimates(self) -> list[Estimate]:
        """Every mean with its uncertainty, named by its levels."""
        return [
            contrast(self.fit, l_B, name=name, level=self.level, df=self.df)
            for l_B, name in zip(self.l_KB, named(self.labels), strict=True)
        ]

    @property
    def scale(self) -> Scale:
        """How to go from the linear scale back to the score's; slopes have no other scale."""
        return IDENTITY if self.sloped else scale_of(self.fit)

    def on_response(self) -> tuple[Array, Array]:
        """Return the means on the score's own scale, (K,), and their gradients by `fixef`, (K, B).

        The gradient is what the delta method needs: slope of the inverse link times the contrast.
        """
        eta_K = self.l_KB @ self.fit.fixef.to_numpy()
        return self.scale.inverse(eta_K), self.scale.slope(eta_K)[:, None] * self.l_KB

    def table(self, *, type: str = "link") -> pd.DataFrame:
        """Return the levels beside estimate, se, df, low and high.

        Args:
            type: "link", or "response" for the score's own scale.

        Raises:
            AnalysisError: slopes on the scale of the response.
        """
        names = ("estimate", "se", "df", "low", "high")
        found = pd.DataFrame([{n: getattr(e, n) for n in names} for e in self.estimates])
        if checked(type):
            if self.sloped:
                raise AnalysisError(
                    "type=response: for means; a slope there changes along the curve, compare "
                    "means at several values (at=) instead"
                )
            scale = self.scale
            found["se"] *= np.abs(scale.slope(found["estimate"].to_numpy()))
            for name in ("estimate", "low", "high"):
                found[name] = scale.inverse(found[name].to_numpy())
        return pd.concat([self.labels.reset_index(drop=True), found], axis=1)


def means(
    fit: MixedFit,
    frame: pd.DataFrame,
    of: Names = (),
    *,
    within: Names = (),
    at: Values | None = None,
    weights: str = "equal",
    df: str = DF_RULES[0],
    level: float = LEVEL,
) -> Means:
    """Return the marginal mean of every combination of levels of `of` and `within`.

    Args:
        fit: a fit of `frame`.
        frame: the table that was fitted.
        of: columns whose levels are to be compared.
        within: columns within whose levels they are compared.
        at: values of covariates, or a choice of a factor's levels: one value or several.
        weights: "equal", or "proportional" to how often the levels averaged over occur together.
        df: as in `analysis.inference.estimates.contrast`.
        level: of the intervals.

    Raises:
        AnalysisError: an unknown column, level, weighting or df; a grid of too many rows.
    """
    grid = ReferenceGrid.of(fit, frame, at or {})
    asked = _checked(of, within, grid)
    return _averaged(grid, matrix_for(fit.design, grid.rows), (asked, weights), df, level)


def slopes(
    fit: MixedFit,
    frame: pd.DataFrame,
    variable: str,
    *,
    of: Names = (),
    within: Names = (),
    at: Values | None = None,
    weights: str = "equal",
    df: str = DF_RULES[0],
    level: float = LEVEL,
) -> Means:
    """Return the slope over a covariate, averaged as `means` are; exact up to a quadratic.

    Args:
        fit: a fit of `frame`.
        frame: the table that was fitted.
        variable: the covariate; its slope is at its mean, or where `at` says. The rest is as in
            `means`.
    """
    grid = ReferenceGrid.of(fit, frame, at or {})
    if variable not in grid.covariates:
        raise AnalysisError(
            f"slope over {variable}: not a covariate of this model; there are "
            f"{listed(grid.covariates) or 'none'}.{nearest(variable, grid.covariates)}"
        )
    asked = _checked(of, within, grid)
    step = SLOPE_STEP * float(np.ptp(grid.used[variable].to_numpy(dtype=np.float64)))
    x_G = grid.rows[variable].to_numpy(dtype=np.float64)
    # A positive number stays positive: the formula may take its logarithm or its root.
    step_G = np.where((x_G > 0) & (x_G <= step), SLOPE_STEP * x_G, step)
    ends = [grid.rows.assign(**{variable: x_G + sign * step_G}) for sign in (1, -1)]
    up, down = (matrix_for(fit.design, rows) for rows in ends)
    found = _averaged(grid, (up - down) / (2 * step_G[:, None]), (asked, weights), df, level)
    return replace(found, sloped=True)


def _checked(of: Names, within: Names, grid: ReferenceGrid) -> Asked:
    """Return both lists of names."""
    names = [(n,) if isinstance(n, str) else tuple(n) for n in (of, within)]
    known = list(grid.rows.columns)
    for name in [*names[0], *names[1]]:
        if name not in known:
            raise AnalysisError(
                f"means of {name}: not in the fixed part of the formula, which has "
                f"{listed(known)}.{nearest(name, known)}"
            )
    if both := set(names[0]) & set(names[1]):
        raise AnalysisError(f"means of {both.pop()}: it cannot be compared within itself")
    return names[0], names[1]


def _averaged(
    grid: ReferenceGrid,
    matrix_GC: Array,
    asked: tuple[Asked, str],
    df: str,
    level: float,
) -> Means:
    """Return the averages over what is not asked for; averaging comes before estimability."""
    (of, within), weights = asked
    keys = [*within, *of]
    weight_G = _weights(grid, keys, weights)
    if keys:
        groups = grid.rows.groupby(keys, sort=False, observed=True)
        places = groups.ngroup().to_numpy()
        labels = grid.rows[keys].drop_duplicates().reset_index(drop=True)
    else:
        places, labels = np.zeros(len(grid.rows), dtype=int), pd.DataFrame(index=range(1))
    member_KG = (places == np.arange(len(labels))[:, None]) * weight_G
    total_K = member_KG.sum(axis=1)
    l_KC = (member_KG @ matrix_GC) / total_K[:, None]
    return Means(grid.fit, labels, l_KC, of, within, df, level)


def _weights(grid: ReferenceGrid, keys: list[str], weights: str) -> Array:
    """Return how much every row of the grid counts."""
    if weights not in WEIGHTS:
        raise AnalysisError(f"weights={weights}: not one of {', '.join(WEIGHTS)}")
    over = [f for f in grid.factors if f not in keys]
    if weights == "equal" or not over:
        return np.ones(len(grid.rows))
    counts = grid.used.groupby(over, observed=True).size()
    index = pd.MultiIndex.from_frame(grid.rows[over]) if len(over) > 1 else grid.rows[over[0]]
    return np.asarray(counts.reindex(index).fillna(0), dtype=np.float64)


def named(labels: pd.DataFrame) -> list[str]:
    """Return every row of levels as one name, "" where there is no column.

    Without columns pandas before 3.1 iterates over no rows at all, so the array is iterated.
    """
    return [" ".join(_text(v) for v in row) for row in labels.astype(object).to_numpy()]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
