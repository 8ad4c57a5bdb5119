"""The documentation becomes a site without a network; no link in it leads nowhere."""

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(r'(?:src|href)="(https?:)?//')

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True,
                          capture_output=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr  # strict: a link or an anchor that leads nowhere
    return folder


def test_every_page_is_there(site):
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages == {page.stem for page in site.glob("*.html")} - {"404"}


def test_no_page_needs_a_network(site):
    """No script, style or font comes from elsewhere; links that a reader follows may."""
    for page in sorted(site.glob("*.html")):
        text = page.read_text(encoding="utf-8")
        needed = re.findall(r"<(?:script|img|link)\b[^>]*>", text)
        canonical = [tag for tag in needed if OUTSIDE.search(tag) and "canonical" not in tag]
        assert not canonical, page.name


def test_the_reference_has_the_docstrings(site):
    text = unescape((site / "python.html").read_text(encoding="utf-8"))
    for name in ("analysis.facade.load", "analysis.facade.LoadedStudy", "fit_mixed"):
        assert f'id="{name}"' in text or f'id="analysis.mixed.{name}"' in text, name
    assert "A results folder with its fitted model." in text


def test_what_pages_link_to_outside_of_the_docs_is_in_the_site(site):
    assert (site / "notebooks" / "07_adapters.ipynb").is_file()
    assert 'href="notebooks/07_adapters.ipynb"' in (site / "adapters_settled.html").read_text()
