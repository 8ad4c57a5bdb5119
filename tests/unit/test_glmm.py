"""The Laplace deviance, its gradient and its modes against a dense one in float64."""

import numpy as np
import pytest
from scipy import optimize, special, stats
from scipy.linalg import block_diag

from analysis.engine.families import Beta, Binomial
from analysis.engine.glmm import GlmmProblem
from analysis.engine.layout import Factor


def naive_beta(y, eta, phi, weights):
    mu = special.expit(eta)
    return float(np.sum(weights * stats.beta.logpdf(y, mu * phi, (1 - mu) * phi)))


def naive_binomial(y, eta, trials):
    hits = np.rint(trials * y)
    return float(np.sum(stats.binom.logpmf(hits, trials, special.expit(eta))))


def dense(problem, x, near=None):
    """The Laplace deviance in float64, all of it dense: mode by BFGS, Hessian by differences.

    Where a mode is near, the search begins there.
    """
    lambdas = problem.unpack(x)
    beta, family = problem.beta(x), problem.family
    parts = []
    for f, lam, scale in zip(problem.factors, lambdas, problem.scales, strict=True):
        z = f.matrix(f.columns_NP / scale).toarray()
        parts.append(z @ block_diag(*[lam] * len(f.levels)))
    zl = np.hstack(parts) if parts else np.zeros((problem.n, 0))
    fixed = problem.X_NB @ beta + (0 if problem.offset_N is None else problem.offset_N)
    size, y = np.ones(problem.n) * family.size_N, family.y_N

    def loglik(eta):
        if family.dispersed:
            return naive_beta(y, eta, np.exp(x[-1]), size)
        return naive_binomial(y, eta, size)

    def penalised(u):
        eta = fixed + zl @ u
        return u @ u / 2 - loglik(eta), u - zl.T @ family.inner(eta, problem.tau(x)).score_N

    mode = np.zeros(zl.shape[1]) if near is None else near
    if len(mode):
        mode = optimize.minimize(penalised, mode, jac=True, method="BFGS", options={"gtol": 1e-9}).x
    hessian = np.zeros((len(mode),) * 2)
    for i in range(len(mode)):
        step = np.zeros(len(mode))
        step[i] = 1e-4
        hessian[i] = (penalised(mode + step)[1] - penalised(mode - step)[1]) / 2e-4
    return 2 * penalised(mode)[0] + np.linalg.slogdet(hessian)[1], mode, hessian, zl


def factor(rng, n, levels, columns, free, group="g"):
    index = rng.permutation(np.arange(n) % levels)
    values = np.column_stack([np.ones(n), rng.normal(0, 2, (n, columns - 1))])
    names = tuple(f"c{i}" for i in range(columns))
    return Factor(group, names, values, index, tuple(map(str, range(levels))), free)


def problems():
    rng = np.random.default_rng(8)
    n = 40
    X = np.column_stack([np.ones(n), rng.normal(3, 1, n), 100 * rng.normal(size=n)])
    one, full, apart = np.ones((1, 1), bool), np.tril(np.ones((2, 2), bool)), np.eye(2, dtype=bool)
    a = factor(rng, n, 7, 1, one, "a")
    b = factor(rng, n, 4, 1, one, "b")
    c = factor(rng, n, 3, 1, one, "c")
    slopes, uncorrelated = factor(rng, n, 5, 2, full, "s"), factor(rng, n, 5, 2, apart, "u")
    eta = rng.normal(0, 1, n)
    trials, weights = rng.integers(1, 12, n).astype(float), rng.uniform(0.5, 2, n)
    counted = Binomial(rng.binomial(trials.astype(int), special.expit(eta)) / trials, trials)
    right = Binomial((rng.random(n) < special.expit(eta)).astype(float))
    y = np.clip(rng.beta(2 * special.expit(eta), 2 * special.expit(-eta)), 1e-3, 1 - 1e-3)
    offset = rng.normal(0, 0.5, n)
    return {
        "right, crossed": GlmmProblem(X, right, factors=[a, b]),
        "trials, three factors, offset": GlmmProblem(
            X, counted, factors=[a, b, c], offset_N=offset
        ),
        "trials, slopes crossed": GlmmProblem(X, counted, factors=[slopes, a]),
        "beta, one": GlmmProblem(X, Beta(y), factors=[a]),
        "beta, weights, offset": GlmmProblem(
            X, Beta(y, weights), factors=[a, uncorrelated], offset_N=offset
        ),
        "beta, slopes twice": GlmmProblem(X, Beta(y, weights), factors=[slopes, uncorrelated]),
        "beta, none": GlmmProblem(X, Beta(y)),
        "right, none": GlmmProblem(X, right),
    }


PROBLEMS = problems()


