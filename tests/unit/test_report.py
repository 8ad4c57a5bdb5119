"""The report: its sections, its numbers in page, CSV and LaTeX, its words, its refusals."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from analysis.curve.best import IN_DOUBT
from analysis.errors import AnalysisError
from analysis.inference.optimum import INTERIOR
from analysis.papers.plw.claims import CLAIMS, CONTRADICTED, SUPPORTED, plw_claims
from analysis.papers.verdicts import UNTESTABLE
from analysis.questions.adapters.section import arm_differences
from analysis.questions.heldout import section as heldout
from analysis.questions.plw.estimate import dose
from analysis.questions.plw.headline_section import headlines as plw_headlines
from analysis.questions.plw.section import dose_points
from analysis.questions.settings import section as settings
from analysis.regression.study import fitted
from analysis.report import first_screen, overview, words
from analysis.report.build import build
from analysis.report.headline import CLEAR, UNCLEAR, WITHIN
from analysis.report.overview import counts
from analysis.report.page import Sheet
from analysis.report.tables import (
    MOST_ROWS,
    MOST_TEXT,
    Table,
    escape_tex,
    html_table,
    latex,
    shown,
)
from analysis.report.trust import trust, warnings
from analysis.table.frame import from_results
from analysis.table.level_means import level_means
from tests import stored
from tests.fake_results import Truth, fake_results

PLWS = (0.0, 0.1, 1.0)
FLAT = {key: (0.0, 0.0) for key in Truth().dose}


class Tables(HTMLParser):
    """Every table of a page as rows of cell texts, by the id of the block it stands in."""

    def __init__(self):
        super().__init__()
        self.found, self.name, self.cell = {}, None, None

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "details" and given["class"] == "table":
            self.name = given["id"].removeprefix("table-")
            self.found[self.name] = []
        elif tag == "tr" and self.name:
            self.found[self.name].append([])
        elif tag in ("td", "th") and self.name:
            self.cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self.name:
            self.found[self.name][-1].append(self.cell)
            self.cell = None
        elif tag == "details":
            self.name = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data


def tables_of(page):
    parser = Tables()
    parser.feed(page)
    return parser.found


def with_failure(results):
    lost = results[results["adapter"] == "mora"].iloc[[0]]
    blank = {"task": None, "task_type": None, "metric": None, "value": np.nan, "seed": 7}
    lost = lost.assign(status="failed", train_key="lost", alias=False, **blank)
    return pd.concat([results, lost], ignore_index=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of a study of the quick one's shape, with a failed cell and a stale table."""
    folder = tmp_path_factory.mktemp("study")
    with_failure(fake_results(plws=PLWS)).to_parquet(folder / "results.parquet")
    (folder / "failures").mkdir()
    error = {"error": "Traceback\n  ...\nFloatingPointError: the loss is NaN at step 3"}
    (folder / "failures" / "lost-0.json").write_text(json.dumps(error))
    (folder / "report" / "tables").mkdir(parents=True)
    (folder / "report" / "tables" / "stale.csv").write_text("old")
    assert build(folder, folder / "report") == folder / "report" / "index.html"
    return folder / "report"


@pytest.fixture(scope="module")
def page(report):
    return (report / "index.html").read_text(encoding="utf-8")


def test_the_methods_of_a_study_say_what_its_verdicts_rest_on(report):
    """The margin that no effect is claimed within, and how p is adjusted."""
    text = (report / "methods.tex").read_text(encoding="utf-8")
    told = pd.read_csv(report / "tables" / "headlines.csv")
    within = told["verdict"] == "no effect beyond the margin"
    assert within.any()
    assert told.loc[within, "estimate"].abs().max() < 2
    assert text.count("two one-sided tests") == 1
    assert re.search(r"beyond \S*pm\S* 2 points .* not adjusted for their number", text)
    assert "by Holm over the effects of a question and by Bonferroni over 2 questions" in text
    facts = pd.read_csv(report / "tables" / "methods.csv").set_index("what")["value"]
    assert facts["margin of equivalence"] == "± 2"


