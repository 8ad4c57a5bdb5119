"""A recorded cell by the name that a user gives it: its folder, or its key and its results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablate.errors import UserError, nearest
from ablate.results.record import RECORD
from ablate.results.store import Store

FORMS = "OUT/cells/KEY, or KEY and OUT"
SHOWN = 4  # records that are named


def named(verb: str, words: Sequence[str], *, default: str) -> Path:
    """Return the folder of the record that the words of a command name.

    A cell is OUT/cells/KEY or, in two words, KEY OUT. A unique beginning of a key is enough.

    Args:
        verb: the command, for messages.
        words: what it was given.
        default: the folder of results of a key alone.

    Raises:
        UserError: there is no such record, or there are several.
    """
    if not 1 <= len(words) <= 2:
        raise UserError(f"{verb}: takes one cell: {FORMS}")
    cell = Path(words[0])
    if len(words) == 2:
        return find(Path(words[1].removeprefix("out=")) / "cells" / words[0])
    if len(cell.parts) == 1 and not (cell / RECORD).is_file():
        return find(Path(default) / "cells" / words[0])
    return find(cell)


def find(cell: str | Path) -> Path:
    """Return the folder of the one record that `cell` names: OUT/cells/KEY, or how it begins.

    Raises:
        UserError: there is none, or several begin so.
    """
    given = Path(cell)
    if (given / RECORD).is_file():
        return given
    known = sorted(path.parent for path in given.parent.glob(f"*/{RECORD}"))
    found = [path for path in known if path.name.startswith(given.name)]
    if len(found) == 1 and given.name:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found[:SHOWN])
        raise UserError(f"{cell}: {len(found)} records begin so ({names}); write more of the key")
    near = nearest(given.name, [path.name for path in known])
    here = ", ".join(path.name for path in known[:SHOWN])
    here += f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    told = f" Recorded in {given.parent}: {here}." if known else ""
    raise UserError(f"{cell}: no record here; name a cell as {FORMS}.{near}{told}")


def record_in(folder: Path) -> dict[str, Any]:
    """Return the record in a folder that `find` returned.

    Raises:
        UserError: it is damaged.
    """
    store = Store(folder.parents[1])
    record = store.record(folder.name)
    if record is None:
        raise UserError(
            f"{folder}: is damaged ({store.fault(folder.name)}); its sweep, started again, trains "
            "it anew"
        )
    return record
