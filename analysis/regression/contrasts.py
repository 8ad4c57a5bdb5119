"""Marginal means, their pairwise comparisons, equivalence and slopes, as tables of the report.

Where the model is linear on another scale than the score's, every mean and every difference stands
on both (`analysis.inference.scale`), and a difference of logits or logarithms as a ratio too.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.inference.comparisons import Comparisons, difference, pairwise
from analysis.inference.estimates import Estimate, contrast, equivalence
from analysis.inference.means import Means, means, slopes
from analysis.inference.multiplicity import holm
from analysis.inference.reference_grid import ReferenceGrid
from analysis.inference.scale import IDENTITY, Scale, scale_of
from analysis.regression.column_roles import NUISANCE
from analysis.regression.effect_groups import effects
from analysis.regression.model import SHORT, Regression
from analysis.report import words
from analysis.report.tables import P_VALUE, SIGNIFICANT, Table

MOST_LEVELS = 12
LEVELS = ("level", "against")  # of a pair
SLOPE = ("estimate", "low", "high", "se", "df", "t", "p", "mde")
RESPONSE = ("response", "response_low", "response_high")
ODDS = ("odds_ratio", "odds_low", "odds_high")
RATIO = ("ratio", "ratio_low", "ratio_high")
DIFFERENCE = ("difference", "difference_low", "difference_high")
LOW, HIGH, ON_SCORE = "95 % low", "95 % high", "on the score's scale"
HEADS = words.HEADS | {
    "p_tukey": "p (Tukey)", "odds_ratio": "odds ratio", "odds_low": LOW, "odds_high": HIGH,
    "ratio_low": LOW, "ratio_high": HIGH, "difference": ON_SCORE, "difference_low": LOW,
    "difference_high": HIGH, "response": ON_SCORE, "response_low": LOW, "response_high": HIGH,
    "p_equivalence": "p (TOST)", "fit_status": "fit",
}  # fmt: skip
FORMATS = dict.fromkeys(
    ("estimate", "se", "low", "high", "mde", "odds_ratio", "odds_low", "odds_high",
     *RATIO, *RESPONSE, *DIFFERENCE), SIGNIFICANT,
) | {"df": ".1f", "t": ".2f", "n": ",.0f", "at": ".3g"} | dict.fromkeys(
    ("p", "p_tukey", "p_holm", "p_equivalence"), P_VALUE
)  # fmt: skip


def factors(reg: Regression) -> list[str]:
    """Return the factors of the fixed part whose levels are of interest: no seeds, no folds."""
    names = [n for n in _grid(reg).factors if n.lower() not in NUISANCE]
    return [n for n in names if 1 < reg.used[n].nunique() <= MOST_LEVELS]


def covariates(reg: Regression) -> list[str]:
    """Return the numbers of the fixed part."""
    return [n for n in _grid(reg).covariates if reg.used[n].nunique() > 1]


def _grid(reg: Regression) -> ReferenceGrid:
    try:
        return ReferenceGrid.of(reg.fit, reg.used, {})
    except AnalysisError:  # more cells than anyone would read
        return ReferenceGrid(reg.fit, reg.used, reg.used.head(0), (), ())


def interacting(reg: Regression, names: list[str]) -> list[tuple[str, str]]:
    """Return the pairs of columns that the formula lets interact."""
    joint = [set(e.variables) for e in effects(reg.fit)]
    return [(a, b) for a, b in combinations(names, 2) if any({a, b} <= own for own in joint)]


def mean_rows(reg: Regression) -> pd.DataFrame:
    """Return one row per level of every factor: its adjusted mean."""
    parts = []
    for name in factors(reg):
        found = means(reg.fit, reg.used, name, df=reg.df)
        table = found.table().rename(columns={name: "level"})
        table["level"] = table["level"].astype(str)
        counts = reg.used[name].astype(str).value_counts()
        table.insert(0, "factor", name)
        table.insert(2, "n", table["level"].map(counts).fillna(0).astype(int))
        if on_response(reg):
            back = found.table(type="response")
            ends = zip(RESPONSE, ("estimate", "low", "high"), strict=True)
            table = table.assign(**{column: back[own] for column, own in ends})
        parts.append(table)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def on_response(reg: Regression) -> bool:
    """Return whether the model is linear on another scale than the score's."""
    return scale_of(reg.fit) is not IDENTITY


def ratio_columns(scale: Scale) -> tuple[str, ...]:
    """Return the columns of a ratio and its interval; none where a difference is no ratio."""
    return {"odds ratio": ODDS, "ratio": RATIO}.get(scale.ratio, ())


