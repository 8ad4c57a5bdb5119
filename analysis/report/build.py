"""Builds the report: `build(results, out)` writes one self-contained page with its files.

OUT/index.html    the page, which needs nothing but itself
OUT/tables/       every table as CSV with all digits, and as LaTeX
OUT/figures/      every figure as SVG and PNG
"""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TypedDict, Unpack

import pandas as pd

from analysis.errors import AnalysisError, as_path
from analysis.explorer.payload import payload, table_payload
from analysis.papers.instruction_modelling import section as modelling
from analysis.papers.lora_tradeoffs import section as tradeoffs
from analysis.papers.mora import memorisation_section as memorised
from analysis.papers.mora import section as mora
from analysis.papers.plw import section as paper
from analysis.papers.wit import section as weight_pairs
from analysis.planning import section as frozen_plan
from analysis.planning.frozen import FILE, read_frozen
from analysis.questions.adapters import many_section
from analysis.questions.adapters import section as arms
from analysis.questions.controls import section as checks
from analysis.questions.decomposition import section as decomposition
from analysis.questions.heldout import section as heldout
from analysis.questions.informative import section as informative
from analysis.questions.judging import section as judging
from analysis.questions.leaderboard import section as leaderboard
from analysis.questions.noise import section as items
from analysis.questions.own_rate import section as own_rate
from analysis.questions.plw import rank_section, shape_section
from analysis.questions.plw import section as dose
from analysis.questions.plw.headline_section import headlines as plw_headlines
from analysis.questions.plw.headline_section import remarks as plw_remarks
from analysis.questions.settings import section as settings
from analysis.questions.step_size import section as step_size
from analysis.questions.tradeoff import section as tradeoff
from analysis.questions.tuning import section as tuning
from analysis.questions.when_to_mask import section as when_to_mask
from analysis.regression import external, headlines, methods, not_compared, panel_sections
from analysis.regression.default_model import ONE_SEED
from analysis.regression.model import Regression, Request, analysed
from analysis.regression.numbers import Numbers, mean
from analysis.regression.sections import described
from analysis.regression.study import NoModel, Study, fitted
from analysis.report import first_screen, lost_rows, overview, plain, plugged
from analysis.report.headline import Headline
from analysis.report.page import Page, Section, write
from analysis.report.trust import trust, trusted, warnings
from analysis.table.columns import is_results, plain_types
from analysis.table.frame import from_results, read


@dataclass(frozen=True, slots=True)
class Part:
    """What a question adds to the page of a study: a section, and lines of the first screen."""

    key: str  # of the section
    section: Callable[[Study], Section | None]
    headlines: Callable[[Study], list[Headline]] | None = None


# The page of a study in its order; a question enters the report by a line here.
PARTS = (
    Part(frozen_plan.KEY, frozen_plan.section),
    Part(paper.KEY, paper.section),
    Part(modelling.KEY, modelling.section),
    Part(mora.KEY, mora.section),
    Part(tradeoffs.KEY, tradeoffs.section),
    Part(overview.KEY, lambda study: overview.section(study.raw, study.folder)),
    Part(when_to_mask.KEY, when_to_mask.section, when_to_mask.headlines),
    Part(weight_pairs.KEY, weight_pairs.section, weight_pairs.headlines),
    Part(own_rate.KEY, own_rate.section, own_rate.headlines),
    Part(step_size.KEY, step_size.section, step_size.headlines),
    Part(dose.KEY, dose.section, plw_headlines),
    Part(shape_section.KEY, shape_section.section),
    Part(rank_section.KEY, rank_section.section),
    Part(decomposition.KEY, decomposition.section),
    Part(many_section.KEY, many_section.section),
    Part(arms.KEY, arms.adapters, arms.headlines),
    Part(tradeoff.KEY, tradeoff.section),
    Part(leaderboard.KEY, leaderboard.section),
    Part(items.KEY, items.section),
    Part(informative.KEY, informative.section),
    Part(settings.KEY, settings.section, settings.headlines),
    Part(checks.KEY, checks.controls),
    Part(heldout.KEY, lambda study: heldout.section(study.frame, df=study.df)),
    Part(memorised.KEY, lambda study: memorised.section(study.frame)),
    Part(judging.KEY, lambda study: judging.section(study.folder)),
)


def parts() -> tuple[Part, ...]:
    """Return the parts of the page of a study: these, then those of other installed packages."""
    others = (
        Part(p.name, partial(plugged.section, p), partial(plugged.headlines, p))
        for p in plugged.points()
    )
    return (*PARTS, *others)


# Sections of published figures beside ours, each on the page of one study alone.
OF_A_STUDY: dict[Callable[[Study], Section | None], str] = {
    paper.section: "plw",
    modelling.section: "instruction_modelling",
    mora.section: mora.NAME,
    tradeoffs.section: "lora_tradeoffs",
}


