"""Linear mixed models side by side with lme4 and what pip has, and how time grows.

    python benchmarks/mixed_models.py [--peers PYTHON] [--blas "LIBRARY ..."] [--repeats 5]
    python benchmarks/mixed_models.py --dispersion [--repeats 5]

The first form writes benchmarks/mixed_models.csv (programs x models), mixed_models_growth.csv (rows
and levels) and mixed_models_refits.csv (the bootstrap), which docs/statistics.md quotes. It needs R
with lme4; --peers is the Python of an environment that has glmm, mixedlm, interlace-lme and
statsmodels; --blas are libraries to be loaded before R's own BLAS and LAPACK, for lme4 a second
time (numpy brings OpenBLAS, Debian's R the reference BLAS). The second form times models with a
residual variance for every panel beside nlme (varIdent) and glmmTMB (dispformula), and writes
mixed_models_dispersion.csv. Every program runs on one thread; times are the least of the repeats,
of processor and wall: on a machine that does other work the two differ.

InstEval is lme4's data set (73,421 ratings, 2,972 + 1,128 + 14 levels); R exports it at every run.
The grids are runs x 13 benchmarks with crossed intercepts.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.engine.lmm import Problem, solution
from analysis.engine.lmm_fit import minimise
from analysis.inference.bootstrap import bootstrap
from analysis.mixed import MixedFit, fit_mixed

HERE = Path(__file__).parent
OTHER_BLAS = "lme4, OpenBLAS"
PEERS = ("glmm", "mixedlm", "interlace", "statsmodels")
GRID = "score ~ wp + I(wp**2) + adapter"
TASKS = 13
DRAWS, R_DRAWS = 1_000, 100
ROWS = ((60, 13, 1), (60, 13, 10), (60, 13, 100), (60, 13, 1000))  # runs, tasks, rows of a cell
LEVELS = ((600, 13, 1), (6_000, 13, 1), (600, 130, 1), (600, 600, 1), (2_000, 1_000, 0.02))


@dataclass(frozen=True, slots=True)
class Model:
    """A table and the model that every program fits to it."""

    name: str
    table: str
    fixed: str
    groups: tuple[str, ...]
    refits: int = 0  # that lme4 is timed on

    @property
    def formula(self) -> str:
        """The formula in lme4's syntax."""
        return " + ".join([self.fixed, *(f"(1 | {group})" for group in self.groups)])


def grid(runs: int, tasks: int, rows: float) -> pd.DataFrame:
    """Return runs x tasks with this many rows a cell, or this share of the cells."""
    rng = np.random.default_rng([runs, tasks])
    run, task = np.divmod(np.repeat(np.arange(runs * tasks), max(int(rows), 1)), tasks)
    if rows < 1:
        keep = rng.random(len(run)) < rows
        run, task = run[keep], task[keep]
    wp, lora = rng.random(runs)[run], rng.random(runs)[run] < 0.5
    noise = rng.normal(0, 1, runs)[run] + rng.normal(0, 5, tasks)[task]
    score = 50 + 8 * wp - 8 * wp**2 + lora + noise + rng.normal(0, 2, len(run))
    return pd.DataFrame(
        {"score": score, "wp": wp, "adapter": np.where(lora, "lora", "full"),
         "run": np.char.add("r", run.astype(str)), "task": np.char.add("t", task.astype(str))}
    )  # fmt: skip


