"""The quadratic surface over prompt loss weight and log2 rank of an adapter, and where it peaks.

    y = b0 + b' x + x' B x,     x = (w_p, log2 rank),     b (2,), B symmetric (2, 2)

Canonical analysis (Box and Wilson 1951; Khuri and Cornell 1996, chapter 5): the stationary point
is -B^-1 b / 2, and the eigenvalues of B say what it is: both negative a maximum, both positive a
minimum, one of each a saddle. An eigenvalue's standard error is that of the curvature along its
own direction (delta method). The region of the stationary point is Box and Hunter's (1954): all x
at which the gradient b + 2 B x does not differ from zero,

    g(x)' V(x)^-1 g(x) <= 2 F(2, df);

it is what Fieller's set is in one dimension, and it too may be unbounded, which says that the data
do not place the point. At one rank the best weight is a ratio of two coefficients and has the
verdict and the intervals of `study.optimum`.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.engine.canonical import root
from analysis.engine.formula import matrix_for
from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.estimates import contrast
from analysis.inference.optimum import (
    INTERIOR,
    NO_INTERIOR,
    NOT_IDENTIFIED,
    Optimum,
    Quadratic,
    optimum,
)
from analysis.mixed import MixedFit

AXES = ("wp", "log2_rank")
SAME_SHAPE = 1e-8  # how far from a quadratic a response may be, relative to its size
# Points that determine the six coefficients of a quadratic in two variables, and one to check.
PROBES = np.array([[0, 0], [0.5, 0], [1, 0], [0, 1], [0, -1], [1, 1], [0.3, 0.7]])
REACH = 40  # directions and steps of the region's grid
SADDLE, MAXIMUM, MINIMUM, FLAT = "saddle", "maximum", "minimum", "not told from flat"


@dataclass(frozen=True, slots=True)
class Surface:
    """b_wp, b_rank, B_wp,wp, B_rank,rank and twice B_wp,rank, with their covariance."""

    beta_5: Array
    cov_55: Array  # a row and column of NaN where the table does not determine a coefficient
    df: float = float("inf")

    @property
    def linear_2(self) -> Array:
        """The slopes at the origin."""
        return self.beta_5[:2]

    @property
    def bend_22(self) -> Array:
        """B."""
        wp, rank, both = self.beta_5[2:]
        return np.array([[wp, both / 2], [both / 2, rank]])

    def gradient(self, x_2: Array) -> tuple[Array, Array]:
        """Return the gradient at x and its covariance."""
        g_25 = _gradient_rows(x_2)
        return g_25 @ self.beta_5, g_25 @ self.cov_55 @ g_25.T

    def height(self, x_2: Array) -> tuple[float, float]:
        """Return the height above the origin at x, and its standard error."""
        x, z = x_2
        l_5 = np.array([x, z, x * x, z * z, x * z])
        return float(l_5 @ self.beta_5), float(np.sqrt(l_5 @ self.cov_55 @ l_5))

    def at_rank(self, log2_rank: float) -> Quadratic:
        """Return the curve over the weight at one rank, above its own value at weight 0."""
        used = [0, 2, 4] if log2_rank else [0, 2]
        l_2U = np.array([[1.0, 0, log2_rank], [0, 1.0, 0]])[:, : len(used)]
        b1, b2 = (float(b) for b in l_2U @ self.beta_5[used])
        return Quadratic(b1, b2, l_2U @ self.cov_55[np.ix_(used, used)] @ l_2U.T, self.df)

    @property
    def curved_in_rank(self) -> bool:
        """Whether the ranks were enough to bend over: their square has a standard error."""
        return bool(np.isfinite(self.cov_55[3, 3]) and self.cov_55[3, 3] > 0)


@dataclass(frozen=True, slots=True)
class Canonical:
    """The stationary point of a surface and what it is."""

    at_2: Array
    delta_se_2: Array
    eigenvalues_2: Array  # ascending
    eigenvalues_se_2: Array
    directions_22: Array  # a column each
    nature: str  # of the fitted surface
    sure: bool  # whether both eigenvalues differ from zero beyond doubt
    region_bounded: bool
    region_22: Array  # low and high of each axis; infinite where unbounded
    verdict: str


def _gradient_rows(x_2: Array) -> Array:
    x, z = x_2
    return np.array([[1.0, 0, 2 * x, 0, z], [0, 1.0, 0, 2 * z, x]])


def surface(fit: MixedFit, rows: pd.DataFrame, axes: tuple[str, str] = AXES) -> Surface:
    """Return the surface of the mean response of `rows` over two variables, all else as it is.

    Raises:
        AnalysisError: a column is missing, or the formula is not quadratic in the two.
    """
    return surface_of(fit, surface_contrasts(fit, rows, axes))


def surface_of(fit: MixedFit, l_5B: Array) -> Surface:
    """Return the surface whose coefficients are these contrasts of a fit."""
    df = [contrast(fit, l_B).df for l_B in l_5B if np.isfinite(l_B).all() and l_B.any()]
    cov_55 = l_5B @ fit.cov.to_numpy() @ l_5B.T
    return Surface(l_5B @ fit.fixef.to_numpy(), cov_55, float(np.min(df, initial=np.inf)))


def surface_contrasts(fit: MixedFit, rows: pd.DataFrame, axes: tuple[str, str] = AXES) -> Array:
    """Return the surface's five coefficients as contrasts (5, B), NaN where not determined."""
    missing = [name for name in axes if name not in rows]
    if missing:
        raise AnalysisError(f"surface: the table has no column {missing[0]}")
    used = [n for n in fit.design.parsed.columns if n in rows and n not in axes]
    points = rows[used].value_counts(dropna=False).reset_index(name="_count")
    weight_N = points.pop("_count").to_numpy() / len(rows)
    copies = [points.assign(**dict(zip(axes, point, strict=True))) for point in PROBES.tolist()]
    x_NC = matrix_for(fit.design, pd.concat(copies, ignore_index=True))
    mean_PC = np.einsum("n,pnc->pc", weight_N, x_NC.reshape(len(PROBES), len(points), -1))
    x_P, z_P = PROBES.T
    powers_P6 = np.column_stack([np.ones(len(PROBES)), x_P, z_P, x_P**2, z_P**2, x_P * z_P])
    l_6C = np.linalg.lstsq(powers_P6, mean_PC, rcond=None)[0]
    if np.abs(powers_P6 @ l_6C - mean_PC).max() > SAME_SHAPE * (1 + np.abs(mean_PC).max()):
        raise AnalysisError(f"surface: the formula is not quadratic in {' and '.join(axes)}")
    l_6C[np.abs(l_6C) < SAME_SHAPE] = 0.0  # rounding of the line above
    return fit.kept(l_6C[1:])