def test_a_study_has_its_sections_in_order(page):
    assert re.findall(r'<section id="([^"]+)"', page) == [
        "answer", "explore", "run", "plw", "shape", "by-rank", "adapters", "trade-off",
        "best", "controls", "heldout", "model", "coefficients", "diagnostics", "methods",
    ]  # fmt: skip
    linked = re.findall(r'<li><a href="#([^"]+)"', page)
    assert linked == re.findall(r'<section id="([^"]+)"', page)


class Open(HTMLParser):
    """The words of a page that can be read before anything of it is opened."""

    def __init__(self):
        super().__init__()
        self.stack, self.words = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "link", "path", "use"):
            self.stack.append((tag, tag == "details" and "open" not in dict(attrs)))

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tags = [tag for tag, _ in self.stack]
        closed = [i for i, (_, shut) in enumerate(self.stack) if shut]
        hidden = closed and "summary" not in tags[closed[0] + 1 : closed[0] + 2]
        if not hidden and not {"script", "style", "svg", "title"} & set(tags):
            self.words += data.split()


def open_words(page):
    reader = Open()
    reader.feed(page)
    return reader.words


def test_a_page_opens_with_at_most_four_thousand_words(page):
    everything = open_words(page.replace("<details ", "<details open "))
    assert 150 < len(open_words(page)) <= 4000 < len(everything)
    assert "Methods" in open_words(page)  # the title of a folded section is open


def test_hidden_words_are_those_of_closed_details_alone():
    text = "<p>a b</p><details><summary>c</summary>d<details open><summary>e</summary></details>"
    assert open_words(f"{text}</details><details open><p>f</p></details>") == ["a", "b", "c", "f"]


def test_headlines_are_the_numbers_of_their_sections(report):
    tables = report / "tables"
    head, dose, arms = (
        pd.read_csv(tables / f"{name}.csv")
        for name in ("headlines", "plw_effect", "arm_differences")
    )
    assert len(head) == len(dose) + len(arms)
    np.testing.assert_allclose(head["estimate"], [*dose["effect"], *arms["estimate"]])
    np.testing.assert_allclose(head["high"], [*dose["high"], *arms["high"]])
    np.testing.assert_allclose(head["p"], [*dose["p_holm"], *arms["p_holm"]])
    clear = head["verdict"] == "distinguishable"
    assert (clear == (head["p"] < 0.05)).all()
    assert head["agrees"].dropna().astype(bool).mean() > 0.7
    # A mode of one weight has 10 cells a panel: too few for errors clustered by cell.
    single = head["label"].str.contains("boilerplate|special")
    assert (head["second"].isna() == single).all()


def test_the_page_fetches_nothing(page):
    targets = re.findall(r'(?:src|href|action|poster|data)="([^"]*)"', page)
    assert targets
    for target in targets:
        own = target.startswith("#") or target == "methods.tex"
        assert own or re.fullmatch(r"(tables|figures)/\w+\.\w+", target), target
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)|<link|<iframe|<script[^>]+src", page)
    assert not re.search(r"\b(fetch|XMLHttpRequest|import)\s*\(", page)


def test_every_link_of_the_page_has_its_file(report, page):
    linked = set(re.findall(r'href="((?:tables|figures)/[^"]+)"', page))
    files = {str(p.relative_to(report)) for p in report.rglob("*") if p.is_file()}
    files -= {"index.html", "methods.tex"}
    assert linked == files
    assert not any("stale" in name for name in files)
    stems = {p.stem for p in (report / "figures").iterdir()}
    own = stems - {f"{stem}_narrow" for stem in stems}
    assert own == set(re.findall(r'<figure id="figure-([^"]+)"', page))
    assert all(
        (report / "figures" / f"{stem}.png").read_bytes()[:4] == b"\x89PNG" for stem in stems
    )


