"""What a comparison comes to, in one line and one exit status.

Without a margin the question is whether B is worse: the mean over benchmarks against zero at the
5 % level, and every benchmark by itself, adjusted by Holm. With a margin the burden is the other
way round: B passes where it is shown to be worse by less than the margin (a one-sided test at 5 %,
of which two are the test of equivalence, `inference.estimates.equivalence`), and no benchmark by
itself is worse by more than that. Where a benchmark of either side could not be compared nothing
passes, as nothing is known of it.
"""

import math
from dataclasses import dataclass

from scipy import stats

from analysis.compare.estimate import Compared
from analysis.compare.left_out import LeftOut
from analysis.compare.matched import Matched
from analysis.compare.rows import APART, BOTH, ITEMS, RUNS, Row
from analysis.errors import listed
from analysis.inference.estimates import Estimate, equivalence, holm

ALPHA = 0.05
WORSE, BETTER, UNCLEAR = "worse", "better", "not distinguishable"
EQUAL, NO_WORSE, NOT_SHOWN = "equivalent", "no worse", "not shown to be no worse"
PASSES, FAILS = 0, 1
OF = {
    ITEMS: "for other items like these and these very runs",
    BOTH: "for other seeds and other items like these",
    RUNS: "for other seeds, these items as they are",
    APART: "had the two sides answered separate items, for not both logged theirs",
}


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Attributes:
        word: one of the constants of this module.
        text: one line.
        status: 0 where B passes, 1 where it does not.
        worse: the benchmarks on which B is worse by themselves.
    """

    word: str
    text: str
    status: int
    worse: tuple[str, ...] = ()


def verdict(found: Compared, runs: Matched, margin: float | None = None) -> Verdict:
    """Return what a comparison comes to.

    Args:
        found: of the two sides.
        runs: of both.
        margin: by how much B may be worse, in the unit of the scores, above 0; None for none.
    """
    effect = found.overall.effect
    assert effect is not None
    worse = _worse(found.rows, margin or 0.0) if len(found.rows) > 1 else ()
    word = _word(effect, margin)
    fails = word in (WORSE, NOT_SHOWN) or bool(worse or found.left_out)
    text = f"{_said(word, effect, found.overall, margin)}, {OF[found.overall.scope]}"
    if runs.conditions > 1 and found.overall.scope in (BOTH, RUNS):
        text += f", under the {runs.conditions} conditions that both ran"
    if word in (UNCLEAR, NOT_SHOWN) and math.isfinite(effect.mde):
        text += f"; a difference of {effect.mde:.2g} would have been seen with a chance of 80 %"
    if worse:
        beyond = f" by more than {margin:g}" if margin else ""
        text += f"; B is worse{beyond} on {', '.join(worse)}"
    text += _warning(found.overall, runs) + _incomplete(found.left_out)
    return Verdict(word, text, FAILS if fails else PASSES, worse)


def _word(effect: Estimate, margin: float | None) -> str:
    if margin is None:
        if not effect.p < ALPHA:
            return UNCLEAR
        return WORSE if effect.estimate < 0 else BETTER
    if _below(effect, margin) < ALPHA:
        return WORSE
    if _above(effect, margin) >= ALPHA:
        return NOT_SHOWN
    return EQUAL if equivalence(effect, margin).p < ALPHA else NO_WORSE


def _above(effect: Estimate, margin: float) -> float:
    """Return the p-value against B being worse by the margin or more."""
    return float(stats.t.sf((effect.estimate + margin) / effect.se, effect.df))


def _below(effect: Estimate, margin: float) -> float:
    """Return the two-sided p-value of B being worse by more than the margin."""
    return float(min(1.0, 2 * stats.t.cdf((effect.estimate + margin) / effect.se, effect.df)))


def _worse(rows: tuple[Row, ...], margin: float) -> tuple[str, ...]:
    """Return the benchmarks on which B is worse by more than the margin, adjusted by Holm."""
    known = [row for row in rows if row.effect is not None and row.effect.se > 0]
    p = holm([_below(row.effect, margin) for row in known if row.effect is not None])
    return tuple(row.name for row, value in zip(known, p, strict=True) if value < ALPHA)


def _said(word: str, effect: Estimate, overall: Row, margin: float | None) -> str:
    unit = f" {overall.unit}" if overall.unit else ""
    gap = f"{effect.estimate:+.3g}{unit} (95 % {effect.low:+.3g} to {effect.high:+.3g})"
    heads = {
        WORSE: "B is worse than A" + (f" by more than {margin:g}" if margin else ""),
        BETTER: "B is better than A",
        UNCLEAR: "B cannot be told from A",
        EQUAL: f"B and A are equal within {margin:g}{unit}" if margin else "",
        NO_WORSE: f"B is no more than {margin:g}{unit} worse than A" if margin else "",
        NOT_SHOWN: f"it is not shown that B is no more than {margin:g}{unit} worse"
        if margin
        else "",
    }
    return f"{heads[word]}: {gap}"


def _warning(overall: Row, runs: Matched) -> str:
    """Say what the interval leaves out."""
    if overall.scope in (ITEMS, APART):
        if runs.partners > 1:
            return "; one seed a condition: other seeds may differ by more than this says"
        return "; one run a side: other seeds may differ by more than this says"
    return ""


def _incomplete(lost: tuple[LeftOut, ...]) -> str:
    """Say of which benchmarks nothing is known."""
    if not lost:
        return ""
    names = listed(dict.fromkeys(one.name for one in lost), limit=4)
    return (
        f"; this is of a part: {names} could not be compared, so the exit status is 1 "
        f"(--benchmarks names those that are meant)"
    )
