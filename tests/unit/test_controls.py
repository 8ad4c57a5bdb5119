"""Controls: pairs are found, units are what is independent, and error rates are what they say."""

import numpy as np
import pandas as pd
import pytest

from analysis.questions.controls.estimate import (
    NOT_RUN,
    TOO_FEW,
    compare,
    control,
    control_table,
    differences,
)
from analysis.table.frame import from_results
from tests.fake_results import TASKS, Truth, fake_results


@pytest.fixture(scope="module")
def results():
    return fake_results(seed=1, seeds=4)


@pytest.fixture(scope="module")
def frame(results):
    return from_results(results)


def test_every_control_run_is_paired_with_the_run_that_differs_in_one_thing(results, frame):
    bench = results[results["task"].isin(TASKS) & results["metric"].ne("bleu") & ~results["alias"]]
    means = (100 * bench["value"]).groupby(bench["train_key"]).mean()
    expected = []
    for key in means.index[means.index.str.startswith("placebo")]:
        expected.append(means[key] - means[key.replace("placebo", "none")])
    found = differences(frame[frame["task"].isin(TASKS)], "placebo")
    assert len(expected) == 16
    np.testing.assert_allclose(np.sort(found["gap"]), np.sort(expected))


@pytest.mark.parametrize(("name", "units"), [("sham", 4), ("shuffled", 16), ("placebo", 16)])
def test_units_are_seeds_unless_the_pair_shares_its_order(frame, name, units):
    overall = control(frame, name)[0]
    assert (overall.tasks, overall.pairs, overall.units) == ("all", 16, units)
    assert overall.effect.df == units - 1


def test_the_interval_is_the_t_interval_of_the_units(frame):
    pairs = differences(frame[frame["task"].isin(TASKS)], "sham")
    by_seed = pairs.groupby("block")["gap"].mean()
    overall = control(frame, "sham")[0]
    assert overall.effect.estimate == pytest.approx(by_seed.mean())
    assert overall.effect.se == pytest.approx(by_seed.std(ddof=1) / 2)


def test_true_effects_are_found_and_told(frame):
    placebo, shuffled = control(frame, "placebo")[0], control(frame, "shuffled")[0]
    assert placebo.effect.low < -3 < placebo.effect.high
    assert placebo.verdict == "it matters which tokens carry the weight"
    # Shuffled prompts cost 8 points on three of five tasks.
    assert shuffled.effect.low < -4.8 < shuffled.effect.high


def test_a_control_that_was_not_run_says_so():
    frame = from_results(fake_results(controls=False))
    found = control_table(frame)
    assert list(found["verdict"]) == [NOT_RUN] * 3
    assert list(found["pairs"]) == [0, 0, 0]


def test_one_seed_is_too_few_for_a_sham_interval():
    frame = from_results(fake_results(seeds=1))
    assert control(frame, "sham")[0].verdict == TOO_FEW
    assert control(frame, "sham")[0].effect is None
    assert control(frame, "placebo")[0].effect is not None


def test_by_task_group_too(frame):
    found = control_table(frame)
    assert set(found["tasks"]) == {"all", "mc source", "mc target", "short target", "long target"}
    assert found["estimate"].notna().all()


def test_the_sham_control_is_significant_one_time_in_twenty():
    # With orders that matter as much as runs, pairs would be called different far too often.
    rng = np.random.default_rng(3)
    hits, naive = 0, 0
    for _ in range(1000):
        order = np.repeat(rng.normal(0, np.sqrt(2), 4), 4)
        gaps = order + rng.normal(0, np.sqrt(2), 16)
        pairs = pd.DataFrame({"gap": gaps, "block": np.repeat(list("abcd"), 4)})
        hits += compare("sham", pairs).effect.p < 0.05
        naive += compare("placebo", pairs).effect.p < 0.05  # counts pairs
    assert 0.034 < hits / 1000 < 0.066
    assert naive / 1000 > 0.15


def test_a_true_sham_effect_is_called_a_difference():
    truth = Truth(sham=6.0, block_sd=0.1, run_sd=0.3, residual_sd=0.3)
    frame = from_results(fake_results(seeds=4, truth=truth))
    overall = control(frame, "sham")[0]
    assert overall.effect.p < 0.05
    assert "differs although nothing was changed" in overall.verdict
