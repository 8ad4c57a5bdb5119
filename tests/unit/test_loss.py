import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ablate.config.schema import Loss
from ablate.data.batches import micro_batches
from ablate.objective import Objective, canonical, make_objective
from ablate.roles import Role
from ablate.training.loss import TokenLossModel, logit_gradient_norms, token_losses
from ablate.training.weighed import weigh
from tests import reference, toys

EXACT = {"rtol": 1e-12, "atol": 1e-13}  # float64 sums in another order
NORMALISERS = ("weight", "completion", "tokens", "nonzero", "examples")
ROWS = toys.examples()


@functools.cache
def llama() -> Any:
    return toys.llama()


@functools.cache
def naive_losses(smoothing: float = 0.0) -> list[list[Any]]:
    """Return each row's token losses with their graph; longest row first, as batches are sorted."""
    rows = sorted(ROWS, key=lambda row: -len(row[0]))
    return [reference.token_losses(llama(), ids, smoothing) for ids, _ in rows]


def naive_sums(
    weights: dict[Role, float], normaliser: str, smoothing: float = 0.0
) -> list[tuple[Any, float]]:
    rows = sorted(ROWS, key=lambda row: -len(row[0]))
    pairs = zip(naive_losses(smoothing), rows, strict=True)
    return [
        reference.example_sums(losses, roles, weights, normaliser) for losses, (_, roles) in pairs
    ]


def step(
    model: Any, objective: Objective, rows: Any = ROWS, **execution: Any
) -> tuple[Tensor, Tensor]:
    """Return the loss of one optimizer step over all `rows`, and its gradient."""
    parts = micro_batches(
        toys.tokenised(rows),
        np.arange(len(rows)),
        objective=objective,
        execution=toys.execution(**execution),
        permute_generator=np.random.default_rng(5),
    )
    works = [weigh(part, objective) for part in parts]
    wrapped = TokenLossModel(model, objective)
    loss = sum(wrapped(work).total for work in works) / sum(work.divisor for work in works)
    return loss.detach(), gradient(loss, model)


def gradient(loss: Tensor, model: Any) -> Tensor:
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    return torch.cat([g.flatten() for g in gradients])


def objective_with(
    mode: str = "none", plw: float = 0.25, completion: float = 1.0, **loss: Any
) -> Objective:
    return make_objective(toys.masking(mode), plw, completion, Loss(**loss))


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("scope", ["batch", "example", "microbatch"])
@pytest.mark.parametrize("mode", toys.MODES)
def test_every_objective_is_its_definition(normaliser: str, scope: str, mode: str) -> None:
    objective = objective_with(mode, completion=0.5, normaliser=normaliser, scope=scope)
    loss, grad = step(llama(), objective, micro_batch_size=3)
    weights = {r: 0.25 * (r.name.lower() in toys.MODES[mode]) for r in Role}
    weights[Role.COMPLETION] = 0.5
    sums = naive_sums(weights, normaliser)
    expected = reference.step_loss([sums[:3], sums[3:6], sums[6:]], scope)
    torch.testing.assert_close(loss, expected.detach(), **EXACT)
    torch.testing.assert_close(grad, gradient(expected, llama()), **EXACT)


@pytest.mark.parametrize("scope", ["batch", "example"])
@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_micro_batches_and_packing_change_nothing(scope: str, normaliser: str) -> None:
    """1 x 7 = 4 x 2 = one packed row, with uneven weights, gradients included."""
    objective = objective_with(normaliser=normaliser, scope=scope)
    whole = step(llama(), objective)
    for execution in (
        {"micro_batch_size": 2},
        {"layout": "packed"},
        {"layout": "packed", "micro_batch_size": 3},
    ):
        torch.testing.assert_close(step(llama(), objective, **execution), whole, **EXACT)


def test_full_sequence_training_is_the_loss_of_transformers() -> None:
    """`none` at PLW 1 is what a causal language model returns for labels = ids."""
    ids_BL = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(ids) for ids, _ in ROWS], batch_first=True, padding_value=-100
    )
    output = llama()(
        input_ids=ids_BL.clamp(min=0), attention_mask=(ids_BL >= 0).long(), labels=ids_BL
    )
    loss, grad = step(llama(), objective_with("none", plw=1.0))
    # transformers computes its own loss in float32
    torch.testing.assert_close(loss, output.loss.detach().double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, gradient(output.loss, llama()), rtol=1e-5, atol=1e-7)


