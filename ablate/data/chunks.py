"""Tokenised rows, a chunk of them at once: flat arrays of ids and labels.

What `spans.token_roles` says of one row is said here of all tokens of a chunk by operations on
arrays; a row of which anything is unusual is handed to `token_roles` itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ablate.data.pieces import Kind, Rendered
from ablate.data.rows import Row
from ablate.data.spans import bare, token_roles
from ablate.data.tokenised import Labels
from ablate.data.tokenizer import Encoded, Tokenizer
from ablate.errors import RowError
from ablate.roles import Role

# All characters that `str.isspace` knows are below; a test counts them.
_BLANK = np.array([chr(number).isspace() for number in range(0x3001)])


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a data set at their full lengths, one after the other."""

    ids: np.ndarray  # int32 (T,)
    labels: Labels
    sizes: np.ndarray  # int64 (R,): tokens per row
    refused: list[tuple[str, str]]  # why, and the row's place; these rows are not in it


def chunk(some: Sequence[tuple[Row, Rendered]], tokenizer: Tokenizer, boundary: str) -> Chunk:
    """Return the tokens of rows, with the BOS that goes before them."""
    rendered = [each for _, each in some]
    tokens, sizes = tokenizer.encode_flat([each.text for each in rendered])
    bounds = np.cumsum([0, *sizes])
    owners, odd = _owners(rendered, tokens, bounds, tokenizer)
    kinds = [span.kind for each in rendered for span in each.spans]
    roles = np.array([kind.role for kind in kinds], dtype=np.uint8)[owners]
    firsts = np.cumsum([0, *(len(each.spans) for each in rendered)])
    refused: list[tuple[str, str]] = []
    kept = np.ones(len(some), dtype=bool)
    for row in range(len(some)) if boundary == "segment" else np.flatnonzero(odd).tolist():
        part = slice(bounds[row], bounds[row + 1])
        alone = Encoded(tokens.ids[part], tokens.starts[part], tokens.ends[part])
        try:
            roles[part], own = token_roles(
                rendered[row], alone, boundary=boundary, tokenizer=tokenizer
            )
            owners[part] = firsts[row] + own
        except RowError as error:
            refused.append((str(error), some[row][0].place))
            kept[row] = False
    weights = np.array([row.weight for row, _ in some], dtype=np.float32)
    labels = _labels(kinds, roles, owners, np.repeat(weights, sizes))
    led = np.array([each.add_bos for each in rendered], dtype=bool)
    return _behind_bos(tokens.ids, labels, sizes, tokenizer.bos, (kept, led, weights), refused)


def _owners(
    rendered: Sequence[Rendered], tokens: Encoded, bounds: np.ndarray, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Return the span of every token, counted through all rows, and which rows are unusual.

    A token belongs to the span of its first character that is no white space, one of white space
    alone to that of its first character, as in `spans`.
    """
    sizes = np.array([len(each.text) for each in rendered], dtype=np.int64)
    before = np.cumsum(sizes) - sizes  # characters of the rows before
    text = "".join(each.text for each in rendered)
    following = _next_visible(text)
    counts = np.diff(bounds)
    starts = np.repeat(before, counts) + np.minimum(tokens.starts, np.repeat(sizes - 1, counts))
    first = following[starts]
    first = np.where(first < np.repeat(before, counts) + tokens.ends, first, starts)
    span_ends = np.concatenate(
        [
            np.array([span.end for span in each.spans], dtype=np.int64) + start
            for each, start in zip(rendered, before, strict=True)
        ]
    )
    owners = np.searchsorted(span_ends, first, side="right")
    rows = np.repeat(np.arange(len(rendered)), counts)
    odd = np.zeros(len(rendered), dtype=bool)
    odd[rows[1:][np.diff(owners) < 0]] = True
    for row in _misread(rendered, tokens, np.bincount(owners, minlength=len(span_ends)), tokenizer):
        odd[row] = True
    return owners, odd


def _next_visible(text: str) -> np.ndarray:
    """Return where the next character from each on is that is no white space, int64 (C,)."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    blank = _BLANK[np.minimum(points, len(_BLANK) - 1)] & (points < len(_BLANK))
    places = np.where(blank, len(text), np.arange(len(text)))
    return np.minimum.accumulate(places[::-1])[::-1]


def _misread(
    rendered: Sequence[Rendered], tokens: Encoded, counts: np.ndarray, tokenizer: Tokenizer
) -> Iterator[int]:
    """Yield the rows with a span whose tokens do not read as the characters they stand for.

    The tokens are first read one by one, and decoded together where that is other text: a token
    may be a part of a character.
    """
    ids, pieces = tokens.ids.tolist(), tokenizer.bare_pieces
    starts, ends = tokens.starts.tolist(), tokens.ends.tolist()
    high, sizes = 0, iter(counts.tolist())
    for row, each in enumerate(rendered):
        fits = True
        for _ in each.spans:
            low, high = high, high + next(sizes)
            if low == high:
                continue
            stretch = bare(each.text[starts[low] : ends[high - 1]])
            if "".join(map(pieces.__getitem__, ids[low:high])) != stretch:
                fits = fits and bare(tokenizer.decode(ids[low:high])) == stretch
        if not fits:
            yield row


def _labels(
    kinds: Sequence[Kind], roles: np.ndarray, owners: np.ndarray, weights: np.ndarray
) -> Labels:
    own = np.array([kind.role for kind in kinds], dtype=np.uint8)[owners] == roles
    details = np.array([kind.detail for kind in kinds], dtype=np.uint8)[owners]
    answers = np.array([kind.answer for kind in kinds], dtype=np.int16)[owners]
    said = np.array([kind.weight for kind in kinds], dtype=np.float32)[owners]
    return Labels(roles, np.where(own, details, np.uint8(0)), answers, said * weights)


def _behind_bos(
    ids: np.ndarray,
    labels: Labels,
    sizes: np.ndarray,
    bos: int | None,
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    refused: list[tuple[str, str]],
) -> Chunk:
    """Return the rows that are kept, with BOS before those that it goes before.

    `rows` are three arrays (R,): which rows are kept, which have BOS before them, their weights.
    """
    kept, led, weights = rows
    led = led & kept
    columns = (ids, labels.roles, labels.details, labels.answers, labels.weights)
    if not kept.all():
        of_kept = np.repeat(kept, sizes)
        columns = tuple(column[of_kept] for column in columns)
    if led.any():
        own = np.where(kept, sizes, 0)
        places = (np.cumsum(own) - own)[led]
        first = (bos, int(Role.SPECIAL), 0, -1, weights[led])
        columns = tuple(  # type: ignore[assignment]
            np.insert(column, places, value) for column, value in zip(columns, first, strict=True)
        )
    return Chunk(columns[0], Labels(*columns[1:]), (sizes + led)[kept], refused)
