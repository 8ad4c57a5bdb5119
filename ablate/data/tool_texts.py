"""What a chat template writes about a row's tools: their definitions, and how to call them."""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher

from ablate.data.formats import Row
from ablate.data.lead import FRAME
from ablate.data.shown import ChatText, shown
from ablate.data.tokenizer import Tokenizer
from ablate.errors import RowError

Stretch = tuple[int, int]
_SPEAKER = r"(?:system|user|assistant|developer|tools?|human)\b\s*"


def tool_texts(row: Row, found: ChatText, tokenizer: Tokenizer) -> list[list[Stretch]]:
    """Return which stretches of each of the template's own texts are about the tools.

    That is what it writes beyond the row without tools, without the tags around it.

    Raises:
        RowError: the template writes nothing about them.
    """
    if not row.tools:
        return [[] for _ in found.gaps]
    bare = shown(row.turns, tokenizer)
    if bare.text == found.text:
        raise RowError(
            "the chat template does not show the row's tools; leave them out with "
            "dataset.options.ignore_keys=[tools]"
        )
    if [p.said for p in bare.places] != [p.said for p in found.places]:
        raise RowError("the chat template says something else where there are tools")
    added = sorted(filter(None, tokenizer.added_tokens), key=len, reverse=True)
    token = "|".join([*map(re.escape, added), FRAME])
    units = re.compile(f"{token}|\\w+|\\s+|.", re.DOTALL)
    return [
        [_within("".join(before), "".join(more), token) for before, more in _inserted(*pair, token)]
        for gap, own in zip(found.gaps, bare.gaps, strict=True)
        if (pair := (units.findall(gap), units.findall(own)))
    ]


def _inserted(
    units: list[str], own: list[str], token: str
) -> Iterator[tuple[list[str], list[str]]]:
    """Yield what is more than the text's own, each time with all the units before it.

    Where it may begin earlier as well, it begins with a tag if it can.
    """
    spans: list[list[int]] = []
    for kind, _, _, low, high in SequenceMatcher(None, own, units, autojunk=False).get_opcodes():
        between = units[spans[-1][1] : low] if spans else []
        if kind in ("insert", "replace") and between and not _has(between, token):
            spans[-1][1] = high  # words that happen to stand in both
        elif kind in ("insert", "replace"):
            spans.append([low, high])
    for low, high in spans:
        shift = 0
        for back in range(1, low + 1):
            if units[low - back] != units[high - back]:
                break
            if re.fullmatch(token, units[low - back]):
                shift = back
                break
        yield units[: low - shift], units[low - shift : high - shift]


def _has(units: list[str], token: str) -> bool:
    """Return whether a token stands in the text, or so much of it that it is no chance."""
    return len(units) >= 8 or any(re.fullmatch(token, unit) for unit in units)


def _within(before: str, more: str, token: str) -> Stretch:
    """Return the stretch of `more`, behind `before`, without the tags at its ends."""
    opening = re.match(f"(?:(?:{token})\\s*(?:{_SPEAKER})?)*", more)
    closing = re.search(f"(?:(?:{token})\\s*(?:{_SPEAKER})?)*\\Z", more)
    low = opening.end() if opening else 0
    high = closing.start() if closing else len(more)
    return len(before) + low, len(before) + max(low, high)
