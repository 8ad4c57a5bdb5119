"""The tokens that stand around a text: one rule for training, measures and scoring.

Stop: what an answer ends with, and generation with it. In text templates it is the tokenizer's
`eos_token`. A chat template writes its own, whatever `eos_token` says: what it puts after an answer
both at the end of a conversation and before a further turn, white space at its end left out. A
template that closes only the conversation has what it closes it with.

BOS: text in which a chat template wrote the special tokens gets no others. Before other text stands
the BOS that the tokenizer adds by itself, once: not where the text begins with it. No EOS is added
but the stop, and none behind a stop.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
    """

    text: str
    ids: tuple[int, ...]
    strings: tuple[str, ...]

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


def chat_stop(render: Render, added: Mapping[str, int]) -> Stop | None:
    """Return the stop of a chat template; None where it puts none after an answer.

    Args:
        render: the template.
        added: the ids of the tokenizer's added tokens, special or not.
    """
    last = _around_answer(render, turns=2)[1]
    try:
        lead, further = _around_answer(render, turns=4)
    except UserError:  # the template takes one exchange only
        return stop_of(last.rstrip(), added) if last.strip() else None
    further_units = _units(further, added)
    same = "".join(further_units[: shared(_units(last, added), further_units)])
    own = len(further_units) - shared(_units(lead, added)[::-1], further_units[::-1])
    header = "".join(further_units[own:])
    if same != last and len(header) < len(further):  # headers begin alike
        same = same[: len(further) - len(header)]
    text = (same if same.strip() else last).rstrip()
    return stop_of(text, added) if text else None


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


def _around_answer(render: Render, *, turns: int) -> tuple[str, str]:
    """Return the template's text before the first request, and behind the first answer."""
    words = _WORDS[:turns]
    messages = [{"role": _SPEAKERS[i % 2], "content": word} for i, word in enumerate(words)]
    text = render(messages)
    behind = text.rpartition(words[1])[2]
    return text.partition(words[0])[0], behind.partition(words[2])[0] if turns > 2 else behind


def _units(text: str, added: Mapping[str, int]) -> list[str]:
    """Return `text` cut into added tokens, tags, words and single characters."""
    names = sorted(filter(None, added), key=len, reverse=True)
    return re.findall("|".join([*map(re.escape, names), _TAG, r"\w+", "."]), text, re.DOTALL)


def shared(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how many elements two sequences have in common at their beginnings."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
