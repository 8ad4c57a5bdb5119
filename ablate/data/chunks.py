"""Tokenised rows, a chunk of them at once: flat arrays of ids and labels.

What `spans.token_roles` says of one row is said here of all tokens of a chunk by operations on
arrays; a row of which anything is unusual is handed to `token_roles` itself.
"""

from collections.abc import Sequence
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
    kinds = _columns([span.kind for each in rendered for span in each.spans])
    roles = kinds.roles[owners]
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
    text = "".join([each.text for each in rendered])
    visible = ~_blank(text)
    following = _next(visible)
    counts = np.diff(bounds)
    moved, most = np.repeat(before, counts), np.repeat(sizes, counts)
    starts = moved + np.minimum(tokens.starts, most - 1)
    first = following[starts]
    first = np.where(first < moved + tokens.ends, first, starts)
    spans = np.array([len(each.spans) for each in rendered], dtype=np.int64)
    span_ends = np.array([span.end for each in rendered for span in each.spans], dtype=np.int64)
    span_ends += np.repeat(before, spans)
    owners = np.searchsorted(span_ends, first, side="right")
    rows = np.repeat(np.arange(len(rendered)), counts)
    odd = np.zeros(len(rendered), dtype=bool)
    odd[rows[1:][np.diff(owners) < 0]] = True
    characters = moved + np.minimum(tokens.starts, most), moved + np.minimum(tokens.ends, most)
    owned = np.bincount(owners, minlength=len(span_ends))
    misread = _Reading(text, visible, tokens.ids, tokenizer).misread(
        characters, (before, before + sizes), bounds, owned, spans
    )
    odd[misread] = True
    return owners, odd


def _blank(text: str) -> np.ndarray:
    """Return which characters are white space, bool (C,)."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return _BLANK[np.minimum(points, len(_BLANK) - 1)] & (points < len(_BLANK))


def _next(marked: np.ndarray) -> np.ndarray:
    """Return where the next marked place from each on is, int64 (C,); C where there is none."""
    size = len(marked)
    places = np.where(marked, np.arange(size), size)
    return np.minimum.accumulate(places[::-1])[::-1]


class _Reading:
    """The tokens of a chunk, read one by one beside the text that they stand for."""

    def __init__(
        self, text: str, visible: np.ndarray, ids: np.ndarray, tokenizer: Tokenizer
    ) -> None:
        self.text, self.decode = text, tokenizer.decode
        self.ids = ids.tolist()
        self.pieces = list(map(tokenizer.bare_pieces.__getitem__, self.ids))
        # Characters that are no white space, before each token and before each character.
        self.read = np.cumsum([0, *map(len, self.pieces)])
        self.seen = np.concatenate([[0], np.cumsum(visible)])

    def misread(
        self,
        characters: tuple[np.ndarray, np.ndarray],
        rows: tuple[np.ndarray, np.ndarray],
        bounds: np.ndarray,
        counts: np.ndarray,
        spans: np.ndarray,
    ) -> list[int]:
        """Return the rows with a span whose tokens do not read as what they stand for.

        A row whose tokens read as its text, every span beginning and ending at the same character
        in both, is right; of any other each span is looked at by itself.

        Args:
            characters: where each token begins and ends in the text, int64 (T,).
            rows: where each row begins and ends in it, int64 (R,).
            bounds: the first token of every row, and the end of the last, int64 (R+1,).
            counts: tokens per span, int64 (S,).
            spans: spans per row, int64 (R,).
        """
        highs = np.cumsum(counts)
        lows = highs - counts
        used = np.flatnonzero(counts)
        owner = np.repeat(np.arange(len(spans)), spans)[used]  # the row of each span
        lows, highs = lows[used], highs[used]
        begins, ends = characters[0][lows], characters[1][highs - 1]
        ahead = self.read[bounds[owner]] - self.seen[rows[0][owner]]
        apart = (self.read[lows] - self.seen[begins] != ahead) | (
            self.read[highs] - self.seen[ends] != ahead
        )
        doubtful = np.zeros(len(spans), dtype=bool)
        doubtful[owner[apart]] = True
        whole = bare(self.text)
        edges = zip(
            bounds[:-1].tolist(), bounds[1:].tolist(),
            self.seen[rows[0]].tolist(), self.seen[rows[1]].tolist(), strict=True,
        )  # fmt: skip
        for row, (low, high, start, end) in enumerate(edges):
            if "".join(self.pieces[low:high]) != whole[start:end]:
                doubtful[row] = True
        found = {
            int(owner[span])
            for span in np.flatnonzero(doubtful[owner])
            if not self._fits(lows[span], highs[span], self.text[begins[span] : ends[span]])
        }
        return sorted(found)

    def _fits(self, low: int, high: int, text: str) -> bool:
        """Return whether tokens read as `text`, one by one or, as parts of characters, together."""
        stretch = bare(text)
        if "".join(self.pieces[low:high]) == stretch:
            return True
        return bare(self.decode(self.ids[low:high])) == stretch


def _columns(kinds: Sequence[Kind]) -> Labels:
    """Return what kinds say, as arrays (S,); the few that there are, are looked at once."""
    number = {kind: place for place, kind in enumerate(dict.fromkeys(kinds))}
    places = np.fromiter(map(number.__getitem__, kinds), dtype=np.int64, count=len(kinds))
    return Labels(
        np.array([kind.role for kind in number], dtype=np.uint8)[places],
        np.array([kind.detail for kind in number], dtype=np.uint8)[places],
        np.array([kind.answer for kind in number], dtype=np.int16)[places],
        np.array([kind.weight for kind in number], dtype=np.float32)[places],
    )


def _labels(kinds: Labels, roles: np.ndarray, owners: np.ndarray, weights: np.ndarray) -> Labels:
    """Return the labels of tokens, which have the detail of their span where they have its role."""
    details = np.where(kinds.roles[owners] == roles, kinds.details[owners], np.uint8(0))
    return Labels(roles, details, kinds.answers[owners], kinds.weights[owners] * weights)


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
