"""Coverage of the intervals of a paired difference: runs crossed with items.

    python benchmarks/paired_coverage.py [--pairs 10000]

Writes benchmarks/paired_coverage.csv, which docs/compare.md quotes. A pair is two sides of S runs
that answer I items. Behind every answer stands a normal number of variance 1 and more,

    z = item + side x item + seed + run + rest,

item (variance 0.4) is shared by both sides, seed by run s of either, run is a run's own (both of
standard deviation `run`), side x item has variance 0.15. An answer is right where z lies below what
makes a share `right` of side A right; side B is moved by `GAP`. A continuous score is z itself.
What is to be covered is known exactly: with one run a side the difference that these runs have over
all items, else the difference over all runs and items.

Beside it stands the interval of lm-eval's own comparison, which takes the sides' errors over items
for those of separate items: 1.96 sqrt(se_A^2 + se_B^2).
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from analysis.inference.crossed import paired_difference

HERE = Path(__file__).parent
ROOT, GAP = 20261127, 0.1
ITEM, SIDE_ITEM = 0.4, 0.15
CONTINUOUS = 0.0
BLOCK = 2_000_000  # answers that are drawn at a time
Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Case:
    """A design: `right` is the share of right answers, or `CONTINUOUS`."""

    seeds: int
    items: int
    right: float
    run: float


def draw(rng: np.random.Generator, case: Case, pairs: int) -> Drawn:
    """Return the scores of side A and of side B, (P, S, I) each, and the true B - A, (P,)."""
    shape = (pairs, case.seeds, case.items)

    def noise(*size: int) -> np.ndarray:
        return rng.standard_normal(size, dtype=np.float32)

    item = np.float32(np.sqrt(ITEM)) * noise(pairs, 1, case.items)
    seed = case.run * noise(pairs, case.seeds, 1)
    rest = np.float32(np.sqrt(1 - ITEM - SIDE_ITEM))
    spread = np.sqrt(1 + 2 * case.run**2)
    sides, means = [], []
    for shift in (0.0, GAP):
        run = np.float32(shift) + seed + np.float32(case.run) * noise(pairs, case.seeds, 1)
        z = item + np.float32(np.sqrt(SIDE_ITEM)) * noise(pairs, 1, case.items) + run
        z += rest * noise(*shape)
        over_runs = run.mean(axis=(1, 2)) if case.seeds == 1 else np.full(pairs, shift)
        if case.right != CONTINUOUS:
            cut = norm.ppf(case.right) * spread
            z = z < np.float32(cut)
            known = case.seeds == 1
            over_runs = norm.cdf((cut - over_runs) / (1.0 if known else spread))
        sides.append(z.astype(np.float64))
        means.append(over_runs)
    return sides[0], sides[1], means[1] - means[0]


def one(a_SI: np.ndarray, b_SI: np.ndarray) -> tuple[float, float, float]:
    """Return B - A, half of its interval's length and of lm-eval's, by `paired_difference`."""
    runs, items = a_SI.shape
    weight_I, task_I = np.full(items, 1 / items), np.zeros(items)
    partners = runs if runs > 1 else 0
    found = paired_difference(b_SI, a_SI, weight_I, task_I, partners=partners, most=1.0)
    return found.estimate, found.best.half_width, 1.96 * found.unpaired


def many(a_PSI: np.ndarray, b_PSI: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `one` does of every pair, (P,) each: the same formulas, all pairs at once."""
    _, runs, items = a_PSI.shape
    gap_PSI = b_PSI - a_PSI
    gap_PI = gap_PSI.mean(axis=1)
    mean_P = gap_PI.mean(axis=1)
    differ = np.abs(gap_PI) > 1e-12
    usual = (gap_PI**2).sum(axis=1) / np.maximum(differ.sum(axis=1), 1) / 2
    unseen = np.where(differ.any(axis=1), usual, 2.0) / items**2
    by_items = gap_PI.var(axis=1, ddof=1) / items + unseen
    apart = sum(x.mean(axis=1).var(axis=1, ddof=1) / items for x in (a_PSI, b_PSI))
    df, total = np.full(len(mean_P), items - 1.0), by_items
    if runs > 1:
        run_PS = gap_PSI.mean(axis=2)
        own = gap_PSI - gap_PI[:, None] - run_PS[:, :, None] + mean_P[:, None, None]
        rest = (own**2).sum(axis=(1, 2)) / (runs - 1) / runs / items**2
        by_runs = run_PS.var(axis=1, ddof=1) / runs
        alone = np.maximum(by_items - rest, 0.0)
        total = by_runs + alone
        ratio = np.minimum(alone / np.maximum(by_runs, 1e-300), 1e6)
        factor = min(1.0, 0.03 + (runs - 2) / 2)
        ours = (runs - 1) * (1 + factor * ratio**2.5)
        df = 1 / (1 / ours + (alone / np.maximum(total, 1e-300)) ** 2 / (items - 1))
    half = t.ppf(0.975, df) * np.sqrt(total)
    half = np.maximum(half, t.ppf(0.975, items - 1.0) * np.sqrt(by_items))
    return mean_P, half, 1.96 * np.sqrt(apart)


def drawn(case: Case, pairs: int, root: int = ROOT) -> Iterator[Drawn]:
    """Yield `pairs` pairs in blocks."""
    rng = np.random.default_rng(
        [root, case.seeds, case.items, round(1e3 * (case.right + case.run))]
    )
    block = max(1, min(pairs, BLOCK // (case.seeds * case.items)))
    for start in range(0, pairs, block):
        yield draw(rng, case, min(block, pairs - start))


def coverage(case: Case, pairs: int, root: int = ROOT) -> dict[str, float]:
    """Return the shares of pairs whose intervals hold the truth, and the intervals' mean lengths.

    Keys: ours, unpaired, length, length_unpaired.
    """
    held = np.zeros(4)
    for a_PSI, b_PSI, truth_P in drawn(case, pairs, root):
        mean_P, ours, apart = many(a_PSI, b_PSI)
        gap = np.abs(mean_P - truth_P)
        held += [(gap <= ours).sum(), (gap <= apart).sum(), 2 * ours.sum(), 2 * apart.sum()]
    names = ("ours", "unpaired", "length", "length_unpaired")
    return dict(zip(names, map(float, held / pairs), strict=True))


def cases() -> list[Case]:
    """Return the designs of the table, the small ones first."""
    found = []
    for right in (0.5, 0.9, 0.98, CONTINUOUS):
        found += [Case(1, items, right, 0.1) for items in (50, 200, 1000)]
        found += [Case(s, 50, right, run) for s in (2, 3, 5, 10) for run in (0.0, 0.1, 0.3)]
        found += [Case(s, 500, right, 0.1) for s in (2, 3, 5)]
    found += [Case(10, 500, 0.5, 0.1), Case(3, 2000, 0.5, 0.1), Case(3, 2000, 0.9, 0.1)]
    return sorted(found, key=lambda case: case.seeds * case.items)


def main() -> None:
    """Measure every case and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=10_000)
    pairs = parser.parse_args().pairs
    rows = []
    for case in cases():
        rows.append({n: getattr(case, n) for n in Case.__slots__} | {"pairs": pairs})
        rows[-1] |= coverage(case, pairs)
        print(rows[-1], file=sys.stderr, flush=True)
        pd.DataFrame(rows).to_csv(HERE / "paired_coverage.csv", index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
