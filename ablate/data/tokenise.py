"""A data set as two flat arrays, token ids and roles, cached by content.

Roles come from character offsets, under one of two boundary rules, the same for every cell:

    offset   a token has the role of its first character that is no white space
    segment  a token belongs to the answer from the position on that is the token count of the
             prompt tokenised alone (Stanford Alpaca's preprocess; lm-eval's context/continuation)

Both rules give the same ids; only roles of tokens that straddle a boundary differ. Rows longer
than `max_length` are cut on the right; a row that would lose its whole completion is left out and
counted. Neither depends on masking or PLW, so all cells of a replicate see the same examples.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ablate.config.schema import Dataset
from ablate.data import cache
from ablate.data.backend import tokenizer_hash
from ablate.data.formats import reasons
from ablate.data.pieces import Rendered
from ablate.data.rows import Row, load
from ablate.data.spans import token_roles
from ablate.data.templates import render
from ablate.data.tokenizer import Tokenizer
from ablate.errors import RowError, UserError
from ablate.roles import DETAILS, NAMES, Role

CHUNK = 512  # rows tokenised at once: fast enough, and small in memory
PROMPT = ("system", "instruction", "input")  # what Rg counts: no template, no tags
NO_ANSWER_LEFT = "completion beyond max_length"
NO_TARGET = "a single token"
Refused = list[tuple[str, str]]  # why, and the row's place


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The counts and ratios of a tokenised data set that plans and records need."""

    content_hash: str
    counts: Mapping[str, int]  # targets per role name
    rows: int
    rows_in: int
    truncated: int  # rows kept, but cut at max_length
    dropped: Mapping[str, int]
    tokens: int
    mean_length: float
    max_length: int  # of the longest row, after truncation
    largest_id: int
    rg_tokens: float | None  # after truncation
    rg_before_truncation: float | None
    details: Mapping[str, int] = field(default_factory=dict)  # targets per detail name
    answers: int = 1  # the most that a row has
    # Rows by how many answers they have, a number as JSON has it; empty where it is not known.
    rows_by_answers: Mapping[str, int] = field(default_factory=dict)
    kinds_hash: str = ""  # sha256 over details and answers


@dataclass(frozen=True, slots=True)
class Labels:
    """What is known of the tokens of one row, or of all rows, beside their ids."""

    roles: np.ndarray  # uint8 (T,)
    details: np.ndarray  # uint8 (T,)
    answers: np.ndarray  # int16 (T,): number of the answer, -1 outside
    weights: np.ndarray  # float32 (T,): of messages and rows

    @classmethod
    def of(cls, roles: np.ndarray) -> "Labels":
        """Return the labels of tokens of which no more than their roles is known."""
        return cls(
            roles,
            np.zeros(len(roles), dtype=np.uint8),
            np.full(len(roles), -1, dtype=np.int16),
            np.ones(len(roles), dtype=np.float32),
        )

    def cut(self, part: slice) -> "Labels":
        """Return the labels of a part of the tokens."""
        return Labels(self.roles[part], self.details[part], self.answers[part], self.weights[part])


@dataclass(frozen=True, slots=True, eq=False)
class Tokenised:
    """Token ids and labels of all rows, one after the other."""

    ids: np.ndarray  # int32 (T,)
    labels: Labels
    starts: np.ndarray  # int64 (N+1,): row i is starts[i]:starts[i+1]
    summary: Summary

    @property
    def roles(self) -> np.ndarray:
        """The role of every token, uint8 (T,)."""
        return self.labels.roles

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int64 (N,)."""
        return np.diff(self.starts)

    @property
    def content_hash(self) -> str:
        """sha256 over ids, roles and starts."""
        return self.summary.content_hash

    @property
    def counts(self) -> Mapping[str, int]:
        """Targets per role name; the first token of a row is never a target."""
        return self.summary.counts

    @property
    def rows_in(self) -> int:
        """Rows before any was left out."""
        return self.summary.rows_in

    @property
    def dropped(self) -> Mapping[str, int]:
        """Rows left out, by reason."""
        return self.summary.dropped

    @property
    def rg_tokens(self) -> float | None:
        """Generation ratio of the rows as trained, after truncation; None without a prompt."""
        return self.summary.rg_tokens

    @property
    def rg_before_truncation(self) -> float | None:
        """Generation ratio of all rows before truncation; None without a prompt."""
        return self.summary.rg_before_truncation

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and roles of one row."""
        part = slice(self.starts[number], self.starts[number + 1])
        return self.ids[part], self.roles[part]

    def labels_of(self, number: int) -> Labels:
        """Return the labels of one row."""
        return self.labels.cut(slice(self.starts[number], self.starts[number + 1]))

    def prompt_ids(self, number: int) -> np.ndarray:
        """Return the ids of one row before its first completion token."""
        ids, roles = self.row(number)
        answer = np.flatnonzero(roles == Role.COMPLETION)
        return ids[: answer[0]] if len(answer) else ids

    def answer_ids(self, number: int) -> np.ndarray:
        """Return the completion ids of one row, stop tokens included."""
        ids, roles = self.row(number)
        return ids[roles == Role.COMPLETION]


