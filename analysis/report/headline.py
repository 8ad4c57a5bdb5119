"""One effect that answers a part of a study's question, as the first screen shows it.

Every question gives its own in `headlines(study)`; the first screen draws them as one forest, says
them in a sentence or two and holds a second analysis beside each.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from analysis.inference.estimates import Estimate

CLEAR = "distinguishable"
UNCLEAR = "not distinguishable"
WITHIN = "no effect beyond the margin"
VERDICTS = (CLEAR, UNCLEAR, WITHIN)


@dataclass(frozen=True, slots=True)
class Headline:
    """An effect with its interval and verdict.

    Attributes:
        label: what is compared, as a line of the figure names it: "lora r8 − full, target tasks".
        group: the heading under which the figure draws it, a line per group.
        question: the key of the section that it comes from, to which it links.
        estimate: of the effect, in `unit`.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        unit: "points", or what else the effect is counted in.
        verdict: one of `VERDICTS`, after the adjustment that the section's table states.
        p: the p-value that the verdict rests on, adjusted as the section's table states.
        mde: the minimum detectable effect, in `unit`: found with 80 % power at the 5 % level.
        second: the same effect by another method, see `inference.second_opinion`; None without one.
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

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict={self.verdict}: not one of {', '.join(VERDICTS)}")

    @property
    def clear(self) -> bool:
        """Whether the effect is distinguishable from zero."""
        return self.verdict == CLEAR


def strongest(headlines: Iterable[Headline], most: int) -> list[Headline]:
    """Return at most `most` headlines in their order: the clear ones, then those of smallest p."""
    every = list(headlines)
    ranked = sorted(range(len(every)), key=lambda i: (not every[i].clear, every[i].p))
    kept = set(ranked[:most])
    return [one for i, one in enumerate(every) if i in kept]
