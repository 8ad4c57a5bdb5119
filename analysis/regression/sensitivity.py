"""Sensitivity: single levels, prompt loss weight 0 above all, and near-dependent columns.

Gaussian: the share of a coefficient's information that comes from one level, at the fitted
variances (`analysis.inference.sensitivity`), for numbers with few levels and for groups. For every
family the model is also fitted again without the rows at weight 0, or at either end of any other
number with few levels.
"""

import re

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.inference.sensitivity import MOST_LEVELS, Collinearity, collinearity, leverage
from analysis.mixed import fit_mixed
from analysis.regression.contrasts import covariates
from analysis.regression.model import Regression, status
from analysis.regression.random_part import SECONDS, seconds
from analysis.report import words
from analysis.report.page import Block, Head, Item, Listing, Section, Sheet, Text
from analysis.report.tables import SIGNIFICANT, Table

FEW = 12  # levels of a number that are left out one at a time
SHOWN = 8  # sentences
NAMED = 4  # coefficients that a sentence lists
NOTEWORTHY = (0.5, 1.0)  # share of information, shift in standard errors


def section(reg: Regression) -> Section:
    """Return the section on influence and collinearity."""
    blocks: list[Block] = [] if reg.general else _single_levels(reg)
    blocks += [*_refits(reg), *_collinear(reg)]
    summary = "How the estimates depend on single levels, ends of numbers, near-dependent columns."
    return Section("influence", "Sensitivity", tuple(blocks), summary)


def _single_levels(reg: Regression) -> list[Block]:
    """Return the levels that a coefficient rests on, or a line that there are none."""
    if seconds(reg.fit) * MOST_LEVELS > SECONDS:
        return [Text("Leverage of single levels was not computed: the table is too large for it.")]
    parts: list[pd.DataFrame] = []
    sentences: list[str] = []
    for column in dict.fromkeys([*_dosed(reg), *_groups(reg)]):
        names = [str(n) for n in reg.fit.fixef.index if _about(str(n), column, reg)]
        try:
            found = leverage(reg.fit, reg.used, column, names=names)
        except (AnalysisError, np.linalg.LinAlgError):  # too little is left without a level
            continue
        parts.append(found.table.assign(column=column, level=found.table["level"].astype(str)))
        sentences += found.words
    if not parts:
        return []
    table = pd.concat(parts, ignore_index=True)
    share, shift = NOTEWORTHY
    lost = table["se_without"].isna()
    kept = table[(table["share"] >= share) | (table["shift"].abs() > shift) | lost]
    if not len(kept):
        levels = words.count(len(table[["column", "level"]].drop_duplicates()), "level")
        return [Text(f"No coefficient rests on one of the {levels} that were left out in turn.")]
    items = tuple(Item(text=_readable(s)) for s in sentences[:SHOWN])
    return [Head("Single levels"), Listing(items), Sheet(_leverage_table(kept))]


def _readable(sentence: str) -> str:
    """Return a sentence with squares and minus signs as they are printed."""
    text = re.sub(r"\S+:\S+(?: \S+\]\S*)*", lambda m: words.term_text(m[0]), sentence)
    text = re.sub(r"I\((\w+) \*\* 2\)", r"\1²", text)
    return re.sub(r"(?<!\S)-(?=\d)", "−", text)


def _dosed(reg: Regression) -> list[str]:
    return [n for n in covariates(reg) if 2 < reg.used[n].nunique() <= FEW]


def _groups(reg: Regression) -> list[str]:
    names = [f.group for f in reg.fit.problem.factors if ":" not in f.group]
    return [n for n in names if reg.used[n].nunique() <= MOST_LEVELS]


def _about(coefficient: str, column: str, reg: Regression) -> bool:
    """Return whether a coefficient is asked of a column: of a number, those that it is part of."""
    if coefficient == "Intercept":
        return False
    if column not in covariates(reg):
        return True
    return bool(re.search(rf"(?<!\w){re.escape(column)}(?!\w)", coefficient))


