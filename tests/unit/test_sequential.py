"""Alpha spending against published boundaries and against simulation."""

import numpy as np
import pytest
from scipy.stats import norm

from analysis.errors import AnalysisError
from analysis.planning.sequential import boundaries, repeated_interval, repeated_p

EVEN = [0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        # Five even looks at 5 % two-sided, as Jennison and Turnbull (2000) and gsDesign have them.
        ("obrien_fleming", [4.877, 3.357, 2.680, 2.290, 2.031]),
        ("pocock", [2.438, 2.427, 2.410, 2.397, 2.386]),
    ],
)
def test_boundaries_are_the_published_ones(spending, published):
    assert boundaries(EVEN, spending=spending) == pytest.approx(published, abs=2e-3)


def test_one_look_is_the_plain_test():
    assert boundaries([1.0])[0] == pytest.approx(norm.isf(0.025), abs=1e-9)


@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
def test_the_error_over_uneven_looks_is_alpha(spending):
    shares = np.array([0.3, 0.5, 1.0])
    bound = boundaries(shares, alpha=0.1, spending=spending)
    steps = np.random.default_rng(0).standard_normal((400_000, 3)) * np.sqrt(
        np.diff(shares, prepend=0.0)
    )
    z = np.cumsum(steps, axis=1) / np.sqrt(shares)
    assert (np.abs(z) >= bound).any(axis=1).mean() == pytest.approx(0.1, abs=0.002)


def test_a_look_and_its_interval_agree():
    shares = [0.4, 1.0]
    low, high = repeated_interval(2.5, 1.0, shares, alpha=0.05, spending="pocock")
    bound = boundaries(shares, alpha=0.05, spending="pocock")[-1]
    assert (low > 0) == (bound < 2.5)
    assert (low + high) / 2 == pytest.approx(2.5)
    first = repeated_interval(2.5, 1.0, shares[:1], alpha=0.05, spending="obrien_fleming")
    assert first[0] < 0  # early looks ask for more


@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
def test_a_repeated_p_is_the_alpha_whose_boundary_is_reached(spending):
    shares = [0.3, 0.7]
    for alpha in (0.001, 0.05, 0.3):
        bound = boundaries(shares, alpha=alpha, spending=spending)[-1]
        found = repeated_p([2 * norm.sf(bound)], shares, spending=spending)
        assert found == pytest.approx([alpha], rel=5e-3)


def test_a_repeated_p_at_the_only_look_is_the_p():
    assert repeated_p([0.04, 1e-4], [1.0]) == pytest.approx([0.04, 1e-4])
    assert repeated_p([1.0, 1e-12], [0.5, 1.0]) == pytest.approx([1.0, 1e-6])


@pytest.mark.parametrize("shares", [[], [0.0, 1.0], [0.5, 0.4], [0.5, 1.2]])
def test_shares_that_are_none(shares):
    with pytest.raises(AnalysisError, match="looks="):
        boundaries(shares)


def test_an_unknown_way_to_spend():
    with pytest.raises(AnalysisError, match="not one of"):
        boundaries([1.0], spending="haybittle")
