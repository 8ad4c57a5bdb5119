import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor

from ablate.config.schema import Loss
from ablate.errors import UserError
from ablate.objective import Objective, make_objective
from ablate.roles import Role
from ablate.streams import Streams
from ablate.training.history import SHARE_EVERY, Diverged, Result
from ablate.training.hooks import Hooks, StepContext
from ablate.training.loop import process_accelerator, train
from ablate.training.loss import TokenLossModel
from tests import reference, toys

EXACT = {"rtol": 1e-12, "atol": 1e-13}  # float64 sums in another order
ROWS = toys.examples(14)


def objective_with(
    mode: str = "none", plw: float = 0.25, completion: float = 1.0, **loss: Any
) -> Objective:
    return make_objective(toys.masking(mode), plw, completion, Loss(**loss))


def run(model: Any, *, objective: Objective | None = None, **given: Any) -> Result:
    """Train `model`; any of `train`'s arguments may be given, and the rows."""
    defaults: dict[str, Any] = {"streams": Streams(0), "execution": toys.execution()}
    settings = given.pop("settings", toys.train_settings())
    data = toys.tokenised(given.pop("rows", ROWS))
    return train(model, data, settings, objective=objective or objective_with(), **defaults | given)


def weights_of(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient_of(model: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def one_step(extra: Any = None, **given: Any) -> tuple[Result, Tensor]:
    """Return the course and the unclipped gradient of a single step over all rows."""
    seen: list[Tensor] = []
    hooks = Hooks(after_backward=lambda context: seen.append(gradient_of(context.model).clone()))
    if extra is not None:
        hooks = replace(hooks, extra_loss=extra)
    settings = toys.train_settings(batch_size=len(ROWS), max_steps=1)
    result = run(toys.llama(), settings=settings, hooks=hooks, **given)
    return result, seen[0]


@functools.cache
def naive(scope: str, normaliser: str) -> tuple[float, Tensor]:
    model = toys.llama()
    weights = {role: 0.25 for role in Role} | {Role.COMPLETION: 1.0}
    sums = []
    for ids, roles in ROWS:
        losses = reference.token_losses(model, ids)
        sums.append(reference.example_sums(losses, roles, weights, normaliser))
    loss = reference.step_loss([sums], scope)
    loss.backward()
    return loss.item(), gradient_of(model)


@pytest.mark.parametrize("execution", [{}, {"micro_batch_size": 4}, {"layout": "packed"}])
@pytest.mark.parametrize(
    ("scope", "normaliser"), [("batch", "weight"), ("example", "tokens"), ("batch", "examples")]
)
def test_the_gradient_of_a_step_is_that_of_the_naive_loss(
    scope: str, normaliser: str, execution: dict[str, Any]
) -> None:
    """Accumulation in 1, 4 or one packed micro-batch: the mean of means would be off by 5 %."""
    objective = objective_with(scope=scope, normaliser=normaliser)
    result, grad = one_step(objective=objective, execution=toys.execution(**execution))
    loss, expected = naive(scope, normaliser)
    assert result.history[0]["loss"] == pytest.approx(loss, rel=1e-12)
    assert result.history[0]["grad_norm"] == pytest.approx(float(expected.norm()), rel=1e-12)
    torch.testing.assert_close(grad, expected, **EXACT)


def test_same_seed_same_bits() -> None:
    def trained(streams: Streams) -> Tensor:
        model = toys.llama(torch.float32, attention_dropout=0.2)
        run(model, streams=streams, settings=toys.train_settings(epochs=2.0))
        return weights_of(model)

    first = trained(Streams(3))
    assert torch.equal(first, trained(Streams(3)))
    for other in (Streams(4), Streams(3, "b")):
        assert not torch.equal(first, trained(other))


def test_the_order_of_the_examples_is_that_of_its_stream() -> None:
    lengths = np.array([len(ids) for ids, _ in ROWS])
    for streams in (Streams(0), Streams(1), Streams(0, "b")):
        result = run(toys.llama(), streams=streams)
        order = streams.numpy("order").permutation(len(ROWS))
        expected = [lengths[order[i : i + 4]].sum() for i in range(0, len(ROWS), 4)]
        assert [e["tokens"] for e in result.history] == expected


def test_a_step_starts_without_the_gradient_of_the_step_before() -> None:
    """Warmup makes the first rate zero, so that both steps see the same weights and rows."""
    seen: list[Tensor] = []
    hooks = Hooks(after_backward=lambda context: seen.append(gradient_of(context.model).clone()))
    settings = toys.train_settings(batch_size=len(ROWS), epochs=2.0, warmup_ratio=0.5)
    run(toys.llama(), settings=settings, hooks=hooks)
    torch.testing.assert_close(seen[1], seen[0], **EXACT)


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = torch.rand(2)
        torch.manual_seed(seed)
        model = toys.llama(torch.float32, attention_dropout=0.2)
        run(model)
        assert torch.equal(torch.rand(2), expected)
        found.append(weights_of(model))
    assert torch.equal(*found)


def test_layouts_and_micro_batches_train_the_same_weights() -> None:
    found = []
    for execution in ({}, {"micro_batch_size": 1}, {"micro_batch_size": 3}, {"layout": "packed"}):
        model = toys.llama()
        run(
            model,
            execution=toys.execution(**execution),
            settings=toys.train_settings(epochs=2.0, clip=0.5),
        )
        found.append(weights_of(model))
    for other in found[1:]:
        # AdamW's division by the root of a tiny second context magnifies the last bits
        torch.testing.assert_close(other, found[0], rtol=1e-7, atol=1e-9)


def test_checkpointing_changes_no_gradient_and_is_switched_off_after() -> None:
    _, plain = one_step()
    _, checkpointed = one_step(execution=toys.execution(gradient_checkpointing=True))
    torch.testing.assert_close(checkpointed, plain, **EXACT)
    model = toys.llama()
    run(model, execution=toys.execution(gradient_checkpointing=True))
    assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    assert not model.training


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT 0.21
def test_checkpointing_works_under_an_adapter_on_frozen_embeddings() -> None:
    config = peft.LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    found = []
    for on in (False, True):
        with Streams(0).global_torch("init"):
            model = peft.get_peft_model(toys.llama(), config).double()
        result = run(model, execution=toys.execution(gradient_checkpointing=on))
        assert result.history[0]["grad_norm"] > 0
        found.append(weights_of(model))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)


def test_bf16_is_autocast_over_float32_weights() -> None:
    model = toys.llama(torch.float32)
    settings = toys.train_settings(batch_size=len(ROWS), max_steps=1)
    objective = objective_with("instruction")
    full = run(toys.llama(torch.float32), settings=settings, objective=objective).history[0]
    half = run(model, settings=replace(settings, precision="bf16"), objective=objective).history[0]
    assert half["loss"] == pytest.approx(full["loss"], rel=2e-2)
    assert half["loss"] != full["loss"]
    assert half["loss_completion"] == pytest.approx(half["loss"], rel=1e-6)  # summed in float32
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_history_counts_what_was_seen() -> None:
    ticks: list[tuple[int, int]] = []
    settings = toys.train_settings(epochs=2.0)
    result = run(
        toys.llama(),
        settings=settings,
        execution=toys.execution(micro_batch_size=3),
        tick=lambda done, total: ticks.append((done, total)),
    )
    assert ticks == [(i, 7) for i in range(1, 8)]
    assert [e["step"] for e in result.history] == list(range(1, 8))
    assert result.examples_seen == 28
    assert result.tokens_seen == 2 * sum(len(ids) for ids, _ in ROWS)
    weight = sum(1.0 if r == Role.COMPLETION else 0.25 for _, roles in ROWS for r in roles[1:])
    assert result.supervised_weight_seen == pytest.approx(2 * weight)
    assert result.train_seconds > 0
    assert result.peak_mb > 0


def test_the_history_has_the_mean_loss_of_each_trained_role() -> None:
    entry = one_step(objective=objective_with("boilerplate"))[0].history[0]
    model = toys.llama()
    losses: dict[Role, list[float]] = {}
    for ids, roles in ROWS:
        for t, loss in enumerate(reference.token_losses(model, ids)[1:], start=1):
            losses.setdefault(roles[t], []).append(loss.item())
    for role in Role:
        name = f"loss_{role.name.lower()}"
        if role in (Role.SYSTEM, Role.INSTRUCTION, Role.INPUT, Role.COMPLETION):
            assert entry[name] == pytest.approx(np.mean(losses[role]), rel=1e-12)
        elif role != Role.PAD:
            assert entry[name] is None


@pytest.mark.parametrize("execution", [{}, {"micro_batch_size": 3}, {"layout": "packed"}])
def test_the_completions_share_is_that_of_autograds_logit_gradients(
    execution: dict[str, Any],
) -> None:
    model = toys.llama()
    norms = {True: 0.0, False: 0.0}
    for ids, roles in ROWS:
        logits_LV = model(input_ids=torch.tensor([ids])).logits[0].detach().requires_grad_()
        weights = torch.tensor([1.0 if r == Role.COMPLETION else 0.25 for r in roles[1:]])
        losses = torch.nn.functional.cross_entropy(
            logits_LV[:-1], torch.tensor(ids[1:]), reduction="none"
        )
        (grad_LV,) = torch.autograd.grad((weights * losses).sum(), logits_LV)
        for t, role in enumerate(roles[1:]):
            norms[role == Role.COMPLETION] += grad_LV[t].norm().item()
    result, _ = one_step(execution=toys.execution(**execution))
    share = norms[True] / (norms[True] + norms[False])
    assert result.history[0]["completion_grad_share"] == pytest.approx(share, rel=1e-10)
    assert 0.3 < share < 0.9


def test_the_completions_share_is_measured_now_and_then() -> None:
    result = run(toys.llama(), settings=toys.train_settings(batch_size=1))
    measured = [e["step"] for e in result.history if e["completion_grad_share"] is not None]
    assert measured == [1, 1 + SHARE_EVERY]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_follows_its_schedule(schedule: str) -> None:
    settings = toys.train_settings(schedule=schedule, warmup_ratio=0.2, batch_size=1, lr=0.008)
    result = run(toys.llama(), settings=settings)
    warmup, steps = 3, 14  # ceil(0.2 * 14)
    for k, entry in enumerate(result.history):
        past = (k - warmup) / (steps - warmup)
        falling = {
            "constant": 1.0,
            "linear": 1 - past,
            "cosine": 0.5 * (1 + math.cos(math.pi * past)),
        }
        expected = k / warmup if k < warmup else falling[schedule]
        assert entry["lr"] == pytest.approx(0.008 * expected, rel=1e-12)


def test_a_step_is_adamw_on_the_clipped_gradient() -> None:
    """Second step of AdamW by hand (arXiv 1711.05101); decay on matrices alone."""
    model, grads = toys.llama(), []
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    settings = toys.train_settings(
        batch_size=7, clip=0.1, schedule="constant", weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6
    )

    def note(context: StepContext) -> None:
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})

    result = run(model, settings=settings, hooks=Hooks(after_step=note))
    assert len(grads) == 2
    for entry, step in zip(result.history, grads, strict=True):
        assert entry["clipped"]
        assert entry["grad_norm"] > 0.1  # before clipping
        norm = torch.cat([g.flatten() for g in step.values()]).norm()
        assert float(norm) == pytest.approx(0.1, rel=1e-4)  # torch adds 1e-6 to the norm
    for name, parameter in model.named_parameters():
        expected, m, v = before[name], 0.0, 0.0
        for k, step in enumerate(grads, start=1):
            m, v = 0.8 * m + 0.2 * step[name], 0.9 * v + 0.1 * step[name] ** 2
            decay = 0.01 * 0.1 * expected if parameter.ndim >= 2 else 0.0
            ratio = (m / (1 - 0.8**k)) / ((v / (1 - 0.9**k)).sqrt() + 1e-6)
            expected = expected - decay - 0.01 * ratio
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-12)


