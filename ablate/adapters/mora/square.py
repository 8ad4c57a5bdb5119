"""The fixed linear maps around MoRA's square matrix (arXiv 2405.12130), and Delta-W.

    change(x) = decomp(M comp(x)) = Delta-W x          M is q x q, Delta-W is d x k

Let n = ceil(k / q). A layout is one of two ways to see k entries as q groups, or d as q:

    strided   entry j belongs to group j mod q; x is first padded circularly to n q entries
    runs      consecutive groups, k mod q of them one entry longer than the others; no padding

    sharing   (Eq. 6)  comp adds the entries of a group up, decomp repeats M's output over its
                       groups: strided on both sides, the released code's type 1
    grouped_2 .. 4     the same with runs on both sides, on the input's, on the output's (the
                       released code's numbers; ReMoRA goes through all four)
    rotation  (Eq. 9)  group i of q consecutive entries is turned by R_i, passes through M, and the
                       outputs are put end to end: cut at d, or repeated to d where n q < d
    decouple  (Eq. 8)  the same without the turn
    truncate  (Eq. 4)  M sees the first q entries and changes the first q outputs

R_i pairs entry s with s + q/2 and turns the pair by i 10000^(-2s/q), as RoPE does (group 0 stays).
Sharing, its groupings and truncation have rank at most q. Rotation and decoupling can have a higher
rank, but on a wide layer (k > d) they use only the groups that reach an output.

Letters: D outputs, K inputs, Q side of the square matrix, N groups, H half of Q.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Layout = Literal["strided", "runs"]


@dataclass(frozen=True, slots=True)
class Maps:
    """One pair of comp and decomp.

    change: from x (..., k), M (q, q) and d, decomp(M comp(x)) of shape (..., d); from x (n, t, k)
        and n matrices (n, q, q) at once, those of each matrix's own x.
    delta: from M (q, q), d and k, Delta-W (d, k).
    """

    change: Callable[[Tensor, Tensor, int], Tensor]
    delta: Callable[[Tensor, int, int], Tensor]


def _product(v_Q: Tensor, M_QQ: Tensor) -> Tensor:
    """Return M v over the last dimension; of several matrices, each on its own first index."""
    if M_QQ.ndim == 2:
        return F.linear(v_Q, M_QQ)
    return torch.bmm(v_Q.flatten(1, -2), M_QQ.mT).unflatten(1, v_Q.shape[1:-1])


# --- sharing and its groupings


def _shared(inputs: Layout, outputs: Layout) -> Maps:
    return Maps(
        change=partial(_shared_change, inputs=inputs, outputs=outputs),
        delta=partial(_shared_delta, inputs=inputs, outputs=outputs),
    )


def _shared_change(x_K: Tensor, M_QQ: Tensor, d: int, *, inputs: Layout, outputs: Layout) -> Tensor:
    q = M_QQ.shape[-1]
    sums_Q = _groups(x_K, q).sum(-2) if inputs == "strided" else _run_sums(x_K, q)
    y_Q = _product(sums_Q, M_QQ)
    return _repeated(y_Q, d) if outputs == "strided" else _run_repeated(y_Q, d)


def _shared_delta(M_QQ: Tensor, d: int, k: int, *, inputs: Layout, outputs: Layout) -> Tensor:
    q = len(M_QQ)
    if inputs == "strided":
        t = torch.arange(-(-k // q) * q, device=M_QQ.device)
        entry, group = t % k, t % q
    else:
        entry, group = torch.arange(k, device=M_QQ.device), _run_of(k, q, M_QQ.device)
    folded_QK = M_QQ.new_zeros(q, k).index_add_(1, entry, M_QQ[:, group])
    row_D = torch.arange(d, device=M_QQ.device) % q
    return folded_QK[row_D if outputs == "strided" else _run_of(d, q, M_QQ.device)]


def _groups(x_K: Tensor, q: int) -> Tensor:
    """Return the last dimension, padded circularly to a multiple of `q`, as (..., N, Q)."""
    k = x_K.shape[-1]
    pad = -k % q
    if pad > k:  # one group, longer than the input
        x_K = x_K[..., torch.arange(q, device=x_K.device) % k]
    elif pad:
        x_K = torch.cat([x_K, x_K[..., :pad]], dim=-1)
    return x_K.unflatten(-1, (-1, q))


def _repeated(y: Tensor, d: int) -> Tensor:
    """Return the last dimension repeated end to end, and cut, to length `d`."""
    copies = -(-d // y.shape[-1])
    return y.unsqueeze(-2).expand(*y.shape[:-1], copies, y.shape[-1]).flatten(-2)[..., :d]


def _run_sums(x_K: Tensor, q: int) -> Tensor:
    """Return the sums over `q` consecutive runs of the last dimension; a run may be empty."""
    length, longer = divmod(x_K.shape[-1], q)
    cut = longer * (length + 1)
    head = x_K[..., :cut].unflatten(-1, (longer, length + 1)).sum(-1)
    tail = x_K[..., cut:].unflatten(-1, (q - longer, length)).sum(-1)
    return torch.cat([head, tail], dim=-1)


def _run_repeated(y_Q: Tensor, d: int) -> Tensor:
    """Return each entry of the last dimension repeated by the length of its run among `d`."""
    length, longer = divmod(d, y_Q.shape[-1])
    parts = ((y_Q[..., :longer], length + 1), (y_Q[..., longer:], length))
    spread = [part.unsqueeze(-1).expand(*part.shape, times).flatten(-2) for part, times in parts]
    return torch.cat(spread, dim=-1)


def _run_of(size: int, q: int, device: torch.device) -> Tensor:
    """Return the run, of `q`, that each of `size` entries lies in."""
    return _run_repeated(torch.arange(q, device=device), size)


# --- rotation and decoupling: a block diagonal


def _blocked(*, turn: bool) -> Maps:
    return Maps(
        change=partial(_blocked_change, turn=turn), delta=partial(_blocked_delta, turn=turn)
    )


def _blocked_change(x_K: Tensor, M_QQ: Tensor, d: int, *, turn: bool) -> Tensor:
    q = M_QQ.shape[-1]
    seen_NQ = _groups(x_K, q)[..., : -(-d // q), :]  # later groups would be cut off below
    return _repeated(_product(_turned(seen_NQ) if turn else seen_NQ, M_QQ).flatten(-2), d)


def _blocked_delta(M_QQ: Tensor, d: int, k: int, *, turn: bool) -> Tensor:
    """Return the blocks M R_i down the diagonal, folded to k columns and repeated to d rows."""
    q = len(M_QQ)
    n = -(-k // q)
    blocks_QNQ = M_QQ.unsqueeze(-2).expand(q, n, q)
    if turn:  # M R_i rotates the rows of M by R_i's transpose, the opposite direction
        blocks_QNQ = _turned(blocks_QNQ, clockwise=True)
    row_D = torch.arange(d, device=M_QQ.device) % (n * q)
    group_D = row_D // q
    column_DQ = group_D[:, None] * q + torch.arange(q, device=M_QQ.device)
    return M_QQ.new_zeros(d, k).scatter_add_(1, column_DQ % k, blocks_QNQ[row_D % q, group_D])


def _turned(v_NQ: Tensor, *, clockwise: bool = False) -> Tensor:
    """Return group i of (..., N, Q) turned by R_i.

    The angles are computed in every call, so they follow the tensor's device and precision.
    """
    n, q = v_NQ.shape[-2:]
    exact = torch.promote_types(v_NQ.dtype, torch.float32)
    pair_H = torch.arange(q // 2, device=v_NQ.device, dtype=exact)
    group_N = torch.arange(n, device=v_NQ.device, dtype=exact)
    angle_NH = group_N[:, None] * 10000.0 ** (-2 * pair_H / q)
    cos_NH = angle_NH.cos().to(v_NQ.dtype)
    sin_NH = (-angle_NH if clockwise else angle_NH).sin().to(v_NQ.dtype)
    a_NH, b_NH = v_NQ.chunk(2, dim=-1)
    return torch.cat([a_NH * cos_NH - b_NH * sin_NH, b_NH * cos_NH + a_NH * sin_NH], dim=-1)


# --- truncation


def _truncated_change(x_K: Tensor, M_QQ: Tensor, d: int) -> Tensor:
    seen = x_K[..., : M_QQ.shape[-1]]
    y = _product(seen, M_QQ[..., :d, : seen.shape[-1]])
    return F.pad(y, (0, d - y.shape[-1]))


def _truncated_delta(M_QQ: Tensor, d: int, k: int) -> Tensor:
    corner = M_QQ[:d, :k]
    return F.pad(corner, (0, k - corner.shape[1], 0, d - corner.shape[0]))


MAPS: dict[str, Maps] = {
    "sharing": _shared("strided", "strided"),
    "grouped_2": _shared("runs", "runs"),
    "grouped_3": _shared("runs", "strided"),
    "grouped_4": _shared("strided", "runs"),
    "rotation": _blocked(turn=True),
    "decouple": _blocked(turn=False),
    "truncate": Maps(_truncated_change, _truncated_delta),
}
