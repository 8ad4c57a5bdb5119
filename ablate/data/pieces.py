"""Pieces of a row's text, each with one role, and the text that they are joined to."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ablate.roles import NAMES, ROLE_OF, Detail, Role


@dataclass(frozen=True, slots=True)
class Kind:
    """What a stretch of text is: its role, the detail within it, and which answer weighs what."""

    role: Role
    detail: Detail = Detail.NONE
    answer: int = -1  # which answer of the row it belongs to, from 0; -1: none
    weight: float = 1.0  # of the message, times that of the row
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found = hash((self.role, self.detail, self.answer, self.weight))
        object.__setattr__(self, "_hash", found)

    def __hash__(self) -> int:  # computed once: kinds are looked up for every row
        return self._hash


Piece = tuple[str, Role | Detail | Kind]


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of characters of one kind."""

    start: int
    end: int
    kind: Kind

    @property
    def role(self) -> Role:
        """The role of its characters."""
        return self.kind.role


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row's text, the roles of its characters, and whether BOS goes before it.

    The spans are in order, touch each other and cover the text.
    """

    text: str
    spans: tuple[Span, ...]
    add_bos: bool


_KINDS = {role: Kind(role) for role in Role}
_OF_DETAILS = {detail: Kind(ROLE_OF[detail], detail) for detail in ROLE_OF}


def kind_of(role: Role | Detail | Kind) -> Kind:
    """Return a role or a detail as a kind."""
    if isinstance(role, Kind):
        return role
    return _OF_DETAILS[role] if isinstance(role, Detail) else _KINDS[role]


def joined(pieces: Sequence[Piece], *, add_bos: bool) -> Rendered:
    """Return the pieces as one text; empty pieces vanish, neighbours of one kind are one span."""
    said = [piece for piece in pieces if piece[0]]
    spans: list[Span] = []
    end = 0
    for (text, _), (kind, goes_on) in zip(said, _laid(_kinds(said)), strict=True):
        start, end = end, end + len(text)
        if goes_on:
            start = spans.pop().start
        spans.append(Span(start, end, kind))
    return Rendered("".join([text for text, _ in said]), tuple(spans), add_bos)


def numbered(pieces: Sequence[Piece]) -> list[tuple[str, Kind]]:
    """Return the pieces with every answer's number, in order; empty pieces vanish.

    An answer is what one turn says, where pieces come with the number of their turn; else it is a
    stretch of completion.
    """
    said = [piece for piece in pieces if piece[0]]
    kinds = _with_answers(_kinds(said))
    return [(text, kind) for (text, _), kind in zip(said, kinds, strict=True)]


def _kinds(pieces: Sequence[Piece]) -> tuple[Kind, ...]:
    return tuple([kind_of(role) for _, role in pieces])


# Rows of one data set have few shapes: what depends on a shape alone is found once.


@functools.lru_cache(maxsize=1024)
def _laid(kinds: tuple[Kind, ...]) -> list[tuple[Kind, bool]]:
    """Return the kinds of pieces, each with whether it goes on with the span before it."""
    before = (None, *kinds[:-1])
    return [(kind, kind == last) for kind, last in zip(kinds, before, strict=True)]


@functools.lru_cache(maxsize=1024)
def _with_answers(kinds: tuple[Kind, ...]) -> list[Kind]:
    found: list[Kind] = []
    answer, last, within = -1, -1, False
    for kind in kinds:
        answers = kind.role == Role.COMPLETION
        if answers:
            answer += kind.answer != last or (last < 0 and not within)
            last = kind.answer
        within = answers
        own = answer if answers else -1
        found.append(kind if kind.answer == own else _numbered(kind, own))
    return found


@functools.lru_cache(maxsize=4096)
def _numbered(kind: Kind, answer: int) -> Kind:
    return replace(kind, answer=answer)


def last_only(pieces: Sequence[Piece]) -> list[Piece]:
    """Return the pieces with every answer but the last counted as instruction (`turns=last`)."""
    found = numbered(pieces)
    last = max((kind.answer for _, kind in found), default=-1)
    return [(t, Role.INSTRUCTION if -1 < kind.answer < last else kind) for t, kind in found]


def role_of(part: str) -> Role:
    """Return the role that a part of a turn has."""
    return Role(NAMES.index(part))
