"""Learning against forgetting: the front against brute force and a closed form, means by arm."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from analysis.questions.tradeoff.estimate import (
    OFF,
    ON,
    UNDECIDED,
    JointMeans,
    front_table,
    joint_means,
    learning_forgetting,
    on_front,
    run_changes,
)
from analysis.table.adjusted_means import Adjusted
from analysis.table.cells import ARM
from analysis.table.frame import from_results

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def known(points, sd=1.0, df=1e9):
    mean = np.array(points, dtype=float)
    levels = pd.DataFrame({"name": range(len(mean))})
    fit = Adjusted(mean, np.eye(len(mean)), sd**2 * np.eye(2), df)
    return JointMeans(levels, mean, fit)


def test_the_front_is_what_no_other_point_dominates():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(30, 12, 2)).round(1)  # ties among them
    expected = [
        [
            not any(q[0] >= p[0] and q[1] <= p[1] and (q[0] > p[0] or q[1] < p[1]) for q in cells)
            for p in cells
        ]
        for cells in points
    ]
    np.testing.assert_array_equal(on_front(points), expected)


def test_the_chance_of_two_cells_is_that_of_the_closed_form():
    """The second is dominated if the first leads in both: a product of two normal tails."""
    means = known([[1.0, 0.0], [0.0, 0.5]])
    table = front_table(means, draws=20_000).set_index("name")
    dominated = stats.norm.cdf(1.0 / np.sqrt(2)) * stats.norm.cdf(0.5 / np.sqrt(2))
    reverse = stats.norm.cdf(-1.0 / np.sqrt(2)) * stats.norm.cdf(-0.5 / np.sqrt(2))
    assert table["chance"][1] == pytest.approx(1 - dominated, abs=0.012)
    assert table["chance"][0] == pytest.approx(1 - reverse, abs=0.012)


def test_draws_do_not_turn_with_the_last_digit():
    """Equal variances: the eigenvectors of their covariance are any."""
    means = known(np.zeros((6, 2)))
    noise = 1e-15 * np.random.default_rng(0).normal(size=(6, 6))
    root = np.linalg.cholesky(np.eye(6) + noise + noise.T).T
    fit = Adjusted(means.mean_C2, root, means.fit.residual_YY, means.fit.df)
    other = JointMeans(means.levels, means.mean_C2, fit)
    np.testing.assert_allclose(other.draws(50), means.draws(50), atol=1e-12)


def test_clear_cases_are_called_so():
    table = front_table(known([[10, 0], [0, 10], [5, -5]], sd=0.5)).set_index("name")
    assert table["verdict"].sort_index().tolist() == [ON, OFF, ON]
    assert table["undominated"].sort_index().tolist() == [True, False, True]


def runs(seed=0, *, gap=3.0, noise=1.0, seeds=5, shift=0.0):
    """Two arms whose forgetting is a line in learning, `gap` apart; the seed effect is shared."""
    rng = np.random.default_rng(seed)
    rows = []
    for s in range(seeds):
        common = rng.normal(0, 3, 2)
        for arm in ("a", "b"):
            for wp in WEIGHTS:
                learning = 10 + 20 * wp + (shift if arm == "a" else 0.0)
                forgetting = 0.5 * learning + (gap if arm == "a" else 0.0)
                e = common + noise * rng.standard_normal(2)
                rows.append([arm, wp, s, learning + e[0], forgetting + e[1]])
    return pd.DataFrame(rows, columns=["arm", "wp", "seed", "learning", "forgetting"])


def test_the_joint_means_are_those_of_balanced_analysis_of_variance():
    data = runs()
    found = joint_means(data, ["arm", "wp"], ["seed"])
    expected = data.groupby(["arm", "wp"])[["learning", "forgetting"]].mean().to_numpy()
    np.testing.assert_allclose(found.mean_C2, expected)
    wide = data.pivot(index="seed", columns=["arm", "wp"], values="learning")
    rest = wide.sub(wide.mean(axis=1), axis=0)
    rest = rest - rest.mean()
    assert found.fit.df == 36
    assert found.fit.residual_YY[0, 0] == pytest.approx(float((rest**2).to_numpy().sum()) / 36)


def test_the_interval_of_a_mean_holds_the_seed_effect():
    """A balanced table: (MS_seed + (A - 1) MS_rest) / (A S) with Satterthwaite's df."""
    data = runs()
    table = front_table(joint_means(data, ["arm", "wp"], ["seed"]))
    wide = data.pivot(index="seed", columns=["arm", "wp"], values="learning").to_numpy()
    seeds, levels = wide.shape
    by_seed = wide.mean(axis=1)
    rest = wide - wide.mean(axis=0) - by_seed[:, None] + wide.mean()
    ms_rest = (rest**2).sum() / ((levels - 1) * (seeds - 1))
    parts = np.array([levels * by_seed.var(ddof=1), (levels - 1) * ms_rest]) / (levels * seeds)
    df = parts.sum() ** 2 / (parts**2 / [seeds - 1, (levels - 1) * (seeds - 1)]).sum()
    np.testing.assert_allclose(table["learning_se"], np.sqrt(parts.sum()))
    half = np.sqrt(parts.sum()) * stats.t.ppf(0.975, df)
    np.testing.assert_allclose(table["learning_high"] - table["learning"], half)


