"""The sections that only an external table has: its columns, curve, means and slopes."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.special import expit

from analysis.inference.mean_response import Response
from analysis.regression import contrasts, not_compared
from analysis.regression.best_weight import curve_of, span
from analysis.regression.model import Regression
from analysis.regression.numbers import ALPHA, Numbers
from analysis.report import plots, words
from analysis.report.page import Block, Head, Plate, Section, Sheet, Text
from analysis.report.tables import Table
from analysis.table.frame import plw_of
from analysis.table.level_means import level_means

SHOWN_TERMS = 60  # more lines than this no forest plot can carry
FEW_LEVELS = 12
BAND = ("estimate", "low", "high")
OPEN_PAIRS = 15
SOME = 8  # values of a column that are named


def sections(reg: Regression, found: Numbers) -> list[Section]:
    """Return the sections on what the table holds; what it has no data for is left out."""
    parts = (
        columns(reg),
        dose(reg, found),
        means(reg, found),
        slopes(reg, found),
    )
    return [part for part in parts if part is not None]


def columns(reg: Regression) -> Section:
    """Return what the table holds and what each column became."""
    frame, chosen = reg.frame, {c.column: c for c in reg.proposal.choices}
    names = [str(n) for n in frame.columns if n not in frame.attrs["names"]]
    rows = [_column(frame[n], chosen.get(n), n in reg.fit.design.parsed.columns) for n in names]
    decisions = [c for c in reg.proposal.choices if c.column not in names]
    said = pd.DataFrame([{"choice": c.column, "is": c.used, "because": c.reason}
                          for c in decisions])  # fmt: skip
    table = Table("columns", "The columns and their part", pd.DataFrame(rows))
    blocks: list[Block] = [Text(f"{len(frame):,} rows have a value of {reg.score}.")]
    blocks += [Sheet(Table("choices", "Choices", said), open=True)] if len(said) else []
    blocks.append(Sheet(table, open=True))
    unasked = not_compared.rows(reg)
    blocks += [Sheet(not_compared.table(unasked))] if len(unasked) else []
    return Section("table", "What the table holds", tuple(blocks))


def _column(values: pd.Series, choice: object, used: bool) -> dict[str, object]:
    levels = sorted(values.dropna().unique())
    some = ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in levels[:SOME])
    part = getattr(choice, "used", "in the formula" if used else "not in the formula")
    return {
        "column": values.name, "levels": len(levels), "missing": int(values.isna().sum()),
        "part": part, "because": getattr(choice, "reason", "the formula was given"),
        "values": some + (", ..." if len(levels) > SOME else ""),
    }  # fmt: skip


def dose(reg: Regression, found: Numbers) -> Section | None:
    """Return the fitted curve over PLW and its optimum; over the table's own `wp` where it has that
    in place of a PLW.
    """
    curve = curve_of(reg)
    if curve is None:
        return None
    line, own = _line(reg, curve), reg.own_wp
    adjusted = words.varying(reg.used, {name: name for name in _blocks(reg)})
    axis = "wp" if own else ""
    found_means = level_means(reg.used, ["wp"], value=reg.score, block=_blocks(reg)).table
    points = found_means.assign(masking="fitted")
    points = points if own else points.assign(plw=points["wp"].map(plw_of))
    panel = {"stratum": "", "task_group": "", "masking": "fitted"}
    figure = plots.score_curves(
        points.assign(**panel), line.assign(**panel), unit=reg.score, own=axis
    )
    caption = (
        f"Score against {'wp' if own else 'prompt loss weight, spaced as w_p'}. Markers: means of "
        f"the scores{adjusted and f' adjusted for {adjusted}'}, 95 % intervals. Line: the fitted "
        f"quadratic; band: 95 % interval of its difference from {reg.weight} "
        f"{span(reg)[0]:.4g}."
    )
    heads = words.HEADS | ({"wp": "wp"} if own else {})
    sheet = Sheet(Table("curve", "The fitted curve", line, "", heads))
    best, weight = found.optimum, "wp" if own else "prompt loss weight"
    table = Sheet(Table("optimum", f"Optimum {weight}", best, "", words.HEADS))
    blocks: list[Block] = [Plate("score_against_plw", figure, caption), sheet]
    if best["estimate"].isna().all():
        reason = best["because"].iloc[0]
        blocks.append(Text(f"The {reg.weight} with the highest score is not shown: {reason}."))
    else:
        caption = (
            f"The {reg.weight} with the highest fitted score, 95 % Fieller interval where there is "
            f"one."
        )
        drawn = plots.optimum(best.assign(group="all rows"), own=axis, ends=span(reg))
        blocks.append(Plate("optimum", drawn, caption))
    summary = f"Optimum of the fitted curve over {weight}: {best['verdict'].iloc[0]}."
    return Section("plw", f"Score against {weight}", (*blocks, table), summary)


def _line(reg: Regression, curve: Response) -> pd.DataFrame:
    """Return the fitted curve; its band is that of what the weight changes."""
    low, high = span(reg)
    x = np.linspace(low, high, 41)
    start = curve.at(low).estimate
    gains = [curve.gain(float(v), low) for v in x]
    ends = {k: np.array([start + getattr(g, k) for g in gains]) for k in BAND}
    ends["low"][0] = ends["high"][0] = start
    ends = {k: expit(v) for k, v in ends.items()} if reg.logit else ends
    plw = {} if reg.own_wp else {"plw": [plw_of(float(v)) for v in x]}
    return pd.DataFrame({"wp": x, **plw, **ends})


def _blocks(reg: Regression) -> list[str]:
    """Return the columns of few levels that the formula uses."""
    names = [n for n in reg.fit.design.parsed.columns if n not in (*reg.frame.attrs["names"], "wp")]
    few = [n for n in names if 1 < reg.used[n].nunique() <= FEW_LEVELS]
    return [n for n in few if not pd.api.types.is_float_dtype(reg.used[n])]


def means(reg: Regression, found: Numbers) -> Section | None:
    """Return the marginal means of every factor and their comparisons."""
    if not len(found.means):
        return None
    on_score = {"response": "estimate", "response_low": "low", "response_high": "high"}
    rows = found.means
    if reg.logit:
        rows = rows.drop(columns=["estimate", "low", "high"]).rename(columns=on_score)
    rows = rows.rename(columns={"factor": "group", "level": "label"})
    rows = rows.assign(verdict="distinguishable").dropna(subset=["estimate"])
    caption = (
        "Marginal means, the other columns of the model averaged over, with 95 % intervals. Two "
        "overlapping intervals can belong to levels that differ: see the comparisons."
    )
    unit = reg.score if reg.logit else reg.unit
    blocks: list[Block] = []
    if 0 < len(rows) <= SHOWN_TERMS:
        figure = plots.forest(rows, unit=unit, zero=False)
        blocks.append(Plate("level_means", figure, caption))
    blocks.append(Sheet(contrasts.mean_table(reg, found.means), open=True))
    if len(found.pairs):
        blocks += [Head("Comparisons"), *_pair_plate(reg, found.pairs)]
        tables = contrasts.pair_tables(reg, found.pairs)
        blocks += [Sheet(table, open=len(found.pairs) <= OPEN_PAIRS) for table in tables]
    summary = f"{words.count(len(rows), 'mean')}, {words.count(len(found.pairs), 'comparison')}."
    return Section("means", "Means and comparisons", tuple(blocks), summary)


def _pair_plate(reg: Regression, pairs: pd.DataFrame) -> Iterator[Block]:
    if not 1 < len(pairs) <= SHOWN_TERMS:
        return
    within = pairs["within"] if "within" in pairs else pd.Series("", pairs.index)
    rows = pairs.assign(
        group=pairs["factor"] + within.map(lambda w: f" within {w}" if w else ""),
        label=pairs["contrast"],
        verdict=np.where(pairs["p_tukey"] < ALPHA, "distinguishable", "not distinguishable"),
    ).dropna(subset=["estimate"])
    margin = None if reg.logit else reg.margin
    caption = "Differences of means with Tukey's simultaneous 95 % intervals; hollow: zero inside."
    if margin:
        caption += f" Grey: the margin of equivalence, ± {margin:g}."
    yield Plate("pairs", plots.forest(rows, unit=reg.unit, margin=margin), caption)


def slopes(reg: Regression, found: Numbers) -> Section | None:
    """Return the slopes over the covariates."""
    if not len(found.slopes):
        return None
    names = ", ".join(dict.fromkeys(found.slopes["covariate"].astype(str)))
    table = contrasts.slope_table(reg, found.slopes)
    return Section("slopes", "Slopes", (Sheet(table, open=True),), f"Slopes over {names}.")


def warnings(reg: Regression) -> tuple[tuple[str, str], ...]:
    """Return what must be read before anything else."""
    found = [("What was analysed.", text) for text in reg.frame.attrs["said"]]
    found += [("Rows that were left out.", text) for text in _lost(reg)]
    if reg.status.startswith("SEPARATED"):
        words = next(w for w in reg.fit.diagnosis if w.startswith("Separation"))
        found.append(("Separated.", words.removeprefix("Separation: ").capitalize()))
    elif not reg.fit.converged:
        found.append(("Not converged.", "No interval here is to be used; simplify the model."))
    if reg.steps:
        text = f"Asked for: {reg.asked.formula}. Fitted: {reg.fit.formula}. {' '.join(reg.steps)}"
        found.append(("The random part was simplified.", text))
    if reg.proposal.simpler:
        gone = ", ".join(reg.proposal.simpler)
        text = f"The table is too small for all its columns; left out: {gone}."
        found.append(("A simpler model than the table suggests.", text))
    if reg.fit.left_out:
        gone = ", ".join(reg.fit.left_out[:8])
        text = f"Others determine them, or no row has their levels together; left out: {gone}."
        found.append(("Effects that the table does not separate.", text))
    notes = [n for n in reg.frame.attrs.get("notes", ()) if "repeat another row" in n]
    found += [("Repeated rows.", note) for note in notes]
    return tuple(found)


def _lost(reg: Regression) -> Iterator[str]:
    """Yield how many rows lack a column of the model, and which levels these rows are of."""
    gone = reg.rows.drop(index=reg.used.index)
    names = [n for n in reg.fit.design.parsed.columns if n in gone and gone[n].isna().any()]
    for name in names:
        lost = gone[gone[name].isna()]
        said = []
        for other in reg.rows.columns.difference([name, *reg.frame.attrs["names"]]):
            if 1 < reg.rows[other].nunique() <= FEW_LEVELS:
                levels = sorted(set(lost[other].dropna()) - set(reg.used[other].dropna()), key=str)
                said += [f"{other} {level}" for level in levels]
        whole = f", among them all of {', '.join(said[:SOME])}" if said else ""
        yield f"{len(lost):,} of {len(reg.rows):,} rows have no value of {name}{whole}."
