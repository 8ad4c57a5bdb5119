"""A tokenised data set: two flat arrays, token ids and labels, and the counts that plans need."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ablate.roles import Role

PROMPT = ("system", "instruction", "input")  # what Rg counts: no template, no tags


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

    def where(self, kept: np.ndarray) -> "Labels":
        """Return the labels of the tokens that are kept, bool (T,)."""
        return Labels(self.roles[kept], self.details[kept], self.answers[kept], self.weights[kept])

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
    whole: bool = True  # whether all records were read, or the first alone

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
