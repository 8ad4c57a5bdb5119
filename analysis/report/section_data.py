"""A section of the report as tables and figures, for notebooks."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from analysis.report.page import Plate, Section, Sheet, Text


@dataclass(frozen=True, repr=False)
class SectionData:
    """A section of the report, as data.

    Attributes:
        title: its title.
        summary: what it found, in a line.
        text: its paragraphs.
        tables: its tables by the name that their file in the report has.
        figures: its figures, likewise.
        captions: what each figure shows.
    """

    title: str
    summary: str
    text: tuple[str, ...]
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure]
    captions: Mapping[str, str]

    def __repr__(self) -> str:
        named = [f"{what}: {', '.join(own)}" for what, own in
                 (("tables", self.tables), ("figures", self.figures)) if own]  # fmt: skip
        return "\n".join([f"<section {self.title}> {self.summary}".rstrip(), *named])


def section_data(section: Section) -> SectionData:
    """Return the tables and figures of a section by their names."""
    plates = [b for b in section.blocks if isinstance(b, Plate)]
    sheets = [b.table for b in section.blocks if isinstance(b, Sheet)]
    return SectionData(
        section.title,
        section.summary,
        tuple(b.text for b in section.blocks if isinstance(b, Text)),
        {t.name: t.frame for t in sheets},
        {p.name: p.figure for p in plates},
        {p.name: p.caption for p in plates},
    )