def pair_rows(reg: Regression) -> pd.DataFrame:
    """Return one row per pair of levels: all pairs of every factor, and within what interacts."""
    parts = [_pairs(reg, name, ()) for name in factors(reg)]
    for a, b in interacting(reg, factors(reg)):
        parts += [_pairs(reg, a, (b,)), _pairs(reg, b, (a,))]
    parts = [part for part in parts if len(part)]
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True)
    if not table["within"].any():
        table = table.drop(columns="within")
    return table.assign(fit_status=reg.status)


def _pairs(reg: Regression, name: str, within: tuple[str, ...]) -> pd.DataFrame:
    try:
        found = means(reg.fit, reg.used, name, within=within, df=reg.df)
    except AnalysisError:
        return pd.DataFrame()
    compared = pairwise(found, adjust="tukey")
    table = compared.table().rename(columns={"p_adjusted": "p_tukey"})
    where = [f"{within[0]} {v}" for v in table[within[0]]] if within else [""] * len(table)
    family = pd.Series(where, table.index)
    p_holm = table["p"].groupby(family, sort=False).transform(lambda p: holm(p.tolist()))
    columns = ["contrast", "estimate", "low", "high", "se", "df", "p", "p_tukey"]
    table = table[columns].assign(p_holm=p_holm, mde=[e.mde for e in compared.estimates])
    table.insert(0, "within", where)
    table.insert(0, "factor", name)
    table["contrast"] = [difference(*levels, minus=" − ") for levels in compared.levels]
    table[list(LEVELS)] = compared.levels
    if on_response(reg):
        table = table.assign(**_back(compared))
    return table.assign(**_same(compared.on_response, reg.margin)) if reg.margin else table


def _back(compared: Comparisons) -> dict[str, pd.Series]:
    """Return ratios, and differences of the means on the score's scale, as columns."""
    columns = {}
    if names := ratio_columns(compared.means.scale):
        ratios = compared.table(type="response")
        own = (compared.means.scale.ratio.replace(" ", "_"), "low", "high")
        columns = {name: ratios[column] for name, column in zip(names, own, strict=True)}
    rows = pd.DataFrame([e.row() for e in compared.on_response])
    ends = zip(DIFFERENCE, ("estimate", "low", "high"), strict=True)
    return columns | {name: rows[column] for name, column in ends}


def _same(effects: Sequence[Estimate], margin: float) -> dict[str, list[float] | list[str]]:
    """Return the tests of equivalence, on the score's scale."""
    tests = [equivalence(effect, margin) for effect in effects]
    return {"p_equivalence": [t.p for t in tests], "verdict": [t.verdict for t in tests]}


def slope_rows(reg: Regression) -> pd.DataFrame:
    """Return the slope of every covariate: at its mean, at its ends where it is a curve, and
    within the levels of what it interacts with; of a logarithm the effect of a doubling.
    """
    rows: list[dict[str, object]] = []
    for name in covariates(reg):
        parts = [f for f in factors(reg) if interacting(reg, [name, f])]
        if ends := doubling(reg, name):
            for factor in ("", *parts):
                rows += _doubled(reg, name, factor, ends)
            continue
        for where in _where(reg, name):
            found = slopes(reg.fit, reg.used, name, at={name: where}, df=reg.df)
            rows.append({"covariate": name, "within": "", "at": where} | _slope(reg, found, 0))
        for factor in parts:
            rows += _within(reg, name, factor)
    table = pd.DataFrame(rows)
    if not len(table):
        return table
    if not table["within"].any():
        table = table.drop(columns="within")
    return table.assign(fit_status=reg.status)


def doubling(reg: Regression, name: str) -> tuple[float, float] | None:
    """Return a value and its double of a covariate that the model holds as a logarithm alone."""
    own = rf"`?{re.escape(name)}`?"
    rest = re.sub(rf"log(?:2|10)?\(\s*{own}\s*\)", "", reg.fit.design.parsed.fixed)
    if rest == reg.fit.design.parsed.fixed or re.search(rf"(?<![\w`]){own}(?![\w`])", rest):
        return None
    values = reg.used[name].to_numpy(dtype=np.float64)
    middle = float(np.exp(np.log(values).mean()))
    return middle, 2 * middle


