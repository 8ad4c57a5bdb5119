"""Checkpoints of cells that train side by side: they go on so, in other company, or alone."""

import copy
from dataclasses import replace

import pytest
import torch

from ablate.adapters import build
from ablate.config.schema import Optimizer
from ablate.training import loop, stop
from ablate.training.checkpoints import keeper
from ablate.training.checkpoints.keeper import Checkpoints
from ablate.training.history import Diverged
from ablate.training.lanes import loop as lanes
from tests import toys
from tests.unit.test_lanes import STEPS, base, cell, lane, own_base

EXECUTION = toys.execution()
CELLS = {
    "lora": cell("lora", rank=2, lr=0.01),
    "placebo": replace(
        cell("lora", rank=7, weight_decay=0.1), masking=replace(toys.masking("none"), permute=True)
    ),
    "dora": cell("dora", rank=4),  # has vectors beside matrices
    "mora": cell("mora", rank=4, max_steps=STEPS // 2),
    "lora+": cell(optimizer=Optimizer(kind="lora_plus", options={"ratio": 4.0}), rank=3),
}


@pytest.fixture(autouse=True)
def every_step(monkeypatch):
    monkeypatch.setattr(keeper, "LEAST_SHARE", 0)


def made(model, names, folder=None):
    """Return a lane of each cell; their checkpoints are in folders of their own."""
    return [
        replace(
            lane(own_base(model, CELLS[name]), CELLS[name]),
            checkpoints=Checkpoints(folder / name, 0.0) if folder else None,
        )
        for name in names
    ]


def weights(model):
    return torch.cat([tensor.detach().flatten() for tensor in build.trained(model).values()])


def stopped(monkeypatch, model, names, folder, step):
    """Train lanes side by side up to a step after which the process is asked to stop."""
    usual, calls = lanes.SavedTogether.after_step, []

    def after_step(self, writes):
        calls.append(None)
        if len(calls) == step:
            stop.request_stop()
        return usual(self, writes)

    some = made(model, names, folder)
    with monkeypatch.context() as patched:
        patched.setattr(lanes.SavedTogether, "after_step", after_step)
        with pytest.raises(stop.TrainingStopped) as told:
            lanes.train(model, some, execution=EXECUTION)
    return told.value.line


def test_lanes_go_on_and_end_as_undisturbed_ones_bit_for_bit(tmp_path, monkeypatch):
    model, names = base(), list(CELLS)
    undisturbed = made(model, names)
    known = lanes.train(model, undisturbed, execution=EXECUTION)
    line = stopped(monkeypatch, model, names, tmp_path, step=4)
    assert (
        line == f"stopped; {len(names)} of {len(names)} cells side by side go on from a checkpoint"
    )
    stopped(monkeypatch, model, names, tmp_path, step=STEPS // 2 + 2)  # one of them has ended
    resumed = made(model, names, tmp_path)
    found = lanes.train(model, resumed, execution=EXECUTION)
    for name, new, old, own, first in zip(names, found, known, resumed, undisturbed, strict=True):
        ended = name == "mora"
        assert new.resumed == [4, STEPS // 2 if ended else 4 + STEPS // 2 + 2]
        assert new.history == old.history
        assert new.tokens_seen == old.tokens_seen
        assert torch.equal(weights(own.model), weights(first.model)), name


def assert_close(new, old, own, first):
    """Check two courses and the weights they ended with: equal up to rounding."""
    for entry, known in zip(new.history, old.history, strict=True):
        assert entry["loss"] == pytest.approx(known["loss"], rel=1e-5)
        assert entry["lr"] == known["lr"]
    found, wanted = weights(own), weights(first)
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def test_lanes_go_on_in_other_company(tmp_path, monkeypatch):
    model, both = base(), ["lora", "placebo"]
    stopped(monkeypatch, model, ["lora", "dora", "placebo", "mora"], tmp_path, step=5)
    resumed, undisturbed = made(model, both, tmp_path), made(model, both)
    found = lanes.train(model, resumed, execution=EXECUTION)
    known = lanes.train(model, undisturbed, execution=EXECUTION)
    for new, old, own, first in zip(found, known, resumed, undisturbed, strict=True):
        assert new.resumed == [5]
        assert_close(new, old, own.model, first.model)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_goes_on_alone_and_again_beside_others(name, tmp_path, monkeypatch):
    model, names = base(), [name, "lora" if name != "lora" else "dora"]
    stopped(monkeypatch, model, names, tmp_path, step=3)
    undisturbed = made(model, names)
    known = lanes.train(model, undisturbed, execution=EXECUTION)

    own = lane(copy.deepcopy(model), CELLS[name])

    def alone(tick=None):
        return loop.train(
            own.model,
            own.data,
            own.settings,
            objective=own.objective,
            streams=own.streams,
            execution=EXECUTION,
            make_optimizer=own.make_optimizer,
            checkpoints=Checkpoints(tmp_path / name, 0.0),
            tick=tick,
        )

    with pytest.raises(stop.TrainingStopped):
        alone(tick=lambda done, steps: stop.request_stop() if done == 6 else None)
    resumed = made(model, names, tmp_path)
    found = lanes.train(model, resumed, execution=EXECUTION)
    assert found[0].resumed == [3, 6]
    for new, old, made_, first in zip(found, known, resumed, undisturbed, strict=True):
        assert_close(new, old, made_.model, first.model)


def test_a_lane_that_diverges_has_no_later_checkpoint(tmp_path):
    model = base()
    both = [
        replace(one, checkpoints=Checkpoints(tmp_path / str(number), 0.0, keep=99))
        for number, one in enumerate(made(model, ["lora", "mora"]))
    ]

    class Overflowing(torch.optim.SGD):
        def step(self):
            self.param_groups[0]["params"][1].data.fill_(float("inf"))

    both[0] = replace(
        both[0], make_optimizer=lambda own, _: Overflowing(build.trained(own).values(), 1e-9)
    )
    first, second = lanes.train(model, both, execution=EXECUTION)
    assert isinstance(first, Diverged)
    assert len(second.history) == STEPS // 2
    assert [path.name for path in (tmp_path / "0").glob("step-*")] == ["step-00000001"]
    assert len(list((tmp_path / "1").glob("step-*"))) == STEPS // 2


def test_the_time_of_writing_is_left_out_and_that_of_earlier_attempts_counted(
    tmp_path, monkeypatch
):
    model, names = base(), ["lora", "placebo"]
    stopped(monkeypatch, model, names, tmp_path, step=5)
    usual = keeper.files.write
    seconds = {}

    def slow(tree, folder, *, step):
        seconds[folder.name] = tree["result"]["train_seconds"]
        return usual(tree, folder, step=step)

    before = [100.0, 200.0]
    resumed = made(model, names, tmp_path)
    monkeypatch.setattr(keeper.files, "write", slow)
    courses = []
    original = lanes._course

    def course(*given):
        found = original(*given)
        found.result.train_seconds += before[len(courses)]
        courses.append(found)
        return found

    monkeypatch.setattr(lanes, "_course", course)
    found = lanes.train(model, resumed, execution=EXECUTION)
    for number, (name, one) in enumerate(zip(names, found, strict=True)):
        assert before[number] < seconds[name] <= one.train_seconds < before[number] + 60
