"""Beta and binomial mixed models by Laplace's approximation: time and memory, beside glmmTMB.

    OMP_NUM_THREADS=1 python benchmarks/glmm_speed.py [--r] [--repeats 3] [--out FILE]

Prints a Markdown table and writes benchmarks/glmm_speed.csv. With --r glmmTMB and lme4 fit the
same tables in the same run (those of up to `MOST_R` rows), which takes minutes. Our fits have a
process of their own for every table, so that the peak memory is theirs; it holds Python, the
libraries and the table too. Times are the least of the repeats, of processor and wall: on a
machine that does other work the two differ. Ours are of `fit_mixed` whole, formula and standard
errors included; R's are of the fit and its `vcov`.

The tables are runs crossed with tasks or items, one row a cell.
"""

import argparse
import json
import multiprocessing
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from analysis.mixed import fit_mixed

HERE = Path(__file__).parent
FIXED = "wp + I(wp^2) + adapter"
RUN_SD, OTHER_SD, PHI = 0.3, 0.8, 30.0
MOST_R = 50_000  # rows


@dataclass(frozen=True, slots=True)
class Model:
    """A table and the model of it."""

    family: str
    runs: int
    others: int  # tasks or items
    random: str = "(1 | run) + (1 | other)"

    @property
    def formula(self) -> str:
        """The formula in lme4's syntax."""
        return f"score ~ {FIXED} + {self.random}"

    @property
    def name(self) -> str:
        """What the table is called."""
        return f"{self.family} {self.runs:,} x {self.others:,}, {self.random}"


MODELS = (
    Model("beta", 60, 13),
    Model("beta", 240, 13),
    Model("beta", 1_200, 13),
    Model("beta", 1_200, 13, "(1 | run) + (1 + wp | other)"),
    Model("binomial", 60, 200),
    Model("binomial", 60, 200, "(1 | run) + (1 + wp | other)"),
    Model("binomial", 600, 200),
    Model("binomial", 600, 2_000),
)


def table(model: Model) -> pd.DataFrame:
    """Return runs x tasks or items with a score in every cell."""
    rng = np.random.default_rng([model.runs, model.others])
    run, other = np.divmod(np.arange(model.runs * model.others), model.others)
    wp, lora = rng.random(model.runs)[run], (rng.random(model.runs) < 0.5)[run]
    eta = -0.3 + 0.8 * wp - 0.6 * wp**2 + 0.3 * lora
    eta += rng.normal(0, RUN_SD, model.runs)[run] + rng.normal(0, OTHER_SD, model.others)[other]
    if "wp |" in model.random:
        eta += rng.normal(0, OTHER_SD / 2, model.others)[other] * wp
    mu = expit(eta)
    if model.family == "binomial":
        score = (rng.random(len(mu)) < mu).astype(np.float64)
    else:
        score = np.clip(rng.beta(mu * PHI, (1 - mu) * PHI), 1e-6, 1 - 1e-6)
    names = [[f"{c}{i:04d}" for i in range(n)] for c, n in (("r", model.runs), ("i", model.others))]
    return pd.DataFrame(
        {
            "score": score,
            "wp": wp,
            "adapter": pd.Categorical.from_codes(lora.astype(np.int8), ["full", "lora"]),
            "run": pd.Categorical.from_codes(run, names[0]),
            "other": pd.Categorical.from_codes(other, names[1]),
        }
    )


def least(function: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Return the least processor and wall seconds of some calls."""
    cpu, wall = [], []
    for _ in range(repeats):
        begun = time.process_time(), time.perf_counter()
        function()
        cpu.append(time.process_time() - begun[0])
        wall.append(time.perf_counter() - begun[1])
    return {"cpu": min(cpu), "wall": min(wall)}


def ours(task: tuple[Model, int]) -> dict[str, Any]:
    """Return our times and the peak memory of this process in MiB."""
    model, repeats = task
    data = table(model)
    fit = fit_mixed(data, model.formula, model.family)
    spent = least(lambda: fit_mixed(data, model.formula, model.family), repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    about = {"evaluations": fit.minimum.evaluations, "converged": fit.converged}
    return {"program": "ablate", "loglik": fit.loglik, **about, **spent, "peak_mib": peak}


def theirs(models: list[Model], repeats: int) -> list[dict[str, Any]]:
    """Return the times of glmmTMB, and of lme4 where the family is its."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i, model in enumerate(models):
            table(model).to_csv(folder / f"{i}.csv", index=False)
        asked = [{**asdict(m), "formula": m.formula} for m in models]
        (folder / "models.json").write_text(json.dumps(asked))
        script = ["Rscript", str(HERE / "glmm_speed.R"), str(folder), str(repeats)]
        subprocess.run(script, check=True)
        found: list[dict[str, Any]] = json.loads((folder / "found.json").read_text())
    return [{**row, "model": models[row.pop("model")].name} for row in found]


def markdown(found: pd.DataFrame) -> str:
    """Return the measurements as Markdown, a row for every model and program."""
    lines = ["| model | program | processor s | wall s | peak MiB | log-likelihood |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in found.itertuples():
        peak = "" if pd.isna(row.peak_mib) else f"{row.peak_mib:.0f}"
        model = str(row.model).replace("|", r"\|")
        lines.append(
            f"| {model} | {row.program} | {row.cpu:.3f} | {row.wall:.3f} | {peak} "
            f"| {row.loglik:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Time everything in one run, print the table and store it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--r", action="store_true", help="time glmmTMB and lme4 as well")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "glmm_speed.csv")
    asked = parser.parse_args()
    rows = []
    for model in MODELS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append({"model": model.name, **pool.map(ours, [(model, asked.repeats)])[0]})
        print(rows[-1], flush=True)
    if asked.r:
        rows += theirs([m for m in MODELS if m.runs * m.others <= MOST_R], asked.repeats)
    order = {model.name: i for i, model in enumerate(MODELS)}
    found = pd.DataFrame(rows).sort_values("model", key=lambda c: c.map(order), kind="stable")
    found.round(5).to_csv(asked.out, index=False)
    print(markdown(found))


if __name__ == "__main__":
    main()
