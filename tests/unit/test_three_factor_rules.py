"""Start rules of three-factor adapters against numpy and scipy."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from ablate.adapters.three_factor import rules
from ablate.adapters.three_factor import start as three_factor
from ablate.adapters.three_factor.rules import Given
from ablate.streams import Streams
from tests.dense import normal
from tests.factors import adapted, assert_close, begun, best, factor


def given(W: Tensor, n: int, **changes) -> Given:
    return Given(W_DK=W, N=n, I=3, draw=lambda name: Streams(0).torch("test", name), **changes)


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
@pytest.mark.parametrize("n", [5, 16])
def test_svd_starts_are_the_best_of_their_rank(shape, n):
    W = normal(*shape)
    found = rules.svd(given(W, n, scale=0.5))
    assert_close(0.5 * found["B"] @ found["M"] @ found["A"], best(W.numpy(), n))
    assert_close(found["B"].T @ found["B"], torch.eye(n, dtype=torch.float64))
    assert_close(found["A"] @ found["A"].T, torch.eye(n, dtype=torch.float64))
    outer = rules.svd_outer(given(W, n))
    assert_close(outer["B"] @ outer["A"], best(W.numpy(), n))
    assert_close(outer["A"] @ outer["A"].T, torch.eye(n, dtype=torch.float64))
    assert not outer["up"].any()
    assert outer["down"].any()


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_lora_xs_has_the_singular_values_on_the_side_of_the_input(shape):
    """Its code transforms the transposed weight: X' V = U S for the inputs, V' for the outputs."""
    W, n = normal(*shape), 5
    found = rules.svd_input(given(W, n))
    assert not found["M"].any()
    U, S, Vh = np.linalg.svd(W.numpy().T, full_matrices=False)  # inputs x outputs
    encoder, decoder = (U[:, :n] * S[:n]).T, Vh[:n].T
    signs = np.sign((found["B"].numpy() * decoder).sum(0))
    assert_close(found["A"], torch.from_numpy(signs[:, None] * encoder))
    assert_close(found["B"], torch.from_numpy(signs * decoder))


def test_the_start_from_a_gradient_is_adamws_first_step_cut_to_the_rank():
    W, G = normal(16, 40), normal(16, 40, seed=3)
    found = rules.gradient_svd(given(W, 6, gradient_DK=G, step=0.1, scale=4.0))
    start = 4.0 * found["B"] @ found["M"] @ found["A"]
    assert_close(start, best(-0.1 * np.sign(G.numpy()), 6))
    assert (start * G).sum() < 0  # downhill
    weight = nn.Parameter(W.clone())
    weight.grad = G
    torch.optim.AdamW([weight], lr=0.1, eps=0.0, weight_decay=0.0).step()
    whole = rules.gradient_svd(given(W, 16, gradient_DK=G, step=0.1))
    assert_close(whole["B"] @ whole["M"] @ whole["A"], weight.data - W)


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_nystrom_is_exact_where_the_rank_allows_it(shape):
    d, k = shape
    W = normal(d, 5) @ normal(5, k, seed=1)
    found = rules.nystrom_inverse(given(W, 5))
    assert_close(found["B"] @ found["M"] @ found["A"], W, 1e-8)  # conditioned by a 5 x 5 corner
    corner = rules.nystrom(given(W, 5))
    assert_close(corner["M"] @ found["M"], torch.eye(5, dtype=torch.float64), 1e-8)
    assert torch.equal(corner["B"], W[:, :5])
    assert torch.equal(corner["A"], W[:5])


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
@pytest.mark.parametrize("n", [1, 6, 16])
def test_pivots_are_lapacks(shape, n):
    X = normal(*shape)
    *_, order = scipy.linalg.qr(X.numpy(), pivoting=True)
    assert rules.pivots(X, n).tolist() == order[:n].tolist()


def test_a_skeleton_spans_a_matrix_of_its_rank():
    W = normal(24, 6) @ normal(6, 40, seed=1)
    found = rules.skeleton(given(W, 6))
    C, R = found["B"].numpy(), found["A"].numpy()
    assert_close(W, C @ np.linalg.pinv(C) @ W.numpy() @ np.linalg.pinv(R) @ R, 1e-9)
    assert not found["M"].any()
    columns = {tuple(c) for c in W.T.tolist()}
    assert {tuple(c) for c in found["B"].T.tolist()} <= columns
    more = rules.pivots(W, 12)  # beyond the rank nothing is left, and none may be taken twice
    assert len(set(more.tolist())) == 12


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_lu_start_is_the_cut_decomposition(shape):
    W = normal(*shape)
    for n in (4, 16):
        found = rules.lu(given(W, n))
        assert_close(found["B"] * found["M"] @ found["A"], begun("loldu", W.numpy(), n))
        assert_close(found["A"].diagonal(), torch.ones(n, dtype=torch.float64))
    whole = rules.lu(given(W, min(shape)))
    assert_close(whole["B"] * whole["M"] @ whole["A"], W)


def test_lu_start_of_a_singular_matrix_is_finite():
    W = torch.ones(4, 6, dtype=torch.float64)
    found = rules.lu(given(W, 4))
    assert_close(found["B"] * found["M"] @ found["A"], W)


def test_random_starts_follow_their_laws_and_are_nested():
    W = normal(64, 400)
    small, large = rules.kaiming(given(W, 8)), rules.kaiming(given(W, 32))
    assert torch.equal(small["A"], large["A"][:8])
    for name, columns in (("A", 400), ("M", 32)):
        assert large[name].abs().max() <= columns**-0.5
        assert large[name].std().item() == pytest.approx((3 * columns) ** -0.5, rel=0.05)
        assert len({tuple(row.tolist()) for row in large[name]}) == 32
    assert not large["B"].any()
    bell = rules.gaussian(given(W, 32))
    assert bell["A"].std().item() == pytest.approx(400**-0.5, rel=0.05)
    assert bell["A"].abs().max() > 400**-0.5
    assert torch.equal(bell["M"], large["M"])
    mini = rules.random_outer(given(W, 32))
    assert mini["B"].std().item() == pytest.approx((3 * 32) ** -0.5, rel=0.05)
    assert mini["down"].shape == (3, 32)
    assert not mini["up"].any()


def test_draws_depend_on_seed_module_and_factor_alone():
    def factors(seed: int) -> dict[str, Tensor]:
        model = adapted("lora_mini", "llama", seed=seed)
        return {f"{n}.{f}": factor(m, f) for n, m in three_factor.layers(model) for f in "BA"}

    first, again, other = factors(0), factors(0), factors(1)
    assert len(first) == 28
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert not torch.equal(tensor, other[name])
    draws = {tuple(tensor.flatten()[:10].tolist()) for tensor in first.values()}
    assert len(draws) == 28
