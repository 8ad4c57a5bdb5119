"""Whether to mask the prompt, as a surface over Rg and the number of training rows.

The effect is that of training on the prompt: the score of a run at a prompt loss weight above 0
less that of the run at weight 0 with the same data, base, adapter and seed (`table.gaps`). In each
group of tasks and at each weight it is a quadratic surface over log2 Rg and log2 rows
(`curve.surface`). Two summaries of one paper contradict each other (that of the authors of
"Instruction Tuning With Loss Over Instructions", arXiv 2405.14394, and one in wide use):

    short and small   training on the prompt pays where completions are short and rows are few:
                      the gain falls with Rg and with rows
    long and large    it pays where completions are long and rows are many: it rises with both

Each change, from the smallest to the largest value with the other number at its middle, has its
verdict; a summary is supported where both of its changes are, and contradicted where one of them
is the other way round.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from analysis.curve.surface import Surface, surface
from analysis.errors import AnalysisError
from analysis.inference.estimates import Estimate
from analysis.regression.study import OF_THE_DATA, Study
from analysis.report.headline import CLEAR, CONTRADICTED, SUPPORTED, UNCLEAR, judged
from analysis.table.cells import run_means
from analysis.table.gaps import gaps

RATIO, ROWS = OF_THE_DATA
CHANGES = {
    RATIO: "gain at the largest Rg − at the smallest",
    ROWS: "gain at most rows − at fewest",
}
SUMMARIES = {
    "short and small": {RATIO: -1, ROWS: -1},
    "long and large": {RATIO: 1, ROWS: 1},
}


@dataclass(frozen=True)
class Mask:
    """The effect of training on the prompt in one group of tasks, at one weight."""

    labels: dict[str, str]  # mode, plw, task_group
    found: Surface
    pairs: int

    @property
    def places(self) -> list[tuple[float, float]]:
        """The pairs of Rg and rows that were run."""
        return [(float(r), float(n)) for r, n in self.found.cells[[RATIO, ROWS]].to_numpy()]

    @cached_property
    def effects(self) -> pd.DataFrame:
        """The effect at every place that was run: as fitted, and as the pairs' plain mean."""
        table = self.found.together(self.places)
        plain = self.found.cells["gap"].to_numpy(dtype=float)
        better = (table["all_low"] > 0).map({True: "pays", False: ""})
        worse = (table["all_high"] < 0).map({True: "costs", False: ""})
        said = (better + worse).replace("", UNCLEAR)
        return table.assign(observed=plain, n=self.found.cells["pairs"].to_numpy(), verdict=said)


def surfaces(study: Study) -> list[Mask]:
    """Return the surface of every masking mode, weight and group of tasks.

    None where the table has no three values of Rg and of the number of rows, or no pairs.
    """
    return list(_surfaces(study.main)) if study.sized else []


def _surfaces(rows: pd.DataFrame) -> Iterator[Mask]:
    for group, own in rows.groupby("task_group", observed=True, sort=False):
        runs = run_means(own)
        masked = runs["wp"] == 0
        trained = runs[runs["wp"] > 0]
        for (mode, plw), _ in trained.groupby(["mode", "plw"], observed=True):
            at = (runs["mode"].astype(str) == str(mode)) & (runs["plw"] == plw) & ~masked
            pairs = gaps(runs, at, masked)
            try:
                found = surface(pairs, RATIO, ROWS)
            except AnalysisError:
                continue
            labels = {"mode": str(mode), "plw": f"{float(str(plw)):g}", "task_group": str(group)}
            yield Mask(labels, found, len(pairs))


def changes(found: list[Mask], margin: float, *, questions: int = 1) -> pd.DataFrame:
    """Return every change with interval, MDE, p adjusted over the table, and verdict."""
    named: list[tuple[dict[str, object], Estimate]] = []
    for mask in found:
        for number, name in enumerate((RATIO, ROWS)):
            row: dict[str, object] = {**mask.labels, "over": name, "pairs": mask.pairs}
            row["replicated"] = mask.found.replicated
            named.append((row, mask.found.change(number)))
    return judged(named, margin, questions=questions)


def summaries(table: pd.DataFrame) -> pd.DataFrame:
    """Return the verdict on each popular summary, by mode, weight and group of tasks."""
    made = []
    for labels, own in table.groupby(["mode", "plw", "task_group"], sort=False):
        signs = {
            str(row["over"]): (1 if row["estimate"] > 0 else -1)
            for row in own.to_dict("records")
            if row["verdict"] == CLEAR
        }
        for name, wanted in SUMMARIES.items():
            against = any(signs.get(n, sign) != sign for n, sign in wanted.items())
            whole = all(signs.get(n) == sign for n, sign in wanted.items())
            said = CONTRADICTED if against else SUPPORTED if whole else UNCLEAR
            head = dict(zip(("mode", "plw", "task_group"), labels, strict=True))
            made.append(head | {"summary": name, "verdict": said})
    return pd.DataFrame(made)
