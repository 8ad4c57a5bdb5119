"""A grid before it is run: the table that it would give, and a part of it as a study."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ablate.errors import UserError
from ablate.experiment.design import heads_of
from ablate.experiment.request import Request
from ablate.micro.tasks import TASKS

if TYPE_CHECKING:
    import pandas as pd

ANY_SCORE = 0.5  # a plan has no scores; the analysis needs a number to prepare the table


def prospective_table(request: Request) -> "pd.DataFrame":
    """Return the results table that the grid would have: one row per run and benchmark.

    Raises:
        UserError: nothing is scored on a benchmark.
    """
    import pandas as pd

    plan, rows = request.design, []
    heads = heads_of(plan)
    for names in plan.runs.values():
        head = heads[names[0].key]
        rows += [head | _task(task) | {"value": ANY_SCORE} for task in names[0].cell.evaluate.tasks]
    if not rows:
        raise UserError("evaluate.tasks=[]: the plan of a test needs at least one benchmark")
    return pd.DataFrame(rows)


def _task(name: str) -> dict[str, Any]:
    """Return what the table says of a benchmark; of one that is not ours a usual kind is taken."""
    known = TASKS.get(name)
    found = {"task": name, "task_type": "mc", "side": "both", "metric": "acc"}
    if known is not None:
        found |= {"task_type": known.task_type, "side": known.side, "metric": known.metric}
    return found


def part_study(request: Request, runs: Iterable[str], scored: Iterable[str]) -> Path:
    """Return the file of a new study of `runs`, and of the runs that are not of `scored`.

    It is written to OUT/fraction/study, to be run with `--config-dir OUT/fraction`.
    """
    study = dict(request.grid.study)
    kept, able = set(runs), set(scored)
    grids = [
        {key: [level] for key, level in names[0].levels.items()}
        for run, names in request.design.runs.items()
        if not names[0].cell.is_base and (run in kept or run not in able)
    ]
    scale = str(request.settings["scale"])
    own = (study.get("scales") or {}).get(scale) or {}
    name = f"{request.design.study}_fraction"
    made = {**study, "name": name, "scales": {scale: {**own, "grids": grids}}}
    file = request.out / "fraction" / "study" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    return file
