"""The report of a table that came from elsewhere: a score column and some factors."""

import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.figures import plw as paper
from analysis.figures import study as figures
from analysis.inference.estimates import coefficients
from analysis.mixed import MixedFit
from analysis.report import words
from analysis.report.checks import coefficient_table, health, variance_table
from analysis.report.numbers import level_means
from analysis.report.page import Block, Item, Listing, Plate, Section, Sheet, Text
from analysis.report.tables import Table, shown
from analysis.study.effects import response
from analysis.study.frame import plw_of
from analysis.study.optimum import INTERIOR, NOT_IDENTIFIED, Quadratic, optimum

SHOWN_TERMS = 60  # more lines than this no forest plot can carry
FEW_LEVELS = 12


@dataclass(frozen=True)
class Fitted:
    """A stranger's table and the model of it."""

    frame: pd.DataFrame
    fit: MixedFit
    reasons: tuple[str, ...]

    @property
    def score(self) -> str:
        """The name of the score column."""
        return str(self.frame.attrs.get("score", "score"))


def sections(found: Fitted) -> list[Section]:
    """Return the sections of the report; what the table has no data for is left out."""
    parts = (findings(found), columns(found), dose(found), means(found), model(found))
    return [part for part in (*parts, diagnostics(found)) if part is not None]


def findings(found: Fitted) -> Section:
    """Return, a line per coefficient, what can be told from zero and what cannot."""
    table = coefficients(found.fit)
    table = table[table["name"] != "Intercept"]
    rows = table.to_dict("records")[:SHOWN_TERMS]
    entries = tuple(_finding(row, found.frame) for row in rows)
    text = (
        f"Each line is one term of {found.fit.formula}, all others held fixed, in units of "
        f"{found.score} with a 95 % interval; p-values are not adjusted for their number."
    )
    return Section("findings", "Findings", (Text(text), Listing(entries, style="findings")))


def _finding(row: Mapping[Hashable, Any], frame: pd.DataFrame) -> Item:
    numbers = {k: float(row[k]) for k in ("estimate", "low", "high", "p", "visible")}
    size, low, high = (shown(numbers[k], ".3g") for k in ("estimate", "low", "high"))
    text = f"{_term(str(row['name']), frame)}: {size} (95 % interval {low} to {high})"
    if numbers["p"] < 0.05:
        return Item(f"{text}, {words.p_text(numbers['p'])}.", "distinguishable", "clear")
    seen = f"a true effect of {numbers['visible']:.3g} would have been seen"
    return Item(f"{text}; {seen}.", "not distinguishable")


def _term(name: str, frame: pd.DataFrame) -> str:
    """Return a term in words; a level of a factor is told with the level it is held against."""
    level = re.fullmatch(r"(?:C\()?`?(\w+)`?\)?\[T\.([^\]]*)\]", name)
    if level is None or level[1] not in frame:
        return words.term_text(name)
    first = sorted(frame[level[1]].dropna().unique())[0]
    return f"{level[1]} {level[2]} against {first}"


def columns(found: Fitted) -> Section:
    """Return what the table holds and how each column was used."""
    rows = []
    for name in found.frame.columns.drop("score", errors="ignore"):
        values = found.frame[name]
        levels = sorted(values.dropna().astype(str).unique())
        some = ", ".join(levels[:FEW_LEVELS]) + (", ..." if len(levels) > FEW_LEVELS else "")
        missing = int(values.isna().sum())
        rows.append({"column": name, "levels": len(levels), "missing": missing, "values": some})
    reasons = tuple(Item(text=reason) for reason in found.reasons)
    table = Table("columns", "Columns of the table", pd.DataFrame(rows))
    text = Text(f"{len(found.frame)} rows with a {found.score}. How the model was chosen:")
    return Section("table", "What the table holds", (text, Listing(reasons), Sheet(table)))


def dose(found: Fitted) -> Section | None:
    """Return the fitted curve over PLW and its optimum, where the table has a PLW."""
    used = found.fit.design.parsed.columns
    if "wp" not in used or found.frame["wp"].nunique() < 3:
        return None
    try:
        curve = response(found.fit, found.frame.loc[found.fit.design.rows])
    except AnalysisError:  # a formula that is no quadratic in the weight has no optimum to give
        return None
    x = np.linspace(0, 1, 41)
    levels = [curve.at(float(v)) for v in x]
    ends = {k: [getattr(e, k) for e in levels] for k in ("estimate", "low", "high")}
    line = pd.DataFrame({"wp": x, "masking": "fitted", **ends})
    points = level_means(found.frame, ["wp"], block=_factors(found)).table.assign(masking="fitted")
    points["plw"] = points["wp"].map(plw_of)
    panel = {"dataset": "", "task": ""}
    figure = figures.score_curves(points.assign(**panel), line.assign(**panel), unit=found.score)
    caption = (
        "Score against prompt loss weight, spaced as w_p. Markers: means adjusted for the other "
        "factors, 95 % intervals. Line and band: the fitted quadratic."
    )
    blocks: list[Block] = [Plate("score_against_plw", figure, caption)]
    blocks += _optimum(found, curve.quadratic)
    return Section("plw", "Score against prompt loss weight", tuple(blocks))


