"""What every section of a study's report starts from: the frame, the models and what they say.

By default every panel (data set, base model, group of tasks) has a model of its own. A formula of
the user's is one model of all scores, from which the same panels are read.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.engine.formula import parse
from analysis.errors import AnalysisError, listed
from analysis.regression.default_model import default_formula, pooled
from analysis.regression.model import (
    MARGIN,
    Regression,
    Remembering,
    Request,
    as_it_stands,
    check_request,
    check_weights,
    df_rule,
    fit_proposal,
)
from analysis.regression.panels import (
    ADJUSTMENT,
    POINTS,
    RULE,
    SAME_RULE,
    SCORE,
    DoseCurve,
    Lost,
    PanelModel,
    dose_curves,
    joint_curves,
    panel_models,
)
from analysis.regression.propose import Choice, Proposal
from analysis.report import words
from analysis.table.cells import ARM, without_rank
from analysis.table.factors import Factors, factors_of, stratum_names, study_cells
from analysis.table.frame import study_rows
from analysis.table.items import Items, read_items

GIVEN = "The formula was given by the user."
FROZEN = "The formula is the one that was frozen before the data."
ASKED_NOTHING = Request()
ALPHA = 0.05
STRATUM = ("dataset", "model")
DOSE = ("masking", "plw")
# Verdicts of an effect that is not significant after the adjustment for multiple comparisons.
UNADJUSTED = {"an effect": "undecided", "a small effect": "no effect beyond the margin"}
SCREENING_SEEDS = 2  # with so few replicates a study can only screen
OF_THE_DATA = ("rg", "train_rows")
PAIRED = "nonzero"  # the normaliser under which a pair of weights has a scale
# Panels up to which each has its curve drawn, and all are in one model. The time of that model
# grows with the fourth power of their number: each has coefficients and a variance of its own.
MANY = 64
FEWEST = 3  # values from which an effect is a surface over two numbers, or a curve over rates
OF_SCORES = {"task", "task_group", "task_type", "run", "side", "dataset", "model", "dataset_type"}


@dataclass(frozen=True)
class Study(Remembering):
    """A results folder with its models: its raw table, the prepared frame, a fit per panel."""

    frame: pd.DataFrame  # the prepared table
    raw: pd.DataFrame
    folder: Path | None  # where the table was, for what lies beside it
    plan: Path | None  # a frozen analysis plan
    formula: str  # of every panel, or of all scores
    reasons: tuple[str, ...]  # why the model is the one that it is, in sentences
    panels: tuple[PanelModel, ...]  # none where one model of all scores was asked for
    joint: Regression | None  # that one
    lost: tuple[Lost, ...]  # panels that no model can be fitted to
    margin: float  # points
    df: str  # the rule for degrees of freedom
    df_reason: str
    weights: str | None

    @property
    def many(self) -> bool:
        """Whether there are more panels than can be looked at one by one."""
        return len(self.panels) > MANY

    @property
    def models(self) -> tuple[Regression, ...]:
        """Every model: one per panel, or the one of all scores."""
        return self.panels if self.joint is None else (self.joint,)

    @property
    def converged(self) -> bool:
        """Whether every fit converged."""
        return all(model.fit.converged for model in self.models)

    @property
    def status(self) -> str:
        """The fit status that stands beside every p-value, counted over panels."""
        return words.counted([model.status for model in self.models])

    @property
    def columns(self) -> set[str]:
        """The columns of the table that the models use."""
        return {name for model in self.models for name in model.fit.design.parsed.columns}

    @cached_property
    def curves(self) -> tuple[DoseCurve, ...]:
        """Every masking mode in every panel, as the models have it."""
        if self.joint is None:
            return tuple(dose_curves(self.panels))
        return tuple(joint_curves(self.joint, self.rows))

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The rows of the study: trained runs on benchmarks, without controls."""
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
        """What varies over the runs of the study."""
        return factors_of(self.rows)

    @cached_property
    def left_out(self) -> tuple[str, ...]:
        """A sentence for all that varies and is not in the model."""
        if {GIVEN, FROZEN} & set(self.reasons):
            sentences = pooled(self.columns | ({"dataset"} if self.panels else set()), self.factors)
        else:
            sentences = default_formula(self.frame).left_out
        lost = (*self._without_weight, *self._aliased)
        return (*self.frame.attrs.get("left_out", ()), *sentences, *lost)

    @cached_property
    def in_doubt(self) -> tuple[str, ...]:
        """A sentence for all that is in the model and means less than it seems to."""
        given = {GIVEN, FROZEN} & set(self.reasons)
        sentences = [] if given else default_formula(self.frame).in_doubt
        alone = [
            f"{', '.join(arms)} ran at {name} {levels}, never at {self.factors[name].reference} as "
            f"other arms did: their differences from other arms hold this setting as well."
            for name, levels, arms in self.factors.elsewhere(self.rows)
        ]
        return (*sentences, *alone, *self._incomplete)

    @property
    def _without_weight(self) -> tuple[str, ...]:
        """A sentence on the runs that the weight's effects cannot hold."""
        lost = self.rows.loc[self.rows["wp"].isna(), "run"].nunique() if "wp" in self.rows else 0
        if not lost or not {"wp", "effective_plw"} & self.columns:
            return ()
        return (
            f"{words.count(lost, 'run')} with no weight on the completion have no prompt loss "
            f"weight relative to it: they are in comparisons of settings, not in the model.",
        )

    @property
    def _incomplete(self) -> tuple[str, ...]:
        """A sentence on the runs that were not scored on every task."""
        stratum, run = stratum_names(self.rows), self.rows["run"].astype(str)
        every = self.rows["task"].astype(str).groupby(stratum).nunique()
        own = self.rows["task"].groupby([stratum, run], observed=True).nunique()
        lost = int((own < every.loc[own.index.get_level_values(0)].to_numpy()).sum())
        if not lost:
            return ()
        return (
            f"{words.count(lost, 'run')} were not scored on every task: their means are adjusted "
            f"for the levels of the tasks that they lack.",
        )

    @property
    def _aliased(self) -> tuple[str, ...]:
        """A sentence on the coefficients that no model could estimate."""
        known = {name for model in self.models for name in model.fit.fixef.index}
        lost = dict.fromkeys(name for model in self.models for name in model.fit.left_out)
        names = [words.term_text(name) for name in lost if name not in known]
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
        cell = study_cells(self.rows)
        counts = self.rows["seed"].groupby(cell).nunique()
        return int(counts.min()), int(counts.median()), int(counts.max())

    @property
    def seeds(self) -> int:
        """The number of seeds of the median cell."""
        return self.seeds_per_cell[1]

    @property
    def replicated(self) -> bool:
        """Whether any cell has several runs."""
        once = ~self.rows["run"].duplicated()
        return bool(study_cells(self.rows)[once].duplicated().any())

    @property
    def screening(self) -> bool:
        """Whether there are too few seeds for more than a first look."""
        return self.seeds <= SCREENING_SEEDS

    @property
    def dosed(self) -> bool:
        """Whether the prompt loss weight varies and stands in the formula."""
        varies = "wp" in self.rows and self.rows["wp"].nunique() > 1
        return varies and bool(self.columns & {"wp", "effective_plw"})

    @property
    def sized(self) -> bool:
        """Whether data sets of several ratios and sizes show when the weight matters."""
        return (
            self.dosed
            and min((self.main[name].nunique() if name in self.main else 0) for name in OF_THE_DATA)
            >= FEWEST
        )

    @cached_property
    def rated(self) -> bool:
        """Whether several arms ran at several learning rates with a validation loss to choose by.

        Arms are then compared at their own best rates, and in no other way.
        """
        if "rate" not in self.main or "task" not in self.raw:
            return False
        rates = without_rank(self.main).groupby(list(ARM), observed=True)["rate"].nunique()
        held = self.raw["task"].astype(str).str.contains("validation").any()
        return bool((rates >= FEWEST).sum() > 1 and held)

    @cached_property
    def stepped(self) -> bool:
        """Whether several doses of one arm ran at several learning rates with a validation loss.

        Their differences are then held apart from those of their rates.
        """
        if "rate" not in self.rows or "task" not in self.raw:
            return False
        runs = without_rank(self.rows)
        rates = runs.groupby([*ARM, *DOSE], observed=True)["rate"].nunique()
        several = (rates >= FEWEST).groupby(list(ARM), observed=True).sum().max() > 1
        held = self.raw["task"].astype(str).str.contains("validation").any()
        return bool(several and held)

    @property
    def at_own_rates(self) -> bool:
        """Whether arms or doses are compared at rates of their own: a setting then says little."""
        return self.rated or self.stepped

    @property
    def paired(self) -> bool:
        """Whether both weights were varied where their scale is not divided away."""
        if not {"plw", "completion_weight", "normaliser"} <= set(self.rows):
            return False
        rows = self.rows[self.rows["normaliser"].astype(str) == PAIRED]
        return bool(rows["completion_weight"].nunique() > 1 and rows["plw"].nunique() > 1)

    @property
    def questions(self) -> int:
        """How many questions have headlines: they share the level of the page's tests."""
        arms = without_rank(self.main)[list(ARM)].drop_duplicates()
        settings = bool(self.varied) and not self.at_own_rates
        dosed = self.dosed and not self.stepped
        asked = (dosed, self.sized, self.paired, self.stepped, len(arms) > 1, settings)
        return max(1, sum(asked))

    @property
    def adjusted(self) -> str:
        """How the p-values of a question's table are adjusted, in words."""
        over = "by Holm over the table"
        if self.questions == 1:
            return over
        return f"{over} and by Bonferroni for the page's {self.questions} questions"

    @property
    def variable(self) -> str:
        """The scale of the weight that the formula uses."""
        return "wp" if "wp" in self.columns else "effective_plw"

    def at(self, rows: pd.DataFrame, labels: Mapping[Any, Any]) -> pd.DataFrame:
        """Return the rows of a comparison: of its data set, base model and side of the tasks."""
        kept = pd.Series(True, rows.index)
        for name in (*STRATUM, *(["side"] if labels["side"] != "both" else [])):
            kept &= rows[name].astype(str) == str(labels[name])
        return rows[kept]

    def stratum(self, labels: Mapping[Any, Any]) -> str:
        """Return the data set of a panel, with the base model where there are several."""
        several = self.rows["model"].nunique() > 1
        return f"{labels['dataset']}, {labels['model']}" if several else str(labels["dataset"])

    def panel(self, labels: Mapping[Any, Any]) -> str:
        """Return the name of a panel: its stratum and its group of tasks in words."""
        return f"{self.stratum(labels)}, {words.group_text(str(labels['task_group']))}"

    def place(self, labels: Mapping[Any, Any]) -> str:
        """Return the stratum of a comparison, with the side of its tasks."""
        return f"{self.stratum(labels)}: {words.SIDES[str(labels['side'])]}"

    def shown(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return a table of the report without the base model where there is one alone."""
        return table if self.rows["model"].nunique() > 1 else table.drop(columns="model")


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows by data set, then by kind and name of task: the order of all figures."""
    place = rows["task_group"].astype(str).map(words.group_order)
    side = place.map(lambda p: "" if p[1] == "source" else p[1] or "z")
    keys = pd.DataFrame({"kind": place.map(lambda p: p[0]), "side": side})
    keys = keys.assign(
        dataset=rows["dataset"].astype(str), model=rows["model"].astype(str),
        task=rows["task"].astype(str),
    )  # fmt: skip
    order = keys.sort_values(["dataset", "model", "kind", "side", "task"], kind="stable").index
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
    rows = _ordered(_model_rows(frame))
    check_weights(rows, request.weights)
    margin = MARGIN if request.margin is None else request.margin
    found = next(_attempts(frame, rows, request, planned))
    rule, why = RULE, SAME_RULE
    if request.df:
        models = found.panels if found.joint is None else (found.joint,)
        rule, why = models[0].df, models[0].df_reason
    return Study(
        frame, raw, folder, plan, found.formula, found.reasons, found.panels, found.joint,
        found.lost, margin, rule, why, request.weights,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Fitted:
    formula: str
    reasons: tuple[str, ...]
    panels: tuple[PanelModel, ...] = ()
    lost: tuple[Lost, ...] = ()
    joint: Regression | None = None


def _attempts(
    frame: pd.DataFrame, rows: pd.DataFrame, request: Request, planned: str | None
) -> Iterator[_Fitted]:
    """Yield the fit as asked, else as planned, else by the default; only the first is made."""
    if request.formula is not None:
        _check_response(request.formula, rows.assign(cell=""))
        yield _all_scores(rows, request, request.formula, GIVEN, own=True)
        return
    if planned is not None:
        with suppress(AnalysisError):  # these rows may not carry it: the plan's section says so
            yield _planned(rows, request, planned)
    formula, reasons, *_ = default_formula(frame)
    try:
        yield _by_panel(rows, request, formula, reasons)
    except AnalysisError as error:
        raise NoModel(str(error)) from error


def _planned(rows: pd.DataFrame, request: Request, planned: str) -> _Fitted:
    """Return the fit of a planned formula: of every panel, or of all scores where it says so."""
    columns = {*map(str, rows.columns), "cell"}
    if set(parse(planned, columns).columns) & OF_SCORES:
        return _all_scores(rows, request, planned, FROZEN, own=False)
    return _by_panel(rows, request, planned, [FROZEN])


def _by_panel(rows: pd.DataFrame, request: Request, formula: str, reasons: list[str]) -> _Fitted:
    panels, lost = panel_models(rows, formula, request)
    if not panels:
        raise AnalysisError(lost[0].reason)
    return _Fitted(formula, tuple(reasons), tuple(panels), tuple(lost))


def _all_scores(
    rows: pd.DataFrame, request: Request, formula: str, reason: str, *, own: bool
) -> _Fitted:
    """Return the one model of all scores that a formula describes; it may name `cell`."""
    rows = rows.assign(cell=study_cells(rows))
    proposal = Proposal(formula, "gaussian", request.weights, (Choice("formula", formula, reason),))
    found = fit_proposal(rows, proposal, own=True) if own else as_it_stands(rows, proposal)
    rule, why = df_rule(found[2], request.df or RULE)
    joint = _OfScores(rows, *found, rule, why if request.df else SAME_RULE, request.margin)
    return _Fitted(joint.fit.formula if own else formula, (reason,), joint=joint)


class _OfScores(Regression):
    """One model of all scores of a study."""

    score = SCORE
    unit = POINTS
    adjustment = ADJUSTMENT


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
    if request.higher_is_better is not None:
        raise AnalysisError(
            "higher_is_better: the records of a study say it of every metric, and its points are "
            "turned so that more is better; leave it out"
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