def agree(text, value):
    """Whether the text shown is the value rounded to the digits shown."""
    if text in ("–", ""):
        return pd.isna(value)
    if text in ("yes", "no"):
        return (text == "yes") == bool(value)
    if text.startswith("<"):
        return value < float(text[1:])
    number = text.replace("−", "-").replace(",", "")
    share = number.endswith("%")
    try:
        told, value = float(number.rstrip("%")) / (100 if share else 1), float(value)
    except ValueError:
        return str(value) == text
    mantissa, _, power = number.rstrip("%").partition("e")
    digits = len(mantissa.partition(".")[2]) + (2 if share else 0) - int(power or 0)
    whole = "." not in mantissa and not share and len(mantissa.strip("-")) > 3
    slack = 0.5 if whole else 0.5 * 10.0**-digits
    return abs(told - float(value)) <= slack * (1 + 1e-9) + 1e-12


def test_every_table_shows_the_numbers_of_its_csv(report, page):
    shown_tables = tables_of(page)
    assert len(shown_tables) >= 15
    compared = 0
    for name, (head, *rows) in shown_tables.items():
        frame = pd.read_csv(report / "tables" / f"{name}.csv", keep_default_na=True)
        assert len(rows) == len(frame), name
        assert len(head) == frame.shape[1], name
        for texts, values in zip(rows, frame.itertuples(index=False), strict=True):
            for text, value in zip(texts, values, strict=True):
                assert agree(text, value), (name, text, value)
                compared += 1
    assert compared > 2000


def test_the_check_of_shown_numbers_can_fail():
    assert agree("1.23", 1.2349)
    assert not agree("1.23", 1.2351)
    assert not agree("<0.001", 0.002)
    assert not agree("–", 1.0)


def test_latex_has_the_rows_of_the_page_and_balanced_braces(report, page):
    for name, (head, *rows) in tables_of(page).items():
        text = (report / "tables" / f"{name}.tex").read_text(encoding="utf-8")
        body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(lines) == len(rows), name
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(head) - 1}
        plain = re.sub(r"\\[{}]", "", text)
        assert plain.count("{") == plain.count("}")
        label = rf"\label{{tab:{name.replace('_', '-')}}}"
        assert label in text
        assert not re.search(r"(?<!\\)[_%#]", text.replace(label, "").replace("$_2$", "")), name


def test_two_seeds_are_called_screening(page):
    assert "Screening." in page
    assert "Two seeds" in page


def test_what_was_run_counts_runs_aliases_and_failures(report, page):
    results = with_failure(fake_results(plws=PLWS))
    found = counts(results)
    trained = results[(results["adapter"] != "none") & (results["status"] == "done")]
    names = trained.drop_duplicates(
        ["masking", "plw", "adapter", "rank", "dataset", "seed", "sham", "shuffle_prompts"]
    )
    assert found["runs"] == trained["train_key"].nunique()
    assert found["aliases"] == len(names) - found["runs"]
    assert found["not finished"] == 1
    assert f"{found['aliases']} aliases" in page
    lost = pd.read_csv(report / "tables" / "failures.csv")
    assert lost["error"].tolist() == ["FloatingPointError: the loss is NaN at step 3"]
    same = pd.read_csv(report / "tables" / "aliases.csv")
    full = same[(same["adapter"] == "full") & (same["rank"] == 8)]
    assert full["same run as"].str.contains("rank=4").all()


def test_a_score_that_failed_is_named(tmp_path):
    results = fake_results(plws=PLWS)
    key = results.loc[results["adapter"] != "none", "train_key"].iloc[0]
    lost = [{"asked": "quiz", "score_key": "s", "error": "ValueError: no"}]
    stored.put(tmp_path, key, unscored=lost)
    blocks = overview.section(results, tmp_path).blocks
    (table,) = [b.table for b in blocks if isinstance(b, Sheet) and b.table.name == "unscored"]
    assert table.frame[["task", "error"]].to_numpy().tolist() == [["quiz", "ValueError: no"]]
    assert not any(
        isinstance(b, Sheet) and b.table.name == "unscored"
        for b in overview.section(results, None).blocks
    )


