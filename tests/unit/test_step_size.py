"""Masking at its own rate: against closed forms, and against studies of known truth."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analysis.inference.optimum import Quadratic, fieller_set
from analysis.questions.own_rate.curves import RateCurve, at_optimum, at_rate_of
from analysis.questions.own_rate.estimate import Compared
from analysis.questions.own_rate.noise import ItemScores
from analysis.questions.step_size import section as part
from analysis.questions.step_size.estimate import (
    AT_ARM,
    AT_REFERENCE,
    COMMON,
    OWN,
    gaps,
    matched,
)
from analysis.questions.step_size.runs import compared_doses, place_levels
from analysis.regression.model import Request
from analysis.report.build import fitted_study, study_headlines
from analysis.table.frame import from_results
from tests.rate_curves import FALL, Arm, dose_results, draw

LABELS = {"dataset": "d", "model": "m", "side": "target"}
# The unmasked arm is 1 point below at its own rate; its best rate is half a step of log2 higher.
MASKED, UNMASKED = Arm(best=0.0, offset=0.0), Arm(best=0.5, offset=0.0, score=29.0)
DOSES = {"masked": MASKED, "unmasked": UNMASKED}


class Silent:
    """A generator whose every draw is zero."""

    def normal(self, _mean, _sd, size=None):
        return np.zeros(size) if size is not None else 0.0


def compared(curves, items=None) -> Compared:
    return Compared(LABELS, tuple(curves), items, "masked")


def test_without_noise_the_share_is_that_of_the_parabolas():
    """At the other's rate an arm loses FALL times the square of the distance."""
    (one,) = gaps(compared(draw(DOSES, Silent(), places=2)))
    lost = FALL * 0.5**2
    assert one.estimate(OWN).estimate == pytest.approx(-1)
    assert one.estimate(AT_REFERENCE).estimate == pytest.approx(-1 - lost)
    assert one.estimate(AT_ARM).estimate == pytest.approx(-1 + lost)
    assert one.step(AT_REFERENCE).estimate == pytest.approx(-lost)
    assert one.share(AT_REFERENCE).estimate == pytest.approx(lost / (1 + lost))


def test_a_seeds_part_at_anothers_rate_is_the_derivative_by_that_ones_losses():
    own, other = draw(DOSES, Silent(), places=1)
    step = 1e-5 * np.random.default_rng(1).normal(size=5)
    moved_SK = own.loss_SK + np.array([step, np.zeros(5)])
    moved = RateCurve(own.arm, own.place, own.rate_K, own.seeds, moved_SK, own.score_SK, own.run_SK)
    before, after = (at_rate_of(other, at_optimum(c)) for c in (own, moved))
    theta_S = after.theta_S
    change = after.estimate - before.estimate
    assert (theta_S[0] - theta_S[1]) / 2 == pytest.approx(change, rel=1e-3)
    assert abs(change) > 1e-6


def test_a_rate_that_was_not_tried_is_not_reached_for():
    near, far = draw(DOSES, Silent(), places=1)
    rates = far.rate_K * 8
    far = RateCurve(far.arm, far.place, rates, far.seeds, far.loss_SK, far.score_SK, far.run_SK)
    assert at_rate_of(near, at_optimum(far)) is None
    assert gaps(compared([near, far])) == []


def test_the_covariance_of_one_place_is_that_of_a_paired_sample():
    """Gaps of one place are means of its seeds' parts: variance by the textbook."""
    curves = draw(DOSES, np.random.default_rng(3), places=1, seeds=5)
    (one,) = gaps(compared(curves))
    cov_GG, df = one.covariance(one.mean_P)
    assert df == 4
    assert cov_GG == pytest.approx(np.cov(one.pairs[0].gap_SG.T) / 5)


def test_the_share_is_fiellers_by_the_roots_of_its_equation():
    curves = draw(DOSES, np.random.default_rng(3), places=1, seeds=8)
    (one,) = gaps(compared(curves))
    share = one.share(AT_REFERENCE)
    assert share.bounded
    cov_GG, df = one.covariance(one.mean_P)
    t = stats.t.ppf(0.975, df)
    own, common = (one.estimate(g).estimate for g in (OWN, AT_REFERENCE))
    for end in (share.low, share.high):
        ratio = 1 - end
        w_G = np.array([1.0, -ratio, 0.0])
        assert (own - ratio * common) ** 2 == pytest.approx(t**2 * w_G @ cov_GG @ w_G)
    assert share.low < share.estimate < share.high