def test_the_interval_of_a_mean_covers_the_truth_of_other_seeds():
    """60 tables whose seeds differ by 3 points: 95 % of intervals hold the mean over seeds."""
    hits = []
    for seed in range(60):
        table = front_table(joint_means(runs(seed), ["arm", "wp"], ["seed"]), draws=2)
        truth = 10 + 20 * table["wp"]
        hits.append(((table["learning_low"] < truth) & (truth < table["learning_high"])).mean())
    assert 0.89 < np.mean(hits) < 0.995


def test_means_are_adjusted_for_what_arms_were_crossed_with():
    """An arm that ran the high weights alone would seem to learn more for that alone."""
    data = runs(noise=0.1)
    some = data[~((data["arm"] == "a") & (data["wp"] < 0.5))]
    plain = some.groupby("arm")["learning"].mean()
    assert plain["a"] - plain["b"] > 4
    found = joint_means(some, ["arm"], ["wp", "seed"])
    assert found.mean_C2[0, 0] - found.mean_C2[1, 0] == pytest.approx(0.0, abs=0.2)
    peer = smf.ols("forgetting ~ C(arm) + C(wp):C(seed)", some).fit()
    gap = found.fit.contrast(np.array([-1.0, 1.0]), 1)
    assert gap.estimate == pytest.approx(peer.params["C(arm)[T.b]"])
    assert gap.se == pytest.approx(peer.bse["C(arm)[T.b]"])


def test_one_run_per_level_has_means_and_no_verdict():
    found = joint_means(runs(seeds=1), ["arm", "wp"], ["seed"])
    assert found.fit is None
    table = front_table(found)
    assert table["learning"].notna().all()
    assert table[["learning_se", "learning_low", "chance"]].isna().all(axis=None)
    assert set(table["verdict"]) == {UNDECIDED}


def results():
    """A results table with a base, both sides, two arms and a run under two names."""
    rng = np.random.default_rng(2)
    head = {"task_type": "mc", "metric": "acc", "dataset": "d", "model": "m", "rank": 4}
    table = [
        head | {"train_key": "base", "task": side, "side": side, "value": 0.5, "adapter": "none",
                "masking": "none", "plw": 0.0, "effective_plw": 0.0, "seed": 0, "alias": False}
        for side in ("target", "source")
    ]  # fmt: skip
    for adapter in ("full", "lora"):
        for plw in (0.0, 0.1, 1.0):
            for seed in range(4):
                gain = 0.1 + 0.2 * plw + 0.005 * rng.standard_normal()
                loss = 0.1 + 0.1 * plw + (0.1 if adapter == "lora" else 0.0)
                for side, value in (("target", 0.5 + gain), ("source", 0.5 - loss)):
                    table.append(
                        head | {
                            "train_key": f"{adapter}{plw}{seed}", "task": side, "side": side,
                            "value": value + 0.002 * rng.standard_normal(), "adapter": adapter,
                            "masking": "none", "plw": plw, "effective_plw": plw, "seed": seed,
                            "alias": False,
                        }
                    )  # fmt: skip
    return pd.DataFrame(table)


def test_a_results_table_goes_all_the_way():
    frame = from_results(results())
    changes = run_changes(frame)
    assert len(changes) == 24
    assert changes["learning"].mean() == pytest.approx(10 + 20 * 1.1 / 3, abs=0.5)
    table = learning_forgetting(frame)
    assert set(table.loc[table["verdict"] == ON, "adapter"]) == {"full"}
    arms = learning_forgetting(frame, ARM).set_index("adapter")
    gap = arms.loc["lora", "forgetting"] - arms.loc["full", "forgetting"]
    assert gap == pytest.approx(10.0, abs=0.5)


def test_cells_and_arms_are_one_estimate_where_cells_are_arms():
    table = results()
    frame = from_results(table[(table["plw"] == 0.0)])
    cells, arms = learning_forgetting(frame), learning_forgetting(frame, ARM)
    pd.testing.assert_frame_equal(cells, arms)


def test_a_run_under_two_names_enters_once():
    table = results()
    again = table[table["plw"] == 0.0].assign(masking="instruction", alias=True)
    doubled = from_results(pd.concat([table, again], ignore_index=True))
    pd.testing.assert_frame_equal(
        run_changes(doubled)[["run", "learning", "forgetting"]],
        run_changes(from_results(table))[["run", "learning", "forgetting"]],
    )
    assert any("another name" in note for note in doubled.attrs["notes"])


def test_without_a_base_there_is_nothing_to_forget():
    table = results()
    frame = from_results(table[table["train_key"] != "base"])
    assert run_changes(frame).empty
    assert learning_forgetting(frame).empty
