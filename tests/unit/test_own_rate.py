"""Arms at their own rates: against closed forms, and against studies of known truth."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analysis.inference.moderated import moderated
from analysis.inference.multiplicity import holm
from analysis.questions.adapters import section as arms_section
from analysis.questions.own_rate import section as part
from analysis.questions.own_rate.curves import (
    HIGH,
    LOW,
    RateCurve,
    at_optimum,
    best_tried,
    lack_of_fit,
    on_parabola,
    vertex,
)
from analysis.questions.own_rate.estimate import (
    ANALYSES,
    Compared,
    Difference,
    compared,
    difference_table,
)
from analysis.questions.own_rate.noise import NONE, ItemScores, Spread, run_noise
from analysis.questions.own_rate.spread import ranges, wrong_rate
from analysis.regression.model import Request
from analysis.report.build import fitted_study, study_headlines
from analysis.table.frame import from_results
from tests.rate_curves import FALL, OWN, Arm, draw, results

ON_PARABOLA = next(a.name for a in ANALYSES if a.choose is on_parabola)
LABELS = {"dataset": "d", "model": "m", "side": "target"}
ARMS = {"lora": Arm(), "full": Arm(best=-0.3, score=33.0), "dora": Arm(best=0.4, offset=-0.2)}


class Silent:
    """A generator whose every draw is zero."""

    def normal(self, _mean, _sd, size=None):
        return np.zeros(size) if size is not None else 0.0


def quiet(arm: Arm, **options) -> RateCurve:
    (curve,) = draw({"lora": arm}, Silent(), places=1, **options)
    return curve


# -- the chosen rate ----------------------------------------------------------------------------


@pytest.mark.parametrize("best", [-0.7, 0.0, 0.31])
def test_without_noise_rate_and_score_are_the_truth(best):
    arm = Arm(best=best, offset=0.4)
    one = at_optimum(quiet(arm))
    assert one.end == ""
    assert one.rate == pytest.approx(0.01 * 2**best)
    assert one.estimate == pytest.approx(arm.truth)
    assert one.curve.score(0.0) == pytest.approx(30 - FALL * (best + 0.4) ** 2)


def test_a_best_rate_beyond_those_tried_is_told_and_not_reached_for():
    for best, end, k in ((-1.6, LOW, 0), (1.6, HIGH, -1)):
        one = at_optimum(quiet(Arm(best=best)))
        assert (one.end, one.rate) == (end, pytest.approx(one.curve.rate_K[k]))
    assert vertex(0.1, -1.0, np.array([-1.0, 0.0, 1.0])) == (-1.0, LOW)  # a maximum is no choice


def test_a_seeds_part_is_the_derivative_of_the_score_at_the_chosen_rate():
    """What a small change of one seed's losses does to the score, by the numbers."""
    curve, step = quiet(Arm(offset=0.7)), np.zeros((2, 5))
    step[0] = 1e-5 * np.random.default_rng(4).normal(size=5)
    other = RateCurve(curve.arm, curve.place, curve.rate_K, curve.seeds, curve.loss_SK + step,
                      curve.score_SK, curve.run_SK)  # fmt: skip
    change = at_optimum(other).estimate - at_optimum(curve).estimate
    theta_S = at_optimum(other).theta_S
    assert (theta_S[0] - theta_S[1]) / 2 == pytest.approx(change, rel=1e-3)
    assert abs(change) > 1e-5


def test_the_best_rate_tried_is_one_that_was_tried():
    one = best_tried(quiet(Arm(best=0.3, offset=0.0)))
    assert one.rate == pytest.approx(0.01 * 2**0.5)
    assert one.estimate == pytest.approx(30 - FALL * 0.2**2)


def test_every_second_rate_is_left_out():
    curve = quiet(Arm())
    kept = [a.curve(curve) for a in ANALYSES]
    assert [None if c is None else len(c.rate_K) for c in kept] == [5, 5, 5, 3, 3, 2]
    assert kept[3].rate_K == pytest.approx([0.005, 0.01, 0.02])
    assert kept[5].rate_K == pytest.approx([0.01 / 2**0.5, 0.01 * 2**0.5])
    assert ANALYSES[3].curve(kept[5]) is None