def test_a_benchmark_of_which_a_part_was_scored_is_named(tmp_path):
    results = fake_results(plws=PLWS)
    task = results.loc[results["task_type"] == "mc", "task"].iloc[0]
    results["task"] = results["task"].replace({task: "hellaswag"})
    results["n"] = 500
    key = results.loc[results["task"] == "hellaswag", "train_key"].iloc[0]
    scores = [{"task": "hellaswag", "n": 500, "of": 10_042, "score_key": "s"}]
    stored.put(tmp_path, key, scores=scores)
    said = overview.section(results, tmp_path).blocks[0].text
    assert said.endswith(" hellaswag was scored on the first 500 of 10,042 items.")
    assert "hellaswag" not in overview.section(results, None).blocks[0].text


def test_no_text_of_the_table_reaches_the_page_as_markup(tmp_path):
    frame = pd.DataFrame({"x": ["<b>&</b>", "a_b%"], "n": [1.0, -0.0001]})
    text = html_table(Table("t", "T", frame, formats={"n": ".2f"}))
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;" in text
    assert re.findall(r'<td class="num">([^<]*)', text) == ["1.00", "0.00"]
    assert r"a\_b\%" in latex(Table("t", "T", frame))


def test_the_page_shows_the_beginning_of_what_is_very_long_and_says_so():
    """The files hold all of it; what is just short enough is shown whole."""
    frame = pd.DataFrame({"n": range(MOST_ROWS + 1), "text": "x" * MOST_TEXT})
    frame.loc[2, "text"] = "y" * (MOST_TEXT + 1)
    text = html_table(Table("t", "T", frame))
    assert text.count("<tr>") == 1 + MOST_ROWS + 1  # heads, rows, and what is said
    assert "x" * MOST_TEXT in text
    assert "y" * MOST_TEXT + "…" in text
    assert f"The first {MOST_ROWS:,} of {MOST_ROWS + 1:,} rows. Texts of more than" in text
    assert f'<td class="num">{MOST_ROWS}<' not in text
    assert "y" * (MOST_TEXT + 1) in latex(Table("t", "T", frame))
    for short in (frame[frame["n"] != 2], pd.DataFrame({"n": range(3), "text": "x" * MOST_TEXT})):
        assert "<tfoot>" not in html_table(Table("t", "T", short))


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [
        (None, "", "–"), (float("nan"), ".2f", "–"), (-1.5, ".1f", "−1.5"), (4e-5, "p", "<0.001"),
        (0.25, ".0%", "25%"), (True, "", "yes"), (12345.6, "", "12,346"), (3, "", "3"),
        (float("-inf"), "", "−∞"), ("a", "", "a"), (-0.001, ".2f", "0.00"),
    ],
)  # fmt: skip
def test_a_value_is_shown_as_papers_show_it(value, spec, text):
    assert shown(value, spec) == text


def test_latex_escapes_what_it_would_act_on():
    assert escape_tex(r"50% of a_b & {c} \ ~^ #$") == (
        r"50\% of a\_b \& \{c\} \textbackslash{} \textasciitilde{}\textasciicircum{} \#\$"
    )


# -- adjusted means ---------------------------------------------------------------------------


def balanced(effect=2.0, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        {"masking": m, "seed": s, "score": 10.0 * s + effect * (m == "b") + rng.normal(0, 1)}
        for m in "ab"
        for s in range(6)
    ]
    return pd.DataFrame(rows)


