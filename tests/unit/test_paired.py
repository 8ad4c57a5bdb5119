"""The sequential t rule and its campaigns: closed forms, the normal theory, simulated campaigns."""

import json

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from statsmodels.stats.power import TTestPower

from analysis.errors import AnalysisError
from analysis.planning import sequential
from analysis.planning.campaign import rate, share
from analysis.planning.paired import (
    Rule,
    bounds,
    decide,
    enough,
    fixed_seeds,
    foreseen,
    t_boundaries,
    verdict,
)
from benchmarks.decide import NOISES, campaigns

LOOKS = tuple(range(3, 21))


def t_statistics(d_N):
    """T_2, T_3, ... of every row, by the textbook."""
    n = np.arange(1, d_N.shape[-1] + 1)
    mean = np.cumsum(d_N, -1) / n
    squares = np.cumsum(d_N**2, -1) - n * mean**2
    return mean[..., 1:] / np.sqrt(squares / n / np.maximum(n - 1, 1))[..., 1:]


@pytest.mark.parametrize("n", [2, 5, 12])
@pytest.mark.parametrize("alpha", [0.2, 0.01, 1e-5])
def test_one_look_is_the_t_test(n, alpha):
    (found,) = t_boundaries((n,), alpha, "pocock")
    tolerance = 2e-2 if n > 2 else 1e-8  # the grid's; without a step before there is none
    assert student.sf(found, n - 1) == pytest.approx(alpha, rel=tolerance)


@pytest.mark.parametrize("spending", sequential.SPENDING)
@pytest.mark.parametrize("alpha", [0.1, 0.01])
def test_the_error_over_all_looks_is_alpha(spending, alpha):
    """Two seeds are a look as well, and seeds at which nobody looks stand between two."""
    looks, draws = (2, 3, 5, 9), 200_000
    t = t_statistics(np.random.default_rng(1).standard_normal((draws, 9)))[:, np.array(looks) - 2]
    crossed = t >= np.array(t_boundaries(looks, alpha, spending))
    error = np.sqrt(alpha / draws)
    assert crossed.any(1).mean() == pytest.approx(alpha, abs=3 * error)
    spent = sequential.SPENDING[spending](np.array(looks) / 9, 2 * alpha) / 2
    by_look = [crossed[:, : k + 1].any(1).mean() for k in range(4)]
    assert by_look == pytest.approx(list(spent), abs=3 * error)


def test_many_seeds_are_the_normal_theory():
    """One-sided at alpha is two-sided at 2 alpha, but for what crosses both sides."""
    looks = (20, 30, 40)
    found = norm.isf(student.sf(t_boundaries(looks, 0.01, "pocock"), np.array(looks) - 1))
    known = sequential.boundaries(np.array(looks) / 40, alpha=0.02, spending="pocock")
    assert found == pytest.approx(known, abs=0.03)


def test_a_verdict_is_the_same_seed_by_seed_and_all_at_once():
    rule = Rule(1.0, 0.01, 0.1, (3, 5, 8))
    d_CN = np.random.default_rng(2).normal(0.6, 0.7, (60, 8))
    at_once = decide(rule, d_CN)
    for row, accepted, rejected, seeds in zip(
        d_CN, at_once.accepted, at_once.rejected, at_once.seeds, strict=True
    ):
        n = next(n for n in range(9) if verdict(rule, row[:n]) is not None)
        assert n == seeds
        told = "accept" if accepted else "reject" if rejected else "undecided"
        assert verdict(rule, row[:n]) == told
    assert at_once.accepted.any()
    assert at_once.rejected.any()


def test_a_verdict_is_where_the_bounds_lie():
    rule = Rule(1.0, 0.01, 0.1, (4, 6))
    found = bounds(rule, np.array([2.0, 2.1, 1.9, 2.05, 2.0, 2.0]))
    assert found.estimate_L[1] == pytest.approx(2.0083333)
    assert found.low_L[1] > 0
    se = np.std([2.0, 2.1, 1.9, 2.05, 2.0, 2.0], ddof=1) / np.sqrt(6)
    assert found.estimate_L[1] - found.low_L[1] == pytest.approx(rule.accept_L[1] * se)
    assert found.high_L[1] - found.estimate_L[1] == pytest.approx(rule.reject_L[1] * se)


def test_differences_that_agree_to_the_last_item_prove_nothing():
    rule = Rule(1.0, 5e-4, 0.1, LOOKS)
    same = np.full(20, 1.0)
    assert decide(rule, same).seeds == 3  # of a score that can be anything, no chance would do that
    told = decide(rule, same, resolution=1.0)
    assert told.seeds > 10


def test_the_shares_of_an_endless_campaign_sum_to_one():
    for expected in (1, 7, 50):
        sums = np.cumsum([share(k, expected) for k in range(1, 40 * expected + 1)])
        assert sums[expected - 1] == pytest.approx(0.5)
        assert sums[-1] == pytest.approx(1.0)
        assert (sums <= 1 + 1e-12).all()
    assert rate(0.05, 1, 50, [0.01]) == pytest.approx(0.0105)
    with pytest.raises(AnalysisError, match="at least 1"):
        share(0, 50)


