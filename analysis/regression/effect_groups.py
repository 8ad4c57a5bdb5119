"""Joint tests of the fixed effects, one for every factor, curve and interaction.

The columns of one set of variables are tested together: w_p with its square, all levels of a
factor, all cells of an interaction. A main effect beside its interaction is the effect at the
other variable's reference level, and its note says so.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.inference.estimates import Joint, holm, joint
from analysis.mixed import MixedFit
from analysis.regression.model import SHORT, Regression
from analysis.report import words
from analysis.report.tables import P_VALUE, Table


@dataclass(frozen=True, slots=True)
class Effect:
    """Coefficients that speak of one set of variables."""

    variables: tuple[str, ...]
    names: tuple[str, ...]  # of the coefficients
    places: tuple[int, ...]  # in `fixef`

    @property
    def label(self) -> str:
        """The variables, as a reader would name their effect."""
        return " × ".join(self.variables)


def effects(fit: MixedFit) -> list[Effect]:
    """Return the effects of a fit without the intercept, in the order of the formula."""
    spec, known = fit.design.spec, [str(n) for n in fit.fixef.index]
    found: dict[tuple[str, ...], list[int]] = {}
    for term, own in spec.term_slices.items():
        variables = tuple(_variables(spec, term))
        inside = [known.index(n) for n in fit.design.names[own] if n in known]
        if variables and inside:
            found.setdefault(variables, []).extend(inside)
    return [
        Effect(variables, tuple(known[i] for i in places), tuple(places))
        for variables, places in found.items()
    ]


def _variables(spec: Any, term: Any) -> Iterator[str]:
    """Yield the columns that a term is made of, in the order of the formula's own columns."""
    roles = {str(v): {str(r) for r in v.roles} for v in spec.term_variables[term]}
    values = [n for n, r in roles.items() if any("value" in x.lower() for x in r)]
    order = [str(factor.expr) for factor in term.factors]
    yield from sorted(values, key=lambda n: next(i for i, e in enumerate(order) if n in e))


def marginal(effect: Effect, every: list[Effect]) -> bool:
    """Return whether another effect holds all of this one's variables and more."""
    own = set(effect.variables)
    return any(own < set(other.variables) for other in every)


def joint_tests(reg: Regression) -> pd.DataFrame:
    """Return one row per effect: its F test, and p adjusted by Holm over the rows."""
    every, rows = effects(reg.fit), []
    for effect in every:
        test = _test(reg, effect)
        under = marginal(effect, every)
        rows.append({
            "effect": effect.label, "coefficients": test.df, "df_residual": test.df_residual,
            "F": test.statistic, "p": test.p,
            "note": "at the reference of what it interacts with" if under else "",
        })  # fmt: skip
    table = pd.DataFrame(rows)
    if not len(table):
        return table
    table.insert(5, "p_holm", holm(table["p"].tolist()))
    if not table["note"].any():
        table = table.drop(columns="note")
    return table.assign(fit_status=reg.status)


def _test(reg: Regression, effect: Effect) -> Joint:
    """Return an effect's joint test; NaN where the fit has no covariance."""
    if not np.isfinite(reg.fit.cov.to_numpy()).all():
        return Joint(float("nan"), len(effect.places), float("nan"), float("nan"))
    return joint(reg.fit, np.eye(len(reg.fit.fixef))[list(effect.places)], df=reg.df)


def joint_table(reg: Regression, frame: pd.DataFrame, *, over: str = "the rows") -> Table:
    """Return joint tests as a table of the report; `over` says what Holm's adjustment is over."""
    kind = "Wald tests, chi-square over its df" if reg.general else "F tests"
    note = f"{kind} that all coefficients of an effect are zero; {SHORT[reg.df]}; Holm over {over}."
    formats = {"F": ".2f", "df_residual": ".1f", "p": P_VALUE, "p_holm": P_VALUE}
    heads = words.HEADS | {"df_residual": "residual df", "fit_status": "fit"}
    return Table("effects", "Joint tests of the effects", frame, note, heads, formats)


def reference(reg: Regression, name: str) -> str:
    """Return the level that the others of a factor are held against."""
    contrasts = getattr(reg.fit.design.spec, "factor_contrasts", {})
    for factor, state in contrasts.items():
        # The whole name: `regulariser.kl` is another factor than regulariser.
        if re.fullmatch(rf"(?:C\()?`?{re.escape(name)}`?(?:\)|,.*)?", str(factor.expr)):
            return str(state.levels[0])
    return str(sorted(reg.used[name].dropna().unique())[0])


def coefficient_text(reg: Regression, name: str) -> str:
    """Return a coefficient in words: a level of a factor with the level it is held against."""
    level = re.fullmatch(r"(?:C\()?`?([^`\[\]()]+)`?\)?\[T\.([^\]]*)\]", name)
    if level is None or level[1] not in reg.used:
        return words.term_text(name.replace("`", ""))
    return f"{level[1]} {level[2]} against {reference(reg, level[1])}"
