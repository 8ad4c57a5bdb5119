"""Results opened for notebooks and scripts: `ablate.load(folder)`, `ablate.load("table.csv")`.

    study = ablate.load("results/demo")
    study.results                            the results table as it stands, a DataFrame
    study.items                              a row per run and benchmark item, a DataFrame
    study.fit                                the fitted model; print(study.fit) is its summary
    study.effects()                          every headline effect with its interval and verdict
    study.compare("lora r8", "full")         one arm less another, by data set and kind of task
    study.report()                           writes the report and returns its path

Any other long table has all of these but `items` and `compare`. Everything is the report's own: the
same model, the same contrasts, the same verdicts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError, listed, nearest
from analysis.inference.estimates import Estimate
from analysis.inference.multiplicity import holm
from analysis.mixed import MixedFit
from analysis.regression import headlines
from analysis.regression.model import Regression, Request, analysed
from analysis.regression.narrative import Numbers
from analysis.regression.study import Study
from analysis.report import build
from analysis.report.headline import CLEAR, UNCLEAR, Headline
from analysis.table.adjusted_means import adjusted_means
from analysis.table.cells import run_means
from analysis.table.columns import NEEDED
from analysis.table.factors import factors_of, joined, level_text
from analysis.table.frame import from_results, read

ALPHA = 0.05
ARM = "arm"
NUMBERS = ("estimate", "low", "high", "p", "mde")
Side = str | Mapping[str, Any]  # an arm's name, or levels by factor


class Options(TypedDict, total=False):
    """The options of `ablate report`, see `analysis.report.build.build`."""

    score: str | None
    formula: str | None
    family: str | None
    weights: str | None
    df: str | None
    margin: float | None
    frozen: str | Path | None


@dataclass(frozen=True, repr=False)
class LoadedTable:
    """A long table of scores with its fitted model.

    Attributes:
        source: the file or folder that was loaded.
        results: the table as it stands.
        regression: the model that the report is written from.
        options: what was asked for when it was loaded.
    """

    source: Path
    results: pd.DataFrame
    regression: Regression
    options: Options

    @property
    def fit(self) -> MixedFit:
        """The fitted model; `print` shows its summary."""
        return self.regression.fit

    @property
    def reasons(self) -> list[str]:
        """Why the model is the one that it is, a sentence each."""
        return [f"{c.column}: {c.used}; {c.reason}" for c in self.regression.proposal.choices]

    def effects(self) -> pd.DataFrame:
        """Return every headline effect of the report's first screen, one row each.

        Columns: question, group, label, estimate, low, high (95 %), unit, p and verdict (adjusted
        as the section of the question says) and mde, the minimum detectable effect.
        """
        names = ["question", "group", "label", *NUMBERS[:3], "unit", "p", "mde", "verdict"]
        rows = [{n: getattr(one, n) for n in names} for one in self._headlines()]
        return pd.DataFrame(rows, columns=names)

    def _headlines(self) -> Sequence[Headline]:
        return headlines.headlines(self.regression, Numbers.of(self.regression))

    def report(self, out: str | Path | None = None) -> Path:
        """Write the report and return its index.html.

        Args:
            out: its folder; by default `report` beside the table.
        """
        folder = self.source if self.source.is_dir() else self.source.parent
        return build.build(self.source, out or folder / "report", **self.options)

    def __repr__(self) -> str:
        told = f"{len(self.results):,} rows, {self.fit.formula}: {self.regression.status}"
        return f"<table {self.source.name}: {told}>"


@dataclass(frozen=True, repr=False)
class LoadedStudy(LoadedTable):
    """A results folder with its fitted model."""

    regression: Study

    @property
    def reasons(self) -> list[str]:
        """Why the model is the one that it is, and what is not in it, a sentence each."""
        return [*self.regression.reasons, *self.regression.left_out]

    @property
    def items(self) -> pd.DataFrame:
        """One row per run and benchmark item: run, task, item, score in points.

        Raises:
            AnalysisError: the items' scores do not lie beside the table.
        """
        found = self.regression.items
        if found is None:
            raise AnalysisError(
                f"items: none beside {self.source}; they lie in cells/*/items.parquet of a folder"
            )
        return found.long()

    @property
    def arms(self) -> list[str]:
        """The names of the arms, as `compare` takes them: adapter, what it varies in, rank."""
        return sorted(_arm_names(self.regression.rows).unique())

    def _headlines(self) -> Sequence[Headline]:
        return build.study_headlines(self.regression)

    def compare(self, first: Side, second: Side) -> pd.DataFrame:
        """Return `first` less `second` in points, by data set, base model and kind of task.

        Runs are compared under equal conditions: only combinations of the other factors (masking,
        weight, settings) that both sides ran are used, and condition and seed are adjusted for by
        least squares, a run's score being the mean over its tasks.

        Args:
            first: an arm's name ("lora r8", see `arms`), or levels by factor, such as
                {"masking": "none", "plw": 0.1}; factors that are not named may take any level.
            second: the same for the other side.

        Returns:
            One row per stratum and kind of task (target, source, both): dataset, model, tasks,
            runs_first, runs_second, estimate, low, high (95 %), p, p_holm, mde, verdict.

        Raises:
            AnalysisError: there is no such arm, factor or level, a run is on both sides, or
                nowhere did both sides run under equal conditions with replicates.
        """
        sides = [self._runs(side) for side in (first, second)]
        if sides[0] & sides[1]:
            raise AnalysisError(f"compare: some runs belong to {first} and to {second}")
        named = _named(first) | _named(second)
        found = list(_differences(self.regression.rows, sides, named))
        if not found:
            raise AnalysisError(
                f"compare: {first} and {second} did not run under equal conditions with replicates"
            )
        table = pd.DataFrame(found)
        table["p_holm"] = holm(table["p"].tolist())
        return table.assign(verdict=np.where(table["p_holm"] < ALPHA, CLEAR, UNCLEAR))

    def _runs(self, side: Side) -> set[str]:
        """Return the runs of a side, under whichever of their names it was asked for.

        Raises:
            AnalysisError: there is no such arm, factor or level, or no such run in the model.
        """
        rows = self.regression.rows
        if isinstance(side, str):
            return set(rows.loc[_of_level(_arm_names(rows), ARM, side), "run"])
        # Aliases stand in the raw table alone, the names that carry settings in the frame alone.
        found = _matching(self.results.assign(run=self.results["train_key"].astype(str)), side)
        found = (found or _matching(rows, side)) & set(rows["run"])
        if not found:
            for name, level in side.items():
                _of_level(rows[name].map(level_text).astype(str), name, level_text(level))
            raise AnalysisError(f"compare: no run of the model has {side}")
        return found

    def __repr__(self) -> str:
        rows = self.regression.rows
        counts = {
            "runs": rows["run"].nunique(), "arms": len(self.arms),
            "seeds": self.regression.seeds, "tasks": rows["task"].nunique(),
            "data sets": rows["dataset"].nunique(),
        }  # fmt: skip
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        return f"<study {self.source.name}: {told}; {self.regression.status}>"


def load(source: str | Path, **options: Unpack[Options]) -> LoadedTable:
    """Return a results folder, or any long table, fitted as the report fits it.

    Args:
        source: a folder with results.parquet, or a table as .parquet, .csv or .tsv.
        options: score, formula, family, weights, df, margin and frozen, as of `ablate report`.

    Returns:
        A `LoadedStudy` for results of `ablate`, else a `LoadedTable`.

    Raises:
        AnalysisError: the table, an option or the model is not as it must be, in one line.
    """
    path, raw = Path(source), read(source)
    asked: dict[str, Any] = {k: v for k, v in options.items() if k != "frozen"}
    request, frozen = Request(**asked), options.get("frozen")
    if set(NEEDED) <= set(raw.columns):
        folder = path if path.is_dir() else path.parent
        study = build.fitted_study(raw, from_results(raw), folder, request, frozen=frozen)
        return LoadedStudy(path, raw, study, options)
    build.refuse_plan(frozen)
    return LoadedTable(path, raw, analysed(raw, request), options)


def _arm_names(rows: pd.DataFrame) -> "pd.Series[str]":
    return factors_of(rows).arm_names(rows)


def _named(side: Side) -> set[str]:
    """Return the factors that a side fixes."""
    return {ARM} if isinstance(side, str) else {str(name) for name in side}


def _matching(rows: pd.DataFrame, side: Mapping[str, Any]) -> set[str]:
    """Return the runs whose rows have all levels of a side.

    Raises:
        AnalysisError: there is no such factor.
    """
    kept = pd.Series(True, rows.index)
    for name, level in side.items():
        if name not in rows:
            raise AnalysisError(f"{name}: no such factor.{nearest(name, rows.columns)}")
        kept &= rows[name].map(level_text).astype(str) == level_text(level)
    return set(rows.loc[kept, "run"].astype(str))


def _of_level(levels: "pd.Series[str]", name: str, level: str) -> "pd.Series[bool]":
    if not (levels == level).any():
        known = sorted(levels.unique())
        raise AnalysisError(f"{name}={level}: not one of {listed(known)}.{nearest(level, known)}")
    return levels == level


def _differences(
    rows: pd.DataFrame, sides: Sequence[set[str]], named: set[str]
) -> Iterator[dict[str, Any]]:
    """Yield the difference of two sets of runs in every stratum and kind of task."""
    first = sides[0]
    chosen = rows[rows["run"].isin(first | sides[1])]
    for side in [s for s in ("target", "source", "both") if (chosen["side"] == s).any()]:
        runs = run_means(chosen, side=side)
        strata = [n for n in ("dataset", "model") if n in runs]
        for key, own in runs.groupby(strata, observed=True):
            effect, counts = _difference(own, own["run"].isin(first), named | set(strata))
            if effect is not None:
                head = dict(zip(strata, map(str, key), strict=True)) | {"tasks": side} | counts
                yield head | {n: getattr(effect, n) for n in NUMBERS}


def _difference(
    runs: pd.DataFrame, first: "pd.Series[bool]", named: set[str]
) -> tuple[Estimate | None, dict[str, int]]:
    """Return the first side less the second, over the conditions that both ran; None without."""
    factors = factors_of(runs)
    arm = factors.columns("arm") if ARM in named else []
    others = [n for n in factors.cell if n not in named and n not in arm]
    condition = joined(runs, others)
    shared = set(condition[first]) & set(condition[~first])
    kept = condition.isin(shared)
    counts = {"runs_first": int((kept & first).sum()), "runs_second": int((kept & ~first).sum())}
    if not min(counts.values()):
        return None, counts
    level_N = np.where(first[kept], 0, 1).astype(np.intp)
    blocks = [condition[kept], runs.loc[kept, "seed"].astype(str)]
    score_N1 = runs.loc[kept, ["score"]].to_numpy(dtype=np.float64)
    try:
        return adjusted_means(level_N, blocks, score_N1).contrast(np.array([1.0, -1.0])), counts
    except AnalysisError:
        return None, counts
