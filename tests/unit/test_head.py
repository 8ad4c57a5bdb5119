"""The head in tiles, against all logits in float64 and against what those leave open themselves."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ablate.training import head
from ablate.training.head import HeadLoss, weighted_sum
from ablate.training.head_terms import CrossEntropy, Divergence, Head
from ablate.training.loss import logit_gradient_norms, token_losses
from ablate.training.regularisation.base_kl import divergences
from tests.live import LiveBytes

K, V, D, ROWS = 83, 1003, 24, 16  # none a multiple of another


class Inputs:
    """Random hidden states, head, targets and weights, 40 % of them zero; rounded to `dtype`."""

    def __init__(self, dtype: torch.dtype = torch.float64, *, bias: bool = True, targets: int = K):
        draws = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=draws).to(dtype)

        self.hidden_KD, self.base_KD = normal(targets, D), normal(targets, D)
        self.weight_VD, self.bias_V = normal(V, D) / 2, normal(V) if bias else None
        self.targets_K = torch.randint(V, (targets,), generator=draws)
        self.weights_K = torch.rand(targets, generator=draws) * (
            torch.rand(targets, generator=draws) > 0.4
        )

    def double(self) -> "Inputs":
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(self, name, value.double())
        return self

    def leaves(self) -> list[Tensor]:
        made = [t for t in (self.hidden_KD, self.weight_VD, self.bias_V) if t is not None]
        return [t.requires_grad_() for t in made]

    def head(self) -> Head:
        return Head(self.weight_VD, self.bias_V)


def tiled(given: Inputs, smoothing: float = 0.0) -> HeadLoss:
    term = CrossEntropy(given.targets_K, smoothing, norms=True)
    return weighted_sum(
        given.hidden_KD, given.head(), term=term, weights_K=given.weights_K, rows=ROWS
    )


def naive(given: Inputs, smoothing: float = 0.0) -> HeadLoss:
    logits_KV = F.linear(given.hidden_KD, given.weight_VD, given.bias_V)
    losses_K = token_losses(logits_KV, given.targets_K, smoothing)
    norms_K = logit_gradient_norms(logits_KV, given.targets_K, smoothing)
    total = (losses_K * given.weights_K.to(losses_K.dtype)).sum()
    return HeadLoss(total, losses_K.detach(), norms_K)


def measured(make: Any, given: Inputs, *args: Any) -> list[Tensor]:
    """Return sum, losses, norms and the gradients of a third of the sum."""
    leaves = given.leaves()
    loss = make(given, *args)
    return [
        loss.total.detach(),
        loss.losses_K,
        loss.norms_K,
        *torch.autograd.grad(loss.total / 3, leaves),
    ]


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((f.double() - e).norm() / e.norm()) for f, e in zip(found, exact, strict=True)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_bounded_by_that_of_all_logits(
    dtype: torch.dtype, smoothing: float, bias: bool
) -> None:
    exact = measured(naive, Inputs(dtype, bias=bias).double(), smoothing)
    mine = measured(tiled, Inputs(dtype, bias=bias), smoothing)
    bound = errors(measured(naive, Inputs(dtype, bias=bias), smoothing), exact)
    assert [f.dtype for f in mine[:3]] == [torch.float32] * 3
    assert [f.dtype for f in mine[3:]] == [dtype] * (3 if bias else 2)
    # A sum over the six tiles in `dtype` rounds six times where one product rounds once: its error
    # has the size of 1.5 roundings at most, beside those of the logits, which both share.
    for error, limit in zip(errors(mine, exact), bound, strict=True):
        assert error <= 1.5 * limit + torch.finfo(torch.float32).eps


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_in_float64_it_is_the_definition(smoothing: float) -> None:
    exact = measured(naive, Inputs(), smoothing)
    torch.testing.assert_close(measured(tiled, Inputs(), smoothing), exact, rtol=1e-11, atol=1e-13)


def test_under_autocast_gradients_have_the_weights_precision() -> None:
    """float32 weights and bfloat16 products: no worse than autocast's own linear layer."""
    exact = measured(naive, Inputs(torch.float32).double())
    with torch.autocast("cpu", torch.bfloat16):
        mine, other = (measured(make, Inputs(torch.float32)) for make in (tiled, naive))
    assert all(f.dtype == torch.float32 for f in mine)
    assert errors(other, exact)[3] > 1e-4  # the products were in bfloat16
    for error, limit in zip(errors(mine, exact), errors(other, exact), strict=True):
        assert error <= 1.5 * limit


def test_no_targets() -> None:
    given = Inputs(targets=0)
    total, losses_K, norms_K, *grads = measured(tiled, given)
    assert total == 0
    assert losses_K.shape == norms_K.shape == (0,)
    assert [g.shape for g in grads] == [(0, D), (V, D), (V,)]
    assert not any(g.any() for g in grads)


