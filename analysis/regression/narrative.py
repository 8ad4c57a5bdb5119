"""The findings of an external table's regression: a sentence an effect, with its tables."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.curve.best import IN_DOUBT
from analysis.engine.ties import first_largest
from analysis.inference.estimates import coefficients
from analysis.inference.optimum import INTERIOR
from analysis.regression import contrasts, effect_groups, random_part
from analysis.regression.best_weight import best_weight
from analysis.regression.column_roles import NUISANCE
from analysis.regression.effect_groups import Effect
from analysis.regression.model import Regression
from analysis.report.page import Item, Listing, Section, Text
from analysis.report.tables import P_VALUE, SIGNIFICANT, shown

ALPHA = 0.05
CLEAR, UNCLEAR = "distinguishable", "not distinguishable"
NO_EFFECT = "no effect beyond the margin"

Row = Mapping[Hashable, Any]


@dataclass(frozen=True, slots=True)
class Numbers:
    """The tables that the findings are written from."""

    joint: pd.DataFrame
    means: pd.DataFrame
    pairs: pd.DataFrame
    slopes: pd.DataFrame
    variances: pd.DataFrame
    optimum: pd.DataFrame  # empty where there is no curve over PLW

    @classmethod
    def of(cls, reg: Regression) -> "Numbers":
        """Return the tables of one regression."""
        return cls(
            reg.once("joint tests", lambda: effect_groups.joint_tests(reg)),
            contrasts.mean_rows(reg),
            contrasts.pair_rows(reg),
            contrasts.slope_rows(reg),
            reg.once("variances", lambda: random_part.variance_rows(reg))
            if reg.fit.random
            else pd.DataFrame(),
            best_weight(reg),
        )


def findings(reg: Regression, found: Numbers) -> Section:
    """Return a line per effect of the formula, then what varies at random."""
    entries = [*_effects(reg, found), *_best(found), *_random(found)]
    scale = " Beside logits stand odds ratios and the score's own scale." if reg.logit else ""
    text = (
        f"Each line is one effect in {reg.fit.formula}, the others held fixed or averaged over, "
        f"with a 95 % interval, in {reg.unit}. A factor is judged by its largest difference, with "
        f"Tukey's simultaneous intervals; a straight line by its slope; a curve or an interaction "
        f"by its joint test, adjusted by Holm's method over the effects.{scale}"
    )
    if not len(found.joint):
        text = f"The model {reg.fit.formula} has no effect to test, only a mean."
        entries = [Item(mean(reg), "", "", ("coefficients",)), *entries]
    blocks = (Text(text), Listing(tuple(entries), style="findings"))
    return Section("findings", "Findings", blocks, "Every effect of the formula in a sentence.")


def mean(reg: Regression) -> str:
    """Return the intercept in words: all that a model without an effect says."""
    row = coefficients(reg.fit, df=reg.df).iloc[0]
    size, low, high = (shown(float(row[k]), SIGNIFICANT) for k in ("estimate", "low", "high"))
    return f"Mean of {reg.unit}: {size} (95 % interval {low} to {high})."


def _effects(reg: Regression, found: Numbers) -> Iterator[Item]:
    every = effect_groups.effects(reg.fit)
    for effect, row in zip(every, found.joint.to_dict("records"), strict=True):
        if all(v.lower() in NUISANCE for v in effect.variables):
            continue
        yield _effect(reg, found, effect, row)


def _effect(reg: Regression, found: Numbers, effect: Effect, row: Row) -> Item:
    clear, p = _judged(row["p_holm"])
    if len(effect.variables) > 1:
        text = _interaction(effect, clear)
        return _item(f"{text}, {p}", ("effects",), clear)
    # Beside an interaction the joint test is of the effect at the other's reference level: what is
    # shown, and judged, is the difference or slope averaged over it, as on the first screen.
    name = effect.variables[0]
    pairs = found.pairs[found.pairs["factor"] == name] if len(found.pairs) else found.pairs
    if "within" in pairs:
        pairs = pairs[pairs["within"] == ""]
    if len(pairs) and pairs["estimate"].notna().any():
        clear, p = _judged(_largest(pairs)["p_tukey"])
        text, same = _factor(reg, name, pairs, clear)
        sources = ("pairs", *(["pairs_on_score"] if reg.logit else []), "effects")
        return _item(f"{text}, {p}", sources, clear, same=same)
    slopes = found.slopes[found.slopes["covariate"] == name] if len(found.slopes) else found.slopes
    if "within" in slopes:
        slopes = slopes[slopes["within"] == ""]
    if len(slopes):
        clear, p = _judged(slopes["p"].iloc[0]) if len(slopes) == 1 else (clear, p)
        return _item(f"{_covariate(reg, name, slopes, clear)}, {p}", ("slopes", "effects"), clear)
    many = f"{row['coefficients']} coefficients"
    text = f"{name}: {'its levels differ' if clear else 'no difference is seen'} ({many})"
    return _item(f"{text}, {p}", ("effects",), clear)


def _judged(p: Any) -> tuple[bool, str]:
    """Return whether a p-value tells an effect from none, and the p-value as papers write it."""
    return float(p) < ALPHA, f"p = {shown(p, P_VALUE)}".replace("= <", "< ")


def _largest(pairs: pd.DataFrame) -> Row:
    """Return the pair of levels that differ most."""
    known = pairs.dropna(subset=["estimate"])
    return known.to_dict("records")[first_largest(known["estimate"].abs())]


def _item(text: str, sources: tuple[str, ...], clear: bool, *, same: bool = False) -> Item:
    if same:
        return Item(f"{text}.", NO_EFFECT.replace("no effect beyond the ", "within "), "", sources)
    return Item(f"{text}.", CLEAR if clear else UNCLEAR, "clear" if clear else "", sources)


def _interaction(effect: Effect, clear: bool) -> str:
    first, *others = effect.variables
    verb = "depends" if clear else "is not seen to depend"
    return f"{effect.label}: the effect of {first} {verb} on {' and '.join(others)}"


def _factor(reg: Regression, name: str, pairs: pd.DataFrame, clear: bool) -> tuple[str, bool]:
    """Return the largest difference of a factor's levels in words, and whether all are within the
    margin of equivalence.
    """
    known, row = pairs.dropna(subset=["estimate"]), _largest(pairs)
    first, second = str(row["contrast"]).split(" − ", 1)
    text = f"{name} {first} against {second}: {_sized(row, reg)}"
    if len(known) > 1:
        text += f", the largest of the differences of {_levels(len(known))} levels"
    if reg.logit:
        ratio, on_score = (_three(row, k) for k in (contrasts.ODDS, contrasts.DIFFERENCE))
        text += f"; odds ratio {ratio}, on the scale of {reg.score} {on_score}"
    same = "verdict" in known and bool(
        known["verdict"].isin([NO_EFFECT, "a small effect"]).all() and not clear
    )
    if not clear and not same:
        text += f"; the minimum detectable effect is {shown(float(row['mde']), SIGNIFICANT)}"
    return text, same


def _levels(pairs: int) -> int:
    """Return how many levels have so many pairs."""
    return round((1 + (1 + 8 * pairs) ** 0.5) / 2)


def _sized(row: Row, reg: Regression) -> str:
    """Return estimate and interval."""
    size, low, high = (shown(float(row[k]), SIGNIFICANT) for k in ("estimate", "low", "high"))
    unit = " logits" if reg.logit else ""
    return f"{size}{unit} (95 % interval {low} to {high})"


def _three(row: Row, keys: tuple[str, ...]) -> str:
    size, low, high = (shown(float(row[k]), SIGNIFICANT) for k in keys)
    return f"{size} ({low} to {high})"


def _covariate(reg: Regression, name: str, slopes: pd.DataFrame, clear: bool) -> str:
    if len(slopes) > 1:
        first, *_, last = slopes.to_dict("records")
        ends = [f"{_sized(r, reg)} at {shown(r['at'], '.3g')}" for r in (first, last)]
        return f"{name}, a curve: slope {ends[0]} and {ends[1]}"
    row = slopes.to_dict("records")[0]
    text = f"{name}, a unit more: {_sized(row, reg)}"
    if not clear:
        text += f"; the minimum detectable slope is {shown(float(row['mde']), SIGNIFICANT)}"
    return text


def _best(found: Numbers) -> Iterator[Item]:
    """Yield the weight with the highest score, where the curve has one inside."""
    for row in found.optimum.to_dict("records"):
        best = shown(float(row["estimate"]), SIGNIFICANT)
        if row["verdict"] == INTERIOR:
            ends = " to ".join(shown(float(row[k]), SIGNIFICANT) for k in ("low", "high"))
            yield Item(f"The best PLW is {best} (95 % Fieller interval {ends}).", INTERIOR, "clear",
                       ("optimum",))  # fmt: skip
        else:
            said = " is not shown" if row["verdict"] == IN_DOUBT else ""
            yield Item(
                f"The best PLW{said}: {row['because']}.", str(row["verdict"]), "", ("optimum",)
            )


def _random(found: Numbers) -> Iterator[Item]:
    """Yield how much of what is left lies between the levels of each group."""
    if not len(found.variances):
        return
    rows = found.variances[found.variances["group"] != "residual"].drop_duplicates("group")
    for row in rows.to_dict("records"):
        share = shown(float(row["share"]), ".0%")
        text = (
            f"{share} of the variance that the fixed effects leave lies between the "
            f"{row['levels']:,} levels of {row['group']}."
        )
        yield Item(text, "varies", "", ("variances",))


def warnings(reg: Regression) -> tuple[tuple[str, str], ...]:
    """Return what must be read before anything else."""
    found = []
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
        text = f"The columns determine one another; left out: {', '.join(reg.fit.left_out[:8])}."
        found.append(("Effects that the table does not separate.", text))
    notes = [n for n in reg.frame.attrs.get("notes", ()) if "repeat another row" in n]
    found += [("Repeated rows.", note) for note in notes]
    return tuple(found)
