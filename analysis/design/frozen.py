"""A frozen analysis plan: what will be tested, written down with a hash before there are data.

`freeze` gives the plan of a grid: the model's formula, the smallest effect of interest, the seeds
and the runs, over which a SHA-256 is taken. `held` compares it with what was analysed in the end:
a report then says what is confirmatory (as frozen) and what is exploratory (everything else).
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import AnalysisError
from analysis.study.default_model import default_formula
from analysis.study.frame import from_results

FILE = "frozen.json"  # in the folder of results
SHOWN = 5  # runs that are named


@dataclass(frozen=True, slots=True)
class Frozen:
    """An analysis plan."""

    study: str
    formula: str
    margin: float  # points; the smallest effect of interest
    seeds: tuple[int, ...]
    runs: tuple[str, ...]  # train keys, sorted
    written: float  # seconds since 1970

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


def freeze(planned: pd.DataFrame, *, study: str, margin: float) -> Frozen:
    """Return the plan of a grid.

    Args:
        planned: the grid as a results table without scores, one row per run and task.
        study: its name.
        margin: the smallest effect of interest, in points.
    """
    if margin <= 0:
        raise AnalysisError(f"margin={margin}: must be a positive number of points")
    wave = [0.4 + 0.2 * (i % 7) / 7 for i in range(len(planned))]  # a model wants scores that vary
    frame = from_results(planned.assign(value=wave))
    trained = planned[planned["adapter"].astype(str) != "none"]
    return Frozen(
        study=study,
        formula=default_formula(frame)[0],
        margin=float(margin),
        seeds=tuple(sorted(int(s) for s in trained["seed"].unique())),
        runs=tuple(sorted(trained["train_key"].astype(str).unique())),
        written=round(time.time(), 3),
    )


def read_frozen(path: Path) -> Frozen:
    """Return the plan in a file.

    Raises:
        AnalysisError: no plan, or one that was changed after it was frozen.
    """
    try:
        made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        told = made.pop("sha256")
        plan = Frozen(**made | {"seeds": tuple(made["seeds"]), "runs": tuple(made["runs"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AnalysisError(f"frozen={path}: not an analysis plan") from error
    if plan.sha256 != told:
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
    """Return how an analysis keeps to its plan.

    Args:
        plan: as frozen.
        formula: of the main model.
        runs: train keys of the runs that were analysed.
        finished: of runs, when they ended, in seconds since 1970, where that is known.
    """
    there, wanted = set(runs), set(plan.runs)
    return Held(
        formula="".join(formula.split()) == "".join(plan.formula.split()),
        missing=tuple(sorted(wanted - there)),
        added=tuple(sorted(there - wanted)),
        late=sum(finished.get(run, plan.written) < plan.written for run in there & wanted),
    )
