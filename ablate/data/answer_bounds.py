"""Where an answer begins and where it ends, in the text that a chat template writes around it."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ablate.data.formats import Row
from ablate.data.lead import FRAME
from ablate.data.marked import Message, Said
from ablate.data.shown import OPENED, ChatText, gaps
from ablate.data.specials import opening_token, shared
from ablate.data.tokenizer import Tokenizer
from ablate.data.tool_texts import Stretch
from ablate.errors import RowError

# What a template writes comes in such units: a tag, a word, white space, a character.
UNITS = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]|\w+|\s+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Context:
    """A row under a template, and the stretches of it that the template marks as generated."""

    row: Row
    tokenizer: Tokenizer
    shown: ChatText
    generated: list[Stretch] | None  # None where the template marks none at all


@dataclass(frozen=True, slots=True)
class Gap:
    """The template's own text between two things said, and where it begins in the row."""

    text: str
    start: int
    before: Said | None
    after: Said | None


def stopped(here: Context) -> ChatText:
    """Return the row with a stop behind its last answer, where the template writes none."""
    found, stop = here.shown, here.tokenizer.chat_stop
    called = "tool_calls" in here.row.turns[-1].extra
    if stop is None or stop.written or (found.gaps[-1].strip() and not called):
        return found
    text, more = found.text, stop.text
    if called and more != here.tokenizer.eos_token:  # results may open with another token
        result = [{"role": "tool", "content": "qx0zv"}]
        try:
            longer = here.tokenizer.chat([*found.messages, *result], tools=here.row.tools)
        except RowError:
            longer = ""
        ahead = longer.removeprefix(text) if longer.startswith(text) else ""
        more = opening_token(ahead, here.tokenizer.added_tokens) or more
    return dataclasses.replace(found, text=text + more.removeprefix(found.gaps[-1]))


def stop_in(gap: str, start: int, turn: int, here: Context, *, last: bool) -> Stretch:
    """Return where the stop begins and ends in the text behind an answer.

    Where it is not the template's usual stop, as behind a call, it is the last token that stands
    there as well where the conversation ends with this turn; where there is none, the first token.

    Args:
        gap: the text.
        start: where it begins in the row.
        turn: the turn of the answer.
        here: the row.
        last: whether nothing is said after it.
    """
    tokenizer, stop = here.tokenizer, here.tokenizer.chat_stop
    always = _end(tokenizer)
    if stop and stop.text in (gap.removesuffix(always) if last else gap):
        return gap.index(stop.text), gap.index(stop.text) + len(stop.text)
    opening = _generation_prompt(tokenizer)
    known = [(a, b) for a, b in _tags(gap, tokenizer) if not opening.startswith(gap[a:b])]
    if last and not known and here.generated is None:
        raise RowError(
            "the chat template puts no stop token after an answer, and the tokenizer names no "
            "eos_token; give a template that does with model.chat_template=FILE"
        )
    try:
        alone = tokenizer.chat(here.shown.messages[: turn + 1], tools=here.row.tools)
    except RowError:
        alone = ""
    alone = alone.removesuffix(always).rstrip()
    same = shared(alone, here.shown.text[: start + len(gap)]) - start
    there = [place for place in known if place[1] <= same]
    if stop and not stop.written and same >= 0:
        ahead = opening_token(gap[same:], tokenizer.added_tokens)
        own = ahead and not opening.startswith(ahead.strip())
        return same, same + len(ahead) * bool(own)
    if (always or not last) and same == len(alone) - start and same >= 0 and not there:
        return same, same
    return there[-1] if there else known[0] if known else (0, 0)


def _tags(text: str, tokenizer: Tokenizer) -> list[Stretch]:
    """Return where in the text tokens and tags stand."""
    tokens = filter(None, {*tokenizer.special_tokens, *tokenizer.added_tokens})
    pattern = "|".join([*map(re.escape, sorted(tokens, key=len, reverse=True)), FRAME])
    return [found.span() for found in re.finditer(pattern, text)]


