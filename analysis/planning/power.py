"""How many seeds and items an effect needs: the study's own tests on simulated scores.

A grid is planned; what noise its scores will have is taken from a pilot. In every panel the means
of runs are drawn

    score = effect * shape(w_p) + cell + run

with the pilot's standard deviations for that panel, the panel's default model is fitted to
every draw, and the share of draws in which a test sees the effect is its power. Two shapes, each
with its own test:

    line    `effect` points at PLW 1, w_p * effect; the test of the score at PLW 1 less that at 0
    arch    `effect` points at w_p = 1/2 and none at either end, 4 w_p (1 - w_p) * effect; the test
            of the quadratic term, for masking modes that have the levels to show one

Both shapes are in the model's span, so that one fit of the noise serves them all: an effect moves
the estimate by its own size and nothing else. Without replicates nothing is called distinguishable,
so that one seed has no power.

The scores of an item are right or wrong, so a run's score on a task carries p (1 - p) / n of
variance; with another number of items that part of the run's is scaled. It is taken whole, though
some of it cancels between cells that answer the same items: the figures err on the side of too many
seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.inference.estimates import contrast
from analysis.mixed import MixedFit, with_score
from analysis.planning.replicates import wit_spread
from analysis.regression.default_model import default_formula
from analysis.regression.panels import PanelModel, dose_curves, panel_models
from analysis.regression.study import ASKED_NOTHING
from analysis.table.frame import from_results, study_rows
from analysis.table.run_panels import CURVE

ALPHA = 0.05
DRAWS = 200
SEEDS = (1, 2, 3, 5, 8)
SHAPES = ("line", "arch")
BENCHMARKS = 5  # whose mean WIT's table has
LEAST_SHARE = 0.1  # of a run's variance that items are not taken to explain
COLUMNS = ("seeds", "runs", *CURVE, "shape", "power", "error")


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of a run's mean score over a group of tasks, standard deviations in points."""

    cell: float  # between cells, beyond what a model says
    run: float  # between runs of a cell
    item: float  # the part of the run's that items explain: sqrt(p (1 - p) / items)
    tasks: float  # whose mean it is; more of them are taken to be independent

    def of_mean(self, tasks: float) -> "Noise":
        """Return the noise of a mean over another number of tasks."""
        share = float(np.sqrt(self.tasks / tasks))
        return Noise(self.cell, self.run * share, self.item * share, tasks)

    def with_items(self, share: float) -> "Noise":
        """Return the noise with the variance of items multiplied by `share`."""
        part = min(self.item**2, (1 - LEAST_SHARE) * self.run**2)
        run = float(np.sqrt(self.run**2 - part + part * share))
        return replace(self, run=run, item=self.item * float(np.sqrt(share)))


@dataclass(frozen=True, slots=True)
class Components:
    """The noise of a study's scores by data set and group of tasks."""

    panels: Mapping[tuple[str, str], Noise]  # (data set, group of tasks)
    items: float  # a task
    source: str

    def of(self, dataset: str, group: str) -> Noise:
        """Return the noise of a panel; for one that the pilot lacks the mean over its group of
        tasks, or else over all.
        """
        if (dataset, group) in self.panels:
            return self.panels[dataset, group]
        own = [noise for (_, name), noise in self.panels.items() if name == group]
        own = own or list(self.panels.values())
        return _mean(own, [1.0] * len(own))

    def with_items(self, items: int | None) -> "Components":
        """Return the components at another number of items a task.

        Raises:
            AnalysisError: no item, or a pilot that does not say how many it had.
        """
        if items is None:
            return self
        if items < 1 or not self.items > 0:
            raise AnalysisError(f"items={items}: needs a pilot with items, and at least one")
        panels = {n: one.with_items(self.items / items) for n, one in self.panels.items()}
        return Components(panels, items, self.source)


def components(pilot: pd.DataFrame, *, source: str = "the pilot") -> Components:
    """Return the noise of a results table, from the default models fitted to its panels.

    Args:
        pilot: a results table, one row per run and task.
        source: what the report calls it.

    Raises:
        AnalysisError: the table has too few runs to separate noise from effects.
    """
    frame = from_results(pilot)
    rows = study_rows(frame)
    models, lost = panel_models(rows, default_formula(frame)[0], ASKED_NOTHING)
    if not models:
        raise AnalysisError(f"pilot: {lost[0].reason}")
    errors = rows["score_se"].astype(float) ** 2
    item = errors.groupby([rows[n].astype(str) for n in ("dataset", "task_group")]).mean()
    panels: dict[tuple[str, str], list[Noise]] = {}
    for model in models:
        panel = (model.labels["dataset"], model.labels["task_group"])
        tasks = float(model.frame["tasks"].mean())
        cell = model.fit.random.get("cell")
        panels.setdefault(panel, []).append(
            Noise(
                cell=0.0 if cell is None else float(cell.sd.iloc[0]),
                run=model.fit.sigma,
                item=float(np.sqrt(np.nan_to_num(item.loc[[panel]].mean()) / tasks)),
                tasks=tasks,
            )
        )
    items = rows["n"].astype(float).median() if "n" in rows else float("nan")
    means = {panel: _mean(own, [1.0] * len(own)) for panel, own in panels.items()}
    return Components(means, float(items), source)


