"""Arms at their own best learning rates: section and headlines of the report."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.questions.own_rate import figure as figures
from analysis.questions.own_rate.estimate import (
    MARGINS,
    WIDTH,
    Compared,
    compared,
    difference_table,
)
from analysis.questions.own_rate.spread import (
    agreement,
    ranges,
    rate_table,
    robustness,
    wrong_rate,
)
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.headline import ALPHA, CLEAR, Headline, of_row, shared, verdict
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table

KEY = "own-rates"
TITLE = "Arms at their own best learning rates"
HEADS = words.HEADS | {
    "half_width": "half width", "seeds_needed": f"seeds for ±{WIDTH:g}", "within": "within",
    "p_within_1": "p within ±1", "p_within_2": "p within ±2", "ends": "at an end",
    "tried": "best tried", "loss_fit": "p of fit, loss", "score_fit": "p of fit, score",
    "other": "other verdicts", "moved": "moved (median)", "most": "moved (most)",
    "lost": "points lost", "factor": "rate times",
}  # fmt: skip
POINTS = dict.fromkeys(
    ("estimate", "low", "high", "mde", "half_width", "moved", "most", "lost", "score"), ".2f"
)
PS = dict.fromkeys(
    ("p", "p_holm", "p_within_1", "p_within_2", "loss_fit", "score_fit"), P_VALUE
)  # fmt: skip
RATES = dict.fromkeys(("rate", "low", "high", "tried"), ".3g")
NOTE = (
    "Each arm at the rate at which its validation loss is lowest, at every batch size and other "
    "setting: the optimum of a quadratic in log2(rate); the score of the test items at that rate "
    "is read off a cubic spline through the means over seeds. The interval holds the noise of "
    "runs, chosen rates and items, with the variances of arms drawn towards each other (Smyth "
    "2004). p is adjusted by Holm over the "
    "arms, those of all data sets and base models together, and by Bonferroni over the page's "
    "questions; the two one-sided tests behind “within” by Holm over this table's arms. "
    "Seeds: over all places. At an end: "
    "places where the best rate of one of the two is the lowest or highest tried."
)


def section(study: Study) -> Section | None:
    """Return the section; None where no arms ran at three rates with a validation loss."""
    every = compared(study)
    if not every:
        return None
    blocks: list[Block] = []
    for number, found in enumerate(every):
        blocks += _blocks(study, found, suffix="" if not number else f"_{number + 1}")
    return Section(KEY, TITLE, tuple(blocks), lead(every[0], _table(study, every[0])))


def _table(study: Study, found: Compared) -> pd.DataFrame:
    tables = study.once("own rates", lambda: _tables(study))
    return tables[tuple(found.labels.values())]


def _tables(study: Study) -> dict[tuple[str, ...], pd.DataFrame]:
    """Return `difference_table` by place, p and verdicts adjusted over all places of a side.

    Their headlines stand on one page, so that several data sets are no several chances.
    """
    made = {tuple(found.labels.values()): difference_table(found) for found in compared(study)}
    for side in {found.labels["side"] for found in compared(study)}:
        own = [tuple(f.labels.values()) for f in compared(study) if f.labels["side"] == side]
        own = [place for place in own if len(made[place])]
        alone = [made[place]["p"].tolist() for place in own]
        adjusted = iter(shared([p for part in alone for p in part], study.questions))
        for place, part in zip(own, alone, strict=True):
            p_holm = [next(adjusted) for _ in part]
            before = made[place]["verdict"]
            said = [old if p != p else verdict(p) for old, p in zip(before, p_holm, strict=True)]
            made[place] = made[place].assign(p_holm=p_holm, verdict=said)
    return made


def _blocks(study: Study, found: Compared, *, suffix: str) -> list[Block]:
    table, place = _table(study, found), study.place(found.labels)
    if not len(table):
        return []
    check, rates = robustness(found), rate_table(found)
    side = words.SIDES[found.labels["side"]]
    caption = (
        f"{place}. Every arm less {found.against}, each at its own best rate: mean over places, "
        f"95 % intervals; small marks: every place. Bands: ±{MARGINS[0]:g} and ±{MARGINS[1]:g} "
        "points. Filled: distinguishable from zero at the 5 % level, p adjusted as in the table."
    )
    by_curve = (
        f"{place}. Score against learning rate, over the untouched base where it was scored: means "
        "over seeds, and cubic splines through them. Large marks: the rate at which the arm's "
        "validation loss is lowest, hollow where that is an end of the rates tried. Scores below "
        "the 2nd percentile are cut off."
    )
    against = f"Arms less {found.against}"
    sheets = (
        _sheet("own_rates", suffix, against, table, NOTE),
        _sheet("own_rate_analyses", suffix, ANALYSES_TITLE, agreement(check), _ABOUT),
        _sheet("own_rate_chosen", suffix, "Chosen rates", rates, _CHOSEN, RATES),
        _sheet("own_rate_checks", suffix, "Every arm by every choice of the rate", check),
        _sheet("own_rate_places", suffix, f"{against}, at every place", _by_place(found)),
        _sheet("own_rate_wrong", suffix, WRONG_TITLE, wrong_rate(found), _WRONG),
    )
    drawn = figures.curves(found, base=_base(study, found))
    return [
        Text(f"{place}: {lead(found, table)}"),
        Plate(
            f"own_rates{suffix}", figures.differences(found.main_differences, table, side), caption
        ),
        Text(_rate_words(found)),
        Text(check_words(check, rates)),
        Plate(f"own_rate_curves{suffix}", drawn, by_curve),
        *(Sheet(sheet, open=not number) for number, sheet in enumerate(sheets)),
    ]


ANALYSES_TITLE = "The same by other choices of the rate"
WRONG_TITLE = "What a rate beside the best one costs"
_ABOUT = (
    "Above and below: arms distinguishable from the one they are compared with. Other verdicts: "
    "arms on another side of zero, or no longer distinguishable, than by the curve through all "
    "rates; p is adjusted by Holm over this place's arms alone, so that analyses compare. Moved: "
    "how far differences are from that analysis, in points. Intervals of the best "
    "rate tried take the choice for given. The other rates: those that every second one leaves out."
)
_CHOSEN = (
    "low, high: Fieller's 95 % interval of the best rate, from what seeds differ in over all "
    "curves, cut to the rates tried. p of fit: F test of a quadratic within any curve; the loss is "
    "one here, the score is not."
)
_WRONG = (
    "Median over curves whose best rate lies inside those tried and which tried the other rate, "
    "on the curve of the score; below zero where the score's best rate is not the loss's."
)


def _sheet(
    name: str,
    suffix: str,
    title: str,
    table: pd.DataFrame,
    note: str = "",
    formats: dict[str, str] | None = None,
) -> Table:
    return Table(f"{name}{suffix}", title, table, note, HEADS, POINTS | PS | (formats or {}))


def _by_place(found: Compared) -> pd.DataFrame:
    """Return every arm less the reference at every place, with unadjusted intervals."""
    rows = [
        {"arm": d.arm, "place": place, "estimate": e.estimate, "low": e.low, "high": e.high,
         "p": e.p, "mde": e.mde}
        for d in found.main_differences for place, e in d.by_place.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _base(study: Study, found: Compared) -> float | None:
    """Return the mean score of the untouched base on the same tasks; None where it has none."""
    frame, labels = study.frame, found.labels
    tasks = set(study.rows.loc[study.rows["side"] == labels["side"], "task"].astype(str))
    own = frame[frame["is_base"] & (frame["model"].astype(str) == labels["model"])]
    own = own[own["task"].astype(str).isin(tasks)].drop_duplicates("task")
    return float(own["score"].mean()) if len(own) == len(tasks) else None


def lead(found: Compared, table: pd.DataFrame) -> str:
    """Say what the differences show, in the order: apart, the same, undecided."""
    if not len(table):
        return "No arm ran beside the one that it is compared with."
    count = words.count(len(table), "arm")
    over = f" over {len(found.places)} settings" if len(found.places) > 1 else ""
    start = f"Of {count} at their own best learning rates{over}"
    clear = table["verdict"] == CLEAR
    parts = [
        f"{_named(table[clear & (sign * table['estimate'] > 0)])} {word} {found.against}"
        for sign, word in ((1, "above"), (-1, "below"))
    ]
    inside = [
        f"{_named(table[table[f'p_within_{m:g}'] < ALPHA])} within ±{m:g}"
        for m in reversed(MARGINS)
    ]
    undecided = int((~clear & (table["within"] == "")).sum())
    widths = table["half_width"].dropna()
    sure = (
        f" Half of an interval is {words.plain(widths.min())} to {words.plain(widths.max())} "
        f"points (median {words.plain(widths.median())}){_needed(table)}; the minimum detectable "
        f"effect is {words.plain(table['mde'].median())} points (median)."
        if len(widths)
        else " One seed a rate has no noise to judge by."
    )
    return f"{start} {', '.join(parts)}; {', '.join(inside)} points; {undecided} undecided.{sure}"


def _named(rows: pd.DataFrame) -> str:
    """Return how many arms these are, and which where they are few."""
    if not len(rows):
        return "none is"
    names = rows.sort_values("estimate", ascending=False, kind="stable")["arm"].astype(str)
    verb = "is" if len(rows) == 1 else "are"
    return f"{len(rows)} ({', '.join(names)}) {verb}"


def _needed(table: pd.DataFrame) -> str:
    wide = table[table["half_width"] > WIDTH]
    if not len(wide):
        return f", at most {WIDTH:g} for every arm"
    most, now = wide["seeds_needed"].max(), table["seeds"].max()
    if math.isfinite(most):
        return f"; {len(wide)} above {WIDTH:g}, for which {most:.0f} seeds would do, not {now:.0f}"
    return f"; {len(wide)} above {WIDTH:g}, for some of which no seeds would do without more items"


def _rate_words(found: Compared) -> str:
    """Say how much of the range of arms is noise, and how much the rate."""
    of = ranges(found)
    text = (
        f"Range of {of.arms} arms' scores, each at its own rate: {words.plain(of.own)} points; "
        f"arms that did not differ would have {words.plain(of.noise)} on average and "
        f"{words.plain(of.noise_high)} in one of twenty studies."
    )
    if of.common_arms > 1 and of.common == of.common:
        text += (
            f" At {found.against}'s best rate the {of.common_arms} arms that tried it lie "
            f"{words.plain(of.common)} points apart, at their own rates "
            f"{words.plain(of.common_own)}."
        )
    wrong = wrong_rate(found).dropna()
    if len(wrong):
        costs = [f"{words.plain(r['lost'])} at {r['factor']:.2g} times" for r in _records(wrong)]
        text += f" Points lost at other rates than the best (median): {', '.join(costs)}."
    return text


def check_words(check: pd.DataFrame, rates: pd.DataFrame) -> str:
    """Say how the verdicts fare when rates are chosen in other ways."""
    parts = [
        f"{row['analysis']}: {row['other']} of {row['arms']} verdicts differ, differences move by "
        f"{words.plain(row['moved'])} points (median) and {words.plain(row['most'])} (most)"
        for row in _records(agreement(check))[1:]
    ]
    ends = int((rates["end"] != "").sum())
    poor = int((rates["loss_fit"] < ALPHA).sum()), int((rates["score_fit"] < ALPHA).sum())
    return (
        f"Other choices of the rate. {'; '.join(parts)}. Of {len(rates)} curves {ends} have their "
        "best rate at an end of those tried. A quadratic, which the loss is taken for, is rejected "
        f"at the 5 % level for the loss of {poor[0]}; scores, for which it would be rejected "
        f"{_times(poor[1])}, follow a spline."
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times" if count else "nowhere"


def _records(table: pd.DataFrame) -> Sequence[dict[Any, Any]]:
    return table.to_dict("records")


def headlines(study: Study) -> list[Headline]:
    """Return every arm less LoRA at its own rate on the target tasks."""
    made = []
    for found in compared(study):
        if found.labels["side"] == "source":
            continue
        for row in _table(study, found).to_dict("records"):
            label = f"{row['arm']} − {row['against']}, each at its own rate"
            made.append(of_row(row, label=label, group=study.place(found.labels), question=KEY))
    return made
