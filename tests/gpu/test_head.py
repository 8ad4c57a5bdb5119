"""The head in tiles on a GPU: the kernel's numbers, its memory, and that nothing waits for it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ablate.config.schema import TOKEN_RULES, Loss
from ablate.data.batches import micro_batches
from ablate.objective import make_objective
from ablate.training import head_terms, predict
from ablate.training.head import HeadLoss, weighted_sum
from ablate.training.head_terms import CrossEntropy, Head
from ablate.training.loss import TokenLossModel, logit_gradient_norms, token_losses
from ablate.training.weighed import weigh
from tests import toys

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
K, V, D, ROWS = 83, 20_011, 64, 16  # none a multiple of another, V longer than the kernel's block
Leaves = tuple[Tensor, Tensor, Tensor]  # hidden states, weight and bias


def leaves(dtype: torch.dtype) -> Leaves:
    draws = torch.Generator("cuda").manual_seed(0)
    shapes = ((K, D), (V, D), (V,))
    hidden_KD, weight_VD, bias_V = (
        torch.randn(shape, generator=draws, device="cuda", dtype=torch.float64).to(dtype)
        for shape in shapes
    )
    return hidden_KD.requires_grad_(), (weight_VD / 4).requires_grad_(), bias_V.requires_grad_()


def targets_and_weights() -> tuple[Tensor, Tensor]:
    draws = torch.Generator("cuda").manual_seed(1)
    weights_K = torch.rand(K, generator=draws, device="cuda")
    weights_K[::3] = 0
    return torch.randint(V, (K,), generator=draws, device="cuda"), weights_K


def tiled(given: Leaves, smoothing: float) -> HeadLoss:
    targets_K, weights_K = targets_and_weights()
    term = CrossEntropy(targets_K, smoothing, norms=True)
    head = Head(given[1], given[2])
    return weighted_sum(given[0], head, term=term, weights_K=weights_K, rows=ROWS)


def all_logits(given: Leaves, smoothing: float) -> HeadLoss:
    targets_K, weights_K = targets_and_weights()
    logits_KV = F.linear(*given)
    losses_K = token_losses(logits_KV, targets_K, smoothing)
    norms_K = logit_gradient_norms(logits_KV, targets_K, smoothing)
    return HeadLoss((losses_K * weights_K).sum(), losses_K.detach(), norms_K)


def measured(make: Any, given: Leaves, smoothing: float) -> list[Tensor]:
    loss = make(given, smoothing)
    gradients = torch.autograd.grad(loss.total / 3, given)
    return [loss.total.detach(), loss.losses_K, loss.norms_K, *gradients]


@pytest.mark.parametrize("kernel", ["triton", "torch"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_bounded_by_that_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, smoothing: float, kernel: str
) -> None:
    if kernel == "triton":
        pytest.importorskip("triton")
    monkeypatch.setattr(head_terms, "TRITON_ON", ("cuda",) if kernel == "triton" else ())
    exact_leaves = tuple(t.detach().double().requires_grad_() for t in leaves(dtype))
    exact = measured(all_logits, exact_leaves, smoothing)  # type: ignore[arg-type]
    mine, other = (measured(make, leaves(dtype), smoothing) for make in (tiled, all_logits))
    for found, naive, expected in zip(mine, other, exact, strict=True):
        error, limit = ((x.double() - expected).norm() / expected.norm() for x in (found, naive))
        assert error <= 1.5 * limit + 4 * torch.finfo(torch.float32).eps


def test_nothing_waits_for_the_device() -> None:
    given = leaves(torch.bfloat16)
    measured(tiled, given, 0.1)  # compiles the kernel
    term = CrossEntropy(*targets_and_weights()[:1], norms=True)
    weights_K = targets_and_weights()[1]
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = weighted_sum(given[0], Head(*given[1:]), term=term, weights_K=weights_K, rows=ROWS)
        torch.autograd.grad(loss.total, given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_at_most_an_eighth_of_all_logits() -> None:
    """At vocabulary 128,000, 4,096 targets and width 2,048 in bfloat16, the gradients included."""
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free memory")
    hidden_KD = torch.randn(4096, 2048, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight_VD = torch.randn(128_000, 2048, device="cuda", dtype=torch.bfloat16) / 45
    weight_VD.requires_grad_()
    targets_K = torch.randint(128_000, (4096,), device="cuda")
    weights_K = torch.rand(4096, device="cuda")

    def everything() -> Tensor:
        losses_K = token_losses(F.linear(hidden_KD, weight_VD), targets_K)
        return (losses_K * weights_K).sum()

    def tiles() -> Tensor:
        term = CrossEntropy(targets_K)
        return weighted_sum(hidden_KD, Head(weight_VD), term=term, weights_K=weights_K).total

    assert peak(tiles, [hidden_KD, weight_VD]) < peak(everything, [hidden_KD, weight_VD]) / 8


def peak(make: Any, given: list[Tensor]) -> int:
    torch.autograd.grad(make(), given)  # what is allocated once
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(make(), given)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "loss",
    [{"label_smoothing": 0.1}]
    + [{"token_rule": rule, "token_rule_scope": "completion"} for rule in TOKEN_RULES],
    ids=str,
)
def test_a_model_in_tiles_is_that_with_all_logits(
    monkeypatch: pytest.MonkeyPatch, loss: dict[str, Any], autocast: bool
) -> None:
    model = toys.llama().float().cuda()
    rows = toys.examples()
    objective = make_objective(toys.masking("none"), 0.25, 1.0, Loss(**loss))
    (part,) = micro_batches(
        toys.tokenised(rows), np.arange(len(rows)), objective=objective, execution=toys.execution()
    )
    work = weigh(part, objective).to(torch.device("cuda"))
    found = []
    for least in (10**9, 0):
        monkeypatch.setattr(predict, "TILED_FROM", least)
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss = TokenLossModel(model, objective)(work, with_grad_norm=True)
        found.append([loss.sums_S, *torch.autograd.grad(loss.total, list(model.parameters()))])
    tolerance = {"rtol": 0.02, "atol": 0.02} if autocast else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found[1], found[0], **tolerance)