def _doubled(
    reg: Regression, name: str, factor: str, ends: tuple[float, float]
) -> Iterator[dict[str, object]]:
    """Yield what a doubling of a covariate changes, in each level of a factor if one is given."""
    within = [factor] if factor else []
    found = means(reg.fit, reg.used, name, within=within, at={name: list(ends)}, df=reg.df)
    levels = found.labels[factor].astype(str) if factor else pd.Series("", found.labels.index)
    for level in dict.fromkeys(levels):
        own = found.l_KB[(levels == level).to_numpy()]
        effect = contrast(reg.fit, own[1] - own[0], df=reg.df)
        where = f"{factor} {level}" if factor else ""
        head = {"covariate": f"{name}, per doubling", "within": where, "at": ends[0]}
        yield head | {n: getattr(effect, n) for n in SLOPE}


def _where(reg: Regression, name: str) -> list[float]:
    """Return where a covariate's slope is asked for: it is the same everywhere on a line."""
    values = reg.used[name].to_numpy(dtype=np.float64)
    middle = float(values.mean())
    ends = [float(values.min()), middle, float(values.max())]
    l_3B = [slopes(reg.fit, reg.used, name, at={name: x}).l_KB[0] for x in ends]
    bent = np.ptp(np.nan_to_num(np.array(l_3B)), axis=0).max() > 1e-6 * (1 + np.abs(l_3B[1]).max())
    return ends if bent else [middle]


def straight(reg: Regression, name: str) -> bool:
    """Return whether a covariate's slope is the same everywhere."""
    return len(_where(reg, name)) == 1


def _within(reg: Regression, name: str, factor: str) -> Iterator[dict[str, object]]:
    middle = float(reg.used[name].to_numpy(dtype=np.float64).mean())
    found = slopes(reg.fit, reg.used, name, of=factor, at={name: middle}, df=reg.df)
    for k, level in enumerate(found.labels[factor].astype(str)):
        head: dict[str, object] = {"covariate": name, "within": f"{factor} {level}", "at": middle}
        yield head | _slope(reg, found, k)


def _slope(reg: Regression, found: Means, k: int) -> dict[str, object]:
    effect = contrast(reg.fit, found.l_KB[k], df=reg.df)
    return {n: getattr(effect, n) for n in SLOPE}


def mean_table(reg: Regression, rows: pd.DataFrame) -> Table:
    """Return the marginal means as a table of the report."""
    note = (
        f"Means of {reg.unit} at each level, the others of the model averaged over with equal "
        f"weight, numbers at their mean; 95 % intervals, {SHORT[reg.df]}."
    )
    return Table("level_means", "Marginal means", rows, note, HEADS, FORMATS)


def pair_tables(reg: Regression, rows: pd.DataFrame) -> list[Table]:
    """Return the comparisons: on the model's scale, on the score's own, and for equivalence."""
    keys = [n for n in ("factor", "within", "contrast") if n in rows]
    apart = (*LEVELS, *ODDS, *RATIO, *DIFFERENCE, "p_equivalence", "verdict")
    own = [n for n in rows if n not in apart]
    note = (
        "First level less second; intervals and p (Tukey) are simultaneous over the pairs of one "
        "factor, p (Holm) too; MDE: minimum detectable effect, found by one "
        "such comparison with 80 % power."
    )
    found = [Table("pairs", "Pairwise comparisons", rows[own], note, HEADS, FORMATS)]
    if on_response(reg):
        scale = scale_of(reg.fit)
        note = (
            "Differences of the means on the score's scale by the delta method, 95 % each, at "
            "random effects of zero."
        )
        title = "The same comparisons on the score's scale"
        if scale.ratio:
            note = f"{scale.ratio.capitalize()}s with Tukey's simultaneous intervals. {note}"
            title = f"The same comparisons as {scale.ratio}s and on the score's scale"
        columns = [*keys, *ratio_columns(scale), *DIFFERENCE, "fit_status"]
        found.append(Table("pairs_on_score", title, rows[columns], note, HEADS, FORMATS))
    if reg.margin:
        note = f"Two one-sided tests of each difference within ± {reg.margin:g}, not adjusted."
        what = "difference" if on_response(reg) else "estimate"
        frame = rows[[*keys, what, "p_equivalence", "verdict", "fit_status"]]
        found.append(Table("equivalence", "Equivalence", frame, note, HEADS, FORMATS))
    return found


def slope_table(reg: Regression, rows: pd.DataFrame) -> Table:
    """Return the slopes as a table of the report."""
    note = (
        f"Change of {reg.unit} per unit of the covariate, or per doubling where it says so; "
        f"95 % intervals, {SHORT[reg.df]}."
    )
    return Table("slopes", "Slopes", rows, note, HEADS, FORMATS)
