"""Generalised linear mixed models: the Laplace approximation of the deviance, and its gradient.

For one scalar random effect `adaptive` has the integral itself.

Model:   eta = o + X beta + Z Lambda u,   u ~ N(0, I),   y ~ family(eta, tau), see `families`.

With l the log-likelihood of y given eta, g(u) = u'u / 2 - l, u^ its minimum and H its Hessian
there, H = I + Lambda' Z' W Z Lambda with the *observed* weights W = -d2l/deta2, the deviance is

    f(theta, beta, tau) = 2 g(u^) + log|H|

(Laplace; Bates et al. 2015, section 5; Kristensen et al. 2016, J. Stat. Softw. 70(5), section 2).
u^ moves with the parameters, so the gradient needs the implicit function theorem. Let r = dl/deta,
w' = dw/deta, h = diag(Z Lambda H^-1 Lambda' Z'), d = h w' and

    s = Z Lambda H^-1 Lambda' Z' d,      e = d - W s.

Then df/dbeta = X' (e - 2 r), df/dtau = -2 dl/dtau + h' dw/dtau + s' dr/dtau, and by the covariance
Lambda_f Lambda_f', with a = Z_f' r and c = Z_f' e,

    D_f = sum over levels of Z_f' (W - W Z Lambda H^-1 Lambda' Z' W) Z_f - a a' + (c a' + a c') / 2

and the gradient by Lambda_f is 2 D_f Lambda_f, as in the linear model.

Letters in names: N rows, L levels, P columns of a factor, B fixed effects, M columns of Z of all
factors but the first.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from scipy.linalg import qr, solve_triangular

from analysis.engine.adaptive import OneEffect, integrated
from analysis.engine.blocked import Factored, factored, inverse_of_leading
from analysis.engine.families import Family, Inner, Outer
from analysis.engine.layout import BlockLayout, Factor
from analysis.engine.linalg import Array, Index, independent_columns
from analysis.engine.lmm import Templates
from analysis.engine.summary import brief

INNER_STEPS = 50
HALVINGS = 20
NEAR_MODE = 1e-13  # Newton decrement of g from which one step more leads to the mode
AT_MODE = 1e-20  # the same at which u is the mode: gradients are differenced, see `glmm_fit`
SLACK = 1e-12  # share of g that is rounding
FAR = 5.0  # how far a mode may be predicted to move


@brief
@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of X that are fitted, and an upper triangle R with X R^-1 of unit size."""

    kept: Index
    r_BB: Array


@brief
@dataclass(frozen=True, slots=True)
class GlmmEvaluation:
    """The Laplace deviance at one x, its derivatives and what the solution is read from."""

    deviance: float
    gradient: Array  # by x
    slopes: tuple[Array, ...]  # D_f, (P, P) for every factor
    modes: tuple[Array, ...]  # u, (L, P) for every factor
    eta_N: Array
    loglik: float  # given the modes
    log_det: float  # of H


@brief
@dataclass(frozen=True, slots=True)
class Mode:
    """The minimum of g at one x."""

    x: Array
    u: list[Array]  # (L, P) for every factor
    eta_N: Array
    inner: Inner
    factor: Factored
    rest: list[Array]  # the last Newton step, not taken


