"""What `ablate --help` and `ablate help WORD` print: the verbs by purpose, a verb, a setting."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from ablate.commands.verb import OVERRIDES, WIDTH, Verb, shown
from ablate.errors import UserError, nearest

TOPICS = ("settings", "commands")
LEVELS = 20  # characters of the names of levels


def usage(purposes: Mapping[str, Sequence[Verb]]) -> str:
    """Return what `ablate --help` prints: every verb with a line, in groups by purpose."""
    lines = [f"usage: ablate VERB [OPTION ...] {OVERRIDES}"]
    for purpose, verbs in purposes.items():
        lines += ["", f"{purpose}:", *(f"  {verb.name:<11}{verb.summary}" for verb in verbs)]
    return "\n".join(
        [
            *lines,
            "",
            "`ablate VERB --help` explains a verb: its options, its settings, three examples.",
            "KEY=VALUE are settings: `ablate plan masking=none plw=0,0.1 adapter=lora,mora`;",
            "`ablate help settings` lists them, `ablate help adapter` the levels of one.",
        ]
    )


def topic(words: Sequence[str], purposes: Mapping[str, Sequence[Verb]]) -> str:
    """Return what `ablate help WORDS` prints.

    Raises:
        UserError: there is no such verb or setting, or there are several words.
    """
    from ablate.config.settings import settings

    if not words:
        return usage(purposes)
    verbs = {verb.name: verb for some in purposes.values() for verb in some}
    word, *more = words
    if more:
        raise UserError(f"help: takes one verb or setting, not {' '.join(words)}")
    if word in verbs:
        return verbs[word].help().rstrip("\n")
    if word == "commands":
        return "\n\n".join(verb.help().rstrip("\n") for verb in verbs.values())
    if word == "settings":
        return "\n".join(line for setting in settings().values() for line in shown(setting))
    key, _, level = word.partition("=")
    if key not in settings() and not _below(key):
        names = [*verbs, *settings(), *TOPICS]
        raise UserError(f"help {word}: no such verb or setting.{nearest(word, names)}")
    return _level(key, level) if level else _setting(key)


def _below(key: str) -> list[str]:
    """Return the keys of the settings inside a part of the configuration."""
    from ablate.config.settings import settings

    return [each for each in settings() if each.startswith(f"{key}.")]


def _setting(key: str) -> str:
    """Return what there is to say of a setting: its levels, and the settings inside it."""
    from ablate.config.settings import about_level, settings

    lines = list[str]()
    if setting := settings().get(key):
        lines += shown(setting)
        if setting.group:
            named = [(name, about_level(key, name)) for name in setting.values]
            lines += ["", "levels:", *(_line(name, about) for name, about in named)]
            lines += [f"  `ablate help {key}=LEVEL` prints the file of a level"]
    if inside := _below(key):
        lines += [""] * bool(lines) + ["settings inside it, which a level may state:"]
        lines += [line for each in inside for line in shown(settings()[each])]
    return "\n".join(lines)


def _line(name: str, about: str) -> str:
    head = f"  {name:<{LEVELS}} "
    return head + textwrap.shorten(about, WIDTH - len(head), placeholder=" ...")


def _level(key: str, level: str) -> str:
    """Return the file of a level, with the comments in it."""
    from ablate.config.settings import settings
    from ablate.errors import unknown
    from ablate.paths import conf_dir

    setting = settings().get(key)
    if setting is None or not setting.group:
        raise UserError(f"help {key}={level}: {key} has no levels; ablate help {key}")
    if level not in setting.values:
        raise unknown(f"help {key}", level, setting.values)
    path = Path(conf_dir()) / key / f"{level}.yaml"
    return f"# {path}\n{path.read_text(encoding='utf-8').rstrip()}"
