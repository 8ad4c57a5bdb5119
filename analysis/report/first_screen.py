"""The first screen of both kinds of page: the answer, one figure, trust, the best settings."""

from collections.abc import Sequence

import pandas as pd

from analysis.report import plots, words
from analysis.report.headline import CLEAR, UNCLEAR, UNKNOWN, WITHIN, Headline, shared, strongest
from analysis.report.page import Block, Head, Item, Listing, Plate, Section, Sheet, Text
from analysis.report.tables import P_VALUE, SIGNIFICANT, Table, alike, p_text

ALPHA = 0.05
NOTHING = "The table determines no comparison that this report knows; see the model."
MOST_LINES = 40  # of the figure
UNITS = ("points", "logits", "nats", "nats a token", "nats/token", "%")
NAMED = 3  # effects that the answer names
FORMATS = dict.fromkeys(
    ("estimate", "low", "high", "mde", "second", "second_low", "second_high"), SIGNIFICANT
) | {"p": P_VALUE, "second_p": P_VALUE}  # fmt: skip
HEADS = words.HEADS | {
    "label": "effect", "group": "of", "second": "second analysis", "second_low": "95 % low",
    "second_high": "95 % high", "second_p": "p, second analysis", "agrees": "same verdict",
    "fit_status": "fit",
}  # fmt: skip


def section(
    headlines: Sequence[Headline],
    *,
    status: str = "",
    trust: Sequence[Item] = (),
    best: Table | None = None,
    remarks: Sequence[str] = (),
    method: str = "least squares on means of runs, errors clustered by cell",
    nothing: str = NOTHING,
    note: str = "",
    questions: int = 1,
) -> Section:
    """Return what is open when the page is.

    Args:
        headlines: every effect that answers a part of the question.
        status: of the fit that they are from; "" without one.
        trust: whether the tests can be trusted, a line each.
        best: the best settings with their intervals.
        remarks: what the answer adds to the effects, such as an optimum; the first is used.
        method: how the second analysis was made.
        nothing: what is said where there is no headline.
        note: what holds of all headlines and must be said with the answer.
        questions: that share the level of the tests, see `headline.shared`.
    """
    blocks: list[Block] = [Text(text) for text in answer(headlines, remarks)] or [Text(nothing)]
    blocks += [Text(note)] if note else []
    table = opinions(headlines, questions)
    if headlines:
        known = [one for one in headlines if one.verdict != UNKNOWN]
        known = [one for one in known if not one.joint]  # they have no size to draw
        kept = strongest(known, MOST_LINES)
        rows = table[[one in kept for one in headlines]]
        if kept:
            rows, unit = _marked(rows), kept[0].unit
            wide, narrow = (plots.forest(rows, unit=unit, narrow=n) for n in (False, True))
            blocks.append(Plate("headlines", wide, _caption(rows, len(known), method), narrow))
    lines = (*trust, *_agreement(table, method))
    if lines:
        blocks += [Head("Can the tests be trusted?"), Listing(lines, style="findings")]
    if best is not None and len(best.frame):
        blocks += [Head("Best settings"), Sheet(best, open=True)]
    if headlines:
        told = table.assign(fit_status=status) if status else table
        blocks.append(Sheet(_sheet(told, method)))
    return Section("answer", "Answer", tuple(blocks))


def answer(headlines: Sequence[Headline], remarks: Sequence[str] = ()) -> list[str]:
    """Return at most four sentences: what is distinguishable, what is practically zero, what is
    not distinguishable, and what could not be estimated.
    """
    known = [one for one in headlines if one.verdict != UNKNOWN]
    said = [_clear(known, remarks), _within(known), _unclear(known)] if known else []
    return [text for text in (*said, *_unknown(headlines)) if text]


def _unknown(headlines: Sequence[Headline]) -> list[str]:
    """Return a sentence for every reason why effects could not be estimated."""
    lost = [one for one in headlines if one.verdict == UNKNOWN]
    return [
        f"{words.count(len(own), 'effect')} {UNKNOWN}, {_listed([_place(one) for one in own])}: "
        f"{because or 'the table does not determine it'}."
        for because in dict.fromkeys(one.because for one in lost)
        if (own := [one for one in lost if one.because == because])
    ]


def _place(one: Headline) -> str:
    return f"{one.label} ({one.group})"


def _clear(headlines: Sequence[Headline], remarks: Sequence[str]) -> str:
    clear = [one for one in headlines if one.clear]
    clear.sort(key=lambda one: 0.0 if one.joint else -abs(one.estimate))
    count = words.count(len(headlines), "effect")
    tail = f"; {remarks[0]}" if remarks else ""
    if not clear:
        none = "The one effect is not" if len(headlines) == 1 else f"None of the {count} is"
        return f"{none} distinguishable from zero at the 5 % level{tail}."
    joint = [_joint_text(one) for one in clear if one.joint]
    sized = [one for one in clear if not one.joint]
    named = [_effect_text(one) for one in sized[:NAMED]]
    if len(sized) > len(named):
        named[0] = f"the largest are {named[0]}"
    verb = "is" if len(clear) == 1 else "are"
    which = "The one effect" if len(headlines) == 1 else f"{len(clear)} of {count}"
    told = ", ".join([*named, *joint])
    return f"{which} {verb} distinguishable from zero: {told}{tail}."


def _joint_text(one: Headline) -> str:
    return f"{_place(one)}, {p_text(one.p)}"


