"""Rules for the initial values of the three factors in Delta-W = scale * B M A.

A rule gets the weight, the inner size and, if there is one, a gradient, and returns every factor:
B (D, N) and A (N, K), and between them a core of one of four forms

    full      M (N, N)
    diagonal  M (N), the diagonal of a matrix
    pair      M = up down, up (N, I) and down (I, N)
    identity  no tensor

Where the product is not zero, either the method wants to start away from the base (`gradient_svd`),
or the rule is `compensated`: the layer stores the initial values and subtracts their product, so
that training begins at the base model and the base weight is never changed.

Letters: D outputs, K inputs, N inner size, I size inside a pair.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ablate.adapters.three_factor.factors import Core, Factors


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a rule may use."""

    W_DK: Tensor  # the base weight, in single precision at least
    N: int
    I: int = 1  # noqa: E741  the letter of the size inside a pair
    scale: float = 1.0
    step: float = 0.0  # step size of the update that `gradient_svd` approximates
    gradient_DK: Tensor | None = None  # of the loss with respect to W
    draw: Callable[[str], Generator] = lambda factor: Generator()  # a CPU stream for each factor

    @property
    def shape(self) -> tuple[int, int]:
        """D and K."""
        d, k = self.W_DK.shape
        return d, k


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRule:
    """A function that makes the factors, the form of their core, and whether it is compensated."""

    make: Callable[[Given], Factors]
    core: Core
    compensated: bool = False


# --- at random


def _uniform(rows: int, columns: int, generator: Generator) -> Tensor:
    """Return draws from U(-1/sqrt(columns), 1/sqrt(columns)), as for a linear layer.

    Row by row, so that the draws of a small N are the first rows of those of a larger one.
    """
    bound = columns**-0.5
    drawn = torch.empty(rows, columns)
    for row in drawn:
        row.uniform_(-bound, bound, generator=generator)
    return drawn


def _gaussian(rows: int, columns: int, generator: Generator) -> Tensor:
    """Return draws from N(0, 1/columns), row by row as in `_uniform`."""
    drawn = torch.empty(rows, columns)
    for row in drawn:
        row.normal_(0.0, columns**-0.5, generator=generator)
    return drawn


def plain(given: Given) -> Factors:
    """Return LoRA's start (arXiv 2106.09685): A drawn, B zero, no core."""
    d, k = given.shape
    return {"B": torch.zeros(d, given.N), "A": _uniform(given.N, k, given.draw("A"))}


def kaiming(given: Given) -> Factors:
    """Return MoSLoRA's start (arXiv 2406.11909): A and the mixer drawn alike, B zero."""
    return plain(given) | {"M": _uniform(given.N, given.N, given.draw("M"))}


def gaussian(given: Given) -> Factors:
    """Return SLoRA's start (arXiv 2502.14482, Figure 2): A normal, M as MoSLoRA's, B zero.

    The paper gives no variance; 1/k is used, which preserves the variance of the input.
    """
    return kaiming(given) | {"A": _gaussian(given.N, given.shape[1], given.draw("A"))}


def _inner_pair(given: Given) -> Factors:
    """Return LoRA's start for the pair: down drawn, up zero, so that the change is zero."""
    down_IN = _uniform(given.I, given.N, given.draw("down"))
    return {"up": torch.zeros(given.N, given.I), "down": down_IN}


def random_outer(given: Given) -> Factors:
    """Return LoRA-Mini's start (arXiv 2411.15804): both outer factors drawn, then a pair inside."""
    d, k = given.shape
    B_DN = _uniform(d, given.N, given.draw("B"))
    return {"B": B_DN, "A": _uniform(given.N, k, given.draw("A")), **_inner_pair(given)}


# --- from the weight