class Asked(TypedDict, total=False):
    """What may be asked of a report of any table, see `build`."""

    score: str | None
    formula: str | None
    family: str | None
    weights: str | None
    df: str | None
    margin: float | None
    higher_is_better: bool | None


SELDOM = 50_000  # objects made before the collector looks at them


@contextmanager
def _small_tables() -> Iterator[None]:
    """Set pandas and Python up for the thousands of small tables of a page.

    Text in plain objects is a fifth quicker there than in Arrow's buffers, and the collector, which
    would look for cycles some 7,000 times, finds few.
    """
    before = gc.get_threshold()
    gc.set_threshold(SELDOM, *before[1:])
    try:
        with pd.option_context("mode.string_storage", "python"):
            yield
    finally:
        gc.set_threshold(*before)


@_small_tables()
def build(
    results: pd.DataFrame | str | Path,
    out: str | Path,
    *,
    study: str | None = None,
    frozen: str | Path | None = None,
    folder: Path | None = None,
    prompts: pd.DataFrame | None = None,
    **asked: Unpack[Asked],
) -> Path:
    """Write the report of a results table, or of any long table, and return its index.html.

    Args:
        results: a table, or a .parquet, .csv or .tsv file, or a folder with results.parquet.
        out: the folder of the report; what an earlier report left there is replaced.
        study: the study's name; by default what the table says.
        frozen: a frozen analysis plan; by default the one that lies beside the table, if any.
        folder: the folder of results that the table is of; by default the one it lies in.
        prompts: task, doc_id and prompt of a study's items, for the explorer of its page.
        asked: of any table: score, its column, which may be left out for our own tables and where
            its name says so; formula, as in `engine.formula`, without which one is proposed;
            family; weights, a column; df, the rule for degrees of freedom; margin, of equivalence;
            higher_is_better, where the score's name does not say which way is better.

    Raises:
        AnalysisError: the table, column, formula or model cannot be analysed, in one line.
    """
    request = Request(**asked)
    raw = plain_types(results) if isinstance(results, pd.DataFrame) else read(results)
    folder = folder or (None if isinstance(results, pd.DataFrame) else _folder(Path(results)))
    source = "a table in memory" if isinstance(results, pd.DataFrame) else Path(results).name
    if is_results(raw.columns):
        page = _results_page(raw, (source, folder), (request, frozen), study, prompts)
    else:
        refuse_plan(frozen)
        page = _external_page(analysed(raw, request), source)
    return write(page, _writable(as_path("out", out)))


def _results_page(
    raw: pd.DataFrame,
    place: tuple[str, Path | None],
    asked: tuple[Request, str | Path | None],
    name: str | None,
    prompts: pd.DataFrame | None,
) -> Page:
    """Return the page of a results table; without a model where nothing of it was asked for."""
    (source, folder), (request, frozen) = place, asked
    frame = from_results(raw)
    try:
        found = fitted_study(raw, frame, folder, request, frozen=frozen)
    except NoModel as error:
        given = {n: getattr(request, n) for n in Request.__slots__} | {"frozen": frozen}
        wanted = [f"{n}={v}" for n, v in given.items() if v is not None]
        if wanted:
            raise AnalysisError(f"{wanted[0]}: no model can be fitted here; {error}") from error
        return _plain_page(raw, frame, place, (_title(name, raw), str(error)))
    page = _study_page(found, _title(name, raw), source)
    return replace(page, explorer=payload(found, prompts, page.warnings))


def fitted_study(
    raw: pd.DataFrame,
    frame: pd.DataFrame,
    folder: Path | None,
    request: Request,
    *,
    frozen: str | Path | None = None,
) -> Study:
    """Return the study of a results table as its report is written from it.

    Args:
        raw: the results table as it stands.
        frame: the same, prepared.
        folder: where it lies; None for a table in memory.
        request: what the user asked for.
        frozen: the file of a frozen plan; by default the one in the folder, if any.

    Raises:
        NoModel: no model can be fitted to these results.
        AnalysisError: an option that cannot be carried out.
    """
    plan = _plan(frozen, folder)
    planned = frozen_plan.formula_of(plan)
    return fitted(raw, frame, folder=folder, request=request, plan=plan, planned=planned)


def refuse_plan(frozen: str | Path | None) -> None:
    """Refuse a frozen plan for an external table."""
    if frozen is not None:
        raise AnalysisError(
            f"frozen={frozen}: a frozen plan names the runs of a results folder, which a table "
            f"from elsewhere has none of; give its formula by formula="
        )


