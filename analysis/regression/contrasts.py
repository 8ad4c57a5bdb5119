"""Marginal means, their pairwise comparisons, equivalence and slopes, as tables of the report.

On a logit scale every number has a companion on the score's own: means through the inverse link,
differences of means and slopes by the delta method, with the other columns averaged over on the
logit scale as everywhere else.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.special import expit

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.comparisons import Comparisons, pairwise
from analysis.inference.estimates import (
    Equivalence,
    Estimate,
    contrast,
    covariance,
    equivalence,
    minimum_detectable_effect,
)
from analysis.inference.means import Means, means, slopes
from analysis.inference.multiplicity import holm
from analysis.inference.reference_grid import Grid
from analysis.regression.column_roles import NUISANCE
from analysis.regression.effect_groups import effects
from analysis.regression.model import SHORT, Regression
from analysis.report import words
from analysis.report.tables import P_VALUE, SIGNIFICANT, Table

MOST_LEVELS = 12
RESPONSE = ("response", "response_low", "response_high")
ODDS = ("odds_ratio", "odds_low", "odds_high")
DIFFERENCE = ("difference", "difference_low", "difference_high")
HEADS = words.HEADS | {
    "p_tukey": "p (Tukey)", "odds_ratio": "odds ratio", "odds_low": "95 % low",
    "odds_high": "95 % high", "difference": "on the score's scale", "difference_low": "95 % low",
    "difference_high": "95 % high", "response": "on the score's scale", "response_low": "95 % low",
    "response_high": "95 % high", "p_equivalence": "p (TOST)", "fit_status": "fit",
}  # fmt: skip
FORMATS = dict.fromkeys(
    ("estimate", "se", "low", "high", "mde", "odds_ratio", "odds_low", "odds_high",
     *RESPONSE, *DIFFERENCE), SIGNIFICANT,
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


def _grid(reg: Regression) -> Grid:
    try:
        return Grid.of(reg.fit, reg.used, {})
    except AnalysisError:  # more cells than anyone would read
        return Grid(reg.fit, reg.used, reg.used.head(0), (), ())


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
        parts.append(table.assign(**_means_on_score(table)) if reg.logit else table)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _means_on_score(table: pd.DataFrame) -> dict[str, Array]:
    ends = zip(RESPONSE, ("estimate", "low", "high"), strict=True)
    return {name: np.asarray(expit(table[own])) for name, own in ends}


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
    mde = [minimum_detectable_effect(e.se, e.df) for e in compared.estimates]
    columns = ["contrast", "estimate", "low", "high", "se", "df", "p", "p_tukey"]
    table = table[columns].assign(p_holm=p_holm, mde=mde)
    table.insert(0, "within", where)
    table.insert(0, "factor", name)
    table["contrast"] = table["contrast"].str.replace(" - ", " − ")
    if reg.logit:
        table = table.assign(**_differences(reg, found, compared))
    return table.assign(**_same(reg, compared, table)) if reg.margin else table


def _differences(reg: Regression, found: Means, compared: Comparisons) -> dict[str, list[float]]:
    """Return odds ratios, and differences of the means on the score's scale, as columns."""
    rows = list(score_differences(reg, found, compared))
    ratios = zip(compared.estimates, compared.half_width, strict=True)
    odds = [np.exp([e.estimate, e.estimate - h, e.estimate + h]) for e, h in ratios]
    columns: dict[str, list[float]] = {
        name: [float(row[i]) for row in odds] for i, name in enumerate(ODDS)
    }
    ends = zip(DIFFERENCE, ("estimate", "low", "high"), strict=True)
    return columns | {name: [getattr(e, own) for e in rows] for name, own in ends}


def score_differences(reg: Regression, found: Means, compared: Comparisons) -> Iterator[Estimate]:
    """Yield every pair's difference through the inverse link; the error by the delta method."""
    beta_B, cov_BB = reg.fit.fixef.to_numpy(), covariance(reg.fit, reg.df)
    mu_K = expit(found.l_KB @ beta_B)
    turned_KB = (mu_K * (1 - mu_K))[:, None] * found.l_KB
    for (i, j), effect in zip(_places(found), compared.estimates, strict=True):
        l_B = turned_KB[i] - turned_KB[j]
        se = float(np.sqrt(max(float(l_B @ cov_BB @ l_B), 0.0)))
        yield Estimate(effect.name, float(mu_K[i] - mu_K[j]), se, effect.df)


def _places(found: Means) -> list[tuple[int, int]]:
    """Return which two means every pair is of, in the order of `pairwise`."""
    if not found.within:
        return list(combinations(range(len(found.labels)), 2))
    group = found.labels.groupby(list(found.within), sort=False, observed=True).ngroup()
    own = [np.flatnonzero(group == g).tolist() for g in range(int(group.max()) + 1)]
    return [pair for places in own for pair in combinations(places, 2)]


