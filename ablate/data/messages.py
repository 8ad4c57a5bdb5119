"""A row's turns as a chat template's messages, with the things said in them told apart.

Templates disagree on what they take, and where one refuses or changes a row's messages as they
came, the next form is tried:

    as they are         content is text, a call's arguments are as the row has them
    other arguments     what the JSON text of arguments holds, or the JSON text for an object
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablate.data.formats import REASONING, Turn, too_deep
from ablate.data.marked import SWITCHES, Message, Said

JOINT = "\n"  # between a row's instruction and its input, in one user's turn
UNSAID = ("id", "type", "tool_call_id", "index")  # keys of a call that tell calls apart
# Reasoning within an answer; its opening tag may stand in the template's own text.
_REASONED = re.compile(
    r"(\s*<think>|\s*\[THINK\]|(?!.*<think>))(.*?)(</think>|\[/THINK\])(.*)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class _Joined:
    """A text of fixed strings and things said."""

    pieces: tuple[str | Said, ...]


def forms(turns: Sequence[Turn], *, opened: bool = False) -> Iterator[list[Message]]:
    """Yield the messages of `turns`, with things said for texts, in each form that differs.

    Args:
        turns: of the row.
        opened: whether a closing tag alone ends reasoning; else it is a word of the answer.
    """
    make = functools.partial(_message, opened=opened)
    messages = [make(number, turn) for number, turn in enumerate(turns)]
    yield messages
    if any("tool_calls" in turn.extra for turn in turns):
        yield [make(number, turn, other=True) for number, turn in enumerate(turns)]


def said_in(value: Any) -> Iterator[Said]:
    """Yield the things said within messages, in order."""
    if isinstance(value, Said):
        yield value
    elif isinstance(value, _Joined | Mapping | list):
        inner = value.pieces if isinstance(value, _Joined) else value
        for each in inner.values() if isinstance(inner, Mapping) else inner:
            yield from said_in(each)


def filled(value: Any, texts: Iterator[str]) -> Any:
    """Return messages with a text in place of each thing said, in the order of `said_in`."""
    if isinstance(value, Said):
        return next(texts)
    if isinstance(value, _Joined):
        return "".join(filled(piece, texts) for piece in value.pieces)
    if isinstance(value, Mapping):
        return {key: filled(each, texts) for key, each in value.items()}
    return [filled(each, texts) for each in value] if isinstance(value, list) else value


def plain(messages: Sequence[Message]) -> Any:
    """Return the messages as a chat template is given them."""
    return filled(list(messages), (said.text for said in said_in(list(messages))))


def _message(number: int, turn: Turn, *, opened: bool, other: bool = False) -> Message:
    extra: dict[str, Any] = {}
    for key, value in turn.extra.items():
        if key in REASONING:
            extra[key] = Said(number, "thinking", value)
        elif key == "tool_calls":
            extra[key] = _call(_other_arguments(value) if other else value, number)
        else:
            extra[key] = value
    content = _content(number, turn, opened=opened)
    return {"role": turn.named or turn.role, "content": content, **extra}


def _content(number: int, turn: Turn, *, opened: bool) -> _Joined:
    """Return a turn's parts; reasoning within an answer is a part of its own."""
    found: list[str | Said] = []
    for place, (part, text) in enumerate(turn.parts):
        if place:  # folded system text stands apart
            found.append(JOINT * (1 + (turn.parts[place - 1][0] == "system")))
        reasoned = _REASONED.fullmatch(text) if part == "completion" else None
        if reasoned and (opened or reasoned[1]):
            opening, reasoning, closing, answer = reasoned.groups()
            found += [opening, Said(number, "thinking", reasoning), closing]
            text = answer
        switches = part == "system" and text.strip() and not SWITCHES.sub("", text).strip()
        spare = bool(switches) or (not text.strip() and "tool_calls" in turn.extra)
        found.append(Said(number, part, text, spare=spare, quoted=turn.role == "tool"))
    return _Joined(tuple(found))


def _call(value: Any, number: int, key: str = "") -> Any:
    """Return calls with their texts as things said; a template may look at a call's name."""
    if isinstance(value, str):
        text = key == "arguments" and _value(value) is not value
        return Said(number, "tool_call", value, spare=key == "name", quoted=True, json=text)
    if isinstance(value, Mapping):
        return {k: v if k in UNSAID else _call(v, number, k) for k, v in value.items()}
    return [_call(each, number) for each in value] if isinstance(value, list) else value


def _other_arguments(value: Any, key: str = "") -> Any:
    """Return calls whose arguments are JSON text where they were none, and vice versa."""
    if key == "arguments":
        return _value(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return {k: _other_arguments(v, k) for k, v in value.items()}
    return [_other_arguments(each) for each in value] if isinstance(value, list) else value


def _value(text: str) -> Any:
    """Return what JSON text holds, and any other text as it is."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if too_deep(found) else found
