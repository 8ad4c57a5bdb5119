"""Grouping factors and where their cross products lie, for any weights of the rows.

The factor with most columns comes first: it is absorbed where everything is block diagonal, since
a row belongs to one of its levels. The columns of the other factors are dense, and with them, for
the linear model, a border of X and y.

Letters in names: N rows, L levels, P columns of a factor, Q columns of the other factors' Z,
B columns of the border, M = Q + B.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_array

from analysis.engine.coupling import Coupling, DenseCoupling, Pattern, SparseCoupling
from analysis.engine.linalg import Array, Index, Mask, times
from analysis.engine.summary import brief
from analysis.errors import AnalysisError

SMALL = 200_000  # entries below which the coupling is dense without asking
FLOP_RATIO = 16  # what a pair costs in the sparse sum, in multiplications of the dense one
MOST_PAIRS = 10_000_000
MOST_ENTRIES = 60_000_000  # of a dense coupling: 0.5 GB
MOST_DENSE = 12_000  # columns of the dense part: 1.1 GB
TABLE = 100_000_000  # pairs of levels up to which those that occur are found without sorting
_NO_BLOCKS = np.zeros((0, 1, 1))


@brief
@dataclass(frozen=True, slots=True)
class Factor:
    """One grouping factor and the columns whose coefficients vary over its levels."""

    group: str
    names: tuple[str, ...]
    columns_NP: Array
    index_N: Index
    levels: tuple[str, ...]
    free_PP: Mask  # free entries of Lambda_f, within the lower triangle

    @property
    def size(self) -> int:
        """The number of columns of Z that this factor has."""
        return len(self.levels) * len(self.names)

    def matrix(self, columns_NP: Array) -> csr_array:
        """Return these columns as a sparse (N, L P) matrix, level by level."""
        n, width = columns_NP.shape
        where = (self.index_N[:, None] * width + np.arange(width)).ravel()
        starts = np.arange(0, n * width + 1, width)
        return csr_array((columns_NP.ravel(), where, starts), shape=(n, self.size))


@brief
@dataclass(frozen=True, slots=True)
class Blocks:
    """The cross products of Z and its border under one set of weights."""

    a11_LPP: Array
    coupling: Coupling
    a22_MM: Array  # both triangles


class BlockLayout:
    """Where the cross products of some factors lie: what does not change with the weights.

    Args:
        factors: the one with most columns first.
        columns: of every factor, (N, P); they need not be the factor's own.
        border: the number of columns of the border.

    Raises:
        AnalysisError: more random effects than fit into memory.
    """

    def __init__(
        self, factors: Sequence[Factor], columns: Sequence[Array], *, border: int = 0
    ) -> None:
        self.factors, self.border = tuple(factors), border
        # A column of ones is left out of every product.
        self.columns = [[None if (c == 1).all() else c.copy() for c in own.T] for own in columns]
        ends = np.cumsum([0, *(f.size for f in self.factors[1:])])
        self.q = int(ends[-1])
        self.slices = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        if self.q > MOST_DENSE:
            raise AnalysisError(_too_many(self.factors, f"at most {MOST_DENSE:,}"))
        self.pattern = None
        self.cells: dict[tuple[int, int], tuple[Index, int]] = {}
        self.levels_of: dict[int, Index] = {}  # the first factor's level of a sparse cell
        if self.factors and self.factors[0].size * self.q > SMALL:
            self.pattern = self._sparse()
        for g in range(1, len(self.factors)):
            for f in range(0 if self.pattern is None else 1, g):
                levels = len(self.factors[g].levels)
                cell_N = self.factors[f].index_N * levels + self.factors[g].index_N
                self.cells[f, g] = cell_N, len(self.factors[f].levels) * levels

    def _sparse(self) -> Pattern | None:
        """Return the pattern of the first factor's coupling, None where dense is quicker."""
        first, m = self.factors[0], self.q + self.border
        levels, width = len(first.levels), len(first.names)
        found = [_unique(first, other) for other in self.factors[1:]]
        wide = [len(f.names) for f in self.factors[1:]]
        entries_L = sum(
            np.bincount(pairs // len(f.levels), minlength=levels) * (width * own)
            for (_, pairs), f, own in zip(found, self.factors[1:], wide, strict=True)
        )
        pairs = float((np.asarray(entries_L) * (np.asarray(entries_L) + 1.0) / 2).sum())
        if pairs * FLOP_RATIO > first.size * self.q**2 / 2 or pairs > MOST_PAIRS:
            if first.size * m > MOST_ENTRIES:
                raise AnalysisError(_too_many(self.factors, "fewer"))
            return None
        rows, columns = [], []
        for g, (cell_N, own) in enumerate(found, start=1):
            self.cells[0, g] = cell_N, len(own)
            i, j = np.divmod(own, len(self.factors[g].levels))
            self.levels_of[g] = i
            for a, b in np.ndindex(width, wide[g - 1]):
                rows.append(i * width + a)
                columns.append(self.slices[g - 1].start + j * wide[g - 1] + b)
        return Pattern.of(np.concatenate(rows), np.concatenate(columns), (levels, width, m))

    def blocks(self, w_N: Array | None = None, border_NB: Array | None = None) -> Blocks:
        """Return the cross products with these weights."""
        left_NB = np.zeros((0, 0)) if border_NB is None else border_NB
        right_NB = left_NB if w_N is None or border_NB is None else left_NB * w_N[:, None]
        corner = left_NB.T @ right_NB
        if not self.factors:
            return Blocks(_NO_BLOCKS, DenseCoupling(np.zeros((0, 1, self.border))), corner)
        across = np.zeros((self.factors[0].size, 0))
        a22_MM = np.zeros((self.q + self.border,) * 2, order="F")
        if border_NB is not None:
            z = [f.matrix(self._stacked(i)) for i, f in enumerate(self.factors)]
            across = z[0].T @ right_NB
            a22_MM[self.q :, self.q :] = corner
            for matrix, own in zip(z[1:], self.slices, strict=True):
                a22_MM[own, self.q :] = matrix.T @ right_NB
                a22_MM[self.q :, own] = a22_MM[own, self.q :].T
        self._fill(a22_MM, w_N)
        shape = (len(self.factors[0].levels), len(self.factors[0].names), self.border)
        coupling = self._coupling(w_N, across.reshape(shape))
        return Blocks(self._own(0, w_N), coupling, a22_MM)

    def _stacked(self, f: int) -> Array:
        ones = np.ones(len(self.factors[f].index_N))
        return np.column_stack([ones if c is None else c for c in self.columns[f]])

    def _coupling(self, w_N: Array | None, border_LPB: Array) -> Coupling:
        first = self.factors[0]
        levels, width = len(first.levels), len(first.names)
        if self.pattern is not None:
            values = [v for g in range(1, len(self.factors)) for v in self._across(0, g, w_N)]
            return SparseCoupling(self.pattern, np.concatenate(values), border_LPB)
        a_LPM = np.empty((levels, width, self.q + self.border))
        for g, own in enumerate(self.slices, start=1):
            wide = len(self.factors[g].names)
            block = a_LPM[:, :, own]
            products = self._across(0, g, w_N)
            for (a, b), value in zip(np.ndindex(width, wide), products, strict=True):
                block[:, a, b::wide] = value.reshape(levels, -1)
        a_LPM[:, :, self.q :] = border_LPB
        return DenseCoupling(a_LPM)

    def _fill(self, a22_MM: Array, w_N: Array | None) -> None:
        """Write the cross products of the other factors into their places."""
        for f, rows in enumerate(self.slices, start=1):
            own_LPP = self._own(f, w_N)
            levels, width, _ = own_LPP.shape
            place = rows.start + np.arange(levels) * width
            for a, b in np.ndindex(width, width):
                a22_MM[place + a, place + b] = own_LPP[:, a, b]
            for g in range(f + 1, len(self.factors)):
                columns, wide = self.slices[g - 1], len(self.factors[g].names)
                block = a22_MM[rows, columns]
                products = self._across(f, g, w_N)
                for (a, b), value in zip(np.ndindex(width, wide), products, strict=True):
                    block[a::width, b::wide] = value.reshape(levels, -1)
                a22_MM[columns, rows] = block.T

    def _own(self, f: int, w_N: Array | None) -> Array:
        """Return Z_f' W Z_f as (L, P, P), which is all of it: a row belongs to one level."""
        factor, columns = self.factors[f], self.columns[f]
        levels, width = len(factor.levels), len(factor.names)
        found = np.empty((levels, width, width))
        for a in range(width):
            for b in range(a + 1):
                product = _product(w_N, columns[a], columns[b])
                found[:, a, b] = found[:, b, a] = np.bincount(factor.index_N, product, levels)
        return found

    def _across(self, f: int, g: int, w_N: Array | None) -> list[Array]:
        """Return Z_f' W Z_g for every pair of columns, one value a cell."""
        cell_N, size = self.cells[f, g]
        return [
            np.bincount(cell_N, _product(w_N, a_N, b_N), size).astype(np.float64, copy=False)
            for a_N in self.columns[f]
            for b_N in self.columns[g]
        ]

    def joined(self, parts: Sequence[Array]) -> Array:
        """Return the other factors' (L, P) arrays as one vector, (Q,)."""
        return np.concatenate([np.empty(0), *(part.ravel() for part in parts[1:])])

    def parted(self, v_Q: Array) -> list[Array]:
        """Return a vector over the other factors' columns as (L, P) arrays."""
        shapes = [(len(f.levels), len(f.names)) for f in self.factors[1:]]
        return [v_Q[own].reshape(n) for own, n in zip(self.slices, shapes, strict=True)]

    def times(self, parts: Sequence[Array]) -> Array:
        """Return Z b, (N,), for b of every factor, (L, P)."""
        total = np.zeros(len(self.factors[0].index_N)) if self.factors else np.zeros(1)
        for factor, columns, b_LP in zip(self.factors, self.columns, parts, strict=True):
            for c_N, b_L in zip(columns, b_LP.T, strict=True):
                total += _weighted(np.ascontiguousarray(b_L)[factor.index_N], c_N)
        return total

    def rows(self, f: int, b_LPK: Array) -> Array:
        """Return Z_f b, (N, K), for b of one factor."""
        total = np.zeros((len(self.factors[f].index_N), b_LPK.shape[-1]))
        for p, c_N in enumerate(self.columns[f]):
            b_NK = np.ascontiguousarray(b_LPK[:, p])[self.factors[f].index_N]
            total += b_NK if c_N is None else b_NK * c_N[:, None]
        return total

    def transposed(self, x_N: Array) -> list[Array]:
        """Return Z' x of every factor, (L, P)."""
        return [
            np.stack([np.bincount(f.index_N, _weighted(x_N, c), len(f.levels)) for c in own], 1)
            for f, own in zip(self.factors, self.columns, strict=True)
        ]

    def first_cells(
        self, entries: Array, phi_LPP: Array
    ) -> Iterator[tuple[tuple[int, int], list[Array]]]:
        """Yield -phi times a k of the first factor with every other, one value a cell.

        Args:
            entries: of a k, as the coupling gives them.
            phi_LPP: of the first factor's levels.
        """
        width = phi_LPP.shape[-1]
        start = 0
        for g, own in enumerate(self.slices, start=1):
            wide = len(self.factors[g].names)
            if self.pattern is None:
                values = [entries[:, :, own][:, :, b::wide] for b in range(wide)]
                turned = [-times(phi_LPP, np.ascontiguousarray(v)) for v in values]
                yield (0, g), [turned[b][:, a].ravel() for a, b in np.ndindex(width, wide)]
                continue
            size = self.cells[0, g][1]
            part = entries[start : start + width * wide * size].reshape(width, wide, size)
            start += width * wide * size
            found = -np.einsum("lac,cbl->abl", phi_LPP[self.levels_of[g]], part)
            yield (0, g), [found[a, b] for a, b in np.ndindex(width, wide)]

    def variances(self, own: Sequence[Array], across: dict[tuple[int, int], list[Array]]) -> Array:
        """Return z' G z of every row, (N,), from the blocks of a symmetric G that rows meet.

        Args:
            own: of every factor, (L, P, P).
            across: of every pair of factors, one value a cell for every pair of columns.
        """
        total = np.zeros(len(self.factors[0].index_N)) if self.factors else np.zeros(1)
        for g_LPP, factor, columns in zip(own, self.factors, self.columns, strict=True):
            for a, b in np.ndindex(g_LPP.shape[1:]):
                g_N = np.ascontiguousarray(g_LPP[:, a, b])[factor.index_N]
                total += _weighted(g_N, columns[a], columns[b])
        for (f, g), values in across.items():
            pairs = ((a, b) for a in self.columns[f] for b in self.columns[g])
            for (a_N, b_N), value in zip(pairs, values, strict=True):
                total += 2 * _weighted(value[self.cells[f, g][0]], a_N, b_N)
        return total


def _product(first: Array | None, *columns: Array | None) -> Array | None:
    """Return the product of columns, None standing for ones."""
    for column in columns:
        if column is not None:
            first = column if first is None else first * column
    return first


def _weighted(x_N: Array, *columns: Array | None) -> Array:
    """Return x times columns, None standing for ones."""
    for column in columns:
        x_N = x_N if column is None else x_N * column
    return x_N


def _unique(first: Factor, other: Factor) -> tuple[Index, Index]:
    """Return for every row which pair of levels it belongs to, and those pairs as i L + j."""
    levels = len(other.levels)
    cell_N = first.index_N * levels + other.index_N
    if len(first.levels) * levels > TABLE:
        pairs, index_N = np.unique(cell_N, return_inverse=True)
        return index_N, pairs
    there = np.zeros(len(first.levels) * levels, dtype=bool)
    there[cell_N] = True
    return (np.cumsum(there) - 1)[cell_N], np.flatnonzero(there)


def _too_many(factors: Sequence[Factor], most: str) -> str:
    sizes = ", ".join(f"{f.group} {f.size:,}" for f in factors)
    return (
        f"formula: too many random effects ({sizes}): apart from the largest factor there may be "
        f"{most}; make the smaller ones fixed effects, or average over them first"
    )
