"""One score as the record keeps it, with the score of every item; no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ablate.evaluate.answers import Answer

Items = tuple[tuple[int, float], ...]
# fraction: 0 to 1, shown as points; points: 0 to 100; ratio: any number without a unit.
Unit = Literal["fraction", "points", "nats", "bits", "perplexity", "tokens", "ratio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """One metric of one task, held-out part or measure.

    A number that is not known is None: a metric without item scores has no `se`, a generated
    answer no `chance`, a measure of how far the weights moved no direction that is better.
    """

    asked: str  # the name it was asked for by; a group of tasks gives several tasks
    task: str
    metric: str
    value: float | None
    unit: Unit | None  # of value, se, chance and the items' scores; None: not known
    n: int  # items
    of: int | None = None  # items of the task, of which a limit may leave some unscored
    chosen: bool = False  # its items are those that evaluate.items names, not the first ones
    version: str
    task_type: str  # mc, short, long, heldout or measure
    side: str = "both"  # source: known before fine-tuning; target: taught by it
    skill: str
    chance: float | None = None
    se: float | None = None  # standard error over items
    higher_is_better: bool | None = None
    items: Items = ()  # (doc_id, score)
    answers: Mapping[int, Answer] = field(default_factory=dict)  # by doc_id; of a benchmark
    isolation: str | None = None  # what kept generated programs apart; None: none were run
    score_key: str = ""


@dataclass(frozen=True, slots=True)
class Unscored:
    """A benchmark, held-out part or measure that failed while it was scored."""

    asked: str
    score_key: str
    error: str  # in one line


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean of independent items; None for fewer than two."""
    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1) / count)


def finite(value: float | None) -> float | None:
    """Return `value` as a plain float, None where it is not a finite number."""
    return None if value is None or not math.isfinite(value) else float(value)