def test_adjusted_means_of_a_balanced_table_are_its_means_and_the_paired_t():
    rows = balanced()
    found = level_means(rows, ["masking"])
    means = rows.groupby("masking")["score"].mean()
    np.testing.assert_allclose(found.table["estimate"], means)
    wide = rows.pivot(index="seed", columns="masking", values="score")
    gap = wide["b"] - wide["a"]
    b = found.table["masking"] == "b"
    effect = found.compare(b, ~b)
    assert effect.estimate == pytest.approx(gap.mean())
    assert effect.se == pytest.approx(gap.std(ddof=1) / np.sqrt(6))  # the paired t-test
    assert effect.df == pytest.approx(5)


def test_a_block_that_one_level_lacks_does_not_bias_the_comparison():
    rows = balanced(effect=0.0)
    rows = rows[~((rows["masking"] == "b") & (rows["seed"] == 0))]
    found = level_means(rows, ["masking"])
    b = found.table["masking"] == "b"
    assert abs(found.compare(b, ~b).estimate) < 2  # the raw means differ by 5
    plain = rows.groupby("masking")["score"].mean()
    assert abs(plain["b"] - plain["a"]) > 4


def test_one_run_a_level_has_means_but_no_interval():
    found = level_means(pd.DataFrame({"masking": ["a", "b"], "score": [1.0, 2.0]}), ["masking"])
    assert found.table["estimate"].tolist() == [1.0, 2.0]
    assert found.table["low"].isna().all()
    assert found.compare(found.table["masking"] == "a", found.table["masking"] == "b") is None


def test_levels_that_share_no_block_are_compared_without_it():
    rows = balanced().assign(model=lambda d: d["masking"])
    found = level_means(rows, ["masking"], block=["model"])
    assert found.table["low"].notna().all()
    np.testing.assert_allclose(found.table["estimate"], rows.groupby("masking")["score"].mean())


# -- words ------------------------------------------------------------------------------------


def dose_headlines(study):
    """The effect of PLW 1 without a mask in every panel, by task group and data set."""
    own = [h for h in plw_headlines(study) if h.label.startswith("none, ") or ", " not in h.label]
    return {(h.label.removeprefix("none, "), h.group.partition(", ")[2]): h for h in own}


def optima(study):
    """What is said of the optimum in every panel without a mask."""
    table = dose(study)
    own = table[table["curved"] & (table["mode"] == "none")]
    return own.set_index(["task_group", "dataset"])[["optimum", "because"]]


def test_headlines_say_what_is_true_and_no_more():
    study = fitted(pd.DataFrame(), from_results(fake_results(seeds=4, plws=PLWS)))
    found = dose_headlines(study)
    assert found["long generation (target)", "micro_short"].verdict == CLEAR
    for group in ("multiple choice (source)", "short generation (target)"):
        assert found[group, "micro"].verdict in (WITHIN, UNCLEAR)
    assert optima(study).loc[("mc source", "micro_short"), "optimum"] == INTERIOR
    assert "rises throughout" in optima(study).loc[("long target", "micro_short"), "because"]
    (sham,) = [item for item in trust(study) if item.tag == "A/A"]
    assert "no difference, as it should be" in sham.text
    assert warnings(study) == ()  # four seeds


def test_no_effect_is_never_found_where_there_is_none():
    truth = Truth(dose=FLAT, adapter=dict.fromkeys(Truth().adapter, 0.0), per_log2_rank={})
    frame = from_results(fake_results(3, seeds=3, plws=PLWS, truth=truth, controls=False))
    study = fitted(pd.DataFrame(), frame)
    found = dose_headlines(study)
    assert len(found) == 8
    assert {h.verdict for h in found.values()} <= {WITHIN, UNCLEAR}
    table = arm_differences(study)
    assert set(table["verdict"]) <= {UNCLEAR, WITHIN}
    assert (table["mde"] > 0).all()


def test_every_null_has_the_minimum_detectable_effect_beside_it():
    truth = Truth(dose=FLAT, residual_sd=4.0, run_sd=3.0)
    frame = from_results(fake_results(1, seeds=2, plws=PLWS, truth=truth))
    study = fitted(pd.DataFrame(), frame)
    nulls = [h for h in plw_headlines(study) if h.verdict == UNCLEAR]
    assert nulls
    assert all(h.mde > 0 for h in nulls)
    ends = re.search(r"effect is (\S+) to (\S+) points", first_screen.answer(nulls)[-1])
    low, high = min(h.mde for h in nulls), max(h.mde for h in nulls)
    assert [float(ends[1]), float(ends[2])] == pytest.approx([low, high], rel=0.01)


