"""Formats: what the columns of a record mean, as turns of a conversation or as one text.

Every format becomes turns of parts, each part a role name and its text; later steps do not know
which format a row came in.
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ablate.config.schema import Dataset
from ablate.data.sources import Record
from ablate.errors import UserError, nearest, unknown

TurnRole = Literal["system", "user", "assistant", "tool"]
FORMATS = {  # the columns that a format needs, and those it may have
    "messages": (("messages",), ("tools",)),
    "alpaca": (("instruction", "output"), ("input", "system")),
    "prompt_completion": (("prompt", "completion"), ("system",)),
    "text": (("text",), ()),
}
WEIGHT = "weight"  # of a row, in a column that the data set names: no column's name means it
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
PART_OF = {"system": "system", "user": "instruction", "assistant": "completion", "tool": "input"}


# Usual names of columns where ours are not there, the likelier first.
CONVERSATIONS = ("conversations", "conversation", "dialogue", "dialog", "chat")
REQUESTS = ("instruction", "question", "query", "prompt", "problem")
ANSWERS = ("output", "answer", "response", "completion", "solution")
CONTEXTS = ("input", "context")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: who speaks, and the parts of what is said, each a role name and its text."""

    role: TurnRole
    parts: tuple[tuple[str, str], ...]
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)  # the message's other keys
    weight: float = 1.0  # of the message's tokens in the loss


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


def parse(found: list[Record], dataset: Dataset) -> tuple[list[Row], dict[str, int]]:
    """Return one row per record, by the data set's format and column names.

    Returns:
        the rows; with on_bad_row=drop, how many records are no example, by reason.
    """
    columns = {name for record in found for name in record.fields}
    name, known = (
        _detect(dataset, columns)
        if dataset.format == "auto"
        else (dataset.format, dict(dataset.columns))
    )
    needed, optional = FORMATS[name]
    optional = (*optional, *(w for w in [WEIGHT] if w in dataset.columns))
    for ours in dataset.columns:
        if ours not in needed + optional:
            raise unknown("dataset.columns", ours, (*needed, *optional, WEIGHT))
    theirs = {ours: known.get(ours, ours) for ours in needed + optional}
    for ours in (*needed, *known):
        if theirs[ours] not in columns:
            raise _missing(dataset, theirs[ours], columns, name)
    rows: list[Row] = []
    refused: list[tuple[str, str]] = []
    for record in found:
        try:
            rows.append(_read(record, dataset, _READERS[name], theirs))
        except _Malformed as fault:
            if dataset.on_bad_row == "error":
                raise UserError(
                    f"dataset.path={dataset.path}: {record.place}: {fault}; correct the row or "
                    "leave such rows out with dataset.on_bad_row=drop"
                ) from None
            refused.append((str(fault), record.place))
    return rows, reasons(refused)


