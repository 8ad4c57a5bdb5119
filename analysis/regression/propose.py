"""Proposes a model from the columns of any long table, and says why, column by column.

    measured with the score      left out: errors, counts, other scores, costs, dates, time stamps
    plw                          stands in the model as wp = PLW^0.30103; a quadratic from 3 levels
    wp without its plw           stands as it is, the same quadratic of the table's own numbers
    run, seed, task, item, ...   what scores have in common: random from 8 levels, else fixed blocks
    text                         a factor: fixed, or random from 8 levels
    a number                     a covariate; as log2 where its levels span a factor of 20 or more
    varies within a group        the group has its own slope over it, or its own effect of a factor
    repeated under one seed      rows of one seed and arm share a run, named or not
    says the same as another     left out, as is what several others determine together

Terms are taken in the order of the columns while the table has two rows for every coefficient. The
family is binomial for 0/1 and for shares of a counted number of items, beta for scores strictly
between 0 and 1, else Gaussian. Shares are Gaussian too where runs are few: the other families have
no degrees of freedom, and would take them for many.
"""

import keyword
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.engine.formula import parse
from analysis.errors import AnalysisError
from analysis.regression import column_roles
from analysis.regression.column_roles import Role
from analysis.regression.redundant import determined
from analysis.regression.strata import Stratum, strata

CURVE = 3  # levels of a weight that a quadratic needs
FEW_RUNS = 50  # runs from which a normal distribution will do for their means
MOST_CELLS = 1000  # of a group and a factor in a generalised model
ROWS_A_COEFFICIENT = 2
COUNTED = 1e-6  # how far score * items may be from a whole number


@dataclass(frozen=True, slots=True)
class Choice:
    """The part of one column in the model, or one decision, with its reason."""

    column: str
    used: str
    reason: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """A formula with its family, and why they are these."""

    formula: str
    family: str
    weights: str | None
    choices: tuple[Choice, ...]
    simpler: tuple[str, ...] = ()  # what a table too small for its columns made us leave out


@dataclass(slots=True)
class _Draft:
    """The terms so far."""

    rows: int
    fixed: dict[str, str] = field(default_factory=dict)  # a term for every column
    bars: list[str] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    simpler: list[str] = field(default_factory=list)
    coefficients: int = 1

    @property
    def used(self) -> list[str]:
        """The columns of the model so far."""
        return [c.column for c in self.choices if c.used != "left out"]

    def say(self, column: str, used: str, reason: str) -> None:
        self.choices.append(Choice(column, used, reason))

    def add(self, column: str, term: str, size: int, reason: str) -> None:
        """Add a fixed term if the table has rows enough for its coefficients."""
        if self.rows < ROWS_A_COEFFICIENT * (self.coefficients + size):
            said = f"{self.rows} rows are too few for {size} more coefficients beside the others"
            self.say(column, "left out", said)
            self.simpler.append(column)
            return
        self.fixed[column] = term
        self.coefficients += size
        self.say(column, f"fixed: {term}", reason)


def quoted(name: str) -> str:
    """Return a column's name as a formula can hold it."""
    plain = re.fullmatch(r"[A-Za-z_]\w*", name) and not keyword.iskeyword(name)
    return name if plain else f"`{name}`"


