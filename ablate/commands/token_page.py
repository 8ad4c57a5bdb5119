"""The examples of a cell as one self-contained page of HTML."""

import html as markup

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
    figures = "".join(f"<tr><td>{_esc(k)}</td><td>{_esc(v)}</td></tr>" for k, v in facts(seen))
    rows = "".join(
        f"<h2>Example {number}: {len(tokens)} tokens</h2><div class='row'>{_page_tokens(tokens)}"
        "</div>"
        for number, tokens in enumerate(seen.examples, start=1)
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src "
        "'unsafe-inline'\"><title>Tokens as the loss sees "
        f"them</title><style>{_STYLE}{colours}</style></head><body><h1>{_esc(seen.title)}</h1>"
        f"<table>{figures}</table>{_page_roles(seen)}"
        "<p>Colour is role; pale has weight 0; the small figure after a run of tokens is their "
        f"weight (–: {FIRST}). · is a space, ↵ a line end, ⇥ a tab.</p>{rows}</body></html>"
    )


def _esc(text: str) -> str:
    return markup.escape(text, quote=True)


def _page_roles(seen: Look) -> str:
    names = "<tr><th>role</th><th>targets</th><th>share</th><th>weight</th><th>share of weight</th>"
    lines = "".join(
        f"<tr><td><span class='t {line.role.name.lower()}'>{line.name}</span></td>"
        f"<td>{line.targets:,}</td><td>{line.share:.1%}</td><td>{line.weight}</td>"
        f"<td>{line.weight_share:.1%}</td></tr>"
        for line in seen.roles
    )
    return f"<table>{names}</tr>{lines}</table>"


def _page_tokens(tokens: list[Token]) -> str:
    parts = []
    for run in stretches(tokens):
        for place, token in enumerate(run):
            role = token.role.name.lower()
            tip = f"id {token.number}, {role}, weight {weight_text(token.weight)}"
            kind = f"t {role} zero" if not token.weight else f"t {role}"
            label = f"<sub>{weight_text(token.weight)}</sub>" if place == len(run) - 1 else ""
            parts.append(
                f"<span class='{kind}' title='{_esc(tip)}, divisor {token.divisor:g}'>"
                f"{_esc(token.shown)}</span>{label}" + "<br>" * token.shown.endswith("↵")
            )
    return "".join(parts)