def _svd(X_DK: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first `n` singular triples of X: U (D, N), S (N), V^T (N, K)."""
    U, S, Vh = torch.linalg.svd(X_DK, full_matrices=False)
    return U[:, :n], S[:n], Vh[:n]


def svd(given: Given) -> Factors:
    """Return LaMDA's start (arXiv 2406.12832): the largest singular triples of W."""
    U_DN, S_N, Vh_NK = _svd(given.W_DK, given.N)
    return {"B": U_DN, "M": torch.diag(S_N / given.scale), "A": Vh_NK}


def svd_input(given: Given) -> Factors:
    """Return LoRA-XS's start (arXiv 2405.17604): B = U and A = S V^T of W, zero between them.

    The singular values are on the side of the input, as in its released code, which decomposes the
    transposed weight. That code draws M from N(0, 1e-10) instead of setting it to zero.
    """
    U_DN, S_N, Vh_NK = _svd(given.W_DK, given.N)
    return {"B": U_DN, "M": torch.zeros(given.N, given.N), "A": S_N[:, None] * Vh_NK}


def svd_outer(given: Given) -> Factors:
    """Return NoRA's start (arXiv 2408.10280): B = U S and A = V^T of W, then a pair inside.

    The activation-aware decomposition of the paper's later version is not implemented.
    """
    U_DN, S_N, Vh_NK = _svd(given.W_DK, given.N)
    return {"B": U_DN * S_N, "A": Vh_NK, **_inner_pair(given)}


def nystrom(given: Given) -> Factors:
    """Return NLoRA's start (arXiv 2502.14482, Figure 3): the first columns of W, corner and rows.

    M is the corner itself, as in the figure and the released code, instead of its pseudo-inverse as
    in the Nystrom approximation (`nystrom_inverse`). That code does not subtract the start from the
    base; here it is compensated.
    """
    n, W_DK = given.N, given.W_DK
    return {"B": W_DK[:, :n], "M": W_DK[:n, :n], "A": W_DK[:n]}


def nystrom_inverse(given: Given) -> Factors:
    """Return the Nystrom approximation of W: C pinv(corner) R, equal to W where its rank is N."""
    n = given.N
    return nystrom(given) | {"M": torch.linalg.pinv(given.W_DK[:n, :n])}


def skeleton(given: Given) -> Factors:
    """Return PMSS's start (arXiv 2409.16722): chosen columns and rows of W, zero between them.

    They are the first that QR with column pivoting selects from W, and from its transpose.
    """
    W_DK, n = given.W_DK, given.N
    columns, rows = pivots(W_DK, n), pivots(W_DK.T, n)
    return {"B": W_DK[:, columns], "M": torch.zeros(n, n), "A": W_DK[rows]}


def pivots(X_DK: Tensor, n: int) -> Tensor:
    """Return the indices (n,) of the first `n` columns that QR with column pivoting selects.

    Each is the column of largest norm after projecting out the columns selected before it
    (Businger and Golub 1965). In double precision, since projections lose digits.
    """
    left_DK = X_DK.to(torch.float64, copy=True)
    chosen = torch.empty(n, dtype=torch.int64, device=X_DK.device)
    free_K = torch.ones(X_DK.shape[1], dtype=torch.bool, device=X_DK.device)
    for i in range(n):
        length_K = left_DK.square().sum(0).masked_fill(~free_K, -1.0)
        chosen[i] = length_K.argmax()
        free_K[chosen[i]] = False
        direction_D = left_DK[:, chosen[i]]
        direction_D = direction_D / direction_D.norm().clamp_min(torch.finfo(torch.float64).tiny)
        left_DK -= torch.outer(direction_D, direction_D @ left_DK)
    return chosen


def lu(given: Given) -> Factors:
    """Return LoLDU's start (arXiv 2410.13618): W = P L D U, cut to N columns, entries and rows."""
    P_DD, L, U = torch.linalg.lu(given.W_DK)
    pivot = U.diagonal()
    D = torch.where(
        pivot == 0, torch.ones_like(pivot), pivot
    )  # U is divided by D: a zero pivot counts as one
    n = given.N
    return {"B": P_DD @ L[:, :n], "M": D[:n], "A": U[:n] / D[:n, None]}


# --- from a gradient


def gradient_svd(given: Given) -> Factors:
    """Return LoRA-SB's start (arXiv 2411.19557): the best rank-N form of full tuning's first step.

    AdamW's first step is -step sign(G). The adapter starts with it, hence not at the base.

    Raises:
        ValueError: there is no gradient.
    """
    if given.gradient_DK is None:
        raise ValueError("this start needs the gradient of the loss with respect to the weight")
    update_DK = -given.step * given.gradient_DK.sign()
    U_DN, S_N, Vh_NK = _svd(update_DK, given.N)
    return {"B": U_DN, "M": torch.diag(S_N / given.scale), "A": Vh_NK}


RULES: Mapping[str, StartRule] = {
    "plain": StartRule(make=plain, core="identity"),
    "kaiming": StartRule(make=kaiming, core="full"),
    "gaussian": StartRule(make=gaussian, core="full"),
    "random_outer": StartRule(make=random_outer, core="pair"),
    "svd": StartRule(make=svd, core="full", compensated=True),
    "svd_input": StartRule(make=svd_input, core="full"),
    "svd_outer": StartRule(make=svd_outer, core="pair"),
    "nystrom": StartRule(make=nystrom, core="full", compensated=True),
    "nystrom_inverse": StartRule(make=nystrom_inverse, core="full", compensated=True),
    "skeleton": StartRule(make=skeleton, core="full"),
    "lu": StartRule(make=lu, core="diagonal", compensated=True),
    "gradient_svd": StartRule(make=gradient_svd, core="full"),
}
