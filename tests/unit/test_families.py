"""Distributions row by row: against scipy.stats, naive formulas and differences."""

import numpy as np
import pytest
from scipy import special, stats

from analysis.engine.families import LARGE, Beta, Binomial, trigamma

N = 60
RNG = np.random.default_rng(3)
ETA = np.concatenate([RNG.normal(0, 2, N - 4), [-9.0, 9.0, 0.0, 4.0]])
TAUS = [-1.0, 1.5, 6.5]  # phi of 0.4, 4.5 and 665
TRIALS = RNG.integers(1, 40, N).astype(float)
WEIGHTS = RNG.uniform(0.3, 3, N)
HITS = RNG.binomial(TRIALS.astype(int), special.expit(ETA)).astype(float)
Y = np.clip(RNG.beta(2, 3, N), 1e-4, 1 - 1e-4)
STEP = 1e-5

FAMILIES = {
    "right or wrong": Binomial((HITS > 0).astype(float)),
    "trials": Binomial(HITS / TRIALS, TRIALS),
    "beta": Beta(Y),
    "beta, weights": Beta(Y, WEIGHTS),
}
DISPERSED = [name for name, family in FAMILIES.items() if family.dispersed]
CASES = [(n, t) for n, f in FAMILIES.items() for t in (TAUS if f.dispersed else TAUS[:1])]


def by_row(family, eta, tau):
    """The log-likelihood of every row alone, by scipy.stats."""
    mu, y = special.expit(eta), family.y_N
    if isinstance(family, Binomial):
        trials = np.ones(N) * family.size_N
        return stats.binom.logpmf(np.rint(trials * y), trials, mu)
    a, b = mu * np.exp(tau), (1 - mu) * np.exp(tau)
    return np.ones(N) * family.size_N * stats.beta.logpdf(y, a, b)


def difference(function, at, step=STEP):
    return (function(at + step) - function(at - step)) / (2 * step)


def close(ours, other):
    """Within what central differences of this step are good for."""
    np.testing.assert_allclose(ours, other, rtol=2e-6, atol=2e-6 * (1 + np.abs(other).max()))


@pytest.mark.parametrize(("name", "tau"), CASES)
def test_loglik_is_that_of_scipy(name, tau):
    family = FAMILIES[name]
    inner = family.inner(ETA, tau)
    assert inner.loglik == pytest.approx(by_row(family, ETA, tau).sum(), rel=1e-11, abs=1e-9)


@pytest.mark.parametrize(("name", "tau"), CASES)
def test_derivatives_by_eta(name, tau):
    family = FAMILIES[name]
    inner, outer = family.inner(ETA, tau), family.outer(ETA, tau)
    close(inner.score_N, difference(lambda eta: by_row(family, eta, tau), ETA))
    close(inner.weight_N, -difference(lambda eta: family.inner(eta, tau).score_N, ETA))
    close(outer.bend_N, difference(lambda eta: family.inner(eta, tau).weight_N, ETA))


@pytest.mark.parametrize("name", DISPERSED)
@pytest.mark.parametrize("tau", TAUS)
def test_derivatives_by_tau(name, tau):
    family = FAMILIES[name]
    outer = family.outer(ETA, tau)
    close(outer.tau.loglik_N, difference(lambda t: by_row(family, ETA, t), tau))
    close(outer.tau.score_N, difference(lambda t: family.inner(ETA, t).score_N, tau))
    close(outer.tau.weight_N, difference(lambda t: family.inner(ETA, t).weight_N, tau))


def test_a_family_without_dispersion_has_no_derivatives_by_it():
    assert FAMILIES["trials"].outer(ETA, 0.0).tau is None


@pytest.mark.parametrize("tau", TAUS[1:])  # a smaller phi has its mass nearer to 1 than rounding
def test_the_expected_weight_is_the_mean_of_the_observed_one(tau):
    # E of the observed weight under the model, by quadrature over the quantiles.
    eta = np.array([-2.0, 0.0, 1.0])
    phi, mu = np.exp(tau), special.expit(eta)
    nodes, weights = np.polynomial.legendre.leggauss(100)
    found = np.zeros(3)
    for u, w in zip((nodes + 1) / 2, weights / 2, strict=True):
        y = np.clip(stats.beta.ppf(u, mu * phi, (1 - mu) * phi), 1e-300, 1 - 1e-16)
        found += w * Beta(y).inner(eta, tau).weight_N
    np.testing.assert_allclose(found, Beta(np.full(3, 0.5)).expected(eta, tau), rtol=5e-3)


def test_the_expected_weight_is_positive_and_the_binomials_own():
    assert (FAMILIES["beta, weights"].expected(ETA, 0.0) > 0).all()
    family = FAMILIES["trials"]
    mu = special.expit(ETA)
    np.testing.assert_allclose(
        family.expected(ETA, 0.0), TRIALS * mu * special.expit(-ETA), rtol=1e-12
    )


def test_far_out_nothing_overflows():
    eta = np.array([-800.0, -40.0, 40.0, 800.0])
    family = Binomial(np.array([0.0, 0.0, 1.0, 1.0]))
    with np.errstate(all="raise", under="ignore"):
        inner = family.inner(eta, 0.0)
    assert inner.loglik == pytest.approx(-2 * np.exp(-40.0), rel=1e-10)
    wrong = Binomial(np.array([1.0, 1.0, 0.0, 0.0])).inner(eta, 0.0)
    assert wrong.loglik == pytest.approx(-1680.0)


def test_trigamma_is_scipys():
    x = np.concatenate([10.0 ** np.linspace(-8, 8, 400), [LARGE, np.nextafter(LARGE, 0)]])
    first, second = trigamma(x)
    np.testing.assert_allclose(first, special.polygamma(1, x), rtol=3e-14)
    np.testing.assert_allclose(second, special.polygamma(2, x), rtol=3e-14)


@pytest.mark.parametrize(("name", "tau"), CASES)
def test_draws_have_the_mean_and_variance_of_the_model(name, tau):
    family, rng = FAMILIES[name], np.random.default_rng(0)
    draws = np.array([family.draw(ETA, tau, rng) for _ in range(1000)])
    mu = special.expit(ETA)
    variance = mu * (1 - mu)
    variance /= (1 + np.exp(tau)) if family.dispersed else np.ones(N) * family.size_N
    assert np.abs((draws.mean(axis=0) - mu) / np.sqrt(variance / 1000)).max() < 4.5
    middle = np.abs(ETA) < 2  # far out a variance rests on a handful of draws
    np.testing.assert_allclose(draws.var(axis=0)[middle], variance[middle], rtol=0.3)
    if family.dispersed:
        assert (draws > 0).all()
        assert (draws < 1).all()
        assert np.isfinite(family.of(draws[0]).inner(ETA, tau).loglik)
    else:
        trials = np.ones(N) * family.size_N
        np.testing.assert_allclose(draws * trials, np.rint(draws * trials), atol=1e-9)


def test_another_score_keeps_trials_and_weights():
    again = FAMILIES["trials"].of(np.zeros(N))
    assert again.inner(ETA, 0.0).loglik == pytest.approx(
        stats.binom.logpmf(0, TRIALS, special.expit(ETA)).sum()
    )
    np.testing.assert_array_equal(FAMILIES["beta, weights"].of(Y).size_N, WEIGHTS)
