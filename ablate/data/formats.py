"""Formats: what the columns of a record mean, as turns of a conversation or as one text.

Every format becomes turns of parts, each part a role name and its text; later steps do not know
which format a row came in.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from ablate.config.schema import Dataset
from ablate.data.columns import FORMATS, WEIGHT, named
from ablate.data.sources import Record
from ablate.errors import nearest

TurnRole = Literal["system", "user", "assistant", "tool"]
SPEAKERS: Mapping[str, TurnRole] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
REASONING = ("reasoning_content", "reasoning", "thinking")  # an answer's reasoning, by its writers
DEEPEST = 100  # lists and objects within each other
LARGEST = 1e9  # of weights, so that a row's times a message's is a float32
PART_OF = {"system": "system", "user": "instruction", "assistant": "completion", "tool": "input"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: who speaks, and the parts of what is said, each a role name and its text."""

    role: TurnRole
    parts: tuple[tuple[str, str], ...]
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)  # the message's other keys
    weight: float = 1.0  # of the message's tokens in the loss
    named: str = ""  # as the row has it where templates may know the role: developer


@dataclass(frozen=True, slots=True)
class Row:
    """One training example: either turns that end with the assistant's, or one text."""

    turns: tuple[Turn, ...] = ()
    text: str | None = None
    tools: tuple[Any, ...] = field(
        default=(), hash=False
    )  # definitions that the chat template is given
    meta: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0  # of all its tokens in the loss, times those of its messages

    @property
    def place(self) -> str:
        """The row's place in its source, for messages."""
        return str(self.meta.get("place", "a row"))


def reader(dataset: Dataset, columns: set[str]) -> Callable[[Record], Row]:
    """Return what makes a row of a record, by the data set's format and column names.

    It raises `Malformed` where a record is no example.

    Args:
        dataset: the data set.
        columns: the names of all columns that any of its records has.
    """
    name, theirs = named(dataset, columns)
    read, used = _READERS[name], frozenset(theirs.values())
    ignored = frozenset(dataset.options.get("ignore_keys", ()))
    left_out = {theirs[ours] for ours in ignored & {"tools", "history"} if ours in theirs}
    weight = theirs.get(WEIGHT)

    def row_of(record: Record) -> Row:
        fields = record.fields
        for column in used:
            if not isinstance(value := fields.get(column), str):
                _check_depth(value, column)
        try:
            row = read(_without(fields, left_out) if left_out else fields, theirs)
        except Malformed:
            _check_format(fields, theirs, name)
            raise
        turns = row.turns
        if ignored:
            turns = tuple(dataclasses.replace(t, extra=_without(t.extra, ignored)) for t in turns)
        meta = {"place": record.place}
        if not fields.keys() <= used:
            meta |= {key: value for key, value in fields.items() if key not in used}
        weighs = row.weight if weight is None else _row_weight(fields, weight)
        return Row(turns, row.text, row.tools, meta, weighs)

    return row_of


def _check_format(fields: Mapping[str, Any], theirs: Mapping[str, str], name: str) -> None:
    """Raise where a record has none of the columns of the format that others are in."""
    columns = [theirs[ours] for ours in FORMATS[name][0]]
    held = [name for name, value in fields.items() if value is not None]
    if held and not set(columns) & set(held):
        raise Malformed(
            f"has {', '.join(sorted(held)[:6])}, but the rows are read by {' and '.join(columns)} "
            f"(format {name}); name one with dataset.format=NAME"
        )


def reasons(refused: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return how many rows were refused for each reason, with the first one's place."""
    first = {reason: place for reason, place in reversed(refused)}
    counts = Counter(reason for reason, _ in refused)
    return {f"{reason}, first {first[reason]}": count for reason, count in counts.items()}


class Malformed(Exception):
    """What is wrong with one record, without where."""


_Reader = Callable[[Mapping[str, Any], Mapping[str, str]], Row]


def _without(extra: Mapping[str, Any], keys: Set[str]) -> dict[str, Any]:
    return {key: value for key, value in extra.items() if key not in keys}


def _text_of(fields: Mapping[str, Any], column: str, *, optional: bool = False) -> str:
    value = fields.get(column)
    if type(value) is str and value.isascii():  # nearly always: no further look
        return value
    if value is None and optional:
        return ""
    if value is None:
        raise Malformed(f"{column} is missing")
    return _checked_text(value, column)


def _checked_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f"{name} must be text, is {type(value).__name__}")
    if half := half_pair(value):
        raise Malformed(f"{name} holds {half}")
    return value


def half_pair(text: str) -> str:
    """Return what makes `text` no text, half of a surrogate pair; empty where there is none."""
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half of a surrogate pair (U+{ord(text[error.start]):04X}), which is no text"
    return ""


