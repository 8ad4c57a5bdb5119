"""The chat template's text of a row, with the role of every character.

Where each thing said stands is found by `ablate.data.marked`. What is left is the template's own
text between them, and an answer begins and ends in it:

    begins   behind the generation prompt (what `add_generation_prompt` adds), or, where the
             template has none, with the first thing the answer says
    ends     with the stop: what the template puts after an answer whether or not another turn
             follows, without white space at its end

What the template writes in between, empty reasoning or a tool call's frame, is part of the answer:
the model has to generate it.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ablate.data.formats import REASONING, Row, Turn
from ablate.data.marked import Message, Place, Said, located
from ablate.data.pieces import Piece, kind_of, last_only, role_of
from ablate.data.tokenizer import Tokenizer
from ablate.errors import RowError, UserError
from ablate.roles import Detail, Role

# Keys of a message that tell messages and calls apart, and say nothing.
UNSHOWN = frozenset({"id", "tool_call_id", "type", "index"})
DETAIL_OF = {"thinking": Detail.THINKING, "tool_call": Detail.TOOL_CALL}
JOINT = "\n"  # between a row's instruction and its input, in one user's turn
# A header holds tags and a speaker's name; three words or more are inserted text.
_TAG = re.compile(r"<[^<>\s]*>|\[[A-Z_/]+\]")
_WORD = re.compile(r"[^\W\d_]{2,}")
_SPEAKER = re.compile(r"\s*(system|user|assistant|developer|human)\s*[\n:]\s*", re.IGNORECASE)
# What a template writes comes in such units: a tag, a word, white space, a character.
_REASONED = re.compile(r"(\s*<think>)(.*?)(</think>)(.*)", re.DOTALL)
_UNIT = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]|\w+|\s+|.", re.DOTALL)


def pieces(row: Row, tokenizer: Tokenizer, *, turns: str) -> list[Piece]:
    """Return the rendered row as pieces of one role each.

    Raises:
        RowError: the template refuses the row, changes its words, or stops no answer.
        UserError: there is no template, or it does not show what the row's messages hold.
    """
    text, places = _rendered(row.turns, tokenizer, row.tools)
    found = _pieces(row, text, places, tokenizer)
    found = _with_tools(found, row, text, tokenizer)
    found = [(piece, role) for piece, role in found if piece]
    return last_only(found) if turns == "last" else found


@dataclasses.dataclass(frozen=True, slots=True)
class _Joined:
    """A text of fixed strings and things said."""

    pieces: tuple[str | Said, ...]


def _message(number: int, turn: Turn) -> Message:
    """Return a turn as a message whose texts are the things said."""
    extra = {}
    for key, value in turn.extra.items():
        part = "thinking" if key in REASONING else "tool_call" if key == "tool_calls" else ""
        extra[key] = _leaves(value, number, part) if part else value
    return {"role": turn.role, "content": _content(number, turn), **extra}


def _content(number: int, turn: Turn) -> _Joined:
    """Return a turn's parts; reasoning within an answer is a part of its own."""
    found: list[str | Said] = []
    for place, (part, text) in enumerate(turn.parts):
        if place:  # folded system text stands apart
            found.append(JOINT * (1 + (turn.parts[place - 1][0] == "system")))
        reasoned = _REASONED.fullmatch(text) if part == "completion" else None
        if reasoned:
            opening, reasoning, closing, answer = reasoned.groups()
            found += [opening, Said(number, "thinking", reasoning), closing]
            text = answer
        found.append(Said(number, part, text))
    return _Joined(tuple(found))


def _leaves(value: Any, number: int, part: str, key: str = "") -> Any:
    """Return the value with its texts as things said; a call's id and type are no text."""
    if isinstance(value, str):
        return value if key in ("id", "type") else Said(number, part, value)
    if isinstance(value, Mapping):
        return {k: _leaves(v, number, part, k) for k, v in value.items()}
    return [_leaves(v, number, part) for v in value] if isinstance(value, list) else value


def _said(value: Any) -> Iterator[Said]:
    """Yield the things said within messages, in order."""
    if isinstance(value, Said):
        yield value
    elif isinstance(value, _Joined | Mapping | list):
        inner = value.pieces if isinstance(value, _Joined) else value
        for each in inner.values() if isinstance(inner, Mapping) else inner:
            yield from _said(each)


def _filled(value: Any, texts: Iterator[str]) -> Any:
    """Return messages with a text in place of each thing said, in the order of `_said`."""
    if isinstance(value, Said):
        return next(texts)
    if isinstance(value, _Joined):
        return "".join(_filled(piece, texts) for piece in value.pieces)
    if isinstance(value, Mapping):
        return {key: _filled(each, texts) for key, each in value.items()}
    return [_filled(each, texts) for each in value] if isinstance(value, list) else value


