"""The first screen: what the answer says, which effects are drawn, the second analysis."""

import re

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from statsmodels.stats.multitest import multipletests

from analysis.inference.estimates import Estimate
from analysis.regression import second
from analysis.regression.headlines import best_levels, cluster_of, headlines
from analysis.regression.model import Request, analysed
from analysis.regression.numbers import Numbers
from analysis.regression.residual_checks import Bend
from analysis.regression.study import fitted
from analysis.report import first_screen, trust, words
from analysis.report.build import build, study_headlines
from analysis.report.headline import CLEAR, UNCLEAR, WITHIN, Headline, strongest, verdict
from analysis.report.outcome import outcome
from analysis.report.page import Item, Listing, Page, Plate, Sheet, Text, write
from analysis.report.tables import alike
from analysis.report.trust import false_positive_line
from analysis.table.frame import from_results
from tests.fake_results import Truth, fake_results


def effect(size, verdict=CLEAR, *, label="a − b", question="q", other=None):
    p = 0.001 if verdict == CLEAR else 0.4
    return Headline(
        label, "g", question, size, size - 1, size + 1, "points", verdict, p, 2.5, other
    )


def texts(section):
    return [b.text for b in section.blocks if isinstance(b, Text)]


def screen(effects, **options):
    return first_screen.section(effects, status="converged", trust=[Item("fine")], **options)


def test_the_answer_says_what_is_seen_what_is_none_and_what_could_have_been():
    effects = [effect(3.0), effect(-5.0, label="c − d"), effect(0.1, WITHIN), effect(1.0, UNCLEAR)]
    clear, within, unclear = texts(screen(effects))
    assert clear.startswith("2 of 4 effects are distinguishable from zero: c − d (g) −5.00 points")
    assert "a − b (g) +3.00 points (2.00 to 4.00)" in clear
    assert within.startswith("1 effect is within the margin")
    assert "minimum detectable effect is 2.50 points" in unclear


def test_a_written_report_is_told_with_its_largest_effects(tmp_path):
    """From its own table: the sentence that the page opens with."""
    effects = [effect(3.0), effect(-5.0, label="c − d"), effect(1.0, UNCLEAR)]
    page = write(Page("t", "a table", "0", (screen(effects),)), tmp_path)
    told = outcome(page)
    assert told[0] == f"report: {page} (1 table and 1 figure beside it)"
    assert told[1] == texts(screen(effects))[0]
    (tmp_path / "tables" / "headlines.csv").unlink()
    assert outcome(page) == [f"report: {page} (1 figure beside it)"]


def test_what_are_said_to_be_the_largest_are_whatever_question_they_are_of(tmp_path):
    effects = [effect(s, label=f"x{s}") for s in (9.0, -8.0, 7.0, 2.0)]
    effects += [effect(1.0, label="y", question="r")]
    text = texts(screen(effects))[0]
    assert "zero: the largest are x9.0 (g) +9.0 points (8.0 to 10.0)" in text
    assert all(f"x{s}" in text for s in (9.0, -8.0, 7.0))
    assert "y (g)" not in text
    page = write(Page("t", "a table", "0", (screen(effects),)), tmp_path)
    assert outcome(page)[1] == text


def test_nothing_to_say_is_said():
    assert texts(screen([], nothing="Only a mean.")) == ["Only a mean."]
    assert texts(screen([effect(1.0, UNCLEAR)])) == [
        "The one effect is not distinguishable from zero at the 5 % level.",
        "The minimum detectable effect is 2.50 points.",
    ]
    clear = texts(screen([effect(1.0), effect(1.0, UNCLEAR)]))[1]
    assert clear.startswith("1 effect is not distinguishable from zero, a − b (g); the minimum")


def test_the_figure_has_the_clear_effects_before_those_of_smallest_p():
    effects = [effect(0.1, UNCLEAR, label=f"n{i}") for i in range(60)] + [effect(2.0)]
    kept = strongest(effects, first_screen.MOST_LINES)
    assert len(kept) == first_screen.MOST_LINES
    assert kept[-1].clear
    plate = next(b for b in screen(effects).blocks if isinstance(b, Plate))
    assert "the 40 strongest of 61" in plate.caption
    labels = [t.get_text() for t in plate.figure.axes[0].get_yticklabels()]
    assert len(labels) == 41  # and the name of the group