def propose(
    frame: pd.DataFrame, *, family: str | None = None, weights: str | None = None
) -> Proposal:
    """Return a formula for a frame of `analysis.regression.model.prepared`, and why it is that.

    Args:
        frame: its score column is named by `frame.attrs["score"]`.
        family: where the user chose one.
        weights: where the user named a column.

    Raises:
        AnalysisError: no column can stand in a model.
    """
    score = str(frame.attrs["score"])
    chosen, counted, about = propose_family(frame, family=family, weights=weights)
    parts = list(column_roles.classified(frame, weights=counted))
    draft = _drafted(frame, parts)
    while repeated := determined(frame, draft.fixed, used=draft.used, score=quoted(score)):
        parts = [_left_out(r, repeated) for r in parts]
        draft = _drafted(frame, parts)
    roles = [r for r in parts if r.column in draft.used]
    terms = strata(frame, roles, trials=chosen == "binomial" and counted is not None)
    few = _few_runs(frame, terms)
    if few and family is None and (chosen == "beta" or (chosen == "binomial" and counted)):
        said = f"{few}, too few for the tests of a {chosen} model, which know no degrees of freedom"
        chosen, counted = "gaussian", weights
        about = [Choice("family", chosen, said), *(c for c in about if c.used == "weights")]
    _random(draft, roles, terms if chosen == "gaussian" else _affordable(frame, terms))
    if not draft.fixed and not draft.bars:
        raise AnalysisError(f"table: no column beside {score} varies in a usable way")
    formula = f"{quoted(score)} ~ {' + '.join([*(draft.fixed.values() or ['1']), *draft.bars])}"
    return Proposal(formula, chosen, counted, (*about, *draft.choices), tuple(draft.simpler))


def _few_runs(frame: pd.DataFrame, terms: list[Stratum]) -> str:
    """Return how few runs the errors of settings are estimated from; "" if they are many."""
    for term in terms:
        levels = frame.groupby(list(term.columns), observed=True).ngroups
        if term.replicated and levels < FEW_RUNS:
            return f"errors are estimated from {levels} levels of {' and '.join(term.columns)}"
    return ""


def _affordable(frame: pd.DataFrame, terms: list[Stratum]) -> list[Stratum]:
    """Return the terms that a generalised model can bear: it is fitted by many Laplace steps.

    Of a group's answers to settings only one stays, and that only with cells that are not too many.
    """
    kept = []
    for term in terms:
        rivals = [t for t in terms if t.columns[:-1] == term.columns[:-1] and len(t.columns) > 1]
        cells = frame.groupby(list(term.columns), observed=True).ngroups
        alone = len(rivals) == 1 and cells <= MOST_CELLS
        if len(term.columns) == 1 or term.replicated or alone or cells == len(frame):
            kept.append(replace(term, slopes=term.slopes[:1]))
    return kept


def _random(draft: _Draft, roles: list[Role], terms: list[Stratum]) -> None:
    """Add the random terms to the formula and say which they are."""
    own = {r.column: draft.fixed.get(r.column, "") for r in roles}
    places = {c.column: i for i, c in enumerate(draft.choices)}
    for term in terms:
        slopes = ["wp" if r == "wp" else own[r] for r in term.slopes]
        name = ":".join(map(quoted, term.columns))
        bar = f"({' + '.join(['1', *slopes])} | {name})"
        draft.bars.append(bar)
        why = term.reason
        if slopes:
            several = " and ".join(term.slopes)
            why += f"; each level has several values of {several}, so its answer varies as well"
        place = places.get(term.columns[-1])
        if place is not None and not draft.choices[place].used:
            draft.choices[place] = Choice(term.columns[-1], f"random: {bar}", why)
        else:
            draft.say(" × ".join(term.columns), f"random: {bar}", why)


def _drafted(frame: pd.DataFrame, parts: list[Role]) -> _Draft:
    draft = _Draft(len(frame))
    for role in parts:
        _place(role, frame, draft)
    return draft


def _left_out(role: Role, repeated: Mapping[str, str]) -> Role:
    if role.column not in repeated:
        return role
    return replace(role, kind="left out", reason=repeated[role.column])


def given(
    frame: pd.DataFrame, formula: str, *, family: str | None = None, weights: str | None = None
) -> Proposal:
    """Return the user's formula with the family that the score suggests where none is named."""
    response = parse(formula, map(str, frame.columns)).response
    chosen, weights, about = propose_family(
        frame, family=family, weights=weights, response=response
    )
    said = Choice("formula", formula, "The formula was given by the user.")
    return Proposal(formula, chosen, weights, (said, *about))


