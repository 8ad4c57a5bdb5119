"""Builds the report: `build(results, out)` writes one self-contained page with its files.

OUT/index.html    the page, which needs nothing but itself
OUT/tables/       every table as CSV with all digits, and as LaTeX
OUT/figures/      every figure as SVG and PNG
"""

import json
from importlib import metadata
from pathlib import Path

import pandas as pd

from analysis.errors import AnalysisError
from analysis.mixed import fit_mixed
from analysis.report import (
    arms,
    checks,
    dose,
    findings,
    heldout,
    many_arms,
    memorised,
    methods,
    overview,
    paper,
    plain,
    settings,
    stranger,
)
from analysis.report.page import Page, Section, write
from analysis.report.study import GIVEN, NoModel, Study, fitted
from analysis.study.default_model import default_formula
from analysis.study.frame import NEEDED, from_results, from_table, read

PAPER_STUDIES = ("plw",)  # studies whose published figures are drawn beside ours


def build(
    results: pd.DataFrame | str | Path,
    out: str | Path,
    *,
    score: str | None = None,
    formula: str | None = None,
    family: str = "gaussian",
    study: str | None = None,
) -> Path:
    """Write the report of a results table, or of any long table, and return its index.html.

    Args:
        results: a table, or a .parquet, .csv or .tsv file, or a folder with results.parquet.
        out: the folder of the report; what an earlier report left there is replaced.
        score: the score column; may be left out for our own tables, and where it is `score`.
        formula: as in `engine.formula`; without one the default model is built from the table.
        family: of the mixed model.
        study: the study's name; by default what the table says.

    Raises:
        AnalysisError: the table, column, formula or model cannot be analysed, in one line.
    """
    raw = results if isinstance(results, pd.DataFrame) else read(results)
    folder = None if isinstance(results, pd.DataFrame) else _folder(Path(results))
    source = "a table in memory" if isinstance(results, pd.DataFrame) else Path(results).name
    if score is None and set(NEEDED) <= set(raw.columns):
        frame = from_results(raw)
        try:
            found = fitted(raw, frame, folder=folder, formula=formula, family=family)
            page = _study_page(found, _title(study, raw), source)
        except NoModel as error:
            if formula is not None:
                raise
            page = _plain_page(raw, frame, (source, folder), (_title(study, raw), str(error)))
    else:
        page = _stranger_page(_strangers(raw, score, formula, family), source)
    return write(page, _writable(Path(out)))


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _writable(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AnalysisError(f"out={out}: cannot be written ({error.strerror})") from error
    return out


def _title(study: str | None, raw: pd.DataFrame) -> str:
    """Return the study's name, as given or as the table has it; "" where it has none."""
    names = list(raw["study"].dropna().astype(str).unique()) if "study" in raw else []
    name = study or (names[0] if len(names) == 1 else "")
    return "" if name == "none" else name


def _question(folder: Path | None) -> str:
    """Return what the study asks, as the sweep wrote it beside its table; "" where it did not."""
    about = folder / "study.json" if folder is not None else None
    if about is None or not about.is_file():
        return ""
    return str(json.loads(about.read_text(encoding="utf-8")).get("question") or "")


def _study_page(study: Study, name: str, source: str) -> Page:
    sections = [
        findings.section(study),
        paper.section(study) if name in PAPER_STUDIES and len(study.dose) else None,
        overview.section(study.raw, study.folder),
        dose.section(study),
        many_arms.section(study),
        arms.adapters(study),
        arms.trade_off(study),
        arms.best(study),
        settings.section(study),
        checks.controls(study),
        heldout.section(study.frame),
        memorised.section(study.frame),
        checks.model(study),
        checks.diagnostics(study),
        methods.section(study),
    ]
    return Page(
        title=f"Study {name}" if name else "Study",
        question=_question(study.folder),
        source=source,
        version=_version(),
        sections=tuple(part for part in sections if part is not None),
        facts=tuple((k, f"{v:,}") for k, v in overview.counts(study.raw).items()),
        warnings=findings.warnings(study),
    )


def _plain_page(
    raw: pd.DataFrame,
    frame: pd.DataFrame,
    place: tuple[str, Path | None],
    told: tuple[str, str],
) -> Page:
    """Return the page of results that no model can be fitted to, and say why."""
    (source, folder), (name, reason) = place, told
    sections = [
        memorised.section(frame) or plain.findings(frame),
        overview.section(raw, folder),
        overview.tuning(raw),
        plain.scores(frame),
        heldout.section(frame),
    ]
    return Page(
        title=f"Study {name}" if name else "Study",
        question=_question(folder),
        source=source,
        version=_version(),
        sections=tuple(part for part in sections if part is not None),
        facts=tuple((k, f"{v:,}") for k, v in overview.counts(raw).items()),
        warnings=(("No model of the scores.", f"{reason.removeprefix('table: ').rstrip('.')}."),),
    )


def _strangers(
    raw: pd.DataFrame, score: str | None, formula: str | None, family: str
) -> stranger.Fitted:
    frame = from_table(raw, score or "score")
    reasons = [GIVEN]
    if formula is None:
        formula, reasons = default_formula(frame)
    return stranger.Fitted(frame, fit_mixed(frame, formula, family), tuple(reasons))


def _stranger_page(found: stranger.Fitted, source: str) -> Page:
    sections: list[Section] = stranger.sections(found)
    warned = ("Not converged.", "No interval here is to be used; simplify the model.")
    warnings = () if found.fit.converged else (warned,)
    facts = (
        ("rows", f"{len(found.frame):,}"),
        ("columns", f"{found.frame.shape[1]:,}"),
        ("coefficients", f"{len(found.fit.fixef):,}"),
    )
    title = f"Regression report: {found.score}"
    return Page(title, source, _version(), tuple(sections), facts=facts, warnings=warnings)


def _version() -> str:
    try:
        return metadata.version("ablate")
    except metadata.PackageNotFoundError:
        return ""