def test_a_frozen_head_gets_no_gradient() -> None:
    given = Inputs()
    given.hidden_KD.requires_grad_()
    (expected,) = torch.autograd.grad(tiled(given).total, [given.hidden_KD])
    given.weight_VD.requires_grad_()
    found, _ = torch.autograd.grad(tiled(given).total, [given.hidden_KD, given.weight_VD])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_kept_graph_gives_the_same_gradient_twice() -> None:
    given = Inputs()
    leaves, total = given.leaves(), tiled(given).total
    expected = torch.autograd.grad(2 * tiled(given).total, leaves)
    first = torch.autograd.grad(2 * total, leaves, retain_graph=True)
    second = torch.autograd.grad(2 * total, leaves)
    for found in (first, second):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_at_most_an_eighth_of_all_logits(dtype: torch.dtype, trains: bool) -> None:
    """At vocabulary 128,000 and 4,096 targets, beside the gradients that both return."""

    def extra(make: Any) -> float:
        given = Inputs(dtype, bias=False, targets=1)
        with FakeTensorMode():
            given.hidden_KD = torch.empty(4096, 2048, dtype=dtype, requires_grad=True)
            given.weight_VD = torch.empty(128_000, 2048, dtype=dtype, requires_grad=trains)
            given.targets_K, given.weights_K = torch.zeros(4096, dtype=torch.long), torch.ones(4096)
            leaves = [given.hidden_KD, given.weight_VD][: 1 + trains]
            with LiveBytes() as live:
                torch.autograd.grad(make(given), leaves)
        return live.peak - sum(t.numel() * t.element_size() for t in leaves)

    def all_logits(given: Inputs) -> Tensor:
        losses_K = token_losses(F.linear(given.hidden_KD, given.weight_VD), given.targets_K)
        return (losses_K * given.weights_K).sum()

    def tiles(given: Inputs) -> Tensor:
        term = CrossEntropy(given.targets_K)
        return weighted_sum(
            given.hidden_KD, given.head(), term=term, weights_K=given.weights_K
        ).total

    assert extra(tiles) < extra(all_logits) / 8


class Largest(TorchDispatchMode):
    """Notes the most elements of any tensor made, shapes (V, D) of the head's gradient aside."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(made, Tensor) and tuple(made.shape) not in {(V, D), (D, V)}:
                self.size = max(self.size, made.numel())
        return out


@pytest.mark.parametrize("term", ["cross entropy", "divergence"])
def test_never_more_logits_than_a_tile(term: str) -> None:
    given = Inputs()
    leaves = given.leaves()
    with Largest() as seen:
        loss = tiled(given) if term == "cross entropy" else divergence(given)
        torch.autograd.grad(loss.total, leaves)
    assert seen.size == ROWS * V


def divergence(given: Inputs) -> HeadLoss:
    term = Divergence(given.base_KD, Head(given.weight_VD.detach() * 0.9, scale=0.7))
    return weighted_sum(
        given.hidden_KD, given.head(), term=term, weights_K=given.weights_K, rows=ROWS
    )


def naive_divergence(given: Inputs) -> HeadLoss:
    base_KV = F.linear(given.base_KD, given.weight_VD.detach() * 0.9) * 0.7
    losses_K = divergences(base_KV, F.linear(given.hidden_KD, given.weight_VD, given.bias_V))
    total = (losses_K * given.weights_K.to(losses_K.dtype)).sum()
    return HeadLoss(total, losses_K.detach(), torch.zeros_like(losses_K.detach()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_divergence_and_its_gradient(dtype: torch.dtype) -> None:
    exact = measured(naive_divergence, Inputs(dtype).double())
    mine, other = (measured(m, Inputs(dtype)) for m in (divergence, naive_divergence))
    del exact[2], mine[2], other[2]  # there are no norms
    for error, limit in zip(errors(mine, exact), errors(other, exact), strict=True):
        assert error <= 1.5 * limit + (1e-7 if dtype != torch.float64 else 1e-13)


def test_losses_without_a_gradient() -> None:
    given = Inputs()
    given.leaves()
    term, nothing_K = CrossEntropy(given.targets_K), torch.zeros(len(given.targets_K))
    with torch.no_grad():
        found = weighted_sum(given.hidden_KD, given.head(), term=term, weights_K=nothing_K)
    found_K = found.losses_K
    assert not found_K.requires_grad
    torch.testing.assert_close(found_K, naive(given).losses_K, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("targets", "vocabulary", "rows"),
    [(0, 1000, 1), (300, 128_000, 150), (4096, 128_000, 256), (4097, 128_000, 241), (99, 32, 99)],
)
def test_tiles_are_of_equal_size(targets: int, vocabulary: int, rows: int) -> None:
    assert head.tile_rows(targets, vocabulary, kind="cpu") == rows
