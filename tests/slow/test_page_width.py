"""In a real browser, at the width of a desk and of a phone, nothing of a page is out of reach."""

import html
import json
import re
import shutil
import subprocess

import pytest

from analysis.report.build import build
from tests.fake_results import fake_results
from tests.unit.test_regression_report import gaussian_table, item_table

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
WIDTHS = (1280, 390)
# Opens all of the page, then lists what is wider than the window and lies in nothing that scrolls.
MEASURE = """
<script>
for (const one of document.querySelectorAll("details")) one.open = true;
function lost(element) {
  const box = element.getBoundingClientRect();
  if (!box.width || box.right <= innerWidth + 1) return false;
  for (let at = element; at; at = at.parentElement)
    if (/auto|scroll/.test(getComputedStyle(at).overflowX)) return false;
  return !element.closest("svg");
}
// What scrolls is marked when it is next drawn: asked again until all is, or time is up.
function tell(left) {
  const wide = [...document.querySelectorAll("body *")].filter(lost);
  const cut = [...document.querySelectorAll(".scroll, .plot, .formula")].filter(
    (one) => one.scrollWidth > one.clientWidth + 1);
  const marked = cut.filter((one) => one.classList.contains("wide"));
  if (marked.length < cut.length && left) return setTimeout(() => tell(left - 1), 300);
  parent.postMessage(JSON.stringify({
    lost: wide.map((one) => `${one.tagName}.${one.className}: ${one.textContent.slice(0, 40)}`),
    page: document.documentElement.scrollWidth, width: innerWidth, wide: cut.length,
    marked: marked.length,
  }), "*");
}
// A frame as the explorer draws it: long after the page has loaded.
setTimeout(() => {
  const late = document.createElement("div");
  late.className = "scroll";
  late.innerHTML = "<div style='width: 3000px'>late</div>";
  document.querySelector("section").append(late);
}, 100);
setTimeout(() => tell(20), 300);
</script></body>
"""
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
OUTER = """<!doctype html><body style="margin:0"><pre id="told"></pre>
<script>addEventListener("message", (event) => {
  document.getElementById("told").textContent = event.data; });</script>
<iframe src="inner.html" style="width:%dpx;height:900px;border:0"></iframe></body>"""


def measured(index, folder, width):
    """What the browser says of a page in a frame of this width."""
    folder.mkdir()
    text = POLICY.sub("", index.read_text(encoding="utf-8"), count=1)  # it allows no other script
    (folder / "inner.html").write_text(text.replace("</body>", MEASURE), encoding="utf-8")
    (folder / "outer.html").write_text(OUTER % width, encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=8000", "--dump-dom",
        f"--window-size={max(width, 500) + 50},1000", (folder / "outer.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return json.loads(html.unescape(re.search(r'<pre id="told">(.*?)</pre>', done.stdout)[1]))


@pytest.fixture(scope="module", params=["study", "gaussian", "items"])
def index(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    if request.param == "study":
        return build(fake_results(plws=(0.0, 0.1, 1.0)), out)
    if request.param == "items":
        return build(item_table(), out)
    return build(gaussian_table(), out, score="points")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_lies_beyond_the_window_without_a_way_to_it(index, width, tmp_path):
    found = measured(index, tmp_path / "page", width)
    assert found["width"] == width
    assert found["lost"] == []
    assert found["page"] <= width
    assert found["marked"] == found["wide"]  # every frame that scrolls says so
    assert width > 400 or found["wide"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_measure_sees_a_table_that_is_cut_off(index, tmp_path):
    text = index.read_text(encoding="utf-8").replace(".scroll {\n  overflow: auto;", ".scroll {")
    broken = tmp_path / "broken.html"
    broken.write_text(text, encoding="utf-8")
    assert measured(broken, tmp_path / "page", 390)["lost"]
