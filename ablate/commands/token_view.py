"""The examples of a cell as the loss sees them: the role and the weight of every token.

`token_text` shows a `Look` on the terminal, `token_page` as a page.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ablate.config.schema import Cell
from ablate.data.rows import FEW
from ablate.data.targets import row_weights
from ablate.data.tokenise import Summary, Tokenised
from ablate.data.tokenizer import Tokenizer
from ablate.experiment.cell_data import tokenised, tokenizer_of
from ablate.experiment.labels import label
from ablate.objective import Objective, check_turns, objective_of
from ablate.roles import Detail, Role

OTHER = "#e4e4e4"  # a role without a colour of its own
COLOURS = {  # distinct for colour-blind readers; light, for black text on them
    **dict.fromkeys(Role, OTHER),
    Role.SPECIAL: "#c8c8c8",
    Role.BOILERPLATE: "#f0e6a0",
    Role.SYSTEM: "#dcb8e8",
    Role.INSTRUCTION: "#a9cdf2",
    Role.INPUT: "#9fe0d4",
    Role.COMPLETION: "#f6b98a",
    Role.TEXT: "#b9e3a4",
}
FIRST = "the first token of a row is never a target"


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is shown, with visible marks for white space and control characters."""

    shown: str
    number: int
    role: Role
    detail: Detail
    weight: float | None  # numerator weight as a target; None: never a target
    divisor: float


@dataclass(frozen=True, slots=True)
class RoleLine:
    """One role, or a detail of one, in the whole training part: its targets and its weight."""

    role: Role
    name: str
    targets: int
    share: float  # of all targets
    carrying: float  # share of all targets that have a weight
    weight: str
    weight_share: float  # of the summed weight


@dataclass(frozen=True, slots=True)
class Look:
    """The first examples of a cell's training part, and figures of the whole part."""

    title: str
    summary: Summary
    roles: list[RoleLine]
    supervised: float  # share of targets with weight
    examples: list[list[Token]]
    whole: bool = True  # whether the figures are of all records, or of the first FEW


def look(cell: Cell, n: int) -> Look:
    """Return the first `n` training rows of a cell, and figures of its whole training part."""
    tokenizer, data = tokenizer_of(cell), tokenised(cell, "train", FEW)
    check_turns(cell.masking, data.summary.rows_by_answers)
    objective = objective_of(cell)
    root = _permute_root(cell) if objective.permute else None
    rows = range(min(n, len(data)))
    examples = [_tokens(data, row, objective, tokenizer, root) for row in rows]
    title = (
        f"dataset={label(cell.dataset)} model={label(cell.model)} masking={cell.masking.name} "
        f"plw={cell.plw:g} completion_weight={cell.completion_weight:g} "
        f"normaliser={cell.loss.normaliser} scope={cell.loss.scope}"
    )
    if objective.token_rule is not None:  # its factors depend on the model as it trains
        title += f" token_rule={cell.loss.token_rule}: weights are those before its factors"
    lines = _role_lines(data, objective, root)
    carrying = sum(line.carrying for line in lines)
    return Look(title, data.summary, lines, carrying, examples, data.whole)


def _permute_root(cell: Cell) -> np.random.Generator:
    from ablate.streams import Streams  # torch

    return Streams(cell.seed, cell.sham).numpy("permute")


def _tokens(
    data: Tokenised,
    row: int,
    objective: Objective,
    tokenizer: Tokenizer,
    root: np.random.Generator | None,
) -> list[Token]:
    ids_L, roles_L = data.row(row)
    labels = data.labels_of(row)
    num_L, den_L = row_weights(labels, objective, row=row, permute=root)
    return [
        Token(
            shown=visible(_piece(tokenizer, int(number))),
            number=int(number),
            role=Role(role),
            detail=Detail(detail),
            weight=float(num) if place else None,
            divisor=float(den),
        )
        for place, (number, role, detail, num, den) in enumerate(
            zip(ids_L, roles_L, labels.details, num_L, den_L, strict=True)
        )
    ]


