"""Cross products of the first factor's levels with the dense columns, a (L, P, M).

They are kept dense where they are (runs crossed with tasks) and sparse where they are not
(students who each met 25 of 1,128 lecturers); then the sum over levels of a' phi a costs its pairs
of entries, not levels x columns^2.

Letters in names: L levels, P columns of a factor, Q columns of the other factors' Z, B columns of
the border, M = Q + B, E entries of the sparse coupling, T pairs of entries. Symmetric (M, M)
matrices hold their lower triangle; what stands above it is not read.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from analysis.engine.linalg import Array, Index, symmetric, times
from analysis.engine.summary import brief


@brief
@dataclass(frozen=True, slots=True)
class DenseCoupling:
    """All of a, zeros included."""

    a_LPM: Array

    def gram(self, phi_LPP: Array) -> Array:
        """Return the sum over levels of a' phi a, (M, M)."""
        levels, width, m = self.a_LPM.shape
        if width == 1:
            half_LM = self.a_LPM[:, 0] * np.sqrt(phi_LPP[:, 0])
            return half_LM.T @ half_LM  # numpy does half of the work where both are one array
        flat = self.a_LPM.reshape(levels * width, m)
        return flat.T @ times(phi_LPP, self.a_LPM).reshape(levels * width, m)

    def quadratic(self, k_MM: Array) -> Array:
        """Return a k a' for every level, (L, P, P)."""
        return self.entries(k_MM)[1]

    def entries(self, k_MM: Array) -> tuple[Array, Array]:
        """Return a k, (L, P, M), and a k a', (L, P, P)."""
        levels, width, m = self.a_LPM.shape
        product_LPM = (self.a_LPM.reshape(levels * width, m) @ symmetric(k_MM)).reshape(
            levels, width, m
        )
        if width == 1:
            form_L = np.einsum("lpm,lpm->l", product_LPM, self.a_LPM)
            return product_LPM, form_L[:, None, None]
        return product_LPM, product_LPM @ self.a_LPM.transpose(0, 2, 1)

    def times(self, v_MK: Array) -> Array:
        """Return a v, (L, P, K)."""
        levels, width, m = self.a_LPM.shape
        return (self.a_LPM.reshape(levels * width, m) @ v_MK).reshape(levels, width, v_MK.shape[1])

    def transposed(self, t_LPK: Array) -> Array:
        """Return the sum over levels of a' t, (M, K)."""
        levels, width, m = self.a_LPM.shape
        flat = t_LPK.reshape(levels * width, t_LPK.shape[-1])
        return self.a_LPM.reshape(levels * width, m).T @ flat

    def squares(self) -> Array:
        """Return the squares of a summed over levels, (P, M)."""
        return np.einsum("lpm,lpm->pm", self.a_LPM, self.a_LPM)


