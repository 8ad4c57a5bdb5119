"""The numbers that the page computes beside those of the analysis, and of scipy."""

import itertools
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.explorer.means import marginal_means, panel_names
from analysis.explorer.names import names_of
from analysis.explorer.payload import payload, table_payload
from analysis.inference.estimates import contrast
from analysis.inference.scale import scale_of
from analysis.regression.model import Request, analysed
from analysis.regression.study import fitted
from analysis.report.page import Page, render
from analysis.table.frame import from_results, read
from tests.explored import explored, explored_table, names_of_rows

AGREE = 1e-6
COLUMNS = ("estimate", "se", "df", "low", "high")
MEANS = """([panel, of, where]) => {
  const e = globalThis.ablateExplorer;
  const place = (c) => e.data.factors.findIndex((f) => f.column === c);
  const kept = new Map(Object.entries(where).map(([c, levels]) =>
    [place(c), new Set(levels.map((l) => e.data.factors[place(c)].levels.indexOf(l)))]));
  const own = of.map(place), groups = e.models[panel].means(own, kept);
  const plain = (g) => ["estimate", "se", "df", "low", "high"].map((n) => String(g[n]));
  return groups.map((g) => ({ levels: g.codes.map((c, k) => e.data.factors[own[k]].levels[c]),
    runs: g.runs.size, numbers: plain(g),
    less: plain(e.models[panel].difference(g, groups[0])) }));
}"""


@pytest.fixture(scope="module", params=["satterthwaite", "kenward-roger", "normal"])
def studied(request, tmp_path_factory):
    """An unbalanced study with aliases and a nested rank, its page, and its panels' names."""
    folder = explored(tmp_path_factory.mktemp("explored"), seeds=3, items=0, drop=0.15, small=True)
    raw = read(folder)
    study = fitted(raw, from_results(raw), request=Request(df=request.param))
    page = Page("t", "source", "0", (), explorer=payload(study))
    (folder / "index.html").write_text(render(page, {}), encoding="utf-8")
    names = names_of(study)
    return folder / "index.html", study, [panel_names(names, m) for m in study.panels]


def choices(panel):
    """Factors to choose and what to filter: every pair, with none, one and two filters."""
    columns = [c.column for c in panel.names.columns]
    of = [[], *([c] for c in columns), *map(list, itertools.combinations(columns, 2))]
    where = [
        {}, {"adapter": ["lora", "mora"], "plw": ["0", "1"]}, {"masking": ["none"], "seed": ["1"]},
    ]  # fmt: skip
    return list(itertools.product(of, where))


def same(found, wanted):
    found, wanted = float(found.replace("Infinity", "inf")), float(wanted)
    if math.isnan(wanted) or math.isinf(wanted):
        return math.isnan(found) == math.isnan(wanted) and (found == wanted or math.isnan(found))
    return abs(found - wanted) <= AGREE * max(1.0, abs(wanted))


def test_means_and_differences_are_those_of_the_analysis(studied, open_page):
    path, _, panels = studied
    page = open_page(path)
    compared = estimable = 0
    for at, panel in enumerate(panels[:2]):
        for of, where in choices(panel):
            table, l_GB = marginal_means(panel, of, where)
            found = page.evaluate(MEANS, [at, of, where])
            assert len(found) == len(table)
            wanted = {
                tuple(row[c] for c in of): i for i, row in enumerate(table.to_dict("records"))
            }
            first = l_GB[wanted[tuple(found[0]["levels"])]] if found else None
            for group in found:
                i = wanted[tuple(group["levels"])]
                assert group["runs"] == table["runs"][i]
                pairs = zip(group["numbers"], COLUMNS, strict=True)
                assert all(same(text, table[c][i]) for text, c in pairs), (of, where, group)
                less = contrast(panel.model.fit, l_GB[i] - first, df=panel.model.df)
                pairs = zip(group["less"], COLUMNS, strict=True)
                assert all(same(text, getattr(less, c)) for text, c in pairs), (of, where, group)
                compared += 1
                estimable += bool(np.isfinite(table["estimate"][i]))
    assert compared > 200
    assert estimable > 0.8 * compared


