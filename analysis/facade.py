"""Results opened for notebooks and scripts: `ablate.load(folder)`, `ablate.load("table.csv")`.

    study = ablate.load("results/demo")
    study.results                            the results table as it stands, a DataFrame
    study.items                              a row per run and benchmark item, a DataFrame
    study.fits                               the fitted models by panel; print one for its summary
    study.effects()                          every headline effect with its interval and verdict
    study.compare("lora r8", "full")         one arm less another, by data set and kind of task
    study.section("own-rates")               a section of the report: its tables and figures
    study.report()                           writes the report and returns its path

Any other long table has all of these but `items` and `compare`, and one model, `table.fit`; results
that no model can be fitted to have all but `fits`, `effects` and `section`. Effects are those of
the report; a comparison is made as the report makes them, of the runs of its two sides alone. The
other comparison, item by item, is `ablate compare` (docs/compare.md says which to use when).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError, listed, nearest, told
from analysis.inference.estimates import DF_RULES
from analysis.mixed import MixedFit
from analysis.regression import headlines
from analysis.regression.model import MARGIN, Regression, Request, analysed, check_request
from analysis.regression.numbers import Numbers
from analysis.regression.study import NoModel, Study
from analysis.report import build
from analysis.report.headline import Headline, judged, reason
from analysis.report.page import Section
from analysis.report.section_data import SectionData, section_data
from analysis.table.cells import ARM as ADAPTER_RANK
from analysis.table.cells import arm_text, without_rank
from analysis.table.columns import is_results
from analysis.table.conditions import ARM, OWN, differences, under_equal_conditions
from analysis.table.factors import factors_of, level_columns, level_text
from analysis.table.frame import from_results, read, study_rows
from analysis.table.items import read_items

Side = str | Mapping[str, Any]  # an arm's name, or levels by factor


class Options(build.Asked, total=False):
    """The options of `ablate report`, see `analysis.report.build.build`."""

    frozen: str | Path | None


@dataclass(frozen=True, repr=False)
class LoadedTable:
    """A long table of scores with its fitted model.

    Attributes:
        source: the file or folder that was loaded.
        results: the table as it stands.
        fitted: the model that the report is written from, or why there is none.
        options: what was asked for when it was loaded.
    """

    source: Path
    results: pd.DataFrame
    fitted: Regression | Study | AnalysisError
    options: Options

    @property
    def regression(self) -> Regression:
        """The model that the report is written from.

        Raises:
            AnalysisError: no model can be fitted to these results, or there is one for every panel.
        """
        if isinstance(self.fitted, Regression):
            return self.fitted
        if isinstance(self.fitted, AnalysisError):
            raise NoModel(str(self.fitted))
        if len(self.fitted.models) > 1:
            raise AnalysisError(
                f"fit: {len(self.fitted.models)} panels have a model each; take one of fits: "
                f"{listed(map(repr, self.fits), limit=3)}"
            )
        return self.fitted.models[0]

    @property
    def fit(self) -> MixedFit:
        """The fitted model; `print` shows its summary."""
        return self.regression.fit

    @property
    def fits(self) -> dict[str, MixedFit]:
        """The fitted models by the name of their panel; of one of all scores "all scores"."""
        return {"all scores": self.fit}

    @property
    def reasons(self) -> list[str]:
        """Why the model is the one that it is, a sentence each."""
        return [f"{c.column}: {c.used}; {c.reason}" for c in self.regression.proposal.choices]

    @property
    def items(self) -> pd.DataFrame:
        """One row per run and benchmark item, of results of `ablate`."""
        raise self._external("items: the scores of single items")

    @property
    def arms(self) -> list[str]:
        """The names of the arms, of results of `ablate`."""
        raise self._external("arms: adapters with their ranks")

    def compare(self, first: Side, second: Side) -> pd.DataFrame:
        """Return the difference of two sides under equal conditions, of results of `ablate`."""
        raise self._external("compare: the conditions that make runs equal")

    def _external(self, what: str) -> AnalysisError:
        return AnalysisError(
            f"{what} are known of results of ablate alone, and {self.source.name} is another "
            f"table; its comparisons are in effects() and report()"
        )

    def effects(self) -> pd.DataFrame:
        """Return every headline effect of the report's first screen, one row each.

        Columns: question, group, label, estimate, low, high (95 %, of this effect alone: not
        adjusted), unit, p_adjusted (for the number of effects, as the section of the question says;
        the verdict rests on it, so an interval without zero need not be distinguishable), mde, the
        minimum detectable effect, verdict, and because, what the verdict rests on.
        """
        names = ["question", "group", "label", "estimate", "low", "high", "unit"]
        rows = [
            {n: getattr(one, n) for n in names}
            | {"p_adjusted": one.p, "mde": one.mde, "verdict": one.verdict, "because": reason(one)}
            for one in self._headlines()
        ]
        return pd.DataFrame(rows, columns=[*names, "p_adjusted", "mde", "verdict", "because"])

    def _headlines(self) -> Sequence[Headline]:
        return headlines.headlines(self.regression, Numbers.of(self.regression))

    @property
    def sections(self) -> list[str]:
        """The names that `section` takes, in the order of the page."""
        return list(self._sections)

    def section(self, name: str) -> SectionData:
        """Return a section of the report as tables and figures, made when it is asked for.

        Args:
            name: as in `sections`; the page's addresses end in it, index.html#own-rates.

        Raises:
            AnalysisError: there is no such section, or the results hold nothing for it.
        """
        if name not in self._sections:
            raise AnalysisError(
                f"section={told(name)}: no such section.{_instead(name, self.sections)}"
            )
        made = self._sections[name]()
        if made is None:
            raise AnalysisError(f"section={name}: {self.source.name} has no runs for it")
        return section_data(made)

    @cached_property
    def _sections(self) -> Mapping[str, Callable[[], Section | None]]:
        """What makes each section, by its name."""
        made = build.external_sections(self.regression, Numbers.of(self.regression))
        return {one.key: partial(_given, one) for one in made}

    def report(self, out: str | Path | None = None) -> Path:
        """Write the report and return its index.html.

        Args:
            out: its folder; by default `report` beside the table.
        """
        place = self._folder / "report" if out is None else out
        return build.build(self.source, place, **self.options)

    @property
    def _folder(self) -> Path:
        return self.source if self.source.is_dir() else self.source.parent

    @property
    def _status(self) -> str:
        if isinstance(self.fitted, AnalysisError):
            return f"no model ({self.fitted})"
        return f"{self.fit.formula}: {self.regression.status}"

    def __repr__(self) -> str:
        return f"<table {self.source.name}: {len(self.results):,} rows, {self._status}>"


@dataclass(frozen=True, repr=False)
class LoadedStudy(LoadedTable):
    """A results folder with its fitted model."""

    @property
    def study(self) -> Study:
        """The study that the report is written from.

        Raises:
            AnalysisError: no model can be fitted to these results.
        """
        if isinstance(self.fitted, Study):
            return self.fitted
        raise NoModel(str(self.fitted))

    @property
    def fits(self) -> dict[str, MixedFit]:
        """The fitted models by the name of their panel; of one of all scores "all scores"."""
        study = self.study
        return {study.panel(m.labels): m.fit for m in study.panels} or super().fits

    @property
    def reasons(self) -> list[str]:
        """Why the model is the one that it is, and what is not in it, a sentence each."""
        return [*self.study.reasons, *self.study.left_out, *self.study.in_doubt]

    @property
    def items(self) -> pd.DataFrame:
        """One row per run and benchmark item: run, task, item, score in points.

        Raises:
            AnalysisError: the items' scores do not lie beside the table.
        """
        if not (self._folder / "cells").is_dir():
            raise AnalysisError(
                f"items: none beside {self.source}; they lie in cells/*/items.parquet of a folder"
            )
        return read_items(study_rows(from_results(self.results)), self._folder).long()

    @property
    def arms(self) -> list[str]:
        """The names of the arms, as `compare` takes them: adapter, what it varies in, rank."""
        return sorted(_arm_names(self._names).unique())

    def _headlines(self) -> Sequence[Headline]:
        return build.study_headlines(self.study)

    @cached_property
    def _sections(self) -> Mapping[str, Callable[[], Section | None]]:
        return {part.key: partial(part.section, self.study) for part in build.parts()}

    def compare(self, first: Side, second: Side) -> pd.DataFrame:
        """Return `first` less `second` in points, by data set, base model and kind of task.

        Runs are compared under equal conditions: only combinations of the other factors (masking,
        weight, settings) that both sides ran are used. Each with each seed is a block, as in the
        report, and a run's score is the mean over its tasks. A run of several names may stand under
        any of them, but counts once, and not where it is on both sides.

        This is the comparison for what a study finds: the interval is for other seeds and, where
        the difference varies more between conditions than between seeds, for other conditions like
        these; items are fixed. Whether one side is worse than another on other items too, under
        these very conditions, benchmark by benchmark and with an exit status, `ablate compare A B
        --in DIR` says. On a balanced grid of one data set both have one estimate; without scores of
        items and under a single condition they have one interval too, the paired t over seeds.

        Args:
            first: an arm's name ("lora r8", see `arms`), or levels by factor, such as
                {"masking": "none", "plw": 0.1}; factors that are not named may take any level.
                None is the level of a setting that is null or that a run does not have.
            second: the same for the other side.

        Returns:
            One row per stratum and kind of task (target, source, both): dataset and model (but
            what a side names), tasks, runs_first, runs_second, estimate, low, high (95 %, of this
            row alone: not adjusted), p (of this row alone), mde, p_adjusted (by Holm over the
            rows), verdict, which rests on p_adjusted.

        Raises:
            AnalysisError: there is no such arm, factor or level, a run is on both sides, or
                nowhere did both sides run under equal conditions with replicates.
        """
        sides, named = self._sides(first, second)
        rule = self.options.get("df") or DF_RULES[0]
        found = list(differences(self._names, sides, named, df=rule))
        if not found:
            raise AnalysisError(
                f"compare: {first} and {second} did not run under equal conditions with replicates"
            )
        margin = self.options.get("margin")
        table = judged(found, MARGIN if margin is None else margin)
        return table.rename(columns={"p_holm": "p_adjusted"})

    def pairs(self, first: Side, second: Side) -> pd.DataFrame:
        """Return the runs of two sides under the conditions that both ran.

        Args:
            first: as of `compare`.
            second: as of `compare`.

        Returns:
            One row a run: trained (its train_key), seed, condition, first (whether of that side).

        Raises:
            AnalysisError: as of `compare`.
        """
        sides, named = self._sides(first, second)
        found = under_equal_conditions(self._names, sides, named)
        if found.empty:
            raise AnalysisError(f"compare: {first} and {second} did not run under equal conditions")
        return found

    def _sides(self, first: Side, second: Side) -> tuple[list[set[str]], set[str]]:
        """Return the names of the runs of both sides, and the factors that the sides fix."""
        sides = [self._runs(n, side) for n, side in (("first", first), ("second", second))]
        if sides[0] & sides[1]:
            raise AnalysisError(f"compare: some runs belong to {first} and to {second}")
        return sides, _named(first) | _named(second)

    @cached_property
    def _names(self) -> pd.DataFrame:
        """The rows of the model under every name: `run` is a name's own, `trained` the run's."""
        raw = self._named_rows
        own = {name: raw[column] for name, column in OWN.items() if column in raw}
        trained = self.results["train_key"].astype(str)
        return study_rows(from_results(raw.assign(trained=trained, **own)))

    @cached_property
    def _named_rows(self) -> pd.DataFrame:
        """The results table with a run for every name, `train_key`; none is an alias."""
        raw = self.results
        names = raw.groupby([*level_columns(raw), "train_key"], dropna=False, sort=False)
        return raw.assign(train_key=names.ngroup().astype(str), alias=False)

    def _runs(self, which: str, side: Side) -> set[str]:
        """Return the names of runs that a side has.

        Raises:
            AnalysisError: there is no such arm, factor or level, or no such run in the model.
        """
        rows = self._names
        if isinstance(side, str):
            names = _arm_names(rows)
            if side not in set(names):  # the page always says an arm's rank
                shown = [
                    arm_text(*own) for own in without_rank(rows)[list(ADAPTER_RANK)].to_numpy()
                ]
                names = pd.Series(shown, rows.index) if side in shown else names
            _check_arm(names, side, rows)
            return set(rows.loc[_of_level(names, ARM, side), "run"])
        if not isinstance(side, Mapping):
            raise AnalysisError(
                f"{which}={told(side)}: must be an arm's name or levels by factor, such as "
                f"'full' or {{'adapter': 'full'}}"
            )
        # A level alone stands in the raw table, one with the settings that it carries in the frame.
        raw = self._named_rows
        found = _matching(raw.assign(run=raw["train_key"]), side) or _matching(rows, side)
        found &= set(rows["run"])
        if not found:
            for name, level in side.items():
                _of_level(rows[name].map(_plain).astype(str), name, _plain(level))
            raise AnalysisError(f"compare: no run of the model has {side}")
        return found

    def __repr__(self) -> str:
        if isinstance(self.fitted, AnalysisError):
            return super().__repr__().replace("<table", "<study", 1)
        rows = self.study.rows
        counts = {
            "run{}": rows["run"].nunique(), "arm{}": len(self.arms),
            "seed{} a cell": self.study.seeds, "task{}": rows["task"].nunique(),
            "data set{}": rows["dataset"].nunique(),
        }  # fmt: skip
        told = ", ".join(f"{n} {name.format('s' * (n != 1))}" for name, n in counts.items())
        return f"<study {self.source.name}: {told}; {self.study.status}>"


def load(source: str | Path, **options: Unpack[Options]) -> LoadedTable:
    """Return a results folder, or any long table, fitted as the report fits it.

    Args:
        source: a folder with results.parquet, or a table as .parquet, .csv or .tsv.
        options: score, formula, family, weights, df, margin and frozen, as of `ablate report`.

    Returns:
        A `LoadedStudy` for results of `ablate`, else a `LoadedTable`.

    Raises:
        AnalysisError: the table or an option is not as it must be, in one line; of a table from
            elsewhere also that no model can be fitted.
    """
    for name in options:
        if name not in (known := Options.__annotations__):
            raise AnalysisError(f"{name}: no such option.{_instead(name, known)}")
    raw, path = read(source), Path(source)
    asked: dict[str, Any] = {k: v for k, v in options.items() if k != "frozen"}
    request, frozen = Request(**asked), options.get("frozen")
    check_request(request)
    if is_results(raw.columns):
        return LoadedStudy(path, raw, _study(path, raw, request, frozen), options)
    build.refuse_plan(frozen)
    return LoadedTable(path, raw, analysed(raw, request), options)


def _study(
    path: Path, raw: pd.DataFrame, request: Request, frozen: str | Path | None
) -> Study | AnalysisError:
    """Return the study of results, or why no model can be fitted to them."""
    try:
        frame = from_results(raw)
    except AnalysisError as error:
        return error
    folder = path if path.is_dir() else path.parent
    try:
        return build.fitted_study(raw, frame, folder, request, frozen=frozen)
    except NoModel as error:
        return error


def _instead(name: str, known: Iterable[str]) -> str:
    """Return the known name that was meant, else which there are."""
    return nearest(name, known) or f" Known: {listed(known)}."


def _given(section: Section) -> Section:
    return section


def _arm_names(rows: pd.DataFrame) -> "pd.Series[str]":
    return factors_of(rows).arm_names(rows)


def _check_arm(names: "pd.Series[str]", side: str, rows: pd.DataFrame) -> None:
    """Refuse a level of another factor in an arm's place, with the way to name that level.

    Raises:
        AnalysisError: it is one.
    """
    if (names == side).any():
        return
    for factor in level_columns(rows):
        if factor in rows and side in set(rows[factor].map(_plain).astype(str)):
            raise AnalysisError(
                f"arm={side}: is a level of {factor}, not an arm; to compare levels of {factor} "
                f"write {{{factor!r}: {side!r}}}"
            )


def _named(side: Side) -> set[str]:
    """Return the factors that a side fixes."""
    return {ARM} if isinstance(side, str) else {str(name) for name in side}


def _plain(level: object) -> str:
    """Return a level as text, in one way for tables and for what is asked for; null for none."""
    if level is None or level is pd.NA or (isinstance(level, float) and np.isnan(level)):
        return "null"
    if isinstance(level, bool | np.bool_) or str(level).lower() in ("true", "false"):
        return str(level).lower()
    if isinstance(level, list | tuple):
        return json.dumps(list(level))
    try:
        return level_text(float(str(level)))
    except ValueError:
        return str(level)


def _matching(rows: pd.DataFrame, side: Mapping[str, Any]) -> set[str]:
    """Return the runs whose rows have all levels of a side.

    Raises:
        AnalysisError: there is no such factor.
    """
    kept = pd.Series(True, rows.index)
    for name, level in side.items():
        if name not in rows:
            raise AnalysisError(f"{name}: no such factor.{nearest(name, rows.columns)}")
        kept &= rows[name].map(_plain, na_action=None).astype(str) == _plain(level)
    return set(rows.loc[kept, "run"].astype(str))


def _of_level(levels: "pd.Series[str]", name: str, level: str) -> "pd.Series[bool]":
    if not (levels == level).any():
        known = sorted(levels.unique())
        raise AnalysisError(f"{name}={level}: not one of {listed(known)}.{nearest(level, known)}")
    return levels == level