class GlmmProblem(Templates):
    """A generalised linear mixed model and its data; x = (theta, gamma, tau).

    beta = R^-1 gamma, where X R^-1 has orthogonal columns of unit size, and theta is of columns of
    unit size, so that all of x is of the order of one in any units. tau is there where the family
    has it.

    Args:
        X_NB: fixed-effects matrix; dependent columns are left out, see `fixed.kept`.
        family: the distribution with its data.
        factors: grouping factors, in any order; `self.factors` has the largest first.
        offset_N: added to eta.
        points: of adaptive quadrature, for one scalar random effect; 1 is Laplace's approximation.
    """

    def __init__(
        self,
        X_NB: Array,
        family: Family,
        *,
        factors: Sequence[Factor] = (),
        offset_N: Array | None = None,
        points: int = 1,
    ) -> None:
        self.points = points
        self.factors = tuple(sorted(factors, key=lambda f: -f.size))
        super().__init__(self.factors)
        kept = independent_columns(X_NB)
        self.X_NB = X_NB if len(kept) == X_NB.shape[1] else X_NB[:, kept]
        self.n, self.p = self.X_NB.shape
        r_BB = qr(self.X_NB, mode="r", check_finite=False)[0][: self.p] / np.sqrt(self.n)
        self.fixed = Columns(kept, np.asarray(r_BB))
        self.family, self.offset_N = family, offset_N
        self.scales = [np.sqrt(np.mean(f.columns_NP**2, axis=0)) for f in self.factors]
        scaled = [f.columns_NP / s for f, s in zip(self.factors, self.scales, strict=True)]
        self.layout = BlockLayout(self.factors, scaled)
        free = np.full(self.p + family.dispersed, -np.inf)
        self.lower = np.concatenate([self.lower, free])
        self.first = np.zeros(len(self.lower))  # where the search begins, see `glmm_fit`
        self.bend = np.eye(len(self.lower))  # a guess at the Hessian there
        self._last: tuple[Mode, Outer] | None = None

    @property
    def start(self) -> Array:
        """Where the search begins."""
        return self.first

    def curvature(self, x: Array, at: GlmmEvaluation) -> Array | None:
        """Return a guess at the Hessian where there is one: at the start."""
        return self.bend if np.array_equal(x, self.first) else None

    def beta(self, x: Array) -> Array:
        """Return the fixed effects."""
        gamma_B = x[self.size : self.size + self.p]
        return np.asarray(solve_triangular(self.fixed.r_BB, gamma_B, check_finite=False))

    def tau(self, x: Array) -> float:
        """Return log phi, zero for a family without it."""
        return float(x[-1]) if self.family.dispersed else 0.0

    def evaluate(self, x: Array) -> GlmmEvaluation:
        """Return deviance and gradient at x.

        Raises:
            numpy.linalg.LinAlgError: there is no mode, or H is not positive definite there.
        """
        mode = self.mode(x)
        outer = self.family.outer(mode.eta_N, self.tau(x))
        self._last = (mode, outer)
        gradient, slopes, pull = _derivatives(self, mode, outer)
        # log|H| is wanted at the mode, and u is a step short of it.
        log_det = mode.factor.log_det_to(self.layout.q)
        log_det += sum(float((g * s).sum()) for g, s in zip(pull, mode.rest, strict=True))
        deviance = log_det - 2 * mode.inner.loglik + _squares(mode.u)
        if self.points > 1:
            deviance, gradient = _integrated(self, mode, outer)
            if x[0] > 0:  # at zero Laplace's slope by the variance is exact
                slopes = (np.array([[gradient[0] / (2 * x[0])]]),)
        return GlmmEvaluation(
            deviance=deviance,
            gradient=gradient,
            slopes=slopes,
            modes=tuple(mode.u),
            eta_N=mode.eta_N,
            loglik=mode.inner.loglik,
            log_det=log_det,
        )

    def mode(self, x: Array) -> Mode:
        """Return the mode of the random effects at x, by Newton's method.

        Raises:
            numpy.linalg.LinAlgError: as `evaluate`.
        """
        lambdas, tau = self.unpack(x[: self.size]), self.tau(x)
        fixed_N = self.X_NB @ self.beta(x)
        if self.offset_N is not None:
            fixed_N += self.offset_N

        def at(u: list[Array]) -> _Point:
            eta_N = fixed_N + self.layout.times(_turned(u, [m.T for m in lambdas]))
            with np.errstate(all="ignore"):  # what is not finite is no place to go
                inner = self.family.inner(eta_N, tau)
            return _Point(u, eta_N, inner, _squares(u) / 2 - inner.loglik)

        point, near = at(self._guess(x)), False
        for _ in range(INNER_STEPS):
            factor, observed = self._factored(point, lambdas, tau)
            pull = _turned(self.layout.transposed(point.inner.score_N), lambdas)
            pull = [g - u for g, u in zip(pull, point.u, strict=True)]
            step = factor.solve(pull)
            decrement = sum(float((g * s).sum()) for g, s in zip(pull, step, strict=True))
            if decrement < (NEAR_MODE if near else AT_MODE):
                if not observed:
                    break
                return Mode(x.copy(), point.u, point.eta_N, point.inner, factor, step)
            near = decrement < NEAR_MODE
            point = _lowered(at, point, step)
        raise np.linalg.LinAlgError("the random effects have no mode")

    def posterior(self, x: Array) -> list[Array]:
        """Return the covariance of every level's random effects given beta, (L, P, P) a factor.

        It is Lambda H^-1 Lambda', of columns of unit size.
        """
        factor = self.mode(x).factor
        return factor.posterior(inverse_of_leading(factor.chol_MM, self.layout.q))[0]

    def eta_variances(self, x: Array, cov_BB: Array) -> Array:
        """Return the variance of every row's eta about its truth, (N,), given theta and tau.

        With c = x - X' W Z Lambda H^-1 Lambda' z, for u answers to beta, it is
        z' Lambda H^-1 Lambda' z + c' cov c.
        """
        mode = self.mode(x)
        own, across, _ = mode.factor.posterior(
            inverse_of_leading(mode.factor.chol_MM, self.layout.q)
        )
        c_NB = self.X_NB.copy()
        for j in range(self.p if self.factors else 0):
            c_NB[:, j] -= self._answer(mode.factor, mode.inner.weight_N * self.X_NB[:, j])
        total_N = self.layout.variances(own, across) + np.zeros(self.n)
        return total_N + np.einsum("na,ab,nb->n", c_NB, cov_BB, c_NB, optimize=True)

    def _answer(self, factor: Factored, x_N: Array) -> Array:
        """Return Z Lambda H^-1 Lambda' Z' x."""
        v = factor.solve(_turned(self.layout.transposed(x_N), factor.lambdas))
        return self.layout.times(_turned(v, [m.T for m in factor.lambdas]))

    def with_response(self, y_N: Array, start: Array, bend: Array) -> "GlmmProblem":
        """Return the same model of another score, to be searched from `start`.

        Args:
            y_N: the score, which `family` must be able to have.
            start: where the search begins.
            bend: a guess at the Hessian there.
        """
        found = copy(self)
        found.family, found._last = self.family.of(y_N), None
        found.first, found.bend = start, bend
        return found

    def _factored(self, point: "_Point", lambdas: list[Array], tau: float) -> tuple[Factored, bool]:
        """Return the factor of H, with expected weights where the observed ones give none."""
        weight_N = point.inner.weight_N
        if not np.isfinite(point.objective + float(weight_N.sum())):
            raise np.linalg.LinAlgError("the likelihood is not finite")
        try:
            return factored(self.layout, self.layout.blocks(weight_N), lambdas), True
        except np.linalg.LinAlgError:
            weight_N = self.family.expected(point.eta_N, tau)
            return factored(self.layout, self.layout.blocks(weight_N), lambdas), False

    def _guess(self, x: Array) -> list[Array]:
        """Return where to look for the mode: along the tangent from the last one."""
        if self._last is None:
            return [np.zeros((len(f.levels), len(f.names))) for f in self.factors]
        last, outer = self._last
        before, after = (self.unpack(v[: self.size]) for v in (last.x, x))
        change = [b - a for a, b in zip(before, after, strict=True)]
        shift_N = self.X_NB @ (self.beta(x) - self.beta(last.x))
        shift_N += self.layout.times(_turned(last.u, [m.T for m in change]))
        pull_N = -last.inner.weight_N * shift_N
        if outer.tau is not None:
            pull_N += outer.tau.score_N * (self.tau(x) - self.tau(last.x))
        pull = _turned(self.layout.transposed(pull_N), before)
        turn = _turned(self.layout.transposed(last.inner.score_N), change)
        step = last.factor.solve([a + b for a, b in zip(pull, turn, strict=True)])
        near = all(np.abs(s).max() < FAR for s in step)
        return [u + s if near else u for u, s in zip(last.u, step, strict=True)]


