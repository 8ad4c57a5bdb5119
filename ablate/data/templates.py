"""A row as the text that is tokenised, with the role of every character.

The Alpaca texts are Stanford's (stanford_alpaca/train.py at 761dc5b), letter by letter. The compact
template, for models that read a hundred tokens, opens with the instruction itself: a fixed first
word is learnt at once as the likeliest of any text, and a small model then begins answers with it.
"""

import dataclasses
import functools
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ablate.config.schema import Dataset
from ablate.data import chat
from ablate.data.pieces import Kind, Piece, Rendered, joined, kind_of, last_only, numbered, role_of
from ablate.data.rows import Row, Turn
from ablate.data.shown import UNSHOWN
from ablate.data.specials import adds_bos_to, stopped
from ablate.data.tokenizer import Tokenizer
from ablate.errors import RowError, UserError, unknown
from ablate.paths import check_file
from ablate.roles import Detail, Role

FIELDS = ("instruction", "input", "system")


@dataclass(frozen=True, slots=True)
class Frame:
    """A text template of one exchange: the prompt, with the parts of a row in braces.

    The answer and its stop token follow. What stands outside braces is boilerplate.
    """

    prompt: str
    prompt_with_input: str
    system: str = "{system}\n\n"  # goes before the prompt where a row has system text

    def asked(self, instruction: str, given: str = "") -> str:
        """Return the text up to where the answer begins."""
        form = self.prompt_with_input if given else self.prompt
        return form.format(instruction=instruction, input=given)


FRAMES = {
    "alpaca": Frame(
        prompt="Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
        "\n\n### Instruction:\n{instruction}\n\n### Response:",
        prompt_with_input="Below is an instruction that describes a task, paired with an input "
        "that provides further context. Write a response that appropriately completes the request."
        "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
    ),
    "compact": Frame(
        prompt="{instruction}\nAnswer:\n",
        prompt_with_input="{instruction}\nInput:\n{input}\nAnswer:\n",
    ),
}


@functools.lru_cache(maxsize=64)
def frame_of(template: str) -> Frame | None:
    """Return the frame that `dataset.template` names: ours, or that of a YAML file; else None.

    Raises:
        UserError: the file is not there, or is no template.
    """
    if not template.endswith((".yaml", ".yml")):
        return FRAMES.get(template)
    setting = f"dataset.template={template}"
    try:
        file = Path(template).expanduser()
        check_file("dataset.template", file)
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, yaml.YAMLError) as error:
        raise UserError(f"{setting}: cannot be read ({str(error).splitlines()[0]})") from None
    known = [field.name for field in dataclasses.fields(Frame)]
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
        raise UserError(f"{setting}: must have a text `prompt`, and may have {known[1:]}")
    for name, text in found.items():
        if name not in known:
            raise unknown(setting, name, known)
        allowed = {"system": ("system",), "prompt": ("instruction",)}.get(name, FIELDS[:2])
        try:
            fields = [
                name + (f"!{how}" if how else "") + (f":{form}" if form else "")
                for _, name, form, how in string.Formatter().parse(text)
                if name is not None
            ]
        except (TypeError, ValueError) as error:
            raise UserError(f"{setting}: {name}: {error}") from None
        if sorted(fields) != sorted(allowed):
            shown = " and ".join(f"{{{each}}}" for each in allowed)
            raise UserError(f"{setting}: {name}: must have {shown} once each, has {fields}")
    asked = found["prompt"].replace("{instruction}", "{instruction}\n{input}")
    return Frame(**{"prompt_with_input": asked, **found})


def _filled(form: str, parts: Mapping[str, str]) -> list[Piece]:
    """Return a form's fixed text as boilerplate, with the parts of a row in place of braces."""
    found: list[Piece] = []
    for fixed, name in _fields(form):
        found.append((fixed, Role.BOILERPLATE))
        if name is not None:
            found.append((parts[name], role_of(name)))
    return found


@functools.lru_cache(maxsize=64)
def _fields(form: str) -> list[tuple[str, str | None]]:
    """Return a form as pairs of fixed text and the part behind it."""
    return [(fixed, name) for fixed, name, *_ in string.Formatter().parse(form)]


