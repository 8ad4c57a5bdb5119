"""Sections of a report and how they become one self-contained page with its files beside it."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from ablate.results.spreadsheet import write_csv
from analysis.report import style
from analysis.report.inlined import inline_svg
from analysis.report.tables import Table, html_table, latex

OPEN_WARNINGS = 3  # of one head; the others are folded
SEEN = ("distinguishable", "an effect", "a small effect")  # verdicts on an effect


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Head:
    """A heading inside a section."""

    text: str
    kind: str = "head"


@dataclass(frozen=True)
class Item:
    """One line of a list, with a verdict in front of it where there is one."""

    text: str
    tag: str = ""
    tone: str = ""  # clear, warn or nothing
    sources: tuple[str, ...] = ()  # names of the tables that its numbers stand in


@dataclass(frozen=True)
class Listing:
    """A list of findings or remarks."""

    entries: tuple[Item, ...]
    style: str = ""
    kind: str = "list"


def narrow_name(name: str) -> str:
    """Return the stem of the files of a figure's narrow form."""
    return f"{name}_narrow"


@dataclass(frozen=True)
class Plate:
    """A figure with its caption, which says what is drawn and what the intervals are."""

    name: str
    figure: Figure
    caption: str
    narrow: Figure | None = None  # the same for a narrow window, in which the wide one scrolls
    kind: str = "plate"

    @property
    def drawn(self) -> dict[str, Figure]:
        """The figures by the stems of their files."""
        known = {self.name: self.figure, narrow_name(self.name): self.narrow}
        return {stem: figure for stem, figure in known.items() if figure is not None}


@dataclass(frozen=True)
class Sheet:
    """A table, open or folded."""

    table: Table
    open: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Formula:
    """An equation, as MathML that is safe to put into a page."""

    html: str
    kind: str = "formula"


@dataclass(frozen=True)
class Copy:
    """A paragraph to be pasted elsewhere, with a file that holds it in LaTeX."""

    file: str
    text: str
    tex: str
    kind: str = "copy"


Block = Text | Head | Listing | Plate | Sheet | Formula | Copy


@dataclass(frozen=True)
class Section:
    """A part of the report; `key` is its anchor."""

    key: str
    title: str
    blocks: tuple[Block, ...]
    summary: str = ""  # one line, beside the title of the folded section


TEMPLATES = Path(__file__).parent / "templates"
_POLICY = "SECURITY-POLICY"  # stands in the template for what `_policy` returns


