"""Coverage of 95 % intervals and type I error of the quadratic test, over simulated grids.

    python benchmarks/coverage.py [--grids 10000] [--jobs 2] [--parts .cache/coverage]

Writes benchmarks/coverage.csv, which docs/statistics.md quotes. Every part of 250 grids has a
seed of its own and is stored when it is done: a run that was stopped goes on where it was.

A grid is a study of 9 prompt loss weights x 3 seeds = 27 runs, scored on 8 tasks each. Intervals
are judged on grids with a quadratic curve over w_p, the quadratic test on as many others, drawn
apart, with a line. What is judged:

    wp^2        the interval of the quadratic coefficient
    gain        the interval of the height at the true optimum above PLW 0
    location    Fieller's set of the optimum; it holds the true one exactly where the slope there
                does not differ from zero
    type I      the share of lines whose quadratic coefficient has p < 0.05

The shapes of a study are in `SHAPES`, each with the model that fits it and, on 2,000 grids, with
one that does not. Every fit goes the way `fit_mixed` goes, checks included,
only that the design is shared by all grids of a shape.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.engine.lmm import solution
from analysis.engine.lmm_fit import minimise
from analysis.engine.response import with_response
from analysis.inference.estimates import DF_RULES, contrast
from analysis.mixed import MixedFit, fit_mixed

HERE = Path(__file__).parent
PLW = (0.0, 0.0005, 0.0022, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
SEEDS, TASKS = 3, 8
SLOPE, OPTIMUM = 8.0, 0.5  # score points by w_p; the curve's vertex is SLOPE / 2 OPTIMUM
RUN_SD, TASK_SD, TASK_SLOPE_SD, TASK_CORR, NOISE_SD = 1.0, 5.0, 1.5, -0.3, 2.0
ROOT, PART = 20250202, 250
BESIDE = 8  # parts in which the models after a shape's first, there for comparison, are fitted too
WANTED = {"coverage": (0.943, 0.957), "type I": (0.043, 0.057)}
CURVE = "wp + I(wp^2)"


@dataclass(frozen=True, slots=True)
class Shape:
    """What the studies look like and which models are fitted to them."""

    name: str
    models: tuple[tuple[str, str], ...]  # words, formula
    task_slopes: bool = False  # whether tasks differ in their slope over w_p
    lost: float = 0.0  # share of scores that are missing, two runs besides


FIXED = ("tasks fixed, (1 | run)", f"score ~ {CURVE} + task + (1 | run)")
LEAST = ("tasks fixed, no run effect", f"score ~ {CURVE} + task")
SLOPES = ("(1 + wp | task) + (1 | run)", f"score ~ {CURVE} + (1 + wp | task) + (1 | run)")
PLAIN = ("(1 | task) + (1 | run)", f"score ~ {CURVE} + (1 | task) + (1 | run)")
SHAPES = (
    Shape("balanced", (FIXED, LEAST)),
    Shape("scores missing", (FIXED, LEAST), lost=0.2),
    Shape("tasks with own slopes", (SLOPES, PLAIN), task_slopes=True),
)


def frame(shape: Shape) -> pd.DataFrame:
    """Return the rows of one study: run, task, wp and a score of noise."""
    runs = [(f"r{i:02d}", w ** np.log10(2)) for i, w in enumerate(np.repeat(PLW, SEEDS))]
    rows = [(run, f"t{t}", wp) for run, wp in runs for t in range(TASKS)]
    found = pd.DataFrame(rows, columns=["run", "task", "wp"])
    rng = np.random.default_rng(ROOT)
    if shape.lost:
        gone = rng.choice([run for run, _ in runs], 2, replace=False)
        keep = (rng.random(len(found)) >= shape.lost) & ~found["run"].isin(gone)
        found = found[keep].reset_index(drop=True)
    return found.assign(score=rng.normal(size=len(found)))


def scores(shape: Shape, rows: pd.DataFrame, bend: float, rng: np.random.Generator) -> Array:
    """Return simulated scores of these rows, (N,)."""
    run_N, task_N = (pd.factorize(rows[name])[0] for name in ("run", "task"))
    wp_N = rows["wp"].to_numpy(dtype=np.float64)
    cov = TASK_CORR * TASK_SD * TASK_SLOPE_SD
    own_22 = np.array([[TASK_SD**2, cov], [cov, TASK_SLOPE_SD**2]])
    task_T2 = rng.multivariate_normal(np.zeros(2), own_22, task_N.max() + 1)
    y_N = 50 + SLOPE * wp_N + bend * wp_N**2 + task_T2[task_N, 0]
    if shape.task_slopes:
        y_N = y_N + task_T2[task_N, 1] * wp_N
    y_N = y_N + RUN_SD * rng.standard_normal(run_N.max() + 1)[run_N]
    return np.asarray(y_N + NOISE_SD * rng.standard_normal(len(rows)), dtype=np.float64)


def refitted(fit: MixedFit, y_N: Array) -> MixedFit:
    """Return the fit of the same design to another response, by the full search."""
    problem = with_response(fit.problem, y_N, fit.design.root_N)
    minimum = minimise(problem)
    solved = solution(problem, minimum.theta, minimum.at)
    variance, names = minimum.at.r2 / problem.df, fit.fixef.index
    return replace(
        fit,
        fixef=pd.Series(solved.beta_B, index=names),
        cov=pd.DataFrame(variance * solved.cov_BB, index=names, columns=names),
        sigma=float(np.sqrt(variance)),
        loglik=-minimum.at.deviance / 2,
        random={},
        problem=problem,
        minimum=minimum,
    )


def judged(fit: MixedFit, bend: float) -> Iterator[tuple[str, str, bool]]:
    """Yield (quantity, df rule, whether covered or rejected) of one fit."""
    names = list(fit.fixef.index)
    own = [names.index("wp"), next(i for i, n in enumerate(names) if n.startswith("I(wp"))]
    asked = {"wp^2": (0.0, 1.0), "gain": (OPTIMUM, OPTIMUM**2), "location": (1.0, 2 * OPTIMUM)}
    for rule in DF_RULES if fit.problem.factors else DF_RULES[:1]:
        for quantity, weights in asked.items() if bend else [("type I", (0.0, 1.0))]:
            l_B = np.zeros(len(names))
            l_B[own] = weights
            found = contrast(fit, l_B, df=rule)
            truth = float(np.dot(weights, (SLOPE, bend)))
            covers = abs(found.estimate - truth) <= found.half_width
            yield quantity, rule, covers if bend else not covers  # p < 0.05 leaves 0 outside


def part(task: tuple[int, int, int, Path]) -> Path:
    """Simulate one part of a shape's grids, store its counts, return where."""
    which, number, grids, folder = task
    shape = SHAPES[which]
    path = folder / f"{which}-{number:03d}-{grids}.csv"
    if path.exists():
        return path
    rows, rng = frame(shape), np.random.default_rng([ROOT, which, number])
    models = shape.models if number < BESIDE else shape.models[:1]
    fits = [(words, fit_mixed(rows, formula)) for words, formula in models]
    counts: dict[tuple[str, str, str], list[int]] = {}
    for i in range(2 * grids):
        bend = -SLOPE / (2 * OPTIMUM) if i < grids else 0.0
        y_N = scores(shape, rows, bend, rng)
        for words, fit in fits:
            again = refitted(fit, y_N)
            for quantity, rule, yes in judged(again, bend):
                own = counts.setdefault((words, quantity, rule), [0, 0, 0, 0])
                for k, one in enumerate((True, yes, not again.converged, again.singular)):
                    own[k] += int(one)
    found = [(shape.name, *key, *own) for key, own in counts.items()]
    columns = ["shape", "model", "quantity", "df", "grids", "yes", "unconverged", "singular"]
    half = path.with_suffix(".half")
    pd.DataFrame(found, columns=columns).to_csv(half, index=False)
    half.rename(path)
    return path


