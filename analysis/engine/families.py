"""Distributions of a score given its linear predictor: log-likelihood and derivatives by row.

Both have the logit link, mu = 1 / (1 + exp(-eta)).

    binomial   m y ~ Binomial(m, mu); y is a proportion of m trials, m = 1 for right or wrong
    beta       y ~ Beta(mu phi, (1 - mu) phi), so that var y = mu (1 - mu) / (1 + phi)
               (Ferrari and Cribari-Neto 2004, J. Appl. Stat. 31(7)); weights multiply log f

For a Laplace approximation of the likelihood (`analysis.engine.glmm`) a family says, at eta and
tau = log phi: l, its score r = dl/deta, the observed weight w = -d2l/deta2, and how w and r change
with eta and tau. The binomial has no tau, and its observed weight is the expected one.

Letters in names: N rows.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import digamma, expit, gammaln

from analysis.engine.linalg import Array
from analysis.engine.summary import brief

LARGE = 12.0  # from here on the asymptotic series of psi' and psi'' are exact to rounding


@brief
@dataclass(frozen=True, slots=True)
class Inner:
    """What the search for the random effects' mode needs."""

    loglik_N: Array
    score_N: Array
    weight_N: Array

    @property
    def loglik(self) -> float:
        """The sum over the rows."""
        return float(self.loglik_N.sum())


@brief
@dataclass(frozen=True, slots=True)
class Outer:
    """What the gradient of the Laplace approximation needs besides."""

    bend_N: Array  # dw/deta
    tau: Inner | None  # the derivatives of l, r and w by tau


class _Bounded:
    """Scores from 0 to 1 with a logit link.

    Args:
        y_N: the scores.
        given_N: the trials of a binomial, the weights of a beta; one each unless given.
    """

    def __init__(self, y_N: Array, given_N: Array | None = None) -> None:
        self.y_N, self.given_N = y_N, given_N
        self.size_N: Array | float = 1.0 if given_N is None else given_N

    def of(self, y_N: Array) -> Self:
        """Return the same family for another score."""
        return type(self)(y_N, self.given_N)


class Binomial(_Bounded):
    """Proportions of trials, or right and wrong."""

    name, dispersed = "binomial", False

    def __init__(self, y_N: Array, given_N: Array | None = None) -> None:
        super().__init__(y_N, given_N)
        self.constant_N = np.zeros(1)
        if given_N is not None:
            hits_N = given_N * y_N
            self.constant_N = gammaln(given_N + 1) - gammaln(hits_N + 1)
            self.constant_N -= gammaln(given_N - hits_N + 1)

    def inner(self, eta_N: Array, tau: float) -> Inner:
        """Return log-likelihood, score and weight."""
        small_N = np.exp(-np.abs(eta_N))  # never overflows
        base_N = 1 + small_N
        mu_N = np.where(eta_N >= 0, 1.0, small_N)
        mu_N /= base_N
        soft_N = np.log(base_N)
        soft_N += np.maximum(eta_N, 0)
        score_N = self.y_N - mu_N
        small_N /= base_N
        small_N /= base_N
        loglik_N = self.y_N * eta_N - soft_N
        if self.given_N is None:
            return Inner(loglik_N, score_N, small_N)
        m_N = self.given_N
        return Inner(self.constant_N + m_N * loglik_N, m_N * score_N, m_N * small_N)

    def outer(self, eta_N: Array, tau: float) -> Outer:
        """Return the derivative of the weight."""
        mu_N = expit(eta_N)
        bend_N = mu_N * (1 - mu_N) * (1 - 2 * mu_N) * self.size_N
        return Outer(bend_N, None)

    def expected(self, eta_N: Array, tau: float) -> Array:
        """Return the weight."""
        return self.inner(eta_N, tau).weight_N

    def draw(self, eta_N: Array, tau: float, rng: np.random.Generator) -> Array:
        """Return simulated proportions."""
        if self.given_N is None:
            return (rng.random(len(eta_N)) < expit(eta_N)).astype(np.float64)
        return rng.binomial(np.rint(self.given_N).astype(np.int64), expit(eta_N)) / self.given_N