def _leverage_table(kept: pd.DataFrame) -> Table:
    columns = ["column", "level", "name", "share", "shift", "estimate_without", "se_without"]
    frame = kept[columns].rename(columns={"name": "coefficient"})
    frame = frame.assign(coefficient=frame["coefficient"].map(words.term_text))
    note = (
        "Share: of what is known of the coefficient, from the rows of that level. Shift: of the "
        "estimate without them, in standard errors. At the fitted variances."
    )
    heads = words.HEADS | {"estimate_without": "estimate without", "se_without": "s.e. without"}
    formats = {"share": ".0%", "shift": ".1f", "estimate_without": SIGNIFICANT, "se_without": ".2g"}
    return Table("leverage", "Coefficients that rest on one level", frame, note, heads, formats)


def _refits(reg: Regression) -> list[Block]:
    """Return the model fitted again without each end of every number with few levels."""
    rows = []
    for column in _dosed(reg):
        values = reg.used[column]
        plw = column == "wp" and not reg.own_wp
        ends = [values.min()] if plw else [values.min(), values.max()]
        for end in ends:
            rows += _without(reg, column, float(end))
    if not rows:
        return []
    note = "The same formula fitted to the other rows, variances and all."
    heads = words.HEADS | {
        "estimate_without": "estimate without", "se_without": "s.e. without", "fit_status": "fit"
    }  # fmt: skip
    formats = dict.fromkeys(("estimate", "estimate_without", "se", "se_without"), SIGNIFICANT)
    table = Table("without", "The model fitted again", pd.DataFrame(rows), note, heads, formats)
    return [Head("Without the ends"), Text(_summary(pd.DataFrame(rows))), Sheet(table)]


def _without(reg: Regression, column: str, end: float) -> list[dict[str, object]]:
    rest = reg.used[reg.used[column] != end]
    plw = column == "wp" and not reg.own_wp
    name = "PLW 0" if plw and end == 0 else f"{column} {end:g}"
    try:
        fit = fit_mixed(rest, reg.fit.formula, reg.family, weights=reg.proposal.weights)
    except AnalysisError:
        return []
    found = []
    for coefficient in map(str, reg.fit.fixef.index):
        if _about(coefficient, column, reg):
            there = coefficient in fit.fixef.index
            found.append({
                "without": name, "coefficient": words.term_text(coefficient),
                "estimate": reg.fit.fixef[coefficient], "se": reg.fit.se[coefficient],
                "estimate_without": fit.fixef[coefficient] if there else np.nan,
                "se_without": fit.se[coefficient] if there else np.nan,
                "fit_status": status(fit),
            })  # fmt: skip
    lost = all(np.isnan(float(str(row["estimate_without"]))) for row in found)
    return [] if lost else found


def _summary(table: pd.DataFrame) -> str:
    lost = table["estimate_without"].isna()
    turned = ~lost & (np.sign(table["estimate"]) != np.sign(table["estimate_without"]))
    moved = ~lost & ((table["estimate"] - table["estimate_without"]).abs() > table["se"])
    still = moved & ~turned
    kinds = [("no estimate any more", lost), ("another sign", turned),
            ("a shift by more than a standard error", still)]  # fmt: skip
    parts = [f"{what}: {_names(table[rows])}" for what, rows in kinds if rows.any()]
    if not parts:
        return "Left out one at a time, no end of a scale changes a coefficient by much."
    return f"Without one end of its scale, {'; '.join(parts)}."


def _names(rows: pd.DataFrame) -> str:
    pairs = zip(rows["coefficient"], rows["without"], strict=True)
    names = [f"{words.term_text(str(c))} (without {w})" for c, w in pairs]
    more = f" and {len(names) - NAMED} others" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _collinear(reg: Regression) -> list[Block]:
    if len(reg.fit.fixef) < 2 or not np.isfinite(reg.fit.cov.to_numpy()).all():
        return []
    found: Collinearity = collinearity(reg.fit)
    lines = tuple(map(_readable, found.words)) or ("No term is nearly determined by the others.",)
    frame = found.vif.rename_axis("term").rename("inflation").reset_index()
    note = (
        f"Generalised variance inflation per coefficient (Fox and Monette 1992); condition number "
        f"of the columns {found.condition:.1f}."
    )
    formats = {"inflation": ".2f"}
    heads = {"inflation": "variance inflation"}
    table = Table("collinearity", "Collinearity", frame, note, heads, formats)
    return [Head("Collinearity"), Listing(tuple(Item(text=s) for s in lines)), Sheet(table)]