def _same(
    reg: Regression, compared: Comparisons, table: pd.DataFrame
) -> dict[str, list[float] | list[str]]:
    """Return the tests of equivalence, on the score's scale where there are two."""
    assert reg.margin is not None
    tests: list[Equivalence] = []
    for effect, row in zip(compared.estimates, table.to_dict("records"), strict=True):
        if reg.logit:
            half = float(row["difference_high"] - row["difference"])
            se = half / effect.half_width * effect.se if effect.half_width > 0 else float("nan")
            effect = Estimate(effect.name, float(row["difference"]), se, effect.df)
        tests.append(equivalence(effect, reg.margin))
    return {"p_equivalence": [t.p for t in tests], "verdict": [t.verdict for t in tests]}


def slope_rows(reg: Regression) -> pd.DataFrame:
    """Return the slope of every covariate: at its mean, at its ends where it is a curve, and
    within the levels of what it interacts with.
    """
    rows: list[dict[str, object]] = []
    for name in covariates(reg):
        for where in _where(reg, name):
            found = slopes(reg.fit, reg.used, name, at={name: where}, df=reg.df)
            rows.append({"covariate": name, "within": "", "at": where} | _slope(reg, found, 0))
        for factor in factors(reg):
            if interacting(reg, [name, factor]):
                rows += _within(reg, name, factor)
    table = pd.DataFrame(rows)
    if not len(table):
        return table
    if not table["within"].any():
        table = table.drop(columns="within")
    return table.assign(fit_status=reg.status)


def _where(reg: Regression, name: str) -> list[float]:
    """Return where a covariate's slope is asked for: it is the same everywhere on a line."""
    values = reg.used[name].to_numpy(dtype=np.float64)
    middle = float(values.mean())
    ends = [float(values.min()), middle, float(values.max())]
    l_3B = [slopes(reg.fit, reg.used, name, at={name: x}).l_KB[0] for x in ends]
    bent = np.ptp(np.nan_to_num(np.array(l_3B)), axis=0).max() > 1e-6 * (1 + np.abs(l_3B[1]).max())
    return ends if bent else [middle]


def _within(reg: Regression, name: str, factor: str) -> Iterator[dict[str, object]]:
    middle = float(reg.used[name].to_numpy(dtype=np.float64).mean())
    found = slopes(reg.fit, reg.used, name, of=factor, at={name: middle}, df=reg.df)
    for k, level in enumerate(found.labels[factor].astype(str)):
        head: dict[str, object] = {"covariate": name, "within": f"{factor} {level}", "at": middle}
        yield head | _slope(reg, found, k)


def _slope(reg: Regression, found: Means, k: int) -> dict[str, object]:
    effect = contrast(reg.fit, found.l_KB[k], df=reg.df)
    names = ("estimate", "low", "high", "se", "df", "t", "p", "mde")
    return {n: getattr(effect, n) for n in names}


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
    own = [n for n in rows if n not in (*ODDS, *DIFFERENCE, "p_equivalence", "verdict")]
    note = (
        "First level less second; intervals and p (Tukey) are simultaneous over the pairs of one "
        "factor, p (Holm) too; MDE: minimum detectable effect, found by one "
        "such comparison with 80 % power."
    )
    found = [Table("pairs", "Pairwise comparisons", rows[own], note, HEADS, FORMATS)]
    if reg.logit:
        note = (
            "Odds ratios with Tukey's simultaneous intervals; differences of the means on the "
            "score's scale by the delta method, 95 % each, at random effects of zero."
        )
        title = "The same comparisons as odds ratios and on the score's scale"
        columns = [*keys, *ODDS, *DIFFERENCE, "fit_status"]
        found.append(Table("pairs_on_score", title, rows[columns], note, HEADS, FORMATS))
    if reg.margin:
        note = f"Two one-sided tests of each difference within ± {reg.margin:g}, not adjusted."
        what = "difference" if reg.logit else "estimate"
        frame = rows[[*keys, what, "p_equivalence", "verdict", "fit_status"]]
        found.append(Table("equivalence", "Equivalence", frame, note, HEADS, FORMATS))
    return found


def slope_table(reg: Regression, rows: pd.DataFrame) -> Table:
    """Return the slopes as a table of the report."""
    note = f"Change of {reg.unit} per unit of the covariate, 95 % intervals, {SHORT[reg.df]}."
    return Table("slopes", "Slopes", rows, note, HEADS, FORMATS)
