"""A chat template as a program, and what it is given, the same for training and scoring.

Templates disagree on what they take. Most take what a turn says as text, those for images as a
list of parts; some cannot do without tools. What a template takes is found once, by showing it a
conversation of known words.
"""

import dataclasses
import datetime
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from ablate.data.formats import REASONING

# Templates that print today's date would give other tokens every day; this is the default date of
# Llama's own templates.
TODAY = datetime.date(2024, 7, 26)
MARKS = "_generation_marks"  # their name in the template's context
NOTE = "qxnotezv"  # a key that no template reads
ROLES = frozenset({"system", "user", "assistant", "tool"})
# Whose text a template may take as parts, the likelier first.
IN_PARTS = (frozenset[str](), frozenset({"system"}), ROLES, ROLES - {"system"})
_WORDS = {"system": "qx0zv", "user": "qx1zv", "assistant": "qx2zv"}


@dataclasses.dataclass(frozen=True, slots=True)
class Takes:
    """What a template takes: whose text in parts and not as it is; whether it needs tools."""

    in_parts: frozenset[str] = frozenset()
    needs_tools: bool = False


def rendered(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    named: Mapping[str, str],
    tools: Sequence[Any] = (),
    **more: Any,
) -> str:
    """Return a chat template's text for `messages`, whose contents are texts.

    Args:
        template: its source.
        messages: turns with role and content.
        named: the tokenizer's special tokens by their names.
        tools: definitions of tools.
        more: other names that the template may read.

    Raises:
        Exception: the template is a program, which may fail in any way.
    """
    takes = takes_of(template, tuple(named.items()))
    given = [_aliased(message) for message in parted(messages, takes.in_parts)]
    own = list(tools) or ([] if takes.needs_tools else None)
    names = {"documents": None, **named, **more}
    return compiled(template).render(names | {"messages": given, "tools": own})


def parted(
    messages: Sequence[Mapping[str, Any]], roles: frozenset[str], *, noted: bool = False
) -> list[Mapping[str, Any]]:
    """Return the messages with the text of these roles as a list with one part.

    Args:
        messages: turns with role and content.
        roles: whose text it is.
        noted: whether the part has a key more that says nothing.
    """
    note = {NOTE: NOTE} if noted else {}
    return [
        {**m, "content": [{"type": "text", "text": m["content"], **note}]}
        if {"developer": "system"}.get(m["role"], m["role"]) in roles
        and isinstance(m.get("content"), str)
        else m
        for m in messages
    ]


@functools.lru_cache(maxsize=64)
def takes_of(template: str, named: tuple[tuple[str, str], ...]) -> Takes:
    """Return what the template takes: the first way in which it shows a conversation's words."""
    talks = (("system", "user", "assistant"), ("user", "assistant"))
    for needs, talk, in_parts in itertools.product((False, True), talks, IN_PARTS):
        if _shows(template, dict(named), talk, Takes(in_parts, needs)):
            return Takes(in_parts, needs)
    return Takes()


def _shows(template: str, named: Mapping[str, str], talk: tuple[str, ...], takes: Takes) -> bool:
    """Return whether a conversation's words are in its text, and not as a list of parts."""
    messages = [{"role": role, "content": _WORDS[role]} for role in talk]
    names: dict[str, Any] = {"documents": None, "tools": [] if takes.needs_tools else None, **named}
    try:
        texts = {
            compiled(template).render(
                names | {"messages": parted(messages, takes.in_parts, noted=noted)}
            )
            for noted in (False, True)
        }
    except Exception:  # a template is a program: it may fail in any way
        return False
    return len(texts) == 1 and all(_WORDS[role] in min(texts) for role in talk)


def _aliased(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the message with its reasoning under all names that templates read."""
    reasoning = next((message[key] for key in REASONING if message.get(key) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


class _Generation(jinja2.ext.Extension):
    """The `{% generation %}` tag of transformers, which marks what a model generates.

    It prints the text with the marks that the context holds, a block of its own as there.
    """

    tags = {"generation"}  # noqa: RUF012  (the base class declares it so)

    def parse(self, parser: Any) -> Any:
        """Return a call of `_marked` with the block's body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked", [jinja2.nodes.Name(MARKS, "load")])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, marks: Any, caller: Callable[[], str]) -> str:
        before, after = marks or ("", "")  # whoever renders it otherwise gives none
        return f"{before}{caller()}{after}"


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


@functools.lru_cache(maxsize=8)
def compiled(template: str) -> jinja2.Template:
    """Return a chat template as transformers compiles it, apart from the day, which is `TODAY`."""
    world = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    world.filters["tojson"] = _tojson
    world.globals["raise_exception"] = _refuse
    world.globals["strftime_now"] = TODAY.strftime
    return world.from_string(template)
