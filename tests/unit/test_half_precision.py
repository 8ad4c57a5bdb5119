"""Training of 16-bit weights: fp32 masters, 8-bit moments, and masters kept on the CPU."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from ablate.adapters import build
from ablate.adapters.optimizers import OPTIMIZERS, maker
from ablate.config import schema
from ablate.errors import UserError
from ablate.experiment.request import plan_grid
from ablate.training import adamw_8bit, masters, optim
from ablate.training.loop import train
from tests import levels, toys
from tests.eight_bits import beside_the_peer
from tests.levels import cell

STEPS, RATE = 20, 2e-5
EIGHT = schema.Optimizer(name="adamw_8bit", kind="adamw_8bit")


def small_steps(level: str, *, half: bool, **changes) -> tuple[Tensor, Tensor]:
    """All trained weights before and after 20 steps at 2e-5, in fp32; the start is the same."""
    asked = cell(level, base_precision="bf16" if half else "fp32", **changes)
    settings = toys.train_settings(
        batch_size=7, max_steps=STEPS, schedule="constant", lr=RATE, precision="bf16", clip=None
    )
    base = levels.base("llama").to(torch.bfloat16)
    module = build.apply(base if half else base.float(), asked, streams=levels.Streams(0))
    before = flat(module)
    levels.fit(module, dataclasses.replace(asked, train=settings))
    return before, flat(module)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().float().reshape(-1) for p in optim.trainable(module)])


# --- fp32 masters


@pytest.mark.parametrize(("level", "embeddings"), [("full", "trained"), ("lora", "trained")])
def test_a_16_bit_base_is_trained_as_the_same_weights_in_32_bits(level, embeddings):
    start, exact = small_steps(level, half=False, embeddings=embeddings)
    same, half = small_steps(level, half=True, embeddings=embeddings)
    assert torch.equal(start, same)
    rounded = exact.bfloat16().float()
    spacing = 2.0 ** (torch.frexp(rounded)[1].float() - 8)
    away = (half - exact).abs() <= 0.5 * spacing + 0.05 * RATE * STEPS
    assert away.float().mean() > 0.97  # a gradient near zero may have either sign in 16 bits
    moved, expected = (float((x != start).float().mean()) for x in (half, rounded))
    assert moved == pytest.approx(expected, abs=0.01)


def test_without_masters_most_entries_are_stuck(monkeypatch):
    start, trained = small_steps("full", half=True)
    monkeypatch.setattr(optim, "with_masters", lambda made: made)
    _, stuck = small_steps("full", half=True)
    shares = [float((x != start).float().mean()) for x in (trained, stuck)]
    assert shares[1] < 0.6 * shares[0]


def test_masters_have_the_groups_and_the_state_of_the_optimizer():
    module = build.apply(
        levels.base("llama").to(torch.bfloat16), cell("full"), streams=levels.Streams(0)
    )
    made = optim.optimizer(module, toys.train_settings(weight_decay=0.3))
    schedule = optim.schedule(made, toys.train_settings(), steps=4)
    assert isinstance(made, masters.Masters)
    held = [p for group in made.param_groups for p in group["params"]]
    assert {p.dtype for p in held} == {torch.float32}
    assert {g["weight_decay"] for g in made.param_groups} == {0.3, 0.0}
    module(input_ids=levels.tokens(), labels=levels.tokens()).loss.backward()
    made.step()
    schedule.step()
    assert {id(p) for p in made.state} <= {id(p) for p in held}
    assert all(p.grad is None for p in held)
    assert any(p.grad is not None for p in optim.trainable(module))  # hooks may read them
    made.zero_grad()
    assert all(p.grad is None for p in optim.trainable(module))


def test_weights_in_32_bits_need_none():
    made = optim.optimizer(levels.base("llama"), toys.train_settings())
    assert isinstance(made, optim.GroupedAdamW)


def test_only_cells_that_train_16_bit_weights_are_other_runs():
    def described(*lines: str) -> dict:
        asked = ["base_precision=bf16", "train.lr=0.01", *lines]
        cells = plan_grid(asked).design.cells
        return next(c for c in cells if not c.cell.is_base).identity.description["train"]

    assert "rounding" not in described("adapter=lora")
    assert described("adapter=lora", "embeddings=trained")["rounding"] == "master"
    assert described("adapter=full")["rounding"] == "master"
    assert described("adapter=full", "optimizer=adamw_8bit")["rounding"] == "stochastic"
    assert "rounding" not in described("adapter=full", "base_precision=fp32")


def test_automatic_precision_is_a_matter_of_the_cell_alone():
    def chosen(*lines: str) -> dict[str, str]:
        cells = plan_grid(["base_precision=auto", "train.lr=0.01", *lines]).design.cells
        return {c.cell.adapter.name: c.cell.base_precision for c in cells}

    adapters = "adapter=none,full,lora,layernorm"
    assert set(chosen(adapters).values()) == {"fp32"}
    half = chosen(adapters, "train.precision=bf16")
    assert half == {"none": "bf16", "full": "fp32", "lora": "bf16", "layernorm": "fp32"}
    beside = chosen("adapter=lora", "train.precision=bf16", "embeddings=trained")
    assert beside["lora"] == "fp32"
    explicit, automatic = (
        next(c for c in plan_grid(lines).design.cells if not c.cell.is_base).key
        for lines in (
            [f"base_precision={p}", "train.precision=bf16", "train.lr=0.01"]
            for p in ("bf16", "auto")
        )
    )
    assert explicit == automatic


# --- masters and moments on the CPU


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_offloading_changes_nothing(precision):
    asked = cell("lora", embeddings="trained", base_precision=precision)
    asked = dataclasses.replace(asked, train=toys.train_settings(max_steps=4, lr=0.02))
    found = []
    for offload in (False, True):
        base = levels.base("llama")
        base = base.to(torch.bfloat16) if precision == "bf16" else base
        module = build.apply(base, asked, streams=levels.Streams(0))
        make = maker(asked.optimizer, offload=offload)
        made = optim.optimizer(module, asked.train, make)
        assert isinstance(made, masters.Masters) == (offload or precision == "bf16")
        train(
            module,
            levels.DATA,
            asked.train,
            objective=levels.objective_of(asked),
            streams=levels.Streams(0),
            execution=asked.execution,
            make_optimizer=make,
        )
        found.append(flat(module))
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", ["adamw_8bit", "paged_adamw"])
def test_what_cannot_step_on_the_cpu_is_refused(kind):
    said = f"execution.offload_optimizer=true: not with optimizer={kind}; with it optimizer must be"
    with pytest.raises(UserError, match=said):
        maker(schema.Optimizer(name=kind, kind=kind), offload=True)


# --- 8 bits


def test_codes_are_those_of_the_paper():
    """Counts and ends of section 2.3 and of its authors' table, whose extremes are known."""
    signed, unsigned = (adamw_8bit.code_values(s) for s in (True, False))
    for values in (signed, unsigned):
        assert len(set(values)) == 256
        assert values[-1] == 1.0
    assert sum(v > 0.1 for v in unsigned) == 128 + 1
    assert sum(v > 0.1 for v in signed) == sum(v < -0.1 for v in signed) + 1 == 64 + 1
    assert min(v for v in signed if v > 0) == pytest.approx(0.55e-6)
    assert min(v for v in unsigned if v > 0) == pytest.approx(0.325e-6)
    assert signed[-2] == pytest.approx(1 - 0.9 / 64 / 2)
    peer = pytest.importorskip("bitsandbytes").functional.create_dynamic_map
    for sign, values in ((True, signed), (False, unsigned)):
        torch.testing.assert_close(peer(signed=sign), torch.tensor(values))


