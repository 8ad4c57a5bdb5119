"""The blocked Cholesky factor of I + Lambda' Z' W Z Lambda, which both mixed-model engines need.

With A = Z' W Z split into the first factor (1) and all the rest (2, with its border):

    C = Lambda_1' A_11 Lambda_1 + I        block diagonal, (P, P) a level
    Phi = Lambda_1 C^-1 Lambda_1'
    U = A_22 - A_12' Phi A_12              what is left after the first factor
    S = Lambda_2' U Lambda_2 + I           dense; the border has Lambda = I and no I added

log|I + Lambda' A Lambda| = log|C| + log|S|. S^-1 gives every block of the inverse that is asked
for, and Lambda' (A - A Lambda (.)^-1 Lambda' A) Lambda = I - (.)^-1 what gradients need of it.

Letters in names: L levels, P columns of a factor, Q columns of the other factors' Z, M = Q and
the border. Symmetric (M, M) matrices hold their lower triangle.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import blas, lapack

from analysis.engine.layout import BlockLayout, Blocks
from analysis.engine.linalg import Array, sweep, symmetric, times
from analysis.engine.summary import brief

WEAK = 1e-4  # smallest singular value of Lambda_f below which I - (.)^-1 is not divided by it


@brief
@dataclass(frozen=True, slots=True)
class Absorbed:
    """What the first factor leaves to the others."""

    inverse_LPP: Array  # C^-1
    phi_LPP: Array
    log_det: float  # of C
    u_MM: Array


def absorb(blocks: Blocks, template: Array) -> Absorbed:
    """Return the cross products given the first factor, whose Lambda is `template`.

    Raises:
        numpy.linalg.LinAlgError: C is not positive definite.
    """
    c_LPP = template.T @ blocks.a11_LPP @ template + np.eye(len(template))
    inverse_LPP, log_det = sweep(c_LPP)
    phi_LPP = template @ inverse_LPP @ template.T
    u_MM = np.subtract(blocks.a22_MM, blocks.coupling.gram(phi_LPP), order="F")
    return Absorbed(inverse_LPP, phi_LPP, log_det, u_MM)


@brief
@dataclass(frozen=True, slots=True)
class Factored:
    """The blocked factor under one Lambda and one set of weights."""

    layout: BlockLayout
    blocks: Blocks
    lambdas: Sequence[Array]
    first: Absorbed
    chol_MM: Array  # of S; its upper triangle holds anything

    def log_det_to(self, m: int) -> float:
        """Return log|C| and the log determinant of the leading (m, m) block of S."""
        return self.first.log_det + 2 * float(np.log(np.diagonal(self.chol_MM)[:m]).sum())

    def solve(self, right: Sequence[Array]) -> list[Array]:
        """Return (I + Lambda' A Lambda)^-1 right, (L, P) for every factor; there is no border."""
        if not right:
            return []
        first_LPK = times(self.first.inverse_LPP, right[0][..., None])
        coupling, layout = self.blocks.coupling, self.layout
        if not layout.q:
            return [first_LPK[..., 0]]
        across_M = coupling.transposed(self.lambdas[0] @ first_LPK)[:, 0]
        rest_M = layout.joined(right) - turned(layout, across_M, self.lambdas)
        x_M = lapack.dpotrs(self.chol_MM, rest_M, lower=1)[0]
        b_M = turned(layout, x_M, [t.T for t in self.lambdas])
        back_LPK = self.lambdas[0].T @ coupling.times(b_M[:, None])
        first_LPK = first_LPK - times(self.first.inverse_LPP, back_LPK)
        return [first_LPK[..., 0], *layout.parted(x_M)]

    def covariance(self, inverse_MM: Array) -> Array:
        """Return K = T S^-1 T', T = diag(Lambda of the other factors, I)."""
        return sandwiched(self.layout, inverse_MM, [t.T for t in self.lambdas])

    def posterior(
        self, inverse_MM: Array
    ) -> tuple[list[Array], dict[tuple[int, int], list[Array]], list[Array]]:
        """Return the blocks of Lambda (.)^-1 Lambda' that rows meet, and `traces`.

        Returns:
            Of every factor its own blocks (L, P, P); of every pair of factors one value a cell of
            the layout for every pair of columns; the traces. There is no border.
        """
        if not self.lambdas:
            return [], {}, []
        layout, phi_LPP = self.layout, self.first.phi_LPP
        k_MM = self.covariance(inverse_MM)
        entries, form_LPP = self.blocks.coupling.entries(k_MM)
        own = [phi_LPP + times(times(phi_LPP, form_LPP), phi_LPP)]
        across = dict(layout.first_cells(entries, phi_LPP))
        for f, rows in enumerate(layout.slices, start=1):
            width = len(self.lambdas[f])
            own.append(_diagonal_blocks(k_MM, rows, width))
            for g in range(f + 1, len(self.lambdas)):
                block = k_MM[layout.slices[g - 1], rows].T
                step = len(self.lambdas[g])
                across[f, g] = [
                    block[a::width, b::step].ravel() for a, b in np.ndindex(width, step)
                ]
        return own, across, self.traces(inverse_MM, k_MM, form_LPP)

    def traces(self, inverse_MM: Array, k_MM: Array, form_LPP: Array) -> list[Array]:
        """Return of every factor the sum over levels of Z_f' P Z_f, (P, P).

        P is V^-1, or what it is after X where `inverse_MM` is the inverse of S with X in it.

        Args:
            inverse_MM: S^-1, or that of a leading block of S and zero beyond it.
            k_MM: its `covariance`.
            form_LPP: a k a' of the first factor's coupling.
        """
        if not self.lambdas:
            return []
        found = [_first_trace(self.blocks.a11_LPP, self.first.phi_LPP, form_LPP)]
        for own, template in zip(self.layout.slices, self.lambdas[1:], strict=True):
            width = len(template)
            if weak(template):
                found.append(_plain_trace(self.first.u_MM, k_MM, own, width))
                continue
            levels = (own.stop - own.start) // width
            rest = levels * np.eye(width) - _diagonal_blocks(inverse_MM, own, width).sum(axis=0)
            half = np.linalg.solve(template.T, rest)
            found.append(np.asarray(np.linalg.solve(template.T, half.T), dtype=np.float64))
        return found


def factored(layout: BlockLayout, blocks: Blocks, lambdas: Sequence[Array]) -> Factored:
    """Return the blocked factor.

    Raises:
        numpy.linalg.LinAlgError: it does not exist: a block is not positive definite.
    """
    first = absorb(blocks, lambdas[0] if lambdas else np.zeros((1, 1)))
    chol_MM = _cholesky(layout, first.u_MM, lambdas) if len(first.u_MM) else first.u_MM
    return Factored(layout, blocks, lambdas, first, chol_MM)


def _cholesky(layout: BlockLayout, u_MM: Array, lambdas: Sequence[Array]) -> Array:
    s_MM = sandwiched(layout, u_MM, lambdas)
    diagonal = np.arange(layout.q)
    s_MM[diagonal, diagonal] += 1
    chol_MM, failed = lapack.dpotrf(s_MM, lower=1, clean=0, overwrite_a=1)
    if failed:
        raise np.linalg.LinAlgError("the dense part is not positive definite")
    return chol_MM


def inverse_of_leading(chol_MM: Array, m: int) -> Array:
    """Return the inverse of the leading (m, m) block of L L', zero beyond it."""
    if not m:
        return np.zeros_like(chol_MM)
    found = chol_MM.copy(order="F")
    rest = np.arange(m, len(found))
    # With an identity behind it the leading block is inverted alone, and nothing is moved.
    found[m:] = 0
    found[rest, rest] = 1
    found, _ = lapack.dpotri(found, lower=1, overwrite_c=1)
    found[rest, rest] = 0
    return found


def sandwiched(layout: BlockLayout, u_MM: Array, lambdas: Sequence[Array]) -> Array:
    """Return T' u T, T = diag(Lambda of the other factors, I); a new array."""
    if all(len(template) == 1 for template in lambdas[1:]):
        scale_M = np.ones(len(u_MM))
        for own, template in zip(layout.slices, lambdas[1:], strict=True):
            scale_M[own] = template[0, 0]
        found = u_MM * scale_M[:, None]
        found *= scale_M
        return found
    half_MM = turned(layout, symmetric(u_MM), lambdas)
    return np.asfortranarray(turned(layout, half_MM.T, lambdas))


def turned(layout: BlockLayout, rows_M: Array, lambdas: Sequence[Array]) -> Array:
    """Return an array (..., M) times diag(Lambda of the other factors, I)."""
    found = rows_M.copy()
    for own, template in zip(layout.slices, lambdas[1:], strict=True):
        part = rows_M[..., own].reshape(*rows_M.shape[:-1], -1, len(template))
        product = part * template[0, 0] if len(template) == 1 else part @ template
        found[..., own] = product.reshape(rows_M[..., own].shape)
    return found


def weak(template: Array) -> bool:
    """Return whether this Lambda_f is too near to singular to be divided by."""
    if len(template) == 1:
        return bool(abs(template[0, 0]) < WEAK)
    return bool(np.linalg.svd(template, compute_uv=False)[-1] < WEAK)


def _first_trace(a11_LPP: Array, phi_LPP: Array, form_LPP: Array) -> Array:
    q_LPP = np.eye(a11_LPP.shape[-1]) - times(a11_LPP, phi_LPP)
    rest_LPP = times(q_LPP, a11_LPP) - times(times(q_LPP, form_LPP), q_LPP.transpose(0, 2, 1))
    return rest_LPP.sum(axis=0)


def _diagonal_blocks(k_MM: Array, own: slice, width: int) -> Array:
    """Return the diagonal blocks of one factor, (L, P, P)."""
    found = np.empty(((own.stop - own.start) // width, width, width))
    for a in range(width):
        for b in range(a + 1):
            rows = np.arange(own.start + a, own.stop, width)
            found[:, a, b] = found[:, b, a] = k_MM[rows, rows - a + b]
    return found


def rows_of(u_MM: Array, own: slice) -> Array:
    """Return rows of a symmetric matrix that holds its lower triangle."""
    found = u_MM[own].copy()
    found[:, own] = symmetric(u_MM[own, own])
    found[:, own.stop :] = u_MM[own.stop :, own].T
    return found


def _plain_trace(u_MM: Array, k_MM: Array, own: slice, width: int) -> Array:
    """Return the sum of the diagonal blocks of U - U K U, which costs a product of its own."""
    u_RM = rows_of(u_MM, own)
    product_RM = blas.dsymm(1.0, k_MM, u_RM.T, lower=1).T
    levels = len(u_RM) // width
    parts = [rows.reshape(levels, width, -1) for rows in (product_RM, u_RM)]
    return _diagonal_blocks(u_MM, own, width).sum(axis=0) - np.einsum(
        "lam,lbm->ab", *parts, optimize=True
    )