def test_without_clipping_nothing_is_clipped() -> None:
    settings = toys.train_settings(clip=None)
    assert not any(e["clipped"] for e in run(toys.llama(), settings=settings).history)


def test_only_trainable_parameters_move() -> None:
    model = toys.llama()
    model.get_input_embeddings().weight.requires_grad_(False)
    frozen = model.get_input_embeddings().weight.detach().clone()
    before = model.lm_head.weight.detach().clone()
    run(model)
    assert torch.equal(model.get_input_embeddings().weight, frozen)
    assert not torch.equal(model.lm_head.weight, before)


def test_an_extra_loss_counts_once_whatever_the_micro_batches() -> None:
    """A ridge penalty given at the last micro-batch adds its own gradient, 2 x weights."""

    def ridge(context: StepContext) -> Tensor | float:
        squares = sum((p**2).sum() for p in context.model.parameters())
        return squares if context.last else 0.0

    for size in (None, 3):
        execution = toys.execution(micro_batch_size=size)
        grads = []
        for extra in ({}, {"extra_loss": ridge}):
            hooks = Hooks(
                after_backward=lambda context, to=grads: to.append(
                    gradient_of(context.model).clone()
                ),
                **extra,
            )
            settings = toys.train_settings(batch_size=len(ROWS), max_steps=1)
            run(toys.llama(), hooks=hooks, execution=execution, settings=settings)
        plain, penalised = grads
        torch.testing.assert_close(penalised - plain, 2 * weights_of(toys.llama()), **EXACT)


