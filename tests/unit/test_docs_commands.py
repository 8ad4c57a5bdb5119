"""Every command of the README and the documentation is one that the program takes."""

import contextlib
import re
import shlex

import pytest

from ablate.cli import VERBS
from ablate.config import compose, grid
from ablate.errors import UserError
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


INLINE = re.compile(r"`([^`]+)`")
SETTING = re.compile(r"\+*[a-z][\w./]*=\S+")
# What is no setting of ours: arguments of functions and of other libraries, and short forms.
OTHERS = re.compile(
    r"(allow_pickle|init_lora_weights|key|quadrature|trust_remote_code|sharding)=|=(SIZE|N)$"
)
LAUNCHERS = {"gpus_per_node": "slurm", "num_gpus": "ray", "executor": "parsl", "blocks": "parsl"}


def settings(text):
    """Yield every setting, or several, that stand in the running text of a page."""
    for code in INLINE.findall(re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)):
        with contextlib.suppress(ValueError):  # no words of a shell
            words = shlex.split(" ".join(code.split()))
            if words and all(map(SETTING.fullmatch, words)):
                yield tuple(words)


def test_many_settings_stand_in_running_text():
    assert len({words for text in DOCS.values() for words in settings(text)}) > 80


@pytest.mark.parametrize("page", DOCS)
def test_settings_in_running_text_are_there(page):
    """Their names and levels; `scale` alone hangs on the study that a page is about."""
    wrong = {}
    for words in dict.fromkeys(settings(DOCS[page])):
        if any(OTHERS.search(word) or PLACEHOLDER.search(word) for word in words):
            continue
        own = {word.lstrip("+").split("=")[0].split(".")[2] for word in words
               if word.lstrip("+").startswith("hydra.launcher.")}  # fmt: skip
        more = [f"hydra/launcher={LAUNCHERS[name]}" for name in own if name in LAUNCHERS]
        kept = [word for word in words if not word.startswith("scale=")]
        try:
            compose.expand([*more, *kept], most=100_000)
        except UserError as error:
            wrong[words] = str(error)
    assert wrong == {}
