"""The memory that a plan says a GPU needs, against storages that exist in a training step."""

import dataclasses
import itertools

import pytest

from ablate.config import schema
from ablate.experiment import gpu_memory
from ablate.training import head, predict
from tests import memory, toys
from tests.levels import cell

EVEN, UNEVEN = [48] * 6, [48, 48, 40, 33, 30, 21, 12]
PRECISIONS = [("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "bf16")]  # of the base, of training
MOVING = ("copies", "activations", "attention", "logits")


def asked(level, layout, on, precision=PRECISIONS[0], *, optimizer="adamw", size=None):
    base, train = precision
    rows = EVEN if layout == "padded" else UNEVEN
    return dataclasses.replace(
        cell(level, optimizer=schema.Optimizer(name=optimizer, kind=optimizer)),
        base_precision=base,
        plw=0.1,
        masking=toys.masking("none"),
        train=toys.train_settings(batch_size=len(rows), precision=train, max_length=64),
        execution=toys.execution(layout=layout, gradient_checkpointing=on, micro_batch_size=size),
    ), memory.rows(rows)


@pytest.mark.parametrize(
    ("level", "layout", "on", "precision"),
    list(itertools.product(("full", "lora"), ("padded", "packed"), (False, True), PRECISIONS)),
)
def test_memory_is_what_is_counted(level, layout, on, precision):
    """Of the logits autograd keeps the log-softmax; two gradients of its size are made of it."""
    one, data = asked(level, layout, on, precision)
    found = memory.counted(one, data)
    said = memory.planned(one, data, found["files"])
    for part in ("weights", "gradients", "moments", "masters"):
        assert said.get(part, 0) == pytest.approx(found[part], rel=0.02), part
    targets = gpu_memory.largest_pass(one, data.summary).targets
    gradients = 2 * 4 * targets * found["files"].vocab_size
    forward = sum(said.get(part, 0) for part in MOVING)
    assert "step" not in said or said["step"] > found["forward"] + gradients
    if "step" not in said:
        assert forward == pytest.approx(found["forward"] + gradients, rel=0.15)


def test_tiles_begin_where_the_loss_begins_them():
    assert predict.TILED_FROM == gpu_memory.TILED_FROM
    assert head.TILE["cuda"] == gpu_memory.TILE
    assert gpu_memory.FEWEST_ROWS == head.FEWEST_ROWS
