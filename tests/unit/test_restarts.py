"""When adapters restart: in the real training loop, and in the rows of the table."""

import math

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn

from ablate.adapters.lora.starts import draw_rows
from ablate.adapters.mora import restarts
from ablate.adapters.mora.relora import ReloraConfig
from ablate.adapters.mora.remora import RemoraConfig
from ablate.adapters.mora.restart_layer import RestartLayer
from ablate.adapters.mora.spec import ROWS, restart_steps
from ablate.config.schema import Loss
from ablate.errors import UserError
from ablate.objective import make_objective
from ablate.streams import Streams
from ablate.training.history import Result
from ablate.training.hooks import Hooks, StepContext, combine
from ablate.training.loop import train
from tests import toys
from tests.dense import adapter_buffers
from tests.restarted import (
    METHODS,
    assert_close,
    draws,
    logits,
    wrapped,
)

# PEFT 0.21 asks transformers 5.23 under a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

OPTIONS = {"restarts": 3, "every": None, "rewarmup": 0.4, "floor": 0.0}

# --- when


@pytest.mark.parametrize(
    ("steps", "changes", "expected"),
    [
        (20, {}, [5, 10, 15]),
        (10, {}, [2, 5, 8]),
        (3, {}, [1, 2]),
        (100, {"restarts": 1}, [50]),
        (20, {"every": 6}, [6, 12, 18]),
        (18, {"every": 6}, [6, 12]),
        (2, {"every": 1}, [1]),
    ],
)
def test_restart_steps_lie_inside_the_run(steps, changes, expected):
    assert restart_steps(steps, OPTIONS | changes) == expected


@pytest.mark.parametrize(
    ("steps", "changes", "said"),
    [(1, {}, "restarts=3: no restart .* run of 1 steps"), (6, {"every": 6}, "every=6: no restart")],
)
def test_a_run_without_a_restart_is_refused(steps, changes, said):
    with pytest.raises(UserError, match=said) as raised:
        restart_steps(steps, OPTIONS | changes)
    assert "\n" not in str(raised.value)


def test_the_paper_s_rewarmup_is_fifty_steps():
    stated = {name: option.default for name, option in ROWS["remora"].options.items()}
    paper = stated | {"every": 2000}
    factors = [restarts.warmth(step, 10_000, paper) for step in (1999, 2000, 2001, 2049, 2050)]
    assert factors == [1.0, 0.0, 1 / 50, 49 / 50, 1.0]
    assert restarts.warmth(0, 10_000, paper) == 1.0  # the schedule's own warm-up
    without = paper | {"rewarmup": 0.0}
    assert {restarts.warmth(step, 10_000, without) for step in range(1990, 2010)} == {1.0}


