"""Examples as the loss sees them: every token in its role's colour, with its weight.

`preview` is for the terminal, `html` one self-contained page; both show the same `Look`.
"""

import html as markup
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ablate.config.schema import Cell
from ablate.data.targets import row_weights
from ablate.data.tokenise import Summary, Tokenised
from ablate.data.tokenizer import Tokenizer
from ablate.experiment.cell_data import tokenised, tokenizer_of
from ablate.objective import Objective, objective_of
from ablate.roles import NAMES, Role

COLOURS = {  # told apart by the colour-blind; tuned for black text on them
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
    """A token as it is shown: white space and control characters made visible."""

    shown: str
    number: int
    role: Role
    weight: float | None  # numerator weight as a target; None: never a target
    divisor: float


@dataclass(frozen=True, slots=True)
class RoleLine:
    """What becomes of one role in the whole training part."""

    role: Role
    targets: int
    share: float  # of all targets
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


def look(cell: Cell, n: int) -> Look:
    """Return what `preview` and `html` show of a cell's first `n` training rows."""
    tokenizer, data = tokenizer_of(cell), tokenised(cell, "train")
    objective = objective_of(cell)
    root = _permute_root(cell) if objective.permute else None
    rows = range(min(n, len(data)))
    examples = [_tokens(data, row, objective, tokenizer, root) for row in rows]
    title = (
        f"dataset={cell.dataset.name} model={cell.model.name} masking={cell.masking.name} "
        f"plw={cell.plw:g} completion_weight={cell.completion_weight:g} "
        f"normaliser={cell.loss.normaliser} scope={cell.loss.scope}"
    )
    lines = _role_lines(data.summary.counts, objective)
    supervised = sum(line.share for line in lines if objective.num[line.role] > 0)
    return Look(title, data.summary, lines, supervised, examples)


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
    num_L, den_L = row_weights(roles_L, objective, row=row, permute=root)
    return [
        Token(
            shown=visible(_piece(tokenizer, int(number))),
            number=int(number),
            role=Role(role),
            weight=float(num) if place else None,
            divisor=float(den),
        )
        for place, (number, role, num, den) in enumerate(
            zip(ids_L, roles_L, num_L, den_L, strict=True)
        )
    ]


def _role_lines(counts: Mapping[str, int], objective: Objective) -> list[RoleLine]:
    total = sum(counts.values())
    roles = {Role(NAMES.index(name)): count for name, count in counts.items()}
    weight = sum(objective.num[role] * count for role, count in roles.items()) or 1.0
    return [
        RoleLine(
            role=role,
            targets=count,
            share=count / total,
            weight=f"{objective.num[role]:g}" + " (permuted)" * objective.permute,
            # permuted weights fall on every role in proportion to its targets
            weight_share=count / total
            if objective.permute
            else objective.num[role] * count / weight,
        )
        for role, count in roles.items()
    ]


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
    """Return `text` with spaces, line ends, tabs and control characters to be seen."""
    marks = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}
    return "".join(marks.get(c) or (c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)


def _runs(tokens: list[Token]) -> Iterator[list[Token]]:
    """Yield neighbours of one role and weight."""
    for _, run in itertools.groupby(tokens, key=lambda t: (t.role, t.weight)):
        yield list(run)


def _weight(weight: float | None) -> str:
    return "–" if weight is None else f"{weight:g}"


def _facts(look: Look) -> list[tuple[str, str]]:
    summary = look.summary
    dropped = ", ".join(f"{count} {why}" for why, count in summary.dropped.items()) or "none"
    return [
        ("rows", f"{summary.rows:,} of {summary.rows_in:,} (left out: {dropped})"),
        ("cut at max_length", f"{summary.truncated:,} rows"),
        ("tokens", f"{summary.tokens:,}, {summary.mean_length:.1f} a row"),
        ("supervised share", f"{look.supervised:.1%} of targets have weight"),
        ("Rg (after truncation)", _ratio(summary.rg_tokens)),
        ("Rg (before)", _ratio(summary.rg_before_truncation)),
    ]


def _ratio(value: float | None) -> str:
    return "no prompt" if value is None else f"{value:.3f}"


# -- terminal ---------------------------------------------------------------------------------


def preview(cell: Cell, n: int) -> list[RenderableType]:
    """Return what a terminal shows of a cell's first `n` training rows."""
    seen = look(cell, n)
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(seen):
        facts.add_row(Text(name, style="bold"), value)
    parts: list[RenderableType] = [Text(seen.title, style="bold"), facts, _role_table(seen)]
    for number, tokens in enumerate(seen.examples, start=1):
        title = f"example {number}: {len(tokens)} tokens"
        parts.append(Panel(_terminal_tokens(tokens), title=title, title_align="left"))
    note = f"token|token, then ₍weight₎; dim: weight 0; –: {FIRST}; · space ↵ line end ⇥ tab"
    return [*parts, Text(note, style="dim")]


def _role_table(seen: Look) -> Table:
    table = Table()
    for heading in ("role", "targets", "share", "weight", "share of weight"):
        table.add_column(heading, justify="left" if heading == "role" else "right")
    for line in seen.roles:
        name = Text(f" {line.role.name.lower()} ", style=f"black on {COLOURS[line.role]}")
        numbers = f"{line.targets:,}", f"{line.share:.1%}", line.weight, f"{line.weight_share:.1%}"
        table.add_row(name, *numbers)
    return table


def _terminal_tokens(tokens: list[Token]) -> Group:
    text = Text()
    for run in _runs(tokens):
        style = f"black on {COLOURS[run[0].role]}"
        style = f"dim {style}" if not run[0].weight else style
        for place, token in enumerate(run):
            if place and not text.plain.endswith("\n"):
                text.append("|", style=f"{style} dim")
            text.append(token.shown, style=style)
            if place == len(run) - 1:
                text.append(f"₍{_weight(token.weight)}₎", style="bold")
            text.append("\n" * token.shown.endswith("↵"))
    text.rstrip()
    return Group(text)


# -- page -------------------------------------------------------------------------------------

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em;
       color: #1a1a1a; background: #fff }
h1 { font-size: 1.3em } h2 { font-size: 1em; margin: 1.6em 0 .4em }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .8em; text-align: right }
td:first-child, th:first-child { text-align: left } tr + tr { border-top: 1px solid #ddd }
.row { font: 14px/1.9 ui-monospace, monospace; border: 1px solid #ddd; padding: .8em;
       overflow-wrap: anywhere }
.t { border-radius: 3px; padding: .1em 1px; margin-right: 1px; color: #000 }
.zero { opacity: .45 } sub { font-weight: 600; margin-right: .3em }
"""


def html(cell: Cell, n: int) -> str:
    """Return a self-contained page of a cell's first `n` training rows."""
    seen = look(cell, n)
    colours = "".join(f".{r.name.lower()} {{ background: {c} }}\n" for r, c in COLOURS.items())
    facts = "".join(f"<tr><td>{_esc(k)}</td><td>{_esc(v)}</td></tr>" for k, v in _facts(seen))
    rows = "".join(
        f"<h2>Example {number}: {len(tokens)} tokens</h2><div class='row'>{_page_tokens(tokens)}"
        "</div>"
        for number, tokens in enumerate(seen.examples, start=1)
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Tokens as the loss sees "
        f"them</title><style>{_STYLE}{colours}</style></head><body><h1>{_esc(seen.title)}</h1>"
        f"<table>{facts}</table>{_page_roles(seen)}"
        "<p>Colour is role; pale has weight 0; the small figure after a run of tokens is their "
        f"weight (–: {FIRST}). · is a space, ↵ a line end, ⇥ a tab.</p>{rows}</body></html>"
    )


def _esc(text: str) -> str:
    return markup.escape(text, quote=True)


def _page_roles(seen: Look) -> str:
    names = "<tr><th>role</th><th>targets</th><th>share</th><th>weight</th><th>share of weight</th>"
    lines = "".join(
        f"<tr><td><span class='t {line.role.name.lower()}'>{line.role.name.lower()}</span></td>"
        f"<td>{line.targets:,}</td><td>{line.share:.1%}</td><td>{line.weight}</td>"
        f"<td>{line.weight_share:.1%}</td></tr>"
        for line in seen.roles
    )
    return f"<table>{names}</tr>{lines}</table>"


def _page_tokens(tokens: list[Token]) -> str:
    parts = []
    for run in _runs(tokens):
        for place, token in enumerate(run):
            role = token.role.name.lower()
            tip = f"id {token.number}, {role}, weight {_weight(token.weight)}"
            kind = f"t {role} zero" if not token.weight else f"t {role}"
            label = f"<sub>{_weight(token.weight)}</sub>" if place == len(run) - 1 else ""
            parts.append(
                f"<span class='{kind}' title='{_esc(tip)}, divisor {token.divisor:g}'>"
                f"{_esc(token.shown)}</span>{label}" + "<br>" * token.shown.endswith("↵")
            )
    return "".join(parts)
