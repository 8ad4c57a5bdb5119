"""What the paper claims of instruction modelling (IM), each held against the data.

Shi et al., arXiv 2405.14394; as published and refitted in docs/published.md. A claim is looked at
in every group of tasks; verdicts are those of `papers.verdicts`, with the study's margin of
equivalence. Intervals are 95 % each and not adjusted for the number of lines.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.curve.surface import surface
from analysis.errors import AnalysisError
from analysis.inference.estimates import Estimate
from analysis.papers import verdicts
from analysis.papers.instruction_modelling.arms import (
    BOILERPLATE,
    IM,
    IT,
    MODES,
    RATIO,
    ROWS,
    Runs,
    mean_gap,
    pairs,
    runs_of,
    slope,
)
from analysis.papers.verdicts import verdict
from analysis.questions.heldout.section import loss_rows
from analysis.regression.study import Study
from analysis.report import words
from analysis.table.gaps import gaps

RELEASED, NEFTUNE = MODES["im_released"], "NEFTune"
CLAIMS: Mapping[str, str] = {
    "gain": "IM is better than IT",
    "ratio": "The gain grows with the ratio of instruction to output",
    "rows": "The gain is larger where rows are few",
    "neftune": "IM is better than IT with NEFTune",
    "both": "NEFTune adds to IM",
    "kl": "A KL penalty of strength 1 keeps more than IT alone",
    "bases": "IM is better than IT on other base models",
    "epochs": "The gain grows with epochs: IM overfits less",
    "test_loss": "IM has the lower loss on outputs that were not trained on",
}
GAIN, EPOCHS = "points, mean over data sets", "points a doubling of the epochs"


@dataclass(frozen=True, slots=True)
class Line:
    """One claim in one group of tasks, or on one kind of text."""

    claim: str
    where: str
    measure: str
    effect: Estimate | None
    sign: int
    margin: float | None

    def row(self) -> dict[str, object]:
        """Return it as one row of a table."""
        said = verdict(self.effect, self.sign, self.margin)
        head = {"claim": CLAIMS[self.claim], "where": self.where, "measure": self.measure}
        return verdicts.row(head, self.effect, said)


def im_claims(study: Study) -> pd.DataFrame:
    """Return claim, where, measure, estimate, low, high, mde, verdict: a row per group of tasks."""
    lines = [line for runs in runs_of(study) for line in _of_group(runs, study.margin)]
    lines += _test_loss(study)
    for claim in CLAIMS:
        if not any(line.claim == claim for line in lines):
            lines.append(Line(claim, "–", "", None, 1, None))
    order = list(CLAIMS)
    lines.sort(key=lambda line: order.index(line.claim))
    return pd.DataFrame([line.row() for line in lines])


def compared(study: Study) -> pd.DataFrame:
    """Return what each arm gains over another: group, gain, pairs, data sets, estimate, low, high,
    mde, verdict on "it is larger".
    """
    rows = []
    for runs in runs_of(study):
        for plus, minus, table, where in _comparisons(runs):
            found = pairs(table, plus, minus)
            effect = mean_gap(found)
            if effect is None:
                continue
            numbers = {n: getattr(effect[0], n) for n in ("estimate", "low", "high", "mde")}
            sets = found[["dataset", "model"]].drop_duplicates()
            said = verdict(effect[0], 1, study.margin)
            head = {"where": words.group_text(runs.group), "gain": f"{plus} − {minus}{where}"}
            rows.append(head | {"pairs": len(found), "data_sets": len(sets)} | numbers
                        | {"larger": said})  # fmt: skip
    return pd.DataFrame(rows)


def main_mode(runs: Runs) -> str:
    """Return IM's arm at the usual place: the whole sequence, or IM as released."""
    return IM if IM in set(runs.at()["arm"]) else RELEASED


