"""The tokens that stand around a text: one rule for training, measures and scoring.

Stop: what an answer ends with, and generation with it. In text templates it is the tokenizer's
`eos_token`. A chat template writes its own, whatever `eos_token` says: what it puts after an answer
both at the end of a conversation and before a further turn, white space at its end left out. A
template that closes only the conversation has what it closes it with. One that writes nothing
behind an answer, as GLM's, has the added token that opens the next request, which its models end
with, or where that opens with none the tokenizer's `eos_token`; it is put behind the last answer.

BOS: text in which a chat template wrote the special tokens gets no others. Before other text stands
the BOS that the tokenizer adds by itself, once: not where the text begins with it. No EOS is added
but the stop, and none behind a stop.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ablate.errors import UserError

Render = Callable[[Sequence[Mapping[str, str]]], str]  # messages to text, no generation prompt
_WORDS = ("qx0zv", "qx1zv", "qx2zv", "qx3zv")  # contents that no template says by itself
_SPEAKERS = ("user", "assistant")
_TAG = r"<[^<>\s]*>|\[[^\[\]\s]*\]"


@dataclass(frozen=True, slots=True)
class Stop:
    """What an answer ends with.

    `ids` are the tokens of which any ends generation: those of the added tokens in `text`. Where
    there is none, generation ends where one of `strings` is said; decoded text is cut at them.
    Where it is not `written` by the template at the end of a conversation, it is put there.
    """

    text: str
    ids: tuple[int, ...]
    strings: tuple[str, ...]
    written: bool = True

    def length_in(self, after: str) -> int:
        """Return how many characters of a template's text behind an answer belong to the answer."""
        return len(self.text) if after.startswith(self.text) else 0


def stop_of(text: str, added: Mapping[str, int]) -> Stop:
    """Return the stop whose text is `text`.

    Args:
        text: with the white space before it, as it stands behind an answer.
        added: the ids of the tokenizer's added tokens, special or not.
    """
    tokens = [unit for unit in _units(text, added) if unit in added]
    ids = tuple(dict.fromkeys(added[token] for token in tokens))
    return Stop(text, ids, tuple(dict.fromkeys([text.strip(), *tokens])))


def chat_stop(render: Render, added: Mapping[str, int], eos: str | None = None) -> Stop | None:
    """Return the stop of a chat template; None where it has none and the tokenizer neither.

    Args:
        render: the template.
        added: the ids of the tokenizer's added tokens, special or not.
        eos: the tokenizer's token for the end of a text.
    """
    further: list[str] = []
    last = _units(_texts(render, turns=2)[2], added)
    try:
        lead, ends, further = (_units(text, added) for text in _texts(render, turns=4))
    except UserError:  # the template takes one exchange only
        same = last
    else:
        same = further[: shared(last, further)]
        if same != last:  # headers may begin alike
            same = same[: _header(same, lead, ends, further) or None]
    text = ("".join(same).rstrip() or "".join(last)).rstrip()
    if text:
        return stop_of(text, added)
    text = opening_token("".join(further), added) or eos or ""
    return replace(stop_of(text, added), written=False) if text else None


def opening_token(text: str, added: Mapping[str, int]) -> str:
    """Return the added token that begins a text, with the white space before it; or nothing."""
    space = text[: len(text) - len(text.lstrip())]
    first = _units(text[len(space) :], added)[:1]
    return space + first[0] if first and first[0] in added else ""


def _header(same: list[str], lead: list[str], ends: list[str], further: list[str]) -> int:
    """Return where in the text behind an answer the header of the next turn begins.

    A header begins with the tags that the conversation begins with. Without such tags it is what
    stands before the first request and behind an answer alike, but for the tag that ends a turn.

    Args:
        same: units with which the text begins whether or not a turn follows.
        lead: units before the first request.
        ends: units behind a request.
        further: units behind an answer that a request follows.
    """
    tags = list(itertools.takewhile(lambda unit: not re.fullmatch(r"\w+", unit), lead))
    for place in range(1, len(same)):
        rest = same[place:]
        opens = any(tags[i : i + len(rest)] == rest for i in range(len(tags)))
        if opens and "".join(same[:place]).strip() and rest[0].strip():
            return place
    header = further[len(further) - shared(lead[::-1], further[::-1]) :]
    closed = header[: shared(header, ends)]  # where the template writes a system turn itself
    closing = [i for i, unit in enumerate(closed, 1) if re.fullmatch(_TAG, unit)]
    return len(further) - len(header) + max(closing, default=0)


def adds_bos_to(text: str, bos: str | None, *, adds_bos: bool, chat: bool = False) -> bool:
    """Return whether BOS is put before `text`.

    Args:
        text: what is tokenised.
        bos: the text of the BOS token.
        adds_bos: whether the tokenizer puts BOS before a text by itself.
        chat: whether a chat template made the text.
    """
    return adds_bos and not chat and bos is not None and not text.startswith(bos)


def stopped(text: str, stop: str) -> str:
    """Return `text` with one `stop` at its end, however many it came with."""
    bare = text
    while bare.rstrip().endswith(stop):
        bare = bare.rstrip().removesuffix(stop)
    return bare + stop


def _texts(render: Render, *, turns: int) -> tuple[str, str, str]:
    """Return the template's text before the first request, behind it, and behind its answer."""
    words = _WORDS[:turns]
    messages = [{"role": _SPEAKERS[i % 2], "content": word} for i, word in enumerate(words)]
    text, _, behind = render(messages).rpartition(words[1])
    lead, _, between = text.rpartition(words[0])
    return lead, between, behind.partition(words[2])[0] if turns > 2 else behind


def _units(text: str, added: Mapping[str, int]) -> list[str]:
    """Return `text` cut into added tokens, tags, words and single characters."""
    names = sorted(filter(None, added), key=len, reverse=True)
    return re.findall("|".join([*map(re.escape, names), _TAG, r"\w+", "."]), text, re.DOTALL)


def shared(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how many elements two sequences have in common at their beginnings."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
