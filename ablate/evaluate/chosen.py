"""The items that `evaluate.items` chooses, by task: a table of the user's, read and checked.

A row has a column `task`, the name that a score has (of a group of tasks the name of one of them),
and a column `doc_id`, or else `item`: the number of the item in lm-eval's order, counted from 0, as
`items.parquet` and the report have it. Other columns say nothing here: the items of a task are
those of all rows, whatever data set or base model they were chosen on, so that all cells of a study
are scored on the same items. A benchmark without a row is scored on all of its items. No torch.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablate.config.schema import Evaluate
from ablate.data.sources import Record, read_table
from ablate.errors import UserError, nearest
from ablate.evaluate.task_items import counts
from ablate.evaluate.tasks_index import OF_THE_MICRO_WORLD, find, parts

SETTING = "evaluate.items"
TASK, IDS = "task", ("doc_id", "item")  # columns; the first of IDS that a row has
LARGEST = 2**31 - 1

Ids = Mapping[str, tuple[int, ...]]  # by task, ascending


def with_chosen(evaluate: Evaluate) -> Evaluate:
    """Return `evaluate` with the items that its table chooses of its benchmarks.

    Raises:
        UserError: the table cannot be read, names what is no task or no item, or has no item of
            the benchmarks.
    """
    if evaluate.items is None:
        return evaluate
    table = _read_now(evaluate.items)
    asked = dict.fromkeys(part for name in evaluate.tasks for part in parts(name))
    _check_others(evaluate.items, table, asked)
    chosen = {task: table[task] for task in sorted(table) if task in asked}
    if evaluate.tasks and not chosen:
        raise UserError(
            f"{SETTING}={evaluate.items}: has no item of evaluate.tasks ({_listed(asked)}); it has "
            f"items of {_listed(table)}"
        )
    for task in chosen.keys() & set(OF_THE_MICRO_WORLD):  # of others the data say it
        (count,) = counts(task) or (0,)
        check_ids(evaluate.items, task, chosen[task], count)
    return replace(evaluate, chosen=chosen)


def of(evaluate: Evaluate, name: str) -> Ids:
    """Return the chosen items of a benchmark, by its tasks; a task that is not there has all.

    Raises:
        ValueError: the table was not read yet.
    """
    if evaluate.items is None:
        return {}
    if evaluate.chosen is None:
        raise ValueError(f"{SETTING}={evaluate.items}: with_chosen was not called")
    known = evaluate.chosen
    return {part: known[part] for part in parts(name) if part in known} if known else {}


def told(evaluate: Evaluate) -> str:
    """Return what is scored of the benchmarks where a table chooses items; "" where none does."""
    some = [name for name in evaluate.tasks if of(evaluate, name)]
    if evaluate.items is None or not some:
        return ""
    whole = [name for name in evaluate.tasks if name not in some]
    rest = sorted(_read_now(evaluate.items).keys() - (evaluate.chosen or {}).keys())
    text = (
        f"{SETTING}={evaluate.items}: of {_listed(some)} chosen items alone are scored; scores on "
        "them are no scores of the benchmark"
    )
    text += f"; all items of {_listed(whole)}, which it has none of" if whole else ""
    return text + (f"; {_listed(rest)} in it is not in evaluate.tasks" if rest else "")


def check_ids(file: str | None, task: str, ids: Iterable[int], count: int) -> None:
    """Check that a task of `count` items has the items `ids`, which are ascending.

    Raises:
        UserError: it has not.
    """
    for one in ids:
        if one >= count:
            raise UserError(
                f"{SETTING}={file}: {task} has no item {one}: its {count:,} items are 0 to "
                f"{count - 1}"
            )


def _check_others(file: str, table: Ids, asked: Iterable[str]) -> None:
    """Raise where a task that is not asked for is none at all, as after a slip."""
    for task in table.keys() - set(asked):
        try:
            find(task)
        except UserError:
            near = nearest(task, asked)
            raise UserError(
                f"{SETTING}={file}: task={task}: no such task, in evaluate.tasks ({_listed(asked)})"
                f" or elsewhere.{near}"
            ) from None


def _listed(names: Iterable[str], most: int = 8) -> str:
    found = list(names)
    return ", ".join(found[:most]) + (", ..." if len(found) > most else "")


def _read_now(given: str) -> Ids:
    """Return the items of a table as it is now; it is read again only where it was changed."""
    try:
        file = Path(given).expanduser()
        changed = file.stat().st_mtime_ns if file.is_file() else 0
    except (RuntimeError, OSError, ValueError):  # told where it is read
        file, changed = Path(given), 0
    return _read(given, file, file.absolute(), changed)


@functools.lru_cache(maxsize=16)
def _read(given: str, file: Path, place: Path, changed: int) -> Ids:
    """Return the items of a table; `place` and `changed` tell it from another one."""
    found: dict[str, set[int]] = {}
    for record in read_table(SETTING, file):
        task, number = _row(given, record)
        found.setdefault(task, set()).add(number)
    if not found:
        raise UserError(f"{SETTING}={given}: holds no items")
    return {task: tuple(sorted(own)) for task, own in found.items()}


def _row(given: str, record: Record) -> tuple[str, int]:
    """Return the task and the number of the item of a row."""
    fields = record.fields
    name = next((name for name in IDS if name in fields), None)
    if TASK not in fields or name is None:
        missing = TASK if TASK not in fields else " or ".join(IDS)
        raise UserError(
            f"{SETTING}={given}: {record.place}: has no column {missing}; it has {_listed(fields)}"
        )
    task = fields[TASK]
    if not isinstance(task, str) or not task:
        raise UserError(f"{SETTING}={given}: {record.place}: task={task}: must be a task's name")
    return task, _number(f"{SETTING}={given}: {record.place}: {name}", task, fields[name])


def _number(place: str, task: str, value: Any) -> int:
    """Return the number of an item, which may stand behind its task's name: "micro_lives:12"."""
    text = str(value).removeprefix(f"{task}:").strip()
    number = int(text) if text.isdecimal() and text.isascii() and len(text) <= 10 else -1
    if isinstance(value, bool) or not 0 <= number <= LARGEST:
        raise UserError(f"{place}={value}: must be the number of an item, counted from 0")
    return number
