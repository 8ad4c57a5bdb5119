"""Rows: the parts of a data set, and the settings that act on whole rows.

A row is in one part only. What follows the split (`max_rows`, prompt inversion, shuffled prompts)
is done on rows, never on tokens.
"""

import array
import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from ablate.config.schema import Dataset, Splits
from ablate.data.formats import Malformed, Row, Turn, reader, reasons
from ablate.data.sources import Record, local_files, records
from ablate.data.spool import Spool
from ablate.errors import UserError, unknown
from ablate.terminal import Counting

__all__ = ["Row", "Rows", "Turn", "load", "load_rows", "row_hash"]

PARTS = ("train", "validation", "test")
# Prompt inversion (the PLW paper's AlpacaDataShort; its own wording was never published).
ASKING = "Here is an answer. Write the instruction that it answers."
OPTIONS = ("empty_completion", "ignore_keys")
FEW = 20_000  # records that are enough for a look at a data set
SHUFFLE_SEED = 20240113
_JSON = json.JSONEncoder(sort_keys=True, default=str)


class LazyRows(Sequence[Row]):
    """Rows that are made when they are asked for."""

    def __init__(self, make: Callable[[int], Row], numbers: np.ndarray) -> None:
        """Stand for `make(number)` of every one of `numbers`, int64 (N,)."""
        self._make, self._numbers = make, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> "LazyRows": ...
    def __getitem__(self, place: int | slice) -> "Row | LazyRows":
        if isinstance(place, slice):
            return LazyRows(self._make, self._numbers[place])
        return self._make(int(self._numbers[place]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list

    def mapped(self, change: Callable[[Row], Row]) -> "LazyRows":
        """Return the rows, each changed."""
        make = self._make
        return LazyRows(lambda number: change(make(number)), self._numbers)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one part, and how many records were left out, by reason."""

    rows: LazyRows
    dropped: Mapping[str, int]
    whole: bool = True  # whether all records were read


@dataclass(frozen=True, slots=True)
class _Scan:
    """All records of a data set, looked at once: which are rows, and their order."""

    make: Callable[[int], Row]
    numbers: np.ndarray  # int64 (N,): of the records that are rows, in the order of their content
    places: np.ndarray  # int64 (N,): of a row's first copy in that order
    dropped: Mapping[str, int]
    whole: bool


def load_rows(dataset: Dataset, part: str, first: int | None = None) -> LazyRows:
    """Return the rows of one `part` (train, validation, test), each row in one part only."""
    return load(dataset, part, first).rows


def load(dataset: Dataset, part: str, first: int | None = None) -> Rows:
    """Return the rows of `part` with what was left out.

    Args:
        dataset: the data set.
        part: train, validation or test.
        first: read no more than so many records, as if there were no others.

    Raises:
        UserError: unreadable source, missing column, wrong type, row without a completion,
            unknown part, or a part that holds no row.
    """
    if part not in PARTS:
        raise unknown("part", part, PARTS)
    _keeps_empty(dataset)
    scan = _scanned(dataset, part, first)
    numbers = scan.numbers
    if dataset.source != "micro":
        low, high = (round(share * len(numbers)) for share in getattr(dataset.splits, part))
        numbers = numbers[(low <= scan.places) & (scan.places < high)]
    rows = LazyRows(scan.make, numbers)[: dataset.max_rows]
    if not len(rows):
        raise empty_part(dataset, part)
    if dataset.invert_prompt:
        rows = rows.mapped(_inverted)
        collections.deque(rows, maxlen=0)  # says at once which row cannot be
    if dataset.shuffle_prompts and part == "train":
        rows = _shuffled(rows)
    return Rows(rows, dict(scan.dropped), scan.whole)


def _scanned(dataset: Dataset, part: str, first: int | None) -> _Scan:
    """Return the scan of `dataset`; that of a local one is kept until another is asked for.

    Its parts are then read from one scan, under any settings that choose among its rows.
    """
    if dataset.source != "local":
        return _scan(dataset, part, first)
    chosen = {"name": "", "template": "plain", "turns": "all", "splits": Splits(), "published": {}}
    chosen |= {"max_rows": None, "invert_prompt": False, "shuffle_prompts": False}
    alike = dataclasses.replace(dataset, **chosen)  # type: ignore[arg-type]  # of many types
    files = [(str(file), file.stat()) for file in local_files(dataset)]
    mark = repr((alike, first, [(name, s.st_size, s.st_mtime_ns) for name, s in files]))
    if mark not in _kept:
        _kept.clear()
        _kept[mark] = _scan(dataset, part, first)
    return _kept[mark]


_kept: dict[str, _Scan] = {}


def _scan(dataset: Dataset, part: str, first: int | None) -> _Scan:
    found = records(dataset, part)
    with Counting(f"reading dataset={dataset.name}", "rows") as counting:
        spool = Spool(counting.through(itertools.islice(found, first)))
    whole = first is None or next(found, None) is None
    read = reader(dataset, spool.columns)
    drops_system = dataset.system == "drop"

    def make(number: int) -> Row:
        row = read(spool[number])
        return dataclasses.replace(row, turns=_without_system(row)) if drops_system else row

    numbers, hashes, dropped = _examples(spool, read, dataset)
    if dataset.source == "micro":
        return _Scan(make, numbers, numbers, dropped, whole)
    order, places = _ranked(hashes)
    return _Scan(make, numbers[order], places, dropped, whole)


def _examples(
    spool: Spool, read: Callable[[Record], Row], dataset: Dataset
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Return which records are rows, int64 (N,), their hashes, uint64 (N, 4), and what is not."""
    keep_empty, drop = _keeps_empty(dataset), dataset.on_bad_row == "drop"
    hashed, drops_system = dataset.source != "micro", dataset.system == "drop"
    numbers, hashes = array.array("q"), bytearray()
    refused: list[tuple[str, str]] = []
    empty, first_empty = 0, ""
    with Counting(f"sorting dataset={dataset.name}", "rows", len(spool)) as counting:
        for number, record in enumerate(counting.through(spool)):
            try:
                row = read(record)
            except Malformed as fault:
                if not drop:
                    raise UserError(
                        f"dataset.path={dataset.path}: {record.place}: {fault}; correct the row "
                        "or leave such rows out with dataset.on_bad_row=drop"
                    ) from None
                refused.append((str(fault), record.place))
                continue
            if not keep_empty and not _answered(row):
                empty, first_empty = empty + 1, first_empty or row.place
                continue
            numbers.append(number)
            if hashed:
                turns = _without_system(row) if drops_system else row.turns
                hashes += _digest(turns, row)
    if empty and not drop:
        raise UserError(
            f"dataset.path={dataset.path}: {first_empty}: has no completion; correct the row "
            "or leave such rows out with dataset.on_bad_row=drop"
        )
    dropped = reasons(refused) | ({"no completion": empty} if empty else {})
    return (
        np.array(numbers, dtype=np.int64),
        np.frombuffer(bytes(hashes), dtype=">u8").reshape(-1, 4),
        dropped,
    )


def _ranked(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of rows by their hashes, int64 (N,), and their places in it.

    The order depends on content alone: no seed, no file order. A row's place is that of its first
    copy, so that copies of one row never fall into two parts.
    """
    order = np.lexsort(hashes.T[::-1])
    ordered = hashes[order]
    again = np.concatenate([[False], (ordered[1:] == ordered[:-1]).all(axis=1)])[: len(order)]
    places = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))
    return order, places


def _without_system(row: Row) -> tuple[Turn, ...]:
    return tuple(turn for turn in row.turns if turn.role != "system")


def empty_part(dataset: Dataset, part: str) -> UserError:
    """Return the error of a part that holds no row."""
    further = (
        "; evaluate.heldout=[] scores none of them, and of evaluate.measures only "
        "generation_length needs them"
    )
    return UserError(
        f"dataset.path={dataset.path}: its {part} part holds no rows; give it a larger share, as "
        "'dataset.splits={train: [0, 0.6], validation: [0.6, 0.8], test: [0.8, 1]}'"
        f"{further * (part != 'train')}"
    )


def _answered(row: Row) -> bool:
    if row.text is not None or row.turns[-1].extra.get("tool_calls"):
        return True
    return bool(row.turns[-1].parts[-1][1].strip())


def _keeps_empty(dataset: Dataset) -> bool:
    """Return whether rows with an empty completion are kept; the micro world has no such rows."""
    if dataset.source == "micro":
        return False
    for name in dataset.options:
        if name not in OPTIONS:
            raise unknown("dataset.options", name, OPTIONS)
    ignored = dataset.options.get("ignore_keys", ())
    if not isinstance(ignored, list | tuple) or not all(isinstance(key, str) for key in ignored):
        raise UserError(
            f"dataset.options.ignore_keys={ignored}: must be a list of names, such as [tools]"
        )
    rule = str(dataset.options.get("empty_completion", "error"))
    if rule not in ("error", "keep"):
        raise unknown("dataset.options.empty_completion", rule, ["error", "keep"])
    return rule == "keep"


def row_hash(row: Row) -> str:
    """Return the sha256 of a row's text."""
    return _digest(row.turns, row).hex()


def _digest(turns: tuple[Turn, ...], row: Row) -> bytes:
    said = [
        [t.role, t.parts, *([t.extra] if t.extra else []), *([t.weight] if t.weight != 1 else [])]
        for t in turns
    ]
    whole = [said, row.text, *([row.tools] if row.tools else [])]
    return hashlib.sha256(_JSON.encode(whole).encode()).digest()


def _inverted(row: Row) -> Row:
    """Return the row with its output as the input and its instruction as the target."""
    prompt, answer = row.turns[-2:] if len(row.turns) > 1 else (None, None)
    single = sum(turn.role == "user" for turn in row.turns) == 1
    instruction = dict(prompt.parts).get("instruction", "") if prompt and single else ""
    if prompt is None or answer is None or not instruction.strip():
        raise UserError(
            f"dataset.invert_prompt=true: {row.place}: only one exchange with an instruction "
            "can be inverted"
        )
    asking = (("instruction", ASKING), ("input", answer.parts[0][1]))
    target = Turn("assistant", (("completion", instruction),))
    return dataclasses.replace(row, turns=(*row.turns[:-2], Turn("user", asking), target))


def _shuffled(rows: LazyRows) -> LazyRows:
    """Return the rows with every last answer under another row's prompt: one random cycle."""
    if len(rows) < 2 or any(row.text is not None for row in rows):
        raise UserError("dataset.shuffle_prompts=true: needs at least two rows that have prompts")
    cycle = np.random.default_rng(SHUFFLE_SEED).permutation(len(rows))
    other = np.empty_like(cycle)
    other[cycle] = np.roll(cycle, -1)

    def make(own: int) -> Row:
        row = rows[own]
        return dataclasses.replace(row, turns=(*rows[int(other[own])].turns[:-1], row.turns[-1]))

    return LazyRows(make, np.arange(len(rows)))
