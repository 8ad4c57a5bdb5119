"""All wrong commands, by kind, and how one is read: FILES and OUT are folders."""

import re
import shlex
from pathlib import Path

from tests.bad_inputs import data, settings, verbs

ROWS = {
    f"{module.__name__.rpartition('.')[2]} {name.lower()}": table
    for module in (settings, verbs, data)
    for name, table in vars(module).items()
    if name.isupper() and isinstance(table, dict)
}
CELL = ("evaluate=none", "train.lr=1e-3", "train.max_steps=1")
COMPOSING = {
    **dict.fromkeys(("plan", "sweep", "run"), CELL),
    **dict.fromkeys(("tokens", "tune", "reproduce", "pretrain"), ()),
}
SHORT = {  # what begins a word, and the words that it stands for
    "LOCAL/": "dataset=local dataset.path=FILES/",
    "CHAT/": "dataset=local dataset.template=chat dataset.path=FILES/",
    "FRAME/": "dataset=local dataset.path=FILES/good.jsonl dataset.template=FILES/",
    "TEMPLATE/": "dataset=local dataset.path=FILES/chat.jsonl dataset.template=chat "
    "model.chat_template=FILES/",
    "MODEL/": "model=local model.path=FILES/",
}


def words_of(command: str, files: Path, out: Path) -> tuple[dict[str, str], list[str]]:
    """Return the environment that a command sets, and its words.

    Verbs that compose cells are given a cheap one, and a folder of results that is not there.
    """
    words = shlex.split(command)
    environment = {}
    while words and (found := re.fullmatch(r"([A-Z_]+)=(.*)", words[0])):
        environment[found[1]] = found[2].replace("FILES", str(files))
        words.pop(0)
    verb, *rest = words or [""]
    rest = [each for word in rest for each in _in_full(word)]
    own = COMPOSING.get(verb, ())
    if verb in COMPOSING and not any(word.startswith("out=") for word in rest):
        own = (*own, "out=OUT")
    start = 1 if verb == "reproduce" and rest and "=" not in rest[0] else 0
    rest = [*rest[:start], *own, *rest[start:]]
    named = [word.replace("FILES", str(files)).replace("OUT", str(out)) for word in rest]
    return environment, [*([verb] if words else []), *named]


def _in_full(word: str) -> list[str]:
    for short, words in SHORT.items():
        if word.startswith(short):
            return (words + word.removeprefix(short)).split(" ")
    return [word]