@dataclass(frozen=True)
class Page:
    """All that the page shows."""

    title: str
    source: str
    version: str
    sections: tuple[Section, ...]  # folded, each opened by its title or a link to it
    first: Section | None = None  # what is open when the page is
    facts: tuple[tuple[str, str], ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()
    question: str = ""
    trusted: bool = True  # False: no verdict is shown in green
    about: str = "study report"
    explorer: str = ""  # the packed data of `analysis.explorer`; without it the page has none


def write(page: Page, out: Path) -> Path:
    """Write the page, its tables and its figures under `out`; return the page's path."""
    _clear(out)
    figures: dict[str, str] = {}
    for block in [block for section in _every(page) for block in section.blocks]:
        if isinstance(block, Sheet):
            table = out / "tables" / block.table.name
            write_csv(block.table.frame, Path(f"{table}.csv"))
            Path(f"{table}.tex").write_text(latex(block.table), encoding="utf-8")
        elif isinstance(block, Plate):
            for stem, figure in block.drawn.items():
                svg, _ = style.save(figure, out / "figures" / stem)
                drawn = svg.read_text(encoding="utf-8")
                figures[stem] = inline_svg(drawn, block.name, f"f{len(figures)}")
        elif isinstance(block, Copy):
            (out / block.file).write_text(block.tex, encoding="utf-8")
    path = out / "index.html"
    path.write_text(render(page, figures), encoding="utf-8")
    return path


def _every(page: Page) -> tuple[Section, ...]:
    return page.sections if page.first is None else (page.first, *page.sections)


def _clear(out: Path) -> None:
    """Remove what an earlier report left: no table of another fit may stand beside this one."""
    for kind in ("tables/*.csv", "tables/*.tex", "figures/*.svg", "figures/*.png", "*.tex"):
        (out / kind).parent.mkdir(parents=True, exist_ok=True)
        for path in out.glob(kind):
            path.unlink()


def render(page: Page, figures: Mapping[str, str]) -> str:
    """Return the page as HTML; figures and tables are numbered in the order in which they stand.

    Args:
        page: what to show.
        figures: the `<svg>` element of every figure of a plate, by the stem of its files.
    """
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    counts = {"plate": 0, "table": 0}
    every = _every(page)
    sheets = [b.table.name for s in every for b in s.blocks if isinstance(b, Sheet)]
    sections = [
        {
            "key": s.key, "title": s.title, "summary": s.summary or summary_of(s),
            "blocks": [_prepared(b, counts) for b in s.blocks],
        }
        for s in every
    ]  # fmt: skip
    first = None if page.first is None else sections.pop(0)
    text = environment.get_template("page.html.j2").render(
        title=page.title, question=page.question, facts=page.facts,
        warnings=_by_head(page.warnings),
        first=first, sections=sections, figures=figures, source=page.source, version=page.version,
        about=page.about, trusted=page.trusted, open_warnings=OPEN_WARNINGS,
        places={name: i for i, name in enumerate(sheets, start=1)}, explorer=page.explorer,
        program=(TEMPLATES / "explorer.js").read_text(encoding="utf-8") if page.explorer else "",
    )  # fmt: skip
    head, start, scripts = text.partition("<script")  # what a script says is left as it is
    text = re.sub(r"\n\s*\n+", "\n", head) + start + scripts + "\n"
    return text.replace(_POLICY, _policy(text), 1)


def _by_head(warnings: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Return the texts of every head, heads in the order in which they come first."""
    found: dict[str, list[str]] = {}
    for head, text in warnings:
        found.setdefault(head, []).append(text)
    return list(found.items())


def _policy(text: str) -> str:
    """Return a content security policy under which a browser runs the page's own scripts alone."""
    scripts = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    allowed = " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests)
    return (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src {allowed}; base-uri 'none'; form-action 'none'"
    )


def summary_of(section: Section) -> str:
    """Return a line on a section without a summary: its first sentence, else what it holds."""
    for block in section.blocks:
        if isinstance(block, Text):
            return _first_sentence(block.text)
    if said := _verdicts([b.table.frame for b in section.blocks if isinstance(b, Sheet)]):
        return said
    kinds = {"plate": "figure", "table": "table"}
    found = [kinds[b.kind] for b in section.blocks if b.kind in kinds]
    parts = [f"{found.count(k)} {k}{'' if found.count(k) == 1 else 's'}" for k in kinds.values()]
    return ", ".join(part for part in parts if not part.startswith("0 "))


def _verdicts(frames: list[pd.DataFrame]) -> str:
    """Return how many lines of the first table with verdicts are distinguishable; else nothing."""
    for frame in frames:
        verdicts = frame["verdict"].astype(str) if "verdict" in frame else pd.Series(dtype=str)
        known = verdicts.isin([*SEEN, "not distinguishable", "undecided"])
        if known.any():
            seen = int(verdicts.isin(SEEN).sum())
            return f"{seen} of {len(verdicts)} comparisons distinguishable."
    return ""


def _first_sentence(text: str) -> str:
    end = re.search(r"[.;](?=\s|$)", text)
    return text if end is None else f"{text[: end.start()]}."


def _prepared(block: Block, counts: dict[str, int]) -> dict[str, Any]:
    prepared: dict[str, Any] = {f: getattr(block, f) for f in block.__dataclass_fields__}
    if isinstance(block, Plate | Sheet):
        counts[block.kind] += 1
        prepared["number"] = counts[block.kind]
    if isinstance(block, Plate) and block.narrow is not None:
        prepared["narrow"] = narrow_name(block.name)
    if isinstance(block, Sheet):
        prepared["html"] = html_table(block.table)
    return prepared
