"""Three intervals of an optimum side by side: Fieller's, the delta method's, the bootstrap's.

Fieller's is exact where coefficients are normal, and says so where the data do not bound the
vertex. The delta method pretends that the vertex is normal. The bootstrap refits the whole model
to scores drawn from it; a refit without a maximum has its vertex at infinity, on the side where
its curve is higher, so that an interval is open where too many refits have none.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.inference.bootstrap import bootstrap
from analysis.inference.optimum import Optimum, optimum
from analysis.mixed import MixedFit
from analysis.questions.plw.effects import Panel, Response, panels, response
from analysis.table.frame import plw_of, study_rows

DRAWS = 500
METHODS = ("Fieller", "delta", "bootstrap")


def best_row(best: Optimum) -> dict[str, float | str]:
    """Return an optimum as columns; its interval, cut to [0, 1], only where a maximum is inside."""
    peaks = best.at == best.vertex
    low, high = (min(max(x, 0.0), 1.0) if peaks else np.nan for x in best.fieller)
    return {
        "optimum": best.verdict, "best_wp": best.at, "best_plw": plw_of(best.at),
        "plw_low": plw_of(low) if peaks else np.nan, "plw_high": plw_of(high) if peaks else np.nan,
    }  # fmt: skip


def vertices(beta_D2: Array) -> Array:
    """Return the vertex of b1 x + b2 x^2, row by row; without a maximum, infinity uphill (D,)."""
    b1_D, b2_D = beta_D2.T
    peaks_D = b2_D < 0
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex_D = -b1_D / (2 * b2_D)
    return np.where(peaks_D, vertex_D, np.where(b1_D + b2_D > 0, np.inf, -np.inf))


def percentiles(values_D: Array, level: float) -> tuple[float, float]:
    """Return the percentile interval of values that may be infinite."""
    low, high = np.quantile(values_D, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return float(low), float(high)


def bootstrap_vertices(
    curves: Sequence[Response], *, draws: int = DRAWS, seed: int = 0, level: float = 0.95
) -> list[tuple[float, float]]:
    """Return the percentile interval of every curve's vertex from refits of their common model."""
    fit = curves[0].fit
    names = [str(name) for name in fit.fixef.index]
    beta_DB = bootstrap(fit, draws=draws, seed=seed).draws[names].to_numpy(dtype=float)
    return [percentiles(vertices(beta_DB @ curve.l_3B[1:].T), level) for curve in curves]


def interval_table(
    fit: MixedFit, frame: pd.DataFrame, *, draws: int = DRAWS, seed: int = 0, level: float = 0.95
) -> pd.DataFrame:
    """Return the intervals of the optimum in every panel whose fitted curve has one inside.

    One row per panel and method: mode, task_group, dataset_type, optimum, best_plw, method,
    low_wp, high_wp (of the vertex, infinite where open), low_plw, high_plw (cut to [0, 1]).
    """
    chosen: list[tuple[Panel, Response, Optimum]] = []
    for panel in panels(study_rows(frame)):
        curve = response(fit, panel.rows)
        if panel.levels > 1 and np.isfinite(curve.l_3B[1:]).all():
            best = optimum(curve.quadratic, level=level)
            if best.at == best.vertex:
                chosen.append((panel, curve, best))
    if not chosen:
        return pd.DataFrame()
    curves = [curve for _, curve, _ in chosen]
    refitted = bootstrap_vertices(curves, draws=draws, seed=seed, level=level)
    rows = []
    for (panel, _, best), drawn in zip(chosen, refitted, strict=True):
        head = {"optimum": best.verdict, "best_plw": plw_of(best.at)}
        for method, ends in zip(METHODS, (best.fieller, best.delta, drawn), strict=True):
            rows.append(panel.labels | head | {"method": method} | _ends(ends))
    return pd.DataFrame(rows)


def _ends(ends: tuple[float, float]) -> dict[str, float]:
    low, high = (min(max(x, 0.0), 1.0) for x in ends)
    return {
        "low_wp": ends[0], "high_wp": ends[1], "low_plw": plw_of(low), "high_plw": plw_of(high)
    }  # fmt: skip
