"""Models scored side by side against the same models scored alone."""

import contextlib
import itertools

import numpy as np
import pytest
import torch

from ablate.adapters import build
from ablate.evaluate import choices, generate, heldout
from ablate.evaluate import lanes as beside
from ablate.evaluate.precision import computed_in
from ablate.training.lanes.stack import Stack, shell
from tests import levels, toys
from tests.unit.test_lanes import DATA, cell, lane, own_base

MIXED = (cell("lora"), cell("dora", rank=3), cell("mora", seed=1), cell("rslora", rank=2, seed=2))
FULL = (cell("full"), cell("full", seed=1), cell("full", seed=2))
STOPS = tuple(range(0, toys.VOCAB, 5))


def pairs(count=12):
    draws, found = np.random.default_rng(0), []
    for _ in range(count):
        context = draws.integers(0, toys.VOCAB, draws.integers(2, 9)).tolist()
        sizes = draws.integers(1, 4, 3)
        found += [(context, draws.integers(0, toys.VOCAB, size).tolist()) for size in sizes]
    return found + found[:1]


PAIRS = pairs()
PROMPTS = [context for context, _ in PAIRS[::3]]


def trained(cells):
    """Models of the cells, their adapters moved far enough that answers differ."""
    base = levels.base("llama")
    made = [lane(own_base(base, one), one) for one in cells]
    draws = torch.Generator().manual_seed(0)
    for one in made:
        for tensor in build.trained(one.model).values():
            tensor.data += 0.2 * torch.randn(tensor.shape, generator=draws)
        one.model.eval()
    return base, made


def stood(base, made, precision="fp32"):
    stack = Stack(base, [one.model for one in made], [one.kind for one in made])
    stack.settle()
    return beside.Lanes(stack.model, [made[n].model for n in stack.order], precision)


def answered(model, **more):
    return (
        choices.loglikelihoods(model, PAIRS, batch_size=5, **more),
        heldout.row_losses(model, DATA, rows=17, batch_size=6, **more),
        generate.answers(model, PROMPTS, stops=STOPS, max_new=13, batch_size=7, **more),
    )


def check_alike(found, known, tolerance=1e-4):
    (one_pairs, one_rows, one_said), (pairs, rows, said) = found, known
    assert [first for _, first in one_pairs] == [first for _, first in pairs]
    assert [value for value, _ in one_pairs] == pytest.approx(
        [value for value, _ in pairs], rel=tolerance
    )
    np.testing.assert_array_equal(one_rows.counts_NR, rows.counts_NR)
    np.testing.assert_allclose(one_rows.sums_NR, rows.sums_NR, rtol=tolerance, atol=tolerance)
    assert one_said == said


@pytest.mark.parametrize("every", [1, 3, 8])  # 8 is a GPU's way to decode
@pytest.mark.parametrize("cells", [MIXED, FULL], ids=["adapters", "full"])
def test_every_lane_is_scored_as_alone(cells, every, monkeypatch):
    monkeypatch.setitem(generate.LOOK_EVERY, "cpu", every)
    base, made = trained(cells)
    alone = [answered(one.model) for one in made]
    with beside.active(stood(base, made)):
        together = [answered(one.model) for one in made]
    for found, known in zip(together, alone, strict=True):
        check_alike(found, known)
    lengths = [tuple(map(len, said)) for *_, said in alone]
    assert len(set(lengths)) == len(made)  # rows end at different times in each lane
    values = [found[0][0] for found, *_ in alone]
    assert len(set(values)) == len(made)


def test_small_batches_change_nothing(monkeypatch):
    base, made = trained(MIXED)
    alone = [answered(one.model) for one in made]
    with beside.active(stood(base, made)):  # a row of each lane a forward pass
        together = [answered(one.model, batch_tokens=40) for one in made]
    for found, known in zip(together, alone, strict=True):
        check_alike(found, known)