def least(function: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Return the least processor and wall seconds of some calls."""
    cpu, wall = [], []
    for _ in range(repeats):
        begun = time.process_time(), time.perf_counter()
        function()
        cpu.append(time.process_time() - begun[0])
        wall.append(time.perf_counter() - begun[1])
    return {"cpu": min(cpu), "wall": min(wall)}


def numerical(fit: MixedFit) -> Callable[[], Any]:
    """Return the fit without reading formula and table."""
    design = fit.design

    def once() -> Any:
        problem = Problem(design.X_NB, design.y_N, factors=design.factors)
        found = minimise(problem)
        return solution(problem, found.theta, found.at)

    return once


def ours(model: Model, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Return our times of one model: of the numbers alone, and of `fit_mixed` whole."""
    data = pd.read_csv(folder / model.table, dtype=dict.fromkeys(model.groups, str))
    fit = fit_mixed(data, model.formula)
    whole = least(partial(fit_mixed, data, model.formula), repeats)
    shared = {"model": model.name, "loglik": fit.loglik}
    return [
        {"program": "ablate, fit_mixed", **shared, **whole},
        {"program": "ablate, numbers alone", **shared, **least(numerical(fit), repeats)},
    ]


def theirs(program: str, folder: Path) -> list[dict[str, Any]]:
    """Return what another program stored."""
    found = json.loads((folder / f"{program}.json").read_text())
    return [{"program": program, "model": row.pop("name"), **row} for row in found]


def grown(repeats: int) -> pd.DataFrame:
    """Return our times by rows and by levels."""
    formula, rows = f"{GRID} + (1 | run) + (1 | task)", []
    for runs, tasks, share in (*ROWS, *LEVELS):
        data = grid(runs, tasks, share)
        fit = fit_mixed(data, formula)
        shape = {"rows": len(data), "runs": runs, "tasks": tasks}
        alone = least(numerical(fit), repeats)
        whole = least(partial(fit_mixed, data, formula), repeats)
        rows.append({**shape, "numbers_cpu": alone["cpu"], "fit_mixed_cpu": whole["cpu"],
                     "numbers_wall": alone["wall"], "fit_mixed_wall": whole["wall"]})  # fmt: skip
    return pd.DataFrame(rows)


def _share(task: tuple[MixedFit, int, int]) -> float:
    fit, draws, seed = task
    begun = time.process_time()
    bootstrap(fit, draws=draws, seed=seed)
    return time.process_time() - begun


def refits(fit: MixedFit, lme4: dict[str, Any]) -> pd.DataFrame:
    """Return the times of bootstrap refits: on one core, on two, and lme4's."""
    one = least(partial(bootstrap, fit, draws=DRAWS), 1)
    tasks = [(fit, DRAWS // 2, seed) for seed in (1, 2)]
    begun = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        cpu = sum(pool.map(_share, tasks))
    two = {"cpu": cpu, "wall": time.perf_counter() - begun}
    other = {"cpu": lme4["refits_cpu"], "wall": lme4["refits_wall"]}
    return pd.DataFrame(
        [
            {"program": "ablate, one process", "refits": DRAWS, **one},
            {"program": "ablate, two processes", "refits": DRAWS, **two},
            {"program": "lme4, refit", "refits": R_DRAWS, **other},
        ]
    )


def models(folder: Path) -> list[Model]:
    """Write the grids and return all models."""
    found = [Model("InstEval", "insteval.csv", "y ~ service", ("s", "d", "dept"))]
    for runs in (60, 450, 1_200):
        name = f"grid of {runs * TASKS:,} rows"
        table = f"grid{runs}.csv"
        grid(runs, TASKS, 1).to_csv(folder / table, index=False)
        found.append(Model(name, table, GRID, ("run", "task"), R_DRAWS if runs == 60 else 0))
    return found


def programs(all_models: list[Model], folder: Path, asked: argparse.Namespace) -> None:
    """Let lme4 and, where they are, the packages of pip fit all models."""
    as_r = [{**asdict(m), "formula": m.formula.replace("**", "^")} for m in all_models]
    (folder / "models.json").write_text(json.dumps(as_r))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    script = ["Rscript", str(HERE / "mixed_models.R"), str(folder), str(asked.repeats)]
    if asked.blas:
        subprocess.run(script, check=True, env={**environment, "LD_PRELOAD": asked.blas})
        (folder / "lme4.json").rename(folder / f"{OTHER_BLAS}.json")
    subprocess.run(script, check=True, env=environment)
    as_python = [{**row, "fixed": m.fixed} for row, m in zip(as_r, all_models, strict=True)]
    (folder / "models.json").write_text(json.dumps(as_python))
    for package in PEERS if asked.peers else ():
        script = [asked.peers, str(HERE / "mixed_models_peers.py"), str(folder)]
        subprocess.run([*script, str(asked.repeats), package], check=True, env=environment)


def panels(runs: int, count: int) -> pd.DataFrame:
    """Return runs x panels whose residual SDs go from 0.5 to 5, with an arm and a site a run."""
    rng = np.random.default_rng([runs, count])
    run, panel = np.divmod(np.arange(runs * count), count)
    arm, x, site = run % 5, run // 5 % 7 / 6, rng.integers(0, 13, len(run))
    cell = arm * count + panel
    own = rng.normal(0, 0.8, runs)[run] + rng.normal(0, 0.7, 5 * count)[cell]
    noise = 0.5 * 10 ** (panel / (count - 1)) * rng.normal(size=len(run))
    score = 50 + panel + 2 * x + own + rng.normal(0, 1, 13)[site] + noise
    groups = {"panel": panel, "cell": cell, "run": run, "site": site}
    named = {name: np.char.add(name[0], index.astype(str)) for name, index in groups.items()}
    return pd.DataFrame({"score": score, "x": x} | named)


def dispersions(repeats: int) -> pd.DataFrame:
    """Return the times of models with a residual variance a panel, ours and R's."""
    asked, rows = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for runs, groups in ((60, ["cell"]), (60, ["run", "site"]), (600, ["run", "site"])):
            data, label = panels(runs, 12), " + ".join(f"(1 | {group})" for group in groups)
            model = f"{len(data):,} rows, 12 panels, {label}"
            formula = f"score ~ panel * x + {label}"
            data.to_csv(folder / f"{len(asked)}.csv", index=False)
            asked.append({"model": model, "formula": formula, "groups": groups})
            once = partial(fit_mixed, data, formula, dispersion="~ panel")
            found = {"program": "ablate, fit_mixed", "model": model, "loglik": once().loglik}
            rows.append(found | least(once, repeats))
        (folder / "models.json").write_text(json.dumps(asked))
        script = ["Rscript", str(HERE / "mixed_models_dispersion.R"), name, str(repeats)]
        subprocess.run(script, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        rows += json.loads((folder / "found.json").read_text())
    return pd.DataFrame(rows)


def main() -> None:
    """Time everything in one run and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--peers", help="a Python that has the other packages")
    parser.add_argument("--blas", help="libraries to load before R's own BLAS and LAPACK")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument(
        "--dispersion", action="store_true", help="unequal residual variances alone"
    )
    asked = parser.parse_args()
    if asked.dispersion:
        table = dispersions(asked.repeats)
        table.round(5).to_csv(asked.out / "mixed_models_dispersion.csv", index=False)
        print(table.to_string(index=False))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        all_models = models(folder)
        programs(all_models, folder, asked)
        rows = [row for m in all_models for row in ours(m, folder, asked.repeats)]
        other = (OTHER_BLAS,) if asked.blas else ()
        for program in ("lme4", *other, *(PEERS if asked.peers else ())):
            rows += theirs(program, folder)
        small = pd.read_csv(folder / all_models[1].table)
        lme4 = json.loads((folder / "lme4.json").read_text())[1]
        again = refits(fit_mixed(small, all_models[1].formula), lme4)
    table = pd.DataFrame(rows).drop(columns=["refits_cpu", "refits_wall"])
    stem = "mixed_models"
    for found, end in ((table, ""), (grown(asked.repeats), "_growth"), (again, "_refits")):
        found.round(5).to_csv(asked.out / f"{stem}{end}.csv", index=False)
        print(found.to_string(index=False), "\n")


if __name__ == "__main__":
    main()
