"""`ablate report`: fits and writes the report of results, or of any long table."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ablate.commands.verb import BOOLEAN, Flag, Verb, truth
from ablate.errors import UserError
from ablate.paths import check_file, check_folder, check_name
from ablate.terminal import CONSOLE, paragraph

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".csv", ".tsv", ".parquet")
OF_TABLES = ("score", "higher_is_better", "formula", "family", "weights", "df", "frozen")


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    if len(rest) != 1:
        raise UserError("report: give one folder of results or of logs, or one table")
    source, asked = Path(rest[0]), Path(given.out) if given.out else None
    if asked:
        check_folder("--out", asked)
    check_name("table", source)
    if not source.exists():
        raise _no_table(source)
    if given.frozen:
        check_file("--frozen", given.frozen)
    from ablate.results.seal import note_made
    from analysis.errors import AnalysisError
    from analysis.report.build import build  # takes seconds: what is not there is refused before

    if (page := _of_logs(source, asked, given)) is not None:
        return _told(page)
    table = _table(source, asked)
    out = asked or table.parent / "report"
    folder = source if source.is_dir() else None
    asked_items = _prompts(source) if given.prompts else None
    try:
        page = build(
            table, out, folder=folder, prompts=asked_items, score=given.score,
            formula=given.formula, family=given.family, weights=given.weights, df=given.df,
            margin=given.margin, frozen=given.frozen, higher_is_better=given.higher_is_better,
        )  # fmt: skip
    except AnalysisError as error:
        raise UserError(str(error)) from None
    if out == source / "report":
        note_made(out, table)
    return _told(page)


def _told(page: Path) -> int:
    from analysis.report.outcome import outcome

    for line in outcome(page):
        paragraph(CONSOLE, line)
    return 0


def _of_logs(source: Path, out: Path | None, given: argparse.Namespace) -> Path | None:
    """Return the report of logs that other programs wrote; None where `source` is something else.

    Raises:
        UserError: they cannot be read, or an option is of tables alone.
    """
    if source.suffix in TABLES or (source / "results.parquet").is_file():
        return None
    from analysis.compare.page import build_logs
    from analysis.errors import AnalysisError
    from analysis.logs import trackers
    from analysis.logs.read import is_logs

    if trackers.is_source(source):
        raise UserError(
            f"{source}: a report of W&B's or MLflow's runs takes their table as CSV (the export "
            f"of the table of runs; mlflow.search_runs().to_csv(FILE)); `ablate compare` reads "
            f"this as it is"
        )

    try:
        if not is_logs(source):
            return None
        for name in OF_TABLES:
            if getattr(given, name) is not None:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag}: belongs to tables; logs of items take --out, --margin")
        place = source if source.is_dir() else source.parent
        return build_logs(source, out or place / "report", given.margin)
    except AnalysisError as error:
        raise UserError(str(error)) from None


def _prompts(source: Path) -> "pd.DataFrame":
    """Return what the items of a folder of results asked, made again from its newest record.

    Raises:
        UserError: there is no record, or its benchmarks cannot be had any more.
    """
    from ablate.results.store import Store

    store = Store(source)
    newest = [key for key in store.newest(1) if store.record(key) is not None]
    if not newest:
        raise UserError(f"--prompts: {source} has no record to make them again from")
    from ablate.evaluate.rebuild import prompts

    return prompts(store.folder(newest[0]))


def _table(source: Path, out: Path | None) -> Path:
    """Return the table to read; that of a folder of results is made anew from its records.

    Where the folder may not be written, the table is written to `out`.
    """
    if source.is_dir() and (source / "designs").is_dir():
        from ablate.experiment.design import collect
        from ablate.experiment.status import damaged_lines

        for line in damaged_lines(source):
            CONSOLE.print(line, soft_wrap=True, markup=False)
        try:
            return collect(source)
        except UserError as error:
            if out is None:
                raise UserError(f"{error}; --out DIR writes the report elsewhere") from None
            return collect(source, out / "results.parquet")
    table = source / "results.parquet" if source.is_dir() else source
    if not table.exists():
        raise _no_table(table)
    return table


def _no_table(path: Path) -> UserError:
    return UserError(
        f"{path}: no such table; give a folder of results, a CSV or a parquet file, or logs of "
        f"lm-eval, Inspect or Every Eval Ever"
    )


VERB = Verb(
    name="report",
    summary="fit and write the report of results, or of any long table",
    about=(
        "Fits a mixed-effects model to a folder of results or to a table with one score a row, "
        "and writes the report. What is not given is proposed from the table, with the reasons. "
        "Logs of items (lm-eval --log_samples, Inspect, Every Eval Ever) give models by benchmarks "
        "with intervals, and each model less the best, paired by item."
    ),
    words="DIR_OR_TABLE_OR_LOGS",
    options=(
        Flag("--out", "where to write (default: report/ beside the table)", "DIR"),
        Flag("--score", "the column with the score", "COLUMN"),
        Flag(
            "--higher-is-better",
            "which way the score is better, true or false (default: as its name says: less of a "
            "loss or an error)",
            "BOOL",
            truth,
            BOOLEAN,
        ),
        Flag("--formula", "e.g. 'score ~ wp + I(wp^2) + (1 | run)'", "FORMULA"),
        Flag(
            "--family",
            "gaussian, binomial (0/1, or shares with --weights), beta, beta_squeezed, ...",
            "FAMILY",
        ),
        Flag("--weights", "a column: trials of a binomial, else weights of rows", "COLUMN"),
        Flag("--df", "satterthwaite, kenward-roger or normal", "METHOD"),
        Flag("--margin", "an effect within +- this counts as none", "POINTS", float),
        Flag("--frozen", "a plan of `plan --freeze` (default: the folder's)", "FILE"),
        Flag("--prompts", "put the items' prompts into the page, made again from the benchmarks"),
    ),
    examples=(
        "ablate report results/mine",
        "ablate report logs/lm_eval --margin 2",
        "ablate report items.csv --score right --formula 'right ~ arm + (1 | item)'",
    ),
    run=_run,
)
