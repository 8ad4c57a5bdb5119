"""Chromium, headless, driven by Playwright; without one of them these tests are skipped.

Debian's package `chromium` will do, or a path in CHROMIUM; Playwright is in the extra `browser`.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Open = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium, such as Debian's package `chromium`")
    with api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a page of a report, and checks in the end that the console is empty of errors."""
    said: list[str] = []
    contexts = []

    def opened(path: Path, fragment: str = "", *, ready: bool = True, **options: Any) -> Any:
        context = browser.new_context(**options)
        context.set_default_timeout(120_000)  # of a busy machine; nothing waits so long else
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else "")
        page.on("pageerror", lambda e: said.append(str(e)))
        page.on("request", lambda r: said.append(r.url) if r.url.startswith("http") else None)
        page.goto(path.as_uri() + fragment)
        if ready:
            page.wait_for_selector("#explorer[data-ready]", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == [], "the console has errors, or the page fetched something"