def _effect_text(one: Headline) -> str:
    size, low, high = alike((one.estimate, one.low, one.high))
    sign = "+" if one.estimate > 0 else ""
    return f"{_place(one)} {sign}{size} {_unit(one)} ({low} to {high})"


def _unit(one: Headline) -> str:
    """Return the unit behind a number: a score that is named by its column counts nothing."""
    return one.unit if one.unit in UNITS else f"in {one.unit}"


def _within(headlines: Sequence[Headline]) -> str:
    count = sum(one.verdict == WITHIN for one in headlines)
    if not count:
        return ""
    verb = "effect is" if count == 1 else "are"
    return f"{count} {verb} within the margin of equivalence, so practically zero."


def _unclear(headlines: Sequence[Headline]) -> str:
    rest = [one for one in headlines if one.verdict == UNCLEAR]
    known = [one.mde for one in rest if one.mde == one.mde]
    if not rest:
        return ""
    if len(rest) == len(headlines) and not known:  # said already
        return ""
    text = f"{len(rest)} {'effect is' if len(rest) == 1 else 'are'} not distinguishable from zero"
    text += f", {_listed([_place(one) for one in rest])}" if len(rest) <= NAMED else ""
    if len(rest) == len(headlines):
        text = ""
    if known:
        low, high = alike((min(known), max(known)))
        ends = low if low == high else f"{low} to {high}"
        found = f"the minimum detectable effect is {ends} {_unit(rest[0])}"
        text = f"{text}; {found}" if text else f"T{found[1:]}"
    return f"{text}."


def opinions(headlines: Sequence[Headline], questions: int = 1) -> pd.DataFrame:
    """Return the headlines as a table, each with the second analysis and whether they agree.

    The p-values of the second analysis are adjusted by Holm over the headlines of a question and
    for the questions that share a level, as those of the first are.

    Args:
        headlines: of a page.
        questions: that share the level, see `headline.shared`.
    """
    columns = ("label", "group", "question", "estimate", "low", "high", "unit", "p", "mde",
               "verdict")  # fmt: skip
    table = pd.DataFrame(
        [{name: getattr(one, name) for name in columns} | _second(one) for one in headlines]
    )
    if not len(table):
        return table
    known = table["second_p"].notna()
    for _, own in table[known].groupby("question", sort=False):
        table.loc[own.index, "second_p"] = shared(own["second_p"].tolist(), questions)
    same = (table["second_p"] < ALPHA) == (table["verdict"] == CLEAR)
    return table.assign(agrees=same.astype(object).where(known))


def _second(one: Headline) -> dict[str, float]:
    known = one.second
    names = {"second": "estimate", "second_low": "low", "second_high": "high", "second_p": "p"}
    return {n: float("nan") if known is None else getattr(known, v) for n, v in names.items()}


def _marked(rows: pd.DataFrame) -> pd.DataFrame:
    differs = rows["agrees"].eq(False).map({True: " ‡", False: ""})
    verdict = rows["verdict"].eq(CLEAR).map({True: CLEAR, False: UNCLEAR})
    return rows.assign(label=rows["label"] + differs, verdict=verdict)


def _caption(rows: pd.DataFrame, every: int, method: str) -> str:
    text = (
        f"Every effect, in {rows['unit'].iloc[0]}, with its 95 % interval. Filled: distinguishable "
        "from zero at the 5 % level after adjustment for the number of comparisons; hollow: not."
    )
    if rows["second"].notna().any():
        text += f" Grey: a second analysis, {method} (statsmodels)."
    if rows["agrees"].eq(False).any():
        text += " ‡: the two analyses disagree on the verdict."
    if len(rows) < every:
        text += f" Shown: the {len(rows)} strongest of {every}; the table below has all."
    return text


def _agreement(table: pd.DataFrame, method: str) -> list[Item]:
    """Return how often the second analysis gives the same verdict."""
    known = table[table["agrees"].notna()] if len(table) else table
    if not len(known):
        text = f"A second analysis, {method}, is possible for none of the effects."
        return [Item(text, "second analysis")] if len(table) else []
    same = int(known["agrees"].eq(True).sum())
    text = (
        f"A second analysis, {method}, gives the same verdict on {same} of "
        f"{words.count(len(known), 'effect')}"
    )
    others = known.loc[known["agrees"].eq(False), "label"].tolist()
    text += f"; not on {_listed(others)}" if others else ""
    lost = int((table["agrees"].isna() & table["estimate"].notna()).sum())
    text += f". For {lost} others the table is too small for it." if lost else "."
    tone = "warn" if others else "clear"
    return [Item(text, "second analysis", tone, ("headlines",))]


def _listed(names: Sequence[str]) -> str:
    some = "; ".join(names[:NAMED])
    return some if len(names) <= NAMED else f"{some} and {words.count(len(names) - NAMED, 'other')}"


def _sheet(table: pd.DataFrame, method: str) -> Table:
    frame = table.drop(columns="question")
    if frame["second"].isna().all():
        frame = frame.drop(columns=["second", "second_low", "second_high", "second_p", "agrees"])
    note = (
        "p: as the verdict rests on it, adjusted as the table of the effect's own section states. "
        "MDE: minimum detectable effect, found with 80 % power by one unadjusted test. "
        f"Second analysis: {method}, its p adjusted in the same way."
    )
    return Table("headlines", "Every effect of the figure", frame, note, HEADS, FORMATS)
