"""A second opinion on an effect: least squares on run means, with errors clustered by cell.

It shares no assumption with the mixed model but the formula of the mean: no random effects, no
normality, equal weight for every run. statsmodels fits it; its cluster-robust covariance (Liang
and Zeger 1986, Biometrika 73(1)) is scaled by G / (G - 1) (N - 1) / (N - B), and the interval is of
a t with G - 1 degrees of freedom. With fewer than about 20 clusters its p-values are too small
(Cameron and Miller 2015, J. Hum. Resour. 50(2)).

Letters in names: N runs, B fixed effects, G clusters.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.engine.formula import parse
from analysis.engine.linalg import Array, Index
from analysis.errors import AnalysisError, nearest
from analysis.inference.estimates import LEVEL, Estimate
from analysis.inference.means import means
from analysis.inference.simplify import written
from analysis.mixed import MixedFit, fit_mixed

NO_SPREAD = 1e-10  # of the classical variance: what clusters leave where they fix the effect


def run_means(rows: pd.DataFrame, *, score: str = "score", run: str = "run") -> pd.DataFrame:
    """Return one row per run: its mean score and every column that is constant within runs.

    Args:
        rows: one row per run and task.
        score: the column to average.
        run: the column that names the run.
    """
    for name in (score, run):
        if name not in rows:
            raise AnalysisError(f"run means: no column {name!r}.{nearest(name, rows)}")
    groups = rows.groupby(run, sort=False, observed=True)
    constant = groups.nunique(dropna=False).max() <= 1
    kept = [name for name in constant.index[constant] if name != score]
    return groups[kept].first().assign(**{score: groups[score].mean()}).reset_index()


def second_opinion(
    runs: pd.DataFrame,
    formula: str,
    column: str,
    levels: tuple[object, object],
    *,
    cluster: str = "cell",
    level: float = LEVEL,
) -> Estimate:
    """Return the mean at the first level of `column` less that at the second, by least squares.

    Args:
        runs: one row per run, see `run_means`.
        formula: of the mean; random terms are left out, so a mixed model's formula will do. The
            other columns are adjusted for, and averaged over as in `analysis.inference.means`.
        column: a factor, or a number such as w_p.
        levels: the two levels, or values, to compare: ("lora", "full"), or (1.0, 0.0) of w_p.
        cluster: the column whose levels have correlated errors.
        level: of the interval.

    Returns:
        The estimate with its cluster-robust standard error and G - 1 degrees of freedom.

    Raises:
        AnalysisError: an unknown column or level; fewer than two clusters; clusters between which
            the formula leaves no variation, so that they say nothing about the error.
    """
    if cluster not in runs:
        raise AnalysisError(f"cluster={cluster}: no such column.{nearest(cluster, runs)}")
    fixed = written(replace(parse(formula, runs.columns), bars=()))
    fit = fit_mixed(runs, fixed)
    found = means(fit, runs, column, at={column: list(levels)})
    order = [found.labels[column].tolist().index(one) for one in levels]
    l_B = found.l_KB[order[0]] - found.l_KB[order[1]]
    name = f"{levels[0]} - {levels[1]}"
    if np.isnan(l_B).any():
        return Estimate(name, float("nan"), float("nan"), float("nan"), level)
    groups_N = pd.factorize(runs.loc[fit.design.rows, cluster])[0]
    count = len(np.unique(groups_N))
    if count < 2:
        raise AnalysisError(f"cluster={cluster}: one cluster; an error needs at least two")
    se, plain = _errors(fit, l_B, groups_N)
    if se <= NO_SPREAD**0.5 * plain:
        raise AnalysisError(
            f"cluster={cluster}: the formula fits the mean of every cluster, so that nothing "
            f"varies between them; cluster by a column that the formula leaves free"
        )
    return Estimate(name, float(l_B @ fit.fixef.to_numpy()), se, float(count - 1), level)


def _errors(fit: MixedFit, l_B: Array, groups_N: Index) -> tuple[float, float]:
    """Return the standard error of l' beta clustered by group, and the classical one."""
    from statsmodels.regression.linear_model import OLS  # slow to import

    y_N = fit.design.response_N
    ols = OLS(y_N, fit.design.X_NB[:, fit.problem.fixed.kept]).fit()
    robust = ols.get_robustcov_results(cov_type="cluster", groups=groups_N)
    covs = (robust.cov_params(), ols.cov_params())
    se, plain = (float(np.sqrt(max(float(l_B @ cov @ l_B), 0.0))) for cov in covs)
    return se, plain
