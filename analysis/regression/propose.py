"""Proposes a model from the columns of any long table, and says why, column by column.

    name ends in _se, time, ...  left out: it measures the score or its cost
    plw                          stands in the model as wp = PLW^0.30103; a quadratic from 3 levels
    run, seed, task, item, ...   what scores have in common: random from 8 levels, else fixed blocks
    text                         a factor: fixed, or random from 8 levels
    a number                     a covariate; as log2 where its levels span a factor of 20 or more
    says the same as another     left out, as is what several others determine together

Terms are taken in the order of the columns while the table has two rows for every coefficient. The
family is binomial for 0/1 and for shares of a counted number of items, beta for scores strictly
between 0 and 1, else Gaussian.
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

CURVE = 3  # levels of a weight that a quadratic needs
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
    chosen, weights, about = propose_family(frame, family=family, weights=weights)
    parts = list(column_roles.classified(frame, weights=weights))
    draft = _drafted(frame, parts)
    while repeated := determined(frame, draft.fixed, used=draft.used, score=quoted(score)):
        parts = [_left_out(r, repeated) for r in parts]
        draft = _drafted(frame, parts)
    if not draft.fixed and not draft.bars:
        raise AnalysisError(f"table: no column beside {score} varies in a usable way")
    formula = f"{quoted(score)} ~ {' + '.join([*(draft.fixed.values() or ['1']), *draft.bars])}"
    return Proposal(formula, chosen, weights, (*about, *draft.choices), tuple(draft.simpler))


def _drafted(frame: pd.DataFrame, parts: list[Role]) -> _Draft:
    draft = _Draft(len(frame))
    dose = "wp" if any(r.kind == "weight" for r in parts) else None
    for role in parts:
        _place(role, frame, draft, dose)
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


def _place(role: Role, frame: pd.DataFrame, draft: _Draft, dose: str | None) -> None:
    name = quoted(role.column)
    if role.kind == "left out":
        draft.say(role.column, "left out", role.reason)
    elif role.kind == "weight":
        _weight(role, draft)
    elif role.kind == "group":
        _group(role, frame, draft, dose)
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


def _group(role: Role, frame: pd.DataFrame, draft: _Draft, dose: str | None) -> None:
    """Add a random intercept, and a slope over the weight where every level saw several."""
    within = role.column if not role.inside else f"{role.inside}:{role.column}"
    name = ":".join(quoted(part) for part in within.split(":")) if role.inside else quoted(within)
    columns = [c for c in (role.inside, role.column) if c]
    sloped = dose is not None and _varies_within(frame, columns, dose)
    roomy = 2 * role.levels < len(frame)
    if sloped and roomy:
        draft.bars.append(f"(1 + {dose} | {name})")
        draft.say(role.column, f"random: (1 + {dose} | {name})", f"{role.reason}; each level has "
                  f"several weights, so its answer to them varies as well")  # fmt: skip
        return
    draft.bars.append(f"(1 | {name})")
    draft.say(role.column, f"random: (1 | {name})", role.reason)


def _varies_within(frame: pd.DataFrame, columns: list[str], dose: str) -> bool:
    counts = frame.groupby(columns, observed=True)[dose].nunique()
    return bool((counts >= CURVE).mean() > 0.5)


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