def reasons(refused: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return how many rows were refused for each reason, with the first one's place."""
    first = {reason: place for reason, place in reversed(refused)}
    counts = Counter(reason for reason, _ in refused)
    return {f"{reason}, first {first[reason]}": count for reason, count in counts.items()}


def _detect(dataset: Dataset, columns: set[str]) -> tuple[str, dict[str, str]]:
    """Return the first format all of whose needed columns are there, under our or usual names."""
    given = dict(dataset.columns)
    for name, (needed, _) in FORMATS.items():
        if all(given.get(ours, ours) in columns for ours in needed):
            return name, given
    decided = any(ours in needed for ours in given for needed, _ in FORMATS.values())
    usual = [] if decided else _by_usual_names(columns)
    if len(usual) == 1:
        name, found = usual[0]
        return name, found | given
    if usual:
        shown = " or ".join(" and ".join(names.values()) for _, names in usual[:3])
        raise UserError(
            f"dataset.path={dataset.path}: its columns may be {shown}; name yours with "
            "dataset.columns.instruction=COLUMN dataset.columns.output=COLUMN"
        )
    if not decided and not any(columns & set(needed) for needed, _ in FORMATS.values()):
        have = ", ".join(sorted(columns)[:12])
        raise UserError(
            f"dataset.path={dataset.path}: its columns {have} are none of instruction and output, "
            "prompt and completion, messages, text; name yours with "
            "dataset.columns.instruction=COLUMN dataset.columns.output=COLUMN"
        )
    best = max(FORMATS, key=lambda n: len(columns & set(FORMATS[n][0])))
    missing = [c for c in FORMATS[best][0] if dataset.columns.get(c, c) not in columns]
    raise _missing(dataset, dataset.columns.get(missing[0], missing[0]), columns, best)


def _by_usual_names(columns: set[str]) -> list[tuple[str, dict[str, str]]]:
    """Return the formats, with the names of their columns, that usual names stand for."""
    talks = [c for c in CONVERSATIONS if c in columns]
    if talks:
        return [("messages", {"messages": talk}) for talk in talks]
    context = next((c for c in CONTEXTS if c in columns), None)
    more = {"input": context} if context else {}
    return [
        ("alpaca", {"instruction": asked, "output": answer, **more})
        for asked in REQUESTS
        for answer in ANSWERS
        if {asked, answer} <= columns
    ]


def _missing(dataset: Dataset, column: str, columns: set[str], name: str) -> UserError:
    have = ", ".join(sorted(columns)[:12])
    return UserError(
        f"dataset.path={dataset.path}: no column {column!r}, which format {name} needs; it has "
        f"{have}. Name yours with dataset.columns.{name_of(dataset, column)}=COLUMN."
        f"{nearest(column, columns)}"
    )


def name_of(dataset: Dataset, column: str) -> str:
    """Return our name for the column that the data set calls `column`."""
    return next((ours for ours, theirs in dataset.columns.items() if theirs == column), column)


class _Malformed(Exception):
    """What is wrong with one record, without where."""


_Reader = Callable[[Mapping[str, Any], Mapping[str, str]], Row]


def _read(record: Record, dataset: Dataset, read: _Reader, theirs: Mapping[str, str]) -> Row:
    row = read(record.fields, theirs)
    if ignored := set(dataset.options.get("ignore_keys", ())):
        turns = (dataclasses.replace(t, extra=_without(t.extra, ignored)) for t in row.turns)
        tools = () if "tools" in ignored else row.tools
        row = dataclasses.replace(row, turns=tuple(turns), tools=tools)
    if WEIGHT in theirs:
        row = dataclasses.replace(row, weight=_row_weight(record.fields, theirs[WEIGHT]))
    used = set(theirs.values())
    rest = {k: v for k, v in record.fields.items() if k not in used}
    return dataclasses.replace(row, meta={"place": record.place, **rest})


def _without(extra: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in extra.items() if key not in keys}


def _text_of(fields: Mapping[str, Any], column: str, *, optional: bool = False) -> str:
    value = fields.get(column)
    if value is None and optional:
        return ""
    if value is None:
        raise _Malformed(f"{column} is missing")
    return _checked_text(value, column)


def _checked_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _Malformed(f"{name} must be text, is {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            raise _Malformed(
                f"{name} holds half of a surrogate pair (U+{code:04X}), which is no text"
            ) from None
    return value


def _exchange(system: str, prompt: tuple[tuple[str, str], ...], completion: str) -> Row:
    head = (Turn("system", (("system", system),)),) if system.strip() else ()
    answer = Turn("assistant", (("completion", completion),))
    return Row(turns=(*head, Turn("user", prompt), answer))


def _alpaca(fields: Mapping[str, Any], theirs: Mapping[str, str]) -> Row:
    instruction = _text_of(fields, theirs["instruction"])
    context = _text_of(fields, theirs["input"], optional=True)
    if not (instruction.strip() or context.strip()):
        raise _Malformed("has neither an instruction nor an input")
    prompt: tuple[tuple[str, str], ...] = (("instruction", instruction),)
    if context.strip():
        prompt = (*prompt, ("input", context))
    system = _text_of(fields, theirs["system"], optional=True)
    return _exchange(system, prompt, _text_of(fields, theirs["output"]))


def _prompt_completion(fields: Mapping[str, Any], theirs: Mapping[str, str]) -> Row:
    prompt = _text_of(fields, theirs["prompt"])
    if not prompt.strip():
        raise _Malformed("has an empty prompt; for text alone use dataset.format=text")
    system = _text_of(fields, theirs["system"], optional=True)
    return _exchange(system, (("instruction", prompt),), _text_of(fields, theirs["completion"]))


def _text(fields: Mapping[str, Any], theirs: Mapping[str, str]) -> Row:
    text = _text_of(fields, theirs["text"])
    if not text.strip():
        raise _Malformed("has an empty text")
    return Row(text=text)


def _messages(fields: Mapping[str, Any], theirs: Mapping[str, str]) -> Row:
    messages = fields.get(theirs["messages"])
    if not isinstance(messages, list) or not messages:
        raise _Malformed(f"{theirs['messages']} must be a list of messages with role and content")
    said = _taking_turns(messages)
    turns = tuple(_turn(message, number) for number, message in enumerate(said, start=1))
    roles = [turn.role for turn in turns]
    if roles[-1] != "assistant":
        raise _Malformed("has no completion: its last message is not the assistant's")
    if "user" not in roles or "system" in roles[1:]:
        raise _Malformed("needs a user's message, and a system message only at the start")
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
        raise _Malformed(f"{column} must be a list, is {type(value).__name__}")
    return tuple(_present(value))


def _listed(value: Any, name: str) -> Any:
    """Return what JSON text holds, and anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value or "null")
    except ValueError:
        raise _Malformed(f"{name} is text, but no JSON") from None


def _turn(message: Any, number: int) -> Turn:
    if not isinstance(message, Mapping):
        kind = type(message).__name__
        raise _Malformed(f"message {number} must be an object, or all of them text, is {kind}")
    extra = _present(message)
    speaker = extra.pop("role", None) or extra.pop("from", None)
    if speaker not in SPEAKERS:
        near = nearest(speaker, SPEAKERS)
        raise _Malformed(f"message {number}: role {speaker!r} is unknown.{near}")
    role = SPEAKERS[speaker]
    if "tool_calls" in extra:
        extra["tool_calls"] = _present(
            _listed(extra["tool_calls"], f"message {number}: tool_calls")
        )
    if speaker == "function_call":
        extra["tool_calls"] = _shared_calls(_said(extra, number, optional=False), number)
    for reasoning in REASONING:
        if reasoning in extra:
            _checked_text(extra[reasoning], f"message {number}: {reasoning}")
    content = _said(extra, number, optional=role == "assistant" and "tool_calls" in extra)
    if role == "user" and not content.strip():
        raise _Malformed(f"message {number}: the user says nothing")
    return Turn(role, ((PART_OF[role], content),), extra, _weight(extra, number))


def _row_weight(fields: Mapping[str, Any], column: str) -> float:
    """Return a row's weight; files of text columns hold it as text."""
    found = fields.get(column)
    try:
        weight = math.nan if found is None else float(found)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise _Malformed(f"{column}={found!r}: a row's weight must be a number of at least 0")
    return weight


def _weight(extra: dict[str, Any], number: int) -> float:
    """Return a message's weight, taken out of `extra`: `weight`, or 0 for `train: false`."""
    found = extra.pop("weight", extra.pop("train", True))
    if not isinstance(found, int | float) or not 0 <= found < math.inf:
        raise _Malformed(f"message {number}: weight={found}: must be a number of at least 0")
    return float(found)


def _shared_calls(text: str, number: int) -> list[dict[str, Any]]:
    """Return the calls that ShareGPT's `function_call` writes as JSON text, one or a list."""
    name = f"message {number}: function_call"
    found = _listed(text, name)
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise _Malformed(f"{name} must be a call with name and arguments, or a list of them")
    return [{"type": "function", "function": call} for call in calls]


def _said(extra: dict[str, Any], number: int, *, optional: bool) -> str:
    """Return what a message says, taken out of `extra`: its text, or its text parts joined."""
    name = "value" if "value" in extra and "content" not in extra else "content"
    content = extra.pop(name, "" if optional else None)
    if isinstance(content, list):
        kinds = {part.get("type") if isinstance(part, Mapping) else None for part in content}
        if kinds - {"text"}:
            raise _Malformed(f"message {number}: only parts of type text can be trained on")
        content = "".join(str(part.get("text", "")) for part in content)
    if content is None:
        raise _Malformed(f"message {number}: {name} is missing")
    return _checked_text(content, f"message {number}: {name}")


def _present(value: Any) -> Any:
    """Return nested records without the keys whose value is null, which columnar files fill in."""
    if isinstance(value, Mapping):
        return {key: _present(each) for key, each in value.items() if each is not None}
    return [_present(each) for each in value] if isinstance(value, list) else value


_READERS: Mapping[str, _Reader] = {
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "messages": _messages,
    "text": _text,
}
