"""Pieces of a row's text, each with one role, and the text that they are joined to."""

from dataclasses import dataclass

from ablate.roles import NAMES, Role

Piece = tuple[str, Role]


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of characters that has one role."""

    start: int
    end: int
    role: Role


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row's text, the roles of its characters, and whether BOS goes before it.

    The spans are in order, touch each other and cover the text.
    """

    text: str
    spans: tuple[Span, ...]
    add_bos: bool


def joined(pieces: list[Piece], *, add_bos: bool) -> Rendered:
    """Return the pieces as one text; empty pieces vanish, neighbours of one role are one span."""
    spans: list[Span] = []
    end = 0
    for text, role in pieces:
        start, end = end, end + len(text)
        if spans and text and spans[-1].role == role:
            spans[-1] = Span(spans[-1].start, end, role)
        elif text:
            spans.append(Span(start, end, role))
    return Rendered("".join(text for text, _ in pieces), tuple(spans), add_bos)


def last_only(pieces: list[Piece]) -> list[Piece]:
    """Return the pieces with every answer but the last counted as instruction (`turns=last`)."""
    completions = [i for i, (_, role) in enumerate(pieces) if role == Role.COMPLETION]
    last = completions[-1]
    while last - 1 in completions:  # the answer and its stop token
        last -= 1
    early = {i for i in completions if i < last}
    return [(t, Role.INSTRUCTION if i in early else r) for i, (t, r) in enumerate(pieces)]


def role_of(part: str) -> Role:
    """Return the role that a part of a turn has."""
    return Role(NAMES.index(part))
