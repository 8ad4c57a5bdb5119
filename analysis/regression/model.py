"""The regression behind a report: the rows, the model proposed or given, its fit, and the options.

Both kinds of page are written from a `Regression`: `analysed(table, request)` makes that of an
external table, `regression.study.fitted` that of a results folder, which is a `Regression` with the
raw table and the folder beside it.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Real
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd

from analysis.engine.fits import GlmmFit
from analysis.engine.formula import parse, positive, response_columns
from analysis.errors import AnalysisError, listed, nearest, told
from analysis.inference.estimates import DF_RULES
from analysis.inference.kenward_roger import kenward_roger
from analysis.inference.simplify import simplified, written
from analysis.mixed import FAMILIES, MixedFit, fit_mixed
from analysis.regression.column_roles import score_columns
from analysis.regression.propose import Proposal, given, propose
from analysis.table.frame import from_table
from analysis.table.metrics import lower_is_better
from analysis.table.outcome import one_metric

T = TypeVar("T")
MARGIN = 2.0  # points; a study's smallest effect of interest where none is given
AFFORDABLE = 500  # random effects up to which Kenward and Roger's rule is the default
AFFORDABLE_ROWS = 50_000
RULES = {
    "satterthwaite": "Satterthwaite's degrees of freedom",
    "kenward-roger": "Kenward and Roger's covariance and degrees of freedom",
    "normal": "the normal approximation",
}
SHORT = {
    "satterthwaite": "Satterthwaite's df",
    "kenward-roger": "Kenward and Roger's df",
    "normal": "normal approximation",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for; None leaves the choice to the table."""

    score: str | None = None
    formula: str | None = None
    family: str | None = None
    weights: str | None = None
    df: str | None = None
    margin: float | None = None
    higher_is_better: bool | None = None  # of the score


@dataclass(frozen=True)
class Remembering:
    """What computes a quantity once and keeps it."""

    kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, key: str, make: Callable[[], T]) -> T:
        """Return what `make` returns; it is called at the first request for `key` alone.

        Sections of one page share in this way what is costly to compute.

        Args:
            key: a name that no other quantity has.
            make: computes the quantity from this regression.
        """
        if key not in self.kept:
            self.kept[key] = make()
        return cast(T, self.kept[key])


@dataclass(frozen=True)
class Regression(Remembering):
    """A table, the model of it, and how that model was arrived at."""

    frame: pd.DataFrame  # the prepared table
    proposal: Proposal
    asked: MixedFit  # of the formula as given or proposed
    fit: MixedFit  # what the report describes
    steps: tuple[str, ...]  # how the random part was simplified, in words
    df: str  # the rule for degrees of freedom
    df_reason: str
    margin: float | None  # of equivalence, in the unit of the score

    @property
    def score(self) -> str:
        """The name of the score column."""
        return str(self.frame.attrs["score"])

    @property
    def higher_is_better(self) -> bool | None:
        """Which way the score is better where that was asked for; None: as its name says."""
        return cast("bool | None", self.frame.attrs.get("higher_is_better"))

    @property
    def lower_is_better(self) -> bool:
        """Whether less of the score is better."""
        asked = self.higher_is_better
        return lower_is_better(self.score) if asked is None else not asked

    @property
    def rows(self) -> pd.DataFrame:
        """The rows that the model was offered."""
        return self.frame

    @cached_property
    def used(self) -> pd.DataFrame:
        """The rows that were fitted, in the order of the fit."""
        return self.rows.loc[self.fit.design.rows]

    @property
    def own_wp(self) -> bool:
        """Whether a column `wp` is the table's own, and so a number like any other."""
        return bool(self.frame.attrs.get("own_wp"))

    @property
    def weight(self) -> str:
        """What the weight `wp` is told as: on its own scale where it is the table's own."""
        return "wp" if self.own_wp else "PLW"

    @property
    def dropped(self) -> int:
        """The rows of the table that the fit did not use."""
        return int(self.frame.attrs.get("dropped", 0)) + len(self.rows) - self.fit.n

    @property
    def general(self) -> bool:
        """Whether the model is not Gaussian."""
        return isinstance(self.fit, GlmmFit)

    @property
    def logit(self) -> bool:
        """Whether effects are on the logit scale: by the link, or by the formula's left side."""
        return self.fit.link == "logit" or bool(re.match(r"logit\s*\(", self.response))

    @property
    def response(self) -> str:
        """The left side of the formula."""
        return self.fit.design.parsed.response

    @property
    def unit(self) -> str:
        """What effects are counted in."""
        return "logits" if self.logit else self.response.strip("`")

    @property
    def family(self) -> str:
        """The family as it was asked for: one of `FAMILIES`."""
        return self.proposal.family

    @property
    def adjustment(self) -> str:
        """How p-values and intervals are adjusted for the number of comparisons."""
        return (
            "pairwise comparisons of marginal means are adjusted by Tukey's method, joint tests by "
            "Holm's"
        )

    @property
    def status(self) -> str:
        """The fit status that stands beside every p-value, and whether it was simplified."""
        said = status(self.fit)
        return f"{said}, simplified" if self.steps else said


