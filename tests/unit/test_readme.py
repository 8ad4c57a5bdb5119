"""The README and the pages it leads to: what a reader meets first is there, short and true."""

import re
import shlex

import pytest
import yaml

from ablate.cli import VERBS
from ablate.config.settings import levels
from tests.imports import ROOT

README = (ROOT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
STUDIES = re.findall(
    r"^\| `(\w+)` \|.*\| ([^|]*) \| \[\w+\.md\]\((\w+\.md)", DOCS["studies.md"], re.M
)
SCREEN = 50  # lines
REPORTED = {"quick", "default", "adapter_screen"}  # without figures of their own


def spaced(text: str) -> str:
    return " ".join(text.split())


def commands(text: str) -> list[list[str]]:
    """The commands of a page that begin with `ablate`, as words."""
    text = text.replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in re.findall(r"^ablate .*$", text, re.M)]


def listed(pages: str | list[str]) -> list[str]:
    return [pages] if isinstance(pages, str) else pages


def test_the_two_commands_stand_on_the_first_screens_and_five_uses_follow():
    lines = README.splitlines()
    assert lines.index("make test    # linters and the quick tests; make slow: the others") < SCREEN
    uses = README.partition("## Five uses")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\*\*", uses, re.M)) == 5
    assert len(commands(uses)) == 5
    assert [words[1] for words in commands(uses)] == [
        "tokens", "plan", "sweep", "report", "reproduce",
    ]  # fmt: skip
    assert lines.index("## Pages") < 2 * SCREEN


def test_the_picture_is_there_and_small():
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    path = ROOT / picture
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert 20_000 < path.stat().st_size < 250_000


def test_every_page_is_led_to_and_every_link_leads_somewhere():
    assert {name for name in DOCS if f"](docs/{name}" not in README} == set()
    for folder, text in [(ROOT, README), *((ROOT / "docs", text) for text in DOCS.values())]:
        for link in re.findall(r"\]\(([^)#\s]+)", text):
            assert link.startswith("http") or (folder / link).exists(), link


def test_every_page_has_one_place_in_the_menu_of_the_site():
    """mkdocs builds with `strict`: a page that its `nav` omits ends the build."""
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = [page for part in menu for pages in part.values() for page in listed(pages)]
    assert sorted(pages) == sorted(DOCS)


def test_the_verbs_of_the_table_are_those_of_the_program():
    assert set(re.findall(r"^\| `ablate (\w+)", README, re.M)) == set(VERBS)


@pytest.mark.parametrize("name", ["README.md", "commands.md", "studies.md", "planning.md"])
def test_the_commands_of_a_page_are_read(name):
    found = commands(README if name == "README.md" else DOCS[name])
    assert found
    for _, verb, *words in found:
        if verb not in ("--help", "help"):
            words = [word for word in words if word not in ("--help", "-h")]
            if "--config-dir" in words:  # a folder that an earlier command wrote
                words[words.index("--config-dir") + 1] = str(ROOT / "conf")
            VERBS[verb].parse(words)


def test_claims_of_the_readme_are_those_of_the_page():
    """A line of the README is the beginning of one of docs/claims.md."""
    rows = re.findall(r"^(\| .*) \|$", README.partition("## What was found")[2], re.M)
    rows = rows[: next(i for i, row in enumerate(rows) if row.startswith("| `ablate"))]
    assert len(rows) > 8
    for row in rows[1:]:
        if "verb" not in row:
            assert f"\n{row}" in DOCS["claims.md"], row


@pytest.mark.parametrize(("study", "time", "page"), STUDIES)
def test_the_time_of_a_study_is_that_of_its_page(study, time, page):
    assert study in levels("study")
    figure = time.partition(" by ")[0]
    said = spaced(DOCS[page])
    number, unit = figure.split()[:2]
    shown = f"| **`ablate sweep`**, start and report included | **164** | | 116 (2) | {number} |"
    assert figure in said or (unit == "seconds" and shown in said)


def test_every_study_has_a_line():
    shipped = set(levels("study")) - {"none", "tuning"}
    assert {study for study, _, _ in STUDIES} == shipped


def test_the_help_of_reproduce_says_which_studies_are_of_a_paper():
    """Those whose line in the list of studies names one."""
    told = " ".join(VERBS["reproduce"].help().split())
    both = re.search(r"verdicts: (.*) are papers'; (.*) are of no paper\.", told)
    of_papers, of_none = (set(re.findall(r"\w+", part)) - {"and"} for part in both.groups())
    lines = re.findall(r"^\| `(\w+)` (.*)$", DOCS["studies.md"], flags=re.M)
    assert of_papers == {name for name, line in lines if "arXiv" in line}
    assert of_none == {name for name, _ in lines} - of_papers - REPORTED


def test_the_time_of_the_demo_follows_from_what_was_measured():
    """1,690 seconds of processor: half of it on two free cores."""
    (seconds,) = (time for study, time, _ in STUDIES if study == "quick")
    minutes = int(seconds.split()[0].replace(",", "")) / 60
    assert f"{minutes:.0f} minutes of processor" in spaced(README)
    assert 13 < minutes / 2 < 17  # "a quarter of an hour"