def canonical(found: Surface, *, level: float = 0.95, within: Array | None = None) -> Canonical:
    """Return the stationary point with its region, the eigenvalues and a verdict.

    Args:
        found: a surface that is curved in both directions.
        level: of all intervals.
        within: low and high of each axis (2, 2): where the design has cells. The verdict is
            "interior optimum" only if the region lies inside and the surface is a maximum beyond
            doubt; without it the region need only be bounded.

    Raises:
        AnalysisError: the surface is not determined (too few ranks or weights), or has no bend.
    """
    if not (np.isfinite(found.cov_55).all() and found.curved_in_rank):
        raise AnalysisError("surface: the levels are too few for curvature in both directions")
    values_2, vectors_22 = (np.asarray(part) for part in np.linalg.eigh(found.bend_22))
    if np.abs(values_2).min() < 1e-12 * max(np.abs(values_2).max(), 1e-300):
        raise AnalysisError("surface: the fitted surface is a ridge without a stationary point")
    at_2 = np.asarray(-0.5 * np.linalg.solve(found.bend_22, found.linear_2))
    se_2 = _eigenvalue_se(found, vectors_22)
    t = float(stats.t.ppf((1 + level) / 2, found.df))
    sure = bool((np.abs(values_2) > t * se_2).all())
    bounded, region_22 = _region(found, at_2, level)
    nature = _nature(values_2)
    told = _verdict(nature, sure, at_2, (bounded, region_22), within)
    return Canonical(
        at_2, _delta_se(found, at_2), values_2, se_2, vectors_22, nature, sure, bounded, region_22,
        told,
    )  # fmt: skip


def _nature(values_2: Array) -> str:
    if (values_2 < 0).all():
        return MAXIMUM
    return MINIMUM if (values_2 > 0).all() else SADDLE


def _verdict(
    nature: str, sure: bool, at_2: Array, region: tuple[bool, Array], within: Array | None
) -> str:
    bounded, region_22 = region
    if sure and nature != MAXIMUM:
        return NO_INTERIOR
    outside = within is not None and bool(
        (region_22[:, 1] < within[:, 0]).any() or (region_22[:, 0] > within[:, 1]).any()
    )
    if bounded and outside:
        return NO_INTERIOR
    inside = within is None or bool(
        (region_22[:, 0] >= within[:, 0]).all() and (region_22[:, 1] <= within[:, 1]).all()
    )
    return INTERIOR if sure and bounded and inside else NOT_IDENTIFIED


def _eigenvalue_se(found: Surface, vectors_22: Array) -> Array:
    """Return the standard error of v' B v for either direction v."""
    v_2, w_2 = vectors_22
    l_25 = np.column_stack([np.zeros((2, 2)), v_2**2, w_2**2, v_2 * w_2])
    return np.asarray(np.sqrt(np.diagonal(l_25 @ found.cov_55 @ l_25.T)))