def test_lack_of_fit_is_the_classical_f_test():
    rng = np.random.default_rng(0)
    curve = draw(ARMS, rng, places=1, seeds=4)[0]
    y_SK = rng.normal(size=(4, 5)) + rng.normal(size=(4, 1))
    mean_K = y_SK.mean(axis=0)
    fitted_K = np.polyval(np.polyfit(curve.x_K, mean_K, 2), curve.x_K)
    rest_SK = y_SK - mean_K - y_SK.mean(axis=1, keepdims=True) + y_SK.mean()
    f = 4 * ((mean_K - fitted_K) ** 2).sum() / 2 / ((rest_SK**2).sum() / 12)
    found = lack_of_fit(curve, y_SK)
    assert found.statistic == pytest.approx(f)
    assert found.p == pytest.approx(stats.f.sf(f, 2, 12))


# -- noise ---------------------------------------------------------------------------------------


def test_moderated_variances_find_what_the_groups_were_drawn_from():
    rng = np.random.default_rng(0)
    d0, s02, d = 6.0, 2.0, 3.0
    sigma2_G = d0 * s02 / rng.chisquare(d0, 4000)
    found = moderated(sigma2_G * rng.chisquare(d, 4000) / d, np.full(4000, d))
    assert found.common_df == pytest.approx(d0, rel=0.4)  # a few of the heavy tail are set apart
    assert found.common == pytest.approx(s02, rel=0.1)
    t_G = np.sqrt(sigma2_G) * rng.standard_normal(4000) / np.sqrt(found.variance_G)
    assert np.mean(np.abs(t_G) > stats.t.ppf(0.975, found.df_G)) == pytest.approx(0.05, abs=0.01)


def test_equal_variances_are_pooled():
    found = moderated(np.array([1.0, 1.1, 0.9, 1.0]), np.array([3.0, 3.0, 3.0, 1.0]))
    assert np.isinf(found.common_df)
    assert found.variance_G == pytest.approx([1.0] * 4)
    assert found.df_G == pytest.approx([10.0] * 4)


def test_a_group_that_stands_out_keeps_its_own_variance():
    found = moderated(np.array([1.0, 1.2, 0.8, 1.0, 50.0]), np.full(5, 3.0))
    assert found.apart_G.tolist() == [False] * 4 + [True]
    assert found.variance_G == pytest.approx([1.0] * 4 + [50.0])
    assert found.df_G.tolist() == [12.0] * 4 + [3.0]
    assert moderated(np.array([1.0, 2.0, 3.0]), np.full(3, 3.0)).apart_G.sum() == 0


def test_seeds_of_their_own_at_every_place_average_out_and_shared_ones_do_not():
    """An arm's own seed effect, the same at all rates and places: its variance over the seeds."""
    for own_seeds, n in ((True, 12), (False, 4)):
        rng, errors, known = np.random.default_rng(1), [], []
        for _ in range(40):
            curves = draw({"a": Arm(), "b": Arm(), "c": Arm()}, rng, seeds=4, own_seeds=own_seeds)
            chosen = {(c.arm, c.place): at_optimum(c) for c in curves}
            over, _ = run_noise(chosen)
            means = {a: np.mean([o.estimate for (b, _), o in chosen.items() if b == a])
                     for a in "abc"}  # fmt: skip
            errors.append(means["a"] - means["b"])
            known.append(over["a"].variance + over["b"].variance)
        assert np.mean(known) == pytest.approx(np.var(errors), rel=0.45)
        assert np.mean(known) > 2 * OWN**2 / n  # of the seeds alone


def test_intervals_hold_the_truth_as_often_as_they_say():
    """With rates that are badly known, an arm that is unsteady, and no difference at all."""
    arms = {name: Arm(offset=0.8) for name in ("lora", "a", "b", "c", "d", "e")}
    arms["e"] = Arm(offset=0.8, steady=5.0)
    rng, inside, family = np.random.default_rng(7), [], 0
    studies = 60
    for _ in range(studies):
        found = Compared(LABELS, tuple(draw(arms, rng, nats=0.03)), None)
        own = [d.estimate for d in found.differences(found.main)]
        inside.append([e.low <= 0 <= e.high for e in own])
        family += bool((holm([e.p for e in own]) < 0.05).any())
    assert 0.915 < np.mean(inside) < 0.98
    assert np.mean(inside, axis=0).min() > 0.85
    assert family / studies < 0.12