def test_an_extra_loss_per_token_divides_by_the_step() -> None:
    """The token loss again, through the hook: the gradient doubles."""

    def again(context: StepContext) -> Tensor:
        return TokenLossModel(context.model)(context.work).total / context.divisor

    _, plain = one_step()
    _, doubled = one_step(extra=again, execution=toys.execution(micro_batch_size=4))
    torch.testing.assert_close(doubled, 2 * plain, **EXACT)


def test_stages_are_passes_with_their_own_optimizer_and_schedule() -> None:
    def twice(model: Any, steps: Any) -> Any:
        yield steps[:2]
        model.lm_head.weight.requires_grad_(False)
        kept.append(model.lm_head.weight.detach().clone())
        yield steps

    kept: list[Tensor] = []
    model = toys.llama()
    settings = toys.train_settings(schedule="linear")
    result = run(model, hooks=Hooks(stages=twice), settings=settings)
    assert [e["stage"] for e in result.history] == [0, 0, 1, 1, 1, 1]
    assert [e["step"] for e in result.history] == [1, 2, 3, 4, 5, 6]
    rates = [e["lr"] for e in result.history]
    assert rates == pytest.approx([0.01, 0.005, 0.01, 0.0075, 0.005, 0.0025])
    assert torch.equal(model.lm_head.weight, kept[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_stops_the_run(value: float) -> None:
    def poison(context: StepContext) -> None:
        if context.step == 1:
            with torch.no_grad():
                context.model.lm_head.weight[0, 0] = value

    with pytest.raises(Diverged, match=r"step 3: loss is (nan|inf)") as caught:
        run(toys.llama(), hooks=Hooks(after_step=poison))
    assert caught.value.step == 3
    assert not math.isfinite(caught.value.value)


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights() -> None:
    def poison(context: StepContext) -> None:
        next(context.model.parameters()).grad[0, 0] = float("inf")

    model = toys.llama()
    with pytest.raises(Diverged, match="step 1: grad_norm is inf"):
        run(model, hooks=Hooks(after_backward=poison))
    assert torch.equal(weights_of(model), weights_of(toys.llama()))


def test_bad_requests_are_told_in_one_line() -> None:
    microbatch = objective_with(scope="microbatch")
    with pytest.raises(UserError, match=r"layout=packed.*scope=microbatch"):
        run(toys.llama(), objective=microbatch, execution=toys.execution(layout="packed"))
    run(toys.llama(), objective=microbatch, execution=toys.execution(layout="auto"))
    with pytest.raises(UserError, match="lr=tuned"):
        run(toys.llama(), settings=toys.train_settings(lr="tuned"))
    with pytest.raises(UserError, match="no parameter to train"):
        run(toys.llama().requires_grad_(False))
    with pytest.raises(UserError, match="has a weight"):
        run(
            toys.llama(),
            rows=[([1, 2, 3], [Role.SPECIAL] * 3)],
            objective=objective_with("instruction"),
        )
    with pytest.raises(UserError, match="device=tpu"):
        run(toys.llama(), execution=toys.execution(device="tpu"))


def test_accelerates_own_accumulation_and_precision_stay_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`accelerate launch` sets both by environment; either would change the objective."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    made = process_accelerator.__wrapped__("cpu")
    assert made.gradient_accumulation_steps == 1
    assert made.mixed_precision == "no"


def test_nothing_of_a_run_outlives_it() -> None:
    """A process trains hundreds of cells: the accelerator may not keep their models."""
    model = toys.llama()
    run(model)
    assert not process_accelerator("cpu")._models
    assert not process_accelerator("cpu")._optimizers
    assert all(p.grad is None for p in model.parameters())