def test_label_smoothing_is_its_definition() -> None:
    objective = objective_with(label_smoothing=0.1)
    loss, grad = step(llama(), objective, layout="packed")
    weights = {r: 0.25 for r in Role} | {Role.COMPLETION: 1.0}
    expected = reference.step_loss([naive_sums(weights, "weight", 0.1)], "batch")
    torch.testing.assert_close(loss, expected.detach(), **EXACT)
    torch.testing.assert_close(grad, gradient(expected, llama()), **EXACT)


def test_cells_are_aliases_exactly_where_loss_and_gradient_agree() -> None:
    """Over 60 independently built objectives, canonical form against what is computed."""
    counts = dict(toys.tokenised(ROWS).counts)
    known: dict[str, Tensor] = {}
    for mode in toys.MODES:
        for plw, completion in ((0.0, 1.0), (0.0, 0.25), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)):
            for normaliser in ("weight", "tokens", "nonzero"):
                objective = objective_with(mode, plw, completion, normaliser=normaliser)
                loss, grad = step(llama(), objective)
                found = torch.cat([loss[None], grad])
                known_as = known.setdefault(str(canonical(objective, toys.counted(counts))), found)
                torch.testing.assert_close(found, known_as, **EXACT)
    different = list(known.values())
    assert 15 < len(different) < 45
    for i, one in enumerate(different):
        for other in different[:i]:
            assert (one - other).abs().max() > 1e-6


def test_completion_weight_acts_under_tokens_alone() -> None:
    """0.2 against 1 at PLW 0: a fifth of the gradient under `tokens`, the same run else."""
    full, fifth = (objective_with(plw=0.0, completion=c, normaliser="tokens") for c in (1.0, 0.2))
    loss, grad = step(llama(), full)
    loss_5, grad_5 = step(llama(), fifth)
    torch.testing.assert_close(loss_5, 0.2 * loss, rtol=1e-6, atol=0)  # 0.2 in float32
    torch.testing.assert_close(grad_5, 0.2 * grad, rtol=1e-6, atol=1e-7)
    full, fifth = (objective_with(plw=0.0, completion=c) for c in (1.0, 0.2))
    torch.testing.assert_close(step(llama(), full), step(llama(), fifth), rtol=1e-12, atol=1e-13)


def test_an_example_without_weight_adds_nothing_and_still_counts() -> None:
    silent = ([1, 2, 3, 4], [Role.SPECIAL] * 4)
    objective = objective_with("instruction", scope="example")
    loss, _ = step(llama(), objective, ROWS)
    diluted, _ = step(llama(), objective, [*ROWS, silent])
    torch.testing.assert_close(diluted, loss * len(ROWS) / (len(ROWS) + 1), **EXACT)


def test_a_batch_without_weight_has_loss_and_gradient_zero() -> None:
    objective = objective_with("instruction")
    silent = [([1, 2, 3, 4], [Role.SPECIAL] * 4)]
    parts = micro_batches(
        toys.tokenised(silent), np.arange(1), objective=objective, execution=toys.execution()
    )
    work = weigh(parts[0], objective)
    total = TokenLossModel(llama())(work).total
    assert work.divisor == 0
    assert total.item() == 0
    assert not gradient(total, llama()).any()


def test_losses_of_low_precision_logits_are_computed_in_float32() -> None:
    logits = (torch.randn(50, 400, generator=torch.Generator().manual_seed(0)) * 4).bfloat16()
    targets = torch.arange(50)
    expected = token_losses(logits.double(), targets)
    found = token_losses(logits, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_logit_gradient_norms_are_those_of_autograd(smoothing: float) -> None:
    draws = torch.Generator().manual_seed(1)
    logits = torch.randn(9, 11, dtype=torch.float64, generator=draws).requires_grad_()
    targets = torch.randint(11, (9,), generator=draws)
    (expected,) = torch.autograd.grad(token_losses(logits, targets, smoothing).sum(), logits)
    found = logit_gradient_norms(logits, targets, smoothing)
    torch.testing.assert_close(found, expected.norm(dim=-1), **EXACT)