@pytest.mark.parametrize("family", ["gaussian", "binomial", "beta", "logit"])
def test_of_a_table_they_are_on_the_scale_of_the_score(family, tmp_path, open_page):
    """Means carried back from the link with the delta method's error, differences on the link."""
    score = "right" if family == "binomial" else "accuracy"
    table = explored_table().drop(columns="accuracy" if family == "binomial" else "right")
    group = "item" if family == "binomial" else "seed"
    terms = f"method + size + tokens + wp + I(wp^2) + (1 | {group})"
    left = f"logit({score})" if family == "logit" else score
    chosen = None if family == "logit" else family
    reg = analysed(table, Request(formula=f"{left} ~ {terms}", family=chosen))
    page = Page("t", "source", "0", (), explorer=table_payload(reg))
    (tmp_path / "index.html").write_text(render(page, {}), encoding="utf-8")
    panel, scale = names_of_rows(reg), scale_of(reg.fit)
    shown = open_page(tmp_path / "index.html")
    columns = [c.column for c in panel.names.columns]
    compared = 0
    for of in ([], *([c] for c in columns), ["method", "plw"], ["size", "plw"]):
        for where in ({}, {"size": ["1", "7"]}, {"plw": ["0.5"], "method": ["dpo", "sft"]}):
            means, l_GB = marginal_means(panel, of, where)
            found = shown.evaluate(MEANS, [0, of, where])
            rows = means.to_dict("records")
            wanted = {tuple(row[c] for c in of): i for i, row in enumerate(rows)}
            first = l_GB[wanted[tuple(found[0]["levels"])]]
            for group in found:
                i = wanted[tuple(group["levels"])]
                row = rows[i]
                back = {c: float(scale.inverse(row[c])) for c in ("estimate", "low", "high")}
                slope = abs(float(scale.slope(row["estimate"])))
                back |= {"se": row["se"] * slope, "df": row["df"]}
                pairs = zip(group["numbers"], COLUMNS, strict=True)
                assert all(same(text, back[c]) for text, c in pairs), (of, where, group, back)
                less = contrast(reg.fit, l_GB[i] - first, df=reg.df)
                pairs = zip(group["less"], COLUMNS, strict=True)
                assert all(same(text, getattr(less, c)) for text, c in pairs), (of, where, group)
                compared += 1
    assert compared > 40


def test_names_of_a_table_are_text_in_its_explorer(tmp_path, open_page):
    names = ["<script>alert(1)</script>", "</svg><b>bold</b>", '"onload="x']
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"<img src=x onerror=alert(2)>": rng.choice(names, 90)})
    table["y"] = rng.normal(size=90)
    reg = analysed(table, Request(score="y"))
    page = Page("t", "source", "0", (), explorer=table_payload(reg))
    (tmp_path / "index.html").write_text(render(page, {}), encoding="utf-8")
    shown = open_page(tmp_path / "index.html")
    shown.on("dialog", lambda box: pytest.fail(box.message))
    text = shown.inner_text("#explorer")
    assert all(name in text for name in (*names, "<img src=x onerror=alert(2)>"))
    assert shown.query_selector("#explorer img, #explorer b, #explorer script") is None