def prompt_in(gap: Gap, after: Said, low: int, here: Context) -> Stretch:
    """Return where what asks for an answer begins and ends, counted from the text before it.

    It ends where the text ends that the model is asked with, if the row begins with that: it may
    hold the first of what the answer says. Else what the template adds to ask for an answer is
    looked for: earlier turns may read otherwise there.

    Args:
        gap: the text.
        after: the first thing that the answer says.
        low: how much of the text belongs to an earlier answer.
        here: the row.
    """
    asked, added = _asked(here.tokenizer, here.shown.messages[: after.turn], here.row.tools)
    end, size = len(asked) - gap.start, len(gap.text)
    always = _header_at_end(here.tokenizer)
    if always and not added and here.shown.text.startswith(asked) and asked.endswith(always):
        return (max(low, min(end, size)),) * 2
    if added and here.shown.text.startswith(asked) and low <= end:
        return max(low, min(end - len(added), size)), end
    text = here.shown.text[gap.start :]
    units = UNITS.findall(added or _generation_prompt(here.tokenizer))
    while any(len(unit) > 1 or unit.isalnum() for unit in units):
        prompt = "".join(units)
        at = text.rfind(prompt, low, size - 1 + len(prompt))
        if at >= 0:
            return at, at + len(prompt)
        units.pop()  # a prompt that opens reasoning, where the row has none
    if after.part == "completion":
        return size, size
    ends = _header(gap, after.turn, here)
    opened = OPENED.search(gap.text, low) if after.part == "thinking" else None
    high = max(low, min(ends, opened.start() if opened else size))
    return high, high


def _header(gap: Gap, turn: int, here: Context) -> int:
    """Return where the header ends in the text before an answer that no prompt asks for.

    It is what stands there before a plain answer as well; what follows it is the answer's own.

    Raises:
        RowError: the template shows no plain answer there.
    """
    roles = [turn.role for turn in here.row.turns]
    messages = here.shown.messages
    following = roles.index("user", turn) if "user" in roles[turn:] else len(roles)
    plain = [*messages[:turn], {"role": "assistant", "content": "qx0zv"}, *messages[following:]]
    text = here.tokenizer.chat(plain, tools=here.row.tools)
    before = here.shown.text[: gap.start]
    answered = text[len(before) :].partition("qx0zv")
    if not (text.startswith(before) and answered[1]):
        raise RowError("it cannot be told what opens a call or reasoning in the chat template")
    header, ahead = UNITS.findall(answered[0]), UNITS.findall(gap.text)
    return len("".join(ahead[: shared(header, ahead)]))


def _asked(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Any] = ()
) -> tuple[str, str]:
    """Return the text that asks for an answer after `messages`, and what it adds to theirs."""
    chat = functools.partial(tokenizer.chat, messages, tools=tools)
    try:
        texts = [chat(generation_prompt=given) for given in (False, True)]
        if not texts[1].startswith(texts[0]):
            texts[0] = texts[0].removesuffix(_end(tokenizer).lstrip())
    except RowError:
        return "", ""
    shown, more = map(UNITS.findall, texts)
    return "".join(more), "".join(more[shared(shown, more) :])


@functools.lru_cache(maxsize=16)
def _generation_prompt(tokenizer: Tokenizer) -> str:
    """Return what the template adds for an answer to be generated; empty where it adds nothing."""
    return _asked(tokenizer, [{"role": "user", "content": "qx0zv"}])[1]


@functools.lru_cache(maxsize=16)
def _header_at_end(tokenizer: Tokenizer) -> str:
    """Return the next answer's header where each conversation ends with it; empty elsewhere."""
    asked, end = gaps(tokenizer, "user", "assistant")[1], _end(tokenizer)
    return end if end in asked else ""


@functools.lru_cache(maxsize=16)
def _end(tokenizer: Tokenizer) -> str:
    """Return what each conversation ends with behind its stop, or nothing but white space."""
    stop = tokenizer.chat_stop
    end = gaps(tokenizer, "user", "assistant")[-1].removeprefix(stop.text if stop else "")
    return end if end.strip() else ""
