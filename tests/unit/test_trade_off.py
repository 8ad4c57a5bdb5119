"""The front against brute force and a closed form; matched learning against a known difference."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.errors import AnalysisError
from analysis.questions.tradeoff.estimate import (
    NO_OVERLAP,
    OFF,
    ON,
    JointMeans,
    at_learning,
    front_table,
    fronts,
    joint_means,
    matched,
    matched_table,
    on_front,
    run_changes,
)
from analysis.table.frame import from_results

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def known(points, sd=1.0, df=1e9):
    mean = np.array(points, dtype=float)
    cells = pd.DataFrame({"name": range(len(mean))})
    return JointMeans(cells, mean, np.eye(len(mean)), sd**2 * np.eye(2), df)


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
    other = JointMeans(means.cells, means.mean_C2, np.eye(6) + noise + noise.T,
                       means.residual_22, means.df)  # fmt: skip
    np.testing.assert_allclose(other.draws(50), means.draws(50), atol=1e-12)


def test_clear_cases_are_called_so():
    table = front_table(known([[10, 0], [0, 10], [5, -5]], sd=0.5)).set_index("name")
    assert table["verdict"].sort_index().tolist() == [ON, OFF, ON]
    assert table["front_now"].sort_index().tolist() == [True, False, True]


def runs(seed=0, *, gap=3.0, noise=1.0, seeds=5, shift=0.0):
    """Two arms whose forgetting is a line in learning, `gap` apart; the seed's luck is shared."""
    rng = np.random.default_rng(seed)
    rows = []
    for s in range(seeds):
        luck = rng.normal(0, 3, 2)
        for arm in ("a", "b"):
            for wp in WEIGHTS:
                learning = 10 + 20 * wp + (shift if arm == "a" else 0.0)
                forgetting = 0.5 * learning + (gap if arm == "a" else 0.0)
                e = luck + noise * rng.standard_normal(2)
                rows.append([arm, wp, s, learning + e[0], forgetting + e[1]])
    return pd.DataFrame(rows, columns=["arm", "wp", "seed", "learning", "forgetting"])


def test_the_joint_means_are_those_of_balanced_analysis_of_variance():
    data = runs()
    found = joint_means(data, ["arm", "wp"])
    expected = data.groupby(["arm", "wp"])[["learning", "forgetting"]].mean().to_numpy()
    np.testing.assert_allclose(found.mean_C2, expected)
    wide = data.pivot(index="seed", columns=["arm", "wp"], values="learning")
    rest = wide.sub(wide.mean(axis=1), axis=0)
    rest = rest - rest.mean()
    assert found.df == 36
    assert found.residual_22[0, 0] == pytest.approx(float((rest**2).to_numpy().sum()) / 36)


def test_forgetting_is_interpolated_between_neighbours_in_learning():
    points = np.array([[[2.0, 5.0], [0.0, 1.0], [4.0, 5.0]], [[9, 9], [8, 8], [7, 7]]], dtype=float)
    np.testing.assert_allclose(at_learning(points, 1.0), [3.0, np.nan])


def test_a_known_gap_is_covered_as_often_as_is_claimed():
    covered = 0
    for i in range(200):
        found = matched(joint_means(runs(i), ["arm", "wp"]), ("a", "b"), draws=400, seed=i)
        covered += found.low <= 3.0 <= found.high
    assert stats.binomtest(covered, 200, 0.95).pvalue > 0.001


def test_matching_removes_what_unequal_learning_would_fake():
    """An arm that learns 5 points more forgets more for that alone: no gap at equal learning."""
    data = runs(gap=0.0, shift=5.0, noise=0.3)
    means = data.groupby("arm")["forgetting"].mean()
    assert means["a"] - means["b"] == pytest.approx(2.5, abs=0.3)
    found = matched(joint_means(data, ["arm", "wp"]), ("a", "b"))
    assert found.verdict == "not distinguishable"
    assert found.estimate == pytest.approx(0.0, abs=0.4)
    clear = matched(joint_means(runs(noise=0.3), ["arm", "wp"]), ("a", "b"), at=20.0)
    assert (clear.verdict, clear.learning) == ("forgets more", 20.0)
    assert clear.p < 0.01


def test_arms_that_share_no_learning_are_not_compared():
    found = matched(joint_means(runs(shift=100.0), ["arm", "wp"]), ("a", "b"))
    assert found.verdict == NO_OVERLAP
    assert np.isnan(found.estimate)
    barely = matched(joint_means(runs(shift=19.0, noise=3.0), ["arm", "wp"]), ("a", "b"))
    assert barely.verdict == NO_OVERLAP
    assert barely.reached < 0.95


def test_what_cannot_be_judged_says_why():
    with pytest.raises(AnalysisError, match="one run per cell"):
        joint_means(runs(seeds=1), ["arm", "wp"])
    one = runs().query("arm == 'a' or wp == 0")
    with pytest.raises(AnalysisError, match="arm=b: fewer than two cells"):
        matched(joint_means(one, ["arm", "wp"]), ("a", "b"))


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
    table = fronts(frame)
    assert set(table.loc[table["verdict"] == ON, "adapter"]) == {"full"}
    (row,) = matched_table(frame).to_dict("records")
    assert (row["arm"], row["against"], row["verdict"]) == ("lora r4", "full", "forgets more")
    assert row["low"] < 10.0 < row["high"]


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
    assert fronts(frame).empty
    assert matched_table(frame).empty
