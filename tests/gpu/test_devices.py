"""On two GPUs: a cell on both ends as on one of them."""

import pytest
import torch

from ablate import group
from tests.slow.test_group import carried_out, record, same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
TWO = ("execution.device=cuda", "execution.devices=2")


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_cell_on_two_gpus_is_recorded_as_on_one(sharding, tmp_path):
    one = carried_out(tmp_path / "one", "execution.device=cuda")
    try:
        two = carried_out(tmp_path / "two", *TWO, f"execution.sharding={sharding}")
        same(two, one)
        times = [record(folder)["costs"]["train_seconds"] for folder in (one, two)]
        print(f"20 steps: {times[0]:.2f} s on one, {times[1]:.2f} s on two")
    finally:
        group.close()