def test_terms_and_counts_are_told_in_words():
    name = "wp:mode[none]:task_group[mc source]:dataset_type[short]"
    assert words.term_text(name) == "wp · none · multiple choice (source) · short completions"
    assert words.count(1, "alias") == "1 alias"
    assert words.count(3, "alias") == "3 aliases"
    assert words.signed(-0.04) == "0.0"
    assert words.interval(-1.25, float("inf")) == "no interval"


def test_held_out_loss_is_compared_with_weight_zero():
    results = fake_results(seeds=4, plws=PLWS, controls=False)
    learnt = (results["metric"] == "loss_completion") & (results["wp"] == 1)
    results.loc[learnt, "value"] += 0.5
    table = heldout.differences(from_results(results))
    one = table[table["plw"] == 1]
    assert (one["verdict"] == "distinguishable").all()
    assert one["estimate"].between(0.4, 0.6).all()
    assert (table.loc[table["plw"] < 1, "verdict"] == "not distinguishable").all()


def test_held_out_loss_of_arms_is_compared_and_of_one_seed_not_judged():
    results = fake_results(seeds=4, plws=PLWS, controls=False)
    learnt = (results["metric"] == "loss_completion") & (results["adapter"] == "mora")
    results.loc[learnt, "value"] += 0.5
    table = heldout.arm_differences(from_results(results))
    assert (table["against"] == "full").all()
    mora = table["arm"].str.startswith("mora")
    assert (table.loc[mora, "verdict"] == "distinguishable").all()
    assert table.loc[mora, "estimate"].between(0.4, 0.6).all()
    assert (table.loc[~mora, "verdict"] == "not distinguishable").all()
    frame = from_results(results[results["seed"] == 0])
    for single in (heldout.arm_differences(frame), heldout.differences(frame)):
        assert len(single)
        assert (single["verdict"] == "not distinguishable").all()
    scoreless = from_results(results[results["task_type"] == "heldout"])
    shown = heldout.headlines(scoreless)
    assert {h.question for h in shown} == {"heldout", "adapters"}
    alone = heldout.arm_differences(scoreless)["p_holm"].tolist()  # two questions share the 5 %
    both = [h.p for h in shown if h.question == "adapters"]
    assert both == pytest.approx([min(1.0, 2 * p) for p in alone])


def test_other_settings_are_compared_with_the_usual_one_and_kept_out_of_the_figures():
    results = fake_results(seeds=3, plws=PLWS, controls=False)
    some = (results["adapter"] == "full") & (results["masking"] == "none") & (results["plw"] == 1)
    other = results[some & ~results["alias"]].copy()
    other["value"] *= 0.5
    other = other.assign(normaliser="completion", train_key=other["train_key"] + "-c")
    frame = from_results(pd.concat([results, other], ignore_index=True))
    study = fitted(pd.DataFrame(), frame)
    assert study.usual == {"normaliser": "weight"}
    table = settings.differences(study)
    assert (table["level"] == "completion").all()
    assert (table["estimate"] < -10).all()
    alone = fitted(pd.DataFrame(), from_results(results))
    pd.testing.assert_frame_equal(dose_points(study), dose_points(alone), check_categorical=False)


# -- the PLW paper ----------------------------------------------------------------------------


def plw_study(truth=None, **options):
    results = fake_results(
        2, seeds=4, plws=(0.0, 5e-4, 0.01, 0.1, 0.5, 1.0), truth=truth, controls=False, **options
    )
    kept = results["adapter"].isin(["full", "none"]) & (results["masking"] == "none")
    results = results[kept]
    # The fake's aliases of `instruction` at PLW 0 stand alone here.
    return results.drop(columns="alias").reset_index(drop=True)


