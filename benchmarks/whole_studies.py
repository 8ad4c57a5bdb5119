"""Whole studies simulated from a known truth: how often what the page says of them is wrong.

    python benchmarks/whole_studies.py [--draws 2000] [--jobs 1] [--only NAME ...] [--out FILE]

Writes benchmarks/whole_studies.csv, which docs/statistics.md quotes. A study has the shape of the
quick or of the default one (their cells, data sets, base models and tasks), or the quick one's with
other numbers of seeds. Scores of every task are drawn as

    score = effect + seed + cell + run

with standard deviations of cells and runs by task and data set as measured on the quick study
(unequal), or all alike (equal), with cells' effects or without, and the study is analysed as its
report does: in every panel the default model, Holm over panels.

    coverage   of 95 % intervals of PLW 1 - PLW 0 by panel, of the best weight where one is printed
               (Fieller), and of the best cell's mean corrected for having been picked
    false      studies with at least one headline called distinguishable where nothing is there:
               of the weight, of the arms, of either; the level is shared by the questions of a page
    power      share of panels in which an effect of 2 points is seen, beside the model before
    claimed    share of panels with a best weight inside (0, 1): where there is one, and where the
               score only rises

Where a panel's terms tell every cell apart its interval is for these very cells, and what it should
cover is their own difference, cell effects included.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.curve.shape import shape
from analysis.errors import AnalysisError
from analysis.inference.estimates import contrast
from analysis.inference.mean_response import Response
from analysis.inference.optimum import INTERIOR, optimum
from analysis.inference.shares import clopper_pearson
from analysis.inference.winners import winner
from analysis.mixed import MixedFit, fit_mixed, with_score
from analysis.questions.leaderboard.estimate import cell_means
from analysis.regression.default_model import default_formula
from analysis.regression.panels import PanelModel, dose_curves, panel_models
from analysis.regression.study import ASKED_NOTHING
from analysis.table.cells import ARM, run_means, without_rank
from analysis.table.factors import cell_names
from analysis.table.frame import WP_EXPONENT, from_results, study_rows
from analysis.table.level_means import level_means
from analysis.table.run_panels import RunPanel, with_arms

HERE = Path(__file__).parent
ROOT, ALPHA = 20261126, 0.05
Rng = np.random.Generator
TASKS = {  # task: type, side; SDs of seeds and of cells on long and on short completions
    "arithmetic": ("mc", "source", (5.8, 3.6), (4.0, 1.3)),
    "knowledge": ("mc", "source", (2.3, 1.2), (2.1, 3.0)),
    "pronouns": ("mc", "source", (3.1, 0.0), (2.3, 1.1)),
    "questions": ("mc", "target", (3.5, 2.6), (1.3, 0.5)),
    "translation": ("short", "target", (7.2, 4.6), (0.7, 0.5)),
    "lives": ("long", "target", (1.2, 1.8), (1.3, 0.1)),
}  # fmt: skip
EQUAL = (3.0, 2.0)  # SDs of runs and of cells where all are alike
SEED = 0.5  # SD of what the runs of a seed share on a task
# The model of all scores that came before, whose power stands beside the panels'.
BEFORE = (
    "score ~ task * (dataset + adapter) + dataset:seed + wp:mode:task_group:dataset + "
    "I(wp^2):curved:mode:task_group:dataset + log2_rank:adapter:task + (1 | run)"
)


@dataclass(frozen=True, slots=True)
class Case:
    """What is simulated."""

    name: str
    effect: str = "none"  # none, line (2 points at PLW 1), peak (at w_p 0.5), plateau
    equal: bool = False
    cells: bool = True
    seeds: int = 2
    shape: str = "quick"
    winners: bool = False
    before: bool = False

    def mean(self, wp_N: np.ndarray) -> np.ndarray:
        """Return the true effect of the weight on a score, in points."""
        forms = {
            "none": 0 * wp_N, "line": 2 * wp_N, "peak": 40 * wp_N * (1 - wp_N),
            "plateau": 10 * (1 - np.exp(-6 * wp_N)),
        }  # fmt: skip
        return forms[self.effect]

    @property
    def change(self) -> float:
        """The true PLW 1 less PLW 0."""
        return float(self.mean(np.array([1.0]))[0])


CASES = [
    Case("null, unequal, cells", winners=True, before=True),
    Case("null, unequal, no cells", cells=False, before=True),
    Case("null, equal, cells", equal=True, before=True),
    Case("null, equal, no cells", equal=True, cells=False),
    Case("null, unequal, cells, 1 seed", seeds=1),
    Case("null, unequal, cells, 5 seeds", seeds=5, winners=True),
    Case("null, unequal, cells, 8 seeds", seeds=8),
    Case("null, default study", seeds=5, shape="default"),
    Case("2 points, unequal, cells", effect="line", before=True),
    Case("2 points, default study", effect="line", seeds=5, shape="default"),
    Case("peak, unequal, cells", effect="peak"),
    Case("peak, unequal, cells, 5 seeds", effect="peak", seeds=5),
    Case("plateau, unequal, cells", effect="plateau"),
    Case("plateau, unequal, cells, 5 seeds", effect="plateau", seeds=5),
]


def table_of(case: Case) -> pd.DataFrame:
    """Return the results table of a study without scores."""
    doses = [("instruction", 0.0), *(("none", w) for w in (0.01, 0.1, 0.5, 1.0))]
    arms = [("full", 2), *product(("lora", "mora"), (2, 8))]
    cells = [("micro_0", d, a, "weight", case.seeds)
             for d, a in product([*doses, ("boilerplate", 1.0)], arms)]  # fmt: skip
    if case.shape == "default":
        cells += [("micro_0", ("none", w), arms[0], "completion", case.seeds) for w in (0.1, 1.0)]
        cells += [(model, d, arms[0], "weight", 2) for model in ("micro_1", "micro_2")
                  for d in (doses[0], doses[2], doses[4])]  # fmt: skip
    rows = []
    for dataset, (model, (mask, plw), (adapter, rank), normaliser, seeds) in product(
        ("micro", "micro_short"), cells
    ):
        short = dataset == "micro_short"
        used = plw * (0.95 if short else 0.71) if mask == "boilerplate" else plw
        name = f"{dataset} {model} {mask} {plw} {adapter} {rank} {normaliser}"
        common = {
            "dataset": dataset, "model": model, "masking": mask, "plw": plw, "adapter": adapter,
            "rank": rank, "normaliser": normaliser, "effective_plw": used, "wp": used**WP_EXPONENT,
            "dataset_type": "short" if short else "long", "truth": name,
        }  # fmt: skip
        rows += [
            common | {"seed": s, "train_key": f"{name} {s}", "task": task, "task_type": kind,
                      "side": side, "metric": "acc", "value": 0.5}
            for s in range(seeds) for task, (kind, side, _, _) in TASKS.items()
        ]  # fmt: skip
    return pd.DataFrame(rows)


class Simulated:
    """The models of one case, fitted again to every draw."""

    def __init__(self, case: Case) -> None:
        self.case = case
        table = table_of(case)
        noise = np.random.default_rng(0).uniform(0.4, 0.6, len(table))
        frame = from_results(table.assign(value=noise))
        self.rows = study_rows(frame).reset_index(drop=True)
        models, lost = panel_models(self.rows, default_formula(frame).formula, ASKED_NOTHING)
        assert not lost
        self.models = models
        self.curves = [[(c, c.response()) for c in dose_curves([m])] for m in models]
        self.places = [self._places(m.used["run"], m.labels) for m in models]
        self.arms = list(self._arm_models())
        self.questions = 3 if case.shape == "default" else 2  # weight, arms, the normaliser
        self.boards = list(self._boards()) if case.winners else []
        self.before = fit_mixed(self.rows, BEFORE) if case.before else None
        task = self.rows["task"].astype(str)
        seed = self.rows["dataset"].astype(str) + task + self.rows["seed"].astype(str)
        self.cells = pd.factorize(self.rows["truth"] + task)[0]
        self.seeds = pd.factorize(seed)[0]
        self.fixed = case.mean(self.rows["wp"].to_numpy(float))
        self.sd_run, self.sd_cell = (self._sds(i) for i in (0, 1))

    def _sds(self, which: int) -> np.ndarray:
        long = (self.rows["dataset"] == "micro").to_numpy()
        tasks = self.rows["task"].astype(str)
        if self.case.equal:
            found = np.full(len(tasks), EQUAL[which])
        else:
            found = np.where(long, *(tasks.map(lambda t, i=i: TASKS[t][i][which]).to_numpy(float)
                                     for i in (2, 3)))  # fmt: skip
        return found if which == 0 or self.case.cells else 0 * found

    def _places(self, runs: pd.Series, labels: dict[str, str]) -> np.ndarray:
        """Return for every run of a panel the rows of its tasks (N, T)."""
        inside = np.ones(len(self.rows), bool)
        for name, level in labels.items():
            if level != "both":
                inside &= (self.rows[name].astype(str) == level).to_numpy()
        own = self.rows[inside].groupby("run", observed=True).indices
        index = np.flatnonzero(inside)
        return np.array([index[own[run]] for run in runs])

    def _arm_models(self) -> Iterator[tuple]:
        main = self.rows[(self.rows["normaliser"] == "weight") & (self.rows["model"] == "micro_0")]
        for dataset, side in product(("micro", "micro_short"), ("target", "source")):
            runs = without_rank(run_means(main[main["dataset"] == dataset], side=side))
            found = level_means(runs, ARM)
            names = found.table["adapter"].astype(str).tolist()
            l_KC = found.means.l_KC
            l_AB = found.means.fit.kept(np.delete(l_KC, names.index("full"), 0)
                                        - l_KC[names.index("full")])  # fmt: skip
            labels = {"dataset": dataset, "model": "micro_0", "side": side}
            yield found.means.fit, l_AB, self._places(runs["run"], labels)

    def _boards(self) -> Iterator[tuple]:
        main = self.rows[(self.rows["normaliser"] == "weight") & (self.rows["model"] == "micro_0")]
        for dataset, side in product(("micro", "micro_short"), ("target", "source")):
            runs = run_means(main[main["dataset"] == dataset], side=side)
            runs = runs.assign(cell=cell_names(runs))
            labels = {"dataset": dataset, "model": "micro_0", "side": side}
            yield f"{dataset}, {side}", runs, self._places(runs["run"], labels)

    def draw(self, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and what they are without seeds and runs, points (N,)."""
        cell_N, seed_N = (rng.standard_normal(c.max() + 1)[c] for c in (self.cells, self.seeds))
        true_N = self.fixed + self.sd_cell * cell_N
        return true_N + self.sd_run * rng.standard_normal(len(true_N)) + SEED * seed_N, true_N

    def study(self, rng: Rng) -> Iterator[tuple[str, str, float]]:
        """Yield what came of one study: what, where, value (a share's 0 or 1, or a width)."""
        y_N, true_N = self.draw(rng)
        p_weight = []
        for place, model in enumerate(self.models):
            rows_NT = self.places[place]
            fit = with_score(model.fit, y_N[rows_NT].mean(axis=1))
            for line in self._panel(place, fit, true_N[rows_NT].mean(axis=1)):
                if line[0] == "p":
                    p_weight.append(line[2])
                else:
                    yield line
        p_arms = []
        for arm_fit, l_AB, rows_NT in self.arms:
            fit = with_score(arm_fit, y_N[rows_NT].mean(axis=1))
            p_arms += [contrast(fit, l_B).p for l_B in l_AB]
        if self.case.effect == "none":
            yield from self._false(p_weight, p_arms)
        if self.before is not None:
            yield from self._before(y_N)
        for where, runs, rows_NT in self.boards:
            yield from _winner(where, runs.assign(score=y_N[rows_NT].mean(axis=1)),
                               true_N[rows_NT].mean(axis=1))  # fmt: skip

    def _false(
        self, p_weight: list[float], p_arms: list[float]
    ) -> Iterator[tuple[str, str, float]]:
        if self.case.seeds == 1:
            p_weight, p_arms = [1.0], [1.0]  # the page calls nothing distinguishable
        # The least p of Holm is that of Bonferroni; the questions of a page share its level.
        any_weight, any_arm = (min(p) * len(p) * self.questions < ALPHA for p in (p_weight, p_arms))
        yield "false headline of the weight", "study", any_weight
        yield "false headline of an arm", "study", any_arm
        yield "false headline of either", "study", any_weight or any_arm

    def _panel(
        self, place: int, fit: MixedFit, cells_N: np.ndarray
    ) -> Iterator[tuple[str, str, float]]:
        """Yield what comes of one panel: coverage and width of its effect, its optimum."""
        model = self.models[place]
        where = ", ".join(model.labels.values())
        for one, unfitted in self.curves[place]:
            curve = replace(unfitted, fit=fit)
            gain = curve.gain(1.0)
            truth = self.case.change
            if "cell" not in fit.random:  # of these very cells
                b_B = np.linalg.lstsq(fit.design.X_NB, cells_N, rcond=None)[0]
                l_B = curve.l_3B[1] + curve.l_3B[2]
                truth = float(l_B @ b_B[fit.problem.fixed.kept])
            # Only where nothing is there can a headline be false; the family is that of the page.
            yield "p", where, gain.p if abs(truth) < 1e-9 else 1.0
            if one.labels["mode"] != "none":
                continue
            yield "coverage of PLW 1 - PLW 0", where, gain.low <= truth <= gain.high
            yield "width of PLW 1 - PLW 0", where, gain.high - gain.low
            if "cell" in fit.random:
                yield "seen by itself", where, gain.p < ALPHA and self.case.seeds > 1
            if self.case.effect in ("peak", "plateau") and one.levels > 2:
                yield from self._optimum(model, curve, where)

    def _optimum(
        self, model: PanelModel, curve: Response, where: str
    ) -> Iterator[tuple[str, str, float]]:
        best = optimum(curve.quadratic)
        claimed = best.verdict == INTERIOR
        yield "rises and falls by the slopes", where, claimed
        if claimed:
            scores = curve.fit.design.response_N
            runs = model.used.assign(score=scores)
            own = runs[(runs["wp"] == 0) | (runs["mode"] == "none")]
            try:
                claimed = shape(RunPanel({}, with_arms(own))).bears_maximum
            except AnalysisError:
                claimed = False
        yield "best weight inside claimed", where, claimed
        if claimed and self.case.effect == "peak":
            low, high = best.fieller
            yield "coverage of the best weight", where, low <= 0.5 <= high

    def _before(self, y_N: np.ndarray) -> Iterator[tuple[str, str, float]]:
        """Yield the same of the model of all scores that came before, for the weight alone."""
        fit, p = with_score(self.before, y_N), []
        names = list(fit.fixef.index)
        for model in self.models:
            group, dataset = model.labels["task_group"], model.labels["dataset"]
            where = ", ".join(model.labels.values())
            for mode in ("none", "boilerplate"):
                panel = f"mode[{mode}]:task_group[{group}]:dataset[{dataset}]"
                l_B = np.array([n in (f"wp:{panel}", f"I(wp ** 2):curved:{panel}") for n in names])
                gain = contrast(fit, l_B.astype(float))
                p.append(gain.p)
                if mode == "none":
                    inside = gain.low <= self.case.change <= gain.high
                    yield "before: coverage of PLW 1 - PLW 0", where, inside
                    yield "before: width of PLW 1 - PLW 0", where, gain.high - gain.low
                    yield "before: seen by itself", where, gain.p < ALPHA
        if self.case.effect == "none":
            yield "before: false headline of the weight", "study", min(p) * len(p) < ALPHA


