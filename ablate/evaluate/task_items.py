"""How many items a benchmark has and how many of them are scored, without its data where it can be.

A limit holds for each of lm-eval's tasks that a name stands for: of a group for every part.
"""

import functools
import glob
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablate.config.schema import Evaluate
from ablate.data.sources import read_file
from ablate.errors import UserError
from ablate.evaluate.tasks_index import (
    OF_THE_MICRO_WORLD,
    find,
    parts,
    published,
    task_files,
    task_settings,
)
from ablate.micro import exercises
from ablate.micro import tasks as micro

READABLE = {"json", "csv", "parquet"}  # of `datasets`: the rows of a task lie in files here
LARGE = 2**26  # bytes of a file that is not read for the number of its rows


def counts(name: str) -> Sequence[int] | None:
    """Return the items of each of lm-eval's tasks that `name` stands for; None: not known.

    Of a published group the parts are taken to be equal.
    """
    if name in micro.TASKS:
        return [micro.ITEMS]
    if name in exercises.TASKS:
        return [len(exercises.items()[name])]
    if name in published():
        row = published()[name]
        parts, every = int(row["parts"]), int(row["items"])
        return [every // parts + (part < every % parts) for part in range(parts)]
    source = find(name)
    if source.path is None:
        return None
    found = [_in_files(task_settings(file)) for file in task_files(source.path)]
    known = [count for count in found if count is not None]
    return known if len(known) == len(found) else None


def scored(
    name: str, limit: int | None, chosen: Mapping[str, Collection[int]] | None = None
) -> int | None:
    """Return how many items of a benchmark are scored; None: not known.

    Args:
        name: of the benchmark.
        limit: the first so many of each of its tasks.
        chosen: the items that alone are scored, by task; a task that is not there has all.
    """
    some = [len(own) for own in (chosen or {}).values()]
    left = [part for part in parts(name) if part not in chosen] if chosen else []
    if some and not left:
        return sum(some)
    found = counts(name)
    if found is None:
        return None
    if some:
        found = [count for part, count in zip(parts(name), found, strict=True) if part in left]
    return sum(some) + sum(min(count, limit or count) for count in found)


def left_unscored(evaluate: Evaluate) -> str:
    """Return of which benchmarks `evaluate.limit` may leave items unscored; "" for none.

    What the levels for the micro world leave of its own benchmarks is their plan: no word on it.
    """
    limit = evaluate.limit
    others = [name for name in evaluate.tasks if name not in OF_THE_MICRO_WORLD]
    told = [text for name in others if limit is not None and (text := _told(name, limit))]
    if not told:
        return ""
    return f"evaluate.limit={limit}: {'; '.join(told)}; evaluate.limit=null scores all"


def _told(name: str, limit: int) -> str:
    """Return what of a benchmark is scored, where it is not known to be all; "" where it is."""
    found = counts(name)
    if found is None:
        return f"{name} is scored on at most the first {limit:,} items"
    if sum(found) <= limit:
        return ""
    if len(found) == 1:
        return f"{name} is scored on the first {limit:,} of {found[0]:,} items"
    return (
        f"{name} is scored on at most the first {limit:,} items of each of its {len(found)} tasks, "
        f"which have {sum(found):,}"
    )


def _in_files(settings: Mapping[str, Any]) -> int | None:
    """Return how many rows the files of a task's scored split hold; None: not known."""
    split = settings.get("test_split") or settings.get("validation_split")
    kwargs = settings.get("dataset_kwargs") or {}
    given = kwargs.get("data_files")
    files = given.get(split) if isinstance(given, Mapping) else given
    if settings.get("dataset_path") not in READABLE or "custom_dataset" in settings or not files:
        return None
    folder = Path(kwargs.get("data_dir") or "")
    patterns = [str(folder / name) for name in ([files] if isinstance(files, str) else files)]
    found = [_rows(Path(file)) for one in patterns for file in glob.glob(one) or [one]]
    known = [count for count in found if count is not None]
    return sum(known) if len(known) == len(found) else None


def _rows(file: Path) -> int | None:
    """Return the rows of a file; None where it is not there, is large, or cannot be read."""
    if not file.is_file() or file.stat().st_size > LARGE:
        return None
    return _count(file.resolve(), file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _count(file: Path, changed: int) -> int | None:
    try:
        return sum(1 for _ in read_file(file))
    except UserError:  # told where it is scored
        return None