def test_a_number_in_8_bits_is_the_nearest_code_of_its_block():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) ** 3
    for signed in (True, False):
        given = values if signed else values.abs()
        codes, scales = adamw_8bit.quantised(given, signed=signed)
        back = adamw_8bit.dequantised(codes, scales, signed=signed).view(-1)[:1000]
        table = torch.tensor(adamw_8bit.code_values(signed))
        for block, scale in enumerate(scales):
            part = given[block * 256 : block * 256 + 256]
            nearest = (table * scale - part[:, None]).abs().amin(1)
            error = (back[block * 256 : block * 256 + 256] - part).abs()
            torch.testing.assert_close(error, nearest, rtol=1e-4, atol=1e-7)
    assert not adamw_8bit.quantised(torch.zeros(256), signed=True)[1].any()


def both(shape: tuple[int, ...], steps: int = 60) -> tuple[Tensor, Tensor]:
    """A quadratic's minimum by 8-bit AdamW and by torch's, from one start."""
    draw = torch.Generator().manual_seed(0)
    start, goal = torch.randn(*shape, generator=draw), torch.randn(*shape, generator=draw)
    scale = torch.rand(*shape, generator=draw) + 0.1
    found = []
    for kind in (optim.GroupedAdamW, adamw_8bit.AdamW8bit):
        weight = nn.Parameter(start.clone())
        settings = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8}
        if kind is adamw_8bit.AdamW8bit:
            groups = optim.decay_groups([weight], 0.1)
            made: torch.optim.Optimizer = adamw_8bit.AdamW8bit(groups, seed=0, **settings)
        else:
            made = optim.GroupedAdamW([weight], weight_decay=0.1, **settings)
        for _ in range(steps):
            made.zero_grad()
            (scale * (weight - goal) ** 2).sum().backward()
            made.step()
        found.append(weight.detach() - start)
    return found[0], found[1]