def _winner(where: str, runs: pd.DataFrame, true_N: np.ndarray) -> Iterator[tuple[str, str, float]]:
    means = cell_means(runs)
    won = winner(means.mean_K, means.cov_KK, df=means.df)
    truth = float(true_N[(runs["cell"] == means.labels[won.index]).to_numpy()].mean())
    yield "coverage of the winner, corrected", where, won.hybrid.low <= truth <= won.hybrid.high


def _job(asked: tuple[Case, int, int]) -> dict[tuple[str, str], tuple[float, int]]:
    """Return sums and counts by what and where of some draws."""
    case, first, last = asked
    simulated, sums = Simulated(case), dict[tuple[str, str], tuple[float, int]]()
    for draw in range(first, last):
        rng = np.random.default_rng([ROOT, CASES.index(case), draw])
        for what, where, value in simulated.study(rng):
            total, count = sums.get((what, where), (0.0, 0))
            sums[what, where] = (total + float(value), count + 1)
    return sums


def summary(case: Case, sums: dict[tuple[str, str], tuple[float, int]]) -> pd.DataFrame:
    """Return a line for every number of a case: mean, and a share's Clopper-Pearson interval."""
    lines = []
    every = dict(sums)
    for what in dict.fromkeys(what for what, _ in sums):
        parts = [v for (w, where), v in sums.items() if w == what and where != "study"]
        if len(parts) > 1:
            every[what, "all panels"] = (sum(s for s, _ in parts), sum(n for _, n in parts))
    for (what, where), (total, count) in every.items():
        share = "width" not in what
        low, high = clopper_pearson(total, count) if share else (np.nan, np.nan)
        lines.append({
            "case": case.name, "shape": case.shape, "seeds": case.seeds, "what": what,
            "where": where, "n": count, "value": total / count, "low": low, "high": high,
        })  # fmt: skip
    return pd.DataFrame(lines)


