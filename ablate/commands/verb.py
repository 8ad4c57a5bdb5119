"""What the verbs of the command line have in common: options, help, and how words are read.

A verb is one `Verb`: the help, the reference in docs/commands.md, tab completion and the parser
are all made from it. A new one takes

    1. a module here with `VERB = Verb(...)`: three examples, and in `settings` the keys of the
       Hydra settings that it is mostly used with (`GRID` where it composes a grid); their words,
       defaults and values are read from `conf/` and the schema;
    2. its place among `PURPOSES` of `ablate/cli.py`, and `python -m tests.tree`.

Imports of a verb's module at its top are paid by every command and by tab completion: what needs
more than the standard library, `ablate.errors` and `ablate.terminal` is imported in its functions.
`--help`, `-h`, `ablate help VERB` and `--config-dir` come by themselves.
"""

import argparse
import math
import os
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from ablate.errors import UserError, brief, nearest, unknown

if TYPE_CHECKING:
    from ablate.config.settings import Setting

MOST_SEEDS = 1000
LARGEST = 1_000_000  # of a whole number that an option takes
WIDTH = 96  # of the help
BOOLEAN = ("true", "false")
COLUMN = 28  # where the words begin that explain an option or a setting
HELP = ("-h", "--help")


@dataclass(frozen=True, slots=True)
class Flag:
    """One option of a verb; without `value` it is a switch."""

    name: str
    help: str
    value: str = ""  # what stands for the value in the help
    kind: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    default: Any = None
    bare: str = ""  # the value where the option is given without one; "": it needs one


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb: what it does, how it is called, and the function that carries it out."""

    name: str
    summary: str  # a line of `ablate --help`
    about: str  # a sentence or two
    words: str  # the words beside the options, as the usage line shows them
    examples: tuple[str, ...]
    run: Callable[[argparse.Namespace, list[str]], int]
    options: tuple[Flag, ...] = ()
    settings: tuple[str, ...] = ()  # KEY, or KEY=DEFAULT where the verb has another default

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Every option that it takes; all verbs take a folder of levels, of use to them or not."""
        return self.options if CONFIG_DIR in self.options else (*self.options, CONFIG_DIR)

    def main(self, words: list[str]) -> int:
        """Carry out the verb for `words` and return the exit status.

        Raises:
            UserError: the request is wrong.
        """
        if any(word in HELP for word in words):
            print(self.help(), end="")
            return 0
        return self.run(*self.parse(words))

    def parse(self, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """Return the options' values and the other words, in order.

        Raises:
            UserError: an unknown option, one given twice, or a wrong value of a known one.
        """
        for word in words:
            if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in word):
                raise UserError(f"{brief(word)}: is no text: it has a NUL or is not UTF-8")
        given, rest = self._parser().parse_known_args(words)
        flags = [*HELP, *(option.name for option in self.flags)]
        for word in rest:
            if word.startswith("-"):
                flag = word.split("=")[0]
                raise UserError(
                    f"{flag}: no such option of ablate {self.name}.{nearest(flag, flags)}"
                )
        return given, rest

    def help(self) -> str:
        """Return what `ablate VERB --help` prints."""
        return self._parser().format_help()

    def _parser(self) -> argparse.ArgumentParser:
        parser = _Parser(
            usage=" ".join(filter(None, (f"ablate {self.name} [OPTION ...]", self.words))),
            description=textwrap.fill(self.about, WIDTH),
            epilog=self._epilog(),
            formatter_class=_Formatter,
            allow_abbrev=False,
            add_help=False,
        )
        parser.add_argument(*HELP, action="store_true", help="print this and exit")
        for option in self.flags:
            if option.value:
                parser.add_argument(
                    option.name, metavar=option.value, type=_reader(option), action=_Once,
                    default=option.default, help=option.help, nargs="?" if option.bare else None,
                    const=option.bare or None,
                )  # fmt: skip
            else:
                parser.add_argument(option.name, action="store_true", help=option.help)
        return parser

    def _epilog(self) -> str:
        """Return what stands behind the options: the settings most used, and examples."""
        lines = ["examples:", *(f"  {example}" for example in self.examples)]
        if not self.settings:
            return "\n".join(lines)
        from ablate.config.settings import settings

        known = settings()
        return "\n".join(
            [
                "settings (KEY=VALUE with their defaults; KEY=A,B,C asks for a grid):",
                *(
                    line
                    for key, _, default in (each.partition("=") for each in self.settings)
                    for line in shown(known[key], default)
                ),
                "  levels: `ablate help adapter`; all settings: `ablate help settings`",
                "",
                *lines,
            ]
        )