def test_the_page_carries_the_figure_for_a_narrow_window_too(tmp_path):
    section = screen([effect(4.0, label="a"), effect(3.0, label="c")])
    plate = next(b for b in section.blocks if isinstance(b, Plate))
    wide, narrow = (
        sorted(float(bars.lines[0].get_xdata()[0]) for bars in figure.axes[0].containers)
        for figure in (plate.figure, plate.narrow)
    )
    assert wide == narrow == [3.0, 4.0]
    path = write(Page("t", "s", "v", (), first=section), tmp_path)
    text = path.read_text(encoding="utf-8")
    assert len(re.findall(r'<div class="plot(?: narrow| broad)', text)) == 2
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for ending in ("svg", "png"):
        assert f'href="figures/headlines_narrow.{ending}"' in text
        assert (tmp_path / "figures" / f"headlines_narrow.{ending}").is_file()


def test_few_effects_that_are_not_distinguishable_are_named():
    said = texts(screen([effect(3.0), effect(0.1, UNCLEAR, label="small")]))
    assert said[1].startswith("1 effect is not distinguishable from zero, small (g)")
    many = [effect(0.1, UNCLEAR, label=f"n{i}") for i in range(4)]
    assert "n0" not in texts(screen([effect(3.0), *many]))[1]


def test_a_second_analysis_that_disagrees_is_marked_in_line_and_in_words():
    against = Estimate("", 0.1, 1.0, 20)
    effects = [effect(4.0, other=Estimate("", 4.0, 0.5, 20)), effect(3.0, label="c", other=against)]
    found = screen(effects)
    table = next(b.table for b in found.blocks if isinstance(b, Sheet)).frame
    assert table["agrees"].tolist() == [True, False]
    plate = next(b for b in found.blocks if isinstance(b, Plate))
    labels = [t.get_text() for t in plate.figure.axes[0].get_yticklabels()]
    assert [t for t in labels if "‡" in t] == ["c ‡"]
    lines = next(b for b in found.blocks if isinstance(b, Listing)).entries
    assert "same verdict on 1 of 2 effects; not on c" in lines[-1].text


def test_a_verdict_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="verdict=maybe"):
        effect(1.0, "maybe")


# -- where the numbers come from --------------------------------------------------------------


@pytest.fixture(scope="module")
def study():
    raw = fake_results(plws=(0.0, 0.1, 1.0), controls=False)
    return fitted(raw, from_results(raw))


def test_the_second_analysis_of_a_study_is_statsmodels_own(study):
    rows = study.main[(study.main["dataset"] == "micro") & (study.main["side"] == "source")]
    ours = second.of_study(study, rows, "arm", ("mora r8", "full"))
    runs = second.labelled(study, rows).groupby("run", observed=True).agg(
        score=("score", "mean"), arm=("arm", "first"), dose=("dose", "first"),
        seed=("seed", "first"), cell=("cell", "first"),
    )  # fmt: skip
    theirs = smf.ols("score ~ C(arm, Treatment('full')) + dose + C(seed)", runs).fit(
        cov_type="cluster", cov_kwds={"groups": pd.factorize(runs["cell"])[0]}, use_t=True
    )
    name = next(n for n in theirs.params.index if "mora r8" in n)
    assert ours.estimate == pytest.approx(theirs.params[name])
    assert ours.se == pytest.approx(theirs.bse[name])
    assert ours.p == pytest.approx(theirs.pvalues[name], rel=1e-6)


def table(levels="abcd", n=20, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        (task, arm, 3.0 * (arm == "c") + rng.normal(0, 1) + task) for task in range(n)
        for arm in levels
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["task", "arm", "points"])


def test_a_factor_of_many_levels_is_compared_with_its_best_and_of_few_in_all_pairs():
    many = analysed(table(), Request(score="points"))
    found = headlines(many, Numbers.of(many))
    assert [one.label for one in found] == ["a − c", "b − c", "d − c"]
    assert all(one.estimate < -2 and one.low < one.estimate < one.high for one in found)
    few = analysed(table("abc"), Request(score="points"))
    assert len(headlines(few, Numbers.of(few))) == 3