@pytest.mark.parametrize("name", ["constructor", "__proto__", "toString"])
@pytest.mark.parametrize(
    ("size", "text"), [(1e6, r"−?\d+"), (1e-12, r"−?\d\.\d{3}e-\d+"), (1.0, r"−?\d\.\d{3}")]
)
def test_columns_have_any_name_and_scores_any_size(name, size, text, tmp_path, open_page):
    """Names that objects of JavaScript have of their own; the first view has no groups in it."""
    rng = np.random.default_rng(0)
    rows = itertools.product("abc", "pq", range(6))
    table = pd.DataFrame(list(rows), columns=[name, "g", "item"])
    table["y"] = size * (rng.normal(size=36) + rng.normal(size=6)[table["item"]])
    reg = analysed(table, Request(formula=f"y ~ `{name}` + (1 | item)"))
    page = Page("t", "source", "0", (), explorer=table_payload(reg))
    (tmp_path / "index.html").write_text(render(page, {}), encoding="utf-8")
    shown = open_page(tmp_path / "index.html")
    state = "() => globalThis.ablateExplorer.state"
    assert shown.evaluate(state)["colour"] == "none"
    shown.evaluate("(n) => globalThis.ablateExplorer.choose({ where: { [n]: ['a', 'b'] } })", name)
    address = shown.evaluate("() => location.hash")
    again = open_page(tmp_path / "index.html", address)
    for own in (shown, again):
        where = "() => Object.entries(globalThis.ablateExplorer.state.where)"
        assert own.evaluate(where) == [[name, ["a", "b"]]]
        cells = own.evaluate(
            "() => { const n = globalThis.ablateExplorer.numbers;"
            " return n.rows.map((r) => n.columns.find((c) => c.title === 'mean').text(r)); }"
        )
        assert len(cells) == 2
        assert all(re.fullmatch(text, cell) for cell in cells), cells


def test_means_without_a_model_are_t_intervals_over_seeds(studied, open_page):
    path, study, _ = studied
    page = open_page(path, "#explore?x=adapter&scores=task%3Asums&colour=none")
    found = page.evaluate(
        "() => globalThis.ablateExplorer.view.panels[0].groups.map((g) => "
        "[globalThis.ablateExplorer.data.factors[globalThis.ablateExplorer.view.chosen.x].levels[g.x],"
        " g.estimate, g.low, g.high, g.df])"
    )
    rows = study.rows[(study.rows["task"] == "sums")]
    assert {level for level, *_ in found} == {"full", "lora", "mora"}
    for level, *numbers in found:
        own = (
            rows[rows["adapter"].astype(str) == level]
            .groupby("seed", observed=True)["score"]
            .mean()
        )
        low, high = stats.t.interval(0.95, len(own) - 1, own.mean(), stats.sem(own))
        assert np.allclose(numbers, [own.mean(), low, high, len(own) - 1], rtol=0, atol=AGREE)


def test_quantiles_of_t_are_those_of_scipy(studied, open_page):
    path, _, _ = studied
    page = open_page(path)
    dfs = [*np.geomspace(0.6, 1e9, 60).tolist(), 1.0, 2.0, 3.0, 30.0, 2.9999, 1e7, 1.0000001e7]
    found = page.evaluate("(dfs) => dfs.map((df) => globalThis.ablateExplorer.critical(df))", dfs)
    assert np.allclose(found, stats.t.ppf(0.975, dfs), rtol=1e-9, atol=0)


def test_the_numbers_of_a_view_are_its_table_as_csv(studied, open_page):
    path, _, _ = studied
    page = open_page(path, "#explore?x=plw&colour=adapter", accept_downloads=True)
    with page.expect_download() as waiting:
        page.click("button[aria-label='CSV: The numbers of this view']")
    table = pd.read_csv(waiting.value.path())
    shown = page.evaluate(
        "() => globalThis.ablateExplorer.numbers.rows.map((r) => r.group.estimate)"
    )
    assert np.allclose(table["mean"], np.array(json.loads(json.dumps(shown)), float))
    with page.expect_download() as waiting:
        page.click("button[aria-label='LaTeX: The numbers of this view']")
    tex = waiting.value.path().read_text(encoding="utf-8")
    assert tex.count(r"\\") == len(table) + 1
    assert tex.count("{") == tex.count("}")
