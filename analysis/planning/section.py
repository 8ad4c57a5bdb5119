"""The report's section on the frozen analysis plan: its tests, and whether it was kept to."""

import time
from pathlib import Path

import pandas as pd
from scipy.stats import norm

from analysis.errors import AnalysisError
from analysis.inference.estimates import Estimate, equivalence, holm
from analysis.planning.frozen import Frozen, Held, held, panel_name, read_frozen
from analysis.planning.sequential import boundaries, repeated_p
from analysis.questions.plw.estimate import dose_table
from analysis.regression.study import UNADJUSTED, Study
from analysis.report import words
from analysis.report.page import Block, Item, Listing, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table
from analysis.table.records import read_record
from analysis.table.run_panels import CURVE

KEY = "frozen"
HEADS = {**words.HEADS, "effect": "PLW 1 − PLW 0", "low": "low", "high": "high"}


def section(study: Study) -> Section | None:
    """Return the section; None where no plan lies beside the results."""
    if study.plan is None:
        return None
    try:
        plan = read_frozen(study.plan)
    except AnalysisError as error:
        broken = Item(f"{error}.", "broken", "warn")
        return _page(Text("Nothing here is confirmatory."), Listing((broken,)))
    trained = study.frame[~study.frame["is_base"]]
    runs = sorted(trained["run"].astype(str).unique())
    finished = _finished(study.folder, runs)
    found = held(plan, formula=study.formula, runs=runs, finished=finished)
    seeds = len(plan.seeds if not plan.looks else _seeds(plan, runs))
    rest = Item("All else in this report is exploratory and not adjusted for repeated looks.")
    listing = Listing((*_kept(plan, found, seeds), rest))
    return _page(Text(_told(plan)), listing, *_tests(study, plan, seeds))


def formula_of(plan: Path | None) -> str | None:
    """Return the formula of the plan in a file; None where there is no plan, or a broken one."""
    try:
        return None if plan is None else read_frozen(plan).formula
    except AnalysisError:
        return None


def _page(*blocks: Block) -> Section:
    return Section(KEY, "Planned before the data", blocks)


def _seeds(plan: Frozen, runs: list[str]) -> set[int]:
    """Return the plan's seeds of which there are runs."""
    there = set(runs)
    return {s for r, s in zip(plan.runs, plan.seed_of, strict=True) if r in there}


def _kept(plan: Frozen, found: Held, seeds: int) -> list[Item]:
    """Return whether the plan was kept to, and at which look the study is."""
    kept = (
        "The main model was fitted as frozen, to the runs as planned: its tests are confirmatory."
    )
    lines = [Item(kept, "as frozen", "clear")] if found.confirmatory else []
    lines += [Item(said, "deviates", "warn") for said in found.words]
    if plan.looks and seeds in plan.looks:
        at = plan.looks.index(seeds)
        bound = _boundary(plan, seeds)
        text = (
            f"Look {at + 1} of {len(plan.looks)}, at {seeds} of {len(plan.seeds)} seeds: a test "
            f"ends here if |z| is at least {bound:.2f} (p at most {2 * norm.sf(bound):.2g} by "
            f"itself); {plan.spending.replace('_', ' ')} spending of {plan.alpha:g}."
        )
        lines.append(Item(text, "look"))
    elif plan.looks:
        there = words.count(seeds, "seed")
        text = f"{there}: the plan looks at {', '.join(map(str, plan.looks))}; no test is due now."
        lines.append(Item(text, "no look", "warn"))
    return lines


def _boundary(plan: Frozen, seeds: int) -> float:
    shares = plan.shares[: plan.looks.index(seeds) + 1]
    return float(boundaries(shares, alpha=plan.alpha, spending=plan.spending)[-1])


def _tests(study: Study, plan: Frozen, seeds: int) -> tuple[Block, ...]:
    """Return the table of the frozen tests; none where the plan has none or none is due."""
    if not plan.tests or (plan.looks and seeds not in plan.looks):
        return ()
    try:
        table = dose_table(study.curves, margin=plan.margin)
    except AnalysisError as error:
        return (Text(f"The frozen tests cannot be made from this fit: {error}."),)
    names = [panel_name(row) for row in table.to_dict("records")]
    lost = [name for name in plan.tests if name not in names]
    own = table[[name in plan.tests for name in names]]
    note = (
        f"Estimates in points; verdicts hold after Holm's adjustment over the {len(own)} tests, "
        f"against a margin of {plan.margin:g} points."
    )
    if plan.looks:
        note += " Intervals and p-values hold at all looks together."
    if lost:
        note += f" Frozen but not in the table: {'; '.join(lost)}."
    shown = Table("frozen_tests", "Frozen tests", _rows(own, plan, seeds), note, HEADS, FORMATS)
    return (Sheet(shown, open=True),)


FORMATS = {
    "effect": "+.2f", "low": "+.2f", "high": "+.2f", "p": P_VALUE, "p_holm": P_VALUE,
}  # fmt: skip


def _rows(table: pd.DataFrame, plan: Frozen, seeds: int) -> pd.DataFrame:
    """Return the tests with intervals, p-values and verdicts that hold at the plan's looks."""
    level, p = 1 - plan.alpha, table["p"].tolist()
    if plan.looks:
        level = 1 - float(2 * norm.sf(_boundary(plan, seeds)))
        shares = plan.shares[: plan.looks.index(seeds) + 1]
        p = repeated_p(p, shares, spending=plan.spending)
    adjusted = holm(p)
    rows = []
    for row, own, both in zip(table.to_dict("records"), p, adjusted, strict=True):
        effect = Estimate("", row["effect"], row["se"], row["df"], level)
        verdict = equivalence(effect, plan.margin).verdict
        verdict = verdict if both < plan.alpha else UNADJUSTED.get(verdict, verdict)
        verdict = verdict if row["replicated"] else row["verdict"]
        rows.append(
            {name: row[name] for name in CURVE}
            | {"effect": effect.estimate, "low": effect.low, "high": effect.high}
            | {"p": own, "p_holm": both, "verdict": verdict}
        )
    return pd.DataFrame(rows)


def _told(plan: Frozen) -> str:
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(plan.written))
    return (
        f"Frozen on {when}, SHA-256 {plan.sha256[:16]}: {plan.formula}; "
        f"{words.count(len(plan.runs), 'run')} over {words.count(len(plan.seeds), 'seed')}; "
        f"smallest effect of interest {plan.margin:g} points."
    )


def _finished(folder: Path | None, runs: list[str]) -> dict[str, float]:
    """Return when the runs ended, as their records say."""
    ended = {run: read_record(folder, run).get("provenance", {}).get("finished") for run in runs}
    return {run: float(when) for run, when in ended.items() if when is not None}
