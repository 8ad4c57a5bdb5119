"""Where the chat template puts each thing that a row says.

A template is a program: it may strip what is said, drop an earlier turn's reasoning, move the
system text or insert text of its own. So every row is rendered twice, as it is and with a mark of
one private character before and after each thing said. Where the two renderings differ by the marks
alone, the marks say where each thing stands. Nothing is searched for in the text, so a user who
writes "assistant" is not mistaken for a role tag.

Templates look at what is said, so marks may change what they do. Then other places are tried:
within
the white space at the ends, which templates strip, within tags, and not on what is empty or
names a tool.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ablate.errors import RowError

ANSWERED = ("completion", "thinking")  # parts whose words no template may change
PLANES = (0x100000, 0xF0000)  # private use: first characters of the two planes
ROOM = 0xFFF0
QUOTES = ('""', "''")
CHANGES = "the chat template changes the text of a turn"
_TAGS_FIRST = re.compile(r"(?:<[^<>\s]*>\s*|/(?:no_)?think\s+)+")
_TAGS_LAST = re.compile(r"(?:\s*<[^<>\s]*>|\s*/(?:no_)?think)+$")
SWITCHES = re.compile(r"(?:\s*/(?:no_)?think)+")  # of reasoning: a template reads and drops them
# A mark, or how JSON and Python write a private character within a text that they quote.
_MARK = re.compile(r"[\U000F0000-\U0010FFFF]|\\U00[01][0-9a-f]{5}|\\ud[89ab]..\\ud[c-f]..")

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that a row says: which turn says it, as what, and its text.

    `spare` things need no place. Around `quoted` ones no template strips white space, and it may
    write them as JSON does, but not where they are `json` themselves: JSON within JSON is no call.
    """

    turn: int
    part: str  # a role's name
    text: str
    spare: bool = False
    quoted: bool = False
    json: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a thing said stands in the rendered text."""

    said: Said
    start: int
    end: int


Build = Callable[[Sequence[str]], list[Message]]  # messages of as many texts as there are things
Mark = Callable[[str, int], str]


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
    failed = RowError(CHANGES)
    for number, marks in enumerate(_ways(said)):
        given = [
            _put(m, t, first + 2 * i) for i, (m, t) in enumerate(zip(marks, texts, strict=True))
        ]
        bare, ends = _unmarked(render(build(given)), first, 2 * len(texts))
        try:
            if bare != text:
                raise RowError(CHANGES)
            found = _places(said, given, first, text, ends)
        except RowError as error:
            failed = error if number == 0 or error.args != (CHANGES,) else failed
            continue
        within = any(mark not in (_around, None) for mark in marks)
        return text, _with_white_space(text, found, said, build, render) if within else found
    raise failed


def _places(
    said: Sequence[Said], given: list[str], first: int, text: str, ends: Mapping[int, list[int]]
) -> list[Place]:
    """Return the place of each thing said that was marked.

    Args:
        said: what is said.
        given: its texts with their marks, those that have any.
        first: the first mark.
        text: the rendered row.
        ends: where each mark stood in it.
    """
    found = []
    needed = _needed(said)
    for number, (thing, shown) in enumerate(zip(said, given, strict=True)):
        starts, stops = ends.get(2 * number, []), ends.get(2 * number + 1, [])
        if thing.spare and thing.turn not in needed:  # the only one of a call: where it is first
            starts, stops = starts[:1], stops[:1]
        here = [*starts, *stops]
        droppable = thing.part == "thinking" or thing.spare or not thing.text.strip()
        if len(shown) == len(thing.text) or (not here and droppable):
            continue
        if len(here) != 2 or len(starts) != len(stops):
            raise RowError(f"the chat template drops or repeats a turn's {thing.part}")
        found.append(_place(thing, shown, first + 2 * number, text, (here[0], here[1])))
    return sorted(found, key=lambda place: (place.start, place.end))


def generated(text: str, render: Callable[[tuple[str, str]], str]) -> list[tuple[int, int]]:
    """Return where the stretches that the template marks as generated begin and end.

    Args:
        text: the rendered row.
        render: the row rendered with two given texts around each stretch.
    """
    first = _plane(text)
    bare, ends = _unmarked(render((chr(first), chr(first + 1))), first, 2)
    if bare != text:
        raise RowError("the chat template changes the text that it marks as generated")
    return list(zip(ends.get(0, []), ends.get(1, []), strict=True))


def _ways(said: Sequence[Said]) -> Iterator[list[Mark | None]]:
    """Yield how each thing is marked, None for not at all, in every way worth a try."""
    needed = _needed(said)
    empty = {i for i, t in enumerate(said) if t.spare and not SWITCHES.sub("", t.text).strip()}
    spare = {i for i, t in enumerate(said) if t.spare and t.turn in needed}
    sets = list(dict.fromkeys(map(frozenset, (set(), empty, empty | spare))))
    outer = any(thing.text != thing.text.strip() for thing in said if not thing.quoted)
    for without, mark in itertools.product(sets, (_around, _at_ends, _within_tags)):
        if outer or mark is not _at_ends:  # it is the same without white space at the ends
            yield [
                None if i in without else _around if thing.quoted else mark
                for i, thing in enumerate(said)
            ]


def _needed(said: Sequence[Said]) -> set[int]:
    """Return the turns that say anything that needs a place."""
    return {thing.turn for thing in said if not thing.spare}


def _plane(text: str) -> int:
    for first in PLANES:
        if text.isascii() or not any(first <= ord(c) < first + ROOM for c in text):
            return first
    raise RowError("its text uses the private characters of both Unicode planes")


def _core(text: str) -> tuple[int, int]:
    """Return where the text without the white space at its ends begins and ends."""
    return len(text) - len(text.lstrip()), len(text.rstrip())


def _put(mark: Mark | None, text: str, code: int) -> str:
    return mark(text, code) if mark else text


def _around(text: str, mark: int) -> str:
    return f"{chr(mark)}{text}{chr(mark + 1)}"


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
    size = end = 0
    for match in _MARK.finditer(marked):
        number = _code(match[0]) - first
        if 0 <= number < count:
            kept.append(marked[end : match.start()])
            size += len(kept[-1])
            found.setdefault(number, []).append(size)
            end = match.end()
    return "".join([*kept, marked[end:]]), found


def _code(mark: str) -> int:
    """Return the character's number, from the character or from its escape sequence."""
    if len(mark) == 1:
        return ord(mark)
    if mark[1] == "U":
        return int(mark[2:], 16)
    return 0x10000 + ((int(mark[2:6], 16) & 0x3FF) << 10) + (int(mark[8:], 16) & 0x3FF)