def claims_of(results):
    return plw_claims(fitted(results, from_results(results)))


def verdicts(table, claim):
    return set(table.loc[table["claim"] == CLAIMS[claim], "verdict"])


def test_the_papers_claims_are_judged_by_the_data():
    table = claims_of(plw_study())
    assert list(dict.fromkeys(table["claim"])) == list(CLAIMS.values())
    assert verdicts(table, "long_rises") == {SUPPORTED}
    assert verdicts(table, "largest_long") == {SUPPORTED}
    assert verdicts(table, "rsd_small") == {SUPPORTED}
    assert verdicts(table, "bleu_falls") == {SUPPORTED}
    assert verdicts(table, "longer") == {SUPPORTED}
    assert CONTRADICTED not in verdicts(table, "quadratic")


def test_a_verdict_on_a_sign_is_what_the_interval_says():
    quiet = claims_of(plw_study(Truth(dose=FLAT, run_sd=3.0, residual_sd=3.0)))
    table = pd.concat([quiet, claims_of(plw_study())])
    margins = [CLAIMS[name] for name in ("no_relation", "bleu_flat", "quadratic", "long_rises")]
    falling = [CLAIMS[name] for name in ("rsd_one", "distance", "bleu_falls")]
    signs = table[~table["claim"].isin(margins)]
    seen = set()
    for row in signs.itertuples():
        low, high = (-row.high, -row.low) if row.claim in falling else (row.low, row.high)
        expected = SUPPORTED if low > 0 else CONTRADICTED if high < 0 else "not distinguishable"
        assert row.verdict == expected, row
        seen.add(row.verdict)
    assert {SUPPORTED, "not distinguishable"} <= seen


def test_a_claim_that_is_false_is_contradicted():
    dose = dict(Truth().dose) | {("long", "short"): (-12.0, 0.0), ("mc", "long"): (12.0, 0.0)}
    results = plw_study(Truth(dose=dose))
    length = results["metric"] == "generation_length"
    results.loc[length, "value"] = 60 - results.loc[length, "value"]
    table = claims_of(results)
    assert verdicts(table, "long_rises") == {CONTRADICTED}
    assert CONTRADICTED in verdicts(table, "no_relation")
    assert verdicts(table, "longer") == {CONTRADICTED}
    # Long generation now falls by 12 points: the largest effect all the same.
    assert verdicts(table, "largest_long") == {SUPPORTED}


def test_a_claim_without_its_measure_is_not_testable():
    results = plw_study()
    results = results[(results["dataset_type"] != "short") & (results["task_type"] != "measure")]
    results = results.drop(columns="train_loss_rsd")
    table = claims_of(results)
    for claim in ("quadratic", "long_rises", "rsd_small", "distance", "bleu_flat", "longer"):
        assert verdicts(table, claim) == {UNTESTABLE}, claim
    assert UNTESTABLE not in verdicts(table, "no_relation")


# -- other tables -----------------------------------------------------------------------------


def strangers(optimum=0.5):
    rng = np.random.default_rng(5)
    rows = []
    for lab in "ABC":
        for plw in PLWS:
            for seed in range(4):
                wp = plw**0.30103
                score = 0.7 - 0.3 * (wp - optimum) ** 2 + 0.05 * (lab == "B")
                rows.append((lab, plw, seed, score + rng.normal(0, 0.01)))
    return pd.DataFrame(rows, columns=["lab", "plw", "seed", "accuracy"])


