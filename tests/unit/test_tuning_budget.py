"""Expected best scores: every subset counted, intervals, tuned tables."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.questions.tuning.estimate import (
    budget_interval,
    expected_best,
    tuning_budget,
)
from analysis.questions.tuning.section import budget

SCORES = np.array([3.0, 1.0, 4.0, 1.5, 9.0, 2.0])


def test_it_is_the_mean_over_all_subsets():
    found = expected_best(SCORES)
    brute = [np.mean([max(c) for c in combinations(SCORES, n)]) for n in range(1, 7)]
    np.testing.assert_allclose(found, brute)


def test_lower_is_better_takes_the_least():
    found = expected_best(SCORES, lower_is_better=True)
    brute = [np.mean([min(c) for c in combinations(SCORES, n)]) for n in range(1, 7)]
    np.testing.assert_allclose(found, brute)


def test_it_is_unbiased_for_settings_drawn_at_random():
    # The best of n uniforms is n / (n + 1) on average.
    rng = np.random.default_rng(1)
    drawn = rng.random((4000, 8))
    found = np.mean([expected_best(row) for row in drawn], axis=0)
    n = np.arange(1, 9)
    np.testing.assert_allclose(found, n / (n + 1), atol=0.01)


def test_the_interval_covers_the_truth_well_below_the_largest_budget():
    rng, hits = np.random.default_rng(2), 0
    for i in range(300):
        low, high = budget_interval(rng.random(30), draws=200, seed=i)
        hits += low[2] <= 3 / 4 <= high[2]
    assert 0.89 < hits / 300 < 0.98


def test_its_draws_are_expected_best_of_resampled_settings():
    low, high = budget_interval(SCORES, draws=400, seed=3, lower_is_better=True)
    rng = np.random.default_rng(3)
    ranked = np.sort(SCORES)[::-1]
    picks = rng.integers(0, 6, (400, 6))
    found = np.array([expected_best(ranked[p], lower_is_better=True) for p in picks])
    np.testing.assert_allclose(low, np.quantile(found, 0.025, axis=0))
    np.testing.assert_allclose(high, np.quantile(found, 0.975, axis=0))


def test_what_cannot_be_ranked_is_told():
    with pytest.raises(AnalysisError, match="every setting needs a score"):
        expected_best(np.array([1.0, np.nan]))


def tuned(rates=(0.001, 0.003, 0.01)):
    rows = [
        {"dataset": "d", "adapter": adapter, "rank": rank, "lr": lr, "model": model,
         "task": "heldout_validation", "task_type": "heldout", "metric": "loss_completion",
         "value": base + i + 0.5 * (model == "m1"), "train_key": f"{adapter}{rank}{lr}{model}"}
        for adapter, rank, base in (("full", 8, 1.0), ("lora", 2, 2.0))
        for i, lr in enumerate(rates)
        for model in ("m0", "m1")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_an_arm_s_settings_are_its_rates_each_the_mean_over_models():
    found = tuning_budget(tuned())
    assert found["label"].unique().tolist() == ["full", "lora r2"]
    full = found[found["label"] == "full"]
    assert full["expected"].tolist() == pytest.approx([2.25, 1.25 + 1 / 3, 1.25])
    assert (full["low"] <= full["expected"]).all()


def test_aliases_test_losses_and_the_base_do_not_count():
    table = tuned()
    test_loss = table.assign(task="heldout_test", value=0.0)
    base = table.assign(adapter="none", value=0.0)
    alias = table.assign(alias=True, value=0.0)
    both = pd.concat([table.assign(alias=False), alias, test_loss, base], ignore_index=True)
    pd.testing.assert_frame_equal(tuning_budget(both), tuning_budget(table))


def test_the_report_shows_it_only_where_something_was_tuned():
    made = budget(tuned())
    assert [b.kind for b in made.blocks] == ["plate", "table"]
    assert budget(tuned(rates=(0.001, 0.01))) is None
    assert budget(tuned().drop(columns="lr")) is None
