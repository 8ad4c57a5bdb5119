"""What a prompt loss weight does: step size, completion down-weighting, prompt information.

With sums of gradients G_c over n_c completion tokens and G_p over n_p prompt tokens, a cell trains
on a G_c + b G_p (see `ablate.objective`):

    PLW 0                            a = 1 / n_c            b = 0
    PLW w, normaliser weight         a = 1 / (n_c + w n_p)  b = w a
    PLW w, normaliser completion     a = 1 / n_c            b = w a     the completion's part held
    PLW 0 or w, tokens, examples     other a                b = w a     the same direction, scaled

Going from PLW 0 to PLW w under the normaliser weight therefore does two things: it adds the prompt
(b > 0), and it lets the completion's part fall, log a by `fall`. The cell that holds the
completion's part is on the way, so for scores S

    S_w - S_0  =  (S_held - S_0)  +  (S_w - S_held)
                  prompt             scale: same direction, smaller gradient

holds without any model. The fall has two causes: the whole gradient changes its norm (step size),
and the completion's share of it falls (down-weighting), log a = log norm + log share + constant.
The scale effect is split between them in proportion, as if a score were linear in the log of the
scale: both parts are what multiplying PLW 0's gradient by that much would do. They may have
opposite signs, and under Adam, which hardly minds the scale, both may well be nil.

Without the held cell the parts are not identified.

Norm and share are means over the steps of a run, of what its gradients were on its own path.
Intervals are the delta method's over score, norm and share together (`study.scale_cells`).

Letters in names: C cells.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.inference.estimates import Estimate
from analysis.questions.decomposition.scale_cells import (
    Cell,
    Means,
    cell_means,
)

TOTAL, PROMPT, SCALE = "whole effect", "prompt information", "scale"
STEP, DOWN = "step size", "completion down-weighting"
COMPONENTS = (TOTAL, STEP, DOWN, PROMPT)
HELD = "cells at the same weight"
MISSING = (
    "not identified: no cell holds the completion's gradient at this weight; "
    "add loss.normaliser=completion at plw={plw:g}"
)
NO_NORMS = "not identified: gradient norms and shares were not recorded"
SMALL_FALL = 1.96  # standard errors that the fall in scale must at least be


@dataclass(frozen=True, slots=True)
class Decomposition:
    """One weight's effect in one data set and task group, in its parts."""

    labels: dict[str, str]  # dataset, task_group, masking
    plw: float
    parts: dict[str, Estimate | None]  # COMPONENTS; None where not identified
    identified_by: str  # how it was identified, or what is missing


def decompositions(frame: pd.DataFrame) -> list[Decomposition]:
    """Return the parts of every weight's effect, by data set, task group and masking mode."""
    return [one for labels, means in cell_means(frame) for one in decomposed(means, labels)]


def decomposed(means: Means, labels: dict[str, str]) -> Iterator[Decomposition]:
    """Yield the parts of the effect of every weight above 0 that ran under its usual normaliser."""
    index = {cell: i for i, cell in enumerate(means.cells)}
    start = index.get(Cell("", 0.0, "weight"))
    if start is None:
        return
    for cell, here in index.items():
        if cell.plw > 0 and cell.scale == "weight":
            held = index.get(Cell(cell.masking, cell.plw, "held"))
            parts, identified_by = _parts(means, start, here, held)
            identified_by = identified_by.format(plw=cell.plw)
            yield Decomposition(labels | {"masking": cell.masking}, cell.plw, parts, identified_by)


def _parts(
    means: Means, start: int, here: int, held: int | None
) -> tuple[dict[str, Estimate | None], str]:
    total = means.fit.function(TOTAL, lambda m: float(m[here, 0] - m[start, 0]))
    parts: dict[str, Estimate | None] = dict.fromkeys((TOTAL, STEP, DOWN, PROMPT, SCALE))
    parts[TOTAL] = total
    if held is not None:
        parts[PROMPT] = means.fit.function(PROMPT, lambda m: float(m[held, 0] - m[start, 0]))
        parts[SCALE] = means.fit.function(SCALE, lambda m: float(m[here, 0] - m[held, 0]))
    if held is None:
        return parts, MISSING
    if not means.recorded:
        return parts, NO_NORMS
    return parts | _split(means, start, here, held), HELD


def _split(means: Means, start: int, here: int, held: int) -> dict[str, Estimate | None]:
    """Return the scale effect split between norm and share, in proportion to the fall in scale."""
    fall = means.fit.function("fall", lambda m: float(m[here, 1] - m[held, 1]))
    if abs(fall.estimate) < SMALL_FALL * fall.se or fall.estimate == 0:
        return {}

    def step(m: Array) -> float:
        scale, turned = m[here, 0] - m[held, 0], m[here, 1] - m[start, 1]
        return float(scale * turned / (m[here, 1] - m[held, 1]))

    return {
        STEP: means.fit.function(STEP, step),
        DOWN: means.fit.function(DOWN, lambda m: float(m[here, 0] - m[held, 0]) - step(m)),
    }


def decomposition_table(found: list[Decomposition]) -> pd.DataFrame:
    """Return one row per effect and part: estimate, low, high, p and how it was identified."""
    rows = []
    for one in found:
        for name in COMPONENTS:
            part = one.parts.get(name)
            head = one.labels | {"plw": one.plw, "part": name}
            numbers = {k: np.nan for k in ("estimate", "low", "high", "p")}
            if part is not None:
                numbers = {k: getattr(part, k) for k in numbers}
            known = "the cells themselves" if name == TOTAL else one.identified_by
            if part is None and one.identified_by == HELD:
                known = "not identified: the gradient's scale hardly differs"
            elif part is not None and one.identified_by == NO_NORMS:
                known = HELD
            rows.append(head | numbers | {"identified_by": known})
    return pd.DataFrame(rows)