def test_straight_numbers_are_adjusted_over_the_effects_as_statsmodels_adjusts_them():
    rng = np.random.default_rng(11)
    names = ["rate_a", "rate_b", "rate_c", "rate_d", "rate_e"]
    rows = pd.DataFrame(rng.uniform(0, 1, (60, 5)), columns=names)
    rows["accuracy"] = 0.5 + 0.25 * rows["rate_a"] + rng.normal(0, 0.2, 60)
    formula = f"accuracy ~ {' + '.join(names)}"
    reg = analysed(rows, Request(formula=formula))
    found = {one.label.split()[0]: one.p for one in headlines(reg, Numbers.of(reg))}
    raw = smf.ols(formula, rows).fit().pvalues[names]
    adjusted = multipletests(raw, method="holm")[1]
    assert found == pytest.approx(dict(zip(names, adjusted, strict=True)))
    assert any(p < 0.05 for p in found.values())


def arch(seed=1, task=("gsm8k", "piqa")):
    """Scores that rise with wp and fall as much again, so that the ends do not differ."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.1, (6, len(task)))  # the same at every weight
    rows = [(f"r{w}{k}", t, w, 1.2 * w * (1 - w) + 0.1 * (t == "piqa") + noise[k, task.index(t)])
            for w in (0.0, 0.25, 0.5, 0.75, 1.0) for k in range(6) for t in task]  # fmt: skip
    return pd.DataFrame(rows, columns=["run", "task", "wp", "accuracy"])


def test_an_arch_is_an_effect_of_the_weight_though_its_ends_are_alike(tmp_path):
    """The F test of both coefficients is that of statsmodels' model without random effects."""
    rows = arch(task=("one",)).drop(columns="task")
    reg = analysed(rows, Request(formula="accuracy ~ wp + I(wp^2)"))
    whole, ends = headlines(reg, Numbers.of(reg))
    theirs = smf.ols("accuracy ~ wp + I(wp**2)", rows).fit()
    assert whole.p == pytest.approx(theirs.f_pvalue)
    assert (whole.label, whole.verdict, ends.verdict) == ("any effect of wp", CLEAR, UNCLEAR)
    assert ends.p >= whole.p
    section = screen([whole, ends])
    said = texts(section)[0]
    start = "1 of 2 effects is distinguishable from zero: any effect of wp (joint test of 2"
    assert said.startswith(start)
    assert "nan" not in " ".join(texts(section))
    assert outcome(write(Page("t", "a table", "0", (section,)), tmp_path))[1] == said


def test_where_the_joint_test_sees_nothing_no_difference_of_the_ends_is_claimed():
    """An end difference that a curve of no effect shows is the larger of both p-values."""
    p = []
    for seed in range(12):
        noise = np.random.default_rng(seed).normal(size=30)
        rows = arch(task=("one",)).assign(accuracy=noise).drop(columns="task")
        reg = analysed(rows, Request(formula="accuracy ~ wp + I(wp^2)"))
        whole, ends = headlines(reg, Numbers.of(reg))
        p.append(whole.p)
        assert ends.p >= whole.p
    assert max(p) > 0.5


def test_tasks_are_blocks_and_no_answer(tmp_path):
    rows = arch().assign(method=lambda d: np.where(d["run"].str[-1] < "3", "a", "b"))
    reg = analysed(rows, Request(formula="accuracy ~ method + task + (1 | run)"))
    found = Numbers.of(reg)
    assert {one.group for one in headlines(reg, found)} == {"method"}
    assert best_levels(reg, found).frame["factor"].tolist() == ["method"]
    assert set(found.means["factor"]) == {"method", "task"}  # they stay in their section
    many = table([f"m{i}" for i in range(9)], n=4).rename(columns={"arm": "method"})
    many["task"] = many["task"].map("t{}".format)
    reg = analysed(many, Request(score="points"))
    assert headlines(reg, Numbers.of(reg)) == []  # of the tasks, which nobody asked about
    told = outcome(build(many, tmp_path, score="points"))[-1]
    assert told.startswith("The levels of method are not compared: its 9 levels")
    asked = analysed(many, Request(formula=told.split('--formula "')[1].rstrip('"')))
    assert {one.group for one in headlines(asked, Numbers.of(asked))} == {"method"}
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.index("levels of method are not compared") < page.index('id="table"')
    more = table([f"m{i}" for i in range(20)], n=3).rename(columns={"arm": "method"})
    reg = analysed(more, Request(formula="points ~ method + (1 | task)"))
    (whole,) = headlines(reg, Numbers.of(reg))
    assert (whole.label, whole.group) == ("any effect of method", "joint test of 19 coefficients")
    alone = analysed(rows, Request(formula="accuracy ~ task + (1 | run)"))
    assert {one.group for one in headlines(alone, Numbers.of(alone))} == {"task"}