def _delta_se(found: Surface, at_2: Array) -> Array:
    """Return the delta method's standard errors of the stationary point.

    The gradient is zero at x_s; differentiating it gives dx_s = -(2 B)^-1 (dg at fixed x_s).
    """
    jacobian_25 = -np.linalg.solve(2 * found.bend_22, _gradient_rows(at_2))
    return np.asarray(np.sqrt(np.diagonal(jacobian_25 @ found.cov_55 @ jacobian_25.T)))


def in_region(found: Surface, x_2: Array, *, level: float = 0.95) -> bool:
    """Return whether the gradient at x does not differ from zero (Box and Hunter 1954)."""
    g_2, v_22 = found.gradient(x_2)
    limit = _limit(found, level)
    return bool(g_2 @ np.linalg.solve(v_22, g_2) <= limit)


def _limit(found: Surface, level: float) -> float:
    """Return 2 F(2, df), or its limit for a known variance."""
    known = np.isinf(found.df)
    return float(stats.chi2.ppf(level, 2) if known else 2 * stats.f.ppf(level, 2, found.df))


def _region(found: Surface, at_2: Array, level: float) -> tuple[bool, Array]:
    """Return whether the region is bounded, and its extent along the axes.

    Far out the test of the gradient becomes that of B u along the direction u, so the region is
    bounded if B u differs from zero in every direction.
    """
    limit = _limit(found, level)
    angles = np.linspace(0, np.pi, 361)
    for u_2 in np.column_stack([np.cos(angles), np.sin(angles)]):
        far_25 = 2 * np.array([[0, 0, u_2[0], 0, u_2[1] / 2], [0, 0, 0, u_2[1], u_2[0] / 2]])
        g_2, v_22 = far_25 @ found.beta_5, far_25 @ found.cov_55 @ far_25.T
        if g_2 @ np.linalg.solve(v_22, g_2) <= limit:
            return False, np.array([[-np.inf, np.inf]] * 2)
    edge_A2 = np.array([_edge(found, at_2, angle, limit) for angle in 2 * angles])
    return True, np.column_stack([edge_A2.min(axis=0), edge_A2.max(axis=0)])


def _edge(found: Surface, at_2: Array, angle: float, limit: float) -> Array:
    """Return where a ray from the stationary point leaves the region."""
    u_2 = np.array([np.cos(angle), np.sin(angle)])

    def outside(step: float) -> bool:
        g_2, v_22 = found.gradient(at_2 + step * u_2)
        return bool(g_2 @ np.linalg.solve(v_22, g_2) > limit)

    low, high = 0.0, 1e-3
    while not outside(high):
        low, high = high, 2 * high
    for _ in range(REACH):
        middle = (low + high) / 2
        low, high = (low, middle) if outside(middle) else (middle, high)
    return np.asarray(at_2 + high * u_2)


def bootstrap_point(
    found: Surface, *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[Array, float]:
    """Return percentiles of the stationary point (2, 2) and the share of draws with a maximum.

    Coefficients are drawn from their t distribution (a parametric bootstrap of a least-squares
    fit). A draw without a maximum has its point at infinity on the side where it climbs, so that
    the interval is open where the data do not bound the point.
    """
    rng = np.random.default_rng(seed)
    noise_D5 = rng.standard_normal((draws, 5)) @ root(found.cov_55)
    scale_D = np.ones(draws)
    if np.isfinite(found.df):
        scale_D = np.sqrt(rng.chisquare(found.df, draws) / found.df)
    beta_D5 = found.beta_5 + noise_D5 / scale_D[:, None]
    bend_D4 = np.column_stack([beta_D5[:, 2], beta_D5[:, 4] / 2, beta_D5[:, 4] / 2, beta_D5[:, 3]])
    bend_D22 = bend_D4.reshape(-1, 2, 2)
    peaks_D = np.linalg.eigvalsh(bend_D22)[:, -1] < 0  # the largest comes last
    uphill_D2 = beta_D5[:, :2]
    at_D2 = -0.5 * np.linalg.solve(bend_D22, uphill_D2[:, :, None])[:, :, 0]
    at_D2 = np.where(peaks_D[:, None], at_D2, np.copysign(np.inf, uphill_D2))
    ends = [(1 - level) / 2, (1 + level) / 2]
    return np.quantile(at_D2, ends, axis=0, method="nearest").T, float(peaks_D.mean())


def best_weight_by_rank(found: Surface, log2_ranks: list[float]) -> list[Optimum | None]:
    """Return the optimum over the weight at every rank; None where it is not determined."""
    curves = [found.at_rank(rank) for rank in log2_ranks]
    return [optimum(c) if np.isfinite(c.cov_22).all() and c.cov_22[1, 1] > 0 else None
            for c in curves]  # fmt: skip