@brief
@dataclass(frozen=True, slots=True)
class Pattern:
    """Which level meets which dense column, and every pair of entries of one level.

    The sum over levels of a' phi a is linear in phi, and a k a' in k; both are one sparse operator
    of pairs {e, e'}, or its transpose. An entry paired with itself has weight 1/2, and diagonals
    are doubled at the end.
    """

    shape: tuple[int, int, int]  # L, P, M
    order_E: Index  # entries by row (level, column of the factor), from the order they came in
    columns_E: Index
    starts: Index  # of the rows in columns_E, (L P + 1,)
    first_T: Index
    second_T: Index
    half_T: Array  # 1/2 where an entry is paired with itself
    target_T: Index  # column-major place in the lower (M, M)
    levels_T: Index  # starts of the packed (level, a >= b) rows in target_T

    @classmethod
    def of(cls, rows_E: Index, columns_E: Index, shape: tuple[int, int, int]) -> "Pattern":
        """Return the pattern of entries at these rows (level P + a) and dense columns."""
        levels, width, m = shape
        order = np.argsort(rows_E, kind="stable")
        rows, columns = rows_E[order], columns_E[order]
        first, second = _pairs_of_blocks(np.bincount(rows // width, minlength=levels))
        row = rows[first]
        if width > 1:
            row = row // width * (width * (width + 1) // 2) + _packed(
                row % width, rows[second] % width, width
            )
            by = np.argsort(row, kind="stable")
            first, second, row = first[by], second[by], row[by]
        low, high = (f(columns[first], columns[second]) for f in (np.minimum, np.maximum))
        packed_rows = levels * (width * (width + 1) // 2)
        return cls(
            shape=shape,
            order_E=order,
            columns_E=columns,
            starts=_starts(rows, levels * width),
            first_T=first,
            second_T=second,
            half_T=np.where(first == second, 0.5, 1.0),
            target_T=low * m + high,
            levels_T=_starts(row, packed_rows),
        )


class SparseCoupling:
    """The entries of a on a pattern, and its border, which is dense."""

    def __init__(self, pattern: Pattern, values_E: Array, border_LPB: Array) -> None:
        levels, width, m = pattern.shape
        self.pattern, self.border_LPB, self.q = pattern, border_LPB, m - border_LPB.shape[-1]
        self.values_E = values_E[pattern.order_E]
        self.matrix = csr_array(
            (self.values_E, pattern.columns_E, pattern.starts), shape=(levels * width, self.q)
        )
        first, second = self.values_E[pattern.first_T], self.values_E[pattern.second_T]
        rows = len(pattern.levels_T) - 1
        self.pairs = csr_array(
            (first * second * pattern.half_T, pattern.target_T, pattern.levels_T),
            shape=(rows, m * m),
        )

    def gram(self, phi_LPP: Array) -> Array:
        """Return the sum over levels of a' phi a, (M, M)."""
        m, q = self.pattern.shape[-1], self.q
        upper, lower = np.triu_indices(phi_LPP.shape[-1])
        flat = np.asarray(self.pairs.T @ phi_LPP[:, lower, upper].ravel(), dtype=np.float64)
        found = flat.reshape((m, m), order="F")
        diagonal = np.arange(m)
        found[diagonal, diagonal] *= 2
        if m > q:
            h_LPB = times(phi_LPP, self.border_LPB)
            found[q:] = self.transposed(h_LPB).T
        return found

    def quadratic(self, k_MM: Array) -> Array:
        """Return a k a' for every level, (L, P, P)."""
        levels, width, m = self.pattern.shape
        upper, lower = np.triu_indices(width)
        packed = np.asarray(self.pairs @ k_MM.ravel(order="F")).reshape(levels, -1)
        found = np.empty((levels, width, width))
        found[:, lower, upper] = packed
        found[:, upper, lower] = packed
        found[:, np.arange(width), np.arange(width)] *= 2
        if m == self.q:
            return found
        b_LPB = self.border_LPB
        across_LPB = (self.matrix @ k_MM[self.q :, : self.q].T).reshape(b_LPB.shape)
        mixed = across_LPB @ b_LPB.transpose(0, 2, 1)
        corner = symmetric(k_MM[self.q :, self.q :])
        return found + mixed + mixed.transpose(0, 2, 1) + b_LPB @ corner @ b_LPB.transpose(0, 2, 1)

    def entries(self, k_MM: Array) -> tuple[Array, Array]:
        """Return a k at the entries, in the order they came in, and a k a', (L, P, P)."""
        p, size = self.pattern, len(self.values_E)
        k_T = k_MM.ravel(order="F")[p.target_T] * p.half_T
        if p.shape[1] > 1:  # a row of a k is made of its own row of a alone
            rows_E = np.repeat(np.arange(len(p.starts) - 1), np.diff(p.starts))
            k_T *= rows_E[p.first_T] == rows_E[p.second_T]
        found = np.bincount(p.first_T, self.values_E[p.second_T] * k_T, size)
        found += np.bincount(p.second_T, self.values_E[p.first_T] * k_T, size)
        back = np.empty(size)
        back[p.order_E] = found
        return back, self.quadratic(k_MM)

    def times(self, v_MK: Array) -> Array:
        """Return a v, (L, P, K)."""
        levels, width, _ = self.pattern.shape
        found = (self.matrix @ v_MK[: self.q]).reshape(levels, width, -1)
        return found + self.border_LPB @ v_MK[self.q :]

    def transposed(self, t_LPK: Array) -> Array:
        """Return the sum over levels of a' t, (M, K)."""
        levels, width, k = t_LPK.shape
        flat = t_LPK.reshape(levels * width, k)
        border = self.border_LPB.reshape(levels * width, -1)
        return np.vstack([self.matrix.T @ flat, border.T @ flat])

    def squares(self) -> Array:
        """Return the squares of a summed over levels, (P, M), those of its border left out."""
        _, width, m = self.pattern.shape
        rows_E = np.repeat(np.arange(len(self.pattern.starts) - 1), np.diff(self.pattern.starts))
        cell_E = rows_E % width * m + self.pattern.columns_E
        sums = np.bincount(cell_E, self.values_E**2, width * m).astype(np.float64, copy=False)
        return sums.reshape(width, m)


Coupling = DenseCoupling | SparseCoupling


def _pairs_of_blocks(sizes: Index) -> tuple[Index, Index]:
    """Return all pairs first >= second within consecutive blocks of these sizes."""
    starts = np.cumsum(sizes) - sizes
    within = np.arange(sizes.sum()) - np.repeat(starts, sizes)
    first = np.repeat(np.arange(len(within)), within + 1)
    begin = np.cumsum(within + 1) - (within + 1)
    step = np.arange(len(first)) - np.repeat(begin, within + 1)
    return first, step + np.repeat(starts, sizes)[first]


def _packed(a: Index, b: Index, width: int) -> Index:
    """Return the place of (a, b) in a lower triangle packed column by column."""
    low, high = np.minimum(a, b), np.maximum(a, b)
    return low * width - low * (low - 1) // 2 + high - low


def _starts(rows: Index, count: int) -> Index:
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])