def render(row: Row, dataset: Dataset, tokenizer: Tokenizer) -> Rendered:
    """Return `row` as text under the data set's template.

    Raises:
        UserError: the row does not fit the template, or the model lacks what it needs.
    """
    if row.text is not None:
        return _with_bos([(stopped(row.text, tokenizer.stop), Role.TEXT)], tokenizer)
    if dataset.template == "chat":
        row = _folded(row) if dataset.system == "fold" else row
        said = chat.pieces(row, tokenizer, turns=dataset.turns)
        return joined(numbered(said), add_bos=False)
    _check_plain(row, dataset)
    frame = frame_of(dataset.template)
    pieces: Sequence[Piece] = (
        _framed(row, tokenizer, dataset, frame) if frame else _plain(row, tokenizer)
    )
    if dataset.turns == "last":
        pieces = last_only(pieces)
    return _with_bos(pieces, tokenizer)


def _folded(row: Row) -> Row:
    """Return the row with its system texts in the requests that follow them."""
    turns: list[Turn] = []
    told: tuple[tuple[str, str], ...] = ()
    for turn in row.turns:
        if turn.role == "system":
            told += turn.parts
            continue
        asked = turn.role == "user"
        turns.append(dataclasses.replace(turn, parts=told + turn.parts) if asked else turn)
        told = () if asked else told
    if told:
        raise RowError("dataset.system=fold: no request follows its last system message")
    return dataclasses.replace(row, turns=tuple(turns))


def _check_plain(row: Row, dataset: Dataset) -> None:
    """Raise where a row says what only a chat template can show."""
    shown = [key for turn in row.turns for key in turn.extra if key not in UNSHOWN]
    shown += ["tools"] * bool(row.tools) + ["role: tool"] * any(t.role == "tool" for t in row.turns)
    if shown:
        raise UserError(
            f"dataset.template={dataset.template}: {row.place}: no place for {shown[0]!r}; use "
            f"dataset.template=chat or dataset.options.ignore_keys=[{shown[0]}]"
        )


def _framed(row: Row, tokenizer: Tokenizer, dataset: Dataset, frame: Frame) -> list[Piece]:
    *system, prompt, answer = row.turns
    if prompt.role != "user" or any(turn.role != "system" for turn in system):
        raise UserError(
            f"dataset.template={dataset.template}: {row.place}: has {len(row.turns)} turns, the "
            "template holds one exchange; use dataset.template=chat or plain"
        )
    parts = {"instruction": "", **dict(prompt.parts)}
    pieces = [p for turn in system for p in _filled(frame.system, dict(turn.parts))]
    pieces += _filled(frame.prompt_with_input if "input" in parts else frame.prompt, parts)
    return [*pieces, *_answer(answer, tokenizer)]


def _plain(row: Row, tokenizer: Tokenizer) -> list[tuple[str, Kind]]:
    """Return the parts one below the other; the newline after a stop token is `special`."""
    pieces: list[tuple[str, Kind]] = []
    for turn in row.turns:
        if pieces and pieces[-1][1].detail == Detail.STOP:
            pieces.append(("\n", kind_of(Role.SPECIAL)))
        if turn.role == "assistant":
            pieces += _answer(turn, tokenizer)
        else:
            for part, text in turn.parts:
                pieces += [(text, kind_of(role_of(part))), ("\n", _FIXED)]
    return pieces


def _answer(turn: Turn, tokenizer: Tokenizer) -> list[tuple[str, Kind]]:
    stop = tokenizer.stop
    text = stopped(turn.parts[0][1], stop).removesuffix(stop)
    said, end = _ANSWER
    if turn.weight != 1:
        said, end = (dataclasses.replace(kind, weight=turn.weight) for kind in _ANSWER)
    return [(text, said), (stop, end)]


_ANSWER = kind_of(Role.COMPLETION), kind_of(Detail.STOP)
_FIXED = kind_of(Role.BOILERPLATE)


def _with_bos(pieces: Sequence[Piece], tokenizer: Tokenizer) -> Rendered:
    found = joined(numbered(pieces), add_bos=False)
    bos = adds_bos_to(found.text, tokenizer.bos_token, adds_bos=tokenizer.adds_bos)
    return Rendered(found.text, found.spans, add_bos=True) if bos else found
