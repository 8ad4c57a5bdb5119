"""The headline findings in plain words: only what the intervals support.

Every sentence carries its number and interval; what is not distinguishable is said to be so, with
the minimum detectable effect.
"""

import math
from collections.abc import Hashable, Iterator, Mapping

import pandas as pd

from analysis.curve.best import IN_DOUBT
from analysis.inference.optimum import INTERIOR
from analysis.questions.adapters.section import arm_differences
from analysis.questions.adapters.section import not_compared as arms_not_compared
from analysis.questions.controls.estimate import controls
from analysis.questions.controls.false_positives import measured_rates
from analysis.questions.heldout import section as heldout
from analysis.questions.plw.estimate import dose
from analysis.questions.settings.section import not_compared as settings_not_compared
from analysis.questions.tradeoff.estimate import arms
from analysis.regression.study import SCREENING_SEEDS, Study
from analysis.report import words
from analysis.report.headline import CLEAR, UNCLEAR, UNKNOWN, WITHIN
from analysis.report.page import Block, Head, Item, Listing, Section, Text
from analysis.report.trust import false_positive_line

ALPHA = 0.05


def section(study: Study) -> Section:
    """Return the headline findings."""
    blocks: list[Block] = []
    for head, entries in (
        ("Prompt loss weight", tuple(_dose(study))),
        ("Adapters", tuple(_arms(study))),
        ("Held-out loss", tuple(heldout.findings(study.frame, df=study.df))),
        ("Controls", tuple(_controls(study))),
    ):
        if entries:
            blocks += [Head(head), Listing(entries, style="findings")]
    if not blocks:
        blocks = [Text("The table holds no comparison that this report knows; see the model.")]
    summary = "Every effect in words, with what is not distinguishable."
    return Section("findings", "Findings", tuple(blocks), summary)


def warnings(study: Study) -> tuple[tuple[str, str], ...]:
    """Return the warnings that stand above all findings."""
    found = []
    if not study.fit.converged:
        text = "Nothing is concluded from the model's intervals; see the diagnostics."
        found.append(("Not converged.", text))
    found += [("Not in the model.", text) for text in study.left_out]
    lost = (*arms_not_compared(study), *settings_not_compared(study))
    found += [("Not compared.", text) for text in lost]
    if study.screening:
        count = {1: "One seed", 2: "Two seeds"}[study.seeds]
        text = (
            f"{count} per cell can screen, not conclude: use what follows to choose what to run "
            f"with more than {SCREENING_SEEDS} seeds."
        )
        found.append(("Screening.", text))
    return tuple(found)


def _dose(study: Study) -> Iterator[Item]:
    """Yield a line per panel of the curved modes, and one per mode with a single weight."""
    table = dose(study)
    if not len(table) or not study.fit.converged:
        return
    curved = table[table["curved"]]
    for row in curved.sort_values("p_any_holm", kind="stable").to_dict("records"):
        yield _panel(row, several=curved["mode"].nunique() > 1)
    lines = table[~table["curved"]]
    for mode, own in lines.groupby("mode", observed=True, sort=False):
        yield _one_level(str(mode), own)


def _panel(row: Mapping[Hashable, object], *, several: bool) -> Item:
    group = words.group_text(str(row["task_group"]))
    data = words.data_text(str(row["dataset_type"]))
    where = f"{group}, {data}" + (f", masking {row['mode']}" if several else "")
    effect = _number(row, "effect")
    if not math.isfinite(effect):
        return Item(f"{where}: PLW 1 against PLW 0 {UNKNOWN}: {row['because']}.", UNKNOWN, "warn")
    size = (
        f"PLW 1 scores {words.signed(effect)} points against PLW 0 "
        f"({words.interval(_number(row, 'low'), _number(row, 'high'))})"
    )
    if row["optimum"] == INTERIOR and _number(row, "p_any_holm") < ALPHA:
        return Item(f"{where}: {_inside(row)}", "interior optimum", "clear")
    if row["optimum"] == IN_DOUBT and _number(row, "p_any_holm") < ALPHA:
        text = (
            f"{where}: the score changes with PLW and the fitted quadratic has its maximum inside, "
            f"but {row['because']}."
        )
        return Item(text, IN_DOUBT, "warn")
    if _number(row, "p_holm") < ALPHA:
        return Item(f"{where}: {size}; {row['because']}.", "distinguishable", "clear")
    if _number(row, "p_any_holm") < ALPHA:
        text = f"{where}: the score changes with PLW, but its two ends hardly differ: {size}."
        return Item(text, "distinguishable", "clear")
    if row["verdict"] == WITHIN:
        margin = f"{_number(row, 'margin'):g}"
        text = f"{where}: {size}: any effect of PLW 1 is smaller than {margin} points."
        return Item(text, f"within ±{margin}")
    return Item(f"{where}: {size}; {_unseen(row)}.", "not distinguishable")


def _unseen(row: Mapping[Hashable, object]) -> str:
    """Say why an effect is not taken for one: its interval, or the number of comparisons."""
    if _number(row, "p") < ALPHA:
        return (
            "zero lies outside this one interval, but not after adjustment for the number of "
            f"comparisons (p = {_number(row, 'p_holm'):.2g})"
        )
    return f"the minimum detectable effect is {_number(row, 'mde'):.1f} points"


