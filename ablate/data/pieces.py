"""Pieces of a row's text, each with one role, and the text that they are joined to."""

import functools
from dataclasses import dataclass, replace

from ablate.roles import NAMES, ROLE_OF, Detail, Role


@dataclass(frozen=True, slots=True)
class Kind:
    """What a stretch of text is: its role, the detail within it, and which answer weighs what."""

    role: Role
    detail: Detail = Detail.NONE
    answer: int = -1  # which answer of the row it belongs to, from 0; -1: none
    weight: float = 1.0  # of the message, times that of the row


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


def joined(pieces: list[Piece], *, add_bos: bool) -> Rendered:
    """Return the pieces as one text; empty pieces vanish, neighbours of one kind are one span."""
    spans: list[Span] = []
    end = 0
    for text, role in pieces:
        kind = kind_of(role)
        start, end = end, end + len(text)
        if spans and text and spans[-1].kind == kind:
            spans[-1] = Span(spans[-1].start, end, kind)
        elif text:
            spans.append(Span(start, end, kind))
    return Rendered("".join(text for text, _ in pieces), tuple(spans), add_bos)


def numbered(pieces: list[Piece]) -> list[Piece]:
    """Return the pieces with every answer's number, in order.

    An answer is what one turn says, where pieces come with the number of their turn; else it is a
    stretch of completion.
    """
    found: list[Piece] = []
    answer, last, within = -1, -1, False
    for text, role in pieces:
        kind = kind_of(role)
        if not text:
            continue
        answers = kind.role == Role.COMPLETION
        if answers:
            answer += kind.answer != last or (last < 0 and not within)
            last = kind.answer
        within = answers
        own = answer if answers else -1
        found.append((text, kind if kind.answer == own else _numbered(kind, own)))
    return found


@functools.lru_cache(maxsize=4096)
def _numbered(kind: Kind, answer: int) -> Kind:
    return replace(kind, answer=answer)


def last_only(pieces: list[Piece]) -> list[Piece]:
    """Return the pieces with every answer but the last counted as instruction (`turns=last`)."""
    found = numbered(pieces)
    last = max((kind_of(role).answer for _, role in found), default=-1)
    return [(t, Role.INSTRUCTION if -1 < kind_of(r).answer < last else r) for t, r in found]


def role_of(part: str) -> Role:
    """Return the role that a part of a turn has."""
    return Role(NAMES.index(part))
