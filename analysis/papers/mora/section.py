"""MoRA's figures, tables and claims, measured here beside what was published."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.papers.mora import figure as figures
from analysis.papers.mora import published
from analysis.papers.mora.claims import mora_claims
from analysis.papers.mora.histories import loss_curves
from analysis.papers.mora.measures import (
    COUNTS,
    PERPLEXITY,
    GetItems,
    Measured,
    by_kind,
    measured,
    no_items,
)
from analysis.papers.mora.missing import missing
from analysis.papers.mora.runs import (
    CONTINUED,
    INSTRUCTION,
    LORA,
    MATHS,
    PRETRAINING,
    Group,
    groups_of,
)
from analysis.papers.mora.tables import counts_table, maps_table, setting_table
from analysis.papers.verdicts import summary
from analysis.questions.own_rate.estimate import MARGINS, items_of
from analysis.regression.model import MARGIN
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table

KEY, TITLE, NAME = "mora", "MoRA, here and published", "mora"
CANNOT = (
    "What cannot be compared: the paper's models have 250 million to 7 billion parameters, its "
    "data sets and benchmarks are other ones and it has one run a cell, so that levels say nothing "
    "about each other; signs and orders can be compared. Its continued pretraining is scored by "
    "nine benchmarks of medicine and finance, its mathematics by GSM8K and MATH; plain texts of "
    "the embedded world are scored by the perplexity of held-out rows. The curves of figure 4 and "
    "the bars of figure 5 were published without numbers; of the first, the end is in table 3. "
    "Norms train under full tuning alone here, under every arm of pretraining there."
)
HEADS = words.HEADS | {
    "where": "data, rank", "level": "score or perplexity", "level_low": "95 % low ",
    "level_high": "95 % high ", "within": "within", "published_gap": "published, less LoRA",
    "end": "rate at an end", "better": "first is better", "estimate": "difference",
    "pair": "arms",
}  # fmt: skip
FORMATS = dict.fromkeys(
    ("estimate", "low", "high", "mde", "level", "level_low", "level_high", "rate"), ".3g"
) | {"p_holm": P_VALUE}
TITLES = {
    INSTRUCTION: ("Instruction tuning (the paper's table 1)", "mora_instruction"),
    MATHS: ("Mathematics (the paper's table 1)", "mora_mathematics"),
    CONTINUED: ("Continued pretraining (the paper's tables 1, 6 and 7)", "mora_continued"),
    PRETRAINING: ("The end of pretraining (the paper's table 3)", "mora_pretraining"),
}  # fmt: skip
NOTE = (
    "Every arm at its own learning rate: the optimum of its validation loss where three rates or "
    "more were tried, else the best of those tried; numbers are of the test rows. Difference: an "
    "arm less LoRA at the same rank on the same seeds; points, or percent of perplexity (100 times "
    "the difference of the losses), where less is better. Its interval holds seeds, the choice of "
    "the rate and, where the scores of items lie beside the table, the items. n: seeds. p by Holm "
    "over the arms, and so is “within”, the margins of equivalence that hold. The interval of a "
    "level is for comparing arms: what a seed does to all of them is not in it."
)


@dataclass(frozen=True)
class Results:
    """What the section is made from."""

    frame: pd.DataFrame  # prepared
    groups: list[Group]
    found: list[Measured]
    folder: Path | None
    margin: float


def section(study: Study) -> Section | None:
    """Return the section of a study; None without two arms of a data set of the paper."""
    return _section(_results(
        study.frame, study.raw, study.folder, study.margin,
        lambda rows, runs: items_of(study, rows, runs),
    ))  # fmt: skip


def without_model(frame: pd.DataFrame, raw: pd.DataFrame, folder: Path | None) -> Section | None:
    """Return the section of results that no model of the scores can be fitted to."""
    return _section(_results(frame, raw, folder, MARGIN, no_items))


def _results(
    frame: pd.DataFrame, raw: pd.DataFrame, folder: Path | None, margin: float, items: GetItems
) -> Results:
    groups = groups_of(frame, raw)
    return Results(frame, groups, measured(groups, frame, items), folder, margin)


def _section(results: Results) -> Section | None:
    if not results.found:
        return None
    claims = mora_claims(results.found, results.margin)
    curves = [(one, loss_curves(one.found, results.folder)) for one in _pretrained(results)]
    blocks = [
        Text(missing(results.groups, results.found, drawn=any(len(c) for _, c in curves))),
        Text(CANNOT),
        *_claims(results, claims),
        *_tables(results),
        *_curves(curves),
        *_spectra(results),
        *_published(),
    ]
    return Section(KEY, TITLE, tuple(b for b in blocks if b != Text("")), _lead(claims))


def _pretrained(results: Results) -> list[Measured]:
    return [
        one
        for one in results.found
        if one.group.setting == PRETRAINING and one.measure == PERPLEXITY
    ]


def _lead(claims: pd.DataFrame) -> str:
    """Return how many claims have which verdict."""
    table = summary(claims)
    parts = [f"{len(own)} {said}" for said, own in table.groupby("verdict", sort=False)]
    return f"Of {len(table)} claims: {', '.join(parts)}."


def _claims(results: Results, claims: pd.DataFrame) -> Iterator[Block]:
    note = (
        "Jiang et al., arXiv 2405.12130; (ours): what the paper left out. Each claim on each data "
        "set and rank, by benchmarks where there are any, else by perplexity; n: seeds. Intervals "
        "are 95 % each, not adjusted for their number. “On a par” is tested by equivalence at each "
        f"margin; elsewhere the margin is ±{results.margin:g}. MDE: the smallest difference that "
        "would have been found with 80 % power. Published: one run a cell, no interval."
    )
    yield Sheet(Table("mora_claims_summary", "The paper's claims: verdicts", summary(claims), note),
                open=True)  # fmt: skip
    yield Sheet(
        Table("mora_claims", "The paper's claims, one by one", claims, note, HEADS, FORMATS)
    )


def _tables(results: Results) -> Iterator[Block]:
    for setting, (title, name) in TITLES.items():
        table = setting_table(results.found, setting)
        if not len(table):
            continue
        if (table["arm"] != LORA).any() and "estimate" in table:
            caption = (
                f"{title}: every arm less LoRA at the same rank. Ours: each at its own rate, 95 % "
                "intervals; hollow: not distinguishable after Holm. Bands: "
                f"±{MARGINS[0]:g} and ±{MARGINS[1]:g} points or percent. Grey, on the right: "
                "published, one run a cell, no intervals."
            )
            drawn = figures.differences(table, _theirs(results, setting), setting)
            yield Plate(name, drawn, caption)
        shown = table if (table["end"] != "").any() else table.drop(columns="end")
        yield Sheet(Table(f"{name}_arms", title, shown, NOTE, HEADS, FORMATS))
    maps = maps_table(results.found, results.margin)
    if len(maps):
        note = (
            "Differences of MoRA's maps on the same seeds, each at its own rate; the paper's order "
            "is rotation, decoupling, sharing, truncation. Less perplexity is better."
        )
        yield Sheet(
            Table("mora_maps", "The maps (the paper's table 4)", maps, note, HEADS, FORMATS)
        )


def _theirs(results: Results, setting: str) -> pd.DataFrame:
    """Return the published differences to LoRA of every arm of a part of the paper that ran."""
    groups = {g.where: g for g in results.groups if g.setting == setting}
    parts = [
        published.differences(setting, arm, LORA, g.budget).assign(where=g.where, arm=arm)
        for g in groups.values()
        for arm in g.arms
        if arm != LORA
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _curves(curves: Sequence[tuple[Measured, pd.DataFrame]]) -> Iterator[Block]:
    for number, (one, table) in enumerate(curves):
        if not len(table):
            continue
        caption = (
            f"The paper's figure 4: training loss from random weights, {one.group.where}. Means "
            "over seeds of the runs at each arm's best rate tried, smoothed over the steps within "
            "a tenth of each; bands: 95 % intervals for comparing arms, without what a seed does "
            "to all of them. The left panel leaves out the first steps' losses. Grey: published, "
            "the logarithm of the validation perplexity after 10,000 steps, one run each; the "
            "curves have no numbers, and the full rank was not run."
        )
        suffix = "" if not number else f"_{number + 1}"
        yield Plate(f"mora_curves{suffix}", figures.pretraining(table), caption)


def _spectra(results: Results) -> Iterator[Block]:
    """Yield figure 5 of the groups from random weights, and the counts of all groups."""
    chosen = [g for g in results.groups if g.setting == PRETRAINING] or results.groups[:1]
    for number, group in enumerate(chosen):
        points = by_kind(group, results.frame)
        if not len(points):
            continue
        caption = (
            f"The paper's figure 5: singular values of the change of a matrix, {group.where}: mean "
            "over layers and seeds, each arm at its own rate; 95 % intervals for comparing arms. "
            "The published bars (250M, four arms, above 0.1) have no numbers. A larger change has "
            "more values above 0.1 whatever its shape; the lower panel does not depend on its size."
        )
        suffix = "" if not number else f"_{number + 1}"
        yield Plate(f"mora_spectrum{suffix}", figures.spectrum(points), caption)
    table = counts_table(results.found)
    if len(table):
        note = f"Mean over kinds of matrix and layers; measures: {', '.join(COUNTS)}. {NOTE}"
        title = "Large singular values of the change"
        yield Sheet(Table("mora_spectrum_arms", title, table, note, HEADS, FORMATS))


def _published() -> Iterator[Block]:
    note = (
        "Published, tables 6 and 7: MoRA less LoRA on nine tasks of continued pretraining, one run "
        "each, with the task as the unit (paired t, p by Holm over the ranks); points."
    )
    title = "Published: MoRA − LoRA over the tasks of continued pretraining"
    formats = FORMATS | {"p": P_VALUE}
    yield Sheet(Table("mora_published", title, published.gains(), note, HEADS, formats))
