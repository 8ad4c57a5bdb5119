"""The one kind of error that a user can correct, and its message.

A message is one line: the setting, its value, what is allowed and the nearest valid name.
"""

import difflib
import sys
from collections.abc import Iterable


class UserError(Exception):
    """A request that cannot be carried out as asked; printed as one line, exit status 2."""


class RowError(UserError):
    """A row that cannot be used, though others of its data set can."""


def refuse(error: UserError | str) -> int:
    """Return exit status 2, after printing the first line of `error`."""
    line = str(error).strip().partition("\n")[0]
    print(f"ablate: {line}", file=sys.stderr)
    return 2


def nearest(name: object, choices: Iterable[object]) -> str:
    """Return " Did you mean X?" for the closest of `choices`, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(c) for c in choices], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown(setting: str, value: object, choices: Iterable[object]) -> UserError:
    """Return the error for a `value` of `setting` that is none of `choices`."""
    names = sorted(str(c) for c in choices)
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return UserError(f"{setting}={value}: not one of {listed}.{nearest(value, names)}")
