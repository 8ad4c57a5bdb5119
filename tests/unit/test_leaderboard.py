"""Hsu's intervals and their critical values, letters, the winner's correction, the leaderboard."""

import numpy as np
import pytest
from scipy import integrate, stats

from analysis.errors import AnalysisError
from analysis.inference.selection import _columns, against_best, letters, one_sided_critical
from analysis.inference.winners import _Truncated, truncated_cdf, winner
from analysis.questions.leaderboard import section as best_section
from analysis.questions.leaderboard.estimate import RUNS, leaderboards
from analysis.questions.leaderboard.section import section, shown_rows
from analysis.regression.model import Request
from analysis.regression.study import fitted
from analysis.table.frame import from_results
from tests.fake_results import fake_results

# Dunnett 1955, JASA 50(272), table 1a: one-sided, joint confidence 95 %, equal group sizes.
DUNNETT = {
    5: (2.02, 2.44, 2.68, 2.85, 2.98, 3.08, 3.16, 3.24, 3.30),
    10: (1.81, 2.15, 2.34, 2.47, 2.56, 2.64, 2.70, 2.76, 2.81),
    20: (1.72, 2.03, 2.19, 2.30, 2.39, 2.46, 2.51, 2.56, 2.60),
    float("inf"): (1.64, 1.92, 2.06, 2.16, 2.23, 2.29, 2.34, 2.38, 2.42),
}
PRINTED = 0.0051  # the table has two digits


def halves(count):
    return np.full((count, count), 0.5) + 0.5 * np.eye(count)


@pytest.mark.parametrize("df", DUNNETT)
def test_critical_values_are_dunnetts_table(df):
    found = [one_sided_critical(0.95, df, halves(k)) for k in range(1, 10)]
    np.testing.assert_allclose(found, DUNNETT[df], atol=PRINTED)


def test_unequal_correlations_agree_with_simulation():
    corr = np.array([[1.0, 0.7, 0.1], [0.7, 1.0, -0.3], [0.1, -0.3, 1.0]])
    rng = np.random.default_rng(0)
    draws = rng.multivariate_normal(np.zeros(3), corr, 400_000)
    t = draws / np.sqrt(rng.chisquare(8, 400_000) / 8)[:, None]
    d = one_sided_critical(0.9, 8, corr)
    assert (t.max(axis=1) <= d).mean() == pytest.approx(0.9, abs=0.003)


def test_two_means_have_the_one_sided_t_interval():
    found = against_best(np.array([3.0, 1.0]), np.eye(2), df=10, level=0.95)
    half = stats.t.ppf(0.95, 10) * np.sqrt(2)
    assert found.high_K == pytest.approx([2 + half, max(0, half - 2)])
    assert found.low_K == pytest.approx([min(0, 2 - half), -2 - half])


def test_a_cell_far_behind_is_not_in_the_set_and_the_only_best_one_has_no_loss():
    found = against_best(np.array([9.0, 1.0, 0.0]), 0.01 * np.eye(3))
    assert list(found.possible_K) == [True, False, False]
    assert found.low_K[0] == 0.0
    assert (found.high_K[1:] == 0).all()


def test_means_that_bonferroni_excludes_change_no_interval():
    """Hsu's intervals with every critical value, which are left out where they decide nothing."""
    rng = np.random.default_rng(5)
    for df in (4.0, float("inf")):
        m_K, a_KK = rng.normal(0, 2, 9), rng.normal(size=(9, 9))
        cov_KK = a_KK @ a_KK.T / 20 + 0.2 * np.eye(9)
        found = against_best(m_K, cov_KK, df=df)
        se_KK = np.sqrt(np.add.outer(np.diag(cov_KK), np.diag(cov_KK)) - 2 * cov_KK)
        d_K = []
        for i in range(9):
            l_CK = np.delete(np.eye(9) - np.eye(9)[i], i, axis=0)
            c_CC, size_C = l_CK @ cov_KK @ l_CK.T, np.delete(se_KK[i], i)
            d_K.append(one_sided_critical(0.95, df, c_CC / np.outer(size_C, size_C)))
        high_K = [max(0.0, min(m_K[i] - m_K[j] + d_K[i] * se_KK[i, j] for j in range(9) if j != i))
                  for i in range(9)]  # fmt: skip
        best = [j for j in range(9) if high_K[j] > 0]
        low_K = [0.0 if best == [i] else min(min(0.0, m_K[i] - m_K[j] - d_K[j] * se_KK[i, j])
                 for j in best if j != i) for i in range(9)]  # fmt: skip
        assert 1 < len(best) < 9
        assert found.high_K == pytest.approx(high_K, abs=1e-3)
        assert found.low_K == pytest.approx(low_K, abs=1e-3)


