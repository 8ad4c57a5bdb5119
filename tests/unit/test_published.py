"""Published tables: shipped as printed, and docs/published.md says what they give."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.errors import AnalysisError
from analysis.inference.optimum import INTERIOR, optimum
from analysis.papers.mora import published as mora
from analysis.table import published
from notebooks.refits import figures, instruction_modelling, peft_comparison, tradeoffs, wit

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    "im_datasets": 16, "im_gains": 34, "im_kl": 16, "im_scores": 270, "lora_tradeoffs": 260,
    "lora_tradeoffs_setups": 5, "mora_pretraining": 8, "mora_scores": 141, "mora_uuid": 20,
    "peft_comparison": 63, "wit_heatmap": 540,
}  # fmt: skip
CELLS = [  # read off the papers' tables
    ("lora_tradeoffs", "table == 'S1' and method == 'full' and x == 20", "value", 0.263),
    ("lora_tradeoffs", "table == 'S7' and method == 'full' and x == 4", "value", 0.642),
    ("lora_tradeoffs", "table == 'S8' and rank == '16' and x == 16", "value", 0.596),
    ("lora_tradeoffs", "table == 'S13' and rank == '256' and x == 6", "value", 0.629),
    ("peft_comparison", "variant == 'rank64-rslora'", "accuracy", 0.5133),
    ("peft_comparison", "method == 'full-finetuning'", "trainable_params", 3212749824),
    ("im_scores", "dataset == 'LIMA' and method == 'IM' and measure == 'nlp_mean'", "value", 49.60),
    ("im_scores", "method == 'LLAMA-2-BASE' and measure == 'mt_bench'", "value", 1.16),
    ("im_datasets", "dataset == 'WizardLM'", "ratio", 0.3550),
    ("im_gains", "panel == 'examples' and x == 35000", "gain", 41.0),
    ("mora_scores", "table == 1 and method == 'DoRA' and rank == '8' and measure == 'MATH'",
     "value", 14.6),
    ("mora_scores", "table == 4 and map == 'decoupling' and rank == '256'", "value", 67.8),
    ("mora_scores", "table == 7 and method == 'MoRA' and rank == '8' and measure == 'NER'",
     "value", 68.9),
    ("mora_pretraining", "method == 'ReMoRA' and size == '1.3B'", "perplexity", 23.34),
    ("im_kl", "method == 'IT+KL' and `lambda` == 0.1 and measure == 'nlp_mean'", "value", 48.77),
]  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_there_and_none_twice(name):
    table = published.read(name)
    assert len(table) == ROWS[name]
    assert not table.duplicated().any()


def test_every_table_has_a_source_and_no_path():
    told = (published.FOLDER / "SOURCES.md").read_text()
    for name in published.names():
        assert f"`{name}.csv`" in told, name
        assert "/work" not in (published.FOLDER / f"{name}.csv").read_text()


@pytest.mark.parametrize(("name", "where", "column", "value"), CELLS)
def test_cells_are_as_printed(name, where, column, value):
    found = published.read(name).query(where)
    assert len(found) == 1
    assert found[column].iloc[0] == value


def test_an_unknown_table_is_one_line():
    with pytest.raises(AnalysisError, match="Did you mean 'im_scores'"):
        published.read("im_score")


def test_the_six_categories_average_to_the_printed_mean():
    """Shi et al.'s mean is over six categories, to the rounding of their two decimals."""
    wide = published.read("im_scores").query("place == 'table 1'")
    wide = wide.pivot(index=["dataset", "method"], columns="measure", values="value")
    gap = wide[list(instruction_modelling.CATEGORIES)].mean(axis=1) - wide["nlp_mean"]
    assert gap.abs().max() < 0.011


def test_figure_2_gives_its_own_printed_lines():
    left = instruction_modelling.figure2("ratio")
    assert np.polyfit(left["log_x"], left["gain"], 1) == pytest.approx([18.85, 25.83], abs=0.03)
    right = instruction_modelling.figure2("examples")
    assert np.polyfit(right["log_x"], right["gain"], 1) == pytest.approx([-39.37, 431.74], abs=0.2)


# What the refits compute, against a plain way of computing it.


def test_noise_is_the_spread_of_near_replicates():
    table = published.read("wit_heatmap").query("lambda_p == 0 and lambda_r > 0")
    groups = table.groupby(["base_model", "train_dataset"])["mean_5_benchmarks"]
    cells = wit.cells()
    assert len(cells) == 525
    row = wit.noises(cells, "rows").set_index("rows").loc["lambda_p = 0"]
    assert row["sd"] == pytest.approx(np.sqrt(groups.var().mean()))
    assert row["df"] == 60
    assert wit.noise(cells).df == 525 - 15 * 21  # 21 ratios