def point(problem, seed=0):
    """A point away from any minimum."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.3, len(problem.lower))
    x[: problem.size] = np.where(problem.lower[: problem.size] == 0, 0.8, 0.3)
    if problem.family.dispersed:
        x[-1] = 0.9
    return x


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_deviance_is_the_dense_one(name, seed):
    problem = PROBLEMS[name]
    x = point(problem, seed)
    found = problem.evaluate(x)
    deviance, mode, _, _ = dense(problem, x)
    assert found.deviance == pytest.approx(deviance, abs=1e-6)
    u = np.concatenate([np.empty(0), *(u_LP.ravel() for u_LP in found.modes)])
    np.testing.assert_allclose(u, mode, atol=1e-6)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_gradient_is_that_of_the_dense_deviance(name):
    problem = PROBLEMS[name]
    x = point(problem)
    gradient, near = problem.evaluate(x).gradient, dense(problem, x)[1]
    for i in range(len(x)):
        step = np.zeros(len(x))
        step[i] = 1e-3
        ends = [dense(problem, x + s * step, near)[0] for s in (-2, -1, 1, 2)]
        slope = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / 12e-3  # of fourth order
        assert gradient[i] == pytest.approx(slope, abs=2e-4 * (1 + np.abs(gradient).max()))


@pytest.mark.parametrize("name", ["right, crossed", "beta, slopes twice"])
def test_the_slope_by_a_covariance_is_that_of_the_deviance(name):
    # At Lambda = 0 the gradient vanishes; D_f does not, and says what a little variance brings.
    problem = PROBLEMS[name]
    x = point(problem)
    x[: problem.size] = 0
    at = problem.evaluate(x)
    np.testing.assert_allclose(at.gradient[: problem.size], 0, atol=1e-12)
    for i, (f, slope) in enumerate(zip(problem.factors, at.slopes, strict=True)):
        lambdas = [np.zeros(shape) for shape in problem.shapes]
        lambdas[i] = np.diag(np.full(len(f.names), 1e-3))
        moved = np.concatenate([problem.pack(lambdas), x[problem.size :]])
        gain = (problem.evaluate(moved).deviance - at.deviance) / 1e-6
        assert gain == pytest.approx(np.trace(slope), rel=1e-3)


def test_laplace_is_near_the_integral_itself():
    # One scalar effect a group: the likelihood by adaptive Gauss-Hermite quadrature. Laplace is
    # not equal to it; with 6 rows of 1 to 11 trials it is near.
    rng = np.random.default_rng(5)
    index, trials = np.repeat(np.arange(12), 6), rng.integers(1, 12, 72).astype(float)
    eta = rng.normal(0, 0.7, 12)[index]
    y = rng.binomial(trials.astype(int), special.expit(eta)) / trials
    group = Factor(
        "g",
        ("Intercept",),
        np.ones((72, 1)),
        index,
        tuple(map(str, range(12))),
        np.ones((1, 1), bool),
    )
    problem = GlmmProblem(np.ones((72, 1)), Binomial(y, trials), factors=[group])
    x = np.array([0.7, 0.1])
    at, beta = problem.evaluate(x), problem.beta(x)[0]
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    total = 0.0
    for level in range(12):
        own = index == level
        mode = float(at.modes[0][level, 0])
        w = (trials[own] * special.expit(at.eta_N[own]) * special.expit(-at.eta_N[own])).sum()
        sd = 1 / np.sqrt(1 + 0.49 * w)
        u = mode + sd * nodes
        logs = [
            naive_binomial(y[own], beta + 0.7 * v, trials[own]) + stats.norm.logpdf(v) for v in u
        ]
        total += special.logsumexp(logs + nodes**2 / 2, b=weights * sd)
    assert -at.deviance / 2 == pytest.approx(total, abs=0.1)
    assert -at.deviance / 2 != pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize("name", ["trials, slopes crossed", "beta, weights, offset"])
def test_posterior_and_fitted_variances_are_the_dense_ones(name):
    problem = PROBLEMS[name]
    x = point(problem)
    _, _, hessian, zl = dense(problem, x)
    inverse = np.linalg.inv(hessian)
    own, start = problem.posterior(x), 0
    for f, found, lam in zip(problem.factors, own, problem.unpack(x), strict=True):
        p = len(f.names)
        for level in range(len(f.levels)):
            part = slice(start + level * p, start + (level + 1) * p)
            np.testing.assert_allclose(found[level], lam @ inverse[part, part] @ lam.T, atol=1e-6)
        start += f.size
    cov = np.diag([0.1, 0.2, 1e-5])
    weight = problem.mode(x).inner.weight_N
    c = problem.X_NB - zl @ inverse @ zl.T @ (weight[:, None] * problem.X_NB)
    variance = np.einsum("nq,qr,nr->n", zl, inverse, zl) + np.einsum("na,ab,nb->n", c, cov, c)
    np.testing.assert_allclose(problem.eta_variances(x, cov), variance, atol=1e-5)


def test_a_mode_is_found_from_anywhere_and_twice_the_same():
    problem = PROBLEMS["beta, slopes twice"]
    x, far = point(problem), point(problem, 5) * 3
    first = problem.evaluate(x)
    problem.evaluate(far)
    again = problem.evaluate(x)
    assert again.deviance == pytest.approx(first.deviance, abs=1e-10)
    np.testing.assert_allclose(again.gradient, first.gradient, atol=1e-8)


def test_a_likelihood_that_is_not_finite_is_no_place_to_go():
    problem = PROBLEMS["beta, one"]
    x = point(problem)
    x[-1] = 800.0  # phi overflows
    with pytest.raises(np.linalg.LinAlgError):
        problem.evaluate(x)