def generation_ratio(counts: Mapping[str, int]) -> float | None:
    """Return summed completion / summed system, instruction and input tokens."""
    prompt = sum(counts.get(name, 0) for name in PROMPT)
    return counts.get("completion", 0) / prompt if prompt else None


def tokenise(
    dataset: Dataset, part: str, *, tokenizer: Tokenizer, max_length: int, boundary: str
) -> Tokenised:
    """Return the tokenised `part` of `dataset`, from the cache where it is there.

    Raises:
        UserError: bad rows, a template that does not fit, or nothing left after truncation.
    """
    settings = {"max_length": max_length, "boundary": boundary}
    key = cache.key(dataset, part, tokenizer.content_hash, settings)
    found = cache.load(key)
    if found is not None:
        arrays, info = found
        ids, starts = arrays.pop("ids"), arrays.pop("starts")
        labels = Labels(**arrays)
        if _content_hash(ids, labels, starts) == info["content_hash"]:
            return Tokenised(ids=ids, labels=labels, starts=starts, summary=Summary(**info))
    made = _make(dataset, part, tokenizer, max_length, boundary)
    arrays = {"ids": made.ids, "starts": made.starts}
    arrays |= {f.name: getattr(made.labels, f.name) for f in fields(Labels)}
    cache.save(key, arrays, asdict(made.summary))
    return made


def summary(
    dataset: Dataset,
    part: str,
    *,
    model_folder: Path,
    chat_template: str | None,
    max_length: int,
    boundary: str,
) -> Summary:
    """Return the summary of `tokenise`, without its arrays where it is cached.

    Microseconds where cached: a plan asks for every one of its cells.

    Args:
        dataset: the data set.
        part: train, validation or test.
        model_folder: the folder of the model's tokenizer.
        chat_template: a file that overrides the folder's chat template.
        max_length: tokens at which rows are cut.
        boundary: offset or segment.
    """
    settings = {"max_length": max_length, "boundary": boundary}
    key = cache.key(dataset, part, tokenizer_hash(model_folder, chat_template), settings)
    info = cache.info(key)
    if info is None:
        tokenizer = Tokenizer(model_folder, chat_template)
        made = tokenise(
            dataset, part, tokenizer=tokenizer, max_length=max_length, boundary=boundary
        )
        return made.summary
    return Summary(**info)


def _make(
    dataset: Dataset, part: str, tokenizer: Tokenizer, max_length: int, boundary: str
) -> Tokenised:
    loaded = load(dataset, part)
    dropped = Counter(loaded.dropped)
    ids, labels, full = [], [], Counter[str]()
    truncated = 0
    refused: Refused = []
    for row_ids, row_labels in _encoded(loaded.rows, dataset, tokenizer, boundary, refused):
        full.update(_counted(row_labels.roles))
        kept = row_labels.cut(slice(max_length))
        reason = _why_dropped(kept.roles)
        if reason:
            dropped[reason] += 1
        else:
            truncated += len(row_ids) > max_length
            ids.append(row_ids[:max_length])
            labels.append(kept)
    rows_in = len(loaded.rows) + sum(loaded.dropped.values())
    if refused and len(refused) == len(loaded.rows):
        why, place = refused[0]
        raise UserError(f"dataset.path={dataset.path}: {place}: {why}")
    dropped.update(reasons(refused))
    if not ids:
        told = ", ".join(f"{count} for {reason}" for reason, count in dropped.items())
        raise UserError(
            f"train.max_length={max_length}: no row of dataset.path={dataset.path} is left to "
            f"{part} on ({told}); raise it"
        )
    starts = np.cumsum([0, *map(len, ids)]).astype(np.int64)
    flat_ids, flat = np.concatenate(ids), _joined(labels)
    known = {"rows_in": rows_in, "truncated": int(truncated), "dropped": dict(dropped)}
    known["rg_before_truncation"] = generation_ratio(full)
    summed = _summarised(flat_ids, flat, starts, known)
    return Tokenised(ids=flat_ids, labels=flat, starts=starts, summary=summed)


def _joined(labels: list[Labels]) -> Labels:
    return Labels(*(np.concatenate([getattr(r, f.name) for r in labels]) for f in fields(Labels)))


