"""What may stand at the cursor on a command line of `ablate`: verbs, options, settings, levels.

Made from the same table as the help. Imports neither torch nor Hydra: a shell waits for it.
"""

import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from ablate.commands.help import TOPICS
from ablate.commands.verb import CONFIG_DIR, HELP, Flag, Verb

DONE = " "  # behind a word that is complete; others go on: masking=, train.
ANSWER = ["completion", "answer"]  # how the scripts of the shells ask, with the line behind


def answers(line: str, verbs: Mapping[str, Verb]) -> list[str]:
    """Return the words that may stand last on a line, which begins with the program's name.

    Args:
        line: up to the cursor; its last word may be empty.
        verbs: by name.
    """
    words = _words(line)[1:]
    *before, last = words or [""]
    if not before:
        names = [*verbs, "help", "--help", "--version"]
        return [name + DONE for name in names if name.startswith(last)]
    verb = verbs.get(before[0])
    if before[0] == "help":
        return _topics(last, verbs)
    if verb is None:
        return []
    flags = {flag.name: flag for flag in verb.flags}
    name, is_given, start = last.partition("=")
    if is_given and name in flags:
        return [f"{name}={word}" for word in _choices(flags[name], start)]
    if last.startswith("-"):
        return [flag + DONE for flag in (*flags, *HELP) if flag.startswith(last)]
    if (flag := flags.get(before[-1])) and flag.value:
        return list(_choices(flag, last))
    return _operands(verb, before[1:], last, _folders(before))


def _words(line: str) -> list[str]:
    """Return the words of a line; the last is that at the cursor, "" where one is to begin."""
    for closing in ("", "'", '"'):
        try:
            found = shlex.split(line + closing)
        except ValueError:  # a quotation that is not closed yet
            continue
        return [*found, ""] if line[-1:].isspace() and not closing else found
    return line.split(" ")


def _folders(before: Sequence[str]) -> list[str]:
    """Return the folder of levels that a line names."""
    option = CONFIG_DIR.name
    named = [after for word, after in itertools.pairwise(before) if word == option]
    return named + [w.partition("=")[2] for w in before if w.startswith(f"{option}=")]


def _choices(flag: Flag, start: str) -> list[str]:
    return [choice + DONE for choice in flag.choices if choice.startswith(start)]


def _topics(last: str, verbs: Mapping[str, Verb]) -> list[str]:
    from ablate.config.settings import levels, settings

    key, is_level, start = last.partition("=")
    if is_level:
        return [f"{key}={level}{DONE}" for level in levels(key) if level.startswith(start)]
    return [w + DONE for w in (*verbs, *settings(), *TOPICS) if w.startswith(last)]


def _operands(verb: Verb, before: Sequence[str], last: str, folders: list[str]) -> list[str]:
    """Return operands that the usage line names, or settings."""
    from ablate.config.settings import levels

    first, is_first = verb.words.split(" ")[0], not [w for w in before if w[:1] != "-"]
    if is_first and (first.islower() and "|" in first):
        return [word + DONE for word in first.split("|") if word.startswith(last)]
    if is_first and first == "STUDY" and verb.name == "reproduce":
        return [name + DONE for name in levels("study", folders) if name.startswith(last)]
    if "=" not in verb.words:
        return []
    return _values(last, folders) if "=" in last else _keys(last)


def _keys(last: str) -> list[str]:
    """Return settings that begin so; those inside a part once the part is named."""
    from ablate.config.settings import settings

    found = dict[str, None]()
    for key, setting in settings().items():
        if not key.startswith(last):
            continue
        part, dot, _ = key[len(last) :].partition(".")
        found[last + part + dot if dot else f"{key}="] = None
        if setting.group and any(each.startswith(f"{key}.") for each in settings()):
            found[f"{key}."] = None
    return list(found)


def _values(last: str, folders: list[str]) -> list[str]:
    """Return values of a setting behind those that commas part from the one at the cursor."""
    from ablate.config.settings import levels, settings

    key, _, value = last.partition("=")
    setting = settings().get(key)
    if setting is None:
        return []
    done, comma, start = value.rpartition(",")
    known = levels(key, folders) if setting.group else setting.values
    given = done.split(",")
    left = [each for each in known if each.startswith(start) and each not in given]
    return [f"{key}={done}{comma}{each}" for each in left]


def script(shell: str) -> str:
    """Return what makes a shell ask `ablate completion answer` for completions."""
    return (Path(__file__).parent / "shells" / f"ablate.{shell}").read_text(encoding="utf-8")
