"""A row under the chat template: its text, and where each thing that it says stands."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ablate.data.formats import REASONING, Turn
from ablate.data.jinja import parted
from ablate.data.marked import CHANGES, Message, Place, located
from ablate.data.messages import filled, forms, plain, said_in
from ablate.data.tokenizer import Tokenizer
from ablate.errors import FormError, RowError

# Keys of a message that tell messages and calls apart, and say nothing.
UNSHOWN = frozenset({"id", "tool_call_id", "type", "index"})
EMPTY: tuple[Any, ...] = ("", [], {})  # what says nothing; 0 and false do
CLOSING = ("</think>", "[/THINK]")
OTHER = "</qx3zv>"  # a tag that no template looks for
OPENED = re.compile(r"(?:<think>|\[THINK\])\s*\Z")
PARTS = {"system": "system", "user": "instruction", "assistant": "completion"}


@dataclass(frozen=True, slots=True)
class ChatText:
    """A row's text, the place of each thing said, and the messages that the template was given."""

    text: str
    places: list[Place]
    messages: list[Message]

    @property
    def gaps(self) -> tuple[str, ...]:
        """The template's own text before, between and after the things said."""
        starts = [*(place.start for place in self.places), len(self.text)]
        ends = [0, *(place.end for place in self.places)]
        return tuple(self.text[a:b] for a, b in zip(ends, starts, strict=True))


def shown(turns: Sequence[Turn], tokenizer: Tokenizer, tools: Sequence[Any] = ()) -> ChatText:
    """Return the turns under the tokenizer's chat template.

    Raises:
        RowError: the template refuses the messages, or changes, drops or repeats what they say.
        UserError: there is no template, or it does not show a key of a message.
    """
    render = functools.partial(tokenizer.chat, tools=tools)
    turns = [
        dataclasses.replace(t, named="") if t.named and not _knows(tokenizer, t.named) else t
        for t in turns
    ]
    first: RowError | None = None
    for messages in forms(turns, opened=_reads_closing(tokenizer)):
        build = functools.partial(_built, messages)
        try:
            text, places = located(list(said_in(messages)), build, render)
            noted = parted(plain(messages), tokenizer.takes.in_parts, noted=True)
            if tokenizer.takes.in_parts and render(noted) != text:
                raise RowError(CHANGES)  # the template writes the list itself
        except RowError as error:
            first = first or error
        else:
            _check_keys(turns, text, messages, render, tokenizer)
            return ChatText(text, places, plain(messages))
    raise first or RowError("it has no turns")


def turns_of(*roles: str) -> list[Turn]:
    """Return turns of one word each, to see what a template puts around them."""
    return [Turn(r, ((PARTS[r], f"qx{i}zv"),)) for i, r in enumerate(roles)]  # type: ignore[arg-type]


@functools.lru_cache(maxsize=256)
def gaps(tokenizer: Tokenizer, *roles: str) -> tuple[str, ...]:
    """Return the template's own text before, between and after turns of these roles."""
    return shown(turns_of(*roles), tokenizer).gaps


@functools.lru_cache(maxsize=64)
def _reads_closing(tokenizer: Tokenizer) -> bool:
    """Return whether a closing tag alone ends reasoning: the prompt opens it, or templates look.

    A template looks for a tag if it writes another tag in its place otherwise.
    """

    def answered(text: str) -> str:
        asked, answer = turns_of("user", "assistant")
        answer = dataclasses.replace(answer, parts=(("completion", text),))
        turns = [asked, answer] * 2
        return tokenizer.chat(plain(next(forms(turns))))

    try:
        asked = next(forms(turns_of("user")))
        if OPENED.search(tokenizer.chat(plain(asked), generation_prompt=True)):
            return True
        told = {tag: answered(f"qx1zv{tag}qx2zv") for tag in (OTHER, *CLOSING)}
    except RowError:
        return False
    return any(told[tag].replace(tag, OTHER) != told[OTHER] for tag in CLOSING)


def _built(messages: list[Message], texts: Sequence[str]) -> Any:
    return filled(messages, iter(texts))


def _check_keys(
    turns: Sequence[Turn],
    text: str,
    messages: list[Message],
    render: Callable[[list[Message]], str],
    tokenizer: Tokenizer,
) -> None:
    """Raise where a message has a key that makes no difference to the text."""
    for number, turn in enumerate(turns):
        for key in [k for k, v in turn.extra.items() if k not in UNSHOWN and v not in EMPTY]:
            without = {k: v for k, v in messages[number].items() if k != key}
            try:
                same = render(plain([*messages[:number], without, *messages[number + 1 :]])) == text
            except RowError:  # the template needs it
                continue
            dropped = turn.role == "assistant" and _reasoning(turn) == [key]
            if same and not (dropped and _reasons(tokenizer, key)):
                raise FormError(
                    f"dataset.template=chat: message {1 + number}: its key {key!r} makes no "
                    "difference to the chat template's text; leave it out with "
                    f"dataset.options.ignore_keys=[{key}]"
                )


def _reasoning(turn: Turn) -> list[str]:
    return [key for key in REASONING if key in turn.extra]


@functools.lru_cache(maxsize=64)
def _knows(tokenizer: Tokenizer, role: str) -> bool:
    """Return whether the template does with a role what it does not with one of any name."""
    texts = []
    for name in (role, "qx1zv"):
        messages = [{"role": name, "content": "qx2zv"}, {"role": "user", "content": "qx3zv"}]
        try:
            texts.append(tokenizer.chat(messages).replace(name, role))
        except RowError:
            texts.append("")
    return texts[0] not in ("", texts[1])


@functools.lru_cache(maxsize=64)
def _reasons(tokenizer: Tokenizer, key: str) -> bool:
    """Return whether the template shows a last answer's reasoning; it may drop earlier ones."""
    asked, answer = turns_of("user", "assistant")
    thought = dataclasses.replace(answer, extra={key: "qx2zv"})
    messages = next(forms([asked, thought]))
    try:
        return "qx2zv" in tokenizer.chat(plain(messages))
    except RowError:
        return False
