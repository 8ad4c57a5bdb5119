"""The chat template's text of a row, with the role of every character.

A template is a program, so the place of each content is found by rendering the same turns with a
unique word in place of each content. The text between those words is the template's own; the row's
rendering must then be exactly that text with the contents put in (with or without the white space
at their ends, which many templates strip). The text itself is never searched, so a user who writes
"assistant" is not mistaken for a role tag.
"""

import functools
import re

from ablate.data.pieces import Piece, last_only, role_of
from ablate.data.rows import Row, Turn
from ablate.data.tokenizer import Tokenizer
from ablate.errors import UserError
from ablate.roles import Role

JOINT = "\n"  # between a row's instruction and its input, in one user's turn
# A header holds tags and a speaker's name; three words or more are inserted text.
_TAG = re.compile(r"<[^<>\s]*>|\[[A-Z_/]+\]")
_WORD = re.compile(r"[^\W\d_]{2,}")
_SPEAKER = re.compile(r"\s*(system|user|assistant|developer|human)\s*[\n:]\s*", re.IGNORECASE)


def pieces(row: Row, tokenizer: Tokenizer, *, turns: str) -> list[Piece]:
    """Return the rendered row as pieces of one role each.

    Raises:
        UserError: the template refuses the row, changes its words, or stops no answer.
    """
    contents = [_content(turn) for turn in row.turns]
    roles = tuple(turn.role for turn in row.turns)
    said = ["".join(text for text, _ in content) for content in contents]
    try:
        text = tokenizer.chat(_messages(roles, said))
        fixed = _skeleton(tokenizer, roles)
    except UserError as error:
        raise UserError(f"{error} ({row.place})") from None
    shown = _shown(text, fixed, said)
    if shown is None:
        raise UserError(
            f"dataset.template=chat: {row.place}: the chat template changes the text of a turn, so "
            "that roles cannot be assigned; give another with model.chat_template=FILE"
        )
    found = list(_lead(tokenizer, roles))
    for number, content in enumerate(contents):
        found += _trimmed(content, said[number], shown[number])
        found += _between(fixed[number + 1], roles[number], tokenizer)
    return last_only(found) if turns == "last" else found


def _content(turn: Turn) -> list[Piece]:
    """Return a turn's parts; the newline between instruction and input goes with the input."""
    parts = [(text, role_of(part)) for part, text in turn.parts]
    return [(JOINT * (i > 0) + text, role) for i, (text, role) in enumerate(parts)]


def _messages(roles: tuple[str, ...], said: list[str]) -> list[dict[str, str]]:
    return [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)]


@functools.lru_cache(maxsize=256)
def _skeleton(tokenizer: Tokenizer, roles: tuple[str, ...]) -> tuple[str, ...]:
    """Return the template's own text before, between and after the contents of the turns."""
    words = [f"qx{number}zv" for number in range(len(roles))]
    text = tokenizer.chat(_messages(roles, words))
    found = []
    for word in words:
        before, mark, text = text.partition(word)
        if not mark or word in text:
            raise UserError("dataset.template=chat: the chat template drops or repeats a turn")
        found.append(before)
    return (*found, text)


def _shown(text: str, fixed: tuple[str, ...], said: list[str]) -> list[str] | None:
    """Return the contents as they stand in `text`, or None where they do not."""
    if not text.startswith(fixed[0]):
        return None
    rest = text[len(fixed[0]) :]
    if not said:
        return None if rest else []
    content = said[0]
    for form in dict.fromkeys((content, content.rstrip(), content.lstrip(), content.strip())):
        if rest.startswith(form):
            further = _shown(rest[len(form) :], fixed[1:], said[1:])
            if further is not None:
                return [form, *further]
    return None


def _trimmed(content: list[Piece], said: str, shown: str) -> list[Piece]:
    """Return the pieces of a content after the white space that the template stripped."""
    start = said.index(shown)
    found, place = [], 0
    for text, role in content:
        low, high = max(start - place, 0), max(start + len(shown) - place, 0)
        found.append((text[low:high], role))
        place += len(text)
    return found


def _between(fixed: str, role: str, tokenizer: Tokenizer) -> list[Piece]:
    """Return the template's text after a turn: the answer's stop token, then tags."""
    if role != "assistant":
        return [(fixed, Role.SPECIAL)]
    ends = [fixed.index(t) + len(t) for t in tokenizer.special_tokens if t and t in fixed]
    end = min(ends, default=len(fixed.rstrip()))
    if not fixed[:end].strip():
        raise UserError(
            "dataset.template=chat: the chat template puts no stop token after an answer; give "
            "another with model.chat_template=FILE"
        )
    return [(fixed[:end], Role.COMPLETION), (fixed[end:], Role.SPECIAL)]


@functools.lru_cache(maxsize=256)
def _lead(tokenizer: Tokenizer, roles: tuple[str, ...]) -> tuple[Piece, ...]:
    """Return the text before the first content: tags, and what the template says by itself."""
    fixed = _skeleton(tokenizer, roles)[0]
    head, inserted, tail = fixed, "", ""
    if roles[0] != "system":
        try:
            head, tail = _skeleton(tokenizer, ("system", *roles))[:2]
        except UserError:  # the template knows no system turn
            head, tail = "", _shared_end(fixed, _skeleton(tokenizer, ("user", "assistant") * 2)[2])
        if not _encloses(fixed, head, tail):
            head, tail = "", ""
        inserted = fixed[len(head) : len(fixed) - len(tail)]
        if not (head or tail):
            return tuple(_scanned(fixed, tokenizer))
    return (*_scanned(head, tokenizer), *_scanned(inserted, tokenizer), (tail, Role.SPECIAL))


def _encloses(text: str, head: str, tail: str) -> bool:
    fits = len(head) + len(tail) <= len(text)
    return fits and text.startswith(head) and text.endswith(tail)


def _shared_end(one: str, other: str) -> str:
    """Return the longest common ending."""
    size = 0
    while size < min(len(one), len(other)) and one[-1 - size] == other[-1 - size]:
        size += 1
    return one[len(one) - size :]


def _scanned(text: str, tokenizer: Tokenizer) -> list[Piece]:
    """Return a leading text with its sentences as `boilerplate` and its tags as `special`."""
    tokens = sorted(filter(None, tokenizer.special_tokens), key=len, reverse=True)
    pattern = "(" + "|".join(re.escape(t) for t in tokens) + ")"
    found: list[Piece] = []
    for chunk in re.split(pattern, text) if tokens else [text]:
        speaker = _SPEAKER.match(chunk)
        start = speaker.end() if speaker else len(chunk) - len(chunk.lstrip())
        words = _WORD.findall(_TAG.sub(" ", chunk[start:]))
        said = chunk[start:].rstrip() if chunk not in tokens and len(words) >= 3 else ""
        rest = chunk[start + len(said) :]
        found += [(chunk[:start], Role.SPECIAL), (said, Role.BOILERPLATE), (rest, Role.SPECIAL)]
    return found