def _comparisons(runs: Runs) -> Iterator[tuple[str, str, pd.DataFrame, str]]:
    """Yield pairs of arms, the runs they are in, and in words where that is not the usual place."""
    here, im = runs.at(), main_mode(runs)
    yield im, IT, here, ""
    for other in MODES.values():
        if other != im and other in set(here["arm"]):
            yield other, IT, here, ""
    if BOILERPLATE in set(here["arm"]):
        yield BOILERPLATE, im, here, ""
    for arm in dict.fromkeys(here["arm"]):
        base = next((b for b in (IT, im) if arm.startswith(f"{b} + ")), None)
        if base:
            yield arm, base, here, ""
    yield im, f"{IT} + {NEFTUNE}", here, ""
    for scope in sorted(set(runs.table["scope"].astype(str)) - {runs.usual["scope"]}):
        there = runs.at(scope=scope)
        for arm in (a for a in MODES.values() if a in set(there["arm"])):
            yield arm, IT, there, f" at loss.scope={scope}"
    for model in sorted(set(runs.table["model"].astype(str)) - {runs.usual["model"]}):
        yield im, IT, runs.at(model=model), f" on {model}"


def _of_group(runs: Runs, margin: float) -> Iterator[Line]:
    here, im, where = runs.at(), main_mode(runs), words.group_text(runs.group)

    def line(claim: str, effect: Estimate | None, measure: str = GAIN, sign: int = 1) -> Line:
        return Line(claim, where, measure, effect, sign, margin)

    gain = pairs(here, im, IT)
    yield line("gain", _mean(gain))
    yield from _over_data(gain, line)
    yield line("neftune", _mean(pairs(here, im, f"{IT} + {NEFTUNE}")))
    yield line("both", _mean(pairs(here, f"{im} + {NEFTUNE}", im)))
    yield line("kl", _mean(pairs(here, f"{IT} + KL 1", IT)))
    others = runs.table[runs.table["model"].astype(str) != runs.usual["model"]]
    if len(others):
        yield line("bases", _mean(pairs(others, im, IT)))
    if runs.table["epochs"].nunique() > 1:
        usual = {n: str(runs.usual[n]) for n in ("model", "scope")}
        every = runs.table[
            (runs.table["model"].astype(str) == usual["model"])
            & (runs.table["scope"].astype(str) == usual["scope"])
        ]
        found = pairs(every, im, IT)
        several = found.groupby("dataset", observed=True)["epochs"].transform("nunique") > 1
        found = found[several].reset_index(drop=True)
        doubled = pd.Series(np.log2(found["epochs"].astype(float)))
        yield line("epochs", slope(found, doubled), EPOCHS)


def _mean(found: pd.DataFrame) -> Estimate | None:
    made = mean_gap(found)
    return None if made is None else made[0]


def _over_data(gain: pd.DataFrame, line: Callable[..., Line]) -> Iterator[Line]:
    """Yield the gain's change over ratio and rows, by the surface over both."""
    if not {RATIO, ROWS} <= set(gain):
        return
    try:
        found = surface(gain, RATIO, ROWS)
    except AnalysisError:
        return
    if gain[RATIO].nunique() > 1:
        yield line("ratio", found.change(0), "points, largest Rg − smallest", -1)
    if gain[ROWS].nunique() > 1:
        yield line("rows", found.change(1), "points, most rows − fewest", -1)


def _test_loss(study: Study) -> list[Line]:
    """Return the claim on held-out loss of outputs, over data sets, in nats a token."""
    rows = loss_rows(study.frame)
    rows = rows[rows["role"].astype(str) == "completion"] if len(rows) else rows
    if not len(rows):
        return []
    runs = rows.drop_duplicates("run").assign(loss=lambda d: d["value"].astype(float))
    found = runs_of(study)[:1]
    if not found:
        return []
    arm = found[0].table.set_index("run")["arm"]
    kept = found[0].at()["run"]
    runs = runs[runs["run"].isin(kept)].reset_index(drop=True)
    named = runs["run"].map(arm)
    gap = gaps(runs, named == main_mode(found[0]), named == IT, value="loss")
    return [Line("test_loss", "held-out rows", "nats a token, mean over data sets", _mean(gap),
                 -1, None)]  # fmt: skip