def test_the_size_effect_is_that_of_a_regression_with_all_groups():
    """One slope beside 315 means, by least squares on their dummies."""
    cells = wit.cells()
    groups = pd.get_dummies(cells["panel"] + cells["ratio"]).to_numpy(dtype=float)
    x = np.column_stack([cells["size"], groups])
    beta, rest, *_ = np.linalg.lstsq(x, cells["score"].to_numpy(), rcond=None)
    cov = float(rest[0]) / (525 - x.shape[1]) * np.linalg.inv(x.T @ x)
    found = wit.size_effect(cells)
    assert found.estimate == pytest.approx(beta[0])
    assert found.se == pytest.approx(np.sqrt(cov[0, 0]))
    assert found.df == 525 - x.shape[1]


def test_what_a_model_leaves_and_noise_share_the_degrees_of_freedom():
    cells = wit.on_responses(wit.cells())
    found = wit.lack_of_fit(cells, f"panel * ({wit.CURVE})")
    assert found.df + found.df_noise == len(cells) - 15 * 3


def test_the_largest_of_draws():
    assert wit.largest_of(1) == pytest.approx(0, abs=1e-6)
    assert wit.largest_of(2) == pytest.approx(1 / np.sqrt(np.pi), abs=1e-6)  # closed forms
    assert wit.largest_of(3) == pytest.approx(1.5 / np.sqrt(np.pi), abs=1e-6)


def test_the_panels_curve_is_numpys():
    cells = wit.on_responses(wit.cells())
    own = cells[(cells["model"] == "Llama-3-8B") & (cells["dataset"] == "Tulu-v2-150K")]
    b2, b1, _ = np.polyfit(own["share"], own["score"], 2)
    rows = wit.by_panel(cells).set_index(["model", "dataset"])
    row = rows.loc[("Llama-3-8B", "Tulu-v2-150K")]
    assert row["share"] == pytest.approx(-b1 / (2 * b2))
    assert row["at_half"] == pytest.approx(b1 / 2 + b2 / 4)


def test_matched_learning_is_least_squares():
    own = tradeoffs.of(tradeoffs.points(), "code CPT")
    x = np.column_stack([np.ones(32), own["target"], own["target"] ** 2, *_dummies(own["arm"])])
    beta = np.linalg.lstsq(x, own["source"].to_numpy(), rcond=None)[0]
    assert [e.estimate for e in tradeoffs.at_matched_learning(own).estimates] == pytest.approx(
        beta[3:], rel=1e-6
    )


def _dummies(arm):
    return [(arm == name).to_numpy(dtype=float) for name in tradeoffs.ARMS[1:]]


def test_arms_at_equal_budgets_are_plain_differences_of_means():
    """Every budget holds every arm once, so that adjustment changes nothing."""
    own = tradeoffs.of(tradeoffs.points(), "math IFT")
    mean = own.groupby("arm", observed=True)["target"].mean()
    found = [e.estimate for e in tradeoffs.behind_full(own).estimates]
    assert found == pytest.approx((mean[list(tradeoffs.ARMS[1:])] - mean["full"]).tolist())


def test_the_front_holds_what_nothing_surpasses():
    table = peft_comparison.configurations()
    front = peft_comparison.front(table)
    for i, row in table.iterrows():
        better = (table["points"] >= row["points"]) & (table["forgetting"] <= row["forgetting"])
        assert front.loc[i, "alone"] == (better.sum() == 1)
    assert not (front["alone"] & front["surpassed_for_sure"]).any()


def test_items_noise_near_one_half():
    table = peft_comparison.configurations().set_index("config")
    assert table.loc["lora rank32", "se"] == pytest.approx(100 / (2 * np.sqrt(1319)), rel=0.01)


@pytest.mark.parametrize("measure", instruction_modelling.HEADLINES)
def test_the_gain_is_the_paired_t_test(measure):
    pairs = instruction_modelling.table1()
    gap = instruction_modelling.differences(pairs)[measure]
    t = stats.ttest_1samp(gap, 0)
    found = instruction_modelling.gain(pairs, measure)
    assert found.estimate == pytest.approx(gap.mean())
    assert found.p == pytest.approx(t.pvalue, rel=1e-4)
    assert found.df == pytest.approx(6, rel=1e-4)