def _summarised(
    ids: np.ndarray, labels: Labels, starts: np.ndarray, known: dict[str, Any]
) -> Summary:
    targets = np.ones(len(ids), dtype=bool)
    targets[starts[:-1]] = False
    answers_N = 1 + np.maximum.reduceat(labels.answers, starts[:-1])
    return Summary(
        content_hash=_content_hash(ids, labels, starts),
        counts=_counted(labels.roles[targets]),
        rows=len(starts) - 1,
        tokens=len(ids),
        mean_length=len(ids) / (len(starts) - 1),
        max_length=int(np.diff(starts).max()),
        largest_id=int(ids.max()),
        rg_tokens=generation_ratio(_counted(labels.roles)),
        details=_counted(labels.details[targets], ("", *DETAILS)),
        answers=max(1, int(answers_N.max())),
        rows_by_answers={str(n): c for n, c in sorted(Counter(answers_N.tolist()).items())},
        kinds_hash=_kinds_hash(labels),
        **known,
    )


def _content_hash(ids: np.ndarray, labels: Labels, starts: np.ndarray) -> str:
    """Return the hash of what every objective depends on; weights that are all 1 are none."""
    weighted = [labels.weights] if (labels.weights != 1).any() else []
    content = b"".join(array.tobytes() for array in (ids, labels.roles, starts, *weighted))
    return hashlib.sha256(content).hexdigest()


def _kinds_hash(labels: Labels) -> str:
    """Return the hash of what only objectives depend on that tell details or answers apart."""
    content = labels.details.tobytes() + labels.answers.tobytes()
    return hashlib.sha256(content).hexdigest()


def _counted(values: np.ndarray, names: Sequence[str] = NAMES) -> dict[str, int]:
    """Return how often each name's number occurs, where it does."""
    counts = np.bincount(values, minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count and name}


def _why_dropped(roles: np.ndarray) -> str:
    """Return why a row with these roles, already cut, has nothing to train; empty where it has."""
    if len(roles) < 2:
        return NO_TARGET
    learnt = np.isin(roles[1:], (Role.COMPLETION, Role.TEXT))
    return "" if learnt.any() else NO_ANSWER_LEFT


def _encoded(
    rows: list[Row], dataset: Dataset, tokenizer: Tokenizer, boundary: str, refused: Refused
) -> Iterator[tuple[np.ndarray, Labels]]:
    """Yield ids (int32) and labels of every row at its full length.

    Rows to which no roles can be assigned are put into `refused` instead, with the reason.
    """
    for first in range(0, len(rows), CHUNK):
        some = list(_rendered(rows[first : first + CHUNK], dataset, tokenizer, refused))
        encoded = tokenizer.encode_all([rendered.text for _, rendered in some])
        for (row, rendered), tokens in zip(some, encoded, strict=True):
            try:
                found = token_roles(rendered, tokens, boundary=boundary, tokenizer=tokenizer)
            except RowError as error:
                refused.append((str(error), row.place))
                continue
            lead = [tokenizer.bos] if rendered.add_bos else []
            ids = np.concatenate([np.array(lead, dtype=np.int32), tokens.ids])
            labels = _labels(rendered, *found, lead=len(lead))
            np.multiply(labels.weights, np.float32(row.weight), out=labels.weights)
            yield ids, labels


def _labels(rendered: Rendered, roles: np.ndarray, owners: np.ndarray, *, lead: int) -> Labels:
    """Return the labels of a row's tokens; `lead` of them stand before its text."""
    kinds = [span.kind for span in rendered.spans]
    own = np.array([kind.role for kind in kinds], dtype=np.uint8)[owners] == roles
    details = np.array([kind.detail for kind in kinds], dtype=np.uint8)[owners]
    answers = np.array([kind.answer for kind in kinds], dtype=np.int16)[owners]
    weights = np.array([kind.weight for kind in kinds], dtype=np.float32)[owners]
    return Labels(
        roles=np.concatenate([np.full(lead, Role.SPECIAL, dtype=np.uint8), roles]),
        details=np.concatenate([np.zeros(lead, dtype=np.uint8), np.where(own, details, 0)]),
        answers=np.concatenate([np.full(lead, -1, dtype=np.int16), answers]),
        weights=np.concatenate([np.ones(lead, dtype=np.float32), weights]),
    )


def _rendered(
    rows: list[Row], dataset: Dataset, tokenizer: Tokenizer, refused: Refused
) -> Iterator[tuple[Row, Rendered]]:
    for row in rows:
        try:
            yield row, render(row, dataset, tokenizer)
        except RowError as error:
            refused.append((f"{error}{_cure(row, dataset, tokenizer)}", row.place))
        except UserError as error:
            raise UserError(f"{error} ({row.place})") from None


def _cure(row: Row, dataset: Dataset, tokenizer: Tokenizer) -> str:
    """Return what would let the template take a row that it refuses; "" where nothing is known."""
    if dataset.system != "keep" or all(turn.role != "system" for turn in row.turns):
        return ""
    try:
        render(row, replace(dataset, system="fold"), tokenizer)
    except UserError:
        return ""
    return " (dataset.system=fold puts its system text into the first request)"