def _mean(some: Sequence[Noise], weights: Sequence[float]) -> Noise:
    """Return the noise whose variances are the mean of several."""
    squares = {
        n: float(np.average([getattr(one, n) ** 2 for one in some], weights=weights))
        for n in ("cell", "run", "item")
    }
    roots = {n: float(np.sqrt(value)) for n, value in squares.items()}
    return Noise(**roots, tasks=float(np.average([one.tasks for one in some], weights=weights)))


def published() -> Components:
    """Return the noise of a published table, for a study that has no pilot yet.

    WIT's cells at equal ratios of the two weights are near-replicates (`planning.replicates`): one
    score each, the mean of five benchmarks, Llama 1B to 8B and others. Benchmarks are taken to be
    independent, and cells to differ by nothing beside their effects, which the table cannot say.
    """
    spread = wit_spread().sd
    return Components(
        panels={("", ""): Noise(cell=0.0, run=spread, item=0.0, tasks=BENCHMARKS)},
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
    """Return how often each test would see `effect`, by number of seeds and curve.

    Args:
        planned: the grid as a results table, one row per run and task; `value` is not looked at.
        noise: of cells and runs, by data set and group of tasks.
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


_Test = tuple[dict[str, str], str, Array, float]  # labels, shape, contrast, what an effect adds


def _at(
    planned: pd.DataFrame, seeds: int, noise: Components, asked: tuple[float, int]
) -> Iterator[dict[str, object]]:
    """Yield a line for every test at one number of seeds."""
    effect, draws = asked
    rng = np.random.default_rng(seeds)
    # A score that is not constant is needed to build the models, no more.
    frame = from_results(planned.assign(value=rng.uniform(0.4, 0.6, len(planned))))
    rows = study_rows(frame)
    models, _ = panel_models(rows, default_formula(frame)[0], ASKED_NOTHING)
    lines = []
    for model in models:
        own = noise.of(model.labels["dataset"], model.labels["task_group"])
        own = own.of_mean(float(model.frame["tasks"].mean()))
        tests = list(_tests(model, effect))
        shares = _shares(model, own, (tests, draws), rng)
        for (labels, shape, _, _), share in zip(tests, shares, strict=True):
            error = float(np.sqrt(share * (1 - share) / draws))
            lines.append(
                {"seeds": seeds, "runs": model.fit.n, **labels, "shape": shape, "power": share,
                 "error": error}
            )  # fmt: skip
    yield from sorted(lines, key=lambda line: SHAPES.index(str(line["shape"])))


def _tests(model: PanelModel, effect: float) -> Iterator[_Test]:
    """Yield labels and shape of every test, its contrast and what an effect adds to it."""
    for one in dose_curves([model]):
        _, l1_B, l2_B = one.response().l_3B
        for shape, l_B, added in (("line", l1_B + l2_B, effect), ("arch", l2_B, -4 * effect)):
            if np.isfinite(l_B).all() and l_B.any():
                yield one.labels, shape, l_B, added


def _shares(
    model: PanelModel, noise: Noise, asked: tuple[list[_Test], int], rng: np.random.Generator
) -> list[float]:
    """Return the share of draws in which every test of a panel sees the effect."""
    tests, draws = asked
    seen = np.zeros(len(tests))
    if not model.replicated or not tests:
        return list(seen)
    cell_N, cells = pd.factorize(model.used["cell"])
    for _ in range(draws):
        cell_K = noise.cell * rng.standard_normal(len(cells))
        y_N = cell_K[cell_N] + noise.run * rng.standard_normal(len(cell_N))
        fit = with_score(model.fit, y_N)
        seen += [_sees(fit, l_B, added) for _, _, l_B, added in tests]
    return [float(hits) / draws for hits in seen]


def _sees(fit: MixedFit, l_B: Array, added: float) -> bool:
    found = contrast(fit, l_B)
    return replace(found, estimate=found.estimate + added).p < ALPHA