def test_a_strangers_table_gives_a_report(tmp_path):
    path = tmp_path / "mine.csv"
    strangers().to_csv(path, index=False)
    index = build(path, tmp_path / "out", score="accuracy", family="gaussian")
    page = index.read_text(encoding="utf-8")
    sections = re.findall(r'<section id="([^"]+)"', page)
    assert sections == ["answer", "explore", "table", "plw", "means", "slopes", "model",
                        "coefficients", "variances", "influence", "diagnostics",
                        "methods"]  # fmt: skip
    best = pd.read_csv(tmp_path / "out" / "tables" / "optimum.csv").iloc[0]
    assert best["low"] < 0.1 < best["high"]  # PLW 0.1 is w_p 0.5
    labs = pd.read_csv(tmp_path / "out" / "tables" / "level_means.csv").set_index("level")
    assert labs.loc["B", "estimate"] - labs.loc["A", "estimate"] == pytest.approx(0.05, abs=0.02)
    assert "B − A (lab)" in page or "A − B (lab)" in page


def test_a_table_without_a_weight_has_no_section_on_it(tmp_path):
    table = strangers()[["lab", "accuracy"]]
    formula = "score ~ lab"
    page = build(table, tmp_path, score="accuracy", formula=formula).read_text(encoding="utf-8")
    assert 'id="plw"' not in page
    assert formula in page


def test_results_without_benchmarks_give_the_losses_and_say_why(tmp_path):
    results = fake_results(plws=PLWS, controls=False)
    results = results[results["task_type"] == "heldout"]
    page = build(results, tmp_path).read_text(encoding="utf-8")
    assert re.findall(r'<section id="([^"]+)"', page) == ["answer", "run", "heldout"]
    assert "no trained run has a benchmark score" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"score": "acuracy"}, "Did you mean 'accuracy'"),
        ({"score": "lab"}, "is not a number"),
        ({"score": "accuracy", "formula": "score ~ labb"}, "Did you mean 'lab'"),
        ({"score": "accuracy", "formula": "score ~ lab + (1 | lab"}, "formula"),
        ({"score": "accuracy", "family": "gausian"}, "family=gausian"),
        ({"score": "score"}, "score=score"),
    ],
)
def test_a_bad_request_is_one_clear_line(tmp_path, arguments, said):
    with pytest.raises(AnalysisError) as caught:
        build(strangers(), tmp_path / "out", **arguments)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize("name", ["none.csv", "empty.csv", "table.xlsx"])
def test_a_bad_file_is_one_clear_line(tmp_path, name):
    path = tmp_path / name
    if name != "none.csv":
        path.write_text("")
    with pytest.raises(AnalysisError, match=re.escape(name)) as caught:
        build(path, tmp_path / "out", score="x")
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AnalysisError, match="cannot be written"):
        build(strangers(), tmp_path / "file" / "out", score="accuracy", formula="score ~ lab")


def test_a_formula_of_ones_own_is_used_and_its_faults_are_told(tmp_path):
    results = fake_results(plws=PLWS, controls=False)
    with pytest.raises(AnalysisError, match="no column"):
        build(results, tmp_path, formula="score ~ nothing")


def test_a_plateau_is_no_optimum():
    """A quadratic through a step has its vertex inside; the finding says that it does not fit."""
    raw = fake_results(seeds=4, plws=(0.0, 0.01, 0.1, 0.5, 1.0), truth=Truth(dose=FLAT))
    weighted = (raw["masking"] == "none") & (raw["plw"] > 0) & (raw["task_type"] == "long")
    raw["value"] += np.where(weighted & (raw["dataset"] == "micro_short"), 0.25, 0.0)
    study = fitted(raw, from_results(raw))
    found = optima(study).loc[("long target", "micro_short")]
    assert found["optimum"] == IN_DOUBT
    assert "the quadratic does not fit" in found["because"]


@pytest.mark.parametrize("column", ["adapter", "plw"])
def test_results_without_a_level_have_a_page(column, tmp_path):
    """Results of elsewhere may name one arm or the weight in its own scale alone."""
    raw = fake_results(plws=(0.0, 1.0), controls=False)
    raw = raw[(raw["adapter"] == "full") & (raw["dataset"] == "micro")].drop(columns=column)
    assert "distinguishable" in build(raw, tmp_path).read_text()
