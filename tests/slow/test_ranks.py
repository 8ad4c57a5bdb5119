"""The exact rule over two processes: the gradient is that of one process, whatever the split."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing

from ablate.config.schema import Loss
from ablate.objective import make_objective
from ablate.streams import Streams
from ablate.training.hooks import Hooks, StepContext
from ablate.training.loop import train
from tests import toys

# 13 rows, then 1: uneven shares of both ranks, and a step in which the second has no row at all.
SETTINGS = toys.train_settings(batch_size=13, epochs=1.0, clip=0.5, schedule="constant")


def course(scope: str, micro_batch_size: int | None) -> dict[str, Any]:
    """Return the gradients of each step, the final weights and the history."""
    model, gradients = toys.llama(), []

    def note(context: StepContext) -> None:
        gradients.append([p.grad.clone() for p in model.parameters()])

    result = train(
        model,
        toys.tokenised(toys.examples(14)),
        SETTINGS,
        objective=make_objective(toys.masking("none"), 0.25, 1.0, Loss(scope=scope)),
        streams=Streams(0),
        execution=toys.execution(micro_batch_size=micro_batch_size),
        hooks=Hooks(after_backward=note),
    )
    return {
        "gradients": gradients,
        "weights": [p.detach().clone() for p in model.parameters()],
        "history": result.history,
    }


def one_rank(rank: int, port: int, scope: str, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    torch.set_num_threads(1)
    found = course(scope, micro_batch_size=4)
    assert torch.distributed.get_world_size() == 2
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["batch", "example"])
def test_two_ranks_take_the_steps_of_one(scope: str, tmp_path: Path) -> None:
    port = 20_000 + os.getpid() % 20_000 + (scope == "batch")
    multiprocessing.spawn(one_rank, args=(port, scope, str(tmp_path)), nprocs=2)
    alone = course(scope, micro_batch_size=None)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert_same(found["gradients"], alone["gradients"], 1e-12)
        assert_same([found["weights"]], [alone["weights"]], 1e-8)
        for entry, expected in zip(found["history"], alone["history"], strict=True):
            assert measured(entry) == pytest.approx(measured(expected), rel=1e-10)


def measured(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if value is not None}


def assert_same(found: list[list[Tensor]], expected: list[list[Tensor]], tolerance: float) -> None:
    for step, expected_step in zip(found, expected, strict=True):
        scale = max(float(g.abs().max()) for g in expected_step)
        for one, other in zip(step, expected_step, strict=True):
            assert float((one - other).abs().max()) <= tolerance * scale
