"""The one kind of error that a table or a formula can cause, told in one line."""

import difflib
import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

LONGEST_PATH = 300  # characters of a path that an error shows in full


class AnalysisError(Exception):
    """A table, column, formula or model that cannot be analysed as asked."""


def as_path(name: str, value: object) -> Path:
    """Return what was given for `name` as a path.

    Raises:
        AnalysisError: it is of another type.
    """
    if not isinstance(value, str | os.PathLike) or not value:
        raise AnalysisError(f"{name}={told(value)}: must be the path of a file or folder")
    return Path(value)


def as_file(name: str, value: object) -> Path:
    """Return what was given for `name` as the path of a file whose bytes can be read to an end.

    Raises:
        AnalysisError: it is none, a pipe or a device, say.
    """
    path = as_path(name, value)
    try:
        kind = path.stat().st_mode
    except ValueError:
        raise AnalysisError(f"{name}={told(value)}: is no path: it has a NUL in it") from None
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        reason = "there is no such file" if missing else os.strerror(error.errno or 0).lower()
        raise AnalysisError(f"{name}={told(value)}: {reason}") from None
    if stat.S_ISDIR(kind):
        raise AnalysisError(f"{name}={path}: is a folder, not a file")
    if not stat.S_ISREG(kind):
        raise AnalysisError(f"{name}={path}: is neither a file nor a folder")
    return path


def told(value: object) -> str:
    """Return a value as an error shows it: short ones and paths as they are, others by type."""
    text = str(value)
    if isinstance(value, os.PathLike) and "\n" not in text:
        return text if len(text) < LONGEST_PATH else f"{text[:60]} ... {text[-60:]}"
    return text if len(text) < 60 and "\n" not in text else type(value).__name__


def nearest(name: object, choices: Iterable[object]) -> str:
    """Return " Did you mean X?" for the closest of `choices`, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(c) for c in choices], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[object], limit: int = 20) -> str:
    """Return `names` as one comma-separated list, cut after `limit`."""
    words = [str(name) for name in names]
    return ", ".join(words[:limit]) + (", ..." if len(words) > limit else "")