def status(fit: MixedFit) -> str:
    """Return the fit status: "converged", "singular", "NOT CONVERGED" or "SEPARATED, ..."."""
    if isinstance(fit, GlmmFit) and fit.separated:
        return "SEPARATED, not usable"
    if not fit.converged:
        return "NOT CONVERGED"
    return "singular" if fit.singular else "converged"


# The proposal as fitted, the fit as asked for, the fit that is used, how it was simplified.
FittedProposal = tuple[Proposal, MixedFit, MixedFit, tuple[str, ...]]


def analysed(raw: pd.DataFrame, request: Request) -> Regression:
    """Return the regression of an external table.

    Raises:
        AnalysisError: the table, a column, the formula or the model is not as it must be.
    """
    check_request(request)
    score = _score(raw, request)
    taken: list[str] = []
    if request.formula is None:
        raw, taken = one_metric(raw, score)
    frame = prepared(raw, score)
    frame.attrs["said"] = [*taken, *frame.attrs["said"]]
    frame.attrs["higher_is_better"] = request.higher_is_better
    check_weights(frame, request.weights)
    if request.formula is None:
        proposal = propose(frame, family=request.family, weights=request.weights)
    else:
        proposal = given(frame, request.formula, family=request.family, weights=request.weights)
    found = fit_proposal(frame, proposal, own=request.formula is not None)
    rule, why = df_rule(found[2], request.df)
    return Regression(frame, *found, rule, why, request.margin)


def fit_proposal(rows: pd.DataFrame, proposal: Proposal, *, own: bool) -> FittedProposal:
    """Return the fit of a proposal, its random part simplified where it is singular.

    Args:
        rows: what is fitted.
        proposal: the formula, its family and its weights.
        own: whether the formula is the user's own, which must be fitted as it stands; of one that
            was proposed the first simpler one is taken that can be fitted.

    Raises:
        AnalysisError: the model cannot be fitted to these rows.
    """
    asked = _first_fit(rows, proposal, fallback=not own)
    if not len(asked.fixef):
        raise AnalysisError(f"formula={asked.formula}: has no fixed effect and no mean; add one")
    proposal = _as_fitted(proposal, asked)
    if not asked.random or not (asked.singular or not asked.minimum.converged):
        return proposal, asked, asked, ()
    found = simplified(rows, asked.formula, family=proposal.family, weights=proposal.weights)
    return proposal, asked, found.fit, found.steps


def as_it_stands(rows: pd.DataFrame, proposal: Proposal) -> FittedProposal:
    """Return the fit of a proposal whose random part belongs to the design and stays as it is."""
    fit = fit_mixed(rows, proposal.formula, proposal.family, weights=proposal.weights)
    return proposal, fit, fit, ()


def check_request(request: Request) -> None:
    """Refuse a family, rule, margin or direction that there is not.

    Raises:
        AnalysisError: in one line, with what is allowed.
    """
    for name in ("score", "formula", "family", "weights", "df"):
        value = getattr(request, name)
        if value is not None and not isinstance(value, str):
            raise AnalysisError(f"{name}={told(value)}: must be text")
    if request.family is not None and request.family not in FAMILIES:
        near = nearest(request.family, FAMILIES)
        raise AnalysisError(f"family={request.family}: not one of {listed(FAMILIES)}.{near}")
    if request.df is not None and request.df not in DF_RULES:
        near = nearest(request.df, DF_RULES)
        raise AnalysisError(f"df={request.df}: not one of {listed(DF_RULES)}.{near}")
    margin = request.margin
    number = isinstance(margin, Real) and not isinstance(margin, bool)
    if margin is not None and not (number and 0 < margin < math.inf):
        text = f"{margin:g}" if number else told(margin)
        raise AnalysisError(f"margin={text}: must be a positive number")
    if (higher := request.higher_is_better) is not None and not isinstance(higher, bool):
        raise AnalysisError(f"higher_is_better={told(higher)}: must be true or false")


def _score(raw: pd.DataFrame, request: Request) -> str:
    """Return the score column: as named, as the formula has it, or as its name says."""
    if request.score is not None:
        return request.score
    named = [] if request.formula is None else response_columns(request.formula, raw.columns)
    if named:
        return named[0]
    found = score_columns(raw)
    if len(found) == 1 or "score" in found:
        return "score" if "score" in found else found[0]
    numbers = [str(c) for c in raw if pd.api.types.is_numeric_dtype(raw[c])]
    raise AnalysisError(
        f"score: no column says by its name that it alone is the score; name it, "
        f"one of {listed(found or numbers, limit=8)}"
    )