def test_the_slope_is_scipys():
    frame = instruction_modelling.differences(instruction_modelling.table1())
    plain = stats.linregress(frame["log_ratio"], frame["alpacaeval1"])
    found = instruction_modelling.over_ratio(frame, "alpacaeval1")
    assert (found.estimate, found.se) == pytest.approx((plain.slope, plain.stderr))
    without = instruction_modelling.slopes_without(frame, "alpacaeval1").set_index("left_out")[
        "estimate"
    ]
    rest = frame.drop(index="LIMA")
    plain = stats.linregress(rest["log_ratio"], rest["alpacaeval1"])
    assert without["LIMA"] == pytest.approx(plain.slope)


def test_an_unknown_measure_is_one_line():
    with pytest.raises(AnalysisError, match="Did you mean 'mt_bench'"):
        instruction_modelling.gain(instruction_modelling.table1(), "mt_bnch")


# The figures


def test_the_figures_hold_every_point():
    cells, table = wit.on_responses(wit.cells()), peft_comparison.configurations()
    drawn = figures.shares(cells, 1.0)
    dots = [line for axis in drawn.axes for line in axis.lines if line.get_linestyle() == "None"]
    assert sum(len(line.get_xdata()) for line in dots) == 450
    drawn = figures.configurations(table, table.index.isin(peft_comparison.top(table).table.index))
    filled, hollow = drawn.axes[0].lines[:2]
    assert (len(filled.get_xdata()), len(hollow.get_xdata())) == (18, 45)
    drawn = figures.tradeoffs(tradeoffs.points())
    assert [axis.get_title("left") for axis in drawn.axes[:4]] == list(tradeoffs.SETTINGS)
    pairs = instruction_modelling.table1()
    drawn = figures.pairs(
        instruction_modelling.differences(pairs),
        instruction_modelling.alpacaeval_items(pairs),
        instruction_modelling.figure2("ratio"),
    )
    assert len(drawn.axes[2].lines[0].get_xdata()) == 19


# The numbers of docs/published.md


def around(e, places=2):
    return f"{e.estimate:+.{places}f} ({e.low:+.{places}f} to {e.high:+.{places}f})"


def of_f(f):
    return f"F({f.df}, {f.df_noise}) = {f.statistic:.2f}, p = {f.p:.2g}"


@cache
def told_of_wit():
    cells = wit.cells()
    runs, noise, best = wit.on_responses(cells), wit.noise(cells), wit.best_cells(cells)
    own, without = wit.by_panel(runs), wit.by_panel(runs[runs["share"] > 0])
    inside = own["verdict"] == INTERIOR
    fits = {
        "share_fit": f"panel * ({wit.CURVE})",
        "surface_fit": f"panel * ({wit.SURFACE})",
        "common_fit": f"panel + {wit.CURVE}",
    }
    return {name: of_f(wit.lack_of_fit(runs, fixed)) for name, fixed in fits.items()} | {
        "noise": f"a standard deviation of {noise.sd:.2f} points ({noise.df} degrees of freedom)",
        "size": f"{around(wit.size_effect(cells))} points",
        "all_verdict": optimum(wit.share_curves(runs)["all"], high=wit.MOST).verdict,
        "panels_flat": f"{(own['p_holm'] < 0.05).sum()}",
        "panels_inside": f"{inside.sum()}",
        "panels_kept": f"{(inside & (without['verdict'] == INTERIOR)).sum()}",
        "jumps": f"{(wit.jumps(runs)['p_holm'] < 0.05).sum()}",
        "best_gain": f"{best['gain'].mean():.2f}",
        "best_relative": f"{best['relative'].mean():.2f}",
        "bias": f"{best['bias'].mean():.2f}",
        "holm": f"{wit.settings_against_plain(runs)['p_holm'].min():.2f}",
        "chosen": around(wit.chosen_elsewhere(runs)),
    }


@cache
def told_of_tradeoffs():
    points = tradeoffs.points()
    lines = []
    for setting in tradeoffs.SETTINGS:
        own = tradeoffs.of(points, setting)
        pairs = [f(own).table() for f in (tradeoffs.behind_full, tradeoffs.at_matched_learning)]
        learnt, kept = (p.set_index("contrast").loc["lora 256 - full"] for p in pairs)
        arms = tradeoffs.peaks(own).query("possible")["arm"]
        named = ", ".join(arm.replace("lora ", "rank ") for arm in arms)
        lines.append(f"| {setting} | {around(learnt)} | {around(kept)} | {named} |")
    slopes, test = tradeoffs.gains_per_doubling(tradeoffs.of(points, "code CPT"))
    rise = slopes.table().set_index("arm")["estimate"]
    return {
        "lora_rows": "\n".join(lines),
        "full_doubling": f"{rise['full']:.2f}",
        "r256_doubling": f"{rise['lora 256']:.2f}",
        "doubling_F": f"{test.statistic:.1f}",
    }


