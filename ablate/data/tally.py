"""The summary of a tokenised part, counted while its rows come in, and its columns on disk."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from ablate.data.cache import Draft
from ablate.data.chunks import Chunk
from ablate.data.tokenised import Labels, Summary, generation_ratio
from ablate.roles import DETAILS, NAMES, Role

NO_ANSWER_LEFT = "completion beyond max_length"
NO_TARGET = "a single token"
BLOCK = 1 << 20  # tokens


class Tally:
    """What is known of the rows so far; their tokens are in a draft of the cache."""

    def __init__(self, draft: Draft, max_length: int) -> None:
        """Begin without rows.

        Args:
            draft: takes the columns.
            max_length: tokens at which rows are cut.
        """
        self._draft, self._most = draft, max_length
        self.dropped: Counter[str] = Counter()  # rows, by reason
        self._sizes: list[np.ndarray] = []
        self._tokens = self._truncated = self._largest = 0
        self._weighted = False
        self._full: Counter[str] = Counter()  # tokens per role before rows were cut
        self._cut: Counter[str] = Counter()  # and after it
        self._targets: Counter[str] = Counter()
        self._details: Counter[str] = Counter()
        self._answers: Counter[int] = Counter()

    @property
    def empty(self) -> bool:
        """Whether no row was kept."""
        return not self._sizes

    def add(self, some: Chunk) -> None:
        """Take the rows of a chunk, cut at `max_length`, that have something to train on.

        Raises:
            UserError: the cache cannot be written.
        """
        roles, sizes = some.labels.roles, some.sizes
        self._full.update(counted(roles))
        rows = np.repeat(np.arange(len(sizes)), sizes)
        places = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        within = places < self._most
        learnt = within & (places > 0) & np.isin(roles, (Role.COMPLETION, Role.TEXT))
        single = np.minimum(sizes, self._most) < 2
        good = ~single & (np.bincount(rows[learnt], minlength=len(sizes)) > 0)
        for reason, count in (
            (NO_TARGET, int(single.sum())),
            (NO_ANSWER_LEFT, int((~single & ~good).sum())),
        ):
            if count:
                self.dropped[reason] += count
        self._truncated += int((good & (sizes > self._most)).sum())
        if good.any():
            kept = within & good[rows]
            lengths = np.minimum(sizes, self._most)[good]
            self._take(some.ids[kept], some.labels.where(kept), places[kept] > 0, lengths)

    def _take(
        self, ids: np.ndarray, labels: Labels, targets: np.ndarray, lengths: np.ndarray
    ) -> None:
        self._sizes.append(lengths)
        self._largest = max(self._largest, int(ids.max()))
        self._cut.update(counted(labels.roles))
        self._targets.update(counted(labels.roles[targets]))
        self._details.update(counted(labels.details[targets], ("", *DETAILS)))
        starts = np.cumsum(lengths) - lengths
        self._answers.update((1 + np.maximum.reduceat(labels.answers, starts)).tolist())
        columns = {"ids": ids, "roles": labels.roles}
        columns |= {"details": labels.details, "answers": labels.answers}
        self._draft.add(columns)
        if not self._weighted and (labels.weights != 1).any():
            self._weighted = True
            for first in range(0, self._tokens, BLOCK):
                ones = np.ones(min(BLOCK, self._tokens - first), dtype=np.float32)
                self._draft.add({"weights": ones})
        if self._weighted:
            self._draft.add({"weights": labels.weights})
        self._tokens += len(ids)

    def keep(self, key: str, rows_in: int, dropped: Mapping[str, int]) -> Summary:
        """Store the columns and their summary in the cache; return the summary.

        Args:
            key: under which they are stored.
            rows_in: rows before any was left out.
            dropped: how many rows were left out, by reason.
        """
        sizes = np.concatenate(self._sizes)
        self._draft.add({"starts": np.cumsum([0, *sizes], dtype=np.int64)})
        # What every objective depends on; weights that are all 1 are none.
        content = ["ids", "roles", "starts", *["weights"] * self._weighted]
        kinds = ["details", "answers"]  # what only objectives depend on that tell these apart
        found = Summary(
            content_hash=self._draft.hashed(content),
            counts=_ordered(self._targets, NAMES),
            rows=len(sizes),
            rows_in=rows_in,
            truncated=self._truncated,
            dropped=dict(dropped),
            tokens=self._tokens,
            mean_length=self._tokens / len(sizes),
            max_length=int(sizes.max()),
            largest_id=self._largest,
            rg_tokens=generation_ratio(self._cut),
            rg_before_truncation=generation_ratio(self._full),
            details=_ordered(self._details, DETAILS),
            answers=max(1, *self._answers),
            rows_by_answers={str(n): c for n, c in sorted(self._answers.items())},
            kinds_hash=self._draft.hashed(kinds),
        )
        self._draft.keep(key, [*content, *kinds], asdict(found))
        return found


def counted(values: np.ndarray, names: Sequence[str] = NAMES) -> dict[str, int]:
    """Return how often each name's number occurs, where it does."""
    counts = np.bincount(values, minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count and name}


def _ordered(counts: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    return {name: counts[name] for name in names if name in counts}
