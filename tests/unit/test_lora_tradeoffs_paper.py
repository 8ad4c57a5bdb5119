"""The claims of LoRA Learns Less and Forgets Less, on runs whose truth is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.inference.estimates import Estimate
from analysis.papers.lora_tradeoffs import contrasts, figure, published, section
from analysis.papers.lora_tradeoffs.claims import CLAIMS, MARGIN_NATS, Line, tradeoff_claims
from analysis.papers.lora_tradeoffs.contrasts import KEPT, LEARNT
from analysis.papers.lora_tradeoffs.reading import tradeoff_of
from analysis.papers.lora_tradeoffs.runs import SETTINGS, kindest, near_best
from analysis.papers.lora_tradeoffs.spectrum import spectrum
from analysis.papers.verdicts import UNDECIDED, UNTESTABLE
from analysis.regression.model import Request
from analysis.report.build import fitted_study
from analysis.report.headline import CONTRADICTED, SUPPORTED
from analysis.report.page import Plate, Sheet, Text
from analysis.table.frame import from_results
from tests import tradeoff_runs as truth
from tests.imports import ROOT
from tests.tradeoff_runs import PRICE, Truth, draw, results, truths

LAST = 3  # doublings of the longest budget
STUDIES = 200
# Arms with something changed: their truth, and the columns that say what was changed.
CHANGED = {
    "full, frozen embeddings": {"embeddings": "frozen"},
    "full, weight decay 1": {"regulariser": "weight_decay", "train.weight_decay": 1.0},
    "full, weight decay 2": {"regulariser": "weight_decay", "train.weight_decay": 2.0},
    "full, attention dropout 0.1": {"regulariser": "attention_dropout",
                                    "regulariser.attention_dropout": 0.1},
    "full, adamw": {"optimizer": "adamw"},
    "LoRA r4, trained embeddings": {"embeddings": "trained"},
    "LoRA r4, on attention": {"placement": "attention"},
    "LoRA r4, on mlp": {"placement": "mlp"},
    "LoRA r16, alpha 2": {"adapter.options.alpha": 2.0},
}  # fmt: skip


def by_arm(points):
    found = {}
    for own in points:
        found.setdefault(own.arm, {})[own.budget] = own
    return found


def whole_study(noise=1.0, **full):
    """Return a results table with every part of the design."""
    rng = np.random.default_rng(3)
    points = [p for s in SETTINGS for p in draw(truths(**full), rng, s, noise=noise)]
    arms = truths(**full)
    worse = {
        "full, adamw": replace(arms["full"], behind=0.2),
        "LoRA r4, on attention": replace(arms["LoRA r4"], behind=0.4),
        "LoRA r16, alpha 2": replace(arms["LoRA r16"], behind=0.3),
        "full, attention dropout 0.1": replace(arms["full"], first=16.0),
    }
    more = {n: worse.get(n, arms[n.partition(", ")[0]]) for n in CHANGED}
    changed = draw(more, rng, "code IFT", noise=noise)
    return results(points + [p for p in changed if p.budget == 400], CHANGED)


@pytest.fixture(scope="module")
def study():
    raw = whole_study()
    return fitted_study(raw, from_results(raw), None, Request())


@pytest.fixture(scope="module")
def found(study):
    return tradeoff_of(study.frame, study.raw)


@pytest.fixture(scope="module")
def claims(study, found):
    return tradeoff_claims(found, study.frame, study.margin)


def test_every_arm_stands_at_the_rate_of_its_lowest_validation_loss(found):
    assert found.unit == "nats a token"
    assert found.base == pytest.approx(truth.BASE)
    assert found.arms("code CPT") == ["full", "LoRA r1", "LoRA r4", "LoRA r16"]
    for own in found.points:
        best = 3e-4 if own.arm.startswith("full") else 3e-3
        assert own.rate == pytest.approx(best)
        assert own.tried == pytest.approx(best)
        assert own.end == ""
    assert {p.arm for p in found.points if "," in p.arm} == set(CHANGED)
    full = [found.curve(s, "full")[50.0].learnt.estimate for s in SETTINGS]
    assert full == pytest.approx([truth.START] * 4, abs=0.1)  # less the base's loss on its own rows
    assert len(found.points) == 4 * 4 * 4 + len(CHANGED)


def test_rates_are_chosen_on_validation_rows_alone():
    """Test rows and source tasks at another rate ten times better move no choice."""
    raw = results(draw(truths(), np.random.default_rng(0), "code CPT"))
    high = raw["lr"] > 2e-3
    better = raw["task"].eq("heldout_test") & high & raw["adapter"].eq("full")
    raw.loc[better, "value"] = 0.1
    found = tradeoff_of(from_results(raw), raw)
    assert {round(p.rate, 6) for p in found.points if p.arm == "full"} == {3e-4}


def test_a_rate_at_which_a_seed_failed_is_not_chosen():
    raw = results(draw(truths(), np.random.default_rng(0), "code CPT"))
    lost = np.isclose(raw["lr"], 3e-4) & raw["seed"].eq(2) & raw["adapter"].eq("full")
    found = tradeoff_of(from_results(raw[~lost]), raw)
    curves = [p.learnt.curve for p in found.points if p.arm == "full"]
    assert {len(c.seeds) for c in curves} == {3}
    assert all(3e-4 not in c.rate_K.round(6) for c in curves)


def numbers(claims, claim):
    own = claims[claims["claim"] == CLAIMS[claim]]
    return own[own["verdict"] != UNTESTABLE]


@pytest.fixture(scope="module")
def noiseless():
    raw = whole_study(noise=1e-9)
    frame = from_results(raw)
    return tradeoff_claims(tradeoff_of(frame, raw), frame, 1.0)


MEAN = LAST / 2  # of the doublings over the four budgets
LESS = {"r1": 0.3, "r4": 0.2, "r16": 0.1}  # what LoRA is behind at the shortest budget


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("learns", lambda where: LESS[where] + 0.05 * MEAN),
        ("grows", lambda where: 0.05),
        ("grows_less", lambda where: 0.0),
        ("forgets", lambda where: 2.0 + PRICE * (LESS[where] + 0.05 * MEAN)),
        ("matched", lambda where: 2.0),
        ("rank_learns", lambda where: 0.1),
        ("rank_forgets", lambda where: PRICE * 0.1),
        ("ift", lambda where: 0.0),
        ("code", lambda where: 0.0),
        ("ten_times", lambda where: 10.0),
        ("narrower", lambda where: 1.0),
    ],
)
def test_claims_find_the_truth_without_noise(noiseless, claim, value):
    table = numbers(noiseless, claim)
    assert len(table)
    for row in table.to_dict("records"):
        rank = next((w for w in row["where"].replace(",", "").split() if w in LESS), "")
        assert row["estimate"] == pytest.approx(value(rank), abs=1e-5), row["where"]


def test_verdicts_with_noise(claims):
    def said(claim):
        return set(claims.loc[claims["claim"] == CLAIMS[claim], "verdict"])

    true = ("learns", "grows", "forgets", "rank_learns", "placement", "optimizer", "alpha",
            "ten_times")  # fmt: skip
    assert {claim: said(claim) for claim in true} == {claim: {SUPPORTED} for claim in true}
    held = claims[claims["claim"] == CLAIMS["alike_forgets"]].set_index("where")["verdict"]
    assert held["code IFT, attention dropout 0.1"] == CONTRADICTED
    assert set(claims["claim"]) == set(CLAIMS.values())
    assert UNTESTABLE not in set(claims["verdict"])
    assert not claims[["near_best", "kindest"]].isna().any(axis=None)


def test_no_overlap_in_learning_is_told():
    arms = {"full": Truth(), "LoRA r1": Truth(behind=5.0)}
    raw = results(draw(arms, np.random.default_rng(0), "code CPT"))
    frame = from_results(raw)
    table = tradeoff_claims(tradeoff_of(frame, raw), frame, 1.0)
    (row,) = table[table["claim"] == CLAIMS["matched"]].to_dict("records")
    assert (row["verdict"], row["note"]) == (UNTESTABLE, "the arms never learnt as much")


def test_matched_learning_is_the_area_between_the_curves():
    """Against numpy's interpolation and trapezoids, and against moving one seed's runs."""
    points = by_arm(draw(truths(), np.random.default_rng(5), "math CPT"))
    full, low = points["full"], points["LoRA r4"]
    same = contrasts.matched(low, full)

    def area(moved=None):
        lines = []
        for curve in (low, full):
            pairs = []
            for own in curve.values():
                pair = [own.parts(n).copy() for n in (LEARNT, KEPT)]
                if moved is not None and (own.arm, own.budget) == moved[:2]:
                    pair[moved[2]]["1"] += 1e-5
                pairs.append([p.mean() for p in pair])
            lines.append(np.array(pairs).T)
        amount = np.linspace(same.low, same.high, 2001)
        kept = [np.interp(amount, *line) for line in lines]
        return np.trapezoid(kept[0] - kept[1], amount) / (same.high - same.low)

    assert same.parts.mean() == pytest.approx(area(), abs=2e-3)
    # Seed 1's part is the mean and three times what moving seed 1 alone does to the mean.
    move = 0.0
    for own in (*low.values(), *full.values()):
        for axis, name in enumerate((LEARNT, KEPT)):
            away = own.parts(name)["1"] - own.parts(name).mean()
            move += away * (area((own.arm, own.budget, axis)) - area()) / 1e-5
    assert same.parts["1"] - same.parts.mean() == pytest.approx(3 * move, abs=5e-3)


@pytest.fixture(scope="module")
def simulated():
    """Studies of four settings: how often intervals hold the truth, and null claims are found."""
    rng = np.random.default_rng(11)
    arms = {"full": Truth(first=2.0), "LoRA r1": Truth(rate=3e-3, first=2.0),
            "LoRA r4": Truth(0.2, 0.05, rate=3e-3, first=2.0)}  # fmt: skip
    found = {name: [] for name in ("null", "learns", "grows", "matched")}
    for _ in range(STUDIES):
        many = [by_arm(draw(arms, rng, s)) for s in SETTINGS]
        pairs = [(p["full"], p[a]) for p in many for a in ("LoRA r1", "LoRA r4")]
        places = [s for s in SETTINGS for _ in range(2)]
        for name, parts, value in (
            ("learns", [contrasts.gap(*pair, LEARNT) for pair in pairs], 0.2 + 0.05 * MEAN),
            ("grows", [contrasts.growth(*pair, LEARNT) for pair in pairs], 0.05),
            ("matched", [contrasts.matched(*pair).parts for pair in pairs], 0.0),
        ):
            ends = contrasts.estimates(parts, places)
            found[name] += [(e.low, e.high, value) for e in ends[1::2]]
            if name != "matched":
                found["null"] += [(e.low, e.high, 0.0) for e in ends[::2]]
    return {name: np.array(rows) for name, rows in found.items()}


@pytest.mark.parametrize("name", ["learns", "grows", "matched", "null"])
def test_intervals_hold_the_truth_as_often_as_they_say(simulated, name):
    """Four standard errors of a binomial share of independent settings, studies alike."""
    low, high, value = simulated[name].T
    held = float(((low < value) & (value < high)).mean())
    studies = STUDIES * len(SETTINGS)
    assert abs(held - 0.95) < 4 * np.sqrt(0.95 * 0.05 / studies), held


def test_budgets_of_one_seed_are_no_replicates():
    """Twice the budgets from the same seeds that moved all of them leave the noise as it is."""
    points = by_arm(draw({"full": Truth(), "LoRA r1": Truth()}, np.random.default_rng(1), "x"))
    one = contrasts.gap(points["full"], points["LoRA r1"], LEARNT)
    twice = {a: c | {2 * b + 1: own for b, own in c.items()} for a, c in points.items()}
    other = contrasts.gap(twice["full"], twice["LoRA r1"], LEARNT)
    (before,), (after,) = (contrasts.estimates([parts], ["x"]) for parts in (one, other))
    assert (after.se, after.df) == pytest.approx((before.se, before.df))
    assert before.se == pytest.approx(one.std(ddof=1) / np.sqrt(3))


def test_about_ten_times_is_a_test_of_equivalence():
    line = Line("ten_times", "", "", None, 1, np.log2(2), np.log2(10), True)
    for factor, se, said in (
        (10, 0.1, SUPPORTED), (15, 0.1, SUPPORTED), (40, 0.1, CONTRADICTED), (10, 2.0, UNDECIDED),
        (18, 0.3, UNDECIDED),
    ):  # fmt: skip
        assert line.verdict(Estimate("", np.log2(factor), se, 20)) == said
    assert line.verdict(None) == UNTESTABLE


def test_the_parabola_finds_a_best_rate_between_those_tried():
    (own, *_) = draw({"full": Truth()}, np.random.default_rng(0), "x", noise=1e-9)
    curve = own.learnt.curve
    x_K = curve.x_K - curve.x_K[1]
    moved = replace(curve, loss_SK=np.tile(4.0 + 0.05 * (x_K - 0.4) ** 2, (3, 1)))
    assert np.log2(near_best(moved).rate / curve.rate_K[1]) == pytest.approx(0.4)
    few = moved.thinned([True, True, False, False])
    assert near_best(few).rate == pytest.approx(curve.rate_K[1])


def test_of_rates_that_learn_as_well_the_kindest_keeps_most():
    (own, *_) = draw({"full": Truth()}, np.random.default_rng(0), "x", noise=1e-9)
    learnt, kept = own.learnt.curve, own.kept.curve

    def chosen(loss_K, kept_K):
        loss_SK, score_SK = (np.tile(np.array(row, float), (3, 1)) for row in (loss_K, kept_K))
        both = replace(learnt, loss_SK=loss_SK), replace(kept, loss_SK=loss_SK, score_SK=score_SK)
        found = kindest(*both)
        assert found[0].rate == found[1].rate
        return list(learnt.rate_K).index(pytest.approx(found[0].rate)), found[1].estimate

    assert chosen([1.0, 1.019, 1.5, 2.0], [30, 50, 90, 99]) == (1, 50)
    assert chosen([1.0, 1.021, 1.5, 2.0], [30, 50, 90, 99]) == (0, 30)
    assert chosen([1.0, 1.019, 1.5, 2.0], [60, 50, 90, 99]) == (0, 60)


def test_the_page_has_every_figure(study):
    made = section.section(study)
    plates = [b.name for b in made.blocks if isinstance(b, Plate)]
    assert plates == [
        f"lora_tradeoffs_{n}"
        for n in ("learnt", "kept", "front", "regularisers_code_ift", "placement_code_ift",
                  "embeddings_code_ift", "spectra", "rates", "other_rates")
    ]  # fmt: skip
    names = [b.table.name for b in made.blocks if isinstance(b, Sheet)]
    assert names == [f"lora_tradeoffs_{n}" for n in ("summary", "claims", "arms")]
    assert made.summary.startswith("The paper's claims here.")
    assert not any("Not there" in b.text for b in made.blocks if isinstance(b, Text))


def test_what_is_drawn_is_what_was_estimated(found):
    table = contrasts.levels([p for p in found.points if "," not in p.arm])
    renamed = {LEARNT: "estimate", "learnt_low": "low", "learnt_high": "high"}
    drawn = figure.over_budgets(table.rename(columns=renamed), LEARNT, "nats a token")
    (axis,) = [a for a in drawn.axes if a.get_title("left") == "here: math IFT"]
    full = table[(table["setting"] == "math IFT") & (table["arm"] == "full")]
    heights = [line.get_ydata() for line in axis.lines if len(line.get_ydata()) == 4]
    assert any(np.allclose(h, full[LEARNT]) for h in heights)
    titles = [a.get_title("left") for a in drawn.axes]
    assert titles[4:] == [f"published: {s}" for s in SETTINGS]


def test_a_part_of_the_grid_makes_a_section_that_says_so():
    raw = results(draw({"full": Truth(), "LoRA r1": Truth(0.2)}, np.random.default_rng(0),
                       "code CPT"))  # fmt: skip
    raw = raw[raw["seed"].eq(0) & ~raw["task"].eq("weight_spectrum")]
    some = fitted_study(raw, from_results(raw), None, Request())
    made = section.section(some)
    (lost,) = [b.text for b in made.blocks if isinstance(b, Text) and "Not there" in b.text]
    for text in ("code IFT", "math CPT", "weight decay", "one seed has no noise"):
        assert text in lost
    claims = next(b.table.frame for b in made.blocks
                  if isinstance(b, Sheet) and b.table.name == "lora_tradeoffs_claims")  # fmt: skip
    assert set(claims["verdict"]) <= {UNDECIDED, UNTESTABLE}
    assert section.section(fitted_of(raw[raw["train.max_steps"].isna()
                                         | raw["train.max_steps"].eq(50)])) is None  # fmt: skip


def fitted_of(raw):
    return fitted_study(raw, from_results(raw), None, Request())


def test_single_runs_without_a_validation_loss_count_as_they_are(found):
    """As in the paper: benchmark scores, and a sweep of rates at one budget chooses nothing."""
    raw = results(draw({"full": Truth(), "LoRA r1": Truth(0.2)}, np.random.default_rng(0),
                       "math CPT"))  # fmt: skip
    kept = ~raw["task"].str.startswith("heldout") & raw["seed"].eq(0)
    swept = raw["train.max_steps"].eq(100)
    usual = np.isclose(raw["lr"], np.where(raw["adapter"].eq("full"), 3e-4, 3e-3))
    raw = raw[kept & (swept | usual | raw["adapter"].eq("none"))]
    target = raw[raw["task"].eq("micro_arithmetic")].assign(side="target", task="gsm8k")
    raw = pd.concat([raw, target], ignore_index=True)
    one = tradeoff_of(from_results(raw), raw)
    assert one.unit == "points"
    assert {(p.arm, round(p.rate, 5)) for p in one.points} == {("full", 3e-4), ("LoRA r1", 3e-3)}
    assert len(one.points) == 8


def test_the_rank_of_the_change_is_read_at_the_chosen_rate(study, found):
    table = spectrum(found, study.frame)
    assert set(table["kind"]) == {"q_proj", "layer_0"}
    assert len(table) == 4 * 4 * 4 * 3 * 2
    assert table["share"].to_numpy() == pytest.approx(0.3 + 0.02 * np.log2(table["budget"]))


def test_published_points_are_those_of_the_tables():
    table = published.points()
    assert len(table) == 104
    last = table[(table["setting"] == "code CPT") & (table["budget"] == 20)].set_index("arm")
    assert last.loc["full", LEARNT] == pytest.approx(26.3)
    assert last.loc["LoRA r256", KEPT] == pytest.approx(61.7)
    assert published.base("math IFT", LEARNT) == pytest.approx(14.5)
    assert published.base("math IFT", KEPT) == pytest.approx(67.1)


def test_margins_are_what_the_docs_say():
    text = (ROOT / "docs" / "lora_tradeoffs.md").read_text()
    assert f"{MARGIN_NATS:g} nats" in text
