"""Where the chat template puts each thing that a row says.

A template is a program: it may strip what is said, drop an earlier turn's reasoning, move the
system text or insert text of its own. So every row is rendered twice, as it is and with a mark of
one private character before and after each thing said. Where the two renderings differ by the marks
alone, the marks say where each thing stands. Nothing is searched for in the text, so a user who
writes "assistant" is not mistaken for a role tag.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablate.errors import RowError

PLANES = (0x100000, 0xF0000)  # private use: first characters of the two planes
ROOM = 0xFFF0
_TAGS_FIRST = re.compile(r"(?:<[^<>\s]*>\s*)+")
_TAGS_LAST = re.compile(r"(?:\s*<[^<>\s]*>)+$")

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that a row says: which turn says it, as what, and its text."""

    turn: int
    part: str  # a role's name
    text: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a thing said stands in the rendered text."""

    said: Said
    start: int
    end: int


Build = Callable[[Sequence[str]], list[Message]]  # messages of as many texts as there are things


def located(
    said: Sequence[Said], build: Build, render: Callable[[list[Message]], str]
) -> tuple[str, list[Place]]:
    """Return the rendered row and the place of each thing said, in the order of the text.

    Reasoning that the template drops has no place.

    Raises:
        RowError: the template changes, drops or repeats something that is said.
    """
    texts = [thing.text for thing in said]
    text = render(build(texts))
    first = _plane(text + "".join(texts))
    for mark in (_at_ends, _within_tags):
        marked = render(build([mark(t, first + 2 * i) for i, t in enumerate(texts)]))
        plain, ends = _unmarked(marked, first, 2 * len(texts))
        if plain == text:
            break
    else:
        raise RowError("the chat template changes the text of a turn")
    found = []
    for number, thing in enumerate(said):
        here = ends.get(2 * number, []), ends.get(2 * number + 1, [])
        if not any(here) and (thing.part == "thinking" or not thing.text.strip()):
            continue
        if [len(places) for places in here] != [1, 1]:
            raise RowError("the chat template drops or repeats a turn")
        found.append(_place(thing, text, here[0][0], here[1][0], mark))
    found.sort(key=lambda place: (place.start, place.end))
    return text, _with_white_space(text, found, said, build, render)


def _plane(text: str) -> int:
    for first in PLANES:
        if not any(first <= ord(c) < first + ROOM for c in text):
            return first
    raise RowError("its text uses the private characters of both Unicode planes")


def _core(text: str) -> tuple[int, int]:
    """Return where the text without the white space at its ends begins and ends."""
    return len(text) - len(text.lstrip()), len(text.rstrip())


def _at_ends(text: str, mark: int) -> str:
    low, high = _core(text)
    high = max(high, low)
    return f"{text[:low]}{chr(mark)}{text[low:high]}{chr(mark + 1)}{text[high:]}"


def _within_tags(text: str, mark: int) -> str:
    """Return the text marked behind leading tags and before closing ones, which templates test."""
    low, high = _core(text)
    opening = _TAGS_FIRST.match(text, low)
    closing = _TAGS_LAST.search(text[:high])
    low = opening.end() if opening else low
    high = max(low, closing.start() if closing else high)
    return f"{text[:low]}{chr(mark)}{text[low:high]}{chr(mark + 1)}{text[high:]}"


def _unmarked(marked: str, first: int, count: int) -> tuple[str, Mapping[int, list[int]]]:
    """Return the text without marks, and for each mark its places in that text."""
    found: dict[int, list[int]] = {}
    kept: list[str] = []
    size = 0
    pattern = f"([{chr(first)}-{chr(first + count)}])"
    for piece in re.split(pattern, marked):
        if len(piece) == 1 and first <= ord(piece) < first + count:
            found.setdefault(ord(piece) - first, []).append(size)
        else:
            kept.append(piece)
            size += len(piece)
    return "".join(kept), found


def _place(thing: Said, text: str, start: int, end: int, mark: Callable[[str, int], str]) -> Place:
    """Return the place of the thing said between two marks, without white space at its ends."""
    shown = mark(thing.text, 0)  # the marks are the characters 0 and 1
    low, high = shown.index("\0"), shown.index("\1") - 1
    if text[start:end] != thing.text[low:high]:
        raise RowError("the chat template changes the text of a turn")
    before, after = thing.text[:low].lstrip(), thing.text[high:].rstrip()
    if not (text[:start].endswith(before) and text.startswith(after, end)):
        raise RowError("the chat template changes the text of a turn")
    return Place(thing, start - len(before), end + len(after))


def _with_white_space(
    text: str,
    found: list[Place],
    said: Sequence[Said],
    build: Build,
    render: Callable[[list[Message]], str],
) -> list[Place]:
    """Return the places with as much of the white space at their ends as the template kept.

    What it kept is what stands between two places beyond what stands there when nothing said has
    white space at its ends.
    """
    if all(place.said.text == place.said.text.strip() for place in found):
        return found
    bare = [Said(t.turn, t.part, t.text.strip()) for t in said]
    short, places = located(bare, build, render)
    if len(places) != len(found):
        raise RowError("the chat template changes the text of a turn")
    kept = list(found)
    for number in range(len(found) + 1):
        left, right = found[number - 1 : number], found[number : number + 1]
        wide = text[left[0].end if left else 0 : right[0].start if right else len(text)]
        low = places[number - 1].end if left else 0
        own = short[low : places[number].start if right else len(short)]
        trail, lead = _kept(wide, own, left[0].said.text if left else "", right)
        if left:
            one = kept[number - 1]
            kept[number - 1] = Place(one.said, one.start, one.end + trail)
        if right:
            one = kept[number]
            kept[number] = Place(one.said, one.start - lead, one.end)
    return kept


def _kept(wide: str, own: str, left: str, right: Sequence[Place]) -> tuple[int, int]:
    """Return how many characters between two places end the left and begin the right text."""
    after = left[len(left.rstrip()) :]
    text = right[0].said.text if right else ""
    before = text[: len(text) - len(text.lstrip())]
    more = len(wide) - len(own)
    for trail in range(min(len(after), more), -1, -1):
        lead = more - trail
        fits = wide.startswith(after[:trail]) and wide.endswith(before[len(before) - lead :])
        if 0 <= lead <= len(before) and fits and wide[trail : len(wide) - lead] == own:
            return trail, lead
    raise RowError("the chat template changes the text of a turn")
