"""A page of 2,000 cells x 6 tasks: its size, and what it takes to load and to repaint.

Times are those of the processor on the page's main thread, which do not depend on what else the
machine does: script, style, layout and the recording of what is painted.
"""

import statistics

import pytest

from analysis.explorer.payload import payload
from analysis.regression.study import fitted
from analysis.report.page import Page, render
from analysis.table.frame import from_results, read
from tests.explored import explored

MOST_BYTES = 6_000_000
LOAD, REPAINT = 2.0, 0.2  # seconds
ROOM = 2  # for slower processors
CHOICES = 50
CHOOSE = """async (k) => {
  const names = ["x", "colour", "panel", "scores", "show"];
  const select = document.getElementById(`explore-${names[k % names.length]}`);
  const own = [...select.options].map((o) => o.value);
  select.value = own[(own.indexOf(select.value) + 1) % own.length];
  select.dispatchEvent(new Event("change"));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
}"""


def measured(path, open_page, choices=CHOICES):
    """The seconds of loading a page, and those of every choice."""
    page = open_page(path, ready=False)
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

    def ticks():
        found = devtools.send("Performance.getMetrics")["metrics"]
        return next(one["value"] for one in found if one["name"] == "TaskDuration")

    page.goto("about:blank")
    start = ticks()
    page.goto(path.as_uri())
    page.wait_for_selector("#explorer[data-ready]", state="attached")
    loaded = ticks() - start
    taken = []
    for k in range(choices):
        start = ticks()
        page.evaluate(CHOOSE, k)
        taken.append(ticks() - start)
    return loaded, taken


@pytest.mark.slow
def test_two_thousand_cells(tmp_path, open_page, record_property):
    folder = explored(tmp_path)
    raw = read(folder)
    study = fitted(raw, from_results(raw), folder=folder)
    assert len(study.rows) == 2000 * 6
    path = folder / "index.html"
    text = render(Page("t", "source", "0", (), explorer=payload(study)), {})
    path.write_text(text, encoding="utf-8")
    assert path.stat().st_size < MOST_BYTES / 2  # the other half is for the rest of a page
    loaded, taken = measured(path, open_page)
    late = statistics.quantiles(taken, n=20)[-1]
    record_property("load", loaded)
    record_property("repaint", late)
    assert loaded < ROOM * LOAD
    assert late < ROOM * REPAINT
