"""The explorer where a model's form fails; addresses that ask in vain; marks and tables."""

import itertools

import pandas as pd
import pytest

from analysis.explorer.payload import payload
from analysis.regression.study import fitted
from analysis.report.page import Page, render
from analysis.table.frame import from_results, read
from tests import explored as made

RATES = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
# By rate: a score near 100 at the middle rates, so that a line through all passes it at an end.
POINTS = (97.0, 96.0, 95.0, 60.0, 20.0)
VIEW = """() => globalThis.ablateExplorer.view.panels.map((p) => ({ title: p.title, why: p.why,
  cautions: p.cautions, range: p.range, groups: p.groups.map((g) => ({ x: g.x, colour: g.colour,
  estimate: g.estimate, raw: g.raw?.estimate ?? null })) }))"""


@pytest.fixture(scope="module")
def bent(tmp_path_factory):
    """A page whose scores bend over the rate, where every seed ran one batch size; its table."""
    folder = made.explored(tmp_path_factory.mktemp("bent"), seeds=4, items=0, small=True)
    table = pd.read_parquet(folder / "results.parquet")
    table = table[~table["alias"]]
    parts = []
    for rate, points in zip(RATES, POINTS, strict=True):
        own = table.assign(lr=rate, train_key=table["train_key"] + f"-{rate}")
        own["score_key"] += f"-{rate}"
        own["value"] = (points + 5 * (table["value"] - table["value"].mean())).clip(0, 100) / 100
        parts.append(own)
    table = pd.concat(parts, ignore_index=True)
    table["train.batch_size"] = [8 if seed < 2 else 32 for seed in table["seed"]]
    table.to_parquet(folder / "results.parquet")
    raw = read(folder)
    study = fitted(raw, from_results(raw))
    warnings = tuple(("Warning.", text) for text in (*study.left_out, *study.in_doubt))
    page = Page("t", "source", "0", (), warnings=warnings, explorer=payload(study, None, warnings))
    (folder / "index.html").write_text(render(page, {}), encoding="utf-8")
    return folder / "index.html", study


def test_a_line_through_scores_that_bend_is_said_and_the_runs_stand_beside_it(bent, open_page):
    path, study = bent
    page = open_page(path, "#explore?x=rate&colour=none")
    panels = page.evaluate(VIEW)
    assert panels
    beyond = 0
    means = study.rows.assign(rate=study.rows["lr"].map("{:g}".format))
    for panel, figure in zip(panels, page.locator("figure.panel").all(), strict=True):
        text = figure.locator("figcaption").text_content()
        assert panel["why"] == ""
        assert "straight line over log10 of the learning rate, and the score bends" in text
        assert figure.locator("g[data-mark=of-runs] > *").count() == len(RATES)
        own = means[means["task_group"].astype(str) == _group(page, panel["title"])]
        wanted = own.groupby("lr")["score"].mean()  # balanced: over runs as over seeds
        found = [g["raw"] for g in panel["groups"]]
        assert found == pytest.approx(wanted.tolist(), abs=1e-6)
        over = [g for g in panel["groups"] if not 0 <= g["estimate"] <= 100]
        beyond += len(over)
        assert ("beyond 0 to 100 points" in text) == bool(over)
    assert beyond > 0
    page.select_option("#explore-x", "adapter")
    page.select_option("#explore-colour", "plw")
    assert "straight line over log10" not in page.locator("figure.panel").first.text_content()
    page.select_option("#explore-x", "rank")
    assert "over log2 of the rank" in page.locator("figure.panel").first.text_content()


def _group(page, title):
    return page.evaluate(
        "(t) => globalThis.ablateExplorer.data.tasks.find((k) => k.title === t).group", title
    )


def test_differences_have_their_runs_beside_them_and_a_line_at_zero(bent, open_page):
    path, study = bent
    page = open_page(path, "#explore?x=rate&colour=none&ref=x:0.001")
    panel = page.evaluate(VIEW)[0]
    own = study.rows[study.rows["task_group"].astype(str) == _group(page, panel["title"])]
    mean = own.groupby("lr")["score"].mean()
    assert [g["raw"] for g in panel["groups"]] == pytest.approx((mean - mean.iloc[0]).tolist()[1:])
    assert page.locator("figure.panel").first.locator("g[data-mark=zero] line").count() == 1