def _place(thing: Said, given: str, code: int, text: str, here: tuple[int, int]) -> Place:
    """Return the place of the thing said between two marks, with the tags around them.

    Args:
        thing: what is said.
        given: its text with both marks.
        code: the first mark.
        text: the rendered row.
        here: where the marks stood in it.
    """
    low, high = given.index(chr(code)), given.index(chr(code + 1)) - 1
    before, after = thing.text[:low].lstrip(), thing.text[high:].rstrip()
    start, end = here
    if SWITCHES.fullmatch(before.rstrip()) and not text[:start].endswith(before):
        before = ""
    if SWITCHES.fullmatch(after) and not text.startswith(after, end):
        after = ""
    kept = text[:start].endswith(before) and text.startswith(after, end)
    kept &= not (thing.json and text[max(start - 1, 0) : start] + text[end : end + 1] in QUOTES)
    if not (kept and _written(thing, thing.text[low:high], text[start:end])):
        raise RowError(CHANGES)
    return Place(thing, start - len(before), end + len(after))


def _written(thing: Said, text: str, shown: str) -> bool:
    """Return whether `shown` is how a template may write a text that is said.

    That is, as it is. A prompt's words may be changed: what is read is what a model will read.
    Calls may stand within the quotes of JSON or Python.
    """
    if thing.json or thing.part in ANSWERED:
        return shown == text
    return thing.part != "tool_call" or shown in (
        text,
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        repr(text)[1:-1],
    )


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
    bare = [t if t.quoted else replace(t, text=t.text.strip()) for t in said]
    if bare == list(said):
        return found
    short, places = located(bare, build, render)
    if len(places) != len(found):
        raise RowError(CHANGES)
    kept = list(found)
    for number in range(len(found) + 1):
        left, right = found[number - 1 : number], found[number : number + 1]
        wide = text[left[0].end if left else 0 : right[0].start if right else len(text)]
        low = places[number - 1].end if left else 0
        own = short[low : places[number].start if right else len(short)]
        after, before = _blanks(left, end=True), _blanks(right, end=False)
        trail, lead = _kept(wide, own, after, before)
        if left:
            one = kept[number - 1]
            kept[number - 1] = Place(one.said, one.start, one.end + trail)
        if right:
            one = kept[number]
            kept[number] = Place(one.said, one.start - lead, one.end)
    return kept


def _blanks(place: Sequence[Place], *, end: bool) -> str:
    """Return the white space at one end of what is said there, outside of its marks."""
    text = "" if not place or place[0].said.quoted else place[0].said.text
    return text[len(text.rstrip()) :] if end else text[: len(text) - len(text.lstrip())]


def _kept(wide: str, own: str, after: str, before: str) -> tuple[int, int]:
    """Return how many characters between two places end the left and begin the right text."""
    more = len(wide) - len(own)
    for trail in range(min(len(after), more), -1, -1):
        lead = more - trail
        fits = wide.startswith(after[:trail]) and wide.endswith(before[len(before) - lead :])
        if 0 <= lead <= len(before) and fits and wide[trail : len(wide) - lead] == own:
            return trail, lead
    raise RowError(CHANGES)
