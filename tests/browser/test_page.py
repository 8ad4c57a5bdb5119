"""The explorer in a browser: choose, filter, open a cell, follow a link, keyboard, print, phone."""

import itertools
from importlib import resources

import pandas as pd
import pytest

from analysis.explorer.payload import payload
from analysis.regression.study import fitted
from analysis.report import first_screen, overview
from analysis.report.headline import CLEAR, Headline
from analysis.report.page import Page, Section, Text, render, write
from analysis.table.frame import from_results, read
from tests.explored import TASKS, explored

SERIOUS = ("serious", "critical")
STATE = "() => new URLSearchParams(location.hash.split('?')[1])"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """The page of a small study: an answer, the explorer, a folded section with tables."""
    folder = explored(tmp_path_factory.mktemp("explored"), seeds=2, items=24, small=True)
    raw = read(folder)
    study = fitted(raw, from_results(raw), folder=folder)
    asked = itertools.product((task for task, _, _ in TASKS), range(24))
    prompts = pd.DataFrame(asked, columns=["task", "doc_id"]).assign(prompt="Is <i>this</i>?")
    page = Page(
        "Study", "source", "0", (overview.section(raw, folder),),
        first=Section("answer", "Answer", (Text("The answer."),)),
        explorer=payload(study, prompts),
    )  # fmt: skip
    (folder / "index.html").write_text(render(page, {}), encoding="utf-8")
    return folder / "index.html"


def chosen(page):
    return page.evaluate(
        "() => Object.fromEntries(new URLSearchParams(location.hash.split('?')[1] ?? ''))"
    )


def test_choose_filter_open_a_cell_and_send_the_view(page_file, open_page):
    page = open_page(page_file, viewport={"width": 1280, "height": 900})
    assert page.locator("figure.panel").count() == 4  # kinds of tasks
    page.select_option("#explore-x", "adapter")
    page.select_option("#explore-colour", "plw")
    page.select_option("#explore-scores", "tasks")
    assert page.locator("figure.panel").count() == 6
    assert "t intervals over seeds" in page.locator("figure.panel").first.text_content()
    page.select_option("#explore-scores", "kinds")
    page.click("details.filter summary")
    page.uncheck("fieldset:has-text('adapter') label:has-text('full') input")
    shown = page.locator("figure.panel").first.locator("g[data-mark=dot] > *").count()
    assert shown == 2 * 3  # lora and mora at three weights
    assert "full" not in page.locator("figure.panel").first.text_content()
    page.select_option("#explore-ref", "x:lora")
    assert page.locator("figure.panel").first.locator("g[data-mark=dot] > *").count() == 3
    state = chosen(page)
    wanted = {"x": "adapter", "colour": "plw", "ref": "x:lora"}
    assert {k: state[k] for k in wanted} == wanted

    row = page.locator("table[aria-label^=Cells] tbody tr.opens").first
    row.click()
    drawer = page.locator("dialog.drawer[open]")
    text = drawer.text_content()
    assert "adapter lora" in text.replace("\n", " ")
    assert "Configuration: what differs" in text
    assert "INFO ablate: step 175" in text
    assert "Flipped items" in text
    assert "Is <i>this</i>?" in text  # as text, never as markup
    assert drawer.locator("i").count() == 0
    assert drawer.locator("svg path").count() >= 4
    key = chosen(page)["cell"]
    link = page.url

    other = open_page(page_file, link[link.index("#") :])  # what was sent
    assert other.locator("dialog.drawer[open]").count() == 1
    assert chosen(other)["cell"] == key
    assert other.locator("#explore-ref").input_value() == "x:lora"
    numbers = "() => globalThis.ablateExplorer.numbers.rows.map((r) => r.group.estimate)"
    assert other.evaluate(numbers) == page.evaluate(numbers)
    page.keyboard.press("Escape")
    assert page.locator("dialog.drawer[open]").count() == 0
    assert "cell" not in chosen(page)


def test_an_address_of_another_study_is_passed_over(page_file, open_page):
    wrong = "x=no&colour=%3Cb%3E&f.adapter=none&scores=task:no&ref=x:9&show=pie&cell=0"
    page = open_page(page_file, f"#explore?{wrong}")
    assert page.locator("#explore-x").input_value() == "plw"
    assert page.locator("figure.panel").count() == 4
    assert page.locator("dialog.drawer[open]").count() == 0


