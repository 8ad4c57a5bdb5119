"""Cells trained side by side against the same cells trained alone."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch

from ablate.adapters import build, optimizers, registry
from ablate.adapters.method import load_attribute
from ablate.config import schema
from ablate.errors import UserError
from ablate.experiment.lanes import groups, left_alone, obstacle
from ablate.objective import objective_of
from ablate.streams import Streams
from ablate.training import loop
from ablate.training import room as room_of
from ablate.training.history import Diverged
from ablate.training.lanes import loop as lanes
from ablate.training.lanes.loop import Lane
from ablate.training.lanes.stack import Stack, shell
from tests import levels, toys

STEPS = 20
EXACT = 1e-9  # in double precision
DATA = toys.tokenised(toys.examples(23))


def cell(level="lora", *, plw=0.1, mode="none", normaliser="weight", scope="batch", **changes):
    train = {"batch_size": 5, "max_steps": STEPS, "lr": 0.01, "schedule": "cosine", "clip": 1.0}
    train |= {key: changes.pop(key) for key in [*changes] if key in schema.Train.__annotations__}
    options, rule = changes.pop("options", {}), changes.pop("rule", "none")
    return levels.cell(
        levels.adapter(level, options=options),
        plw=plw,
        masking=toys.masking(mode),
        loss=schema.Loss(normaliser=normaliser, scope=scope, token_rule=rule),
        train=toys.train_settings(**train),
        **changes,
    )


def base():
    return levels.base("llama")


def exact():
    """A model that computes in double precision throughout, which Llama's norms do not.

    Its layers are stored transposed and have biases.
    """
    model = levels.base("gpt2").double()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def lane(model, one):
    streams = Streams(one.seed, one.sham)
    made = None if one.optimizer.kind == "adamw" else optimizers.maker(one.optimizer)
    return Lane(
        build.apply(model, one, streams=streams, data=DATA),
        load_attribute(registry.method(one.adapter).lanes),
        DATA,
        one.train,
        objective_of(one),
        streams,
        made,
    )


def own_base(model, one):
    return copy.deepcopy(model) if one.adapter.kind == "full" else shell(model)


def alone(model, one, execution):
    own = lane(copy.deepcopy(model), one)
    found = loop.train(
        own.model,
        own.data,
        own.settings,
        objective=own.objective,
        streams=own.streams,
        execution=execution,
        make_optimizer=own.make_optimizer,
    )
    return own.model, found


def together(model, cells, execution):
    made = [lane(own_base(model, one), one) for one in cells]
    return [own.model for own in made], lanes.train(model, made, execution=execution)


def check_equal(model, cells, *, tolerance=1e-5, execution=None, steps=STEPS):
    """Compare the losses of every step and the trained weights with those of each cell alone.

    A gradient near zero is rounding, and AdamW makes a whole step of it: weights are compared by
    the length of their difference, and number by number in double precision (`EXACT`).
    """
    execution = execution or toys.execution()
    models, courses = together(model, cells, execution)
    for one, ours, course in zip(cells, models, courses, strict=True):
        theirs, known = alone(model, one, execution)
        assert len(course.history) == len(known.history) == steps
        for new, old in zip(course.history, known.history, strict=True):
            assert list(new) == list(old)
            for name, value in old.items():
                loose = 10 if "grad" in name and tolerance > EXACT else 1
                assert new[name] == (value and pytest.approx(value, rel=loose * tolerance)), name
        trained, expected = build.trained(ours), build.trained(theirs)
        assert list(trained) == list(expected)
        assert all(tensor.is_contiguous() and tensor.grad is None for tensor in trained.values())
        found, wanted = (torch.cat([t.flatten() for t in o.values()]) for o in (trained, expected))
        assert (found - wanted).norm() <= tolerance * wanted.norm()
        if tolerance <= EXACT:
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


GRID = [
    cell(plw=plw, mode=mode, normaliser=normaliser, lr=lr, seed=seed, rank=rank)
    for (plw, mode, normaliser), (lr, seed, rank) in zip(
        itertools.product((0.0, 0.1, 1.0), ("none", "boilerplate"), ("weight", "tokens")),
        itertools.cycle(itertools.product((0.01, 0.003), (0, 1), (2, 4, 7))),
        strict=False,
    )
]


def test_a_mixed_grid_equals_its_cells_alone():
    check_equal(base(), GRID)


def test_a_mixed_grid_equals_its_cells_alone_in_double_precision():
    check_equal(exact(), GRID, tolerance=EXACT)


LEVELS = ("lora", "rslora", "dora", "mora", "mora_rotation", "mora_truncate", "mora_grouped_4")


@pytest.mark.parametrize("level", LEVELS)
def test_every_adapter_equals_itself_alone(level):
    cells = [cell(level), cell(level, seed=2, plw=0.3)]
    check_equal(base(), cells)
    check_equal(exact(), cells, tolerance=EXACT)


def test_adapters_of_several_kinds_and_ranks_stand_beside_each_other():
    levels_ = ("mora", "lora", "dora", "mora_rotation", "rslora", "mora")
    cells = [cell(level, rank=rank, weight_decay=0.1) for rank, level in enumerate(levels_, 2)]
    check_equal(exact(), cells, tolerance=EXACT)


def test_each_lane_has_its_own_schedule_clipping_decay_scale_and_length():
    cells = [
        cell(schedule="linear", warmup_ratio=0.2, clip=0.05, weight_decay=0.3),
        cell(schedule="constant", clip=None, options={"alpha": 3.0}, plw=1.0),
        cell(optimizer=schema.Optimizer(kind="lora_plus", options={"ratio": 4.0}), rank=3),
    ]
    check_equal(exact(), cells, tolerance=EXACT)


@pytest.mark.parametrize("scope", ["batch", "example", "microbatch"])
def test_micro_batches(scope):
    cells = [cell(scope=scope, plw=0.5), cell(scope=scope, mode="boilerplate", seed=2)]
    for size in (1, 2):
        execution = toys.execution(micro_batch_size=size)
        check_equal(exact(), cells, tolerance=EXACT, execution=execution)


def test_lanes_that_end_earlier_leave_the_others():
    short, long = cell(max_steps=7, rank=6), cell(plw=0.4, seed=3)
    model, execution = exact(), toys.execution()
    models, (first, second) = together(model, [short, long], execution)
    assert (len(first.history), len(second.history)) == (7, STEPS)
    for one, ours in ((short, models[0]), (long, models[1])):
        expected = build.trained(alone(model, one, execution)[0])
        for name, tensor in build.trained(ours).items():
            torch.testing.assert_close(tensor, expected[name], rtol=EXACT, atol=EXACT)


def test_full_tuning_of_every_lane_s_own_weights():
    cells = [cell("full", lr=0.001), cell("full", lr=0.002, plw=1.0, seed=1, weight_decay=0.1)]
    check_equal(base(), cells)
    check_equal(base().double(), cells, tolerance=1e-8)


def test_full_tuning_of_layers_that_cannot_be_stacked_is_refused():
    model, cells = exact(), [cell("full"), cell("full", seed=1)]  # trains its positions
    made = [lane(own_base(model, one), one) for one in cells]
    with pytest.raises(TypeError, match="Embedding: layers of this type cannot be stacked"):
        lanes.train(model, made, execution=toys.execution())


def test_steps_of_so_many_tokens():
    cells = [cell(batch_unit="tokens", batch_size=60, seed=seed, max_steps=10) for seed in range(2)]
    check_equal(exact(), cells, tolerance=EXACT, steps=10)


def test_a_lane_that_diverges_dies_alone():
    """One lane's weights are no longer finite in its fourth step."""
    cells = [cell(), cell(seed=1), cell(plw=1.0, rank=3)]
    model, execution = exact(), toys.execution()
    made = [lane(shell(model), one) for one in cells]

    class Overflowing(torch.optim.SGD):
        def step(self):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 3:
                self.param_groups[0]["params"][1].data.fill_(float("inf"))

    made[1] = replace(
        made[1], make_optimizer=lambda own, _: Overflowing(build.trained(own).values(), 1e-9)
    )
    first, dead, last = lanes.train(model, made, execution=execution)
    assert isinstance(dead, Diverged)
    assert (dead.step, dead.what) == (4, "loss")
    for number, course in ((0, first), (2, last)):
        theirs, known = alone(model, cells[number], execution)
        losses = [[entry["loss"] for entry in each.history] for each in (course, known)]
        assert losses[0] == pytest.approx(losses[1], rel=EXACT)
        expected = build.trained(theirs)
        for name, tensor in build.trained(made[number].model).items():
            torch.testing.assert_close(tensor, expected[name], rtol=EXACT, atol=EXACT)


