"""What every section of a study's report starts from: the frame, the fit and what it says."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from analysis.engine.formula import parse
from analysis.errors import AnalysisError, listed
from analysis.regression.default_model import default_formula, pooled
from analysis.regression.model import (
    MARGIN,
    FittedProposal,
    Regression,
    Request,
    as_it_stands,
    check_request,
    check_weights,
    df_rule,
    fit_proposal,
)
from analysis.regression.propose import Choice, Proposal
from analysis.report import words
from analysis.table.factors import Factors, cell_names, factors_of, stratum_names
from analysis.table.frame import study_rows
from analysis.table.items import Items, read_items

GIVEN = "The formula was given by the user."
FROZEN = "The formula is the one that was frozen before the data."
ASKED_NOTHING = Request()
ALPHA = 0.05
# Verdicts of an effect that is not significant after the adjustment for multiple comparisons.
UNADJUSTED = {"an effect": "undecided", "a small effect": "no effect beyond the margin"}
SCREENING_SEEDS = 2  # with so few replicates a study can only screen


@dataclass(frozen=True)
class Study(Regression):
    """A results folder as a regression: its raw table, the prepared frame, the fit."""

    margin: float  # points
    raw: pd.DataFrame
    folder: Path | None  # where the table was, for what lies beside it
    plan: Path | None = None  # a frozen analysis plan

    @property
    def score(self) -> str:
        """What is modelled: the primary metric of every task."""
        return "score"

    @property
    def unit(self) -> str:
        """What effects are counted in."""
        return "points"

    @property
    def adjustment(self) -> str:
        """How p-values and intervals are adjusted for the number of comparisons."""
        return "families of comparisons and joint tests are adjusted by Holm's method"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the model is the one that it is, in sentences."""
        return tuple(choice.reason for choice in self.proposal.choices)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The rows of the main model: trained runs on benchmarks, without controls."""
        return _ordered(study_rows(self.frame))

    @cached_property
    def items(self) -> Items | None:
        """The scores of the items behind `rows`; None where they do not lie beside the table."""
        if self.folder is None or not (self.folder / "cells").is_dir():
            return None
        try:
            return read_items(self.rows, self.folder)
        except AnalysisError:
            return None

    @cached_property
    def factors(self) -> Factors:
        """What varies over the runs of the main model."""
        return factors_of(self.rows)

    @cached_property
    def left_out(self) -> tuple[str, ...]:
        """A sentence for every column that varies and is not in the model."""
        if {GIVEN, FROZEN} & set(self.reasons):
            sentences = pooled(self.fit.design.parsed.columns, self.factors)
        else:
            sentences = default_formula(self.frame).left_out
        alone = [
            f"{', '.join(arms)} ran at {name} {levels}, never at {self.factors[name].reference} as "
            f"other arms did: their differences from other arms hold this setting as well."
            for name, levels, arms in self.factors.elsewhere(self.rows)
        ]
        lost = (*self._without_weight, *self._aliased)
        return (*self.frame.attrs.get("left_out", ()), *sentences, *alone, *lost)

    @property
    def _without_weight(self) -> tuple[str, ...]:
        """A sentence on the runs that the weight's effects cannot hold."""
        lost = self.rows.loc[self.rows["wp"].isna(), "run"].nunique() if "wp" in self.rows else 0
        if not lost or not {"wp", "effective_plw"} & set(self.fit.design.parsed.columns):
            return ()
        return (
            f"{words.count(lost, 'run')} with no weight on the completion have no prompt loss "
            f"weight relative to it: they are in comparisons of settings, not in the model.",
        )

    @property
    def _aliased(self) -> tuple[str, ...]:
        """A sentence on the coefficients that other columns of the model determine."""
        names = [words.term_text(name) for name in self.fit.left_out]
        if not names:
            return ()
        return (
            f"The runs do not tell these coefficients apart from others of the model, or no run "
            f"has their levels together: {listed(names, limit=8)}. Effects that need one of them "
            f"have no estimate.",
        )

    @property
    def varied(self) -> list[str]:
        """The settings beside the factors of interest that have several levels."""
        return [f.column for f in self.factors.settings]

    @property
    def usual(self) -> dict[str, str]:
        """The level of every varied setting that most runs have."""
        return self.factors.usual

    @cached_property
    def main(self) -> pd.DataFrame:
        """The rows at the usual level of every setting: what the figures show."""
        return self.factors.main(self.rows)

    @cached_property
    def seeds_per_cell(self) -> tuple[int, int, int]:
        """The seeds of a cell: the fewest, the median over cells (rounded down), the most."""
        cell = stratum_names(self.rows) + " " + cell_names(self.rows)
        counts = self.rows["seed"].groupby(cell).nunique()
        return int(counts.min()), int(counts.median()), int(counts.max())

    @property
    def seeds(self) -> int:
        """The number of seeds of the median cell."""
        return self.seeds_per_cell[1]

    @property
    def screening(self) -> bool:
        """Whether there are too few seeds for more than a first look."""
        return self.seeds <= SCREENING_SEEDS

    @property
    def dosed(self) -> bool:
        """Whether the prompt loss weight varies and stands in the formula."""
        used = set(self.fit.design.parsed.columns)
        varies = "wp" in self.rows and self.rows["wp"].nunique() > 1
        return varies and bool(used & {"wp", "effective_plw"})

    @property
    def variable(self) -> str:
        """The scale of the weight that the formula uses."""
        return "wp" if "wp" in self.fit.design.parsed.columns else "effective_plw"


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows by data set, then by kind and name of task: the order of all figures."""
    place = rows["task_group"].astype(str).map(words.group_order)
    side = place.map(lambda p: "" if p[1] == "source" else p[1] or "z")
    keys = pd.DataFrame({"kind": place.map(lambda p: p[0]), "side": side})
    keys = keys.assign(dataset=rows["dataset"].astype(str), task=rows["task"].astype(str))
    order = keys.sort_values(["dataset", "kind", "side", "task"], kind="stable").index
    return rows.loc[order]


class NoModel(AnalysisError):
    """Results that are in order, but that no model can be fitted to."""


def fitted(
    raw: pd.DataFrame,
    frame: pd.DataFrame,
    *,
    folder: Path | None = None,
    request: Request = ASKED_NOTHING,
    plan: Path | None = None,
    planned: str | None = None,
) -> Study:
    """Return the study of a prepared results table, fitted as asked, else as planned, else by
    the default model.

    Args:
        raw: the results table as it was read.
        frame: the same, prepared by `analysis.table.frame.from_results`.
        folder: where it lies.
        request: what the user asked for.
        plan: the file of a frozen plan.
        planned: its formula.

    Raises:
        NoModel: no benchmark score, or too few scores to tell an effect from noise.
        AnalysisError: an option that cannot be carried out, in one line.
    """
    check_request(request)
    _check_study(request)
    rows = _model_rows(frame)
    check_weights(rows, request.weights)
    if request.formula is not None:
        _check_response(request.formula, rows)
        found = fit_proposal(rows, _own(request, request.formula, GIVEN), own=True)
    else:
        found = _by_plan(rows, request, planned) or _by_default(frame, rows, request)
    proposal, asked, fit, steps = found
    rule, why = df_rule(fit, request.df or "satterthwaite")
    why = why if request.df else "the rule of every study's report, so that reports compare"
    margin = MARGIN if request.margin is None else request.margin
    return Study(
        frame, proposal, asked, fit, steps, rule, why, margin, raw=raw, folder=folder, plan=plan
    )


def _check_study(request: Request) -> None:
    """Refuse what the page of a study cannot do."""
    if request.family not in (None, "gaussian"):
        raise AnalysisError(
            f"family={request.family}: a study's scores are in points from 0 to 100 and its page "
            f"states effects in points: family=gaussian alone; give a table of your own for another"
        )
    if request.score is not None:
        raise AnalysisError(
            f"score={request.score}: the score of a study is the primary metric of each task in "
            f"points; leave it out, or give a table of your own with a column {request.score}"
        )


def _check_response(formula: str, rows: pd.DataFrame) -> None:
    """Refuse a left side that is not the score: the page counts effects in points."""
    response = parse(formula, map(str, rows.columns)).response
    if response.strip("`") != "score":
        raise AnalysisError(
            f"formula={formula}: a study's page is about its scores in points, so that score "
            f"stands on the left side; for {response} give a table of your own"
        )


def _model_rows(frame: pd.DataFrame) -> pd.DataFrame:
    try:
        return study_rows(frame)
    except AnalysisError as error:
        raise NoModel(str(error)) from error


def _own(request: Request, formula: str, *reasons: str) -> Proposal:
    choices = tuple(Choice("formula", formula, reason) for reason in reasons)
    return Proposal(formula, "gaussian", request.weights, choices)


def _by_plan(rows: pd.DataFrame, request: Request, planned: str | None) -> FittedProposal | None:
    """Return the fit of the planned formula; None where these rows cannot carry it, which the
    section on the plan then says.
    """
    if planned is None:
        return None
    try:
        return as_it_stands(rows, _own(request, planned, FROZEN))
    except AnalysisError:
        return None


def _by_default(frame: pd.DataFrame, rows: pd.DataFrame, request: Request) -> FittedProposal:
    try:
        formula, reasons, _ = default_formula(frame)
        return as_it_stands(rows, _own(request, formula, *reasons))
    except AnalysisError as error:
        raise NoModel(str(error)) from error
