"""Lion and the trapezoid: algorithm 2 of arXiv 2302.06675 by hand, and branches of one run."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from transformers import get_wsd_schedule

from ablate.adapters.optimizers import OPTIMIZERS, maker
from ablate.config.schema import Optimizer, Train
from ablate.errors import UserError
from ablate.experiment.request import plan_grid
from ablate.training import optim
from ablate.training.hooks import Hooks, StepContext
from ablate.training.lion import Lion
from tests import levels, toys
from tests.unit.test_train import run, weights_of

LION = Optimizer(name="lion", kind="lion")
CELL = ("adapter=lora", "rank=2", "train.lr=1e-3", "evaluate=none", "score_base=false")
TRAPEZOID = {"schedule": "trapezoid", "warmup_steps": 3}


def rates(**settings) -> list[float]:
    """Return the rate of every step of a schedule whose highest rate is 1."""
    count = settings.pop("steps")
    made = optim.adamw(nn.Linear(2, 2), toys.train_settings(lr=1.0))
    course = optim.schedule(made, toys.train_settings(lr=1.0, **settings), steps=count)
    seen = []
    for _ in range(count):
        seen.append(float(course.get_last_lr()[0]))
        made.step()
        course.step()
    return seen


def test_every_step_is_the_algorithm_of_the_paper() -> None:
    """Betas apart, decay on matrices alone, gradients that change sign, in float64."""
    model, grads = toys.llama(), []
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    settings = toys.train_settings(
        batch_size=3, clip=None, schedule="linear", weight_decay=0.3, betas=(0.9, 0.5)
    )

    def note(context: StepContext) -> None:
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})

    result = run(model, settings=settings, hooks=Hooks(after_step=note), make_optimizer=maker(LION))
    assert len(grads) == 5
    for name, parameter in model.named_parameters():
        expected, m = before[name].numpy(), 0.0
        decay = 0.3 if parameter.ndim >= 2 else 0.0
        for step, entry in zip(grads, result.history, strict=True):
            g = step[name].numpy()
            c = 0.9 * m + (1 - 0.9) * g
            sign = (c > 0).astype(float) - (c < 0)
            expected = expected - entry["lr"] * (sign + decay * expected)
            m = 0.5 * m + (1 - 0.5) * g
        torch.testing.assert_close(
            parameter.detach(), torch.from_numpy(expected), rtol=1e-12, atol=1e-14
        )


def test_without_a_gradient_a_weight_stays_and_its_state_is_one_moment() -> None:
    used, idle = (nn.Parameter(torch.ones(4, 5)) for _ in range(2))
    made = Lion([{"params": [used, idle], "weight_decay": 0.1}], lr=0.25, betas=(0.9, 0.99))
    used.grad = torch.tensor([1.0, -2.0, 0.0, 1e-20, 3.0]).repeat(4, 1)
    made.step()
    moved = 0.975 - 0.25 * torch.tensor([1.0, -1.0, 0.0, 1.0, 1.0]).repeat(4, 1)
    torch.testing.assert_close(used.detach(), moved)
    assert torch.equal(idle.detach(), torch.ones(4, 5))
    (state,) = made.state.values()
    assert [v.nbytes / v.numel() for v in state.values()] == [OPTIMIZERS["lion"].state]


def test_it_trains_adapters_too() -> None:
    asked = levels.cell("lora", optimizer=LION)
    asked = dataclasses.replace(asked, train=toys.train_settings(max_steps=4, lr=0.01))
    losses = levels.fit(levels.applied(asked), asked)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("steps", "warmup"), [(20, 3), (21, 0), (50, 40)])
def test_a_trapezoid_is_transformers_own(steps: int, warmup: int) -> None:
    made = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    fall = round(0.2 * steps)
    course = get_wsd_schedule(
        made, warmup, fall, num_training_steps=steps, decay_type="linear", warmup_type="linear"
    )
    theirs = []
    for _ in range(steps):
        theirs.append(float(course.get_last_lr()[0]))
        made.step()
        course.step()
    assert rates(steps=steps, schedule="trapezoid", warmup_steps=warmup) == pytest.approx(theirs)


def test_a_rise_that_the_fall_cuts_off_ends_at_zero() -> None:
    """The shortest budgets of arXiv 2405.09673 end within the 1,000 steps of its warmup."""
    seen = rates(steps=10, schedule="trapezoid", warmup_steps=100, cooldown_ratio=0.5)
    assert seen == pytest.approx([0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.04, 0.03, 0.02, 0.01])


def test_a_cosine_may_have_a_floor() -> None:
    seen = rates(steps=11, schedule="cosine", warmup_ratio=0.0, min_lr_ratio=0.1)
    wanted = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 11)) for k in range(11)]
    assert seen == pytest.approx(wanted)


@pytest.mark.parametrize("rule", [LION, Optimizer()])
def test_a_short_run_is_a_branch_of_a_long_one(rule: Optimizer) -> None:
    """Until its fall it is the long run, step for step; and it ends as the branch from there."""
    long, short = 20, 10
    start = short - round(0.2 * short)
    kept: list[tuple[dict, dict]] = []

    def keep(context: StepContext) -> None:
        if context.step == start - 1:
            state = {n: p.detach().clone() for n, p in context.model.named_parameters()}
            kept.append((state, copy.deepcopy(context.optimizer.state_dict()["state"])))

    def course(steps: int, **more):
        model = toys.llama()
        settings = toys.train_settings(max_steps=steps, batch_size=3, **TRAPEZOID)
        hooks = Hooks(after_step=keep) if more else None
        given = {"hooks": hooks} if hooks else {}
        return run(model, settings=settings, make_optimizer=maker(rule), **given), model

    (trunk, _), (alone, model) = course(long, keep=True), course(short)
    same = ("loss", "lr", "grad_norm")
    for one, other in zip(trunk.history[:start], alone.history[:start], strict=True):
        assert {n: one[n] for n in same} == {n: other[n] for n in same}
    assert trunk.history[start]["lr"] == trunk.history[start - 1]["lr"]
    assert alone.history[start + 1]["lr"] < alone.history[start]["lr"]
    # Two steps by hand from the trunk's weights and moments on the branch's own rates.
    branch = toys.llama()
    (state, moments), *_ = kept
    branch.load_state_dict(state, strict=False)
    made = optim.optimizer(branch, toys.train_settings(), maker(rule))
    whole = made.state_dict()
    made.load_state_dict({**whole, "state": moments})
    grads: list[dict] = []

    def note(context: StepContext) -> None:
        grads.append({n: p.grad.clone() for n, p in context.model.named_parameters()})

    again = toys.llama()
    settings = toys.train_settings(max_steps=short, batch_size=3, **TRAPEZOID)
    run(again, settings=settings, make_optimizer=maker(rule), hooks=Hooks(after_step=note))
    for step in range(start, short):
        for group in made.param_groups:
            group["lr"] = alone.history[step]["lr"]
        for name, parameter in branch.named_parameters():
            parameter.grad = grads[step][name]
        made.step()
    torch.testing.assert_close(weights_of(branch), weights_of(model), rtol=1e-12, atol=1e-14)


def test_what_has_no_effect_is_no_part_of_a_run() -> None:
    """Runs without a trapezoid or a floor keep their keys; each of the new settings counts."""

    def key(**changes) -> str:
        words = [f"train.{name}={value}" for name, value in changes.items()]
        (named,) = plan_grid([*CELL, *words]).design.cells
        return named.key

    plain = key()
    assert key(cooldown_ratio=0.5) == plain
    falling = key(schedule="trapezoid")
    found = [
        plain, falling, key(schedule="trapezoid", cooldown_ratio=0.5), key(warmup_steps=0),
        key(warmup_steps=3), key(schedule="cosine", min_lr_ratio=0.1),
    ]  # fmt: skip
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"warmup_steps": -1}, "train.warmup_steps=-1: must be at least 0, or null"),
        ({"cooldown_ratio": 0.0}, "train.cooldown_ratio=0.0: must be above 0, at most 1"),
        ({"min_lr_ratio": 1.0}, "train.min_lr_ratio=1.0: must be in"),
        ({"schedule": "linear", "min_lr_ratio": 0.1}, "train.min_lr_ratio=0.1: must be 0 with"),
    ],
)
def test_values_out_of_range_are_one_line(given, said) -> None:
    with pytest.raises(UserError) as raised:
        Train(name="toy", lr=0.1, **given)
    assert str(raised.value).startswith(said)
