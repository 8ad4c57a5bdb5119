"""The examples of a cell on the terminal: every token in its role's colour, with its weight."""

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ablate.commands.token_view import (
    COLOURS,
    FIRST,
    Look,
    Token,
    facts,
    look,
    stretches,
    weight_text,
)
from ablate.config.schema import Cell


def preview(cell: Cell, n: int) -> list[RenderableType]:
    """Return what a terminal shows of a cell's first `n` training rows."""
    seen = look(cell, n)
    figures = Table.grid(padding=(0, 2))
    for name, value in facts(seen):
        figures.add_row(Text(name, style="bold"), value)
    parts: list[RenderableType] = [Text(seen.title, style="bold"), figures, _role_table(seen)]
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
        name = Text(f" {line.name} ", style=f"black on {COLOURS[line.role]}")
        numbers = f"{line.targets:,}", f"{line.share:.1%}", line.weight, f"{line.weight_share:.1%}"
        table.add_row(name, *numbers)
    return table


def _terminal_tokens(tokens: list[Token]) -> Group:
    text = Text()
    for run in stretches(tokens):
        style = f"black on {COLOURS[run[0].role]}"
        style = f"dim {style}" if not run[0].weight else style
        for place, token in enumerate(run):
            if place and not text.plain.endswith("\n"):
                text.append("|", style=f"{style} dim")
            text.append(token.shown, style=style)
            if place == len(run) - 1:
                text.append(f"₍{weight_text(token.weight)}₎", style="bold")
            text.append("\n" * token.shown.endswith("↵"))
    text.rstrip()
    return Group(text)