def _role_lines(
    data: Tokenised, objective: Objective, root: np.random.Generator | None
) -> list[RoleLine]:
    """Return a line for each role and detail of one, over the targets of all rows."""
    rows = map(data.labels_of, range(len(data)))
    num_T = np.concatenate(
        [row_weights(own, objective, row=n, permute=root)[0] for n, own in enumerate(rows)]
    )
    kinds_T = data.roles.astype(int) * len(Detail) + data.labels.details
    targets_T = np.ones(len(num_T), dtype=bool)
    targets_T[data.starts[:-1]] = False  # the first token of a row
    num_T, kinds_T = num_T[targets_T], kinds_T[targets_T]
    return [_role_line(int(kind), num_T, kinds_T == kind, objective) for kind in np.unique(kinds_T)]


def _role_line(kind: int, num_T: np.ndarray, own_T: np.ndarray, objective: Objective) -> RoleLine:
    number, within = divmod(kind, len(Detail))
    role, detail = Role(number), Detail(within)
    own = num_T[own_T]
    return RoleLine(
        role=role,
        name=_kind_name(role, detail),
        targets=len(own),
        share=len(own) / len(num_T),
        carrying=float((own > 0).sum()) / len(num_T),
        weight=_range(own) + " (permuted)" * objective.permute,
        weight_share=float(own.sum()) / (float(num_T.sum()) or 1.0),
    )


def _kind_name(role: Role, detail: Detail) -> str:
    name = role.name.lower()
    return f"{name}: {detail.name.lower().replace('_', ' ')}" if detail else name


def _range(weights: np.ndarray) -> str:
    """Return the weight, or the least and the most."""
    low, high = (f"{each:.6g}" for each in (weights.min(), weights.max()))
    return low if low == high else f"{low} to {high}"


def _piece(tokenizer: Tokenizer, number: int) -> str:
    """Return a token's own text, with the leading space that decoders of one token strip."""
    raw = tokenizer.piece(number)
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", raw)
    if byte:
        return chr(int(byte[1], 16)) if int(byte[1], 16) < 128 else f"\\x{byte[1].lower()}"
    if "▁" in raw:
        return raw.replace("▁", " ")
    text = tokenizer.decode([number])
    return raw if "\ufffd" in text else text  # part of a character: the vocabulary's own notation


def visible(text: str) -> str:
    """Return `text` with visible marks for spaces, line ends, tabs and control characters."""
    marks = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}
    return "".join(marks.get(c) or (c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)


def stretches(tokens: list[Token]) -> Iterator[list[Token]]:
    """Yield the stretches of neighbouring tokens with one role and weight."""
    for _, run in itertools.groupby(tokens, key=lambda t: (t.role, t.detail, t.weight)):
        yield list(run)


def weight_text(weight: float | None) -> str:
    """Return a weight as it is shown; a dash where the token is never a target."""
    return "–" if weight is None else f"{weight:g}"


def facts(look: Look) -> list[tuple[str, str]]:
    """Return name and value of each figure of the training part."""
    summary = look.summary
    dropped = ", ".join(f"{count} {why}" for why, count in summary.dropped.items()) or "none"
    first = [("of", f"the first {FEW:,} records; ablate plan counts all")] * (not look.whole)
    return [
        *first,
        ("rows to train on", f"{summary.rows:,} of {summary.rows_in:,} (left out: {dropped})"),
        ("cut at max_length", f"{summary.truncated:,} rows"),
        ("tokens", f"{summary.tokens:,}, {summary.mean_length:.1f} a row"),
        ("supervised share", f"{look.supervised:.1%} of targets have weight"),
        ("Rg (after truncation)", _ratio(summary.rg_tokens)),
        ("Rg (before)", _ratio(summary.rg_before_truncation)),
    ]


def _ratio(value: float | None) -> str:
    return "no prompt" if value is None else f"{value:.3f}"
