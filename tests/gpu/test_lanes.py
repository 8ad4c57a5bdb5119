"""Cells in lanes on a GPU against the same cells alone."""

import pytest
import torch

from ablate.training.lanes import loop as lanes
from ablate.training.lanes.stack import shell
from tests import levels, toys
from tests.unit.test_lanes import alone, cell, lane

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("level", ["lora", "dora", "mora"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lanes_equal_their_cells_alone(level, precision):
    dtype, tolerance = (torch.float32, 1e-4) if precision == "fp32" else (torch.bfloat16, 5e-2)
    model = levels.base("llama").to("cuda", dtype)
    changes = {"precision": precision, "lr": 1e-3}
    cells = [cell(level, **changes), cell(level, seed=1, plw=1.0, rank=3, **changes)]
    execution = toys.execution(device="cuda")
    made = [lane(shell(model), one) for one in cells]
    courses = lanes.train(model, made, execution=execution)
    for one, course in zip(cells, courses, strict=True):
        _, known = alone(model, one, execution)
        losses = [[entry["loss"] for entry in each.history] for each in (course, known)]
        assert losses[0] == pytest.approx(losses[1], rel=tolerance)