@brief
@dataclass(frozen=True, slots=True)
class _Point:
    """One step of the search for the mode."""

    u: list[Array]
    eta_N: Array
    inner: Inner
    objective: float  # g


def _squares(u: Sequence[Array]) -> float:
    return sum(float((u_LP**2).sum()) for u_LP in u)


def _turned(parts: Sequence[Array], templates: Sequence[Array]) -> list[Array]:
    """Return every (L, P) times its (P, P): the rows a' Lambda are (Lambda' a)'."""
    return [
        part * m[0, 0] if len(m) == 1 else part @ m
        for part, m in zip(parts, templates, strict=True)
    ]


def _lowered(at: Callable[[list[Array]], _Point], point: _Point, step: list[Array]) -> _Point:
    """Return the first point along a Newton step where g is no higher."""
    share, slack = 1.0, SLACK * abs(point.objective)
    for _ in range(HALVINGS):
        after = at([u + share * s for u, s in zip(point.u, step, strict=True)])
        if after.objective <= point.objective + slack:
            return after
        share /= 2
    raise np.linalg.LinAlgError("the search for the random effects' mode does not go down")


def _integrated(problem: GlmmProblem, mode: Mode, outer: Outer) -> tuple[float, Array]:
    """Return the deviance and its gradient by x, of one scalar random effect, by quadrature."""
    (factor,), ((scale,),) = problem.factors, problem.scales
    z_N, u_L, tau = factor.columns_NP[:, 0] / scale, mode.u[0][:, 0], problem.tau(mode.x)
    at = OneEffect(
        problem.family, tau, float(mode.x[0]), factor.index_N, z_N, u_L,
        mode.eta_N, mode.inner, outer,
    )  # fmt: skip
    deviance, by_theta, by_eta_N, by_tau = integrated(at, problem.points)
    by_beta = problem.X_NB.T @ by_eta_N
    by_gamma = solve_triangular(problem.fixed.r_BB, by_beta, trans=1, check_finite=False)
    found = [by_theta, *by_gamma, *[by_tau] * problem.family.dispersed]
    return deviance, -2 * np.array(found)


