"""Residual standard deviations of a dispersion: its columns, what there is to estimate, and tables.

The search for them is `engine.dispersion`.

Letters in names: N rows, B fixed effects, C columns of the dispersion, K of its basis, L levels.
"""

import numpy as np
import pandas as pd
from scipy.linalg import qr

from analysis.engine.dispersion import MOST_LOG
from analysis.engine.formula import Dispersion
from analysis.engine.linalg import Array, independent_columns
from analysis.errors import AnalysisError, listed

MOST_LEVELS = 30  # whose standard deviations are shown one by one
NO_NOISE = 1e-8  # mean of 1 - h over a level, of the fixed effects alone, that leaves nothing
NO_TRACE = 1e-3  # the same of all effects, that leaves too little


def basis(dispersion: Dispersion) -> Array:
    """Return the columns of a dispersion centred, orthogonal and of mean square one, (N, K)."""
    columns_NC = dispersion.columns_NC
    n = len(columns_NC)
    kept = independent_columns(np.column_stack([np.ones(n), columns_NC]))[1:] - 1
    centred_NK = columns_NC[:, kept] - columns_NC[:, kept].mean(axis=0)
    return np.asarray(qr(centred_NK, mode="economic")[0] * np.sqrt(n), dtype=np.float64)


def check_noise(dispersion: Dispersion, basis_NK: Array, q_NB: Array) -> None:
    """Refuse a dispersion of which some part has no noise to be estimated from.

    Args:
        dispersion: as it was asked for.
        basis_NK: its `basis`.
        q_NB: an orthogonal basis of the fixed effects.

    Raises:
        AnalysisError: the fixed effects explain the scores of a level exactly.
    """
    spare_N = 1 - (q_NB**2).sum(axis=1)
    columns_NC = np.column_stack([np.ones(len(spare_N)), basis_NK])
    if np.linalg.eigvalsh((columns_NC.T * spare_N) @ columns_NC)[0] > NO_NOISE * len(spare_N):
        return
    gone = _levels_below(dispersion, spare_N, NO_NOISE)
    raise AnalysisError(
        f"dispersion={dispersion.formula}: the fixed effects explain the scores of "
        f"{_named(dispersion, gone)} exactly; nothing is left to estimate their noise from"
    )


def without_noise(dispersion: Dispersion, log_N: Array, leverage_N: Array) -> list[str]:
    """Return a sentence about levels whose residual is estimated as nothing.

    Args:
        dispersion: as it was asked for.
        log_N: of the rows' residual SDs over the typical one.
        leverage_N: of the rows.

    Raises:
        AnalysisError: a residual goes to zero that effects do not take, so the fit has no end.
    """
    # Of a covariate every row is a level, and a row that effects explain says nothing of its curve.
    few = len(dispersion.levels) <= MOST_LEVELS
    gone = _levels_below(dispersion, 1 - leverage_N, NO_TRACE) if few else []
    endless = _levels_below(dispersion, MOST_LOG - np.abs(log_N), 0.0)
    if left := [level for level in endless if level not in gone]:
        raise AnalysisError(
            f"dispersion={dispersion.formula}: the residual standard deviation of "
            f"{_named(dispersion, left)} goes to zero beside the others'; are those scores "
            f"explained exactly, or in other units?"
        )
    return [
        f"The residual of {listed(gone, 6)} is estimated as none: fixed and random effects explain "
        f"those scores, and its standard deviation and the error of that mean nothing. The other "
        f"estimates stand."
    ] * bool(gone)


def _levels_below(dispersion: Dispersion, value_N: Array, least: float) -> list[str]:
    """Return the levels over which a number is less than `least` on average."""
    mean_L = np.bincount(dispersion.index_N, value_N) / np.bincount(dispersion.index_N)
    return [v for v, left in zip(dispersion.levels, mean_L, strict=True) if left < least]


def _named(dispersion: Dispersion, levels: list[str]) -> str:
    few = levels and len(dispersion.levels) <= MOST_LEVELS
    return listed(levels, 6) if few else "some rows"


def first_rows(dispersion: Dispersion | None) -> dict[str, int]:
    """Return the first row of every level, from 0; nothing where there are too many to show."""
    if dispersion is None or len(dispersion.levels) > MOST_LEVELS:
        return {}
    first_L = np.unique(dispersion.index_N, return_index=True)[1]
    return dict(zip(dispersion.levels, map(int, first_L), strict=True))


def log_table(dispersion: Dispersion, log_N: Array, by_NK: Array, cov_KK: Array) -> pd.DataFrame:
    """Return the dispersion's coefficients: name, estimate, se.

    Args:
        dispersion: as it was asked for.
        log_N: log of every row's residual SD, known weights left out.
        by_NK: its derivatives by what was estimated.
        cov_KK: the covariance of that.
    """
    turn_CN = np.linalg.pinv(dispersion.columns_NC)
    by_CK = turn_CN @ by_NK
    se_C = np.sqrt(np.einsum("ck,kj,cj->c", by_CK, cov_KK, by_CK))
    return pd.DataFrame({"name": dispersion.names, "estimate": turn_CN @ log_N, "se": se_C})
