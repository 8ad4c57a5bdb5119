"""The side of mixed_models.py that runs in an environment of its own: packages from pip.

    PYTHON benchmarks/mixed_models_peers.py FOLDER REPEATS PACKAGE

Fits every model of FOLDER/models.json with one of glmm, mixedlm, interlace and statsmodels, and
writes FOLDER/PACKAGE.json as mixed_models.R does. It imports nothing of this project.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

MOST_SECONDS = 20.0  # after which a model is not repeated
LARGE = 50_000  # rows that are too many for `SLOW`
SLOW = {"statsmodels": 1_000, "interlace": LARGE}  # rows up to which a package is asked


def glmm(model: dict[str, Any], data: pd.DataFrame) -> float:
    """Return glmm's log-likelihood."""
    import glmm as package

    return float(package.fit(data, model["formula"], reml=True).loglik)


def mixedlm(model: dict[str, Any], data: pd.DataFrame) -> float:
    """Return mixedlm's log-likelihood."""
    import mixedlm as package

    return float(package.lmer(model["formula"].replace("^", "**"), data).logLik().value)


def interlace(model: dict[str, Any], data: pd.DataFrame) -> float:
    """Return interlace's log-likelihood."""
    import interlace as package

    found = package.fit(model["fixed"], data, groups=model["groups"], method="REML")
    return float(found.llf)


def statsmodels(model: dict[str, Any], data: pd.DataFrame) -> float:
    """Return statsmodels' log-likelihood: crossed factors are components of one group."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    parts = {group: f"0 + C({group})" for group in model["groups"]}
    made = MixedLM.from_formula(
        model["fixed"], data.assign(one=1), groups="one", re_formula="0", vc_formula=parts
    )
    return float(made.fit(reml=True).llf)


FITS: dict[str, Callable[[dict[str, Any], pd.DataFrame], float]] = {
    "glmm": glmm,
    "mixedlm": mixedlm,
    "interlace": interlace,
    "statsmodels": statsmodels,
}


def timed(package: str, model: dict[str, Any], folder: Path, repeats: int) -> dict[str, Any]:
    """Return the least times of one model, or why there are none."""
    data = pd.read_csv(folder / model["table"], dtype=dict.fromkeys(model["groups"], str))
    if len(data) > SLOW.get(package, 10 * LARGE):
        return {"name": model["name"], "error": "left out: minutes or more"}
    cpu, wall, loglik = [], [], float("nan")
    for _ in range(1 + repeats):  # the first fit loads and compiles
        begun = time.process_time(), time.perf_counter()
        try:
            loglik = FITS[package](model, data)
        except Exception as error:
            return {"name": model["name"], "error": f"{type(error).__name__}: {error}"}
        cpu.append(time.process_time() - begun[0])
        wall.append(time.perf_counter() - begun[1])
        if wall[-1] > MOST_SECONDS:
            break
    return {"name": model["name"], "loglik": loglik, "cpu": min(cpu), "wall": min(wall)}


def main() -> None:
    """Fit all models with one package."""
    folder, repeats, package = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    warnings.simplefilter("ignore")
    models = json.loads((folder / "models.json").read_text())
    found = [timed(package, model, folder, repeats) for model in models]
    (folder / f"{package}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