def test_8_bit_adamw_is_adamw_but_for_rounding():
    exact, rounded = both((63, 7))  # too small for 8 bits
    torch.testing.assert_close(rounded, exact, rtol=1e-4, atol=1e-6)
    exact, rounded = both((90, 111))
    assert not torch.equal(exact, rounded)
    assert (rounded - exact).norm() < 0.06 * exact.norm()  # codes are 1 to 7 % apart


def test_8_bit_adamw_is_that_of_bitsandbytes():
    ours, peers, exact, start = beside_the_peer("cpu")
    off = [float((w - exact).norm() / (exact - start).norm()) for w in (ours, peers)]
    assert max(off) < 0.02
    assert float((ours - peers).norm()) < 0.3 * float((ours - exact).norm())


def test_chunks_do_not_change_the_result(monkeypatch):
    whole = both((90, 111), steps=3)[1]
    monkeypatch.setattr(adamw_8bit, "CHUNK", 512)
    assert torch.equal(both((90, 111), steps=3)[1], whole)


def test_state_in_8_bits_has_the_size_of_the_row():
    weight = nn.Parameter(torch.zeros(300, 1024))
    made = adamw_8bit.AdamW8bit([{"params": [weight], "weight_decay": 0.0}], seed=0, lr=0.1,
                                betas=(0.9, 0.999), eps=1e-8)  # fmt: skip
    weight.grad = torch.ones_like(weight)
    made.step()
    moments = made.state[weight]["moments"]
    held = sum(m["codes"].nbytes + m["scales_B"].nbytes for m in moments)
    assert held / weight.numel() == OPTIMIZERS["adamw_8bit"].state
    factored = optim.adafactor(
        nn.Linear(4096, 8, bias=False), toys.train_settings(), {"clip_threshold": 1.0, "decay": 0.8}
    )
    (matrix,) = (p for group in factored.param_groups for p in group["params"])
    matrix.grad = torch.ones_like(matrix)
    factored.step()
    tensors = [t for t in factored.state[matrix].values() if isinstance(t, Tensor) and t.ndim]
    assert sum(t.nbytes for t in tensors) / matrix.numel() == pytest.approx(
        OPTIMIZERS["adafactor"].state, rel=0.01
    )


def test_rounding_at_random_is_right_in_the_mean_and_always_a_neighbour():
    value = torch.full((200_000,), 1 + 0.3 / 128)  # neighbours 1 and 1 + 1/128
    for sign in (1, -1):
        rounded = adamw_8bit.stochastically_rounded(
            sign * value, torch.Generator().manual_seed(1)
        ).float()
        assert set(rounded.unique().tolist()) == {sign * 1.0, sign * (1 + 1 / 128)}
        assert float((rounded != sign).float().mean()) == pytest.approx(0.3, abs=0.005)
    exact = torch.tensor([0.0, -1.5, 3.0])
    assert torch.equal(adamw_8bit.stochastically_rounded(exact, torch.Generator()).float(), exact)


def test_steps_below_the_spacing_add_up_without_masters():
    start, exact = small_steps("full", half=False)
    _, half = small_steps("full", half=True, optimizer=EIGHT)
    course = exact - start
    assert float((half - start) @ course / (course @ course)) == pytest.approx(1, abs=0.05)


def test_rounding_is_the_same_in_every_process_and_another_for_another_seed():
    def trained(seed: int) -> Tensor:
        module = levels.base("llama").to(torch.bfloat16)
        made = optim.optimizer(module, toys.train_settings(lr=1e-4), maker(EIGHT, seed=seed))
        torch.manual_seed(int(torch.randint(99, ())))
        module(input_ids=levels.tokens(), labels=levels.tokens()).loss.backward()
        made.step()
        return flat(module)

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_only_matrices_decay_in_8_bits_and_without_moments():
    for kind in ("adamw_8bit", "adafactor"):
        asked = schema.Optimizer(name=kind, kind=kind)
        made = optim.optimizer(
            levels.base("llama"), toys.train_settings(weight_decay=0.3), maker(asked)
        )
        for group in made.param_groups:
            assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.3}