def joined(paths: list[Path]) -> pd.DataFrame:
    """Return the rates over all parts, their Monte-Carlo errors and what is wanted of them."""
    keys = ["shape", "model", "quantity", "df"]
    found = pd.concat(map(pd.read_csv, paths)).groupby(keys, sort=False).sum().reset_index()
    rate = found["yes"] / found["grids"]
    kind = np.where(found["quantity"] == "type I", "type I", "coverage")
    low, high = (np.array([WANTED[k][end] for k in kind]) for end in (0, 1))
    error = np.sqrt(rate * (1 - rate) / found["grids"])
    return found.assign(rate=rate, error=error.round(5), within=(rate >= low) & (rate <= high))


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--grids", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--parts", type=Path, default=Path(".cache/coverage"))
    parser.add_argument("--out", type=Path, default=HERE / "coverage.csv")
    asked = parser.parse_args()
    asked.parts.mkdir(parents=True, exist_ok=True)
    size = min(PART, asked.grids)
    numbers = range(-(-asked.grids // size))
    tasks = [(which, n, size, asked.parts) for n in numbers for which in range(len(SHAPES))]
    begun, cpu = time.perf_counter(), sum(os.times()[:4])
    fork = multiprocessing.get_context("fork")
    with fork.Pool(asked.jobs, initializer=os.nice, initargs=(10,)) as pool:
        paths = list(pool.imap_unordered(part, tasks))
        pool.close()
        pool.join()
    table = joined(sorted(paths))
    table.to_csv(asked.out, index=False)
    print(table.to_string(index=False))
    print(f"{time.perf_counter() - begun:.0f} s, {sum(os.times()[:4]) - cpu:.0f} s of processor")


if __name__ == "__main__":
    main()