def _inside(row: Mapping[Hashable, object]) -> str:
    best, low, high = (
        words.plw_text(_number(row, name)) for name in ("best_plw", "plw_low", "plw_high")
    )
    return (
        f"best at PLW {best} (95 % interval {low} to {high}), "
        f"{words.signed(_number(row, 'gain'))} points above PLW 0 (s.e. "
        f"{_number(row, 'gain_se'):.1f})."
    )


def _number(row: Mapping[Hashable, object], name: str) -> float:
    return float(str(row[name]))


def _one_level(mode: str, own: pd.DataFrame) -> Item:
    """Say in one line what a masking mode with one weight does against PLW 0."""
    clear, head = own[own["p_holm"] < ALPHA], f"masking {mode} against no prompt weight"
    unknown = own[own["effect"].isna()]
    lost = "" if not len(unknown) else (
        f" {len(unknown)} {UNKNOWN}: {unknown['because'].iloc[0]}."
    )  # fmt: skip
    if len(unknown) == len(own):
        return Item(f"{head}:{lost}", UNKNOWN, "warn")
    if not len(clear):
        low, high = own["mde"].min(), own["mde"].max()
        seen = f"the minimum detectable effect is {words.span(low, high)} points"
        tried = len(own) - len(unknown)
        return Item(f"{head}: no difference in {tried} comparisons; {seen}.{lost}", UNCLEAR)
    said = "; ".join(
        f"{words.group_text(str(r.task_group))}, {words.data_text(str(r.dataset_type))} "
        f"{words.signed(float(str(r.effect)))} points "
        f"({words.interval(float(str(r.low)), float(str(r.high)))})"
        for r in clear.itertuples()
    )
    text = f"{head}, {len(clear)} of {len(own)} comparisons: {said}.{lost}"
    return Item(text, CLEAR, "clear")


def _arms(study: Study) -> Iterator[Item]:
    changes = arms(study)
    for row in changes.to_dict("records") if len(changes) else []:
        if row["adapter"] == "full":
            yield _full(row, several=changes["model"].nunique() > 1)
    table = arm_differences(study)
    if not len(table):
        return
    for (dataset, side), own in table.groupby(["dataset", "side"], sort=False):
        yield _against(own, f"{dataset}, {words.SIDES[str(side)]}")


def _full(row: Mapping[Hashable, object], *, several: bool) -> Item:
    """Say what full fine-tuning learns and forgets; intervals that hold zero are called so."""
    parts = []
    for name, said in (("learning", "target tasks"), ("forgetting", "source tasks")):
        mean, low, high = (_number(row, f"{name}{end}") for end in ("", "_low", "_high"))
        sign = 1 if name == "learning" else -1
        low, high = sorted((sign * low, sign * high))
        parts.append(f"{words.signed(sign * mean)} points on {said} ({words.interval(low, high)})")
    where = f"{row['dataset']}, {row['model']}" if several else f"{row['dataset']}"
    text = f"{where}: full fine-tuning against the untouched base: {', '.join(parts)}."
    return Item(text, "learning, forgetting")


def _against(own: pd.DataFrame, where: str) -> Item:
    """Say which arms differ from the reference on one side of one data set."""
    clear = own[own["verdict"] == CLEAR]
    against = own["against"].iloc[0]
    rest, same = (list(own.loc[own["verdict"] == v, "arm"]) for v in (UNCLEAR, WITHIN))
    within = f" No effect beyond the margin: {', '.join(same)}." if same else ""
    if not len(clear):
        low, high = own["mde"].min(), own["mde"].max()
        seen = f"the minimum detectable effect is {words.span(low, high)} points"
        text = f"{where}: {', '.join(own['arm'])} against {against}; {seen}.{within}"
        return Item(text, UNCLEAR if rest else WITHIN)
    said = ", ".join(
        f"{r.arm} {words.signed(float(str(r.estimate)))} "
        f"({words.plain(float(str(r.low)))} to {words.plain(float(str(r.high)))})"
        for r in clear.itertuples()
    )
    tail = f" Not distinguishable from {against}: {', '.join(rest)}." if rest else ""
    text = f"{where}, points against {against} with 95 % intervals: {said}.{tail}{within}"
    return Item(text, CLEAR, "clear")


def _controls(study: Study) -> Iterator[Item]:
    for found in controls(study.frame):
        if found.tasks != "all" or found.effect is None:
            continue
        seen = found.effect.p < ALPHA
        alarm = found.name == "sham" and seen
        tag = "alarm" if alarm else "distinguishable" if seen else "not distinguishable"
        tone = "warn" if alarm else "clear" if seen else ""
        head = {"sham": "A/A", "placebo": "placebo weights", "shuffled": "shuffled prompts"}
        text = f"{head[found.name]}: {words.estimate_text(found.effect)}; {found.verdict}"
        text += (
            "." if seen else f"; the minimum detectable effect is {found.effect.mde:.1f} points."
        )
        yield Item(text, tag, tone)
    yield from false_positive_line(measured_rates(study))
