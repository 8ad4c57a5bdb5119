"""What a cell scores in the end does not depend on whether it was trained in a lane."""

import numpy as np
import pytest

from ablate import sweep
from ablate.config import grid
from ablate.config.compose import expand
from ablate.experiment.design import design
from ablate.results.store import Store
from ablate.work import work

LINE = (
    "seed=0,1,2,3,4,5,6,7,8,9", "plw=0.1", "adapter=lora", "train.lr=0.003", "train.max_steps=60",
    "dataset.max_rows=960", "evaluate=none", "evaluate.heldout=[test]", "execution.device=cpu",
)  # fmt: skip


def final(out, lanes):
    """Return the held-out loss of the completion by key."""
    plan = design(grid.cells(expand([*LINE, f"execution.lanes={lanes}"])), study="none")
    store = Store(out)
    store.prepare()
    runs = {key: names for key, names in plan.runs.items() if not names[0].cell.is_base}
    for bundle in sweep.write_bundles(runs, out, workers=sweep.Workers()):
        work(bundle)
    records = {key: store.record(key) for key in runs}
    assert {record["provenance"]["lanes"] for record in records.values()} == {lanes}
    return {
        key: next(s["value"] for s in record["scores"] if s["metric"] == "loss_completion")
        for key, record in records.items()
    }


@pytest.mark.slow
def test_final_metrics_differ_by_far_less_than_runs_do(tmp_path):
    alone, beside = final(tmp_path / "alone", 1), final(tmp_path / "beside", 10)
    assert len(alone) == 10
    between = np.std([*alone.values()], ddof=1)
    apart = np.abs([beside[key] - value for key, value in alone.items()])
    print(f"largest difference {apart.max():.2e}, standard deviation over seeds {between:.2e}")
    assert apart.max() < 0.1 * between