def _plan(frozen: str | Path | None, folder: Path | None) -> Path | None:
    """Return the file of the frozen plan that was named, or that lies beside the table."""
    if frozen is not None:
        if not as_path("frozen", frozen).is_file():
            raise AnalysisError(f"frozen={frozen}: there is no such file")
        read_frozen(Path(frozen))  # named, it must be a plan; one beside the table may be broken
        return Path(frozen)
    beside = folder / FILE if folder is not None else None
    return beside if beside is not None and beside.is_file() else None


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
    try:
        return str(json.loads(about.read_text(encoding="utf-8")).get("question") or "")
    except (OSError, ValueError, AttributeError):  # damaged; the next sweep writes it anew
        return ""


def _study_page(study: Study, name: str, source: str) -> Page:
    shown = [p for p in parts() if OF_A_STUDY.get(p.section, name) == name]
    sections = [
        *(part.section(study) for part in shown),
        *panel_sections.models(
            study,
            methods.About(
                (overview.design(study.raw),), methods.practice(study), methods.study_facts(study)
            ),
        ),
    ]
    return Page(
        title=f"Study {name}" if name else "Study",
        question=_question(study.folder),
        source=source,
        version=version(),
        first=_first(study),
        sections=tuple(part for part in sections if part is not None),
        facts=tuple((k, f"{v:,}") for k, v in overview.counts(study.raw).items()),
        warnings=warnings(study),
        trusted=trusted(study),
    )


def study_headlines(study: Study) -> list[Headline]:
    """Return every headline effect of a study, question by question."""
    return [one for part in parts() if part.headlines for one in part.headlines(study)]


def _first(study: Study) -> Section:
    """Return the first screen of a study."""
    return first_screen.section(
        study_headlines(study),
        status=study.status,
        trust=trust(study),
        best=leaderboard.best_settings(study),
        remarks=plw_remarks(study),
        note="" if study.replicated else ONE_SEED,
        questions=study.questions,
    )


def _plain_page(
    raw: pd.DataFrame,
    frame: pd.DataFrame,
    place: tuple[str, Path | None],
    said: tuple[str, str],
) -> Page:
    """Return the page of results that no model can be fitted to, and say why."""
    (source, folder), (name, reason) = place, said
    heart = memorised.section(frame)
    nothing = heart.summary if heart else plain.NOTHING  # such a study has an answer of its own
    sections = [
        mora.without_model(frame, raw, folder) if name == mora.NAME else None,
        heart,
        overview.section(raw, folder),
        tuning.rates(raw),
        tuning.budget(raw),
        plain.scores(frame),
        heldout.section(frame),
        judging.section(folder),
    ]
    return Page(
        title=f"Study {name}" if name else "Study",
        question=_question(folder),
        source=source,
        version=version(),
        first=first_screen.section(heldout.headlines(frame), nothing=nothing),
        sections=tuple(part for part in sections if part is not None),
        facts=tuple((k, f"{v:,}") for k, v in overview.counts(raw).items()),
        warnings=(
            *lost_rows.warning(raw, folder),
            ("No model of the scores.", f"{reason.removeprefix('table: ').rstrip('.')}."),
        ),
    )


def external_sections(reg: Regression, found: Numbers) -> tuple[Section, ...]:
    """Return the sections of the page of a table that is not a study's, in its order."""
    return (*external.sections(reg, found), *described(reg))


def _external_page(reg: Regression, source: str) -> Page:
    found, unasked = Numbers.of(reg), not_compared.rows(reg)
    first = first_screen.section(
        headlines.headlines(reg, found),
        status=reg.status,
        trust=headlines.trust(reg),
        best=headlines.best_levels(reg, found),
        remarks=headlines.remarks(reg, found),
        method=headlines.method(reg),
        nothing=first_screen.NOTHING if len(found.joint) else mean(reg),
        note=" ".join(unasked["words"]) if len(unasked) else "",
    )
    facts = (
        ("rows", f"{reg.fit.n:,}"),
        ("left out", f"{reg.dropped:,}"),
        ("coefficients", f"{len(reg.fit.fixef):,}"),
        *((f"levels of {group}", f"{len(e.modes):,}") for group, e in reg.fit.random.items()),
        ("family", reg.family),
        ("fit", reg.status),
    )
    warnings = external.warnings(reg)
    return Page(
        title=f"Regression of {reg.score}",
        source=source,
        version=version(),
        first=first,
        sections=external_sections(reg, found),
        facts=facts,
        warnings=warnings,
        question=reg.fit.formula,
        about="regression report",
        explorer=table_payload(reg, warnings),
    )


def version() -> str:
    """Return this program's version; "" where it is not installed."""
    try:
        return metadata.version("ablate")
    except metadata.PackageNotFoundError:
        return ""
