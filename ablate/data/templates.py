"""A row as the text that is tokenised, with the role of every character.

The Alpaca texts are Stanford's (stanford_alpaca/train.py at 761dc5b), letter by letter. The compact
template, for models that read a hundred tokens, opens with the instruction itself: a fixed first
word is learnt at once as the likeliest of any text, and a small model then begins answers with it.
"""

import dataclasses
from dataclasses import dataclass

from ablate.config.schema import Dataset
from ablate.data import chat
from ablate.data.pieces import Piece, Rendered, joined, kind_of, last_only, numbered, role_of
from ablate.data.rows import Row, Turn
from ablate.data.specials import adds_bos_to, stopped
from ablate.data.tokenizer import Tokenizer
from ablate.errors import UserError
from ablate.roles import Detail, Role


@dataclass(frozen=True, slots=True)
class Frame:
    """The fixed text around one exchange: before, between and after instruction and input."""

    with_input: str
    without_input: str
    input: str
    response: str

    def prompt(self, instruction: str, given: str = "") -> str:
        """Return the text up to where the answer begins."""
        if given:
            return f"{self.with_input}{instruction}{self.input}{given}{self.response}"
        return f"{self.without_input}{instruction}{self.response}"


FRAMES = {
    "alpaca": Frame(
        with_input="Below is an instruction that describes a task, paired with an input that "
        "provides further context. Write a response that appropriately completes the request."
        "\n\n### Instruction:\n",
        without_input="Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\n",
        input="\n\n### Input:\n",
        response="\n\n### Response:",
    ),
    "compact": Frame(
        with_input="",
        without_input="",
        input="\nInput:\n",
        response="\nAnswer:\n",
    ),
}


def render(row: Row, dataset: Dataset, tokenizer: Tokenizer) -> Rendered:
    """Return `row` as text under the data set's template.

    Raises:
        UserError: the row does not fit the template, or the model lacks what it needs.
    """
    if row.text is not None:
        return _with_bos([(stopped(row.text, tokenizer.stop), Role.TEXT)], tokenizer)
    if dataset.template == "chat":
        row = _folded(row) if dataset.system == "fold" else row
        pieces = chat.pieces(row, tokenizer, turns=dataset.turns)
        return joined(numbered(pieces), add_bos=False)
    _check_plain(row, dataset)
    if dataset.template in FRAMES:
        pieces = _framed(row, tokenizer, dataset.template)
    else:
        pieces = _plain(row, tokenizer)
    if dataset.turns == "last":
        pieces = last_only(pieces)
    return _with_bos(pieces, tokenizer)


def _folded(row: Row) -> Row:
    """Return the row with its system text in the first request."""
    if not row.turns or row.turns[0].role != "system":
        return row
    told, *turns = row.turns
    asked = next(i for i, turn in enumerate(turns) if turn.role == "user")
    parts = (*told.parts, *turns[asked].parts)
    turns[asked] = dataclasses.replace(turns[asked], parts=parts)
    return dataclasses.replace(row, turns=tuple(turns))


def _check_plain(row: Row, dataset: Dataset) -> None:
    """Raise where a row says what only a chat template can show."""
    shown = [key for turn in row.turns for key in turn.extra if key not in chat.UNSHOWN]
    shown += ["tools"] * bool(row.tools) + ["role: tool"] * any(t.role == "tool" for t in row.turns)
    if shown:
        raise UserError(
            f"dataset.template={dataset.template}: {row.place}: no place for {shown[0]!r}; use "
            f"dataset.template=chat or dataset.options.ignore_keys=[{shown[0]}]"
        )


def _framed(row: Row, tokenizer: Tokenizer, template: str) -> list[Piece]:
    frame = FRAMES[template]
    *system, prompt, answer = row.turns
    if any(turn.role != "system" for turn in system):
        raise UserError(
            f"dataset.template={template}: {row.place}: has {len(row.turns)} turns, the template "
            "holds one exchange; use dataset.template=chat or plain"
        )
    parts = dict(prompt.parts)
    pieces: list[Piece] = []
    for turn in system:
        pieces += [(turn.parts[0][1], Role.SYSTEM), ("\n\n", Role.BOILERPLATE)]
    opening = frame.with_input if "input" in parts else frame.without_input
    pieces += [(opening, Role.BOILERPLATE), (parts["instruction"], Role.INSTRUCTION)]
    if "input" in parts:
        pieces += [(frame.input, Role.BOILERPLATE), (parts["input"], Role.INPUT)]
    pieces.append((frame.response, Role.BOILERPLATE))
    return [*pieces, *_answer(answer, tokenizer)]


def _plain(row: Row, tokenizer: Tokenizer) -> list[Piece]:
    """Return the parts one below the other; the newline after a stop token is `special`."""
    pieces: list[Piece] = []
    for turn in row.turns:
        if pieces and kind_of(pieces[-1][1]).detail == Detail.STOP:
            pieces.append(("\n", Role.SPECIAL))
        if turn.role == "assistant":
            pieces += _answer(turn, tokenizer)
        else:
            for part, text in turn.parts:
                pieces += [(text, role_of(part)), ("\n", Role.BOILERPLATE)]
    return pieces


def _answer(turn: Turn, tokenizer: Tokenizer) -> list[Piece]:
    text = stopped(turn.parts[0][1], tokenizer.stop).removesuffix(tokenizer.stop)
    kinds = [
        dataclasses.replace(kind_of(r), weight=turn.weight) for r in (Role.COMPLETION, Detail.STOP)
    ]
    return list(zip((text, tokenizer.stop), kinds, strict=True))


def _with_bos(pieces: list[Piece], tokenizer: Tokenizer) -> Rendered:
    text = "".join(piece for piece, _ in pieces)
    bos = adds_bos_to(text, tokenizer.bos_token, adds_bos=tokenizer.adds_bos)
    return joined(numbered(pieces), add_bos=bos)
