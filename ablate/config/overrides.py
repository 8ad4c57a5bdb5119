"""Hydra's override grammar: lines are parsed, and errors are one line.

masking=none            a level of a group
plw=0,0.1,1             a factor; so are choice(...) and range(...)
dataset.columns.x=y     a name in a table that is the user's own
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ablate.errors import UserError, brief

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
# Tables whose names are the user's own, or a method's: Hydra asks for a plus before a new one.
_FREE = re.compile(r"(dataset\.(columns|options|published)|model\.shape|masking\.weights)\.\w")
PATHS = ("out", "rates", "bundle")  # settings of the command that are paths
DEEPEST = 50  # lists and tables in each other
LARGEST = 10**18 - 1  # of whole numbers, so that 64 bits hold them
LONGEST_KEY = 255  # characters, as of a name of a file
MOST_LEVELS = 1_000_000  # of one sweep
_TOO_MUCH = "a number in it is too long, or it is nested too deeply"
DELETE = 127  # the last control character of ASCII
_WORDS_WITH_A_MEANING = {"null", "true", "false", "nan", "inf"}


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise inside the block into a one-line `UserError`."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
        raise UserError(one_line(error)) from error
    except RecursionError as error:
        raise UserError("is nested too deeply") from error


def one_line(error: BaseException) -> str:
    """Return the first line of the message of `error`, with its cause's where it gives no reason.

    Of a YAML file it is the file, the line and what is wrong there.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark):
        return f"{mark.name}: no YAML: line {mark.line + 1}: {error.problem}"
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.name}: no YAML: {lines[0]}"
    key = getattr(error, "full_key", None)
    if isinstance(error, OmegaConfBaseException) and key and lines and key not in lines[0]:
        return f"{key}: {lines[0]}"
    if error.__cause__ and (not lines or lines[0].startswith("Error merging override")):
        return ": ".join([*lines[:1], one_line(error.__cause__)])
    return lines[0] if lines else type(error).__name__


def normal(line: str) -> str:
    """Return an override as Hydra takes it.

    A study needs no plus, for its group has a default; a name in a free table needs one.
    """
    if line.startswith(("+study=", "+scale=")):
        return line[1:]
    return f"++{line}" if _FREE.match(line) else line


@cache
def parse(line: str) -> Override:
    """Return the parsed override; a sweep stays one override.

    Raises:
        UserError: the line is no `key=value`.
    """
    if "\n" in line:
        raise UserError(f"{line!r}: not an override; write key=value in one line")
    check_text(line)
    try:
        parsed: Override = OverridesParser.create().parse_overrides([line])[0]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{brief(line)}: not an override; {_TOO_MUCH}") from error
    except HydraException as error:
        raise UserError(f"{line}: not an override; write {_quoted(line)}") from error
    if not parsed.key_or_group or (parsed.value_type is None and not parsed.is_delete()):
        raise UserError(f"{line}: not an override; write key=value")
    if len(parsed.key_or_group) > LONGEST_KEY:
        raise UserError(f"{brief(line)}: no such setting")
    check_size(parsed.get_key_element(), parsed._value)
    return parsed


def check_text(line: str) -> None:
    """Check that a word of a command line is text.

    Raises:
        UserError: it has a control character, or bytes that are no UTF-8.
    """
    if any("\ud800" <= character <= "\udfff" for character in line):
        raise UserError(f"{brief(line)}: is not UTF-8: it holds half of a surrogate pair")
    if any(ord(character) < ord(" ") or ord(character) == DELETE for character in line):
        raise UserError(f"{brief(repr(line)[1:-1])}: has a control character in it")


def check_size(key: str, value: Any, depth: int = 0) -> None:
    """Check that a value can be worked with: lists and tables in each other, and whole numbers.

    Raises:
        UserError: it is nested too deeply, or a whole number in it is too large.
    """
    if depth > DEEPEST:
        raise UserError(f"{key}: is nested more than {DEEPEST} levels deep")
    if isinstance(value, ChoiceSweep):
        value = value.list
    if isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(
            f"{key}={brief(value)}: a whole number may have 18 digits; as text it stands in quotes"
        )
    nested = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, Mapping | list):
        for each in nested:
            check_size(key, each, depth + 1)


def check_names(line: str) -> None:
    """Check that what an override names is a name: a level is a file's name, not a path to it.

    Raises:
        UserError: a level with a folder in it.
    """
    override = parse(line)
    key, value = override.key_or_group, override.value()
    if "." in key:
        return
    named = value.list if isinstance(value, ChoiceSweep) else [value]
    for name in (str(one) for one in named if isinstance(one, str | QuotedString)):
        if key not in PATHS and (".." in name or set(name) & set("/\\")):
            raise UserError(f"{key}={name}: must be a name, without a folder, / or ..")


def _quoted(line: str) -> str:
    """Return a line that Hydra's grammar refuses, such as one with a second `=`, as it must be."""
    key, _, value = line.partition("=")
    if re.fullmatch(r"[+~]{0,2}[\w./@\[\]-]+", key) and value and value[0] not in "'\"[{(":
        return f'"{key}={spell(value)}"'
    return "key=value"


def key_of(line: str) -> str:
    """Return the key that an override sets, without +, ++ or ~ but with its package, if any."""
    return parse(line).get_key_element().lstrip("+~")


def top_of(key: str) -> str:
    """Return the top-level part of the tree that a key or group is in."""
    return re.split(r"[.\[/@]", key, maxsplit=1)[0]


def levels(line: str, loader: ConfigLoader) -> list[str]:
    """Return one override line per level of a sweep; a plain override is its only level.

    Raises:
        UserError: the sweep cannot be listed, as interval(0, 1) cannot, or is empty.
    """
    override = parse(line)
    if not override.is_sweep_override():
        return [line]
    if not override.is_discrete_sweep():
        raise UserError(
            f"{line}: levels must be listed, as in {key_of(line)}=0.1,0.5 or range(0,5)"
        )
    override.config_loader = loader  # glob(*) asks it for the options of the group
    key = override.get_key_element()
    if isinstance(swept := override.value(), RangeSweep) and swept.step:
        count = (float(swept.stop or 0) - float(swept.start or 0)) / float(swept.step)
        if not count <= MOST_LEVELS:
            raise UserError(f"{line}: more than {MOST_LEVELS:,} levels")
    try:
        with one_line_errors():
            found = [f"{key}={value}" for value in override.sweep_string_iterator()]
    except UserError as error:
        raise UserError(f"{line}: {error}") from error
    if not found:
        raise UserError(f"{line}: no level matches")
    return found


def spell(value: Any) -> str:
    """Return `value` in Hydra's grammar, so that parsing gives it back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{spell(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(spell(v) for v in value) + "]"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS_WITH_A_MEANING:
        return text
    # A backslash only escapes before a quote or at the end of a quoted Hydra string.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f"'{escaped}'"