def _place(role: Role, frame: pd.DataFrame, draft: _Draft) -> None:
    name = quoted(role.column)
    if role.kind == "left out":
        draft.say(role.column, "left out", role.reason)
    elif role.kind == "weight":
        _weight(role, draft)
    elif role.kind == "group":
        draft.say(role.column, "", role.reason)  # its term comes with the others at random
    elif role.kind == "factor":
        numbered = pd.api.types.is_numeric_dtype(frame[role.column])
        term = f"C({name})" if numbered else name
        draft.add(role.column, term, role.levels - 1, role.reason)
    else:
        draft.add(role.column, f"log2({name})" if role.kind == "log" else name, 1, role.reason)


def _weight(role: Role, draft: _Draft) -> None:
    if role.levels < CURVE:
        draft.add(role.column, "wp", 1, f"{role.reason}; two levels show a line and no curve")
    else:
        curve = f"{role.reason}; a quadratic, because the best weight may lie inside"
        draft.add(role.column, "wp + I(wp^2)", 2, curve)


def propose_family(
    frame: pd.DataFrame,
    *,
    family: str | None = None,
    weights: str | None = None,
    response: str = "",
) -> tuple[str, str | None, list[Choice]]:
    """Return a family, the column of weights or trials, and why.

    Args:
        frame: its score column is named by `frame.attrs["score"]`.
        family: where the user chose one.
        weights: where the user named a column.
        response: the left side of the user's formula; a transformed score is Gaussian.
    """
    score = str(frame.attrs["score"])
    said = [] if weights is None else [
        Choice(weights, "weights", "named by the user: trials of a binomial, else weights of rows")
    ]  # fmt: skip
    if family is not None:
        return family, weights, [Choice("family", family, "chosen by the user"), *said]
    if response and response.strip("`") not in frame.attrs["names"]:
        why = f"the formula's left side is {response}, a number on its own scale"
        return "gaussian", weights, [Choice("family", "gaussian", why), *said]
    values = frame[score].to_numpy(dtype=np.float64)
    for name, found, why in _families(frame, values, weights):
        own = [] if found == weights else [Choice(str(found), "trials", "score × it is whole")]
        return name, found, [Choice("family", name, why), *own, *said]
    return "gaussian", weights, [Choice("family", "gaussian", _why_gaussian(values)), *said]


def _families(
    frame: pd.DataFrame, values: Any, weights: str | None
) -> Iterator[tuple[str, str | None, str]]:
    """Yield the families for scores of this kind, the best one first."""
    if values.min() < 0 or values.max() > 1 or np.ptp(values) == 0:
        return
    if np.isin(values, (0, 1)).all():
        yield "binomial", weights, "every score is 0 or 1: right or wrong"
        return
    for name in [weights] if weights else column_roles.counts_of_items(frame):
        if _whole(frame[name], values):
            yield "binomial", name, f"a share of {name} items: score × {name} is whole everywhere"
    if values.min() > 0 and values.max() < 1:
        yield (
            "beta", weights,
            "every score lies strictly between 0 and 1, where effects shrink towards the ends and "
            "errors with them; family=gaussian is the choice for differences of the score itself",
        )  # fmt: skip


def _whole(column: "pd.Series[Any]", values: Any) -> bool:
    """Return whether a column counts the items that the scores are shares of."""
    if not pd.api.types.is_numeric_dtype(column) or column.isna().any():
        return False
    trials = column.to_numpy(dtype=np.float64)
    if not ((trials >= 1) & (trials == np.rint(trials))).all():
        return False
    hits = values * trials
    return bool((np.abs(hits - np.rint(hits)) < np.maximum(COUNTED * trials, COUNTED)).all())


def _why_gaussian(values: Any) -> str:
    ends = int(np.isin(values, (0, 1)).sum())
    if values.min() >= 0 and values.max() <= 1 and ends:
        return (
            f"{ends} scores are exactly 0 or 1, which a beta distribution cannot give; "
            f"family=beta_squeezed or beta_inflated allow for them, or weights= the number of items"
        )
    return f"scores run from {values.min():.4g} to {values.max():.4g}, not from 0 to 1"