def _derivatives(
    problem: GlmmProblem, mode: Mode, outer: Outer
) -> tuple[Array, tuple[Array, ...], list[Array]]:
    """Return the gradient by x, D_f of every factor, and the gradient of log|H| by u.

    See the module's docstring.
    """
    layout, factor, inner = problem.layout, mode.factor, mode.inner
    inverse_MM = inverse_of_leading(factor.chol_MM, layout.q)
    own, across, sums = factor.posterior(inverse_MM)
    h_N = layout.variances(own, across)
    d_N = h_N * outer.bend_N
    pull = _turned(layout.transposed(d_N), factor.lambdas)
    v = factor.solve(pull)
    s_N = layout.times(_turned(v, [m.T for m in factor.lambdas]))
    e_N = d_N - inner.weight_N * s_N
    pairs = zip(sums, layout.transposed(inner.score_N), layout.transposed(e_N), strict=True)
    slopes = tuple(q - a.T @ a + (c.T @ a + a.T @ c) / 2 for q, a, c in pairs)
    by_theta = [2 * d @ m for d, m in zip(slopes, factor.lambdas, strict=True)]
    by_beta = problem.X_NB.T @ (e_N - 2 * inner.score_N)
    by_gamma = solve_triangular(problem.fixed.r_BB, by_beta, trans=1, check_finite=False)
    found = [problem.pack(by_theta), by_gamma]
    if outer.tau is not None:
        by_tau_N = h_N * outer.tau.weight_N + s_N * outer.tau.score_N - 2 * outer.tau.loglik_N
        found.append(np.array([float(by_tau_N.sum())]))
    return np.concatenate(found), slopes, pull