def test_the_best_level_is_that_of_the_highest_mean_and_how_many_may_be():
    reg = analysed(table(), Request(score="points"))
    row = best_levels(reg, Numbers.of(reg)).frame.iloc[0]
    means = table().groupby("arm")["points"].mean()
    assert (row["best"], row["possible"]) == ("c", "1 of 4 levels")
    assert row["mean"] == pytest.approx(means["c"])
    assert row["low"] < row["mean"] < row["high"]


def test_errors_are_clustered_by_the_group_within_which_the_effect_does_not_vary():
    rows = table().assign(run=lambda d: d["arm"] + (d["task"] % 5).astype(str))
    offset = dict(zip(rows["run"].unique(), np.random.default_rng(1).normal(0, 3, 20), strict=True))
    rows["points"] += rows["run"].map(offset)
    reg = analysed(rows, Request(formula="points ~ arm + (1 | task) + (1 | run)"))
    assert cluster_of(reg, "arm") == "run"
    plain = analysed(table(), Request(formula="points ~ arm + (1 | task)"))
    assert cluster_of(plain, "arm") == "task"


def test_a_measured_rate_above_five_percent_is_a_warning_whichever_control_it_is_of():
    rates = pd.DataFrame({
        "control": ["sham", "relabelled"], "tests": [24, 80], "rate": [0.0, 0.22],
        "low": [0.0, 0.14], "high": [0.14, 0.33],
    })  # fmt: skip
    line = next(false_positive_line(rates))
    assert (line.tag, line.tone) == ("too many", "warn")
    assert "labels drawn at random 22 % (14 to 33 %) of 80 tests" in line.text
    fine = next(false_positive_line(rates.head(1)))
    assert (fine.tag, fine.tone) == ("as wanted", "clear")


def test_a_line_that_the_score_bends_over_is_a_caution_with_its_panels(study, monkeypatch):
    """The test of the square is that of the diagnostics, held against draws elsewhere."""
    odd = [id(model) for model in study.panels[:2]]
    found = {"rate": odd, "epochs": []}

    def bends(model):
        return [Bend(n, 0.0, 0.5, "It bends." * (id(model) in bad)) for n, bad in found.items()]

    monkeypatch.setattr(trust, "bends", bends)
    (line,) = trust._bends(study)
    assert line.text.startswith(f"The score bends over rate in 2 of {len(study.panels)} models (")
    for model in study.panels:
        assert (study.panel(model.labels) in line.text) == (id(model) in odd)
    assert (line.tag, line.tone) == ("curvature", "warn")


@pytest.mark.parametrize(
    ("values", "said"),
    [((-2.29, -3.66, -0.918), ["−2.29", "−3.66", "−0.92"]),
     ((0.0221, 0.00312, 0.041), ["0.0221", "0.0031", "0.0410"]),
     ((50.12, 50.119, 50.121), ["50.1200", "50.1190", "50.1210"]),
     ((1234.5, 1000.0, 1500.0), ["1,234", "1,000", "1,500"]),
     ((0.0, 0.0, 0.0), ["0.00", "0.00", "0.00"])],
)  # fmt: skip
def test_an_estimate_and_its_interval_have_the_same_decimals(values, said):
    assert alike(values) == said


def test_what_does_not_vary_is_not_adjusted_for():
    rows = pd.DataFrame({"adapter": ["lora"] * 4, "rank": [1, 2] * 2, "seed": [0, 0, 1, 1]})
    names = {"adapter": "adapter", "rank": "rank", "seed": "seed"}
    assert words.varying(rows, names) == "rank and seed"
    assert words.varying(rows.head(1), names) == ""


def test_a_score_that_is_named_by_its_column_is_no_unit():
    text = first_screen.answer([Headline("a", "g", "q", 1, 0.5, 1.5, "f1", CLEAR, 0.01)])[0]
    assert "+1.00 in f1 (0.50 to 1.50)" in text


def test_effects_without_an_estimate_are_counted_apart_with_their_reason():
    lost = [
        Headline(f"x{i}", "g", "q", *[np.nan] * 3, "points", verdict(np.nan), np.nan, because="why")
        for i in range(2)
    ]
    found = screen([effect(3.0), *lost])
    assert texts(found)[0].startswith("The one effect is distinguishable")
    assert texts(found)[1] == "2 effects could not be estimated, x0 (g); x1 (g): why."
    plate = next(b for b in found.blocks if isinstance(b, Plate))
    assert not any("x0" in t.get_text() for t in plate.figure.axes[0].get_yticklabels())
    assert texts(screen(lost)) == ["2 effects could not be estimated, x0 (g); x1 (g): why."]


