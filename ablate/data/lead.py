"""The text before the first thing that a row says: a chat template's tags and own sentences."""

import re

from ablate.data.pieces import Piece
from ablate.data.shown import gaps
from ablate.data.specials import shared
from ablate.data.tokenizer import Tokenizer
from ablate.errors import UserError
from ablate.roles import Detail, Role

# A header holds tags and a speaker's name; three words or more are inserted text.
_TAG = re.compile(r"<[^<>\s]*>|\[[A-Z_/]+\]")
FRAME = r"<[|｜][^<>\s]*[|｜]>|\[/?[A-Z_]+\]|</?s>"  # tags that are no words of a sentence
_WORD = re.compile(r"[^\W\d_]{2,}")
_SPEAKER = re.compile(r"\s*(system|user|assistant|developer|human)\s*[\n:]\s*", re.IGNORECASE)


def lead(text: str, first: str, tokenizer: Tokenizer) -> list[Piece]:
    """Return the text before the first content: tags, and what the template says by itself."""
    head, inserted, tail = text, "", ""
    if first != "system":
        try:
            head, tail = gaps(tokenizer, "system", "user", "assistant")[:2]
        except UserError:  # the template knows no system turn
            size = shared(text[::-1], _between_exchanges(tokenizer)[::-1])
            head, tail = "", text[len(text) - size :]
        if not _encloses(text, head, tail):
            head, tail = "", ""
        inserted = text[len(head) : len(text) - len(tail)]
        if not (head or tail):
            return _scanned(text, tokenizer)
    return [*_scanned(head, tokenizer), *_scanned(inserted, tokenizer), (tail, Role.SPECIAL)]


def _between_exchanges(tokenizer: Tokenizer) -> str:
    try:
        return gaps(tokenizer, *("user", "assistant") * 2)[2]
    except UserError:
        return ""


def _encloses(text: str, head: str, tail: str) -> bool:
    fits = len(head) + len(tail) <= len(text)
    return fits and text.startswith(head) and text.endswith(tail)


def _chunks(text: str, tokenizer: Tokenizer) -> list[tuple[str, int]]:
    """Return the tags of a text and what is between, with the size of its header."""
    tokens = sorted(filter(None, tokenizer.special_tokens), key=len, reverse=True)
    pattern = "|".join([*map(re.escape, tokens), FRAME])
    found = []
    for chunk in re.split(f"({pattern})", text):
        speaker = _SPEAKER.match(chunk)
        whole = re.fullmatch(pattern, chunk) is not None
        found.append((chunk, len(chunk) if whole else speaker.end() if speaker else 0))
    return found


def definitions(text: str, tokenizer: Tokenizer) -> list[Piece]:
    """Return what the template says of tools: `special` tags and headers, and the definitions."""
    found: list[Piece] = []
    for chunk, start in _chunks(text, tokenizer):
        rest = Role.SPECIAL if re.fullmatch(r"\s*\w*\s*", chunk[start:]) else Detail.TOOLS
        found += [(chunk[:start], Role.SPECIAL), (chunk[start:], rest)]
    return found


def _scanned(text: str, tokenizer: Tokenizer) -> list[Piece]:
    """Return a leading text with its sentences as `boilerplate` and its tags as `special`."""
    found: list[Piece] = []
    for chunk, header in _chunks(text, tokenizer):
        start = header or len(chunk) - len(chunk.lstrip())
        words = _WORD.findall(_TAG.sub(" ", chunk[start:]))
        said = chunk[start:].rstrip() if len(words) >= 3 else ""
        rest = chunk[start + len(said) :]
        found += [(chunk[:start], Role.SPECIAL), (said, Role.BOILERPLATE), (rest, Role.SPECIAL)]
    return found
