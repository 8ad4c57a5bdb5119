"""Tables of tuned learning rates: one row an arm, which is what has a rate of its own.

An arm is a base model, a data set, an adapter at a rank, a start and an optimizer. Model and data
set have the names of their levels and, outside of the micro world, what is in them: part of a hash
of the local files, or the address on the hub. So two files that are both called `local` are two
data sets, and a file that changes is a new one. In the micro world models that differ by their
number are one family: micro_0, micro_1 and micro_2 are micro.
"""

import csv
import functools
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from ablate.config.schema import Cell, Dataset, Model
from ablate.data.hashes import source_hash
from ablate.errors import UserError
from ablate.models.files import resolve
from ablate.results.files import write
from ablate.results.spreadsheet import guarded, unguarded

NEEDED = ("model", "dataset", "adapter", "rank", "lr")
AROUND = {"init": "default", "optimizer": "adamw"}  # and the defaults of these columns
DIGITS = 12  # of a hash


class Arm(NamedTuple):
    """What a rate is tuned for; the order is that of the rows of a table."""

    model: str
    dataset: str
    adapter: str
    init: str
    optimizer: str
    rank: int
    model_content: str
    dataset_content: str


NUMBERS = ("rank", "lr", "loss", "tried")


@dataclass(frozen=True, slots=True)
class Tuned:
    """One row of a table: the learning rate of an arm."""

    model: str
    dataset: str
    adapter: str
    rank: int
    lr: float
    loss: float | None = None  # on the validation split, at this rate
    tried: int | None = None  # how many rates were
    init: str = AROUND["init"]
    optimizer: str = AROUND["optimizer"]
    model_content: str = ""
    dataset_content: str = ""
    edge: str = ""  # low, high: the end of the rates tried; failed: all did. It is not tuned then

    @property
    def arm(self) -> Arm:
        """What the rate is of."""
        return Arm(*(getattr(self, name) for name in Arm._fields))


COLUMNS = tuple(field.name for field in fields(Tuned))
OPTIONAL = COLUMNS[COLUMNS.index("model_content") :]  # in tables that need them


def arm_of(cell: Cell) -> Arm:
    """Return the arm of a cell that is trained.

    Raises:
        UserError: its local model or data set cannot be read.
    """
    content = _of_model(cell.model)
    return Arm(
        model=cell.model.name if content else family(cell.model.name),
        dataset=cell.dataset.name,
        adapter=cell.adapter.name,
        init=cell.init.name,
        optimizer=cell.optimizer.name,
        rank=cell.rank,
        model_content=content,
        dataset_content=_of_data(cell.dataset),
    )


def family(model: str) -> str:
    """Return a model's name without its number."""
    return re.sub(r"_\d+$", "", model)


def _of_model(model: Model) -> str:
    if model.source == "local":
        return resolve(model).content_hash[:DIGITS]
    if model.source == "untrained":
        return _address("untrained", model.path, model.revision)
    return "" if model.source == "micro" else _address(model.path, model.revision)


def _of_data(dataset: Dataset) -> str:
    if dataset.source == "local" and not Path(dataset.path).expanduser().exists():
        return "not here"  # a plan has published sizes for it, but nothing was tuned on it
    if dataset.source == "local":
        return source_hash(dataset)[:DIGITS]
    if dataset.source == "micro":
        return ""
    return _address(dataset.path, dataset.subset, dataset.split, dataset.revision)


def _address(*words: str | None) -> str:
    return " ".join(word for word in words if word)


def read(tables: Iterable[Path]) -> Sequence[Tuned]:
    """Return the tuned rates in `tables`; of one arm that of the last table.

    Raises:
        UserError: a file is no such table.
    """
    # A plan asks thousands of times, so they are remembered.
    return _read(tuple((path, path.stat().st_mtime_ns) for path in tables))


@functools.lru_cache(maxsize=64)
def _read(marks: tuple[tuple[Path, int], ...]) -> tuple[Tuned, ...]:
    rows = (row for path, _ in marks for row in _rows(path))
    return tuple({row.arm: row for row in rows if not row.edge}.values())


def put(rows: Iterable[Tuned], path: Path) -> None:
    """Put `rows` into the table at `path`, in place of older ones of the same arms."""
    known = {row.arm: row for row in (_rows(path) if path.is_file() else [])}
    known |= {row.arm: row for row in rows}
    kept = [known[arm] for arm in sorted(known)]
    columns = [c for c in COLUMNS if c not in OPTIONAL or any(getattr(row, c) for row in kept)]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for row in kept:
        table.writerow({name: guarded(value) for name, value in asdict(row).items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    # Rates of other studies stand in it: whole or not at all.
    write(path.resolve(), text.getvalue().encode())


def _rows(path: Path) -> list[Tuned]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            if not set(NEEDED) <= set(lines.fieldnames or ()):
                raise KeyError
            rows = ({k: unguarded(v) for k, v in line.items()} for line in lines)
            return [_row(row, f"{path}: line {lines.line_num}") for row in rows]
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    except (KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: needs the columns {', '.join(NEEDED)}") from error


def _row(line: dict[str, Any], place: str) -> Tuned:
    """Return a row of a table; the error names its place."""
    try:
        row = _tuned(line)
    except ValueError:
        said = ", ".join(f"{n}={line[n]}" for n in NUMBERS if line.get(n))
        raise UserError(
            f"{place}: {said}: rank and tried are whole numbers, lr and loss numbers"
        ) from None
    if not row.edge and not (0 < row.lr < math.inf and row.rank > 0):
        raise UserError(f"{place}: lr={row.lr}, rank={row.rank}: must be above 0")
    return row


def _tuned(line: dict[str, Any]) -> Tuned:
    words = {name: line[name] for name in ("model", "dataset", "adapter")}
    words |= {name: line.get(name) or usual for name, usual in AROUND.items()}
    words |= {name: line.get(name) or "" for name in OPTIONAL}
    return Tuned(
        **words,
        rank=int(line["rank"]),
        lr=float(line["lr"]),
        loss=float(line["loss"]) if line.get("loss") else None,
        tried=int(line["tried"]) if line.get("tried") else None,
    )
