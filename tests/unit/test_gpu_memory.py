"""The memory that a plan says a GPU needs, against storages that exist in a training step."""

import dataclasses
import itertools

import pytest
from torch.autograd.graph import saved_tensors_hooks

from ablate.adapters import build, registry
from ablate.adapters.method import load_attribute
from ablate.config import schema
from ablate.experiment import gpu_memory
from ablate.experiment.lanes import with_company
from ablate.objective import objective_of
from ablate.streams import Streams
from ablate.training import head, loop, predict
from ablate.training.lanes import loop as lanes
from ablate.training.lanes.loop import Lane
from ablate.training.lanes.stack import shell
from ablate.training.regularisation.hooks import regularised
from tests import memory, toys
from tests.levels import cell

EVEN, UNEVEN = [48] * 6, [48, 48, 40, 33, 30, 21, 12]
PRECISIONS = [("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "bf16")]  # of the base, of training
MOVING = ("copies", "activations", "attention", "logits", "reference")


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


def side_by_side(one, data, count):
    """The bytes that a step of so many cells keeps for its backward pass, and the model's sizes."""
    module, about = memory.llama(one, 3)
    base, kind = levels_base(module), load_attribute(registry.method(one.adapter).lanes)
    made = [
        Lane(build.apply(shell(base), cell_, streams=Streams(i)), kind, data, cell_.train,
             objective_of(cell_), Streams(i), None)
        for i, cell_ in enumerate([one] * count)
    ]  # fmt: skip
    kept = memory.Count(base)
    with saved_tensors_hooks(kept.keep, lambda x: x):
        lanes.train(base, made, execution=one.execution)
    return kept.total, about


def levels_base(module):
    """The base of an adapted model, as it was."""
    return module.unload() if hasattr(module, "unload") else module


def test_each_of_the_cells_side_by_side_takes_a_forward_pass_of_its_own():
    one, data = asked("lora", "padded", False)
    one = dataclasses.replace(one, train=dataclasses.replace(one.train, max_steps=1))
    (four, about), (two, _) = (side_by_side(one, data, count) for count in (4, 2))
    said = []
    for count in (4, 2):
        run = dataclasses.replace(one.execution, lanes=count)
        said.append(memory.planned(dataclasses.replace(one, execution=run), data, about))
    solo = memory.planned(one, data, about)
    targets = gpu_memory.largest_pass(one, data.summary).targets
    gradients = 2 * 4 * targets * about.vocab_size
    forward = [sum(parts.get(name, 0) for name in MOVING) for parts in said]
    assert forward[0] - forward[1] - 2 * gradients == pytest.approx(four - two, rel=0.15)
    for name in ("gradients", "moments"):
        assert [parts[name] for parts in said] == [4 * solo[name], 2 * solo[name]]
    own = 4 * registry.trainable_parameters(one, about)
    assert [parts["weights"] - solo["weights"] for parts in said] == [3 * own, own]


@pytest.mark.parametrize("level", ["lora", "full"])
def test_the_distance_to_the_base_takes_its_predictions_and_a_copy_of_what_trains(level):
    one, data = asked(level, "padded", False)
    held = dataclasses.replace(
        one, regulariser=dataclasses.replace(one.regulariser, name="kl", kl=0.1)
    )
    loop_kept = []
    for cell_ in (held, one):
        module, about = memory.llama(cell_, 3)
        kept = memory.Count(module)
        settings = dataclasses.replace(cell_.train, max_steps=1)
        with (
            regularised(module, cell_, streams=Streams(0)) as hooks,
            saved_tensors_hooks(kept.keep, lambda x: x),
        ):
            loop.train(module, data, settings, objective=objective_of(cell_),
                       streams=Streams(0), execution=cell_.execution, hooks=hooks)  # fmt: skip
        loop_kept.append(kept.total)
    reference = memory.planned(held, data, about)["reference"]
    assert "reference" not in memory.planned(one, data, about)
    copied = 4 * registry.trained_of_base(one, about)
    assert reference - copied == pytest.approx(loop_kept[0] - loop_kept[1], rel=0.15)


def test_lanes_that_no_other_run_fills_take_no_memory():
    """Of a grid the memory of a run is that of the lanes which it has runs for."""
    run = toys.execution(lanes=64)
    ones = [dataclasses.replace(cell("lora"), execution=run, seed=seed) for seed in range(3)]
    other = dataclasses.replace(cell("vera"), execution=run)
    found = with_company([*ones, other, cell("lora")])
    assert [one.execution.lanes for one in found] == [3, 3, 3, 1, 1]
    assert len({id(one.execution) for one in found[:3]}) == 1
    (alone,) = with_company(ones[:1])
    assert alone.execution.lanes == 1
    many = [dataclasses.replace(cell("lora"), execution=run, seed=seed) for seed in range(65)]
    assert with_company(many) == many