def test_all_intervals_cover_together_and_the_set_holds_the_best():
    mu = np.array([0.0, 0.0, 0.4, 1.0])
    truth = np.array([mu[i] - np.delete(mu, i).max() for i in range(4)])
    rng, df, covered, held = np.random.default_rng(1), 12, [], []
    for _ in range(1500):
        s2 = rng.chisquare(df) / df
        x = rng.normal(mu, 0.5)
        found = against_best(x, 0.25 * s2 * np.eye(4), df=df)
        covered.append(((found.low_K <= truth) & (truth <= found.high_K)).all())
        held.append(found.possible_K[3])
    assert np.mean(covered) >= 0.95 - 3 * 0.0056
    assert np.mean(held) >= 0.95 - 3 * 0.0056


def test_letters_are_shared_by_what_cannot_be_told_apart():
    assert letters(np.array([1.0, 2, 3, 9]), 0.1 * np.eye(4)) == ["c", "bc", "b", "a"]
    assert letters(np.array([1.0, 1.1]), np.eye(2)) == ["a", "a"]


def test_letters_are_the_largest_sets_of_means_that_are_not_apart():
    """Against every set of means looked at one by one; many sets where variances are unequal."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        count = int(rng.integers(2, 9))
        apart = np.triu(rng.random((count, count)) < rng.random(), 1)
        apart |= apart.T
        subsets = [frozenset(i for i in range(count) if bits >> i & 1) for bits in range(2**count)]
        equal = [s for s in subsets if s and not apart[np.ix_([*s], [*s])].any()]
        largest = {s for s in equal if not any(s < other for other in equal)}
        found = _columns(apart)
        assert set(found) == largest
        assert len(found) == len(largest)


def test_the_truncated_normal_is_scipys_and_holds_in_the_tail():
    for x, low, high in [(0.3, -1, 2), (1.5, 1, np.inf), (-2, -np.inf, -1), (4.2, 4, 5)]:
        assert truncated_cdf(x, low, high) == pytest.approx(
            stats.truncnorm.cdf(x, low, high), abs=1e-12
        )
    # Far out the excess over the bound is exponential with rate `low`.
    assert truncated_cdf(40 + 1 / 40, 40, np.inf) == pytest.approx(1 - np.exp(-1), abs=2e-3)


@pytest.mark.parametrize("df", [1, 2.5, 3, 30, 1000, 1e7])
def test_the_truncated_t_is_scipys(df):
    for x, low, high in [(0.3, -1, 2), (1.5, 1, np.inf), (-2, -np.inf, -1), (4.2, 4, 5)]:
        at_low, at_x, at_high = stats.t.cdf([low, x, high], df)
        wanted = (at_x - at_low) / (at_high - at_low)
        assert truncated_cdf(x, low, high, df) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("df", [1, 3, 60, 200, 1000])
@pytest.mark.parametrize("low", [30.0, 60.0, 1e5])
def test_the_truncated_t_holds_in_the_tail(df, low):
    """By quadrature of the density over that at the bound; chances below 1e-308 are among them."""

    def density(u):
        v = low * (1 + u)
        return np.exp((df + 1) / 2 * (np.log1p(low**2 / df) - np.log1p(v**2 / df)))

    x = low * (1 + 1 / df)
    ends = ((0, 1 / df), (1 / df, np.inf))
    near, far = (integrate.quad(density, *pair, epsrel=1e-12)[0] for pair in ends)
    assert truncated_cdf(x, low, np.inf, df) == pytest.approx(near / (near + far), rel=1e-9)
    assert truncated_cdf(-x, -np.inf, -low, df) == pytest.approx(far / (near + far), rel=1e-9)


def test_a_clear_winner_is_hardly_corrected():
    found = winner(np.array([10.0, 0.0, 1.0]), np.eye(3))
    assert found.conditional.estimate == pytest.approx(10, abs=1e-6)
    assert found.conditional.low == pytest.approx(10 - stats.norm.ppf(0.975), abs=1e-6)
    assert found.bias == pytest.approx(0, abs=1e-6)


def test_a_close_winner_is_corrected_downwards_within_the_simultaneous_interval():
    found = winner(np.array([1.0, 0.99, 0.98]), np.eye(3))
    assert found.hybrid.estimate < found.naive - 0.5
    assert found.conditional.low < found.hybrid.low
    wide = stats.norm.ppf((1 + 0.995 ** (1 / 3)) / 2)  # of level 1 - alpha / 10, exactly
    assert found.hybrid.low >= 1.0 - wide - 1e-8  # two roots, each to 1e-9


@pytest.mark.parametrize("mu", [(0.0, 0.0, 0.0, 0.0), (0.0, 0.3, 0.6, 1.5)])
def test_the_correction_is_median_unbiased_and_covers(mu):
    mu, rng = np.array(mu), np.random.default_rng(2)
    cov = 0.25 * np.eye(4) + 0.25  # correlated: a shared block
    cov[0, 0] += 0.5
    root, rows = np.linalg.cholesky(cov), []
    for _ in range(1500):
        found = winner(mu + root @ rng.normal(size=4), cov)
        m = mu[found.index]
        parts = (found.hybrid, found.conditional)
        rows.append([found.naive > m, *(p.estimate > m for p in parts),
                     *(p.low <= m <= p.high for p in parts)])  # fmt: skip
    naive, hybrid, conditional, covered, covered_conditional = np.mean(rows, axis=0)
    assert naive > 0.57  # what the correction is for
    assert hybrid == pytest.approx(0.5, abs=0.04)
    assert conditional == pytest.approx(0.5, abs=0.04)
    assert 0.95 - 0.017 < covered < 0.9548 + 0.017
    assert covered_conditional == pytest.approx(0.95, abs=0.017)


# hybrid and conditional: estimate, low, high
KNOWN = (-0.31304586717091776, -2.0857858502592794, 3.2142084545017386,
         -0.32055067904308904, -7.706960441796191, 3.1456669952517267)  # fmt: skip


def test_a_known_covariance_gives_the_figures_of_the_normal():
    """Figures of the version before there were degrees of freedom, an upper bound among them."""
    cov = np.array([[1.0, 1.2, 0.3], [1.2, 2.0, 0.4], [0.3, 0.4, 0.8]])
    for df, rtol in ((np.inf, 1e-12), (1e9, 1e-6)):
        found = winner(np.array([1.0, 0.6, 0.7]), cov, df=df)
        parts = (found.hybrid, found.conditional)
        figures = [getattr(part, name) for part in parts for name in ("estimate", "low", "high")]
        np.testing.assert_allclose(figures, KNOWN, rtol=rtol)


def test_estimated_variance_of_a_clear_winner_gives_students_interval():
    found = winner(np.array([90.0, 0.0, 1.0]), np.eye(3), df=4).conditional
    half = stats.t.ppf(0.975, 4)
    figures = (found.estimate, found.low, found.high)
    assert figures == pytest.approx((90, 90 - half, 90 + half), abs=1e-3)


@pytest.mark.parametrize("df", [2, 3, 10, 100])
def test_the_chance_falls_with_the_mean(df):
    for gap, above in [(0.01, np.inf), (0.3, np.inf), (3, np.inf), (0.1, 0.1), (1, 0.3)]:
        found = _Truncated(0.0, 1.0, df, -gap, above)
        for reach in (np.inf, 12.0):
            chance = [found.below(mean, reach) for mean in np.linspace(-12, 12, 401)]
            assert (np.diff(chance) < 1e-12).all()


@pytest.mark.parametrize("mu", [(0.0, 0.0, 0.0, 0.0), (0.0, 0.5, 1.0, 2.0)])
def test_the_correction_covers_with_an_estimated_variance(mu):
    """4 cells under 2 seeds, score ~ cell + seed: 3 residual degrees of freedom."""
    mu, rng, rows = np.array(mu), np.random.default_rng(5), []
    for _ in range(1000):
        seed = rng.normal(size=2)
        y = mu[:, None] + seed + np.sqrt(2) * rng.normal(size=(4, 2))
        rest = y - y.mean(axis=1, keepdims=True)
        sd = np.sqrt(((rest - rest.mean(axis=0)) ** 2).sum() / 3 / 2)
        # In units of sd, so that the critical value is computed once.
        found, known = (winner(y.mean(axis=1) / sd, np.eye(4), df=df) for df in (3, np.inf))
        m = (mu[found.index] + seed.mean()) / sd
        parts = (known.hybrid, found.hybrid, found.conditional)
        rows.append([found.hybrid.estimate > m, *(p.low <= m <= p.high for p in parts)])
    above, normal, covered, conditional = np.mean(rows, axis=0)
    assert normal < 0.9  # what the degrees of freedom are for
    assert above == pytest.approx(0.5, abs=0.05)
    assert 0.95 - 0.021 < covered < 0.9548 + 0.021
    assert conditional == pytest.approx(0.95, abs=0.021)


def test_means_without_variance_are_told():
    with pytest.raises(AnalysisError, match="one mean"):
        against_best(np.array([1.0]), np.eye(1))
    with pytest.raises(AnalysisError, match="no variance between them"):
        against_best(np.array([1.0, 2.0]), np.ones((2, 2)))
    with pytest.raises(AnalysisError, match="at least two"):
        winner(np.array([1.0]), np.eye(1))


@pytest.fixture(scope="module")
def results():
    return fake_results(seed=4, seeds=4, plws=(0.0, 1.0), controls=False)


def test_the_leaderboard_of_a_balanced_study_is_hsus_closed_form(results):
    frame = from_results(results)
    board = leaderboards(frame, side="target")[0]
    cells = board.cells
    assert board.noise == RUNS
    assert cells["mean"].is_monotonic_decreasing
    assert (cells["runs"] == 4).all()
    k, n = len(cells), 4
    # One variance for all and seeds as blocks: se of a difference is s sqrt(2 / n).
    runs = frame[~frame["is_base"] & (frame["side"] == "target")]
    runs = runs[runs["dataset"] == board.stratum.split()[0]]
    wide = runs.groupby(["run", "seed"], observed=True)["score"].mean().reset_index()
    levels = runs.drop_duplicates("run").set_index("run")
    rank = levels["rank"].where(levels["adapter"].astype(str) != "full", 0).astype(str)
    key = levels["masking"].astype(str) + levels["wp"].astype(str) + levels["adapter"].astype(str)
    wide["cell"] = wide["run"].map(key + rank)
    y = wide.pivot_table(index="cell", columns="seed", values="score", observed=True)
    rest = y.sub(y.mean(axis=1), axis=0).sub(y.mean(axis=0) - y.to_numpy().mean(), axis=1)
    df = (k - 1) * (n - 1)
    s = np.sqrt((rest.to_numpy() ** 2).sum() / df)
    d = one_sided_critical(0.95, df, halves(k - 1))
    gap = cells["mean"].iloc[0] - cells["mean"].iloc[1]
    assert cells["against_high"].iloc[0] == pytest.approx(gap + d * s * np.sqrt(2 / n), rel=1e-6)
    found = winner(cells["mean"].to_numpy(), s**2 / n * np.eye(k), df=df).hybrid
    shown = board.winner.hybrid
    assert (shown.low, shown.high) == pytest.approx((found.low, found.high), rel=1e-6)
    last = cells["mean"].iloc[-1] - cells["mean"].iloc[0]
    assert cells["against_low"].iloc[-1] == pytest.approx(last - d * s * np.sqrt(2 / n), rel=1e-6)


def test_one_seed_has_no_order_to_defend():
    frame = from_results(fake_results(seeds=1, plws=(0.0, 1.0), controls=False))
    board = leaderboards(frame)[0]
    assert board.winner is None
    assert board.note.startswith("No order can be defended here")


def test_the_report_tells_the_set_and_the_correction(results):
    study = fitted(results, from_results(results))
    made = section(study)
    text = made.blocks[0].text
    assert "may be the best" in text
    assert "corrected for that" in text
    boards = leaderboards(study.frame, side="target")
    rows = shown_rows(boards)
    first = rows.groupby("group", sort=False).head(1)
    assert (first["estimate"] >= 0).all()
    assert ((rows["low"] <= rows["estimate"]) & (rows["estimate"] <= rows["high"])).mean() > 0.5


def test_the_leaderboard_follows_the_rule_for_degrees_of_freedom():
    """Two cells: Hsu's interval is one-sided, from the normal where that is the rule."""
    raw = fake_results(plws=(0.0,), controls=False)
    raw = raw[raw["adapter"].isin(["full", "lora"]) & (raw["rank"] == 4)]
    raw = raw[(raw["dataset"] == "micro") & (raw["masking"] == "none")]
    frame = from_results(raw)
    wide, normal = (leaderboards(frame, df=rule)[0].cells for rule in ("satterthwaite", "normal"))
    gap = float(normal["mean"].iloc[0] - normal["mean"].iloc[1])
    halves = [float(cells["against_high"].iloc[0]) - gap for cells in (wide, normal)]
    assert halves[0] / halves[1] == pytest.approx(stats.t.ppf(0.95, 1) / stats.norm.ppf(0.95))
    study = fitted(raw, frame, request=Request(df="normal"))
    shown = best_section.boards_of(study, None)[0].cells
    np.testing.assert_allclose(shown["against_high"], normal["against_high"])
