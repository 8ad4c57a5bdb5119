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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ablate import paths
from ablate.config.schema import Dataset
from ablate.data import cache
from ablate.data.backend import tokenizer_hash
from ablate.data.chunks import Chunk, chunk
from ablate.data.formats import reasons
from ablate.data.pieces import Rendered
from ablate.data.rows import Row, load
from ablate.data.tally import NO_ANSWER_LEFT, Tally
from ablate.data.templates import render
from ablate.data.tokenised import Labels, Summary, Tokenised, generation_ratio
from ablate.data.tokenizer import Tokenizer
from ablate.errors import FormError, RowError, UserError
from ablate.terminal import Counting

__all__ = [
    "NO_ANSWER_LEFT", "Labels", "Summary", "Tokenised", "generation_ratio", "summary", "tokenise",
]  # fmt: skip

CHUNK = 512  # rows tokenised at once: fast enough, and small in memory
COLUMNS = ("ids", "starts", "roles", "details", "answers", "weights")
Refused = list[tuple[str, str]]  # why, and the row's place


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be tokenised, and how."""

    dataset: Dataset
    part: str
    max_length: int
    boundary: str
    first: int | None

    def keys(self, tokenizer: str) -> list[str]:
        """Return the keys of the whole part and, where no more is asked for, of its first records.

        Args:
            tokenizer: the hash of the tokenizer.
        """
        settings = {"max_length": self.max_length, "boundary": self.boundary}
        asked = [settings, *([settings | {"first": self.first}] if self.first else [])]
        return [cache.key(self.dataset, self.part, tokenizer, each) for each in asked]


def tokenise(
    dataset: Dataset,
    part: str,
    *,
    tokenizer: Tokenizer,
    max_length: int,
    boundary: str,
    first: int | None = None,
) -> Tokenised:
    """Return the tokenised `part` of `dataset`, from the cache where it is there.

    Its arrays are mapped from files: processes on one machine share their memory.

    Args:
        dataset: the data set.
        part: train, validation or test.
        tokenizer: of the model.
        max_length: tokens at which rows are cut.
        boundary: offset or segment.
        first: the first so many records are enough, as if there were no others.

    Raises:
        UserError: bad rows, a template that does not fit, or nothing left after truncation.
    """
    asked = _Asked(dataset, part, max_length, boundary, first)
    keys = asked.keys(tokenizer.content_hash)
    found = _stored(keys)
    if found is None:
        _make(asked, tokenizer)
        found = _stored(keys)
    if found is None:
        raise UserError(f"ABLATE_CACHE={paths.cache_dir()}: what was written there cannot be read")
    return found


def _stored(keys: Iterable[str]) -> Tokenised | None:
    """Return what is stored, as it was written, under the first of `keys` that has it."""
    found = ((number, _stored_under(key)) for number, key in enumerate(keys))
    return next((replace(data, whole=number == 0) for number, data in found if data), None)


def _stored_under(key: str) -> Tokenised | None:
    found = cache.load(key, COLUMNS)
    if found is None:
        return None
    arrays, facts = found
    if not set(COLUMNS[:-1]) <= set(arrays):
        return None
    weighted = [arrays["weights"]] if "weights" in arrays else []
    content = _hash((arrays["ids"], arrays["roles"], arrays["starts"], *weighted))
    kinds = _hash((arrays["details"], arrays["answers"]))
    if (content, kinds) != (facts["content_hash"], facts["kinds_hash"]):
        return None
    ids, starts = arrays.pop("ids"), arrays.pop("starts")
    ones = np.broadcast_to(np.float32(1), ids.shape)  # takes no memory
    labels = Labels(**{"weights": ones} | arrays)
    return Tokenised(ids=ids, labels=labels, starts=starts, summary=Summary(**facts))


def _hash(arrays: Iterable[np.ndarray]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(array.data)
    return found.hexdigest()


def summary(
    dataset: Dataset,
    part: str,
    *,
    model_folder: Path,
    chat_template: str | None,
    max_length: int,
    boundary: str,
    first: int | None = None,
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
        first: the first so many records are enough, as if there were no others.
    """
    asked = _Asked(dataset, part, max_length, boundary, first)
    keys = asked.keys(tokenizer_hash(model_folder, chat_template))
    info = next(filter(None, map(cache.info, keys)), None)
    return Summary(**info) if info else _make(asked, Tokenizer(model_folder, chat_template))


def _make(asked: _Asked, tokenizer: Tokenizer) -> Summary:
    """Tokenise what is asked for, chunk by chunk, into the cache; return its summary."""
    dataset, part = asked.dataset, asked.part
    loaded = load(dataset, part, asked.first)
    refused: Refused = []
    what = f"tokenising dataset={dataset.name}, {part}"
    with cache.Draft() as draft, Counting(what, "rows", len(loaded.rows)) as counting:
        tally = Tally(draft, asked.max_length)
        for some in _chunks(loaded.rows, dataset, tokenizer, asked.boundary, refused):
            tally.add(some)
            counting.advance(len(some.sizes))
        if refused and len(refused) == len(loaded.rows):
            why, place = refused[0]
            raise UserError(f"dataset.path={dataset.path}: {place}: {why}")
        dropped = Counter(loaded.dropped) + tally.dropped + Counter(reasons(refused))
        if tally.empty:
            told = ", ".join(f"{count} for {reason}" for reason, count in dropped.items())
            raise UserError(
                f"train.max_length={asked.max_length}: no row of dataset.path={dataset.path} is "
                f"left to {part} on ({told}); raise it"
            )
        key = asked.keys(tokenizer.content_hash)[0 if loaded.whole else -1]
        return tally.keep(key, len(loaded.rows) + sum(loaded.dropped.values()), dropped)


def _chunks(
    rows: Sequence[Row], dataset: Dataset, tokenizer: Tokenizer, boundary: str, refused: Refused
) -> Iterator[Chunk]:
    """Yield the tokens of all rows at their full lengths.

    Rows to which no roles can be assigned are put into `refused` instead, with the reason.
    """
    for first in range(0, len(rows), CHUNK):
        some = list(_rendered(rows[first : first + CHUNK], dataset, tokenizer, refused))
        if some:
            found = chunk(some, tokenizer, boundary)
            refused += found.refused
            yield found


def _rendered(
    rows: Iterable[Row], dataset: Dataset, tokenizer: Tokenizer, refused: Refused
) -> Iterator[tuple[Row, Rendered]]:
    for row in rows:
        try:
            yield row, render(row, dataset, tokenizer)
        except RowError as error:
            refused.append((f"{error}{_cure(row, dataset, tokenizer)}", row.place))
        except FormError as error:
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
