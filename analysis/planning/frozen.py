"""A frozen analysis plan: what will be tested, written down with a hash before there are data.

`freeze` gives the plan of a grid: the model's formula, the tests, the smallest effect of interest,
the seeds, the runs and, where seeds are added in steps, at how many of them one looks and how alpha
is spent; a SHA-256 is taken over all of it. `held` compares it with what was analysed in the end: a
report then says what is confirmatory (as frozen) and what is exploratory (everything else).
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import AnalysisError, as_file, listed
from analysis.planning.sequential import SPENDING
from analysis.regression.default_model import default_formula
from analysis.table.frame import from_results, study_rows
from analysis.table.run_panels import CURVE, curves_of, task_panels

FILE = "frozen.json"  # in the folder of results
SHOWN = 5  # runs that are named
LISTS = ("seeds", "runs", "seed_of", "tests", "looks")


@dataclass(frozen=True, slots=True)
class Frozen:
    """An analysis plan."""

    study: str
    formula: str
    margin: float  # points; the smallest effect of interest
    seeds: tuple[int, ...]
    runs: tuple[str, ...]  # train keys, sorted
    written: float  # seconds since 1970
    seed_of: tuple[int, ...] = ()  # of every run
    tests: tuple[str, ...] = ()  # curves, as `panel_name`, whose PLW 1 is tested against PLW 0
    looks: tuple[int, ...] = ()  # numbers of seeds at which one looks; none: at all of them
    spending: str = "obrien_fleming"
    alpha: float = 0.05

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the information at every look."""
        return tuple(n / len(self.seeds) for n in self.looks)

    def due(self, seeds: Iterable[int]) -> set[str]:
        """Return the runs of these seeds; all runs of a plan that does not look in between."""
        if not self.looks:
            return set(self.runs)
        there = set(seeds)
        return {r for r, s in zip(self.runs, self.seed_of, strict=True) if s in there}

    @property
    def sha256(self) -> str:
        """The hash over everything in the plan."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Write the plan; an older one is never replaced.

        Raises:
            AnalysisError: there is a file, or it cannot be written.
        """
        if path.exists():
            raise AnalysisError(f"freeze={path}: there is a plan already; it stays as it is")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(asdict(self) | {"sha256": self.sha256}, indent=1)
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise AnalysisError(f"freeze={path}: cannot be written ({error.strerror})") from error


def freeze(
    planned: pd.DataFrame,
    *,
    study: str,
    margin: float,
    looks: Sequence[int] = (),
    spending: str = "obrien_fleming",
) -> Frozen:
    """Return the plan of a grid.

    Args:
        planned: the grid as a results table without scores, one row per run and task.
        study: its name.
        margin: the smallest effect of interest, in points.
        looks: numbers of seeds, rising to all of them, at which the tests are carried out.
        spending: of alpha over the looks, see `analysis.planning.sequential`.

    Raises:
        AnalysisError: a margin, looks or a name that cannot be.
    """
    if not 0 < margin < float("inf"):
        raise AnalysisError(f"margin={margin}: must be a positive number of points")
    wave = [0.4 + 0.2 * (i % 7) / 7 for i in range(len(planned))]  # a model wants scores that vary
    frame = from_results(planned.assign(value=wave))
    trained = planned[planned["adapter"].astype(str) != "none"]
    seeds = tuple(sorted(int(s) for s in trained["seed"].unique()))
    _check_looks(looks, len(seeds), spending)
    one = trained.assign(train_key=trained["train_key"].astype(str)).drop_duplicates("train_key")
    one = one.sort_values("train_key", kind="stable")
    return Frozen(
        study=study,
        formula=default_formula(frame)[0],
        margin=float(margin),
        seeds=seeds,
        runs=tuple(one["train_key"]),
        written=round(time.time(), 3),
        seed_of=tuple(int(s) for s in one["seed"]),
        tests=tests_of(frame),
        looks=tuple(int(n) for n in looks),
        spending=spending,
    )


def _check_looks(looks: Sequence[int], seeds: int, spending: str) -> None:
    if spending not in SPENDING:
        raise AnalysisError(f"spending={spending}: not one of {listed(SPENDING)}")
    rising = all(a < b for a, b in zip([0, *looks], looks, strict=False))
    if looks and not (rising and looks[-1] == seeds):
        some = f"{seeds // 2},{seeds}" if seeds > 1 else "1"
        raise AnalysisError(
            f"looks={listed(looks)}: must rise to the grid's number of seeds, {seeds}, as {some} "
            f"does"
        )


def tests_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """Return the curves on which a prepared frame tests PLW 1 against PLW 0; often none."""
    rows = study_rows(frame)
    if "wp" not in rows or rows["wp"].nunique() < 2:
        return ()
    return tuple(
        panel_name(panel.labels | {"mode": mode})
        for panel in task_panels(rows)
        for mode, _ in curves_of(panel.runs)
    )


def panel_name(labels: Mapping[Any, object]) -> str:
    """Return what a curve is called in a plan."""
    return " | ".join(str(labels[n]) for n in CURVE)


def read_frozen(path: Path) -> Frozen:
    """Return the plan in a file.

    Args:
        path: as `Frozen.write` wrote it.

    Raises:
        AnalysisError: no plan, or one that was changed after it was frozen.
    """
    as_file("frozen", path)
    try:
        made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        written = made.pop("sha256")
        plan = Frozen(**made | {n: tuple(made[n]) for n in LISTS})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AnalysisError(f"frozen={path}: not an analysis plan") from error
    if plan.sha256 != written:
        raise AnalysisError(f"frozen={path}: was changed after it was frozen (its hash differs)")
    return plan


@dataclass(frozen=True, slots=True)
class Held:
    """How the analysis keeps to the plan."""

    formula: bool
    missing: tuple[str, ...]  # runs that were planned and have no score
    added: tuple[str, ...]
    late: int  # runs that had finished before the plan was written

    @property
    def confirmatory(self) -> bool:
        """Whether the main model is as frozen, on the runs as frozen."""
        return self.formula and not (self.missing or self.added or self.late)

    @property
    def words(self) -> list[str]:
        """What differs, a sentence each."""
        said = []
        if not self.formula:
            said.append("The model differs from the frozen one: its tests are exploratory.")
        for runs, what in ((self.missing, "planned and not there"), (self.added, "not planned")):
            if runs:
                more = ", ..." if len(runs) > SHOWN else ""
                said.append(f"{len(runs)} runs are {what}: {', '.join(runs[:SHOWN])}{more}.")
        if self.late:
            said.append(f"{self.late} runs had finished before the plan was frozen.")
        return said


def held(plan: Frozen, *, formula: str, runs: Iterable[str], finished: Mapping[str, float]) -> Held:
    """Return how an analysis keeps to its plan; a later look's seeds are not missing yet.

    Args:
        plan: as frozen.
        formula: of the main model.
        runs: train keys of the runs that were analysed.
        finished: of runs, when they ended, in seconds since 1970, where that is known.
    """
    there, planned = set(runs), dict(zip(plan.runs, plan.seed_of, strict=True))
    wanted = plan.due(planned[run] for run in there if run in planned)
    return Held(
        formula="".join(formula.split()) == "".join(plan.formula.split()),
        missing=tuple(sorted(wanted - there)),
        added=tuple(sorted(there - planned.keys())),
        late=sum(finished.get(run, plan.written) < plan.written for run in there & wanted),
    )
