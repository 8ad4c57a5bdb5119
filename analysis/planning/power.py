"""How many seeds and items an effect needs: the study's own tests on simulated scores.

A grid is planned; what noise its scores will have is taken from a pilot. Scores are drawn

    score = effect * shape(w_p) + run + residual

with the pilot's standard deviations, the default model is fitted to every draw, and the share of
draws in which a test sees the effect is its power. Two shapes, each with its own test:

    line    `effect` points at PLW 1, w_p * effect; the test of the score at PLW 1 less that at 0
    arch    `effect` points at w_p = 1/2 and none at either end, 4 w_p (1 - w_p) * effect; the test
            of the quadratic term, for masking modes that have the levels to show one

The scores of an item are right or wrong, so a run's score on a task carries p (1 - p) / n of
variance; with another number of items that part of the residual is scaled. It is taken whole,
though some of it cancels between cells that answer the same items: the figures err on the side of
too many seeds.

Letters in names: N rows, B fixed effects.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.estimates import contrast
from analysis.inference.mean_response import response
from analysis.mixed import MixedFit, fit_mixed, with_score
from analysis.planning.replicates import wit_spread
from analysis.regression.default_model import default_formula
from analysis.table.frame import from_results, study_rows
from analysis.table.run_panels import panels

ALPHA = 0.05
DRAWS = 200
SEEDS = (1, 2, 3, 5, 8)
SHAPES = ("line", "arch")
BENCHMARKS = 5  # whose mean WIT's table has
LEAST_SHARE = 0.1  # of the residual variance that items are not taken to explain
COLUMNS = ("seeds", "runs", "mode", "task_group", "dataset_type", "shape", "power", "error")


@dataclass(frozen=True, slots=True)
class Components:
    """The noise of a study's scores, in points."""

    run: float  # between runs of a cell, on all tasks alike
    residual: float  # of one run on one task
    item: float  # the part of the residual that items explain: sqrt(p (1 - p) / items)
    items: float  # a task, in the pilot
    source: str

    def with_items(self, items: int | None) -> "Components":
        """Return the components at another number of items a task.

        Raises:
            AnalysisError: no item, or a pilot that does not say how many it had.
        """
        if items is None:
            return self
        if items < 1 or not self.items > 0:
            raise AnalysisError(f"items={items}: needs a pilot with items, and at least one")
        floor = LEAST_SHARE * self.residual**2
        part = min(self.item**2, self.residual**2 - floor)
        rest = self.residual**2 - part + part * self.items / items
        item = self.item * float(np.sqrt(self.items / items))
        return Components(self.run, float(np.sqrt(rest)), item, items, self.source)


def components(pilot: pd.DataFrame, *, source: str = "the pilot") -> Components:
    """Return the noise of a results table, from the default model fitted to it.

    Args:
        pilot: a results table, one row per run and task.
        source: what the report calls it.

    Returns:
        Standard deviations in points.

    Raises:
        AnalysisError: the table has too few runs to separate noise from effects.
    """
    frame = from_results(pilot)
    rows = study_rows(frame)
    fit = fit_mixed(rows, default_formula(frame)[0])
    run = fit.random.get("run")
    errors = rows["score_se"].astype(float).dropna()
    items = rows["n"].astype(float).median() if "n" in rows else float("nan")
    return Components(
        run=0.0 if run is None else float(run.sd.iloc[0]),
        residual=fit.sigma,
        item=float(np.sqrt((errors**2).mean())) if len(errors) else 0.0,
        items=float(items),
        source=source,
    )


def published() -> Components:
    """Return the noise of a published table, for a study that has no pilot yet.

    WIT's cells at equal ratios of the two weights are near-replicates (`planning.replicates`): one
    score each, the mean of five benchmarks, Llama 1B to 8B and others. A benchmark by itself is
    taken to spread sqrt(5) times as much, as if the five were independent.
    """
    spread = wit_spread().sd
    return Components(
        run=0.0,
        residual=spread * float(np.sqrt(BENCHMARKS)),
        item=0.0,
        items=float("nan"),
        source=f"WIT's published table (spread of a mean of {BENCHMARKS} benchmarks: {spread:.2f})",
    )