@pytest.mark.parametrize("stage", [1, 2, 3, 5, 10, 40])
def test_a_short_stage_warms_up_and_no_step_of_it_is_at_rate_zero(stage):
    """A fortieth of less than 41 steps is one step, which the released ramp would set to zero."""
    options = {name: option.default for name, option in ROWS["relora"].options.items()}
    factors = [
        restarts.warmth(stage + k, 3 * stage, options | {"every": stage}) for k in range(stage)
    ]
    ramp = [f for f in factors if f < 1]
    assert len(ramp) == min(restarts.SHORT, stage // 2)
    assert factors[len(ramp) :] == [1.0] * (stage - len(ramp))
    assert all(f > 0 for f in factors)
    assert np.diff([*ramp, 1.0]) == pytest.approx(
        (1 - factors[0]) / max(1, len(ramp)) * np.ones(len(ramp))
    )


def test_the_schedule_is_that_of_the_released_code():
    """First warm-up, cosine to a tenth, and a ramp after each restart, written out again."""
    watch, steps, first, ramp = Watch(), 200, 10, 2
    options = {"restarts": 3, "every": None, "rewarmup": 0.04, "floor": 0.1}
    hooks = restarts.hooks(options, Streams(0))
    run(wrapped("relora"), hooks=combine(watch.before(), hooks, watch.after()), steps=steps,
        schedule="cosine", warmup_ratio=first / steps)  # fmt: skip

    def multiplier(step: int) -> float:
        if step < first:
            return step / first
        cosine = 0.5 * (1 + math.cos(math.pi * (step - first) / (steps - first)))
        rise = min(1.0, step % 50 / ramp) if step >= 50 else 1.0
        return rise * (0.1 + 0.9 * cosine)

    assert watch.rates == pytest.approx([0.01 * multiplier(step) for step in range(steps)])
    assert watch.rates[-1] == pytest.approx(0.001, rel=0.01)


# --- in the training loop


def run(model: nn.Module, *, hooks: Hooks, steps: int = 20, seed: int = 0, **settings) -> Result:
    settings = {"max_steps": steps, "epochs": 100.0, "schedule": "constant", "lr": 0.01} | settings
    return train(
        model,
        toys.tokenised(toys.examples(8)),
        toys.train_settings(**settings),
        objective=make_objective(toys.masking("instruction"), 0.0, 1.0, Loss()),
        streams=Streams(seed),
        execution=toys.execution(),
        hooks=hooks,
    )


class Watch:
    """What happens around the restarts of a run."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.shares: list[float] = []  # of the trained parameters that have an optimizer state

    def before(self) -> Hooks:
        def after_step(context: StepContext) -> None:
            self.logits = logits(context.model.eval())
            context.model.train()

        return Hooks(after_step=after_step)

    def after(self) -> Hooks:
        def after_backward(context: StepContext) -> None:
            self.rates.append(context.optimizer.param_groups[0]["lr"])

        def after_step(context: StepContext) -> None:
            assert_close(logits(context.model.eval()), self.logits)
            context.model.train()
            trained = [p for p in context.model.parameters() if p.requires_grad]
            known = [p for p in trained if "exp_avg" in context.optimizer.state.get(p, {})]
            self.shares.append(len(known) / len(trained))

        return Hooks(after_backward=after_backward, after_step=after_step)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_restarts_as_stated(method):
    model, watch = wrapped(method), Watch()
    base_before = {n: p.detach().clone() for n, p in model.named_parameters() if "base_layer" in n}
    stages = combine(watch.before(), restarts.hooks(OPTIONS, Streams(0)), watch.after())
    result = run(model, hooks=stages)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    # Restarts after steps 5, 10 and 15, the ramp is ceil(0.4 * 5) = 2 steps long.
    ramped = [0.0, 0.5, 1.0, 1.0, 1.0]
    assert watch.rates == pytest.approx([0.01 * f for f in [1.0] * 5 + ramped * 3])
    assert watch.shares == [0.0 if step in (5, 10, 15) else 1.0 for step in range(1, 21)]
    layers = [m for m in model.modules() if isinstance(m, RestartLayer)]
    assert len(layers) == 14
    assert {int(layer.stage["default"]) for layer in layers} == {3}
    assert all(layer.past["default"].any() for layer in layers)
    for name, p in model.named_parameters():
        assert "base_layer" not in name or torch.equal(p, base_before[name])


def test_the_past_takes_memory_from_the_first_restart_on():
    model, sizes = wrapped("relora"), []

    def look(context: StepContext) -> None:
        layers = [m for m in context.model.modules() if isinstance(m, RestartLayer)]
        sizes.append({m.past["default"].shape == m.get_base_layer().weight.shape for m in layers})

    run(model, hooks=combine(restarts.hooks(OPTIONS, Streams(0)), Hooks(after_step=look)))
    assert sizes == [{step >= 5} for step in range(1, 21)]


def test_the_ramp_multiplies_the_schedule():
    watch = Watch()
    stages = combine(watch.before(), restarts.hooks(OPTIONS, Streams(0)), watch.after())
    run(wrapped("cycle"), hooks=stages, schedule="linear")
    ramp = [1.0] * 5 + [0.0, 0.5, 1.0, 1.0, 1.0] * 3
    expected = [0.01 * (1 - t / 20) * factor for t, factor in enumerate(ramp)]
    assert watch.rates == pytest.approx(expected)


def test_other_parameters_keep_their_optimizer_state():
    model, watch = wrapped("relora"), Watch()
    model.get_input_embeddings().requires_grad_(True)
    options = {"restarts": 3, "every": 4, "rewarmup": 0.0, "floor": 0.0}
    stages = combine(watch.before(), restarts.hooks(options, Streams(0)), watch.after())
    run(model, hooks=stages, steps=5)
    # The fifth step filled the dropped states again; the fourth left the embeddings' alone.
    assert watch.shares == [1.0, 1.0, 1.0, 1 / 29, 1.0]


def test_relora_is_lora_until_its_first_restart():
    losses = {
        name: [entry["loss"] for entry in run(wrapped(name), hooks=stages).history]
        for name, stages in (
            ("lora", Hooks()),
            ("relora", restarts.hooks(OPTIONS, Streams(0))),
        )
    }
    lora, relora = losses["lora"], losses["relora"]
    assert relora[:5] == lora[:5]
    assert relora[5] == pytest.approx(lora[5], rel=1e-9)  # the restart kept the function
    assert all(one != other for one, other in zip(relora[6:], lora[6:], strict=True))


def test_no_two_ways_to_restart_train_alike():
    def trace(method: str) -> tuple[float, ...]:
        course = run(wrapped(method), hooks=restarts.hooks(OPTIONS, Streams(0)))
        return tuple(entry["loss"] for entry in course.history)

    traces = {method: trace(method) for method in METHODS}
    assert len(set(traces.values())) == len(METHODS)
    assert trace("permute") == traces["permute"]


def redrawn(seed: int, r: int = 2, number: int = 1) -> dict[str, Tensor]:
    model = wrapped("relora", r)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
    for _ in range(number):
        restarts.restart(model, optimizer, streams=Streams(seed))
    return {
        name: layer.lora_A["default"].weight.detach().clone()
        for name, layer in model.named_modules()
        if isinstance(layer, RestartLayer)
    }


def test_redraws_depend_on_seed_restart_and_layer_alone():
    first, again, other, later = redrawn(0), redrawn(0), redrawn(1), redrawn(0, number=2)
    larger = redrawn(0, r=5)
    rows = set()
    for name, A in first.items():
        assert torch.equal(A, again[name])
        assert not torch.equal(A, other[name])
        assert not torch.equal(A, later[name])
        assert torch.equal(A, larger[name][:2])
        rows |= {tuple(row.tolist()) for row in A}
    assert len(rows) == 2 * len(first)


def test_redraws_follow_pefts_law():
    A = torch.empty(64, 50)
    draw_rows(A, draws(0))
    bound = 50**-0.5
    assert bound * 0.99 < A.abs().max() < bound
    assert A.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)  # 3,200 draws: 0.8 % in sd


def test_what_persists_is_small_where_it_can_be():
    names = {
        method: {name.split(".")[-2] for name in adapter_buffers(wrapped(method), RestartLayer)}
        for method in METHODS
    }
    plain = {"past", "stage"}
    assert names == {m: plain for m in METHODS} | {"permute": plain | {"order_in", "order_out"}}
    assert adapter_buffers(wrapped("lora"), RestartLayer) == {}


# --- the rows


@pytest.mark.parametrize("kind", ["remora", "relora"])
def test_rows_count_and_build_what_they_say(kind):
    row = ROWS[kind]
    options = {name: option.default for name, option in row.options.items()} | {"dropout": 0.1}
    model = toys.llama(torch.float32)
    shapes = {
        name: tuple(m.weight.shape)
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and name != "lm_head"
    }
    made = {"remora": RemoraConfig, "relora": ReloraConfig}[kind]
    module = peft.get_peft_model(
        model, made(**row.arguments_at(3, shapes, options), target_modules=list(shapes))
    )
    counted = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert counted == row.parameters_at(3, shapes, options)
    drops = {m.p for m in module.modules() if isinstance(m, nn.Dropout)}
    assert drops == {0.1}
    assert row.config == f"{made.__module__}:{made.__name__}"


@pytest.mark.parametrize("kind", ["remora", "relora"])
def test_what_moves_the_restarts_is_another_run_and_nothing_else_is(kind):
    row, shapes = ROWS[kind], {"proj": (32, 32)}
    options = {name: option.default for name, option in row.options.items()}
    others = [
        {},
        {"restarts": 5},
        {"every": 10},
        {"rewarmup": 0.1},
        {"floor": 0.2},
        {"dropout": 0.1},
    ]
    others += [{"groups": "same"}] if kind == "remora" else [{"alpha": 5.0}]
    found = [str(row.capacity_at(4, shapes, options | other)) for other in others]
    assert len(set(found)) == len(others)
    every = options | {"every": 10}
    assert row.capacity_at(4, shapes, every) == row.capacity_at(4, shapes, every | {"restarts": 7})


def test_options_accept_what_they_say():
    options = ROWS["remora"].options
    accepted = {"restarts": (1, 9), "every": (None, 1, 50), "rewarmup": (0, 0.5)}
    refused = {"restarts": (0, 2.5, True), "every": (0, -1, 2.5, True, "x"), "rewarmup": (1, -0.1)}
    for name in accepted:
        assert all(options[name].accepts(value) for value in accepted[name])
        assert not any(options[name].accepts(value) for value in refused[name])
    assert not options["groups"].accepts("rotate")
