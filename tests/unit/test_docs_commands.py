"""Every command of the README and the documentation is one that the program takes."""

import re
import shlex

import pytest

from ablate.cli import VERBS
from ablate.config import compose, grid
from tests.unit.test_readme import DOCS, README, commands

GRIDS = ("run", "sweep", "plan", "tokens", "tune", "reproduce")  # their words are overrides
PLACEHOLDER = re.compile(r"\b(?:NAME|KEY|DIR|FILE|OWNER|STUDY|FOLDER|FROM|TO)\b|\.\.\.|\$")
COMMANDS = sorted({
    (page, shlex.join(words))
    for page, text in {"README.md": README, **DOCS}.items()
    for words in commands(text)
    if not PLACEHOLDER.search(" ".join(words))
})  # fmt: skip


def test_there_are_many():
    assert len(COMMANDS) > 100


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_the_program_takes_a_command(page, line, monkeypatch, tmp_path):
    """Its verb, its options, the names of its settings and their levels; nothing is read."""
    verb, *words = shlex.split(line)[1:]
    words = [word for word in words if not word.startswith(("2>", ">", "|"))]
    if verb in ("help", "--help", "--version"):
        return
    own = VERBS[verb]
    if "--config-dir" in words:  # a folder that its page writes
        where = words.index("--config-dir")
        (tmp_path / words[where + 1]).mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        own.parse(words)
        return
    if any(word in ("-h", "--help") for word in words):
        return
    given, rest = own.parse(words)
    if verb == "reproduce":
        rest = [f"study={rest[0]}", *rest[1:]]
    if verb in GRIDS and not getattr(given, "hydra_help", False):
        found = compose.expand(rest, most=100_000)  # Hydra's own settings are checked as well
        next(iter(grid.cells(found)))