def _exchange(
    system: str,
    prompt: tuple[tuple[str, str], ...],
    completion: str,
    earlier: tuple[Turn, ...] = (),
) -> Row:
    answer = Turn("assistant", (("completion", completion),))
    return Row(turns=(*_told(system), *earlier, Turn("user", prompt), answer))


def _told(system: str) -> tuple[Turn, ...]:
    return (Turn("system", (("system", system),)),) if system.strip() else ()


def _alpaca(fields: Mapping[str, Any], theirs: Mapping[str, str]) -> Row:
    instruction = _text_of(fields, theirs["instruction"])
    context = _text_of(fields, theirs["input"], optional=True)
    if not (instruction.strip() or context.strip()):
        raise Malformed("has neither an instruction nor an input")
    prompt: tuple[tuple[str, str], ...] = (("instruction", instruction),)
    if context.strip():
        prompt = (*prompt, ("input", context))
    system = _text_of(fields, theirs["system"], optional=True)
    earlier = _earlier(fields.get(theirs["history"]), theirs["history"])
    return _exchange(system, prompt, _text_of(fields, theirs["output"]), earlier)


def _earlier(value: Any, name: str) -> tuple[Turn, ...]:
    """Return the exchanges before a request: pairs of texts, or the JSON text of such a list.

    Anything but a list is a column of another meaning.
    """
    if value is None:
        return ()
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _listed(value, name)
    turns: list[Turn] = []
    for number, pair in enumerate(value if isinstance(value, list) else (), start=1):
        place = f"{name}: exchange {number}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise Malformed(
                f"{place} must be a request and its answer; or leave the column out with "
                "dataset.options.ignore_keys=[history]"
            )
        asked, answer = (_checked_text(text, place) for text in pair)
        turns.append(Turn("user", (("instruction", asked),)))
        turns.append(Turn("assistant", (("completion", answer),)))
    return tuple(turns)


def _prompt_completion(fields: Mapping[str, Any], theirs: Mapping[str, str]) -> Row:
    if any(isinstance(fields.get(theirs[ours]), list) for ours in ("prompt", "completion")):
        return _conversational(fields, theirs)
    prompt = _text_of(fields, theirs["prompt"])
    if not prompt.strip():
        raise Malformed("has an empty prompt; for text alone use dataset.format=text")
    system = _text_of(fields, theirs["system"], optional=True)
    return _exchange(system, (("instruction", prompt),), _text_of(fields, theirs["completion"]))


def _conversational(fields: Mapping[str, Any], theirs: Mapping[str, str]) -> Row:
    """Return a row whose prompt or completion is messages; answers in the prompt weigh 0."""
    asked, answer = (
        _spoken(fields.get(theirs[ours]), theirs[ours], speaker)
        for ours, speaker in (("prompt", "user"), ("completion", "assistant"))
    )
    given = (dataclasses.replace(t, weight=0.0) if t.role == "assistant" else t for t in asked)
    system = _text_of(fields, theirs["system"], optional=True)
    return _talk((*_told(system), *given, *answer), fields, theirs)


def _spoken(value: Any, name: str, speaker: str) -> tuple[Turn, ...]:
    found = [{"role": speaker, "content": value}] if isinstance(value, str) else value
    try:
        return _turns(found, name)
    except Malformed as fault:
        raise Malformed(f"{name}: {fault}") from None


def _text(fields: Mapping[str, Any], theirs: Mapping[str, str]) -> Row:
    text = _text_of(fields, theirs["text"])
    if not text.strip():
        raise Malformed("has an empty text")
    return Row(text=text)


def _messages(fields: Mapping[str, Any], theirs: Mapping[str, str]) -> Row:
    found = _listed(fields.get(theirs["messages"]), theirs["messages"])
    return _talk(_turns(found, theirs["messages"]), fields, theirs)


def _turns(messages: Any, name: str) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not messages:
        raise Malformed(f"{name} must be a list of messages with role and content")
    said = _taking_turns(messages)
    return tuple(_turn(message, number) for number, message in enumerate(said, start=1))


def _talk(turns: tuple[Turn, ...], fields: Mapping[str, Any], theirs: Mapping[str, str]) -> Row:
    roles = [turn.role for turn in turns]
    if roles[-1] != "assistant":
        raise Malformed("has no completion: its last message is not the assistant's")
    if "user" not in roles:
        raise Malformed("needs a user's message")
    return Row(turns=turns, tools=_tools(fields.get(theirs["tools"]), theirs["tools"]))


def _taking_turns(messages: list[Any]) -> list[Any]:
    """Return messages that are texts alone, as LIMA has them, with roles, the user's first."""
    if not all(isinstance(message, str) for message in messages):
        return messages
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(messages)]


def _tools(value: Any, column: str) -> tuple[Any, ...]:
    """Return the definitions of tools: a list, or the JSON text of one."""
    value = _listed(value, column) or []
    if not isinstance(value, list):
        raise Malformed(f"{column} must be a list, is {type(value).__name__}")
    return tuple(value)


