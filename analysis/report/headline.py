"""One effect that answers a part of a study's question, as the first screen shows it.

Every question gives its own in `headlines(study)`; the first screen draws them as one forest, says
them in a sentence or two and holds a second analysis beside each.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.inference.estimates import Estimate, equivalence, holm

ALPHA = 0.05
CLEAR = "distinguishable"
UNCLEAR = "not distinguishable"
WITHIN = "no effect beyond the margin"
UNKNOWN = "could not be estimated"
SUPPORTED, CONTRADICTED = "supported", "contradicted"  # of a claim that others made
VERDICTS = (CLEAR, UNCLEAR, WITHIN, UNKNOWN)
ONE_SEED = "one seed a cell, which cannot tell what cells differ in from what seeds differ in"
SAME = (WITHIN, "a small effect")  # of the test of equivalence
NUMBERS = ("estimate", "low", "high", "p", "mde")


@dataclass(frozen=True, slots=True)
class Headline:
    """An effect with its interval and verdict.

    Attributes:
        label: what is compared, as a line of the figure names it: "lora r8 − full, target tasks".
        group: the heading under which the figure draws it, a line per group.
        question: the key of the section that it comes from, to which it links.
        estimate: of the effect, in `unit`; NaN of a joint test.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        unit: "points", or what else the effect is counted in.
        verdict: one of `VERDICTS`, after the adjustment that the section's table states.
        p: the p-value that the verdict rests on, adjusted as the section's table states.
        mde: the minimum detectable effect, in `unit`: found with 80 % power at the 5 % level.
        second: the same effect by another method, see `inference.second_opinion`; None without one.
        because: why an effect could not be estimated, else "".
    """

    label: str
    group: str
    question: str
    estimate: float
    low: float
    high: float
    unit: str
    verdict: str
    p: float
    mde: float = float("nan")
    second: Estimate | None = None
    because: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict={self.verdict}: not one of {', '.join(VERDICTS)}")

    @property
    def joint(self) -> bool:
        """Whether this is a test of several coefficients at once: it has a p-value and no size."""
        return self.verdict != UNKNOWN and math.isnan(self.estimate)

    @property
    def clear(self) -> bool:
        """Whether the effect is distinguishable from zero."""
        return self.verdict == CLEAR


def verdict(p: float, same: str = "", *, replicated: bool = True) -> str:
    """Return the verdict of an effect, the same for every question.

    Args:
        p: its p-value against zero, adjusted; NaN where there is no estimate.
        same: the verdict of its test of equivalence, see `inference.estimates.equivalence`.
        replicated: whether cells ran under several seeds: without, nothing is distinguishable.
    """
    if not replicated:
        return UNCLEAR
    if not math.isfinite(p):
        return UNKNOWN
    if p < ALPHA:
        return CLEAR
    return WITHIN if same in SAME else UNCLEAR


def reason(one: Headline) -> str:
    """Return what the verdict on an effect rests on, in a few words."""
    if one.because or one.verdict == UNKNOWN:
        return one.because or "the table does not determine it"
    if one.verdict == WITHIN:
        return "its test of equivalence: both bounds lie within the margin"
    side = "below" if one.clear else "not below"
    return f"p_adjusted {one.p:.2g} is {side} {ALPHA:g}"


def shared(p: Sequence[float], questions: int) -> list[float]:
    """Return p-values adjusted by Holm within a question, by Bonferroni over the page's questions.

    A page where nothing is there then has a false headline with the chance of one test.
    """
    return [min(1.0, value * questions) if value == value else value for value in holm(p)]


def judged(
    found: Sequence[tuple[Mapping[str, object], Estimate]],
    margin: float | None,
    *,
    questions: int = 1,
) -> pd.DataFrame:
    """Return effects as a table: labels, numbers, p by Holm over the table, and verdict.

    Args:
        found: the labels of every effect, and the effect; the label `replicated` says whether its
            cells ran under several seeds, without which there is no test.
        margin: of equivalence, in the unit of the effects; None for no such test.
        questions: that share the level of the tests, see `shared`.
    """
    if not found:
        return pd.DataFrame()
    table = pd.DataFrame([{**row, **{n: getattr(e, n) for n in NUMBERS}} for row, e in found])
    sure = [bool(row.get("replicated", True)) for row, _ in found]
    table["p"] = table["p"].where(pd.Series(sure))
    table["p_holm"] = shared(table["p"].tolist(), questions)
    same = ["" if margin is None else equivalence(e, margin).verdict for _, e in found]
    said = [
        verdict(p, s, replicated=r) for p, s, r in zip(table["p_holm"], same, sure, strict=True)
    ]
    if not all(sure):
        table["because"] = ["" if one else ONE_SEED for one in sure]
    return table.assign(verdict=said).drop(columns="replicated", errors="ignore")


def of_row(
    row: Mapping[Any, Any],
    *,
    label: str,
    group: str,
    question: str,
    second: Estimate | None = None,
    unit: str = "points",
) -> Headline:
    """Return a row of `judged` as a headline."""
    estimate, low, high, mde = (float(row[n]) for n in ("estimate", "low", "high", "mde"))
    p, said = float(row["p_holm"]), str(row["verdict"])
    why = str(row.get("because", ""))
    return Headline(label, group, question, estimate, low, high, unit, said, p, mde, second, why)


def strongest(headlines: Iterable[Headline], most: int) -> list[Headline]:
    """Return at most `most` headlines in their order: the clear ones, then those of smallest p."""
    every = list(headlines)
    ranked = sorted(range(len(every)), key=lambda i: (not every[i].clear, every[i].p))
    kept = set(ranked[:most])
    return [one for i, one in enumerate(every) if i in kept]