def test_no_share_where_the_difference_at_one_rate_may_be_zero():
    same = {"masked": MASKED, "unmasked": MASKED}
    (one,) = gaps(compared(draw(same, np.random.default_rng(0), places=1, seeds=4)))
    share = one.share(AT_REFERENCE)
    assert not share.bounded
    assert "no share can be given" in part.lead(one)
    assert fieller_set(Quadratic(0.0, 0.0, np.eye(2), 3.0), 3.0) == (-np.inf, np.inf)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(7)
    lost = FALL * 0.5**2
    truth = {OWN: -1.0, AT_REFERENCE: -1 - lost, AT_ARM: -1 + lost}
    inside, shares = [], []
    for _ in range(400):
        (one,) = gaps(compared(draw(DOSES, rng, places=4, seeds=4)))
        inside.append([one.estimate(g).low <= t <= one.estimate(g).high for g, t in truth.items()])
        share = one.share(AT_REFERENCE)
        shares.append(not share.bounded or share.low <= lost / (1 + lost) <= share.high)
    assert np.all(np.abs(np.mean(inside, axis=0) - 0.95) < 0.03)
    assert abs(np.mean(shares) - 0.95) < 0.03


def test_items_count_in_the_share_as_runs_do():
    """Items that differ in both gaps alike leave their ratio alone; in one gap they do not."""
    rng = np.random.default_rng(2)
    curves = draw(DOSES, Silent(), places=1)
    runs = [r for c in curves for s in c.run_SK for r in s]
    weight_I, task_I, gap_I = np.full(300, 1 / 300), np.full(300, "t"), rng.normal(0, 30, 300)
    arm_R = np.repeat([0.0, 1.0], len(runs) // 2)
    items = ItemScores(arm_R[:, None] * gap_I, {r: i for i, r in enumerate(runs)}, weight_I, task_I)
    (one,) = gaps(compared(curves, items))
    own_2G = np.eye(3)[:2]
    cov_22 = one._covariance_of(own_2G)
    assert cov_22 == pytest.approx(np.full((2, 2), gap_I.var(ddof=1) / 300))


@pytest.fixture(scope="module")
def study():
    doses = DOSES | {"unmasked per completion": Arm(best=0.5, offset=0.0, score=27.0)}
    raw = dose_results(draw(doses, np.random.default_rng(0), seeds=3))
    return fitted_study(raw, from_results(raw), None, Request())


def test_a_masked_run_is_the_partner_under_every_normaliser(study):
    found = compared_doses(study)[0]
    assert found.against == "instruction"
    assert len(found.places) == 6
    (one,) = gaps(found)
    assert [p.reference.curve.run_SK for p in one.pairs[:1]] != []
    by_batch = {}
    for pair in one.pairs:
        by_batch.setdefault(place_levels(study)[pair.place]["train.batch_size"], []).append(pair)
    for pairs in by_batch.values():
        assert len(pairs) == 2
        assert all(a.reference.curve.run_SK == b.reference.curve.run_SK for a, b in pairwise(pairs))
        assert all(a.arm.curve.run_SK != b.arm.curve.run_SK for a, b in pairwise(pairs))


def test_what_a_setting_does_is_read_between_places_equal_in_all_else(study):
    (one,) = gaps(compared_doses(study)[0])
    weight_P = matched(one, place_levels(study), "normaliser", "completion", "weight")
    assert weight_P is not None
    assert weight_P.sum() == pytest.approx(0)
    assert np.abs(weight_P) == pytest.approx(np.full(6, 1 / 3))
    effect = one.estimate(OWN, weight_P)
    assert effect.low < -2 < effect.high
    assert matched(one, place_levels(study), "normaliser", "tokens", "weight") is None


def test_the_page_says_share_and_difference(study):
    section = part.section(study)
    assert section is not None
    assert section.summary.startswith("none less instruction, each at its own best rate over 6 ")
    assert [b.name for b in section.blocks if b.kind == "plate"] == [
        "step_size", "step_size_curves", "step_size_2", "step_size_curves_2"
    ]  # fmt: skip
    labels = {h.label for h in study_headlines(study) if h.question == "step-size"}
    assert labels == {"none − instruction, each at its own rate"}
    assert set(part.setting_table(study, gaps(compared_doses(study)[0])[0])["setting"]) == {
        "normaliser", "batch size"
    }  # fmt: skip


def test_doses_on_several_data_sets_are_one_family():
    """Two data sets are no two chances of 5 % for a false headline: statsmodels' Holm over both."""
    parts = [
        dose_results(draw(DOSES, np.random.default_rng(seed), seeds=3)).assign(dataset=name)
        for seed, name in enumerate(("micro", "micro_short"))
    ]
    raw = pd.concat([one.assign(train_key=one["train_key"] + one["dataset"]) for one in parts])
    made = fitted_study(raw, from_results(raw), None, Request())
    places = [found for found in compared_doses(made) if found.labels["side"] == "target"]
    alone = [gaps(found)[0].estimate(OWN).p for found in places]
    assert len(alone) == 2
    expected = multipletests(alone, method="holm")[1]
    assert [h.p for h in part.headlines(made)] == pytest.approx(expected)


def test_without_a_validation_loss_there_is_no_section(study):
    raw = study.raw[study.raw["task"] != "heldout_validation"]
    assert part.section(fitted_study(raw, from_results(raw), None, Request())) is None


def test_both_common_rates_are_on_the_page(study):
    (one,) = gaps(compared_doses(study)[0])
    table = part.share_table(one)
    assert len(table) == len(COMMON)
    assert (table["own"] == table["own"].iloc[0]).all()