def _listed(value: Any, name: str) -> Any:
    """Return what JSON text holds, and anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value or "null")
    except (ValueError, RecursionError):
        raise Malformed(f"{name} is text, but no JSON") from None
    _check_depth(found, name)
    return found


def too_deep(value: Any) -> bool:
    """Return whether lists and objects are nested too deeply to be walked through."""
    level = [value]
    for _ in range(DEEPEST):
        if not level:
            return False
        nested = [each for each in level if isinstance(each, Mapping | list)]
        level = [v for n in nested for v in (n.values() if isinstance(n, Mapping) else n)]
    return bool(level)


def _check_depth(value: Any, name: str) -> None:
    if isinstance(value, Mapping | list) and too_deep(value):
        raise Malformed(f"{name} is nested more than {DEEPEST} levels deep")


def _turn(message: Any, number: int) -> Turn:
    if not isinstance(message, Mapping):
        kind = type(message).__name__
        raise Malformed(f"message {number} must be an object, or all of them text, is {kind}")
    extra = {key: value for key, value in message.items() if value is not None}
    speaker = extra.pop("role", None) or extra.pop("from", None)
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        near = nearest(speaker, SPEAKERS)
        raise Malformed(f"message {number}: role {_brief(speaker)} is unknown.{near}")
    role = SPEAKERS[speaker]
    if "tool_calls" in extra:
        extra["tool_calls"] = _calls(extra["tool_calls"], f"message {number}: tool_calls")
    if speaker == "function_call":
        extra["tool_calls"] = _shared_calls(_said(extra, number, optional=False), number)
    for key in [key for key in REASONING if key in extra]:
        _checked_text(extra[key], f"message {number}: {key}")
        if not extra[key] and any(extra.get(other) for other in REASONING):
            del extra[key]  # written under another key
    content = _said(extra, number, optional=role == "assistant" and "tool_calls" in extra)
    if role == "user" and not content.strip():
        raise Malformed(f"message {number}: the user says nothing")
    named = speaker if speaker == "developer" else ""
    return Turn(role, ((PART_OF[role], content),), extra, _weight(extra, number), named)


def _row_weight(fields: Mapping[str, Any], column: str) -> float:
    """Return a row's weight; files of text columns hold it as text."""
    found = fields.get(column)
    try:
        weight = float(found) if isinstance(found, str) else found
    except (ValueError, OverflowError):
        weight = None
    return _checked_weight(weight, f"{column}={_brief(found)}: a row's weight")


def _weight(extra: dict[str, Any], number: int) -> float:
    """Return a message's weight, taken out of `extra`: `weight`, or 0 for `train: false`."""
    train = extra.pop("train", None)
    if train is not None and not isinstance(train, bool):
        raise Malformed(f"message {number}: train={_brief(train)}: must be true or false")
    found = extra.pop("weight", 1 if train is None else train)
    weight = _checked_weight(found, f"message {number}: weight={_brief(found)}:")
    if train is not None and bool(weight) != train:
        raise Malformed(
            f"message {number}: train={_brief(train)} with weight={_brief(found)}: "
            "one says that it is trained on, the other that it is not"
        )
    return weight


def _checked_weight(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= LARGEST:
        raise Malformed(f"{name} must be a number of at least 0 and at most {LARGEST:.0e}")
    return float(value)


def _brief(value: Any) -> str:
    """Return a value as it is shown in a message."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _calls(value: Any, name: str) -> list[Any]:
    """Return a message's calls: a list of objects, or the JSON text of one."""
    found = _listed(value, name) or []
    if not isinstance(found, list) or not all(isinstance(call, Mapping) for call in found):
        raise Malformed(f"{name} must be a list of calls, is {_brief(found)}")
    return found


def _shared_calls(text: str, number: int) -> list[dict[str, Any]]:
    """Return the calls that ShareGPT's `function_call` writes as JSON text, one or a list."""
    name = f"message {number}: function_call"
    found = _listed(text, name)
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise Malformed(f"{name} must be a call with name and arguments, or a list of them")
    return [{"type": "function", "function": call} for call in calls]


def _said(extra: dict[str, Any], number: int, *, optional: bool) -> str:
    """Return what a message says, taken out of `extra`: its text, or its text parts joined."""
    name = "value" if "value" in extra and "content" not in extra else "content"
    content = extra.pop(name, "" if optional else None)
    if isinstance(content, list):
        content = "".join(_part_text(part, f"message {number}") for part in content)
    if content is None:
        raise Malformed(f"message {number}: {name} is missing")
    return _checked_text(content, f"message {number}: {name}")


def _part_text(part: Any, name: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        raise Malformed(f"{name}: only parts of type text can be trained on")
    return _checked_text(part.get("text"), f"{name}: the text of a part")


_READERS: Mapping[str, _Reader] = {
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "messages": _messages,
    "text": _text,
}