def power(
    planned: pd.DataFrame,
    noise: Components,
    *,
    effect: float,
    seeds: Sequence[int] = SEEDS,
    draws: int = DRAWS,
) -> pd.DataFrame:
    """Return how often each test would see `effect`, by number of seeds and panel.

    Args:
        planned: the grid as a results table, one row per run and task; `value` is not looked at.
        noise: of a run and of a score.
        effect: in points.
        seeds: numbers of seeds to try.
        draws: simulated studies a number of seeds.

    Returns:
        COLUMNS; `error` is the Monte Carlo standard error of `power`.

    Raises:
        AnalysisError: nothing varies that could have an effect, or an argument is out of range.
    """
    if effect <= 0 or draws < 2 or not seeds or min(seeds) < 1:
        raise AnalysisError(
            f"effect={effect} draws={draws} seeds={list(seeds)}: must be positive, draws 2 or more"
        )
    found = [row for n in seeds for row in _at(replicated(planned, n), n, noise, (effect, draws))]
    if not found:
        raise AnalysisError("power: the prompt loss weight does not vary in this grid")
    return pd.DataFrame(found, columns=list(COLUMNS))


def enough(table: pd.DataFrame, *, wanted: float = 0.8) -> pd.DataFrame:
    """Return the fewest seeds tried that reach a power, by panel and shape; NaN where none do.

    Args:
        table: as `power` returns it.
        wanted: the power to reach.
    """
    by = ["mode", "task_group", "dataset_type", "shape"]
    reached = table[table["power"] >= wanted].groupby(by, sort=False)["seeds"].min()
    every = table[by].drop_duplicates()
    return every.merge(reached.rename("seeds").reset_index(), on=by, how="left")


def replicated(planned: pd.DataFrame, seeds: int) -> pd.DataFrame:
    """Return the grid with its cells under `seeds` seeds instead of its own.

    Args:
        planned: the grid as a results table, one row per run and task.
        seeds: how many runs a cell has.
    """
    trained = planned["adapter"].astype(str) != "none"
    first = planned[trained & (planned["seed"] == planned.loc[trained, "seed"].min())]
    copies = [
        first.assign(seed=s, train_key=first["train_key"].astype(str) + f"-{s}")
        for s in range(seeds)
    ]
    return pd.concat([planned[~trained], *copies], ignore_index=True)


@dataclass(frozen=True, slots=True)
class _Test:
    labels: dict[str, str]
    shape: str
    l_B: Array


def _at(
    planned: pd.DataFrame, seeds: int, noise: Components, asked: tuple[float, int]
) -> Iterator[dict[str, object]]:
    """Yield a line for every test at one number of seeds; none where no model can be fitted."""
    rng = np.random.default_rng(seeds)
    # A score that is not constant is needed to build the model, no more.
    planned = planned.assign(value=rng.uniform(0.4, 0.6, len(planned)))
    frame = from_results(planned)
    rows = study_rows(frame)
    try:
        fit = fit_mixed(rows, default_formula(frame)[0])
    except AnalysisError:
        return
    effect, draws = asked
    for shape in SHAPES:
        tests = list(_tests(fit, rows, shape))
        seen = np.zeros(len(tests))
        for y_N in _scores(rows, noise, (shape, effect), (draws, rng)) if tests else ():
            again = with_score(fit, y_N)
            seen += [contrast(again, test.l_B).p < ALPHA for test in tests]
        for test, hits in zip(tests, seen, strict=True):
            share = float(hits) / draws
            yield {
                "seeds": seeds, "runs": rows["run"].nunique(), **test.labels, "shape": shape,
                "power": share, "error": float(np.sqrt(share * (1 - share) / draws)),
            }  # fmt: skip


def _tests(fit: MixedFit, rows: pd.DataFrame, shape: str) -> Iterator[_Test]:
    for panel in panels(rows):
        l_3B = response(fit, panel.rows).l_3B
        l_B = l_3B[1] + l_3B[2] if shape == "line" else l_3B[2]
        if np.isfinite(l_B).all() and l_B.any():
            yield _Test(panel.labels, shape, l_B)


def _scores(
    rows: pd.DataFrame,
    noise: Components,
    effect: tuple[str, float],
    drawn: tuple[int, np.random.Generator],
) -> Iterator[Array]:
    """Yield simulated scores, (N,)."""
    (shape, size), (draws, rng) = effect, drawn
    wp_N = rows["wp"].to_numpy(dtype=np.float64)
    # A mode of one level above 0 has no arch to show.
    curved_N = rows["curved"].to_numpy(dtype=np.float64)
    mean_N = size * (wp_N if shape == "line" else 4 * wp_N * (1 - wp_N) * curved_N)
    run_N, names = pd.factorize(rows["run"])
    for _ in range(draws):
        run_R = noise.run * rng.standard_normal(len(names))
        yield mean_N + run_R[run_N] + noise.residual * rng.standard_normal(len(mean_N))
