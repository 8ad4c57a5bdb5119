"""The one kind of error that a user can correct, and its message.

A message is one line: the setting, its value, what is allowed and the nearest valid name.
"""

import difflib
import sys
from collections.abc import Iterable

LONGEST = 1000  # characters of a message


class UserError(Exception):
    """A request that cannot be carried out as asked; printed as one line, exit status 2."""


class RowError(UserError):
    """A row that cannot be used, though others of its data set can."""


class FormError(UserError):
    """A row that cannot be used, for what others of its data set are likely to have too."""


class Halted(Exception):
    """A sweep that ended before all was tried; printed as one line, exit status 3.

    What is recorded stays, and the same command continues from it.
    """


class LeaseLost(BaseException):
    """The process was stopped for so long that another has taken its cell over; it gives way."""


def halted(error: Halted | str) -> int:
    """Return exit status 3, after printing why the work stopped."""
    line = " ".join(str(error).split())
    print(f"ablate: stopped: {line}; records are kept", file=sys.stderr)
    return 3


def refuse(error: UserError | str) -> int:
    """Return exit status 2, after printing the first line of `error`.

    What a terminal would not show as it is (control characters, halves of surrogate pairs) is
    written as Python writes it, and the middle of a very long line is left out.
    """
    line = str(error).strip().partition("\n")[0]
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    print(f"ablate: {brief(shown, LONGEST)}", file=sys.stderr)
    return 2


def brief(value: object, longest: int = 60) -> str:
    """Return a value as it is shown in a message; of a long one its beginning and its end."""
    text = str(value)
    half = (longest - 5) // 2
    return text if len(text) <= longest else f"{text[:half]} ... {text[-half:]}"


def nearest(name: object, choices: Iterable[object]) -> str:
    """Return " Did you mean X?" for the closest of `choices`, or an empty string."""
    close = _close(str(name), [str(c) for c in choices])
    return f" Did you mean {close[0]!r}?" if close else ""


def _close(name: str, choices: list[str]) -> list[str]:
    """Return up to three choices like the name, the likeliest first; of equals the same start."""
    found = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    alike = {c: round(difflib.SequenceMatcher(None, c, name).ratio(), 6) for c in found}
    return sorted(found, key=lambda c: (alike[c], c[:1] == name[:1]), reverse=True)


def unknown(setting: str, value: object, choices: Iterable[object]) -> UserError:
    """Return the error for a `value` of `setting` that is none of `choices`."""
    names = sorted(str(c) for c in choices)
    likely = _close(str(value), names)
    shown = names if len(names) <= 20 else [*likely, *(n for n in names if n not in likely)][:20]
    listed = ", ".join(shown) + (", ..." if len(names) > 20 else "")
    return UserError(f"{setting}={value}: not one of {listed}.{nearest(value, names)}")
