"""Masking at its own learning rate: section and headlines of the report."""

import math

import numpy as np
import pandas as pd

from analysis.questions.own_rate.estimate import Compared
from analysis.questions.own_rate.spread import rate_table
from analysis.questions.step_size import figure as figures
from analysis.questions.step_size.estimate import (
    AT_ARM,
    AT_REFERENCE,
    COMMON,
    GAPS,
    OWN,
    Gaps,
    gaps,
    matched,
)
from analysis.questions.step_size.runs import compared_doses, other_factors, place_levels
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.headline import Headline, judged, of_row
from analysis.report.page import Block, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, Table

KEY = "step-size"
TITLE = "How much of it is the learning rate"
HEADS = words.HEADS | {
    "gap": "rates", "share_low": "share, low", "share_high": "share, high", "at": "rates",
    "step": "gone at own rates", "step_low": "gone, low", "step_high": "gone, high",
    "common": "at one rate", "own": "at own rates",
}  # fmt: skip
POINTS = dict.fromkeys(
    ("estimate", "low", "high", "mde", "own", "common", "step", "step_low", "step_high"), ".2f"
)
SHARES = dict.fromkeys(("share", "share_low", "share_high"), ".2f")
NOTE = (
    "A rate is chosen where the validation loss is lowest, on a quadratic in log2(rate); the score "
    "of the test items at that rate is read off a cubic spline through the means over seeds. "
    "Share: what of the difference at one rate is gone where each has its own, with Fieller's "
    "95 % interval; above 1 the difference changes its sign. It has no ends where the difference "
    "at one rate may be zero."
)
_RATES = "The chosen rates of every dose at every setting, with Fieller's 95 % interval."
_SETTINGS = (
    "The difference of the doses at one level of a setting less that at another, over settings "
    "that are equal in everything else: what the setting does to the effect of masking. p is "
    "adjusted by Holm over the table."
)


def section(study: Study) -> Section | None:
    """Return the section; None where no two doses ran at three rates with a validation loss."""
    blocks: list[Block] = []
    first = ""
    number = 0
    for found in compared_doses(study):
        for one in gaps(found):
            number += 1
            text = lead(one)
            first = first or text
            blocks += _blocks(study, found, one, text, "" if number == 1 else f"_{number}")
    return Section(KEY, TITLE, tuple(blocks), first) if blocks else None


def names(one: Gaps) -> dict[str, str]:
    """Return what the three differences are called."""
    return {
        OWN: "each at its own best rate",
        AT_REFERENCE: f"both at the best rate of {one.against}",
        AT_ARM: f"both at the best rate of {one.arm}",
    }


def _blocks(study: Study, found: Compared, one: Gaps, text: str, suffix: str) -> list[Block]:
    place = study.place(found.labels)
    places = [pair.place for pair in one.pairs]
    side = words.SIDES[found.labels["side"]]
    named = names(one)
    table = place_table(one)
    by_setting = setting_table(study, one)
    caption = (
        f"{place}. {one.arm} less {one.against} at every combination of the other settings, with "
        "95 % intervals of runs and items: each at its own best rate, and both at the best rate "
        "of one of them."
    )
    by_curve = (
        f"{place}. Score against learning rate: means over seeds, splines through them. Large "
        "marks: the rate at which the validation loss is lowest, hollow where that is an end of "
        "the rates tried."
    )
    lost = [Text("Left out: " + "; ".join(one.left_out) + ".")] if one.left_out else []
    rates = rate_table(found)
    tables = [
        Table(f"step_size{suffix}", f"{one.arm} less {one.against}", share_table(one), NOTE, HEADS,
              POINTS | SHARES | {"p": P_VALUE}),
        Table(f"step_size_settings{suffix}", "What other settings do to it", by_setting, _SETTINGS,
              HEADS, POINTS | dict.fromkeys(("p", "p_holm"), P_VALUE)),
        Table(f"step_size_places{suffix}", "At every combination of settings",
              table.assign(gap=table["gap"].map(named)), "", HEADS, POINTS | {"p": P_VALUE}),
        Table(f"step_size_rates{suffix}", "Chosen rates",
              rates[rates["arm"].isin([one.arm, one.against])], _RATES, HEADS,
              {"score": ".2f"} | dict.fromkeys(("rate", "low", "high", "tried"), ".3g")
              | dict.fromkeys(("loss_fit", "score_fit"), P_VALUE)),
    ]  # fmt: skip
    return [
        Text(f"{place}: {text}"),
        Plate(f"step_size{suffix}", figures.by_place(table, named, side), caption),
        Plate(f"step_size_curves{suffix}", figures.curves(found, places), by_curve),
        *lost,
        *(Sheet(sheet, open=not i) for i, sheet in enumerate(tables) if len(sheet.frame)),
    ]