def test_the_others_do_not_notice_a_gradient_that_is_not_finite():
    """To the last bit, against the same lanes with all gradients finite, in the steps before."""
    cells = [cell(), cell(seed=1), cell(plw=1.0, rank=3)]
    model, execution = exact(), toys.execution()

    def course(bad):
        made = [lane(shell(model), one) for one in cells]
        if bad:
            first = next(iter(build.trained(made[1].model).values()))
            first.data.fill_(float("nan"))
        models, found = [own.model for own in made], lanes.train(model, made, execution=execution)
        return [build.trained(one) for one in models], found

    (known, usual), (weights, found) = course(bad=False), course(bad=True)
    assert isinstance(found[1], Diverged)
    assert found[1].step == 1
    for number in (0, 2):
        assert found[number].history[0] == usual[number].history[0]
        for name, tensor in weights[number].items():
            torch.testing.assert_close(tensor, known[number][name], rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("rows", [3, 1])
def test_a_step_that_does_not_fit_is_taken_in_smaller_parts(rows, monkeypatch):
    """A forward pass of more than so many rows a lane runs out of memory."""
    cells = [cell(plw=0.5), cell(seed=2, rank=3)]
    model, usual, tried = exact(), lanes.lane_losses, []
    # On a CPU a forward pass of lanes has a size of its own, and is never tried smaller.
    monkeypatch.setattr(lanes, "CPU_TOKENS", 10**6)
    monkeypatch.setattr(room_of, "_FOUND", {})

    def limited(stacked, step, *more, **settings):
        of_lane = len(step.work.ids_BL) // step.lanes
        tried.append(of_lane)
        if of_lane > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return usual(stacked, step, *more, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(lanes, "lane_losses", limited)
        models, courses = together(model, cells, toys.execution())
    for one, ours, course in zip(cells, models, courses, strict=True):
        theirs, known = alone(model, one, toys.execution())
        assert course.out_of_memory >= (1 if rows == 3 else 2)
        losses = [[entry["loss"] for entry in each.history] for each in (course, known)]
        assert losses[0] == pytest.approx(losses[1], rel=EXACT)
        expected = build.trained(theirs)
        for name, tensor in build.trained(ours).items():
            torch.testing.assert_close(tensor, expected[name], rtol=EXACT, atol=EXACT)
    assert tried[0] == 5
    assert max(tried[-2:]) <= rows


def test_a_lane_without_any_weight_is_refused():
    made = [lane(shell(model := base()), cell()), lane(shell(model), cell(seed=1))]
    nothing = replace(made[1].objective, num=(0.0,) * len(made[1].objective.num))
    with pytest.raises(UserError, match="no token of its training rows has a weight"):
        lanes.train(
            model, [made[0], replace(made[1], objective=nothing)], execution=toys.execution()
        )


def test_the_base_is_shared_and_stays_as_it_was():
    model = base()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    models, _ = together(model, [cell(), cell(seed=1)], toys.execution())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    known = {tensor.data_ptr() for tensor in model.parameters()}
    for one in models:
        frozen = [p for p in one.parameters() if not p.requires_grad]
        assert {p.data_ptr() for p in frozen} == known


def test_an_input_that_is_no_rows_of_the_lanes_is_refused():
    model = base()
    made = [lane(shell(model), cell(seed=seed)) for seed in range(2)]
    stack = Stack(model, [one.model for one in made], [one.kind for one in made])
    stack.spread()
    layer = stack.model.get_submodule("model.layers.0.mlp.up_proj")
    with pytest.raises(ValueError, match=r"shape \(6, 32\), not rows of 2 lanes"):
        layer(torch.zeros(6, 32))


# --- which cells stand beside each other


def test_cells_that_differ_in_what_a_lane_owns_stand_beside_each_other():
    run = toys.execution(lanes=3)
    cells = {str(n): replace(one, execution=run) for n, one in enumerate(GRID)}
    assert groups(cells) == [["0", "1", "2"], ["3", "4", "5"], ["6", "7", "8"], ["9", "10", "11"]]
    alone = {key: replace(one, execution=toys.execution()) for key, one in cells.items()}
    assert groups(alone) == [[key] for key in alone]


ALONE = {
    "adapter=vera": cell("vera"),
    "adapter.options.dropout": cell(options={"dropout": 0.1}),
    "init=pissa": cell(init=schema.Init(name="pissa", kind="pissa")),
    "optimizer=riemannian": cell(optimizer=schema.Optimizer(name="riemannian", kind="riemannian")),
    "adapter=kasa": cell("kasa"),
    "regulariser.kl=0.1": cell(regulariser=schema.Regulariser(name="kl", kl=0.1)),
    "regulariser.neftune=5": cell(regulariser=schema.Regulariser(name="neftune", neftune=5.0)),
    "base_precision=nf4": cell(base_precision="nf4"),
    "embeddings=trained": cell(embeddings="trained"),
    "execution.layout=packed": cell(execution=toys.execution(layout="packed")),
}


@pytest.mark.parametrize("setting", ALONE)
def test_what_keeps_a_cell_alone_is_named(setting):
    assert obstacle(ALONE[setting]) == setting


def test_every_adapter_stands_in_a_lane_or_the_plan_names_it():
    beside = {level for level in levels.LEVELS if registry.method(levels.adapter(level)).lanes}
    assert beside == {*LEVELS, "full", "mora_decouple", "mora_grouped_2", "mora_grouped_3"}
    for level in set(levels.LEVELS) - beside - {"none"}:
        assert obstacle(cell(level)) == f"adapter={level}"


def test_a_plan_says_which_cells_train_alone():
    run = toys.execution(lanes=4)
    asked = (cell(), cell(seed=1), cell("vera"), cell("vera", seed=1))
    cells = [replace(one, execution=run) for one in asked]
    assert left_alone(cells) == ("execution.lanes=4: 2 of 4 runs train alone (2 with adapter=vera)")
    assert left_alone([cell("vera")]) == left_alone(cells[:2]) == ""
    other = replace(cells[0], train=replace(cells[0].train, max_length=64))
    said = "execution.lanes=4: 2 of 2 runs train alone (2 without another that has all that lanes"
    assert left_alone([cells[0], other]).startswith(said)


def test_cells_that_share_too_little_stand_apart():
    run = toys.execution(lanes=4)
    first = cell(execution=run)
    others = (
        cell(execution=run, batch_size=6),
        cell(execution=run, max_steps=STEPS + 1),
        cell(execution=toys.execution(lanes=4, micro_batch_size=2)),
        cell(execution=run, placement=schema.Placement(name="mlp", modules="mlp")),
        cell(execution=run, precision="bf16"),
        replace(first, model=replace(first.model, path="other")),
        replace(first, dataset=replace(first.dataset, max_rows=5)),
        replace(first, loss=replace(first.loss, label_smoothing=0.1)),
        replace(first, loss=replace(first.loss, token_rule="dft")),
    )
    for other in others:
        assert groups({"a": first, "b": other}) == [["a"], ["b"]]
