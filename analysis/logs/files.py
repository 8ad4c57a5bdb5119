"""Files of JSON as other programs write them; what cannot be read is told in a line."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from analysis.errors import AnalysisError

ENCODING = "utf-8-sig"  # UTF-8, with a byte order mark or without
PACKED = ".gz"
CUT_OFF = "was the file cut off while written?"


def json_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None where it holds something else."""
    try:
        found = json.loads(path.read_text(encoding=ENCODING))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def damage(path: Path) -> str:
    """Return in words why a file holds no JSON; "" where it does."""
    try:
        text = path.read_text(encoding=ENCODING)
        if not text.strip():
            return "is empty"
        json.loads(text)
    except UnicodeDecodeError:
        return "is no text in UTF-8"
    except (ValueError, RecursionError):
        return f"is no JSON; {CUT_OFF}"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file with one JSON object a line, packed by gzip where it ends so.

    Raises:
        AnalysisError: a line is none, or the file is no text in UTF-8 or a damaged archive.
    """
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _object(path, number, line)
    except UnicodeDecodeError:
        raise AnalysisError(
            f"{path}: is no text in UTF-8 (after line {number}); write it anew in UTF-8"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise AnalysisError(f"{path}: cannot be read: {error}; {CUT_OFF}") from None


def _opened(path: Path) -> TextIO:
    if path.suffix == PACKED:
        return gzip.open(path, "rt", encoding=ENCODING)
    return path.open(encoding=ENCODING)


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise AnalysisError(f"{path}: line {number} is no JSON object; {CUT_OFF}")
    return found