def test_the_cells_are_walked_sorted_and_searched_by_the_keyboard(page_file, open_page):
    page = open_page(page_file)
    table = page.locator("table[aria-label^=Cells]")
    count = int(table.get_attribute("aria-rowcount")) - 1
    assert count == 4 * 4
    table.locator("tbody tr.opens").first.focus()
    page.keyboard.press("End")
    focused = "() => Number(document.activeElement.dataset.row)"
    assert page.evaluate(focused) == count - 1
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == count - 2
    page.keyboard.press("Enter")
    assert page.locator("dialog.drawer[open]").count() == 1
    page.keyboard.press("Escape")
    heads = table.locator("thead th")
    titles = heads.all_text_contents()
    last = len(titles) - 1
    values = f"() => globalThis.ablateExplorer.list.rows.map((r) => globalThis.ablateExplorer.list.columns[{last}].value(r))"  # noqa: E501
    heads.nth(last).locator("button").press("Enter")
    assert page.evaluate(values) == sorted(page.evaluate(values))
    heads.nth(last).locator("button").press("Enter")
    assert page.evaluate(values) == sorted(page.evaluate(values), reverse=True)
    assert heads.nth(last).get_attribute("aria-sort") == "descending"
    page.fill("input[aria-label^='Search: Cells']", "mora 0.1")
    assert table.locator("tbody tr.opens").count() == 1


def test_a_heat_map_is_read_and_clicked(page_file, open_page):
    page = open_page(page_file, "#explore?x=adapter&colour=plw&show=heat")
    fields = page.locator("figure.panel").first.locator("g[data-mark=cell] > *")
    assert fields.count() == 3 * 3
    fields.first.click()
    assert page.locator(".chip").is_visible()
    assert page.locator("table[aria-label^=Cells] tbody tr.opens").count() < 16


def test_without_javascript_the_page_reads_and_says_what_is_missing(page_file, open_page):
    page = open_page(page_file, ready=False, java_script_enabled=False)
    assert page.locator("noscript").text_content().startswith("This part needs JavaScript")
    assert "The answer." in page.locator("#answer").text_content()
    assert page.locator("#table-grid table").count() == 1


@pytest.mark.parametrize("width", [1280, 768, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_for_axe_and_nothing_wider_than_the_page(
    width, scheme, page_file, open_page
):
    axe = resources.files(pytest.importorskip("axe_playwright_python")) / "axe.min.js"
    page = open_page(page_file, viewport={"width": width, "height": 800}, color_scheme=scheme)
    wide = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) <= 0
    panels = "[...document.querySelectorAll('figure.panel')]"
    lefts = f"() => new Set({panels}.map((f) => f.offsetLeft)).size"
    assert (page.evaluate(lefts) == 1) == (width < 700)  # panels stack on a phone
    page.evaluate(axe.read_text(encoding="utf-8"))
    run = "async () => (await axe.run(document, {resultTypes: ['violations']})).violations"
    found = page.evaluate(run)
    page.locator("table[aria-label^=Cells] tbody tr.opens").first.click()
    found += page.evaluate(run)
    told = [
        (one["id"], [n["html"][:120] for n in one["nodes"]][:3])
        for one in found
        if one["impact"] in SERIOUS
    ]
    assert told == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_figure_of_the_first_screen_fits_its_window(width, tmp_path, open_page):
    sizes = {"a rather long name of an arm − another one": 3.0, "b": -5.0}
    effects = [
        Headline(label, "arm", "arms", size, size - 1, size + 1, "points", CLEAR, 0.01)
        for label, size in sizes.items()
    ]
    path = write(Page("t", "s", "0", (), first=first_screen.section(effects)), tmp_path)
    page = open_page(path, ready=False, viewport={"width": width, "height": 800})
    shown = page.locator("#figure-headlines .plot:visible")
    assert shown.count() == 1
    assert shown.evaluate("frame => frame.scrollWidth <= frame.clientWidth")
    assert ("narrow" in shown.get_attribute("class")) == (width == 390)


def test_in_print_every_section_is_open_and_controls_are_gone(page_file, open_page):
    page = open_page(page_file, viewport={"width": 800, "height": 1000})
    page.emulate_media(media="print")
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(
        "() => [...document.querySelectorAll('details.part')].every((d) => d.open)"
    )
    assert not page.locator("#explore-x").is_visible()
    assert page.locator("figure.panel svg").first.is_visible()