def _rendered(
    turns: Sequence[Turn], tokenizer: Tokenizer, tools: Sequence[Any] = ()
) -> tuple[str, list[Place]]:
    messages = [_message(number, turn) for number, turn in enumerate(turns)]
    render = functools.partial(tokenizer.chat, tools=tools)
    text, places = located(
        list(_said(messages)), lambda texts: _filled(messages, iter(texts)), render
    )
    _check_shown(turns, text, render)
    return text, places


def _check_shown(turns: Sequence[Turn], text: str, render: Callable[[list[Message]], str]) -> None:
    """Raise where a message has a key that makes no difference to the text."""
    for number, turn in enumerate(turns):
        for key in turn.extra.keys() - UNSHOWN:
            fewer = {k: v for k, v in turn.extra.items() if k != key}
            others = [*turns[:number], dataclasses.replace(turn, extra=fewer), *turns[number + 1 :]]
            messages = [_message(n, t) for n, t in enumerate(others)]
            try:
                same = render(_filled(messages, _texts(messages))) == text
            except RowError:  # the template needs it
                continue
            dropped = key in REASONING and any(t.role == "user" for t in turns[number:])
            if same and not dropped:
                raise UserError(
                    f"dataset.template=chat: message {1 + number}: its key {key!r} makes no "
                    "difference to the chat template's text; leave it out with "
                    f"dataset.options.ignore_keys=[{key}]"
                )


def _texts(messages: Sequence[Message]) -> Iterator[str]:
    return (said.text for said in _said(list(messages)))


def _pieces(row: Row, text: str, places: list[Place], tokenizer: Tokenizer) -> list[Piece]:
    """Return the things said, each in its role, and the template's text between them."""
    found: list[Piece] = []
    end, before = 0, None
    for place in (*places, None):
        gap = text[end : place.start if place else len(text)]
        after = place.said if place else None
        found += _between(gap, row, before, after, tokenizer)
        if place:
            said = text[place.start : place.end]
            found.append(_of_turn((said, _role_of(place.said, row)), row.turns[place.said.turn]))
            end, before = place.end, place.said
    return found


def _role_of(said: Said, row: Row) -> Role | Detail:
    if row.turns[said.turn].role == "tool":
        return Detail.TOOL_RESULT
    return DETAIL_OF.get(said.part) or role_of(said.part)


def _of_turn(piece: Piece, turn: Turn) -> Piece:
    """Return a piece with the weight of its turn's message."""
    text, role = piece
    return text, dataclasses.replace(kind_of(role), weight=turn.weight)


def _between(
    gap: str, row: Row, before: Said | None, after: Said | None, tokenizer: Tokenizer
) -> list[Piece]:
    """Return the template's text between two things said, as pieces."""
    found: list[Piece] = []
    if before and after and before.turn == after.turn:
        turn = row.turns[before.turn]
        return [_of_turn((gap, _within(turn, before.part, after.part)), turn)]
    if before and row.turns[before.turn].role == "assistant":
        start, end = _stop_in(gap, tokenizer, last=after is None)
        turn = row.turns[before.turn]
        ending = _within(turn, before.part, before.part) if gap[:start].strip() else Role.COMPLETION
        found = [
            _of_turn((gap[:start], ending), turn),
            _of_turn((gap[start:end], Detail.STOP), turn),
        ]
        gap = gap[end:]
    low, high = len(gap), len(gap)
    opening: Piece = ("", Role.COMPLETION)
    if after and row.turns[after.turn].role == "assistant":
        low, high = _prompt_in(gap, tokenizer)
        part = "thinking" if "think" in gap[high:].lower() else after.part
        opening = _of_turn(
            (gap[high:], _within(row.turns[after.turn], part, part)), row.turns[after.turn]
        )
    head = gap[:low]
    found += [(head, Role.SPECIAL)] if before else _lead(head, row.turns[0].role, tokenizer)
    return [*found, (gap[low:high], Detail.GENERATION_PROMPT), opening]


def _within(turn: Turn, before: str, after: str) -> Role | Detail:
    """Return what the template's text between two parts of one turn is."""
    if turn.role != "assistant":
        return role_of(after) if turn.role != "tool" else Detail.TOOL_RESULT
    if "tool_call" in (before, after):
        return Detail.TOOL_CALL
    return Detail.THINKING if "thinking" in (before, after) else Role.COMPLETION


def _with_tools(found: list[Piece], row: Row, text: str, tokenizer: Tokenizer) -> list[Piece]:
    """Return the pieces with the template's text about the row's tools as such."""
    if not row.tools:
        return found
    bare, _ = _rendered(row.turns, tokenizer)
    if bare == text:
        raise RowError("the chat template does not show the row's tools")
    low = len(_shared(text, bare))
    high = len(text) - len(_shared(text[low:][::-1], bare[low:][::-1]))
    split: list[Piece] = []
    place = 0
    for piece, role in found:
        first, last = (min(max(edge - place, 0), len(piece)) for edge in (low, high))
        inserted: list[Piece] = [(piece[first:last], role)]
        if kind_of(role).role in (Role.SPECIAL, Role.BOILERPLATE):
            inserted = _definitions(piece[first:last], tokenizer)
        split += [(piece[:first], role), *inserted, (piece[last:], role)]
        place += len(piece)
    return split