@pytest.mark.parametrize(
    ("p", "same", "said"),
    [(0.01, WITHIN, CLEAR), (0.2, WITHIN, WITHIN), (0.2, "a small effect", WITHIN),
     (0.2, "undecided", UNCLEAR), (np.nan, WITHIN, "could not be estimated")],
)  # fmt: skip
def test_one_verdict_for_every_question(p, same, said):
    assert verdict(p, same) == said


def test_arms_settings_and_weights_are_all_tested_for_equivalence():
    """Under a margin wider than any interval, whatever is not clear is within it."""
    truth = Truth(adapter=dict.fromkeys(Truth().adapter, 0.0), per_log2_rank={})
    raw = fake_results(plws=(0.0, 0.1), truth=truth, controls=False)
    raw["train.epochs"] = 1.0
    more = raw.assign(train_key=raw["train_key"] + "e", **{"train.epochs": 2.0})
    raw = pd.concat([raw, more[more["adapter"] != "none"]], ignore_index=True)
    wide, narrow = (
        study_headlines(fitted(raw, from_results(raw), request=Request(margin=m)))
        for m in (99.0, 1e-6)
    )
    assert {one.question for one in wide} == {"plw", "adapters", "settings"}
    assert {one.verdict for one in wide} <= {CLEAR, WITHIN}
    assert {one.verdict for one in narrow} <= {CLEAR, UNCLEAR}
    for question in ("adapters", "settings"):
        assert WITHIN in {one.verdict for one in wide if one.question == question}


@pytest.mark.slow
def test_a_weight_that_another_setting_determines_is_not_estimated_and_the_page_says_why(tmp_path):
    raw = fake_results(2, seeds=3, plws=(0.0, 0.1), controls=False)
    raw = raw[(raw["masking"] == "none") & (raw["plw"] == 0.1) & (raw["adapter"] != "none")]
    key = "masking.weights.instruction"
    raw = pd.concat([
        raw.assign(train_key=raw["train_key"] + str(w), effective_plw=w, wp=w**0.3, **{key: w})
        for w in (0.1, 0.5)
    ], ignore_index=True)  # fmt: skip
    study = fitted(raw, from_results(raw))
    lost = [one for one in study_headlines(study) if one.question == "plw"]
    why = f"each level of {key} ran at one effective prompt loss weight"
    assert {(one.verdict, one.because) for one in lost} == {("could not be estimated", why)}
    (said,) = first_screen.answer(lost)
    assert "could not be estimated" in said
    assert said.endswith(f": {why}.")
    assert build(raw, tmp_path).is_file()


def test_a_setting_of_numbers_leaves_the_weights_effects_on_the_page():
    """A column whose name has a dot, inside a call of the formula, can be predicted from."""
    raw = fake_results(plws=(0.0, 0.1), controls=False)
    raw = raw[raw["adapter"] == "lora"]
    raw = pd.concat([raw.assign(train_key=raw["train_key"] + str(e), **{"train.epochs": e})
                     for e in (1.0, 2.0)], ignore_index=True)  # fmt: skip
    study = fitted(raw, from_results(raw))
    assert "C(`train.epochs`)" in study.formula
    assert len([one for one in study_headlines(study) if one.question == "plw"]) > 0


@pytest.mark.slow
def test_runs_whose_completion_weighs_nothing_are_named_and_compared_with_the_others(tmp_path):
    raw = fake_results(plws=(0.0, 0.1, 1.0), controls=False)
    raw = raw[(raw["masking"] == "none") & (raw["adapter"] == "lora")]
    none = {"completion_weight": 0.0, "wp": np.nan, "effective_plw": np.nan}
    zero = raw[raw["plw"] > 0].assign(train_key=lambda t: t["train_key"] + "z", **none)
    raw = pd.concat([raw, zero], ignore_index=True)
    study = fitted(raw, from_results(raw))
    lost = zero["train_key"].nunique()
    assert any(f"{lost} runs with no weight on the completion" in s for s in study.left_out)
    found = [one.label for one in study_headlines(study) if one.question == "settings"]
    assert any(label.startswith("completion_weight 0 − 1, PLW 1") for label in found)
    assert build(raw, tmp_path).is_file()