def test_the_pages_warnings_stand_where_their_factor_is_shown(bent, open_page):
    page = open_page(bent[0], "#explore?x=train.batch_size&colour=none")
    first = page.locator("figure.panel").first
    assert "cannot be told apart from the seed's" in first.text_content()
    page.select_option("#explore-x", "adapter")
    assert "cannot be told apart" not in first.text_content()
    page.select_option("#explore-colour", "train.batch_size")
    assert "cannot be told apart from the seed's" in first.text_content()


@pytest.mark.parametrize("asked", [
    "f.adapter=nope", "colour=nope", "scores=task:nope", "cell=nope", "ref=x:nope", "show=pie",
    "f.__proto__=1", "f.nope=1", "nope=1", "x=__proto__",
])  # fmt: skip
def test_what_an_address_asks_for_in_vain_is_said_and_taken_out(asked, bent, open_page):
    page = open_page(bent[0], f"#explore?x=adapter&f.adapter=lora&{asked}")
    said = page.locator("#explorer .warning")
    assert f"asks for {asked}, which" in said.text_content()
    assert said.is_visible()
    assert "nope" not in page.url
    assert "f.adapter=lora" in page.url
    page.select_option("#explore-show", "heat")
    assert not said.is_visible()
    page.evaluate("(asked) => { location.hash = `#explore?${asked}`; }", asked)
    page.wait_for_selector("#explorer .warning", state="visible")


@pytest.mark.parametrize("fragment", ["#%E0%A4%A", "#explore?%E0%A4%A=%"])
def test_a_fragment_that_is_no_text_is_no_error(fragment, bent, open_page):
    open_page(bent[0], fragment)  # the fixture looks at the console


def test_marks_of_colours_stand_apart_and_one_alone_at_its_level(bent, open_page):
    page = open_page(
        bent[0], "#explore?x=masking&colour=plw", viewport={"width": 1280, "height": 900}
    )
    places, ticks = page.evaluate("""() => ["g[data-mark=dot] > *",
      "g[data-mark='y-axis tick label'] > text"].map((which) => [...document.querySelector(
      "figure.panel").querySelectorAll(which)].map((m) => { const b = m.getBoundingClientRect();
        return (b.top + b.bottom) / 2; }))""")  # at one moment: the page may be scrolling
    groups = page.evaluate(VIEW)[0]["groups"]
    levels = {}
    for group in sorted(groups, key=lambda g: (g["colour"], g["x"])):
        levels.setdefault(group["x"], []).append(places.pop(0))
    assert {len(own) for own in levels.values()} >= {1, 2}
    for place, level in zip(ticks, sorted(levels), strict=True):
        own = sorted(levels[level])
        assert sum(own) / len(own) == pytest.approx(place, abs=2.5)
        assert all(b - a > 12 for a, b in itertools.pairwise(own))


def test_heads_stand_over_their_columns_and_nothing_scrolls_that_fits(bent, open_page):
    page = open_page(bent[0], viewport={"width": 700, "height": 900})
    frame = page.locator("div.virtual-frame:has(table[aria-label^=Cells])")
    lefts = """(frame, by) => { frame.scrollLeft = by; const at = (row) => [...row.cells].map((c) =>
      Math.round(c.getBoundingClientRect().left)); const [head, first] = [frame.querySelector(
      "thead tr"), frame.querySelector("tbody tr.opens")]; return [at(head), at(first)]; }"""
    for by in (0, 60):
        head, first = frame.evaluate(lefts, by)
        assert head == first
    cut = """(frame) => [...frame.querySelectorAll("th button")].filter((b) =>
      b.getBoundingClientRect().right > b.parentNode.getBoundingClientRect().right - 5).length"""
    assert frame.evaluate(cut) == 0


def test_the_two_columns_of_contents_start_at_one_height(bent, open_page):
    path = bent[0].with_name("contents.html")
    text = bent[0].read_text(encoding="utf-8")
    entry = '<li><a href="#explore">Explore</a></li>'
    path.write_text(text.replace(entry, entry * 5), encoding="utf-8")
    page = open_page(path, viewport={"width": 390, "height": 800})
    tops = """() => { const by = {}; for (const li of document.querySelectorAll("nav li")) {
      const b = li.getBoundingClientRect(); by[b.left] ??= b.top; } return Object.values(by); }"""
    first, second = page.evaluate(tops)
    assert first == pytest.approx(second, abs=0.5)