def main() -> None:
    """Simulate and write the table, a case at a time; a case that is in it is not made again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="+", default=[case.name for case in CASES])
    parser.add_argument("--out", type=Path, default=HERE / "whole_studies.csv")
    given = parser.parse_args()
    found = pd.read_csv(given.out) if given.out.exists() else pd.DataFrame(columns=["case"])
    for case in CASES:
        if case.name not in given.only or case.name in set(found["case"]):
            continue
        start, size = time.time(), max(1, min(50, given.draws // (2 * given.jobs)))
        asked = [(case, a, min(a + size, given.draws)) for a in range(0, given.draws, size)]
        sums: dict[tuple[str, str], tuple[float, int]] = {}
        with multiprocessing.Pool(given.jobs) as pool:
            for part in pool.imap_unordered(_job, asked):
                for key, (total, count) in part.items():
                    old = sums.get(key, (0.0, 0))
                    sums[key] = (old[0] + total, old[1] + count)
        own = summary(case, sums)
        found = pd.concat([found, own], ignore_index=True)
        found.to_csv(given.out, index=False, float_format="%.5g")
        short = own[own["where"].isin(["all panels", "study"])]
        print(f"{case.name}: {time.time() - start:.0f} s")
        print(short[["what", "n", "value", "low", "high"]].to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
