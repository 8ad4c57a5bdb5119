"""Every option of `ablate report` on both kinds of page: what it changes, or why it is refused."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ablate.cli import main
from analysis.inference.estimates import coefficients, contrast, equivalence
from analysis.inference.mean_response import response
from analysis.mixed import fit_mixed
from analysis.planning.frozen import freeze
from analysis.questions.adapters.section import arm_differences
from analysis.regression.model import Request
from analysis.regression.study import fitted
from analysis.report.build import build
from analysis.table.frame import from_results, study_rows
from tests.fake_results import Truth, fake_results


def results():
    """A small study: one data set, full fine-tuning and LoRA, two weights."""
    found = fake_results(plws=(0.0, 1.0), controls=False, truth=Truth(run_sd=3.0))
    kept = found["adapter"].isin(["full", "lora"]) & (found["dataset"] == "micro_short")
    found = found[(kept & (found["masking"] != "special")) | (found["adapter"] == "none")]
    found = found[found["task_type"] != "heldout"]
    rng = np.random.default_rng(0)
    return found.assign(effort=rng.choice([1.0, 4.0], len(found)), minus=-1.0, note="x")


def external(seed=0):
    rng = np.random.default_rng(seed)
    rows = [(t, m, float(m == "b") + rng.normal()) for t in range(9) for m in "ab" for _ in "xy"]
    table = pd.DataFrame(rows, columns=["task", "method", "points"])
    table["task"] = "t" + table["task"].astype(str)
    return table.assign(
        other=table["points"] ** 2, effort=rng.choice([1.0, 4.0], len(table)), minus=-1.0, note="x"
    )


TABLES = {"study": results(), "external": external()}
PLAIN = {"study": "score ~ task + adapter + wp + (1 | run)", "external": "points ~ method"}
# Of a study's page: where the option must be seen, as (table, column).
ACTS = {
    ("formula", "study"): (PLAIN["study"], "coefficients", "estimate"),
    ("formula", "external"): (PLAIN["external"], "coefficients", "estimate"),
    ("weights", "study"): ("effort", "coefficients", "estimate"),
    ("weights", "external"): ("effort", "coefficients", "estimate"),
    ("df", "study"): ("normal", "plw_effect", "high"),
    ("df", "external"): ("normal", "pairs", "high"),
    ("margin", "study"): (30.0, "plw_effect", "verdict"),
    ("margin", "external"): (5.0, "equivalence", "verdict"),
    ("score", "external"): ("other", "coefficients", "estimate"),
    ("family", "study"): ("gaussian", "coefficients", None),
    ("family", "external"): ("gaussian", "coefficients", None),
}
REFUSED = {
    ("score", "study", "value"): "score=value: the score of a study is the primary metric",
    ("family", "study", "beta"): "family=beta: a study's scores are in points",
    ("family", "study", "betta"): "Did you mean 'beta'",
    ("family", "external", "beta"): "takes scores from 0 to 1",
    ("weights", "study", "nothing"): "weights=nothing: no such column",
    ("weights", "external", "nothing"): "weights=nothing: no such column",
    ("weights", "study", "minus"): "weights=minus: must be a positive number in every row",
    ("weights", "external", "minus"): "weights=minus: must be a positive number in every row",
    ("weights", "study", "note"): "weights=note: must be a positive number in every row",
    ("weights", "external", "note"): "weights=note: must be a positive number in every row",
    ("df", "study", "kenward"): "Did you mean 'kenward-roger'",
    ("df", "external", "kenward"): "Did you mean 'kenward-roger'",
    ("margin", "study", -1.0): "margin=-1: must be a positive number",
    ("margin", "external", -1.0): "margin=-1: must be a positive number",
    ("margin", "study", float("inf")): "margin=inf: must be a positive number",
    ("margin", "external", float("nan")): "margin=nan: must be a positive number",
    ("formula", "study", "value ~ adapter"): "score stands on the left side; for value give",
    ("formula", "study", "log(score) ~ adapter"): "so that score stands on the left side",
    ("formula", "study", ""): "must have one ~",
    ("formula", "external", ""): "must have one ~",
    ("formula", "study", "score ~ nothing"): "no column 'nothing'",
    ("formula", "external", "points ~ nothing"): "no column 'nothing'",
    ("frozen", "study", "nothing.json"): "frozen=nothing.json: no such file",
    ("frozen", "external", "results.csv"): "results.csv: a frozen plan names the runs",
}


def page(kind, out, **options):
    return build(TABLES[kind], out, **options).read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=list(TABLES))
def plain(request, tmp_path_factory):
    """A page of each kind without options."""
    out = tmp_path_factory.mktemp(request.param)
    score = {} if request.param == "study" else {"score": "points"}
    page(request.param, out, **score)
    return request.param, out, score


OPTIONS = ("formula", "weights", "df", "margin", "score", "family")


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_changes_the_page_that_it_is_given_for(plain, option, tmp_path):
    kind, before, score = plain
    if (option, kind) not in ACTS:
        pytest.skip("refused, see below")
    value, name, column = ACTS[option, kind]
    page(kind, tmp_path, **(score | {option: value}))
    old, new = (
        pd.read_csv(out / "tables" / f"{name}.csv") if (out / "tables" / f"{name}.csv").exists()
        else pd.DataFrame({column: []}) for out in (before, tmp_path)
    )  # fmt: skip
    if column is None:  # the family that the page has anyway
        pd.testing.assert_frame_equal(old, new)
    else:
        assert old[column].tolist() != new[column].tolist()


@pytest.mark.parametrize(("option", "kind", "value"), list(REFUSED))
def test_an_option_that_cannot_act_is_refused_in_one_line(
    option, kind, value, tmp_path, capsys, monkeypatch
):
    path = tmp_path / "results.csv"
    TABLES[kind].to_csv(path, index=False)
    monkeypatch.chdir(tmp_path)
    words = ["report", str(path), "--out", str(tmp_path / "out"), f"--{option}", str(value)]
    if kind == "external" and option not in ("formula", "score"):
        words += ["--score", "points"]
    assert main(words) == 2
    said = capsys.readouterr().err.strip()
    assert REFUSED[option, kind, value] in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out" / "index.html").exists()


def test_a_frozen_plan_gives_a_study_its_formula_and_its_section(tmp_path):
    plan = freeze(TABLES["study"], study="quick", margin=2.0)
    plan.write(tmp_path / "plan.json")
    text = page("study", tmp_path / "out", frozen=tmp_path / "plan.json")
    assert '<section id="frozen">' in text
    assert '<section id="frozen">' not in page("study", tmp_path / "none")


def test_an_option_for_results_without_a_model_is_refused(tmp_path):
    table = TABLES["study"].query("adapter == 'none'")
    assert build(table, tmp_path).exists()
    path = tmp_path / "bases.csv"
    table.to_csv(path, index=False)
    assert main(["report", str(path), "--margin", "2", "--out", str(tmp_path / "out")]) == 2


def test_out_is_where_both_kinds_of_page_go(plain):
    _, out, _ = plain
    assert (out / "index.html").exists()
    assert (out / "tables" / "headlines.csv").exists()


# -- the page against `analysis.inference` ------------------------------------------------------


@pytest.mark.parametrize("df", ["satterthwaite", "kenward-roger", "normal"])
def test_a_studys_tables_are_what_inference_says_under_every_rule(df, tmp_path):
    page("study", tmp_path, formula=PLAIN["study"], df=df, margin=3.0, weights="effort")
    frame = from_results(TABLES["study"])
    rows = study_rows(frame)
    fit = fit_mixed(rows, PLAIN["study"], weights="effort")
    told = pd.read_csv(tmp_path / "tables" / "coefficients.csv")
    ours = coefficients(fit, df=df)
    for name in ("estimate", "se", "low", "high", "p"):
        np.testing.assert_allclose(told[name], ours[name], rtol=1e-6, atol=1e-12)
    dose = pd.read_csv(tmp_path / "tables" / "plw_effect.csv").query("mode == 'none'")
    own = rows[(rows["task_group"] == "long target")]
    gain = response(fit, own, df=df).gain(1.0)
    row = dose[dose["task_group"] == "long generation (target)"].iloc[0]
    assert (row["effect"], row["low"]) == pytest.approx((gain.estimate, gain.low))
    if df == "normal":
        assert gain.high - gain.low == pytest.approx(2 * stats.norm.ppf(0.975) * gain.se)
    assert row["verdict"] == equivalence(gain, 3.0).verdict or row["p_holm"] >= 0.05


def test_the_normal_rule_reaches_differences_of_means_of_runs():
    raw = TABLES["study"]
    found = [
        arm_differences(fitted(raw, from_results(raw), request=Request(df=df)))
        for df in ("satterthwaite", "normal")
    ]
    widths = [(table["high"] - table["estimate"]).to_numpy() for table in found]
    np.testing.assert_allclose(found[0]["estimate"], found[1]["estimate"])
    se = widths[1] / stats.norm.ppf(0.975)
    z = found[1]["estimate"] / se
    np.testing.assert_allclose(found[1]["p"], 2 * stats.norm.sf(np.abs(z)))
    assert (widths[0] > widths[1]).all()


def test_a_tables_pairs_are_what_inference_says(tmp_path):
    formula = "points ~ method + (1 | task)"
    page("external", tmp_path, formula=formula, df="normal", margin=0.4)
    fit = fit_mixed(TABLES["external"], formula)
    effect = contrast(fit, -np.eye(2)[1], df="normal")
    row = pd.read_csv(tmp_path / "tables" / "pairs.csv").iloc[0]
    assert (row["estimate"], row["low"]) == pytest.approx((effect.estimate, effect.low))
    same = pd.read_csv(tmp_path / "tables" / "equivalence.csv").iloc[0]
    assert same["verdict"] == equivalence(effect, 0.4).verdict
    assert same["p_equivalence"] == pytest.approx(equivalence(effect, 0.4).p)