def shown(setting: "Setting", default: str = "") -> list[str]:
    """Return a setting with its default, what it is and what it may be, in lines of the help."""
    values = " | ".join(setting.values) if setting.values != BOOLEAN else ""
    if setting.group:
        values = f"{len(setting.values)} levels"
    elif " | " in setting.about:  # which names them
        values = ""
    about = f"{setting.about} ({values})" if values else setting.about
    head = f"  {setting.key}={default or setting.default}"
    lines = textwrap.wrap(about, WIDTH - COLUMN, break_on_hyphens=False, break_long_words=False)
    first = [f"{head:<{COLUMN}}{lines.pop(0)}"] if len(head) < COLUMN - 1 else [head]
    return [*first, *(" " * COLUMN + line for line in lines)]


class _Once(argparse.Action):
    """Keeps an option's value; a second one would be lost, so it is refused."""

    def __call__(
        self, parser: argparse.ArgumentParser, given: argparse.Namespace, value: Any, _: Any = None
    ) -> None:
        if self.dest in (seen := given.__dict__.setdefault("_seen", set())):
            raise UserError(f"{self.option_strings[0]}: is given twice")
        seen.add(self.dest)
        setattr(given, self.dest, value)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=COLUMN, width=WIDTH)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise what argparse complains of as an error of one line."""
        found = re.fullmatch(r"argument (\S+): (.*)", message)
        if found is None:
            raise UserError(message)
        faults = {"expected one argument": "needs a value"}
        ignored = found[2].startswith("ignored explicit argument")
        fault = "takes no value" if ignored else faults.get(found[2], found[2])
        raise UserError(f"{found[1].split('/')[-1]}: {fault}")


def _reader(option: Flag) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if not text.strip() and option.value != "FORMULA":  # the analysis says what one is
            raise UserError(f"{option.name}: needs a value")
        if option.choices and text not in option.choices:
            raise unknown(option.name, text, option.choices)
        try:
            return option.kind(text)
        except ValueError:
            raise UserError(f"{option.name}={brief(text)}: {_KINDS[option.kind]}") from None

    return read


def above_0(text: str) -> float:
    """Return a finite number above 0; a ValueError where `text` is none."""
    if not 0 < float(text) < math.inf:
        raise ValueError(text)
    return float(text)


def truth(text: str) -> bool:
    """Return what one of `BOOLEAN` stands for."""
    return text == BOOLEAN[0]


def error_rate(text: str) -> float:
    """Return a number between 0 and 0.5; a ValueError where `text` is none."""
    if not 0 < float(text) < 0.5:
        raise ValueError(text)
    return float(text)


def folder(text: str) -> str:
    """Return `text`, the name of a folder that is there; a ValueError where it is none."""
    if not os.path.isdir(text):
        raise ValueError(text)
    return text


def whole(text: str) -> int:
    """Return a whole number from 1 to `LARGEST`; a ValueError where `text` is none."""
    if not re.fullmatch(r"\s*[0-9]{1,18}\s*", text) or not 1 <= int(text) <= LARGEST:
        raise ValueError(text)
    return int(text)


def wholes(text: str) -> list[int]:
    """Return whole numbers that commas part."""
    found = [whole(part) for part in text.split(",")]
    if max(found) > MOST_SEEDS:
        raise ValueError(text)
    return found


_KINDS: dict[Callable[[str], Any], str] = {
    float: "must be a number",
    above_0: "must be a number above 0",
    error_rate: "must lie between 0 and 0.5",
    folder: "no such folder",
    whole: f"must be a whole number above 0 and at most {LARGEST:,}",
    wholes: f"must be whole numbers such as 1,2,4, at most {MOST_SEEDS:,}",
}

CONFIG_DIR = Flag("--config-dir", "a folder with levels of your own, as in conf/", "DIR", folder)
GRID = (
    "masking", "plw", "adapter", "rank", "dataset", "dataset.path", "dataset.template=...", "model",
    "model.path", "train", "train.lr", "train.epochs", "train.batch_size", "evaluate",
    "evaluate.tasks=...", "seed", "study", "scale", "out",
)  # fmt: skip
RETRY_FAILED = Flag("--retry-failed", "try the cells again that failed before")
OVERRIDES = "[KEY=VALUE ...]"
DEFAULT = "results/default"  # the folder of results where a command names none
CELL = f"OUT/cells/KEY | KEY [OUT={DEFAULT}]"  # how a command names a recorded cell


def folders(given: argparse.Namespace) -> tuple[str, ...]:
    """Return the folders that `--config-dir` names: one or none."""
    return (given.config_dir,) if given.config_dir else ()
