"""Cells on several devices, no process started: refusals, keys, workers, memory."""

import dataclasses
import fcntl

import pytest

from ablate.adapters import compatibility, devices
from ablate.app import sweep_grid
from ablate.config.schema import Execution, Loss, Regulariser
from ablate.errors import UserError
from ablate.experiment.gpu_memory import gpu_parts
from ablate.experiment.identity import identify
from ablate.experiment.notes import notes
from ablate.experiment.request import plan_grid
from ablate.models import gpu_slots
from tests import levels
from tests.unit.test_gpu_slots import MIG, TWO, machine

__all__ = ["machine"]  # a fixture


@pytest.fixture
def two_gpus(machine):
    machine(TWO)
    yield
    for lock in gpu_slots._held:
        lock.close()


CELL = ("adapter=lora", "rank=2", "train.lr=1e-3", "evaluate=none", "score_base=false")


def planned(*words):
    (named,) = plan_grid([*CELL, *words]).design.cells
    return named


def spread(level, sharding="none", **changes):
    run = Execution(devices=2, sharding=sharding, **changes.pop("execution", {}))
    return levels.cell(level, execution=run, **changes)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (spread("lora", loss=Loss(scope="microbatch")), "execution.devices=2: not with loss."),
        (spread("relora", "full"), "execution.sharding=full: not with adapter=relora, which needs"),
        (spread("vblora", "full"), "execution.sharding=full: not with adapter=vblora, which needs"),
        (levels._with("adafactor", "optimizer"), "execution.sharding=full: not with optimizer="),
        (spread("full", "full", regulariser=Regulariser(name="kl", kl=1.0)),
         "execution.sharding=full: not with regulariser=kl, which needs whole weights; use"),
        (spread("lora", "full", base_precision="nf4"),
         "execution.sharding=full: not with base_precision=nf4"),
        (spread("full", "full", execution={"compile": True}),
         "execution.sharding=full: not with execution.compile=true"),
        (spread("full", "full", execution={"offload_optimizer": True}),
         "execution.sharding=full: not with execution.offload_optimizer=true"),
    ],
)  # fmt: skip
def test_what_several_devices_cannot_do_is_refused_in_a_line(cell, said):
    if cell.execution.devices == 1:
        cell = dataclasses.replace(cell, execution=Execution(devices=2, sharding="full"))
    with pytest.raises(UserError) as raised:
        compatibility.check(cell, architecture="LlamaForCausalLM")
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)
    compatibility.check(
        dataclasses.replace(cell, execution=Execution()), architecture="LlamaForCausalLM"
    )


def test_parts_need_several_devices():
    with pytest.raises(UserError, match=r"execution.sharding=full: must be none unless"):
        planned("execution.sharding=full")


def test_the_number_of_devices_is_no_part_of_a_run():
    alone = planned()
    assert planned("execution.devices=2").key == alone.key
    assert planned("execution.devices=4", "execution.sharding=full").key == alone.key


@pytest.mark.parametrize(
    "setting", ["adapter.options.dropout=0.1", "regulariser=neftune", "regulariser=adapter_dropout"]
)
def test_draws_for_each_row_are_another_run_and_say_so(setting):
    one, two, four = (planned(setting, f"execution.devices={n}") for n in (1, 2, 4))
    assert len({one.key, two.key, four.key}) == 3
    assert "another run" in " ".join(notes([two]))
    assert "another run" not in " ".join(notes([one]))
    masks = ("regulariser=rank_dropout",)  # drawn for all rows at once
    assert planned(*masks).key == planned(*masks, "execution.devices=2").key


def test_a_base_with_dropout_is_another_run():
    cell = spread("lora")
    assert devices.draws_by_device(cell, base_drops=True)
    assert not devices.draws_by_device(cell, base_drops=False)
    assert not identify(planned().cell).files.drops


def test_a_plan_says_what_parts_do_not_do():
    told = " ".join(notes([planned("execution.devices=2", "execution.sharding=full")]))
    assert "execution.sharding=full: no checkpoints" in told
    told = " ".join(notes([planned("execution.devices=4", "train.batch_size=3")]))
    assert "a step has 3 rows" in told


def test_parts_divide_what_lasts_and_shares_the_rows():
    """Weights, gradients and moments by the number of devices; activations by rows a device."""
    whole, copies, parts = (
        gpu_parts(planned("adapter=full", "train.batch_size=16", *words))
        for words in ((), ("execution.devices=4",),
                      ("execution.devices=4", "execution.sharding=full"))
    )  # fmt: skip
    for name in ("weights", "gradients", "moments"):
        assert copies[name] == whole[name]
        assert parts[name] == pytest.approx(whole[name] / 4)
    assert copies["activations"] == pytest.approx(whole["activations"] / 4, rel=0.1)
    assert 0 < parts["gathered"] < whole["weights"]


@pytest.mark.usefixtures("two_gpus")
def test_a_worker_takes_as_many_gpus_as_a_cell_has():
    assert gpu_slots.workers(None, per_gpu=1, on_gpu=True, devices=2) == 1
    with pytest.raises(UserError, match=r"n_jobs=2: 2 GPUs here, at execution.devices=2 for at mo"):
        gpu_slots.workers(2, per_gpu=1, on_gpu=True, devices=2)
    assert gpu_slots.take(1, 2) == "0,1"
    assert gpu_slots.gpus() == ["0", "1"]


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_taken_all_or_none():
    """One that holds a part while it waits for the rest would wait for another that does so."""
    with (gpu_slots._folder() / "1").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert gpu_slots._free(["0", "1"], 1, 2) == []
        assert gpu_slots._free(["0", "1"], 1, 1) == ["0"]  # nobody kept it


@pytest.mark.parametrize(
    ("listing", "words", "said"),
    [
        (
            TWO,
            ("execution.devices=3",),
            "execution.devices=3: 2 GPUs here; at most 2, or execution",
        ),
        (TWO, ("execution.devices=2", "workers_per_gpu=2"), "workers_per_gpu=2: must be 1 with"),
        (MIG, ("execution.devices=2",), r"execution.devices=2: parts of a GPU \(MIG\)"),
    ],
)
def test_a_sweep_is_refused_what_its_gpus_cannot_give(listing, words, said, machine, tmp_path):
    machine(listing)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=said):
        sweep_grid([*CELL, *words, f"out={out}"], lambda *_: None, workers=None)
    assert not list(out.glob("cells/*"))


def test_fewer_gpus_are_told_by_a_plan(machine):
    machine(TWO)
    assert any("2 GPUs here" in line for line in notes([planned("execution.devices=3")]))
    assert not any("GPUs here" in line for line in notes([planned("execution.devices=2")]))