def share_table(one: Gaps) -> pd.DataFrame:
    """Return, a row per common rate, the two differences, what is gone, and the share of it."""
    own, rows = one.estimate(OWN), []
    for common in COMMON:
        at_one, step, share = one.estimate(common), one.step(common), one.share(common)
        rows.append({
            "at": names(one)[common], "common": at_one.estimate, "low": at_one.low,
            "high": at_one.high, "own": own.estimate, "step": step.estimate,
            "step_low": step.low, "step_high": step.high, "p": step.p, "share": share.estimate,
            "share_low": share.low, "share_high": share.high, "seeds": one.seeds,
        })  # fmt: skip
    return pd.DataFrame(rows)


def place_table(one: Gaps) -> pd.DataFrame:
    """Return every difference over places (place "") and at every one, a row each."""
    spots = {"": one.mean_P} if len(one.pairs) > 1 else {}
    spots |= {
        pair.place: own_P for pair, own_P in zip(one.pairs, np.eye(len(one.pairs)), strict=True)
    }
    rows = []
    for place, weight_P in spots.items():
        for gap in GAPS:
            found = one.estimate(gap, weight_P)
            rows.append({
                "place": place, "gap": gap, "estimate": found.estimate, "low": found.low,
                "high": found.high, "p": found.p, "mde": found.mde,
            })  # fmt: skip
    return pd.DataFrame(rows)


def setting_table(study: Study, one: Gaps) -> pd.DataFrame:
    """Return what every other setting does to the difference, at one rate and at own ones."""
    levels, found = place_levels(study), []
    for factor in other_factors(study):
        for level in [n for n in factor.levels if n != factor.reference]:
            weight_P = matched(one, levels, factor.column, level, factor.reference)
            if weight_P is None:
                continue
            for gap in (AT_REFERENCE, OWN):
                row = {"setting": factor.name, "level": level, "against": factor.reference,
                       "at": names(one)[gap], "replicated": one.replicated}  # fmt: skip
                found.append((row, one.estimate(gap, weight_P)))
    return judged(found, None)


def lead(one: Gaps) -> str:
    """Say what the difference is at one rate and at own rates, and the share of it."""
    own = one.estimate(OWN)
    over = f" over {words.count(len(one.pairs), 'setting')}" if len(one.pairs) > 1 else ""
    text = f"{one.arm} less {one.against}, each at its own best rate{over}: {_points(one, OWN)}"
    parts = []
    for common in COMMON:
        share = one.share(common)
        sure = (
            f"of which {_percent(share.estimate)} "
            f"({_percent(share.low)} to {_percent(share.high)}) is the learning rate"
            if share.bounded
            else "no share can be given, as the difference there may be zero"
        )
        rate = one.against if common == AT_REFERENCE else one.arm
        parts.append(f"with both at the best rate of {rate} {_points(one, common)}, {sure}")
    if not one.replicated:
        return f"{text}. One seed a rate has no noise to judge by."
    end = f" Minimum detectable effect at own rates: {words.plain(own.mde)} points."
    return f"{text}; {'; '.join(parts)}.{end}"


def _points(one: Gaps, gap: str) -> str:
    found = one.estimate(gap)
    if not math.isfinite(found.se):
        return f"{words.signed(found.estimate)} points"
    return words.estimate_text(found)


def _percent(share: float) -> str:
    return f"{words.plain(100 * share, 0)} %"


def headlines(study: Study) -> list[Headline]:
    """Return every dose less the reference at its own rate on the target tasks.

    p is adjusted over all places: several data sets are no several chances of a false headline.
    """
    own = [
        ({"arm": one.arm, "against": one.against, "replicated": one.replicated,
          "place": study.place(found.labels)}, one.estimate(OWN))
        for found in compared_doses(study) if found.labels["side"] != "source"
        for one in gaps(found)
    ]  # fmt: skip
    made = []
    for row in judged(own, study.margin, questions=study.questions).to_dict("records"):
        label = f"{row['arm']} − {row['against']}, each at its own rate"
        made.append(of_row(row, label=label, group=str(row["place"]), question=KEY))
    return made
