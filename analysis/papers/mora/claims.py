"""What the paper claims of MoRA, each held against the data; (ours) marks what it left out.

Jiang et al., arXiv 2405.12130. Seeds are the unit of replication, paired between arms, each arm at
its own rate (`measures`). "On a par" is a claim of equivalence and has a verdict at each margin; a
claim of more or less has the verdicts of `papers.verdicts`. The measure is the score of benchmarks,
where a group has them, else the perplexity of the test rows. Intervals are 95 % each and not
adjusted for the number of lines. Where one rank was run alone, both maps that the paper calls MoRA
are looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.inference.estimates import Estimate
from analysis.papers import verdicts
from analysis.papers.mora import published
from analysis.papers.mora.measures import (
    ABSOLUTE,
    BETTER,
    COUNTS,
    PERPLEXITY,
    RELATIVE,
    SCORE,
    UNITS,
    Measured,
    effect,
)
from analysis.papers.mora.runs import (
    CONTINUED,
    DECOUPLING,
    HIGH,
    INSTRUCTION,
    LORA,
    MATHS,
    PERMUTED,
    PRETRAINING,
    RELORA,
    REMORA,
    ROTATION,
    SHARING,
    TRUNCATION,
)
from analysis.questions.own_rate.estimate import MARGINS
from analysis.table.factors import FULL

CLAIMS: Mapping[str, str] = {
    "continued": "Continued pretraining: MoRA is better than LoRA",
    "instruction": "Instruction tuning: MoRA is on a par with LoRA",
    "maths": "Mathematics: MoRA is on a par with LoRA",
    "rotation": "At a low rank rotation is better than decoupling",
    "decoupling": "At a low rank decoupling is better than sharing",
    "sharing": "Sharing is better than truncation",
    "mora": "Pretraining: MoRA ends below LoRA",
    "relora": "Pretraining: ReLoRA ends below LoRA",
    "remora": "Pretraining: ReMoRA ends below ReLoRA",
    "restarts": "Pretraining: ReMoRA ends below MoRA",
    "full": "(ours) Pretraining: the full rank ends below ReMoRA",
    "permuted": "(ours) Pretraining: ReMoRA ends lower with permuted groups",
    "absolute": "The changes of MoRA and ReMoRA have more singular values above 0.1 than those of "
    "LoRA and ReLoRA",
    "relative": "(ours) and more above a tenth of its largest",
}
# Claims on the end of pretraining: the arm that is to be lower, and the other.
LOWER = {
    "mora": (SHARING, LORA), "relora": (RELORA, LORA), "remora": (REMORA, RELORA),
    "restarts": (REMORA, SHARING), "full": (FULL, REMORA), "permuted": (PERMUTED, REMORA),
}  # fmt: skip
# Claims on maps: the arm that is to be better, the other, and whether at a high rank too.
MAPS = {
    "rotation": (ROTATION, DECOUPLING, False), "decoupling": (DECOUPLING, SHARING, False),
    "sharing": (SHARING, TRUNCATION, True),
}  # fmt: skip
EQUAL = {INSTRUCTION: "instruction", MATHS: "maths"}


@dataclass(frozen=True, slots=True)
class Line:
    """One claim in one group, by one measure."""

    claim: str
    where: str
    measure: str
    effect: Estimate | None
    seeds: int
    verdict: str
    published: str = ""

    def row(self) -> dict[str, object]:
        """Return it as one row of a table."""
        head = {"claim": CLAIMS[self.claim], "where": self.where, "measure": self.measure}
        found = verdicts.row(head, self.effect, self.verdict)
        said = found.pop("verdict")
        return found | {"n": self.seeds or None, "published": self.published, "verdict": said}


def mora_claims(found: Sequence[Measured], margin: float) -> pd.DataFrame:
    """Return claim, where, measure, estimate, low, high, mde, n (seeds), published, verdict.

    Args:
        found: of `measures.measured`.
        margin: of equivalence where a claim is of more or less: points, or % of perplexity.
    """
    scored = {one.group.where for one in found if one.measure == SCORE}
    kept = [m for m in found if m.measure != PERPLEXITY or m.group.where not in scored]
    lines = [line for one in kept for line in _lines(one, margin)]
    for claim in CLAIMS:
        if not any(line.claim == claim for line in lines):
            lines.append(Line(claim, "–", "", None, 0, verdicts.UNTESTABLE))
    order = list(CLAIMS)
    lines.sort(key=lambda line: order.index(line.claim))
    return pd.DataFrame([line.row() for line in lines])


def _lines(one: Measured, margin: float) -> Iterator[Line]:
    group = one.group
    if one.measure in COUNTS:
        yield from _counts(one)
        return
    if group.setting == PRETRAINING:
        for claim, (arm, against) in LOWER.items():
            yield from _more(one, claim, (arm, against), margin)
        return
    for arm in group.mora:
        if group.setting == CONTINUED:
            yield from _more(one, "continued", (arm, LORA), margin)
        else:
            yield from _equal(one, EQUAL[group.setting], arm)
    for claim, (arm, against, high) in MAPS.items():
        if high or group.budget != HIGH:
            yield from _more(one, claim, (arm, against), margin)


def _more(one: Measured, claim: str, pair: tuple[str, str], margin: float) -> Iterator[Line]:
    """Yield the line on "the first arm is better than the second", where both ran."""
    gap = one.difference(*pair)
    if gap is not None:
        said = verdicts.verdict(effect(gap), BETTER[one.measure], margin)
        where = f"{one.group.where}: {pair[0]} − {pair[1]}"
        yield Line(claim, where, UNITS[one.measure], effect(gap), gap.seeds, said,
                   _published(one, pair))  # fmt: skip


def _equal(one: Measured, claim: str, arm: str) -> Iterator[Line]:
    gap = one.difference(arm)
    for margin in MARGINS if gap is not None else ():
        assert gap is not None
        said = verdicts.same(effect(gap), margin)
        measure = f"{UNITS[one.measure]}, margin ±{margin:g}"
        yield Line(claim, f"{one.group.where}: {arm} − {LORA}", measure, effect(gap), gap.seeds,
                   said, _published(one, (arm, LORA)))  # fmt: skip


def _counts(one: Measured) -> Iterator[Line]:
    claim = {ABSOLUTE: "absolute", RELATIVE: "relative"}[one.measure]
    pairs = [(arm, LORA) for arm in one.group.mora] + [(REMORA, RELORA)]
    for pair in pairs:
        gap = one.difference(*pair)
        if gap is not None:
            said = verdicts.verdict(effect(gap), 1)
            where = f"{one.group.where}: {pair[0]} − {pair[1]}"
            yield Line(claim, where, UNITS[one.measure], effect(gap), gap.seeds, said)


def _published(one: Measured, pair: tuple[str, str]) -> str:
    """Return what was published of a difference, where it is in a unit of the same kind or none."""
    group = one.group
    text = published.told(group.setting, *pair, group.budget)
    other = one.measure == PERPLEXITY and group.setting != PRETRAINING
    return f"{text} (points)" if text and other else text