def test_scores_in_bf16():
    base, made = trained(MIXED)
    with contextlib.ExitStack() as stack:
        alone = []
        for one in made:
            with computed_in(one.model, "bf16"):
                alone.append(choices.loglikelihoods(one.model, PAIRS, batch_size=5))
        stack.enter_context(beside.active(stood(base, made, "bf16")))
        for one, known in zip(made, alone, strict=True):
            with computed_in(one.model, "bf16"):
                found = choices.loglikelihoods(one.model, PAIRS, batch_size=5)
            for (value, _), (other, _) in zip(found, known, strict=True):
                assert value == pytest.approx(other, abs=0.3)  # as far as bf16 is from fp32
    assert {tensor.dtype for one in made for tensor in one.model.parameters()} == {torch.float32}


def test_the_models_own_their_weights_and_keep_them():
    base, made = trained(MIXED)
    before = [{n: t.clone() for n, t in build.trained(one.model).items()} for one in made]
    with beside.active(stood(base, made)):
        answered(made[0].model)
    for one, known in zip(made, before, strict=True):
        tensors = build.trained(one.model)
        assert all(torch.equal(tensors[name], known[name]) for name in known)
        places = [tensor.untyped_storage().data_ptr() for tensor in tensors.values()]
        assert len(set(places)) == len(places)


def test_a_lane_that_is_not_finite_leaves_the_others_to_the_last_bit():
    base, made = trained(MIXED)
    with beside.active(stood(base, made)):
        known = [answered(one.model) for one in made]
    for tensor in build.trained(made[1].model).values():
        tensor.data.fill_(float("nan"))
    with beside.active(stood(base, made)):
        found = [answered(one.model) for one in made]
    assert all(np.isnan(value) for value, _ in found[1][0])
    for number in (0, 2, 3):
        assert found[number][0] == known[number][0]
        assert (found[number][1].sums_NR == known[number][1].sums_NR).all()
        assert found[number][2] == known[number][2]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), ValueError("no\nway")])
def test_where_lanes_fail_each_is_scored_alone(error, monkeypatch):
    base, made = trained(MIXED)
    alone = [answered(one.model) for one in made]
    lanes = stood(base, made)

    def fails(*_args, **_kwargs):
        raise error

    said = []
    monkeypatch.setattr(beside, "say", said.append)
    monkeypatch.setattr(lanes.model, "forward", fails)
    with beside.active(lanes):
        for one, known in zip(made, alone, strict=True):
            check_alike(answered(one.model), known, tolerance=0.0)
    assert said == [
        f"4 cells are scored one after another: {' '.join(str(error).split())}"  # once, in one line
    ]


def test_a_gpu_that_is_lost_ends_the_process_of_all():
    base, made = trained(MIXED)
    lanes = stood(base, made)

    def lost(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with beside.active(lanes), pytest.raises(RuntimeError, match="illegal memory"):
        beside.beside(made[0].model, "question", lost)


def test_the_time_of_a_question_is_shared_among_the_lanes(monkeypatch):
    base, made = trained(MIXED)
    clock = itertools.count(0, 8)
    monkeypatch.setattr(beside.time, "perf_counter", lambda: next(clock))
    models = [one.model for one in made]
    calls = []

    def run(model, lanes):
        calls.append(lanes)
        return [None] * lanes

    with beside.active(stood(base, made)):
        for model in models:
            beside.beside(model, "question", run)
        owed = [beside.owed(model) for model in models]
        assert [beside.count(model) for model in models] == [4] * 4
        assert [beside.owed(model) for model in models] == [0.0] * 4
    assert calls == [4]
    assert owed == [-6.0, 2.0, 2.0, 2.0]
    assert (beside.count(models[0]), beside.owed(models[0])) == (1, 0.0)


def test_a_model_without_a_lane_is_asked_alone():
    base, made = trained(MIXED[:2])
    with beside.active(stood(base, made)):
        assert beside.beside(shell(base), "question", lambda _, lanes: [lanes] * lanes) == 1
