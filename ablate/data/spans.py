"""From the roles of characters to the roles of tokens, and a check that no role leaked."""

import re

import numpy as np

from ablate.data.pieces import Rendered, Span
from ablate.data.tokenizer import Encoded, Tokenizer
from ablate.errors import RowError
from ablate.roles import Role

_BLANKS = re.compile(r"\s+")


def token_roles(
    rendered: Rendered, encoded: Encoded, *, boundary: str, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Return the role of every token of `rendered.text` and its span, BOS not among them.

    Returns:
        roles, uint8 (T,); positions in `rendered.spans`, int64 (T,).

    Raises:
        RowError: the tokens of a role do not read as the text that has this role.
    """
    owners = _owners(rendered)[_first_visible(rendered.text, encoded)]
    of_span = np.array([int(span.role) for span in rendered.spans], dtype=np.uint8)
    _check(rendered, encoded, owners, tokenizer)
    if boundary == "segment":
        return _segmented(rendered, owners, tokenizer), owners
    return of_span[owners], owners


def _owners(rendered: Rendered) -> np.ndarray:
    """Return which span each character belongs to, int64 (characters,)."""
    sizes = [span.end - span.start for span in rendered.spans]
    return np.repeat(np.arange(len(sizes)), sizes)


def _first_visible(text: str, encoded: Encoded) -> np.ndarray:
    """Return the position of each token's first character that is no white space, int64 (T,).

    A token of white space alone counts by its first character.
    """
    size = len(text)
    places = np.arange(size)
    for blank in _BLANKS.finditer(text):
        places[blank.start() : blank.end()] = size
    following = np.minimum.accumulate(places[::-1])[::-1]  # the next visible one from here on
    starts = np.minimum(encoded.starts, size - 1)
    first = following[starts]
    return np.where(first < encoded.ends, first, starts)


def _segmented(rendered: Rendered, owners: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Return roles by the `segment` rule: answers begin and end at counts of tokens.

    The count is that of the text before the boundary, tokenised alone.
    """
    text, spans = rendered.text, rendered.spans
    result = np.array([int(span.role) for span in spans], dtype=np.uint8)[owners]
    for number, span in enumerate(spans):
        if span.role == Role.COMPLETION and number > 0:
            low = len(tokenizer.encode(text[: span.start]).ids)
            high = len(tokenizer.encode(text[: span.end]).ids)
            result[owners == number] = spans[number - 1].role
            result[low : len(owners) if span.end == len(text) else high] = Role.COMPLETION
    return result


def _check(rendered: Rendered, encoded: Encoded, owners: np.ndarray, tokenizer: Tokenizer) -> None:
    """Raise unless the tokens of every span, decoded, read as the characters they stand for.

    So a span's tokens hold its text and nothing else, apart from a token that straddles its end.
    White space is not compared: decoders add and strip it.
    """
    text, spans = rendered.text, rendered.spans
    edges = np.searchsorted(owners, np.arange(len(spans) + 1))
    for span, low, high in zip(spans, edges[:-1], edges[1:], strict=True):
        stretch = text[encoded.starts[low] : encoded.ends[high - 1]] if low < high else ""
        if bare(tokenizer.decode(encoded.ids[low:high])) != bare(stretch):
            _complain(rendered, encoded, span, tokenizer)
    if np.any(np.diff(owners) < 0):
        raise RowError("its tokenizer's offsets run backwards, so roles cannot be assigned")


def _complain(rendered: Rendered, encoded: Encoded, span: Span, tokenizer: Tokenizer) -> None:
    """Raise, unless the tokenizer loses characters of this text whatever the roles."""
    if bare(tokenizer.decode(encoded.ids)) == bare(rendered.text):
        role = span.role.name.lower()
        shown = rendered.text[span.start : span.end][:40]
        raise RowError(f"the tokens of its {role} {shown!r} decode to other text: a role leaks")


def bare(text: str) -> str:
    """Return `text` without white space."""
    return "".join(text.split())
