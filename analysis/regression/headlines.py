"""The first screen of an external table: its effects, whether to trust them, the best levels."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.engine.ties import first_largest
from analysis.errors import AnalysisError
from analysis.inference.comparisons import difference, pairwise
from analysis.inference.estimates import Estimate, contrast, covariance, equivalence
from analysis.inference.means import means, slopes
from analysis.inference.optimum import INTERIOR
from analysis.inference.scale import scale_of
from analysis.inference.second_opinion import second_opinion
from analysis.inference.selection import against_best
from analysis.inference.winners import winner
from analysis.regression import contrasts, residual_checks
from analysis.regression.column_roles import NUISANCE, TASKS
from analysis.regression.model import Regression
from analysis.regression.not_compared import not_compared
from analysis.regression.numbers import Numbers
from analysis.report import words
from analysis.report.headline import Headline, verdict
from analysis.report.page import Item
from analysis.report.tables import SIGNIFICANT, Table, shown

ALL_PAIRS = 3  # levels of a factor up to which every pair is a headline
ROW = "row of the table"  # the cluster of a table without groups


def headlines(reg: Regression, found: Numbers) -> list[Headline]:
    """Return the effect of every factor and number of the formula, in the order of the formula.

    A number that the formula has as a curve has two: any effect at all, which is the joint test of
    its coefficients, and the difference of its ends. The second says more than the first, so its p
    is the larger of both (a closed test).
    """
    rows = reg.used.assign(**{ROW: np.arange(len(reg.used))})
    factors = [one for name in compared(reg) for one in _factor(reg, found, rows, name)]
    large = [one for name in _large(reg, found) for one in _any_effect(reg, found, name)]
    numbers = (o for n in contrasts.covariates(reg) for o in _number(reg, found, rows, n))
    return [*factors, *large, *numbers]


def _large(reg: Regression, found: Numbers) -> list[str]:
    """Return the factors of too many levels for pairs, which are tested as a whole."""
    names = found.joint["effect"].tolist() if len(found.joint) else []
    known = {*contrasts.factors(reg), *contrasts.covariates(reg)}
    left = [n for n in names if n in reg.used and n not in known]
    return [n for n in left if n.lower() not in (*TASKS, *NUISANCE)]


def compared(reg: Regression) -> list[str]:
    """Return the factors whose levels are compared: tasks are blocks, unless they are all there is.

    The means and differences of all factors stand in their own section.
    """
    every = contrasts.factors(reg)
    kept = [name for name in every if name.lower() not in TASKS]
    return kept if kept or contrasts.covariates(reg) or not_compared(reg) else every


def _factor(reg: Regression, found: Numbers, rows: pd.DataFrame, name: str) -> Iterator[Headline]:
    """Yield all pairs of a factor of few levels, else every level less the one of highest mean."""
    pairs = found.pairs[found.pairs["factor"] == name] if len(found.pairs) else found.pairs
    if "within" in pairs:
        pairs = pairs[pairs["within"] == ""]
    own = found.means[found.means["factor"] == name] if len(found.means) else found.means
    if not len(pairs) or not len(own):
        return
    known = own["estimate"].notna().any()  # else the first level is what others are compared with
    best = str(own["level"].iloc[first_largest(own["estimate"]) if known else 0])
    for row in pairs.dropna(subset=["estimate"]).to_dict("records"):
        first, second = (str(row[n]) for n in contrasts.LEVELS)
        if len(own) > ALL_PAIRS and best not in (first, second):
            continue
        turned = len(own) > ALL_PAIRS and first == best
        yield _pair(reg, rows, row, (name, first, second, turned))


def _pair(
    reg: Regression, rows: pd.DataFrame, row: Mapping[Any, Any], names: tuple[str, str, str, bool]
) -> Headline:
    """Return a pair as a headline, the best level last where it is what others are held against."""
    name, first, second, turned = names
    sign = -1 if turned else 1
    levels = (second, first) if turned else (first, second)
    size = float(row["estimate"])
    half, ratio = (float(row["high"]) - float(row["low"])) / 2, 1.0
    label = difference(*levels, minus=" − ")
    if contrasts.on_response(reg):  # the score's own units first, with the same adjustment
        label += f" ({shown(sign * size, SIGNIFICANT)} {reg.unit})"
        size, low, high = (float(row[n]) for n in contrasts.DIFFERENCE)
        ratio = (high - low) / 2 / float(row["se"] * stats.t.ppf(0.975, row["df"]))
    return Headline(
        label=label,
        group=name,
        question="means",
        estimate=sign * size,
        low=sign * size - ratio * half,
        high=sign * size + ratio * half,
        unit=reg.score if contrasts.on_response(reg) else reg.unit,
        verdict=verdict(float(row["p_tukey"]), str(row.get("verdict", ""))),
        p=float(row["p_tukey"]),
        mde=ratio * float(row["mde"]),
        second=_second(reg, rows, name, levels),
    )


def _number(reg: Regression, found: Numbers, rows: pd.DataFrame, name: str) -> Iterator[Headline]:
    """Yield a number's effects: any at all if it is a curve; between its ends or of a doubling.

    A straight one's p is adjusted by Holm as a curve's is: over all effects of the formula.
    """
    yield from _any_effect(reg, found, name)
    least = max((float(row["p_holm"]) for row in _tested(found, name)), default=0.0)
    values = reg.used[name].to_numpy(dtype=np.float64)
    doubled = contrasts.doubling(reg, name)
    plw = name == "wp" and not reg.own_wp
    levels = (1.0, 0.0) if plw else (float(values.max()), float(values.min()))
    levels = doubled[::-1] if doubled else levels
    try:
        ends = means(reg.fit, reg.used, name, at={name: list(levels)}, df=reg.df)
    except AnalysisError:
        return
    effect = contrast(reg.fit, ends.l_KB[0] - ends.l_KB[1], df=reg.df)
    shift = effect
    if contrasts.on_response(reg) and np.isfinite(effect.p):
        shift = pairwise(ends, adjust="none").on_response[0]
    if not np.isfinite(effect.p) and contrasts.straight(reg, name):  # the slope may be determined
        slope_B = slopes(reg.fit, reg.used, name, df=reg.df).l_KB[0]
        shift = effect = contrast(reg.fit, slope_B * (levels[0] - levels[1]), df=reg.df)
    if not np.isfinite(effect.p):
        return
    margin = None if reg.logit else reg.margin
    same = "" if margin is None else equivalence(effect, margin).verdict
    label = "PLW 1 − PLW 0" if plw else f"{name} {levels[0]:.4g} − {levels[1]:.4g}"
    label = f"{name}, per doubling" if doubled else label
    own, p = shift is not effect, max(effect.p, least)
    label += f" ({shown(effect.estimate, SIGNIFICANT)} {reg.unit})" if own else ""
    yield Headline(
        label=label,
        group="prompt loss weight" if plw else "over its range",
        question="plw" if name == "wp" and reg.used[name].nunique() > 2 else "slopes",
        estimate=shift.estimate,
        low=shift.low,
        high=shift.high,
        unit=reg.score if own else reg.unit,
        verdict=verdict(p, same),
        p=p,
        mde=shift.mde,
        second=_second(reg, rows, name, levels),
    )


def _any_effect(reg: Regression, found: Numbers, name: str) -> Iterator[Headline]:
    """Yield the joint test of a curve or of a factor of many levels, in no interaction."""
    for row in _tested(found, name):
        if row["coefficients"] < 2:
            continue
        what = reg.weight if name == "wp" else name
        yield Headline(
            label=f"any effect of {what}",
            group=f"joint test of {row['coefficients']} coefficients",
            question="plw" if name == "wp" and reg.used[name].nunique() > 2 else "coefficients",
            estimate=float("nan"),
            low=float("nan"),
            high=float("nan"),
            unit=reg.unit,
            verdict=verdict(float(row["p_holm"])),
            p=float(row["p_holm"]),
        )


def _tested(found: Numbers, name: str) -> list[dict[Any, Any]]:
    """Return the rows of the joint tests of a factor or number that have a p-value."""
    rows = found.joint[found.joint["effect"] == name] if len(found.joint) else found.joint
    every = rows.to_dict("records")
    return [row for row in every if not row.get("note") and np.isfinite(row["p_holm"])]


def _second(
    reg: Regression, rows: pd.DataFrame, name: str, levels: tuple[object, object]
) -> Estimate | None:
    """Return the effect by least squares with clustered errors; of Gaussian models alone."""
    if reg.general or name not in rows or reg.proposal.weights:
        return None
    try:
        found = second_opinion(rows, reg.fit.formula, name, levels, cluster=cluster_of(reg, name))
    except (AnalysisError, ValueError):
        return None
    return found if np.isfinite(found.p) else None


def cluster_of(reg: Regression, name: str) -> str:
    """Return the column whose levels have correlated errors in an effect of `name`: the group
    within which it does not vary, else the largest group, else every row by itself.
    """
    groups = sorted(reg.fit.random, key=lambda group: -len(reg.fit.random[group].modes))
    groups = [group for group in groups if group in reg.used]
    for group in groups:
        if reg.used.groupby(group, observed=True)[name].nunique().max() == 1:
            return group
    return groups[0] if groups else ROW


def remarks(reg: Regression, found: Numbers) -> list[str]:
    """Return what the answer adds: the weight of the highest score, if the curve has one inside."""
    return [
        f"the best {reg.weight} is {shown(row['estimate'], SIGNIFICANT)} (95 % Fieller interval "
        f"{shown(row['low'], SIGNIFICANT)} to {shown(row['high'], SIGNIFICANT)})"
        for row in found.optimum.to_dict("records")
        if row["verdict"] == INTERIOR
    ]


def method(reg: Regression) -> str:
    """Return how the second analysis is made."""
    errors = "errors clustered by group" if reg.fit.random else "errors robust to unequal noise"
    return f"least squares on the rows, {errors}"


def trust(reg: Regression) -> list[Item]:
    """Return whether the tests can be trusted, a line each."""
    good = reg.status.startswith("converged")
    text = f"The fit: {reg.status}; {reg.fit.n:,} rows used, {reg.dropped:,} left out."
    lines = [Item(text, "fit", "clear" if good else "warn")]
    few = {g: len(e.modes) for g, e in reg.fit.random.items()}
    if few:
        levels = ", ".join(f"{words.count(n, 'level')} of {g}" for g, n in few.items())
        lines.append(Item(f"Errors are estimated from {levels}.", "groups"))
    checks = residual_checks.check_rows(reg, residual_checks.residuals(reg))
    odd = [str(said) for said in checks["words"] if said]
    said = " ".join(odd) or "The residuals show nothing that the model's form or noise misses."
    lines.append(Item(said, "residuals", "warn" if odd else "clear", ("residual_checks",)))
    left = [c for c in reg.proposal.choices if c.used == "left out" and c.column != "plw"]
    if left:
        some = "; ".join(f"{c.column} ({c.reason})" for c in left[:4])
        more = f"; and {len(left) - 4} more" if len(left) > 4 else ""
        lines.append(Item(f"Not in the model: {some}{more}.", "left out", "", ("columns",)))
    return lines


def best_levels(reg: Regression, found: Numbers) -> Table:
    """Return the best level of every factor with its interval, corrected for being picked."""
    lower = reg.lower_is_better
    why = "by the score's name" if reg.higher_is_better is None else "as was asked"
    rows = [row for n in compared(reg) if (row := _best(reg, n, lower)) is not None]
    rows += [
        {"factor": reg.weight, "best": f"{row['estimate']:.3g}", "low": row["low"],
         "high": row["high"], "possible": str(row["verdict"])}
        for row in found.optimum.dropna(subset=["estimate"]).to_dict("records")
    ] if len(found.optimum) and not lower else []  # fmt: skip
    note = (
        f"Mean: adjusted mean of {reg.score} at the best level, then corrected for "
        "having been picked (Andrews, Kitagawa and McCloskey 2024), with its 95 % interval. May be "
        "the best: levels that Hsu's comparisons with the best do not rule out. "
        f"{'Lower' if lower else 'Higher'} is taken as better, {why}."
    )
    heads = words.HEADS | {"best": "best level", "possible": "may be the best"}
    formats = dict.fromkeys(("mean", "corrected", "low", "high"), SIGNIFICANT)
    return Table("best_levels", "Best level of every factor", pd.DataFrame(rows), note, heads,
                 formats)  # fmt: skip


def _best(reg: Regression, name: str, lower: bool) -> dict[str, object] | None:
    try:
        found = means(reg.fit, reg.used, name, df=reg.df)
        sign = -1.0 if lower else 1.0
        mean_K = sign * (found.l_KB @ reg.fit.fixef.to_numpy())
        cov_KK = found.l_KB @ covariance(reg.fit, reg.df) @ found.l_KB.T
        df = contrast(reg.fit, found.l_KB[0] - found.l_KB[1], df=reg.df).df
        possible = int(against_best(mean_K, cov_KK, df=df).possible_K.sum())
        won = winner(mean_K, cov_KK, df=df)
    except (AnalysisError, np.linalg.LinAlgError):
        return None
    back = scale_of(reg.fit).inverse
    ends = sorted((sign * won.hybrid.low, sign * won.hybrid.high))
    mean, middle, low, high = (
        float(back(np.asarray(v))) for v in (sign * won.naive, sign * won.hybrid.estimate, *ends)
    )
    return {
        "factor": name, "best": str(found.labels[name].iloc[won.index]), "mean": mean,
        "corrected": middle, "low": low, "high": high,
        "possible": f"{possible} of {len(mean_K)} levels",
    }  # fmt: skip
