"""What the site needs beside the pages: the files outside docs/ that they link to."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\]\(\.\./((?:notebooks|conf)/[^)#]+)")  # files, which the site then holds
FOLDERS = re.compile(r"\[([^\]]*)\]\(\.\./benchmarks[^)]*\)")  # folders of code: their names alone


def on_files(files: Files, config: Any) -> Files:
    """Add the notebooks and tables that pages link to."""
    linked = {found for page in sorted((ROOT / "docs").glob("*.md"))
              for found in OUTSIDE.findall(page.read_text(encoding="utf-8"))}  # fmt: skip
    for path in sorted(linked):
        files.append(File(path, str(ROOT), config["site_dir"], use_directory_urls=False))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to those files lead into the site."""
    return FOLDERS.sub(r"\1", OUTSIDE.sub(r"](\1", markdown))