def test_a_cliff_beyond_the_best_rate_costs_the_intervals_little():
    """Scores that collapse at high rates: a spline knows, a parabola through all rates does not."""
    rng, inside = np.random.default_rng(3), {ANALYSES[0].name: [], ON_PARABOLA: []}
    for _ in range(25):
        places = {n: rng.uniform(-0.4, 0.4) for n in ("lora", "a", "b", "c", "d")}
        arms = {n: Arm(best=x, offset=0.0, cliff=rng.uniform(0.6, 1.4)) for n, x in places.items()}
        found = Compared(LABELS, tuple(draw(arms, rng)), None)
        true = {name: arm.truth - arms["lora"].truth for name, arm in arms.items()}
        for analysis in ANALYSES:
            for d in found.differences(found.chosen(analysis)) if analysis.name in inside else ():
                inside[analysis.name].append(d.estimate.low <= true[d.arm] <= d.estimate.high)
    assert np.mean(inside[ANALYSES[0].name]) > 0.85
    assert np.mean(inside[ON_PARABOLA]) < 0.7


def test_a_spline_through_three_rates_is_their_parabola():
    curve = quiet(Arm(best=0.2, offset=0.3, cliff=0.8), rates=3)
    one, other = at_optimum(curve), on_parabola(curve)
    assert one.estimate == pytest.approx(other.estimate)
    assert one.weights_K == pytest.approx(other.weights_K)


def test_items_add_what_other_items_would_and_nothing_of_the_runs_own_noise():
    rng = np.random.default_rng(2)
    curves = draw({"lora": Arm(), "full": Arm()}, rng, places=1)
    pair = tuple(at_optimum(c) for c in curves)
    runs = [r for c in curves for s in c.run_SK for r in s]
    items, gap_I = 400, rng.normal(0, 30, 400)
    weight_I, task_I = np.full(items, 1 / items), np.full(items, "t")
    half = len(runs) // 2
    level_RI = np.repeat([[1.0], [0.0]], half, axis=0) * gap_I
    rows = {run: i for i, run in enumerate(runs)}
    steady = ItemScores(level_RI, rows, weight_I, task_I).variance([pair])
    assert steady.variance == pytest.approx(gap_I.var(ddof=1) / items)
    noisy_RI = level_RI + rng.normal(0, 40, level_RI.shape)
    noisy = ItemScores(noisy_RI, rows, weight_I, task_I).variance([pair])
    assert noisy.variance == pytest.approx(steady.variance, rel=0.35)
    alone = ItemScores(noisy_RI - level_RI, rows, weight_I, task_I).variance([pair])
    assert alone.variance < 0.25 * steady.variance


def test_seeds_needed_are_those_of_the_formula():
    sure = Spread(1.0, 1e9)
    one = Difference("full", "lora", None, {"a": None, "b": None}, sure, NONE, 6, 0)
    assert one.seeds_needed == np.ceil(6 * (1.96 / 1.5) ** 2)
    hopeless = Difference("full", "lora", None, {"a": None}, sure, Spread(1.0, 1e9), 6, 0)
    assert hopeless.seeds_needed == np.inf


# -- what is said --------------------------------------------------------------------------------


def test_the_range_of_arms_stands_beside_that_of_noise():
    found = Compared(LABELS, tuple(draw(ARMS, np.random.default_rng(0))), None)
    of = ranges(found, draws=2000)
    assert (of.arms, of.common_arms) == (3, 3)
    assert of.noise < of.noise_high
    assert of.own == pytest.approx(max(a.truth for a in ARMS.values()) - ARMS["lora"].truth, abs=2)
    assert of.common > 0
    lost = wrong_rate(Compared(LABELS, (quiet(Arm(best=0.0, offset=0.0)),), None))
    assert lost.set_index("factor")["lost"].to_dict() == pytest.approx(
        {0.5: FALL, 2**-0.5: FALL / 4, 2**0.5: FALL / 4, 2.0: FALL}
    )