def prepared(raw: pd.DataFrame, score: str) -> pd.DataFrame:
    """Return an external table as `analysis.table.frame.from_table` does, truth values as text.

    `frame.attrs` has besides "dropped", the rows that have no score.
    """
    frame = from_table(raw, score)
    attrs = dict(frame.attrs) | {"dropped": len(raw) - len(frame)}
    names = attrs["names"]
    truth = [n for n in frame if pd.api.types.is_bool_dtype(frame[n]) and n not in names]
    frame = frame.assign(**{str(n): frame[n].astype(str) for n in truth})
    frame = frame.astype(dict.fromkeys(names, np.float64))
    mixed = [n for n in frame if frame[n].dtype == object]  # labels of several kinds do not sort
    frame = frame.assign(
        **{str(n): frame[n].where(frame[n].isna(), frame[n].astype(str)) for n in mixed}
    )
    if frame[score].nunique() < 2:
        raise AnalysisError(f"score={score}: the same in every row; there is nothing to explain")
    frame.attrs = attrs
    return frame


def check_weights(frame: pd.DataFrame, weights: str | None) -> None:
    """Refuse a column of weights that the table lacks or that holds no positive numbers.

    Raises:
        AnalysisError: in one line.
    """
    if weights is None:
        return
    if weights not in frame:
        raise AnalysisError(f"weights={weights}: no such column.{nearest(weights, frame)}")
    positive(frame[weights])


def _first_fit(frame: pd.DataFrame, proposal: Proposal, *, fallback: bool) -> MixedFit:
    """Return the fit of the formula; of a proposed one, else the first simpler one that fits."""
    formulas = list(_simpler(proposal.formula, map(str, frame))) if fallback else [proposal.formula]
    if not fallback:
        _check_levels(frame, proposal.formula)
    first: AnalysisError | None = None
    for formula in formulas:
        try:
            return fit_mixed(frame, formula, proposal.family, weights=proposal.weights)
        except AnalysisError as error:
            first = first or error
        except np.linalg.LinAlgError:
            first = first or AnalysisError(
                f"formula={formula}: cannot be computed; the random effects may explain the score "
                f"exactly, are rows duplicated?"
            )
    assert first is not None
    raise first


def _simpler(formula: str, columns: Iterable[str]) -> Iterator[str]:
    """Yield the formula, it without random slopes, without combined groups, without groups."""
    yield formula
    parsed = parse(formula, columns)
    plain = [replace(bar, expression="1") for bar in parsed.bars]
    for bars in (plain, [bar for bar in plain if len(bar.group) == 1], []):
        yield written(replace(parsed, bars=tuple(bars)))


def _as_fitted(proposal: Proposal, fit: MixedFit) -> Proposal:
    """Return the proposal with what had to be left out of its formula for any fit at all."""
    if fit.formula == proposal.formula:
        return proposal
    said = f"random terms of {proposal.formula}, which could not be fitted"
    return Proposal(
        fit.formula, proposal.family, proposal.weights, proposal.choices,
        (*proposal.simpler, said),
    )  # fmt: skip


def _check_levels(frame: pd.DataFrame, formula: str) -> None:
    """Raise for a factor of one level: it would be dropped without a word."""
    right = formula.partition("~")[2]
    for name in map(str, frame.columns):
        there = re.search(rf"(?<![\w`]){re.escape(name)}(?![\w`(])|`{re.escape(name)}`", right)
        if there and frame[name].nunique() == 1:
            level = frame[name].dropna().iloc[0]
            raise AnalysisError(f"formula={formula}: {name} is {level} in every row; leave it out")


def df_rule(fit: MixedFit, asked: str | None) -> tuple[str, str]:
    """Return the rule for degrees of freedom and why it is this one."""
    if isinstance(fit, GlmmFit):
        if asked not in (None, "normal"):
            raise AnalysisError(f"df={asked}: family={fit.family} has df=normal alone")
        return "normal", "the only one for a model that is not Gaussian"
    if asked is not None:
        if asked == "kenward-roger":
            kenward_roger(fit)  # says in a line why it cannot be had
        return asked, "chosen by the user"
    if not fit.random:
        return "satterthwaite", "without random effects it is rows less coefficients, exactly"
    effects = sum(f.size for f in fit.problem.factors)
    if effects > AFFORDABLE or fit.n > AFFORDABLE_ROWS:
        return (
            "satterthwaite",
            f"Kenward and Roger's rule is costly with {effects:,} random effects",
        )
    try:
        kenward_roger(fit)
    except (AnalysisError, np.linalg.LinAlgError):
        return "satterthwaite", "Kenward and Roger's rule could not be computed"
    return "kenward-roger", "affordable here, and the better one in small tables"