def _stop_in(gap: str, tokenizer: Tokenizer, *, last: bool) -> tuple[int, int]:
    """Return where the stop begins and ends in the text behind an answer."""
    stop = tokenizer.chat_stop
    if stop and stop.text in gap:
        start = gap.index(stop.text)
        return start, start + len(stop.text)
    known = [
        (gap.index(t) + len(t), gap.index(t)) for t in tokenizer.special_tokens if t and t in gap
    ]
    if last and not known:
        raise RowError("the chat template puts no stop token after an answer")
    end, start = min(known, default=(0, 0))
    return start, end


def _prompt_in(gap: str, tokenizer: Tokenizer) -> tuple[int, int]:
    """Return where the generation prompt begins and ends in the text before an answer."""
    units = _UNIT.findall(_generation_prompt(tokenizer))
    while units:
        prompt = "".join(units)
        if prompt in gap:
            return gap.index(prompt), gap.index(prompt) + len(prompt)
        units.pop()  # a prompt that opens reasoning, where the row has none
    return len(gap), len(gap)


def _turns(*roles: str) -> list[Turn]:
    """Return turns of one word each, to see what a template puts around them."""
    part = {"system": "system", "user": "instruction", "assistant": "completion"}
    return [Turn(r, ((part[r], f"qx{i}zv"),)) for i, r in enumerate(roles)]  # type: ignore[arg-type]


@functools.lru_cache(maxsize=256)
def _gaps(tokenizer: Tokenizer, *roles: str) -> tuple[str, ...]:
    """Return the template's own text before, between and after turns of these roles."""
    text, places = _rendered(_turns(*roles), tokenizer)
    starts = [*(p.start for p in places), len(text)]
    return tuple(text[a:b] for a, b in zip([0, *(p.end for p in places)], starts, strict=True))


@functools.lru_cache(maxsize=16)
def _generation_prompt(tokenizer: Tokenizer) -> str:
    """Return what the template adds for an answer to be generated; empty where it adds nothing."""
    asked = [{"role": "user", "content": "qx0zv"}]
    try:
        shown, more = (tokenizer.chat(asked, generation_prompt=given) for given in (False, True))
    except UserError:
        return ""
    return more[len(shown) :] if more.startswith(shown) else ""


def _shared(one: Sequence[str], other: Sequence[str]) -> str:
    """Return the units (or characters) that both begin with."""
    same = []
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        same.append(a)
    return "".join(same)


def _lead(text: str, first: str, tokenizer: Tokenizer) -> list[Piece]:
    """Return the text before the first content: tags, and what the template says by itself."""
    head, inserted, tail = text, "", ""
    if first != "system":
        try:
            head, tail = _gaps(tokenizer, "system", "user", "assistant")[:2]
        except UserError:  # the template knows no system turn
            head, tail = "", _shared(text[::-1], _between_exchanges(tokenizer)[::-1])[::-1]
        if not _encloses(text, head, tail):
            head, tail = "", ""
        inserted = text[len(head) : len(text) - len(tail)]
        if not (head or tail):
            return _scanned(text, tokenizer)
    return [*_scanned(head, tokenizer), *_scanned(inserted, tokenizer), (tail, Role.SPECIAL)]


def _between_exchanges(tokenizer: Tokenizer) -> str:
    try:
        return _gaps(tokenizer, *("user", "assistant") * 2)[2]
    except UserError:
        return ""


def _encloses(text: str, head: str, tail: str) -> bool:
    fits = len(head) + len(tail) <= len(text)
    return fits and text.startswith(head) and text.endswith(tail)


def _chunks(text: str, tokenizer: Tokenizer) -> list[tuple[str, int]]:
    """Return the special tokens of a text and what is between, with the size of its header."""
    tokens = sorted(filter(None, tokenizer.special_tokens), key=len, reverse=True)
    pattern = "(" + "|".join(re.escape(t) for t in tokens) + ")"
    found = []
    for chunk in re.split(pattern, text) if tokens else [text]:
        speaker = _SPEAKER.match(chunk)
        found.append((chunk, len(chunk) if chunk in tokens else speaker.end() if speaker else 0))
    return found


def _definitions(text: str, tokenizer: Tokenizer) -> list[Piece]:
    """Return what the template says of tools: `special` tags and headers, and the definitions."""
    found: list[Piece] = []
    for chunk, start in _chunks(text, tokenizer):
        rest = Detail.TOOLS if chunk[start:].strip() else Role.SPECIAL
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