class Beta(_Bounded):
    """Scores strictly between 0 and 1."""

    name, dispersed = "beta", True

    def __init__(self, y_N: Array, given_N: Array | None = None) -> None:
        super().__init__(y_N, given_N)
        self.log_N, self.log_rest_N = np.log(y_N), np.log1p(-y_N)

    def inner(self, eta_N: Array, tau: float) -> Inner:
        """Return log-likelihood, score and observed weight."""
        phi, mu_N, rest_N = np.exp(tau), expit(eta_N), expit(-eta_N)
        a_N, b_N, spread_N = mu_N * phi, rest_N * phi, mu_N * rest_N
        loglik_N = gammaln(phi) - gammaln(a_N) - gammaln(b_N)
        loglik_N += (a_N - 1) * self.log_N + (b_N - 1) * self.log_rest_N
        by_mu_N = phi * (self.log_N - self.log_rest_N - digamma(a_N) + digamma(b_N))
        by_mu2_N = phi**2 * (trigamma(a_N)[0] + trigamma(b_N)[0])
        score_N = by_mu_N * spread_N
        weight_N = by_mu2_N * spread_N**2 - score_N * (rest_N - mu_N)
        size = self.size_N
        return Inner(size * loglik_N, size * score_N, size * weight_N)

    def outer(self, eta_N: Array, tau: float) -> Outer:
        """Return the derivatives of the weight by eta, and of all by tau."""
        phi, mu_N, rest_N = np.exp(tau), expit(eta_N), expit(-eta_N)
        a_N, b_N, spread_N, turn_N = mu_N * phi, rest_N * phi, mu_N * rest_N, rest_N - mu_N
        (first_a, second_a), (first_b, second_b) = trigamma(a_N), trigamma(b_N)
        psi_a, psi_b = digamma(a_N), digamma(b_N)
        by_mu_N = phi * (self.log_N - self.log_rest_N - psi_a + psi_b)
        by_mu2_N, by_mu3_N = -(phi**2) * (first_a + first_b), -(phi**3) * (second_a - second_b)
        bend_N = -(
            by_mu3_N * spread_N**3
            + 3 * by_mu2_N * spread_N**2 * turn_N
            + by_mu_N * spread_N * (1 - 6 * spread_N)
        )
        mu_tau_N = by_mu_N - phi * (a_N * first_a - b_N * first_b)
        mu2_tau_N = 2 * by_mu2_N - phi**2 * (a_N * second_a + b_N * second_b)
        loglik_N = phi * digamma(phi) - a_N * (psi_a - self.log_N) - b_N * (psi_b - self.log_rest_N)
        weight_tau_N = -(mu2_tau_N * spread_N**2 + mu_tau_N * spread_N * turn_N)
        size = self.size_N
        by_tau = Inner(size * loglik_N, size * mu_tau_N * spread_N, size * weight_tau_N)
        return Outer(size * bend_N, by_tau)

    def expected(self, eta_N: Array, tau: float) -> Array:
        """Return the expected weight."""
        phi, mu_N, rest_N = np.exp(tau), expit(eta_N), expit(-eta_N)
        both_N = trigamma(mu_N * phi)[0] + trigamma(rest_N * phi)[0]
        return self.size_N * phi**2 * both_N * (mu_N * rest_N) ** 2

    def draw(self, eta_N: Array, tau: float, rng: np.random.Generator) -> Array:
        """Return simulated scores."""
        mu_N, phi = expit(eta_N), np.exp(tau)
        tiny = np.finfo(np.float64).eps
        return np.clip(rng.beta(mu_N * phi, (1 - mu_N) * phi), tiny, 1 - tiny)


Family = Binomial | Beta


def trigamma(x_N: Array) -> tuple[Array, Array]:
    """Return psi'(x) and psi''(x) of positive x, to about 14 digits.

    Recurrence up to `LARGE`, then the asymptotic series (Abramowitz and Stegun 6.4.6, 6.4.11 to
    6.4.13); scipy's polygamma takes eight times as long for the two of them.
    """
    z_N = np.array(x_N, dtype=np.float64)
    small = np.flatnonzero(z_N < LARGE)
    low = z_N[small]
    add1, add2 = np.zeros_like(low), np.zeros_like(low)
    for _ in range(int(LARGE)):
        inverse = 1 / low
        square = inverse * inverse
        add1 += square
        add2 -= 2 * square * inverse
        low += 1
    z_N[small] = low
    r = 1 / z_N
    q = r * r
    first = r + q / 2 + r * q * _series(q, (1 / 6, 1 / 30, 1 / 42, 1 / 30, 5 / 66, 691 / 2730))
    second = -q - q * r - q * q * _series(q, (1 / 2, 1 / 6, 1 / 6, 3 / 10, 5 / 6, 691 / 210))
    first[small] += add1
    second[small] += add2
    return first, second


def _series(q: Array, terms: tuple[float, ...]) -> Array:
    """Return t0 - q (t1 - q (t2 - ...))."""
    total = np.full_like(q, terms[-1])
    for term in terms[-2::-1]:
        total = term - q * total
    return total