def _optimum(found: Fitted, quadratic: Quadratic) -> Iterator[Block]:
    best = optimum(quadratic)
    ends = [plw_of(min(max(x, 0.0), 1.0)) for x in best.fieller]
    inside = best.verdict == INTERIOR
    if best.verdict == NOT_IDENTIFIED:
        yield Text(f"The PLW with the highest score is not identified: {best.words}.")
        return
    row = {
        "group": "all rows", "label": found.score, "verdict": best.verdict,
        "estimate": plw_of(best.at),
        "low": ends[0] if inside else np.nan, "high": ends[1] if inside else np.nan,
    }  # fmt: skip
    frame = pd.DataFrame([row])
    caption = f"The PLW with the highest fitted score, 95 % Fieller interval: {best.words}."
    yield Plate("optimum", paper.optimum(frame, theirs=False), caption)
    told = frame.drop(columns="group").assign(because=best.words)
    yield Sheet(Table("optimum", "Optimum prompt loss weight", told, "", words.HEADS))


def means(found: Fitted) -> Section | None:
    """Return the adjusted mean of every level of every factor with few levels."""
    parts = []
    for name in _factors(found):
        table = level_means(found.frame, [name], block=_factors(found)).table
        table = table.rename(columns={name: "level"}).assign(factor=name)
        parts.append(table.assign(level=table["level"].astype(str)))
    if not parts:
        return None
    frame = pd.concat(parts, ignore_index=True)[["factor", "level", "n", "estimate", "low", "high"]]
    rows = frame.rename(columns={"factor": "group", "level": "label"})
    rows = rows.assign(verdict="distinguishable")
    caption = "Means of the levels, adjusted for the other factors shown, with 95 % intervals."
    plate = Plate("level_means", figures.forest(rows, unit=found.score, zero=False), caption)
    sheet = Sheet(Table("level_means", "Means of the levels", frame, caption, words.HEADS))
    return Section("means", "Means", (plate, sheet))


def _factors(found: Fitted) -> list[str]:
    frame = found.frame
    names = [n for n in found.fit.design.parsed.columns if n in frame and n not in ("score", "wp")]
    return [
        n
        for n in names
        if 1 < frame[n].nunique() <= FEW_LEVELS
        and (not pd.api.types.is_float_dtype(frame[n]))
        and n != found.score
    ]


def model(found: Fitted) -> Section:
    """Return the coefficients as a figure and as a table."""
    table = coefficients(found.fit)
    table = table[table["name"] != "Intercept"]
    blocks: list[Block] = [Text(f"Model: {found.fit.formula}, fitted by {found.fit.method}.")]
    if 0 < len(table) <= SHOWN_TERMS:
        rows = table.assign(
            group="fixed effects",
            label=[_term(str(n), found.frame) for n in table["name"]],
            verdict=np.where(table["p"] < 0.05, "distinguishable", "not distinguishable"),
        )
        caption = (
            "Fixed effects with 95 % intervals; hollow where zero lies inside. A factor's levels "
            "are held against its first one."
        )
        blocks.append(Plate("coefficients", figures.forest(rows, unit=found.score), caption))
    blocks += [Sheet(coefficient_table(found.fit), open=True), Sheet(variance_table(found.fit))]
    return Section("model", "Coefficients", tuple(blocks))


def diagnostics(found: Fitted) -> Section:
    """Return the health of the fit in plain words, and its residuals."""
    lines = [*health(found.fit), *found.frame.attrs.get("notes", ())]
    caption = (
        "Residuals against the fitted score (a fan or a bend would mean that the model's form is "
        "wrong) and against the normal distribution (a straight line is good)."
    )
    figure = figures.residuals(found.fit.fitted, found.fit.residuals)
    listing = Listing(tuple(Item(text=line) for line in lines))
    return Section("diagnostics", "Diagnostics", (listing, Plate("residuals", figure, caption)))