@cache
def told_of_peft():
    table = peft_comparison.configurations()
    top, fit = peft_comparison.top(table), peft_comparison.size_fit(table)
    won = top.winner
    rho = peft_comparison.ranks(table).set_index("name")["rho"]
    return {
        "possible": f"{len(top.table)}",
        "possible_seed": f"{len(peft_comparison.top(table, seed_sd=1.0).table)}",
        "naive": f"{won.naive:.1f}",
        "corrected": f"{won.hybrid.estimate:.1f}",
        "corrected_interval": f"{won.hybrid.low:.1f} to {won.hybrid.high:.1f}",
        "tenfold": around(peft_comparison.per_tenfold(fit), 1),
        "tenfold_big": around(
            peft_comparison.per_tenfold(peft_comparison.size_fit(table, least=1e6)), 1
        ),
        "sd_method": f"{float(fit.random['method'].sd.iloc[0]):.1f}",
        "sd_rest": f"{fit.sigma:.1f}",
        "rho": f"{rho['forgetting']:.2f}",
    }


@cache
def told_of_im():
    pairs = instruction_modelling.table1()
    frame, left = instruction_modelling.differences(pairs), instruction_modelling.figure2("ratio")
    fixed = instruction_modelling.figure2("ratio", corrected=True)
    math = (
        instruction_modelling.gains(pairs, instruction_modelling.CATEGORIES)
        .set_index("measure")
        .loc["math_code"]
    )
    names = ("NLP mean", "MT-Bench", "AlpacaEval 1", "AlpacaEval 2")
    rows = zip(names, instruction_modelling.gains(pairs).itertuples(), strict=True)
    return {
        "im_rows": "\n".join(
            f"| {name} | {around(row)} | {row.p_holm:.3f} | {row.wins} of 7 |" for name, row in rows
        ),
        "five": around(instruction_modelling.gain(pairs, "nlp_mean_5")),
        "math": around(math),
        "math_p": f"{math['p_holm']:.3f}",
        "percent": around(instruction_modelling.over_ratio(frame, "alpacaeval1_relative"), 1),
        "in_points": around(instruction_modelling.over_ratio(frame, "alpacaeval1")),
        "all19": around(instruction_modelling.over_ratio(left, "gain", "log_x"), 1),
        "below3": around(instruction_modelling.over_ratio(left[~left["long"]], "gain", "log_x"), 1),
        "fixed3": around(
            instruction_modelling.over_ratio(fixed[~fixed["long"]], "gain", "log_x"), 1
        ),
    }


@cache
def told_of_mora():
    table = published.read("mora_scores")
    own = table[table["table"].isin([6, 7]) & (table["measure"] != "mean")]
    wide = own.pivot_table(index=["rank", "measure"], columns="method", values="value")
    gap = (wide["MoRA"] - wide["LoRA"])["8"].sort_values(ascending=False)
    rows = mora.gains().itertuples()
    (odd,) = mora.disagreements().itertuples()
    return {
        "mora_rows": "\n".join(
            f"| {row.rank} | {around(row)} | {row.p_holm:.3f} | {row.ahead} of {row.tasks} |"
            for row in rows
        ),
        "mora_tasks": f"{gap.iloc[0]:.1f} and {gap.iloc[1]:.1f} points",
        "mora_odd": f"{odd.table_1} in table 1, {odd.stated} in table 6 and {odd.computed:.2f}",
    }


def flat(text):
    return " ".join(text.split())


TOLD = (told_of_wit, told_of_tradeoffs, told_of_peft, told_of_im, told_of_mora)


@pytest.mark.parametrize("told", TOLD)
def test_the_page_says_what_the_tables_give(told):
    page = flat((ROOT / "docs" / "published.md").read_text())
    for name, phrase in told().items():
        assert flat(phrase) in page, name


def test_the_page_holds_no_number_of_its_own():
    """Every number with a decimal point is one that was computed, or one that a paper printed."""
    page = flat((ROOT / "docs" / "published.md").read_text())
    phrases = [phrase for told in TOLD for phrase in told().values()]
    for phrase in sorted((flat(p) for p in phrases), key=len, reverse=True):
        page = page.replace(phrase, "") if "." in phrase else page
    page = re.sub(r"arXiv \d{4}\.\d{5}", "", page)
    assert sorted(re.findall(r"\d+\.\d+", page)) == ["0.36", "2.82", "6.55"]
