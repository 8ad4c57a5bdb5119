"""glmm_models.json is what glmm_models.R says, where R is at hand.

Searches end elsewhere on a flat top with another BLAS and compiler, so estimates are compared in
standard errors.
"""

import json
import math
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

ORACLES = Path(__file__).parents[1] / "oracles"
SCRIPT = ORACLES / "glmm_models.R"
RELATIVE, IN_SE, LOGLIK, ZERO = 1e-3, 1e-3, 1e-4, 1e-3


def differences(new, old):
    """Yield where a model's fit differs by more than its tolerance."""
    told = [key for key in old if key not in ("lme4", "glmmTMB")]
    if any(new.get(key) != old[key] for key in told) or new.keys() != old.keys():
        yield "the model itself"
    for program in {"lme4", "glmmTMB"} & old.keys() & new.keys():
        ours, theirs = new[program], old[program]
        if abs(ours["loglik"] - theirs["loglik"]) > LOGLIK:
            yield f"{program} loglik"
        for name, se in theirs["se"].items():
            if abs(ours["fixef"][name] - theirs["fixef"][name]) > IN_SE * se:
                yield f"{program} {name}"
            if not math.isclose(ours["se"][name], se, rel_tol=RELATIVE):
                yield f"{program} se {name}"
        for a, b in zip(ours["random"], theirs["random"], strict=True):
            if not math.isclose(a["sd"], b["sd"], rel_tol=RELATIVE, abs_tol=ZERO):
                yield f"{program} sd {b['group']} {b['name']}"
        yield from _of_lists(ours.get("means", {}), theirs.get("means", {}), IN_SE)
        yield from _of_lists(ours.get("modes", {}), theirs.get("modes", {}), IN_SE)


def _of_lists(new, old, tolerance):
    """Yield the columns of numbers that differ, in a tree of columns."""
    for key, value in old.items():
        if isinstance(value, dict):
            yield from _of_lists(new[key], value, tolerance)
            continue
        pairs = zip(*(v if isinstance(v, list) else [v] for v in (new[key], value)), strict=True)
        for a, b in pairs:
            same = a == b if isinstance(b, str) else math.isclose(a, b, abs_tol=tolerance)
            if not same:
                yield f"{key}: {a} is not {b}"


def test_a_difference_is_seen():
    old = next(m for m in json.loads((ORACLES / "glmm_models.json").read_text())
               if "means" in m.get("glmmTMB", {}))  # fmt: skip
    assert list(differences(old, old)) == []
    name = next(iter(old["glmmTMB"]["se"]))
    se = old["glmmTMB"]["se"][name]
    for path, change in (
        (("loglik",), 0.01),
        (("fixef", name), 0.01 * se),
        (("se", name), 0.01 * se),
        (("random", 0, "sd"), 0.01),
        (("means", "link", "SE", 0), 0.01),
    ):
        other = json.loads(json.dumps(old))
        place = other["glmmTMB"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] += change
        assert len(list(differences(other, old))) == 1


def test_r_says_what_is_stored(tmp_path):
    if (rscript := shutil.which("Rscript")) is None:
        pytest.skip("no Rscript")
    done = subprocess.run(
        [rscript, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=False
    )
    if "there is no package called" in done.stderr:
        pytest.skip("R without " + done.stderr.split("there is no package called")[1].split()[0])
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"items.csv", "bounded.csv", "glmm_models.json"}
    for name in ("items", "bounded"):
        new, old = (pd.read_csv(where / f"{name}.csv") for where in (tmp_path, ORACLES))
        pd.testing.assert_frame_equal(new, old, rtol=1e-6, atol=1e-6)
    new, old = (json.loads((p / "glmm_models.json").read_text()) for p in (tmp_path, ORACLES))
    assert len(new) == len(old)
    found = {b["name"]: list(differences(a, b)) for a, b in zip(new, old, strict=True)}
    assert {name: words for name, words in found.items() if words} == {}