@pytest.mark.parametrize("kind", NOISES)
def test_no_more_than_a_twentieth_of_campaigns_of_null_edits_hold_a_false_accept(kind):
    """1,000 campaigns of 100 edits. Wide noise leaves the rule what it may spend, a fortieth."""
    for sd in (0.8, 6.0):
        found = campaigns("null", kind, sd, count=1000)
        assert found.any_false <= 0.025 + 3 * 0.005


def test_keeping_what_is_better_always_ends_with_noise_for_progress():
    assert campaigns("null", "normal", 0.8, count=200, rule="one_seed").any_false == 1.0
    assert campaigns("null", "normal", 0.8, count=200, rule="three_seeds").any_false > 0.97


@pytest.mark.parametrize("kind", ["normal", "shared"])
def test_accepted_edits_that_become_the_base_cost_no_error(kind):
    """True gains pass their rate on, harmful edits tempt, and the next base is a winner."""
    found = campaigns("mixed", kind, 0.8, count=1000)
    assert found.any_false <= 0.05
    assert found.found > 0.75


def test_an_effect_of_the_stated_size_is_found_with_fewer_seeds_than_a_fixed_design_takes():
    found = campaigns("true", "normal", 0.8, count=4000, length=1)
    none = campaigns("null", "normal", 0.8, count=200)
    assert found.found >= 0.8
    alone = fixed_seeds(rate(0.05, 1, 100), 0.8, found.found)
    assert found.seeds < alone
    assert none.seeds < alone / 2
    power, seeds = foreseen(Rule(1.0, rate(0.05, 1, 100), 0.1, LOOKS), 1.0, 0.8)
    assert power == pytest.approx(found.found, abs=0.03)
    assert seeds == pytest.approx(found.seeds, abs=0.4)


@pytest.mark.parametrize(("effect", "alpha"), [(2.0, 2.5e-4), (1.0, 2.5e-4), (0.5, 0.01)])
def test_the_seeds_of_one_look_are_those_of_the_t_test(effect, alpha):
    power = TTestPower().solve_power(effect, alpha=alpha, power=0.8, alternative="larger")
    assert fixed_seeds(alpha, effect, 0.8) == np.ceil(power)
    assert fixed_seeds(alpha, effect, 0.8, most=int(power)) is None


@pytest.mark.parametrize(("looks", "step"), [(tuple(range(3, 9)), 1), ((4, 8), 4)])
def test_enough_seeds_are_the_fewest_that_find_an_effect_of_the_margin(looks, step):
    rule, sd = Rule(1.0, 0.01, 0.1, looks), 1.2
    last, share, seeds = enough(rule, sd)
    found = {most: simulated((*looks, *range(looks[-1] + step, most + 1, step)), sd)
             for most in (last - step, last)}  # fmt: skip
    assert found[last][0] == pytest.approx(share, abs=0.025)
    assert found[last][1] == pytest.approx(seeds, rel=0.03)
    assert found[last][0] > 0.775
    assert found[last - step][0] < 0.83
    assert enough(rule, sd, most=last - step) is None
    assert enough(Rule(1.0, 0.01, 0.1, (last,)), sd)[0] <= last


def simulated(looks, sd, draws=4000):
    """Share accepted at an effect of one, and the seeds used, by a loop over the looks."""
    rule = Rule(1.0, 0.01, 0.1, looks)
    d_CN = np.random.default_rng(8).normal(1.0, sd, (draws, looks[-1]))
    open_C, accepted, seeds = np.full(draws, True), np.full(draws, False), np.zeros(draws)
    for n, accept, reject in zip(looks, rule.accept_L, rule.reject_L, strict=True):
        mean, error = d_CN[:, :n].mean(1), d_CN[:, :n].std(1, ddof=1) / np.sqrt(n)
        seeds[open_C] = n
        yes, no = mean > accept * error, mean + reject * error < 1.0
        accepted |= open_C & yes
        open_C &= ~(yes | no)
    return accepted.mean(), seeds.mean()


def test_a_rule_is_what_its_hash_says():
    rule = Rule(1.0, 0.01, 0.1, (3, 5))
    stored = json.loads(json.dumps({"margin": 1.0, "alpha": 0.01, "miss": 0.1, "looks": [3, 5]}))
    assert Rule(**stored | {"looks": tuple(stored["looks"])}).sha256 == rule.sha256
    assert Rule(1.1, 0.01, 0.1, (3, 5)).sha256 != rule.sha256


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"margin": 0.0}, "margin=0.0: must be"),
        ({"alpha": 0.5}, "alpha=0.5: must lie"),
        ({"miss": 0.0}, "miss=0.0: must lie"),
        ({"looks": (1, 3)}, "looks=.*must rise"),
        ({"looks": (3, 3)}, "looks=.*must rise"),
        ({"accepting": "haybittle"}, "accepting=haybittle: not one of"),
    ],
)
def test_a_rule_that_is_none(changes, said):
    with pytest.raises(AnalysisError, match=said):
        Rule(**{"margin": 1.0, "alpha": 0.01, "miss": 0.1, "looks": (3, 5)} | changes)
