"""Rows: the parts of a data set, and the settings that act on whole rows.

A row is in one part only. What follows the split (`max_rows`, prompt inversion, shuffled prompts)
is done on rows, never on tokens.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ablate.config.schema import Dataset
from ablate.data.formats import Row, Turn, parse
from ablate.data.sources import records
from ablate.errors import UserError, unknown

__all__ = ["Row", "Rows", "Turn", "load", "load_rows", "row_hash"]

PARTS = ("train", "validation", "test")
# Prompt inversion (the PLW paper's AlpacaDataShort; its own wording was never published).
ASKING = "Here is an answer. Write the instruction that it answers."
OPTIONS = ("empty_completion", "ignore_keys")
SHUFFLE_SEED = 20240113


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one part, and how many records were left out, by reason."""

    rows: list[Row]
    dropped: Mapping[str, int]


def load_rows(dataset: Dataset, part: str) -> list[Row]:
    """Return the rows of one `part` (train, validation, test), each row in one part only."""
    return load(dataset, part).rows


def load(dataset: Dataset, part: str) -> Rows:
    """Return the rows of `part` with what was left out.

    Raises:
        UserError: unreadable source, missing column, wrong type, row without a completion,
            unknown part, or a part that holds no row.
    """
    if part not in PARTS:
        raise unknown("part", part, PARTS)
    keep_empty = _keeps_empty(dataset)
    rows, dropped = parse(records(dataset, part), dataset)
    full = [row for row in rows if _answered(row)]
    if len(full) < len(rows) and not keep_empty:
        first = next(row for row in rows if not _answered(row))
        if dataset.on_bad_row == "error":
            raise UserError(
                f"dataset.path={dataset.path}: {first.place}: has no completion; correct the row "
                "or leave such rows out with dataset.on_bad_row=drop"
            )
        dropped["no completion"] = len(rows) - len(full)
        rows = full
    if dataset.system == "drop":
        rows = [dataclasses.replace(row, turns=_without_system(row)) for row in rows]
    if dataset.source != "micro":
        rows = _part(rows, dataset, part)
    rows = rows[: dataset.max_rows]
    if not rows:
        raise empty_part(dataset, part)
    if dataset.invert_prompt:
        rows = [_inverted(row) for row in rows]
    if dataset.shuffle_prompts and part == "train":
        rows = _shuffled(rows)
    return Rows(rows=rows, dropped=dropped)


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
    said = [
        [t.role, t.parts, *([t.extra] if t.extra else []), *([t.weight] if t.weight != 1 else [])]
        for t in row.turns
    ]
    whole = [said, row.text, *([row.tools] if row.tools else [])]
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


def _part(rows: list[Row], dataset: Dataset, part: str) -> list[Row]:
    """Return the share of `rows` that is `part`, in the order of their content hashes.

    The order depends on content alone: no seed, no file order. A row's place is that of its first
    copy, so that copies of one row never fall into two parts.
    """
    hashes = np.array([row_hash(row) for row in rows])
    order = np.argsort(hashes, kind="stable")
    place = np.searchsorted(hashes[order], hashes[order], side="left")
    low, high = (round(share * len(rows)) for share in getattr(dataset.splits, part))
    return [rows[i] for i in order[(low <= place) & (place < high)]]


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


def _shuffled(rows: list[Row]) -> list[Row]:
    """Return the rows with every last answer under another row's prompt: one random cycle."""
    if len(rows) < 2 or any(row.text is not None for row in rows):
        raise UserError("dataset.shuffle_prompts=true: needs at least two rows that have prompts")
    cycle = np.random.default_rng(SHUFFLE_SEED).permutation(len(rows))
    shuffled = list(rows)
    for own, other in zip(cycle, np.roll(cycle, -1), strict=True):
        turns = (*rows[other].turns[:-1], rows[own].turns[-1])
        shuffled[own] = dataclasses.replace(rows[own], turns=turns)
    return shuffled