def test_the_page_says_which_curves_are_no_quadratic():
    check = pd.DataFrame(
        [{"analysis": a.name, "arm": "full", "estimate": 1.0, "low": 0.5, "high": 1.5,
          "p_holm": 0.01, "verdict": "distinguishable", "within": "", "ends": 0}
         for a in ANALYSES[:2]]
    )  # fmt: skip
    for poor, said in (((), "nowhere"), ((0.01,), "once"), ((0.01, 0.02), "2 times")):
        p = [*poor, 0.5, 0.6]
        rates = pd.DataFrame({"end": "", "loss_fit": 0.5, "score_fit": p})
        text = part.check_words(check, rates)
        assert "0 of 1 verdicts differ" in text
        assert "is rejected at the 5 % level for the loss of 0;" in text
        assert text.endswith(f"for which it would be rejected {said}, follow a spline.")


@pytest.fixture(scope="module")
def study():
    raw = results(draw(ARMS, np.random.default_rng(0), seeds=3))
    return fitted_study(raw, from_results(raw), None, Request())


def test_the_page_compares_arms_at_their_own_rates_and_in_no_other_way(study):
    (target, source) = compared(study)
    assert (target.labels["side"], source.labels["side"]) == ("target", "source")
    assert target.places == ["batch size 8", "batch size 16", "batch size 32"]
    section = part.section(study)
    assert section is not None
    assert section.summary.startswith("Of 2 arms at their own best learning rates over 3 settings ")
    assert "1 (full) is above lora" in section.summary
    names = [b.name for b in section.blocks if b.kind == "plate"]
    assert names == ["own_rates", "own_rate_curves", "own_rates_2", "own_rate_curves_2"]
    lines = [h for h in study_headlines(study) if h.question in ("adapters", "settings")]
    assert lines == []
    assert {h.label for h in part.headlines(study)} == {
        "full − lora, each at its own rate", "dora − lora, each at its own rate"
    }  # fmt: skip
    assert arms_section.adapters(study) is None


def test_arms_on_several_data_sets_are_one_family():
    """Two data sets are no two chances of 5 % for a false headline: statsmodels' Holm over both."""
    arms = ARMS | {"full": Arm(best=-0.3, score=31.6)}
    parts = [
        results(draw(arms, np.random.default_rng(seed), seeds=3)).assign(dataset=name)
        for seed, name in enumerate(("micro", "micro_short"))
    ]
    raw = pd.concat([part.assign(train_key=part["train_key"] + part["dataset"]) for part in parts])
    made = fitted_study(raw, from_results(raw), None, Request())
    places = [found for found in compared(made) if found.labels["side"] == "target"]
    alone = np.concatenate([difference_table(found)["p"] for found in places])
    assert len(places) == 2
    found = part.headlines(made)
    expected = multipletests(alone, method="holm")[1]
    assert [h.p for h in found] == pytest.approx(expected)
    assert [h.clear for h in found] == (expected < 0.05).tolist()
    section = part.section(made)
    assert section is not None
    sheets = [b.table for b in section.blocks if b.kind == "table"]
    told = [sheet.frame["p_holm"] for sheet in sheets if sheet.name.startswith("own_rates")]
    assert pd.concat(told[:2]).tolist() == pytest.approx(expected)


def test_without_a_validation_loss_arms_are_compared_as_before(study):
    raw = study.raw[study.raw["task"] != "heldout_validation"]
    other = fitted_study(raw, from_results(raw), None, Request())
    assert part.section(other) is None
    assert part.headlines(other) == []
    assert arms_section.headlines(other) != []


def test_a_run_that_is_missing_takes_its_seed_along(study):
    gone = study.raw["train_key"] == "dora 1 4 2"
    raw = study.raw[~gone]
    found = compared(fitted_study(raw, from_results(raw), None, Request()))[0]
    assert len(found.main["dora", "batch size 16"].theta_S) == 2
    assert len(found.main["lora", "batch size 16"].theta_S) == 3
    assert pd.notna(found.differences(found.main)[1].estimate.se)
