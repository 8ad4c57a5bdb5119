"""The reference of the command line in docs/commands.md: the help of every verb.

`python -m tests.tree` writes it anew.
"""

import re

from ablate.cli import VERBS
from tests.imports import ROOT

PAGE = ROOT / "docs" / "commands.md"
BLOCK = re.compile(r"<!-- help -->\n(.*?)<!-- end of help -->", re.S)


def reference() -> str:
    """Every verb's help in a block of its own."""
    return "\n".join(
        f"## ablate {verb.name}\n\n```text\n{verb.help()}```\n" for verb in VERBS.values()
    )


def write() -> None:
    """Put the reference between the marks of its page."""
    block = f"<!-- help -->\n{reference()}<!-- end of help -->"
    PAGE.write_text(BLOCK.sub(lambda _: block, PAGE.read_text(), count=1))
